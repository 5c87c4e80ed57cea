"""Channels, code and checkpoints -> a host's /opt/ml, in File and FastFile mode. Pipe mode is pipes.py.

Local data is never copied unless it must be: a host sees the caller's own folder through a view (an overlay mount), in which
its writes go elsewhere and what the channel leaves out is hidden. Where views can't be had, or a few bytes are quicker copied
than a big folder hidden, files are cloned (reflink) or copied. Never hard links: a host could write through one.
"""

import contextlib
import fcntl
import os
import re
import secrets
import shutil
import stat
import tarfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath

from optml import contract, objects, transfers
from optml.archives import UnsafeEntry, unpack
from optml.backends import Capabilities, Mount
from optml.distribute import share_of_host
from optml.errors import DataError, storage_errors
from optml.jobdir import HostDir, JobDir
from optml.manifests import read_manifest
from optml.objects import ObjectInfo, check_file_system
from optml.script_mode import SUBMIT_DIRECTORY, local_source
from optml.spec import (
    OPT_ML,
    Channel,
    DataType,
    Distribution,
    FileSystemSource,
    InputMode,
    ManifestPaths,
    ObjectSource,
    TrainingJob,
)

CODE_LAYER = "code:"  # no channel can be called so
FICLONE = 0x40049409  # ioctl of Linux: share the blocks of another file, copy on write
COPY_BYTES_PER_SECOND = 1e9  # to compare with hiding: what a copy costs here, roughly
HIDE_SECONDS = 50e-6  # and what hiding one entry costs
MAX_HIDDEN = 20_000

Progress = Callable[[str, int, int | None], None]


@dataclass(frozen=True, kw_only=True)
class Listing:
    """The objects of a channel, before they are shared out. `paths` has where each lies under the channel folder."""

    channel: Channel
    source: ObjectSource
    objects: tuple[ObjectInfo, ...]
    paths: Mapping[str, str]  # by URI
    fetched_to: Path | None = None  # the folder of this machine where all lie at their paths, if they came from afar

    @property
    def size_bytes(self) -> int:
        return sum(info.size_bytes for info in self.objects)


@dataclass(frozen=True, kw_only=True)
class Base:
    """A folder of this machine of which a channel shows all or part, at `at` under the channel folder."""

    folder: Path
    at: str  # "" for the channel folder itself
    whole: bool  # the channel has everything that is in the folder


def list_channel(channel: Channel, *, manifest_paths: ManifestPaths) -> Listing:
    """Find a channel's objects. DataError if there is nothing, or two of them want the same place."""
    source = channel.source
    assert isinstance(source, ObjectSource)
    if source.data_type is DataType.MANIFEST_FILE:
        found = read_manifest(source.uri)
        prefix = found.prefix_uri
        infos = list(found.objects)
        paths = {
            info.uri: info.key if manifest_paths is ManifestPaths.KEY else _below(prefix, info.uri) for info in infos
        }
    else:
        infos = objects.list_objects(source.uri)
        if channel.input_mode is InputMode.FAST_FILE:
            _check_whole_folder(channel, source.uri, infos)
        paths = {info.uri: objects.relative_path(source.uri, info.key) for info in infos}
    objects.check_paths((paths[info.uri], info.uri) for info in infos)
    return Listing(channel=channel, source=source, objects=tuple(infos), paths=paths)


def _below(prefix_uri: str, uri: str) -> str:
    return uri.removeprefix(prefix_uri).lstrip("/")


def _check_whole_folder(channel: Channel, uri: str, infos: Sequence[ObjectInfo]) -> None:
    """FastFile mounts a folder: AWS takes a full folder name, with or without its slash, and no partial one."""
    folder = uri.rstrip("/") + "/"
    strangers = [info.uri for info in infos if not info.uri.startswith(folder)]
    if strangers:
        what = "one object" if strangers == [uri] else f"a partial name (it also matches {strangers[0]})"
        raise DataError(
            f"channel {channel.name!r}: FastFile needs a whole folder, and {uri} is {what}; "
            f"give the folder, ending in a slash, or use InputMode File"
        )


