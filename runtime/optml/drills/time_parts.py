"""Where the time went."""

from optml.drills.advice import step_seconds
from optml.drills.costs import kept_until, worked_until
from optml.drills.evidence import AttemptEvidence, Evidence

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
        min(checkpoint_seconds or 0.0, each.seconds) for each in step_seconds(attempt, until=until) if each.has_one
    )
