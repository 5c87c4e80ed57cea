"""Checkpoint sync: what it costs a training that runs beside it, how fast it is, and whether a killed writer leaves half a file.

Yardsticks: the same training without it; `cp`.
"""

import hashlib
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from scripts.bench.measure import in_turn, machine, medians, report

from optml.attempt import MIRROR_SECONDS
from optml.checkpoints import CheckpointMirror
from optml.clock import Clock

SIZE_MB = int(os.environ.get("BENCH_MB", "500"))
KILLS = int(os.environ.get("BENCH_KILLS", "500"))
PAIRS = int(os.environ.get("BENCH_PAIRS", "6"))  # with the uploader and without
IDLE_SECONDS, WRITE_SECONDS = (float(word) for word in os.environ.get("BENCH_SECONDS", "10,30").split(","))
TRAINERS = int(os.environ.get("BENCH_TRAINERS", str(os.cpu_count())))
BLOCK = b"\xa5" * (1 << 20)

# A training of fixed steps: for each line `seconds megabytes` it trains so long, writes a checkpoint first if told to, and
# answers with how many steps it did and the processor seconds that it had for them.
TRAINING = """
import os, sys, time
import numpy
weights = numpy.random.default_rng(1).random((384, 384), dtype=numpy.float32)
print("ready", flush=True)
for line in sys.stdin:
    seconds, megabytes = line.split()
    began, used = time.monotonic(), time.process_time()
    if int(megabytes):
        beside = os.path.join(sys.argv[1], "weights.sagemaker-ignore")
        with open(beside, "wb") as file:
            for _ in range(int(megabytes)):
                file.write(os.urandom(4096) * 256)
        os.replace(beside, os.path.join(sys.argv[1], "weights"))
    steps = 0
    while time.monotonic() < began + float(seconds):
        weights @ weights
        steps += 1
    print(steps, time.process_time() - used, flush=True)
"""


def main() -> None:
    print(machine())
    for part in (slow_down, speed, nothing_torn):
        if part.__name__ in os.environ.get("BENCH_PARTS", "slow_down speed nothing_torn").split():
            part()


class Trainers:
    """A training on every processor, as one that uses the whole machine has: none is left over for the uploader."""

    def __init__(self, folder: Path):
        one_thread = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        self.processes = [
            subprocess.Popen(
                [sys.executable, "-c", TRAINING, str(folder)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, **one_thread},
            )
            for _ in range(TRAINERS)
        ]
        for process in self.processes:
            assert process.stdout is not None
            process.stdout.readline()

    def train(self, seconds: float, *, megabytes: int) -> tuple[int, float]:
        """Steps that all of them did in so long, and their processor seconds; the first one writes a checkpoint."""
        for number, process in enumerate(self.processes):
            assert process.stdin is not None
            process.stdin.write(f"{seconds} {0 if number else megabytes}\n")
            process.stdin.flush()
        answers = [process.stdout.readline().split() for process in self.processes if process.stdout is not None]
        return sum(int(steps) for steps, _ in answers), sum(float(used) for _, used in answers)

    def close(self) -> None:
        for process in self.processes:
            process.communicate()


class Uploader:
    """Looks as often as a job's does, while it is on."""

    def __init__(self, folder: Path, store: Path):
        self.mirror = CheckpointMirror({"algo-1": folder}, f"file://{store}", clock=Clock())
        self.on, self.end = threading.Event(), threading.Event()
        self.thread = threading.Thread(target=self.look)
        self.thread.start()

    def look(self) -> None:
        while not self.end.wait(MIRROR_SECONDS):
            if self.on.is_set():
                self.mirror.sync()

    def close(self) -> None:
        self.end.set()
        self.thread.join()


