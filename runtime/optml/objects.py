"""file:// and s3:// behind one set of functions: list, read, download, upload, delete.

Both list like S3: by prefix, sorted by key. URIs are kept verbatim (`file://` and the absolute path, nothing percent-encoded).
boto3 is imported when the first s3:// URI is used.
"""

import contextlib
import difflib
import errno
import os
import secrets
import shutil
import stat
import threading
import urllib.parse
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from optml.errors import DataError, OptmlError, PlatformError
from optml.spec import FileSystemSource

CHUNK_BYTES = 1 << 20
PART_BYTES = 32 << 20  # bigger objects are fetched in parts side by side
MANY_PARTS_BYTES = 2 * PART_BYTES
THREADS = 10
READ_ATTEMPTS = 4  # of one piece, when the connection breaks
PARTIAL = ".optml-partial"
MAX_NAME_BYTES = 255  # of a file; a key of S3 may have 1,024 without a slash

Count = Callable[[int], None]


class AccessRefused(DataError):
    """S3 knows the caller and says no, or does not know the caller."""


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
    size_bytes = _size_of_file(path)
    return ObjectInfo(uri, key, size_bytes, path, path.resolve() != path.absolute())


def _size_of_file(path: Path) -> int:
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


def read_bytes(uri: str) -> bytes:
    with open_stream(uri) as stream:
        try:
            return stream.read()
        except OSError as error:
            raise DataError(f"cannot read {uri}: {error.strerror}") from error


def open_stream(uri: str) -> BinaryIO:
    """Read an object from its first byte; memory stays small. A broken S3 connection is taken up where it broke."""
    if split_uri(uri)[0] == "s3":
        return cast("BinaryIO", _S3Stream(uri))
    path = local_path(uri)
    _size_of_file(path)  # opening a FIFO would wait for ever
    try:
        return path.open("rb", buffering=0)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}; see that you may read it") from error


class _S3Stream:
    """An object, or its bytes from `start` to `end`: what `gzip` and the pipes need of a file (read, close, context).

    Whatever breaks, all bytes are of one version of the object: that of `etag`, or the one that the first request found.
    """

    def __init__(self, uri: str, *, start: int = 0, end: int | None = None, etag: str = ""):
        self._uri, self._position, self._end, self._etag = uri, start, end, etag
        self._open()

    def _open(self) -> None:
        _, bucket, key = split_uri(self._uri)
        more: dict[str, Any] = {"IfMatch": self._etag} if self._etag else {}
        if self._end is not None:
            more["Range"] = f"bytes={self._position}-{self._end - 1}"
        with s3_errors(self._uri):
            response = client().get_object(Bucket=bucket, Key=key, **more)
        self._body = response["Body"]
        self._etag = response.get("ETag", "")
        if self._end is None:
            self._end = response["ContentLength"]
        elif response["ContentLength"] != self._end - self._position:
            self.close()
            raise PlatformError(f"{self._uri}: {client().meta.endpoint_url} sent other bytes than it was asked for")

    def read(self, size: int = -1) -> bytes:
        from botocore.exceptions import BotoCoreError
        from urllib3.exceptions import HTTPError

        assert self._end is not None
        if size < 0:
            return b"".join(iter(lambda: self.read(CHUNK_BYTES), b""))
        if self._position >= self._end or size == 0:
            return b""
        broken: Exception | None = None
        for attempt in range(READ_ATTEMPTS):
            if attempt:
                self.close()
                self._open()
            try:
                part: bytes = self._body.read(size)
            except (BotoCoreError, HTTPError, OSError) as error:
                broken = error
                continue
            if part:
                self._position += len(part)
                return part
        raise PlatformError(
            f"reading {self._uri} broke off at byte {self._position:,} of {self._end:,}, {READ_ATTEMPTS} times: "
            f"{broken or 'nothing more came'}"
        ) from broken

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._body.close()

    def __enter__(self) -> "_S3Stream":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def download(pairs: Sequence[tuple[ObjectInfo, Path]], *, progress: Count = lambda _bytes: None) -> None:
    """Bring S3 objects to files, side by side. A file appears when it is whole; after an error nothing half-written is left.

    `progress` is told of bytes as they come, by one thread at a time; an exception that it raises ends the download.
    """
    if not pairs:
        return
    for folder in {target.parent for _, target in pairs}:
        with storage_errors(f"cannot make {folder}"):
            folder.mkdir(parents=True, exist_ok=True)
    client()
    broken = threading.Event()
    one_at_a_time = threading.Lock()
    refused: list[BaseException] = []

    def count(size_bytes: int) -> None:
        with one_at_a_time:
            if broken.is_set():
                raise _BrokenOff
            try:
                progress(size_bytes)
            except BaseException as error:
                broken.set()
                refused.append(error)
                raise

    with ThreadPoolExecutor(THREADS) as pool:
        futures = [pool.submit(_download_one, info, target, count) for info, target in pairs]
        try:
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
            failed = next((future.exception() for future in done if future.exception() is not None), None)
        except BaseException:
            failed = KeyboardInterrupt()
            raise
        finally:
            if failed is not None:
                broken.set()
                pool.shutdown(wait=True, cancel_futures=True)
    if refused:
        raise refused[0]
    if failed is not None:
        errors = (future.exception() for future in futures if future.done() and not future.cancelled())
        raise next(error for error in errors if error is not None and not isinstance(error, _BrokenOff))


