"""A line of metrics: what XGBoost computes, then what is computed here; over the rows of all hosts."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optml_algorithms.metrics import (
    REGRESSION,
    classification_metric,
    confusion,
    regression_metric,
    regression_sums,
)
from optml_algorithms.xgboost.hyperparameters import Settings

Watched = Sequence[tuple[Any, str]]  # matrices and their names: train, then validation


@dataclass(frozen=True)
class Scores:
    """`printed`: by name as on the line, in its order. `asked`: by the name that the caller gave (`validation-error@.5`)."""

    printed: Mapping[str, float]
    asked: Mapping[str, float]


def scores_of(booster: Any, watched: Watched, number: int, wanted: Settings) -> Scores:
    """All metrics of all data sets after round `number`; every host must call."""
    evaluated: str = booster.eval_set(watched, number)
    native = [(name, float(value)) for name, value in (part.rsplit(":", 1) for part in evaluated.split("\t")[1:])]
    each = len(native) // len(watched)  # as many for each data set, in the order in which they were asked for
    printed: dict[str, float] = {}
    asked: dict[str, float] = {}
    for place, (matrix, data_set) in enumerate(watched):
        for rank, (name, value) in enumerate(native[place * each : (place + 1) * each]):
            if name.startswith(f"{data_set}-tweedie-nloglik@"):  # the published expression does not expect the power
                name = f"{data_set}-tweedie-nloglik"
            printed[name] = value
            if wanted.native_metrics:
                asked[f"{data_set}-{wanted.native_metrics[rank]}"] = value
        for metric, value in computed(booster, matrix, wanted).items():
            printed[f"{data_set}-{metric}"] = asked[f"{data_set}-{metric}"] = value
    return Scores(printed, asked)


def computed(booster: Any, matrix: Any, wanted: Settings) -> dict[str, float]:
    if not wanted.computed_metrics:
        return {}
    import numpy
    from xgboost import collective

    labels, predicted = matrix.get_label(), booster.predict(matrix)
    found: dict[str, float] = {}
    if wanted.is_classification:
        classes = predicted_classes(wanted.objective, predicted)
        counts = confusion(labels, classes, wanted.class_count)
        counts = collective.allreduce(counts, collective.Op.SUM).reshape(counts.shape)
        found = {
            name: classification_metric(name, counts) for name in wanted.computed_metrics if name not in REGRESSION
        }
    of_values = [name for name in wanted.computed_metrics if name in REGRESSION]
    if of_values:
        if predicted.ndim == 2:
            predicted = predicted.argmax(axis=1)
        total = numpy.array([len(labels), labels.sum(dtype=numpy.float64)])
        total = collective.allreduce(total, collective.Op.SUM)
        sums = regression_sums(labels, predicted, offset=total[1] / max(total[0], 1))
        sums = collective.allreduce(sums, collective.Op.SUM)
        found |= {name: regression_metric(name, sums) for name in of_values}
    return {name: found[name] for name in wanted.computed_metrics}


def predicted_classes(objective: str, predicted: Any) -> Any:
    """Class numbers, shape (rows,), from what XGBoost predicts: probabilities, margins or classes.

    (AWS's container takes every probability above 0 for class 1; here the threshold is 0.5, or 0 for margins.)
    """
    if predicted.ndim == 2:
        return predicted.argmax(axis=1)
    if objective.startswith("multi:"):
        return predicted
    return predicted > (0.0 if objective == "binary:logitraw" else 0.5)


def print_scores(label: int, values: Mapping[str, float]) -> None:
    """`[7]`, then a tab before each value: the published metric expressions look for it."""
    sys.stdout.write(f"[{label}]" + "".join(f"\t{name}:{value:.5f}" for name, value in values.items()) + "\n")
    sys.stdout.flush()
