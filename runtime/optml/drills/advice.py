"""What a checkpoint costs, and how often to save."""

import bisect
import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from optml.drills.costs import InterruptionCost, printed_steps, went_on_seconds
from optml.drills.evidence import AttemptEvidence, Evidence
from optml.drills.saves import ONE_SAVE_SECONDS, unnumbered
from optml.supervise import BUSY_SECONDS, IDLE_SECONDS, QUIET_LOOKS


@dataclass(frozen=True, kw_only=True)
class _Stretch:
    """From one printed step to the next one."""

    seconds: float
    step_count: int  # a program may print each tenth
    has_one: bool  # a checkpoint was written in it


def step_seconds(attempt: AttemptEvidence, *, until: float) -> list[_Stretch]:
    """How long each step but the first took, and whether a checkpoint was written in it."""
    written = _save_times(attempt)
    printed: list[tuple[float, int]] = []
    for at, _, step in attempt.steps:
        if at <= until and (not printed or step != printed[-1][1]):  # hosts print the same step
            printed.append((at, step))
    return [
        _Stretch(
            seconds=after - before,
            step_count=max(1, next_step - step),
            has_one=bisect.bisect_right(written, after) > bisect.bisect_right(written, before),
        )
        for (before, step), (after, next_step) in itertools.pairwise(printed)
    ]


def _save_times(attempt: AttemptEvidence) -> list[float]:
    """When checkpoints were written, in order: of several files each time, those of the commonest name, numbers apart."""
    by_name: dict[str, set[float]] = {}
    for saved in attempt.saved:
        by_name.setdefault(unnumbered(saved.path), set()).add(saved.written_at)
    return max((sorted(times) for times in by_name.values()), key=len, default=[])


def checkpoint_moments(attempt: AttemptEvidence) -> list[float]:
    """When checkpoints were written: files within a second of each other are one, unless they are the same again.

    The same is a file of that name, or of that name but for a number (also of the folder it lies in) after another step.
    """
    moments: list[float] = []
    names: set[str] = set()
    places: dict[str, str] = {}  # by name without numbers: the file or folder at the top that it was in
    stepped = [at for at, _, _ in attempt.steps]
    for saved in sorted(attempt.saved, key=lambda saved: saved.written_at):
        at, name, place = saved.written_at, unnumbered(saved.path), saved.path.split("/")[0]
        again = saved.path in names
        if name in places and places[name] != place:
            again = again or bisect.bisect_right(stepped, at) > bisect.bisect_right(stepped, moments[-1])
        if not moments or again or at - moments[-1] > ONE_SAVE_SECONDS:
            moments.append(at)
            names, places = set(), {}
        names.add(saved.path)
        places[name] = place
    return moments


# A step is timed when its line is read.
SHORTEST_TIMED_STEP_SECONDS = 2.5 * BUSY_SECONDS
MISSED_SECONDS = 0.5  # of files that are replaced faster than this not all are seen
EVERY_STEP = "every step saves, so there is none without a checkpoint to compare with"
EVERY_LINE = (
    "a checkpoint is written between nearly every two steps that are printed, so there is nothing to compare with"
)


@dataclass(frozen=True, kw_only=True)
class CheckpointCost:
    """Seconds; None: `unknown` says why. `at_most`: no step without a checkpoint was measured against one with it."""

    seconds: float | None
    at_most: bool = False
    resolution_seconds: float = BUSY_SECONDS  # less than that cannot be told from nothing
    unknown: str = ""


