"""Our code in a base image, without building one: the toolkit and the algorithms from this installation, mounted.

For who works on them. The container, its network, limits and signals are real; the image's Dockerfile and requirements are
not tried. So such a job calls itself `xgboost with mounted code`, and never optml/xgboost.
"""

import os
import sys
import sysconfig
from dataclasses import replace
from pathlib import Path

from optml.backends import Mount
from optml.images import BASE_IMAGE_VARIABLE, Image, package_folder

PLACE = "/opt/optml-mounted"


def with_mounted_code(image: Image) -> Image:
    """The same image as far as its job can tell, made of a plain Python of this one's version."""
    base = os.environ.get(BASE_IMAGE_VARIABLE) or f"python:{sys.version_info[0]}.{sys.version_info[1]}-slim"
    return replace(
        image,
        name=f"{image.name} with mounted code",
        reference=base,
        program=tuple(word.replace("{python}", "python") for word in image.program),
    )


def code_mounts() -> tuple[Mount, ...]:
    """Our two packages, and the libraries of this Python."""
    packages = [package_folder("optml_toolkit"), package_folder("optml_algorithms")]
    libraries = dict.fromkeys(Path(sysconfig.get_path(name)) for name in ("purelib", "platlib"))
    return (
        *(Mount(source=folder, target=f"{PLACE}/code/{folder.name}", read_only=True) for folder in packages),
        *(
            Mount(source=folder, target=f"{PLACE}/libraries-{number}", read_only=True)
            for number, folder in enumerate(libraries, start=1)
        ),
    )


def code_environment(mounts: tuple[Mount, ...]) -> dict[str, str]:
    libraries = [mount.target for mount in mounts if mount.target.startswith(f"{PLACE}/libraries-")]
    return {
        "PYTHONPATH": ":".join([f"{PLACE}/code", *libraries]),
        "PYTHONDONTWRITEBYTECODE": "1",
        "HOME": "/tmp",  # of a user that the base image does not know
    }
