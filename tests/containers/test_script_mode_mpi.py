"""MPI by hand: mpirun's command and its options, and how hosts meet, with real sockets and the real agent."""

import contextlib
import json
import os
import secrets
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.containers.test_script_mode_launchers import PROGRAMS, job_of, launched, needs_mpi, script
from tests.script_mode import Ran, run_tree, source, tree

from optml_toolkit.container import Container, UserError
from optml_toolkit.script_mode import mpi_daemons, mpi_hosts, mpi_meeting
from optml_toolkit.script_mode.job import ScriptJob, read_job
from optml_toolkit.script_mode.mpi import usable_interfaces

TWO = ("localhost", "algo-2")  # the first must be found by name on the machine that runs the tests
needs_network = pytest.mark.skipif(usable_interfaces() == [], reason="needs a network interface beside the loopback")

BASH = (
    "PRTE_PREFIX=/opt/mpi;export PRTE_PREFIX;LD_LIBRARY_PATH=/opt/mpi/lib:$LD_LIBRARY_PATH;export LD_LIBRARY_PATH;"
    '/opt/mpi/bin/prted --prtemca ess "env" --prtemca prte_hnp_uri "optml-1.0;tcp://10.0.0.2,10.0.0.3:45555:24"'
)
PRTED = [
    "/opt/mpi/bin/prted",
    "--prtemca",
    "ess",
    "env",
    "--prtemca",
    "prte_hnp_uri",
    "optml-1.0;tcp://10.0.0.2,10.0.0.3:45555:24",
]


@pytest.fixture(autouse=True)
def programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of this Python's environment are found, also where it is not activated."""
    monkeypatch.setenv("PATH", PROGRAMS)


# The command.


@needs_mpi
@needs_network
def test_mpirun_starts_all_processes_of_all_hosts_c78(tmp_path: Path) -> None:
    job = job_of(tmp_path, hosts=("algo-1", "algo-2"), mpi_enabled=True, mpi_num_of_processes_per_host=3)
    started = launched(tmp_path, job)
    # This machine is not called algo-1; where a host is, mpirun knows it by that name.
    assert started.argv[1:6] == ("--host", "localhost:3,algo-2:3", "-np", "6", "--tag-output")
    assert started.argv[-3:] == ("train.py", "--lr", "1")
    assert started.environment["OMPI_MCA_btl_tcp_if_include"] == "lo", "the interface of resourceconfig.json"


@needs_mpi
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("-x A=1 --mca btl ^openib", ("-x", "A=1", "--mca", "btl", "^openib")),
        ("-x TEXT='a b'", ("-x", "TEXT=a b")),
        ("--NCCL_DEBUG WARN -x A", ("-x", "NCCL_DEBUG=WARN", "-x", "A")),
        ("--NCCL_DEBUG=WARN", ("-x", "NCCL_DEBUG=WARN")),
        ("", ()),
    ],
)
def test_options_of_mpirun_are_given_to_it(tmp_path: Path, options: str, expected: tuple[str, ...]) -> None:
    argv = launched(tmp_path, job_of(tmp_path, mpi_enabled=True, mpi_custom_mpi_options=options)).argv
    begin = argv.index("none") + 1
    assert argv[begin : begin + len(expected)] == expected
    assert argv[begin + len(expected)].endswith("python3"), "and nothing else"


@needs_mpi
@pytest.mark.parametrize(
    ("parameters", "told"),
    [
        (
            {"mpi_custom_mpi_options": "--hostfile hosts"},
            "cannot have --hostfile: the hosts are those of ResourceConfig",
        ),
        ({"mpi_custom_mpi_options": "-np 3"}, "cannot have -np: use processes_per_host or sagemaker_mpi_num_processes"),
        ({"mpi_custom_mpi_options": "--mca plm_rsh_agent ssh"}, "cannot have plm_rsh_agent: daemons are started"),
        ({"mpi_custom_mpi_options": "-x A='1"}, "must be options of mpirun as in a shell, got"),
        ({"mpi_custom_mpi_options": 5}, "must be options of mpirun as in a shell, got 5"),
        ({"mpi_custom_mpi_options": "--NCCL_DEBUG"}, "--NCCL_DEBUG needs a value"),
        ({"mpi_num_processes": 0}, "sagemaker_mpi_num_processes must be a whole number of at least 1, got 0"),
    ],
)
def test_options_that_contradict_the_job_are_refused_by_name(
    tmp_path: Path, parameters: dict[str, Any], told: str
) -> None:
    with pytest.raises(UserError, match=rf"HyperParameters\.sagemaker_mpi_.*{told}|HyperParameters\.{told}"):
        launched(tmp_path, job_of(tmp_path, mpi_enabled=True, **parameters))


