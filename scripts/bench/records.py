"""Asking: `optml describe` and `optml list` with many recorded jobs, interpreter start included. Yardstick: `python -c pass`."""

import copy
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from scripts.bench.measure import in_turn, machine, medians, report


def main() -> None:
    rows: list[tuple[str, str]] = []
    with tempfile.TemporaryDirectory(prefix="optml-bench-") as scratch:
        home = Path(scratch) / "home"
        os.environ["OPTML_HOME"] = str(home)
        optml = str(Path(sys.executable).parent / "optml")
        import optml as library

        first = library.train(
            image="python", entrypoint=["true"], logs=False, hyperparameters={f"p{n}": n for n in range(20)}
        )
        record = json.loads((home / "jobs" / first.name / "job.json").read_text())
        made = 1
        for count in (1_000, 10_000):
            while made < count:
                another = copy.deepcopy(record)
                another["describe"]["TrainingJobName"] = f"job-{made:05}"
                another["describe"]["CreationTime"] += made
                folder = home / "jobs" / f"job-{made:05}"
                folder.mkdir()
                (folder / "job.json").write_text(json.dumps(another, separators=(",", ":")))
                made += 1

            def run(*argv: str) -> object:
                return subprocess.run([*argv], check=True, stdout=subprocess.DEVNULL)

            seconds = medians(
                in_turn(
                    {
                        "python -c pass": lambda: run(sys.executable, "-c", "pass"),
                        "optml list": lambda: run(optml, "list"),
                        "optml describe": lambda: run(optml, "describe", first.name),
                    },
                    runs=9,
                )
            )
            rows += [(f"{name}, {count:,} jobs", f"{value:.3f} s") for name, value in seconds.items()]
    print(machine())
    report("Asking (median of 9; at most 0.3 s with 1,000 jobs, `list` 1 s with 10,000)", rows)


if __name__ == "__main__":
    main()
