"""Exit codes, stops, limits, outputs and what the record says of them: rows C41-C54, C58, C64-C66, C74, through real jobs."""

import itertools
import json
import os
import signal
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from tests.clocks import HeldClock
from tests.harness import ML, Done, meanwhile, printed, program, run
from tests.hosts import PATIENCE_SECONDS, eventually

import optml
from optml.backends import Backend, Capabilities, Host, Launch, Progress
from optml.clock import Clock, FastClock
from optml.console import Console
from optml.errors import PlatformError, UserError
from optml.images import Image
from optml.jobdir import HostDir, JobDir
from optml.spec import LocalOptions
from optml.submit import submit

WRITE_MODEL = ML + "(ml / 'model/weights').write_text('w')\n"


def test_exit_code_0_completes_with_a_model_archive_c41(tmp_path: Path) -> None:
    done = run(tmp_path, WRITE_MODEL, name="my-job")
    assert done.describe["TrainingJobStatus"] == "Completed"
    assert done.model == {"weights": b"w"}
    archive = tmp_path / "out" / "my-job" / "output" / "model.tar.gz"
    assert done.describe["ModelArtifacts"]["S3ModelArtifacts"] == done.job.model_data == f"file://{archive}"
    assert archive.is_file()


def test_another_exit_code_fails_c42(tmp_path: Path) -> None:
    done = run(tmp_path, "raise SystemExit(3)")
    assert done.describe["TrainingJobStatus"] == "Failed"
    assert done.reason.startswith("AlgorithmError:")
    assert done.reason.endswith("exit code: 3")
    assert done.failure is not None


def test_where_nobody_says_why_the_console_shows_the_last_line_of_the_host_that_failed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """FailureReason stays as SageMaker has it: AlgorithmError: , exit code: 3."""
    source = (
        ML
        + """
import json, time
if json.load(open(ml / "input/config/resourceconfig.json"))["current_host"] == "algo-2":
    print("no such column: price\\n\\n", flush=True)
    raise SystemExit(3)
time.sleep(60)
"""
    )
    done = run(tmp_path, source, instance_count=2, logs=True, grace_seconds=0.0)
    assert done.reason == "AlgorithmError: , exit code: 3"
    said = capsys.readouterr().out
    told = "optml  | algo-2 failed: exit code 3, without a failure file; its last line: no such column: price\n"
    assert told in said
    run(tmp_path, "raise SystemExit(4)", logs=True)
    assert "algo-1 failed: exit code 4, without a failure file or a word\n" in capsys.readouterr().out


def test_a_killed_program_is_not_said_to_have_had_too_little_memory(tmp_path: Path) -> None:
    done = run(tmp_path, entrypoint=["sh", "-c", "sh -c 'kill -9 $$'; exit $?"])
    assert done.reason.startswith("AlgorithmError: killed with SIGKILL")
    assert "most likely" not in done.reason
    assert done.reason.endswith(", exit code: 137")


def test_the_failure_file_is_the_reason_cut_to_1024_characters_c43(tmp_path: Path) -> None:
    done = run(tmp_path, ML + "(ml / 'output/failure').write_text('because ' * 700); raise SystemExit(1)")
    assert len(done.reason) <= 1024
    assert done.reason.startswith("AlgorithmError: because because")
    assert done.reason.endswith(", exit code: 1")


def test_a_failed_jobs_model_is_uploaded_too_c44(tmp_path: Path) -> None:
    done = run(tmp_path, WRITE_MODEL + "raise SystemExit(1)")
    assert done.describe["TrainingJobStatus"] == "Failed"
    assert done.model == {"weights": b"w"}
    assert done.secondary[-2:] == ["Uploading", "Failed"]


def test_a_failure_file_with_exit_code_0_fails_c45(tmp_path: Path) -> None:
    script = ML + "(ml / 'output/failure').write_text('not good')"
    assert run(tmp_path, script).describe["TrainingJobStatus"] == "Failed"
    assert run(tmp_path, script, failure_file_fails=False).describe["TrainingJobStatus"] == "Completed"


HOST = (
    ML
    + "import json, sys, time; host = json.loads((ml / 'input/config/resourceconfig.json').read_text())['current_host']\n"
)


def test_a_host_that_is_done_early_ends_nothing_c46(tmp_path: Path) -> None:
    script = HOST + "if host == 'algo-2':\n    time.sleep(1)\n    (ml / 'model/late').write_text('2')\n"
    done = run(tmp_path, script, instance_count=2)
    assert done.describe["TrainingJobStatus"] == "Completed"
    assert done.model == {"late": b"2"}


