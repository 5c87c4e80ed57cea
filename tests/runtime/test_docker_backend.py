"""The Docker backend with real containers of images that the tests build: starts, ends, networks, limits, logs, leftovers.

What a job may expect of any backend is tests/contract, which runs in containers too.
"""

import concurrent.futures
import hashlib
import http.server
import io
import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
from tests import harness
from tests.containers_of_tests import OwnImages, context, held, mounted, own_images
from tests.harness import ML, Done, files, run
from tests.hosts import PATIENCE_SECONDS, eventually, exit_code, launch

import optml
from optml.backends import Host, docker_container, docker_images
from optml.backends import docker as docker_backend
from optml.backends.docker import DockerBackend
from optml.engine import connect
from optml.errors import ResourceLimitExceeded, UserError
from optml.images import image_for_containers
from optml.jobdir import JobDir, jobs_dir
from optml.machine import kills_for_memory
from optml.spec import InterruptionPlan, SignalTo

pytestmark = pytest.mark.docker

OPTML = str(Path(sys.executable).parent / "optml")
images = pytest.fixture(scope="session", name="own_image")(own_images)


@pytest.fixture(autouse=True)
def in_containers(docker_image: Callable[[str], str], monkeypatch: pytest.MonkeyPatch) -> None:
    docker_image("python")
    monkeypatch.setattr(harness, "backend_in_use", "docker")


@pytest.fixture(autouse=True)
def nothing_is_left(tmp_path: Path) -> Iterator[None]:
    """Whatever a test did: the engine has nothing of its jobs afterwards, and this process no descriptor."""
    descriptors = set(os.listdir("/proc/self/fd"))
    yield
    assert eventually(lambda: not held(tmp_path)), held(tmp_path)
    assert mounted(tmp_path) == []
    more = set(os.listdir("/proc/self/fd")) - descriptors
    left = [name for fd in more if "socket:" not in (name := link_of(fd)) and name]  # the SDK keeps its connections
    assert [name for name in left if "pipe:" in name or "optml" in name][1:] == []  # one leads to the watcher


def link_of(descriptor: str) -> str:
    try:
        return str(Path(f"/proc/self/fd/{descriptor}").readlink())
    except OSError:
        return ""


# Starts: C37-C40.

# Writes what it was called with, and what its process 1 is.
TELL = """\
#!/usr/bin/env python3
import json, os, sys
from pathlib import Path
first = Path("/proc/1/cmdline").read_bytes().decode().split("\\0")
tell = {"argv": sys.argv, "pid": os.getpid(), "first": first, "cwd": os.getcwd(), "uid": os.getuid()}
Path("/opt/ml/model/tell").write_text(json.dumps(tell))
"""


def told(done: Done) -> Any:
    assert done.describe["TrainingJobStatus"] == "Completed", done.reason + done.log
    return json.loads(done.model["tell"])


def test_an_images_entrypoint_gets_the_word_train_c37(tmp_path: Path, own_image: OwnImages) -> None:
    image = own_image(
        'COPY tell /opt/tell\nWORKDIR /srv\nENTRYPOINT ["python", "/opt/tell", "--fast"]\nCMD ["serve"]', {"tell": TELL}
    )
    tell = told(run(tmp_path, image=image, entrypoint=None))
    assert tell["argv"] == ["/opt/tell", "--fast", "train"]
    assert tell["pid"] == 1
    assert tell["cwd"] == "/srv"


def test_without_an_entrypoint_the_program_train_on_the_path_runs_c37(tmp_path: Path, own_image: OwnImages) -> None:
    image = own_image('COPY train /usr/local/bin/train\nCMD ["serve"]', {"train": TELL})
    assert told(run(tmp_path, image=image, entrypoint=None))["argv"] == ["/usr/local/bin/train"]


def test_a_given_entrypoint_replaces_the_images_and_gets_no_train_c38(tmp_path: Path, own_image: OwnImages) -> None:
    image = own_image('COPY tell /opt/tell\nENTRYPOINT ["/bin/false"]\nCMD ["serve"]', {"tell": TELL})
    tell = told(run(tmp_path, image=image, entrypoint=["/opt/tell", "a b", "$HOME", "*"]))
    assert tell["argv"] == ["/opt/tell", "a b", "$HOME", "*"], "no shell has touched the words"


def test_given_arguments_replace_train_after_the_images_entrypoint_c39(tmp_path: Path, own_image: OwnImages) -> None:
    image = own_image('COPY tell /opt/tell\nENTRYPOINT ["/opt/tell"]', {"tell": TELL})
    tell = told(run(tmp_path, image=image, entrypoint=None, arguments=["--epochs", "3"]))
    assert tell["argv"] == ["/opt/tell", "--epochs", "3"]


def test_given_entrypoint_and_arguments_follow_each_other_c40(tmp_path: Path, own_image: OwnImages) -> None:
    image = own_image('COPY tell /opt/tell\nENTRYPOINT ["/bin/false"]', {"tell": TELL})
    assert told(run(tmp_path, image=image, entrypoint=["/opt/tell", "a"], arguments=["b"]))["argv"] == [
        "/opt/tell",
        "a",
        "b",
    ]


def test_an_image_without_a_shell_cannot_signal_every_process(tmp_path: Path, own_image: OwnImages) -> None:
    plan = InterruptionPlan(at_seconds=(100.0,), signal_to=SignalTo.EVERY_PROCESS)
    image = own_image("RUN rm /bin/sh")
    done = run(tmp_path, image=image, entrypoint=["python", "-c", "print('ran')"], interruptions=plan)
    assert re.search(r"ClientError: --signal-to every-process: the image \S+ has no /bin/sh, which would", done.reason)
    assert "ran" not in done.log


