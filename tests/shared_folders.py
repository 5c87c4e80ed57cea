"""Folders that all workers of a test run share."""

import fcntl
from dataclasses import dataclass
from pathlib import Path


@dataclass
class SharedFolder:
    """A folder of all workers, which they use one at a time while they are in the `with`."""

    path: Path

    def __enter__(self) -> "SharedFolder":
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = self.path.with_name(f"{self.path.name}.lock").open("w")
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.close()
