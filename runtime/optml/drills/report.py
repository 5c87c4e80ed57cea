"""What a drill found, as data, as JSON and as text."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from optml.console import count_text, duration_text
from optml.drills.advice import Advice
from optml.drills.costs import InterruptionCost, steps_done_twice
from optml.drills.diagnosis import Finding
from optml.drills.evidence import Evidence
from optml.drills.full_disk import FullDisk, full_disks
from optml.drills.plan import Criteria
from optml.drills.results import Jump, MetricPair
from optml.drills.time_parts import PARTS
from optml.spec import How, InterruptionPlan, SignalTo

NO_STEPS = "no steps were seen in what it prints; let it print them, or give --step-regex"
SURVIVES, DIFFERS, FAILS, UNTESTED = "survives", "differs", "does not survive", "not tested"
REASON_CHARACTERS = 300  # of why a job failed
UNKNOWN = "completes"  # what it lost is unknown


@dataclass(frozen=True, kw_only=True)
class Report:
    baseline: Evidence
    disturbed: Evidence
    plan: InterruptionPlan
    criteria: Criteria
    costs: tuple[InterruptionCost, ...]
    metrics: tuple[MetricPair, ...]
    artifact_differences: tuple[str, ...] | None  # None: not compared, or not to be had
    jump: Jump | None
    findings: tuple[Finding, ...]
    parts: Mapping[str, float]
    baseline_parts: Mapping[str, float]
    advice: Advice | str  # or why there is none
    backend: str = "process"

    @property
    def is_equal(self) -> bool:
        """Whether every final metric is, and, where that was asked for, every file of the model."""
        return all(pair.is_equal for pair in self.metrics) and not self.artifact_differences

    @property
    def outcome(self) -> str:
        if not self.costs and not self.disturbed.away and not self.full_disks:
            return UNTESTED
        zero = any(cost.from_zero and not cost.untested for cost in self.costs)
        if self.disturbed.status != "Completed" or zero or any(finding.fatal for finding in self.findings):
            return FAILS
        if self.costs and all(cost.untested for cost in self.costs):
            return UNTESTED
        if not self.is_equal:
            return DIFFERS
        return UNKNOWN if self.unknown_losses else SURVIVES

    @property
    def did_not_come(self) -> str:
        """Of how many interruptions that were planned only some came, in brackets; "" if all did, or the plan has no number."""
        plan = self.plan
        if plan.every_seconds or plan.mean_seconds or plan.trace or not plan.how.ends_hosts:
            return ""
        planned = len(plan.at_seconds) + len(plan.triggers)
        planned = planned if plan.most is None else min(planned, plan.most)
        if not self.costs or len(self.costs) >= planned:
            return ""
        return f" (only {len(self.costs)} of the {planned} interruptions that were planned came: the job ended first)"

    @property
    def full_disks(self) -> tuple[FullDisk, ...]:
        return full_disks(self.disturbed)

    @property
    def lost_steps(self) -> float | None:
        """Per interruption; None if that is not known of each."""
        return self.known_lost_steps / len(self.costs) if self.costs and not self.unknown_losses else None

    @property
    def known_lost_steps(self) -> int:
        """Of all interruptions together."""
        return sum(cost.steps_lost for cost in self.costs if cost.steps_lost is not None)

    @property
    def unknown_losses(self) -> int:
        """Of how many interruptions nobody knows what they lost."""
        return sum(1 for cost in self.costs if cost.steps_lost is None)

    @property
    def recovery_seconds(self) -> float | None:
        """Per interruption, from the programs' end to the first new step, without waiting for capacity."""
        return _mean([cost.recovery_seconds and cost.recovery_seconds - cost.waited_seconds for cost in self.costs])

    @property
    def goodput(self) -> float | None:
        """The share of the disturbed run's wall time that was useful work; None where no step was seen."""
        if not self.steps_seen:
            return None
        whole = sum(self.parts.values())
        return self.parts["useful"] / whole if whole else 0.0

    @property
    def steps_seen(self) -> bool:
        return any(attempt.steps for attempt in self.disturbed.attempts)

    @property
    def extra_seconds(self) -> float:
        """By which the disturbed run was longer."""
        return (self.disturbed.ended_at - self.disturbed.created_at) - (
            self.baseline.ended_at - self.baseline.created_at
        )

    @property
    def billing(self) -> tuple[float, float]:
        """Training seconds, and those of them with an instance: what managed spot training bills."""
        billed = self.disturbed.phase_seconds("Downloading", "Training", "Uploading", "Stopping")
        started = self.disturbed.describe.get("TrainingStartTime")
        trained = 0.0 if started is None else self.disturbed.ended_at - float(started)
        return trained, min(trained, billed)

    @property
    def waited(self) -> bool:
        """Whether there was time without a machine, which managed spot training does not bill."""
        return self.parts["waiting"] > 0

    @property
    def savings(self) -> float:
        """Percent, as AWS computes it: (1 - billable / training) * 100; of tenths of seconds, as they are shown."""
        trained, billed = (round(seconds, 1) for seconds in self.billing)
        return (1 - billed / trained) * 100 if trained else 0.0

    @property
    def broken_criteria(self) -> tuple[str, ...]:
        return tuple(self._broken_criteria())

    def _broken_criteria(self) -> Iterator[str]:
        if self.outcome == FAILS:
            yield "the job does not survive"
        if self.outcome == UNTESTED:
            yield "nothing was put to the test"
        wanted = self.criteria
        if wanted.max_lost_steps is not None:
            for cost in self.costs:
                if cost.steps_lost is None:
                    yield f"interruption {cost.number}: nobody knows how many steps were lost ({why_unknown(cost)})"
                elif cost.steps_lost > wanted.max_lost_steps:
                    yield f"interruption {cost.number} lost {cost.steps_lost} steps, more than {wanted.max_lost_steps}"
        if wanted.max_recovery_seconds is not None:
            for cost in self.costs:
                if not cost.steps_seen:
                    yield f"interruption {cost.number}: nobody knows when a new step came ({NO_STEPS})"
                elif cost.recovery_seconds is None:
                    if not cost.all_done:
                        yield f"interruption {cost.number}: no new step came after it"
                elif cost.recovery_seconds - cost.waited_seconds > wanted.max_recovery_seconds:
                    took = duration_text(cost.recovery_seconds - cost.waited_seconds)
                    yield f"interruption {cost.number}: {took} to the first new step, more than {wanted.max_recovery_seconds:g} s"
        if wanted.require_equal_metrics:
            if not self.metrics:
                yield "there are no final metrics to compare; give --metric NAME=REGEX"
            for pair in self.metrics:
                if not pair.is_equal:
                    yield f"{pair.name} is {_value(pair.disturbed)}, and {_value(pair.baseline)} undisturbed"
        if wanted.require_equal_artifacts:
            if self.artifact_differences is None:
                yield "the model artifacts could not be compared"
            elif self.artifact_differences:
                yield f"the model differs in {', '.join(self.artifact_differences[:5])}"

    @property
    def passed(self) -> bool:
        return not self.broken_criteria

    @property
    def verdict(self) -> str:
        """One sentence for whoever must decide."""
        times = count_text(len(self.costs), "interruption")
        if self.full_disks and not self.costs:
            times = "a full disk" if len(self.full_disks) == 1 else f"{len(self.full_disks)} full disks"
        if self.disturbed.away and not self.costs:
            times = f"the checkpoint store was away for {duration_text(sum(each for _, each in self.disturbed.away))}"
        if self.outcome == UNTESTED:
            return f"NOT TESTED: {self._why_untested}{self.did_not_come}"
        if self.outcome == FAILS:
            zeros = sum(1 for cost in self.costs if cost.from_zero)
            what = f"ended {self.disturbed.secondary} after {times}"
            if self.disturbed.status == "Completed":
                what = f"completes, but does not go on from where it was after {times}"
            if zeros:
                what = "restarted from zero after " + (
                    "each interruption" if zeros == len(self.costs) else f"{zeros} of {times}"
                )
            what += self.did_not_come
            if self.known_lost_steps:
                what += f", {count_text(self.known_lost_steps, 'step')} lost in all"
            reason = str(self.disturbed.describe.get("FailureReason", ""))[:REASON_CHARACTERS]
            why = f": {reason}" if reason and self.disturbed.status == "Failed" else ""
            if self.findings:
                why = f": {self.findings[0].title[:1].lower()}{self.findings[0].title[1:]}"
            return f"does NOT survive: {what}{why}"
        if self.full_disks and not self.costs:
            other = "" if self.outcome == SURVIVES else ", but with ANOTHER RESULT"
            return f"survives {times}: {full_disk_text(self.full_disks[0])}{other}"
        if not self.costs:
            other = "" if self.outcome == SURVIVES else ", but with ANOTHER RESULT"
            return f"survives: {times}, and nothing was lost{other}"
        parts = []
        if self.lost_steps is not None:
            parts.append(f"{self.lost_steps:.3g} step" + ("" if self.lost_steps == 1 else "s"))
        if self.recovery_seconds is not None:
            parts.append(duration_text(self.recovery_seconds))
        lost = f"lost {' and '.join(parts)} per interruption" if parts else "it completed"
        never = sum(1 for cost in self.costs if cost.recovery_seconds is None)
        if parts and self.steps_seen and never and self.recovery_seconds is not None:
            lost += f" (no new step came after {never} of them)"
        if self.steps_seen and self.unknown_losses:
            lost += f"; how many steps {self.unknown_losses} of {len(self.costs)} lost is unknown"
            if self.known_lost_steps:
                lost += f", the others lost {self.known_lost_steps} in all"
        not_all = self.did_not_come
        if untested := [cost for cost in self.costs if cost.untested]:
            they = "it" if len(untested) == 1 else "they"
            not_all += f"; {len(untested)} of {times} tested nothing, for {they} came {_places(untested)}"
        if self.unknown_losses == len(self.costs):
            lost = f"what it lost is unknown ({why_unknown(self.costs[0])})"
        verb = "completes after" if self.unknown_losses else "survives"
        if self.outcome == DIFFERS:
            return f"{verb} {times} ({lost}), but with ANOTHER RESULT{self._why_another}{not_all}"
        if self.outcome == UNKNOWN:
            return f"completes after {times}, but {lost}{not_all}"
        same = ", with the same result" if self.metrics or self.artifact_differences is not None else ""
        return f"survives {times}: {lost}{same}{not_all}"

    @property
    def _why_another(self) -> str:
        """If the interruptions need not be the reason."""
        others = [pair for pair in self.metrics if not pair.is_equal]
        if self.jump is not None or self.artifact_differences or not all(pair.is_noise for pair in others):
            return ""
        return ", no further from the undisturbed one than before the first interruption: no two runs are the same"

    @property
    def _why_untested(self) -> str:
        job = self.disturbed
        if not any(attempt.training_at for attempt in job.attempts):
            return f"no machine ever came, so nothing ran ({job.secondary})"
        if not self.costs:
            return f"the job ended ({job.secondary}) before the plan interrupted it"
        which = "the only interruption" if len(self.costs) == 1 else f"each of {len(self.costs)} interruptions"
        return f"{which} came {_places(self.costs)}, so there was nothing to go on with"


