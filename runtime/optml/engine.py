"""The container engine of this machine: where Docker or podman listens, and a client that has had an answer from it.

The docker package (optml[docker]) is imported when a client is asked for, and not before.
"""

import errno
import functools
import hashlib
import json
import os
import platform
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optml.errors import UserError

if TYPE_CHECKING:
    import docker

FIRST_ANSWER_SECONDS = 10  # an engine that is there answers in milliseconds; one over ssh in a few seconds
ANSWER_SECONDS = 300  # of the calls that are not streams: a loaded engine may take long to create, start or remove

# What decides where the client goes; a change of these means another client.
SETTINGS = (
    "DOCKER_HOST",
    "DOCKER_CONTEXT",
    "DOCKER_CONFIG",
    "DOCKER_TLS_VERIFY",
    "DOCKER_CERT_PATH",
    "HOME",
    "XDG_RUNTIME_DIR",
)


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """A place where an engine may listen. `chosen` says by what, if the user chose it; then no other place is tried."""

    address: str  # unix:///var/run/docker.sock, tcp://host:2376, ssh://user@host
    chosen: str | None = None
    tls_dir: Path | None = None  # ca.pem, cert.pem, key.pem, those that are needed
    verify: bool = True  # the server's certificate

    @property
    def socket(self) -> Path | None:
        return Path(self.address.removeprefix("unix://")) if self.address.startswith("unix://") else None

    @property
    def name(self) -> str:
        return str(self.socket or self.address)


def connect() -> "docker.DockerClient":
    """A client of the engine, which has answered; the same one for every caller in this process, from any thread.

    The place is, in the docker client's order, DOCKER_HOST, DOCKER_CONTEXT or the current context; if none of them says, the
    first socket that answers: Docker's, Docker Desktop's, rootless Docker's, podman's, rootless podman's. UserError if
    none answers, with what was tried, and if the docker package is missing.
    """
    return _connect(os.getpid(), tuple(os.environ.get(name) for name in SETTINGS))


def seems_there() -> bool:
    """Whether connect() is worth a try, without trying: a place was chosen, or a usual socket exists. Imports nothing."""
    try:
        chosen = _chosen_endpoint()
    except UserError:
        return True  # connect() will say what is wrong
    return chosen is not None or any(endpoint.socket and endpoint.socket.exists() for endpoint in usual_endpoints())


@functools.cache
def engine_info(client: "docker.DockerClient") -> Mapping[str, Any]:
    """What the engine says of itself, asked once."""
    found: Mapping[str, Any] = client.info()
    return found


def shares_our_kernel(client: "docker.DockerClient") -> bool:
    """Whether the engine could mount a folder of ours: it runs on this machine, not in a virtual machine of its own."""
    info = engine_info(client)
    return (
        str(client.api.base_url).startswith("http+docker://localhost")
        and platform.system() == "Linux"
        and info.get("KernelVersion") == platform.release()
        and not is_rootless(info)
    )


def is_rootless(info: Mapping[str, Any]) -> bool:
    """Of an engine that runs as the caller: what is root in its containers is the caller outside."""
    return any("rootless" in option for option in info.get("SecurityOptions") or ())


@functools.cache
def _connect(_process: int, _settings: tuple[str | None, ...]) -> "docker.DockerClient":
    try:
        import docker  # noqa: F401
    except ImportError:
        raise UserError("containers need the docker package: pip install 'optml[docker]'") from None
    chosen = _chosen_endpoint()
    reasons: list[tuple[Endpoint, str]] = []
    for endpoint in [chosen] if chosen else usual_endpoints():
        client, reason = _try(endpoint)
        if client is not None:
            return client
        reasons.append((endpoint, reason))
    raise UserError(_nobody_answers(reasons))


