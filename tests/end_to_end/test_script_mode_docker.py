"""Script mode in containers: the same scripts, the toolkit as process 1, code shown at /opt/ml/code."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.end_to_end.test_script_mode import LOOK, SAVES, stop_when
from tests.harness import Done, run
from tests.script_mode import source

pytestmark = [pytest.mark.docker, pytest.mark.slow]


@pytest.fixture(autouse=True)
def image(docker_image: Callable[[str], str]) -> str:
    """Built from this checkout."""
    return docker_image("scikit-learn")


def train(tmp_path: Path, files: dict[str, str], /, **shortcuts: Any) -> Done:
    arguments: dict[str, Any] = {
        "image": "scikit-learn",
        "entry_point": "train.py",
        "entrypoint": None,
        "backend": "docker",
    }
    return run(tmp_path, **(arguments | {"source_dir": source(tmp_path / "src", files)} | shortcuts))


def test_two_containers_run_a_script_that_writes_to_its_code(tmp_path: Path) -> None:
    text = "x; echo INJECTED > injected"
    code = LOOK + "open(host, 'w').close()\nprint('has', sorted(os.listdir()), flush=True)\n"
    done = train(tmp_path, {"train.py": code}, hyperparameters={"text": text, "layers": [1, 2]}, instance_count=2)
    assert done.failure is None, done.log
    saw = done.saw("algo-2")
    assert saw["argv"] == ["train.py", "--layers", "[1, 2]", "--text", text]
    assert json.loads(saw["environment"]["SM_HOSTS"]) == ["algo-1", "algo-2"]
    assert saw["environment"]["SM_FRAMEWORK_MODULE"] == "sagemaker_sklearn_container.training:main"
    assert "has ['algo-2', 'train.py']" in done.log
    assert [path.name for path in (tmp_path / "src").iterdir()] == ["train.py"]


@pytest.mark.parametrize("entry_point", ["train.py", "run.sh"])
def test_a_stopped_container_has_its_grace_to_save(tmp_path: Path, entry_point: str) -> None:
    stopper = stop_when("stopped", "BEGUN")
    files = {"train.py": SAVES, "run.sh": "python train.py"}
    done = train(tmp_path, files, entry_point=entry_point, name="stopped", grace_seconds=30.0)
    stopper.join()
    assert done.describe["TrainingJobStatus"] == "Stopped"
    assert "saved-0" in done.model
    assert done.log.count("told 0") == 1


def test_in_a_container_requirements_are_installed_and_the_reason_is_the_scripts(tmp_path: Path) -> None:
    from tests.containers.test_script_mode_requirements import WHEEL, make_wheel

    files = {
        "train.py": "import tiny_optml_test\nraise ValueError(tiny_optml_test.VALUE)\n",
        "requirements.txt": f"./{WHEEL}\n",
    }
    make_wheel(tmp_path / "src")
    done = train(tmp_path, files)
    assert done.reason.startswith("AlgorithmError: ValueError: 1 (train.py, line 2)\n"), done.log
    assert done.reason.endswith(", exit code: 1")
