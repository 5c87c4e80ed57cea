"""The network on which the hosts of a job with several see each other: the first host makes it, the last one removes it."""

import ipaddress
import itertools
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from optml.backends import Launch
from optml.backends.docker_leftovers import labels, new_name, remove_network

if TYPE_CHECKING:
    import docker

# An isolated network's bridge has no address on this machine either: nothing of it can be reached.
ISOLATED_BRIDGE = {"com.docker.network.bridge.inhibit_ipv4": "true"}
ISOLATED_DNS = ("timeout:1", "attempts:1")  # nobody answers for names outside: say so soon
TRIES = 10


@dataclass
class Network:
    key: str
    name: str
    id: str
    addresses: Mapping[str, str]  # by host: known before any of them starts, so that each can find all others at once
    host_count: int = 0


class Networks:
    """Of all jobs in this process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._networks: dict[str, Network] = {}

    def join(self, client: "docker.DockerClient", launch: Launch) -> Network | None:
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

    def leave(self, client: "docker.DockerClient", network: Network | None) -> None:
        """The last host to leave takes the network with it."""
        if network is None:
            return
        with self._lock:
            network.host_count -= 1
            if network.host_count:
                return
            self._networks.pop(network.key, None)
        remove_network(client, network.id)


def _make_network(client: "docker.DockerClient", launch: Launch, key: str) -> Network:
    """A bridge network of the job's own.

    The engine chooses addresses that are free; a second network of just these takes its place, for only where they are
    asked for may hosts be given theirs. A name that the engine's DNS has only once its container runs would be
    missing for a host that starts first, and for all when a host has ended; in SageMaker every name is always there.
    """
    import docker
    from docker.types import IPAMConfig, IPAMPool

    def make(ipam: Any = None) -> tuple[str, str]:
        name = new_name(launch.host_dir)
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
            if attempt == TRIES:  # else another job has taken them in this moment
                raise
            continue
        subnet = ipaddress.ip_network(pool["Subnet"])
        free = (str(address) for address in subnet.hosts() if str(address) != pool.get("Gateway"))
        return Network(key=key, name=name, id=made, addresses=dict(zip(launch.hosts, free, strict=False)))
    raise AssertionError("unreachable")
