"""What a container reaches of the caller's machine: credentials, in SageMaker's way, and an S3 server on the machine's loopback.

SageMaker tells containers AWS_CONTAINER_CREDENTIALS_RELATIVE_URI, a path at 169.254.170.2, where every AWS SDK asks for keys that
last for a while. Here, as root, that address answers inside each container's network, and where AWS_ENDPOINT_URL is
127.0.0.1:9000, the container's 127.0.0.1:9000 leads to the caller's. An ordinary user may not enter that network: then the keys
are in the environment, and the endpoint is an address of the container's bridge at which this process listens. Isolated
jobs get neither.
"""

import contextlib
import ctypes
import datetime
import fcntl
import http.server
import json
import os
import secrets
import socket
import socketserver
import struct
import sys
import threading
import urllib.parse
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from optml.backends import Launch
from optml.backends.docker_errors import not_there
from optml.engine import shares_our_kernel
from optml.instance_metadata import ENDPOINT, Instance, MetadataServer, listening
from optml.s3 import has_credentials

if TYPE_CHECKING:
    import docker

CREDENTIALS_ADDRESS = ("169.254.170.2", 80)
METADATA_ADDRESS = ("169.254.169.254", 80)
CREDENTIALS_PATH = "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"
ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "S3_ENDPOINT_URL")
ADMISSION_SECONDS = 60.0  # a program may ask before the engine has said that it runs
LIFE_SECONDS = 3600  # of keys that do not expire by themselves: SDKs ask again
BLOCK_BYTES = 1 << 18
CLONE_NEWNET = 0x40000000
SIOCSIFADDR, SIOCSIFNETMASK = 0x8916, 0x891C
ADDRESS_CALL = struct.Struct("16sH2s4s8s")  # struct ifreq with an IPv4 address

Address = tuple[str, int]


class Services:
    """For one container: `environment` before it starts, `open` once it runs, `close` when it has ended."""

    def __init__(
        self,
        environment: Mapping[str, str],
        caller: Mapping[str, str],
        *,
        inside: bool,
        gateway: Callable[[], str | None] = lambda: None,
        instance: Instance | None = None,
    ):
        """`inside`: this process may enter the container's network. `gateway`: this machine's address on it, or a name for it.

        What the request's own Environment says stands.
        """
        self.environment: dict[str, str] = {}
        self.trouble = ""  # what could not be given, and why
        self._known = _Known()
        self.guarded = False  # something waits to be told the container's address: `admit`
        self._servers: list[socketserver.BaseServer | MetadataServer] = []
        self._listeners: list[
            tuple[Callable[[], socket.socket], Callable[[socket.socket], socketserver.BaseServer | MetadataServer]]
        ] = []
        if CREDENTIALS_PATH not in environment and "AWS_ACCESS_KEY_ID" not in environment and has_credentials(caller):
            if inside:
                path = f"/v2/credentials/{secrets.token_hex(16)}"
                self.environment[CREDENTIALS_PATH] = path
                self._listeners.append((listen_for_credentials, partial(CredentialsServer, path=path)))
            else:
                try:
                    self.environment |= keys_as_variables()
                except Exception as error:  # noqa: BLE001  (an expired login, a broken profile: not every job needs them)
                    self.trouble = f"it got no AWS credentials, for the caller's cannot be had: {error}"
        if instance is not None and inside:
            self._listeners.append((listen_for_metadata, partial(MetadataServer, instance=instance)))
        elif instance is not None and (address := gateway()) is not None:
            self.environment[ENDPOINT] = self._metadata_around(address, instance)
        targets = {name: loopback_address(environment.get(name, "")) for name in ENDPOINTS}
        for target in {target for target in targets.values() if target is not None}:
            if inside:
                self._listeners.append((partial(listening, target), partial(Forwarder, target=target)))
            elif address := self._way_around(gateway(), target):
                for name in [name for name in ENDPOINTS if targets[name] == target]:
                    self.environment[name] = with_address(environment[name], address)

    def _metadata_around(self, gateway: str, instance: Instance) -> str:
        """An endpoint that the container reaches if nobody may listen in its network."""
        server = MetadataServer(listening((gateway if gateway[0].isdigit() else "127.0.0.1", 0)), instance=instance)
        self._servers.append(server)
        return f"http://{gateway}:{server.port}"

    def _way_around(self, gateway: str | None, target: Address) -> str | None:
        """Where the container finds `target` if nobody may listen in its network."""
        if gateway is None or not gateway[0].isdigit():
            return gateway and f"{gateway}:{target[1]}"
        forwarder = Forwarder(listening((gateway, 0)), target=target, known=self._known)
        self.guarded = True
        self._serve(forwarder)
        return f"{gateway}:{forwarder.socket.getsockname()[1]}"

    @property
    def wanted(self) -> bool:
        return bool(self._listeners)

    def open(self, pid: int) -> None:
        """`pid`: a process in the container's network, by its number on this machine."""
        for make_socket, make_server in self._listeners:
            server = make_server(in_network_of(pid, make_socket))
            if isinstance(server, MetadataServer):
                self._servers.append(server)  # it serves already
            else:
                self._serve(server)

    def admit(self, addresses: Collection[str]) -> None:
        """The container runs, at these addresses: what listens on the bridge, where others come by, is for it alone."""
        self._known.addresses = frozenset(addresses)
        self._known.told.set()

    def _serve(self, server: socketserver.BaseServer) -> None:
        self._servers.append(server)
        threading.Thread(target=server.serve_forever, args=(0.2,), name="container-service", daemon=True).start()

    def close(self) -> None:
        for server in self._servers:
            threading.Thread(target=_shut, args=(server,), daemon=True).start()  # it waits for the server's next look
        self._servers.clear()


