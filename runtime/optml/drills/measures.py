"""Numbers from evidence: what each interruption cost, where the time went, whether the result is the same, how often to save."""

import bisect
import hashlib
import itertools
import math
import re
import statistics
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import IO

from optml import objects, transfers
from optml.drills.evidence import AttemptEvidence, DiskFull, Evidence, Saved, Unsettled
from optml.errors import OptmlError
from optml.supervise import BUSY_SECONDS, IDLE_SECONDS, QUIET_LOOKS


@dataclass(frozen=True, kw_only=True)
class InterruptionCost:
    """One interruption. Seconds; None where the evidence does not say."""

    number: int
    attempt: int
    at_seconds: float  # after the job's creation
    cause: str
    notice_seconds: float  # 0: none was given
    notice: str  # none, used (something was saved after it), not needed (all had been saved already), wasted, all done
    save_seconds: float | None  # from the notice to the last file that arrived after it
    programs_ended_seconds: float | None  # from the notice to the end of the last program
    last_step: int | None  # printed before it
    next_step: int | None  # the first one printed afterwards, if need be after further interruptions
    resumed_attempt: int | None  # the one that printed it
    steps_lost: int | None  # of those that this attempt had done; None: nobody knows
    from_zero: bool | None  # the job began again with its first step
    restart_seconds: float | None  # from the programs' end to the first step printed
    recovery_seconds: float | None  # from the programs' end to the first step that is new
    restart_waited_seconds: float  # of the restart, without a machine
    waited_seconds: float  # of the recovery, without a machine
    steps_seen: bool  # the job printed steps at all: else nobody knows what was lost
    went_on_seconds: float | None  # after SIGTERM, until its last step was done: it did not heed it
    all_done: bool  # no step was left when its programs had ended
    untested: str = ""  # when it came, if there was nothing to go on with


HEARD_SECONDS = 0.3  # what is read of a program so soon after SIGTERM, or after it wrote a file, was under way
ONE_SAVE_SECONDS = 1.0  # files of one checkpoint are written within so long of each other
BEFORE_ALL, BEFORE_SAVE, AFTER_ALL = "before the first step", "before the first checkpoint", "after the last step"


@dataclass(frozen=True, kw_only=True)
class FirstSave:
    """When a start from nothing has its first checkpoint."""

    step: int  # the last one printed before it was written
    seconds: float  # of training, until it was in the store
    names: frozenset[str]  # of its files, numbers apart
    file_count: int


def first_save(*jobs: Evidence) -> FirstSave | None:
    """Of the first attempt that had one before the end of its work; None if there is none, or it came before the first step.

    A file that is written once (a configuration, say) is none where others are written again and again.
    """
    for attempt in (each for job in jobs for each in job.attempts):
        if attempt.restored_count or not attempt.steps or attempt.training_at is None:
            continue
        begin, (end, _, last) = attempt.steps[0][0], attempt.steps[-1]
        by_name: dict[str, list[Saved]] = {}
        for saved in attempt.saved:
            if saved.written_at >= begin:
                by_name.setdefault(unnumbered(saved.path), []).append(saved)
        if not by_name:
            continue
        most = max(len(each) for each in by_name.values())
        often = {
            name: min(each, key=lambda saved: saved.written_at)
            for name, each in by_name.items()
            if 2 * len(each) > most
        }
        first = min(often.values(), key=lambda saved: saved.written_at)
        step = max(number for at, _, number in attempt.steps if at <= first.written_at)
        # What is read just after the file was written may have been printed before.
        later = {number for at, _, number in attempt.steps if at > first.written_at}
        if not later or (later == {last} and end - first.written_at < HEARD_SECONDS):
            continue
        files = {name: each for name, each in often.items() if each.written_at - first.written_at <= ONE_SAVE_SECONDS}
        paths = {
            saved.path
            for name in files
            for saved in by_name[name]
            if saved.written_at - first.written_at <= ONE_SAVE_SECONDS
        }
        return FirstSave(
            step=step,
            seconds=max(each.at for each in files.values()) - attempt.training_at,
            names=frozenset(files),
            file_count=len(paths),
        )
    return None


