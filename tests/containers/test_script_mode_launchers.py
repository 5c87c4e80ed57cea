"""Launchers by hand: torchrun, smdistributed, MPI, TensorFlow; and that what cannot be had is refused."""

import importlib.util
import json
import os
import shutil
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.script_mode import LOOK, Running, run, run_tree, source, tree

from optml_toolkit.container import Container, UserError
from optml_toolkit.script_mode import launchers
from optml_toolkit.script_mode.job import ScriptJob, read_job
from optml_toolkit.script_mode.user_code import Kind, UserCode

PYTORCH = "sagemaker_pytorch_container.training:main"
TENSORFLOW = "sagemaker_tensorflow_container.training:main"
needs_torch = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="needs pip install 'optml[pytorch]'")
PROGRAMS = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
needs_mpi = pytest.mark.skipif(
    shutil.which("mpirun", path=PROGRAMS) is None, reason="needs Open MPI: pip install 'optml[mpi]'"
)

# Prints what happens to each rank; rank 1 takes $SECONDS to save.
SLOW_TO_SAVE = r"""
import os, signal, sys, time
rank = os.environ["RANK"]
def told(number, frame):
    os.write(1, f"told {rank}\n".encode())
    time.sleep(float(os.environ["SECONDS"]) if rank == "1" else 1)
    os.write(1, f"saved {rank}\n".encode())
    sys.exit(0)
signal.signal(signal.SIGTERM, told)
os.write(1, b"BEGUN\n")
while True:
    time.sleep(0.05)
"""


def job_of(
    tmp_path: Path,
    *,
    hosts: tuple[str, ...] = ("algo-1",),
    current: str | None = None,
    module: str = PYTORCH,
    **parameters: Any,
) -> ScriptJob:
    given = {"sagemaker_program": "train.py"} | {f"sagemaker_{name}": value for name, value in parameters.items()}
    root = tree(
        tmp_path / "ml",
        hyperparameters={name: json.dumps(value) for name, value in given.items()},
        hosts=hosts,
        current=current or hosts[0],
    )
    return read_job(Container(root), {"SAGEMAKER_TRAINING_MODULE": module})


def script(tmp_path: Path, kind: Kind = Kind.SCRIPT, program: str = "train.py") -> UserCode:
    source(tmp_path / "code", {program: ""})
    return UserCode(folder=tmp_path / "code", program=program, kind=kind, shadowing=())


def launched(tmp_path: Path, job: ScriptJob) -> launchers.Launch:
    return launchers.launch(job, script(tmp_path), python="python3", arguments=["--lr", "1"])


def test_torchrun_meets_on_the_first_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """contract C77."""
    monkeypatch.setattr(launchers, "check_port", lambda *_: None)  # a job of another test may meet there at this moment
    job = job_of(tmp_path, hosts=("algo-1", "algo-2"), torch_distributed_enabled=True)
    started = launched(tmp_path, job)
    assert started.argv == (
        *("python3", "-m", "torch.distributed.run", "--nnodes", "2", "--nproc_per_node", "1"),
        *("--master_addr", "algo-1", "--master_port", "7777", "--node_rank", "0", "train.py", "--lr", "1"),
    )
    told = {"MASTER_ADDR": "algo-1", "MASTER_PORT": "7777", "NCCL_SOCKET_IFNAME": "lo", "GLOO_SOCKET_IFNAME": "lo"}
    assert told.items() <= started.environment.items()
    assert json.loads(json.dumps(job.distribution_groups)) == ["homogeneousCluster"]


def test_of_jobs_that_share_a_network_each_meets_at_ports_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked: list[int] = []
    monkeypatch.setattr(launchers, "check_port", lambda _job, port: checked.append(port))
    monkeypatch.setattr(launchers, "share_a_network", lambda _hosts: True)
    job = job_of(tmp_path, hosts=("algo-1", "algo-2"), torch_distributed_enabled=True)
    (job.container.config_dir / "job-secret.json").write_text('{"secret": "x", "slot": 3}')
    started = launched(tmp_path, job)
    assert "7780" in started.argv
    assert started.environment["MASTER_PORT"] == "7780"
    mirrored = job_of(
        tmp_path / "tf", hosts=("algo-1", "algo-2"), module=TENSORFLOW, multi_worker_mirrored_strategy_enabled=True
    )
    (mirrored.container.config_dir / "job-secret.json").write_text('{"secret": "x", "slot": 3}')
    told = json.loads(launchers.tensorflow_environment(mirrored)["TF_CONFIG"])
    assert told["cluster"] == {"worker": ["algo-1:9190", "algo-2:9191"]}
    assert checked == [7780, 9190]


