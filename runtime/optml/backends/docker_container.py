"""Making a container from a launch: its views as volumes, its mounts, its place in a network, its limits. It does not run yet."""

import json
import re
from typing import TYPE_CHECKING, Any

from optml import machine
from optml.backends import Launch, Mount
from optml.backends.docker_leftovers import HOST_LABEL, labels, new_name
from optml.backends.docker_network import ISOLATED_DNS, Network
from optml.backends.docker_owner import is_root, let_others_write, user_of
from optml.engine import engine_info
from optml.jobdir import HostDir
from optml.spec import OPT_ML

if TYPE_CHECKING:
    import docker


def make_view(client: "docker.DockerClient", launch: Launch, mount: Mount) -> str:
    """A volume that is an overlay of the caller's folder; the engine mounts it when the container starts."""
    assert mount.layer is not None
    layers = (("lowerdir", mount.source), ("upperdir", mount.layer / "upper"), ("workdir", mount.layer / "work"))
    options = {
        "type": "overlay",
        "device": "overlay",
        "o": ",".join(f"{name}={_escaped(str(folder))}" for name, folder in layers),
    }
    name = new_name(launch.host_dir, launch.host)
    client.api.create_volume(name, driver="local", driver_opts=options, labels=labels(launch.host_dir.root))
    return name


def _escaped(path: str) -> str:
    return re.sub(r"([\\,:])", r"\\\1", path)


def create(client: "docker.DockerClient", launch: Launch, network: Network | None, volumes: list[str]) -> str:
    from docker.types import DeviceRequest, LogConfig

    api = client.api
    info = engine_info(client)
    image = api.inspect_image(launch.image)
    entrypoint = None if launch.after_entrypoint else [launch.argv[0]]
    command = list(launch.argv if launch.after_entrypoint else launch.argv[1:])
    user = user_of(launch, info)
    if user is not None or not is_root(image["Config"].get("User")):
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
    if launch.cpus is not None and len(launch.cpus) < (engine_cpus := info.get("NCPU", 0)):
        if max(launch.cpus) < engine_cpus:
            host_config["cpuset_cpus"] = ",".join(str(number) for number in launch.cpus)
        else:  # the engine is on another machine, or in a virtual one, and has other numbers
            host_config["nano_cpus"] = len(launch.cpus) * 10**9
    if launch.memory_bytes:
        host_config["mem_limit"] = launch.memory_bytes
        if info.get("SwapLimit"):
            host_config["memswap_limit"] = launch.memory_bytes
    if launch.gpus:
        ids = [str(number) for number in launch.gpus]
        host_config["device_requests"] = [DeviceRequest(device_ids=ids, capabilities=[["gpu"]])]
    made = api.create_container(
        launch.image,
        name=new_name(launch.host_dir, launch.host),
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


def _mounts(launch: Launch, volumes: list[str]) -> list[Any]:
    """Bind mounts and views; `mounts`, not `volumes`: with those a source that is missing is made, with these it is an error."""
    from docker.types import Mount as EngineMount

    mounts = [EngineMount(OPT_ML, str(launch.host_dir.ml), type="bind")]
    names = iter(volumes)
    if launch.disk is not None:
        mounts.append(EngineMount(launch.disk, str(launch.host_dir.disk), type="bind"))
    for mount in launch.mounts:
        if mount.target == launch.disk:
            continue
        if mount.layer is None:
            mounts.append(EngineMount(mount.target, str(mount.source), type="bind", read_only=mount.read_only))
        else:
            mounts.append(
                EngineMount(mount.target, next(names), type="volume", read_only=mount.read_only, no_copy=True)
            )
    return mounts


def shm_bytes(launch: Launch, machine_bytes: int) -> int:
    """The size of /dev/shm: room for data loaders. Docker's own 64 MB kill them."""
    return (launch.memory_bytes or machine_bytes) // 2


def image_of(host_dir: HostDir) -> str | None:
    """The image of a host whose container may be gone."""
    try:
        image = json.loads(host_dir.state_file.read_bytes())["image"]
    except (OSError, ValueError, KeyError):
        return None
    return str(image)
