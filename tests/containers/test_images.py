"""Our Docker images, by hand: `docker run -v $PWD/ml:/opt/ml optml/xgboost train` and what people do beside that."""

import contextlib
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.hosts import PATIENCE_SECONDS

import optml
from optml import __version__, image_build
from optml.console import Console
from optml.engine import connect
from optml.errors import UserError
from optml.images import BASE_IMAGE_VARIABLE, VERSIONS_LABEL, find_image
from optml.jobdir import JobDir

ROOT = Path(__file__).resolve().parents[2]
Images = Callable[[str], str]

# What a built image holds beyond its base: measured (docs/images.md), and a tenth more.
MOST_BYTES = {
    "python": 1e6,
    "xgboost": 520e6,
    "knn": 570e6,
    "linear-learner": 1440e6,
    "pytorch": 1370e6,
    "scikit-learn": 420e6,
    "huggingface": 1780e6,
    "tensorflow": 2030e6,
}
RECIPES = image_build.recipes()
HEAVY = [pytest.param(name, marks=pytest.mark.slow) for name in RECIPES if name not in ("python", "xgboost")]


def test_images_that_need_pytorch_share_its_layer() -> None:
    """The engine builds it once, and keeps it once, only where all that comes before it is the same."""
    before = {}
    for name, recipe in RECIPES.items():
        text = (ROOT / recipe.dockerfile).read_text()
        lines = [line for line in text.splitlines() if line and not line.startswith("#")]
        torch = [number for number, line in enumerate(lines) if line.startswith("RUN") and "requirements-torch" in line]
        if torch:
            before[name] = lines[: torch[0] + 1]
    assert len(before) > 2
    assert len({tuple(lines) for lines in before.values()}) == 1, sorted(before)


def tree(folder: Path, **hyperparameters: str) -> Path:
    """/opt/ml as a person makes it by hand: data, two configuration files, and places for what comes out."""
    for name in ("input/config", "input/data/train", "model", "output"):
        (folder / name).mkdir(parents=True)
    draw = random.Random(7)
    rows = [[draw.random() for _ in range(4)] for _ in range(300)]
    lines = [",".join(map(str, [int(row[0] > 0.5), *row])) for row in rows]
    (folder / "input/data/train/part-0.csv").write_text("\n".join(lines) + "\n")
    (folder / "input/config/hyperparameters.json").write_text(json.dumps(hyperparameters))
    (folder / "input/config/inputdataconfig.json").write_text(json.dumps({"train": {"ContentType": "text/csv"}}))
    return folder


def someone(folder: Path) -> str:
    """A user other than root, to whom the folder belongs."""
    if os.geteuid() != 0:
        return f"{os.geteuid()}:{os.getegid()}"
    for path in [folder, *folder.rglob("*")]:
        os.chown(path, 1000, 1000)
    return "1000:1000"


@contextlib.contextmanager
def container(image: str, *command: str, ml: Path | None = None, **options: Any) -> Iterator[Any]:
    """`docker run IMAGE COMMAND`; removed afterwards, whatever happens."""
    from docker.types import Mount

    mounts = [] if ml is None else [Mount("/opt/ml", str(ml), type="bind")]
    client = connect()
    made = client.containers.create(image, list(command), mounts=mounts, network_mode="none", **options)
    try:
        made.start()
        yield made
    finally:
        made.remove(force=True)


def run(image: str, *command: str, ml: Path | None = None, **options: Any) -> tuple[int, str]:
    """The exit code, and both streams."""
    with container(image, *command, ml=ml, **options) as started:
        code = started.wait(timeout=300)["StatusCode"]
        return code, started.logs().decode()


@pytest.mark.docker
@pytest.mark.parametrize("as_root", [True, False])
def test_xgboost_trains_by_hand_as_any_user_and_its_model_loads(
    docker_image: Images, tmp_path: Path, as_root: bool
) -> None:
    import numpy
    import xgboost

    ml = tree(tmp_path / "ml", num_round="5", objective="binary:logistic")
    user = "0:0" if as_root and os.geteuid() == 0 else someone(ml)
    code, log = run(docker_image("xgboost"), "train", ml=ml, user=user, read_only=True, tmpfs={"/tmp": ""})

    assert code == 0, log
    assert "[4]\ttrain-logloss" in log
    assert {path.stat().st_uid for path in (ml / "model").iterdir()} == {int(user.partition(":")[0])}
    assert not (ml / "output/failure").exists()
    booster = xgboost.Booster(model_file=str(ml / "model/xgboost-model"))
    predicted = booster.predict(xgboost.DMatrix(numpy.array([[0.9, 0.5, 0.5, 0.5], [0.1, 0.5, 0.5, 0.5]])))
    assert predicted[0] > 0.5 > predicted[1]


