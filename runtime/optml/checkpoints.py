"""Keep /opt/ml/checkpoints and its object prefix the same: restored before the start, uploaded while the job runs.

All hosts share one prefix. A file goes out when nobody has it open for writing, or, where that cannot be asked (not on Linux,
another user's file), when it has not changed for a while; so one in the middle of being written is not published as whole. Of
hosts that were killed goes only what was whole just before. A file that no host has any more goes from the prefix too. Objects
that others add to the prefix are neither fetched nor removed. Hosts run while this looks at their folders, and may change them at
any moment: links are not followed, and what cannot be looked at counts as unknown, never as deleted.
"""

import contextlib
import errno
import fcntl
import os
import shutil
import signal
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from optml import objects
from optml.clock import Clock
from optml.errors import OptmlError, PlatformError

# AWS's uploader puts markers beside each file, and its XGBoost writes temporary files by the third name: none is data.
IGNORED_SUFFIXES = (".sagemaker-uploading", ".sagemaker-uploaded", ".sagemaker-ignore")
SETTLE_SECONDS = 0.5  # a file that has not changed for so long is whole, where nobody can say who has it open
CLOSED_SECONDS = (
    0.02  # the same where that is known: longer than the clock's tick, within which a change would not show
)
LOOK_SHARE = (
    20  # a look that takes t seconds is followed by no other for so many times t: a hundred thousand files cost 5 %
)
LONGEST_PAUSE_SECONDS = 30.0  # after a store's errors; it doubles up to this
FINAL_TRIES = 8  # pauses of 1, 2, 4, ... s between them: a store may be away for two minutes


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

    What is in the folders at first counts as uploaded: it was restored. `warnings` names what cannot be mirrored.
    """

    def __init__(
        self,
        folders: Mapping[str, Path],
        uri: str,
        *,
        clock: Clock,
        spool: Path | None = None,
        note: Callable[..., None] = lambda *_facts, **_more: None,
    ):
        """`spool`: a folder for copies on their way to s3://. `note` hears what was uploaded, as in events.py."""
        self.folders, self.uri, self.clock = dict(folders), uri, clock
        self.spool, self.note = spool, note
        self.away_until = -1.0  # monotonic: a drill's store that is away
        self.left_out: list[
            tuple[str, str]
        ] = []  # host and path: what the last `final` did not take, for it may be torn
        self.error: OptmlError | None = None  # of the last look; a store that is away for a while delays, never loses
        self.warnings: list[str] = []
        self._true_paths = {host: os.path.realpath(folder) for host, folder in self.folders.items()}
        self._uploaded: dict[tuple[str, str], Version] = {}  # by host and path
        self._since: dict[tuple[str, str], tuple[Version, float]] = {}  # how a file looks, and since when
        self._whole: dict[tuple[str, str], Version] = {}  # how it looked when it was last known to be whole
        self._before_kill: dict[tuple[str, str], Version] = {}  # the same, just before hosts were killed
        self._ours: set[str] = set()  # paths under the prefix that came from here, or were restored
        self._gone: set[str] = set()  # those that no host had at the last look
        self._next_look = 0.0
        self._pause_seconds = 1.0
        for host in self.folders:
            for path, version in (self._files(host) or {}).items():
                self._uploaded[host, path] = version
                self._ours.add(path)

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

    def look_before_kill(self) -> None:
        """Note which files are whole, when hosts are about to be killed in the middle of whatever they do."""
        with contextlib.suppress(OSError):  # beside a look of another thread: it changes nothing that the other uses
            _, self._before_kill = self._find_whole(
                {host: self._files(host) for host in self.folders}, self.clock.monotonic()
            )

    def final(self, *, killed: Sequence[str] = (), tries: int = FINAL_TRIES) -> None:
        """Upload whatever differs; of `killed` hosts, what was whole just before. PlatformError if the store cannot take it.

        What is left out is in `left_out`, and nothing is removed then: it may have been about to take something's place.
        """
        for attempt in range(tries):
            self.error = self._look(final=True, killed=killed)
            if self.error is None:
                return
            if attempt < tries - 1:
                self.clock.sleep(min(LONGEST_PAUSE_SECONDS, 2.0**attempt))
        raise PlatformError(f"checkpoints could not be saved to {self.uri}: {self.error}") from self.error

    def _look(self, *, final: bool, killed: Sequence[str] = ()) -> OptmlError | None:
        began = self.clock.monotonic()
        if began < self.away_until:
            return PlatformError(f"{self.uri} is away, as the plan of interruptions has it")
        try:
            seen = {host: self._files(host) for host in self.folders}
            if not final:
                self._since, self._whole = self._find_whole(seen, began)
        except OSError as error:
            return PlatformError(f"cannot look at {error.filename or 'a checkpoint folder'}: {error.strerror}")
        now = {(host, path): version for host, files in seen.items() for path, version in (files or {}).items()}
        self._next_look = began + LOOK_SHARE * (self.clock.monotonic() - began)
        differs = [key for key, version in now.items() if self._uploaded.get(key) != version]
        whole = self._whole | self._before_kill
        due = [key for key in differs if (final and key[0] not in killed) or whole.get(key) == now[key]]
        self.left_out = [key for key in differs if final and key not in set(due)]
        due.sort(key=lambda key: now[key].modified_ns)
        for key in self._uploaded.keys() - now.keys():
            del self._uploaded[key]
        if (failure := self._upload_all(due, now)) is not None:
            return failure  # and nothing is removed while its successor may not have arrived
        if None in seen.values() or self.left_out:
            return None
        return self._remove({path for _, path in now}, final=final)

    def _find_whole(
        self, seen: Mapping[str, Mapping[str, Version] | None], now: float
    ) -> tuple[dict[tuple[str, str], tuple[Version, float]], dict[tuple[str, str], Version]]:
        """Of the files that are not uploaded as they are: since when each looks as it does, and those that are whole."""
        since: dict[tuple[str, str], tuple[Version, float]] = {}
        whole: dict[tuple[str, str], Version] = {}
        for host, files in seen.items():
            for path, version in (files or {}).items():
                key = (host, path)
                if self._uploaded.get(key) == version:
                    continue
                before = self._since.get(key)
                since[key] = before if before is not None and before[0] == version else (version, now)
                if self._whole.get(key) == version or self._is_whole(host, version, age=now - since[key][1]):
                    whole[key] = version
        return since, whole

    def _is_whole(self, host: str, version: Version, *, age: float) -> bool:
        try:
            descriptor = self._open(host, version.source)
        except OSError as error:
            # What may not be read is due too, so that its upload says why it fails.
            return error.errno in (errno.EACCES, errno.EPERM) and age >= SETTLE_SECONDS
        try:
            status = os.fstat(descriptor)
            if _version(status, version.source) != version:
                return False
            is_open = is_open_for_writing(descriptor)
            if is_open is None:
                return age >= SETTLE_SECONDS
            # The time of its last change is the machine's own, and any clock says when it is long past.
            return not is_open and (
                age >= SETTLE_SECONDS or time.time_ns() - status.st_ctime_ns >= CLOSED_SECONDS * 1e9
            )
        finally:
            os.close(descriptor)

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

            def unchanged() -> bool:
                return _version(os.fstat(descriptor), version.source) == version

            with contextlib.ExitStack() as stack:
                if self.uri.startswith("s3://"):  # an upload cannot be taken back: of a copy that is known to be whole
                    with objects.storage_errors(f"cannot copy {self.folders[host] / path} on its way to {self.uri}"):
                        copy = stack.enter_context(tempfile.NamedTemporaryFile(dir=self.spool, prefix="checkpoint-"))
                        shutil.copyfile(source, copy.name)
                    if not unchanged():
                        return
                    objects.upload_file(Path(copy.name), objects.join(self.uri, path))
                elif not objects.upload_file(source, objects.join(self.uri, path), unchanged=unchanged):
                    return
            self._ours.add(path)
            self._uploaded[host, path] = version
            self.note("checkpoint-uploaded", host, Path=path, Bytes=version.size_bytes)
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


def is_open_for_writing(descriptor: int) -> bool | None:
    """Whether anybody has a file open for writing; None where that cannot be asked. `descriptor` is open for reading only.

    Linux grants a read lease only on a file that nobody writes to. It is given back at once; should a writer come in between, it
    waits for that moment, and this process gets a signal that does nothing.
    """
    if not hasattr(fcntl, "F_SETLEASE") or not hasattr(fcntl, "F_SETSIG"):
        return None
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGURG)  # else SIGIO, which would end this process
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except BlockingIOError:
        return True
    except OSError:  # another user's file, or a filesystem without leases
        return None
    with contextlib.suppress(OSError):
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return False


def _raise_unless_gone(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error


def _version(status: os.stat_result, source: str) -> Version:
    return Version(status.st_size, status.st_mtime_ns, status.st_ino, source)
