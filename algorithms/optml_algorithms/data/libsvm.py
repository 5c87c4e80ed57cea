"""libsvm -> a sparse matrix. scikit-learn parses; this takes the weights off the labels and, after an error, finds the place.

    <label>[:<weight>] [qid:<group>] <index>:<value> <index>:<value> ...

Indices are column numbers, as they are: a file that counts from one has an empty column 0, as in AWS's container.
"""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optml_toolkit.container import UserError

WEIGHTED_LABEL = re.compile(rb"^([ \t]*[^\s:#]+):(\S+)", re.MULTILINE)
FIRST_LABEL = re.compile(rb"(?:[^\S\n]*(?:#[^\n]*)?\n)*\s*([^\s#]*)")  # after comments and empty lines
GZIP = b"\x1f\x8b"
HIGHEST_INDEX = 2**31 - 2  # the library counts columns in 32 bits
QUERY = re.compile(rb"^[^\n#]*\sqid:", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class Sparse:
    """`features`: float32 CSR, shape (rows, highest index + 1). `weights`, `groups`: shape (rows,), None if no row has one."""

    features: Any
    labels: Any
    weights: Any
    groups: Any


def read_libsvm(files: Sequence[Path]) -> Sparse:
    """All rows of the files, in order. UserError naming file and line for one that is not libsvm."""
    import numpy
    import scipy.sparse

    parts = [_read(file) for file in files]
    width = max(part.features.shape[1] for part in parts)
    for part in parts:
        part.features.resize((part.features.shape[0], width))
    weighted = any(part.weights is not None for part in parts)
    grouped = [part.groups is not None for part in parts]
    if any(grouped) and not all(grouped):
        raise UserError(
            f"{files[grouped.index(False)]} has no qid, and {files[grouped.index(True)]} has: all must, or none"
        )
    return Sparse(
        features=parts[0].features
        if len(parts) == 1
        else scipy.sparse.vstack([part.features for part in parts], "csr"),
        labels=numpy.concatenate([part.labels for part in parts]),
        weights=numpy.concatenate(
            [numpy.ones(len(part.labels)) if part.weights is None else part.weights for part in parts]
        )
        if weighted
        else None,
        groups=numpy.concatenate([part.groups for part in parts]) if any(grouped) else None,
    )


def _read(file: Path) -> Sparse:
    import numpy
    from sklearn.datasets import load_svmlight_file

    content = file.read_bytes()
    if content.startswith(GZIP):
        raise UserError(f"{file} is a gzip file: unpack it")
    weights = None
    if (first := FIRST_LABEL.match(content)) and b":" in first[1]:
        found = WEIGHTED_LABEL.findall(content)
        content = WEIGHTED_LABEL.sub(rb"\1", content)
        try:
            weights = numpy.array([float(weight) for _, weight in found])
        except ValueError:
            raise UserError(what_is_wrong(file)) from None
    grouped = QUERY.search(content) is not None
    try:
        features, labels, *groups = load_svmlight_file(
            io.BytesIO(content), dtype=numpy.float32, zero_based=True, query_id=grouped
        )
    except (ValueError, OverflowError) as error:
        if weights is None and (weighted := WEIGHTED_LABEL.search(content)):
            line = content.count(b"\n", 0, weighted.start()) + 1
            raise UserError(
                f"{file}, line {line}: a weight (label:weight), and the first row has none: all must"
            ) from None
        raise UserError(what_is_wrong(file, str(error))) from None
    if weights is not None and len(weights) != len(labels):
        raise UserError(
            f"{file}: {len(weights):,} of {len(labels):,} rows have a weight (label:weight); all must, or none"
        )
    if groups and len(groups[0]) != len(labels):
        raise UserError(f"{file}: {len(groups[0]):,} of {len(labels):,} rows have a qid; all must, or none")
    return Sparse(features=features, labels=labels, weights=weights, groups=groups[0] if groups else None)


def what_is_wrong(file: Path, reason: str = "") -> str:
    """The first line that cannot be right. Slow, and read only after an error."""
    shape = "<label>[:<weight>] [qid:<group>] <index>:<value> ..."
    with file.open(encoding="utf-8", errors="replace") as stream:
        for number, line in enumerate(stream, start=1):
            words = line.partition("#")[0].split()
            if words and (wrong := _wrong_word(words)) is not None:
                return f"{file}, line {number}: {wrong[:50]!r} does not belong in a line of libsvm, {shape}"
    return f"{file} is not in 'LIBSVM' format, {shape}: {reason}"


def _wrong_word(words: Sequence[str]) -> str | None:
    label, *pairs = words
    last = -1
    for part in label.split(":", 1):
        if not _is_number(part):
            return label
    for place, word in enumerate(pairs):
        index, colon, value = word.partition(":")
        if index == "qid" and place == 0 and value.isdigit():
            continue
        if not colon or not index.isdigit() or not _is_number(value) or not last < int(index) <= HIGHEST_INDEX:
            return word
        last = int(index)
    return None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
