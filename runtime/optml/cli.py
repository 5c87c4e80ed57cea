"""The command line: arguments -> the same functions that a Python user calls.

Exit status: 0 Completed, 1 Failed, 3 Stopped, 2 a request or usage error, 130 Ctrl-C (which stops the job).
"""

import contextlib
import json
import math
import os
import re
import shlex
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from optml import __version__
from optml.drills.command import drill_command
from optml.durations import Duration
from optml.errors import OptmlError, UserError
from optml.plan_options import NAMES as PLAN_NAMES
from optml.plan_options import plan_from, plan_options
from optml.spec import LocalOptions, ManifestPaths

if TYPE_CHECKING:
    from optml.spec import LocalOptions

EXIT_STATUS = {"Completed": 0, "Failed": 1, "Stopped": 3}
SIZE = re.compile(r"(?P<number>\d+(\.\d+)?)\s*(?P<unit>[kmgt]?)i?b?", re.IGNORECASE)


class Size(click.ParamType[int]):
    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        match = SIZE.fullmatch(str(value).strip())
        if match is None or float(match["number"]) <= 0:
            self.fail(f"{value!r} is not a size such as 512M or 2G", param, ctx)
        return int(float(match["number"]) * 1024 ** " kmgt".index(match["unit"].lower() or " "))


class KeyValue(click.ParamType[tuple[str, str]]):
    """NAME=VALUE; the value may hold anything, further equals signs too."""

    name = "name=value"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        if isinstance(value, tuple):
            return value
        name, equals, rest = str(value).partition("=")
        if not equals or not name:
            self.fail(f"{value!r} is not NAME=VALUE", param, ctx)
        return name, rest


class ChannelValue(KeyValue):
    """NAME=VALUE for one channel, or VALUE for all."""

    name = "[channel=]value"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        if isinstance(value, tuple):
            return value
        return super().convert(value, param, ctx) if "=" in str(value) else ("", str(value))


class ProgramCommand(click.Command):
    """What follows `--` is a program and its arguments, exactly as they are."""

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        return [*super().collect_usage_pieces(ctx), "[-- PROGRAM [ARGUMENT]...]"]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if "--" in args:
            cut = args.index("--")
            ctx.meta["program"] = tuple(args[cut + 1 :])
            args = args[:cut]
            if not ctx.meta["program"]:
                raise click.UsageError(
                    f"after -- comes a program, for example: optml {ctx.info_name} -- python train.py", ctx
                )
        return super().parse_args(ctx, args)