def has_checkpoint(job: Evidence, place: int, first: FirstSave) -> bool:
    """Whether a whole one was in the store when the attempt at a place was over."""
    saved = {unnumbered(saved.path) for attempt in job.attempts[: place + 1] for saved in attempt.saved}
    return first.names <= saved


def never_kept(attempt: AttemptEvidence, first: FirstSave | None) -> list[Unsettled]:
    """Checkpoints that were written again and again, and none of that could be kept; of files whose names differ in numbers only,
    all together. That is not the interruption's fault.

    Where checkpoints are kept as a rule (`first`), only of those files, and only what was seen closed: a first one that was being
    written, or was on its way, when its machine went has changed too.
    """
    together: dict[str, Unsettled] = {}
    for each in attempt.unsettled:
        known = together.get(unnumbered(each.path), replace(each, open_count=0, closed_count=0))
        counts = (known.open_count + each.open_count, known.closed_count + each.closed_count)
        together[unnumbered(each.path)] = replace(known, open_count=counts[0], closed_count=counts[1])
    if first is None:
        return [each for each in together.values() if each.open_count + each.closed_count > 1]
    return [
        each for name, each in together.items() if name in first.names and each.closed_count >= 2 * first.file_count
    ]


def on_the_way(attempt: AttemptEvidence, first: FirstSave) -> list[str]:
    """Files of a checkpoint that were written, and not yet in the store."""
    return [each.path for each in attempt.unsettled if unnumbered(each.path) in first.names]


def _before_first_save(job: Evidence, place: int, first: FirstSave | None) -> bool:
    attempt = job.attempts[place]
    if first is None or attempt.last_step is None or attempt.training_at is None or attempt.interrupted_at is None:
        return False
    if has_checkpoint(job, place, first) or attempt.left_out or never_kept(attempt, first):
        return False
    if on_the_way(attempt, first):
        return True
    return attempt.last_step <= first.step or attempt.interrupted_at - attempt.training_at < first.seconds


