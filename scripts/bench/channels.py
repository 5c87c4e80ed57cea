"""File mode: a 2 GB, 2,000-file channel from a local folder, and the same from a real S3 server on this machine.

Yardsticks: `cp -r` of the folder; `aws s3 cp --recursive` from the same server (rclone serve s3), in turn.
"""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from scripts.bench.measure import in_turn, machine, medians, report

import optml

FILES, FILE_BYTES = 2_000, 1_000_000


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="optml-bench-", dir=os.environ.get("OPTML_BENCH_DIR")) as scratch:
        folder = Path(scratch)
        os.environ["OPTML_HOME"] = str(folder / "home")
        data = folder / "served" / "bucket" / "data"
        data.mkdir(parents=True)
        block = os.urandom(FILE_BYTES)
        for number in range(FILES):
            (data / f"{number:05}.bin").write_bytes(number.to_bytes(8, "little") + block[8:])
        print(machine())
        local(folder, data)
        from_s3(folder)


def seconds_to_ready(job: optml.Job) -> float:
    """From the job's own record: Downloading, as the container would wait for it."""
    steps = job.describe_raw()["SecondaryStatusTransitions"]
    return sum(float(step["EndTime"] - step["StartTime"]) for step in steps if step["Status"] == "Downloading")


def local(folder: Path, data: Path) -> None:
    ready: list[float] = []

    def job() -> None:
        done = optml.train(image="python", entrypoint=["true"], channels={"train": f"{data}/"}, logs=False)
        ready.append(seconds_to_ready(done))

    def copy() -> None:
        shutil.rmtree(folder / "copy", ignore_errors=True)
        subprocess.run(["cp", "-r", str(data), str(folder / "copy")], check=True)

    seconds = medians(in_turn({"cp -r": copy, "job": job}, runs=3))
    shutil.rmtree(folder / "copy")
    report(
        f"Local File channel, {FILES:,} files, {FILES * FILE_BYTES / 1e9:.0f} GB",
        [
            ("`cp -r`", f"{seconds['cp -r']:.2f} s"),
            ("channel ready (at most 0.5 s)", f"{sorted(ready)[len(ready) // 2]:.3f} s"),
            ("the whole job", f"{seconds['job']:.3f} s"),
        ],
    )


def from_s3(folder: Path) -> None:
    from tests.s3 import serve

    aws = shutil.which("aws")
    with serve(folder / "served") as environment:
        os.environ.update(environment)
        ready: list[float] = []

        def job() -> None:
            done = optml.train(image="python", entrypoint=["true"], channels={"train": "s3://bucket/data/"}, logs=False)
            ready.append(seconds_to_ready(done))

        def aws_copy() -> None:
            shutil.rmtree(folder / "copy", ignore_errors=True)
            argv = [
                str(aws),
                "s3",
                "cp",
                "--recursive",
                "--only-show-errors",
                "s3://bucket/data/",
                str(folder / "copy"),
            ]
            subprocess.run(argv, check=True)

        actions = {"job": job} | ({"aws": aws_copy} if aws else {})
        seconds = medians(in_turn(actions, runs=3))
        rows = [("channel ready", f"{sorted(ready)[len(ready) // 2]:.2f} s")]
        if aws:
            rows = [
                ("`aws s3 cp --recursive`", f"{seconds['aws']:.2f} s"),
                *rows,
                ("speed, optml / aws (at least 0.8)", f"{seconds['aws'] / sorted(ready)[len(ready) // 2]:.2f}"),
            ]
        report("The same from an S3 server on this machine", rows)


if __name__ == "__main__":
    main()
