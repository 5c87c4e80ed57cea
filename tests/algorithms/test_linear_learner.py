"""Built-in linear learner through real jobs: data in, metric lines that AWS's expressions find, a model that predicts."""

import contextlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

numpy = pytest.importorskip("numpy")
torch = pytest.importorskip("torch")
scipy_sparse = pytest.importorskip("scipy.sparse")

from sklearn import metrics as sklearn_metrics  # noqa: E402
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits  # noqa: E402
from sklearn.linear_model import LogisticRegression  # noqa: E402
from sklearn.model_selection import train_test_split  # noqa: E402
from sklearn.pipeline import make_pipeline  # noqa: E402
from sklearn.preprocessing import StandardScaler  # noqa: E402
from tests.harness import Done, run  # noqa: E402
from tests.hosts import PATIENCE_SECONDS  # noqa: E402

import optml  # noqa: E402
from optml_algorithms import models  # noqa: E402
from optml_algorithms.data.recordio_writer import write_recordio  # noqa: E402
from optml_algorithms.hosts import HostLost  # noqa: E402
from optml_algorithms.hyperparameters import Interval  # noqa: E402
from optml_algorithms.linear_learner.examples import Examples  # noqa: E402
from optml_algorithms.linear_learner.hosts import Group  # noqa: E402
from optml_algorithms.linear_learner.hyperparameters import HYPERPARAMETERS, TUNABLE_METRICS, settings  # noqa: E402
from optml_algorithms.linear_learner.losses import loss_of  # noqa: E402
from optml_algorithms.linear_learner.model import LinearModel, load  # noqa: E402
from optml_algorithms.linear_learner.optimizers import Optimizer  # noqa: E402
from optml_algorithms.linear_learner.scores import (  # noqa: E402
    binary_metrics,
    choose_thresholds,
    metrics_of,
    sums_of,
)
from optml_algorithms.linear_learner.train import fit  # noqa: E402
from optml_algorithms.linear_learner.train import train as train_here  # noqa: E402
from optml_toolkit.container import Container, Resources, UserError, main  # noqa: E402

FACTS = Path(__file__).resolve().parents[2].parent / "shared" / "facts" / "algorithms" / "linear-learner.json"
needs_facts = pytest.mark.skipif(
    not FACTS.is_file(), reason="the facts about the algorithm are not beside this checkout"
)

BINARY = {"predictor_type": "binary_classifier"}
REGRESSOR = {"predictor_type": "regressor"}
TEN_CLASSES = {"predictor_type": "multiclass_classifier", "num_classes": 10}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Training in this process sets torch's number of threads."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def csv_folder(folder: Path, features: Any, labels: Any, *, name: str = "data.csv") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    numpy.savetxt(folder / name, numpy.column_stack([labels, features]), delimiter=",", fmt="%.9g")
    return folder


def channel(folder: Path, content_type: str | None = "text/csv", **more: Any) -> dict[str, Any]:
    return {"uri": f"{folder}/", **({"content_type": content_type} if content_type else {}), **more}


def train(folder: Path, channels: dict[str, Any], **hyperparameters: Any) -> Done:
    more: dict[str, Any] = {"instance_count": hyperparameters.pop("instance_count", 1)}
    given: dict[str, Any] = {"image": "linear-learner", "entrypoint": None, "channels": channels, **more}
    return run(folder, hyperparameters=hyperparameters, **given)


def model_of(done: Done, folder: Path) -> LinearModel:
    assert done.describe["TrainingJobStatus"] == "Completed", done.reason + done.log
    assert list(done.model) == ["model_algo-1"]
    (folder / "unpacked").mkdir(exist_ok=True)
    (folder / "unpacked" / "model_algo-1").write_bytes(done.model["model_algo-1"])
    return load(folder / "unpacked")


def finals(done: Done) -> dict[str, float]:
    return {metric["MetricName"]: metric["Value"] for metric in done.describe["FinalMetricDataList"]}


def examples(features: Any, labels: Any) -> Examples:
    """A copy: training normalises in place."""
    return Examples(numpy.array(features, "f4"), numpy.array(labels, "f4"))


def fitted(data: dict[str, tuple[Any, Any]], **hyperparameters: Any) -> LinearModel:
    """The algorithm without a job around it."""
    given = {name: str(value) for name, value in hyperparameters.items()}
    return fit({name: examples(*each) for name, each in data.items()}, settings(given), Group())


def by_hand(folder: Path, channels: dict[str, dict[str, str]], **hyperparameters: Any) -> Container:
    """A tree made by hand; channels lie in <folder>/<name>."""
    root = folder / "ml"
    config = root / "input" / "config"
    config.mkdir(parents=True)
    (root / "model").mkdir()
    given = {name: str(value) for name, value in hyperparameters.items()}
    (config / "hyperparameters.json").write_text(json.dumps(given))
    (config / "inputdataconfig.json").write_text(json.dumps(channels))
    (root / "input" / "data").mkdir()
    for name in channels:
        (root / "input" / "data" / name).symlink_to(folder / name)
    return Container(root)


def failure(container: Container) -> str:
    assert main(train_here, container) == 1
    return container.failure_file.read_text()


def two_classes(rows: int = 400, columns: int = 5, *, seed: int = 0, share: float = 0.5) -> tuple[Any, Any]:
    generator = numpy.random.default_rng(seed)
    features = generator.standard_normal((rows, columns)).astype("f4")
    margin = features @ generator.standard_normal(columns) + generator.standard_normal(rows)
    return features, (margin > numpy.quantile(margin, 1 - share)).astype("f4")


