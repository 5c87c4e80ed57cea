"""Whether this run is to end: SIGTERM, the platform's notice file, or EC2's metadata, on any rank; and how all agree on when."""

import json
import logging
import os
import signal
import threading
import time
import urllib.error
import urllib.request
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

from optml_toolkit.container import Container, UserError
from optml_toolkit.distributed.setup import Run

log = logging.getLogger("optml_toolkit.distributed")

METADATA = "AWS_EC2_METADATA_SERVICE_ENDPOINT"
LOOK_SECONDS = 1.0  # at the notice file
ASK_SECONDS = 5.0  # the metadata service, as EC2's guide advises
SHORT_STEP_MS = 1000
ASKED_MS = 200  # between two questions, if steps are shorter


class Notices:
    """What this rank was told. `begin` and `end` enclose the training: outside of it SIGTERM means what it did before."""

    def __init__(self, container: Container):
        self.why: str | None = None
        self._container = container
        self._before: Any = None
        self._next_look = 0.0
        self._ending = threading.Event()

    def begin(self) -> None:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._on_sigterm)
        endpoint = os.environ.get(METADATA)
        if endpoint:
            threading.Thread(target=self._ask, args=(endpoint.rstrip("/"),), name="metadata", daemon=True).start()

    def end(self) -> None:
        self._ending.set()
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
            self._before = None

    def _on_sigterm(self, _number: int, _frame: FrameType | None) -> None:
        # A second one changes nothing: the save is under way, and the last complete checkpoint stands whatever happens.
        self.why = self.why or "SIGTERM"

    def told(self) -> bool:
        now = time.monotonic()
        if self.why is None and now >= self._next_look:
            self._next_look = now + LOOK_SECONDS
            try:
                notice = self._container.interruption_notice
            except UserError:  # it is just being written
                notice = None
            if notice is not None:
                self.why = f"notice: {notice.get('action', 'terminate')} at {notice.get('time', 'an unknown time')}"
        return self.why is not None

    def _ask(self, endpoint: str) -> None:
        address = f"{endpoint}/latest/meta-data/spot/instance-action"
        pause_seconds = 0.0
        while self.why is None and not self._ending.wait(pause_seconds):
            pause_seconds = ASK_SECONDS
            try:
                headers = {"X-aws-ec2-metadata-token": _token(endpoint)}
                with urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=2) as answer:
                    notice = json.loads(answer.read())
                self.why = f"instance metadata: {notice.get('action')} at {notice.get('time')}"
            except urllib.error.HTTPError:  # 404: no notice
                continue
            except (OSError, ValueError, AttributeError):
                continue


def _token(endpoint: str) -> str:
    request = urllib.request.Request(
        f"{endpoint}/latest/api/token", method="PUT", headers={"X-aws-ec2-metadata-token-ttl-seconds": "60"}
    )
    with urllib.request.urlopen(request, timeout=2) as answer:
        token: str = answer.read().decode()
    return token


class Agreement:
    """What any rank wants, known to all ranks at the same step: a small maximum over all ranks.

    It is begun at one step's end and read at the next one's, so nobody waits for it; every rank reads the same values at the same
    step, and that is what makes them act together. Short steps are asked about a few at a time, long ones (a second and more) are
    read at once: how long they are is among the values, so the ranks agree on that too.
    """

    def __init__(self, run: Run):
        self.run = run
        self._values = torch.zeros(3, dtype=torch.int64)
        self._pending: Any = None
        self._long_steps = False
        self._every, self._steps = 1, 0  # steps between two questions, steps since the last

    def exchange(self, *, stop: bool, save: bool, step_ms: int) -> tuple[bool, bool]:
        """(stop, save): whether any rank wanted it, as far as all know. What one wants it repeats until it has come about."""
        if self.run.world_size == 1:
            return stop, save
        known = self._read() if self._pending is not None else (False, False)
        self._steps += 1
        if self._steps < self._every or any(known):
            return known
        self._steps = 0
        self._values = torch.tensor([int(stop), int(save), step_ms], dtype=torch.int64)
        self._pending = dist.all_reduce(self._values, op=dist.ReduceOp.MAX, group=self.run.control_group, async_op=True)
        return self._read() if self._long_steps else known

    def _read(self) -> tuple[bool, bool]:
        self._pending.wait()
        self._pending = None
        stop, save, step_ms = self._values.tolist()
        self._long_steps = step_ms > SHORT_STEP_MS
        self._every = max(1, ASKED_MS // max(1, min(step_ms, ASKED_MS)))
        return bool(stop), bool(save)

    def finish(self) -> bool:
        """At the end of the training: what the last exchange said about stopping."""
        return self._pending is not None and self._read()[0]