class Commands(click.Group):
    """Errors that optml raises on purpose become one message and exit status 2; commands show in the order of use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        del ctx
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:  # `optml logs NAME | head`
            sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115  (so that the interpreter's last flush is quiet)
            ctx.exit(0)
        except KeyboardInterrupt:  # of what is no job: `optml logs --follow`
            leave_in_peace()
            ctx.exit(130)
        except OptmlError as error:
            say_error(error)
            ctx.exit(2)


def leave_in_peace() -> None:
    """One Ctrl-C more changes nothing any more, and must not break off the interpreter in the middle of its end."""
    with contextlib.suppress(ValueError):  # in another thread than the main one, which a program of its own may do
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def say_error(error: OptmlError) -> None:
    problems: Sequence[str] = getattr(error, "problems", ())
    code = f"{error.code}: " if isinstance(error, UserError) and error.code != "ValidationException" else ""
    if len(problems) > 1:
        text = f"{len(problems)} errors:\n" + "\n".join(f"  - {problem}" for problem in problems)
    else:
        text = f"{code}{error}"
    click.echo(f"optml: {text}", err=True)


def complete_job_names(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    from optml.jobdir import jobs_dir

    try:
        return sorted(name for name in os.listdir(jobs_dir()) if name.startswith(incomplete))
    except OSError:
        return []


def complete_images(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    from optml.images import known_images

    return [image.name for image in known_images() if image.name.startswith(incomplete)]


def job_argument(function: Callable[..., Any]) -> Callable[..., Any]:
    return click.argument("name", shell_complete=complete_job_names)(function)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="optml")
def main() -> None:
    """Run Amazon SageMaker training jobs on this machine.

    \b
    A first job:  optml train --image xgboost --channel train=train.csv --hyperparameter num_round=50
    A request:    optml train request.json
    A program:    optml train -- python train.py
    What works:   optml doctor

    Jobs are kept in $OPTML_HOME (default ~/.optml). Exit status: 0 Completed, 1 Failed, 3 Stopped, 2 a request or usage
    error, 130 Ctrl-C.
    """


# What describes a job, for every command that takes one.
JOB_OPTIONS: tuple[Callable[[Callable[..., Any]], Callable[..., Any]], ...] = (
    click.argument(
        "request_file", metavar="[REQUEST]", required=False, type=click.Path(path_type=Path, allow_dash=True)
    ),
    click.option(
        "--image",
        help="A built-in algorithm (xgboost, linear-learner, knn), a framework (pytorch, ...), python, or an ECR URI of "
        "these; in containers any image. All: optml images.",
        shell_complete=complete_images,
    ),
    click.option("--name", help="Job name. Default: the image and the time."),
    click.option(
        "--channel",
        "channels",
        type=KeyValue(),
        multiple=True,
        metavar="NAME=PATH|URI",
        help="Input data; may be repeated.",
    ),
    click.option(
        "--hyperparameter",
        "-p",
        "hyperparameters",
        type=KeyValue(),
        multiple=True,
        metavar="NAME=VALUE",
        help="May be repeated.",
    ),
    click.option(
        "--env",
        "-e",
        "environment",
        type=KeyValue(),
        multiple=True,
        metavar="NAME=VALUE",
        help="Environment variable; may be repeated.",
    ),
    click.option("--output", help="Folder or s3:// URI for <job>/output/model.tar.gz. Default: $OPTML_HOME/output."),
    click.option(
        "--content-type",
        "content_types",
        type=ChannelValue(),
        multiple=True,
        metavar="[CHANNEL=]TYPE",
        help="For example text/csv. Default: by the file's extension.",
    ),
    click.option(
        "--input-mode",
        "input_modes",
        type=ChannelValue(),
        multiple=True,
        metavar="[CHANNEL=]MODE",
        help="File, FastFile or Pipe.",
    ),
    click.option(
        "--distribution",
        "distributions",
        type=ChannelValue(),
        multiple=True,
        metavar="[CHANNEL=]HOW",
        help="Of data: FullyReplicated or ShardedByS3Key. Of a script: torchrun, smdistributed, mpi, ...",
    ),
    click.option(
        "--metric",
        "metrics",
        type=KeyValue(),
        multiple=True,
        metavar="NAME=REGEX",
        help="Scrape a metric from the logs; the value is group 1.",
    ),
    click.option(
        "--entry-point",
        metavar="FILE",
        help="A script of your own: .py or .sh, relative to --source-dir if that is given.",
    ),
    click.option("--source-dir", metavar="PATH|URI", help="The folder of its code, or a tarball of it, here or in S3."),
    click.option(
        "--processes-per-host", type=click.IntRange(min=1), help="Under torchrun or MPI. Default: one per GPU, else 1."
    ),
    click.option("--instance-type", help="An ml.* type; GPU types need that GPU. Default: ml.m5.large."),
    click.option("--instance-count", type=int, help="Number of hosts, algo-1 to algo-N. Default: 1."),
    click.option("--max-runtime", type=Duration(), help="Stop after so long: 90, 10m, 2h. Default: one day."),
    click.option("--max-wait", type=Duration(), help="With --spot: wait and run no longer than this."),
    click.option("--spot", is_flag=True, default=None, help="Managed spot training."),
    click.option(
        "--checkpoint", metavar="PATH|URI", help="Keep /opt/ml/checkpoints there, and start from what is there."
    ),
    click.option("--retries", type=int, help="RetryStrategy: attempts after an internal error."),
    click.option("--role", help="Role ARN. Nothing here needs it."),
    click.option(
        "--isolate-network",
        is_flag=True,
        default=None,
        help="EnableNetworkIsolation: no network but the job's own hosts.",
    ),
    click.option("--grace", type=Duration(), default=120.0, show_default="120s", help="Between SIGTERM and SIGKILL."),
    click.option(
        "--cpus", type=click.IntRange(min=1), help="Processors per host. Default: all, split between the hosts."
    ),
    click.option("--memory", type=Size(), help="Memory per host, for example 2G. Default: no limit."),
    click.option(
        "--instance-limits",
        is_flag=True,
        help="Give each host no more processors and memory than its instance type has.",
    ),
    click.option(
        "--mount-code", is_flag=True, help="In containers: optml's own code in a base image, without building one."
    ),
    click.option("--allow-cpu", is_flag=True, help="Run GPU instance types although the GPU is not there."),
    click.option(
        "--strict-versions", is_flag=True, help="Refuse if the image's tag asks for other versions than are installed."
    ),
    click.option("--announce-fast-file-as-file", is_flag=True, help="For containers that refuse the word FastFile."),
    click.option(
        "--manifest-paths",
        type=click.Choice(["key", "relative"]),
        default="key",
        show_default=True,
        help="Where a manifest's objects lie under the channel.",
    ),
)


def describes_a_job(function: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(JOB_OPTIONS):
        function = option(function)
    return function


@main.command(cls=ProgramCommand)
@describes_a_job
@click.option(
    "--backend",
    type=click.Choice(["process", "docker"]),
    default="process",
    show_default=True,
    help="What a host is: a process tree, or a container.",
)
@click.option("--detach", "-d", is_flag=True, help="Return at once; the job goes on by itself.")
@click.option(
    "--dry-run", is_flag=True, help="Print the completed request and the launches it would make; run nothing."
)
@click.option("--quiet", "-q", is_flag=True, help="Only the end of the job.")
@click.option("--keep-files", is_flag=True, help="Keep the hosts' /opt/ml after the job.")
@click.option(
    "--resume", metavar="NAME", shell_complete=complete_job_names, help="Go on with a job that failed or was stopped."
)
@plan_options
@click.pass_context
def train(ctx: click.Context, /, request_file: Path | None, **given: Any) -> None:  # fmt: skip
    """Run a training job: a CreateTrainingJob request (JSON or YAML file, - for stdin), options, or both.

    \b
    optml train request.json
    optml train --image xgboost --channel train=train.csv --channel validation=val.csv -p num_round=50 --output out/
    optml train --image pytorch --entry-point train.py --source-dir src/ --instance-count 2 --distribution torchrun
    optml train --channel train=data/ -- python train.py --epochs 3

    Options are laid over the request. Paths are relative to the current folder. What follows -- is run as it is, without a
    shell, with the data in /opt/ml/input/data/<channel>; what it leaves in /opt/ml/model becomes model.tar.gz. Of your
    environment it gets what Python, CUDA, proxies and S3 need; anything else it needs, give with --env.
    """
    from optml import jobs
    from optml.clock import Clock

    if given["resume"] is not None:
        resume(ctx, request_file, given)
        return
    request, options, shortcuts = job_from(ctx, request_file, given)
    options = replace(options, interruptions=plan_from(given))
    if given["dry_run"]:
        job, image, backend = jobs.prepare(request, options=options, shortcuts=shortcuts, base_dir=jobs.current_dir())
        click.echo(json.dumps(jobs.dry_run(job, image, backend), indent=2, ensure_ascii=False))
        return
    run_submitted(
        ctx,
        jobs.submit(request, options=options, shortcuts=shortcuts, base_dir=jobs.current_dir(), clock=Clock()),
        given,
    )


def run_submitted(ctx: click.Context, submitted: Any, given: dict[str, Any]) -> None:
    from optml.console import Console
    from optml.jobs import host_width

    if given["detach"]:
        submitted.detach()
        click.echo(submitted.job.name)
        return
    status = submitted.run(Console(width=host_width(submitted.job), quiet=given["quiet"]), exits=True)
    ctx.exit(130 if submitted.interrupted else EXIT_STATUS[status])


WITH_RESUME = frozenset({"resume", "name", "detach", "quiet", "dry_run"})


def resume(ctx: click.Context, request_file: Path | None, given: dict[str, Any]) -> None:
    """`optml train --resume NAME`: the job's own request and options, under a new name."""
    from optml import jobs
    from optml.clock import Clock

    commandline = click.core.ParameterSource.COMMANDLINE
    others = [name for name in given if ctx.get_parameter_source(name) is commandline and name not in WITH_RESUME]
    others = [name for name in others if name not in PLAN_NAMES]
    if request_file is not None or ctx.meta.get("program") or others:
        what = f"--{others[0].replace('_', '-')}" if others else "a request or a program"
        raise click.UsageError(
            f"--resume goes on with the job's own request and options, so {what} cannot be given: only --name, --detach, "
            "--quiet, --dry-run, and interruptions",
            ctx,
        )
    request, options = jobs.to_resume(given["resume"], new_name=given["name"])
    options = replace(options, interruptions=plan_from(given))
    if given["dry_run"]:
        job, image, backend = jobs.prepare(request, options=options, shortcuts={}, base_dir=Path("/"))
        click.echo(json.dumps(jobs.dry_run(job, image, backend), indent=2, ensure_ascii=False))
        return
    run_submitted(ctx, jobs.submit(request, options=options, shortcuts={}, base_dir=Path("/"), clock=Clock()), given)


