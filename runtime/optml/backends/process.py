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
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optml.backends import Capabilities, HostLost, Launch, Progress
from optml.errors import PlatformError, StartError
from optml.images import Image, installed_versions
from optml.instance_metadata import ENDPOINT, MetadataServer, listening
from optml.jobdir import HostDir, cache_dir
from optml.machine import kills_for_memory
from optml.spec import OPT_ML

if TYPE_CHECKING:
    import socket

KEEPER = Path(__file__).with_name("keeper.py")
PYTHON = (sys.executable, "-I", "-S")  # nothing of the caller's site or environment: a keeper starts in some 10 ms
START_SECONDS = 30.0
KILL_SECONDS = 10.0
DISK_SECONDS = 10.0
TEMPORARY = "optml-host-"  # how the names of hosts' folders for temporary files begin
NO_NAMESPACES = "OPTML_NAMESPACES"  # "off": behave as on a machine without

# What a host gets from the caller's environment. A container would get none of it, but a process needs a PATH, and
# must find the caller's Python, CUDA and S3. Everything else a job needs belongs in the request's Environment.
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
        found = _found()
        own = found["level"] != "none"
        return Capabilities(
            own_opt_ml=own,
            views=found["views"],
            host_names=found["host_names"] or _names_resolve(),
            network_isolation=found["network"],
            memory_limit=True,
            explanation=_explanation(found),
            why_no_disk="" if own else f"it would be mounted for the host alone, and {_explanation(found)}",
        )

    def start(self, launch: Launch) -> "ProcessHost":
        found = _found()
        cgroups = _make_cgroups(launch) if launch.memory_bytes else []
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
            _write_launch(launch, found, cgroups, temporary=temporary)
            host = ProcessHost(launch, *_start_keeper(launch), cgroups=cgroups, metadata=metadata, temporary=temporary)
        except BaseException as error:
            if metadata is not None:
                metadata.close()
            _remove_cgroups(cgroups)
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
                _wait_gone(pid, started)
        _end_strays(host_dir)
        _remove_cgroups([Path(folder) for folder in state.get("cgroups", ())])
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
        self._own_tree = _found()["level"] != "none"  # its processes are in a namespace that ends with its first
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
                _forget_found()
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
        if self._exit_code is not None and _ran_out_of_memory(self._cgroups):
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
            _wait_gone(self._state["init"], self._state["init_started"])
        if not self._own_tree:
            _end_strays(self._launch.host_dir)  # the keeper may have been killed before it could
        with contextlib.suppress(OSError, ValueError):
            self._receive(0.0)  # an exit code that came in the meantime
        os.close(self._status)
        self._ended = True
        if self._disk is not None:
            os.close(self._disk)
            self._disk = None
        _remove_cgroups(self._cgroups)
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


def _write_launch(
    launch: Launch, found: Mapping[str, Any], cgroups: list[Path], *, temporary: str | None = None
) -> None:
    host_dir, level = launch.host_dir, found["level"]
    environment = {**launch.environment, **_device_environment(launch)}
    argv, working_dir = list(launch.argv), launch.working_dir or "/"
    if level == "none":
        environment = {**relocated_environment(host_dir.ml), **environment}
        argv = [_relocated(word, host_dir.ml) for word in argv]
        working_dir = _relocated(working_dir, host_dir.ml)
    elif found["host_names"]:
        names = "".join(f"{address}\t{name}\n" for name, address in launch.addresses.items()).encode()
        with contextlib.suppress(OSError):
            names = Path("/etc/hosts").read_bytes().rstrip(b"\n") + b"\n" + names
        host_dir.hosts_file.write_bytes(names)
    content = {
        "level": level,
        "argv": argv,
        "environment": environment,
        "working_dir": working_dir,
        "ml": str(host_dir.ml),
        "opt_ml": OPT_ML,
        "host": launch.host,
        "hosts_file": str(host_dir.hosts_file) if host_dir.hosts_file.exists() else None,
        "mounts": [
            {
                "source": str(mount.source),
                "target": mount.target,
                "read_only": mount.read_only,
                "layer": None if mount.layer is None else str(mount.layer),
            }
            for mount in launch.mounts
        ],
        "cpus": list(launch.cpus or ()),
        "cgroups": [str(folder / "cgroup.procs") for folder in cgroups],
        "data_limit": launch.memory_bytes if launch.memory_bytes and not cgroups else None,
        "network": _network_of(launch) if launch.network_isolation else None,
        "disk": launch.disk,
        "temporary": temporary,
    }
    host_dir.launch_file.touch(mode=0o600)  # the environment may hold credentials
    host_dir.launch_file.write_text(json.dumps(content))


