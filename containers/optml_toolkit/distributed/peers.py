"""Who is still there. Each process counts up in a store that rank 0 keeps; one whose count stands still is dead.

A process that dies closes its connections, and gloo's collectives fail at once. One that hangs, a host that is cut off, or NCCL,
which waits in the GPU, are only found this way.
"""

import contextlib
import datetime
import logging
import os
import sys
import threading
import time

import torch.distributed as dist
from torch._C._distributed_c10d import TCPStore  # torch.distributed's, which exports it to no checker

log = logging.getLogger("optml_toolkit.distributed")
LEFT = b"left"


class Peers:
    """A thread that says `I am here` and looks whether the others do. Constructing it is a collective call."""

    def __init__(self, *, rank: int, world_size: int, address: str, name: str, dead_seconds: float | None):
        self.rank, self.world_size, self.dead_seconds = rank, world_size, dead_seconds
        self._store: TCPStore | None = None
        self._leaving = threading.Event()
        self._thread: threading.Thread | None = None
        if world_size == 1 or dead_seconds is None:
            return
        self._pause_seconds = min(1.0, dead_seconds / 5)
        self._store = self._meet(address)
        self._store.set(f"name/{rank}", name)
        self._store.set(f"alive/{rank}", "0")
        self._names = {other: self._store.get(f"name/{other}").decode() for other in range(world_size)}
        for other in range(world_size):
            self._store.get(f"alive/{other}")
        self._thread = threading.Thread(target=self._watch, name="peers", daemon=True)
        self._thread.start()

    def _meet(self, address: str) -> TCPStore:
        """A store of its own beside torch's: that one belongs to torchrun, and outlives its workers."""
        timeout = datetime.timedelta(seconds=60)
        port: list[int | None] = [None]
        if self.rank == 0:
            server = TCPStore("localhost", 0, is_master=True, wait_for_workers=False, timeout=timeout)
            port = [server.port]
        dist.broadcast_object_list(port, src=0)
        if self.rank == 0:
            return server
        assert port[0] is not None
        return TCPStore(address, port[0], is_master=False, wait_for_workers=False, timeout=timeout)

    def _watch(self) -> None:
        assert self._store is not None
        assert self.dead_seconds is not None
        others = [rank for rank in range(self.world_size) if rank != self.rank]
        count, looked = 0, time.monotonic()
        seen: dict[int, tuple[bytes, float]] = dict.fromkeys(others, (b"", looked))
        while not self._leaving.wait(self._pause_seconds):
            count += 1
            try:
                self._store.set(f"alive/{self.rank}", str(count))
                values = self._store.multi_get([f"alive/{rank}" for rank in others])
            except (RuntimeError, OSError):
                # Rank 0 keeps the store: it has left, or it is dead, and gloo's own error may say so first.
                if seen.get(0, (LEFT, 0.0))[0] != LEFT:
                    self._end(0, "has closed its connection")
                return
            now = time.monotonic()
            if now - looked > self.dead_seconds / 2:  # this process itself stood still: the others may have done so too
                seen = {rank: (value, now) for rank, (value, _) in seen.items()}
            looked = now
            for rank, value in zip(others, values, strict=True):
                before, since = seen[rank]
                if value != before:
                    seen[rank] = (value, now)
                elif value != LEFT and now - since > self.dead_seconds:
                    self._end(rank, f"has not been heard of for {now - since:.0f} s")

    def _end(self, rank: int, how: str) -> None:
        """Say it and end this process: its main thread may wait in a collective that nothing else ends."""
        if self._leaving.wait(2.0):  # it hears the same from the collective, and is about to say more
            return
        text = f"rank {rank} ({self._names[rank]}) {how}: rank {self.rank} ends. A restart goes on from the last checkpoint."
        print(text, file=sys.stderr, flush=True)
        os._exit(1)

    def stop(self, *, seconds: float = 5.0) -> bool:
        """Look no more, and tell nobody. False if the thread cannot be had back: it waits for a store that does not answer."""
        self._leaving.set()
        if self._thread is not None:
            self._thread.join(seconds)
        return self._thread is None or not self._thread.is_alive()

    def leave(self) -> None:
        """Tell the others that this process ends as it should; rank 0 stays until they have heard it."""
        if not self.stop() or self._store is None:
            return
        with contextlib.suppress(RuntimeError, OSError):
            self._store.set(f"alive/{self.rank}", LEFT.decode())
            if self.rank == 0:
                keys = [f"alive/{rank}" for rank in range(self.world_size)]
                # Those still at work hear in their next look that the store goes, and do without.
                deadline = time.monotonic() + 2.5 * self._pause_seconds
                while time.monotonic() < deadline and any(value != LEFT for value in self._store.multi_get(keys)):
                    time.sleep(0.02)
