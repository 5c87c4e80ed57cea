"""The platform's half of the /opt/ml contract: what it writes before a container starts, and where it looks afterwards.

The container's half is optml_toolkit/container.py; tests/contract goes through both. Sources: the developer guide, and the one
public recording of a real job's folder. Shapes follow the recording where the two differ.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from optml.spec import OPT_ML, Channel, FileSystemSource, HostSpec, InputMode, TrainingJob

CONFIG = "input/config"
DATA = "input/data"
CODE = "code"
MODEL = "model"
OUTPUT_DATA = "output/data"
FAILURE = "output/failure"
METRICS = "output/metrics/sagemaker"


def config_dir(ml: Path) -> Path:
    return ml / CONFIG


def data_dir(ml: Path) -> Path:
    return ml / DATA


def channel_dir(ml: Path, channel_name: str) -> Path:
    return ml / DATA / channel_name


def channel_manifest_file(ml: Path, channel_name: str) -> Path:
    """The list of all keys of a channel, written beside it."""
    return ml / DATA / f"{channel_name}-manifest"


def code_dir(ml: Path) -> Path:
    """Where the toolkits of framework containers put a user's code, unless it is there already."""
    return ml / CODE


def model_dir(ml: Path) -> Path:
    return ml / MODEL


def output_data_dir(ml: Path) -> Path:
    return ml / OUTPUT_DATA


def failure_file(ml: Path) -> Path:
    return ml / FAILURE


def interruption_notice_file(ml: Path) -> Path:
    """Ours, not SageMaker's: there once the host is to be taken away. Among what the platform tells, and never uploaded."""
    return ml / CONFIG / "interruption-notice.json"


def job_secret_file(ml: Path) -> Path:
    """Ours, not SageMaker's: by it the hosts of a job of several know each other on a network that others use too, and by its
    slot they meet at ports of their own."""
    return ml / CONFIG / "job-secret.json"


def inside(ml: Path, container_path: str) -> Path | None:
    """Where a path under /opt/ml lies on this machine; None for a path elsewhere in the container."""
    try:
        return ml / Path(container_path).relative_to(OPT_ML)
    except ValueError:
        return None


def write_tree(
    ml: Path, job: TrainingJob, host: HostSpec, *, interface: str, secret: str | None = None, slot: int = 0
) -> None:
    """Folders and configuration of one host. `interface` must exist inside the container; `secret` and `slot` are the same on all
    hosts."""
    for folder in (CONFIG, DATA, MODEL, OUTPUT_DATA, METRICS, "output/profiler"):
        (ml / folder).mkdir(parents=True, exist_ok=True)
    for uploaded in (job.tensorboard, job.debug_hook):
        if uploaded is not None and (folder_here := inside(ml, uploaded.local_path)) is not None:
            folder_here.mkdir(parents=True, exist_ok=True)
    for name, content in config_files(job, host, interface=interface).items():
        (config_dir(ml) / name).write_text(
            json.dumps(content, ensure_ascii=False, separators=(",", ":")), encoding="utf-8"
        )
    if secret is not None:
        job_secret_file(ml).touch(mode=0o600)
        job_secret_file(ml).write_text(json.dumps({"secret": secret, "slot": slot}))


def config_files(job: TrainingJob, host: HostSpec, *, interface: str) -> dict[str, Any]:
    """Every file of /opt/ml/input/config by name. The last four are in real jobs, though undocumented."""
    files: dict[str, Any] = {
        "hyperparameters.json": dict(job.hyperparameters),
        "inputdataconfig.json": {
            channel.name: channel_config(channel, announce_as_file=job.options.announce_fast_file_as_file)
            for channel in job.channels
            if host in job.hosts_of(channel)
        },
        "resourceconfig.json": resource_config(job, host, interface=interface),
        "metric-definition-regex.json": [{"Name": m.name, "Regex": m.regex} for m in job.metric_definitions],
        "upstreamoutputdataconfig.json": [],
        "trainingjobconfig.json": {**job.request, "TrainingJobArn": job.arn, "BaseTags": job.request.get("Tags", [])},
    }
    if job.checkpoint is not None:
        files["checkpointconfig.json"] = {"LocalPath": job.checkpoint.local_path}
    for field, name in (
        ("TensorBoardOutputConfig", "tensorboardoutputconfig.json"),
        ("DebugHookConfig", "debughookconfig.json"),
        ("ProfilerConfig", "profilerconfig.json"),
    ):
        if field in job.request:
            files[name] = _with_local_path(job, field)
    return files


def _with_local_path(job: TrainingJob, field: str) -> dict[str, Any]:
    uploaded = {"TensorBoardOutputConfig": job.tensorboard, "DebugHookConfig": job.debug_hook}.get(field)
    return {**job.request[field], **({"LocalPath": uploaded.local_path} if uploaded else {})}


def channel_config(channel: Channel, *, announce_as_file: bool = False) -> dict[str, str]:
    """One entry of inputdataconfig.json. All but ContentType are always there: AWS's XGBoost indexes them unguarded."""
    mode = channel.input_mode
    if announce_as_file and mode is InputMode.FAST_FILE:
        mode = InputMode.FILE
    distribution = (
        "FullyReplicated" if isinstance(channel.source, FileSystemSource) else str(channel.source.distribution)
    )
    return {
        **({"ContentType": channel.content_type} if channel.content_type is not None else {}),
        "TrainingInputMode": str(mode),
        "S3DistributionType": distribution,
        "RecordWrapperType": str(channel.record_wrapper),
    }


def resource_config(job: TrainingJob, host: HostSpec, *, interface: str) -> dict[str, Any]:
    return {
        "current_host": host.name,
        "current_instance_type": host.instance_type,
        "current_group_name": host.group,
        "hosts": sorted(other.name for other in job.hosts),  # as text: algo-10 comes before algo-2
        "instance_groups": [
            {
                "instance_group_name": group.name,
                "instance_type": group.instance_type,
                "hosts": sorted(other.name for other in job.hosts if other.group == group.name),
            }
            for group in job.instance_groups
        ],
        "network_interface_name": interface,
    }


def environment(job: TrainingJob, *, interface: str) -> dict[str, str]:
    """What SageMaker sets, then what the request asks for, as it is."""
    platform = {
        "TRAINING_JOB_NAME": job.name,
        "TRAINING_JOB_ARN": job.arn,
        "AWS_REGION": job.region,
        "AWS_DEFAULT_REGION": job.region,
        "DMLC_INTERFACE": interface,
    }
    if job.metrics_time_series:
        platform["SAGEMAKER_METRICS_DIRECTORY"] = f"{OPT_ML}/{METRICS}"
    return platform | dict(job.environment)


def manifest_text(key_prefix: str, uris: Sequence[str]) -> str:
    """`<channel>-manifest` as recorded: the key prefix without its bucket, then every URI of the channel."""
    return "\n".join([key_prefix, *uris]) + "\n"
