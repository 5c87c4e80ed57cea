"""Numbers from evidence: what each interruption cost, where the time went, whether the result is the same, how often to save."""

import hashlib
import itertools
import math
import statistics
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from optml.drills.evidence import AttemptEvidence, Evidence


@dataclass(frozen=True, kw_only=True)
class InterruptionCost:
    """One interruption. Seconds; None where the evidence does not say."""

    number: int
    attempt: int
    cause: str
    notice_seconds: float  # 0: none was given
    notice: str  # none, used (something was saved after it), not needed (all had been saved already), wasted
    save_seconds: float | None  # from the notice to the last file that arrived after it
    programs_ended_seconds: float | None  # from the notice to the end of the last program
    last_step: int | None  # printed before it
    next_step: int | None  # the first one printed afterwards
    steps_lost: int | None  # done twice
    from_zero: bool | None  # the job began again with its first step
    restart_seconds: float | None  # from the programs' end to the first step printed
    recovery_seconds: float | None  # from the programs' end to the first step that is new
    waited_seconds: float  # of that, without a machine


def costs(job: Evidence, *, notice_seconds: float) -> tuple[InterruptionCost, ...]:
    zero = next((attempt.first_step[1] for attempt in job.attempts if attempt.first_step), None)
    found: list[InterruptionCost] = []
    furthest: int | None = None
    for place, attempt in enumerate(job.attempts):
        furthest = _most(furthest, attempt.last_step)
        if attempt.interrupted_at is None:
            continue
        later = job.attempts[place + 1 :]
        following = later[0] if later else None
        end = attempt.end_of_programs
        after = [saved for saved in attempt.saved if saved.at >= attempt.interrupted_at and notice_seconds]
        next_step = following.first_step[1] if following and following.first_step else None
        lost = None
        if attempt.last_step is not None and next_step is not None:
            lost = max(0, attempt.last_step - next_step + 1)
        elif attempt.last_step is not None and was_done(following):
            lost = 0
        new_at = next(
            (at for each in later for at, _, step in each.steps if furthest is not None and step > furthest), None
        )
        restarted_at = following.first_step[0] if following and following.first_step else None
        if new_at is None and following is not None and furthest is not None and following is job.attempts[-1]:
            # It was interrupted when all steps were done: what counts is that it ended.
            new_at = following.end_of_programs if following.why == "finished" else None
        found.append(
            InterruptionCost(
                number=len(found) + 1,
                attempt=attempt.number,
                cause=attempt.cause,
                notice_seconds=notice_seconds,
                notice=_notice(attempt, notice_seconds, saved=bool(after), lost=lost),
                save_seconds=max((saved.at for saved in after), default=attempt.interrupted_at) - attempt.interrupted_at
                if after
                else None,
                programs_ended_seconds=None if end is None else end - attempt.interrupted_at,
                last_step=attempt.last_step,
                next_step=next_step,
                steps_lost=lost,
                from_zero=_from_zero(attempt, next_step, zero),
                restart_seconds=None if restarted_at is None or end is None else restarted_at - end,
                recovery_seconds=None if new_at is None or end is None else new_at - end,
                waited_seconds=sum(
                    until - since
                    for since, until in job.waits
                    if end is not None and since >= end and following is not None and until <= following.started_at + 1
                ),
            )
        )
    return tuple(found)


def was_done(following: AttemptEvidence | None) -> bool:
    """Whether an attempt found nothing left to do: it ended well without a step."""
    return following is not None and following.why == "finished" and not following.steps


def kept_until(attempt: AttemptEvidence, following: AttemptEvidence | None, host: str | None = None) -> float:
    """When an interrupted attempt printed the last step that was not done again (of one host, or of any); 0 if there is none."""
    steps = [(at, step) for at, name, step in attempt.steps if host in (None, name)]
    if not was_done(following):
        if following is None or not following.first_step:
            return 0.0
        next_step = following.first_step[1] if host is None else following.first_step_of(host)
        steps = [(at, step) for at, step in steps if next_step is not None and step < next_step]
    return max((at for at, _ in steps), default=0.0)


def _notice(attempt: AttemptEvidence, notice_seconds: float, *, saved: bool, lost: int | None) -> str:
    if not notice_seconds or attempt.suspended:
        return "none"
    if any(host in attempt.killed_at for host in attempt.signalled_at):
        return "wasted"  # it ran on until it was killed: what was saved meanwhile would have been saved anyway
    if saved:
        return "used"
    return "not needed" if lost is not None and lost <= 1 else "wasted"


def _from_zero(attempt: AttemptEvidence, next_step: int | None, zero: int | None) -> bool | None:
    if next_step is None or zero is None or attempt.last_step is None:
        return None
    return next_step <= zero and attempt.last_step > zero


def _most(one: int | None, other: int | None) -> int | None:
    return other if one is None else one if other is None else max(one, other)


