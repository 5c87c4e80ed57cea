"""What a job is, as frozen data. No I/O here; AWS's spelling of fields stops in request.py.

The values of the enums are AWS's, because they are written into the container's configuration as they are.
"""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

OPT_ML = "/opt/ml"
# Folders at the top of every machine and image that are not to be hidden.
OF_THE_SYSTEM = ("bin", "boot", "dev", "etc", "lib", "lib32", "lib64", "proc", "run", "sbin", "sys", "usr")
HOMOGENEOUS_GROUP = "homogeneousCluster"  # AWS's name for the only group when InstanceGroups is not used
STOP_GRACE_SECONDS = 120.0  # SageMaker: SIGTERM, 120 s, SIGKILL
SEARCH_SECONDS = 0.05  # for a user's regular expression in one line: it may backtrack
SPOT_NOTICE_SECONDS = 120.0  # EC2: the notice comes two minutes before the end


class InputMode(StrEnum):
    FILE = "File"
    FAST_FILE = "FastFile"
    PIPE = "Pipe"


class DataType(StrEnum):
    S3_PREFIX = "S3Prefix"
    MANIFEST_FILE = "ManifestFile"
    AUGMENTED_MANIFEST_FILE = "AugmentedManifestFile"


class Distribution(StrEnum):
    FULLY_REPLICATED = "FullyReplicated"
    SHARDED_BY_KEY = "ShardedByS3Key"


class Compression(StrEnum):
    NONE = "None"
    GZIP = "Gzip"


class RecordWrapper(StrEnum):
    NONE = "None"
    RECORDIO = "RecordIO"


class ManifestPaths(StrEnum):
    """Where a manifest's objects lie under the channel folder. AWS: the whole key. Seen in one report, hence the switch."""

    KEY = "key"
    RELATIVE = "relative"


@dataclass(frozen=True, kw_only=True)
class ObjectSource:
    """Objects under a URI: `s3://bucket/prefix` or `file:///absolute/path` (never a bare path; request.py made it whole)."""

    uri: str
    data_type: DataType = DataType.S3_PREFIX
    distribution: Distribution = Distribution.FULLY_REPLICATED
    attribute_names: tuple[str, ...] = ()
    instance_group_names: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class FileSystemSource:
    """An EFS or FSx folder; here a folder of this machine, mounted as it is."""

    directory: Path
    read_only: bool
    file_system_id: str
    file_system_type: str


@dataclass(frozen=True, kw_only=True)
class Channel:
    name: str
    source: ObjectSource | FileSystemSource
    input_mode: InputMode = InputMode.FILE  # the effective mode: the channel's own, else the job's
    content_type: str | None = None
    compression: Compression = Compression.NONE
    record_wrapper: RecordWrapper = RecordWrapper.NONE
    shuffle_seed: int | None = None


@dataclass(frozen=True, kw_only=True)
class InstanceGroup:
    name: str
    instance_type: str
    instance_count: int


@dataclass(frozen=True, kw_only=True)
class HostSpec:
    """One host of the job: `algo-<n>`, n from 1."""

    name: str
    group: str
    instance_type: str


@dataclass(frozen=True, kw_only=True)
class MetricDefinition:
    name: str
    regex: str


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    uri: str
    local_path: str = f"{OPT_ML}/checkpoints"


@dataclass(frozen=True, kw_only=True)
class UploadedFolder:
    """A folder of /opt/ml that is uploaded as it is: TensorBoard logs, debugger tensors."""

    local_path: str
    uri: str


@dataclass(frozen=True, kw_only=True)
class StoppingCondition:
    max_runtime_seconds: int = 86400
    max_wait_seconds: int | None = None  # spot only


class How(StrEnum):
    """What an interruption does to a host."""

    TERMINATE = "terminate"  # a notice, then the machine is gone
    HANG = "hang"  # its programs stand still for as long as the notice would last, then it is gone
    STORE_AWAY = "store-away"  # no host ends: the checkpoint store refuses for a while
    FULL_DISK = "full-disk"  # no host ends: what its checkpoints stand on has no more room for a while

    @property
    def ends_hosts(self) -> bool:
        return self not in (How.STORE_AWAY, How.FULL_DISK)


class SignalTo(StrEnum):
    """Who on a host hears an interruption's SIGTERM."""

    MAIN_PROCESS = "main-process"  # as StopTrainingJob has it
    EVERY_PROCESS = "every-process"


@dataclass(frozen=True, kw_only=True)
class Trigger:
    """Interrupt when something was printed: within an attempt, for the `count`th time on one host. Fires once in a job."""

    count: int = 1
    metric: str | None = None  # a metric's name ...
    log: str | None = None  # ... or a regular expression that a line matches
    label: str = ""  # what a report calls it, where the expression would say little

    def __str__(self) -> str:
        if self.label:
            return self.label
        if self.metric is not None:
            return f"--at-metric {self.metric}:{self.count}"
        return f"--at-log {shlex.quote(self.log or '')}" + (f":{self.count}" if self.count > 1 else "")


