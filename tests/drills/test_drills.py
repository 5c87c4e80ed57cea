"""optml drill: verdicts, costs and diagnoses of programs that are right and of programs that are wrong on purpose. Real jobs."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.hosts import PATIENCE_SECONDS
from tests.s3 import S3

import optml
from optml import objects
from optml.capacity import read_trace
from optml.drills import results
from optml.drills.advice import daly_interval, expected_goodput
from optml.drills.evidence import read_evidence
from optml.drills.plan import Criteria
from optml.drills.report import Report, as_json, as_text
from optml.drills.run import drill
from optml.errors import JobFailed, ResourceInUse, UserError
from optml.jobdir import JobDir, drills_dir
from optml.jobs import Job
from optml.record import exists
from optml.spec import How, InterruptionPlan, MetricDefinition, Trigger
from optml.testing import assert_survives

EXAMPLES = Path(__file__).resolve().parents[2] / "scripts" / "examples"
LOSS = {"loss": r"loss=([0-9.e+-]+)"}


def at_step(*steps: int, notice_seconds: float = 20.0, **more: Any) -> InterruptionPlan:
    """A step is printed as `step=N `; a plan that can be repeated."""
    triggers = tuple(Trigger(log=rf"step={step} ") for step in steps)
    return InterruptionPlan(triggers=triggers, notice_seconds=notice_seconds, **more)


HELD = str(Path(__file__).with_name("held.py"))


def held(folder: Path, *argv: str, pauses: str) -> list[str]:
    """A Python program that comes no further before it is interrupted (held.py)."""
    return [sys.executable, HELD, str(folder), pauses, *argv]


def drill_of(
    folder: Path, script: str, plan: InterruptionPlan | None, *, pauses: str | None = None, **more: Any
) -> Report:
    """`pauses`: after so many steps, less one, its runs stand still (held.py); else nothing holds them."""
    program = str(EXAMPLES / script)
    arguments: dict[str, Any] = {
        "image": "python",
        "name": "job",
        "entrypoint": [sys.executable, program] if pauses is None else held(folder, program, pauses=pauses),
        "metrics": LOSS,
        "output": str(folder / "out"),
        "checkpoint": str(folder / "checkpoints"),
        "working_dir": folder,
        "logs": False,
    }
    return drill(plan=plan, **(arguments | more))


def kinds(report: Report) -> list[str]:
    return [finding.kind for finding in report.findings]


def test_a_program_that_resumes_survives_and_the_report_says_what_it_cost(tmp_path: Path) -> None:
    report = drill_of(tmp_path, "resumes.py", at_step(22, 45), pauses="23,23")
    assert report.outcome == "survives", report.verdict
    assert report.findings == ()
    assert [cost.notice for cost in report.costs] == ["used", "used"]
    assert [cost.steps_lost for cost in report.costs] == [0, 0]
    assert all(cost.recovery_seconds is not None and cost.recovery_seconds > 0 for cost in report.costs)
    assert "with the same result" in report.verdict
    assert report.jump is None
    assert abs(sum(report.parts.values()) - (report.disturbed.ended_at - report.disturbed.created_at)) < 0.5
    assert report.passed
    folder = drills_dir() / "job"
    assert json.loads((folder / "report.json").read_text()) == json.loads(json.dumps(as_json(report)))
    page = (folder / "report.html").read_text()
    assert "<script" not in page
    assert "http" not in page
    assert page.count("<svg") >= 3
    assert (tmp_path / "checkpoints" / "job-drill" / "state.json").exists(), "each run has a prefix of its own"


@pytest.mark.slow
def test_without_a_notice_no_more_is_lost_than_since_the_last_checkpoint(tmp_path: Path) -> None:
    report = drill_of(tmp_path, "resumes.py", at_step(27, 48, notice_seconds=0.0), pauses="28,39")
    assert report.outcome == "survives"
    lost = [cost.steps_lost for cost in report.costs]
    assert all(steps is not None and 0 < steps <= 20 for steps in lost), lost
    assert [cost.notice for cost in report.costs] == ["none", "none"]


@pytest.mark.slow
def test_a_drill_that_is_told_nothing_interrupts_twice(tmp_path: Path) -> None:
    report = drill_of(tmp_path, "resumes.py", None, pauses="22,20", details=InterruptionPlan(notice_seconds=20.0))
    assert report.outcome == "survives"
    assert [cost.cause for cost in report.costs] == ["step 21", "step 41"], (
        "while steps are done, whatever the start takes"
    )


BROKEN: dict[str, tuple[str, dict[str, Any]]] = {
    "never_read.py": ("never read", {}),
    "elsewhere.py": ("written elsewhere", {}),
    "torn.py": (
        "torn file",
        # Ten steps, a save of 65 parts, ten steps, and half of a save.
        {"plan": InterruptionPlan(triggers=(Trigger(log="saving", count=2),), notice_seconds=20.0), "pauses": "110"},
    ),
    "rank_zero.py": ("one rank", {"instance_count": 2}),
    "state_missing.py": ("state missing", {}),
    "never_closed.py": ("never closed", {"plan": at_step(20, notice_seconds=0.0), "pauses": None}),
    "deaf.py": ("SIGTERM not heard", {"plan": at_step(12, notice_seconds=1.0), "pauses": None}),
    "full_disk.py": ("no space left", {"plan": at_step(25, how=How.FULL_DISK), "pauses": None}),
}


OUTCOMES = {"SIGTERM not heard": "survives", "state missing": "differs"}  # steps are lost; another result


@pytest.mark.slow
@pytest.mark.parametrize("script", BROKEN)
def test_a_program_that_is_wrong_on_purpose_is_told_what_is_wrong(tmp_path: Path, script: str) -> None:
    expected, more = BROKEN[script]
    arguments = {"plan": at_step(25), "pauses": "26", **more}
    try:
        report = drill_of(tmp_path, f"broken/{script}", **arguments)
    except UserError as error:
        if "hosts cannot be given names" in str(error) or "a disk that can be full cannot be had" in str(error):
            pytest.skip(str(error))
        raise
    assert kinds(report)[0] == expected, (kinds(report), report.verdict)
    finding = report.findings[0]
    assert finding.evidence
    assert finding.cure
    assert report.outcome == OUTCOMES.get(expected, "does not survive"), report.verdict
    assert finding.title[1:] in report.verdict or not finding.fatal


def test_every_wrong_program_is_drilled() -> None:
    assert sorted(os.listdir(EXAMPLES / "broken")) == sorted(BROKEN)


@pytest.mark.slow
def test_a_program_that_finishes_within_a_long_notice_is_told_that_it_did_not_hear(tmp_path: Path) -> None:
    report = drill_of(tmp_path, "broken/deaf.py", at_step(12, notice_seconds=30.0))
    assert report.outcome == "survives", report.verdict
    assert kinds(report) == ["SIGTERM not heard"]
    assert "went on for" in report.findings[0].evidence
    row = next(line for line in as_text(report).splitlines() if line.startswith("1  "))
    assert "none: all were done" in row
    assert "?" not in row


@pytest.mark.slow
def test_of_a_program_whose_steps_are_not_recognised_nothing_is_claimed(tmp_path: Path) -> None:
    text = NOTHING_SAVED.replace("step={step}", "tick{step}")
    plan = InterruptionPlan(triggers=(Trigger(log="tick20 "),), notice_seconds=20.0)
    report = drill_of(tmp_path, "", plan, entrypoint=source(tmp_path, text, pauses="21"))
    assert (report.goodput, report.lost_steps, report.recovery_seconds) == (None, None, None)
    said = as_text(report)
    assert "goodput    unknown: no steps were seen in what it prints; let it print them, or give --step-regex" in said
    assert "never" not in said
    assert "?" not in said
    page = (drills_dir() / "job" / "report.html").read_text()
    assert "What was lost is unknown" in page
    assert ">never<" not in page


NOTHING_SAVED = """
import time
for step in range(1, 41):
    time.sleep(0.05)
    print(f"step={step} loss={1 / step:.5f}", flush=True)
