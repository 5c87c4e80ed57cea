"""Script mode through real jobs: requests as the SDK sends them, several hosts, signals, the examples."""

import importlib.util
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from tests.harness import Done, capabilities, run
from tests.hosts import PATIENCE_SECONDS, eventually
from tests.s3 import S3
from tests.script_mode import source

import optml
from optml.backends import backend_named
from optml.errors import JobFailed, UserError

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "scripts" / "examples"
OPTML = str(Path(sys.executable).parent / "optml")
PYTORCH_URI = "763104351884.dkr.ecr.us-east-1.amazonaws.com/pytorch-training:2.1.0-cpu-py310-ubuntu20.04-sagemaker"
SKLEARN_URI = "683313688378.dkr.ecr.us-east-1.amazonaws.com/sagemaker-scikit-learn:1.2-1-cpu-py3"

needs_torch = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="needs pip install 'optml[pytorch]'")

LOOK = """
import json, os, sys
seen = {"environment": dict(os.environ), "argv": sys.argv, "files": sorted(os.listdir())}
host = os.environ["SM_CURRENT_HOST"]
with open(os.path.join(os.environ["SM_OUTPUT_DATA_DIR"], f"{host}.json"), "w") as file:
    json.dump(seen, file)
"""


def train(tmp_path: Path, files: dict[str, str] | None = None, /, **shortcuts: Any) -> Done:
    """A script as a job of the scikit-learn image, which every test environment has."""
    arguments: dict[str, Any] = {"image": "scikit-learn", "entry_point": "train.py", "entrypoint": None} | shortcuts
    if files is not None:
        arguments["source_dir"] = source(tmp_path / "src", files)
    return run(tmp_path, **arguments)


# The request.


def test_the_request_is_what_the_sdk_would_send(tmp_path: Path) -> None:
    """SageMaker Python SDK 2: Framework._json_encode_hyperparameters, and what `distribution` becomes."""
    from optml.loading import request_from_shortcuts

    request = request_from_shortcuts(
        {"TrainingJobName": "job-1"},
        base_dir=tmp_path,
        image=PYTORCH_URI,
        entry_point="train.py",
        source_dir="s3://bucket/job-1/source/sourcedir.tar.gz",
        hyperparameters={"lr": 0.1, "name": "x y", "layers": [1, 2], "flag": True, "nothing": None, "number": "5"},
        distribution={"torch_distributed": {"enabled": True}},
        instance_type="ml.c5.xlarge",
        instance_count=2,
    )
    assert request["HyperParameters"] == {
        "lr": "0.1",
        "name": '"x y"',
        "layers": "[1, 2]",
        "flag": "true",
        "nothing": "null",
        "number": '"5"',
        "sagemaker_torch_distributed_enabled": "true",
        "sagemaker_instance_type": '"ml.c5.xlarge"',
        "sagemaker_submit_directory": '"s3://bucket/job-1/source/sourcedir.tar.gz"',
        "sagemaker_program": '"train.py"',
        "sagemaker_container_log_level": "20",
        "sagemaker_job_name": '"job-1"',
        "sagemaker_region": '"us-east-1"',
    }


@pytest.mark.parametrize(
    ("distribution", "expected"),
    [
        ({"torch_distributed": {"enabled": False}}, {}),
        ("smdistributed", {
            "sagemaker_distributed_dataparallel_enabled": True,
            "sagemaker_distributed_dataparallel_custom_mpi_options": "", "sagemaker_instance_type": "ml.c5.xlarge",
        }),
        ({"mpi": {"enabled": True, "processes_per_host": 4, "custom_mpi_options": "--verbose"}}, {
            "sagemaker_mpi_enabled": True, "sagemaker_mpi_num_of_processes_per_host": 4,
            "sagemaker_mpi_custom_mpi_options": "--verbose",
        }),
        ({"pytorchddp": {"enabled": True}}, {
            "sagemaker_pytorch_ddp_enabled": True, "sagemaker_instance_type": "ml.c5.xlarge",
        }),
        ({"multi_worker_mirrored_strategy": {"enabled": True, "instance_groups": ["g"]}}, {
            "sagemaker_multi_worker_mirrored_strategy_enabled": True, "sagemaker_distribution_instance_groups": ["g"],
        }),
        ({"smdistributed": {"modelparallel": {"enabled": True, "parameters": {"partitions": 2}}}}, {
            "mp_parameters": {"partitions": 2}, "sagemaker_instance_type": "ml.c5.xlarge",
        }),
    ],
)  # fmt: skip
def test_a_distribution_becomes_hyperparameters(distribution: Any, expected: dict[str, Any]) -> None:
    from optml.script_mode import distribution_hyperparameters, distribution_named

    assert distribution_hyperparameters(distribution_named(distribution), instance_type="ml.c5.xlarge") == expected


