"""How good scores are: the threshold of a binary classifier, and the metrics that AWS's linear learner publishes.

Shapes: N rows, M candidates, C classes. A binary score is a margin: the higher, the more class 1; 0 is the natural threshold.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from optml_algorithms.linear_learner.hyperparameters import Settings

if TYPE_CHECKING:
    import numpy

    Array = numpy.ndarray[Any, numpy.dtype[Any]]

NATURAL = 0.0


@dataclass(frozen=True)
class Chosen:
    """For each candidate the best value of the criterion, and the threshold that gives it: both of shape (M,)."""

    values: "Array"
    thresholds: "Array"


def choose_thresholds(scores_NM: "Array", labels_N: "Array", settings: Settings) -> Chosen:
    """The threshold at which the criterion is best: rows with score >= threshold are class 1.

    Of thresholds that are as good the one nearest to 0 is taken, and 0 itself where it is one of them, for that will hold best on
    other data. Where a target cannot be reached, the value is how far off it stays, below 0.
    """
    import numpy

    chosen = [_choose(scores_NM[:, number], labels_N, settings) for number in range(scores_NM.shape[1])]
    return Chosen(numpy.array([value for value, _ in chosen]), numpy.array([threshold for _, threshold in chosen]))


def _choose(scores_N: "Array", labels_N: "Array", settings: Settings) -> tuple[float, float]:
    import numpy

    if not numpy.isfinite(scores_N).all():
        return -numpy.inf, NATURAL
    order = numpy.argsort(-scores_N)
    ordered = scores_N[order].astype("f8")
    # A cut lies before the first score, after the last, and between two that differ; `above` rows are class 1 by it.
    cuts = numpy.concatenate([[0], numpy.flatnonzero(ordered[:-1] > ordered[1:]) + 1, [len(ordered)]])
    hits = numpy.concatenate([[0], numpy.cumsum(labels_N[order] > 0.5)])[cuts].astype("f8")
    values = _criterion(settings, hits=hits, above=cuts.astype("f8"), positives=hits[-1], rows=len(ordered))
    margin = 1e-6 * (1 + abs(ordered[[0, -1]]))
    bounds = numpy.concatenate([[ordered[0] + 2 * margin[0]], ordered, [ordered[-1] - 2 * margin[1]]])
    upper, lower = bounds[cuts], bounds[cuts + 1]
    thresholds = numpy.where((upper >= NATURAL) & (lower < NATURAL), NATURAL, (upper + lower) / 2)
    best = numpy.flatnonzero(values >= values.max() - 1e-12)
    place = best[numpy.argmin(abs(thresholds[best] - NATURAL))]
    return float(values[place]), float(thresholds[place])


def _criterion(settings: Settings, *, hits: "Array", above: "Array", positives: float, rows: int) -> Any:
    """Its value at every cut. `hits` are rows of class 1 above it."""
    import numpy

    precision = numpy.divide(hits, above, out=numpy.zeros_like(hits), where=above > 0)
    recall = hits / max(positives, 1.0)
    match settings.criterion:
        case "accuracy":
            return (hits + (rows - positives) - (above - hits)) / rows
        case "f_beta":
            return _f_beta(hits, above, positives, settings.f_beta)
        case "precision_at_target_recall":
            return numpy.where(recall >= settings.target_recall, precision, recall - settings.target_recall)
        case "recall_at_target_precision":
            return numpy.where(precision >= settings.target_precision, recall, precision - settings.target_precision)
        case "loss_function":  # no threshold is better than the natural one
            return numpy.zeros_like(hits)


def _f_beta(hits: Any, above: Any, positives: Any, beta: float) -> Any:
    import numpy

    square = beta**2
    denominator = numpy.asarray(above + square * positives)
    return numpy.divide((1 + square) * hits, denominator, out=numpy.zeros(denominator.shape), where=denominator > 0)


def roc_auc(scores_N: "Array", labels_N: "Array") -> float:
    """Area under the ROC curve of rows of both classes."""
    import numpy

    order = numpy.argsort(-scores_N)
    ordered, positive = scores_N[order], labels_N[order] > 0.5
    cuts = numpy.concatenate([numpy.flatnonzero(ordered[:-1] > ordered[1:]) + 1, [len(ordered)]])
    hits = numpy.concatenate([[0], numpy.cumsum(positive)[cuts - 1]]).astype("f8")
    misses = numpy.concatenate([[0], cuts]) - hits
    area = numpy.sum(numpy.diff(misses) * (hits[1:] + hits[:-1]) / 2)
    return float(area / hits[-1] / misses[-1])


def binary_metrics(scores_N: "Array", labels_N: "Array", *, threshold: float, f_beta: float) -> dict[str, float]:
    """By their names in the log; without the area under the curve where only one class is there."""
    above, positive = scores_N >= threshold, labels_N > 0.5
    hits, predicted, positives = (above & positive).sum(), above.sum(), positive.sum()
    area = {} if positives in (0, len(positive)) else {"roc_auc_score": roc_auc(scores_N, labels_N)}
    return {
        "binary_classification_accuracy": float((above == positive).mean()),
        f"binary_f_{f_beta:.3f}": float(_f_beta(hits, predicted, positives, f_beta)),
        "precision": float(hits / max(predicted, 1)),
        "recall": float(hits / max(positives, 1)),
        **area,
    }


def sums_of(scores_NC: "Array", labels_N: "Array", settings: Settings) -> "Array":
    """What the metrics of several classes, or of numbers, are made of: sums that add up over chunks and hosts."""
    import numpy

    if settings.outputs == 1:
        error = scores_NC[:, 0].astype("f8") - labels_N
        return numpy.array([len(error), (error**2).sum(), abs(error).sum()])
    labels = labels_N.astype("i8")
    of_label = scores_NC[numpy.arange(len(labels)), labels]
    rank = (scores_NC > of_label[:, None]).sum(axis=1)  # 0 for the highest
    predicted = scores_NC.argmax(axis=1)
    classes = scores_NC.shape[1]
    return numpy.concatenate(
        [
            [len(labels), (predicted == labels).sum(), (rank < settings.accuracy_top_k).sum()],
            [(1 / numpy.log2(rank + 2)).sum()],
            numpy.bincount(labels[predicted == labels], minlength=classes),
            numpy.bincount(predicted, minlength=classes),
            numpy.bincount(labels, minlength=classes),
        ]
    ).astype("f8")


def sums_count(settings: Settings) -> int:
    return 3 if settings.outputs == 1 else 4 + 3 * settings.outputs


def metrics_of(sums: "Array", settings: Settings, *, label_scale: float) -> dict[str, float]:
    """Metrics by their names in the log, of `sums_of` all rows. Errors are given in the label's own units."""
    import numpy

    rows = sums[0]
    if settings.outputs == 1:
        squared, absolute = sums[1] / rows * label_scale**2, sums[2] / rows * label_scale
        return {"mse": float(squared), "absolute_loss": float(absolute), "rmse": float(squared**0.5)}
    hits, predicted, actual = sums[4:].reshape(3, -1)
    seen = (predicted + actual) > 0  # as in scikit-learn: a class that is nowhere does not count
    precision = numpy.divide(hits, predicted, out=numpy.zeros_like(hits), where=predicted > 0)[seen]
    recall = numpy.divide(hits, actual, out=numpy.zeros_like(hits), where=actual > 0)[seen]
    f_beta = _f_beta(hits, predicted, actual, settings.f_beta)[seen]
    return {
        "multiclass_accuracy": sums[1] / rows,
        f"multiclass_top_k_accuracy_{settings.accuracy_top_k}": sums[2] / rows,
        "dcg": sums[3] / rows,
        "macro_recall": float(recall.mean()),
        "macro_precision": float(precision.mean()),
        f"macro_f_{settings.f_beta:.3f}": float(f_beta.mean()),
    }


LOSSES = frozenset({"mse", "absolute_loss", "rmse"})


@dataclass(frozen=True)
class Scored:
    """A data set and its metrics, with the objective's name and value."""

    data_set: str  # train, validation or test
    objective: tuple[str, float]
    metrics: Mapping[str, float] = field(default_factory=dict)

    def lines(self, host: str) -> Iterator[str]:
        """As AWS's linear learner prints them, and its published expressions look for them."""
        name, value = self.objective
        yield f"#{self.data_set}_score ({host}) : {(name, round(value, 10))}"
        yield from (
            f"#{self.data_set}_score ({host}) : {(name, round(float(value), 10))}"
            for name, value in self.metrics.items()
        )
        yield quality_line(host, self.data_set, name, value, "loss")
        for name, value in self.metrics.items():
            yield quality_line(host, self.data_set, name, value, "loss" if name in LOSSES else "score")


def quality_line(host: str, data_set: str, name: str, value: float, kind: str, *, epoch: int | None = None) -> str:
    of_epoch = "" if epoch is None else f"epoch={epoch}, "
    return f"#quality_metric: host={host}, {of_epoch}{data_set} {name} <{kind}>={value:.10g}"
