"""CSV without a header, the labels first -> arrays. pyarrow parses; this finds the delimiter and, after an error, the place."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from optml_algorithms.data.rows import Origin, Rows
from optml_algorithms.words import counted
from optml_toolkit.container import UserError

if TYPE_CHECKING:
    import numpy

DELIMITERS = (",", ";", "\t", "|", " ")
MISSING = ("", "nan", "NaN", "NAN", "na", "NA", "null", "NULL")
RECORD = b"\x0a\x23\xd7\xce"  # the begin of RecordIO
CHUNK_BYTES = 8 << 20  # what is larger malloc maps anew each time, and half of the reading is page faults
MAX_LINE_BYTES = 512 << 20
ROWS_IN_A_BLOCK = 512  # columns are written into rows: a block of so many stays in the cache meanwhile


def csv_batches(
    stream: BinaryIO,
    source: str,
    *,
    label_size: int = 1,
    weighted: bool = False,
    least_columns: int | None = None,
    chunk_bytes: int = CHUNK_BYTES,
) -> Iterator[Rows]:
    """The rows of a CSV file or pipe, some `chunk_bytes` at a time. First `label_size` columns of labels, then one of weights
    if `weighted`, then the features; NaN where a field is empty. `least_columns`: by default one feature.

    UserError for a header line, text among the numbers, or lines of different length.
    """
    reader: _Reader | None = None
    lines = rows = 0
    for chunk in _whole_lines(stream, source, chunk_bytes):
        if reader is None and not chunk.strip():  # empty lines so far
            lines += chunk.count(b"\n")
            continue
        if reader is None:
            reader = _Reader(source, chunk, leading=label_size + weighted, least=least_columns)
        leading, features = reader.parse(chunk, lines)
        lines += chunk.count(b"\n")
        if len(features) == 0:  # empty lines only
            continue
        labels = leading[:, 0] if label_size == 1 else leading[:, :label_size]
        yield Rows(
            features=features,
            labels=labels if label_size else None,
            weights=leading[:, label_size] if weighted else None,
            origins=(Origin(source=source, first=rows, count=len(features)),),
        )
        rows += len(features)


def read_csv(files: Sequence[Path]) -> "numpy.ndarray[Any, numpy.dtype[numpy.float32]]":
    """All rows of the files, in order: float32, shape (rows, columns), NaN where a field is empty.

    UserError for a header line, text among the numbers, or files whose columns differ.
    """
    import numpy

    parts: list[Any] = []
    for file in files:
        with file.open("rb") as stream:
            for rows in csv_batches(stream, str(file), label_size=0, least_columns=2):
                if parts and rows.feature_count != parts[0].shape[1]:
                    raise UserError(
                        f"{file} has {counted(rows.feature_count, 'column')}, and {files[0]} has {parts[0].shape[1]}: "
                        "all files must have the same"
                    )
                parts.append(rows.features)
    if not parts:
        raise UserError(f"Could not determine delimiter on line '' of {files[0]}: there are no rows")
    array = numpy.empty((sum(len(part) for part in parts), parts[0].shape[1]), dtype=numpy.float32)
    begin = 0
    while parts:  # each is let go as soon as it is copied
        part = parts.pop(0)
        array[begin : begin + len(part)] = part
        begin += len(part)
    return array


def _whole_lines(stream: BinaryIO, source: str, chunk_bytes: int) -> Iterator[bytes]:
    """The bytes of a stream, cut at ends of lines."""
    carried = b""
    size = chunk_bytes
    while True:
        read = stream.read(size)
        if not read:
            break
        end = read.rfind(b"\n") + 1
        if end == 0:
            carried += read
            if len(carried) > MAX_LINE_BYTES:
                raise UserError(f"{source} is not CSV: it has a line of more than {MAX_LINE_BYTES >> 20} MiB")
            size = max(chunk_bytes, len(carried))  # twice as much each time
            continue
        yield carried + read[:end]
        carried, size = read[end:], chunk_bytes
    if carried:
        yield carried


class _Reader:
    """Knows a file's delimiter and width from its first line."""

    def __init__(self, source: str, chunk: bytes, *, leading: int, least: int | None):
        self.source, self.leading = source, leading
        self.delimiter, self.width = _delimiter_of(
            chunk if chunk.startswith(RECORD) else chunk.lstrip(b"\r\n"), source, least=least or leading + 1
        )
        if self.width <= leading:
            raise UserError(
                f"{source} has {counted(self.width, 'column')}, and so no feature: the first {leading} "
                f"{'is' if leading == 1 else 'are'} label{'' if leading == 1 else 's'} or weight"
            )
        self.names = [str(number) for number in range(self.width)]

    def parse(self, chunk: bytes, lines_before: int) -> "tuple[Any, Any]":
        """Leading columns, shape (rows, leading), and features, shape (rows, columns), both float32."""
        import numpy
        import pyarrow
        from pyarrow import csv

        line_bytes = chunk.find(b"\n") + 1 or len(chunk)
        try:
            table = csv.read_csv(
                pyarrow.BufferReader(chunk),
                read_options=csv.ReadOptions(
                    column_names=self.names, block_size=min(max(1 << 20, line_bytes * ROWS_IN_A_BLOCK), 1 << 30)
                ),
                parse_options=csv.ParseOptions(delimiter=self.delimiter),
                convert_options=csv.ConvertOptions(
                    column_types=dict.fromkeys(self.names, pyarrow.float32()), null_values=list(MISSING)
                ),
            )
        except pyarrow.ArrowInvalid as error:
            wrong = _what_is_wrong(self.source, chunk, lines_before, self.delimiter, self.width)
            raise UserError(wrong or f"{self.source} is not CSV: {error}") from error
        leading = numpy.empty((table.num_rows, self.leading), dtype=numpy.float32)
        features = numpy.empty((table.num_rows, self.width - self.leading), dtype=numpy.float32)
        begin = 0
        for batch in table.to_batches():
            end = begin + batch.num_rows
            for number, column in enumerate(batch.columns):
                values = column.to_numpy(zero_copy_only=False)  # nulls become NaN
                if number < self.leading:
                    leading[begin:end, number] = values
                else:
                    features[begin:end, number - self.leading] = values
            begin = end
        return leading, features


