"""A job by hand: its /opt/ml and the `docker run` that would run it; and what is left there, packed as the job would have.

Nothing of optml runs in between, so nobody looks after the containers: what a supervisor does while a job runs (time limits,
retries, metrics, uploads on the way) is not done, and `Staged.remarks` says what of it this job asks for.
"""

import contextlib
import json
import math
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from optml import __version__, contract, machine, objects, plan, record, submit
from optml.backends import Capabilities, Launch, Mount
from optml.backends.docker_container import shm_bytes
from optml.backends.docker_images import has_image, how_to_build, not_built
from optml.backends.docker_network import ISOLATED_BRIDGE, ISOLATED_DNS
from optml.backends.docker_owner import let_others_write
from optml.backends.docker_services import loopback_address
from optml.checkpoints import CheckpointMirror, Version, folders_of, mirrored_folders, stage_mirrored_folders
from optml.clock import Clock
from optml.collect import collect_outputs, failure_text
from optml.console import Console, count_text, duration_text
from optml.engine import connect
from optml.errors import UserError, storage_errors
from optml.images import OURS, Image
from optml.jobdir import HandDir, HostDir
from optml.loading import expanded, load_request, request_from_shortcuts
from optml.preparing import found_text
from optml.request import parse
from optml.script_mode import local_source
from optml.spec import OPT_ML, InputMode, LocalOptions, ObjectSource, StoppingCondition, TrainingJob
from optml.stage import list_channel
from optml.stage import stage as stage_hosts

# Of containers that somebody else starts nothing more than a tree and mounts may be asked.
CAPABILITIES = Capabilities(own_opt_ml=True, views=False, host_names=True, network_isolation=True, memory_limit=True)
UPLOADED = "uploaded"  # in the staged file: what is at the prefixes of the mirrored folders already


class NothingLeft(UserError):
    """A staged folder as `stage` made it, most likely."""


@dataclass(frozen=True, kw_only=True)
class Staged:
    """A folder that is ready to run. `commands` is for bash; `remarks` say what a person should know of them."""

    name: str
    folder: Path
    commands: str
    remarks: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Packed:
    """Where the outputs are. `failures`: what hosts wrote into their failure files, by host."""

    name: str
    model_data: str
    output_data: str | None  # None if there was none
    failures: Mapping[str, str]
    warnings: tuple[str, ...]
    failed: bool  # as the job would have


def stage(
    request: Mapping[str, Any] | str | Path | None = None,
    *,
    to: str | os.PathLike[str],
    options: LocalOptions | None = None,
    console: Console | None = None,
    **shortcuts: Any,
) -> Staged:
    """Write the hosts' /opt/ml below `to`, a folder that is new or empty, and give the commands that run the job on them.

    Takes what `optml.train` takes to describe a job. No container engine is needed. UserError if there is no such job, for
    Pipe mode, and if `to` has something in it; then, and after any other error, `to` is as it was.
    """
    if shortcuts.get("backend", "docker") != "docker":
        raise UserError(f"backend {shortcuts['backend']!r}: by hand a host is a container; leave it out")
    options, shortcuts = submit.split_options(options or LocalOptions(), shortcuts)
    if options.keep_files:
        raise UserError("keep_files is for jobs: nobody removes what is staged by hand; leave it out")
    if options.pdb:
        raise UserError(f"pdb is for jobs: by hand, add -e PYTHONBREAKPOINT={plan.DEBUGGER} to the commands")
    if options.interruptions is not None:
        raise UserError("interruptions is for jobs: by hand nobody takes machines away; leave it out")
    console = console or Console(silent=True)
    began = Clock().monotonic()
    job, image, backend = submit.prepare(
        request, options=replace(options, backend="docker"), shortcuts=shortcuts, base_dir=submit.current_dir()
    )
    _refuse_pipes(job)
    submit.check_files(job)
    hand_dir = HandDir(_folder(to))
    _check_place(hand_dir.root, job)
    console.say(f"Job {job.name}: {image.name} on {count_text(len(job.hosts), 'host')}, by hand")
    for uri in job.destinations:
        objects.check_destination(uri)
    listings = {
        channel.name: list_channel(channel, manifest_paths=job.options.manifest_paths)
        for channel in job.channels
        if isinstance(channel.source, ObjectSource)
    }
    if listings:
        console.say(f"Input: {found_text(listings)}")
    with _claimed(hand_dir, job):
        mounts = stage_hosts(
            job,
            hand_dir,
            attempt=1,
            capabilities=CAPABILITIES,
            interface=plan.interface_of(job, backend),
            listings=listings,
            keep_downloads=False,
            progress=console.progress,
        )
        _forget_downloads(hand_dir, mounts)
        host_dirs = _host_dirs(hand_dir, job)
        mirrors = stage_mirrored_folders(job, host_dirs, clock=Clock())
        launches = plan.plan(
            job,
            hand_dir,
            image,
            backend,
            attempt=1,
            started=0,
            mounts=mounts,
            cpus=machine.cpu_numbers(),
            gpus=machine.gpu_numbers() if plan.wants_gpus(job) else (),
        )
        for launch in launches:
            let_others_write(launch.host_dir, ())  # whoever the image's user is
        _write_staged(hand_dir, job.options, [mirror.uploaded for mirror in mirrors])
    console.step_done()
    console.say(f"Staged in {hand_dir.root} ({duration_text(Clock().monotonic() - began)})")
    return Staged(
        name=job.name,
        folder=hand_dir.root,
        commands=commands(job, launches),
        remarks=(*job.warnings, *_remarks(job, launches), *_image_remarks(image)),
    )


