"""The container's half of the /opt/ml contract: what the platform wrote for the program, and where results go.

The platform's half is optml/contract.py; tests/contract goes through both. Standard library only, for it runs in every container.
"""

import io
import json
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

OPT_ML = "/opt/ml"
MAX_FAILURE_CHARACTERS = 1024  # what SageMaker shows of a failure file


class UserError(Exception):
    """Something that the caller can mend: a hyperparameter, a channel, the data. The text says what and how."""


@dataclass(frozen=True, kw_only=True)
class Channel:
    """An entry of inputdataconfig.json. `folder` is there in File and FastFile mode; in Pipe mode there are FIFOs instead."""

    name: str
    folder: Path
    content_type: str | None
    input_mode: str  # File, FastFile or Pipe
    distribution: str  # FullyReplicated or ShardedByS3Key


@dataclass(frozen=True, kw_only=True)
class Resources:
    """resourceconfig.json: this host among the job's hosts, names sorted as text."""

    current_host: str
    hosts: tuple[str, ...]
    network_interface: str


@dataclass(frozen=True)
class Container:
    """Every path of a container, below one root; what the platform told it, read when asked for."""

    root: Path = Path(OPT_ML)

    @classmethod
    def here(cls) -> "Container":
        """/opt/ml, or where SAGEMAKER_BASE_DIR says that the tree lies, as AWS's own toolkit has it."""
        return cls(Path(os.environ.get("SAGEMAKER_BASE_DIR") or OPT_ML))

    @property
    def input_dir(self) -> Path:
        return self.root / "input"

    @property
    def config_dir(self) -> Path:
        return self.input_dir / "config"

    @property
    def data_dir(self) -> Path:
        return self.input_dir / "data"

    @property
    def code_dir(self) -> Path:
        """Where script mode puts the user's code."""
        return self.root / "code"

    @property
    def model_dir(self) -> Path:
        return self.root / "model"

    @property
    def output_dir(self) -> Path:
        return self.root / "output"

    @property
    def output_data_dir(self) -> Path:
        return self.output_dir / "data"

    @property
    def failure_file(self) -> Path:
        return self.output_dir / "failure"

    @property
    def checkpoint_dir(self) -> Path | None:
        """Where checkpoints are kept; None for a job without CheckpointConfig."""
        local_path = self.config("checkpointconfig.json", {}).get("LocalPath")
        return None if local_path is None else self.inside(local_path)

    @property
    def interruption_notice(self) -> Mapping[str, str] | None:
        """EC2's words for it, {"action": "terminate", "time": "2026-01-31T12:02:00Z"}, once this host is to be taken away; else
        None. Only optml writes the file; on SageMaker ask the instance's metadata."""
        found: Mapping[str, str] | None = self.config("interruption-notice.json", None)
        return found

    @property
    def job_secret(self) -> str | None:
        """What only the hosts of this job know, or None: only optml writes the file, for jobs of several hosts."""
        found: str | None = self.config("job-secret.json", {}).get("secret")
        return found

    @property
    def slot(self) -> int:
        """Which of the jobs that share a machine's network this is: its hosts meet at ports so much further. 0, and so
        SageMaker's own ports, unless another job is there already; only optml writes it."""
        found: int = self.config("job-secret.json", {}).get("slot", 0)
        return found

    def hyperparameters(self) -> Mapping[str, str]:
        """Names and values as the request had them: SageMaker passes every value as a string."""
        found: Mapping[str, str] = self.config("hyperparameters.json", {})
        return found

    def channels(self) -> Mapping[str, Channel]:
        """Channels by name. What inputdataconfig.json leaves out has SageMaker's default, so a tree made by hand will do."""
        return {
            name: Channel(
                name=name,
                folder=self.data_dir / name,
                content_type=entry.get("ContentType"),
                input_mode=entry.get("TrainingInputMode", "File"),
                distribution=entry.get("S3DistributionType", "FullyReplicated"),
            )
            for name, entry in self.config("inputdataconfig.json", {}).items()
        }

    def resources(self) -> Resources:
        found = self.config("resourceconfig.json", {})
        return Resources(
            current_host=found.get("current_host", "algo-1"),
            hosts=tuple(found.get("hosts", ["algo-1"])),
            network_interface=found.get("network_interface_name", "eth0"),
        )

    def inside(self, path: str) -> Path:
        """A path as the contract has it; what is below /opt/ml lies below the root."""
        try:
            return self.root / Path(path).relative_to(OPT_ML)
        except ValueError:
            return Path(path)

    def fail(self, text: str) -> None:
        """Write the failure file, whose begin becomes FailureReason; one that is there already stays. Where it cannot be
        written, that is a line of the log at most: what failed is what matters."""
        if not _can_be_written(self.output_dir):
            return  # check_writable has said so
        try:
            if self.failure_file.exists():
                return
            self.failure_file.parent.mkdir(parents=True, exist_ok=True)
            self.failure_file.write_text(text, encoding="utf-8", errors="backslashreplace")  # names need not be UTF-8
        except OSError as error:
            logging.error("%s cannot be written: %s", self.failure_file, error.strerror)

    def forget_failure(self) -> None:
        """Take away what an earlier run failed of: by hand, a folder may be run again."""
        self.failure_file.unlink(missing_ok=True)

    def check_writable(self) -> None:
        """UserError, before hours of training, if what they come to could not be kept."""
        folders = [folder for folder in (self.model_dir, self.output_dir) if not _can_be_written(folder)]
        if folders:
            raise UserError(
                f"{' and '.join(map(str, folders))} cannot be written by user {os.getuid()}, who this container runs as: make "
                f"the folder mounted there that user's (chown -R {os.getuid()}), or run the container as the folder's owner "
                '(--user "$(id -u):$(id -g)")'
            )

    def config(self, name: str, default: Any) -> Any:
        """A file of /opt/ml/input/config as it is, or the default if there is none. UserError if it is not JSON."""
        file = self.config_dir / name
        try:
            return json.loads(file.read_bytes())
        except FileNotFoundError:
            return default
        except ValueError as error:
            raise UserError(f"{file} is not JSON: {error}") from None


