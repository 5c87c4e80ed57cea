"""No engine, no permission, an engine that goes away in the middle of a job; and callers who are not root."""

import contextlib
import functools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests import harness
from tests.containers_of_tests import OwnImages, held, own_images
from tests.harness import WAIT, files, run
from tests.hosts import PATIENCE_SECONDS, eventually

import optml
from optml import engine
from optml.errors import UserError
from optml.jobdir import JobDir

pytestmark = pytest.mark.docker

OPTML = str(Path(sys.executable).parent / "optml")
FOREVER = ["python", "-uc", "import time; print('ready'); time.sleep(600)"]
images = pytest.fixture(scope="session", name="own_image")(own_images)


@pytest.fixture(autouse=True)
def in_containers(docker_image: Callable[[str], str], monkeypatch: pytest.MonkeyPatch) -> None:
    docker_image("python")
    monkeypatch.setattr(harness, "backend_in_use", "docker")


# No engine.


@pytest.mark.parametrize("address", ["unix:///nowhere/docker.sock", "tcp://127.0.0.1:1"])
def test_without_an_engine_a_job_is_refused_before_its_name_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.setenv("DOCKER_HOST", address)
    with pytest.raises(UserError) as refused:
        run(tmp_path, name="too-early")
    for word in ("no container engine answers", "DOCKER_HOST", "start that engine", "--backend process"):
        assert word in str(refused.value)
    assert not JobDir.of("too-early").root.exists()


def test_something_that_listens_and_never_answers_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "FIRST_ANSWER_SECONDS", 0.5)
    # A socket's path has 108 bytes at most.
    with tempfile.TemporaryDirectory(dir="/tmp") as folder, socket.socket(socket.AF_UNIX) as server:
        server.bind(f"{folder}/silent.sock")
        server.listen()
        monkeypatch.setenv("DOCKER_HOST", f"unix://{folder}/silent.sock")
        with pytest.raises(UserError, match="no container engine answers"):
            run(tmp_path, name="too-early")


# An engine of the test's own, which may go away.


class PrivateEngine:
    """A second engine with nothing of the first one's, below a folder of the test's."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.address = f"unix://{folder}/engine.sock"
        self._log = (folder / "log").open("ab")
        self._process: subprocess.Popen[bytes] | None = None
        (folder / "none").write_text("{}")
        (folder / "none.toml").write_text("version = 2\ndisabled_plugins = ['io.containerd.grpc.v1.cri']\n")
        # Apart from dockerd, as a service manager would start it, for it lives on when dockerd is killed.
        command = ["containerd", "--root", f"{folder}/containerd", "--state", f"{folder}/state"]
        command += ["--address", f"{folder}/containerd.sock", "--config", f"{folder}/none.toml"]
        self._containerd = subprocess.Popen(command, stdout=self._log, stderr=self._log, stdin=subprocess.DEVNULL)

    def start(self) -> None:
        folder = self.folder
        # In a network of its own: without a bridge, an engine takes the first one's away. And with a control group of its own.
        command = ["unshare", "--net", "--", "dockerd", "--cgroup-parent", f"/{folder.name}"]
        command += ["--data-root", f"{folder}/data", "--exec-root", f"{folder}/exec"]
        command += ["-H", self.address, "--pidfile", f"{folder}/pid", "--bridge=none", "--iptables=false"]
        command += [
            "--ip-forward=false",
            "--ip-masq=false",
            "--shutdown-timeout",
            "2",
            "--config-file",
            f"{folder}/none",
        ]
        command += ["--containerd", f"{folder}/containerd.sock"]
        (folder / "pid").unlink(missing_ok=True)
        self._process = subprocess.Popen(command, stdout=self._log, stderr=self._log, stdin=subprocess.DEVNULL)
        assert eventually(self.answers), (folder / "log").read_text()[-2000:]

    def answers(self) -> bool:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as client:
            client.settimeout(5)
            client.connect(f"{self.folder}/engine.sock")
            client.sendall(b"GET /_ping HTTP/1.0\r\n\r\n")
            return b"200 OK" in client.recv(1000)
        return False

    def end(self, how: int) -> None:
        assert self._process is not None
        self._process.send_signal(how)
        self._process.wait(PATIENCE_SECONDS)

    def close(self) -> None:
        """Nothing of it stays: no process, no mount, no control group, no file."""
        if self._process is not None and self._process.poll() is None:
            self.end(signal.SIGTERM)
        for pid in self._processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._containerd.wait(PATIENCE_SECONDS)
        self._log.close()
        assert eventually(lambda: not self._processes())
        for line in reversed(Path("/proc/self/mounts").read_text().splitlines()):
            point = line.split()[1]
            if point.startswith(f"{self.folder}/"):
                subprocess.run(["umount", "--lazy", point], check=True)
        for group in sorted(Path("/sys/fs/cgroup").glob(f"*/{self.folder.name}/**/"), reverse=True):
            group.rmdir()
        shutil.rmtree(self.folder)

    def _processes(self) -> list[int]:
        """Engine, shims and containers, by their arguments or their control group; not the dead."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                known = (process / "cmdline").read_bytes() + (process / "cgroup").read_bytes()
                is_dead = b"\nState:\tZ" in (process / "status").read_bytes()
                if self.folder.name.encode() in known and not is_dead and int(process.name) != os.getpid():
                    found.append(int(process.name))
        return found


