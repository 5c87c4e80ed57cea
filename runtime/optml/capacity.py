"""When a machine arrives, and when it is taken away: a plan of interruptions at work.

Capacity decides and remembers; it waits for nothing and ends nothing. `waiting.py` waits for `arrival`, `supervise.py` ends an
attempt when its `Lease` is over or when a trigger has been seen.
"""

import contextlib
import json
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from optml.errors import UserError
from optml.spec import SEARCH_SECONDS, How, InterruptionPlan, SignalTo, Trace, TrainingJob, Trigger

NEVER = math.inf
LINE_CHARACTERS = 10_000  # of a line that --at-log looks at
FRUITLESS_INTERRUPTIONS = 10  # in a row, with nothing printed and nothing saved in between: the plan leaves no time


@dataclass(frozen=True, kw_only=True)
class Lease:
    """How long an attempt has its machines. Monotonic seconds of the job's clock."""

    plan: InterruptionPlan
    ends_at: float = NEVER
    triggers: tuple[Trigger, ...] = ()  # any of them ends it too


@dataclass
class Capacity:
    """The machines of one job. `began`: the job's creation, in monotonic seconds of its clock."""

    plan: InterruptionPlan
    began: float
    interruptions: int = 0
    _free_from: float = 0.0  # when the next machine may come, by the plan's delay
    _fired: set[Trigger] = field(default_factory=set)
    _used: int = 0  # of plan.at_seconds
    _random: random.Random = field(default_factory=random.Random)
    _fruitless: int = 0

    def __post_init__(self) -> None:
        self._random.seed(self.plan.seed)

    def arrival(self, now: float) -> float:
        """When the next machine comes: `now` or later; NEVER if there is none any more."""
        earliest = max(now, self._free_from)
        trace = self.plan.trace
        if trace is None:
            return earliest
        place = self._place(trace, earliest)
        if trace.available[place]:
            return earliest
        later = next((index for index in range(place, len(trace.available)) if trace.available[index]), None)
        return NEVER if later is None else self.began + later * trace.gap_seconds

    def _place(self, trace: Trace, moment: float) -> int:
        # A moment that is an entry's begin belongs to it, whatever rounding says.
        return min(len(trace.available) - 1, max(0, math.floor((moment - self.began) / trace.gap_seconds + 1e-9)))

    def lease(self, now: float, *, trained_seconds: float) -> Lease:
        """For an attempt whose training begins now, after so many seconds of training in all attempts before it."""
        if self.plan.most is not None and self.interruptions >= self.plan.most:
            return Lease(plan=self.plan)
        ends = [NEVER]
        times = sorted(self.plan.at_seconds)
        if self._used < len(times):
            ends.append(now + max(0.0, times[self._used] - trained_seconds))
        if self.plan.every_seconds is not None:
            ends.append(now + self.plan.every_seconds)
        if self.plan.mean_seconds is not None:
            ends.append(now + self._random.expovariate(1 / self.plan.mean_seconds))
        if (trace := self.plan.trace) is not None:
            place = self._place(trace, now)
            gone = next((index for index in range(place, len(trace.available)) if not trace.available[index]), None)
            if gone is not None:
                ends.append(max(now, self.began + gone * trace.gap_seconds))
        triggers = tuple(trigger for trigger in self.plan.triggers if trigger not in self._fired)
        return Lease(plan=self.plan, ends_at=min(ends), triggers=triggers)

    def interrupted(self, *, trained_seconds: float, trigger: Trigger | None) -> None:
        """An interruption began, after so many seconds of training in all attempts."""
        self.interruptions += 1
        if trigger is not None:
            self._fired.add(trigger)
        times = sorted(self.plan.at_seconds)
        while self._used < len(times) and times[self._used] <= trained_seconds + 1e-6:
            self._used += 1

    def machine_gone(self, now: float, *, fruitful: bool) -> None:
        """`fruitful`: the attempt printed or saved something. UserError if the plan leaves none of them the time to."""
        self._free_from = now + self.plan.reacquire_seconds
        self._fruitless = 0 if fruitful else self._fruitless + 1
        if self._fruitless >= FRUITLESS_INTERRUPTIONS:
            raise UserError(
                f"the plan of interruptions leaves no time to train: {self._fruitless} machines in a row were taken before the "
                "program printed a line or saved a checkpoint; interrupt it less often"
            )

    def not_fired(self) -> tuple[Trigger, ...]:
        if self.plan.most is not None and self.interruptions >= self.plan.most:
            return ()
        return tuple(trigger for trigger in self.plan.triggers if trigger not in self._fired)


class TriggerWatch:
    """Counts, within one attempt, what a lease's triggers wait for. `due` is the first that has come."""

    def __init__(self, triggers: Sequence[Trigger]):
        self.due: Trigger | None = None
        self._logs = [(trigger, compiled(trigger)) for trigger in triggers if trigger.log is not None]
        self._metrics = [trigger for trigger in triggers if trigger.metric is not None]
        self._counts: dict[tuple[Trigger, str], int] = {}

    def feed(self, host: str, lines: Sequence[str]) -> None:
        for trigger, pattern in self._logs:
            for line in lines:
                with contextlib.suppress(TimeoutError):  # it backtracks: a line that takes so long does not count
                    if pattern.search(line, 0, LINE_CHARACTERS, timeout=SEARCH_SECONDS):
                        self._count(trigger, host)

    def saw_metric(self, host: str, name: str, value_count: int) -> None:
        for trigger in self._metrics:
            if trigger.metric == name:
                self._count(trigger, host, value_count)

    def _count(self, trigger: Trigger, host: str, times: int = 1) -> None:
        self._counts[trigger, host] = self._counts.get((trigger, host), 0) + times
        if self.due is None and self._counts[trigger, host] >= trigger.count:
            self.due = trigger


