"""Built-in k-NN through real jobs: samples, indices, metric lines, models; what is wrong is named."""

import gzip
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.hosts import PATIENCE_SECONDS

numpy = pytest.importorskip("numpy")
faiss = pytest.importorskip("faiss")
scipy_sparse = pytest.importorskip("scipy.sparse")
pytest.importorskip("sklearn")

from sklearn.datasets import load_diabetes, load_digits  # noqa: E402
from sklearn.model_selection import train_test_split  # noqa: E402
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors  # noqa: E402
from tests.harness import Done, run  # noqa: E402

from optml_algorithms import models  # noqa: E402
from optml_algorithms.data.recordio_writer import write_recordio  # noqa: E402
from optml_algorithms.hyperparameters import Interval  # noqa: E402
from optml_algorithms.knn.hyperparameters import HYPERPARAMETERS, TUNABLE_METRICS  # noqa: E402
from optml_algorithms.knn.model import Model, commonest, load  # noqa: E402
from optml_algorithms.knn.sample import Reservoir, shares  # noqa: E402
from optml_toolkit.container import Container, UserError, main  # noqa: E402

TABLE = Path(__file__).resolve().parents[2].parent / "shared" / "facts" / "algorithms" / "knn.json"
DIGITS = {"feature_dim": 64, "k": 5, "predictor_type": "classifier", "sample_size": 10_000}
SHARDED = "ShardedByS3Key"


@pytest.fixture(scope="session")
def table() -> dict[str, Any]:
    if not TABLE.exists():
        pytest.skip(f"the table of AWS's hyperparameters is not at {TABLE}")
    found: dict[str, Any] = json.loads(TABLE.read_text())
    return found


# ---- the declaration

OURS = {
    "_faiss_index_nprobe": "AWS's has it, though not in its guide: without it nobody could trade speed for exactness",
    "_tuning_objective_metric": "a tuner sets it",
}  # fmt: skip


def test_the_declaration_is_that_of_the_table(table: dict[str, Any]) -> None:
    declared = {each.name: each for each in HYPERPARAMETERS}
    rows = {row["name"]: row for row in table["hyperparameters"]}
    assert set(declared) == set(rows) | set(OURS)
    kinds = {"int": "integer", "categorical": "choice"}
    for name, row in rows.items():
        each = declared[name]
        assert each.kind == kinds[row["type"]], name
        assert each.required == row["required"], name
        assert each.default == row["default"], name
        assert list(each.literals) == row.get("literals", []), name
        assert bool(each.depends_on) == bool(row["depends_on"]) or name in (
            "dimension_reduction_type",
            "index_metric",
        ), name
        if row["choices"] is not None:
            assert isinstance(each.allowed, tuple), name
            assert list(each.allowed) == row["choices"], name
        else:
            assert each.allowed == Interval(low=row["min"]), name
        assert (each.tunable is not None) == row["tunable"], name
        if each.tunable is not None:
            assert (each.tunable.low, each.tunable.high) == (
                row["recommended_range"]["min"],
                row["recommended_range"]["max"],
            )
    assert {metric["name"]: metric["goal"] for metric in table["metrics"]} == TUNABLE_METRICS


# ---- through jobs


def digits() -> tuple[Any, Any, Any, Any]:
    """Training features and labels, test features and labels."""
    features, labels = load_digits(return_X_y=True)
    x, x_test, y, y_test = train_test_split(features, labels, test_size=0.2, random_state=0, stratify=labels)
    return x.astype(numpy.float32), y, x_test.astype(numpy.float32), y_test


def channels(folder: Path, data: tuple[Any, Any, Any, Any], *, files: int = 1, **how: Any) -> dict[str, Any]:
    for name, features, labels in (("train", *data[:2]), ("test", *data[2:])):
        (folder / name).mkdir(parents=True)
        for number, (x, y) in enumerate(
            zip(numpy.array_split(features, files), numpy.array_split(labels, files), strict=True)
        ):
            write_recordio(folder / name / f"part-{number}.pbr", x, y)
    return {name: {"uri": f"{folder / name}/", **how} for name in ("train", "test")}


