"""Hosts of the process backend as real processes: what a program finds, how it ends, and that nothing of it stays.

Each test that has a `level` runs twice: with namespaces, where this machine allows them, and as on a machine without.
"""

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.harness import ML, capabilities, files, program, run
from tests.hosts import (
    PATIENCE_SECONDS,
    eventually,
    exit_code,
    launch,
    log_of,
    processes_of,
    python,
    start_ready,
    state,
)

import optml
from optml import machine, plan
from optml.backends import Host, HostLost
from optml.backends.process import ProcessBackend
from optml.doctor import Finding, examine
from optml.engine import connect
from optml.errors import PlatformError, ResourceLimitExceeded, StartError, UserError
from optml.images import find_image
from optml.jobdir import HostDir, JobDir
from optml.spec import How, InstanceGroup, InterruptionPlan, LocalOptions, TrainingJob

OPTML = str(Path(sys.executable).parent / "optml")


@pytest.fixture(params=["namespaces", "none"])
def level(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "none":
        monkeypatch.setenv("OPTML_NAMESPACES", "off")
    elif not capabilities().own_opt_ml:
        pytest.skip(capabilities().explanation)
    return str(request.param)


@pytest.fixture(autouse=True)
def nothing_is_left(tmp_path: Path) -> Iterator[None]:
    """Whatever a test did: no process, zombie, descriptor, mount or control group of its hosts is there afterwards."""
    with contextlib.suppress(UserError):
        connect().info()  # its connection stays, for whoever asks next: `doctor` does
    descriptors = len(os.listdir("/proc/self/fd"))
    yield
    assert eventually(lambda: not processes_of(tmp_path)), processes_of(tmp_path)
    assert zombies() == []
    assert len(os.listdir("/proc/self/fd")) <= descriptors
    assert str(tmp_path) not in Path("/proc/self/mounts").read_text()
    assert control_groups() == []


def stat_of(pid: int) -> list[bytes]:
    """State, parent, ... of a process; its name may be any bytes."""
    return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()


def zombies() -> list[int]:
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            state, parent = stat_of(int(process.name))[:2]
            if state == b"Z" and int(parent) == os.getpid():
                found.append(int(process.name))
    return found


def control_groups() -> list[Path]:
    found: list[Path] = []
    for parent, names, _files in os.walk("/sys/fs/cgroup"):  # where groups of other programs come and go meanwhile
        found += [Path(parent, name) for name in names if name.startswith(f"optml-{os.getpid()}-")]
    return found


# How a program ends.


@pytest.mark.usefixtures("level")
def test_every_kind_of_exit_code_arrives(tmp_path: Path) -> None:
    for code in (0, 1, 2, 3, 77, 126, 127, 128, 129, 137, 143, 254, 255):
        assert exit_code(ProcessBackend().start(launch(tmp_path, "sh", "-c", f"exit {code}"))) == code


@pytest.mark.usefixtures("level")
def test_death_by_signal_n_is_exit_code_128_plus_n(tmp_path: Path) -> None:
    for name in ("HUP", "INT", "QUIT", "ILL", "ABRT", "KILL", "SEGV", "PIPE", "ALRM", "TERM", "USR1", "RTMIN", "RTMAX"):
        number = signal.Signals[f"SIG{name}"]
        script = (
            f"import os, resource; resource.setrlimit(resource.RLIMIT_CORE, (0, 0)); os.kill(os.getpid(), {number})"
        )
        if name in ("INT", "PIPE"):
            script = f"import signal; signal.signal({number}, signal.SIG_DFL); {script}"
        assert exit_code(ProcessBackend().start(launch(tmp_path, *python(script)))) == 128 + number


@pytest.mark.usefixtures("level")
def test_sigterm_has_its_usual_effect_on_a_program_that_does_not_handle_it(tmp_path: Path) -> None:
    """Process 1 of a container would ignore it."""
    host = ProcessBackend().start(launch(tmp_path, "sleep", "600"))
    host.terminate()
    assert exit_code(host) == 128 + signal.SIGTERM
    host.terminate()  # no error once it is gone


@pytest.mark.usefixtures("level")
def test_sigterm_reaches_a_handler_and_only_the_main_process(tmp_path: Path) -> None:
    source = """
        import signal, subprocess, sys, time
        child = subprocess.Popen(["sleep", "600"])
        def end(*_):
            time.sleep(0.1)
            print("child", child.poll())
            sys.exit(5)
        signal.signal(signal.SIGTERM, end)
        print("ready", flush=True)
        time.sleep(600)
    """
    host = start_ready(tmp_path, source)
    host.terminate()
    assert exit_code(host) == 5
    assert "child None" in log_of(tmp_path)


TREES = {
    "double fork": """
        import os, time
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                print("ready", flush=True)
                time.sleep(600)
            os._exit(0)
    """,
    "ignores everything": """
        import os, signal, time
        if os.fork() == 0:
            for number in range(1, 65):
                if number not in (9, 19, 32, 33):
                    signal.signal(number, signal.SIG_IGN)
            print("ready", flush=True)
            while True:
                time.sleep(1)
    """,
    "forks on and on": """
        import os, time
        def breed(depth):
            for _ in range(3):
                if os.fork() == 0:
                    os.setsid()
                    if depth:
                        breed(depth - 1)
                    else:
                        print("ready", flush=True)
                    while True:
                        time.sleep(0.01)
                        if os.fork() == 0:
                            os._exit(0)
                        os.wait()
        breed(2)
    """,
    "a name that is not UTF-8": """
        import os, time
        if os.fork() == 0:
            with open("/proc/self/comm", "wb") as name:
                name.write(b"\\xff) \\xfe")
            os.setsid()
            print("ready", flush=True)
            time.sleep(600)
    """,
}


UNTIL_TOLD = """
while not os.path.exists(os.environ["FOLDER"] + "/end"):
    time.sleep(0.01)
"""


@pytest.mark.parametrize("tree", TREES)
@pytest.mark.parametrize("end", ["by itself", "killed"])
@pytest.mark.usefixtures("level")
def test_the_whole_tree_ends_with_its_host(tmp_path: Path, tree: str, end: str) -> None:
    host = start_ready(tmp_path, textwrap.dedent(TREES[tree]) + UNTIL_TOLD)
    if end == "by itself":
        (tmp_path / "end").touch()
        assert exit_code(host) == 0
    else:
        host.kill()
    assert not processes_of(tmp_path), "kill returns when nothing runs"


# What is left when something is killed from outside.

FAMILY = """
import subprocess, sys, time
subprocess.Popen(["sleep", "600"], start_new_session=True)
print("ready", flush=True)
time.sleep(600)
"""


def poll_until_lost(host: Host) -> str:
    deadline = time.monotonic() + PATIENCE_SECONDS
    try:
        while time.monotonic() < deadline:
            host.poll()
            time.sleep(0.01)
    except HostLost as lost:
        return str(lost)
    finally:
        host.kill()
    raise AssertionError("the host is not lost")


@pytest.mark.usefixtures("level")
def test_a_host_whose_keeper_is_killed_is_lost_with_everything_on_it(tmp_path: Path) -> None:
    host = start_ready(tmp_path, FAMILY)
    os.kill(state(tmp_path)["pid"], signal.SIGKILL)
    assert "killed" in poll_until_lost(host)
    assert not processes_of(tmp_path)


def test_a_host_whose_first_process_is_killed_is_lost(tmp_path: Path, level: str) -> None:
    if level == "none":
        pytest.skip("without namespaces the first process is the program, whose death is an exit code")
    host = start_ready(tmp_path, FAMILY)
    os.kill(state(tmp_path)["init"], signal.SIGKILL)
    poll_until_lost(host)
    assert not processes_of(tmp_path)


SUPERVISOR = """
import sys, time
from pathlib import Path
from tests.hosts import start_ready
from tests.runtime.test_process_backend import FAMILY
host = start_ready(Path(sys.argv[1]), FAMILY)
{more}
print("supervising", flush=True)
time.sleep(600)
"""


def supervisor(tmp_path: Path, more: str = "") -> "subprocess.Popen[str]":
    process = subprocess.Popen(
        [sys.executable, "-c", SUPERVISOR.format(more=more), str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).resolve().parents[2],
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "supervising\n"
    return process


@pytest.mark.usefixtures("level")
def test_a_host_goes_with_its_supervisor(tmp_path: Path) -> None:
    with supervisor(tmp_path) as process:
        process.kill()
    assert eventually(lambda: not processes_of(tmp_path)), processes_of(tmp_path)


@pytest.mark.usefixtures("level")
def test_a_host_goes_with_its_supervisor_though_a_forked_child_still_has_the_pipe(tmp_path: Path) -> None:
    """As a multiprocessing pool of the caller's has, which was forked while the job ran."""
    more = """
import os
child = os.fork()
if child == 0:
    os.close(1)
    time.sleep(600)
Path(sys.argv[1], "child").write_text(str(child))
"""
    with supervisor(tmp_path, more) as process:
        child = int((tmp_path / "child").read_text())
        process.kill()
    try:
        assert eventually(lambda: [pid for pid, _ in processes_of(tmp_path)] == [child]), processes_of(tmp_path)
    finally:
        os.kill(child, signal.SIGKILL)


@pytest.mark.usefixtures("level")
def test_what_supervisor_and_keeper_left_together_is_swept(tmp_path: Path) -> None:
    with supervisor(tmp_path) as process:
        os.kill(process.pid, signal.SIGSTOP)  # so that it can't end the host when the keeper is gone
        os.kill(state(tmp_path)["pid"], signal.SIGKILL)
        process.kill()
    host_dir = HostDir(tmp_path / "attempts" / "1" / "algo-1")
    temporary = Path(json.loads(host_dir.launch_file.read_bytes())["temporary"])
    assert temporary.is_dir()
    (temporary / "socket").touch()
    ProcessBackend().sweep(host_dir)
    assert not processes_of(tmp_path)
    assert not temporary.exists()
    ProcessBackend().sweep(host_dir)  # nothing left, no error


@pytest.mark.usefixtures("level")
def test_temporary_files_go_with_their_host(tmp_path: Path) -> None:
    script = """
import os, tempfile
folder = tempfile.mkdtemp()
open(os.path.join(folder, "file"), "w").close()
print("made", folder, os.environ["TMPDIR"])
"""
    (line,) = run(tmp_path / "own", script).log.splitlines()
    made, root = line.split()[1:]
    assert made.startswith(f"{root}/")
    assert not Path(root).exists()
    assert Path(root).parent == Path(tempfile.gettempdir())
    mine = tmp_path / "mine"
    mine.mkdir()
    (line,) = run(tmp_path / "asked", script, environment={"TMPDIR": str(mine)}).log.splitlines()
    assert Path(line.split()[1]).parent == mine, "the request's own stands, and what is in it stays"
    assert Path(line.split()[1], "file").exists()


def test_a_swept_number_that_is_another_process_now_is_left_alone(tmp_path: Path) -> None:
    host_dir = launch(tmp_path, "true").host_dir
    with subprocess.Popen(["sleep", "600"]) as other:
        host_dir.state_file.write_text(json.dumps({"pid": other.pid, "pid_started": 1, "init": other.pid}))
        ProcessBackend().sweep(host_dir)
        assert other.poll() is None
        other.kill()


@pytest.mark.usefixtures("level")
def test_a_host_outlives_the_thread_that_started_it(tmp_path: Path) -> None:
    """Linux ends a child with its parent's thread, if the child asked to go with its parent."""
    hosts: list[Host] = []
    thread = threading.Thread(target=lambda: hosts.append(start_ready(tmp_path, FAMILY)))
    thread.start()
    thread.join()
    time.sleep(0.3)
    assert hosts[0].poll() is None
    hosts[0].terminate()
    assert exit_code(hosts[0]) == 143


@pytest.mark.usefixtures("level")
def test_hosts_start_and_end_in_several_threads_at_once(tmp_path: Path) -> None:
    codes: dict[int, int] = {}

    def one(number: int) -> None:
        host = ProcessBackend().start(launch(tmp_path, "sh", "-c", f"exit {number}", host=f"algo-{number}"))
        codes[number] = exit_code(host)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert codes == {number: number for number in range(1, 9)}


# What a program finds.

SEE = """
import json, os, signal
def status(name):
    return next(line.split()[1] for line in open("/proc/self/status") if line.startswith(name))
print(json.dumps({
    "stdin": os.read(0, 10).decode(),
    "stdin is": os.readlink("/proc/self/fd/0"),
    "descriptors": sorted(int(fd) for fd in os.listdir("/proc/self/fd") if os.path.exists("/proc/self/fd/" + fd)),
    "umask": os.umask(0),
    "leads its session": os.getsid(0) == os.getpid(),
    "cwd": os.getcwd(),
    "blocked": int(status("SigBlk"), 16),
    # Not Python's own SIGPIPE and SIGXFSZ, nor the two (32, 33) that are the C library's.
    "ignored": int(status("SigIgn"), 16) & ~(1 << signal.SIGPIPE - 1) & ~(1 << 24) & ~(0b11 << 31),
    "cpus": sorted(os.sched_getaffinity(0)),
    "is process 1": os.getpid() == 1,
}))
"""


@pytest.mark.usefixtures("level")
def test_a_program_finds_clean_descriptors_signals_umask_and_folder(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    leaky = os.open("/dev/null", os.O_RDONLY)
    os.set_inheritable(leaky, True)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP})
    umask = os.umask(0o077)
    try:
        host = ProcessBackend().start(
            launch(tmp_path, *python(SEE), working_dir=str(tmp_path / "here"), cpus=machine.cpu_numbers()[:1])
        )
        assert exit_code(host) == 0, log_of(tmp_path)
    finally:
        os.umask(umask)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        os.close(leaky)
    assert json.loads(log_of(tmp_path)) == {
        "stdin": "",
        "stdin is": "/dev/null",
        "descriptors": [0, 1, 2],
        "umask": 0o022,
        "leads its session": True,
        "cwd": str(tmp_path / "here"),
        "blocked": 0,
        "ignored": 0,
        "cpus": list(machine.cpu_numbers()[:1]),
        "is process 1": False,
    }


def test_the_environment_is_the_launchs_and_nothing_else(tmp_path: Path, level: str) -> None:
    odd = {"BYTES": os.fsdecode(b"\xff\xfe"), "LINES": "a\nb", "EMPTY": "", "UMLAUT": "größe", "NAME WITH BLANK": "x"}
    given = launch(tmp_path, "env", "-0", environment=odd)
    assert exit_code(ProcessBackend().start(given)) == 0
    content = (tmp_path / "logs" / "algo-1.log").read_bytes()
    seen = dict(os.fsdecode(entry).split("=", 1) for entry in content.split(b"\0") if entry)
    told = {name: seen.pop(name) for name in list(seen) if name.startswith(("SM_", "SAGEMAKER_"))}
    assert Path(seen.pop("TMPDIR")).name.startswith("optml-host-")
    assert seen == {**given.environment, "CUDA_VISIBLE_DEVICES": "", "NVIDIA_VISIBLE_DEVICES": "void"}
    assert (told.get("SAGEMAKER_BASE_DIR") == str(given.host_dir.ml)) == (level == "none")
    assert bool(told) == (level == "none")


@pytest.mark.usefixtures("level")
def test_long_and_odd_arguments_arrive_as_they_are(tmp_path: Path) -> None:
    arguments = ["x" * 100_000, "", " ", "\n", "größe", os.fsdecode(b"\xff"), "$HOME", "'\""]
    source = "import os, sys; os.write(1, b'\\0'.join(os.fsencode(word) for word in sys.argv[1:]))"
    assert exit_code(ProcessBackend().start(launch(tmp_path, *python(source, *arguments)))) == 0
    content = (tmp_path / "logs" / "algo-1.log").read_bytes()
    assert [os.fsdecode(word) for word in content.split(b"\0")] == arguments


@pytest.mark.usefixtures("level")
def test_a_path_with_blanks_unicode_and_punctuation_holds_a_whole_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "größe, a:b \\ 100%"
    monkeypatch.setenv("OPTML_HOME", str(folder / "home"))
    data = files(folder / "the data", {"ä b.txt": "1"})
    done = run(folder, ML + "print((ml / 'input/data/train/ä b.txt').read_text())", channels={"train": f"{data}/"})
    assert done.log == "1\n"
    assert done.describe["TrainingJobStatus"] == "Completed"


# What can't be started.


@pytest.mark.parametrize(
    ("argv", "more", "expected"),
    [
        (["no-such-program"], {}, 'exec: "no-such-program": executable file not found in $PATH'),
        (["/etc/passwd"], {}, "permission denied"),
        (["/no/such/file"], {}, "no such file"),
        (["echo", "a\0b"], {}, "null byte"),
        (["echo"], {"environment": {"X": "a\0b"}}, "null byte"),
        (["echo", "x" * 200_000], {}, "argument list too long"),
        (["x" * 100_000], {}, "xxx..."),
        (
            ["echo"],
            {"working_dir": "/no/such/folder"},
            "the working folder /no/such/folder cannot be entered: no such file",
        ),
        (["echo"], {"working_dir": "/etc/passwd"}, "the working folder /etc/passwd cannot be entered: not a directory"),
    ],
)
@pytest.mark.usefixtures("level")
def test_what_cannot_be_started_is_a_start_error_that_says_why(
    tmp_path: Path, argv: list[str], more: dict[str, Any], expected: str
) -> None:
    with pytest.raises(StartError) as caught:
        ProcessBackend().start(launch(tmp_path, *argv, **more))
    assert expected in str(caught.value)


def test_a_host_with_a_disk_of_its_own_whose_program_is_not_there_leaves_nothing(tmp_path: Path) -> None:
    if capabilities().why_no_disk:
        pytest.skip(capabilities().why_no_disk)
    given = launch(tmp_path, "no-such-program", disk="/opt/ml/checkpoints")
    (given.host_dir.ml / "checkpoints").mkdir()
    with pytest.raises(StartError, match="executable file not found"):
        ProcessBackend().start(given)


def test_a_host_that_cannot_be_made_leaves_nothing(tmp_path: Path) -> None:
    from optml.backends import Mount

    if not capabilities().own_opt_ml:
        pytest.skip(capabilities().explanation)
    broken = launch(
        tmp_path, "sleep", "600", memory_bytes=10**9, mounts=(Mount(source=tmp_path / "no", target="/opt/ml/input/x"),)
    )
    with pytest.raises(PlatformError, match="could not be made"):
        ProcessBackend().start(broken)
    shutil.rmtree(broken.host_dir.root)
    with pytest.raises(PlatformError, match="could not be started"):
        ProcessBackend().start(broken)


def test_a_host_that_cannot_be_started_ends_those_that_run(tmp_path: Path) -> None:
    script = tmp_path / "program" / "once"
    script.parent.mkdir()
    script.write_text('#!/bin/sh\nrm -f "$0"\nsleep 600\n')
    script.chmod(0o755)
    done = run(tmp_path, entrypoint=[str(script)], instance_count=6)
    assert done.describe["TrainingJobStatus"] == "Failed"
    assert str(script) in done.reason
    assert done.reason.startswith("ClientError")


@pytest.mark.usefixtures("level")
def test_a_working_folder_that_vanished_fails_the_job_with_its_name(tmp_path: Path) -> None:
    done = run(tmp_path, working_dir=tmp_path / "gone")
    assert done.describe["TrainingJobStatus"] == "Failed"
    assert f"the working folder {tmp_path}/gone cannot be entered" in done.reason


# The machine's processors, memory, GPUs and network.


def test_hosts_share_the_processors_of_the_machine(tmp_path: Path) -> None:
    cpus = machine.cpu_numbers()
    script = ML + "import os; print('cpus', sorted(os.sched_getaffinity(0)))"
    for count in (2, 3):
        log = run(tmp_path, script, instance_count=count).log
        seen = [json.loads(line.removeprefix("cpus ")) for line in log.splitlines()]
        assert [len(numbers) for numbers in seen] == [max(1, len(cpus) // count)] * count
        if len(cpus) >= count:
            assert len({number for numbers in seen for number in numbers}) == count * (len(cpus) // count)


@pytest.mark.parametrize(
    ("numbers", "count", "wanted", "expected"),
    [
        ((0, 1), 1, None, [(0, 1)]),
        ((0, 1), 2, None, [(0,), (1,)]),
        ((0, 1), 3, None, [(0,), (1,), (0,)]),
        ((2, 3, 5, 7, 11), 2, None, [(2, 3), (5, 7)]),
        ((0, 1, 2, 3), 2, 1, [(0,), (2,)]),
        ((0, 1), 2, 8, [(0,), (1,)]),
        ((), 2, None, [(), ()]),
    ],
)
def test_a_share_is_fair_and_never_empty(
    numbers: tuple[int, ...], count: int, wanted: int | None, expected: list[tuple[int, ...]]
) -> None:
    assert [plan.share(numbers, index=index, count=count, wanted=wanted) for index in range(count)] == expected


def gpu_job(*groups: tuple[str, int], allow_cpu: bool = False) -> TrainingJob:
    return TrainingJob(
        name="gpus",
        arn="arn:aws:sagemaker:us-east-1:123456789012:training-job/gpus",
        region="us-east-1",
        role_arn="arn:aws:iam::123456789012:role/x",
        image="python",
        output_uri="file:///out",
        entrypoint=("train",),
        instance_groups=tuple(
            InstanceGroup(name=f"g{number}", instance_type=kind, instance_count=count)
            for number, (kind, count) in enumerate(groups)
        ),
        options=LocalOptions(allow_cpu=allow_cpu),
    )


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        (None, (0, 1, 2)),
        ("", ()),
        ("2,0", (2, 0)),
        (" 1 , 2 ", (1, 2)),
        ("GPU-b", (1,)),
        ("GPU-c1,0", (2, 0)),
        ("GPU-", ()),
        ("0,-1,2", (0,)),
        ("7", ()),
        ("NoDevFiles", ()),
    ],
)
def test_the_caller_may_show_a_job_some_of_the_gpus(visible: str | None, expected: tuple[int, ...]) -> None:
    assert machine.visible_gpus("0, GPU-a1\n1, GPU-b1\n2, GPU-c1\n", visible) == expected


def test_each_gpu_goes_to_one_host(tmp_path: Path) -> None:
    job = gpu_job(("ml.g5.12xlarge", 1), ("ml.m5.large", 1), ("ml.g5.xlarge", 2))
    image = find_image("python")
    assert image is not None
    launches = plan.plan(
        job,
        JobDir(tmp_path),
        image,
        ProcessBackend(),
        attempt=1,
        started=0.0,
        mounts={},
        cpus=(0, 1),
        gpus=range(8),
        caller_environment={},
    )
    assert [launch.gpus for launch in launches] == [(0, 1, 2, 3), (), (4,), (5,)]
    assert [plan.gpus_of(job, host, ()) for host in job.hosts] == [(), (), (), ()]


@pytest.mark.usefixtures("level")
def test_a_program_sees_its_hosts_gpus_only(tmp_path: Path) -> None:
    def seen(**more: Any) -> str:
        given = launch(tmp_path, "sh", "-c", 'echo "gpus: $CUDA_VISIBLE_DEVICES"', **more)
        given.log_file.unlink(missing_ok=True)
        assert exit_code(ProcessBackend().start(given)) == 0
        return log_of(tmp_path).strip()

    assert seen(gpus=(2, 5)) == "gpus: 2,5"
    assert seen() == "gpus:"
    assert seen(gpus=(2, 5), environment={"CUDA_VISIBLE_DEVICES": "1"}) == "gpus: 5", "the host's second"
    assert seen(gpus=(2, 5), environment={"CUDA_VISIBLE_DEVICES": "1,7,0"}) == "gpus: 5,2"


def test_gpus_that_are_not_there_are_refused_unless_the_cpu_will_do() -> None:
    job = gpu_job(("ml.g5.12xlarge", 2))
    with pytest.raises(ResourceLimitExceeded, match=r"8 GPU\(s\); this machine has 4 .*--allow-cpu"):
        plan.check(job, containers=False, gpu_count=4)
    plan.check(job, containers=False, gpu_count=8)
    plan.check(gpu_job(("ml.g5.12xlarge", 2), allow_cpu=True), containers=False, gpu_count=0)
    with pytest.raises(ResourceLimitExceeded, match="Trainium"):
        plan.check(gpu_job(("ml.trn1.2xlarge", 1)), containers=False, gpu_count=8)


def test_processors_that_a_host_cannot_have_are_refused_also_where_only_the_engine_lacks_them() -> None:
    def wants(count: int, *, hosts: int) -> TrainingJob:
        return dataclasses.replace(gpu_job(("ml.m5.large", hosts)), options=LocalOptions(cpus=count))

    plan.check_cpus(wants(4, hosts=2), range(8), None)
    plan.check_cpus(wants(2, hosts=1), range(8), 2)
    with pytest.raises(
        ResourceLimitExceeded, match=r"this machine has 8 processors, so each of the job's 2 hosts .* 4$"
    ):
        plan.check_cpus(wants(5, hosts=2), range(8), None)
    with pytest.raises(
        ResourceLimitExceeded, match=r"--cpus 3: the container engine has 2 processors, so its one host"
    ):
        plan.check_cpus(wants(3, hosts=1), range(8), 2)


@pytest.mark.usefixtures("level")
def test_a_gpu_instance_type_on_a_machine_without_one(tmp_path: Path) -> None:
    if machine.gpu_numbers():
        pytest.skip("this machine has a GPU")
    with pytest.raises(ResourceLimitExceeded):
        run(tmp_path, "pass", instance_type="ml.g5.xlarge")
    done = run(
        tmp_path,
        "import os; print('gpus', os.environ['CUDA_VISIBLE_DEVICES'])",
        instance_type="ml.g5.xlarge",
        allow_cpu=True,
    )
    assert done.log == "gpus \n"


@pytest.mark.usefixtures("level")
def test_a_program_that_wants_more_memory_than_its_host_has_fails_and_is_told(tmp_path: Path) -> None:
    """By a control group, where this user may make one: killed. Else by a limit of the process: MemoryError."""
    script = """
        x = bytearray(50_000_000)
        print("some", flush=True)
        x = bytearray(1_000_000_000)
        x[::4096] = b"x" * len(x[::4096])
    """
    done = run(tmp_path, script, memory_bytes=400_000_000)
    assert done.describe["TrainingJobStatus"] == "Failed"
    assert done.log.startswith("some\n")
    if done.reason.endswith("exit code: 137"):
        assert "out of memory (limit: 400,000,000 bytes)" in done.reason
    else:
        assert "MemoryError" in done.log


def test_an_isolated_job_has_hosts_that_talk_to_each_other_and_to_nobody_else(tmp_path: Path) -> None:
    if not capabilities().network_isolation:
        pytest.skip(capabilities().explanation)
    with socket.create_server(("127.0.0.1", 0)) as server:
        script = (
            ML
            + f"""
import json, socket, time
host = json.loads((ml / 'input/config/resourceconfig.json').read_text())['current_host']
print(host, 'interfaces', [name for _, name in socket.if_nameindex()])
try:
    socket.create_connection(('127.0.0.1', {server.getsockname()[1]}), timeout=5)
    print(host, 'reached the machine')
except OSError as error:
    print(host, 'refused', type(error).__name__)
try:
    socket.create_connection(('192.0.2.1', 80), timeout=5)
except OSError as error:
    print(host, 'outside', error.strerror)
if host == 'algo-1':
    with socket.create_server(('algo-1', 23456)) as listening:
        for _ in range(2):
            print('heard', listening.accept()[0].recv(100).decode())
else:
    while True:  # until algo-1 listens; if it fails, this host is ended
        try:
            socket.create_connection(('algo-1', 23456)).sendall(host.encode())
            break
        except ConnectionRefusedError:
            time.sleep(0.05)
"""
        )
        done = run(tmp_path, script, instance_count=3, request={"EnableNetworkIsolation": True})
    assert done.describe["TrainingJobStatus"] == "Completed", done.log
    lines = set(done.log.splitlines())
    assert {"heard algo-2", "heard algo-3"} <= lines
    for host in ("algo-1", "algo-2", "algo-3"):
        assert f"{host} interfaces ['lo']" in lines
        assert f"{host} refused ConnectionRefusedError" in lines
        assert f"{host} outside Network is unreachable" in lines


def test_an_isolated_job_whose_first_host_ends_at_once_still_has_its_others(tmp_path: Path) -> None:
    if not capabilities().network_isolation:
        pytest.skip(capabilities().explanation)
    for _ in range(3):
        done = run(tmp_path, "raise SystemExit(3)", instance_count=3, network_isolation=True)
        assert done.reason.endswith("exit code: 3")


def test_isolation_that_cannot_be_had_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPTML_NAMESPACES", "off")
    with pytest.raises(UserError, match="EnableNetworkIsolation cannot be had on this machine: no namespaces"):
        run(tmp_path, "pass", request={"EnableNetworkIsolation": True})
    if not capabilities().host_names:
        with pytest.raises(UserError, match=r"InstanceCount is 2, .*127\.0\.0\.2 algo-1"):
            optml.train(image="python", entrypoint=program(tmp_path, "pass"), instance_count=2, output=str(tmp_path))


# Odd machines, and what doctor says of them.


def test_a_full_disk_that_cannot_be_had_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPTML_NAMESPACES", "off")
    interruptions = InterruptionPlan(at_seconds=(1.0,), how=How.FULL_DISK)
    with pytest.raises(
        UserError, match=r"--how full-disk: a disk that can be full cannot be had here: .*no namespaces"
    ):
        run(tmp_path, checkpoint=str(tmp_path / "checkpoints"), interruptions=interruptions, name="refused")
    assert not JobDir.of("refused").root.exists()


@pytest.mark.usefixtures("level")
def test_every_process_of_a_host_may_be_told_to_end(tmp_path: Path) -> None:
    """With namespaces and without: also one that has left the session of its parent."""
    script = """
import signal, subprocess, sys, time
worker = "import signal, time; signal.signal(signal.SIGTERM, lambda *_: exit(print('heard', flush=True))); "
worker += "print('ready', flush=True); time.sleep(600)"
signal.signal(signal.SIGTERM, lambda *_: None)
workers = [subprocess.Popen([sys.executable, "-c", worker], start_new_session=True) for _ in range(2)]
[worker.wait() for worker in workers]
"""
    host = start_ready(tmp_path, script)
    assert eventually(lambda: log_of(tmp_path).count("ready") == 2)
    host.terminate(everyone=True)
    assert exit_code(host) == 0
    assert log_of(tmp_path).count("heard") == 2


def finding(subject: str) -> Finding:
    return next(each for each in examine() if each.subject == subject)


def test_doctor_says_what_namespaces_give_and_what_their_lack_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    if capabilities().own_opt_ml:
        assert "own /opt/ml" in finding("process backend").text
    monkeypatch.setenv("OPTML_NAMESPACES", "off")
    found = finding("process backend")
    assert found.works is False
    assert "own /opt/ml" not in found.text
    assert "OPTML_NAMESPACES=off" in found.remedy
    assert "127.0.0.2 algo-1" in found.remedy


def test_doctor_tells_of_a_jobs_folder_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPTML_HOME", "/proc/no/such/folder")
    found = finding("jobs folder")
    assert found.works is False
    assert "/proc/no/such/folder" in found.text
    assert "OPTML_HOME" in found.remedy
    assert finding("process backend").text, "the other checks are made all the same"


def test_doctor_tells_where_s3_is_and_with_whose_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "no credentials" in finding("S3").text
    assert "aws configure" in finding("S3").remedy
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "y")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    assert finding("S3").text == "credentials from env; endpoint http://127.0.0.1:9"


def test_a_home_that_cannot_be_written_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPTML_HOME")
    monkeypatch.setenv("HOME", "/proc")
    done = subprocess.run([OPTML, "train", "--", "true"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "set OPTML_HOME to a folder of yours" in done.stderr
    assert "Traceback" not in done.stderr


def in_another_mount_namespace(script: str) -> "subprocess.CompletedProcess[str]":
    """A shell that may change what it sees of the machine, and nothing else."""
    unshare = shutil.which("unshare")
    if unshare is None:
        pytest.skip("no unshare program")
    command = [
        unshare,
        *([] if os.geteuid() == 0 else ["--user", "--map-root-user"]),
        "--mount",
        "--propagation",
        "private",
    ]
    if subprocess.run([*command, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no mount namespace here")
    return subprocess.run(
        [*command, "sh", "-euc", script], capture_output=True, text=True, check=False, timeout=2 * PATIENCE_SECONDS
    )


def test_an_opt_ml_of_the_machines_own_is_neither_seen_nor_touched() -> None:
    done = in_another_mount_namespace(
        f"""
        mount -t tmpfs tmpfs /opt
        mkdir -p /opt/ml/model /opt/other
        echo machine >/opt/ml/model/mine
        echo other >/opt/other/file
        {OPTML} train -- sh -c 'cd ${{SAGEMAKER_BASE_DIR:-/opt/ml}}; ls model; echo job >model/new; cat /opt/other/file'
        find /opt -type f
        """
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "algo-1 | other" in done.stdout
    assert "algo-1 | mine" not in done.stdout
    assert sorted(line for line in done.stdout.splitlines() if line.startswith("/opt/")) == [
        "/opt/ml/model/mine",
        "/opt/other/file",
    ]


def test_a_machine_without_opt_is_told_how_to_have_one(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    done = in_another_mount_namespace(
        f"""
        mount -t tmpfs tmpfs {root}
        cd /
        for each in *; do
            case $each in
                opt) continue ;;
            esac
            if [ -L "$each" ]; then cp -P "$each" {root}/; elif [ -d "$each" ]; then
                mkdir {root}/"$each"
                mount --rbind "$each" {root}/"$each"
            fi
        done
        chroot {root} {OPTML} doctor
        chroot {root} {OPTML} train -- sh -c 'echo here: $SAGEMAKER_BASE_DIR'
        """
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "/opt does not exist; as root, `mkdir /opt`" in done.stdout
    assert "algo-1 | here: /" in done.stdout