def _chosen_endpoint() -> Endpoint | None:
    """By DOCKER_HOST, DOCKER_CONTEXT or the current context of the docker client's configuration; None if none of them says."""
    if host := os.environ.get("DOCKER_HOST"):
        cert_path = os.environ.get("DOCKER_CERT_PATH")
        verify = os.environ.get("DOCKER_TLS_VERIFY", "") != ""
        tls_dir = Path(cert_path) if cert_path else _docker_dir() if verify else None
        return Endpoint(address=_with_scheme(host), chosen="DOCKER_HOST", tls_dir=tls_dir, verify=verify)
    name = os.environ.get("DOCKER_CONTEXT")
    said_by = "DOCKER_CONTEXT"
    if not name:
        config = _docker_dir() / "config.json"
        name = _json_file(config).get("currentContext")
        said_by = f"currentContext in {config}"
    if not name or name == "default":
        return None
    digest = hashlib.sha256(name.encode()).hexdigest()  # so the docker client names their folders
    meta = _docker_dir() / "contexts" / "meta" / digest / "meta.json"
    if not meta.is_file():
        raise UserError(f"{said_by} names the docker context {name!r}, which does not exist: see `docker context ls`")
    endpoint = _json_file(meta).get("Endpoints", {}).get("docker", {})
    if not endpoint.get("Host"):
        raise UserError(
            f"the docker context {name!r} ({meta}) names no docker host: see `docker context inspect {name}`"
        )
    tls_dir = _docker_dir() / "contexts" / "tls" / digest / "docker"
    return Endpoint(
        address=_with_scheme(endpoint["Host"]),
        chosen=f"the docker context {name!r}",
        tls_dir=tls_dir if tls_dir.is_dir() else None,
        verify=not endpoint.get("SkipTLSVerify", False),
    )


def usual_endpoints() -> list[Endpoint]:
    """Where engines listen by default, in the order in which they are tried."""
    runtime_dir = Path(os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid()}")
    sockets = [
        Path("/var/run/docker.sock"),
        Path.home() / ".docker" / "run" / "docker.sock",  # Docker Desktop
        runtime_dir / "docker.sock",  # rootless Docker
        Path("/run/podman/podman.sock"),
        runtime_dir / "podman" / "podman.sock",
    ]
    return [Endpoint(address=f"unix://{socket}") for socket in sockets]


def _try(endpoint: Endpoint) -> tuple[Any, str]:
    """A client that has had an answer, or None and why there is none."""
    import docker

    if endpoint.socket and not os.path.lexists(endpoint.socket):
        return None, "not there"
    try:
        tls = _tls(endpoint)
        # The first call asks for the version, and has less time than the later ones.
        asked = docker.DockerClient(endpoint.address, tls=tls, version="auto", timeout=FIRST_ANSWER_SECONDS)
        version = asked.api.api_version
        asked.close()
        return docker.DockerClient(endpoint.address, tls=tls, version=version, timeout=ANSWER_SECONDS), ""
    except (docker.errors.DockerException, OSError, ValueError) as error:  # requests' errors are OSErrors
        return None, _reason(error)


def _tls(endpoint: Endpoint) -> Any:
    if endpoint.tls_dir is None or endpoint.socket:
        return False
    import docker

    files = {name: endpoint.tls_dir / f"{name}.pem" for name in ("ca", "cert", "key")}
    pair = (str(files["cert"]), str(files["key"])) if files["cert"].is_file() and files["key"].is_file() else None
    ca_cert = str(files["ca"]) if files["ca"].is_file() else None
    return docker.tls.TLSConfig(client_cert=pair, ca_cert=ca_cert, verify=endpoint.verify)


def _reason(error: BaseException) -> str:
    """The system's own word (`Permission denied`), which the SDK and requests wrap several times; else their text."""
    words = [each.strerror for each in _with_causes(error) if isinstance(each, OSError) and each.strerror]
    text = str(words[0] if words else error)
    return f"{text}: pip install 'docker[ssh]'" if "paramiko" in text else text


def _with_causes(error: BaseException) -> Iterator[BaseException]:
    yield error
    for inner in (*error.args, error.__cause__, error.__context__):
        if isinstance(inner, BaseException):
            yield from _with_causes(inner)


def _nobody_answers(reasons: list[tuple[Endpoint, str]]) -> str:
    chosen = reasons[0][0].chosen
    tried = "; ".join(f"{endpoint.name}: {reason}" for endpoint, reason in reasons)
    denied = [endpoint.name for endpoint, reason in reasons if reason == os.strerror(errno.EACCES)]
    if denied:
        remedy = (
            f"this user may not open {denied[0]}: join its group (for Docker: sudo usermod -aG docker $USER, then log in "
            f"again), or use a rootless engine"
        )
    elif chosen:
        remedy = f"{chosen} says that it is there: start that engine, or choose another"
    else:
        remedy = "start Docker (or `systemctl --user start podman.socket`), or say where it is with DOCKER_HOST"
    return f"no container engine answers ({tried}); {remedy}. Without containers: --backend process"


def _docker_dir() -> Path:
    return Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker")


def _with_scheme(host: str) -> str:
    return f"unix://{host}" if host.startswith("/") else host


def _json_file(file: Path) -> dict[str, Any]:
    """What a configuration file says; nothing if there is none."""
    try:
        content = json.loads(file.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UserError(f"{file}, which says where the container engine is, cannot be read: {error}") from None
    return content if isinstance(content, dict) else {}
