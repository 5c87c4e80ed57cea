"""Metric values that XGBoost does not compute itself. scikit-learn's definitions, as AWS's container has them."""

from collections.abc import Callable, Mapping
from typing import Any

CLASSIFICATION: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "accuracy": ("accuracy_score", {}),
    "balanced_accuracy": ("balanced_accuracy_score", {}),
    "f1": ("f1_score", {"average": "macro"}),
    "f1_binary": ("f1_score", {"average": "binary"}),
    "f1_macro": ("f1_score", {"average": "macro"}),
    "precision": ("precision_score", {"average": "binary"}),
    "precision_macro": ("precision_score", {"average": "macro"}),
    "precision_micro": ("precision_score", {"average": "micro"}),
    "recall": ("recall_score", {"average": "binary"}),
    "recall_macro": ("recall_score", {"average": "macro"}),
    "recall_micro": ("recall_score", {"average": "micro"}),
}
REGRESSION = {"mse": "mean_squared_error", "r2": "r2_score"}
BINARY_ONLY = frozenset(name for name, (_, how) in CLASSIFICATION.items() if how.get("average") == "binary")
UNDEFINED_AS_ZERO = frozenset({"f1_score", "precision_score", "recall_score"})


def metric_named(name: str) -> Callable[[Any, Any], float]:
    """`metric(labels, predicted)`, both of shape (rows,): class numbers for CLASSIFICATION, values for REGRESSION."""
    from sklearn import metrics

    if name in REGRESSION:
        function = getattr(metrics, REGRESSION[name])
        return lambda labels, predicted: float(function(labels, predicted))
    function_name, how = CLASSIFICATION[name]
    function = getattr(metrics, function_name)
    quiet: dict[str, Any] = {"zero_division": 0} if function_name in UNDEFINED_AS_ZERO else {}
    return lambda labels, predicted: float(function(labels, predicted, **how, **quiet))
