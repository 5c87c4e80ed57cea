"""Pipelines of optml_toolkit.distributed: parts of a step, the whole model's norm, evaluation in every schedule."""

import importlib.util
import json
import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="needs pip install 'optml[pytorch]'")

from tests.ranks import ran  # noqa: E402  (it is imported by the processes too)
from tests.training_scripts import PIPE, facts, furthest, written  # noqa: E402


@pytest.mark.parametrize(
    ("ranks", "pipe", "schedule"),
    [
        (2, 2, "1f1b"),
        *(
            pytest.param(*each, marks=pytest.mark.slow)
            for each in ((2, 2, "zbv"), (2, 2, "dualpipe-v"), (4, 2, "interleaved-zero-bubble"), (4, 4, "gpipe"))
        ),
    ],
)
def test_parts_add_up_and_the_whole_models_norm_is_clipped_as_in_a_single_process(
    tmp_path: Path, ranks: int, pipe: int, schedule: str
) -> None:
    script = written(tmp_path, PIPE)
    limit = 0.02
    ran(tmp_path / "one", script, "--clip", str(limit), "--out", str(tmp_path / "straight"), count=1)
    options = ["--clip", str(limit), "--accumulate", "2", "--pipe", str(pipe), "--schedule", schedule]
    ran(tmp_path / "many", script, *options, "--out", str(tmp_path / "out"), count=ranks)
    for what in ("weights", "gradients"):
        assert furthest(tmp_path / "out", tmp_path / "straight", what) < 1e-12
    found = facts(tmp_path / "out")
    squares = [value**2 for rows in found["gradients"].values() for value in flat(rows)]
    assert sum(squares) ** 0.5 == pytest.approx(limit, rel=1e-3)
    assert found["losses"] == pytest.approx(facts(tmp_path / "straight")["losses"], rel=1e-6)


def flat(value: object) -> list[float]:
    return [each for row in value for each in flat(row)] if isinstance(value, list) else [float(str(value))]


# Trains a step, looks, trains a step: with dropout and statistics, whose modes must be those of evaluation and then of training.
EVALUATE = """
import json, sys, torch
from torch import nn
from optml_toolkit import distributed

out, pipe, wanted = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
run = distributed.init(seed=1, pipe=pipe)

def network():
    layers = [each for _ in range(6) for each in (nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Dropout(0.5))]
    return nn.Sequential(*layers).double()

x = torch.randn(32, 8, generator=torch.Generator().manual_seed(0), dtype=torch.double)
found = {}
for each in wanted:
    schedule, _, stages = each.partition("/")
    torch.manual_seed(run.rank // pipe)
    pipeline = distributed.Pipeline(run, network(), loss=nn.functional.mse_loss, micro_batches=8, schedule=schedule,
                                    stages_per_rank=int(stages) if stages else None)
    optimizer = torch.optim.SGD(pipeline.module.parameters(), lr=0.1)
    if schedule == "gpipe" and pipe > 1:
        frozen = next(iter(pipeline.module.children())).eval()
    pipeline.step(x, x.flip(1)); optimizer.step(); optimizer.zero_grad()
    before = pipeline.full_state_dict()
    losses = [pipeline.evaluate(x[:rows], x.flip(1)[:rows]).item() for rows in (29, 3)]
    outputs = pipeline.predict(x[:29])
    if schedule == "gpipe" and pipe > 1:
        assert not frozen.training; frozen.train()
    assert all(layer.training for layer in pipeline.module.modules())
    assert all(parameter.grad is None for parameter in pipeline.module.parameters())
    after = pipeline.full_state_dict()
    pipeline.step(x, x.flip(1))
    assert any(parameter.grad is not None for parameter in pipeline.module.parameters())
    everyones = run.gather((run.data_rank, losses, None if outputs is None else outputs.tolist()))
    if run.first:
        whole = network()
        whole.load_state_dict(before)
        whole.eval()
        with torch.no_grad():
            expected = whole(x[:29])
            by_hand = [nn.functional.mse_loss(expected[:rows], x.flip(1)[:rows]).item() for rows in (29, 3)]
        copy = [(losses, outputs) for data_rank, losses, outputs in everyones if data_rank == 0]
        given = [torch.tensor(outputs, dtype=torch.double) for _, outputs in copy if outputs is not None]
        found[each] = {
            "losses": [losses for losses, _ in copy], "by hand": by_hand, "ranks with outputs": len(given),
            "furthest": (given[0] - expected).abs().max().item(),
            "kept": all(torch.equal(before[name], after[name]) for name in before),
        }
if run.first:
    with open(out, "w") as file:
        json.dump(found, file)
"""
ONE_STAGE, SEVERAL_STAGES = ("gpipe", "1f1b"), ("interleaved-1f1b", "looped-bfs", "interleaved-zero-bubble")
IN_V = ("zbv", "dualpipe-v")


