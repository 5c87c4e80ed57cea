"""Scripts that the tests of optml_toolkit.distributed run as ranks (tests/ranks.py), and readers of what they write.

They run on what the ranks have: processors over gloo, or GPUs over NCCL. Beside `--out`, <out>-<rank> has a line for each part of
each step, and <out>-model what came out.
"""

import json
import textwrap
from pathlib import Path
from typing import Any

import pytest

# The layers' loss over some batches, in many ways: data parallel or sharded, compressed, in bfloat16, in parts, clipped.
TRAIN = """
import argparse, contextlib, json, os, random, time
import numpy, torch
from torch import nn
from torch.utils.data import TensorDataset
from optml_toolkit import distributed

parser = argparse.ArgumentParser()
parser.add_argument("--dir"); parser.add_argument("--out"); parser.add_argument("--sharded", action="store_true")
parser.add_argument("--steps", type=int, default=24); parser.add_argument("--every", type=int, default=4)
parser.add_argument("--accumulate", type=int, default=1); parser.add_argument("--slow", type=float, default=0.0)
parser.add_argument("--width", type=int, default=16); parser.add_argument("--plain", action="store_true")
parser.add_argument("--clip", type=float, default=10.0); parser.add_argument("--bf16", action="store_true")
parser.add_argument("--compression", default="none"); parser.add_argument("--bucket-mb", type=int, default=25)
parser.add_argument("--measure", action="store_true"); parser.add_argument("--tensorboard")
parser.add_argument("--dead", type=float, default=60.0, help="how long a silent rank counts as alive")
parser.add_argument("--until-sent", type=int, help="this rank goes no further than step 20 before the signal was sent")
parser.add_argument("--slow-save", type=float, help="seconds that a save takes from when the signal is about to be sent")
parser.add_argument("--ballast-mb", type=int, default=0, help="what else is saved")
options = parser.parse_args()
run = distributed.init(seed=3, dead_peer_seconds=options.dead)
kind = torch.float if options.bf16 else torch.double
layers = [nn.Linear(8, options.width), nn.ReLU(), nn.Linear(options.width, 1)]
if not options.plain:
    layers[1:1] = [nn.Dropout(0.1), nn.BatchNorm1d(options.width)]
model = nn.Sequential(*layers).to(kind)
if options.sharded:
    model = distributed.sharded(run, model, parameters_dtype=torch.bfloat16 if options.bf16 else None)
else:
    model = distributed.data_parallel(run, model, compression=options.compression, bucket_cap_mb=options.bucket_mb,
                                      measure_communication=options.measure)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 7, 0.9)
x = torch.randn(205, 8, generator=torch.Generator().manual_seed(0), dtype=torch.double).to(kind)
data = distributed.Batches(run, TensorDataset(x, x.sum(1, keepdim=True)), batch_size=16, accumulate=options.accumulate)
seen = {}
with open(f"{options.out}-{run.rank}", "a") as file:
    file.write("begin\\n")

class Slow:
    def state_dict(self):
        if options.slow_save and os.path.exists(f"{options.out}-sent"):
            open(f"{options.out}-saving", "w").close()
            time.sleep(options.slow_save)
        return {}
    def load_state_dict(self, state):
        pass

def whole(value):
    return (value.full_tensor() if hasattr(value, "full_tensor") else value).detach().double().cpu()

gradients = []
def keep_gradients(*_):
    gradients.append({n.removeprefix("module."): whole(p.grad) for n, p in model.named_parameters()})
    del gradients[1:-1]

optimizer.register_step_pre_hook(keep_gradients)
state = {"seen": seen}
if options.slow_save:
    state["slow"] = Slow()
if options.ballast_mb:
    state["ballast"] = {"it": torch.zeros(options.ballast_mb << 18)}
training = distributed.Training(run, model, optimizer, data, scheduler=scheduler, state=state, log_every_steps=5,
                                checkpoint_dir=options.dir or False, save_every_steps=options.every,
                                tensorboard_dir=options.tensorboard)
half = options.bf16 and not options.sharded
for inputs, targets in training.batches(steps=options.steps):
    inputs, targets = inputs.to(run.device), targets.to(run.device)
    with torch.autocast(run.device.type, dtype=torch.bfloat16) if half else contextlib.nullcontext():
        loss = nn.functional.mse_loss(model(inputs).to(kind), targets)
    training.step(loss, clip_norm=options.clip)
    noise = [random.random(), numpy.random.random(), torch.rand((), device=run.device).item()]
    seen["steps"] = training.steps_done + 1
    with open(f"{options.out}-{run.rank}", "a") as file:
        facts = [loss.item().hex(), *(each.hex() for each in noise), str(scheduler.get_last_lr())]
        file.write(f"{training.steps_done + 1} {training.last_part} {' '.join(facts)}\\n")
    time.sleep(options.slow)
    while run.rank == options.until_sent and training.steps_done + 1 == 20 and not os.path.exists(f"{options.out}-sent"):
        time.sleep(0.001)
weights = {n: whole(v).tolist() for n, v in getattr(model, "module", model).state_dict().items()}
if run.first:
    facts = {"weights": weights, "seen": seen, "device": run.device.type, "backend": run.backend,
             "gradients": {n: v.tolist() for n, v in gradients[0].items()},
             "last_gradients": {n: v.tolist() for n, v in gradients[-1].items()}}
    if not options.sharded:
        facts["ddp"] = {n: str(v) for n, v in model._get_ddp_logging_data().items()}
    with open(f"{options.out}-model", "w") as file:
        json.dump(facts, file)
"""

