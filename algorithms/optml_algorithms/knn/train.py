"""Train k-NN as AWS's built-in does: draw a sample from the rows of all hosts, index it, score the test channel."""

import functools
import logging
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optml_algorithms.data.channel import batches
from optml_algorithms.data.files import data_files
from optml_algorithms.data.rows import Rows, require_feature_count, require_finite, require_labels
from optml_algorithms.hosts import Hosts, Peer
from optml_algorithms.knn.hyperparameters import CLASSIFIER, Settings, settings
from optml_algorithms.knn.model import SEED, Model, Preparation, about_of, build, in_slices, save
from optml_algorithms.knn.sample import Reservoir, shares
from optml_toolkit.container import Channel, Container, UserError

FORMATS = ("recordio", "csv")
LABEL_SIZES = range(1, 1025)
REPORT_SECONDS = 30.0

log = logging.getLogger("knn")


def train(container: Container) -> None:
    """Hyperparameters and channels of a container -> model/model_algo-1, with its labels and description."""
    log_as_aws_does()
    wanted = settings(container.hyperparameters())
    channels = check_channels(container.channels())
    log.info("k-NN: %s, k=%s, %s, %s", wanted.predictor_type, wanted.k, wanted.index_type, wanted.index_metric)
    if Path("/dev/nvidia0").exists():
        log.info("faiss runs on the CPU: no GPU is used")
    with Hosts.meet(container.resources()) as hosts:
        sample = sampled(channels["train"], wanted, hosts)
        if hosts.is_first:
            model = index_of_all(wanted, sample, hosts, channels["train"])
            save(model, container.model_dir)
            log.info("The model is in %s", container.model_dir)
            if "test" in channels:
                score_everywhere(model, channels["test"], wanted, hosts)
        else:
            (first,) = hosts.peers
            give(sample, first)
            if "test" in channels and is_shared_out(channels["test"]):
                score_here(channels["test"], wanted, first)


def log_as_aws_does() -> None:
    """`[01/31/2026 12:00:00 INFO 140] message`: the prefix of AWS's closed algorithms."""
    logging.getLogger("faiss").setLevel(logging.WARNING)  # it tells which processor features it looked for
    formatter = logging.Formatter(
        f"[%(asctime)s %(levelname)s {threading.get_native_id()}] %(message)s", datefmt="%m/%d/%Y %H:%M:%S"
    )
    for handler in logging.getLogger().handlers:
        handler.setFormatter(formatter)


def check_channels(channels: Mapping[str, Channel]) -> Mapping[str, Channel]:
    problems = [] if "train" in channels else ["Missing required channel: train"]
    problems += [f"Extraneous channel found: {name}" for name in sorted(set(channels) - {"train", "test"})]
    if problems:
        raise UserError("\n".join(problems))
    return channels


def is_shared_out(channel: Channel) -> bool:
    """Whether hosts have different rows of it. Where all have the same, the first host's are enough."""
    return channel.distribution == "ShardedByS3Key"


# ---- sampling


@dataclass(frozen=True, kw_only=True)
class Sample:
    """This host's rows, as the index will have them. `label_size` is 0 if it has none."""

    reservoir: Reservoir
    label_size: int


def sampled(channel: Channel, wanted: Settings, hosts: Hosts) -> Sample:
    """Up to sample_size of this host's rows. A host that has the same rows as the first brings none of them."""
    reservoir = Reservoir(wanted.sample_size, seed=SEED + hosts.rank)
    if not hosts.is_first and not is_shared_out(channel):
        log.info("The rows are the same on every host: %s samples them", hosts.names[0])
        return Sample(reservoir=reservoir, label_size=0)
    prepared = Preparation(wanted, about_of(wanted, label_size=1))
    began = reported = time.monotonic()
    label_size = 0
    for rows in checked(channel, wanted):
        label_size = same_label_size(rows, label_size)
        for begin, features in in_slices(rows.features):
            labels = rows.labels[begin : begin + features.shape[0]].reshape(-1, label_size)
            reservoir.offer(features.shape[0], functools.partial(chosen, prepared, features, labels))
        if time.monotonic() - reported > REPORT_SECONDS:
            reported = time.monotonic()
            log.info("%s rows read", f"{reservoir.offered:,}")
    seconds = time.monotonic() - began
    log.info("%s rows read, %s of them kept, in %.1f s", f"{reservoir.offered:,}", f"{reservoir.held:,}", seconds)
    log.info(
        "#throughput_metric: host=%s, train throughput=%.1f records/second",
        hosts.me,
        reservoir.offered / max(seconds, 1e-6),
    )
    return Sample(reservoir=reservoir, label_size=label_size)


def chosen(prepared: Preparation, features: Any, labels: Any, places: Any) -> tuple[Any, Any]:
    return prepared(features[places]), labels[places]


def checked(channel: Channel, wanted: Settings) -> Iterator[Rows]:
    """Rows of a channel with the right number of features, a label each, and nothing but numbers."""
    for rows in batches(channel, formats=FORMATS, label_sizes=LABEL_SIZES):
        require_labels(rows)
        rows = require_feature_count(rows, wanted.feature_dim, channel=channel.name)
        require_finite(rows)
        yield rows


