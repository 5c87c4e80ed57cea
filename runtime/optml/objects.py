"""What lies under file:// and s3:// URIs, and whether it can be used; `transfers` moves it.

Both list like S3: by prefix, sorted by key. URIs are kept verbatim (`file://` and the absolute path, nothing percent-encoded).
"""

import difflib
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from optml.errors import DataError
from optml.s3 import AccessRefused, client, s3_errors
from optml.spec import FileSystemSource

THREADS = 10
MAX_NAME_BYTES = 255  # of a file; a key of S3 may have 1,024 without a slash


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """An object. `key` has no bucket; for a file it is the absolute path without its first slash. `path` if it is here.

    `is_link`: a symbolic link, or under one: what the name leads to lies elsewhere.
    """

    uri: str
    key: str
    size_bytes: int
    path: Path | None = None
    is_link: bool = False


def split_uri(uri: str) -> tuple[str, str, str]:
    """`s3://bucket/key` -> (s3, bucket, key); `file:///a/b` -> (file, "", a/b)."""
    scheme, separator, rest = uri.partition("://")
    if not separator or scheme not in ("s3", "file"):
        raise DataError(f"{uri!r} is neither an s3:// nor a file:// URI")
    bucket, _, key = rest.partition("/")
    if scheme == "file" and bucket:
        raise DataError(f"{uri!r}: a file:// URI has three slashes before its absolute path")
    try:
        encoded = rest.encode(errors="strict" if scheme == "s3" else "surrogateescape")
    except UnicodeEncodeError:
        raise DataError(f"{uri!r} has characters that are no Unicode") from None
    if b"\0" in encoded:
        raise DataError(f"{uri!r} has a zero byte in it")
    return scheme, bucket, key


def local_path(uri: str) -> Path:
    return Path(uri.removeprefix("file://"))


def join(uri: str, *parts: str) -> str:
    scheme, _, rest = uri.partition("://")
    return "/".join([f"{scheme}://{rest.rstrip('/')}", *(part.strip("/") for part in parts)])


def relative_path(prefix_uri: str, key: str) -> str:
    """Where a key of an S3Prefix channel lies under the channel folder.

    A folder's name falls away with its slash; a partial name is completed (`data/train` + `data/train-1.csv` -> `train-1.csv`).
    """
    prefix = split_uri(prefix_uri)[2]
    rest = key[len(prefix) :]
    if prefix.endswith("/") or not prefix:
        return rest
    return rest[1:] if rest.startswith("/") else key[prefix.rfind("/") + 1 :]


def check_paths(placed: Iterable[tuple[str, str]]) -> None:
    """(path under a folder, URI) pairs: DataError for one that leads out of the folder, or two that want one place."""
    seen: dict[str, str] = {}
    folders: dict[str, str] = {}
    for path, uri in placed:
        parts = path.split("/")
        if not path or path.startswith("/") or "\0" in path or ".." in parts or "" in parts or "." in parts:
            raise DataError(f"{uri} cannot be a file: its path under the channel would be {path!r}")
        if 4 * len(path) > MAX_NAME_BYTES and any(len(_key_bytes(part)) > MAX_NAME_BYTES for part in parts):
            raise DataError(f"{uri} cannot be a file: a name in its path has more than {MAX_NAME_BYTES} bytes")
        if path in seen:
            raise DataError(f"{uri} and {seen[path]} would both be {path!r} in the channel")
        seen[path] = uri
        for depth in range(1, len(parts)):
            folders.setdefault("/".join(parts[:depth]), uri)
    for path in folders.keys() & seen.keys():
        raise DataError(
            f"{seen[path]} would be a file and {folders[path]} would need a folder of the same name {path!r}"
        )


def list_objects(uri: str) -> list[ObjectInfo]:
    """Every object whose URI begins with `uri`, sorted by the bytes of its key. DataError if there is none."""
    scheme, bucket, key = split_uri(uri)
    found = list(_list_s3(uri, bucket, key)) if scheme == "s3" else _list_files(uri)
    if not found:
        raise DataError(_nothing_there(uri, bucket) if scheme == "s3" else _nothing_here(uri))
    found.sort(key=lambda info: _key_bytes(info.key))
    return found


def _key_bytes(key: str) -> bytes:
    return key.encode(errors="surrogateescape")


def _nothing_there(uri: str, bucket: str) -> str:
    region = client().meta.region_name
    return (
        f'No S3 objects found under S3 URL "{uri}" given in input data source. Please ensure that the bucket exists in the '
        f"selected region ({region}), that objects exist under that S3 prefix, and that your credentials have "
        f'"s3:ListBucket" permissions on bucket "{bucket}".'
    )


def _nothing_here(uri: str) -> str:
    path = local_path(uri)
    text = f'No objects found under "{uri}" given in input data source'
    if path.is_dir():
        return f"{text}: the folder {path} has no files in it"
    parent = path.parent
    if not parent.is_dir():
        return f"{text}: there is no folder {parent}"
    near = difflib.get_close_matches(path.name, os.listdir(parent), n=3, cutoff=0.5)
    hint = f"; near names there: {', '.join(near)}" if near else ""
    return f"{text}: {parent} has nothing whose name begins with {path.name!r}{hint}"


@dataclass(frozen=True, slots=True)
class _Folder:
    """A folder to be listed. `above`: from the first link on, the folders that it is in, to notice a circle."""

    path: str
    is_link: bool = False
    above: tuple[tuple[int, int], ...] = ()


