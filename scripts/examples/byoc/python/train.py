"""Nearest centroid: a training program that knows nothing but /opt/ml. The label is the first column of each CSV file."""

import json
import math
import sys
from pathlib import Path

ml = Path("/opt/ml")


def read(channel: str) -> list[list[float]]:
    files = sorted((ml / "input/data" / channel).rglob("*.csv"))
    return [[float(value) for value in line.split(",")] for file in files for line in file.read_text().splitlines()]


def normalised(row: list[float], scales: list[float]) -> list[float]:
    return [value / scale for value, scale in zip(row[1:], scales, strict=True)]


def train() -> None:
    power = float(json.loads((ml / "input/config/hyperparameters.json").read_text()).get("power", "2"))
    rows = read("train")
    scales = [max(abs(value) for value in column) or 1.0 for column in list(zip(*rows, strict=True))[1:]]
    centroids = {}
    for label in sorted({row[0] for row in rows}):
        members = [normalised(row, scales) for row in rows if row[0] == label]
        centroids[label] = [sum(column) / len(members) for column in zip(*members, strict=True)]

    def nearest(row: list[float]) -> float:
        point = normalised(row, scales)
        return min(
            centroids, key=lambda label: sum(abs(a - b) ** power for a, b in zip(point, centroids[label], strict=True))
        )

    for channel in ("train", "validation"):
        tested = read(channel)
        accuracy = sum(nearest(row) == row[0] for row in tested) / len(tested) if tested else math.nan
        print(f"{channel}:accuracy={accuracy:.4f} over {len(tested)} rows")
    (ml / "model/centroids.json").write_text(json.dumps({"scales": scales, "centroids": centroids}))


try:
    train()
except Exception as error:  # noqa: BLE001
    (ml / "output/failure").write_text(f"{type(error).__name__}: {error}")  # what FailureReason will say
    print(error, file=sys.stderr)
    sys.exit(1)
