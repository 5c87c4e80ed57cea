"""The story of a drill: a job undisturbed, the same job disturbed, and what the difference says."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from optml import jobs, submit
from optml.clock import Clock
from optml.console import Console
from optml.drills import advice, costs, results, saves, time_parts
from optml.drills.diagnosis import diagnose
from optml.drills.evidence import Evidence, read_evidence
from optml.drills.overwrite import make_free
from optml.drills.page import page
from optml.drills.plan import Criteria, completed, default_plan, names_of, shortcuts_for
from optml.drills.report import Report, as_json, as_text
from optml.errors import JobFailed, UserError
from optml.jobdir import drills_dir
from optml.loading import load_request
from optml.record import TERMINAL, replace_json
from optml.spec import InterruptionPlan, LocalOptions, TrainingJob


def drill(
    request: Mapping[str, Any] | str | Path | None = None,
    *,
    plan: InterruptionPlan | None = None,
    criteria: Criteria | None = None,
    baseline: str | None = None,
    options: LocalOptions | None = None,
    report_dir: Path | None = None,
    logs: bool = True,
    console: Console | None = None,
    clock: Clock | None = None,
    details: InterruptionPlan | None = None,
    overwrite: bool = False,
    **shortcuts: Any,
) -> Report:
    """Run a job undisturbed (or take a completed one, `baseline`) and disturbed, and report.

    `plan`: when to interrupt; None: twice, spread over the steps, in the manner of `details` if given. `report_dir`: where
    report.html and report.json go; default $OPTML_HOME/drills/<name>. `overwrite`: remove an earlier drill of this name first,
    its two jobs, their checkpoints and its report. The rest as in `optml.train`.

    UserError if the request, the plan or the baseline cannot be, or if a report stands in `report_dir` already; ResourceInUse if
    a job has the name; JobFailed if the job does not complete undisturbed.
    """
    if report_dir is not None and not overwrite:
        refuse_earlier_report(report_dir)
    options, shortcuts = submit.split_options(options or LocalOptions(), shortcuts)
    options = replace(options, evidence=True)
    base_dir = submit.current_dir()
    if request is not None:
        request = load_request(request, base_dir)  # once: standard input cannot be read again
    job, _, _ = submit.prepare(
        request, options=replace(options, interruptions=plan), shortcuts=shortcuts, base_dir=base_dir
    )
    undisturbed_name, disturbed_name = names_of(job.name)
    console = console or Console(silent=not logs, width=submit.host_width(job))
    runner = _Runner(request, shortcuts, base_dir=base_dir, job=job, console=console, clock=clock or Clock())
    names = (undisturbed_name, disturbed_name) if baseline is None else (disturbed_name,)
    if baseline in names:
        raise UserError(f"--baseline {baseline}: the disturbed job would have this name; give another --name")
    make_free(names, overwrite=overwrite, console=console)
    if baseline is None:
        console.say(f"Drill of {job.name}: first undisturbed, then interrupted")
        runner.run(undisturbed_name, options)
    before = runner.evidence(baseline or undisturbed_name)
    if before.status != "Completed":
        raise JobFailed(
            f"{before.name} ended {before.status} without any interruption, so a drill says nothing: "
            f"{before.describe.get('FailureReason', before.secondary)}"
        )
    plan = default_plan(before, like=details) if plan is None else completed(plan, before)
    runner.run(disturbed_name, replace(options, interruptions=plan))
    report = examine(
        job, before, runner.evidence(disturbed_name, like=before), plan=plan, criteria=criteria or Criteria()
    )
    folder = report_dir or drills_dir() / disturbed_name.removesuffix("-drill")
    if (folder / REPORT_FILES[0]).exists():
        console.say(f"the report of an earlier drill in {folder} is replaced", important=True)
    write(report, folder)
    console.say(as_text(report), important=True)
    console.say(f"report: {folder / 'report.html'}", important=True)
    return report


class _Runner:
    """Runs one job of the drill, and reads what it left."""

    def __init__(
        self,
        request: Mapping[str, Any] | str | Path | None,
        shortcuts: Mapping[str, Any],
        *,
        base_dir: Path,
        job: TrainingJob,
        console: Console,
        clock: Clock,
    ):
        self.request, self.shortcuts, self.base_dir = request, shortcuts, base_dir
        self.job, self.console, self.clock = job, console, clock

    def run(self, name: str, options: LocalOptions) -> None:
        submitted = submit.submit(
            self.request,
            options=options,
            shortcuts={**self.shortcuts, **shortcuts_for(self.job, name)},
            base_dir=self.base_dir,
            clock=self.clock,
        )
        submitted.run(self.console)
        if submitted.interrupted:
            raise KeyboardInterrupt

    def evidence(self, name: str, *, like: Evidence | None = None) -> Evidence:
        """`like`: the other run, whose steps are told the same way."""
        if jobs.find(name).status not in TERMINAL:
            raise UserError(f"the job {name} has not ended yet: a baseline must have completed")
        return read_evidence(
            name,
            metrics=self.job.metric_definitions,
            step_regex=self.job.options.step_regex,
            form=None if like is None else like.form,
        )


def examine(
    job: TrainingJob, before: Evidence, after: Evidence, *, plan: InterruptionPlan, criteria: Criteria
) -> Report:
    """Evidence -> report. Runs nothing."""
    last = max((step for attempt in before.attempts for _, _, step in attempt.steps), default=None)
    found = costs.costs(
        after, notice_seconds=plan.notice_seconds, last_step=last, first=saves.first_save(before, after)
    )
    jump = results.find_jump(before, after)
    ours, theirs = results.artifact_digests(before), results.artifact_digests(after)
    differences = None if ours is None or theirs is None else tuple(results.artifact_differences(ours, theirs))
    cost = advice.checkpoint_cost(after)
    measured = None if cost.at_most else cost.seconds
    planned = plan.every_seconds or plan.mean_seconds
    return Report(
        baseline=before,
        disturbed=after,
        plan=plan,
        criteria=criteria,
        costs=found,
        metrics=results.compare_metrics(before, after, tolerance=criteria.tolerance),
        artifact_differences=differences if criteria.require_equal_artifacts else None,
        jump=jump,
        findings=diagnose(job, before, after, found, jump, plan=plan),
        parts=time_parts.time_parts(after, checkpoint_seconds=measured),
        baseline_parts=time_parts.time_parts(before, checkpoint_seconds=measured),
        advice=advice.advise(after, found, cost, planned_between_seconds=planned),
        backend=job.options.backend,
    )


REPORT_FILES = ("report.json", "report.txt", "report.html")


def refuse_earlier_report(folder: Path) -> None:
    """UserError if a report stands in a folder that was named for another one: before anything runs."""
    if found := [name for name in REPORT_FILES if (folder / name).exists()]:
        raise UserError(
            f"--report {folder} holds the report of an earlier drill ({', '.join(found)}): remove it, or name another folder"
        )


def write(report: Report, folder: Path) -> None:
    """report.html, report.json and report.txt. UserError if the folder cannot be written."""
    data, *texts = REPORT_FILES
    try:
        folder.mkdir(parents=True, exist_ok=True)
        replace_json(folder / data, as_json(report))
        for name, text in zip(texts, (as_text(report), page(report)), strict=True):
            beside = folder / f"{name}.tmp"
            beside.write_text(text, encoding="utf-8", errors="backslashreplace")
            beside.replace(folder / name)
    except OSError as error:
        raise UserError(f"the report cannot be written to {folder}: {error.strerror}; give another --report") from error


__all__ = ["Criteria", "Report", "drill", "examine"]
