"""The story of one host of a script-mode job."""

import logging
import os
import shlex
import sys
import traceback
from collections.abc import Mapping
from typing import Any

from optml_toolkit.container import MAX_FAILURE_CHARACTERS, Container, UserError, log_to_stdout
from optml_toolkit.script_mode import failure, launchers, mpi_hosts, post_mortem, processes
from optml_toolkit.script_mode.arguments import hazards, to_arguments
from optml_toolkit.script_mode.environment import child_environment
from optml_toolkit.script_mode.job import CLOUDWATCH, ScriptJob, read_job
from optml_toolkit.script_mode.peers import wait_for_peers
from optml_toolkit.script_mode.requirements import install
from optml_toolkit.script_mode.user_code import prepare_code

log = logging.getLogger("script_mode")


def main(container: Container | None = None) -> int:
    """Run the job's script; gives its exit code, 128+n if signal n ended it. What went wrong is in the failure file."""
    container = container or Container.here()
    log_to_stdout()
    signals = processes.Signals()
    signals.install()
    try:
        container.check_writable()
        container.forget_failure()
        return run(container, signals)
    except processes.Stopped as stop:
        log.info("Stopped before the script had begun")
        return stop.exit_code
    except UserError as error:
        container.fail(str(error))
        log.error("%s", error)
        return 1
    except Exception as error:  # noqa: BLE001  (whatever it is, the platform must hear of it)
        container.fail(f"{type(error).__name__}: {error}\n\n{traceback.format_exc()}"[: 4 * MAX_FAILURE_CHARACTERS])
        traceback.print_exc()
        return 1


def run(container: Container, signals: processes.Signals) -> int:
    job = read_job(container)
    set_log_level(job)
    if job.toolkit_parameters.get(CLOUDWATCH):
        log.warning("HyperParameters.%s has no effect here, nor in SageMaker's containers of today", CLOUDWATCH)
    code = prepare_code(job)
    for name in code.shadowing:
        log.warning("%s in your code hides Python's own module of that name from every library: rename it", name)
    python = install(code)
    arguments = to_arguments(job.hyperparameters)
    warn_of_shells(job, arguments)
    started = launchers.launch(job, code, python=python, arguments=arguments)
    wait_for_peers(job.hosts, needed=launchers.needs_peers(job))
    environment = whole_environment(job, started, python)
    if not (started.by_mpi and job.current_host != job.master_host):
        log.info("Running: %s", shlex.join(started.argv))
    trouble = ""
    try:
        if started.by_mpi:
            ended, trouble = mpi_hosts.run(
                job, code, started.argv, python=python, environment=environment, signals=signals
            )
        else:
            ended = processes.run(started.argv, folder=code.folder, environment=environment, signals=signals)
    except OSError as error:
        raise UserError(f"{code.program} cannot be run: {error.strerror}; {started.argv[0]}") from error
    code_of_script = failure.exit_code(ended, by_torchrun=started.by_torchrun)
    if ended.stopped:
        log.info("Stopped: %s ended with exit code %d", job.program, code_of_script)
    elif code_of_script == 0:
        succeed(container)
    else:
        text = failure.explain(
            ended, code, started.argv, final_code=code_of_script, by_torchrun=started.by_torchrun, trouble=trouble
        )
        container.fail(text[: 4 * MAX_FAILURE_CHARACTERS])
        log.error("%s", text.partition("\n")[0])
    return code_of_script


def set_log_level(job: ScriptJob) -> None:
    level = job.log_level
    if isinstance(level, bool) or not isinstance(level, int):
        raise UserError(
            f"HyperParameters.sagemaker_container_log_level must be a number such as 20 (INFO), got {level!r}"
        )
    logging.getLogger().setLevel(level)


def warn_of_shells(job: ScriptJob, arguments: list[str]) -> None:
    """What runs here as it is may run differently in the cloud: better to know before."""
    if job.framework in ("pytorch", "tensorflow") and (changed := hazards(arguments)):
        log.warning(
            "Given to the script exactly as they are, but in SageMaker a shell splits, executes or drops them (images whose "
            "sagemaker-training is older than 5.1.4): %s",
            "; ".join(changed),
        )


def whole_environment(job: ScriptJob, started: launchers.Launch, python: str) -> dict[str, str]:
    environment = child_environment(job, base=os.environ)
    extra: dict[str, Any] = dict(started.environment)
    if "PYTHONPATH" in extra:
        extra["PYTHONPATH"] = os.pathsep.join([environment["PYTHONPATH"], extra["PYTHONPATH"]])
    environment |= extra
    environment |= post_mortem.environment(environment)
    if python != sys.executable:  # `python` and `pip` of a shell, and of a script that calls them, mean the same one
        environment |= activated(python, environment)
    return environment


def activated(python: str, environment: Mapping[str, str]) -> dict[str, str]:
    folder = os.path.dirname(python)  # noqa: PTH120
    return {
        "PATH": os.pathsep.join([folder, environment.get("PATH", os.defpath)]),
        "VIRTUAL_ENV": os.path.dirname(folder),  # noqa: PTH120
    }


def succeed(container: Container) -> None:
    """An empty file that AWS's toolkit writes too; the platform does not look at it."""
    container.output_dir.mkdir(parents=True, exist_ok=True)
    (container.output_dir / "success").touch()
