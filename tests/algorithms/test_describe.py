"""What the algorithms say of their hyperparameters, beside the table of facts."""

import contextlib
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from optml_algorithms.describe import describe, table
from optml_algorithms.models import ALGORITHMS

FACTS = Path(__file__).resolve().parents[2].parent / "shared" / "facts" / "algorithms"
KINDS = {"int": "integer", "float": "number", "categorical": "choice", "list": "list", "bool": "boolean"}

# (name, what): why ours is another.
DELIBERATE = {
    ("base_score", "default"): "XGBoost 2 and later estimate it from the labels",
    ("updater", "default"): "chosen by tree_method in XGBoost of today",
    ("monotone_constraints", "default"): "none, whatever the number of features",
    ("interaction_constraints", "min"): "feature 0 is a feature; AWS's container refuses it",
    ("deterministic_histogram", "default"): "of older versions, without effect",
    ("single_precision_histogram", "default"): "of older versions, without effect",
    ("sketch_eps", "default"): "of older versions, without effect",
    ("predictor", "default"): "of older versions, without effect",
    ("silent", "default"): "of version 0.72; verbosity has the default",
    ("aft_loss_distribution_scale", "min_is_excluded"): "a scale of 0 divides by zero",
    ("eval_metric", "depends_on"): "needs no objective: the default objective has metrics too",
    ("updater", "depends_on"): "checked, and told where it is wrong",
    ("use_dask_gpu_training", "depends_on"): "only false: there is no Dask",
    ("_kfold", "depends_on"): "needs neither objective nor num_class",
}


@pytest.mark.skipif(not FACTS.is_dir(), reason="the facts are not beside this checkout")
def test_each_hyperparameter_of_xgboost_is_declared_as_in_the_table_of_facts() -> None:
    ours = {each["name"]: each for each in describe("xgboost")["hyperparameters"]}
    facts = {each["name"]: each for each in json.loads((FACTS / "xgboost.json").read_text())["hyperparameters"]}
    assert set(ours) == set(facts)
    assert len(ours) == 55
    differ = {(name, what) for name in ours for what in differences(ours[name], facts[name])}
    assert differ == set(DELIBERATE)


def differences(ours: dict[str, Any], fact: dict[str, Any]) -> list[str]:
    pairs = {
        "type": (ours["type"], KINDS[fact["type"]]),
        "required": (ours["required"], fact["required"]),
        "default": (ours["default"], fact["default"]),
        "min": (ours.get("min"), fact["min"]),
        "max": (ours.get("max"), fact["max"]),
        "min_is_excluded": (ours.get("min_is_excluded", False), "min" in fact["exclusive"]),
        "max_is_excluded": (ours.get("max_is_excluded", False), "max" in fact["exclusive"]),
        "choices": (set(map(str, ours.get("choices", ()))), set(map(str, fact["choices"] or ()))),
        "aliases": (ours.get("aliases", []), fact.get("aliases", [])),
        "depends_on": ("depends_on" in ours, fact["depends_on"] is not None),
        "tunable": (tuned(ours), recommended(fact)),
    }
    return [what for what, (mine, wanted) in pairs.items() if mine != wanted]


def tuned(ours: dict[str, Any]) -> Any:
    found = ours.get("tunable")
    return None if found is None else (found["min"], found["max"], found["integer"])


def recommended(fact: dict[str, Any]) -> Any:
    found = fact["recommended_range"]
    return None if found is None else (found["min"], found["max"], found["kind"] == "IntegerParameterRanges")


@pytest.mark.skipif(not FACTS.is_dir(), reason="the facts are not beside this checkout")
def test_metrics_for_a_tuner_are_the_published_ones_and_an_accuracy_is_maximised() -> None:
    ours = {each["name"]: each["goal"] for each in describe("xgboost")["metrics"]}
    facts = {each["name"]: each["goal"] for each in json.loads((FACTS / "xgboost.json").read_text())["metrics"]}
    facts["validation:interval-regression-accuracy"] = "Maximize"  # AWS's table says Minimize
    assert ours == facts


def test_the_table_has_a_line_for_each_and_says_what_is_required() -> None:
    text = table(describe("xgboost"))
    (line,) = [line for line in text.splitlines() if line.startswith("num_round ")]
    assert "required" in line
    assert "[1, +inf)" in line
    assert "1 to 4000, logarithmic" in line
    assert "eta (learning_rate)" in text


@pytest.mark.parametrize("width", [80, 150, 250])
@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_table_is_not_wider_than_the_terminal_and_says_the_same(name: str, width: int) -> None:
    described = describe(name)
    narrow = table(described, width=width)
    assert max(map(len, narrow.splitlines())) <= width
    for each in described["hyperparameters"]:
        assert each["name"] in narrow
    for line in table(described).splitlines()[1:]:
        for word in line.split():
            assert word in narrow


def test_the_terminals_width_is_respected() -> None:
    program = [sys.executable, "-m", "optml_algorithms.describe", "xgboost"]
    environment = {**os.environ, "COLUMNS": "90"}
    ours, theirs = os.openpty()
    with subprocess.Popen(program, stdout=theirs, env=environment):
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):  # the end of a terminal whose last program has ended
            while part := os.read(ours, 4096):
                shown += part
    os.close(ours)
    assert 80 < max(map(len, shown.decode().splitlines())) <= 90
    piped = subprocess.run(program, capture_output=True, text=True, check=True, env=environment).stdout
    assert max(map(len, piped.splitlines())) > 150  # for grep: a line for each


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_algorithm_describes_itself(name: str) -> None:
    """What `optml_algorithms/models.py` asks of each."""
    if importlib.util.find_spec(ALGORITHMS[name]) is None:
        pytest.skip(f"this version has no {name} yet")
    described = describe(name)
    assert described["hyperparameters"]
    assert described["metrics"]
    assert {metric["goal"] for metric in described["metrics"]} <= {"Maximize", "Minimize"}
    for each in described["hyperparameters"]:
        assert each["type"] in ("integer", "number", "choice", "boolean", "list", "text")
    assert json.loads(json.dumps(described)) == described
    assert len(table(described).splitlines()) == len(described["hyperparameters"]) + 3


def test_describing_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom optml_algorithms.describe import main\nmain(['xgboost', '--json'])\n"
        "heavy = 'numpy xgboost sklearn torch pyarrow'.split()\n"
        "print([name for name in heavy if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
    assert json.loads(done.stdout)["algorithm"] == "xgboost"
