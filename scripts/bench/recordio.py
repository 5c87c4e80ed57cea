"""RecordIO-protobuf to numpy and back. Yardstick: the reader and writer of AWS's training toolkit (PyPI: sagemaker-training).

It is installed into a throw-away environment, for it is no dependency of ours; $TOOLKIT_PYTHON names a Python that has it.
Seconds of processor time, for each of the four is one thread: they hold on a busy machine too.
"""

import functools
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from scripts.bench.measure import cpu_seconds, machine, report

RUNS = 5

# Runs in the toolkit's environment, and answers on its standard output: a line for each line that it is told.
YARDSTICK = """
import sys, time
import numpy, scipy.sparse
from sagemaker_training.record_pb2 import Record
from sagemaker_training.recordio import _read_recordio, _write_numpy_to_dense_tensor, _write_spmatrix_to_sparse_tensor

def read_dense(path):
    features, labels = [], []
    with open(path, "rb") as stream:
        for content in _read_recordio(stream):
            record = Record.FromString(content)
            features.append(numpy.array(record.features["values"].float32_tensor.values, dtype="f4"))
            labels.append(record.label["values"].float32_tensor.values[0])
    return numpy.stack(features), numpy.array(labels, dtype="f4")

def read_sparse(path):
    values, keys, ends, labels = [], [], [0], []
    with open(path, "rb") as stream:
        for content in _read_recordio(stream):
            record = Record.FromString(content)
            tensor = record.features["values"].float32_tensor
            values.append(numpy.array(tensor.values, dtype="f4"))
            keys.append(numpy.array(tensor.keys, dtype="i8"))
            ends.append(ends[-1] + len(tensor.values))
            width = tensor.shape[0]
            labels.append(record.label["values"].float32_tensor.values[0])
    parts = numpy.concatenate(values), numpy.concatenate(keys), numpy.array(ends)
    return scipy.sparse.csr_matrix(parts, shape=(len(labels), width)), numpy.array(labels, dtype="f4")

kept = None
for line in sys.stdin:
    what, path = line.rstrip("\\n").split(" ", 1)
    began = time.process_time()
    if what == "dense":
        kept = read_dense(path)
    elif what == "sparse":
        kept = read_sparse(path)
    else:
        with open(path, "wb") as stream:
            write = _write_spmatrix_to_sparse_tensor if scipy.sparse.issparse(kept[0]) else _write_numpy_to_dense_tensor
            write(stream, *kept)
    print(time.process_time() - began, flush=True)
"""


class Toolkit:
    def __init__(self, folder: Path):
        python = os.environ.get("TOOLKIT_PYTHON")
        if python is None:
            environment = folder / "toolkit"
            subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
            python = str(environment / "bin" / "python")
            subprocess.run(
                [
                    python,
                    "-m",
                    "pip",
                    "install",
                    "--quiet",
                    "--disable-pip-version-check",
                    "sagemaker-training",
                    "numpy",
                    "scipy",
                ],
                check=True,
            )
        self.process = subprocess.Popen(
            [python, "-c", YARDSTICK],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def seconds(self, what: str, file: Path) -> float:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{what} {file}\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())


def main() -> None:
    import numpy
    import scipy.sparse

    from optml_algorithms.data.channel import read
    from optml_algorithms.data.recordio_writer import write_recordio
    from optml_toolkit.container import Channel

    random = numpy.random.default_rng(0)
    rows: list[tuple[str, str]] = []
    with tempfile.TemporaryDirectory(prefix="optml-bench-") as scratch:
        toolkit = Toolkit(Path(scratch))
        kinds: dict[str, Any] = {
            "dense": random.normal(size=(200_000, 100)).astype("f4"),
            "sparse": scipy.sparse.random(200_000, 1000, density=0.03, format="csr", dtype="f4", random_state=0),
        }
        for name, features in kinds.items():
            labels = random.integers(0, 10, features.shape[0]).astype("f4")
            file = Path(scratch) / name
            write_recordio(file, features, labels)
            channel = Channel(
                name=name, folder=file, content_type=None, input_mode="File", distribution="FullyReplicated"
            )
            took: dict[str, list[float]] = {"reads": [], "toolkit reads": [], "writes": [], "toolkit writes": []}
            for number in range(RUNS + 1):  # the first warms up
                ours = cpu_seconds(functools.partial(read, channel, formats=("recordio",)))
                theirs = toolkit.seconds(name, file)
                our_write = cpu_seconds(functools.partial(write_recordio, Path(scratch) / "again", features, labels))
                their_write = (
                    toolkit.seconds("write", Path(scratch) / "theirs") if number < 2 else took["toolkit writes"][-1]
                )
                if number:
                    for key, seconds in zip(took, (ours, theirs, our_write, their_write), strict=True):
                        took[key].append(seconds)
            size = file.stat().st_size
            speed = {key: size / 1e6 / statistics.median(seconds) for key, seconds in took.items()}
            rows += [
                (f"{name}, {size / 1e6:.0f} MB: the toolkit reads", f"{speed['toolkit reads']:,.1f} MB/s"),
                (
                    f"{name}: optml reads",
                    f"{speed['reads']:,.0f} MB/s, {speed['reads'] / speed['toolkit reads']:.0f} x",
                ),
                (f"{name}: the toolkit writes", f"{speed['toolkit writes']:,.1f} MB/s"),
                (
                    f"{name}: optml writes",
                    f"{speed['writes']:,.0f} MB/s, {speed['writes'] / speed['toolkit writes']:.0f} x",
                ),
            ]
    print(machine())
    report(f"RecordIO-protobuf (median of {RUNS}; at least 300 MB/s dense, and 20 x the toolkit)", rows)


if __name__ == "__main__":
    main()