@needs_mpi
def test_a_number_of_processes_that_hosts_do_not_divide_fits_on_them(tmp_path: Path) -> None:
    argv = launched(tmp_path, job_of(tmp_path, mpi_enabled=True, mpi_num_processes=5)).argv
    assert argv[2:5] == ("localhost:5", "-np", "5")


def test_an_open_mpi_that_is_too_old_for_several_hosts_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mpirun = tmp_path / "bin" / "mpirun"
    mpirun.parent.mkdir()
    mpirun.write_text("#!/bin/sh\necho 'mpirun (Open MPI) 4.1.4'\n")
    mpirun.chmod(0o755)
    monkeypatch.setenv("PATH", f"{mpirun.parent}:/usr/bin:/bin")
    job = job_of(tmp_path, hosts=("algo-1", "algo-2"), mpi_enabled=True)
    with pytest.raises(
        UserError, match=r"needs Open MPI 5 or newer, and .*/mpirun is mpirun \(Open MPI\) 4\.1\.4: pip install"
    ):
        launched(tmp_path, job)


@pytest.mark.parametrize("command", [BASH, f"( test ! -r ./.profile || . ./.profile; {BASH} )"], ids=["bash", "sh"])
def test_the_daemon_is_found_in_what_mpirun_would_have_a_remote_shell_do(command: str) -> None:
    argv, variables = mpi_daemons.daemon_of(command, {"LD_LIBRARY_PATH": "/mine"})
    assert argv == PRTED
    assert variables == {"PRTE_PREFIX": "/opt/mpi", "LD_LIBRARY_PATH": "/opt/mpi/lib:/mine"}
    assert mpi_daemons.daemon_of(command, {})[1]["LD_LIBRARY_PATH"] == "/opt/mpi/lib"


@pytest.mark.parametrize("command", ["touch /tmp/x", "", "echo prted-not", "sh -c 'touch x; prted'"])
def test_nothing_but_the_daemon_is_run(command: str) -> None:
    with pytest.raises(ValueError, match="something that is not prted"):
        mpi_daemons.daemon_of(command, {})


# How the hosts meet.


@pytest.fixture
def job(tmp_path: Path) -> ScriptJob:
    """Two hosts of which this machine is both; with a secret of their own, and so a port."""
    job = job_of(tmp_path, hosts=TWO, mpi_enabled=True)
    file = job.container.config_dir / "job-secret.json"
    file.write_text(json.dumps({"secret": secrets.token_hex(16)}))
    resources = {**job.resource_config, "current_host": "localhost"}
    file.with_name("resourceconfig.json").write_text(json.dumps(resources))
    return job_again(job)


def job_again(job: ScriptJob, current: str = "localhost") -> ScriptJob:
    from dataclasses import replace

    return replace(job, resource_config={**job.resource_config, "current_host": current})


@pytest.fixture
def first(job: ScriptJob, tmp_path: Path) -> Iterator[mpi_hosts.FirstHost]:
    with mpi_hosts.FirstHost(job, script(tmp_path), "python3") as first:
        yield first


@contextlib.contextmanager
def other_host(
    job: ScriptJob, *, secret: bytes | None = None, **differently: str
) -> Iterator[tuple[mpi_meeting.Connection, str | None]]:
    """What another host says, who may be a stranger. Gives its connection, and why it was refused, if so."""
    known = mpi_meeting.secret_of(job)
    with socket.create_connection(("localhost", mpi_meeting.port_of(known)), timeout=10) as raw:
        connection = mpi_meeting.Connection(raw)
        mine = secrets.token_hex(16)
        connection.send(nonce=mine)
        told = connection.receive(10)
        assert told is not None
        assert told["proof"] == mpi_meeting.proof(known, "first", mine, told["nonce"]), (
            "the first host knows the secret"
        )
        told_by_us = {
            "host": "algo-2",
            "hostname": "elsewhere",
            "folder": str(job.container.code_dir),
            "python": "python3",
        } | differently
        connection.send(
            proof=mpi_meeting.proof(secret or known, "other", mine, told["nonce"]),
            **told_by_us,
        )
        answer = connection.receive(10)
        yield connection, None if answer is None else answer["refused"]
        connection.close()


