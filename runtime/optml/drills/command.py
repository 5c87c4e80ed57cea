"""`optml drill`: the options of `optml train`, those of a plan of interruptions, and what must hold."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from optml.durations import Duration
from optml.errors import OptmlError

NOT_OF_TRAIN = frozenset({"detach", "dry_run", "resume", "pdb"})


def json_errors(kind: type[click.Command]) -> type[click.Command]:
    """A command that says its errors on standard output too, where --json is among its options."""

    class WithErrors(kind):  # type: ignore[valid-type, misc]
        def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
            wanted = "--json" in args[: args.index("--") if "--" in args else None]
            try:
                return list(super().parse_args(ctx, args))
            except click.UsageError as error:
                if wanted:
                    _say(error, error.format_message())
                raise

        def invoke(self, ctx: click.Context) -> Any:
            try:
                return super().invoke(ctx)
            except click.UsageError as error:
                if ctx.params["as_json"]:
                    _say(error, error.format_message())
                raise
            except OptmlError as error:
                if ctx.params["as_json"]:
                    _say(error, str(error))
                raise

    return WithErrors


def _say(error: Exception, message: str) -> None:
    content = {"Kind": type(error).__name__, "Message": message}
    click.echo(json.dumps({"Outcome": "error", "Passed": False, "Error": content}, indent=2))


def drill_command(train: click.Command, arguments_of: Callable[..., Any]) -> click.Command:
    """Made from `optml train`, whose options it has too. `arguments_of` makes request, options and shortcuts of them."""

    def run(request_file: Path | None, **given: Any) -> None:
        from optml.console import Console
        from optml.drills.plan import Criteria
        from optml.drills.report import as_json
        from optml.drills.run import drill
        from optml.plan_options import details_from, plan_from

        ctx = click.get_current_context()
        request, options, shortcuts = arguments_of(ctx, request_file, given)
        report = drill(
            request,
            plan=plan_from(given, details_alone=True),
            details=details_from(given),
            criteria=Criteria(
                max_lost_steps=given["max_lost_steps"],
                max_recovery_seconds=given["max_recovery"],
                require_equal_metrics=given["require_equal_metrics"],
                require_equal_artifacts=given["require_equal_artifacts"],
                tolerance=given["tolerance"],
            ),
            baseline=given["baseline"],
            options=replace(options, interruptions=None, step_regex=given["step_regex"]),
            report_dir=given["report"],
            overwrite=given["overwrite"],
            console=Console(quiet=given["quiet"], silent=given["as_json"]),
            **shortcuts,
        )
        if given["as_json"]:
            click.echo(json.dumps(as_json(report), indent=2))
        ctx.exit(0 if report.passed else 1)

    own = [
        click.Option(
            ["--baseline"], metavar="NAME", help="A completed job to compare with, instead of running it undisturbed."
        ),
        click.Option(["--max-lost-steps"], type=click.IntRange(min=0), help="Fail if an interruption costs more."),
        click.Option(
            ["--max-recovery"], type=Duration(), help="Fail if a new step takes longer to come after the kill."
        ),
        click.Option(
            ["--require-equal-metrics"], is_flag=True, help="Fail if a final metric differs by more than --tolerance."
        ),
        click.Option(
            ["--require-equal-artifacts"], is_flag=True, help="Fail if a file of the model is not bit for bit the same."
        ),
        click.Option(
            ["--tolerance"], type=click.FloatRange(min=0), default=0.01, show_default=True, help="Of a metric's value."
        ),
        click.Option(
            ["--step-regex"], metavar="REGEX", help="Group 1 is the number of a step. Default: the usual forms."
        ),
        click.Option(["--report"], type=click.Path(path_type=Path), help="Folder. Default: $OPTML_HOME/drills/NAME."),
        click.Option(
            ["--overwrite"],
            is_flag=True,
            help="Remove an earlier drill of this --name first: jobs, checkpoints, report.",
        ),
        click.Option(
            ["--json", "as_json"], is_flag=True, help="Print the report, or the error, as JSON, and nothing else."
        ),
    ]
    parameters = [parameter for parameter in train.params if parameter.name not in NOT_OF_TRAIN]
    return json_errors(type(train))(
        "drill",
        callback=run,
        params=[*parameters[:1], *own, *parameters[1:]],
        context_settings=train.context_settings,
        help="""Run a job undisturbed, then interrupt it, and report whether it survives and what that costs.

        \b
        optml drill request.json
        optml drill request.json --every 60s --notice 30s --max-lost-steps 10 --require-equal-metrics
        optml drill --checkpoint ckpt/ --at-log "step=100" --notice 0 -- python train.py

        Options as of `optml train`. Without a schedule the job is interrupted twice. Each run keeps its checkpoints under a name
        of its own below the request's prefix. Exit status: 0 the job survives and every criterion holds, 1 it does not, 2 a
        request or usage error.""",
    )
