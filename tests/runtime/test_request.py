"""CreateTrainingJob requests as people write them: what is taken, what is refused, and in which words.

Rows C68, C69, C72 and C73 of the contract; C67, C70 and C71 are in end_to_end/test_command_line.py.
"""

import contextlib
import copy
import dataclasses
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.hosts import PATIENCE_SECONDS

import optml
from optml.errors import UserError, ValidationError
from optml.loading import load_request, request_from_shortcuts
from optml.request import parse
from optml.shapes import service_model
from optml.spec import FileSystemSource, InputMode, LocalOptions, ObjectSource, TrainingJob

HERE = Path("/home/somebody/project")
OPTML = str(Path(sys.executable).parent / "optml")


def short(value: Any) -> str:
    """Of a parameter, for the name of its test."""
    return repr(value)[:40]


def channel(name: str = "train", **fields: Any) -> dict[str, Any]:
    source = {"S3DataType": "S3Prefix", "S3Uri": f"s3://bucket/{name}/", **fields.pop("source", {})}
    return {"ChannelName": name, "DataSource": {"S3DataSource": source}, **fields}


def full_request() -> dict[str, Any]:
    """Everything that a normal job says, all of it valid."""
    return {
        "TrainingJobName": "job-1",
        "AlgorithmSpecification": {
            "TrainingImage": "xgboost",
            "TrainingInputMode": "File",
            "MetricDefinitions": [{"Name": "loss", "Regex": "loss=([0-9.]+)"}],
        },
        "RoleArn": "arn:aws:iam::123456789012:role/SageMaker",
        "HyperParameters": {"num_round": "5"},
        "InputDataConfig": [channel("train", ContentType="text/csv"), channel("validation", InputMode="FastFile")],
        "OutputDataConfig": {"S3OutputPath": "s3://bucket/out"},
        "ResourceConfig": {"InstanceType": "ml.m5.large", "InstanceCount": 1, "VolumeSizeInGB": 10},
        "StoppingCondition": {"MaxRuntimeInSeconds": 60, "MaxWaitTimeInSeconds": 90},
        "EnableManagedSpotTraining": True,
        "CheckpointConfig": {"S3Uri": "s3://bucket/checkpoints", "LocalPath": "/opt/ml/checkpoints"},
        "Environment": {"A": "b"},
        "Tags": [{"Key": "team", "Value": "größe 1"}],
    }


def job_of(request: dict[str, Any] | None = None, *, base_dir: Path = HERE, **fields: Any) -> TrainingJob:
    small = {"AlgorithmSpecification": {"TrainingImage": "xgboost"}}
    return parse({**(small if request is None else request), **fields}, options=LocalOptions(), base_dir=base_dir)


def problems(request: dict[str, Any] | None = None, **fields: Any) -> list[str]:
    with pytest.raises(ValidationError) as caught:
        job_of(request, **fields)
    return caught.value.problems


def problem(request: dict[str, Any] | None = None, **fields: Any) -> str:
    found = problems(request, **fields)
    assert len(found) == 1, found
    return found[0]


def algorithm(**fields: Any) -> dict[str, Any]:
    return {"TrainingImage": "xgboost", "TrainingInputMode": "File", **fields}


# What AWS checks by its model, in its words.


def test_a_name_of_the_wrong_pattern_is_refused_with_the_pattern_c68() -> None:
    with pytest.raises(ValidationError) as caught:
        optml.train(full_request() | {"TrainingJobName": "bad_name"})
    assert caught.value.code == "ValidationException"
    assert str(caught.value) == (
        "1 validation error detected: Value 'bad_name' at 'trainingJobName' failed to satisfy constraint: "
        "Member must satisfy regular expression pattern: [a-zA-Z0-9](-*[a-zA-Z0-9]){0,62}"
    )


@pytest.mark.parametrize("name", ["-a", "a-", "a b", "a.b", "é", "..", "a/b", "a\n", "\n", "٣"])
def test_names_are_letters_digits_and_inner_hyphens_c68(name: str) -> None:
    assert "regular expression pattern: [a-zA-Z0-9](-*[a-zA-Z0-9]){0,62}" in problem(TrainingJobName=name)


@pytest.mark.parametrize("name", ["a", "A-1", "a--b", "a" * 63])
def test_these_names_are_taken_c68(name: str) -> None:
    assert job_of(TrainingJobName=name).name == name


def test_a_name_is_not_longer_than_63_characters_c68() -> None:
    text = " ".join(problems(TrainingJobName="a" * 64))
    assert "at 'trainingJobName' failed to satisfy constraint: Member must have length less than or equal to 63" in text
    assert "Member must have length greater than or equal to 1" in " ".join(problems(TrainingJobName=""))


def test_a_hyperparameter_of_2501_characters_is_refused_c69() -> None:
    assert job_of(HyperParameters={"k": "v" * 2500}).hyperparameters == {"k": "v" * 2500}
    with pytest.raises(ValidationError) as caught:
        optml.train(full_request() | {"HyperParameters": {"good": "1", "k": "v" * 2501}})
    text = str(caught.value)
    assert text.startswith("1 validation error detected: Value '{k=vvvv")
    assert (
        "...' at 'hyperParameters' failed to satisfy constraint: Map value must satisfy constraint: "
        "[Member must have length less than or equal to 2500, Member must have length greater than or equal to 0, "
        "Member must satisfy regular expression pattern: .*]"
    ) in text
    assert "the value of 'k' has 2501 characters" in text
    assert len(text) < 600


@pytest.mark.parametrize("line_break", ["\n", "\r", "\u2028", "\x85"])
def test_a_line_break_in_a_hyperparameter_is_refused(line_break: str) -> None:
    """AWS's pattern is Java's, whose dot is none of these."""
    text = problem(HyperParameters={"k": f"a{line_break}b"})
    assert "Map value must satisfy constraint: [" in text
    assert "the value of 'k' has a line break" in text
    assert line_break not in text


def test_environment_values_may_have_line_breaks_and_512_characters() -> None:
    value = "a\nb" + "c" * 509
    assert job_of(Environment={"X": value}).environment == {"X": value}
    assert "at 'environment'" in problem(Environment={"X": value + "c"})
    assert "Map key must satisfy constraint" in problem(Environment={"1X": "a"})


def test_there_are_at_most_100_hyperparameters_and_variables() -> None:
    hundred = {f"k{number}": "v" for number in range(100)}
    assert len(job_of(HyperParameters=hundred, Environment=hundred).hyperparameters) == 100
    text = problem(HyperParameters=hundred | {"k100": "v"})
    assert text.startswith("Value '{k0=v, k1=v, ")
    assert text.endswith("' at 'hyperParameters' failed to satisfy constraint: " + AT_MOST.format(100))
    assert "at 'environment'" in problem(Environment=hundred | {"k100": "v"})


AT_MOST = "Member must have length less than or equal to {}"


def test_a_job_runs_for_28_days_at_most() -> None:
    assert job_of(StoppingCondition={"MaxRuntimeInSeconds": 2_419_200}).stopping.max_runtime_seconds == 2_419_200
    assert "must be at most 2419200 (28 days)" in problem(StoppingCondition={"MaxRuntimeInSeconds": 2_419_201})