# --- jobs


def test_a_binary_classifier_is_as_good_as_logistic_regression_and_its_metrics_are_found(tmp_path: Path) -> None:
    features, labels = load_breast_cancer(return_X_y=True)
    parts = train_test_split(features, labels, test_size=0.2, random_state=0, stratify=labels)
    channels = {
        "train": channel(csv_folder(tmp_path / "train", parts[0], parts[2])),
        "validation": channel(csv_folder(tmp_path / "validation", parts[1], parts[3])),
        "test": channel(csv_folder(tmp_path / "test", parts[1], parts[3])),
    }
    done = train(tmp_path, channels, **BINARY)
    model = model_of(done, tmp_path)
    found = model.predict(parts[1].astype("f4"))
    plain = make_pipeline(StandardScaler(), LogisticRegression()).fit(parts[0], parts[2])
    accuracy = (found.predicted_label == parts[3]).mean()
    assert accuracy >= max(0.96, plain.score(parts[1], parts[3]) - 0.002)
    assert sklearn_metrics.roc_auc_score(parts[3], found.score) >= 0.99
    assert found.is_probability
    assert ((found.score >= 0) & (found.score <= 1)).all()
    values = finals(done)
    assert values["validation:binary_classification_accuracy"] == pytest.approx(accuracy)
    assert values["test:binary_classification_accuracy"] == pytest.approx(accuracy)
    for name, function in {
        "precision": "precision_score",
        "recall": "recall_score",
        "binary_f_beta": "f1_score",
    }.items():
        expected = getattr(sklearn_metrics, function)(parts[3], found.predicted_label)
        assert values[f"test:{name}"] == pytest.approx(expected, abs=1e-6)
    loss = sklearn_metrics.log_loss(parts[3], found.score)
    assert values["test:objective_loss"] == pytest.approx(loss, rel=1e-3)
    assert values["validation:objective_loss:final"] == pytest.approx(loss, rel=1e-3)
    assert {"train:objective_loss", "train:progress", "train:throughput", "validation:objective_loss"} <= set(values)
    assert "Test data is not provided." not in done.log


def test_several_classes_from_recordio_through_a_pipe(tmp_path: Path) -> None:
    features, labels = load_digits(return_X_y=True)
    parts = train_test_split(features, labels, test_size=0.2, random_state=0, stratify=labels)
    for name, rows, wanted in (("train", parts[0], parts[2]), ("test", parts[1], parts[3])):
        (tmp_path / name).mkdir()
        write_recordio(tmp_path / name / "part-0.pbr", rows.astype("f4"), wanted.astype("f4"))
    channels = {name: channel(tmp_path / name, None, input_mode="Pipe") for name in ("train", "test")}
    done = train(tmp_path, channels, **TEN_CLASSES, accuracy_top_k=2)
    found = model_of(done, tmp_path).predict(parts[1].astype("f4"))
    assert (found.predicted_label == parts[3]).mean() >= 0.95
    assert found.score.shape == (len(parts[1]), 10)
    assert numpy.allclose(found.score.sum(axis=1), 1)
    values = finals(done)
    assert values["test:multiclass_accuracy"] == pytest.approx((found.predicted_label == parts[3]).mean())
    top = sklearn_metrics.top_k_accuracy_score(parts[3], found.score, k=2)
    assert values["test:multiclass_top_k_accuracy"] == pytest.approx(top)
    assert {"test:dcg", "test:macro_f_beta", "test:macro_precision", "test:macro_recall"} <= set(values)


def test_a_regressor_is_as_good_as_published(tmp_path: Path) -> None:
    features, labels = load_diabetes(return_X_y=True)
    parts = train_test_split(features, labels, test_size=0.2, random_state=0)
    channels = {
        "train": channel(csv_folder(tmp_path / "train", parts[0], parts[2])),
        "validation": channel(csv_folder(tmp_path / "validation", parts[1], parts[3])),
    }
    done = train(tmp_path, channels, **REGRESSOR)
    found = model_of(done, tmp_path).predict(parts[1].astype("f4"))
    error = ((found.predicted_label - parts[3]) ** 2).mean()
    assert error <= 3550
    assert finals(done)["validation:mse"] == pytest.approx(error, rel=1e-4)
    assert finals(done)["validation:rmse"] == pytest.approx(error**0.5, rel=1e-4)
    assert finals(done)["validation:objective_loss:final"] == pytest.approx(error, rel=1e-4)
    assert "Test data is not provided." in done.log


def test_two_hosts_train_the_model_that_one_would(tmp_path: Path) -> None:
    """One update an epoch over all rows: then shards change nothing but the order in which numbers are added."""
    features, labels = two_classes(600)
    csv_folder(tmp_path / "train", features[:300], labels[:300], name="a.csv")
    csv_folder(tmp_path / "train", features[300:], labels[300:], name="b.csv")
    csv_folder(tmp_path / "validation", features[::2], labels[::2])
    shards = {
        "train": channel(tmp_path / "train", distribution="ShardedByS3Key"),
        "validation": channel(tmp_path / "validation"),
        "test": channel(tmp_path / "train", distribution="ShardedByS3Key"),
    }
    given = {**BINARY, "num_models": 3, "epochs": 6, "learning_rate": 0.1}
    two = train(tmp_path / "2", shards, instance_count=2, mini_batch_size=300, **given)
    one = train(tmp_path / "1", shards, mini_batch_size=600, **given)
    models_of_both = model_of(two, tmp_path / "2"), model_of(one, tmp_path / "1")
    assert numpy.allclose(models_of_both[0].weights, models_of_both[1].weights, atol=1e-4)
    assert models_of_both[0].threshold == pytest.approx(models_of_both[1].threshold, abs=1e-3)
    assert two.log.count("#progress_metric") == one.log.count("#progress_metric")  # one host tells
    published = set(finals(one)) - {"train:throughput"}
    assert published == set(finals(two)) - {"train:throughput"}
    assert {"test:roc_auc_score", "validation:recall", "train:objective_loss"} < published
    for name in published:
        assert finals(two)[name] == pytest.approx(finals(one)[name], abs=1e-3), name