@pytest.fixture
def private_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[PrivateEngine]:
    if os.geteuid() != 0 or None in map(shutil.which, ("dockerd", "containerd", "unshare")):
        pytest.skip("an engine of its own takes root, dockerd and containerd")
    archive = tmp_path / "python.tar"
    with archive.open("wb") as file:
        for part in engine.connect().images.get("optml/python:latest").save(named="optml/python:latest"):
            file.write(part)
    mine = PrivateEngine(Path(tempfile.mkdtemp(prefix="optml-engine-")))  # a socket's path is short
    try:
        mine.start()
        monkeypatch.setenv("DOCKER_HOST", mine.address)
        with archive.open("rb") as file:
            engine.connect().images.load(file)
        yield mine
    finally:
        mine.close()


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_an_engine_that_goes_away_fails_the_job_for_no_fault_of_its_own(
    tmp_path: Path, private_engine: PrivateEngine, how: int
) -> None:
    job = optml.train(
        image="python", name="orphan", entrypoint=FOREVER, output=str(tmp_path / "out"), backend="docker",
        working_dir=tmp_path, wait=False, network_isolation=True,
    )  # fmt: skip
    log = JobDir.of("orphan").logs
    assert eventually(lambda: any("ready" in file.read_text() for file in log.glob("*.log")))
    private_engine.end(how)
    assert eventually(lambda: job.status == "Failed"), job.status
    reason = job.describe()["FailureReason"]
    # It may go in the very moment in which the program has begun and `start` has not returned.
    gone = (
        "lost algo-1: the container engine is gone",
        "algo-1 could not be started: the container engine does not answer",
    )
    assert reason.startswith(tuple(f"InternalServerError: {text}" for text in gone)), reason
    private_engine.start()
    done = run(tmp_path / "next", "print('next')", network_isolation=True)
    assert done.describe["TrainingJobStatus"] == "Completed", done.reason
    # By that command; or, if its supervisor was still about to end, by what that one leaves to watch.
    assert eventually(lambda: held(tmp_path) == []), held(tmp_path)


