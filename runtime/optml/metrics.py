"""Metric definitions over log lines: what CloudWatch shows for a SageMaker job, and FinalMetricDataList.

Each line of stdout and stderr of every host is searched with every definition; the first match's group 1 is the value. Text that
is no number is passed over, as in SageMaker; so are `nan` and `inf`, which JSON cannot hold.
"""

import errno
import json
import math
import os
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from optml.clock import Clock
from optml.errors import UserError
from optml.spec import SEARCH_SECONDS, MetricDefinition

SEARCHED_CHARACTERS = 10_000  # of each line; metric lines are short
SHORT_CHARACTERS = 200  # a simple expression needs no time limit on a shorter line, and is four times as fast without
# What a search may take on average, in processor time: some ten times what it takes. A definition that has used up SPARE_SECONDS
# more than that would hold up the job, and is switched off.
SECONDS_PER_SEARCH, SECONDS_PER_CHARACTER, SPARE_SECONDS = 20e-6, 0.1e-6, 1.0
SEARCHES_PER_TIMING = 16
FINAL_METRICS = 40  # AWS's limit for FinalMetricDataList


@dataclass
class _Searcher:
    """A definition at work."""

    name: str
    pattern: Any  # regex.Pattern
    literal: str  # every line that matches has it
    is_simple: bool
    overspent_seconds: float = 0.0
    row_begin: str = field(init=False)

    def __post_init__(self) -> None:
        self.row_begin = f'{{"MetricName": {json.dumps(self.name)}, "Value": '


class MetricScraper:
    """Feed it lines; it appends what it finds to `metrics_file`, one JSON object per line: MetricName, Value, Timestamp, Host.

    `warnings` says which definitions were switched off, and why. UserError for a regular expression that does not compile.
    """

    def __init__(self, definitions: Sequence[MetricDefinition], metrics_file: Path, *, clock: Clock | None = None):
        self.warnings: list[str] = []
        self._metrics_file = metrics_file
        self._clock = clock or Clock()
        self._finals: dict[str, tuple[float, float]] = {}
        self._searchers: list[_Searcher] = []
        self._may_write = True
        for definition in definitions:
            pattern = compile_definition(definition)
            if pattern.groups == 0:
                self.warnings.append(
                    f"metric {definition.name!r}: its Regex has no group (...) to take the value from; it stays empty"
                )
            else:
                self._searchers.append(
                    _Searcher(
                        name=definition.name,
                        pattern=pattern,
                        literal=literal_of(definition.regex),
                        is_simple=is_simple(definition.regex),
                    )
                )

    def feed(self, host: str, lines: Sequence[str], timestamp: float | None = None) -> dict[str, int]:
        """Search lines that a host printed; `timestamp` is their time in epoch seconds, now if not given.

        Gives the number of values found, by metric.
        """
        counts: dict[str, int] = {}
        if not self._searchers:
            return counts
        if timestamp is None:
            timestamp = self._clock.now()
        rows: list[str] = []
        row_end = f', "Timestamp": {timestamp!r}, "Host": {json.dumps(host)}}}\n'
        for searcher in list(self._searchers):
            literal = searcher.literal
            candidates = [line for line in lines if literal in line] if literal else lines
            value = None
            for value in self._values(searcher, candidates):
                rows.append(f"{searcher.row_begin}{value!r}{row_end}")
                counts[searcher.name] = counts.get(searcher.name, 0) + 1
            if value is not None and timestamp >= self._finals.get(searcher.name, (-math.inf, 0.0))[0]:
                self._finals[searcher.name] = (timestamp, value)
        if rows:
            self._append("".join(rows))
        return counts

    def _values(self, searcher: _Searcher, lines: Sequence[str]) -> Iterator[float]:
        search = searcher.pattern.search
        for begin in range(0, len(lines), SEARCHES_PER_TIMING):
            some = lines[begin : begin + SEARCHES_PER_TIMING]
            began = time.thread_time()
            for line in some:
                if searcher.is_simple and len(line) <= SHORT_CHARACTERS:
                    match = search(line)
                else:
                    try:
                        match = search(line, 0, SEARCHED_CHARACTERS, timeout=SEARCH_SECONDS)
                    except TimeoutError:
                        continue
                if match is None:
                    continue
                if (value := _number(match[1])) is None or match.end(1) == SEARCHED_CHARACTERS < len(line):
                    continue
                yield value
            spent = time.thread_time() - began
            allowed = len(some) * SECONDS_PER_SEARCH + sum(map(len, some)) * SECONDS_PER_CHARACTER
            searcher.overspent_seconds = max(0.0, searcher.overspent_seconds + spent - allowed)
            if searcher.overspent_seconds > SPARE_SECONDS:
                self._searchers.remove(searcher)
                self.warnings.append(
                    f"metric {searcher.name!r} was switched off, and its later values are missing: searching a line with its "
                    "Regex takes too long (it backtracks). Make it more exact: no * or + within another"
                )
                return

    def _append(self, rows: str) -> None:
        """Whole lines in one write, so that who tails the file never sees half of one."""
        if not self._may_write:
            return
        data = rows.encode()
        try:
            with self._metrics_file.open("ab", buffering=0) as file:
                begin = file.seek(0, os.SEEK_END)
                if file.write(data) != len(data):
                    file.truncate(begin)
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:  # the values of the record are more than the file; the job is more than both
            self._may_write = False
            self.warnings.append(f"{self._metrics_file} is incomplete: {error.strerror}")

    def final(self) -> list[dict[str, Any]]:
        """FinalMetricDataList: the last value of each metric by time, over all hosts."""
        return [
            {"MetricName": name, "Value": value, "Timestamp": timestamp}
            for name, (timestamp, value) in list(self._finals.items())[:FINAL_METRICS]
        ]


