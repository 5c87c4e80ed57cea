"""Wait for an attempt to end, and say why.

Why is decided in one pure function, from what the platform itself did (it knows that it sent the signal) and the hosts' exit
codes; never from exit codes alone, for a user's stop must not read as Failed.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from optml.backends import Host, HostLost
from optml.clock import Clock
from optml.errors import OptmlError

BUSY_SECONDS = 0.02  # between looks while lines come
IDLE_SECONDS = 0.1  # and when nothing has come for a while
QUIET_LOOKS = 25  # looks without a line before a job counts as idle


class Why(StrEnum):
    FINISHED = "finished"  # every host's program ended with exit code 0
    FAILED = "failed"  # a host's program ended with another
    STOPPED = "stopped"  # somebody asked
    OUT_OF_TIME = "out of time"  # MaxRuntimeInSeconds
    OUT_OF_WAIT = "out of wait"  # MaxWaitTimeInSeconds
    LOST = "lost"  # the platform lost a host: the only end that is retried
    INPUT_FAILED = "input failed"  # a Pipe channel could not be fed
    INTERRUPTED = "interrupted"  # the platform takes the machines away; the job goes on with new ones


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How an attempt ended. `first` is the host that ended it, where one did."""

    why: Why
    exit_codes: Mapping[str, int] = field(default_factory=dict)
    first: str | None = None
    killed: tuple[str, ...] = ()  # hosts that had to be killed after the grace
    cut_short: tuple[str, ...] = ()  # hosts whose program a signal ended
    remarks: Mapping[str, str] = field(default_factory=dict)  # what a host's backend knows beyond its exit code
    detail: str = ""
    error: OptmlError | None = None


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Monotonic seconds of the job's clock; None: no such limit."""

    out_of_time_at: float | None = None
    out_of_wait_at: float | None = None
    grace_seconds: float = 120.0


@dataclass(frozen=True, kw_only=True)
class Interruption:
    """How machines are taken away when an attempt's lease is over. All of them go; `host`, if given, is the one that hears."""

    notice_seconds: float = 120.0  # 0: SIGKILL at once
    host: str | None = None
    suspends: bool = False  # programs stand still during the notice, and hear nothing
    everyone: bool = False  # every process of a host hears SIGTERM, not its main one alone


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What is known of a running attempt at one moment."""

    exit_codes: Mapping[str, int]
    host_count: int
    stop_requested: bool
    now: float
    limits: Limits
    lost: str | None = None
    input_error: OptmlError | None = None
    lease_over_since: float | None = None


def reason_to_end(seen: Seen) -> Why | None:
    """Why the attempt should end now, or None. What the platform knows comes first; then the hosts, in this order; then what was
    due first, however late it is noticed."""
    if seen.lost is not None:
        return Why.LOST
    if seen.stop_requested:
        return Why.STOPPED
    if any(code != 0 for code in seen.exit_codes.values()):
        return Why.FAILED
    if len(seen.exit_codes) == seen.host_count:
        return Why.FINISHED
    if seen.input_error is not None:
        return Why.INPUT_FAILED
    limits = ((seen.limits.out_of_time_at, Why.OUT_OF_TIME), (seen.limits.out_of_wait_at, Why.OUT_OF_WAIT))
    due = [(moment, why) for moment, why in limits if moment is not None and moment <= seen.now]
    if seen.lease_over_since is not None:
        due.append((seen.lease_over_since, Why.INTERRUPTED))
    return min(due, key=lambda each: each[0])[1] if due else None


def supervise(
    hosts: Sequence[Host],
    *,
    limits: Limits,
    clock: Clock,
    stop_requested: Callable[[], bool],
    hurry: Callable[[], bool] = lambda: False,
    look: Callable[[], bool] = lambda: False,
    input_error: Callable[[], OptmlError | None] = lambda: None,
    on_ending: Callable[[Why], None] = lambda _why: None,
    lease_over_since: Callable[[], float | None] = lambda: None,
    interruption: Interruption = Interruption(),
    before_kill: Callable[[], None] = lambda: None,
    note: Callable[..., None] = lambda *_facts, **_more: None,
) -> Ended:
    """Watch the hosts until each has ended, one way or another; none of their processes is left when this returns.

    `look` is called again and again to follow logs, and says whether something came. `on_ending` hears the reason before the
    hosts do. `hurry` cuts the grace short. `lease_over_since` says since when the machines are to be taken away, as
    `interruption` has it: what the programs then exit with does not matter. `before_kill` is called when
    hosts are about to be killed while their programs run. `note` hears what happens to hosts: a kind, a
    host's name, further facts.
    """
    exit_codes: dict[str, int] = {}
    remarks: dict[str, str] = {}
    running = list(hosts)
    quiet = 0

    def poll() -> str | None:
        """Collect exit codes; the text of a loss if a host vanished."""
        for host in list(running):
            try:
                code = host.poll()
            except HostLost as loss:
                running.remove(host)
                return f"{host.name}: {loss}"
            if code is not None:
                exit_codes[host.name] = code
                running.remove(host)
                note("exited", host.name, ExitCode=code)
                if host.remark:
                    remarks[host.name] = host.remark
        return None

    def wait(longest: float) -> None:
        nonlocal quiet
        quiet = 0 if look() else quiet + 1
        clock.wait(
            [host.fileno() for host in running], min(longest, IDLE_SECONDS if quiet > QUIET_LOOKS else BUSY_SECONDS)
        )

    try:
        while True:
            lost = poll()
            error = input_error()
            why = reason_to_end(
                Seen(
                    exit_codes=exit_codes,
                    host_count=len(hosts),
                    stop_requested=stop_requested(),
                    now=clock.monotonic(),
                    limits=limits,
                    lost=lost,
                    input_error=error,
                    lease_over_since=lease_over_since(),
                )
            )
            if why is not None:
                break
            wait(IDLE_SECONDS)

        first = next((name for name, code in exit_codes.items() if code != 0), None)
        on_ending(why)
        killed: tuple[str, ...] = ()
        if running:
            grace_seconds = limits.grace_seconds
            warned = list(running)
            if why is Why.LOST:
                grace_seconds = 0.0
            elif why is Why.INTERRUPTED:
                grace_seconds = interruption.notice_seconds
                warned = [host for host in running if interruption.host in (None, host.name)] if grace_seconds else []
            for host in warned:
                if why is Why.INTERRUPTED and interruption.suspends:
                    host.suspend()
                    note("suspended", host.name)
                else:
                    host.terminate(everyone=why is Why.INTERRUPTED and interruption.everyone)
                    note("sigterm-sent", host.name)
            deadline = clock.monotonic() + grace_seconds
            while any(host in running for host in warned) and clock.monotonic() < deadline and not hurry():
                lost_now = poll()
                if running and lost_now is None:
                    wait(max(0.0, deadline - clock.monotonic()))
            if running:
                before_kill()
            for host in running:
                note("killed", host.name)
            killed = tuple(host.name for host in running)
        return Ended(
            why=why,
            exit_codes=exit_codes,
            first=first,
            killed=killed,
            cut_short=tuple(host.name for host in hosts if host.name in exit_codes and host.cut_short),
            remarks=remarks,
            detail=lost or "",
            error=error,
        )
    finally:
        for host in hosts:
            host.kill()
        look()
