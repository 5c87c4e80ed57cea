"""XGBoost on several hosts: through jobs, and the meeting of hosts by itself."""

import contextlib
import functools
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

numpy = pytest.importorskip("numpy")
xgboost = pytest.importorskip("xgboost")

from sklearn.datasets import load_breast_cancer, load_diabetes  # noqa: E402
from sklearn.metrics import f1_score, mean_squared_error, roc_auc_score  # noqa: E402
from sklearn.model_selection import train_test_split  # noqa: E402
from tests.algorithms.by_hand import make_tree  # noqa: E402
from tests.harness import Done, capabilities, run  # noqa: E402
from tests.hosts import PATIENCE_SECONDS  # noqa: E402

import optml  # noqa: E402
from optml_algorithms.xgboost.hyperparameters import settings  # noqa: E402
from optml_algorithms.xgboost.together import Share, plan_of  # noqa: E402
from optml_toolkit.container import UserError  # noqa: E402


def shards(folder: Path, features: Any, labels: Any, count: int) -> Path:
    """CSV files for so many hosts."""
    folder.mkdir(parents=True)
    for number, rows in enumerate(numpy.array_split(numpy.column_stack([labels, features]), count)):
        numpy.savetxt(folder / f"part-{number}.csv", rows, delimiter=",", fmt="%.9g")
    return folder


def sharded(folder: Path) -> dict[str, str]:
    return {"uri": f"{folder}/", "distribution": "ShardedByS3Key"}


def train(
    folder: Path,
    channels: dict[str, Any],
    *,
    host_count: int,
    checkpoint: str | None = None,
    backend: str = "process",
    **given: Any,
) -> Done:
    return run(
        folder,
        image="xgboost",
        entrypoint=None,
        channels=channels,
        instance_count=host_count,
        backend=backend,
        hyperparameters={"num_round": 10, "nthread": 1, **given},
        **({} if checkpoint is None else {"checkpoint": checkpoint}),
    )


def booster_of(done: Done) -> Any:
    assert done.describe["TrainingJobStatus"] == "Completed", done.reason + done.log
    return xgboost.Booster(model_file=bytearray(done.model["xgboost-model"]))


def finals(done: Done) -> dict[str, float]:
    return {metric["MetricName"]: metric["Value"] for metric in done.describe["FinalMetricDataList"]}


def trainings_of(job_name: str) -> list[int]:
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command, environment = (process / "cmdline").read_bytes(), (process / "environ").read_bytes()
            if b"optml_algorithms.xgboost" in command and f"TRAINING_JOB_NAME={job_name}\0".encode() in environment:
                found.append(int(process.name))
    return found


def lines_of(done: Done, host: str) -> list[str]:
    return [line for name, lines in done.job.logs() if name == host for line in lines]


def test_two_hosts_reach_the_quality_of_one_and_metrics_are_over_all_rows(tmp_path: Path) -> None:
    features, labels = load_breast_cancer(return_X_y=True)
    parts = train_test_split(features, labels, test_size=0.25, random_state=0)
    channels = {
        "train": sharded(shards(tmp_path / "train", parts[0], parts[2], 4)),
        "validation": sharded(shards(tmp_path / "validation", parts[1], parts[3], 2)),
    }
    given: dict[str, Any] = {"objective": "binary:logistic", "eval_metric": "logloss,f1,mse", "num_round": 20}
    given["max_depth"] = 3
    one = train(tmp_path / "1", channels, host_count=1, **given)
    two = train(tmp_path / "2", channels, host_count=2, **given)
    matrix = xgboost.DMatrix(parts[1].astype(numpy.float32))
    alone, together = booster_of(one).predict(matrix), booster_of(two).predict(matrix)
    assert roc_auc_score(parts[3], together) >= roc_auc_score(parts[3], alone) - 0.005
    assert numpy.abs(alone - together).max() < 0.25
    assert finals(two)["validation:f1"] == pytest.approx(f1_score(parts[3], together > 0.5, average="macro"), abs=1e-5)
    assert finals(two)["validation:mse"] == pytest.approx(mean_squared_error(parts[3], together), abs=1e-5)
    printed = [line for line in lines_of(two, "algo-2") if "\t" in line]
    assert printed == []  # metrics once, by the first
    assert len([line for line in lines_of(two, "algo-1") if "\t" in line]) == 20


def test_a_host_with_an_empty_shard_steps_aside_and_the_next_one_leads(tmp_path: Path) -> None:
    """Two files for three hosts; and of validation there is one."""
    features, labels = load_diabetes(return_X_y=True)
    channels = {
        "train": sharded(shards(tmp_path / "train", features[:300], labels[:300], 2)),
        "validation": sharded(shards(tmp_path / "validation", features[300:], labels[300:], 1)),
    }
    done = train(tmp_path, channels, host_count=3)
    booster = booster_of(done)
    assert "Host algo-3 does not have training data." in done.log
    predicted = booster.predict(xgboost.DMatrix(features[300:].astype(numpy.float32)))
    rmse = mean_squared_error(labels[300:], predicted) ** 0.5
    assert finals(done)["validation:rmse"] == pytest.approx(rmse, rel=1e-4)


