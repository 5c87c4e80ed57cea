"""A CreateTrainingJob request -> a TrainingJob. AWS's spelling stops here.

Shapes, lengths, patterns and enums come from botocore's own service model, so they are AWS's and stay current; the words are
those that AWS answers with. Then come the rules between fields, and the table of what optml does with each.
"""

import contextlib
import copy
import datetime
import difflib
import functools
import gzip
import importlib.util
import json
import os
import re
import secrets
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from optml.errors import UserError, ValidationError
from optml.jobdir import default_output_dir
from optml.request_fields import REFUSED, URI_FIELDS, field_of
from optml.spec import (
    HOMOGENEOUS_GROUP,
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

REQUEST_SHAPE = "CreateTrainingJobRequest"
DEFAULT_ROLE = "arn:aws:iam::000000000000:role/optml"
DEFAULT_REGION = "us-east-1"
DEFAULT_INSTANCE_TYPE = "ml.m5.large"
SHOWN_CHARACTERS = 100  # of a bad value
CONTENT_TYPES = {
    ".csv": "text/csv",
    ".libsvm": "text/libsvm",
    ".svm": "text/libsvm",
    ".parquet": "application/x-parquet",
}
RESERVED_FOLDERS = tuple(
    f"{OPT_ML}{name}" for name in ("", "/input", "/model", "/output", "/code", "/input/data", "/output/data")
)


# Loading: bytes -> a dict.


def load_request(source: Mapping[str, Any] | str | os.PathLike[str], base_dir: Path) -> dict[str, Any]:
    """A request from a dict, a JSON or YAML file, or `-` (standard input). UserError says where a file is wrong."""
    if isinstance(source, Mapping):
        return copy.deepcopy(dict(source))
    name = os.fspath(source)
    try:
        text = sys.stdin.read() if name == "-" else (base_dir / Path(name).expanduser()).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{name} is not UTF-8 text: {error}") from None
    except OSError as error:
        raise UserError(f"cannot read the request {name}: {error.strerror}") from error
    is_yaml = name.endswith((".yaml", ".yml"))
    content = _load_yaml(text, name) if is_yaml else _load_json(text, name)
    if not isinstance(content, dict):
        raise UserError(f"{name} must hold one object, the CreateTrainingJob request; it holds {_kind(content)}")
    return content


def _load_json(text: str, name: str) -> Any:
    def no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                raise UserError(f"{name}: the key {key!r} is there twice in one object; keep one")
            found[key] = value
        return found

    def no_constant(word: str) -> Any:
        raise UserError(f"{name}: {word} is not JSON")

    try:
        return json.loads(text, object_pairs_hook=no_duplicates, parse_constant=no_constant)
    except json.JSONDecodeError as error:
        raise UserError(f"{name}, line {error.lineno}, column {error.colno}: not JSON: {error.msg}") from None
    except (RecursionError, ValueError) as error:
        raise UserError(f"{name}: not a request: {error}") from None


def _load_yaml(text: str, name: str) -> Any:
    import yaml

    class Loader(yaml.SafeLoader):
        """Safe, and with no duplicate keys."""

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            keys = [self.construct_object(key, deep=True) for key, _ in node.value]
            for key, (key_node, _) in zip(keys, node.value, strict=True):
                if keys.count(key) > 1:
                    line = key_node.start_mark.line + 1
                    raise UserError(f"{name}, line {line}: the key {key!r} is there twice in one object; keep one")
            return super().construct_mapping(node, deep)

    try:
        return yaml.load(text, Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise UserError(f"{name}{where}: not YAML: {error.problem}") from None
    except (yaml.YAMLError, RecursionError, ValueError, TypeError) as error:
        raise UserError(f"{name}: not YAML: {error}") from None


# Shortcuts: keywords -> the same dict.


def request_from_shortcuts(
    request: Mapping[str, Any] | None = None,
    *,
    base_dir: Path,
    image: str | None = None,
    name: str | None = None,
    channels: Mapping[str, Any] | None = None,
    hyperparameters: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] | None = None,
    output: str | os.PathLike[str] | None = None,
    entrypoint: Sequence[str] | None = None,
    arguments: Sequence[str] | None = None,
    metrics: Mapping[str, str] | None = None,
    instance_type: str | None = None,
    instance_count: int | None = None,
    input_mode: str | None = None,
    max_runtime: int | None = None,
    max_wait: int | None = None,
    spot: bool | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    retries: int | None = None,
    role: str | None = None,
    network_isolation: bool | None = None,
    **unknown: Any,
) -> dict[str, Any]:
    """Lay keywords over a request. What is not a string in `hyperparameters` is written as JSON, as the SDK does.

    A channel is a path or URI, or a dict with `uri` and any of content_type, input_mode, distribution, compression,
    record_wrapper, shuffle_seed, data_type, attribute_names. UserError for a keyword that does not exist.
    """
    if unknown:
        known = [key for key in request_from_shortcuts.__kwdefaults__ or {} if key != "unknown"]
        raise UserError("; ".join(f"there is no option {key!r}{_near(key, known)}" for key in sorted(unknown)))
    full: dict[str, Any] = copy.deepcopy(dict(request or {}))

    def put(*path: str, value: Any) -> None:
        if value is None:
            return
        place = full
        for step in path[:-1]:
            place = place.setdefault(step, {})
            if not isinstance(place, dict):
                return  # validation says what is wrong with it
        place[path[-1]] = value

    def update(field: str, values: Mapping[str, Any] | None) -> None:
        if values and isinstance(full.setdefault(field, {}), dict):
            full[field].update(values)

    put("AlgorithmSpecification", "TrainingImage", value=image)
    put("AlgorithmSpecification", "TrainingInputMode", value=input_mode)
    put("AlgorithmSpecification", "ContainerEntrypoint", value=list(map(str, entrypoint)) if entrypoint else None)
    put("AlgorithmSpecification", "ContainerArguments", value=list(map(str, arguments)) if arguments else None)
    if metrics:
        put(
            "AlgorithmSpecification",
            "MetricDefinitions",
            value=[{"Name": key, "Regex": expression} for key, expression in metrics.items()],
        )
    put("TrainingJobName", value=name)
    put("RoleArn", value=role)
    update("HyperParameters", {key: _as_text(value) for key, value in (hyperparameters or {}).items()})
    update("Environment", environment)
    put("OutputDataConfig", "S3OutputPath", value=None if output is None else os.fspath(output))
    put("ResourceConfig", "InstanceType", value=instance_type)
    put("ResourceConfig", "InstanceCount", value=instance_count)
    put("StoppingCondition", "MaxRuntimeInSeconds", value=max_runtime)
    put("StoppingCondition", "MaxWaitTimeInSeconds", value=max_wait)
    put("EnableManagedSpotTraining", value=spot)
    put("EnableNetworkIsolation", value=network_isolation)
    put("CheckpointConfig", "S3Uri", value=None if checkpoint is None else os.fspath(checkpoint))
    put("RetryStrategy", "MaximumRetryAttempts", value=retries or None)
    for channel_name, given in (channels or {}).items():
        _put_channel(full, channel_name, given, base_dir=base_dir)
    return full


CHANNEL_KEYS = {
    "content_type": ("ContentType",),
    "input_mode": ("InputMode",),
    "compression": ("CompressionType",),
    "record_wrapper": ("RecordWrapperType",),
    "shuffle_seed": ("ShuffleConfig", "Seed"),
    "uri": ("DataSource", "S3DataSource", "S3Uri"),
    "data_type": ("DataSource", "S3DataSource", "S3DataType"),
    "distribution": ("DataSource", "S3DataSource", "S3DataDistributionType"),
    "attribute_names": ("DataSource", "S3DataSource", "AttributeNames"),
}


def _put_channel(full: dict[str, Any], name: str, given: Any, *, base_dir: Path) -> None:
    options = dict(given) if isinstance(given, Mapping) else {"uri": os.fspath(given)}
    listed = full.setdefault("InputDataConfig", [])
    if not isinstance(listed, list):
        return
    channel = next((each for each in listed if isinstance(each, dict) and each.get("ChannelName") == name), None)
    if channel is None:
        if "uri" not in options:
            raise UserError(f"channel {name!r} has no source: give --channel {name}=PATH, or a dict with 'uri'")
        channel = {"ChannelName": name, "DataSource": {"S3DataSource": {"S3DataType": "S3Prefix"}}}
        listed.append(channel)
        if guessed := _guess_content_type(os.fspath(options["uri"]), base_dir):
            options.setdefault("content_type", guessed)
    for key, value in options.items():
        if key not in CHANNEL_KEYS:
            raise UserError(f"channel {name!r}: there is no option {key!r}{_near(key, list(CHANNEL_KEYS))}")
        if value is None:
            continue
        place = channel
        for step in CHANNEL_KEYS[key][:-1]:
            place = place.setdefault(step, {})
        place[CHANNEL_KEYS[key][-1]] = os.fspath(value) if key == "uri" else value


def _guess_content_type(uri: str, base_dir: Path) -> str | None:
    """By the extension that all files of a local channel share. Only shortcuts guess; a request says what it means."""
    if "://" in uri and not uri.startswith("file://"):
        return CONTENT_TYPES.get(Path(uri).suffix)
    path = base_dir / Path(uri.removeprefix("file://")).expanduser()
    with contextlib.suppress(OSError):
        names = os.listdir(path) if path.is_dir() else [path.name]
        suffixes = {Path(name).suffix for name in names if not name.startswith((".", "_"))}
        if len(suffixes) == 1:
            return CONTENT_TYPES.get(suffixes.pop())
    return None


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _near(word: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else ""


# Validation against botocore's model.


@functools.cache
def service_model() -> dict[str, Any]:
    """botocore's shapes of the SageMaker API, read without importing botocore, which takes ten times as long."""
    found = importlib.util.find_spec("botocore")
    if found is None or found.origin is None:
        raise UserError("botocore is missing: pip install boto3")
    newest = max((Path(found.origin).parent / "data" / "sagemaker").iterdir())
    file = newest / "service-2.json.gz"
    content = gzip.decompress(file.read_bytes()) if file.exists() else (newest / "service-2.json").read_bytes()
    shapes: dict[str, Any] = json.loads(content)["shapes"]
    return shapes


@functools.cache
def _pattern(pattern: str) -> "re.Pattern[str]":
    return re.compile(pattern)


def violations(value: Any, shape_name: str, path: str = "", aws_path: str = "") -> Iterator[str]:
    """Everything in which a value departs from a shape, in AWS's words. `path` is ours (A.B[].C), `aws_path` theirs."""
    shape = service_model()[shape_name]
    kind = shape["type"]
    expected = {"structure": dict, "list": list, "map": dict, "string": str, "boolean": bool}.get(kind)
    where = aws_path or "the request"
    if expected is not None and not isinstance(value, expected):
        yield f"Value {_shown(value)} at '{where}' must be {TYPE_WORDS[kind]}, got {_kind(value)}{_type_hint(value, kind)}"
        return
    if kind in ("integer", "long") and (isinstance(value, bool) or not isinstance(value, int)):
        yield f"Value {_shown(value)} at '{where}' must be a whole number, got {_kind(value)}"
        return
    if kind == "structure":
        yield from _structure_violations(value, shape, path, aws_path)
    elif kind == "list":
        yield from _length_violations(value, shape, where)
        for number, item in enumerate(value, start=1):
            yield from violations(item, shape["member"]["shape"], f"{path}[]", f"{aws_path}.{number}.member")
    elif kind == "map":
        yield from _length_violations(value, shape, where)
        yield from _map_violations(value, shape, where)
    elif kind == "string":
        if path in URI_FIELDS and is_local(value):
            return
        yield from _constraint_violations(value, shape, where)
    elif kind in ("integer", "long"):
        yield from _constraint_violations(value, shape, where)


TYPE_WORDS = {
    "structure": "an object",
    "list": "a list",
    "map": "an object",
    "string": "a string",
    "boolean": "true or false",
}


def _structure_violations(value: Mapping[str, Any], shape: Any, path: str, aws_path: str) -> Iterator[str]:
    members = shape["members"]
    for key in value:
        if key not in members:
            place = f" in '{aws_path}'" if aws_path else ""
            yield f"Unknown field {key!r}{place}{_near(str(key), list(members))}"
    for key in shape.get("required", ()):
        if value.get(key) is None:
            yield f"Value null at '{_joined(aws_path, key)}' failed to satisfy constraint: Member must not be null"
    for key, item in value.items():
        if key in members and item is not None:
            yield from violations(item, members[key]["shape"], f"{path}.{key}" if path else key, _joined(aws_path, key))


def _joined(aws_path: str, key: str) -> str:
    name = key[:1].lower() + key[1:]
    return f"{aws_path}.{name}" if aws_path else name


def _map_violations(value: Mapping[Any, Any], shape: Any, where: str) -> Iterator[str]:
    shapes = service_model()
    for key, item in value.items():
        if not isinstance(key, str):
            yield f"Key {_shown(key)} at '{where}' must be a string, got {_kind(key)}: quote it"
            continue
        if not isinstance(item, str):
            yield f"Value {_shown(item)} at '{where}.{key}' must be a string, got {_kind(item)}{_type_hint(item, 'string')}"
            continue
        for part, text, of in (("key", key, shape["key"]), ("value", item, shape["value"])):
            problems = [
                each.partition("constraint: ")[2] for each in _constraint_violations(text, shapes[of["shape"]], "")
            ]
            if problems:
                yield (
                    f"Value {_shown({key: item})} at '{where}' failed to satisfy constraint: "
                    f"Map {part} must satisfy constraint: [{', '.join(problems)}]"
                )


def _length_violations(value: Any, shape: Any, where: str) -> Iterator[str]:
    for bound, words, broken in (
        ("max", "less", len(value) > shape.get("max", sys.maxsize)),
        ("min", "greater", len(value) < shape.get("min", 0)),
    ):
        if broken:
            yield (
                f"Value {_shown(value)} at '{where}' failed to satisfy constraint: "
                f"Member must have length {words} than or equal to {shape[bound]}"
            )


def _constraint_violations(value: Any, shape: Any, where: str) -> Iterator[str]:
    begin = f"Value {_shown(value)} at '{where}' failed to satisfy constraint: "
    if isinstance(value, str):
        yield from _length_violations(value, shape, where)
        pattern = shape.get("pattern")
        if pattern is not None and not _pattern(pattern).fullmatch(value):
            yield f"{begin}Member must satisfy regular expression pattern: {pattern}"
        if "enum" in shape and value not in shape["enum"]:
            yield f"{begin}Member must satisfy enum value set: [{', '.join(shape['enum'])}]{_near(value, shape['enum'])}"
        return
    if value < shape.get("min", value):
        yield f"{begin}Member must have value greater than or equal to {shape['min']}"
    if value > shape.get("max", value):
        yield f"{begin}Member must have value less than or equal to {shape['max']}"


def _shown(value: Any) -> str:
    text = str(value) if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
    return f"'{text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + '...'}'"


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    names = {
        bool: "true or false",
        int: "a number",
        float: "a number",
        str: "a string",
        list: "a list",
        dict: "an object",
    }
    return names.get(type(value), type(value).__name__)


def _type_hint(value: Any, kind: str) -> str:
    if kind == "string" and isinstance(value, bool | int | float | datetime.date):
        return ": quote it"
    return ""


# Rules between fields.


def is_local(uri: str) -> bool:
    """A file:// URI, or a path of this machine."""
    return bool(uri) and ("://" not in uri or uri.startswith("file://"))


def whole_uri(uri: str, base_dir: Path) -> str:
    """A path -> file:// and its absolute path, verbatim: a slash at the end is kept, links are not resolved."""
    if not is_local(uri):
        return uri
    path = uri.removeprefix("file://")
    absolute = os.path.normpath(base_dir / Path(path).expanduser())
    slash = "/" if path.endswith("/") and absolute != "/" else ""
    return f"file://{absolute}{slash}"


def _uri_problems(request: Mapping[str, Any]) -> Iterator[str]:
    for path, uri in _uris(request):
        if uri.startswith("https://"):
            yield f"{path} {uri!r}: give the s3:// URI of the same objects (s3://bucket/key)"
        elif uri.startswith("s3://") and not uri.removeprefix("s3://").partition("/")[0]:
            yield f"{path} {uri!r} has no bucket: s3://bucket/prefix"
        elif uri.startswith("file://") and not uri.startswith("file:///"):
            yield f"{path} {uri!r}: a file:// URI has three slashes before its absolute path"
        elif "\0" in uri or "\n" in uri:
            yield f"{path} {uri!r}: a path cannot hold a NUL or a newline"


def _uris(request: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for number, channel in enumerate(request.get("InputDataConfig", ()), start=1):
        source = channel["DataSource"].get("S3DataSource")
        if source:
            yield f"InputDataConfig[{number}].DataSource.S3DataSource.S3Uri", source["S3Uri"]
    for field, name in (
        ("OutputDataConfig", "S3OutputPath"),
        ("CheckpointConfig", "S3Uri"),
        ("DebugHookConfig", "S3OutputPath"),
        ("TensorBoardOutputConfig", "S3OutputPath"),
    ):
        if request.get(field):
            yield f"{field}.{name}", request[field][name]


def _refusals(value: Any, path: str = "") -> Iterator[str]:
    """By the table: fields that are there and ask for something that optml does not do."""
    if path:
        field = field_of(path)
        if field is not None and field.verdict == REFUSED and value is not None and value not in field.harmless:
            yield f"{path} is refused: {field.note}"
            return
    if isinstance(value, dict) and path not in ("HyperParameters", "Environment"):
        for key, item in value.items():
            yield from _refusals(item, f"{path}.{key}" if path else key)
    elif isinstance(value, list):
        for item in value:
            yield from _refusals(item, f"{path}[]")


def _cross_field_problems(request: Mapping[str, Any]) -> Iterator[str]:
    algorithm = request["AlgorithmSpecification"]
    if algorithm.get("TrainingImage") and algorithm.get("AlgorithmName"):
        yield "AlgorithmSpecification: give TrainingImage or AlgorithmName, not both"
    if not algorithm.get("TrainingImage") and not algorithm.get("AlgorithmName"):
        yield "AlgorithmSpecification: TrainingImage is missing; name an image, for example xgboost"
    yield from _metric_problems(algorithm.get("MetricDefinitions") or ())
    yield from _spot_problems(request)
    yield from _resource_problems(request)
    yield from _channel_problems(request)
    checkpoint = request.get("CheckpointConfig")
    if checkpoint and checkpoint.get("LocalPath") is not None:
        folder = os.path.normpath(checkpoint["LocalPath"])
        if not folder.startswith(f"{OPT_ML}/") or folder in RESERVED_FOLDERS:
            yield (
                f"CheckpointConfig.LocalPath {checkpoint['LocalPath']!r} must be a folder of its own below {OPT_ML}, "
                f"such as {OPT_ML}/checkpoints"
            )


def _metric_problems(definitions: Sequence[Mapping[str, str]]) -> Iterator[str]:
    from optml.metrics import compile_definition

    for definition in definitions:
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
        yield "EnableManagedSpotTraining needs StoppingCondition.MaxWaitTimeInSeconds"
    max_runtime = stopping.get("MaxRuntimeInSeconds", 86400)
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
    groups = resources.get("InstanceGroups") or []
    if groups:
        for field in ("InstanceType", "InstanceCount"):
            if resources.get(field) is not None:
                yield f"ResourceConfig: give InstanceGroups or {field}, not both"
        names = [group["InstanceGroupName"] for group in groups]
        for name in sorted({name for name in names if names.count(name) > 1}):
            yield f"ResourceConfig.InstanceGroups: the name {name!r} is there twice"
    for count in [group["InstanceCount"] for group in groups] or [resources.get("InstanceCount", 1)]:
        if count < 1:
            yield f"ResourceConfig.InstanceCount must be at least 1, got {count}"
        elif count > 1000:
            yield f"ResourceConfig.InstanceCount {count} is more than one machine can be: at most 1000"


def _channel_problems(request: Mapping[str, Any]) -> Iterator[str]:
    channels = request.get("InputDataConfig") or []
    names = [channel["ChannelName"] for channel in channels]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield f"InputDataConfig: the channel name {name!r} is there twice"
    for name in sorted(set(names)):
        if set(name) <= {"."} or name == "checkpoints":
            yield f"InputDataConfig: a channel cannot be called {name!r}; AWS keeps that name for itself"
        if f"{name}-manifest" in names:
            yield f"InputDataConfig: the channel {name}-manifest would stand where AWS lists the keys of {name}; rename one"
    groups = {group["InstanceGroupName"] for group in request["ResourceConfig"].get("InstanceGroups") or ()}
    grouped = []
    for channel in channels:
        yield from (f"channel {channel['ChannelName']!r}: {text}" for text in _one_channel_problems(request, channel))
        wanted = (channel["DataSource"].get("S3DataSource") or {}).get("InstanceGroupNames") or []
        grouped.append(bool(wanted))
        for name in sorted(set(wanted) - groups):
            yield f"channel {channel['ChannelName']!r}: there is no instance group {name!r} in ResourceConfig.InstanceGroups"
    if any(grouped) and not all(grouped):
        yield "InputDataConfig: if one channel names InstanceGroupNames, every channel must"


def _one_channel_problems(request: Mapping[str, Any], channel: Mapping[str, Any]) -> Iterator[str]:
    mode = channel.get("InputMode") or request["AlgorithmSpecification"]["TrainingInputMode"]
    sources = [name for name, source in channel["DataSource"].items() if source is not None]
    if len(sources) != 1:
        yield f"DataSource must have exactly one source, S3DataSource or FileSystemDataSource; it has {len(sources)}"
        return
    if channel["ChannelName"] == "model" and mode != "File":
        yield f"the channel `model` of incremental training must be in File mode, not {mode}"
    if mode != "Pipe":
        for field in ("CompressionType", "RecordWrapperType"):
            if channel.get(field, "None") != "None":
                yield f"{field} {channel[field]} is for Pipe mode only; in {mode} mode the container gets the files as they are"
    source = channel["DataSource"].get("S3DataSource")
    if source is None:
        if mode != "File":
            yield f"a FileSystemDataSource must be in File mode, not {mode}"
        return
    kind, attributes = source["S3DataType"], source.get("AttributeNames") or []
    if kind not in set(DataType):
        yield f"S3DataType {kind} is refused: optml knows S3Prefix, ManifestFile and AugmentedManifestFile"
    if mode == "FastFile" and kind != "S3Prefix":
        yield f"FastFile mode needs S3DataType S3Prefix, not {kind}"
    if kind == "AugmentedManifestFile" and mode != "Pipe":
        yield f"an AugmentedManifestFile must be in Pipe mode, not {mode}"
    if kind == "AugmentedManifestFile" and not attributes:
        yield "an AugmentedManifestFile needs AttributeNames: what to stream of each line, in order"
    if attributes and kind != "AugmentedManifestFile":
        yield f"AttributeNames go with an AugmentedManifestFile only, not with {kind}"


# Parsing: the whole way.


def parse(request: Mapping[str, Any], *, options: LocalOptions, base_dir: Path) -> TrainingJob:
    """Validate, complete and convert a request. ValidationError has every problem that could be found at once."""
    full = complete(request)
    problems = list(violations(full, REQUEST_SHAPE))
    refused = list(_refusals(full))
    if not problems:  # what follows relies on shapes
        problems += [text for text in _cross_field_problems(full) if not refused or "AlgorithmName" not in text]
        problems += _uri_problems(full)
    problems += refused
    if problems:
        raise ValidationError(problems)
    _make_uris_whole(full, base_dir)
    return _convert(full, options)


def complete(request: Mapping[str, Any]) -> dict[str, Any]:
    """A copy with the defaults that AWS would not fill in; only where nothing is there."""
    full = {key: copy.deepcopy(value) for key, value in request.items() if value is not None}
    algorithm = full.setdefault("AlgorithmSpecification", {})
    if isinstance(algorithm, dict):
        algorithm.setdefault("TrainingInputMode", "File")
        if (
            not algorithm.get("TrainingImage")
            and algorithm.get("ContainerEntrypoint")
            and "AlgorithmName" not in algorithm
        ):
            algorithm["TrainingImage"] = "python"
    full.setdefault("TrainingJobName", _make_name(algorithm))
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
    for empty in ("InputDataConfig", "Tags"):
        if full.get(empty) == []:
            del full[empty]
    return full


def _whole(value: Any, default: int) -> int:
    return value if isinstance(value, int) and value >= 1 else default


def _make_name(algorithm: Any) -> str:
    image = algorithm.get("TrainingImage") if isinstance(algorithm, dict) else None
    base = re.sub(r"[^a-zA-Z0-9]+", "-", str(image or "job").rpartition("/")[2].partition(":")[0]).strip("-") or "job"
    return f"{base[:35].rstrip('-')}-{datetime.datetime.now():%Y-%m-%d-%H-%M-%S}-{secrets.token_hex(2)}"


def _make_uris_whole(full: dict[str, Any], base_dir: Path) -> None:
    for channel in full.get("InputDataConfig", ()):
        source = channel["DataSource"].get("S3DataSource")
        if source:
            source["S3Uri"] = whole_uri(source["S3Uri"], base_dir)
            path = Path(source["S3Uri"].removeprefix("file://"))
            if source["S3DataType"] == "S3Prefix" and is_local(source["S3Uri"]) and path.is_dir():
                source["S3Uri"] = source["S3Uri"].rstrip("/") + "/"  # a folder, and not its neighbours of a like name
    for field, name in (
        ("OutputDataConfig", "S3OutputPath"),
        ("CheckpointConfig", "S3Uri"),
        ("DebugHookConfig", "S3OutputPath"),
        ("TensorBoardOutputConfig", "S3OutputPath"),
        ("ProfilerConfig", "S3OutputPath"),
    ):
        if name in (full.get(field) or {}):
            full[field][name] = whole_uri(full[field][name], base_dir).rstrip("/") or "/"


def region() -> str:
    return os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or DEFAULT_REGION


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
        channels=tuple(_channel(channel, algorithm) for channel in full.get("InputDataConfig") or ()),
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
            local_path=os.path.normpath(checkpoint.get("LocalPath") or f"{OPT_ML}/checkpoints"),
        ),
        tensorboard=_uploaded(full, "TensorBoardOutputConfig", "output/tensorboard", "tensorboard-output"),
        debug_hook=_uploaded(full, "DebugHookConfig", "output/tensors", "debug-output"),
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


def _channel(channel: Mapping[str, Any], algorithm: Mapping[str, Any]) -> Channel:
    source = channel["DataSource"].get("S3DataSource")
    mode = channel.get("InputMode") or algorithm["TrainingInputMode"]
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
        input_mode=InputMode(mode),
        content_type=channel.get("ContentType"),
        compression=Compression(channel.get("CompressionType") or "None"),
        record_wrapper=RecordWrapper(channel.get("RecordWrapperType") or "None"),
        shuffle_seed=shuffle["Seed"] if shuffle else None,
    )


def _uploaded(full: Mapping[str, Any], field: str, default_folder: str, folder_name: str) -> UploadedFolder | None:
    given = full.get(field)
    if not given:
        return None
    uri = f"{given['S3OutputPath']}/{full['TrainingJobName']}/{folder_name}"
    return UploadedFolder(local_path=given.get("LocalPath") or f"{OPT_ML}/{default_folder}", uri=uri)


def _warnings(full: Mapping[str, Any]) -> Iterator[str]:
    for key in full:
        for path in [key, *(f"{key}.{below}" for below in full[key])] if isinstance(full[key], dict) else [key]:
            field = field_of(path)
            value = full[key] if path == key else full[key][path.partition(".")[2]]
            if field is not None and field.path == path and field.warn and value not in (*field.harmless, None, "", {}):
                yield f"{path}: {field.note}"
    if full.get("EnableManagedSpotTraining") and not full.get("CheckpointConfig"):
        yield "EnableManagedSpotTraining without CheckpointConfig: in AWS an interruption would start this job from zero"