def _list_files(uri: str) -> list[ObjectInfo]:
    parent, _, begin = uri.removeprefix("file://").rpartition("/")
    found: list[ObjectInfo] = []
    to_read = [_Folder(parent or "/")] if Path(parent or "/").is_dir() else []
    while to_read:
        folder = to_read.pop()
        try:
            with os.scandir(folder.path) as entries:
                for entry in entries:
                    if entry.name.startswith(begin):
                        _note(entry, folder, found, to_read)
        except OSError as error:
            raise DataError(f"cannot list {folder.path}: {error.strerror}; see that you may read it") from error
        begin = ""  # which only the first folder's entries must match
    return found


def _note(entry: "os.DirEntry[str]", folder: _Folder, found: list[ObjectInfo], to_read: list[_Folder]) -> None:
    is_link = folder.is_link or entry.is_symlink()
    try:
        if entry.is_dir():
            to_read.append(_linked_folder(entry, folder) if is_link else _Folder(entry.path))
            return
        status = entry.stat()
    except OSError as error:
        if entry.is_symlink():
            raise DataError(
                f"cannot read {entry.path}: a symbolic link to nothing ({Path(entry.path).readlink()}); remove or mend it"
            ) from error
        raise DataError(f"cannot read {entry.path}: {error.strerror}") from error
    if not stat.S_ISREG(status.st_mode):
        raise DataError(f"{entry.path} is no plain file: a channel takes files only")
    found.append(ObjectInfo(f"file://{entry.path}", entry.path[1:], status.st_size, Path(entry.path), is_link))


def _linked_folder(entry: "os.DirEntry[str]", folder: _Folder) -> _Folder:
    above = folder.above
    if not above:
        parents = [parent.stat() for parent in Path(entry.path).parents]
        above = tuple((parent.st_dev, parent.st_ino) for parent in parents)
    here = entry.stat()
    identity = (here.st_dev, here.st_ino)
    if identity in above:
        raise DataError(f"{entry.path} leads back to a folder that it is in: remove the symbolic link")
    return _Folder(entry.path, is_link=True, above=(*above, identity))


def _list_s3(uri: str, bucket: str, prefix: str) -> Iterator[ObjectInfo]:
    with s3_errors(uri):
        for page in client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
            for entry in page.get("Contents", ()):
                if not entry["Key"].endswith("/"):  # folder markers
                    yield ObjectInfo(f"s3://{bucket}/{entry['Key']}", entry["Key"], entry["Size"])


def stat_object(uri: str) -> ObjectInfo:
    """One object by its URI. DataError if it is not there."""
    scheme, bucket, key = split_uri(uri)
    if scheme == "s3":
        with s3_errors(uri):
            return ObjectInfo(uri, key, client().head_object(Bucket=bucket, Key=key)["ContentLength"])
    path = local_path(uri)
    size_bytes = size_of_file(path)
    return ObjectInfo(uri, key, size_bytes, path, path.resolve() != path.absolute())


def size_of_file(path: Path) -> int:
    try:
        status = path.stat()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    if not stat.S_ISREG(status.st_mode):
        raise DataError(f"{path} is no plain file: a channel takes files only")
    return status.st_size


def stat_objects(uris: Sequence[str]) -> list[ObjectInfo]:
    """The same for many, side by side where they are far away."""
    if not any(uri.startswith("s3://") for uri in uris):
        return [stat_object(uri) for uri in uris]
    client()
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(stat_object, uris))


def check_source(uri: str) -> None:
    """DataError if nothing can be under a local URI; whether there is something under an s3:// one takes a listing."""
    if uri.startswith("s3://"):
        return
    path = local_path(uri)
    try:
        there = path.is_dir() if uri.endswith("/") else any(n.startswith(path.name) for n in os.listdir(path.parent))
    except OSError:
        there = False
    if not there:
        raise DataError(_nothing_here(uri))


def check_file(uri: str) -> None:
    """DataError if a local URI is of no file: a manifest is one, and not whatever begins with its name."""
    if not uri.startswith("s3://") and not local_path(uri).is_file():
        raise DataError(f"{uri} is no file: a manifest is named whole")


def check_file_system(channel_name: str, source: FileSystemSource) -> None:
    """DataError if the folder that stands for an EFS or FSx file system is not there."""
    if not source.directory.is_dir():
        raise DataError(
            f"channel {channel_name!r}: FileSystemDataSource.DirectoryPath {source.directory} is not a folder of this machine; "
            "mount the file system there, or give the folder where it is mounted"
        )


def check_destination(uri: str) -> None:
    """DataError if nothing can be put under a URI: found out now, and not after hours of training.

    Makes nothing: of a local path, the nearest folder that exists must be writable; of a bucket, a listing must be answered
    (that access is denied says nothing about writing).
    """
    scheme, bucket, key = split_uri(uri)
    if scheme == "s3":
        try:
            with s3_errors(uri):
                client().list_objects_v2(Bucket=bucket, Prefix=key, MaxKeys=1)
        except AccessRefused:
            pass
        return
    folder = local_path(uri)
    while not os.path.lexists(folder):
        folder = folder.parent
    if not folder.is_dir():
        raise DataError(f"{folder} is in the way: it is no folder, so nothing can be put under {uri}")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise DataError(f"nothing can be put under {uri}: {folder} is not writable for you")


def list_if_any(uri: str) -> list[ObjectInfo]:
    """Objects under a folder URI; none is no error, nor is a folder that is not there yet. A bucket must be there."""
    scheme, bucket, key = split_uri(join(uri, ""))
    if scheme == "file":
        return _list_files(join(uri, ""))
    return sorted(_list_s3(uri, bucket, key), key=lambda info: _key_bytes(info.key))
