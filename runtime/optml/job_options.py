"""What describes a job on the command line: the options of every command that takes one, and what is made of them."""

import json
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from optml.durations import Duration
from optml.spec import LocalOptions, ManifestPaths

SIZE = re.compile(r"(?P<number>\d+(\.\d+)?)\s*(?P<unit>[kmgt]?)i?b?", re.IGNORECASE)
CHANNEL_NAME = re.compile(r"[A-Za-z0-9.\-_]+")


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
        name, equals, _ = str(value).partition("=")
        for_all = not equals or (name and not CHANNEL_NAME.fullmatch(name))  # text/csv;label_size=2
        return ("", str(value)) if for_all else super().convert(value, param, ctx)


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


def complete_job_names(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    from optml.jobdir import jobs_dir

    try:
        return sorted(name for name in os.listdir(jobs_dir()) if name.startswith(incomplete))
    except OSError:
        return []


def complete_images(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    from optml.images import known_images

    return [image.name for image in known_images() if image.name.startswith(incomplete)]


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
        help="For example text/csv, or 'text/csv;label_size=2'. Default: by the file's extension.",
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
        pdb=given.get("pdb", False),
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
        **limits_from(given),
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


def limits_from(given: Mapping[str, Any]) -> dict[str, int]:
    """Whole seconds, as requests have them."""
    return {name: math.ceil(given[name]) for name in ("max_runtime", "max_wait") if given[name] is not None}


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
