"""What a Python user calls, and the command line too: train, and everything one can do with a job afterwards."""

import contextlib
import dataclasses
import datetime
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from optml import record as records
from optml.backends import Backend, backend_named
from optml.clock import Clock
from optml.console import Console
from optml.errors import DataError, JobFailed, OptmlError, ResourceInUse, UserError
from optml.images import Image
from optml.jobdir import HostDir, JobDir, optml_home
from optml.record import TERMINAL, Record
from optml.spec import LocalOptions, ManifestPaths, ObjectSource, TrainingJob

DETACH_SECONDS = 30.0  # for a new supervisor to take over


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
            raise UserError(f"Requested resource not found. There is no job {self.name!r} in {self._dir.root.parent}")
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
                raise UserError(f"job {self.name} has no host {name!r}: its hosts are {names[0]} to {names[-1]}")

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
    **options: Any,
) -> Job:
    """Go on with a job that Failed, was Stopped, or lost its supervisor: its recorded request under a new name (`<name>-2`), with
    the same checkpoints. `options` are fields of LocalOptions that are to differ.

    UserError if it completed, runs, or had no checkpoints. Otherwise as `train`.
    """
    request, recorded = to_resume(name, new_name=new_name)
    return train(request, wait=wait, logs=logs, clock=clock, options=dataclasses.replace(recorded, **options))


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
)  # fmt: skip


def summary(describe: Mapping[str, Any]) -> dict[str, Any]:
    return {field: describe[field] for field in SUMMARY_FIELDS if field in describe}


# Below: how a job gets its supervisor.


@dataclasses.dataclass(kw_only=True)
class Submitted:
    """A job whose name is claimed and whose first record is written; its supervisor is yet to be."""

    job: TrainingJob
    image: Image
    record: Record
    backend: Backend
    clock: Clock

    def run(self, console: Console, *, exits: bool = False) -> str:
        """Supervise the job in this process until it has ended. Gives the last status.

        `exits`: the process does nothing else and is about to end; one Ctrl-C more must not break that off.
        """
        with StopSignals(self.record.job_dir, exits=exits) as signals:
            from optml.run import Run, run, say_begin  # takes a moment, in which Ctrl-C must be heard already

            it = Run(
                job=self.job,
                image=self.image,
                record=self.record,
                backend=self.backend,
                console=console,
                clock=self.clock,
                stop_requested=signals.stop_requested,
                hurry=signals.hurry,
            )
            say_begin(it)
            status = run(it)
            self.interrupted = signals.interrupted
        return status

    interrupted: bool = False  # by Ctrl-C

    def detach(self) -> None:
        """Leave the job to a supervisor of its own, which takes the lock over: it is never free in between."""
        job_dir = self.record.job_dir
        lock = self.record.lock_descriptor
        # The supervisor lives in another folder, but finds the same jobs and the same modules.
        search_path = json.dumps([str(Path(entry).absolute()) for entry in sys.path])
        program = "import json, sys; sys.path[:] = json.loads(sys.argv.pop()); from optml.detached import main; main()"
        try:
            with job_dir.supervisor_log.open("ab") as log:
                process = subprocess.Popen(
                    [sys.executable, "-P", "-c", program, self.job.name, str(lock), search_path],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    pass_fds=[lock],
                    cwd="/",
                    env={**os.environ, "OPTML_HOME": str(optml_home())},
                )
        except OSError as error:
            self.record.end("Failed", "Failed", reason=f"InternalServerError: no supervisor could be started: {error}")
            raise
        finally:
            self.record.close()
        threading.Thread(target=process.wait, daemon=True).start()  # no zombie in a long-lived caller


def submit(
    request: Mapping[str, Any] | str | Path | None,
    *,
    options: LocalOptions,
    shortcuts: Mapping[str, Any],
    base_dir: Path,
    clock: Clock,
) -> Submitted:
    """Validate everything that can be before the job begins, then claim its name."""
    job, image, backend = prepare(request, options=options, shortcuts=shortcuts, base_dir=base_dir)
    check_files(job)
    backend.check(image)
    record = records.begin(job, options=options_to_json(job.options), clock=clock)
    return Submitted(job=job, image=image, record=record, backend=backend, clock=clock)