@main.command(cls=ProgramCommand)
@describes_a_job
@click.option("--to", "folder", required=True, metavar="DIR", type=click.Path(path_type=Path), help="New or empty.")
@click.pass_context
def stage(ctx: click.Context, /, request_file: Path | None, folder: Path, **given: Any) -> None:  # fmt: skip
    """Run a job by hand: write its /opt/ml below DIR, and print the docker commands that run it.

    \b
    optml stage request.json --to DIR > run.sh
    bash run.sh
    optml collect DIR

    Takes what train takes. Needs no container engine. Each host's /opt/ml is DIR/<host>/ml. The commands alone go to standard
    output. Nobody looks after containers that you start: time limits, retries and metrics are what train does.
    """
    from optml import by_hand
    from optml.console import Console

    request, options, shortcuts = job_from(ctx, request_file, given)
    console = Console(sys.stderr)
    staged = by_hand.stage(request, to=folder, options=options, console=console, **shortcuts)
    for remark in staged.remarks:
        console.say(f"warning: {remark}", important=True)
    console.say(f"Now run the commands, and then: optml collect {shlex.quote(str(folder))}")
    click.echo(staged.commands)


@main.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--output", help="Folder or s3:// URI, instead of the request's.")
@click.pass_context
def collect(ctx: click.Context, folder: Path, output: str | None) -> None:
    """Pack what a job that was run by hand left in DIR: model.tar.gz, output.tar.gz, checkpoints.

    Exits 1, with its text, if a host wrote a failure file, and if nothing was left at all. DIR stays as it is; you can collect
    it again.
    """
    from optml import by_hand
    from optml.console import Console

    console = Console(sys.stderr)
    try:
        packed = by_hand.collect(folder, output=output, console=console)
    except by_hand.NothingLeft as error:
        say_error(error)
        ctx.exit(1)
    for warning in packed.warnings:
        console.say(f"warning: {warning}", important=True)
    click.echo(f"model: {packed.model_data}")
    if packed.output_data is not None:
        click.echo(f"output: {packed.output_data}")
    for host, text in packed.failures.items():
        click.echo(f"{host} failed: {text}", err=True)
    ctx.exit(1 if packed.failed else 0)


