"""RecordIO-protobuf -> arrays, without a Python loop over values.

A file is records back to back, little-endian: magic, length, a protobuf message `Record`, zeros up to a multiple of 4.

    Record { map<string, Value> features = 1; map<string, Value> label = 2; ... }      each map has the one key "values"
    Value { oneof { Float32Tensor = 2; Float64Tensor = 3; Int32Tensor = 7; Bytes = 9 } }
    Tensor { repeated number values = 1; repeated uint64 keys = 2; repeated uint64 shape = 3 }       packed

Dense records are mostly alike but for their numbers: if every record of a chunk has the first one's bytes around its numbers,
these are one strided copy. All others are parsed in lock-step: an array holds where each record is read next, and one step reads
the next field of every record. Whatever the bytes say, a place is compared with the end of its message before it is read.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from optml_algorithms.data.rows import Origin, Rows
from optml_toolkit.container import UserError

MAGIC = 0xCED7230A
MAX_RECORD_BYTES = (1 << 29) - 1  # the length's top three bits mark parts of a record
CHUNK_BYTES = 2 << 20  # it stays in the processor's cache from one step to the next
MAX_FIELDS = 1 << 14  # of one message: each takes a step; a packed tensor has three
MAX_FIELDS_ALIKE = 16  # of one that is looked at for its layout
MAX_COLUMNS = (1 << 31) - 1

VARINT, EIGHT_BYTES, PACKED, FOUR_BYTES = 0, 1, 2, 5  # wire types
TENSORS = {
    2: ("<f4", FOUR_BYTES),
    3: ("<f8", EIGHT_BYTES),
    7: (None, VARINT),
}  # field of Value -> how a value is written
BYTES_FIELD = 9
KEY = b"values"


class _Bad(Exception):
    """`record` is its place among those at hand."""

    def __init__(self, record: Any, problem: str):
        super().__init__(problem)
        self.record, self.problem = int(record), problem


def recordio_batches(stream: BinaryIO, source: str, *, chunk_bytes: int = CHUNK_BYTES) -> Iterator[Rows]:
    """The rows of a file or pipe of RecordIO-protobuf, some `chunk_bytes` at a time; features and labels become float32.

    UserError that names the record (counted from 1) and its offset for a truncated record, a bad magic, or a message
    that is not a row of numbers with at most one vector of labels.
    """
    carried = b""
    offset = rows = 0
    size = chunk_bytes
    layout: _Layout | None = None
    while True:
        read = stream.read(size)
        chunk = carried + read if carried else read
        if not chunk:
            return
        if layout is None or len(chunk) < layout.stride or not layout.matches(chunk, 1):
            layout = _layout_of(chunk)
        frames: _Frames | None = None
        try:
            if layout is not None and layout.matches(chunk, count := len(chunk) // layout.stride):
                parsed, stop = layout.read(chunk, count), count * layout.stride
                size = max(layout.stride, chunk_bytes // layout.stride * layout.stride)
            else:
                frames = _framed(chunk, source, offset, is_all=not read)
                parsed, count, stop = _in_lock_step(frames), len(frames.begins), frames.stop
                size = chunk_bytes
        except _Bad as bad:
            begin = (
                int(frames.begins[bad.record]) - 8
                if frames is not None
                else bad.record * layout.stride
                if layout
                else 0
            )
            raise _cannot_load(
                f"{source}, record {rows + bad.record + 1:,} (offset {offset + begin:,}): {bad.problem}"
            ) from None
        if count:
            yield Rows(
                features=parsed.features,
                labels=parsed.labels,
                origins=(Origin(source=source, first=rows, count=count),),
                width_is_declared=parsed.width_is_declared,
            )
        rows += count
        offset += stop
        carried = chunk[stop:]
        if len(carried) >= size:  # a record that is longer: twice as much each time
            size = len(carried)
        elif carried and size > chunk_bytes // 2 > len(carried):
            size -= len(carried)  # the next chunk then ends where a record ends


def _cannot_load(problem: str) -> UserError:
    return UserError(f"Failed to load recordio-protobuf data with exception: {problem}")


# ---- framing


@dataclass(frozen=True, kw_only=True)
class _Frames:
    """Whole records: their bytes (uint8), and where each message in them begins and ends (int64, shape (records,))."""

    data: Any
    begins: Any
    ends: Any
    stop: int  # where the last of them ends, with its padding


def _framed(chunk: bytes, source: str, offset: int, *, is_all: bool) -> _Frames:
    """The records that are here in full. `is_all`: nothing follows."""
    import numpy

    begins, ends, stop, problem = _frame(chunk)
    if problem is None and is_all and stop < len(chunk):
        problem = "Truncated record"
    if problem is not None:
        if offset == 0 and chunk.startswith(b"\x1f\x8b"):
            raise _cannot_load(
                f"{source} is a gzip file: unpack it, or use Pipe mode with CompressionType Gzip where the algorithm takes it"
            )
        raise _cannot_load(f"{source}: {problem} at offset {offset + stop:,}")
    return _Frames(data=numpy.frombuffer(chunk, numpy.uint8, stop), begins=begins, ends=ends, stop=stop)


def _frame(chunk: bytes) -> tuple[Any, Any, int, str | None]:
    """Begins and ends of the messages that are here in full; where the first thing is that is not, and what is wrong with it."""
    import numpy

    words = numpy.frombuffer(chunk, "<u4", len(chunk) // 4)
    heads = numpy.flatnonzero(words[:-1] == MAGIC)  # records are aligned, and so is everything that might be one
    lengths = words[heads + 1].astype(numpy.int64)
    following = heads + 2 + (lengths + 3) // 4
    if len(heads) and heads[0] == 0 and (following[:-1] == heads[1:]).all():
        chain = numpy.arange(len(heads))
    else:  # numbers that look like the magic lie within records, or the chain breaks
        chain = _chain(heads, following)
    ends_here = following[chain] * 4 <= len(chunk)
    whole = int(ends_here.argmin()) if not ends_here.all() else len(chain)
    too_long = numpy.flatnonzero(lengths[chain] > MAX_RECORD_BYTES)
    if too_long.size:
        at = int(heads[chain[too_long[0]]]) * 4
        return None, None, at, "Record longer than 512 MiB, or in several parts, which is not supported,"
    begins = heads[chain[:whole]] * 4 + 8
    stop = int(following[chain[whole - 1]]) * 4 if whole else 0
    start_of_magic = chunk[stop : stop + 4]
    if not MAGIC.to_bytes(4, "little").startswith(start_of_magic):
        return None, None, stop, "Invalid RecordIO magic"
    return begins, begins + lengths[chain[:whole]], stop, None


def _chain(heads: Any, following: Any) -> Any:
    """Of the places that look like heads of records, those that follow each other from the first byte."""
    import numpy

    if not len(heads) or heads[0] != 0:
        return numpy.zeros(0, numpy.int64)
    successors = numpy.searchsorted(heads, following)
    exists = successors < len(heads)
    exists[exists] = heads[successors[exists]] == following[exists]
    jumps = numpy.where(exists, successors, -1).tolist()
    chain = [0]
    while (successor := jumps[chain[-1]]) > 0:
        chain.append(successor)
    return numpy.array(chain)


# ---- records that are alike


@dataclass(frozen=True, kw_only=True)
class _Parsed:
    features: Any
    labels: Any
    width_is_declared: bool


@dataclass(frozen=True, kw_only=True)
class _Numbers:
    """Where a record's numbers lie in it."""

    what: str  # features or label
    dtype: str
    begin: int
    end: int


