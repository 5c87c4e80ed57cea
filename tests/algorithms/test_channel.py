"""A channel as rows: every format, any number of files, every input mode; what is wrong is named with its file and row."""

import gzip
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from optml_toolkit.container import Channel, UserError

numpy = pytest.importorskip("numpy")
pyarrow = pytest.importorskip("pyarrow")
scipy_sparse = pytest.importorskip("scipy.sparse")

from pyarrow import csv as pyarrow_csv  # noqa: E402
from pyarrow import parquet  # noqa: E402

from optml_algorithms.data.channel import batches, read  # noqa: E402
from optml_algorithms.data.recordio_writer import write_recordio  # noqa: E402
from optml_algorithms.data.rows import Rows, require_feature_count, require_finite, require_labels  # noqa: E402

ALL = ("recordio", "csv", "parquet", "libsvm")
CONTENT_TYPES = {
    "recordio": "application/x-recordio-protobuf",
    "csv": "text/csv",
    "parquet": "application/x-parquet",
    "libsvm": "text/libsvm",
}


def channel(folder: Path, content_type: str | None = "text/csv", *, input_mode: str = "File") -> Channel:
    return Channel(
        name=folder.name,
        folder=folder,
        content_type=content_type,
        input_mode=input_mode,
        distribution="FullyReplicated",
    )


def csv(folder: Path, text: str, name: str = "a.csv") -> Path:
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return folder


