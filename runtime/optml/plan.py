"""A job and its paths -> how to start each host. Pure; what --dry-run prints is what would run."""

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from optml import contract
from optml.backends import Backend, Capabilities, Launch, Mount
from optml.errors import ResourceLimitExceeded, UserError
from optml.images import Image, image_for_containers, image_for_process, other_versions, wanted_versions
from optml.instances import instance_named
from optml.jobdir import HostDir, JobDir
from optml.mounted_code import code_environment, code_mounts, with_mounted_code
from optml.script_mode import PROGRAM, is_script_mode
from optml.spec import OF_THE_SYSTEM, OPT_ML, HostSpec, How, TrainingJob

DEBUGGER = "optml_toolkit.script_mode.debug.post_mortem"  # for PYTHONBREAKPOINT

# Folders of a container that a folder of the caller's must not hide, and those below which none may lie.
OF_THE_CONTAINER = ("/", "/home", "/opt", "/root", "/tmp", "/var")


def check(job: TrainingJob, *, containers: bool, gpu_count: int) -> Image:
    """What can be known before the job begins: the image runs here, and the machine has what is asked for."""
    if containers:
        image = image_for_containers(job.image, gpu=wants_gpus(job) and not job.options.allow_cpu)
        if job.options.mount_code:
            if not image.ours:
                raise UserError(
                    f"--mount-code mounts optml's own code, and the image {job.image!r} has none of it: leave it out"
                )
            image = with_mounted_code(image)
    elif job.options.mount_code:
        raise UserError(
            "--mount-code is for --backend docker: hosts of the process backend run this installation's code"
        )
    else:
        image = image_for_process(job.image)
    if (
        (image.cpu_only == "always" or (containers and image.cpu_only))
        and wants_gpus(job)
        and not job.options.allow_cpu
    ):
        raise UserError(
            f"the image {image.reference or image.name} is made for processors, and ResourceConfig asks for GPUs: name an "
            "image of your own that uses them, or say that the CPU will do: --allow-cpu"
        )
    if containers and image.working_dir == "caller":
        _check_shown(job.options.working_dir or Path("/"))
    _check_script(job, image)
    if image.ours and not image.program and not job.entrypoint:
        raise UserError(
            f"the image {image.name!r} has no program of its own: give AlgorithmSpecification.ContainerEntrypoint, "
            f"or on the command line: optml train -- python train.py"
        )
    if image.ours and image.program and not job.entrypoint and job.arguments:
        raise UserError(
            f"AlgorithmSpecification.ContainerArguments {list(job.arguments)} would replace `train`, and {image.name!r} "
            "knows no other command: leave it out, or give ContainerEntrypoint too"
        )
    wanted = sum(instance_named(host.instance_type).gpus for host in job.hosts)
    accelerators = sum(instance_named(host.instance_type).neurons for host in job.hosts)
    if not job.options.allow_cpu and (wanted > gpu_count or accelerators):
        what = f"{wanted} GPU(s)" if wanted else "Trainium accelerators"
        types = ", ".join(sorted({host.instance_type for host in job.hosts}))
        raise ResourceLimitExceeded(
            f"ResourceConfig asks for {len(job.hosts)} x {types}, which is {what}; this machine has {gpu_count} GPU(s). "
            "Use a CPU instance type such as ml.m5.large, or say that the CPU will do: --allow-cpu"
        )
    return image


def _check_script(job: TrainingJob, image: Image) -> None:
    """An image either runs a script, or has an algorithm of its own, or does the one or the other as asked."""
    if job.entrypoint or not image.ours:
        return
    named = is_script_mode(job.hyperparameters) or "SAGEMAKER_PROGRAM" in job.environment
    if image.script_mode == "always" and not named:
        raise UserError(
            f"the image {image.name!r} runs a script, and none is named: give HyperParameters.{PROGRAM}, or on the command line "
            "--entry-point train.py (and --source-dir if it is in a folder of code)"
        )
    if named and not image.script_mode:
        raise UserError(
            f"HyperParameters.{PROGRAM} names a script, and the image {image.name!r} runs none: "
            "use pytorch, scikit-learn, huggingface, tensorflow or xgboost"
        )


def check_versions(job: TrainingJob, image: Image, backend: Backend) -> TrainingJob:
    """The versions here are those installed, or of our image, whatever the URI asks for: the job is told so, or refused if
    it must be exact.

    A built-in algorithm is our own program on any version. An image that is not ours is what its tag says.
    """
    strict = job.options.strict_versions
    if strict and not image.ours:
        raise UserError(
            f"--strict-versions compares the tag of an image of SageMaker's with what runs in its place here, and {job.image} "
            "runs itself: leave it out"
        )
    wanted = wanted_versions(job.image, image.versions_of)
    if not wanted or not (job.entrypoint or is_script_mode(job.hyperparameters) or strict):
        return job
    having = backend.versions(image)
    if having is None:
        if strict:
            raise UserError(
                f"--strict-versions: {image.reference} is not here, so nobody knows its versions; build it first"
            )
        return job  # before it runs, it will have to be
    different = other_versions(wanted, having)
    if backend.containers:
        different += [
            f"{name}, of a version that it does not say, instead of {wanted[name]}"
            for name in wanted
            if name not in having
        ]
    if not different:
        return job
    text = f"the image {job.image} is run by {image.reference or 'what is installed here'}: {', '.join(different)}"
    if strict:
        remedy = (
            "build an image that has them, name that,"
            if backend.containers
            else "install those versions, use a container engine,"
        )
        raise UserError(f"{text}; {remedy} or leave out --strict-versions")
    return replace(job, warnings=(*job.warnings, text))


