"""MPI on two hosts through real jobs, as processes and in containers: row C78, and how such a job ends."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests import harness
from tests.containers_of_tests import OwnImages, own_images
from tests.end_to_end.test_script_mode import stop_when
from tests.harness import Done, run
from tests.script_mode import source

from optml_toolkit.script_mode.mpi import usable_interfaces

pytestmark = pytest.mark.slow

images = pytest.fixture(scope="module", name="own_image")(own_images)

# What each process sees of itself, of the others and of its host; written to the output of its own host.
LOOK = """
import json, os, socket, sys
from mpi4py import MPI
world = MPI.COMM_WORLD
total = world.allreduce(world.rank + 1)
names = {host: socket.gethostbyname(host) for host in json.loads(os.environ["SM_HOSTS"])}
seen = {
    "rank": world.rank, "size": world.size, "local rank": os.environ["OMPI_COMM_WORLD_LOCAL_RANK"], "total": total,
    "host": os.environ["SM_CURRENT_HOST"], "processor": MPI.Get_processor_name(), "argv": sys.argv, "names": names,
    "cwd": os.getcwd(), "level": os.environ.get("LEVEL"),
}
with open(os.path.join(os.environ["SM_OUTPUT_DATA_DIR"], f"{world.rank}.json"), "w") as file:
    json.dump(seen, file)
print(f"rank {world.rank} of {world.size} on {seen['host']}", flush=True)
"""

SAVES = r"""
import os, signal, sys, time
rank = os.environ["OMPI_COMM_WORLD_RANK"]
def told(number, frame):
    os.write(1, f"told {rank}\n".encode())
    time.sleep(5 if rank == "3" else 0.5)
    open(os.path.join(os.environ["SM_MODEL_DIR"], f"saved-{rank}"), "w").close()
    sys.exit(0)
signal.signal(signal.SIGTERM, told)
os.write(1, b"BEGUN\n")
while True:
    time.sleep(0.05)
"""


@pytest.fixture(params=["process", pytest.param("docker", marks=pytest.mark.docker)])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    name: str = request.param
    if name == "docker":
        request.getfixturevalue("docker_image")("pytorch")
    else:
        needs_open_mpi()
    monkeypatch.setattr(harness, "backend_in_use", name)
    return name


def needs_open_mpi() -> None:
    if shutil.which("mpirun", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}") is None:
        pytest.skip("needs Open MPI: pip install 'optml[mpi]'")
    if not harness.capabilities().own_opt_ml:
        pytest.skip("hosts of processes have no names of their own without namespaces")
    if usable_interfaces() == []:
        pytest.skip("Open MPI's daemons need a network interface beside the loopback")


def train(tmp_path: Path, code: str, /, **shortcuts: Any) -> Done:
    arguments: dict[str, Any] = {
        "image": "pytorch" if harness.backend_in_use == "docker" else "scikit-learn",
        "entry_point": "train.py",
        "entrypoint": None,
        "source_dir": source(tmp_path / "src", {"train.py": code}),
        "instance_count": 2,
        "distribution": {"mpi": {"enabled": True, "processes_per_host": 2, "custom_mpi_options": "-x LEVEL=high"}},
        "working_dir": None,
    }
    return run(tmp_path, **(arguments | shortcuts))


def test_mpirun_starts_processes_on_all_hosts_which_find_each_other_by_name_c78(tmp_path: Path, backend: str) -> None:
    """contract C78: np is hosts times processes, by one mpirun. Variables and folders are those of each one's own host."""
    del backend
    done = train(tmp_path, LOOK, hyperparameters={"text": "x; y"})
    assert done.failure is None, done.log
    assert "mpirun --host algo-1:2,algo-2:2 -np 4 " in done.log
    saw = [json.loads(done.output[f"{rank}.json"]) for rank in range(4)]
    assert [(each["rank"], each["size"], each["total"]) for each in saw] == [(rank, 4, 10) for rank in range(4)]
    assert [each["host"] for each in saw] == ["algo-1", "algo-1", "algo-2", "algo-2"]
    assert [each["processor"] for each in saw] == ["algo-1", "algo-1", "algo-2", "algo-2"]
    assert [each["local rank"] for each in saw] == ["0", "1", "0", "1"]
    assert all(each["names"].keys() == {"algo-1", "algo-2"} for each in saw)
    assert saw[3]["argv"] == ["train.py", "--text", "x; y"]
    assert {(each["cwd"], each["level"]) for each in saw} == {("/opt/ml/code", "high")}
    assert "rank 3 of 4 on algo-2" in done.log


