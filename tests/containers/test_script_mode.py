"""Script mode by hand: what a script is told, how it is started, what is said when that cannot be."""

import io
import json
import os
import shlex
import sys
import tarfile
from pathlib import Path

import pytest
from tests.script_mode import LOOK, run, run_tree, source, tree

from optml_toolkit.container import UserError
from optml_toolkit.script_mode.peers import wait_for_peers

AWKWARD = {
    "injection": "x; echo INJECTED > injected",
    "substitution": "$(touch injected) `touch injected`",
    "quotes": 'it\'s "quoted"',
    "glob": "*",
    "lines": "a\nb\tc",
    "layers": [1, 2, 3],
    "nested": {"b": True, "a": "x y"},
    "empty": "",
    "nothing": None,
    "accent": "café ☕",
    "option": "--batch-size",
}


def test_every_variable_that_awss_toolkit_sets_is_there_in_its_encoding(tmp_path: Path) -> None:
    """Recorded from sagemaker-training 5.1.4, whose own run test_awss_own_toolkit compares again."""
    hyperparameters = {
        "batch-size": 256, "lr": 0.1, "flag": True, "layers": [1, 2, 3], "name": "hello", "none": None, "k": 5,
        "sagemaker_region": "eu-west-1", "sagemaker_job_name": "job-1", "sagemaker_container_log_level": 20,
        "sagemaker_instance_type": "ml.c5.xlarge", "_tuning_objective_metric": "acc",
    }  # fmt: skip
    ran = run(tmp_path, hyperparameters=hyperparameters, channels=("train", "my-chan"))
    ml = str(ran.root)
    expected = {
        "SM_HOSTS": '["algo-1"]',
        "SM_CURRENT_HOST": "algo-1",
        "SM_NETWORK_INTERFACE_NAME": "lo",
        "SM_CURRENT_INSTANCE_TYPE": "ml.c5.xlarge",
        "SM_CURRENT_INSTANCE_GROUP": "homogeneousCluster",
        "SM_CURRENT_INSTANCE_GROUP_HOSTS": '["algo-1"]',
        "SM_INSTANCE_GROUPS": '["homogeneousCluster"]',
        "SM_INSTANCE_GROUPS_DICT": '{"homogeneousCluster":{"hosts":["algo-1"],"instance_group_name":"homogeneousCluster",'
        '"instance_type":"ml.c5.xlarge"}}',
        "SM_DISTRIBUTION_INSTANCE_GROUPS": "[]",
        "SM_IS_HETERO": "false",
        "SM_HPS": '{"batch-size":256,"flag":true,"k":5,"layers":[1,2,3],"lr":0.1,"name":"hello","none":null}',
        "SM_HP_BATCH-SIZE": "256",
        "SM_HP_LR": "0.1",
        "SM_HP_FLAG": "true",
        "SM_HP_LAYERS": "[1,2,3]",
        "SM_HP_NAME": "hello",
        "SM_HP_NONE": "",
        "SM_HP_K": "5",
        "SM_USER_ARGS": '["--batch-size","256","--flag","True","-k","5","--layers","[1, 2, 3]","--lr","0.1","--name","hello",'
        '"--none",""]',
        "SM_USER_ENTRY_POINT": "train.py",
        "SM_MODULE_NAME": "train",
        "SM_MODULE_DIR": str(tmp_path / "src"),
        "SM_FRAMEWORK_MODULE": "",
        "SM_FRAMEWORK_PARAMS": '{"sagemaker_instance_type":"ml.c5.xlarge"}',
        "SM_CHANNELS": '["my-chan","train"]',
        "SM_CHANNEL_TRAIN": f"{ml}/input/data/train",
        "SM_CHANNEL_MY-CHAN": f"{ml}/input/data/my-chan",
        "SM_INPUT_DIR": f"{ml}/input",
        "SM_INPUT_CONFIG_DIR": f"{ml}/input/config",
        "SM_OUTPUT_DIR": f"{ml}/output",
        "SM_OUTPUT_DATA_DIR": f"{ml}/output/data",
        "SM_OUTPUT_INTERMEDIATE_DIR": f"{ml}/output/intermediate",
        "SM_MODEL_DIR": f"{ml}/model",
        "SM_LOG_LEVEL": "20",
        "SM_NUM_CPUS": str(len(os.sched_getaffinity(0))),
        "SM_NUM_GPUS": "0",
        "SM_NUM_NEURONS": "0",
        "SAGEMAKER_JOB_NAME": "job-1",
        "SAGEMAKER_REGION": "eu-west-1",
        "CURRENT_HOST": "algo-1",
    }
    told = ran.saw["environment"]
    found = {name: value for name, value in told.items() if name.startswith("SM_")}
    by_content = {
        name: json.loads(found.pop(name)) for name in ("SM_RESOURCE_CONFIG", "SM_INPUT_DATA_CONFIG", "SM_TRAINING_ENV")
    }
    assert found == {name: value for name, value in expected.items() if name.startswith("SM_")}
    assert {name: told[name] for name in expected} == expected
    assert told["PYTHONPATH"].split(os.pathsep)[0] == f"{ml}/code"
    config = ran.root / "input" / "config"
    assert by_content["SM_RESOURCE_CONFIG"] == json.loads((config / "resourceconfig.json").read_text())
    assert by_content["SM_INPUT_DATA_CONFIG"] == json.loads((config / "inputdataconfig.json").read_text())
    everything = by_content["SM_TRAINING_ENV"]
    assert len(everything) == 37
    assert everything["channel_input_dirs"] == {name: f"{ml}/input/data/{name}" for name in ("train", "my-chan")}
    assert everything["job_name"] == "by-hand"
    assert everything["is_master"] is True
    assert everything["topology"] == []


