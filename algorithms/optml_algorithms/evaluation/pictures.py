"""Pictures of an evaluation, as PNG files. matplotlib is imported here and nowhere else."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from optml_algorithms.evaluation.values import Evaluated
from optml_algorithms.models import Prediction
from optml_toolkit.container import UserError

MAX_POINTS = 5000  # more become a density
MAX_NAMED_CLASSES = 30


def need_matplotlib() -> None:
    """UserError before any work is done, rather than after it."""
    import importlib.util

    if importlib.util.find_spec("matplotlib") is None:
        raise UserError("pictures need matplotlib: pip install 'optml[evaluate]', or leave --output out")


def draw(evaluated: Evaluated, labels: Any, prediction: Prediction, folder: Path) -> list[Path]:
    """Write what suits the task into `folder`; gives the files in the order in which they should be looked at."""
    wanted: list[tuple[str, Callable[[Any], None]]] = []
    if evaluated.confusion is not None:
        wanted.append(("confusion-matrix.png", lambda axes: _confusion(axes, evaluated)))
    if evaluated.task == "binary" and prediction.score is not None and len(set(labels.tolist())) == 2:
        wanted.append(("roc.png", lambda axes: _roc(axes, evaluated, labels, prediction.score)))
        wanted.append(
            ("precision-recall.png", lambda axes: _precision_recall(axes, evaluated, labels, prediction.score))
        )
    if evaluated.task == "regression":
        wanted.append(("predicted.png", lambda axes: _predicted(axes, labels, prediction.predicted_label)))
        wanted.append(("residuals.png", lambda axes: _residuals(axes, labels, prediction.predicted_label)))
        wanted.append(("errors.png", lambda axes: _errors(axes, labels, prediction.predicted_label)))
    return [_drawn(folder / name, content) for name, content in wanted]


def _drawn(file: Path, content: Callable[[Any], None]) -> Path:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 5), dpi=120, layout="constrained")
    content(figure.add_subplot())
    beside = file.with_name(f".{file.name}.partial")
    figure.savefig(beside, format="png")
    beside.replace(file)
    return file


def _confusion(axes: Any, evaluated: Evaluated) -> None:
    """Shares of each true class by colour, so that a rare class can be seen; numbers of rows in the fields."""
    counts = evaluated.confusion
    shares = counts / counts.sum(axis=1, keepdims=True).clip(1)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.figure.colorbar(image, label="share of the true class")
    axes.set(title="Confusion matrix", xlabel="predicted class", ylabel="true class")
    if len(counts) <= MAX_NAMED_CLASSES:
        axes.set_xticks(range(len(counts)), [str(each) for each in evaluated.classes])
        axes.set_yticks(range(len(counts)), [str(each) for each in evaluated.classes])
    if len(counts) <= 12:
        for row in range(len(counts)):
            for column in range(len(counts)):
                colour = "white" if shares[row, column] > 0.5 else "black"
                axes.text(column, row, f"{counts[row, column]:,}", ha="center", va="center", color=colour)


def _roc(axes: Any, evaluated: Evaluated, labels: Any, score: Any) -> None:
    from sklearn import metrics

    false_positive, true_positive, _ = metrics.roc_curve(labels, score)
    axes.plot(false_positive, true_positive)
    axes.plot([0, 1], [0, 1], linestyle=":", color="grey")
    axes.set(
        title=f"ROC: AUC {evaluated.values['AUC']:.4f}",
        xlabel="false positive rate",
        ylabel="true positive rate (recall)",
    )


def _precision_recall(axes: Any, evaluated: Evaluated, labels: Any, score: Any) -> None:
    from sklearn import metrics

    precision, recall, _ = metrics.precision_recall_curve(labels, score)
    share = float(labels.mean())
    axes.step(recall, precision, where="post")
    axes.axhline(share, linestyle=":", color="grey", label=f"chance: {share:.4f}")
    axes.plot(evaluated.values["recall"], evaluated.values["precision"], "o", label="the model's own threshold")
    axes.legend()
    axes.set(
        title=f"Precision and recall: PR-AUC {evaluated.values['PR-AUC']:.4f}",
        xlabel="recall",
        ylabel="precision",
        ylim=(0, 1.02),
    )


def _cloud(axes: Any, x: Any, y: Any) -> None:
    if len(x) > MAX_POINTS:
        axes.hexbin(x, y, gridsize=60, bins="log", mincnt=1, cmap="Blues")
    else:
        axes.plot(x, y, ".", markersize=4, alpha=0.5)


def _predicted(axes: Any, labels: Any, predicted: Any) -> None:
    _cloud(axes, labels, predicted)
    ends = [min(labels.min(), predicted.min()), max(labels.max(), predicted.max())]
    axes.plot(ends, ends, linestyle=":", color="grey")
    axes.set(title="Predicted and true", xlabel="true value", ylabel="predicted value")


def _residuals(axes: Any, labels: Any, predicted: Any) -> None:
    _cloud(axes, predicted, predicted - labels)
    axes.axhline(0, linestyle=":", color="grey")
    axes.set(title="Residuals", xlabel="predicted value", ylabel="predicted - true")


def _errors(axes: Any, labels: Any, predicted: Any) -> None:
    axes.hist(predicted - labels, bins=50)
    axes.set(title="How large the errors are", xlabel="predicted - true", ylabel="rows")
