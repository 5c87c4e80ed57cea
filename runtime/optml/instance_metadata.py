"""EC2's instance metadata, as far as a training script asks for it: what the machine is, and whether it is about to end.

A spot instance hears of its end at `spot/instance-action`, which is 404 until there is a notice. With a token (IMDSv2) or
without (IMDSv1), as EC2 has it. In a container it answers at 169.254.169.254; elsewhere AWS_EC2_METADATA_SERVICE_ENDPOINT
names it. Sources: the EC2 user guide on instance metadata and on spot interruption notices.
"""

import datetime
import hashlib
import json
import secrets
import sys
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import socket

ENDPOINT = "AWS_EC2_METADATA_SERVICE_ENDPOINT"
TOKEN = "X-aws-ec2-metadata-token"
LONGEST_TOKEN_SECONDS = 21_600


@dataclass
class Notice:
    """Whether and when a host is taken away; set by the platform, read by the host's metadata service."""

    ends_at: float | None = None  # epoch seconds

    def document(self) -> dict[str, str] | None:
        """What EC2 answers at spot/instance-action; also the content of the notice file."""
        return None if self.ends_at is None else {"action": "terminate", "time": utc(self.ends_at)}


@dataclass(frozen=True, kw_only=True)
class Instance:
    """The machine that a host is said to be."""

    id: str
    type: str  # as in EC2: m5.large
    region: str
    host: str
    notice: Notice = field(compare=False)

    @classmethod
    def of(cls, *, job_name: str, attempt: int, host: str, instance_type: str, region: str) -> "Instance":
        """A new machine for every attempt, and so a new id."""
        digest = hashlib.sha256(f"{job_name}/{attempt}/{host}".encode()).hexdigest()
        return cls(
            id=f"i-{digest[:17]}",
            type=instance_type.removeprefix("ml."),
            region=region,
            host=host,
            notice=Notice(),
        )


def utc(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def answer(instance: Instance, path: str) -> str | None:
    """The text at a path below /latest/meta-data; None for what is not there."""
    notice = instance.notice.document()
    known = {
        "instance-id": instance.id,
        "instance-type": instance.type,
        "instance-life-cycle": "spot",
        "local-hostname": instance.host,
        "placement/region": instance.region,
        "placement/availability-zone": f"{instance.region}a",
        "spot/instance-action": None if notice is None else json.dumps(notice),
        "spot/termination-time": None if notice is None else notice["time"],
    }
    return known.get(path.strip("/"))


def listening(address: tuple[str, int]) -> "socket.socket":
    import socket

    listener = socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
        listener.listen(128)
    except OSError:
        listener.close()
        raise
    return listener


class MetadataServer:
    """Answers at a listening socket, from a thread of its own, until it is closed."""

    def __init__(self, listener: "socket.socket", instance: Instance):
        from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

        tokens: dict[str, float] = {}

        class Handler(BaseHTTPRequestHandler):
            timeout = 10

            def do_PUT(self) -> None:
                lifetime = self.headers.get(f"{TOKEN}-ttl-seconds", "")
                if self.path != "/latest/api/token":
                    self._send(404)
                elif not lifetime.isdigit() or not 1 <= int(lifetime) <= LONGEST_TOKEN_SECONDS:
                    self._send(400)
                else:
                    token = secrets.token_urlsafe(40)
                    tokens[token] = time.monotonic() + int(lifetime)
                    self._send(200, token, {f"{TOKEN}-ttl-seconds": lifetime})

            def do_GET(self) -> None:
                token = self.headers.get(TOKEN)
                if token is not None and tokens.get(token, 0.0) < time.monotonic():
                    self._send(401)
                    return
                path = self.path.partition("?")[0]
                text = answer(instance, path.removeprefix("/latest/meta-data/")) if "/meta-data/" in path else None
                self._send(404 if text is None else 200, text or "")

            def _send(self, status: int, text: str = "", headers: dict[str, str] | None = None) -> None:
                body = text.encode()
                self.send_response(status)
                self.send_header("Content-Type", "text/plain")
                self.send_header("Content-Length", str(len(body)))
                for name, value in (headers or {}).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                """Nothing: these are the job's own requests."""

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: object, client_address: object) -> None:
                """Nothing for a program that goes away in the middle of its request: it may."""
                if not isinstance(sys.exception(), OSError):
                    super().handle_error(request, client_address)  # type: ignore[arg-type]

        self._server = Server(listener.getsockname()[:2], Handler, bind_and_activate=False)
        self._server.socket.close()
        self._server.socket = listener
        host, self.port = listener.getsockname()[:2]
        self.endpoint = f"http://{host}:{self.port}"
        threading.Thread(target=self._server.serve_forever, args=(0.2,), name="metadata", daemon=True).start()

    def close(self) -> None:
        def shut() -> None:  # it waits for the server's next look
            self._server.shutdown()
            self._server.server_close()

        threading.Thread(target=shut, daemon=True).start()