def _places(costs: Sequence[InterruptionCost]) -> str:
    return " or ".join(sorted({cost.untested for cost in costs}))


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _value(value: float | None) -> str:
    return "missing" if value is None else f"{value:.6g}"


# JSON.


def as_json(report: Report) -> dict[str, Any]:
    trained, billed = report.billing
    return {
        "Outcome": report.outcome,
        "Verdict": report.verdict,
        "Passed": report.passed,
        "BrokenCriteria": list(report.broken_criteria),
        "Baseline": _job_json(report.baseline),
        "Disturbed": _job_json(report.disturbed),
        "Interruptions": [asdict(cost) for cost in report.costs],
        "FullDisks": [asdict(disk) for disk in report.full_disks],
        "LostStepsPerInterruption": report.lost_steps,
        "LostSteps": report.known_lost_steps,
        "InterruptionsWithUnknownLoss": report.unknown_losses,
        "StepsDoneTwice": steps_done_twice(report.disturbed) if report.steps_seen else None,
        "RecoverySecondsPerInterruption": report.recovery_seconds,
        "Goodput": report.goodput,
        "TimeParts": dict(report.parts),
        "BaselineTimeParts": dict(report.baseline_parts),
        "TrainingSeconds": trained,
        "BillableSeconds": billed,
        "SavingsPercent": report.savings,
        "Metrics": [{**asdict(pair), "is_equal": pair.is_equal} for pair in report.metrics],
        "ArtifactDifferences": None if report.artifact_differences is None else list(report.artifact_differences),
        "Jump": None if report.jump is None else asdict(report.jump),
        "Findings": [asdict(finding) for finding in report.findings],
        "Advice": None if isinstance(report.advice, str) else asdict(report.advice),
        "NoAdvice": report.advice if isinstance(report.advice, str) else None,
        "Plan": asdict(report.plan),
    }