def _number(text: str | None) -> float | None:
    if text is None or "_" in text:  # Python reads 1_000 as a number
        return None
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def compile_definition(definition: MetricDefinition) -> Any:
    """The pattern to search lines with. UserError, naming the field, if it does not compile."""
    import regex  # late: a job without metrics, and every `optml list`, does without

    try:
        pattern = regex.compile(definition.regex)
        if not pattern.flags & regex.VERBOSE:  # where # begins a comment
            pattern = regex.compile(with_real_control_characters(definition.regex))
    except (regex.error, OverflowError, RecursionError) as error:
        raise UserError(
            f"AlgorithmSpecification.MetricDefinitions: the Regex {definition.regex!r} of {definition.name!r} is no regular "
            f"expression: {error}"
        ) from error
    return pattern


# An expression cut into what matters here; the rest is single characters.
_TOKEN = re.compile(
    r"""
    (?P<control>   \\?\#(?:0[0-3][0-7]|177) )
  | (?P<escape>    \\. )
  | (?P<set>       \[\^?\]?(?:\\.|\[:\^?\w+:\]|[^\]\\])*\] )
  | (?P<group>     \((?:\?(?:P?<[A-Za-z_]\w*>|:)|(?!\?)) )
  | (?P<special>   \(\? )
  | (?P<quantifier>(?:[*+?]|\{[^}]*\})[?+]? )
  | (?P<other>     . )
    """,
    re.VERBOSE | re.DOTALL,
)


def with_real_control_characters(expression: str) -> str:
    """CloudWatch shows a tab as `#011`, and expressions written for it say so; here lines have the tab itself.

    `#015`, a carriage return, may also be the line's begin or end, for it ends a line here.
    """
    parts: list[str] = []
    tokens = list(_TOKEN.finditer(expression))
    for number, token in enumerate(tokens):
        text = token[0]
        before = tokens[number - 1] if number else None
        if token.lastgroup == "set":
            text = re.sub(r"#(0[0-3][0-7]|177)", lambda code: f"{code[0]}\\x{int(code[1], 8):02x}", text)
        elif token.lastgroup == "control":
            quantified = number + 1 < len(tokens) and tokens[number + 1].lastgroup == "quantifier"
            text = f"(?:{text}{tokens[number + 1][0] if quantified else ''}|\\x{int(text[-3:], 8):02x}"
            text += r"|\A|\Z)" if token[0].endswith("015") else ")"
        elif token.lastgroup == "quantifier" and before is not None and before.lastgroup == "control":
            continue
        parts.append(text)
    return "".join(parts)


def literal_of(expression: str) -> str:
    """The longest text that is surely in every line that matches; "" if none is sure.

    Looking for it is some fifty times as fast as a search with a time limit.
    """
    runs = [""]
    depth = 0
    for token in _TOKEN.finditer(expression):
        text = token[0]
        if token.lastgroup == "special":  # flags, a look around: not worth it
            return ""
        if token.lastgroup == "group":
            depth += 1
            runs.append("")
        elif text == ")":
            depth -= 1
            runs.append("")
        elif depth:
            continue
        elif text == "|":
            return ""
        elif token.lastgroup == "escape":
            if text[1].isalnum() and text[1] not in "dDwWsSbBAZtnrfv":  # by code, by name, a reference: not worth it
                return ""
            if text[1].isalnum():
                runs.append("")
            else:
                runs[-1] += text[1]
        elif token.lastgroup == "quantifier":
            if text[0] != "+":
                runs[-1] = runs[-1][:-1]
            runs.append("")
        elif token.lastgroup in ("set", "control") or text in ".^$":
            runs.append("")
        else:
            runs[-1] += text
    return max(runs, key=len)


def is_simple(expression: str) -> bool:
    """Whether a search can take no more steps than the cube of the line's length: two repetitions at most, none of a group."""
    repetitions = 0
    before = ""
    for token in _TOKEN.finditer(expression):
        if token.lastgroup == "special" or (token.lastgroup == "escape" and token[0][1].isdigit()):
            return False
        if token.lastgroup == "quantifier":
            repetitions += 1
            if before == ")" or repetitions > 2:
                return False
        before = token[0]
    return True