def services_for(client: "docker.DockerClient", launch: Launch, network: str | None) -> Services:
    """`network`: the id of the one it is on, None for the engine's default."""
    if launch.network_isolation:
        return Services({}, {}, inside=True)  # no metadata either: its network reaches nothing
    local = shares_our_kernel(client)

    def gateway() -> str | None:
        if not local:
            return "host.docker.internal"  # as Docker Desktop calls the machine that it runs on
        gateways: list[str] = []
        with not_there():
            content = client.api.inspect_network(network or "bridge")
            gateways = [each["Gateway"] for each in content["IPAM"]["Config"] or () if "Gateway" in each]
        return gateways[0] if gateways else None

    inside = local and os.geteuid() == 0
    return Services(launch.environment, os.environ, inside=inside, gateway=gateway, instance=launch.instance)


def _shut(server: socketserver.BaseServer | MetadataServer) -> None:
    if isinstance(server, MetadataServer):
        server.close()
        return
    server.shutdown()
    server.server_close()


# Credentials.


def _caller_credentials() -> Any:
    import botocore.session

    return botocore.session.get_session().get_credentials()


def keys_as_variables() -> dict[str, str]:
    credentials = _caller_credentials()
    if credentials is None:
        return {}
    frozen = credentials.get_frozen_credentials()
    token = {"AWS_SESSION_TOKEN": frozen.token} if frozen.token else {}
    return {"AWS_ACCESS_KEY_ID": frozen.access_key, "AWS_SECRET_ACCESS_KEY": frozen.secret_key, **token}