@dataclass(frozen=True, kw_only=True)
class _Layout:
    """A dense record of floats: its bytes (uint8), head and padding with them, and where its numbers are, in their order."""

    record: Any
    numbers: tuple[_Numbers, ...]

    @property
    def stride(self) -> int:
        return len(self.record)

    def matches(self, chunk: bytes, count: int) -> bool:
        """Whether so many records at the begin of a chunk are alike but for their numbers."""
        table = self._table(chunk, count)
        fixed = 0
        for begin, end in (*((numbers.begin, numbers.end) for numbers in self.numbers), (self.stride, 0)):
            if (table[:, fixed:begin] != self.record[fixed:begin]).any():
                return False
            fixed = end
        return True

    def _table(self, chunk: bytes, count: int) -> Any:
        import numpy

        return numpy.frombuffer(chunk, numpy.uint8, count * self.stride).reshape(count, self.stride)

    def read(self, chunk: bytes, count: int) -> _Parsed:
        """So many records, which match."""
        import numpy

        table = self._table(chunk, count)
        found = {
            numbers.what: _float32(
                numpy.array(table[:, numbers.begin : numbers.end]).view(numbers.dtype),
                rows=numpy.arange(count),
            )
            for numbers in self.numbers
        }
        labels = found.get("label")
        if labels is not None and labels.shape[1] == 1:
            labels = labels[:, 0]
        return _Parsed(features=found["features"], labels=labels, width_is_declared=True)


