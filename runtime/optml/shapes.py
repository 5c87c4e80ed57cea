"""AWS's own shapes of a request, and in what a value departs from them, in AWS's words.

Shapes, lengths, patterns and enums come from botocore's service model, so they are AWS's and stay current.
"""

import datetime
import difflib
import functools
import gzip
import importlib.util
import itertools
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from optml.errors import UserError
from optml.request_fields import URI_FIELDS

REQUEST_SHAPE = "CreateTrainingJobRequest"
SHOWN_CHARACTERS = 100  # of a bad value
SHOWN_CHOICES = 12  # of an enum: there are more than 200 instance types
MATCHED_CHARACTERS = 5000  # more than any length that AWS allows; the time its patterns take grows with the square
INTEGER_BITS = {"integer": 32, "long": 64}


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
        yield f"Value {shown(value)} at '{where}' must be {TYPE_WORDS[kind]}, got {kind_of(value)}{_type_hint(value, kind)}"
    elif kind == "structure":
        yield from key_violations(value, shape, aws_path)
        for key, item in value.items():
            if key in shape["members"]:
                member = shape["members"][key]["shape"]
                yield from violations(item, member, f"{path}.{key}" if path else key, joined(aws_path, key))
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


def key_violations(value: Mapping[Any, Any], shape: Any, aws_path: str) -> Iterator[str]:
    members = shape["members"]
    answer = {} if aws_path else service_model()["DescribeTrainingJobResponse"]["members"]
    answered = [key for key in value if key in answer and key not in members]
    if answered:
        yield f"These fields are of DescribeTrainingJob's answer and no part of a request; take them out: {', '.join(answered)}"
    for key in value:
        if key not in members and key not in answered:
            place = f" in '{aws_path}'" if aws_path else ""
            yield f"Unknown field {shown(key)}{place}{near(str(key), list(members)) or '; take it out'}"
    for key in shape.get("required", ()):
        if value.get(key) is None:
            yield f"Value null at '{joined(aws_path, key)}' failed to satisfy constraint: Member must not be null"


def joined(aws_path: str, key: str) -> str:
    name = key[:1].lower() + key[1:]
    return f"{aws_path}.{name}" if aws_path else name


def _map_violations(value: Mapping[Any, Any], shape: Any, where: str) -> Iterator[str]:
    """AWS lists every constraint of a map's values; which one was broken is ours to say."""
    shapes = service_model()
    for key, item in itertools.islice(value.items(), shape.get("max")):
        if not isinstance(key, str):
            yield f"Key {shown(key)} at '{where}' must be a string, got {kind_of(key)}: quote it"
            continue
        if not isinstance(item, str):
            at = f"{where}.{shown(key)[1:-1]}"
            yield f"Value {shown(item)} at '{at}' must be a string, got {kind_of(item)}{_type_hint(item, 'string')}"
            continue
        for part, text, of in (("key", key, shape["key"]), ("value", item, shape["value"])):
            part_shape = shapes[of["shape"]]
            if any(_text_violations(text, part_shape, where)):
                yield (
                    f"Value {shown({key: item})} at '{where}' failed to satisfy constraint: "
                    f"Map {part} must satisfy constraint: [{', '.join(_constraints(part_shape))}] "
                    f"(the {part} of {shown(key)} {_what_is_wrong(text, part_shape)})"
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
PROGRAM = ".container"  # ContainerEntrypoint and ContainerArguments


def _length_violations(value: Any, shape: Any, where: str) -> Iterator[str]:
    for bound, words, broken in (
        ("max", "less", len(value) > shape.get("max", sys.maxsize)),
        ("min", "greater", len(value) < shape.get("min", 0)),
    ):
        if broken:
            program = words == "less" and isinstance(value, str) and PROGRAM in where
            yield (
                f"Value {shown(value)} at '{where}' failed to satisfy constraint: "
                f"Member must have length {words} than or equal to {shape[bound]}"
                + (f" (it has {len(value)} characters: put the program into a file)" if program else "")
            )


def _text_violations(value: str, shape: Any, where: str) -> Iterator[str]:
    begin = f"Value {shown(value)} at '{where}' failed to satisfy constraint: "
    if not _is_unicode(value):
        yield f"Value {shown(value)} at '{where}' is not valid Unicode: it has half of a surrogate pair"
    yield from _length_violations(value, shape, where)
    pattern = shape.get("pattern")
    if pattern is not None and len(value) <= MATCHED_CHARACTERS and not _pattern(pattern).fullmatch(value):
        hint = f" (it {what})" if (what := _what_is_wrong(value, shape)) == LINE_BREAK else ""
        if hint and PROGRAM in where:
            hint = f" (it {LINE_BREAK}: put the program into a file)"
        yield f"{begin}Member must satisfy regular expression pattern: {pattern}{hint}"
    if "enum" in shape and value not in shape["enum"]:
        yield f"{begin}Member must satisfy enum value set: {_choices(value, shape['enum'])}{near(value, shape['enum'])}"


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
                f"Value {shown(value)} at '{where}' failed to satisfy constraint: "
                f"Member must have value {words} than or equal to {lowest if bound == 'min' else highest}"
            )


def shown(value: Any) -> str:
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


def kind_of(value: Any) -> str:
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


def near(word: str, known: Sequence[str]) -> str:
    """Case and underscores do not matter: training_image is near TrainingImage."""
    whole = [each for each in known if each.endswith(f".{word}")]  # m5.large
    plain = {each.lower().replace("_", ""): each for each in reversed(whole or known)}
    near = difflib.get_close_matches(word[:SHOWN_CHARACTERS].lower().replace("_", ""), plain, n=1, cutoff=0.6)
    return f"; did you mean {plain[near[0]]!r}?" if near else ""


def is_local(uri: str) -> bool:
    """A file:// URI, or a path of this machine."""
    return bool(uri) and ("://" not in uri or uri.startswith("file://"))