def test_a_dry_run_prints_a_request_that_aws_would_take(tmp_path: Path) -> None:
    """botocore's own validation; nothing of it is of this machine."""
    import boto3

    arguments = [
        "--image",
        PYTORCH_URI,
        "--role",
        "arn:aws:iam::123456789012:role/SageMaker",
        "--output",
        "s3://bucket/out",
    ]
    arguments += [
        "--entry-point",
        "train.py",
        "--source-dir",
        "s3://bucket/sourcedir.tar.gz",
        "--channel",
        "train=s3://bucket/train/",
    ]
    arguments += ["--instance-count", "2", "--distribution", "torchrun", "-p", "lr=0.1", "-p", "name=x", "--dry-run"]
    if importlib.util.find_spec("torch") is None:
        pytest.skip("needs pip install 'optml[pytorch]'")
    done = subprocess.run([OPTML, "train", *arguments], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)
    assert printed["only_here"] == []
    assert printed["request"]["HyperParameters"]["lr"] == "0.1"
    assert printed["request"]["HyperParameters"]["name"] == '"x"'
    client = boto3.client("sagemaker", region_name="us-east-1", aws_access_key_id="x", aws_secret_access_key="x")
    shape = client.meta.service_model.operation_model("CreateTrainingJob").input_shape
    from botocore.validate import ParamValidator

    report = ParamValidator().validate(printed["request"], shape)
    assert not report.has_errors(), report.generate_report()


def test_a_dry_run_says_what_is_of_this_machine_only(tmp_path: Path) -> None:
    source(tmp_path, {"src/train.py": ""})
    arguments = ["--image", "scikit-learn", "--entry-point", "train.py", "--source-dir", "src", "--dry-run"]
    done = subprocess.run([OPTML, "train", *arguments], capture_output=True, text=True, check=True, cwd=tmp_path)
    printed = json.loads(done.stdout)
    assert json.loads(printed["request"]["HyperParameters"]["sagemaker_submit_directory"]) == f"file://{tmp_path}/src"
    told = " ".join(printed["only_here"])
    for field in ("TrainingImage scikit-learn", "sagemaker_submit_directory", "OutputDataConfig.S3OutputPath"):
        assert field in told


@pytest.mark.parametrize(
    ("shortcuts", "told"),
    [
        ({"entry_point": "no.py"}, "the entry point 'no.py' is not in the source folder"),
        ({"source_dir": "/no/such/folder"}, "the source folder '/no/such/folder' cannot be found"),
        ({"source_dir": None}, "the entry point 'train.py' is no file of"),
        ({"image": None}, "name the image that the script is for"),
        ({"distribution": "torchrunn"}, "did you mean 'torchrun'?"),
        ({"distribution": {"torch": {}}}, "distribution: there is no 'torch'"),
        (
            {"distribution": {"mpi": {"enabled": True, "processes": 2}}},
            "distribution 'mpi': there is no option 'processes'",
        ),
        ({"entry_point": None, "distribution": "torchrun"}, "goes with entry_point"),
        ({"image": "python"}, "the image 'python' runs none"),
        ({"entrypoint": ["python", "x.py"]}, "'train.py' and the program 'python x.py' are two things to run"),
        (
            {"strict_versions": True, "image": SKLEARN_URI},
            r"scikit-learn 1\.\d+\.\d+ instead of 1.2.*leave out --strict-versions",
        ),
    ],
)
def test_what_cannot_be_run_is_refused_before_the_job(tmp_path: Path, shortcuts: dict[str, Any], told: str) -> None:
    arguments = {
        "image": "scikit-learn",
        "entry_point": "train.py",
        "source_dir": str(source(tmp_path / "src", {"train.py": ""})),
    }
    with pytest.raises(UserError, match=told):
        optml.train(**(arguments | shortcuts))
    assert optml.list_jobs() == []


