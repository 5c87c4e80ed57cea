"""Built-in XGBoost through real jobs: data in, metric lines, a model that plain xgboost loads."""

import functools
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tests.hosts import PATIENCE_SECONDS

numpy = pytest.importorskip("numpy")
xgboost = pytest.importorskip("xgboost")

from sklearn.datasets import dump_svmlight_file, load_breast_cancer, load_diabetes, load_digits  # noqa: E402
from sklearn.model_selection import train_test_split  # noqa: E402
from tests.algorithms.by_hand import make_tree, run_by_hand  # noqa: E402
from tests.harness import Done, run  # noqa: E402

import optml  # noqa: E402
from optml_algorithms.metrics import (  # noqa: E402
    classification_metric,
    confusion,
    regression_metric,
    regression_sums,
)
from optml_algorithms.xgboost.hyperparameters import METRICS  # noqa: E402
from optml_toolkit.container import Container, main  # noqa: E402

ABALONE = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "abalone"
ABALONE_SETTINGS = {"max_depth": 5, "eta": 0.2, "gamma": 4, "min_child_weight": 6, "subsample": 0.7, "num_round": 50}


def write_csv(folder: Path, features: Any, labels: Any, *, name: str = "data.csv") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    numpy.savetxt(folder / name, numpy.column_stack([labels, features]), delimiter=",", fmt="%.9g")
    return folder


def split(loader: Any, folder: Path) -> tuple[dict[str, str], Any, Any]:
    """CSV channels of a data set that scikit-learn ships, and its validation part."""
    features, labels = loader(return_X_y=True)
    parts = train_test_split(features, labels, test_size=0.25, random_state=0)
    channels = {
        "train": f"{write_csv(folder / 'train', parts[0], parts[2])}/",
        "validation": f"{write_csv(folder / 'validation', parts[1], parts[3])}/",
    }
    return channels, parts[1], parts[3]


def train(folder: Path, channels: dict[str, Any], **hyperparameters: Any) -> Done:
    return run(
        folder,
        image="xgboost",
        entrypoint=None,
        channels=channels,
        hyperparameters={"num_round": 10, "nthread": 1} | hyperparameters,
    )


def checkpointed(
    folder: Path, channels: dict[str, str], name: str, rounds: int, *, checkpoints: str, **hyperparameters: Any
) -> Done:
    return run(
        folder / name,
        image="xgboost",
        entrypoint=None,
        channels=channels,
        checkpoint=str(folder / checkpoints),
        hyperparameters={"num_round": rounds, "nthread": 1, **hyperparameters},
    )


def failure_by_hand(folder: Path, channels: dict[str, dict[str, str]], **hyperparameters: str) -> str:
    """The failure file of a real run on a tree that was made by hand, in this process: a job each would take minutes."""
    from optml_algorithms.xgboost.train import train as train_xgboost

    root = folder / "ml"
    config = root / "input" / "config"
    config.mkdir(parents=True)
    (root / "model").mkdir()
    (config / "hyperparameters.json").write_text(json.dumps({"num_round": "2", **hyperparameters}))
    (config / "inputdataconfig.json").write_text(json.dumps(channels))
    (root / "input" / "data").mkdir()
    for name in channels:
        (root / "input" / "data" / name).symlink_to(folder / "data")
    assert main(train_xgboost, Container(root)) == 1
    return Container(root).failure_file.read_text()


def model_of(done: Done) -> Any:
    assert done.describe["TrainingJobStatus"] == "Completed", done.reason + done.log
    assert list(done.model) == ["xgboost-model"]
    return xgboost.Booster(model_file=bytearray(done.model["xgboost-model"]))


def finals(done: Done) -> dict[str, float]:
    return {metric["MetricName"]: metric["Value"] for metric in done.describe["FinalMetricDataList"]}


def test_csv_over_two_channels_gives_metrics_and_a_model_that_plain_xgboost_loads(tmp_path: Path) -> None:
    channels, features, labels = split(load_breast_cancer, tmp_path)
    done = train(tmp_path, channels, objective="binary:logistic", eval_metric="logloss,auc", num_round=30, max_depth=3)
    booster = model_of(done)
    predicted = booster.predict(xgboost.DMatrix(features.astype(numpy.float32)))
    assert ((predicted > 0.5) == labels).mean() > 0.94
    logloss = -numpy.mean(numpy.log(numpy.where(labels == 1, predicted, 1 - predicted)))
    assert finals(done)["validation:logloss"] == pytest.approx(logloss, abs=2e-5)
    assert set(finals(done)) == {"train:logloss", "train:auc", "validation:logloss", "validation:auc"}
    assert finals(done)["validation:auc"] > 0.98
    rounds = [line for line in done.log.splitlines() if line.startswith("[") and "\t" in line]
    assert [line.split("\t")[0] for line in rounds] == [f"[{number}]" for number in range(30)]
    assert [part.split(":")[0] for part in rounds[-1].split("\t")[1:]] == [
        "train-logloss", "train-auc", "validation-logloss", "validation-auc",
    ]  # fmt: skip