class _BrokenOff(Exception):
    """The download ends for another reason."""


def _download_one(info: ObjectInfo, target: Path, count: Count) -> None:
    partial = _beside(target)
    try:
        with storage_errors(f"cannot write {target}"):
            with partial.open("wb", buffering=0) as writer:
                if info.size_bytes > MANY_PARTS_BYTES:
                    _download_parts(info, writer.fileno(), count)
                else:
                    with open_stream(info.uri) as stream:
                        _check_size(info, _save(stream, writer.fileno(), 0, count))
            partial.replace(target)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _beside(target: Path) -> Path:
    """A name for the time of writing, which is nobody else's, however long the target's own is."""
    return target.with_name(f".{secrets.token_hex(8)}{PARTIAL}")


def _download_parts(info: ObjectInfo, descriptor: int, count: Count) -> None:
    """Ranges of one object side by side, into their places."""
    _, bucket, key = split_uri(info.uri)
    with s3_errors(info.uri):
        head = client().head_object(Bucket=bucket, Key=key)
    _check_size(info, head["ContentLength"])

    def fetch(start: int) -> None:
        end = min(start + PART_BYTES, info.size_bytes)
        with contextlib.closing(_S3Stream(info.uri, start=start, end=end, etag=head.get("ETag", ""))) as stream:
            _save(stream, descriptor, start, count)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(fetch, range(0, info.size_bytes, PART_BYTES)))


def _save(stream: "BinaryIO | _S3Stream", descriptor: int, position: int, count: Count) -> int:
    """Write a stream into a file from a position on, and give the position after it."""
    while part := stream.read(CHUNK_BYTES):
        view = memoryview(part)
        while view:  # a full disk takes a part of a write before it refuses the next
            written = os.pwrite(descriptor, view, position)
            position += written
            view = view[written:]
        count(len(part))
    return position


def _check_size(info: ObjectInfo, size_bytes: int) -> None:
    if size_bytes != info.size_bytes:
        raise DataError(
            f"{info.uri} had {info.size_bytes:,} bytes when it was listed and has {size_bytes:,} now: is it being written?"
        )


