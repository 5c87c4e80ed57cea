"""What the hosts left -> model.tar.gz and output.tar.gz (or the same as plain objects), or the reason why the job failed.

Archives are safe and the same for the same files: entries relative and sorted by name, no link out of the tree, no owner. The
platform never follows a link that a container made: it could point anywhere on this machine.
"""

import gzip
import io
import os
import stat
import tarfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from optml import contract, objects
from optml.errors import PlatformError
from optml.jobdir import HostDir, JobDir
from optml.record import MAX_FAILURE_REASON
from optml.spec import OPT_ML, TrainingJob

# Weights barely shrink whatever the level; text does. 1 is four times as fast as gzip's own 6 and some 10 % larger on text.
COMPRESSION_LEVEL = 1
FAILURE_BYTES = 4 * MAX_FAILURE_REASON  # a character takes four bytes at most

Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class Collected:
    """Where the outputs are, and what a person should know of them."""

    model_uri: str
    output_uri: str | None
    model_bytes: int
    output_bytes: int
    warnings: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A file, folder or link of the merged tree. `link` is relative and stays inside."""

    name: str
    path: Path
    status: os.stat_result
    link: str | None = None


def collect_outputs(
    job: TrainingJob,
    job_dir: JobDir,
    host_dirs: Mapping[str, HostDir],
    *,
    progress: Progress = lambda _done, _total: None,
) -> Collected:
    """Merge the hosts' model and output folders (by host name; later ones win), archive and upload them."""
    warnings: list[str] = []
    model = merge({host: contract.model_dir(d.ml) for host, d in host_dirs.items()}, contract.MODEL, warnings)
    output = merge(
        {host: contract.output_data_dir(d.ml) for host, d in host_dirs.items()}, contract.OUTPUT_DATA, warnings
    )
    if not any(entry.path.is_file() for entry in model.values()):
        warnings.append("the job left nothing in /opt/ml/model: its model archive is empty")
    total = sum(e.status.st_size for e in (*model.values(), *output.values()) if stat.S_ISREG(e.status.st_mode))
    done = 0

    def count(size_bytes: int) -> None:
        nonlocal done
        done += size_bytes
        progress(done, total)

    prefix = objects.join(job.output_uri, job.name, "output")
    job_dir.archives.mkdir(exist_ok=True)
    if not job.output_compressed:
        model_bytes = upload_plain(model, objects.join(prefix, "model"), count)
        output_bytes = upload_plain(output, objects.join(prefix, "data"), count)
        model_uri, output_uri = (
            objects.join(prefix, "model") + "/",
            objects.join(prefix, "data") + "/" if output else None,
        )
    else:
        model_uri = objects.join(prefix, "model.tar.gz")
        model_bytes = upload_archive(model, job_dir.archives / "model.tar.gz", model_uri, count)
        output_uri, output_bytes = None, 0
        if output:
            output_uri = objects.join(prefix, "output.tar.gz")
            output_bytes = upload_archive(output, job_dir.archives / "output.tar.gz", output_uri, count)
    return Collected(
        model_uri=model_uri,
        output_uri=output_uri,
        model_bytes=model_bytes,
        output_bytes=output_bytes,
        warnings=tuple(warnings),
    )


def merge(folders: Mapping[str, Path], folder_name: str, warnings: list[str]) -> dict[str, Entry]:
    """Entries of several hosts' folders by name, sorted. Folders merge; of two files the later host's is taken, with a warning."""
    merged: dict[str, Entry] = {}
    owners: dict[str, str] = {}
    for host, root in sorted(folders.items()):
        for entry in walk(root, folder_name, warnings):
            before = merged.get(entry.name)
            if before is not None and not (stat.S_ISDIR(before.status.st_mode) and stat.S_ISDIR(entry.status.st_mode)):
                warnings.append(
                    f"{owners[entry.name]} and {host} both wrote {folder_name}/{entry.name}: that of {host} was taken; "
                    "give each host's files names of their own"
                )
            if before is not None and stat.S_ISDIR(before.status.st_mode) and not stat.S_ISDIR(entry.status.st_mode):
                for name in [name for name in merged if name.startswith(f"{entry.name}/")]:
                    del merged[name]
            parents = [entry.name.rsplit("/", depth)[0] for depth in range(1, entry.name.count("/") + 1)]
            if any(parent in merged and not stat.S_ISDIR(merged[parent].status.st_mode) for parent in parents):
                continue  # a file of an earlier host where this one has a folder, said above
            merged[entry.name], owners[entry.name] = entry, host
    return dict(sorted(merged.items(), key=lambda item: os.fsencode(item[0])))


def walk(root: Path, folder_name: str, warnings: list[str]) -> list[Entry]:
    """Everything below a folder that may be archived."""
    entries: list[Entry] = []
    to_read = [root]
    while to_read:
        folder = to_read.pop()
        try:
            children = sorted(os.scandir(folder), key=lambda child: os.fsencode(child.name))
        except FileNotFoundError:
            continue  # the program removed its own folder
        except OSError as error:
            raise PlatformError(f"cannot read {folder}: {error.strerror}") from error
        for child in children:
            path = Path(child.path)
            name = str(path.relative_to(root))
            status = path.lstat()
            if stat.S_ISDIR(status.st_mode):
                to_read.append(path)
                entries.append(Entry(name=name, path=path, status=status))
            elif stat.S_ISREG(status.st_mode):
                entries.append(Entry(name=name, path=path, status=status))
            elif stat.S_ISLNK(status.st_mode):
                inside = link_inside(path, root, folder_name)
                if inside is None:
                    warnings.append(
                        f"{folder_name}/{name} is left out: it is a link to {path.readlink()}, out of the folder"
                    )
                else:
                    entries.append(Entry(name=name, path=path, status=status, link=inside))
            else:
                warnings.append(f"{folder_name}/{name} is left out: it is neither a file, a folder nor a link")
    return entries


