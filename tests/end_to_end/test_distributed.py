"""The GPT example through jobs: two hosts, data parallel, in a pipeline and both; stopped, and gone on from the checkpoint."""

import difflib
import importlib.util
import io
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from tests.harness import Done, capabilities, run
from tests.ranks import ran
from tests.training_scripts import TRAIN, model, written

import optml
from optml.errors import UserError

pytestmark = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="needs pip install 'optml[pytorch]'")

GPT = Path(__file__).resolve().parents[2] / "scripts" / "examples" / "gpt"


def gpt(tmp_path: Path, *, pipe: int, processes: int, steps: int, **shortcuts: Any) -> Done:
    """On two hosts; a step takes some milliseconds."""
    return run(
        tmp_path,
        image="pytorch",
        entrypoint=None,
        entry_point="train.py",
        source_dir=GPT,
        distribution="torchrun",
        instance_count=2,
        processes_per_host=processes,
        hyperparameters={"steps": steps, "pipe": pipe, "batch-size": 16, "micro-batches": 2, "save-every": 20},
        metrics={"loss": r" loss=([0-9.]+)", "tokens": r"tokens/s=([0-9.]+)"},
        grace_seconds=60.0,
        environment={"OMP_NUM_THREADS": "1"},
        # A network of the job's own, where it can be had: jobs of other tests meet at the same port.
        network_isolation=capabilities().network_isolation,
        **shortcuts,
    )


def weights(done: Done) -> dict[str, Any]:
    import torch

    found: dict[str, Any] = torch.load(io.BytesIO(done.model["model.pt"]), weights_only=True)
    return found


def stop_when(name: str, text: str) -> threading.Thread:
    """Stop a job when a line of its log has the text."""

    def watch() -> None:
        for _ in range(1200):
            try:
                if text in "\n".join(line for _host, lines in optml.find(name).logs() for line in lines):
                    optml.find(name).stop()
                    return
            except UserError:  # not there yet
                pass
            time.sleep(0.05)

    thread = threading.Thread(target=watch)
    thread.start()
    return thread


@pytest.mark.slow
@pytest.mark.parametrize(
    ("pipe", "processes"), [(1, 1), (2, 1), (2, 2)], ids=["data parallel", "pipeline", "two pipelines"]
)
def test_a_stopped_gpt_goes_on_to_the_same_weights(tmp_path: Path, pipe: int, processes: int) -> None:
    name = f"gpt-{pipe}-{processes}"
    layout: dict[str, Any] = {"pipe": pipe, "processes": processes, "checkpoint": str(tmp_path / "checkpoints")}
    stopper = stop_when(name, "step=30 ")
    first = gpt(tmp_path / "first", steps=10_000, name=name, **layout)
    stopper.join()
    assert first.describe["TrainingJobStatus"] == "Stopped", first.log
    saved = re.search(r"Interrupted \(SIGTERM\): step (\d+) is saved", first.log)
    assert saved is not None, first.log
    steps = int(saved[1]) + 7
    second = gpt(tmp_path / "second", steps=steps, **layout)
    assert second.describe["TrainingJobStatus"] == "Completed", second.log
    assert f"Resumed from step {saved[1]}" in second.log
    whole = gpt(tmp_path / "whole", steps=steps, pipe=pipe, processes=processes)
    expected, found = weights(whole), weights(second)
    assert expected.keys() == found.keys()
    for each, value in expected.items():
        assert bool((value == found[each]).all()), each
    if pipe == 1:
        values = {each["MetricName"]: each["Value"] for each in whole.describe["FinalMetricDataList"]}
        assert 0 < values["loss"] < 4
        assert values["tokens"] > 0


def test_a_dead_rank_is_torchruns_to_restart_and_no_attempt_of_the_jobs_retries(tmp_path: Path) -> None:
    """Both are asked for: torchrun's restart goes on from the checkpoint inside of the one attempt."""
    source = TRAIN.replace("options.dir or False", "None").replace(
        "    time.sleep(options.slow)",
        "    if training.steps_done == 9 and run.rank == 1 and os.environ['TORCHELASTIC_RESTART_COUNT'] == '0':\n"
        "        os.kill(os.getpid(), 9)",
    )
    out = tmp_path / "out-of-the-job"
    done = run(
        tmp_path,
        image="pytorch",
        entrypoint=None,
        entry_point="train.py",
        source_dir=written(tmp_path / "code", source).parent,
        distribution="torchrun",
        processes_per_host=2,
        hyperparameters={"out": str(out)},
        environment={"PET_MAX_RESTARTS": "1"},  # torchrun's --max-restarts
        retries=2,
        checkpoint=str(tmp_path / "checkpoints"),
    )
    assert done.describe["TrainingJobStatus"] == "Completed", done.log
    assert "Restarting" not in done.secondary
    assert done.log.count("Distributed: 2 processes (torchrun)") == 2
    assert re.search(r"Resumed from step (4|8) ", done.log), done.log
    ran(tmp_path / "straight", written(tmp_path / "script", TRAIN), "--out", str(tmp_path / "straight-out"))
    assert model(out) == model(tmp_path / "straight-out")


