"""Train XGBoost as AWS's built-in does: two channels, a line of metrics per round, the model in xgboost-model."""

import contextlib
import logging
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optml_algorithms.data.csv import read_csv
from optml_algorithms.data.files import data_files, format_of
from optml_algorithms.data.libsvm import read_libsvm
from optml_algorithms.metrics import metric_named
from optml_algorithms.xgboost.hyperparameters import MAXIMISED, Settings, settings
from optml_toolkit.container import Channel, Container, UserError

MODEL = "xgboost-model"
CHECKPOINT = re.compile(r"xgboost-checkpoint\.(?P<round>\d+)")
KEPT_CHECKPOINTS = 5

log = logging.getLogger("xgboost")


def train(container: Container) -> None:
    """Hyperparameters and channels of a container -> model/xgboost-model."""
    wanted = settings(container.hyperparameters())
    check_hosts(container.resources().hosts)
    channels = check_channels(container.channels())
    for name in wanted.without_effect:
        log.warning("Hyperparameter %s has no effect in XGBoost of today", name)
    training = load(channels["train"], wanted, what="training")
    log.info("Train matrix has %s rows and %s columns", training.num_row(), training.num_col())
    validation = None
    if "validation" in channels:
        validation = load(channels["validation"], wanted, what="validation")
        log.info("Validation matrix has %s rows", validation.num_row())
        if validation.num_col() > training.num_col():
            raise UserError(
                f"the validation channel has {validation.num_col()} columns and the train channel {training.num_col()}: "
                "both must have the same features"
            )
    booster = boost(wanted, training, validation, container)
    save(booster, container.model_dir / MODEL)


def check_hosts(hosts: Sequence[str]) -> None:
    if len(hosts) > 1:
        raise UserError(
            f"ResourceConfig.InstanceCount is {len(hosts)}, and this version of the XGBoost algorithm trains on one host: set 1"
        )
    log.info("Single node training.")


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


def load(channel: Channel, wanted: Settings, *, what: str) -> Any:
    """A channel as a DMatrix."""
    read = {"csv": csv_matrix, "libsvm": libsvm_matrix}[format_of(channel, default="libsvm")]
    files = data_files(channel)
    if not files:
        raise UserError(f"No data in {what} channel path {channel.folder}")
    with library_errors():
        return read(files, wanted)


def csv_matrix(files: Sequence[Path], wanted: Settings) -> Any:
    """Column 0 is the label, with csv_weights column 1 the weight."""
    import xgboost

    table = read_csv(files)
    first_feature = 2 if wanted.csv_weights else 1
    if table.shape[1] <= first_feature:
        raise UserError(f"{files[0]} has {table.shape[1]} columns, and so no feature: the label is the first column")
    check_labels(table[:, 0], files)
    return xgboost.DMatrix(
        table[:, first_feature:],
        table[:, 0],
        weight=table[:, 1] if wanted.csv_weights else None,
        nthread=wanted.library.get("nthread"),
    )


def libsvm_matrix(files: Sequence[Path], wanted: Settings) -> Any:
    import xgboost

    if wanted.csv_weights:
        raise UserError("csv_weights is for text/csv; in libsvm the weight follows the label: <label>:<weight>")
    sparse = read_libsvm(files)
    check_labels(sparse.labels, files)
    return xgboost.DMatrix(
        sparse.features, sparse.labels, weight=sparse.weights, qid=sparse.groups, nthread=wanted.library.get("nthread")
    )


def check_labels(labels: Any, files: Sequence[Path]) -> None:
    """`labels`: shape (rows,), of all files."""
    import numpy

    if numpy.isnan(labels).any():
        row = int(numpy.isnan(labels).argmax()) + 1
        where = f"row {row:,}" if len(files) == 1 else f"row {row:,} of all files in the order of their names"
        raise UserError(
            f"Got input data without labels. Please check the input data set: {where} has no number for its label "
            f"({files[0].parent})"
        )


