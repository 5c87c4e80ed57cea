"""What this machine allows the process backend: namespaces, views, names, networks; tried once and remembered."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from optml.jobdir import cache_dir

KEEPER = Path(__file__).with_name("keeper.py")
PYTHON = (sys.executable, "-I", "-S")  # nothing of the caller's site or environment: a keeper starts in some 10 ms
START_SECONDS = 30.0
NO_NAMESPACES = "OPTML_NAMESPACES"  # "off": behave as on a machine without
_remembered: dict[str, dict[str, Any]] = {}
_remembering = threading.Lock()


def found() -> dict[str, Any]:
    """What this machine allows: tried once per process, or, while all of it works, once per boot and user."""
    if os.environ.get(NO_NAMESPACES) == "off" or sys.platform != "linux":
        reason = f"{NO_NAMESPACES}=off" if sys.platform == "linux" else f"{sys.platform} has no namespaces"
        return {"level": "none", "views": False, "host_names": False, "network": False, "reasons": [reason]}
    key = str(cache_dir())
    with _remembering:
        if key not in _remembered:
            _remembered[key] = _read_or_probe()
        return _remembered[key]


def _read_or_probe() -> dict[str, Any]:
    cache = cache_dir()
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    disk = (cache.parent if cache.parent.exists() else Path("/")).stat().st_dev
    # A container has the boot of its machine, and may have its folders too, but namespaces of its own.
    spaces = [str(Path("/proc/self/ns", name).readlink()) for name in ("mnt", "user")]
    identity = f"{boot}-{os.geteuid()}-{disk}-{KEEPER.stat().st_mtime_ns}-{'-'.join(spaces)}"
    file = cache / "namespaces.json"
    with contextlib.suppress(OSError, ValueError, KeyError):
        remembered: dict[str, Any] = json.loads(file.read_bytes())
        if remembered["identity"] == identity:
            return remembered
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix="probe-", ignore_cleanup_errors=True) as folder:
            asked = subprocess.run(
                [*PYTHON, str(KEEPER), "--probe", folder],
                capture_output=True,
                text=True,
                timeout=START_SECONDS,
                check=False,
                env={},
            )
            for parent, names, _files in os.walk(folder):
                for name in names:
                    Path(parent, name).chmod(0o700)  # an overlay's work folder has no permissions
        found: dict[str, Any] = {**json.loads(asked.stdout), "identity": identity}
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        return {
            "level": "none",
            "views": False,
            "host_names": False,
            "network": False,
            "reasons": [f"the trial failed: {error}"],
        }
    # What is missing is tried again by the next process, for its owner may have cured it meanwhile.
    if found["level"] != "none" and found["views"] and found["network"]:
        beside = file.with_name(f"{file.name}.{os.getpid()}.tmp")
        with contextlib.suppress(OSError):
            beside.write_text(json.dumps(found))
            beside.replace(file)
    return found


def forget() -> None:
    """What was found does not hold any more: the next who asks tries again."""
    with _remembering:
        _remembered.clear()
    with contextlib.suppress(OSError):
        (cache_dir() / "namespaces.json").unlink()


def names_resolve() -> bool:
    """Without namespaces, two hosts can talk if somebody put their names into /etc/hosts."""
    import socket

    try:
        return socket.gethostbyname("algo-1") == "127.0.0.2" and socket.gethostbyname("algo-2") == "127.0.0.3"
    except OSError:
        return False


def explanation(found: Mapping[str, Any]) -> str:
    if found["level"] != "none":
        parts = []
        if not found["views"]:
            parts.append(f"File mode copies the data: {found.get('view_error')}")
        if not found["network"]:
            parts.append(f"no network isolation: {found.get('network_error')}")
        return "; ".join(parts)
    text = f"no namespaces ({'; '.join(found['reasons'])}), so /opt/ml lies elsewhere and File mode copies. "
    settings = {
        "kernel/apparmor_restrict_unprivileged_userns": ("1", "sysctl kernel.apparmor_restrict_unprivileged_userns=0"),
        "kernel/unprivileged_userns_clone": ("0", "sysctl kernel.unprivileged_userns_clone=1"),
        "user/max_user_namespaces": ("0", "sysctl user.max_user_namespaces=10000"),
    }
    for name, (bad, cure) in settings.items():
        with contextlib.suppress(OSError):
            if Path("/proc/sys", name).read_text().strip() == bad:
                text += f"As root, `{cure}` allows them. "
    return text + "More than one host needs lines in /etc/hosts: 127.0.0.2 algo-1, 127.0.0.3 algo-2, ..."