@pytest.mark.slow
def test_a_dead_rank_that_torchrun_may_not_restart_fails_the_job_without_a_retry(tmp_path: Path) -> None:
    """As in AWS, whose RetryStrategy is for internal errors; the next job goes on from the checkpoint."""
    source = TRAIN.replace("options.dir or False", "None").replace(
        "    time.sleep(options.slow)",
        "    if training.steps_done == 9 and run.rank == 1 and not os.path.exists(f'{options.out}-killed'):\n"
        "        open(f'{options.out}-killed', 'w').close()\n"
        "        os.kill(os.getpid(), 9)",
    )
    code = written(tmp_path / "code", source).parent
    for status in ("Failed", "Completed"):
        done = run(
            tmp_path / status,
            image="pytorch",
            entrypoint=None,
            entry_point="train.py",
            source_dir=code,
            distribution="torchrun",
            processes_per_host=2,
            hyperparameters={"out": str(tmp_path / "out")},
            retries=2,
            checkpoint=str(tmp_path / "checkpoints"),
        )
        assert done.describe["TrainingJobStatus"] == status, done.log
        assert "Restarting" not in done.secondary
    assert re.search(r"Resumed from step (4|8) ", done.log), done.log


def test_the_readmes_script_survives_with_under_twenty_changed_lines(tmp_path: Path) -> None:
    folder = GPT.parent / "survive"
    before, after = ((folder / name).read_text().splitlines() for name in ("before.py", "after.py"))
    saved = None
    new = [line for line in difflib.ndiff(before[1:], after[1:]) if line.startswith("+ ") and line.strip() != "+"]
    assert 0 < len(new) < 20
    readme = (GPT.parents[2] / "README.md").read_text()
    for line in new:
        assert f"+{line[2:]}" in readme, line
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    subprocess.run(
        [sys.executable, folder / "before.py"], cwd=tmp_path, check=True, capture_output=True, env=one_thread
    )
    models: dict[str, bytes] = {}
    printed: list[str] = []
    for name, stopped in (("straight", False), ("stopped", True), ("stopped", False)):
        (tmp_path / name).mkdir(exist_ok=True)
        with subprocess.Popen(
            [sys.executable, folder / "after.py"],
            cwd=tmp_path / name,
            stdout=subprocess.PIPE,
            text=True,
            env={**one_thread, "SM_CHECKPOINT_DIR": str(tmp_path / name / "checkpoints")},
        ) as process:
            assert process.stdout is not None
            lines = []
            for line in process.stdout:
                lines.append(line)
                if stopped and line.startswith("step=200 "):
                    process.send_signal(signal.SIGTERM)
        log = "".join(lines)
        printed += log.splitlines()
        assert process.returncode == 0, log
        if stopped:
            saved = re.search(r"^Interrupted \(SIGTERM\): step (\d+) is saved ", log, re.MULTILINE)
            assert saved is not None, log
            assert not (tmp_path / name / "model.pt").exists()
        else:
            models[name] = (tmp_path / name / "model.pt").read_bytes()
    assert saved is not None
    assert f"\nResumed from step {saved[1]} (" in log
    assert models["stopped"] == models["straight"]
    # The lines that the README shows, but for the numbers.
    number = r"[0-9.]+(e-[0-9]+)?"
    shown = readme[readme.index("$ SM_CHECKPOINT_DIR=checkpoints python train.py") :]
    for beginning in (
        "Distributed: 1 process",
        "step=10 epoch=0 ",
        "Interrupted (SIGTERM): step ",
        "Resumed from step ",
    ):
        line = next(each for each in shown.splitlines() if each.startswith(beginning))
        assert re.sub(number, "N", line) in {re.sub(number, "N", each) for each in printed}, line


@pytest.mark.slow
def test_the_readmes_script_leaves_its_model_to_the_job(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        image="pytorch",
        entrypoint=None,
        entry_point="after.py",
        source_dir=GPT.parent / "survive",
        distribution="torchrun",
        processes_per_host=2,
        checkpoint=str(tmp_path / "checkpoints"),
    )
    assert done.describe["TrainingJobStatus"] == "Completed", done.log
    assert "model.pt" in done.model


@pytest.mark.slow
@pytest.mark.parametrize(
    ("pipe", "processes"), [(1, 1), (2, 1), (2, 2)], ids=["data parallel", "pipeline", "two pipelines"]
)
def test_the_gpt_survives_a_drill_with_the_same_model(tmp_path: Path, pipe: int, processes: int) -> None:
    """Taken away with a notice, and taken up on new machines with what was mirrored."""
    command = ["drill", "--entry-point", "train.py", "--source-dir", str(GPT), "--distribution", "torchrun"]
    command += ["--instance-count", "2", "--processes-per-host", str(processes), "-e", "OMP_NUM_THREADS=1"]
    command += ["-p", "steps=60", "-p", f"pipe={pipe}", "-p", "save-every=10", "--checkpoint", str(tmp_path / "ck")]
    command += [
        "--at-log",
        "step=20 ",
        "--notice",
        "20s",
        "--require-equal-artifacts",
        "--output",
        str(tmp_path / "out"),
    ]
    done = subprocess.run(
        [str(Path(sys.executable).parent / "optml"), *command],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OPTML_HOME": str(tmp_path / "home")},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "survives" in done.stdout + done.stderr
    assert "bit for bit the same" in done.stdout + done.stderr
