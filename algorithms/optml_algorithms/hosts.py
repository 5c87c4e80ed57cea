"""The hosts of a job meet, and tell each other small values, or bring arrays to the first of them.

The first listens, the others come to it by name and stay connected until all is done. Who never comes, or goes away, is named, in
bounded time. Whoever fails says so to the other side first, so that every host ends with the true reason, and none waits for one
that has gone. A message is a JSON head, and numpy arrays behind it.
"""

import contextlib
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

PATIENCE_SECONDS = 15 * 60.0  # how long AWS waits for the names of all hosts to be there
GREETING_SECONDS = 5.0
RETRY_SECONDS = 0.1
GOODBYE_SECONDS = 5.0  # for the others to hear why a host fails
NOTICE_SECONDS = 30.0  # silence would look like a hang
MAX_GREETING_BYTES = 4096
MAX_HEAD_BYTES = 64 << 20
MAX_ARRAYS = 8
PORT_COUNT = 8  # tried in turn: one may be taken
SIZES = struct.Struct("<II")  # of the head, and the number of arrays; each of these has its own head
CHUNK_BYTES = 4 << 20

log = logging.getLogger("hosts")


class HostLost(Exception):
    """A host of the job did not come, or went away without a word. Its own log says why, if it has one."""


class FailedElsewhere(UserError):
    """Another host of the job has failed: its words, and its name."""


class Peer:
    """A connection to another host."""

    def __init__(self, name: str, connection: socket.socket):
        self.name = name
        self._connection = connection

    def send(self, value: Any, *arrays: Any) -> None:
        """A value that JSON can hold, and numpy arrays."""
        self._send({"value": value}, arrays)

    def tell_failure(self, text: str) -> None:
        self._send({"failed": text[:4000]}, ())

    def _send(self, head: Any, arrays: Sequence[Any]) -> None:
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
            with contextlib.suppress(HostLost):
                self.receive()  # its last words, if it had any
            raise HostLost(f"{self.name} has gone: look at its log ({error})") from error

    def receive(self, *, most_bytes: int = MAX_HEAD_BYTES, most_arrays: int = MAX_ARRAYS) -> tuple[Any, list[Any]]:
        """What the other side sent: the value, and the arrays. FailedElsewhere if it has failed."""
        try:
            head, count = self._head(most_bytes)
            if not isinstance(head, dict) or not head.keys() & {"value", "failed"} or count > most_arrays:
                raise ValueError("it does not speak as hosts of this job do")
            arrays = [self._array(most_bytes) for _ in range(count)]
        except (OSError, EOFError, ValueError) as error:
            raise HostLost(f"{self.name} has gone: look at its log ({error})") from error
        if "failed" in head:
            raise FailedElsewhere(head["failed"])
        return head["value"], arrays

    def _head(self, most_bytes: int) -> tuple[Any, int]:
        sizes = bytearray(SIZES.size)
        self._read_into(memoryview(sizes))
        size, count = SIZES.unpack(sizes)
        if size > most_bytes:
            raise ValueError("it does not speak as hosts of this job do")
        text = bytearray(size)
        self._read_into(memoryview(text))
        return json.loads(text), count

    def _array(self, most_bytes: int) -> Any:
        import numpy

        (dtype, shape), _ = self._head(most_bytes)
        array: Any = numpy.empty(shape, dtype)
        if array.size:
            self._read_into(memoryview(array.reshape(-1)).cast("B"))
        return array

    def _read_into(self, target: memoryview) -> None:
        while len(target):
            size = self._connection.recv_into(target)
            if size == 0:
                raise EOFError("connection closed")
            target = target[size:]

    def stay(self) -> None:
        """No time limit from now on: reading may take an hour. A machine that vanishes is noticed by the kernel in minutes."""
        self._connection.settimeout(None)
        self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 15), ("TCP_KEEPCNT", 4)):
            if hasattr(socket, option):  # macOS has no TCP_KEEPIDLE
                self._connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)

    def wait_for_end(self, deadline: float) -> None:
        """Until the other side has failed too, or has gone."""
        with contextlib.suppress(HostLost, FailedElsewhere):
            while (seconds := deadline - time.monotonic()) > 0:
                self._connection.settimeout(seconds)
                self.receive()

    def close(self) -> None:
        self._connection.close()