def test_the_model_is_the_one_that_the_library_would_train(tmp_path: Path) -> None:
    """Same parameters and data, through a job and through xgboost.train: the same predictions, bit for bit."""
    channels, features, _ = split(load_diabetes, tmp_path)
    given = {"max_depth": 4, "eta": 0.3, "subsample": 0.8, "seed": 3, "objective": "reg:squarederror", "nthread": 1}
    done = train(tmp_path, channels, num_round=20, **given)
    table = numpy.loadtxt(tmp_path / "train" / "data.csv", delimiter=",", dtype=numpy.float32)
    plain = xgboost.train(given, xgboost.DMatrix(table[:, 1:], table[:, 0]), num_boost_round=20)
    matrix = xgboost.DMatrix(features)
    assert (model_of(done).predict(matrix) == plain.predict(matrix)).all()


def test_libsvm_and_csv_of_the_same_data_give_the_same_model(tmp_path: Path) -> None:
    features, labels = load_diabetes(return_X_y=True)
    features = features.astype(numpy.float32)
    csv = write_csv(tmp_path / "csv", features, labels)
    libsvm = tmp_path / "libsvm"
    (libsvm / "sub").mkdir(parents=True)
    dump_svmlight_file(features[:200], labels[:200], str(libsvm / "a.libsvm"), zero_based=True)
    dump_svmlight_file(features[200:], labels[200:], str(libsvm / "sub" / "b.libsvm"), zero_based=True)
    from_csv = train(tmp_path / "1", {"train": f"{csv}/"})
    from_libsvm = train(tmp_path / "2", {"train": {"uri": f"{libsvm}/", "content_type": "text/libsvm"}})
    matrix = xgboost.DMatrix(features)
    assert numpy.allclose(model_of(from_csv).predict(matrix), model_of(from_libsvm).predict(matrix), rtol=1e-4)


def test_libsvm_is_what_a_channel_without_content_type_holds(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "part-0").write_text("".join(f"{n % 2} 1:{n % 2} 3:{n}\n" for n in range(40)))
    done = train(tmp_path, {"train": f"{folder}/"}, objective="binary:logistic")
    assert "Train matrix has 40 rows and 4 columns" in done.log  # indices are column numbers, as they are
    model_of(done)


def test_weights_count_in_csv_and_in_libsvm(tmp_path: Path) -> None:
    """A row of weight 3 is three rows."""
    generator = numpy.random.default_rng(0)
    features = generator.random((300, 3)).astype(numpy.float32)
    labels = (features[:, 0] * 10).round(3)
    weights = generator.integers(1, 4, 300)
    repeated = write_csv(tmp_path / "repeated", features.repeat(weights, 0), labels.repeat(weights))
    weighted = tmp_path / "weighted"
    weighted.mkdir()
    numpy.savetxt(weighted / "a.csv", numpy.column_stack([labels, weights, features]), delimiter=",", fmt="%.9g")
    libsvm = tmp_path / "libsvm"
    libsvm.mkdir()
    rows = zip(labels, weights, features, strict=True)
    lines = (f"{y}:{w} " + " ".join(f"{i}:{v}" for i, v in enumerate(x)) + "\n" for y, w, x in rows)
    (libsvm / "a.libsvm").write_text("".join(lines))
    matrix = xgboost.DMatrix(features)
    exact = {"tree_method": "exact", "base_score": 0.5}
    plain = model_of(train(tmp_path / "1", {"train": f"{repeated}/"}, **exact)).predict(matrix)
    in_csv = model_of(train(tmp_path / "2", {"train": f"{weighted}/"}, csv_weights=1, **exact)).predict(matrix)
    in_libsvm = model_of(train(tmp_path / "3", {"train": f"{libsvm}/"}, **exact)).predict(matrix)
    assert numpy.allclose(in_csv, plain, atol=1e-3)
    assert numpy.allclose(in_libsvm, in_csv, atol=1e-5)


def test_empty_fields_are_missing_values(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "a.csv").write_text("".join(f"{n % 2};{'' if n % 2 else 'nan'};{n}\n" for n in range(40)))
    done = train(tmp_path, {"train": f"{folder}/"}, objective="binary:logistic")
    assert "Train matrix has 40 rows and 2 columns" in done.log


def test_computed_metrics_are_scikit_learns(tmp_path: Path) -> None:
    from sklearn.metrics import accuracy_score, f1_score

    channels, features, labels = split(load_digits, tmp_path)
    done = train(
        tmp_path,
        channels,
        objective="multi:softmax",
        num_class=10,
        eval_metric="merror,accuracy,f1_macro",
        num_round=5,
        max_depth=3,
    )
    classes = model_of(done).predict(xgboost.DMatrix(features))
    assert finals(done)["validation:accuracy"] == pytest.approx(accuracy_score(labels, classes), abs=1e-5)
    assert finals(done)["validation:f1_macro"] == pytest.approx(f1_score(labels, classes, average="macro"), abs=1e-5)
    assert finals(done)["validation:merror"] == pytest.approx(1 - finals(done)["validation:accuracy"], abs=2e-5)