def stage(
    job: TrainingJob,
    job_dir: JobDir,
    *,
    attempt: int,
    capabilities: Capabilities,
    interface: str,
    listings: Mapping[str, Listing],
    slot: int = 0,
    keep_downloads: bool = True,
    progress: Progress = lambda _step, _done, _total: None,
) -> dict[str, tuple[Mount, ...]]:
    """Make each host's /opt/ml of this attempt, all but its pipes. Gives the mounts that the backend must add, by host.

    Without `keep_downloads`, there is no other attempt that needs what was downloaded: it becomes the last host's copy.
    """
    with storage_errors(f"cannot make the hosts' disks in {job_dir.attempts}"):
        mounts: dict[str, list[Mount]] = {host.name: [] for host in job.hosts}
        secret = secrets.token_hex(32) if len(job.hosts) > 1 else None
        for host in job.hosts:
            ml = job_dir.host(attempt, host.name).ml
            contract.write_tree(ml, job, host, interface=interface, secret=secret, slot=slot)
        for host in job.hosts:
            mounts[host.name] += show_code(job, job_dir.host(attempt, host.name), capabilities)
        for channel in job.channels:
            if isinstance(channel.source, FileSystemSource):
                for host in job.hosts:
                    mount = _mount_file_system(channel, channel.source, job_dir.host(attempt, host.name), capabilities)
                    mounts[host.name] += mount
                continue
            listing = listings[channel.name]
            hosts = job.hosts_of(channel)
            for host in hosts:
                _write_channel_manifest(job_dir.host(attempt, host.name), listing)
            if channel.input_mode is InputMode.PIPE:
                continue
            local = _fetch(listing, job_dir, progress=progress)
            for index, host in enumerate(hosts):
                share = share_of_host(channel, local.objects, host_index=index, host_count=len(hosts))
                host_dir = job_dir.host(attempt, host.name)
                # Of shards every host is the last, and the only one, that has them.
                is_last = index == len(hosts) - 1 or listing.source.distribution is Distribution.SHARDED_BY_KEY
                take = is_last and local.fetched_to is not None and not keep_downloads
                mounts[host.name] += _show(local, share, host_dir, capabilities, take=take, progress=progress)
        return {host: tuple(listed) for host, listed in mounts.items()}


def show_code(job: TrainingJob, host_dir: HostDir, capabilities: Capabilities) -> list[Mount]:
    """A script's code that lies on this machine, at /opt/ml/code, where optml's toolkit and AWS's take what is there.

    A folder is shown as a view, or copied; a tarball is unpacked; a single file is copied. The host may write to all of it.
    """
    source = local_source(job.hyperparameters)
    if source is None:
        return []
    folder = contract.code_dir(host_dir.ml)
    folder.mkdir(parents=True)
    if source.is_file():
        if tarfile.is_tarfile(source):
            _unpack(source, folder)
        else:
            _copy(source, folder / source.name)
        return []
    if not source.is_dir():
        raise DataError(f"HyperParameters.{SUBMIT_DIRECTORY}: {source} is not there any more")
    if capabilities.own_opt_ml and capabilities.views and not _mounted_below(source):
        layer = host_dir.layers / CODE_LAYER
        (layer / "upper").mkdir(parents=True)
        (layer / "work").mkdir()
        return [Mount(source=source, target=f"{OPT_ML}/{contract.CODE}", layer=layer)]
    _copy_tree(source, folder, what=f"HyperParameters.{SUBMIT_DIRECTORY}")
    return []


