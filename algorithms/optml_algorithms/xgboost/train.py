"""Train XGBoost as AWS's built-in does: two channels, a line of metrics per round, the model in xgboost-model."""

import logging
import os
import signal
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from optml_algorithms.data.rows import Rows
from optml_algorithms.hosts import Hosts
from optml_algorithms.xgboost.boost import boost
from optml_algorithms.xgboost.checkpoints import MODEL, leave, save
from optml_algorithms.xgboost.crossvalidate import cross_validate
from optml_algorithms.xgboost.data import check_channels, empty_matrix, matrix_of, rows_of, warn_of_same_files
from optml_algorithms.xgboost.hyperparameters import Settings, settings
from optml_algorithms.xgboost.together import Plan, agree, library_errors, together
from optml_toolkit.container import Channel, Container, UserError

LEFT_EARLY = 75  # as sysexits.h has it for what may go on later; the platform that asked for it does not mind
log = logging.getLogger("xgboost")


def train(container: Container) -> None:
    """Hyperparameters and channels of a container -> model/xgboost-model, written by the first host that has data."""
    wanted = settings(container.hyperparameters())
    channels = check_channels(container.channels())
    say_what_is_here(wanted)
    with Hosts.meet(container.resources()) as hosts:
        if hosts.count == 1:
            log.info("Single node training.")
        else:
            log.info("Distributed training on %s hosts: %s", hosts.count, ", ".join(hosts.names))
        shards = read_shards(channels, wanted, alone=hosts.count == 1)
        plan = agree(hosts, wanted, shards)
        if wanted.folds is not None:
            on_termination(wanted, container)
            cross_validate(wanted, shards, plan.feature_count, container)
            return
        matrices = matrices_of(shards, wanted, plan) if hosts.me in plan.members else {}
        with together(hosts, plan.members) as is_first:
            if hosts.me not in plan.members:
                log.warning(
                    "Host %s does not have training data. Will broadcast to cluster and this host %s will not be used in "
                    "distributed training. Please divide the training data across instances properly.",
                    hosts.me,
                    hosts.me,
                )
                return
            leaving = threading.Event()
            on_termination(wanted, container, leaving)
            boosted = boost(
                wanted,
                [(matrix, name) for name, matrix in matrices.items()],
                checkpoint_dir=container.checkpoint_dir,
                model_file=container.model_dir / MODEL,
                is_first=is_first,
                is_leaving=leaving.is_set,
            )
            if is_first and boosted.is_complete:
                save(boosted.booster, container.model_dir / MODEL)
        if not boosted.is_complete:
            sys.exit(LEFT_EARLY)


def say_what_is_here(wanted: Settings) -> None:
    count = gpu_count()
    log.info("Determined %s GPU(s) available on the instance.", count)
    if count > 1 and wanted.library.get("device") == "cuda":
        log.warning("One GPU of %s is used: this program trains on one GPU for each host", count)
    elif count and "device" not in wanted.library:
        log.info("The GPU is not used: tree_method gpu_hist would")
    if wanted.tuned_metric is not None:
        log.info("Setting up HPO optimized metric to be : %s", wanted.tuned_metric)
    for name in wanted.without_effect:
        log.warning("Hyperparameter %s has no effect in XGBoost of today", name)


def gpu_count() -> int:
    """Of this container, as far as NVIDIA's driver and CUDA_VISIBLE_DEVICES say."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([each for each in visible.split(",") if each.strip() not in ("", "-1")])
    folder = Path("/proc/driver/nvidia/gpus")
    return len(list(folder.iterdir())) if folder.is_dir() else 0


def read_shards(channels: Mapping[str, Channel], wanted: Settings, *, alone: bool) -> dict[str, Rows | None]:
    """This host's rows of each channel."""
    shards: dict[str, Rows | None] = {}
    for name in sorted(channels):  # train, then validation
        shards[name] = rows_of(channels[name], wanted)
        if shards[name] is None and alone:
            what = "training" if name == "train" else name
            raise UserError(f"No data in {what} channel path {channels[name].folder}")
    warn_of_same_files(channels)
    return shards


def matrices_of(shards: dict[str, Rows | None], wanted: Settings, plan: Plan) -> dict[str, Any]:
    """Matrices by name. The rows are let go of: there would be two copies else."""
    matrices: dict[str, Any] = {}
    with library_errors():
        for name in list(shards):
            rows = shards.pop(name)
            if name == "validation" and not plan.has_validation:
                log.warning("No host that trains has validation data: there are no validation scores")
            elif rows is None:
                matrices[name] = empty_matrix(plan.feature_count, wanted)
            else:
                matrices[name] = matrix_of(rows, wanted, feature_count=plan.feature_count)
    for name, matrix in matrices.items():
        if name == "train":
            log.info("Train matrix has %s rows and %s columns", matrix.num_row(), matrix.num_col())
        else:
            log.info("%s matrix has %s rows", name.capitalize(), matrix.num_row())
    if wanted.objective.startswith("rank:") and not len(matrices["train"].get_uint_info("group_ptr")):
        log.warning("There are no groups (qid) in the training data: all rows are ranked as one group")
    return matrices


def on_termination(wanted: Settings, container: Container, leaving: threading.Event | None = None) -> None:
    """With checkpoints, SIGTERM lets the round under way come to its end and sets `leaving`: nothing of it is lost."""
    if wanted.save_on_termination:
        signal.signal(signal.SIGTERM, lambda *_: leave(container.model_dir))
    elif leaving is not None and container.checkpoint_dir is not None:
        signal.signal(signal.SIGTERM, lambda *_: leaving.set())