NO_PROGRAMS = {
    "neither an ENTRYPOINT nor train": ("", {}, None, ["neither an ENTRYPOINT", "`train`", "ContainerEntrypoint"]),
    "an ENTRYPOINT that is not there": ('ENTRYPOINT ["/opt/gone"]', {}, None, ["ENTRYPOINT", "/opt/gone"]),
    "ContainerEntrypoint is not there": ("", {}, ["/opt/gone.py"], ["/opt/gone.py", "ContainerEntrypoint"]),
    "ContainerEntrypoint is not on the PATH": ("", {}, ["gone", "x"], ["gone", "ContainerEntrypoint"]),
    "ContainerEntrypoint is a folder": ("", {}, ["/tmp"], ["/tmp", "not executable"]),
    "not executable": ("COPY note /opt/note", {"note": "#!/bin/sh\n"}, ["/opt/note"], ["not executable", "chmod"]),
}


@pytest.mark.parametrize("name", NO_PROGRAMS)
def test_a_program_that_cannot_start_fails_with_the_remedy(tmp_path: Path, own_image: OwnImages, name: str) -> None:
    dockerfile, contents, entrypoint, words = NO_PROGRAMS[name]
    mode = 0o644 if name == "not executable" else 0o755
    done = run(tmp_path, image=own_image(dockerfile, contents, mode=mode), entrypoint=entrypoint)
    assert done.describe["TrainingJobStatus"] == "Failed"
    assert done.reason.startswith("ClientError: algo-1 could not be started: "), done.reason
    for word in words:
        assert word in done.reason


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("#!/usr/bin/perl6\n", ["interpreter", "not in the image"]),
        ("\n#!/bin/sh\ntrue\n", ["first line", "architecture"]),
    ],
)
def test_a_program_that_the_kernel_refuses_fails_with_the_remedy(
    tmp_path: Path, own_image: OwnImages, text: str, words: list[str]
) -> None:
    done = run(tmp_path, image=own_image("COPY run /opt/run", {"run": text}), entrypoint=["/opt/run"])
    assert done.describe["TrainingJobStatus"] == "Failed"
    for word in ["/opt/run could not be started", *words]:
        assert word in done.reason


def test_a_program_that_cannot_start_is_not_retried(tmp_path: Path, own_image: OwnImages) -> None:
    done = run(tmp_path, image=own_image(""), entrypoint=["/opt/gone"], retries=2)
    assert done.describe["TrainingJobStatus"] == "Failed"
    assert "Restarting" not in done.secondary


def test_a_program_behind_a_shell_runs_without_train_and_warns(
    tmp_path: Path, own_image: OwnImages, capsys: pytest.CaptureFixture[str]
) -> None:
    image = own_image("COPY tell /opt/tell\nENTRYPOINT python /opt/tell --fast", {"tell": TELL})
    tell = told(run(tmp_path, image=image, entrypoint=None, logs=True))
    assert tell["argv"] == ["/opt/tell", "--fast"]
    warning = next(line for line in capsys.readouterr().out.splitlines() if "is a shell" in line)
    assert warning.startswith("optml  | warning: ")
    assert "`train`" in warning
    assert "SIGTERM" in warning
    assert "ENTRYPOINT [" in warning


@pytest.mark.parametrize(
    "dockerfile",
    [
        'SHELL ["/bin/bash", "-o", "pipefail", "-c"]\nENTRYPOINT python /opt/tell',
        'ENTRYPOINT ["bash", "-lc", "python /opt/tell"]',
    ],
)
def test_another_shell_around_the_program_warns_too(tmp_path: Path, own_image: OwnImages, dockerfile: str) -> None:
    image = own_image(f"COPY tell /opt/tell\n{dockerfile}", {"tell": TELL})
    done = run(tmp_path, image=image, entrypoint=None)
    assert told(done)["argv"] == ["/opt/tell"]
    assert "is a shell that reads" in str(record_of(done)["local"]["warnings"])


def test_a_shell_that_execs_its_program_with_the_word_does_not_warn(tmp_path: Path, own_image: OwnImages) -> None:
    image = own_image('COPY tell /opt/tell\nENTRYPOINT ["sh", "-c", "exec python /opt/tell $0"]', {"tell": TELL})
    done = run(tmp_path, image=image, entrypoint=None)
    assert told(done)["argv"] == ["/opt/tell", "train"]
    assert record_of(done)["local"]["warnings"] == []


def test_an_entrypoint_that_is_a_script_does_not_warn(tmp_path: Path, own_image: OwnImages) -> None:
    image = own_image(
        'COPY tell start /opt/\nENTRYPOINT ["/opt/start"]',
        {"tell": TELL, "start": '#!/bin/sh\nexec python /opt/tell "$@"\n'},
    )
    done = run(tmp_path, image=image, entrypoint=None)
    assert told(done)["argv"] == ["/opt/tell", "train"]
    assert record_of(done)["local"]["warnings"] == []


def record_of(done: Done) -> Any:
    return json.loads(JobDir.of(done.job.name).record_file.read_bytes())


# Ends: C51-C53 as containers have them.