def write(file: Path, format_name: str, features: Any, labels: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    table = numpy.column_stack([labels, features])
    if format_name == "recordio":
        write_recordio(file, features, labels)
    elif format_name == "csv":
        numpy.savetxt(file, table, delimiter=",", fmt="%.9g")
    elif format_name == "parquet":
        parquet.write_table(pyarrow.table({f"c{number}": table[:, number] for number in range(table.shape[1])}), file)
    else:
        lines = (
            " ".join([repr(float(label)), *(f"{i}:{float(v)!r}" for i, v in enumerate(row))])
            for label, row in zip(labels, features, strict=True)
        )
        file.write_text("\n".join(lines) + "\n")


def found(chosen: Channel, **how: Any) -> Rows:
    rows = read(chosen, **{"formats": ALL, **how})
    assert rows is not None
    return rows


@pytest.mark.parametrize("format_name", ALL)
def test_every_format_gives_the_same_rows_over_many_files_and_folders(tmp_path: Path, format_name: str) -> None:
    random = numpy.random.default_rng(0)
    features = random.normal(size=(60, 4)).astype(numpy.float32)
    labels = random.integers(0, 3, 60).astype(numpy.float32)
    for number, place in enumerate(("a", "b/c/part", "b/d", "e")):
        rows = slice(number * 15, number * 15 + 15)
        write(tmp_path / "train" / place, format_name, features[rows], labels[rows])
    (tmp_path / "train" / "b" / "_SUCCESS").touch()
    (tmp_path / "train" / "f").touch()  # an empty file is no data
    rows_found = found(channel(tmp_path / "train", CONTENT_TYPES[format_name]))
    assert rows_found.is_sparse == (format_name == "libsvm")
    dense = rows_found.features.toarray() if rows_found.is_sparse else rows_found.features
    assert dense.dtype == rows_found.labels.dtype == numpy.float32
    assert (dense == features).all()
    assert (rows_found.labels == labels).all()
    assert rows_found.where(0) == f"{tmp_path}/train/a, row 1"
    assert rows_found.where(20) == f"{tmp_path}/train/b/c/part, row 6"
    assert rows_found.where(59) == f"{tmp_path}/train/e, row 15"


@pytest.mark.parametrize("format_name", ALL)
def test_an_empty_shard_is_no_error(tmp_path: Path, format_name: str) -> None:
    (tmp_path / "train").mkdir()
    assert read(channel(tmp_path / "train", CONTENT_TYPES[format_name]), formats=ALL) is None
    (tmp_path / "train" / "empty").touch()
    assert read(channel(tmp_path / "train", CONTENT_TYPES[format_name]), formats=ALL) is None


@pytest.mark.parametrize("format_name", ["csv", "recordio"])
def test_a_pipe_is_read_epoch_by_epoch(tmp_path: Path, format_name: str) -> None:
    files = []
    for number in range(3):
        files.append(tmp_path / f"file-{number}")
        write(files[-1], format_name, numpy.full((2000, 9), number), numpy.arange(2000))
    content = b"".join(file.read_bytes() for file in files)
    pipe = channel(tmp_path / "train", CONTENT_TYPES[format_name], input_mode="Pipe")

    def feed() -> None:
        for epoch in range(2):
            os.mkfifo(tmp_path / f"train_{epoch}")
            (tmp_path / f"train_{epoch}").write_bytes(content)

    feeder = threading.Thread(target=feed)
    feeder.start()
    for epoch in range(2):
        rows = found(pipe, epoch=epoch)
        assert rows.features.shape == (6000, 9)
        assert (rows.features[:, 0] == numpy.repeat([0, 1, 2], 2000)).all()
        assert rows.where(5999) == f"{tmp_path}/train_{epoch}, row 6,000"
    feeder.join()


@pytest.mark.parametrize("format_name", ["parquet", "libsvm"])
def test_a_pipe_of_what_cannot_be_read_from_one_is_refused(tmp_path: Path, format_name: str) -> None:
    with pytest.raises(UserError, match="use File or FastFile mode"):
        read(channel(tmp_path / "train", CONTENT_TYPES[format_name], input_mode="Pipe"), formats=ALL)


def test_columns_in_front_are_labels_and_weights(tmp_path: Path) -> None:
    folder = csv(tmp_path / "train", "1,2,3,4\n5,6,7,8\n")
    assert found(channel(folder)).labels.tolist() == [1, 5]
    assert found(channel(folder)).features.tolist() == [[2, 3, 4], [6, 7, 8]]
    two = found(channel(folder, "text/csv; label_size=2"), label_sizes=range(1, 4))
    assert two.labels.tolist() == [[1, 2], [5, 6]]
    assert two.features.tolist() == [[3, 4], [7, 8]]
    none = found(channel(folder, "text/csv;label_size=0"), label_sizes=range(2))
    assert none.labels is None
    assert none.features.tolist() == [[1, 2, 3, 4], [5, 6, 7, 8]]
    weighted = found(channel(folder), weighted=True)
    assert weighted.labels.tolist() == [1, 5]
    assert weighted.weights.tolist() == [2, 6]
    assert weighted.features.tolist() == [[3, 4], [7, 8]]


def test_one_feature_without_a_label_needs_no_delimiter(tmp_path: Path) -> None:
    folder = csv(tmp_path / "test", "1.5\n2.5\n")
    assert found(channel(folder), label_sizes=range(1)).features.tolist() == [[1.5], [2.5]]
    with pytest.raises(UserError, match=r"Could not determine delimiter on line '1.5'"):
        read(channel(folder), formats=ALL)


def test_parquet_nulls_are_missing_and_booleans_are_numbers(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    table = pyarrow.table(
        {"y": [1, 2], "a": [None, 2.5], "b": [True, False], "c": pyarrow.array([7, None], pyarrow.int8())}
    )
    parquet.write_table(table, tmp_path / "train" / "a.parquet")
    rows = found(channel(tmp_path / "train", "application/x-parquet"))
    assert numpy.array_equal(rows.features, [[numpy.nan, 1, 7], [2.5, 0, numpy.nan]], equal_nan=True)
    with pytest.raises(UserError, match=r"a.parquet, row 1, feature 1 is missing, NaN or infinite"):
        require_finite(rows)


def test_sparse_and_dense_files_of_one_channel_become_one_sparse_matrix(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    write_recordio(tmp_path / "train" / "a", numpy.ones((3, 5)), numpy.zeros(3))
    write_recordio(tmp_path / "train" / "b", scipy_sparse.csr_matrix(numpy.eye(5)), numpy.ones(5))
    rows = found(channel(tmp_path / "train", None))
    assert rows.is_sparse
    assert (rows.features.toarray() == numpy.vstack([numpy.ones((3, 5)), numpy.eye(5)])).all()


def test_a_width_that_nobody_declares_can_be_set_and_one_that_is_declared_cannot(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "a").write_text("1 0:1 3:1\n")
    rows = found(channel(tmp_path / "train", "text/libsvm"))
    assert require_feature_count(rows, 9).features.shape == (1, 9)
    with pytest.raises(UserError, match=r"feature_dim is 3, and .*a, row 1 has 4 features: set feature_dim to 4"):
        require_feature_count(rows, 3)
    with pytest.raises(
        UserError, match=r"a, row 1 has 4 features, and the train channel has 3: all channels must have the"
    ):
        require_feature_count(rows, 3, channel="test")
    folder = csv(tmp_path / "csv", "1,2,3\n")
    with pytest.raises(UserError, match="feature_dim is 9"):
        require_feature_count(found(channel(folder)), 9)


def parquet_file(name: str, **columns: Any) -> Callable[[Path], object]:
    return lambda folder: parquet.write_table(pyarrow.table(columns), folder / name)


def text_file(name: str, text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(text)


def bytes_file(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content)


@pytest.mark.parametrize(
    ("content_type", "makers", "problem"),
    [
        ("text/csv", [text_file("a", "1,2\n"), text_file("b", "1,2,3\n")], "b, row 1 has 2 features, and .*a, row 1 has 1"),
        ("text/csv", [text_file("a", "1,2\n3,4\n5,x\n")], "a, line 3, column 2: 'x' is not a number"),
        ("text/csv", [text_file("a", "1,2\n\n3,4\n5\n")], "a, line 4: 1 fields, and line 1 has 2"),
        ("text/csv", [text_file("a", "label,x\n3,4\n")], "'label' is not a number. If this is a header, remove it"),
        ("text/csv", [bytes_file("a", gzip.compress(b"1,2\n"))], "a is a gzip file: unpack it"),
        ("text/csv", [lambda folder: write_recordio(folder / "a", [[1.0]])], "a has records, and ContentType says text/csv"),
        ("text/csv", [text_file(".a", "1,2\n")], "Hidden file found in the data path! Remove that before training: .*/.a"),
        ("text/csv; label_size=2", [text_file("a", "1,2\n")], "label_size must be equal to 1"),
        ("text/csv; charset=utf-16", [text_file("a", "1,2\n")], "charset 'utf-16' cannot be read"),
        ("text/csv; header=present", [text_file("a", "1,2\n")], "unknown parameter 'header'"),
        ("image/png", [text_file("a", "1,2\n")], "not supported: ContentType 'image/png'. This algorithm reads"),
        ("application/x-parquet", [parquet_file("a", y=[1], x=["a"])], "a, column 'x' is of type string"),
        ("application/x-parquet", [parquet_file("a", y=[1])], "a has 1 column, and so no feature"),
        ("application/x-parquet", [text_file("a", "PAR1 it is not")], "Failed to load parquet data with exception: .*a"),
        (
            "application/x-parquet",
            [parquet_file("a", y=[1], x=[2], z=[3]), parquet_file("b", y=[1], z=[2], x=[3])],
            "b has other columns than .*a: in another order",
        ),
        ("application/x-recordio-protobuf", [text_file("a", "1,2\n")], "a: Invalid RecordIO magic at offset 0"),
        (None, [bytes_file("a", gzip.compress(b"1,2\n"))], "a is a gzip file: unpack it"),
    ],
)  # fmt: skip
def test_mistakes_are_named_with_their_file(
    tmp_path: Path, content_type: str | None, makers: list[Callable[[Path], object]], problem: str
) -> None:
    (tmp_path / "train").mkdir()
    for make in makers:
        make(tmp_path / "train")
    with pytest.raises(UserError, match=problem):
        read(channel(tmp_path / "train", content_type), formats=ALL)


def test_a_missing_label_is_named_with_its_row(tmp_path: Path) -> None:
    folder = csv(csv(tmp_path / "train", "1,2\n3,4\n"), "5,6\n,8\n", "b.csv")
    with pytest.raises(UserError, match=r"without labels.* .*b.csv, row 2 has no number for its label"):
        require_labels(found(channel(folder)))
    write_recordio(tmp_path / "test", [[1.0]])
    with pytest.raises(UserError, match="without labels"):
        require_labels(found(channel(tmp_path / "test", None)))


def test_infinity_is_named_with_its_row_and_feature(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a.csv, row 2, feature 1 is missing, NaN or infinite"):
        require_finite(found(channel(csv(tmp_path / "train", "1,2\n3,inf\n"))))
    with pytest.raises(UserError, match=r"a.csv, row 1: the label is missing, NaN or infinite"):
        require_finite(found(channel(csv(tmp_path / "labels", "nan,2\n3,4\n"))))
    write_recordio(tmp_path / "sparse", scipy_sparse.csr_matrix([[0, 0, 1], [0, numpy.nan, 1]]), [0, 1])
    with pytest.raises(UserError, match="sparse, row 2, feature 2 is missing"):
        require_finite(found(channel(tmp_path / "sparse", None)))


def test_a_file_is_read_in_pieces_that_are_together_the_whole(tmp_path: Path) -> None:
    """32 MiB at a time, so that whoever does not need all rows needs little memory; lines are cut in no place but their end."""
    table = numpy.random.default_rng(0).integers(0, 10**6, (600_000, 9))
    folder = tmp_path / "train"
    folder.mkdir()
    pyarrow_csv.write_csv(
        pyarrow.table({str(number): table[:, number] for number in range(9)}),
        folder / "a.csv",
        pyarrow_csv.WriteOptions(include_header=False),
    )
    parts = list(batches(channel(folder), formats=ALL))
    assert len(parts) > 1
    assert (numpy.concatenate([part.features for part in parts]) == table[:, 1:]).all()
    assert (found(channel(folder)).features == table[:, 1:]).all()
    with (folder / "a.csv").open("a") as stream:
        stream.write("1,2,3\n")
    with pytest.raises(UserError, match=r"a.csv, line 600001: 3 fields, and line 1 has 9"):
        read(channel(folder), formats=ALL)