"""

SLOW_SAVE = """
import os, signal, sys, time
step = 0
def save(*_):
    with open(os.environ.get("SAGEMAKER_BASE_DIR", "/opt/ml") + "/checkpoints/big", "w") as file:
        for _ in range(100):
            file.write("x" * 1000)
            file.flush()
            time.sleep(0.1)
    sys.exit(0)
signal.signal(signal.SIGTERM, save)
while step < 40:
    time.sleep(0.05)
    step += 1
    print(f"step={step} loss={1 / step:.5f}", flush=True)
"""


def source(folder: Path, text: str, *, pauses: str | None = None) -> list[str]:
    file = folder / "program" / "train.py"
    file.parent.mkdir()
    file.write_text(text)
    return [sys.executable, str(file)] if pauses is None else held(folder, str(file), pauses=pauses)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "more", "expected"),
    [
        (NOTHING_SAVED, {}, "no checkpoint"),
        (NOTHING_SAVED, {"checkpoint": None}, "no checkpoint"),
        (SLOW_SAVE, {"plan": at_step(20, notice_seconds=1.0)}, "save longer than the grace"),
        (
            NOTHING_SAVED,
            {
                "plan": at_step(20, notice_seconds=0.0, reacquire_seconds=60.0),
                "spot": True,
                "max_runtime": 6,
                "max_wait": 6,
            },
            "longer than allowed",
        ),
    ],
)
def test_other_mistakes_are_told_too(tmp_path: Path, text: str, more: dict[str, Any], expected: str) -> None:
    arguments = {"plan": at_step(20), "entrypoint": source(tmp_path, text, pauses="21"), **more}
    report = drill_of(tmp_path, "", **arguments)
    assert expected in kinds(report), (kinds(report), report.verdict)
    assert report.outcome == "does not survive"
    assert report.verdict.startswith("does NOT survive")


STATE = """
import json, os, sys, time
folder = os.environ.get("SAGEMAKER_BASE_DIR", "/opt/ml") + "/checkpoints/"
def replace(name, step):
    with open(folder + name + ".tmp", "w") as file:
        json.dump(step, file)
    os.replace(folder + name + ".tmp", folder + name)
