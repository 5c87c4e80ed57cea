"""events.jsonl: what happened to each host of each attempt, and when. Written while the job runs, read by a drill's report.

One JSON object per line: Time (epoch seconds of the job's clock), Attempt (from 1), Kind, and Host and further facts where the
kind has them:

attempt-started; log (Host, Stream: the file's name); training; first-line (Host); step (Host, Numbers: what may be one, by the
text around it, Line: the line's form); interrupted (Cause, TrainedSeconds); notice (Host, Seconds); sigterm-sent, suspended,
killed (Host); exited (Host, ExitCode); checkpoint-restored (Count, Bytes); checkpoint-uploaded (Host, Path, Bytes, Written:
when); checkpoint-left-out (Host, Path: it was being written when the host was killed); checkpoint-unsettled (Host, Path: no
version of it was kept, Open, Closed: versions that were seen so); checkpoint-link (Host, Path, Target: a link that is not kept);
store-away (Seconds); disk-full (Host, Seconds); disk-freed
(Host); ended (Why); checkpoint-read (Host, Read, Unread: paths); saved-elsewhere (Host, Files); machine-gone; waiting,
machine-there (for capacity).
"""

import contextlib
import json
import re
import threading
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optml.clock import Clock
from optml.errors import UserError
from optml.spec import SEARCH_SECONDS

# The usual forms: XGBoost's `[12]<tab>`, `step 12`, `iter: 12`, `Epoch [12/90]`, `round=12`, `"step": 12`. An argument of a
# command, `--epochs 40`, is none, nor is a share of one, `'epoch': 0.25`.
USUAL_STEPS = re.compile(
    r"^\[(?P<bracket>\d+)\]\t"
    r"|(?<!--)(?<!\s-)\b(?:global[_ ]?)?(?P<word>step|iter(?:ation)?|epoch|round|batch)s?\b[\"'\s:=#\[(]{1,4}"
    r"(?P<number>\d+)(?!\.?\d)",
    re.IGNORECASE,
)
# The progress bars of tqdm, `27%|##7       | 27/100 [00:01<00:03, ...`, and of Keras, `27/100 [=====>...`. What a bar shows
# before the first step of its own is none that was done: nothing, or where it goes on, with `<?` for the time that is left.
BAR = re.compile(
    r"\|\s*(?P<tqdm>[1-9]\d*)/(?P<of>\d+) \[[\d:]+<[\d:]+,\s*[\d.]+(?:it/s|s/it)"  # examples and bytes are no steps
    r"|^\s*(?P<keras>[1-9]\d*)/(?P<all>\d+)\s+(?:\[[=>.]|\u2501)"
)
COLOURS = re.compile(r"\x1b\[[0-9;]*m|\x08")
# `Resuming from step 12`, `saved checkpoint-12 at step 12`: no step was done there. Names of other values are no such words
# (`total_loss=0.3`), nor are those of modules (`loader.py:33`).
NO_STEP = re.compile(r"\b(?:start|resum|restor|load|continu|begin|sav|checkpoint|total)\w*+(?!\.py\b)", re.IGNORECASE)
NAME_OF_A_VALUE = re.compile(r"[\"']?\s*[=:]")
# A line may have an epoch and a step in it: what counts most often is what moves.
FINEST_FIRST = ("step", "iter", "iteration", "batch", "bar", "round", "epoch")
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


NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?|\b(?:nan|inf)\b")
BEFORE_CHARACTERS = 12  # of what stands before a number's word, without a space between


@dataclass(frozen=True)
class StepLine:
    """A line with numbers that may be a step's: by the text around each, the number and where it stands; finest first."""

    numbers: Mapping[str, int]
    spans: Mapping[str, tuple[int, int]]
    form: str  # of the whole line, without its numbers: the same for all lines of one print statement


class StepReader:
    """Numbers in the lines that hosts print that may be those of steps: which of them are, drills/steps.py says."""

    def __init__(self, expression: str | None = None):
        self._expression = None if expression is None else compiled_step(expression)

    def read(self, line: str) -> StepLine | None:
        """None if there is no number of the kind in it."""
        line = line[:LINE_CHARACTERS]
        if self._expression is not None:
            try:
                match = self._expression.search(line, timeout=SEARCH_SECONDS)
            except TimeoutError:  # it backtracks
                return None
            if not match or not match[1] or not match[1].isdecimal():
                return None
            return StepLine({AS_TOLD: int(match[1])}, {AS_TOLD: match.span(1)}, AS_TOLD)
        bar = _bar(line)
        found: list[tuple[int, str, int, tuple[int, int]]] = []
        for match in USUAL_STEPS.finditer(line):
            if match["bracket"] is not None:
                found = [(0, "[#]", int(match["bracket"]), match.span("bracket"))]
                break
            word = match["word"].lower()
            text = NUMBER.sub("#", line[max(0, match.start() - BEFORE_CHARACTERS) : match.start()]).split(" ")[-1]
            around = f"{text}{match[0][: -len(match['number'])]}#".lower()
            found.append((FINEST_FIRST.index(word), around, int(match["number"]), match.span("number")))
        if bar is not None:
            found.append((FINEST_FIRST.index("bar"), f"{BAR_AROUND}{bar[1]}", bar[0], (0, 0)))
        if not found or _speaks_of_no_step(line, [span for *_, span in found]):
            return None
        numbers: dict[str, int] = {}
        spans: dict[str, tuple[int, int]] = {}
        for _, around, number, span in sorted(found, key=lambda each: each[0]):
            if around not in numbers:
                numbers[around], spans[around] = number, span
        # What a bar draws is another line each time.
        whole = NUMBER.sub("#", line) if bar is None else f"{BAR_AROUND}{bar[1]}"
        return StepLine(numbers, spans, f"{zlib.crc32(whole.encode()):08x}")

    def step(self, line: str) -> int | None:
        """The finest number of the line."""
        found = self.read(line)
        return None if found is None else next(iter(found.numbers.values()))


AS_TOLD = ""  # the form of what --step-regex finds
BAR_AROUND = (
    "bar #/"  # and of a progress bar, with how many steps it has in all: one that is shorter counts something else
)


def _bar(line: str) -> tuple[int, int] | None:
    """The steps that a progress bar says are done, and how many it has in all."""
    if "/" not in line or ("[" not in line and "\u2501" not in line):
        return None
    match = BAR.search(COLOURS.sub("", line))
    if match is None:
        return None
    return int(match["tqdm"] or match["keras"]), int(match["of"] or match["all"])


def _speaks_of_no_step(line: str, numbers: Sequence[tuple[int, int]]) -> bool:
    """Of starting, resuming, loading, saving or a total; `numbers`: where those stand that would be steps."""
    end = max(stop for _, stop in numbers)
    for match in NO_STEP.finditer(line):
        is_name = NAME_OF_A_VALUE.match(line, match.end()) is not None
        if match.start() >= end > 0:
            if not is_name and not match[0].lower().startswith("total"):
                return True
        elif not (is_name and "_" in match[0]):
            return True
    return False


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
