"""TensorFlow's example, on one host and on several: where TensorFlow is installed; in containers, where its image is built."""

import importlib.util
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.harness import Done, run

pytestmark = pytest.mark.slow

EXAMPLE = Path(__file__).resolve().parents[2] / "scripts" / "examples" / "tensorflow"

needs_tensorflow = pytest.mark.skipif(
    importlib.util.find_spec("tensorflow") is None, reason="needs pip install 'optml[tensorflow,scikit-learn]'"
)


def train(tmp_path: Path, *, hosts: int, **shortcuts: Any) -> Done:
    arguments: dict[str, Any] = {
        "image": "tensorflow",
        "entry_point": "train.py",
        "source_dir": EXAMPLE,
        "entrypoint": None,
        "hyperparameters": {"epochs": 2},
        "instance_count": hosts,
        "distribution": "multi_worker_mirrored_strategy" if hosts > 1 else None,
        "max_runtime": 1200,
    }
    done = run(tmp_path, **(arguments | shortcuts))
    assert done.failure is None, done.log
    return done


def said_by(done: Done, host: str) -> tuple[list[float], str]:
    """The losses of the epochs, and the digest of the weights."""
    text = "\n".join(line for each, part in done.job.logs() if each == host for line in part)
    (weights,) = re.findall("weights=(.*)", text)
    return [float(loss) for loss in re.findall(r"epoch=\d loss=(\S+)", text)], weights


def together(done: Done) -> list[float]:
    """The losses of two hosts, which have trained the same weights."""
    assert "replicas=2" in done.log
    assert said_by(done, "algo-1") == said_by(done, "algo-2")
    assert list(done.model) == ["digits.keras"]
    return said_by(done, "algo-1")[0]


@needs_tensorflow
def test_two_hosts_train_the_model_that_one_would(tmp_path: Path) -> None:
    losses, _ = said_by(one := train(tmp_path / "one", hosts=1), "algo-1")
    assert len(losses) == 2
    assert losses[1] < losses[0] / 2
    assert together(train(tmp_path / "two", hosts=2)) == pytest.approx(losses, abs=2e-3)
    (tmp_path / "digits.keras").write_bytes(one.model["digits.keras"])
    use = "import sys, tensorflow; print(tensorflow.keras.models.load_model(sys.argv[1]).output_shape)"
    command = [sys.executable, "-c", use, str(tmp_path / "digits.keras")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "(None, 10)\n"


@pytest.mark.docker
def test_two_containers_train_one_model(tmp_path: Path, docker_image: Callable[[str], str]) -> None:
    docker_image("tensorflow")
    losses = together(train(tmp_path, hosts=2, backend="docker"))
    assert losses[1] < losses[0] / 2