def done(step):
    time.sleep(0.05)
    print(f"step={step} loss={1 / step:.5f}", flush=True)
"""
REPLACES_ALL_THE_TIME = f"""{STATE}
step = json.load(open(folder + "state")) if os.path.exists(folder + "state") else 0
while step < 80:
    step += 1
    done(step)
    replace("state", step)
"""
GOES_BY_A_LINK = f"""{STATE}
step = json.load(open(folder + "latest/state")) if os.path.exists(folder + "latest") else 0
while step < 40:
    step += 1
    done(step)
    if step % 10 == 0:
        os.makedirs(folder + f"step-{{step}}", exist_ok=True)
        replace(f"step-{{step}}/state", step)
        os.symlink(f"step-{{step}}", folder + "link")
        os.replace(folder + "link", folder + "latest")
"""


@pytest.mark.slow
def test_a_checkpoint_that_is_replaced_at_each_step_survives_a_machine_that_goes_without_notice(tmp_path: Path) -> None:
    program = source(tmp_path, REPLACES_ALL_THE_TIME)
    report = drill_of(tmp_path, "", at_step(60, notice_seconds=0.0), entrypoint=program)
    assert report.outcome == "survives", report.verdict
    (cost,) = report.costs
    assert cost.next_step is not None
    assert cost.next_step > 1


@pytest.mark.slow
def test_a_program_that_goes_by_a_link_to_a_folder_is_told_that_it_is_not_kept(tmp_path: Path) -> None:
    report = drill_of(tmp_path, "", at_step(25), entrypoint=source(tmp_path, GOES_BY_A_LINK, pauses="26"))
    assert kinds(report)[0] == "link not kept", report.verdict
    assert "never read" not in kinds(report)
    assert "latest -> step-20" in report.findings[0].evidence


@pytest.mark.slow
def test_criteria_decide_the_exit_status(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "optml.cli", "drill", "--name", "cli", "--checkpoint", "ckpt", "--output", "out"]
    command += ["--metric", "loss=loss=([0-9.e+-]+)", "--at-log", "step=25 ", "--notice", "20s"]
    program = ["--", *held(tmp_path, str(EXAMPLES / "resumes.py"), pauses="26")]
    strict = ["--max-lost-steps", "0", "--max-recovery", "30s", "--require-equal-metrics", "--require-equal-artifacts"]
    done = subprocess.run([*command, *strict, *program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "survives 1 interruption: lost 0 steps" in done.stdout
    assert "bit for bit the same" in done.stdout
    again = [*command, "--baseline", "cli-baseline", "--name", "again", "--max-recovery", "0.001s", "--json", *program]
    done = subprocess.run(again, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    content = json.loads(done.stdout)
    assert content["Outcome"] == "survives"
    assert "to the first new step, more than 0.001 s" in content["BrokenCriteria"][0]


@pytest.mark.slow
def test_a_test_of_training_code_can_drill_it(tmp_path: Path) -> None:
    arguments: dict[str, Any] = {
        "image": "python", "metrics": LOSS, "output": str(tmp_path / "out"), "plan": at_step(25),
    }  # fmt: skip
    good = held(tmp_path, str(EXAMPLES / "resumes.py"), pauses="26")
    checkpoints = str(tmp_path / "checkpoints")
    report = assert_survives(
        **arguments, entrypoint=good, checkpoint=checkpoints, name="good", max_lost_steps=1, require_equal_metrics=True
    )
    assert report.outcome == "survives"
    bad = held(tmp_path, str(EXAMPLES / "broken" / "never_read.py"), pauses="26")
    with pytest.raises(AssertionError, match=r"(?s)does NOT survive.*cure: at start, look into /opt/ml/checkpoints"):
        assert_survives(**arguments, entrypoint=bad, checkpoint=checkpoints, name="bad")


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["process", pytest.param("docker", marks=pytest.mark.docker)])
def test_a_resumed_xgboost_model_is_bit_for_bit_the_undisturbed_one(
    tmp_path: Path, backend: str, request: pytest.FixtureRequest
) -> None:
    if backend == "docker":
        request.getfixturevalue("docker_image")("xgboost")
    subprocess.run([sys.executable, str(EXAMPLES / "make_data.py"), "data"], cwd=tmp_path, check=True)
    report = assert_survives(
        image="xgboost",
        name="trees",
        backend=backend,
        channels={
            name: {"uri": str(tmp_path / "data" / name), "content_type": "text/csv"} for name in ("train", "validation")
        },
        hyperparameters={"objective": "binary:logistic", "num_round": 900, "max_depth": 3, "nthread": 1},
        checkpoint=str(tmp_path / "checkpoints"),
        output=str(tmp_path / "out"),
        plan=InterruptionPlan(triggers=(Trigger(log=r"^\[250\]"), Trigger(log=r"^\[500\]")), notice_seconds=20.0),
        require_equal_artifacts=True,
    )
    assert len(report.costs) == 2
    assert report.artifact_differences == ()
    resumed = [attempt.first_step for attempt in report.disturbed.attempts[1:]]
    assert all(first is not None and first[1] >= 250 for first in resumed), resumed
    models = [results.artifact_digests(job) for job in (report.baseline, report.disturbed)]
    assert models[0] == models[1]
    assert list(models[0] or ()) == ["xgboost-model"]


def test_a_job_that_does_not_complete_undisturbed_cannot_be_drilled(tmp_path: Path) -> None:
    with pytest.raises(JobFailed, match="job-baseline ended Failed without any interruption"):
        drill_of(tmp_path, "", at_step(3), entrypoint=[sys.executable, "-c", "raise SystemExit(3)"])


def test_a_request_from_standard_input_is_read_once_for_both_jobs(tmp_path: Path) -> None:
    algorithm = {"TrainingImage": "python", "ContainerEntrypoint": [sys.executable, "-c", "raise SystemExit(3)"]}
    done = subprocess.run(
        [sys.executable, "-m", "optml.cli", "drill", "-", "--name", "piped", "--output", "out"],
        input=json.dumps({"AlgorithmSpecification": algorithm}),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "piped-baseline ended Failed without any interruption" in done.stderr, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "kind", "message"),
    [
        (["--", sys.executable, "-c", "raise SystemExit(3)"], 2, "JobFailed", "ended Failed without any interruption"),
        (["--at-metric", "loss:3", "--", "true"], 2, "UserError", "the job has no such metric"),
        (["--most", "0", "--", "true"], 2, "BadParameter", "--most"),
        (["--no-such-option"], 2, "NoSuchOption", "--no-such-option"),
        (["absent.json"], 2, "", "absent.json"),
    ],
)
def test_an_error_is_json_too_where_that_was_asked_for(
    tmp_path: Path, arguments: list[str], code: int, kind: str, message: str
) -> None:
    command = [sys.executable, "-m", "optml.cli", "drill", "--json", "--name", "wrong", "--output", "out", *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    content = json.loads(done.stdout)
    assert not content["Passed"]
    assert content["Error"]["Kind"] == kind or not kind
    assert message in content["Error"]["Message"]
    assert message in done.stderr
    command.remove("--json")
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert '"Error"' not in done.stdout


@pytest.mark.slow
def test_an_earlier_drill_of_the_name_is_refused_before_anything_runs_or_replaced(tmp_path: Path) -> None:
    drill_of(tmp_path, "resumes.py", at_step(22))
    kept = tmp_path / "checkpoints" / "other"
    kept.mkdir()
    (tmp_path / "checkpoints" / "job-drill" / "link").symlink_to(kept)
    (kept / "file").write_text("of another job")
    Job("job-baseline").delete()
    with pytest.raises(ResourceInUse, match="the job job-drill exists already; give another --name, or --overwrite"):
        drill_of(tmp_path, "resumes.py", at_step(22))
    assert not exists("job-baseline"), "the undisturbed run was not done in vain"
    shutil.rmtree(tmp_path / "checkpoints" / "job-baseline")
    report = drill_of(tmp_path, "resumes.py", at_step(30), overwrite=True)
    assert [cost.last_step is not None and cost.last_step >= 30 for cost in report.costs] == [True]
    assert (kept / "file").exists()


@pytest.mark.slow
def test_an_earlier_drill_in_s3_is_overwritten_and_nothing_beside_it(tmp_path: Path, s3: S3) -> None:
    bucket = s3.new_bucket()
    stores: dict[str, Any] = {
        "checkpoint": f"s3://{bucket}/ckpt",
        "output": f"s3://{bucket}/out",
        "working_dir": tmp_path,
    }
    criteria = Criteria(require_equal_metrics=True, require_equal_artifacts=True)

    def drilled(**more: Any) -> Report:
        return drill_of(tmp_path, "resumes.py", at_step(22), criteria=criteria, **stores, **more)

    first = drilled()
    assert first.passed, first.broken_criteria
    assert first.artifact_differences == (), "models in a store are compared too"
    kept = ["ckpt/job-drill-2/state.json", "ckpt/job-drilled", "ckpt/job.json", "ckpt/job/job-drill/x"]
    for key in kept:
        s3.client.put_object(Bucket=bucket, Key=key, Body=b"of another job")
    for run in ("job-baseline", "job-drill"):
        s3.client.put_object(Bucket=bucket, Key=f"ckpt/{run}/of the first/\N{SNOWMAN}", Body=b"x")
    with pytest.raises(ResourceInUse, match="the job job-baseline exists already"):
        drilled()
    second = drilled(overwrite=True)
    assert second.passed, second.broken_criteria
    there = [info.key for info in objects.list_objects(f"s3://{bucket}/ckpt/")]
    assert [key for key in there if "of the first" in key] == []
    assert set(kept) <= set(there)
    assert {"ckpt/job-baseline/state.json", "ckpt/job-drill/state.json"} <= set(there)
    Job("job-baseline").delete()
    Job("job-drill").delete()
    with pytest.raises(UserError, match=r"ckpt/job-baseline holds another job's files already"):
        drilled(overwrite=True)


def test_a_job_that_is_no_drills_is_not_overwritten(tmp_path: Path) -> None:
    done = optml.train(image="python", name="job-drill", entrypoint=["true"], output=str(tmp_path / "out"), logs=False)
    assert done.status == "Completed"
    with pytest.raises(ResourceInUse, match="--overwrite: the job job-drill was not run by a drill"):
        drill_of(tmp_path, "resumes.py", at_step(22), overwrite=True)
    assert exists("job-drill")


def test_a_prefix_with_another_jobs_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "checkpoints" / "job-baseline").mkdir(parents=True)
    (tmp_path / "checkpoints" / "job-baseline" / "old").write_text("x")
    with pytest.raises(UserError, match="holds another job's files"):
        drill_of(tmp_path, "resumes.py", at_step(3))


def test_a_report_of_an_earlier_drill_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "report.html").write_text("earlier")
    with pytest.raises(
        UserError, match=r"--report .* holds the report of an earlier drill \(report\.html\): remove it"
    ):
        drill_of(tmp_path, "resumes.py", at_step(3), report_dir=tmp_path / "report")
    assert (tmp_path / "report" / "report.html").read_text() == "earlier"
    assert not (tmp_path / "out").exists(), "nothing ran"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no json", "is not JSON"),
        ("[1, 0]", "is no trace"),
        ('{"data": [1]}', "gap_seconds must be a number above 0, got None"),
        ('{"gap_seconds": 0, "data": [1]}', "gap_seconds must be"),
        ('{"gap_seconds": 1, "data": []}', "data must be a list"),
        ('{"gap_seconds": 1, "data": [1, 2]}', r"data\[1\] must be 0 or 1, got 2"),
        ('{"gap_seconds": 1, "data": [1, true]}', r"data\[1\] must be 0 or 1"),
    ],
)
def test_a_trace_that_is_none_is_refused(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "trace.json"
    file.write_text(text)
    with pytest.raises(UserError, match=message):
        read_trace(file)


def test_both_shapes_of_public_traces_are_read(tmp_path: Path) -> None:
    flat, nested = tmp_path / "flat.json", tmp_path / "nested.json"
    flat.write_text('{"gap_seconds": 600, "data": [1, 0, 1]}')
    nested.write_text('{"metadata": {"gap_seconds": 600, "zone": "us-east-1a"}, "data": [1, 0, 1]}')
    assert read_trace(flat) == read_trace(nested)
    with pytest.raises(UserError, match="No such file"):
        read_trace(tmp_path / "missing.json")


def test_the_advised_interval_is_the_best_by_the_formula() -> None:
    """Daly's interval against a search: no other is better by more than a thousandth."""
    for cost, between in ((0.1, 60.0), (5.0, 3600.0), (30.0, 1800.0)):
        advised = daly_interval(cost, between)
        best = max(
            expected_goodput(tau, cost=cost, between=between, restart=0.0)
            for tau in (x * 0.05 for x in range(1, 40_000))
        )
        assert expected_goodput(advised, cost=cost, between=between, restart=0.0) > best - 1e-3
    assert daly_interval(100.0, 10.0) == 10.0
    assert daly_interval(0.0, 10.0) == 0.0