def job_from(
    ctx: click.Context, request_file: Path | None, given: dict[str, Any]
) -> tuple[str | None, LocalOptions, dict[str, Any]]:
    """What describes a job -> the request, the options and the keywords of `optml.train`."""
    options = LocalOptions(
        backend=given.get("backend", LocalOptions.backend),
        grace_seconds=given["grace"],
        cpus=given["cpus"],
        memory_bytes=given["memory"],
        allow_cpu=given["allow_cpu"],
        instance_limits=given["instance_limits"],
        mount_code=given["mount_code"],
        keep_files=given.get("keep_files", False),
        strict_versions=given["strict_versions"],
        announce_fast_file_as_file=given["announce_fast_file_as_file"],
        manifest_paths=ManifestPaths(given["manifest_paths"]),
    )
    command = f"optml {ctx.info_name}"
    request = None if request_file is None else str(request_file)
    if request_file is not None and request_file.suffix in (".py", ".sh", ".ipynb"):
        how = f"{command} --image pytorch --entry-point {request}, or {command} -- python {request}"
        raise click.UsageError(f"{request} is a program and no request: {how}", ctx)
    shortcuts = shortcuts_from(given, program=ctx.meta.get("program", ()), has_request=request is not None)
    if request is None and not shortcuts:
        raise click.UsageError(f"give a request file, --image, or a program after --; see {command} --help", ctx)
    return request, options, shortcuts


