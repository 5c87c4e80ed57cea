"""The table of fields keeps its word: it covers all that botocore knows, and each row does what its verdict says."""

import copy
import dataclasses
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import regex

from optml.errors import ValidationError
from optml.request import parse
from optml.request_fields import EMULATED, FIELDS, HONOURED, REFUSED, URI_FIELDS, Field, as_markdown, field_of
from optml.shapes import REQUEST_SHAPE, TYPE_WORDS, service_model
from optml.spec import LocalOptions, TrainingJob

ROOT = Path(__file__).parents[2]
RENEW = "run scripts/generate-docs and commit docs/fields.md"


def paths_of(shape_name: str = REQUEST_SHAPE, path: str = "") -> Iterator[tuple[str, str]]:
    """(path, shape name) of every field that botocore knows, at any depth."""
    if path:
        yield path, shape_name
    shape = service_model()[shape_name]
    for name, member in shape.get("members", {}).items():
        yield from paths_of(member["shape"], f"{path}.{name}" if path else name)
    if shape["type"] == "list":
        yield from paths_of(shape["member"]["shape"], f"{path}[]")


KNOWN = dict(paths_of())


def example(shape_name: str, path: str = "") -> Any:
    """A small value that AWS's model allows: required members only, the first word of an enum, text that fits a pattern."""
    shape = service_model()[shape_name]
    match shape["type"]:
        case "structure":
            members = shape["members"]
            needed = shape.get("required") or list(members)[:1]
            return {name: example(members[name]["shape"], f"{path}.{name}") for name in needed}
        case "list":
            return [example(shape["member"]["shape"], f"{path}[]") for _ in range(max(1, shape.get("min", 0)))]
        case "map":
            return {"key": "value"}
        case "boolean":
            return True
        case "integer" | "long":
            return max(1, shape.get("min", 1))
        case "string":
            return shape["enum"][0] if "enum" in shape else text_for(shape.get("pattern", ".*"))
    raise AssertionError(f"{path} is a {shape['type']}, of which request.py knows nothing")


TEXTS = (
    "a",
    "1K",
    "s3://bucket/key",
    "fs-12345678",
    "arn:aws:iam::123456789012:role/some-role",
    "arn:aws:lambda:us-east-1:123456789012:function:f",
    "arn:aws:sagemaker:us-east-1:123456789012:training-plan/some-plan",
    "arn:aws:sagemaker:us-east-1:123456789012:mlflow-tracking-server/m",
    "arn:aws:sagemaker:us-east-1:123456789012:model-package-group/g",
    "arn:aws:sagemaker:us-east-1:123456789012:model-package/g/1",
    "arn:aws:sagemaker:us-east-1:aws:hub-content/hub/Model/m/1.0.0",
    "arn:aws:sagemaker:us-east-1:aws:hub-content/hub/DataSet/d/1.0.0",
)


def text_for(pattern: str) -> str:
    return next(text for text in TEXTS if regex.fullmatch(pattern, text))


