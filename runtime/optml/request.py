"""A CreateTrainingJob request -> a TrainingJob. AWS's spelling stops here.

Shapes, lengths, patterns and enums come from botocore's own service model, so they are AWS's and stay current; the words are
those that AWS answers with. Then come the rules between fields, and the table of what optml does with each.
"""

import contextlib
import datetime
import difflib
import functools
import gzip
import importlib.util
import itertools
import json
import os
import re
import secrets
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from optml.errors import UserError, ValidationError
from optml.jobdir import default_output_dir
from optml.request_fields import FIELDS, REFUSED, URI_FIELDS, field_of
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
SHOWN_CHOICES = 12  # of an enum: there are more than 200 instance types
MATCHED_CHARACTERS = 5000  # more than any length that AWS allows; the time its patterns take grows with the square
CONTENT_TYPES = {
    ".csv": "text/csv",
    ".libsvm": "text/libsvm",
    ".svm": "text/libsvm",
    ".parquet": "application/x-parquet",
}
RESERVED_FOLDERS = tuple(f"{OPT_ML}{name}" for name in ("", "/input", "/model", "/output", "/code", "/output/data"))
INTEGER_BITS = {"integer": 32, "long": 64}


# Loading: bytes -> a dict.


def load_request(source: Mapping[str, Any] | str | os.PathLike[str], base_dir: Path) -> dict[str, Any]:
    """A request from a dict, a JSON or YAML file, or `-` (standard input). UserError says where a file is wrong."""
    if isinstance(source, Mapping):
        copied: dict[str, Any] = _copied(source)
        return copied
    name = os.fspath(source)
    shown = "standard input" if name == "-" else name
    text = _read_text(name, shown, base_dir)
    if not text.strip():
        raise UserError(f"{shown} is empty; it must hold one object, the CreateTrainingJob request")
    is_yaml = name.lower().endswith((".yaml", ".yml")) or (name == "-" and not text.lstrip().startswith("{"))
    content = _load_yaml(text, shown) if is_yaml else _load_json(text, shown)
    if not isinstance(content, dict):
        raise UserError(f"{shown} must hold one object, the CreateTrainingJob request; it holds {_kind(content)}")
    return content


def _read_text(name: str, shown: str, base_dir: Path) -> str:
    try:
        content = sys.stdin.buffer.read() if name == "-" else (base_dir / _expanded(name)).read_bytes()
        return content.decode("utf-8-sig")  # Windows puts a mark before UTF-8
    except UnicodeDecodeError as error:
        raise UserError(f"{shown} is not UTF-8 text: {error}") from None
    except OSError as error:
        raise UserError(f"cannot read the request {shown}: {error.strerror}") from error
    except ValueError as error:  # a NUL in the name
        raise UserError(f"cannot read the request {shown!r}: {error}") from None


def _expanded(path: str) -> Path:
    """`~` as a shell expands it: the home of a user who does not exist stays as it is (Path.expanduser raises)."""
    return Path(os.path.expanduser(path))  # noqa: PTH111


def _copied(value: Any, shape_name: str = REQUEST_SHAPE) -> Any:
    """A copy to work on. Null is the same as nothing, as for AWS; a tuple is a list, as for boto3.

    Only what AWS knows is copied: a YAML file can hold itself, or unfold to gigabytes.
    """
    shape = service_model()[shape_name]
    if shape["type"] == "structure" and isinstance(value, Mapping):
        members = shape["members"]
        return {
            key: _copied(item, members[key]["shape"]) if key in members else item
            for key, item in value.items()
            if item is not None or key not in members
        }
    if shape["type"] == "list" and isinstance(value, list | tuple):
        return [_copied(item, shape["member"]["shape"]) for item in value]
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
        known = [*(request_from_shortcuts.__kwdefaults__ or ()), *(each.name for each in fields(LocalOptions))]
        raise UserError("; ".join(f"there is no option {key!r}{_near(key, known)}" for key in sorted(unknown)))
    _check_keywords(
        dicts={
            "channels": channels,
            "hyperparameters": hyperparameters,
            "environment": environment,
            "metrics": metrics,
        },
        lists={"entrypoint": entrypoint, "arguments": arguments},
    )
    full: dict[str, Any] = _copied(request or {})

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
    update("HyperParameters", {key: _as_text(key, value) for key, value in (hyperparameters or {}).items()})
    update("Environment", environment)
    put("OutputDataConfig", "S3OutputPath", value=None if output is None else _as_uri(output, "output"))
    put("ResourceConfig", "InstanceType", value=instance_type)
    put("ResourceConfig", "InstanceCount", value=instance_count)
    put("StoppingCondition", "MaxRuntimeInSeconds", value=max_runtime)
    put("StoppingCondition", "MaxWaitTimeInSeconds", value=max_wait)
    put("EnableManagedSpotTraining", value=spot)
    put("EnableNetworkIsolation", value=network_isolation)
    put("CheckpointConfig", "S3Uri", value=None if checkpoint is None else _as_uri(checkpoint, "checkpoint"))
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


