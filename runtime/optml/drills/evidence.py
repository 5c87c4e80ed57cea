"""What happened in a job, read from what it left: its record, its events, its logs. Works for any recorded job; without events (a
baseline that was no drill) there are curves and statuses, and no times of steps."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from optml import record as records
from optml.drills.steps import Form, Row, choose, extended
from optml.events import LINE_CHARACTERS, StepLine, StepReader
from optml.jobdir import JobDir
from optml.logs import LogReader, streams
from optml.metrics import compile_definition
from optml.spec import MetricDefinition

CURVE_LINE_CHARACTERS = 10_000
# What a program says that finds no room, in the words of C, Python, Rust, Go, Java.
NO_SPACE = re.compile(
    r"no space left|ENOSPC|\berrno:? ?28\b|os error 28|not enough space|disk (is )?full", re.IGNORECASE
)


@dataclass(frozen=True, kw_only=True)
class Saved:
    """A file of a checkpoint that arrived in the store."""

    at: float
    host: str
    path: str
    size_bytes: int
    written_at: float


@dataclass(frozen=True, kw_only=True)
class Unsettled:
    """A file of a checkpoint of which no version was seen whole; how many were seen open for writing, and how many closed."""

    host: str
    path: str
    open_count: int
    closed_count: int


@dataclass(kw_only=True)
class DiskFull:
    """The checkpoint folder of a host took no more bytes; `until` is None where that lasted to the attempt's end."""

    host: str
    at: float
    until: float | None = None


@dataclass(kw_only=True)
class AttemptEvidence:
    """One attempt; times in epoch seconds, None where it did not come to that."""

    number: int
    started_at: float
    training_at: float | None = None
    first_lines: dict[str, float] = field(default_factory=dict)
    steps: list[tuple[float, str, int]] = field(default_factory=list)  # time, host, step
    numbers: dict[str, list[tuple[float, Row]]] = field(default_factory=dict)  # by host: what may be steps, and when
    restored_count: int = 0
    read: list[str] = field(default_factory=list)  # restored files that the program read
    unread: list[str] = field(default_factory=list)
    reads_known: bool = False
    interrupted_at: float | None = None
    cause: str = ""
    noticed: list[str] = field(default_factory=list)  # hosts
    signalled_at: dict[str, float] = field(default_factory=dict)
    suspended: list[str] = field(default_factory=list)
    exits: dict[str, tuple[float, int]] = field(default_factory=dict)
    killed_at: dict[str, float] = field(default_factory=dict)
    saved: list[Saved] = field(default_factory=list)
    left_out: list[tuple[str, str]] = field(default_factory=list)
    unsettled: list[Unsettled] = field(default_factory=list)
    elsewhere: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)  # among the checkpoints, and not kept: each with what it leads to
    disks_full: list[DiskFull] = field(default_factory=list)
    no_space: dict[str, str] = field(default_factory=dict)  # the last line of a host that says so
    streams: dict[str, str] = field(default_factory=dict)  # host -> the name of its log
    ended_at: float | None = None
    why: str = ""
    gone_at: float | None = None
    log_tail: dict[str, list[str]] = field(default_factory=dict)
    # Step -> metrics, as printed by the first host.
    curve: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    host_curves: dict[str, list[tuple[int, dict[str, float]]]] = field(default_factory=dict)

    @property
    def end_of_programs(self) -> float | None:
        ends = [*(at for at, _ in self.exits.values()), *self.killed_at.values()]
        return max(ends) if ends else self.ended_at

    @property
    def first_step(self) -> tuple[float, int] | None:
        return (self.steps[0][0], self.steps[0][2]) if self.steps else None

    @property
    def last_step(self) -> int | None:
        return max((step for _, _, step in self.steps), default=None)

    def first_step_of(self, host: str) -> int | None:
        return next((step for _, name, step in self.steps if name == host), None)


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """A job that has ended."""

    name: str
    describe: Mapping[str, Any]
    attempts: tuple[AttemptEvidence, ...]
    waits: tuple[tuple[float, float], ...]  # without a machine: from, to
    away: tuple[tuple[float, float], ...]  # the checkpoint store: from, for how many seconds
    hosts: tuple[str, ...]
    has_events: bool
    form: Form | None = None  # how steps are printed; None: none were seen
    step_lines: Mapping[int, tuple[str, StepLine]] = field(default_factory=dict)  # of the first attempt's first host

    @property
    def created_at(self) -> float:
        return float(self.describe["CreationTime"])

    @property
    def ended_at(self) -> float:
        return float(self.describe.get("TrainingEndTime") or self.describe["LastModifiedTime"])

    @property
    def status(self) -> str:
        return str(self.describe["TrainingJobStatus"])

    @property
    def secondary(self) -> str:
        return str(self.describe["SecondaryStatus"])

    @property
    def final_metrics(self) -> dict[str, float]:
        return {each["MetricName"]: float(each["Value"]) for each in self.describe.get("FinalMetricDataList", ())}

    @property
    def interruptions(self) -> tuple[AttemptEvidence, ...]:
        return tuple(attempt for attempt in self.attempts if attempt.interrupted_at is not None)

    def phase_seconds(self, *names: str) -> float:
        """Time in secondary statuses."""
        return sum(
            float(step.get("EndTime", self.ended_at)) - float(step["StartTime"])
            for step in self.describe["SecondaryStatusTransitions"]
            if step["Status"] in names
        )


