"""`train` of the k-NN image: python -m optml_algorithms.knn."""

import sys

from optml_algorithms.knn.train import train
from optml_toolkit.container import main

sys.exit(main(train))
