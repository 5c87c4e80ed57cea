"""requirements.txt and packages: installed once into an environment of their own, or in place; never into the caller's."""

import importlib.util
import os
import shutil
import subprocess
import sys
import threading
import venv
import zipfile
from pathlib import Path

import pytest
from tests.script_mode import LOOK, Ran, command, environment_for, run, run_tree, source, tree

from optml_toolkit.script_mode import requirements

WHEEL = "tiny_optml_test-1.0-py3-none-any.whl"
# A build backend in the tree, so that no test needs an index: it makes a wheel of `mine`.
BACKEND = """
import zipfile
def build_wheel(folder, config_settings=None, metadata_directory=None):
    name = "mine_optml_test-1.0-py3-none-any.whl"
    with zipfile.ZipFile(f"{folder}/{name}", "w") as wheel:
        for module in ("__init__", "train"):
            wheel.write(f"mine/{module}.py")
        info = "mine_optml_test-1.0.dist-info"
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\\nName: mine-optml-test\\nVersion: 1.0\\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\\nGenerator: test\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr(f"{info}/RECORD", "")
    return name
"""
PYPROJECT = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'


def make_wheel(folder: Path, *, value: int = 1) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(folder / WHEEL, "w") as wheel:
        wheel.writestr("tiny_optml_test.py", f"VALUE = {value}\n")
        info = "tiny_optml_test-1.0.dist-info"
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-optml-test\nVersion: 1.0\n")
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")
    return folder / WHEEL


def with_requirements(folder: Path, *, value: int = 1) -> Path:
    code = "import sys, tiny_optml_test, click\nprint('value', tiny_optml_test.VALUE)\n" + LOOK
    source(folder, {"train.py": code, "requirements.txt": f"# what it needs\n./wheels/{WHEEL}\n"})
    make_wheel(folder / "wheels", value=value)
    return folder


def run_cached(tmp_path: Path, name: str, folder: Path, **more: str) -> Ran:
    cache = {"SAGEMAKER_MANAGED_WARMPOOL_CACHE_DIRECTORY": str(tmp_path / "cache"), **more}
    return run(tmp_path / name, submit=folder, variables=cache)


def test_requirements_are_installed_once_and_beside_the_packages_of_this_python(tmp_path: Path) -> None:
    folder = with_requirements(tmp_path / "src")
    first = run_cached(tmp_path, "first", folder)
    assert "value 1" in first.log, first.log
    assert "Requirements: pip install" in first.log
    python = first.saw["python"]
    assert Path(python).is_relative_to(tmp_path / "cache")
    assert first.saw["environment"]["PATH"].startswith(f"{Path(python).parent}{os.pathsep}")
    paths = [str(Path(path).resolve()) for path in first.saw["path"]]
    own = next(place for place, path in enumerate(paths) if path.startswith(str(tmp_path / "cache")))
    assert own < min(
        paths.index(str(Path(path).resolve())) for path in requirements.package_folders() if Path(path).exists()
    )
    assert importlib.util.find_spec("tiny_optml_test") is None, "it must not come into the caller's own environment"

    second = run_cached(tmp_path, "second", folder)
    assert "value 1" in second.log
    assert "Requirements: in place already" in second.log
    assert "pip install" not in second.log
    assert second.saw["python"] == python


def test_requirements_that_changed_are_installed_anew(tmp_path: Path) -> None:
    """By content: here a wheel that requirements.txt only names."""
    assert "value 1" in run_cached(tmp_path, "first", with_requirements(tmp_path / "src")).log
    assert "value 2" in run_cached(tmp_path, "second", with_requirements(tmp_path / "src", value=2)).log


def test_requirements_named_by_requirements_count(tmp_path: Path) -> None:
    source(tmp_path, {"requirements.txt": "-r more.txt\n--requirement=deep/other.txt\n-c limits.txt  # why\n"})
    source(
        tmp_path,
        {"more.txt": "-e lib\n", "deep/other.txt": "./x.whl\n", "limits.txt": "", "lib/setup.py": "", "x.whl": ""},
    )
    keys = set()
    for name in (None, "more.txt", "deep/other.txt", "limits.txt", "lib/setup.py"):
        if name is not None:
            (tmp_path / name).write_text((tmp_path / name).read_text() + "\n# changed\n")
        keys.add(requirements.environment_key(["-r", "requirements.txt"], tmp_path))
    assert len(keys) == 5


