"""A channel -> rows: whatever its format, its number of files, and its input mode."""

import io
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from optml_algorithms.data.files import ONE_LABEL, Content, content_of, data_files
from optml_algorithms.data.rows import Origin, Rows, concatenated
from optml_toolkit.container import Channel, UserError

PIPE_SECONDS = 60.0  # for the platform to make the FIFO of a later epoch


@dataclass
class Progress:
    """How many of the bytes of all files have been read: `share` is from 0 (nothing, or unknown: a pipe) to 1."""

    total_bytes: int = 0
    bytes_of_whole_files: int = 0
    stream: BinaryIO | None = None
    share_of_file: float = 0.0
    file_bytes: int = 0

    def share(self) -> float:
        if not self.total_bytes:
            return 0.0
        here = self.stream.tell() if self.stream is not None else self.share_of_file * self.file_bytes
        return min(1.0, (self.bytes_of_whole_files + here) / self.total_bytes)


def read(
    channel: Channel,
    *,
    formats: Sequence[str],
    label_sizes: range = ONE_LABEL,
    weighted: bool = False,
    epoch: int = 0,
) -> Rows | None:
    """All rows of a channel, or None if it has no data, as on a host that got an empty shard.

    `formats`: csv, libsvm, parquet, recordio, as far as the algorithm reads them; the first is the default.
    `label_sizes`: how many label columns CSV may have (and, the lowest, how many CSV and Parquet have where it is not said).
    `weighted`: the column behind the labels of a CSV is the weight. `epoch`: which FIFO, in Pipe mode.

    UserError for a format that is not among them, and for whatever is wrong with the data.
    """
    progress = Progress()
    parts = batches(
        channel, formats=formats, label_sizes=label_sizes, weighted=weighted, epoch=epoch, progress=progress
    )
    return concatenated(parts, share_read=progress.share)


def batches(
    channel: Channel,
    *,
    formats: Sequence[str],
    label_sizes: range = ONE_LABEL,
    weighted: bool = False,
    epoch: int = 0,
    progress: Progress | None = None,
) -> Iterator[Rows]:
    """The same rows, some megabytes at a time (libsvm: a file at a time). Parts need not have the same width where the
    data does not declare it; `read` sees to that, and to the rest that must be alike."""
    content = content_of(channel, formats=formats, label_sizes=label_sizes)
    if weighted and content.format not in ("csv", "libsvm"):
        raise UserError(f"channel {channel.name!r}: weights are for text/csv and text/libsvm, not for {content.format}")
    progress = progress or Progress()
    if channel.input_mode == "Pipe":
        yield from _from_pipe(channel, content, weighted, epoch)
        return
    files = data_files(channel)
    progress.total_bytes = sum(file.stat().st_size for file in files)
    columns: tuple[Path, list[str]] | None = None
    for file in files:
        if content.format == "parquet":
            columns = _same_columns(file, columns)
            yield from _parquet(file, content, progress)
        elif content.format == "libsvm":
            yield _libsvm(file)
        else:
            with file.open("rb") as stream:
                progress.stream = stream
                yield from _parser(content, weighted)(stream, str(file))
            progress.stream = None
        progress.bytes_of_whole_files += file.stat().st_size
        progress.share_of_file = 0.0


def _parser(content: Content, weighted: bool) -> Callable[[BinaryIO, str], Iterator[Rows]]:
    if content.format == "recordio":
        from optml_algorithms.data.recordio import recordio_batches

        return recordio_batches
    from optml_algorithms.data.csv import csv_batches

    return lambda stream, source: csv_batches(stream, source, label_size=content.label_size, weighted=weighted)


def _from_pipe(channel: Channel, content: Content, weighted: bool, epoch: int) -> Iterator[Rows]:
    if content.format not in ("csv", "recordio"):
        raise UserError(
            f"channel {channel.name!r}: Pipe mode is for text/csv and application/x-recordio-protobuf; for {content.format} "
            "use File or FastFile mode"
        )
    fifo = channel.folder.with_name(f"{channel.name}_{epoch}")
    until = time.monotonic() + PIPE_SECONDS
    while not fifo.exists():
        if time.monotonic() > until:
            raise UserError(f"channel {channel.name!r}: there is no pipe {fifo}")
        time.sleep(0.01)
    with fifo.open("rb", buffering=io.DEFAULT_BUFFER_SIZE) as stream:
        yield from _parser(content, weighted)(stream, str(fifo))


def _same_columns(file: Path, before: tuple[Path, list[str]] | None) -> tuple[Path, list[str]]:
    """Features in another order in another file would be mixed up without a word: names must be the same."""
    from optml_algorithms.data.parquet import column_names

    names = column_names(file)
    if before is not None and names != before[1]:
        differ = [name for name in names if name not in before[1]][:3] or "in another order"
        raise UserError(
            f"{file} has other columns than {before[0]}: {differ}. All files must have the same, in one order"
        )
    return before or (file, names)


def _parquet(file: Path, content: Content, progress: Progress) -> Iterator[Rows]:
    from optml_algorithms.data.parquet import parquet_batches

    progress.file_bytes = file.stat().st_size
    for rows, share in parquet_batches(file, label_size=content.label_size):
        progress.share_of_file = share
        yield rows


def _libsvm(file: Path) -> Rows:
    import numpy

    from optml_algorithms.data.libsvm import read_libsvm

    found = read_libsvm([file])
    return Rows(
        features=found.features,
        labels=found.labels.astype(numpy.float32),
        weights=None if found.weights is None else found.weights.astype(numpy.float32),
        groups=found.groups,
        origins=(Origin(source=str(file), first=0, count=len(found.labels)),),
        width_is_declared=False,
    )
