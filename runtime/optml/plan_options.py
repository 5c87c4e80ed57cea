"""The command line's options of a plan of interruptions: one set, for `optml train` and `optml drill`."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from optml.durations import Duration
from optml.spec import How, InterruptionPlan, SignalTo, Trigger

SCHEDULES = ("every", "at", "at_metric", "at_log", "mtti", "trace")
DETAILS = ("seed", "notice", "reacquire", "interrupt_host", "how", "signal_to", "away", "most")
NAMES = frozenset({*SCHEDULES, *DETAILS})


class Counted(click.ParamType[tuple[str, int]]):
    """TEXT or TEXT:COUNT."""

    name = "text[:count]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, int]:
        if isinstance(value, tuple):
            return value
        text, colon, count = str(value).rpartition(":")
        if not colon or not count.isdigit():
            return str(value), 1
        if not text or int(count) < 1:
            self.fail(f"{value!r} is not {self.name} with a count of at least 1", param, ctx)
        return text, int(count)


OPTIONS: tuple[Callable[[Callable[..., Any]], Callable[..., Any]], ...] = (
    click.option("--every", type=Duration(), help="Interrupt each attempt after so long a training: 60s, 10m."),
    click.option("--at", type=Duration(), multiple=True, help="... at this second of training; may be repeated."),
    click.option(
        "--at-metric", type=Counted(), multiple=True, metavar="NAME:COUNT", help="... after that many values."
    ),
    click.option(
        "--at-log",
        type=Counted(),
        multiple=True,
        metavar="REGEX[:COUNT]",
        help="... after that many matching lines; :N at the end is the count.",
    ),
    click.option("--mtti", type=Duration(), help="... at random, with this mean time to an interruption."),
    click.option("--seed", type=int, default=0, show_default=True, help="Of --mtti."),
    click.option("--trace", type=click.Path(path_type=Path), help="... when a spot availability trace (JSON) says so."),
    click.option(
        "--notice", type=Duration(), default=120.0, show_default="120s", help="From SIGTERM to SIGKILL; 0: none."
    ),
    click.option("--reacquire", type=Duration(), default=0.0, show_default="0", help="From one machine to the next."),
    click.option("--interrupt-host", metavar="algo-N", help="Hit only this host. Default: all."),
    click.option(
        "--how",
        type=click.Choice([str(how) for how in How]),
        default=str(How.TERMINATE),
        show_default=True,
        help="What happens to the machine.",
    ),
    click.option(
        "--signal-to",
        type=click.Choice([str(who) for who in SignalTo]),
        default=str(SignalTo.MAIN_PROCESS),
        show_default=True,
        help="Who on a host hears SIGTERM.",
    ),
    click.option(
        "--away", type=Duration(), default=30.0, show_default="30s", help="How long, for store-away and full-disk."
    ),
    click.option("--most", type=click.IntRange(min=1), help="No more interruptions than this."),
)


def plan_options(function: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(OPTIONS):
        function = option(function)
    return function


def plan_from(given: Mapping[str, Any], *, details_alone: bool = False) -> InterruptionPlan | None:
    """The options as a plan; None if nothing says when. UsageError then for details, unless they may stand alone."""
    from optml.capacity import read_trace

    has_schedule = any(given[name] not in (None, ()) for name in SCHEDULES)  # a 0 is one, and refused later
    if not has_schedule and details_alone:
        return None
    if not has_schedule:
        context = click.get_current_context(silent=True)
        for name in DETAILS:
            source = None if context is None else context.get_parameter_source(name)
            if source is click.core.ParameterSource.COMMANDLINE:
                raise click.UsageError(
                    f"--{name.replace('_', '-')} says how to interrupt, and nothing says when: give --every, --at, --mtti, "
                    "--at-metric, --at-log or --trace"
                )
        return None
    return replace(
        details_from(given),
        at_seconds=tuple(given["at"]),
        every_seconds=given["every"],
        mean_seconds=given["mtti"],
        triggers=(
            *(Trigger(metric=name, count=count) for name, count in given["at_metric"]),
            *(Trigger(log=expression, count=count) for expression, count in given["at_log"]),
        ),
        trace=None if given["trace"] is None else read_trace(given["trace"]),
    )


def details_from(given: Mapping[str, Any]) -> InterruptionPlan:
    """How to interrupt, without a word of when."""
    return InterruptionPlan(
        seed=given["seed"],
        notice_seconds=given["notice"],
        reacquire_seconds=given["reacquire"],
        host=given["interrupt_host"],
        how=How(given["how"]),
        signal_to=SignalTo(given["signal_to"]),
        away_seconds=given["away"],
        most=given["most"],
    )
