"""The Docker backend: a host is a container of the job's image, with its own /opt/ml bound from the job's folder.

One host alone sits on the engine's default network, or on none if it is isolated; the hosts of a bigger job share a bridge
network of their own, on which each answers to its name. What the engine holds of a job (containers, networks, volumes) carries
labels by which a later command finds and removes it, should its supervisor be gone; a small watcher removes it at once.
"""

import contextlib
import functools
import io
import ipaddress
import itertools
import json
import os
import platform
import re
import secrets
import signal
import stat
import struct
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optml import machine
from optml.backends import Capabilities, HostLost, Launch, Mount, Progress
from optml.backends.docker_errors import explained, not_begun, not_there, short, why_not_pulled
from optml.backends.docker_leftovers import (
    FOLDER_LABEL,
    HOST_LABEL,
    hold,
    labelled,
    labelled_networks,
    labelled_volumes,
    labels,
    let_go,
    remove_container,
    remove_network,
    remove_volume,
    tidy,
    watch_over_this_process,
)
from optml.backends.docker_owner import hand_over
from optml.backends.docker_services import Services
from optml.engine import connect
from optml.errors import OptmlError, PlatformError, UserError
from optml.images import OURS, Image
from optml.jobdir import HostDir
from optml.spec import OPT_ML

if TYPE_CHECKING:
    import docker

LOG_SECONDS = 60.0  # for the last lines to come after a container's end
KILL_SECONDS = 20.0
# An isolated network's bridge has no address on this machine either: nothing of it can be reached.
ISOLATED_BRIDGE = {"com.docker.network.bridge.inhibit_ipv4": "true"}
ISOLATED_DNS = ("timeout:1", "attempts:1")  # nobody answers for names outside: say so soon
NETWORK_TRIES = 10
FRAME = struct.Struct(">BxxxL")  # of a log stream: 1 standard output, 2 standard error; then how many bytes follow


def backend() -> "DockerBackend":
    return DockerBackend()


