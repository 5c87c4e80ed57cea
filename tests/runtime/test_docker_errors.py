"""What is made of the engine's errors, in its own words; without an engine."""

import os
from pathlib import Path
from typing import Any

import pytest
from tests.hosts import launch

from optml.backends.docker_errors import explained
from optml.backends.docker_owner import hand_over
from optml.errors import OptmlError, PlatformError, ResourceLimitExceeded, StartError
from optml.jobdir import HostDir

docker = pytest.importorskip("docker")

OCI = "failed to create task for container: failed to create shim task: OCI runtime create failed: runc create failed: "


@pytest.mark.parametrize(
    ("said", "kind", "remedy"),
    [
        ('could not select device driver "" with capabilities: [[gpu]]', ResourceLimitExceeded, "Container Toolkit"),
        ('could not select device driver "nvidia" with capabilities: [[gpu]]', ResourceLimitExceeded, "--allow-cpu"),
        ("unknown or invalid runtime name: nvidia", ResourceLimitExceeded, "Container Toolkit"),
        (
            f"{OCI}error running hook #0: exit status 1, stderr: nvidia-container-cli: initialization error: nvml error",
            ResourceLimitExceeded,
            "Container Toolkit",
        ),
        (
            "CDI device injection failed: unresolvable CDI devices nvidia.com/gpu=0",
            ResourceLimitExceeded,
            "Container Toolkit",
        ),
        ("unable to find user me: no matching entries in passwd file", StartError, "(USER 1000:1000)"),
        ("linux spec user: unable to find group us: no matching entries in group file", StartError, "RUN useradd"),
        # Images and programs have such names, too.
        (
            f'{OCI}exec: "/opt/nvidia/run": stat /opt/nvidia/run: no such file or directory: unknown',
            StartError,
            "has no program to run",
        ),
        (
            f'{OCI}exec: "/opt/nvidia/nvidia_entrypoint.sh": permission denied: unknown',
            StartError,
            "chmod +x it in the image nvidia/cuda:12",
        ),
        (
            "network nvidia-jobs could not be found among the device drivers of a bridge",
            PlatformError,
            "network nvidia-jobs",
        ),
    ],
)
def test_what_the_engine_says_is_told_with_what_to_do(
    tmp_path: Path, said: str, kind: type[OptmlError], remedy: str
) -> None:
    given = launch(tmp_path, "train", image="nvidia/cuda:12")
    found = explained(given, docker.errors.APIError("500 Server Error", explanation=said))
    assert type(found) is kind
    assert remedy in str(found)


class BrokenOff:
    """Stands in for the client of an engine whose archives are none."""

    def __init__(self) -> None:
        self.api = self

    def info(self) -> dict[str, Any]:
        return {}

    def create_container(self, *_: Any, **__: Any) -> dict[str, str]:
        return {"Id": "helper"}

    def get_archive(self, *_: Any) -> Any:
        return [b"half of a header"], {}

    def create_host_config(self, **_: Any) -> None: ...

    def remove_container(self, *_: Any, **__: Any) -> None: ...


def test_an_archive_that_breaks_off_ends_no_supervisor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host_dir = HostDir(tmp_path)
    (tmp_path / "theirs").write_text("x")
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    monkeypatch.setattr(os, "access", lambda *_, **__: False)
    engine: Any = BrokenOff()
    hand_over(engine, host_dir, "image")
    assert (tmp_path / "theirs").read_text() == "x"