def costs(
    job: Evidence, *, notice_seconds: float, last_step: int | None = None, first: FirstSave | None = None
) -> tuple[InterruptionCost, ...]:
    """`last_step`: the undisturbed run's last one, without which a job has not done all of its work. `first`: before it, a
    machine that goes without notice leaves no checkpoint.

    Of interruptions in a row without a step between them, the steps are lost to the first, whose attempt had done them: what all
    have lost together is what was done twice (`steps_done_twice`).
    """
    zero = next((attempt.first_step[1] for attempt in job.attempts if attempt.first_step), None)
    last_of_all = max((each.last_step for each in job.attempts if each.last_step is not None), default=None)
    only_grow = all(_only_grow(attempt) for attempt in job.attempts)
    is_complete = last_of_all is not None and (last_step is None or last_of_all >= last_step)
    printed = printed_steps(job)
    found: list[InterruptionCost] = []
    furthest: int | None = None
    for place, attempt in enumerate(job.attempts):
        furthest = _most(furthest, attempt.last_step)
        if attempt.interrupted_at is None:
            continue
        later = job.attempts[place + 1 :]
        following = later[0] if later else None
        resumed = next((each for each in later if each.first_step), None)
        finished = later[-1] if later and later[-1].why == "finished" else None
        end = attempt.end_of_programs
        after = [saved for saved in attempt.saved if saved.at >= attempt.interrupted_at and notice_seconds]
        next_step = resumed.first_step[1] if resumed and resumed.first_step else None
        lost = None
        if attempt.last_step is None and last_of_all is not None and (resumed or finished):
            lost = 0  # it was interrupted before its first step
        elif attempt.last_step is not None and next_step is not None:
            lost = max(0, attempt.last_step - step_before(next_step, printed))
        elif attempt.last_step is not None and finished and is_complete:
            lost = 0
        new_at = next((at for each in later for at, _, step in each.steps if furthest is None or step > furthest), None)
        restarted_at = following.first_step[0] if following and following.first_step else None
        if new_at is None and furthest is not None and furthest == last_of_all and finished and is_complete:
            new_at = (
                finished.end_of_programs
            )  # it was interrupted when all steps were done: what counts is that it ended
        all_done = is_complete and attempt.last_step == last_of_all and job.status == "Completed" and only_grow
        went_on = _went_on_seconds(attempt) if all_done and notice_seconds else None
        notice = _notice(attempt, notice_seconds, saved=bool(after), lost=lost)
        if went_on is not None:
            notice = "wasted"
        elif all_done and notice in ("wasted", "not needed") and not attempt.killed_at:
            notice = "all done"
        found.append(
            InterruptionCost(
                number=len(found) + 1,
                attempt=attempt.number,
                at_seconds=attempt.interrupted_at - job.created_at,
                cause=attempt.cause,
                notice_seconds=notice_seconds,
                notice=notice,
                save_seconds=max((saved.at for saved in after), default=attempt.interrupted_at) - attempt.interrupted_at
                if after
                else None,
                programs_ended_seconds=None if end is None else end - attempt.interrupted_at,
                last_step=attempt.last_step,
                next_step=next_step,
                resumed_attempt=None if resumed is None else resumed.number,
                steps_lost=lost,
                from_zero=_from_zero(attempt, next_step, zero),
                restart_seconds=None if restarted_at is None or end is None else restarted_at - end,
                recovery_seconds=None if new_at is None or end is None else new_at - end,
                restart_waited_seconds=_waited(job, end, restarted_at),
                waited_seconds=_waited(job, end, new_at),
                steps_seen=last_of_all is not None,
                went_on_seconds=went_on,
                all_done=all_done,
                untested=""
                if last_of_all is None
                else BEFORE_ALL
                if furthest is None
                else AFTER_ALL
                if all_done and went_on is None
                else BEFORE_SAVE
                if notice == "none" and not _went_on(next_step, zero) and _before_first_save(job, place, first)
                else "",
            )
        )
    return tuple(found)


def _waited(job: Evidence, since: float | None, until: float | None) -> float:
    """Seconds without a machine in between."""
    if since is None or until is None:
        return 0.0
    return sum(end - begin for begin, end in job.waits if begin >= since and end <= until)


def printed_steps(job: Evidence) -> list[int]:
    """All that were, once each, in order."""
    return sorted({step for attempt in job.attempts for _, _, step in attempt.steps})


def step_before(step: int, printed: Sequence[int]) -> int:
    """The last one that had been done when this one began, as far as what is printed tells: a program may print each tenth."""
    place = bisect.bisect_left(printed, step)
    if place > 0:
        return printed[place - 1]
    gap = printed[1] - printed[0] if len(printed) > 1 else 1
    return step - gap if step > gap else min(0, step - 1)


def steps_done_twice(job: Evidence) -> int:
    """Counted from what was printed, whatever interrupted the job: all steps of all attempts, but for the first time of each."""
    printed = printed_steps(job)
    size = {step: step - step_before(step, printed) for step in printed}
    done = [{step for _, _, step in attempt.steps} for attempt in job.attempts]
    return sum(size[step] for steps in done for step in steps) - sum(size.values())


def kept_until(job: Evidence, place: int, host: str | None = None) -> float:
    """When the attempt at a place printed the last step that was not done again (of one host, or of any); 0 if there is none."""
    later = job.attempts[place + 1 :]
    steps = [(at, step) for at, name, step in job.attempts[place].steps if host in (None, name)]
    firsts = [step for each in later for at, name, step in each.steps if host in (None, name)]
    if firsts:
        steps = [(at, step) for at, step in steps if step < min(firsts)]
    elif later and later[-1].why != "finished":
        return 0.0
    return max((at for at, _ in steps), default=0.0)


