"""What optml_toolkit.distributed sends and says: compressed gradients, buckets, communication, TensorBoard; and streams."""

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="needs pip install 'optml[pytorch]'")

from tests.ranks import Ranks, ran  # noqa: E402  (it is imported by the processes too)
from tests.training_scripts import TRAIN, facts, furthest, losses, model, steps, written  # noqa: E402


@pytest.fixture(name="script", scope="module")
def _script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("script"), TRAIN)


@pytest.fixture(name="uncompressed", scope="module")
def _uncompressed(tmp_path_factory: pytest.TempPathFactory, script: Path) -> Path:
    folder = tmp_path_factory.mktemp("uncompressed")
    ran(folder, script, "--plain", "--clip", "1e9", "--out", str(folder / "out"))
    return folder / "out"


@pytest.mark.parametrize("compression", ["fp16", "bf16", "powersgd"])
def test_compressed_gradients_train_to_nearly_the_same_model(
    tmp_path: Path, script: Path, uncompressed: Path, compression: str
) -> None:
    import torch

    options = ("--plain", "--clip", "1e9", "--compression", compression)  # clipped ones would have more digits
    ran(tmp_path, script, *options, "--out", str(tmp_path / "out"))
    compressed = facts(Path(f"{tmp_path / 'out'}-model"))
    plain = facts(Path(f"{uncompressed}-model"))
    found, expected = losses(tmp_path / "out", ranks=2), losses(uncompressed, ranks=2)
    assert sum(found[-6:]) < 0.8 * sum(found[:6])
    assert sum(found[-6:]) == pytest.approx(sum(expected[-6:]), rel=0.1)
    moved = furthest(Path(f"{tmp_path / 'out'}-model"), Path(f"{uncompressed}-model"))
    assert 0 < moved < 0.05
    # What came over the wire: numbers of 16 bits, or matrices of rank 1 (after ten steps); and as a check on the check, without
    # compression neither.
    gradients = {name: torch.tensor(value) for name, value in compressed["last_gradients"].items()}
    others = {name: torch.tensor(value) for name, value in plain["last_gradients"].items()}
    if compression == "powersgd":
        assert rank(gradients["0.weight"]) == 1
        assert rank(others["0.weight"]) > 1
    else:
        kind = torch.float16 if compression == "fp16" else torch.bfloat16
        assert all(bool((value.to(kind).to(value.dtype) == value).all()) for value in gradients.values())
        assert not any(bool((value.to(kind).to(value.dtype) == value).all()) for value in others.values())


def rank(matrix: Any) -> int:
    import torch

    values = torch.linalg.svdvals(matrix.double())
    return int((values > values[0] * 1e-6).sum())


@pytest.mark.parametrize("compression", ["bf16", pytest.param("fp16", marks=pytest.mark.slow)])
def test_a_run_with_compressed_gradients_goes_on_bit_for_bit(tmp_path: Path, script: Path, compression: str) -> None:
    arguments = ("--compression", compression, "--out")
    ran(tmp_path / "straight", script, *arguments, str(tmp_path / "straight-out"), "--steps", "12")
    for number, upto in enumerate(("6", "12")):
        folder = str(tmp_path / "checkpoints")
        done = ran(tmp_path / upto, script, *arguments, str(tmp_path / "out"), "--steps", upto, "--dir", folder)
        assert ("Resumed from step 6" in done.log()) == bool(number)
    for each in (0, 1):
        assert steps(tmp_path / "out", each) == steps(tmp_path / "straight-out", each)
    assert model(tmp_path / "out") == model(tmp_path / "straight-out")


# Layers of 1 MiB each.
BUCKETS = """
import json, sys, torch
from torch import nn
from optml_toolkit import distributed

run = distributed.init()
found = {}
for size in (1, 25):
    torch.manual_seed(0)
    model = distributed.data_parallel(run, nn.Sequential(*[nn.Linear(512, 512) for _ in range(4)]), bucket_cap_mb=size)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(3):
        x = torch.randn(4, 512, generator=torch.Generator().manual_seed(10 * step + run.rank))
        model(x).square().mean().backward(); optimizer.step(); optimizer.zero_grad()
    facts = model._get_ddp_logging_data()
    found[size] = (facts["bucket_cap_bytes"], facts["rebuilt_bucket_sizes"], torch.cat([p.flatten() for p in model.parameters()]))
if run.first:
    furthest = (found[1][2] - found[25][2]).abs().max().item()
    with open(sys.argv[1], "w") as file:
        json.dump({"caps": [found[1][0], found[25][0]], "buckets": [found[1][1], found[25][1]], "furthest": furthest}, file)
"""


