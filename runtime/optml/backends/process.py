"""The process backend: a host is a process tree with its own /opt/ml.

On Linux each host gets a mount and a pid namespace (as root, or as an ordinary user through a user namespace): the real path
/opt/ml, views of the caller's data, host names, and an end that nothing survives. Where there are none (macOS, locked-down
Linux), the same tree lies elsewhere and is announced through SAGEMAKER_BASE_DIR and the SM_ folder variables.

Hosts share the machine's network: `lo` is their interface, and each has an address of its own on it. An ordinary program is told
its CPUs and GPUs through affinity and CUDA_VISIBLE_DEVICES.
"""

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optml.backends import Capabilities, HostLost, Launch, Progress, process_cgroups, process_namespaces
from optml.backends.process_launch import write_launch
from optml.backends.process_namespaces import KEEPER, PYTHON, START_SECONDS
from optml.backends.process_trees import KILL_SECONDS, end_strays, start_time, wait_gone
from optml.errors import PlatformError, StartError
from optml.images import Image, installed_versions
from optml.instance_metadata import ENDPOINT, MetadataServer, listening
from optml.jobdir import HostDir, cache_dir
from optml.machine import kills_for_memory

if TYPE_CHECKING:
    import socket

DISK_SECONDS = 10.0
TEMPORARY = "optml-host-"  # how the names of hosts' folders for temporary files begin
PASSED_ON = (
    "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "TZ", "VIRTUAL_ENV", "CONDA_PREFIX", "PYTHONPATH",
    "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "CUDA_HOME", "CUDA_PATH",
    "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL",
    "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy",
)  # fmt: skip
PASSED_ON_PREFIXES = ("AWS_", "LC_")


def backend() -> "ProcessBackend":
    return ProcessBackend()


class ProcessBackend:
    name = "process"
    containers = False

    def interface(self, *, host_count: int, isolated: bool) -> str:
        del host_count, isolated
        return "lo"

    def environment(self, caller: Mapping[str, str]) -> dict[str, str]:
        environment = {
            name: value for name, value in caller.items() if name in PASSED_ON or name.startswith(PASSED_ON_PREFIXES)
        }
        # `python` means the Python that optml runs in, as an image's own Python would be first on its PATH.
        environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{caller.get('PATH', os.defpath)}"
        environment["PYTHONUNBUFFERED"] = "1"  # else lines arrive when the program ends
        # SageMaker's name for a folder that outlives the job; a toolkit installs requirements there once.
        environment["SAGEMAKER_MANAGED_WARMPOOL_CACHE_DIRECTORY"] = str(cache_dir() / "hosts")
        endpoint = caller.get("AWS_ENDPOINT_URL_S3") or caller.get("AWS_ENDPOINT_URL")
        if endpoint:
            environment["S3_ENDPOINT_URL"] = endpoint  # AWS's training toolkit reads this name
        return environment

    def check(self, image: Image) -> None:
        """Nothing to add: that the image's modules are here has been seen."""

    def versions(self, image: Image) -> Mapping[str, str] | None:
        return installed_versions(image.versions_of)

    def fetch(self, image: Image, progress: Progress) -> tuple[str, ...]:
        del image, progress
        return ()

    def capabilities(self) -> Capabilities:
        found = process_namespaces.found()
        explanation = process_namespaces.explanation(found)
        own = found["level"] != "none"
        return Capabilities(
            own_opt_ml=own,
            views=found["views"],
            host_names=found["host_names"] or process_namespaces.names_resolve(),
            network_isolation=found["network"],
            memory_limit=True,
            shared_network=True,
            explanation=explanation,
            why_no_disk="" if own else f"it would be mounted for the host alone, and {explanation}",
        )

    def start(self, launch: Launch) -> "ProcessHost":
        found = process_namespaces.found()
        cgroups = process_cgroups.make(launch) if launch.memory_bytes else []
        metadata = None
        temporary = None
        try:
            if (
                "TMPDIR" not in launch.environment
            ):  # a machine's temporary files go with it; the path is short, for sockets
                temporary = tempfile.mkdtemp(prefix=TEMPORARY)
                launch = replace(launch, environment={**launch.environment, "TMPDIR": temporary})
            # An isolated network reaches nothing of this machine's.
            if launch.instance is not None and not launch.network_isolation:
                metadata = MetadataServer(listen_for_metadata(launch), launch.instance)
                launch = replace(launch, environment={**launch.environment, ENDPOINT: metadata.endpoint})
            write_launch(launch, found, cgroups, temporary=temporary)
            host = ProcessHost(launch, *_start_keeper(launch), cgroups=cgroups, metadata=metadata, temporary=temporary)
        except BaseException as error:
            if metadata is not None:
                metadata.close()
            process_cgroups.remove(cgroups)
            _remove_temporary(temporary)
            if isinstance(error, OSError):
                raise PlatformError(f"{launch.host} could not be started: {error}") from error
            raise
        try:
            host.wait_for_start()
        except BaseException:
            host.kill()
            raise
        return host

    def sweep(self, host_dir: HostDir) -> None:
        state: dict[str, Any] = {}
        with contextlib.suppress(OSError, ValueError):
            state = json.loads(host_dir.state_file.read_bytes())
        for name in ("pid", "init"):
            pid, started = state.get(name, 0), state.get(f"{name}_started")
            if pid and started is not None and start_time(pid) == started:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                wait_gone(pid, started)
        end_strays(host_dir)
        process_cgroups.remove([Path(folder) for folder in state.get("cgroups", ())])
        with contextlib.suppress(OSError, ValueError):
            _remove_temporary(json.loads(host_dir.launch_file.read_bytes()).get("temporary"))


