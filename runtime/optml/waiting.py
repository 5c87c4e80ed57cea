"""While no host runs: until the next machine comes, or until a failed attempt may be tried again."""

from optml.capacity import NEVER
from optml.console import duration_text
from optml.errors import CapacityError
from optml.record import WAITING_MESSAGE
from optml.running import Run, check_stop

WAIT_LOOK_SECONDS = 0.1  # between looks for a stop while there is no capacity
WAIT_TEXT_SECONDS = 30.0  # silence is no longer than this


class WaitExceeded(Exception):
    """MaxWaitTimeInSeconds passed while no host was running."""


def wait_for_capacity(it: Run) -> None:
    """Until the next machine comes. A step that can be stopped, and that MaxWait ends."""
    if it.capacity is None:
        return
    began = it.clock.monotonic()
    arrival = it.capacity.arrival(began)
    if arrival <= began:
        return
    if arrival == NEVER and it.out_of_wait_at is None:
        raise CapacityError(
            "there is no machine any more: the trace ends without one, and the job has no MaxWaitTimeInSeconds to wait for"
        )
    it.record.transition("Starting", message=WAITING_MESSAGE)
    it.events.note("waiting")
    until = "" if arrival == NEVER else f" for {duration_text(arrival - began)}"
    it.console.say(f"No capacity{until}")
    said = began
    while (now := it.clock.monotonic()) < arrival:
        check_stop(it)
        if it.out_of_wait_at is not None and now >= it.out_of_wait_at:
            raise WaitExceeded
        if now - said >= WAIT_TEXT_SECONDS:
            said = now
            it.console.say(f"Waiting for capacity: {duration_text(now - began)} so far")
        it.clock.wait([], min(WAIT_LOOK_SECONDS, arrival - now))
    it.events.note("machine-there")


def pause(it: Run, seconds: float) -> None:
    """A step that can be stopped."""
    again = it.clock.monotonic() + seconds
    while it.clock.monotonic() < again:
        check_stop(it)
        it.clock.sleep(WAIT_LOOK_SECONDS)