def test_21_channels_are_refused_c73() -> None:
    twenty = [channel(f"c{number}") for number in range(20)]
    assert len(job_of(InputDataConfig=twenty).channels) == 20
    text = problem(InputDataConfig=[*twenty, channel("c20")])
    assert text.endswith("at 'inputDataConfig' failed to satisfy constraint: " + AT_MOST.format(20))
    assert len(text) < 300
    assert "greater than or equal to 1" in problem(InputDataConfig=[])


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (
            {"AlgorithmSpecification": algorithm(TrainingInputMode="Tube")},
            "Value 'Tube' at 'algorithmSpecification.trainingInputMode' failed to satisfy constraint: "
            "Member must satisfy enum value set: [Pipe, File, FastFile]",
        ),
        (
            {"InputDataConfig": [channel(InputMode="file")]},
            "Value 'file' at 'inputDataConfig.1.member.inputMode' failed to satisfy constraint: "
            "Member must satisfy enum value set: [Pipe, File, FastFile]; did you mean 'File'?",
        ),
        (
            {"InputDataConfig": [channel(), channel("two words")]},
            "Value 'two words' at 'inputDataConfig.2.member.channelName' failed to satisfy constraint: "
            "Member must satisfy regular expression pattern: [A-Za-z0-9\\.\\-_]+",
        ),
        (
            {"StoppingCondition": {"MaxRuntimeInSeconds": 0}},
            "Value '0' at 'stoppingCondition.maxRuntimeInSeconds' failed to satisfy constraint: "
            "Member must have value greater than or equal to 1",
        ),
        (
            {"RetryStrategy": {"MaximumRetryAttempts": 31}},
            "Value '31' at 'retryStrategy.maximumRetryAttempts' failed to satisfy constraint: "
            "Member must have value less than or equal to 30",
        ),
        (
            {"OutputDataConfig": {"CompressionType": "NONE", "S3OutputPath": None}, "TrainingJobName": None},
            None,
        ),
        (
            {"CheckpointConfig": {}},
            "Value null at 'checkpointConfig.s3Uri' failed to satisfy constraint: Member must not be null",
        ),
        (
            {"InputDataConfig": [{"ChannelName": "a"}]},
            "Value null at 'inputDataConfig.1.member.dataSource' failed to satisfy constraint: Member must not be null",
        ),
        (
            {"RoleArn": "arn:aws:iam::12345678901٣:role/r"},
            "Value 'arn:aws:iam::12345678901٣:role/r' at 'roleArn' failed to satisfy constraint: "
            "Member must satisfy regular expression pattern: "
            "arn:aws[a-z\\-]*:iam::\\d{12}:role/?[a-zA-Z_0-9+=,.@\\-_/]+",
        ),
        (
            {"OutputDataConfig": {"S3OutputPath": "gs://bucket/out"}},
            "Value 'gs://bucket/out' at 'outputDataConfig.s3OutputPath' failed to satisfy constraint: Member must satisfy "
            "regular expression pattern: (https|s3)://([^/]+)/?(.*) (or a path or file:// URI of this machine)",
        ),
        (
            {"Tags": [{"Key": "a!", "Value": ""}]},
            "Value 'a!' at 'tags.1.member.key' failed to satisfy constraint: "
            "Member must satisfy regular expression pattern: ([\\p{L}\\p{Z}\\p{N}_.:/=+\\-@]*)",
        ),
    ],
)
def test_constraints_are_told_in_awss_words(fields: dict[str, Any], expected: str | None) -> None:
    if expected is None:  # null is the same as nothing
        job = job_of(**fields)
        assert (job.output_compressed, job.name[:8], None in job.request.values()) == (False, "xgboost-", False)
    else:
        assert problem(**fields) == expected


def test_an_unknown_instance_type_shows_those_of_a_like_name_and_not_all() -> None:
    text = problem(ResourceConfig={"InstanceType": "ml.m5.larg"})
    assert (
        "at 'resourceConfig.instanceType' failed to satisfy constraint: Member must satisfy enum value set: [ml.m5"
        in text
    )
    assert text.endswith("more]; did you mean 'ml.m5.large'?")
    assert len(text) < 500
    assert "did you mean" not in problem(ResourceConfig={"InstanceType": "local"})


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"HyperParameters": {"k": 5}}, "Value '5' at 'hyperParameters.k' must be a string, got a number: quote it"),
        (
            {"HyperParameters": {"k": True}},
            "Value 'true' at 'hyperParameters.k' must be a string, got true or false: quote it",
        ),
        ({"HyperParameters": {"k": None}}, "Value 'null' at 'hyperParameters.k' must be a string, got null"),
        ({"HyperParameters": {"k": ["a"]}}, "Value '[a]' at 'hyperParameters.k' must be a string, got a list"),
        ({"HyperParameters": {1: "a"}}, "Key '1' at 'hyperParameters' must be a string, got a number: quote it"),
        ({"HyperParameters": []}, "Value '[]' at 'hyperParameters' must be an object, got a list"),
        ({"TrainingJobName": 5}, "Value '5' at 'trainingJobName' must be a string, got a number: quote it"),
        (
            {"EnableManagedSpotTraining": "yes"},
            "Value 'yes' at 'enableManagedSpotTraining' must be true or false, got a string",
        ),
        (
            {"EnableManagedSpotTraining": 1},
            "Value '1' at 'enableManagedSpotTraining' must be true or false, got a number",
        ),
        (
            {"StoppingCondition": {"MaxRuntimeInSeconds": True}},
            "Value 'true' at 'stoppingCondition.maxRuntimeInSeconds' must be a whole number, got true or false",
        ),
        (
            {"StoppingCondition": {"MaxRuntimeInSeconds": "60"}},
            "Value '60' at 'stoppingCondition.maxRuntimeInSeconds' must be a whole number, got a string",
        ),
        (
            {"ResourceConfig": {"InstanceCount": 1.0}},
            "Value '1.0' at 'resourceConfig.instanceCount' must be a whole number, got a number",
        ),
        (
            {"AlgorithmSpecification": "xgboost"},
            "Value 'xgboost' at 'algorithmSpecification' must be an object, got a string",
        ),
        ({"InputDataConfig": {"train": "a"}}, "Value '{train=a}' at 'inputDataConfig' must be a list, got an object"),
        ({"InputDataConfig": [None]}, "Value 'null' at 'inputDataConfig.1.member' must be an object, got null"),
        ({"ResourceConfig": []}, "Value '[]' at 'resourceConfig' must be an object, got a list"),
        ({"OutputDataConfig": "out/"}, "Value 'out/' at 'outputDataConfig' must be an object, got a string"),
    ],
)
def test_a_value_of_the_wrong_type_is_told_with_its_place(fields: dict[str, Any], expected: str) -> None:
    assert problem(**fields) == expected


@pytest.mark.parametrize("number", [2**31, -(2**31) - 1, 10**5000, -(10**5000)], ids=lambda n: hex(n)[:12])
def test_whole_numbers_have_the_size_that_awss_have(number: int) -> None:
    text = problem(StoppingCondition={"MaxRuntimeInSeconds": number})
    assert "Member must have value " in text
    assert len(text) < 250
    assert job_of(InputDataConfig=[channel(InputMode="Pipe", ShuffleConfig={"Seed": -(2**63)})])
    assert "shuffleConfig.seed" in problem(InputDataConfig=[channel(InputMode="Pipe", ShuffleConfig={"Seed": 2**63})])


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"HyperParamaters": {}}, "Unknown field 'HyperParamaters'; did you mean 'HyperParameters'?"),
        ({"training_job_name": "a"}, "Unknown field 'training_job_name'; did you mean 'TrainingJobName'?"),
        ({"ROLEARN": None}, "Unknown field 'ROLEARN'; did you mean 'RoleArn'?"),
        ({"Zzz": 1}, "Unknown field 'Zzz'; take it out"),
        (
            {"ResourceConfig": {"InstanceCnt": 1}},
            "Unknown field 'InstanceCnt' in 'resourceConfig'; did you mean 'InstanceCount'?",
        ),
        (
            {"InputDataConfig": [channel(Contenttype="text/csv")]},
            "Unknown field 'Contenttype' in 'inputDataConfig.1.member'; did you mean 'ContentType'?",
        ),
    ],
)
def test_an_unknown_field_is_told_with_the_nearest_known_one(fields: dict[str, Any], expected: str) -> None:
    assert problem(**fields) == expected


