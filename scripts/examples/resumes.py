"""A program that survives interruptions: gradient descent with momentum on a line, standard library only.

    optml drill --checkpoint ckpt/ --metric "loss=loss=([0-9.e+-]+)" -- python scripts/examples/resumes.py

What it does right: it saves everything that the next step depends on (weights, momentum, random numbers, the step itself), under
another name first; it saves now and then and when SIGTERM comes; it goes on where there is no room to save; and it begins by
looking for what an earlier machine saved. The programs in broken/ each do one of these wrong.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

STEPS, PAUSE_SECONDS, SAVE_EVERY = 60, 0.05, 10
CHECKPOINT = Path(os.environ.get("SAGEMAKER_BASE_DIR", "/opt/ml"), "checkpoints", "state.json")
MODEL = Path(os.environ.get("SAGEMAKER_BASE_DIR", "/opt/ml"), "model", "line.json")

rng = random.Random(1)
weights, momentum, step = [0.0, 0.0], [0.0, 0.0], 0


def save() -> None:
    numbers, position, gauss = rng.getstate()
    beside = CHECKPOINT.with_suffix(".json.sagemaker-ignore")  # a name that is not uploaded
    try:
        beside.write_text(json.dumps([step, weights, momentum, [numbers, position, gauss]]))
        beside.replace(CHECKPOINT)
    except OSError as error:  # no room: training goes on, the last checkpoint stands, and the next may find some
        beside.unlink(missing_ok=True)
        print(f"not saved: {error}", flush=True)


def load() -> None:
    global step, weights, momentum
    step, weights, momentum, (numbers, position, gauss) = json.loads(CHECKPOINT.read_text())
    rng.setstate((numbers, tuple(position), gauss))


stopping = False


def stop_soon(*_: object) -> None:
    global stopping
    stopping = True  # the step under way is finished first


signal.signal(signal.SIGTERM, stop_soon)
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
    if stopping or step % SAVE_EVERY == 0:
        save()
    if stopping:
        sys.exit(0)
MODEL.write_text(json.dumps(weights))
