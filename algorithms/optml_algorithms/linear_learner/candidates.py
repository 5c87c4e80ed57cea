"""The models that are trained together: the settings as given, and others around them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from optml_algorithms.linear_learner.hyperparameters import Settings

if TYPE_CHECKING:
    import numpy

    Array = numpy.ndarray[Any, numpy.dtype[numpy.float64]]

AUTO_MODELS = 32
MAX_AUTO_NUMBERS = (
    1 << 25
)  # weights, or scores of a batch, of all candidates, beyond which `auto` takes fewer: 128 MiB a copy

LEARNING_RATES = {"adam": 0.03, "rmsprop": 0.01}  # sgd's goes by the size of the rows
SMALLEST_L1, LARGEST_L1 = 1e-7, 1e-3


@dataclass(frozen=True)
class Candidates:
    """One number of each kind for each candidate: shape (models,)."""

    learning_rate: "Array"
    wd: "Array"
    l1: "Array"
    positive_weight: "Array"

    def __len__(self) -> int:
        return len(self.learning_rate)

    def describe(self, number: int) -> Mapping[str, float]:
        return {
            "learning_rate": float(f"{self.learning_rate[number]:.4g}"),
            "wd": float(f"{self.wd[number]:.4g}"),
            "l1": float(f"{self.l1[number]:.4g}"),
            "positive_example_weight_mult": float(f"{self.positive_weight[number]:.4g}"),
        }


def number_of_models(settings: Settings, *, features: int, batch_rows: int) -> int:
    if settings.num_models is not None:
        return settings.num_models
    numbers_of_one = max(features + 1, batch_rows) * settings.outputs
    return max(1, min(AUTO_MODELS, MAX_AUTO_NUMBERS // numbers_of_one))


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Of the training data of all hosts. `row_square` is the mean squared length of a normalised row: what a step of plain
    gradient descent must be small against. `is_validated`: there is a validation channel."""

    rows: int
    row_square: float
    negatives_per_positive: float
    is_validated: bool


def candidates(settings: Settings, facts: Facts, *, models: int) -> Candidates:
    """Candidate 0 is as given. A given value varies by a small factor in the others, an `auto` one by a large; 0 stays 0.

    `auto` for wd is one over the rows: what scikit-learn's C=1 is. Without a validation channel nothing would tell that a model
    only fits its training data, so no candidate has less. The others are points of a Halton sequence: any number of them covers
    the space evenly, and the first are always the same.
    """
    import numpy

    rate = settings.learning_rate
    base_rate = rate or LEARNING_RATES.get(settings.optimizer) or 0.5 / (1.0 + facts.row_square)
    others = numpy.arange(1, models)
    one, two, three, four = (_halton(others, prime) for prime in (2, 3, 5, 7))
    if settings.wd is not None:
        wd, wds = settings.wd, settings.wd * _around(two, 10)
    else:
        wd = 1 / facts.rows
        wds = wd * (_around(two, 100) if facts.is_validated else 100**two)
    if settings.l1 is not None:
        l1, l1s = settings.l1, settings.l1 * _around(three, 10)
    else:  # half of the candidates: it is wanted where few features matter
        share = numpy.maximum(2 * three - 1, 0)
        l1, l1s = 0.0, numpy.where(three < 0.5, 0.0, SMALLEST_L1 * (LARGEST_L1 / SMALLEST_L1) ** share)
    weight = settings.positive_example_weight_mult
    if weight == "auto":
        first, rest = 1.0, numpy.where(four < 0.5, 1.0, facts.negatives_per_positive)
    else:
        first = facts.negatives_per_positive if weight == "balanced" else float(weight)
        rest = numpy.full(models - 1, first)
    return Candidates(
        learning_rate=numpy.append(base_rate, base_rate * _around(one, 3 if rate else 10)),
        wd=numpy.append(wd, wds),
        l1=numpy.append(l1, l1s),
        positive_weight=numpy.append(first, rest),
    )


def _around(points: "Array", factor: float) -> "Array":
    """Points in (0, 1) -> factors from 1/factor to factor, even in the logarithm."""
    found: Array = factor ** (2 * points - 1)
    return found


def _halton(numbers: Any, base: int) -> "Array":
    """The van der Corput sequence: digits of the number mirrored at the point, in (0, 1)."""
    import numpy

    rest, fraction = numbers.copy(), 1.0
    points = numpy.zeros(len(numbers))
    while rest.any():
        fraction /= base
        points += fraction * (rest % base)
        rest //= base
    return points