def test_every_problem_is_told_at_once() -> None:
    found = problems(
        full_request()
        | {
            "TrainingJobName": "bad_name",
            "HyperParameters": {"k": "v" * 2501, "l": 1},
            "Environmint": {},
            "StoppingCondition": {"MaxRuntimeInSeconds": 60, "MaxWaitTimeInSeconds": 59},
            "InputDataConfig": [channel("a"), channel("a", CompressionType="Gzip")],
            "OutputDataConfig": {"S3OutputPath": "https://bucket.s3.amazonaws.com/out"},
            "RemoteDebugConfig": {"EnableRemoteDebug": True},
            "ServerlessJobConfig": {},
        }
    )
    expected = [
        "Environmint",
        "'trainingJobName'",
        "Map value must satisfy",
        "'hyperParameters.l'",
        "serverlessJobConfig.baseModelArn",
        "serverlessJobConfig.jobType",
        "Invalid MaxWaitTimeInSeconds",
        "'a' is there twice",
        "CompressionType Gzip",
        "s3:// URI",
        "RemoteDebugConfig is refused",
        "ServerlessJobConfig is refused",
    ]
    assert len(found) == len(expected), found
    for text in expected:
        assert sum(text in each for each in found) == 1, (text, found)


def test_several_problems_are_counted_and_joined_as_aws_does() -> None:
    with pytest.raises(ValidationError, match=r"^2 validation errors detected: Value 'a_' at .*; Value 'b_' at "):
        job_of(TrainingJobName="a_", InputDataConfig=[channel(InputMode="b_")])


def test_what_is_too_many_is_told_once_and_not_one_by_one() -> None:
    assert len(problems(HyperParameters={f"k{number}": number for number in range(100_000)})) == 101
    assert len(problems(InputDataConfig=[5] * 100_000)) == 21


def test_a_long_bad_value_is_cut_and_a_terminal_is_safe_from_it() -> None:
    text = problem(RoleArn="x" * 100_000)
    assert "xxx...' at 'roleArn'" in text
    assert len(text) < 400
    assert "\x1b" not in problem(TrainingJobName="\x1b[31mred")
    assert "\\x1b[31mred" in problem(TrainingJobName="\x1b[31mred")
    assert len(problem({"x" * 100_000: 1} | {"AlgorithmSpecification": algorithm()})) < 400


def test_half_of_a_surrogate_pair_is_refused_wherever_it_is() -> None:
    """JSON can hold it, files cannot: the job's record would not be written."""
    for fields in (
        {"OutputDataConfig": {"S3OutputPath": "out\ud800"}},
        {"HyperParameters": {"k": "\ud800"}},
        {"Environment": {"K": "\ud800"}},
        {"InputDataConfig": [channel(ContentType="\ud800")]},
    ):
        problem(**fields).encode()


def test_what_no_program_can_be_given_is_refused() -> None:
    fields: dict[str, Any]
    for fields in (
        {"Environment": {"A": "b\0"}},
        {"AlgorithmSpecification": algorithm(ContainerEntrypoint=["a\0"])},
        {"AlgorithmSpecification": algorithm(ContainerEntrypoint=["a"], ContainerArguments=["\0"])},
    ):
        assert "NUL" in problem(**fields)


# Rules between fields.


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (
            {"StoppingCondition": {"MaxRuntimeInSeconds": 60, "MaxWaitTimeInSeconds": 60}},
            "Invalid MaxWaitTimeInSeconds. It is only supported when EnableManagedSpotTraining is set to true",
        ),
        (
            {
                "EnableManagedSpotTraining": True,
                "StoppingCondition": {"MaxRuntimeInSeconds": 60, "MaxWaitTimeInSeconds": 59},
            },
            "Invalid MaxWaitTimeInSeconds. It must be equal to or greater than MaxRuntimeInSeconds (59 is less than 60)",
        ),
        ({"EnableManagedSpotTraining": True}, "EnableManagedSpotTraining needs StoppingCondition.MaxWaitTimeInSeconds"),
        (
            {
                "EnableManagedSpotTraining": True,
                "StoppingCondition": {"MaxRuntimeInSeconds": 60, "MaxWaitTimeInSeconds": 60},
                "ResourceConfig": {"KeepAlivePeriodInSeconds": 60},
            },
            "KeepAlivePeriodInSeconds cannot be had with managed spot training",
        ),
    ],
)
def test_waiting_and_spot_go_together_c72(fields: dict[str, Any], expected: str) -> None:
    assert expected in problem(**fields)


def test_a_wait_as_long_as_the_run_is_taken_c72() -> None:
    job = job_of(
        EnableManagedSpotTraining=True, StoppingCondition={"MaxRuntimeInSeconds": 60, "MaxWaitTimeInSeconds": 60}
    )
    assert (job.spot, job.stopping.max_wait_seconds) == (True, 60)
    short = job_of(EnableManagedSpotTraining=True, StoppingCondition={"MaxWaitTimeInSeconds": 60})
    assert short.stopping.max_runtime_seconds == 60  # not a day, which would be more than the wait


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (
            [channel(InputMode="FastFile", source={"S3DataType": "ManifestFile"})],
            "channel 'train': FastFile mode needs S3DataType S3Prefix, not ManifestFile",
        ),
        (
            [channel(source={"S3DataType": "AugmentedManifestFile", "AttributeNames": ["a"]})],
            "channel 'train': an AugmentedManifestFile must be in Pipe mode, not File",
        ),
        (
            [channel(InputMode="Pipe", source={"S3DataType": "AugmentedManifestFile"})],
            "channel 'train': an AugmentedManifestFile needs AttributeNames",
        ),
        ([channel(source={"AttributeNames": ["a"]})], "AttributeNames go with an AugmentedManifestFile only"),
        ([channel(source={"S3DataType": "Converse"})], "S3DataType Converse is refused: give S3Prefix"),
        ([channel("a"), channel("a")], "InputDataConfig: the channel name 'a' is there twice"),
        ([channel("a"), channel("a-manifest")], "the channel a-manifest would stand where AWS lists the keys of a"),
        ([channel("a", InputMode="Pipe"), channel("a_0")], "the channel a_0 would stand where the pipes of a are"),
        ([channel("..")], "a channel cannot be called '..'"),
        ([channel("model", InputMode="Pipe")], "must be in File mode, not Pipe"),
        ([channel(CompressionType="Gzip")], "CompressionType Gzip is for Pipe mode only"),
        (
            [channel(InputMode="FastFile", RecordWrapperType="RecordIO")],
            "RecordWrapperType RecordIO is for Pipe mode only",
        ),
        ([channel(source={"InstanceGroupNames": ["g"]})], "there is no instance group 'g'"),
        ([{"ChannelName": "a", "DataSource": {}}], "DataSource must have exactly one source"),
        (
            [
                {
                    "ChannelName": "a",
                    "InputMode": "Pipe",
                    "DataSource": {
                        "FileSystemDataSource": {
                            "FileSystemId": "fs-12345678",
                            "FileSystemAccessMode": "ro",
                            "FileSystemType": "EFS",
                            "DirectoryPath": "/a",
                        }
                    },
                }
            ],
            "a FileSystemDataSource must be in File mode, not Pipe",
        ),
    ],
)
def test_channels_that_cannot_be_are_refused(given: list[dict[str, Any]], expected: str) -> None:
    assert expected in problem(InputDataConfig=given)


