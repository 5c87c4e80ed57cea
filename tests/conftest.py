"""Fixtures that every suite shares. Each test has its own $OPTML_HOME; nothing touches the real one."""

import functools
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest
from tests.shared_folders import SharedFolder

from optml import engine, image_build
from optml.console import Console
from optml.errors import UserError
from optml.images import BASE_IMAGE_VARIABLE, OURS

BUILT_BY_WHO_WANTS_IT = ("tensorflow",)  # minutes, and two gigabytes: its tests run where it has been built

pytest_plugins = ["tests.s3"]


@pytest.fixture(autouse=True)
def optml_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = tmp_path / "optml-home"
    monkeypatch.setenv("OPTML_HOME", str(home))
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "no-aws-config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "no-aws-credentials"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    return home


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real filesystem with 600 kB of room."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small filesystem takes root")
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(disk)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"this root may not mount: {done.stderr.strip()}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@functools.cache
def why_no_engine() -> str | None:
    """None if a container engine answers."""
    try:
        engine.connect()
    except UserError as error:
        return str(error)
    return None


@functools.cache
def why_no_base_image(name: str) -> str | None:
    """None if the image that ours are built on is there, or could be pulled."""
    base = os.environ.get(BASE_IMAGE_VARIABLE) or image_build.recipes()[name].base_image
    try:
        image_build.have_base_image(engine.connect(), base, Console())
    except UserError as error:
        return str(error)
    return None


def lacking(reason: str) -> NoReturn:
    """What the docker tests need is not there: they are skipped, unless $OPTML_REQUIRE_DOCKER says that they must run."""
    if os.environ.get("OPTML_REQUIRE_DOCKER", "0") not in ("", "0"):
        pytest.fail(f"OPTML_REQUIRE_DOCKER is set, and {reason}", pytrace=False)
    pytest.skip(reason)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("docker") and (reason := why_no_engine()):
        lacking(reason)


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], SharedFolder]:
    """Gives a folder by its name: what is dear to make is made once, by the worker that comes first."""
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent
    return lambda name: SharedFolder(base / name)


@pytest.fixture(scope="session")
def docker_image(shared_folder: Callable[[str], SharedFolder]) -> Callable[[str], str]:
    """Gives the tag of one of our images by its name, built from this checkout. Workers wait for each other; the engine's cache
    makes every build after the first one short."""

    @functools.cache
    def build(name: str) -> str:
        with shared_folder(f"docker-image-{name}"):
            if reason := why_no_base_image(name):
                lacking(reason)
            if name in BUILT_BY_WHO_WANTS_IT and not image_build.built_images().keys() & {f"{OURS}{name}:latest"}:
                pytest.skip(f"{OURS}{name} is not built here: optml images build {name}")
            try:
                return image_build.build(name, console=Console())
            except UserError as error:
                if "pip finds no torch" in str(error):  # the CPU build is in an index of its own (docs/images.md)
                    lacking(str(error))
                raise

    return build
