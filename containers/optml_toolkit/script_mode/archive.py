"""Unpacking what may come from anywhere. Python's own filters are not in every 3.11, and take less care of names."""

import os
import stat
import tarfile
from pathlib import Path
from typing import Any


class UnsafeEntry(Exception):
    """An entry that would land outside its folder, is no file, or finds its place taken. `name`, and `reason` in words."""

    def __init__(self, name: str, reason: str):
        super().__init__(f"{name!r}: {reason}")
        self.name, self.reason = name, reason


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a tar file, plain or compressed, below a folder that is there. Files become the caller's.

    UnsafeEntry for what would lead outside, links included, and for what has no place; what came before it is unpacked.
    tarfile.TarError, EOFError, zlib.error, OSError for a file that is damaged or none.
    """
    how: dict[str, Any] = {"filter": "fully_trusted"} if hasattr(tarfile, "fully_trusted_filter") else {}
    with tarfile.open(archive) as tar:
        for member in tar:
            if (reason := why_unsafe(member, folder)) is not None:
                raise UnsafeEntry(member.name, reason)
            member.uid, member.gid, member.uname, member.gname = os.geteuid(), os.getegid(), "", ""
            member.mode = (stat.S_IMODE(member.mode) & 0o755) | (0o700 if member.isdir() else 0o600)
            tar.extract(member, folder, **how)


def why_unsafe(member: tarfile.TarInfo, folder: Path) -> str | None:
    """Asked when everything before the member is unpacked: a link among that may lead elsewhere than its name says."""
    root = os.path.realpath(folder)

    def leads_outside(*parts: str) -> bool:
        place = os.path.realpath(os.path.join(root, *parts))  # noqa: PTH118
        return place != root and not place.startswith(f"{root}/")

    if member.name.startswith("/"):
        return "an absolute name"
    if leads_outside(member.name):
        return "a name that leads outside"
    if (taken := no_place(member, root)) is not None:
        return taken
    if member.issym():
        if member.linkname.startswith("/"):
            return "a link to an absolute name"
        if leads_outside(os.path.dirname(member.name), member.linkname):  # noqa: PTH120
            return "a link that leads outside"
    elif member.islnk():
        if member.linkname.startswith("/") or leads_outside(member.linkname):
            return "a link that leads outside"
    elif not (member.isreg() or member.isdir()):
        return "a device or FIFO"
    return None


def no_place(member: tarfile.TarInfo, root: str) -> str | None:
    """A file and a folder of one name in one archive: no system can have both."""
    place = Path(root, member.name)
    for parent in place.parents:
        if str(parent) == root:
            break
        if os.path.lexists(parent) and not parent.is_dir():
            return f"it lies below {os.path.relpath(parent, root)!r}, which is a file in the same archive"
    if not member.isdir() and place.is_dir() and not place.is_symlink():
        return "a folder in the same archive has that name"
    return None
