"""What optml has in a container engine, by its labels: removed when a job ends, or after a supervisor that has gone."""

import atexit
import contextlib
import json
import os
import platform
import re
import secrets
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optml.backends.docker_errors import not_there
from optml.backends.process_trees import start_time
from optml.jobdir import HostDir

if TYPE_CHECKING:
    import docker

REMOVE_SECONDS = 10.0  # a network whose last container has just gone may still be in use for a moment
SECOND_LOOK_SECONDS = 3.0
LABEL = "optml"
HOST_LABEL, FOLDER_LABEL, MACHINE_LABEL, SUPERVISOR_LABEL = (
    f"{LABEL}.{name}" for name in ("host", "folder", "machine", "supervisor")
)

# Removing. None of these fails: what an engine that is gone still has is removed by the next `tidy`.


def remove_container(client: "docker.DockerClient", container: str) -> None:
    with not_there():
        client.api.remove_container(container, force=True, v=True)


def remove_volume(client: "docker.DockerClient", name: str) -> None:
    with not_there():
        client.api.remove_volume(name, force=True)


def remove_network(client: "docker.DockerClient", network: str) -> None:
    import docker

    deadline = time.monotonic() + REMOVE_SECONDS
    with not_there():
        while True:
            try:
                client.api.remove_network(network)
            except docker.errors.NotFound:
                return
            except docker.errors.APIError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
            else:
                return


# What a supervisor that is gone has left.


def new_name(host_dir: HostDir, *more: str) -> str:
    """A name that nothing in the engine has, by which a person knows the job."""
    job = re.sub(r"[^a-zA-Z0-9_.-]", "-", host_dir.root.parents[2].name)
    return "-".join(("optml", job, *more, secrets.token_hex(3)))


def labels(folder: Path) -> dict[str, str]:
    return {
        LABEL: "job",
        FOLDER_LABEL: str(folder),
        MACHINE_LABEL: machine_label(),
        SUPERVISOR_LABEL: supervisor_label(os.getpid()),
    }


def machine_label() -> str:
    """The machine and, on Linux, whose process numbers count: from within a container, those outside all look dead."""
    numbers = ""
    with contextlib.suppress(OSError):
        numbers = os.readlink("/proc/self/ns/pid")  # noqa: PTH115  (no path)
    return f"{platform.node()} {numbers}".strip()


def supervisor_label(pid: int) -> str:
    """A process's number and the clock ticks when it began, which together name one process of this boot; and the boot."""
    boot = ""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{pid} {start_time(pid)} {boot}"


def _is_alive(label: str) -> bool:
    pid = label.partition(" ")[0]
    if not pid.isdigit():
        return True  # not one of ours to judge
    if start_time(int(pid)) is None:  # macOS; or another user's process, which /proc may hide (hidepid)
        try:
            os.kill(int(pid), 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            return True
        return not Path("/proc/self").exists()
    return supervisor_label(int(pid)) == label


def tidy(client: "docker.DockerClient", *, supervisor: str | None = None) -> None:
    """Remove what a supervisor of this machine that is gone has left in the engine; every such one if none is named."""
    if supervisor is not None:
        label, value = SUPERVISOR_LABEL, supervisor
    else:
        label, value = MACHINE_LABEL, machine_label()

    def is_left(labels: Mapping[str, str]) -> bool:
        return not _is_alive(labels.get(SUPERVISOR_LABEL, ""))

    with not_there():
        for container in labelled(client, label, value):
            if is_left(container.get("Labels") or {}):
                remove_container(client, container["Id"])
        filters = {"label": f"{label}={value}"}
        for volume in client.api.volumes(filters=filters).get("Volumes") or ():
            if is_left(volume.get("Labels") or {}):
                remove_volume(client, volume["Name"])
        for network in client.api.networks(filters=filters):
            if is_left(network.get("Labels") or {}):
                remove_network(client, network["Id"])


def tidy_after(supervisor: str) -> None:
    """In the watcher, when its supervisor has ended. What that one asked for last may be made only now: hence twice."""
    from optml.engine import connect

    tidy(connect(), supervisor=supervisor)
    time.sleep(SECOND_LOOK_SECONDS)
    tidy(connect(), supervisor=supervisor)


def labelled(client: "docker.DockerClient", label: str, value: str) -> list[Mapping[str, Any]]:
    found: list[Mapping[str, Any]] = client.api.containers(all=True, filters={"label": f"{label}={value}"})
    return found


def labelled_volumes(client: "docker.DockerClient", label: str, value: str) -> list[str]:
    found = client.api.volumes(filters={"label": f"{label}={value}"}).get("Volumes") or ()
    return [volume["Name"] for volume in found]


def labelled_networks(client: "docker.DockerClient", label: str, value: str) -> list[str]:
    return [network["Id"] for network in client.api.networks(filters={"label": f"{label}={value}"})]


_watcher: "subprocess.Popen[bytes] | None" = None
_watched: int | None = None
_held: set[str] = set()  # containers of this process that may be in the engine


def watch_over_this_process() -> None:
    """Start the process that outlives this one by a moment: at the end of its input it ends what this one leaves running.

    A process's own children would end with it; containers belong to the engine, and would run on.
    """
    global _watcher, _watched
    if _watched == os.getpid():
        return
    program = (
        "import sys, json; settings = json.loads(sys.argv[1]); "
        "sys.stdin.buffer.read() and sys.exit(); sys.path[:] = settings['path']; "
        "from optml.backends.docker_leftovers import tidy_after; tidy_after(settings['supervisor'])"
    )
    settings = {
        "supervisor": supervisor_label(os.getpid()),
        "path": [str(Path(entry).absolute()) for entry in sys.path],
    }
    _watcher = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", program, json.dumps(settings)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        cwd="/",
    )
    _watched = os.getpid()
    atexit.register(_dismiss_watcher)


def hold(container: str) -> None:
    _held.add(container)


def let_go(container: str) -> None:
    """It is not in the engine any more."""
    _held.discard(container)


def _dismiss_watcher() -> None:
    """The usual end: a word tells the watcher that there is nothing to do, so it need not look."""
    if _watched == os.getpid() and not _held and _watcher is not None and _watcher.stdin is not None:
        with contextlib.suppress(OSError):
            _watcher.stdin.write(b".")
            _watcher.stdin.flush()
