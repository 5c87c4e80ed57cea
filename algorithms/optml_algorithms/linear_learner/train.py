"""Train the linear learner as AWS's built-in does: normalise, train candidates together, choose one and its threshold, score."""

import logging
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from optml_algorithms.linear_learner.candidates import Facts, candidates, number_of_models
from optml_algorithms.linear_learner.examples import Examples, load
from optml_algorithms.linear_learner.fit import Fitting, Part, Weighing, mini_batch_size, weighing_of
from optml_algorithms.linear_learner.hosts import Group
from optml_algorithms.linear_learner.hyperparameters import BINARY, REGRESSOR, Settings, settings
from optml_algorithms.linear_learner.judge import Judge
from optml_algorithms.linear_learner.losses import loss_of
from optml_algorithms.linear_learner.model import LinearModel, save
from optml_algorithms.linear_learner.products import DenseRows, SparseRows
from optml_algorithms.linear_learner.scaling import Scaling, measure
from optml_toolkit.container import Channel, Container, UserError

if TYPE_CHECKING:
    import torch

SELECTION_SCORES = 1 << 21  # scores of all candidates together by which they are judged after each epoch
LEAST_SELECTION_ROWS = 10_000
OPERATIONS_OF_A_THREAD = 1e8  # of one update; below it, threads wait for each other longer than they work
SEED = 0

log = logging.getLogger("linear-learner")


def train(container: Container) -> None:
    """Hyperparameters and channels of a container -> model/model_algo-1."""
    # Hosts may share a machine: a thread that waits is not to spin. (Read when torch is loaded.)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    wanted = settings(container.hyperparameters())
    channels = check_channels(container.channels())
    import_torch()
    for each in wanted.without_effect:
        log.warning("Hyperparameter %s has no effect", each)
    with Group.meet(container.resources()) as hosts:
        hosts.join(container.resources())
        data = load(channels, wanted, hosts)
        model = fit(data, wanted, hosts)
        if hosts.is_first:
            save(model, container.model_dir)
        hosts.leave()


def import_torch() -> None:
    """Without the garbage collector, which finds nothing in half a million new objects: a tenth of the time."""
    import gc

    gc.disable()
    try:
        import torch  # noqa: F401
    finally:
        gc.enable()


def check_channels(channels: Mapping[str, Channel]) -> Mapping[str, Channel]:
    problems = [] if "train" in channels else ["Missing required channel: train"]
    problems += [
        f"Extraneous channel found: {name}" for name in sorted(set(channels) - {"train", "validation", "test"})
    ]
    if problems:
        raise UserError("\n".join(problems))
    return channels


def fit(data: Mapping[str, Examples], wanted: Settings, hosts: Group) -> LinearModel:
    """Train on data["train"], choose by data["validation"] if it is there, score all. Dense features are normalised in place.

    UserError if there is only one class, the batch is larger than the data, or every candidate diverges.
    """
    training = data["train"]
    features = int(training.features.shape[1])
    rows_of_hosts = hosts.all_of(len(training))
    log.info("Train data: %s rows and %s features on %s host(s)", f"{sum(rows_of_hosts):,}", features, hosts.count)
    batch = mini_batch_size(wanted, rows_of_hosts)
    counts = class_counts(training, wanted, hosts)
    scaling, row_square = measure(training.features, training.labels, wanted, hosts)
    models = number_of_models(wanted, features=features, batch_rows=batch)
    selection_name = "validation" if "validation" in data else "train"
    facts = Facts(
        rows=sum(rows_of_hosts),
        row_square=row_square,
        negatives_per_positive=float(counts[0] / counts[1]) if wanted.predictor_type == BINARY else 1.0,
        is_validated=selection_name == "validation",
    )
    tried = candidates(wanted, facts, models=models)
    loss = loss_of(wanted, label_scale=scaling.label_scale)
    log.info("Training %s model(s) together, mini_batch_size %s, loss %s", models, batch, wanted.loss)

    selection = selection_of(data[selection_name], wanted, hosts, models=models)
    for examples in (*data.values(), *([selection] if selection is not data[selection_name] else [])):
        scaling.apply(examples.features)
    use_threads(4.0 * batch * features * models * wanted.outputs, is_sparse=training.is_sparse)
    devices = devices_for(training)
    weighing = weighing_of(wanted, tried, counts)
    judged_by = Weighing() if wanted.positive_example_weight_mult == "auto" else weighing
    best = Fitting(
        settings=wanted,
        candidates=tried,
        loss=loss,
        hosts=hosts,
        parts=parts_of(training, scaling, devices),
        selection=part_of(selection, scaling, devices[0]),
        selection_name=selection_name,
        weighing=weighing,
        selection_weighing=judged_by,
        criterion_is_watched=wanted.predictor_type == BINARY
        and selection_name == "validation"
        and wanted.criterion != "loss_function",
        mini_batch_size=batch,
        feature_scale=scaling.scale,
    ).run()
    chosen = tried.describe(best.candidate)
    log.info("Best model found for hyperparameters: %s (model %s, epoch %s)", dict(chosen), best.candidate, best.epoch)

    judge = Judge(wanted, hosts, loss, judged_by.only(best.candidate), scaling.label_scale, best.weights)
    threshold = 0.0
    if wanted.predictor_type == BINARY and wanted.criterion != "loss_function":
        judging = data[selection_name] if selection_name == "validation" else selection
        threshold = judge.threshold(part_of(judging, scaling, devices[0]))
        log.info("Threshold of the score: %.6g", threshold)
    for name in ("train", "validation", "test"):
        if name in data:
            found = judge.score(name, part_of(data[name], scaling, devices[0]), threshold)
            for line in found.lines(hosts.me) if hosts.is_first else ():
                log.info("%s", line)
    if "test" not in data:
        log.info("Test data is not provided.")
    trained = best.weights.double().cpu().numpy()
    weights, bias = scaling.unscaled(trained[:-1], trained[-1])
    return LinearModel(
        predictor_type=wanted.predictor_type,
        loss=wanted.loss,
        weights=weights,
        bias=bias,
        threshold=threshold,
        hyperparameters={**chosen, "optimizer": wanted.optimizer, "mini_batch_size": batch, "epoch": best.epoch},
    )