def test_the_mode_of_the_job_is_the_mode_of_its_channels() -> None:
    augmented = channel(source={"S3DataType": "AugmentedManifestFile", "AttributeNames": ["a"]})
    job = job_of(
        AlgorithmSpecification=algorithm(TrainingInputMode="Pipe"),
        InputDataConfig=[augmented, channel("other", InputMode="FastFile")],
    )
    assert [each.input_mode for each in job.channels] == [InputMode.PIPE, InputMode.FAST_FILE]
    text = problem(
        AlgorithmSpecification=algorithm(TrainingInputMode="FastFile"),
        InputDataConfig=[channel(source={"S3DataType": "ManifestFile"})],
    )
    assert "FastFile mode needs S3DataType S3Prefix" in text


def test_pipe_only_settings_may_say_none_in_any_mode() -> None:
    assert job_of(InputDataConfig=[channel(CompressionType="None", RecordWrapperType="None", ShuffleConfig=None)])
    assert job_of(InputDataConfig=[channel(CompressionType=None, RecordWrapperType=None, InputMode=None)])


def group(name: str, count: int = 1, kind: str = "ml.m5.large") -> dict[str, Any]:
    return {"InstanceGroupName": name, "InstanceType": kind, "InstanceCount": count}


@pytest.mark.parametrize(
    ("resources", "expected"),
    [
        (
            {"InstanceGroups": [group("a")], "InstanceType": "ml.m5.large"},
            "give InstanceGroups or InstanceType, not both",
        ),
        ({"InstanceGroups": [group("a")], "InstanceCount": 2}, "give InstanceGroups or InstanceCount, not both"),
        ({"InstanceGroups": [group("a"), group("a")]}, "the name 'a' is there twice"),
        ({"InstanceGroups": [group("a", 0)]}, "InstanceCount must be at least 1, got 0"),
        ({"InstanceGroups": [group(f"g{number}") for number in range(6)]}, AT_MOST.format(5)),
        ({"InstanceGroups": [group("a", 600), group("b", 600)]}, "at most 1000"),
        ({"InstanceGroups": [group("a")], "KeepAlivePeriodInSeconds": 60}, "KeepAlivePeriodInSeconds"),
        ({"InstanceGroups": [{"InstanceGroupName": "a", "InstanceCount": 1}]}, "1.member.instanceType"),
        ({"InstanceCount": 0}, "InstanceCount must be at least 1, got 0"),
        ({"InstanceCount": 1001}, "at most 1000"),
    ],
)
def test_hosts_that_cannot_be_are_refused(resources: dict[str, Any], expected: str) -> None:
    assert expected in problem(ResourceConfig=resources)


def test_groups_see_their_own_channels() -> None:
    groups = {"InstanceGroups": [group("data", 2), group("gpu", 1, "ml.g5.xlarge")]}
    job = job_of(
        ResourceConfig=groups,
        InputDataConfig=[
            channel("a", source={"InstanceGroupNames": ["data"]}),
            channel("b", source={"InstanceGroupNames": ["data", "gpu"]}),
        ],
    )
    assert [[host.name for host in job.hosts_of(each)] for each in job.channels] == [
        ["algo-1", "algo-2"],
        ["algo-1", "algo-2", "algo-3"],
    ]
    text = problem(
        ResourceConfig=groups, InputDataConfig=[channel("a", source={"InstanceGroupNames": ["gpu"]}), channel("b")]
    )
    assert "every channel must" in text


def test_an_image_is_needed_and_is_not_an_algorithm() -> None:
    assert "TrainingImage is missing; name an image" in problem({})
    assert "TrainingImage is missing" in problem(AlgorithmSpecification={"TrainingImage": ""})
    both = problem(AlgorithmSpecification=algorithm(AlgorithmName="mine"))
    alone = problem(AlgorithmSpecification={"AlgorithmName": "mine"})
    assert both == alone
    assert alone.startswith("AlgorithmSpecification.AlgorithmName is refused: ")
    assert "name the image in TrainingImage" in alone
    assert job_of(AlgorithmSpecification={"ContainerEntrypoint": ["python", "a.py"]}).image == "python"


@pytest.mark.parametrize(
    ("regex", "expected"),
    [
        ("loss=(", "of 'm' is no regular expression: "),
        ("loss=[0-9", "of 'm' is no regular expression: "),
        ("loss=[0-9.]+", "of 'm' has no group: put parentheses around the number"),
        ("loss=(?:[0-9.]+)", "has no group"),
        ("", "greater than or equal to 1"),
        ("(" + "a" * 500 + ")", "less than or equal to 500"),
    ],
)
def test_a_metric_needs_an_expression_with_a_group(regex: str, expected: str) -> None:
    definitions = [{"Name": "m", "Regex": regex}]
    found = problems(AlgorithmSpecification=algorithm(MetricDefinitions=definitions))
    assert any("AlgorithmSpecification.MetricDefinitions" in each or "metricDefinitions" in each for each in found)
    assert any(expected in each for each in found), found


def test_a_metric_definition_without_its_keys_is_told_as_aws_does() -> None:
    definitions = [{"Name": "a"}, {"Regex": "(a)"}, "loss"]
    found = problems(AlgorithmSpecification=algorithm(MetricDefinitions=definitions))
    where = "algorithmSpecification.metricDefinitions"
    assert [each.partition(" failed")[0].partition(" must")[0] for each in found] == [
        f"Value null at '{where}.1.member.regex'",
        f"Value null at '{where}.2.member.name'",
        f"Value 'loss' at '{where}.3.member'",
    ]
    many = [{"Name": "a", "Regex": "(a)"}] * 41
    assert AT_MOST.format(40) in problem(AlgorithmSpecification=algorithm(MetricDefinitions=many))


@pytest.mark.parametrize("field", ["CheckpointConfig", "TensorBoardOutputConfig", "DebugHookConfig"])
@pytest.mark.parametrize(
    "path",
    [
        "/tmp/x",
        "/opt/ml",
        "/opt/ml/",
        "/opt/ml/../../etc",
        "/opt/ml/input/config",
        "/opt/ml/model",
        "checkpoints",
        "",
        "/opt/ml/a\0",
    ],
)
def test_a_local_path_is_a_folder_of_its_own_in_opt_ml(field: str, path: str) -> None:
    if (field, path) == ("CheckpointConfig", "/tmp/x"):
        return  # that one may lie anywhere but in the system's folders, as in AWS
    uri = {"CheckpointConfig": "S3Uri"}.get(field, "S3OutputPath")
    text = problem(**{field: {uri: "s3://bucket/a", "LocalPath": path}})
    assert text.startswith(f"{field}.LocalPath ")
    assert "such as /opt/ml/" in text


@pytest.mark.parametrize("path", ["/", "/opt", "/etc/x", "/usr/lib/x", "//x", "/proc", "relative/x"])
def test_checkpoints_are_not_kept_in_a_folder_of_the_system(path: str) -> None:
    text = problem(CheckpointConfig={"S3Uri": "s3://bucket/a", "LocalPath": path})
    assert text.startswith("CheckpointConfig.LocalPath ")