def test_two_hosts_that_ask_at_once_install_once(tmp_path: Path) -> None:
    folder = with_requirements(tmp_path / "src")
    done: list[Ran] = []
    threads = [
        threading.Thread(target=lambda name=name: done.append(run_cached(tmp_path, name, folder)))
        for name in ("a", "b")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [ran.exit_code for ran in done] == [0, 0]
    assert sorted("pip install" in ran.log for ran in done) == [False, True]


def test_an_installation_that_was_broken_off_is_begun_again(tmp_path: Path) -> None:
    folder = with_requirements(tmp_path / "src")
    python = Path(run_cached(tmp_path, "first", folder).saw["python"])
    (python.parents[1] / requirements.COMPLETE).unlink()
    shutil.rmtree(python.parent)
    again = run_cached(tmp_path, "second", folder)
    assert "pip install" in again.log
    assert "value 1" in again.log


def test_comments_alone_install_nothing(tmp_path: Path) -> None:
    ran = run(tmp_path, {"train.py": LOOK, "requirements.txt": "# nothing\n\n"})
    assert ran.saw["python"] == sys.executable
    assert "Requirements" not in ran.log


def test_in_a_container_requirements_go_into_its_own_python(tmp_path: Path) -> None:
    """Without a folder that outlives the job. The container is a virtual environment here."""
    python = tmp_path / "container" / "bin" / "python"
    venv.EnvBuilder(symlinks=True, with_pip=False).create(tmp_path / "container")
    (own,) = (tmp_path / "container" / "lib").glob("python*/site-packages")
    toolkit = str(Path(requirements.__file__).parents[2])
    pip = next(path for path in requirements.package_folders() if (Path(path) / "pip").is_dir())
    (own / "of-the-test.pth").write_text(f"{toolkit}\n{pip}\n")
    with_requirements(tmp_path / "ml" / "code")
    root = tree(tmp_path / "ml", hyperparameters={"sagemaker_program": "train.py"})
    done = subprocess.run(
        command(str(python)), env=environment_for(root), capture_output=True, text=True, check=False, timeout=120
    )
    assert "value 1" in done.stdout, done.stdout + done.stderr
    assert (own / "tiny_optml_test.py").exists()


@pytest.mark.parametrize("hidden", [False, True])
def test_requirements_that_cannot_be_installed_are_the_reason(tmp_path: Path, hidden: bool) -> None:
    """Also if a module of the code would break pip: it never sees them."""
    files = {"train.py": "", "requirements.txt": "./no-such-wheel.whl\n"}
    if hidden:
        files |= {"logging.py": "raise RuntimeError('mine')", "typing.py": "raise RuntimeError('mine')"}
    ran = run(tmp_path, files, variables={"SAGEMAKER_MANAGED_WARMPOOL_CACHE_DIRECTORY": str(tmp_path / "cache")})
    assert ran.exit_code == 1
    assert ran.first_line.startswith("requirements.txt cannot be installed: ")
    assert "no-such-wheel.whl" in ran.first_line
    assert "RuntimeError" not in ran.log


def test_a_requirement_that_no_index_has_is_named(tmp_path: Path) -> None:
    files = {"train.py": "", "requirements.txt": "--no-index\noptml-no-such-package==9.9\n"}
    ran = run(tmp_path, files, variables={"SAGEMAKER_MANAGED_WARMPOOL_CACHE_DIRECTORY": str(tmp_path / "cache")})
    assert (
        ran.first_line
        == "requirements.txt cannot be installed: No matching distribution found for optml-no-such-package==9.9"
    )


def test_a_shell_script_installs_for_itself_as_in_sagemaker(tmp_path: Path) -> None:
    ran = run(tmp_path, {"run.sh": "true", "requirements.txt": "./no-such-wheel.whl"}, program="run.sh")
    assert ran.exit_code == 0
    assert "requirements.txt is not installed for a shell script, as in SageMaker" in ran.log


@pytest.mark.parametrize(
    ("program", "with_setup"), [("mine.train", True), ("mine/train.py", True), ("mine.train", False)]
)
def test_a_package_is_installed_and_run_as_a_module(tmp_path: Path, program: str, with_setup: bool) -> None:
    files = {"mine/__init__.py": "", "mine/train.py": LOOK, "backend.py": BACKEND, "pyproject.toml": PYPROJECT}
    if with_setup:
        files["setup.py"] = ""
    folder = source(tmp_path / "src", files)
    cache = {"SAGEMAKER_MANAGED_WARMPOOL_CACHE_DIRECTORY": str(tmp_path / "cache")}
    ran = run(tmp_path, program=program, submit=folder, hyperparameters={"lr": 1}, variables=cache)
    assert ran.exit_code == 0, ran.log
    assert ran.saw["argv"][1:] == ["--lr", "1"]
    assert ran.saw["environment"]["SM_MODULE_NAME"] == program.removesuffix(".py")
    assert ("takes a folder with pyproject.toml, but no setup.py, for no package" in ran.log) is not with_setup
    assert importlib.util.find_spec("mine") is None


def test_the_cache_keeps_to_a_size_and_what_runs_is_not_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl

    monkeypatch.setattr(requirements, "MAX_ENVIRONMENTS", 1)
    for age, name in enumerate(("new", "in use", "old")):
        (tmp_path / name).mkdir()
        (tmp_path / name / requirements.COMPLETE).touch()
        os.utime(tmp_path / name / requirements.COMPLETE, (1000 - age, 1000 - age))
    with requirements.lock_of(tmp_path / "in use").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        requirements.forget_old(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["in use", "new"]


def test_a_tree_without_requirements_uses_this_python(tmp_path: Path) -> None:
    source(tmp_path / "ml" / "code", {"train.py": LOOK})
    root = tree(tmp_path / "ml", hyperparameters={"sagemaker_program": "train.py"})
    assert run_tree(root).saw["python"] == sys.executable
