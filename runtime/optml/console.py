"""What a person sees while a job runs: the hosts' lines, one line around each long step, progress in between."""

import os
import sys
import threading
import time
from collections.abc import Sequence
from typing import TextIO

PLATFORM = "optml"
PROGRESS_SECONDS_TERMINAL = 0.2
PROGRESS_SECONDS_ELSEWHERE = 10.0
COLOURS = (36, 33, 35, 32, 34, 31)  # ANSI foreground colours, one per host


class Console:
    """Writes lines whole, from any thread.

    `quiet` keeps only what went wrong and the end of the job; `silent` keeps nothing.
    """

    def __init__(
        self,
        stream: TextIO | None = None,
        *,
        width: int = 6,
        quiet: bool = False,
        silent: bool = False,
        host_output: bool = True,
    ):
        self.stream = stream if stream is not None else sys.stdout
        self.width = width
        self.quiet = quiet or silent
        self.silent = silent
        self.host_output = host_output and not self.quiet
        self.terminal = self.stream.isatty()
        self.colour = self.terminal and not os.environ.get("NO_COLOR")
        self._progress_shown = 0.0
        self._progress_open = False
        self._lock = threading.RLock()
        self.broken = False

    def say(self, text: str, *, important: bool = False) -> None:
        """A line of the platform's own."""
        if not self.quiet or (important and not self.silent):
            self._write("".join(f"{self._prefix(PLATFORM, None)}{line}\n" for line in text.splitlines() or [""]))

    def host_lines(self, host: str, lines: Sequence[str]) -> None:
        """Lines that a host printed."""
        if lines and self.host_output:
            prefix = self._prefix(host, COLOURS[(int(host.rpartition("-")[2]) - 1) % len(COLOURS)])
            self._write(prefix + f"\n{prefix}".join(lines) + "\n")

    def progress(self, step: str, done_bytes: int, total_bytes: int | None) -> None:
        """How far a long step is; shown now and then."""
        now = time.monotonic()
        pause = PROGRESS_SECONDS_TERMINAL if self.terminal else PROGRESS_SECONDS_ELSEWHERE
        with self._lock:
            if self.quiet or now - self._progress_shown < pause:
                return
            if self._progress_shown == 0.0:  # nothing for a step that is over in a moment
                self._progress_shown = now
                return
            self._progress_shown = now
            of_total = (
                f" of {size_text(total_bytes)} ({done_bytes * 100 // max(1, total_bytes)} %)" if total_bytes else ""
            )
            text = f"{self._prefix(PLATFORM, None)}{step}: {size_text(done_bytes)}{of_total}"
            if self.terminal:
                self._write(f"\r\x1b[K{text}", opens=True)
            else:
                self._write(f"{text}\n")

    def step_done(self) -> None:
        """The next step's progress starts anew."""
        self._progress_shown = 0.0

    def _prefix(self, who: str, colour: int | None) -> str:
        name = f"{who:<{self.width}} | "
        if not self.colour:
            return name
        return f"\x1b[{colour}m{name}\x1b[0m" if colour else f"\x1b[2m{name}\x1b[0m"

    def _write(self, text: str, *, opens: bool = False) -> None:
        with self._lock:
            if self.broken:
                return
            if self._progress_open and not opens:
                text = f"\r\x1b[K{text}"
            self._progress_open = opens
            try:
                self.stream.write(text)
                self.stream.flush()
            except UnicodeEncodeError:
                encoding = self.stream.encoding or "ascii"
                self.stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
                self.stream.flush()
            except (BrokenPipeError, ValueError):  # `| head` went away, or the stream was closed: the job goes on
                self.broken = True
            except OSError:
                # The terminal is gone, or the disk under the log is full: the job's record says how it ended.
                self.broken = True


def size_text(size_bytes: float) -> str:
    """1536 -> `1.5 kB`: decimal units, as disks and networks are sold."""
    for unit in ("B", "kB", "MB", "GB"):
        if size_bytes < 999.5:
            return f"{size_bytes:.0f} {unit}" if unit == "B" or size_bytes >= 99.5 else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1000
    return f"{size_bytes:.1f} TB"


def duration_text(seconds: float) -> str:
    """0.0123 -> `0.01 s`, 75 -> `1 min 15 s`."""
    if seconds < 10:
        return f"{seconds:.2f} s"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def hosts_text(names: Sequence[str]) -> str:
    """Whom a job has, for whoever asked for another."""
    return f"its only host is {names[0]}" if len(names) == 1 else f"its hosts are {names[0]} to {names[-1]}"


def count_text(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
