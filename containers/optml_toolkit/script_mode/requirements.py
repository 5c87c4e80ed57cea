"""What the code needs: requirements.txt, or the package that it is, installed before it starts.

Where nothing outlives the job, into the container's own Python. Where a folder outlives the job, of which SageMaker tells
in SAGEMAKER_MANAGED_WARMPOOL_CACHE_DIRECTORY, into an environment of its own there, on top of this Python's packages and never
into them; the next job with the same requirements finds it and installs nothing.
"""

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import shutil
import site
import subprocess
import sys
import time
from pathlib import Path
from typing import TextIO

from optml_toolkit.container import UserError
from optml_toolkit.script_mode.user_code import Kind, UserCode

CACHE_DIRECTORY = "SAGEMAKER_MANAGED_WARMPOOL_CACHE_DIRECTORY"
REQUIREMENTS = "requirements.txt"
COMPLETE = "optml-complete"  # its presence says that the environment is whole
KEPT_LINES = 20
MAX_ENVIRONMENTS = 20  # in the cache; the least recently used go

log = logging.getLogger("script_mode")


def install(code: UserCode) -> str:
    """Install what the code needs. Gives the Python that has it. UserError with pip's own words if that fails."""
    targets = wanted(code)
    if not targets:
        if code.kind is Kind.SHELL and (code.folder / REQUIREMENTS).exists():
            log.warning("%s is not installed for a shell script, as in SageMaker: call pip in it", REQUIREMENTS)
        return sys.executable
    cache = os.environ.get(CACHE_DIRECTORY)
    if not cache:
        run_pip(sys.executable, targets, code.folder)
        return sys.executable
    return cached_environment(Path(cache) / "environments", targets, code.folder)


def wanted(code: UserCode) -> list[str]:
    """pip's arguments; none if there is nothing to install."""
    listed = ["-r", REQUIREMENTS] if has_requirements(code.folder / REQUIREMENTS) else []
    if code.kind is Kind.MODULE:
        return [".", *listed]
    return listed if code.kind is Kind.SCRIPT else []


def has_requirements(file: Path) -> bool:
    """Whether a requirements file is there and holds more than comments."""
    try:
        lines = file.read_text(encoding="utf-8-sig", errors="replace").splitlines()
    except FileNotFoundError:
        return False
    return any(line.strip() and not line.lstrip().startswith("#") for line in lines)


def cached_environment(cache: Path, targets: list[str], folder: Path) -> str:
    """The Python of the environment for just these requirements; made if it is not there. Several hosts may ask at once."""
    environment = cache / environment_key(targets, folder)
    python = str(environment / "bin" / "python")
    cache.mkdir(parents=True, exist_ok=True)
    lock = lock_of(environment).open("w")
    _in_use.append(lock)  # shared until this process ends: nobody removes what runs
    fcntl.flock(lock, fcntl.LOCK_SH)
    if not (environment / COMPLETE).exists():
        fcntl.flock(lock, fcntl.LOCK_EX)
    if (environment / COMPLETE).exists():  # now, or since another host has installed the same
        os.utime(environment / COMPLETE)
        log.info("Requirements: in place already (%s)", environment)
    else:
        shutil.rmtree(environment, ignore_errors=True)  # of an installation that was broken off
        try:
            make_environment(environment)
            run_pip(python, targets, folder)
        except BaseException:
            shutil.rmtree(environment, ignore_errors=True)
            raise
        (environment / COMPLETE).touch()
        forget_old(cache)
    fcntl.flock(lock, fcntl.LOCK_SH)
    return python


_in_use: list[TextIO] = []


def lock_of(environment: Path) -> Path:
    return environment.with_name(f"{environment.name}.lock")