def class_counts(training: Examples, wanted: Settings, hosts: Group) -> Any:
    """Rows of each class on all hosts, shape (classes,). UserError if there is only one class."""
    import numpy
    import torch

    if wanted.predictor_type == REGRESSOR:
        return numpy.zeros(1)
    counts = numpy.bincount(training.labels.astype("i8"), minlength=wanted.num_classes).astype("f8")
    counts = hosts.sum(torch.from_numpy(counts)).numpy()
    present = numpy.flatnonzero(counts)
    if len(present) < 2:
        raise UserError(
            f"the train channel has rows of one class only, {present[0]}: a {wanted.predictor_type} needs at least two. Is the "
            "label the first column, and is the data shuffled?"
        )
    return counts


def selection_of(examples: Examples, wanted: Settings, hosts: Group, *, models: int) -> Examples:
    """This host's part of the rows by which candidates are judged after each epoch: all, or a sample where that takes long."""
    import numpy

    most = max(LEAST_SELECTION_ROWS, SELECTION_SCORES // (models * wanted.outputs))
    if wanted.num_calibration_samples is not None and wanted.predictor_type == BINARY:
        most = min(most, wanted.num_calibration_samples)
    most = -(-most // hosts.count)
    if len(examples) <= most:
        return examples
    order = numpy.random.default_rng(SEED + hosts.rank).permutation(len(examples))[:most]
    return examples.taken(numpy.sort(order))


def use_threads(operations_of_update: float, *, is_sparse: bool) -> None:
    """As many threads as one update has work for."""
    import torch

    wanted = 1 if is_sparse else int(operations_of_update // OPERATIONS_OF_A_THREAD)
    torch.set_num_threads(max(1, min(wanted, torch.get_num_threads())))


def devices_for(training: Examples) -> "list[torch.device]":
    """All GPUs of this host, or its processor; sparse data stays on the processor."""
    import torch

    if torch.cuda.is_available() and not training.is_sparse:
        return [torch.device("cuda", number) for number in range(torch.cuda.device_count())]
    return [torch.device("cpu")]


def part_of(examples: Examples, scaling: Scaling, device: "torch.device") -> Part:
    """`examples` are normalised already, if they are dense."""
    import torch

    labels = torch.from_numpy(scaling.apply_to_labels(examples.labels)).to(device)
    if examples.is_sparse:
        return Part(SparseRows(examples.features, scaling.mean, scaling.scale), labels, device)
    return Part(DenseRows(examples.features, device), labels, device)


def parts_of(examples: Examples, scaling: Scaling, devices: "list[torch.device]") -> list[Part]:
    """Nearly equal parts, one for each device."""
    count, rows = len(devices), len(examples)
    return [
        part_of(examples.part(rows * number // count, rows * (number + 1) // count), scaling, device)
        for number, device in enumerate(devices)
    ]
