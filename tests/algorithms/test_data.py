"""Readers of the algorithms: whatever a file holds, arrays or a UserError that names it come out."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from optml_toolkit.container import UserError

numpy = pytest.importorskip("numpy")

from optml_algorithms.data.csv import read_csv  # noqa: E402
from optml_algorithms.data.libsvm import read_libsvm  # noqa: E402

quick = settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
floats = st.floats(width=32, allow_nan=False, allow_infinity=False)
csv_like = st.lists(
    st.lists(st.one_of(floats.map(repr), st.sampled_from(["", "nan", "1e5", "x", '"1"', "inf", " 2", "0x1", "1_0"]))),
    min_size=1,
).map(lambda rows: "\n".join(",".join(row) for row in rows).encode())
libsvm_words = st.sampled_from(
    ["1", "0:2", "1:2", "3:4", "2:x", "qid:1", "qid:x", "#", "a", "-1:2", "1:", ":1", "99999999999:1"]
)
libsvm_like = st.lists(st.lists(libsvm_words), min_size=1).map(
    lambda rows: "\n".join(" ".join(row) for row in rows).encode()
)


@quick
@given(content=st.one_of(st.binary(min_size=1, max_size=200), csv_like))
def test_any_bytes_are_csv_or_an_error_that_names_the_file(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "a.csv"
    file.write_bytes(content)
    try:
        table = read_csv([file])
    except UserError as error:
        assert str(file) in str(error)  # noqa: PT017
    else:
        assert table.ndim == 2
        assert table.dtype == numpy.float32
        assert table.shape[1] > 1


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"1 0:1\n1 99999999999:3\n", "line 2: '99999999999:3' does not belong in a line of libsvm"),
        (b"\x1f\x8b\x08\x00", "a.libsvm is a gzip file: unpack it"),
    ],
)
def test_what_cannot_be_libsvm_is_named_with_its_place(tmp_path: Path, content: bytes, expected: str) -> None:
    (tmp_path / "a.libsvm").write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_libsvm([tmp_path / "a.libsvm"])
    assert expected in str(caught.value)


@quick
@given(content=st.one_of(st.binary(min_size=1, max_size=200), libsvm_like))
def test_any_bytes_are_libsvm_or_an_error_that_names_the_file(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "a.libsvm"
    file.write_bytes(content)
    try:
        sparse = read_libsvm([file])
    except UserError as error:
        assert str(file) in str(error)  # noqa: PT017
    else:
        assert sparse.features.shape[0] == len(sparse.labels)
        assert sparse.weights is None or len(sparse.weights) == len(sparse.labels)


@quick
@given(
    rows=st.integers(1, 5).flatmap(
        lambda width: st.lists(st.lists(floats, min_size=width + 1, max_size=width + 1), min_size=1, max_size=20)
    ),
    delimiter=st.sampled_from([",", ";", "\t", "|"]),
    end=st.sampled_from(["\n", "\r\n"]),
)
def test_numbers_come_back_as_they_were_written(
    tmp_path: Path, rows: list[list[float]], delimiter: str, end: str
) -> None:
    file = tmp_path / "a.csv"
    file.write_text(end.join(delimiter.join(map(repr, row)) for row in rows) + end, newline="")
    assert (read_csv([file]) == numpy.array(rows, dtype=numpy.float32)).all()
    sparse_file = tmp_path / "a.libsvm"
    lines = (" ".join([repr(row[0]), *(f"{i}:{value!r}" for i, value in enumerate(row[1:]))]) for row in rows)
    sparse_file.write_text(end.join(lines) + end, newline="")
    sparse = read_libsvm([sparse_file])
    assert (sparse.features.toarray() == numpy.array([row[1:] for row in rows], dtype=numpy.float32)).all()
    assert numpy.allclose(sparse.labels, [row[0] for row in rows])