def shortcuts_from(given: dict[str, Any], *, program: Sequence[str], has_request: bool) -> dict[str, Any]:
    """Command-line options -> the keywords of `optml.train`, without those that were not given."""
    from optml.script_mode import LAUNCHERS

    channels: dict[str, dict[str, Any]] = {}
    launchers = [value for name, value in given["distributions"] if not name and value in LAUNCHERS]
    if len(launchers) > 1:
        raise click.UsageError(f"--distribution {' and '.join(launchers)}: a script has one launcher")
    given = {**given, "distributions": [pair for pair in given["distributions"] if pair[1] not in launchers]}
    for name, uri in given["channels"]:
        if name in channels:
            raise click.UsageError(f"--channel {name} is given twice; a channel has one source")
        channels[name] = {"uri": uri}
    for option, key in (
        ("content_types", "content_type"),
        ("input_modes", "input_mode"),
        ("distributions", "distribution"),
    ):
        for name, value in given[option]:
            if name and name not in channels and not has_request:
                raise click.UsageError(
                    f"--{option[:-1].replace('_', '-')} {name}={value}: there is no --channel {name}=..."
                )
            if not name and not given["channels"]:
                of_request = f"; of a channel of the request's: CHANNEL={value}" if has_request else ""
                launcher = f"; of a script it is one of {', '.join(LAUNCHERS)}" if key == "distribution" else ""
                raise click.UsageError(
                    f"--{option[:-1].replace('_', '-')} {value}: there is no --channel that it could be of{of_request}{launcher}"
                )
            for channel in [name] if name else list(channels):
                channels.setdefault(channel, {})[key] = value
    shortcuts: dict[str, Any] = {
        "image": given["image"] or ("python" if program and not has_request else None),
        "name": given["name"],
        "channels": channels,
        "hyperparameters": hyperparameters_from(given),
        "environment": once_each("--env", given["environment"]),
        "metrics": once_each("--metric", given["metrics"]),
        "output": given["output"],
        "instance_type": given["instance_type"],
        "instance_count": given["instance_count"],
        "max_runtime": None if given["max_runtime"] is None else math.ceil(given["max_runtime"]),
        "max_wait": None if given["max_wait"] is None else math.ceil(given["max_wait"]),
        "spot": given["spot"],
        "checkpoint": given["checkpoint"],
        "retries": given["retries"],
        "role": given["role"],
        "network_isolation": given["isolate_network"],
        "entrypoint": list(program),
        "entry_point": given["entry_point"],
        "source_dir": given["source_dir"],
        "distribution": launchers[0] if launchers else None,
        "processes_per_host": given["processes_per_host"],
    }
    return {key: value for key, value in shortcuts.items() if value not in (None, {}, [])}


def hyperparameters_from(given: Mapping[str, Any]) -> dict[str, Any]:
    """For a script, values are what they look like: 0.1 a number, true, [1, 2]; the rest is text. Else they stay as they are."""
    pairs = once_each("--hyperparameter", given["hyperparameters"])
    if given["entry_point"] is None:
        return dict(pairs)
    values: dict[str, Any] = {}
    for name, text in pairs.items():
        try:
            values[name] = json.loads(text)
        except ValueError:
            values[name] = text
    return values


def once_each(option: str, pairs: Sequence[tuple[str, str]]) -> dict[str, str]:
    names = [name for name, _ in pairs]
    for name in names:
        if names.count(name) > 1:
            raise click.UsageError(f"{option} {name} is given twice; keep one")
    return dict(pairs)


