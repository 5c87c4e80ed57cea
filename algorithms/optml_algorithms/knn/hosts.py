"""The hosts of a job, which bring their rows to the first of them: messages over TCP, a JSON head and arrays behind it.

The first host listens, the others come to it by name and stay connected until all is done. Whoever fails says so to the other
side first, so that every host ends with the true reason, and none waits for one that has gone.
"""

import json
import logging
import os
import select
import socket
import struct
import time
import zlib
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self

from optml_toolkit.container import Resources, UserError

MEETING_SECONDS = 300.0
GREETING_SECONDS = 10.0
RETRY_SECONDS = 0.1
MAX_GREETING_BYTES = 4096
MAX_HEAD_BYTES = 1 << 20
MAX_ARRAYS = 8
PORT_COUNT = 8  # tried in turn: one may be taken
SIZES = struct.Struct("<II")  # of the head, and the number of arrays; each of these has its own head
CHUNK_BYTES = 4 << 20

log = logging.getLogger("knn")


class HostLost(Exception):
    """Another host of the job did not come, or went away without a word; its own log says why."""


class Peer:
    """A connection to another host."""

    def __init__(self, name: str, connection: socket.socket):
        self.name = name
        self._connection = connection

    def send(self, head: Any, *arrays: Any) -> None:
        """A small value that JSON can hold, and numpy arrays."""
        text = json.dumps(head).encode()
        try:
            self._connection.sendall(SIZES.pack(len(text), len(arrays)) + text)
            for array in arrays:
                about = json.dumps([array.dtype.str, array.shape]).encode()
                self._connection.sendall(SIZES.pack(len(about), 0) + about)
                content = memoryview(array.reshape(-1)).cast("B") if array.size else memoryview(b"")
                for begin in range(0, len(content), CHUNK_BYTES):
                    self._connection.sendall(content[begin : begin + CHUNK_BYTES])
        except OSError as error:
            raise HostLost(f"{self.name} has gone: its own log says why ({error})") from error

    def receive(self, *, most_bytes: int = MAX_HEAD_BYTES, most_arrays: int = MAX_ARRAYS) -> tuple[Any, list[Any]]:
        """What the other side sent: the value, and the arrays. UserError if it has failed, with its words."""
        import numpy

        try:
            head, count = self._head(most_bytes)
            if count > most_arrays:
                raise ValueError("it does not speak as hosts of this job do")
            if isinstance(head, dict) and "failed" in head:
                raise UserError(f"{head['failed']} (on host {self.name})")
            arrays = []
            for _ in range(count):
                (dtype, shape), _ = self._head(most_bytes)
                array: Any = numpy.empty(shape, dtype)
                if array.size:
                    self._read_into(memoryview(array.reshape(-1)).cast("B"))
                arrays.append(array)
            return head, arrays
        except (OSError, EOFError, ValueError) as error:
            raise HostLost(f"{self.name} has gone: its own log says why ({error})") from error

    def _head(self, most_bytes: int) -> tuple[Any, int]:
        sizes = bytearray(SIZES.size)
        self._read_into(memoryview(sizes))
        size, count = SIZES.unpack(sizes)
        if size > most_bytes:
            raise ValueError("it does not speak as hosts of this job do")
        text = bytearray(size)
        self._read_into(memoryview(text))
        return json.loads(text), count

    def _read_into(self, target: memoryview) -> None:
        while len(target):
            size = self._connection.recv_into(target)
            if size == 0:
                raise EOFError("connection closed")
            target = target[size:]

    def stay(self) -> None:
        """From now on wait as long as it takes to read data; but notice within minutes when the other machine has vanished."""
        self._connection.settimeout(None)
        self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 15), ("TCP_KEEPCNT", 4)):
            if hasattr(socket, option):  # macOS lacks some
                self._connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)

    def close(self) -> None:
        self._connection.close()


class Hosts:
    """All hosts of a job. The first one's `peers` are all others; those of the others, the first. Alone there are none.

    As a context: leaving it with an error tells the peers.
    """

    def __init__(self, me: str, names: Sequence[str], peers: Sequence[Peer] = ()):
        self.me, self.names, self.peers = me, tuple(names), tuple(peers)

    @property
    def is_first(self) -> bool:
        return self.me == self.names[0]

    @property
    def rank(self) -> int:
        return self.names.index(self.me)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for peer in self.peers:
            if error is not None:
                text = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
                try:
                    peer.send({"failed": text[:2000]})
                except HostLost:
                    pass
            peer.close()


