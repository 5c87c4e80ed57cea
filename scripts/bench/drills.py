"""A seeded drill of the demo's kind, and many interruptions in a row.

Yardsticks: the job undisturbed; Young and Daly's formula for the measured cost of a checkpoint, time between interruptions and
restart.
"""

import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

from scripts.bench.measure import machine, report

import optml
from optml.drills.advice import expected_goodput
from optml.drills.report import Report
from optml.drills.run import drill
from optml.jobdir import JobDir
from optml.spec import InterruptionPlan

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
EVERY_SECONDS = float(os.environ.get("BENCH_EVERY_SECONDS", "60"))
INTERRUPTIONS = int(os.environ.get("BENCH_INTERRUPTIONS", "200"))
STEPS, STEP_SECONDS, SAVE_EVERY = 1500, 0.1, 20

# A small model with a state of a few kilobytes; a step is a tenth of a second of "work".
TRAINING = f"""
import json, os, signal, sys, time
from pathlib import Path
saved = Path(os.environ.get("SAGEMAKER_BASE_DIR", "/opt/ml"), "checkpoints/state.json")
leaving = []
signal.signal(signal.SIGTERM, lambda *_: leaving.append(1))
step = json.loads(saved.read_text())["step"] if saved.exists() else 0
while step < {STEPS}:
    time.sleep({STEP_SECONDS})
    step += 1
    print(f"step={{step}} loss={{1 / step:.6f}}", flush=True)
    if leaving or step % {SAVE_EVERY} == 0:
        beside = saved.with_suffix(".sagemaker-ignore")
        beside.write_text(json.dumps({{"step": step, "weights": [0.5] * 1000}}))
        beside.replace(saved)
    if leaving:
        sys.exit(0)
"""


def main() -> None:
    print(machine())
    parts = os.environ.get("BENCH_PARTS", "drilled in_a_row").split()
    with tempfile.TemporaryDirectory(prefix="optml-bench-") as scratch:
        os.environ["OPTML_HOME"] = str(Path(scratch) / "home")
        if "drilled" in parts:
            drilled(Path(scratch))
        if "in_a_row" in parts:
            in_a_row(Path(scratch))


def drilled(scratch: Path) -> None:
    program = scratch / "train.py"
    program.write_text(TRAINING)
    baseline = None
    for name, notice in (("with a notice", 120.0), ("without", 0.0)):
        plan = InterruptionPlan(mean_seconds=EVERY_SECONDS, seed=7, notice_seconds=notice)
        if notice:
            plan = InterruptionPlan(every_seconds=EVERY_SECONDS, notice_seconds=notice)
        found = drill(
            image="python",
            name=name.replace(" ", "-"),
            entrypoint=[sys.executable, str(program)],
            checkpoint=str(scratch / "checkpoints"),
            metrics={"loss": r"loss=(\S+)"},
            output=str(scratch / "out"),
            plan=plan,
            baseline=baseline,
            logs=False,
        )
        baseline = found.baseline.name
        show(found, name)


def show(found: Report, name: str) -> None:
    lost = [cost.steps_lost for cost in found.costs if cost.steps_lost is not None]
    recovery = [cost.recovery_seconds for cost in found.costs if cost.recovery_seconds is not None]
    first = found.baseline.attempts[0]
    start_up = first.steps[0][0] - first.started_at
    rows = [
        ("verdict", found.verdict),
        ("interruptions", str(len(found.costs))),
        (f"steps lost, at most (wanted: 1 with a notice, {SAVE_EVERY} without)", str(max(lost, default=0))),
        ("the job's own start-up, machine to first step", f"{start_up:.2f} s"),
        ("kill to first new step, median", f"{statistics.median(recovery):.2f} s" if recovery else "-"),
        (
            "over the start-up (wanted: at most 3 s)",
            f"{statistics.median(recovery) - start_up:.2f} s" if recovery else "-",
        ),
        ("goodput", "unknown" if found.goodput is None else f"{100 * found.goodput:.1f} %"),
    ]
    if isinstance(found.advice, str):
        rows.append(("what the formula gives for C, M, R", f"nothing: {found.advice}"))
    elif found.advice.actual_seconds is not None:
        # With a notice nothing but the restart is lost; half an interval without.
        half = found.advice.actual_seconds if not found.plan.notice_seconds else 0.0
        formula = expected_goodput(
            max(half, 1e-9),
            cost=found.advice.checkpoint_seconds if half else 0.0,
            between=found.advice.between_seconds,
            restart=found.advice.restart_seconds,
        )
        rows.append(("what the formula gives for C, M, R (wanted: within 3 points)", f"{100 * formula:.1f} %"))
    report(f"Interrupted every {EVERY_SECONDS:g} s of training, {name}", rows)


