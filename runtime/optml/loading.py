"""Where a request comes from: a JSON or YAML file, standard input, keywords -> a dict in AWS's spelling."""

import contextlib
import datetime
import json
import os
import re
import secrets
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from optml.errors import UserError
from optml.script_mode import DEFAULT_IMAGES, distribution_named, script_hyperparameters
from optml.shapes import REQUEST_SHAPE, is_local, kind_of, near, service_model
from optml.spec import LocalOptions

DEFAULT_REGION = "us-east-1"
CONTENT_TYPES = {
    ".csv": "text/csv",
    ".libsvm": "text/libsvm",
    ".svm": "text/libsvm",
    ".parquet": "application/x-parquet",
    ".pbr": "application/x-recordio-protobuf",  # as AWS's SDK names what it writes
}


def load_request(source: Mapping[str, Any] | str | os.PathLike[str], base_dir: Path) -> dict[str, Any]:
    """A request from a dict, a JSON or YAML file, or `-` (standard input). UserError says where a file is wrong."""
    if isinstance(source, Mapping):
        request: dict[str, Any] = copied(source)
        return request
    name = os.fspath(source)
    label = "standard input" if name == "-" else name
    text = _read_text(name, label, base_dir)
    if not text.strip():
        raise UserError(f"{label} is empty; it must hold one object, the CreateTrainingJob request")
    if Path(name).suffix in CONTENT_TYPES:
        raise UserError(f"{label} is no request, which is JSON or YAML: data is given with --channel train={name}")
    is_yaml = name.lower().endswith((".yaml", ".yml")) or (name == "-" and not text.lstrip().startswith("{"))
    content = _load_yaml(text, label) if is_yaml else _load_json(text, label)
    if not isinstance(content, dict):
        raise UserError(f"{label} must hold one object, the CreateTrainingJob request; it holds {kind_of(content)}")
    return content


def _read_text(name: str, label: str, base_dir: Path) -> str:
    try:
        content = sys.stdin.buffer.read() if name == "-" else (base_dir / expanded(name)).read_bytes()
        return content.decode("utf-8-sig")  # Windows puts a mark before UTF-8
    except UnicodeDecodeError as error:
        raise UserError(f"{label} is not UTF-8 text: {error}") from None
    except OSError as error:
        hint = f"; data is given with --channel train={name}" if isinstance(error, IsADirectoryError) else ""
        raise UserError(f"cannot read the request {label}: {error.strerror}{hint}") from error
    except ValueError as error:  # a NUL in the name
        raise UserError(f"cannot read the request {label!r}: {error}") from None


def expanded(path: str) -> Path:
    """`~` as a shell expands it: the home of a user who does not exist stays as it is (Path.expanduser raises)."""
    return Path(os.path.expanduser(path))  # noqa: PTH111


def copied(value: Any, shape_name: str = REQUEST_SHAPE) -> Any:
    """A copy to work on. Null is the same as nothing, as for AWS; a tuple is a list, as for boto3.

    Only what AWS knows is copied: a YAML file can hold itself, or unfold to gigabytes.
    """
    shape = service_model()[shape_name]
    if shape["type"] == "structure" and isinstance(value, Mapping):
        members = shape["members"]
        return {
            key: copied(item, members[key]["shape"]) if key in members else item
            for key, item in value.items()
            if item is not None or key not in members
        }
    if shape["type"] == "list" and isinstance(value, list | tuple):
        return [copied(item, shape["member"]["shape"]) for item in value]
    return dict(value) if shape["type"] == "map" and isinstance(value, Mapping) else value


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

    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        for key, line in _duplicate_keys(node):
            raise UserError(f"{name}, line {line}: the key {key!r} is there twice in one object; keep one")
        return None if node is None else loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise UserError(f"{name}{where}: not YAML: {error.problem}") from None
    except (yaml.YAMLError, RecursionError, ValueError, TypeError, LookupError, AttributeError) as error:
        # PyYAML lets the last four out for a tag on a value that is not of its kind, such as `!!bool perhaps`.
        raise UserError(f"{name}: not YAML: {error}") from None