def test_a_host_with_an_empty_shard_is_no_crash(tmp_path: Path) -> None:
    features, labels = two_classes()
    csv_folder(tmp_path / "train", features, labels)
    done = train(
        tmp_path,
        {"train": channel(tmp_path / "train", distribution="ShardedByS3Key")},
        instance_count=2,
        **BINARY,
        epochs=3,
    )
    found = model_of(done, tmp_path).predict(features)
    assert (found.predicted_label == labels).mean() > 0.8


def test_what_is_wrong_with_one_hosts_data_is_the_reason_of_all(tmp_path: Path) -> None:
    features, labels = two_classes()
    csv_folder(tmp_path / "train", features, labels, name="a.csv")
    (tmp_path / "train" / "b.csv").write_text("1,2,3,4,5,6\n0,1,x,1,1,1\n")
    shards = {"train": channel(tmp_path / "train", distribution="ShardedByS3Key")}
    done = train(tmp_path, shards, instance_count=2, **BINARY)
    assert done.describe["TrainingJobStatus"] == "Failed"
    assert "b.csv" in done.reason
    assert "(on host algo-2)" in done.reason


@pytest.mark.slow
def test_a_host_that_dies_ends_the_others_with_the_reason(tmp_path: Path) -> None:
    """Two processes on trees made by hand, one of which is killed while both train."""
    names = ["127.0.0.1", "localhost"]
    processes = []
    for name in names:
        csv_folder(tmp_path / name / "train", *two_classes())
        given = {**BINARY, "epochs": 10**9, "early_stopping_patience": 10**9}
        container = by_hand(tmp_path / name, {"train": {"ContentType": "text/csv"}}, **given)
        resources = {"current_host": name, "hosts": names, "network_interface_name": "lo"}
        (container.root / "input" / "config" / "resourceconfig.json").write_text(json.dumps(resources))
        environment = {
            **os.environ,
            "SAGEMAKER_BASE_DIR": str(container.root),
            "TRAINING_JOB_NAME": f"dies-{tmp_path.name}",
        }
        argv = [sys.executable, "-m", "optml_algorithms.linear_learner"]
        processes.append(subprocess.Popen(argv, env=environment, stdout=subprocess.PIPE, text=True))
    first, second = processes
    assert first.stdout is not None
    assert any("epoch=1," in line for line in first.stdout)
    second.kill()
    second.communicate()
    first.communicate(timeout=PATIENCE_SECONDS)
    assert first.returncode == 1
    failure_file = Container(tmp_path / names[0] / "ml").failure_file
    assert re.match("HostLost: (another host of the job|localhost) has gone", failure_file.read_text())


def test_a_stopped_job_ends_at_once(tmp_path: Path) -> None:
    csv_folder(tmp_path / "train", *two_classes())
    job = optml.train(
        image="382416733822.dkr.ecr.us-east-1.amazonaws.com/linear-learner:1",
        name="stopped",
        channels={"train": channel(tmp_path / "train")},
        hyperparameters={**BINARY, "epochs": 10**9, "early_stopping_patience": 10**9},
        output=str(tmp_path / "out"),
        wait=False,
    )
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (job.metrics_file.exists() and job.metrics_file.stat().st_size):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    job.stop(wait=True)
    assert Done(job, None).describe["SecondaryStatus"] == "Stopped"


# --- what is declared


@needs_facts
def test_every_hyperparameter_is_declared_as_aws_has_it() -> None:
    table = {each["name"]: each for each in json.loads(FACTS.read_text())["hyperparameters"]}
    declared = {each.name: each for each in HYPERPARAMETERS}
    # A tuner sends it with every job; the table has what people give.
    assert set(declared) - set(table) == {"_tuning_objective_metric"}
    assert set(table) - set(declared) == set()
    kinds = {"int": "integer", "float": "number", "categorical": "choice", "bool": "boolean"}
    for name, row in table.items():
        mine = declared[name]
        assert mine.kind == kinds[row["type"]], name
        assert mine.required == row["required"], name
        assert mine.default == row["default"], name
        assert list(mine.literals) == row.get("literals", []), name
        assert bool(mine.depends_on) == bool(row["depends_on"]) or name == "init_bias", name  # a bias that is not used
        if row["choices"] is not None:
            assert isinstance(mine.allowed, tuple), name
            assert sorted(mine.allowed) == sorted(row["choices"] + row.get("legacy_choices", [])), name
        elif row["min"] is not None or row["max"] is not None:
            assert isinstance(mine.allowed, Interval), name
            low = row["min"] if row["min"] is not None else -numpy.inf
            high = row["max"] if row["max"] is not None else numpy.inf
            assert (mine.allowed.low, mine.allowed.high) == (low, high), name
            assert (mine.allowed.low_open, mine.allowed.high_open) == (
                "min" in row["exclusive"],
                "max" in row["exclusive"],
            ), name
        recommended = row["recommended_range"]
        assert (mine.tunable is not None) == row["tunable"], name
        if mine.tunable is None:
            continue
        if recommended["kind"] == "CategoricalParameterRanges":
            assert [each.lower() for each in recommended["values"]] == list(mine.tunable.values), name
        else:
            assert (mine.tunable.low, mine.tunable.high) == (recommended["min"], recommended["max"]), name
            assert mine.tunable.whole == recommended["kind"].startswith("Integer"), name


