"""What a container finds under /opt/ml and in its environment: rows C1-C13, C35, C36 of the contract, through real jobs."""

from pathlib import Path

import pytest
from tests.harness import LOOK, capabilities, files, run

import optml


def test_without_hyperparameters_the_file_is_an_empty_object_c1(tmp_path: Path) -> None:
    assert run(tmp_path).saw()["files"]["input/config/hyperparameters.json"] == "{}"


def test_hyperparameters_arrive_as_the_strings_they_were_c2(tmp_path: Path) -> None:
    given = {"a": "1", "s": '"x"', "odd": "$(touch /tmp/x) 'q' \"d\" ; `b` ü"}
    request = {"HyperParameters": given}
    assert run(tmp_path, request=request).config("hyperparameters.json") == given


def test_a_channel_without_content_type_has_three_keys_c3(tmp_path: Path) -> None:
    data = files(tmp_path / "data", {"a": "1"})
    done = run(tmp_path, request=one_channel(data))
    assert done.config("inputdataconfig.json") == {
        "train": {"TrainingInputMode": "File", "S3DistributionType": "FullyReplicated", "RecordWrapperType": "None"}
    }


def one_channel(data: Path, **more: object) -> dict[str, object]:
    source = {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": f"{data}/"}}
    return {"InputDataConfig": [{"ChannelName": "train", "DataSource": source, **more}]}


def test_a_content_type_is_passed_on_c4(tmp_path: Path) -> None:
    data = files(tmp_path / "data", {"a": "1"})
    done = run(tmp_path, request=one_channel(data, ContentType="text/csv"))
    assert done.config("inputdataconfig.json")["train"]["ContentType"] == "text/csv"


def test_a_channel_may_have_a_mode_of_its_own_c5(tmp_path: Path) -> None:
    data = files(tmp_path / "data", {"a": "1"})
    done = run(tmp_path, channels={"piped": {"uri": f"{data}/", "input_mode": "Pipe"}, "filed": f"{data}/"})
    config = done.config("inputdataconfig.json")
    assert {name: channel["TrainingInputMode"] for name, channel in config.items()} == {
        "piped": "Pipe",
        "filed": "File",
    }


def test_a_file_system_channel_is_fully_replicated_c6(tmp_path: Path) -> None:
    shared = files(tmp_path / "efs", {"a.txt": "hello"})
    source = {
        "FileSystemId": "fs-0123456789abcdef0",
        "FileSystemAccessMode": "rw",
        "FileSystemType": "EFS",
        "DirectoryPath": str(shared),
    }
    request = {"InputDataConfig": [{"ChannelName": "train", "DataSource": {"FileSystemDataSource": source}}]}
    script = LOOK + '\n(ml / "input/data/train/b.txt").write_text("written")\n'
    done = run(tmp_path, script, request=request)
    assert done.config("inputdataconfig.json")["train"]["S3DistributionType"] == "FullyReplicated"
    assert done.channel("train") == {"a.txt": "hello"}
    assert (shared / "b.txt").read_text() == "written", "a file system is written in place"


def test_one_host_is_algo_1_of_the_homogeneous_cluster_c7(tmp_path: Path) -> None:
    script = LOOK + "\nimport socket\nprint('interfaces', [name for _, name in socket.if_nameindex()])\n"
    done = run(tmp_path, script, instance_type="ml.c5.xlarge")
    config = done.config("resourceconfig.json")
    interface = config.pop("network_interface_name")
    assert f"'{interface}'" in done.log
    assert config == {
        "current_host": "algo-1",
        "current_instance_type": "ml.c5.xlarge",
        "current_group_name": "homogeneousCluster",
        "hosts": ["algo-1"],
        "instance_groups": [
            {"instance_group_name": "homogeneousCluster", "instance_type": "ml.c5.xlarge", "hosts": ["algo-1"]}
        ],
    }


def test_hosts_are_sorted_as_text_c8(tmp_path: Path) -> None:
    done = run(tmp_path, instance_count=12)
    names = sorted(f"algo-{number}" for number in range(1, 13))
    assert names[:3] == ["algo-1", "algo-10", "algo-11"]
    for host in names:
        config = done.config("resourceconfig.json", host)
        assert config["hosts"] == names
        assert config["current_host"] == host


def test_every_host_knows_its_instance_group_c9(tmp_path: Path) -> None:
    groups = [
        {"InstanceGroupName": "workers", "InstanceType": "ml.c5.xlarge", "InstanceCount": 2},
        {"InstanceGroupName": "data", "InstanceType": "ml.m5.large", "InstanceCount": 1},
    ]
    done = run(tmp_path, request={"ResourceConfig": {"InstanceGroups": groups, "VolumeSizeInGB": 10}})
    for host, group, kind in (("algo-2", "workers", "ml.c5.xlarge"), ("algo-3", "data", "ml.m5.large")):
        config = done.config("resourceconfig.json", host)
        assert (config["current_group_name"], config["current_instance_type"]) == (group, kind)
        assert {each["instance_group_name"]: sorted(each["hosts"]) for each in config["instance_groups"]} == {
            "workers": ["algo-1", "algo-2"],
            "data": ["algo-3"],
        }


def test_without_checkpoints_there_is_no_trace_of_them_c10(tmp_path: Path) -> None:
    seen = run(tmp_path).saw()["files"]
    assert "input/config/checkpointconfig.json" not in seen
    assert "checkpoints/" not in seen


def test_checkpoints_have_a_folder_and_a_file_that_names_it_c11(tmp_path: Path) -> None:
    done = run(tmp_path, checkpoint=str(tmp_path / "checkpoints"))
    assert done.config("checkpointconfig.json") == {"LocalPath": "/opt/ml/checkpoints"}
    assert "checkpoints/" in done.saw()["files"]


def test_output_folders_are_there_empty_and_writable_c12(tmp_path: Path) -> None:
    script = (
        LOOK
        + """
for folder in ("model", "output/data", "output", "input", "."):
    (ml / folder / "written").write_text("x")
"""
    )
    done = run(tmp_path, script)
    seen = done.saw()["files"]
    assert {"model/", "output/data/"} <= set(seen)
    assert not [path for path in seen if path.startswith(("model/", "output/data/")) and seen[path] is not None]
    assert done.describe["TrainingJobStatus"] == "Completed"


def test_configuration_and_data_are_complete_before_the_program_starts_c13(tmp_path: Path) -> None:
    data = files(tmp_path / "data", {f"{number}.txt": str(number) * 1000 for number in range(200)})
    done = run(tmp_path, channels={"train": f"{data}/"})  # LOOK reads once, at once
    assert done.channel("train") == {path.name: path.read_text() for path in data.iterdir()}
    assert "input/config/inputdataconfig.json" in done.saw()["files"]


def test_the_platform_names_the_job_and_the_region_c35(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    environment = run(tmp_path, name="My-Job-1").saw()["environment"]
    assert environment["TRAINING_JOB_NAME"] == "My-Job-1"
    assert environment["TRAINING_JOB_ARN"].startswith("arn:aws:sagemaker:eu-west-1:")
    assert environment["TRAINING_JOB_ARN"].endswith(":training-job/my-job-1")
    assert environment["AWS_REGION"] == "eu-west-1"


def test_the_requests_environment_arrives_as_it_is_c36(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_OF_THE_CALLER", "not for the job")
    environment = run(tmp_path, environment={"X": "a b", "Y": "line\nline", "Z": "$HOME"}).saw()["environment"]
    assert (environment["X"], environment["Y"], environment["Z"]) == ("a b", "line\nline", "$HOME")
    assert "SECRET_OF_THE_CALLER" not in environment


def test_a_request_reaches_the_container_as_it_was_made(tmp_path: Path) -> None:
    done = run(tmp_path, hyperparameters={"x": 1}, max_runtime=77)
    config = done.config("trainingjobconfig.json")
    assert config["StoppingCondition"]["MaxRuntimeInSeconds"] == 77
    assert config["TrainingJobArn"] == done.describe["TrainingJobArn"]


def test_the_python_api_gives_times_as_boto3_does(tmp_path: Path) -> None:
    import datetime

    described = optml.find(run(tmp_path).job.name).describe()
    assert isinstance(described["CreationTime"], datetime.datetime)
    assert described["CreationTime"].tzinfo is not None
    assert described["CreationTime"] <= described["TrainingStartTime"] <= described["TrainingEndTime"]


def test_hosts_are_called_what_the_job_calls_them_and_share_a_secret_of_its_own(tmp_path: Path) -> None:
    """Ours: SageMaker's hosts have names of EC2's, which MPI and others then take for the host's."""
    if not capabilities().own_opt_ml:
        pytest.skip("without namespaces a host is called what the machine is")
    code = """
        import json, os, socket
        config = "/opt/ml/input/config"
        host = json.load(open(f"{config}/resourceconfig.json"))["current_host"]
        secret = json.load(open(f"{config}/job-secret.json"))["secret"]
        print(host, "is", socket.gethostname(), len(secret), hash(secret), flush=True)
    """
    runs = [run(tmp_path, code, instance_count=2, environment={"PYTHONHASHSEED": "0"}) for _ in range(2)]
    lines = [line.split() for done in runs for line in done.log.splitlines() if " is " in line]
    assert sorted(line[:4] for line in lines) == [
        [host, "is", host, "64"] for host in ("algo-1", "algo-1", "algo-2", "algo-2")
    ]
    assert len({line[4] for line in lines}) == 2, "the same on the hosts of a job, another for another job"
