"""`train` of the XGBoost image: python -m optml_algorithms.xgboost."""

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


sys.exit(main(start))
