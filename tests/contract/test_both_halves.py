"""One half of the contract writes, the other reads: optml/contract.py and optml_toolkit/container.py, both ways."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from optml import contract
from optml.collect import failure_reason
from optml.jobdir import HostDir
from optml.request import parse
from optml.script_mode import distribution_named, script_hyperparameters
from optml.spec import LocalOptions, TrainingJob
from optml_toolkit.container import Container, UserError, main
from optml_toolkit.script_mode import job as jobs
from optml_toolkit.script_mode import launchers


def job_of(**more: object) -> TrainingJob:
    source = {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": "s3://bucket/train/"}}
    request = {
        "TrainingJobName": "both",
        "AlgorithmSpecification": {"TrainingImage": "python", "TrainingInputMode": "FastFile"},
        "HyperParameters": {"a": "1", "s": '"x"'},
        "InputDataConfig": [{"ChannelName": "train", "ContentType": "text/csv", "DataSource": source}],
        "ResourceConfig": {"InstanceType": "ml.m5.large", "InstanceCount": 11},
        **more,
    }
    return parse(request, options=LocalOptions(), base_dir=Path("/"))


def test_what_the_platform_writes_the_container_reads(tmp_path: Path) -> None:
    job = job_of(CheckpointConfig={"S3Uri": "s3://bucket/c"})
    contract.write_tree(tmp_path, job, job.hosts[1], interface="eth7")
    container = Container(tmp_path)
    assert container.hyperparameters() == {"a": "1", "s": '"x"'}
    channel = container.channels()["train"]
    assert channel.folder == contract.channel_dir(tmp_path, "train")
    assert (channel.content_type, channel.input_mode, channel.distribution) == (
        "text/csv",
        "FastFile",
        "FullyReplicated",
    )
    resources = container.resources()
    assert resources.current_host == "algo-2"
    assert resources.hosts == tuple(sorted(f"algo-{number}" for number in range(1, 12)))
    assert resources.network_interface == "eth7"
    assert container.checkpoint_dir == contract.inside(tmp_path, "/opt/ml/checkpoints")
    assert container.model_dir == contract.model_dir(tmp_path)
    assert container.code_dir == contract.code_dir(tmp_path)
    assert container.output_data_dir == contract.output_data_dir(tmp_path)
    assert container.model_dir.is_dir()
    assert container.output_data_dir.is_dir()


def test_the_jobs_secret_is_what_the_platform_wrote_for_nobody_else_to_read(tmp_path: Path) -> None:
    job = job_of()
    contract.write_tree(tmp_path, job, job.hosts[0], interface="lo", secret="known to the hosts of a job", slot=3)
    assert Container(tmp_path).job_secret == "known to the hosts of a job"
    assert Container(tmp_path).slot == 3
    assert contract.job_secret_file(tmp_path).stat().st_mode & 0o777 == 0o600


def test_a_job_without_a_secret_has_none(tmp_path: Path) -> None:
    job = job_of()
    contract.write_tree(tmp_path, job, job.hosts[0], interface="lo")
    assert Container(tmp_path).job_secret is None
    assert Container(tmp_path).slot == 0


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("torchrun", jobs.TORCH_DISTRIBUTED),
        ("pytorchddp", jobs.PYTORCH_DDP),
        ("smdistributed", jobs.DATA_PARALLEL),
        ("mpi", jobs.MPI),
        ("multi_worker_mirrored_strategy", jobs.MIRRORED),
        ("parameter_server", jobs.PARAMETER_SERVER),
        ("pytorchxla", jobs.XLA),
    ],
)
def test_a_script_that_the_platform_describes_the_toolkit_understands(tmp_path: Path, name: str, wanted: str) -> None:
    hyperparameters = script_hyperparameters(
        entry_point="train.py",
        source_dir="s3://bucket/sourcedir.tar.gz",
        hyperparameters={"lr": 0.1, "name": "x y"},
        distribution=distribution_named(name),
        processes_per_host=3,
        job_name="both",
        region="eu-west-1",
        instance_type="ml.m5.large",
        base_dir=tmp_path,
    )
    job = job_of(HyperParameters=hyperparameters)
    contract.write_tree(tmp_path, job, job.hosts[0], interface="lo")
    read = jobs.read_job(Container(tmp_path), {})
    assert (read.program, read.submit_directory) == ("train.py", "s3://bucket/sourcedir.tar.gz")
    assert read.hyperparameters == {"lr": 0.1, "name": "x y"}
    assert [each for each in jobs.DISTRIBUTIONS if read.wants(each)] == [wanted]
    assert launchers.processes_per_host(read) == 3
    assert read.master_host == "algo-1"
    assert len(read.distribution_hosts) == 11


def test_without_checkpoints_the_container_has_no_folder_for_them(tmp_path: Path) -> None:
    job = job_of()
    contract.write_tree(tmp_path, job, job.hosts[0], interface="lo")
    assert Container(tmp_path).checkpoint_dir is None


def test_a_tree_made_by_hand_may_leave_out_what_has_a_default(tmp_path: Path) -> None:
    container = Container(tmp_path)
    assert container.hyperparameters() == {}
    assert container.channels() == {}
    assert container.resources().hosts == ("algo-1",)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (UserError("eta must be less"), "AlgorithmError: eta must be less, exit code: 1"),
        (UserError("x\udcff is no file"), "AlgorithmError: x\\udcff is no file, exit code: 1"),
        (ZeroDivisionError("oops"), "AlgorithmError: ZeroDivisionError: oops\n\nTraceback (most recent call last)"),
    ],
)
def test_an_error_in_the_container_is_the_platforms_failure_reason(
    tmp_path: Path, error: Exception, expected: str, capfd: pytest.CaptureFixture[str]
) -> None:
    def train(_container: Container) -> None:
        raise error

    host_dir = HostDir(tmp_path)
    job = job_of()
    contract.write_tree(host_dir.ml, job, job.hosts[0], interface="lo")
    code = main(train, Container(host_dir.ml))
    assert code == 1
    reason = failure_reason({"algo-1": host_dir}, {"algo-1": code}, first="algo-1")
    assert reason is not None
    assert reason.startswith(expected)
    assert len(reason) <= 1024
    assert str(error).encode(errors="backslashreplace").decode() in "".join(capfd.readouterr())


PROGRAM_OF_ANOTHER_USER = """
import os, sys
from pathlib import Path
from optml_toolkit.{module} import main
from optml_toolkit.container import Container
if os.getuid() == 0:
    os.setuid(4321)
