"""A k-NN model: a faiss index, the labels of its rows, and what else a query needs. Made, saved, loaded, asked.

The files are AWS's: `model_algo-1`, the index as faiss writes it; `model_algo-1.labels`, float32 as they lie in memory;
`model_algo-1.json`, which may be edited: k and predictor_type count as they are there.
"""

import contextlib
import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from optml_algorithms.knn.hyperparameters import (
    CLASSIFIER,
    COSINE,
    FLAT,
    IVF_FLAT,
    IVF_PQ,
    L2,
    REGRESSOR,
    Settings,
)
from optml_algorithms.knn.reduction import Projection, Reduction
from optml_algorithms.models import Prediction, Task
from optml_algorithms.words import counted
from optml_toolkit.container import UserError

INDEX, LABELS, ABOUT = "model_algo-1", "model_algo-1.labels", "model_algo-1.json"
VERSION = "1.0"
SEED = 0
PQ_BITS = 8
QUERY_BYTES = 64 << 20  # of dense rows that are made of sparse ones, or asked about, at a time
MAX_CLASSES = 1000  # for which every row gets a score


@dataclass(frozen=True, kw_only=True)
class About:
    """What model_algo-1.json says. `feature_dim` and `label_size` are ours; AWS's file has the others."""

    k: int
    predictor_type: str
    dimension_reduction: Reduction | None
    normalize: bool
    feature_dim: int
    label_size: int = 1


@dataclass(frozen=True, kw_only=True)
class Neighbours:
    """For each query, nearest first, shape (queries, k): `distances` are squared for L2, similarities for inner product and
    cosine; `labels` are (queries, k), or (queries, k, n) for n labels a row; `rows` are the places in the index."""

    distances: Any
    labels: Any
    rows: Any


class Model:
    """k-NN, ready to be asked. `index`: faiss's. `labels`: float32, shape (rows, label_size)."""

    algorithm = "knn"

    def __init__(self, about: About, index: Any, labels: Any):
        self.about, self.index, self.labels = about, index, labels

    @property
    def feature_count(self) -> int | None:
        return self.about.feature_dim

    @property
    def task(self) -> Task:
        """A classifier is binary if its labels are 0 and 1."""
        if self.about.predictor_type == REGRESSOR:
            return "regression"
        return "binary" if set(self._classes.tolist()) <= {0.0, 1.0} else "multiclass"

    def predict(self, features: Any) -> Prediction:
        """`features`: float32, shape (rows, feature_dim), as in training, a numpy array or a scipy CSR matrix.

        `predicted_label`: float32, shape (rows,), or (rows, n) for n labels a row: the commonest label among the k neighbours
        (of several, that of the nearest), or their mean. `score`, of a classifier with classes 0, 1, ...: which share of the
        neighbours are of a class; shape (rows,), of class 1, or (rows, classes). UserError for another number of columns, NaN
        or infinity.
        """
        import numpy

        rows, label_size = features.shape[0], self.about.label_size
        predicted = numpy.empty((rows, label_size), numpy.float32)
        score = self._room_for_scores(rows)
        for begin, neighbours in self._asked(features):
            end = begin + len(neighbours.rows)
            known = neighbours.rows >= 0
            for number in range(label_size):
                if self.about.predictor_type == REGRESSOR:
                    predicted[begin:end, number] = self.labels[neighbours.rows, number].mean(axis=1, where=known)
                else:
                    classes = self._class_numbers[neighbours.rows, number]
                    predicted[begin:end, number] = self._classes[commonest(classes, known)]
            if score is not None:
                score[begin:end] = _vote_shares(
                    self._class_numbers[neighbours.rows, 0], known, self._classes, score.shape[1]
                )
        if score is not None and self.task == "binary":
            score = score[:, 1]
        return Prediction(
            predicted_label=predicted[:, 0] if label_size == 1 else predicted,
            score=score,
            is_probability=score is not None,
        )

    def neighbours(self, features: Any) -> Neighbours:
        """The k nearest rows of the index for each row, as SageMaker's verbose responses have them."""
        import numpy

        parts = [part for _, part in self._asked(features)]
        rows = numpy.concatenate([part.rows for part in parts])
        labels = self.labels[rows, 0] if self.about.label_size == 1 else self.labels[rows]
        return Neighbours(distances=numpy.concatenate([part.distances for part in parts]), labels=labels, rows=rows)

    def _asked(self, features: Any) -> Iterator[tuple[int, Neighbours]]:
        if features.shape[1] != self.about.feature_dim:
            raise UserError(
                f"the data has {counted(features.shape[1], 'feature')}, and the model was trained with {self.about.feature_dim}"
            )
        if self.about.k > self.index.ntotal:
            raise UserError(
                f"k is {self.about.k}, and the index has {counted(self.index.ntotal, 'row')}: k can be at most that"
            )
        for begin, part in in_slices(features):
            distances, rows = self._searched(self.prepared(part, first_row=begin))
            yield begin, Neighbours(distances=distances, labels=None, rows=rows)

    def _searched(self, queries: Any) -> tuple[Any, Any]:
        import faiss
        import numpy

        distances, rows = self.index.search(queries, self.about.k)
        too_few = numpy.flatnonzero((rows < 0).any(axis=1))
        if len(too_few):  # the lists that were looked into hold fewer than k rows: look into all
            index = faiss.extract_index_ivf(self.index)
            probes, index.nprobe = index.nprobe, index.nlist
            distances[too_few], rows[too_few] = self.index.search(queries[too_few], self.about.k)
            index.nprobe = probes
        return distances, rows

    def prepared(self, features: Any, *, first_row: int = 0) -> Any:
        """Rows as the index has them: dense, reduced, normalised, enlarged; float32, shape (rows, index.d)."""
        import numpy

        _require_finite(features, first_row)
        return _prepared(features, self._projection, self.about.normalize, self.index.d).astype(
            numpy.float32, copy=False
        )

    @cached_property
    def _projection(self) -> Projection | None:
        reduction = self.about.dimension_reduction
        return None if reduction is None else Projection(reduction)

    @cached_property
    def _classes(self) -> Any:
        import numpy

        return numpy.unique(self.labels)

    @cached_property
    def _class_numbers(self) -> Any:
        """Where each label stands among the classes: int64, shape (rows, label_size)."""
        import numpy

        return numpy.searchsorted(self._classes, self.labels)

    def _room_for_scores(self, rows: int) -> Any:
        import numpy

        if self.about.predictor_type == REGRESSOR or self.about.label_size > 1:
            return None
        highest = self._classes[-1]
        if self._classes[0] < 0 or highest >= MAX_CLASSES or (self._classes % 1 != 0).any():
            return None
        return numpy.empty((rows, max(2, int(highest) + 1)), numpy.float32)


