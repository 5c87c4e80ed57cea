"""Real hosts of the process backend, without a job around them."""

import contextlib
import json
import os
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from optml.backends import Host, Launch
from optml.backends.process import ProcessBackend
from optml.jobdir import HostDir

# How long tests wait for what must come: long, for a loaded machine. Only a test that fails waits so long.
PATIENCE_SECONDS = 120.0


def eventually(condition: Callable[[], bool], *, seconds: float = PATIENCE_SECONDS) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def processes_of(folder: Path) -> list[tuple[int, bytes]]:
    """Processes that know the folder, by their arguments or their environment; a keeper has it in its arguments."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command = (process / "cmdline").read_bytes()
            if os.fsencode(folder) in command + (process / "environ").read_bytes() and int(process.name) != os.getpid():
                found.append((int(process.name), command[:200]))
    return found


def launch(tmp_path: Path, *argv: str, host: str = "algo-1", **more: Any) -> Launch:
    host_dir = HostDir(tmp_path / "attempts" / "1" / host)
    host_dir.ml.mkdir(parents=True, exist_ok=True)
    arguments: dict[str, Any] = {"working_dir": "/", "log_file": tmp_path / "logs" / f"{host}.log"} | more
    environment = {"PATH": os.environ["PATH"], "FOLDER": str(tmp_path)} | arguments.pop("environment", {})
    return Launch(host=host, argv=argv, environment=environment, host_dir=host_dir, **arguments)


def python(source: str, *arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-c", textwrap.dedent(source), *arguments)


def log_of(tmp_path: Path, host: str = "algo-1") -> str:
    return (tmp_path / "logs" / f"{host}.log").read_text()


def exit_code(host: Host) -> int:
    """Of a program that ends by itself; nothing is left when this returns."""
    try:
        assert eventually(lambda: host.poll() is not None), "it runs on"
        code = host.poll()
        assert code is not None
        return code
    finally:
        host.kill()


def start_ready(tmp_path: Path, source: str, **more: Any) -> Host:
    """Start a program and wait until it printed `ready`."""
    host = ProcessBackend().start(launch(tmp_path, *python(source), **more))
    if not eventually(lambda: "ready" in log_of(tmp_path, host.name)):
        host.kill()
        raise AssertionError(log_of(tmp_path, host.name))
    return host


def state(tmp_path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((tmp_path / "attempts" / "1" / "algo-1" / "state.json").read_text())
    return found
