"""Pipe mode: FIFOs that the platform fills, one per epoch, for as long as the container reads them.

A feeder is a thread per host and channel. It never waits in the kernel for the container, which may do what it likes with its
FIFOs: remove them, replace them, never read them. It asks for a reader every few milliseconds, and waits to write with a time
limit, so that it can always be stopped. Plain local files go from disk to FIFO inside the kernel (splice).
"""

import contextlib
import errno
import fcntl
import itertools
import os
import select
import stat
import struct
import tempfile
import threading
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from optml import transfers
from optml.distribute import share_of_host
from optml.errors import DataError, OptmlError, PlatformError, storage_error, storage_errors
from optml.manifests import AugmentedManifest, attribute_bytes
from optml.objects import ObjectInfo
from optml.spec import Channel, Compression, DataType, ObjectSource, RecordWrapper

RECORDIO_MAGIC = 0xCED7230A
RECORDIO_MAX_BYTES = (1 << 29) - 1  # the length's top three bits mark parts of a record
FIFO_BYTES = 1 << 20
CHUNK_BYTES = 1 << 20
PREFETCHED = 8  # small objects of an augmented manifest, fetched ahead
READER_SECONDS = 0.001  # between looks for a reader; it grows as nobody comes
MAX_READER_SECONDS = 0.05
WRITE_MILLISECONDS = 100  # between looks whether to stop, while a reader takes nothing
STOP_SECONDS = 10.0  # at most: an object store that does not answer may hold a feeder up


class _Stopped(Exception):
    """The feeder was told to stop."""


class PipeFeeder:
    """Feeds one channel to one host, from `start` until `stop`. `error` is set if the data could not be had."""

    def __init__(
        self, channel: Channel, items: Sequence[ObjectInfo], folder: Path, *, host_index: int, host_count: int
    ):
        self.channel, self.items, self.folder = channel, items, folder
        self.host_index, self.host_count = host_index, host_count
        self.error: OptmlError | None = None
        self._stopping = threading.Event()
        self._manifest: AugmentedManifest | None = None
        self._in_folder = -1  # held open: the container may move the folder and put a link in its place
        self._thread = threading.Thread(target=self._run, name=f"pipe-{channel.name}", daemon=True)

    def start(self) -> None:
        """Make the first FIFO, which must be there before the container is, and begin to wait for its reader."""
        source = self.channel.source
        assert isinstance(source, ObjectSource)
        if source.data_type is DataType.AUGMENTED_MANIFEST_FILE:
            self._manifest = AugmentedManifest(self._local_copy(self.items[0]), source.uri, source.attribute_names)
        with storage_errors(f"channel {self.channel.name!r} cannot be fed"):
            self._in_folder = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        self._make_fifo(0)
        self._thread.start()

    def _local_copy(self, info: ObjectInfo) -> Path:
        """An augmented manifest as a file: of the caller, or fetched to a place that the container does not see."""
        if info.path is not None:
            return info.path
        file = self.folder.parents[2] / f"{self.channel.name}-augmented-manifest"
        transfers.download([(info, file)])
        return file

    def stop(self) -> None:
        """End the thread, whatever it waits for. Nothing is left open."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(STOP_SECONDS)
        if self._in_folder >= 0 and not self._thread.is_alive():
            os.close(self._in_folder)
            self._in_folder = -1

    def _run(self) -> None:
        descriptor = -1
        try:
            for epoch in itertools.count():
                descriptor = self._wait_for_reader(epoch)
                self._make_fifo(epoch + 1)  # now: whoever reads this epoch to its end finds the next one
                with contextlib.suppress(BrokenPipeError):  # the reader left; that ends the epoch
                    self._write_epoch(_Fifo(descriptor, self._stopping), epoch)
                self._remove_fifo(epoch)  # before the end of file: nobody would ever write to a second reader
                os.close(descriptor)
                descriptor = -1
        except _Stopped:
            pass
        except Exception as error:  # noqa: BLE001  (whatever it is, it must be heard: a thread that ends is not)
            self.error = self._in_words(error)
            self._stopping.wait()  # with the FIFO open: an end of file now would pass for the end of the data
        finally:
            if descriptor >= 0:
                os.close(descriptor)

    def _in_words(self, error: Exception) -> OptmlError:
        text = f"channel {self.channel.name!r} cannot be fed: {error}"
        if isinstance(error, OptmlError):
            return type(error)(text)
        return DataError(text) if isinstance(error, OSError) else PlatformError(f"{text} ({type(error).__name__})")

    # What follows happens in a folder where the container may do what it likes: nothing is followed, nothing else is opened.

    def _name(self, epoch: int) -> str:
        return f"{self.channel.name}_{epoch}"

    def _is_fifo(self, name: str) -> bool:
        return stat.S_ISFIFO(os.stat(name, dir_fd=self._in_folder, follow_symlinks=False).st_mode)

    def _make_fifo(self, epoch: int) -> None:
        name = self._name(epoch)
        try:
            os.mkfifo(name, 0o644, dir_fd=self._in_folder)
        except FileExistsError:
            if not self._is_fifo(name):  # a FIFO that the program made itself will do
                raise DataError(f"there is something else in the place of its FIFO {name}") from None
        except OSError as error:
            raise storage_error(error, f"cannot make the FIFO {name}") from error
        else:
            self._let_others_read(name)

    def _let_others_read(self, name: str) -> None:
        """Whatever the umask: the program may be another user's. One that it has removed already is never read."""
        with contextlib.suppress(OSError):
            descriptor = os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW, dir_fd=self._in_folder)
            try:
                if stat.S_ISFIFO(os.fstat(descriptor).st_mode):
                    os.fchmod(descriptor, 0o644)
            finally:
                os.close(descriptor)

    def _wait_for_reader(self, epoch: int) -> int:
        """The write end, once somebody has the read end. A FIFO that the program removed is never read: no error."""
        name, pause = self._name(epoch), READER_SECONDS
        flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOFOLLOW
        while True:
            try:
                if not self._is_fifo(name):
                    raise DataError(f"there is something else in the place of its FIFO {name}")
                descriptor = os.open(name, flags, dir_fd=self._in_folder)
                if stat.S_ISFIFO(os.fstat(descriptor).st_mode):
                    return descriptor
                os.close(descriptor)
            except OSError as error:
                if error.errno not in (errno.ENXIO, errno.ENOENT):
                    raise
            if self._stopping.wait(pause):
                raise _Stopped
            pause = min(1.5 * pause, MAX_READER_SECONDS)

    def _remove_fifo(self, epoch: int) -> None:
        name = self._name(epoch)
        with contextlib.suppress(OSError):
            if self._is_fifo(name):
                os.unlink(name, dir_fd=self._in_folder)

    def _write_epoch(self, fifo: "_Fifo", epoch: int) -> None:
        source = self.channel.source
        share = {"host_index": self.host_index, "host_count": self.host_count, "epoch": epoch}
        if self._manifest is not None:
            numbers = share_of_host(self.channel, range(len(self._manifest)), **share)
            self._write_lines(fifo, self._manifest, numbers)
            return
        assert isinstance(source, ObjectSource)
        for info in share_of_host(self.channel, self.items, **share):
            self._write_object(fifo, info)

    def _write_lines(self, fifo: "_Fifo", manifest: AugmentedManifest, numbers: list[int]) -> None:
        """Attributes of each line in order; referenced objects are fetched a few ahead, so memory stays small."""
        with ThreadPoolExecutor(PREFETCHED) as pool:
            waiting: list[Future[bytes] | bytes] = []

            def write_first() -> None:
                first = waiting.pop(0)
                self._write_bytes(fifo, first if isinstance(first, bytes) else first.result())

            try:
                for attributes in manifest.lines(numbers):
                    for name, value in attributes:
                        if name.endswith("-ref"):
                            uri = value if "://" in value else f"file://{Path(value).absolute()}"
                            waiting.append(pool.submit(transfers.read_bytes, uri))
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

    def _write_bytes(self, fifo: "_Fifo", content: bytes) -> None:
        if self.channel.record_wrapper is RecordWrapper.RECORDIO:
            content = record_header(len(content), self.channel.name) + content + record_padding(len(content))
        fifo.write(content)

    def _write_object(self, fifo: "_Fifo", info: ObjectInfo) -> None:
        wrapped = self.channel.record_wrapper is RecordWrapper.RECORDIO
        if self.channel.compression is Compression.GZIP:
            parts = decompressed(info.uri)
            if wrapped:
                self._write_spooled(fifo, parts, info.uri)
            else:
                for part in parts:
                    fifo.write(part)
            return
        if wrapped:
            fifo.write(record_header(info.size_bytes, info.uri))
        written = fifo.write_object(info)
        if wrapped:
            if written != info.size_bytes:
                raise DataError(f"{info.uri} had {info.size_bytes:,} bytes when it was listed and has {written:,} now")
            fifo.write(record_padding(written))

    def _write_spooled(self, fifo: "_Fifo", parts: Iterator[bytes], uri: str) -> None:
        """A record's length comes before it, and that of compressed data is known when it has been decompressed."""
        with tempfile.TemporaryFile(dir=self.folder.parents[2]) as spool:
            with storage_errors(f"cannot decompress {uri}"):
                for part in parts:
                    spool.write(part)
            size_bytes = spool.tell()
            spool.seek(0)
            fifo.write(record_header(size_bytes, uri))
            while part := spool.read(CHUNK_BYTES):
                fifo.write(part)
            fifo.write(record_padding(size_bytes))


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
    with transfers.open_stream(uri) as stream:
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