def upload_file(
    path: Path,
    uri: str,
    *,
    progress: Count = lambda _bytes: None,
    move: bool = False,
    unchanged: Callable[[], bool] = lambda: True,
) -> bool:
    """Put a file at a URI, whole: an object that was there before stays until it is replaced. `move`: the file may be taken.

    `unchanged` is asked when the file has been read: if it says no, the object stays as it was, and the answer is False. An
    upload to s3:// cannot be taken back and does not ask: give it a file that nobody writes to.
    """
    scheme, bucket, key = split_uri(uri)
    if scheme == "s3":
        from boto3.exceptions import S3UploadFailedError

        try:
            with s3_errors(uri):
                client().upload_file(str(path), bucket, key, Callback=progress)
        except S3UploadFailedError as error:
            raise _s3_error(error.__context__ or error, uri) from error
        return True
    target = local_path(uri)
    with storage_errors(f"cannot write {target}"):
        target.parent.mkdir(parents=True, exist_ok=True)
        if move:
            with contextlib.suppress(OSError):  # another filesystem: copied below
                path.replace(target)
                progress(target.stat().st_size)
                return True
        partial = _beside(target)
        try:
            shutil.copyfile(path, partial)
            if not unchanged():
                partial.unlink()
                return False
            partial.replace(target)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
    progress(target.stat().st_size)
    return True


def upload_files(pairs: Sequence[tuple[Path, str]], *, progress: Count = lambda _bytes: None) -> None:
    """Many files, side by side where they go far."""
    if any(uri.startswith("s3://") for _, uri in pairs):
        client()
    with ThreadPoolExecutor(THREADS) as pool:
        for future in [pool.submit(upload_file, path, uri, progress=progress) for path, uri in pairs]:
            future.result()


def delete(uri: str) -> None:
    """Remove one object; none is no error."""
    scheme, bucket, key = split_uri(uri)
    if scheme == "s3":
        with s3_errors(uri):
            client().delete_object(Bucket=bucket, Key=key)
        return
    with storage_errors(f"cannot remove {local_path(uri)}"):
        local_path(uri).unlink(missing_ok=True)


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


_clients: dict[tuple[tuple[str, str], ...], Any] = {}
_clients_lock = threading.Lock()


def client() -> Any:
    """The S3 client of this process: boto3's own chain of settings; made anew only if the environment's change."""
    settings = tuple(sorted(item for item in os.environ.items() if item[0].startswith("AWS_")))
    with _clients_lock:
        if settings not in _clients:
            _clients[settings] = _new_client()
        return _clients[settings]


CREDENTIALS_REMEDY = "Run `aws configure`, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
ENDPOINT_VARIABLES = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")


def check_endpoint(variable: str, url: str) -> None:
    """DataError naming the variable if its value is no address of an S3 server. An empty one is none."""
    parts, port = urllib.parse.urlsplit(""), None
    with contextlib.suppress(ValueError):  # a port that is no number from 0 to 65535, half of an IPv6 address
        parts = urllib.parse.urlsplit(url)
        port = 80 if parts.port is None else parts.port
    if url and (parts.scheme not in ("http", "https") or not parts.hostname or not port):
        raise DataError(
            f"{variable} must be the address of an S3 server, as in http://localhost:9000 or https://s3.example.com, got {url!r}"
        )


