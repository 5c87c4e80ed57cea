"""Follow what hosts print. They write straight into files, so nothing is lost when a program, or its supervisor, dies; whoever
wants to see lines reads the files, from this process or from another.

A line ends at a newline or at a carriage return: a progress bar that redraws itself shows as it goes, one line for each drawing.
The files keep every byte as it was printed.
"""

import itertools
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from optml.clock import Clock
from optml.jobdir import JobDir

CHUNK_BYTES = 1 << 20  # what one list of lines is made from, and the longest line: a longer one is given in pieces
LOOK_BYTES = 8 << 20  # one look reads no more, lest a host that never stops printing holds up its supervisor
FOLLOW_SECONDS = 0.1
LAST_LINES = 20  # among which one is looked for that is not blank
LAST_LINE_CHARACTERS = 200

_STREAM_NAME = re.compile(r"(?P<host>.+)-(?P<started>\d+)\.log")


class LogReader:
    """New lines of one growing file, which need not exist yet."""

    def __init__(self, path: Path):
        self.path = path
        self._position = 0
        self._pending = b""  # a line that is not finished

    def read(self, *, final: bool = False) -> Iterator[list[str]]:
        """Whole lines that came since the last call, without their ends, about a megabyte at a time.

        `final`: everything to the file's end, also a line that lacks its own. Bytes that are no UTF-8 become U+FFFD.
        """
        try:
            size_bytes = self.path.stat().st_size
        except FileNotFoundError:
            return
        if size_bytes < self._position:  # the program emptied its own log: it goes on from the start
            self._position = 0
        if size_bytes > self._position:
            until = size_bytes if final else min(size_bytes, self._position + LOOK_BYTES)
            with self.path.open("rb", buffering=0) as file:
                file.seek(self._position)
                while self._position < until and (chunk := file.read(min(CHUNK_BYTES, until - self._position))):
                    self._position += len(chunk)
                    yield from self._add(chunk)
        if final and self._pending:
            rest, self._pending = self._pending, b""
            yield _lines(rest)

    def _add(self, chunk: bytes) -> Iterator[list[str]]:
        data = self._pending + chunk
        # Carriage returns that come last may be half of a CRLF: they wait for what follows.
        returns = len(data) - len(data.rstrip(b"\r"))
        end = max(data.rfind(b"\n"), data.rfind(b"\r", 0, len(data) - returns)) + 1
        self._pending = data[end:]
        if end and (lines := _lines(data[:end])):
            yield lines
        while len(self._pending) > CHUNK_BYTES:
            end = _character_boundary(self._pending, CHUNK_BYTES)
            yield _lines(self._pending[:end])
            self._pending = self._pending[end:]

    def skip_to_last(self, line_count: int) -> None:
        """Start with the last so many lines that are there now, counted by newlines."""
        try:
            with self.path.open("rb", buffering=0) as file:
                position = file.seek(0, os.SEEK_END)
                ends_whole = position > 0 and os.pread(file.fileno(), 1, position - 1) == b"\n"
                newlines_to_find = line_count + ends_whole
                while position and newlines_to_find:
                    begin = max(0, position - CHUNK_BYTES)
                    chunk = os.pread(file.fileno(), position - begin, begin)
                    end = len(chunk)
                    while newlines_to_find and (found := chunk.rfind(b"\n", 0, end)) >= 0:
                        end = found
                        newlines_to_find -= 1
                    position = begin if newlines_to_find else begin + end + 1
        except FileNotFoundError:
            return
        self._position = position


def _lines(data: bytes) -> list[str]:
    text = data.decode("utf-8", "replace")
    if "\r" in text:
        text = re.sub(r"\r+\n", "\n", text)
        text = re.sub(r"(\A|\n)\r+", r"\1", text)  # a bar begins by returning: no empty line
        text = re.sub(r"\r+", "\n", text)
    lines = text.split("\n")
    if not lines[-1]:
        lines.pop()
    return lines


def _character_boundary(data: bytes, near: int) -> int:
    """The end of the last whole UTF-8 character before `near`."""
    return next((end for end in range(near, near - 4, -1) if data[end] & 0xC0 != 0x80), near)


@dataclass(frozen=True, order=True)
class Stream:
    """A log file: one host in one attempt."""

    started: int  # epoch seconds
    host: str
    path: Path


def streams(job_dir: JobDir, hosts: Sequence[str] | None = None) -> list[Stream]:
    """A job's log streams so far, the oldest attempt first; of these hosts only, if given."""
    found = []
    for path in job_dir.logs.glob("*.log"):
        match = _STREAM_NAME.fullmatch(path.name)
        if match and (hosts is None or match["host"] in hosts):
            found.append(Stream(int(match["started"]), match["host"], path))
    return sorted(found)


def follow(
    job_dir: JobDir,
    *,
    hosts: Sequence[str] | None = None,
    follow: bool = False,
    tail: int | None = None,
    is_finished: Callable[[], bool] = lambda: True,
    clock: Clock,
) -> Iterator[tuple[str, list[str]]]:
    """(host, lines) of a job, from any process; with `follow`, until the job has ended and everything was read.

    A host's new stream, when the job is tried again, follows its old one. Lines that were there before the first look come host
    by host, for the files do not say when each was written. `tail`: begin with so many lines of each host.
    """
    readers: dict[str, tuple[Stream, LogReader]] = {}  # of each host, the newest attempt's
    for look in itertools.count():
        last_look = not follow or is_finished()  # asked before reading: what was printed by then is in the files
        quiet = True
        for host, reader, is_newest in _readers(job_dir, hosts, readers):
            if look == 0 and tail is not None:
                if not is_newest:
                    continue
                reader.skip_to_last(tail)
            for lines in reader.read(final=last_look or not is_newest):
                quiet = False
                yield host, lines
        if last_look:
            return
        if quiet:
            clock.sleep(FOLLOW_SECONDS)


def last_line(job_dir: JobDir, host: str) -> str:
    """The last line of a host's newest stream that is not blank, cut to what fits a terminal's; "" if there is none."""
    of_host = streams(job_dir, [host])
    if not of_host:
        return ""
    reader = LogReader(of_host[-1].path)
    reader.skip_to_last(LAST_LINES)
    found = [line.strip() for lines in reader.read(final=True) for line in lines if line.strip()]
    return found[-1][:LAST_LINE_CHARACTERS] if found else ""


def _readers(
    job_dir: JobDir, hosts: Sequence[str] | None, readers: dict[str, tuple[Stream, LogReader]]
) -> Iterator[tuple[str, LogReader, bool]]:
    """(host, reader, whether it is of the host's newest attempt), older attempts first; each older one is given once."""
    found = streams(job_dir, hosts)
    newest = {stream.host: stream for stream in found}
    for stream in found:
        current, reader = readers.get(stream.host, (None, None))
        if current is None or reader is None or current < stream:
            reader = LogReader(stream.path)
            readers[stream.host] = (stream, reader)
        elif stream < current:
            continue
        yield stream.host, reader, stream == newest[stream.host]
