"""AWS's own programs, fetched from the package index, run by optml without change: sagemaker-training, and the SDK's drivers.

sagemaker-training is also the judge of our toolkit: both run the same script on the same tree, and must tell it the same.
"""

import importlib.util
import json
import os
import secrets
import shutil
import subprocess
import sys
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.harness import Done, capabilities, run
from tests.hosts import PATIENCE_SECONDS
from tests.script_mode import LOOK, environment_for, run_tree, source, tree
from tests.shared_folders import SharedFolder

pytestmark = pytest.mark.slow

HYPERPARAMETERS = {
    "batch-size": 256, "lr": 0.1, "flag": True, "layers": [1, 2, 3], "name": "hello", "text": "x; echo INJECTED > injected",
    "none": None, "nested": {"b": True, "a": 1}, "k": 5, "accent": "café", "empty": "", "a b": 1, "big": 12345678901234567890,
    "number": "1e3", "sagemaker_program": "train.py", "sagemaker_region": "eu-west-1", "sagemaker_job_name": "by-hand",
    "sagemaker_container_log_level": 20, "sagemaker_instance_type": "ml.c5.xlarge", "_tuning_objective_metric": "acc",
}  # fmt: skip


PIP = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]


@pytest.fixture(scope="session")
def awss_wheels(shared_folder: Callable[[str], SharedFolder]) -> Path:
    """sagemaker-training and all that it needs; it is compiled when its wheel is made, for which an image has no compiler."""
    with shared_folder("sagemaker-training-wheels") as folder:
        if not any(folder.path.iterdir()):
            make = [*PIP, "wheel", "--wheel-dir", str(folder.path), "sagemaker-training>=5.1.4"]
            made = subprocess.run(make, capture_output=True, text=True, check=False)
            if made.returncode:
                pytest.skip(f"sagemaker-training cannot be fetched here: {made.stderr.strip()[-500:]}")
        return folder.path


@pytest.fixture(scope="session")
def awss_train(awss_wheels: Path, shared_folder: Callable[[str], SharedFolder]) -> Path:
    """Its `train` program, in a virtual environment that has nothing of ours."""
    with shared_folder("sagemaker-training") as folder:
        train = folder.path / "bin" / "train"
        if not train.exists():
            venv.EnvBuilder(symlinks=True).create(folder.path)
            target = ["--python", str(folder.path / "bin" / "python"), "install", "--no-compile"]
            wheels = ["--no-index", "--find-links", str(awss_wheels), "sagemaker-training"]
            subprocess.run([*PIP, *target, *wheels], check=True)
        return train


def awss_run(train: Path, root: Path) -> dict[str, Any]:
    environment = environment_for(root, SM_STUDIO_LOCAL_MODE="true", AWS_REGION="us-east-1")
    done = subprocess.run(
        [str(train)], env=environment, capture_output=True, text=True, check=False, timeout=2 * PATIENCE_SECONDS
    )
    assert done.returncode == 0, done.stdout + done.stderr
    seen: dict[str, Any] = json.loads((root / "model" / "seen.json").read_text())
    return seen


def test_our_toolkit_tells_a_script_what_awss_tells_it(tmp_path: Path, awss_train: Path) -> None:
    folder = source(tmp_path / "src", {"train.py": LOOK})
    given = {**HYPERPARAMETERS, "sagemaker_submit_directory": str(folder)}
    root = tree(
        tmp_path / "ml",
        hyperparameters={key: json.dumps(value) for key, value in given.items()},
        channels=("train", "my-chan"),
    )
    theirs = awss_run(awss_train, root)
    for file in (root / "code").iterdir():
        file.unlink()
    ours = run_tree(root, SM_STUDIO_LOCAL_MODE="true", AWS_REGION="us-east-1").saw
    assert ours["argv"] == theirs["argv"]
    assert ours["cwd"] == theirs["cwd"]
    for told in (ours, theirs):
        told["environment"] = {
            name: value
            for name, value in told["environment"].items()
            if name.startswith(("SM_", "SAGEMAKER_")) or name == "CURRENT_HOST"
        }
    assert ours["environment"] == theirs["environment"]