class DockerBackend:
    name = "docker"
    containers = True

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._networks: dict[str, _Network] = {}
        self._tidied = False

    def interface(self, *, host_count: int, isolated: bool) -> str:
        return "lo" if isolated and host_count == 1 else "eth0"

    def environment(self, caller: Mapping[str, str]) -> dict[str, str]:
        environment = {"PYTHONUNBUFFERED": "1"}  # else lines arrive when the program ends
        for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"):
            if caller.get(name):
                environment[name] = caller[name]
        endpoint = caller.get("AWS_ENDPOINT_URL_S3") or caller.get("AWS_ENDPOINT_URL")
        if endpoint:
            environment["S3_ENDPOINT_URL"] = endpoint  # AWS's training toolkit reads this name
        return environment

    def capabilities(self) -> Capabilities:
        views = False
        memory_limit = True
        with contextlib.suppress(Exception):  # no engine: `check` says so
            client = connect()
            views = shares_our_kernel(client)
            memory_limit = engine_info(client).get("MemoryLimit", True)
        return Capabilities(
            own_opt_ml=True,
            views=views,
            host_names=True,
            network_isolation=True,
            memory_limit=memory_limit,
            explanation="" if memory_limit else "its container engine's control groups cannot limit memory",
        )

    def check(self, image: Image) -> None:
        client = connect()
        if not has_image(client, image.reference) and image.reference.startswith(OURS):
            raise UserError(not_built(image))

    def fetch(self, image: Image, progress: Progress) -> tuple[str, ...]:
        client = connect()
        if not has_image(client, image.reference):
            if image.reference.startswith(OURS):
                raise UserError(not_built(image))
            pull(client, image.reference, progress)
        content = client.api.inspect_image(image.reference)
        warnings = []
        if missed := _missed_behind_a_shell(content["Config"].get("Entrypoint")):
            warnings.append(
                f"the ENTRYPOINT of {image.reference} is a shell that reads its program from a string: the program does not get "
                f'{missed}; name the program itself: ENTRYPOINT ["python", "train.py"]'
            )
        engine, own = engine_info(client).get("Architecture", ""), content.get("Architecture", "")
        if own and engine and ARCHITECTURES.get(engine, engine) != own:
            warnings.append(f"{image.reference} is made for {own}, and this machine is {engine}: it may not start")
        return tuple(warnings)

    def start(self, launch: Launch) -> "DockerHost":
        client = connect()
        with self._lock:
            if not self._tidied:
                self._tidied = True
                tidy(client)
            watch_over_this_process()
        try:
            return self._start(client, launch)
        except OptmlError:
            raise
        except Exception as error:
            raise explained(launch, error) from error

    def _start(self, client: "docker.DockerClient", launch: Launch) -> "DockerHost":
        with contextlib.ExitStack() as on_error:
            on_error.callback(hand_over, client, launch.host_dir, launch.image)
            network = self._joined(client, launch)
            on_error.callback(self._leave, client, network)
            volumes = []
            for mount in launch.mounts:
                if mount.layer is not None:
                    volumes.append(_make_view(client, launch, mount))
                    on_error.callback(remove_volume, client, volumes[-1])
            services = _services(client, launch, network)
            on_error.callback(services.close)
            launch = replace(launch, environment={**launch.environment, **services.environment})
            container = _create(client, launch, network, volumes)
            hold(container)
            on_error.callback(remove_container, client, container)
            host = DockerHost(
                client, launch, container, volumes, services, on_gone=lambda: self._leave(client, network)
            )
            on_error.callback(host.close)
            host.start()
            on_error.pop_all()
            return host

    def _joined(self, client: "docker.DockerClient", launch: Launch) -> "_Network | None":
        """The network of the job's hosts, made by the first; None where one host needs none."""
        if len(launch.hosts) < 2:
            return None
        key = str(launch.host_dir.root.parent)
        with self._lock:
            network = self._networks.get(key)
            if network is None:
                network = self._networks[key] = _make_network(client, launch, key)
            network.host_count += 1
            return network

    def _leave(self, client: "docker.DockerClient", network: "_Network | None") -> None:
        """The last host to leave takes the network with it."""
        if network is None:
            return
        with self._lock:
            network.host_count -= 1
            if network.host_count:
                return
            self._networks.pop(network.key, None)
        remove_network(client, network.id)

    def sweep(self, host_dir: HostDir) -> None:
        try:
            client = connect()
        except UserError:  # whoever runs the next job with the engine up removes it: see `tidy`
            return
        with not_there():  # nor if it has gone since
            image = _image_of(host_dir)
            for container in labelled(client, FOLDER_LABEL, str(host_dir.root)):
                image = container["ImageID"]
                remove_container(client, container["Id"])
            hand_over(client, host_dir, image)
            for name in labelled_volumes(client, FOLDER_LABEL, str(host_dir.root)):
                remove_volume(client, name)
            for network in labelled_networks(client, FOLDER_LABEL, str(host_dir.root.parent)):
                with contextlib.suppress(Exception):  # another host is still on it, and takes it along
                    client.api.remove_network(network)


@dataclass
class _Network:
    key: str
    name: str
    id: str
    addresses: Mapping[str, str]  # by host: known before any of them starts, so that each can find all others at once
    host_count: int = 0