def _copy_tree(source: Path, folder: Path, *, what: str) -> None:
    """A folder of somebody's, links and all. A link within it stays one, so that a loop is no more than it was; what a link
    leads to outside is copied. Sockets, FIFOs, devices and links to nothing are left out. DataError, beginning with `what`.
    """
    root, own = source.resolve(), folder.resolve()

    def copy(here: Path, target: Path, above: tuple[Path, ...]) -> None:
        real = here.resolve()
        if real in above:
            raise DataError(f"{what}: links lead in a circle that leaves {source}: {here} is {real} again; remove one")
        target.mkdir(parents=True, exist_ok=True)
        for entry in here.iterdir():
            leads_to = entry.resolve()
            if leads_to == own:
                continue
            if (
                entry.is_symlink()
                and entry.exists()
                and root in (*real.parents, real)
                and root in (leads_to, *leads_to.parents)
            ):
                (target / entry.name).symlink_to(os.path.relpath(leads_to, real))
            elif entry.is_dir():
                copy(entry, target / entry.name, (*above, real))
            elif entry.is_file():
                shutil.copy2(entry, target / entry.name)

    try:
        copy(source, folder, ())
    except OSError as error:
        raise DataError(f"{what}: cannot copy {error.filename}: {error.strerror}") from error


def _unpack(archive: Path, folder: Path) -> None:
    try:
        unpack(archive, folder)
    except UnsafeEntry as error:
        raise DataError(
            f"HyperParameters.{SUBMIT_DIRECTORY}: {archive} has the entry {error.name!r}, which cannot be unpacked "
            f"({error.reason}): pack it again, with relative names: tar -czf sourcedir.tar.gz -C src ."
        ) from error
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise DataError(f"HyperParameters.{SUBMIT_DIRECTORY}: {archive} cannot be unpacked: {error}") from error


def _write_channel_manifest(host_dir: HostDir, listing: Listing) -> None:
    uri = listing.source.uri
    _scheme, _, rest = uri.partition("://")
    key_prefix = rest.partition("/")[2]
    text = contract.manifest_text(key_prefix, [info.uri for info in listing.objects])
    file = contract.channel_manifest_file(host_dir.ml, listing.channel.name)
    file.write_bytes(text.encode(errors="surrogateescape"))  # a file's name may be any bytes


def _fetch(listing: Listing, job_dir: JobDir, *, progress: Progress) -> Listing:
    """The same listing with every object on this machine. Objects from afar are fetched once for all hosts and attempts."""
    wanted = [info for info in listing.objects if info.path is None]
    if not wanted:
        return listing
    folder = job_dir.downloads / listing.channel.name
    folder.mkdir(parents=True, exist_ok=True)
    targets = {info.uri: folder / listing.paths[info.uri] for info in wanted}
    missing = [
        (info, targets[info.uri])
        for info in wanted
        if not (targets[info.uri].is_file() and targets[info.uri].stat().st_size == info.size_bytes)
    ]
    total = sum(info.size_bytes for info, _ in missing)
    free = shutil.disk_usage(folder).free
    if total > free:
        raise DataError(
            f"channel {listing.channel.name!r} has {total:,} bytes to download and {folder} has {free:,} free: "
            "make room, take a bigger disk (OPTML_HOME, or --to of optml stage), or use Pipe mode, which needs none"
        )
    transfers.download(
        missing, progress=transfers.counter(partial(progress, f"Downloading {listing.channel.name}"), total)
    )
    fetched = tuple(
        info if info.path is not None else replace(info, path=targets[info.uri], is_link=False)
        for info in listing.objects
    )
    return replace(listing, objects=fetched, fetched_to=folder)


def _base_of(listing: Listing, share: Sequence[ObjectInfo], host_dir: HostDir) -> Base | None:
    """The folder that a view would show; None if a view can't be had, as each object must lie there at its own place."""
    base = _nearest_folder(listing, share)
    begin = f"{base.folder}/".replace("//", "/")
    skip = len(base.at) + 1 if base.at else 0
    if any(str(info.path) != begin + listing.paths[info.uri][skip:] for info in share):
        return None
    if host_dir.root.resolve().is_relative_to(base.folder.resolve()):
        return None  # an overlay can't have its own layers below it
    return base