def test_an_image_that_runs_scripts_wants_one() -> None:
    with pytest.raises(UserError, match=r"the image 'scikit-learn' runs a script, and none is named.*--entry-point"):
        optml.train(image="scikit-learn")


# Jobs.


def test_a_script_gets_exact_arguments_and_leaves_the_callers_code_as_it_is(tmp_path: Path) -> None:
    text = "x; echo INJECTED > injected"
    files = {"train.py": LOOK + "open('mine', 'w').close()\n", "data/words.txt": "a"}
    done = train(tmp_path, files, hyperparameters={"text": text, "layers": [1, 2]}, instance_count=1)
    saw = done.saw()
    assert saw["argv"] == ["train.py", "--layers", "[1, 2]", "--text", text]
    assert saw["files"] == ["data", "train.py"]
    assert saw["environment"]["SM_FRAMEWORK_MODULE"] == "sagemaker_sklearn_container.training:main"
    assert saw["environment"]["SAGEMAKER_JOB_NAME"] == done.job.name
    assert sorted(path.name for path in (tmp_path / "src").iterdir()) == ["data", "train.py"]


def test_a_request_of_the_sdks_with_code_in_s3_trains(tmp_path: Path, s3: S3) -> None:
    """contract C75: sourcedir.tar.gz, JSON hyperparameters, the URI of a framework image."""
    bucket = s3.new_bucket()
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        info = tarfile.TarInfo("train.py")
        info.size = len(LOOK)
        tar.addfile(info, io.BytesIO(LOOK.encode()))
    s3.client.put_object(Bucket=bucket, Key="job/source/sourcedir.tar.gz", Body=archive.getvalue())
    request = {
        "AlgorithmSpecification": {"TrainingImage": SKLEARN_URI, "TrainingInputMode": "File"},
        "HyperParameters": {
            "sagemaker_submit_directory": json.dumps(f"s3://{bucket}/job/source/sourcedir.tar.gz"),
            "sagemaker_program": '"train.py"',
            "sagemaker_container_log_level": "20",
            "sagemaker_job_name": '"from-the-sdk"',
            "sagemaker_region": '"us-east-1"',
            "epochs": "3",
        },
    }
    done = run(tmp_path, request=request, image=None, entrypoint=None, name="from-the-sdk")
    saw = done.saw()
    assert saw["argv"] == ["train.py", "--epochs", "3"]
    assert saw["environment"]["SM_MODULE_DIR"] == f"s3://{bucket}/job/source/sourcedir.tar.gz"


@pytest.mark.parametrize("kind", ["tarball", "file"])
def test_code_of_this_machine_may_be_a_tarball_or_a_file(tmp_path: Path, kind: str) -> None:
    folder = source(tmp_path / "src", {"train.py": LOOK, "other.py": ""})
    if kind == "file":
        saw = train(tmp_path, entry_point=str(folder / "train.py")).saw()
        assert saw["files"] == ["train.py"]
        return
    with tarfile.open(tmp_path / "code.tgz", "w:gz") as tar:
        tar.add(folder, arcname=".")
    saw = train(tmp_path, source_dir=str(tmp_path / "code.tgz")).saw()
    assert saw["files"] == ["other.py", "train.py"]


@pytest.mark.parametrize("name", ["../evil.py", "/evil.py"])
def test_a_tarball_of_this_machine_that_would_leave_its_folder_fails_the_job(tmp_path: Path, name: str) -> None:
    with tarfile.open(tmp_path / "code.tgz", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo(name), io.BytesIO(b""))
    done = train(tmp_path, source_dir=str(tmp_path / "code.tgz"))
    assert done.reason.startswith("ClientError: HyperParameters.sagemaker_submit_directory: ")
    assert repr(name) in done.reason


def test_a_tarball_with_a_file_and_a_folder_of_one_name_fails_the_job_and_is_told_so(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "code.tgz", "w:gz") as tar:
        for name in ("train.py", "a", "a/b"):
            tar.addfile(tarfile.TarInfo(name), io.BytesIO(b""))
    done = train(tmp_path, source_dir=str(tmp_path / "code.tgz"))
    assert done.reason.startswith("ClientError: HyperParameters.sagemaker_submit_directory: ")
    assert "has the entry 'a/b', which cannot be unpacked (it lies below 'a', which is a file" in done.reason