class ProcessHost:
    """A running host: its keeper, and the pipes to it."""

    def __init__(
        self,
        launch: Launch,
        keeper: "subprocess.Popen[bytes]",
        control: int,
        status: int,
        *,
        cgroups: list[Path],
        metadata: "MetadataServer | None",
        temporary: str | None = None,
    ):
        self._metadata, self._temporary = metadata, temporary
        self._launch, self._keeper, self._control, self._status = launch, keeper, control, status
        self._cgroups = cgroups
        self._received = b""
        self._ended = False
        self._exit_code: int | None = None
        self._by_signal = False
        self._error: Mapping[str, Any] | None = None
        self._started: Mapping[str, Any] | None = None
        self._program: int | None = None
        self._state: dict[str, Any] = {}
        # Its processes are in a namespace that ends with its first.
        self._own_tree = process_namespaces.found()["level"] != "none"
        self._kills_before = kills_for_memory()
        self._disk: int | None = None
        self._disk_answers: list[str] = []

    @property
    def name(self) -> str:
        return self._launch.host

    def fileno(self) -> int:
        return self._status

    def wait_for_start(self) -> None:
        """Until the program runs. StartError if it can't, PlatformError if the host can't be made."""
        deadline = time.monotonic() + START_SECONDS
        while self._started is None or self._program is None:
            self._receive(max(0.0, deadline - time.monotonic()))
            if self._error is not None:
                text = str(self._error["error"])
                if self._error.get("program"):
                    raise StartError(text)
                process_namespaces.forget()
                raise PlatformError(f"{self.name} could not be made: {text}; see optml doctor")
            if self._ended and (self._started is None or self._program is None):
                raise PlatformError(f"{self.name} ended before its program began")
            if time.monotonic() > deadline:
                raise PlatformError(f"{self.name} did not start within {START_SECONDS:.0f} s")
        pid, init = self._started["started"], self._started["init"]
        self._state = {
            "pid": pid,
            "pid_started": start_time(pid),
            "init": init,
            "init_started": start_time(init),
            "cgroups": [str(folder) for folder in self._cgroups],
        }
        self._launch.host_dir.state_file.write_text(json.dumps(self._state))

    def _receive(self, seconds: float) -> None:
        """Read what the keeper told, waiting so long for it."""
        if self._ended:
            return
        poller = select.poll()
        poller.register(self._status, select.POLLIN)
        if not poller.poll(seconds * 1000):
            return
        part = os.read(self._status, 65536)
        self._ended = not part
        self._received += part
        *lines, self._received = self._received.split(b"\n")
        for line in lines:
            message = json.loads(line)
            if "error" in message:
                self._error = message
            elif "exit" in message:
                self._exit_code = message["exit"]
                self._by_signal = message["by_signal"]
            elif "started" in message:
                self._started = message
            elif "program" in message:
                self._program = message["program"]
            elif "mounted" in message:
                self._open_disk(message["mounted"])
            elif "disk" in message:
                self._disk_answers.append(message["disk"])

    def _open_disk(self, keeper: int) -> None:
        """Its keeper has it mounted and nobody else, and starts the program when it is open here too."""
        assert self._launch.disk is not None
        try:
            self._disk = os.open(f"/proc/{keeper}/root{self._launch.disk}", os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            raise PlatformError(
                f"the disk of {self.name} cannot be seen from here: {error}; see optml doctor"
            ) from error
        os.write(self._control, b"D")

    @property
    def remark(self) -> str:
        if self._exit_code is not None and process_cgroups.ran_out_of_memory(self._cgroups):
            return f"a process was killed: out of memory (limit: {self._launch.memory_bytes:,} bytes)"
        if self._exit_code == 128 + signal.SIGKILL and kills_for_memory() > self._kills_before:
            return "killed with SIGKILL, while this machine as a whole ran out of memory (dmesg says what was killed)"
        return ""

    @property
    def cut_short(self) -> bool:
        return self._by_signal

    def poll(self) -> int | None:
        self._receive(0.0)
        if self._exit_code is not None:
            return self._exit_code
        if self._ended:
            raise HostLost("its keeper was killed, and everything on it with it")
        return None

    def terminate(self, *, everyone: bool = False) -> None:
        with contextlib.suppress(OSError):
            os.write(self._control, b"A" if everyone else b"T")

    @property
    def disk(self) -> int | None:
        return None if self._disk is None else os.dup(self._disk)

    def fill_disk(self, *, full: bool) -> None:
        self._disk_answers.clear()
        with contextlib.suppress(OSError):
            os.write(self._control, b"F" if full else b"R")
        deadline = time.monotonic() + DISK_SECONDS
        while not self._disk_answers and not self._ended and time.monotonic() < deadline:
            self._receive(0.1)
        if not self._ended and (trouble := "".join(self._disk_answers) or ("" if self._disk_answers else "no answer")):
            raise PlatformError(f"the disk of {self.name} could not be {'filled' if full else 'freed'}: {trouble}")

    def suspend(self) -> None:
        with contextlib.suppress(OSError):
            os.write(self._control, b"S")

    def kill(self) -> None:
        if self._control < 0:
            return
        os.close(self._control)  # the keeper ends the host at the end of its input
        self._control = -1
        if self._metadata is not None:
            self._metadata.close()
        try:
            self._keeper.wait(KILL_SECONDS)
        except subprocess.TimeoutExpired:
            self._keeper.kill()
            self._keeper.wait()
        if self._state:  # if the keeper itself was killed, process 1 of the host dies with it; wait for that
            wait_gone(self._state["init"], self._state["init_started"])
        if not self._own_tree:
            end_strays(self._launch.host_dir)  # the keeper may have been killed before it could
        with contextlib.suppress(OSError, ValueError):
            self._receive(0.0)  # an exit code that came in the meantime
        os.close(self._status)
        self._ended = True
        if self._disk is not None:
            os.close(self._disk)
            self._disk = None
        process_cgroups.remove(self._cgroups)
        _remove_temporary(self._temporary)


def _remove_temporary(folder: str | None) -> None:
    """A host's temporary files; nothing of it runs any more."""
    if folder is not None and Path(folder).name.startswith(TEMPORARY):
        shutil.rmtree(folder, ignore_errors=True)


def _start_keeper(launch: Launch) -> tuple["subprocess.Popen[bytes]", int, int]:
    """The keeper, the descriptor that it is told by, and the one that it tells by."""
    launch.log_file.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as on_error, contextlib.ExitStack() as handed_over:
        control_reader, control_writer = os.pipe()
        handed_over.callback(os.close, control_reader)
        on_error.callback(os.close, control_writer)
        status_reader, status_writer = os.pipe()
        handed_over.callback(os.close, status_writer)
        on_error.callback(os.close, status_reader)
        log = handed_over.enter_context(launch.log_file.open("ab"))
        keeper = subprocess.Popen(
            [*PYTHON, str(KEEPER), str(launch.host_dir.launch_file), str(status_writer), str(os.getpid())],
            stdin=control_reader,
            stdout=log,
            stderr=log,
            pass_fds=[status_writer],
            start_new_session=True,
            cwd="/",
            env={},
        )
        on_error.pop_all()
    return keeper, control_writer, status_reader


def listen_for_metadata(launch: Launch) -> "socket.socket":
    """At the host's own address; at the machine's where a system has only that on its loopback interface."""
    try:
        return listening((launch.addresses.get(launch.host, "127.0.0.1"), 0))
    except OSError:
        return listening(("127.0.0.1", 0))