@needs_facts
def test_the_image_publishes_the_metrics_that_aws_does() -> None:
    from optml.images import find_image

    image = find_image("linear-learner")
    assert image is not None
    expected = {each["name"]: each["regex_or_log_line"] for each in json.loads(FACTS.read_text())["metrics"]}
    assert {metric.name: metric.regex for metric in image.metrics} == expected
    documented = [each for each in json.loads(FACTS.read_text())["metrics"] if each["documented"]]
    assert {each["name"]: each["goal"] for each in documented} == TUNABLE_METRICS


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "'predictor_type' is a required property"),
        ({**BINARY, "mini_batch_siz": 5}, "('mini_batch_siz' was unexpected); did you mean 'mini_batch_size'?"),
        ({"predictor_type": "regresor"}, "'regressor']; did you mean 'regressor'?"),
        (
            {**BINARY, "feature_dim": "abc"},
            "Hyperparameter feature_dim: 'abc' is not valid under any of the given schemas: expected an integer in [1, +inf) or "
            "'auto'",
        ),
        ({**BINARY, "momentum": 1}, "expected a number in [0, 1) or 'auto'"),
        ({**BINARY, "epochs": 0}, "Hyperparameter epochs: '0' is not valid under any of the given schemas"),
        ({**BINARY, "wd": "nan"}, "Hyperparameter wd: 'nan' is not valid"),
        ({**BINARY, "positive_example_weight_mult": "heavy"}, "or 'balanced' or 'auto'"),
        (
            {**BINARY, "use_bias": "maybe"},
            "Hyperparameter use_bias: 'maybe' is not valid under any of the given schemas",
        ),
        ({"predictor_type": "multiclass_classifier"}, "num_classes is required for predictor_type"),
        ({**BINARY, "loss": "squared_loss"}, "'squared_loss' does not go with predictor_type 'binary_classifier'"),
        ({**REGRESSOR, "loss": "logistic"}, "'logistic' does not go with predictor_type 'regressor'"),
    ],
)
def test_hyperparameters_that_cannot_be_are_named(given: dict[str, Any], expected: str) -> None:
    with pytest.raises(UserError) as caught:
        settings({name: str(value) for name, value in given.items()})
    assert expected in str(caught.value)


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(UserError) as caught:
        settings({"predictor_type": "regression", "epochs": "x", "foo": "1"})
    assert len(str(caught.value).splitlines()) == 3


def test_what_has_no_effect_is_said() -> None:
    found = settings({"predictor_type": "regressor", "num_classes": "5", "momentum": "0.5", "huber_delta": "2"})
    assert found.without_effect == (
        "num_classes (predictor_type is regressor)",
        "momentum (optimizer is adam)",
        "huber_delta (loss is squared_loss)",
    )


def test_a_tuner_gets_one_model_and_the_sdks_spelling_is_understood() -> None:
    found = settings(
        {
            "predictor_type": "regressor",
            "_tuning_objective_metric": "validation:rmse",
            "num_models": "8",
            "use_bias": "True",
        }
    )
    assert found.num_models == 1
    assert found.use_bias
    assert settings({**BINARY, "binary_classifier_model_selection_criteria": "f1", "f_beta": "2"}).f_beta == 1.0


# --- bad data

ROWS = "1,0.5,2\n0,0.25,3\n1,0.75,4\n0,0.1,5\n"


@pytest.mark.parametrize(
    ("content", "hyperparameters", "expected"),
    [
        ("label,a,b\n" + ROWS, BINARY, "'label' is not a number"),
        (ROWS + "1,abc,2\n", BINARY, "'abc'"),
        (ROWS + "1,2\n", BINARY, "line 5: 2 fields, and line 1 has 3"),
        (ROWS + ",2,2\n", BINARY, "Got input data without labels"),
        (ROWS + "1,,2\n", BINARY, "row 5, feature 1 is missing, NaN or infinite"),
        (ROWS + "1,2,inf\n", BINARY, "row 5, feature 2 is missing, NaN or infinite"),
        (ROWS + "2,2,2\n", BINARY, "row 5: the label is 2, and a label of a binary_classifier must be 0 or 1"),
        (ROWS + "10,2,2\n", TEN_CLASSES, "row 5: the label is 10, and a label of a multiclass_classifier must be a whole number"),
        (ROWS + "0.5,2,2\n", TEN_CLASSES, "row 5: the label is 0.5"),
        ("1,2,3\n1,2,4\n", BINARY, "the train channel has rows of one class only, 1"),
        ("", BINARY, "No data in training channel path"),
        (ROWS, {**BINARY, "feature_dim": 3}, "feature_dim is 3, and"),
        (ROWS, {**BINARY, "mini_batch_size": 5}, "mini_batch_size is 5, and the training data has 4 rows"),
        (
            "".join(f"{n * 1e18},{n * 1e15}\n" for n in range(20)),
            {**REGRESSOR, "normalize_data": "false", "normalize_label": "false", "optimizer": "sgd", "learning_rate": 1},
            "training diverged",
        ),
    ],
)  # fmt: skip
def test_bad_data_is_told(tmp_path: Path, content: str, hyperparameters: dict[str, Any], expected: str) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "a.csv").write_text(content)
    text = failure(by_hand(tmp_path, {"train": {"ContentType": "text/csv"}}, **hyperparameters))
    assert expected in text
    assert "Traceback" not in text


