"""Bytes to and from objects: read, download, upload, delete. A file appears when it is whole."""

import contextlib
import os
import secrets
import shutil
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, BinaryIO, cast

from optml.errors import DataError, PlatformError, storage_errors
from optml.objects import THREADS, ObjectInfo, local_path, size_of_file, split_uri
from optml.s3 import client, s3_error, s3_errors

CHUNK_BYTES = 1 << 20
PART_BYTES = 32 << 20  # bigger objects are fetched in parts side by side
MANY_PARTS_BYTES = 2 * PART_BYTES
READ_ATTEMPTS = 4  # of one piece, when the connection breaks
PARTIAL = ".optml-partial"
Count = Callable[[int], None]


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
    size_of_file(path)  # opening a FIFO would wait for ever
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
            raise s3_error(error.__context__ or error, uri) from error
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


def counter(progress: Callable[[int, int], None], total: int) -> Count:
    """Sizes of parts, as they are done -> how much is done, and of how much."""
    done = 0

    def count(size_bytes: int) -> None:
        nonlocal done
        done += size_bytes
        progress(done, total)

    return count