def test_bad_data_on_one_host_ends_all_with_its_words(tmp_path: Path) -> None:
    features, labels = load_diabetes(return_X_y=True)
    folder = shards(tmp_path / "train", features, labels, 2)
    (folder / "part-1.csv").write_text("1,2,3\n1,x,3\n")
    done = train(tmp_path, {"train": sharded(folder)}, host_count=2)
    assert done.describe["TrainingJobStatus"] == "Failed"
    assert "part-1.csv, line 2, column 2: 'x' is not a number" in done.reason
    assert "part-1.csv, line 2, column 2: 'x' is not a number" in "".join(lines_of(done, "algo-1"))


@pytest.mark.slow
def test_two_hosts_resume_together_and_end_with_the_same_trees(tmp_path: Path) -> None:
    features, labels = load_diabetes(return_X_y=True)
    channels = {"train": sharded(shards(tmp_path / "train", features, labels, 2))}
    part = functools.partial(train, channels=channels, host_count=2, max_depth=3)
    whole = part(tmp_path / "whole", checkpoint=str(tmp_path / "a"), num_round=8)
    part(tmp_path / "begin", checkpoint=str(tmp_path / "b"), num_round=5)
    resumed = part(tmp_path / "resumed", checkpoint=str(tmp_path / "b"), num_round=8)
    assert "Resuming from iteration 5" in resumed.log
    rounds = [line.split("\t")[0] for line in lines_of(resumed, "algo-1") if "\t" in line]
    assert rounds == ["[5]", "[6]", "[7]"]
    assert booster_of(resumed).get_dump(with_stats=True) == booster_of(whole).get_dump(with_stats=True)


@pytest.mark.slow
def test_a_killed_training_resumes_from_its_checkpoint_with_an_identical_model(tmp_path: Path) -> None:
    """SIGKILL in the middle of training; then the same request under another name."""
    features, labels = load_diabetes(return_X_y=True)
    # Rounds that take a moment: five checkpoints are kept, and what is replaced at once cannot be uploaded.
    features, labels = np.tile(features, (300, 1)), np.tile(labels, 300)
    channels = {"train": f"{shards(tmp_path / 'train', features, labels, 1)}/"}
    given: dict[str, Any] = {"num_round": 300, "max_depth": 8, "eta": 0.05, "nthread": 1}
    checkpoints = tmp_path / "checkpoints"
    name = f"killed-{secrets.token_hex(4)}"
    job = optml.train(
        image="xgboost",
        name=name,
        channels=channels,
        hyperparameters=given,
        checkpoint=str(checkpoints),
        output=str(tmp_path / "out"),
        wait=False,
    )
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not any(checkpoints.glob("xgboost-checkpoint.*")):
        assert time.monotonic() < deadline, "no checkpoint came"
        time.sleep(0.01)
    victims = trainings_of(name)
    assert victims
    for pid in victims:
        os.kill(pid, signal.SIGKILL)
    while job.status == "InProgress":
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert job.status == "Failed"
    resumed = train(tmp_path / "resumed", channels, host_count=1, checkpoint=str(checkpoints), **given)
    whole = train(tmp_path / "whole", channels, host_count=1, checkpoint=str(tmp_path / "other"), **given)
    assert "Resuming from iteration" in resumed.log
    assert resumed.model["xgboost-model"] == whole.model["xgboost-model"]


def test_a_host_that_dies_in_the_middle_of_training_is_an_error_of_the_other(tmp_path: Path) -> None:
    """By hand, for a platform would end the other one too. 127.0.0.1 and 127.0.0.2 are names that every Linux resolves."""
    if sys.platform != "linux":
        pytest.skip("127.0.0.2 is an address of this machine on Linux only")
    features, labels = load_diabetes(return_X_y=True)
    folder = shards(tmp_path / "train", features, labels, 1)
    names = ["127.0.0.1", "127.0.0.2"]
    programs = []
    for name in names:
        root = make_tree(
            tmp_path / name,
            {"num_round": 1_000_000, "nthread": 1},
            {"train": folder},
            resources={"current_host": name, "hosts": names},
        )
        log = (tmp_path / f"{name}.log").open("w")
        environment = {**os.environ, "SAGEMAKER_BASE_DIR": str(root), "TRAINING_JOB_NAME": tmp_path.name}
        argv = [sys.executable, "-m", "optml_algorithms.xgboost"]
        programs.append(subprocess.Popen(argv, env=environment, stdout=log, stderr=log))
        log.close()
    try:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while "[2]\t" not in (tmp_path / "127.0.0.1.log").read_text():
            assert time.monotonic() < deadline, (tmp_path / "127.0.0.1.log").read_text()
            time.sleep(0.05)
        programs[1].kill()
        assert programs[0].wait(timeout=PATIENCE_SECONDS) == 1
    finally:
        for program in programs:
            program.kill()
            program.wait()
    failure = (tmp_path / "127.0.0.1" / "output" / "failure").read_text()
    assert failure.startswith("HostLost: another host of the job went away")