def test_channels_must_have_the_same_features(tmp_path: Path) -> None:
    csv_folder(tmp_path / "train", *two_classes(columns=4))
    csv_folder(tmp_path / "validation", *two_classes(columns=3))
    text = failure(by_hand(tmp_path, {key: {"ContentType": "text/csv"} for key in ("train", "validation")}, **BINARY))
    assert "has 3 features, and the train channel has 4: all channels must have the same" in text


@pytest.mark.parametrize(
    ("channels", "expected"),
    [
        ({"validation": {"ContentType": "text/csv"}}, "Missing required channel: train"),
        ({"train": {"ContentType": "text/csv"}, "extra": {}}, "Extraneous channel found: extra"),
        ({"train": {"ContentType": "text/libsvm"}}, "Channel configuration for 'train' channel is not supported"),
        ({"train": {}}, "Invalid RecordIO magic"),  # CSV where RecordIO is the default
    ],
)
def test_channels_that_cannot_be_are_named(tmp_path: Path, channels: dict[str, Any], expected: str) -> None:
    for name in channels:
        csv_folder(tmp_path / name, *two_classes())
    assert expected in failure(by_hand(tmp_path, channels, **BINARY))


def test_hosts_that_do_not_come_are_waited_for_only_so_long() -> None:
    resources = Resources(current_host="localhost", hosts=("localhost", "nowhere"), network_interface="lo")
    began = time.monotonic()
    with pytest.raises(HostLost, match="nowhere did not come to localhost: look at the log"):
        Group.meet(resources, seconds=1)
    assert time.monotonic() - began < PATIENCE_SECONDS


# --- the numbers


@pytest.mark.parametrize(
    "loss",
    ["logistic", "hinge_loss", "softmax_loss", "squared_loss", "absolute_loss", "eps_insensitive_squared_loss",
     "eps_insensitive_absolute_loss", "quantile_loss", "huber_loss"],
)  # fmt: skip
def test_every_loss_has_the_derivative_that_autograd_finds(loss: str) -> None:
    kind = BINARY if loss in ("logistic", "hinge_loss") else TEN_CLASSES if loss == "softmax_loss" else REGRESSOR
    given = {**kind, "loss": loss, "quantile": 0.3, "huber_delta": 0.7, "loss_insensitivity": 0.2, "margin": 0.8}
    wanted = settings({name: str(value) for name, value in given.items()})
    function = loss_of(wanted, label_scale=1.0).function
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn((50, 3, wanted.outputs), generator=generator, requires_grad=True)
    classes = 10 if loss == "softmax_loss" else 2
    labels = torch.randint(classes, (50,), generator=generator).float()
    if kind is REGRESSOR:
        labels = torch.randn(50, generator=generator)
    values, derivatives = function(scores.detach().clone(), labels)
    (by_autograd,) = torch.autograd.grad(_definition(loss, scores, labels), scores)
    assert torch.allclose(derivatives, by_autograd, atol=1e-6)
    assert values.shape == (50, 3)
    assert float(values.sum()) == pytest.approx(float(_definition(loss, scores, labels).detach()), rel=1e-5)


def _definition(loss: str, scores: Any, labels: Any) -> Any:
    """The sum of the losses, as a textbook has it."""
    functional = torch.nn.functional
    if loss == "softmax_loss":
        return functional.cross_entropy(scores.transpose(1, 2), labels.long()[:, None].expand(-1, 3), reduction="sum")
    score, label = scores[..., 0], labels[:, None].expand(-1, 3)
    error = label - score
    beyond = functional.relu(error.abs() - 0.2)
    return {
        "logistic": lambda: functional.binary_cross_entropy_with_logits(score, label, reduction="sum"),
        "hinge_loss": lambda: functional.relu(0.8 - score * (2 * label - 1)).sum(),
        "squared_loss": (error**2).sum,
        "absolute_loss": lambda: error.abs().sum(),
        "eps_insensitive_squared_loss": (beyond**2).sum,
        "eps_insensitive_absolute_loss": beyond.sum,
        "quantile_loss": lambda: torch.maximum(0.3 * error, -0.7 * error).sum(),
        "huber_loss": lambda: functional.huber_loss(score, label, delta=0.7, reduction="sum"),
    }[loss]()


