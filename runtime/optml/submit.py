"""How a job begins: a request is checked, its name claimed, and a supervisor found, in this process or in one of its own."""

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from optml import record as records
from optml.backends import Backend, backend_named
from optml.clock import Clock
from optml.console import Console
from optml.errors import DataError, UserError
from optml.images import Image
from optml.jobdir import JobDir, optml_home
from optml.record import Record
from optml.spec import DataType, LocalOptions, ManifestPaths, ObjectSource, TrainingJob


def submit(
    request: Mapping[str, Any] | str | Path | None,
    *,
    options: LocalOptions,
    shortcuts: Mapping[str, Any],
    base_dir: Path,
    clock: Clock,
) -> "Submitted":
    """Validate everything that can be before the job begins, then claim its name."""
    job, image, backend = prepare(request, options=options, shortcuts=shortcuts, base_dir=base_dir)
    check_files(job)
    backend.check(image)
    record = records.begin(job, options=options_to_json(job.options), clock=clock)
    return Submitted(job=job, image=image, record=record, backend=backend, clock=clock)


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
    job = plan.check_versions(job, image, backend)
    if options.pdb:
        job = plan.with_debugger(job, image, backend)
    if options.interruptions is not None:  # with the published metrics, which a trigger may name
        check_plan(options.interruptions, job)
    capabilities = backend.capabilities()
    plan.check_capabilities(job, capabilities)
    plan.check_checkpoint_path(job, backend)
    plan.check_cpus(job, machine.cpu_numbers(), capabilities.cpu_count)
    check_endpoints(job)
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


def check_endpoints(job: TrainingJob) -> None:
    """Of the caller and of the request: hosts are given both."""
    from optml import s3

    for variable in s3.ENDPOINT_VARIABLES:
        s3.check_endpoint(variable, os.environ.get(variable, ""))
        s3.check_endpoint(f"Environment.{variable}", job.environment.get(variable, ""))


def check_files(job: TrainingJob) -> None:
    """What can be known before the name is taken, and without asking anybody: input of this machine is there, outputs can be put
    somewhere, S3 has been given credentials."""
    from optml import objects, s3
    from optml.script_mode import SUBMIT_DIRECTORY, local_source

    for channel in job.channels:
        if isinstance(channel.source, ObjectSource):
            try:
                objects.check_source(channel.source.uri)
                s3.check_credentials(channel.source.uri)
                if channel.source.data_type is not DataType.S3_PREFIX:
                    objects.check_file(channel.source.uri)
            except DataError as error:
                raise UserError(f"channel {channel.name!r}: {error}") from None
            if channel.source.uri.startswith("file://") and channel.source.uri.endswith("/"):
                folder, home = objects.local_path(channel.source.uri), optml_home()
                if folder.resolve() in (home.resolve(), *home.resolve().parents):
                    raise UserError(
                        f"channel {channel.name!r}: {folder} has OPTML_HOME in it ({home}), and what lies there is no data: "
                        "give a folder of the data alone, or set OPTML_HOME to another"
                    )
        else:
            objects.check_file_system(channel.name, channel.source)
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
        s3.check_credentials(uri)
        if uri.startswith("file://") and optml_home() not in objects.local_path(uri).parents:  # `begin` tries that
            objects.check_destination(uri)


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
            from optml.run import run, say_begin  # takes a moment, in which Ctrl-C must be heard already
            from optml.running import Run

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


def current_dir() -> Path:
    try:
        return Path.cwd()
    except FileNotFoundError:
        raise UserError("the current folder has been deleted; cd to another") from None


def host_width(job: TrainingJob) -> int:
    return max(len("algo-1"), *(len(host.name) for host in job.hosts))
