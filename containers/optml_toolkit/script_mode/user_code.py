"""The user's code: from sagemaker_submit_directory into /opt/ml/code, and what kind of program sagemaker_program is there."""

import contextlib
import logging
import os
import shutil
import stat
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path, PurePosixPath
from typing import Any

from optml_toolkit.container import UserError
from optml_toolkit.script_mode.job import PROGRAM, SUBMIT_DIRECTORY, ScriptJob

log = logging.getLogger("script_mode")


class Kind(Enum):
    """How a program is run. AWS's toolkit: a name in .sh, then a setup.py beside it, then a name in .py, then anything else."""

    SCRIPT = "python script"
    MODULE = "python package"  # installed, then run with -m
    SHELL = "shell script"
    COMMAND = "command"


@dataclass(frozen=True, kw_only=True)
class UserCode:
    """Code in place. `program` is relative to `folder`; of a package it is the module's name."""

    folder: Path
    program: str
    kind: Kind
    shadowing: tuple[str, ...]  # files and folders that hide a module of Python's own

    @property
    def is_python(self) -> bool:
        return self.kind in (Kind.SCRIPT, Kind.MODULE)


def prepare_code(job: ScriptJob) -> UserCode:
    """Fetch the code unless it is there already, and find the program in it. UserError says what is wrong with either."""
    folder = job.container.code_dir
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        log.info("Code: %s (in place already)", folder)  # the image's own, or mounted: it wins, as in AWS's toolkit
    elif job.submit_directory is not None:
        fetch(job, job.submit_directory, folder)
        log.info("Code: %s from %s", folder, job.submit_directory)
    else:
        raise UserError(
            f"there is no code: HyperParameters.{SUBMIT_DIRECTORY} is missing, and {folder} is empty; "
            "say where the code is, or put it there"
        )
    return find_program(folder, job.program)


def fetch(job: ScriptJob, source: str, folder: Path) -> None:
    """From an s3:// tarball, a local tarball, a folder or a single file."""
    if source.startswith("s3://"):
        with temporary_folder(folder) as scratch:
            archive = scratch / "sourcedir.tar.gz"
            download(source, archive)
            extract(archive, folder, name=source)
        return
    if "://" in source and not source.startswith("file://"):
        raise UserError(f"HyperParameters.{SUBMIT_DIRECTORY} {source!r} must be an s3:// or file:// URI, or a path")
    path = job.container.inside(source.removeprefix("file://"))
    if not path.is_absolute():
        raise UserError(
            f"HyperParameters.{SUBMIT_DIRECTORY} {source!r} is relative, and nobody knows to what: give a whole path"
        )
    if path.is_dir():
        shutil.copytree(path, folder, symlinks=True, dirs_exist_ok=True, ignore=only_plain_files)
    elif path.is_file():
        import tarfile

        if tarfile.is_tarfile(path):
            extract(path, folder, name=source)
        else:
            shutil.copy2(path, folder)
    else:
        raise UserError(
            f"HyperParameters.{SUBMIT_DIRECTORY} {source!r} cannot be found: {job.current_host} has no file or folder {path}"
        )


def only_plain_files(folder: str, names: list[str]) -> list[str]:
    """Left out: sockets, FIFOs and devices, which copying would wait for."""
    modes = {name: os.lstat(os.path.join(folder, name)).st_mode for name in names}  # noqa: PTH118
    return [
        name for name, mode in modes.items() if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISLNK(mode))
    ]


@contextlib.contextmanager
def temporary_folder(beside: Path) -> Iterator[Path]:
    import tempfile

    with tempfile.TemporaryDirectory(dir=beside.parent, prefix=".fetching-") as name:
        yield Path(name)


def download(uri: str, target: Path) -> None:
    """From S3, with boto3, which is looked for only now: code that lies on this machine needs none."""
    import importlib

    bucket, _, key = uri.removeprefix("s3://").partition("/")
    if not bucket or not key:
        raise UserError(f"HyperParameters.{SUBMIT_DIRECTORY} {uri!r} must be s3://bucket/key of a tar.gz file")
    try:
        boto3: Any = importlib.import_module("boto3")
    except ImportError:
        raise UserError(
            f"HyperParameters.{SUBMIT_DIRECTORY} {uri} is in S3, and this container's Python ({sys.executable}) has no boto3 "
            "to fetch it: pip install boto3 there, or give the code as a path or in a channel"
        ) from None
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("S3_ENDPOINT_URL")
    region = os.environ.get("AWS_REGION") or os.environ.get("SAGEMAKER_REGION")
    try:
        boto3.client("s3", region_name=region, endpoint_url=endpoint).download_file(bucket, key, str(target))
    except Exception as error:
        raise UserError(
            f"HyperParameters.{SUBMIT_DIRECTORY} {uri} cannot be fetched: {type(error).__name__}: {error}"
        ) from error


