"""Mean and deviation of features and labels, from the first rows of the data, so that one learning rate suits all of them."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from optml_algorithms.linear_learner.hosts import Group
from optml_algorithms.linear_learner.hyperparameters import Settings

if TYPE_CHECKING:
    import numpy

    Array = numpy.ndarray[Any, numpy.dtype[numpy.float64]]

CHUNK_ELEMENTS = 1 << 22
SMALLEST_DEVIATION = 1e-6  # of the largest value: below it, float32 features are constant but for rounding


@dataclass(frozen=True)
class Scaling:
    """A normalised feature is (feature - mean) / scale; likewise the label. `mean`, `scale`: float64, shape (features,)."""

    mean: "Array"
    scale: "Array"
    label_mean: float = 0.0
    label_scale: float = 1.0

    def apply(self, features: Any) -> Any:
        """The same rows, normalised. Dense ones in place; sparse ones stay as they are: see SparseRows."""
        if _is_sparse(features) or not (self.mean.any() or (self.scale != 1).any()):
            return features
        mean, inverse = self.mean.astype("f4"), (1 / self.scale).astype("f4")
        for begin, end in chunks(*features.shape):
            part = features[begin:end]
            part -= mean
            part *= inverse
        return features

    def apply_to_labels(self, labels: Any) -> Any:
        if self.label_mean == 0 and self.label_scale == 1:
            return labels
        return ((labels - self.label_mean) / self.label_scale).astype("f4")

    def unscaled(self, weights_DC: "Array", bias_C: "Array") -> tuple["Array", "Array"]:
        """Weights and bias for rows and labels as they are in the data."""
        weights = weights_DC / self.scale[:, None] * self.label_scale
        return weights, bias_C * self.label_scale + self.label_mean - self.mean @ weights


def measure(features: Any, labels: Any, settings: Settings, hosts: Group) -> tuple[Scaling, float]:
    """The scaling of these settings, and the mean squared length of a normalised row. The same on every host.

    Each host looks at its share of num_point_for_scaler rows, from its first.
    """
    import numpy

    rows = min(len(labels), -(-settings.num_point_for_scaler // hosts.count))
    sample, sample_labels = features[:rows], labels[:rows].astype("f8")
    columns = features.shape[1]
    sums = numpy.zeros(columns + 2)
    sums[:columns] = _sum(sample)
    sums[columns:] = rows, sample_labels.sum()
    sums = _total(sums, hosts)
    count = max(sums[-2], 1.0)
    mean, label_mean = sums[:columns] / count, sums[-1] / count
    squares = numpy.zeros(columns + 1)
    squares[:columns] = _squares(sample, mean)
    squares[-1] = ((sample_labels - label_mean) ** 2).sum()
    deviation = (_total(squares, hosts) / count) ** 0.5
    largest = numpy.maximum(abs(mean), deviation[:columns])
    varies = deviation[:columns] > SMALLEST_DEVIATION * largest
    scaling = Scaling(
        mean=mean if settings.unbias_data else numpy.zeros(columns),
        scale=numpy.where(varies, deviation[:columns], 1.0) if settings.normalize_data else numpy.ones(columns),
        label_mean=float(label_mean) if settings.unbias_label else 0.0,
        label_scale=float(deviation[-1]) if settings.normalize_label and deviation[-1] > 0 else 1.0,
    )
    length = (deviation[:columns] ** 2 + (mean - scaling.mean) ** 2) / scaling.scale**2
    return scaling, float(length.sum())


def chunks(rows: int, columns: int) -> list[tuple[int, int]]:
    """Ranges of rows that fit the cache."""
    step = max(1, CHUNK_ELEMENTS // max(columns, 1))
    return [(begin, min(begin + step, rows)) for begin in range(0, rows, step)]


def _total(sums: "Array", hosts: Group) -> "Array":
    import torch

    found: Array = hosts.sum(torch.from_numpy(sums)).numpy()
    return found


def _is_sparse(features: Any) -> bool:
    return not hasattr(features, "__array_interface__")


def _sum(sample: Any) -> Any:
    import numpy

    if _is_sparse(sample):
        return numpy.asarray(sample.sum(axis=0, dtype="f8")).ravel()
    return sample.sum(axis=0, dtype="f8")


def _squares(sample: Any, mean: Any) -> Any:
    """Sums of squared distances from the mean, shape (features,)."""
    import numpy

    if _is_sparse(sample):
        values = sample.data.astype("f8")
        squares, sums = (
            numpy.bincount(sample.indices, weights=each, minlength=sample.shape[1]) for each in (values**2, values)
        )
        return numpy.maximum(squares - 2 * mean * sums + sample.shape[0] * mean**2, 0)
    total = numpy.zeros(sample.shape[1])
    for begin, end in chunks(*sample.shape):
        total += ((sample[begin:end] - mean) ** 2).sum(axis=0)
    return total
