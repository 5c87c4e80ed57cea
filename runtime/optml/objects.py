"""file:// and s3:// behind one set of functions: list, read, download, upload, delete.

Both list like S3: by prefix, sorted by key. URIs are kept verbatim (`file://` and the absolute path, nothing percent-encoded).
boto3 is imported when the first s3:// URI is used.
"""

import contextlib
import difflib
import errno
import functools
import os
import shutil
import stat
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

from optml.errors import DataError, OptmlError, PlatformError

CHUNK_BYTES = 1 << 20
PART_BYTES = 32 << 20  # bigger objects are fetched in parts side by side
MANY_PARTS_BYTES = 2 * PART_BYTES
THREADS = 10
PARTIAL = ".optml-partial"

Count = Callable[[int], None]


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
    return scheme, bucket, key


def local_path(uri: str) -> Path:
    return Path(uri.removeprefix("file://"))


def join(uri: str, *parts: str) -> str:
    return "/".join([uri.rstrip("/"), *(part.strip("/") for part in parts)])


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
    found.sort(key=lambda info: os.fsencode(info.key))
    return found


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


def _list_files(uri: str) -> list[ObjectInfo]:
    path = uri.removeprefix("file://")
    found: list[ObjectInfo] = []
    if path.endswith("/"):
        if os.path.isdir(path):  # noqa: PTH112
            _walk(path.rstrip("/") or "/", found, is_link=False, above=())
        return found
    parent, _, begin = path.rpartition("/")
    try:
        entries = list(os.scandir(parent or "/"))
    except (FileNotFoundError, NotADirectoryError):
        return found
    except OSError as error:
        raise DataError(f"cannot list {parent}: {error.strerror}") from error
    for entry in entries:
        if entry.name.startswith(begin):
            _add(entry, found, is_link=False, above=())
    return found


def _walk(folder: str, found: list[ObjectInfo], *, is_link: bool, above: tuple[tuple[int, int], ...]) -> None:
    if is_link or above:
        here = Path(folder).stat()
        identity = (here.st_dev, here.st_ino)
        if identity in above:
            raise DataError(f"{folder} leads back to a folder that it is in: remove the symbolic link")
        above = (*above, identity)
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                _add(entry, found, is_link=is_link, above=above)
    except PermissionError as error:
        raise DataError(f"cannot list {folder}: {error.strerror}; give yourself permission to read it") from error


def _add(
    entry: "os.DirEntry[str]", found: list[ObjectInfo], *, is_link: bool, above: tuple[tuple[int, int], ...]
) -> None:
    linked = is_link or entry.is_symlink()
    try:
        if entry.is_dir():
            if linked and not above:  # from the first link on, remember the way, to notice a circle
                above = tuple(_identities_above(entry.path))
            _walk(entry.path, found, is_link=linked, above=above)
            return
        status = entry.stat()
    except OSError as error:
        what = "a symbolic link to nothing" if entry.is_symlink() else error.strerror
        raise DataError(f"cannot read {entry.path}: {what}") from error
    if not stat.S_ISREG(status.st_mode):
        raise DataError(f"{entry.path} is no plain file: a channel takes files only")
    found.append(ObjectInfo(f"file://{entry.path}", entry.path[1:], status.st_size, Path(entry.path), linked))


def _identities_above(path: str) -> Iterator[tuple[int, int]]:
    for folder in Path(path).parents:
        here = folder.stat()
        yield here.st_dev, here.st_ino


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
    try:
        status = path.stat()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    if not stat.S_ISREG(status.st_mode):
        raise DataError(f"{path} is no plain file: a channel takes files only")
    return ObjectInfo(uri, key, status.st_size, path, path.resolve() != path.absolute())


def stat_objects(uris: Sequence[str]) -> list[ObjectInfo]:
    """The same for many, side by side where they are far away."""
    if not any(uri.startswith("s3://") for uri in uris):
        return [stat_object(uri) for uri in uris]
    client()
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(stat_object, uris))


def read_bytes(uri: str) -> bytes:
    with open_stream(uri) as stream:
        return stream.read()


