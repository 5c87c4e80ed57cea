"""optml_toolkit.distributed on processors over gloo and, with `scripts/test --gpu`, on GPUs over NCCL: the same scripts on both.

The expected numbers are those of one process on a processor.
"""

import importlib.util
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="needs pip install 'optml[pytorch]'")

from tests.ranks import Ranks, ran  # noqa: E402  (it is imported by the processes too)
from tests.training_scripts import PIPE, TRAIN, facts, furthest, losses, noise, steps, written  # noqa: E402

DEVICES = ["cpu", pytest.param("gpu", marks=pytest.mark.gpu)]
Run = Callable[..., Ranks]


@pytest.fixture(name="run_on")
def _run_on(request: pytest.FixtureRequest) -> Run:
    """`ran` on the device that the test asks for; skips where there are not so many."""
    device: str = request.getfixturevalue("device")

    def run_on(folder: Path, script: Path, *arguments: str, count: int) -> Ranks:
        need(device, count)
        return ran(folder, script, *arguments, count=count, gpus=device == "gpu")

    return run_on


def need(device: str, count: int) -> None:
    import torch

    if device == "gpu" and torch.cuda.device_count() < count:
        pytest.skip(f"needs {count} GPU{'s' if count > 1 else ''}, and there are {torch.cuda.device_count()}")


def ran_there(found: Path, device: str) -> bool:
    """Whether it was what the test was about: NCCL on a GPU, or gloo on a processor."""
    where = facts(found)
    return (where["device"], where["backend"]) == (("cuda", "nccl") if device == "gpu" else ("cpu", "gloo"))


@pytest.fixture(name="script", scope="module")
def _script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("script"), TRAIN)


@pytest.fixture(name="expected", scope="module")
def _expected(tmp_path_factory: pytest.TempPathFactory, script: Path) -> Path:
    folder = tmp_path_factory.mktemp("expected")
    ran(folder, script, "--plain", "--steps", "8", "--out", str(folder / "out"), count=1)
    return folder / "out"


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", ["data parallel", "sharded"])
@pytest.mark.parametrize("count", [1, 2])
def test_a_resumed_run_has_the_weights_and_gradients_of_one_process(
    tmp_path: Path, script: Path, expected: Path, run_on: Run, *, kind: str, count: int, device: str
) -> None:
    out, shards = tmp_path / "out", ("--sharded",) if kind == "sharded" else ()
    for upto in ("5", "8"):
        options = ("--plain", *shards, "--steps", upto, "--dir", str(tmp_path / "checkpoints"), "--out", str(out))
        done = run_on(tmp_path / upto, script, *options, count=count)
        if upto == "5":
            assert furthest(Path(f"{out}-model"), Path(f"{expected}-model"), "gradients") < 1e-9
    assert "Resumed from step 5" in done.log()
    assert ran_there(Path(f"{out}-model"), device)
    assert furthest(Path(f"{out}-model"), Path(f"{expected}-model")) < 1e-9
    assert losses(out, ranks=count) == pytest.approx(losses(expected, ranks=1), rel=1e-9)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("schedule", ["1f1b", pytest.param("zbv", marks=pytest.mark.slow)])
def test_a_pipeline_trains_evaluates_and_goes_on_in_one_process(
    tmp_path: Path, run_on: Run, schedule: str, device: str
) -> None:
    script, out = written(tmp_path, PIPE), tmp_path / "out"
    ran(tmp_path / "one", script, "--clip", "0.1", "--out", str(tmp_path / "straight"), count=1)
    for number, (count, pipe, upto) in enumerate(((2, 2, "4"), (1, 1, "6"))):
        options = ("--pipe", str(pipe), "--schedule", schedule, "--clip", "0.1", "--steps", upto)
        folder = str(tmp_path / "checkpoints")
        done = run_on(tmp_path / upto, script, *options, "--dir", folder, "--out", str(out), count=count)
        assert ran_there(out, device)
        assert ("Resumed from step 4" in done.log()) == bool(number)
    assert furthest(out, tmp_path / "straight") < 1e-9
    assert facts(out)["evaluated"] == pytest.approx(facts(tmp_path / "straight")["evaluated"], rel=1e-6)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", ["data parallel", pytest.param("sharded", marks=pytest.mark.slow)])
def test_a_save_beside_the_training_holds_its_own_step(
    tmp_path: Path, script: Path, run_on: Run, *, kind: str, device: str
) -> None:
    """Of 0.6 MB in float64 each: weights that the optimiser changed while they were copied would end elsewhere."""
    folder, out = tmp_path / "checkpoints", tmp_path / "out"
    options = ["--plain", "--width", "8000", "--every", "4", "--out", str(out)]
    options += ["--sharded"] if kind == "sharded" else []
    run_on(tmp_path / "first", script, *options, "--steps", "12", "--dir", str(folder), count=1)
    shutil.copy(f"{out}-model", tmp_path / "straight")
    for step in (8, 12):
        shutil.rmtree(folder / f"step-{step:09d}")
    done = run_on(tmp_path / "again", script, *options, "--steps", "12", "--dir", str(folder), count=1)
    assert "Resumed from step 4" in done.log()
    assert ran_there(tmp_path / "straight", device)
    assert furthest(Path(f"{out}-model"), tmp_path / "straight") < (1e-9 if device == "gpu" else 1e-300)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("count", [1, 2])
def test_random_numbers_of_every_kind_go_on(
    tmp_path: Path, script: Path, run_on: Run, *, count: int, device: str
) -> None:
    """Python's, numpy's and torch's on the device; dropout draws from the last."""
    run_on(tmp_path / "straight", script, "--steps", "8", "--out", str(tmp_path / "straight-out"), count=count)
    for upto in ("5", "8"):
        options = ("--steps", upto, "--dir", str(tmp_path / "checkpoints"), "--out", str(tmp_path / "out"))
        run_on(tmp_path / upto, script, *options, count=count)
    for rank in range(count):
        found = noise(tmp_path / "out", rank)
        assert found == noise(tmp_path / "straight-out", rank)
        for kind in range(3):
            assert len({drawn[kind] for drawn in found.values()}) == 8
        if device == "cpu":
            assert steps(tmp_path / "out", rank) == steps(tmp_path / "straight-out", rank)
    furthest_apart = furthest(tmp_path / "out-model", tmp_path / "straight-out-model")
    assert furthest_apart < (1e-9 if device == "gpu" else 1e-300)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("kind", "count"),
    [("data parallel", 1), ("sharded", 1), ("sharded", 2), ("compressed", 2)],
    ids=str,
)
def test_bfloat16_trains_to_nearly_the_same_model(
    tmp_path: Path, script: Path, expected: Path, run_on: Run, *, kind: str, count: int, device: str
) -> None:
    how = {"data parallel": ["--bf16"], "sharded": ["--bf16", "--sharded"], "compressed": ["--compression", "bf16"]}
    out = tmp_path / "out"
    run_on(tmp_path, script, *how[kind], "--plain", "--steps", "8", "--out", str(out), count=count)
    assert ran_there(Path(f"{out}-model"), device)
    assert 1e-9 < furthest(Path(f"{out}-model"), Path(f"{expected}-model")) < 0.05
    assert losses(out, ranks=count) == pytest.approx(losses(expected, ranks=1), rel=0.05)
