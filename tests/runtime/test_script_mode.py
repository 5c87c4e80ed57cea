"""The platform's side of script mode: whose image it is, which versions, where the code lies."""

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from optml import kept_requirements, plan
from optml.backends import backend_named
from optml.backends.docker import DockerBackend
from optml.errors import UserError
from optml.images import (
    Image,
    find_image,
    image_for_containers,
    images_dir,
    installed_versions,
    known_images,
    other_versions,
    wanted_versions,
)
from optml.request import parse
from optml.script_mode import distribution_hyperparameters, local_source, source_of, with_whole_source
from optml.spec import LocalOptions, TrainingJob

ECR = "763104351884.dkr.ecr.us-east-1.amazonaws.com/"


@pytest.mark.parametrize(
    ("uri", "name"),
    [
        (f"{ECR}pytorch-training:2.1.0-cpu-py310-ubuntu20.04-sagemaker", "pytorch"),
        (f"{ECR}pytorch-training@sha256:{'0' * 64}", "pytorch"),
        (f"{ECR}huggingface-pytorch-training:2.1.0-transformers4.36.0-gpu-py310-cu121-ubuntu20.04", "huggingface"),
        (f"{ECR}tensorflow-training:2.19.0-cpu-py312", "tensorflow"),
        ("683313688378.dkr.ecr.us-east-1.amazonaws.com/sagemaker-scikit-learn:1.2-1-cpu-py3", "scikit-learn"),
        ("683313688378.dkr.ecr.us-east-1.amazonaws.com/sagemaker-xgboost:1.7-1", "xgboost"),
        ("sklearn", "scikit-learn"),
    ],
)
def test_the_uris_of_framework_images_are_ours(uri: str, name: str) -> None:
    found = find_image(uri)
    assert found is not None
    assert found.name == name
    assert found.script_mode
    assert found.environment["SAGEMAKER_TRAINING_MODULE"].startswith("sagemaker_")


@pytest.mark.parametrize(
    ("image", "packages", "expected"),
    [
        (f"{ECR}pytorch-training:2.1.0-cpu-py310-ubuntu", ("torch",), {"torch": "2.1.0", "python": "3.10"}),
        (
            f"{ECR}huggingface-pytorch-training:2.1.0-transformers4.36.0-gpu-py310",
            ("torch", "transformers"),
            {"torch": "2.1.0", "transformers": "4.36.0", "python": "3.10"},
        ),
        (f"{ECR}sagemaker-scikit-learn:1.2-1-cpu-py3", ("scikit-learn",), {"scikit-learn": "1.2"}),
        (f"{ECR}sagemaker-xgboost:1.7-1", ("xgboost",), {"xgboost": "1.7"}),
        (f"{ECR}pytorch-training:latest", ("torch",), {}),
        (f"{ECR}pytorch-training", ("torch",), {}),
        ("pytorch", ("torch",), {}),
        ("pytorch:2.1", ("torch",), {"torch": "2.1"}),
    ],
)
def test_the_versions_that_a_tag_asks_for(image: str, packages: tuple[str, ...], expected: dict[str, str]) -> None:
    assert wanted_versions(image, packages) == expected


def test_two_numbers_of_a_version_decide() -> None:
    import importlib.metadata

    own = importlib.metadata.version("scikit-learn").split(".")
    having = installed_versions(["scikit-learn", "no-such-package", "xgboost"])
    assert other_versions({"scikit-learn": f"{own[0]}.{own[1]}"}, having) == []
    assert other_versions({"scikit-learn": f"{own[0]}.{own[1]}.999"}, having) == []
    assert other_versions({"scikit-learn": "0.23"}, having) == [f"scikit-learn {'.'.join(own)} instead of 0.23"]
    assert other_versions({"no-such-package": "1.0"}, having) == []
    assert set(having) == {"python", "scikit-learn", "xgboost"}  # which is xgboost-cpu here


def job(
    hyperparameters: dict[str, str],
    base_dir: Path,
    image: str = "scikit-learn",
    instance_type: str = "ml.m5.large",
    **options: Any,
) -> TrainingJob:
    request = {
        "AlgorithmSpecification": {"TrainingImage": image},
        "HyperParameters": hyperparameters,
        "ResourceConfig": {"InstanceType": instance_type, "InstanceCount": 1, "VolumeSizeInGB": 1},
    }
    return parse(request, options=LocalOptions(**options), base_dir=base_dir)