def _nearest_folder(listing: Listing, share: Sequence[ObjectInfo]) -> Base:
    whole = len(share) == len(listing.objects)
    if listing.fetched_to is not None:
        return Base(folder=listing.fetched_to, at="", whole=whole)
    if listing.source.data_type is DataType.MANIFEST_FILE:
        first = share[0]
        assert first.path is not None
        folder = Path(os.path.commonpath([str(info.path.parent) for info in share if info.path is not None]))
        depth = len(first.path.relative_to(folder).parts)
        return Base(folder=folder, at="/".join(PurePosixPath(listing.paths[first.uri]).parts[:-depth]), whole=False)
    prefix = listing.source.uri.removeprefix("file://")
    if all(info.uri.startswith(listing.source.uri.rstrip("/") + "/") for info in listing.objects):
        return Base(folder=Path(prefix), at="", whole=whole)
    return Base(folder=Path(prefix).parent, at="", whole=False)


def _show(
    listing: Listing,
    share: Sequence[ObjectInfo],
    host_dir: HostDir,
    capabilities: Capabilities,
    *,
    take: bool,
    progress: Progress,
) -> list[Mount]:
    """Let a host see its share of a channel: by a mount if that is possible and cheap, else by copies; `take` moves."""
    channel = listing.channel
    folder = contract.channel_dir(host_dir.ml, channel.name)
    folder.mkdir(parents=True, exist_ok=True)
    read_only = channel.input_mode is InputMode.FAST_FILE
    if not share:
        return []
    size_bytes = sum(info.size_bytes for info in share)
    base = _base_of(listing, share, host_dir) if capabilities.own_opt_ml else None
    if base is not None:
        mounted = _mounted_below(base.folder)
        # A link would lead the host to the caller's own file, and what is mounted in the folder is not seen through a view.
        apart = [info for info in share if info.is_link or (mounted and str(info.path).startswith(mounted))]
        is_plain = read_only and base.whole and not apart
        hidden = None
        if is_plain or capabilities.views:
            hidden = () if base.whole else _hidden(base, share, mounted, size_bytes=size_bytes)
        if hidden is not None:
            (folder / base.at).mkdir(parents=True, exist_ok=True)
            target = f"{OPT_ML}/{contract.DATA}/{channel.name}" + (f"/{base.at}" if base.at else "")
            if is_plain:
                return [Mount(source=base.folder, target=target, read_only=True)]
            layer = host_dir.layers / channel.name
            (layer / "upper").mkdir(parents=True)
            (layer / "work").mkdir()
            if _white_out(base.folder, hidden, layer / "upper"):
                for info in apart:
                    assert info.path is not None
                    path = info.path.relative_to(base.folder)
                    _make_like(base.folder, PurePosixPath(path.parent), layer / "upper")
                    _copy(info.path, layer / "upper" / path)
                return [Mount(source=base.folder, target=target, read_only=read_only, layer=layer)]
            shutil.rmtree(layer)
    done = 0
    for info in share:
        assert info.path is not None
        (_take if take else _copy)(info.path, folder / listing.paths[info.uri])
        done += info.size_bytes
        progress(f"Copying {channel.name}", done, size_bytes)
    if read_only:
        return _made_read_only(folder, f"{OPT_ML}/{contract.DATA}/{channel.name}", capabilities)
    return []


def _white_out(folder: Path, names: Sequence[str], upper: Path) -> bool:
    """Put into a view's upper layer what overlay takes for `this is not here`; False where one may not (Linux before 5.8).

    A hidden folder costs as little as a hidden file, and nothing of the caller's is opened, whatever becomes of it meanwhile.
    """
    try:
        for name in names:
            path = PurePosixPath(name)
            _make_like(folder, path.parent, upper)
            os.mknod(upper / path, stat.S_IFCHR, device=0)
    except PermissionError:
        return False
    return True


def _make_like(folder: Path, path: PurePosixPath, upper: Path) -> None:
    """A folder of a view's upper layer, which lends its permissions to what is seen: the same as in the caller's."""
    for part in (*reversed(path.parents), path):
        made = upper / part
        if not made.exists():
            made.mkdir()
            with contextlib.suppress(OSError):
                made.chmod(stat.S_IMODE((folder / part).stat().st_mode) | stat.S_IRWXU)