def test_a_binary_classifiers_accuracy_goes_by_one_half(tmp_path: Path) -> None:
    channels, _, _ = split(load_breast_cancer, tmp_path)
    done = train(tmp_path, channels, objective="binary:logistic", eval_metric="error,accuracy")
    assert finals(done)["validation:accuracy"] == pytest.approx(1 - finals(done)["validation:error"], abs=2e-5)


@pytest.mark.parametrize(("metric", "maximised"), [("auc", True), ("logloss", False)])
def test_early_stopping_keeps_the_best_round(tmp_path: Path, metric: str, maximised: bool) -> None:
    channels, _, _ = split(load_breast_cancer, tmp_path)
    done = train(
        tmp_path, channels, objective="binary:logistic", eval_metric=metric, num_round=300, early_stopping_rounds=5
    )
    booster = model_of(done)
    values = [json.loads(line) for line in done.job.metrics_file.read_text().splitlines()]
    seen = [value["Value"] for value in values if value["MetricName"] == f"validation:{metric}"]
    assert len(seen) < 300
    best = max(seen) if maximised else min(seen)
    kept = booster.num_boosted_rounds()
    assert seen[kept - 1] == pytest.approx(best, abs=1e-5)
    assert len(seen) == kept + 5
    assert booster.attr("best_iteration") == str(kept - 1)


def test_an_interrupted_run_resumes_and_ends_with_the_same_trees(tmp_path: Path) -> None:
    channels, _, _ = split(load_diabetes, tmp_path)
    part = functools.partial(checkpointed, tmp_path, channels, max_depth=3, eta=0.2)
    whole = part("whole", 12, checkpoints="a")
    part("begin", 7, checkpoints="b")
    left = sorted(path.name for path in (tmp_path / "b").iterdir())
    assert left == [f"xgboost-checkpoint.{number}" for number in range(2, 7)]
    resumed = part("resumed", 12, checkpoints="b")
    assert "Resuming from iteration 7" in resumed.log
    rounds = [line.split("\t")[0] for line in resumed.log.splitlines() if "\t" in line]
    assert rounds == [f"[{number}]" for number in range(7, 12)]
    assert model_of(resumed).get_dump(with_stats=True) == model_of(whole).get_dump(with_stats=True)


def test_early_stopping_remembers_over_an_interruption(tmp_path: Path) -> None:
    channels, _, _ = split(load_breast_cancer, tmp_path)
    part = functools.partial(
        checkpointed,
        tmp_path,
        channels,
        objective="binary:logistic",
        eval_metric="logloss",
        eta=0.5,
        early_stopping_rounds=4,
    )
    whole = model_of(part("whole", 300, checkpoints="a"))
    best = int(whole.attr("best_iteration"))
    part("begin", best + 3, checkpoints="b")  # two rounds past the best
    resumed = model_of(part("resumed", 300, checkpoints="b"))
    assert resumed.attributes() == whole.attributes()
    assert resumed.get_dump(with_stats=True) == whole.get_dump(with_stats=True)


@pytest.mark.parametrize("asked", [True, False])
def test_a_stopped_job_keeps_the_model_of_its_last_round_if_asked(tmp_path: Path, asked: bool) -> None:
    channels, _, _ = split(load_digits, tmp_path)
    given = {"num_round": 1_000_000, "objective": "multi:softmax", "num_class": 10}
    job = optml.train(
        image="xgboost",
        name="stopped",
        channels=channels,
        hyperparameters={**given, "save_model_on_termination": str(asked).lower()},
        output=str(tmp_path / "out"),
        wait=False,
    )
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (job.metrics_file.exists() and job.metrics_file.stat().st_size):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    job.stop(wait=True)
    done = Done(job, None)
    assert done.describe["SecondaryStatus"] == "Stopped"
    assert list(done.model) == (["xgboost-model"] if asked else [])
    if asked:
        booster = xgboost.Booster(model_file=bytearray(done.model["xgboost-model"]))
        assert booster.num_boosted_rounds() > 0


@pytest.mark.skipif(not ABALONE.is_dir(), reason="the Abalone data is not beside this checkout")
def test_abalone_is_as_good_as_published(tmp_path: Path) -> None:
    channels = {name: {"uri": f"{ABALONE}/{name}", "content_type": "text/libsvm"} for name in ("train", "validation")}
    done = train(tmp_path, channels, objective="reg:squarederror", **ABALONE_SETTINGS)
    assert finals(done)["validation:rmse"] <= 2.35
    assert "Train matrix has 2922 rows and 9 columns" in done.log