def _refuse_pipes(job: TrainingJob) -> None:
    for channel in job.channels:
        if channel.input_mode is InputMode.PIPE:
            raise UserError(
                f"channel {channel.name!r} is in Pipe mode, and by hand nobody feeds its pipe: take File or FastFile mode, or "
                "run the job with optml train --backend docker"
            )


def _folder(given: str | os.PathLike[str]) -> Path:
    return Path(os.path.normpath(submit.current_dir() / expanded(os.fspath(given))))


def _check_place(folder: Path, job: TrainingJob) -> None:
    if os.path.lexists(folder):
        if not folder.is_dir():
            raise UserError(f"{folder} is no folder: give a new one to stage the job in")
        try:
            is_empty = next(folder.iterdir(), None) is None
        except OSError as error:
            raise UserError(f"{folder} cannot be looked at: {error.strerror}; give a folder of your own") from error
        if not is_empty:
            raise UserError(f"{folder} is not empty, and nothing in it is to be lost: give a new folder")
    for channel in job.channels:
        if isinstance(channel.source, ObjectSource) and channel.source.uri.startswith("file://"):
            data = objects.local_path(channel.source.uri).resolve()
            if data in (folder.resolve(), *folder.resolve().parents):
                raise UserError(
                    f"{folder} lies in the data of channel {channel.name!r} ({data}), and would be data too: "
                    "give a folder elsewhere"
                )
    code = local_source(job.hyperparameters)
    if code is not None and code.resolve() in (folder.resolve(), *folder.resolve().parents):
        raise UserError(f"{folder} lies in the source folder {code}, and would be code too: give a folder elsewhere")


@contextlib.contextmanager
def _claimed(hand_dir: HandDir, job: TrainingJob) -> Iterator[None]:
    """The folder, with the request in it. If what follows fails, what it made is removed, and nothing else."""
    is_new = not hand_dir.root.exists()
    with storage_errors(f"cannot write into {hand_dir.root}"):
        hand_dir.root.mkdir(parents=True, exist_ok=True)
        try:
            file = hand_dir.request_file.open("x", encoding="utf-8")
        except FileExistsError:
            raise UserError(f"{hand_dir.root} is being used by another: give a new folder") from None
    try:
        with file, storage_errors(f"cannot write {hand_dir.request_file}"):
            json.dump(job.request, file, indent=2)  # ASCII: paths need not be UTF-8
        yield
    except BaseException:
        for folder in (*(host_dir.root for host_dir in _host_dirs(hand_dir, job).values()), hand_dir.downloads):
            if folder.exists():
                record.remove_tree(folder)
        hand_dir.request_file.unlink(missing_ok=True)
        if is_new:
            with contextlib.suppress(OSError):
                hand_dir.root.rmdir()
        raise


