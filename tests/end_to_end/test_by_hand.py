"""A job by hand: `optml stage` writes its /opt/ml and prints the docker commands, a person runs them, `optml collect` packs."""

import json
import os
import re
import signal
import stat
import subprocess
import sys
import tarfile
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.harness import files
from tests.hosts import PATIENCE_SECONDS
from tests.s3 import S3

import optml
from optml import plan_options
from optml.errors import DataError, UserError
from optml.spec import InterruptionPlan

OPTML = str(Path(sys.executable).parent / "optml")
Images = Callable[[str], str]

# Stands in for the docker client: writes down how it was called, and answers as if every container had ended well.
FAKE_DOCKER = f"""#!{sys.executable}
import json, os, sys
with open(os.environ["CALLS"], "a") as calls:
    print(json.dumps(sys.argv[1:]), file=calls)
if sys.argv[1] == "wait":
    print(0)
"""


def command_line(
    *arguments: str | Path, cwd: Path | None = None, **environment: str
) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [OPTML, *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE_SECONDS,
        check=False,
    )


def bash(script: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    """The commands as `optml stage ... | bash` runs them."""
    return subprocess.run(
        ["bash"],
        input=script,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def calls_of(script: str, folder: Path) -> list[list[str]]:
    """What bash makes of the commands, word by word."""
    fake = folder / "bin" / "docker"
    fake.parent.mkdir()
    fake.write_text(FAKE_DOCKER)
    fake.chmod(0o755)
    calls = folder / "calls"
    done = bash(script, CALLS=str(calls), PATH=f"{fake.parent}{os.pathsep}{os.environ['PATH']}")
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in calls.read_text().splitlines()]


def values(call: list[str], option: str) -> list[str]:
    return [call[place + 1] for place, word in enumerate(call) if word == option]


def stage(folder: Path, **shortcuts: Any) -> "optml.by_hand.Staged":
    given: dict[str, Any] = {
        "image": "example/image",
        "name": "hand",
        "output": folder / "out",
        "to": folder / "staged",
    }
    return optml.by_hand.stage(**{**given, **shortcuts})


def archive(uri: str) -> dict[str, str]:
    with tarfile.open(uri.removeprefix("file://")) as tar:
        streams = {member.name: tar.extractfile(member) for member in tar.getmembers() if member.isfile()}
        return {name: stream.read().decode() for name, stream in streams.items() if stream is not None}


def test_stage_writes_the_tree_and_prints_one_command_and_needs_no_engine(tmp_path: Path) -> None:
    files(tmp_path, {"data/a.csv": "1,2\n", "data/b.csv": "3,4\n"})
    arguments = ["--image", "xgboost", "--name", "hand", "--channel", "train=data", "-p", "num_round=3", "--to", "here"]
    done = command_line("stage", *arguments, cwd=tmp_path, DOCKER_HOST=f"unix://{tmp_path}/nobody.sock")
    assert done.returncode == 0, done.stderr

    ml = tmp_path / "here/algo-1/ml"
    assert json.loads((ml / "input/config/hyperparameters.json").read_text()) == {"num_round": "3"}
    assert json.loads((ml / "input/config/resourceconfig.json").read_text())["network_interface_name"] == "eth0"
    assert {file.name: file.read_text() for file in (ml / "input/data/train").iterdir()} == {
        "a.csv": "1,2\n",
        "b.csv": "3,4\n",
    }
    (ml / "input/data/train/a.csv").write_text("spoilt")
    assert (tmp_path / "data/a.csv").read_text() == "1,2\n"
    assert json.loads((tmp_path / "here/request.json").read_text())["TrainingJobName"] == "hand"

    lines = done.stdout.splitlines()
    assert lines[:2] == [f"rm -f {ml}/output/failure", "docker run --rm \\"]
    assert lines[-1] == "    optml/xgboost train"
    assert '    --user "$(id -u):$(id -g)" \\' in lines
    assert "optml images build xgboost" in done.stderr
    assert "optml collect here" in done.stderr


def test_the_tree_can_be_written_to_by_any_user_of_an_image_and_entered_by_nobody_else(tmp_path: Path) -> None:
    stage(tmp_path)
    assert stat.S_IMODE((tmp_path / "staged/algo-1").stat().st_mode) == 0o700
    for folder in ("ml", "ml/model", "ml/output", "ml/output/data"):
        assert stat.S_IMODE((tmp_path / "staged/algo-1" / folder).stat().st_mode) == 0o777, folder


def test_whatever_is_in_names_and_values_reaches_docker_as_it_is_c37(tmp_path: Path) -> None:
    odd = tmp_path / "it's $HOME"
    data = files(odd / 'a, "b":c', {"x.csv": "1\n"})
    staged = optml.by_hand.stage(
        image="example/image",
        name="hand",
        channels={"train": {"uri": f"{data}/", "input_mode": "FastFile"}, "other": f"{data}/"},
        environment={"A": "it's `date` $HOME", "LINES": "one\ntwo", "EQUALS": "a=b"},
        to=odd / "by hand",
        memory_bytes=512 << 20,
        cpus=1,
        grace_seconds=7.5,
    )
    (run,) = calls_of(staged.commands, tmp_path)
    assert run[:2] == ["run", "--rm"]
    assert values(run, "-v") == [f"{odd}/by hand/algo-1/ml:/opt/ml"]
    field = f'"source={data}"'.replace('"b"', '""b""')
    assert values(run, "--mount") == [f"type=bind,{field},target=/opt/ml/input/data/train,readonly"]
    environment = dict(pair.split("=", 1) for pair in values(run, "-e"))
    assert {name: environment[name] for name in ("A", "LINES", "EQUALS", "TRAINING_JOB_NAME")} == {
        "A": "it's `date` $HOME",
        "LINES": "one\ntwo",
        "EQUALS": "a=b",
        "TRAINING_JOB_NAME": "hand",
    }
    assert values(run, "--hostname") == ["algo-1"]
    assert values(run, "--stop-timeout") == ["8"]
    assert (values(run, "--memory"), values(run, "--shm-size")) == (["512m"], ["256m"])
    if (os.cpu_count() or 1) > 1:
        assert len(values(run, "--cpuset-cpus")) == 1
    assert "--user" not in run  # the image says as whom it runs
    assert run[-2:] == ["example/image", "train"]


def test_an_entrypoint_takes_the_place_of_the_images_c38_c40(tmp_path: Path) -> None:
    staged = stage(tmp_path, entrypoint=["/bin/my program", "--a"], arguments=["b c", "$d"])
    (run,) = calls_of(staged.commands, tmp_path)
    assert values(run, "--entrypoint") == ["/bin/my program"]
    assert run[-4:] == ["example/image", "--a", "b c", "$d"]


def test_arguments_alone_take_the_place_of_train_c39(tmp_path: Path) -> None:
    staged = stage(tmp_path, arguments=["b c"])
    (run,) = calls_of(staged.commands, tmp_path)
    assert "--entrypoint" not in run
    assert run[-2:] == ["example/image", "b c"]


def test_a_program_of_ones_own_sees_the_folder_where_one_is(tmp_path: Path) -> None:
    work = tmp_path / "my work"
    work.mkdir()
    done = command_line("stage", "--to", "../staged", "--", "python", "train.py", "--epochs", "3", cwd=work)
    assert done.returncode == 0, done.stderr
    (run,) = calls_of(done.stdout, tmp_path)
    assert f"{work}:{work}:ro" in values(run, "-v")
    assert values(run, "-w") == [str(work)]
    assert values(run, "--user") == [f"{os.getuid()}:{os.getgid()}"]
    assert run[-4:] == ["optml/python", "train.py", "--epochs", "3"]


def test_an_image_of_ours_with_mounted_code_is_a_plain_python_by_hand_too(tmp_path: Path) -> None:
    staged = stage(tmp_path, image="xgboost", mount_code=True, instance_type="ml.m5.large", instance_limits=True)
    (run,) = calls_of(staged.commands, tmp_path)
    assert any(volume.endswith("/code/optml_algorithms:ro") for volume in values(run, "-v"))
    assert any(pair.startswith("PYTHONPATH=") for pair in values(run, "-e"))
    assert values(run, "--entrypoint") == ["python"]
    assert values(run, "--memory") == ["8192m"]
    assert not [word for word in run if word.startswith("optml/")]
    assert not [remark for remark in staged.remarks if "images build" in remark]


def test_one_isolated_host_has_no_network_but_its_own_name(tmp_path: Path) -> None:
    staged = stage(tmp_path, network_isolation=True)
    (run,) = calls_of(staged.commands, tmp_path)
    assert (values(run, "--network"), values(run, "--add-host")) == (["none"], ["algo-1:127.0.0.1"])
    config = json.loads((tmp_path / "staged/algo-1/ml/input/config/resourceconfig.json").read_text())
    assert config["network_interface_name"] == "lo"


def test_gpus_are_handed_out_to_the_hosts_that_ask_for_them(tmp_path: Path) -> None:
    smi = (
        files(tmp_path, {"bin/nvidia-smi": "#!/bin/sh\nfor n in 0 1 2; do echo $n, GPU-$n; done\n"}) / "bin/nvidia-smi"
    )
    smi.chmod(0o755)
    path = f"{smi.parent}{os.pathsep}{os.environ['PATH']}"
    arguments = ["--image", "example/image", "--instance-count", "2", "--instance-type", "ml.g5.2xlarge"]
    done = command_line("stage", *arguments, "--to", tmp_path / "staged", PATH=path, CUDA_VISIBLE_DEVICES="0,2")
    assert done.returncode == 0, done.stderr
    runs = [call for call in calls_of(done.stdout, tmp_path / "staged") if call[0] == "run"]
    assert [values(run, "--gpus") for run in runs] == [['"device=0"'], ['"device=2"']]


def test_several_hosts_are_a_script_that_takes_everything_away_again(tmp_path: Path) -> None:
    data = files(tmp_path / "data", {f"{name}.csv": name for name in "abc"})
    channel = {"uri": f"{data}/", "distribution": "ShardedByS3Key"}
    staged = stage(tmp_path, instance_count=2, channels={"train": channel}, network_isolation=True)
    shards = [sorted(os.listdir(tmp_path / f"staged/{host}/ml/input/data/train")) for host in ("algo-1", "algo-2")]
    assert shards == [["a.csv", "c.csv"], ["b.csv"]]

    calls = calls_of(staged.commands, tmp_path)
    assert calls[0][:3] == ["network", "create", "--internal"]
    runs = [call for call in calls if call[0] == "run"]
    assert [values(run, "--network-alias") for run in runs] == [["algo-1"], ["algo-2"]]
    assert {values(run, "--network")[0] for run in runs} == {calls[0][-1]} == {"optml-hand"}
    assert calls[-2:] == [
        ["rm", "--force", "optml-hand-algo-1", "optml-hand-algo-2"],
        ["network", "rm", "optml-hand"],
    ]


def test_what_only_a_supervisor_does_is_named(tmp_path: Path) -> None:
    staged = stage(
        tmp_path, max_runtime=60, retries=2, metrics={"loss": "loss=(.*)"}, checkpoint=str(tmp_path / "checkpoints")
    )
    (unwatched,) = [remark for remark in staged.remarks if "nobody sees to" in remark]
    for name in ("MaxRuntimeInSeconds 60", "RetryStrategy", "MetricDefinitions"):
        assert name in unwatched
    assert any("/opt/ml/checkpoints is uploaded by optml collect" in remark for remark in staged.remarks)
    (tmp_path / "second").mkdir()
    assert not [remark for remark in stage(tmp_path / "second").remarks if "nobody" in remark]


def test_stage_takes_the_options_that_describe_a_job_for_train() -> None:
    options = [
        set(re.findall(r"^  (?:-\w, )?(--[a-z-]+)", command_line(name, "--help").stdout, re.MULTILINE))
        for name in ("train", "stage")
    ]
    of_jobs_that_are_watched = {f"--{name.replace('_', '-')}" for name in plan_options.NAMES}
    of_jobs_that_are_watched |= {"--backend", "--detach", "--dry-run", "--quiet", "--keep-files", "--pdb", "--resume"}
    assert options[0] - options[1] == of_jobs_that_are_watched
    assert options[1] - options[0] == {"--to"}


# Refused.


def test_a_folder_with_something_in_it_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    stage(tmp_path, to=tmp_path / "empty")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "empty").rglob("*")}
    with pytest.raises(UserError, match=r"empty is not empty, and nothing in it is to be lost: give a new folder"):
        stage(tmp_path, to=tmp_path / "empty")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "empty").rglob("*")} == before
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="file is no folder"):
        stage(tmp_path, to=tmp_path / "file")