@pytest.mark.parametrize("given", ["src", "./src", '"src"', "file:///base/src", '"file:///base/src"', "/base/src/"])
def test_a_source_of_this_machine_is_made_whole(given: str) -> None:
    found = job({"sagemaker_program": "train.py", "sagemaker_submit_directory": given}, Path("/base"))
    assert json.loads(found.hyperparameters["sagemaker_submit_directory"]) == "file:///base/src"
    assert local_source(found.hyperparameters) == Path("/base/src")
    assert found.request["HyperParameters"] == found.hyperparameters


@pytest.mark.parametrize(
    "given", ['"s3://bucket/x.tar.gz"', "s3://bucket/x.tar.gz", '"/opt/ml/input/data/code/sourcedir.tar.gz"', "7"]
)
def test_a_source_elsewhere_stays_as_it_is(given: str) -> None:
    hyperparameters = {"sagemaker_submit_directory": given}
    assert with_whole_source(hyperparameters, Path("/base")) == hyperparameters
    assert local_source(hyperparameters) is None


def test_a_job_without_a_source_has_none() -> None:
    assert source_of({}) is None
    assert with_whole_source({"lr": "src"}, Path("/base")) == {"lr": "src"}


def test_the_built_in_metrics_are_for_the_built_in_algorithm() -> None:
    image = find_image("xgboost")
    assert image is not None
    algorithm = plan.with_published_metrics(job({}, Path("/"), image="xgboost"), image)
    script = plan.with_published_metrics(job({"sagemaker_program": "train.py"}, Path("/"), image="xgboost"), image)
    assert len(algorithm.metric_definitions) > 10
    assert script.metric_definitions == ()


class Containers(DockerBackend):
    """Whose image says so of itself; None: it is not here."""

    def __init__(self, label: Mapping[str, str] | None):
        super().__init__()
        self._label = label

    def versions(self, image: Image) -> Mapping[str, str] | None:  # noqa: ARG002
        return self._label


def test_versions_are_for_scripts_and_strict_for_all() -> None:
    uri = "683313688378.dkr.ecr.us-east-1.amazonaws.com/sagemaker-xgboost:1.7-1"
    image = find_image(uri)
    assert image is not None
    here = backend_named("process")
    script = plan.check_versions(job({"sagemaker_program": "train.py"}, Path("/"), image=uri), image, here)
    assert any("xgboost" in warning and "instead of 1.7" in warning for warning in script.warnings)
    algorithm = job({}, Path("/"), image=uri)
    assert plan.check_versions(algorithm, image, here) == algorithm
    with pytest.raises(UserError, match=r"instead of 1\.7; install those versions"):
        plan.check_versions(job({}, Path("/"), image=uri, strict_versions=True), image, here)


@pytest.mark.parametrize(
    ("label", "warning"),
    [
        ({"torch": "2.1.9+cpu", "python": "3.10.2"}, None),
        ({"torch": "2.1.9+cpu", "python": "3.11.7"}, "is run by optml/pytorch: python 3.11.7 instead of 3.10"),
        ({}, "torch, of a version that it does not say, instead of 2.1.0, python, of a version"),
        (None, None),
    ],
)
def test_in_containers_the_versions_are_what_the_image_says_of_itself(
    label: Mapping[str, str] | None, warning: str | None
) -> None:
    uri = "763104351884.dkr.ecr.us-east-1.amazonaws.com/pytorch-training:2.1.0-cpu-py310-ubuntu20.04-sagemaker"
    image = image_for_containers(uri)
    script = {"sagemaker_program": "train.py"}
    checked = plan.check_versions(job(script, Path("/"), image=uri), image, Containers(label))
    assert len(checked.warnings) == (0 if warning is None else 1)
    assert (warning or "") in "".join(checked.warnings)
    strict = job(script, Path("/"), image=uri, strict_versions=True)
    if warning or label is None:
        with pytest.raises(UserError, match=r"leave out --strict-versions$|is not here"):
            plan.check_versions(strict, image, Containers(label))
    else:
        assert plan.check_versions(strict, image, Containers(label)) == strict