def test_a_bucket_size_is_that_of_ddp_and_changes_nothing_of_the_result(tmp_path: Path) -> None:
    ran(tmp_path, written(tmp_path, BUCKETS), str(tmp_path / "out"))
    found = facts(tmp_path / "out")
    assert found["caps"] == [1 << 20, 25 << 20]
    assert [len(sizes.split(",")) for sizes in found["buckets"]] == [4, 1]
    assert found["furthest"] < 1e-6


def test_measured_communication_is_in_the_lines_and_in_tensorboard(
    tmp_path: Path, script: Path, uncompressed: Path
) -> None:
    pytest.importorskip("tensorboard", reason="needs pip install tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = tmp_path / "board"
    options = ("--plain", "--clip", "1e9", "--measure", "--tensorboard", str(board))
    done = ran(tmp_path, script, *options, "--out", str(tmp_path / "out"))
    lines = re.findall(r"step=(\d+) .*step_ms=(\S+) compute_ms=(\S+) .*communication_ms=(\S+)", done.log())
    assert [int(line[0]) for line in lines] == [5, 10, 15, 20]
    for _, whole, compute, communication in lines:
        assert 0 < float(communication) < float(whole)
        assert float(compute) + float(communication) <= float(whole) * 1.001
    assert "communication_ms" not in done.log(1)
    # Measuring changes nothing.
    assert model(tmp_path / "out")["weights"] == model(uncompressed)["weights"]
    events = EventAccumulator(str(board)).Reload()
    names = {"loss", "samples/s", "step_ms", "compute_ms", "data_ms", "checkpoint_ms", "agree_ms", "communication_ms"}
    assert set(events.Tags()["scalars"]) == names
    assert [event.step for event in events.Scalars("loss")] == [5, 10, 15, 20]
    shown = [float(value) for value in re.findall(r" loss=(\S+)", done.log())]
    assert [event.value for event in events.Scalars("loss")] == pytest.approx(shown, rel=1e-4)


STREAM = """
import sys, torch
from torch import nn
from torch.utils.data import IterableDataset
from torchdata.stateful_dataloader import StatefulDataLoader
from optml_toolkit import distributed

folder, out, upto, workers = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
run = distributed.init(seed=2)

class Stream(IterableDataset):
    # A long stream of which each rank (and each worker of a rank) takes its share.
    def __init__(self):
        self.at = 0
    def __iter__(self):
        worker = torch.utils.data.get_worker_info()
        share, shares = (0, 1) if worker is None else (worker.id, worker.num_workers)
        while True:
            number = (self.at * shares + share) * run.world_size + run.rank
            self.at += 1
            yield torch.tensor([float(number)])
    def state_dict(self):
        return {"at": self.at}
    def load_state_dict(self, state):
        self.at = state["at"]

model = distributed.data_parallel(run, nn.Linear(1, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=1e-7)
# These ranks come from a server of processes (tests/ranks.py), from which workers would come too, and run the script anew.
data = StatefulDataLoader(Stream(), batch_size=4, num_workers=workers, multiprocessing_context="fork" if workers else None)
training = distributed.Training(run, model, optimizer, data, checkpoint_dir=folder)
with open(f"{out}-{run.rank}", "a") as file:
    for batch in training.batches(steps=upto):
        training.step(model(batch).square().mean())
        file.write(" ".join(str(int(each)) for each in batch.flatten()) + "\\n")
    file.write(model.module.weight.item().hex() + "\\n")
"""


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_stateful_data_loader_goes_on_where_each_rank_was(tmp_path: Path, workers: int) -> None:
    pytest.importorskip("torchdata.stateful_dataloader", reason="needs pip install torchdata")
    script = written(tmp_path, STREAM)
    for name, stops in (("straight", ("9",)), ("twice", ("4", "9"))):
        for upto in stops:
            folder = tmp_path / name
            ran(folder / upto, script, str(folder / "checkpoints"), str(folder / "out"), upto, str(workers))
    seen = []
    for each in (0, 1):
        straight = (tmp_path / f"straight/out-{each}").read_text().splitlines()
        twice = (tmp_path / f"twice/out-{each}").read_text().splitlines()
        assert [*twice[:4], *twice[5:]] == straight  # line 5 is the weight with which the first run ended
        seen += [int(number) for line in straight[:-1] for number in line.split()]
    assert len(seen) == len(set(seen)) == 2 * 9 * 4
    if workers == 0:
        assert sorted(seen) == list(range(72))
        arguments = (str(tmp_path / "twice/checkpoints"), str(tmp_path / "alone"), "12", "0")
        with Ranks(tmp_path / "one", script, *arguments, count=1) as ranks:
            assert ranks.ended() == [1]
            assert "StatefulDataLoader keeps a position for each rank: it continues on 2 ranks only" in ranks.log()
