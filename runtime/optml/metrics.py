"""Metric definitions over log lines: what CloudWatch shows for a SageMaker job, and FinalMetricDataList.

Each line of stdout and stderr of every host is searched with every definition; the first match's group 1 is the value. What is not
a finite number is passed over, as in SageMaker; so are `nan` and `inf`, which JSON cannot hold.
"""

import json
import math
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from optml.clock import Clock
from optml.errors import UserError
from optml.spec import MetricDefinition

SEARCHED_CHARACTERS = 10_000  # of each line; metric lines are short
SEARCH_SECONDS = 0.05  # for one line
# A search may take 1 ms of processor time on average; a definition that has used up so much more than that is switched off.
SECONDS_PER_SEARCH, SPARE_SECONDS = 0.001, 1.0
SEARCHES_PER_TIMING = 16
FINAL_METRICS = 40  # AWS's limit for FinalMetricDataList


@dataclass
class _Searcher:
    """A definition at work."""

    name: str
    pattern: Any  # regex.Pattern
    literal: str  # every line that matches has it
    overspent_seconds: float = 0.0
    last: tuple[float, float] | None = None  # time, value
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
                literal = literal_of(definition.regex)
                self._searchers.append(_Searcher(name=definition.name, pattern=pattern, literal=literal))

    def feed(self, host: str, lines: Sequence[str], timestamp: float | None = None) -> None:
        """Search lines that a host printed; `timestamp` is their time in epoch seconds, now if not given."""
        if not self._searchers:
            return
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
            if value is not None and timestamp >= self._finals.get(searcher.name, (-math.inf, 0.0))[0]:
                self._finals[searcher.name] = (timestamp, value)
        if rows:
            self._append("".join(rows))

    def _values(self, searcher: _Searcher, lines: Sequence[str]) -> Iterator[float]:
        search = searcher.pattern.search
        for begin in range(0, len(lines), SEARCHES_PER_TIMING):
            some = lines[begin : begin + SEARCHES_PER_TIMING]
            began = time.thread_time()
            for line in some:
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
            searcher.overspent_seconds = max(0.0, searcher.overspent_seconds + spent - len(some) * SECONDS_PER_SEARCH)
            if searcher.overspent_seconds > SPARE_SECONDS:
                self._searchers.remove(searcher)
                self.warnings.append(
                    f"metric {searcher.name!r}: searching with Regex {searcher.pattern.pattern!r} takes too long (it backtracks); "
                    "it was switched off, and its last values are missing. Make it more exact: fewer nested * and +"
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
                    file.write(data)
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
            f"AlgorithmSpecification.MetricDefinitions: the Regex of {definition.name!r} is no regular expression: {error}"
        ) from error
    return pattern
