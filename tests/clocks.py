"""Clocks that do not go by how fast the machine is: what a test says of time holds on a loaded one too."""

import time
from collections.abc import Sequence

from optml.clock import Clock


class HeldClock(Clock):
    """Time stands still until the test turns it. Whoever waits on it looks again soon, and waits on."""

    def __init__(self) -> None:
        self._wall, self._start, self._turned = time.time(), time.monotonic(), 0.0

    def turn(self, seconds: float) -> None:
        self._turned += seconds

    def now(self) -> float:
        return self._wall + self._turned

    def monotonic(self) -> float:
        return self._start + self._turned

    def sleep(self, seconds: float) -> None:
        super().sleep(min(seconds, 0.01))

    def wait(self, descriptors: Sequence[int], seconds: float) -> None:
        super().wait(descriptors, min(seconds, 0.01))


class WaitedClock(HeldClock):
    """Time passes only while somebody waits, by what they asked for, and `factor` times as fast."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.factor = factor

    def sleep(self, seconds: float) -> None:
        time.sleep(max(0.0, seconds) / self.factor)
        self.turn(max(0.0, seconds))

    def wait(self, descriptors: Sequence[int], seconds: float) -> None:
        Clock.wait(self, descriptors, seconds / self.factor)
        self.turn(max(0.0, seconds))
