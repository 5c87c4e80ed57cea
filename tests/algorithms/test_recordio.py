"""RecordIO-protobuf: byte for byte what AWS's SDK writes; any encoding of protobuf's is read; other bytes are an error."""

import io
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from optml_toolkit.container import UserError

numpy = pytest.importorskip("numpy")
scipy_sparse = pytest.importorskip("scipy.sparse")

from optml_algorithms.data.recordio import recordio_batches  # noqa: E402
from optml_algorithms.data.recordio_writer import write_recordio  # noqa: E402
from optml_algorithms.data.rows import Rows, concatenated  # noqa: E402

quick = settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
finite = st.floats(width=32, allow_nan=False, allow_infinity=False)

# Bytes that AWS's SDK wrote (formats.md 5.3): a dense record, a sparse one, one without a label.
DENSE = bytes.fromhex(
    "0a23d7ce 30000000 0a1a 0a0676616c756573 1210 120e 0a0c 0000003f 000000c0 00005040"
    "1212 0a0676616c756573 1208 1206 0a04 0000803f"
)
SPARSE = bytes.fromhex(
    "0a23d7ce 33000000 0a1d 0a0676616c756573 1213 1211 0a08 00000040 00008040 12020205 1a0106"
    "1212 0a0676616c756573 1208 1206 0a04 0000803f 00"
)
UNLABELLED = bytes.fromhex("0a23d7ce 18000000 0a16 0a0676616c756573 120c 120a 0a08 0000003f 000000c0")


def written(features: Any, labels: Any = None, **how: Any) -> bytes:
    stream = io.BytesIO()
    write_recordio(stream, features, labels, **how)
    return stream.getvalue()


def read(content: bytes, *, chunk_bytes: int = 1 << 20) -> Rows:
    rows = concatenated(recordio_batches(io.BytesIO(content), "a.pbr", chunk_bytes=chunk_bytes))
    assert rows is not None
    return rows


def dense_of(rows: Rows) -> Any:
    return rows.features.toarray() if rows.is_sparse else rows.features


def test_the_writer_writes_what_the_sdk_writes() -> None:
    assert written([[0.5, -2.0, 3.25]], [1.0]) == DENSE
    assert written(scipy_sparse.csr_matrix(([2.0, 4.0], ([0, 0], [2, 5])), shape=(1, 6)), [1.0]) == SPARSE
    assert written([[0.5, -2.0]]) == UNLABELLED
    assert b"\x0a\x0a" + b"\xff" * 9 + b"\x01" in written([[-1]], dtype="int32")  # ten bytes, as protobuf wants


def test_what_the_sdk_wrote_is_read() -> None:
    dense, sparse, unlabelled = read(DENSE * 3), read(SPARSE * 2), read(UNLABELLED * 2)
    assert (dense.features == numpy.array([[0.5, -2.0, 3.25]] * 3)).all()
    assert (dense.labels == 1).all()
    assert sparse.is_sparse
    assert (sparse.features.toarray() == numpy.array([[0, 0, 2, 0, 0, 4]] * 2)).all()
    assert unlabelled.labels is None
    assert (unlabelled.features == numpy.array([[0.5, -2.0]] * 2)).all()


@quick
@given(
    shape=st.tuples(st.integers(1, 20), st.integers(1, 150)),
    seed=st.integers(0, 1000),
    dtype=st.sampled_from(["float32", "float64", "int32"]),
    is_sparse=st.booleans(),
    label_size=st.integers(0, 3),
    chunk_bytes=st.sampled_from([7, 1000, 1 << 20]),
)
def test_what_was_written_comes_back(
    *, shape: tuple[int, int], seed: int, dtype: str, is_sparse: bool, label_size: int, chunk_bytes: int
) -> None:
    random = numpy.random.default_rng(seed)
    features: Any = random.integers(-(2**23), 2**23, shape).astype(numpy.float32)
    if is_sparse:
        features = scipy_sparse.csr_matrix(features * (random.random(shape) < 0.1))
    labels = random.integers(-5, 5, (shape[0], label_size)) if label_size else None
    rows = read(written(features, labels, dtype=dtype), chunk_bytes=chunk_bytes)
    assert rows.is_sparse == is_sparse
    assert rows.feature_count == shape[1]
    assert rows.features.dtype == numpy.float32
    assert (dense_of(rows) == (features.toarray() if is_sparse else features)).all()
    if labels is None:
        assert rows.labels is None
    else:
        assert rows.labels.dtype == numpy.float32
        assert (rows.labels.reshape(shape[0], -1) == labels).all()
    assert rows.where(shape[0] - 1) == f"a.pbr, row {shape[0]}"