def test_a_local_path_is_made_plain() -> None:
    job = job_of(
        CheckpointConfig={"S3Uri": "s3://b/c", "LocalPath": "/opt/ml/./checkpoints//x/"},
        TensorBoardOutputConfig={"S3OutputPath": "s3://b/t"},
        DebugHookConfig={"S3OutputPath": "s3://b/d", "LocalPath": "/opt/ml/output/tensors/"},
    )
    assert job.checkpoint is not None
    assert job.tensorboard is not None
    assert job.debug_hook is not None
    assert job.checkpoint.local_path == "/opt/ml/checkpoints/x"
    assert job.tensorboard.local_path == "/opt/ml/output/tensorboard"
    assert job.debug_hook.local_path == "/opt/ml/output/tensors"


def test_a_file_system_is_an_absolute_folder() -> None:
    def given(path: str) -> list[dict[str, Any]]:
        source = {
            "FileSystemId": "fs-12345678",
            "FileSystemAccessMode": "rw",
            "FileSystemType": "FSxLustre",
            "DirectoryPath": path,
        }
        return [{"ChannelName": "a", "DataSource": {"FileSystemDataSource": source}}]

    source = job_of(InputDataConfig=given("/mnt/fs")).channels[0].source
    assert isinstance(source, FileSystemSource)
    assert (source.directory, source.read_only) == (Path("/mnt/fs"), False)
    assert "must be the absolute path" in problem(InputDataConfig=given("mnt/fs"))


# Defaults.


def test_the_least_request_is_an_image_and_the_rest_is_made_up(optml_home: Path) -> None:
    job = job_of()
    assert job.name.startswith("xgboost-")
    assert len(job.name) <= 63
    assert job.output_uri == f"file://{optml_home}/output"
    assert job.stopping.max_runtime_seconds == 86400
    assert [host.instance_type for host in job.hosts] == ["ml.m5.large"]
    assert job.arn == f"arn:aws:sagemaker:us-east-1:000000000000:training-job/{job.name}"
    assert job_of().name != job_of().name


@pytest.mark.parametrize(
    "image",
    [
        "123456789012.dkr.ecr.us-east-1.amazonaws.com/sagemaker-xgboost:1.7-1",
        "localhost:5000/a/" + "b" * 200 + "@sha256:abc",
        "ünïcode",
        "---",
    ],
)
def test_a_name_can_be_made_of_any_image(image: str) -> None:
    assert job_of({"AlgorithmSpecification": {"TrainingImage": image}}).image == image


def test_what_was_completed_means_the_same_when_it_is_read_again(tmp_path: Path) -> None:
    """A detached supervisor reads the recorded request, in another folder."""
    (tmp_path / "data").mkdir()
    uris = ["data", "s3://bucket/p", "file:///", "~/x", "a b/c%20d#e?", str(tmp_path / "data")]
    request = full_request() | {
        "InputDataConfig": [channel(f"c{number}", source={"S3Uri": uri}) for number, uri in enumerate(uris)],
        "OutputDataConfig": {"S3OutputPath": "file:///"},
        "ProfilerConfig": {"S3OutputPath": "profile/"},
        "TensorBoardOutputConfig": {"S3OutputPath": "."},
    }
    once = job_of(request, base_dir=tmp_path)
    assert job_of(dict(once.request), base_dir=Path("/")) == once
    assert job_of(json.loads(json.dumps(once.request)), base_dir=Path("/")) == once


def test_a_request_is_not_changed_by_being_read(tmp_path: Path) -> None:
    request = full_request() | {"OutputDataConfig": {"S3OutputPath": "out"}}
    before = copy.deepcopy(request)
    job_of(load_request(request, tmp_path))
    request_from_shortcuts(request, base_dir=tmp_path, channels={"train": "x"}, hyperparameters={"a": 1}, image="b")
    assert request == before


def test_tuples_and_nulls_are_taken_as_boto3_and_aws_take_them() -> None:
    job = job_of(
        AlgorithmSpecification={"TrainingImage": None, "ContainerEntrypoint": ("python", "a.py")},
        InputDataConfig=({**channel(), "ContentType": None},),
        StoppingCondition={"MaxRuntimeInSeconds": None},
        CheckpointConfig=None,
    )
    assert (job.image, job.entrypoint, job.checkpoint) == ("python", ("python", "a.py"), None)
    assert job.stopping.max_runtime_seconds == 86400
    assert "ContentType" not in job.request["InputDataConfig"][0]


# Places.


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("s3://bucket/a%20b/ü", "s3://bucket/a%20b/ü"),
        ("data/train", "file:///home/somebody/project/data/train"),
        ("./data/../x.csv", "file:///home/somebody/project/x.csv"),
        ("my data/größe (1).csv", "file:///home/somebody/project/my data/größe (1).csv"),
        ("a%20b#c?d", "file:///home/somebody/project/a%20b#c?d"),
        ("/abs/a%20b", "file:///abs/a%20b"),
        ("file:///abs/a b/ü%41", "file:///abs/a b/ü%41"),
        ("/abs/folder/", "file:///abs/folder/"),
        ("~/data", "file:///home/me/data"),
        ("./~/data", "file:///home/somebody/project/~/data"),
        ("./s3:x", "file:///home/somebody/project/s3:x"),
        ("a:b", "file:///home/somebody/project/a:b"),
        ("x" * 5000, "file:///home/somebody/project/" + "x" * 5000),
    ],
    ids=short,
)
def test_a_place_is_kept_as_it_is_and_made_absolute(given: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    source = job_of(InputDataConfig=[channel(source={"S3Uri": given})]).channels[0].source
    assert isinstance(source, ObjectSource)
    assert source.uri == expected
    assert job_of(OutputDataConfig={"S3OutputPath": given}).output_uri == expected.rstrip("/")


def test_a_folder_is_that_folder_and_not_its_neighbours(tmp_path: Path) -> None:
    for name in ("data", "data-2"):
        (tmp_path / name).mkdir()
    job = job_of(
        base_dir=tmp_path, InputDataConfig=[channel(source={"S3Uri": "data"}), channel("b", source={"S3Uri": "dat"})]
    )
    assert [each.source.uri for each in job.channels if isinstance(each.source, ObjectSource)] == [
        f"file://{tmp_path}/data/",
        f"file://{tmp_path}/dat",
    ]


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("https://bucket.s3.amazonaws.com/key", "give the s3:// URI of the same objects"),
        ("file://data/train", "has three slashes"),
        ("file://~/train", "has three slashes"),
        ("s3:/bucket/key", "write s3://bucket/key, file:///path, or ./s3:/bucket/key"),
        ("file:/abs", "write s3://bucket/key, file:///path"),
        ("~no-such-user-here/x", "there is no such user here; write ./~no-such-user-here/x"),
        ("a\0b", "cannot hold a NUL"),
        ("a\nb", "cannot hold a NUL or a newline"),
        ("s3://", "regular expression pattern"),
        ("", "regular expression pattern"),
        ("ftp://host/x", "(or a path or file:// URI of this machine)"),
        ("s3://bucket/" + "k" * 1024, AT_MOST.format(1024)),
    ],
    ids=short,
)
def test_a_place_that_cannot_be_is_refused_with_what_to_write(uri: str, expected: str) -> None:
    assert expected in problem(InputDataConfig=[channel(source={"S3Uri": uri})])
    assert expected in problem(OutputDataConfig={"S3OutputPath": uri})
    assert expected in problem(ProfilerConfig={"S3OutputPath": uri, "DisableProfiler": True})