def with_debugger(job: TrainingJob, image: Image, backend: Backend) -> TrainingJob:
    """Its script waits where it stops or fails, and says how to attach. UserError where nobody could."""
    if job.entrypoint or not image.ours or not image.script_mode or not is_script_mode(job.hyperparameters):
        raise UserError(
            "--pdb is for a script that an image of optml's own runs (--entry-point train.py); with a program of your own that "
            "can import optml_toolkit, breakpoint() waits too: -e PYTHONBREAKPOINT=optml_toolkit.script_mode.debug.wait"
        )
    if "PYTHONBREAKPOINT" in job.environment:
        raise UserError("--pdb sets PYTHONBREAKPOINT, and so does Environment: leave out one of them")
    if job.network_isolation:
        raise UserError("--pdb: nobody can attach to hosts of an isolated network; leave out --isolate-network")
    if not backend.capabilities().reachable:
        raise UserError(
            "--pdb: this machine does not reach containers of its engine by their addresses (it is elsewhere, rootless, or in a "
            "virtual machine): use --backend process"
        )
    return replace(job, environment={**job.environment, "PYTHONBREAKPOINT": DEBUGGER})


def _check_shown(folder: Path) -> None:
    """A program of the caller's runs in the folder where the job was submitted, which its container sees at the same path."""
    if str(folder) in OF_THE_CONTAINER or folder.parts[1] in OF_THE_SYSTEM or str(folder).startswith(f"{OPT_ML}/"):
        raise UserError(
            f"the image 'python' shows the container the folder where you are, and {folder} would hide a folder of its own: "
            "cd to the folder of your program"
        )


def wants_gpus(job: TrainingJob) -> bool:
    return any(instance_named(host.instance_type).gpus for host in job.hosts)


def with_published_metrics(job: TrainingJob, image: Image) -> TrainingJob:
    """A built-in algorithm publishes metrics that nobody asked for; the request's own definitions come first."""
    if job.entrypoint or not image.metrics or is_script_mode(job.hyperparameters):
        return job
    names = {metric.name for metric in job.metric_definitions}
    published = tuple(metric for metric in image.metrics if metric.name not in names)
    return replace(job, metric_definitions=job.metric_definitions + published)


def check_capabilities(job: TrainingJob, capabilities: Capabilities) -> None:
    """Refuse what the backend cannot do on this machine, rather than do something else."""
    if job.network_isolation and not capabilities.network_isolation:
        raise UserError(f"EnableNetworkIsolation cannot be had on this machine: {capabilities.explanation}")
    if len(job.hosts) > 1 and not capabilities.host_names:
        raise UserError(
            f"ResourceConfig.InstanceCount is {len(job.hosts)}, and hosts cannot be given names on this machine: "
            f"{capabilities.explanation}"
        )
    if (job.options.memory_bytes or job.options.instance_limits) and not capabilities.memory_limit:
        raise UserError(f"--memory cannot be had on this machine: {capabilities.explanation}")
    interruptions = job.options.interruptions
    if interruptions is not None and interruptions.how is How.FULL_DISK and capabilities.why_no_disk:
        raise UserError(f"--how full-disk: a disk that can be full cannot be had here: {capabilities.why_no_disk}")


def check_checkpoint_path(job: TrainingJob, backend: Backend) -> None:
    """A folder outside /opt/ml is laid over one of the host's: a container can have any, a process only one that is there."""
    if job.checkpoint is None or f"{job.checkpoint.local_path}/".startswith(f"{OPT_ML}/") or backend.containers:
        return
    path = job.checkpoint.local_path
    if not backend.capabilities().own_opt_ml:
        raise UserError(
            f"CheckpointConfig.LocalPath {path} is outside {OPT_ML}, and hosts have no view of their own of this machine: "
            f"{backend.capabilities().explanation}"
        )
    if not Path(path).is_dir():
        raise UserError(
            f"CheckpointConfig.LocalPath {path} is outside {OPT_ML}, and there is no such folder to lay the job's own over: "
            f"mkdir -p {path} (it stays empty), or --backend docker"
        )


def kept_elsewhere(job: TrainingJob, host_dir: HostDir) -> tuple[Mount, ...]:
    """Checkpoints in a folder outside /opt/ml, shown to the host where it asks for them."""
    if job.checkpoint is None or contract.inside(host_dir.ml, job.checkpoint.local_path) is not None:
        return ()
    return (Mount(source=host_dir.kept, target=job.checkpoint.local_path),)


