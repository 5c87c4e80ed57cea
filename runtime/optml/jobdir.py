"""Every path of a job on this machine. Nothing else in optml spells one."""

import os
from dataclasses import dataclass
from pathlib import Path


def optml_home() -> Path:
    """$OPTML_HOME, else ~/.optml."""
    configured = os.environ.get("OPTML_HOME")
    return Path(os.path.expanduser(configured or "~/.optml")).absolute()  # noqa: PTH111  (of no such user: as it is)


def jobs_dir() -> Path:
    return optml_home() / "jobs"


def unclaimed_dir() -> Path:
    """Job folders on their way in or out; on the same filesystem as the jobs."""
    return optml_home() / ".unclaimed"


def cache_dir() -> Path:
    return optml_home() / "cache"


def default_output_dir() -> Path:
    return optml_home() / "output"


def drills_dir() -> Path:
    """Reports of drills, a folder each."""
    return optml_home() / "drills"


@dataclass(frozen=True)
class HostDir:
    """What one host of one attempt has on disk: lost with the machine."""

    root: Path

    @property
    def ml(self) -> Path:
        """The host's /opt/ml."""
        return self.root / "ml"

    @property
    def kept(self) -> Path:
        """A checkpoint folder that the host sees outside /opt/ml."""
        return self.root / "kept"

    @property
    def disk(self) -> Path:
        """Where a disk of the host's own is mounted while its container starts."""
        return self.root / "disk"

    @property
    def layers(self) -> Path:
        """Overlay layers: what the host wrote into its view of a channel."""
        return self.root / "layers"

    @property
    def hosts_file(self) -> Path:
        return self.root / "hosts"

    @property
    def launch_file(self) -> Path:
        """How the backend was told to start the host."""
        return self.root / "launch.json"

    @property
    def state_file(self) -> Path:
        """What a later command needs to end the host if its supervisor is gone. Backend's own format."""
        return self.root / "state.json"


@dataclass(frozen=True)
class JobDir:
    """The folder of one job. That it exists claims the name."""

    root: Path

    @classmethod
    def of(cls, name: str) -> "JobDir":
        return cls(jobs_dir() / name)

    @property
    def name(self) -> str:
        return self.root.name

    @property
    def request_file(self) -> Path:
        return self.root / "request.json"

    @property
    def options_file(self) -> Path:
        return self.root / "options.json"

    @property
    def record_file(self) -> Path:
        return self.root / "job.json"

    @property
    def lock_file(self) -> Path:
        """Locked by the process that supervises the job, for as long as it lives."""
        return self.root / "lock"

    @property
    def stop_file(self) -> Path:
        """Its presence asks the supervisor to stop the job."""
        return self.root / "stop"

    @property
    def supervisor_log(self) -> Path:
        return self.root / "supervisor.log"

    @property
    def metrics_file(self) -> Path:
        return self.root / "metrics.jsonl"

    @property
    def events_file(self) -> Path:
        """What happened to each host and when: see events.py."""
        return self.root / "events.jsonl"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def downloads(self) -> Path:
        """Objects fetched once for all hosts and attempts."""
        return self.root / "downloads"

    @property
    def attempts(self) -> Path:
        return self.root / "attempts"

    @property
    def archives(self) -> Path:
        """Archives on their way to the object store."""
        return self.root / "archives"

    def log_file(self, host: str, *, started: float) -> Path:
        """One log stream, named as in CloudWatch: `<host>-<epoch seconds of the attempt>`."""
        return self.logs / f"{host}-{int(started)}.log"

    def host(self, attempt: int, name: str) -> HostDir:
        return HostDir(self.attempts / str(attempt) / name)


@dataclass(frozen=True)
class HandDir(JobDir):
    """The folder of a job that is run by hand: one attempt, its hosts at the top, as in `docker run -v DIR/algo-1/ml:/opt/ml`."""

    @property
    def attempts(self) -> Path:
        return self.root

    def host(self, attempt: int, name: str) -> HostDir:
        del attempt
        return HostDir(self.root / name)

    @property
    def staged_file(self) -> Path:
        """What collecting needs beside the request. Written last: it says that all the rest is there."""
        return self.root / "staged.json"