def _job_json(job: Evidence) -> dict[str, Any]:
    return {
        "Name": job.name,
        "Status": job.status,
        "SecondaryStatus": job.secondary,
        "Attempts": len(job.attempts),
        "Seconds": job.ended_at - job.created_at,
        "FailureReason": job.describe.get("FailureReason"),
    }


# Text.


def as_text(report: Report) -> str:
    trained, billed = report.billing
    lines = ["", f"DRILL  {report.verdict}", ""]
    if report.costs:
        header = ["#", "AT", "WHY", "NOTICE", "SAVED IN", "LAST", "NEXT", "LOST", "FIRST NEW STEP"]
        lines += [*table([header, *(_cost_row(cost) for cost in report.costs)]), ""]
    if report.full_disks:
        lines += [f"disk       {disk.host}: {full_disk_text(disk)}" for disk in report.full_disks] + [""]
    for finding in report.findings:
        mark = "!!" if finding.fatal else " !"
        lines += [f"{mark} {finding.title}", f"     seen: {finding.evidence}", f"     cure: {finding.cure}", ""]
    if report.steps_seen and report.costs and (twice := steps_done_twice(report.disturbed)) != report.known_lost_steps:
        lines.append(
            f"steps      {count_text(twice, 'step')} done twice by what was printed, {report.known_lost_steps} of them for the "
            "interruptions"
        )
    whole = sum(report.parts.values()) or 1.0
    split = ", ".join(
        f"{name} {100 * report.parts[name] / whole:.1f} %" for name in PARTS[1:] if report.parts[name] >= 0.0005 * whole
    )
    if report.goodput is None:
        lines.append(f"goodput    unknown: {NO_STEPS}; of {duration_text(whole)}: {split}")
    else:
        lines.append(
            f"goodput    {100 * report.goodput:.1f} % of {duration_text(whole)} was useful work; the rest: {split or 'nothing'}"
        )
    lines.append(
        f"time       undisturbed {duration_text(report.baseline.ended_at - report.baseline.created_at)}, disturbed "
        f"{duration_text(report.disturbed.ended_at - report.disturbed.created_at)}"
    )
    saved = f"savings {report.savings:.1f} %" if report.waited else "no waiting for a machine to save by"
    lines.append(f"billing    training {trained:.1f} s, billable as managed spot {billed:.1f} s, {saved}")
    for pair in report.metrics:
        sign = "same" if pair.is_equal else "DIFFERENT"
        lines.append(f"result     {pair.name}: {_value(pair.disturbed)}, undisturbed {_value(pair.baseline)} ({sign})")
    if report.artifact_differences is not None:
        what = (
            f"differs in {', '.join(report.artifact_differences[:5])}"
            if report.artifact_differences
            else "is bit for bit the same"
        )
        lines.append(f"model      {what}")
    lines.append(f"interval   {advice_text(report.advice)}")
    for broken in report.broken_criteria:
        lines.append(f"FAILED     {broken}")
    return "\n".join(lines)