# Twelve layers in as many stages as there are ranks, or more; copies of that with the other ranks.
PIPE = """
import argparse, json, torch
from torch import nn
from torch.utils.data import TensorDataset
from optml_toolkit import distributed

parser = argparse.ArgumentParser()
parser.add_argument("--pipe", type=int, default=1); parser.add_argument("--schedule", default="1f1b")
parser.add_argument("--micro-batches", type=int, default=4); parser.add_argument("--steps", type=int, default=6)
parser.add_argument("--accumulate", type=int, default=1); parser.add_argument("--clip", type=float)
parser.add_argument("--dir"); parser.add_argument("--out")
options = parser.parse_args()
run = distributed.init(seed=1, pipe=options.pipe)
model = nn.Sequential(*[layer for _ in range(6) for layer in (nn.Linear(8, 8), nn.Tanh())]).double()
pipeline = distributed.Pipeline(run, model, loss=nn.functional.mse_loss, micro_batches=options.micro_batches,
                                schedule=options.schedule)
optimizer = torch.optim.Adam(pipeline.module.parameters(), lr=1e-2)
gradients = {}

def keep_gradients(*_):
    if not gradients:
        gradients.update({n: p.grad.tolist() for n, p in pipeline.module.named_parameters()})

optimizer.register_step_pre_hook(keep_gradients)
x = torch.randn(128, 8, generator=torch.Generator().manual_seed(0), dtype=torch.double)
data = distributed.Batches(run, TensorDataset(x, x.flip(1)), batch_size=32, accumulate=options.accumulate)
training = distributed.Training(run, pipeline.module, optimizer, data, checkpoint_dir=options.dir or False)
losses = []
for inputs, targets in training.batches(steps=options.steps):
    losses.append(training.step_pipeline(pipeline, inputs, targets, clip_norm=options.clip).item())
evaluated = pipeline.evaluate(x, x.flip(1)).item()
bubble = pipeline.bubble()
whole = pipeline.full_state_dict()
everyones = run.gather((gradients, losses))
if run.first:
    per_step = [sum(each) / len(each) for each in zip(*(losses for _, losses in everyones))]
    parts = options.accumulate
    with open(options.out, "w") as file:
        json.dump({"weights": {n: v.tolist() for n, v in whole.items()}, "bubble": bubble, "evaluated": evaluated,
                   "gradients": {n: v for part, _ in everyones for n, v in part.items()},
                   "losses": [sum(per_step[i:i + parts]) / parts for i in range(0, len(per_step), parts)],
                   "device": run.device.type, "backend": run.backend}, file)
"""


def written(folder: Path, source: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    script = folder / "train.py"
    script.write_text(textwrap.dedent(source), encoding="utf-8")
    return script


def steps(out: Path, rank: int) -> dict[str, str]:
    """What each step's parts gave on a rank; of one that was done twice, the last."""
    found: dict[str, list[str]] = {}
    last = ""
    for line in Path(f"{out}-{rank}").read_text().splitlines():
        number, _, values = line.partition(" ")
        if number == "begin":
            last = ""
            continue
        if number != last:
            found[number] = []
        last = number
        found[number].append(values)
    return {number: "\n".join(values) for number, values in found.items()}


def losses(out: Path, *, ranks: int) -> list[float]:
    """TRAIN's mean loss over the ranks and the parts of each step."""
    everyones = [steps(out, rank) for rank in range(ranks)]
    found = []
    for number in everyones[0]:
        lines = [line for each in everyones for line in each[number].splitlines()]
        found.append(sum(float.fromhex(line.split()[1]) for line in lines) / len(lines))
    return found


def noise(out: Path, rank: int) -> dict[str, list[str]]:
    """What TRAIN drew in each step: of Python's, numpy's and torch's generators."""
    return {number: next(line.split()[2:5] for line in text.splitlines()) for number, text in steps(out, rank).items()}


def facts(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def model(out: Path) -> dict[str, object]:
    """TRAIN's weights, and what else it kept."""
    found = facts(Path(f"{out}-model"))
    return {"weights": found["weights"], "seen": found["seen"]}


def furthest(first: Path, second: Path, what: str = "weights") -> float:
    """The largest difference between two models' weights, or gradients."""
    torch = pytest.importorskip("torch")
    one, other = facts(first)[what], facts(second)[what]
    assert one.keys() == other.keys()
    assert one
    return max(float((torch.tensor(one[name]) - torch.tensor(other[name])).abs().max()) for name in one)