class Hosts:
    """All hosts of a job in the order of their numbers. The first one's `peers` are all others; those of the others, the first.

    A job of one host has no peers, and needs no network. As a context: leaving it with an error tells the peers.

    `with Hosts.meet(resources) as hosts: facts = hosts.all_of({"rows": 7})`
    """

    def __init__(self, me: str = "algo-1", names: Sequence[str] = ("algo-1",), peers: Sequence[Peer] = ()):
        self.me, self.names, self.peers = me, tuple(names), tuple(peers)

    @classmethod
    def meet(cls, resources: Resources, *, seconds: float = PATIENCE_SECONDS) -> Self:
        """Wait until all hosts are there. HostLost names those that are not after so many seconds."""
        names = sorted(resources.hosts, key=in_order)
        me = resources.current_host
        if len(names) == 1:
            return cls(me, names)
        job = os.environ.get("TRAINING_JOB_NAME", "")
        deadline = time.monotonic() + seconds
        peers = _await_all(names, job, deadline) if me == names[0] else [_go_to(names[0], me, job, deadline)]
        return cls(me, names, peers)

    @property
    def count(self) -> int:
        return len(self.names)

    @property
    def rank(self) -> int:
        return self.names.index(self.me)

    @property
    def is_first(self) -> bool:
        return self.me == self.names[0]

    def all_of(self, value: Any) -> list[Any]:
        """A small value of each host, which JSON can hold, in their order; each host must call. Waits as long as the others need.

        HostLost if one goes away meanwhile, FailedElsewhere if one fails.
        """
        if self.count == 1:
            return [value]
        if not self.is_first:
            (first,) = self.peers
            first.send(value)
            told: list[Any] = first.receive()[0]
            return told
        values = [value, *(peer.receive()[0] for peer in self.peers)]
        for peer in self.peers:
            peer.send(values)
        return values

    def close(self) -> None:
        for peer in self.peers:
            peer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._tell_why(error)
        self.close()

    def _tell_why(self, error: BaseException) -> None:
        """Whose own failure it is stays until the others have heard of it: a platform ends them when the first host ends."""
        text = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        told = []
        for peer in self.peers:
            with contextlib.suppress(HostLost, FailedElsewhere):
                peer.tell_failure(text if isinstance(error, FailedElsewhere) else f"{text} (on host {self.me})")
                told.append(peer)
        if isinstance(error, Exception) and not isinstance(error, FailedElsewhere):
            deadline = time.monotonic() + GOODBYE_SECONDS
            for peer in told:
                peer.wait_for_end(deadline)


def in_order(name: str) -> tuple[str, int, str]:
    """A key to sort hosts by: algo-2 before algo-10."""
    return name.rstrip("0123456789"), len(name), name


def address_of(name: str) -> str:
    """The IPv4 address behind a host's name, at once. OSError while the name is not known."""
    return str(socket.getaddrinfo(name, None, socket.AF_INET, socket.SOCK_STREAM)[0][4][0])


def ports(job: str) -> range:
    """Hosts of several jobs may share one machine's network: each job has ports of its own, below those that Linux gives out."""
    first = 10_000 + zlib.crc32(job.encode()) % 2_000 * PORT_COUNT
    return range(first, first + PORT_COUNT)


def _await_all(names: Sequence[str], job: str, deadline: float) -> list[Peer]:
    here: dict[str, Peer] = {}
    notices = _Notices()
    with _until(deadline, lambda: _listen(names[0], job), f"{names[0]} cannot listen on any of its ports") as server:
        while missing := [name for name in names[1:] if name not in here]:
            if time.monotonic() > deadline:
                for peer in here.values():
                    peer.close()
                raise HostLost(f"{', '.join(missing)} did not come to {names[0]}: look at the log of each of them")
            notices.waiting_for(", ".join(missing))
            if select.select([server], [], [], RETRY_SECONDS)[0]:
                came = _greeted(server.accept()[0], job, missing)
                if came is not None:
                    here[came.name] = came
    return [here[name] for name in names[1:]]


def _listen(name: str, job: str) -> socket.socket:
    """On this host's own name, which may not be known at once."""
    problem: OSError | None = None
    for port in ports(job):
        try:
            return socket.create_server((address_of(name), port))
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
    peer: Peer = _until(
        deadline, lambda: _knock(first, me, job), f"{me} could not reach {first}, which leads: look at its log"
    )
    return peer


def _knock(first: str, me: str, job: str) -> Peer:
    problem: Exception | None = None
    for port in ports(job):
        try:
            connection = socket.create_connection((address_of(first), port), timeout=GREETING_SECONDS)
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
    notices = _Notices()
    while True:
        try:
            return attempt()
        except OSError as error:  # not up yet
            if time.monotonic() > deadline:
                raise HostLost(f"{otherwise} ({error})") from error
            notices.waiting_for(f"other hosts ({error})")
        time.sleep(RETRY_SECONDS)


class _Notices:
    """A line now and then."""

    def __init__(self) -> None:
        self._next = time.monotonic() + NOTICE_SECONDS

    def waiting_for(self, what: str) -> None:
        if time.monotonic() > self._next:
            log.info("Waiting for %s", what)
            self._next = time.monotonic() + NOTICE_SECONDS