def test_an_ecr_uri_of_the_built_in_image_is_ours(tmp_path: Path) -> None:
    channels, _, _ = split(load_diabetes, tmp_path)
    done = run(
        tmp_path,
        image="683313688378.dkr.ecr.us-east-1.amazonaws.com/sagemaker-xgboost:1.7-1",
        entrypoint=None,
        channels=channels,
        hyperparameters={"num_round": 2},
    )
    model_of(done)


CSV = "1,0.5,2\n0,0.25,3\n1,0.75,4\n0,0.1,5\n"


@pytest.mark.parametrize(
    ("content", "hyperparameters", "expected"),
    [
        ("label,a,b\n" + CSV, {}, "line 1: 'label' is not a number. If this is a header, remove it"),
        (CSV + "1,abc,2\n", {}, "line 5, column 2: 'abc' is not a number"),
        (CSV + "1,2\n", {}, "line 5: 2 fields, and line 1 has 3"),
        (CSV + ",2,2\n", {}, "Got input data without labels"),
        ("1\n2\n", {}, "Could not determine delimiter"),
        (CSV + "1,inf,2\n", {}, "Input data contains `inf`: "),
        (CSV + "1,inf,2\n", {}, "a.csv, row 5, feature 0"),
        ("", {}, "No data in training channel path"),
        (CSV, {"num_round": "0"}, "Hyperparameter num_round: 0 is not in [1, +inf)"),
        (CSV, {"eta": "2"}, "Hyperparameter eta: 2.0 is not in [0, 1]"),
        (CSV, {"subsample": "0"}, "Hyperparameter subsample: 0.0 is not in (0, 1]"),
        (CSV, {"max_depth": "deep"}, "Hyperparameter max_depth: could not parse value 'deep'"),
        (CSV, {"foo": "1"}, "Extraneous hyperparameter found: foo"),
        (CSV, {"max_dept": "1"}, "Extraneous hyperparameter found: max_dept; did you mean 'max_depth'?"),
        (CSV, {"booster": "GBTree"}, "['gbtree', 'gblinear', 'dart']; did you mean 'gbtree'?"),
        (CSV, {"eval_metric": "rsme"}, "; did you mean 'rmse'?"),
        (CSV, {"booster": "xx"}, "Hyperparameter booster: xx is not in ['gbtree', 'gblinear', 'dart']"),
        (CSV, {"objective": "multi:softmax"}, "Require input for parameter 'num_class' for multi-classification"),
        (CSV, {"eval_metric": "auc"}, "Metric 'auc' can only be applied for classification and ranking problems."),
        (CSV, {"eval_metric": "foo"}, "Hyperparameter eval_metric: value ['foo'] not in range"),
        (CSV, {"eval_metric": "rmse@0.5"}, "Metric 'rmse@0.5' is not supported."),
        (CSV, {"tree_method": "gpu_hist"}, "use hist"),
        (CSV, {"use_dask_gpu_training": "true"}, "trains without Dask, on one GPU for each host"),
        (CSV, {"_num_cv_round": "2"}, "give _kfold too"),
        (CSV, {"_kfold": "5"}, "5 folds need as many rows, and there are 4"),
        (CSV, {"_kfold": "3", "objective": "binary:logistic"}, "class 0 has 2 rows, fewer than the 3 folds"),
        (CSV, {"objective": "binary:logistic", "num_class": "2"}, "num_class is for objective multi:softmax"),
        (CSV, {"objective": "binary:logistic", "base_score": "3"}, "XGB train call failed with exception"),
        (CSV, {"objective": "survival:aft", "eval_metric": "cox-nloglik,rmse@0.5"}, "Metric 'rmse@0.5'"),
        (CSV, {"_tuning_objective_metric": "validation:auc"}, "Metric 'auc' can only be applied"),
        (CSV, {"eval_metric": "aft-nloglik"}, "Metric 'aft-nloglik' can only be applied for 'survival:aft' objective."),
        (
            CSV,
            {"eval_metric": "error@x", "objective": "binary:logistic"},
            "Threshold value 'x' in 'error@t' expects float",
        ),
        (CSV, {"monotone_constraints": "(1, 0)"}, "monotone_constraints can be used only when the tree_method"),
        (CSV, {"interaction_constraints": "[[0, 1]]"}, "interaction_constraints can be used only when the tree_method"),
        (
            CSV,
            {"process_type": "update", "updater": "grow_colmaker"},
            "can only be used with updater 'refresh' and 'prune'",
        ),
        (CSV, {"updater": "grow_colmaker,grow_histmaker"}, "Only one tree grow plugin can be selected."),
        ("3,1,2\n4,2,3\n", {"objective": "binary:logistic"}, "a.csv, row 1: label 3, and binary:logistic takes labels"),
        (CSV + "2,1,1\n", {"objective": "multi:softmax", "num_class": "2"}, "row 5: label 2, and multi:softmax takes"),
        (CSV + "0.5,1,1\n", {"objective": "multi:softprob", "num_class": "2"}, "row 5: label 0.5, and multi:softprob"),
        (
            CSV + "-1,1,1\n",
            {"objective": "count:poisson"},
            "row 5: label -1, and count:poisson takes labels that are 0 or more",
        ),
        (CSV + "-1,1,1\n", {"objective": "reg:tweedie"}, "row 5: label -1, and reg:tweedie"),
        (CSV, {"objective": "reg:gamma"}, "row 2: label 0, and reg:gamma takes labels that are above 0"),
        (CSV + "0.5,1,1\n", {"objective": "binary:hinge"}, "row 5: label 0.5, and binary:hinge"),
        (CSV + "0.5,1,1\n", {"objective": "binary:logistic", "eval_metric": "f1"}, "metric 'f1' is for labels 0 and 1"),
        (CSV + "inf,1,1\n", {}, "row 5: the label is infinite"),
        ("1,0.5,2\n1,0.25,3\n", {"objective": "binary:logistic"}, "all rows of the train channel have the label 1"),
        ("1,-2,3\n0,1,4\n", {"csv_weights": "1"}, "row 1: weight -2; a weight is a number from 0"),
        (
            CSV,
            {"tree_method": "hist", "interaction_constraints": "[[0, 2]]"},
            "are about 3 features, and the data has 2",
        ),
        (CSV, {"tree_method": "hist", "monotone_constraints": "(0, 0, 1)"}, "are about 3 features, and the data has 2"),
        (CSV, {"tree_method": "exact", "colsample_bynode": "0.5"}, "not yet supported by the exact tree method"),
        (CSV, {"sampling_method": "gradient_based"}, "needs tree_method 'gpu_hist'"),
    ],
)
def test_mistakes_are_named_with_the_line_that_helps(
    tmp_path: Path, content: str, hyperparameters: dict[str, str], expected: str
) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "a.csv").write_text(content)
    assert expected in failure_by_hand(tmp_path, {"train": {"ContentType": "text/csv"}}, **hyperparameters)