TINY = """
import os, sys, time
from pathlib import Path
saved = Path(os.environ.get("SAGEMAKER_BASE_DIR", "/opt/ml"), "checkpoints/count")
count = int(saved.read_text()) if saved.exists() else 0
beside = saved.with_suffix(".sagemaker-ignore")
beside.write_text(str(count + 1))
beside.replace(saved)
print("ready", flush=True)
if count < LAST:
    time.sleep(20)
(saved.parents[1] / "model/count").write_text(str(count))
"""


def in_a_row(scratch: Path) -> None:
    """A tiny job that is interrupted again and again: it ends Completed, and nothing of it is left."""
    program = scratch / "tiny.py"
    program.write_text(TINY.replace("LAST", str(INTERRUPTIONS)))
    plan = InterruptionPlan(every_seconds=0.25, notice_seconds=0.5, most=INTERRUPTIONS)
    temporary = scratch / "temporary"
    temporary.mkdir()
    tempfile.tempdir = str(temporary)  # of this job alone
    descriptors = len(os.listdir("/proc/self/fd"))
    controls = control_groups()
    began = time.monotonic()
    job = optml.train(
        image="python",
        name="in-a-row",
        entrypoint=[sys.executable, str(program)],
        checkpoint=str(scratch / "row"),
        output=str(scratch / "out"),
        interruptions=plan,
        logs=False,
    )
    took = time.monotonic() - began
    time.sleep(1.0)  # servers of metadata end at their next look
    steps = [step["Status"] for step in job.describe()["SecondaryStatusTransitions"]]
    job_dir = JobDir.of("in-a-row")
    left = [folder for folder in job_dir.root.iterdir() if folder.is_dir() and folder != job_dir.logs]
    report(
        f"{INTERRUPTIONS} interruptions in a row",
        [
            ("status", job.status),
            ("interruptions", str(steps.count("Interrupted"))),
            ("attempts that had saved", str(sum(line == "ready" for _, lines in job.logs() for line in lines))),
            ("of them counted in the store", (scratch / "row" / "count").read_text()),
            ("seconds for each", f"{took / max(1, steps.count('Interrupted')):.2f}"),
            ("processes left", str(len(processes_with(str(scratch))))),
            ("descriptors left", str(len(os.listdir("/proc/self/fd")) - descriptors)),
            ("mounts left", str(mounts_of(scratch))),
            ("folders of hosts left", str(len(left))),
            ("temporary files left", str(len(os.listdir(temporary)))),
            ("control groups left", str(len(control_groups() - controls))),
            ("files in the store", ", ".join(sorted(path.name for path in (scratch / "row").rglob("*")))),
        ],
    )


def control_groups() -> set[Path]:
    return {path for path in Path("/sys/fs/cgroup").glob("**/optml-*") if path.is_dir()}


def mounts_of(folder: Path) -> int:
    return sum(str(folder) in line for line in Path("/proc/self/mounts").read_text().splitlines())


def processes_with(text: str) -> list[int]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if text.encode() in (folder / "cmdline").read_bytes() and int(folder.name) != os.getpid():
                found.append(int(folder.name))
        except OSError:
            continue
    return found


if __name__ == "__main__":
    main()