def test_arguments_arrive_exactly_as_they_were_given_whatever_is_in_them(tmp_path: Path) -> None:
    ran = run(
        tmp_path,
        hyperparameters=AWKWARD,
        variables={"SAGEMAKER_TRAINING_MODULE": "sagemaker_pytorch_container.training:main"},
    )
    words = ran.saw["argv"]
    assert words[0] == "train.py"
    assert dict(zip(words[1::2], words[2::2], strict=True)) == {
        "--injection": "x; echo INJECTED > injected",
        "--substitution": "$(touch injected) `touch injected`",
        "--quotes": 'it\'s "quoted"',
        "--glob": "*",
        "--lines": "a\nb\tc",
        "--layers": "[1, 2, 3]",
        "--nested": "a=x y,b=True",
        "--empty": "",
        "--nothing": "",
        "--accent": "café ☕",
        "--option": "--batch-size",
    }
    assert ran.saw["cwd"] == str(ran.root / "code")
    assert not list(ran.root.rglob("injected"))
    warning = next(line for line in ran.log.splitlines() if "in SageMaker a shell splits" in line)
    assert "--injection 'x; echo INJECTED > injected'" in warning
    assert "--layers '[1, 2, 3]'" in warning
    assert "--option" not in warning


def test_harmless_arguments_bring_no_warning(tmp_path: Path) -> None:
    given = {"lr": 0.1, "name": "hello", "path": "s3://bucket/key"}
    ran = run(
        tmp_path,
        hyperparameters=given,
        variables={"SAGEMAKER_TRAINING_MODULE": "sagemaker_pytorch_container.training:main"},
    )
    assert ran.exit_code == 0
    assert "WARNING" not in ran.log


def test_what_is_no_json_is_text_and_json_keeps_its_kind(tmp_path: Path) -> None:
    raw = {"a": "007", "b": "1e3", "c": '"5"', "d": "None", "e": "x y", "f": "true", "sagemaker_program": "train.py"}
    source(tmp_path / "ml" / "code", {"train.py": LOOK})
    ran = run_tree(tree(tmp_path / "ml", hyperparameters=raw))
    assert ran.saw["argv"][1:] == ["-a", "007", "-b", "1000.0", "-c", "5", "-d", "None", "-e", "x y", "-f", "True"]


# Where the code comes from.


def packed(folder: Path, archive: Path) -> Path:
    with tarfile.open(archive, "w:gz") as tar:
        for entry in sorted(folder.iterdir()):
            tar.add(entry, arcname=entry.name)
    return archive


def test_code_comes_from_a_local_tarball(tmp_path: Path) -> None:
    source(tmp_path / "src", {"train.py": LOOK, "lib/__init__.py": ""})
    assert run(tmp_path, submit=packed(tmp_path / "src", tmp_path / "sourcedir.tar.gz")).saw["argv"] == ["train.py"]


def test_code_comes_from_a_file_uri_and_the_original_stays_as_it_is(tmp_path: Path) -> None:
    folder = source(tmp_path / "src", {"train.py": LOOK + "open('mine', 'w').close()\nopen('train.py', 'w').close()\n"})
    assert run(tmp_path, submit=f"file://{folder}").exit_code == 0
    assert [entry.name for entry in folder.iterdir()] == ["train.py"]
    assert (folder / "train.py").read_text().startswith(LOOK)


def test_code_is_a_single_file(tmp_path: Path) -> None:
    folder = source(tmp_path / "src", {"train.py": LOOK, "other.py": ""})
    ran = run(tmp_path, submit=folder / "train.py")
    assert ran.saw["argv"] == ["train.py"]
    assert not (ran.root / "code" / "other.py").exists()


def test_code_that_is_in_place_already_wins(tmp_path: Path) -> None:
    """As in AWS's toolkit: a folder mounted at /opt/ml/code needs no tarball."""
    source(tmp_path / "ml" / "code", {"train.py": LOOK})
    assert run(tmp_path, submit="s3://nowhere/sourcedir.tar.gz").saw["argv"] == ["train.py"]


