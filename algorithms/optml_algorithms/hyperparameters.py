"""Declare a hyperparameter once: its type, what it may be, its other names. Parsing, checking and describing follow from that.

Every value arrives as a string. Messages are those of AWS's own containers, but all problems are told at once.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optml_toolkit.container import UserError


@dataclass(frozen=True, kw_only=True)
class Interval:
    """From `low` to `high`, each included unless it is open."""

    low: float = -math.inf
    high: float = math.inf
    low_open: bool = False
    high_open: bool = False

    def __contains__(self, value: float) -> bool:
        above = value > self.low if self.low_open else value >= self.low
        below = value < self.high if self.high_open else value <= self.high
        return above and below

    def __str__(self) -> str:
        begin = "(-inf" if self.low == -math.inf else f"{'(' if self.low_open else '['}{self.low:g}"
        end = "+inf)" if self.high == math.inf else f"{self.high:g}{')' if self.high_open else ']'}"
        return f"{begin}, {end}"


@dataclass(frozen=True, kw_only=True)
class Hyperparameter:
    """`parse` gives the value, or ValueError; `allowed` is where it (or each of a list) must be."""

    name: str
    parse: Callable[[str], Any]
    allowed: Interval | Sequence[Any] | None = None
    required: bool = False
    aliases: tuple[str, ...] = ()

    def problems(self, value: Any) -> Iterator[str]:
        if self.allowed is None:
            return
        if isinstance(self.allowed, Interval):
            if value not in self.allowed:
                yield f"Hyperparameter {self.name}: {value} is not in {self.allowed}"
        elif isinstance(value, list):
            wrong = [item for item in value if item not in self.allowed]
            if wrong:
                yield f"Hyperparameter {self.name}: value {wrong} not in range {list(self.allowed)}"
        elif value not in self.allowed:
            yield f"Hyperparameter {self.name}: {value} is not in {list(self.allowed)}"


def integer(name: str, interval: Interval = Interval(), *, required: bool = False) -> Hyperparameter:
    return Hyperparameter(name=name, parse=int, allowed=interval, required=required)


def number(name: str, interval: Interval = Interval(), *, aliases: tuple[str, ...] = ()) -> Hyperparameter:
    return Hyperparameter(name=name, parse=_finite, allowed=interval, aliases=aliases)


def choice(name: str, *choices: str) -> Hyperparameter:
    return Hyperparameter(name=name, parse=str.strip, allowed=choices)


def choices(name: str, *allowed: str) -> Hyperparameter:
    """Several, with commas between."""
    return Hyperparameter(name=name, parse=_words, allowed=allowed)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return value


def _words(text: str) -> list[str]:
    words = [word.strip() for word in text.split(",")]
    if not all(words):
        raise ValueError(text)
    return words


def parse(declared: Sequence[Hyperparameter], given: Mapping[str, str]) -> dict[str, Any]:
    """Values by name, of those that were given. UserError has every problem, a line each."""
    by_name = {name: each for each in declared for name in (each.name, *each.aliases)}
    problems: list[str] = []
    values: dict[str, Any] = {}
    for name, text in given.items():
        if name not in by_name:
            problems.append(f"Extraneous hyperparameter found: {name}")
            continue
        each = by_name[name]
        if each.name in values:
            problems.append(f"Hyperparameter {each.name} is there twice, for {name} is another name of it")
            continue
        try:
            value = each.parse(text)
        except (ValueError, SyntaxError):
            problems.append(f"Hyperparameter {name}: could not parse value {text[:100]!r}")
            continue
        found = list(each.problems(value))
        problems += found
        if not found:
            values[each.name] = value
    problems += [
        f"Missing required hyperparameter: {each.name}"
        for each in declared
        if each.required and not {each.name, *each.aliases} & given.keys()
    ]
    if problems:
        raise UserError("\n".join(problems))
    return values
