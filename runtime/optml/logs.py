"""Follow what hosts print. They write straight into files, so nothing is lost when a program, or its supervisor, dies."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from optml.clock import Clock
from optml.jobdir import JobDir

CHUNK_BYTES = 1 << 20
LONGEST_LINE_BYTES = 1 << 20  # a longer one is shown in pieces
FOLLOW_SECONDS = 0.1


class LogReader:
    """New lines of one growing file. A line is given when it is whole, and a progress bar (`\\r`) with its last state."""

    def __init__(self, path: Path):
        self.path = path
        self._position = 0
        self._pending = b""

    def read(self, *, final: bool = False) -> Iterator[list[str]]:
        """Everything that came since the last call, about a megabyte at a time; with `final`, an unfinished line too."""
        with contextlib.suppress(FileNotFoundError):
            with self.path.open("rb", buffering=0) as stream:
                if stream.seek(0, 2) < self._position:  # the program truncated its own log
                    self._position, self._pending = 0, b""
                stream.seek(self._position)
                while chunk := stream.read(CHUNK_BYTES):
                    self._position += len(chunk)
                    if lines := self._lines(chunk):
                        yield lines
        if final and self._pending:
            last, self._pending = self._pending, b""
            yield [shown(last.decode(errors="replace"))]

    def _lines(self, chunk: bytes) -> list[str]:
        text, newline, rest = chunk.rpartition(b"\n")
        if not newline:
            self._pending += chunk
            if len(self._pending) < LONGEST_LINE_BYTES:
                return []
            text, self._pending = self._pending, b""
        else:
            text, self._pending = self._pending + text, rest
        lines = text.decode(errors="replace").split("\n")
        return [shown(line) for line in lines] if b"\r" in text else lines


def shown(line: str) -> str:
    """What a terminal would show of a line with carriage returns in it."""
    if "\r" not in line:
        return line
    return line.rstrip("\r").rpartition("\r")[2]


def host_of(stream: Path) -> str:
    """`algo-1-1700000000.log` -> `algo-1`."""
    return stream.stem.rpartition("-")[0]


def follow(
    job_dir: JobDir,
    *,
    hosts: Sequence[str] | None = None,
    follow: bool = False,
    is_finished: Callable[[], bool] = lambda: True,
    clock: Clock,
) -> Iterator[tuple[str, list[str]]]:
    """(host, lines) of a job's streams, from any process; with `follow`, until the job has ended and everything was read."""
    readers: dict[Path, LogReader] = {}
    while True:
        finished = not follow or is_finished()
        for stream in sorted(job_dir.logs.glob("*.log"), key=_order):
            if hosts is None or host_of(stream) in hosts:
                reader = readers.setdefault(stream, LogReader(stream))
                for lines in reader.read(final=finished):
                    yield host_of(stream), lines
        if finished:
            return
        clock.sleep(FOLLOW_SECONDS)


def _order(stream: Path) -> tuple[str, int]:
    """By attempt (its time), then by host number."""
    host, _, started = stream.stem.rpartition("-")
    return started, int(host.rpartition("-")[2] or 0)