def _network_of(launch: Launch) -> dict[str, Any]:
    """An isolated network is shared by the hosts of an attempt: made by the first, joined by the others."""
    for other in sorted(launch.host_dir.root.parent.iterdir()):
        with contextlib.suppress(OSError, ValueError):
            state = json.loads(HostDir(other).state_file.read_bytes())
            if start_time(state["pid"]) == state["pid_started"]:
                return {"join": state["pid"]}
    return {"join": None}


def _device_environment(launch: Launch) -> dict[str, str]:
    if not launch.gpus:
        return {"CUDA_VISIBLE_DEVICES": "", "NVIDIA_VISIBLE_DEVICES": "void"}
    gpus = list(launch.gpus)
    chosen = launch.environment.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:  # the request's own choice, which counts from the host's first GPU
        words = [word.strip() for word in chosen.split(",")]
        gpus = [gpus[int(word)] for word in words if word.isdigit() and int(word) < len(gpus)]
    numbers = ",".join(str(number) for number in gpus)
    # The numbers are nvidia-smi's; CUDA's own order puts the fastest first.
    return {"CUDA_VISIBLE_DEVICES": numbers, "NVIDIA_VISIBLE_DEVICES": numbers, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}


def relocated_environment(ml: Path) -> dict[str, str]:
    """How AWS's toolkits are told of a tree that is not at /opt/ml."""
    data = ml / "input" / "data"
    channels = [path.name for path in data.iterdir() if path.is_dir()] if data.is_dir() else []
    return {
        "SAGEMAKER_BASE_DIR": str(ml),
        "SM_INPUT_DIR": str(ml / "input"),
        "SM_INPUT_CONFIG_DIR": str(ml / "input" / "config"),
        "SM_MODEL_DIR": str(ml / "model"),
        "SM_OUTPUT_DIR": str(ml / "output"),
        "SM_OUTPUT_DATA_DIR": str(ml / "output" / "data"),
        **{f"SM_CHANNEL_{name.upper()}": str(data / name) for name in channels},
    }


def _relocated(word: str, ml: Path) -> str:
    return str(ml) + word[len(OPT_ML) :] if word == OPT_ML or word.startswith(f"{OPT_ML}/") else word


_remembered: dict[str, dict[str, Any]] = {}
_remembering = threading.Lock()


def _found() -> dict[str, Any]:
    """What this machine allows: tried once per process, or, while all of it works, once per boot and user."""
    if os.environ.get(NO_NAMESPACES) == "off" or sys.platform != "linux":
        reason = f"{NO_NAMESPACES}=off" if sys.platform == "linux" else f"{sys.platform} has no namespaces"
        return {"level": "none", "views": False, "host_names": False, "network": False, "reasons": [reason]}
    key = str(cache_dir())
    with _remembering:
        if key not in _remembered:
            _remembered[key] = _read_or_probe()
        return _remembered[key]


def _read_or_probe() -> dict[str, Any]:
    cache = cache_dir()
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    disk = (cache.parent if cache.parent.exists() else Path("/")).stat().st_dev
    # A container has the boot of its machine, and may have its folders too, but namespaces of its own.
    spaces = [str(Path("/proc/self/ns", name).readlink()) for name in ("mnt", "user")]
    identity = f"{boot}-{os.geteuid()}-{disk}-{KEEPER.stat().st_mtime_ns}-{'-'.join(spaces)}"
    file = cache / "namespaces.json"
    with contextlib.suppress(OSError, ValueError, KeyError):
        remembered: dict[str, Any] = json.loads(file.read_bytes())
        if remembered["identity"] == identity:
            return remembered
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix="probe-", ignore_cleanup_errors=True) as folder:
            asked = subprocess.run(
                [*PYTHON, str(KEEPER), "--probe", folder],
                capture_output=True,
                text=True,
                timeout=START_SECONDS,
                check=False,
                env={},
            )
            for parent, names, _files in os.walk(folder):
                for name in names:
                    Path(parent, name).chmod(0o700)  # an overlay's work folder has no permissions
        found: dict[str, Any] = {**json.loads(asked.stdout), "identity": identity}
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        return {
            "level": "none",
            "views": False,
            "host_names": False,
            "network": False,
            "reasons": [f"the trial failed: {error}"],
        }
    # What is missing is tried again by the next process, for its owner may have cured it meanwhile.
    if found["level"] != "none" and found["views"] and found["network"]:
        beside = file.with_name(f"{file.name}.{os.getpid()}.tmp")
        with contextlib.suppress(OSError):
            beside.write_text(json.dumps(found))
            beside.replace(file)
    return found


def _forget_found() -> None:
    """What was found does not hold any more: the next who asks tries again."""
    with _remembering:
        _remembered.clear()
    with contextlib.suppress(OSError):
        (cache_dir() / "namespaces.json").unlink()


