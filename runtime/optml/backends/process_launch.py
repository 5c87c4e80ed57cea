"""What the keeper is told of its host: a file that it reads and removes."""

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from optml.backends import Launch
from optml.backends.process_trees import start_time
from optml.jobdir import HostDir
from optml.spec import OPT_ML


def write_launch(
    launch: Launch, found: Mapping[str, Any], cgroups: list[Path], *, temporary: str | None = None
) -> None:
    host_dir, level = launch.host_dir, found["level"]
    environment = {**launch.environment, **_device_environment(launch)}
    argv, working_dir = list(launch.argv), launch.working_dir or "/"
    if level == "none":
        environment = {**relocated_environment(host_dir.ml), **environment}
        argv = [_relocated(word, host_dir.ml) for word in argv]
        working_dir = _relocated(working_dir, host_dir.ml)
    elif found["host_names"]:
        names = "".join(f"{address}\t{name}\n" for name, address in launch.addresses.items()).encode()
        with contextlib.suppress(OSError):
            names = Path("/etc/hosts").read_bytes().rstrip(b"\n") + b"\n" + names
        host_dir.hosts_file.write_bytes(names)
    content = {
        "level": level,
        "argv": argv,
        "environment": environment,
        "working_dir": working_dir,
        "ml": str(host_dir.ml),
        "opt_ml": OPT_ML,
        "host": launch.host,
        "hosts_file": str(host_dir.hosts_file) if host_dir.hosts_file.exists() else None,
        "mounts": [
            {
                "source": str(mount.source),
                "target": mount.target,
                "read_only": mount.read_only,
                "layer": None if mount.layer is None else str(mount.layer),
            }
            for mount in launch.mounts
        ],
        "cpus": list(launch.cpus or ()),
        "cgroups": [str(folder / "cgroup.procs") for folder in cgroups],
        "data_limit": launch.memory_bytes if launch.memory_bytes and not cgroups else None,
        "network": _network_of(launch) if launch.network_isolation else None,
        "disk": launch.disk,
        "temporary": temporary,
    }
    host_dir.launch_file.touch(mode=0o600)  # the environment may hold credentials
    host_dir.launch_file.write_text(json.dumps(content))


def _network_of(launch: Launch) -> dict[str, Any]:
    """An isolated network is shared by the hosts of an attempt: made by the first, joined by the others."""
    for other in sorted(launch.host_dir.root.parent.iterdir()):
        with contextlib.suppress(OSError, ValueError):
            state = json.loads(HostDir(other).state_file.read_bytes())
            if start_time(state["pid"]) == state["pid_started"]:
                return {"join": state["pid"]}
    return {"join": None}


def _device_environment(launch: Launch) -> dict[str, str]:
    if not launch.gpus:
        return {"CUDA_VISIBLE_DEVICES": "", "NVIDIA_VISIBLE_DEVICES": "void"}
    gpus = list(launch.gpus)
    chosen = launch.environment.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:  # the request's own choice, which counts from the host's first GPU
        words = [word.strip() for word in chosen.split(",")]
        gpus = [gpus[int(word)] for word in words if word.isdigit() and int(word) < len(gpus)]
    numbers = ",".join(str(number) for number in gpus)
    # The numbers are nvidia-smi's; CUDA's own order puts the fastest first.
    return {"CUDA_VISIBLE_DEVICES": numbers, "NVIDIA_VISIBLE_DEVICES": numbers, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}


def relocated_environment(ml: Path) -> dict[str, str]:
    """How AWS's toolkits are told of a tree that is not at /opt/ml."""
    data = ml / "input" / "data"
    channels = [path.name for path in data.iterdir() if path.is_dir()] if data.is_dir() else []
    return {
        "SAGEMAKER_BASE_DIR": str(ml),
        "SM_INPUT_DIR": str(ml / "input"),
        "SM_INPUT_CONFIG_DIR": str(ml / "input" / "config"),
        "SM_MODEL_DIR": str(ml / "model"),
        "SM_OUTPUT_DIR": str(ml / "output"),
        "SM_OUTPUT_DATA_DIR": str(ml / "output" / "data"),
        **{f"SM_CHANNEL_{name.upper()}": str(data / name) for name in channels},
    }


def _relocated(word: str, ml: Path) -> str:
    return str(ml) + word[len(OPT_ML) :] if word == OPT_ML or word.startswith(f"{OPT_ML}/") else word
