"""CSV without a header, the label first -> arrays. pyarrow parses; this finds the delimiter and, after an error, the place."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optml_toolkit.container import UserError

if TYPE_CHECKING:
    import numpy

DELIMITERS = (",", ";", "\t", "|", " ")
MISSING = ("", "nan", "NaN", "NAN", "na", "NA", "null", "NULL")
FIRST_LINE_BYTES = 16 << 20


def read_csv(files: Sequence[Path]) -> "numpy.ndarray[Any, numpy.dtype[numpy.float32]]":
    """All rows of the files, in order: float32, shape (rows, columns), NaN where a field is empty.

    UserError for a header line, text among the numbers, or files whose columns differ.
    """
    import numpy

    tables = [_read(file) for file in files]
    widths = [table.num_columns for table in tables]
    for file, width in zip(files, widths, strict=True):
        if width != widths[0]:
            raise UserError(f"{file} has {width} columns, and {files[0]} has {widths[0]}: all files must have the same")
    array = numpy.empty((sum(table.num_rows for table in tables), widths[0]), dtype=numpy.float32)
    begin = 0
    while tables:  # each is let go as soon as it is copied
        table = tables.pop(0)
        end = begin + table.num_rows
        for number in range(table.num_columns):
            column = table.column(number)
            array[begin:end, number] = column.to_numpy()  # nulls become NaN
        begin = end
    return array


def _read(file: Path) -> Any:
    import pyarrow
    from pyarrow import csv

    delimiter, width = delimiter_of(file)
    names = [str(number) for number in range(width)]
    try:
        return csv.read_csv(
            file,
            read_options=csv.ReadOptions(column_names=names),
            parse_options=csv.ParseOptions(delimiter=delimiter),
            convert_options=csv.ConvertOptions(
                column_types=dict.fromkeys(names, pyarrow.float32()), null_values=list(MISSING)
            ),
        )
    except pyarrow.ArrowInvalid as error:
        raise UserError(_what_is_wrong(file, delimiter, width) or f"{file} is not CSV: {error}") from error


def delimiter_of(file: Path) -> tuple[str, int]:
    """The delimiter and the number of columns, from the first line."""
    with file.open("rb") as stream:
        raw = stream.readline(FIRST_LINE_BYTES)
    if raw.startswith(b"\x1f\x8b"):
        raise UserError(f"{file} is a gzip file: unpack it")
    try:
        line = raw.decode("utf-8-sig").rstrip("\r\n")
    except UnicodeDecodeError:
        raise UserError(f"{file} is not CSV: its first line is not text") from None
    for delimiter in DELIMITERS:
        fields = line.split(delimiter)
        if len(fields) > 1 and all(_is_number(field) for field in fields):
            return delimiter, len(fields)
    most = max(DELIMITERS[:4], key=line.count)
    if line.count(most) == 0:
        raise UserError(
            f"Could not determine delimiter on line {line[:50]!r} of {file}: a row is a label and at least one feature"
        )
    wrong = next(field for field in line.split(most) if not _is_number(field))
    raise UserError(
        f"{file}, line 1: {wrong[:50]!r} is not a number. If this is a header, remove it: SageMaker's CSV has none"
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


def _what_is_wrong(file: Path, delimiter: str, width: int) -> str | None:
    """The first line that cannot be right. Slow, and read only after an error."""
    with file.open(encoding="utf-8", errors="replace") as stream:
        for number, line in enumerate(stream, start=1):
            fields = line.rstrip("\r\n").split(delimiter)
            if fields == [""]:
                continue
            if len(fields) != width:
                return f"{file}, line {number}: {len(fields)} fields, and line 1 has {width}"
            for column, field in enumerate(fields, start=1):
                if not _is_number(field):
                    return f"{file}, line {number}, column {column}: {field[:50]!r} is not a number"
    return None
