"""A CreateTrainingJob request -> a TrainingJob. AWS's spelling stops here.

shapes.py checks each field by itself; here come the rules between fields, what optml refuses, and the defaults.
"""

import contextlib
import functools
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from optml.errors import UserError, ValidationError
from optml.jobdir import default_output_dir
from optml.loading import copied, expanded, make_name, region
from optml.request_fields import FIELDS, REFUSED, field_of
from optml.script_mode import with_whole_source
from optml.shapes import (
    REQUEST_SHAPE,
    is_local,
    joined,
    key_violations,
    service_model,
    shown,
    violations,
)
from optml.spec import (
    HOMOGENEOUS_GROUP,
    OF_THE_SYSTEM,
    OPT_ML,
    Channel,
    CheckpointConfig,
    Compression,
    DataType,
    Distribution,
    FileSystemSource,
    InputMode,
    InstanceGroup,
    LocalOptions,
    MetricDefinition,
    ObjectSource,
    RecordWrapper,
    StoppingCondition,
    TrainingJob,
    UploadedFolder,
)

DEFAULT_ROLE = "arn:aws:iam::000000000000:role/optml"
DEFAULT_INSTANCE_TYPE = "ml.m5.large"
MAX_RUNTIME_SECONDS = 28 * 86400
RESERVED_FOLDERS = tuple(f"{OPT_ML}{name}" for name in ("", "/input", "/model", "/output", "/code", "/output/data"))


def whole_uri(uri: str, base_dir: Path) -> str:
    """A path -> file:// and its absolute path, verbatim: a slash at the end is kept, links are not resolved."""
    if not is_local(uri):
        return uri
    path = uri.removeprefix("file://")
    absolute = os.path.normpath(base_dir / expanded(path))
    slash = "/" if path.endswith("/") and absolute != "/" else ""
    return f"file://{absolute}{slash}"


OUTPUT_URIS = (
    ("OutputDataConfig", "S3OutputPath"),
    ("CheckpointConfig", "S3Uri"),
    ("DebugHookConfig", "S3OutputPath"),
    ("TensorBoardOutputConfig", "S3OutputPath"),
    ("ProfilerConfig", "S3OutputPath"),
)


def _uri_problems(request: Mapping[str, Any]) -> Iterator[str]:
    """Asked of the fields that have the right shapes."""
    for path, uri in _uris(request):
        text = shown(uri)
        if uri.startswith("https://"):
            yield f"{path} {text}: give the s3:// URI of the same objects (s3://bucket/key)"
        elif uri.startswith("file://") and not uri.startswith("file:///"):
            yield f"{path} {text}: a file:// URI has three slashes before its absolute path"
        elif re.match("(s3|file|https):(?!//)", uri):
            yield f"{path} {text}: write s3://bucket/key, file:///path, or ./{text[1:-1]} for a file of that name"
        elif uri.startswith("~") and str(expanded(uri)).startswith("~"):
            yield f"{path} {text}: there is no such user here; write ./{text[1:-1]} for a file of that name"
        elif "\0" in uri or "\n" in uri:
            yield f"{path} {text}: a path cannot hold a NUL or a newline; rename the file"