@contextlib.contextmanager
def patiently_another_host(job: ScriptJob, **differently: str) -> Iterator[tuple[mpi_meeting.Connection, str | None]]:
    """The same, as soon as the first host listens."""
    deadline = time.monotonic() + 60
    while True:
        try:
            socket.create_connection(("localhost", mpi_meeting.port_of(mpi_meeting.secret_of(job)))).close()
            break
        except OSError:
            assert time.monotonic() < deadline, "the first host does not listen"
            time.sleep(0.05)
    with other_host(job, secret=None, **differently) as met:
        yield met


def test_a_host_that_never_comes_is_named(first: mpi_hosts.FirstHost) -> None:
    with pytest.raises(
        UserError, match=r"^algo-2 never came up: nothing heard within 0 s, and distribution mpi needs every host"
    ):
        first.wait(0.3)


def test_a_first_host_that_never_comes_is_named(job: ScriptJob, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"^localhost never came up: nothing heard within 0 s, and it is where mpirun runs"
    ):
        mpi_daemons.join(
            job_again(job, "algo-2"),
            script(tmp_path),
            python="python3",
            secret=mpi_meeting.secret_of(job),
            wait_seconds=0.3,
        )


def test_one_who_does_not_know_the_secret_is_not_taken_for_a_host(job: ScriptJob, first: mpi_hosts.FirstHost) -> None:
    with other_host(job, secret=b"guessed") as (_, refused):
        assert refused is None, "hung up on"
    with socket.create_connection(("localhost", mpi_meeting.port_of(mpi_meeting.secret_of(job))), timeout=10) as raw:
        raw.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert raw.recv(100) == b""
    with pytest.raises(UserError, match="algo-2 never came up"):
        first.wait(0.3)


def test_a_first_host_that_does_not_know_the_secret_is_told_nothing(job: ScriptJob, tmp_path: Path) -> None:
    """Whoever takes the port before the first host does."""
    heard: list[bytes] = []

    def impostor(server: socket.socket) -> None:
        connection, _ = server.accept()
        with connection, connection.makefile("rwb") as stream:
            heard.append(stream.readline())
            stream.write(json.dumps({"nonce": "1", "proof": "guessed"}).encode() + b"\n")
            stream.flush()
            heard.append(stream.readline())

    secret = mpi_meeting.secret_of(job)
    with socket.create_server(("127.0.0.1", mpi_meeting.port_of(secret))) as server:
        thread = threading.Thread(target=impostor, args=(server,))
        thread.start()
        raw = socket.create_connection(("127.0.0.1", mpi_meeting.port_of(secret)), timeout=10)
        connection = mpi_meeting.Connection(raw)
        taken = mpi_daemons.introduce(
            connection, job_again(job, "algo-2"), script(tmp_path), python="python3", secret=secret
        )
        connection.close()
        thread.join()
    assert taken is None
    assert json.loads(heard[0]).keys() == {"nonce"}
    assert heard[1] == b""


def test_on_a_shared_machine_a_secret_there_must_be(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"needs input/config/job-secret\.json, the same on each host"):
        mpi_meeting.secret_of(job_of(tmp_path, hosts=TWO, mpi_enabled=True))


@pytest.mark.parametrize(
    ("differently", "told"),
    [
        ({"hostname": socket.gethostname()}, "localhost and algo-2 are both called"),
        ({"folder": "/elsewhere"}, "on algo-2 the code is in /elsewhere, on localhost the code is in "),
        ({"python": "/usr/bin/python"}, "on algo-2 Python is /usr/bin/python, on localhost Python is python3"),
        ({"host": "algo-7"}, "algo-7 is not awaited here"),
    ],
)
def test_a_host_that_open_mpi_could_not_work_with_is_refused_on_both_sides(
    job: ScriptJob, first: mpi_hosts.FirstHost, tmp_path: Path, differently: dict[str, str], told: str
) -> None:
    given = {"folder": str(script(tmp_path).folder)} | differently
    with other_host(job, secret=None, **given) as (_, refused):
        assert refused is not None
        assert told in refused
    with pytest.raises(UserError, match=told):
        first.wait(10)


