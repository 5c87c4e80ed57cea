"""XGBoost in framework mode: the library called by a script, where the built-in algorithm would not do.

    optml train --image xgboost --entry-point train.py --source-dir scripts/examples/xgboost-script \
        --channel train=data/train/ --channel validation=data/validation/ -p max_depth=3
"""

import argparse
import os
from pathlib import Path

import numpy
import xgboost


def read(folder: str) -> xgboost.DMatrix:
    """All files of a channel: no header, the label first."""
    table = numpy.vstack([numpy.loadtxt(file, delimiter=",") for file in sorted(Path(folder).glob("*.csv"))])
    return xgboost.DMatrix(table[:, 1:], table[:, 0])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--max_depth", type=int, default=6)
    parser.add_argument("--num_round", type=int, default=20)
    options = parser.parse_args()
    training, validation = read(os.environ["SM_CHANNEL_TRAIN"]), read(os.environ["SM_CHANNEL_VALIDATION"])
    booster = xgboost.train(
        {"objective": "binary:logistic", "max_depth": options.max_depth, "seed": 0},
        training,
        num_boost_round=options.num_round,
        evals=[(validation, "validation")],
    )
    booster.save_model(Path(os.environ["SM_MODEL_DIR"]) / "model.ubj")


if __name__ == "__main__":
    main()
