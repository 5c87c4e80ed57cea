"""`train` of the linear learner image: python -m optml_algorithms.linear_learner."""

import logging
import os
import sys

from optml_algorithms.linear_learner.train import train
from optml_toolkit.container import main

status = main(train)
logging.shutdown()
sys.stdout.flush()
sys.stderr.flush()
os._exit(status)  # all is written: taking torch apart would cost every job half a second
