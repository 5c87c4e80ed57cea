"""What the hosts left -> model.tar.gz and output.tar.gz (or the same as plain objects), or the reason why the job failed.

Archives are safe and the same for the same files: entries relative and sorted by name, no link out of the tree, no owner. The
platform never follows a link that a container made: it could point anywhere on this machine. Nothing of the hosts runs any more
when this begins, so what was looked at stays as it was.
"""

import contextlib
import io
import os
import stat
import struct
import tarfile
import zlib
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, cast

from optml import contract, objects, transfers
from optml.errors import PlatformError, storage_errors
from optml.jobdir import HostDir, JobDir
from optml.record import MAX_FAILURE_REASON
from optml.spec import OPT_ML, TrainingJob

# Measured, one core: float32 weights 40 MB/s at level 1, 34 at gzip's own 6, both to 93 %; text 200 against 43 MB/s, to 28 and
# 26 %. Zeros 840 against 400.
COMPRESSION_LEVEL = 1
COMPRESSION_THREADS = 8  # at most; each compresses blocks of its own
BLOCK_BYTES = 1 << 20
FAILURE_BYTES = 4 * MAX_FAILURE_REASON  # a character takes four bytes at most
NO_REASON = "AlgorithmError: , exit code: "  # how a FailureReason begins where nobody said why, as in SageMaker
NAMES_IN_A_WARNING = 10

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

    @property
    def is_folder(self) -> bool:
        return stat.S_ISDIR(self.status.st_mode)

    @property
    def is_file(self) -> bool:
        return stat.S_ISREG(self.status.st_mode)


@dataclass
class Remarks:
    """What could not be taken as it was, gathered: a warning for each kind, not for each of a hundred thousand files."""

    names: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def add(self, what: str, name: str) -> None:
        self.names[what].append(name)

    @property
    def warnings(self) -> tuple[str, ...]:
        return tuple(f"{what}: {_named(names)}" for what, names in self.names.items())


def _named(names: Sequence[str]) -> str:
    shown = ", ".join(
        repr(name)[1:-1] for name in names[:NAMES_IN_A_WARNING]
    )  # names may hold newlines, and what is no text
    return shown if len(names) <= NAMES_IN_A_WARNING else f"{shown} and {len(names) - NAMES_IN_A_WARNING:,} more"


def collect_outputs(
    job: TrainingJob,
    job_dir: JobDir,
    host_dirs: Mapping[str, HostDir],
    *,
    progress: Progress = lambda _done, _total: None,
) -> Collected:
    """Merge the hosts' model and output folders (by host name; later ones win), archive and upload them.

    PlatformError if that fails; then no partial file is left, an earlier object of the same name is as it was, and so is what
    the hosts left. `progress` hears of bytes archived and then, from 0 again, of bytes uploaded.
    """
    remarks = Remarks()
    model = merge({host: host_dir.ml for host, host_dir in host_dirs.items()}, contract.MODEL, remarks)
    output = merge({host: host_dir.ml for host, host_dir in host_dirs.items()}, contract.OUTPUT_DATA, remarks)
    if not any(entry.is_file for entry in model.values()):
        remarks.add("the model artifact is empty, for the job left no file in", f"{OPT_ML}/{contract.MODEL}")
    prefix = objects.join(job.output_uri, job.name, "output")
    names = ("model.tar.gz", "output.tar.gz") if job.output_compressed else ("model/", "data/")
    model_uri, output_uri = (f"{prefix}/{name}" for name in names)
    send = send_archive if job.output_compressed else send_plain
    # AWS leaves output.tar.gz out where there is nothing to put in; S3ModelArtifacts always names something.
    model_bytes = send(model, model_uri, job_dir, remarks, progress)
    output_bytes = send(output, output_uri, job_dir, remarks, progress) if output else 0
    return Collected(
        model_uri=model_uri,
        output_uri=output_uri if output else None,
        model_bytes=model_bytes,
        output_bytes=output_bytes,
        warnings=remarks.warnings,
    )