def advice_text(advice: Advice | str) -> str:
    if isinstance(advice, str):
        return f"no advice: {advice}"
    own = (
        ""
        if advice.actual_seconds is None
        else f"; those that were kept are {duration_text(advice.actual_seconds)} apart"
    )
    if advice.checkpoint_seconds < advice.resolution_seconds:
        return f"save as often as you like: a checkpoint costs less than {advice.resolution_seconds:g} s{own}"
    most = "at most " if advice.at_most else ""
    return (
        f"a checkpoint costs {most}{duration_text(advice.checkpoint_seconds)} (C), a machine lasts "
        f"{duration_text(advice.between_seconds)} (M), a restart takes {duration_text(advice.restart_seconds)} (R): save every "
        f"{duration_text(advice.interval_seconds)} (Daly; Young {duration_text(advice.young_seconds)}){own}"
    )


def plan_text(plan: InterruptionPlan) -> str:
    """What was done to the job, for who does not know the options."""
    when = [f"{duration_text(at)} of training" for at in plan.at_seconds]
    if plan.every_seconds is not None:
        when.append(f"every {duration_text(plan.every_seconds)} of an attempt's training")
    if plan.mean_seconds is not None:
        when.append(f"random moments, {duration_text(plan.mean_seconds)} apart on average (seed {plan.seed})")
    when += [str(trigger) for trigger in plan.triggers]
    if plan.trace is not None:
        when.append("the ends of capacity in a trace")
    what = {
        How.TERMINATE: f"SIGTERM to {'every' if plan.signal_to is SignalTo.EVERY_PROCESS else 'the main'} process, SIGKILL "
        f"{duration_text(plan.notice_seconds)} later"
        if plan.notice_seconds
        else "SIGKILL without a notice",
        How.HANG: f"programs stand still for {duration_text(plan.notice_seconds)}, then SIGKILL",
        How.STORE_AWAY: f"the checkpoint store refuses for {duration_text(plan.away_seconds)}",
        How.FULL_DISK: f"the disk of the checkpoints is full for {duration_text(plan.away_seconds)}",
    }[plan.how]
    if plan.how.ends_hosts and plan.reacquire_seconds:
        what += f", the next machine {duration_text(plan.reacquire_seconds)} after that"
    most = "" if plan.most is None else f", at most {count_text(plan.most, 'time')}"
    return f"{what}; {plan.host or 'all hosts'}; when: {', '.join(when)}{most}"