def test_the_environment_names_the_program_too(tmp_path: Path) -> None:
    files = {"train.py": "raise SystemExit(9)", "other.py": LOOK}
    assert run(tmp_path, files, variables={"SAGEMAKER_PROGRAM": "other.py"}).saw["argv"] == ["other.py"]


@pytest.mark.parametrize(
    ("name", "kind", "target", "why"),
    [
        ("../outside.py", tarfile.REGTYPE, "", "a name that leads outside"),
        ("/absolute.py", tarfile.REGTYPE, "", "an absolute name"),
        ("link", tarfile.SYMTYPE, "../../outside", "a link that leads outside"),
        ("link", tarfile.SYMTYPE, "/etc/passwd", "a link to an absolute name"),
        ("hard", tarfile.LNKTYPE, "../../outside", "a link that leads outside"),
        ("device", tarfile.CHRTYPE, "", "a device or FIFO"),
        ("fifo", tarfile.FIFOTYPE, "", "a device or FIFO"),
        ("train.py/a/b", tarfile.REGTYPE, "", "it lies below 'train.py', which is a file in the same archive"),
    ],
)
def test_a_tarball_with_unsafe_entries_is_refused_and_nothing_of_it_stays(
    tmp_path: Path, name: str, kind: bytes, target: str, why: str
) -> None:
    archive = tmp_path / "sourcedir.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for entry, entry_kind in (("train.py", tarfile.REGTYPE), (name, kind)):
            info = tarfile.TarInfo(entry)
            info.type, info.linkname = entry_kind, target
            tar.addfile(info, io.BytesIO(b""))
    ran = run(tmp_path, submit=archive)
    assert ran.exit_code == 1
    assert f"the entry {name!r} cannot be unpacked safely ({why})" in ran.first_line
    assert list((ran.root / "code").iterdir()) == []
    assert not (tmp_path / "outside.py").exists()


@pytest.mark.parametrize("content", [b"", b"no archive at all", b"\x1f\x8b\x08\x00garbage"])
def test_a_damaged_tarball_from_s3_is_named(tmp_path: Path, content: bytes) -> None:
    from optml_toolkit.script_mode.user_code import extract

    archive, folder = tmp_path / "sourcedir.tar.gz", tmp_path / "code"
    archive.write_bytes(content)
    folder.mkdir()
    with pytest.raises(UserError, match=r"s3://bucket/x\.tar\.gz (cannot be unpacked|is damaged)"):
        extract(archive, folder, name="s3://bucket/x.tar.gz")


# Which kind of program.


def test_a_shell_script_gets_exact_arguments_and_needs_no_permission(tmp_path: Path) -> None:
    script = '#!/bin/bash\nprintf "%s\\n" "$@" > "$SM_MODEL_DIR/arguments"\n'
    ran = run(tmp_path, {"run.sh": script}, program="run.sh", hyperparameters=AWKWARD | {"lines": "one"})
    assert ran.exit_code == 0, ran.log
    words = (ran.root / "model" / "arguments").read_text().splitlines()
    assert words[words.index("--injection") + 1] == "x; echo INJECTED > injected"
    assert words[words.index("--layers") + 1] == "[1, 2, 3]"
    assert not list(ran.root.rglob("injected"))


def test_a_shell_script_without_a_first_line_runs_in_sh(tmp_path: Path) -> None:
    ran = run(
        tmp_path,
        {"bin/run.sh": 'echo "ran $1 $2" > "$SM_MODEL_DIR/out"'},
        program="bin/run.sh",
        hyperparameters={"lr": 1},
    )
    assert ran.exit_code == 0, ran.log
    assert (ran.root / "model" / "out").read_text() == "ran --lr 1\n"


def test_a_script_in_a_subfolder_finds_modules_of_the_code_folder(tmp_path: Path) -> None:
    files = {"jobs/train.py": "import shared\n" + LOOK, "shared.py": ""}
    assert run(tmp_path, files, program="jobs/train.py").saw["argv"] == ["jobs/train.py"]