def request_with(path: str, value: Any) -> dict[str, Any]:
    """The smallest request that has a value at a path; objects on the way to it have what they need."""
    request: dict[str, Any] = {"AlgorithmSpecification": {"TrainingImage": "xgboost"}}
    place: Any = request
    *way, last = path.split(".")
    walked = ""
    for step in way:
        name = step.removesuffix("[]")
        walked = f"{walked}.{name}" if walked else name
        if name not in place:
            shape = service_model()[KNOWN[walked]]
            item = shape["member"]["shape"] if step.endswith("[]") else KNOWN[walked]
            needed = service_model()[item].get("required", ())
            made = {each: example(service_model()[item]["members"][each]["shape"]) for each in needed}
            place[name] = [made] if step.endswith("[]") else made
        place = place[name][0] if step.endswith("[]") else place[name]
        walked += "[]" if step.endswith("[]") else ""
    place[last] = value
    if path.startswith("InputDataConfig[]") and "DataSource" not in path:
        request["InputDataConfig"][0]["DataSource"] = {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": "s3://b/k"}}
    return request


def parsed(request: dict[str, Any]) -> TrainingJob:
    return parse(request, options=LocalOptions(), base_dir=Path("/"))


def rows(verdict: str) -> list[Field]:
    return [field for field in FIELDS if field.verdict == verdict]


def by_path(field: Field) -> str:
    return field.path


def test_every_field_that_botocore_knows_has_a_row() -> None:
    """Fails when AWS adds a field: decide what optml does with it, and say so in request_fields.py."""
    assert [path for path in KNOWN if field_of(path) is None] == []


def test_every_row_is_a_field_that_botocore_knows_and_is_there_once() -> None:
    assert [field.path for field in FIELDS if field.path not in KNOWN] == []
    assert len({field.path for field in FIELDS}) == len(FIELDS)
    assert {field.verdict for field in FIELDS} == {HONOURED, EMULATED, REFUSED}


def test_every_place_that_may_be_local_is_one_of_awss_uris() -> None:
    uris = {path for path, shape in KNOWN.items() if shape == "S3Uri"}
    refused = {path for path in uris if (field := field_of(path)) is not None and field.verdict == REFUSED}
    assert uris - refused == URI_FIELDS


def test_every_kind_of_shape_is_one_that_requests_are_checked_for() -> None:
    assert {service_model()[shape]["type"] for shape in KNOWN.values()} <= TYPE_WORDS.keys()
    for shape in KNOWN.values():
        if service_model()[shape]["type"] == "map":
            for part in ("key", "value"):
                assert service_model()[service_model()[shape][part]["shape"]]["type"] == "string"


def test_a_field_that_only_botocore_knows_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """botocore is renewed more often than optml is."""
    members = service_model()["ResourceConfig"]["members"]
    monkeypatch.setitem(members, "Quantum", {"shape": "Boolean"})
    assert field_of("ResourceConfig.Quantum") is None
    with pytest.raises(ValidationError) as caught:
        parsed(request_with("ResourceConfig.Quantum", True))
    assert caught.value.problems == [
        "ResourceConfig.Quantum is refused: this version of optml does not know it; leave it out"
    ]


@pytest.mark.parametrize("field", rows(REFUSED), ids=by_path)
def test_a_refused_field_is_refused_with_its_name_and_what_to_do(field: Field) -> None:
    with pytest.raises(ValidationError) as caught:
        parsed(request_with(field.path, example(KNOWN[field.path], field.path)))
    refusals = [text for text in caught.value.problems if text.startswith(f"{field.path} is refused: {field.note}")]
    assert len(refusals) == 1, caught.value.problems
    assert not [text for text in caught.value.problems if "constraint" in text or "Unknown" in text]
    remedies = ("leave it out", "give ", "name ", "log to", "attach ", "In the SageMaker SDK:")
    assert any(remedy in field.note for remedy in remedies), field.note


@pytest.mark.parametrize("field", [field for field in rows(REFUSED) if field.harmless], ids=by_path)
def test_a_refused_field_that_asks_for_nothing_is_taken(field: Field) -> None:
    for value in field.harmless:
        assert parsed(request_with(field.path, value)).warnings == ()


SPOT = {"StoppingCondition": {"MaxWaitTimeInSeconds": 60}, "CheckpointConfig": {"S3Uri": "s3://b/k"}}
BELOW_OPT_ML = {
    "LocalPath": "/opt/ml/output/own",
    "DirectoryPath": "/mnt/fs",
}


@pytest.mark.parametrize("field", rows(EMULATED), ids=by_path)
def test_an_emulated_field_is_taken_recorded_and_warned_of_if_it_matters(field: Field) -> None:
    value = example(KNOWN[field.path], field.path)
    if isinstance(value, dict):
        value |= {name: text for name, text in BELOW_OPT_ML.items() if name in value}
    request = request_with(field.path, value)
    if field.path == "EnableManagedSpotTraining":
        request |= SPOT
    if field.path.endswith("FileSystemDataSource"):
        request["InputDataConfig"][0]["DataSource"].pop("S3DataSource", None)
    job = parsed(request)
    assert field.note
    assert [warning for warning in job.warnings if warning == f"{field.path}: {field.note}"] == (
        [f"{field.path}: {field.note}"] if field.warn else []
    )
    assert job.warnings == () or field.warn
    recorded: Any = job.request
    for step in field.path.split("."):
        recorded = recorded[step.removesuffix("[]")][0] if step.endswith("[]") else recorded[step]
    assert recorded == value
    for harmless in field.harmless:
        assert parsed(request_with(field.path, harmless)).warnings == ()


def test_spot_without_checkpoints_is_warned_of() -> None:
    request = request_with("EnableManagedSpotTraining", True)
    assert (
        "would start this job from zero"
        in parsed(request | {"StoppingCondition": SPOT["StoppingCondition"]}).warnings[0]
    )


SOURCE = "InputDataConfig[].DataSource.S3DataSource"
TWO_GROUPS = {
    "InstanceGroups": [
        {"InstanceGroupName": name, "InstanceType": "ml.m5.large", "InstanceCount": 1} for name in ("a", "b")
    ]
}

# Of every honoured field that is no mere container of others: another value than `base_for` gives it.
CHANGES: dict[str, Any] = {
    "TrainingJobName": "other",
    "HyperParameters": {"a": "b"},
    "AlgorithmSpecification.TrainingImage": "python",
    "AlgorithmSpecification.TrainingInputMode": "Pipe",
    "AlgorithmSpecification.MetricDefinitions[].Name": "other",
    "AlgorithmSpecification.MetricDefinitions[].Regex": "other=(.*)",
    "AlgorithmSpecification.EnableSageMakerMetricsTimeSeries": True,
    "AlgorithmSpecification.ContainerEntrypoint": ["other"],
    "AlgorithmSpecification.ContainerArguments": ["other"],
    "InputDataConfig[].ChannelName": "other",
    f"{SOURCE}.S3DataType": "ManifestFile",
    f"{SOURCE}.S3Uri": "s3://other/k",
    f"{SOURCE}.S3DataDistributionType": "ShardedByS3Key",
    f"{SOURCE}.AttributeNames": ["other"],
    f"{SOURCE}.InstanceGroupNames": ["b"],
    "InputDataConfig[].ContentType": "text/other",
    "InputDataConfig[].CompressionType": "Gzip",
    "InputDataConfig[].RecordWrapperType": "RecordIO",
    "InputDataConfig[].InputMode": "FastFile",
    "InputDataConfig[].ShuffleConfig.Seed": 5,
    "OutputDataConfig.S3OutputPath": "s3://other",
    "OutputDataConfig.CompressionType": "NONE",
    "ResourceConfig.InstanceCount": 3,
    "ResourceConfig.InstanceGroups[].InstanceType": "ml.m5.xlarge",
    "ResourceConfig.InstanceGroups[].InstanceCount": 3,
    "ResourceConfig.InstanceGroups[].InstanceGroupName": "c",
    "StoppingCondition.MaxRuntimeInSeconds": 5,
    "StoppingCondition.MaxWaitTimeInSeconds": 90_000,
    "EnableNetworkIsolation": True,
    "CheckpointConfig.S3Uri": "s3://other",
    "CheckpointConfig.LocalPath": "/opt/ml/other",
    "Environment": {"A": "b"},
    "RetryStrategy.MaximumRetryAttempts": 5,
}


def test_every_honoured_field_is_tried() -> None:
    def is_container(path: str) -> bool:
        return any(other.startswith((f"{path}.", f"{path}[].")) for other in KNOWN)

    assert sorted(CHANGES) == sorted(field.path for field in rows(HONOURED) if not is_container(field.path))


def base_for(path: str) -> dict[str, Any]:
    """A request in which the field means something."""
    request: dict[str, Any] = {
        "TrainingJobName": "job",
        "AlgorithmSpecification": {
            "TrainingImage": "xgboost",
            "TrainingInputMode": "File",
            "MetricDefinitions": [{"Name": "m", "Regex": "m=(.*)"}],
        },
        "InputDataConfig": [
            {
                "ChannelName": "train",
                "ShuffleConfig": {"Seed": 1},
                "DataSource": {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": "s3://b/k"}},
            }
        ],
        "OutputDataConfig": {"S3OutputPath": "s3://b/out"},
        "CheckpointConfig": {"S3Uri": "s3://b/c"},
        "RetryStrategy": {"MaximumRetryAttempts": 1},
        "StoppingCondition": {"MaxRuntimeInSeconds": 86_400},
    }
    channel = request["InputDataConfig"][0]
    if "Compression" in path or "RecordWrapper" in path:
        channel["InputMode"] = "Pipe"
    if "AttributeNames" in path:
        channel["InputMode"] = "Pipe"
        channel["DataSource"]["S3DataSource"] |= {"S3DataType": "AugmentedManifestFile", "AttributeNames": ["a"]}
    if "InstanceGroup" in path:
        request["ResourceConfig"] = TWO_GROUPS
    if "InstanceGroupNames" in path:
        channel["DataSource"]["S3DataSource"]["InstanceGroupNames"] = ["a"]
    if "MaxWait" in path:
        request |= {"EnableManagedSpotTraining": True}
        request["StoppingCondition"]["MaxWaitTimeInSeconds"] = 86_400
    return request


@pytest.mark.parametrize("path", CHANGES)
def test_an_honoured_field_changes_the_job_and_not_only_its_record(path: str) -> None:
    def job_without_record(request: dict[str, Any]) -> TrainingJob:
        job = parsed(request)
        return dataclasses.replace(job, request={}, arn="")

    before = base_for(path)
    after = copy.deepcopy(before)
    place: Any = after
    *way, last = path.split(".")
    for step in way:
        place = place.setdefault(step, {}) if not step.endswith("[]") else place[step.removesuffix("[]")][0]
    assert place.get(last) != CHANGES[path]
    place[last] = CHANGES[path]
    assert job_without_record(before) != job_without_record(after)
    assert job_without_record(before) == job_without_record(copy.deepcopy(before))


def test_the_page_of_fields_is_what_the_table_makes() -> None:
    assert (ROOT / "docs/fields.md").read_text(encoding="utf-8") == as_markdown(), RENEW


def test_the_page_of_fields_has_a_row_for_each_and_no_broken_cells() -> None:
    table = [line for line in as_markdown().splitlines() if line.startswith("| `")]
    assert len(table) == len(FIELDS)
    assert all(line.count("|") == 4 for line in table)


@pytest.mark.slow
def test_the_script_writes_the_page(tmp_path: Path) -> None:
    subprocess.run([str(ROOT / "scripts/generate-docs"), str(tmp_path)], check=True, timeout=300)
    assert (tmp_path / "fields.md").read_text(encoding="utf-8") == as_markdown()