def _duplicate_keys(node: Any) -> Iterator[tuple[str, int]]:
    """(key, line) of what is in one mapping twice: PyYAML would take the last one."""
    import yaml

    seen: set[int] = set()  # an alias leads to the same node again
    waiting = [node]
    while waiting:
        node = waiting.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            waiting += node.value
        elif isinstance(node, yaml.MappingNode):
            keys: set[tuple[str, str]] = set()
            for key, value in node.value:
                waiting.append(value)
                if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                    continue
                if (key.tag, key.value) in keys:
                    yield key.value, key.start_mark.line + 1
                keys.add((key.tag, key.value))


def region() -> str:
    return os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or DEFAULT_REGION


def make_name(algorithm: Any) -> str:
    image = algorithm.get("TrainingImage") if isinstance(algorithm, dict) else None
    base = re.sub(r"[^a-zA-Z0-9]+", "-", str(image or "job").rpartition("/")[2].partition(":")[0]).strip("-") or "job"
    return f"{base[:35].rstrip('-')}-{datetime.datetime.now():%Y-%m-%d-%H-%M-%S}-{secrets.token_hex(2)}"


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
    entry_point: str | os.PathLike[str] | None = None,
    source_dir: str | os.PathLike[str] | None = None,
    distribution: str | Mapping[str, Any] | None = None,
    processes_per_host: int | None = None,
    **unknown: Any,
) -> dict[str, Any]:
    """Lay keywords over a request. What is not a string in `hyperparameters` is written as JSON, as the SDK does.

    A channel is a path or URI, or a dict with `uri` and any of content_type, input_mode, distribution, compression,
    record_wrapper, shuffle_seed, data_type, attribute_names. An `entry_point` makes the hyperparameters that the SDK would send
    for it; `distribution` is the SDK's dict, or a name: torchrun, smdistributed, mpi, ...
    UserError for a keyword that does not exist.
    """
    if unknown:
        known = [*(request_from_shortcuts.__kwdefaults__ or ()), *(each.name for each in fields(LocalOptions))]
        raise UserError(
            "; ".join(
                f"there is no option {key!r}; it is one of a channel: channels={{'train': {{'uri': ..., {key!r}: ...}}}}"
                if key in CHANNEL_KEYS
                else f"there is no option {key!r}{near(key, known)}"
                for key in sorted(unknown)
            )
        )
    _check_keywords(
        dicts={
            "channels": channels,
            "hyperparameters": hyperparameters,
            "environment": environment,
            "metrics": metrics,
        },
        lists={"entrypoint": entrypoint, "arguments": arguments},
    )
    full: dict[str, Any] = copied(request or {})

    def put(*path: str, value: Any) -> None:
        _put(full, path, value)

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
    put("ResourceConfig", "InstanceType", value=instance_type)
    if entry_point is None:
        script_only = {"source_dir": source_dir, "distribution": distribution, "processes_per_host": processes_per_host}
        for keyword, value in script_only.items():
            if value is not None:
                raise UserError(f"{keyword} goes with entry_point, the script to run, which is missing")
        update("HyperParameters", {key: _as_text(key, value) for key, value in (hyperparameters or {}).items()})
    elif entrypoint:
        raise UserError(
            f"entry_point {os.fspath(entry_point)!r} and the program {' '.join(map(str, entrypoint))!r} are two things to run: "
            "give one"
        )
    else:
        launcher = distribution_named(distribution)
        _put_image_of_script(full, launcher)
        full.setdefault("TrainingJobName", make_name(full.get("AlgorithmSpecification")))
        resources = full.get("ResourceConfig")
        made = script_hyperparameters(
            entry_point=entry_point,
            source_dir=source_dir,
            hyperparameters=hyperparameters or {},
            distribution=launcher,
            processes_per_host=processes_per_host,
            job_name=str(full["TrainingJobName"]),
            region=region(),
            instance_type=resources.get("InstanceType") if isinstance(resources, dict) else None,
            base_dir=base_dir,
        )
        update("HyperParameters", made)
    update("Environment", environment)
    put("OutputDataConfig", "S3OutputPath", value=None if output is None else _as_uri(output, "output"))
    put("ResourceConfig", "InstanceCount", value=instance_count)
    put("StoppingCondition", "MaxRuntimeInSeconds", value=max_runtime)
    put("StoppingCondition", "MaxWaitTimeInSeconds", value=max_wait)
    put("EnableManagedSpotTraining", value=spot)
    put("EnableNetworkIsolation", value=network_isolation)
    put("CheckpointConfig", "S3Uri", value=None if checkpoint is None else _as_uri(checkpoint, "checkpoint"))
    put("RetryStrategy", "MaximumRetryAttempts", value=retries or None)
    if retries == 0:
        full.pop("RetryStrategy", None)
    for channel_name, given in (channels or {}).items():
        _put_channel(full, channel_name, given, base_dir=base_dir)
    return full


