"""Script mode in containers: the same scripts, the toolkit as process 1, code shown at /opt/ml/code."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.end_to_end.test_script_mode import LOOK, SAVES, stop_when
from tests.harness import Done, run
from tests.script_mode import source

from optml.backends import backend_named
from optml.jobdir import optml_home

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


def test_a_script_that_was_killed_for_lack_of_memory_is_said_to_have_been(tmp_path: Path) -> None:
    """The toolkit outlives it, and sees that the kernel did it."""
    if not backend_named("docker").capabilities().memory_limit:
        pytest.skip("this engine cannot limit memory")
    done = train(tmp_path, {"train.py": "keep = b'x' * (1 << 30)"}, memory_bytes=128 << 20)
    assert done.reason.startswith("AlgorithmError: train.py was killed (SIGKILL, exit code 137) when memory ran out\n")


def test_in_containers_requirements_are_installed_once_for_the_same_code_and_seen_by_no_other(tmp_path: Path) -> None:
    from tests.containers.test_script_mode_requirements import WHEEL, make_wheel

    if not backend_named("docker").capabilities().views:
        pytest.skip("folders are kept where the engine is this machine's own")
    code = """
        import os, sys, tiny_optml_test
        print("value", tiny_optml_test.VALUE, os.path.relpath(tiny_optml_test.__file__, "/opt/ml/cache")[:12])
        cache = os.environ["SAGEMAKER_MANAGED_WARMPOOL_CACHE_DIRECTORY"]
        print("left by", sorted(name for name in os.listdir(cache) if name.startswith("job-")))
        open(f"{cache}/job-{os.environ['SM_CURRENT_HOST']}", "w").close()
    """

    def train_from(name: str, **shortcuts: Any) -> str:
        folder = source(tmp_path / name, {"train.py": code, "requirements.txt": f"./{WHEEL}\n"})
        if not (folder / WHEEL).exists():  # a second one is another, by its times
            make_wheel(folder, value=len(name))
        done = train(tmp_path, {}, source_dir=folder, **shortcuts)
        assert done.failure is None, done.log
        assert [path.name for path in done.folder.parent.rglob("job-*")] == []
        return done.log

    first = train_from("mine", instance_count=2)
    assert first.count("Requirements: installed") == 1
    assert first.count("Requirements: in place already") == 1
    assert first.count("value 4 environments") == 2
    again = train_from("mine")
    assert "Requirements: in place already" in again
    assert "pip install" not in again
    assert "left by ['job-algo-1', 'job-algo-2']" in again
    other = train_from("another")
    assert "Requirements: installed" in other
    assert "value 7 environments" in other
    assert "left by []" in other
    kept = optml_home() / "cache" / "containers"
    assert {path.lstat().st_uid for path in kept.rglob("*")} == {os.geteuid()}


def test_an_isolated_job_shares_no_folder(tmp_path: Path) -> None:
    from tests.containers.test_script_mode_requirements import WHEEL, make_wheel

    code = "import os, tiny_optml_test\nprint('cache', os.environ.get('SAGEMAKER_MANAGED_WARMPOOL_CACHE_DIRECTORY'))\n"
    make_wheel(tmp_path / "src")
    done = train(tmp_path, {"train.py": code, "requirements.txt": f"./{WHEEL}\n"}, network_isolation=True)
    assert done.failure is None, done.log
    assert "cache None" in done.log
    assert not (optml_home() / "cache" / "containers").exists()
