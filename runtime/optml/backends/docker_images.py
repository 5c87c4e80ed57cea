"""Images in a container engine: whether one is there, how to get it, and what a job should know of it."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optml import __version__
from optml.backends import Progress
from optml.backends.docker_errors import short, why_not_pulled
from optml.engine import engine_info
from optml.errors import PlatformError, UserError
from optml.images import OURS, VERSIONS_LABEL, Image

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
    repository, _, tag = image.reference.partition(":")
    made = ("latest", __version__, "gpu", f"{__version__}-gpu")
    if tag and tag not in made:
        return (
            f"there is no image {image.reference} here, and {how_to_build(image)} does not make it, for its tags are "
            f"{made[0]} and {made[1]}: leave the tag out, or docker tag {repository} {image.reference}"
        )
    return f"the image {image.reference} has not been built here: {how_to_build(image)}"


def how_to_build(image: Image) -> str:
    return f"optml images build {image.name}" + (" --gpu" if image.reference.endswith((":gpu", "-gpu")) else "")


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
    if missed := _missed_behind_a_shell(content["Config"].get("Entrypoint")):
        warnings.append(
            f"the ENTRYPOINT of {reference} is a shell that reads its program from a string: the program does not get "
            f'{missed}; name the program itself: ENTRYPOINT ["python", "train.py"]'
        )
    engine, own = engine_info(client).get("Architecture", ""), content.get("Architecture", "")
    if own and engine and ARCHITECTURES.get(engine, engine) != own:
        warnings.append(f"{reference} is made for {own}, and this machine is {engine}: it may not start")
    return tuple(warnings)


def _missed_behind_a_shell(entrypoint: Any) -> str:
    """What a program does not get that a shell starts from a string: ENTRYPOINT without brackets, or ["sh", "-c", "..."]."""
    if (
        not isinstance(entrypoint, list)
        or len(entrypoint) < 3
        or Path(entrypoint[0]).name not in ("sh", "bash", "dash", "ash", "ksh", "zsh")
        or re.fullmatch("-[a-z]*c", entrypoint[-2]) is None
    ):
        return ""
    missed = []
    if not re.search(r"\$\{?[0-9@*]", entrypoint[-1]):
        missed.append("the word `train`")
    if not re.search(r"\bexec\b", entrypoint[-1]):
        missed.append("SIGTERM (unless the shell execs it)")
    return ", nor ".join(missed)


def labelled_versions(client: "docker.DockerClient", reference: str) -> Mapping[str, str] | None:
    """The versions of the packages that an image of ours is about, by package, `python` too; {} if it says nothing of them, None
    if it is not here."""
    if not has_image(client, reference):
        return None
    text = (client.api.inspect_image(reference)["Config"].get("Labels") or {}).get(VERSIONS_LABEL, "")
    return dict(word.split("==", 1) for word in text.split() if "==" in word)
