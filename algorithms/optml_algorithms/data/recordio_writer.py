"""Arrays -> RecordIO-protobuf, as AWS's SDK writes it: one vector of features and at most one of labels per record."""

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from optml_algorithms.data.recordio import KEY, MAGIC, MAX_RECORD_BYTES

FIELDS = {"float32": 2, "float64": 3, "int32": 7}  # of Value
BATCH_BYTES = 16 << 20


def write_recordio(target: Path | str | BinaryIO, features: Any, labels: Any = None, *, dtype: str = "float32") -> None:
    """Write rows to a file (which appears whole, under its name) or to a stream.

    `features`: shape (rows, columns), a numpy array (or what becomes one), or a scipy.sparse matrix, of which only what is stored
    is written. `labels`: shape (rows,) or (rows, n). `dtype`: float32, which is what AWS's algorithms take, float64 or int32; the
    numbers of features and labels are converted to it. ValueError for shapes that do not fit, or numbers that int32 cannot hold.
    """
    if dtype not in FIELDS:
        raise ValueError(f"dtype must be one of {', '.join(FIELDS)}, got {dtype!r}")
    if hasattr(target, "write"):
        for piece in _pieces(features, labels, dtype):
            target.write(piece)
        return
    file = Path(target)
    beside = file.with_name(f".{file.name}.writing")
    with beside.open("wb") as stream:
        for piece in _pieces(features, labels, dtype):
            stream.write(piece)
    beside.replace(file)


def _pieces(features: Any, labels: Any, dtype: str) -> Iterator[Any]:
    import numpy

    is_sparse = hasattr(features, "tocsr")
    features = features.tocsr() if is_sparse else numpy.asarray(features)
    if features.ndim != 2:
        raise ValueError(f"features must have two dimensions, (rows, columns), got {features.ndim}")
    if labels is not None:
        labels = numpy.asarray(labels)
        if labels.ndim not in (1, 2) or len(labels) != features.shape[0]:
            raise ValueError(
                f"labels must have shape ({features.shape[0]},) or ({features.shape[0]}, n), got {labels.shape}"
            )
        labels = _converted(labels.reshape(len(labels), -1), dtype)
    row_bytes = 8 * max(1, features.nnz // max(1, features.shape[0]) if is_sparse else features.shape[1]) + 64
    step = max(1, BATCH_BYTES // row_bytes)
    for begin in range(0, features.shape[0], step):
        part = features[begin : begin + step]
        part_labels = None if labels is None else labels[begin : begin + step]
        if not is_sparse and dtype != "int32":
            yield _dense_floats(_converted(part, dtype), part_labels, dtype)
        else:
            yield from _one_by_one(part, part_labels, dtype, is_sparse=is_sparse)


def _converted(values: Any, dtype: str) -> Any:
    import numpy

    if dtype != "int32":
        return numpy.ascontiguousarray(values, dtype="<f4" if dtype == "float32" else "<f8")
    numbers = numpy.asarray(values).astype(numpy.int64)
    if (numbers != values).any() or (numbers < -(2**31)).any() or (numbers >= 2**31).any():
        raise ValueError("dtype is int32, and there are values that are not whole or need more than 32 bits")
    return numbers


def _dense_floats(features: Any, labels: Any, dtype: str) -> Any:
    """Records that differ in nothing but their numbers: the first one's bytes, repeated, and the numbers laid over them."""
    import numpy

    parts = {"features": features, "label": labels}
    first = _record([part if part is None else part[0].tobytes() for part in parts.values()], dtype)
    table = numpy.empty((len(features), sum(map(len, first))), numpy.uint8)
    begin = 0
    for piece, part in zip(first, (None, features, None, None, labels, None), strict=True):
        columns = table[:, begin : begin + len(piece)]
        columns[:] = (
            numpy.frombuffer(piece, numpy.uint8) if part is None else part.view(numpy.uint8).reshape(len(part), -1)
        )
        begin += len(piece)
    return table


def _one_by_one(features: Any, labels: Any, dtype: str, *, is_sparse: bool) -> Iterator[bytes]:
    """Records whose integers take more or fewer bytes each: numbers are encoded all at once, records put together one by one."""
    import numpy

    count = features.shape[0]
    per_row = numpy.diff(features.indptr) if is_sparse else numpy.full(count, features.shape[1])
    values = _sliced(_converted(features.data if is_sparse else features, dtype).reshape(-1), per_row)
    keys = _sliced(features.indices.astype(numpy.int64), per_row) if is_sparse else [b""] * count
    shape = _varint(features.shape[1]) if is_sparse else b""
    rows_of_labels: list[bytes | None] = [None] * count
    if labels is not None:
        rows_of_labels = list(_sliced(labels.reshape(-1), numpy.full(count, labels.shape[1])))
    for row in range(count):
        yield b"".join(_record([values[row], rows_of_labels[row]], dtype, keys=keys[row], shape=shape))


def _sliced(numbers: Any, per_row: Any) -> list[bytes]:
    """The packed numbers of each row: varints if they are integers."""
    import numpy

    ends = numpy.cumsum(per_row)
    if numbers.dtype.kind == "f":
        flat, ends = numbers.tobytes(), ends * numbers.itemsize
    else:
        encoded, sizes = _varints(numbers)
        flat, ends = encoded.tobytes(), numpy.concatenate([[0], numpy.cumsum(sizes)])[ends]
    begins = numpy.concatenate([[0], ends[:-1]])
    return [flat[begin:end] for begin, end in zip(begins.tolist(), ends.tolist(), strict=True)]


def _varints(numbers: Any) -> tuple[Any, Any]:
    """int64 -> their varints one after the other (uint8), and the size of each; ten bytes for negative ones, as in protobuf."""
    import numpy

    rest = numbers.astype(numpy.int64).view(numpy.uint64)
    sizes = numpy.ones(len(rest), numpy.int64)
    for place in range(1, 10):
        sizes += rest >= numpy.uint64(1 << (7 * place))
    begins = numpy.cumsum(sizes) - sizes
    encoded = numpy.empty(int(sizes.sum()), numpy.uint8)
    for place in range(int(sizes.max(initial=0))):
        here = numpy.flatnonzero(sizes > place)
        seven = (rest[here] >> numpy.uint64(7 * place)).astype(numpy.uint8) & 0x7F
        encoded[begins[here] + place] = seven | ((sizes[here] > place + 1).astype(numpy.uint8) << 7)
    return encoded, sizes


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number >= 0x80:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*encoded, number])


