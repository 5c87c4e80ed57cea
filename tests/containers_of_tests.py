"""Images that tests make for themselves, and what the engine holds of a test's jobs."""

import io
import os
import re
import secrets
import tarfile
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from optml import image_build
from optml.backends.docker_leftovers import FOLDER_LABEL, LABEL
from optml.engine import connect
from optml.images import BASE_IMAGE_VARIABLE


def base_image() -> str:
    """What our own images are built on: Python, a shell, and no ENTRYPOINT."""
    return os.environ.get(BASE_IMAGE_VARIABLE) or image_build.recipes()["python"].base_image


class OwnImages:
    """Small images of the tests' own, each built once, and removed by `close`."""

    def __init__(self) -> None:
        self._prefix = f"optml-test-{secrets.token_hex(4)}"
        self._built: dict[Any, str] = {}

    def __call__(self, dockerfile: str, files: Mapping[str, str] | None = None, *, mode: int = 0o755) -> str:
        """Gives the tag of the base image with these lines and files, which the build context has with that mode."""
        key = (dockerfile, tuple((files or {}).items()), mode)
        if key not in self._built:
            tag = f"{self._prefix}/{len(self._built)}:v1"
            text = f"FROM {base_image()}\n{textwrap.dedent(dockerfile)}\n"
            client = connect()
            client.images.build(fileobj=context(text, files or {}, mode), custom_context=True, tag=tag, rm=True)
            self._built[key] = tag
        return self._built[key]

    def close(self) -> None:
        for tag in self._built.values():
            connect().images.remove(tag, force=True)
        self._built.clear()


def context(dockerfile: str, files: Mapping[str, str], mode: int) -> io.BytesIO:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for name, text in {"Dockerfile": dockerfile, **files}.items():
            content = textwrap.dedent(text).encode()
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(content), mode
            tar.addfile(info, io.BytesIO(content))
    packed.seek(0)
    return packed


def own_images() -> Iterator[OwnImages]:
    images = OwnImages()
    yield images
    images.close()


def held(folder: Path, client: Any = None) -> list[str]:
    """Containers, networks and volumes of jobs below a folder that the engine has now."""
    api = (client or connect()).api
    filters = {"label": LABEL}
    found = [*api.containers(all=True, filters=filters), *api.networks(filters=filters)]
    found += api.volumes(filters=filters).get("Volumes") or ()
    return [
        str(each.get("Names") or each["Name"])
        for each in found
        if (each.get("Labels") or {}).get(FOLDER_LABEL, "").startswith(f"{folder}/")
    ]


def mounted(folder: Path) -> list[str]:
    """Mounts of this machine that have to do with a folder."""
    shown = re.sub(r"[ \t\n\\]", lambda found: f"\\{ord(found[0]):03o}", str(folder))
    return [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if shown in line]