# Goodput.

PARTS = ("useful", "checkpointing", "start-up", "lost work", "notice", "staging", "waiting", "finishing", "other")


def time_parts(job: Evidence, *, checkpoint_seconds: float | None) -> dict[str, float]:
    """The job's wall time, cut into parts (seconds), PARTS in order; they add up to all of it.

    `useful`: between an attempt's first step and the last one that was not done again, less what checkpoints cost.
    """
    parts = dict.fromkeys(PARTS, 0.0)
    parts["waiting"] = sum(until - since for since, until in job.waits)
    for place, attempt in enumerate(job.attempts):
        following = job.attempts[place + 1] if place + 1 < len(job.attempts) else None
        if attempt.training_at is None:
            continue
        parts["staging"] += attempt.training_at - attempt.started_at
        end = attempt.end_of_programs or attempt.training_at
        interrupted = attempt.interrupted_at if attempt.interrupted_at is not None else end
        begin = attempt.first_step[0] if attempt.first_step else min(attempt.first_lines.values(), default=interrupted)
        begin = min(begin, interrupted)
        parts["start-up"] += begin - attempt.training_at
        if attempt.interrupted_at is None:
            parts["useful"] += interrupted - begin
        else:
            kept = min(end, max(begin, kept_until(attempt, following)))  # a program may go on after the notice
            parts["useful"] += kept - begin
            parts["lost work"] += max(0.0, interrupted - kept)
            parts["notice"] += end - max(interrupted, kept)
    if checkpoint_seconds is not None:
        count = sum(len(checkpoint_moments(attempt)) for attempt in job.attempts)
        parts["checkpointing"] = min(parts["useful"], count * checkpoint_seconds)
        parts["useful"] -= parts["checkpointing"]
    parts["finishing"] = job.phase_seconds("Uploading")
    parts["other"] = max(0.0, job.ended_at - job.created_at - sum(parts.values()))
    return parts


def checkpoint_moments(attempt: AttemptEvidence) -> list[float]:
    """When checkpoints were written: files within a second of each other are one."""
    moments: list[float] = []
    for at in sorted(saved.written_at for saved in attempt.saved):
        if not moments or at - moments[-1] > 1.0:
            moments.append(at)
    return moments


# Young and Daly.


@dataclass(frozen=True, kw_only=True)
class Advice:
    """Seconds: what a checkpoint costs (C), mean time between interruptions (M), restart (R), and the interval that follows."""

    checkpoint_seconds: float
    between_seconds: float
    restart_seconds: float
    interval_seconds: float  # Daly's: the optimum to higher order
    young_seconds: float  # Young's: sqrt(2 C M)
    actual_seconds: float | None  # what the job does
    expected_goodput: float  # at the advised interval
    actual_goodput: float | None  # at the job's own, by the same formula


def advise(job: Evidence, found: Sequence[InterruptionCost], *, planned_between_seconds: float | None) -> Advice | None:
    """None where no checkpoint or no interruption was measured."""
    cost = checkpoint_cost(job, found)
    trained = sum(
        (attempt.end_of_programs or attempt.training_at) - attempt.training_at
        for attempt in job.attempts
        if attempt.training_at is not None
    )
    restarts = [each.restart_seconds - each.waited_seconds for each in found if each.restart_seconds is not None]
    between = planned_between_seconds or (trained / len(found) if found else None)
    if cost is None or between is None or not restarts:
        return None
    restart = max(0.0, statistics.median(restarts))
    interval = daly_interval(cost, between)
    gaps = [
        after - before
        for attempt in job.attempts
        for moments in [checkpoint_moments(attempt)]
        for before, after in itertools.pairwise(moments)
    ]
    actual = statistics.median(gaps) if gaps else None
    return Advice(
        checkpoint_seconds=cost,
        between_seconds=between,
        restart_seconds=restart,
        interval_seconds=interval,
        young_seconds=math.sqrt(2 * cost * between),
        actual_seconds=actual,
        expected_goodput=expected_goodput(interval, cost=cost, between=between, restart=restart),
        actual_goodput=None
        if actual is None
        else expected_goodput(actual, cost=cost, between=between, restart=restart),
    )


def daly_interval(cost: float, between: float) -> float:
    """Daly 2006, equation 37: work between checkpoints, without their own time."""
    if cost <= 0:
        return 0.0
    if cost >= 2 * between:
        return between
    ratio = cost / (2 * between)
    return math.sqrt(2 * cost * between) * (1 + math.sqrt(ratio) / 3 + ratio / 9) - cost


def expected_goodput(interval: float, *, cost: float, between: float, restart: float) -> float:
    """The useful share of time, to first order: a checkpoint per interval, half an interval lost per interruption."""
    if interval <= 0:
        return max(0.0, 1 - restart / between)
    return max(0.0, interval / (interval + cost) * (1 - (interval / 2 + restart) / between))


