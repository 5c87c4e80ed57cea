"""Jobs in containers: what optml adds to `docker run` of the same image and command, for one host and for two; a burst of output;
and how soon a line shows.

Yardsticks: `docker run`, a shell script of `docker` commands for two hosts, and `docker run > file`. Needs an engine, the docker
command line and the image optml/python (`optml images build python`).
"""

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from scripts.bench.measure import command, in_turn, machine, medians, report

IMAGE = "optml/python"
RUNS = 5
BURST_LINES = 1_000_000
LINE_COUNT = 40

TWO_HOSTS = """
set -e
name=optml-bench-$$
docker network create "$name" >/dev/null
for host in algo-1 algo-2; do
    docker run -d --name "$name-$host" --hostname "$host" --network "$name" --network-alias "$host" -v "$1/$host:/opt/ml" \\
        optml/python python -c 'print("hello")' >/dev/null
done
docker wait "$name-algo-1" "$name-algo-2" >/dev/null
docker logs "$name-algo-1"; docker logs "$name-algo-2"
docker rm "$name-algo-1" "$name-algo-2" >/dev/null
docker network rm "$name" >/dev/null
"""
# Words of a request hold no line ends.
BURST = f"import sys; sum(sys.stdout.buffer.write(b'%09d' % n + b'x' * 90 + b'\\n') for n in range({BURST_LINES}))"
CLOCK = f"import time; [(print(time.time(), flush=True), time.sleep(0.1)) for n in range({LINE_COUNT})]"


def main() -> None:
    if shutil.which("docker") is None:
        sys.exit("the yardstick is docker run: install the docker command line")
    with tempfile.TemporaryDirectory(prefix="optml-bench-") as scratch:
        folder = Path(scratch)
        os.environ["OPTML_HOME"] = str(folder / "home")
        os.chdir(folder)
        for host in ("algo-1", "algo-2"):
            (folder / "ml" / host).mkdir(parents=True)
        print(machine())
        report(f"Overhead over docker (median of {RUNS})", overhead(folder))
        report("Output", [*burst(folder), latency()])


def overhead(folder: Path) -> list[tuple[str, str]]:
    import optml

    program = ["python", "-c", "print('hello')"]
    train = [str(Path(sys.executable).parent / "optml"), "train", "--backend", "docker"]

    def from_python(count: int) -> object:
        return optml.train(image="python", entrypoint=program, backend="docker", instance_count=count, logs=False)

    seconds = medians(
        in_turn(
            {
                "docker 1": command(["docker", "run", "--rm", "-v", f"{folder}/ml/algo-1:/opt/ml", IMAGE, *program]),
                "cli 1": command([*train, "--", *program]),
                "python 1": lambda: from_python(1),
                "docker 2": command(["bash", "-c", TWO_HOSTS, "two-hosts", str(folder / "ml")]),
                "cli 2": command([*train, "--instance-count", "2", "--", *program]),
                "python 2": lambda: from_python(2),
            },
            runs=RUNS,
        )
    )
    rows = []
    for count, wanted, yardstick in (
        (1, 0.5, "`docker run --rm`"),
        (2, 1.5, "the same by a script of docker commands"),
    ):
        bare = seconds[f"docker {count}"]
        hosts = "1 host" if count == 1 else f"{count} hosts"
        rows.append((f"{hosts}: {yardstick}", f"{bare:.2f} s"))
        for how, title in (("cli", "`optml train --backend docker`"), ("python", "`optml.train(...)`, warm import")):
            took = seconds[f"{how} {count}"]
            rows.append((f"{hosts}: {title}", f"{took:.2f} s"))
            rows.append((f"overhead (at most {wanted} s)", f"{took - bare:+.2f} s"))
    return rows


def burst(folder: Path) -> list[tuple[str, str]]:
    import optml

    taken = folder / "burst"

    def bare() -> object:
        with taken.open("wb") as file:
            return subprocess.run(["docker", "run", "--rm", IMAGE, "python", "-c", BURST], stdout=file, check=True)

    def job() -> object:
        return optml.train(image="python", entrypoint=["python", "-c", BURST], backend="docker", logs=False)

    seconds = medians(in_turn({"bare": bare, "job": job}, runs=3))
    found = job()
    assert isinstance(found, optml.Job)
    lost = BURST_LINES - sum(len(lines) for _host, lines in found.logs())
    return [
        ("100 MB in one burst: `docker run > file`", f"{seconds['bare']:.2f} s"),
        (
            "100 MB in one burst: a job, its log followed",
            f"{seconds['job']:.2f} s, {lost} of {BURST_LINES:,} lines lost",
        ),
    ]


def latency() -> tuple[str, str]:
    """From print() in the container to the line on the console of `optml train`."""
    train = [str(Path(sys.executable).parent / "optml"), "train", "--backend", "docker", "--", "python", "-c", CLOCK]
    late = []
    with subprocess.Popen(train, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("algo-1 | "):
                late.append(time.time() - float(line.removeprefix("algo-1 | ")))
    late.sort()
    what = f"a line shows after print() (within 0.2 s), {len(late)} lines"
    return what, f"{statistics.median(late) * 1000:.0f} ms, the slowest {late[-1] * 1000:.0f} ms"


if __name__ == "__main__":
    main()