@contextlib.contextmanager
def library_errors() -> Iterator[None]:
    """What XGBoost refuses is the caller's to mend: its own words, without its source file and the C++ stack."""
    import xgboost

    try:
        yield
    except xgboost.core.XGBoostError as error:
        text = str(error).partition("Stack trace:")[0].strip()
        text = re.sub(r"^\[[\d:]+\] \S+:\d+: ", "", text)
        raise UserError(f"XGB train call failed with exception:\n {text}") from error


def boost(wanted: Settings, training: Any, validation: Any, container: Container) -> Any:
    """Round after round, each with its line of metrics, from the newest checkpoint if there is one."""
    import xgboost

    if wanted.library.get("device") == "cuda" and not xgboost.build_info().get("USE_CUDA"):
        raise UserError("tree_method gpu_hist needs an XGBoost with CUDA, and this one has none: use hist")
    watched = [(training, "train"), *([(validation, "validation")] if validation is not None else [])]
    checkpoints = Checkpoints(container.checkpoint_dir)
    stopper = early_stopper(wanted, has_validation=validation is not None)
    parameters = [*wanted.library.items(), *(("eval_metric", name) for name in wanted.native_metrics)]
    if container.checkpoint_dir is not None:  # else a resumed run would draw the rows of its first rounds again
        parameters.append(("seed_per_iteration", True))
    last_round = threading.Event()
    if wanted.save_on_termination:
        signal.signal(signal.SIGTERM, lambda *_: leave(container.model_dir))
    elif container.checkpoint_dir is not None:  # the round under way is saved, and nothing of it is lost
        signal.signal(signal.SIGTERM, lambda *_: last_round.set())
    with library_errors():
        booster = xgboost.Booster(parameters, [matrix for matrix, _ in watched], model_file=checkpoints.newest)
        if stopper is not None:
            stopper.resume(booster)
        for number in range(checkpoints.next_round, wanted.rounds):
            booster.update(training, number)
            values = metric_values(booster, watched, number, wanted)
            print_metrics(number, values)
            enough = stopper is not None and stopper.has_enough(booster, number, values)
            checkpoints.write(booster, number)
            if wanted.save_on_termination:
                save(booster, container.model_dir / MODEL)
            if enough:
                break
            if last_round.is_set():
                log.info("SIGTERM: leaving after round %s, whose checkpoint is written", number)
                sys.exit(0)
    checkpoints.prune(keep=KEPT_CHECKPOINTS)
    return booster if stopper is None else stopper.best(booster)


def metric_values(booster: Any, watched: Sequence[tuple[Any, str]], number: int, wanted: Settings) -> dict[str, float]:
    """`train-rmse`: value and so on; within a data set first what XGBoost computes, then what is computed here."""
    evaluated: str = booster.eval_set(watched, number)
    pairs = (part.rsplit(":", 1) for part in evaluated.split("\t")[1:])
    native = {name: float(value) for name, value in pairs}
    values: dict[str, float] = {}
    for matrix, name in watched:
        values |= {key: value for key, value in native.items() if key.startswith(f"{name}-")}
        if wanted.computed_metrics:
            labels, predicted = matrix.get_label(), booster.predict(matrix)
            classes = predicted_classes(wanted.objective, predicted)
            for metric in wanted.computed_metrics:
                of_values = metric in ("mse", "r2")
                values[f"{name}-{metric}"] = metric_named(metric)(labels, predicted if of_values else classes)
    return values


def predicted_classes(objective: str, predicted: Any) -> Any:
    """Class numbers, shape (rows,), from what XGBoost predicts: probabilities, margins or classes.

    (AWS's container takes every probability above 0 for class 1; here the threshold is 0.5, or 0 for margins.)
    """
    if predicted.ndim == 2:
        return predicted.argmax(axis=1)
    if objective.startswith("multi:"):
        return predicted
    return predicted > (0.0 if objective == "binary:logitraw" else 0.5)


def print_metrics(number: int, values: Mapping[str, float]) -> None:
    """A tab before each value: the published metric expressions look for it."""
    sys.stdout.write(f"[{number}]" + "".join(f"\t{name}:{value:.5f}" for name, value in values.items()) + "\n")
    sys.stdout.flush()


