"""A trained XGBoost, or the several of a cross-validation, as one model that predicts."""

import contextlib
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optml_algorithms.models import Prediction, Task
from optml_algorithms.words import counted
from optml_algorithms.xgboost.scores import predicted_classes
from optml_toolkit.container import UserError

MODEL_FILE = re.compile(r"xgboost-model(-(?P<fold>\d+))?")
PICKLE = b"\x80"


def model_files(model_dir: Path) -> list[Path]:
    """xgboost-model, or those of each fold in the order of their numbers."""
    names = os.listdir(model_dir) if model_dir.is_dir() else []
    found = [(int(match["fold"] or -1), name) for name in names if (match := MODEL_FILE.fullmatch(name))]
    return [model_dir / name for _, name in sorted(found)]


def recognises(model_dir: Path) -> bool:
    return bool(model_files(model_dir))


def load(model_dir: Path) -> "XGBoostModel":
    """`xgboost-model`, also of AWS's own training (version 1.3 or later; pickles of older ones are refused: they run code)."""
    boosters = [_booster(file) for file in model_files(model_dir)]
    if not boosters:
        raise UserError(f"{model_dir} has no xgboost-model")
    objectives = {_objective(booster) for booster in boosters}
    counts = {booster.num_features() for booster in boosters}
    if len(objectives) > 1 or len(counts) > 1:
        raise UserError(f"the models in {model_dir} differ in their objective or in their number of features")
    return XGBoostModel(boosters=tuple(boosters), objective=objectives.pop())


def _booster(file: Path) -> Any:
    import xgboost

    content = file.read_bytes()
    if content.startswith(PICKLE):
        raise UserError(
            f"{file} is a pickle, as XGBoost before 1.3 had it in SageMaker. A pickle runs code when it is loaded: load it where "
            "you trust it, and save it with Booster.save_model"
        )
    if content:  # nothing would be a new booster
        with contextlib.suppress(xgboost.core.XGBoostError):
            return xgboost.Booster(model_file=bytearray(content))
    raise UserError(f"{file} is no model of XGBoost, or a newer version's than {xgboost.__version__}")


def _objective(booster: Any) -> str:
    found: str = json.loads(booster.save_config())["learner"]["objective"]["name"]
    return found


@dataclass(frozen=True)
class XGBoostModel:
    """Several boosters are averaged, or vote where they say classes (multi:softmax, binary:hinge)."""

    boosters: Sequence[Any]
    objective: str
    algorithm: str = "xgboost"

    @property
    def task(self) -> Task:
        if self.objective.startswith("multi:"):
            return "multiclass"
        if self.objective.startswith("binary:"):
            return "binary"
        return "ranking" if self.objective.startswith("rank:") else "regression"

    @property
    def feature_count(self) -> int:
        return int(self.boosters[0].num_features())

    def predict(self, features: Any) -> Prediction:
        """`features`: numpy of shape (rows, features), NaN where a value is missing, or a scipy CSR matrix of it.

        Binary: `score` is the probability of class 1 (binary:logitraw: the margin; binary:hinge: None), shape (rows,).
        Multiclass: probabilities, shape (rows, classes). Regression: `predicted_label` is the value, `score` is None.
        """
        import xgboost

        matrix = xgboost.DMatrix(self._fitted(features))
        if self.task in ("regression", "ranking"):
            return Prediction(predicted_label=self._mean([each.predict(matrix) for each in self.boosters]))
        if self.objective == "binary:hinge":
            return Prediction(predicted_label=self._vote([each.predict(matrix) for each in self.boosters]))
        if self.task == "binary":
            score = self._mean([each.predict(matrix) for each in self.boosters])
            return Prediction(
                predicted_label=predicted_classes(self.objective, score).astype(int),
                score=score,
                is_probability=self.objective == "binary:logistic",
            )
        each_score = [probabilities_of(each, matrix, self.objective) for each in self.boosters]
        score = self._mean(each_score)
        is_vote = self.objective == "multi:softmax"
        label = self._vote([one.argmax(axis=1) for one in each_score]) if is_vote else score.argmax(axis=1)
        return Prediction(predicted_label=label, score=score, is_probability=True)

    def _fitted(self, features: Any) -> Any:
        count = features.shape[1]
        is_sparse = not hasattr(features, "__array_interface__")
        if count > self.feature_count or (count < self.feature_count and not is_sparse):
            raise UserError(
                f"the data has {counted(count, 'feature')}, and the model was trained on {self.feature_count}"
            )
        if count < self.feature_count:
            features = features.copy()
            features.resize((features.shape[0], self.feature_count))
        return features

    def _mean(self, predictions: Sequence[Any]) -> Any:
        return predictions[0] if len(predictions) == 1 else sum(predictions[1:], predictions[0]) / len(predictions)

    def _vote(self, labels: Sequence[Any]) -> Any:
        import numpy

        table = numpy.stack([each.astype(int) for each in labels])
        if len(table) == 1:
            return table[0]
        votes = numpy.stack([(table == number).sum(axis=0) for number in range(table.max() + 1)])
        return votes.argmax(axis=0)


def probabilities_of(booster: Any, matrix: Any, objective: str) -> Any:
    """Of each class, shape (rows, classes), also for objectives that predict a class or a margin (binary:hinge: 0 or 1)."""
    import numpy

    if objective == "multi:softmax":
        margins = booster.predict(matrix, output_margin=True)
        weights = numpy.exp(margins - margins.max(axis=1, keepdims=True))
        return weights / weights.sum(axis=1, keepdims=True)
    predicted = booster.predict(matrix)
    if predicted.ndim == 2:
        return predicted
    if objective == "binary:logitraw":
        predicted = 1 / (1 + numpy.exp(-predicted.astype(float)))
    return numpy.column_stack([1 - predicted, predicted])