def _record(
    packed: Sequence[bytes | None], dtype: str, *, keys: bytes = b"", shape: bytes = b""
) -> tuple[bytes, bytes, bytes, bytes, bytes, bytes]:
    """A framed record in six pieces: up to the features' values, these, keys and shape, up to the label's, these, padding."""
    values, label = packed
    assert values is not None
    after = b"".join(_head(number, len(content)) + content for number, content in ((2, keys), (3, shape)) if content)
    before = _up_to(1, len(values), dtype, len(after))
    before_label = b"" if label is None else _up_to(2, len(label), dtype, 0)
    label = label or b""
    length = len(before) + len(values) + len(after) + len(before_label) + len(label)
    if length > MAX_RECORD_BYTES:
        raise ValueError(f"a row takes {length:,} bytes, and a record can have {MAX_RECORD_BYTES:,}: write it sparse")
    head = MAGIC.to_bytes(4, "little") + length.to_bytes(4, "little")
    return head + before, values, after, before_label, label, b"\0" * (-length % 4)


@functools.lru_cache(maxsize=4096)
def _head(number: int, size: int) -> bytes:
    return bytes([number << 3 | 2]) + _varint(size)


@functools.lru_cache(maxsize=4096)
def _up_to(map_number: int, values: int, dtype: str, after: int) -> bytes:
    """What stands before so many bytes of values in features (map 1) or label (map 2); `after` bytes follow in the tensor."""
    head = _head(1, values) if values else b""
    tensor = _head(FIELDS[dtype], len(head) + values + after) + head
    entry = _head(1, len(KEY)) + KEY + _head(2, len(tensor) + values + after) + tensor
    return _head(map_number, len(entry) + values + after) + entry