def test_bad_data_fails_the_job_with_the_line_that_helps(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "a.csv").write_text("label,a,b\n" + CSV)
    done = train(tmp_path, {"train": f"{folder}/"})
    assert done.describe["TrainingJobStatus"] == "Failed"
    assert done.reason.startswith("AlgorithmError: ")
    assert "/input/data/train/a.csv, line 1: 'label' is not a number." in done.reason
    assert done.reason.endswith(", exit code: 1")


def test_all_wrong_hyperparameters_are_told_at_once(tmp_path: Path) -> None:
    folder = write_csv(tmp_path / "data", [[1.0, 2.0]], [1.0])
    done = run(
        tmp_path,
        image="xgboost",
        entrypoint=None,
        channels={"train": f"{folder}/"},
        hyperparameters={"eta": 2, "max_depht": 3},
    )
    for text in ("Missing required hyperparameter: num_round", "eta: 2.0 is not in", "found: max_depht"):
        assert text in done.reason


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("1 1:2 x:3", "line 2: 'x:3'"),
        ("1,2,3", "line 2: '1,2,3'"),
        ("1 2:1 1:1", "line 2: '1:1'"),
        ("one 1:2", "line 2: 'one'"),
        ("1 qid:1 1:2", "1 of 2 rows have a qid"),
        ("1:0.5 1:2", "line 2"),
        ("nan 1:2", "Got input data without labels"),
    ],
)
def test_a_line_that_is_not_libsvm_is_named(tmp_path: Path, line: str, expected: str) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "a").write_text(f"0 1:1 2:2\n{line}\n")
    assert expected in failure_by_hand(tmp_path, {"train": {"ContentType": "text/libsvm"}})


@pytest.mark.parametrize(
    ("channels", "expected"),
    [
        ({"validation": {}}, "Missing required channel: train"),
        ({"train": {}, "test": {}}, "Extraneous channel found: test"),
        ({"train": {"TrainingInputMode": "Pipe"}}, "Pipe mode is no longer supported"),
        ({"train": {"ContentType": "image/png"}}, "ContentType 'image/png'"),
        ({"train": {"ContentType": "text/csv;label_size=2"}}, "label_size must be equal to 1"),
    ],
)
def test_wrong_channels_are_named(tmp_path: Path, channels: dict[str, dict[str, str]], expected: str) -> None:
    write_csv(tmp_path / "data", [[1.0, 2.0]], [1.0])
    assert expected in failure_by_hand(tmp_path, channels)


def test_a_hidden_file_among_the_data_is_refused(tmp_path: Path) -> None:
    folder = write_csv(tmp_path / "data", [[1.0, 2.0]], [1.0])
    (folder / ".a.csv.swp").write_text("x")
    assert "Hidden file found in the data path!" in failure_by_hand(tmp_path, {"train": {"ContentType": "text/csv"}})