def open_stream(uri: str) -> BinaryIO:
    """Read an object from its first byte; memory stays small. A broken S3 connection is taken up where it broke."""
    scheme, bucket, key = split_uri(uri)
    if scheme == "s3":
        return cast("BinaryIO", _S3Stream(uri, bucket, key))
    try:
        return local_path(uri).open("rb", buffering=0)
    except OSError as error:
        raise DataError(f"cannot read {local_path(uri)}: {error.strerror}") from error


class _S3Stream:
    """What `gzip` and the pipes need of a file: read, close, context."""

    def __init__(self, uri: str, bucket: str, key: str):
        self._uri, self._bucket, self._key = uri, bucket, key
        self._position = 0
        self._etag = ""
        self._open()

    def _open(self) -> None:
        more: dict[str, Any] = {}
        if self._position:
            more = {"Range": f"bytes={self._position}-", "IfMatch": self._etag}
        with s3_errors(self._uri):
            response = client().get_object(Bucket=self._bucket, Key=self._key, **more)
        self._body = response["Body"]
        self._etag = response["ETag"]
        self._end = self._position + response["ContentLength"]

    def read(self, size: int = -1) -> bytes:
        if size < 0:
            return b"".join(iter(lambda: self.read(CHUNK_BYTES), b""))
        if self._position >= self._end or size == 0:
            return b""
        for attempt in range(4):
            try:
                part: bytes = self._body.read(size)
                if part:
                    self._position += len(part)
                    return part
            except Exception as error:  # urllib3's and botocore's many names for a broken connection
                if attempt == 3:
                    raise PlatformError(f"reading {self._uri} broke off at byte {self._position:,}: {error}") from error
            self._body.close()
            self._open()
        raise PlatformError(f"reading {self._uri} broke off at byte {self._position:,} of {self._end:,}")

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

    `progress` is told of bytes as they come, from any thread; an exception that it raises ends the download.
    """
    if not pairs:
        return
    for folder in {target.parent for _, target in pairs}:
        with storage_errors(f"cannot make {folder}"):
            folder.mkdir(parents=True, exist_ok=True)
    client()
    broken = threading.Event()

    def count(size_bytes: int) -> None:
        if broken.is_set():
            raise _BrokenOff
        progress(size_bytes)

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
    if failed is not None:
        errors = (future.exception() for future in futures if future.done() and not future.cancelled())
        raise next(error for error in errors if error is not None and not isinstance(error, _BrokenOff))


class _BrokenOff(Exception):
    """Another file's download failed."""


def _download_one(info: ObjectInfo, target: Path, count: Count) -> None:
    partial = target.with_name(target.name[:200] + PARTIAL)
    try:
        with storage_errors(f"cannot write {target}"):
            with partial.open("wb", buffering=0) as writer:
                if info.size_bytes > MANY_PARTS_BYTES:
                    _download_parts(info, writer, count)
                else:
                    _download_whole(info, writer, count)
            partial.replace(target)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _download_whole(info: ObjectInfo, writer: IO[bytes], count: Count) -> None:
    with open_stream(info.uri) as stream:
        got = 0
        while part := stream.read(CHUNK_BYTES):
            writer.write(part)
            got += len(part)
            count(len(part))
    if got != info.size_bytes:
        raise DataError(
            f"{info.uri} had {info.size_bytes:,} bytes when it was listed and has {got:,} now: is it being written?"
        )


def _download_parts(info: ObjectInfo, writer: IO[bytes], count: Count) -> None:
    """Ranges of one object side by side, into their places."""
    _, bucket, key = split_uri(info.uri)
    with s3_errors(info.uri):
        etag = client().head_object(Bucket=bucket, Key=key)["ETag"]

    def fetch(start: int) -> None:
        end = min(start + PART_BYTES, info.size_bytes)
        for attempt in range(4):
            position = start
            try:
                with s3_errors(info.uri):
                    response = client().get_object(
                        Bucket=bucket, Key=key, Range=f"bytes={start}-{end - 1}", IfMatch=etag
                    )
                with contextlib.closing(response["Body"]) as body:
                    while part := body.read(CHUNK_BYTES):
                        os.pwrite(writer.fileno(), part, position)
                        position += len(part)
                if position == end:
                    count(end - start)
                    return
            except (OptmlError, OSError):
                raise
            except Exception as error:  # a broken connection, by whatever name
                if attempt == 3:
                    raise PlatformError(f"reading {info.uri} broke off at byte {position:,}: {error}") from error
        raise PlatformError(f"reading {info.uri} broke off at byte {start:,}")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(fetch, range(0, info.size_bytes, PART_BYTES)))


