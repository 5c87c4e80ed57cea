"""A uniform sample of rows, in one pass, in as much memory as the sample takes."""

from collections.abc import Callable
from typing import Any


class Reservoir:
    """Keeps `capacity` of all rows that are offered, each with the same chance; if they are fewer, all, in their order."""

    def __init__(self, capacity: int, *, seed: int):
        import numpy

        self.capacity = capacity
        self.offered = 0
        self._random = numpy.random.default_rng(seed)
        self._parts: list[tuple[Any, Any]] = []

    @property
    def held(self) -> int:
        return min(self.offered, self.capacity)

    def offer(self, count: int, take: Callable[[Any], tuple[Any, Any]]) -> None:
        """`take` gives features, shape (n, columns), and labels, shape (n, ...), of those of the `count` rows that are kept: what
        is not kept need not be made."""
        import numpy

        first = min(count, max(0, self.capacity - self.offered))
        if first:
            self._parts.append(take(slice(0, first)))
        places = numpy.arange(self.offered + first, self.offered + count)
        self.offered += count
        slots = self._random.integers(
            0, places + 1
        )  # row n, from 0, is kept with chance capacity/(n + 1), for any other
        kept = numpy.flatnonzero(slots < self.capacity)
        if len(kept):
            # Of several rows for one slot the last stays.
            last = len(kept) - 1 - numpy.unique(slots[kept][::-1], return_index=True)[1]
            kept = kept[numpy.sort(last)]
            features, labels = self.rows()
            features[slots[kept]], labels[slots[kept]] = take(first + kept)

    def rows(self) -> tuple[Any, Any]:
        """Features and labels of the rows kept so far. There must be some."""
        import numpy

        if len(self._parts) > 1:
            count = sum(len(features) for features, _ in self._parts)
            whole = [numpy.empty((count, *part.shape[1:]), numpy.float32) for part in self._parts[0]]
            begin = 0
            while self._parts:  # each is let go as soon as it is copied
                features, labels = self._parts.pop(0)
                whole[0][begin : begin + len(features)] = features
                whole[1][begin : begin + len(features)] = labels
                begin += len(features)
            self._parts = [(whole[0], whole[1])]
        return self._parts[0]

    def draw(self, count: int) -> None:
        """Keep only so many of the rows that are there, each with the same chance, in their order."""
        import numpy

        features, labels = self.rows()
        if count < len(features):
            kept = numpy.sort(self._random.choice(len(features), count, replace=False))
            self._parts = [(features[kept], labels[kept])]


def shares(row_counts: list[int], *, sample_size: int, seed: int) -> list[int]:
    """How many of a uniform sample of all hosts' rows are of each host's. They add up to `sample_size`, or to all rows."""
    import numpy

    wanted = min(sample_size, sum(row_counts))
    random = numpy.random.default_rng(seed)
    if sum(row_counts) < 10**9:  # numpy's limit for the exact distribution
        return [int(share) for share in random.multivariate_hypergeometric(row_counts, wanted, method="marginals")]
    return [int(share) for share in random.multinomial(wanted, numpy.array(row_counts) / sum(row_counts))]
