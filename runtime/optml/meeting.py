"""Where the hosts of a job meet if other jobs use their network too: at SageMaker's ports if no other job does, else at others.

A slot is the number of a job among those that run at once. It goes into the hosts' job-secret.json, and their toolkit adds it to
the port.
"""

import contextlib
import socket
from dataclasses import dataclass

MASTER_PORT = 7777  # SageMaker's: that of slot 0
SLOTS = 100


@dataclass
class Slot:
    """Held by an open socket: given back, at the latest, when this process ends, however it does."""

    number: int = 0
    _holder: socket.socket | None = None

    def give_back(self) -> None:
        if self._holder is not None:
            self._holder.close()
            self._holder = None


def take_slot() -> Slot:
    """The first one that no other job of this machine holds, and whose port nobody else listens on."""
    for number in range(SLOTS):
        holder = socket.socket(socket.AF_UNIX)
        with contextlib.suppress(OSError):
            # A name in Linux's abstract namespace, which all users of a network share and no file stands for.
            holder.bind(f"\0optml-slot-{number}")
            if _is_free(MASTER_PORT + number):
                return Slot(number, holder)
        holder.close()
    return Slot()  # also where there is no such namespace (macOS): whoever comes second is told that the port is taken


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True
