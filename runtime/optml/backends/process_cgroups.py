"""Memory limits: a control group of version 2 or 1 where this user may make one; else a limit of each process's data."""

import contextlib
import os
import time
from pathlib import Path

from optml.backends import Launch


def make(launch: Launch) -> list[Path]:
    name = f"optml-{os.getpid()}-{launch.host}-{time.monotonic_ns()}"
    own = ""
    with contextlib.suppress(OSError):
        lines = Path("/proc/self/cgroup").read_text().splitlines()
        own = next((line.removeprefix("0::") for line in lines if line.startswith("0::")), "")
    candidates = [
        (Path("/sys/fs/cgroup") / own.lstrip("/") / name, "memory.max", "memory.swap.max", 0),
        (
            Path("/sys/fs/cgroup/memory") / name,
            "memory.limit_in_bytes",
            "memory.memsw.limit_in_bytes",
            launch.memory_bytes,
        ),
    ]
    for folder, limit_file, swap_file, swap_limit in candidates:
        try:
            folder.mkdir()
        except OSError:
            continue
        try:
            # "r+": where only version 1 is mounted, /sys/fs/cgroup is an ordinary disk, and takes files of any name.
            with (folder / limit_file).open("r+") as file:
                file.write(str(launch.memory_bytes))
            with contextlib.suppress(OSError), (folder / swap_file).open("r+") as file:
                file.write(str(swap_limit))
            return [folder]
        except OSError:
            remove([folder])
    return []


def ran_out_of_memory(cgroups: list[Path]) -> bool:
    for folder in cgroups:
        for name in ("memory.events", "memory.oom_control"):
            with contextlib.suppress(OSError):
                for line in (folder / name).read_text().splitlines():
                    key, _, value = line.partition(" ")
                    if key == "oom_kill" and int(value) > 0:
                        return True
    return False


def remove(cgroups: list[Path]) -> None:
    for folder in cgroups:
        for _ in range(50):
            try:
                folder.rmdir()
            except FileNotFoundError:
                break
            except OSError:
                time.sleep(0.01)
            else:
                break
