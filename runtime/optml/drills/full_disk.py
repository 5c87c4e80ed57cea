"""What became of a disk that was full."""

from collections.abc import Sequence
from dataclasses import dataclass

from optml.drills.evidence import AttemptEvidence, DiskFull, Evidence, Saved
from optml.drills.saves import unnumbered


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
