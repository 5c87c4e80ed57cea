"""Rows of a channel: features, labels, weights, and where each came from."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from optml_algorithms.words import counted
from optml_toolkit.container import UserError


@dataclass(frozen=True, kw_only=True)
class Origin:
    """`count` rows that lie together in a file or pipe, where they begin with row `first`, counted from 0."""

    source: str
    first: int
    count: int


@dataclass(frozen=True, kw_only=True)
class Rows:
    """What a channel, a file or a part of it holds.

    `features`: float32, shape (rows, columns): a numpy array in C order, NaN where a value is missing, or a
    scipy.sparse.csr_matrix (rows in order, columns sorted within a row, none twice).
    `labels`: float32, shape (rows,), or (rows, n) with n > 1 labels a row; None if the data has none.
    `weights`: float32, shape (rows,), or None. `groups`: int64, shape (rows,), the qid of libsvm, or None.
    `width_is_declared`: False where the number of columns is only the highest index that occurred, plus one.
    """

    features: Any
    labels: Any = None
    weights: Any = None
    groups: Any = None
    origins: tuple[Origin, ...] = ()
    width_is_declared: bool = True

    def __len__(self) -> int:
        return int(self.features.shape[0])

    @property
    def is_sparse(self) -> bool:
        return not hasattr(self.features, "__array_interface__")

    @property
    def feature_count(self) -> int:
        return int(self.features.shape[1])

    def where(self, row: int) -> str:
        """File and row of a row of these, counted from 0 here and from 1 in the text."""
        for origin in self.origins:
            if row < origin.count:
                return f"{origin.source}, row {origin.first + row + 1:,}"
            row -= origin.count
        raise IndexError(row)

    def cell(self, place: int) -> tuple[int, int]:
        """Row and column, from 0, of a number of `features`, by its place among those that are kept."""
        import numpy

        if not self.is_sparse:
            return divmod(place, self.feature_count)
        row = int(numpy.searchsorted(self.features.indptr, place, side="right")) - 1
        return row, int(self.features.indices[place])


def require_labels(rows: Rows) -> None:
    """UserError unless each row has a number for its label."""
    import numpy

    if rows.labels is None:
        raise UserError(
            f"Got input data without labels. Please check the input data set: {rows.where(0)} and the rest have none"
        )
    missing = numpy.isnan(rows.labels)
    if missing.any():
        row = int(numpy.flatnonzero(missing.reshape(len(rows), -1).any(axis=1))[0])
        raise UserError(
            f"Got input data without labels. Please check the input data set: {rows.where(row)} has no number for its label"
        )


def require_finite(rows: Rows) -> None:
    """UserError for NaN, infinity or an empty field, in features, labels or weights."""
    import numpy

    for what, values in (("label", rows.labels), ("weight", rows.weights)):
        if values is not None and not _is_finite(values):
            row = int(numpy.flatnonzero(~numpy.isfinite(values).reshape(len(rows), -1).all(axis=1))[0])
            raise UserError(f"{rows.where(row)}: the {what} is missing, NaN or infinite; this algorithm needs a number")
    values = rows.features.data if rows.is_sparse else rows.features
    if not _is_finite(values):
        row, column = rows.cell(int(numpy.flatnonzero(~numpy.isfinite(values))[0]))
        raise UserError(
            f"{rows.where(row)}, feature {column + 1} is missing, NaN or infinite; this algorithm needs a number: "
            "fill it in, or leave the row out"
        )


def _is_finite(values: Any) -> bool:
    import numpy

    if values.size == 0:
        return True
    with numpy.errstate(all="ignore"):
        total = values.sum(dtype=values.dtype)  # one pass without a temporary; NaN and infinity do not cancel out
    return bool(numpy.isfinite(total)) or bool(numpy.isfinite(values).all())


def require_feature_count(rows: Rows, count: int, *, channel: str = "train") -> Rows:
    """The same rows with `count` columns. UserError if they have another number, or more where the data does not declare it.

    `channel`: whose rows they are. If those of train have passed, it is not feature_dim that is wrong for the others.
    """
    if rows.feature_count == count:
        return rows
    if rows.width_is_declared or rows.feature_count > count:
        has = f"{rows.where(0)} has {counted(rows.feature_count, 'feature')}"
        if channel != "train":
            raise UserError(f"{has}, and the train channel has {count}: all channels must have the same")
        raise UserError(f"feature_dim is {count}, and {has}: set feature_dim to {rows.feature_count}")
    features = rows.features.copy()
    features.resize((len(rows), count))
    return replace(rows, features=features)


def concatenated(parts: Iterable[Rows], *, share_read: Callable[[], float] = lambda: 0.0) -> Rows | None:
    """All rows, in order; None if there are none. UserError if parts differ in width, or in having labels, weights or groups.

    `share_read` tells how much of the data has been read (0: unknown), from which the size of a dense result is foreseen: its
    parts go one after the other into one array, so that there are never two copies of the whole.
    """
    import numpy

    seen: list[Rows] = []  # without their features
    dense: Any = None  # the rows so far are its first `filled`
    filled = 0
    sparse: list[Any] = []
    for part in parts:
        _check_alike(seen, part)
        seen.append(replace(part, features=_Shape(part.features.shape)))
        if sparse or part.is_sparse:
            if dense is not None:
                sparse, dense = [_as_sparse(dense[:filled])], None
            sparse.append(part.features if part.is_sparse else _as_sparse(part.features))
        elif dense is None:
            dense, filled = part.features, len(part)  # perhaps the only one: not copied
        else:
            wanted = filled + len(part)
            if wanted > len(dense):
                share = share_read()
                larger = numpy.empty(
                    (max(wanted, int(wanted / share * 1.01) if share else wanted * 3 // 2), dense.shape[1]), "f4"
                )
                larger[:filled] = dense[:filled]
                dense = larger
            dense[filled:wanted] = part.features
            filled = wanted
    if not seen:
        return None
    return Rows(
        features=dense[:filled] if dense is not None else _stacked(sparse),
        labels=_joined([part.labels for part in seen]),
        weights=_joined([part.weights for part in seen]),
        groups=_joined([part.groups for part in seen]),
        origins=_merged(origin for part in seen for origin in part.origins),
        width_is_declared=any(part.width_is_declared for part in seen),
    )


@dataclass(frozen=True)
class _Shape:
    shape: tuple[int, int]


def _check_alike(seen: Sequence[Rows], part: Rows) -> None:
    if not seen:
        return
    for what in ("labels", "weights", "groups"):
        mine, others = getattr(part, what), getattr(seen[-1], what)
        if (mine is None) != (others is None):
            without, with_it = (part, seen[-1]) if mine is None else (seen[-1], part)
            raise UserError(f"{without.where(0)} has no {what}, and {with_it.where(0)} has: all must, or none")
        if what == "labels" and mine is not None and mine.shape[1:] != others.shape[1:]:
            raise UserError(
                f"{part.where(0)} has another number of labels than {seen[-1].where(0)}: all must have the same"
            )
    other = next((each for each in seen if each.width_is_declared), None) or max(
        seen, key=lambda each: each.feature_count
    )
    if part.width_is_declared and other.width_is_declared:
        differs = part.feature_count != other.feature_count
    elif part.width_is_declared:
        differs = part.feature_count < other.feature_count
    else:
        differs = other.width_is_declared and part.feature_count > other.feature_count
    if differs:
        raise UserError(
            f"{part.where(0)} has {counted(part.feature_count, 'feature')}, and {other.where(0)} has {other.feature_count}: "
            "all must have the same"
        )


def _as_sparse(features: Any) -> Any:
    import scipy.sparse

    return scipy.sparse.csr_matrix(features)


def _stacked(parts: Sequence[Any]) -> Any:
    import scipy.sparse

    if len(parts) == 1:
        return parts[0]
    width = max(part.shape[1] for part in parts)
    for part in parts:
        part.resize((part.shape[0], width))
    return scipy.sparse.vstack(parts, "csr")


def _joined(parts: Sequence[Any]) -> Any:
    import numpy

    return None if parts[0] is None else parts[0] if len(parts) == 1 else numpy.concatenate(parts)


def _merged(origins: Iterable[Origin]) -> tuple[Origin, ...]:
    """Neighbours that continue each other become one."""
    merged: list[Origin] = []
    for origin in origins:
        last = merged[-1] if merged else None
        if last is not None and last.source == origin.source and last.first + last.count == origin.first:
            merged[-1] = replace(last, count=last.count + origin.count)
        else:
            merged.append(origin)
    return tuple(merged)
