"""In containers of our own images: a folder that outlives the job, so that a script's requirements are installed once.

Containers cannot reach the caller's folders, and one that could write to what others run could do to them what it likes. So every
source folder (or tarball) of code has a folder of its own: what a job leaves there is found by later jobs of the same code alone.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TextIO

from optml.backends import Launch, Mount
from optml.images import Image
from optml.jobdir import cache_dir
from optml.script_mode import is_script_mode, local_source
from optml.spec import OPT_ML, TrainingJob

FOLDER = f"{OPT_ML}/cache"  # as in SageMaker's warm pools, and its name there:
VARIABLE = "SAGEMAKER_MANAGED_WARMPOOL_CACHE_DIRECTORY"
KEPT_FOLDERS = 10  # the least recently used go
NEEDS = ("requirements.txt", "setup.py")  # of a folder that may have something to install


def folder_for(job: TrainingJob, image: Image) -> Path | None:
    """Where the requirements of a job's code are kept on this machine; None if it has none, or must not share anything."""
    if not image.ours or not image.script_mode or job.entrypoint or not is_script_mode(job.hyperparameters):
        return None
    source = local_source(job.hyperparameters)
    if source is None or job.network_isolation or VARIABLE in job.environment:
        return None
    if source.is_dir():
        if not any((source / name).is_file() for name in NEEDS):
            return None
    elif source.suffix not in (".gz", ".tgz"):  # a script alone
        return None
    identity = hashlib.sha256(json.dumps([os.path.realpath(source), image.reference]).encode()).hexdigest()
    return cache_dir() / "containers" / identity[:32]


def shown(launch: Launch, folder: Path) -> Launch:
    """The host sees the folder, and is told of it."""
    (launch.host_dir.ml / "cache").mkdir(exist_ok=True)  # else the engine makes it, as root
    return replace(
        launch,
        environment={**launch.environment, VARIABLE: FOLDER},
        mounts=(*launch.mounts, Mount(source=folder, target=FOLDER)),
    )


def hold(folder: Path) -> TextIO:
    """Make the folder, and keep it from being removed for as long as what this gives is open. Others may have to go for it."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    held = lock_of(folder).open("w")
    fcntl.flock(held, fcntl.LOCK_SH)
    folder.mkdir(mode=0o700, exist_ok=True)  # another job may have removed it a moment ago
    os.utime(folder)
    for old in sorted(folders(folder.parent), key=lambda each: each.stat().st_mtime, reverse=True)[KEPT_FOLDERS:]:
        with contextlib.suppress(OSError), lock_of(old).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(old)
    return held


def folders(parent: Path) -> Iterator[Path]:
    return (each for each in parent.iterdir() if each.is_dir())


def lock_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.lock")
