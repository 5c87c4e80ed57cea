"""Models after training: load, predict, and the files that are refused."""

from pathlib import Path
from typing import Any

import pytest

numpy = pytest.importorskip("numpy")
xgboost = pytest.importorskip("xgboost")

import scipy.sparse  # noqa: E402

from optml_algorithms.models import load  # noqa: E402
from optml_toolkit.container import UserError  # noqa: E402

GENERATOR = numpy.random.default_rng(0)
FEATURES = GENERATOR.random((120, 5)).astype(numpy.float32)


def trained(model_dir: Path, labels: Any, *, name: str = "xgboost-model", seed: int = 0, **given: Any) -> Any:
    """A model as the algorithm leaves it, and the plain booster."""
    model_dir.mkdir(exist_ok=True)
    parameters = {"max_depth": 3, "nthread": 1, "seed": seed, "subsample": 0.7, **given}
    booster = xgboost.train(parameters, xgboost.DMatrix(FEATURES, labels), 5)
    (model_dir / name).write_bytes(booster.save_raw(raw_format="ubj"))
    return booster


TWO = (FEATURES[:, 0] > 0.5).astype(int)
THREE = (FEATURES[:, 0] * 3).astype(int)
NUMBERS = FEATURES[:, 0] * 10


@pytest.mark.parametrize(("objective", "task", "scores", "is_probability"), [
    ("binary:logistic", "binary", (120,), True),
    ("binary:logitraw", "binary", (120,), False),
    ("binary:hinge", "binary", None, False),
    ("multi:softmax", "multiclass", (120, 3), True),
    ("multi:softprob", "multiclass", (120, 3), True),
    ("reg:squarederror", "regression", None, False),
    ("count:poisson", "regression", None, False),
    ("rank:pairwise", "ranking", None, False),
])  # fmt: skip
def test_each_objective_gives_labels_and_scores_of_its_task(
    tmp_path: Path, objective: str, task: str, scores: Any, is_probability: bool
) -> None:
    given: dict[str, Any] = {"num_class": 3} if objective.startswith("multi:") else {}
    labels = {"multiclass": THREE, "regression": NUMBERS}.get(task, TWO)
    booster = trained(tmp_path / "m", labels, objective=objective, **given)
    model = load(tmp_path / "m")
    assert (model.algorithm, model.task, model.feature_count) == ("xgboost", task, 5)
    found = model.predict(FEATURES)
    plain = booster.predict(xgboost.DMatrix(FEATURES))
    assert found.predicted_label.shape == (120,)
    assert (None if found.score is None else found.score.shape) == scores
    assert found.is_probability == is_probability
    if task in ("regression", "ranking"):
        assert (found.predicted_label == plain).all()
    else:
        assert (found.predicted_label == labels).mean() > 0.9
        assert found.predicted_label.dtype.kind == "i"
    if objective == "binary:logistic":
        assert (found.score == plain).all()
    if task == "multiclass":
        assert numpy.allclose(found.score.sum(axis=1), 1, atol=1e-5)
        assert (found.score.argmax(axis=1) == found.predicted_label).all()


def test_sparse_rows_and_missing_values_are_taken_as_in_training(tmp_path: Path) -> None:
    booster = trained(tmp_path / "m", NUMBERS)
    model = load(tmp_path / "m")
    sparse = scipy.sparse.csr_matrix(FEATURES * (FEATURES > 0.3))
    assert (model.predict(sparse).predicted_label == booster.predict(xgboost.DMatrix(sparse))).all()
    narrow = sparse[:, :3]  # as a libsvm file whose last columns are empty is read
    assert len(model.predict(scipy.sparse.csr_matrix(narrow)).predicted_label) == 120
    missing = numpy.where(FEATURES > 0.3, FEATURES, numpy.nan)
    assert (model.predict(missing).predicted_label == booster.predict(xgboost.DMatrix(missing))).all()


@pytest.mark.parametrize("objective", ["binary:logistic", "multi:softmax", "binary:hinge"])
def test_models_of_folds_are_averaged_or_vote(tmp_path: Path, objective: str) -> None:
    labels = THREE if objective.startswith("multi:") else TWO
    given: dict[str, Any] = {"num_class": 3} if objective.startswith("multi:") else {}
    each = [
        trained(tmp_path / "m", labels, name=f"xgboost-model-{n}", seed=n, objective=objective, **given)
        for n in range(3)
    ]
    found = load(tmp_path / "m").predict(FEATURES)
    plain = numpy.stack([booster.predict(xgboost.DMatrix(FEATURES)) for booster in each])
    if objective == "binary:logistic":
        assert numpy.allclose(found.score, plain.mean(axis=0))
        assert (found.predicted_label == (plain.mean(axis=0) > 0.5)).all()
    else:
        votes = numpy.stack([(plain == value).sum(axis=0) for value in range(3)]).argmax(axis=0)
        assert (found.predicted_label == votes).all()


@pytest.mark.parametrize(("files", "expected"), [
    ({"xgboost-model": b"\x80\x04rubbish"}, "is a pickle"),
    ({"xgboost-model": b"rubbish"}, "is no model of XGBoost"),
    ({"xgboost-model": b""}, "is no model of XGBoost"),
    ({"other.bin": b"x"}, "it has other.bin"),
    ({}, "it has no files"),
])  # fmt: skip
def test_what_is_no_model_is_refused_by_name(tmp_path: Path, files: dict[str, bytes], expected: str) -> None:
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=expected):
        load(tmp_path)


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no folder"):
        load(tmp_path / "nothing")


@pytest.mark.parametrize("width", [4, 6])
def test_another_number_of_features_is_refused(tmp_path: Path, width: int) -> None:
    trained(tmp_path / "m", NUMBERS)
    with pytest.raises(UserError, match=f"the data has {width} features, and the model was trained on 5"):
        load(tmp_path / "m").predict(numpy.zeros((2, width), dtype=numpy.float32))