main.add_command(drill_command(train, job_from))


@main.command("list")
@click.option(
    "--status",
    type=click.Choice(["InProgress", "Completed", "Failed", "Stopping", "Stopped"]),
    help="Only jobs in this status.",
)
@click.option("--name-contains", metavar="TEXT", help="Only jobs with this in their name.")
@click.option(
    "--max-results", type=click.IntRange(min=1), help="At most so many; as in AWS, counted before --status filters."
)
@click.option("--json", "as_json", is_flag=True, help="The ListTrainingJobs response.")
def list_command(status: str | None, name_contains: str | None, max_results: int | None, as_json: bool) -> None:  # fmt: skip
    """List the recorded jobs, newest first."""
    from optml import jobs
    from optml.console import duration_text

    found = jobs.list_jobs_raw(status=status, name_contains=name_contains, max_results=max_results)
    if as_json:
        echo_json({"TrainingJobSummaries": found})
        return
    if not found:
        click.echo("no jobs" if status is None and name_contains is None else "no such jobs", err=True)
        return
    width = max(len("NAME"), *(len(job["TrainingJobName"]) for job in found))
    lines = [f"{'NAME':<{width}}  {'STATUS':<10}  {'SECONDARY':<18}  {'CREATED':<19}  TOOK"]
    for job in found:
        created = jobs.iso_time(job["CreationTime"])[:19].replace("T", " ")
        took = duration_text(job["TrainingEndTime"] - job["CreationTime"]) if "TrainingEndTime" in job else ""
        lines.append(
            f"{job['TrainingJobName']:<{width}}  {job['TrainingJobStatus']:<10}  {job['SecondaryStatus']:<18}  {created}  {took}"
        )
    click.echo("\n".join(lines))


@main.command()
@job_argument
def describe(name: str) -> None:
    """Print a job's DescribeTrainingJob response as JSON."""
    from optml import jobs

    echo_json(jobs.find(name).describe_raw())


@main.command()
@job_argument
@click.option("--follow", "-f", is_flag=True, help="Go on until the job ends.")
@click.option("--host", "hosts", multiple=True, metavar="algo-N", help="Only this host; may be repeated.")
@click.option(
    "--tail", "-n", type=click.IntRange(min=0), metavar="LINES", help="Begin with the last lines of each host."
)
def logs(name: str, follow: bool, hosts: tuple[str, ...], tail: int | None) -> None:
    """Print what a job's hosts printed."""
    from optml import jobs
    from optml.console import Console

    job = jobs.find(name)
    console = Console()
    for host, lines in job.logs(hosts=hosts or None, follow=follow, tail=tail):
        console.host_lines(host, lines)
        if console.broken:  # `| head`
            raise BrokenPipeError
    if follow:
        click.echo(f"{name}: {job.status}", err=True)


@main.command()
@job_argument
@click.option("--wait", is_flag=True, help="Return when the job has stopped.")
def stop(name: str, wait: bool) -> None:
    """Stop a job: SIGTERM, the grace (120 s unless the job was given another), SIGKILL."""
    from optml import jobs

    job = jobs.find(name)
    job.stop(wait=wait)
    click.echo(f"{name}: {job.status}" if wait else f"{name}: asked to stop")


@main.command()
@click.argument("names", metavar="NAME...", nargs=-1, required=True, shell_complete=complete_job_names)
def delete(names: tuple[str, ...]) -> None:
    """Delete the record and the logs of ended jobs, and free their names. What was uploaded stays."""
    from optml import jobs

    for name in names:
        jobs.Job(name).delete()
        click.echo(f"{name}: deleted")


