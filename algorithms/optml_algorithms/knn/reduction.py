"""Random projections that keep distances and inner products roughly: the same one for the index and for every query."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Reduction:
    """`kind`: sign or fjlt. Everything random in it follows from `seed`, which the model keeps."""

    kind: str
    seed: int
    input_dim: int
    target_dim: int


class Projection:
    """A reduction, ready to be applied: its random numbers are drawn."""

    def __init__(self, reduction: Reduction):
        import numpy

        self.reduction = reduction
        # RandomState, whose numbers are promised never to change: a model must be read by any version of numpy.
        random = numpy.random.RandomState(reduction.seed)
        if reduction.kind == "sign":
            shape = (reduction.input_dim, reduction.target_dim)
            self._signs = (random.randint(0, 2, shape) * 2 - 1).astype(numpy.float32)
        else:
            self._signs = (random.randint(0, 2, reduction.input_dim) * 2 - 1).astype(numpy.float32)
            self._kept = numpy.sort(random.permutation(reduction.input_dim)[: reduction.target_dim])

    def __call__(self, features: Any) -> Any:
        """float32, shape (rows, target_dim), from float32 of shape (rows, input_dim), a numpy array or a CSR matrix.

        sign: times a matrix of random signs (Achlioptas), for n rows O(n d k). fjlt: random signs, then an orthonormal cosine
        transform, which spreads every feature over all, then a random choice of its outputs (Ailon and Chazelle), O(n d log d).
        """
        import numpy

        inputs, targets = self.reduction.input_dim, self.reduction.target_dim
        if self.reduction.kind == "sign":
            return numpy.asarray(features @ self._signs, dtype=numpy.float32) / numpy.float32(numpy.sqrt(targets))
        from scipy.fft import dct

        dense = features.toarray() if hasattr(features, "toarray") else features
        spread = dct(dense * self._signs, axis=1, norm="ortho", overwrite_x=True, workers=-1)
        return spread[:, self._kept] * numpy.float32(numpy.sqrt(inputs / targets))
