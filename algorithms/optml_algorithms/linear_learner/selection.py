"""Which candidate is best, and whether training goes on: by one epoch's numbers after the other."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy

    Array = numpy.ndarray[Any, numpy.dtype[numpy.float64]]


@dataclass(frozen=True)
class Judgement:
    """Of all candidates after an epoch: `losses` and `criteria` (higher is better), shape (models,)."""

    losses: "Array"
    criteria: "Array"


@dataclass(frozen=True)
class Found:
    """The best candidate of an epoch. `is_better`: than those of all epochs before."""

    candidate: int
    criterion: float
    loss: float
    is_better: bool


class Choice:
    """Remembers the best of all epochs: the highest criterion, and among equals the lowest loss."""

    def __init__(self) -> None:
        self._best = (-math.inf, -math.inf)

    def of(self, judged: Judgement) -> Found:
        """A candidate whose loss is not finite is not better than anything."""
        import numpy

        finite = numpy.isfinite(judged.losses)
        criteria = numpy.where(finite, judged.criteria, -numpy.inf)
        losses = numpy.where(finite, judged.losses, numpy.inf)
        number = int(numpy.lexsort([losses, -criteria])[0])
        criterion, loss = float(criteria[number]), float(losses[number])
        is_better = (criterion, -loss) > self._best
        if is_better:
            self._best = (criterion, -loss)
        return Found(number, criterion, loss, is_better)


class Progress:
    """Counts epochs in which nothing became better by the tolerance: neither the criterion nor the loss."""

    def __init__(self, *, patience: int, tolerance: float):
        self._patience, self._tolerance = patience, tolerance
        self._criterion, self._loss = -math.inf, math.inf
        self._epochs_without = 0

    def is_over(self, found: Found, *, by_criterion: bool) -> bool:
        """AWS's learner goes by the criterion alone, or by the loss alone; a criterion on few rows stands still long before the
        model does, so here a lower loss is progress too."""
        better = False
        if by_criterion and found.criterion > self._criterion + self._tolerance * _size(self._criterion):
            self._criterion, better = found.criterion, True
        if found.loss < self._loss - self._tolerance * _size(self._loss):
            self._loss, better = found.loss, True
        self._epochs_without = 0 if better else self._epochs_without + 1
        return self._epochs_without >= self._patience


def _size(value: float) -> float:
    return abs(value) if math.isfinite(value) else 0.0
