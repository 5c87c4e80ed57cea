"""Whose a host's files are: a container may read and write them, whoever it runs as, and in the end they are the caller's."""

import contextlib
import itertools
import os
import stat
import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optml.backends import Launch, Mount
from optml.backends.docker_errors import not_there
from optml.backends.docker_leftovers import labels, remove_container
from optml.engine import is_rootless
from optml.jobdir import HostDir

if TYPE_CHECKING:
    import docker


def user_of(launch: Launch, info: Mapping[str, Any]) -> str | None:
    """Our own images run as whoever calls, so that what they write is the caller's; with a rootless engine root is the caller."""
    if not launch.as_caller or os.getuid() == 0 or is_rootless(info):
        return None
    return f"{os.getuid()}:{os.getgid()}"


def is_root(user: str | None) -> bool:
    return (user or "").partition(":")[0] in ("", "root", "0")


def let_others_write(host_dir: HostDir, mounts: tuple[Mount, ...]) -> None:
    """A container that is not root must be able to write into /opt/ml, whose folders are the caller's, and to read and write its
    files, whatever the caller's umask. Nobody else can enter."""
    host_dir.root.chmod(0o700)
    folders = [host_dir.ml, host_dir.kept, *(mount.layer / "upper" for mount in mounts if mount.layer is not None)]
    for folder in folders:
        for parent, _names, files in os.walk(folder):
            if not Path(parent).is_symlink():
                Path(parent).chmod(0o777)
            for file in (Path(parent, name) for name in files):
                mode = file.lstat().st_mode
                if stat.S_ISREG(mode) or stat.S_ISFIFO(mode):
                    file.chmod(stat.S_IMODE(mode) | (mode & stat.S_IRWXU) >> 3 | (mode & stat.S_IRWXU) >> 6)


def kept_out(launch: Launch, user: str) -> str:
    """If a container's user is nobody's: which data of the caller's it may not read, and what to do; else ""."""
    if is_root(user) or launch.as_caller:
        return ""
    for mount in launch.mounts:
        with contextlib.suppress(OSError):
            for path in (mount.source, *itertools.islice(mount.source.iterdir(), 100)):
                needed = 0o5 if path.is_dir() else 0o4
                if path.stat().st_mode & needed != needed:
                    return (
                        f"it ran as user {user} of its image, who may not read all of {mount.target}, for others may not read "
                        f"{path}: chmod -R o+rX it, or let the image run as root"
                    )
    return ""


def hand_over(client: "docker.DockerClient", host_dir: HostDir, image: str | None) -> None:
    """Give the caller what containers of other users left in a host's folder, so that it can be read, and deleted.

    Only the engine may do that. It needs no program for it: it unpacks an archive into a container that never runs, and folders
    in the archive give their owner to those that are there. A file in a folder of one's own can be deleted, and is
    readable as a rule; one that is not is taken out and put back.
    """
    if os.geteuid() == 0 or image is None or not host_dir.root.exists():
        return
    done: set[Path] = set()
    with (
        not_there(),
        contextlib.suppress(tarfile.TarError),
    ):  # an archive that breaks off: the engine has gone meanwhile
        while True:
            folders, files = _of_others(host_dir.root)
            new = [path for path in (*folders, *files) if path not in done]
            if not new:
                return
            done.update(new)
            fresh = set(new)
            _take(
                client,
                host_dir.root,
                image,
                folders=[folder for folder in folders if folder in fresh],
                files=[file for file in files if file in fresh],
            )


def _of_others(root: Path) -> tuple[list[Path], list[Path]]:
    """Folders that belong to somebody else, as deep as one may look; and files that one may not read."""
    folders: list[Path] = []
    files: list[Path] = []
    to_read = [root]
    while to_read:
        folder = to_read.pop()
        with contextlib.suppress(OSError), os.scandir(folder) as entries:
            for entry in entries:
                status = entry.stat(follow_symlinks=False)
                path = Path(entry.path)
                if stat.S_ISDIR(status.st_mode):
                    to_read.append(path)
                    if status.st_uid != os.geteuid():
                        folders.append(path)
                elif stat.S_ISREG(status.st_mode) and not os.access(path, os.R_OK) and status.st_uid != os.geteuid():
                    files.append(path)
    return folders, files


def _take(client: "docker.DockerClient", root: Path, image: str, *, folders: list[Path], files: list[Path]) -> None:
    from docker.types import Mount as EngineMount

    place = "/optml-host"
    rootless = any("rootless" in option for option in client.info().get("SecurityOptions") or ())
    uid, gid = (0, 0) if rootless else (os.geteuid(), os.getegid())
    helper = client.api.create_container(
        image,
        entrypoint=["/never"],
        labels=labels(root),
        host_config=client.api.create_host_config(
            mounts=[EngineMount(place, str(root), type="bind")], network_mode="none"
        ),
    )["Id"]
    try:
        with tempfile.TemporaryFile() as spool:
            with tarfile.TarFile(fileobj=spool, mode="w", format=tarfile.PAX_FORMAT) as tar:
                for folder in folders:
                    info = tarfile.TarInfo(str(folder.relative_to(root)))
                    info.type, info.uid, info.gid = tarfile.DIRTYPE, uid, gid
                    status = folder.lstat()
                    info.mode, info.mtime = stat.S_IMODE(status.st_mode) | stat.S_IRWXU, int(status.st_mtime)
                    tar.addfile(info)
                for file in files:
                    name = str(file.relative_to(root))
                    _copy_owned(client, helper, f"{place}/{name}", tar, name=name, uid=uid, gid=gid)
            spool.seek(0)
            client.api.put_archive(helper, place, spool)
    finally:
        remove_container(client, helper)


def _copy_owned(
    client: "docker.DockerClient", helper: str, path: str, tar: tarfile.TarFile, *, name: str, uid: int, gid: int
) -> None:
    stream, _status = client.api.get_archive(helper, path)
    with tempfile.TemporaryFile() as spool:
        for part in stream:
            spool.write(part)
        spool.seek(0)
        with tarfile.TarFile(fileobj=spool) as taken:
            info = taken.next()
            if info is None or not info.isreg():
                return
            info.name, info.uid, info.gid, info.uname, info.gname = name, uid, gid, "", ""
            info.mode |= stat.S_IRUSR | stat.S_IWUSR
            tar.addfile(info, taken.extractfile(info))
