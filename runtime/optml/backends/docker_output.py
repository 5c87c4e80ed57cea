"""What a container prints: drained into its host's log, from before it starts until after it has ended."""

import contextlib
import io
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import docker

FRAME = struct.Struct(">BxxxL")  # of a log stream: 1 standard output, 2 standard error; then how many bytes follow


class Output:
    """Whatever happens to the file, the container is read on: one whose output nobody takes stands still."""

    def __init__(self, client: "docker.DockerClient", container: str, log_file: Path):
        self.trouble = ""  # what is not in the log, and why
        self._client, self._container, self._log_file = client, container, log_file
        self._reader: threading.Thread | None = None

    def listen(self) -> None:
        """Before the container starts: then not a byte is missed, however soon the program ends."""
        self._log_file.parent.mkdir(parents=True, exist_ok=True)
        stream = self._client.api.attach_socket(
            self._container, params={"stdout": 1, "stderr": 1, "stream": 1, "logs": 0}
        )
        self._reader = threading.Thread(target=self._read, args=(stream,), name="container-log", daemon=True)
        self._reader.start()

    def wait(self, seconds: float) -> None:
        """Until the last line has come, but no longer."""
        if self._reader is not None:
            self._reader.join(seconds)

    def _read(self, stream: Any) -> None:
        try:
            with contextlib.closing(stream), self._log_file.open("ab", buffering=0) as log:
                for part in demultiplexed(stream):
                    if self._log_error(log, part):
                        break
                for _ in demultiplexed(stream):
                    pass
        except (OSError, ValueError) as error:  # the engine went away; who waits for the container says so
            self.trouble = self.trouble or f"the last lines of its log may be missing: {error}"

    def _log_error(self, log: io.FileIO, part: bytes) -> bool:
        rest = memoryview(part)
        try:
            while rest:  # a disk that fills up takes a part, and fails at the next write
                rest = rest[log.write(rest) :]
        except OSError as error:
            self.trouble = f"its log is incomplete: {error.strerror}"
            return True
        return False


def demultiplexed(stream: Any) -> Iterator[bytes]:
    """What a container prints, as it comes: the payloads of the engine's frames, standard output and error in one."""
    from docker.utils.socket import read

    header = b""
    left = 0  # bytes of the current frame that are still to come
    while chunk := read(stream, 1 << 18):
        place = 0
        payload = []
        while place < len(chunk):
            if left:
                part = chunk[place : place + left]
                payload.append(part)
                place += len(part)
                left -= len(part)
            else:
                part = chunk[place : place + FRAME.size - len(header)]
                header += part
                place += len(part)
                if len(header) == FRAME.size:
                    left = FRAME.unpack(header)[1]
                    header = b""
        if payload:
            yield b"".join(payload)
