"""optml_toolkit.distributed with real processes: what is trained, what survives, what is refused."""

import importlib.util
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tests.hosts import PATIENCE_SECONDS

pytestmark = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="needs pip install 'optml[pytorch]'")

from tests.ranks import Ranks, ran  # noqa: E402  (it is imported by the processes too)
from tests.training_scripts import PIPE, TRAIN, facts, furthest, losses, model, steps, written  # noqa: E402


@pytest.fixture(name="script", scope="module")
def _script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("script"), TRAIN)


@pytest.fixture(name="undisturbed", scope="module")
def _undisturbed(tmp_path_factory: pytest.TempPathFactory, script: Path) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    ran(folder, script, "--dir", str(folder / "checkpoints"), "--out", str(folder / "out"))
    return folder / "out"


def interrupted(tmp_path: Path, script: Path, *, step: int, number: signal.Signals, rank: int) -> str:
    """Run, send a signal when a step is done, run again to the end. Gives the second run's log."""
    arguments = ("--dir", str(tmp_path / "checkpoints"), "--out", str(tmp_path / "out"))
    with Ranks(tmp_path / "first", script, *arguments, "--slow", "0.03", "--until-sent", str(rank)) as ranks:
        out = Path(f"{tmp_path / 'out'}-{rank}")
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not out.exists() or out.read_text().count("\n") <= step:
            assert time.monotonic() < deadline, ranks.everything
            time.sleep(0.002)
        ranks.send(number, rank=rank)
        Path(f"{tmp_path / 'out'}-sent").touch()
        codes = ranks.ended()
        if number == signal.SIGTERM:
            assert codes == [0, 0], ranks.everything
            assert "Interrupted (SIGTERM)" in ranks.log(0), ranks.everything
        else:
            assert codes[rank] == -signal.SIGKILL
            assert codes[1 - rank] == 1, ranks.everything
    again = ran(tmp_path / "again", script, *arguments)
    return again.log(0)


@pytest.mark.parametrize(
    ("number", "rank", "step"), [(signal.SIGTERM, 1, 6), (signal.SIGKILL, 0, 11)], ids=["told", "killed"]
)
def test_an_interrupted_run_goes_on_bit_for_bit(
    tmp_path: Path, script: Path, undisturbed: Path, *, number: signal.Signals, rank: int, step: int
) -> None:
    log = interrupted(tmp_path, script, step=step, number=number, rank=rank)
    assert "Resumed from step" in log
    for each in (0, 1):
        assert steps(tmp_path / "out", each) == steps(undisturbed, each)
    assert model(tmp_path / "out") == model(undisturbed)


@pytest.mark.slow
def test_runs_interrupted_at_twenty_random_points_go_on_bit_for_bit(
    tmp_path: Path, script: Path, undisturbed: Path
) -> None:
    chance = random.Random(20)
    for number in range(20):
        folder = tmp_path / str(number)
        how = (signal.SIGTERM, signal.SIGKILL)[number % 2]
        interrupted(folder, script, step=chance.randrange(1, 20), number=how, rank=chance.randrange(2))
        for rank in (0, 1):
            assert steps(folder / "out", rank) == steps(undisturbed, rank), (number, how)
        assert model(folder / "out") == model(undisturbed)


# Layouts: data parallel, shards, pipelines.


@pytest.fixture(name="pipe_script", scope="module")
def _pipe_script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("pipe"), PIPE)


@pytest.fixture(name="one_process", scope="module")
def _one_process(tmp_path_factory: pytest.TempPathFactory, pipe_script: Path) -> Path:
    folder = tmp_path_factory.mktemp("one")
    ran(folder, pipe_script, "--out", str(folder / "out"), count=1)
    return folder / "out"


@pytest.mark.parametrize(
    "schedule",
    [
        "1f1b",
        "zbv",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("gpipe", "interleaved-1f1b", "looped-bfs", "interleaved-zero-bubble", "dualpipe-v")
        ),
    ],
)
def test_a_pipeline_trains_the_model_of_a_single_process(
    tmp_path: Path, pipe_script: Path, one_process: Path, schedule: str
) -> None:
    out = tmp_path / "out"
    ran(tmp_path, pipe_script, "--pipe", "2", "--schedule", schedule, "--out", str(out))
    assert furthest(out, one_process) < 1e-12
    assert furthest(out, one_process, "gradients") < 1e-14
    found, expected = facts(out), facts(one_process)
    assert found["losses"] == pytest.approx(expected["losses"], rel=1e-6)
    assert found["evaluated"] == pytest.approx(expected["evaluated"], rel=1e-6)
    bubble = found["bubble"]
    assert bubble["formula"] == pytest.approx(1 / 5 if schedule in ("1f1b", "gpipe") else 1 / 9)
    assert 0 <= bubble["measured"] < 1