def test_a_host_that_fails_stops_the_others_c47(tmp_path: Path) -> None:
    script = HOST + "if host == 'algo-2':\n    sys.exit(7)\ntime.sleep(600)\n"
    done = run(tmp_path, script, instance_count=2)
    assert done.describe["TrainingJobStatus"] == "Failed"
    assert done.reason.endswith("exit code: 7")


def test_model_folders_of_all_hosts_are_merged_c48(tmp_path: Path) -> None:
    script = (
        HOST
        + """
folder, name = {'algo-1': 'a/1', 'algo-2': 'b/2'}[host].split('/')
(ml / 'model' / folder).mkdir()
(ml / 'model' / folder / name).write_text(host)
"""
    )
    assert run(tmp_path, script, instance_count=2).model == {"a/1": b"algo-1", "b/2": b"algo-2"}


def test_the_output_archive_has_the_data_folder_only_c49(tmp_path: Path) -> None:
    script = ML + "(ml / 'output/data/x').write_text('x'); (ml / 'output/failure').write_text('y'); raise SystemExit(1)"
    assert run(tmp_path, script).output == {"x": b"x"}


def test_uncompressed_output_is_objects_c50(tmp_path: Path) -> None:
    script = WRITE_MODEL + "(ml / 'output/data/x').write_text('x')"
    request = {"OutputDataConfig": {"S3OutputPath": str(tmp_path / "plain"), "CompressionType": "NONE"}}
    done = run(tmp_path, script, request=request, output=None, name="flat")
    root = tmp_path / "plain" / "flat" / "output"
    assert sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()) == [
        "data/x",
        "model/weights",
    ]
    assert done.job.model_data == f"file://{root}/model/"


def stop_soon(name: str) -> None:
    """From another thread: wait until the program says that it is ready, then stop the job."""

    def stop() -> None:
        log = JobDir.of(name).logs
        while not any("ready" in file.read_text() for file in log.glob("*.log")):
            time.sleep(0.01)
        optml.Job(name).stop()

    threading.Thread(target=stop).start()


def test_a_script_that_hears_sigterm_saves_its_model_c51(tmp_path: Path) -> None:
    script = (
        WRITE_MODEL
        + """
import signal, sys, time
def save(*_):
    (ml / 'model/saved').write_text('in time')
    print('saved', flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, save)
print('ready', flush=True)
time.sleep(600)
"""
    )
    stop_soon("to-stop")
    done = run(tmp_path, script, name="to-stop", grace_seconds=60.0)
    assert done.describe["TrainingJobStatus"] == "Stopped"
    assert done.model == {"weights": b"w", "saved": b"in time"}
    assert done.secondary[-3:] == ["Stopping", "Uploading", "Stopped"]
    assert done.failure is None, "a stopped job is no error"


def test_a_script_that_ignores_sigterm_is_killed_after_the_grace_c52(tmp_path: Path) -> None:
    script = (
        WRITE_MODEL
        + "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); time.sleep(600)"
    )
    stop_soon("stubborn")
    clock = FastClock(200)
    began = clock.monotonic()
    done = run(tmp_path, script, name="stubborn", clock=clock, grace_seconds=120.0)
    assert clock.monotonic() - began >= 120
    assert done.describe["TrainingJobStatus"] == "Stopped"
    assert done.model == {"weights": b"w"}


def test_exit_code_143_after_a_stop_is_stopped_c53(tmp_path: Path) -> None:
    stop_soon("default-action")
    done = run(tmp_path, "import time; print('ready', flush=True); time.sleep(600)", name="default-action")
    assert done.describe["TrainingJobStatus"] == "Stopped"
    assert "FailureReason" not in done.describe


def test_exit_code_143_without_a_stop_is_failed(tmp_path: Path) -> None:
    assert run(tmp_path, "raise SystemExit(143)").describe["TrainingJobStatus"] == "Failed"


def test_a_job_that_runs_too_long_is_stopped_c54(tmp_path: Path) -> None:
    script = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(print('terminated')))