def test_torchruns_limit_is_lifted_whatever_the_image_says_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also for a shell script that calls torchrun, and unless the request has a limit of its own."""
    for module in ("", PYTORCH, "sagemaker_sklearn_container.training:main"):
        for enabled in (False, True):
            job = job_of(tmp_path, module=module, torch_distributed_enabled=enabled)
            assert launched(tmp_path, job).environment[launchers.TORCHRUN_TIMEOUT] == "86400"
    monkeypatch.setenv(launchers.TORCHRUN_TIMEOUT, "7")
    assert launchers.TORCHRUN_TIMEOUT not in launched(tmp_path, job_of(tmp_path)).environment


def test_processes_per_host_are_as_asked_for_else_one_per_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert launchers.processes_per_host(job_of(tmp_path)) == 1
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    assert launchers.processes_per_host(job_of(tmp_path)) == 3
    assert launchers.processes_per_host(job_of(tmp_path, mpi_num_of_processes_per_host=2)) == 2
    with pytest.raises(
        UserError, match=r"sagemaker_mpi_num_of_processes_per_host must be a whole number of at least 1, got 0"
    ):
        launchers.processes_per_host(job_of(tmp_path, mpi_num_of_processes_per_host=0))


def test_a_port_that_another_job_holds_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = job_of(tmp_path, hosts=("algo-1", "algo-2"), torch_distributed_enabled=True)
    with socket.create_server(("", 0)) as other:
        port = other.getsockname()[1]
        monkeypatch.setattr(launchers, "MASTER_PORT", port)
        expected = f"port {port} of algo-1, where the hosts of a job meet, cannot be had.*: --isolate-network"
        with pytest.raises(UserError, match=expected):
            launched(tmp_path, job)


@pytest.mark.parametrize("kind", [Kind.SHELL, Kind.MODULE, Kind.COMMAND])
def test_torch_distributed_takes_python_scripts_only_as_in_sagemaker(tmp_path: Path, kind: Kind) -> None:
    job = job_of(tmp_path, torch_distributed_enabled=True)
    with pytest.raises(UserError, match="torch_distributed runs a Python script"):
        launchers.launch(job, script(tmp_path, kind, "run"), python="python3", arguments=[])


def test_tensorflows_workers_are_told_of_each_other(tmp_path: Path) -> None:
    job = job_of(tmp_path, hosts=("algo-1", "algo-2"), module=TENSORFLOW, multi_worker_mirrored_strategy_enabled=True)
    started = launched(tmp_path, job)
    assert started.argv == ("python3", "train.py", "--lr", "1")
    assert json.loads(started.environment["TF_CONFIG"]) == {
        "cluster": {"worker": ["algo-1:8890", "algo-2:8890"]},
        "environment": "cloud",
        "task": {"index": 0, "type": "worker"},
    }


def test_tensorflows_workers_on_one_machine_have_a_port_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorFlow listens at a port of all addresses, whatever name it is told: hosts of one loopback would collide."""
    with socket.create_server(("", 0)) as other:
        taken = other.getsockname()[1]
    monkeypatch.setattr(launchers, "MIRRORED_PORT", taken - 1)
    hosts = ("127.0.0.2", "127.0.0.3")
    job = job_of(
        tmp_path, hosts=hosts, current=hosts[1], module=TENSORFLOW, multi_worker_mirrored_strategy_enabled=True
    )
    told = json.loads(launched(tmp_path, job).environment["TF_CONFIG"])
    assert told["cluster"] == {"worker": [f"127.0.0.2:{taken - 1}", f"127.0.0.3:{taken}"]}
    assert told["task"]["index"] == 1
    with socket.create_server(("", taken)):
        with pytest.raises(UserError, match=rf"port {taken} of 127\.0\.0\.3, where the hosts of a job meet"):
            launched(tmp_path, job)
        monkeypatch.setenv("TF_CONFIG", "{}")
        assert "TF_CONFIG" not in launched(tmp_path, job).environment, "the request's own value stays"


def test_a_host_outside_the_distribution_runs_the_script_plainly(tmp_path: Path) -> None:
    job = job_of(tmp_path, torch_distributed_enabled=True, distribution_instance_groups=["others"])
    assert launched(tmp_path, job).argv == ("python3", "train.py", "--lr", "1")