def train(folder: Path, data: dict[str, Any], *, instance_count: int = 1, **hyperparameters: Any) -> Done:
    return run(
        folder,
        image="knn",
        entrypoint=None,
        channels=data,
        instance_count=instance_count,
        hyperparameters=DIGITS | hyperparameters,
    )


def model_of(done: Done, folder: Path) -> Model:
    assert done.describe["TrainingJobStatus"] == "Completed", done.reason + done.log
    model_dir = folder / "model"
    shutil.unpack_archive(done.folder / "model.tar.gz", model_dir)
    assert sorted(file.name for file in model_dir.iterdir()) == [
        "model_algo-1",
        "model_algo-1.json",
        "model_algo-1.labels",
    ]
    found = models.load(model_dir)  # finds out by itself whose model it is
    assert isinstance(found, Model)
    return found


def metrics(done: Done) -> dict[str, float]:
    return {metric["MetricName"]: metric["Value"] for metric in done.describe["FinalMetricDataList"]}


def test_digits_are_recognised_as_by_brute_force(tmp_path: Path, table: dict[str, Any]) -> None:
    data = digits()
    done = train(tmp_path, channels(tmp_path, data, files=3))
    model = model_of(done, tmp_path)
    exact = KNeighborsClassifier(5, algorithm="brute").fit(data[0], data[1]).predict(data[2])
    predicted = model.predict(data[2])
    assert (predicted.predicted_label == exact).mean() > 0.99  # but for ties
    accuracy = float((predicted.predicted_label == data[3]).mean())
    assert accuracy >= 0.975
    assert metrics(done) == {"test:accuracy": pytest.approx(accuracy, abs=1e-9)}
    assert model.task == "multiclass"
    assert predicted.score.shape == (360, 10)
    assert predicted.score.sum(axis=1) == pytest.approx(1)
    # What AWS's own expressions, and its guide, look for in the log.
    (published,) = (each for each in table["metrics"] if each["name"] == "test:accuracy")
    found = re.search(published["regex_or_log_line"], done.log)
    assert found is not None
    assert float(found[1]) == pytest.approx(accuracy)
    assert f"#test_score (algo-1) : ('accuracy', {found[1]})" in done.log
    assert re.search(r"^\[\d\d/\d\d/\d{4} \d\d:\d\d:\d\d INFO \d+\] #quality_metric", done.log, re.MULTILINE)


def test_flat_neighbours_are_those_of_brute_force(tmp_path: Path) -> None:
    data = digits()
    model = model_of(train(tmp_path, channels(tmp_path, data)), tmp_path)
    found = model.neighbours(data[2])
    distances, rows = NearestNeighbors(n_neighbors=5, algorithm="brute").fit(data[0]).kneighbors(data[2])
    assert found.distances == pytest.approx(distances**2, rel=1e-4, abs=1e-2)
    differ = found.rows != rows
    assert differ.mean() < 0.01  # equal distances
    assert found.distances[differ] == pytest.approx(distances[differ] ** 2, rel=1e-5)
    assert (found.labels == data[1][found.rows]).all()


def test_the_description_can_be_edited(tmp_path: Path) -> None:
    """AWS's guide: k and predictor_type of model_algo-1.json count as they are there."""
    data = digits()
    done = train(tmp_path, channels(tmp_path, data))
    assert model_of(done, tmp_path).about.k == 5
    file = tmp_path / "model" / "model_algo-1.json"
    about = json.loads(file.read_text())
    assert about["dimension_reduction"] is None
    assert about["version"] == "1.0"
    assert numpy.fromfile(tmp_path / "model" / "model_algo-1.labels", "<f4").tolist() == data[1].tolist()
    file.write_text(json.dumps(about | {"k": 2, "predictor_type": "regressor"}))
    changed = load(tmp_path / "model")
    expected = data[1][changed.neighbours(data[2]).rows].mean(axis=1)
    assert changed.task == "regression"
    assert changed.predict(data[2]).predicted_label == pytest.approx(expected)
    file.write_text(json.dumps(about | {"k": 5000}))
    with pytest.raises(UserError, match="k is 5000, and the index has 1,437 rows"):
        load(tmp_path / "model").predict(data[2])


