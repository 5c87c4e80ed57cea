"""Our Docker images: what of them is built, and building them from containers/images, in a checkout or an installed optml.

The context has the layout of the checkout, so the same Dockerfiles serve `docker build -f containers/images/NAME/Dockerfile .`
"""

import contextlib
import functools
import os
import re
import tarfile
import tempfile
import threading
import time
import zlib
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from optml import __version__
from optml.console import Console, duration_text, size_text
from optml.engine import connect
from optml.errors import PlatformError, UserError
from optml.images import (
    BASE_IMAGE_VARIABLE,
    OURS,
    VERSIONS_LABEL,
    distributions,
    find_image,
    images_dir,
    package_folder,
)
from optml.shapes import near

if TYPE_CHECKING:
    import docker

REQUIREMENTS = "requirements.txt"
REQUIREMENTS_GPU = "requirements-gpu.txt"
SILENCE_SECONDS = 30  # after so long without a word from the build a line says what it is at
TAIL_LINES = 15  # of a step that failed
PIP_SAYS = re.compile(r"Downloading \S+ \(\d{2,}(\.\d+)? MB\)|Installing collected packages")
SHOWN_WIDTH = 110
FINISHED = re.compile(r"Successfully (built|tagged) |(sha256:)?[0-9a-f]{64}$")  # Docker's last lines, and podman's
ANSI = re.compile(r"\x1b\[[0-9;]*m")
LONG_LINE = 300  # pip lists every version there is

