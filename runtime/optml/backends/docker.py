"""The Docker backend: a host is a container of the job's image, with its own /opt/ml bound from the job's folder.

One host alone sits on the engine's default network, or on none if it is isolated; the hosts of a bigger job share a bridge
network of their own, on which each answers to its name. What the engine holds of a job (containers, networks, volumes) carries
labels by which a later command finds and removes it, should its supervisor be gone; a small watcher removes it at once.
"""

import contextlib
import os
import threading
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from optml.backends import Capabilities, Launch, Progress
from optml.backends.docker_container import create, image_of, make_view
from optml.backends.docker_disk import Disk, detach
from optml.backends.docker_errors import explained, not_there
from optml.backends.docker_host import DockerHost, check_shell
from optml.backends.docker_images import has_image, labelled_versions, not_built, pull, warnings_about
from optml.backends.docker_leftovers import (
    FOLDER_LABEL,
    hold,
    labelled,
    labelled_networks,
    labelled_volumes,
    remove_container,
    remove_volume,
    tidy,
    watch_over_this_process,
)
from optml.backends.docker_network import Networks
from optml.backends.docker_owner import hand_over
from optml.backends.docker_services import services_for
from optml.engine import connect, engine_info, shares_our_kernel
from optml.errors import OptmlError, UserError
from optml.images import OURS, Image
from optml.jobdir import HostDir

if TYPE_CHECKING:
    import docker


def backend() -> "DockerBackend":
    return DockerBackend()


class DockerBackend:
    name = "docker"
    containers = True

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._networks = Networks()
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
        why_no_disk = "the container engine is on another machine, or in a virtual one; use --backend process"
        cpu_count = None
        with contextlib.suppress(Exception):  # no engine: `check` says so
            client = connect()
            views = shares_our_kernel(client)
            if views:
                why_no_disk = (
                    "" if os.geteuid() == 0 else "in a container it takes root; use --backend process, which needs none"
                )
            memory_limit = engine_info(client).get("MemoryLimit", True)
            cpu_count = engine_info(client).get("NCPU") or None
        return Capabilities(
            own_opt_ml=True,
            views=views,
            reachable=views,
            host_names=True,
            network_isolation=True,
            memory_limit=memory_limit,
            explanation="" if memory_limit else "its container engine's control groups cannot limit memory",
            why_no_disk=why_no_disk,
            cpu_count=cpu_count,
        )

    def check(self, image: Image) -> None:
        client = connect()
        if not has_image(client, image.reference) and image.reference.startswith(OURS):
            raise UserError(not_built(image))

    def versions(self, image: Image) -> Mapping[str, str] | None:
        try:
            client = connect()
        except UserError:  # `check` says so, where it matters
            return None
        return labelled_versions(client, image.reference)

    def fetch(self, image: Image, progress: Progress) -> tuple[str, ...]:
        client = connect()
        if not has_image(client, image.reference):
            if image.reference.startswith(OURS):
                raise UserError(not_built(image))
            pull(client, image.reference, progress)
        return warnings_about(client, image.reference)

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
            network = self._networks.join(client, launch)
            on_error.callback(self._networks.leave, client, network)
            volumes = []
            for mount in launch.mounts:
                if mount.layer is not None:
                    volumes.append(make_view(client, launch, mount))
                    on_error.callback(remove_volume, client, volumes[-1])
            services = services_for(client, launch, None if network is None else network.id)
            on_error.callback(services.close)
            launch = replace(launch, environment={**launch.environment, **services.environment})
            if launch.disk is not None:
                launch.host_dir.disk.mkdir()
            container = create(client, launch, network, volumes)
            hold(container)
            on_error.callback(remove_container, client, container)
            if launch.signals_everyone:
                check_shell(client, container, launch)
            disk = None
            if launch.disk is not None:
                disk = Disk(launch.host_dir, launch.disk)
                on_error.callback(disk.close)
            host = DockerHost(
                client,
                launch,
                container,
                volumes,
                services,
                disk=disk,
                on_gone=lambda: self._networks.leave(client, network),
            )
            on_error.callback(host.close)
            host.start()
            on_error.pop_all()
            return host

    def sweep(self, host_dir: HostDir) -> None:
        detach(host_dir.disk)
        try:
            client = connect()
        except UserError:  # whoever runs the next job with the engine up removes it: see `tidy`
            return
        with not_there():  # nor if it has gone since
            image = image_of(host_dir)
            for container in labelled(client, FOLDER_LABEL, str(host_dir.root)):
                image = container["ImageID"]
                remove_container(client, container["Id"])
            hand_over(client, host_dir, image)
            for name in labelled_volumes(client, FOLDER_LABEL, str(host_dir.root)):
                remove_volume(client, name)
            for network in labelled_networks(client, FOLDER_LABEL, str(host_dir.root.parent)):
                with contextlib.suppress(Exception):  # another host is still on it, and takes it along
                    client.api.remove_network(network)