def same_label_size(rows: Rows, before: int) -> int:
    label_size = 1 if rows.labels.ndim == 1 else int(rows.labels.shape[1])
    if before and label_size != before:
        raise UserError(
            f"{rows.where(0)} has {label_size} labels, and rows before it have {before}: all must have the same"
        )
    return label_size


# ---- the rows of all hosts, and their index


def give(sample: Sample, first: Peer) -> None:
    """This host's part of the sample, to the first."""
    first.send({"rows": sample.reservoir.offered, "label_size": sample.label_size})
    share, _ = first.receive()
    if share:
        sample.reservoir.draw(share)
        first.send({}, *sample.reservoir.rows())


def index_of_all(wanted: Settings, sample: Sample, hosts: Hosts, channel: Channel) -> Model:
    told = [peer.receive()[0] for peer in hosts.peers]
    row_counts = [sample.reservoir.offered, *(each["rows"] for each in told)]
    if sum(row_counts) == 0:
        raise UserError(f"No data in training channel path {channel.folder}")
    sizes = {size for size in (sample.label_size, *(each["label_size"] for each in told)) if size}
    if len(sizes) > 1:
        raise UserError(f"hosts have rows of {' and '.join(map(str, sorted(sizes)))} labels: all must have the same")
    mine, *theirs = shares(row_counts, sample_size=wanted.sample_size, seed=SEED)
    for peer, share in zip(hosts.peers, theirs, strict=True):
        peer.send(share)
    parts = []
    if mine:
        sample.reservoir.draw(mine)
        parts.append(sample.reservoir.rows())
    for peer, share in zip(hosts.peers, theirs, strict=True):
        if share:
            _, arrays = peer.receive()
            parts.append((arrays[0], arrays[1]))
            log.info("%s rows from %s", f"{share:,}", peer.name)
    features, labels = (joined([part[number] for part in parts]) for number in range(2))
    if wanted.predictor_type == CLASSIFIER and (broken := labels[labels % 1 != 0]).size:
        log.warning(
            "predictor_type is classifier, and labels are not whole numbers (%g): each value is a class of its own; for numbers "
            "that are to be predicted take regressor",
            broken[0],
        )
    began = time.monotonic()
    model = build(wanted, about_of(wanted, label_size=labels.shape[1]), features, labels)
    log.info("%s rows indexed in %.1f s", f"{model.index.ntotal:,}", time.monotonic() - began)
    return model


def joined(parts: Sequence[Any]) -> Any:
    import numpy

    return parts[0] if len(parts) == 1 else numpy.concatenate(parts)


# ---- the test channel


def score_everywhere(model: Model, channel: Channel, wanted: Settings, hosts: Hosts) -> None:
    """Each host scores the rows that it has; the first adds up and publishes."""
    import faiss

    total, count = 0.0, 0
    peers = hosts.peers if is_shared_out(channel) else ()
    asked = []
    for peer in peers:
        has_data, _ = peer.receive()
        if has_data:
            peer.send({}, faiss.serialize_index(model.index), model.labels)
            asked.append(peer)
    for part_total, part_count in [scored(model, channel, wanted), *(peer.receive()[0] for peer in asked)]:
        total, count = total + part_total, count + part_count
    if count == 0:
        log.warning("No data in test channel path %s: nothing is scored", channel.folder)
        return
    name, kind = ("accuracy", "score") if wanted.predictor_type == CLASSIFIER else ("mse", "loss")
    log.info("#test_score (%s) : %s", hosts.me, (name, total / count))
    log.info("#quality_metric: host=%s, test %s <%s>=%r", hosts.me, name, kind, total / count)


def score_here(channel: Channel, wanted: Settings, first: Peer) -> None:
    import faiss

    has_data = channel.input_mode == "Pipe" or bool(data_files(channel))
    first.send(has_data)
    if has_data:
        _, (index, labels) = first.receive()
        model = Model(about_of(wanted, label_size=labels.shape[1]), faiss.deserialize_index(index), labels)
        first.send(list(scored(model, channel, wanted)))


def scored(model: Model, channel: Channel, wanted: Settings) -> tuple[float, int]:
    """Right answers, or the sum of squared errors, over all labels of all rows; and how many these are."""
    total, count = 0.0, 0
    for rows in checked(channel, wanted):
        label_size = same_label_size(rows, model.about.label_size)
        labels = rows.labels.reshape(-1, label_size)
        for begin in range(0, len(rows), wanted.batch_rows):
            expected = labels[begin : begin + wanted.batch_rows]
            predicted = model.predict(rows.features[begin : begin + wanted.batch_rows]).predicted_label
            predicted = predicted.reshape(expected.shape)
            if wanted.predictor_type == CLASSIFIER:
                total += float((predicted == expected).sum())
            else:
                total += float(((predicted - expected).astype("f8") ** 2).sum())
            count += expected.size
    return total, count
