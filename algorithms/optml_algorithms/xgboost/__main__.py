"""`train` of the XGBoost image: python -m optml_algorithms.xgboost."""

import os
import sys

from optml_algorithms.xgboost.train import train
from optml_toolkit.container import Container, main


def start(container: Container) -> None:
    """xgboost imports scikit-learn for its estimators if it can: this has no use for them, and would start a second later."""
    sys.modules["sklearn"] = None  # type: ignore[assignment]
    try:
        import xgboost  # noqa: F401
    finally:
        del sys.modules["sklearn"]
    train(container)


code = main(start)
sys.stdout.flush()
sys.stderr.flush()
if (
    code
):  # XGBoost crashes at the end of a process whose communicator has lost a host: the exit code would be a signal's
    os._exit(code)