def read_evidence(
    name: str, *, metrics: Sequence[MetricDefinition], step_regex: str | None = None, form: Form | None = None
) -> Evidence:
    """`form`: how another run of the same program printed its steps. UserError if there is no such job."""
    job_dir = JobDir.of(name)
    describe = records.read(job_dir)["describe"]
    resources = describe["ResourceConfig"]
    host_count = sum(group["InstanceCount"] for group in resources.get("InstanceGroups") or [resources])
    hosts = tuple(f"algo-{number}" for number in range(1, host_count + 1))
    attempts: dict[int, AttemptEvidence] = {}
    waits: list[tuple[float, float]] = []
    away: list[tuple[float, float]] = []
    waiting_since: float | None = None
    rows = list(_rows(job_dir))
    for row in rows:
        kind, at = row["Kind"], float(row["Time"])
        if kind == "waiting":
            waiting_since = at
        elif kind == "machine-there" and waiting_since is not None:
            waits.append((waiting_since, at))
            waiting_since = None
        elif kind == "store-away":
            away.append((at, float(row["Seconds"])))
        elif row["Attempt"] > 0:
            number = row["Attempt"]
            attempt = attempts.setdefault(number, AttemptEvidence(number=number, started_at=at))
            _note(attempt, kind, at, row)
    if waiting_since is not None:
        waits.append((waiting_since, float(describe["LastModifiedTime"])))
    if not attempts:  # no events were recorded: what the record and the logs say
        started = float(describe.get("TrainingStartTime", describe["CreationTime"]))
        attempts[1] = AttemptEvidence(number=1, started_at=started)
    ordered = [attempts[number] for number in sorted(attempts)]
    form, step_lines = _read_logs(job_dir, ordered, metrics=metrics, step_regex=step_regex, form=form)
    for attempt in ordered:
        _find_steps(attempt, form)
    return Evidence(
        name=name,
        describe=describe,
        attempts=tuple(ordered),
        waits=tuple(waits),
        away=tuple(away),
        hosts=hosts,
        has_events=bool(rows),
        form=form,
        step_lines=step_lines,
    )


def _rows(job_dir: JobDir) -> Iterator[dict[str, Any]]:
    try:
        lines = job_dir.events_file.read_bytes().splitlines()
    except FileNotFoundError:
        return
    for line in lines:
        try:
            yield json.loads(line)
        except ValueError:  # the disk was full in the middle of it
            continue


def _note(attempt: AttemptEvidence, kind: str, at: float, row: Mapping[str, Any]) -> None:
    host = str(row.get("Host", ""))
    if kind == "log":
        attempt.streams[host] = str(row["Stream"])
    elif kind == "training":
        attempt.training_at = at
    elif kind == "first-line":
        attempt.first_lines[host] = at
    elif kind == "step":
        numbers = row.get("Numbers") or {EARLIER: row["Step"]}
        attempt.numbers.setdefault(host, []).append((at, (numbers, str(row.get("Line", EARLIER)))))
    elif kind == "checkpoint-restored":
        attempt.restored_count = int(row["Count"])
    elif kind == "checkpoint-read":
        attempt.reads_known = True
        attempt.read += row["Read"]
        attempt.unread += row["Unread"]
    elif kind == "interrupted":
        attempt.interrupted_at, attempt.cause = at, str(row["Cause"])
    elif kind == "notice":
        attempt.noticed.append(host)
    elif kind == "sigterm-sent":
        attempt.signalled_at[host] = at
    elif kind == "suspended":
        attempt.suspended.append(host)
    elif kind == "exited":
        attempt.exits[host] = (at, int(row["ExitCode"]))
    elif kind == "killed":
        attempt.killed_at[host] = at
    elif kind == "checkpoint-uploaded":
        attempt.saved.append(
            Saved(at=at, host=host, path=row["Path"], size_bytes=row["Bytes"], written_at=float(row["Written"]))
        )
    elif kind == "checkpoint-left-out":
        attempt.left_out.append((host, row["Path"]))
    elif kind == "checkpoint-unsettled":
        attempt.unsettled.append(
            Unsettled(host=host, path=row["Path"], open_count=row["Open"], closed_count=row["Closed"])
        )
    elif kind == "disk-full":
        attempt.disks_full.append(DiskFull(host=host, at=at))
    elif kind == "disk-freed":
        for disk in attempt.disks_full:
            if disk.host == host and disk.until is None:
                disk.until = at
    elif kind == "checkpoint-link":
        attempt.links.append(f"{row['Path']} -> {row['Target']}")
    elif kind == "saved-elsewhere":
        attempt.elsewhere += row["Files"]
    elif kind == "ended":
        attempt.ended_at, attempt.why = at, str(row["Why"])
    elif kind == "machine-gone":
        attempt.gone_at = at