# Files.


def written(tmp_path: Path, content: str | bytes, name: str = "request.json") -> str:
    (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return name


def mistake(tmp_path: Path, content: str | bytes, name: str = "request.json") -> str:
    with pytest.raises(UserError) as caught:
        load_request(written(tmp_path, content, name), tmp_path)
    return str(caught.value)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (
            '{"a": 1,\n "b": 2,\n}',  # Python 3.13 points to the comma
            f"request.json, {'line 2, column 8' if sys.version_info >= (3, 13) else 'line 3, column 1'}: not JSON: ",
        ),
        ('{"a": 1', "line 1, column 8: not JSON: "),
        ("{'a': 1}", "line 1, column 2: not JSON: "),
        ('{"a": {"b": 1, "b": 2}}', "request.json: the key 'b' is there twice in one object; keep one"),
        ('{"a": NaN}', "request.json: NaN is not JSON"),
        ('{"a": -Infinity}', "request.json: -Infinity is not JSON"),
        (b'{"a": "\xff"}', "request.json is not UTF-8 text: "),
        ('{"a": 1}'.encode("utf-16"), "request.json is not UTF-8 text: "),
        ("[1]", "request.json must hold one object, the CreateTrainingJob request; it holds a list"),
        ('"text"', "it holds a string"),
        ("null", "it holds null"),
        ("", "request.json is empty"),
        (" \n", "request.json is empty"),
        ("[" * 100_000, "request.json: not a request: "),
        (f'{{"a": {"9" * 5000}}}', "request.json: not a request: "),
    ],
    ids=short,
)
def test_a_broken_json_file_is_told_with_its_place(tmp_path: Path, content: str | bytes, expected: str) -> None:
    assert expected in mistake(tmp_path, content)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("a: 1\nb: 2\na: 3\n", "request.yaml, line 3: the key 'a' is there twice in one object; keep one"),
        ("a:\n  - {b: 1, b: 2}\n", "line 2: the key 'b' is there twice"),
        ("a: [1\n", "request.yaml, line 2, column 1: not YAML: "),
        ("a: !Ref x", "line 1, column 4: not YAML: could not determine a constructor for the tag '!Ref'"),
        ("a: !!python/object:os.system {}", "not YAML: could not determine a constructor"),
        ("a: !!bool perhaps", "request.yaml: not YAML: "),
        ("a: !!timestamp x", "request.yaml: not YAML: "),
        ("a: !!int ''", "request.yaml: not YAML: "),
        ("a: 2024-99-99", "request.yaml: not YAML: "),
        ("? [a]\n: b", "not YAML: found unhashable key"),
        ("a: *b", "not YAML: found undefined alias"),
        ("a: 1\n---\nb: 2", "not YAML: but found another document"),
        ("\0", "request.yaml: not YAML: "),
        ("- a\n- b\n", "it holds a list"),
        ("# nothing\n", "it holds null"),
        ("[" * 20_000, "request.yaml: not YAML: "),
    ],
    ids=short,
)
def test_a_broken_yaml_file_is_told_with_its_place(tmp_path: Path, content: str, expected: str) -> None:
    assert expected in mistake(tmp_path, content, "request.yaml")


def test_yaml_that_means_something_else_than_it_looks_is_told(tmp_path: Path) -> None:
    text = """
    AlgorithmSpecification: {TrainingImage: xgboost}
    EnableNetworkIsolation: no
    HyperParameters: {day: 2024-01-31, flag: yes, depth: 6, rate: 1e-3, ratio: 0.5, none: ~, on: "1"}
    """
    name = written(tmp_path, text, "request.yml")
    request = load_request(name, tmp_path)
    assert request["EnableNetworkIsolation"] is False
    assert problems(request) == [
        "Value '2024-01-31' at 'hyperParameters.day' must be a string, got a date: quote it",
        "Value 'true' at 'hyperParameters.flag' must be a string, got true or false: quote it",
        "Value '6' at 'hyperParameters.depth' must be a string, got a number: quote it",
        "Value '0.5' at 'hyperParameters.ratio' must be a string, got a number: quote it",
        "Value 'null' at 'hyperParameters.none' must be a string, got null",
        "Key 'true' at 'hyperParameters' must be a string, got true or false: quote it",
    ]


def test_yaml_anchors_and_merges_work(tmp_path: Path) -> None:
    text = """
    AlgorithmSpecification: {TrainingImage: xgboost}
    InputDataConfig:
      - &train
        ChannelName: train
        ContentType: &csv text/csv
        DataSource: &where {S3DataSource: &source {S3DataType: S3Prefix, S3Uri: "s3://b/train"}}
      - <<: *train
        ChannelName: other
        DataSource: {S3DataSource: {<<: *source, S3Uri: "s3://b/other"}}
    """
    job = job_of(load_request(written(tmp_path, text, "request.yaml"), tmp_path))
    assert [(each.name, each.content_type) for each in job.channels] == [("train", "text/csv"), ("other", "text/csv")]
    assert [each.source.uri for each in job.channels if isinstance(each.source, ObjectSource)] == [
        "s3://b/train",
        "s3://b/other",
    ]


def test_yaml_that_unfolds_to_gigabytes_or_holds_itself_is_refused_at_once(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 30)]
    bomb = "\n".join([*lines, "HyperParameters: {k: *a29}", "Tags: *a29", "InputDataConfig: *a29"])
    found = problems(load_request(written(tmp_path, bomb, "bomb.yaml"), tmp_path))
    assert any("hyperParameters.k' must be a string, got a list" in each for each in found)
    loop = "HyperParameters: &h {k: *h}\nTags: &t [*t]\nVpcConfig: &v {Subnets: *v}"
    found = problems(load_request(written(tmp_path, loop, "loop.yaml"), tmp_path))
    assert any("hyperParameters.k' must be a string, got an object" in each for each in found)


def test_json_and_yaml_files_say_the_same(tmp_path: Path) -> None:
    import yaml

    request = full_request()
    for name, text in (
        ("a.json", json.dumps(request)),
        ("b.json", "\ufeff" + json.dumps(request, ensure_ascii=False)),  # as Windows writes it
        ("c.YAML", yaml.safe_dump(request, allow_unicode=True)),
        ("d.yml", json.dumps(request, indent=2)),
        ("no-ending", json.dumps(request)),
    ):
        assert load_request(written(tmp_path, text, name), tmp_path) == request
        assert load_request(tmp_path / name, Path("/nowhere")) == request


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("no-such.json", "cannot read the request no-such.json: No such file or directory"),
        (".", "cannot read the request .: Is a directory"),
        ("a\0b", "cannot read the request 'a\\x00b': "),
        ("~no-such-user-here/a.json", "cannot read the request ~no-such-user-here/a.json: "),
        ("x" * 5000, "File name too long"),
    ],
    ids=short,
)
def test_a_file_that_cannot_be_read_is_told(tmp_path: Path, name: str, expected: str) -> None:
    with pytest.raises(UserError) as caught:
        load_request(name, tmp_path)
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    "text", [json.dumps({"TrainingJobName": "a"}), "TrainingJobName: a\n", '\n  {"TrainingJobName":\n"a"}']
)
def test_a_hyphen_is_standard_input_json_or_yaml(text: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode()), encoding="ascii"))
    assert load_request("-", tmp_path) == {"TrainingJobName": "a"}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "standard input is empty"),
        (b"\xff", "standard input is not UTF-8"),
        (b"{", "standard input, line 1, column 2"),
    ],
)
def test_standard_input_that_is_no_request_is_told(
    content: bytes, expected: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content), encoding="ascii"))
    with pytest.raises(UserError, match=expected):
        load_request("-", tmp_path)