def _host_dirs(hand_dir: HandDir, job: TrainingJob) -> dict[str, HostDir]:
    return {host.name: hand_dir.host(1, host.name) for host in sorted(job.hosts, key=lambda host: host.name)}


def _forget_downloads(hand_dir: HandDir, mounts: Mapping[str, Sequence[Mount]]) -> None:
    """All but what containers see there have been moved into the trees."""
    shown = {mount.source for listed in mounts.values() for mount in listed}
    if hand_dir.downloads.exists():
        for folder in hand_dir.downloads.iterdir():
            if folder not in shown:
                record.remove_tree(folder)
        if not any(hand_dir.downloads.iterdir()):
            hand_dir.downloads.rmdir()


def _write_staged(
    hand_dir: HandDir, options: LocalOptions, uploaded: Sequence[Mapping[str, Mapping[str, Version]]]
) -> None:
    content = {"optml": __version__, "options": submit.options_to_json(options), UPLOADED: list(uploaded)}
    with storage_errors(f"cannot write {hand_dir.staged_file}"):
        record.replace_json(hand_dir.staged_file, content)


# What a person should know.


def _remarks(job: TrainingJob, launches: Sequence[Launch]) -> Iterator[str]:
    stopping = job.stopping
    asked = {
        f"StoppingCondition.MaxRuntimeInSeconds {stopping.max_runtime_seconds}": stopping.max_runtime_seconds
        != StoppingCondition().max_runtime_seconds,
        f"StoppingCondition.MaxWaitTimeInSeconds {stopping.max_wait_seconds}": stopping.max_wait_seconds is not None,
        "RetryStrategy": job.maximum_retries > 0,
        "EnableManagedSpotTraining": job.spot,
        "MetricDefinitions": bool(job.request["AlgorithmSpecification"].get("MetricDefinitions")),
    }
    if ignored := [name for name, is_asked in asked.items() if is_asked]:
        yield f"by hand nobody sees to {', '.join(ignored)}; optml train --backend docker does"
    for folder in mirrored_folders(job):
        yield f"what the job leaves in {folder.local_path} is uploaded by optml collect, and not while it runs"
    for name, value in sorted(launches[0].environment.items()):
        if "ENDPOINT" in name and loopback_address(value) is not None:
            yield f"{name} is {value}, and in a container that is the container itself: give an address of this machine"


def _image_remarks(image: Image) -> Iterator[str]:
    if not image.reference.startswith(OURS):
        return
    try:
        if not has_image(connect(), image.reference):
            yield not_built(image)
    except UserError:
        yield f"no container engine answers here; where one does, {image.reference} comes from: {how_to_build(image)}"


# The commands.


def commands(job: TrainingJob, launches: Sequence[Launch]) -> str:
    """For bash. One host is a command; several are a subshell that ends, and exits 1, when one of them fails.

    A folder may be run again. What an earlier run failed of would be taken for this one's reason, so it goes first.
    """
    forget = _words("rm", "-f", *(str(contract.failure_file(launch.host_dir.ml)) for launch in launches))
    if len(launches) == 1:
        return f"{forget}\n" + _command(["docker run --rm", *_container(job, launches[0])])
    network = f"optml-{job.name}"
    containers = " ".join(f"{network}-{launch.host}" for launch in launches)
    options = ["--internal", *(f"--opt {name}={value}" for name, value in ISOLATED_BRIDGE.items())]
    create = " ".join(["docker network create", *(options if job.network_isolation else []), network])
    runs = [
        _command(
            [
                "docker run --detach",
                f"--name {network}-{launch.host}",
                f"--network {network} --network-alias {launch.host}",
                *([" ".join(f"--dns-opt {option}" for option in ISOLATED_DNS)] if job.network_isolation else []),
                *_container(job, launch),
            ],
            then=" >/dev/null || exit 1",
        )
        for launch in launches
    ]
    lines = [
        "(",
        "follow() {",
        f'    docker logs --follow "{network}-$1" 2>&1 | sed -u "s/^/$1 | /"',
        f'    code=$(docker wait "{network}-$1")',
        '    [ "$code" = 0 ] && return',
        '    echo "$1 failed: exit code $code" >&2',
        f"    docker stop {containers} >/dev/null",
        "    return 1",
        "}",
        "tidy() {",
        f"    docker stop {containers} >/dev/null 2>&1",
        f"    docker rm --force {containers} >/dev/null 2>&1",
        f"    docker network rm {network} >/dev/null",
        "}",
        forget,
        f"{create} >/dev/null || exit 1",
        "trap tidy EXIT",
        f"trap 'echo \"stopping the containers, which have {_grace_seconds(job)} s to end\" >&2; exit 130' INT TERM",
        *runs,
        *(f"follow {launch.host} & follower_{number}=$!" for number, launch in enumerate(launches, start=1)),
        "status=0",
        *(f"wait $follower_{number} || status=1" for number in range(1, len(launches) + 1)),
        "exit $status",
        ")",
    ]
    return "\n".join(lines)


