"""Manifests: lists of objects that a channel takes instead of a prefix."""

import json
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optml import objects, transfers
from optml.errors import DataError
from optml.objects import ObjectInfo


@dataclass(frozen=True, kw_only=True)
class Manifest:
    prefix_uri: str
    objects: tuple[ObjectInfo, ...]  # in the manifest's order


def read_manifest(uri: str) -> Manifest:
    """A ManifestFile: a JSON array, first `{"prefix": ...}`, then keys relative to it. DataError names what is wrong."""
    try:
        content = json.loads(transfers.read_bytes(uri))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{uri} is no manifest: {error}. It is a JSON array such as {EXAMPLE}") from None
    if (
        not isinstance(content, list)
        or not content
        or not isinstance(content[0], dict)
        or set(content[0]) != {"prefix"}
    ):
        raise DataError(
            f'{uri} is no manifest: its first element must be {{"prefix": "s3://bucket/folder/"}}, as in {EXAMPLE}'
        )
    prefix = content[0]["prefix"]
    if not isinstance(prefix, str):
        raise DataError(f"{uri}: the manifest's prefix must be text, got {prefix!r}")
    if prefix.startswith("/"):
        prefix = f"file://{prefix}"
    if len(content) == 1:
        raise DataError(f"{uri}: the manifest lists no objects")
    for number, entry in enumerate(content[1:], start=1):
        if not isinstance(entry, str) or not entry:
            raise DataError(
                f"{uri}: entry {number} of the manifest must be a key relative to the prefix, got {entry!r}"
            )
    return Manifest(prefix_uri=prefix, objects=tuple(objects.stat_objects([prefix + entry for entry in content[1:]])))


EXAMPLE = '[{"prefix": "s3://bucket/folder/"}, "a.csv", "more/b.csv"]'


class AugmentedManifest:
    """JSON Lines of which some attributes are streamed. Only the lines' places are kept in memory, not the lines."""

    def __init__(self, file: Path, uri: str, attribute_names: tuple[str, ...]):
        """Checks every line: DataError names the first that is not JSON or lacks an attribute."""
        self.file, self.uri, self.attribute_names = file, uri, attribute_names
        self._starts = array("Q")
        try:
            with file.open("rb") as stream:
                position = 0
                for number, line in enumerate(stream, start=1):
                    if line.strip():
                        self._check(line, number)
                        self._starts.append(position)
                    position += len(line)
        except OSError as error:
            raise DataError(f"cannot read {uri}: {error.strerror}; see that you may read it") from error
        if not self._starts:
            raise DataError(f"{uri}: the augmented manifest has no lines")

    def _check(self, line: bytes, number: int) -> None:
        try:
            content = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{self.uri}, line {number}: not a JSON object ({error})") from None
        if not isinstance(content, dict):
            raise DataError(f"{self.uri}, line {number}: not a JSON object")
        missing = [name for name in self.attribute_names if name not in content]
        if missing:
            raise DataError(f"{self.uri}, line {number}: must include the attribute {missing[0]!r} of AttributeNames")
        for name in self.attribute_names:
            if name.endswith("-ref") and not (
                isinstance(content[name], str) and content[name].startswith(("s3://", "file:///", "/"))
            ):
                raise DataError(
                    f"{self.uri}, line {number}: {name!r} must be the URI of an object, got {content[name]!r}"
                )
            try:
                attribute_bytes(content[name])
            except ValueError:
                raise DataError(f"{self.uri}, line {number}: {name!r} has characters that are no Unicode") from None

    def __len__(self) -> int:
        return len(self._starts)

    def lines(self, numbers: list[int]) -> Iterator[list[tuple[str, Any]]]:
        """(attribute, value) pairs of each line, in AttributeNames order; lines by their number from 0."""
        with self.file.open("rb") as stream:
            for number in numbers:
                stream.seek(self._starts[number])
                line = stream.readline()
                try:
                    content = json.loads(line)
                    attributes = [(name, content[name]) for name in self.attribute_names]
                except (ValueError, TypeError, KeyError):
                    raise DataError(f"{self.uri} was changed while it was streamed") from None
                yield attributes


def attribute_bytes(value: Any) -> bytes:
    """What is streamed for an attribute that is no reference: text as it is, anything else as compact JSON."""
    text = value if isinstance(value, str) else json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    return text.encode()
