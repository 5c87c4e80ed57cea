"""Manifests: whatever the file holds, a list of objects or a DataError that says what is wrong; never anything else."""

import contextlib
import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tests.harness import files
from tests.s3 import S3

from optml.errors import DataError
from optml.manifests import AugmentedManifest, attribute_bytes, read_manifest

ANY_JSON = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.just("a\0"), st.just("\ud800")
    ),
    lambda children: st.one_of(
        st.lists(children, max_size=4),
        st.dictionaries(st.sampled_from(["prefix", "a", "b-ref", "c"]), children, max_size=3),
    ),
    max_leaves=8,
)
ENTRIES = st.one_of(
    ANY_JSON, st.sampled_from(["a", "sub/b", "../data/a", "/a", "missing", "", ".", "n" * 300, "x" * 5000])
)
no_deadline = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@no_deadline
@given(content=ANY_JSON)
@example(content=[])
@example(content=[{"prefix": 1}, "a"])
def test_any_json_is_a_manifest_or_an_error(tmp_path: Path, content: Any) -> None:
    file = files(tmp_path, {"m": json.dumps(content)}) / "m"
    with contextlib.suppress(DataError):
        read_manifest(f"file://{file}")


@no_deadline
@given(
    entries=st.lists(ENTRIES, max_size=4), prefix=st.sampled_from(["", "/", "file:///", "s3://", "data/", "file://"])
)
def test_any_entries_are_objects_or_an_error(tmp_path: Path, entries: list[Any], prefix: str) -> None:
    files(tmp_path / "data", {"a": "1", "sub/b": "22"})
    whole = (
        f"{tmp_path}/data/"
        if prefix == ""
        else f"{prefix.rstrip('/')}{tmp_path}/data/"
        if prefix != "s3://"
        else prefix
    )
    file = files(tmp_path, {"m": json.dumps([{"prefix": whole}, *entries])}) / "m"
    try:
        found = read_manifest(f"file://{file}")
    except DataError:
        return
    assert [info.uri for info in found.objects] == [found.prefix_uri + entry for entry in entries]
    assert all(info.path is not None and info.path.is_file() for info in found.objects)