def worked_until(attempt: AttemptEvidence, interrupted: float, end: float, host: str | None = None) -> float:
    """When an attempt ended with its work: at the notice, or with the last step after it (of one host, or of any)."""
    last = max((at for at, name, _ in attempt.steps if host in (None, name)), default=interrupted)
    return min(end, max(interrupted, last))


def _only_grow(attempt: AttemptEvidence) -> bool:
    """Whether steps are numbered through: where they begin again with each epoch, the highest says nothing about the end."""
    steps = [(host, step) for _, host, step in attempt.steps]
    return all(
        before <= after
        for name in {host for host, _ in steps}
        for before, after in itertools.pairwise(step for host, step in steps if host == name)
    )


def _went_on_seconds(attempt: AttemptEvidence) -> float | None:
    """From SIGTERM to the last step, if there was more than the one that was under way."""
    later = [
        (at - attempt.signalled_at[host], step)
        for at, host, step in attempt.steps
        if host in attempt.signalled_at and at > attempt.signalled_at[host] + HEARD_SECONDS
    ]
    return max(seconds for seconds, _ in later) if len({step for _, step in later}) > 1 else None


def _notice(attempt: AttemptEvidence, notice_seconds: float, *, saved: bool, lost: int | None) -> str:
    if not notice_seconds or attempt.suspended:
        return "none"
    if any(host in attempt.killed_at for host in attempt.signalled_at):
        return "wasted"  # it ran on until it was killed: what was saved meanwhile would have been saved anyway
    if saved:
        return "used"
    return "not needed" if lost is not None and lost <= 1 else "wasted"


def _went_on(next_step: int | None, zero: int | None) -> bool:
    """It was not the first step that came next: something had been saved."""
    return next_step is not None and zero is not None and next_step > zero


def _from_zero(attempt: AttemptEvidence, next_step: int | None, zero: int | None) -> bool | None:
    if next_step is None or zero is None or attempt.last_step is None:
        return None
    return next_step <= zero and attempt.last_step > zero


def _most(one: int | None, other: int | None) -> int | None:
    return other if one is None else one if other is None else max(one, other)


@dataclass(frozen=True, kw_only=True)
class FullDisk:
    """A time in which the disk of a host's checkpoints took no more bytes, and what became of that. Seconds."""

    host: str
    attempt: int
    began_seconds: float  # after the attempt's training began
    seconds: float  # how long it lasted
    last_before: str  # the last file in the store from before; "" if there is none
    arrived: int  # files that were written meanwhile and arrived in the store
    next_seconds: float | None  # from its end to the next file that arrived; None: none did
    said: str  # the program's last words of it; "" if it had none
    ended_seconds: float | None  # from its begin to the program's failure
    exit_code: int | None
    torn: str  # a file that arrived meanwhile and is smaller than it should be, in words; "" if there is none
    torn_stands: bool  # and nothing took its place


def full_disks(job: Evidence) -> tuple[FullDisk, ...]:
    return tuple(_full_disk(attempt, disk) for attempt in job.attempts for disk in attempt.disks_full)


def _full_disk(attempt: AttemptEvidence, disk: DiskFull) -> FullDisk:
    ended, code = attempt.exits.get(disk.host, (None, None))
    end = disk.until if disk.until is not None else (ended or attempt.end_of_programs or disk.at)
    ours = [saved for saved in attempt.saved if saved.host == disk.host]
    # What was written before the disk was full may arrive a moment later.
    meanwhile = [saved for saved in ours if disk.at <= saved.written_at <= end]
    before = [saved for saved in ours if saved.written_at < disk.at]
    after = [saved for saved in ours if saved.written_at > end]
    failed = attempt.why == "failed" and code not in (0, None) and ended is not None and ended >= disk.at
    torn, what = next(
        ((saved, size) for saved in meanwhile if (size := _usual_size(saved, before)) and saved.size_bytes < size),
        (None, 0),
    )
    return FullDisk(
        host=disk.host,
        attempt=attempt.number,
        began_seconds=disk.at - (attempt.training_at or attempt.started_at),
        seconds=end - disk.at,
        last_before=max(before, key=lambda saved: saved.written_at).path if before else "",
        arrived=len(meanwhile),
        next_seconds=min(saved.at for saved in after) - end if after else None,
        said=attempt.no_space.get(disk.host, ""),
        ended_seconds=ended - disk.at if failed and ended is not None else None,
        exit_code=code if failed else None,
        torn="" if torn is None else f"{torn.path} has {torn.size_bytes:,} bytes, and had {what:,}",
        torn_stands=torn is not None and not any(saved.path == torn.path for saved in after),
    )