def checkpoint_cost(job: Evidence, found: Sequence[InterruptionCost]) -> float | None:
    """Seconds by which a step with a checkpoint is longer than one without; where each or none has one, what saving after a
    notice took; None if nothing was saved."""
    with_one: list[float] = []
    without: list[float] = []
    for attempt in job.attempts:
        moments = checkpoint_moments(attempt)
        until = attempt.interrupted_at or math.inf
        times: list[float] = []
        for at, _, step in attempt.steps:
            if at <= until and (not times or step != times[-1]):
                times.append(at)
        for before, after in itertools.pairwise(times):
            has_one = any(before < moment <= after for moment in moments)
            (with_one if has_one else without).append(after - before)
    if len(with_one) >= 2 and len(without) >= 2:
        return max(0.0, statistics.median(with_one) - statistics.median(without))
    saves = [each.save_seconds for each in found if each.save_seconds is not None and each.notice == "used"]
    return statistics.median(saves) if saves else None


# Results.


@dataclass(frozen=True, kw_only=True)
class MetricPair:
    name: str
    baseline: float | None
    disturbed: float | None
    tolerance: float

    @property
    def is_equal(self) -> bool:
        if self.baseline is None or self.disturbed is None:
            return False
        return abs(self.baseline - self.disturbed) <= self.tolerance * max(
            abs(self.baseline), abs(self.disturbed), 1e-12
        )


def compare_metrics(baseline: Evidence, disturbed: Evidence, *, tolerance: float) -> tuple[MetricPair, ...]:
    """`tolerance`: of the bigger of the two values."""
    ours, theirs = baseline.final_metrics, disturbed.final_metrics
    return tuple(
        MetricPair(name=name, baseline=ours.get(name), disturbed=theirs.get(name), tolerance=tolerance)
        for name in sorted({*ours, *theirs})
    )


@dataclass(frozen=True, kw_only=True)
class Jump:
    """The disturbed curve leaves the baseline's when the job goes on."""

    metric: str
    attempt: int
    step: int
    baseline: float
    disturbed: float
    noise: float  # how far apart the two were before the first interruption, at most


def find_jump(baseline: Evidence, disturbed: Evidence) -> Jump | None:
    """The first value after a restart that is further from the baseline's than before any interruption, by far."""
    for metric in curve_metrics(baseline, disturbed):
        known = {
            step: values[metric] for attempt in baseline.attempts for step, values in attempt.curve if metric in values
        }
        if len(known) < 2:
            continue
        size = max(known.values()) - min(known.values()) or max(abs(value) for value in known.values()) or 1.0
        first, *rest = disturbed.attempts
        noise = max(
            (abs(values[metric] - known[step]) for step, values in first.curve if metric in values and step in known),
            default=0.0,
        )
        for attempt in rest:
            for step, values in attempt.curve:
                if metric not in values or step not in known:
                    continue
                if abs(values[metric] - known[step]) > max(5 * noise, 1e-4 * size):
                    return Jump(
                        metric=metric,
                        attempt=attempt.number,
                        step=step,
                        baseline=known[step],
                        disturbed=values[metric],
                        noise=noise,
                    )
    return None


def curve_metrics(baseline: Evidence, disturbed: Evidence) -> list[str]:
    """Metrics that are printed with a step, losses first."""
    names: dict[str, int] = {}
    for job in (baseline, disturbed):
        for attempt in job.attempts:
            for _, values in attempt.curve:
                for name in values:
                    names[name] = names.get(name, 0) + 1
    return sorted(names, key=lambda name: ("loss" not in name.lower(), -names[name], name))


def artifact_digests(job: Evidence) -> dict[str, str] | None:
    """SHA-256 of every file of the model artifact; None if it lies in a store that is not this machine's, or is not there."""
    uri = job.describe["ModelArtifacts"]["S3ModelArtifacts"]
    if not uri.startswith("file://"):
        return None
    path = Path(uri.removeprefix("file://"))
    try:
        if path.is_dir():
            files = sorted(each for each in path.rglob("*") if each.is_file())
            return {str(each.relative_to(path)): hashlib.sha256(each.read_bytes()).hexdigest() for each in files}
        with tarfile.open(path) as archive:
            found: dict[str, str] = {}
            for member in archive.getmembers():
                stream = archive.extractfile(member) if member.isfile() else None
                if stream is not None:
                    found[member.name] = hashlib.file_digest(stream, "sha256").hexdigest()  # type: ignore[arg-type]
            return found
    except (OSError, tarfile.TarError):
        return None


def artifact_differences(baseline: Mapping[str, str], disturbed: Mapping[str, str]) -> list[str]:
    return sorted(name for name in {*baseline, *disturbed} if baseline.get(name) != disturbed.get(name))
