"""Following logs: a burst of lines through a job with metrics, and what the supervisor costs while a job is idle.

Yardsticks: the same script writing to a file, and one core.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from scripts.bench.measure import machine, report

LINES = 1_000_000
IDLE_SECONDS = 20


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="optml-bench-") as scratch:
        folder = Path(scratch)
        os.environ["OPTML_HOME"] = str(folder / "home")
        optml = str(Path(sys.executable).parent / "optml")
        burst = folder / "burst.py"
        burst.write_text(
            f"for n in range({LINES}): print(f'step {{n}} loss={{1 / (n + 1):.6f}} and the rest of an ordinary line')\n"
        )
        began = time.perf_counter()
        with (folder / "bare.log").open("wb") as log:
            subprocess.run([sys.executable, str(burst)], stdout=log, check=True)
        bare = time.perf_counter() - began
        rows = [("the script writing to a file", f"{LINES / bare:,.0f} lines/s")]
        for metrics in (
            [],
            ["--metric", "loss=loss=([0-9.]+)", "--metric", r"step=step (\d+)", "--metric", r"acc=acc: (\S+)"],
        ):
            shown = folder / "shown"
            began = time.perf_counter()
            with shown.open("wb") as log:
                subprocess.run([optml, "train", *metrics, "--", sys.executable, str(burst)], stdout=log, check=True)
            took = time.perf_counter() - began
            kept = sum(1 for line in shown.open("rb") if line.startswith(b"algo-1 | step "))
            what = f"a job with {len(metrics) // 2} metrics" if metrics else "a job"
            rows.append(
                (f"{what} (at least 100,000 lines/s)", f"{LINES / took:,.0f} lines/s, {LINES - kept} of {LINES:,} lost")
            )
        rows.append(
            (f"supervisor of an idle job over {IDLE_SECONDS} s (under 5 %)", f"{idle_share(optml):.2%} of one core")
        )
        print(machine())
        report("Logs", rows)


def idle_share(optml: str) -> float:
    """CPU time of the supervising process alone, from /proc."""
    with subprocess.Popen(
        [optml, "train", "--", "sleep", str(IDLE_SECONDS + 8)], stdout=subprocess.DEVNULL
    ) as supervisor:
        time.sleep(4)
        before = cpu_seconds(supervisor.pid)
        time.sleep(IDLE_SECONDS)
        used = cpu_seconds(supervisor.pid) - before
        supervisor.wait()
    return used / IDLE_SECONDS


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