@pytest.mark.parametrize("optimizer", ["adam", "sgd", "rmsprop"])
def test_an_update_of_all_candidates_is_what_torch_does_to_each_alone(optimizer: str) -> None:
    given = {**BINARY, "optimizer": optimizer, "use_lr_scheduler": "false", "bias_lr_mult": 3, "bias_wd_mult": 0.5}
    given |= {"sgd": {"momentum": 0.8}, "adam": {"beta_1": 0.8, "beta_2": 0.95}}.get(optimizer, {})
    wanted = settings({name: str(value) for name, value in given.items()})
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn((5, 3), generator=generator, dtype=torch.float64)
    rates, decays = torch.tensor([0.1, 0.01, 0.3]).double(), torch.tensor([0.0, 0.1, 0.5]).double()
    alone = []
    for number in range(3):
        parts = [weights[:-1, number].clone().requires_grad_(), weights[-1:, number].clone().requires_grad_()]
        rate, decay = float(rates[number]), float(decays[number])
        groups = [
            {"params": [parts[0]], "lr": rate, "weight_decay": decay},
            {"params": [parts[1]], "lr": rate * 3, "weight_decay": decay * 0.5},
        ]
        maker = {
            "adam": lambda groups: torch.optim.Adam(groups, betas=(0.8, 0.95)),
            "sgd": lambda groups: torch.optim.SGD(groups, momentum=0.8),
            "rmsprop": lambda groups: torch.optim.RMSprop(groups, alpha=0.9),
        }[optimizer]
        alone.append((parts, maker(groups)))  # type: ignore[no-untyped-call]
    together = Optimizer(
        wanted, weights, rate=rates, wd=decays, l1=torch.zeros(3, dtype=torch.float64), updates_to_the_end=10
    )
    for _ in range(8):
        gradient = torch.randn((5, 3), generator=generator, dtype=torch.float64)
        for number, (parts, each) in enumerate(alone):
            parts[0].grad, parts[1].grad = gradient[:-1, number].clone(), gradient[-1:, number].clone()
            each.step()
        together.update(gradient)
    for number, (parts, _) in enumerate(alone):
        assert torch.allclose(weights[:, number], torch.cat(parts).detach(), atol=1e-7)


@pytest.mark.parametrize("loss", ["squared_loss", "absolute_loss", "eps_insensitive_squared_loss",
                                  "eps_insensitive_absolute_loss", "huber_loss"])  # fmt: skip
def test_every_regression_loss_finds_the_line(loss: str) -> None:
    generator = numpy.random.default_rng(0)
    features = (generator.standard_normal((3000, 3)) * [1, 100, 0.01] + [5, -1000, 0]).astype("f4")
    labels = features @ numpy.array([2.0, -0.05, 300.0]) + 1000
    model = fitted({"train": (features, labels)}, **REGRESSOR, loss=loss, epochs=30, huber_delta=5)
    assert numpy.allclose(model.weights[:, 0], [2, -0.05, 300], rtol=0.05)
    assert abs(model.predict(features).predicted_label - labels).mean() < 0.05 * labels.std()


@pytest.mark.parametrize("quantile", [0.1, 0.8])
def test_so_many_labels_lie_below_a_quantile(quantile: float) -> None:
    generator = numpy.random.default_rng(0)
    features = generator.standard_normal((4000, 2)).astype("f4")
    labels = features[:, 0] * 3 + generator.exponential(size=4000)
    model = fitted({"train": (features, labels)}, **REGRESSOR, loss="quantile_loss", quantile=quantile)
    assert (labels < model.predict(features).predicted_label).mean() == pytest.approx(quantile, abs=0.03)


@pytest.mark.parametrize("optimizer", ["adam", "sgd", "rmsprop"])
@pytest.mark.parametrize("loss", ["logistic", "hinge_loss"])
def test_every_optimizer_learns(optimizer: str, loss: str) -> None:
    features, labels = two_classes(2000)
    plain = LogisticRegression().fit(features, labels).score(features, labels)
    model = fitted({"train": (features * 50 + 7, labels)}, **BINARY, optimizer=optimizer, loss=loss)
    found = model.predict(features * 50 + 7)
    assert (found.predicted_label == labels).mean() > plain - 0.01
    assert found.is_probability == (loss == "logistic")


def test_sparse_rows_give_the_model_that_dense_ones_give(tmp_path: Path) -> None:
    generator = numpy.random.default_rng(0)
    features = scipy_sparse.random(800, 60, density=0.1, format="csr", dtype="f4", random_state=0)
    labels = (features @ generator.standard_normal(60) > 0).astype("f4")
    found = []
    for name, rows in (("sparse", features), ("dense", features.toarray())):
        (tmp_path / name / "train").mkdir(parents=True)
        write_recordio(tmp_path / name / "train" / "a.pbr", rows, labels)
        container = by_hand(tmp_path / name, {"train": {}}, **BINARY, num_models=4, epochs=5)
        assert main(train_here, container) == 0
        found.append(load(container.model_dir))
    assert numpy.allclose(found[0].weights, found[1].weights, atol=2e-3)
    dense = found[0].predict(features.toarray())
    assert numpy.allclose(found[0].predict(features).score, dense.score)


def test_sparse_rows_are_never_made_dense() -> None:
    """As dense rows these would be 16 GB."""
    rows, columns = 4000, 1_000_000
    generator = numpy.random.default_rng(0)
    indices = generator.integers(0, columns, (rows, 10))
    labels = (generator.random(rows) > 0.5).astype("f4")
    indices[:, 0] = labels * 17  # column 17 says all
    indices.sort(axis=1)
    features = scipy_sparse.csr_matrix(
        (numpy.ones(rows * 10, "f4"), indices.ravel(), numpy.arange(rows + 1) * 10), shape=(rows, columns)
    )
    features.sum_duplicates()
    given = {**BINARY, "num_models": "2", "epochs": "2", "mini_batch_size": "500"}
    model = fit({"train": Examples(features, labels)}, settings(given), Group())
    assert (model.predict(features).predicted_label == labels).mean() > 0.9