def test_awss_toolkit_trains_as_a_job_with_code_of_this_machine(tmp_path: Path, awss_train: Path) -> None:
    """The image is the caller's Python; the program is AWS's `train`, which takes what lies at /opt/ml/code."""
    files = {"train.py": LOOK + "import os; print('accuracy=0.5 on', os.environ['SM_CHANNEL_TRAIN'])\n"}
    folder = source(tmp_path / "src", files)
    (tmp_path / "data.csv").write_text("1,2\n")
    done = run(
        tmp_path,
        image="python",
        entrypoint=[str(awss_train)],
        channels={"train": str(tmp_path / "data.csv")},
        hyperparameters={
            "sagemaker_program": '"train.py"',
            "sagemaker_submit_directory": json.dumps(str(folder)),
            "epochs": "3",
        },
        metrics={"accuracy": "accuracy=([0-9.]+)"},
        instance_count=2,
    )
    assert done.failure is None, done.log
    saw = json.loads(done.model["seen.json"])
    assert saw["argv"] == ["train.py", "--epochs", "3"]
    assert saw["environment"]["SM_HOSTS"] == '["algo-1","algo-2"]'
    assert done.describe["FinalMetricDataList"][0]["Value"] == 0.5
    assert os.listdir(folder) == ["train.py"]


def test_awss_toolkit_fails_a_job_in_its_own_words(tmp_path: Path, awss_train: Path) -> None:
    folder = source(tmp_path / "src", {"train.py": "raise ValueError('bad batch')"})
    done = run(
        tmp_path,
        image="python",
        entrypoint=[str(awss_train)],
        hyperparameters={"sagemaker_program": "train.py", "sagemaker_submit_directory": str(folder)},
    )
    assert "AlgorithmError: " in done.reason
    assert "ExecuteUserScriptError" in done.reason
    assert sys.executable not in done.reason


# Version 3 of the SDK brings its own drivers to any image, in channels.


