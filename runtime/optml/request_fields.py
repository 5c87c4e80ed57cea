"""Every field of CreateTrainingJob, and what optml does with it. request.py refuses by this table, and docs/fields.md is made of
it; a test compares it with botocore's model. A row covers the fields below it unless they have rows of their own.
"""

from dataclasses import dataclass

HONOURED, EMULATED, REFUSED = "honoured", "emulated", "refused"


@dataclass(frozen=True)
class Field:
    """`note`: how it is emulated, or why it is refused and what to do. `harmless`: values that ask for nothing.

    `warn`: whoever sets it is told.
    """

    path: str
    verdict: str
    note: str = ""
    harmless: tuple[object, ...] = ()
    warn: bool = False


def honoured(*paths: str, note: str = "") -> tuple[Field, ...]:
    return tuple(Field(path, HONOURED, note) for path in paths)


S3_SOURCE = "InputDataConfig[].DataSource.S3DataSource"
FILE_SYSTEM = "InputDataConfig[].DataSource.FileSystemDataSource"

FIELDS: tuple[Field, ...] = (
    *honoured("TrainingJobName"),
    *honoured("HyperParameters"),
    *honoured("AlgorithmSpecification"),
    *honoured(
        "AlgorithmSpecification.TrainingImage", note="A short name, or the ECR URI of an image that optml knows."
    ),
    Field(
        "AlgorithmSpecification.AlgorithmName",
        REFUSED,
        "There are no algorithm resources or Marketplace subscriptions here; name the image in TrainingImage.",
    ),
    *honoured("AlgorithmSpecification.TrainingInputMode"),
    *honoured(
        "AlgorithmSpecification.MetricDefinitions",
        "AlgorithmSpecification.MetricDefinitions[].Name",
    ),
    *honoured(
        "AlgorithmSpecification.MetricDefinitions[].Regex",
        note="An expression that backtracks for too long is switched off, with a warning.",
    ),
    *honoured(
        "AlgorithmSpecification.EnableSageMakerMetricsTimeSeries",
        note="Sets SAGEMAKER_METRICS_DIRECTORY; every value is in the job's metrics.jsonl anyway.",
    ),
    *honoured("AlgorithmSpecification.ContainerEntrypoint", "AlgorithmSpecification.ContainerArguments"),
    Field(
        "AlgorithmSpecification.TrainingImageConfig",
        REFUSED,
        "No image is pulled from a registry here; leave it out.",
    ),
    Field("RoleArn", EMULATED, "Recorded; its account number is in the job's ARN. Nobody assumes it."),
    *honoured(
        "InputDataConfig",
        "InputDataConfig[].ChannelName",
        "InputDataConfig[].DataSource",
        S3_SOURCE,
    ),
    *honoured(f"{S3_SOURCE}.S3DataType", note="All but Converse, which serverless jobs use; it is refused."),
    *honoured(f"{S3_SOURCE}.S3Uri", note="Also file:// and paths of this machine."),
    *honoured(
        f"{S3_SOURCE}.S3DataDistributionType",
        note="ShardedByS3Key: the i-th object in key order goes to host i modulo the number of hosts (AWS does not say).",
    ),
    *honoured(f"{S3_SOURCE}.AttributeNames", f"{S3_SOURCE}.InstanceGroupNames"),
    Field(
        f"{S3_SOURCE}.ModelAccessConfig",
        REFUSED,
        "Gated JumpStart models are not reached from here; give the model's files as a channel.",
    ),
    Field(
        f"{S3_SOURCE}.HubAccessConfig",
        REFUSED,
        "SageMaker hubs are not reached from here; give the model's files as a channel.",
    ),
    Field(FILE_SYSTEM, EMULATED, "DirectoryPath is a folder of this machine, where the file system is mounted."),
    Field(
        "InputDataConfig[].DataSource.DatasetSource",
        REFUSED,
        "SageMaker datasets are not reached from here; give the files as an S3DataSource.",
    ),
    *honoured(
        "InputDataConfig[].ContentType",
        "InputDataConfig[].CompressionType",
        "InputDataConfig[].RecordWrapperType",
    ),
    *honoured(
        "InputDataConfig[].InputMode",
        note="FastFile from s3:// is fetched before the start, then mounted read-only; from a folder it is mounted at once.",
    ),
    *honoured("InputDataConfig[].ShuffleConfig"),
    *honoured(
        "InputDataConfig[].ShuffleConfig.Seed",
        note="In Pipe mode a new order each epoch; in the other modes it decides which host gets what of ShardedByS3Key.",
    ),
    *honoured("OutputDataConfig"),
    *honoured("OutputDataConfig.S3OutputPath", note="Also file:// and paths of this machine."),
    Field("OutputDataConfig.KmsKeyId", EMULATED, "Recorded; outputs are not encrypted by optml.", warn=True),
    *honoured("OutputDataConfig.CompressionType"),
    *honoured("ResourceConfig", "ResourceConfig.InstanceCount", "ResourceConfig.InstanceGroups"),
    *honoured(
        "ResourceConfig.InstanceGroups[].InstanceType",
        "ResourceConfig.InstanceGroups[].InstanceCount",
        "ResourceConfig.InstanceGroups[].InstanceGroupName",
    ),
    Field(
        "ResourceConfig.InstanceType",
        EMULATED,
        "Shown to the container. GPU types need as many GPUs here, or --allow-cpu; processors are all of this machine's, split "
        "between the hosts, unless --cpus says otherwise.",
    ),
    Field("ResourceConfig.VolumeSizeInGB", EMULATED, "Recorded; a job has the room that this machine's disk has."),
    Field("ResourceConfig.VolumeKmsKeyId", EMULATED, "Recorded; disks are not encrypted by optml.", warn=True),
    Field(
        "ResourceConfig.KeepAlivePeriodInSeconds",
        EMULATED,
        "Recorded; no machine is kept warm, and none needs to be.",
        harmless=(0,),
    ),
    Field("ResourceConfig.TrainingPlanArn", REFUSED, "There are no training plans here; leave it out."),
    Field("ResourceConfig.InstancePlacementConfig", REFUSED, "There are no UltraServers here; leave it out."),
    Field(
        "ResourceConfig.InstancePreferences",
        REFUSED,
        "This machine is the only one there is to choose; give InstanceType and InstanceCount.",
    ),
    Field(
        "ResourceConfig.SelectedInstanceType",
        REFUSED,
        "Only DescribeTrainingJob has it, and AWS does not take it either; give InstanceType.",
    ),
    Field(
        "ResourceConfig.SelectedInstanceCount",
        REFUSED,
        "Only DescribeTrainingJob has it, and AWS does not take it either; give InstanceCount.",
    ),
    Field("VpcConfig", EMULATED, "Recorded; the job has this machine's network.", warn=True),
    *honoured("StoppingCondition"),
    *honoured(
        "StoppingCondition.MaxRuntimeInSeconds",
        note="Exact; counts the training of all attempts together, without what lies between.",
    ),
    *honoured("StoppingCondition.MaxWaitTimeInSeconds", note="Counts from the job's creation."),
    Field("StoppingCondition.MaxPendingTimeInSeconds", EMULATED, "Recorded; nothing is ever pending here."),
    Field("Tags", EMULATED, "Recorded in the job's request and in trainingjobconfig.json."),
    *honoured("EnableNetworkIsolation", note="Where the backend can (optml doctor); refused elsewhere."),
    Field(
        "EnableInterContainerTrafficEncryption",
        EMULATED,
        "Recorded; traffic between hosts does not leave this machine.",
        harmless=(False,),
    ),
    Field(
        "EnableManagedSpotTraining",
        EMULATED,
        "Capacity is always there and is not taken away, unless a plan of interruptions says so (--every and the like; see "
        "docs/drills.md). Time without an instance is not billed.",
        harmless=(False,),
    ),
    *honoured("CheckpointConfig", "CheckpointConfig.S3Uri"),
    *honoured(
        "CheckpointConfig.LocalPath",
        note="Below /opt/ml, or elsewhere but in a folder of the system. Process backend: elsewhere only where a folder is.",
    ),
    Field(
        "DebugHookConfig",
        EMULATED,
        "Its file is written and its folder uploaded to <S3OutputPath>/<job>/debug-output; hooks are the container's business.",
    ),
    Field(
        "DebugRuleConfigurations",
        REFUSED,
        "Rule containers are not run here. In the SageMaker SDK: rules=[] or debugger_hook_config=False.",
        harmless=([],),
    ),
    Field(
        "TensorBoardOutputConfig",
        EMULATED,
        "The folder is there and is uploaded to <S3OutputPath>/<job>/tensorboard-output while the job runs.",
    ),
    Field("ExperimentConfig", EMULATED, "Recorded; there are no experiments to add the job to.", warn=True),
    Field(
        "ProfilerConfig",
        EMULATED,
        "Its file is written; nothing profiles the job.",
        harmless=({"DisableProfiler": True},),
        warn=True,
    ),
    Field(
        "ProfilerRuleConfigurations",
        REFUSED,
        "Rule containers are not run here. In the SageMaker SDK: disable_profiler=True.",
        harmless=([],),
    ),
    *honoured("Environment"),
    *honoured("RetryStrategy", "RetryStrategy.MaximumRetryAttempts", note="After internal errors only, as in AWS."),
    Field(
        "RemoteDebugConfig",
        REFUSED,
        "There is no Session Manager here; the host's processes are this machine's, so attach a debugger to them.",
        harmless=({"EnableRemoteDebug": False}, {}),
    ),
    Field(
        "InfraCheckConfig",
        EMULATED,
        "Recorded; there is no infrastructure to check.",
        harmless=({"EnableInfraCheck": False},),
    ),
    Field(
        "SessionChainingConfig",
        REFUSED,
        "No role is assumed here, so no session tags are passed on; leave it out.",
        harmless=({"EnableSessionTagChaining": False}, {}),
    ),
    Field(
        "ServerlessJobConfig",
        REFUSED,
        "Serverless customisation jobs run in AWS only; give AlgorithmSpecification and ResourceConfig instead.",
    ),
    Field("MlflowConfig", REFUSED, "Managed MLflow is not reached from here; log to your own tracking server."),
    Field(
        "ModelPackageConfig",
        REFUSED,
        "The model registry is not reached from here; leave it out, and register the model afterwards.",
    ),
)

