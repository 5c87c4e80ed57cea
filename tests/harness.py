"""Run small programs as real jobs, through the door that users use, and look at what they saw and left."""

import contextlib
import json
import secrets
import sys
import tarfile
import textwrap
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import optml
from optml.backends import Capabilities, backend_named
from optml.errors import JobFailed, UserError
from optml.jobdir import JobDir

backend_in_use = (
    "process"  # what `run` runs jobs on; a suite that goes over the backends sets it (tests/contract/conftest.py)
)

# How a program of the tests finds its tree, wherever that lies.
ML = "import os; from pathlib import Path; ml = Path(os.environ.get('SAGEMAKER_BASE_DIR', '/opt/ml'))\n"

# What a host sees: every file under /opt/ml with its content, its environment, its arguments. Written to the output data of
# the job, one file per host.
LOOK = """
import json, os, stat, sys
from pathlib import Path
ml = Path(os.environ.get("SAGEMAKER_BASE_DIR", "/opt/ml"))
seen = {}
for parent, folders, files in os.walk(ml, followlinks=True):
    for name in folders:
        seen[os.path.relpath(os.path.join(parent, name), ml) + "/"] = None
    for name in files:
        path = Path(parent, name)
        kind = path.stat().st_mode
        seen[os.path.relpath(path, ml)] = "<fifo>" if stat.S_ISFIFO(kind) else path.read_text(errors="replace")
host = json.loads(seen["input/config/resourceconfig.json"])["current_host"]
saw = {"files": seen, "environment": dict(os.environ), "argv": sys.argv, "cwd": os.getcwd()}
(ml / "output/data" / f"{host}.json").write_text(json.dumps(saw))
"""


@dataclass(frozen=True)
class Done:
    """A job that has ended, and what it left."""

    job: optml.Job
    failure: str | None

    @property
    def describe(self) -> dict[str, Any]:
        return self.job.describe()

    @property
    def folder(self) -> Path:
        """<output>/<job>/output on this machine."""
        path = self.describe["OutputDataConfig"]["S3OutputPath"].removeprefix("file://")
        return Path(path) / self.job.name / "output"

    @property
    def reason(self) -> str:
        return str(self.describe.get("FailureReason", ""))

    @property
    def secondary(self) -> list[str]:
        return [step["Status"] for step in self.describe["SecondaryStatusTransitions"]]

    def archive(self, name: str) -> dict[str, bytes]:
        """Plain files of an archive by name."""
        with tarfile.open(self.folder / name) as tar:
            members = [member for member in tar.getmembers() if member.isfile()]
            streams = {member.name: tar.extractfile(member) for member in members}
            return {name: stream.read() for name, stream in streams.items() if stream is not None}

    @property
    def model(self) -> dict[str, bytes]:
        return self.archive("model.tar.gz")

    @property
    def output(self) -> dict[str, bytes]:
        return self.archive("output.tar.gz")

    @property
    def log(self) -> str:
        return "".join(f"{line}\n" for _host, lines in self.job.logs() for line in lines)

    def saw(self, host: str = "algo-1") -> dict[str, Any]:
        """What LOOK wrote on that host."""
        seen: dict[str, Any] = json.loads(self.output[f"{host}.json"])
        return seen

    def config(self, name: str, host: str = "algo-1") -> Any:
        return json.loads(self.saw(host)["files"][f"input/config/{name}"])

    def channel(self, name: str, host: str = "algo-1") -> dict[str, str]:
        """Files of a channel on a host, by their path under the channel folder."""
        prefix = f"input/data/{name}/"
        files = self.saw(host)["files"]
        return {
            path.removeprefix(prefix): text
            for path, text in files.items()
            if path.startswith(prefix) and text is not None
        }


def capabilities() -> Capabilities:
    """What the backend in use can do for the user who runs the tests."""
    return backend_named(backend_in_use).capabilities()


def program(folder: Path, source: str, *, name: str = "train.py") -> list[str]:
    """A script as ContainerEntrypoint. A container sees it where it is, for it lies in the job's working folder."""
    folder.mkdir(parents=True, exist_ok=True)
    script = folder / name
    script.write_text(textwrap.dedent(source), encoding="utf-8")
    return ["python" if backend_in_use == "docker" else sys.executable, str(script)]


def run(folder: Path, source: str = LOOK, **shortcuts: Any) -> Done:
    """Run a script as a job in this process and wait for its end, whatever that is."""
    arguments: dict[str, Any] = {
        "image": "python",
        "entrypoint": program(folder / "program", source),
        "output": str(folder / "out"),
        "logs": False,
        "grace_seconds": 5.0,
        "backend": backend_in_use,
        "working_dir": folder / "program" if backend_in_use == "docker" else None,
    }
    arguments |= shortcuts
    name = arguments.setdefault("name", f"job-{secrets.token_hex(4)}")
    failure = None
    try:
        optml.train(arguments.pop("request", None), **arguments)
    except JobFailed as error:
        failure = str(error)
    except UserError as error:
        if "hosts cannot be given names" in str(error):  # several hosts where there are no namespaces
            pytest.skip(str(error))
        raise
    return Done(optml.find(name), failure)


# For programs of tests: `wait_for(name)` stands still until the test has done `let(folder, name)`.
WAIT = """
import os, time
def wait_for(name):
    while not os.path.exists(os.path.join(os.path.dirname(os.path.abspath(__file__)), name)):
        time.sleep(0.01)
"""


def let(folder: Path, name: str) -> None:
    """Let a program that `run` started in the folder go on."""
    (folder / "program" / name).touch()


@contextlib.contextmanager
def meanwhile(action: Callable[[], object]) -> Iterator[None]:
    """Do something in a thread while the block runs, done when it ends. A block that fails or skips needs it no more."""
    problems: list[BaseException] = []

    def act() -> None:
        try:
            action()
        except BaseException as problem:  # noqa: BLE001  (raised below)
            problems.append(problem)

    thread = threading.Thread(target=act, daemon=True)
    thread.start()
    yield
    thread.join()
    if problems:
        raise problems[0]


def statuses(name: str) -> list[str]:
    """The secondary statuses that a job has had so far; none before it has begun."""
    try:
        return Done(optml.find(name), None).secondary
    except UserError:
        return []


def printed(name: str) -> str:
    """What a job has printed so far."""
    return "".join(file.read_text(errors="replace") for file in sorted(JobDir.of(name).logs.glob("*.log")))


def files(folder: Path, contents: dict[str, str]) -> Path:
    """Make a folder of small files."""
    for name, text in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder
