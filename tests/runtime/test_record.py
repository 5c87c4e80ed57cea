"""job.json and the lock beside it: whole at every moment, one writer, and true after whatever happened to the writer."""

import contextlib
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.hosts import PATIENCE_SECONDS, eventually, processes_of

import optml
from optml import record as records
from optml.clock import Clock
from optml.errors import JobFailed, ResourceInUse, UserError
from optml.jobdir import JobDir, unclaimed_dir
from optml.jobs import Job
from optml.record import Record, RecordLost
from optml.spec import LocalOptions
from optml.submit import prepare, submit

OPTML = str(Path(sys.executable).parent / "optml")
SLEEP = "import time; print('ready', flush=True); time.sleep(600)"


def begin(name: str, clock: Clock | None = None) -> Record:
    shortcuts = {"name": name, "image": "python", "entrypoint": ["true"]}
    job, _image, _backend = prepare(None, options=LocalOptions(), shortcuts=shortcuts, base_dir=Path("/"))
    return records.begin(job, options={}, clock=clock or Clock())


def finished(name: str) -> Record:
    record = begin(name)
    record.end("Completed", "Completed")
    record.close()
    return record


def at_once(count: int, action: Callable[[int], Any]) -> list[Any]:
    """Results, or errors, of the action in so many threads that begin together."""
    barrier, results = threading.Barrier(count), [None] * count

    def one(number: int) -> None:
        barrier.wait()
        try:
            results[number] = action(number)
        except (UserError, AssertionError) as error:
            results[number] = error  # type: ignore[call-overload]

    threads = [threading.Thread(target=one, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


# What readers see.


def test_a_record_is_whole_at_every_moment() -> None:
    record = begin("busy")
    done = threading.Event()
    read = [0]

    def reader() -> None:
        while not done.is_set():
            content = records.read(record.job_dir)
            steps = content["describe"]["SecondaryStatusTransitions"]
            assert content["describe"]["SecondaryStatus"] == steps[-1]["Status"]
            assert all("EndTime" in step for step in steps[:-1])
            read[0] += 1

    thread = threading.Thread(target=reader)
    thread.start()
    for number in range(100):
        record.transition("Training", message=f"{number} " * 20)
    done.set()
    thread.join()
    record.close()
    assert read[0] > 10
    assert sorted(path.name for path in record.job_dir.root.iterdir()) == [
        "job.json",
        "lock",
        "logs",
        "options.json",
        "request.json",
    ], "nothing half written is left"


def test_a_job_is_seen_whole_or_not_at_all_while_it_begins_and_is_deleted() -> None:
    done = threading.Event()

    def others() -> None:
        for number in range(60):
            finished(f"job-{number % 3}")
            Job(f"job-{number % 3}").delete()
        done.set()

    thread = threading.Thread(target=others)
    thread.start()
    while not done.is_set():
        assert len(optml.list_jobs()) <= 3
        for number in range(3):
            with contextlib.suppress(UserError):
                assert Job(f"job-{number}").status in ("InProgress", "Completed")
    thread.join()
    assert optml.list_jobs() == []
    assert list(unclaimed_dir().iterdir()) == []


def test_folders_that_are_no_jobs_are_passed_over(optml_home: Path) -> None:
    finished("good")
    jobs = optml_home / "jobs"
    (jobs / "empty").mkdir()
    (jobs / "a-file").write_text("x")
    (jobs / "job.json").mkdir()
    (jobs / ".hidden").mkdir()
    (jobs / "folder-for-record" / "job.json").mkdir(parents=True)
    for name, content in BROKEN.items():
        (jobs / name).mkdir()
        (jobs / name / "job.json").write_bytes(content)
    assert [summary["TrainingJobName"] for summary in optml.list_jobs()] == ["good"]


BROKEN = {
    "cut": b'{"describe": {"TrainingJobName": "x", "Trai',
    "nothing": b"",
    "list": b"[]",
    "null": b"null",
    "foreign": b'{"describe": {"x": 1}}',
    "not-utf-8": b"\xff\xfe",
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_record_is_a_clear_error_and_can_be_deleted(optml_home: Path, name: str) -> None:
    folder = optml_home / "jobs" / name
    folder.mkdir(parents=True)
    (folder / "job.json").write_bytes(BROKEN[name])
    for ask in (lambda: Job(name).describe(), lambda: Job(name).stop(), lambda: optml.find(name)):
        with pytest.raises(UserError) as caught:
            ask()
        assert str(folder / "job.json") in str(caught.value)
        assert f"optml delete {name}" in str(caught.value)
    Job(name).delete()
    assert not folder.exists()


def test_only_a_folder_among_the_jobs_is_ever_removed(optml_home: Path) -> None:
    finished("good")
    (optml_home / "output" / "mine").mkdir(parents=True)
    for name in ("../output", str(optml_home / "output"), "../jobs/good"):
        with pytest.raises(UserError, match="not found"):
            records.remove(JobDir.of(name))
    assert (optml_home / "output" / "mine").is_dir()
    assert records.exists("good")


def test_a_folder_without_a_record_can_be_deleted(optml_home: Path) -> None:
    (optml_home / "jobs" / "empty" / "logs").mkdir(parents=True)
    Job("empty").delete()
    assert not (optml_home / "jobs" / "empty").exists()


@pytest.mark.parametrize(
    "name", ["../output", "..", ".", "", "a/../../output", "ABSOLUTE", "x" * 300, "nul\0", "../jobs/good", "-x"]
)
def test_what_is_no_name_of_a_job_finds_and_deletes_nothing(optml_home: Path, name: str) -> None:
    finished("good")
    # Only ever paths inside this test's own folder: if the rule under test were broken, what is named would be deleted.
    if name == "ABSOLUTE":
        name = str(optml_home / "output")
    (optml_home / "output" / "mine").mkdir(parents=True)
    before = sorted(optml_home.rglob("*"))
    for ask in (lambda: Job(name).delete(), lambda: Job(name).describe(), lambda: Job(name).stop()):
        with pytest.raises(UserError, match="Requested resource not found"):
            ask()
    assert sorted(optml_home.rglob("*")) == before


# Names.


def test_of_many_who_claim_a_name_at_once_one_gets_it() -> None:
    results = at_once(8, lambda _number: begin("wanted"))
    winners = [result for result in results if isinstance(result, Record)]
    assert len(winners) == 1
    for loser in (result for result in results if result is not winners[0]):
        assert isinstance(loser, ResourceInUse), loser
        assert "training-job/wanted" in str(loser)
    assert records.has_supervisor(winners[0].job_dir)
    winners[0].close()


def test_of_two_processes_that_claim_a_name_at_once_one_runs() -> None:
    command = [OPTML, "train", "--name", "wanted", "--", "sh", "-c", "echo ran"]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    outputs = [process.communicate(timeout=PATIENCE_SECONDS) for process in running]
    assert sorted(process.returncode for process in running) == [0, 2, 2, 2]
    assert sum("| ran" in output for output, _ in outputs) == 1
    assert sum("ResourceInUse" in errors for _, errors in outputs) == 3


def test_jobs_that_begin_at_once_do_not_sweep_each_other_away() -> None:
    def many(thread: int) -> None:
        for number in range(25):
            begin(f"job-{thread}-{number}").close()

    assert at_once(6, many) == [None] * 6
    assert len(list(records.read_all())) == 150


# The lock.


def test_a_job_has_a_supervisor_for_as_long_as_its_record_is_open() -> None:
    record = begin("held")
    assert records.has_supervisor(record.job_dir)
    assert records.take_over(record.job_dir, Clock()) is None
    record.close()
    assert not records.has_supervisor(record.job_dir)
    heir = records.take_over(record.job_dir, Clock())
    assert heir is not None
    assert records.take_over(record.job_dir, Clock()) is None, "one heir only"
    heir.end("Failed", "Failed")
    heir.close()
    assert records.take_over(record.job_dir, Clock()) is None, "a job that has ended needs none"
    assert not records.has_supervisor(record.job_dir), "and leaves no lock held"


def test_other_children_of_the_supervisor_do_not_hold_the_lock() -> None:
    record = begin("held")
    with subprocess.Popen(["sleep", "600"], close_fds=False) as child:
        record.close()
        assert not records.has_supervisor(record.job_dir)
        child.kill()


def test_a_record_whose_folder_was_removed_is_lost_also_if_another_has_the_name() -> None:
    first = begin("name")
    assert not first.is_lost()
    shutil.rmtree(first.job_dir.root)
    assert first.is_lost()
    second = begin("name")
    assert first.is_lost()
    with pytest.raises(RecordLost, match="was removed while the job ran"):
        first.transition("Training")
    assert records.read(second.job_dir)["describe"]["SecondaryStatus"] == "Starting"
    for record in (first, second):
        record.close()


def test_a_running_job_cannot_be_removed() -> None:
    record = begin("running")
    with pytest.raises(ResourceInUse):
        records.remove(record.job_dir)
    with pytest.raises(ResourceInUse):
        Job("running").delete()
    assert records.exists("running")
    record.close()


def delete(name: str, _asker: int) -> None:
    Job(name).delete()


def test_of_many_who_delete_a_job_at_once_one_does() -> None:
    for number in range(10):
        finished(f"job-{number}")
        results = at_once(4, functools.partial(delete, f"job-{number}"))
        assert results.count(None) >= 1
        assert not [error for error in results if isinstance(error, AssertionError)]
        assert not records.exists(f"job-{number}")
    assert list(unclaimed_dir().iterdir()) == []


# After a supervisor is gone.


def test_a_job_without_supervisor_is_settled_once_however_many_ask() -> None:
    record = begin("orphan")
    record.transition("Training")
    record.close()
    at_once(8, lambda _number: Job("orphan").describe())
    described = Job("orphan").describe()
    steps = [step["Status"] for step in described["SecondaryStatusTransitions"]]
    assert steps == ["Starting", "Training", "Failed"]
    assert described["FailureReason"].startswith("InternalServerError: the process that ran this job")


def test_kill_9_of_a_detached_supervisor_leaves_no_process_and_a_true_record(tmp_path: Path) -> None:
    job = optml.train(image="python", entrypoint=[sys.executable, "-c", SLEEP, str(tmp_path)], name="away", wait=False)
    job_dir = JobDir.of("away")
    assert eventually(lambda: any("ready" in log.read_text() for log in job_dir.logs.glob("*")))
    assert job.status == "InProgress"
    os.kill(records.read(job_dir)["local"]["supervisor_pid"], signal.SIGKILL)
    assert eventually(lambda: not records.has_supervisor(job_dir))
    with pytest.raises(JobFailed, match="InternalServerError: the process that ran this job"):
        job.wait(timeout_seconds=PATIENCE_SECONDS)
    assert eventually(lambda: not processes_of(tmp_path))
    described = job.describe()
    assert described["TrainingStartTime"] <= described["TrainingEndTime"] <= described["LastModifiedTime"]
    job.delete()
    with pytest.raises(UserError, match="not found"):
        job.describe()


def test_a_detached_job_lives_on_without_its_caller(tmp_path: Path) -> None:
    """With a relative OPTML_HOME, from a folder that is not the supervisor's, by a thread that ends at once."""
    source = f"""
import sys, threading, optml
sys.path.insert(0, "elsewhere")
arguments = dict(image="python", entrypoint=[{sys.executable!r}, "-c", "print('ran')"], name="away", wait=False)
thread = threading.Thread(target=lambda: optml.train(**arguments))
thread.start()
thread.join()
"""
    environment = {**os.environ, "OPTML_HOME": "relative"}
    subprocess.run(
        [sys.executable, "-c", source], check=True, cwd=tmp_path, env=environment, timeout=2 * PATIENCE_SECONDS
    )
    record = tmp_path / "relative" / "jobs" / "away" / "job.json"
    assert eventually(
        lambda: json.loads(record.read_bytes())["describe"]["TrainingJobStatus"] == "Completed", seconds=60
    )


def test_a_detached_job_that_cannot_begin_says_why() -> None:
    shortcuts = {"name": "away", "image": "python", "entrypoint": ["true"]}
    submitted = submit(None, options=LocalOptions(), shortcuts=shortcuts, base_dir=Path("/"), clock=Clock())
    options = submitted.record.job_dir.options_file
    options.write_text('{"backend": "process", "manifest_paths": "key", "of another version": 1}')
    submitted.detach()
    with pytest.raises(JobFailed, match=r"InternalServerError: .*of another version"):
        Job("away").wait(timeout_seconds=PATIENCE_SECONDS)
    assert eventually(lambda: not records.has_supervisor(JobDir.of("away")))


# Time.


class SetClock(Clock):
    time = 1_000_000.0

    def now(self) -> float:
        return self.time


def test_a_clock_that_is_put_back_makes_no_negative_seconds() -> None:
    clock = SetClock()
    record = begin("back", clock)
    record.training_started()
    clock.time -= 3600
    record.transition("Training")
    clock.time += 10
    record.end("Completed", "Completed")
    record.close()
    described = Job("back").describe_raw()
    assert described["TrainingTimeInSeconds"] == described["BillableTimeInSeconds"] == 0
    assert described["CreationTime"] <= described["TrainingStartTime"] <= described["TrainingEndTime"]
    assert all(step["StartTime"] <= step["EndTime"] for step in described["SecondaryStatusTransitions"])


def test_a_job_that_nobody_watched_ended_at_its_last_sign_of_life() -> None:
    clock = SetClock()
    clock.time = Clock().now() - 1000
    record = begin("lonely", clock)
    record.training_started()
    record.close()
    log = record.job_dir.logs / "algo-1-1.log"
    log.write_text("x")
    for file in (log, record.job_dir.record_file):
        os.utime(file, (clock.time + 100, clock.time + 100))
    described = Job("lonely").describe_raw()
    assert described["TrainingTimeInSeconds"] == 100
