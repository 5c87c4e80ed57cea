"""Built-in XGBoost: a whole job against plain `xgboost.train` on the same CSV of 500 MB, parsing included; time and peak memory.

Yardsticks: a script that reads the file with pyarrow, the fastest common reader, and one that leaves it to XGBoost's own.
"""

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from scripts.bench.measure import cpu_seconds_of_children, machine, report

RUNS = 3
ROWS, FEATURES, ROUNDS = 1_070_000, 50, 20
GIVEN = {"objective": "binary:logistic", "max_depth": 6, "eta": 0.2, "tree_method": "hist"}

PLAIN = """
import sys
import xgboost
file, how, rounds = sys.argv[1:]
if how == "pyarrow":
    from pyarrow import csv
    table = csv.read_csv(file, read_options=csv.ReadOptions(autogenerate_column_names=True))
    label = table.column(0).to_numpy()
    training = xgboost.DMatrix(table.remove_column(0), label)
    del table
else:
    training = xgboost.DMatrix(f"{file}?format=csv&label_column=0")
booster = xgboost.train(GIVEN, training, int(rounds), evals=[(training, "train")])
booster.save_model("model.ubj")
"""


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="optml-bench-") as scratch:
        folder = Path(scratch)
        os.environ["OPTML_HOME"] = str(folder / "home")
        file = folder / "data" / "train.csv"
        write_data(file)
        script = folder / "plain.py"
        script.write_text(PLAIN.replace("GIVEN", repr(GIVEN)))
        optml = str(Path(sys.executable).parent / "optml")
        parameters = [text for name, value in GIVEN.items() for text in ("-p", f"{name}={value}")]
        commands = {
            "plain, read by pyarrow": [sys.executable, str(script), str(file), "pyarrow", str(ROUNDS)],
            "plain, read by xgboost": [sys.executable, str(script), str(file), "xgboost", str(ROUNDS)],
            "job": [
                *(optml, "train", "--quiet", "--image", "xgboost", "--channel", f"train={file.parent}/"),
                *("-p", f"num_round={ROUNDS}", *parameters),
            ],
        }
        seconds: dict[str, list[float]] = {name: [] for name in commands}
        cpu: dict[str, list[float]] = {name: [] for name in commands}
        peaks: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(RUNS):  # in turn; the file was just written, and is in memory for all
            for name, argv in commands.items():
                took, cpu_seconds, peak_bytes = measured(argv, folder)
                seconds[name].append(took)
                cpu[name].append(cpu_seconds)
                peaks[name].append(peak_bytes)
        time_of = {name: statistics.median(values) for name, values in seconds.items()}
        cpu_of = {name: statistics.median(values) for name, values in cpu.items()}
        peak_of = {name: statistics.median(values) for name, values in peaks.items()}
        plain = [name for name in commands if name.startswith("plain")]
        fastest, smallest = min(time_of[name] for name in plain), min(peak_of[name] for name in plain)
        least_cpu = min(cpu_of[name] for name in plain)
        print(machine())
        size = file.stat().st_size
        report(
            f"XGBoost on {size / 1e6:.0f} MB of CSV, {ROWS:,} rows of {FEATURES} features, {ROUNDS} rounds (median of {RUNS})",
            [
                *(
                    (
                        f"{name}",
                        f"{time_of[name]:.1f} s, {cpu_of[name]:.1f} s of processor time, peak {peak_of[name] / 2**20:,.0f} MiB",
                    )
                    for name in commands
                ),
                ("time, job over the faster plain one (at most 1.10)", f"{time_of['job'] / fastest:.2f}"),
                ("processor time, the same", f"{cpu_of['job'] / least_cpu:.2f}"),
                ("memory, job over the smaller plain one (at most 1.2)", f"{peak_of['job'] / smallest:.2f}"),
            ],
        )
        before = cpu_seconds_of_children()
        starts = statistics.median(cold_start(folder / f"start-{number}") for number in range(5))
        cpu_seconds = (cpu_seconds_of_children() - before) / 5
        report(
            "Cold start of the program (median of 5)",
            [
                ("process start to the first line of metrics (at most 1.5 s)", f"{starts:.2f} s"),
                ("processor time of the whole process", f"{cpu_seconds:.2f} s"),
            ],
        )


def cold_start(root: Path) -> float:
    """Seconds until the first line of metrics, on a few rows: the program by itself, without a platform."""
    for name in ("input/config", "input/data/train", "model", "output"):
        (root / name).mkdir(parents=True)
    (root / "input/config/hyperparameters.json").write_text('{"num_round": "1"}')
    (root / "input/config/inputdataconfig.json").write_text('{"train": {"ContentType": "text/csv"}}')
    (root / "input/data/train/a.csv").write_text("1,2\n2,3\n3,4\n")
    began = time.perf_counter()
    argv = [sys.executable, "-m", "optml_algorithms.xgboost"]
    environment = {**os.environ, "SAGEMAKER_BASE_DIR": str(root)}
    with subprocess.Popen(argv, env=environment, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        for line in program.stdout:
            if line.startswith("[0]\t"):
                took = time.perf_counter() - began
    return took


def write_data(file: Path) -> None:
    """Numbers as people write them, six significant digits, in ten blocks of random order of rows."""
    import numpy
    import pyarrow
    from pyarrow import csv

    file.parent.mkdir(parents=True)
    generator = numpy.random.default_rng(0)
    options = csv.WriteOptions(include_header=False)
    with file.open("wb") as stream:
        for _ in range(10):
            features = generator.normal(size=(ROWS // 10, FEATURES)).round(6)
            label = (features[:, :5].sum(axis=1) + generator.normal(size=len(features)) > 0).astype(int)
            columns = [label, *features.T]
            names = [str(number) for number in range(len(columns))]
            csv.write_csv(pyarrow.table(columns, names=names), stream, write_options=options)


def measured(argv: list[str], folder: Path) -> tuple[float, float, float]:
    """Seconds, processor seconds, and the peak memory in bytes of its largest process: one run, in a process of its own."""
    began = time.perf_counter()
    pid = os.fork()
    if pid == 0:
        quiet = subprocess.DEVNULL
        code = subprocess.run(argv, cwd=folder, stdout=quiet, stderr=quiet, check=False).returncode
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        (folder / "usage").write_text(f"{code} {usage.ru_utime + usage.ru_stime} {usage.ru_maxrss}")
        os._exit(0)
    os.waitpid(pid, 0)
    took = time.perf_counter() - began
    code_text, cpu_text, peak_text = (folder / "usage").read_text().split()
    if code_text != "0":
        raise SystemExit(f"{argv} failed: {code_text}")
    return took, float(cpu_text), int(peak_text) * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    main()