ALGORITHMS = {
    "knn": {"k": "3", "sample_size": "300", "predictor_type": "classifier", "feature_dim": "4"},
    "linear-learner": {
        "predictor_type": "binary_classifier",
        "feature_dim": "4",
        "epochs": "2",
        "mini_batch_size": "50",
    },
}


@pytest.mark.slow
@pytest.mark.docker
@pytest.mark.parametrize("name", [name for name in ALGORITHMS if name in RECIPES])
def test_the_other_algorithms_train_by_hand_too(docker_image: Images, tmp_path: Path, name: str) -> None:
    ml = tree(tmp_path / "ml", **ALGORITHMS[name])
    code, log = run(docker_image(name), "train", ml=ml, user=someone(ml), read_only=True, tmpfs={"/tmp": ""})
    assert code == 0, log
    assert any((ml / "model").iterdir())


SCRIPTS = {
    "pytorch": "torch, sklearn, pandas, boto3",
    "scikit-learn": "sklearn, pandas, boto3",
    "huggingface": "transformers, accelerate, datasets, torch",
    "tensorflow": "tensorflow, keras, sklearn, pandas, boto3",
}


@pytest.mark.slow
@pytest.mark.docker
@pytest.mark.parametrize("name", [name for name in SCRIPTS if name in RECIPES])
def test_a_script_of_ones_own_runs_by_hand(docker_image: Images, tmp_path: Path, name: str) -> None:
    ml = tree(tmp_path / "ml", sagemaker_program="train.py", epochs="3")
    (ml / "code").mkdir()
    (ml / "code/train.py").write_text(
        f"import os, sys, {SCRIPTS[name]}\n"
        "files = sorted(os.listdir(os.environ['SM_CHANNEL_TRAIN']))\n"
        "open(os.environ['SM_MODEL_DIR'] + '/model', 'w').write(f'{files} {sys.argv[1:]}')\n"
    )
    code, log = run(docker_image(name), "train", ml=ml, user=someone(ml))
    assert code == 0, log
    assert (ml / "model/model").read_text() == "['part-0.csv'] ['--epochs', '3']"


def test_a_dockerfile_sets_what_its_image_is_said_to_set() -> None:
    """container.toml tells the process backend what the image's environment is."""
    for name, recipe in RECIPES.items():
        described = tomllib.loads((ROOT / "containers/images" / name / "container.toml").read_text())
        lines = (ROOT / recipe.dockerfile).read_text().splitlines()
        for variable, value in described.get("environment", {}).items():
            assert f"ENV {variable}={value}" in lines, name