def check_cpus(job: TrainingJob, cpu_numbers: Sequence[int], engine_count: int | None) -> None:
    """`engine_count`: of a container engine's machine, where that is another one, or a virtual one."""
    here = len(cpu_numbers) if engine_count is None else min(len(cpu_numbers), engine_count)
    fair = max(1, here // len(job.hosts))  # an instance type with more is only that much faster
    if job.options.cpus is not None and job.options.cpus > fair:
        who = "the container engine" if here < len(cpu_numbers) else "this machine"
        each = "its one host" if len(job.hosts) == 1 else f"each of the job's {len(job.hosts)} hosts"
        processors = "1 processor" if here == 1 else f"{here} processors"
        raise ResourceLimitExceeded(
            f"--cpus {job.options.cpus}: {who} has {processors}, so {each} can have at most {fair}"
        )


def argv(job: TrainingJob, image: Image, *, containers: bool) -> tuple[str, ...]:
    """SageMaker's start rules: the image's own program with `train`, unless the request gives an entrypoint. No shell."""
    if job.entrypoint:
        return (*job.entrypoint, *job.arguments)
    if containers and not job.options.mount_code:
        return job.arguments or ("train",)  # after the image's ENTRYPOINT, if it has one
    return tuple(word.replace("{python}", sys.executable) for word in image.program)


def addresses(job: TrainingJob) -> dict[str, str]:
    """Hosts of the process backend share the loopback interface, one address each: algo-1 is 127.0.0.2."""
    return {
        host.name: f"127.{(number + 1) >> 16}.{((number + 1) >> 8) & 255}.{(number + 1) & 255}"
        for number, host in enumerate(job.hosts, start=1)
    }


def share(numbers: Sequence[int], *, index: int, count: int, wanted: int | None) -> tuple[int, ...]:
    """This host's part of a machine's processors or GPUs: as many as it wants, at most its fair part, never none."""
    fair = max(1, len(numbers) // count)
    size = min(fair, wanted) if wanted else fair
    start = (index * fair) % max(1, len(numbers))
    return tuple(numbers[(start + offset) % len(numbers)] for offset in range(size)) if numbers else ()


def gpus_of(job: TrainingJob, host: HostSpec, gpu_numbers: Sequence[int]) -> tuple[int, ...]:
    """GPUs are handed out in host order, each to one host only; a CPU instance type gets none."""
    start = 0
    for other in job.hosts:
        size = instance_named(other.instance_type).gpus
        if other.name == host.name:
            return tuple(gpu_numbers[start : start + size])
        start += size
    return ()


def limits_of(job: TrainingJob, host: HostSpec) -> tuple[int | None, int | None]:
    """Processors and bytes of memory; None: no limit. The instance type's only if asked: a faster machine may be faster."""
    cpus, memory_bytes = job.options.cpus, job.options.memory_bytes
    if job.options.instance_limits:
        instance = instance_named(host.instance_type)
        return cpus or instance.vcpus, memory_bytes or instance.memory_gib * 2**30
    return cpus, memory_bytes


def interface_of(job: TrainingJob, backend: Backend) -> str:
    return backend.interface(host_count=len(job.hosts), isolated=job.network_isolation)


def plan(
    job: TrainingJob,
    job_dir: JobDir,
    image: Image,
    backend: Backend,
    *,
    attempt: int,
    started: float,
    mounts: Mapping[str, tuple[Mount, ...]],
    cpus: Sequence[int],
    gpus: Sequence[int] = (),
    caller_environment: Mapping[str, str] | None = None,
) -> list[Launch]:
    """One Launch per host, in number order. `started` (epoch seconds) names the log streams."""
    base = backend.environment(os.environ if caller_environment is None else caller_environment)
    interface = interface_of(job, backend)
    shown: tuple[Mount, ...] = ()
    working_dir: str | None = image.working_dir or None
    if working_dir == "caller":
        caller = job.options.working_dir or Path("/")
        working_dir = str(caller)
        if backend.containers:
            shown = (Mount(source=caller, target=working_dir, read_only=True),)
    elif backend.containers:
        working_dir = None
    if job.options.mount_code:
        shown += code_mounts()
        base |= code_environment(shown)
    return [
        Launch(
            host=host.name,
            argv=argv(job, image, containers=backend.containers),
            environment=base | dict(image.environment) | contract.environment(job, interface=interface),
            working_dir=working_dir,
            host_dir=job_dir.host(attempt, host.name),
            log_file=job_dir.log_file(host.name, started=started),
            image=image.reference or None,
            after_entrypoint=backend.containers and not job.entrypoint and not job.options.mount_code,
            as_caller=image.ours,
            hosts=tuple(other.name for other in job.hosts),
            mounts=shown + kept_elsewhere(job, job_dir.host(attempt, host.name)) + mounts.get(host.name, ()),
            addresses={} if backend.containers else addresses(job),
            cpus=share(cpus, index=index, count=len(job.hosts), wanted=limits_of(job, host)[0]),
            gpus=gpus_of(job, host, gpus),
            memory_bytes=limits_of(job, host)[1],
            network_isolation=job.network_isolation,
        )
        for index, host in enumerate(job.hosts)
    ]
