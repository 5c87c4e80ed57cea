"""The distributed library beside the same by hand: steps and their scaling, agreement, saving, pipeline bubbles, start.

    python -m scripts.bench.distributed [steps saving bubble start]

Stages of the bubble's pipelines sleep instead of computing: on two shared cores they would measure each other.
"""

import json
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from scripts.bench.measure import machine, report

ROUNDS = 5  # of everything that is started anew

# In one process or two, so many samples for each. Library and hand-written steps in turn, in the same processes, so that a noisy
# machine is fair; each other time in the other order.
STEPS = """
import json, os, statistics, sys, time
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import TensorDataset
from optml_toolkit import distributed
from optml_toolkit.distributed.interruption import Agreement

torch.set_num_threads(1)
run = distributed.init()
samples, steps = int(sys.argv[1]), int(sys.argv[2])
x = torch.randn(2 * samples * steps, 512)
data = distributed.Batches(run, TensorDataset(x, x), batch_size=samples * run.world_size)

def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(512, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 512))

ours = distributed.data_parallel(run, network())
ours_optimizer = torch.optim.Adam(ours.parameters())
training = distributed.Training(run, ours, ours_optimizer, data, checkpoint_dir=False, log_every_steps=10)
theirs = DistributedDataParallel(network(), gradient_as_bucket_view=True)
theirs_optimizer = torch.optim.Adam(theirs.parameters())
sampler = torch.utils.data.distributed.DistributedSampler(data.dataset)
loader = torch.utils.data.DataLoader(data.dataset, batch_size=samples, sampler=sampler)

def again_and_again():
    while True:
        yield from loader

def by_hand(batches):
    inputs, targets = next(batches)
    loss = nn.functional.mse_loss(theirs(inputs), targets)
    loss.backward(); theirs_optimizer.step(); theirs_optimizer.zero_grad()

def library(batches):
    inputs, targets = next(batches)
    training.step(nn.functional.mse_loss(ours(inputs), targets))

mine, others = training.batches(steps=10_000), again_and_again()
seconds = {"library": [], "by hand": []}
both = [("by hand", by_hand, others), ("library", library, mine)]
for number in range(10):
    for name, step, batches in both if number % 2 else reversed(both):
        run.barrier()
        began = time.perf_counter()
        for _ in range(steps):
            step(batches)
        run.barrier()
        if number > 1: seconds[name].append((time.perf_counter() - began) / steps)
agreement = Agreement(run)
waits = []
for _ in range(80):
    time.sleep(0.05)   # where a step would compute
    began = time.perf_counter()
    agreement.exchange(stop=False, save=False, step_ms=50)
    waits.append(time.perf_counter() - began)
agreement.finish()
if run.first:
    print("RESULT " + json.dumps({**seconds, "agree": [statistics.fmean(waits)]}))
os._exit(0)  # the loop above is left in the middle
"""

SAVING = """
import json, statistics, sys, time
from pathlib import Path
import torch
from torch import nn
from torch.utils.data import TensorDataset
from optml_toolkit import distributed

run = distributed.init()
folder = Path(sys.argv[1])
torch.set_num_threads(1)
model = nn.Sequential(*[nn.Linear(1024, 1024) for _ in range(33)])    # 133 MB, and 266 MB of Adam's
optimizer = torch.optim.Adam(model.parameters())
data = distributed.Batches(run, TensorDataset(torch.zeros(64, 1024)), batch_size=8)
training = distributed.Training(run, model, optimizer, data, checkpoint_dir=folder, keep=1)
x = torch.ones(512, 1024)

def step():
    began = time.perf_counter()
    model(x).sum().backward(); optimizer.step(); optimizer.zero_grad()
    return time.perf_counter() - began

step()
training.steps_done = 1; training._save(wait=False); training.checkpoints.finish()  # buffers are there
stalls, blocking, whole = [], [], []
for number in range(2, 7):
    began = time.perf_counter()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, folder / "blocking.pt")
    blocking.append(time.perf_counter() - began)
    (folder / "blocking.pt").unlink()
    training.steps_done = number
    waited = training.progress.seconds["checkpoint"]
    began = time.perf_counter()
    training._save(wait=False)
    called = time.perf_counter() - began
    step()
    stalls.append(called + training.progress.seconds["checkpoint"] - waited)
    training.checkpoints.finish()
    whole.append(time.perf_counter() - began)
print("RESULT " + json.dumps({"stall": statistics.median(stalls), "blocking": statistics.median(blocking),
                              "whole": statistics.median(whole)}))
"""