def test_the_reason_is_the_exception_of_a_process_on_another_host(tmp_path: Path, backend: str) -> None:
    del backend
    code = "from mpi4py import MPI\nif MPI.COMM_WORLD.rank == 3:\n    raise ValueError('bad batch')\nMPI.COMM_WORLD.barrier()\n"
    done = train(tmp_path, code)
    assert done.reason.startswith("AlgorithmError: ValueError: bad batch (train.py, line 3)\n"), done.log
    assert done.reason.endswith(", exit code: 1")
    assert "algo-1 failed" not in done.reason


def test_an_exit_code_of_a_process_on_another_host_is_the_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "backend_in_use", "process")
    needs_open_mpi()
    code = (
        "import os, sys, time\nif os.environ['OMPI_COMM_WORLD_RANK'] == '2':\n    print('no room', file=sys.stderr)\n"
        "    sys.exit(3)\ntime.sleep(60)\n"
    )
    done = train(tmp_path, code)
    assert done.reason.startswith("AlgorithmError: train.py ended with exit code 3: no room\n"), done.log
    assert done.reason.endswith(", exit code: 3")


def test_a_stop_reaches_every_process_and_each_has_the_whole_grace(tmp_path: Path, backend: str) -> None:
    """mpirun by itself kills a second after it has been told; and its daemons on other hosts as soon as they are."""
    del backend
    stopper = stop_when("stopped", "BEGUN", times=4)
    done = train(tmp_path, SAVES, name="stopped", grace_seconds=60.0)
    stopper.join()
    assert done.describe["TrainingJobStatus"] == "Stopped"
    assert sorted(done.model) == [f"saved-{rank}" for rank in range(4)], done.log
    assert [done.log.count(f"told {rank}") for rank in range(4)] == [1, 1, 1, 1]


def test_where_there_is_only_the_loopback_mpi_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "backend_in_use", "process")
    needs_open_mpi()
    if not harness.capabilities().network_isolation:
        pytest.skip("this machine isolates no network")
    done = train(tmp_path, "", network_isolation=True)
    assert done.reason.startswith(
        "AlgorithmError: distribution mpi on several hosts needs a network interface beside the loop"
    )


@pytest.mark.docker
def test_any_user_may_be_the_one_that_mpi_runs_as(tmp_path: Path, docker_image: Callable[[str], str]) -> None:
    """One that the image's /etc/passwd does not know, which ssh would refuse. By hand: a job's containers run as the caller."""
    from optml import by_hand

    docker_image("pytorch")
    folder = tmp_path / "to"
    staged = by_hand.stage(
        to=folder,
        image="pytorch",
        entry_point="train.py",
        source_dir=source(tmp_path / "src", {"train.py": LOOK}),
        instance_count=2,
        distribution="mpi",
    )
    for path in [tmp_path, *tmp_path.parents[:2]]:
        path.chmod(path.stat().st_mode | 0o755)
    subprocess.run(["chmod", "-R", "a+rwX", folder], check=True)
    text = staged.commands.replace('"$(id -u):$(id -g)"', "54321:54321")
    assert "54321:54321" in text
    done = subprocess.run(["bash", "-c", text], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "rank 1 of 2 on algo-2" in done.stdout


@pytest.mark.docker
def test_a_server_of_the_images_own_on_port_22_is_reached_by_name_c78(tmp_path: Path, own_image: OwnImages) -> None:
    """What AWS's MPI toolkit, which starts sshd on every host, asks of a platform."""
    program = """
        import json, socket, sys
        here = json.load(open("/opt/ml/input/config/resourceconfig.json"))["current_host"]
        if here == "algo-2":
            with socket.create_server(("", 22)) as server:
                connection, _ = server.accept()
                connection.sendall(b"SSH-2.0-of the image's own")
                connection.close()
            sys.exit(0)
        for _ in range(300):
            try:
                with socket.create_connection(("algo-2", 22), timeout=10) as connection:
                    print("heard", connection.recv(100), flush=True)
                    break
            except OSError:
                import time
                time.sleep(0.1)
        else:
            sys.exit("algo-2:22 cannot be reached")
    """
    image = own_image('COPY train.py /train.py\nENTRYPOINT ["python", "/train.py"]', {"train.py": program})
    done = run(tmp_path, image=image, entrypoint=None, backend="docker", instance_count=2)
    assert done.failure is None, done.log
    assert 'heard b"SSH-2.0-of the image\'s own"' in done.log