def commonest(classes: Any, known: Any) -> Any:
    """Of each row, the class that is there most often, of several the first: int64, shape (rows,). `known`: which count."""
    import numpy

    if classes.shape[1] == 1:
        return classes[:, 0]
    order = numpy.argsort(classes, axis=1, kind="stable")
    in_order = numpy.take_along_axis(classes, order, axis=1)
    begins = numpy.ones(classes.shape, bool)
    begins[:, 1:] = in_order[:, 1:] != in_order[:, :-1]
    run = numpy.cumsum(begins.reshape(-1)) - 1
    counted = numpy.take_along_axis(known, order, axis=1).reshape(-1)
    lengths = numpy.bincount(run, weights=counted)
    votes = numpy.empty(classes.shape)
    numpy.put_along_axis(votes, order, lengths[run].reshape(classes.shape), axis=1)
    votes[~known] = 0
    return classes[numpy.arange(len(classes)), votes.argmax(axis=1)]


def _vote_shares(class_numbers: Any, known: Any, classes: Any, width: int) -> Any:
    """float64, shape (rows, width): the share of each class 0, 1, ... among the neighbours."""
    import numpy

    rows = len(class_numbers)
    places = numpy.arange(rows)[:, None] * width + classes[class_numbers].astype(numpy.int64)
    votes = numpy.bincount(places.reshape(-1), weights=known.reshape(-1), minlength=rows * width).reshape(rows, width)
    return votes / votes.sum(axis=1, keepdims=True)