@no_deadline
@given(content=st.binary(max_size=60))
@example(content=b"[" * 100_000)
@example(content=b"1" * 10_000)
@example(content=b"\xef\xbb\xbf[]")
@example(content=b"\xff\xfe\0")
def test_any_bytes_are_a_manifest_or_an_error_of_either_kind(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "m"
    file.write_bytes(content)
    with pytest.raises(DataError, match=str(file)):
        read_manifest(f"file://{file}")
    with contextlib.suppress(DataError):
        AugmentedManifest(file, f"file://{file}", ("a",))


@no_deadline
@given(
    lines=st.lists(st.dictionaries(st.sampled_from(["a", "b-ref", "c"]), ANY_JSON, max_size=3), max_size=4),
    ending=st.sampled_from(["\n", "\r\n", "\n\n", " \n"]),
)
def test_any_lines_are_streamed_in_the_order_of_the_names_or_are_an_error(
    tmp_path: Path, lines: list[dict[str, Any]], ending: str
) -> None:
    file = files(tmp_path, {"m": ending.join(json.dumps(line) for line in lines)}) / "m"
    names = ("c", "b-ref")
    try:
        manifest = AugmentedManifest(file, f"file://{file}", names)
    except DataError as error:
        assert f"file://{file}" in str(error)  # noqa: PT017  (an error is one of two good ends)
        return
    numbers = list(range(len(manifest)))[::-1]
    streamed = list(manifest.lines(numbers))
    assert [[name for name, _ in attributes] for attributes in streamed] == [list(names)] * len(lines)
    for attributes, line in zip(streamed, reversed(lines), strict=True):
        for name, value in attributes:
            assert attribute_bytes(value) == attribute_bytes(json.loads(json.dumps(line[name])))


@given(ANY_JSON)
def test_an_attribute_is_text_as_it_is_and_all_else_compact_json(value: Any) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        return
    try:
        content = attribute_bytes(value)
    except UnicodeEncodeError:
        assert "\\ud800" in json.dumps(value)
        return
    if isinstance(value, str):
        assert content.decode() == value
    else:
        assert json.dumps(json.loads(content)) == json.dumps(value)
        assert b"\n" not in content


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is no manifest"),
        ("{}", "its first element must be"),
        ('["a", "b"]', "its first element must be"),
        ('[{"prefix": "s3://b/p/"}]', "lists no objects"),
        ('[{"prefix": 1}, "a"]', "prefix must be text, got 1"),
        ('[{"prefix": "http://b/p/"}, "a"]', "neither an s3:// nor a file:// URI"),
        (
            '[{"prefix": "file:///data/"}, "a", 7]',
            "entry 2 of the manifest must be a key relative to the prefix, got 7",
        ),
        ('[{"prefix": "file:///data/"}, {"prefix": "x"}]', "entry 1 of the manifest"),
        ('[{"prefix": "file:///nowhere/"}, "a"]', "cannot read /nowhere/a: No such file"),
    ],
)
def test_what_is_wrong_with_a_manifest_is_said(tmp_path: Path, content: str, message: str) -> None:
    file = files(tmp_path, {"m": content}) / "m"
    with pytest.raises(DataError, match=message):
        read_manifest(f"file://{file}")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("\n\n", "has no lines"),
        ('{"a": 1, "b-ref": "/x"}\n{"a": 1}', "line 2: must include the attribute 'b-ref' of AttributeNames"),
        ('{"a": 1, "b-ref": "/x"}\n\n{"a": 1,', "line 3: not a JSON object"),
        ("[1]", "line 1: not a JSON object"),
        ('{"a": 1, "b-ref": 5}', "line 1: 'b-ref' must be the URI of an object, got 5"),
        ('{"a": 1, "b-ref": "x"}', "line 1: 'b-ref' must be the URI of an object, got 'x'"),
        ('{"a": "\\ud800", "b-ref": "/x"}', "line 1: 'a' has characters that are no Unicode"),
    ],
)
def test_what_is_wrong_with_an_augmented_manifest_is_said(tmp_path: Path, content: str, message: str) -> None:
    file = files(tmp_path, {"m": content}) / "m"
    with pytest.raises(DataError, match=message):
        AugmentedManifest(file, f"file://{file}", ("a", "b-ref"))


def test_a_manifest_that_changes_while_it_is_streamed_is_named(tmp_path: Path) -> None:
    file = files(tmp_path, {"m": '{"a": 1}\n{"a": 2}'}) / "m"
    manifest = AugmentedManifest(file, f"file://{file}", ("a",))
    for content in ("", '{"b": 1}\n{"a": 2}', "[1, 2, 3]\n"):
        file.write_text(content)
        with pytest.raises(DataError, match="was changed while it was streamed"):
            list(manifest.lines([0, 1]))


def test_a_manifest_of_an_s3_server_names_the_objects_there(s3: S3) -> None:
    assert s3.folder is not None
    bucket = s3.new_bucket()
    content = json.dumps([{"prefix": f"s3://{bucket}/p q/"}, "ü.csv", "sub/b"])
    files(s3.folder / bucket, {"m": content, "p q/ü.csv": "123", "p q/sub/b": "1", "p q/unlisted": "x"})
    found = read_manifest(f"s3://{bucket}/m")
    assert [(info.key, info.size_bytes) for info in found.objects] == [("p q/ü.csv", 3), ("p q/sub/b", 1)]
    files(s3.folder / bucket, {"m": content.replace("sub/b", "gone")})
    with pytest.raises(DataError, match=r"p q/gone: there is no such object"):
        read_manifest(f"s3://{bucket}/m")
    with pytest.raises(DataError, match=r"nothing: there is no such object"):
        read_manifest(f"s3://{bucket}/nothing")
