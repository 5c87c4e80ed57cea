"""Wait until every host of the job can be found by name: hosts do not come up at the same moment."""

import logging
import os
import socket
import time
from collections.abc import Sequence

from optml_toolkit.container import UserError

WAIT_SECONDS = 15 * 60.0  # as long as AWS's toolkit
PLAIN_WAIT_SECONDS = 30.0  # for a script without a launcher, which may need no peer at all
SAY_SECONDS = 30.0
SKIPPED_BY = "SM_STUDIO_LOCAL_MODE"

log = logging.getLogger("script_mode")


def wait_for_peers(hosts: Sequence[str], *, needed: bool, wait_seconds: float | None = None) -> None:
    """Return when all names resolve.

    If the hosts need each other, UserError naming those that do not within `wait_seconds`. Else a warning does: where names are
    those of running containers, a host that has ended already has none.
    """
    if wait_seconds is None:
        wait_seconds = WAIT_SECONDS if needed else PLAIN_WAIT_SECONDS
    if len(hosts) < 2 or os.environ.get(SKIPPED_BY, "").lower() == "true":
        return
    began = said = time.monotonic()
    pause = 0.05
    while missing := [host for host in hosts if not resolves(host)]:
        now = time.monotonic()
        if now - began >= wait_seconds and not needed:
            log.warning("%s cannot be found by name, and may have ended already: going on without", ", ".join(missing))
            return
        if now - began >= wait_seconds:
            raise UserError(
                f"{', '.join(missing)} never came up: the name does not resolve after {wait_seconds:.0f} s. Look at the log of "
                "that host, and whether the hosts share a network"
            )
        if now - said >= SAY_SECONDS:
            said = now
            log.info("Waiting for %s to come up (%.0f s)", ", ".join(missing), now - began)
        time.sleep(min(pause, max(0.0, began + wait_seconds - now)))
        pause = min(2.0, pause * 1.5)


def resolves(host: str) -> bool:
    try:
        socket.getaddrinfo(host, None)
    except OSError:
        return False
    return True
