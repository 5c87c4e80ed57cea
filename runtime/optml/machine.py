"""What this machine has: processors, GPUs, memory."""

import functools
import os
import shutil
import subprocess


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
            [program, "--query-gpu=index", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return ()
    numbers = tuple(int(line) for line in asked.stdout.split() if line.isdigit())
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return numbers
    return tuple(int(word) for word in visible.split(",") if word.strip().isdigit() and int(word) in numbers)


def memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