def compiled(trigger: Trigger) -> Any:
    """The pattern of a --at-log. UserError if it is none."""
    import regex

    assert trigger.log is not None
    try:
        return regex.compile(trigger.log)
    except regex.error as error:
        raise UserError(f"--at-log {trigger.log!r} is no regular expression: {error}") from error


# Plans: what is wrong with one, and how it is written down.


def check_plan(plan: InterruptionPlan, job: TrainingJob) -> None:
    """UserError naming what in the plan cannot be."""
    for name, value, least in (
        ("every_seconds", plan.every_seconds, 0.001),
        ("mean_seconds", plan.mean_seconds, 0.001),
        ("notice_seconds", plan.notice_seconds, 0),
        ("reacquire_seconds", plan.reacquire_seconds, 0),
        ("away_seconds", plan.away_seconds, 0),
        ("most", plan.most, 1),
        *(("at_seconds", value, 0) for value in plan.at_seconds),
    ):
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < least:
            text = (
                " of seconds: else the plan leaves no time to train"
                if name in ("every_seconds", "mean_seconds")
                else ""
            )
            raise UserError(f"interruptions: {name} must be a number{text or f' of at least {least}'}, got {value!r}")
    if plan.how not in list(How):
        raise UserError(f"interruptions: how must be one of {', '.join(How)}, got {plan.how!r}")
    if not (plan.at_seconds or plan.every_seconds or plan.mean_seconds or plan.triggers or plan.trace):
        raise UserError(
            "interruptions: the plan has none; give --every, --at, --mtti, --at-metric, --at-log or --trace"
        )
    hosts = [host.name for host in job.hosts]
    if plan.host is not None and plan.host not in hosts:
        raise UserError(f"interruptions: there is no host {plan.host!r}; the job's are {', '.join(hosts)}")
    metrics = [metric.name for metric in job.metric_definitions]
    for trigger in plan.triggers:
        if trigger.count < 1:
            raise UserError(f"{trigger}: the count must be at least 1")
        if trigger.log is not None:
            compiled(trigger)
        elif trigger.metric not in metrics:
            known = ", ".join(metrics) or "none; give --metric NAME=REGEX"
            raise UserError(f"--at-metric {trigger.metric}: the job has no such metric (its metrics: {known})")
    if plan.how is How.STORE_AWAY and job.checkpoint is None:
        raise UserError("--how store-away: the job has no checkpoints (--checkpoint), so no store that could be away")
    if plan.how is How.FULL_DISK and job.checkpoint is None:
        raise UserError("--how full-disk: the job has no checkpoints (--checkpoint), and it is their disk that is full")
    if not plan.how.ends_hosts and plan.trace is not None:
        raise UserError(f"--how {plan.how} cannot go with --trace: a trace says when there are machines, and none ends")
    if plan.signal_to not in list(SignalTo):
        raise UserError(f"interruptions: signal_to must be one of {', '.join(SignalTo)}, got {plan.signal_to!r}")
    if plan.signal_to is SignalTo.EVERY_PROCESS and (plan.how is not How.TERMINATE or not plan.notice_seconds):
        why = "--notice 0" if plan.how is How.TERMINATE else f"--how {plan.how}"
        raise UserError(f"--signal-to every-process: nobody is sent SIGTERM with {why}; leave one of them out")
    if plan.how is How.HANG and plan.notice_seconds == 0:
        raise UserError(
            "--how hang: --notice says how long the programs stand still before the end, and must be more than 0"
        )


def read_trace(file: Path) -> Trace:
    """An availability trace: JSON with `gap_seconds` (also within `metadata`) and `data`, a list of 0 and 1."""
    try:
        content = json.loads(file.read_bytes())
    except OSError as error:
        raise UserError(f"--trace {file}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"--trace {file} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f'--trace {file} is no trace: it must be {{"gap_seconds": ..., "data": [0, 1, ...]}}')
    metadata = content.get("metadata") if isinstance(content.get("metadata"), dict) else {}
    gap = content.get("gap_seconds", metadata.get("gap_seconds"))  # type: ignore[union-attr]
    if isinstance(gap, bool) or not isinstance(gap, int | float) or not math.isfinite(gap) or gap <= 0:
        raise UserError(f"--trace {file}: gap_seconds must be a number above 0, got {gap!r}")
    data = content.get("data")
    if not isinstance(data, list) or not data:
        raise UserError(f"--trace {file}: data must be a list of 0 and 1 with at least one entry")
    for number, entry in enumerate(data):
        if isinstance(entry, bool) or entry not in (0, 1):
            raise UserError(f"--trace {file}: data[{number}] must be 0 or 1, got {entry!r}")
    return Trace(gap_seconds=float(gap), available=tuple(bool(entry) for entry in data))


def plan_from_json(content: Mapping[str, Any]) -> InterruptionPlan:
    """What dataclasses.asdict made of a plan."""
    trace = content["trace"]
    return InterruptionPlan(
        **{
            **content,
            "at_seconds": tuple(content["at_seconds"]),
            "triggers": tuple(Trigger(**trigger) for trigger in content["triggers"]),
            "trace": trace and Trace(gap_seconds=trace["gap_seconds"], available=tuple(trace["available"])),
            "how": How(content["how"]),
            "signal_to": SignalTo(content.get("signal_to", SignalTo.MAIN_PROCESS)),  # recorded by an earlier version
        }
    )
