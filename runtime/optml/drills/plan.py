"""What a drill is to run: two jobs out of one request, and when the second one is interrupted."""

from dataclasses import dataclass, replace
from typing import Any

from optml import objects
from optml.drills.evidence import Evidence
from optml.drills.steps import trigger_at
from optml.errors import UserError
from optml.spec import InterruptionPlan, TrainingJob

MOST_INTERRUPTIONS = 5  # where the plan goes on for ever: a job that begins at zero each time would too
FEWEST_STEPS = 4  # of which two are chosen that are neither the first nor the last
DEFAULT_PARTS = (1 / 3, 2 / 3)  # of the undisturbed run's steps: where a drill interrupts that was told nothing


@dataclass(frozen=True, kw_only=True)
class Criteria:
    """What must hold for a drill to pass; None and False: it need not."""

    max_lost_steps: int | None = None  # per interruption
    max_recovery_seconds: float | None = (
        None  # from the programs' end to the first new step, without waiting for capacity
    )
    require_equal_metrics: bool = False
    require_equal_artifacts: bool = False  # bit for bit
    tolerance: float = 0.01  # of a metric's value


def names_of(job_name: str) -> tuple[str, str]:
    """Of the undisturbed and the disturbed job."""
    return f"{job_name[:53]}-baseline", f"{job_name[:53]}-drill"


def shortcuts_for(job: TrainingJob, name: str) -> dict[str, Any]:
    """What is laid over the request, so that neither run sees the other's checkpoints or those of a real job."""
    found: dict[str, Any] = {"name": name}
    if job.checkpoint is not None:
        uri = objects.join(job.checkpoint.uri, name)
        if objects.list_if_any(uri):
            raise UserError(
                f"{uri} holds another job's files already, and this run would start from them: remove them, or --name"
            )
        found["checkpoint"] = uri
    return found


def completed(plan: InterruptionPlan | None, baseline: Evidence) -> InterruptionPlan:
    """The plan as it is run: an end for one that has none; two interruptions, spread over the steps, for none at all."""
    if plan is None:
        return default_plan(baseline)
    endless = plan.every_seconds or plan.mean_seconds or plan.trace
    return replace(plan, most=MOST_INTERRUPTIONS) if endless and plan.most is None else plan


def default_plan(baseline: Evidence, *, like: InterruptionPlan | None = None) -> InterruptionPlan:
    """When certain steps are printed, which is while steps are done; where none were seen, so many seconds after the start."""
    like = like or InterruptionPlan()
    steps = sorted(baseline.step_lines)
    if baseline.form is not None and len(steps) >= FEWEST_STEPS:
        chosen = [steps[int(part * len(steps))] for part in DEFAULT_PARTS]
        triggers = [trigger_at(step, *baseline.step_lines[step], baseline.form) for step in chosen]
        if None not in triggers:
            return replace(like, triggers=tuple(trigger for trigger in triggers if trigger is not None))
    attempt = baseline.attempts[-1]
    end = attempt.end_of_programs
    if attempt.training_at is None or end is None:
        raise UserError(
            f"the undisturbed run {baseline.name} has no times of its own; say when to interrupt: --every, --at, --at-log, ..."
        )
    # What the plan's clock counts: hosts that are started are in training already.
    began = max(
        float(step["StartTime"])
        for step in baseline.describe["SecondaryStatusTransitions"]
        if step["Status"] == "Training"
    )
    start_up = (attempt.first_step[0] if attempt.first_step else attempt.training_at) - began
    working = end - began - start_up
    # Each new machine starts up again before it goes on.
    times = tuple(start_up * number + working * part for number, part in enumerate(DEFAULT_PARTS, start=1))
    return replace(like, at_seconds=times)