def stopped_when_ready(tmp_path: Path, image: str, **shortcuts: Any) -> Done:
    """Run a job and stop it as soon as it printed `ready`."""
    name = f"job-{secrets.token_hex(4)}"

    def stop() -> None:
        log = JobDir.of(name).logs
        assert eventually(lambda: any("ready" in file.read_text() for file in log.glob("*.log")))
        optml.Job(name).stop()

    with concurrent.futures.ThreadPoolExecutor() as pool:
        stopping = pool.submit(stop)
        done = run(tmp_path, image=image, name=name, **({"entrypoint": None} | shortcuts))
        stopping.result()
    return done


STOPPABLE = """\
import signal, sys, time
from pathlib import Path
def end(*_):
    Path("/opt/ml/model/saved").write_text("in time")
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
print("ready", flush=True)
time.sleep(600)
"""


def test_process_1_that_ignores_sigterm_is_killed_after_the_grace_and_a_person_is_told(
    tmp_path: Path, own_image: OwnImages, capsys: pytest.CaptureFixture[str]
) -> None:
    image = own_image('ENTRYPOINT ["python", "-uc", "import time; print(\'ready\'); time.sleep(600)"]')
    done = stopped_when_ready(tmp_path, image, grace_seconds=0.5, logs=True)
    assert done.describe["TrainingJobStatus"] == "Stopped"
    assert record_of(done)["local"]["exit_codes"] == {}
    told = next(line for line in capsys.readouterr().out.splitlines() if "killed" in line and "algo-1:" in line)
    assert "0.50 s of SIGTERM" in told
    assert "process 1 of a container ignores it" in told
    assert "exec the program" in told


def test_a_shell_that_execs_its_program_passes_sigterm_on(tmp_path: Path, own_image: OwnImages) -> None:
    image = own_image(
        'COPY train.py start /opt/\nENTRYPOINT ["/opt/start"]',
        {"train.py": STOPPABLE, "start": "#!/bin/bash\nset -e\nexec python /opt/train.py\n"},
    )
    done = stopped_when_ready(tmp_path, image, grace_seconds=20.0)
    assert done.describe["TrainingJobStatus"] == "Stopped"
    assert done.model == {"saved": b"in time"}


def test_a_shell_that_does_not_exec_its_program_keeps_sigterm_to_itself(tmp_path: Path, own_image: OwnImages) -> None:
    image = own_image(
        'COPY train.py start /opt/\nENTRYPOINT ["/opt/start"]',
        {"train.py": STOPPABLE, "start": "#!/bin/bash\npython /opt/train.py\necho over\n"},
    )
    done = stopped_when_ready(tmp_path, image, grace_seconds=0.5)
    assert done.describe["TrainingJobStatus"] == "Stopped"
    assert done.model == {}


def test_a_stop_while_the_image_is_looked_for_starts_nothing(
    tmp_path: Path, own_image: OwnImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch = DockerBackend.fetch

    def stopped_meanwhile(self: DockerBackend, image: Any, progress: Any) -> Any:
        optml.Job("early").stop()
        return fetch(self, image, progress)

    monkeypatch.setattr(DockerBackend, "fetch", stopped_meanwhile)
    done = run(tmp_path, image=own_image(""), entrypoint=["sleep", "600"], name="early")
    assert done.describe["TrainingJobStatus"] == "Stopped"
    assert "Training" not in done.secondary


def test_a_stop_while_the_container_starts_is_heard(
    tmp_path: Path, own_image: OwnImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = docker_container.create

    def stopped_meanwhile(*arguments: Any) -> str:
        optml.Job("early").stop()
        return create(*arguments)

    monkeypatch.setattr(docker_backend, "create", stopped_meanwhile)
    done = run(tmp_path, image=own_image(""), entrypoint=["sleep", "600"], name="early", grace_seconds=0.2)
    assert done.describe["TrainingJobStatus"] == "Stopped"


def test_exit_codes_and_signals_arrive(tmp_path: Path, own_image: OwnImages) -> None:
    image = own_image("")
    for code, script in {3: "exit 3", 137: "exit 137", 143: "exit 143", 139: "kill -SEGV $$; exit 4"}.items():
        host = start(tmp_path / str(code), image, "sh", "-c", script)
        assert exit_code(host) == (code if code != 139 else 4), "process 1 is not killed by a signal of its own"


def start(folder: Path, image: str, *argv: str, **more: Any) -> Host:
    """A container without a job around it."""
    return DockerBackend().start(launch(folder, *argv, image=image, hosts=("algo-1",), working_dir=None, **more))


# Memory, processors, shared memory.

EAT = "held = []\nwhile True: held.append(bytearray(b'x' * (8 << 20)))\n"
CHILD_EATS = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {EAT!r}]); print('and so', flush=True); "


def test_out_of_memory_in_process_1_is_named(tmp_path: Path) -> None:
    done = run(tmp_path, EAT, memory_bytes=64 << 20)
    assert done.describe["TrainingJobStatus"] == "Failed"
    assert "out of memory (limit: 67,108,864 bytes)" in done.reason
    assert done.reason.endswith("exit code: 137")


def test_out_of_memory_in_a_child_is_named_if_the_job_fails_of_it(tmp_path: Path) -> None:
    done = run(tmp_path, CHILD_EATS + "sys.exit(9)", memory_bytes=64 << 20)
    assert done.describe["TrainingJobStatus"] == "Failed"
    assert "a process was killed: out of memory" in done.reason
    assert done.reason.endswith("exit code: 9")