def meet(resources: Resources, *, seconds: float = MEETING_SECONDS) -> Hosts:
    """Connect all hosts of the job. HostLost names those that are not there after so many seconds."""
    names = sorted(resources.hosts, key=lambda name: (len(name), name))  # algo-2 before algo-10
    me = resources.current_host
    if len(names) == 1:
        return Hosts(me, names)
    job = os.environ.get("TRAINING_JOB_NAME", "")
    deadline = time.monotonic() + seconds
    log.info("Waiting for %s", ", ".join(name for name in names if name != me) if me == names[0] else names[0])
    peers = _await_all(names, job, deadline) if me == names[0] else [_go_to(names[0], me, job, deadline)]
    return Hosts(me, names, peers)


def ports(job: str) -> range:
    """Hosts of several jobs may share one machine's network: each job has ports of its own, below those that Linux gives out."""
    first = 10_000 + zlib.crc32(job.encode()) % 2_000 * PORT_COUNT
    return range(first, first + PORT_COUNT)


def _await_all(names: Sequence[str], job: str, deadline: float) -> list[Peer]:
    here: dict[str, Peer] = {}
    server = _until(
        deadline,
        lambda: _listen(names[0], job),
        f"{names[0]} cannot listen on ports {ports(job)[0]} to {ports(job)[-1]}",
    )
    with server:
        while missing := [name for name in names[1:] if name not in here]:
            ready, _, _ = select.select([server], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise HostLost(f"{', '.join(missing)} did not come to {names[0]} in time: look at their logs")
            peer = _greeted(server.accept()[0], job, missing)
            if peer is not None:
                here[peer.name] = peer
    return [here[name] for name in names[1:]]


def _listen(name: str, job: str) -> socket.socket:
    """On this host's own name, which may not be known at once."""
    problem: OSError | None = None
    for port in ports(job):
        try:
            return socket.create_server((_address(name), port))
        except OSError as error:
            problem = error
    assert problem is not None
    raise problem


def _greeted(connection: socket.socket, job: str, expected: Sequence[str]) -> Peer | None:
    """The host that has come, if it is one of this job; anything else may knock, and is sent away."""
    connection.settimeout(GREETING_SECONDS)
    peer = Peer("a stranger", connection)
    try:
        greeting, _ = peer.receive(most_bytes=MAX_GREETING_BYTES, most_arrays=0)
        if isinstance(greeting, list) and len(greeting) == 2 and greeting[0] == job and greeting[1] in expected:
            peer.name = greeting[1]
            peer.send(job)
            peer.stay()
            return peer
    except (HostLost, UserError):
        pass
    peer.close()
    return None


def _go_to(first: str, me: str, job: str, deadline: float) -> Peer:
    peer: Peer = _until(deadline, lambda: _knock(first, me, job), f"{me} could not reach {first}: look at its log")
    return peer


def _knock(first: str, me: str, job: str) -> Peer:
    problem: Exception | None = None
    for port in ports(job):
        try:
            connection = socket.create_connection((_address(first), port), timeout=GREETING_SECONDS)
            peer = Peer(first, connection)
            try:
                peer.send([job, me])
                answer, _ = peer.receive(most_bytes=MAX_GREETING_BYTES, most_arrays=0)
                if answer == job:
                    peer.stay()
                    return peer
                problem = OSError(f"port {port} is another job's")
            except (HostLost, UserError) as error:
                problem = error
            peer.close()
        except OSError as error:
            problem = error
    raise OSError(str(problem))


def _until(deadline: float, attempt: Callable[[], Any], otherwise: str) -> Any:
    while True:
        try:
            return attempt()
        except OSError as error:  # not up yet
            if time.monotonic() > deadline:
                raise HostLost(f"{otherwise} ({error})") from error
        time.sleep(RETRY_SECONDS)


def _address(name: str) -> str:
    return str(socket.getaddrinfo(name, None, socket.AF_INET, socket.SOCK_STREAM)[0][4][0])