def merge(roots: Mapping[str, Path], folder_name: str, remarks: Remarks) -> dict[str, Entry]:
    """Entries of one folder of several hosts' /opt/ml, by name, sorted. Folders merge; of two files the later host's is taken."""
    merged: dict[str, Entry] = {}
    owners: dict[str, str] = {}
    for host, ml in sorted(roots.items()):
        for entry in walk(ml, folder_name, host, remarks):
            before = merged.get(entry.name)
            if before is not None and not (before.is_folder and entry.is_folder):
                remarks.add(
                    f"{owners[entry.name]} and {host} left files of the same names, and those of {host} were taken "
                    "(give each host's files names of their own)",
                    f"{folder_name}/{entry.name}",
                )
                if before.is_folder:
                    for name in [name for name in merged if name.startswith(f"{entry.name}/")]:
                        del merged[name]
            merged[entry.name], owners[entry.name] = entry, host
    return dict(sorted(merged.items(), key=lambda item: os.fsencode(item[0])))


def walk(ml: Path, folder_name: str, host: str, remarks: Remarks) -> Iterator[Entry]:
    """Everything below a folder of a host that may be taken, each folder before what is in it."""
    root = ml / folder_name
    if (what := in_the_way(ml, folder_name)) is not None:
        remarks.add(f"nothing was taken from where a folder should be ({host})", f"{OPT_ML}/{what}")
        return
    to_read = [root]
    while to_read:
        for path in sorted(_children(to_read.pop()), key=os.fsencode):
            name = str(path.relative_to(root))
            status = path.lstat()
            if stat.S_ISDIR(status.st_mode):
                to_read.append(path)
                yield Entry(name=name, path=path, status=status)
            elif stat.S_ISREG(status.st_mode):
                yield Entry(name=name, path=path, status=status)
            elif not stat.S_ISLNK(status.st_mode):
                remarks.add("left out, for it is neither a file, a folder nor a link", f"{folder_name}/{name}")
            elif (link := link_inside(path, root, folder_name)) is None:
                target = os.fspath(path.readlink())
                remarks.add(
                    "left out, for the link leads out of the folder (copy what it leads to)",
                    f"{folder_name}/{name} -> {target}",
                )
            else:
                yield Entry(name=name, path=path, status=status, link=link)


def in_the_way(ml: Path, folder_name: str) -> str | None:
    """What stands where a host's folder should be, link or file, at the folder or above it; None if all is well."""
    place = ml
    for part in folder_name.split("/"):
        place = place / part
        with _reading(place), contextlib.suppress(FileNotFoundError):  # the program may have removed its own folder
            if not stat.S_ISDIR(place.lstat().st_mode):
                return str(place.relative_to(ml))
    return None