@pytest.mark.slow
def test_a_job_that_may_be_retried_goes_on_when_the_engine_is_back(
    tmp_path: Path, private_engine: PrivateEngine
) -> None:
    source = f"""{WAIT}
from pathlib import Path
marks = Path('/opt/ml/checkpoints')
if (marks / 'begun').exists():
    Path('/opt/ml/model/second').write_text('try')
else:
    (marks / 'begun').write_text('x')
    wait_for('uploaded')
    print('ready', flush=True)
    time.sleep(600)
"""
    job = optml.train(
        image="python", name="again", entrypoint=harness.program(tmp_path, source), output=str(tmp_path / "out"),
        checkpoint=str(tmp_path / "checkpoints"), backend="docker", working_dir=tmp_path, wait=False,
        network_isolation=True, retries=5,
    )  # fmt: skip
    assert eventually((tmp_path / "checkpoints" / "begun").exists)
    (tmp_path / "uploaded").touch()
    log = JobDir.of("again").logs
    assert eventually(lambda: any("ready" in file.read_text() for file in log.glob("*.log")))
    private_engine.end(signal.SIGKILL)
    private_engine.start()
    assert eventually(lambda: job.status in ("Completed", "Failed")), job.status
    described = job.describe()
    assert described["TrainingJobStatus"] == "Completed", described
    assert "Restarting" in [step["Status"] for step in described["SecondaryStatusTransitions"]]


# Callers who are not root.

UID = 12345  # of nobody here
SOCKET = Path("/var/run/docker.sock")


@pytest.fixture
def own_folder() -> Iterator[Path]:
    """A folder that an ordinary user can reach; tmp_path lies below folders of root's."""
    if os.geteuid() != 0:
        pytest.skip("becoming somebody else takes root")
    if not SOCKET.is_socket() or os.environ.get("DOCKER_HOST"):
        pytest.skip("the engine's socket is not at its usual place")
    if shutil.which("setpriv") is None:
        pytest.skip("there is no setpriv here")
    folder = Path(tempfile.mkdtemp(prefix="optml-user-"))
    os.chown(folder, UID, UID)
    yield folder
    assert held(folder) == []
    shutil.rmtree(folder)


def becoming(*, may_use_engine: bool = True) -> list[str]:
    groups = ["--groups", str(SOCKET.stat().st_gid)] if may_use_engine else ["--clear-groups"]
    return [
        "setpriv",
        "--reuid",
        str(UID),
        "--regid",
        str(UID),
        *groups,
        "--inh-caps=-all",
        "--bounding-set=-all",
        "--",
    ]


@functools.cache
def interpreter() -> str:
    """One that an ordinary user may run, of the version for which this environment's packages are compiled."""
    wanted = sys.version_info[:2]
    asks = f"import subprocess, sys; assert sys.version_info[:2] == {wanted}; subprocess.run([sys.executable, '-V'])"
    for candidate in (sys.executable, "/usr/bin/python3", "/usr/local/bin/python3"):
        command = ["sh", "-c", '"$0" -c "$1"', candidate, asks]
        if subprocess.run([*becoming(), *command], capture_output=True, check=False).returncode == 0:
            return candidate
    pytest.skip("no Python of this version that an ordinary user may run")


def as_user(folder: Path, *arguments: str, may_use_engine: bool = True) -> "subprocess.CompletedProcess[str]":
    """`optml ...` by an ordinary user, who is in the group of the engine's socket or is not."""
    environment = {
        "PATH": os.environ["PATH"], "HOME": str(folder), "OPTML_HOME": str(folder / "home"),
        "PYTHONPATH": os.pathsep.join(sys.path), "AWS_EC2_METADATA_DISABLED": "true",
    }  # fmt: skip
    program = [interpreter(), "-P", "-m", "optml.cli", *arguments]
    command = [*becoming(may_use_engine=may_use_engine), *program]
    return subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)


