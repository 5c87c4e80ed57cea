"""Keep /opt/ml/checkpoints and its object prefix the same: restored before the start, uploaded while the job runs.

All hosts share one prefix. A file goes out when it has settled, so that one in the middle of being written is not published as
whole; a file that no host has any more goes from the prefix too. Objects that others add to the prefix are neither fetched nor
removed. Hosts run while this looks at their folders, and may change them at any moment: links are not followed, and what cannot
be looked at counts as unknown, never as deleted.
"""

import contextlib
import errno
import os
import stat
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from optml import contract, objects
from optml.clock import Clock
from optml.errors import OptmlError, PlatformError
from optml.jobdir import HostDir
from optml.spec import CheckpointConfig, TrainingJob, UploadedFolder

# AWS's uploader puts markers beside each file, and its XGBoost writes temporary files by the third name: none is data.
IGNORED_SUFFIXES = (".sagemaker-uploading", ".sagemaker-uploaded", ".sagemaker-ignore")
SETTLE_SECONDS = 0.5  # a file that has not changed for so long is whole
LOOK_SHARE = (
    20  # a look that takes t seconds is followed by no other for so many times t: a hundred thousand files cost 5 %
)
LONGEST_PAUSE_SECONDS = 60.0  # after a store's errors; it doubles up to this
FINAL_TRIES = 4


class _Unreadable(PlatformError):
    """A single file that cannot be read."""


class Version(NamedTuple):
    """A file's state: uploaded again when it differs."""

    size_bytes: int
    modified_ns: int
    inode: int
    source: str  # the path of the file itself: another than its name where the name is a link within the folder


def restore(uri: str, folders: Sequence[Path]) -> int:
    """Copy what is under the URI to every host's folder; nothing there is no error. Gives the number of objects."""
    prefix = objects.join(uri, "")
    paths = {info: info.uri.removeprefix(prefix) for info in objects.list_if_any(uri)}
    paths = {info: path for info, path in paths.items() if not path.endswith(IGNORED_SUFFIXES)}
    objects.check_paths((path, info.uri) for info, path in paths.items())
    for first in folders[:1]:
        objects.download([(info, first / path) for info, path in paths.items() if info.path is None])
    for folder in folders:
        # From afar once, then from the first host; each host has copies of its own, for it may write to them.
        copies = [(info.path or folders[0] / path, folder / path) for info, path in paths.items()]
        objects.upload_files([(source, f"file://{target}") for source, target in copies if source != target])
    return len(paths)


