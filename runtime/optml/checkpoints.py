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
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from optml import contract, objects, transfers
from optml.clock import Clock
from optml.errors import OptmlError, PlatformError, storage_errors
from optml.jobdir import HostDir
from optml.spec import CheckpointConfig, TrainingJob, UploadedFolder

# AWS's uploader puts markers beside each file, and its XGBoost writes temporary files by the third name: none is data.
IGNORED_SUFFIXES = (".sagemaker-uploading", ".sagemaker-uploaded", ".sagemaker-ignore")
SETTLE_SECONDS = 0.5  # a file that has not changed for so long is whole, where nobody can say who has it open
CLOSED_SECONDS = 0.2  # the same where that is known: longer than it takes to notice that a host has died
MOST_HELD = 64  # files at a time
TICK_NS = 10_000_000
NEVER_READ_NS = 86_400 * 10**9  # a time of last access that no restored file has by itself
# A look that takes t seconds is followed by no other for so many times t: a hundred thousand files cost 5 %.
LOOK_SHARE = 20
LONGEST_PAUSE_SECONDS = 30.0  # after a store's errors; it doubles up to this
FINAL_TRIES = 8  # pauses of 1, 2, 4, ... s between them: a store may be away for two minutes


def nobody_hears(*_facts: object, **_more: object) -> None:
    """Where what is uploaded is of no interest."""


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
        transfers.download([(info, first / path) for info, path in paths.items() if info.path is None])
    for folder in folders:
        # From afar once, then from the first host; each host has copies of its own, for it may write to them.
        copies = [(info.path or folders[0] / path, folder / path) for info, path in paths.items()]
        transfers.upload_files([(source, f"file://{target}") for source, target in copies if source != target])
    return len(paths)


Key = tuple[str, str]  # a host, and a path in its folder


class Held(NamedTuple):
    """A version that was seen closed, kept open for reading: what takes its name cannot take its content."""

    descriptor: int
    version: Version
    since: float  # monotonic


