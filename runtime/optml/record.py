"""job.json: what happened to a job, for everyone who asks. Written whole by one process: the one that holds the job's lock.

The file has two parts: `describe`, the DescribeTrainingJob response with times in epoch seconds, and `local`, what AWS has
no field for.
"""

import contextlib
import datetime
import fcntl
import itertools
import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from optml.clock import Clock
from optml.errors import PlatformError, ResourceInUse, UserError
from optml.jobdir import JobDir, jobs_dir, optml_home, unclaimed_dir
from optml.spec import TrainingJob

TERMINAL = frozenset({"Completed", "Failed", "Stopped"})
TIME_FIELDS = frozenset(
    {"CreationTime", "TrainingStartTime", "TrainingEndTime", "LastModifiedTime", "StartTime", "EndTime", "Timestamp"}
)
MAX_FAILURE_REASON = 1024
UNCLAIMED_SECONDS = 60.0  # many times what claiming a name takes

# AWS's own texts where they have been seen; ours where none has.
MESSAGES = {
    "Starting": "Starting the training job",
    "Downloading": "Downloading input data",
    "Training": "Training image download completed. Training in progress.",
    "Uploading": "Uploading generated training model",
    "Stopping": "Stopping the training job",
    "Completed": "Training job completed",
    "Failed": "Training job failed",
    "Stopped": "Training job stopped",
    "Interrupted": "Training job interrupted: the capacity was taken back",
    "Restarting": "Restarting the training job after an internal error",
    "MaxRuntimeExceeded": "Training job ran longer than MaxRuntimeInSeconds",
    "MaxWaitTimeExceeded": "Training job waited and ran longer than MaxWaitTimeInSeconds",
}


WAITING_MESSAGE = "Insufficient capacity error from EC2 while launching instances, retrying!"
# What a managed spot job pays for; the rest of its training time is spent without an instance.
BILLED = frozenset({"Downloading", "Training", "Uploading", "Stopping"})


class RecordLost(PlatformError):
    """The job's folder is gone, so nothing more can be recorded. Raised by every change to the record."""


class Record:
    """The record of a job, open for writing by its supervisor. Every change is on disk when the call returns."""

    def __init__(self, job_dir: JobDir, lock: IO[str], content: dict[str, Any], clock: Clock):
        self.job_dir, self.clock = job_dir, clock
        self._lock = lock
        self._content = content

    @property
    def describe(self) -> dict[str, Any]:
        return self._content["describe"]  # type: ignore[no-any-return]

    @property
    def local(self) -> dict[str, Any]:
        return self._content["local"]  # type: ignore[no-any-return]

    @property
    def lock_descriptor(self) -> int:
        """To be inherited by a supervisor in another process, so that the lock is never free in between."""
        return self._lock.fileno()

    def is_lost(self) -> bool:
        """Whether somebody removed the job's folder; another job may have the name by now."""
        return not _is_file(self._lock, self.job_dir.lock_file)

    def _now(self) -> float:
        """The time to record: a clock that is put back does not make a job end before it began."""
        return max(self.clock.now(), float(self.describe.get("LastModifiedTime", 0.0)))

    def save(self) -> None:
        if self.is_lost():
            raise RecordLost(f"{self.job_dir.root} was removed while the job ran, and what was in it is lost")
        self.describe["LastModifiedTime"] = self._now()
        ended = self.describe["TrainingJobStatus"] in TERMINAL
        replace_json(self.job_dir.record_file, self._content, durable=ended)

    def transition(self, secondary: str, *, status: str = "InProgress", message: str | None = None) -> None:
        """Enter a secondary status: closes the one before it."""
        now = self._now()
        transitions = self.describe["SecondaryStatusTransitions"]
        if transitions:
            transitions[-1]["EndTime"] = now
        transitions.append(
            {
                "Status": secondary,
                "StartTime": now,
                "StatusMessage": readable(message or MESSAGES.get(secondary, secondary)),
            }
        )
        if status in TERMINAL:
            transitions[-1]["EndTime"] = now
        self.describe.update(TrainingJobStatus=status, SecondaryStatus=secondary)
        self.save()

    def training_started(self) -> None:
        self.describe["TrainingStartTime"] = self._now()
        self.save()

    def end(self, status: str, secondary: str, *, reason: str | None = None, at: float | None = None) -> None:
        """The last entry. Seconds are wall time from TrainingStartTime; a managed spot job is billed for those with an instance.

        `at` (epoch seconds): when it really ended, for a job that nobody watched to its end.
        """
        now = self._now() if at is None else at
        if reason is not None:
            self.describe["FailureReason"] = readable(reason)[:MAX_FAILURE_REASON]
        if "TrainingStartTime" in self.describe:
            now = max(now, self.describe["TrainingStartTime"])
            self.describe["TrainingEndTime"] = now
            seconds = round(now - self.describe["TrainingStartTime"])
            unbilled = now - self.describe["TrainingStartTime"] - self._billed_seconds(now) if self.is_spot else 0.0
            billable = max(0, seconds - max(0, round(unbilled)))
            self.describe.update(TrainingTimeInSeconds=seconds, BillableTimeInSeconds=billable)
        self.transition(secondary, status=status)

    @property
    def is_spot(self) -> bool:
        return bool(self.describe.get("EnableManagedSpotTraining"))

    def _billed_seconds(self, now: float) -> float:
        return sum(
            float(step.get("EndTime", now)) - float(step["StartTime"])
            for step in self.describe["SecondaryStatusTransitions"]
            if step["Status"] in BILLED
        )

    def close(self) -> None:
        self._lock.close()


