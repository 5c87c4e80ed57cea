"""The hosts of a job meet and tell each other things, before an algorithm's own way of training together begins.

The first of the sorted names listens, the others come to it. Who never comes, or goes away, is named, in bounded time. What is
told is JSON, some kilobytes: how many rows each host has, what was wrong with its data, where a tracker listens.
"""

import contextlib
import json
import logging
import os
import socket
import struct
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

from optml_toolkit.container import Resources

PORTS = range(9099, 9099 + 32)  # AWS's XGBoost takes the first; others are for more jobs on one network
PATIENCE_SECONDS = 15 * 60  # how long AWS waits for the names of all hosts to be there
HELLO_SECONDS = 5
LENGTH = struct.Struct(">Q")
MAX_MESSAGE_BYTES = 64 << 20

log = logging.getLogger("hosts")


class HostLost(Exception):
    """A host of the job did not come, or went away. Its own log says why, if it has one."""


class Peers:
    """All hosts of a job, connected. `hosts` are sorted; the first leads. A job of one host needs no network.

    `with Peers.meet(resources) as peers: facts = peers.gather({"rows": 7})`
    """

    def __init__(self, me: str, hosts: Sequence[str], connections: Mapping[str, socket.socket]):
        self.me = me
        self.hosts = tuple(hosts)
        self._connections = connections  # of the leader: to each other host; of the others: to the leader

    @classmethod
    def meet(cls, resources: Resources, *, seconds: float = PATIENCE_SECONDS) -> Self:
        """Wait until all hosts are there. HostLost names who is not after so many seconds."""
        hosts = sorted(resources.hosts)
        me = resources.current_host
        if len(hosts) == 1:
            return cls(me, hosts, {})
        deadline = time.monotonic() + seconds
        job = os.environ.get("TRAINING_JOB_NAME", "")
        if me == hosts[0]:
            return cls(me, hosts, _receive_all(me, hosts[1:], job, deadline))
        return cls(me, hosts, {hosts[0]: _go_to(hosts[0], me, job, deadline)})

    @property
    def leads(self) -> bool:
        return self.me == self.hosts[0]

    def gather(self, mine: Any) -> list[Any]:
        """What every host has to say, in the order of `hosts`; each host must call. Waits as long as the others need, and
        HostLost if one goes away meanwhile."""
        if len(self.hosts) == 1:
            return [mine]
        if not self.leads:
            leader = self.hosts[0]
            _send(self._connections[leader], leader, mine)
            found: list[Any] = _receive(self._connections[leader], leader)
            return found
        said = [mine, *(_receive(self._connections[host], host) for host in self.hosts[1:])]
        for host in self.hosts[1:]:
            _send(self._connections[host], host, said)
        return said

    def close(self) -> None:
        for connection in self._connections.values():
            connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def address_of(host: str) -> str:
    """The IPv4 address behind a host's name, at once."""
    return str(socket.getaddrinfo(host, None, socket.AF_INET, socket.SOCK_STREAM)[0][4][0])


def _receive_all(me: str, others: Sequence[str], job: str, deadline: float) -> dict[str, socket.socket]:
    here: dict[str, socket.socket] = {}
    with _listen(me, deadline) as server:
        notices = _Notices()
        while missing := [host for host in others if host not in here]:
            if time.monotonic() > deadline:
                for connection in here.values():
                    connection.close()
                raise HostLost(f"{', '.join(missing)} did not come to {me}: look at the log of each of them")
            notices.waiting_for(", ".join(missing))
            server.settimeout(0.5)
            try:
                connection, _ = server.accept()
            except TimeoutError:
                continue
            host = _greeted_by(connection, job, expected=missing)
            if host is None:
                connection.close()
            else:
                here[host] = connection
    return here


def _listen(me: str, deadline: float) -> socket.socket:
    notices = _Notices()
    while True:
        for port in PORTS:
            try:
                return socket.create_server((address_of(me), port))
            except OSError as error:  # its own name may not be known yet; a port may be another job's
                reason = error
        if time.monotonic() > deadline:
            raise HostLost(f"{me} cannot listen on any port from {PORTS[0]} to {PORTS[-1]}: {reason}")
        notices.waiting_for(f"a port of {me} ({reason})")
        time.sleep(0.5)


def _greeted_by(connection: socket.socket, job: str, *, expected: Sequence[str]) -> str | None:
    """The name of a host of this job, answered; None for a stranger."""
    connection.settimeout(HELLO_SECONDS)
    try:
        hello = _receive(connection, "a stranger", most_bytes=4096)
        if not isinstance(hello, dict) or hello.get("job") != job or hello.get("host") not in expected:
            return None
        _send(connection, str(hello["host"]), {"job": job})
    except (HostLost, ValueError, OSError):
        return None
    _keep(connection)
    return str(hello["host"])


def _go_to(leader: str, me: str, job: str, deadline: float) -> socket.socket:
    notices = _Notices()
    while True:
        for port in PORTS:
            with contextlib.suppress(HostLost, ValueError, OSError):
                connection = socket.create_connection((address_of(leader), port), timeout=HELLO_SECONDS)
                try:
                    _send(connection, leader, {"job": job, "host": me})
                    if _receive(connection, leader, most_bytes=4096) == {"job": job}:
                        _keep(connection)
                        return connection
                except BaseException:
                    connection.close()
                    raise
                connection.close()
        if time.monotonic() > deadline:
            raise HostLost(f"{me} could not reach {leader}, which leads: look at its log")
        notices.waiting_for(leader)
        time.sleep(0.1)


def _keep(connection: socket.socket) -> None:
    """No time limit: reading data may take an hour. A machine that vanishes is noticed by the kernel, in two minutes."""
    connection.settimeout(None)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 15), ("TCP_KEEPCNT", 4)):
        if hasattr(socket, name):  # macOS has no TCP_KEEPIDLE
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _send(connection: socket.socket, host: str, content: Any) -> None:
    data = json.dumps(content).encode()
    try:
        connection.sendall(LENGTH.pack(len(data)) + data)
    except OSError as error:
        raise HostLost(f"{host} has gone: look at its log ({error})") from error


def _receive(connection: socket.socket, host: str, *, most_bytes: int = MAX_MESSAGE_BYTES) -> Any:
    try:
        (size,) = LENGTH.unpack(_exactly(connection, LENGTH.size))
        if size > most_bytes:
            raise HostLost(f"{host} says something else than a host of this job would")
        return json.loads(_exactly(connection, size))
    except (OSError, EOFError) as error:
        raise HostLost(f"{host} has gone: look at its log ({error or 'connection closed'})") from error


def _exactly(connection: socket.socket, size: int) -> bytes:
    parts = b"".join(_pieces(connection, size))
    if len(parts) != size:
        raise EOFError("connection closed")
    return parts


def _pieces(connection: socket.socket, size: int) -> Iterator[bytes]:
    while size > 0 and (piece := connection.recv(min(size, 1 << 16))):
        size -= len(piece)
        yield piece


class _Notices:
    """A line every half minute: silence would look like a hang."""

    def __init__(self) -> None:
        self._next = time.monotonic() + 30

    def waiting_for(self, what: str) -> None:
        if time.monotonic() > self._next:
            log.info("Waiting for %s", what)
            self._next = time.monotonic() + 30