def test_code_that_is_copied_keeps_its_links_and_is_not_followed_in_circles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPTML_NAMESPACES", "off")
    look = "import os; print('is', {name: os.path.islink(name) for name in sorted(os.listdir())}); import lib.util"
    folder = source(tmp_path / "src", {"train.py": look, "lib/util.py": "print('util')"})
    source(tmp_path / "shared", {"data.txt": "x"})
    (folder / "self").symlink_to(".")
    (folder / "lib" / "up").symlink_to(folder, target_is_directory=True)
    (folder / "nowhere").symlink_to("not-there")
    (folder / "shared").symlink_to(tmp_path / "shared", target_is_directory=True)
    done = train(tmp_path, source_dir=str(folder))
    assert "is {'lib': False, 'self': True, 'shared': False, 'train.py': False}\nutil\n" in done.log
    (tmp_path / "shared" / "back").symlink_to(folder, target_is_directory=True)
    circle = train(tmp_path / "again", source_dir=str(folder))
    assert circle.reason.startswith("ClientError: HyperParameters.sagemaker_submit_directory: links lead in a circle")
    assert "/src/shared/back" in circle.reason


def test_without_namespaces_code_is_copied_and_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPTML_NAMESPACES", "off")
    done = train(tmp_path, {"train.py": LOOK + "open('mine', 'w').close()\n"}, hyperparameters={"lr": 1})
    assert done.saw()["argv"] == ["train.py", "--lr", "1"]
    assert done.saw()["environment"]["SM_MODEL_DIR"].endswith("/ml/model")
    assert [path.name for path in (tmp_path / "src").iterdir()] == ["train.py"]


def test_each_host_writes_to_code_of_its_own(tmp_path: Path) -> None:
    code = (
        LOOK + "open(host, 'w').close()\nimport time; time.sleep(0.5); print('has', sorted(os.listdir()), flush=True)\n"
    )
    done = train(tmp_path, {"train.py": code}, instance_count=2)
    assert "has ['algo-1', 'train.py']" in done.log
    assert "has ['algo-2', 'train.py']" in done.log
    assert json.loads(done.saw("algo-2")["environment"]["SM_HOSTS"]) == ["algo-1", "algo-2"]


def test_the_reason_begins_with_the_users_exception_and_keeps_the_exit_code(tmp_path: Path) -> None:
    done = train(tmp_path, {"train.py": "def go():\n    raise ValueError('learning rate 0')\ngo()\n"})
    assert done.reason.startswith("AlgorithmError: ValueError: learning rate 0 (train.py, line 2)\n")
    assert done.reason.endswith(", exit code: 1")
    assert 'File "/opt/ml/code/train.py", line 3' in done.log or not capabilities().own_opt_ml
    left = train(tmp_path, {"train.py": "raise SystemExit(3)"})
    assert left.reason.startswith("AlgorithmError: train.py ended with exit code 3")
    assert left.reason.endswith(", exit code: 3")


def test_a_second_job_with_the_same_requirements_installs_nothing(tmp_path: Path) -> None:
    from tests.containers.test_script_mode_requirements import WHEEL, make_wheel

    code = "import tiny_optml_test; print('value', tiny_optml_test.VALUE)"
    source(tmp_path / "src", {"train.py": code, "requirements.txt": f"./{WHEEL}\n"})
    make_wheel(tmp_path / "src")
    logs = [train(tmp_path, source_dir=str(tmp_path / "src")).log for _ in range(2)]
    assert all("value 1" in log for log in logs), logs
    assert ["pip install" in log for log in logs] == [True, False]


