"""Labels and predictions -> metric values, and warnings where a value misleads. scikit-learn computes; nothing is drawn here."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from optml_algorithms.models import Prediction, Task
from optml_algorithms.words import counted
from optml_toolkit.container import UserError

DOMINANT = 0.8  # share of one class from which accuracy says little
FEW_ROWS = 100
LEAST_CHANCE = 1e-15  # probabilities below count as this in log loss, whatever the type of the numbers
FEW_OF_A_CLASS = 10


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """`values`: by name; NaN where one is not defined for these rows. `confusion`: int64, shape (classes, classes), rows are the
    true classes, in the order of `classes`; None but for classification. `per_class`: precision, recall, F1, rows of each."""

    task: Task
    row_count: int
    values: Mapping[str, float]
    warnings: tuple[str, ...] = ()
    classes: tuple[int, ...] = ()
    confusion: Any = None
    per_class: Mapping[int, Mapping[str, float]] | None = None


def evaluate(task: Task, labels: Any, prediction: Prediction, groups: Any = None) -> Evaluated:
    """`labels`, `prediction.predicted_label`, `groups`: shape (rows,). UserError for what cannot be compared."""
    import numpy

    labels = numpy.asarray(labels)
    if len(labels) != len(prediction.predicted_label):
        raise UserError(
            f"there are {counted(len(labels), 'label')} and {counted(len(prediction.predicted_label), 'prediction')}"
        )
    if len(labels) == 0:
        raise UserError("there are no rows to evaluate")
    for what, values in (("label", labels), ("prediction", prediction.predicted_label), ("score", prediction.score)):
        if values is not None and not numpy.isfinite(values).all():
            row = int((~numpy.isfinite(values).reshape(len(values), -1).all(axis=1)).argmax()) + 1
            raise UserError(f"row {row:,}: the {what} is missing, NaN or infinite")
    match task:
        case "binary" | "multiclass":
            return _classification(task, labels, prediction)
        case "regression":
            return _regression(labels, prediction)
        case "ranking":
            return _ranking(labels, prediction, groups)


def _classification(task: Task, labels: Any, prediction: Prediction) -> Evaluated:
    import numpy
    from sklearn import metrics

    whole = labels == labels.round()
    if not whole.all():
        row = int(whole.argmin())
        raise UserError(
            f"row {row + 1:,}: label {labels[row]:g} is no class number; is this a regression (--task regression)?"
        )
    labels, predicted = labels.astype(numpy.int64), prediction.predicted_label.astype(numpy.int64)
    if task == "binary" and not set(numpy.unique(labels)) <= {0, 1}:
        raise UserError(
            f"the labels are {', '.join(map(str, numpy.unique(labels)[:10]))}, and a binary classifier knows 0 and 1"
        )
    known = 2 if task == "binary" else 0 if prediction.score is None else prediction.score.shape[1]
    classes = numpy.union1d(numpy.union1d(labels, predicted), numpy.arange(known))
    confusion = metrics.confusion_matrix(labels, predicted, labels=classes)
    precision, recall, f1, support = metrics.precision_recall_fscore_support(
        labels, predicted, labels=classes, zero_division=0
    )
    present = numpy.unique(labels)
    chances, ruled_out = None, 0  # what probability each row's true class was given; how many were given none
    values: dict[str, float] = {
        "accuracy": float(metrics.accuracy_score(labels, predicted)),
        "balanced accuracy": float(recall[support > 0].mean()),
    }
    if task == "binary":
        values |= {"precision": float(precision[1]), "recall": float(recall[1]), "F1": float(f1[1])}
        values["Matthews correlation"] = float(metrics.matthews_corrcoef(labels, predicted))
        if prediction.score is not None:
            two = len(present) == 2
            values["AUC"] = float(metrics.roc_auc_score(labels, prediction.score)) if two else math.nan
            values["PR-AUC"] = float(metrics.average_precision_score(labels, prediction.score)) if two else math.nan
            if prediction.is_probability:
                score = numpy.asarray(prediction.score, dtype=float)
                chances = numpy.where(labels == 1, score, 1 - score)
    else:
        seen = (support > 0) | (confusion.sum(axis=0) > 0)
        values |= {"macro F1": float(f1[seen].mean()), "micro F1": values["accuracy"]}
        values |= {"macro precision": float(precision[seen].mean()), "macro recall": float(recall[seen].mean())}
        if prediction.is_probability and prediction.score is not None and labels.max() < prediction.score.shape[1]:
            chances = prediction.score[numpy.arange(len(labels)), labels].astype(float)
    if chances is not None:
        values["log loss"] = float(-numpy.log(numpy.clip(chances, LEAST_CHANCE, 1)).mean())
        ruled_out = int((chances < LEAST_CHANCE).sum())
    return Evaluated(
        task=task,
        row_count=len(labels),
        values=values,
        warnings=tuple(
            _doubts_about_classes(
                task, predicted=predicted, classes=classes, support=support, values=values, ruled_out=ruled_out
            )
        ),
        classes=tuple(int(each) for each in classes),
        confusion=confusion,
        per_class={
            int(each): {"precision": float(p), "recall": float(r), "F1": float(f), "rows": int(n)}
            for each, p, r, f, n in zip(classes, precision, recall, f1, support, strict=True)
        },
    )


def _doubts_about_classes(
    task: Task, *, predicted: Any, classes: Any, support: Any, values: Mapping[str, float], ruled_out: int
) -> list[str]:
    """`support`: how many rows each of `classes` has. `ruled_out`: of how many the true class has probability 0."""
    row_count = int(support.sum())
    found: list[str] = []
    share = float(support.max() / row_count)
    common = int(classes[support.argmax()])
    instead = (
        "balanced accuracy, PR-AUC, and precision and recall of class 1"
        if task == "binary"
        else "macro F1, balanced accuracy, and each class by itself"
    )
    if (support > 0).sum() == 1:
        found.append(
            f"All labels are {common}: nothing can be said about telling classes apart; add rows of the others."
        )
    elif share >= DOMINANT:
        found.append(
            f"Accuracy misleads: {share:.1%} of the rows are of class {common}, so always saying {common} has accuracy "
            f"{share:.4f}. Look at {instead} instead."
        )
    if (support > 0).sum() > 1 and values["accuracy"] <= share:
        found.append(f"The model is right no more often than always saying {common} would be ({share:.4f}).")
    if ruled_out:
        found.append(
            f"Log loss misleads: {counted(ruled_out, 'row')} had probability 0 for the true class, each of which counts "
            f"{-math.log(LEAST_CHANCE):.1f} where infinity would be right. Look at {'AUC' if task == 'binary' else 'macro F1'} "
            "instead."
        )
    never = [int(each) for each in classes[support > 0] if not (predicted == each).any()]
    if never:
        found.append(f"Never predicted, though there are rows of it: class {', '.join(map(str, never[:10]))}.")
    rare = [int(each) for each, rows in zip(classes, support, strict=True) if 0 < rows < FEW_OF_A_CLASS]
    if rare:
        found.append(
            f"Fewer than {FEW_OF_A_CLASS} rows of class {', '.join(map(str, rare[:10]))}: their recall may be chance."
        )
    if row_count < FEW_ROWS:
        half = 1.96 * math.sqrt(max(values["accuracy"] * (1 - values["accuracy"]), 0.25 / row_count) / row_count)
        found.append(f"Only {counted(row_count, 'row')}: accuracy is known to about ±{half:.2f} (95%).")
    return found


def _regression(labels: Any, prediction: Prediction) -> Evaluated:
    import numpy
    from sklearn import metrics

    predicted = numpy.asarray(prediction.predicted_label, dtype=float)
    labels = labels.astype(float)
    spread = float(labels.std())
    values = {
        "RMSE": float(metrics.root_mean_squared_error(labels, predicted)),
        "MAE": float(metrics.mean_absolute_error(labels, predicted)),
        "R2": float(metrics.r2_score(labels, predicted)) if len(labels) > 1 else math.nan,
        "median absolute error": float(metrics.median_absolute_error(labels, predicted)),
        "mean error": float((predicted - labels).mean()),
        "RMSE of always the mean": spread,
    }
    found = []
    if spread == 0:
        found.append("All labels are the same: R2 says nothing here; look at MAE.")
    elif values["R2"] < 0:
        found.append("The model is worse than always saying the mean of these labels (R2 below 0).")
    errors = numpy.square(predicted - labels)
    worst = max(1, len(errors) // 100)
    if len(errors) >= FEW_ROWS and errors.sum() > 0 and numpy.sort(errors)[-worst:].sum() > errors.sum() / 2:
        found.append(
            "RMSE misleads: the worst 1% of the rows make more than half of the squared error. "
            "Look at MAE and the median absolute error instead, and at these rows."
        )
    if spread and abs(values["mean error"]) > values["RMSE"] / 2:
        side = "high" if values["mean error"] > 0 else "low"
        found.append(f"The predictions are too {side} on the whole, by {abs(values['mean error']):.4g} on average.")
    if len(labels) < FEW_ROWS:
        found.append(f"Only {counted(len(labels), 'row')}: another sample may give quite other values.")
    return Evaluated(task="regression", row_count=len(labels), values=values, warnings=tuple(found))


def _ranking(labels: Any, prediction: Prediction, groups: Any) -> Evaluated:
    import numpy
    from sklearn import metrics

    if groups is None:
        raise UserError(
            "a ranking is evaluated within groups, and the rows have none: qid in libsvm, or a column `group`"
        )
    gains, precisions, skipped = [], [], 0
    order = numpy.argsort(groups, kind="stable")
    starts = numpy.flatnonzero(numpy.diff(numpy.asarray(groups)[order])) + 1
    for rows in numpy.split(order, starts):
        relevance, predicted = labels[rows], prediction.predicted_label[rows]
        if len(rows) < 2 or not (relevance > 0).any():
            skipped += 1
            continue
        gains.append(float(metrics.ndcg_score([relevance], [predicted])))
        precisions.append(float(metrics.average_precision_score(relevance > 0, predicted)))
    found = []
    if skipped:
        found.append(
            f"{skipped} groups have one row or nothing relevant, and are left out: no order of them is better."
        )
    return Evaluated(
        task="ranking",
        row_count=len(labels),
        values={
            "NDCG": float(numpy.mean(gains)) if gains else math.nan,
            "MAP": float(numpy.mean(precisions)) if precisions else math.nan,
            "groups": float(len(gains)),
        },
        warnings=tuple(found),
    )


def guessed_task(labels: Any, prediction: Prediction) -> Task:
    """For predictions that come without a model."""
    import numpy

    if prediction.score is not None and prediction.score.ndim == 2:
        return "multiclass"
    whole = bool(
        (labels == labels.round()).all() and (prediction.predicted_label == prediction.predicted_label.round()).all()
    )
    distinct = set(numpy.unique(labels).tolist())
    if prediction.score is not None or (whole and distinct <= {0.0, 1.0}):
        return "binary"
    return "multiclass" if whole and len(distinct) <= 50 and labels.min() >= 0 else "regression"