def _make_network(client: "docker.DockerClient", launch: Launch, key: str) -> _Network:
    """A bridge network of the job's own.

    The engine chooses addresses that are free; a second network of just these takes its place, for only where they are
    asked for may hosts be given theirs. A name that the engine's DNS has only once its container runs would be
    missing for a host that starts first, and for all when a host has ended; in SageMaker every name is always there.
    """
    import docker
    from docker.types import IPAMConfig, IPAMPool

    def make(ipam: Any = None) -> tuple[str, str]:
        name = f"optml-{_job_name(launch)}-{secrets.token_hex(3)}"
        made = client.api.create_network(
            name,
            driver="bridge",
            internal=launch.network_isolation,
            options=ISOLATED_BRIDGE if launch.network_isolation else {},
            ipam=ipam,
            labels=labels(launch.host_dir.root.parent),
        )
        return name, str(made["Id"])

    for attempt in itertools.count(1):
        _name, found = make()
        try:
            pool = client.api.inspect_network(found)["IPAM"]["Config"][0]
        finally:
            remove_network(client, found)
        try:
            name, made = make(IPAMConfig(pool_configs=[IPAMPool(subnet=pool["Subnet"], gateway=pool.get("Gateway"))]))
        except docker.errors.APIError:
            if attempt == NETWORK_TRIES:  # else another job has taken them in this moment
                raise
            continue
        subnet = ipaddress.ip_network(pool["Subnet"])
        free = (str(address) for address in subnet.hosts() if str(address) != pool.get("Gateway"))
        return _Network(key=key, name=name, id=made, addresses=dict(zip(launch.hosts, free, strict=False)))
    raise AssertionError("unreachable")


