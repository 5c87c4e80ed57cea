"""Managed spot training and machines that are taken away: rows C55-C57, notices, what a second machine finds. Real jobs."""

import functools
import itertools
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from tests import harness
from tests.clocks import HeldClock
from tests.harness import ML, WAIT, Done, files, let, meanwhile, printed, run, statuses
from tests.hosts import PATIENCE_SECONDS, eventually

import optml
from optml.clock import FastClock
from optml.errors import UserError
from optml.jobdir import JobDir
from optml.spec import How, InterruptionPlan, SignalTo, Trace, Trigger

# Counts to STEPS, a checkpoint after each; goes on from what is there. `while` it waits, it hears SIGTERM. At each of HOLDS that
# it comes to it stands still until it is interrupted, or the test lets `past-STEP`: a slow machine interrupts it there, too.
COUNTER = (
    ML
    + WAIT
    + """
import json, signal, sys, time
saved = ml / "checkpoints/state.json"
begun_at = step = json.loads(saved.read_text())["step"] if saved.exists() else 0
print("starting at", step, flush=True)
def save():
    beside = saved.with_name("state.json.sagemaker-ignore")
    beside.write_text(json.dumps({"step": step}))
    beside.replace(saved)
def leave(*_):
    save()
    print("notice heard at", step, flush=True)
    sys.exit(LEAVE)
signal.signal(signal.SIGTERM, leave)
while step < STEPS:
    time.sleep(PAUSE)
    step += 1
    if EVERY and step % EVERY == 0:
        save()
    print(f"step={step} loss={1 / step:.4f}", flush=True)
    if begun_at < step in HOLDS:
        wait_for(f"past-{step}")
(ml / "model/steps").write_text(str(step))
"""
)


def counter(
    *, steps: int = 12, pause: float = 0.05, every: int = 1, leave: int = 0, holds: tuple[int, ...] = ()
) -> str:
    values = {"STEPS": steps, "PAUSE": pause, "EVERY": every, "LEAVE": leave, "HOLDS": holds}
    text = COUNTER
    for name, value in values.items():
        text = text.replace(name, str(value))
    return text


def let_when_interrupted(folder: Path, name: str, gate: str = "go") -> None:
    """The program that was interrupted is no more; let its successor go on."""
    assert eventually(lambda: "Interrupted" in statuses(name))
    let(folder, gate)


def let_when_uploaded(folder: Path, checkpoint: str) -> None:
    """The file is where the next machine finds it; let the program go on that wrote it."""
    assert eventually((folder / "checkpoints" / checkpoint).exists)
    let(folder, "uploaded")


def events(done: Done, kind: str) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in JobDir.of(done.job.name).events_file.read_text().splitlines()]
    return [row for row in rows if row["Kind"] == kind]


AFTER_5 = InterruptionPlan(triggers=(Trigger(log=r"step=5\b"),), notice_seconds=20.0)


@pytest.mark.parametrize("leave", [0, 3, 143])
def test_an_interrupted_spot_job_goes_on_from_its_checkpoints_c55(tmp_path: Path, leave: int) -> None:
    done = run(
        tmp_path,
        counter(leave=leave, holds=(5,)),
        checkpoint=str(tmp_path / "checkpoints"),
        spot=True,
        max_runtime=600,
        max_wait=900,
        interruptions=AFTER_5,
    )
    assert done.describe["TrainingJobStatus"] == "Completed", done.reason
    assert done.secondary == [
        "Starting", "Training", "Interrupted", "Starting", "Downloading", "Training", "Uploading", "Completed",
    ]  # fmt: skip
    assert done.model == {"steps": b"12"}
    heard = next(line for line in done.log.splitlines() if line.startswith("notice heard"))
    assert f"starting at {heard.rpartition(' ')[2]}\n" in done.log, "what the notice gave time for was saved"
    assert len(events(done, "interrupted")) == 1
    steps = done.describe["SecondaryStatusTransitions"]
    assert all(before["EndTime"] == after["StartTime"] for before, after in itertools.pairwise(steps))
    assert steps[2]["StatusMessage"]


def test_without_a_notice_what_was_not_uploaded_is_lost(tmp_path: Path) -> None:
    plan = InterruptionPlan(triggers=(Trigger(log=r"step=11\b"),), notice_seconds=0.0)
    store = tmp_path / "checkpoints" / "state.json"

    def let_it_on() -> None:
        assert eventually(lambda: store.exists() and json.loads(store.read_text()) == {"step": 8})
        let(tmp_path, "past-10")
        let_when_interrupted(tmp_path, "unwarned", "past-11")

    with meanwhile(let_it_on):
        done = run(
            tmp_path,
            counter(every=4, holds=(10, 11)),
            name="unwarned",
            checkpoint=str(tmp_path / "checkpoints"),
            interruptions=plan,
        )
    assert done.describe["TrainingJobStatus"] == "Completed"
    assert "notice heard" not in done.log
    assert [line for line in done.log.splitlines() if line.startswith("starting at")] == [
        "starting at 0",
        "starting at 8",
    ]


