"""Let PyTorch's own threads come to rest before the interpreter ends.

A collective is done when its result is there; a moment later gloo's thread lets go of the tensors, for which it needs Python's
lock (PyTorch 2.13). If the interpreter has begun to end by then, the thread is ended in the middle of C++ that cannot bear it,
and aborts the process: "terminate called without an active exception", exit code -6, after all work is done. On a machine with
more work than processors that moment may be long.
"""

import contextlib
import threading
import time
from pathlib import Path

NAMES = ("pt_", "gloo_")  # how PyTorch names its threads
TASKS = Path("/proc/self/task")
QUIET_LOOKS = 3
LOOK_SECONDS = 0.001


def wait_for_torch_threads(*, seconds: float = 5.0) -> bool:
    """Until none of them runs or wants to, at several looks, between which they may have Python's lock. False if they still do
    after so many seconds, and where nobody can say (not Linux)."""
    deadline = time.monotonic() + seconds
    quiet = 0
    while quiet < QUIET_LOOKS:
        if not TASKS.is_dir() or time.monotonic() > deadline:
            return False
        time.sleep(LOOK_SECONDS)
        quiet = 0 if any(_runs(task) for task in TASKS.iterdir()) else quiet + 1
    return True


def _runs(task: Path) -> bool:
    if int(task.name) == threading.get_native_id():
        return False
    with contextlib.suppress(OSError):  # it has ended
        name, _, rest = (task / "stat").read_text(errors="replace").partition("(")[2].rpartition(")")
        return name.startswith(NAMES) and rest.split()[0] in ("R", "D")
    return False
