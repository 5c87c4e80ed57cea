"""Script mode, the platform's side: the hyperparameters that AWS's SDK makes of an entry point, and code of this machine.

Inside the host a toolkit does the rest, optml's own or AWS's: it reads these hyperparameters. Names and encodings are those of
the SageMaker Python SDK (version 2), which writes every value as JSON.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from optml.errors import UserError
from optml.shapes import is_local, kind_of, near
from optml.spec import OPT_ML

PROGRAM = "sagemaker_program"
SUBMIT_DIRECTORY = "sagemaker_submit_directory"
PROCESSES_PER_HOST = "sagemaker_mpi_num_of_processes_per_host"
LOG_LEVEL = 20

# Names for the command line, and what the SDK's `distribution` calls them.
LAUNCHERS: Mapping[str, Mapping[str, Any]] = {
    "torchrun": {"torch_distributed": {"enabled": True}},
    "torch_distributed": {"torch_distributed": {"enabled": True}},
    "pytorchddp": {"pytorchddp": {"enabled": True}},
    "smdistributed": {"smdistributed": {"dataparallel": {"enabled": True}}},
    "mpi": {"mpi": {"enabled": True}},
    "multi_worker_mirrored_strategy": {"multi_worker_mirrored_strategy": {"enabled": True}},
    "parameter_server": {"parameter_server": {"enabled": True}},
    "pytorchxla": {"pytorchxla": {"enabled": True}},
}
ENABLED_BY = {
    "torch_distributed": "sagemaker_torch_distributed_enabled",
    "pytorchddp": "sagemaker_pytorch_ddp_enabled",
    "mpi": "sagemaker_mpi_enabled",
    "multi_worker_mirrored_strategy": "sagemaker_multi_worker_mirrored_strategy_enabled",
    "parameter_server": "sagemaker_parameter_server_enabled",
    "pytorchxla": "sagemaker_pytorch_xla_multi_worker_enabled",
}
WITH_INSTANCE_TYPE = ("torch_distributed", "pytorchddp", "smdistributed")
DEFAULT_IMAGES = {  # of an entry point whose image nobody named
    "torch_distributed": "pytorch",
    "pytorchddp": "pytorch",
    "smdistributed": "pytorch",
    "multi_worker_mirrored_strategy": "tensorflow",
}


def is_script_mode(hyperparameters: Mapping[str, str]) -> bool:
    return PROGRAM in hyperparameters


def script_hyperparameters(
    *,
    entry_point: str | os.PathLike[str],
    source_dir: str | os.PathLike[str] | None,
    hyperparameters: Mapping[str, Any],
    distribution: Mapping[str, Any],
    processes_per_host: int | None,
    job_name: str,
    region: str,
    instance_type: str | None,
    base_dir: Path,
) -> dict[str, str]:
    """What the SDK would send. The script's own come first, each as JSON; `source_dir` may be a folder, a tarball or s3://."""
    program, source = _program_and_source(os.fspath(entry_point), source_dir, base_dir)
    chosen: dict[str, Any] = {
        **hyperparameters,
        **distribution_hyperparameters(distribution, instance_type=instance_type),
        **({} if processes_per_host is None else {PROCESSES_PER_HOST: processes_per_host}),
        SUBMIT_DIRECTORY: source,
        PROGRAM: program,
        "sagemaker_container_log_level": LOG_LEVEL,
        "sagemaker_job_name": job_name,
        "sagemaker_region": region,
    }
    found: dict[str, str] = {}
    for name, value in chosen.items():
        try:
            found[str(name)] = json.dumps(value)
        except (TypeError, ValueError, RecursionError) as error:
            raise UserError(f"hyperparameter {name!r} cannot be written as JSON: {error}") from None
    return found


def _program_and_source(entry_point: str, source_dir: str | os.PathLike[str] | None, base_dir: Path) -> tuple[str, str]:
    if source_dir is None:
        script = base_dir / os.path.expanduser(entry_point)  # noqa: PTH111  (of no such user: as it is)
        if not script.is_file():
            raise UserError(
                f"the entry point {entry_point!r} is no file of {base_dir}; give --source-dir if it is in a folder of code"
            )
        return script.name, str(script)
    source = os.fspath(source_dir)
    if is_local(source):
        folder = base_dir / os.path.expanduser(source.removeprefix("file://"))  # noqa: PTH111
        if not folder.exists():
            raise UserError(f"the source folder {source!r} cannot be found; it is looked for as {folder}")
        if folder.is_dir() and entry_point.endswith((".py", ".sh")) and not (folder / entry_point).is_file():
            names = sorted(entry.name for entry in folder.iterdir())
            raise UserError(
                f"the entry point {entry_point!r} is not in the source folder {source!r}, to which it is relative; "
                f"that has {', '.join(names[:20]) or 'nothing'}"
            )
    return entry_point, source