def _mounted_below(folder: Path) -> tuple[str, ...]:
    """Folders in a folder where other filesystems are mounted, each with a slash."""
    try:
        lines = Path("/proc/self/mountinfo").read_bytes().splitlines()
    except OSError:  # macOS: there are no views there
        return ()
    real = folder.resolve()
    points = (
        Path(re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), os.fsdecode(line.split()[4]))) for line in lines
    )
    return tuple(f"{folder / point.relative_to(real)}/" for point in points if real in point.parents)


def _hidden(
    base: Base, shown: Sequence[ObjectInfo], mounted: tuple[str, ...], *, size_bytes: int
) -> tuple[str, ...] | None:
    """What a view of the folder must hide to show just these files; None if copying them is cheaper."""
    most = min(MAX_HIDDEN, max(50, round(size_bytes / COPY_BYTES_PER_SECOND / HIDE_SECONDS)))
    root = str(base.folder)
    files = {str(info.path) for info in shown}
    folders = {root}
    for file in files:
        parent = os.path.dirname(file)  # noqa: PTH120  (a hundred thousand Paths would be slow)
        while parent not in folders:
            folders.add(parent)
            parent = os.path.dirname(parent)  # noqa: PTH120
    hidden: list[str] = []
    to_read = [root]
    while to_read:
        folder = to_read.pop()
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.path in folders:
                    if not entry.is_symlink() and f"{entry.path}/" not in mounted:  # in whose place are copies
                        to_read.append(entry.path)
                elif entry.path not in files:
                    hidden.append(os.path.relpath(entry.path, root))
                    if len(hidden) > most:
                        return None
    return tuple(sorted(hidden))


def _made_read_only(folder: Path, target: str, capabilities: Capabilities) -> list[Mount]:
    """FastFile of copies: mounted read-only where hosts have mounts; else without write permission, which root overrides."""
    if capabilities.own_opt_ml:
        return [Mount(source=folder, target=target, read_only=True)]
    for parent, _names, files in os.walk(folder, topdown=False):
        for name in files:
            Path(parent, name).chmod(0o444)
        Path(parent).chmod(0o555)
    return []


def _mount_file_system(
    channel: Channel, source: FileSystemSource, host_dir: HostDir, capabilities: Capabilities
) -> list[Mount]:
    """An EFS or FSx folder is shared between hosts and jobs, and written in place: that is what it is for."""
    check_file_system(channel.name, source)
    folder = contract.channel_dir(host_dir.ml, channel.name)
    if capabilities.own_opt_ml:
        folder.mkdir(parents=True)
        target = f"{OPT_ML}/{contract.DATA}/{channel.name}"
        return [Mount(source=source.directory, target=target, read_only=source.read_only)]
    if source.read_only:
        _copy_tree(source.directory, folder, what=f"channel {channel.name!r}")
        return _made_read_only(folder, "", capabilities)
    folder.symlink_to(source.directory, target_is_directory=True)
    return []


def _take(source: Path, target: Path) -> None:
    with storage_errors(f"cannot move {source} to {target}"):
        target.parent.mkdir(parents=True, exist_ok=True)
        source.replace(target)


def _copy(source: Path, target: Path) -> None:
    """Clone a file where the filesystem can, else copy it. The copy is the host's own: it may write to it."""
    try:
        reader = source.open("rb")
    except OSError as error:
        raise DataError(f"cannot read {source}: {error.strerror}; see that you may read it") from error
    with reader, storage_errors(f"cannot copy {source} to {target}"):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with target.open("wb") as writer:
                try:
                    fcntl.ioctl(writer, FICLONE, reader.fileno())
                except OSError:
                    shutil.copyfileobj(reader, writer, length=1 << 20)
            mode = stat.S_IMODE(os.fstat(reader.fileno()).st_mode)
            target.chmod(mode | stat.S_IRUSR | stat.S_IWUSR)
        except OSError:
            target.unlink(missing_ok=True)
            raise