class _Fifo:
    """The write end of a FIFO. BrokenPipeError when the reader has left; _Stopped when there is no more to be written."""

    def __init__(self, descriptor: int, stopping: threading.Event):
        self._descriptor, self._stopping = descriptor, stopping
        self._poller = select.poll()
        self._poller.register(descriptor, select.POLLOUT)
        with contextlib.suppress(AttributeError, OSError):  # bigger means fewer turns; Linux only, and may be refused
            fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, FIFO_BYTES)

    def write(self, content: bytes) -> None:
        view = memoryview(content)
        while view:
            self._check()
            try:
                view = view[os.write(self._descriptor, view) :]
            except BlockingIOError:
                self._wait()

    def _wait(self) -> None:
        """Until there is room, or the reader has left."""
        while not self._poller.poll(WRITE_MILLISECONDS):
            self._check()

    def _check(self) -> None:
        if self._stopping.is_set():
            raise _Stopped

    def write_object(self, info: ObjectInfo) -> int:
        """Write all of it, and say how many bytes that was."""
        written = 0
        with transfers.open_stream(info.uri) as stream:
            if info.path is not None and hasattr(os, "splice"):
                try:
                    while sent := self._splice(stream.fileno()):
                        written += sent
                    return written
                except OSError as error:
                    if error.errno not in (errno.EINVAL, errno.ENOSYS) or written:  # not every filesystem can
                        raise
            while part := stream.read(CHUNK_BYTES):
                self.write(part)
                written += len(part)
        return written

    def _splice(self, source: int) -> int:
        while True:
            self._check()
            try:
                return os.splice(source, self._descriptor, FIFO_BYTES)
            except BlockingIOError:
                self._wait()