def distribution_named(given: Any) -> Mapping[str, Any]:
    """The SDK's `distribution`, or one of the names of LAUNCHERS. UserError for what is neither."""
    if given is None:
        return {}
    if isinstance(given, str):
        if given not in LAUNCHERS:
            raise UserError(
                f"distribution must be one of {', '.join(LAUNCHERS)}, got {given!r}{near(given, list(LAUNCHERS))}"
            )
        return LAUNCHERS[given]
    if not isinstance(given, Mapping):
        raise UserError(f"distribution must be a name or a dict as the SDK takes, got {kind_of(given)}")
    known = [*ENABLED_BY, "smdistributed"]
    for name, options in given.items():
        if name not in known:
            raise UserError(f"distribution: there is no {name!r}{near(str(name), known)}; there are {', '.join(known)}")
        if not isinstance(options, Mapping):
            raise UserError(f"distribution {name!r} must be a dict such as {{'enabled': True}}, got {kind_of(options)}")
    return given


def distribution_hyperparameters(distribution: Mapping[str, Any], *, instance_type: str | None) -> dict[str, Any]:
    """As in the SDK's estimators."""
    found: dict[str, Any] = {}
    for name, options in distribution.items():
        if name == "smdistributed":
            found |= _smdistributed(options)
        else:
            known = {
                "enabled",
                "instance_groups",
                *(("processes_per_host", "custom_mpi_options") if name == "mpi" else ()),
            }
            _refuse_unknown(f"distribution {name!r}", options, known)
            if options.get("enabled"):
                found[ENABLED_BY[name]] = True
                if name == "mpi":
                    if options.get("processes_per_host"):
                        found[PROCESSES_PER_HOST] = options["processes_per_host"]
                    found["sagemaker_mpi_custom_mpi_options"] = options.get("custom_mpi_options", "")
        if (groups := options.get("instance_groups")) and not isinstance(groups, list | tuple):
            raise UserError(f"distribution {name!r}: instance_groups must be a list of names, got {kind_of(groups)}")
        if options.get("instance_groups"):
            found["sagemaker_distribution_instance_groups"] = list(options["instance_groups"])
        if name in WITH_INSTANCE_TYPE and instance_type and found:
            found["sagemaker_instance_type"] = instance_type
    return found


def _smdistributed(options: Mapping[str, Any]) -> dict[str, Any]:
    _refuse_unknown("distribution 'smdistributed'", options, {"dataparallel", "modelparallel", "instance_groups"})
    found: dict[str, Any] = {}
    data_parallel, model_parallel = options.get("dataparallel", {}), options.get("modelparallel", {})
    for name, each, known in (
        ("dataparallel", data_parallel, {"enabled", "custom_mpi_options"}),
        ("modelparallel", model_parallel, {"enabled", "parameters"}),
    ):
        what = f"distribution 'smdistributed': {name}"
        if not isinstance(each, Mapping):
            raise UserError(f"{what} must be a dict such as {{'enabled': True}}, got {kind_of(each)}")
        _refuse_unknown(what, each, known)
    if data_parallel.get("enabled"):
        found["sagemaker_distributed_dataparallel_enabled"] = True
        found["sagemaker_distributed_dataparallel_custom_mpi_options"] = data_parallel.get("custom_mpi_options", "")
    if model_parallel.get("enabled"):
        found["mp_parameters"] = model_parallel.get("parameters", {})
    return found


def _refuse_unknown(what: str, options: Mapping[str, Any], known: set[str]) -> None:
    for key in options:
        if key not in known:
            raise UserError(f"{what}: there is no option {key!r}{near(str(key), sorted(known))}")


# Code that lies on this machine.


def source_of(hyperparameters: Mapping[str, str]) -> str | None:
    """sagemaker_submit_directory, read as the toolkit in the host reads it."""
    given = hyperparameters.get(SUBMIT_DIRECTORY)
    if given is None:
        return None
    try:
        value = json.loads(given)
    except ValueError:
        return given
    return value if isinstance(value, str) else None


def local_source(hyperparameters: Mapping[str, str]) -> Path | None:
    """Where on this machine the code is; None if it is in S3, or at a path of the host's own below /opt/ml."""
    source = source_of(hyperparameters)
    if not source or not is_local(source) or f"{source}/".startswith(f"{OPT_ML}/"):
        return None
    return Path(source.removeprefix("file://"))


def with_whole_source(hyperparameters: Mapping[str, str], base_dir: Path) -> dict[str, str]:
    """The same with a local source's path as a file:// URI: the code is put in place by the platform, at /opt/ml/code."""
    path = local_source(hyperparameters)
    if path is None:
        return dict(hyperparameters)
    absolute = os.path.normpath(base_dir / os.path.expanduser(path))  # noqa: PTH111
    return {**hyperparameters, SUBMIT_DIRECTORY: json.dumps(f"file://{absolute}")}
