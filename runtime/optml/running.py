"""What every step of a running job needs: the job and where it runs, and whether somebody wants it to stop."""

import functools
from collections.abc import Callable
from dataclasses import dataclass

from optml.backends import Backend
from optml.capacity import Capacity
from optml.clock import Clock
from optml.console import Console
from optml.events import Events
from optml.images import Image
from optml.record import Record
from optml.spec import TrainingJob


class StopRequested(Exception):
    """Somebody asked to stop while no host was running."""


@dataclass(kw_only=True)
class Run:
    """What every step of a job needs."""

    job: TrainingJob
    image: Image
    record: Record
    backend: Backend
    console: Console
    clock: Clock
    stop_requested: Callable[[], bool]
    hurry: Callable[[], bool] = lambda: False
    disks_matter: bool = False  # hosts have run, and what they left is not uploaded yet
    trained_seconds: float = 0.0  # in all attempts that have ended

    @functools.cached_property
    def began(self) -> float:
        """The job's creation, in monotonic seconds."""
        return self.clock.monotonic() - (self.clock.now() - float(self.record.describe["CreationTime"]))

    @property
    def out_of_wait_at(self) -> float | None:
        """MaxWait counts from the job's creation. Monotonic seconds; None: no such limit."""
        longest = self.job.stopping.max_wait_seconds
        return None if longest is None else self.began + longest

    @functools.cached_property
    def capacity(self) -> Capacity | None:
        """None: machines are always there, and stay."""
        plan = self.job.options.interruptions
        return None if plan is None else Capacity(plan, began=self.began)

    @functools.cached_property
    def events(self) -> Events:
        options = self.job.options
        wanted = options.evidence or options.interruptions is not None
        return Events(self.record.job_dir.events_file if wanted else None, self.clock)


def check_stop(it: Run) -> None:
    if it.stop_requested():
        raise StopRequested
