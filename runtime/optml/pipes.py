"""Pipe mode: FIFOs that the platform fills, one per epoch, for as long as the container reads them.

A feeder is a thread per host and channel. It waits in open(), not in a loop, so a channel that nobody reads costs nothing; to
end, the platform itself opens the read end for a moment. Plain local files go from disk to FIFO inside the kernel (splice).
"""

import contextlib
import errno
import fcntl
import os
import struct
import tempfile
import threading
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

from optml import objects
from optml.distribute import share_of_host
from optml.errors import DataError, OptmlError
from optml.manifests import AugmentedManifest, attribute_bytes
from optml.objects import ObjectInfo
from optml.spec import Channel, Compression, DataType, ObjectSource, RecordWrapper

RECORDIO_MAGIC = 0xCED7230A
RECORDIO_MAX_BYTES = (1 << 29) - 1  # the length's top three bits mark parts of a record
FIFO_BYTES = 1 << 20
CHUNK_BYTES = 1 << 20
PREFETCHED = 8  # small objects of an augmented manifest, fetched ahead
STOP_SECONDS = 0.05


class PipeFeeder:
    """Feeds one channel to one host, from `start` until `stop`. `error` is set if the data could not be had."""

    def __init__(
        self, channel: Channel, items: Sequence[ObjectInfo], folder: Path, *, host_index: int, host_count: int
    ):
        self.channel, self.items, self.folder = channel, items, folder
        self.host_index, self.host_count = host_index, host_count
        self.error: OptmlError | None = None
        self._stopping = threading.Event()
        self._fifo = self._path(0)
        self._manifest: AugmentedManifest | None = None
        self._thread = threading.Thread(target=self._feed, name=f"pipe-{channel.name}", daemon=True)

    def _path(self, epoch: int) -> Path:
        return self.folder / f"{self.channel.name}_{epoch}"

    def start(self) -> None:
        """Make the first FIFO, which must be there before the container is, and begin to wait for its reader."""
        source = self.channel.source
        assert isinstance(source, ObjectSource)
        if source.data_type is DataType.AUGMENTED_MANIFEST_FILE:
            self._manifest = AugmentedManifest(self._local_copy(self.items[0]), source.uri, source.attribute_names)
        os.mkfifo(self._fifo, 0o644)
        self._thread.start()

    def _local_copy(self, info: ObjectInfo) -> Path:
        if info.path is not None:
            return info.path
        file = self.folder.parent / f".{self.channel.name}-augmented-manifest"
        objects.download([(info, file)])
        return file

    def stop(self) -> None:
        """End the thread, wherever it waits. Nothing is left open."""
        self._stopping.set()
        while self._thread.is_alive():
            with contextlib.suppress(OSError):  # wakes a writer that waits in open(); closing it breaks one that writes
                os.close(os.open(self._fifo, os.O_RDONLY | os.O_NONBLOCK))
            self._thread.join(STOP_SECONDS)

    def _feed(self) -> None:
        epoch = 0
        try:
            while True:
                descriptor = os.open(self._fifo, os.O_WRONLY)  # returns when the container opens it to read
                if self._stopping.is_set():
                    os.close(descriptor)
                    return
                finished, self._fifo = self._fifo, self._path(epoch + 1)
                os.mkfifo(
                    self._fifo, 0o644
                )  # before the end of this epoch: whoever reads to the end finds the next one
                try:
                    _grow(descriptor)
                    self._write_epoch(descriptor, epoch)
                except BrokenPipeError:
                    pass  # the reader left; that ends the epoch
                except (OptmlError, OSError) as error:
                    text = f"channel {self.channel.name!r} cannot be fed: {error}"
                    self.error = type(error)(text) if isinstance(error, OptmlError) else DataError(text)
                    self._stopping.wait()  # an end of file now would pass for the end of the data
                    return
                finally:
                    os.close(descriptor)
                    finished.unlink(missing_ok=True)
                epoch += 1
        except OSError as error:
            if not self._stopping.is_set():
                self.error = DataError(f"channel {self.channel.name!r} cannot be fed: {error}")

    def _write_epoch(self, descriptor: int, epoch: int) -> None:
        source = self.channel.source
        share = {"host_index": self.host_index, "host_count": self.host_count, "epoch": epoch}
        if self._manifest is not None:
            numbers = share_of_host(self.channel, range(len(self._manifest)), **share)
            self._write_lines(descriptor, self._manifest, numbers)
            return
        assert isinstance(source, ObjectSource)
        for info in share_of_host(self.channel, self.items, **share):
            self._write_object(descriptor, info)

    def _write_lines(self, descriptor: int, manifest: AugmentedManifest, numbers: list[int]) -> None:
        """Attributes of each line in order; referenced objects are fetched a few ahead, so memory stays small."""
        with ThreadPoolExecutor(PREFETCHED) as pool:
            waiting: list[Future[bytes] | bytes] = []

            def write_first() -> None:
                first = waiting.pop(0)
                self._write_bytes(descriptor, first if isinstance(first, bytes) else first.result())

            try:
                for attributes in manifest.lines(numbers):
                    for name, value in attributes:
                        if name.endswith("-ref"):
                            uri = value if "://" in value else f"file://{Path(value).absolute()}"
                            waiting.append(pool.submit(objects.read_bytes, uri))
                        else:
                            waiting.append(attribute_bytes(value))
                        while len(waiting) > PREFETCHED:
                            write_first()
                while waiting:
                    write_first()
            finally:
                for each in waiting:
                    if isinstance(each, Future):
                        each.cancel()

    def _write_bytes(self, descriptor: int, content: bytes) -> None:
        if self.channel.record_wrapper is RecordWrapper.RECORDIO:
            content = record_header(len(content), self.channel.name) + content + record_padding(len(content))
        _write_all(descriptor, content)

    def _write_object(self, descriptor: int, info: ObjectInfo) -> None:
        wrapped = self.channel.record_wrapper is RecordWrapper.RECORDIO
        if self.channel.compression is Compression.GZIP:
            parts = decompressed(info.uri)
            if wrapped:
                self._write_spooled(descriptor, parts, info.uri)
            else:
                for part in parts:
                    _write_all(descriptor, part)
            return
        if wrapped:
            _write_all(descriptor, record_header(info.size_bytes, info.uri))
        written = _write_file(descriptor, info.path) if info.path is not None else _write_stream(descriptor, info.uri)
        if wrapped:
            if written != info.size_bytes:
                raise DataError(f"{info.uri} had {info.size_bytes:,} bytes when it was listed and has {written:,} now")
            _write_all(descriptor, record_padding(written))

    def _write_spooled(self, descriptor: int, parts: Iterator[bytes], uri: str) -> None:
        """A record's length comes before it, and that of compressed data is known when it has been decompressed."""
        with tempfile.TemporaryFile(dir=self.folder.parent) as spool:
            with objects.storage_errors(f"cannot decompress {uri}"):
                for part in parts:
                    spool.write(part)
            size_bytes = spool.tell()
            spool.seek(0)
            _write_all(descriptor, record_header(size_bytes, uri))
            while part := spool.read(CHUNK_BYTES):
                _write_all(descriptor, part)
            _write_all(descriptor, record_padding(size_bytes))