def test_an_image_that_is_not_ours_is_what_its_tag_says() -> None:
    image = image_for_containers("mine/pytorch:2.1")
    of_ones_own = job({}, Path("/"), image="mine/pytorch:2.1")
    assert plan.check_versions(of_ones_own, image, Containers({})) == of_ones_own
    with pytest.raises(UserError, match=r"mine/pytorch:2\.1 runs itself: leave it out"):
        plan.check_versions(replace(of_ones_own, options=LocalOptions(strict_versions=True)), image, Containers({}))


def test_an_image_sets_for_itself_what_its_description_says() -> None:
    """So that `docker run` by hand gives the script the same."""
    checked = 0
    for image in known_images():
        dockerfile = images_dir() / image.name / "Dockerfile"
        if dockerfile.exists():
            for name, value in image.environment.items():
                assert f"ENV {name}={value}\n" in dockerfile.read_text(encoding="utf-8"), image.name
                checked += 1
    assert checked >= 4


@pytest.mark.parametrize(
    ("distribution", "message"),
    [
        ({"smdistributed": {"dataparallel": True}}, "dataparallel must be a dict"),
        ({"smdistributed": {"dataparallel": {"enable": True}}}, "no option 'enable'.*enabled"),
        ({"torch_distributed": {"enabled": True, "instance_groups": "gpus"}}, "instance_groups must be a list"),
    ],
)
def test_a_distribution_that_is_not_the_sdks_is_refused(distribution: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        distribution_hyperparameters(distribution, instance_type=None)


def test_the_folders_of_code_that_was_not_used_for_the_longest_go_unless_a_job_has_them(optml_home: Path) -> None:
    held = []
    for number in range(kept_requirements.KEPT_FOLDERS + 3):
        folder = optml_home / "cache" / "containers" / str(number)
        held.append(kept_requirements.hold(folder))
        os.utime(folder, (number, number))
        if number != 1:
            held.pop().close()
    kept = {int(folder.name) for folder in kept_requirements.folders(folder.parent)}
    assert kept == {1, *range(3, kept_requirements.KEPT_FOLDERS + 3)}
    held.pop().close()


def test_only_code_of_this_machine_with_requirements_has_a_folder_that_outlives_the_job(tmp_path: Path) -> None:
    image = image_for_containers("scikit-learn")
    (tmp_path / "bare").mkdir()
    (tmp_path / "needy").mkdir()
    (tmp_path / "needy/requirements.txt").write_text("x")
    (tmp_path / "train.py").write_text("")

    def folder(source: Path | str, *, image: Image = image, **more: Any) -> Path | None:
        hyperparameters = {"sagemaker_program": "train.py", "sagemaker_submit_directory": json.dumps(str(source))}
        return kept_requirements.folder_for(job(hyperparameters, tmp_path, image="scikit-learn", **more), image)

    mine = folder(tmp_path / "needy")
    assert mine is not None
    assert folder(tmp_path / "bare" / ".." / "needy") == mine
    assert folder(tmp_path / "needy", image=image_for_containers("pytorch")) not in (mine, None)
    for source in (tmp_path / "bare", tmp_path / "train.py", "s3://bucket/sourcedir.tar.gz"):
        assert folder(source) is None
    assert folder(tmp_path / "needy", image=image_for_containers("elsewhere/sklearn")) is None


def test_tensorflows_image_is_not_run_on_the_processors_in_silence() -> None:
    script = {"sagemaker_program": "train.py"}
    wanting = job(script, Path("/"), image="tensorflow", instance_type="ml.g5.xlarge")
    with pytest.raises(UserError, match=r"optml/tensorflow is made for processors.*--allow-cpu"):
        plan.check(wanting, containers=True, gpu_count=8)
    willing = job(script, Path("/"), image="tensorflow", instance_type="ml.g5.xlarge", allow_cpu=True)
    assert plan.check(willing, containers=True, gpu_count=8).reference == "optml/tensorflow"


@pytest.mark.parametrize("containers", [True, False])
def test_nor_is_k_nn_anywhere(*, containers: bool) -> None:
    wanting = job(
        {"k": "3", "sample_size": "10", "predictor_type": "classifier"},
        Path("/"),
        image="knn",
        instance_type="ml.g5.xlarge",
    )
    with pytest.raises(UserError, match=r"knn is made for processors.*--allow-cpu"):
        plan.check(wanting, containers=containers, gpu_count=8)
