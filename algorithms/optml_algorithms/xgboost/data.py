"""Channels -> rows that are fit for the objective -> matrices of XGBoost."""

import filecmp
import logging
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from optml_algorithms.data.channel import read
from optml_algorithms.data.files import content_of, data_files
from optml_algorithms.data.rows import Rows, require_labels
from optml_algorithms.metrics import CLASSIFICATION
from optml_algorithms.xgboost.hyperparameters import Settings
from optml_toolkit.container import Channel, UserError

FORMATS = ("libsvm", "csv", "parquet", "recordio")

log = logging.getLogger("xgboost")


def check_channels(channels: Mapping[str, Channel]) -> Mapping[str, Channel]:
    problems = [] if "train" in channels else ["Missing required channel: train"]
    problems += [f"Extraneous channel found: {name}" for name in sorted(set(channels) - {"train", "validation"})]
    problems += [
        f"Pipe mode is no longer supported by XGBoost (channel {channel.name!r}). Please use Fast File mode or File mode"
        for channel in channels.values()
        if channel.input_mode == "Pipe"
    ]
    if problems:
        raise UserError("\n".join(problems))
    return channels


def rows_of(channel: Channel, wanted: Settings) -> Rows | None:
    """All rows of a channel on this host, with labels that the objective takes; None if it has no data."""
    weighted = wanted.csv_weights
    if weighted and (found := content_of(channel, formats=FORMATS).format) != "csv":
        raise UserError(
            f"csv_weights is for text/csv, and the {channel.name} channel is {found}"
            + ("; in libsvm the weight follows the label: <label>:<weight>" if found == "libsvm" else "")
        )
    rows = read(channel, formats=FORMATS, weighted=weighted)
    if rows is not None:
        require_labels(rows)
        if rows.labels.ndim > 1:
            raise UserError(f"{rows.where(0)} has {rows.labels.shape[1]} labels, and XGBoost takes one for each row")
        check_labels(rows, wanted)
        check_weights(rows)
    return rows


def check_labels(rows: Rows, wanted: Settings) -> None:
    """Each in the range of the objective. `rows.labels`: shape (rows,)."""
    import numpy

    labels = rows.labels
    finite = numpy.isfinite(labels)
    if not finite.all():
        raise UserError(f"{rows.where(int(finite.argmin()))}: the label is infinite")
    objective = wanted.objective
    allowed, text = label_range(objective, wanted.class_count)
    good = allowed(labels)
    if not good.all():
        row = int(good.argmin())
        raise UserError(f"{rows.where(row)}: label {labels[row]:g}, and {objective} takes labels that are {text}")
    classes = [name for name in wanted.computed_metrics if name in CLASSIFICATION]
    if classes and objective.startswith("binary:"):
        whole = labels == labels.astype(bool)
        if not whole.all():
            row = int(whole.argmin())
            raise UserError(
                f"{rows.where(row)}: label {labels[row]:g}, and metric {classes[0]!r} is for labels 0 and 1: take another"
            )


def label_range(objective: str, class_count: int) -> tuple[Callable[[Any], Any], str]:
    """Which labels an objective takes: a function from labels, shape (rows,), to bools; and in words."""
    if objective.startswith("multi:"):
        return (
            lambda labels: (labels >= 0) & (labels < class_count) & (labels == labels.round()),
            f"whole numbers from 0 to num_class - 1, which is {class_count - 1}",
        )
    if objective == "binary:hinge":
        return lambda labels: (labels == 0) | (labels == 1), "0 or 1"
    if objective.startswith("binary:") or objective == "reg:logistic":
        return lambda labels: (labels >= 0) & (labels <= 1), "from 0 to 1"
    if objective in ("count:poisson", "reg:tweedie") or objective.startswith("rank:"):
        return lambda labels: labels >= 0, "0 or more"
    if objective in ("reg:gamma", "survival:aft"):
        return lambda labels: labels > 0, "above 0"
    if objective == "reg:squaredlogerror":
        return lambda labels: labels > -1, "above -1"
    return lambda labels: labels >= -math.inf, "numbers"


def check_weights(rows: Rows) -> None:
    import numpy

    if rows.weights is None:
        return
    good = numpy.isfinite(rows.weights) & (rows.weights >= 0)
    if not good.all():
        row = int(good.argmin())
        raise UserError(f"{rows.where(row)}: weight {rows.weights[row]:g}; a weight is a number from 0")


def matrix_of(rows: Rows, wanted: Settings, *, feature_count: int) -> Any:
    """A DMatrix of `feature_count` columns: libsvm says only how many it saw."""
    import xgboost

    features = rows.features
    if features.shape[1] < feature_count:
        features = features.copy()
        features.resize((features.shape[0], feature_count))
    try:
        matrix = xgboost.DMatrix(
            features, rows.labels, weight=rows.weights, qid=rows.groups, nthread=wanted.library.get("nthread")
        )
    except xgboost.core.XGBoostError as error:
        if "contains `inf`" in str(error):
            raise UserError(f"Input data contains `inf`: {_first_infinite(rows)}") from error
        if "qid" in str(error):
            raise UserError(f"{rows.where(0)}: rows of one qid must follow each other, sorted by qid") from error
        raise
    if wanted.objective == "survival:aft":  # no format here has room for an interval: the label is when it happened
        matrix.set_float_info("label_lower_bound", rows.labels)
        matrix.set_float_info("label_upper_bound", rows.labels)
    return matrix


def _first_infinite(rows: Rows) -> str:
    import numpy

    values = rows.features.data if rows.is_sparse else rows.features
    row, column = rows.cell(int(numpy.flatnonzero(numpy.isinf(values))[0]))
    return f"{rows.where(row)}, feature {column} (counted from 0)"


def empty_matrix(feature_count: int, wanted: Settings) -> Any:
    """What a host without rows of a data set holds instead."""
    import numpy

    nothing = numpy.empty(0, dtype=numpy.float32)
    return matrix_of(
        Rows(features=numpy.empty((0, feature_count), dtype=numpy.float32), labels=nothing),
        wanted,
        feature_count=feature_count,
    )


def warn_of_same_files(channels: Mapping[str, Channel]) -> None:
    """A file that is in both channels makes validation scores too good."""
    seen: dict[tuple[str, int], Path] = {}
    for channel in channels.values():
        here = {(file.name, file.stat().st_size): file for file in data_files(channel)}
        for key in here.keys() & seen.keys():
            if filecmp.cmp(here[key], seen[key], shallow=False):
                log.warning("Suspected identical files found. %s and %s have the same content", seen[key], here[key])
        seen |= here