def extract(archive: Path, folder: Path, *, name: str) -> None:
    """Unpack a tar file that may come from anywhere: nothing lands outside the folder, no device, no foreign owner.

    AWS's toolkit bends such names until they fit, or leaves them out; here the archive is refused, for either would
    run something else than what was packed.
    """
    import tarfile

    from optml_toolkit.script_mode.archive import UnsafeEntry, unpack

    try:
        unpack(archive, folder)
    except UnsafeEntry as error:
        empty(folder)
        raise UserError(
            f"{name}: the entry {error.name!r} cannot be unpacked safely ({error.reason}): pack it with "
            "relative names, without links that lead outside: tar -czf sourcedir.tar.gz -C src ."
        ) from None
    except (tarfile.TarError, EOFError, OSError) as error:
        empty(folder)
        raise UserError(f"{name} cannot be unpacked: {error}; it must be a tar file, plain or gzip") from None
    except Exception as error:  # noqa: BLE001  (zlib.error and whatever else a damaged file brings about)
        empty(folder)
        raise UserError(f"{name} is damaged: {type(error).__name__}: {error}") from None


def empty(folder: Path) -> None:
    """Half of an archive is not code: a second look must not take it for what somebody put there."""
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def find_program(folder: Path, program: str) -> UserCode:
    parts = PurePosixPath(program).parts
    if program.startswith(("/", "-")) or ".." in parts or "\0" in program:
        raise UserError(
            f"HyperParameters.{PROGRAM} {program!r} must be a path inside the code's folder, such as train.py or bin/train.sh"
        )
    shadowing = tuple(sorted(find_shadowing(folder)))
    if program.endswith(".sh"):
        kind = Kind.SHELL
    elif (folder / "setup.py").is_file():
        return UserCode(folder=folder, program=module_name(program), kind=Kind.MODULE, shadowing=shadowing)
    elif program.endswith(".py"):
        kind = Kind.SCRIPT
    elif (folder / program).is_file():
        kind = Kind.COMMAND
    elif (folder / "pyproject.toml").is_file():
        log.warning("SageMaker's own toolkit takes a folder with pyproject.toml, but no setup.py, for no package")
        return UserCode(folder=folder, program=module_name(program), kind=Kind.MODULE, shadowing=shadowing)
    else:
        kind = Kind.COMMAND
    if not (folder / program).is_file():
        raise UserError(no_program(folder, program))
    if not (folder / program).resolve().is_relative_to(folder.resolve()):
        raise UserError(f"HyperParameters.{PROGRAM} {program!r} is a link that leads out of the code's folder")
    return UserCode(folder=folder, program=program, kind=kind, shadowing=shadowing)


def module_name(program: str) -> str:
    return program.removesuffix(".py").replace("/", ".")


def no_program(folder: Path, program: str) -> str:
    import difflib

    names = sorted(f"{entry.name}/" if entry.is_dir() else entry.name for entry in folder.iterdir())
    deeper = [str(path.relative_to(folder)) for path in folder.glob(f"*/{PurePosixPath(program).name}")]
    near = deeper or difflib.get_close_matches(program, names, n=1)
    shown = ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
    return f"HyperParameters.{PROGRAM} {program!r} is not in the code, which has: {shown}" + (
        f"; did you mean {near[0]!r}?" if near else ""
    )


def find_shadowing(folder: Path) -> Iterator[str]:
    """`random.py` in the code's folder is what `import random` finds, for every library too."""
    for entry in folder.iterdir():
        name = entry.name.removesuffix(".py")
        if name in sys.stdlib_module_names - {"test"} and (  # nobody misses Python's own tests
            (entry.suffix == ".py" and entry.is_file()) or (entry / "__init__.py").is_file()
        ):
            yield entry.name