PIP_ARGS = ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "PIP_TRUSTED_HOST")
# Every builder knows these, in both cases.
PROXY_ARGS = ("HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "ALL_PROXY", "NO_PROXY")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A folder of containers/images with a Dockerfile."""

    name: str
    folders: tuple[str, ...]  # of containers/images, that its Dockerfile copies from
    build_args: tuple[str, ...]  # what its Dockerfile declares
    base_image: str  # the default
    has_gpu_variant: bool

    @property
    def dockerfile(self) -> str:
        return f"containers/images/{self.name}/Dockerfile"


@functools.cache
def recipes() -> Mapping[str, Recipe]:
    """Every image that can be built, by name: those that a container.toml describes and a Dockerfile makes."""
    files = sorted(images_dir().glob("*/Dockerfile"))
    return {file.parent.name: _recipe(file) for file in files if file.with_name("container.toml").exists()}


def _recipe(file: Path) -> Recipe:
    text = file.read_text(encoding="utf-8")
    declared = re.findall(r"^ARG\s+(\w+)(?:=(\S*))?", text, re.MULTILINE)
    copied = re.findall(r"^COPY containers/images/([\w-]+)/", text, re.MULTILINE)
    return Recipe(
        name=file.parent.name,
        folders=tuple(dict.fromkeys([file.parent.name, *copied])),
        build_args=tuple(name for name, _ in declared),
        base_image=dict(declared)["BASE_IMAGE"],
        has_gpu_variant=(file.parent / REQUIREMENTS_GPU).is_file(),
    )


def built_images() -> Mapping[str, int]:
    """What the engine has of ours: `optml/xgboost:latest` -> its size in bytes, base image included. UserError without engine."""
    with _engine_may_go("the images cannot be listed"):
        found = connect().api.images(filters={"reference": f"{OURS}*"})
    plain = {
        tag.removeprefix("docker.io/"): entry["Size"] for entry in found for tag in entry["RepoTags"] or ()
    }  # podman's
    return {tag: size_bytes for tag, size_bytes in plain.items() if tag.startswith(OURS)}


def build(
    name: str,
    *,
    console: Console,
    base_image: str | None = None,
    build_args: Mapping[str, str] | None = None,
    gpu: bool = False,
    network: str | None = None,
) -> str:
    """Build one of our images, and give its name: `optml/NAME:latest`, tagged `:VERSION` too; with `gpu`, `:gpu`, `:VERSION-gpu`.

    The base image is `base_image`, else $OPTML_BASE_IMAGE, else the Dockerfile's; it is pulled if it is not there. pip's
    settings and the proxies of the environment become build arguments, unless `build_args` gives them. `network` is the
    engine's network mode during RUN. UserError for what a person can mend: an unknown name, no GPU variant, an argument that
    the Dockerfile does not declare, no engine, no base image, a step that fails (with the end of what it printed).
    """
    recipe = _recipe_named(name, gpu=gpu)
    _check_args(recipe, build_args or {})
    base = base_image or os.environ.get(BASE_IMAGE_VARIABLE) or recipe.base_image
    arguments = _args_of_environment(recipe) | dict(build_args or {}) | {"BASE_IMAGE": base}
    if gpu:
        arguments["REQUIREMENTS"] = REQUIREMENTS_GPU
    for text in warnings_about(arguments, network):
        console.say(f"Warning: {text}", important=True)

    client = connect()
    have_base_image(client, base, console)
    tag, version_tag = ("gpu", f"{__version__}-gpu") if gpu else ("latest", __version__)
    reference = f"{OURS}{recipe.name}:{tag}"
    console.say(f"Building {reference} from {base}")
    began = time.monotonic()
    with folders_served(client, arguments, network, console) as reachable, context(recipe) as tar:
        with _engine_may_go(f"{reference} could not be built"):
            _build(client, recipe, reference, tar=tar, arguments=reachable, network=network, console=console)
            image = client.images.get(reference)
            image.tag(f"{OURS}{recipe.name}", tag=version_tag)
    took = duration_text(time.monotonic() - began)
    console.say(f"Built {reference}, {size_text(image.attrs['Size'])} ({took})", important=True)
    return reference


def _recipe_named(name: str, *, gpu: bool) -> Recipe:
    recipe = recipes().get(name.removeprefix(OURS))
    if recipe is None:
        raise UserError(
            f"there is no image {name!r} to build{near(name, list(recipes())).replace('?', '? There') or '; there'} are "
            f"{', '.join(recipes())}"
        )
    if gpu and not recipe.has_gpu_variant:
        having = ", ".join(name for name, each in recipes().items() if each.has_gpu_variant)
        raise UserError(f"the image {recipe.name!r} has no GPU variant; these have one: {having}")
    return recipe


def _check_args(recipe: Recipe, given: Mapping[str, str]) -> None:
    options = {"BASE_IMAGE": "--base-image", "REQUIREMENTS": "--gpu"}
    known = [name for name in recipe.build_args if name not in options]
    for name in given:
        if name in options:
            raise UserError(f"--build-arg {name}: use {options[name]}")
        if name not in known and name.upper() not in PROXY_ARGS:
            raise UserError(
                f"--build-arg {name}: {recipe.dockerfile} has no such argument; it has "
                f"{', '.join([*known, *PROXY_ARGS])}, besides what --base-image and --gpu are for"
            )


def _args_of_environment(recipe: Recipe) -> dict[str, str]:
    wanted = [name for name in PIP_ARGS if name in recipe.build_args]
    wanted += [*PROXY_ARGS, *(name.lower() for name in PROXY_ARGS)]
    return {name: os.environ[name] for name in wanted if os.environ.get(name)}


def warnings_about(arguments: Mapping[str, str], network: str | None) -> Iterator[str]:
    for name, value in arguments.items():
        if name in PIP_ARGS and any(re.search(r"//[^/@]*:[^/@]+@", word) for word in value.split()):
            yield f"{name} has a password in it, which `docker history` of the image will show"
        on_loopback = re.match(r"(\w+://)?([^/@]*@)?(localhost|127\.\d+\.\d+\.\d+|\[::1\])(:|/|$)", value)
        if name.upper() in PROXY_ARGS and name.upper() != "NO_PROXY" and on_loopback and network != "host":
            yield f"{name} is on this machine's loopback, which a build reaches with --network host only"


def have_base_image(client: "docker.DockerClient", base: str, console: Console) -> None:
    """Pull the base image if it is not there; UserError, with how to take another one, if that cannot be."""
    from optml.backends.docker_images import has_image, pull

    try:
        there = has_image(client, base)
    except UserError as error:
        raise UserError(f"the base image {base!r} is not the name of an image") from error
    if there:
        return
    try:
        pull(client, base, console.progress)
    except UserError as error:
        raise UserError(
            f"{error}. Or take another base image, with Python 3.11 or newer and pip in it: --base-image IMAGE, or set "
            f"{BASE_IMAGE_VARIABLE}"
        ) from error
    console.step_done()


@contextlib.contextmanager
def context(recipe: Recipe) -> Iterator[IO[bytes]]:
    """What the Dockerfile copies, as a tar in the layout of the checkout, readable for any uid."""
    with tempfile.TemporaryFile() as file:
        with tarfile.open(fileobj=file, mode="w") as tar:
            for name in recipe.folders:
                _add(tar, images_dir() / name, f"containers/images/{name}")
            _add(tar, package_folder("optml_toolkit"), "containers/optml_toolkit")
            _add(tar, package_folder("optml_algorithms"), "algorithms/optml_algorithms")
        file.seek(0)
        yield file


def _add(tar: tarfile.TarFile, folder: Path, name: str) -> None:
    for path in [folder, *sorted(folder.rglob("*"))]:
        if "__pycache__" in path.parts or path.suffix == ".pyc" or not (path.is_dir() or path.is_file()):
            continue
        entry = tar.gettarinfo(path, arcname=str(Path(name) / path.relative_to(folder)))
        entry.uid = entry.gid = 0
        entry.uname = entry.gname = "root"
        executable = path.is_dir() or entry.mode & 0o111
        entry.mode = 0o755 if executable else 0o644
        if entry.isfile():
            with path.open("rb") as content:
                tar.addfile(entry, content)
        else:
            tar.addfile(entry)


def _build(
    client: "docker.DockerClient",
    recipe: Recipe,
    reference: str,
    *,
    tar: IO[bytes],
    arguments: Mapping[str, str],
    network: str | None,
    console: Console,
) -> None:
    labels = {
        "org.opencontainers.image.version": __version__,
        "org.opencontainers.image.base.name": arguments["BASE_IMAGE"],
        "optml.version": __version__,
    }
    if versions := pinned_versions(recipe, gpu="REQUIREMENTS" in arguments):
        versions |= {"python": python} if (python := python_of(client, arguments["BASE_IMAGE"])) else {}
        labels[VERSIONS_LABEL] = " ".join(f"{name}=={version}" for name, version in versions.items())
    said = Said()
    with _told_in_silence(said, console):
        for event in client.api.build(
            fileobj=tar,
            custom_context=True,
            dockerfile=recipe.dockerfile,
            tag=reference,
            buildargs=dict(arguments),
            labels=labels,
            network_mode=network,
            rm=True,
            forcerm=True,  # no container of a failed step stays
            decode=True,
        ):
            if "error" in event:
                raise UserError(_step_failed(reference, said, str(event["error"])))
            for line in str(event.get("stream", "")).splitlines():
                said.hear(line)
                if shown := said.worth_showing(line):
                    console.say(shown[:SHOWN_WIDTH])
    if not said.finished:  # the tag may be there all the same, of an older image
        raise PlatformError(f"{reference} could not be built: the container engine went away at {said.step}")


def pinned_versions(recipe: Recipe, *, gpu: bool) -> dict[str, str]:
    """Of the packages that the image is about, by name, as its requirements pin them."""
    described = find_image(recipe.name)
    files = [images_dir() / folder / (REQUIREMENTS_GPU if gpu else REQUIREMENTS) for folder in recipe.folders]
    text = "\n".join(file.read_text(encoding="utf-8") for file in files if file.is_file())
    pins = dict(re.findall(r"^([\w-]+)={2,3}(\S+)", text, re.MULTILINE))
    packages = described.versions_of if described is not None else ()
    return {name: pins[pinned] for name in packages for pinned in distributions(name) if pinned in pins}


def python_of(client: "docker.DockerClient", base: str) -> str | None:
    """The version of a base image's Python, from its environment, as Docker's own say it, or from itself."""
    import docker

    variables: list[str] = client.api.inspect_image(base)["Config"].get("Env") or []
    said = dict(variable.split("=", 1) for variable in variables if "=" in variable).get("PYTHON_VERSION")
    if said:
        return said
    ask = ["python", "-c", "import platform; print(platform.python_version())"]
    try:
        answer: bytes = client.containers.run(base, ask[1:], entrypoint=ask[0], network_mode="none", remove=True)
    except docker.errors.DockerException:  # the build will say what is wrong with it
        return None
    version: str = answer.decode(errors="replace").strip()
    return version or None


@contextlib.contextmanager
def _engine_may_go(what: str) -> Iterator[None]:
    import docker
    import requests
    import urllib3

    try:
        yield
    except docker.errors.APIError as error:
        raise UserError(f"{what}: {error.explanation or error}") from error
    except (requests.RequestException, urllib3.exceptions.HTTPError, docker.errors.DockerException) as error:
        raise PlatformError(f"{what}: the container engine went away: {error}") from error


@dataclass
class Said:
    """What a build has printed of the step that it is at."""

    step: str = "the first step"
    lines: deque[str] = field(default_factory=lambda: deque(maxlen=TAIL_LINES))
    since: float = field(default_factory=time.monotonic)
    finished: bool = False

    def hear(self, line: str) -> None:
        self.since = time.monotonic()
        if line.upper().startswith("STEP "):
            self.step = line.strip()
            self.lines.clear()
        elif line := ANSI.sub("", line).rstrip():
            self.finished = FINISHED.match(line) is not None
            self.lines.append(line if len(line) <= LONG_LINE else f"{line[:LONG_LINE]} ...")

    def worth_showing(self, line: str) -> str | None:
        """A command when it begins to run, which it does not if its result is known; and pip's long downloads."""
        if "---> Running in" in line or line.startswith("STEP "):  # Docker's, podman's
            return self.step if ": RUN" in self.step else None
        return line.strip() if PIP_SAYS.match(line.strip()) else None


@contextlib.contextmanager
def _told_in_silence(said: Said, console: Console) -> Iterator[None]:
    """A line now and then while a step says nothing."""
    over = threading.Event()

    def tell() -> None:
        told = time.monotonic()
        while not over.wait(1):
            now = time.monotonic()
            if now - max(said.since, told) >= SILENCE_SECONDS:
                told = now
                console.say(f"Still at {said.step[:90]} ({duration_text(now - said.since)} without a word)")

    teller = threading.Thread(target=tell, name="build-silence", daemon=True)
    teller.start()
    try:
        yield
    finally:
        over.set()
        teller.join()


def _step_failed(reference: str, said: Said, error: str) -> str:
    tail = "\n".join(f"  {line}" for line in said.lines)
    remedy = ""
    if missing := re.search(r"No matching distribution found for (\S+)", tail):
        remedy = (
            f"\npip finds no {missing[1]}. If another index has it, name that: PIP_EXTRA_INDEX_URL=https://... in the "
            "environment or by --build-arg (docs/images.md says which, for PyTorch)"
        )
    elif (
        "Temporary failure in name resolution" in tail or "Network is unreachable" in tail or "ConnectionError" in tail
    ):
        remedy = "\nthe build has no network: try --network host, or give a proxy (HTTPS_PROXY)"
    elif "CERTIFICATE_VERIFY_FAILED" in tail:
        remedy = (
            "\nthe base image does not know the certificate authority of that index: use a base image that has it and says so "
            "to pip (ENV PIP_CERT), or name the host in PIP_TRUSTED_HOST"
        )
    elif "no space left on device" in error + tail:
        remedy = "\nthe disk of the container engine is full: docker system df says by what"
    return f"{reference} could not be built: {said.step} failed: {error}\n{tail}{remedy}"


@contextlib.contextmanager
def folders_served(
    client: "docker.DockerClient", arguments: Mapping[str, str], network: str | None, console: Console
) -> Iterator[dict[str, str]]:
    """PIP_FIND_LINKS may name folders of this machine, which a build cannot see: they are served to it while it runs."""
    places = arguments.get("PIP_FIND_LINKS", "").split()
    folders = {place: folder for place in places if (folder := _local_folder(place)) is not None}
    with contextlib.ExitStack() as servers:
        if not folders:
            yield dict(arguments)
            return
        address = "127.0.0.1" if network == "host" else _bridge_address(client)
        links = [place for place in places if place not in folders]
        for place, folder in folders.items():
            try:
                if not folder.is_dir():
                    raise OSError("there is no such folder")
                if address is None:
                    raise OSError("the build cannot reach this machine; --network host may help")
                port = servers.enter_context(_served(folder, address))
            except OSError as error:
                console.say(f"Warning: PIP_FIND_LINKS {place} is left out: {error.strerror or error}", important=True)
                continue
            links.append(f"http://{address}:{port}/")
        # pip mistrusts plain http but for the loopback.
        trusted = " ".join([*arguments.get("PIP_TRUSTED_HOST", "").split(), address or ""]).strip()
        settings = {"PIP_FIND_LINKS": " ".join(links), "PIP_TRUSTED_HOST": trusted}
        reachable = {name: value for name, value in arguments.items() if name not in settings}
        yield reachable | {name: value for name, value in settings.items() if value}


def _local_folder(place: str) -> Path | None:
    if place.startswith("file://"):
        return Path(unquote(urlsplit(place).path))
    return None if "://" in place else Path(place)


def _bridge_address(client: "docker.DockerClient") -> str | None:
    """This machine, as containers on the engine's default network see it; None if the engine is not on this machine."""
    import docker

    if not str(client.api.base_url).startswith("http+docker://"):
        return None
    try:
        ranges = client.networks.get("bridge").attrs["IPAM"]["Config"]
        return next((each["Gateway"] for each in ranges if ":" not in each["Gateway"]), None)
    except (docker.errors.APIError, KeyError, TypeError):  # podman names it otherwise
        return None


@contextlib.contextmanager
def _served(folder: Path, address: str) -> Iterator[int]:
    """Gives the port: the same one for a folder whenever it can be had, for it is part of what the engine's cache goes by."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        allow_reuse_port = True  # two builds at once serve the same folder

    handler = functools.partial(Quiet, directory=str(folder))
    try:
        server = Server((address, 20000 + zlib.crc32(str(folder).encode()) % 10000), handler)
    except OSError:  # somebody else's
        server = Server((address, 0), handler)
    with server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), name="wheels", daemon=True)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()
