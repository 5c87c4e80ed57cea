"""Cross-validation of XGBoost: _kfold and _num_cv_round."""

from pathlib import Path
from typing import Any

import pytest

numpy = pytest.importorskip("numpy")
xgboost = pytest.importorskip("xgboost")

from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits  # noqa: E402
from sklearn.metrics import accuracy_score, roc_auc_score  # noqa: E402
from tests.algorithms.by_hand import ByHand, make_tree, run_by_hand  # noqa: E402
from tests.harness import run  # noqa: E402

from optml_algorithms.models import load  # noqa: E402
from optml_algorithms.xgboost.train import train as train_xgboost  # noqa: E402

QUICK = {"num_round": 4, "max_depth": 3, "nthread": 1}


def write(folder: Path, features: Any, labels: Any) -> Path:
    folder.mkdir(parents=True)
    numpy.savetxt(folder / "a.csv", numpy.column_stack([labels, features]), delimiter=",", fmt="%.9g")
    return folder


def fold(folder: Path, channels: dict[str, Path], *, checkpoints: Path | None = None, **given: Any) -> ByHand:
    done = run_by_hand(train_xgboost, make_tree(folder, {**QUICK, **given}, channels, checkpoints=checkpoints))
    assert done.code == 0, done.failure
    return done


def predictions(done: ByHand) -> Any:
    return numpy.loadtxt(done.root / "output" / "data" / "predictions.csv", delimiter=",")


def means(scores: list[tuple[int, dict[str, float]]]) -> dict[str, float]:
    return {name: float(numpy.mean([values[name] for _, values in scores])) for name in scores[0][1]}


def test_a_job_with_folds_leaves_a_model_for_each_and_what_they_said_of_unseen_rows(tmp_path: Path) -> None:
    features, labels = load_breast_cancer(return_X_y=True)
    done = run(
        tmp_path,
        image="xgboost",
        entrypoint=None,
        channels={"train": f"{write(tmp_path / 'train', features, labels)}/"},
        hyperparameters={
            **QUICK,
            "objective": "binary:logistic",
            "eval_metric": "auc",
            "_kfold": 3,
            "_num_cv_round": 2,
        },
    )
    assert sorted(done.model) == [f"xgboost-model-{number}" for number in range(6)]
    table = numpy.array(
        [[float(cell) for cell in line.split(",")] for line in done.output["predictions.csv"].decode().splitlines()]
    )
    assert (table[:, 0] == labels).all()
    assert roc_auc_score(labels, table[:, 1]) > 0.95
    finals = {metric["MetricName"]: metric["Value"] for metric in done.describe["FinalMetricDataList"]}
    assert finals["validation:auc"] == pytest.approx(roc_auc_score(labels, table[:, 1]), abs=0.03)


def test_after_each_repeat_and_in_the_end_there_is_a_line_of_means(tmp_path: Path) -> None:
    features, labels = load_diabetes(return_X_y=True)
    done = fold(tmp_path / "ml", {"train": write(tmp_path / "train", features, labels)}, _kfold=3, _num_cv_round=2)
    rounds = [label for label, _ in done.scores]
    assert rounds == ([0, 1, 2, 3] * 3 + [4]) * 2 + [4]
    first, second = done.scores[3:12:4], done.scores[16:25:4]
    assert done.scores[12][1] == pytest.approx(means(first), abs=1e-5)
    assert done.scores[25][1] == pytest.approx(means(second), abs=1e-5)
    assert done.scores[26][1] == pytest.approx(means(first + second), abs=1e-5)
    assert done.log.count("Train cross validation fold 2") == 2
    table = predictions(done)
    assert table.shape == (len(labels), 2)
    assert (table[:, 0] == labels).all()


def test_scores_of_a_fold_are_of_rows_that_its_model_has_not_seen(tmp_path: Path) -> None:
    """Labels without rhyme or reason: whoever scores rows that were learnt by heart thinks well of it."""
    generator = numpy.random.default_rng(0)
    features, labels = generator.random((200, 5)), generator.permutation(numpy.arange(200) % 2)
    done = fold(
        tmp_path / "ml",
        {"train": write(tmp_path / "train", features, labels)},
        _kfold=4,
        objective="binary:logistic",
        eval_metric="accuracy",
        num_round=30,
        max_depth=8,
    )
    last = done.scores[-1][1]
    assert last["train-accuracy"] > 0.9
    assert last["validation-accuracy"] < 0.7
    table = predictions(done)
    assert accuracy_score(labels, table[:, 2]) == pytest.approx(last["validation-accuracy"], abs=1e-5)
    assert ((table[:, 1] > 0.5) == table[:, 2]).all()


