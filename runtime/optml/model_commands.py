"""What can be done with the models of built-in algorithms: predict, evaluate, and what they are trained by."""

from typing import Any

import click

from optml.job_options import complete_images, complete_job_names


@click.command()
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


@click.command()
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


@click.command("describe-algorithm")
@click.argument("name", shell_complete=complete_images)
@click.option("--json", "as_json", is_flag=True, help="For programs, such as a tuner.")
@click.pass_context
def describe_algorithm(ctx: click.Context, name: str, as_json: bool) -> None:
    """Print the hyperparameters of a built-in algorithm: types, ranges, defaults, what a tuner should try."""
    from optml.models import run_algorithm_program

    ctx.exit(run_algorithm_program("describe", name, options={}, flags=["--json"] if as_json else []))