def test_a_regressor_gives_the_mean_of_the_neighbours(tmp_path: Path) -> None:
    features, labels = load_diabetes(return_X_y=True)
    parts = train_test_split(features, labels, test_size=0.2, random_state=0)
    data = channels(tmp_path, (parts[0], parts[2], parts[1], parts[3]))
    done = train(tmp_path, data, feature_dim=10, k=20, predictor_type="regressor")
    predicted = model_of(done, tmp_path).predict(parts[1].astype(numpy.float32))
    assert metrics(done)["test:mse"] == pytest.approx(
        float(((predicted.predicted_label - parts[3]) ** 2).mean()), rel=1e-6
    )
    assert metrics(done)["test:mse"] <= 3550
    assert predicted.score is None
    assert "#test_score (algo-1) : ('mse', " in done.log


def recall(model: Model, x: Any, queries: Any, metric: str) -> float:
    """Which share of the true 5 nearest the model finds."""
    if metric == "COSINE":
        x, queries = (each / numpy.linalg.norm(each, axis=1, keepdims=True) for each in (x, queries))
    near = queries @ x.T if metric != "L2" else -((queries[:, None] - x[None]) ** 2).sum(axis=2)
    true = numpy.argsort(-near, axis=1, kind="stable")[:, :5]
    found = model.neighbours(queries).rows
    return float((found[:, :, None] == true[:, None, :]).any(axis=2).mean())


@pytest.mark.parametrize(
    ("given", "least_accuracy", "least_recall"),
    [
        ({"index_type": "faiss.IVFFlat"}, 0.96, 0.9),
        ({"index_type": "faiss.IVFPQ", "faiss_index_pq_m": 12, "faiss_index_ivf_nlists": 8}, 0.93, 0.5),
        ({"index_metric": "COSINE"}, 0.975, 0.999),
        ({"index_metric": "INNER_PRODUCT"}, 0.7, 0.99),  # which is no measure for digits
        ({"index_type": "faiss.IVFFlat", "index_metric": "INNER_PRODUCT", "_faiss_index_nprobe": 37}, 0.7, 0.99),
        ({"dimension_reduction_type": "sign", "dimension_reduction_target": 40}, 0.94, 0.3),
        ({"dimension_reduction_type": "fjlt", "dimension_reduction_target": 45, "index_metric": "COSINE"}, 0.94, 0.3),
    ],
    ids=lambda value: " ".join(map(str, value.values())) if isinstance(value, dict) else "",
)
def test_every_index_and_reduction_finds_neighbours(
    tmp_path: Path, given: dict[str, Any], least_accuracy: float, least_recall: float
) -> None:
    data = digits()
    done = train(tmp_path, channels(tmp_path, data), **given)
    model = model_of(done, tmp_path)
    assert (model.predict(data[2]).predicted_label == data[3]).mean() == pytest.approx(metrics(done)["test:accuracy"])
    assert metrics(done)["test:accuracy"] >= least_accuracy
    assert recall(model, data[0], data[2], given.get("index_metric", "L2")) >= least_recall
    kind = {"faiss.IVFFlat": faiss.IndexIVFFlat, "faiss.IVFPQ": faiss.IndexIVFPQ}.get(given.get("index_type", ""))
    index = faiss.downcast_index(model.index)
    assert isinstance(index, kind or faiss.IndexFlat)
    if kind is not None:
        assert index.nlist == given.get("faiss_index_ivf_nlists", 37)  # the root of 1,437
        assert index.nprobe == given.get("_faiss_index_nprobe", 5)
    if kind is faiss.IndexIVFPQ:
        assert index.pq.M == 12
        assert index.d == 72  # 12 does not divide 64