print('ready', flush=True)
time.sleep(600)
"""
    clock = HeldClock()

    def turn() -> None:
        assert eventually(lambda: "ready" in printed("too-long"))
        clock.turn(2)

    with meanwhile(turn):
        done = run(tmp_path, script, name="too-long", max_runtime=2, clock=clock)
    assert (done.describe["TrainingJobStatus"], done.describe["SecondaryStatus"]) == ("Stopped", "MaxRuntimeExceeded")
    assert "terminated" in done.log
    assert done.describe["TrainingTimeInSeconds"] == 2


def kill_the_machine(job_name: str, *, times: int) -> None:
    """What no program can do to itself: the keeper of the host is killed, as if the machine were gone."""

    def kill() -> None:
        killed: set[int] = set()
        deadline = time.monotonic() + PATIENCE_SECONDS
        while len(killed) < times and time.monotonic() < deadline:
            for state in JobDir.of(job_name).attempts.glob("*/*/state.json"):
                try:
                    pid = json.loads(state.read_text())["pid"]
                except (OSError, ValueError, KeyError):
                    continue
                # Each attempt has a log of its own; "ready" is the last that its program prints.
                ready = [log for log in JobDir.of(job_name).logs.glob("*.log") if "ready\n" in log.read_text()]
                if pid not in killed and len(ready) > len(killed):
                    os.kill(pid, signal.SIGKILL)
                    killed.add(pid)
            time.sleep(0.02)

    threading.Thread(target=kill).start()


@pytest.mark.process_host
def test_an_internal_error_is_retried_as_often_as_asked_c58(tmp_path: Path) -> None:
    script = "import time; print('ready', flush=True); time.sleep(600)"
    kill_the_machine("lost-thrice", times=3)
    done = run(tmp_path, script, name="lost-thrice", retries=2)
    assert done.describe["TrainingJobStatus"] == "Failed"
    assert done.reason.startswith("InternalServerError")
    assert done.secondary.count("Training") == 3
    assert done.secondary.count("Starting") == 3


class FailsOnce:
    """The real backend on a machine that cannot make the first host asked for."""

    def __init__(self, backend: Backend):
        self.name, self.backend, self.asked = backend.name, backend, 0
        self.containers = backend.containers

    def interface(self, *, host_count: int, isolated: bool) -> str:
        return self.backend.interface(host_count=host_count, isolated=isolated)

    def environment(self, caller: Mapping[str, str]) -> dict[str, str]:
        return self.backend.environment(caller)

    def check(self, image: Image) -> None:
        self.backend.check(image)

    def versions(self, image: Image) -> Mapping[str, str] | None:
        return self.backend.versions(image)

    def fetch(self, image: Image, progress: Progress) -> tuple[str, ...]:
        return self.backend.fetch(image, progress)

    def capabilities(self) -> Capabilities:
        return self.backend.capabilities()

    def start(self, launch: Launch) -> Host:
        self.asked += 1
        if self.asked == 1:
            raise PlatformError("algo-1 could not be made: out of luck")
        return self.backend.start(launch)

    def sweep(self, host_dir: HostDir) -> None:
        self.backend.sweep(host_dir)


@pytest.mark.parametrize("retries", [0, 1])
def test_a_host_that_could_not_be_made_is_an_internal_error_and_retried(tmp_path: Path, retries: int) -> None:
    shortcuts = {"entrypoint": program(tmp_path, WRITE_MODEL), "output": str(tmp_path / "out"), "retries": retries}
    submitted = submit(
        None, options=LocalOptions(), shortcuts={"image": "python", **shortcuts}, base_dir=tmp_path, clock=Clock()
    )
    submitted.backend = FailsOnce(submitted.backend)
    submitted.run(Console(silent=True))
    done = Done(optml.find(submitted.job.name), None)
    if retries:
        assert done.describe["TrainingJobStatus"] == "Completed"
        assert done.secondary[:5] == ["Starting", "Training", "Restarting", "Starting", "Training"]
        assert done.model == {"weights": b"w"}
    else:
        assert done.reason == "InternalServerError: algo-1 could not be made: out of luck"


@pytest.mark.process_host
def test_a_retried_job_completes(tmp_path: Path) -> None:
    flag = tmp_path / "second"
    script = (
        WRITE_MODEL
        + f"""
import time
first = not Path({str(flag)!r}).exists()
Path({str(flag)!r}).write_text("")
print('ready', flush=True)
time.sleep(600 if first else 0)
"""
    )
    kill_the_machine("lost-once", times=1)
    done = run(tmp_path, script, name="lost-once", retries=1)
    assert done.describe["TrainingJobStatus"] == "Completed"
    assert done.model == {"weights": b"w"}


@pytest.mark.process_host
def test_a_retry_within_a_second_has_a_log_of_its_own(tmp_path: Path) -> None:
    script = "import time; print('loss=1', flush=True); print('ready', flush=True); time.sleep(600)"
    kill_the_machine("quick", times=3)
    done = run(tmp_path, script, name="quick", retries=2, metrics={"loss": "loss=([0-9]+)"})
    assert len(list(JobDir.of("quick").logs.iterdir())) == 3
    assert done.log == "loss=1\nready\n" * 3
    assert len(done.job.metrics_file.read_text().splitlines()) == 3


def test_what_checkpoints_cannot_be_saved_is_said(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    script = (
        ML
        + """