def _names_resolve() -> bool:
    """Without namespaces, two hosts can talk if somebody put their names into /etc/hosts."""
    import socket

    try:
        return socket.gethostbyname("algo-1") == "127.0.0.2" and socket.gethostbyname("algo-2") == "127.0.0.3"
    except OSError:
        return False


def _explanation(found: Mapping[str, Any]) -> str:
    if found["level"] != "none":
        parts = []
        if not found["views"]:
            parts.append(f"File mode copies the data: {found.get('view_error')}")
        if not found["network"]:
            parts.append(f"no network isolation: {found.get('network_error')}")
        return "; ".join(parts)
    text = f"no namespaces ({'; '.join(found['reasons'])}), so /opt/ml lies elsewhere and File mode copies. "
    settings = {
        "kernel/apparmor_restrict_unprivileged_userns": ("1", "sysctl kernel.apparmor_restrict_unprivileged_userns=0"),
        "kernel/unprivileged_userns_clone": ("0", "sysctl kernel.unprivileged_userns_clone=1"),
        "user/max_user_namespaces": ("0", "sysctl user.max_user_namespaces=10000"),
    }
    for name, (bad, cure) in settings.items():
        with contextlib.suppress(OSError):
            if Path("/proc/sys", name).read_text().strip() == bad:
                text += f"As root, `{cure}` allows them. "
    return text + "More than one host needs lines in /etc/hosts: 127.0.0.2 algo-1, 127.0.0.3 algo-2, ..."


def start_time(pid: int) -> int | None:
    """Clock ticks after boot at which a process began: with its number, it names one process only. None if it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None
    return None if fields[0] in b"ZX" else int(fields[19])


def _wait_gone(pid: int, started: int | None) -> None:
    deadline = time.monotonic() + KILL_SECONDS
    while started is not None and start_time(pid) == started and time.monotonic() < deadline:
        time.sleep(0.002)


def _strays(host_dir: HostDir) -> list[int]:
    """Processes of a host without namespaces, by the variable that only they have."""
    wanted = b"SAGEMAKER_BASE_DIR=" + os.fsencode(host_dir.ml) + b"\0"
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if folder.stat().st_uid == os.geteuid() and wanted in (folder / "environ").read_bytes():
                found.append(int(folder.name))
    return [pid for pid in found if pid != os.getpid()]


def _end_strays(host_dir: HostDir) -> None:
    """SIGKILL to what is left of a host without namespaces, again and again, for it may fork meanwhile."""
    deadline = time.monotonic() + KILL_SECONDS
    while (strays := _strays(host_dir)) and time.monotonic() < deadline:
        for pid, started in [(pid, start_time(pid)) for pid in strays]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            _wait_gone(pid, started)


# Memory limits: a control group of version 2 or 1 where this user may make one; else a limit of each process's data.


def _make_cgroups(launch: Launch) -> list[Path]:
    name = f"optml-{os.getpid()}-{launch.host}-{time.monotonic_ns()}"
    own = ""
    with contextlib.suppress(OSError):
        lines = Path("/proc/self/cgroup").read_text().splitlines()
        own = next((line.removeprefix("0::") for line in lines if line.startswith("0::")), "")
    candidates = [
        (Path("/sys/fs/cgroup") / own.lstrip("/") / name, "memory.max", "memory.swap.max", 0),
        (
            Path("/sys/fs/cgroup/memory") / name,
            "memory.limit_in_bytes",
            "memory.memsw.limit_in_bytes",
            launch.memory_bytes,
        ),
    ]
    for folder, limit_file, swap_file, swap_limit in candidates:
        try:
            folder.mkdir()
        except OSError:
            continue
        try:
            # "r+": where only version 1 is mounted, /sys/fs/cgroup is an ordinary disk, and takes files of any name.
            with (folder / limit_file).open("r+") as file:
                file.write(str(launch.memory_bytes))
            with contextlib.suppress(OSError), (folder / swap_file).open("r+") as file:
                file.write(str(swap_limit))
            return [folder]
        except OSError:
            _remove_cgroups([folder])
    return []


def _ran_out_of_memory(cgroups: list[Path]) -> bool:
    for folder in cgroups:
        for name in ("memory.events", "memory.oom_control"):
            with contextlib.suppress(OSError):
                for line in (folder / name).read_text().splitlines():
                    key, _, value = line.partition(" ")
                    if key == "oom_kill" and int(value) > 0:
                        return True
    return False


def _remove_cgroups(cgroups: list[Path]) -> None:
    for folder in cgroups:
        for _ in range(50):
            try:
                folder.rmdir()
            except FileNotFoundError:
                break
            except OSError:
                time.sleep(0.01)
            else:
                break
