"""events.jsonl: what happened to each host of each attempt, and when. Written while the job runs, read by a drill's report.

One JSON object per line: Time (epoch seconds of the job's clock), Attempt (from 1), Kind, and Host and further facts where the
kind has them:

attempt-started; log (Host, Stream: the file's name); training; first-line (Host); step (Host, Step); interrupted (Cause,
TrainedSeconds); notice (Host, Seconds); sigterm-sent, suspended, killed (Host); exited (Host, ExitCode); checkpoint-restored
(Count, Bytes); checkpoint-uploaded (Host, Path, Bytes, Written: when); checkpoint-left-out (Host, Path: it was being written when
the host was killed); store-away (Seconds); disk-full (Host, Seconds); disk-freed (Host); ended (Why); checkpoint-read (Host,
Read, Unread: paths); saved-elsewhere (Host, Files); machine-gone; waiting, machine-there (for capacity).
"""

import contextlib
import json
import re
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from optml.clock import Clock
from optml.errors import UserError
from optml.spec import SEARCH_SECONDS

# The usual forms: XGBoost's `[12]<tab>`, `step 12`, `iter: 12`, `Epoch [12/90]`, `round=12`, `"step": 12`.
USUAL_STEPS = re.compile(
    r"^\[(?P<bracket>\d+)\]\t"
    r"|\b(?:global[_ ]?)?(?P<word>step|iter(?:ation)?|epoch|round|batch)s?\b[\"'\s:=#\[(]{1,4}(?P<number>\d+)",
    re.IGNORECASE,
)
# A line may have an epoch and a step in it: what counts most often is what moves.
# `Resuming from step 12`, `saved checkpoint-12 at step 12`: no step was done there.
NO_STEP = re.compile(r"\b(start|resum|restor|load|continu|begin|sav|checkpoint|total)", re.IGNORECASE)
FINEST_FIRST = ("step", "iter", "iteration", "batch", "round", "epoch")
LINE_CHARACTERS = 2_000


class Events:
    """Without a file, nothing is written. From any thread."""

    def __init__(self, file: Path | None, clock: Clock):
        self._file, self._clock = file, clock
        self._lock = threading.Lock()
        self.attempt = 0

    @property
    def wanted(self) -> bool:
        return self._file is not None

    def note(self, kind: str, host: str | None = None, **facts: Any) -> None:
        if self._file is None:
            return
        row = {
            "Time": self._clock.now(),
            "Attempt": self.attempt,
            "Kind": kind,
            **({"Host": host} if host is not None else {}),
            **facts,
        }
        # A disk that is full takes no evidence; the job is more than that, and its report says what is missing.
        with self._lock, contextlib.suppress(OSError), self._file.open("ab", buffering=0) as stream:
            stream.write(json.dumps(row).encode() + b"\n")


class StepReader:
    """Numbers of steps in the lines that hosts print."""

    def __init__(self, expression: str | None = None):
        self._expression = None if expression is None else compiled_step(expression)

    def steps(self, lines: Sequence[str]) -> list[int]:
        """In the order of the lines; a line without one is passed over."""
        return [step for line in lines if (step := self.step(line[:LINE_CHARACTERS])) is not None]

    def step(self, line: str) -> int | None:
        if self._expression is not None:
            try:
                match = self._expression.search(line, timeout=SEARCH_SECONDS)
            except TimeoutError:  # it backtracks
                return None
            return int(match[1]) if match and match[1] and match[1].isdigit() else None
        if NO_STEP.search(line):
            return None
        found: dict[str, int] = {}
        for match in USUAL_STEPS.finditer(line):
            if match["bracket"] is not None:
                return int(match["bracket"])
            found.setdefault(match["word"].lower(), int(match["number"]))
        return next((found[word] for word in FINEST_FIRST if word in found), None)


def compiled_step(expression: str) -> Any:
    """UserError if it is no regular expression, or has no group for the number."""
    import regex

    try:
        pattern = regex.compile(expression)
    except regex.error as error:
        raise UserError(f"--step-regex {expression!r} is no regular expression: {error}") from error
    if pattern.groups == 0:
        raise UserError(f"--step-regex {expression!r} has no group (...) to take the step's number from")
    return pattern