def _check_keywords(*, dicts: Mapping[str, Any], lists: Mapping[str, Any]) -> None:
    """A program given as one string would become a command of single letters."""
    for keyword, value in dicts.items():
        if value is not None and not isinstance(value, Mapping):
            raise UserError(f"{keyword} must be a dict of names and values, got {_kind(value)}")
    for keyword, value in lists.items():
        if value is not None and not isinstance(value, list | tuple):
            raise UserError(f"{keyword} must be a list of words, as in ['python', 'train.py'], got {_kind(value)}")


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
            raise UserError(f"channel {name!r}: there is no option {key!r}{_near(str(key), list(CHANNEL_KEYS))}")
        _put(channel, CHANNEL_KEYS[key], value)


def _guess_content_type(uri: str, base_dir: Path) -> str | None:
    """By the extension that all files of a local channel share. Only shortcuts guess; a request says what it means."""
    if not is_local(uri):
        return CONTENT_TYPES.get(Path(uri).suffix)
    path = base_dir / _expanded(uri.removeprefix("file://"))
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
        raise UserError(f"{what} must be a path or a URI, got {_kind(value)}")
    return str(value)


def _near(word: str, known: Sequence[str]) -> str:
    """Case and underscores do not matter: training_image is near TrainingImage."""
    plain = {each.lower().replace("_", ""): each for each in reversed(known)}
    near = difflib.get_close_matches(word[:SHOWN_CHARACTERS].lower().replace("_", ""), plain, n=1, cutoff=0.6)
    return f"; did you mean {plain[near[0]]!r}?" if near else ""


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
def _pattern(pattern: str) -> Any:
    """A pattern of the model, which is Java's, as Java reads it: \\d is ASCII, and a dot is no line break of any kind."""
    java = re.sub(r"\\.|\[(?:\\.|[^\]\\])*\]|\.", lambda token: JAVA_DOT if token[0] == "." else token[0], pattern)
    if r"\p{" not in java:
        return re.compile(java, re.ASCII)
    import regex  # late: only tags need it

    return regex.compile(java.replace(r"\p{Alnum}", "a-zA-Z0-9"))


JAVA_DOT = r"[^\n\r\x85\u2028\u2029]"


def violations(value: Any, shape_name: str, path: str = "", aws_path: str = "") -> Iterator[str]:
    """Everything in which a value departs from a shape, in AWS's words. `path` is ours (A.B[].C), `aws_path` theirs."""
    shape = service_model()[shape_name]
    kind = shape["type"]
    where = aws_path or "the request"
    expected: Any = {"structure": dict, "list": list, "map": dict, "string": str, "boolean": bool}.get(kind, int)
    if not isinstance(value, expected) or (expected is int and isinstance(value, bool)):
        yield f"Value {_shown(value)} at '{where}' must be {TYPE_WORDS[kind]}, got {_kind(value)}{_type_hint(value, kind)}"
    elif kind == "structure":
        yield from _key_violations(value, shape, aws_path)
        for key, item in value.items():
            if key in shape["members"]:
                member = shape["members"][key]["shape"]
                yield from violations(item, member, f"{path}.{key}" if path else key, _joined(aws_path, key))
    elif kind == "list":
        yield from _length_violations(value, shape, where)
        for number, item in enumerate(value[: shape.get("max")], start=1):  # what is too many is not checked too
            yield from violations(item, shape["member"]["shape"], f"{path}[]", f"{aws_path}.{number}.member")
    elif kind == "map":
        yield from _length_violations(value, shape, where)
        yield from _map_violations(value, shape, where)
    elif kind == "string":
        is_uri = path in URI_FIELDS
        if is_uri and is_local(value):
            shape = {}
        for problem in _text_violations(value, shape, where):
            yield (
                f"{problem} (or a path or file:// URI of this machine)" if is_uri and "pattern" in problem else problem
            )
    elif kind in INTEGER_BITS:
        yield from _number_violations(value, shape, where)


