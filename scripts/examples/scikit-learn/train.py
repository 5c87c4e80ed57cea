"""A random forest with scikit-learn, on the CSV channels of SageMaker's built-in algorithms.

    optml train --image scikit-learn --entry-point train.py --source-dir scripts/examples/scikit-learn \
        --channel train=data/train/ --channel validation=data/validation/ -p n-estimators=50
"""

import argparse
import os
from pathlib import Path

import joblib
import numpy
from sklearn.ensemble import RandomForestClassifier


def read(folder: str) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Features (rows, columns) and labels (rows,) of all files of a channel: no header, the label first."""
    table = numpy.vstack([numpy.loadtxt(file, delimiter=",") for file in sorted(Path(folder).glob("*.csv"))])
    return table[:, 1:], table[:, 0]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--n-estimators", type=int, default=100)
    parser.add_argument("--train", default=os.environ["SM_CHANNEL_TRAIN"])
    parser.add_argument("--validation", default=os.environ["SM_CHANNEL_VALIDATION"])
    parser.add_argument("--model-dir", default=os.environ["SM_MODEL_DIR"])
    options = parser.parse_args()
    model = RandomForestClassifier(options.n_estimators, random_state=0, n_jobs=int(os.environ["SM_NUM_CPUS"]))
    model.fit(*read(options.train))
    print(f"accuracy={model.score(*read(options.validation)):.4f}")
    joblib.dump(model, Path(options.model_dir) / "model.joblib")


if __name__ == "__main__":
    main()
