"""k-NN in Python: handwritten digits as RecordIO-protobuf, a job on two hosts, and a model that is asked. python neighbours.py"""

import shutil
import tempfile
from pathlib import Path

import numpy
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import optml
from optml_algorithms.data.recordio_writer import write_recordio
from optml_algorithms.knn.model import load

features, labels = load_digits(return_X_y=True)
train, test, train_labels, test_labels = train_test_split(features, labels, test_size=0.2, random_state=7)

with tempfile.TemporaryDirectory() as scratch:
    folder = Path(scratch)
    (folder / "train").mkdir()
    for number in range(2):  # a file for each host
        write_recordio(folder / "train" / f"part-{number}.pbr", train[number::2], train_labels[number::2])
    write_recordio(folder / "test.pbr", test, test_labels)
    job = optml.train(
        image="knn",
        channels={
            "train": {"uri": f"{folder}/train/", "distribution": "ShardedByS3Key"},
            "test": f"{folder}/test.pbr",
        },
        hyperparameters={"feature_dim": 64, "k": 5, "predictor_type": "classifier", "sample_size": 2000},
        instance_count=2,
        output=f"{folder}/output",
        logs=False,
    )
    (metric,) = job.describe()["FinalMetricDataList"]
    print(f"{job.status}: {metric['MetricName']} {metric['Value']:.4f}")

    shutil.unpack_archive(job.model_data.removeprefix("file://"), folder / "model")
    model = load(folder / "model")

question = test[:1].astype(numpy.float32)
predicted = int(model.predict(question).predicted_label[0])
near = model.neighbours(question)
print(f"the first test image is a {predicted}; its nearest neighbours are", *near.labels[0].astype(int))