def readable(text: str) -> str:
    """Text that may hold file names which are no UTF-8, as text that anybody can print."""
    return text.encode("utf-8", "backslashreplace").decode()


def begin(job: TrainingJob, *, options: Mapping[str, Any], clock: Clock) -> Record:
    """Claim the name and write the first record, in one step: a job's folder is never seen half made."""
    job_dir = JobDir.of(job.name)
    new = JobDir(unclaimed_dir() / f"new-{secrets.token_hex(8)}")
    now = clock.now()
    describe = {
        **{field: value for field, value in job.request.items() if field != "Tags"},
        "TrainingJobArn": job.arn,
        "ModelArtifacts": {"S3ModelArtifacts": ""},
        "TrainingJobStatus": "InProgress",
        "SecondaryStatus": "Starting",
        "CreationTime": now,
        "SecondaryStatusTransitions": [],
    }
    local = {
        "backend": job.options.backend,
        "supervisor_pid": os.getpid(),
        "attempts": 0,
        "warnings": list(job.warnings),
    }
    try:
        jobs_dir().mkdir(parents=True, exist_ok=True)
        unclaimed_dir().mkdir(exist_ok=True)
        _remove_unclaimed()
        new.logs.mkdir(parents=True)
        lock = _open_locked(new.lock_file)
        assert lock is not None, "nobody else knows this folder yet"
        replace_json(new.request_file, job.request)
        replace_json(new.options_file, options)
        Record(new, lock, {"describe": describe, "local": local}, clock).transition("Starting")
    except OSError as error:
        shutil.rmtree(new.root, ignore_errors=True)
        raise UserError(
            f"cannot write {optml_home()}: {error.strerror}; make room there, or set OPTML_HOME to a folder of yours"
        ) from error
    try:
        new.root.rename(job_dir.root)
    except OSError as error:
        lock.close()
        shutil.rmtree(new.root, ignore_errors=True)
        if job_dir.root.exists():
            raise ResourceInUse(
                "Training job names must be unique within an AWS account and region, "
                f"and a training job with this name already exists ({job.arn}). "
                f"Choose another name (--name), or delete that job: optml delete {job.name}"
            ) from None
        raise UserError(
            f"cannot write {job_dir.root}: {error.strerror}; set OPTML_HOME to a folder of yours"
        ) from error
    return Record(job_dir, lock, {"describe": describe, "local": local}, clock)