def _layout_of(chunk: bytes) -> _Layout | None:
    """That of the first record; None if it is not here in full, or is not dense, or has integers, whose size varies."""
    import numpy

    head = numpy.frombuffer(chunk[:8].ljust(8, b"\0"), "<u4")
    length = int(head[1])
    stride = 8 + (length + 3) // 4 * 4
    if head[0] != MAGIC or length > MAX_RECORD_BYTES or stride > len(chunk):
        return None
    data = numpy.frombuffer(chunk, numpy.uint8, stride)
    zero = numpy.array([0])
    numbers = []
    try:
        record = _fields(data, zero + 8, zero + 8 + length, zero, most=MAX_FIELDS_ALIKE)
        for what, number in (("features", 1), ("label", 2)):
            spans = record.of(number)
            if len(spans.owner) == 0 and what == "label":
                continue
            tensor = _tensor(data, spans, zero, what, most=MAX_FIELDS_ALIKE)
            dtype = TENSORS[int(tensor.kind[0])][0]
            values = tensor.fields.of(1)
            if dtype is None or len(values.owner) != 1 or values.wire[0] != PACKED or len(tensor.fields.owner) != 1:
                return None
            begin, end = int(values.begin[0]), int(values.end[0])
            if begin == end or (end - begin) % int(dtype[2:]):
                return None
            numbers.append(_Numbers(what=what, dtype=dtype, begin=begin, end=end))
    except _Bad:
        return None
    return _Layout(record=data, numbers=tuple(sorted(numbers, key=lambda each: each.begin)))


# ---- any records, in lock-step