class DockerHost:
    """A running container, and two threads: one drains its output, one waits for its end."""

    def __init__(
        self,
        client: "docker.DockerClient",
        launch: Launch,
        container: str,
        volumes: list[str],
        services: Services,
        *,
        on_gone: Callable[[], None],
    ):
        self._client, self._launch, self._container, self._volumes = client, launch, container, volumes
        self._services = services
        self._on_gone = on_gone
        self._news, self._tell = os.pipe()
        self._exit_code: int | None = None
        self._lost = ""
        self._remark = services.trouble
        self._is_gone = False
        self._closing = threading.Lock()
        self._reader: threading.Thread | None = None
        self._waiter: threading.Thread | None = None

    @property
    def name(self) -> str:
        return self._launch.host

    @property
    def remark(self) -> str:
        return self._remark

    def fileno(self) -> int:
        return self._news

    def start(self) -> None:
        """Listen first, then start: not a byte is missed, however soon the program ends."""
        self._launch.log_file.parent.mkdir(parents=True, exist_ok=True)
        stream = self._client.api.attach_socket(
            self._container, params={"stdout": 1, "stderr": 1, "stream": 1, "logs": 0}
        )
        self._reader = threading.Thread(target=self._read, args=(stream,), name="container-log", daemon=True)
        self._reader.start()
        self._client.api.start(self._container)
        if self._services.wanted:
            self._open_services()
        self._waiter = threading.Thread(target=self._wait, name="container-wait", daemon=True)
        self._waiter.start()

    def _open_services(self) -> None:
        pid = self._client.api.inspect_container(self._container)["State"]["Pid"]
        try:
            self._services.open(pid)
        except FileNotFoundError:  # its program has ended already
            pass
        except OSError as error:
            self._remark = f"credentials, metadata or a local S3 endpoint could not be given to it: {error}"

    def _read(self, stream: Any) -> None:
        """Whatever happens to the file, read on: a container whose output nobody takes stands still."""
        try:
            with contextlib.closing(stream), self._launch.log_file.open("ab", buffering=0) as log:
                for part in demultiplexed(stream):
                    if self._log_error(log, part):
                        break
                for _ in demultiplexed(stream):
                    pass
        except (OSError, ValueError) as error:  # the engine went away; the waiter says so
            self._remark = self._remark or f"the last lines of its log may be missing: {error}"

    def _log_error(self, log: io.FileIO, part: bytes) -> bool:
        rest = memoryview(part)
        try:
            while rest:  # a disk that fills up takes a part, and fails at the next write
                rest = rest[log.write(rest) :]
        except OSError as error:
            self._remark = f"its log is incomplete: {error.strerror}"
            return True
        return False

    def _wait(self) -> None:
        try:
            code = int(self._client.api.wait(self._container, timeout=None)["StatusCode"])
        except Exception as error:  # noqa: BLE001  (whatever went wrong, the host is out of reach)
            self._lost = f"the container engine is gone, or does not answer any more ({short(error)})"
        else:
            try:
                self._see_how_it_ended(code)
            finally:
                self._exit_code = code
        finally:
            with self._closing:
                if self._tell >= 0:
                    os.write(self._tell, b".")

    def _see_how_it_ended(self, code: int) -> None:
        if self._reader is not None:
            self._reader.join(LOG_SECONDS)
        known = self._known()
        if known is None:  # an engine that is told to end kills its containers; that is no fault of theirs
            self._lost = "the container engine is gone: it ended, and its containers with it"
        self._remark = "; ".join(text for text in (self._known_cause(code, known or {}), self._remark) if text)

    def _known(self) -> Mapping[str, Any] | None:
        """What the engine knows of the container; {} if somebody has removed it, None if the engine does not answer."""
        import docker

        try:
            known: Mapping[str, Any] = self._client.api.inspect_container(self._container)
        except docker.errors.APIError:
            return {}
        except Exception:  # noqa: BLE001  (whatever went wrong, nobody answers)
            return None
        return known

    def _known_cause(self, code: int, known: Mapping[str, Any]) -> str:
        limit = self._launch.memory_bytes
        if known.get("State", {}).get("OOMKilled"):
            return "a process was killed: out of memory" + (f" (limit: {limit:,} bytes)" if limit else "")
        if code == 137:
            return (
                "killed with SIGKILL (kill -9, docker kill, or this machine as a whole was out of memory: see dmesg); no limit of "
                "the container was hit"
            )
        if code in (1, 255) and (refused := not_begun(self._launch)):
            return refused
        return _kept_out(self._launch, known.get("Config", {}).get("User", "")) if code else ""

    def poll(self) -> int | None:
        if self._lost:
            raise HostLost(self._lost)
        return self._exit_code

    @property
    def cut_short(self) -> bool:
        # Process 1 of a container has no default action for SIGTERM: it chose to end.
        return (self._exit_code or 0) > 128 and self._exit_code != 128 + signal.SIGTERM

    def terminate(self) -> None:
        with not_there():
            self._client.api.kill(self._container, "SIGTERM")

    def suspend(self) -> None:
        with not_there():
            self._client.api.pause(self._container)

    def kill(self) -> None:
        if self._is_gone:
            return
        self._is_gone = True
        if self._exit_code is None:
            with not_there():
                self._client.api.kill(self._container, "SIGKILL")
            if self._waiter is not None:
                self._waiter.join(KILL_SECONDS)
        self._services.close()
        remove_container(self._client, self._container)
        if not self._lost:
            let_go(self._container)
        hand_over(self._client, self._launch.host_dir, self._launch.image)
        for volume in self._volumes:
            remove_volume(self._client, volume)
        self._on_gone()
        self.close()

    def close(self) -> None:
        """The waiter of an engine that does not answer may live on: it must not write to whatever gets the number next."""
        with self._closing:
            if self._tell >= 0:
                os.close(self._news)
                os.close(self._tell)
                self._tell = -1


def demultiplexed(stream: Any) -> Iterator[bytes]:
    """What a container prints, as it comes: the payloads of the engine's frames, standard output and error in one."""
    from docker.utils.socket import read

    header = b""
    left = 0  # bytes of the current frame that are still to come
    while chunk := read(stream, 1 << 18):
        place = 0
        payload = []
        while place < len(chunk):
            if left:
                part = chunk[place : place + left]
                payload.append(part)
                place += len(part)
                left -= len(part)
            else:
                part = chunk[place : place + FRAME.size - len(header)]
                header += part
                place += len(part)
                if len(header) == FRAME.size:
                    left = FRAME.unpack(header)[1]
                    header = b""
        if payload:
            yield b"".join(payload)