@pytest.mark.parametrize(
    "layouts",
    [
        [(4, 2), (2, 2), (1, 1)],
        *(
            pytest.param(each, marks=pytest.mark.slow)
            for each in ([(1, 1), (2, 2), (4, 2)], [(4, 1), (2, 1), (1, 1), (2, 1)], [(2, 1), (2, 2), (4, 4), (2, 1)])
        ),
    ],
    ids=lambda layouts: "-".join(f"{ranks}ranks{pipe}stages" for ranks, pipe in layouts),
)
def test_a_run_goes_on_in_another_layout(
    tmp_path: Path, pipe_script: Path, one_process: Path, layouts: list[tuple[int, int]]
) -> None:
    out = tmp_path / "out"
    stops = [2, 4, 6] if len(layouts) == 3 else [2, 3, 5, 6]
    for number, (ranks, pipe) in enumerate(layouts):
        done = ran(
            tmp_path / str(number),
            pipe_script,
            *(
                "--pipe",
                str(pipe),
                "--steps",
                str(stops[number]),
                "--dir",
                str(tmp_path / "checkpoints"),
                "--out",
                str(out),
            ),
            count=ranks,
        )
        if number:
            assert f"Resumed from step {stops[number - 1]}" in done.log(0)
            assert "random numbers begin anew" in done.log(0)
    assert furthest(out, one_process) < 1e-11


@pytest.mark.parametrize("counts", [(2, 1), pytest.param((4, 2, 1, 2), marks=pytest.mark.slow)], ids=str)
def test_shards_go_on_over_another_number_of_ranks(tmp_path: Path, script: Path, counts: tuple[int, ...]) -> None:
    arguments = ("--plain", "--sharded", "--clip", "0.1", "--out")
    straight, out = tmp_path / "straight", tmp_path / "out"
    plainly = [each for each in arguments if each != "--sharded"]
    ran(tmp_path / "one", script, *plainly, str(straight), "--steps", str(3 * len(counts)), count=1)
    for number, count in enumerate(counts, 1):
        ran(
            tmp_path / str(number),
            script,
            *(*arguments, str(out), "--steps", str(3 * number), "--dir", str(tmp_path / "checkpoints")),
            count=count,
        )
    assert furthest(Path(f"{out}-model"), Path(f"{straight}-model")) < 1e-11


def test_parts_of_a_step_add_up_to_it(tmp_path: Path, script: Path) -> None:
    for name, accumulate, count in (("whole", 1, 1), ("parts", 2, 2)):
        ran(
            tmp_path / name,
            script,
            *("--plain", "--steps", "5", "--accumulate", str(accumulate), "--out", str(tmp_path / name / "out")),
            count=count,
        )
    for what in ("weights", "gradients"):
        assert furthest(tmp_path / "whole" / "out-model", tmp_path / "parts" / "out-model", what) < 1e-12
    assert losses(tmp_path / "parts" / "out", ranks=2) == pytest.approx(losses(tmp_path / "whole" / "out", ranks=1))
    assert [line.split()[1] for line in (tmp_path / "parts" / "out-1").read_text().splitlines()[1:5]] == [
        "False",
        "True",
    ] * 2


# Checkpoints that are not as they should be.


def saved(tmp_path: Path, script: Path, *, count: int = 1) -> tuple[Path, Path]:
    """Checkpoints of steps 4 and 8, and where the script writes."""
    folder, out = tmp_path / "checkpoints", tmp_path / "out"
    ran(tmp_path / "first", script, "--dir", str(folder), "--out", str(out), "--steps", "8", count=count)
    assert sorted(each.name for each in folder.iterdir()) == ["step-000000004", "step-000000008"]
    return folder, out


