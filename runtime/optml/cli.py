"""The command line: arguments -> the same functions that a Python user calls.

Exit status: 0 Completed, 1 Failed, 3 Stopped, 2 a request or usage error, 130 Ctrl-C (which stops the job).
"""

import contextlib
import json
import os
import shlex
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from optml import __version__
from optml.drills.command import drill_command
from optml.errors import OptmlError, UserError
from optml.image_commands import images
from optml.job_options import ProgramCommand, complete_job_names, describes_a_job, job_from, limits_from
from optml.model_commands import describe_algorithm, evaluate, predict
from optml.plan_options import NAMES as PLAN_NAMES
from optml.plan_options import plan_from, plan_options
from optml.spec import LocalOptions

EXIT_STATUS = {"Completed": 0, "Failed": 1, "Stopped": 3}


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


def job_argument(function: Callable[..., Any]) -> Callable[..., Any]:
    return click.argument("name", shell_complete=complete_job_names)(function)


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
@click.option("--pdb", is_flag=True, help="breakpoint() and uncaught exceptions of a script wait for a debugger.")
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
    from optml.submit import current_dir

    if given["resume"] is not None:
        request, options = to_resume(ctx, request_file, given)
        run(ctx, given, request, options=options, shortcuts=limits_from(given), base_dir=Path("/"))
    else:
        if given["pdb"] and given["quiet"]:
            raise click.UsageError(
                "--pdb: the script prints how to attach, which --quiet hides; leave out one of them", ctx
            )
        request_path, options, shortcuts = job_from(ctx, request_file, given)
        run(ctx, given, request_path, options=options, shortcuts=shortcuts, base_dir=current_dir())


WITH_RESUME = frozenset({"resume", "name", "detach", "quiet", "dry_run", "max_runtime", "max_wait"})


def to_resume(
    ctx: click.Context, request_file: Path | None, given: dict[str, Any]
) -> tuple[dict[str, Any], LocalOptions]:
    """`optml train --resume NAME`: the job's own request and options, under a new name. Limits may be laid over them."""
    from optml import jobs

    commandline = click.core.ParameterSource.COMMANDLINE
    others = [name for name in given if ctx.get_parameter_source(name) is commandline and name not in WITH_RESUME]
    others = [name for name in others if name not in PLAN_NAMES]
    if request_file is not None or ctx.meta.get("program") or others:
        options = {
            option.name: option.opts[-1] for option in ctx.command.params
        }  # as it is spelt: --metric, not metrics
        what = options[others[0]] if others else "a request or a program"
        raise click.UsageError(
            f"--resume goes on with the job's own request and options, so {what} cannot be given: only --name, --max-runtime, "
            "--max-wait, --detach, --quiet, --dry-run, and interruptions",
            ctx,
        )
    return jobs.to_resume(given["resume"], new_name=given["name"])


def run(
    ctx: click.Context,
    given: Mapping[str, Any],
    request: Mapping[str, Any] | str | None,
    *,
    options: LocalOptions,
    shortcuts: Mapping[str, Any],
    base_dir: Path,
) -> None:
    """The job to its end; or, as --dry-run and --detach have it, what it would do, or its beginning."""
    from optml.clock import Clock
    from optml.console import Console
    from optml.submit import host_width, prepare, submit

    options = replace(options, interruptions=plan_from(given))
    if given["dry_run"]:
        from optml.dry_run import dry_run

        job, image, backend = prepare(request, options=options, shortcuts=shortcuts, base_dir=base_dir)
        click.echo(json.dumps(dry_run(job, image, backend), indent=2, ensure_ascii=False))
        return
    submitted = submit(request, options=options, shortcuts=shortcuts, base_dir=base_dir, clock=Clock())
    if given["detach"]:
        submitted.detach()
        click.echo(submitted.job.name)
        return
    status = submitted.run(Console(width=host_width(submitted.job), quiet=given["quiet"]), exits=True)
    ctx.exit(130 if submitted.interrupted else EXIT_STATUS[status])


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


main.add_command(images)


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


for command in (predict, evaluate, describe_algorithm):
    main.add_command(command)


def echo_json(content: Any) -> None:
    from optml import jobs
    from optml.record import with_times

    click.echo(json.dumps(with_times(content, convert=jobs.iso_time), indent=4, ensure_ascii=False))


if __name__ == "__main__":
    main()
