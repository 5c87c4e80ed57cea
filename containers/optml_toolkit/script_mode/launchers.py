"""Which command runs the user's program: plainly, under torchrun or under MPI, as `distribution=` of the SDK asks."""

import importlib.util
import json
import logging
import os
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from optml_toolkit.container import UserError
from optml_toolkit.script_mode import job as jobs
from optml_toolkit.script_mode.environment import count_gpus, count_neurons, existing_interface
from optml_toolkit.script_mode.job import ScriptJob
from optml_toolkit.script_mode.user_code import Kind, UserCode

MASTER_PORT = 7777  # AWS's
MIRRORED_PORT = 8890  # AWS's, for TensorFlow's workers; and the next ones, where hosts share a network
PORTS_OF_A_JOB = 100  # of TensorFlow's, where jobs share one
SHIMS = Path(__file__).with_name("shims")
# torchrun kills its workers 30 s after SIGTERM. The platform has a grace of its own, and kills when that is over.
TORCHRUN_TIMEOUT = "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"
NEVER_SECONDS = str(24 * 3600)

log = logging.getLogger("script_mode")


@dataclass(frozen=True, kw_only=True)
class Launch:
    """A command and what it needs in its environment."""

    argv: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    by_torchrun: bool = False
    by_mpi: bool = False


def launch(job: ScriptJob, code: UserCode, *, python: str, arguments: Sequence[str]) -> Launch:
    """In AWS's order: mpi, pytorchddp, torch_distributed, smdistributed, then plainly. UserError for what cannot be had."""
    refuse_retired(job)
    if job.wants(jobs.MPI):
        from optml_toolkit.script_mode.mpi import under_mpi

        return under_mpi(job, code, python=python, arguments=arguments, processes=processes_per_host(job))
    if job.wants(jobs.PYTORCH_DDP):
        log.info(
            "pytorchddp: PyTorch's DistributedDataParallel under torchrun (SageMaker starts the same script with mpirun)"
        )
        return under_torchrun(job, code, python=python, arguments=arguments)
    if job.wants(jobs.TORCH_DISTRIBUTED):
        if code.kind is not Kind.SCRIPT:
            raise UserError(
                f"torch_distributed runs a Python script, and {code.program!r} is a {code.kind.value}, which SageMaker refuses "
                "too: give a .py file, without a setup.py beside it"
            )
        return under_torchrun(job, code, python=python, arguments=arguments)
    if job.wants(jobs.DATA_PARALLEL):
        return with_smdistributed(job, code, python=python, arguments=arguments)
    extra = tensorflow_environment(job) if job.framework == "tensorflow" else {}
    return Launch(argv=plain_command(code, python, arguments), environment=torch_environment(job) | extra)


def refuse_retired(job: ScriptJob) -> None:
    """What AWS has given up, or sells as closed software: named, with what does the same."""
    if job.wants(jobs.PARAMETER_SERVER):
        raise UserError(
            "distribution parameter_server is not supported: TensorFlow has retired it. Use multi_worker_mirrored_strategy, or "
            "torch_distributed with PyTorch"
        )
    if job.wants(jobs.XLA):
        raise UserError(
            "distribution pytorchxla (SageMaker Training Compiler) is not supported: AWS has retired it. Use torch_distributed, "
            "and torch.compile in the script"
        )
    if job.hyperparameters.get("mp_parameters") not in (None, {}, ""):
        raise UserError(
            "distribution smdistributed modelparallel (mp_parameters) is not supported: the library is AWS's own. Use "
            "torch_distributed with PyTorch's FSDP, tensor or pipeline parallelism"
        )
    if job.wants(jobs.MIRRORED) and job.framework not in ("tensorflow", None):
        raise UserError(f"distribution multi_worker_mirrored_strategy is TensorFlow's, and this is {job.framework}")
    if job.wants(jobs.DATA_PARALLEL) and job.framework == "tensorflow":
        raise UserError(
            "distribution smdistributed dataparallel is not supported for TensorFlow: AWS has retired it. "
            "Use multi_worker_mirrored_strategy"
        )


def needs_peers(job: ScriptJob) -> bool:
    """Whether what is launched will meet the other hosts, rather than the script, if it likes."""
    return any(job.wants(distribution) for distribution in jobs.DISTRIBUTIONS)


def processes_per_host(job: ScriptJob) -> int:
    """As asked for, else one per GPU, else one per Neuron core, else one."""
    name = "sagemaker_mpi_num_of_processes_per_host"
    wanted = job.framework_parameters.get(name)
    if wanted is None:
        return count_gpus() or count_neurons(job.instance_type) or 1
    if isinstance(wanted, bool) or not isinstance(wanted, int) or wanted < 1:
        raise UserError(f"HyperParameters.{name} must be a whole number of at least 1, got {wanted!r}")
    return wanted


def plain_command(code: UserCode, python: str, arguments: Sequence[str]) -> tuple[str, ...]:
    if code.kind is Kind.MODULE:
        return (python, "-m", code.program, *arguments)
    if code.kind is Kind.SCRIPT:
        return (python, code.program, *arguments)
    program = code.folder / code.program
    program.chmod(program.stat().st_mode | 0o755)
    has_interpreter = program.open("rb").read(2) in (b"#!", b"\x7fE")
    return (*(() if has_interpreter else ("/bin/sh",)), f"./{code.program}", *arguments)


def torch_environment(job: ScriptJob, *, by_torchrun: bool = False) -> dict[str, str]:
    """What AWS's PyTorch containers set for every script; a value of the request's own stays."""
    told = {TORCHRUN_TIMEOUT: NEVER_SECONDS}  # also for a script that calls torchrun itself
    if job.framework == "pytorch" or by_torchrun:
        told |= {
            "MASTER_ADDR": job.master_host,
            "MASTER_PORT": str(master_port(job)),
            "NCCL_DEBUG": "WARN",
            "NCCL_IB_DISABLE": "1",
            **interfaces(job),
        }
    return {name: value for name, value in told.items() if name not in os.environ}