TYPE_WORDS = {
    "structure": "an object",
    "list": "a list",
    "map": "an object",
    "string": "a string",
    "boolean": "true or false",
    "integer": "a whole number",
    "long": "a whole number",
}


def _key_violations(value: Mapping[Any, Any], shape: Any, aws_path: str) -> Iterator[str]:
    members = shape["members"]
    for key in value:
        if key not in members:
            place = f" in '{aws_path}'" if aws_path else ""
            yield f"Unknown field {_shown(key)}{place}{_near(str(key), list(members)) or '; take it out'}"
    for key in shape.get("required", ()):
        if value.get(key) is None:
            yield f"Value null at '{_joined(aws_path, key)}' failed to satisfy constraint: Member must not be null"


def _joined(aws_path: str, key: str) -> str:
    name = key[:1].lower() + key[1:]
    return f"{aws_path}.{name}" if aws_path else name


def _map_violations(value: Mapping[Any, Any], shape: Any, where: str) -> Iterator[str]:
    """AWS lists every constraint of a map's values; which one was broken is ours to say."""
    shapes = service_model()
    for key, item in itertools.islice(value.items(), shape.get("max")):
        if not isinstance(key, str):
            yield f"Key {_shown(key)} at '{where}' must be a string, got {_kind(key)}: quote it"
            continue
        if not isinstance(item, str):
            at = f"{where}.{_shown(key)[1:-1]}"
            yield f"Value {_shown(item)} at '{at}' must be a string, got {_kind(item)}{_type_hint(item, 'string')}"
            continue
        for part, text, of in (("key", key, shape["key"]), ("value", item, shape["value"])):
            part_shape = shapes[of["shape"]]
            if any(_text_violations(text, part_shape, where)):
                yield (
                    f"Value {_shown({key: item})} at '{where}' failed to satisfy constraint: "
                    f"Map {part} must satisfy constraint: [{', '.join(_constraints(part_shape))}] "
                    f"(the {part} of {_shown(key)} {_what_is_wrong(text, part_shape)})"
                )


def _constraints(shape: Any) -> Iterator[str]:
    for bound, words in (("max", "less"), ("min", "greater")):
        if bound in shape:
            yield f"Member must have length {words} than or equal to {shape[bound]}"
    if "pattern" in shape:
        yield f"Member must satisfy regular expression pattern: {shape['pattern']}"


def _what_is_wrong(text: str, shape: Any) -> str:
    if not _is_unicode(text):
        return "is not valid Unicode"
    if not shape.get("min", 0) <= len(text) <= shape.get("max", sys.maxsize):
        return f"has {len(text)} characters"
    return LINE_BREAK if len(f"{text}.".splitlines()) > 1 else "does not match"


LINE_BREAK = "has a line break"


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


def _text_violations(value: str, shape: Any, where: str) -> Iterator[str]:
    begin = f"Value {_shown(value)} at '{where}' failed to satisfy constraint: "
    if not _is_unicode(value):
        yield f"Value {_shown(value)} at '{where}' is not valid Unicode: it has half of a surrogate pair"
    yield from _length_violations(value, shape, where)
    pattern = shape.get("pattern")
    if pattern is not None and len(value) <= MATCHED_CHARACTERS and not _pattern(pattern).fullmatch(value):
        hint = f" (it {what})" if (what := _what_is_wrong(value, shape)) == LINE_BREAK else ""
        yield f"{begin}Member must satisfy regular expression pattern: {pattern}{hint}"
    if "enum" in shape and value not in shape["enum"]:
        yield f"{begin}Member must satisfy enum value set: {_choices(value, shape['enum'])}{_near(value, shape['enum'])}"


