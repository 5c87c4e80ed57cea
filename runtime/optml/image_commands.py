"""`optml images`: what runs here, and building it for containers."""

import json
from typing import Any

import click

from optml.errors import OptmlError
from optml.job_options import KeyValue, once_each


@click.group(invoke_without_command=True)
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
