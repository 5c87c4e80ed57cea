"""Checkpoint sync: what it costs a training that runs beside it, how fast it is, and whether a killed writer leaves half a file.

Yardsticks: the processor time of a training beside it; `cp`.
"""

import hashlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from scripts.bench.measure import in_turn, machine, medians, report

from optml.checkpoints import CheckpointMirror
from optml.clock import Clock

SIZE_MB = int(os.environ.get("BENCH_MB", "500"))
KILLS = int(os.environ.get("BENCH_KILLS", "500"))
TRAIN_SECONDS = 30.0
BLOCK = b"\xa5" * (1 << 20)

# Steps of a fixed amount of arithmetic; prints how many it did in the time, and writes a checkpoint first if told to.
TRAINING = """
import os, sys, time
folder, megabytes, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
end = time.monotonic() + seconds
steps = 0
if megabytes:
    beside = os.path.join(folder, "weights.sagemaker-ignore")
    with open(beside, "wb") as file:
        for _ in range(megabytes):
            file.write(b"x" * (1 << 20))
    os.replace(beside, os.path.join(folder, "weights"))
while time.monotonic() < end:
    sum(range(20_000))
    steps += 1
print(steps)
"""


def main() -> None:
    print(machine())
    slow_down()
    speed()
    nothing_torn()


def run_training(scratch: Path, *, megabytes: int) -> tuple[int, float]:
    """Steps done in the time, and the processor seconds that the uploader used meanwhile."""
    folder, store = scratch / "checkpoints", scratch / "store"
    folder.mkdir(exist_ok=True)
    for number in range(100):
        (folder / f"small-{number}").write_bytes(b"x" * 1000)
    mirror = CheckpointMirror({"algo-1": folder}, f"file://{store}", clock=Clock())
    stop = threading.Event()

    def look() -> None:
        while not stop.wait(0.25):
            mirror.sync()

    thread = threading.Thread(target=look)
    before = time.process_time()
    thread.start()
    done = subprocess.run(
        [sys.executable, "-c", TRAINING, str(folder), str(megabytes), str(TRAIN_SECONDS)],
        capture_output=True,
        text=True,
        check=True,
    )
    stop.set()
    thread.join()
    return int(done.stdout), time.process_time() - before


def slow_down() -> None:
    """In processor time: on a busy machine the wall time of two runs differs by more than is to be measured."""
    rows = []
    for megabytes, wanted in ((0, "1 %"), (SIZE_MB, "3.5 %")):
        with tempfile.TemporaryDirectory(prefix="optml-bench-") as scratch:
            _, used = run_training(Path(scratch), megabytes=megabytes)
        what = f"{megabytes} MB written every {TRAIN_SECONDS:g} s" if megabytes else "nothing changes"
        rows.append((f"{what} (at most {wanted})", f"{100 * used / TRAIN_SECONDS:.2f} %"))
    report("The uploader's processor time, as a share of the time of a training beside it (100 files)", rows)


def speed() -> None:
    with tempfile.TemporaryDirectory(prefix="optml-bench-") as scratch:
        folder = Path(scratch) / "checkpoints"
        folder.mkdir()
        file = folder / "weights"
        with file.open("wb") as stream:
            for _ in range(SIZE_MB):
                stream.write(BLOCK)

        def copy() -> object:
            target = Path(scratch) / "copy"
            target.unlink(missing_ok=True)
            return subprocess.run(["cp", str(file), str(target)], check=True)

        def upload() -> object:
            store = Path(scratch) / "store"
            (store / "weights").unlink(missing_ok=True)
            mirror = CheckpointMirror({"algo-1": folder}, f"file://{store}", clock=Clock())
            os.utime(file)
            mirror.final()
            return None

        seconds = medians(in_turn({"cp": copy, "upload": upload}, runs=5))
        report(
            f"{SIZE_MB} MB to file://",
            [
                ("cp", f"{SIZE_MB / seconds['cp']:,.0f} MB/s"),
                ("upload", f"{SIZE_MB / seconds['upload']:,.0f} MB/s"),
                ("upload over cp (at least 0.8)", f"{seconds['cp'] / seconds['upload']:.2f}"),
            ],
        )


# Writes checkpoints in place, without a pause: each is a digest and the bytes that it is of.
WRITER = """
import hashlib, os, random, sys
rng = random.Random(int(sys.argv[2]))
number = 0
while True:
    number += 1
    body = rng.randbytes(rng.randrange(1, 3_000_000))
    with open(os.path.join(sys.argv[1], f"ckpt-{number % 3}"), "wb", buffering=0) as file:
        file.write(hashlib.sha256(body).hexdigest().encode())
        for begin in range(0, len(body), 65536):
            file.write(body[begin : begin + 65536])
"""


def nothing_torn() -> None:
    """Kills at random instants, with the looks of a job around them; each file in the store must be whole."""
    rng = random.Random(3)
    torn = published = 0
    with tempfile.TemporaryDirectory(prefix="optml-bench-") as scratch:
        for kill in range(KILLS):
            folder, store = Path(scratch) / f"host-{kill}", Path(scratch) / "store"
            folder.mkdir()
            mirror = CheckpointMirror({"algo-1": folder}, f"file://{store}", clock=Clock())
            stop = threading.Event()

            def look(mirror: CheckpointMirror = mirror, stop: threading.Event = stop) -> None:
                while not stop.wait(0.05):
                    mirror.sync()

            thread = threading.Thread(target=look)
            thread.start()
            writer = subprocess.Popen([sys.executable, "-c", WRITER, str(folder), str(kill)])
            time.sleep(0.1 + rng.random() * 0.4)
            mirror.look_before_end(killed=True)
            writer.send_signal(signal.SIGKILL)
            writer.wait()
            stop.set()
            thread.join()
            mirror.final(killed=("algo-1",))
            for file in store.glob("*"):
                content = file.read_bytes()
                published += 1
                torn += hashlib.sha256(content[64:]).hexdigest().encode() != content[:64]
            for file in folder.glob("*"):
                file.unlink()
    report(
        f"{KILLS} kills of a program that writes checkpoints in place",
        [("files looked at in the store", f"{published:,}"), ("torn (wanted: 0)", str(torn))],
    )


if __name__ == "__main__":
    main()