def criteria_texts(criteria: Criteria) -> list[str]:
    """What was asked for, beside surviving."""
    found = []
    if criteria.max_lost_steps is not None:
        found.append(f"at most {count_text(criteria.max_lost_steps, 'step')} lost by each interruption")
    if criteria.max_recovery_seconds is not None:
        found.append(f"a new step within {duration_text(criteria.max_recovery_seconds)}")
    if criteria.require_equal_metrics:
        found.append(f"the same metrics within {100 * criteria.tolerance:g} %")
    if criteria.require_equal_artifacts:
        found.append("the same model, bit for bit")
    return found


def full_disk_text(disk: FullDisk) -> str:
    """What became of it, in a part of a sentence."""
    arrived = "nothing" if not disk.arrived else count_text(disk.arrived, "file")
    text = f"full for {duration_text(disk.seconds)}, {arrived} saved meanwhile"
    if disk.ended_seconds is not None:
        return f"{text}, and the program ended with exit code {disk.exit_code}"
    if disk.next_seconds is not None:
        return f"{text}, the next file {duration_text(disk.next_seconds)} after there was room again"
    return f"{text}, nor afterwards"


def _cost_row(cost: InterruptionCost) -> list[str]:
    lost = lost_text(cost)
    return [
        str(cost.number),
        duration_text(cost.at_seconds),
        cost.cause,
        cost.notice.upper() if cost.notice == "wasted" else cost.notice,
        "-" if cost.save_seconds is None else duration_text(cost.save_seconds),
        *step_texts(cost),
        f"{lost} (from zero)" if cost.from_zero else lost,
        new_step_text(cost),
    ]


def lost_text(cost: InterruptionCost) -> str:
    return "unknown" if cost.steps_lost is None else str(cost.steps_lost)


def why_unknown(cost: InterruptionCost) -> str:
    """Why nobody knows what an interruption lost."""
    if not cost.steps_seen:
        return NO_STEPS
    return f"its attempt had come to step {cost.last_step}, and no step was printed after it"


def step_texts(cost: InterruptionCost) -> tuple[str, str]:
    """The last step before and the first one after an interruption."""
    none = "none" if cost.steps_seen else "unknown"
    return tuple(none if step is None else str(step) for step in (cost.last_step, cost.next_step))  # type: ignore[return-value]


def new_step_text(cost: InterruptionCost) -> str:
    """When the first step came that was new."""
    if not cost.steps_seen:
        return "unknown"
    if cost.all_done:
        return "none: all were done"
    return "never" if cost.recovery_seconds is None else f"after {duration_text(cost.recovery_seconds)}"


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(f"{text:<{width}}" for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]