def test_two_hosts_make_the_model_of_one(tmp_path: Path) -> None:
    data = digits()
    one = model_of(train(tmp_path / "one", channels(tmp_path / "data", data, files=5)), tmp_path / "one")
    done = train(tmp_path / "two", channels(tmp_path / "again", data, files=5, distribution=SHARDED), instance_count=2)
    two = model_of(done, tmp_path / "two")
    vectors = [model.index.reconstruct_n(0, model.index.ntotal) for model in (one, two)]
    rows = [
        sorted(map(tuple, numpy.column_stack([x, model.labels]))) for x, model in zip(vectors, (one, two), strict=True)
    ]
    assert rows[0] == rows[1]
    predicted = two.predict(data[2]).predicted_label
    assert metrics(done)["test:accuracy"] == pytest.approx(float((predicted == data[3]).mean()))
    assert "#quality_metric: host=algo-1, test accuracy" in done.log
    assert done.log.count("#quality_metric") == 1


def test_the_sample_is_that_of_all_hosts_however_uneven_their_shards(tmp_path: Path) -> None:
    """Three files, two hosts: 958 and 479 rows. Of 300, each host gives its part, and together they are 300."""
    data = channels(tmp_path, digits(), files=3, distribution=SHARDED)
    done = train(tmp_path, data, instance_count=2, sample_size=300)
    assert model_of(done, tmp_path).index.ntotal == 300
    given_rows = re.search(r"(\d+) rows from algo-2", done.log)
    assert given_rows is not None
    assert 60 < int(given_rows[1]) < 140


@pytest.mark.parametrize("input_mode", ["File", "Pipe"])
def test_a_host_without_rows_does_no_harm(tmp_path: Path, input_mode: str) -> None:
    data = channels(tmp_path, digits(), distribution=SHARDED, input_mode=input_mode)
    done = train(tmp_path, data, instance_count=3)
    assert model_of(done, tmp_path).index.ntotal == 1437
    assert metrics(done)["test:accuracy"] >= 0.975


def test_hosts_with_the_same_rows_do_not_count_them_twice(tmp_path: Path) -> None:
    done = train(tmp_path, channels(tmp_path, digits()), instance_count=2)
    assert model_of(done, tmp_path).index.ntotal == 1437
    assert "algo-1 samples them" in done.log


def test_a_host_with_bad_data_is_the_reason_of_the_failure(tmp_path: Path) -> None:
    data = channels(tmp_path, digits(), files=2, distribution=SHARDED)
    (tmp_path / "train" / "part-1.pbr").write_bytes(b"these are no records")
    began = time.monotonic()
    done = train(tmp_path, data, instance_count=2)
    assert time.monotonic() - began < PATIENCE_SECONDS
    assert done.describe["TrainingJobStatus"] == "Failed"
    assert "/train/part-1.pbr: Invalid RecordIO magic at offset 0" in done.reason


def test_csv_in_every_input_mode_gives_the_same_model(tmp_path: Path) -> None:
    x, y, x_test, y_test = digits()
    for name, features, labels in (("train", x, y), ("test", x_test, y_test)):
        (tmp_path / name / "deep" / "er").mkdir(parents=True)
        halves = zip(numpy.array_split(features, 2), numpy.array_split(labels, 2), ("a", "deep/er/b"), strict=True)
        for half, half_labels, place in halves:
            numpy.savetxt(tmp_path / name / place, numpy.column_stack([half_labels, half]), delimiter=";", fmt="%g")
    accuracies = []
    for input_mode in ("File", "FastFile", "Pipe"):
        data = {
            name: {"uri": f"{tmp_path / name}/", "content_type": "text/csv; label_size=1", "input_mode": input_mode}
            for name in ("train", "test")
        }
        done = train(tmp_path / input_mode, data)
        model = model_of(done, tmp_path / input_mode)
        assert (model.index.reconstruct_n(0, 1437) == x).all()
        accuracies.append(metrics(done)["test:accuracy"])
    assert accuracies[0] == accuracies[1] == accuracies[2] >= 0.975


