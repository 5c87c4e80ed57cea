"""What the container engine's errors mean, and what to do about each."""

import contextlib
import re
import shlex
from collections.abc import Iterator

from optml.backends import Launch
from optml.errors import OptmlError, PlatformError, ResourceLimitExceeded, StartError, UserError


def explained(launch: Launch, error: Exception) -> OptmlError:
    """The engine's error when it makes or starts a container -> ours, which says what to do."""
    import docker

    text = short(error)
    begin = f"{launch.host} could not be started"
    program = shlex.join(launch.argv)
    if isinstance(error, docker.errors.ImageNotFound):
        return UserError(f"{begin}: the image {launch.image} is gone: {text}")
    if not isinstance(error, docker.errors.APIError):
        return PlatformError(f"{begin}: the container engine does not answer: {text}")
    if NO_GPUS.search(text):
        return ResourceLimitExceeded(
            f"{begin}: the container engine cannot give GPUs to containers: install the NVIDIA Container Toolkit, or use a CPU "
            f"instance type such as ml.m5.large, or --allow-cpu. The engine says: {text}"
        )
    if "executable file not found" in text or "no such file or directory: unknown" in text:
        if launch.after_entrypoint and launch.argv == ("train",):
            why = (
                f"the image {launch.image} has neither an ENTRYPOINT that can be run nor a program `train` on its PATH; "
                "give it one, or give ContainerEntrypoint"
            )
        else:
            why = f"the image {launch.image} has no program to run {program!r}: look at ContainerEntrypoint"
        return StartError(f"{begin}: {why}. The engine says: {text}")
    if "exec format error" in text:
        return StartError(f"{begin}: {program}: {NO_FORMAT}. The engine says: {text}")
    if "permission denied: unknown" in text:
        return StartError(
            f"{begin}: its program is not executable: chmod +x it in the image {launch.image}. The engine says: {text}"
        )
    if NO_USER.search(text):
        return StartError(
            f"{begin}: the USER of the image {launch.image} is not in its /etc/passwd or /etc/group: make the user in the "
            f"Dockerfile (RUN useradd), or give numbers (USER 1000:1000). The engine says: {text}"
        )
    if "bind source path does not exist" in text or "mounts denied" in text.lower():
        return PlatformError(
            f"{begin}: the container engine does not see this machine's files. It must run on this machine; with Docker Desktop, "
            f"share the folder OPTML_HOME is in. The engine says: {text}"
        )
    if "Minimum memory limit" in text or "memory limit" in text.lower():
        return UserError(f"{begin}: --memory: {text}")
    if "address pool" in text:
        return PlatformError(
            f"{begin}: the container engine has no addresses left for another network: docker network prune. It says: {text}"
        )
    return PlatformError(f"{begin}: {text}")


# In the engine's own words, and not in the name of an image or a program: of Docker with and without the toolkit, and with CDI.
NO_GPUS = re.compile(
    r"could not select device driver|nvidia-container-cli: |unknown or invalid runtime name: nvidia"
    r"|Unknown runtime specified nvidia|CDI device injection failed|failed to discover GPU vendor|unresolvable CDI devices"
)
NO_USER = re.compile(r"unable to find (?:user|group) .*: no matching entries in")
NOT_BEGUN = re.compile(rb"(?:standard_init_linux\.go:\d+: )?exec (?P<program>.+): (?P<why>[a-z ]+)\n?")


NO_FORMAT = "it is a script whose first line is not #! and an interpreter, or a program for another architecture"


def not_begun(launch: Launch) -> str:
    """Why the kernel refused the program, if the container did not get beyond that; else "".

    The engine finds out only when the container has started: what it then prints in the program's place is its whole log.
    """
    try:
        with launch.log_file.open("rb") as log:
            said = log.read(4096)
    except OSError:
        return ""
    found = NOT_BEGUN.fullmatch(said)
    if found is None:
        return ""
    program = found["program"].decode(errors="replace")
    if found["why"] == b"exec format error":
        why = NO_FORMAT
    elif found["why"] == b"no such file or directory":
        why = "the interpreter that its first line (#!) names, or its loader, is not in the image"
    else:
        why = found["why"].decode()
    return f"{program} could not be started: {why}"


def short(error: BaseException) -> str:
    """What the engine said, without the client's words around it."""
    text = str(getattr(error, "explanation", None) or error)
    text = text.replace("OCI runtime create failed: ", "").replace("failed to create shim: ", "")
    text = re.sub(r"container_linux\.go:\d+: |runc create failed: |unable to start container process: ", "", text)
    text = re.sub(r"starting container process caused: ", "", text)
    return " ".join(text.split())


@contextlib.contextmanager
def not_there() -> Iterator[None]:
    """What is asked to end may have ended, and the engine too."""
    import docker
    import requests

    with contextlib.suppress(docker.errors.APIError, requests.RequestException, OSError):
        yield


def why_not_pulled(reference: str, text: str) -> str:
    if any(
        word in text for word in ("no such host", "timeout", "refused", "unreachable", "Timeout", "deadline", "lookup")
    ):
        remedy = (
            "its registry cannot be reached from here: build the image on this machine, or bring it with docker load"
        )
    elif "denied" in text or "unauthorized" in text or "no basic auth" in text:
        remedy = (
            "there is no such image, or you may not have it: look at the name, and log in with docker login "
            "(Amazon ECR: aws ecr get-login-password | docker login --username AWS --password-stdin REGISTRY)"
        )
    else:
        remedy = "look at its name and tag (docker pull says more)"
    return f"the image {reference} is not on this machine and could not be pulled: {remedy}. The engine says: {text}"
