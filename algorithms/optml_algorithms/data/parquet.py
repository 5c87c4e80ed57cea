"""Parquet -> arrays: the first columns are labels, the others features, all numbers. pyarrow reads."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from optml_algorithms.data.rows import Origin, Rows
from optml_algorithms.words import counted
from optml_toolkit.container import UserError

BATCH_BYTES = 32 << 20  # as float32


def parquet_batches(file: Path, *, label_size: int = 1, batch_bytes: int = BATCH_BYTES) -> Iterator[tuple[Rows, float]]:
    """The rows of a file, some `batch_bytes` at a time, each with the share of the file's rows that have been read. NaN where a
    value is null; booleans are 0 and 1.

    UserError for a column that does not hold numbers, naming it.
    """
    import numpy
    import pyarrow
    from pyarrow import parquet

    try:
        table = parquet.ParquetFile(file)
        width = len(table.schema_arrow)
        for field in table.schema_arrow:
            if not _holds_numbers(field.type):
                raise UserError(
                    f"Failed to load parquet data with exception: {file}, column {field.name!r} is of type {field.type}, "
                    "and must hold numbers"
                )
        if width <= label_size:
            raise UserError(
                f"{file} has {counted(width, 'column')}, and so no feature: the first {label_size} are labels"
            )
        done = 0
        for batch in table.iter_batches(batch_size=max(1, batch_bytes // (4 * width))):
            values = numpy.empty((batch.num_rows, width - label_size), dtype=numpy.float32)
            labels = numpy.empty((batch.num_rows, label_size), dtype=numpy.float32)
            for number, column in enumerate(batch.columns):
                numbers = column.cast(pyarrow.float32(), safe=False).to_numpy(zero_copy_only=False)
                if number < label_size:
                    labels[:, number] = numbers
                else:
                    values[:, number - label_size] = numbers
            if batch.num_rows == 0:
                continue
            rows = Rows(
                features=values,
                labels=(labels[:, 0] if label_size == 1 else labels) if label_size else None,
                origins=(Origin(source=str(file), first=done, count=batch.num_rows),),
            )
            done += batch.num_rows
            yield rows, done / table.metadata.num_rows
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"Failed to load parquet data with exception: {file}: {error}") from error


def column_names(file: Path) -> list[str]:
    """Names of the columns, in order."""
    import pyarrow
    from pyarrow import parquet

    try:
        return list(parquet.read_schema(file).names)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"Failed to load parquet data with exception: {file}: {error}") from error


def _holds_numbers(kind: Any) -> bool:
    from pyarrow import types

    return bool(types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind) or types.is_decimal(kind))
