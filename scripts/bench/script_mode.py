"""Script mode: what the toolkit costs before the first line of the user's code, and what requirements cost the second time.

Yardsticks: `python script.py` with the same interpreter; torchrun alone on two processes that stand for two hosts.
"""

import importlib.util
import json
import os
import socket
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from scripts.bench.measure import in_turn, machine, medians, report

RUNS = 15
TORCHRUN_RUNS = 5


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="optml-bench-") as scratch:
        folder = Path(scratch)
        hello = folder / "hello.py"
        hello.write_text("print('hello')\n")
        wheel = make_wheel(folder)
        plain = tree(folder / "plain", {"train.py": "print('hello')\n"})
        needy = tree(
            folder / "needy",
            {"train.py": "import tiny_optml_bench\nprint('hello')\n", "requirements.txt": f"{wheel}\n"},
        )
        cache = {"SAGEMAKER_MANAGED_WARMPOOL_CACHE_DIRECTORY": str(folder / "cache")}
        toolkit(needy, **cache)()  # the first time installs
        seconds = medians(
            in_turn(
                {
                    "bare": lambda: quietly([sys.executable, str(hello)]),
                    "toolkit": toolkit(plain),
                    "requirements": toolkit(needy, **cache),
                },
                runs=RUNS,
                warm_up=2,
            )
        )
        print(machine())
        report(
            f"Script mode, process start to end of a one-line script (median of {RUNS})",
            [
                ("`python script.py`", f"{seconds['bare']:.3f} s"),
                ("the toolkit", f"{seconds['toolkit']:.3f} s"),
                ("overhead (at most 0.25 s)", f"{seconds['toolkit'] - seconds['bare']:.3f} s"),
                ("the toolkit, requirements installed before", f"{seconds['requirements']:.3f} s"),
                ("of it for the requirements", f"{seconds['requirements'] - seconds['toolkit']:.3f} s"),
            ],
        )
        if importlib.util.find_spec("torch") is None:
            print("\n(without torch: two hosts under torchrun are not measured)")
            return
        two_hosts(folder)


def two_hosts(folder: Path) -> None:
    """torchrun alone on both, and as a job of the process backend."""
    import optml

    os.environ["OPTML_HOME"] = str(folder / "home")
    os.environ["OMP_NUM_THREADS"] = "1"
    source = folder / "distributed"
    source.mkdir()
    (source / "train.py").write_text("import os\nprint('rank', os.environ['RANK'])\n")

    def torchrun_alone() -> object:
        port = free_port()
        command = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc_per_node", "1"]
        command += ["--master_addr", "127.0.0.1", "--master_port", str(port)]
        hosts = [
            subprocess.Popen(
                [*command, "--node_rank", str(rank), "train.py"],
                cwd=source,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            for rank in (0, 1)
        ]
        codes = [host.wait() for host in hosts]
        if any(codes):
            raise RuntimeError(f"torchrun failed: {codes}")
        return codes

    def as_a_job() -> object:
        return optml.train(
            image="pytorch",
            entry_point="train.py",
            source_dir=source,
            instance_count=2,
            distribution="torchrun",
            environment={"OMP_NUM_THREADS": "1"},
            logs=False,
        )

    seconds = medians(in_turn({"alone": torchrun_alone, "job": as_a_job}, runs=TORCHRUN_RUNS))
    report(
        f"Two hosts under torchrun (median of {TORCHRUN_RUNS})",
        [
            ("torchrun alone, on both", f"{seconds['alone']:.2f} s"),
            ('`optml.train(distribution="torchrun", instance_count=2)`', f"{seconds['job']:.2f} s"),
            ("overhead (at most 0.3 s)", f"{seconds['job'] - seconds['alone']:.2f} s"),
        ],
    )


def tree(root: Path, files: dict[str, str]) -> Path:
    """What a platform would have written, the code in place."""
    config = root / "input" / "config"
    for each in (config, root / "code", root / "model", root / "output" / "data"):
        each.mkdir(parents=True)
    for name, text in files.items():
        (root / "code" / name).write_text(text)
    (config / "hyperparameters.json").write_text(json.dumps({"sagemaker_program": "train.py", "epochs": "3"}))
    (config / "resourceconfig.json").write_text(json.dumps({"current_host": "algo-1", "hosts": ["algo-1"]}))
    (config / "inputdataconfig.json").write_text("{}")
    return root


def toolkit(root: Path, **variables: str) -> Callable[[], object]:
    environment = {**os.environ, "SAGEMAKER_BASE_DIR": str(root), **variables}
    return lambda: quietly([sys.executable, "-m", "optml_toolkit.script_mode"], environment)


def quietly(argv: list[str], environment: dict[str, str] | None = None) -> object:
    return subprocess.run(
        argv,
        env=environment,
        check=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def make_wheel(folder: Path) -> Path:
    file = folder / "tiny_optml_bench-1.0-py3-none-any.whl"
    with zipfile.ZipFile(file, "w") as wheel:
        info = "tiny_optml_bench-1.0.dist-info"
        wheel.writestr("tiny_optml_bench.py", "")
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-optml-bench\nVersion: 1.0\n")
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: bench\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")
    return file


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    main()
