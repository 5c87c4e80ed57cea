"""Processes by number and time of birth; and those of a host without namespaces, which nothing else holds together."""

import contextlib
import os
import signal
import time
from pathlib import Path

from optml.jobdir import HostDir

KILL_SECONDS = 10.0


def start_time(pid: int) -> int | None:
    """Clock ticks after boot at which a process began: with its number, it names one process only. None if it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None
    return None if fields[0] in b"ZX" else int(fields[19])


def wait_gone(pid: int, started: int | None) -> None:
    deadline = time.monotonic() + KILL_SECONDS
    while started is not None and start_time(pid) == started and time.monotonic() < deadline:
        time.sleep(0.002)


def _strays(host_dir: HostDir) -> list[int]:
    """Processes of a host without namespaces, by the variable that only they have."""
    wanted = b"SAGEMAKER_BASE_DIR=" + os.fsencode(host_dir.ml) + b"\0"
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if folder.stat().st_uid == os.geteuid() and wanted in (folder / "environ").read_bytes():
                found.append(int(folder.name))
    return [pid for pid in found if pid != os.getpid()]


def end_strays(host_dir: HostDir) -> None:
    """SIGKILL to what is left of a host without namespaces, again and again, for it may fork meanwhile."""
    deadline = time.monotonic() + KILL_SECONDS
    while (strays := _strays(host_dir)) and time.monotonic() < deadline:
        for pid, started in [(pid, start_time(pid)) for pid in strays]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            wait_gone(pid, started)