def test_a_pipe_of_gzipped_files_is_unpacked_by_the_platform(tmp_path: Path) -> None:
    x, y, _, _ = digits()
    (tmp_path / "train").mkdir()
    write_recordio(tmp_path / "plain", x, y)
    (tmp_path / "train" / "a.gz").write_bytes(gzip.compress((tmp_path / "plain").read_bytes()))
    packed = {"uri": f"{tmp_path}/train/", "input_mode": "Pipe", "compression": "Gzip"}
    assert (model_of(train(tmp_path, {"train": packed}), tmp_path).index.reconstruct_n(0, 1437) == x).all()
    done = train(tmp_path / "file", {"train": packed | {"input_mode": "File", "compression": "None"}})
    assert "a.gz is a gzip file: unpack it, or use Pipe mode" in done.reason


def test_sparse_records_give_the_model_of_dense_ones(tmp_path: Path) -> None:
    data = digits()
    sparse = (scipy_sparse.csr_matrix(data[0]), data[1], scipy_sparse.csr_matrix(data[2]), data[3])
    folder = tmp_path / "sparse"
    for name, features, labels in (("train", *sparse[:2]), ("test", *sparse[2:])):
        (folder / name).mkdir(parents=True)
        write_recordio(folder / name / "all.pbr", features, labels)
    model = model_of(train(tmp_path, {name: f"{folder / name}/" for name in ("train", "test")}), tmp_path)
    assert (model.index.reconstruct_n(0, 1437) == data[0]).all()
    dense, of_sparse = model.predict(data[2]), model.predict(sparse[2])
    assert (dense.predicted_label == of_sparse.predicted_label).all()


# ---- by hand: a real run in this process, on a tree that was made by hand, for a job each would take minutes


def by_hand(
    root: Path, files: dict[str, bytes], *, content_type: str | None = "text/csv", **hyperparameters: Any
) -> Container:
    """A container's tree: files by `channel/name`."""
    config = root / "input" / "config"
    config.mkdir(parents=True)
    (root / "model").mkdir()
    given_texts = {"feature_dim": "2", "k": "1", "predictor_type": "classifier", "sample_size": "100"}
    given_texts |= {name: str(value) for name, value in hyperparameters.items()}
    (config / "hyperparameters.json").write_text(json.dumps(given_texts))
    names = {name.partition("/")[0] for name in files}
    entry = {} if content_type is None else {"ContentType": content_type}
    (config / "inputdataconfig.json").write_text(json.dumps(dict.fromkeys(names, entry)))
    for name, content in files.items():
        file = root / "input" / "data" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    return Container(root)


def trained(container: Container) -> int:
    from optml_algorithms.knn.train import train as train_knn

    return main(train_knn, container)


CSV = b"0,1,2\n1,3,4\n0,1,1\n"