@pytest.mark.parametrize("damage", ["a file is cut off", "a byte differs", "the marker is missing"])
def test_a_damaged_checkpoint_is_skipped_with_a_warning(tmp_path: Path, script: Path, damage: str) -> None:
    from optml_toolkit.distributed import is_complete

    folder, out = saved(tmp_path, script)
    newest = folder / "step-000000008"
    part = newest / "__0_0.distcp"
    assert is_complete(newest)
    if damage == "a file is cut off":
        os.truncate(part, part.stat().st_size // 2)
    elif damage == "a byte differs":
        content = bytearray(part.read_bytes())
        content[len(content) // 2] ^= 1
        part.write_bytes(content)
    else:
        (newest / "complete.json").unlink()
    assert not is_complete(newest)
    done = ran(tmp_path / "again", script, "--dir", str(folder), "--out", str(out), "--steps", "9", count=1)
    expected = "was never completed" if damage == "the marker is missing" else "is torn or corrupted (__0_0.distcp "
    assert f"step-000000008 {expected}" in done.log(0)
    assert "Resumed from step 4" in done.log(0)


def test_a_checkpoint_of_another_model_names_the_first_parameter_that_differs(tmp_path: Path, script: Path) -> None:
    folder, out = saved(tmp_path, script)
    done = ran(tmp_path / "again", script, "--dir", str(folder), "--out", str(out), "--width", "20", count=1, codes=[1])
    assert "'0.weight' has shape [16, 8] in the checkpoint and [20, 8] in the model" in done.log(0)
    done = ran(tmp_path / "more", script, "--dir", str(folder), "--out", str(out), "--plain", count=1, codes=[1])
    assert "'2.weight' has shape [16] in the checkpoint and [1, 16] in the model" in done.log(0)


SMALL = """
import sys, torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, StepLR
from torch.utils.data import TensorDataset
from optml_toolkit import distributed

folder, steps = sys.argv[1], int(sys.argv[2])
run = distributed.init()
model = distributed.data_parallel(run, nn.Linear(4, 2))
optimizer = eval(sys.argv[3]) if len(sys.argv) > 3 else torch.optim.SGD(model.parameters(), lr=0.1)
scheduler = eval(sys.argv[4]) if len(sys.argv) > 4 else None
x = torch.randn(64, 4)
best = {"score": 0.0}
data = distributed.Batches(run, TensorDataset(x, x[:, :2]), batch_size=8, accumulate=2)
training = distributed.Training(run, model, optimizer, data, scheduler=scheduler, state={"best": best},
                                checkpoint_dir=folder, log_every_steps=1)
parts = []
for inputs, targets in training.batches(steps=steps):
    loss = nn.functional.mse_loss(model(inputs), targets) * (float("nan") if "nan" in sys.argv else 1)
    training.step(loss)
    parts.append(loss.item())
print("parts", *parts)
print("best", best["score"])
"""


@pytest.mark.parametrize(
    ("before", "now", "told"),
    [
        (("torch.optim.SGD(model.parameters(), lr=0.1)",), ("torch.optim.Adam(model.parameters())",),
         "the checkpoint was made with the optimiser SGD, and this run has Adam"),
        (("torch.optim.Adam(model.parameters())",), ("torch.optim.AdamW(model.parameters())",),
         "the checkpoint was made with the optimiser Adam, and this run has AdamW"),
        (("torch.optim.SGD(model.parameters(), lr=0.1)", "StepLR(optimizer, 1)"),
         ("torch.optim.SGD(model.parameters(), lr=0.1)", "CosineAnnealingLR(optimizer, 10)"),
         "the checkpoint was made with the scheduler StepLR, and this run has CosineAnnealingLR"),
        (("torch.optim.SGD([{'params': [model.module.weight]}, {'params': [model.module.bias], 'lr': 0.5}], lr=0.1)",),
         ("torch.optim.SGD(model.parameters(), lr=0.1)",),
         "'weight' and 'bias' are in one group of the optimiser, and were trained with lr 0.1 and 0.5 when the checkpoint "
         "was made"),
    ],
    ids=["another family", "a relative", "another scheduler", "other groups"],
)  # fmt: skip
def test_a_checkpoint_of_another_optimiser_or_scheduler_is_refused(
    tmp_path: Path, before: tuple[str, ...], now: tuple[str, ...], told: str
) -> None:
    script = written(tmp_path, SMALL)
    ran(tmp_path / "first", script, str(tmp_path / "checkpoints"), "2", *before, count=1)
    again = ran(tmp_path / "again", script, str(tmp_path / "checkpoints"), "4", *now, count=1, codes=[1])
    assert f"UserError: {told}: give the same" in again.log()


def test_the_loss_told_of_a_step_is_the_mean_over_its_parts_and_one_that_is_no_number_is_warned_of(
    tmp_path: Path,
) -> None:
    script = written(tmp_path, SMALL)
    log = ran(tmp_path / "well", script, str(tmp_path / "checkpoints"), "3", count=1).log()
    parts = [float(each) for each in re.findall(r"^parts (.*)$", log, re.MULTILINE)[0].split()]
    told = [float(each) for each in re.findall(r" loss=(\S+)", log)]
    assert told == pytest.approx([(parts[i] + parts[i + 1]) / 2 for i in (0, 2, 4)], rel=1e-4)
    assert "The loss is" not in log
    arguments = ("torch.optim.SGD(model.parameters(), lr=0.1)", "None", "nan")
    log = ran(tmp_path / "nan", script, str(tmp_path / "other"), "3", *arguments, count=1).log()
    assert log.count("The loss is nan: checkpoints from here on keep what came of it") == 1


def test_state_that_changed_after_the_last_step_is_in_a_save_that_is_asked_for(tmp_path: Path) -> None:
    """As a script does that evaluates when an epoch is over, and keeps the best score."""
    script = written(tmp_path, SMALL + "\nbest['score'] = 0.75\ntraining.save()\n")
    ran(tmp_path / "first", script, str(tmp_path / "checkpoints"), "3")
    again = ran(tmp_path / "again", script, str(tmp_path / "checkpoints"), "3")
    assert "Resumed from step 3" in again.log()
    assert "best 0.75\n" in again.log()
    assert "could not be saved" not in again.everything
    assert [each.name for each in (tmp_path / "checkpoints").iterdir()] == ["step-000000003.1"]


def test_a_step_that_is_saved_again_keeps_its_checkpoint_until_the_new_one_is_complete(tmp_path: Path) -> None:
    script = written(tmp_path, SMALL + "\nbest['score'] = 0.75\ntraining.save()\nprint('left', flush=True)\n")
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    (folder / "step-000000003.1").write_text("in the way")
    first = ran(tmp_path / "first", script, str(folder), "3")
    assert "Checkpoint 3 could not be saved: rank 0: " in first.log()
    assert "Training goes on; step-000000003 stands." in first.log()
    assert "left" in first.log()
    again = ran(tmp_path / "again", written(tmp_path / "look", SMALL), str(folder), "3")
    assert "step-000000003.1 was never completed: skipped" in again.log()
    assert "Resumed from step 3" in again.log()
    assert "best 0.75\n" not in again.log()


def test_hosts_that_do_not_share_a_folder_complete_each_other(tmp_path: Path, script: Path) -> None:
    """Two hosts, each with its own disk; then each has only what its rank wrote, and a third copy is straight."""
    arguments = ("--plain", "--sharded", "--out", str(tmp_path / "out"))
    own = [{"SM_CHECKPOINT_DIR": str(tmp_path / f"disk-{rank}")} for rank in (0, 1)]
    source = written(tmp_path / "script", TRAIN.replace("options.dir or False", "os.environ['SM_CHECKPOINT_DIR']"))
    for steps_wanted in ("4", "8"):
        with Ranks(tmp_path / steps_wanted, source, *arguments, "--steps", steps_wanted, own=own) as ranks:
            assert ranks.ended() == [0, 0], ranks.everything
        if steps_wanted == "4":
            assert {file.name for file in (tmp_path / "disk-1" / "step-000000004").iterdir()} == {"__1_0.distcp"}
        else:
            assert "Resumed from step 4" in ranks.log(0)
    names = {".metadata", "__0_0.distcp", "__1_0.distcp", "complete.json"}
    assert {file.name for file in (tmp_path / "disk-1" / "step-000000004").iterdir()} == names
    ran(tmp_path / "straight", script, "--plain", "--sharded", "--steps", "8", "--out", str(tmp_path / "straight-out"))
    assert model(tmp_path / "straight-out")["weights"] == model(tmp_path / "out")["weights"]


def test_a_full_disk_is_a_warning_and_the_last_checkpoint_stands(tmp_path: Path, script: Path) -> None:
    """A filesystem of its own, of half a megabyte, in a mount namespace of its own."""
    if shutil.which("unshare") is None:
        pytest.skip("needs unshare of util-linux")
    disk = tmp_path / "disk"
    disk.mkdir()
    inside = (
        f"mount -t tmpfs -o size=600k tmpfs {disk} && {sys.executable} {script} --dir {disk} --out {tmp_path / 'out'} "
        f"--width 1200 --plain --steps 9 && ls {disk}"
    )
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", inside],
        capture_output=True,
        text=True,
        check=False,
    )
    if "unshare" in done.stderr or "mount:" in done.stderr:
        pytest.skip(f"no mount namespaces here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Checkpoint 8 could not be saved: rank 0: " in done.stdout
    assert "No space left on device" in done.stdout
    assert "Training goes on; step-000000004 stands." in done.stdout
    assert "step-000000004" in done.stdout.splitlines()[-1]


# Who is gone, and who is told.


def test_a_rank_that_hangs_is_noticed_by_name(tmp_path: Path, script: Path) -> None:
    with Ranks(tmp_path, script, "--out", str(tmp_path / "out"), "--steps", "100000", "--dead", "5") as ranks:
        ranks.wait_for("step=5 ")
        ranks.send(signal.SIGSTOP, rank=1)
        ranks.processes[0].join(PATIENCE_SECONDS)
        assert ranks.processes[0].exitcode == 1
        assert "rank 1 (" in ranks.log(0)
        assert "has not been heard of for" in ranks.log(0)


def test_the_platforms_notice_on_one_host_stops_all_at_the_same_step(tmp_path: Path, script: Path) -> None:
    own = []
    for rank in (0, 1):
        config = tmp_path / f"ml-{rank}" / "input" / "config"
        config.mkdir(parents=True)
        own.append({"SAGEMAKER_BASE_DIR": str(config.parents[1])})
    arguments = ("--dir", str(tmp_path / "checkpoints"), "--out", str(tmp_path / "out"), "--steps", "100000")
    with Ranks(tmp_path, script, *arguments, "--slow", "0.01", own=own) as ranks:
        ranks.wait_for("step=5 ")
        notice = {"action": "terminate", "time": "2026-01-31T12:02:00Z"}
        (tmp_path / "ml-1/input/config/interruption-notice.json").write_text(json.dumps(notice))
        assert ranks.ended() == [0, 0], ranks.everything
    assert "Interrupted (notice: terminate at 2026-01-31T12:02:00Z): step " in ranks.log(0)
    counts = [len(steps(tmp_path / "out", rank)) for rank in (0, 1)]
    assert counts[0] == counts[1]
    assert f"step {counts[0]} is saved" in ranks.log(0)


def test_a_second_sigterm_does_not_hinder_the_save(tmp_path: Path, script: Path) -> None:
    arguments = ("--dir", str(tmp_path / "checkpoints"), "--out", str(tmp_path / "out"), "--steps", "100000")
    with Ranks(tmp_path, script, *arguments, "--slow", "0.2") as ranks:
        ranks.wait_for("Checkpoint 4")
        ranks.send(signal.SIGTERM, rank=0)
        time.sleep(0.05)
        ranks.send(signal.SIGTERM, rank=0)
        ranks.send(signal.SIGTERM, rank=1)
        assert ranks.ended() == [0, 0], ranks.everything
    assert "is saved" in ranks.log(0)


def test_under_torchrun_a_killed_rank_is_restarted_from_the_last_checkpoint(tmp_path: Path, undisturbed: Path) -> None:
    source = written(
        tmp_path / "script",
        TRAIN.replace(
            "    time.sleep(options.slow)",
            "    if training.steps_done == 9 and run.rank == 1 and os.environ['TORCHELASTIC_RESTART_COUNT'] == '0':\n"
            "        os.kill(os.getpid(), 9)",
        ),
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=1"]
    arguments = ["--dir", str(tmp_path / "checkpoints"), "--out", str(tmp_path / "out")]
    done = subprocess.run(
        [*command, str(source), *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=2 * PATIENCE_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "Resumed from step " in done.stdout
    assert model(tmp_path / "out") == model(undisturbed)


# What is refused.


@pytest.mark.parametrize(
    ("source", "environment", "expected"),
    [
        ("distributed.init()", {"WORLD_SIZE": "2", "RANK": "0"}, "WORLD_SIZE is set, but MASTER_ADDR and MASTER_PORT not"),
        ("distributed.init()", {"RANK": "0"}, "RANK is set, but WORLD_SIZE not"),
        ("distributed.init()", {"OMPI_COMM_WORLD_SIZE": "2"}, "mpirun started this process"),
        (
            "distributed.init()",
            {"WORLD_SIZE": "two", "RANK": "0", "MASTER_ADDR": "x", "MASTER_PORT": "1"},
            "WORLD_SIZE must be a whole number, got 'two'",
        ),
        ("distributed.init(); distributed.init()", {}, "distributed.init() was called twice"),
        ("torch.distributed.init_process_group('gloo', store=torch.distributed.HashStore(), rank=0, world_size=1);"
         "distributed.init()", {}, "torch.distributed is initialised already"),
        ("distributed.init(pipe=2)", {}, "pipe=2 does not fit 1 processes"),
        ("distributed.init(backend='nccl')", {"CUDA_VISIBLE_DEVICES": ""}, "backend='nccl' needs a GPU"),
        ("batches(batch_size=7, accumulate=2)", {}, "batch_size=7 does not divide into 1 data-parallel ranks x accumulate=2"),
        ("batches(batch_size=20, drop_last=True)", {}, "the dataset has 10 samples: too few for one step of 20"),
        ("pipeline(nn.Linear(4, 4))", {}, "a pipeline is cut from a torch.nn.Sequential, got Linear"),
        ("pipeline(model, schedule='gpip')", {}, "schedule must be one of gpipe, 1f1b,"),
        ("pipeline(model, split=['7'])", {}, "split names '7', which is no layer of the model; it has 0, 1"),
        ("pipeline(model).step(torch.zeros(3, 4), torch.zeros(3, 4))", {}, "a batch of 3 inputs and 3 targets does not divide"),
        (
            "pipeline(nn.Sequential(nn.LSTM(4, 4))).step(torch.zeros(2, 3, 4), torch.zeros(2, 4))",
            {},
            "the layer '0' gives tuple, and a pipeline's layers must each give one tensor",
        ),
        ("training(state={'lock': {'it': __import__('threading').Lock()}})", {}, "state['lock'] cannot be saved: TypeError"),
        ("training(state={'number': 5})", {}, "state['number'] of type int cannot be kept"),
        ("training(checkpoint_dir=None)", {"SAGEMAKER_BASE_DIR": "/nonexistent"}, "there is no folder for checkpoints"),
        ("training(checkpoint_dir='/proc/nothing')", {}, "the checkpoint folder /proc/nothing of rank 0 cannot be written"),
        ("training(save_every_steps=0)", {}, "save_every_steps must be more than 0, got 0"),
        ("training(other=True)", {}, "the optimiser has a parameter of shape (4, 4) that is not the model's"),
        ("next(training().batches())", {}, "batches() needs epochs=... or steps=..."),
        ("training().step(model(torch.zeros(2, 4)))", {}, "takes the loss, a tensor of one number, got a tensor of shape [2, 4]"),
        ("next(training().batches(steps=-1))", {}, "batches(steps=...) must be a whole number, 0 or more, got -1"),
        ("training().report(name='x')", {}, "report(name=...) takes a number, got str"),
        ("training().report(out=torch.zeros(2))", {}, "report(out=...) takes a number, got Tensor of shape [2]"),
        ("training(optimizer=torch.optim.LBFGS(model.parameters()))", {}, "LBFGS computes the loss several times in a step"),
        ("training(plateau=True)", {}, "ReduceLROnPlateau needs a number at each of its steps"),
        ("batches(batch_size=2, num_workers=1, persistent_workers=True)", {}, "persistent_workers cannot be had"),
        ("training().step(0.5)", {}, "takes the loss, a tensor of one number, got float: compute it from what the model gives"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_said_with_the_remedy(
    tmp_path: Path, source: str, environment: dict[str, str], expected: str
) -> None:
    script = written(
        tmp_path,
        f"""
        import torch
        from torch import nn
        from torch.utils.data import TensorDataset
        from optml_toolkit import distributed

        model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))

        def batches(**options):
            run = distributed.init()
            return distributed.Batches(run, TensorDataset(torch.zeros(10, 4)), **options)

        def pipeline(model, **options):
            run = distributed.init()
            return distributed.Pipeline(run, model, loss=nn.functional.mse_loss, micro_batches=2, **options)

        def training(other=False, optimizer=None, plateau=False, **options):
            run = distributed.init()
            optimizer = optimizer or torch.optim.SGD((nn.Linear(4, 4) if other else model).parameters(), lr=0.1)
            if plateau:
                options["scheduler"] = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
            data = distributed.Batches(run, TensorDataset(torch.zeros(10, 4)), batch_size=2)
            return distributed.Training(run, model, optimizer, data, **{{"checkpoint_dir": False, **options}})

        {source}
        """,
    )
    with Ranks(tmp_path, script, count=1, environment=environment) as ranks:
        assert ranks.ended() == [1], ranks.everything
        last = ranks.log(0).strip().splitlines()[-1]
        assert "UserError: " in last, ranks.everything
        assert expected in last


@pytest.mark.parametrize(
    ("schedule", "ranks", "stages", "micro_batches", "expected"),
    [
        ("1f1b", 4, 1, 3, "1f1b needs at least as many micro-batches as stages (4), got 3"),
        ("gpipe", 2, 2, 4, "gpipe has one stage on each rank, got stages_per_rank=2"),
        ("zbv", 2, 3, 4, "zbv has two stages on each rank, got stages_per_rank=3"),
        ("dualpipe-v", 2, 2, 3, "dualpipe-v needs at least as many micro-batches as stages (4), got 3"),
        ("interleaved-1f1b", 2, 2, 5, "interleaved-1f1b needs micro-batches in whole rounds of the 2 ranks: 5"),
        ("gpipe", 2, 1, 0, "micro_batches must be at least 1, got 0"),
    ],
)
def test_a_schedules_rule_is_checked_before_anything_runs(
    schedule: str, ranks: int, stages: int, micro_batches: int, expected: str
) -> None:
    from optml_toolkit.distributed import UserError
    from optml_toolkit.distributed.pipeline import check_schedule

    with pytest.raises(UserError) as error:
        check_schedule(schedule, ranks=ranks, stages_per_rank=stages, micro_batches=micro_batches)
    assert expected in str(error.value)


@pytest.mark.parametrize(
    ("costs", "parts", "begins"),
    [([1, 1, 1, 1], 2, [0, 2]), ([9, 1, 1, 1], 2, [0, 1]), ([1, 1, 1, 9], 3, [0, 1, 3]), ([5], 1, [0])],
)
def test_layers_are_cut_where_the_dearest_stage_is_cheapest(costs: list[float], parts: int, begins: list[int]) -> None:
    from optml_toolkit.distributed.pipeline import balanced

    found = balanced(costs, parts)
    dearest = max(sum(costs[a:b]) for a, b in zip(found, [*found[1:], len(costs)], strict=True))
    assert dearest == max(sum(costs[a:b]) for a, b in zip(begins, [*begins[1:], len(costs)], strict=True))
    assert len(found) == parts
    assert found[0] == 0
    assert sorted(set(found)) == found


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("length", [16, 64, 65, 66, 71, 79])
@pytest.mark.parametrize(("ranks", "accumulate"), [(1, 1), (4, 1), (2, 2), (4, 4)])
def test_every_sample_comes_once_in_an_epoch_and_all_ranks_take_the_same_steps(
    length: int, ranks: int, accumulate: int, drop_last: bool
) -> None:
    import types

    from optml_toolkit.distributed import Batches

    taken: list[list[list[int]]] = []
    for rank in range(ranks):
        run: Any = types.SimpleNamespace(data_rank=rank, data_size=ranks, seed=1)
        dataset: Any = list(range(length))
        batches = Batches(run, dataset, batch_size=16, accumulate=accumulate, drop_last=drop_last, num_workers=0)
        mine = [batch.tolist() for batch in batches]
        assert len(mine) == len(batches)
        taken.append(mine)
        assert batches.state_dict()["epoch"] == 1
    assert len({len(mine) for mine in taken}) == 1
    seen = [sample for mine in taken for batch in mine for sample in batch]
    assert len(seen) == len(set(seen)) == (length - length % 16 if drop_last else length)
