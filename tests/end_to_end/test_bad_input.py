"""What goes wrong with data, disks and odd values, through the command line: one clear message, and nothing left behind."""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.end_to_end.test_command_line import OPTML, PYTHON, optml, processes_with, wait_for_text
from tests.harness import files
from tests.hosts import PATIENCE_SECONDS
from tests.s3 import S3, free_port


def snapshot(folder: Path) -> dict[str, tuple[Any, ...]]:
    found: dict[str, tuple[Any, ...]] = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        found[str(path)] = (status.st_mode, status.st_mtime_ns, path.read_bytes() if path.is_file() else b"")
    return found


@pytest.fixture
def data(tmp_path: Path) -> Iterator[Path]:
    """A folder of the user's, in which nothing has changed after the test; the test may add to it."""
    folder = files(tmp_path / "data", {"a.csv": "1,2\n", "sub/b.csv": "3,4\n"})
    (tmp_path / "data" / "sub" / "b.csv").chmod(0o440)
    before = snapshot(folder)
    yield folder
    assert before.items() <= snapshot(folder).items()


@pytest.fixture
def marker(optml_home: Path) -> Iterator[str]:
    """An argument of the job's program. After the test no process has it, and nothing of the job is mounted."""
    text = f"marker-{time.time_ns()}"
    yield text
    assert processes_with(text) == []
    mounts = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
    assert [mount for mount in mounts if mount.startswith(f"{optml_home}/")] == []


def train(marker: str, *arguments: str, script: str = "pass") -> "subprocess.CompletedProcess[str]":
    return optml("train", "--name", "job", "--grace", "2", *arguments, "--", PYTHON, "-c", script, marker)


def refused(done: "subprocess.CompletedProcess[str]", *words: str) -> None:
    """The job or its request failed with one message, which has all these words."""
    everything = done.stdout + done.stderr
    assert done.returncode in (1, 2), everything
    assert "Traceback" not in everything
    begins = ("optml  | reason: ",) if done.returncode == 1 else ("optml: ", "Error: ")
    messages = [line for line in everything.splitlines() if line.startswith(begins)]
    assert len(messages) == 1, everything
    for word in words:
        assert word in messages[0]
    if done.returncode == 1:
        described = json.loads(optml("describe", "job", check=True).stdout)
        assert described["TrainingJobStatus"] == "Failed"
        assert words[0] in described["FailureReason"]


def test_a_channel_that_does_not_exist_is_named_with_what_is_near(data: Path, marker: str) -> None:
    refused(train(marker, "--channel", f"train={data}/a.cvs"), f"{data}/a.cvs", "near names there: a.csv")


def test_an_empty_folder_is_named(tmp_path: Path, marker: str) -> None:
    (tmp_path / "empty").mkdir()
    refused(train(marker, "--channel", f"train={tmp_path}/empty"), f"{tmp_path}/empty", "no files in it")


def test_an_empty_s3_prefix_is_named(s3: S3, marker: str) -> None:
    uri = f"s3://{s3.new_bucket()}/nothing/"
    refused(train(marker, "--channel", f"train={uri}"), uri, "ensure that the bucket exists")


def test_missing_s3_credentials_are_named(marker: str) -> None:
    refused(train(marker, "--channel", "train=s3://bucket/data/"), "s3://bucket/data/", "aws configure")


def test_an_s3_endpoint_that_cannot_be_reached_is_named(s3: S3, marker: str, monkeypatch: pytest.MonkeyPatch) -> None:
    address = f"http://127.0.0.1:{free_port()}"
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", address)
    uri = f"s3://{s3.new_bucket()}/data/"
    refused(train(marker, "--channel", f"train={uri}"), uri, address, "AWS_ENDPOINT_URL_S3", "Check the address")


def test_a_link_to_nothing_in_the_data_is_named(data: Path, marker: str) -> None:
    (data / "dangling").symlink_to("gone")
    refused(train(marker, "--channel", f"train={data}"), f"{data}/dangling", "remove or mend it")


def test_a_pipe_of_data_that_is_not_what_it_claims_is_named(tmp_path: Path, data: Path, marker: str) -> None:
    source = {"S3DataType": "S3Prefix", "S3Uri": f"{data}/"}
    channel = {
        "ChannelName": "train",
        "DataSource": {"S3DataSource": source},
        "InputMode": "Pipe",
        "CompressionType": "Gzip",
    }
    request = files(tmp_path, {"request.json": json.dumps({"InputDataConfig": [channel]})}) / "request.json"
    script = "open('/opt/ml/input/data/train_0', 'rb').read()"
    refused(
        train(marker, str(request), script=script), f"{data}/a.csv", "is not gzip data", "leave CompressionType out"
    )


@pytest.fixture
def small_home(optml_home: Path) -> Iterator[Callable[[str], Path]]:
    """OPTML_HOME on a disk of a given size."""

    def mount(size: str) -> Path:
        optml_home.mkdir()
        argv = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(optml_home)]
        if os.geteuid() != 0 or subprocess.run(argv, capture_output=True, check=False).returncode:
            optml_home.rmdir()
            pytest.skip("mounting a small disk takes root with the right to mount")
        return optml_home

    yield mount
    if optml_home.is_mount():
        subprocess.run(["umount", str(optml_home)], check=True)