def test_a_path_in_a_request_file_is_relative_to_where_the_command_is_given(tmp_path: Path) -> None:
    """Not to the file: the same request is then the same job from Python, a file and standard input."""
    (tmp_path / "requests").mkdir()
    text = json.dumps(
        {"AlgorithmSpecification": {"TrainingImage": "xgboost"}, "OutputDataConfig": {"S3OutputPath": "out"}}
    )
    written(tmp_path / "requests", text)
    for argument, piped in (("requests/request.json", None), ("-", text)):
        done = subprocess.run(
            [OPTML, "train", "--dry-run", argument],
            input=piped,
            capture_output=True,
            text=True,
            timeout=2 * PATIENCE_SECONDS,
            cwd=tmp_path,
            check=True,
        )
        assert json.loads(done.stdout)["request"]["OutputDataConfig"]["S3OutputPath"] == f"file://{tmp_path}/out"


def test_the_command_line_lists_every_problem_and_survives_bytes_that_are_no_text(tmp_path: Path) -> None:
    command: list[str | bytes] = [
        OPTML,
        "train",
        "--name",
        "bad_name",
        "--output",
        b"out\xff",
        "--",
        "true",
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=2 * PATIENCE_SECONDS, cwd=tmp_path, check=False
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("optml: 2 errors:\n  - ")
    assert "'trainingJobName'" in done.stderr
    assert "not valid Unicode" in done.stderr


# Keywords.


def laid_over(request: dict[str, Any] | None = None, **keywords: Any) -> dict[str, Any]:
    return request_from_shortcuts(request, base_dir=HERE, **keywords)


def test_keywords_make_a_request() -> None:
    made = laid_over(
        image="xgboost",
        name="job",
        channels={
            "train": "data/a.csv",
            "validation": {"uri": "s3://b/v.libsvm", "input_mode": "FastFile", "distribution": "ShardedByS3Key"},
            "piped": {
                "uri": Path("/x"),
                "input_mode": "Pipe",
                "shuffle_seed": 3,
                "compression": "Gzip",
                "content_type": "a/b",
            },
        },
        hyperparameters={"depth": 6, "rate": 0.1, "text": "a", "list": [1, "é"], "flag": True, "none": None},
        environment={"A": "b"},
        output=Path("out"),
        entrypoint=["python", Path("a.py"), 3],
        arguments=("x",),
        metrics={"loss": "loss=(.*)"},
        instance_type="ml.c5.xlarge",
        instance_count=2,
        input_mode="File",
        max_runtime=60,
        max_wait=61,
        spot=True,
        checkpoint="checkpoints",
        retries=3,
        role="arn:aws:iam::123456789012:role/r",
        network_isolation=True,
    )
    assert made["HyperParameters"] == {
        "depth": "6", "rate": "0.1", "text": "a", "list": '[1, "é"]', "flag": "true", "none": "null",
    }  # fmt: skip
    assert [each.get("ContentType") for each in made["InputDataConfig"]] == ["text/csv", "text/libsvm", "a/b"]
    job = job_of(made)
    assert (job.name, job.image, job.entrypoint, job.arguments) == ("job", "xgboost", ("python", "a.py", "3"), ("x",))
    assert [(each.name, str(each.input_mode), each.shuffle_seed) for each in job.channels] == [
        ("train", "File", None),
        ("validation", "FastFile", None),
        ("piped", "Pipe", 3),
    ]
    assert (len(job.hosts), job.spot, job.maximum_retries, job.network_isolation) == (2, True, 3, True)


def test_no_retries_takes_away_those_of_the_request() -> None:
    request = request_from_shortcuts({"RetryStrategy": {"MaximumRetryAttempts": 3}}, base_dir=Path("/"), retries=0)
    assert "RetryStrategy" not in request


def test_keywords_are_laid_over_a_request_and_leave_the_rest() -> None:
    made = laid_over(
        full_request(),
        name="other",
        channels={"train": {"content_type": "text/libsvm"}, "validation": "v.csv", "new": "n"},
        hyperparameters={"num_round": 6, "eta": "0.1"},
    )
    assert made["TrainingJobName"] == "other"
    assert made["HyperParameters"] == {"num_round": "6", "eta": "0.1"}
    train, validation, new = made["InputDataConfig"]
    assert (train["ContentType"], train["DataSource"]["S3DataSource"]["S3Uri"]) == ("text/libsvm", "s3://bucket/train/")
    assert (validation["InputMode"], validation["DataSource"]["S3DataSource"]["S3Uri"]) == ("FastFile", "v.csv")
    assert new["ChannelName"] == "new"
    assert made["StoppingCondition"] == full_request()["StoppingCondition"]


@pytest.mark.parametrize("nothing", [None, 5, "x", []])
def test_keywords_over_a_broken_request_leave_the_mistake_to_be_told(nothing: Any) -> None:
    fields = ("AlgorithmSpecification", "HyperParameters", "InputDataConfig", "OutputDataConfig", "Environment")
    made = laid_over(
        dict.fromkeys(fields, nothing),
        image="xgboost",
        hyperparameters={"a": 1},
        environment={"A": "b"},
        channels={"train": "x"},
        output="out",
    )
    if nothing is None:  # the same as nothing
        assert job_of(made).hyperparameters == {"a": "1"}
        return
    with pytest.raises(ValidationError):
        job_of(made)
    broken = {"ChannelName": "train", "DataSource": nothing}
    with pytest.raises(ValidationError):
        job_of(laid_over({"InputDataConfig": [nothing, broken]}, channels={"train": "x"}, image="xgboost"))


@pytest.mark.parametrize(
    ("keywords", "expected"),
    [
        ({"hyperparameter": {}}, "there is no option 'hyperparameter'; did you mean 'hyperparameters'?"),
        ({"grace_second": 5}, "there is no option 'grace_second'; did you mean 'grace_seconds'?"),
        ({"Image": "a", "zzz": 1}, "there is no option 'Image'; did you mean 'image'?; there is no option 'zzz'"),
        (
            {"content_type": "text/csv"},
            "there is no option 'content_type'; it is one of a channel: channels={'train': {'uri': ..., 'content_type': ...}}",
        ),
        ({"channels": "data"}, "channels must be a dict of names and values, got a string"),
        ({"hyperparameters": ["a"]}, "hyperparameters must be a dict of names and values, got a list"),
        (
            {"entrypoint": "python a.py"},
            "entrypoint must be a list of words, as in ['python', 'train.py'], got a string",
        ),
        ({"arguments": 5}, "arguments must be a list of words"),
        ({"hyperparameters": {"a": object()}}, "hyperparameter 'a' cannot be written as JSON: "),
        ({"channels": {"a": None}}, "channel 'a' must be a path or a URI, got null"),
        ({"channels": {"a": {"input_mode": "Pipe"}}}, "channel 'a' has no source: give --channel a=PATH"),
        ({"channels": {"a": {"uri": "x", "mode": 1}}}, "channel 'a': there is no option 'mode'"),
        ({"channels": {"a": {"uri": "x", "inputmode": 1}}}, "did you mean 'input_mode'?"),
        ({"output": 5}, "output must be a path or a URI, got a number"),
        ({"checkpoint": b"x"}, "checkpoint must be a path or a URI, got bytes"),
    ],
)
def test_keywords_that_cannot_be_are_refused(keywords: dict[str, Any], expected: str) -> None:
    with pytest.raises(UserError) as caught:
        optml.train(**keywords)
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["a.csv", "b.csv", "_SUCCESS", ".hidden"], "text/csv"),
        (["a.parquet"], "application/x-parquet"),
        (["a.csv", "b.parquet"], None),
        (["a"], None),
        ([], None),
    ],
)
def test_the_content_type_of_a_channel_given_by_keyword_is_that_of_its_files(
    tmp_path: Path, names: list[str], expected: str | None
) -> None:
    for name in names:
        (tmp_path / name).touch()
    made = request_from_shortcuts(None, base_dir=tmp_path, channels={"a": "."})
    assert made["InputDataConfig"][0].get("ContentType") == expected