@pytest.mark.parametrize("objective", ["multi:softmax", "multi:softprob"])
def test_of_many_classes_the_probability_is_that_of_the_class_beside_it(tmp_path: Path, objective: str) -> None:
    features, labels = load_digits(return_X_y=True)
    folder = write(tmp_path / "train", features[:400], labels[:400])
    done = fold(tmp_path / "ml", {"train": folder}, _kfold=2, _num_cv_round=2, objective=objective, num_class=10)
    table = predictions(done)
    assert accuracy_score(labels[:400], table[:, 2]) > 0.6
    assert ((table[:, 1] > 0) & (table[:, 1] <= 1)).all()
    right = table[:, 2] == labels[:400]
    assert table[right, 1].mean() > table[~right, 1].mean()


def test_rows_of_both_channels_are_folded(tmp_path: Path) -> None:
    features, labels = load_diabetes(return_X_y=True)
    channels = {
        "train": write(tmp_path / "train", features[:300], labels[:300]),
        "validation": write(tmp_path / "validation", features[300:], labels[300:]),
    }
    done = fold(tmp_path / "ml", channels, _kfold=2)
    assert (predictions(done)[:, 0] == labels).all()


def test_a_resumed_cross_validation_ends_with_the_same_models_and_predictions(tmp_path: Path) -> None:
    """The first try ends after two rounds of each fold; the second goes on."""
    features, labels = load_breast_cancer(return_X_y=True)
    channels = {"train": write(tmp_path / "train", features, labels)}
    given = {"_kfold": 2, "objective": "binary:logistic"}
    whole = fold(tmp_path / "whole", channels, checkpoints=tmp_path / "a", **given)
    fold(tmp_path / "begin", channels, checkpoints=tmp_path / "b", **given, num_round=2)
    assert sorted(path.name for path in (tmp_path / "b" / "model-1").iterdir()) == [
        "xgboost-checkpoint.0", "xgboost-checkpoint.1",
    ]  # fmt: skip
    resumed = fold(tmp_path / "resumed", channels, checkpoints=tmp_path / "b", **given)
    assert "Resuming from iteration 2" in resumed.log
    assert (predictions(resumed) == predictions(whole)).all()
    again = fold(tmp_path / "again", channels, checkpoints=tmp_path / "b", **given)  # all is done already
    assert (predictions(again) == predictions(whole)).all()
    assert again.scores[-1] == whole.scores[-1]


def test_early_stopping_goes_by_the_rows_left_out(tmp_path: Path) -> None:
    features, labels = load_breast_cancer(return_X_y=True)
    done = fold(
        tmp_path / "ml",
        {"train": write(tmp_path / "train", features, labels)},
        _kfold=2,
        objective="binary:logistic",
        eval_metric="logloss",
        early_stopping_rounds=2,
        num_round=200,
        eta=0.9,
    )
    kept = [
        xgboost.Booster(model_file=bytearray((done.root / "model" / f"xgboost-model-{number}").read_bytes()))
        for number in range(2)
    ]
    assert all(booster.num_boosted_rounds() < 200 for booster in kept)
    best = [float(booster.attr("best_score")) for booster in kept]
    assert done.scores[-1][1]["validation-logloss"] == pytest.approx(numpy.mean(best), abs=1e-5)


def test_the_models_of_all_folds_predict_as_one(tmp_path: Path) -> None:
    features, labels = load_diabetes(return_X_y=True)
    done = fold(tmp_path / "ml", {"train": write(tmp_path / "train", features, labels)}, _kfold=3)
    model = load(done.root / "model")
    each = [
        xgboost.Booster(model_file=bytearray((done.root / "model" / f"xgboost-model-{number}").read_bytes()))
        for number in range(3)
    ]
    matrix = xgboost.DMatrix(features)
    mean = sum(booster.predict(matrix) for booster in each) / 3
    assert numpy.allclose(model.predict(features).predicted_label, mean, rtol=1e-5)


@pytest.mark.parametrize(("content", "given", "expected"), [
    ("0.5,1\n0.25,2\n0,3\n1,4\n", {"objective": "binary:logistic"}, "labels must be whole numbers"),
    ("1 qid:1 0:1\n0 qid:1 0:2\n1 qid:2 0:3\n", {"objective": "rank:pairwise"}, "ranking groups"),
])  # fmt: skip
def test_what_cannot_be_folded_is_refused(tmp_path: Path, content: str, given: dict[str, str], expected: str) -> None:
    folder = tmp_path / "train"
    folder.mkdir()
    (folder / "a").write_text(content)
    content_type = "text/libsvm" if "qid" in content else "text/csv"
    root = make_tree(
        tmp_path / "ml", {"num_round": 1, "_kfold": 2, **given}, {"train": folder}, content_type=content_type
    )
    done = run_by_hand(train_xgboost, root)
    assert done.code == 1
    assert expected in done.failure
