"""What a built-in algorithm's hyperparameters are: python -m optml_algorithms.describe NAME [--json]

A table for people, JSON for programs such as a tuner. Everything comes from where the algorithm declares it.
"""

import difflib
import importlib
import json
import shutil
import sys
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from optml_algorithms.hyperparameters import Hyperparameter, Interval
from optml_algorithms.models import ALGORITHMS
from optml_algorithms.programs import Arguments, user_errors
from optml_toolkit.container import UserError

GAP = "  "
NARROWEST_ABOUT = 24  # characters; below that a column is no help


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Arguments(prog="optml describe-algorithm", description="What an algorithm can be given.")
    parser.add_argument("name", metavar="NAME", help=", ".join(ALGORITHMS))
    parser.add_argument("--json", action="store_true", help="for programs")
    given = parser.parse_args(arguments)
    with user_errors() as end:
        description = describe(given.name)
        print(
            json.dumps(description, indent=2, ensure_ascii=False)
            if given.json
            else table(description, width=terminal_width())
        )
    return end.status


def describe(name: str) -> dict[str, Any]:
    """JSON-ready: `hyperparameters`, a list in the order of their declaration, and `metrics` with what is better."""
    declared, metrics = declaration(name)
    return {
        "algorithm": name,
        "hyperparameters": [described(each) for each in declared],
        "metrics": [{"name": metric, "goal": goal} for metric, goal in metrics.items()],
    }


def declaration(name: str) -> tuple[Sequence[Hyperparameter], Mapping[str, str]]:
    """UserError for an algorithm that is not here."""
    if name not in ALGORITHMS:
        near = difflib.get_close_matches(name.lower().replace("_", "-"), ALGORITHMS, n=1)
        meant = f"; did you mean {near[0]!r}?" if near else ""
        raise UserError(f"there is no algorithm {name!r}{meant}; there are {', '.join(ALGORITHMS)}")
    package = f"{ALGORITHMS[name]}.hyperparameters"
    try:
        module = importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name is None or not package.startswith(error.name):
            raise
        raise UserError(f"this version has no {name} yet") from None
    return module.HYPERPARAMETERS, module.TUNABLE_METRICS


def described(each: Hyperparameter) -> dict[str, Any]:
    """Only what there is to say: no key with nothing behind it, but for `default`."""
    found: dict[str, Any] = {"name": each.name, "type": each.kind, "required": each.required, "default": each.default}
    if isinstance(each.allowed, Interval):
        found |= bounds(each.allowed)
    elif each.allowed is not None:
        found["choices"] = list(each.allowed)
    elif each.choices_shown:
        found["choices"] = list(each.choices_shown)
    if each.literals:
        found["literals"] = list(each.literals)
    if each.aliases:
        found["aliases"] = list(each.aliases)
    if each.depends_on:
        found["depends_on"] = each.depends_on
    if each.tunable is not None and each.tunable.values:
        found["tunable"] = {"values": list(each.tunable.values)}
    elif each.tunable is not None:
        found["tunable"] = {
            "min": each.tunable.low,
            "max": each.tunable.high,
            "integer": each.tunable.whole,
            "scaling": each.tunable.scaling,
        }
    if each.about:
        found["about"] = each.about
    return found


def bounds(interval: Interval) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value, is_open in (("min", interval.low, interval.low_open), ("max", interval.high, interval.high_open)):
        if abs(value) != float("inf"):
            found |= {key: value, f"{key}_is_excluded": is_open}
    return found


def terminal_width() -> int | None:
    """None where nobody looks: a line for each hyperparameter, for grep."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def table(description: Mapping[str, Any], *, width: int | None = None) -> str:
    """Not wider than `width` characters: the last column is wrapped, or, where it has no room, on lines of its own."""
    rows = [("NAME", "TYPE", "DEFAULT", "ALLOWED", "TUNED OVER", "ABOUT")]
    for each in description["hyperparameters"]:
        rows.append(
            (
                " ".join([each["name"], *(f"({alias})" for alias in each.get("aliases", ()))]),
                each["type"],
                "required" if each["required"] else "" if each["default"] is None else str(each["default"]),
                allowed_text(each),
                tuned_text(each.get("tunable")),
                each.get("about", "") + (f" -- with {each['depends_on']}" if "depends_on" in each else ""),
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    if width is None:
        lines = [between_columns(row, widths) for row in rows]
    elif width - width_before_last(widths) >= NARROWEST_ABOUT:
        lines = [line for row in rows for line in with_wrapped_end(row, widths, width)]
    else:
        lines = [line for row in rows[1:] for line in below_its_name(row, rows[0], width)]
    goals = [f"{metric['name']} ({metric['goal'].lower()})" for metric in description["metrics"]]
    metrics = "Metrics for a tuner: " + ", ".join(goals)
    return "\n".join([*lines, "", *([metrics] if width is None else wrapped(metrics, width))])


def width_before_last(widths: Sequence[int]) -> int:
    return sum(widths[:-1]) + len(GAP) * (len(widths) - 1)


def with_wrapped_end(row: Sequence[str], widths: Sequence[int], width: int) -> list[str]:
    before = width_before_last(widths)
    first, *rest = wrapped(row[-1], width - before) or [""]
    return [between_columns([*row[:-1], first], widths), *(" " * before + line for line in rest)]


def below_its_name(row: Sequence[str], heads: Sequence[str], width: int) -> list[str]:
    name, kind, default, *cells, about = row
    facts = [kind, default if default in ("required", "") else f"default {default}"]
    facts += [f"{head.lower()} {cell}" for head, cell in zip(heads[3:], cells, strict=False) if cell]
    lines = wrapped("; ".join(filter(None, facts)), width - 4) + wrapped(about, width - 4)
    return [name, *(f"    {line}" for line in lines)]


def between_columns(row: Sequence[str], widths: Sequence[int]) -> str:
    return GAP.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, max(width, 20), break_on_hyphens=False)


def tuned_text(tuned: Mapping[str, Any] | None) -> str:
    if tuned is None:
        return ""
    if "values" in tuned:
        return " ".join(tuned["values"])
    return f"{tuned['min']:g} to {tuned['max']:g}, {tuned['scaling'].lower()}"


def allowed_text(each: Mapping[str, Any]) -> str:
    if "choices" in each:
        text = " ".join(str(choice) for choice in each["choices"])
        return text if len(text) <= 60 else f"{len(each['choices'])} names; see --json"
    literals = "".join(f"{word} or " for word in each.get("literals", ()))
    if each["type"] not in ("integer", "number"):
        return ""
    interval = Interval(
        low=each.get("min", -float("inf")),
        high=each.get("max", float("inf")),
        low_open=each.get("min_is_excluded", False),
        high_open=each.get("max_is_excluded", False),
    )
    return f"{literals}{interval}"


if __name__ == "__main__":
    sys.exit(main())
