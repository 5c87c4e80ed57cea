"""Unpacking what may come from anywhere. Python's own filters are not in every 3.11, and take less care of names."""

import os
import stat
import tarfile
from pathlib import Path
from typing import Any


class UnsafeEntry(Exception):
    """An entry that would land outside its folder, or is no file. `name`, and `reason` in words."""

    def __init__(self, name: str, reason: str):
        super().__init__(f"{name!r}: {reason}")
        self.name, self.reason = name, reason


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a tar file, plain or compressed, below a folder that is there. Files become the caller's.

    UnsafeEntry for what would lead outside, links included; what came before it is unpacked. tarfile.TarError, EOFError,
    zlib.error, OSError for a file that is damaged or none.
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