def link_inside(link: Path, root: Path, folder_name: str) -> str | None:
    """A link's target relative to the link, if it stays inside the tree; absolute ones are as the container sees them."""
    target = os.fspath(link.readlink())
    container_root = f"{OPT_ML}/{folder_name}"
    if target.startswith("/"):
        if target != container_root and not target.startswith(f"{container_root}/"):
            return None
        place = os.path.normpath(target[len(container_root) :].lstrip("/") or ".")
    else:
        place = os.path.normpath(link.parent.relative_to(root) / target)
    if place == ".." or place.startswith(("../", "/")):
        return None
    return os.path.relpath(place, link.parent.relative_to(root))


def upload_archive(entries: Mapping[str, Entry], file: Path, uri: str, count: objects.Count) -> int:
    """Write the archive beside the job's other files, then send it; it replaces an older one whole. Gives its size."""
    with objects.storage_errors(f"cannot write {file}"):
        try:
            write_archive(entries.values(), file, count)
        except OSError:
            file.unlink(missing_ok=True)
            raise
    size_bytes = file.stat().st_size
    objects.upload_file(file, uri, move=True)
    file.unlink(missing_ok=True)
    return size_bytes


def write_archive(entries: Iterable[Entry], file: Path, count: objects.Count = lambda _bytes: None) -> None:
    """A gzipped tar of the entries, as they come. No owner, no time of its own: the same files give the same bytes."""
    with (
        file.open("wb") as stream,
        gzip.GzipFile(filename="", mode="wb", fileobj=stream, compresslevel=COMPRESSION_LEVEL, mtime=0) as zipped,
        tarfile.open(fileobj=zipped, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        for entry in entries:
            info = tarfile.TarInfo(entry.name)
            info.mode = stat.S_IMODE(entry.status.st_mode)
            info.mtime = int(entry.status.st_mtime)
            if entry.link is not None:
                info.type, info.linkname = tarfile.SYMTYPE, entry.link
                tar.addfile(info)
            elif stat.S_ISDIR(entry.status.st_mode):
                info.type = tarfile.DIRTYPE
                tar.addfile(info)
            else:
                info.size = entry.status.st_size
                with open_plain(entry.path) as content:
                    tar.addfile(info, _Counted(content, count))


class _Counted(io.RawIOBase):
    """Tells how much of a file has been read."""

    def __init__(self, stream: io.BufferedReader, count: objects.Count):
        self._stream, self._count = stream, count

    def read(self, size: int = -1) -> bytes:
        part = self._stream.read(size)
        self._count(len(part))
        return part


def open_plain(path: Path) -> io.BufferedReader:
    """Open a file that a container made, never through a link."""
    return os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb")


def upload_plain(entries: Mapping[str, Entry], prefix: str, count: objects.Count) -> int:
    """CompressionType NONE: each file an object. A link inside the tree becomes a copy of what it leads to."""
    pairs: list[tuple[Path, str]] = []
    size_bytes = 0
    for entry in entries.values():
        file = entry
        hops = 0
        while file.link is not None and hops < 40:  # links to links, in a circle at worst
            place = os.path.normpath(Path(file.name).parent / file.link)
            if place not in entries:
                break
            file, hops = entries[place], hops + 1
        if file.link is None and stat.S_ISREG(file.status.st_mode):
            pairs.append((file.path, objects.join(prefix, entry.name)))
            size_bytes += file.status.st_size
    objects.upload_files(pairs, progress=count)
    return size_bytes


def failure_text(host_dir: HostDir) -> str:
    """What the algorithm wrote into its failure file; "" if nothing, or if it is no plain file."""
    try:
        with open_plain(contract.failure_file(host_dir.ml)) as stream:
            return stream.read(FAILURE_BYTES).decode(errors="replace").replace("\0", "")
    except OSError:
        return ""


def failure_reason(host_dirs: Mapping[str, HostDir], exit_codes: Mapping[str, int], *, first: str | None) -> str | None:
    """FailureReason in SageMaker's form, at most 1,024 characters; None if no host failed and none wrote a failure file.

    `first` is the host that ended the job: its failure file counts, else that of any other, in name order.
    """
    texts = {host: failure_text(host_dir) for host, host_dir in host_dirs.items()}
    order = [*([first] if first is not None else []), *sorted(texts)]
    host = next((name for name in order if texts[name].strip()), None)
    if host is None and first is None:
        return None
    code = exit_codes.get(first or host or "", 0)
    tail = f", exit code: {code}"
    hint = ""
    if host is None and code == 137:
        hint = "killed with SIGKILL: out of memory, most likely"
    head = f"AlgorithmError: {texts[host].strip() if host is not None else hint}"
    return head[: MAX_FAILURE_REASON - len(tail)] + tail
