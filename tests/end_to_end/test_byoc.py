"""Images of one's own: the two in scripts/examples/byoc, built as their first line says and trained as their second line says."""

import json
import os
import random
import shlex
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

import optml
from optml.engine import connect
from optml.images import BASE_IMAGE_VARIABLE

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "scripts" / "examples"
pytestmark = pytest.mark.docker


@pytest.fixture
def request_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, docker_image: Callable[[str], str]
) -> Callable[[str], Path]:
    """Builds an example's image and gives its request; the current folder has the data."""
    monkeypatch.chdir(tmp_path)
    base = os.environ.get(BASE_IMAGE_VARIABLE) or docker_image("python")
    (tmp_path / "scripts").symlink_to(ROOT / "scripts")
    draw = random.Random(3)
    rows = [f"{label},{label + draw.gauss(0, 0.2):.3f},{draw.random():.3f}" for label in (0, 1, 1) for _ in range(20)]
    draw.shuffle(rows)
    for file, lines in {"train/part-0": rows[:15], "train/part-1": rows[15:40], "validation/part-0": rows[40:]}.items():
        path = tmp_path / "data" / f"{file}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines) + "\n")

    def build(name: str) -> Path:
        folder = EXAMPLES / "byoc" / name
        command, training = (line.removeprefix("# ") for line in (folder / "Dockerfile").read_text().splitlines()[:2])
        docker, verb, option, tag, context = shlex.split(command)
        assert (docker, verb, option) == ("docker", "build", "-t")
        connect().images.build(path=context, tag=tag, buildargs={"BASE_IMAGE": base}, rm=True)
        assert shlex.split(training) == ["optml", "train", f"{context}/request.json", "--backend", "docker"]
        return Path(context, "request.json")

    return build


def model(job: optml.Job, name: str) -> dict[str, object]:
    path = Path(str(job.model_data).removeprefix("file://"))
    with tarfile.open(path) as archive:
        file = archive.extractfile(name)
        assert file is not None
        found: dict[str, object] = json.load(file)
        return found


def test_an_image_of_ones_own_trains(request_of: Callable[[str], Path]) -> None:
    request = request_of("python")
    assert len((request.parent / "Dockerfile").read_text().splitlines()) < 15
    job = optml.train(request, backend="docker", logs=False)
    (metric,) = job.describe()["FinalMetricDataList"]
    assert metric["MetricName"] == "validation:accuracy"
    assert metric["Value"] > 0.9
    assert set(model(job, "centroids.json")) == {"scales", "centroids"}


def test_its_failure_file_is_the_reason(request_of: Callable[[str], Path]) -> None:
    with pytest.raises(optml.JobFailed, match="ValueError: could not convert string to float: 'two'"):
        optml.train(request_of("python"), backend="docker", hyperparameters={"power": "two"}, logs=False)


def test_it_need_not_be_python(request_of: Callable[[str], Path]) -> None:
    job = optml.train(request_of("shell"), backend="docker", logs=False)
    (metric,) = job.describe()["FinalMetricDataList"]
    assert 0.4 < metric["Value"] < 0.9  # two rows of three are ones
    assert model(job, "model.json") == {"answer": 1, "rows": 40}


def test_a_shell_script_hears_that_it_is_to_stop(request_of: Callable[[str], Path]) -> None:
    job = optml.train(request_of("shell"), backend="docker", hyperparameters={"pause": "600"}, wait=False)
    for _, lines in job.logs(follow=True):
        if any("read part-0.csv" in line for line in lines):
            break
    job.stop(wait=True)
    assert job.status == "Stopped"
    assert "told to stop" in "\n".join(line for _, lines in job.logs() for line in lines)
    assert model(job, "model.json")["rows"] == 15