def has_credentials(caller: Mapping[str, str]) -> bool:
    """Whether there may be some besides an instance's own, without asking the SDK, which takes a while."""
    named = (
        "AWS_ACCESS_KEY_ID",
        "AWS_PROFILE",
        "AWS_WEB_IDENTITY_TOKEN_FILE",
        "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
        "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    )
    if any(caller.get(name) for name in named):
        return True
    home = Path(caller.get("HOME", "/")) / ".aws"
    files = (
        caller.get("AWS_SHARED_CREDENTIALS_FILE") or home / "credentials",
        caller.get("AWS_CONFIG_FILE") or home / "config",
    )
    return any(Path(file).is_file() for file in files)


def check_credentials(uri: str) -> None:
    """DataError if it is certain, without asking anybody, that S3 would refuse to talk to this process."""
    boto_config = any(file.is_file() for file in (Path("/etc/boto.cfg"), Path.home() / ".boto"))
    asks_instance = os.environ.get("AWS_EC2_METADATA_DISABLED", "").lower() != "true"
    if uri.startswith("s3://") and not (has_credentials(os.environ) or asks_instance or boto_config):
        raise DataError(f"{uri}: no S3 credentials were found. {CREDENTIALS_REMEDY}")


def _new_client() -> Any:
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError

    config = Config(
        max_pool_connections=THREADS * 5,
        retries={"mode": "standard", "max_attempts": 4},
        connect_timeout=10,
        # Other S3 servers know no trailing checksums; AWS computes its own.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    for variable in ENDPOINT_VARIABLES:
        check_endpoint(variable, os.environ.get(variable, ""))
    try:
        session = boto3.Session(region_name=os.environ.get("AWS_REGION"))
        made = session.client("s3", config=config)
        if not _is_aws(made):  # other servers seldom have a host name for each bucket
            made = session.client("s3", config=config.merge(Config(s3={"addressing_style": "path"})))
    except (BotoCoreError, ValueError) as error:
        raise DataError(f"S3 cannot be used: {error}; see ~/.aws/config and the AWS_ variables") from error
    return made


def _is_aws(made: Any) -> bool:
    host = urllib.parse.urlsplit(made.meta.endpoint_url).hostname or ""
    return host.endswith((".amazonaws.com", ".amazonaws.com.cn"))


@contextlib.contextmanager
def s3_errors(uri: str) -> Iterator[None]:
    """botocore's errors -> ours, naming the URI and the remedy."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except (BotoCoreError, ClientError) as error:
        raise _s3_error(error, uri) from error


def _s3_error(error: BaseException, uri: str) -> OptmlError:
    import botocore.exceptions as known

    bucket = split_uri(uri)[1]
    if isinstance(error, known.NoCredentialsError | known.PartialCredentialsError | known.ProfileNotFound):
        return DataError(f"{uri}: no S3 credentials were found ({error}). {CREDENTIALS_REMEDY}")
    if isinstance(error, known.EndpointConnectionError | known.ConnectionError | known.HTTPClientError):
        return PlatformError(
            f"{uri}: the S3 endpoint {client().meta.endpoint_url}{_endpoint_source()} cannot be reached: {error}. "
            "Check the address, and that the server runs"
        )
    if isinstance(error, known.ParamValidationError):
        return DataError(f"{uri} cannot be an S3 URI: {' '.join(str(error).split())}")
    if isinstance(error, known.ClientError):
        code = error.response.get("Error", {}).get("Code", "")
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        message = error.response.get("Error", {}).get("Message", "")
        if code == "NoSuchBucket":
            return DataError(f"{uri}: there is no bucket {bucket!r} at {client().meta.endpoint_url}")
        if code in ("NoSuchKey", "404"):
            return DataError(f"{uri}: there is no such object")
        if code == "PreconditionFailed" or status == 412:
            return DataError(f"{uri} was replaced while it was read: start the job again when it is complete")
        if status in (401, 403) or code in ("ExpiredToken", "InvalidToken"):
            return AccessRefused(
                f"{uri}: S3 refused access ({code or status}: {message}); check the credentials and the bucket's policy"
            )
        if status >= 500 or status == 429:
            return PlatformError(f"{uri}: S3 answered {status} {code} after retries: {message}")
        return DataError(f"{uri}: S3 answered {status} {code}: {message}")
    return PlatformError(f"{uri}: {error}")


def _endpoint_source() -> str:
    for variable in ENDPOINT_VARIABLES:
        if os.environ.get(variable):
            return f" (from {variable})"
    return "" if _is_aws(client()) else " (endpoint_url of the AWS profile)"


def storage_error(error: OSError, what: str) -> OptmlError:
    """An error of this machine's disk, in words."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return PlatformError(f"{what}: no space left on the disk; make room, or set OPTML_HOME to a bigger one")
    return PlatformError(f"{what}: {error.strerror or error}")


def counter(progress: Callable[[int, int], None], total: int) -> Count:
    """Sizes of parts, as they are done -> how much is done, and of how much."""
    done = 0

    def count(size_bytes: int) -> None:
        nonlocal done
        done += size_bytes
        progress(done, total)

    return count


@contextlib.contextmanager
def storage_errors(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise storage_error(error, what) from error