# Making a container.


def _create(client: "docker.DockerClient", launch: Launch, network: _Network | None, volumes: list[str]) -> str:
    from docker.types import DeviceRequest, LogConfig

    api = client.api
    info = engine_info(client)
    image = api.inspect_image(launch.image)
    entrypoint = None if launch.after_entrypoint else [launch.argv[0]]
    command = list(launch.argv if launch.after_entrypoint else launch.argv[1:])
    user = _user(launch, info)
    if user is not None or not _is_root(image["Config"].get("User")):
        let_others_write(launch.host_dir, launch.mounts)
    host_config: dict[str, Any] = {
        "mounts": _mounts(launch, volumes),
        "log_config": LogConfig(type="none"),  # its output is read as it comes, and kept in the job's own log
        "shm_size": shm_bytes(launch, info.get("MemTotal") or machine.memory_bytes()),
    }
    networking = None
    if network is not None:
        host_config["network_mode"] = network.name
        if launch.network_isolation:
            host_config["dns_opt"] = list(ISOLATED_DNS)
        endpoint = api.create_endpoint_config(aliases=[launch.host], ipv4_address=network.addresses[launch.host])
        networking = api.create_networking_config({network.name: endpoint})
        host_config["extra_hosts"] = {name: at for name, at in network.addresses.items() if name != launch.host}
    elif launch.network_isolation:
        host_config |= {"network_mode": "none", "extra_hosts": {launch.host: "127.0.0.1"}}
    if launch.cpus is not None and len(launch.cpus) < info.get("NCPU", 0) and max(launch.cpus) < info["NCPU"]:
        host_config["cpuset_cpus"] = ",".join(str(number) for number in launch.cpus)
    if launch.memory_bytes:
        host_config["mem_limit"] = launch.memory_bytes
        if info.get("SwapLimit"):
            host_config["memswap_limit"] = launch.memory_bytes
    if launch.gpus:
        ids = [str(number) for number in launch.gpus]
        host_config["device_requests"] = [DeviceRequest(device_ids=ids, capabilities=[["gpu"]])]
    made = api.create_container(
        launch.image,
        name=f"optml-{_job_name(launch)}-{launch.host}-{secrets.token_hex(3)}",
        hostname=launch.host,
        entrypoint=entrypoint,
        command=command,
        environment=dict(launch.environment),
        working_dir=launch.working_dir,
        user=user,
        labels={HOST_LABEL: launch.host, **labels(launch.host_dir.root)},
        host_config=api.create_host_config(**host_config),
        networking_config=networking,
    )
    launch.host_dir.state_file.write_text(json.dumps({"container": made["Id"], "image": image["Id"]}))
    return str(made["Id"])


def shm_bytes(launch: Launch, machine_bytes: int) -> int:
    """The size of /dev/shm: room for data loaders. Docker's own 64 MB kill them."""
    return (launch.memory_bytes or machine_bytes) // 2


def _services(client: "docker.DockerClient", launch: Launch, network: _Network | None) -> Services:
    if launch.network_isolation:
        return Services({}, {}, inside=True)  # no metadata either: its network reaches nothing
    local = shares_our_kernel(client)

    def gateway() -> str | None:
        if not local:
            return "host.docker.internal"  # as Docker Desktop calls the machine that it runs on
        gateways: list[str] = []
        with not_there():
            content = client.api.inspect_network("bridge" if network is None else network.id)
            gateways = [each["Gateway"] for each in content["IPAM"]["Config"] or () if "Gateway" in each]
        return gateways[0] if gateways else None

    inside = local and os.geteuid() == 0
    return Services(launch.environment, os.environ, inside=inside, gateway=gateway, instance=launch.instance)


def _image_of(host_dir: HostDir) -> str | None:
    """The image of a host whose container may be gone."""
    try:
        image = json.loads(host_dir.state_file.read_bytes())["image"]
    except (OSError, ValueError, KeyError):
        return None
    return str(image)