def test_markers_beside_the_data_are_no_data(tmp_path: Path) -> None:
    folder = write_csv(tmp_path / "data", [[1.0, 2.0], [2.0, 3.0]], [1.0, 0.0])
    (folder / "_SUCCESS").write_text("")
    model_of(train(tmp_path, {"train": {"uri": f"{folder}/", "content_type": "text/csv"}}, num_round=1))


def test_the_metric_definitions_of_the_algorithm_are_those_of_the_cloud() -> None:
    """Published names and expressions, so that what reads them there reads them here."""
    from optml.images import find_image
    from optml.metrics import compile_definition

    image = find_image("xgboost")
    assert image is not None
    definitions = {metric.name: metric for metric in image.metrics}
    assert len(definitions) == 66
    assert definitions["validation:auc"].regex == r".*\[[0-9]+\].*#011validation-auc:(\S+)"
    line = "[7]\ttrain-auc:0.75000\tvalidation-auc:0.50000\tvalidation-aucpr:0.25000"
    found = {name: compile_definition(metric).search(line) for name, metric in definitions.items()}
    assert {name: match[1] for name, match in found.items() if match} == {
        "train:auc": "0.75000", "validation:auc": "0.50000", "validation:aucpr": "0.25000",
    }  # fmt: skip


def by_hand(folder: Path, features: Any, labels: Any, *, validation: bool = True, **given: Any) -> Any:
    """Both channels have the same rows, the second half in the validation channel."""
    from optml_algorithms.xgboost.train import train as train_xgboost

    half = len(labels) // 2 if validation else len(labels)
    channels = {"train": write_csv(folder / "train", features[:half], labels[:half])}
    if validation:
        channels["validation"] = write_csv(folder / "validation", features[half:], labels[half:])
    done = run_by_hand(train_xgboost, make_tree(folder / "ml", {"num_round": 3, "nthread": 1, **given}, channels))
    assert done.code == 0, done.failure
    return done


# An objective for each metric that is not for all, or not the most telling for binary:logistic.
OBJECTIVE_OF = {
    "aft-nloglik": "survival:aft", "interval-regression-accuracy": "survival:aft", "cox-nloglik": "survival:cox",
    "poisson-nloglik": "count:poisson", "gamma-deviance": "reg:gamma", "gamma-nloglik": "reg:gamma",
    "tweedie-nloglik": "reg:tweedie", "mlogloss": "multi:softprob", "merror": "multi:softmax", "map": "rank:map",
    "ndcg": "rank:ndcg", "rmsle": "reg:squaredlogerror", "mphe": "reg:pseudohubererror", "mae": "reg:squarederror",
    "mape": "reg:squarederror", "rmse": "reg:squarederror", "mse": "reg:squarederror", "r2": "reg:squarederror",
}  # fmt: skip


@pytest.mark.parametrize("metric", METRICS)
def test_each_of_the_33_metrics_is_printed_under_its_published_name(tmp_path: Path, metric: str) -> None:
    features = numpy.random.default_rng(0).random((60, 4))
    objective = OBJECTIVE_OF.get(metric, "binary:logistic")
    labels = features[:, 0] + 0.1
    if objective.startswith(("binary:", "rank:")):
        labels = (features[:, 0] > 0.5).astype(float)
    elif objective.startswith("multi:"):
        labels = (features[:, 0] * 3).astype(int)
    given: dict[str, Any] = {"num_class": 3} if objective.startswith("multi:") else {}
    done = by_hand(tmp_path, features, labels, objective=objective, eval_metric=metric, **given)
    values = done.scores[-1][1]
    assert {f"train-{metric}", f"validation-{metric}"} <= set(values)
    assert all(numpy.isfinite(value) for value in values.values())


@pytest.mark.parametrize(("objective", "metrics"), [
    ("rank:pairwise", ["ndcg@32", "ndcg"]), ("rank:map", ["map@32", "map"]), ("reg:tweedie", ["tweedie-nloglik"]),
])  # fmt: skip
def test_default_metrics_with_a_suffix_are_there_under_the_published_name_too(
    tmp_path: Path, objective: str, metrics: list[str]
) -> None:
    features = numpy.random.default_rng(0).random((60, 4))
    labels = (features[:, 0] > 0.5).astype(float)
    done = by_hand(tmp_path, features, labels, validation=False, objective=objective)
    assert list(done.scores[-1][1]) == [f"train-{metric}" for metric in metrics]


@pytest.mark.parametrize("asked", ["error@.5", "error@0.7", "tweedie-nloglik", "ndcg@5"])
def test_early_stopping_finds_its_metric_however_it_is_spelt(tmp_path: Path, asked: str) -> None:
    features = numpy.random.default_rng(0).random((60, 4))
    labels = (features[:, 0] > 0.5).astype(float)
    objective = "reg:tweedie" if "tweedie" in asked else "binary:logistic"
    done = by_hand(
        tmp_path, features, labels, objective=objective, eval_metric=asked, early_stopping_rounds=2, num_round=50
    )
    assert len(done.scores) < 50


