"""Wrong on purpose: at each step the checkpoint is written in place, so it is open nearly all of the time, and never kept."""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

STEPS, PAUSE_SECONDS = 30, 0.05
CHECKPOINT = Path(os.environ.get("SAGEMAKER_BASE_DIR", "/opt/ml"), "checkpoints", "state.json")
MODEL = Path(os.environ.get("SAGEMAKER_BASE_DIR", "/opt/ml"), "model", "line.json")

rng = random.Random(1)
weights, momentum, step = [0.0, 0.0], [0.0, 0.0], 0


def save() -> None:
    numbers, position, gauss = rng.getstate()
    text = json.dumps([step, weights, momentum, [numbers, position, gauss]])
    with CHECKPOINT.open("w") as file:
        for begin in range(0, len(text), 500):  # as a big model on a slow disk
            file.write(text[begin : begin + 500])
            file.flush()
            time.sleep(0.02)


def load() -> None:
    global step, weights, momentum
    step, weights, momentum, (numbers, position, gauss) = json.loads(CHECKPOINT.read_text())
    rng.setstate((numbers, tuple(position), gauss))


signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
if CHECKPOINT.exists():
    load()
print(f"starting with step {step}", flush=True)
while step < STEPS:
    x = rng.uniform(-1, 1)
    error = weights[0] * x + weights[1] - (2 * x + 1)
    for index, gradient in enumerate((error * x, error)):
        momentum[index] = 0.9 * momentum[index] + gradient
        weights[index] -= 0.05 * momentum[index]
    time.sleep(PAUSE_SECONDS)
    step += 1
    loss = (weights[0] - 2) ** 2 + (weights[1] - 1) ** 2
    print(f"step={step} loss={loss:.8f}", flush=True)
    save()
MODEL.write_text(json.dumps(weights))