def owned(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    for each in (path, *path.parents):
        if each == folder:
            break
        os.chown(each, UID, UID)
    return path


def not_mine(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.lstat().st_uid != UID]


def test_who_may_not_open_the_socket_is_told_how_to_be_allowed(own_folder: Path) -> None:
    done = as_user(own_folder, "train", "--backend", "docker", "--name", "no", "--", "env", may_use_engine=False)
    assert done.returncode == 2
    for word in ("Permission denied", "usermod -aG docker", "--backend process"):
        assert word in done.stderr
    assert not (own_folder / "home/jobs/no").exists()


SECRETIVE = """\
#!/usr/bin/env python3
import os
from pathlib import Path
os.umask(0o077)
ml = Path('/opt/ml')
for folder in (ml / 'model', ml / 'output/data', ml / 'checkpoints', ml / 'input/data/train'):
    if folder.exists():
        (folder / 'deep/er').mkdir(parents=True, mode=0o700)
        (folder / 'deep/er/secret').write_text(f'of {os.getuid()}')
        (folder / 'deep/er/secret').chmod(0o600)
        (folder / 'top').write_text(f'of {os.getuid()}')
        (folder / 'top').chmod(0o400)
        (folder / 'none').mkdir(mode=0o000)
        (folder / 'link').symlink_to('/nowhere')
if os.getuid() != 1000:  # who may not
    (ml / 'input/data/train/a').write_text('changed')
print('id', os.getuid(), os.getgid(), flush=True)
"""


@pytest.mark.parametrize("user", ["", "USER 1000:1000\n", "USER 0:0\n"])
@pytest.mark.parametrize("keep", [False, True])
def test_an_ordinary_caller_owns_whatever_an_image_leaves(
    own_folder: Path, own_image: OwnImages, user: str, keep: bool
) -> None:
    image = own_image(f'COPY train /opt/train\n{user}ENTRYPOINT ["/opt/train"]', {"train": SECRETIVE})
    data = owned(own_folder, "data/a", "mine").parent
    os.chown(data, UID, UID)
    done = as_user(
        own_folder, "train", "--backend", "docker", "--image", image, "--name", "secretive",
        "--channel", f"train={data}", "--checkpoint", str(own_folder / "checkpoints"), "--output", str(own_folder / "out"),
        *(["--keep-files"] if keep else []),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"id {1000 if '1000' in user else 0} " in done.stdout
    assert (data / "a").read_text() == "mine"
    uid = 1000 if "1000" in user else 0
    with tarfile.open(own_folder / "out/secretive/output/model.tar.gz") as tar:
        content = {member.name: tar.extractfile(member) for member in tar.getmembers() if member.isfile()}
        assert {name: file.read() for name, file in content.items() if file} == {
            "deep/er/secret": b"of %d" % uid,
            "top": b"of %d" % uid,
        }
    assert (own_folder / "checkpoints/deep/er/secret").read_text() == f"of {uid}"
    assert not_mine(own_folder / "out") == []
    attempts = own_folder / "home/jobs/secretive/attempts"
    assert attempts.exists() == keep
    deleted = as_user(own_folder, "delete", "secretive")
    assert deleted.returncode == 0, deleted.stderr
    assert not (own_folder / "home/jobs/secretive").exists()


def test_our_images_run_as_the_ordinary_caller(own_folder: Path) -> None:
    script = owned(own_folder, "train.py", SECRETIVE)
    data = owned(own_folder, "data/a", "mine").parent
    done = as_user(
        own_folder, "train", "--backend", "docker", "--name", "mine", "--channel", f"train={data}",
        "--output", str(own_folder / "out"), "--keep-files", "--", "python", str(script),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"id {UID} {UID}" in done.stdout
    strangers = [path for path in not_mine(own_folder) if path.name != "work"]
    assert strangers == []


def test_a_killed_supervisors_job_of_another_users_files_can_be_deleted(own_folder: Path, own_image: OwnImages) -> None:
    """`sweep` hands over too, also when the container has gone already."""
    train = SECRETIVE + "import time; time.sleep(600)\n"
    image = own_image('COPY train /opt/train\nENTRYPOINT ["/opt/train"]', {"train": train})
    data = owned(own_folder, "data/a", "mine").parent
    started = as_user(
        own_folder, "train", "--backend", "docker", "--image", image, "--name", "lost", "--detach",
        "--channel", f"train={data}",
    )  # fmt: skip
    assert started.returncode == 0, started.stderr
    job = own_folder / "home/jobs/lost"
    assert eventually(lambda: any("id" in file.read_text() for file in (job / "logs").glob("*.log")))
    os.kill(json.loads((job / "job.json").read_bytes())["local"]["supervisor_pid"], signal.SIGKILL)
    assert eventually(lambda: not held(own_folder))
    deleted = as_user(own_folder, "delete", "lost")
    assert deleted.returncode == 0, deleted.stderr
    assert not job.exists()


def test_what_the_caller_may_not_delete_is_named_with_the_remedy(own_folder: Path, own_image: OwnImages) -> None:
    image = own_image("")
    done = as_user(own_folder, "train", "--backend", "docker", "--image", image, "--name", "kept", "--", "env")
    assert done.returncode == 0, done.stderr
    foreign = own_folder / "home/jobs/kept/foreign"
    foreign.mkdir(mode=0o700)
    (foreign / "file").touch()
    deleted = as_user(own_folder, "delete", "kept")
    assert deleted.returncode == 2
    assert "sudo rm -r" in deleted.stderr
    assert not (own_folder / "home/jobs/kept").exists()


def test_roots_job_in_an_image_of_another_user_can_write(tmp_path: Path, own_image: OwnImages) -> None:
    image = own_image('COPY train /opt/train\nUSER 1000\nENTRYPOINT ["/opt/train"]', {"train": SECRETIVE})
    data = files(tmp_path / "data", {"a": "mine"})
    done = run(tmp_path, image=image, entrypoint=None, channels={"train": str(data)})
    assert done.describe["TrainingJobStatus"] == "Completed", done.reason + done.log
    assert done.model["deep/er/secret"] == b"of 1000"


def test_a_callers_umask_keeps_nobody_from_what_the_platform_writes(tmp_path: Path, own_image: OwnImages) -> None:
    look = "import pathlib; print(*(file.read_text() for file in pathlib.Path('/opt/ml/input').rglob('*') if file.is_file()))"
    image = own_image(f'USER 1000\nENTRYPOINT ["python", "-c", "{look}"]')
    data = files(tmp_path / "data", {"a.csv": "mine", "b.csv": "not for it"})
    before = os.umask(0o077)
    try:
        done = run(
            tmp_path, image=image, entrypoint=None, channels={"train": str(data / "a")}, hyperparameters={"p": "q"}
        )
    finally:
        os.umask(before)
    assert done.describe["TrainingJobStatus"] == "Completed", done.reason + done.log
    assert "mine" in done.log
    assert '"q"' in done.log


def test_a_program_that_writes_into_a_read_only_channel_gets_its_own_error(tmp_path: Path) -> None:
    data = files(tmp_path / "data", {"a": "mine"})
    done = run(
        tmp_path,
        "open('/opt/ml/input/data/train/b', 'w')",
        channels={"train": {"uri": f"{data}/", "input_mode": "FastFile"}},
    )
    assert done.describe["TrainingJobStatus"] == "Failed"
    assert "Read-only file system: '/opt/ml/input/data/train/b'" in done.log


def test_an_image_whose_user_may_not_read_the_data_is_explained(tmp_path: Path, own_image: OwnImages) -> None:
    image = own_image("USER 1000")
    data = files(tmp_path / "data", {"a": "mine"})
    (data / "a").chmod(0o600)
    done = run(tmp_path, image=image, entrypoint=["cat", "/opt/ml/input/data/train/a"], channels={"train": str(data)})
    assert done.describe["TrainingJobStatus"] == "Failed"
    assert "user 1000" in done.reason
    assert f"{data}/a: chmod -R o+rX" in done.reason
