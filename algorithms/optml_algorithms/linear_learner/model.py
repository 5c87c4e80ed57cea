"""The model file, and predictions from it; numpy is all that they need.

`model_algo-1`, named as AWS's is, is a zip of .npy files that `numpy.load` opens (no pickles):

    weights.npy    float64 (features, outputs), for rows as they are in the data; outputs: classes of a multiclass model, else 1
    bias.npy       float64 (outputs,)
    about.npy      UTF-8 bytes of a JSON object: format (1), predictor_type, loss, threshold, hyperparameters of the candidate

scores = rows @ weights + bias. `threshold` is of these scores: a binary classifier says 1 from there on. The score that is given
out is the sigmoid (logistic loss) or softmax of these, and they themselves for hinge loss and regressors.
"""

import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optml_algorithms.linear_learner.hyperparameters import BINARY, MULTICLASS, REGRESSOR
from optml_algorithms.models import Prediction, Task
from optml_algorithms.words import counted
from optml_toolkit.container import UserError

if TYPE_CHECKING:
    import numpy

    Array = numpy.ndarray[Any, numpy.dtype[numpy.float64]]

MODEL = "model_algo-1"
FORMAT = 1
CHUNK_ELEMENTS = 1 << 22

TASKS: Mapping[str, Task] = {BINARY: "binary", MULTICLASS: "multiclass", REGRESSOR: "regression"}


@dataclass(frozen=True, kw_only=True)
class LinearModel:
    """`weights`: float64, shape (features, outputs). `bias`: float64, shape (outputs,). See the head of this file."""

    predictor_type: str
    loss: str
    weights: "Array"
    bias: "Array"
    threshold: float = 0.0
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)

    @property
    def algorithm(self) -> str:
        return "linear-learner"

    @property
    def task(self) -> Task:
        return TASKS[self.predictor_type]

    @property
    def feature_count(self) -> int:
        return int(self.weights.shape[0])

    def predict(self, features: Any) -> Prediction:
        """`features`: float32, shape (rows, features), in the order and units of the training data, or a CSR matrix of it.

        binary_classifier: `score` is the probability of class 1 (hinge loss: a margin), `predicted_label` 0 or 1 by the
        calibrated threshold. multiclass_classifier: `score` has a probability for each class, shape (rows, classes).
        regressor: `predicted_label` is the value, in the label's units; there is no other score.

        UserError for another number of columns, and for NaN or infinity.
        """
        import numpy

        raw = self.raw_scores(features)
        if self.predictor_type == REGRESSOR:
            return Prediction(predicted_label=raw[:, 0])
        if self.predictor_type == MULTICLASS:
            raw -= raw.max(axis=1, keepdims=True)
            odds = numpy.exp(raw)
            return Prediction(
                predicted_label=raw.argmax(axis=1), score=odds / odds.sum(axis=1, keepdims=True), is_probability=True
            )
        labels = (raw[:, 0] >= self.threshold).astype("i8")
        if self.loss != "logistic":
            return Prediction(predicted_label=labels, score=raw[:, 0])
        score = 0.5 * (1 + numpy.tanh(raw[:, 0] / 2))  # the sigmoid, without overflow
        return Prediction(predicted_label=labels, score=score, is_probability=True)

    def raw_scores(self, features: Any) -> "Array":
        """rows @ weights + bias: float64, shape (rows, outputs)."""
        import numpy

        rows, columns = features.shape
        is_sparse = hasattr(features, "indptr")
        if columns > self.feature_count or (columns < self.feature_count and not is_sparse):
            raise UserError(
                f"the data has {counted(columns, 'feature')}, and the model was trained on {self.feature_count}"
            )
        if not numpy.isfinite(features.data if is_sparse else features).all():
            raise UserError("the data has NaN, infinity or missing values, which the linear learner does not take")
        scores = numpy.empty((rows, len(self.bias)))
        step = max(1, CHUNK_ELEMENTS // max(columns, 1))
        for begin in range(0, rows, step):
            part = features[begin : begin + step]
            part = part.astype("f8") if is_sparse else numpy.asarray(part, "f8")
            scores[begin : begin + step] = part @ self.weights[:columns]
        scores += self.bias
        return scores


def recognises(model_dir: Path) -> bool:
    return (model_dir / MODEL).is_file() and not (model_dir / f"{MODEL}.json").exists()  # which k-NN has beside it


def save(model: LinearModel, model_dir: Path) -> None:
    """The file under its final name is whole: written beside it, under a name that is not uploaded, then renamed."""
    import numpy

    about = {
        "format": FORMAT,
        "predictor_type": model.predictor_type,
        "loss": model.loss,
        "threshold": model.threshold,
        "hyperparameters": dict(model.hyperparameters),
    }
    content = io.BytesIO()
    numpy.savez_compressed(
        content,
        weights=model.weights,
        bias=model.bias,
        about=numpy.frombuffer(json.dumps(about).encode(), dtype="u1"),
    )
    file = model_dir / MODEL
    beside = file.with_name(f"{MODEL}.sagemaker-ignore")
    beside.write_bytes(content.getvalue())
    beside.replace(file)


def load(model_dir: Path) -> LinearModel:
    """The model that training left in a folder. UserError for a file that is no such model."""
    import numpy

    file = model_dir / MODEL
    try:
        with numpy.load(file, allow_pickle=False) as content:
            about = json.loads(content["about"].tobytes())
            weights, bias = content["weights"], content["bias"]
    except FileNotFoundError:
        raise UserError(f"{file} is not there: this folder holds no linear learner model") from None
    except (ValueError, KeyError, OSError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise UserError(f"{file} is no model of this linear learner, or is damaged: {error}") from error
    if about.get("format") != FORMAT:
        raise UserError(f"{file} has format {about.get('format')}, and this version reads {FORMAT}: update optml")
    if weights.ndim != 2 or bias.shape != weights.shape[1:] or about["predictor_type"] not in TASKS:
        raise UserError(f"{file} is damaged: weights {weights.shape}, bias {bias.shape}")
    return LinearModel(
        predictor_type=about["predictor_type"],
        loss=about["loss"],
        weights=weights,
        bias=bias,
        threshold=about["threshold"],
        hyperparameters=about["hyperparameters"],
    )
