"""Metric values that XGBoost does not compute itself: scikit-learn's definitions, as AWS's container has them.

They are computed from sums over rows (a table of classes; squares), which several hosts can add up, and without importing
scikit-learn, which would take longer to start than XGBoost itself.
"""

import math
from typing import Any

CLASSIFICATION = (
    "accuracy", "balanced_accuracy", "f1", "f1_binary", "f1_macro", "precision", "precision_macro", "precision_micro",
    "recall", "recall_macro", "recall_micro",
)  # fmt: skip
REGRESSION = ("mse", "r2")
BINARY_ONLY = ("f1_binary", "precision", "recall")


def confusion(labels: Any, predicted: Any, class_count: int) -> Any:
    """How many rows of each class are taken for each: int64, shape (classes, classes). Both arguments: shape (rows,)."""
    import numpy

    pairs = labels.astype(numpy.int64) * class_count + predicted.astype(numpy.int64)
    return numpy.bincount(pairs, minlength=class_count**2).reshape(class_count, class_count)


def classification_metric(name: str, counts: Any) -> float:
    """A metric of CLASSIFICATION from `confusion`'s counts; a share of nothing is 0.

    `f1` is f1_macro; macro means are over the classes that occur as a label or as a prediction.
    """
    import numpy

    if not counts.any():
        return math.nan
    right = counts.diagonal().astype(float)
    actual, taken = counts.sum(axis=1), counts.sum(axis=0)
    if name in ("accuracy", "precision_micro", "recall_micro"):
        return float(right.sum() / counts.sum())
    if name == "balanced_accuracy":
        return float((right[actual > 0] / actual[actual > 0]).mean())
    kind, _, average = name.partition("_")
    below = {"precision": taken, "recall": actual, "f1": (taken + actual) / 2}[kind]
    each = numpy.divide(right, below, out=numpy.zeros_like(right), where=below > 0)
    if name in BINARY_ONLY:
        return float(each[1])
    assert average in ("", "macro"), name
    return float(each[(actual + taken) > 0].mean())


def regression_sums(labels: Any, predicted: Any, offset: float) -> Any:
    """What the regression metrics need of some rows: float64 of shape (4,). `offset` is some value amid the labels."""
    import numpy

    labels = labels.astype(numpy.float64)
    away = labels - offset
    return numpy.array([len(labels), numpy.square(labels - predicted).sum(), away.sum(), numpy.square(away).sum()])


def regression_metric(name: str, sums: Any) -> float:
    """A metric of REGRESSION from the added up `regression_sums` of all rows, of one `offset`."""
    count, squared_errors, away, squared_away = (float(value) for value in sums)
    if count == 0:
        return math.nan
    if name == "mse":
        return squared_errors / count
    spread = squared_away - away**2 / count
    if spread <= 0:  # all labels are the same; as scikit-learn has it
        return 1.0 if squared_errors == 0 else 0.0
    return 1 - squared_errors / spread