@pytest.mark.docker
def test_the_page_about_images_trains_by_hand_as_it_says(docker_image: Images, tmp_path: Path) -> None:
    if shutil.which("docker") is None:
        pytest.skip("the page shows the docker client, and there is none here")
    docker_image("xgboost")
    page = (ROOT / "docs/images.md").read_text()
    (block,) = re.findall(r"```\n(mkdir .*?)```", page, re.DOTALL)
    (tmp_path / "train.csv").write_text("".join(f"{number},{number % 7},{number % 3}\n" for number in range(200)))
    done = subprocess.run(["bash", "-ec", block], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "[49]\ttrain-rmse:" in done.stdout
    model = tmp_path / "ml/model/xgboost-model"
    assert model.stat().st_uid == os.geteuid()


@pytest.mark.docker
def test_what_is_wrong_stands_in_the_failure_file_and_the_exit_code(docker_image: Images, tmp_path: Path) -> None:
    ml = tree(tmp_path / "ml", num_round="none", objective="binary:logistic")
    code, _ = run(docker_image("xgboost"), "train", ml=ml)
    assert code == 1
    assert "num_round" in (ml / "output/failure").read_text()


@pytest.mark.docker
@pytest.mark.parametrize("name", ["python", "xgboost", *HEAVY])
def test_an_image_opens_a_shell_and_holds_no_more_than_it_needs(docker_image: Images, name: str) -> None:
    image = docker_image(name)
    code, log = run(image, "bash", "-c", "echo hello from $0; cd; pwd; python -m pip list", user="4321:4321")
    assert code == 0
    assert log.startswith("hello from bash\n/tmp\n")
    assert not [word for word in ("nvidia", "cuda", "triton") if word in log]

    client = connect()
    base = os.environ.get(BASE_IMAGE_VARIABLE) or RECIPES[name].base_image
    added = client.images.get(image).attrs["Size"] - client.images.get(base).attrs["Size"]
    assert added < MOST_BYTES[name], f"{added / 1e6:.0f} MB"


@pytest.mark.docker
@pytest.mark.parametrize("name", ["python", "xgboost", *HEAVY])
def test_an_image_finds_our_code_whatever_the_job_sets(docker_image: Images, name: str) -> None:
    """A job may well set PYTHONPATH; an unknown uid has no name in /etc/passwd; the code is compiled already."""
    look = """
import getpass, importlib.util, pathlib, optml_toolkit.container
names = [name for name in ("optml_toolkit", "optml_algorithms", "optml") if importlib.util.find_spec(name)]
print(getpass.getuser(), *names, pathlib.Path(optml_toolkit.container.__cached__).exists())
"""
    elsewhere = {"PYTHONPATH": "/elsewhere"}
    code, log = run(docker_image(name), "python", "-c", look, user="4321:4321", environment=elsewhere)
    assert code == 0, log
    algorithms = " optml_algorithms" if name in ("xgboost", "knn", "linear-learner") else ""
    assert log == f"optml optml_toolkit{algorithms} True\n"


@pytest.mark.docker
def test_a_training_that_is_told_to_stop_stops_at_once(docker_image: Images, tmp_path: Path) -> None:
    ml = tree(tmp_path / "ml", num_round="100000000", objective="binary:logistic")
    with container(docker_image("xgboost"), "train", ml=ml) as started:
        for line in started.logs(stream=True, follow=True):
            if b"train-logloss" in line:
                break
        started.stop(timeout=int(2 * PATIENCE_SECONDS))
        started.reload()
        assert started.attrs["State"]["ExitCode"] == 143  # 137 would be the SIGKILL that follows


@pytest.mark.docker
def test_an_image_says_which_version_it_is(docker_image: Images) -> None:
    image = connect().images.get(docker_image("python"))
    assert {"optml/python:latest", f"optml/python:{__version__}"} <= set(image.tags)
    labels = image.attrs["Config"]["Labels"]
    assert labels["optml.version"] == labels["org.opencontainers.image.version"] == __version__
    assert labels["org.opencontainers.image.title"] == "optml/python"
    assert image.attrs["Config"]["Entrypoint"] is None


def test_the_versions_that_a_script_is_written_for_are_those_that_are_pinned() -> None:
    """The image's label is made of the requirements: every package that a tag may ask for is pinned there, for GPUs too."""
    for name, recipe in RECIPES.items():
        described = find_image(name)
        assert described is not None
        for gpu in [False] + [True] * recipe.has_gpu_variant:
            pinned = image_build.pinned_versions(recipe, gpu=gpu)
            assert set(pinned) == set(described.versions_of), name
            assert all(version[0].isdigit() for version in pinned.values())


@pytest.mark.docker
def test_a_script_is_told_that_the_image_has_other_versions_than_its_tag_asks_for(
    docker_image: Images, tmp_path: Path
) -> None:
    """What the label says is what Python says in the container."""
    image = docker_image("xgboost")
    label = connect().images.get(image).labels[VERSIONS_LABEL]
    look = "import platform, xgboost; print(f'xgboost=={xgboost.__version__} python=={platform.python_version()}')"
    assert run(image, "python", "-c", look) == (0, f"{label}\n")
    script = tmp_path / "src" / "train.py"
    script.parent.mkdir()
    script.touch()
    uri = "683313688378.dkr.ecr.us-east-1.amazonaws.com/sagemaker-xgboost:1.7-1"
    arguments: dict[str, Any] = {
        "image": uri,
        "entry_point": script.name,
        "source_dir": script.parent,
        "backend": "docker",
    }
    told = f"the image {uri} is run by optml/xgboost: xgboost 3.2.0 instead of 1.7"
    with pytest.raises(UserError, match=re.escape(told)):
        optml.train(**arguments, strict_versions=True)
    job = optml.train(**arguments, output=str(tmp_path / "out"), logs=False, wait=True)
    assert job.status == "Completed"
    assert json.loads(JobDir.of(job.name).record_file.read_text())["local"]["warnings"][0] == told


@pytest.mark.docker
def test_building_again_runs_nothing(docker_image: Images, capsys: pytest.CaptureFixture[str]) -> None:
    docker_image("xgboost")
    capsys.readouterr()
    image_build.build("xgboost", console=Console())
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2, lines
    assert lines[0].startswith("optml  | Building optml/xgboost:latest from ")
    assert lines[1].startswith("optml  | Built optml/xgboost:latest, ")


@pytest.mark.docker
def test_the_list_says_what_is_built(docker_image: Images) -> None:
    docker_image("python")
    command = [sys.executable, "-m", "optml.cli", "images"]
    rows = json.loads(subprocess.run([*command, "--json"], capture_output=True, text=True, check=True).stdout)
    built = {row["name"]: row["docker_images"] for row in rows}
    assert built["python"]["optml/python:latest"] == connect().images.get("optml/python:latest").attrs["Size"]
    table = subprocess.run([*command, "list"], capture_output=True, text=True, check=True).stdout
    row = next(line for line in table.splitlines() if line.startswith("python "))
    assert row.split()[1] == "ready"
    assert " MB " in row
    assert row.endswith("a program of your own, in your own Python environment")


def test_the_list_needs_no_engine() -> None:
    command = [sys.executable, "-m", "optml.cli", "images"]
    nowhere = {**os.environ, "DOCKER_HOST": "unix:///nowhere/docker.sock"}
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True, env=nowhere)
    assert {row["name"]: row["docker_images"] for row in json.loads(done.stdout)}["python"] is None
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=nowhere)
    assert "DOCKER is not known: no container engine answers (/nowhere/docker.sock: not there)" in done.stderr