def _uris(request: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for number, channel in enumerate(request.get("InputDataConfig", ()), start=1):
        source = channel["DataSource"].get("S3DataSource")
        if source:
            yield f"InputDataConfig[{number}].DataSource.S3DataSource.S3Uri", source["S3Uri"]
    for field, name in OUTPUT_URIS:
        if name in request.get(field, ()):
            yield f"{field}.{name}", request[field][name]


def _refusals(value: Any, shape_name: str = REQUEST_SHAPE, path: str = "") -> Iterator[str]:
    """By the table: fields that are there and ask for something that optml does not do."""
    if path:
        field = field_of(path)
        if field is None:  # botocore is newer than the table
            yield f"{path} is refused: this version of optml does not know it; leave it out"
            return
        if field.verdict == REFUSED:
            if value not in field.harmless:
                yield f"{path} is refused: {field.note}"
            return
    shape = service_model()[shape_name]
    if shape["type"] == "structure" and isinstance(value, dict):
        for key, item in value.items():
            if key in shape["members"]:
                yield from _refusals(item, shape["members"][key]["shape"], f"{path}.{key}" if path else key)
    elif shape["type"] == "list" and isinstance(value, list):
        for item in value:
            yield from _refusals(item, shape["member"]["shape"], f"{path}[]")


def _program_problems(request: Mapping[str, Any]) -> Iterator[str]:
    algorithm = request["AlgorithmSpecification"]
    if not algorithm.get("TrainingImage") and not algorithm.get("AlgorithmName"):
        yield "AlgorithmSpecification: TrainingImage is missing; name an image, for example xgboost"
    for field in ("ContainerEntrypoint", "ContainerArguments"):
        if any("\0" in word for word in algorithm.get(field, ())):
            yield f"AlgorithmSpecification.{field}: no program can be given a NUL character; take it out"


def _environment_problems(request: Mapping[str, Any]) -> Iterator[str]:
    for name, value in request.get("Environment", {}).items():
        if "\0" in value:
            yield f"Environment.{name}: no program can be given a NUL character; take it out"


def _folder_problems(field: str, request: Mapping[str, Any]) -> Iterator[str]:
    """A LocalPath must be a folder that nothing else writes to, and inside what is mirrored: the host's own /opt/ml."""
    given = request.get(field, {}).get("LocalPath")
    if given is None:
        return
    folder = os.path.normpath(given)
    if field == "CheckpointConfig" and is_elsewhere(folder):
        return
    is_below = folder.startswith(f"{OPT_ML}/") and not f"{folder}/".startswith(f"{OPT_ML}/input/")
    if not is_below or folder in RESERVED_FOLDERS or "\0" in folder:
        yield (
            f"{field}.LocalPath {shown(given)} must be a folder of its own below {OPT_ML} and outside {OPT_ML}/input, "
            f"such as {OPT_ML}/{LOCAL_PATHS[field]}"
        )


def is_elsewhere(folder: str) -> bool:
    """Whether checkpoints may be kept there although it is not below /opt/ml: AWS takes any path, here none of the system's."""
    if not folder.startswith("/") or "\0" in folder or f"{OPT_ML}/".startswith(f"{folder.rstrip('/')}/"):
        return False
    return not folder.startswith((f"{OPT_ML}/", "//")) and folder.split("/")[1] not in OF_THE_SYSTEM


LOCAL_PATHS = {
    "CheckpointConfig": "checkpoints",
    "DebugHookConfig": "output/tensors",
    "TensorBoardOutputConfig": "output/tensorboard",
}


def _metric_problems(request: Mapping[str, Any]) -> Iterator[str]:
    from optml.metrics import compile_definition

    for definition in request["AlgorithmSpecification"].get("MetricDefinitions", ()):
        try:
            pattern = compile_definition(MetricDefinition(name=definition["Name"], regex=definition["Regex"]))
        except UserError as error:
            yield str(error)
            continue
        if pattern.groups < 1:
            yield (
                f"AlgorithmSpecification.MetricDefinitions: the Regex of {definition['Name']!r} has no group: "
                "put parentheses around the number, as in loss=([0-9.]+)"
            )


def _spot_problems(request: Mapping[str, Any]) -> Iterator[str]:
    stopping = request["StoppingCondition"]
    max_wait, spot = stopping.get("MaxWaitTimeInSeconds"), request.get("EnableManagedSpotTraining")
    if max_wait is not None and not spot:
        yield "Invalid MaxWaitTimeInSeconds. It is only supported when EnableManagedSpotTraining is set to true"
    if spot and max_wait is None:
        yield "EnableManagedSpotTraining needs StoppingCondition.MaxWaitTimeInSeconds: how long to wait and run, at most"
    max_runtime = stopping["MaxRuntimeInSeconds"]
    if max_runtime > MAX_RUNTIME_SECONDS:
        yield f"StoppingCondition.MaxRuntimeInSeconds must be at most {MAX_RUNTIME_SECONDS} (28 days), got {max_runtime}"
    if max_wait is not None and max_wait < max_runtime:
        yield (
            f"Invalid MaxWaitTimeInSeconds. It must be equal to or greater than MaxRuntimeInSeconds ({max_wait} is less than "
            f"{max_runtime})"
        )
    resources = request["ResourceConfig"]
    if resources.get("KeepAlivePeriodInSeconds") and (spot or resources.get("InstanceGroups")):
        yield "ResourceConfig.KeepAlivePeriodInSeconds cannot be had with managed spot training or with instance groups"


def _resource_problems(request: Mapping[str, Any]) -> Iterator[str]:
    resources = request["ResourceConfig"]
    groups = resources.get("InstanceGroups", [])
    if groups:
        for field in ("InstanceType", "InstanceCount"):
            if resources.get(field) is not None:
                yield f"ResourceConfig: give InstanceGroups or {field}, not both"
        names = [group["InstanceGroupName"] for group in groups]
        for name in sorted({name for name in names if names.count(name) > 1}):
            yield f"ResourceConfig.InstanceGroups: the name {name!r} is there twice"
    counts = [group["InstanceCount"] for group in groups] or [resources["InstanceCount"]]
    for count in counts:
        if count < 1:
            yield f"ResourceConfig.InstanceCount must be at least 1, got {count}"
    if sum(counts) > 1000:
        yield f"ResourceConfig.InstanceCount {sum(counts)} is more than one machine can be: at most 1000"


def _channel_problems(request: Mapping[str, Any]) -> Iterator[str]:
    channels = request.get("InputDataConfig", ())
    names = [channel["ChannelName"] for channel in channels]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield f"InputDataConfig: the channel name {name!r} is there twice; rename one"
    for name in sorted(set(names)):
        if name in (".", "..", "checkpoints"):
            yield f"InputDataConfig: a channel cannot be called {name!r}, which has a meaning of its own; rename it"
        if f"{name}-manifest" in names:
            yield f"InputDataConfig: the channel {name}-manifest would stand where AWS lists the keys of {name}; rename one"
    for channel in channels:
        name = channel["ChannelName"]
        yield from (f"channel {name!r}: {text}" for text in _one_channel_problems(request, channel))
        if _input_mode(request, channel) == "Pipe":
            for other in sorted({other for other in names if re.fullmatch(rf"{re.escape(name)}_\d+", other)}):
                yield f"InputDataConfig: the channel {other} would stand where the pipes of {name} are; rename one"


def _input_mode(request: Mapping[str, Any], channel: Mapping[str, Any]) -> str:
    return str(channel.get("InputMode") or request["AlgorithmSpecification"]["TrainingInputMode"])


def _group_problems(request: Mapping[str, Any]) -> Iterator[str]:
    groups = {group["InstanceGroupName"] for group in request["ResourceConfig"].get("InstanceGroups", ())}
    grouped = []
    for channel in request.get("InputDataConfig", ()):
        wanted = channel["DataSource"].get("S3DataSource", {}).get("InstanceGroupNames", [])
        grouped.append(bool(wanted))
        for name in sorted(set(wanted) - groups):
            yield f"channel {channel['ChannelName']!r}: there is no instance group {name!r} in ResourceConfig.InstanceGroups"
    if any(grouped) and not all(grouped):
        yield "InputDataConfig: if one channel names InstanceGroupNames, every channel must"


def _one_channel_problems(request: Mapping[str, Any], channel: Mapping[str, Any]) -> Iterator[str]:
    mode = _input_mode(request, channel)
    sources = list(channel["DataSource"])
    if len(sources) != 1:
        yield f"DataSource must have exactly one source, S3DataSource or FileSystemDataSource; it has {len(sources)}"
        return
    if channel["ChannelName"] == "model" and mode != "File":
        yield f"the channel `model` of incremental training must be in File mode, not {mode}"
    if mode != "Pipe":
        for field in ("CompressionType", "RecordWrapperType"):
            if channel.get(field, "None") != "None":
                yield f"{field} {channel[field]} is for Pipe mode only; in {mode} mode the container gets the files as they are"
    if system := channel["DataSource"].get("FileSystemDataSource"):
        if mode != "File":
            yield f"a FileSystemDataSource must be in File mode, not {mode}"
        if not system["DirectoryPath"].startswith("/") or "\0" in system["DirectoryPath"]:
            yield (
                f"FileSystemDataSource.DirectoryPath {shown(system['DirectoryPath'])} must be the absolute path of a folder "
                "of this machine"
            )
    source = channel["DataSource"].get("S3DataSource")
    if source is None:
        return
    kind, attributes = source["S3DataType"], source.get("AttributeNames") or []
    if kind not in set(DataType):
        yield f"S3DataType {kind} is refused: give S3Prefix, ManifestFile or AugmentedManifestFile"
    if mode == "FastFile" and kind != "S3Prefix":
        yield f"FastFile mode needs S3DataType S3Prefix, not {kind}"
    if kind == "AugmentedManifestFile" and mode != "Pipe":
        yield f"an AugmentedManifestFile must be in Pipe mode, not {mode}"
    if kind == "AugmentedManifestFile" and not attributes:
        yield "an AugmentedManifestFile needs AttributeNames: what to stream of each line, in order"
    if attributes and kind != "AugmentedManifestFile":
        yield f"AttributeNames go with an AugmentedManifestFile only, not with {kind}"


# Which fields a rule reads: it is asked if they have the right shapes.
RULES: tuple[tuple[frozenset[str], Callable[[Mapping[str, Any]], Iterator[str]]], ...] = (
    (frozenset({"AlgorithmSpecification"}), _program_problems),
    (frozenset({"AlgorithmSpecification"}), _metric_problems),
    (frozenset({"Environment"}), _environment_problems),
    (frozenset({"StoppingCondition", "ResourceConfig", "EnableManagedSpotTraining"}), _spot_problems),
    (frozenset({"ResourceConfig"}), _resource_problems),
    (frozenset({"InputDataConfig", "AlgorithmSpecification"}), _channel_problems),
    (frozenset({"InputDataConfig", "ResourceConfig"}), _group_problems),
    *((frozenset({field}), functools.partial(_folder_problems, field)) for field in LOCAL_PATHS),
)


# Parsing: the whole way.


def parse(request: Mapping[str, Any], *, options: LocalOptions, base_dir: Path) -> TrainingJob:
    """Validate, complete and convert a request. ValidationError has every problem that could be found at once."""
    full = complete(request)
    shape = service_model()[REQUEST_SHAPE]
    problems = list(key_violations(full, shape, ""))
    sound: dict[str, Any] = {}  # fields that are of the right shape
    for field, value in full.items():
        if field in shape["members"]:
            found = list(violations(value, shape["members"][field]["shape"], field, joined("", field)))
            problems += found
            if not found:
                sound[field] = value
    broken = full.keys() - sound.keys()
    for reads, rule in RULES:
        if not reads & broken:
            problems += rule(full)
    problems += _uri_problems(sound)
    problems += _refusals(full)
    if problems:
        raise ValidationError(list(dict.fromkeys(problems)))
    _make_uris_whole(full, base_dir)
    return _convert(full, options)


REQUIRED = (
    "TrainingJobName", "RoleArn", "AlgorithmSpecification.TrainingInputMode", "OutputDataConfig.S3OutputPath",
    "ResourceConfig", "StoppingCondition",
)  # fmt: skip


def what_aws_misses(request: Mapping[str, Any]) -> list[str]:
    """Fields that AWS demands of an ordinary training job and that `complete` will fill in."""
    missing = []
    for path in REQUIRED:
        field, _, member = path.partition(".")
        value = request.get(field)
        if not value or (member and isinstance(value, Mapping) and not value.get(member)):
            missing.append(path)
    return missing


def complete(request: Mapping[str, Any]) -> dict[str, Any]:
    """A copy with the defaults that AWS would not fill in; only where nothing is there."""
    if not isinstance(request, Mapping):
        raise ValidationError(list(violations(request, REQUEST_SHAPE)))
    full: dict[str, Any] = copied(request)
    algorithm = full.setdefault("AlgorithmSpecification", {})
    if isinstance(algorithm, dict):
        algorithm.setdefault("TrainingInputMode", "File")
        if (
            not algorithm.get("TrainingImage")
            and algorithm.get("ContainerEntrypoint")
            and "AlgorithmName" not in algorithm
        ):
            algorithm["TrainingImage"] = "python"
    full.setdefault("TrainingJobName", make_name(algorithm))
    full.setdefault("RoleArn", DEFAULT_ROLE)
    output = full.setdefault("OutputDataConfig", {})
    if isinstance(output, dict):
        output.setdefault("S3OutputPath", str(default_output_dir()))
    resources = full.setdefault("ResourceConfig", {})
    if isinstance(resources, dict):
        if not resources.get("InstanceGroups"):
            resources.setdefault("InstanceType", DEFAULT_INSTANCE_TYPE)
            resources.setdefault("InstanceCount", 1)
        resources.setdefault("VolumeSizeInGB", 30)
    stopping = full.setdefault("StoppingCondition", {})
    if isinstance(stopping, dict):
        stopping.setdefault("MaxRuntimeInSeconds", min(86400, _whole(stopping.get("MaxWaitTimeInSeconds"), 86400)))
    return full


def _whole(value: Any, default: int) -> int:
    return value if isinstance(value, int) and value >= 1 else default


def _make_uris_whole(full: dict[str, Any], base_dir: Path) -> None:
    for channel in full.get("InputDataConfig", ()):
        source = channel["DataSource"].get("S3DataSource")
        if source:
            source["S3Uri"] = whole_uri(source["S3Uri"], base_dir)
            if source["S3DataType"] == "S3Prefix" and is_local(source["S3Uri"]) and _is_folder(source["S3Uri"]):
                source["S3Uri"] = source["S3Uri"].removesuffix("/") + "/"  # a folder, not its neighbours of a like name
    for field, name in OUTPUT_URIS:
        if name in full.get(field, ()):
            whole = whole_uri(full[field][name], base_dir)
            full[field][name] = whole if whole == "file:///" else whole.rstrip("/")
    if full.get("HyperParameters"):
        full["HyperParameters"] = with_whole_source(full["HyperParameters"], base_dir)


def _is_folder(uri: str) -> bool:
    with contextlib.suppress(OSError, ValueError):  # a name that is too long, a folder that may not be entered
        return Path(uri.removeprefix("file://")).is_dir()
    return False


def _convert(full: dict[str, Any], options: LocalOptions) -> TrainingJob:
    name, algorithm = full["TrainingJobName"], full["AlgorithmSpecification"]
    account = full["RoleArn"].split(":")[4]
    output = full["OutputDataConfig"]
    stopping = full["StoppingCondition"]
    checkpoint = full.get("CheckpointConfig")
    return TrainingJob(
        name=name,
        arn=f"arn:aws:sagemaker:{region()}:{account}:training-job/{name.lower()}",
        region=region(),
        role_arn=full["RoleArn"],
        image=algorithm["TrainingImage"],
        input_mode=InputMode(algorithm["TrainingInputMode"]),
        entrypoint=tuple(algorithm.get("ContainerEntrypoint") or ()),
        arguments=tuple(algorithm.get("ContainerArguments") or ()),
        output_uri=output["S3OutputPath"],
        output_compressed=output.get("CompressionType", "GZIP") != "NONE",
        instance_groups=_instance_groups(full["ResourceConfig"]),
        hyperparameters=full.get("HyperParameters") or {},
        environment=full.get("Environment") or {},
        channels=tuple(_channel(channel, full) for channel in full.get("InputDataConfig") or ()),
        metric_definitions=tuple(
            MetricDefinition(name=each["Name"], regex=each["Regex"])
            for each in algorithm.get("MetricDefinitions") or ()
        ),
        stopping=StoppingCondition(
            max_runtime_seconds=stopping["MaxRuntimeInSeconds"],
            max_wait_seconds=stopping.get("MaxWaitTimeInSeconds"),
        ),
        checkpoint=None
        if not checkpoint
        else CheckpointConfig(
            uri=checkpoint["S3Uri"],
            local_path=os.path.normpath(checkpoint.get("LocalPath", f"{OPT_ML}/{LOCAL_PATHS['CheckpointConfig']}")),
        ),
        tensorboard=_uploaded(full, "TensorBoardOutputConfig", "tensorboard-output"),
        debug_hook=_uploaded(full, "DebugHookConfig", "debug-output"),
        spot=bool(full.get("EnableManagedSpotTraining")),
        maximum_retries=(full.get("RetryStrategy") or {}).get("MaximumRetryAttempts", 0),
        network_isolation=bool(full.get("EnableNetworkIsolation")),
        metrics_time_series=bool(algorithm.get("EnableSageMakerMetricsTimeSeries")),
        request=full,
        options=options,
        warnings=tuple(_warnings(full)),
    )


def _instance_groups(resources: Mapping[str, Any]) -> tuple[InstanceGroup, ...]:
    groups = resources.get("InstanceGroups") or [
        {**resources, "InstanceGroupName": HOMOGENEOUS_GROUP},
    ]
    return tuple(
        InstanceGroup(
            name=group["InstanceGroupName"], instance_type=group["InstanceType"], instance_count=group["InstanceCount"]
        )
        for group in groups
    )


def _channel(channel: Mapping[str, Any], full: Mapping[str, Any]) -> Channel:
    source = channel["DataSource"].get("S3DataSource")
    data: ObjectSource | FileSystemSource
    if source:
        data = ObjectSource(
            uri=source["S3Uri"],
            data_type=DataType(source["S3DataType"]),
            distribution=Distribution(source.get("S3DataDistributionType") or "FullyReplicated"),
            attribute_names=tuple(source.get("AttributeNames") or ()),
            instance_group_names=tuple(source.get("InstanceGroupNames") or ()),
        )
    else:
        system = channel["DataSource"]["FileSystemDataSource"]
        data = FileSystemSource(
            directory=Path(system["DirectoryPath"]),
            read_only=system["FileSystemAccessMode"] == "ro",
            file_system_id=system["FileSystemId"],
            file_system_type=system["FileSystemType"],
        )
    shuffle = channel.get("ShuffleConfig")
    return Channel(
        name=channel["ChannelName"],
        source=data,
        input_mode=InputMode(_input_mode(full, channel)),
        content_type=channel.get("ContentType"),
        compression=Compression(channel.get("CompressionType") or "None"),
        record_wrapper=RecordWrapper(channel.get("RecordWrapperType") or "None"),
        shuffle_seed=shuffle["Seed"] if shuffle else None,
    )


def _uploaded(full: Mapping[str, Any], field: str, folder_name: str) -> UploadedFolder | None:
    given = full.get(field)
    if not given:
        return None
    uri = f"{given['S3OutputPath']}/{full['TrainingJobName']}/{folder_name}"
    return UploadedFolder(
        local_path=os.path.normpath(given.get("LocalPath", f"{OPT_ML}/{LOCAL_PATHS[field]}")), uri=uri
    )


def _warnings(full: Mapping[str, Any]) -> Iterator[str]:
    for field in FIELDS:
        value: Any = full
        for step in field.path.split("."):
            value = value.get(step) if isinstance(value, dict) else None
        if field.warn and value not in (*field.harmless, None, "", {}):
            yield f"{field.path}: {field.note}"
    if full.get("EnableManagedSpotTraining") and not full.get("CheckpointConfig"):
        yield "EnableManagedSpotTraining without CheckpointConfig: in AWS an interruption would start this job from zero"