# ---- every encoding that protobuf allows, by an encoder of our own


def varint(number: int) -> bytes:
    out = b""
    number &= (1 << 64) - 1
    while number >= 0x80:
        out += bytes([number & 0x7F | 0x80])
        number >>= 7
    return out + bytes([number])


def framed(message: bytes) -> bytes:
    return struct.pack("<II", 0xCED7230A, len(message)) + message + b"\0" * (-len(message) % 4)


def delimited(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


UNKNOWN = (
    b"",
    varint(12 << 3) + b"\x81\x01",
    varint(13 << 3 | 1) + b"12345678",
    varint(14 << 3 | 5) + b"1234",
    delimited(15, b"new"),
)


@dataclass
class Row:
    values: list[int]
    keys: list[int] | None
    shape: int | None
    label: int
    kind: int  # 2 float32, 3 float64, 7 int32
    style: int  # packed, one by one, packed in two pieces
    unknown: bytes
    label_first: bool

    def tensor(self, values: list[int], keys: list[int] | None, shape: int | None) -> bytes:
        encode = {2: lambda v: struct.pack("<f", v), 3: lambda v: struct.pack("<d", v), 7: varint}[self.kind]
        alone = {2: 5, 3: 1, 7: 0}[self.kind]

        def field(number: int, wire: int, encoded: list[bytes]) -> bytes:
            if self.style == 1:
                return b"".join(varint(number << 3 | wire) + each for each in encoded)
            half = len(encoded) // 2 if self.style == 2 else 0
            pieces = [encoded[:half], encoded[half:]]
            return b"".join(delimited(number, b"".join(piece)) for piece in pieces if piece)

        content = field(1, alone, [encode(value) for value in values])
        if keys is not None:
            content = field(2, 0, [varint(key) for key in keys]) + content
        if shape is not None:
            content += field(3, 0, [varint(shape)])
        return delimited(self.kind, content + self.unknown)

    def encoded(self) -> bytes:
        def entry(number: int, tensor: bytes) -> bytes:
            return delimited(number, self.unknown.join([delimited(1, b"values"), delimited(2, tensor)]))

        parts = [
            entry(1, self.tensor(self.values, self.keys, self.shape)),
            entry(2, self.tensor([self.label], None, None)),
        ]
        return framed(self.unknown.join(reversed(parts) if self.label_first else parts))


@st.composite
def any_row(draw: st.DrawFn, width: int) -> Row:
    is_sparse = draw(st.booleans())
    keys = sorted(draw(st.sets(st.integers(0, width - 1)))) if is_sparse else None
    count = width if keys is None else len(keys)
    return Row(
        values=draw(st.lists(st.integers(-100, 100), min_size=count, max_size=count)),
        keys=keys,
        shape=width if is_sparse else draw(st.sampled_from([None, width])),
        label=draw(st.integers(-3, 3)),
        kind=draw(st.sampled_from([2, 3, 7])),
        style=draw(st.integers(0, 2)),
        unknown=draw(st.sampled_from(UNKNOWN)),
        label_first=draw(st.booleans()),
    )


@quick
@given(
    rows=st.sampled_from([1, 3, 130]).flatmap(
        lambda width: st.tuples(st.just(width), st.lists(any_row(width), min_size=1, max_size=6))
    ),
    repeats=st.integers(1, 3),
)
def test_any_encoding_that_protobuf_allows_is_read(rows: tuple[int, list[Row]], repeats: int) -> None:
    width, given_rows = rows
    expected = numpy.zeros((len(given_rows), width))
    for number, row in enumerate(given_rows):
        expected[number, row.keys if row.keys is not None else range(width)] = row.values
    got = read(b"".join(row.encoded() for row in given_rows) * repeats)
    assert (dense_of(got) == numpy.tile(expected, (repeats, 1))).all()
    assert (got.labels == [row.label for row in given_rows] * repeats).all()


# ---- anything else is an error that says where


def tensor(*fields: bytes, kind: int = 2) -> bytes:
    return delimited(1, delimited(1, b"values") + delimited(2, delimited(kind, b"".join(fields))))


TWO_VALUES = delimited(1, struct.pack("<2f", 1, 2))


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (DENSE + b"\x0b" + DENSE[1:], "Invalid RecordIO magic at offset 56"),
        (DENSE + b"x", "Invalid RecordIO magic at offset 56"),
        (DENSE + DENSE[:5], "Truncated record at offset 56"),
        (DENSE + DENSE[:-1], "Truncated record at offset 56"),
        (SPARSE[:-1], "Truncated record at offset 0"),
        (struct.pack("<II", 0xCED7230A, 1 << 29) + b"1234", "in several parts, which is not supported, at offset 0"),
        (b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03", "gzip"),
        (DENSE + framed(b""), "record 2 (offset 56): it has no features"),
        (framed(delimited(1, delimited(1, b"values"))), "record 1 (offset 0): its features has no value"),
        (framed(delimited(1, delimited(1, b"values") + delimited(2, b""))), "record 1 (offset 0): its features has no values"),
        (framed(tensor()), "its features have no values"),
        (framed(delimited(1, delimited(1, b"pixels") + delimited(2, b""))), "has the key 'pixels', and must have"),
        (framed(tensor(TWO_VALUES) * 2), "more than one features vector"),
        (framed(tensor(b"x", kind=9)), "holds bytes"),
        (framed(tensor(delimited(1, b"12345"))), "5 bytes, which is no multiple of 4"),
        (framed(tensor(TWO_VALUES, delimited(3, b"\x03"))), "2 values, and its shape says 3"),
        (framed(tensor(TWO_VALUES, delimited(2, b"\x01"))), "2 values and 1 keys"),
        (framed(tensor(TWO_VALUES, delimited(2, b"\x01\x07"), delimited(3, b"\x07"))), "key 7 is not below its number of"),
        (framed(tensor(TWO_VALUES, delimited(2, b"\x01\x01"), delimited(3, b"\x07"))), "the key 1 twice"),
        (framed(tensor(TWO_VALUES, delimited(2, b"\x01" + b"\xff" * 9 + b"\x01"))), "is not below its number of columns"),
        (framed(tensor(TWO_VALUES, delimited(2, b"\x01\x81"))), "cut off"),
        (framed(tensor(TWO_VALUES, delimited(2, b"\x01" + b"\x81" * 10 + b"\x01"))), "longer than 64 bits"),
        (framed(tensor(TWO_VALUES, delimited(3, b"\xff" * 9 + b"\x01"))), "columns"),
        (framed(tensor(delimited(1, struct.pack("<d", 1e300)), kind=3)), "too large for float32"),
        (framed(b"\x0a\xff\xff\xff\xff\x0f"), "longer than its message"),
        (framed(b"\x0a" + b"\xff" * 11), "longer than 64 bits"),
        (framed(b"\x0b"), "unknown wire type"),
        (framed(b"\x00\x00"), "not a protobuf message"),
        (DENSE + written([[1.0, 2.0, 3.0]]), "row 2 has no labels, and a.pbr, row 1 has"),
        (DENSE + written([[1.0, 2.0]], [0.0]), "row 2 has 2 features, and a.pbr, row 1 has 3"),
        (DENSE + written([[1.0, 2.0, 3.0]], [[0.0, 1.0]]), "record 2 (offset 56): it has 2 labels, and others have 1"),
        (SPARSE + framed(tensor(TWO_VALUES, delimited(2, b"\x01\x02"), delimited(3, b"\x05"))), "it has 5 features, and others"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_a_bad_record_is_named(content: bytes, problem: str) -> None:
    with pytest.raises(UserError) as error:
        read(content)
    assert "a.pbr" in str(error.value)
    assert problem in str(error.value)


def test_the_place_is_that_in_the_file_also_when_it_is_read_in_pieces() -> None:
    good = written(numpy.ones((100, 3)), numpy.ones(100))
    for chunk_bytes in (10, 100, 1000):
        with pytest.raises(UserError, match=r"record 101 \(offset 5,600\): it has no features"):
            read(good + framed(b"") + good, chunk_bytes=chunk_bytes)
        with pytest.raises(UserError, match="Invalid RecordIO magic at offset 5,600"):
            read(good + b"xxxx" + good, chunk_bytes=chunk_bytes)


def test_a_row_whose_width_nobody_declares_takes_the_widest() -> None:
    narrow = framed(tensor(TWO_VALUES, delimited(2, b"\x00\x01")))
    wide = framed(tensor(TWO_VALUES, delimited(2, b"\x02\x09")))
    rows = read(narrow + wide, chunk_bytes=1)
    assert rows.features.shape == (2, 10)
    assert not rows.width_is_declared


def test_the_magic_among_the_numbers_is_no_record() -> None:
    number = numpy.frombuffer(struct.pack("<I", 0xCED7230A), numpy.float32)[0]
    features = numpy.full((50, 7), number)
    for chunk_bytes in (16, 1 << 20):
        assert (read(written(features, numpy.ones(50)), chunk_bytes=chunk_bytes).features == number).all()


SAMPLES = (
    DENSE * 3,
    SPARSE * 3,
    written(numpy.ones((4, 2)), numpy.ones(4), dtype="int32"),
    written(numpy.ones((4, 2)), numpy.ones(4), dtype="float64"),
    DENSE + written(scipy_sparse.csr_matrix(numpy.eye(3)), [1.0, 2.0, 3.0]),
)


@settings(quick, max_examples=500)
@given(
    sample=st.sampled_from(SAMPLES),
    changes=st.lists(st.tuples(st.integers(0, 250), st.integers(0, 255)), max_size=4),
    cut=st.integers(0, 250),
    chunk_bytes=st.sampled_from([5, 60, 1 << 20]),
)
def test_any_damage_is_rows_or_an_error_that_names_the_file(
    sample: bytes, changes: list[tuple[int, int]], cut: int, chunk_bytes: int
) -> None:
    damaged = bytearray(sample)
    for place, value in changes:
        damaged[place % len(damaged)] = value
    del damaged[cut if cut % 3 == 0 else len(damaged) :]
    check(bytes(damaged), chunk_bytes)


@quick
@given(content=st.binary(min_size=1, max_size=300), is_framed=st.booleans())
def test_any_bytes_are_rows_or_an_error_that_names_the_file(content: bytes, is_framed: bool) -> None:
    check(framed(content) if is_framed else content, 1 << 20)


def check(content: bytes, chunk_bytes: int) -> None:
    try:
        rows = concatenated(recordio_batches(io.BytesIO(content), "a.pbr", chunk_bytes=chunk_bytes))
    except UserError as error:
        assert "a.pbr" in str(error)  # noqa: PT017
    else:
        assert rows is None or rows.features.shape[0] == len(rows)
        assert rows is None or rows.labels is None or len(rows.labels) == len(rows)


def test_a_message_of_millions_of_fields_ends_soon() -> None:
    """Each field by itself takes a step: there is a limit to them."""
    with pytest.raises(UserError, match="more than 16,384 fields"):
        read(framed(b"\x60\x01" * 500_000))


def test_the_writer_refuses_what_it_cannot_write() -> None:
    with pytest.raises(ValueError, match="two dimensions"):
        written([1.0, 2.0])
    with pytest.raises(ValueError, match="labels must have shape"):
        written([[1.0], [2.0]], [1.0])
    with pytest.raises(ValueError, match="not whole"):
        written([[0.5]], dtype="int32")
    with pytest.raises(ValueError, match="dtype must be one of"):
        written([[0.5]], dtype="float16")


def test_a_file_appears_whole_and_has_the_records(tmp_path: Path) -> None:
    write_recordio(tmp_path / "a.pbr", [[0.5, -2.0, 3.25]], [1.0])
    assert [file.name for file in tmp_path.iterdir()] == ["a.pbr"]
    assert (tmp_path / "a.pbr").read_bytes() == DENSE