class CheckpointMirror:
    """Mirror hosts' folders to one prefix. `sync` now and then while the job runs, `final` when its programs have ended.

    What is in the folders at first counts as uploaded: it was restored. Or, if the hosts have run already, only what `known`
    has (`uploaded` of an earlier mirror) counts; then no link may have led to the folders when they were named.
    `warnings` names what cannot be mirrored.
    """

    def __init__(
        self,
        folders: Mapping[str, Path],
        uri: str,
        *,
        clock: Clock,
        known: Mapping[str, Mapping[str, Version]] | None = None,
    ):
        self.folders, self.uri, self.clock = dict(folders), uri, clock
        self.error: OptmlError | None = None  # of the last look; a store that is away for a while delays, never loses
        self.warnings: list[str] = []
        # A program may have put links in the way of its folders meanwhile: they are not followed.
        true_path = os.path.realpath if known is None else os.path.normpath
        self._true_paths = {host: str(true_path(folder)) for host, folder in self.folders.items()}
        self._uploaded: dict[tuple[str, str], Version] = {}  # by host and path
        self._since: dict[tuple[str, str], tuple[Version, float]] = {}  # how a file looks, and since when
        self._ours: set[str] = set()  # paths under the prefix that came from here, or were restored
        self._gone: set[str] = set()  # those that no host had at the last look
        self._next_look = 0.0
        self._pause_seconds = 1.0
        for host in self.folders:
            files = (self._files(host) or {}) if known is None else known.get(host, {})
            for path, version in files.items():
                self._uploaded[host, path] = version
                self._ours.add(path)

    @property
    def uploaded(self) -> dict[str, dict[str, Version]]:
        """The files that are the same at the prefix, by host and path."""
        found: dict[str, dict[str, Version]] = {host: {} for host in self.folders}
        for (host, path), version in self._uploaded.items():
            found[host][path] = version
        return found

    def sync(self) -> None:
        """Upload what has settled, remove what was deleted; it does nothing if a look would come too soon. No errors."""
        began = self.clock.monotonic()
        if began < self._next_look:
            return
        self.error = self._look(final=False)
        if self.error is None:
            self._pause_seconds = 1.0
        else:
            self._next_look = self.clock.monotonic() + self._pause_seconds
            self._pause_seconds = min(LONGEST_PAUSE_SECONDS, self._pause_seconds * 2)

    def final(self) -> None:
        """Upload whatever differs, settled or not. PlatformError if the store cannot take it."""
        for attempt in range(FINAL_TRIES):
            self.error = self._look(final=True)
            if self.error is None:
                return
            if attempt < FINAL_TRIES - 1:
                self.clock.sleep(2.0**attempt)
        raise PlatformError(f"checkpoints could not be saved to {self.uri}: {self.error}") from self.error

    def _look(self, *, final: bool) -> OptmlError | None:
        began = self.clock.monotonic()
        try:
            seen = {host: self._files(host) for host in self.folders}
        except OSError as error:
            return PlatformError(f"cannot look at {error.filename or 'a checkpoint folder'}: {error.strerror}")
        now = {(host, path): version for host, files in seen.items() for path, version in (files or {}).items()}
        self._next_look = began + LOOK_SHARE * (self.clock.monotonic() - began)
        self._since = {
            key: self._since[key] if key in self._since and self._since[key][0] == version else (version, began)
            for key, version in now.items()
            if self._uploaded.get(key) != version
        }
        due = [key for key, (_, since) in self._since.items() if final or began - since >= SETTLE_SECONDS]
        due.sort(key=lambda key: now[key].modified_ns)
        for key in self._uploaded.keys() - now.keys():
            del self._uploaded[key]
        if (failure := self._upload_all(due, now)) is not None:
            return failure  # and nothing is removed while its successor may not have arrived
        if None in seen.values():
            return None
        return self._remove({path for _, path in now}, final=final)

    def _upload_all(self, due: Sequence[tuple[str, str]], now: Mapping[tuple[str, str], Version]) -> OptmlError | None:
        """Side by side; the file written last goes last and alone, for it may be the one that names the others."""
        failures: list[OptmlError] = []
        broken = threading.Event()

        def upload(key: tuple[str, str]) -> None:
            if broken.is_set():
                return
            try:
                self._upload(*key, now[key])
            except _Unreadable as error:
                failures.append(error)  # of this file alone
            except OptmlError as error:
                failures.append(error)
                broken.set()

        if len(due) > 1:
            with ThreadPoolExecutor(objects.THREADS) as pool:
                list(pool.map(upload, due[:-1]))
        for key in due[-1:]:
            upload(key)
        return failures[0] if failures else None

    def _upload(self, host: str, path: str, version: Version) -> None:
        """Put a file there as it was seen. If it has changed, or changes meanwhile, a later look does it again."""
        try:
            descriptor = self._open(host, version.source)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EPERM):
                raise _Unreadable(f"cannot read {self.folders[host] / path}: {error.strerror}") from error
            return  # deleted, or no longer a file
        try:
            if _version(os.fstat(descriptor), version.source) != version:
                return
            opened = Path(f"/proc/self/fd/{descriptor}")  # what was opened, whatever now stands at its path
            source = opened if opened.exists() else self.folders[host] / version.source
            objects.upload_file(source, objects.join(self.uri, path))
            self._ours.add(path)
            if _version(os.fstat(descriptor), version.source) == version:
                self._uploaded[host, path] = version
        finally:
            os.close(descriptor)

    def _remove(self, present: set[str], *, final: bool) -> OptmlError | None:
        """Objects whose file is gone: at two looks, for a folder that changes while it is read may hide a file from one."""
        gone = self._ours - present
        try:
            for path in sorted(gone if final else gone & self._gone):
                objects.delete(objects.join(self.uri, path))
                self._ours.discard(path)
        except OptmlError as error:
            return error
        finally:
            self._gone = gone & self._ours
        return None

    def _open_folder(self, host: str) -> int:
        """A descriptor of a host's folder. OSError if it is gone, or if a link was put in its way."""
        descriptor = os.open(self.folders[host], os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        opened = f"/proc/self/fd/{descriptor}"
        if os.path.realpath(opened if os.path.exists(opened) else self.folders[host]) != self._true_paths[host]:  # noqa: PTH110
            os.close(descriptor)
            raise OSError(errno.ELOOP, "a link stands in its way", str(self.folders[host]))
        return descriptor

    def _open(self, host: str, path: str) -> int:
        """A descriptor of a plain file under a host's folder, reached through no link."""
        *parents, name = path.split("/")
        folder = self._open_folder(host)
        try:
            for parent in parents:
                above, folder = folder, os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=folder)
                os.close(above)
            if not stat.S_ISREG(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
                raise OSError(errno.EINVAL, "no plain file", path)
            return os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
        finally:
            os.close(folder)

    def _files(self, host: str) -> dict[str, Version] | None:
        """Plain files under a host's folder by their path, and links to them. OSError if not all of it can be seen.

        None if the folder itself is gone, or something else is in its place: who knows then what was deleted.
        """
        found: dict[str, Version] = {}
        links: dict[str, str] = {}
        try:
            folder = self._open_folder(host)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                raise
            self._warn(f"{self.folders[host]} cannot be mirrored: {error.strerror}; what was uploaded from it stays")
            return None
        try:
            for parent, folders, names, descriptor in os.fwalk(".", dir_fd=folder, onerror=_raise_unless_gone):
                for name in (*names, *folders):
                    path = os.path.normpath(f"{parent}/{name}")
                    if path.endswith(IGNORED_SUFFIXES):
                        continue
                    with contextlib.suppress(FileNotFoundError):
                        status = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
                        if stat.S_ISREG(status.st_mode):
                            if self._can_be_a_key(path):
                                found[path] = _version(status, path)
                        elif stat.S_ISLNK(status.st_mode):
                            links[path] = os.readlink(name, dir_fd=descriptor)
        finally:
            os.close(folder)
        for path, target in links.items():
            file = os.path.relpath(
                os.path.normpath(self.folders[host] / os.path.dirname(path) / target),  # noqa: PTH120
                self.folders[host],
            )
            if file in found and file not in links:
                found[path] = found[file]
            else:
                self._warn(
                    f"{self.folders[host] / path} is not uploaded: it is a link to {target}, no file of the folder"
                )
        return found

    def _can_be_a_key(self, path: str) -> bool:
        if self.uri.startswith("s3://"):
            try:
                path.encode()
            except UnicodeEncodeError:
                self._warn(f"{path!r} is not uploaded: S3 takes names in UTF-8 only")
                return False
        return True

    def _warn(self, text: str) -> None:
        text = text.encode(errors="backslashreplace").decode()
        if text not in self.warnings and len(self.warnings) < 20:
            self.warnings.append(text)


def stage_mirrored_folders(
    job: TrainingJob, host_dirs: Mapping[str, HostDir], *, clock: Clock
) -> list[CheckpointMirror]:
    """Checkpoints come back before the start; TensorBoard and debugger folders only go out."""
    if job.checkpoint is not None:
        folders = folders_of(host_dirs, job.checkpoint.local_path)
        for folder in folders.values():
            folder.mkdir(parents=True, exist_ok=True)
        restore(job.checkpoint.uri, list(folders.values()))
    return [
        CheckpointMirror(folders_of(host_dirs, mirrored.local_path), mirrored.uri, clock=clock)
        for mirrored in mirrored_folders(job)
    ]


def mirrored_folders(job: TrainingJob) -> list[CheckpointConfig | UploadedFolder]:
    return [folder for folder in (job.checkpoint, job.tensorboard, job.debug_hook) if folder is not None]


def folders_of(host_dirs: Mapping[str, HostDir], container_path: str) -> dict[str, Path]:
    """Where a path under /opt/ml lies, by host."""
    found = {name: contract.inside(host_dir.ml, container_path) for name, host_dir in host_dirs.items()}
    return {name: folder for name, folder in found.items() if folder is not None}


def _raise_unless_gone(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error


def _version(status: os.stat_result, source: str) -> Version:
    return Version(status.st_size, status.st_mtime_ns, status.st_ino, source)
