"""What this machine has: processors, GPUs, memory."""

import contextlib
import functools
import os
import shutil
import subprocess
from pathlib import Path


def cpu_numbers() -> tuple[int, ...]:
    """The processors this process may use, by number."""
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))


@functools.cache
def gpu_numbers() -> tuple[int, ...]:
    """NVIDIA GPUs by number, as far as CUDA_VISIBLE_DEVICES lets this process see them; none without nvidia-smi."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return ()
    try:
        asked = subprocess.run(
            [program, "--query-gpu=index,uuid", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return ()
    return visible_gpus(asked.stdout, os.environ.get("CUDA_VISIBLE_DEVICES"))


def visible_gpus(listed: str, visible: str | None) -> tuple[int, ...]:
    """From nvidia-smi's lines `0, GPU-5ebe...` those that CUDA_VISIBLE_DEVICES names: by number or by the start of the id."""
    rows = [line.partition(",") for line in listed.splitlines()]
    ids = {int(number): uuid.strip() for number, _, uuid in rows if number.strip().isdigit()}
    if visible is None:
        return tuple(ids)
    chosen: list[int] = []
    for word in (word.strip() for word in visible.split(",")):
        found = [number for number, uuid in ids.items() if word == str(number) or (word and uuid.startswith(word))]
        if len(found) != 1:
            break  # CUDA does not look beyond a word that names no device
        chosen += found
    return tuple(chosen)


def memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def kills_for_memory() -> int:
    """How many processes of this machine the kernel has killed for lack of memory since it started; 0 where it does not say."""
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/vmstat").read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return 0
