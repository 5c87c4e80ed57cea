"""Why an attempt ends, and that it does: the decision as a table, the rest with real hosts on a clock that runs fast."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.clocks import HeldClock, WaitedClock
from tests.harness import ML, meanwhile, printed, run
from tests.hosts import PATIENCE_SECONDS, eventually, log_of, processes_of, start_ready, state

import optml
from optml import record as records
from optml.backends import Host
from optml.clock import Clock, FastClock
from optml.errors import DataError
from optml.jobdir import JobDir
from optml.supervise import Ended, Limits, Seen, Why, reason_to_end, supervise

# The decision.


def seen(**more: Any) -> Seen:
    """An attempt of two hosts at second 100, of which nothing is to be said, but for what is given."""
    nothing: dict[str, Any] = {
        "exit_codes": {},
        "host_count": 2,
        "stop_requested": False,
        "now": 100.0,
        "limits": Limits(),
    }
    return Seen(**(nothing | more))


ERROR = DataError("x")
FAILED, BOTH_FAILED, DONE, HALF_DONE = {"a": 1}, {"a": 1, "b": 0}, {"a": 0, "b": 0}, {"a": 0}
PAST, FUTURE = Limits(out_of_time_at=99, out_of_wait_at=99), Limits(out_of_time_at=101, out_of_wait_at=101)


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({}, None),
        ({"limits": FUTURE}, None),
        ({"exit_codes": HALF_DONE}, None),
        ({"exit_codes": DONE}, Why.FINISHED),
        ({"exit_codes": FAILED}, Why.FAILED),
        ({"exit_codes": BOTH_FAILED}, Why.FAILED),
        ({"exit_codes": {"a": 0, "b": 255}}, Why.FAILED),
        ({"stop_requested": True}, Why.STOPPED),
        ({"limits": Limits(out_of_time_at=100)}, Why.OUT_OF_TIME),
        ({"limits": Limits(out_of_wait_at=100)}, Why.OUT_OF_WAIT),
        ({"lost": "algo-1"}, Why.LOST),
        ({"input_error": ERROR}, Why.INPUT_FAILED),
        # What the platform knows comes before what the hosts say.
        (
            {"lost": "algo-1", "stop_requested": True, "exit_codes": FAILED, "limits": PAST, "input_error": ERROR},
            Why.LOST,
        ),
        ({"stop_requested": True, "exit_codes": FAILED, "limits": PAST, "input_error": ERROR}, Why.STOPPED),
        ({"stop_requested": True, "exit_codes": DONE}, Why.STOPPED),
        ({"stop_requested": True, "exit_codes": {"a": 143, "b": 143}}, Why.STOPPED),
        # A program that has ended is past every limit and needs no more input.
        ({"exit_codes": DONE, "limits": PAST, "input_error": ERROR}, Why.FINISHED),
        ({"exit_codes": FAILED, "limits": PAST, "input_error": ERROR}, Why.FAILED),
        ({"exit_codes": HALF_DONE, "limits": PAST, "input_error": ERROR}, Why.INPUT_FAILED),
        ({"exit_codes": HALF_DONE, "limits": PAST}, Why.OUT_OF_TIME),
        ({"lease_over_since": 100.0}, Why.INTERRUPTED),
        ({"exit_codes": DONE, "lease_over_since": 99.0}, Why.FINISHED),
        # Of what is due, the first, however late it is looked at.
        ({"limits": PAST, "lease_over_since": 98.0}, Why.INTERRUPTED),
        ({"limits": PAST, "lease_over_since": 99.5}, Why.OUT_OF_TIME),
        ({"limits": Limits(out_of_time_at=99, out_of_wait_at=98)}, Why.OUT_OF_WAIT),
        ({"limits": FUTURE, "lease_over_since": 100.5}, Why.INTERRUPTED),
    ],
)
def test_why_an_attempt_ends(facts: dict[str, Any], expected: Why | None) -> None:
    assert reason_to_end(seen(**facts)) == expected


# Real hosts.

SLEEP = "import time; print('ready', flush=True); time.sleep(600)"
STUBBORN = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {SLEEP}"
SAVES = f"import signal, sys; signal.signal(signal.SIGTERM, lambda *_: sys.exit(print('saved', flush=True))); {SLEEP}"


def watch(tmp_path: Path, sources: Sequence[str], *, clock: Clock, **more: Any) -> Ended:
    """Supervise one host per source, algo-1 first; asserts that nothing of them is left."""
    hosts: list[Host] = []
    try:
        for number, source in enumerate(sources, start=1):
            hosts.append(start_ready(tmp_path, source, host=f"algo-{number}"))
        arguments: dict[str, Any] = {"limits": Limits(), "stop_requested": lambda: False} | more
        ended = supervise(hosts, clock=clock, **arguments)
    finally:
        for host in hosts:
            host.kill()
    assert not processes_of(tmp_path)
    return ended


def test_hosts_that_all_end_with_0_are_finished(tmp_path: Path) -> None:
    ended = watch(
        tmp_path, ["print('ready')", "import time; print('ready', flush=True); time.sleep(0.5)"], clock=Clock()
    )
    assert ended == Ended(why=Why.FINISHED, exit_codes={"algo-1": 0, "algo-2": 0})


def test_a_failed_host_ends_the_others_with_sigterm(tmp_path: Path) -> None:
    fails = "import sys, time; print('ready', flush=True); time.sleep(0.5); sys.exit(3)"
    ended = watch(tmp_path, [SAVES, fails, SLEEP], clock=Clock())
    assert (ended.why, ended.first, ended.killed) == (Why.FAILED, "algo-2", ())
    assert ended.exit_codes == {"algo-1": 0, "algo-2": 3, "algo-3": 143}
    assert "saved" in log_of(tmp_path)


@pytest.mark.parametrize(("limit", "why"), [("out_of_time_at", Why.OUT_OF_TIME), ("out_of_wait_at", Why.OUT_OF_WAIT)])
def test_a_limit_ends_the_hosts_on_time(tmp_path: Path, limit: str, why: Why) -> None:
    clock = WaitedClock(10)
    began = clock.monotonic()
    heard: list[float] = []
    ended = watch(
        tmp_path,
        [SAVES],
        clock=clock,
        limits=Limits(**{limit: began + 5}, grace_seconds=10_000),
        on_ending=lambda _why: heard.append(clock.monotonic() - began),
    )
    assert (ended.why, ended.exit_codes) == (why, {"algo-1": 0})
    assert 5 <= heard[0] < 5.2


def test_a_stop_lets_a_program_save(tmp_path: Path) -> None:
    told: list[tuple[Why, str]] = []
    ended = watch(
        tmp_path,
        [SAVES],
        clock=Clock(),
        stop_requested=lambda: True,
        on_ending=lambda why: told.append((why, log_of(tmp_path))),
    )
    assert (ended.why, ended.exit_codes, ended.killed) == (Why.STOPPED, {"algo-1": 0}, ())
    assert told == [(Why.STOPPED, "ready\n")], "the platform says so before the program hears of it"
    assert log_of(tmp_path) == "ready\nsaved\n"


def test_exit_code_143_after_a_stop_is_stopped(tmp_path: Path) -> None:
    ended = watch(tmp_path, [SLEEP, SLEEP], clock=Clock(), stop_requested=lambda: True)
    assert (ended.why, ended.exit_codes) == (Why.STOPPED, {"algo-1": 143, "algo-2": 143})


def test_a_program_that_ignores_sigterm_is_killed_after_the_grace_and_not_before(tmp_path: Path) -> None:
    clock = HeldClock()
    began = clock.monotonic()
    exited: list[str] = []
    killed_after: list[float] = []

    def look() -> bool:
        """Time passes once algo-2 has saved."""
        clock.turn(1.0 if exited else 0.0)
        return False

    def note(kind: str, host: str, **_facts: object) -> None:
        if kind == "exited":
            exited.append(host)

    ended = watch(
        tmp_path,
        [STUBBORN, SAVES],
        clock=clock,
        limits=Limits(grace_seconds=120),
        stop_requested=lambda: True,
        look=look,
        note=note,
        before_kill=lambda: killed_after.append(clock.monotonic() - began),
    )
    assert (ended.why, ended.killed, ended.exit_codes) == (Why.STOPPED, ("algo-1",), {"algo-2": 0})
    assert 120 <= killed_after[0] <= 122


def test_somebody_in_a_hurry_does_not_wait_for_the_grace(tmp_path: Path) -> None:
    clock = WaitedClock()
    began = clock.monotonic()
    ended = watch(tmp_path, [STUBBORN], clock=clock, stop_requested=lambda: True, hurry=lambda: True)
    assert ended.killed == ("algo-1",)
    assert clock.monotonic() == began


def test_a_host_lost_while_the_hosts_are_stopped_changes_nothing_and_is_not_waited_for(tmp_path: Path) -> None:
    ended = watch(
        tmp_path,
        [STUBBORN, SAVES],
        clock=HeldClock(),  # a grace that never ends
        stop_requested=lambda: True,
        on_ending=lambda _why: os.kill(state(tmp_path)["pid"], signal.SIGKILL),
    )
    assert (ended.why, ended.exit_codes, ended.killed) == (Why.STOPPED, {"algo-2": 0}, ())


def test_a_lost_host_takes_the_others_with_it_at_once(tmp_path: Path) -> None:
    looks: list[int] = []

    def look() -> bool:
        looks.append(0)
        if len(looks) == 3:
            os.kill(state(tmp_path)["pid"], signal.SIGKILL)
        return False

    ended = watch(tmp_path, [SLEEP, STUBBORN], clock=Clock(), look=look)
    assert (ended.why, ended.killed) == (Why.LOST, ("algo-2",))
    assert ended.detail.startswith("algo-1: ")


def test_input_that_fails_ends_the_hosts_and_is_told(tmp_path: Path) -> None:
    ended = watch(tmp_path, [SAVES], clock=Clock(), input_error=lambda: ERROR)
    assert (ended.why, ended.error, ended.exit_codes) == (Why.INPUT_FAILED, ERROR, {"algo-1": 0})


def test_hosts_end_though_the_supervisor_breaks(tmp_path: Path) -> None:
    def broken() -> bool:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        watch(tmp_path, [STUBBORN, SLEEP], clock=Clock(), look=broken)
    assert not processes_of(tmp_path)


def test_time_is_up_for_a_job_whatever_its_program_does(tmp_path: Path) -> None:
    clock = FastClock(100)
    source = textwrap.dedent(
        """
        import signal, time
        signal.signal(signal.SIGTERM, lambda *_: None)
        while True:
            print("x" * 100)
        """
    )
    done = run(tmp_path, source, clock=clock, max_runtime=100, grace_seconds=50.0)
    assert done.secondary[-3:] == ["Stopping", "Uploading", "MaxRuntimeExceeded"]


# Stops at other moments, through jobs.


def in_thread(action: Any) -> threading.Thread:
    thread = threading.Thread(target=action)
    thread.start()
    return thread


def test_a_stop_while_input_is_staged_ends_the_job_before_its_hosts_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPTML_NAMESPACES", "off")  # File mode copies
    data = tmp_path / "data"
    data.mkdir()
    for number in range(4000):
        (data / str(number)).write_text("x")

    def stop() -> None:
        assert eventually(lambda: records.exists("early"))
        optml.Job("early").stop()

    stopping = in_thread(stop)
    done = run(tmp_path, channels={"train": f"{data}/"}, name="early")
    stopping.join()
    assert done.secondary == ["Starting", "Downloading", "Stopping", "Stopped"]
    assert done.describe["TrainingJobStatus"] == "Stopped"
    assert list(JobDir.of("early").logs.iterdir()) == [], "no host ran"


def test_ctrl_c_while_input_is_staged_ends_the_job_before_its_hosts_run(
    tmp_path: Path, optml_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPTML_NAMESPACES", "off")
    data = tmp_path / "data"
    data.mkdir()
    for number in range(10_000):
        (data / str(number)).write_text("x")
    command = [
        str(Path(sys.executable).parent / "optml"),
        "train",
        "--name",
        "typed",
        "--channel",
        f"train={data}/",
        "--",
        "true",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as running:
        assert eventually((optml_home / "jobs" / "typed" / "attempts" / "1").exists)
        running.send_signal(signal.SIGINT)
        output, _ = running.communicate(timeout=PATIENCE_SECONDS)
    assert running.returncode == 130, output
    assert "Traceback" not in output
    assert optml.Job("typed").describe()["SecondaryStatus"] == "Stopped"
    assert "Training" not in [step["Status"] for step in optml.Job("typed").describe()["SecondaryStatusTransitions"]]


def test_a_stop_while_outputs_are_uploaded_comes_too_late(tmp_path: Path) -> None:
    def stop() -> None:
        assert eventually(lambda: records.exists("late"))
        assert eventually(lambda: optml.Job("late").describe()["SecondaryStatus"] == "Uploading")
        optml.Job("late").stop()

    stopping = in_thread(stop)
    done = run(tmp_path, ML + "(ml / 'model/big').write_bytes(os.urandom(100_000_000))", name="late")
    stopping.join()
    assert done.describe["TrainingJobStatus"] == "Completed"
    assert len(done.model["big"]) == 100_000_000


def test_max_runtime_counts_over_all_attempts_together(tmp_path: Path) -> None:
    clock = HeldClock()

    def lose() -> None:
        states = JobDir.of("twice").attempts / "1" / "algo-1" / "state.json"
        assert eventually(lambda: printed("twice").count("ready") == 1)
        clock.turn(50)
        os.kill(json.loads(states.read_text())["pid"], signal.SIGKILL)
        assert eventually(lambda: printed("twice").count("ready") == 2)
        clock.turn(30)

    with meanwhile(lose):
        done = run(tmp_path, SAVES, name="twice", retries=1, max_runtime=80, clock=clock)
    assert done.secondary.count("Training") == 2
    assert done.describe["SecondaryStatus"] == "MaxRuntimeExceeded"
    assert done.describe["TrainingTimeInSeconds"] == 80


def test_times_are_in_order_also_for_a_stopped_job(tmp_path: Path) -> None:
    done = run(tmp_path, SAVES, max_runtime=1)
    described = done.describe
    assert described["CreationTime"] <= described["TrainingStartTime"] <= described["TrainingEndTime"]
    assert described["TrainingEndTime"] <= described["LastModifiedTime"]
    moments = [step[key] for step in described["SecondaryStatusTransitions"] for key in ("StartTime", "EndTime")]
    assert moments == sorted(moments)


def test_a_job_runs_in_any_thread(tmp_path: Path) -> None:
    """Signals are heard by the main thread alone, and Linux watches over threads rather than processes."""
    statuses: dict[int, str] = {}

    def one(number: int) -> None:
        source = f"import sys, time; time.sleep(0.3); print('I am', {number}); sys.exit({number})"
        done = run(tmp_path / str(number), source)
        statuses[number] = f"{done.describe['TrainingJobStatus']} {done.log.strip()}"

    threads = [in_thread(lambda number=number: one(number)) for number in range(4)]
    for thread in threads:
        thread.join()
    assert statuses == {0: "Completed I am 0", **{number: f"Failed I am {number}" for number in (1, 2, 3)}}
