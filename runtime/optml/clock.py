"""Time as a parameter: whatever waits takes a Clock, so that a test of a two-minute notice takes milliseconds."""

import select
import time
from collections.abc import Sequence


class Clock:
    """The real clock. Tests pass one whose time runs faster."""

    def now(self) -> float:
        """Wall time in seconds since the epoch: for records, never for measuring."""
        return time.time()

    def monotonic(self) -> float:
        """Seconds that only grow: for measuring and for limits."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        time.sleep(max(0.0, seconds))

    def wait(self, descriptors: Sequence[int], seconds: float) -> None:
        """Sleep until one of the file descriptors can be read, or for so long."""
        poller = select.poll()
        for descriptor in descriptors:
            poller.register(descriptor, select.POLLIN)
        poller.poll(max(0.0, seconds) * 1000)


class FastClock(Clock):
    """A clock on which `factor` seconds pass for each real one."""

    def __init__(self, factor: float):
        self.factor = factor
        self._wall, self._start = time.time(), time.monotonic()

    def now(self) -> float:
        return self._wall + self.monotonic() - self._start

    def monotonic(self) -> float:
        return self._start + (time.monotonic() - self._start) * self.factor

    def sleep(self, seconds: float) -> None:
        super().sleep(seconds / self.factor)

    def wait(self, descriptors: Sequence[int], seconds: float) -> None:
        super().wait(descriptors, seconds / self.factor)