EARLIER = "earlier"  # a job that an earlier version recorded: it wrote down the one number that it took for the step


def _find_steps(attempt: AttemptEvidence, form: Form | None) -> None:
    """The times of steps, of the numbers that were seen while the job ran."""
    for host, timed in attempt.numbers.items():
        rows = [row for _, row in timed]
        if rows and EARLIER in rows[0][0]:
            values: list[int | None] = [numbers[EARLIER] for numbers, _ in rows]
        else:
            values = [] if form is None else list(form.values(rows))
        attempt.steps += [(at, host, step) for (at, _), step in zip(timed, values, strict=False) if step is not None]
    attempt.steps.sort(key=lambda each: each[0])


def _read_logs(
    job_dir: JobDir,
    attempts: Sequence[AttemptEvidence],
    *,
    metrics: Sequence[MetricDefinition],
    step_regex: str | None,
    form: Form | None,
) -> tuple[Form | None, dict[int, tuple[str, StepLine]]]:
    """Curves and last lines, and how steps are printed. Events name the log of each host and attempt; without any there was one
    attempt."""
    reader = StepReader(step_regex)
    patterns = [(metric.name, compile_definition(metric)) for metric in metrics]
    whose = {name: attempt for attempt in attempts for name in attempt.streams.values()}
    told: list[tuple[AttemptEvidence, str, list[str], list[StepLine]]] = []
    for stream in streams(job_dir):
        attempt = whose.get(stream.path.name) if whose else attempts[0]
        if attempt is None:
            continue
        lines = [line for part in LogReader(stream.path).read(final=True) for line in part]
        attempt.log_tail[stream.host] = lines[-20:]
        if said := next((line for line in reversed(lines) if NO_SPACE.search(line[:CURVE_LINE_CHARACTERS])), None):
            attempt.no_space[stream.host] = said.strip()
        pairs = [(line, found) for line in lines if (found := reader.read(line)) is not None]
        told.append((attempt, stream.host, [line for line, _ in pairs], [found for _, found in pairs]))
    told.sort(key=lambda each: (each[0].number, each[1]))
    rows = [[(found.numbers, found.form) for found in all_found] for _, _, _, all_found in told]
    form = choose(rows) if form is None else extended(form, rows)
    if form is None:
        return None, {}
    step_lines: dict[int, tuple[str, StepLine]] = {}
    for number, (attempt, host, lines, all_found) in enumerate(told):
        steps = list(form.values(rows[number]))
        attempt.host_curves[host] = list(_curve(lines, steps, patterns))
        if not number:
            for line, found, step in zip(lines, all_found, steps, strict=True):
                if step is not None:
                    step_lines.setdefault(step, (line[:LINE_CHARACTERS], found))
    for attempt in attempts:
        attempt.curve = next((curve for _, curve in sorted(attempt.host_curves.items()) if curve), [])
    return form, step_lines


def _curve(
    lines: Sequence[str], steps: Sequence[int | None], patterns: Sequence[tuple[str, Any]]
) -> Iterator[tuple[int, dict[str, float]]]:
    for line, step in zip(lines, steps, strict=True):
        if step is None:
            continue
        values: dict[str, float] = {}
        for name, pattern in patterns:
            if pattern.groups and (match := pattern.search(line[:CURVE_LINE_CHARACTERS])):
                try:
                    values[name] = float(match[1])
                except (TypeError, ValueError):
                    continue
        yield step, values