def current_dir() -> Path:
    try:
        return Path.cwd()
    except FileNotFoundError:
        raise UserError("the current folder has been deleted; cd to another") from None


def check_files(job: TrainingJob) -> None:
    """What can be known of local paths before the name is taken: the input is there, outputs can be put somewhere."""
    from optml import objects
    from optml.script_mode import SUBMIT_DIRECTORY, local_source

    for channel in job.channels:
        if isinstance(channel.source, ObjectSource):
            try:
                objects.check_source(channel.source.uri)
            except DataError as error:
                raise UserError(f"channel {channel.name!r}: {error}") from None
            if channel.source.uri.startswith("file://") and channel.source.uri.endswith("/"):
                folder, home = objects.local_path(channel.source.uri), optml_home()
                if folder.resolve() in (home.resolve(), *home.resolve().parents):
                    raise UserError(
                        f"channel {channel.name!r}: {folder} has OPTML_HOME in it ({home}), and what lies there is no data: "
                        "give a folder of the data alone, or set OPTML_HOME to another"
                    )
    code = local_source(job.hyperparameters)
    if code is not None:
        if not code.exists():
            raise UserError(f"HyperParameters.{SUBMIT_DIRECTORY} {str(code)!r} cannot be found on this machine")
        if code.is_dir() and code.resolve() in (optml_home().resolve(), *optml_home().resolve().parents):
            raise UserError(
                f"HyperParameters.{SUBMIT_DIRECTORY}: {code} has OPTML_HOME in it ({optml_home()}), and what lies there is no "
                "code: give a folder of the code alone, or set OPTML_HOME to another"
            )
    for uri in job.destinations:
        if uri.startswith("file://") and optml_home() not in objects.local_path(uri).parents:  # `begin` tries that
            objects.check_destination(uri)


def prepare(
    request: Mapping[str, Any] | str | Path | None,
    *,
    options: LocalOptions,
    shortcuts: Mapping[str, Any],
    base_dir: Path,
) -> tuple[TrainingJob, Image, Backend]:
    """Request and options -> a job that this machine can run, and what runs it. Touches nothing."""
    from optml import machine, plan
    from optml.capacity import check_plan
    from optml.events import compiled_step
    from optml.loading import load_request, request_from_shortcuts
    from optml.request import parse, what_aws_misses

    if request is not None:
        request = load_request(request, base_dir)
    if options.working_dir is None:
        options = dataclasses.replace(options, working_dir=base_dir)
    full = request_from_shortcuts(request, base_dir=base_dir, **shortcuts)
    options = checked(options)
    job = parse(full, options=options, base_dir=base_dir)
    if request is not None and (missing := what_aws_misses(full)):
        text = f"AWS would refuse this request without {', '.join(missing)}; optml has defaults for that"
        job = dataclasses.replace(job, warnings=(*job.warnings, text))
    backend = backend_named(options.backend)
    gpu_count = len(machine.gpu_numbers()) if plan.wants_gpus(job) else 0
    image = plan.check(job, containers=backend.containers, gpu_count=gpu_count)
    job = plan.with_published_metrics(job, image)
    if not backend.containers:
        job = plan.check_versions(job, image)
    elif options.strict_versions:
        raise UserError(
            "--strict-versions compares an image's tag with what is installed here, and in containers the versions are those of "
            "the image: leave it out"
        )
    plan.check_capabilities(job, backend.capabilities())
    plan.check_checkpoint_path(job, backend)
    plan.check_cpus(job, machine.cpu_numbers())
    if options.interruptions is not None:
        check_plan(options.interruptions, job)
    if options.step_regex is not None:
        compiled_step(options.step_regex)
    return job, image, backend


