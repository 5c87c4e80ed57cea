"""`train` of the XGBoost image: python -m optml_algorithms.xgboost.

Algorithm mode, or, where the hyperparameters name a script, framework mode: as in AWS's container.
"""

import os
import sys

from optml_toolkit.container import Container, main
from optml_toolkit.script_mode.job import names_a_program


def start(container: Container) -> None:
    """xgboost imports scikit-learn for its estimators if it can: this has no use for them, and would start a second later."""
    sys.modules["sklearn"] = None  # type: ignore[assignment]
    try:
        import xgboost  # noqa: F401
    finally:
        del sys.modules["sklearn"]
    from optml_algorithms.xgboost.train import train

    train(container)


if names_a_program(Container.here()):
    from optml_toolkit.script_mode.main import main as run_script

    sys.exit(run_script())

code = main(start)
sys.stdout.flush()
sys.stderr.flush()
if (
    code
):  # XGBoost crashes at the end of a process whose communicator has lost a host: the exit code would be a signal's
    os._exit(code)
