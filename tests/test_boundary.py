"""The two sides share only /opt/ml: what each root may import, read from the source."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = {
    "optml": ROOT / "runtime" / "optml",
    "optml_toolkit": ROOT / "containers" / "optml_toolkit",
    "optml_algorithms": ROOT / "algorithms" / "optml_algorithms",
}
MAY_IMPORT = {"optml": set(), "optml_toolkit": set(), "optml_algorithms": {"optml_toolkit"}}

# Read in the order of a job's way, no module imports a later step (design: "The way of a job").
STEPS = [
    "errors", "clock", "spec", "jobdir", "contract", "capacity", "events", "instance_metadata", "instances",
    "request_fields", "shapes", "script_mode", "loading", "request", "record", "s3", "objects", "transfers", "archives",
    "manifests", "distribute", "machine", "meeting", "images", "engine", "backends", "stage", "pipes", "mounted_code", "plan",
    "kept_requirements", "supervise", "console", "logs", "metrics", "checkpoints", "collect", "attempt", "running",
    "preparing", "waiting", "training", "ending", "run", "settle", "submit", "dry_run", "jobs", "models", "by_hand",
    "detached", "image_build", "doctor", "testing", "durations", "plan_options", "job_options", "image_commands",
    "model_commands", "cli",
]  # fmt: skip


def imported_modules(file: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import; the house spells packages out"
            module = node.module or ""
            found |= {module} | {f"{module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("package", PACKAGES)
def test_each_root_imports_only_what_it_may(package: str) -> None:
    files = sorted(PACKAGES[package].rglob("*.py"))
    assert files
    forbidden = set(PACKAGES) - {package} - MAY_IMPORT[package]
    wrong = {
        str(file.relative_to(ROOT)): sorted(used)
        for file in files
        if (used := {name for name in imported_modules(file) if name.partition(".")[0] in forbidden})
    }
    assert wrong == {}


def test_the_toolkit_needs_nothing_but_python() -> None:
    import sys

    distributed = PACKAGES["optml_toolkit"] / "distributed"  # for torch scripts: numpy only if the script has it
    for file in sorted(PACKAGES["optml_toolkit"].rglob("*.py")):
        tops = {name.partition(".")[0] for name in imported_modules(file)}
        more = {"torch", "numpy"} if file.is_relative_to(distributed) else set()
        assert tops <= set(sys.stdlib_module_names) | {"optml_toolkit"} | more, file


def test_only_the_toolkits_package_for_torch_imports_it() -> None:
    for file in sorted(PACKAGES["optml_toolkit"].rglob("*.py")):
        if "distributed" not in file.relative_to(PACKAGES["optml_toolkit"]).parts:
            assert not any(name.startswith("optml_toolkit.distributed") for name in imported_modules(file)), file


def test_no_module_of_the_platform_imports_a_later_step_at_its_top() -> None:
    place = {name: number for number, name in enumerate(STEPS)}
    wrong = []
    for file in sorted(PACKAGES["optml"].glob("*.py")):
        name = file.stem
        if name == "__init__":
            continue
        assert name in place, f"{name}.py has no place in the order of steps"
        tree = ast.parse(file.read_text(encoding="utf-8"))
        for node in tree.body:  # imports inside functions are late on purpose
            if isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] == "optml":
                parts = node.module.split(".")
                used = [parts[1]] if len(parts) > 1 else [alias.name for alias in node.names]
                wrong += [f"{name} imports {each}" for each in used if each in place and place[each] > place[name]]
    assert wrong == []


def test_asking_about_jobs_imports_nothing_heavy() -> None:
    import subprocess
    import sys

    heavy = "boto3 botocore numpy torch docker xgboost pyarrow yaml rich regex sklearn"
    code = f"import sys, optml.cli, optml.jobs, optml.logs; print([m for m in {heavy!r}.split() if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
