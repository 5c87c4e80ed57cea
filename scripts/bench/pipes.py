"""Pipe mode: bytes per second through a channel's FIFO into a job, and the memory of the process that feeds it.

Yardstick: `cat files > fifo`, the same bytes into the same reader, in turn.
"""

import os
import resource
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from scripts.bench.measure import in_turn, machine, medians, report

FILES, FILE_BYTES = 20, 100_000_000
READER = """
import os, sys, time
path = sys.argv[1] if len(sys.argv) > 1 else "/opt/ml/input/data/train_0"
total, began = 0, time.perf_counter()
with open(path, "rb", buffering=0) as fifo:
    while part := fifo.read(1 << 20):
        total += len(part)
seconds = time.perf_counter() - began
assert total == {total}, total
with open({result!r}, "a") as results:
    results.write(f"{{seconds}}\\n")
"""


def main() -> None:
    import optml

    with tempfile.TemporaryDirectory(prefix="optml-bench-", dir=os.environ.get("OPTML_BENCH_DIR")) as scratch:
        folder = Path(scratch)
        os.environ["OPTML_HOME"] = str(folder / "home")
        data = folder / "data"
        data.mkdir()
        for number in range(FILES):
            (data / f"{number:03}.bin").write_bytes(os.urandom(1 << 20) * (FILE_BYTES >> 20))
        total = sum(file.stat().st_size for file in data.iterdir())
        readers = {}
        for name in ("job", "cat"):
            script = folder / f"{name}.py"
            script.write_text(READER.format(total=total, result=str(folder / f"{name}.seconds")))
            readers[name] = [sys.executable, str(script)]

        def job() -> None:
            channel = {"uri": f"{data}/", "input_mode": "Pipe"}
            optml.train(image="python", entrypoint=readers["job"], channels={"train": channel}, logs=False)

        def cat() -> None:
            fifo = folder / "fifo"
            fifo.unlink(missing_ok=True)
            os.mkfifo(fifo)
            with subprocess.Popen(f"exec cat {data}/* > {fifo}", shell=True):
                subprocess.run([*readers["cat"], str(fifo)], check=True)

        job()  # warm
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        in_turn({"cat": cat, "job": job}, runs=5)
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        seconds = medians(
            {name: [float(line) for line in (folder / f"{name}.seconds").read_text().split()] for name in readers}
        )
        print(machine())
        report(
            f"Pipe mode, {FILES} files, {total / 1e9:.1f} GB (median)",
            [
                ("`cat files > fifo`", f"{total / seconds['cat'] / 1e6:,.0f} MB/s"),
                ("a Pipe channel", f"{total / seconds['job'] / 1e6:,.0f} MB/s"),
                ("ratio (at least 0.7)", f"{seconds['cat'] / seconds['job']:.2f}"),
                ("growth of the feeder's memory over 12 GB piped", f"{max(0, after - before) / 1024:.1f} MiB"),
                ("threads left", str(threading.active_count() - 1)),
            ],
        )


if __name__ == "__main__":
    main()
