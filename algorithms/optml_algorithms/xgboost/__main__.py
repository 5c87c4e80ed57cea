"""`train` of the XGBoost image: python -m optml_algorithms.xgboost.

Algorithm mode, or, where the hyperparameters name a script, framework mode: as in AWS's container.
"""

import sys

from optml_toolkit.container import Container, main
from optml_toolkit.script_mode.job import names_a_program

if names_a_program(Container.here()):
    from optml_toolkit.script_mode.main import main as run_script

    sys.exit(run_script())

from optml_algorithms.xgboost.train import train

sys.exit(main(train))
