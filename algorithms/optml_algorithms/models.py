"""A model folder -> something that predicts, whichever built-in algorithm it is of.

What an algorithm's `model.py` has (`optml_algorithms.xgboost.model` is one):

    recognises(model_dir: Path) -> bool    by the names of the folder's files alone: no heavy import, nothing opened
    load(model_dir: Path) -> Model         UserError naming the file for one that is broken

and what its `hyperparameters.py` has, for `optml describe-algorithm` and a tuner:

    HYPERPARAMETERS: Sequence[Hyperparameter]       each with default, range, dependency, tunable range and scale
    TUNABLE_METRICS: Mapping[str, str]              metric name -> "Maximize" or "Minimize"

A new algorithm is one more line in ALGORITHMS. Nothing here reads /opt/ml or knows hosts.
"""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from optml_toolkit.container import UserError

# What `optml describe-algorithm` calls it (the name of its image) -> its package.
ALGORITHMS: Mapping[str, str] = {
    "xgboost": "optml_algorithms.xgboost",
    "linear-learner": "optml_algorithms.linear_learner",
    "knn": "optml_algorithms.knn",
}

Task = Literal["binary", "multiclass", "regression", "ranking"]


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What a model says of each row; the names are those of SageMaker's responses.

    `predicted_label`: shape (rows,): the class number of a classifier, by the model's own threshold; the value of a regressor;
    the relevance of a ranker. `score`: shape (rows,) for binary, the higher the more class 1; (rows, classes) for multiclass;
    None where there is nothing beyond the label. `is_probability`: scores are between 0 and 1 and mean it (not margins, votes
    of one).
    """

    predicted_label: Any
    score: Any = None
    is_probability: bool = False


class Model(Protocol):
    """`feature_count` is how many columns `predict` wants, None if the model does not know."""

    @property
    def algorithm(self) -> str: ...

    @property
    def task(self) -> Task: ...

    @property
    def feature_count(self) -> int | None: ...

    def predict(self, features: Any) -> Prediction:
        """`features`: numpy float32 of shape (rows, features), NaN where a value is missing, or a scipy CSR matrix of it.

        In the order and units of training: what training did to them, the model does. UserError for another number of columns
        (CSR: for more columns), or for missing values where the algorithm takes none.
        """
        ...


def load(model_dir: Path) -> Model:
    """The model in a folder as training left it (`model.tar.gz` unpacked). UserError if no algorithm knows its files."""
    for package in ALGORITHMS.values():
        try:
            module = importlib.import_module(f"{package}.model")
        except ModuleNotFoundError as error:
            if error.name is None or not error.name.startswith(package):
                raise
            continue
        if module.recognises(model_dir):
            found: Model = module.load(model_dir)
            return found
    if not model_dir.is_dir():
        raise UserError(f"{model_dir} is no folder; a model is a folder as /opt/ml/model was")
    names = sorted(path.name for path in model_dir.iterdir())[:5]
    raise UserError(
        f"{model_dir} is no model of {', '.join(ALGORITHMS)}: it has {', '.join(names) if names else 'no files'}"
    )
