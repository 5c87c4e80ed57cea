"""What a backend is: seven calls (`start`, `sweep`; `poll`, `terminate`, `suspend`, `fill_disk`, `kill`), what hosts find around
them, and what it can do.

A backend turns a Launch, which is plain data, into a running host. It knows nothing of jobs, statuses or objects; what holds
for every backend is decided above it.
"""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from optml.errors import UserError
from optml.images import Image
from optml.instance_metadata import Instance
from optml.jobdir import HostDir

Progress = Callable[[str, int, int | None], None]  # step, bytes done, bytes in all if known


@dataclass(frozen=True, kw_only=True)
class Mount:
    """Something of this machine that a host sees at `target`.

    With `layer` set, a writable view: writes go to `layer`/upper and `source` stays as it is (an overlay mount with
    upperdir `layer`/upper and workdir `layer`/work; both exist already, and upper may hold files and
    whiteouts that hide the source's). `layer` with `read_only` is a read-only view.
    """

    source: Path
    target: str
    read_only: bool = False
    layer: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Launch:
    """How to start one host: a pure rendering of a job, printed by --dry-run."""

    host: str
    argv: tuple[str, ...]
    environment: Mapping[str, str]
    working_dir: str | None  # None: the image's own
    host_dir: HostDir
    log_file: Path
    image: str | None = None  # what a container is made of
    after_entrypoint: bool = False  # argv comes after the image's ENTRYPOINT, rather than in its place
    as_caller: bool = False  # a container runs as the calling user, whatever user its image names
    hosts: tuple[str, ...] = ()  # every host of the attempt, this one included
    mounts: tuple[Mount, ...] = ()
    addresses: Mapping[str, str] = field(default_factory=dict)  # host name -> IP address, this host's own included
    cpus: tuple[int, ...] | None = None  # processor numbers; None: all
    gpus: tuple[int, ...] = ()
    memory_bytes: int | None = None
    network_isolation: bool = False
    instance: Instance | None = None  # what the host's metadata service tells; None: it has none
    disk: str | None = None  # a folder of the host's that stands on a disk of its own, for `fill_disk`
    signals_everyone: bool = False  # `terminate` may be asked to reach every process


@dataclass(frozen=True, kw_only=True)
class Capabilities:
    """What a backend can do on this machine, and, where it can't, why and how to allow it."""

    own_opt_ml: bool  # each host has the real path /opt/ml
    views: bool  # copy-free writable views (overlay mounts)
    host_names: bool  # hosts reach each other by name
    network_isolation: bool
    memory_limit: bool
    shared_network: bool = False  # hosts listen where other jobs' hosts do, unless isolated
    reachable: bool = True  # this machine can connect to what listens on a host
    explanation: str = ""
    why_no_disk: str = ""  # why a host's folder cannot stand on a disk of its own, if it cannot
    cpu_count: int | None = None  # processors that there are for hosts, if not all of this machine's


class HostLost(Exception):
    """The host vanished without an exit code: not the algorithm's fault. The text says what is known."""


class Host(Protocol):
    """A running host."""

    @property
    def name(self) -> str: ...

    @property
    def remark(self) -> str:
        """What the backend knows of how the host ended and its exit code does not say, such as `out of memory`; else ""."""

    @property
    def cut_short(self) -> bool:
        """Whether a signal ended the main process, so that it may have been in the middle of anything. Where nobody can know, the
        exit code says so."""

    def fileno(self) -> int:
        """A descriptor that can be read when poll() has news."""

    def poll(self) -> int | None:
        """The exit code of the host's main process (128+n for signal n), or None while it runs. HostLost if it vanished."""

    @property
    def disk(self) -> int | None:
        """A descriptor of the folder that stands on a disk of its own, if the launch asked for one. Whoever asks closes it; until
        then the disk is there, also after the host's end."""

    def fill_disk(self, *, full: bool) -> None:
        """Leave that disk no room for another byte, or all that it had. PlatformError if that fails and the host runs."""

    def terminate(self, *, everyone: bool = False) -> None:
        """SIGTERM to the host's main process, or to every process on it. No error if it is gone."""

    def suspend(self) -> None:
        """Let everything on the host stand still, as a machine that hangs. Only `kill` follows. No error if it is gone."""

    def kill(self) -> None:
        """SIGKILL to everything on the host; returns when nothing of it runs. No error if it is gone."""


class Backend(Protocol):
    name: str
    containers: bool  # hosts are containers made of images, not processes of this machine's own programs

    def interface(self, *, host_count: int, isolated: bool) -> str:
        """The network interface by which the hosts of a job see each other."""

    def environment(self, caller: Mapping[str, str]) -> dict[str, str]:
        """What hosts get of the caller's environment."""

    def capabilities(self) -> Capabilities:
        """Found by trying, and remembered."""

    def check(self, image: Image) -> None:
        """UserError, with what to do, if no host of that image could be started now. Before a job's name is taken."""

    def versions(self, image: Image) -> Mapping[str, str] | None:
        """Of the packages that the image is about (`versions_of`) and of `python`: what hosts would have; a package whose version
        is not known is not in it. None: the image is not here yet."""

    def fetch(self, image: Image, progress: Progress) -> tuple[str, ...]:
        """Have the image on this machine. Gives warnings about it. UserError if it can't be had."""

    def start(self, launch: Launch) -> Host:
        """Start a host. PlatformError or UserError if it can't be started, with what to do; then nothing is left behind."""

    def sweep(self, host_dir: HostDir) -> None:
        """End and unmount whatever a supervisor that is gone left of this host. No error if nothing is left."""


BACKENDS = {"process": "optml.backends.process", "docker": "optml.backends.docker"}


def backend_named(name: str) -> Backend:
    """The backend of that name, imported now. Each backend's module has a `backend()`."""
    if name not in BACKENDS:
        raise UserError(f"--backend must be one of {', '.join(sorted(BACKENDS))}, got {name!r}")
    module = importlib.import_module(BACKENDS[name])
    backend: Backend = module.backend()
    return backend