def test_metrics_computed_here_are_scikit_learns_whatever_the_classes() -> None:
    """Also where a class is missing among the labels, among the predictions, or from both."""
    from sklearn import metrics

    generator = numpy.random.default_rng(0)
    for class_count, low, high in ((2, 0, 2), (2, 0, 1), (5, 0, 5), (5, 1, 3), (5, 4, 5)):
        labels, predicted = generator.integers(low, high, 200), generator.integers(0, class_count, 200)
        counts = confusion(labels, predicted, class_count)
        quiet: Any = {"zero_division": 0}
        expected = {
            "accuracy": metrics.accuracy_score(labels, predicted),
            "balanced_accuracy": metrics.recall_score(labels, predicted, labels=numpy.unique(labels), average="macro"),
            "precision_micro": metrics.precision_score(labels, predicted, average="micro"),
            "recall_micro": metrics.recall_score(labels, predicted, average="micro"),
        }
        for name, function in (
            ("f1", metrics.f1_score),
            ("precision", metrics.precision_score),
            ("recall", metrics.recall_score),
        ):
            expected[f"{name}_macro"] = function(labels, predicted, average="macro", **quiet)
            if class_count == 2:
                expected["f1_binary" if name == "f1" else name] = function(labels, predicted, **quiet)
        expected["f1"] = expected["f1_macro"]
        for name, value in expected.items():
            assert classification_metric(name, counts) == pytest.approx(value), (name, class_count, low, high)
        if high - low > 1:
            assert expected["balanced_accuracy"] == pytest.approx(metrics.balanced_accuracy_score(labels, predicted))


def test_regression_metrics_computed_from_parts_are_those_of_the_whole() -> None:
    from sklearn import metrics

    generator = numpy.random.default_rng(0)
    labels = generator.normal(1000, 1, 500).astype(numpy.float32)
    predicted = labels + generator.normal(0, 0.5, 500).astype(numpy.float32)
    sums = sum(regression_sums(labels[part], predicted[part], offset=1000.0) for part in (slice(100), slice(100, 500)))
    assert regression_metric("mse", sums) == pytest.approx(metrics.mean_squared_error(labels, predicted), rel=1e-5)
    assert regression_metric("r2", sums) == pytest.approx(metrics.r2_score(labels, predicted), rel=1e-5)
    same = numpy.ones(5, dtype=numpy.float32)
    assert regression_metric("r2", regression_sums(same, same, 1.0)) == 1.0
    assert regression_metric("r2", regression_sums(same, same + 1, 1.0)) == 0.0


def test_parquet_and_recordio_give_the_model_of_csv(tmp_path: Path) -> None:
    """The same rows in three formats, and RecordIO-protobuf sparse too."""
    import pyarrow
    import scipy.sparse
    from pyarrow import parquet

    from optml_algorithms.data.recordio_writer import write_recordio

    features, labels = load_diabetes(return_X_y=True)
    features, labels = features.astype(numpy.float32), labels.astype(numpy.float32)
    folders = {name: tmp_path / name for name in ("csv", "parquet", "recordio", "sparse")}
    for folder in folders.values():
        folder.mkdir()
    write_csv(folders["csv"], features, labels)
    columns = [labels, *features.T]
    table = pyarrow.table([pyarrow.array(column) for column in columns], names=[f"c{i}" for i in range(len(columns))])
    parquet.write_table(table, folders["parquet"] / "a.parquet")
    write_recordio(folders["recordio"] / "a.pbr", features, labels)
    write_recordio(folders["sparse"] / "a.pbr", scipy.sparse.csr_matrix(features), labels)
    types = {"csv": "text/csv", "parquet": "application/x-parquet"}
    boosters = {
        name: model_of(
            train(
                tmp_path / f"job-{name}",
                {"train": {"uri": f"{folder}/", "content_type": types.get(name, "application/x-recordio-protobuf")}},
                num_round=5,
            )
        )
        for name, folder in folders.items()
    }
    matrix = xgboost.DMatrix(features)
    predicted = {name: booster.predict(matrix) for name, booster in boosters.items()}
    for name in ("parquet", "recordio", "sparse"):
        assert numpy.allclose(predicted[name], predicted["csv"], rtol=1e-4), name


def test_a_file_that_is_in_both_channels_is_mentioned(tmp_path: Path) -> None:
    from optml_algorithms.xgboost.train import train as train_xgboost

    folder = write_csv(tmp_path / "data", [[1.0, 2.0], [2.0, 3.0]], [1.0, 0.0])
    done = run_by_hand(
        train_xgboost, make_tree(tmp_path / "ml", {"num_round": 1}, {"train": folder, "validation": folder})
    )
    assert "Suspected identical files found." in done.log


