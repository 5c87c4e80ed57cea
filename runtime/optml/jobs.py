"""What a Python user calls, and the command line too: train, and everything one can do with a job afterwards."""

import contextlib
import dataclasses
import datetime
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from optml import record as records
from optml.clock import Clock
from optml.console import Console, hosts_text
from optml.errors import JobFailed, OptmlError, ResourceInUse, UserError
from optml.jobdir import JobDir, jobs_dir
from optml.record import TERMINAL
from optml.settle import settle
from optml.shapes import near
from optml.spec import LocalOptions
from optml.submit import current_dir, host_width, options_from_json, split_options, submit


@dataclasses.dataclass(frozen=True)
class Job:
    """A recorded job, by name. Every call reads the record anew; any process may ask."""

    name: str

    @property
    def _dir(self) -> JobDir:
        return JobDir.of(self.name)

    def _record(self) -> dict[str, Any]:
        """The record; if the job has lost its supervisor, cleans up after it first."""
        if not records.exists(self.name):
            known = [path.name for path in jobs_dir().glob("*") if records.exists(path.name)]
            raise UserError(
                f"Requested resource not found. There is no job {self.name!r} in {jobs_dir()}{near(self.name, known)}"
            )
        content = records.read(self._dir)
        if content["describe"]["TrainingJobStatus"] not in TERMINAL and settle(self._dir):
            content = records.read(self._dir)
        return content

    def describe(self) -> dict[str, Any]:
        """The DescribeTrainingJob response, times as aware datetimes (as boto3 gives them)."""
        described: dict[str, Any] = records.with_times(self._record()["describe"])
        return described

    def describe_raw(self) -> dict[str, Any]:
        """The same with times in epoch seconds, as AWS's own protocol has them."""
        described: dict[str, Any] = self._record()["describe"]
        return described

    @property
    def status(self) -> str:
        """InProgress, Completed, Failed, Stopping or Stopped."""
        return str(self._record()["describe"]["TrainingJobStatus"])

    @property
    def model_data(self) -> str | None:
        """S3ModelArtifacts: the URI of model.tar.gz, or of the model's folder; None before there is one."""
        return self._record()["describe"]["ModelArtifacts"]["S3ModelArtifacts"] or None

    @property
    def metrics_file(self) -> Path:
        """Every metric value as it came, a JSON object per line."""
        return self._dir.metrics_file

    def wait(self, *, timeout_seconds: float | None = None, logs: bool = False) -> "Job":
        """Until the job has ended. JobFailed if it Failed; TimeoutError if it takes longer. A Stopped job is no error."""
        deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        if logs:
            console = Console()
            for host, lines in self.logs(follow=True):
                console.host_lines(host, lines)
        pause = 0.02
        while (status := self.status) not in TERMINAL:
            if deadline is not None and time.monotonic() >= deadline:
                raise TimeoutError(f"job {self.name} is {status} after {timeout_seconds} s")
            time.sleep(pause)
            pause = min(0.5, pause * 1.5)
        raise_if_failed(self)
        return self

    def logs(
        self, *, hosts: Sequence[str] | None = None, follow: bool = False, tail: int | None = None
    ) -> Iterator[tuple[str, list[str]]]:
        """(host, lines) in the order in which they came; with `follow`, until the job ends.

        `tail`: begin with so many lines of each host. UserError for a host that the job does not have.
        """
        from optml.logs import follow as follow_logs

        self._check_hosts(hosts or ())
        return follow_logs(
            self._dir,
            hosts=hosts,
            follow=follow,
            tail=tail,
            is_finished=lambda: self.status in TERMINAL,
            clock=Clock(),
        )

    def _check_hosts(self, wanted: Sequence[str]) -> None:
        resources = self._record()["describe"]["ResourceConfig"]
        groups = resources.get("InstanceGroups") or [resources]
        host_count = sum(group["InstanceCount"] for group in groups)
        names = [f"algo-{number}" for number in range(1, host_count + 1)]
        for name in wanted:
            if name not in names:
                raise UserError(f"job {self.name} has no host {name!r}: {hosts_text(names)}")

    def stop(self, *, wait: bool = False) -> None:
        """Ask the supervisor to stop the job: SIGTERM, the grace, SIGKILL. UserError if it has ended already."""
        status = self.status
        if status in TERMINAL:
            raise UserError(f"The request was rejected because the training job is in status {status}.")
        try:
            self._dir.stop_file.touch()
        except FileNotFoundError:  # deleted in this moment
            raise UserError("Requested resource not found.") from None
        if wait:
            while self.status not in TERMINAL:
                time.sleep(0.05)

    def delete(self) -> None:
        """Remove the record, the logs and the name. What was uploaded stays. ResourceInUse while the job runs."""
        records.refuse_link(self._dir)
        try:
            status = self.status
        except UserError:
            if not (records.is_name(self.name) and self._dir.root.is_dir()):
                raise
            status = "Failed"  # a folder without a record that can be read is good for nothing else
        if status not in TERMINAL:
            raise ResourceInUse(
                f"The training job {self.name} is in status {status}: stop it first (optml stop {self.name} --wait)"
            )
        if not wait_for(lambda: not records.has_supervisor(self._dir), seconds=10):
            raise ResourceInUse(f"The training job {self.name} is still being tidied up; try again in a moment")
        records.remove(self._dir)