def adopt(job_dir: JobDir, lock_descriptor: int, clock: Clock) -> Record:
    """Go on with a record whose lock another process handed over."""
    os.set_inheritable(lock_descriptor, False)  # it came that way; a child that kept it would pass for the supervisor
    lock = os.fdopen(lock_descriptor, "w")
    record = Record(job_dir, lock, read(job_dir), clock)
    record.local["supervisor_pid"] = os.getpid()
    record.save()
    return record


def take_over(job_dir: JobDir, clock: Clock) -> Record | None:
    """The record of a job whose supervisor is gone, for whoever cleans up after it; None if it lives or the job has ended."""
    lock = _open_locked(job_dir.lock_file)
    if lock is None:
        return None
    try:
        content = read(job_dir)
    except UserError:
        lock.close()
        raise
    if content["describe"]["TrainingJobStatus"] in TERMINAL:
        lock.close()
        return None
    return Record(job_dir, lock, content, clock)


def has_supervisor(job_dir: JobDir) -> bool:
    lock = _open_locked(job_dir.lock_file)
    if lock is None:
        return True
    lock.close()
    return False


def exists(name: str) -> bool:
    try:
        return is_name(name) and JobDir.of(name).record_file.is_file()
    except OSError as error:
        raise UserError(f"cannot read {jobs_dir()}: {error.strerror}; set OPTML_HOME to a folder of yours") from error


def is_name(name: str) -> bool:
    """Whether a job may be called so: what AWS allows, and so no path out of the jobs' folder."""
    return re.fullmatch(r"[a-zA-Z0-9][a-zA-Z0-9-]{0,62}", name) is not None


def read(job_dir: JobDir) -> dict[str, Any]:
    """The record as it is on disk. UserError, in AWS's words, for a job that is not there."""
    try:
        content: dict[str, Any] = json.loads(job_dir.record_file.read_bytes())
        _ = content["describe"]["TrainingJobStatus"], content["describe"]["CreationTime"], content["local"]["backend"]
    except (FileNotFoundError, NotADirectoryError):
        raise UserError("Requested resource not found.") from None
    except (ValueError, LookupError, TypeError, OSError) as error:
        raise UserError(
            f"{job_dir.record_file} is not a job's record ({type(error).__name__}: {error}); "
            f"delete the job: optml delete {job_dir.name}"
        ) from None
    return content


def read_all() -> Iterator[tuple[JobDir, dict[str, Any]]]:
    """Every recorded job. A folder that is not a job's, or vanishes while it is read, is passed over."""
    try:
        names = os.listdir(jobs_dir())
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(f"cannot list {jobs_dir()}: {error.strerror}; set OPTML_HOME to a folder of yours") from error
    for name in names:
        job_dir = JobDir.of(name)
        with contextlib.suppress(UserError):
            yield job_dir, read(job_dir)