def test_a_folder_in_the_data_is_refused(tmp_path: Path) -> None:
    data = files(tmp_path / "data", {"a.csv": "1\n"})
    with pytest.raises(UserError, match="lies in the data of channel 'train'"):
        stage(tmp_path, channels={"train": f"{data}/"}, to=data / "staged")
    assert os.listdir(data) == ["a.csv"]


def test_a_folder_in_the_code_is_refused(tmp_path: Path) -> None:
    code = files(tmp_path / "code", {"train.py": "", "sub/more.py": ""})
    with pytest.raises(UserError, match="lies in the source folder"):
        stage(tmp_path, image="pytorch", entry_point="train.py", source_dir=code, to=code / "sub" / "staged")
    assert os.listdir(code / "sub") == ["more.py"]


def test_versions_that_must_be_exact_are_compared_with_those_of_an_image_that_is_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere/docker.sock")
    uri = "683313688378.dkr.ecr.us-east-1.amazonaws.com/sagemaker-xgboost:1.7-1"
    with pytest.raises(UserError, match="optml/xgboost is not here, so nobody knows its versions"):
        stage(tmp_path, image=uri, entrypoint=None, strict_versions=True)


def test_a_plan_of_interruptions_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="interruptions is for jobs"):
        stage(tmp_path, interruptions=InterruptionPlan(every_seconds=60))