@pytest.mark.parametrize(
    ("files", "hyperparameters", "problem"),
    [
        ({"train/a": CSV}, {"k": "0"}, r"k: '0' is not valid under any of the given schemas: expected an integer in \[1"),
        ({"train/a": CSV}, {"k": "x", "sample_size": "y"}, r"(?s)k: 'x' is not valid.*sample_size: 'y' is not valid"),
        ({"train/a": CSV}, {"kk": "1"}, r"Additional properties are not allowed \('kk' was unexpected\)"),
        ({"train/a": CSV}, {"index_type": "faiss.IVF_PQ"}, r"'faiss.IVFPQ'\]; did you mean 'faiss.IVFPQ'\?"),
        ({"train/a": CSV}, {"index_type": "faiss.HNSW"}, "expected one of .*faiss.IVFPQ"),
        ({"train/a": CSV}, {"dimension_reduction_type": "sign"}, "add dimension_reduction_target"),
        ({"train/a": CSV}, {"dimension_reduction_type": "sign", "dimension_reduction_target": "2"}, "less than feature_dim"),
        ({"train/a": CSV}, {"index_type": "faiss.IVFPQ"}, "faiss_index_pq_m: index_type faiss.IVFPQ needs it"),
        ({"train/a": CSV}, {"faiss_index_pq_m": "4"}, "it is for index_type faiss.IVFPQ"),
        ({"train/a": CSV}, {"index_type": "faiss.IVFPQ", "faiss_index_pq_m": "5"}, "faiss_index_pq_m: '5' is not valid"),
        ({"train/a": CSV}, {"faiss_index_ivf_nlists": "4"}, "it is for index_type faiss.IVFFlat or faiss.IVFPQ"),
        (
            {"train/a": CSV},
            {"index_type": "faiss.IVFPQ", "faiss_index_pq_m": "2", "index_metric": "COSINE"},
            "COSINE cannot be had with index_type faiss.IVFPQ",
        ),
        ({"train/a": CSV}, {"k": "101"}, "k: 101 is more than sample_size"),
        ({"train/a": CSV}, {"k": "4"}, "k is 4, and the index has 3 rows"),
        ({"train/a": CSV}, {"index_type": "faiss.IVFFlat", "faiss_index_ivf_nlists": "9"}, "nlists is 9, and there are 3 rows"),
        ({"train/a": CSV}, {"index_type": "faiss.IVFPQ", "faiss_index_pq_m": "1"}, "at least 256 rows, and there are 3"),
        ({"train/a": CSV}, {"feature_dim": "3"}, "feature_dim is 3, and .*/a, row 1 has 2 features: set feature_dim to 2"),
        ({"train/a": CSV, "test/a": b"0,1\n"}, {}, "test/a, row 1 has 1 feature, and the train channel has 2: all channels"),
        ({"test/a": CSV}, {}, "Missing required channel: train"),
        ({"train/a": CSV, "validation/a": CSV}, {}, "Extraneous channel found: validation"),
        ({"train/_SUCCESS": b""}, {}, "No data in training channel path"),
        ({"train/a": b"0,1,2\n1,nan,4\n"}, {}, "a, row 2, feature 1 is missing, NaN or infinite"),
        ({"train/a": b"0,1,2\n1,inf,4\n"}, {}, "a, row 2, feature 1 is missing, NaN or infinite"),
        ({"train/a": b"0,1,2\n,1,4\n"}, {}, "a, row 2 has no number for its label"),
        ({"train/a": b"0,1,2\n1,x,4\n"}, {}, "a, line 2, column 2: 'x' is not a number"),
        ({"train/a": b"0,1,2\n1,4\n"}, {}, "a, line 2: 2 fields, and line 1 has 3"),
        ({"train/a": b"y,a,b\n1,4,5\n"}, {}, "If this is a header, remove it"),
        ({"train/a": CSV, "train/b": b"0,1,2,3\n"}, {}, "b, row 1 has 3 features"),
        ({"train/a": CSV, "test/a": b"0,1,2,3\n"}, {}, "test/a, row 1 has 3 features"),
        ({"train/a": CSV, "train/.b": CSV}, {}, "Hidden file found"),
        ({"train/a": b"\x1f\x8b\x08"}, {}, "is a gzip file: unpack it"),
    ],
)  # fmt: skip
def test_mistakes_are_named(
    tmp_path: Path, files: dict[str, bytes], hyperparameters: dict[str, str], problem: str
) -> None:
    container = by_hand(tmp_path, files, **hyperparameters)
    assert trained(container) == 1
    assert re.search(problem, container.failure_file.read_text())
    assert not (tmp_path / "model" / "model_algo-1").exists() or "test/a" in problem


@pytest.mark.parametrize("content_type", ["text/libsvm", "application/x-parquet", "image/png"])
def test_a_format_that_k_nn_does_not_take_is_refused(tmp_path: Path, content_type: str) -> None:
    container = by_hand(tmp_path, {"train/a": CSV}, content_type=content_type)
    assert trained(container) == 1
    assert "This algorithm reads text/csv, csv, application/x-recordio-protobuf" in container.failure_file.read_text()


