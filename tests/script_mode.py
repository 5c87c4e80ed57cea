"""Run the toolkit's script mode by hand, on a tree that a test makes: SAGEMAKER_BASE_DIR instead of /opt/ml."""

import json
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.hosts import PATIENCE_SECONDS

# What a script sees, written to model/seen.json; hosts and ranks have files of their own.
LOOK = """
import json, os, sys
seen = {"environment": dict(os.environ), "argv": sys.argv, "cwd": os.getcwd(), "python": sys.executable, "path": sys.path}
with open(os.path.join(os.environ["SM_MODEL_DIR"], f"seen{os.environ.get('RANK', '')}.json"), "w") as file:
    json.dump(seen, file)
"""


@dataclass(frozen=True)
class Ran:
    """A run of the toolkit that has ended, and what it left."""

    root: Path
    exit_code: int
    log: str

    @property
    def failure(self) -> str:
        file = self.root / "output" / "failure"
        return file.read_text(encoding="utf-8") if file.exists() else ""

    @property
    def first_line(self) -> str:
        return self.failure.partition("\n")[0]

    @property
    def saw(self) -> dict[str, Any]:
        assert self.exit_code == 0, self.log
        return self.saw_by("")

    def saw_by(self, rank: int | str) -> dict[str, Any]:
        seen: dict[str, Any] = json.loads((self.root / "model" / f"seen{rank}.json").read_text(encoding="utf-8"))
        return seen


def source(folder: Path, files: Mapping[str, str]) -> Path:
    """A folder of code."""
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text), encoding="utf-8")
    return folder


def tree(
    root: Path,
    *,
    hyperparameters: Mapping[str, str],
    hosts: tuple[str, ...] = ("algo-1",),
    current: str = "algo-1",
    channels: tuple[str, ...] = (),
) -> Path:
    """What a platform would have written."""
    config = root / "input" / "config"
    for folder in (config, root / "input" / "data", root / "model", root / "output" / "data"):
        folder.mkdir(parents=True, exist_ok=True)
    for channel in channels:
        (root / "input" / "data" / channel).mkdir(exist_ok=True)
    group = {"instance_group_name": "homogeneousCluster", "instance_type": "ml.c5.xlarge", "hosts": list(hosts)}
    contents: dict[str, Any] = {
        "hyperparameters.json": dict(hyperparameters),
        "resourceconfig.json": {
            "current_host": current,
            "current_instance_type": "ml.c5.xlarge",
            "current_group_name": "homogeneousCluster",
            "hosts": list(hosts),
            "instance_groups": [group],
            "network_interface_name": "lo",
        },
        "inputdataconfig.json": {
            channel: {
                "ContentType": "text/csv",
                "TrainingInputMode": "File",
                "S3DistributionType": "FullyReplicated",
                "RecordWrapperType": "None",
            }
            for channel in channels
        },
    }
    for name, content in contents.items():
        (config / name).write_text(json.dumps(content), encoding="utf-8")
    return root


def environment_for(root: Path, **variables: str) -> dict[str, str]:
    mine = {name: value for name, value in os.environ.items() if not name.startswith(("SM_", "SAGEMAKER_"))}
    return {**mine, "SAGEMAKER_BASE_DIR": str(root), "TRAINING_JOB_NAME": "by-hand", **variables}


def command(python: str = sys.executable) -> list[str]:
    return [python, "-m", "optml_toolkit.script_mode"]


def run(
    tmp_path: Path,
    files: Mapping[str, str] | None = None,
    *,
    program: str = "train.py",
    hyperparameters: Mapping[str, Any] | None = None,
    submit: Path | str | None = None,
    variables: Mapping[str, str] | None = None,
    **more: Any,
) -> Ran:
    """The toolkit on a folder of code, to its end. Hyperparameters are written as the SDK writes them: as JSON."""
    if submit is None:
        submit = source(tmp_path / "src", files if files is not None else {"train.py": LOOK})
    given = {"sagemaker_program": program, "sagemaker_submit_directory": str(submit), **(hyperparameters or {})}
    root = tree(tmp_path / "ml", hyperparameters={name: json.dumps(value) for name, value in given.items()}, **more)
    return run_tree(root, **(variables or {}))


def run_tree(root: Path, *, python: str = sys.executable, **variables: str) -> Ran:
    """The toolkit on a tree as it is."""
    done = subprocess.run(
        command(python),
        env=environment_for(root, **variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        errors="replace",
        timeout=2 * PATIENCE_SECONDS,
        check=False,
    )
    return Ran(root, done.returncode, done.stdout)


class Running:
    """The toolkit while it runs, its log in a file; ended with the test."""

    def __init__(self, root: Path, log: Path, **variables: str):
        self.root, self.log_file = root, log
        with log.open("wb") as stream:
            self.process = subprocess.Popen(
                command(),
                env=environment_for(root, **variables),
                stdout=stream,
                stderr=stream,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )

    def __enter__(self) -> "Running":
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    @property
    def log(self) -> str:
        return self.log_file.read_text(encoding="utf-8", errors="replace")

    def wait_for(self, text: str, *, times: int = 1, seconds: float = PATIENCE_SECONDS) -> None:
        deadline = time.monotonic() + seconds
        while self.log.count(text) < times:
            assert self.process.poll() is None, f"it has ended:\n{self.log}"
            assert time.monotonic() < deadline, f"no {text!r} yet:\n{self.log}"
            time.sleep(0.02)

    def ended(self, seconds: float = PATIENCE_SECONDS) -> Ran:
        return Ran(self.root, self.process.wait(seconds), self.log)