def _put_image_of_script(full: dict[str, Any], launcher: Mapping[str, Any]) -> None:
    algorithm = full.setdefault("AlgorithmSpecification", {})
    if not isinstance(algorithm, dict) or algorithm.get("TrainingImage") or algorithm.get("AlgorithmName"):
        return
    found = next((DEFAULT_IMAGES[name] for name in launcher if name in DEFAULT_IMAGES), None)
    if found is None:
        raise UserError(
            "entry_point: name the image that the script is for: pytorch, scikit-learn, huggingface, tensorflow, xgboost, or the "
            "ECR URI of one of SageMaker's (on the command line: --image pytorch)"
        )
    algorithm["TrainingImage"] = found


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


def _check_keywords(*, dicts: Mapping[str, Any], lists: Mapping[str, Any]) -> None:
    """A program given as one string would become a command of single letters."""
    for keyword, value in dicts.items():
        if value is not None and not isinstance(value, Mapping):
            raise UserError(f"{keyword} must be a dict of names and values, got {kind_of(value)}")
    for keyword, value in lists.items():
        if value is not None and not isinstance(value, list | tuple):
            raise UserError(f"{keyword} must be a list of words, as in ['python', 'train.py'], got {kind_of(value)}")


def _put(place: Any, path: Sequence[str], value: Any) -> None:
    if value is None:
        return
    for step in path[:-1]:
        if isinstance(place, dict):
            place = place.setdefault(step, {})
    if isinstance(place, dict):  # if it is something else, validation says what is wrong with it
        place[path[-1]] = value


def _put_channel(full: dict[str, Any], name: str, given: Any, *, base_dir: Path) -> None:
    options = dict(given) if isinstance(given, Mapping) else {"uri": given}
    if "uri" in options:
        options["uri"] = _as_uri(options["uri"], f"channel {name!r}")
    listed = full.setdefault("InputDataConfig", [])
    if not isinstance(listed, list):
        return
    channel = next((each for each in listed if isinstance(each, dict) and each.get("ChannelName") == name), None)
    if channel is None:
        if "uri" not in options:
            raise UserError(f"channel {name!r} has no source: give --channel {name}=PATH, or a dict with 'uri'")
        channel = {"ChannelName": name, "DataSource": {"S3DataSource": {"S3DataType": "S3Prefix"}}}
        listed.append(channel)
        if guessed := _guess_content_type(options["uri"], base_dir):
            options.setdefault("content_type", guessed)
    for key, value in options.items():
        if key not in CHANNEL_KEYS:
            raise UserError(f"channel {name!r}: there is no option {key!r}{near(str(key), list(CHANNEL_KEYS))}")
        _put(channel, CHANNEL_KEYS[key], value)


def _guess_content_type(uri: str, base_dir: Path) -> str | None:
    """By the extension that all files of a local channel share. Only shortcuts guess; a request says what it means."""
    if not is_local(uri):
        return CONTENT_TYPES.get(Path(uri).suffix)
    path = base_dir / expanded(uri.removeprefix("file://"))
    with contextlib.suppress(OSError, ValueError):
        names = os.listdir(path) if path.is_dir() else [path.name]
        suffixes = {Path(name).suffix for name in names if not name.startswith((".", "_"))}
        if len(suffixes) == 1:
            return CONTENT_TYPES.get(suffixes.pop())
    return None


def _as_text(name: Any, value: Any) -> str:
    try:
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(f"hyperparameter {name!r} cannot be written as JSON: {error}; give a string") from None


def _as_uri(value: Any, what: str) -> str:
    if not isinstance(value, str | Path):
        raise UserError(f"{what} must be a path or a URI, got {kind_of(value)}")
    return str(value)
