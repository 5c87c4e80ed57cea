"""`train` of the linear learner image: python -m optml_algorithms.linear_learner."""

import sys

from optml_algorithms.linear_learner.train import train
from optml_toolkit.container import main

sys.exit(main(train))