def test_out_of_memory_in_a_child_does_not_fail_a_job_that_ends_well(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = run(tmp_path, CHILD_EATS, memory_bytes=64 << 20, logs=True)
    assert done.describe["TrainingJobStatus"] == "Completed"
    assert "optml  | algo-1: a process was killed: out of memory" in capsys.readouterr().out


@pytest.mark.parametrize("memory_bytes", [None, 64 << 20])
def test_a_container_that_somebody_kills_is_not_out_of_memory(tmp_path: Path, memory_bytes: int | None) -> None:
    def kill() -> None:
        log = JobDir.of("victim").logs
        assert eventually(lambda: any("ready" in file.read_text() for file in log.glob("*.log")))
        state = next(JobDir.of("victim").attempts.glob("1/algo-1/state.json"))
        connect().api.kill(json.loads(state.read_text())["container"], "SIGKILL")

    kills = kills_for_memory()
    with concurrent.futures.ThreadPoolExecutor() as pool:
        killing = pool.submit(kill)
        done = run(tmp_path, "import time; print('ready'); time.sleep(600)", name="victim", memory_bytes=memory_bytes)
        killing.result()
    assert done.describe["TrainingJobStatus"] == "Failed"
    assert done.reason.startswith("AlgorithmError: killed with SIGKILL")
    if memory_bytes is None or kills_for_memory() == kills:  # else another test's program lacked memory meanwhile
        assert "killed with SIGKILL (kill -9, docker kill" in done.reason
        assert "most likely" not in done.reason


def test_a_container_that_somebody_removes_failed_or_was_lost_and_is_said_to_be_so(tmp_path: Path) -> None:
    def remove() -> None:
        log = JobDir.of("victim").logs
        assert eventually(lambda: any("ready" in file.read_text() for file in log.glob("*.log")))
        state = next(JobDir.of("victim").attempts.glob("1/algo-1/state.json"))
        connect().api.remove_container(json.loads(state.read_text())["container"], force=True)

    with concurrent.futures.ThreadPoolExecutor() as pool:
        removing = pool.submit(remove)
        done = run(tmp_path, "import time; print('ready'); time.sleep(600)", name="victim")
        removing.result()
    assert done.describe["TrainingJobStatus"] == "Failed"
    assert "for somebody removed its container (docker rm -f" in done.reason or "container engine" in done.reason


def test_less_memory_than_the_engine_gives_any_container_is_refused_by_name(tmp_path: Path) -> None:
    done = run(tmp_path, "print('it lives')", memory_bytes=1000)
    assert done.describe["TrainingJobStatus"] == "Failed"
    assert done.reason.startswith("ClientError: algo-1 could not be started: --memory: ")


LIMITS = """
import json, os
shared = os.statvfs('/dev/shm')
seen = {'cpus': sorted(os.sched_getaffinity(0)), 'shm_bytes': shared.f_blocks * shared.f_frsize}
(ml / 'model/seen').write_text(json.dumps(seen))
"""


def test_processors_are_shared_out_and_shared_memory_is_half_of_the_memory(tmp_path: Path) -> None:
    mine = sorted(os.sched_getaffinity(0))
    done = run(tmp_path, ML + LIMITS, cpus=1, memory_bytes=256 << 20)
    seen = json.loads(done.model["seen"])
    assert seen == {"cpus": mine[:1], "shm_bytes": 128 << 20}
    seen = json.loads(run(tmp_path, ML + LIMITS).model["seen"])
    assert seen["cpus"] == mine
    assert seen["shm_bytes"] > 1 << 30


# GPUs where there are none.


def test_a_gpu_that_is_not_there_is_refused_before_the_name_is_taken(
    tmp_path: Path, own_image: OwnImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(ResourceLimitExceeded, match="--allow-cpu"):
        run(tmp_path, image=own_image(""), entrypoint=["env"], name="on-a-gpu", instance_type="ml.g5.xlarge")
    assert not JobDir.of("on-a-gpu").root.exists()
    done = run(
        tmp_path,
        image=own_image(""),
        entrypoint=["env"],
        name="on-a-gpu",
        instance_type="ml.g5.xlarge",
        allow_cpu=True,
    )
    assert done.describe["TrainingJobStatus"] == "Completed"


def test_an_engine_that_cannot_give_gpus_says_so(tmp_path: Path, own_image: OwnImages) -> None:
    if "nvidia" in connect().info().get("Runtimes", {}):
        pytest.skip("this engine can")
    with pytest.raises(ResourceLimitExceeded, match="NVIDIA Container Toolkit"):
        start(tmp_path, own_image(""), "env", gpus=(0,))


# Images.


@pytest.mark.parametrize("reference", ["127.0.0.1:1/none/none", "registry.invalid/none:v1"])
def test_an_image_whose_registry_cannot_be_reached_is_explained(tmp_path: Path, reference: str) -> None:
    done = run(tmp_path, image=reference, entrypoint=None)
    assert done.describe["TrainingJobStatus"] == "Failed"
    assert done.reason.startswith(
        f"ClientError: the image {reference} is not on this machine and could not be pulled: "
    )
    assert "its registry cannot be reached from here" in done.reason
    assert "docker load" in done.reason


def test_an_image_of_ours_that_is_not_built_is_refused_before_the_name_is_taken(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"optml images build python does not make it, .*: leave the tag out, or docker tag"
    ):
        run(tmp_path, image="optml/python:never-built", name="too-early")
    assert not JobDir.of("too-early").root.exists()


def test_a_name_that_no_image_can_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="TrainingImage 'Upper/Case:v1' is not the name of an image"):
        run(tmp_path, image="Upper/Case:v1", entrypoint=None, name="too-early")
    assert not JobDir.of("too-early").root.exists()


def test_an_image_for_another_architecture_warns(tmp_path: Path, own_image: OwnImages) -> None:
    foreign = relabelled(own_image("LABEL x=y"), architecture="s390x")
    try:
        done = run(tmp_path, image=foreign, entrypoint=["env"])
        assert "is made for s390x" in str(record_of(done)["local"]["warnings"])
    finally:
        connect().images.remove(foreign, force=True)


def relabelled(image: str, **changes: str) -> str:
    """The same image under another name, with changes of its configuration."""
    packed = io.BytesIO()
    with (
        tarfile.open(fileobj=io.BytesIO(b"".join(connect().images.get(image).save()))) as saved,
        tarfile.open(fileobj=packed, mode="w") as tar,
    ):
        manifest = json.load(saved.extractfile("manifest.json"))  # type: ignore[arg-type]
        config = json.load(saved.extractfile(manifest[0]["Config"])) | changes  # type: ignore[arg-type]
        name = f"optml-test-{secrets.token_hex(4)}:v1"
        manifest[0] |= {"Config": "changed.json", "RepoTags": [name]}
        for member in saved.getmembers():
            if member.name not in ("manifest.json", "repositories"):
                tar.addfile(member, saved.extractfile(member) if member.isfile() else None)
        for file, content in {"manifest.json": manifest, "changed.json": config}.items():
            text = json.dumps(content).encode()
            info = tarfile.TarInfo(file)
            info.size = len(text)
            tar.addfile(info, io.BytesIO(text))
    connect().images.load(packed.getvalue())
    return name


# Networks.

SERVE_AND_ASK = (
    ML
    + """
import json, socket, sys, time
host = json.loads((ml / 'input/config/resourceconfig.json').read_text())['current_host']
if host == 'algo-1':
    server = socket.create_server(('algo-1', 4000))
    connection, _ = server.accept()
    assert connection.recv(100) == b'from algo-2'
    connection.sendall(b'from algo-1 of ' + os.environ['TRAINING_JOB_NAME'].encode())
    connection.close()
else:
    while True:  # until algo-1 listens; if it fails, this host is ended
        try:
            connection = socket.create_connection(('algo-1', 4000))
            break
        except OSError:
            time.sleep(0.05)
    connection.sendall(b'from algo-2')
    (ml / 'model/answer').write_bytes(connection.recv(100))
"""
)


def test_two_hosts_talk_over_tcp_by_name(tmp_path: Path) -> None:
    done = run(tmp_path, SERVE_AND_ASK, instance_count=2)
    assert done.describe["TrainingJobStatus"] == "Completed", done.reason + done.log
    assert done.model == {"answer": f"from algo-1 of {done.job.name}".encode()}


def test_two_isolated_hosts_talk_over_tcp_by_name(tmp_path: Path) -> None:
    done = run(tmp_path, SERVE_AND_ASK, instance_count=2, network_isolation=True)
    assert done.describe["TrainingJobStatus"] == "Completed", done.reason + done.log
    assert done.model == {"answer": f"from algo-1 of {done.job.name}".encode()}


# Tries to reach each address of the test's machine, and the outside; tells what answered, and how long a name took to fail.
ESCAPE = """
import json, socket, subprocess, time
from pathlib import Path
host = json.loads((ml / 'input/config/resourceconfig.json').read_text())['current_host']
begun = time.monotonic()
try:
    socket.getaddrinfo('www.example.com', 80)
    name = 'found'
except OSError:
    name = 'not found'
took = time.monotonic() - begun
port = int(os.environ['PORT'])
reached = []
routers = [line.split()[2] for line in Path('/proc/net/route').read_text().splitlines()[1:]]
addresses = os.environ['ADDRESSES'].split() + ['1.1.1.1', '169.254.169.254', '169.254.170.2']
own = socket.gethostbyname(host)
addresses += [own.rpartition('.')[0] + '.1'] * (own != '127.0.0.1')
for address in addresses:
    for each in (port, 53):
        try:
            socket.create_connection((address, each), timeout=0.3).close()
            reached.append(address)
        except OSError:
            pass
interfaces = sorted(name for _, name in socket.if_nameindex())
v6 = Path('/proc/net/if_inet6').read_text().split('\\n') if Path('/proc/net/if_inet6').exists() else []
for line in v6:
    if line and line.split()[-1] != 'lo':
        reached.append(line)
seen = {'name': name, 'seconds': took, 'reached': reached, 'interfaces': interfaces, 'own': own}
(ml / 'output/data' / (host + '.json')).write_text(json.dumps(seen))
time.sleep(1)
"""


@pytest.fixture
def listening() -> Iterator[dict[str, str]]:
    """A service of this machine on every address it has, as a container's environment names it."""
    server = socket.create_server(("0.0.0.0", 0), backlog=100)
    addresses = subprocess.run(["hostname", "-I"], capture_output=True, text=True, check=True).stdout.split()
    yield {
        "PORT": str(server.getsockname()[1]),
        "ADDRESSES": " ".join(address for address in addresses if ":" not in address),
    }
    server.close()


@pytest.mark.parametrize("count", [1, 2])
def test_isolated_hosts_reach_nothing_but_each_other(tmp_path: Path, listening: Mapping[str, str], count: int) -> None:
    done = run(tmp_path, ML + ESCAPE, instance_count=count, network_isolation=True, environment=listening)
    assert done.describe["TrainingJobStatus"] == "Completed", done.reason + done.log
    for host in range(1, count + 1):
        seen = json.loads(done.output[f"algo-{host}.json"])
        assert seen["reached"] == []
        assert seen["name"] == "not found"
        assert seen["seconds"] < 5, "it fails, rather than hang for the 10 s and more of a resolver's patience"
        assert (seen["own"] == "127.0.0.1") == (count == 1)
        assert seen["interfaces"] == ["lo"] if count == 1 else "eth0" in seen["interfaces"]


def test_a_host_that_is_not_isolated_reaches_the_same_service(tmp_path: Path, listening: Mapping[str, str]) -> None:
    """So the test above would notice a way out."""
    done = run(tmp_path, ML + ESCAPE, environment=listening)
    assert set(json.loads(done.output["algo-1.json"])["reached"]) & set(listening["ADDRESSES"].split())


def test_ten_jobs_of_one_image_at_once_do_not_meet(tmp_path: Path) -> None:
    """Names, networks and folders of their own: those of two hosts listen on the same port of the same name."""
    one = "(ml / 'model/answer').write_text(os.environ['TRAINING_JOB_NAME'])"

    def job(number: int) -> Done:
        two = number % 3 == 0
        return run(
            tmp_path / str(number),
            SERVE_AND_ASK if two else ML + one,
            name=f"side-by-side-{number}",
            instance_count=2 if two else 1,
        )

    with concurrent.futures.ThreadPoolExecutor(10) as pool:
        jobs = list(pool.map(job, range(10)))
    for number, done in enumerate(jobs):
        assert done.describe["TrainingJobStatus"] == "Completed", done.reason + done.log
        answer = done.model["answer"].decode()
        assert answer == ("from algo-1 of " if number % 3 == 0 else "") + f"side-by-side-{number}"


# Logs.

FLOOD = "import sys\nfor n in range(int(sys.argv[1])): sys.stdout.buffer.write(b'%09d' % n + b'x' * 90 + b'\\n')\n"


@pytest.mark.parametrize("megabytes", [10, pytest.param(100, marks=pytest.mark.slow)])
def test_a_burst_of_output_arrives_whole(tmp_path: Path, own_image: OwnImages, megabytes: int) -> None:
    lines = megabytes * 10_000
    host = start(tmp_path, own_image(""), "python", "-c", FLOOD, str(lines))
    assert exit_code(host) == 0
    with (tmp_path / "logs/algo-1.log").open("rb") as log:
        count = -1
        for count, line in enumerate(log):
            assert line == b"%09d" % count + b"x" * 90 + b"\n"
    assert count + 1 == lines


def test_bytes_of_any_kind_arrive_as_they_are(tmp_path: Path, own_image: OwnImages) -> None:
    source = (
        "import sys; sys.stdout.buffer.write(bytes(range(256)) * 500 + b'10%\\r20%\\r\\xff\\0'); sys.stdout.flush()"
    )
    assert exit_code(start(tmp_path, own_image(""), "python", "-c", source)) == 0
    assert (tmp_path / "logs/algo-1.log").read_bytes() == bytes(range(256)) * 500 + b"10%\r20%\r\xff\0"


def test_both_streams_arrive_while_it_runs(tmp_path: Path, own_image: OwnImages) -> None:
    source = "import sys, time; print('out', flush=True); print('err', file=sys.stderr, flush=True); time.sleep(600)"
    host = start(tmp_path, own_image(""), "python", "-c", source)
    try:
        log = tmp_path / "logs/algo-1.log"
        assert eventually(lambda: sorted(log.read_text().split()) == ["err", "out"])
        assert host.poll() is None
    finally:
        host.kill()


def test_a_full_disk_does_not_hold_up_a_container_and_the_reason_says_what_is_missing(
    tmp_path: Path, own_image: OwnImages, small_disk: Path
) -> None:
    host = start(
        tmp_path, own_image(""), "python", "-c", FLOOD + "sys.exit(3)", "50000", log_file=small_disk / "algo-1.log"
    )
    assert exit_code(host) == 3
    assert host.remark.startswith("its log is incomplete: No space left on device")
    kept = (small_disk / "algo-1.log").read_bytes()
    assert kept.startswith(b"000000000xxx")
    assert len(kept) > 500_000, "what there was room for is there"


# Folders with odd names.

ODD = {
    "blank": "a b",
    "comma": "a,b=c",
    "colon": "a:b:ro",
    "quotes": "a\"b'c",
    "unicode": "Übung-数据",
    "backslash": "a\\b\\,c",
    "dollar": "$HOME %s {}",
    "long": "x" * 200,
}


@pytest.mark.parametrize("name", ODD)
def test_folders_with_odd_names_work(
    tmp_path: Path, own_image: OwnImages, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    home = tmp_path / ODD[name] / "home"
    monkeypatch.setenv("OPTML_HOME", str(home))
    data = files(tmp_path / ODD[name] / "data", {"a.csv": "1,2\n", "sub/b.csv": "3,4\n"})
    source = """\
        #!/usr/bin/env python3
        from pathlib import Path
        data = Path('/opt/ml/input/data')
        for name in ('view', 'bound'):
            assert (data / name / 'a.csv').read_text() == '1,2\\n'
            assert (data / name / 'sub/b.csv').read_text() == '3,4\\n'
        (data / 'view/a.csv').write_text('changed')
        (data / 'view/new.csv').write_text('new')
        try:
            (data / 'bound/new.csv').write_text('new')
        except OSError as error:
            Path('/opt/ml/model/said').write_text(error.strerror)
        """
    image = own_image('COPY train /opt/train\nENTRYPOINT ["/opt/train"]', {"train": source})
    channels = {"view": str(data), "bound": {"uri": f"{data}/", "input_mode": "FastFile"}}
    done = run(tmp_path / "work", image=image, entrypoint=None, channels=channels)
    assert done.describe["TrainingJobStatus"] == "Completed", done.reason + done.log
    assert done.model == {"said": b"Read-only file system"}
    assert {str(path.relative_to(data)): path.read_text() for path in data.rglob("*.csv")} == {
        "a.csv": "1,2\n",
        "sub/b.csv": "3,4\n",
    }


# Supervisors that are killed.


def supervised(name: str, *arguments: str, entrypoint: tuple[str, ...]) -> "subprocess.Popen[bytes]":
    """`optml train` in a process of its own."""
    command = [OPTML, "train", "--backend", "docker", "--name", name, *arguments, "--", *entrypoint]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL)


def watchers_of(supervisor: int) -> list[int]:
    """The processes that would tidy up after a supervisor."""
    children = subprocess.run(["pgrep", "-P", str(supervisor)], capture_output=True, text=True, check=False).stdout
    return [
        int(child) for child in children.split() if b"docker_leftovers" in Path(f"/proc/{child}/cmdline").read_bytes()
    ]


def begun(name: str, *, hosts: int = 1) -> bool:
    logs = list(JobDir.of(name).logs.glob("*.log"))
    return len(logs) == hosts and all("ready" in log.read_text() for log in logs)


FOREVER = ("python", "-uc", "import time; print('ready'); time.sleep(600)")


def test_what_a_killed_supervisor_leaves_is_removed_within_seconds(tmp_path: Path) -> None:
    data = files(tmp_path / "data", {"a": "a"})
    supervisor = supervised("lost", "--instance-count", "2", "--channel", f"train={data}", entrypoint=FOREVER)
    assert eventually(lambda: begun("lost", hosts=2))
    assert len(held(tmp_path)) == 5, "two containers, two views, one network"
    supervisor.kill()
    supervisor.wait()
    assert eventually(lambda: not held(tmp_path)), held(tmp_path)
    assert eventually(lambda: optml.Job("lost").status == "Failed")
    assert "was killed" in optml.Job("lost").describe()["FailureReason"]


def abandoned(folder: Path) -> str:
    """A job of two hosts whose supervisor and watcher are gone, and all of which is there still.

    Any job of another test may be the one that looks next, and removes it. Then there is another try.
    """
    data = files(folder / "data", {"a": "a"})
    for number in range(10):
        name = f"lost-{number}"
        supervisor = supervised(name, "--instance-count", "2", "--channel", f"train={data}", entrypoint=FOREVER)
        assert eventually(lambda name=name: begun(name, hosts=2))  # type: ignore[misc]
        watchers = watchers_of(supervisor.pid)
        assert len(watchers) == 1
        for pid in (*watchers, supervisor.pid):
            os.kill(pid, signal.SIGKILL)
        supervisor.wait()
        time.sleep(0.5)
        if len(held(folder)) == 5:
            return name
        assert eventually(lambda: not held(folder)), "who looked has removed a part"
    pytest.fail("of ten jobs none was left alone for half a second")


@pytest.mark.parametrize("who", ["describe", "list", "the next job"])
def test_without_its_watcher_the_next_command_removes_it(tmp_path: Path, own_image: OwnImages, who: str) -> None:
    name = abandoned(tmp_path)
    if who == "describe":
        subprocess.run([OPTML, "describe", name], check=True, stdout=subprocess.DEVNULL)
    elif who == "list":
        subprocess.run([OPTML, "list"], check=True, stdout=subprocess.DEVNULL)
    else:
        run(tmp_path, image=own_image(""), entrypoint=["env"])
    assert held(tmp_path) == []
    assert optml.Job(name).status == "Failed"


@pytest.mark.skipif(os.geteuid() != 0, reason="another namespace of process numbers takes root")
def test_a_supervisor_whose_number_means_nothing_here_is_left_alone(tmp_path: Path) -> None:
    """As from within a container that has the engine's socket and this machine's name."""
    supervisor = supervised("alive", "--grace", "1", entrypoint=FOREVER)
    assert eventually(lambda: begun("alive"))
    tidy = "from optml.backends.docker_leftovers import tidy; from optml.engine import connect; tidy(connect())"
    subprocess.run(
        ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", tidy],
        check=True,
        timeout=2 * PATIENCE_SECONDS,
    )
    assert len(held(tmp_path)) == 1
    supervisor.send_signal(signal.SIGTERM)
    assert supervisor.wait(PATIENCE_SECONDS) == 3


def test_a_supervisor_that_is_stopped_kindly_leaves_nothing(tmp_path: Path) -> None:
    supervisor = supervised("kind", "--grace", "1", entrypoint=FOREVER)
    assert eventually(lambda: begun("kind"))
    supervisor.send_signal(signal.SIGTERM)
    assert supervisor.wait(PATIENCE_SECONDS) == 3
    assert held(tmp_path) == []
    assert optml.Job("kind").status == "Stopped"


@pytest.mark.parametrize("count", [8, pytest.param(100, marks=pytest.mark.slow)])
def test_after_many_jobs_half_of_them_killed_in_the_middle_nothing_is_left(
    tmp_path: Path, own_image: OwnImages, count: int
) -> None:
    """Each killed one at another moment between its first step and its last."""
    data = files(tmp_path / "data", {"a": "a"})

    def job(number: int) -> None:
        name = f"one-of-many-{number}"
        more = ["--instance-count", "2"] if number % 4 < 2 else ["--channel", f"train={data}"]
        process = supervised(name, "--image", own_image(""), *more, entrypoint=("sleep", "0.5"))
        if number % 2:
            assert eventually(JobDir.of(name).root.exists)
            time.sleep(0.08 * (number // 2 % 25))
            process.kill()
            process.wait()
        else:
            assert process.wait(PATIENCE_SECONDS) == 0

    own_image("")
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        list(pool.map(job, range(count)))
    assert eventually(lambda: not held(tmp_path)), held(tmp_path)
    statuses = [optml.Job(f"one-of-many-{number}").status for number in range(count)]
    assert statuses[::2] == ["Completed"] * len(statuses[::2])
    assert set(statuses[1::2]) <= {"Failed", "Completed"}
    assert not [folder for folder in jobs_dir().glob("*/attempts/*/*") if held(folder)]
    here = os.fsencode(tmp_path)
    assert eventually(lambda: not [pid for pid in pids() if here in environment_of(pid)])


def pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit() and int(name) != os.getpid()]


def environment_of(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return b""


# A registry.


class Registry(http.server.BaseHTTPRequestHandler):
    """What `docker pull` asks for, of one image: its manifest, its configuration and its layer, by their digests."""

    blobs: ClassVar[dict[str, tuple[str, bytes]]] = {}
    locked = False

    def do_GET(self) -> None:
        kind, content = "text/plain", b"{}"
        status = 200
        if self.locked:
            status = 401
        elif self.path != "/v2/":
            name = self.path.rpartition("/")[2]
            status = 200 if name in self.blobs else 404
            kind, content = self.blobs.get(name, (kind, content))
        self.send_response(status)
        if status == 200 and "/manifests/" in self.path:
            self.send_header("Docker-Content-Digest", digest(content))
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass


def digest(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A registry of this machine with one image of 8 MB, by its name there; the image is removed from the engine afterwards."""
    layer = context("", {"noise": secrets.token_hex(4 << 20)}, 0o644).getvalue()
    manifest_type = "application/vnd.docker.distribution.manifest.v2+json"
    types = ("application/vnd.docker.container.image.v1+json", "application/vnd.docker.image.rootfs.diff.tar.gzip")
    config = json.dumps(
        {
            "architecture": connect().version()["Arch"],
            "os": "linux",
            "config": {},
            "rootfs": {"type": "layers", "diff_ids": [digest(layer)]},
        }
    ).encode()
    described = [
        {"mediaType": kind, "size": len(content), "digest": digest(content)}
        for kind, content in zip(types, (config, layer), strict=True)
    ]
    manifest = json.dumps(
        {"schemaVersion": 2, "mediaType": manifest_type, "config": described[0], "layers": described[1:]}
    ).encode()
    blobs = {digest(config): (types[0], config), digest(layer): (types[1], layer)}
    monkeypatch.setattr(Registry, "blobs", blobs | dict.fromkeys(("v1", digest(manifest)), (manifest_type, manifest)))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Registry) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        name = f"127.0.0.1:{server.server_address[1]}/test/noise:v1"
        yield name
        server.shutdown()
    for image in connect().images.list(name):
        connect().images.remove(image.id, force=True)


def test_an_image_that_is_missing_is_pulled_with_progress(tmp_path: Path, registry: str) -> None:
    seen: list[tuple[int, int | None]] = []
    image = image_for_containers(registry)
    DockerBackend().fetch(image, lambda _step, done, total: seen.append((done, total)))
    assert connect().images.get(registry)
    totals = {total for _done, total in seen if total}
    assert len(totals) == 1
    assert 8 << 20 < min(totals) < 9 << 20
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1][0] == min(totals)
    connect().images.remove(registry)

    done = run(tmp_path, image=registry, entrypoint=None)
    assert "neither an ENTRYPOINT" in done.reason, "it was pulled; there is just no program in it"


@pytest.mark.parametrize("begun", [False, True])
def test_a_stop_while_an_image_is_pulled_ends_the_job(
    tmp_path: Path, registry: str, monkeypatch: pytest.MonkeyPatch, begun: bool
) -> None:
    pull = docker_images.pull

    def stopped_meanwhile(client: Any, reference: str, progress: Any) -> None:
        def stopping(step: str, done: int, total: int | None) -> None:
            if total or not begun:
                optml.Job("early").stop()
            progress(step, done, total)

        pull(client, reference, stopping)

    monkeypatch.setattr(docker_backend, "pull", stopped_meanwhile)
    done = run(tmp_path, image=registry, entrypoint=None, name="early")
    assert done.describe["TrainingJobStatus"] == "Stopped"


def test_a_tag_that_a_registry_does_not_have_is_explained(tmp_path: Path, registry: str) -> None:
    done = run(tmp_path, image=registry.replace(":v1", ":v2"), entrypoint=None)
    assert done.reason.startswith("ClientError: the image ")
    assert "look at its name and tag" in done.reason


def test_a_registry_that_wants_a_login_is_explained(
    tmp_path: Path, registry: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Registry, "locked", True)
    done = run(tmp_path, image=registry, entrypoint=None)
    assert done.reason.startswith("ClientError: the image ")
    assert "docker login" in done.reason