# Whatever is thrown at it.


@pytest.mark.parametrize(
    "text",
    [
        "a" * 10_000,
        "-" * 10_000,
        "a-" * 5_000 + "!",
        "s3://" + "a/" * 5_000 + "\n",
        "arn:aws:sagemaker:" * 500,
        "\ud800" * 10_000,
    ],
    ids=short,
)
def test_no_text_of_ten_thousand_characters_keeps_a_pattern_busy(text: str) -> None:
    """All patterns compile (they are Java's), and none goes on for ever: that this test ends is what it tests."""
    full = full_request()
    for path, value in list(leaves(full)):
        if isinstance(value, str):
            for each in (text, f"s3://bucket/{text}"):
                with contextlib.suppress(ValidationError):  # a path of this machine may be as long
                    job_of(replaced(full, path, each))


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Any:
    """(path, value) of everything in a request, containers too."""
    yield path, value
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from leaves(item, (*path, key))


def replaced(request: dict[str, Any], path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    request = copy.deepcopy(request)
    place: Any = request
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    return request


FIELD_NAMES = st.sampled_from(
    sorted({step for path, _ in leaves(full_request()) for step in path if isinstance(step, str)})
)
TEXTS = st.one_of(
    st.text(max_size=20),
    st.text(st.characters(categories=["Cs", "Cc", "Lu"]), max_size=5),
    st.sampled_from(
        ["File", "Pipe", "s3://a/b", "file://", "~", "~x/y", "/", "..", "s3://", "(a", "ManifestFile", "ml.m5.large"]
    ),
)
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), TEXTS, st.dates(), st.binary(max_size=3))
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.one_of(FIELD_NAMES, TEXTS), inner, max_size=4),
        st.tuples(inner),
    ),
    max_leaves=12,
)
FUZZ = settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)


def check_answer(request: Any) -> None:
    """A job, or problems that a person can read: never another exception."""
    try:
        job = parse(request, options=LocalOptions(), base_dir=HERE)
    except UserError as error:
        found = error.problems if isinstance(error, ValidationError) else [str(error)]
        assert found
        for text in found:
            assert text.isprintable(), text
            assert 10 < len(text) < 1500, text
            assert len(text.split()) > 3, text
    else:
        json.dumps(job.request).encode()
        assert dataclasses.is_dataclass(job)
        assert parse(job.request, options=LocalOptions(), base_dir=Path("/")) == job


@FUZZ
@given(VALUES)
def test_whatever_is_parsed_gives_a_job_or_readable_problems(value: Any) -> None:
    check_answer(value)


@FUZZ
@given(
    st.dictionaries(st.sampled_from(sorted(service_model()["CreateTrainingJobRequest"]["members"])), VALUES, max_size=6)
)
def test_whatever_is_in_known_fields_gives_a_job_or_readable_problems(request: dict[str, Any]) -> None:
    check_answer(request)


@FUZZ
@given(st.data())
def test_a_valid_request_with_random_changes_gives_a_job_or_readable_problems(data: st.DataObject) -> None:
    request = full_request()
    for _ in range(data.draw(st.integers(1, 4))):
        paths = [path for path, _ in leaves(request) if path]
        if not paths:
            break
        *way, last = data.draw(st.sampled_from(paths))
        place: Any = request
        for step in way:
            place = place[step]
        what = data.draw(st.sampled_from(["replace", "delete", "insert"]))
        if what == "delete":
            del place[last]
        elif what == "replace":
            place[last] = data.draw(VALUES)
        elif isinstance(place, list):
            place.insert(last, data.draw(VALUES))
        else:
            place[data.draw(FIELD_NAMES)] = data.draw(VALUES)
    check_answer(request)


@FUZZ
@given(
    st.one_of(
        st.binary(max_size=60),
        st.text(max_size=60).map(str.encode),
        VALUES.map(lambda value: repr(value).encode("utf-8", "replace")),
    )
)
def test_whatever_is_in_a_file_is_an_object_or_a_user_error(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    folder = tmp_path_factory.getbasetemp()
    for name in ("fuzz.json", "fuzz.yaml"):
        (folder / name).write_bytes(content)
        try:
            loaded = load_request(name, folder)
        except UserError:
            continue
        assert isinstance(loaded, dict)
        check_answer(loaded)


YAML_BITS = st.lists(
    st.sampled_from(
        ["a", "b", ": ", "- ", "\n", "  ", "{", "}", "[", "]", ",", "&x ", "*x", "<<: ", "!!int ", "!!set ", "!!timestamp ",
         "!!binary ", "!!omap ", "!!bool ", "? ", "|\n", "'", '"', "1", "0x", "1:2", "2001-01-01", "yes", "~", "%", "---\n",
         "\\", "#", ".inf", "="]
    ),
    max_size=12,
).map("".join)  # fmt: skip


@FUZZ
@given(YAML_BITS)
def test_whatever_yaml_is_written_is_an_object_or_a_user_error(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    folder = tmp_path_factory.getbasetemp()
    (folder / "bits.yaml").write_text(text)
    with contextlib.suppress(UserError):
        check_answer(load_request("bits.yaml", folder))


@FUZZ
@given(st.text(st.sampled_from("()[]{}?*+|\\^$.,<>=!:#-aPdx01&~"), min_size=1, max_size=30))
def test_whatever_expression_is_given_is_taken_or_told(regex: str) -> None:
    check_answer(
        {"AlgorithmSpecification": algorithm(MetricDefinitions=[{"Name": "m", "Regex": regex}]), "TrainingJobName": "a"}
    )


def test_the_biggest_request_is_read_in_no_time() -> None:
    """It is read once more for every tag that it has, and the test still is quick."""
    variables = {f"k{number}": "v" * 512 for number in range(100)}
    request = full_request() | {
        "HyperParameters": {f"k{number}": "v" * 2500 for number in range(100)},
        "Environment": variables,
        "InputDataConfig": [channel(f"c{number}", source={"S3Uri": "s3://b/" + "k" * 1000}) for number in range(20)],
        "Tags": [{"Key": f"k{number}", "Value": "v" * 256} for number in range(50)],
    }
    for _ in range(50):
        assert len(job_of(request).channels) == 20


def test_reading_a_request_imports_no_boto3() -> None:
    code = (
        "import sys; from pathlib import Path; from optml.request import parse; from optml.spec import LocalOptions;"
        "parse({'AlgorithmSpecification': {'TrainingImage': 'xgboost'}}, options=LocalOptions(), base_dir=Path('/'));"
        "print(*({'boto3', 'botocore', 'yaml', 'regex', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert done.stdout.split() == []