def record_header(size_bytes: int, what: str) -> bytes:
    """RecordIO: the magic number and the length, both uint32, little-endian."""
    if size_bytes > RECORDIO_MAX_BYTES:
        raise DataError(
            f"{what} has {size_bytes:,} bytes; a RecordIO record takes at most {RECORDIO_MAX_BYTES:,}: split it"
        )
    return struct.pack("<II", RECORDIO_MAGIC, size_bytes)


def record_padding(size_bytes: int) -> bytes:
    return b"\0" * (-size_bytes % 4)


def decompressed(uri: str) -> Iterator[bytes]:
    """The content of a gzip file of one or more members. DataError if it is none, or ends too early."""
    with objects.open_stream(uri) as stream:
        decompressor = zlib.decompressobj(wbits=31)
        pending, inside, first = b"", False, True
        try:
            while pending or (pending := stream.read(CHUNK_BYTES)):
                if not inside and not first:
                    pending = pending.lstrip(b"\0")  # padding between members, as gzip itself allows
                    if not pending:
                        continue
                inside, first = True, False
                part = decompressor.decompress(pending, CHUNK_BYTES)
                pending = decompressor.unconsumed_tail
                if part:
                    yield part
                if decompressor.eof:
                    pending, inside = decompressor.unused_data, False
                    decompressor = zlib.decompressobj(wbits=31)
        except zlib.error as error:
            raise DataError(
                f"{uri} is not gzip data: {error}; leave CompressionType out if it is not compressed"
            ) from error
        if inside:
            raise DataError(f"{uri} ends in the middle of its gzip data")


def _grow(descriptor: int) -> None:
    """A bigger FIFO means fewer turns. Linux only; a refusal does not matter."""
    with contextlib.suppress(AttributeError, OSError):
        fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, FIFO_BYTES)


def _write_all(descriptor: int, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(descriptor, view) :]


def _write_file(descriptor: int, path: Path) -> int:
    try:
        file = path.open("rb", buffering=0)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    with file:
        written = 0
        if hasattr(os, "splice"):
            try:
                while sent := os.splice(file.fileno(), descriptor, FIFO_BYTES):
                    written += sent
                return written
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.ENOSYS) or written:  # not every filesystem can
                    raise
        return _copy(descriptor, file)


def _write_stream(descriptor: int, uri: str) -> int:
    with objects.open_stream(uri) as stream:
        return _copy(descriptor, stream)


def _copy(descriptor: int, stream: BinaryIO) -> int:
    written = 0
    while part := stream.read(CHUNK_BYTES):
        _write_all(descriptor, part)
        written += len(part)
    return written
