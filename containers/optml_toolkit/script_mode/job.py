"""What script mode was asked for: /opt/ml/input/config and the hyperparameters whose names begin with sagemaker_."""

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from optml_toolkit.container import Container, UserError

PREFIX = "sagemaker_"
# Taken by the toolkit itself; the other sagemaker_* are told to the script in SM_FRAMEWORK_PARAMS. From AWS's params.py.
PROGRAM = "sagemaker_program"
SUBMIT_DIRECTORY = "sagemaker_submit_directory"
LOG_LEVEL = "sagemaker_container_log_level"
JOB_NAME = "sagemaker_job_name"
REGION = "sagemaker_region"
S3_OUTPUT = "sagemaker_s3_output"
CLOUDWATCH = "sagemaker_enable_cloudwatch_metrics"
TOOLKIT_PARAMETERS = frozenset(
    (
        PROGRAM,
        SUBMIT_DIRECTORY,
        LOG_LEVEL,
        JOB_NAME,
        REGION,
        S3_OUTPUT,
        CLOUDWATCH,
        "default_user_module_name",
        "_tuning_objective_metric",
    )
)
# What `distribution=` of the SageMaker SDK becomes.
MPI = "sagemaker_mpi_enabled"
PYTORCH_DDP = "sagemaker_pytorch_ddp_enabled"
TORCH_DISTRIBUTED = "sagemaker_torch_distributed_enabled"
DATA_PARALLEL = "sagemaker_distributed_dataparallel_enabled"
XLA = "sagemaker_pytorch_xla_multi_worker_enabled"
PARAMETER_SERVER = "sagemaker_parameter_server_enabled"
MIRRORED = "sagemaker_multi_worker_mirrored_strategy_enabled"
DISTRIBUTIONS = (MPI, PYTORCH_DDP, TORCH_DISTRIBUTED, DATA_PARALLEL, XLA, PARAMETER_SERVER, MIRRORED)

FRAMEWORK_MODULE = (
    "SAGEMAKER_TRAINING_MODULE"  # set by the image, as in AWS's: sagemaker_pytorch_container.training:main
)
FRAMEWORKS = {
    "sagemaker_pytorch_container": "pytorch",
    "sagemaker_tensorflow_container": "tensorflow",
    "sagemaker_sklearn_container": "scikit-learn",
    "sagemaker_xgboost_container": "xgboost",
}


@dataclass(frozen=True, kw_only=True)
class ScriptJob:
    """One host's part of a script-mode job."""

    container: Container
    program: str  # as given: train.py, run.sh, package.module
    submit_directory: str | None  # where the code is: s3://, file://, a path
    hyperparameters: Mapping[str, Any]  # the script's own, parsed
    toolkit_parameters: Mapping[str, Any]
    framework_parameters: Mapping[str, Any]  # the other sagemaker_*
    resource_config: Mapping[str, Any]
    input_data_config: Mapping[str, Any]
    framework_module: str | None
    training_job_name: str | None

    @property
    def framework(self) -> str | None:
        return FRAMEWORKS.get((self.framework_module or "").partition(".")[0])

    @property
    def log_level(self) -> Any:
        return self.toolkit_parameters.get(LOG_LEVEL, logging.INFO)

    @property
    def hosts(self) -> list[str]:
        return list(self.resource_config["hosts"])

    @property
    def current_host(self) -> str:
        return str(self.resource_config["current_host"])

    @property
    def network_interface(self) -> str:
        return str(self.resource_config.get("network_interface_name", "eth0"))

    @property
    def instance_type(self) -> str:
        return str(self.resource_config.get("current_instance_type", "local"))

    @property
    def current_group(self) -> str:
        return str(self.resource_config.get("current_group_name", "homogeneousCluster"))

    @property
    def groups(self) -> dict[str, Mapping[str, Any]]:
        return {group["instance_group_name"]: group for group in self.resource_config.get("instance_groups", [])}

    @property
    def current_group_hosts(self) -> list[str]:
        return list(self.groups.get(self.current_group, {}).get("hosts", []))

    @property
    def distribution_groups(self) -> list[str]:
        """The instance groups that a distribution is for: those named, else this host's if there is a distribution at all."""
        named = self.framework_parameters.get("sagemaker_distribution_instance_groups")
        if named is not None:
            return list(named)
        return [self.current_group] if any(self.framework_parameters.get(name) for name in DISTRIBUTIONS) else []

    @property
    def distribution_hosts(self) -> list[str]:
        if not self.groups:
            return self.hosts
        return [
            host for name, group in self.groups.items() if name in self.distribution_groups for host in group["hosts"]
        ]

    @property
    def master_host(self) -> str:
        return (self.distribution_hosts or self.hosts)[0]

    def wants(self, distribution: str) -> bool:
        """Whether the job asks for a distribution and this host takes part in it."""
        return bool(self.framework_parameters.get(distribution)) and self.current_group in self.distribution_groups


def names_a_program(container: Container) -> bool:
    """Whether a job is for script mode at all. A file that cannot be read is left to whoever reads it next."""
    if os.environ.get(PROGRAM.upper()):
        return True
    try:
        return PROGRAM in container.hyperparameters()
    except UserError:
        return False


def read_job(container: Container, environment: Mapping[str, str] = os.environ) -> ScriptJob:
    """UserError, naming the hyperparameter, if it is no script-mode job."""
    given = {name: parsed(value) for name, value in container.hyperparameters().items()}
    toolkit = {name: value for name, value in given.items() if name in TOOLKIT_PARAMETERS}
    framework = {name: value for name, value in given.items() if name.startswith(PREFIX) and name not in toolkit}
    program = environment.get(PROGRAM.upper()) or toolkit.get(PROGRAM)
    if not isinstance(program, str) or not program.strip():
        raise UserError(
            f"HyperParameters.{PROGRAM} must name the script to run, for example train.py; "
            + ("it is missing" if program is None else f"it is {program!r}")
        )
    submit = toolkit.get(SUBMIT_DIRECTORY)
    if submit is not None and not isinstance(submit, str):
        raise UserError(f"HyperParameters.{SUBMIT_DIRECTORY} must be a URI or a path, got {submit!r}")
    s3_output = toolkit.get(S3_OUTPUT)
    if s3_output and not str(s3_output).startswith("file://"):
        raise UserError(
            f"HyperParameters.{S3_OUTPUT}: intermediate outputs are not uploaded here; leave it out and write to "
            "/opt/ml/checkpoints (CheckpointConfig), which is uploaded while the job runs"
        )
    resources = {"current_host": "algo-1", "hosts": ["algo-1"], **container.config("resourceconfig.json", {})}
    return ScriptJob(
        container=container,
        program=program,
        submit_directory=submit,
        hyperparameters={name: value for name, value in given.items() if name not in toolkit and name not in framework},
        toolkit_parameters=toolkit,
        framework_parameters=framework,
        resource_config=resources,
        input_data_config=container.config("inputdataconfig.json", {}),
        framework_module=environment.get(FRAMEWORK_MODULE) or None,
        training_job_name=environment.get("TRAINING_JOB_NAME"),
    )


def parsed(value: str) -> Any:
    """The SDK writes every hyperparameter as JSON; what is none is a plain string. As in AWS's toolkit."""
    try:
        return json.loads(value)
    except (ValueError, TypeError):
        return value