def _in_lock_step(frames: _Frames) -> _Parsed:
    import numpy

    data, count = frames.data, len(frames.begins)
    every = numpy.arange(count)
    record = _fields(data, frames.begins, frames.ends, every)
    features = _tensor(data, record.of(1), every, "features")
    values, lengths = _values(data, features)
    shapes, shape_sizes = _varints(data, features.fields.of(3), count)
    keys, key_counts = _varints(data, features.fields.of(2), count)
    has_shape = shape_sizes > 0
    is_sparse = (key_counts > 0) | (has_shape & (lengths == 0))
    _first(every, ~is_sparse & (lengths == 0), lambda _: "its features have no values")
    _first(
        every,
        is_sparse & (key_counts != lengths),
        lambda row: f"its features have {lengths[row]} values and {key_counts[row]} keys",
    )
    _first(every, is_sparse & (shape_sizes > 1), lambda _: "its features are sparse and have more than one dimension")
    sizes = _products(shapes, shape_sizes)  # 0 where there is no shape
    _first(every, sizes > MAX_COLUMNS, lambda row: f"its shape has {sizes[row]:,.0f} columns")
    _first(
        every,
        ~is_sparse & has_shape & (sizes != lengths),
        lambda row: f"its features have {lengths[row]} values, and its shape says {sizes[row]:,.0f}",
    )
    declared = numpy.where(is_sparse, sizes, lengths).astype(numpy.int64)
    knows_width = has_shape | ~is_sparse
    width, width_is_declared = _width(declared, knows_width, keys)
    _first(
        every,
        knows_width & (declared != width),
        lambda row: f"it has {declared[row]} features, and others have {width}: all must have the same",
    )
    labels = _labels(data, record.of(2), count)
    if not is_sparse.any():
        return _Parsed(features=values.reshape(count, width), labels=labels, width_is_declared=True)
    indptr = numpy.concatenate([[0], numpy.cumsum(lengths)])
    owners = numpy.repeat(every, lengths)
    if is_sparse.all():
        columns = keys
    else:  # a dense row among sparse ones has all its columns
        columns = numpy.arange(len(values), dtype=numpy.uint64) - indptr[owners].astype(numpy.uint64)
        columns[is_sparse[owners]] = keys
    _first(owners, columns >= width, lambda at: f"its key {columns[at]} is not below its number of columns, {width}")
    return _Parsed(
        features=_canonical_csr(values, columns, indptr, width, owners),
        labels=labels,
        width_is_declared=width_is_declared,
    )


def _first(records: Any, is_bad: Any, problem: Any) -> None:
    if is_bad.any():
        place = int(is_bad.argmax())
        raise _Bad(records[place], problem(place))


def _products(shapes: Any, sizes: Any) -> Any:
    """float64: the product of each record's dimensions, 0 where it has none."""
    import numpy

    products = numpy.zeros(len(sizes))
    some = sizes > 0
    if some.any():
        begins = (numpy.cumsum(sizes) - sizes)[some]
        products[some] = numpy.multiply.reduceat(shapes.astype(numpy.float64), begins)
    return products


def _width(declared: Any, knows_width: Any, keys: Any) -> tuple[int, bool]:
    if knows_width.any():
        return int(declared[knows_width.argmax()]), True
    highest = int(keys.max()) if len(keys) else 0
    return min(highest, MAX_COLUMNS) + 1, False


def _canonical_csr(values: Any, columns: Any, indptr: Any, width: int, owners: Any) -> Any:
    import numpy
    import scipy.sparse

    kind = numpy.int32 if len(values) < 1 << 31 else numpy.int64
    matrix = scipy.sparse.csr_matrix(
        (values, columns.astype(kind), indptr.astype(kind)), shape=(len(indptr) - 1, width), copy=False
    )
    if not matrix.has_sorted_indices:
        matrix.sort_indices()
    same = (matrix.indices[1:] == matrix.indices[:-1]) & (owners[1:] == owners[:-1])
    _first(owners[1:], same, lambda at: f"it has the key {matrix.indices[at]} twice")
    return matrix


def _labels(data: Any, spans: "_Fields", count: int) -> Any:
    """float32, shape (records,), or (records, n) for n > 1; None if no record has one."""
    import numpy

    if len(spans.owner) == 0:
        return None
    every = numpy.arange(count)
    tensor = _tensor(data, spans, every, "label")
    keys = tensor.fields.of(2)
    _first(keys.owner, keys.end > keys.begin, lambda _: "its label has keys: it must be dense")
    values, lengths = _values(data, tensor)
    _first(every, lengths == 0, lambda _: "its label has no values")
    _first(
        every,
        lengths != lengths[0],
        lambda row: f"it has {lengths[row]} labels, and others have {lengths[0]}: all must have the same",
    )
    return values if lengths[0] == 1 else values.reshape(count, int(lengths[0]))