def credentials_document() -> dict[str, str] | None:
    """The caller's keys as the container-credentials protocol has them; None if there are none."""
    credentials = _caller_credentials()
    if credentials is None:
        return None
    frozen = credentials.get_frozen_credentials()
    expires = getattr(credentials, "_expiry_time", None) or (
        datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=LIFE_SECONDS)
    )
    return {
        "AccessKeyId": frozen.access_key,
        "SecretAccessKey": frozen.secret_key,
        "Token": frozen.token or "",
        "Expiration": expires.astimezone(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }


class CredentialsServer(http.server.ThreadingHTTPServer):
    """Answers at one secret path."""

    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Nothing for a program that goes away in the middle of its request: it may."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)

    def __init__(self, listener: socket.socket, *, path: str):
        super().__init__(CREDENTIALS_ADDRESS, _CredentialsHandler, bind_and_activate=False)
        self.socket.close()
        self.socket = listener
        self.path = path


class _CredentialsHandler(http.server.BaseHTTPRequestHandler):
    server: CredentialsServer

    def do_GET(self) -> None:
        status, content = 404, {"message": "no such credentials"}
        if self.path == self.server.path:
            try:
                document = credentials_document()
            except Exception as error:  # noqa: BLE001  (an expired login, a broken profile: the job should read it)
                status, content = 500, {"message": f"the caller's credentials cannot be had: {error}"}
            else:
                if document is not None:
                    status, content = 200, document
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Nothing: these are the job's own requests."""


# The way to a server on the caller's loopback.


def loopback_address(url: str) -> Address | None:
    """Host and port of a URL of this machine alone; None for any other."""
    parts = urllib.parse.urlsplit(url)
    host = parts.hostname or ""
    if host not in ("localhost", "::1") and not host.startswith("127."):
        return None
    port = parts.port or (443 if parts.scheme == "https" else 80)
    return ("127.0.0.1" if host == "localhost" else host, port)


def with_address(url: str, address: str) -> str:
    return urllib.parse.urlunsplit(urllib.parse.urlsplit(url)._replace(netloc=address))


class _Known:
    """The addresses that may connect, once they are known: an engine gives a container its address when it starts."""

    def __init__(self) -> None:
        self.addresses: frozenset[str] = frozenset()
        self.told = threading.Event()


class Forwarder(socketserver.ThreadingTCPServer):
    """Every connection to the listener becomes one to `target`, as this process reaches it; of those not `known`, none."""

    daemon_threads = True

    def __init__(self, listener: socket.socket, *, target: Address, known: _Known | None = None):
        super().__init__(target, _ForwardingHandler, bind_and_activate=False)
        self.socket.close()
        self.socket = listener
        self.target = target
        self.known = known


class _ForwardingHandler(socketserver.BaseRequestHandler):
    server: Forwarder

    def handle(self) -> None:
        known = self.server.known
        if known is not None and not (known.told.wait(ADMISSION_SECONDS) and self.client_address[0] in known.addresses):
            return
        with contextlib.suppress(OSError), socket.create_connection(self.server.target, timeout=10) as there:
            there.settimeout(None)
            back = threading.Thread(target=_copy, args=(there, self.request), daemon=True)
            back.start()
            _copy(self.request, there)
            back.join()


def _copy(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while part := source.recv(BLOCK_BYTES):
            target.sendall(part)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)


# Inside a container's network.


def in_network_of(pid: int, make_socket: Callable[[], socket.socket]) -> socket.socket:
    """A socket made in another network namespace. It stays there; the thread that made it does not outlive this call."""
    made: list[socket.socket] = []
    failed: list[OSError] = []

    def enter() -> None:
        try:
            namespace = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY)
            try:
                if ctypes.CDLL(None, use_errno=True).setns(namespace, CLONE_NEWNET):
                    raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
                made.append(make_socket())
            finally:
                os.close(namespace)
        except OSError as error:
            failed.append(error)

    thread = threading.Thread(target=enter, name="enter-network")
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return made[0]


def listen_for_credentials() -> socket.socket:
    """Give the loopback interface the address at which SDKs ask, and listen there."""
    return listen_at_address_of_its_own(CREDENTIALS_ADDRESS, b"lo:aws")


def listen_for_metadata() -> socket.socket:
    """The same for the address of EC2's instance metadata."""
    return listen_at_address_of_its_own(METADATA_ADDRESS, b"lo:imds")


def listen_at_address_of_its_own(address: Address, label: bytes) -> socket.socket:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        for call, number in ((SIOCSIFADDR, address[0]), (SIOCSIFNETMASK, "255.255.255.255")):
            request = ADDRESS_CALL.pack(label, socket.AF_INET, b"", socket.inet_aton(number), b"")
            fcntl.ioctl(control, call, request)
    return listening(address)