def test_a_pytorch_script_is_told_where_to_meet_even_without_a_distribution(tmp_path: Path) -> None:
    ran = run(tmp_path, variables={"SAGEMAKER_TRAINING_MODULE": PYTORCH, "NCCL_DEBUG": "INFO"})
    told = ran.saw["environment"]
    assert (told["MASTER_ADDR"], told["MASTER_PORT"]) == ("algo-1", "7777")
    assert told["NCCL_DEBUG"] == "INFO", "the request's own value stays"
    assert told["SM_FRAMEWORK_MODULE"] == PYTORCH


@pytest.mark.parametrize(
    ("module", "parameters", "told"),
    [
        (TENSORFLOW, {"parameter_server_enabled": True}, "Use multi_worker_mirrored_strategy"),
        (TENSORFLOW, {"distributed_dataparallel_enabled": True}, "Use multi_worker_mirrored_strategy"),
        (PYTORCH, {"pytorch_xla_multi_worker_enabled": True}, "Use torch_distributed"),
        (PYTORCH, {"multi_worker_mirrored_strategy_enabled": True}, "is TensorFlow's, and this is pytorch"),
    ],
)
def test_what_cannot_be_had_is_refused_with_what_to_use_instead(
    tmp_path: Path, module: str, parameters: dict[str, Any], told: str
) -> None:
    with pytest.raises(UserError, match=told):
        launched(tmp_path, job_of(tmp_path, module=module, **parameters))


def test_mpi_without_open_mpi_says_what_to_install(tmp_path: Path) -> None:
    bare = tmp_path / "bin" / "python"  # a Python that has no mpirun beside it
    bare.parent.mkdir()
    bare.symlink_to(sys.executable)
    root = tree(
        source(tmp_path / "ml" / "code", {"train.py": ""}).parent,
        hyperparameters={"sagemaker_program": "train.py", "sagemaker_mpi_enabled": "true"},
    )
    paths = os.pathsep.join(path for path in sys.path if path)
    ran = run_tree(root, python=str(bare), PATH="/nowhere", PYTHONPATH=paths)
    assert ran.exit_code == 1
    assert "distribution mpi needs Open MPI, and there is no mpirun on the PATH" in ran.first_line


@needs_mpi
@pytest.mark.slow
def test_mpi_starts_the_processes_asked_for(tmp_path: Path) -> None:
    code = """
        import os, sys
        open(os.path.join(os.environ["SM_MODEL_DIR"], os.environ["OMPI_COMM_WORLD_RANK"]), "w").write(sys.argv[2])
    """
    given = {"sagemaker_mpi_enabled": True, "sagemaker_mpi_num_of_processes_per_host": 2, "text": "x; echo INJECTED"}
    given["sagemaker_mpi_custom_mpi_options"] = "--oversubscribe"
    ran = run(tmp_path, {"train.py": code}, hyperparameters=given)
    assert ran.exit_code == 0, ran.log
    assert [(ran.root / "model" / rank).read_text() for rank in ("0", "1")] == ["x; echo INJECTED"] * 2


@needs_mpi
@pytest.mark.slow
def test_under_mpi_sigterm_reaches_every_rank_and_none_is_killed_before_it_has_finished(tmp_path: Path) -> None:
    """mpirun by itself kills a second after it has been told."""
    source(tmp_path / "ml" / "code", {"train.py": SLOW_TO_SAVE.replace("RANK", "OMPI_COMM_WORLD_RANK")})
    given = {
        "sagemaker_mpi_enabled": True,
        "sagemaker_mpi_num_of_processes_per_host": 2,
        "sagemaker_program": "train.py",
    }
    given["sagemaker_mpi_custom_mpi_options"] = "--oversubscribe"
    root = tree(tmp_path / "ml", hyperparameters={name: json.dumps(value) for name, value in given.items()})
    with Running(root, tmp_path / "log", SECONDS="5") as running:
        running.wait_for("BEGUN", times=2)
        running.process.terminate()
        ran = running.ended()
    assert [ran.log.count(f"{what} {rank}") for what in ("told", "saved") for rank in (0, 1)] == [1, 1, 1, 1], ran.log


# With the real torchrun.

TWO = {"sagemaker_torch_distributed_enabled": True, "sagemaker_mpi_num_of_processes_per_host": 2}