@dataclass(frozen=True, kw_only=True)
class _Fields:
    """Fields of many messages, int64, all of one shape: whose each is, its number and wire type, where its payload lies.
    Those of one message are in their order."""

    owner: Any
    number: Any
    wire: Any
    begin: Any
    end: Any

    def of(self, *numbers: int) -> "_Fields":
        import numpy

        chosen = numpy.isin(self.number, numbers) if len(numbers) > 1 else self.number == numbers[0]
        return self if chosen.all() else self._at(chosen)

    def _at(self, chosen: Any) -> "_Fields":
        return _Fields(
            owner=self.owner[chosen],
            number=self.number[chosen],
            wire=self.wire[chosen],
            begin=self.begin[chosen],
            end=self.end[chosen],
        )

    def in_order(self) -> "_Fields":
        """Owners ascending."""
        if (self.owner[1:] >= self.owner[:-1]).all():
            return self
        return self._at(self.owner.argsort(kind="stable"))


@dataclass(frozen=True, kw_only=True)
class _Tensor:
    """One tensor of each record: which of TENSORS it is (shape (records,)), and its fields."""

    kind: Any
    fields: _Fields


def _tensor(data: Any, entries: _Fields, records: Any, what: str, *, most: int = MAX_FIELDS) -> _Tensor:
    """The tensor in the one entry, with the key "values", that each of `records` has in its map `what`."""
    import numpy

    _one_each(entries, records, f"it has no {what}", f"it has more than one {what} vector")
    entry = _fields(data, entries.begin, entries.end, entries.owner, most=most)
    keys = entry.of(1)
    _one_each(keys, records, f"its {what} has no key", f"its {what} has two keys")
    is_known = keys.end - keys.begin == len(KEY)
    known = numpy.flatnonzero(is_known)
    text = data[keys.begin[known][:, None] + numpy.arange(len(KEY))]
    is_known[known] = (text == numpy.frombuffer(KEY, numpy.uint8)).all(axis=1)
    _first(
        keys.owner,
        ~is_known,
        lambda at: (
            f"its {what} has the key {data[keys.begin[at] : keys.end[at]][:50].tobytes().decode(errors='replace')!r}, "
            "and must have the key 'values'"
        ),
    )
    value = entry.of(2)
    _one_each(value, records, f"its {what} has no value", f"its {what} has two values")
    held = _fields(data, value.begin, value.end, value.owner, most=most)
    of_bytes = held.of(BYTES_FIELD)
    _first(
        of_bytes.owner, of_bytes.number == BYTES_FIELD, lambda _: f"its {what} holds bytes, and not a vector of numbers"
    )
    tensors = held.of(*TENSORS).in_order()
    _one_each(tensors, records, f"its {what} has no values", f"its {what} has two tensors")
    return _Tensor(kind=tensors.number, fields=_fields(data, tensors.begin, tensors.end, tensors.owner, most=most))


def _one_each(fields: _Fields, records: Any, none: str, several: str) -> None:
    """Each of `records`, which are 0 to n-1, has one of these fields, and it has a length."""
    import numpy

    counts = numpy.bincount(fields.owner, minlength=len(records))
    _first(records, counts == 0, lambda _: none)
    _first(records, counts > 1, lambda _: several)
    _first(
        fields.owner, fields.wire != PACKED, lambda _: "it is not a RecordIO-protobuf record: a message has no length"
    )


def _values(data: Any, tensor: _Tensor) -> tuple[Any, Any]:
    """All values of all records as float32, record after record, and how many each has (int64)."""
    import numpy

    count = len(tensor.kind)
    spans = tensor.fields.of(1).in_order()
    kinds = numpy.unique(tensor.kind)
    if len(kinds) == 1:
        return _values_of_kind(data, spans, int(kinds[0]), count)
    lengths = numpy.zeros(count, numpy.int64)  # records of several types: each type by itself, then put in its places
    parts = []
    for kind in kinds:
        values, its_lengths = _values_of_kind(data, spans._at(tensor.kind[spans.owner] == kind), int(kind), count)
        parts.append((kind, values))
        lengths += its_lengths
    result = numpy.empty(int(lengths.sum()), numpy.float32)
    kind_of_value = numpy.repeat(tensor.kind, lengths)
    for kind, values in parts:
        result[kind_of_value == kind] = values
    return result, lengths


