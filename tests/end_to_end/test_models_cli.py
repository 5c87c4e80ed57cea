"""optml predict, evaluate and describe-algorithm, as a person uses them after a job."""

import json
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest
from tests.hosts import PATIENCE_SECONDS

numpy = pytest.importorskip("numpy")
pytest.importorskip("xgboost")

from sklearn.datasets import load_breast_cancer  # noqa: E402
from tests.s3 import S3  # noqa: E402

import optml  # noqa: E402

OPTML = str(Path(sys.executable).parent / "optml")


def run(*arguments: str, folder: Path | None = None) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [OPTML, *arguments], capture_output=True, text=True, timeout=2 * PATIENCE_SECONDS, check=False, cwd=folder
    )


@pytest.fixture
def trained(tmp_path: Path) -> tuple[optml.Job, Path]:
    """A job that has ended, and a folder with a labelled CSV that it has not seen."""
    features, labels = load_breast_cancer(return_X_y=True)
    table = numpy.column_stack([labels, features])
    for name, rows in (("train", table[:400]), ("validation", table[400:])):
        (tmp_path / name).mkdir()
        numpy.savetxt(tmp_path / name / "a.csv", rows, delimiter=",", fmt="%.9g")
    job = optml.train(
        image="xgboost",
        name="trained",
        channels={"train": f"{tmp_path}/train/"},
        hyperparameters={"num_round": 5, "objective": "binary:logistic", "nthread": 1},
        output=str(tmp_path / "out"),
        logs=False,
    )
    return job, tmp_path / "validation"


def test_a_model_scores_data_and_is_judged(trained: tuple[optml.Job, Path], tmp_path: Path) -> None:
    job, data = trained
    archive = str(job.model_data).removeprefix("file://")
    unpacked = tmp_path / "unpacked"
    shutil.unpack_archive(archive, unpacked)
    outputs = []
    for model in ("trained", str(job.model_data), archive, str(unpacked)):
        done = run("predict", model, str(data), "--label-size", "1")
        assert done.returncode == 0, done.stderr
        outputs.append(done.stdout)
    assert len(set(outputs)) == 1
    lines = outputs[0].splitlines()
    assert lines[0] == "label,predicted_label,score"
    assert len(lines) == 170
    written = run("predict", "trained", str(data), "--label-size", "1", "--output", str(tmp_path / "p.csv"))
    assert written.stdout.endswith("p.csv: 169 predictions\n")
    assert (tmp_path / "p.csv").read_text() == outputs[0]
    of_model = run("evaluate", "trained", str(data), "--json")
    of_file = run("evaluate", "--predictions", str(tmp_path / "p.csv"), "--json")
    assert of_model.returncode == of_file.returncode == 0, of_model.stderr + of_file.stderr
    first, second = json.loads(of_model.stdout), json.loads(of_file.stdout)
    assert first["task"] == "binary"
    assert first["metrics"]["accuracy"] > 0.9
    assert first["metrics"] == pytest.approx(second["metrics"], abs=1e-6)


def test_mistakes_are_a_line_and_exit_status_2(trained: tuple[optml.Job, Path], tmp_path: Path) -> None:
    _, data = trained
    broken = tmp_path / "broken.tar.gz"
    broken.write_bytes(b"rubbish")
    (tmp_path / "short.csv").write_text("1,2,3\n")
    (tmp_path / "odd.xyz").write_text("1,2,3\n")
    expected: dict[tuple[str, ...], str] = {
        ("predict", "nothing", str(data)): "there is neither a job nor a file 'nothing'",
        ("predict", "no/such/folder", str(data)): "there is no no/such/folder",
        ("predict", str(broken), str(data)): "broken.tar.gz cannot be unpacked",
        ("predict", str(data / "a.csv"), str(data)): "a.csv is no model archive",
        ("predict", str(data), str(data)): "is no model of xgboost",
        ("predict", "trained", str(tmp_path / "nothing")): "there is no",
        ("predict", "trained", str(data)): "If the first column is the label: --label-size 1",
        (
            "predict",
            "trained",
            str(tmp_path / "short.csv"),
        ): "row 1: the data has 3 features, and the model was trained on 30",
        ("predict", "trained", str(tmp_path / "odd.xyz")): "give --content-type",
        ("evaluate", "trained"): "give MODEL and DATA, or --predictions",
        ("evaluate", "trained", str(data), "--columns", "label"): "--columns is for predictions without a model",
        ("describe-algorithm", "xgbost"): "there is no algorithm 'xgbost'",
    }
    for arguments, text in expected.items():
        done = run(*arguments)
        assert done.returncode == 2, arguments
        assert text in done.stderr, (arguments, done.stderr)
        assert "Traceback" not in done.stderr


