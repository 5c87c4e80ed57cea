"""The SM_* variables, encoded exactly as AWS's toolkit does: text as it is, None as nothing, the rest as compact JSON."""

import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from optml_toolkit.script_mode.arguments import to_arguments
from optml_toolkit.script_mode.job import JOB_NAME, REGION, ScriptJob


def sm_environment(job: ScriptJob) -> dict[str, str]:
    """SM_* by name. Names are upper-cased and keep their hyphens: SM_HP_BATCH-SIZE."""
    facts = properties(job)
    values: dict[str, Any] = {
        name: facts[name]
        for name in (
            "hosts", "current_host", "network_interface_name", "current_instance_type", "current_instance_group",
            "current_instance_group_hosts", "instance_groups", "instance_groups_dict", "distribution_instance_groups",
            "is_hetero", "user_entry_point", "module_name", "module_dir", "framework_module", "input_dir", "input_config_dir",
            "output_dir", "output_data_dir", "output_intermediate_dir", "model_dir", "log_level", "num_cpus", "num_gpus",
            "num_neurons", "resource_config", "input_data_config",
        )
    }  # fmt: skip
    values["hps"] = facts["hyperparameters"]
    values["framework_params"] = facts["additional_framework_parameters"]
    values["user_args"] = to_arguments(job.hyperparameters)
    values["channels"] = sorted(facts["channel_input_dirs"])
    values["training_env"] = facts
    if facts["topology"]:
        values["topology"] = facts["topology"]
    values |= {f"channel_{name}": folder for name, folder in facts["channel_input_dirs"].items()}
    values |= {f"hp_{name}": value for name, value in job.hyperparameters.items()}
    return {f"SM_{name.upper()}": encoded(value) for name, value in values.items()}


def properties(job: ScriptJob) -> dict[str, Any]:
    """What SM_TRAINING_ENV holds: every property of AWS's Environment object, by its name there."""
    container = job.container
    model_parallel = os.environ.get("SM_HP_MP_PARAMETERS")
    return {
        "additional_framework_parameters": dict(job.framework_parameters),
        "channel_input_dirs": {name: str(container.data_dir / name) for name in job.input_data_config},
        "current_host": job.current_host,
        "current_instance_group": job.current_group,
        "current_instance_group_hosts": job.current_group_hosts,
        "current_instance_type": job.instance_type,
        "distribution_hosts": job.distribution_hosts,
        "distribution_instance_groups": job.distribution_groups,
        "framework_module": job.framework_module,
        "hosts": job.hosts,
        "hyperparameters": dict(job.hyperparameters),
        "input_config_dir": str(container.config_dir),
        "input_data_config": dict(job.input_data_config),
        "input_dir": str(container.input_dir),
        "instance_groups": list(job.groups),
        "instance_groups_dict": job.groups,
        "is_hetero": len(job.groups) > 1,
        "is_master": job.current_host == job.master_host,
        "is_modelparallel_enabled": model_parallel and model_parallel != "{}",
        "is_smddpmprun_installed": shutil.which("smddpmprun") is not None,
        "is_smddprun_installed": shutil.which("smddprun") is not None,
        "job_name": job.training_job_name,
        "log_level": job.log_level,
        "master_hostname": job.master_host,
        "model_dir": str(container.model_dir),
        "module_dir": job.submit_directory if job.submit_directory is not None else str(container.code_dir),
        "module_name": job.program.removesuffix(".py"),
        "network_interface_name": job.network_interface,
        "num_cpus": count_cpus(),
        "num_gpus": count_gpus(),
        "num_neurons": count_neurons(job.instance_type),
        "output_data_dir": str(container.output_data_dir),
        "output_dir": str(container.output_dir),
        "output_intermediate_dir": str(container.output_dir / "intermediate"),
        "resource_config": dict(job.resource_config),
        "topology": job.resource_config.get("topology", []),
        "user_entry_point": job.program,
    }


def encoded(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, separators=(",", ":"))


def child_environment(job: ScriptJob, *, base: Mapping[str, str]) -> dict[str, str]:
    """The whole environment of the user's program, but for what its launcher adds.

    AWS puts the toolkit's own sys.path on PYTHONPATH; only the code's folder goes there here, for the rest would hide
    what requirements.txt installed.
    """
    search_path = [str(job.container.code_dir), *filter(None, [base.get("PYTHONPATH")])]
    told = {
        **sm_environment(job),
        "SAGEMAKER_JOB_NAME": encoded(job.toolkit_parameters.get(JOB_NAME, "")),
        "SAGEMAKER_REGION": encoded(job.toolkit_parameters.get(REGION) or base.get("AWS_REGION", "")),
        "CURRENT_HOST": job.current_host,
        "PYTHONPATH": os.pathsep.join(search_path),
    }
    # A variable can hold anything but a NUL; a name neither that nor `=`. Those are in SM_HPS all the same.
    possible = {name: value for name, value in told.items() if "\0" not in name + value and "=" not in name}
    return {"PYTHONUNBUFFERED": "1", **base, **possible}


def count_cpus() -> int:
    """Processors that this host may use: a host of a shared machine has only its part of them."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def count_gpus() -> int:
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        words = [word.strip() for word in chosen.split(",")]
        usable = words.index("-1") if "-1" in words else len(words)  # CUDA stops at the first that is none
        return len([word for word in words[:usable] if word])
    if os.environ.get("NVIDIA_VISIBLE_DEVICES") == "void":
        return 0
    lines = _output_of("nvidia-smi", "--list-gpus").splitlines()
    return len([line for line in lines if line.startswith("GPU ")])


def count_neurons(instance_type: str) -> int:
    if "trn2.48xlarge" in instance_type:
        return 64
    try:
        found = json.loads(_output_of("neuron-ls", "-j") or "[]")
    except ValueError:
        return 0
    return sum(item.get("nc_count", 0) for item in found)


def _output_of(*command: str) -> str:
    """Of a tool that tells of accelerators; nothing if it is not there or fails."""
    program = shutil.which(command[0])
    if program is None:
        return ""
    done = subprocess.run([program, *command[1:]], capture_output=True, text=True, check=False)
    return done.stdout if done.returncode == 0 else ""


def existing_interface(name: str) -> str | None:
    """The network interface if this host has it; a tree made by hand may name another's."""
    return name if Path("/sys/class/net", name).exists() else None