BUBBLE = """
import json, sys, time
import torch
from torch import nn
from optml_toolkit import distributed

torch.set_num_threads(1)
run = distributed.init(pipe=2)
schedule, micro_batches = sys.argv[1], int(sys.argv[2])

class Wait(torch.autograd.Function):
    @staticmethod
    def forward(context, x, forward_seconds, backward_seconds):
        time.sleep(forward_seconds)
        context.seconds = backward_seconds
        return x.clone()
    @staticmethod
    def backward(context, gradient):
        time.sleep(context.seconds)
        return gradient.clone(), None, None

class Work(nn.Module):
    # Its time is that of a stage that computes elsewhere: two shared cores would measure each other. Forward, the input's
    # gradient and the weight's take 30 ms each, the last two apart, as zero-bubble schedules have it.
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(4))
    def forward(self, x):
        return Wait.apply(x, 0.030, 0.030) + Wait.apply(self.weight, 0.0, 0.030)

model = nn.Sequential(*[layer for _ in range(4) for layer in (nn.Linear(4, 4), Work())])
pipeline = distributed.Pipeline(run, model, loss=nn.functional.mse_loss, micro_batches=micro_batches, schedule=schedule,
                                costs=[0.01, 1.0] * 4)
x = torch.zeros(micro_batches, 4)
pipeline.step(x, x); pipeline.bubble()
found = []
for _ in range(3):
    pipeline.step(x, x)
    found.append(pipeline.bubble())
if run.first:
    measured = sorted(each["measured"] for each in found)[len(found) // 2]
    print("RESULT " + json.dumps({"measured": measured, "formula": found[0]["formula"]}))
"""

# To the end of the first step. The library's checkpoint folder is there, and empty.
START = """
import sys, time
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, DistributedSampler
dataset = TensorDataset(torch.ones(64, 4), torch.ones(64, 4))
if sys.argv[1] == "library":
    from optml_toolkit import distributed
    run = distributed.init()
    model = distributed.data_parallel(run, nn.Linear(4, 4))
    optimizer = torch.optim.Adam(model.parameters())
    data = distributed.Batches(run, dataset, batch_size=16)
    training = distributed.Training(run, model, optimizer, data, checkpoint_dir=sys.argv[2])
    for inputs, targets in training.batches(steps=100):
        training.step(nn.functional.mse_loss(model(inputs), targets))
        print("RESULT " + str(time.time()), flush=True)
        break
    run.close()
else:
    import torch.distributed as dist
    dist.init_process_group("gloo")
    model = nn.parallel.DistributedDataParallel(nn.Linear(4, 4))
    optimizer = torch.optim.Adam(model.parameters())
    for inputs, targets in DataLoader(dataset, batch_size=8, sampler=DistributedSampler(dataset)):
        nn.functional.mse_loss(model(inputs), targets).backward()
        optimizer.step(); optimizer.zero_grad()
        print("RESULT " + str(time.time()), flush=True)
        break
    dist.destroy_process_group()
"""


def ranks(source: str, *arguments: str, count: int = 2) -> str:
    """Run a script in so many processes; what rank 0 gives as its result."""
    with tempfile.TemporaryDirectory() as folder, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
        probe.close()
        script = Path(folder, "train.py")
        script.write_text(source, encoding="utf-8")
        processes = []
        for rank in range(count):
            place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)} if count > 1 else {}
            environment = {**os.environ, **place, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            if count == 1:
                environment.pop("WORLD_SIZE", None)
            command = [sys.executable, str(script), *arguments]
            processes.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment))
        outputs = [process.communicate(timeout=300)[0] for process in processes]
    return next(line for line in outputs[0].splitlines() if line.startswith("RESULT ")).removeprefix("RESULT ")


