"""A model, wherever it lies -> a folder of this machine, for as long as a program of the algorithms looks at it.

The programs are those of optml_algorithms, which are started and never imported: they need libraries that optml does not.
"""

import contextlib
import subprocess
import sys
import tarfile
import tempfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from optml import archives, jobs, objects, transfers
from optml.errors import UserError
from optml.loading import expanded
from optml.record import is_name

ARCHIVE_ENDINGS = (".tar.gz", ".tgz", ".tar")


def run_with_model(
    program: str, model: str, data: str, *, options: Mapping[str, Any], flags: Sequence[str] = ()
) -> int:
    """Start optml_algorithms.<program> on a model and data, each brought here if need be; gives its exit status."""
    with model_folder(model) as model_dir, local_copy(data) as data_path:
        options = {**options, "called": model_title(model)}
        if program == "evaluation":
            options |= {"model": model_dir, "data": data_path, "subject": f"{model} on {data}"}
            return run_algorithm_program(program, options=options, flags=flags)
        return run_algorithm_program(program, str(model_dir), str(data_path), options=options, flags=flags)


def run_algorithm_program(program: str, *arguments: str, options: Mapping[str, Any], flags: Sequence[str] = ()) -> int:
    """`options`: by the program's own names, with underscores; None for one that was not given."""
    given = [f"{_flag(name)}={value}" for name, value in options.items() if value is not None]  # a value may be "-"
    argv = [sys.executable, "-P", "-m", f"optml_algorithms.{program}", *flags, *given]
    if arguments:
        argv += ["--", *arguments]
    code = subprocess.run(argv, check=False).returncode
    return code if code >= 0 else 128 - code  # ended by a signal: as a shell tells it


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


@contextlib.contextmanager
def model_folder(model: str) -> Iterator[Path]:
    """The unpacked model of a job's name, a path, or a URI. UserError if there is none."""
    with local_copy(model_uri(model)) as path:
        if path.is_dir():
            inside = path / "model.tar.gz"
            if not inside.is_file():
                yield path
                return
            path = inside
        with tempfile.TemporaryDirectory(prefix="optml-model-") as folder:
            unpack(path, Path(folder))
            yield Path(folder)


def model_uri(model: str) -> str:
    """A path or a URI stays; the name of a job becomes that of its model."""
    if not _is_job(model):
        return model
    if "/" in model or not is_name(model):
        raise UserError(f"there is no {model}: MODEL is the name of a job, a model.tar.gz or folder, or the URI of one")
    try:
        job = jobs.find(model)
    except UserError as error:
        meant = str(error).partition("; ")[2]
        raise UserError(
            f"there is neither a job nor a file {model!r}; {meant or 'optml list shows the jobs'}"
        ) from None
    if job.model_data is None:
        raise UserError(f"job {model} is {job.status} and has no model")
    return job.model_data


def _is_job(model: str) -> bool:
    return "://" not in model and not expanded(model).exists()


def model_title(model: str) -> str:
    """What errors call a model, rather than the folder that it was unpacked into."""
    if not _is_job(model):
        return model
    status = jobs.find(model).status
    return f"the model of job {model}" + (", which Failed" if status == "Failed" else "")


@contextlib.contextmanager
def local_copy(uri: str) -> Iterator[Path]:
    """A file or folder of this machine as it is; what is in S3 is fetched, and removed afterwards."""
    if not uri.startswith("s3://"):
        path = objects.local_path(uri) if uri.startswith("file://") else expanded(uri)
        if not path.exists():
            raise UserError(f"there is no {uri}")
        yield path.absolute()
        return
    found = objects.list_objects(uri)
    exact = [info for info in found if info.uri == uri]
    with tempfile.TemporaryDirectory(prefix="optml-data-") as folder:
        paths = {info.uri: Path(uri).name if exact else objects.relative_path(uri, info.key) for info in exact or found}
        objects.check_paths((path, source) for source, path in paths.items())
        pairs = [(info, Path(folder, paths[info.uri])) for info in exact or found]
        for _, target in pairs:
            target.parent.mkdir(parents=True, exist_ok=True)
        transfers.download(pairs)
        yield pairs[0][1] if exact else Path(folder)


def unpack(archive: Path, folder: Path) -> None:
    """A model.tar.gz, of whatever origin: nothing in it gets out of the folder."""
    if not archive.name.endswith(ARCHIVE_ENDINGS):
        raise UserError(
            f"{archive} is no model archive: a model is a model.tar.gz, or the folder that was packed into it"
        )
    try:
        archives.unpack(archive, folder)
    except (archives.UnsafeEntry, tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise UserError(f"{archive} cannot be unpacked: {error}") from error