# Where AWS wants an s3:// URI, a file:// URI or a path of this machine does as well.
URI_FIELDS = frozenset(
    {
        f"{S3_SOURCE}.S3Uri",
        "OutputDataConfig.S3OutputPath",
        "CheckpointConfig.S3Uri",
        "DebugHookConfig.S3OutputPath",
        "TensorBoardOutputConfig.S3OutputPath",
        "ProfilerConfig.S3OutputPath",
    }
)


BY_PATH = {field.path: field for field in FIELDS}


def field_of(path: str) -> Field | None:
    """The row of a path, or the nearest one above it that is not merely honoured (and so covers what is below).

    What is in a list belongs to the list. None: the table says nothing, so botocore knows a field that optml does not.
    """
    path = path.removesuffix("[]")
    if path in BY_PATH:
        return BY_PATH[path]
    while "." in path:
        path = path.rpartition(".")[0].removesuffix("[]")
        if path in BY_PATH:
            return BY_PATH[path] if BY_PATH[path].verdict != HONOURED else None
    return None


def as_markdown() -> str:
    """docs/fields.md."""
    rows = "\n".join(f"| `{field.path}` | {field.verdict} | {field.note} |" for field in FIELDS)
    return f"""# The fields of CreateTrainingJob

Made by `scripts/generate-docs` from `runtime/optml/request_fields.py`, the table that requests are checked by. *Honoured*:
means here what it means in AWS. *Emulated*: taken, with the difference named. *Refused*: an error that names the field.
Nothing is accepted and ignored. A row covers the fields below it unless they have rows of their own.

A request is validated against botocore's service model, in AWS's words. What AWS would not take and optml does:

* a path or a `file://` URI wherever AWS wants an `s3://` URI (and of a path, any length);
* no TrainingJobName (made of the image and the time), RoleArn, ResourceConfig (one `ml.m5.large`), StoppingCondition (one day),
  OutputDataConfig (`$OPTML_HOME/output`) or TrainingInputMode (`File`);
* no TrainingImage if there is a ContainerEntrypoint (`python`).

What is more than a field can say is checked too: optml refuses what AWS refuses, and what cannot be had on one machine. A field
that botocore knows and this table does not is refused.

| field | verdict | how |
|---|---|---|
{rows}
"""