def test_the_next_machine_has_an_empty_disk(tmp_path: Path) -> None:
    script = ML + (
        WAIT
        + """
print("left over:", sorted(path.name for path in (ml / "model").iterdir()), flush=True)
(ml / "model/of-the-first").write_text("x")
print("ready", flush=True)
wait_for("go")
"""
    )
    plan = InterruptionPlan(triggers=(Trigger(log="ready"),), notice_seconds=0.0)
    with meanwhile(lambda: let_when_interrupted(tmp_path, "two-disks")):
        done = run(tmp_path, script, name="two-disks", interruptions=plan)
    assert done.log.count("left over: []\n") == 2
    assert done.model == {"of-the-first": b"x"}


def test_a_notice_goes_through_no_link_that_a_program_has_put_in_its_way(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    script = f"""{WAIT}
import os, shutil
config = os.path.join(os.environ.get("SAGEMAKER_BASE_DIR", "/opt/ml"), "input/config")
shutil.rmtree(config)
os.symlink({str(elsewhere)!r}, config)
print("ready", flush=True)
wait_for("go")
"""
    plan = InterruptionPlan(triggers=(Trigger(log="ready"),), notice_seconds=20.0)
    with meanwhile(lambda: let_when_interrupted(tmp_path, "linked")):
        done = run(tmp_path, script, name="linked", interruptions=plan)
    assert done.secondary.count("Interrupted") == 1
    assert os.listdir(elsewhere) == []


def test_never_an_instance_is_max_wait_time_exceeded_c56(tmp_path: Path) -> None:
    plan = InterruptionPlan(trace=Trace(gap_seconds=60, available=(False,)))
    done = run(tmp_path, spot=True, max_runtime=60, max_wait=3600, interruptions=plan, clock=FastClock(7200))
    assert done.describe["TrainingJobStatus"] == "Stopped"
    assert done.describe["SecondaryStatus"] == "MaxWaitTimeExceeded"
    assert done.secondary == ["Starting", "Starting", "Stopping", "MaxWaitTimeExceeded"]
    steps = done.describe["SecondaryStatusTransitions"]
    assert steps[1]["StatusMessage"] == "Insufficient capacity error from EC2 while launching instances, retrying!"
    for field in ("TrainingStartTime", "TrainingEndTime", "TrainingTimeInSeconds", "BillableTimeInSeconds"):
        assert field not in done.describe


def test_waiting_between_machines_is_not_billed_c57(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """15 s of running, 60 s of waiting, 25 s of running."""
    plan = InterruptionPlan(at_seconds=(15.0,), notice_seconds=10.0, reacquire_seconds=60.0)
    clock = HeldClock()

    def turn() -> None:
        assert eventually(lambda: "step=5 " in printed("billed"))
        clock.turn(15)
        assert eventually(lambda: statuses("billed")[-3:] == ["Interrupted", "Starting", "Starting"])
        clock.turn(60)
        assert eventually(lambda: "step=8 " in printed("billed"))
        clock.turn(25)
        let(tmp_path, "past-8")

    with meanwhile(turn):
        done = run(
            tmp_path,
            counter(holds=(5, 8)),
            name="billed",
            checkpoint=str(tmp_path / "checkpoints"),
            spot=True,
            max_runtime=600,
            max_wait=900,
            interruptions=plan,
            clock=clock,
            logs=True,
        )
    described = done.describe
    assert described["TrainingJobStatus"] == "Completed"
    training, billable = described["TrainingTimeInSeconds"], described["BillableTimeInSeconds"]
    assert (training, billable) == (100, 40)
    said = capfd.readouterr().out
    assert f"Managed Spot Training savings: {(1 - billable / training) * 100:.1f}%" in said
    assert f"training seconds: {training}, billable: {billable}" in said


def test_a_spot_job_that_is_never_interrupted_is_billed_in_full(tmp_path: Path) -> None:
    done = run(tmp_path, spot=True, max_runtime=60, max_wait=60)
    assert done.describe["TrainingTimeInSeconds"] == done.describe["BillableTimeInSeconds"]


def test_max_wait_passes_while_a_new_machine_is_waited_for(tmp_path: Path) -> None:
    plan = InterruptionPlan(at_seconds=(5.0,), notice_seconds=0.0, reacquire_seconds=10_000.0)
    clock = HeldClock()

    def turn() -> None:
        assert eventually(lambda: "on\n" in printed("waits"))
        clock.turn(5)
        assert eventually(lambda: statuses("waits")[-3:] == ["Interrupted", "Starting", "Starting"])
        clock.turn(995)

    with meanwhile(turn):
        done = run(
            tmp_path,
            "import time; print('on', flush=True); time.sleep(600)",
            name="waits",
            spot=True,
            max_runtime=100,
            max_wait=1000,
            interruptions=plan,
            clock=clock,
        )
    assert done.secondary[-5:] == ["Interrupted", "Starting", "Starting", "Stopping", "MaxWaitTimeExceeded"]
    assert done.describe["TrainingTimeInSeconds"] == 1000


def test_max_runtime_counts_the_training_of_all_machines(tmp_path: Path) -> None:
    plan = InterruptionPlan(every_seconds=20.0, notice_seconds=0.0, reacquire_seconds=100.0)
    clock = HeldClock()

    def machine_runs(number: int) -> bool:
        """Its lease has begun: its lines are looked at."""
        file = JobDir.of("thrice").events_file
        return file.exists() and file.read_text().count('"Kind": "first-line"') == number

    def turn() -> None:
        for machine in (1, 2):
            assert eventually(functools.partial(machine_runs, machine))
            clock.turn(20)
            assert eventually(lambda: statuses("thrice")[-3:] == ["Interrupted", "Starting", "Starting"])
            clock.turn(100)
        assert eventually(functools.partial(machine_runs, 3))
        clock.turn(10)

    with meanwhile(turn):
        done = run(
            tmp_path,
            "import time; print('on', flush=True); time.sleep(600)",
            name="thrice",
            grace_seconds=0.0,  # as process 1 of a container the program is deaf, and time stands still
            max_runtime=50,
            interruptions=plan,
            clock=clock,
        )
    assert done.describe["SecondaryStatus"] == "MaxRuntimeExceeded"
    steps = done.describe["SecondaryStatusTransitions"]
    trained = [(step["EndTime"] - step["StartTime"]).total_seconds() for step in steps if step["Status"] == "Training"]
    assert trained == [20, 20, 10]
    assert done.describe["TrainingTimeInSeconds"] == 250


def test_a_stop_ends_the_wait_for_a_machine(tmp_path: Path) -> None:
    def stop() -> None:
        assert eventually(lambda: statuses("waits") == ["Starting", "Starting"])
        optml.Job("waits").stop()

    plan = InterruptionPlan(trace=Trace(gap_seconds=3600, available=(False, True)))
    with meanwhile(stop):
        done = run(tmp_path, name="waits", interruptions=plan)
    assert done.secondary == ["Starting", "Starting", "Stopping", "Stopped"]


def test_a_trace_that_ends_without_a_machine_fails_a_job_that_waits_for_ever(tmp_path: Path) -> None:
    plan = InterruptionPlan(trace=Trace(gap_seconds=1, available=(True, False)), notice_seconds=0.0)
    done = run(tmp_path, "import time; time.sleep(600)", interruptions=plan, clock=FastClock(5))
    assert done.reason.startswith("CapacityError: there is no machine any more")


def test_interruptions_use_up_no_retries(tmp_path: Path) -> None:
    plan = InterruptionPlan(triggers=tuple(Trigger(log=f"step={n}$|step={n} ") for n in (2, 4, 6)), notice_seconds=20.0)
    script = counter(holds=(2, 4, 6))
    done = run(tmp_path, script, checkpoint=str(tmp_path / "checkpoints"), interruptions=plan, retries=1)
    assert done.describe["TrainingJobStatus"] == "Completed"
    assert done.secondary.count("Interrupted") == 3


def test_a_failure_after_an_interruption_fails(tmp_path: Path) -> None:
    script = ML + (
        WAIT
        + """
import sys
saved = ml / "checkpoints/been-here"
if saved.exists():
    sys.exit(7)
saved.write_text("")
wait_for("uploaded")
print("ready", flush=True)
time.sleep(600)
"""
    )
    plan = InterruptionPlan(triggers=(Trigger(log="ready"),), notice_seconds=0.0)
    with meanwhile(lambda: let_when_uploaded(tmp_path, "been-here")):
        done = run(tmp_path, script, checkpoint=str(tmp_path / "checkpoints"), interruptions=plan)
    assert done.reason.endswith("exit code: 7")


def test_an_interruption_comes_after_so_many_values_of_a_metric(tmp_path: Path) -> None:
    plan = InterruptionPlan(triggers=(Trigger(metric="loss", count=4),), notice_seconds=20.0)
    done = run(
        tmp_path,
        counter(holds=(4,)),
        checkpoint=str(tmp_path / "checkpoints"),
        interruptions=plan,
        metrics={"loss": r"loss=(\S+)"},
    )
    heard = next(line for line in done.log.splitlines() if line.startswith("notice heard"))
    assert heard == "notice heard at 4"


def test_a_trigger_that_never_comes_is_named_at_the_end(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    plan = InterruptionPlan(triggers=(Trigger(metric="loss", count=100), Trigger(log="nothing")))
    done = run(tmp_path, counter(steps=2, every=0), interruptions=plan, metrics={"loss": r"loss=(\S+)"}, logs=True)
    assert done.describe["TrainingJobStatus"] == "Completed"
    said = capfd.readouterr().out
    assert "--at-metric loss:100 never came" in said
    assert "--at-log nothing never came" in said


@pytest.mark.process_host  # the service of a container is the same, at another address
def test_a_program_may_leave_in_the_middle_of_its_request(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    script = """
import os, socket, struct, time, urllib.parse
place = urllib.parse.urlsplit(os.environ["AWS_EC2_METADATA_SERVICE_ENDPOINT"])
with socket.create_connection((place.hostname, place.port)) as connection:
    connection.sendall(b"GET /latest/meta-data/instance-id HTTP/1.1\\r\\n")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # closed by a reset
time.sleep(0.3)
"""
    done = run(tmp_path, script, interruptions=InterruptionPlan(every_seconds=100), logs=True)
    assert done.describe["TrainingJobStatus"] == "Completed"
    assert "Exception" not in "".join(capfd.readouterr())


def test_an_expression_that_backtracks_does_not_hold_up_the_job(tmp_path: Path) -> None:
    evil = r"(?:a|aa)+(b)$"  # centuries, on this line
    plan = InterruptionPlan(triggers=(Trigger(log=evil),))
    done = run(tmp_path, f"print({'a' * 100!r} + '! b')", interruptions=plan, step_regex=evil)
    assert done.describe["TrainingJobStatus"] == "Completed"


def test_a_program_that_ignores_the_notice_is_killed(tmp_path: Path) -> None:
    script = f"{WAIT}import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); wait_for('go')"
    plan = InterruptionPlan(triggers=(Trigger(log="ready"),), notice_seconds=120.0)
    with meanwhile(lambda: let_when_interrupted(tmp_path, "ignores")):
        done = run(tmp_path, script, name="ignores", interruptions=plan, clock=FastClock(200))
    assert done.describe["TrainingJobStatus"] == "Completed"
    assert done.secondary.count("Interrupted") == 1
    assert len(events(done, "killed")) == 1


def test_a_machine_that_hangs_says_nothing_more(tmp_path: Path) -> None:
    plan = InterruptionPlan(triggers=(Trigger(log=r"step=5\b"),), notice_seconds=1.0, how=How.HANG)
    with meanwhile(lambda: let_when_interrupted(tmp_path, "hangs", "past-5")):
        done = run(
            tmp_path,
            counter(holds=(5,)),
            name="hangs",
            checkpoint=str(tmp_path / "checkpoints"),
            interruptions=plan,
        )
    assert done.describe["TrainingJobStatus"] == "Completed"
    assert "notice heard" not in done.log
    first, second = (int(line.rpartition(" ")[2]) for line in done.log.splitlines() if line.startswith("starting at"))
    assert (first, second) == (0, 5), "it stood still after its fifth step"


def test_a_checkpoint_store_that_is_away_ends_nothing_and_loses_nothing(tmp_path: Path) -> None:
    plan = InterruptionPlan(at_seconds=(0.3,), how=How.STORE_AWAY, away_seconds=1.0)

    def let_it_on() -> None:
        file = JobDir.of("away").events_file
        assert eventually(lambda: file.exists() and "store-away" in file.read_text())
        let(tmp_path, "past-8")

    with meanwhile(let_it_on):
        done = run(
            tmp_path,
            counter(holds=(8,)),
            name="away",
            checkpoint=str(tmp_path / "checkpoints"),
            interruptions=plan,
        )
    assert done.describe["TrainingJobStatus"] == "Completed"
    assert "Interrupted" not in done.secondary
    assert json.loads((tmp_path / "checkpoints/state.json").read_text()) == {"step": 12}
    assert len(events(done, "store-away")) == 1


# Saves whenever it is told to, and says whether there was room.
SAVES = (
    ML
    + """
import time
print("found", sorted(path.name for path in (ml / "checkpoints").iterdir()), flush=True)
for number in range(20):
    time.sleep(0.1)
    beside = ml / "checkpoints/state.sagemaker-ignore"
    try:
        beside.write_text(f"{number:09d}" * 3000)
        beside.replace(ml / "checkpoints/state")
        print("saved", number, flush=True)
    except OSError as error:
        print("errno", error.errno, (ml / "checkpoints/state").stat().st_size, flush=True)
"""
)


def full_disk_or_skip() -> None:
    if why := harness.capabilities().why_no_disk:
        pytest.skip(f"no disk that can be full: {why}")


def test_a_disk_that_is_full_takes_no_more_until_there_is_room_again(tmp_path: Path) -> None:
    full_disk_or_skip()
    mounts = Path("/proc/self/mounts").read_text().count(str(tmp_path))
    plan = InterruptionPlan(triggers=(Trigger(log="saved 3"),), how=How.FULL_DISK, away_seconds=0.6)
    checkpoints = files(tmp_path / "checkpoints", {"restored": "r"})
    done = run(tmp_path, SAVES, checkpoint=str(checkpoints), interruptions=plan, keep_files=True)
    assert done.describe["TrainingJobStatus"] == "Completed", done.reason
    said = done.log.splitlines()
    assert said[:2] == ["found ['restored']", "saved 0"]
    full = [line for line in said if line.startswith("errno")]
    assert full
    assert set(full) == {"errno 28 27000"}, "ENOSPC, and what was there stands"
    assert said[-1] == "saved 19"
    assert sorted(os.listdir(checkpoints)) == ["restored", "state"]
    assert (checkpoints / "state").read_text() == f"{19:09d}" * 3000
    assert "Interrupted" not in done.secondary
    assert len(events(done, "disk-full")) == len(events(done, "disk-freed")) == 1
    assert "restored" not in [row["Path"] for row in events(done, "checkpoint-uploaded")], "it is in the store already"
    assert Path("/proc/self/mounts").read_text().count(str(tmp_path)) == mounts


def test_a_disk_that_is_full_to_the_end_keeps_what_was_whole(tmp_path: Path) -> None:
    full_disk_or_skip()
    plan = InterruptionPlan(triggers=(Trigger(log="saved 3"),), how=How.FULL_DISK, away_seconds=3600.0)
    done = run(tmp_path, SAVES, checkpoint=str(tmp_path / "checkpoints"), interruptions=plan)
    assert done.describe["TrainingJobStatus"] == "Completed", done.reason
    last = max(int(line.rpartition(" ")[2]) for line in done.log.splitlines() if line.startswith("saved"))
    assert last < 19
    assert (tmp_path / "checkpoints/state").read_text() == f"{last:09d}" * 3000
    assert events(done, "disk-freed") == []


def test_what_a_program_saves_that_ends_at_once_is_kept_though_its_disk_goes_with_it(tmp_path: Path) -> None:
    full_disk_or_skip()
    script = "#!/bin/sh\necho saved > /opt/ml/checkpoints/file\n"
    (tmp_path / "program").mkdir()
    (tmp_path / "program" / "save.sh").write_text(script)
    done = run(
        tmp_path,
        checkpoint=str(tmp_path / "checkpoints"),
        interruptions=InterruptionPlan(at_seconds=(100.0,), how=How.FULL_DISK),
        entrypoint=["sh", str(tmp_path / "program" / "save.sh")],
    )
    assert done.describe["TrainingJobStatus"] == "Completed", done.reason
    assert (tmp_path / "checkpoints/file").read_text() == "saved\n"


def test_files_of_a_full_disk_are_not_read_by_who_looks_after_them(tmp_path: Path) -> None:
    """The evidence of what a program reads stands when its folder moves to a disk of its own."""
    full_disk_or_skip()
    script = ML + "import time; (ml / 'checkpoints/one').read_bytes(); print('ready', flush=True); time.sleep(1)"
    checkpoints = files(tmp_path / "checkpoints", {"one": "1", "two": "2"})
    plan = InterruptionPlan(triggers=(Trigger(log="ready"),), how=How.FULL_DISK)
    done = run(tmp_path, script, checkpoint=str(checkpoints), interruptions=plan)
    assert [(row["Read"], row["Unread"]) for row in events(done, "checkpoint-read")] == [(["one"], ["two"])]


# A main process that passes nothing on, and two workers: one of its group, one that has left it.
CREW = (
    ML
    + """
import signal, subprocess, sys, time
# Each line in one piece: two processes write at once, and print() writes a line's end by itself.
worker = "import os, signal, time; say = lambda text: os.write(1, text + bytes([10])) and 0; "
worker += "signal.signal(signal.SIGTERM, lambda *_: exit(say(b'worker heard'))); say(b'up'); time.sleep(600)"
if (ml / "checkpoints/been-here").exists():
    sys.exit(0)
(ml / "checkpoints/been-here").write_text("")
workers = [subprocess.Popen([sys.executable, "-c", worker], start_new_session=own) for own in (False, True)]
def leave(*_):
    print("main heard", flush=True)
    for worker in workers:
        try:
            worker.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            print("worker runs on", flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, leave)
time.sleep(600)
"""
)


@pytest.mark.parametrize(
    ("who", "heard"),
    [
        (SignalTo.MAIN_PROCESS, ["main heard", "worker runs on", "worker runs on"]),
        (SignalTo.EVERY_PROCESS, ["main heard", "worker heard", "worker heard"]),
    ],
)
def test_the_main_process_hears_the_notice_or_every_process(tmp_path: Path, who: SignalTo, heard: list[str]) -> None:
    plan = InterruptionPlan(triggers=(Trigger(log="^up$", count=2),), notice_seconds=100.0, signal_to=who)
    crew = CREW.replace("PATIENCE", "1" if who is SignalTo.MAIN_PROCESS else "60")
    done = run(tmp_path, crew, checkpoint=str(tmp_path / "checkpoints"), interruptions=plan)
    assert done.describe["TrainingJobStatus"] == "Completed", done.reason
    assert sorted(line for line in done.log.splitlines() if line != "up") == heard
    assert events(done, "killed") == []


def test_one_host_is_hit_and_the_others_go_with_it(tmp_path: Path) -> None:
    script = (
        ML
        + WAIT
        + """
import json, signal, sys
host = json.loads((ml / "input/config/resourceconfig.json").read_text())["current_host"]
signal.signal(signal.SIGTERM, lambda *_: sys.exit(print(host, "heard", flush=True)))
again = (ml / "checkpoints/flag").exists()
if host == "algo-1":
    (ml / "checkpoints/flag").write_text("")
wait_for("uploaded")
print(host, "ready", flush=True)
time.sleep(0 if again else 600)
"""
    )
    plan = InterruptionPlan(triggers=(Trigger(log="algo-2 ready"),), host="algo-2", notice_seconds=30.0)
    with meanwhile(lambda: let_when_uploaded(tmp_path, "flag")):
        done = run(tmp_path, script, instance_count=2, checkpoint=str(tmp_path / "checkpoints"), interruptions=plan)
    assert done.describe["TrainingJobStatus"] == "Completed", done.reason
    assert "algo-2 heard" in done.log
    assert "algo-1 heard" not in done.log
    assert [row["Host"] for row in events(done, "killed")] == ["algo-1"]


def test_a_file_that_was_being_written_when_its_host_was_killed_is_not_kept(tmp_path: Path) -> None:
    script = (
        ML
        + """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
again = (ml / "checkpoints/whole").exists()
print("found", sorted(path.name for path in (ml / "checkpoints").iterdir()), flush=True)
if not again:
    (ml / "checkpoints/whole").write_text("w")
    torn = (ml / "checkpoints/torn").open("w")
    torn.write("half")
    torn.flush()
    print("ready", flush=True)
    time.sleep(600)
"""
    )
    plan = InterruptionPlan(triggers=(Trigger(log="ready"),), notice_seconds=1.0)
    done = run(tmp_path, script, checkpoint=str(tmp_path / "checkpoints"), interruptions=plan)
    assert "found []\n" in done.log
    assert "found ['whole']\n" in done.log
    assert [row["Path"] for row in events(done, "checkpoint-left-out")] == ["torn"]


ASK = (
    ML
    + """
import os, json, signal, sys, time, urllib.error, urllib.request
endpoint = os.environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://169.254.169.254")
def ask(path, method="GET", **headers):
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(endpoint + path, method=method, headers=headers)
    # Where an engine's bridge takes the address of one of its ports, it is away for a while when that container ends.
    for _ in range(20):
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                return answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            time.sleep(0.1)
    raise TimeoutError(path)
stop = []
signal.signal(signal.SIGTERM, lambda *_: stop.append(1))
token = ask("/latest/api/token", "PUT", X_aws_ec2_metadata_token_ttl_seconds="60")
action = "/latest/meta-data/spot/instance-action"
seen = {
    "before": ask(action), "with token": ask(action, X_aws_ec2_metadata_token=token),
    "wrong token": ask(action, X_aws_ec2_metadata_token="x"),
    "no ttl": ask("/latest/api/token", "PUT"),
    "type": ask("/latest/meta-data/instance-type"), "id": ask("/latest/meta-data/instance-id"),
    "region": ask("/latest/meta-data/placement/region"), "life": ask("/latest/meta-data/instance-life-cycle"),
    "unknown": ask("/latest/meta-data/iam/security-credentials/"),
}
notice = ml / "input/config/interruption-notice.json"
assert not notice.exists()
if (ml / "checkpoints/seen.json").exists():
    print("second", seen["id"], flush=True)
    sys.exit(0)
print("ready", flush=True)
for _ in range(12_000):
    if stop:
        break
    time.sleep(0.01)
seen |= {"action": json.loads(ask(action)), "file": json.loads(notice.read_text())}
seen["time"] = ask("/latest/meta-data/spot/termination-time")
beside = ml / "checkpoints/seen.json.sagemaker-ignore"
beside.write_text(json.dumps(seen))
beside.replace(ml / "checkpoints/seen.json")
"""
)


def test_a_notice_is_a_signal_a_file_and_the_instances_metadata(tmp_path: Path) -> None:
    plan = InterruptionPlan(triggers=(Trigger(log="ready"),), notice_seconds=150.0)
    done = run(
        tmp_path, ASK, checkpoint=str(tmp_path / "checkpoints"), interruptions=plan, instance_type="ml.c5.2xlarge"
    )
    assert done.describe["TrainingJobStatus"] == "Completed", done.log
    seen = json.loads((tmp_path / "checkpoints/seen.json").read_text())
    assert (seen["before"], seen["with token"], seen["wrong token"], seen["no ttl"]) == (404, 404, 401, 400)
    assert (seen["type"], seen["region"], seen["life"], seen["unknown"]) == ("c5.2xlarge", "us-east-1", "spot", 404)
    assert seen["action"] == seen["file"] == {"action": "terminate", "time": seen["time"]}
    assert time.strptime(seen["time"], "%Y-%m-%dT%H:%M:%SZ")
    assert f"second {seen['id']}" not in done.log, "a new machine has a new id"


def test_without_a_plan_there_is_no_metadata_and_no_evidence(tmp_path: Path) -> None:
    done = run(tmp_path, "import os; print('endpoint:', os.environ.get('AWS_EC2_METADATA_SERVICE_ENDPOINT'))")
    assert "endpoint: None" in done.log
    assert not JobDir.of(done.job.name).events_file.exists()


@pytest.mark.parametrize(
    ("plan", "text"),
    [
        (InterruptionPlan(), "the plan has none; give --every"),
        (
            InterruptionPlan(every_seconds=0.0),
            "every_seconds must be a number of seconds: else the plan leaves no time",
        ),
        (InterruptionPlan(mean_seconds=-1.0), "mean_seconds must be"),
        (InterruptionPlan(at_seconds=(float("nan"),)), "at_seconds must be a number of at least 0, got nan"),
        (InterruptionPlan(at_seconds=(1.0,), notice_seconds=-1.0), "notice_seconds must be"),
        (InterruptionPlan(at_seconds=(1.0,), most=0), "most must be"),
        (InterruptionPlan(at_seconds=(1.0,), host="algo-2"), "there is no host 'algo-2'; the job's are algo-1"),
        (InterruptionPlan(triggers=(Trigger(metric="auc"),)), "the job has no such metric"),
        (InterruptionPlan(triggers=(Trigger(log="("),)), "is no regular expression"),
        (InterruptionPlan(at_seconds=(1.0,), how=How.STORE_AWAY), "the job has no checkpoints"),
        (InterruptionPlan(at_seconds=(1.0,), how=How.HANG, notice_seconds=0.0), "--notice says how long"),
        (InterruptionPlan(at_seconds=(1.0,), how=How.FULL_DISK), "the job has no checkpoints"),
        (
            InterruptionPlan(at_seconds=(1.0,), notice_seconds=0.0, signal_to=SignalTo.EVERY_PROCESS),
            "nobody is sent SIGTERM with --notice 0",
        ),
        (
            InterruptionPlan(at_seconds=(1.0,), how=How.HANG, signal_to=SignalTo.EVERY_PROCESS),
            "nobody is sent SIGTERM with --how hang",
        ),
    ],
)
def test_a_plan_that_cannot_be_is_refused_before_the_job_begins(
    tmp_path: Path, plan: InterruptionPlan, text: str
) -> None:
    with pytest.raises(UserError) as refused:
        run(tmp_path, interruptions=plan, name="refused")
    assert text in str(refused.value)
    assert not JobDir.of("refused").root.exists()


def test_a_plan_that_leaves_no_time_ends(tmp_path: Path) -> None:
    plan = InterruptionPlan(every_seconds=0.01, notice_seconds=0.0)
    done = run(tmp_path, "import time; time.sleep(600)", interruptions=plan)
    assert "leaves no time to train" in done.reason


def test_a_detached_job_has_its_plan_too(tmp_path: Path) -> None:
    plan = InterruptionPlan(
        triggers=(Trigger(log=r"step=5\b"),), notice_seconds=20.0, trace=Trace(gap_seconds=3600, available=(True,))
    )
    job = optml.train(
        image="python",
        entrypoint=harness.program(tmp_path / "program", counter(holds=(5,))),
        output=str(tmp_path / "out"),
        checkpoint=str(tmp_path / "checkpoints"),
        backend=harness.backend_in_use,
        working_dir=tmp_path / "program" if harness.backend_in_use == "docker" else None,
        interruptions=plan,
        wait=False,
    )
    job.wait(timeout_seconds=PATIENCE_SECONDS)
    assert [step["Status"] for step in job.describe()["SecondaryStatusTransitions"]].count("Interrupted") == 1


# Going on by hand.


def test_a_job_that_failed_goes_on_from_its_checkpoints(tmp_path: Path) -> None:
    script = counter(steps=6).replace(
        "    step += 1\n",
        "    step += 1\n    flag = ml / 'checkpoints/flag'\n"
        "    if step == 4 and not flag.exists():\n        flag.write_text(''); sys.exit(9)\n",
    )
    first = run(tmp_path, script, name="broken", checkpoint=str(tmp_path / "checkpoints"))
    assert first.reason.endswith("exit code: 9")
    second = optml.resume("broken", logs=False)
    assert second.name == "broken-2"
    assert second.status == "Completed"
    assert "starting at 3\n" in Done(second, None).log
    with pytest.raises(UserError, match="broken-2 has completed: there is nothing to resume"):
        optml.resume("broken-2")
    third = optml.resume("broken", new_name="mine", logs=False)
    assert "starting at 6\n" in Done(third, None).log


def test_a_job_that_ran_out_of_time_goes_on_with_more_of_it(tmp_path: Path) -> None:
    first = run(
        tmp_path, counter(steps=6, pause=1.0), name="short", checkpoint=str(tmp_path / "checkpoints"), max_runtime=3
    )
    assert first.describe["SecondaryStatus"] == "MaxRuntimeExceeded"
    second = optml.resume("short", max_runtime=600, logs=False)
    assert second.status == "Completed"
    assert second.describe()["StoppingCondition"]["MaxRuntimeInSeconds"] == 600


def test_a_job_without_checkpoints_cannot_go_on(tmp_path: Path) -> None:
    run(tmp_path, "raise SystemExit(1)", name="hopeless")
    with pytest.raises(UserError, match=r"hopeless had no checkpoints.*--checkpoint"):
        optml.resume("hopeless")
    with pytest.raises(UserError, match="no job 'nobody'"):
        optml.resume("nobody")


# Checkpoints elsewhere.


def test_checkpoints_may_be_kept_outside_opt_ml(tmp_path: Path) -> None:
    if not harness.capabilities().own_opt_ml:
        pytest.skip("hosts have no folders of their own here")
    place = tmp_path / "place" if harness.backend_in_use == "process" else Path("/mnt/my/checkpoints")
    if harness.backend_in_use == "process":
        files(place, {"of-the-machine": "stays"})
    files(tmp_path / "store", {"f1": "1"})
    script = f"""
from pathlib import Path
place = Path({str(place)!r})
print("found", sorted(path.name for path in place.iterdir()))
(place / "f2").write_text("2")
(place / "f1").unlink()
"""
    request = {"CheckpointConfig": {"S3Uri": str(tmp_path / "store"), "LocalPath": str(place)}}
    done = run(tmp_path, script, request=request)
    assert done.describe["TrainingJobStatus"] == "Completed", done.log
    assert "found ['f1']" in done.log
    assert [path.name for path in (tmp_path / "store").iterdir()] == ["f2"]
    if harness.backend_in_use == "process":
        assert [path.name for path in place.iterdir()] == ["of-the-machine"]


@pytest.mark.process_host
def test_a_place_for_checkpoints_that_is_not_there_is_refused(tmp_path: Path) -> None:
    request = {"CheckpointConfig": {"S3Uri": str(tmp_path / "store"), "LocalPath": str(tmp_path / "nowhere")}}
    with pytest.raises(UserError, match=r"CheckpointConfig.LocalPath .* is outside /opt/ml"):
        run(tmp_path, request=request)
