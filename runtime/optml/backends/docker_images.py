"""Images in a container engine: whether one is there, how to get it, and what a job should know of it."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optml.backends import Progress
from optml.backends.docker_errors import short, why_not_pulled
from optml.engine import engine_info
from optml.errors import PlatformError, UserError
from optml.images import OURS, Image

if TYPE_CHECKING:
    import docker

ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}  # the kernel's name -> that of images


def has_image(client: "docker.DockerClient", reference: str) -> bool:
    import docker

    try:
        client.api.inspect_image(reference)
    except docker.errors.ImageNotFound:
        return False
    except docker.errors.APIError as error:
        if error.response is not None and error.response.status_code == 400:
            raise UserError(
                f"AlgorithmSpecification.TrainingImage {reference!r} is not the name of an image: {short(error)}"
            ) from error
        raise PlatformError(f"the container engine cannot look for the image {reference}: {short(error)}") from error
    return True


def not_built(image: Image) -> str:
    if not image.ours:
        return f"there is no image {image.reference} here, and names that begin with {OURS} are those of optml's own"
    return f"the image {image.reference} has not been built here: {how_to_build(image)}"


def how_to_build(image: Image) -> str:
    return f"optml images build {image.name}" + (" --gpu" if image.reference.endswith(":gpu") else "")


def pull(client: "docker.DockerClient", reference: str, progress: Progress) -> None:
    """Fetch an image from its registry. UserError with the remedy if that can't be done; what `progress` raises goes through."""
    import docker
    import requests
    import urllib3
    from docker.utils import parse_repository_tag

    repository, tag = parse_repository_tag(reference)
    layers: dict[str, tuple[int, int]] = {}
    step = f"Pulling {reference}"
    progress(step, 0, None)
    try:
        for event in client.api.pull(repository, tag=tag or "latest", stream=True, decode=True):
            if "error" in event:
                raise UserError(why_not_pulled(reference, str(event["error"])))
            detail = event.get("progressDetail") or {}
            if event.get("status") == "Downloading" and detail.get("total"):
                layers[event["id"]] = (detail.get("current", 0), detail["total"])
            elif event.get("status") == "Download complete" and event.get("id") in layers:
                layers[event["id"]] = (layers[event["id"]][1],) * 2
            progress(step, sum(done for done, _ in layers.values()), sum(total for _, total in layers.values()) or None)
    except (
        docker.errors.DockerException,
        docker.errors.StreamParseError,
        requests.RequestException,
        urllib3.exceptions.HTTPError,
    ) as error:
        raise UserError(why_not_pulled(reference, short(error))) from error


def warnings_about(client: "docker.DockerClient", reference: str) -> tuple[str, ...]:
    """What may keep containers of it from running as they should."""
    content = client.api.inspect_image(reference)
    warnings = []
    if _is_shell_form(content["Config"].get("Entrypoint")):
        warnings.append(
            f"the ENTRYPOINT of {reference} is in shell form: its program does not get the word `train`, nor "
            'SIGTERM unless the shell execs it; write it as a list: ENTRYPOINT ["python", "train.py"]'
        )
    engine, own = engine_info(client).get("Architecture", ""), content.get("Architecture", "")
    if own and engine and ARCHITECTURES.get(engine, engine) != own:
        warnings.append(f"{reference} is made for {own}, and this machine is {engine}: it may not start")
    return tuple(warnings)


def _is_shell_form(entrypoint: Any) -> bool:
    """Whether a shell reads the program from a string: what becomes of an ENTRYPOINT that is no list, with any SHELL."""
    return (
        isinstance(entrypoint, list)
        and len(entrypoint) >= 3
        and Path(entrypoint[0]).name in ("sh", "bash", "dash", "ash", "ksh", "zsh")
        and re.fullmatch("-[a-z]*c", entrypoint[-2]) is not None
    )