def test_a_disk_that_is_full_while_staging_is_named(
    data: Path, marker: str, small_home: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    small_home("1m")
    monkeypatch.setenv("OPTML_NAMESPACES", "off")  # so that the data is copied
    (data / "big").write_bytes(os.urandom(2_000_000))
    refused(train(marker, "--channel", f"train={data}/"), f"{data}/big", "no space left", "OPTML_HOME")


def test_a_channel_that_the_disk_cannot_take_is_named(s3: S3, marker: str, small_home: Callable[[str], Path]) -> None:
    assert s3.folder is not None
    small_home("1m")
    bucket = s3.new_bucket()
    (s3.folder / bucket / "big").write_bytes(bytes(2_000_000))
    refused(train(marker, "--channel", f"train=s3://{bucket}/"), "'train'", "2,000,000 bytes to download", "OPTML_HOME")


def test_a_disk_that_is_full_while_archiving_is_named_and_the_model_is_kept(
    tmp_path: Path, data: Path, marker: str, small_home: Callable[[str], Path]
) -> None:
    home = small_home("8m")
    script = "import os; open('/opt/ml/model/weights', 'wb').write(os.urandom(5_000_000))"
    done = train(marker, "--output", str(tmp_path / "out"), "--channel", f"train={data}", script=script)
    refused(done, "outputs could not be saved", "no space left", "OPTML_HOME", f"{home}/jobs/job/attempts")
    kept = (home / "jobs" / "job" / "attempts").rglob("weights")
    assert [path.stat().st_size for path in kept] == [5_000_000]
    assert not list((tmp_path / "out").rglob("model.tar.gz*"))


@pytest.mark.parametrize("value", ['it\'s "quoted"', "$(touch {})", "`touch {}`; rm -rf x", "ü€😀\\", "", " = "])
def test_a_hyperparameter_is_text_whatever_is_in_it(tmp_path: Path, marker: str, value: str) -> None:
    value = value.replace("{}", str(tmp_path / "touched"))
    script = "import json; print(json.dumps(json.load(open('/opt/ml/input/config/hyperparameters.json'))))"
    done = train(marker, "--hyperparameter", f"odd={value}", script=script)
    assert done.returncode == 0, done.stdout + done.stderr
    line = next(line for line in done.stdout.splitlines() if line.startswith("algo-1 | "))
    assert json.loads(line.removeprefix("algo-1 | ")) == {"odd": value}
    assert not (tmp_path / "touched").exists()


def test_a_hyperparameter_of_two_lines_is_refused_as_aws_does(marker: str) -> None:
    done = train(marker, "--hyperparameter", "odd=two\nlines")
    assert done.returncode == 2
    assert "at 'hyperParameters' failed to satisfy constraint" in done.stderr
    assert "Traceback" not in done.stderr
    assert optml("list").stdout == ""


def test_a_metric_that_searches_for_ever_holds_nothing_up(marker: str) -> None:
    script = "[print('a' * 200, flush=True) for _ in range(100)]; print('loss=0.5')"
    began = time.monotonic()
    done = train(marker, "--metric", "slow=((a+)+)$b", "--metric", r"loss=loss=([\d.]+)", script=script)
    assert done.returncode == 0, done.stdout + done.stderr
    assert time.monotonic() - began < PATIENCE_SECONDS
    assert "Traceback" not in done.stdout + done.stderr
    final = json.loads(optml("describe", "job", check=True).stdout)["FinalMetricDataList"]
    assert [(metric["MetricName"], metric["Value"]) for metric in final] == [("loss", 0.5)]


def test_a_home_that_is_removed_while_the_job_runs_ends_the_job(data: Path, marker: str, optml_home: Path) -> None:
    script = "import time; print('ready', flush=True); time.sleep(600)"
    argv = [
        OPTML,
        "train",
        "--name",
        "job",
        "--grace",
        "2",
        "--channel",
        f"train={data}",
        "--",
        PYTHON,
        "-c",
        script,
        marker,
    ]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as running:
        wait_for_text("job", "ready", optml_home)
        shutil.rmtree(optml_home, ignore_errors=True)
        output, _ = running.communicate(timeout=PATIENCE_SECONDS)
    assert running.returncode == 1
    assert "removed while the job ran" in output
    assert "Traceback" not in output


def test_a_job_that_spoils_and_removes_its_channel_spoils_nothing_of_the_users(data: Path, marker: str) -> None:
    script = (
        "import os, shutil; train = '/opt/ml/input/data/train'; open(train + '/a.csv', 'w').write('spoilt');"
        "os.chmod(train + '/sub/b.csv', 0o777); shutil.rmtree(train + '/sub'); raise SystemExit(7)"
    )
    refused(train(marker, "--channel", f"train={data}", script=script), "exit code: 7")