def test_the_context_has_the_layout_of_the_checkout_and_nothing_made() -> None:
    """So the Dockerfiles also serve `docker build .`; any uid can read what a careful person's umask hides."""
    for name, recipe in RECIPES.items():
        with image_build.context(recipe) as file, tarfile.open(fileobj=file) as tar:
            entries = {entry.name: entry for entry in tar}
        for path, entry in entries.items():
            assert (ROOT / path).is_dir() == entry.isdir()
            assert "__pycache__" not in path
            assert entry.mode == (0o755 if entry.isdir() or path.endswith("/train") else 0o644), path
        copied = [
            line.split()[1] for line in (ROOT / recipe.dockerfile).read_text().splitlines() if line.startswith("COPY")
        ]
        assert {path.replace("${REQUIREMENTS}", "requirements.txt") for path in copied} <= set(entries), name
        ignored = (ROOT / ".dockerignore").read_text().splitlines()
        assert all(f"!{path.partition('/')[0]}" in ignored for path in copied)


def test_every_package_of_an_image_is_pinned_and_cuda_is_in_gpu_variants_only() -> None:
    files = sorted((ROOT / "containers/images").glob("*/requirements*.txt"))
    assert files
    for file in files:
        lines = [line for line in file.read_text().splitlines() if not line.startswith("#")]
        assert all(re.fullmatch(r"[\w-]+={2,3}[\w.+]+", line) for line in lines), file
        if file.name != image_build.REQUIREMENTS_GPU:
            assert not [line for line in lines if line.startswith(("nvidia", "cuda", "triton"))], file
    for recipe in RECIPES.values():
        if recipe.has_gpu_variant:
            parts = [ROOT / "containers/images" / folder / image_build.REQUIREMENTS_GPU for folder in recipe.folders]
            assert any("nvidia" in file.read_text() for file in parts), recipe.name


@pytest.mark.docker
def test_what_cannot_be_built_is_told_before_anything_is_done() -> None:
    def refused(name: str, **options: Any) -> str:
        with pytest.raises(UserError) as caught:
            image_build.build(name, console=Console(silent=True), **options)
        return str(caught.value)

    assert (
        refused("xgbost")
        == f"there is no image 'xgbost' to build; did you mean 'xgboost'? There are {', '.join(RECIPES)}"
    )
    assert re.search("the image 'python' has no GPU variant; these have one: .*xgboost", refused("python", gpu=True))
    assert "Dockerfile has no such argument; it has PIP_INDEX_URL" in refused("xgboost", build_args={"BASE": "x"})
    assert "--build-arg BASE_IMAGE: use --base-image" in refused("xgboost", build_args={"BASE_IMAGE": "x"})
    assert "'no such name' is not the name of an image" in refused("python", base_image="no such name")
    missing = refused("python", base_image="127.0.0.1:9/nobody/python:3.11")
    assert "its registry cannot be reached from here" in missing
    assert "--base-image IMAGE, or set OPTML_BASE_IMAGE" in missing