def start_seconds(which: str, *, torchrun: bool) -> float:
    """From the start of the processes, or of torchrun, to the end of rank 0's first step."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.time()
        if not torchrun:
            return float(ranks(START, which, folder)) - began
        script = Path(folder, "train.py")
        script.write_text(START, encoding="utf-8")
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
        done = subprocess.run(
            [*command, str(script), which, folder],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            check=True,
        )
        # Lines of two ranks may have run together.
        return max(float(end) for end in re.findall(r"RESULT (\d+\.\d+)", done.stdout)) - began


def steps() -> None:
    few, many = steps_of(samples=64, steps=15, rounds=ROUNDS), steps_of(samples=2048, steps=3, rounds=3)
    report(
        "Steps of an MLP of 2.1 M parameters, 64 samples for each process",
        [
            ("two processes: hand-written DDP", f"{1000 * few.median(2, 'by hand'):.1f} ms"),
            ("`Training` over `data_parallel`", f"{1000 * few.median(2, 'library'):.1f} ms"),
            (
                f"overhead, median of {len(few.pairs)} pairs (wanted: at most 2 %)",
                f"{100 * statistics.median(ours / theirs - 1 for ours, theirs in few.pairs):.1f} %",
            ),
            ("agreeing on whether to stop, mean per step of 50 ms", f"{1e6 * few.agree:.0f} us"),
            ("share of a 50 ms step (wanted: under 0.5 %)", f"{100 * few.agree / 0.05:.2f} %"),
        ],
    )
    report(
        "Efficiency: a step of one process over one of two, with as many samples for each process",
        [
            (
                f"{samples} samples for each: {name}",
                f"{found.median(1, name) / found.median(2, name):.2f} "
                f"({1000 * found.median(1, name):.1f} ms, {1000 * found.median(2, name):.1f} ms)",
            )
            for samples, found in ((64, few), (2048, many))
            for name in ("by hand", "library")
        ],
    )


@dataclass(frozen=True)
class Steps:
    """By the number of processes, what each run found."""

    found: dict[int, list[dict[str, list[float]]]]

    def median(self, count: int, name: str) -> float:
        return statistics.median(value for each in self.found[count] for value in each[name])

    @property
    def pairs(self) -> list[tuple[float, float]]:
        return [pair for each in self.found[2] for pair in zip(each["library"], each["by hand"], strict=True)]

    @property
    def agree(self) -> float:
        return statistics.median(each["agree"][0] for each in self.found[2])


def steps_of(*, samples: int, steps: int, rounds: int) -> Steps:
    found: dict[int, list[dict[str, list[float]]]] = {1: [], 2: []}
    for _ in range(rounds):
        for count, results in found.items():
            results.append(json.loads(ranks(STEPS, str(samples), str(steps), count=count)))
    return Steps(found)


def saving() -> None:
    with tempfile.TemporaryDirectory() as folder:
        found = json.loads(ranks(SAVING, folder, count=1))
    report(
        "Saving 400 MB of model and Adam",
        [
            ("blocking `torch.save`", f"{found['blocking']:.3f} s"),
            ("stall of a save while training: the call, and what the optimiser waits", f"{found['stall']:.3f} s"),
            ("stall over blocking (wanted: at most 0.1)", f"{found['stall'] / found['blocking']:.2f}"),
            ("until it is complete, with checksums and fsync", f"{found['whole']:.3f} s"),
        ],
    )


def bubble() -> None:
    rows = []
    for schedule, counts, wanted in (
        ("gpipe", (2, 4, 8, 16), "within 0.05"),
        ("1f1b", (2, 4, 8, 16), "within 0.05"),
        ("interleaved-zero-bubble", (4, 8, 16), "below"),
        ("zbv", (4, 8, 16), "below"),
        ("dualpipe-v", (4, 8, 16), "below"),
    ):
        for micro_batches in counts:
            found = json.loads(ranks(BUBBLE, schedule, str(micro_batches)))
            rows.append(
                (
                    f"{schedule}, m = {micro_batches} (wanted: {wanted})",
                    f"{found['measured']:.3f} (formula {found['formula']:.3f})",
                )
            )
    report("Pipeline bubble, two ranks", rows)


def start() -> None:
    rows = []
    for torchrun in (False, True):
        seconds: dict[str, list[float]] = {"bare": [], "library": []}
        for number in range(ROUNDS + 1):
            for name, values in seconds.items():
                took = start_seconds(name, torchrun=torchrun)
                if number:
                    values.append(took)
        bare, library = (statistics.median(seconds[name]) for name in ("bare", "library"))
        how = "torchrun" if torchrun else "two processes"
        rows += [
            (f"{how}: torch.distributed by hand", f"{bare:.2f} s"),
            (f"{how}: the library", f"{library:.2f} s"),
            (f"{how}: ratio (wanted: at most 1.1)", f"{library / bare:.2f}"),
        ]
    report("Start to the end of the first step", rows)


PARTS: dict[str, Callable[[], None]] = {"steps": steps, "saving": saving, "bubble": bubble, "start": start}


def main(names: Sequence[str]) -> None:
    print(f"{machine()}\n")
    for name in names or PARTS:
        PARTS[name]()


if __name__ == "__main__":
    main(sys.argv[1:])
