"""How the hosts of an MPI job meet: messages, and how each knows that the other is of the job.

Each other host connects to the first and shows that it knows the job's secret, as the first does in turn. The secret itself is
never sent.
"""

import contextlib
import hmac
import json
import logging
import os
import socket
import tempfile
import threading
from typing import Any

from optml_toolkit.container import UserError
from optml_toolkit.script_mode.job import ScriptJob

FIRST_PORT, PORTS = 20_000, 10_000  # below those that Linux gives to programs which ask for any
ANSWER_SECONDS = 30.0  # for a message that must come at once
MAX_MESSAGE_BYTES = 1 << 20

log = logging.getLogger("script_mode")


class Connection:
    """Messages, one JSON object a line. `receive` gives None at the end, and for what is no message."""

    def __init__(self, to: socket.socket):
        self._socket = to
        self._file = to.makefile("rb")
        self._sending = threading.Lock()

    def send(self, **message: Any) -> bool:
        """Whether it could be sent."""
        try:
            with self._sending:
                self._socket.sendall(json.dumps(message).encode() + b"\n")
        except OSError:
            return False
        return True

    def receive(self, seconds: float | None = None) -> dict[str, Any] | None:
        try:
            self._socket.settimeout(seconds)
            line = self._file.readline(MAX_MESSAGE_BYTES)
            self._socket.settimeout(None)
            message = json.loads(line) if line.endswith(b"\n") else None
        except (OSError, ValueError):
            return None
        return message if isinstance(message, dict) else None

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._file.close()
        self._socket.close()


def secret_of(job: ScriptJob) -> bytes:
    """The platform's, or where it gives none what the hosts know anyway. UserError if strangers could know it, too."""
    secret = job.container.job_secret
    if secret:
        return secret.encode()
    if socket.gethostbyname(job.master_host).startswith("127."):
        raise UserError(
            "distribution mpi on several hosts of one machine needs input/config/job-secret.json, the same on each host, "
            '{"secret": "..."} with a random text: others can connect to the loopback, too. optml writes it'
        )
    log.warning(
        "input/config/job-secret.json is not there: the hosts trust whoever reaches their network, as SageMaker's do"
    )
    return os.environ.get("TRAINING_JOB_ARN", job.training_job_name or "").encode()


def port_of(secret: bytes) -> int:
    """Where the first host listens: jobs that share a machine's network hardly ever have the same."""
    return FIRST_PORT + int.from_bytes(hmac.digest(secret, b"port", "sha256")[:4], "big") % PORTS


def proof(secret: bytes, who: str, *nonces: str) -> str:
    return hmac.new(secret, "/".join((who, *nonces)).encode(), "sha256").hexdigest()


def is_proof(given: Any, expected: str) -> bool:
    return isinstance(given, str) and hmac.compare_digest(given.encode(), expected.encode())


def private_folder() -> "tempfile.TemporaryDirectory[str]":
    """Only this user's, with a name short enough for a socket in it."""
    folder = tempfile.TemporaryDirectory(prefix="optml-mpi-", ignore_cleanup_errors=True)
    if len(os.fsencode(folder.name)) <= 80:
        return folder
    folder.cleanup()
    return tempfile.TemporaryDirectory(prefix="optml-mpi-", dir="/tmp", ignore_cleanup_errors=True)