def master_port(job: ScriptJob) -> int:
    return MASTER_PORT + job.container.slot


def interfaces(job: ScriptJob) -> dict[str, str]:
    """By which the hosts see each other."""
    named = job.framework_parameters.get("sagemaker_network_interface_name") or job.network_interface
    interface = existing_interface(str(named))
    if interface is None:  # a name that is not there would stop NCCL and gloo
        return {}
    return {"NCCL_SOCKET_IFNAME": interface, "GLOO_SOCKET_IFNAME": interface}


def tensorflow_environment(job: ScriptJob) -> dict[str, str]:
    told = {
        "TF_CPP_MIN_LOG_LEVEL": "1",
        "S3_REGION": os.environ.get("AWS_REGION", ""),
        "S3_USE_HTTPS": "1",
    }
    if job.wants(jobs.MIRRORED) and "TF_CONFIG" not in os.environ:
        hosts = job.distribution_hosts
        index = hosts.index(job.current_host)
        # TensorFlow listens on every address, whatever name it is given: hosts of one network stack need a port each.
        step = 1 if share_a_network(hosts) else 0
        first = MIRRORED_PORT + PORTS_OF_A_JOB * job.container.slot
        if step:
            check_port(job, first + index)
        told["TF_CONFIG"] = json.dumps(
            {
                "cluster": {"worker": [f"{host}:{first + place * step}" for place, host in enumerate(hosts)]},
                "environment": "cloud",
                "task": {"index": index, "type": "worker"},
            }
        )
    return {name: value for name, value in told.items() if name not in os.environ}


def share_a_network(hosts: Sequence[str]) -> bool:
    """Whether these are hosts of one machine's loopback, as on the process backend, rather than machines or containers."""
    try:
        return all(socket.gethostbyname(host).startswith("127.") for host in hosts)
    except OSError:
        return False


def under_torchrun(job: ScriptJob, code: UserCode, *, python: str, arguments: Sequence[str]) -> Launch:
    """torchrun on every host of the distribution, its rendezvous on the first."""
    if not code.is_python:
        raise UserError(
            f"torchrun runs Python programs, and {code.program!r} is a {code.kind.value}; call torchrun in it yourself"
        )
    if python == sys.executable and importlib.util.find_spec("torch") is None:
        raise UserError(f"torchrun is part of PyTorch, and this Python ({python}) has no torch: pip install torch")
    hosts = job.distribution_hosts
    is_master = job.current_host == job.master_host
    if len(hosts) == 1:
        # torchrun's own default port is the same for every job of a machine.
        rendezvous = ["--master_addr", "127.0.0.1", "--master_port", str(free_port())]
    else:
        if is_master:
            check_port(job, master_port(job))
        rendezvous = [
            *("--master_addr", job.master_host),
            *("--master_port", str(master_port(job))),
            *("--node_rank", str(hosts.index(job.current_host))),
        ]
    program = ["-m", code.program] if code.kind is Kind.MODULE else [code.program]
    environment = torch_environment(job, by_torchrun=True)
    environment["PYTHONPATH"] = str(SHIMS / "at_exit")
    if "OMP_NUM_THREADS" not in os.environ:
        environment["OMP_NUM_THREADS"] = "1"  # what torchrun sets as well, with a warning of five lines
    if "NCCL_PROTO" not in os.environ:
        environment["NCCL_PROTO"] = "simple"
    warn_of_short_shutdown()
    return Launch(
        argv=(
            *(python, "-m", "torch.distributed.run"),
            *("--nnodes", str(len(hosts)), "--nproc_per_node", str(processes_per_host(job))),
            *rendezvous,
            *program,
            *arguments,
        ),
        environment=environment,
        by_torchrun=True,
    )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def check_port(job: ScriptJob, port: int) -> None:
    """Two jobs on one machine's network would meet at the same port, and each other."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            raise UserError(
                f"port {port} of {job.current_host}, where the hosts of a job meet, cannot be had ({error.strerror}): "
                "another job of this machine may use it. Wait for that one, or give each job a network of its own: "
                "--isolate-network (EnableNetworkIsolation)"
            ) from None


def warn_of_short_shutdown() -> None:
    """PyTorch before 2.9 or so knows no other time than 30 s. Looked for in its source: importing torch takes seconds."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return
    source = Path(spec.origin).parent / "distributed" / "launcher" / "api.py"
    if source.is_file() and TORCHRUN_TIMEOUT not in source.read_text(encoding="utf-8", errors="replace"):
        log.warning("This PyTorch's torchrun kills the processes 30 s after SIGTERM, whatever the job's grace is")


def with_smdistributed(job: ScriptJob, code: UserCode, *, python: str, arguments: Sequence[str]) -> Launch:
    """The script's own import and backend name work, on PyTorch's backends: AWS's library is closed, and for its machines."""
    started = under_torchrun(job, code, python=python, arguments=arguments)
    if importlib.util.find_spec("smdistributed") is not None:
        return started
    log.warning(
        'smdistributed dataparallel: init_process_group("smddp") uses PyTorch\'s %s backend here; results are '
        "the same, speed is not",
        "NCCL" if count_gpus() else "gloo",
    )
    environment = {
        **started.environment,
        "PYTHONPATH": os.pathsep.join([str(SHIMS), started.environment["PYTHONPATH"]]),
    }
    return Launch(argv=started.argv, environment=environment, by_torchrun=True)