def test_pipe_mode_is_refused_with_what_to_do(tmp_path: Path) -> None:
    data = files(tmp_path / "data", {"a.csv": "1\n"})
    done = command_line(
        "stage", "--image", "x/y", "--channel", f"train={data}", "--input-mode", "Pipe", "--to", tmp_path / "staged"
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "channel 'train' is in Pipe mode" in done.stderr
    assert "take File or FastFile mode" in done.stderr
    assert not (tmp_path / "staged").exists()


def test_what_fails_half_way_leaves_the_folder_as_it_was(tmp_path: Path) -> None:
    data = files(tmp_path / "data", {"a.csv": "1\n"})
    shared = {
        "ChannelName": "shared",
        "DataSource": {
            "FileSystemDataSource": {
                "DirectoryPath": "/no/such/folder",
                "FileSystemId": "fs-12345678901",
                "FileSystemType": "EFS",
                "FileSystemAccessMode": "ro",
            }
        },
    }
    (tmp_path / "mine").mkdir()
    for place in ("new", "mine"):
        with pytest.raises(DataError, match="/no/such/folder is not a folder of this machine"):
            stage(tmp_path, request={"InputDataConfig": [shared]}, channels={"train": f"{data}/"}, to=tmp_path / place)
    assert not (tmp_path / "new").exists()
    assert os.listdir(tmp_path / "mine") == []


def test_options_of_jobs_alone_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="keep_files"):
        stage(tmp_path, keep_files=True)
    with pytest.raises(UserError, match="add -e PYTHONBREAKPOINT=optml_toolkit"):
        stage(tmp_path, pdb=True)
    with pytest.raises(UserError, match="there is no option 'wait'"):
        stage(tmp_path, wait=False)
    with pytest.raises(UserError, match="backend"):
        stage(tmp_path, backend="process")