def test_a_failed_job_or_one_with_another_kind_of_model_is_named(
    trained: tuple[optml.Job, Path], tmp_path: Path
) -> None:
    _, data = trained
    other = "import pathlib; pathlib.Path('/opt/ml/model/mine').write_text('x')"
    for name, program in {"failed": "raise SystemExit(1)", "other": other}.items():
        job = optml.train(
            image="python",
            name=name,
            entrypoint=[sys.executable, "-c", program],
            output=str(tmp_path / "out"),
            logs=False,
            wait=False,
        )
        while job.status == "InProgress":
            time.sleep(0.05)
    of_failed = (
        "optml: the model of job failed, which Failed: it is no model of xgboost, linear-learner, knn: it has no files"
    )
    for command in (("predict",), ("evaluate",)):
        assert run(*command, "failed", str(data)).stderr.strip() == of_failed
        assert (
            run(*command, "other", str(data)).stderr.strip()
            == "optml: the model of job other: it is no model of xgboost, linear-learner, knn: it has mine"
        )


def test_a_program_that_a_signal_ended_is_told_as_a_shell_tells_it(
    trained: tuple[optml.Job, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    job, data = trained
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\nif 'optml_algorithms.predict' in sys.orig_argv: os.kill(os.getpid(), 9)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert run("predict", str(job.model_data), str(data)).returncode == 128 + 9


def test_columns_of_predictions_may_begin_with_the_dash_that_leaves_one_out(tmp_path: Path) -> None:
    (tmp_path / "q.csv").write_text("7,0.9\n8,0.2\n")
    (tmp_path / "l.csv").write_text("1\n0\n")
    for columns in (("--columns", "-,score"), ("--columns=-,score",)):
        done = run("evaluate", "--predictions", "q.csv", *columns, "--labels", "l.csv", "--json", folder=tmp_path)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["metrics"]["accuracy"] == 1.0
    done = run("evaluate", "--predictions=-x", "--columns=-,-", folder=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "usage" not in done.stderr
    for program in ("evaluation", "predict", "describe"):  # whatever else may be wrong with what they are given
        inner = [sys.executable, "-m", f"optml_algorithms.{program}", "--no-such-option"]
        told = subprocess.run(inner, capture_output=True, text=True, check=False).stderr
        assert told.startswith("optml: ")
        assert "usage" not in told


def test_classes_in_json_lines_are_whole_numbers_as_in_csv(trained: tuple[optml.Job, Path], tmp_path: Path) -> None:
    _, data = trained
    done = run("predict", "trained", str(data), "--label-size", "1", "--output", str(tmp_path / "p.jsonl"))
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    assert {type(row[name]) for row in rows for name in ("label", "predicted_label")} == {int}


def test_a_model_archive_cannot_write_elsewhere(tmp_path: Path) -> None:
    """Whoever made it: a path that leads out of the folder is refused."""
    (tmp_path / "x").write_text("x")
    archive = tmp_path / "model.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(tmp_path / "x", arcname="../../evil")
    done = run("predict", str(archive), str(tmp_path))
    assert done.returncode == 2
    assert "cannot be unpacked" in done.stderr
    assert not (tmp_path.parent / "evil").exists()


def test_a_model_and_data_in_s3_are_fetched(trained: tuple[optml.Job, Path], s3: S3, tmp_path: Path) -> None:
    job, data = trained
    bucket = s3.new_bucket()
    s3.client.upload_file(str(job.model_data).removeprefix("file://"), bucket, "models/model.tar.gz")
    s3.client.upload_file(str(data / "a.csv"), bucket, "data/a.csv")
    here = run("predict", "trained", str(data), "--label-size", "1")
    there = run("predict", f"s3://{bucket}/models/model.tar.gz", f"s3://{bucket}/data/", "--label-size", "1")
    assert there.returncode == 0, there.stderr
    assert there.stdout == here.stdout
    shutil.rmtree(tmp_path / "out")
    gone = run("predict", "trained", str(data))
    assert gone.returncode == 2
    assert "there is no file://" in gone.stderr


def test_an_algorithm_describes_itself() -> None:
    done = run("describe-algorithm", "xgboost", "--json")
    described: dict[str, Any] = json.loads(done.stdout)
    assert {"name": "validation:auc", "goal": "Maximize"} in described["metrics"]
    assert "num_round" in run("describe-algorithm", "xgboost").stdout
