"""Wrong on purpose: a launcher keeps SIGTERM to itself, so that the program it started, a good one, never saves in time."""

import signal
import subprocess
import sys
from pathlib import Path

signal.signal(signal.SIGTERM, lambda *_: print("launcher: SIGTERM; waiting for the program", flush=True))
program = Path(__file__).resolve().parents[1] / "resumes.py"
sys.exit(subprocess.run([sys.executable, str(program)], check=False).returncode)