def test_topology_and_several_groups_are_told(tmp_path: Path) -> None:
    source(tmp_path / "ml" / "code", {"train.py": LOOK})
    root = tree(tmp_path / "ml", hyperparameters={"sagemaker_program": "train.py"})
    resources = {
        "current_host": "algo-2", "current_instance_type": "ml.c5.large", "current_group_name": "b",
        "hosts": ["algo-1", "algo-2"], "network_interface_name": "lo",
        "topology": [{"hostName": "algo-1", "capacityUnitId": "x"}],
        "instance_groups": [
            {"instance_group_name": "a", "instance_type": "ml.c5.xlarge", "hosts": ["algo-1"]},
            {"instance_group_name": "b", "instance_type": "ml.c5.large", "hosts": ["algo-2"]},
        ],
    }  # fmt: skip
    (root / "input" / "config" / "resourceconfig.json").write_text(json.dumps(resources))
    told = run_tree(root, SM_STUDIO_LOCAL_MODE="true").saw["environment"]  # algo-2 has no address here
    assert told["SM_TOPOLOGY"] == '[{"capacityUnitId":"x","hostName":"algo-1"}]'
    assert told["SM_IS_HETERO"] == "true"
    assert told["SM_CURRENT_INSTANCE_GROUP_HOSTS"] == '["algo-2"]'
    assert json.loads(told["SM_TRAINING_ENV"])["is_master"] is False


# What cannot be run.


@pytest.mark.parametrize(
    ("hyperparameters", "told"),
    [
        ({"sagemaker_program": ""}, "HyperParameters.sagemaker_program must name the script"),
        (
            {"sagemaker_program": "trian.py"},
            "'trian.py' is not in the code, which has: lib/, train.py; did you mean 'train.py'?",
        ),
        ({"sagemaker_program": "inner.py"}, "did you mean 'lib/inner.py'?"),
        ({"sagemaker_program": "../train.py"}, "must be a path inside the code's folder"),
        ({"sagemaker_program": "/bin/true"}, "must be a path inside the code's folder"),
        ({"sagemaker_submit_directory": "/no/such/folder"}, "'/no/such/folder' cannot be found"),
        ({"sagemaker_submit_directory": "src"}, "is relative, and nobody knows to what"),
        ({"sagemaker_submit_directory": "ftp://host/x"}, "must be an s3:// or file:// URI"),
        ({"sagemaker_submit_directory": "s3://bucket"}, "must be s3://bucket/key of a tar.gz file"),
        ({"sagemaker_submit_directory": 7}, "must be a URI or a path, got 7"),
        ({"sagemaker_container_log_level": "loud"}, "sagemaker_container_log_level must be a number"),
        (
            {"sagemaker_s3_output": "s3://bucket/x"},
            "HyperParameters.sagemaker_s3_output: intermediate outputs are not uploaded",
        ),
        ({"sagemaker_parameter_server_enabled": True}, "Use multi_worker_mirrored_strategy"),
        ({"sagemaker_pytorch_xla_multi_worker_enabled": True}, "Use torch_distributed, and torch.compile"),
        ({"mp_parameters": {"partitions": 2}}, "Use torch_distributed with PyTorch's FSDP"),
    ],
)
def test_what_cannot_be_run_is_said_in_the_first_line(
    tmp_path: Path, hyperparameters: dict[str, object], told: str
) -> None:
    ran = run(tmp_path, {"train.py": LOOK, "lib/inner.py": ""}, hyperparameters=hyperparameters)
    assert ran.exit_code == 1
    assert told in ran.first_line
    assert told in ran.log
    assert "Traceback" not in ran.log


def test_code_in_s3_without_boto3_is_a_clear_error(tmp_path: Path) -> None:
    hide = tmp_path / "hide"
    hide.mkdir()
    (hide / "boto3.py").write_text("raise ImportError('hidden')")
    ran = run(tmp_path, submit="s3://bucket/sourcedir.tar.gz", variables={"PYTHONPATH": str(hide)})
    assert ran.exit_code == 1
    assert f"this container's Python ({sys.executable}) has no boto3" in ran.first_line


def test_no_code_at_all(tmp_path: Path) -> None:
    ran = run_tree(tree(tmp_path / "ml", hyperparameters={"sagemaker_program": "train.py"}))
    assert ran.exit_code == 1
    assert "there is no code" in ran.first_line


def test_a_host_that_never_comes_up_is_named() -> None:
    with pytest.raises(UserError, match=r"algo-9\.invalid never came up: the name does not resolve after 0 s"):
        wait_for_peers(["localhost", "algo-9.invalid"], needed=True, wait_seconds=0.2)


def test_hosts_that_are_there_are_not_waited_for() -> None:
    wait_for_peers(["localhost", "127.0.0.1"], needed=True, wait_seconds=0.0)


def test_a_script_without_a_launcher_goes_on_without_a_host_that_has_ended(caplog: pytest.LogCaptureFixture) -> None:
    wait_for_peers(["localhost", "algo-9.invalid"], needed=False, wait_seconds=0.2)
    assert "algo-9.invalid cannot be found by name, and may have ended already" in caplog.text


def test_the_command_in_the_log_can_be_pasted(tmp_path: Path) -> None:
    ran = run(tmp_path, hyperparameters={"name": "it's"})
    line = next(line for line in ran.log.splitlines() if "Running: " in line)
    assert shlex.split(line.partition("Running: ")[2]) == [sys.executable, "train.py", "--name", "it's"]