@dataclass
class EarlyStopper:
    """Stops when the watched metric has not become better for so many rounds, and cuts the model back to its best."""

    metric: str  # as printed: validation-auc
    rounds: int
    maximised: bool
    best_round: int = -1
    best_value: float = 0.0

    def resume(self, booster: Any) -> None:
        """Go on from what a checkpoint remembers in the attributes that XGBoost has for it."""
        if (best_round := booster.attr("best_iteration")) is not None:
            self.best_round, self.best_value = int(best_round), float(booster.attr("best_score"))

    def has_enough(self, booster: Any, number: int, values: Mapping[str, float]) -> bool:
        value = values[self.metric]
        is_better = value > self.best_value if self.maximised else value < self.best_value
        if self.best_round < 0 or is_better:
            self.best_round, self.best_value = number, value
            booster.set_attr(best_iteration=str(number), best_score=str(value))
        return number - self.best_round >= self.rounds

    def best(self, booster: Any) -> Any:
        if self.best_round < 0:  # resumed when all was done
            return booster
        best = booster[: self.best_round + 1]
        best.set_attr(best_iteration=str(self.best_round), best_score=str(self.best_value))
        return best


def early_stopper(wanted: Settings, *, has_validation: bool) -> EarlyStopper | None:
    """None, and a line that says why, where there is nothing to go by; AWS's container is silent then."""
    if wanted.early_stopping_rounds is None:
        return None
    if not has_validation or wanted.early_stopping_metric is None:
        log.warning("early_stopping_rounds has no effect: it needs a validation channel and eval_metric")
        return None
    metric = wanted.early_stopping_metric
    return EarlyStopper(f"validation-{metric}", wanted.early_stopping_rounds, metric.partition("@")[0] in MAXIMISED)


class Checkpoints:
    """xgboost-checkpoint.<round> in the job's checkpoint folder, rounds from 0; nothing happens for a job without one."""

    def __init__(self, folder: Path | None):
        self.folder = folder
        rounds = sorted(self._rounds())
        self._kept = frozenset(rounds)  # those of an earlier run are its own
        self.next_round = rounds[-1] + 1 if rounds else 0
        if rounds:
            log.info("Checkpoint loaded from %s", self._file(rounds[-1]))
            log.info("Resuming from iteration %s", self.next_round)

    @property
    def newest(self) -> bytearray | None:
        """The model to go on from, as bytes: by their name, XGBoost would guess the format."""
        return bytearray(self._file(self.next_round - 1).read_bytes()) if self.next_round else None

    def _rounds(self) -> list[int]:
        if self.folder is None or not self.folder.is_dir():
            return []
        found = (CHECKPOINT.fullmatch(name) for name in os.listdir(self.folder))
        return [int(match["round"]) for match in found if match]

    def _file(self, number: int) -> Path:
        assert self.folder is not None
        return self.folder / f"xgboost-checkpoint.{number}"

    def write(self, booster: Any, number: int) -> None:
        if self.folder is not None:
            save(booster, self._file(number))
            self.prune(keep=KEPT_CHECKPOINTS)

    def prune(self, *, keep: int) -> None:
        """Remove this run's older ones, unless their upload is under way."""
        mine = sorted(set(self._rounds()) - self._kept)
        for number in mine[: max(0, len(mine) - keep)]:
            file = self._file(number)
            uploading, uploaded = (file.with_name(f"{file.name}.sagemaker-upload{end}") for end in ("ing", "ed"))
            if not uploading.exists() or uploaded.exists():
                file.unlink(missing_ok=True)


def save(booster: Any, file: Path) -> None:
    """A model under its final name is whole: written beside it, under a name that is not uploaded, then renamed."""
    beside = file.with_name(f"{file.name}.sagemaker-ignore")
    beside.write_bytes(booster.save_raw(raw_format="ubj"))
    beside.replace(file)


def leave(model_dir: Path) -> None:
    """On SIGTERM, with save_model_on_termination: the model of the last whole round is what stays."""
    for path in model_dir.iterdir():
        if path.name != MODEL and path.is_file():
            path.unlink()
    sys.exit(0)
