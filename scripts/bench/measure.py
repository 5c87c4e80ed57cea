"""What every benchmark here shares: A and B in turn, medians, the machine's size and the date."""

import datetime
import os
import platform
import resource
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence


def machine() -> str:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"{os.cpu_count()} cores, {memory:.0f} GiB, {platform.system()} {platform.release().split('-')[0]}, "
        f"Python {platform.python_version()}, {datetime.datetime.now(datetime.UTC):%Y-%m-%d}"
    )


def timed(action: Callable[[], object]) -> float:
    """Seconds of wall time."""
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def cpu_seconds(action: Callable[[], object]) -> float:
    """Seconds of processor time, of all threads of this process: they hold on a busy machine too."""
    began = time.process_time()
    action()
    return time.process_time() - began


def in_turn(
    actions: Mapping[str, Callable[[], object]],
    *,
    runs: int,
    warm_up: int = 1,
    measured: Callable[[Callable[[], object]], float] = timed,
) -> dict[str, list[float]]:
    """Seconds of each action, run A B A B ..., so that a drifting machine drifts for all of them."""
    seconds: dict[str, list[float]] = {name: [] for name in actions}
    for number in range(warm_up + runs):
        for name, action in actions.items():
            took = measured(action)
            if number >= warm_up:
                seconds[name].append(took)
    return seconds


def medians(seconds: dict[str, list[float]]) -> dict[str, float]:
    return {name: statistics.median(values) for name, values in seconds.items()}


def command(argv: Sequence[str], **environment: str) -> Callable[[], object]:
    """A whole process, its output thrown away; a failing one ends the benchmark."""

    def action() -> object:
        return subprocess.run(
            argv, check=True, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL, env={**os.environ, **environment}
        )

    return action


def cpu_seconds_of_children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def report(title: str, rows: Sequence[tuple[str, str]]) -> None:
    """One table: what, how much."""
    print(f"\n### {title}\n\n| what | measured |\n|---|---|")
    for what, value in rows:
        print(f"| {what} | {value} |")