@needs_torch
@pytest.mark.slow
def test_every_rank_under_torchrun_gets_variables_and_exact_arguments(tmp_path: Path) -> None:
    text = "x; echo INJECTED > injected"
    ran = run(
        tmp_path,
        hyperparameters={**TWO, "text": text, "layers": [1, 2]},
        variables={"SAGEMAKER_TRAINING_MODULE": PYTORCH},
    )
    assert ran.exit_code == 0, ran.log
    for rank in (0, 1):
        saw = ran.saw_by(rank)
        assert saw["argv"] == ["train.py", "--layers", "[1, 2]", "--text", text]
        assert (saw["environment"]["RANK"], saw["environment"]["WORLD_SIZE"]) == (str(rank), "2")
        assert saw["environment"]["SM_HP_TEXT"] == text
    assert not list(ran.root.rglob("injected"))


@needs_torch
@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "exit_code", "told"),
    [
        ("if rank == 1: raise ValueError('bad batch')", 1, "ValueError: bad batch (train.py, line 3)"),
        ("if rank == 1: sys.exit(3)", 3, "train.py ended with exit code 3"),
        ("if rank == 1: os.kill(os.getpid(), 9)", 137, "train.py was killed (SIGKILL, exit code 137)"),
    ],
)
def test_under_torchrun_the_ranks_own_exception_and_exit_code_are_told(
    tmp_path: Path, code: str, exit_code: int, told: str
) -> None:
    files = {"train.py": f"import os, sys, time\nrank = int(os.environ['RANK'])\n{code}\ntime.sleep(60)\n"}
    ran = run(tmp_path, files, hyperparameters=TWO, variables={"SAGEMAKER_TRAINING_MODULE": PYTORCH})
    assert ran.exit_code == exit_code, ran.log
    assert ran.first_line.startswith(told)


@needs_torch
@pytest.mark.slow
def test_under_torchrun_sigterm_reaches_every_rank_once_and_none_is_killed_before_it_has_finished(
    tmp_path: Path,
) -> None:
    """torchrun by itself kills after 30 s."""
    source(tmp_path / "ml" / "code", {"train.py": SLOW_TO_SAVE})
    root = tree(
        tmp_path / "ml",
        hyperparameters={"sagemaker_program": "train.py", **{name: json.dumps(value) for name, value in TWO.items()}},
    )
    with Running(root, tmp_path / "log", SAGEMAKER_TRAINING_MODULE=PYTORCH, SECONDS="33") as running:
        running.wait_for("BEGUN", times=2)
        running.process.terminate()
        ran = running.ended()
    assert [ran.log.count(f"{what} {rank}\n") for what in ("told", "saved") for rank in (0, 1)] == [1, 1, 1, 1]
    assert ran.failure == ""


@needs_torch
@pytest.mark.slow
def test_a_script_for_smdistributed_runs_unchanged_and_is_told_on_what(tmp_path: Path) -> None:
    code = """
        import os
        import torch
        import torch.distributed as dist
        import smdistributed.dataparallel.torch.torch_smddp
        from torch.nn.parallel import DistributedDataParallel
        dist.init_process_group(backend="smddp")
        model = DistributedDataParallel(torch.nn.Linear(2, 1, bias=False))
        model(torch.ones(1, 2) * (dist.get_rank() + 1)).sum().backward()
        total = torch.tensor([dist.get_rank() + 1.0])
        dist.all_reduce(total)
        open(os.path.join(os.environ["SM_MODEL_DIR"], str(dist.get_rank())), "w").write(
            f"{dist.get_backend()} {total.item()} {model.module.weight.grad.tolist()}"
        )
        dist.destroy_process_group()
    """
    given = {"sagemaker_distributed_dataparallel_enabled": True, "sagemaker_mpi_num_of_processes_per_host": 2}
    ran = run(tmp_path, {"train.py": code}, hyperparameters=given, variables={"SAGEMAKER_TRAINING_MODULE": PYTORCH})
    assert ran.exit_code == 0, ran.log
    assert [(ran.root / "model" / rank).read_text() for rank in ("0", "1")] == ["smddp 3.0 [[1.5, 1.5]]"] * 2
    assert "uses PyTorch's gloo backend here" in ran.log


@needs_torch
@pytest.mark.slow
def test_pytorchddp_runs_under_torchrun(tmp_path: Path) -> None:
    given = {"sagemaker_pytorch_ddp_enabled": True, "sagemaker_mpi_num_of_processes_per_host": 2}
    ran = run(tmp_path, {"train.py": LOOK}, hyperparameters=given, variables={"SAGEMAKER_TRAINING_MODULE": PYTORCH})
    assert ran.exit_code == 0, ran.log
    assert ran.saw_by(1)["environment"]["WORLD_SIZE"] == "2"
    assert os.environ.get("WORLD_SIZE") is None