def _children(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except FileNotFoundError:
        return []
    except PermissionError:
        with contextlib.suppress(OSError):  # the program's own wish, but SageMaker's uploader is root
            folder.chmod(0o700)
    with _reading(folder):
        return list(folder.iterdir())


def link_inside(link: Path, root: Path, folder_name: str) -> str | None:
    """A link's target relative to the link, if it stays inside the tree; an absolute one may be as the container sees it."""
    target = os.fspath(link.readlink())
    place = os.path.normpath(link.parent / target)
    for base in (f"{OPT_ML}/{folder_name}", str(root)):
        if place == base or place.startswith(f"{base}/"):
            return os.path.relpath(root / place[len(base) :].lstrip("/"), link.parent)
    return None


def send_archive(entries: Mapping[str, Entry], uri: str, job_dir: JobDir, _remarks: Remarks, progress: Progress) -> int:
    """Write the archive beside the job's other files, then send it; it replaces an older one whole. Gives its size."""
    file = job_dir.archives / uri.rpartition("/")[2]
    total = sum(entry.status.st_size for entry in entries.values() if entry.is_file)
    try:
        with storage_errors(f"cannot write {file}"):
            file.parent.mkdir(exist_ok=True)
            write_archive(entries.values(), file, transfers.counter(progress, total))
        size_bytes = file.stat().st_size
        transfers.upload_file(file, uri, progress=transfers.counter(progress, size_bytes), move=True)
    finally:
        file.unlink(missing_ok=True)
    return size_bytes


def write_archive(entries: Iterable[Entry], file: Path, count: transfers.Count = lambda _bytes: None) -> None:
    """A gzipped tar of the entries, as they come. No owner, no time of its own: the same files give the same bytes."""
    with file.open("wb") as stream, ThreadPoolExecutor(min(COMPRESSION_THREADS, os.cpu_count() or 1)) as pool:
        zipped = GzipWriter(stream, pool)
        with tarfile.TarFile(
            fileobj=cast("BinaryIO", zipped), mode="w", format=tarfile.PAX_FORMAT, copybufsize=BLOCK_BYTES
        ) as tar:
            for entry in entries:
                info = tarfile.TarInfo(entry.name)
                info.mode = stat.S_IMODE(entry.status.st_mode) & 0o777  # nobody's program becomes root's
                info.mtime = int(entry.status.st_mtime)
                if entry.link is not None:
                    info.type, info.linkname = tarfile.SYMTYPE, entry.link
                    tar.addfile(info)
                elif entry.is_folder:
                    info.type = tarfile.DIRTYPE
                    tar.addfile(info)
                else:
                    info.size = entry.status.st_size
                    with open_plain(entry.path) as content:
                        tar.addfile(info, _Source(entry.path, content, count))
        zipped.finish()


class GzipWriter:
    """One gzip stream whose blocks are compressed side by side: a big model should not wait for a single core.

    The bytes do not depend on how many threads there are.
    """

    def __init__(self, stream: BinaryIO, pool: ThreadPoolExecutor):
        self._stream, self._pool = stream, pool
        self._buffer = bytearray()
        self._blocks: deque[Future[bytes]] = deque()
        self._checksum, self._size_bytes = 0, 0
        stream.write(b"\x1f\x8b\x08\0\0\0\0\0\x04\xff")  # deflate, no name, no time, fastest, no particular system

    def write(self, data: bytes) -> int:
        self._buffer += data
        while len(self._buffer) >= BLOCK_BYTES:
            self._compress(bytes(self._buffer[:BLOCK_BYTES]))
            del self._buffer[:BLOCK_BYTES]
        return len(data)

    def _compress(self, block: bytes) -> None:
        self._checksum = zlib.crc32(block, self._checksum)
        self._size_bytes += len(block)
        self._blocks.append(self._pool.submit(_deflated, block))
        while len(self._blocks) > 2 * COMPRESSION_THREADS:
            self._stream.write(self._blocks.popleft().result())

    def tell(self) -> int:
        return self._size_bytes + len(self._buffer)

    def finish(self) -> None:
        self._compress(bytes(self._buffer))
        while self._blocks:
            self._stream.write(self._blocks.popleft().result())
        self._stream.write(b"\x03\0" + struct.pack("<II", self._checksum, self._size_bytes & 0xFFFFFFFF))


def _deflated(block: bytes) -> bytes:
    """A block that another can follow: it ends at a byte, and nothing after it refers to it."""
    deflate = zlib.compressobj(COMPRESSION_LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS)
    return deflate.compress(block) + deflate.flush(zlib.Z_SYNC_FLUSH)


class _Source(io.RawIOBase):
    """A file that is read for the archive: tells how much, and whose fault an error is."""

    def __init__(self, path: Path, stream: BinaryIO, count: transfers.Count):
        self._path, self._stream, self._count = path, stream, count

    def read(self, size: int = -1) -> bytes:
        with _reading(self._path):
            part = self._stream.read(size)
        if not part:
            raise PlatformError(f"{self._path} became shorter while it was archived")
        self._count(len(part))
        return part


def open_plain(path: Path) -> BinaryIO:
    """Open a plain file that a container made; OSError for anything else. Never through a link, and no device is touched."""
    status = path.lstat()
    if not stat.S_ISREG(status.st_mode):
        raise OSError(f"{path} is no plain file")
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except PermissionError:
        with contextlib.suppress(OSError):
            path.chmod(stat.S_IMODE(status.st_mode) | stat.S_IRUSR)
        with _reading(path):
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    return os.fdopen(descriptor, "rb", buffering=0)


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except PermissionError as error:
        raise PlatformError(
            f"cannot read {path}: it belongs to another user, who alone may read it; "
            "let the program make its outputs readable (chmod -R a+rX)"
        ) from error
    except OSError as error:
        raise PlatformError(f"cannot read {path}: {error.strerror}") from error


def send_plain(entries: Mapping[str, Entry], uri: str, _job_dir: JobDir, remarks: Remarks, progress: Progress) -> int:
    """CompressionType NONE: each file an object. A link to a file of the tree becomes a copy of it. Gives the size of all."""
    pairs: list[tuple[Path, str]] = []
    total = 0
    for entry in entries.values():
        file = _behind_links(entry, entries)
        if file is None or (entry.link is not None and not file.is_file):
            remarks.add("left out, for there are no links among objects, and it leads to no file", entry.name)
        elif uri.startswith("s3://") and not _is_text(entry.name):
            remarks.add("left out, for S3 takes names in UTF-8 only", entry.name)
        elif file.is_file:
            with open_plain(file.path):  # or say that it can't be read before anything is sent
                pairs.append((file.path, objects.join(uri, entry.name)))
            total += file.status.st_size
    transfers.upload_files(pairs, progress=transfers.counter(progress, total))
    return total


def _behind_links(entry: Entry, entries: Mapping[str, Entry]) -> Entry | None:
    """What a link leads to in the end; None for nothing, or a circle."""
    for _ in range(40):
        if entry.link is None:
            return entry
        place = os.path.normpath(f"{os.path.dirname(entry.name)}/{entry.link}".lstrip("/"))  # noqa: PTH120
        if place not in entries:
            return None
        entry = entries[place]
    return None


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def failure_text(host_dir: HostDir) -> str:
    """What the algorithm wrote into its failure file; "" if nothing, or if it is no plain file."""
    if in_the_way(host_dir.ml, str(Path(contract.FAILURE).parent)) is not None:
        return ""
    try:
        with open_plain(contract.failure_file(host_dir.ml)) as stream:
            return stream.read(FAILURE_BYTES).decode(errors="replace").replace("\0", "").strip()
    except (OSError, PlatformError):
        return ""


def failure_reason(
    host_dirs: Mapping[str, HostDir],
    exit_codes: Mapping[str, int],
    *,
    first: str | None,
    remarks: Mapping[str, str] | None = None,
) -> str | None:
    """FailureReason in SageMaker's form, at most 1,024 characters; None if no host failed and none wrote a failure file.

    `first` is the host that ended the job: its failure file counts, else that of another that failed, else any, in name order.
    `remarks`: by host, what is known of its end beyond the exit code; it stands in where no failure file says anything.
    """
    failed = [name for name in sorted(exit_codes) if exit_codes[name] != 0]
    texts = {name: failure_text(host_dir) for name, host_dir in sorted(host_dirs.items())}
    order = [*([first] if first is not None else []), *failed, *texts]
    host = next((name for name in order if texts.get(name)), None)
    if host is None and first is None and not failed:
        return None
    code = exit_codes.get(next(name for name in [first, *failed, host] if name is not None), 0)
    text = texts[host] if host is not None else ""
    if host is None:
        text = (remarks or {}).get(first or next(iter(failed), ""), "")
    if not text and code == 137:
        text = "killed with SIGKILL"
    tail = f", exit code: {code}"
    return f"AlgorithmError: {text}"[: MAX_FAILURE_REASON - len(tail)] + tail
