"""Keep /opt/ml/checkpoints and its object prefix the same: restored before the start, uploaded while the job runs.

All hosts share one prefix. A file goes out when it has settled (unchanged for one look), so that one in the middle of being
written is not published as whole. Objects that others add to the prefix are neither fetched nor removed.
"""

import contextlib
import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from optml import objects
from optml.clock import Clock
from optml.errors import OptmlError, PlatformError

# AWS's uploader puts markers beside each file, and its XGBoost writes temporary files by the third name: none is data.
IGNORED_SUFFIXES = (".sagemaker-uploading", ".sagemaker-uploaded", ".sagemaker-ignore")


class Version(NamedTuple):
    """A file's state: uploaded again when it differs."""

    size_bytes: int
    modified_ns: int
    inode: int


def restore(uri: str, folders: Sequence[Path]) -> int:
    """Copy what is under the URI to every host's folder; nothing there is no error. Gives the number of objects."""
    found = objects.list_if_any(uri)
    prefix = objects.join(uri, "")
    paths = {info.uri: info.uri.removeprefix(prefix) for info in found}
    objects.check_paths((path, uri) for uri, path in paths.items())
    for folder in folders:
        here = [(info, folder / paths[info.uri]) for info in found if info.path is not None]
        for info, target in here:
            assert info.path is not None
            objects.upload_file(info.path, f"file://{target}")
        objects.download([(info, folder / paths[info.uri]) for info in found if info.path is None])
    return len(found)


class CheckpointMirror:
    """Mirror hosts' folders to one prefix. `sync` now and then while the job runs, `final` when its programs have ended."""

    def __init__(self, folders: Mapping[str, Path], uri: str, *, clock: Clock):
        self.folders, self.uri, self.clock = dict(folders), uri, clock
        self._seen: dict[tuple[str, str], Version] = {}  # at the last look, by host and path
        self._uploaded: dict[tuple[str, str], Version] = {}
        self.error: OptmlError | None = None  # of the last look; a store that is away for a while delays, never loses
        for host in self.folders:  # what was restored is there already
            for path, version in self._files(host).items():
                self._seen[host, path] = self._uploaded[host, path] = version

    def sync(self) -> None:
        """One look: upload what has settled, remove what was deleted. Errors are kept for the next look."""
        try:
            self._look(settled_only=True)
            self.error = None
        except OptmlError as error:
            self.error = error

    def final(self) -> None:
        """Upload whatever differs. PlatformError if the store cannot take it."""
        try:
            self._look(settled_only=False)
        except OptmlError as error:
            raise PlatformError(f"checkpoints could not be saved: {error}") from error

    def _look(self, *, settled_only: bool) -> None:
        now = {(host, path): version for host in self.folders for path, version in self._files(host).items()}
        settled = {
            key: version
            for key, version in now.items()
            if self._uploaded.get(key) != version and (not settled_only or self._seen.get(key) == version)
        }
        self._seen = now
        for (host, path), version in settled.items():
            file = self.folders[host] / path
            try:
                objects.upload_file(file, objects.join(self.uri, path))
            except OptmlError:
                if not file.exists():  # deleted meanwhile: the next look knows
                    continue
                raise
            if (
                _version(file) == version or not settled_only
            ):  # else it changed while it was copied: again at the next look
                self._uploaded[host, path] = version
        paths_left = {path for _, path in now}
        for key in [key for key in self._uploaded if key not in now]:
            if key[1] not in paths_left:  # another host still has a file of this name
                objects.delete(objects.join(self.uri, key[1]))
            del self._uploaded[key]

    def _files(self, host: str) -> dict[str, Version]:
        """Plain files under a host's folder. Links are not followed: they could lead out of the host."""
        root = self.folders[host]
        found: dict[str, Version] = {}
        for parent, _names, names in os.walk(root):
            for name in names:
                file = Path(parent, name)
                if not name.endswith(IGNORED_SUFFIXES) and (version := _version(file)) is not None:
                    found[str(file.relative_to(root))] = version
        return found


def _version(file: Path) -> Version | None:
    with contextlib.suppress(OSError):
        status = file.lstat()
        if stat.S_ISREG(status.st_mode):
            return Version(status.st_size, status.st_mtime_ns, status.st_ino)
    return None