@pytest.fixture(scope="session")
def drivers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The published sagemaker-train package, unpacked: its container_drivers need nothing else."""
    folder = tmp_path_factory.mktemp("sagemaker-train")
    fetch = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--disable-pip-version-check",
        "sagemaker-train",
    ]
    done = subprocess.run([*fetch, "--dest", str(folder)], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"sagemaker-train cannot be fetched here: {done.stderr.strip()[-500:]}")
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as content:
        content.extractall(folder / "unpacked")
    return folder / "unpacked" / "sagemaker" / "train"


def v3_channels(folder: Path, drivers: Path, *, distributed: dict[str, Any] | None = None) -> dict[str, str]:
    """What ModelTrainer uploads for a source_dir with an entry_script."""
    templates: dict[str, Any] = {}
    exec(compile((drivers / "templates.py").read_text(), "templates.py", "exec"), templates)
    if distributed is None:
        execute = templates["EXECUTE_BASIC_SCRIPT_DRIVER"]
    else:
        execute = templates["EXEUCTE_DISTRIBUTED_DRIVER"].format(
            driver_name="Torchrun", driver_script="torchrun_driver.py"
        )
    script = templates["TRAIN_SCRIPT_TEMPLATE"].format(
        working_dir="cd /opt/ml/input/data/code \n", install_requirements="", execute_driver=execute
    )
    shutil.copytree(drivers / "container_drivers", folder / "sm_drivers")
    described = {"source_dir": "src", "entry_script": "train.py"}
    (folder / "sm_drivers" / "sourcecode.json").write_text(json.dumps(described))
    (folder / "sm_drivers" / "distributed.json").write_text(json.dumps(distributed or {}))
    (folder / "sm_drivers" / "sm_train.sh").write_text(script)
    return {"sm_drivers": f"{folder}/sm_drivers/", "code": f"{folder}/src/"}


START = "chmod +x /opt/ml/input/data/sm_drivers/sm_train.sh && /opt/ml/input/data/sm_drivers/sm_train.sh"


def v3_run(tmp_path: Path, drivers: Path, code: str, **more: Any) -> Done:
    if not capabilities().own_opt_ml:
        pytest.skip("the SDK's drivers take no other path than /opt/ml")
    source(tmp_path / "src", {"train.py": code})
    return run(
        tmp_path,
        image="python",
        entrypoint=["/bin/bash"],
        arguments=["-c", START],
        channels=v3_channels(tmp_path, drivers, distributed=more.pop("distributed", None)),
        hyperparameters={"lr": 0.1, "text": "x; echo INJECTED"},
        **more,
    )


def test_a_job_of_the_sdks_version_3_trains(tmp_path: Path, drivers: Path) -> None:
    """contract C76."""
    done = v3_run(tmp_path, drivers, LOOK)
    assert done.failure is None, done.log
    saw = json.loads(done.model["seen.json"])
    assert saw["argv"] == ["train.py", "--lr", "0.1", "--text", "x; echo INJECTED"]
    assert saw["environment"]["SM_SOURCE_DIR"] == "/opt/ml/input/data/code"
    assert saw["environment"]["SM_MASTER_ADDR"] == "algo-1"
    assert not (tmp_path / "sm_drivers" / "sm_train.sh").stat().st_mode & 0o111, "the caller's file stays as it is"


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="needs pip install 'optml[pytorch]'")
def test_two_hosts_of_the_sdks_version_3_meet_under_torchrun(tmp_path: Path, drivers: Path) -> None:
    code = """
        import os
        import torch
        import torch.distributed as dist
        dist.init_process_group("gloo")
        total = torch.tensor([dist.get_rank() + 1.0])
        dist.all_reduce(total)
        open(os.path.join(os.environ["SM_MODEL_DIR"], str(dist.get_rank())), "w").write(str(total.item()))
        dist.destroy_process_group()
    """
    isolated = {"network_isolation": True} if capabilities().network_isolation else {}
    done = v3_run(
        tmp_path,
        drivers,
        code,
        distributed={"process_count_per_node": 1},
        instance_count=2,
        environment={"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
        **isolated,
    )
    assert done.failure is None, done.log
    assert done.model == {"0": b"3.0", "1": b"3.0"}


@pytest.mark.docker
def test_an_image_with_awss_toolkit_trains_in_containers(
    tmp_path: Path, awss_wheels: Path, docker_image: Callable[[str], str]
) -> None:
    """As SageMaker's framework images are made: the toolkit brings `train`, and that is what runs."""
    from optml import engine
    from optml.images import BASE_IMAGE_VARIABLE

    docker_image("python")  # the base image is there
    base = os.environ.get(BASE_IMAGE_VARIABLE) or f"python:{sys.version_info[0]}.{sys.version_info[1]}-slim"
    shutil.copytree(awss_wheels, tmp_path / "image" / "wheels")
    install = "python -m pip install --no-cache-dir --no-compile --no-index --find-links /wheels sagemaker-training"
    # It calls `which`, which a base image made of this machine's Python lacks.
    which = (
        "command -v which || { printf '#!/bin/sh\\ncommand -v \"$1\"\\n' >/usr/local/bin/which "
        "&& chmod +x /usr/local/bin/which; }"
    )
    (tmp_path / "image" / "Dockerfile").write_text(f"FROM {base}\nCOPY wheels /wheels\nRUN {install}\nRUN {which}\n")
    client = engine.connect()
    tag = f"optml-test-sagemaker-training:{secrets.token_hex(4)}"
    built, _log = client.images.build(path=str(tmp_path / "image"), tag=tag, rm=True)
    try:
        folder = source(tmp_path / "src", {"train.py": LOOK})
        done = run(
            tmp_path,
            backend="docker",
            image=tag,
            entrypoint=None,
            instance_count=2,
            hyperparameters={
                "sagemaker_program": '"train.py"',
                "sagemaker_submit_directory": json.dumps(str(folder)),
                "epochs": "3",
            },
        )
        assert done.failure is None, done.log
        saw = json.loads(done.model["seen.json"])
        assert saw["argv"] == ["train.py", "--epochs", "3"]
        assert saw["environment"]["SM_HOSTS"] == '["algo-1","algo-2"]'
        assert os.listdir(folder) == ["train.py"]
    finally:
        client.images.remove(built.id, force=True)