def _values_of_kind(data: Any, spans: _Fields, kind: int, count: int) -> tuple[Any, Any]:
    import numpy

    dtype, alone = TENSORS[kind]
    _first(
        spans.owner,
        (spans.wire != PACKED) & (spans.wire != alone),
        lambda _: "its values are of another type than their tensor",
    )
    if dtype is None:
        numbers, lengths = _decoded(data, spans, count)
        return numbers.astype(numpy.uint32).view(numpy.int32).astype(numpy.float32), lengths
    size = int(dtype[2:])
    sizes = spans.end - spans.begin
    _first(
        spans.owner, sizes % size != 0, lambda at: f"its values have {sizes[at]} bytes, which is no multiple of {size}"
    )
    lengths = numpy.bincount(spans.owner, sizes // size, minlength=count).astype(numpy.int64)
    numbers = _joined(data, spans).view(dtype)
    return _float32(numbers, rows=numpy.repeat(numpy.arange(count), lengths)), lengths


def _float32(numbers: Any, *, rows: Any) -> Any:
    """As float32, contiguous. `rows`: the record of each of the first axis of `numbers`."""
    import numpy

    if numbers.dtype == numpy.dtype("<f4"):
        return numpy.ascontiguousarray(numbers, dtype=numpy.float32)
    with numpy.errstate(over="ignore"):
        narrow = numbers.astype(numpy.float32)
    infinite = numpy.isinf(narrow)
    if infinite.any():
        lost = infinite & numpy.isfinite(numbers)
        _first(
            rows,
            lost.reshape(len(rows), -1).any(axis=1),
            lambda _: "a value is too large for float32, which training uses",
        )
    return narrow


def _varints(data: Any, spans: _Fields, count: int) -> tuple[Any, Any]:
    """uint64 numbers of all records, record after record, and how many each has (int64)."""
    import numpy

    if len(spans.owner) == 0:
        return numpy.zeros(0, numpy.uint64), numpy.zeros(count, numpy.int64)
    spans = spans.in_order()
    _first(spans.owner, (spans.wire != PACKED) & (spans.wire != VARINT), lambda _: "its keys or shape are not integers")
    return _decoded(data, spans, count)


def _decoded(data: Any, spans: _Fields, count: int) -> tuple[Any, Any]:
    import numpy

    flat = _joined(data, spans)
    is_last = flat < 0x80
    lasts = numpy.flatnonzero(is_last)
    ends = numpy.cumsum(spans.end - spans.begin)
    cut = numpy.flatnonzero(spans.end > spans.begin)
    _first(spans.owner[cut], ~is_last[ends[cut] - 1], lambda _: "a number in it is cut off")
    until = numpy.searchsorted(lasts, ends)  # numbers up to the end of each span
    counts = numpy.bincount(spans.owner, numpy.diff(until, prepend=0), minlength=count).astype(numpy.int64)
    firsts = numpy.concatenate([[0], lasts[:-1] + 1]) if len(lasts) else lasts
    sizes = lasts - firsts + 1
    too_long = sizes > 10
    if too_long.any():
        raise _Bad(
            spans.owner[numpy.searchsorted(until, too_long.argmax(), side="right")],
            "a number in it is longer than 64 bits",
        )
    numbers = (flat[firsts] & 0x7F).astype(numpy.uint64)
    longer = numpy.flatnonzero(sizes > 1)
    place = 1
    while len(longer):
        numbers[longer] |= (flat[firsts[longer] + place] & 0x7F).astype(numpy.uint64) << numpy.uint64(7 * place)
        place += 1
        longer = longer[sizes[longer] > place]
    return numbers, counts


def _joined(data: Any, spans: _Fields) -> Any:
    """The bytes of all spans, one after the other: uint8."""
    import numpy

    if len(spans.begin) == 0:
        return data[:0]
    sizes = spans.end - spans.begin
    if len(spans.begin) > 1 and (sizes == sizes[0]).all():
        steps = numpy.diff(spans.begin)
        if (steps == steps[0]).all() and steps[0] > 0:
            shape, strides = (len(sizes), int(sizes[0])), (int(steps[0]), 1)
            return numpy.ndarray(shape, numpy.uint8, data, int(spans.begin[0]), strides).reshape(-1)
    between = spans.begin - numpy.concatenate([[0], spans.end[:-1]])  # spans lie in their order, none over another
    is_inside = numpy.repeat(numpy.tile([False, True], len(sizes)), numpy.column_stack([between, sizes]).reshape(-1))
    return data[: len(is_inside)][is_inside]


def _fields(data: Any, begin: Any, end: Any, owner: Any, *, most: int = MAX_FIELDS) -> _Fields:
    """Every field of the messages that lie from `begin` to `end`, each of which belongs to a record, its `owner`."""
    import numpy

    position = begin.copy()
    found: list[tuple[Any, Any, Any, Any, Any]] = []
    active = numpy.flatnonzero(position < end)
    while len(active):
        if len(found) == most:
            raise _Bad(owner[active[0]], f"a message in it has more than {most:,} fields: pack its values")
        whose, stop = owner[active], end[active]
        tag, at = _varint(data, position[active], stop, whose)
        number, wire = tag >> 3, tag & 7
        _first(whose, number == 0, lambda _: "it is not a protobuf message")
        payload = at
        after = at + numpy.where(wire == EIGHT_BYTES, 8, 4)
        with_length = wire == PACKED
        if with_length.all():
            length, payload = _varint(data, at, stop, whose)
            after = payload + length
        else:
            is_varint = wire == VARINT
            known = with_length | is_varint | (wire == EIGHT_BYTES) | (wire == FOUR_BYTES)
            _first(whose, ~known, lambda _: "it is not a protobuf message: it has an unknown wire type")
            which = numpy.flatnonzero(with_length | is_varint)
            if len(which):
                payload = payload.copy()
                length, behind = _varint(data, at[which], stop[which], whose[which])
                payload[which] = numpy.where(with_length[which], behind, at[which])
                after[which] = numpy.where(with_length[which], behind + length, behind)
        _first(whose, after > stop, lambda _: "it is not a whole protobuf message: a field is longer than its message")
        found.append((whose, number, wire, payload, after))
        position[active] = after
        active = active[after < stop]
    if not found:
        nothing = begin[:0]
        return _Fields(owner=nothing, number=nothing, wire=nothing, begin=nothing, end=nothing)
    columns = [numpy.concatenate(column) if len(found) > 1 else column[0] for column in zip(*found, strict=True)]
    return _Fields(owner=columns[0], number=columns[1], wire=columns[2], begin=columns[3], end=columns[4])


def _varint(data: Any, position: Any, stop: Any, owner: Any) -> tuple[Any, Any]:
    """A varint at each position: int64, those from 2^35 as 2^35, which no length is; and the places behind."""
    import numpy

    _first(owner, position >= stop, lambda _: "it is not a whole protobuf message: a field is cut off")
    byte = data[position].astype(numpy.int64)
    value, after = byte & 0x7F, position + 1
    more = numpy.flatnonzero(byte >= 0x80)
    place = 1
    while len(more):
        _first(
            owner[more], after[more] >= stop[more], lambda _: "it is not a whole protobuf message: a number is cut off"
        )
        if place == 10:
            raise _Bad(owner[more[0]], "it is not a protobuf message: a number is longer than 64 bits")
        byte = data[after[more]].astype(numpy.int64)
        if place < 5:
            value[more] |= (byte & 0x7F) << (7 * place)
        else:
            value[more[(byte & 0x7F) > 0]] = 1 << 35
        after[more] += 1
        more = more[byte >= 0x80]
        place += 1
    return value, after