def test_what_a_build_would_give_away_or_not_reach_is_warned_of() -> None:
    def warned(network: str | None = None, **arguments: str) -> list[str]:
        return [text.partition(" ")[0] for text in image_build.warnings_about(arguments, network)]

    assert warned(PIP_INDEX_URL="https://me:secret@index.example/simple") == ["PIP_INDEX_URL"]
    assert warned(PIP_INDEX_URL="https://me@index.example/simple", PIP_TRUSTED_HOST="index.example:8080") == []
    assert warned(HTTP_PROXY="http://127.0.0.1:3128", https_proxy="localhost:3128") == ["HTTP_PROXY", "https_proxy"]
    assert warned("host", HTTP_PROXY="http://127.0.0.1:3128") == []
    assert warned(NO_PROXY="localhost,127.0.0.1", HTTP_PROXY="http://proxy.example:3128") == []


@pytest.mark.docker
def test_a_step_that_fails_shows_the_end_of_what_it_printed(docker_image: Images, tmp_path: Path) -> None:
    """On a base image whose Python can do nothing but complain."""
    client = connect()
    (tmp_path / "Dockerfile").write_text(
        f"FROM {docker_image('python')}\n"
        "RUN printf '#!/bin/sh\\necho nothing works here\\nexit 3\\n' >/usr/local/bin/python && chmod +x /usr/local/bin/python\n"
    )
    client.images.build(path=str(tmp_path), tag="optml-test/broken-python", rm=True)
    before = {each.id for each in client.containers.list(all=True, ignore_removed=True)}
    try:
        with pytest.raises(
            UserError, match=r"(?s)Step \d+/\d+ : RUN python.*returned a non-zero code: 3.*nothing works here"
        ):
            image_build.build("python", base_image="optml-test/broken-python", console=Console(silent=True))
        left = [each for each in client.containers.list(all=True, ignore_removed=True) if each.id not in before]
        assert not [each for each in left if "broken-python" in str(each.attrs["Config"]["Image"])]
        assert (
            client.images.get(docker_image("python")).labels["org.opencontainers.image.base.name"]
            != "optml-test/broken-python"
        )
    finally:
        client.images.remove("optml-test/broken-python", force=True)


@pytest.mark.docker
def test_a_build_sees_the_wheels_of_this_machine(docker_image: Images, tmp_path: Path) -> None:
    """PIP_FIND_LINKS often names a folder, which no build can see: it is served to the build."""
    image = docker_image("python")
    (tmp_path / "six-9.9-py3-none-any.whl").write_bytes(b"a wheel")
    arguments = {"PIP_FIND_LINKS": f"https://elsewhere.example/ {tmp_path} {tmp_path}/missing"}
    client = connect()
    if not str(client.api.base_url).startswith("http+docker://"):
        pytest.skip("the container engine is on another machine")
    with image_build.folders_served(client, arguments, None, Console(silent=True)) as reachable:
        kept, served = reachable["PIP_FIND_LINKS"].split()
        assert kept == "https://elsewhere.example/"
        assert reachable["PIP_TRUSTED_HOST"] in served
        fetch = f"import urllib.request as r; print(r.urlopen('{served}six-9.9-py3-none-any.whl', timeout=20).read())"
        said = client.containers.run(image, ["python", "-c", fetch], remove=True)
    assert said == b"b'a wheel'\n"
    with image_build.folders_served(client, arguments, "host", Console(silent=True)) as reachable:
        served = reachable["PIP_FIND_LINKS"].split()[1]
        assert served.startswith("http://127.0.0.1:")
        with urllib.request.urlopen(f"{served}six-9.9-py3-none-any.whl", timeout=20) as answer:
            assert answer.read() == b"a wheel"


@pytest.mark.slow
@pytest.mark.docker
def test_an_installed_optml_builds_the_same_images(docker_image: Images, tmp_path: Path) -> None:
    """A wheel has all that the images are made of: the engine's cache finds every step done."""
    docker_image("xgboost")
    done = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(ROOT)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    wheel = next(tmp_path.glob("optml-*.whl"))
    install = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--target",
        str(tmp_path / "site"),
        str(wheel),
    ]
    subprocess.run(install, check=True)
    code = "import optml, sys; print(optml.__file__, file=sys.stderr); from optml.cli import main; main()"
    built = subprocess.run(
        [sys.executable, "-c", code, "images", "build", "xgboost"],
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    assert str(tmp_path / "site") in built.stderr
    assert "Step" not in built.stdout