def test_an_empty_test_channel_is_said_and_harmless(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert trained(by_hand(tmp_path, {"train/a": CSV, "test/_SUCCESS": b""})) == 0
    assert "nothing is scored" in capsys.readouterr().out


def test_a_classifier_of_what_look_like_numbers_to_be_predicted_is_doubted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = {}
    for name, files in {"classes": {"train/a": CSV}, "numbers": {"train/a": CSV + b"0.5,2,2\n"}}.items():
        assert trained(by_hand(tmp_path / name, files)) == 0
        said[name] = capsys.readouterr().out
    assert "labels are not whole numbers (0.5): each value is a class of its own" in said["numbers"]
    assert "whole numbers" not in said["classes"]


def test_several_labels_a_row_are_each_voted_on(tmp_path: Path) -> None:
    rows = b"0,5,1,1\n0,6,1,2\n1,6,9,9\n1,6,9,8\n"
    container = by_hand(
        tmp_path, {"train/a": rows, "test/a": b"0,5,1,1.1\n1,6,9,9\n"}, content_type="text/csv;label_size=2", k=2
    )
    assert trained(container) == 0
    model = load(tmp_path / "model")
    assert model.predict(numpy.array([[1, 1], [9, 9]], numpy.float32)).predicted_label.tolist() == [[0, 5], [1, 6]]
    assert model.neighbours(numpy.array([[9, 9]], numpy.float32)).labels.tolist() == [[[1, 6], [1, 6]]]


def test_scores_of_two_classes_are_the_share_of_class_1(tmp_path: Path) -> None:
    assert trained(by_hand(tmp_path, {"train/a": b"0,0,0\n1,0,1\n1,0,2\n0,9,9\n"}, k=3)) == 0
    model = load(tmp_path / "model")
    predicted = model.predict(numpy.zeros((1, 2), numpy.float32))
    assert model.task == "binary"
    assert predicted.score == pytest.approx([2 / 3])
    assert predicted.predicted_label.tolist() == [1]
    assert model.feature_count == 2


def test_what_cannot_be_asked_is_refused(tmp_path: Path) -> None:
    assert trained(by_hand(tmp_path, {"train/a": CSV})) == 0
    model = load(tmp_path / "model")
    with pytest.raises(UserError, match="the data has 3 features, and the model was trained with 2"):
        model.predict(numpy.zeros((1, 3), numpy.float32))
    with pytest.raises(UserError, match="row 2, feature 1 is missing"):
        model.predict(numpy.array([[0, 0], [numpy.nan, 0]], numpy.float32))
    with pytest.raises(UserError, match="row 2, feature 2 is missing"):
        model.predict(scipy_sparse.csr_matrix(numpy.array([[0, 0], [0, numpy.inf]], numpy.float32)))


def test_a_query_whose_lists_hold_too_few_rows_is_looked_up_in_all(tmp_path: Path) -> None:
    """30 rows in 15 lists, of which one is looked into: most queries would find fewer than 10 rows there."""
    random = numpy.random.default_rng(0)
    features, labels = random.normal(size=(30, 2)), numpy.arange(30)
    rows = "\n".join(",".join(map(repr, map(float, row))) for row in numpy.column_stack([labels, features]))
    lists: dict[str, Any] = {
        "index_type": "faiss.IVFFlat",
        "faiss_index_ivf_nlists": 15,
        "_faiss_index_nprobe": 1,
        "k": 10,
    }
    container = by_hand(tmp_path, {"train/a": rows.encode()}, **lists)
    assert trained(container) == 0
    found = load(tmp_path / "model").neighbours(features.astype(numpy.float32))
    assert (found.rows >= 0).all()
    assert (found.labels[:, 0] == labels).all()


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (
            lambda folder: (folder / "model_algo-1").write_bytes(b"no index"),
            "model_algo-1 is no index that faiss can read",
        ),
        (
            lambda folder: (folder / "model_algo-1.json").write_text("{"),
            "model_algo-1.json does not describe a k-NN model",
        ),
        (
            lambda folder: (folder / "model_algo-1.json").write_text('{"k": "5", "predictor_type": "x"}'),
            "does not describe",
        ),
        (
            lambda folder: (folder / "model_algo-1.json").write_text('{"k": 5, "predictor_type": "x"}'),
            "predictor_type must be",
        ),
        (lambda folder: (folder / "model_algo-1.labels").write_bytes(b"1234"), "has 1 labels, and .* has 3 rows"),
        (lambda folder: (folder / "model_algo-1.labels").unlink(), "is no model of"),
    ],
)
def test_a_broken_model_is_named(tmp_path: Path, damage: Callable[[Path], object], problem: str) -> None:
    assert trained(by_hand(tmp_path, {"train/a": CSV})) == 0
    damage(tmp_path / "model")
    with pytest.raises(UserError, match=problem):
        models.load(tmp_path / "model")