def _delimiter_of(begin: bytes, source: str, *, least: int) -> tuple[str, int]:
    """The delimiter and the number of columns, from the first line; at least `least` are needed."""
    raw = begin if begin.startswith(RECORD) else begin.partition(b"\n")[0]
    if raw.startswith(b"\x1f\x8b"):
        raise UserError(
            f"{source} is a gzip file: unpack it, or use Pipe mode with CompressionType Gzip where the algorithm takes it"
        )
    if raw.startswith(RECORD):
        raise UserError(
            f"{source} has records, and ContentType says text/csv: if its files are CSV, leave RecordWrapperType out; if "
            "they are RecordIO-protobuf, say application/x-recordio-protobuf"
        )
    try:
        line = raw.decode("utf-8-sig").rstrip("\r\n")
    except UnicodeDecodeError:
        raise UserError(f"{source} is not CSV: its first line is not text") from None
    for delimiter in DELIMITERS:
        fields = line.split(delimiter)
        if len(fields) > 1 and all(_is_number(field) for field in fields):
            return delimiter, len(fields)
    if least == 1 and line.strip() and _is_number(line):
        return ",", 1
    most = max(DELIMITERS[:4], key=line.count)
    if line.count(most) == 0 and (least > 1 or _is_number(line)):
        raise UserError(
            f"Could not determine delimiter on line {line[:50]!r} of {source}: a row is a label and at least one feature"
        )
    wrong = next(field for field in line.split(most) if not _is_number(field))
    raise UserError(
        f"{source}, line 1: {wrong[:50]!r} is not a number. If this is a header, remove it: SageMaker's CSV has none"
    )


def _is_number(text: str) -> bool:
    text = text.strip().strip('"')
    if text in MISSING:
        return True
    try:
        float(text)
    except ValueError:
        return False
    return "_" not in text


def _what_is_wrong(source: str, chunk: bytes, lines_before: int, delimiter: str, width: int) -> str | None:
    """The first line that cannot be right. Slow, and read only after an error."""
    for number, raw in enumerate(chunk.split(b"\n"), start=lines_before + 1):
        fields = raw.decode("utf-8", "replace").rstrip("\r").split(delimiter)
        if fields == [""]:
            continue
        if len(fields) != width:
            return f"{source}, line {number}: {len(fields)} fields, and line 1 has {width}"
        for column, field in enumerate(fields, start=1):
            if not _is_number(field):
                return f"{source}, line {number}, column {column}: {field[:50]!r} is not a number"
    return None