def _user(launch: Launch, info: Mapping[str, Any]) -> str | None:
    """Our own images run as whoever calls, so that what they write is the caller's; with a rootless engine root is the caller."""
    if (
        not launch.as_caller
        or os.getuid() == 0
        or any("rootless" in option for option in info.get("SecurityOptions") or ())
    ):
        return None
    return f"{os.getuid()}:{os.getgid()}"


def _is_root(user: str | None) -> bool:
    return (user or "").partition(":")[0] in ("", "root", "0")


def _kept_out(launch: Launch, user: str) -> str:
    """If a container's user is nobody's: which data of the caller's it may not read, and what to do; else ""."""
    if _is_root(user) or launch.as_caller:
        return ""
    for mount in launch.mounts:
        with contextlib.suppress(OSError):
            for path in (mount.source, *itertools.islice(mount.source.iterdir(), 100)):
                needed = 0o5 if path.is_dir() else 0o4
                if path.stat().st_mode & needed != needed:
                    return (
                        f"it ran as user {user} of its image, who may not read all of {mount.target}, for others may not read "
                        f"{path}: chmod -R o+rX it, or let the image run as root"
                    )
    return ""


def let_others_write(host_dir: HostDir, mounts: tuple[Mount, ...]) -> None:
    """A container that is not root must be able to write into /opt/ml, whose folders are the caller's, and to read and write its
    files, whatever the caller's umask. Nobody else can enter."""
    host_dir.root.chmod(0o700)
    folders = [host_dir.ml, host_dir.kept, *(mount.layer / "upper" for mount in mounts if mount.layer is not None)]
    for folder in folders:
        for parent, _names, files in os.walk(folder):
            if not Path(parent).is_symlink():
                Path(parent).chmod(0o777)
            for file in (Path(parent, name) for name in files):
                mode = file.lstat().st_mode
                if stat.S_ISREG(mode) or stat.S_ISFIFO(mode):
                    file.chmod(stat.S_IMODE(mode) | (mode & stat.S_IRWXU) >> 3 | (mode & stat.S_IRWXU) >> 6)


def _mounts(launch: Launch, volumes: list[str]) -> list[Any]:
    """Bind mounts and views; `mounts`, not `volumes`: with those a source that is missing is made, with these it is an error."""
    from docker.types import Mount as EngineMount

    mounts = [EngineMount(OPT_ML, str(launch.host_dir.ml), type="bind")]
    names = iter(volumes)
    for mount in launch.mounts:
        if mount.layer is None:
            mounts.append(EngineMount(mount.target, str(mount.source), type="bind", read_only=mount.read_only))
        else:
            mounts.append(
                EngineMount(mount.target, next(names), type="volume", read_only=mount.read_only, no_copy=True)
            )
    return mounts


def _make_view(client: "docker.DockerClient", launch: Launch, mount: Mount) -> str:
    """A volume that is an overlay of the caller's folder; the engine mounts it when the container starts."""
    assert mount.layer is not None
    layers = (("lowerdir", mount.source), ("upperdir", mount.layer / "upper"), ("workdir", mount.layer / "work"))
    options = {
        "type": "overlay",
        "device": "overlay",
        "o": ",".join(f"{name}={_escaped(str(folder))}" for name, folder in layers),
    }
    name = f"optml-{_job_name(launch)}-{launch.host}-{secrets.token_hex(3)}"
    client.api.create_volume(name, driver="local", driver_opts=options, labels=labels(launch.host_dir.root))
    return name


def _escaped(path: str) -> str:
    return re.sub(r"([\\,:])", r"\\\1", path)


def _job_name(launch: Launch) -> str:
    name = launch.host_dir.root.parents[2].name
    return re.sub(r"[^a-zA-Z0-9_.-]", "-", name)


# Images.


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