def _command(parts: Sequence[str], *, then: str = "") -> str:
    return " \\\n    ".join(parts) + then


def _container(job: TrainingJob, launch: Launch) -> list[str]:
    """`docker run`'s options, the image, and what follows it: a part for a line."""
    assert launch.image is not None
    parts = [f"--hostname {launch.host}"]
    if launch.as_caller:
        parts.append('--user "$(id -u):$(id -g)"')  # so that what it writes is the caller's
    if launch.network_isolation and len(launch.hosts) == 1:
        parts.append(f"--network none --add-host {launch.host}:127.0.0.1")
    parts.append(_bind(Mount(source=launch.host_dir.ml, target=OPT_ML)))
    parts += [_bind(mount) for mount in launch.mounts]
    if launch.working_dir is not None:
        parts.append(_words("-w", launch.working_dir))
    parts.append(f"--shm-size {_size(shm_bytes(launch, machine.memory_bytes()))}")
    if launch.memory_bytes:
        parts.append(f"--memory {_size(launch.memory_bytes)} --memory-swap {_size(launch.memory_bytes)}")
    if launch.cpus is not None and len(launch.cpus) < (os.cpu_count() or 1):
        parts.append(f"--cpuset-cpus {','.join(map(str, launch.cpus))}")
    if launch.gpus:
        parts.append(f"--gpus '\"device={','.join(map(str, launch.gpus))}\"'")
    parts.append(f"--stop-timeout {_grace_seconds(job)}")
    parts += [_words("-e", f"{name}={value}") for name, value in launch.environment.items()]
    if launch.after_entrypoint:
        return [*parts, _words(launch.image, *launch.argv)]
    return [*parts, _words("--entrypoint", launch.argv[0]), _words(launch.image, *launch.argv[1:])]


def _grace_seconds(job: TrainingJob) -> int:
    return math.ceil(job.options.grace_seconds)


def _words(*words: str) -> str:
    return " ".join(shlex.quote(word) for word in words)


def _bind(mount: Mount) -> str:
    source, target = str(mount.source), mount.target
    if ":" not in source + target:
        return _words("-v", f"{source}:{target}" + (":ro" if mount.read_only else ""))
    # -v cannot have a colon in a path; --mount reads a line of CSV, whose fields may be quoted.
    fields = ["type=bind", f"source={source}", f"target={target}", *(["readonly"] if mount.read_only else [])]
    quoted = ['"' + field.replace('"', '""') + '"' if set(field) & set(',"') else field for field in fields]
    return _words("--mount", ",".join(quoted))


def _size(size_bytes: int) -> str:
    """In docker's units of 1024, the biggest that is exact enough: half of a machine's memory need not be told to the byte."""
    if size_bytes >= 1 << 30 or size_bytes % (1 << 20) == 0:
        return f"{size_bytes >> 20}m"
    return f"{size_bytes}b"


# Afterwards.


