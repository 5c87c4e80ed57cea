"""PyTorch's threads come to rest before an interpreter ends."""

import hashlib
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from optml_toolkit.script_mode.launchers import SHIMS
from optml_toolkit.torch_threads import wait_for_torch_threads

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux says what a thread does")

# Under the name of one of PyTorch's, and in the middle of something that has no need of Python's lock.
WORK = """
import hashlib, sys, threading, time

def work():
    with open(f"/proc/self/task/{threading.get_native_id()}/comm", "w") as name:
        name.write("pt_gloo_runloop")
    begun.set()
    for _ in range(4):
        hashlib.sha256(zeros).digest()
    print("rested", flush=True)

zeros, begun = bytes(1 << 27), threading.Event()
threading.Thread(target=work, daemon=True).start()
begun.wait()
"""


def test_a_thread_that_runs_is_waited_for_and_one_that_waits_is_not() -> None:
    begun, release, rested = threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        Path(f"/proc/self/task/{threading.get_native_id()}/comm").write_text("pt_gloo_runloop")
        zeros = bytes(1 << 27)
        begun.set()
        for _ in range(4):
            hashlib.sha256(zeros).digest()
        rested.set()
        release.wait()

    thread = threading.Thread(target=work)
    thread.start()
    begun.wait()
    assert wait_for_torch_threads(seconds=120)
    assert rested.is_set()
    assert thread.is_alive()
    release.set()
    thread.join()


def ran(tmp_path: Path, source: str) -> str:
    (tmp_path / "program.py").write_text(source)
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join([str(tmp_path), str(SHIMS / "at_exit")])}
    done = subprocess.run(
        [sys.executable, str(tmp_path / "program.py")], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    return done.stdout


def test_a_rank_ends_when_they_rest(tmp_path: Path) -> None:
    assert ran(tmp_path, WORK) == "", "a thread of a daemon's kind ends with its interpreter"
    assert ran(tmp_path, f"{WORK}\nsys.modules['torch'] = sys") == "rested\n"


def test_a_sitecustomize_of_ones_own_counts(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("print('mine')")
    assert ran(tmp_path, "") == "mine\n"
    behind = tmp_path / "behind"
    behind.mkdir()
    (tmp_path / "sitecustomize.py").rename(behind / "sitecustomize.py")
    assert ran(tmp_path, f"import sys; print({str(SHIMS / 'at_exit')!r} in sys.path)") == "False\n"
    shown = subprocess.run(
        [sys.executable, "-c", "print('ran')"], capture_output=True, text=True, check=True,
        env={"PYTHONPATH": os.pathsep.join([str(SHIMS / "at_exit"), str(behind)])},
    )  # fmt: skip
    assert shown.stdout == "mine\nran\n"
