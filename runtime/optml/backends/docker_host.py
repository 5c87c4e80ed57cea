"""A running container: started, listened to, waited for, and removed with all that was its own."""

import os
import signal
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from optml.backends import HostLost, Launch
from optml.backends.docker_disk import Disk
from optml.backends.docker_errors import not_begun, not_there, short
from optml.backends.docker_leftovers import let_go, remove_container, remove_volume
from optml.backends.docker_output import Output
from optml.backends.docker_owner import hand_over, kept_out
from optml.backends.docker_services import Services
from optml.errors import UserError
from optml.machine import kills_for_memory

if TYPE_CHECKING:
    import docker

LOG_SECONDS = 60.0  # for the last lines to come after a container's end
KILL_SECONDS = 20.0
SIGTERM_TO_ALL = ("/bin/sh", "-c", "kill -s TERM -- -1")


def addresses_of(known: Mapping[str, Any]) -> set[str]:
    """A running container's addresses on its networks."""
    networks = (known.get("NetworkSettings", {}).get("Networks") or {}).values()
    return {network[key] for network in networks for key in ("IPAddress", "GlobalIPv6Address") if network.get(key)}


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
        disk: Disk | None = None,
        on_gone: Callable[[], None],
    ):
        self._disk = disk
        self._client, self._launch, self._container, self._volumes = client, launch, container, volumes
        self._services = services
        self._output = Output(client, container, launch.log_file)
        self._on_gone = on_gone
        self._news, self._tell = os.pipe()
        self._exit_code: int | None = None
        self._lost = ""
        self._cause = ""  # of its end, as far as the engine knows it
        self._trouble = services.trouble
        self._is_gone = False
        self._kills_before = 0
        self._closing = threading.Lock()
        self._waiter: threading.Thread | None = None

    @property
    def name(self) -> str:
        return self._launch.host

    @property
    def remark(self) -> str:
        return "; ".join(text for text in (self._cause, self._output.trouble, self._trouble) if text)

    def fileno(self) -> int:
        return self._news

    def start(self) -> None:
        self._output.listen()
        self._kills_before = kills_for_memory()
        self._client.api.start(self._container)
        if self._disk is not None:
            self._disk.handed_over(self._client.api.inspect_container(self._container)["State"]["Pid"])
        if self._services.guarded:
            self._services.admit(addresses_of(self._client.api.inspect_container(self._container)))
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
            self._trouble = f"credentials, metadata or a local S3 endpoint could not be given to it: {error}"

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
        self._output.wait(LOG_SECONDS)
        known = self._known()
        if known is None:  # an engine that is told to end kills its containers; that is no fault of theirs
            self._lost = "the container engine is gone: it ended, and its containers with it"
        self._cause = self._known_cause(code, known or {})

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
        if code == 128 + signal.SIGKILL and limit and kills_for_memory() > self._kills_before:
            # Of fifty that die so, the engine does not hear of one.
            return (
                f"killed with SIGKILL, most likely out of memory (limit: {limit:,} bytes): meanwhile this machine's kernel has "
                "killed for lack of it"
            )
        if code == 128 + signal.SIGKILL and known.get("State", {}).get("Status", "removing") in ("removing", "dead"):
            return "killed with SIGKILL, for somebody removed its container (docker rm -f, docker compose down or the like)"
        if code == 128 + signal.SIGKILL:
            return (
                "killed with SIGKILL (kill -9, docker kill, or this machine as a whole was out of memory: see dmesg); no limit "
                "of the container was hit"
            )
        if code in (1, 255) and (refused := not_begun(self._launch)):
            return refused
        return kept_out(self._launch, known.get("Config", {}).get("User", "")) if code else ""

    def poll(self) -> int | None:
        if self._lost:
            raise HostLost(self._lost)
        return self._exit_code

    @property
    def cut_short(self) -> bool:
        # Process 1 of a container has no default action for SIGTERM: it chose to end.
        return (self._exit_code or 0) > 128 and self._exit_code != 128 + signal.SIGTERM

    def terminate(self, *, everyone: bool = False) -> None:
        if everyone:  # but its first process, which no signal to all reaches from within
            with not_there():
                made = self._client.api.exec_create(self._container, SIGTERM_TO_ALL, user="0")
                self._client.api.exec_start(made)
        with not_there():
            self._client.api.kill(self._container, "SIGTERM")

    @property
    def disk(self) -> int | None:
        return None if self._disk is None else self._disk.shared()

    def fill_disk(self, *, full: bool) -> None:
        if self._disk is not None:
            self._disk.fill(full=full)

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
        if self._disk is not None:
            self._disk.close()
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


def check_shell(client: "docker.DockerClient", container: str, launch: Launch) -> None:
    """UserError if a container has no shell that could send a signal to all of its processes."""
    import docker

    try:
        content, _status = client.api.get_archive(container, SIGTERM_TO_ALL[0])
        content.close()
    except docker.errors.NotFound as error:
        raise UserError(
            f"--signal-to every-process: the image {launch.image} has no {SIGTERM_TO_ALL[0]}, which would send the signal; leave "
            "it out, or use an image with a shell"
        ) from error