def collect(
    folder: str | os.PathLike[str],
    *,
    output: str | os.PathLike[str] | None = None,
    console: Console | None = None,
) -> Packed:
    """Pack what the hosts left in a staged folder, once its containers have ended: model and output archives, checkpoints.

    They go to where the request says, or to `output`, a folder or s3:// URI. Doing it again is fine: it replaces what it put
    there. UserError for a folder that `stage` did not make; NothingLeft where the containers left nothing. Nothing in the
    folder is removed.
    """
    console = console or Console(silent=True)
    hand_dir = HandDir(_folder(folder))
    job, known = _read_staged(hand_dir, output)
    host_dirs = _host_dirs(HandDir(hand_dir.root.resolve()), job)
    for host_dir in host_dirs.values():
        if not host_dir.ml.is_dir() or host_dir.ml.is_symlink():
            raise UserError(
                f"{host_dir.ml} is not there any more, and it had the host's /opt/ml: nothing was collected"
            )
    warnings: list[str] = []
    mirrors = [
        CheckpointMirror(folders_of(host_dirs, mirrored.local_path), mirrored.uri, clock=Clock(), known=before)
        for mirrored, before in zip(mirrored_folders(job), known, strict=True)
    ]
    for mirror in mirrors:
        mirror.final()
        warnings += mirror.warnings
    if mirrors:
        _write_staged(hand_dir, job.options, [mirror.uploaded for mirror in mirrors])
    has_checkpoints = any(versions for mirror in mirrors for versions in mirror.uploaded.values())
    if not has_checkpoints and not any(map(_left_something, host_dirs.values())):
        raise NothingLeft(
            f"nothing was left in {OPT_ML}/{contract.MODEL} nor in {OPT_ML}/output: has the container run? The commands that "
            "optml stage printed run it"
        )
    collected = collect_outputs(
        job, hand_dir, host_dirs, progress=lambda done, total: console.progress("Uploading", done, total)
    )
    with contextlib.suppress(OSError):
        hand_dir.archives.rmdir()
    texts = {host: failure_text(host_dir) for host, host_dir in host_dirs.items()}
    failures = {host: text for host, text in texts.items() if text}
    return Packed(
        name=job.name,
        model_data=collected.model_uri,
        output_data=collected.output_uri,
        failures=failures,
        warnings=(*warnings, *collected.warnings),
        failed=bool(failures) and job.options.failure_file_fails,
    )


def _left_something(host_dir: HostDir) -> bool:
    """Also what cannot be looked at, or is no folder, for collecting says what is wrong with it."""
    for name in (contract.MODEL, "output"):
        errors: list[OSError] = []
        if (host_dir.ml / name).is_symlink():
            return True
        for folder, folders, names in os.walk(host_dir.ml / name, onerror=errors.append):
            if names or any(os.path.islink(f"{folder}/{each}") for each in folders):  # noqa: PTH114
                return True
        if any(not isinstance(error, FileNotFoundError) for error in errors):
            return True
    return False


def _read_staged(
    hand_dir: HandDir, output: str | os.PathLike[str] | None
) -> tuple[TrainingJob, list[dict[str, dict[str, Version]]]]:
    """The job again, and what was uploaded of its mirrored folders."""
    try:
        content = json.loads(hand_dir.staged_file.read_bytes())
        options = submit.options_from_json(content["options"])
        known = [
            {
                host: {path: Version(*version) for path, version in versions.items()}
                for host, versions in by_host.items()
            }
            for by_host in content[UPLOADED]
        ]
        request = load_request(str(hand_dir.request_file), hand_dir.root)
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{hand_dir.root} was not made by optml stage: it has no {hand_dir.staged_file.name}") from None
    except OSError as error:
        raise UserError(f"{hand_dir.staged_file} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{hand_dir.root} was not made by this optml's stage: {hand_dir.staged_file.name} cannot be understood ({error!r})"
        ) from error
    base_dir = submit.current_dir()
    full = request_from_shortcuts(request, base_dir=base_dir, output=None if output is None else os.fspath(output))
    job = parse(full, options=options, base_dir=base_dir)
    if len(mirrored_folders(job)) != len(known):
        raise UserError(
            f"{hand_dir.request_file} is not the request that was staged: it names other folders to upload; put them back as "
            "they were, or stage the job anew"
        )
    return job, known