def test_what_mpirun_asks_of_another_host_is_done_there_and_its_exit_code_comes_back(
    job: ScriptJob, first: mpi_hosts.FirstHost, tmp_path: Path
) -> None:
    with other_host(job, folder=str(script(tmp_path).folder)) as (connection, refused):
        assert refused == ""
        first.wait(10)
        agent = subprocess.Popen(
            [*first.agent.split(), "algo-2", "A=1;export", "A;prted", "--x"], stdout=subprocess.PIPE
        )
        assert connection.receive(10) == {"run": "A=1;export A;prted --x"}
        agent.terminate()  # a signal of the job's is not for it
        connection.send(exit=7)
        assert agent.wait(10) == 7
        stranger = subprocess.run([*first.agent.split(), "algo-3", "prted"], check=False, timeout=10)
        assert stranger.returncode == 1
        assert agent.stdout is not None
        agent.stdout.close()
        first.exit_code = 5
        ending = threading.Thread(target=first.__exit__, args=(None, None, None))
        ending.start()
        assert connection.receive(10) == {"ended": 5}
        connection.send(bye=True)
        ending.join(10)
    assert first.trouble == ""


def test_a_host_that_goes_away_is_why_mpirun_fails(job: ScriptJob, first: mpi_hosts.FirstHost, tmp_path: Path) -> None:
    with other_host(job, folder=str(script(tmp_path).folder)) as (connection, _):
        first.wait(10)
        agent = subprocess.Popen([*first.agent.split(), "algo-2", "prted"])
        assert connection.receive(10) == {"run": "prted"}
    assert agent.wait(10) == 1
    assert first.trouble == "algo-2 went away before the program had ended"


def test_the_agent_is_started_by_its_path_and_alone(first: mpi_hosts.FirstHost) -> None:
    """So that a socket.py in the user's code is nothing to it; and what it connects to only this user can reach."""
    python, isolated, program, where = first.agent.split()
    assert (python, isolated) == (sys.executable, "-I")
    assert Path(program).name == "mpi_agent.py"
    assert Path(where).parent.stat().st_mode & 0o777 == 0o700


@needs_network
def test_a_lost_host_fails_the_job_even_if_mpirun_does_not_mind(tmp_path: Path) -> None:
    given = {"sagemaker_program": "train.py", "sagemaker_mpi_enabled": "true"}
    root = tree(tmp_path / "ml", hyperparameters=given, hosts=TWO, current="localhost")
    source(root / "code", {"train.py": ""})
    (root / "input" / "config" / "job-secret.json").write_text(json.dumps({"secret": secrets.token_hex(16)}))
    # Beside a Python of its own, for the first that is found counts.
    programs = {
        "mpirun": f"#!/bin/sh\n[ $1 = --version ] && exec echo 'mpirun (Open MPI) 5.0.9'\ntouch {tmp_path}/begun; exec sleep 1\n",
        "prted": "#!/bin/sh\n",
    }
    for name, text in programs.items():
        (source(tmp_path / "bin", {name: text}) / name).chmod(0o755)
    python = tmp_path / "bin" / "python"
    python.symlink_to(sys.executable)
    found: list[Ran] = []

    def first_host() -> None:
        paths = os.pathsep.join(path for path in sys.path if path)
        found.append(run_tree(root, python=str(python), PYTHONPATH=paths, SM_STUDIO_LOCAL_MODE="true"))

    running = threading.Thread(target=first_host)
    running.start()
    job = read_job(Container(root), {})
    folder = {"folder": str(job.container.code_dir), "python": str(python)}
    with patiently_another_host(job, **folder) as (_, refused):
        assert refused == ""
        while not (tmp_path / "begun").exists():
            assert running.is_alive()
            time.sleep(0.02)
    running.join(60)
    assert found[0].exit_code == 1, found[0].log
    assert found[0].first_line == "algo-2 went away before the program had ended"