def test_parts_on_several_devices_give_the_model_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """With one update an epoch over all rows. Two processors stand in for two GPUs: the way through the code is the same."""
    from optml_algorithms.linear_learner import train as module

    features, labels = two_classes(501)
    given: dict[str, Any] = {**BINARY, "num_models": 3, "epochs": 4, "mini_batch_size": 501}
    one = fitted({"train": (features, labels)}, **given)
    monkeypatch.setattr(module, "devices_for", lambda _: [torch.device("cpu")] * 2)
    two = fitted({"train": (features, labels)}, **given)
    assert numpy.allclose(one.weights, two.weights, atol=1e-5)


def test_l1_drops_features_and_wd_shrinks_weights() -> None:
    generator = numpy.random.default_rng(0)
    features = generator.standard_normal((2000, 20)).astype("f4")
    labels = features[:, 0] * 3 + generator.standard_normal(2000)
    given: dict[str, Any] = {**REGRESSOR, "num_models": 1}
    sparse = fitted({"train": (features, labels)}, **given, l1=0.5, wd=0).weights[:, 0]
    assert (sparse[1:] == 0).all()
    assert sparse[0] > 1
    plain, shrunk = (fitted({"train": (features, labels)}, **given, l1=0, wd=wd).weights[0, 0] for wd in (0, 2))
    assert plain == pytest.approx(3, abs=0.1)
    assert shrunk == pytest.approx(1.5, abs=0.1)  # minimum of (w - 3)^2 + wd/2 w^2, by column deviations of about 1


def test_candidate_0_is_as_given_and_the_others_are_around_it() -> None:
    from optml_algorithms.linear_learner.candidates import Facts, candidates, number_of_models

    wanted = settings({**BINARY, "learning_rate": "0.01", "wd": "0", "l1": "0.001"})
    facts = Facts(rows=1000, row_square=10.0, negatives_per_positive=3.0, is_validated=True)
    found = candidates(wanted, facts, models=9)
    assert (found.learning_rate[0], found.wd[0], found.l1[0]) == (0.01, 0, 0.001)
    assert len(set(found.learning_rate)) >= 8
    assert (found.wd == 0).all()
    assert ((found.learning_rate >= 0.01 / 3) & (found.learning_rate <= 0.03)).all()
    few = candidates(wanted, facts, models=4)
    assert (few.learning_rate == found.learning_rate[:4]).all()
    assert number_of_models(wanted, features=100, batch_rows=1000) == 32
    many = settings({"predictor_type": "multiclass_classifier", "num_classes": "100000"})
    assert number_of_models(many, features=100, batch_rows=100) == 3  # a gigabyte otherwise
    varied = candidates(settings({**BINARY, "positive_example_weight_mult": "auto"}), facts, models=9)
    assert set(varied.positive_weight) == {1.0, 3.0}


def test_without_bias_the_line_goes_through_the_origin_and_init_settings_count() -> None:
    features, labels = two_classes()
    model = fitted({"train": (features + 5, labels)}, **BINARY, use_bias="false", epochs=2)
    assert model.bias[0] == 0
    assert model.predict(numpy.zeros((1, 5), "f4")).score[0] == 0.5
    tiny: dict[str, Any] = {**BINARY, "num_models": 1, "epochs": 1, "learning_rate": 1e-12, "unbias_data": "false"}
    normal = fitted({"train": (features, labels)}, **tiny, init_method="normal", init_sigma=2.0, init_bias=-3)
    assert abs(normal.weights).max() > 0.5
    assert normal.bias[0] == pytest.approx(-3, abs=1e-3)


def epochs_of(caplog: pytest.LogCaptureFixture) -> int:
    return caplog.text.count("#progress_metric")