@pytest.mark.slow
def test_the_page_opens_in_a_browser(tmp_path: Path) -> None:
    browser = next(
        (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
    )
    if browser is None:
        pytest.skip("no Chromium here (apt-get install chromium)")
    drill_of(tmp_path, "broken/never_read.py", at_step(25), pauses="26")
    page = drills_dir() / "job" / "report.html"
    picture = tmp_path / "page.png"
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--virtual-time-budget=2000",
        f"--user-data-dir={tmp_path / 'profile'}",
    ]
    dom = subprocess.run(
        [browser, *flags, "--dump-dom", page.as_uri()],
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE_SECONDS,
        check=True,
    ).stdout
    assert "Does NOT survive" in dom
    assert "never read at start" in dom
    assert dom.count("</svg>") >= 3
    subprocess.run(
        [browser, *flags, "--window-size=1100,2400", f"--screenshot={picture}", page.as_uri()],
        capture_output=True,
        timeout=2 * PATIENCE_SECONDS,
        check=True,
    )
    assert picture.stat().st_size > 20_000


def test_a_log_belongs_to_the_attempt_that_is_said_to_have_it(tmp_path: Path) -> None:
    """An attempt that was over before its hosts ran has none, and its place is not taken by the next one's."""
    optml.train(
        image="python",
        name="second-try",
        entrypoint=source(tmp_path, "print('step=1 loss=0.5\\nstep=2 loss=0.4', flush=True)"),
        output=str(tmp_path / "out"),
        evidence=True,
        logs=False,
    )
    file = JobDir.of("second-try").events_file
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    first = [
        {"Time": rows[0]["Time"] - 1, "Attempt": 1, "Kind": "attempt-started"},
        {"Time": rows[0]["Time"] - 1, "Attempt": 1, "Kind": "log", "Host": "algo-1", "Stream": "algo-1-1.log"},
    ]
    rows = [{**row, "Attempt": row["Attempt"] + 1} for row in rows]
    file.write_text("".join(f"{json.dumps(row)}\n" for row in first + rows))
    evidence = read_evidence("second-try", metrics=[MetricDefinition(name="loss", regex=LOSS["loss"])])
    assert [attempt.curve for attempt in evidence.attempts] == [[], [(1, {"loss": 0.5}), (2, {"loss": 0.4})]]