def environment_key(targets: list[str], folder: Path) -> str:
    """Of the Python, its packages, and all that pip would read: the requirements, files that they name, a package's source."""
    digest = hashlib.sha256()
    packages = sorted(
        entry.name
        for place in package_folders()
        if Path(place).is_dir()
        for entry in Path(place).iterdir()
        if entry.suffix == ".dist-info"
    )
    indexes = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
    digest.update(json.dumps([sys.version, sys.executable, packages, sorted(indexes.items()), targets]).encode())
    sources = [folder] if "." in targets else named_files(folder, folder / REQUIREMENTS, seen=set())
    for source in sources:
        for file in sorted(source.rglob("*")) if source.is_dir() else [source]:
            if file.is_file() and "__pycache__" not in file.parts:
                digest.update(str(file.relative_to(folder) if file.is_relative_to(folder) else file).encode() + b"\0")
                digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:32]


def named_files(folder: Path, file: Path, seen: set[Path]) -> list[Path]:
    """A requirements file, and whatever of this machine its lines name: `-r more.txt`, `./wheels/x.whl`, `-e lib`."""
    if file in seen or not file.exists():
        return []
    seen.add(file)
    found = [file]
    if file.is_dir() or file.suffix != ".txt":
        return found
    for line in file.read_text(encoding="utf-8-sig", errors="replace").splitlines():
        for word in line.partition(" #")[0].replace("=", " ").split():
            if word.startswith("-r") and len(word) > 2:
                word = word[2:]
            name = word.removeprefix("file://").partition("[")[0]
            for base in (file.parent, folder):
                candidate = base / name
                if name not in (".", "") and not name.startswith("-") and candidate.exists():
                    found += named_files(folder, candidate, seen)
                    break
    return found


def make_environment(environment: Path) -> None:
    """A virtual environment that sees all packages of this Python, itself perhaps a virtual environment, behind its own."""
    import venv

    # pip is among this Python's packages as a rule; bringing a copy takes seconds.
    has_pip = any((Path(place) / "pip").is_dir() for place in package_folders())
    venv.EnvBuilder(symlinks=True, with_pip=not has_pip).create(environment)
    (own,) = (environment / "lib").glob("python*/site-packages")
    # Through `site`, so that .pth files of editable installs count too.
    lines = [f"import site; site.addsitedir({place!r})" for place in package_folders()]
    (own / "of-this-python.pth").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def package_folders() -> list[str]:
    """Where this Python keeps its packages, the user's own folder included if it is in use."""
    user = [site.getusersitepackages()] if site.ENABLE_USER_SITE else []
    return [*site.getsitepackages(), *user]


def run_pip(python: str, targets: list[str], folder: Path) -> None:
    """pip, its output in the log; UserError beginning with what a person needs of it."""
    log.info("Requirements: pip install %s", " ".join(targets))
    began = time.monotonic()
    # -P and without PYTHONPATH: a module of the user's that is named like one of Python's would break pip.
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    command = [python, "-P", "-m", "pip", "install", "--disable-pip-version-check", "--no-input", "--quiet", *targets]
    said: list[str] = []
    with subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as pip:
        try:
            assert pip.stdout is not None
            for line in pip.stdout:
                print(line, end="", flush=True)
                said = [*said[-KEPT_LINES:], line.rstrip()]
        except BaseException:
            pip.kill()
            raise
    if pip.returncode != 0:
        errors = [line for line in said if line.startswith("ERROR:")] or said[-1:] or [f"exit code {pip.returncode}"]
        listed = "the code's package" if "." in targets else REQUIREMENTS
        raise UserError(
            f"{listed} cannot be installed: {best_of(errors).removeprefix('ERROR: ')}\n\n"
            + "\n".join(said[-KEPT_LINES:])
        )
    log.info("Requirements: installed (%.1f s)", time.monotonic() - began)


def best_of(errors: list[str]) -> str:
    """`No matching distribution found for x==9` says it in fewer words than the list of all versions."""
    return next((line for line in errors if "No matching distribution" in line), errors[0])


def forget_old(cache: Path) -> None:
    """Keep the cache to a size: the environments not used for the longest go, unless a job has them in use."""
    complete = sorted(cache.glob(f"*/{COMPLETE}"), key=lambda file: file.stat().st_mtime, reverse=True)
    for file in complete[MAX_ENVIRONMENTS:]:
        with contextlib.suppress(OSError), lock_of(file.parent).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            file.unlink()
            shutil.rmtree(file.parent)