def upload_file(path: Path, uri: str, *, progress: Count = lambda _bytes: None, move: bool = False) -> None:
    """Put a file at a URI, whole: an object that was there before stays until it is replaced. `move`: the file may be taken."""
    scheme, bucket, key = split_uri(uri)
    if scheme == "s3":
        from boto3.exceptions import S3UploadFailedError

        try:
            with s3_errors(uri):
                client().upload_file(str(path), bucket, key, Callback=progress)
        except S3UploadFailedError as error:
            raise _s3_error(error.__cause__ or error, uri) from error
        return
    target = local_path(uri)
    with storage_errors(f"cannot write {target}"):
        target.parent.mkdir(parents=True, exist_ok=True)
        if move:
            with contextlib.suppress(OSError):  # another filesystem: copied below
                path.replace(target)
                progress(target.stat().st_size)
                return
        partial = target.with_name(f"{target.name[:200]}.{os.getpid()}-{threading.get_ident()}{PARTIAL}")
        try:
            shutil.copyfile(path, partial)
            partial.replace(target)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
    progress(target.stat().st_size)


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


def list_if_any(uri: str) -> list[ObjectInfo]:
    """Objects under a folder URI; none is no error, nor is a folder or bucket that is not there yet."""
    scheme, bucket, key = split_uri(join(uri, ""))
    if scheme == "file":
        return _list_files(join(uri, ""))
    return sorted(_list_s3(uri, bucket, key), key=lambda info: os.fsencode(info.key))


@functools.cache
def _client_lock() -> threading.Lock:
    return threading.Lock()


_clients: dict[tuple[str | None, ...], Any] = {}
_CLIENT_VARIABLES = (
    "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN",
    "AWS_PROFILE", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE",
)  # fmt: skip


def client() -> Any:
    """The S3 client of this process: boto3's own chain of settings; made anew only if the environment's change."""
    settings = tuple(os.environ.get(name) for name in _CLIENT_VARIABLES)
    with _client_lock():
        if settings not in _clients:
            import boto3
            from botocore.config import Config

            config = Config(
                max_pool_connections=THREADS * 5,
                retries={"mode": "standard", "max_attempts": 4},
                connect_timeout=10,
                # Other S3 servers know no trailing checksums; AWS computes its own.
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
                s3={"addressing_style": "path"} if endpoint() else {},
            )
            session = boto3.Session(region_name=os.environ.get("AWS_REGION"))
            _clients[settings] = session.client("s3", config=config)
        return _clients[settings]


def endpoint() -> str | None:
    """The S3 endpoint of the environment, if one is set there."""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")


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
        return DataError(
            f"{uri}: no S3 credentials were found ({error}). Run `aws configure`, or set AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY"
        )
    if isinstance(error, known.EndpointConnectionError | known.ConnectionError | known.HTTPClientError):
        variable = "AWS_ENDPOINT_URL_S3" if os.environ.get("AWS_ENDPOINT_URL_S3") else "AWS_ENDPOINT_URL"
        where = f" (from {variable})" if endpoint() else ""
        return PlatformError(f"{uri}: the S3 endpoint {client().meta.endpoint_url}{where} cannot be reached: {error}")
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
        if status in (401, 403):
            return DataError(
                f"{uri}: S3 refused access ({code or status}: {message}); check the credentials and the bucket's policy"
            )
        if status >= 500 or status == 429:
            return PlatformError(f"{uri}: S3 answered {status} {code} after retries: {message}")
        return DataError(f"{uri}: S3 answered {status} {code}: {message}")
    return PlatformError(f"{uri}: {error}")


def storage_error(error: OSError, what: str) -> OptmlError:
    """An error of this machine's disk, in words."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return PlatformError(f"{what}: no space left on the disk; make room, or set OPTML_HOME to a bigger one")
    return PlatformError(f"{what}: {error.strerror or error}")


@contextlib.contextmanager
def storage_errors(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise storage_error(error, what) from error