@pytest.mark.slow
def test_a_program_that_goes_on_without_room_survives_a_full_disk(tmp_path: Path) -> None:
    plan = at_step(25, how=How.FULL_DISK, away_seconds=1.0)
    try:
        report = drill_of(tmp_path, "resumes.py", plan)
    except UserError as error:
        pytest.skip(str(error))
    assert report.outcome == "survives", report.verdict
    assert report.findings == ()
    (disk,) = report.full_disks
    assert (disk.arrived, disk.torn, disk.ended_seconds) == (0, "", None)
    assert "No space left" in disk.said
    assert disk.next_seconds is not None
    assert disk.last_before == "state.json"
    assert "survives a full disk: full for" in report.verdict
    page = (drills_dir() / "job" / "report.html").read_text()
    assert "The disk that was full" in page
    assert "Red bars: the disk was full." in page


@pytest.mark.slow
def test_half_a_file_that_a_full_disk_left_is_found(tmp_path: Path) -> None:
    text = """
import time
from pathlib import Path
for step in range(1, 31):
    time.sleep(0.1)
    try:
        Path(f"/opt/ml/checkpoints/state-{step}").write_bytes(b"x" * 50_000)
    except OSError as error:
        print(error, flush=True)
    print(f"step={step} loss={1 / step:.5f}", flush=True)
"""
    try:
        report = drill_of(
            tmp_path, "", at_step(12, how=How.FULL_DISK, away_seconds=0.8), entrypoint=source(tmp_path, text)
        )
    except UserError as error:
        pytest.skip(str(error))
    assert kinds(report) == ["torn by a full disk"]
    assert report.outcome == "does not survive", "nothing took its place"
    assert "and had 50,000" in report.findings[0].evidence


def test_the_page_says_what_was_done_and_which_criteria_are_met(tmp_path: Path) -> None:
    drill_of(tmp_path, "resumes.py", at_step(25), criteria=Criteria(max_lost_steps=2, max_recovery_seconds=0.001))
    page = (drills_dir() / "job" / "report.html").read_text()
    place = page.index("Criterion not met: interruption 1:")
    assert 'class="verdict bad"' in page
    assert place < page.index("What was done: SIGTERM to the main process, SIGKILL 20.0 s later; all hosts; when:")
    assert place < page.index("Each interruption")
    assert "optml logs job-drill" in page
