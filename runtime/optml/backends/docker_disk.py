"""A folder of a container's that stands on a disk of its own, which can be full: as root, on the engine's own machine.

The disk is a filesystem in memory. It is mounted where the engine finds it only until the container has it too; then this process
holds it by a descriptor, and nothing of it is left on the machine when both are gone.
"""

import contextlib
import ctypes
import os
from pathlib import Path

from optml import contract
from optml.backends import keeper
from optml.errors import PlatformError, UserError
from optml.jobdir import HostDir

MNT_DETACH = 2
SYS_FSCONFIG, SYS_FSPICK = 431, 433  # everywhere, from Linux 5.2 on
FSPICK_EMPTY_PATH, FSCONFIG_SET_STRING, FSCONFIG_RECONFIGURE = 8, 1, 7


class Disk:
    """Mounted with what the host has at `target`; `handed_over` when the container runs, `close` at its end."""

    def __init__(self, host_dir: HostDir, target: str):
        self._folder, self._target = host_dir.disk, target
        source = contract.inside(host_dir.ml, target) or host_dir.kept
        try:
            self._page = keeper.make_disk(str(source), str(self._folder))
        except (keeper.SetupError, OSError) as error:
            raise PlatformError(f"a disk of its own cannot be mounted at {self._folder}: {error}") from error
        self._descriptor = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
        self._size_bytes = keeper.disk_bytes(self._descriptor)[0]

    def handed_over(self, pid: int) -> None:
        """The container whose first process is `pid` has it. UserError if it has something else there."""
        detach(self._folder)
        with contextlib.suppress(FileNotFoundError):  # it has ended already
            if Path(f"/proc/{pid}/root{self._target}").stat().st_dev != os.fstat(self._descriptor).st_dev:
                raise UserError(
                    "--how full-disk: the container engine does not see what this process mounts (one of them runs in a "
                    "container of its own?); use --backend process"
                )

    def shared(self) -> int:
        """Another descriptor of it, which is the caller's."""
        return os.dup(self._descriptor)

    def fill(self, *, full: bool) -> None:
        try:
            keeper.limit_disk(self._set_size, self._descriptor, None if full else self._size_bytes)
        except (keeper.SetupError, OSError) as error:
            raise PlatformError(f"the disk could not be {'filled' if full else 'freed'}: {error}") from error

    def _set_size(self, size_bytes: int) -> None:
        picked = keeper.libc.syscall(SYS_FSPICK, self._descriptor, b"", FSPICK_EMPTY_PATH)
        if picked < 0:
            raise keeper.SetupError(f"fspick: {os.strerror(ctypes.get_errno())}")
        try:
            text = str(size_bytes).encode()
            for words in ((FSCONFIG_SET_STRING, b"size", text, 0), (FSCONFIG_RECONFIGURE, None, None, 0)):
                keeper.call("fsconfig", keeper.libc.syscall, SYS_FSCONFIG, picked, *words)
        finally:
            os.close(picked)

    def close(self) -> None:
        detach(self._folder)
        for descriptor in (self._descriptor, self._page):
            with contextlib.suppress(OSError):
                os.close(descriptor)


def detach(folder: Path) -> None:
    """Take a disk that is still mounted there away."""
    if folder.is_mount():
        keeper.libc.umount2(os.fsencode(folder), MNT_DETACH)