def _usual_size(saved: Saved, before: Sequence[Saved]) -> int:
    """How big a file was before: the same one, or those whose names differ in a number; 0 if there was none."""
    same = [each.size_bytes for each in before if each.path == saved.path]
    alike = [each.size_bytes for each in before if unnumbered(each.path) == unnumbered(saved.path)]
    return same[-1] if same else min(alike, default=0)


def unnumbered(path: str) -> str:
    """The same for all files that differ in numbers only."""
    return re.sub(r"\d+", "", path)


# Goodput.

PARTS = (
    "useful", "checkpointing", "start-up", "lost work", "notice", "staging", "waiting", "finishing", "unknown", "other",
)  # fmt: skip


SPEAKS_LAST_SHARE = 0.1  # a program whose first line comes in this last part of its time says at the end what came out


def time_parts(job: Evidence, *, checkpoint_seconds: float | None) -> dict[str, float]:
    """The job's wall time, cut into parts (seconds), PARTS in order; they add up to all of it.

    `useful`: between an attempt's first step and the last one that was not done again, less what checkpoints cost where that
    was measured (never more than the steps they were written in took). `unknown`: training of a job that printed no steps.
    """
    steps_seen = any(attempt.steps for attempt in job.attempts)
    parts = dict.fromkeys(PARTS, 0.0)
    parts["waiting"] = sum(until - since for since, until in job.waits)
    for place, attempt in enumerate(job.attempts):
        if attempt.training_at is None:
            continue
        parts["staging"] += attempt.training_at - attempt.started_at
        end = attempt.end_of_programs or attempt.training_at
        interrupted = attempt.interrupted_at if attempt.interrupted_at is not None else end
        # Of a job that prints nothing while it works, nobody knows when it began to.
        silent = attempt.training_at if not steps_seen else interrupted
        begin = attempt.first_step[0] if attempt.first_step else min(attempt.first_lines.values(), default=silent)
        if not steps_seen and end - begin < SPEAKS_LAST_SHARE * (end - attempt.training_at):
            begin = silent
        if steps_seen and not attempt.first_step and attempt.interrupted_at is not None:
            begin = interrupted  # it did not get beyond its start
        begin = min(begin, interrupted)
        parts["start-up"] += begin - attempt.training_at
        if not steps_seen:
            parts["unknown"] += interrupted - begin
            parts["notice"] += end - interrupted
        elif place == len(job.attempts) - 1 and attempt.interrupted_at is None:
            parts["useful"] += interrupted - begin
            parts["checkpointing"] += _checkpointing(attempt, checkpoint_seconds, until=interrupted)
        else:
            kept = min(end, max(begin, kept_until(job, place)))  # a program may go on after the notice
            parts["useful"] += kept - begin
            parts["checkpointing"] += _checkpointing(attempt, checkpoint_seconds, until=kept)
            worked = worked_until(attempt, interrupted, end)
            parts["lost work"] += max(0.0, worked - kept)
            parts["notice"] += end - max(worked, kept)
    parts["useful"] -= parts["checkpointing"]
    parts["finishing"] = job.phase_seconds("Uploading")
    parts["other"] = max(0.0, job.ended_at - job.created_at - sum(parts.values()))
    return parts