def test_training_imports_nothing_that_it_does_not_use(tmp_path: Path) -> None:
    """Dense records need neither scipy nor pyarrow; nothing needs scikit-learn, pandas, torch or protobuf."""
    container = by_hand(tmp_path, {"train/a": b""}, content_type=None)
    write_recordio(tmp_path / "input" / "data" / "train" / "a", numpy.eye(2), numpy.arange(2))
    code = (
        "import sys; from pathlib import Path; from optml_algorithms.knn.train import train; "
        "from optml_toolkit.container import Container, main; code = main(train, Container(Path(sys.argv[1]))); "
        "print(code, [name for name in 'scipy pyarrow sklearn pandas torch google xgboost optml'.split() if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(container.root)], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 []", done.stdout


# ---- parts


@settings(deadline=None)
@given(
    rows=st.lists(st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=4, max_size=4), min_size=1, max_size=5)
)
def test_the_commonest_label_wins_and_of_several_the_nearest(rows: list[list[tuple[int, bool]]]) -> None:
    rows = [[(label, known or place == 0) for place, (label, known) in enumerate(row)] for row in rows]
    classes = numpy.array([[label for label, _ in row] for row in rows])
    known = numpy.array([[is_known for _, is_known in row] for row in rows])
    for row, found in zip(rows, commonest(classes, known), strict=True):
        votes = [label for label, is_known in row if is_known]
        assert found == max(votes, key=votes.count)  # the first of the best


def taken_from(values: Any) -> Callable[[Any], tuple[Any, Any]]:
    return lambda chosen: (values[chosen], values[chosen])


def test_a_reservoir_gives_every_row_the_same_chance() -> None:
    kept = numpy.zeros(1000)
    for seed in range(300):
        reservoir = Reservoir(100, seed=seed)
        for begin in (*range(0, 500, 50), *range(500, 1000, 125)):
            count = 50 if begin < 500 else 125
            values = numpy.arange(begin, begin + count, dtype=numpy.float32)
            reservoir.offer(count, taken_from(values[:, None]))
        features, labels = reservoir.rows()
        assert len(numpy.unique(features)) == 100
        assert (features == labels).all()
        kept[features[:, 0].astype(int)] += 1
    # 30 expected each; the standard deviation of the mean of 100 rows is 0.5
    assert numpy.abs(kept.reshape(10, 100).mean(axis=1) - 30).max() < 3


def test_a_reservoir_that_is_not_full_keeps_the_order_and_draws_from_it() -> None:
    reservoir = Reservoir(100, seed=0)
    for begin in range(0, 60, 20):
        values = numpy.arange(begin, begin + 20, dtype=numpy.float32)[:, None]
        reservoir.offer(20, taken_from(values))
    assert reservoir.rows()[0][:, 0].tolist() == list(range(60))
    reservoir.draw(10)
    drawn = reservoir.rows()[0][:, 0]
    assert len(drawn) == 10
    assert (numpy.diff(drawn) > 0).all()


@given(counts=st.lists(st.integers(0, 50), min_size=1, max_size=5), sample_size=st.integers(1, 300))
def test_the_shares_of_hosts_add_up(counts: list[int], sample_size: int) -> None:
    found = shares(counts, sample_size=sample_size, seed=0)
    assert sum(found) == min(sample_size, sum(counts))
    assert all(0 <= share <= count for share, count in zip(found, counts, strict=True))
