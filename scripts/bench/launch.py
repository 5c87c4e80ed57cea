"""Launch overhead: a script that prints one line, bare and as a job, from the command line and from Python.

Yardstick: `python script.py` with the same interpreter.
"""

import os
import sys
import tempfile
import time
from pathlib import Path

from scripts.bench.measure import in_turn, machine, medians, report, timed

RUNS = 15


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="optml-bench-") as scratch:
        os.environ["OPTML_HOME"] = str(Path(scratch) / "home")
        script = Path(scratch) / "hello.py"
        script.write_text("print('hello')\n")
        optml = str(Path(sys.executable).parent / "optml")

        import subprocess

        import optml as library

        def bare() -> object:
            return subprocess.run([sys.executable, str(script)], check=True, stdout=subprocess.DEVNULL)

        def command_line() -> object:
            return subprocess.run(
                [optml, "train", "--", sys.executable, str(script)], check=True, stdout=subprocess.DEVNULL
            )

        def from_python() -> object:
            return library.train(image="python", entrypoint=[sys.executable, str(script)], logs=False)

        seconds = medians(
            in_turn({"bare": bare, "command line": command_line, "python": from_python}, runs=RUNS, warm_up=2)
        )
        nothing = timed(lambda: subprocess.run([sys.executable, "-c", "pass"], check=True))
        help_seconds = medians(
            in_turn({"help": lambda: subprocess.run([optml, "--help"], check=True, stdout=subprocess.DEVNULL)}, runs=5)
        )
        print(machine())
        report(
            f"Launch overhead over the bare script (median of {RUNS})",
            [
                ("bare script", f"{seconds['bare']:.3f} s"),
                ("`optml train -- python script.py`", f"{seconds['command line']:.3f} s"),
                ("overhead, command line (at most 0.5 s)", f"{seconds['command line'] - seconds['bare']:.3f} s"),
                ("`optml.train(...)`, warm import", f"{seconds['python']:.3f} s"),
                ("overhead, Python (at most 0.15 s)", f"{seconds['python'] - seconds['bare']:.3f} s"),
                ("of it: an interpreter starting", f"{nothing:.3f} s"),
                ("of it: `optml --help`", f"{help_seconds['help']:.3f} s"),
            ],
        )
        report("The same by step (one job from Python)", by_step(library, script))


def by_step(library: object, script: Path) -> list[tuple[str, str]]:
    """When each step began, from the job's own record, and how long before and after it took."""
    began = time.time()
    job = library.train(image="python", entrypoint=[sys.executable, str(script)], logs=False)  # type: ignore[attr-defined]
    ended = time.time()
    described = job.describe_raw()
    steps = described["SecondaryStatusTransitions"]
    rows = [("request to record", f"{(described['CreationTime'] - began) * 1000:.1f} ms")]
    rows += [
        (step["Status"], f"{(step.get('EndTime', step['StartTime']) - step['StartTime']) * 1000:.1f} ms")
        for step in steps
    ]
    rows.append(("after the last record", f"{(ended - steps[-1]['StartTime']) * 1000:.1f} ms"))
    return rows


if __name__ == "__main__":
    main()