def test_a_stopped_job_of_two_hosts_keeps_one_model(tmp_path: Path) -> None:
    features, labels = load_diabetes(return_X_y=True)
    if not capabilities().host_names:
        pytest.skip("several hosts need namespaces")
    job = optml.train(
        image="xgboost",
        name="stopped",
        channels={"train": sharded(shards(tmp_path / "train", features, labels, 2))},
        instance_count=2,
        hyperparameters={"num_round": 1_000_000, "save_model_on_termination": "true", "nthread": 1},
        output=str(tmp_path / "out"),
        wait=False,
    )
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (job.metrics_file.exists() and job.metrics_file.stat().st_size):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    job.stop(wait=True)
    done = Done(job, None)
    assert done.describe["SecondaryStatus"] == "Stopped", done.log
    assert list(done.model) == ["xgboost-model"]
    assert xgboost.Booster(model_file=bytearray(done.model["xgboost-model"])).num_boosted_rounds() > 0


@pytest.mark.docker
@pytest.mark.slow
def test_two_containers_train_one_model(docker_image: Callable[[str], str], tmp_path: Path) -> None:
    docker_image("xgboost")
    features, labels = load_diabetes(return_X_y=True)
    channels = {"train": sharded(shards(tmp_path / "train", features, labels, 2))}
    here = train(tmp_path / "here", channels, host_count=2)
    there = train(tmp_path / "there", channels, host_count=2, backend="docker")
    assert "Distributed training on 2 hosts: algo-1, algo-2" in there.log
    matrix = xgboost.DMatrix(features)
    assert numpy.allclose(booster_of(there).predict(matrix), booster_of(here).predict(matrix), rtol=1e-3)


WHOLE = Share(rows=10, feature_count=3, is_declared=True, label_low=0, label_high=1)


@pytest.mark.parametrize(
    ("second", "given", "expected"),
    [
        (Share(rows=5, feature_count=4, is_declared=True, label_high=1), {}, "a has 3 features and b has 4"),
        (Share(rows=5, feature_count=3, is_declared=True, has_weights=True, label_high=1), {}, "has no weights on a"),
        (WHOLE, {"tree_method": "exact"}, "tree_method 'exact' runs on one host"),
        (WHOLE, {"booster": "gblinear"}, "booster 'gblinear' runs on one host"),
        (WHOLE, {"_kfold": "3"}, "cross-validation runs on one host"),
    ],
)
def test_data_or_settings_that_do_not_fit_together_are_refused(
    second: Share, given: dict[str, str], expected: str
) -> None:
    wanted = settings({"num_round": "1", **given})
    with pytest.raises(UserError, match=expected):
        plan_of({"a": {"train": WHOLE}, "b": {"train": second}}, wanted)


def test_hosts_of_libsvm_agree_on_the_widest(tmp_path: Path) -> None:
    narrow = Share(rows=5, feature_count=2, label_high=1)
    wide = Share(rows=5, feature_count=7, label_high=1)
    plan = plan_of(
        {"a": {"train": narrow}, "b": {"train": wide}, "c": {"train": Share(rows=0)}}, settings({"num_round": "1"})
    )
    assert plan.feature_count == 7
    assert plan.members == ("a", "b")
    assert not plan.has_validation
    del tmp_path


def test_no_data_anywhere_and_one_class_everywhere_are_refused() -> None:
    nothing = {"a": {"train": Share(rows=0)}, "b": {"train": Share(rows=0)}}
    with pytest.raises(UserError, match="No hosts received training data"):
        plan_of(nothing, settings({"num_round": "1"}))
    zeros, ones = (
        Share(rows=5, feature_count=3, is_declared=True, label_low=value, label_high=value) for value in (0, 1)
    )
    wanted = settings({"num_round": "1", "objective": "binary:logistic", "eval_metric": "auc"})
    assert plan_of({"a": {"train": zeros}, "b": {"train": ones}}, wanted).members == ("a", "b")
    with pytest.raises(UserError, match="at least two classes"):
        plan_of({"a": {"train": zeros}, "b": {"train": zeros}}, wanted)
    with pytest.raises(UserError, match="metric 'auc' needs two classes"):
        plan_of({"a": {"train": WHOLE, "validation": ones}}, wanted)
