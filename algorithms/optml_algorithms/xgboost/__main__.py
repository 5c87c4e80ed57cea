"""`train` of the XGBoost image: python -m optml_algorithms.xgboost."""

import sys

from optml_algorithms.xgboost.train import train
from optml_toolkit.container import main

sys.exit(main(train))
