"""When checkpoints came: the first one of a start from nothing, and what was on its way or never kept."""

import re
from dataclasses import dataclass, replace

from optml.drills.evidence import AttemptEvidence, Evidence, Saved, Unsettled

HEARD_SECONDS = 0.3  # what is read of a program so soon after SIGTERM, or after it wrote a file, was under way
ONE_SAVE_SECONDS = 1.0  # files of one checkpoint are written within so long of each other


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


def unnumbered(path: str) -> str:
    """The same for all files that differ in numbers only."""
    return re.sub(r"\d+", "", path)