class Unsettled(NamedTuple):
    """A file that changes, and how many looks found a version of it that was new, open for writing or closed."""

    open_count: int = 0
    closed_count: int = 0


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
        spool: Path | None = None,
        note: Callable[..., None] = nobody_hears,
    ):
        """`spool`: a folder for copies on their way to s3://. `note` hears what was uploaded, as in events.py."""
        self.folders, self.uri, self.clock = dict(folders), uri, clock
        self.spool, self.note = spool, note
        self.away_until = -1.0  # monotonic: a drill's store that is away
        self.left_out: list[Key] = []  # what the last `final` did not take, for it may be torn
        self.error: OptmlError | None = None  # of the last look; a store that is away for a while delays, never loses
        self.warnings: list[str] = []
        # A program may have put links in the way of its folders meanwhile: they are not followed.
        true_path = os.path.realpath if known is None else os.path.normpath
        self._true_paths = {host: str(true_path(folder)) for host, folder in self.folders.items()}
        self._descriptors: dict[str, int] = {}  # of folders that this process cannot reach by a path
        self._uploaded: dict[Key, Version] = {}
        self._since: dict[Key, tuple[Version, float]] = {}  # how a file looks, and since when
        self._whole: dict[Key, Version] = {}  # how it looked when it was last known to be whole
        self._closed: dict[Key, tuple[Version, float]] = {}  # how it looked when seen closed, and since when
        self._opened: dict[Key, int] = {}  # the inode of a file that was seen being written, and not whole since
        self.unsettled: dict[Key, Unsettled] = {}  # files of which no version was kept since they changed
        self.links: dict[Key, str] = {}  # those that are not uploaded, with what they lead to
        self._held: dict[Key, Held] = {}  # what may be replaced before it is known to be whole
        self._replaced: list[tuple[Key, Held]] = []  # of those what has been, and was whole
        self._finding = threading.Lock()  # two threads may look for what is whole
        self._frozen = False  # hosts are killed: what is closed now says nothing any more
        self._ours: set[str] = set()  # paths under the prefix that came from here, or were restored
        self._gone: set[str] = set()  # those that no host had at the last look
        self.unread: dict[Key, Version] = {}  # restored files that nobody was seen to read: see watch_reads
        self.replaced: set[Key] = set()  # those of them that are others by now
        self.read: set[Key] = set()
        self._next_look = 0.0
        self._took: deque[float] = deque(maxlen=5)  # by the last looks: one that a busy machine held up says nothing
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

    def watch_reads(self) -> bool:
        """Note from now on which restored files are read. False where the filesystem keeps no time of the last access."""
        for host, path in self._uploaded:
            with contextlib.suppress(OSError):
                file = self.folders[host] / path
                os.utime(file, ns=(NEVER_READ_NS, file.stat().st_mtime_ns))
                self.unread[host, path] = _version(file.stat(), path)
        return any(_keeps_access_times(folder) for folder in self.folders.values())

    def stands_on(self, host: str, descriptor: int) -> None:
        """From now on, and before the first look, a host's folder is the one of a descriptor that began as a copy of it, with the
        same times. The descriptor stays open for as long as this mirror is used."""
        self._descriptors[host] = descriptor
        # What is found now is another file, and not because the program replaced it.
        unread, self.unread = self.unread, {}
        for path, now in (self._files(host) or {}).items():
            for known in (self._uploaded, unread):
                before = known.get((host, path))
                if before is not None and (before.size_bytes, before.modified_ns) == (now.size_bytes, now.modified_ns):
                    known[host, path] = now
        self.unread = unread

    def look_at_reads(self) -> None:
        with contextlib.suppress(OSError):
            for host in self.folders:
                self._files(host)

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

    def look_before_end(self, *, killed: bool) -> None:
        """Note which files are whole while every host lives: SIGTERM is about to be sent, or, with `killed`, SIGKILL."""
        with contextlib.suppress(OSError):
            seen = {host: self._files(host) for host in self.folders}
            self._find_whole(seen, self.clock.monotonic(), alive=True, killed=killed)
        self._frozen = self._frozen or killed

    def let_go(self) -> None:
        """Nobody looks any more while hosts run: close what is held."""
        for held in (*self._held.values(), *(held for _, held in self._replaced)):
            os.close(held.descriptor)
        self._held, self._replaced = {}, []

    def final(self, *, killed: Sequence[str] = (), doubtful: Sequence[str] = (), tries: int = FINAL_TRIES) -> None:
        """Upload whatever differs; of `killed` hosts, what was whole just before; of `doubtful` ones, of which nobody knows how
        they ended, what was not seen being written. PlatformError if the store cannot take it.

        What is left out is in `left_out`, and nothing is removed then: it may have been about to take something's place.
        """
        for attempt in range(tries):
            self.error = self._look(final=True, killed=killed, doubtful=doubtful)
            if self.error is None:
                return
            if attempt < tries - 1:
                self.clock.sleep(min(LONGEST_PAUSE_SECONDS, 2.0**attempt))
        raise PlatformError(f"checkpoints could not be saved to {self.uri}: {self.error}") from self.error

    def _look(self, *, final: bool, killed: Sequence[str] = (), doubtful: Sequence[str] = ()) -> OptmlError | None:
        began = self.clock.monotonic()
        if began < self.away_until:
            return PlatformError(f"{self.uri} is away, as the plan of interruptions has it")
        try:
            seen = {host: self._files(host) for host in self.folders}
            if not final:
                self._find_whole(seen, began)
        except OSError as error:
            return PlatformError(f"cannot look at {error.filename or 'a checkpoint folder'}: {error.strerror}")
        now = {(host, path): version for host, files in seen.items() for path, version in (files or {}).items()}
        self._took.append(self.clock.monotonic() - began)
        self._next_look = began + LOOK_SHARE * min(self._took)
        differs = [key for key, version in now.items() if self._uploaded.get(key) != version]

        def may_go(key: Key) -> bool:
            if self._whole.get(key) == now[key]:
                return True
            if not final or key[0] in killed:
                return False
            return key[0] not in doubtful or self._opened.get(key) != now[key].inode

        if (failure := self._upload_replaced()) is not None:
            return failure
        due = [key for key in differs if may_go(key)]
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
        self, seen: Mapping[str, Mapping[str, Version] | None], now: float, *, alive: bool = False, killed: bool = False
    ) -> None:
        """Note which of the files that are not uploaded as they are, are whole.

        A host may die by itself, and its files are closed then too: so a file counts when two looks have seen it closed, between
        which the death would have been noticed. While hosts are known to be `alive` one look is enough; when they are `killed`
        afterwards, it is the last.
        """
        with self._finding:
            if self._frozen:
                return
            self._frozen = killed
            since: dict[Key, tuple[Version, float]] = {}
            closed: dict[Key, tuple[Version, float]] = {}
            whole: dict[Key, Version] = {}
            for host, files in seen.items():
                for path, version in (files or {}).items():
                    key = (host, path)
                    if self._uploaded.get(key) == version:
                        self.unsettled.pop(key, None)
                        continue
                    since[key] = _as_before(self._since, key, version, now)
                    if self._whole.get(key) == version:
                        whole[key] = version
                        continue
                    is_open, changed_ns = self._state(host, version)
                    if since[key][1] == now:  # as it was not seen before
                        seen_so_far = self.unsettled.get(key, Unsettled())
                        self.unsettled[key] = Unsettled(
                            seen_so_far.open_count + bool(is_open), seen_so_far.closed_count + (not is_open)
                        )
                    if is_open is None and now - since[key][1] >= SETTLE_SECONDS:
                        whole[key] = version
                    elif is_open:
                        self._opened[key] = version.inode
                    elif is_open is False:
                        closed[key] = _as_before(self._closed, key, version, now)
                        # Within a tick of the clock, a file could be opened and changed again and look the same.
                        just_now = time.time_ns() - changed_ns < TICK_NS
                        if now - closed[key][1] >= CLOSED_SECONDS or (alive and not just_now):
                            whole[key] = version
                            self._opened.pop(key, None)
            self._since, self._closed, self._whole = since, closed, whole
            if not alive:
                self._hold(seen, closed, whole, now)

    def _hold(
        self,
        seen: Mapping[str, Mapping[str, Version] | None],
        closed: Mapping[Key, tuple[Version, float]],
        whole: Mapping[Key, Version],
        now: float,
    ) -> None:
        """A file that another takes the place of before each look would never go. So what is seen closed is held, and goes by
        the same rule: when a second look, as much later, finds that version closed and unchanged, though its name is another's.
        """
        held, self._held = self._held, {}
        for (host, path), each in held.items():
            current = (seen.get(host) or {}).get(path)
            status = os.fstat(each.descriptor)
            if _version(status, each.version.source) == each.version and (host, path) not in whole:
                if current == each.version:
                    self._held[host, path] = each
                    continue
                is_replaced = current is not None and current.inode != each.version.inode and not status.st_nlink
                if is_replaced and is_open_for_writing(each.descriptor) is False:
                    if now - each.since >= CLOSED_SECONDS:
                        self._replaced.append(((host, path), each))
                    else:
                        self._held[host, path] = each
                    continue
            os.close(each.descriptor)
        for (host, path), (version, _) in closed.items():
            # The room on a drill's disk is counted: there, what is removed must be gone.
            if (host, path) in {*self._held, *whole} or host in self._descriptors or len(self._held) >= MOST_HELD:
                continue
            with contextlib.suppress(OSError):
                descriptor = self._open(host, version.source)
                if (
                    _version(os.fstat(descriptor), version.source) == version
                    and is_open_for_writing(descriptor) is False
                ):
                    self._held[host, path] = Held(descriptor, version, self.clock.monotonic())
                else:
                    os.close(descriptor)

    def _upload_replaced(self) -> OptmlError | None:
        """Versions that others have taken the names of; what has them now goes when it is known to be whole."""
        replaced, self._replaced = self._replaced, []
        try:
            for (host, path), held in replaced:
                self._put(host, path, held.version, held.descriptor)
        except OptmlError as error:
            return error
        finally:
            for _, held in replaced:
                os.close(held.descriptor)
        return None

    def _state(self, host: str, version: Version) -> tuple[bool | None, int]:
        """Whether a file is open for writing (None: nobody knows), and when it changed last. One that changes counts as open."""
        try:
            descriptor = self._open(host, version.source)
        except OSError as error:
            # What may not be read is due when it has settled, so that its upload says why it fails.
            return (None if error.errno in (errno.EACCES, errno.EPERM) else True), 0
        try:
            status = os.fstat(descriptor)
            if _version(status, version.source) != version:
                return True, 0
            return is_open_for_writing(descriptor), status.st_ctime_ns
        finally:
            os.close(descriptor)

    def _upload_all(self, due: Sequence[Key], now: Mapping[Key, Version]) -> OptmlError | None:
        """Side by side; the file written last goes last and alone, for it may be the one that names the others."""
        failures: list[OptmlError] = []
        broken = threading.Event()

        def upload(key: Key) -> None:
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
            if _version(os.fstat(descriptor), version.source) == version:
                self._put(host, path, version, descriptor)
        finally:
            os.close(descriptor)

    def _put(self, host: str, path: str, version: Version, descriptor: int) -> None:
        opened = Path(f"/proc/self/fd/{descriptor}")  # what was opened, whatever now stands at its path
        source = opened if opened.exists() else self.folders[host] / version.source

        def unchanged() -> bool:
            return _version(os.fstat(descriptor), version.source) == version

        with contextlib.ExitStack() as stack:
            if self.uri.startswith("s3://"):  # an upload cannot be taken back: of a copy that is known to be whole
                with storage_errors(f"cannot copy {self.folders[host] / path} on its way to {self.uri}"):
                    copy = stack.enter_context(tempfile.NamedTemporaryFile(dir=self.spool, prefix="checkpoint-"))
                    shutil.copyfile(source, copy.name)
                if not unchanged():
                    return
                transfers.upload_file(Path(copy.name), objects.join(self.uri, path))
            elif not transfers.upload_file(source, objects.join(self.uri, path), unchanged=unchanged):
                return
        self._ours.add(path)
        self._uploaded[host, path] = version
        self.unsettled.pop((host, path), None)
        self.note("checkpoint-uploaded", host, Path=path, Bytes=version.size_bytes, Written=version.modified_ns / 1e9)

    def _remove(self, present: set[str], *, final: bool) -> OptmlError | None:
        """Objects whose file is gone: at two looks, for a folder that changes while it is read may hide a file from one."""
        gone = self._ours - present
        try:
            for path in sorted(gone if final else gone & self._gone):
                transfers.delete(objects.join(self.uri, path))
                self._ours.discard(path)
        except OptmlError as error:
            return error
        finally:
            self._gone = gone & self._ours
        return None

    def _open_folder(self, host: str) -> int:
        """A descriptor of a host's folder. OSError if it is gone, or if a link was put in its way."""
        if host in self._descriptors:
            return os.open(".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=self._descriptors[host])
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
                            self._note_read(host, path, status)
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
                self.links[host, path] = target
                self._warn(
                    f"{self.folders[host] / path} is not uploaded: it is a link to {target}, no file of the folder"
                )
        return found

    def _note_read(self, host: str, path: str, status: os.stat_result) -> None:
        """A file that was replaced tells nothing of the one before it; this uploader itself reads only later what was changed."""
        restored = self.unread.get((host, path))
        if restored is None:
            return
        if restored != _version(status, path):
            self.replaced.add((host, path))
            del self.unread[host, path]
        elif status.st_atime_ns > NEVER_READ_NS:
            self.read.add((host, path))
            del self.unread[host, path]

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


def _keeps_access_times(folder: Path) -> bool:
    """Most Linux filesystems note at least the first access after a change; some are mounted to note none."""
    probe = folder / f"optml-{os.getpid()}.sagemaker-ignore"
    try:
        probe.write_bytes(b"x")
        os.utime(probe, ns=(NEVER_READ_NS, probe.stat().st_mtime_ns))
        probe.read_bytes()
        return probe.stat().st_atime_ns > NEVER_READ_NS
    except OSError:
        return False
    finally:
        probe.unlink(missing_ok=True)


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


def _as_before(
    known: Mapping[Key, tuple[Version, float]], key: Key, version: Version, now: float
) -> tuple[Version, float]:
    """Since when a file looks as it does."""
    before = known.get(key)
    return before if before is not None and before[0] == version else (version, now)


def stage_mirrored_folders(
    job: TrainingJob,
    host_dirs: Mapping[str, HostDir],
    *,
    clock: Clock,
    spool: Path | None = None,
    note: Callable[..., None] = nobody_hears,
) -> list[CheckpointMirror]:
    """Checkpoints come back before the start; TensorBoard and debugger folders only go out. Checkpoints' mirror is the first, and
    has the `note`."""
    if job.checkpoint is not None:
        folders = folders_of(host_dirs, job.checkpoint.local_path)
        for folder in folders.values():
            folder.mkdir(parents=True, exist_ok=True)
        restore(job.checkpoint.uri, list(folders.values()))
    return [
        CheckpointMirror(
            folders_of(host_dirs, mirrored.local_path),
            mirrored.uri,
            clock=clock,
            spool=spool,
            note=note if mirrored is job.checkpoint else nobody_hears,
        )
        for mirrored in mirrored_folders(job)
    ]


def mirrored_folders(job: TrainingJob) -> list[CheckpointConfig | UploadedFolder]:
    return [folder for folder in (job.checkpoint, job.tensorboard, job.debug_hook) if folder is not None]


def folders_of(host_dirs: Mapping[str, HostDir], container_path: str) -> dict[str, Path]:
    """Where a mirrored folder of the hosts lies on this machine, by host."""
    return {name: contract.inside(host_dir.ml, container_path) or host_dir.kept for name, host_dir in host_dirs.items()}


def _raise_unless_gone(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error


def _version(status: os.stat_result, source: str) -> Version:
    return Version(status.st_size, status.st_mtime_ns, status.st_ino, source)
