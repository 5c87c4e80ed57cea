"""Linear learner: 32 models in one pass against scikit-learn's SGDClassifier with one, its quality, and its cold start.

python -m scripts.bench.linear_learner
"""

import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy
from scripts.bench.measure import in_turn, machine, medians, report
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.linear_model import LogisticRegression, SGDClassifier
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from optml_algorithms.linear_learner.examples import Examples
from optml_algorithms.linear_learner.hosts import Group
from optml_algorithms.linear_learner.hyperparameters import settings
from optml_algorithms.linear_learner.model import LinearModel
from optml_algorithms.linear_learner.train import fit

ROWS, COLUMNS, MODELS = 1_000_000, 100, 32
SPLITS = 12
BINARY = {"predictor_type": "binary_classifier"}
DIGITS = {"predictor_type": "multiclass_classifier", "num_classes": "10"}


def trained(features: Any, labels: Any, **hyperparameters: str) -> LinearModel:
    """Training normalises in place: the copy is part of the time."""
    data = {"train": Examples(features.astype("f4"), labels.astype("f4"))}
    return fit(data, settings(hyperparameters), Group())


def synthetic() -> tuple[Any, Any]:
    generator = numpy.random.default_rng(0)
    features = generator.standard_normal((ROWS, COLUMNS), dtype="f4")
    margin = features @ generator.standard_normal(COLUMNS).astype("f4") + 3 * generator.standard_normal(ROWS)
    return features, (margin > 0).astype("f4")


def accuracy(model: LinearModel, features: Any, labels: Any) -> float:
    return float((model.predict(features.astype("f4")).predicted_label == labels).mean())


def speed(features: Any, labels: Any) -> list[tuple[str, str]]:
    given = {**BINARY, "num_models": str(MODELS), "epochs": "1"}
    seconds = medians(
        in_turn(
            {
                "sklearn": lambda: SGDClassifier(loss="log_loss", max_iter=1, tol=None).fit(features, labels),
                "optml": lambda: trained(features, labels, **given),
            },
            runs=3,
        )
    )
    return [
        ("scikit-learn `SGDClassifier`, one epoch, one model", f"{seconds['sklearn']:.2f} s"),
        (f"linear learner, one epoch, {MODELS} models, chosen and scored", f"{seconds['optml']:.2f} s"),
        ("ratio (wanted: at most 4)", f"{seconds['optml'] / seconds['sklearn']:.2f}"),
    ]


def synthetic_quality(features: Any, labels: Any) -> list[tuple[str, str]]:
    parts = train_test_split(features, labels, test_size=0.2, random_state=0)
    plain = LogisticRegression().fit(parts[0], parts[2]).score(parts[1], parts[3])
    ours = accuracy(trained(parts[0], parts[2], **BINARY), parts[1], parts[3])
    return [("synthetic, 1 M rows: LogisticRegression, linear learner", f"{plain:.4f}, {ours:.4f}")]


def small_quality(name: str, loader: Any, hyperparameters: dict[str, str]) -> tuple[str, str]:
    """Mean accuracy on a fifth held out, over several splits; no validation channel, for the yardstick has none."""
    features, labels = loader(return_X_y=True)
    plain, ours = [], []
    for seed in range(SPLITS):
        parts = train_test_split(features, labels, test_size=0.2, random_state=seed, stratify=labels)
        yardstick = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)).fit(parts[0], parts[2])
        plain.append(yardstick.score(parts[1], parts[3]))
        ours.append(accuracy(trained(parts[0], parts[2], **hyperparameters), parts[1], parts[3]))
    return (
        f"{name}, {SPLITS} splits: LogisticRegression, linear learner",
        f"{numpy.mean(plain):.4f}, {numpy.mean(ours):.4f}",
    )


def cold_start(folder: Path) -> float:
    """Seconds from the start of the process to its first line about training."""
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "optml_algorithms.linear_learner"],
        stdout=subprocess.PIPE,
        env={**os.environ, "SAGEMAKER_BASE_DIR": str(folder)},
        text=True,
    )
    assert process.stdout is not None
    first = None
    for line in process.stdout:
        if first is None and "epoch=0, train" in line:
            first = time.perf_counter() - began
    if process.wait() or first is None:
        raise SystemExit("the algorithm failed")
    return first


def tree(folder: Path) -> Path:
    features, labels = load_breast_cancer(return_X_y=True)
    (folder / "input" / "config").mkdir(parents=True)
    (folder / "input" / "data" / "train").mkdir(parents=True)
    (folder / "model").mkdir()
    (folder / "input" / "config" / "hyperparameters.json").write_text(json.dumps(BINARY))
    (folder / "input" / "config" / "inputdataconfig.json").write_text(
        json.dumps({"train": {"ContentType": "text/csv"}})
    )
    numpy.savetxt(folder / "input" / "data" / "train" / "a.csv", numpy.column_stack([labels, features]), delimiter=",")
    return folder


def main() -> None:
    warnings.simplefilter("ignore")
    print(machine())
    features, labels = synthetic()
    report("Linear learner (`linear_learner`)", speed(features, labels))
    with tempfile.TemporaryDirectory() as name:
        folder = tree(Path(name))
        starts = medians(
            {
                "torch": in_turn(
                    {"torch": lambda: subprocess.run([sys.executable, "-c", "import torch"], check=True)}, runs=5
                )["torch"],
                "ours": [cold_start(folder) for _ in range(6)][1:],
            }
        )
    report(
        "Cold start",
        [
            ("`python -c 'import torch'`", f"{starts['torch']:.2f} s"),
            ("process start to the first training line (wanted: under 1.5 s)", f"{starts['ours']:.2f} s"),
        ],
    )
    report(
        "Accuracy",
        [
            small_quality("breast cancer", load_breast_cancer, BINARY),
            small_quality("digits", load_digits, DIGITS),
            *synthetic_quality(features, labels),
        ],
    )


if __name__ == "__main__":
    main()
