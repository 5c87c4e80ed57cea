"""A channel -> features and labels that this algorithm can be trained on, or an error that says where it cannot."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from optml_algorithms.data.channel import read
from optml_algorithms.data.rows import Rows, require_feature_count, require_finite, require_labels
from optml_algorithms.linear_learner.hosts import Group
from optml_algorithms.linear_learner.hyperparameters import BINARY, REGRESSOR, Settings
from optml_toolkit.container import Channel, UserError

if TYPE_CHECKING:
    import numpy

    Array = numpy.ndarray[Any, numpy.dtype[numpy.float32]]

FORMATS = ("recordio", "csv")
DATA_NAMES = {"train": "training", "validation": "validation", "test": "test"}


@dataclass(frozen=True)
class Examples:
    """This host's rows. `features`: float32, shape (rows, features), or a CSR matrix of it. `labels`: float32, shape (rows,)."""

    features: Any
    labels: "Array"

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def is_sparse(self) -> bool:
        return not hasattr(self.features, "__array_interface__")

    def part(self, begin: int, end: int) -> "Examples":
        return Examples(self.features[begin:end], self.labels[begin:end])

    def taken(self, index: Any) -> "Examples":
        return Examples(self.features[index], self.labels[index])


def load(channels: Mapping[str, Channel], settings: Settings, hosts: Group) -> dict[str, Examples]:
    """Every channel that is there, by its name, all with the same number of features. The same errors on all hosts."""
    found: dict[str, Rows | None] = {}
    with hosts.together():
        for name, channel in channels.items():
            rows = read(channel, formats=FORMATS)
            if rows is not None:
                check(rows, settings)
            found[name] = rows
    features = None
    for name in (
        "train",
        *(name for name in found if name != "train"),
    ):  # the train channel says how many features there are
        rows_of_hosts = hosts.all_of(_summary(found[name]))
        with hosts.together():
            if not any(rows_of_hosts):
                raise UserError(f"No data in {DATA_NAMES[name]} channel path {channels[name].folder}")
            if features is None:
                features = settings.feature_dim or _feature_count([each for each in rows_of_hosts if each])
            found[name] = _with_features(found[name], features, name)
    assert features is not None
    return {name: _examples(rows, features, channels[name], hosts) for name, rows in found.items()}


def _summary(rows: Rows | None) -> tuple[int, bool, str] | None:
    return None if rows is None else (rows.feature_count, rows.width_is_declared, rows.where(0))


def _feature_count(summaries: list[tuple[int, bool, str]]) -> int:
    """The number of features of all hosts' rows. UserError if they differ."""
    declared = [each for each in summaries if each[1]]
    for each in declared:
        if each[0] != declared[0][0]:
            raise UserError(
                f"{each[2]} has {each[0]} features, and {declared[0][2]} has {declared[0][0]}: all must have the same"
            )
    return declared[0][0] if declared else max(count for count, _, _ in summaries)


def _with_features(rows: Rows | None, count: int, name: str) -> Rows | None:
    if rows is None:
        return None
    return require_feature_count(rows, count, channel=name)


def _examples(rows: Rows | None, features: int, channel: Channel, hosts: Group) -> Examples:
    """What every host has in full is shared out, so that no row is scored twice; the train channel is taken as it comes."""
    import numpy

    if rows is None:
        return Examples(numpy.zeros((0, features), "f4"), numpy.zeros(0, "f4"))
    # For normalising in place.
    features_here = rows.features if rows.is_sparse or rows.features.flags.writeable else rows.features.copy()
    examples = Examples(features_here, rows.labels if rows.labels.flags.writeable else rows.labels.copy())
    if channel.name == "train" or channel.distribution == "ShardedByS3Key":
        return examples
    count = len(examples)
    return examples.part(count * hosts.rank // hosts.count, count * (hosts.rank + 1) // hosts.count)


def check(rows: Rows, settings: Settings) -> None:
    """UserError naming the first row whose label or features this predictor_type cannot take."""
    import numpy

    require_labels(rows)
    require_finite(rows)
    if rows.labels.ndim > 1:
        raise UserError(f"{rows.where(0)} has {rows.labels.shape[1]} labels; the linear learner takes one")
    if settings.predictor_type == REGRESSOR:
        return
    if settings.predictor_type == BINARY:
        wrong, wanted = (rows.labels != 0) & (rows.labels != 1), "0 or 1"
    else:
        count = settings.num_classes
        wrong = (rows.labels < 0) | (rows.labels >= count) | (rows.labels != numpy.floor(rows.labels))
        wanted = f"a whole number from 0 to {count - 1}, for num_classes is {count}"
    if wrong.any():
        row = int(wrong.argmax())
        raise UserError(
            f"{rows.where(row)}: the label is {rows.labels[row]:g}, and a label of a {settings.predictor_type} must be {wanted}"
        )