@main.group(invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@click.pass_context
def images(ctx: click.Context, as_json: bool) -> None:
    """List the images that run here, or build their Docker images."""
    if ctx.invoked_subcommand is None:
        show_images(as_json)
    elif as_json:
        raise click.UsageError("--json goes with the list: optml images list --json", ctx)


@images.command("list")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def list_images(as_json: bool) -> None:
    """List the images: what runs without containers, and what is built for them."""
    show_images(as_json)


def show_images(as_json: bool) -> None:
    from optml.console import size_text
    from optml.engine import seems_there
    from optml.images import OURS, Image, known_images

    sizes, trouble = None, "no container engine here"
    if seems_there():
        from optml.image_build import built_images

        try:
            sizes = built_images()
        except OptmlError as error:
            trouble = str(error)

    def built(image: Image) -> dict[str, int] | None:
        """Its tags in the engine, and their sizes; None where nobody knows."""
        prefix = f"{OURS}{image.name}:"
        return None if sizes is None else {tag: sizes[tag] for tag in sorted(sizes) if tag.startswith(prefix)}

    if as_json:
        rows = [
            {
                "name": image.name,
                "answers_to": list(image.answers_to),
                "ready": not image.missing_modules,
                "summary": image.summary,
                "remedy": image.remedy if image.missing_modules else None,
                "docker_images": built(image),
            }
            for image in known_images()
        ]
        click.echo(json.dumps(rows, indent=2))
        return
    lines = [("NAME", "PROCESS", "DOCKER", "")]
    for image in known_images():
        tags = built(image)
        having = [
            f"{text}{size_text(tags[tag])}"
            for text, tag in (("", f"{OURS}{image.name}:latest"), ("gpu ", f"{OURS}{image.name}:gpu"))
            if tags and tag in tags
        ]
        state = "missing" if image.missing_modules else "ready"
        docker_state = "-" if tags is None else ", ".join(having) or "not built"
        remedy = f" ({image.remedy})" if image.missing_modules else ""
        lines.append((image.name, state, docker_state, f"{image.summary}{remedy}"))
    widths = [max(len(line[column]) for line in lines) for column in range(3)]
    for line in lines:
        cells = [f"{text:<{width}}" for text, width in zip(line, widths, strict=False)]
        click.echo("  ".join([*cells, line[3]]).rstrip())
    if sizes is None:
        click.echo(f"optml: DOCKER is not known: {trouble}", err=True)


def complete_recipes(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    from optml.image_build import recipes

    return [name for name in recipes() if name.startswith(incomplete)]


@images.command("build")
@click.argument("names", metavar="[NAME...]", nargs=-1, shell_complete=complete_recipes)
@click.option("--all", "all_images", is_flag=True, help="All of them; with --gpu, all that have a GPU variant.")
@click.option("--gpu", is_flag=True, help="The GPU variant, tagged :gpu.")
@click.option("--base-image", metavar="IMAGE", help="Default: $OPTML_BASE_IMAGE, else python:3.11-slim.")
@click.option(
    "--build-arg", "build_args", type=KeyValue(), multiple=True, metavar="NAME=VALUE", help="May be repeated."
)
@click.option("--network", metavar="MODE", help="The network of the build's steps, for example host.")
@click.pass_context
def build_images(ctx: click.Context, /, names: tuple[str, ...], all_images: bool, gpu: bool, **given: Any) -> None:  # fmt: skip
    """Build Docker images of ours: optml/NAME, for --backend docker and for docker run.

    \b
    optml images build xgboost
    optml images build --all --base-image registry.example.com/python:3.12

    pip's settings in the environment (PIP_INDEX_URL, PIP_EXTRA_INDEX_URL, PIP_FIND_LINKS, PIP_TRUSTED_HOST) and the proxies go
    to the build.
    """
    from optml.console import Console
    from optml.image_build import build, recipes

    if bool(names) == all_images:
        raise click.UsageError(f"give the images to build ({', '.join(recipes())}), or --all", ctx)
    if all_images:
        names = tuple(name for name, recipe in recipes().items() if recipe.has_gpu_variant or not gpu)
    build_args = once_each("--build-arg", given["build_args"])
    for name in names:
        build(
            name,
            console=Console(),
            base_image=given["base_image"],
            build_args=build_args,
            gpu=gpu,
            network=given["network"],
        )


@main.command()
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def doctor(as_json: bool) -> None:
    """Say what works on this machine, and how to get what does not."""
    from optml.doctor import examine

    findings = examine()
    if as_json:
        click.echo(json.dumps([finding.as_dict() for finding in findings], indent=2))
        return
    width = max(len(finding.subject) for finding in findings)
    for finding in findings:
        click.echo(f"{finding.mark} {finding.subject:<{width}} {finding.text}")
        if finding.remedy:
            click.echo(f"  {'':<{width}} -> {finding.remedy}")


@main.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the shell completion script: eval "$(optml completion bash)"."""
    from click.shell_completion import get_completion_class

    found = get_completion_class(shell)
    assert found is not None, "click knows these three shells"
    click.echo(found(main, {}, "optml", "_OPTML_COMPLETE").source())


@main.command()
@click.argument("model", metavar="MODEL", shell_complete=complete_job_names)
@click.argument("data", metavar="DATA")
@click.option("--output", metavar="FILE", help="CSV, or JSON lines if it ends in .jsonl. Default: standard output.")
@click.option("--content-type", metavar="TYPE", help="For example text/csv. Default: by the file's extension.")
@click.option("--label-size", type=click.IntRange(min=0), help="Leading label columns of CSV and Parquet. Default: 0.")
@click.pass_context
def predict(ctx: click.Context, /, model: str, data: str, **given: Any) -> None:
    """Score DATA with the MODEL of a built-in algorithm.

    MODEL is the name of a job, a model.tar.gz or a folder, or the URI of one (file:// or s3://). DATA is a file, a folder or a
    URI. What comes out is CSV with a header: predicted_label, score; and label, if the data has it.
    """
    from optml.models import run_with_model

    ctx.exit(run_with_model("predict", model, data, options=given))


@main.command()
@click.argument("model", metavar="[MODEL", required=False, shell_complete=complete_job_names)
@click.argument("data", metavar="DATA]", required=False)
@click.option("--predictions", metavar="FILE", help="What optml predict wrote, or any CSV or JSON lines.")
@click.option("--labels", metavar="FILE", help="A file whose first column has the labels of --predictions.")
@click.option(
    "--columns", metavar="NAMES", help="Of a CSV without header: label,score,predicted_label,group,- in its order."
)
@click.option(
    "--task",
    type=click.Choice(["binary", "multiclass", "regression", "ranking"]),
    help="Default: the model's, or what the values look like.",
)
@click.option("--output", metavar="FOLDER", help="Write pictures (PNG) and one HTML page there.")
@click.option("--content-type", metavar="TYPE", help="For example text/csv. Default: by the file's extension.")
@click.option("--label-size", type=click.IntRange(min=1), help="Leading label columns of CSV and Parquet. Default: 1.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@click.pass_context
def evaluate(ctx: click.Context, /, model: str | None, data: str | None, as_json: bool, **given: Any) -> None:
    """Say how good a MODEL is on labelled DATA, or how good predictions are, and where a number misleads.

    \b
    optml evaluate JOB data/validation/ --output report/
    optml evaluate --predictions predictions.csv --labels labels.csv
    """
    from optml.models import run_algorithm_program, run_with_model

    flags = ["--json"] if as_json else []
    if model is None and given["predictions"] is not None:
        ctx.exit(run_algorithm_program("evaluation", options=given, flags=flags))
    if model is None or data is None:
        raise click.UsageError("give MODEL and DATA, or --predictions; see optml evaluate --help", ctx)
    for name in ("predictions", "labels", "columns"):
        if given[name] is not None:
            raise click.UsageError(f"--{name} is for predictions without a model", ctx)
    ctx.exit(run_with_model("evaluation", model, data, options=given, flags=flags))


@main.command("describe-algorithm")
@click.argument("name", shell_complete=complete_images)
@click.option("--json", "as_json", is_flag=True, help="For programs, such as a tuner.")
@click.pass_context
def describe_algorithm(ctx: click.Context, name: str, as_json: bool) -> None:
    """Print the hyperparameters of a built-in algorithm: types, ranges, defaults, what a tuner should try."""
    from optml.models import run_algorithm_program

    ctx.exit(run_algorithm_program("describe", name, options={}, flags=["--json"] if as_json else []))


def echo_json(content: Any) -> None:
    from optml import jobs
    from optml.record import with_times

    click.echo(json.dumps(with_times(content, convert=jobs.iso_time), indent=4, ensure_ascii=False))


if __name__ == "__main__":
    main()