def replace_json(file: Path, content: Any, *, durable: bool = False) -> None:
    """A file that other processes read appears whole. `durable`: also after a crash of the machine."""
    beside = file.with_name(f"{file.name}.{os.getpid()}.tmp")
    try:
        with beside.open("w", encoding="utf-8") as stream:
            json.dump(content, stream, separators=(",", ":"), default=str)  # ASCII: paths need not be UTF-8
            if durable:
                stream.flush()
                os.fsync(stream.fileno())
        beside.replace(file)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def with_times(value: Any, *, convert: Any = None) -> Any:
    """Epoch seconds -> aware datetimes (what boto3 returns), or whatever `convert` makes of them, in every time field."""
    to_time = convert or (lambda seconds: datetime.datetime.fromtimestamp(seconds, datetime.UTC))
    if isinstance(value, dict):
        return {
            key: to_time(item)
            if key in TIME_FIELDS and isinstance(item, int | float)
            else with_times(item, convert=convert)
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [with_times(item, convert=convert) for item in value]
    return value


def refuse_link(job_dir: JobDir) -> None:
    """What a link leads to is not to be locked, changed or deleted."""
    if is_name(job_dir.name) and job_dir.root.is_symlink():
        raise UserError(f"{job_dir.root} is a link that optml did not make; remove it yourself")


def remove(job_dir: JobDir) -> None:
    """Free the name at once, then delete what the job left. ResourceInUse if it has a supervisor."""
    # Checked where the deleting is done: JobDir.of("/x") is /x, and what lies there would be gone.
    if job_dir.root.parent != jobs_dir() or not is_name(job_dir.name):
        raise UserError(f"Requested resource not found. {job_dir.root} is no job's folder")
    refuse_link(job_dir)
    lock = _open_locked(job_dir.lock_file)  # held, so that it is this job and no later one of its name
    if lock is None:
        raise ResourceInUse(f"The training job {job_dir.name} is in use; try again in a moment")
    try:
        unclaimed_dir().mkdir(exist_ok=True)
        doomed = unclaimed_dir() / f"deleted-{secrets.token_hex(8)}"
        job_dir.root.rename(doomed)
    finally:
        lock.close()
    try:
        remove_tree(doomed)
    except PermissionError as error:
        raise UserError(
            f"{job_dir.name} is deleted, but {error.filename} belongs to another user, and optml may not remove it: "
            f"sudo rm -r {doomed}"
        ) from error


def remove_tree(folder: Path) -> None:
    """Delete a folder whatever its permissions: overlay work folders have none, and programs leave read-only ones.

    Two processes may delete the same folder at once. What links lead to stays as it is.
    """
    if folder.is_symlink():
        folder.unlink()
        return
    with contextlib.suppress(FileNotFoundError):
        folder.chmod(0o700)
    for parent, names, _files in os.walk(folder):
        for name in names:
            child = Path(parent, name)
            with contextlib.suppress(FileNotFoundError):
                if not child.is_symlink() and (child.stat().st_mode & 0o700) != 0o700:
                    child.chmod(0o700)
    while folder.exists():
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(folder)


def _open_locked(file: Path) -> IO[str] | None:
    """The file, locked for this process; None if another holds it. Asking takes the lock for a moment, hence the retry."""
    for attempt in itertools.count():
        try:
            lock = file.open("a")
        except (FileNotFoundError, NotADirectoryError):
            raise UserError("Requested resource not found.") from None
        except OSError as error:
            raise UserError(f"cannot open {file}: {error.strerror}") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            if attempt >= 2:
                return None
            time.sleep(0.005)
            continue
        if _is_file(lock, file):
            return lock
        lock.close()  # of a job that was deleted in this moment; another may have its name now
    raise AssertionError("unreachable")


def _is_file(stream: IO[str], file: Path) -> bool:
    """Whether the open file is the one of that name, and not one that was removed."""
    try:
        return os.path.samestat(file.stat(), os.fstat(stream.fileno()))
    except (FileNotFoundError, NotADirectoryError):
        return False


def _remove_unclaimed() -> None:
    """Folders of a `begin` or `remove` that was killed in the middle. One that has just been made is still to be locked."""
    for folder in unclaimed_dir().iterdir():
        with contextlib.suppress(UserError, OSError):
            kind = re.fullmatch(r"(new|deleted)-[0-9a-f]{16}", folder.name)  # nothing else there is ours
            old = time.time() - folder.stat().st_mtime > UNCLAIMED_SECONDS
            lock = JobDir(folder).lock_file
            abandoned = old and not (lock.exists() and has_supervisor(JobDir(folder)))
            if kind and (kind[1] == "deleted" or abandoned):
                remove_tree(folder)