def raise_if_failed(job: Job) -> None:
    describe = records.read(JobDir.of(job.name))["describe"]
    if describe["TrainingJobStatus"] == "Failed":
        raise JobFailed(
            f"{job.name}: {describe.get('FailureReason', 'no reason given')} (logs: {JobDir.of(job.name).logs})"
        )


def wait_for(condition: Callable[[], bool], *, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def train(
    request: Mapping[str, Any] | str | Path | None = None,
    *,
    wait: bool = True,
    logs: bool = True,
    options: LocalOptions | None = None,
    clock: Clock | None = None,
    **shortcuts: Any,
) -> Job:
    """Run a training job: a CreateTrainingJob request (dict, or a JSON or YAML file), keyword shortcuts, or both.

    With `wait`, the job runs in this process, prints as `optml train` does (nothing with `logs=False`), and JobFailed is
    raised if it Failed; Ctrl-C stops it and is raised again. Without, it goes on by itself and this returns at once.

    Shortcuts, laid over the request: image, name, channels (name -> path, URI, or dict of uri, content_type, input_mode,
    distribution, compression, record_wrapper, shuffle_seed, data_type, attribute_names), hyperparameters, environment, output,
    entrypoint, arguments (lists of words), metrics (name -> regular expression), instance_type, instance_count, input_mode,
    max_runtime, max_wait (seconds), spot, checkpoint, retries, role, network_isolation; for a script of your own entry_point,
    source_dir, distribution (the SDK's dict, or a name such as torchrun), processes_per_host. And the fields of LocalOptions:
    grace_seconds, cpus, memory_bytes (per host), allow_cpu, keep_files, strict_versions, ...
    Paths are relative to the current folder.

    UserError (ValidationError, ResourceInUse, ResourceLimitExceeded) if the job cannot begin; then nothing is recorded.
    """
    options, shortcuts = split_options(options or LocalOptions(), shortcuts)
    submitted = submit(request, options=options, shortcuts=shortcuts, base_dir=current_dir(), clock=clock or Clock())
    job = Job(submitted.job.name)
    if not wait:
        submitted.detach()
        return job
    submitted.run(Console(silent=not logs, width=host_width(submitted.job)))
    if submitted.interrupted:
        raise KeyboardInterrupt
    raise_if_failed(job)
    return job


def resume(
    name: str,
    *,
    new_name: str | None = None,
    wait: bool = True,
    logs: bool = True,
    clock: Clock | None = None,
    max_runtime: int | None = None,
    max_wait: int | None = None,
    **options: Any,
) -> Job:
    """Go on with a job that Failed, was Stopped, or lost its supervisor: its recorded request under a new name (`<name>-2`), with
    the same checkpoints. Limits in seconds, where another is wanted; `options` are fields of LocalOptions that are to differ.

    UserError if it completed, runs, or had no checkpoints. Otherwise as `train`.
    """
    request, recorded = to_resume(name, new_name=new_name)
    limits = {"max_runtime": max_runtime, "max_wait": max_wait}
    return train(
        request,
        wait=wait,
        logs=logs,
        clock=clock,
        options=dataclasses.replace(recorded, **options),
        **{name: value for name, value in limits.items() if value is not None},
    )


def to_resume(name: str, *, new_name: str | None = None) -> tuple[dict[str, Any], LocalOptions]:
    """The request and the options by which a job that did not complete goes on from its checkpoints, under a new name.

    UserError, with the remedy, for a job that completed, runs, or has no checkpoints.
    """
    job = find(name)
    status = job.status
    if status not in TERMINAL:
        raise UserError(
            f"the training job {name} is in status {status}: it needs no resuming (optml stop {name} --wait)"
        )
    if status == "Completed":
        raise UserError(f"the training job {name} has completed: there is nothing to resume")
    job_dir = JobDir.of(name)
    try:
        request: dict[str, Any] = json.loads(job_dir.request_file.read_bytes())
        options = options_from_json(json.loads(job_dir.options_file.read_bytes()))
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(
            f"what the training job {name} was started with cannot be read ({type(error).__name__}: {error}); "
            "start it again from its request"
        ) from error
    if not request.get("CheckpointConfig"):
        raise UserError(
            f"the training job {name} had no checkpoints, so there is nothing to resume from: start it again, with --checkpoint "
            "FOLDER and a program that saves to /opt/ml/checkpoints"
        )
    request["TrainingJobName"] = new_name or next_name(name)
    return request, dataclasses.replace(options, interruptions=None, evidence=False)


def next_name(name: str) -> str:
    """job -> job-2, job-2 -> job-3: the first that is free."""
    match = re.fullmatch(r"(?P<stem>.+?)-(?P<number>[2-9]|[1-9]\d{1,3})", name)
    stem, number = (match["stem"], int(match["number"])) if match else (name, 1)
    while True:
        number += 1
        suffix = f"-{number}"
        candidate = f"{stem[: 63 - len(suffix)]}{suffix}"
        if not JobDir.of(candidate).root.exists():
            return candidate


def find(name: str) -> Job:
    """A recorded job. UserError if there is none of that name."""
    job = Job(name)
    job._record()
    return job


def list_jobs(
    *,
    status: str | None = None,
    name_contains: str | None = None,
    newest_first: bool = True,
    max_results: int | None = None,
) -> list[dict[str, Any]]:
    """Summaries, by creation time, as ListTrainingJobs gives them, times as aware datetimes.

    As in AWS, `max_results` counts before `status` filters.
    """
    listed = list_jobs_raw(
        status=status, name_contains=name_contains, newest_first=newest_first, max_results=max_results
    )
    summaries: list[dict[str, Any]] = records.with_times(listed)
    return summaries


def list_jobs_raw(
    *,
    status: str | None = None,
    name_contains: str | None = None,
    newest_first: bool = True,
    max_results: int | None = None,
) -> list[dict[str, Any]]:
    """The same with times in epoch seconds."""
    if status is not None and status not in STATUSES:
        raise UserError(f"status must be one of {', '.join(STATUSES)}, got {status!r}")
    found: list[dict[str, Any]] = []
    for job_dir, content in records.read_all():
        if name_contains and name_contains.lower() not in job_dir.name.lower():
            continue
        with contextlib.suppress(UserError):  # deleted in this moment
            if content["describe"]["TrainingJobStatus"] not in TERMINAL and settle(job_dir):
                content = records.read(job_dir)
        found.append(content["describe"])
    found.sort(key=lambda describe: describe["CreationTime"], reverse=newest_first)
    page = found if max_results is None else found[:max_results]
    return [summary(describe) for describe in page if status is None or describe["TrainingJobStatus"] == status]


STATUSES = ("InProgress", "Completed", "Failed", "Stopping", "Stopped")
SUMMARY_FIELDS = (
    "TrainingJobName", "TrainingJobArn", "CreationTime", "TrainingEndTime", "LastModifiedTime", "TrainingJobStatus",
    "SecondaryStatus",
)  # fmt: skip  # fmt: skip


def summary(describe: Mapping[str, Any]) -> dict[str, Any]:
    return {field: describe[field] for field in SUMMARY_FIELDS if field in describe}


def iso_time(seconds: float) -> str:
    """As the AWS command line prints times."""
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).astimezone().isoformat(timespec="milliseconds")


__all__ = ["Job", "OptmlError", "find", "list_jobs", "resume", "train"]