@pytest.mark.parametrize(
    ("contents", "expected"),
    [
        ({}, "was not made by optml stage: it has no staged.json"),
        ({"request.json": "{}", "options.json": "{}"}, "was not made by optml stage: it has no staged.json"),
        ({"staged.json": "[]", "request.json": "{}"}, "cannot be understood"),
        ({"staged.json": "{}", "request.json": "{}"}, "cannot be understood"),
    ],
)
def test_a_folder_that_stage_did_not_make_is_not_collected(
    tmp_path: Path, contents: dict[str, str], expected: str
) -> None:
    files(tmp_path / "folder", contents)
    done = command_line("collect", tmp_path / "folder")
    assert (done.returncode, done.stdout) == (2, "")
    assert expected in done.stderr
    assert str(tmp_path / "folder") in done.stderr


def test_a_request_that_was_changed_after_staging_is_refused_by_name(tmp_path: Path) -> None:
    staged = stage(tmp_path)
    file = staged.folder / "request.json"
    request = json.loads(file.read_text())
    file.write_text(json.dumps({**request, "CheckpointConfig": {"S3Uri": str(tmp_path / "checkpoints")}}))
    with pytest.raises(UserError, match=r"request\.json is not the request that was staged"):
        optml.by_hand.collect(staged.folder)
    file.write_text(json.dumps({**request, "Tags": "none"}))
    with pytest.raises(UserError, match="tags"):
        optml.by_hand.collect(staged.folder)