def slow_down() -> None:
    """The same training with the uploader and without, in turn: A B B A ..., in one run. Medians of pairs, and their spread: it
    tells whether the machine was quiet enough for what is to be measured. Of a busy one the processor times say more: how many
    steps fit into a processor second, and what the uploader takes of them.
    """
    rows = []
    for megabytes, seconds, wanted in ((0, IDLE_SECONDS, "1 %"), (SIZE_MB, WRITE_SECONDS, "3.5 %")):
        slower, dearer, used = slow_down_of(megabytes, seconds)
        what = f"{megabytes} MB written every {seconds:g} s" if megabytes else "nothing changes"
        spread = f"{100 * min(slower):+.2f} to {100 * max(slower):+.2f} %, {len(slower)} pairs of {seconds:g} s"
        rows.append((f"{what} (at most {wanted})", f"{100 * statistics.median(slower):+.2f} % ({spread})"))
        of_processors = f"{100 * statistics.median(dearer):+.2f} % fewer steps in a processor second"
        rows.append(
            (f"{what}, by processor time", f"{of_processors}, {100 * statistics.median(used):.2f} % for the uploader")
        )
    report(f"By how much a training on {TRAINERS} processors is slower with the uploader (100 files)", rows)


def slow_down_of(megabytes: int, seconds: float) -> tuple[list[float], list[float], list[float]]:
    """For each pair: by which part fewer steps were done with it, and in a processor second; its part of all processors' time."""
    with tempfile.TemporaryDirectory(prefix="optml-bench-") as scratch:
        folder = Path(scratch) / "checkpoints"
        folder.mkdir()
        for number in range(100):
            (folder / f"small-{number}").write_bytes(b"x" * 1000)
        trainers = Trainers(folder)
        uploader = Uploader(folder, Path(scratch) / "store")
        slower, dearer, used = [], [], []
        try:
            trainers.train(1.0, megabytes=megabytes)
            for pair in range(PAIRS):
                steps: dict[bool, tuple[int, float]] = {}
                for is_on in (pair % 2 == 0, pair % 2 == 1):
                    uploader.mirror.final()  # what was written without it is not to be uploaded while it is measured
                    before = time.process_time()
                    if is_on:
                        uploader.on.set()
                    steps[is_on] = trainers.train(seconds, megabytes=megabytes)
                    uploader.on.clear()
                    if is_on:
                        used.append((time.process_time() - before) / seconds / TRAINERS)
                        assert uploader.mirror.uploaded["algo-1"].keys() >= ({"weights"} if megabytes else set())
                slower.append(1 - steps[True][0] / steps[False][0])
                dearer.append(1 - steps[True][0] / steps[True][1] / (steps[False][0] / steps[False][1]))
        finally:
            uploader.close()
            trainers.close()
        return slower, dearer, used


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


# Replaces one file, without a pause; every other time it goes on writing what it has renamed already.
REPLACER = """
import hashlib, os, random, sys
rng = random.Random(int(sys.argv[2]))
number = 0
while True:
    number += 1
    body = rng.randbytes(rng.randrange(1, 3_000_000))
    beside, final = (os.path.join(sys.argv[1], name) for name in ("beside.sagemaker-ignore", "ckpt"))
    with open(beside, "wb", buffering=0) as file:
        file.write(hashlib.sha256(body).hexdigest().encode())
        if number % 2:
            os.replace(beside, final)
        for begin in range(0, len(body), 65536):
            file.write(body[begin : begin + 65536])
    if not number % 2:
        os.replace(beside, final)
"""


def nothing_torn() -> None:
    kill(WRITER, "writes checkpoints in place")
    kill(REPLACER, "replaces its checkpoint all the time")


def kill(program: str, what: str) -> None:
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
            writer = subprocess.Popen([sys.executable, "-c", program, str(folder), str(kill)])
            time.sleep(0.1 + rng.random() * 0.4)
            mirror.look_before_end(killed=True)
            writer.send_signal(signal.SIGKILL)
            writer.wait()
            stop.set()
            thread.join()
            mirror.let_go()
            mirror.final(killed=("algo-1",))
            for file in store.glob("*"):
                content = file.read_bytes()
                published += 1
                torn += hashlib.sha256(content[64:]).hexdigest().encode() != content[:64]
            for file in folder.glob("*"):
                file.unlink()
    report(
        f"{KILLS} kills of a program that {what}",
        [("files looked at in the store", f"{published:,}"), ("torn (wanted: 0)", str(torn))],
    )


if __name__ == "__main__":
    main()
