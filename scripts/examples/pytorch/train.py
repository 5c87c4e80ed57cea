"""Handwritten digits with PyTorch, on one process or many: the same weights however many there are.

    optml train --entry-point train.py --source-dir scripts/examples/pytorch --instance-count 2 --distribution torchrun

Hears SIGTERM: all ranks leave after the same step, and a job with the same CheckpointConfig goes on from there.
"""

import argparse
import os
import signal
import time
from pathlib import Path

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.parallel import DistributedDataParallel

WORLD, RANK = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
MODEL = Path(os.environ["SM_MODEL_DIR"], "model.pt")
CHECKPOINT = Path(os.environ["SM_MODEL_DIR"]).parent / "checkpoints" / "digits.pt"
TRAINING_ROWS = 1440  # of 1797; the others test


class Told:
    """Whether this process was asked to stop."""

    to_stop = False

    def __call__(self, *_: object) -> None:
        self.to_stop = True

    def anyone(self) -> bool:
        """All ranks learn it at the same step: whoever left alone would keep the others waiting."""
        if WORLD == 1:
            return self.to_stop
        flag = torch.tensor(float(self.to_stop))
        dist.all_reduce(flag)
        return bool(flag)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=48, help="of all processes together")
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--step-seconds", type=float, default=0.0, help="slow it down, to try interruptions")
    options = parser.parse_args()
    told = Told()
    signal.signal(signal.SIGTERM, told)
    if WORLD > 1:
        dist.init_process_group("gloo")

    torch.manual_seed(0)
    digits = load_digits()
    images = torch.tensor(digits.images / 16.0).unsqueeze(1)
    labels = torch.tensor(digits.target)
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=options.lr, momentum=0.9)
    first_step = resume(model, optimizer)
    trained = DistributedDataParallel(model) if WORLD > 1 else model

    steps_per_epoch = TRAINING_ROWS // options.batch_size
    for step in range(first_step, options.epochs * steps_per_epoch):
        rows = rows_of(step, options.batch_size, steps_per_epoch)
        loss = nn.functional.cross_entropy(trained(images[rows]), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if (step + 1) % steps_per_epoch == 0 and RANK == 0:
            accuracy = (model(images[TRAINING_ROWS:]).argmax(1) == labels[TRAINING_ROWS:]).double().mean()
            print(f"epoch={(step + 1) // steps_per_epoch} loss={loss.item():.5f} accuracy={accuracy:.4f}", flush=True)
        if told.anyone():
            if RANK == 0:
                save({"step": step + 1, "model": model.state_dict(), "optimizer": optimizer.state_dict()}, CHECKPOINT)
                print(f"stopped after step {step + 1}", flush=True)
            break
        time.sleep(options.step_seconds)
    if RANK == 0:
        save(model.state_dict(), MODEL)
    if WORLD > 1:
        dist.destroy_process_group()


def network() -> nn.Module:
    layers = nn.Sequential(
        *(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(8 * 4 * 4, 32), nn.ReLU(), nn.Linear(32, 10)),
    )
    return layers.double()


def rows_of(step: int, batch_size: int, steps_per_epoch: int) -> torch.Tensor:
    """This rank's rows of the batch that all ranks train on together: every WORLD-th, so that all have as many."""
    epoch, number = divmod(step, steps_per_epoch)
    order = torch.randperm(TRAINING_ROWS, generator=torch.Generator().manual_seed(epoch))
    return order[number * batch_size : (number + 1) * batch_size][RANK::WORLD]


def resume(model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """The step to go on with."""
    if not CHECKPOINT.exists():
        return 0
    found = torch.load(CHECKPOINT)
    model.load_state_dict(found["model"])
    optimizer.load_state_dict(found["optimizer"])
    print(f"resumed at step {found['step']}", flush=True)
    return int(found["step"])


def save(content: object, file: Path) -> None:
    """A file that appears whole, or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, file.with_suffix(".part"))
    file.with_suffix(".part").replace(file)


if __name__ == "__main__":
    main()
