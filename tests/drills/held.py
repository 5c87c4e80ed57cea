"""Runs a program that is to be interrupted: `held.py FOLDER PAUSES PROGRAM [ARGUMENT ...]`, with PAUSES as in 30,33.

In the job that a drill disturbs, the first run stands still in its 30th call of time.sleep, the second in its 33rd, until SIGTERM
or SIGKILL comes: however slow the machine is, the interruption meets a program that has not ended. FOLDER counts the runs.
The undisturbed job runs as it is.
"""

import json
import os
import runpy
import signal
import sys
import time
from pathlib import Path
from typing import Any

folder, pauses, *sys.argv = sys.argv[1:]
root = Path(os.environ.get("SAGEMAKER_BASE_DIR", "/opt/ml"))
host = json.loads((root / "input/config/resourceconfig.json").read_text())["current_host"]
runs = Path(folder, f"runs-of-{os.environ['TRAINING_JOB_NAME']}-{host}")
run = len(runs.read_text()) if runs.exists() else 0
real_sleep, real_signal = time.sleep, signal.signal
told = False
slept = 0


def sleep(seconds: float) -> None:
    global slept
    slept += 1
    real_sleep(seconds)
    while slept == hold and not told:
        real_sleep(0.01)


def remember_signals(number: int, action: Any) -> Any:
    def told_now(*facts: Any) -> None:
        global told
        told = told or number == signal.SIGTERM
        action(*facts)

    return real_signal(number, told_now if callable(action) else action)


if os.environ["TRAINING_JOB_NAME"].endswith("-drill") and run < len(pauses.split(",")):
    hold = int(pauses.split(",")[run])
    runs.write_text("." * (run + 1))
    vars(time)["sleep"], vars(signal)["signal"] = sleep, remember_signals
sys.path[0] = str(Path(sys.argv[0]).parent)
runpy.run_path(sys.argv[0], run_name="__main__")
