"""The training phase of one attempt: its limits and its lease, and what is said and recorded when it is about to end."""

from optml.attempt import Attempt
from optml.capacity import Lease
from optml.console import duration_text
from optml.running import Run
from optml.spec import How, SignalTo
from optml.supervise import Ended, Limits, Why


def train(it: Run, attempt: Attempt) -> Ended:
    """The training phase of one attempt; its seconds count towards MaxRuntime and the plan of interruptions."""
    began = it.clock.monotonic()

    def lease() -> Lease | None:
        if it.capacity is None:
            return None
        now = it.clock.monotonic()
        return it.capacity.lease(now, trained_seconds=it.trained_seconds + now - began)

    def on_no_host_ends() -> None:
        assert it.capacity is not None
        now = it.clock.monotonic()
        it.capacity.interrupted(trained_seconds=it.trained_seconds + now - began, trigger=attempt.trigger)

    def on_ending(why: Why) -> None:
        if why is Why.INTERRUPTED:
            note_interruption(it, attempt, trained_seconds=it.trained_seconds + it.clock.monotonic() - began)
        announce(it, why)

    try:
        return attempt.run(
            limits(it, began),
            stop_requested=lambda: it.stop_requested() or it.record.is_lost(),
            hurry=it.hurry,
            on_ending=on_ending,
            lease=lease,
            on_no_host_ends=on_no_host_ends,
        )
    finally:
        it.trained_seconds += it.clock.monotonic() - began


def limits(it: Run, training_began: float) -> Limits:
    """MaxRuntime counts the training of all attempts together, without what lies between."""
    return Limits(
        out_of_time_at=training_began + it.job.stopping.max_runtime_seconds - it.trained_seconds,
        out_of_wait_at=it.out_of_wait_at,
        grace_seconds=it.job.options.grace_seconds,
    )


def note_interruption(it: Run, attempt: Attempt, *, trained_seconds: float) -> None:
    assert it.capacity is not None
    it.capacity.interrupted(trained_seconds=trained_seconds, trigger=attempt.trigger)
    plan, cause = it.capacity.plan, str(attempt.trigger or f"after {duration_text(trained_seconds)} of training")
    it.events.note("interrupted", Cause=cause, TrainedSeconds=trained_seconds)
    how = (
        f"SIGTERM sent{' to every process' if plan.signal_to is SignalTo.EVERY_PROCESS else ''}, "
        f"SIGKILL after {duration_text(plan.notice_seconds)}"
        if plan.notice_seconds
        else "SIGKILL at once"
    )
    if plan.how is How.HANG:
        how = f"programs stand still for {duration_text(plan.notice_seconds)}, then SIGKILL"
    who = plan.host or "all hosts"
    it.console.say(f"Interruption {it.capacity.interruptions} of {who}, {cause}: {how}", important=True)


def announce(it: Run, why: Why) -> None:
    """Enter Stopping before the hosts hear of it."""
    grace = duration_text(it.job.options.grace_seconds)
    if why in (Why.STOPPED, Why.OUT_OF_TIME, Why.OUT_OF_WAIT):
        it.record.transition("Stopping", status="Stopping")
        stopping = it.job.stopping
        longest = stopping.max_wait_seconds if why is Why.OUT_OF_WAIT else stopping.max_runtime_seconds
        what = "stop requested" if why is Why.STOPPED else f"{why} after {longest} s"
        it.console.say(f"Stopping: {what}; SIGTERM sent, SIGKILL after {grace} (a second Ctrl-C: at once)")
    elif why is Why.FAILED and len(it.job.hosts) > 1:
        it.console.say(f"a host failed: stopping the others (SIGTERM, SIGKILL after {grace})")