def _can_be_written(folder: Path) -> bool:
    """One that is not there yet: whether it can be made."""
    # os.path's exists, for pathlib's has an error where a folder above may not be entered
    there = next(path for path in (folder, *folder.parents) if os.path.exists(path))  # noqa: PTH110
    return os.access(there, os.W_OK | os.X_OK)


def main(train: Callable[[Container], None], container: Container | None = None) -> int:
    """Run a training function; gives the exit code. An error becomes the failure file, its message before its traceback.

    (AWS's toolkit writes the traceback first, and what SageMaker shows is cut off before the message.)
    """
    container = container or Container.here()
    log_to_stdout()
    end_on_sigterm_as_process_1()
    try:
        container.check_writable()
        container.forget_failure()
        train(container)
    except UserError as error:
        container.fail(str(error))
        logging.error("%s", error)
        return 1
    except Exception as error:  # noqa: BLE001  (whatever it is, the platform must hear of it)
        trace = traceback.format_exc()
        container.fail(f"{type(error).__name__}: {error}\n\n{trace}"[: 4 * MAX_FAILURE_CHARACTERS])
        print(trace, file=sys.stderr, flush=True)
        return 1
    return 0


def log_to_stdout() -> None:
    """Lines as SageMaker's containers print them: `[2026-01-31:12:00:00:INFO] message`."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("[%(asctime)s:%(levelname)s] %(message)s", datefmt="%Y-%m-%d:%H:%M:%S"))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)


def end_on_sigterm_as_process_1() -> None:
    """SIGTERM ends a process that does not handle it, but not process 1, and that is what a container starts."""
    if os.getpid() == 1 and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, lambda number, _: os._exit(128 + number))
