"""A trained model in Python: python use_model.py JOB data.csv (no header, the label first)"""

import shutil
import sys
import tempfile
from pathlib import Path

import numpy

import optml
from optml_algorithms.models import load

job, file = sys.argv[1:]
with tempfile.TemporaryDirectory() as folder:
    shutil.unpack_archive(optml.find(job).model_data.removeprefix("file://"), folder)
    model = load(Path(folder))

table = numpy.loadtxt(file, delimiter=",", dtype=numpy.float32)
prediction = model.predict(table[:, 1:])
print(f"{model.algorithm}, {model.task}, {model.feature_count} features")
print(f"first row: class {prediction.predicted_label[0]}, probability of class 1 {prediction.score[0]:.4f}")