def checkpoint_cost(job: Evidence) -> CheckpointCost:
    """By how much a step with a checkpoint is longer than one without; where none has one, what saving after a notice took."""
    steps: list[_Stretch] = []
    gaps: list[float] = []
    for attempt in job.attempts:
        until = math.inf if attempt.interrupted_at is None else attempt.interrupted_at
        steps += step_seconds(attempt, until=until)
        written = [at for at in _save_times(attempt) if at <= until]
        gaps += [after - before for before, after in itertools.pairwise(written)]
    with_one = [each for each in steps if each.has_one]
    without = [each for each in steps if not each.has_one]
    mean = sum(each.seconds for each in steps) / len(steps) if steps else 0.0
    if len(with_one) >= 2:
        # Of files that are written faster than the store is filled only some arrive, and those that stand side by side tell.
        missed = gaps and mean < MISSED_SECONDS and statistics.median(gaps) < 1.25 * mean
        if len(with_one) >= 0.9 * len(steps) or missed:
            printed = printed_steps(job)
            strides = [after - before for before, after in itertools.pairwise(printed)]
            each = not strides or statistics.median(strides) <= 1
            return CheckpointCost(seconds=None, unknown=EVERY_STEP if each else EVERY_LINE)
        if mean < SHORTEST_TIMED_STEP_SECONDS:
            why = (
                f"steps take {mean:.3f} s, less than the {SHORTEST_TIMED_STEP_SECONDS:g} s that can be timed one by one"
            )
            return CheckpointCost(seconds=None, unknown=why)
        if len(without) >= 2:
            by_itself = statistics.median(each.seconds / each.step_count for each in without)
            longer = max(0.0, statistics.median(each.seconds - each.step_count * by_itself for each in with_one))
            is_quiet = statistics.median(each.seconds for each in with_one) > QUIET_LOOKS * BUSY_SECONDS
            return CheckpointCost(seconds=longer, resolution_seconds=IDLE_SECONDS if is_quiet else BUSY_SECONDS)
    saves = [
        max(written) - attempt.interrupted_at
        for attempt in job.interruptions
        if attempt.interrupted_at is not None
        and attempt.signalled_at
        and not attempt.killed_at
        and went_on_seconds(attempt) is None
        and (written := [saved.written_at for saved in attempt.saved if saved.written_at >= attempt.interrupted_at])
    ]
    if saves:
        return CheckpointCost(seconds=statistics.median(saves), at_most=True)
    if not any(attempt.saved for attempt in job.attempts):
        return CheckpointCost(seconds=None, unknown="no checkpoint was written")
    return CheckpointCost(seconds=None, unknown="too few steps with and without a checkpoint were seen")


# Young and Daly.


@dataclass(frozen=True, kw_only=True)
class Advice:
    """Seconds: what a checkpoint costs (C), mean time between interruptions (M), restart (R), and the interval that follows."""

    checkpoint_seconds: float
    resolution_seconds: float  # a C below that is none that could be measured
    at_most: bool  # C is what saving took after a notice, in which a step was finished too
    between_seconds: float
    restart_seconds: float
    interval_seconds: float  # Daly's: the optimum to higher order
    young_seconds: float  # Young's: sqrt(2 C M)
    actual_seconds: float | None  # what the job does
    expected_goodput: float  # at the advised interval
    actual_goodput: float | None  # at the job's own, by the same formula


def advise(
    job: Evidence,
    found: Sequence[InterruptionCost],
    measured: CheckpointCost,
    *,
    planned_between_seconds: float | None,
) -> Advice | str:
    """Or why there is none: no checkpoint or no restart was measured."""
    cost = measured.seconds
    trained = sum(
        (attempt.end_of_programs or attempt.training_at) - attempt.training_at
        for attempt in job.attempts
        if attempt.training_at is not None
    )
    restarts = [
        each.restart_seconds - each.restart_waited_seconds for each in found if each.restart_seconds is not None
    ]
    between = planned_between_seconds or (trained / len(found) if found else None)
    if cost is None:
        return f"what a checkpoint costs (C) is not measurable: {measured.unknown}"
    if between is None:
        return "how long a machine lasts (M) is unknown: nothing was interrupted"
    if not restarts:
        return "how long a restart takes (R) is unknown: no step came after an interruption"
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
        resolution_seconds=measured.resolution_seconds,
        at_most=measured.at_most,
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