def _is_unicode(text: str) -> bool:
    """Python and JSON can hold half of a surrogate pair, which no file can; undecodable bytes of a command line become such."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _choices(value: str, enum: Sequence[str]) -> str:
    if len(enum) <= SHOWN_CHOICES:
        return f"[{', '.join(enum)}]"
    some = (
        difflib.get_close_matches(value[:SHOWN_CHARACTERS], enum, n=SHOWN_CHOICES, cutoff=0.5) or enum[:SHOWN_CHOICES]
    )
    return f"[{', '.join(some)}, and {len(enum) - len(some)} more]"


def _number_violations(value: int, shape: Any, where: str) -> Iterator[str]:
    limit = 2 ** (INTEGER_BITS[shape["type"]] - 1)
    for bound, words, broken in (
        ("min", "greater", value < (lowest := shape.get("min", -limit))),
        ("max", "less", value > (highest := shape.get("max", limit - 1))),
    ):
        if broken:
            yield (
                f"Value {_shown(value)} at '{where}' failed to satisfy constraint: "
                f"Member must have value {words} than or equal to {lowest if bound == 'min' else highest}"
            )


def _shown(value: Any) -> str:
    """A value in quotes, as Java prints it, which is what AWS does; long ones cut, and only so far looked at."""
    text = ""
    for part in _java_parts(value):
        text += part[: SHOWN_CHARACTERS + 1]
        if len(text) > SHOWN_CHARACTERS:
            text = text[:SHOWN_CHARACTERS] + "..."
            break
    if not text.isprintable():
        text = "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)
    return f"'{text}'"


def _java_parts(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        yield "{"
        for number, (key, item) in enumerate(value.items()):
            yield ", " if number else ""
            yield from _java_parts(key)
            yield "="
            yield from _java_parts(item)
        yield "}"
    elif isinstance(value, list):
        yield "["
        for number, item in enumerate(value):
            yield ", " if number else ""
            yield from _java_parts(item)
        yield "]"
    elif value is None or isinstance(value, bool):
        yield {None: "null", True: "true", False: "false"}[value]
    elif isinstance(value, int) and value.bit_length() > 1000:  # Python refuses to print very large ones
        yield f"{'-' if value < 0 else ''}{hex(abs(value) >> (value.bit_length() - 64))}..."
    elif isinstance(value, str | int | float | datetime.date):
        yield str(value)
    else:
        yield type(value).__name__


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
        datetime.date: "a date",
        datetime.datetime: "a time",
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
    absolute = os.path.normpath(base_dir / _expanded(path))
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
        shown = _shown(uri)
        if uri.startswith("https://"):
            yield f"{path} {shown}: give the s3:// URI of the same objects (s3://bucket/key)"
        elif uri.startswith("file://") and not uri.startswith("file:///"):
            yield f"{path} {shown}: a file:// URI has three slashes before its absolute path"
        elif re.match("(s3|file|https):(?!//)", uri):
            yield f"{path} {shown}: write s3://bucket/key, file:///path, or ./{shown[1:-1]} for a file of that name"
        elif uri.startswith("~") and str(_expanded(uri)).startswith("~"):
            yield f"{path} {shown}: there is no such user here; write ./{shown[1:-1]} for a file of that name"
        elif "\0" in uri or "\n" in uri:
            yield f"{path} {shown}: a path cannot hold a NUL or a newline; rename the file"


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
    is_below = folder.startswith(f"{OPT_ML}/") and not f"{folder}/".startswith(f"{OPT_ML}/input/")
    if not is_below or folder in RESERVED_FOLDERS or "\0" in folder:
        yield (
            f"{field}.LocalPath {_shown(given)} must be a folder of its own below {OPT_ML} and outside {OPT_ML}/input, "
            f"such as {OPT_ML}/{LOCAL_PATHS[field]}"
        )


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
                f"FileSystemDataSource.DirectoryPath {_shown(system['DirectoryPath'])} must be the absolute path of a folder "
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
    problems = list(_key_violations(full, shape, ""))
    sound: dict[str, Any] = {}  # fields that are of the right shape
    for field, value in full.items():
        if field in shape["members"]:
            found = list(violations(value, shape["members"][field]["shape"], field, _joined("", field)))
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


def complete(request: Mapping[str, Any]) -> dict[str, Any]:
    """A copy with the defaults that AWS would not fill in; only where nothing is there."""
    if not isinstance(request, Mapping):
        raise ValidationError(list(violations(request, REQUEST_SHAPE)))
    full: dict[str, Any] = _copied(request)
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
            if source["S3DataType"] == "S3Prefix" and is_local(source["S3Uri"]) and _is_folder(source["S3Uri"]):
                source["S3Uri"] = source["S3Uri"].removesuffix("/") + "/"  # a folder, not its neighbours of a like name
    for field, name in OUTPUT_URIS:
        if name in full.get(field, ()):
            whole = whole_uri(full[field][name], base_dir)
            full[field][name] = whole if whole == "file:///" else whole.rstrip("/")


def _is_folder(uri: str) -> bool:
    with contextlib.suppress(OSError, ValueError):  # a name that is too long, a folder that may not be entered
        return Path(uri.removeprefix("file://")).is_dir()
    return False


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