def test_two_labels_in_a_record_are_refused(tmp_path: Path) -> None:
    from optml_algorithms.data.recordio_writer import write_recordio
    from optml_algorithms.xgboost.train import train as train_xgboost

    (tmp_path / "data").mkdir()
    features = numpy.ones((3, 2), dtype=numpy.float32)
    write_recordio(tmp_path / "data" / "a.pbr", features, numpy.ones((3, 2), dtype=numpy.float32))
    root = make_tree(
        tmp_path / "ml", {"num_round": 1}, {"train": tmp_path / "data"}, content_type="application/x-recordio-protobuf"
    )
    assert "a.pbr, row 1 has 2 labels, and XGBoost takes one" in run_by_hand(train_xgboost, root).failure


def test_the_metric_of_a_tuner_joins_and_decides_early_stopping(tmp_path: Path) -> None:
    features = numpy.random.default_rng(0).random((60, 4))
    labels = (features[:, 0] > 0.5).astype(float)
    given: dict[str, Any] = {"objective": "binary:logistic", "eval_metric": "logloss"}
    given["_tuning_objective_metric"] = "validation:auc"
    done = by_hand(tmp_path, features, labels, early_stopping_rounds=2, num_round=50, **given)
    assert "Setting up HPO optimized metric to be : auc" in done.log
    assert list(done.scores[0][1]) == ["train-auc", "train-logloss", "validation-auc", "validation-logloss"]
    assert len(done.scores) < 50


def test_it_starts_without_libraries_that_it_does_not_use(tmp_path: Path) -> None:
    """scikit-learn above all, which xgboost would import for itself, and which takes longer than all the rest."""
    folder = write_csv(tmp_path / "data", [[1.0, 2.0], [2.0, 3.0]], [1.0, 0.0])
    root = make_tree(tmp_path / "ml", {"num_round": 1, "eval_metric": "rmse,mse"}, {"train": folder})
    code = (
        "import runpy, sys\ntry:\n    runpy.run_module('optml_algorithms.xgboost', run_name='__main__')\n"
        "except SystemExit as end:\n    assert end.code == 0\n"
        "print([name for name in ('sklearn', 'torch', 'pandas', 'matplotlib', 'scipy.stats') if sys.modules.get(name)])"
    )
    environment = {**os.environ, "SAGEMAKER_BASE_DIR": str(root)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("given", [
    {"booster": "dart", "rate_drop": 0.3, "sample_type": "weighted", "one_drop": 1},
    {"booster": "gblinear", "updater": "coord_descent", "lambda_bias": 0.1},
    {"tree_method": "hist", "monotone_constraints": "(1, 0, -1, 0)", "interaction_constraints": "[[0, 1], [2, 3]]"},
    {"tree_method": "approx", "grow_policy": "lossguide", "max_leaves": 5, "max_bin": 16},
    {"tree_method": "exact", "colsample_bytree": 0.5, "num_parallel_tree": 3, "subsample": 0.5},
    {"sketch_eps": 0.1, "silent": 1, "predictor": "cpu_predictor", "dsplit": "row", "prob_buffer_row": 2},
])  # fmt: skip
def test_every_kind_of_booster_stops_early_at_its_best_round(tmp_path: Path, given: dict[str, Any]) -> None:
    """What is kept scores as the line of the best round said, also where later rounds changed what was there before."""
    generator = numpy.random.default_rng(0)
    features = generator.random((200, 4)).astype(numpy.float32)
    labels = (features[:, 0] * 3 + generator.random(200) * 3).astype(numpy.float32)
    done = by_hand(
        tmp_path, features, labels, eval_metric="rmse", early_stopping_rounds=3, num_round=200, eta=0.5, **given
    )
    values = [values["validation-rmse"] for _, values in done.scores]
    assert 3 < len(values) < 200 or given["booster"] == "gblinear"
    booster = xgboost.Booster(model_file=bytearray((done.root / "model" / "xgboost-model").read_bytes()))
    predicted = booster.predict(xgboost.DMatrix(features[100:]))
    assert float(numpy.sqrt(numpy.mean((predicted - labels[100:]) ** 2))) == pytest.approx(min(values), abs=2e-5)
    if "monotone_constraints" in given:
        steps = numpy.full((11, 4), 0.5, dtype=numpy.float32)
        steps[:, 0] = numpy.linspace(0, 1, 11)
        assert (numpy.diff(booster.predict(xgboost.DMatrix(steps))) >= 0).all()


def test_no_validation_data_is_named(tmp_path: Path) -> None:
    from optml_algorithms.xgboost.train import train as train_xgboost

    (tmp_path / "nothing").mkdir()
    folder = write_csv(tmp_path / "data", [[1.0, 2.0], [2.0, 3.0]], [1.0, 0.0])
    root = make_tree(tmp_path / "ml", {"num_round": 1}, {"train": folder, "validation": tmp_path / "nothing"})
    done = run_by_hand(train_xgboost, root)
    assert done.failure.startswith("No data in validation channel path")