(ml / "checkpoints/whole").write_text("1")
(ml / "checkpoints/last").symlink_to("/opt/ml/model/elsewhere")
"""
    )
    run(tmp_path, script, checkpoint=str(tmp_path / "checkpoints"), logs=True)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["whole"]
    assert "warning: " in (said := capfd.readouterr().out)
    assert "checkpoints/last is not uploaded" in said


@pytest.mark.parametrize(
    "options",
    [{"manifest_paths": "nonsense"}, {"grace_seconds": "x"}, {"cpus": -3}, {"memory_bytes": 0}, {"cpus": True}],
)
def test_an_option_that_cannot_be_is_named(tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"{next(iter(options))} must be"):
        run(tmp_path, **options)


def test_an_algorithms_failure_is_not_retried(tmp_path: Path) -> None:
    assert run(tmp_path, "raise SystemExit(1)", retries=3).secondary.count("Training") == 1


def test_the_record_tells_the_whole_story_c74(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a").write_text("1")
    done = run(tmp_path, WRITE_MODEL, channels={"train": str(tmp_path / "data")})
    steps = done.describe["SecondaryStatusTransitions"]
    assert done.secondary == ["Starting", "Downloading", "Training", "Uploading", "Completed"]
    assert all(step["StatusMessage"] and step["StartTime"] for step in steps)
    assert all("EndTime" in step for step in steps[:-1])
    assert all(before["EndTime"] == after["StartTime"] for before, after in itertools.pairwise(steps))


def test_metrics_are_the_last_values_of_both_streams_c64(tmp_path: Path) -> None:
    script = "import sys; print('loss=0.5'); print('loss=0.25'); print('acc: 7e-1;', file=sys.stderr); print('end')"
    done = run(tmp_path, script, metrics={"loss": r"loss=([0-9.]+)", "accuracy": r"acc: (\S+);"})
    final = {metric["MetricName"]: metric["Value"] for metric in done.describe["FinalMetricDataList"]}
    assert final == {"loss": 0.25, "accuracy": 0.7}
    lines = [json.loads(line) for line in done.job.metrics_file.read_text().splitlines()]
    assert [line["Value"] for line in lines if line["MetricName"] == "loss"] == [0.5, 0.25]


def test_a_metric_that_is_no_number_is_ignored_c65(tmp_path: Path) -> None:
    done = run(tmp_path, "print('loss=nan?'); print('loss=n/a')", metrics={"loss": r"loss=(\S+)"})
    assert done.describe["TrainingJobStatus"] == "Completed"
    assert not done.describe.get("FinalMetricDataList")


def test_each_host_has_a_log_stream_named_after_it_c66(tmp_path: Path) -> None:
    done = run(tmp_path, HOST + "print('I am', host)", instance_count=2)
    streams = sorted(path.name for path in JobDir.of(done.job.name).logs.iterdir())
    assert [stream.rsplit("-", 1)[0] for stream in streams] == ["algo-1", "algo-2"]
    assert sorted(done.log.splitlines()) == ["I am algo-1", "I am algo-2"]


def test_the_last_of_a_hundred_thousand_lines_is_not_lost(tmp_path: Path) -> None:
    script = (
        "import os, sys\nfor n in range(100_000): print('line', n)\nprint('no newline', end='', flush=True)\nos.abort()"
    )
    done = run(tmp_path, script)
    assert done.describe["TrainingJobStatus"] == "Failed"
    assert done.log.splitlines() == [*(f"line {n}" for n in range(100_000)), "no newline"]


def test_two_hosts_talk_over_tcp_by_name(tmp_path: Path) -> None:
    script = (
        HOST
        + """
import socket
if host == 'algo-1':
    with socket.create_server(('algo-1', 23456)) as server:
        connection, _ = server.accept()
        print('heard', connection.recv(100).decode())
else:
    while True:  # until algo-1 listens; if it fails, this host is ended
        try:
            connection = socket.create_connection(('algo-1', 23456))
            break
        except ConnectionRefusedError:
            time.sleep(0.05)
    connection.sendall(b'hello from algo-2')
