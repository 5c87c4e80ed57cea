"""The distributed library beside the same by hand: steps, agreement, saving while training, pipeline bubbles, start.

Stages of the bubble's pipelines sleep instead of computing: on two shared cores they would measure each other.
"""

import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from scripts.bench.measure import machine, report

# Each runs in two processes. Library and hand-written steps in turn, in the same processes, so that a noisy machine is fair.
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
x = torch.randn(64 * 400, 512)
data = distributed.Batches(run, TensorDataset(x, x), batch_size=128)

def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(512, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 512))

ours = distributed.data_parallel(run, network())
ours_optimizer = torch.optim.Adam(ours.parameters())
training = distributed.Training(run, ours, ours_optimizer, data, checkpoint_dir=False, log_every_steps=10)
theirs = DistributedDataParallel(network(), gradient_as_bucket_view=True)
theirs_optimizer = torch.optim.Adam(theirs.parameters())
sampler = torch.utils.data.distributed.DistributedSampler(data.dataset)
loader = torch.utils.data.DataLoader(data.dataset, batch_size=64, sampler=sampler)

def by_hand(batches):
    inputs, targets = next(batches)
    loss = nn.functional.mse_loss(theirs(inputs), targets)
    loss.backward(); theirs_optimizer.step(); theirs_optimizer.zero_grad()

def library(batches):
    inputs, targets = next(batches)
    training.step(nn.functional.mse_loss(ours(inputs), targets))

mine, others = training.batches(steps=10_000), iter(loader)
seconds = {"library": [], "by hand": []}
for number in range(8):
    for name, step, batches in (("by hand", by_hand, others), ("library", library, mine)):
        run.barrier()
        began = time.perf_counter()
        for _ in range(15):
            step(batches)
        run.barrier()
        if number: seconds[name].append((time.perf_counter() - began) / 15)
agreement = Agreement(run)
waits = []
for _ in range(80):
    time.sleep(0.05)   # where a step would compute
    began = time.perf_counter()
    agreement.exchange(stop=False, save=False, step_ms=50)
    waits.append(time.perf_counter() - began)
agreement.finish()
if run.first:
    print("RESULT " + json.dumps({**{n: statistics.median(v) for n, v in seconds.items()}, "agree": statistics.fmean(waits)}))
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

class Work(nn.Module):
    # Its time is that of a stage that computes elsewhere: two shared cores would measure each other.
    def forward(self, x):
        return Wait.apply(x)

class Wait(torch.autograd.Function):
    @staticmethod
    def forward(context, x):
        time.sleep(0.010); return x.clone()
    @staticmethod
    def backward(context, gradient):
        time.sleep(0.020); return gradient.clone()

model = nn.Sequential(*[layer for _ in range(4) for layer in (nn.Linear(4, 4), Work())])
pipeline = distributed.Pipeline(run, model, loss=nn.functional.mse_loss, micro_batches=micro_batches, schedule=schedule)
x = torch.zeros(micro_batches, 4)
pipeline.step(x, x); pipeline.bubble()
for _ in range(2):
    pipeline.step(x, x)
found = pipeline.bubble()
if run.first:
    print("RESULT " + json.dumps(found))
"""

START = """
import torch, torch.distributed as dist, sys
from torch import nn
if sys.argv[1] == "library":
    from optml_toolkit import distributed
    run = distributed.init(dead_peer_seconds=10)
    model = distributed.data_parallel(run, nn.Linear(4, 4))
else:
    dist.init_process_group("gloo")
    model = nn.parallel.DistributedDataParallel(nn.Linear(4, 4))
model(torch.ones(2, 4)).sum().backward()
import time
print("RESULT " + str(time.time()))
if sys.argv[1] == "library":
    run.close()
else:
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


def start_seconds(which: str) -> float:
    import time

    began = time.time()
    return float(ranks(START, which)) - began


def main() -> None:
    print(f"{machine()}\n")
    found = [json.loads(ranks(STEPS)) for _ in range(3)]
    library, by_hand = (statistics.median(each[name] for each in found) for name in ("library", "by hand"))
    agree = statistics.median(each["agree"] for each in found)
    overhead = statistics.median(each["library"] / each["by hand"] - 1 for each in found)
    report(
        "Steps of two processes, an MLP of 2.1 M parameters",
        [
            ("hand-written DDP", f"{1000 * by_hand:.1f} ms"),
            ("`Training` over `data_parallel`", f"{1000 * library:.1f} ms"),
            ("overhead (wanted: at most 2 %)", f"{100 * overhead:.1f} %"),
            ("agreeing on whether to stop, mean per step of 50 ms", f"{1e6 * agree:.0f} us"),
            ("share of a 50 ms step (wanted: under 0.5 %)", f"{100 * agree / 0.05:.2f} %"),
        ],
    )
    with tempfile.TemporaryDirectory() as folder:
        saving = json.loads(ranks(SAVING, folder, count=1))
    report(
        "Saving 400 MB of model and Adam",
        [
            ("blocking `torch.save`", f"{saving['blocking']:.3f} s"),
            ("stall of a save while training: the call, and what the optimiser waits", f"{saving['stall']:.3f} s"),
            ("stall over blocking (wanted: at most 0.1)", f"{saving['stall'] / saving['blocking']:.2f}"),
            ("until it is complete, with checksums and fsync", f"{saving['whole']:.3f} s"),
        ],
    )
    rows = []
    for schedule in ("gpipe", "1f1b"):
        for micro_batches in (2, 4, 8, 16):
            bubble = json.loads(ranks(BUBBLE, schedule, str(micro_batches)))
            p, m = 2, micro_batches
            rows.append((f"{schedule}, m = {m}", f"{bubble['measured']:.3f} (formula {(p - 1) / (m + p - 1):.3f})"))
    report("Pipeline bubble, two stages", rows)
    starts = {name: statistics.median(start_seconds(name) for _ in range(5)) for name in ("bare", "library")}
    report(
        "Start to first step, two processes",
        [
            ("bare torch.distributed", f"{starts['bare']:.2f} s"),
            ("`distributed.init`", f"{starts['library']:.2f} s"),
            ("ratio (wanted: at most 1.1)", f"{starts['library'] / starts['bare']:.2f}"),
        ],
    )


if __name__ == "__main__":
    main()
