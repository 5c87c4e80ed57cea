"""What the README and the pages of docs show is run: every console block, in order, and the README's Python block; their output
must be what it says.

Blocks marked `console docker` need an engine, and run in a test of their own. Each page is a reader's first."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")))}


@dataclass
class Shown:
    """A command, and the lines that a page shows under it; `...` stands for any number of lines."""

    command: str
    lines: list[str] = field(default_factory=list)


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGES[page], re.MULTILINE | re.DOTALL)


def pages_with(language: str) -> list[str]:
    return [page for page in PAGES if blocks(page, language)]


def shown_commands(page: str, language: str) -> list[Shown]:
    found: list[Shown] = []
    for line in "".join(blocks(page, language)).splitlines():
        if line.startswith("$ "):
            found.append(Shown(line[2:]))
        else:
            found[-1].lines.append(line)
    return found


def without_numbers(line: str) -> str:
    """Times, sizes and scores differ from run to run and between versions of a library."""
    return re.sub(r"\d+(\.\d+)?", "#", line).rstrip()


@pytest.fixture
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the pages' relative paths hold."""
    folder = tmp_path_factory.mktemp("read me")
    (folder / "scripts").mkdir()
    shutil.copytree(ROOT / "scripts" / "examples", folder / "scripts" / "examples")
    return folder


def run_in(folder: Path, argv: list[str]) -> "subprocess.CompletedProcess[str]":
    """With this Python and its `optml` first on the PATH, as after `source .venv/bin/activate`."""
    environment = {
        **os.environ,
        "OPTML_HOME": str(folder / "home"),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    return subprocess.run(argv, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False)


def test_pages_that_show_commands_are_found() -> None:
    assert {"README.md", "algorithms.md"} <= set(pages_with("console"))
    assert {"README.md", "by-hand.md"} <= set(pages_with("console docker"))
    assert len(shown_commands("README.md", "console")) > 10


@pytest.mark.slow
@pytest.mark.parametrize("page", pages_with("console"))
def test_every_console_command_does_what_its_page_shows(scratch: Path, page: str) -> None:
    run_all(scratch, shown_commands(page, "console"))


@pytest.mark.slow
@pytest.mark.docker
@pytest.mark.parametrize("page", pages_with("console docker"))
def test_every_command_with_containers_does_what_its_page_shows(
    scratch: Path, docker_image: Callable[[str], str], page: str
) -> None:
    docker_image("python")  # or this machine has no base image, and is told so
    make_data(scratch)
    run_all(scratch, shown_commands(page, "console docker"))


def make_data(scratch: Path) -> None:
    if not (scratch / "data").exists():
        run_in(scratch, ["python", "scripts/examples/make_data.py", "data"]).check_returncode()


def run_all(scratch: Path, commands: list[Shown]) -> None:
    for shown in commands:
        done = run_in(scratch, ["bash", "-c", shown.command])
        assert done.returncode == 0, f"{shown.command}\n{done.stdout}{done.stderr}"
        pattern = "\n".join(".*" if line == "..." else re.escape(without_numbers(line)) for line in shown.lines)
        actual = "\n".join(without_numbers(line) for line in done.stdout.splitlines())
        assert re.fullmatch(pattern, actual, re.DOTALL), f"{shown.command}\n{done.stdout}"


@pytest.mark.slow
def test_the_python_block_runs(scratch: Path) -> None:
    (block,) = blocks("README.md", "python")
    make_data(scratch)
    done = run_in(scratch, ["python", "-c", block])
    assert done.returncode == 0, done.stderr
    first, value, last = [line for line in done.stdout.splitlines() if not line.startswith("optml")]
    assert first.startswith("Completed file://")
    assert float(value) > 0
    assert last.startswith("Stopped ")


@pytest.mark.slow
def test_the_demo_trains_and_shows_where_the_model_is(tmp_path: Path) -> None:
    """The README's first command, on the environment that the tests run in."""
    venv = Path(sys.executable).parents[1]
    if not (venv / ".optml-extras").exists():
        pytest.skip("the tests do not run in the environment that scripts/test makes")
    done = subprocess.run(
        [ROOT / "scripts" / "demo"],
        env={**os.environ, "OPTML_HOME": str(tmp_path / "my home"), "OPTML_VENV": str(venv)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "validation-auc:" in done.stdout
    error = re.search(r"wrong on \d+ of 143 rows: error ([\d.]+)$", done.stdout, re.MULTILINE)
    assert error is not None
    assert float(error[1]) < 0.1
    assert len(list((tmp_path / "my home" / "output").glob("demo-*[0-9]/output/model.tar.gz"))) == 1
    without, with_checkpoints = re.findall(r"DRILL  (.+)$", done.stdout, re.MULTILINE)
    assert without.startswith("does NOT survive: restarted from zero after each interruption")
    assert with_checkpoints.startswith("survives 2 interruptions")
    last = done.stdout.splitlines()[-1]
    assert Path(last.rpartition("report: ")[2]).read_text().startswith("<!doctype html>")


def test_files_that_the_readme_and_the_guide_name_are_there() -> None:
    names = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", *(f"docs/{page}" for page in PAGES if page != "README.md"))
    for name in names:
        text = (ROOT / name).read_text(encoding="utf-8")
        linked = re.findall(r"\]\((?!http)([^)#]+)(?:#[^)]*)?\)", text)
        named = re.findall(r"`((?:scripts|runtime|containers|tests|docs)/[\w./-]+)`", text)
        missing = [path for path in linked if not (ROOT / name).parent.joinpath(path).exists()]
        missing += [path for path in named if not (ROOT / path.rstrip("/")).exists()]
        assert missing == [], name