def checked(options: LocalOptions) -> LocalOptions:
    """Options as the command line makes them. UserError naming the one that is wrong."""
    if options.manifest_paths not in list(ManifestPaths):
        raise UserError(f"manifest_paths must be one of {', '.join(ManifestPaths)}, got {options.manifest_paths!r}")
    grace = options.grace_seconds
    if isinstance(grace, bool) or not isinstance(grace, int | float) or grace < 0:
        raise UserError(f"grace_seconds must be a number of seconds, got {grace!r}")
    for name in ("cpus", "memory_bytes"):
        value = getattr(options, name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise UserError(f"{name} must be a whole number of at least 1, got {value!r}")
    return dataclasses.replace(options, manifest_paths=ManifestPaths(options.manifest_paths))


PASSWORD_IN_URL = re.compile(r"(//[^/@:\s]*:)[^/@\s]+@")  # of a proxy, of a package index


def dry_run(job: TrainingJob, image: Image, backend: Backend) -> dict[str, Any]:
    """The completed request, and the launches that it would make. Touches nothing."""
    from optml import machine, plan

    launches = plan.plan(
        job,
        JobDir.of(job.name),
        image,
        backend,
        attempt=1,
        started=time.time(),
        mounts={},
        cpus=machine.cpu_numbers(),
        gpus=machine.gpu_numbers() if plan.wants_gpus(job) else (),
    )
    return {
        "request": dict(job.request),
        "backend": backend.name,
        "warnings": list(job.warnings),
        "only_here": list(only_here(job.request)),
        "launches": [
            {
                "host": launch.host,
                **({"image": launch.image, "after_entrypoint": launch.after_entrypoint} if launch.image else {}),
                "argv": list(launch.argv),
                "working_dir": launch.working_dir,
                "environment": {
                    name: PASSWORD_IN_URL.sub(r"\1...@", value)
                    for name, value in launch.environment.items()
                    if "SECRET" not in name and "TOKEN" not in name
                },
                "log_file": str(launch.log_file),
                "cpus": list(launch.cpus or ()),
                "gpus": list(launch.gpus),
            }
            for launch in launches
        ],
    }


def only_here(request: Mapping[str, Any]) -> Iterator[str]:
    """What AWS could not take of a request: the rest of it could be sent as it is."""
    from optml.images import ECR_URI
    from optml.request import OUTPUT_URIS
    from optml.script_mode import SUBMIT_DIRECTORY, local_source

    image = request["AlgorithmSpecification"].get("TrainingImage")
    if image and not ECR_URI.fullmatch(image):
        yield f"AlgorithmSpecification.TrainingImage {image}: AWS wants the URI of an image in ECR"
    if local_source(request.get("HyperParameters", {})) is not None:
        yield f"HyperParameters.{SUBMIT_DIRECTORY}: upload the code as a tar.gz file, give its s3:// URI"
    for channel in request.get("InputDataConfig", ()):
        if channel["DataSource"].get("S3DataSource", {}).get("S3Uri", "").startswith("file://"):
            yield f"InputDataConfig: channel {channel['ChannelName']!r} is of this machine: upload it, give its s3:// URI"
    for field, name in OUTPUT_URIS:
        if str(request.get(field, {}).get(name, "")).startswith("file://"):
            yield f"{field}.{name}: give an s3:// URI"


def resume_supervision(name: str, lock_descriptor: int) -> Submitted:
    """In the process of a detached supervisor: the job again, from what `submit` wrote."""
    job_dir = JobDir.of(name)
    record = records.adopt(job_dir, lock_descriptor, Clock())
    try:
        options = options_from_json(json.loads(job_dir.options_file.read_bytes()))
        request = json.loads(job_dir.request_file.read_bytes())
        job, image, backend = prepare(request, options=options, shortcuts={}, base_dir=Path("/"))
    except BaseException as error:  # what could be done a moment ago cannot be done any more
        kind = "ClientError" if isinstance(error, UserError) else "InternalServerError"
        record.end("Failed", "Failed", reason=f"{kind}: {error}")
        raise
    return Submitted(job=job, image=image, record=record, backend=backend, clock=Clock())


def settle(job_dir: JobDir) -> bool:
    """If the job has lost its supervisor: end what is left of it and record that. True if there was something to do."""
    record = records.take_over(job_dir, Clock())
    if record is None:
        return False
    try:
        backend = backend_named(record.local["backend"])
        for folder in sorted(job_dir.attempts.glob("*/*")):
            backend.sweep(HostDir(folder))
        kept = f"; what the hosts had written is in {job_dir.attempts}" if job_dir.attempts.exists() else ""
        log = job_dir.supervisor_log
        said = f"; its own log is {log}" if log.exists() and log.stat().st_size else ""
        record.end(
            "Failed",
            "Failed",
            reason=f"InternalServerError: the process that ran this job (pid {record.local['supervisor_pid']}) was killed "
            f"or lost its machine{kept}; nothing that had been uploaded is lost{said}",
            at=last_sign_of_life(job_dir),
        )
    finally:
        record.close()
    return True


def last_sign_of_life(job_dir: JobDir) -> float:
    """Epoch seconds of the newest log line or record."""
    files = [job_dir.record_file, job_dir.metrics_file, *job_dir.logs.glob("*")]
    return max(file.stat().st_mtime for file in files if file.exists())


def raise_if_failed(job: Job) -> None:
    describe = records.read(JobDir.of(job.name))["describe"]
    if describe["TrainingJobStatus"] == "Failed":
        raise JobFailed(
            f"{job.name}: {describe.get('FailureReason', 'no reason given')} (logs: {JobDir.of(job.name).logs})"
        )


def host_width(job: TrainingJob) -> int:
    return max(len("algo-1"), *(len(host.name) for host in job.hosts))


def split_options(options: LocalOptions, given: Mapping[str, Any]) -> tuple[LocalOptions, dict[str, Any]]:
    """Keyword arguments that are fields of LocalOptions go there, the rest are shortcuts of the request."""
    names = {field.name for field in dataclasses.fields(LocalOptions)}
    mine = {name: value for name, value in given.items() if name in names}
    return dataclasses.replace(options, **mine), {name: value for name, value in given.items() if name not in names}


def options_to_json(options: LocalOptions) -> dict[str, Any]:
    return {
        name: str(value) if isinstance(value, Path | ManifestPaths) else value
        for name, value in dataclasses.asdict(options).items()
    }


def options_from_json(content: Mapping[str, Any]) -> LocalOptions:
    from optml.capacity import plan_from_json

    working_dir, interruptions = content.get("working_dir"), content.get("interruptions")
    return LocalOptions(
        **{
            **content,
            "working_dir": Path(working_dir) if working_dir else None,
            "manifest_paths": ManifestPaths(content["manifest_paths"]),
            "interruptions": None if interruptions is None else plan_from_json(interruptions),
        }
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


def wait_for(condition: Callable[[], bool], *, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


class StopSignals:
    """Ctrl-C, SIGTERM and SIGHUP ask to stop, as the job's stop file does; a second one cuts the grace short.

    A third breaks off whatever the platform waits for, as a server that does not answer. `exits`: afterwards the process ends.
    """

    def __init__(self, job_dir: JobDir, *, exits: bool):
        self._job_dir, self._exits = job_dir, exits
        self._count = 0
        self.interrupted = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                if signal.getsignal(number) is not signal.SIG_IGN:  # nohup, or a script's background
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            with contextlib.suppress(ValueError, TypeError):
                ignored = self._exits and self.interrupted and number == signal.SIGINT
                signal.signal(number, signal.SIG_IGN if ignored else handler)

    def _note(self, number: int, _frame: object) -> None:
        self._count += 1
        self.interrupted = self.interrupted or number == signal.SIGINT
        if self._count % 3 == 0:  # once: the end of the job is recorded after it
            raise KeyboardInterrupt

    def stop_requested(self) -> bool:
        return self._count > 0 or self._job_dir.stop_file.exists()

    def hurry(self) -> bool:
        return self._count > 1


def iso_time(seconds: float) -> str:
    """As the AWS command line prints times."""
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).astimezone().isoformat(timespec="milliseconds")


__all__ = ["Job", "OptmlError", "find", "list_jobs", "resume", "train"]
