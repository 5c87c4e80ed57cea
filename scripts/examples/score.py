"""Score a CSV with a model archive, with plain xgboost and no optml: python score.py model.tar.gz validation.csv"""

import sys
import tarfile

import numpy
import xgboost

archive, file = sys.argv[1:]
with tarfile.open(archive) as tar:
    model = tar.extractfile("xgboost-model")
    assert model is not None
    booster = xgboost.Booster(model_file=bytearray(model.read()))
table = numpy.loadtxt(file, delimiter=",")
predicted = booster.predict(xgboost.DMatrix(table[:, 1:])) > 0.5
wrong = int((predicted != table[:, 0]).sum())
print(f"plain xgboost loads the model; it is wrong on {wrong} of {len(table)} rows: error {wrong / len(table):.4f}")