"""
    )
    assert "heard hello from algo-2" in run(tmp_path, script, instance_count=2).log


@pytest.mark.parametrize("seconds", [0.0, 1.2])
def test_training_seconds_are_wall_time(tmp_path: Path, seconds: float) -> None:
    described = run(tmp_path, f"import time; time.sleep({seconds})").describe
    wall = (described["TrainingEndTime"] - described["TrainingStartTime"]).total_seconds()
    assert described["TrainingTimeInSeconds"] == described["BillableTimeInSeconds"] == round(wall)
    assert wall >= seconds


@pytest.mark.process_host
def test_a_job_with_unreachable_output_keeps_what_the_hosts_left(tmp_path: Path) -> None:
    blocked = tmp_path / "blocked"
    in_the_way = f"Path({str(blocked)!r}).write_text('a file where a folder should be')"
    done: Done = run(tmp_path, f"{WRITE_MODEL}\n{in_the_way}\n", output=str(blocked / "out"))
    assert done.describe["TrainingJobStatus"] == "Failed"
    kept = list(JobDir.of(done.job.name).attempts.rglob("model/weights"))
    assert [path.read_text() for path in kept] == ["w"]
    assert str(JobDir.of(done.job.name).attempts) in done.reason


def test_an_output_that_nothing_can_be_put_under_is_refused_before_the_job_begins(tmp_path: Path) -> None:
    blocked = tmp_path / "blocked"
    blocked.write_text("")
    for shortcut in ("output", "checkpoint"):
        with pytest.raises(UserError, match=f"{blocked} is in the way"):
            run(tmp_path, **{shortcut: str(blocked / "below")}, name="blocked")
    assert not JobDir.of("blocked").root.exists()


def test_input_that_is_not_there_is_refused_before_the_job_begins(tmp_path: Path) -> None:
    (tmp_path / "train.manifest").write_text("[]")
    for channel, said in (
        ({"uri": str(tmp_path / "train.csv")}, "train.csv"),
        ({"uri": f"{tmp_path}/data/", "input_mode": "FastFile"}, "data/"),
        ({"uri": str(tmp_path / "train.mani"), "data_type": "ManifestFile"}, "is no file: a manifest is named whole"),
    ):
        with pytest.raises(UserError, match=f"channel 'train': .*{said}"):
            run(tmp_path, channels={"train": channel}, name="without")
    file_system = {
        "FileSystemId": "fs-0123456789abcdef0",
        "FileSystemAccessMode": "ro",
        "FileSystemType": "EFS",
        "DirectoryPath": str(tmp_path / "efs"),
    }
    request = {"InputDataConfig": [{"ChannelName": "train", "DataSource": {"FileSystemDataSource": file_system}}]}
    with pytest.raises(UserError, match="/efs is not a folder of this machine"):
        run(tmp_path, request=request, name="without")
    assert not JobDir.of("without").root.exists()


def test_a_program_that_is_not_there_fails_with_its_name(tmp_path: Path) -> None:
    done = run(tmp_path, entrypoint=["no-such-program"])
    assert done.describe["TrainingJobStatus"] == "Failed"
    assert "no-such-program" in done.reason
    assert not JobDir.of(done.job.name).attempts.exists(), "nothing ran, so nothing is worth its room"


def test_no_process_of_an_ended_job_is_left(tmp_path: Path) -> None:
    marker = f"marker-{os.getpid()}-{time.time_ns()}"
    script = f"""
import os, subprocess, sys
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.execvp(sys.executable, [sys.executable, '-c', 'import time; time.sleep(600)', {marker!r}])
    os._exit(0)
import time; time.sleep(0.5)
"""
    run(tmp_path, script)
    running = [
        Path(pid, "cmdline").read_bytes() for pid in Path("/proc").glob("[0-9]*") if Path(pid, "cmdline").exists()
    ]
    assert not [line for line in running if marker.encode() in line]


def test_arguments_arrive_without_a_shell_c40(tmp_path: Path) -> None:
    script = ML + "import json, sys; (ml / 'output/data/argv').write_text(json.dumps(sys.argv[1:]))"
    entrypoint = program(tmp_path / "program", script, name="arguments.py")
    arguments = ["a b", "$(touch x)", "*", "", "'q'", '"', "ü", ";", "--x=1"]
    done = run(tmp_path, entrypoint=entrypoint, request={"AlgorithmSpecification": {"ContainerArguments": arguments}})
    assert json.loads(done.output["argv"]) == arguments