@dataclass(frozen=True, kw_only=True)
class Trace:
    """When there is capacity: one entry per `gap_seconds` from the job's creation; the last one holds for ever."""

    gap_seconds: float
    available: tuple[bool, ...]


@dataclass(frozen=True, kw_only=True)
class InterruptionPlan:
    """When machines are taken away from a job, how, and when it gets new ones.

    The times are those of the notice; the machine is gone `notice_seconds` later, or as soon as its program has ended.
    """

    at_seconds: tuple[float, ...] = ()  # of training, all attempts together
    every_seconds: float | None = None  # of each attempt's training
    mean_seconds: float | None = None  # the same, drawn from an exponential distribution
    seed: int = 0
    triggers: tuple[Trigger, ...] = ()
    trace: Trace | None = None
    notice_seconds: float = SPOT_NOTICE_SECONDS  # 0: SIGKILL at once
    reacquire_seconds: float = 0.0  # from a machine's end to the next one
    host: str | None = None  # only this one is hit, and the platform tears down the others at once; None: all
    how: How = How.TERMINATE
    signal_to: SignalTo = SignalTo.MAIN_PROCESS
    away_seconds: float = 30.0  # how long the store refuses, or the disk is full
    most: int | None = None  # no more interruptions than that


@dataclass(frozen=True, kw_only=True)
class LocalOptions:
    """What a request to AWS cannot say: how this machine runs the job."""

    backend: str = "process"
    grace_seconds: float = STOP_GRACE_SECONDS
    working_dir: Path | None = None  # of a program without an image; None: what the image says
    manifest_paths: ManifestPaths = ManifestPaths.KEY
    announce_fast_file_as_file: bool = False  # for containers that refuse the word FastFile
    failure_file_fails: bool = True  # a non-empty failure file with exit code 0 ends Failed
    allow_cpu: bool = False  # run a GPU instance type on a machine without that GPU
    cpus: int | None = None  # per host; None: the instance type's, shared fairly
    memory_bytes: int | None = None  # per host; None: no limit
    instance_limits: bool = False  # give each host no more processors and memory than its instance type has
    mount_code: bool = False  # in containers: our toolkit and algorithms from this installation, in a base image
    keep_files: bool = False  # keep the hosts' disks after the job ended
    interruptions: InterruptionPlan | None = None  # when machines are taken away
    evidence: bool = False  # record what a drill's report is made of, also where nothing is interrupted
    step_regex: str | None = (
        None  # how a drill reads the number of a step in a line; None: it looks for the usual forms
    )
    pdb: bool = False  # breakpoints and uncaught exceptions of a script wait for a debugger
    strict_versions: bool = False  # refuse an image whose tag asks for other versions than are installed


@dataclass(frozen=True, kw_only=True)
class TrainingJob:
    """A validated CreateTrainingJob request. `request` is that request, completed with defaults, in AWS's spelling."""

    name: str
    arn: str
    region: str
    role_arn: str
    image: str
    output_uri: str  # <S3OutputPath>, without the job's name
    instance_groups: tuple[InstanceGroup, ...]
    input_mode: InputMode = InputMode.FILE
    output_compressed: bool = True
    entrypoint: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()
    hyperparameters: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    channels: tuple[Channel, ...] = ()
    metric_definitions: tuple[MetricDefinition, ...] = ()
    stopping: StoppingCondition = StoppingCondition()
    checkpoint: CheckpointConfig | None = None
    tensorboard: UploadedFolder | None = None  # uri has the job's name in it already
    debug_hook: UploadedFolder | None = None
    spot: bool = False
    maximum_retries: int = 0
    network_isolation: bool = False
    metrics_time_series: bool = False
    request: Mapping[str, Any] = field(default_factory=dict)
    options: LocalOptions = LocalOptions()
    warnings: tuple[str, ...] = ()  # what is emulated in a way that the caller should know

    @property
    def destinations(self) -> tuple[str, ...]:
        """Every URI that the job puts something under."""
        folders = (self.checkpoint, self.tensorboard, self.debug_hook)
        return (self.output_uri, *(folder.uri for folder in folders if folder is not None))

    @property
    def hosts(self) -> tuple[HostSpec, ...]:
        """In number order: algo-1, algo-2, ... (the contract sorts names lexicographically where it shows them)."""
        specs: list[HostSpec] = []
        for group in self.instance_groups:
            for _ in range(group.instance_count):
                number = len(specs) + 1
                specs.append(HostSpec(name=f"algo-{number}", group=group.name, instance_type=group.instance_type))
        return tuple(specs)

    def hosts_of(self, channel: Channel) -> tuple[HostSpec, ...]:
        """The hosts that see a channel, in name order: all, or those of its instance groups. Shards go by this order."""
        groups = channel.source.instance_group_names if isinstance(channel.source, ObjectSource) else ()
        seen = (host for host in self.hosts if not groups or host.group in groups)
        return tuple(sorted(seen, key=lambda host: host.name))