@pytest.mark.parametrize(
    ("ranks", "pipe", "schedules"),
    [
        (2, 2, (*ONE_STAGE, *SEVERAL_STAGES, *IN_V, "looped-bfs/3")),
        pytest.param(1, 1, ("1f1b", "zbv"), marks=pytest.mark.slow),
        pytest.param(4, 2, ("1f1b", "zbv"), marks=pytest.mark.slow),
        pytest.param(4, 4, (*ONE_STAGE, *SEVERAL_STAGES, *IN_V), marks=pytest.mark.slow),
    ],
    ids=["two stages' ranks", "one process", "two copies", "four stages' ranks"],
)
def test_evaluation_gives_the_whole_models_loss_and_outputs_in_every_schedule(
    tmp_path: Path, ranks: int, pipe: int, schedules: tuple[str, ...]
) -> None:
    script = written(tmp_path, EVALUATE)
    ran(tmp_path, script, str(tmp_path / "out"), str(pipe), *schedules, count=ranks)
    found = json.loads((tmp_path / "out").read_text())
    assert list(found) == list(schedules)
    for each in found.values():
        assert len(each["losses"]) == pipe
        for losses in each["losses"]:
            assert losses == pytest.approx(each["by hand"], rel=1e-6)
        assert each["ranks with outputs"] == 1
        assert each["furthest"] < 1e-12
        assert each["kept"]


# What the stages keep besides parameters, and what is left of the random numbers.
STATISTICS = """
import json, sys, torch
from torch import nn
from optml_toolkit import distributed

out, pipe, schedule = sys.argv[1], int(sys.argv[2]), sys.argv[3]
run = distributed.init(seed=1, pipe=pipe)
network = nn.Sequential(*[each for _ in range(4) for each in (nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Tanh())]).double()
pipeline = distributed.Pipeline(run, network, loss=nn.functional.mse_loss, micro_batches=4, schedule=schedule)
x = torch.randn(32, 8, generator=torch.Generator().manual_seed(0), dtype=torch.double)
before = torch.get_rng_state()
for _ in range(2):
    pipeline.step(x, x.flip(1))
drawn = run.gather(not torch.equal(before, torch.get_rng_state()))
state = pipeline.full_state_dict()
if run.first:
    with open(out, "w") as file:
        json.dump({"drawn": drawn, "state": {name: value.tolist() for name, value in state.items()}}, file)
"""


@pytest.mark.parametrize("schedule", ["1f1b", pytest.param("zbv", marks=pytest.mark.slow)])
def test_statistics_are_the_single_processs_and_no_random_number_is_drawn_in_passing(
    tmp_path: Path, schedule: str
) -> None:
    """PyTorch runs the layers on memory that nobody has filled, to learn their shapes."""
    script = written(tmp_path, STATISTICS)
    found = []
    for pipe in (1, 2):
        ran(tmp_path / str(pipe), script, str(tmp_path / f"out-{pipe}"), str(pipe), schedule, count=pipe)
        found.append(json.loads((tmp_path / f"out-{pipe}").read_text()))
    alone, staged = (each["state"] for each in found)
    assert staged.keys() == alone.keys()
    for name, value in alone.items():
        if name.endswith("num_batches_tracked"):
            assert staged[name] == value == 8
        else:
            assert flat(staged[name]) == pytest.approx(flat(value), abs=1e-12), name
    assert not any(found[1]["drawn"])


# The last stage's rank takes its time over the loss; rank 0 has nothing to do meanwhile.
WAITING = """
import time, torch
from torch import nn
from torch.utils.data import TensorDataset
from optml_toolkit import distributed

run = distributed.init(seed=1, pipe=2)

def slow_loss(outputs, targets):
    time.sleep(0.05)
    return nn.functional.mse_loss(outputs, targets)

network = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
pipeline = distributed.Pipeline(run, network, loss=slow_loss, micro_batches=2, schedule="gpipe")
optimizer = torch.optim.SGD(pipeline.module.parameters(), lr=0.1)
data = distributed.Batches(run, TensorDataset(torch.zeros(64, 8), torch.zeros(64, 8)), batch_size=8)
training = distributed.Training(run, pipeline.module, optimizer, data, checkpoint_dir=False, log_every_steps=1)
for inputs, targets in training.batches(steps=6):
    training.step_pipeline(pipeline, inputs, targets)
"""


def test_what_a_rank_waits_for_other_stages_is_communication(tmp_path: Path) -> None:
    """Of 100 ms in which the other rank computes its loss, it may itself be slow for some."""
    ranks = ran(tmp_path, written(tmp_path, WAITING))
    lines = re.findall(r"step_ms=(\S+) compute_ms=(\S+) .*communication_ms=(\S+)", ranks.log())
    assert len(lines) == 6, ranks.everything
    assert max(float(waited) for _, _, waited in lines[1:]) > 50
    for whole, compute, waited in lines:
        assert 0 <= float(compute) <= float(whole) - float(waited) + 0.01