def test_early_stopping_ends_training_and_patience_can_switch_it_off(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    data = {"train": two_classes(), "validation": two_classes(200, seed=0)}
    fitted(data, **BINARY, epochs=60)
    assert epochs_of(caplog) < 60
    assert "Early stop" in caplog.text
    caplog.clear()
    fitted(data, **BINARY, epochs=60, early_stopping_patience=61, num_models=2)
    assert epochs_of(caplog) == 60


def test_class_weights_make_the_rare_class_count() -> None:
    features, labels = two_classes(4000, share=0.05)
    given = {**BINARY, "binary_classifier_model_selection_criteria": "loss_function", "num_models": 4}
    plain, balanced = (
        fitted({"train": (features, labels)}, **given, positive_example_weight_mult=weight).predict(features)
        for weight in (1, "balanced")
    )
    recalls = [found.predicted_label[labels == 1].mean() for found in (plain, balanced)]
    assert recalls[1] > recalls[0] + 0.2
    assert plain.score.mean() == pytest.approx(0.05, abs=0.02)
    rare = numpy.where(labels == 1, 2, (features[:, 0] > 0).astype("f4"))
    found = [
        fitted({"train": (features, rare)}, predictor_type="multiclass_classifier", num_classes=3,
               balance_multiclass_weights=balance).predict(features).predicted_label[rare == 2]
        for balance in ("false", "true")
    ]  # fmt: skip
    assert (found[1] == 2).mean() > (found[0] == 2).mean() + 0.2


CRITERIA = [
    {"binary_classifier_model_selection_criteria": "accuracy"},
    {"binary_classifier_model_selection_criteria": "f_beta", "f_beta": "2"},
    {"binary_classifier_model_selection_criteria": "precision_at_target_recall", "target_recall": "0.7"},
    {"binary_classifier_model_selection_criteria": "recall_at_target_precision", "target_precision": "0.6"},
]


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("decimals", [1, 6])  # with many equal scores, and with none
def test_no_threshold_is_better_than_the_chosen_one(criterion: dict[str, str], decimals: int) -> None:
    wanted = settings({**BINARY, **criterion})
    generator = numpy.random.default_rng(0)
    labels = (generator.random(150) < 0.3).astype("f4")
    scores = (generator.standard_normal(150) + labels - 1).round(decimals).astype("f4")
    chosen = choose_thresholds(scores[:, None], labels, wanted)
    name = criterion["binary_classifier_model_selection_criteria"]

    def value(threshold: float) -> float:
        above = scores >= threshold
        precision = sklearn_metrics.precision_score(labels, above, zero_division=0)
        recall = sklearn_metrics.recall_score(labels, above)
        if name == "accuracy":
            return float((above == labels).mean())
        if name == "f_beta":
            return float(sklearn_metrics.fbeta_score(labels, above, beta=2, zero_division=0))
        if name == "precision_at_target_recall":
            return float(precision) if recall >= 0.7 else float(recall) - 0.7
        return float(recall) if precision >= 0.6 else float(precision) - 0.6

    best = max(value(threshold) for threshold in [*numpy.unique(scores), scores.max() + 1])
    assert chosen.values[0] == pytest.approx(best)
    assert value(chosen.thresholds[0]) == pytest.approx(best)


def test_metrics_are_scikit_learns() -> None:
    generator = numpy.random.default_rng(0)
    wanted = settings({**BINARY, "f_beta": "0.5"})
    labels = (generator.random(500) < 0.3).astype("f4")
    scores = (generator.standard_normal(500) + labels).round(1).astype("f4")
    found = binary_metrics(scores, labels, threshold=0.4, f_beta=wanted.f_beta)
    above = scores >= numpy.float32(0.4)
    assert found == pytest.approx(
        {
            "binary_classification_accuracy": sklearn_metrics.accuracy_score(labels, above),
            "binary_f_0.500": sklearn_metrics.fbeta_score(labels, above, beta=0.5),
            "precision": sklearn_metrics.precision_score(labels, above),
            "recall": sklearn_metrics.recall_score(labels, above),
            "roc_auc_score": sklearn_metrics.roc_auc_score(labels, scores),
        }
    )
    several = settings({**{name: str(value) for name, value in TEN_CLASSES.items()}, "accuracy_top_k": "3"})
    classes = generator.integers(0, 8, 500).astype("f4")  # two classes are nowhere
    table = generator.standard_normal((500, 10)).astype("f4")
    table[:, 9] = -9
    halves = sums_of(table[:200], classes[:200], several) + sums_of(table[200:], classes[200:], several)
    predicted = table.argmax(axis=1)
    expected = {
        "multiclass_accuracy": sklearn_metrics.accuracy_score(classes, predicted),
        "multiclass_top_k_accuracy_3": sklearn_metrics.top_k_accuracy_score(classes, table, k=3, labels=range(10)),
        "dcg": sklearn_metrics.dcg_score(numpy.eye(10)[classes.astype(int)], table),
        "macro_precision": sklearn_metrics.precision_score(classes, predicted, average="macro", zero_division=0),
        "macro_recall": sklearn_metrics.recall_score(classes, predicted, average="macro", zero_division=0),
        "macro_f_1.000": sklearn_metrics.f1_score(classes, predicted, average="macro", zero_division=0),
    }
    assert metrics_of(halves, several, label_scale=1.0) == pytest.approx(expected)


def test_the_model_is_found_by_its_files_and_a_damaged_one_is_told(tmp_path: Path) -> None:
    features, labels = two_classes()
    csv_folder(tmp_path / "train", features, labels)
    container = by_hand(tmp_path, {"train": {"ContentType": "text/csv"}}, **BINARY, epochs=1)
    assert main(train_here, container) == 0
    model = models.load(container.model_dir)
    assert (model.algorithm, model.task, model.feature_count) == ("linear-learner", "binary", 5)
    assert (model.predict(features).predicted_label == labels).mean() > 0.7
    with pytest.raises(UserError, match="the data has 4 features, and the model was trained on 5"):
        model.predict(features[:, :4])
    with pytest.raises(UserError, match="NaN"):
        model.predict(features * numpy.nan)
    file = container.model_dir / "model_algo-1"
    for content in (b"", b"nonsense", file.read_bytes()[:200]):
        file.write_bytes(content)
        with pytest.raises(UserError, match="no model of this linear learner, or is damaged"):
            load(container.model_dir)


@needs_facts
def test_every_line_that_aws_documents_is_printed(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    features, labels = two_classes()
    numbers = dict.fromkeys(("train", "validation", "test"), (features, features[:, 0]))
    fitted(numbers, **REGRESSOR, epochs=1)
    three = dict.fromkeys(("train", "validation", "test"), (features, labels + (features[:, 0] > 1)))
    fitted(three, predictor_type="multiclass_classifier", num_classes=3, epochs=1)
    fitted(dict.fromkeys(("train", "validation", "test"), (features, labels)), **BINARY, epochs=1)
    for each in json.loads(FACTS.read_text())["metrics"]:
        with contextlib.suppress(AttributeError):
            assert float(re.search(each["regex_or_log_line"], caplog.text)[1]) >= 0, each["name"]  # type: ignore[index]
            continue
        pytest.fail(f"no line for {each['name']}")
