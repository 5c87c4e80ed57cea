"""What each interruption cost: steps lost, seconds to a new one, what became of its notice."""

import bisect
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from optml.drills.evidence import AttemptEvidence, Evidence
from optml.drills.saves import HEARD_SECONDS, FirstSave, has_checkpoint, never_kept, on_the_way


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


BEFORE_ALL, BEFORE_SAVE, AFTER_ALL = "before the first step", "before the first checkpoint", "after the last step"


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
            # It was interrupted when all steps were done: what counts is that it ended.
            new_at = finished.end_of_programs
        all_done = is_complete and attempt.last_step == last_of_all and job.status == "Completed" and only_grow
        went_on = went_on_seconds(attempt) if all_done and notice_seconds else None
        notice = _notice(attempt, notice_seconds, saved=bool(after), lost=lost)
        if went_on is not None:
            notice = "wasted"
        elif all_done and notice in ("wasted", "not needed") and not attempt.killed_at:
            notice = "all done"
        untested = ""
        if last_of_all is not None:
            if furthest is None:
                untested = BEFORE_ALL
            elif all_done and went_on is None:
                untested = AFTER_ALL
            elif notice == "none" and not _went_on(next_step, zero) and _before_first_save(job, place, first):
                untested = BEFORE_SAVE
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
                untested=untested,
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


def went_on_seconds(attempt: AttemptEvidence) -> float | None:
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
