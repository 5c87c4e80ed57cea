"""The command line as a person or a script uses it: real processes, exit statuses, what is printed where."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tests.harness import capabilities
from tests.hosts import PATIENCE_SECONDS

from optml.images import known_images

OPTML = str(Path(sys.executable).parent / "optml")
PYTHON = sys.executable


def optml(*arguments: str, check: bool = False, **more: Any) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [OPTML, *arguments], capture_output=True, text=True, timeout=2 * PATIENCE_SECONDS, check=check, **more
    )


def describe(name: str) -> dict[str, Any]:
    described: dict[str, Any] = json.loads(optml("describe", name, check=True).stdout)
    return described


def wait_for_text(name: str, text: str, home: Path) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        if any(text in file.read_text() for file in (home / "jobs" / name / "logs").glob("*.log")):
            return
        time.sleep(0.02)
    raise AssertionError(f"{name} never printed {text!r}")


def wait_for_end(name: str) -> dict[str, Any]:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while (described := describe(name))["TrainingJobStatus"] in ("InProgress", "Stopping"):
        assert time.monotonic() < deadline, described
        time.sleep(0.05)
    return described


def test_a_completed_job_exits_0_and_shows_lines_by_host(tmp_path: Path) -> None:
    done = optml("train", "--name", "hello", "--output", str(tmp_path / "out"), "--", "echo", "hello world")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "algo-1 | hello world" in lines
    assert any("Completed" in line for line in lines)
    assert any(f"{tmp_path}/out/hello/output/model.tar.gz" in line for line in lines)
    assert (tmp_path / "out/hello/output/model.tar.gz").is_file()


def test_a_failed_job_exits_1_and_says_why_and_where() -> None:
    done = optml("train", "--name", "fails", "--", PYTHON, "-c", "raise SystemExit(9)")
    assert done.returncode == 1
    assert "exit code: 9" in done.stdout
    assert "logs: " in done.stdout


def test_a_bad_request_exits_2_with_every_problem_and_records_nothing(tmp_path: Path) -> None:
    request = tmp_path / "request.json"
    request.write_text(
        json.dumps({"TrainingJobName": "bad_name", "AlgorithmSpecification": {"TrainingInputMode": "Tube"}})
    )
    done = optml("train", str(request))
    assert done.returncode == 2
    assert "trainingJobName" in done.stderr
    assert "Tube" in done.stderr
    assert "Traceback" not in done.stderr
    assert optml("list").stdout == ""


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["train"], "give a request file"),
        (["train", "no-such-file.json"], "no-such-file.json"),
        (["train", "/etc"], "Is a directory; data is given with --channel train=/etc"),
        (["train", "--image", "xgbost"], "did you mean 'xgboost'?"),
        (["describe-algorithm", "linear_lerner"], "did you mean 'linear-learner'?"),
        (["images", "build", "scikit"], "did you mean 'scikit-learn'?"),
        (["describe", "../x"], "There is no job '../x' in"),
        (["train", "--image", "no-such-image", "--channel", "train=/tmp"], "no-such-image"),
        (["train", "--channel", "train", "--", "true"], "NAME=VALUE"),
        (["train", "--max-runtime", "soon", "--", "true"], "duration"),
        (["train", "--"], "after -- comes a program"),
        (["train", "--image", "python"], "ContainerEntrypoint"),
        (["train", "--instance-type", "ml.p4d.24xlarge", "--", "true"], "--allow-cpu"),
        (["train", "--metric", "loss=loss=(", "--", "true"], "loss=("),
        (["train", "--cpus", "1000", "--", "true"], "so its one host can have at most"),
        (["train", "--max-runtime", "0", "--", "true"], "must have value greater than or equal to 1"),
        (["train", "train.py"], "optml train -- python train.py"),
        (["train", "-p", "a=1", "-p", "a=2", "--", "true"], "--hyperparameter a is given twice"),
        (["train", "--input-mode", "Pipe", "--", "true"], "there is no --channel that it could be of"),
        (["train", "--distribution", "torchrum", "--", "true"], "of a script it is one of torchrun,"),
        (["train", "--every", "0", "--", "true"], "every_seconds must be a number of seconds"),
        (["train", "--mtti", "0", "--", "true"], "mean_seconds must be a number of seconds"),
        (["drill", "--every", "0", "--", "true"], "every_seconds must be a number of seconds"),
        (["train", "--instance-type", "m5.large", "--", "true"], "did you mean 'ml.m5.large'?"),
        (["train", "--", PYTHON, "-c", "a\nb"], "put the program into a file"),
        (["train", "--", PYTHON, "-c", "a" * 257], "(it has 257 characters: put the program into a file)"),
        (["describe", "nobody"], "Requested resource not found"),
        (["stop", "nobody"], "Requested resource not found"),
        (["delete", "nobody"], "Requested resource not found"),
        (["logs", "nobody"], "Requested resource not found"),
    ],
)
def test_mistakes_exit_2_with_one_clear_message(arguments: list[str], expected: str) -> None:
    done = optml(*arguments)
    assert done.returncode == 2
    assert expected in done.stderr
    assert "Traceback" not in done.stderr


def test_a_job_whose_name_is_mistyped_is_found(tmp_path: Path) -> None:
    optml("train", "--name", "digits-first", "--", "true", check=True)
    for command in (["describe", "digit-first"], ["logs", "digits-frist"], ["predict", "digits-frst", str(tmp_path)]):
        done = optml(*command)
        assert done.returncode == 2
        assert "did you mean 'digits-first'?" in done.stderr
    (tmp_path / "train.csv").write_text("1,2\n")
    given = optml("train", str(tmp_path / "train.csv"))
    assert (
        f"train.csv is no request, which is JSON or YAML: data is given with --channel train={tmp_path}" in given.stderr
    )


def test_a_name_is_taken_until_it_is_deleted_c67() -> None:
    assert optml("train", "--name", "once", "--", "true").returncode == 0
    again = optml("train", "--name", "once", "--", "true")
    assert again.returncode == 2
    assert "ResourceInUse" in again.stderr
    assert "arn:aws:sagemaker:" in again.stderr
    assert optml("delete", "once").returncode == 0
    assert optml("train", "--name", "once", "--", "true").returncode == 0


def test_an_unknown_job_is_not_found_c70() -> None:
    done = optml("describe", "unknown")
    assert done.returncode == 2
    assert "Requested resource not found." in done.stderr


def test_a_completed_job_cannot_be_stopped_c71() -> None:
    optml("train", "--name", "done", "--", "true", check=True)
    refused = optml("stop", "done")
    assert refused.returncode == 2
    assert "The request was rejected because the training job is in status Completed." in refused.stderr


def test_a_detached_job_is_watched_stopped_and_deleted_by_others(optml_home: Path) -> None:
    script = "import time; print('ready', flush=True); time.sleep(600)"
    begun = optml("train", "--detach", "--name", "away", "--", PYTHON, "-c", script)
    assert begun.stdout == "away\n"
    wait_for_text("away", "ready", optml_home)
    assert describe("away")["TrainingJobStatus"] == "InProgress"
    with subprocess.Popen([OPTML, "logs", "--follow", "away"], stdout=subprocess.PIPE, text=True) as follower:
        assert follower.stdout is not None
        assert follower.stdout.readline() == "algo-1 | ready\n"
        busy = optml("delete", "away")
        assert busy.returncode == 2
        assert "ResourceInUse" in busy.stderr
        stopped = optml("stop", "--wait", "away")
        assert stopped.stdout == "away: Stopped\n"
        assert follower.wait(timeout=PATIENCE_SECONDS) == 0
    assert "away" in optml("list", "--status", "Stopped").stdout
    assert optml("delete", "away").returncode == 0
    assert not (optml_home / "jobs" / "away").exists()


def test_ctrl_c_stops_the_job_and_exits_130(optml_home: Path) -> None:
    script = "import time; print('ready', flush=True); time.sleep(600)"
    with subprocess.Popen(
        [OPTML, "train", "--name", "typed", "--", PYTHON, "-c", script],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as running:
        wait_for_text("typed", "ready", optml_home)
        os.killpg(running.pid, signal.SIGINT)  # as a terminal does: the whole foreground group
        assert running.wait(timeout=PATIENCE_SECONDS) == 130
    assert describe("typed")["TrainingJobStatus"] == "Stopped"


def test_ctrl_c_again_and_again_breaks_nothing_off(optml_home: Path) -> None:
    script = "import time; print('ready', flush=True); time.sleep(600)"
    record = optml_home / "jobs/typed/job.json"
    with subprocess.Popen(
        [OPTML, "train", "--name", "typed", "--", PYTHON, "-c", script],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as running:
        wait_for_text("typed", "ready", optml_home)
        running.send_signal(signal.SIGINT)
        while json.loads(record.read_bytes())["describe"]["TrainingJobStatus"] != "Stopped":
            time.sleep(0.002)
        while running.poll() is None:
            running.send_signal(signal.SIGINT)
            time.sleep(0.002)
        assert running.stderr is not None
        assert (running.returncode, running.stderr.read()) == (130, "")
    assert describe("typed")["TrainingJobStatus"] == "Stopped"


def test_a_second_ctrl_c_does_not_wait_for_the_grace(optml_home: Path) -> None:
    script = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); time.sleep(600)"
    with subprocess.Popen(
        [OPTML, "train", "--name", "twice", "--grace", "10m", "--", PYTHON, "-c", script], stdout=subprocess.DEVNULL
    ) as running:
        wait_for_text("twice", "ready", optml_home)
        running.send_signal(signal.SIGINT)
        while describe("twice")["TrainingJobStatus"] != "Stopping":
            time.sleep(0.02)
        running.send_signal(signal.SIGINT)
        assert running.wait(timeout=PATIENCE_SECONDS) == 130
    assert describe("twice")["TrainingJobStatus"] == "Stopped"


def processes_with(marker: str) -> list[int]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if marker.encode() in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
        except OSError:
            continue
    return found


@pytest.mark.parametrize("moment", ["training", "uploading"])
def test_kill_9_of_the_supervisor_leaves_no_process_and_a_true_record(
    moment: str, tmp_path: Path, optml_home: Path
) -> None:
    marker = f"marker-{time.time_ns()}"
    big = "ml.joinpath('model/big').write_bytes(os.urandom(300_000_000));" if moment == "uploading" else ""
    script = (
        "import os, subprocess, sys, time; from pathlib import Path;"
        "ml = Path(os.environ.get('SAGEMAKER_BASE_DIR', '/opt/ml'));"
        f"{big}"
        f"subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)', '{marker}'], start_new_session=True);"
        "print('ready', flush=True);" + ("time.sleep(600)" if moment == "training" else "")
    )
    file = tmp_path / "train.py"
    file.write_text(script)
    with subprocess.Popen(
        [OPTML, "train", "--name", "orphan", "--", PYTHON, str(file)], stdout=subprocess.DEVNULL
    ) as running:
        wait_for_text("orphan", "ready", optml_home)
        if moment == "uploading":
            while describe("orphan")["SecondaryStatus"] != "Uploading":
                time.sleep(0.005)
        running.kill()
    deadline = time.monotonic() + PATIENCE_SECONDS
    while processes_with(marker):
        assert time.monotonic() < deadline, "a process of the job outlived its supervisor"
        time.sleep(0.02)
    described = describe("orphan")
    assert described["TrainingJobStatus"] == "Failed"
    assert described["FailureReason"].startswith("InternalServerError")
    assert "TrainingEndTime" in described
    assert "ready" in optml("logs", "orphan").stdout
    assert optml("delete", "orphan").returncode == 0
    assert optml("train", "--name", "orphan", "--", "true").returncode == 0


def test_many_kills_at_random_moments_leave_nothing(tmp_path: Path, optml_home: Path) -> None:
    """Whatever the instant, no process is left, the record can be read, and the name can be used again."""
    marker = f"marker-{time.time_ns()}"
    data = tmp_path / "data"
    data.mkdir()
    for number in range(50):
        (data / str(number)).write_bytes(b"x" * 1000)
    for number in range(12):
        command = [OPTML, "train", "--name", "victim", "--channel", f"train={data}/", "--"]
        with subprocess.Popen(
            [*command, PYTHON, "-c", "import time; time.sleep(0.3)", marker], stdout=subprocess.DEVNULL
        ) as running:
            time.sleep(0.05 * number)
            running.kill()
        deadline = time.monotonic() + PATIENCE_SECONDS
        while processes_with(marker):
            assert time.monotonic() < deadline, "a process of the job outlived its supervisor"
            time.sleep(0.02)
        if (optml_home / "jobs" / "victim").exists():
            assert describe("victim")["TrainingJobStatus"] in ("Failed", "Completed")
            assert optml("delete", "victim").returncode == 0
    assert optml("train", "--name", "victim", "--", "true").returncode == 0
    mounts = Path("/proc/self/mounts").read_text()
    assert str(optml_home) not in mounts
    assert [path for path in (optml_home / ".unclaimed").glob("*") if path.name.startswith("deleted-")] == []


def test_several_jobs_at_once_do_not_meet(tmp_path: Path) -> None:
    hosts = 2 if capabilities().host_names else 1
    running = [
        subprocess.Popen(
            [
                OPTML,
                "train",
                "--name",
                f"parallel-{n}",
                "--instance-count",
                str(hosts),
                "--",
                PYTHON,
                "-c",
                f"print('I am {n}')",
            ],
            stdout=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
        )
        for n in range(6)
    ]
    for number, process in enumerate(running):
        output, _ = process.communicate(timeout=PATIENCE_SECONDS)
        assert process.returncode == 0, output
        assert output.count(f"| I am {number}\n") == hosts
    assert optml("list", "--json", check=True).stdout.count('"Completed"') == 12  # status and secondary status of six


def test_a_folder_removed_by_hand_while_the_job_runs_ends_the_job(optml_home: Path) -> None:
    import shutil

    marker = f"marker-{time.time_ns()}"
    script = "import time; print('ready', flush=True); time.sleep(600)"
    with subprocess.Popen(
        [OPTML, "train", "--name", "gone", "--grace", "2", "--", PYTHON, "-c", script, marker],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as running:
        wait_for_text("gone", "ready", optml_home)
        shutil.rmtree(optml_home / "jobs" / "gone", ignore_errors=True)
        output, _ = running.communicate(timeout=PATIENCE_SECONDS)
    assert running.returncode == 1
    assert "removed while the job ran" in output
    assert "Traceback" not in output
    assert not processes_with(marker)


def test_a_described_job_is_no_request_and_one_line_says_why(tmp_path: Path) -> None:
    optml("train", "--name", "first", "--", "true", check=True)
    again = tmp_path / "again.json"
    again.write_text(optml("describe", "first", check=True).stdout)
    refused = optml("train", str(again), "--name", "second")
    assert refused.returncode == 2
    assert refused.stderr.startswith(
        "optml: 1 validation error detected: These fields are of DescribeTrainingJob's answer"
    )
    assert "TrainingJobArn" in refused.stderr
    request = {k: v for k, v in json.loads(again.read_text()).items() if k not in refused.stderr}
    again.write_text(json.dumps(request))
    assert optml("train", str(again), "--name", "second").returncode == 0


def test_a_request_that_aws_would_refuse_for_what_it_lacks_says_so(tmp_path: Path) -> None:
    request = tmp_path / "request.yaml"
    request.write_text(
        "AlgorithmSpecification: {ContainerEntrypoint: ['true']}\nRoleArn: arn:aws:iam::123456789012:role/me\n"
    )
    done = optml("train", str(request))
    assert done.returncode == 0
    (warning,) = [line for line in done.stdout.splitlines() if "warning: AWS would refuse" in line]
    assert "TrainingJobName, AlgorithmSpecification.TrainingInputMode, OutputDataConfig.S3OutputPath" in warning
    assert "RoleArn" not in warning
    assert "AWS would refuse" not in optml("train", "--", "true").stdout, "options alone are no request for AWS"


def test_logs_show_the_last_lines_of_one_host() -> None:
    optml("train", "--name", "two", "--instance-count", "2", "--", "seq", "5", check=True)
    assert optml("logs", "two", "--tail", "2", "--host", "algo-2", check=True).stdout == "algo-2 | 4\nalgo-2 | 5\n"
    unknown = optml("logs", "two", "--host", "algo-3")
    assert unknown.returncode == 2
    assert "has no host 'algo-3': its hosts are algo-1 to algo-2" in unknown.stderr


def test_the_host_that_failed_is_named() -> None:
    script = "import json, sys; sys.exit(7 * (json.load(open(sys.argv[1]))['current_host'] == 'algo-2'))"
    place = "/opt/ml/input/config/resourceconfig.json"
    done = optml("train", "--instance-count", "2", "--", PYTHON, "-c", script, place)
    assert done.returncode == 1
    assert "optml  | algo-2 failed: exit code 7, without a failure file or a word\n" in done.stdout


def test_a_deleted_current_folder_is_said(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    done = optml("train", "--", "true", cwd=gone, preexec_fn=gone.rmdir)
    assert done.returncode == 2
    assert "the current folder has been deleted" in done.stderr


@pytest.mark.parametrize(
    "url", ["localhost:9000", "http://localhost:port", "http://localhost:99999", "http://", "//x:1"]
)
@pytest.mark.parametrize("variable", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"])
def test_an_endpoint_that_is_no_address_is_named_before_the_job_begins(
    variable: str, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = f"{variable} must be the address of an S3 server, as in http://localhost:9000"
    given = optml("train", "--name", "endpoint", "--env", f"{variable}={url}", "--", "true")
    assert (given.returncode, said in given.stderr) == (2, True), given.stderr
    assert f"Environment.{variable}" in given.stderr
    monkeypatch.setenv(variable, url)
    mine = optml("train", "--name", "endpoint", "--", "true")
    assert (mine.returncode, mine.stderr.startswith(f"optml: {said}")) == (2, True), mine.stderr
    assert optml("list").stdout == ""
    (finding,) = [each for each in json.loads(optml("doctor", "--json").stdout) if each["subject"] == "S3"]
    assert (finding["works"], finding["text"].startswith(said)) == (False, True)


def test_s3_without_credentials_is_known_before_the_job_begins(tmp_path: Path) -> None:
    for given in (["--channel", "train=s3://bucket/x/"], ["--output", "s3://bucket/x"], ["--checkpoint", "s3://b/x"]):
        done = optml("train", "--name", "keyless", *given, "--", "true", env={**os.environ, "HOME": str(tmp_path)})
        assert done.returncode == 2
        assert "no S3 credentials were found. Run `aws configure`" in done.stderr
    assert optml("list").stdout == ""


def test_a_job_of_one_host_says_so() -> None:
    optml("train", "--name", "one", "--", "true", check=True)
    assert "has no host 'algo-2': its only host is algo-1" in optml("logs", "one", "--host", "algo-2").stderr


@pytest.mark.parametrize("home", ["/dev/null", "/proc/optml"])
def test_a_home_that_cannot_be_is_said(home: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPTML_HOME", home)
    done = optml("train", "--output", "/tmp", "--", "true")
    assert done.returncode == 2
    assert "set OPTML_HOME to a folder of yours" in done.stderr
    for command in ("list", "doctor"):
        asked = optml(command)
        assert asked.returncode in (0, 2)
        assert "Traceback" not in asked.stderr


def test_ctrl_c_in_python_stops_the_job_and_is_raised_again(optml_home: Path) -> None:
    script = "import optml\nfor n in range(3): optml.train(image='python', name=f'n{n}', entrypoint=['sleep', '600'])"
    with subprocess.Popen([PYTHON, "-c", script], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as running:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not (optml_home / "jobs/n0").exists() or describe("n0")["SecondaryStatus"] != "Training":
            assert time.monotonic() < deadline
            time.sleep(0.05)
        running.send_signal(signal.SIGINT)
        assert running.wait(timeout=PATIENCE_SECONDS) != 0
        assert running.stderr is not None
        assert b"KeyboardInterrupt" in running.stderr.read()
    assert describe("n0")["TrainingJobStatus"] == "Stopped"
    assert not (optml_home / "jobs/n1").exists()


def test_what_others_keep_in_the_home_stays(optml_home: Path) -> None:
    """OPTML_HOME may be a folder that is also used for something else."""
    for folder in ("tmp", "cache", ".unclaimed"):
        (optml_home / folder / "mine").mkdir(parents=True)
        (optml_home / folder / "mine" / "file").write_text("x")
        os.utime(optml_home / folder / "mine", (1, 1))
    optml("train", "--name", "first", "--", "true", check=True)
    optml("delete", "first", check=True)
    optml("train", "--", "true", check=True)
    assert len(list(optml_home.glob("*/mine/file"))) == 3


def test_a_link_among_the_jobs_is_not_followed(tmp_path: Path, optml_home: Path) -> None:
    target = tmp_path / "target" / "a"
    target.mkdir(parents=True)
    target.chmod(0o550)
    (optml_home / "jobs").mkdir(parents=True)
    (optml_home / "jobs" / "linked").symlink_to(tmp_path / "target")
    refused = optml("delete", "linked")
    assert refused.returncode == 2
    assert "is a link that optml did not make" in refused.stderr
    assert target.stat().st_mode & 0o777 == 0o550
    assert [path.name for path in (tmp_path / "target").iterdir()] == ["a"]


def test_a_detached_program_has_the_environment_that_it_has_in_the_foreground(tmp_path: Path) -> None:
    env = {**os.environ, "PYTHONPATH": str(tmp_path / "mine")}
    show = "import os; print(os.environ['PYTHONPATH'])"
    optml("train", "--name", "here", "--", PYTHON, "-c", show, check=True, env=env)
    optml("train", "--detach", "--name", "away", "--", PYTHON, "-c", show, check=True, env=env)
    assert wait_for_end("away")["TrainingJobStatus"] == "Completed"
    assert optml("logs", "here").stdout == optml("logs", "away").stdout == f"algo-1 | {tmp_path / 'mine'}\n"


def test_nohup_means_what_it_says(optml_home: Path) -> None:
    script = "import time; print('ready', flush=True); time.sleep(2)"
    command = ["nohup", OPTML, "train", "--name", "kept", "--", PYTHON, "-c", script]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as running:
        wait_for_text("kept", "ready", optml_home)
        running.send_signal(signal.SIGHUP)
        assert running.wait(timeout=PATIENCE_SECONDS) == 0
    assert describe("kept")["TrainingJobStatus"] == "Completed"


def test_following_into_a_closed_pipe_ends_at_once(optml_home: Path) -> None:
    script = "import itertools, time; [print(n, flush=True) or time.sleep(0.05) for n in itertools.count()]"
    optml("train", "--detach", "--name", "talks", "--grace", "1", "--", PYTHON, "-c", script, check=True)
    wait_for_text("talks", "3", optml_home)
    done = subprocess.run(
        ["bash", "-c", f"{OPTML} logs --follow talks | head -n 1"],
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE_SECONDS,
        check=True,
    )
    assert done.stdout == "algo-1 | 0\n"
    assert done.stderr == ""
    optml("stop", "--wait", "talks", check=True)


def test_a_name_that_is_no_utf_8_fails_the_job_readably(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "a").write_text("1")
    (folder / os.fsdecode(b"x\xff")).symlink_to("nowhere")
    done = optml("train", "--name", "odd", "--channel", f"train={folder}", "--", "true", errors="surrogateescape")
    assert done.returncode == 1
    assert "Traceback" not in done.stdout + done.stderr
    assert "x\\udcff: a symbolic link to nothing" in describe("odd")["FailureReason"]


def test_an_s3_server_that_never_answers_can_be_left(monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
        command = [OPTML, "train", "--name", "waits", "--channel", "train=s3://bucket/data/", "--", "true"]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as running:
            silent.accept()
            for _ in range(3):
                time.sleep(0.3)
                running.send_signal(signal.SIGINT)
            assert running.wait(timeout=PATIENCE_SECONDS) == 130
            assert running.stderr is not None
            assert running.stderr.read() == b""
    assert describe("waits")["TrainingJobStatus"] == "Stopped"


def test_list_is_newest_first_and_json_is_awss() -> None:
    for name in ("first", "second"):
        optml("train", "--name", name, "--", "true", check=True)
    summaries = json.loads(optml("list", "--json", check=True).stdout)["TrainingJobSummaries"]
    assert [each["TrainingJobName"] for each in summaries] == ["second", "first"]
    assert [line.split()[0] for line in optml("list").stdout.splitlines()] == ["NAME", "second", "first"]
    filtered = optml("list", "--status", "Failed", "--max-results", "1", "--json", check=True).stdout
    assert json.loads(filtered) == {"TrainingJobSummaries": []}


def test_dry_run_prints_a_request_that_aws_would_take_and_runs_nothing(tmp_path: Path, optml_home: Path) -> None:
    (tmp_path / "a.csv").write_text("1,2\n")
    done = optml("train", "--dry-run", "--channel", f"train={tmp_path / 'a.csv'}", "--", "echo", "never", check=True)
    plan = json.loads(done.stdout)
    assert plan["launches"][0]["argv"] == ["echo", "never"]
    assert plan["request"]["InputDataConfig"][0]["ChannelName"] == "train"
    assert not (optml_home / "jobs").exists()


def test_a_content_type_may_have_parameters_for_all_channels_or_for_one(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("1,2\n")
    channels = [f"--channel={name}={tmp_path / 'a.csv'}" for name in ("train", "test")]
    types = ["--content-type", "text/csv;label_size=2", "--content-type", "test=text/csv; label_size=1"]
    done = optml("train", "--dry-run", *channels, *types, "--", "true", check=True)
    found = {each["ChannelName"]: each["ContentType"] for each in json.loads(done.stdout)["request"]["InputDataConfig"]}
    assert found == {"train": "text/csv;label_size=2", "test": "text/csv; label_size=1"}


def test_dry_run_shows_no_password_of_the_callers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://me:hidden@proxy.example:8080")
    monkeypatch.setenv("PIP_INDEX_URL", "https://me:hidden@index.example/simple")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hidden")
    done = optml("train", "--dry-run", "--", "true", check=True)
    assert "http://me:...@proxy.example:8080" in done.stdout
    assert "hidden" not in done.stdout


def test_a_path_with_spaces_and_unicode_works_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "my ünï côde, folder: (1)"
    folder.mkdir()
    (folder / "daten 1.csv").write_text("1,2\n")
    monkeypatch.setenv("OPTML_HOME", str(tmp_path / "thé home"))
    script = folder / "train it.py"
    script.write_text(
        "import os; from pathlib import Path; ml = Path(os.environ.get('SAGEMAKER_BASE_DIR', '/opt/ml'));"
        "print((ml / 'input/data/train/daten 1.csv').read_text()); (ml / 'input/data/train/x').write_text('')"
    )
    done = optml(
        "train", "--name", "s", "--channel", "train=.", "--output", "the output", "--", PYTHON, str(script), cwd=folder
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "algo-1 | 1,2" in done.stdout
    assert (folder / "the output/s/output/model.tar.gz").is_file()


COMMANDS = ["train", "list", "describe", "logs", "stop", "delete", "images", "doctor"]


@pytest.mark.parametrize("arguments", [["--help"], *([command, "--help"] for command in COMMANDS)])
def test_help_is_there(arguments: list[str]) -> None:
    done = optml(*arguments, check=True)
    assert "Usage: optml" in done.stdout


def test_doctor_says_what_works() -> None:
    text = optml("doctor", check=True).stdout
    width = max(len(f"image {image.name}") for image in known_images())
    for line in text.splitlines():  # mark, subject, text, each in its column however long a name is
        assert line[1] == line[2 + width] == " " != line[3 + width]
    for subject in ("machine", "process backend", "image xgboost", "S3"):
        assert subject in text
    findings = json.loads(optml("doctor", "--json", check=True).stdout)
    assert all(finding["text"] for finding in findings)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_are_printed(shell: str) -> None:
    assert "_OPTML_COMPLETE" in optml("completion", shell, check=True).stdout


def test_output_into_a_closed_pipe_does_not_end_the_job() -> None:
    script = "import time; [print(n, flush=True) for n in range(200)]; time.sleep(0.5)"
    command = f"{OPTML} train --name piped -- {PYTHON} -c '{script}' | head -n 1"
    subprocess.run(["bash", "-c", command], check=True, timeout=2 * PATIENCE_SECONDS, stdout=subprocess.DEVNULL)
    assert wait_for_end("piped")["TrainingJobStatus"] == "Completed"