def in_slices(features: Any) -> Iterator[tuple[int, Any]]:
    """Rows, a bounded number at a time, each with where it begins; sparse ones stay sparse."""
    step = max(1, QUERY_BYTES // (4 * max(1, features.shape[1])))
    for begin in range(0, features.shape[0], step):
        yield begin, features[begin : begin + step]


def _prepared(features: Any, projection: Projection | None, normalize: bool, dim: int) -> Any:
    import numpy

    if projection is not None:
        features = projection(features)
    elif hasattr(features, "toarray"):
        features = features.toarray()
    if normalize:
        lengths = numpy.sqrt(numpy.einsum("ij,ij->i", features, features))[:, None]
        features = features / numpy.where(lengths > 0, lengths, 1)
    if features.shape[1] < dim:  # so that the product quantiser divides it
        features = numpy.pad(features, ((0, 0), (0, dim - features.shape[1])))
    return numpy.ascontiguousarray(features, dtype=numpy.float32)


def _require_finite(features: Any, first_row: int) -> None:
    import numpy

    values = features.data if hasattr(features, "toarray") else features
    if not numpy.isfinite(values).all():
        dense = features.toarray() if hasattr(features, "toarray") else features
        row, column = numpy.argwhere(~numpy.isfinite(dense))[0]
        raise UserError(
            f"row {first_row + int(row) + 1:,}, feature {int(column) + 1} is missing, NaN or infinite; k-NN needs a number"
        )


# ---- making


def about_of(wanted: Settings, *, label_size: int) -> About:
    """What the model will say of itself; an IVFPQ target that faiss_index_pq_m does not divide is rounded up."""
    reduction = None
    if wanted.reduction is not None and wanted.reduced_dim is not None:
        target = _multiple_of(wanted.reduced_dim, wanted.pq_m)
        reduction = Reduction(kind=wanted.reduction, seed=SEED, input_dim=wanted.feature_dim, target_dim=target)
        if target > wanted.feature_dim:
            raise UserError(
                f"dimension_reduction_target {wanted.reduced_dim} becomes {target}, the next multiple of faiss_index_pq_m "
                f"{wanted.pq_m}, and must be at most feature_dim, which is {wanted.feature_dim}"
            )
    return About(
        k=wanted.k,
        predictor_type=wanted.predictor_type,
        dimension_reduction=reduction,
        normalize=wanted.index_metric == COSINE,
        feature_dim=wanted.feature_dim,
        label_size=label_size,
    )


def _multiple_of(number: int, divisor: int | None) -> int:
    return number if divisor is None else -(-number // divisor) * divisor


class Preparation:
    """Turns rows of a channel into rows of the index, before there is one."""

    def __init__(self, wanted: Settings, about: About):
        self.dim = _multiple_of(
            wanted.feature_dim if about.dimension_reduction is None else about.dimension_reduction.target_dim,
            wanted.pq_m,
        )
        self._projection = None if about.dimension_reduction is None else Projection(about.dimension_reduction)
        self._normalize = about.normalize

    def __call__(self, features: Any) -> Any:
        return _prepared(features, self._projection, self._normalize, self.dim)


def build(wanted: Settings, about: About, features: Any, labels: Any) -> Model:
    """`features`: as `Preparation` makes them, float32, (rows, columns). `labels`: float32, (rows, label_size).

    UserError for too few rows for k, for the lists, or for the product quantiser.
    """
    import faiss

    rows, dim = features.shape
    if wanted.k > rows:
        raise UserError(
            f"k is {wanted.k}, and the index has {rows} rows: lower k, or give more rows or a larger sample_size"
        )
    metric = faiss.METRIC_L2 if wanted.index_metric == L2 else faiss.METRIC_INNER_PRODUCT
    quantizer: Any = faiss.IndexFlatL2(dim) if wanted.index_metric == L2 else faiss.IndexFlatIP(dim)
    if wanted.index_type == FLAT:
        index: Any = quantizer
    else:
        lists = list_count(wanted, rows)
        if wanted.index_type == IVF_FLAT:
            index = faiss.IndexIVFFlat(quantizer, dim, lists, metric)
        else:
            assert wanted.pq_m is not None
            if rows < 1 << PQ_BITS:
                raise UserError(
                    f"index_type {IVF_PQ} learns its codes from at least {1 << PQ_BITS} rows, and there are {rows}: give more "
                    f"rows or a larger sample_size, or take {IVF_FLAT}"
                )
            index = faiss.IndexIVFPQ(quantizer, dim, lists, wanted.pq_m, PQ_BITS)
        index.nprobe = min(wanted.probe_count, lists)
        index.train(features)
    index.add(features)
    return Model(about, index, labels)


def list_count(wanted: Settings, rows: int) -> int:
    if wanted.list_count is None:
        return max(1, math.isqrt(min(wanted.sample_size, rows)))
    if wanted.list_count > rows:
        raise UserError(
            f"faiss_index_ivf_nlists is {wanted.list_count}, and there are {rows} rows: lower it, or leave it at auto"
        )
    return wanted.list_count


# ---- saving and loading


def save(model: Model, model_dir: Path) -> None:
    """Each file appears whole, the index last: a folder with an index is a model."""
    import faiss
    import numpy

    about = asdict(model.about)
    reduction = model.about.dimension_reduction
    about["dimension_reduction"] = reduction and {
        "type": reduction.kind,
        "seed": reduction.seed,
        "target_dim": reduction.target_dim,
        "input_dim": reduction.input_dim,
    }
    text = json.dumps({**about, "version": VERSION}, indent=2) + "\n"
    with _whole(model_dir / ABOUT) as beside:
        beside.write_text(text)
    with _whole(model_dir / LABELS) as beside:
        numpy.ascontiguousarray(model.labels, dtype="<f4").tofile(beside)
    with _whole(model_dir / INDEX) as beside:
        faiss.write_index(model.index, str(beside))


@contextlib.contextmanager
def _whole(file: Path) -> Iterator[Path]:
    beside = file.with_name(f"{file.name}.sagemaker-ignore")
    yield beside
    beside.replace(file)


def recognises(model_dir: Path) -> bool:
    return all((model_dir / name).is_file() for name in (INDEX, LABELS, ABOUT))


def load(model_dir: Path) -> Model:
    """The model in a folder. Nothing is built again. UserError naming the file that is broken or does not fit the others."""
    import faiss
    import numpy

    about = _read_about(model_dir / ABOUT)
    try:
        index = faiss.read_index(str(model_dir / INDEX))
    except RuntimeError as error:
        raise UserError(f"{model_dir / INDEX} is no index that faiss can read: {error}") from error
    labels = numpy.fromfile(model_dir / LABELS, "<f4")
    if about.feature_dim == 0:  # a file of AWS's, which does not say; without reduction the index does
        reduction = about.dimension_reduction
        about = replace(about, feature_dim=index.d if reduction is None else reduction.input_dim)
    if len(labels) != index.ntotal * about.label_size:
        raise UserError(
            f"{model_dir / LABELS} has {len(labels):,} labels, and {model_dir / INDEX} has {index.ntotal:,} rows of "
            f"{about.label_size}: they are not of one model"
        )
    width = about.feature_dim if about.dimension_reduction is None else about.dimension_reduction.target_dim
    if width > index.d:
        raise UserError(
            f"{model_dir / ABOUT} says that rows have {width} features, and those of the index have {index.d}"
        )
    return Model(about, index, labels.reshape(-1, about.label_size))


def _read_about(file: Path) -> About:
    try:
        found = json.loads(file.read_bytes())
        reduction = found.get("dimension_reduction") or None
        about = About(
            k=_whole_number(found["k"]),
            predictor_type=found["predictor_type"],
            dimension_reduction=reduction
            and Reduction(
                kind=reduction["type"],
                seed=_whole_number(reduction["seed"], least=0),
                input_dim=_whole_number(reduction["input_dim"]),
                target_dim=_whole_number(reduction["target_dim"]),
            ),
            normalize=bool(found.get("normalize", False)),
            feature_dim=_whole_number(found.get("feature_dim", 0), least=0),
            label_size=_whole_number(found.get("label_size", 1)),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{file} does not describe a k-NN model: {type(error).__name__} {error}") from error
    if about.predictor_type not in (CLASSIFIER, REGRESSOR):
        raise UserError(f"{file}: predictor_type must be {CLASSIFIER} or {REGRESSOR}, and is {about.predictor_type!r}")
    if about.dimension_reduction is not None:
        kind, target = about.dimension_reduction.kind, about.dimension_reduction.target_dim
        if kind not in ("sign", "fjlt") or target > about.dimension_reduction.input_dim:
            raise UserError(
                f"{file}: dimension_reduction must be of type sign or fjlt, to fewer dimensions than before"
            )
    return about


def _whole_number(value: Any, *, least: int = 1) -> int:
    number = int(value)
    if number != value or number < least:
        raise ValueError(f"{value!r} is no whole number from {least}")
    return number