def _checkpointing(attempt: AttemptEvidence, checkpoint_seconds: float | None, *, until: float) -> float:
    """What the checkpoints of an attempt's steps took: of each step with one no more than the step itself."""
    return sum(
        min(checkpoint_seconds or 0.0, each.seconds) for each in _step_seconds(attempt, until=until) if each.has_one
    )


@dataclass(frozen=True, kw_only=True)
class _Stretch:
    """From one printed step to the next one."""

    seconds: float
    step_count: int  # a program may print each tenth
    has_one: bool  # a checkpoint was written in it


def _step_seconds(attempt: AttemptEvidence, *, until: float) -> list[_Stretch]:
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
        steps += _step_seconds(attempt, until=until)
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
        and _went_on_seconds(attempt) is None
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


# Results.


@dataclass(frozen=True, kw_only=True)
class MetricPair:
    name: str
    baseline: float | None
    disturbed: float | None
    tolerance: float
    noise: float = 0.0  # how far apart the two runs were before the first interruption, at most; 0 where nobody knows

    @property
    def is_noise(self) -> bool:
        """Not equal, and no further apart than the two runs were when nothing had been interrupted yet."""
        if self.baseline is None or self.disturbed is None or self.is_equal:
            return False
        return abs(self.baseline - self.disturbed) <= NOISE_TIMES * self.noise

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
        MetricPair(
            name=name,
            baseline=ours.get(name),
            disturbed=theirs.get(name),
            tolerance=tolerance,
            noise=noise_before(_curve_of(baseline, name), disturbed, name),
        )
        for name in sorted({*ours, *theirs})
    )


NOISE_TIMES = 5  # further apart than so many times the noise is no noise


def _curve_of(job: Evidence, metric: str) -> dict[int, float]:
    return {step: values[metric] for attempt in job.attempts for step, values in attempt.curve if metric in values}


def noise_before(known: Mapping[int, float], disturbed: Evidence, metric: str) -> float:
    """How far a curve was from the undisturbed one before the first interruption, at most."""
    curve = disturbed.attempts[0].curve
    return max(
        (abs(values[metric] - known[step]) for step, values in curve if metric in values and step in known), default=0.0
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
        known = _curve_of(baseline, metric)
        if len(known) < 2:
            continue
        size = max(known.values()) - min(known.values()) or max(abs(value) for value in known.values()) or 1.0
        noise = noise_before(known, disturbed, metric)
        for attempt in disturbed.attempts[1:]:
            for step, values in attempt.curve:
                if metric not in values or step not in known:
                    continue
                if abs(values[metric] - known[step]) > max(NOISE_TIMES * noise, 1e-4 * size):
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
    """SHA-256 of every file of the model artifact, wherever it lies; None if it is not there or cannot be read."""
    uri = job.describe.get("ModelArtifacts", {}).get("S3ModelArtifacts")
    if uri is None:
        return None
    found: dict[str, str] = {}
    try:
        if uri.endswith(".tar.gz"):
            with transfers.open_stream(uri) as stream, tarfile.open(fileobj=stream, mode="r|gz") as archive:
                for member in archive:
                    file = archive.extractfile(member) if member.isfile() else None
                    if file is not None:
                        found[member.name] = _digest(file)
            return found
        prefix = objects.join(uri, "")
        for info in objects.list_if_any(uri):
            with transfers.open_stream(info.uri) as stream:
                found[info.uri.removeprefix(prefix)] = _digest(stream)
    except (OSError, EOFError, tarfile.TarError, OptmlError):
        return None
    return found


def _digest(stream: IO[bytes]) -> str:
    digest = hashlib.sha256()
    while chunk := stream.read(transfers.CHUNK_BYTES):
        digest.update(chunk)
    return digest.hexdigest()


def artifact_differences(baseline: Mapping[str, str], disturbed: Mapping[str, str]) -> list[str]:
    return sorted(name for name in {*baseline, *disturbed} if baseline.get(name) != disturbed.get(name))