def test_a_host_whose_tree_is_gone_is_named_and_nothing_is_packed(tmp_path: Path) -> None:
    staged = stage(tmp_path, instance_count=2)
    (staged.folder / "algo-2").rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"algo-2/ml is not there any more"):
        optml.by_hand.collect(staged.folder)
    assert not (tmp_path / "out").exists()


# Collected.


def test_outputs_are_packed_as_the_jobs_own_and_again(tmp_path: Path) -> None:
    staged = stage(tmp_path, instance_count=2)
    for host in ("algo-1", "algo-2"):
        files(staged.folder / host / "ml", {f"model/{host}": host, f"output/data/{host}.txt": "out"})
    packed = optml.by_hand.collect(staged.folder)
    assert packed.model_data == f"file://{tmp_path}/out/hand/output/model.tar.gz"
    assert packed.output_data == f"file://{tmp_path}/out/hand/output/output.tar.gz"
    assert archive(packed.model_data) == {"algo-1": "algo-1", "algo-2": "algo-2"}
    assert archive(packed.output_data) == {"algo-1.txt": "out", "algo-2.txt": "out"}
    assert (packed.failed, packed.failures, packed.warnings) == (False, {}, ())

    (staged.folder / "algo-1/ml/model/algo-1").write_text("better")
    again = command_line("collect", "staged", "--output", "other", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    model, output = (f"file://{tmp_path}/other/hand/output/{name}" for name in ("model.tar.gz", "output.tar.gz"))
    assert again.stdout == f"model: {model}\noutput: {output}\n"
    assert archive(model)["algo-1"] == "better"
    assert archive(packed.model_data)["algo-1"] == "algo-1"
    assert sorted(os.listdir(staged.folder)) == ["algo-1", "algo-2", "request.json", "staged.json"]


def test_a_failure_file_is_shown_and_exits_1_after_everything_is_packed(tmp_path: Path) -> None:
    staged = stage(tmp_path)
    files(staged.folder / "algo-1/ml", {"output/failure": "no luck\n", "model/half": "x"})
    done = command_line("collect", staged.folder)
    assert done.returncode == 1
    assert "algo-1 failed: no luck" in done.stderr
    assert archive(done.stdout.removeprefix("model: ").strip()) == {"half": "x"}


@pytest.mark.parametrize("instance_count", [1, 2])
def test_what_an_earlier_run_failed_of_is_no_failure_of_the_next(tmp_path: Path, instance_count: int) -> None:
    staged = stage(tmp_path / "it's", instance_count=instance_count)
    files(staged.folder / f"algo-{instance_count}/ml", {"output/failure": "no luck\n", "model/whole": "x"})
    assert optml.by_hand.collect(staged.folder).failed
    calls_of(staged.commands, tmp_path)
    assert not optml.by_hand.collect(staged.folder).failed


def test_a_model_that_is_not_there_is_said(tmp_path: Path) -> None:
    staged = stage(tmp_path)
    files(staged.folder / "algo-1/ml", {"output/success": ""})
    packed = optml.by_hand.collect(staged.folder)
    assert any("the model artifact is empty" in warning for warning in packed.warnings)
    assert packed.output_data is None


def test_a_tree_that_was_never_run_is_told_from_one_that_left_no_model(tmp_path: Path) -> None:
    staged = stage(tmp_path)
    done = command_line("collect", staged.folder)
    assert done.returncode == 1
    assert "nothing was left in /opt/ml/model nor in /opt/ml/output: has the container run?" in done.stderr
    assert not (tmp_path / "out/hand").exists()


def test_ctrl_c_on_several_hosts_says_what_is_waited_for(tmp_path: Path) -> None:
    docker = tmp_path / "bin/docker"
    files(tmp_path, {"bin/docker": '#!/bin/sh\n[ "$1" = logs ] && sleep 5\necho 0\n'})
    docker.chmod(0o755)
    script = stage(tmp_path, instance_count=2, grace_seconds=7).commands
    environment = {**os.environ, "PATH": f"{docker.parent}{os.pathsep}{os.environ['PATH']}"}
    with subprocess.Popen(
        ["bash", "-c", f"{script.replace('status=0', 'echo runs; status=0')}"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "runs\n"
        os.killpg(running.pid, signal.SIGINT)
        _, told = running.communicate(timeout=PATIENCE_SECONDS)
    assert told == "stopping the containers, which have 7 s to end\n"


def test_checkpoints_come_back_and_go_out_as_at_the_end_of_a_job_c59_c61_c63(tmp_path: Path) -> None:
    kept = files(tmp_path / "checkpoints", {"old": "old", "gone": "gone", "same": "same"})
    untouched = (kept / "same").stat().st_ino
    staged = stage(tmp_path, checkpoint=str(kept))
    here = staged.folder / "algo-1/ml/checkpoints"
    assert {file.name: file.read_text() for file in here.iterdir()} == {"old": "old", "gone": "gone", "same": "same"}

    (here / "gone").unlink()
    files(here, {"old": "newer", "step/2": "two"})
    files(kept, {"of others": "stays"})
    optml.by_hand.collect(staged.folder)
    assert sorted(str(path.relative_to(kept)) for path in kept.rglob("*") if path.is_file()) == [
        "of others",
        "old",
        "same",
        "step/2",
    ]
    assert (kept / "old").read_text() == "newer"
    assert (kept / "same").stat().st_ino == untouched

    (here / "step/2").unlink()  # it ran once more
    (here / "step/3").write_text("three")
    optml.by_hand.collect(staged.folder)
    assert os.listdir(kept / "step") == ["3"]


def test_tensorboard_logs_go_out_and_a_link_in_their_place_leads_nowhere(tmp_path: Path) -> None:
    secret = files(tmp_path / "secret", {"tensorboard/key": "mine"})
    request = {"TensorBoardOutputConfig": {"S3OutputPath": str(tmp_path / "board")}}
    staged = stage(tmp_path, request=request)
    place = staged.folder / "algo-1/ml/output/tensorboard"
    files(place, {"events": "e"})
    uploaded = tmp_path / "board/hand/tensorboard-output"
    assert optml.by_hand.collect(staged.folder).warnings != ()  # of the empty model alone
    assert os.listdir(uploaded) == ["events"]

    (staged.folder / "algo-1/ml/output").rename(staged.folder / "algo-1/ml/was")
    (staged.folder / "algo-1/ml/output").symlink_to(secret)
    warnings = optml.by_hand.collect(staged.folder).warnings
    assert any("a link stands in its way" in warning for warning in warnings)
    assert os.listdir(uploaded) == ["events"]


# From and to S3.


def test_what_is_fetched_is_kept_once_and_outputs_go_to_s3(tmp_path: Path, s3: S3) -> None:
    bucket = s3.new_bucket()
    for name in ("data/a", "data/b", "checkpoints/1"):
        s3.client.put_object(Bucket=bucket, Key=name, Body=name.encode())
    staged = stage(
        tmp_path,
        instance_count=2,
        channels={"train": f"s3://{bucket}/data/"},
        checkpoint=f"s3://{bucket}/checkpoints",
        output=f"s3://{bucket}/out",
    )
    found = sorted(str(path.relative_to(staged.folder)) for path in staged.folder.rglob("[ab]") if path.is_file())
    assert found == [f"{host}/ml/input/data/train/{name}" for host in ("algo-1", "algo-2") for name in "ab"]
    assert sorted(os.listdir(staged.folder)) == ["algo-1", "algo-2", "request.json", "staged.json"]
    assert any("in a container that is the container itself" in remark for remark in staged.remarks)

    files(staged.folder / "algo-2/ml", {"model/m": "m", "checkpoints/2": "two"})
    (staged.folder / "algo-1/ml/checkpoints/1").unlink()
    (staged.folder / "algo-2/ml/checkpoints/1").unlink()
    packed = optml.by_hand.collect(staged.folder)
    assert packed.model_data == f"s3://{bucket}/out/hand/output/model.tar.gz"
    keys = {entry["Key"] for entry in s3.client.list_objects_v2(Bucket=bucket)["Contents"]}
    assert keys == {"data/a", "data/b", "checkpoints/2", "out/hand/output/model.tar.gz"}


def test_fast_file_from_s3_is_one_folder_for_all_hosts(tmp_path: Path, s3: S3) -> None:
    bucket = s3.new_bucket()
    s3.client.put_object(Bucket=bucket, Key="data/a", Body=b"a")
    channel = {"uri": f"s3://{bucket}/data/", "input_mode": "FastFile"}
    staged = stage(tmp_path, instance_count=2, channels={"train": channel, "copied": f"s3://{bucket}/data/"})
    assert staged.commands.count("downloads/train:/opt/ml/input/data/train:ro") == 2
    assert os.listdir(staged.folder / "downloads") == ["train"]
    assert (staged.folder / "downloads/train/a").read_text() == "a"
    assert (staged.folder / "algo-2/ml/input/data/copied/a").read_text() == "a"


# In real containers.


def left_of(name: str) -> str:
    """Containers and networks of a job that was run by hand."""
    listed = [
        ["docker", "ps", "-aq", "--filter", f"name=optml-{name}"],
        ["docker", "network", "ls", "-q", "--filter", f"name=optml-{name}"],
    ]
    return "".join(subprocess.run(argv, capture_output=True, text=True, check=True).stdout for argv in listed)


@pytest.mark.docker
@pytest.mark.slow
def test_xgboost_runs_by_hand_and_its_model_is_the_callers(docker_image: Images, tmp_path: Path) -> None:
    import numpy
    import xgboost

    docker_image("xgboost")
    work = tmp_path / "my work"
    rows = "".join(f"{int(n % 10 > 4)},{n % 10},{n % 7}\n" for n in range(200))
    files(work, {"data/train.csv": rows})
    arguments = ["--image", "xgboost", "--name", "hand-xgboost", "--channel", "train=data/train.csv"]
    arguments += ["-p", "num_round=4", "-p", "objective=binary:logistic", "--output", "out"]
    staged = command_line("stage", *arguments, "--to", "by hand", cwd=work)
    assert staged.returncode == 0, staged.stderr
    assert "warning" not in staged.stderr
    done = bash(staged.stdout)
    assert done.returncode == 0, done.stderr
    assert "[3]\ttrain-logloss" in done.stdout + done.stderr
    assert (work / "by hand/algo-1/ml/model/xgboost-model").stat().st_uid == os.getuid()

    packed = command_line("collect", "by hand", cwd=work)
    assert packed.returncode == 0, packed.stderr
    with tarfile.open(work / "out/hand-xgboost/output/model.tar.gz") as tar:
        model = tar.extractfile("xgboost-model")
        assert model is not None
        booster = xgboost.Booster(model_file=bytearray(model.read()))
    low, high = booster.predict(xgboost.DMatrix(numpy.array([[1, 3], [9, 3]])))
    assert low < 0.5 < high


@pytest.mark.docker
def test_a_program_that_fails_by_hand_gives_its_exit_code_and_its_reason(docker_image: Images, tmp_path: Path) -> None:
    docker_image("python")
    program = "open('/opt/ml/output/failure','w').write('no luck'); raise SystemExit(7)"
    arguments = ["--name", "hand-fails", "--to", "staged", "--isolate-network", "--", "python", "-c", program]
    staged = command_line("stage", *arguments, cwd=tmp_path)
    assert bash(staged.stdout).returncode == 7
    done = command_line("collect", "staged", cwd=tmp_path)
    assert done.returncode == 1
    assert "algo-1 failed: no luck" in done.stderr


TALK = """
import json, socket, sys, time
hosts = json.load(open("/opt/ml/input/config/resourceconfig.json"))
me = hosts["current_host"]
if me == "algo-1":
    with socket.create_server(("", 7000)) as server:
        connection, _ = server.accept()
        heard = connection.recv(100).decode()
    print("heard", heard, flush=True)
    open("/opt/ml/model/heard", "w").write(heard)
else:
    while True:  # until algo-1 listens; if it fails, this host is ended
        try:
            with socket.create_connection(("algo-1", 7000), timeout=5) as connection:
                connection.sendall(f"hello from {me}".encode())
            break
        except OSError:
            time.sleep(0.1)
"""
FAIL = """
import json, sys, time
me = json.load(open("/opt/ml/input/config/resourceconfig.json"))["current_host"]
if me == "algo-2":
    sys.exit(5)
time.sleep(600)
"""


@pytest.mark.docker
@pytest.mark.parametrize("isolated", [False, True])
def test_two_hosts_by_hand_talk_by_name_and_nothing_of_them_is_left(
    docker_image: Images, tmp_path: Path, isolated: bool
) -> None:
    docker_image("python")
    (tmp_path / "talk.py").write_text(textwrap.dedent(TALK))
    name = f"hand-talk-{os.getpid()}-{isolated:d}"
    arguments = ["--name", name, "--instance-count", "2", "--output", "out", "--to", "by hand"]
    arguments += ["--isolate-network"] if isolated else []
    staged = command_line("stage", *arguments, "--", "python", "talk.py", cwd=tmp_path)
    assert staged.returncode == 0, staged.stderr
    done = bash(staged.stdout)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "algo-1 | heard hello from algo-2\n"
    assert left_of(name) == ""
    packed = optml.by_hand.collect(tmp_path / "by hand")
    assert archive(packed.model_data) == {"heard": "hello from algo-2"}


@pytest.mark.docker
def test_when_one_of_two_hosts_fails_by_hand_the_other_is_stopped(docker_image: Images, tmp_path: Path) -> None:
    docker_image("python")
    (tmp_path / "fail.py").write_text(textwrap.dedent(FAIL))
    name = f"hand-fail-{os.getpid()}"
    arguments = ["--name", name, "--instance-count", "2", "--grace", "1", "--to", "by hand"]
    staged = command_line("stage", *arguments, "--", "python", "fail.py", cwd=tmp_path)
    done = bash(staged.stdout)
    assert done.returncode == 1
    assert "algo-2 failed: exit code 5" in done.stderr
    assert left_of(name) == ""