container = Container(Path(sys.argv[1]))
sys.exit(main({arguments}container))
"""


@pytest.mark.parametrize(
    ("module", "arguments"), [("container", "lambda _: print('trained'), "), ("script_mode.main", "")]
)
def test_a_user_who_cannot_write_what_training_leaves_is_told_so_in_one_line_at_the_start(
    module: str, arguments: str
) -> None:
    program = PROGRAM_OF_ANOTHER_USER.format(module=module, arguments=arguments)
    with tempfile.TemporaryDirectory() as folder:  # pytest's own may be entered by nobody else
        root = Path(folder)
        root.chmod(0o755)
        for name in ("model", "output"):
            (root / name).mkdir(mode=0o555)
        done = subprocess.run(
            [sys.executable, "-c", program, folder], capture_output=True, text=True, check=False, timeout=60
        )
    uid = os.getuid() or 4321
    assert done.returncode == 1
    assert "Traceback" not in done.stdout + done.stderr
    assert "trained" not in done.stdout
    (told,) = done.stdout.splitlines()
    assert f"{root}/model and {root}/output cannot be written by user {uid}" in told
    assert f"chown -R {uid}" in told


def test_a_failure_file_that_is_there_is_not_overwritten(tmp_path: Path) -> None:
    container = Container(tmp_path)
    container.fail("first")
    container.fail("second")
    assert container.failure_file.read_text() == "first"


def test_a_tree_that_failed_before_can_be_run_again(tmp_path: Path) -> None:
    container = Container(tmp_path)
    for folder in (container.model_dir, container.output_dir):
        folder.mkdir()

    def fail(_: Container) -> None:
        raise UserError("second")

    container.fail("first")
    assert main(fail, container) == 1
    assert container.failure_file.read_text() == "second"
    assert main(lambda _: None, container) == 0
    assert not container.failure_file.exists()


def test_a_configuration_that_is_not_json_is_named(tmp_path: Path) -> None:
    (tmp_path / "input" / "config").mkdir(parents=True)
    (tmp_path / "input" / "config" / "hyperparameters.json").write_text("{")
    with pytest.raises(UserError, match=r"hyperparameters\.json is not JSON"):
        Container(tmp_path).hyperparameters()