def test_the_versions_are_told_once(tmp_path: Path) -> None:
    folder = source(tmp_path / "src", {"train.py": "print('ran')"})
    arguments = [
        "--image",
        SKLEARN_URI,
        "--entry-point",
        "train.py",
        "--source-dir",
        str(folder),
        "--output",
        str(tmp_path),
    ]
    done = subprocess.run([OPTML, "train", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("is run by what is installed here: scikit-learn") == 1
    assert "algo-1 | ran" in done.stdout


def test_a_job_that_goes_on_by_itself_finds_its_code(tmp_path: Path) -> None:
    folder = source(tmp_path / "src", {"train.py": LOOK})
    job = optml.train(
        image="scikit-learn", entry_point="train.py", source_dir=folder, output=tmp_path / "out", wait=False
    )
    job.wait()
    assert job.status == "Completed", job.describe()
    with tarfile.open(tmp_path / "out" / job.name / "output" / "output.tar.gz") as tar:
        assert tar.getnames() == ["algo-1.json"]


# Stopping.


def stop_when(name: str, text: str, *, times: int = 1) -> threading.Thread:
    """Stops the job when its log has the text so many times."""

    def wait_and_stop() -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < deadline:
            try:
                job = optml.find(name)
                log = "".join(f"{line}\n" for _host, lines in job.logs() for line in lines)
            except UserError:
                log = ""
            if log.count(text) >= times:
                break
            time.sleep(0.05)
        optml.find(name).stop()

    thread = threading.Thread(target=wait_and_stop)
    thread.start()
    return thread


SAVES = r"""
import os, signal, sys, time
rank = os.environ.get("RANK", "0")
def told(number, frame):
    os.write(1, f"told {rank}\n".encode())
    time.sleep(3)
    open(os.path.join(os.environ["SM_MODEL_DIR"], f"saved-{rank}"), "w").close()
    sys.exit(0)
signal.signal(signal.SIGTERM, told)
os.write(1, b"BEGUN\n")
while True:
    time.sleep(0.05)
"""


@pytest.mark.parametrize("entry_point", ["train.py", "run.sh"])
def test_a_stopped_script_has_its_grace_to_save(tmp_path: Path, entry_point: str) -> None:
    files = {"train.py": SAVES, "run.sh": "python train.py"}
    stopper = stop_when("stopped", "BEGUN")
    done = train(tmp_path, files, entry_point=entry_point, name="stopped", grace_seconds=30.0)
    stopper.join()
    assert done.describe["TrainingJobStatus"] == "Stopped"
    assert "saved-0" in done.model
    assert done.log.count("told 0") == 1


@needs_torch
@pytest.mark.slow
def test_under_torchrun_the_grace_is_the_jobs_own(tmp_path: Path) -> None:
    """Longer than torchrun's 30 s; and a rank that ignores the signal is killed when it is over, not before."""
    files = {"train.py": SAVES.replace("time.sleep(3)", "time.sleep(33 if rank == '0' else 1000)")}
    stopper = stop_when("stopped", "BEGUN", times=2)
    began = time.monotonic()
    done = train(
        tmp_path,
        files,
        image="pytorch",
        distribution="torchrun",
        processes_per_host=2,
        name="stopped",
        grace_seconds=45.0,
    )
    stopper.join()
    assert done.describe["TrainingJobStatus"] == "Stopped"
    assert list(done.model) == ["saved-0"]
    assert time.monotonic() - began > 45


# The examples.


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    subprocess.run([sys.executable, EXAMPLES / "make_data.py", folder], check=True, capture_output=True)
    return folder


def channels(data: Path) -> dict[str, str]:
    return {name: f"{data / name}/" for name in ("train", "validation")}


def metric(done: Done) -> float:
    return float(done.describe["FinalMetricDataList"][0]["Value"])


def test_the_scikit_learn_example_trains(tmp_path: Path, data: Path) -> None:
    done = train(
        tmp_path,
        source_dir=EXAMPLES / "scikit-learn",
        channels=channels(data),
        hyperparameters={"n-estimators": 20},
        metrics={"accuracy": "accuracy=([0-9.]+)"},
    )
    assert done.failure is None, done.log
    assert metric(done) > 0.9
    assert "model.joblib" in done.model


def test_the_xgboost_example_trains_in_framework_mode(tmp_path: Path, data: Path) -> None:
    done = train(
        tmp_path,
        image="xgboost",
        source_dir=EXAMPLES / "xgboost-script",
        channels=channels(data),
        hyperparameters={"max_depth": 3},
        metrics={"logloss": "validation-logloss:([0-9.]+)"},
    )
    assert done.failure is None, done.log
    assert metric(done) < 0.3
    assert list(done.model) == ["model.ubj"]
    assert len(done.describe["FinalMetricDataList"]) == 1, "the built-in algorithm's own metrics are not a script's"


def test_the_shell_example_trains(tmp_path: Path, data: Path) -> None:
    done = train(
        tmp_path,
        entry_point="train.sh",
        source_dir=EXAMPLES / "shell",
        channels={"train": f"{data}/train/"},
        hyperparameters={"label": 1},
        metrics={"share": "share=([0-9.]+)"},
    )
    assert done.failure is None, done.log
    assert metric(done) == pytest.approx(0.6268)
    assert done.model["share.txt"] == b"0.6268\n"


@pytest.mark.slow
def test_the_hugging_face_example_trains_without_a_download(tmp_path: Path) -> None:
    transformers: Any = pytest.importorskip("transformers", reason="needs pip install 'optml[huggingface]'")
    done = train(
        tmp_path,
        image="huggingface",
        source_dir=EXAMPLES / "huggingface",
        hyperparameters={"epochs": 3},
        metrics={"accuracy": "accuracy=([0-9.]+)"},
        environment={"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    )
    assert done.failure is None, done.log
    assert metric(done) > 0.9
    shutil.unpack_archive(done.folder / "model.tar.gz", tmp_path / "model")
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path / "model")
    model = transformers.BertForSequenceClassification.from_pretrained(tmp_path / "model")
    scores = model(**tokenizer(["the film was very lovely", "the film was very dull"], return_tensors="pt")).logits
    assert scores.argmax(1).tolist() == [1, 0]


def isolated() -> dict[str, Any]:
    """A network of the job's own, where it can be had: jobs of other tests meet at the same port."""
    return {"network_isolation": True} if capabilities().network_isolation else {}


def digits(tmp_path: Path, **more: Any) -> Done:
    arguments: dict[str, Any] = {
        "image": "pytorch",
        "source_dir": EXAMPLES / "pytorch",
        "hyperparameters": {"epochs": 4},
        "environment": {"OMP_NUM_THREADS": "1"},
        "metrics": {"accuracy": "accuracy=([0-9.]+)"},
    }
    return train(tmp_path, **(arguments | more))


def weights(done: Done) -> dict[str, Any]:
    import torch

    assert done.failure is None, done.log
    loaded: dict[str, Any] = torch.load(io.BytesIO(done.model["model.pt"]))
    return loaded


@needs_torch
@pytest.mark.slow
def test_two_hosts_give_the_same_weights_as_one_process(tmp_path: Path) -> None:
    """contract C77."""
    alone = digits(tmp_path / "alone")
    together = digits(tmp_path / "together", instance_count=2, distribution="torchrun", **isolated())
    one, two = weights(alone), weights(together)
    assert one.keys() == two.keys()
    for name, value in one.items():
        assert (value - two[name]).abs().max() < 1e-12, name
    assert metric(together) > 0.85
    assert "--master_addr algo-1 --master_port 7777 --node_rank 1" in together.log


@needs_torch
@pytest.mark.slow
def test_two_jobs_at_once_meet_at_ports_of_their_own(tmp_path: Path) -> None:
    """On the machine's network, which they share."""
    met = tmp_path / "met"
    met.mkdir()
    code = f"""
        import os, sys, time
        import torch.distributed as dist
        dist.init_process_group("gloo")
        open(os.path.join({str(met)!r}, sys.argv[2] + os.environ["RANK"]), "w").close()
        for _ in range({int(20 * PATIENCE_SECONDS)}):
            if len(os.listdir({str(met)!r})) == 4:
                break
            time.sleep(0.1)
        else:
            sys.exit("the other job has not begun")
        print("met at", os.environ["MASTER_PORT"], flush=True)
        dist.destroy_process_group()
    """
    folder = source(tmp_path / "src", {"train.py": code})
    jobs = [
        optml.train(
            image="pytorch", name=name, entry_point="train.py", source_dir=folder, output=tmp_path / name, instance_count=2,
            distribution="torchrun", hyperparameters={"name": name}, environment={"OMP_NUM_THREADS": "1"}, wait=False, logs=False,
        )
        for name in ("one", "other")
    ]  # fmt: skip
    assert eventually(lambda: all(job.status in ("Completed", "Failed") for job in jobs), seconds=4 * PATIENCE_SECONDS)
    told = ["\n".join(line for _host, part in job.logs() for line in part) for job in jobs]
    assert [job.status for job in jobs] == ["Completed", "Completed"], told
    ports = [re.findall(r"met at (\d+)", text) for text in told]
    assert [len(set(each)) for each in ports] == [1, 1]
    assert ports[0][0] != ports[1][0]


@needs_torch
@pytest.mark.slow
def test_a_stopped_distributed_job_goes_on_from_its_checkpoint_to_the_same_weights(tmp_path: Path) -> None:
    whole = digits(tmp_path / "whole")
    two: dict[str, Any] = {
        "instance_count": 2,
        "distribution": "torchrun",
        "checkpoint": str(tmp_path / "checkpoints"),
        **isolated(),
    }
    stopper = stop_when("first", "epoch=1")
    slow = {"epochs": 4, "step-seconds": 0.05}
    first = digits(tmp_path / "first", name="first", hyperparameters=slow, grace_seconds=60.0, **two)
    stopper.join()
    assert first.describe["TrainingJobStatus"] == "Stopped"
    assert "stopped after step" in first.log
    second = digits(tmp_path / "second", **two)
    assert "resumed at step" in second.log
    expected, found = weights(whole), weights(second)
    for name, value in expected.items():
        assert (value - found[name]).abs().max() < 1e-12, name


def test_the_command_line_runs_a_script(tmp_path: Path) -> None:
    source(tmp_path, {"src/train.py": LOOK + "print('values', sys.argv[1:])"})
    arguments = [
        "--entry-point",
        "train.py",
        "--source-dir",
        "src",
        "--image",
        "scikit-learn",
        "-p",
        "lr=0.1",
        "-p",
        "name=a b",
    ]
    done = subprocess.run([OPTML, "train", *arguments], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "values ['--lr', '0.1', '--name', 'a b']" in done.stdout


def test_a_failing_script_raises_where_python_waits_for_it(tmp_path: Path) -> None:
    folder = source(tmp_path / "src", {"train.py": "raise KeyError('x')"})
    with pytest.raises(JobFailed, match="KeyError: 'x'"):
        optml.train(
            image="scikit-learn", entry_point="train.py", source_dir=folder, output=tmp_path / "out", logs=False
        )
    assert os.listdir(folder) == ["train.py"]


class Debugging(threading.Thread):
    """Attaches to a job's script, as its log says how, and types these lines; once for each."""

    def __init__(self, name: str, *typed: str):
        super().__init__()
        self.name_of_job, self.typed = name, typed
        self.told: list[str] = []  # the lines of the log
        self.saw: list[str] = []  # what the debugger printed
        self.start()

    def run(self) -> None:
        deadline = time.monotonic() + 2 * PATIENCE_SECONDS
        while len(self.saw) < len(self.typed) and time.monotonic() < deadline:
            try:
                lines = [line for _host, part in optml.find(self.name_of_job).logs() for line in part]
            except UserError:
                lines = []
            self.told = [line for line in lines if "attach with: python " in line]
            if len(self.told) > len(self.saw):
                command = [sys.executable, *self.told[-1].partition("attach with: python ")[2].split()]
                typed = self.typed[len(self.saw)]
                done = subprocess.run(
                    command, input=typed, capture_output=True, text=True, timeout=2 * PATIENCE_SECONDS, check=False
                )
                self.saw.append(done.stdout)
            time.sleep(0.05)


@pytest.mark.parametrize("backend", ["process", pytest.param("docker", marks=[pytest.mark.docker, pytest.mark.slow])])
def test_a_debugged_script_waits_where_it_stops_and_where_it_fails(
    tmp_path: Path, backend: str, request: pytest.FixtureRequest
) -> None:
    """Then it goes on and ends as it would have."""
    if backend == "docker":
        request.getfixturevalue("docker_image")("scikit-learn")
        if not backend_named("docker").capabilities().reachable:
            pytest.skip("this machine does not reach containers by their addresses")
    code = """
        def divide(number):
            left = number - 7
            return number / left

        secret = 41
        breakpoint()
        print('went on with', secret, flush=True)
        divide(secret)
    """
    debugging = Debugging("debugged", "p secret + 1\nsecret = 7\nc\n", "p left, number\nup\np secret\nq\n")
    done = train(tmp_path, {"train.py": code}, name="debugged", pdb=True, max_runtime=600, backend=backend)
    debugging.join()
    assert debugging.told[0].startswith("breakpoint: waiting for a debugger; attach with: python -m optml_toolkit.")
    assert "42" in debugging.saw[0]
    assert "went on with 7" in done.log
    assert debugging.told[1].startswith("ZeroDivisionError: waiting for a debugger; attach with: ")
    assert "(0, 7)" in debugging.saw[1]
    assert done.reason.startswith("AlgorithmError: ZeroDivisionError: division by zero (train.py, line 4)")
    assert done.reason.endswith("exit code: 1")


def test_who_attaches_and_has_no_more_to_say_ends_the_debugging(tmp_path: Path) -> None:
    """As the end of input ends pdb; what was said before is answered first, however long that takes."""
    code = "import time\nraise ValueError('x')\n"
    debugging = Debugging("debugged", "time.sleep(6)\np 6 * 7\n")
    done = train(tmp_path, {"train.py": code}, name="debugged", pdb=True, max_runtime=600)
    debugging.join()
    assert "42" in debugging.saw[0]
    assert done.reason.startswith("AlgorithmError: ValueError: x (train.py, line 2)")


def test_with_breakpoints_alone_an_exception_ends_the_script(tmp_path: Path) -> None:
    """As the page on script mode says."""
    code = "secret = 41\nbreakpoint()\nprint('went on with', secret)\nraise ValueError(secret)\n"
    debugging = Debugging("debugged", "p secret + 1\nsecret = 7\nc\n")
    done = train(
        tmp_path,
        {"train.py": code},
        name="debugged",
        environment={"PYTHONBREAKPOINT": "optml_toolkit.script_mode.debug.wait"},
        max_runtime=600,
    )
    debugging.join()
    assert "42" in debugging.saw[0]
    assert "went on with 7" in done.log
    assert done.reason.startswith("AlgorithmError: ValueError: 7 (train.py, line 4)")


@needs_torch
@pytest.mark.slow
def test_of_several_ranks_only_the_one_that_fails_waits_and_torchrun_itself_does_not(tmp_path: Path) -> None:
    code = """
        import os, sitecustomize  # the user's own, which the debugger's does not hide
        if os.environ["RANK"] == "1":
            raise ValueError(sitecustomize.MINE)
    """
    debugging = Debugging("ranks", "p os.environ['RANK']\nq\n")
    files = {"train.py": code, "sitecustomize.py": "MINE = 'my own'\n"}
    done = train(
        tmp_path,
        files,
        name="ranks",
        image="pytorch",
        distribution="torchrun",
        processes_per_host=2,
        pdb=True,
        max_runtime=120,
    )
    debugging.join()
    assert "'1'" in debugging.saw[0]
    assert done.log.count("waiting for a debugger") == 1
    assert done.reason.startswith("AlgorithmError: ValueError: my own (train.py, line 4)")


@pytest.mark.parametrize(
    ("shortcuts", "told"),
    [
        (
            {"image": "python", "entry_point": None, "entrypoint": ["python", "x.py"]},
            "--pdb is for a script that an image",
        ),
        ({"environment": {"PYTHONBREAKPOINT": "0"}}, "--pdb sets PYTHONBREAKPOINT, and so does Environment"),
        ({"network_isolation": True}, "nobody can attach to hosts of an isolated network"),
    ],
)
def test_a_debugger_that_nobody_could_attach_is_refused(tmp_path: Path, shortcuts: dict[str, Any], told: str) -> None:
    script = source(tmp_path / "src", {"train.py": ""}) / "train.py"
    with pytest.raises(UserError, match=told):
        optml.train(pdb=True, **({"image": "scikit-learn", "entry_point": str(script)} | shortcuts))


def test_quiet_would_hide_how_to_attach(tmp_path: Path) -> None:
    command = [OPTML, "train", "--pdb", "--quiet", "--image", "scikit-learn", "--entry-point", "train.py"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 2
    assert "the script prints how to attach, which --quiet hides" in done.stderr


def test_a_job_that_is_staged_to_be_run_by_hand_has_its_code(tmp_path: Path) -> None:
    from optml import by_hand

    folder = source(tmp_path / "src", {"train.py": LOOK})
    by_hand.stage(to=tmp_path / "to", image="scikit-learn", entry_point="train.py", source_dir=folder)
    assert (tmp_path / "to" / "algo-1" / "ml" / "code" / "train.py").read_text() == LOOK
