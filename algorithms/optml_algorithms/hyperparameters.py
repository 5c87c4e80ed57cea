"""Declare a hyperparameter once: its type, what it may be, its other names. Parsing, checking and describing follow from that.

Every value arrives as a string. Messages are those of AWS's own containers, but all problems are told at once.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optml_algorithms.words import near
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
        begin = "(-inf" if self.low == -math.inf else f"{'(' if self.low_open else '['}{_shown(self.low)}"
        end = "+inf)" if self.high == math.inf else f"{_shown(self.high)}{')' if self.high_open else ']'}"
        return f"{begin}, {end}"


def _shown(bound: float) -> str:
    return str(int(bound)) if float(bound).is_integer() and abs(bound) < 1e16 else f"{bound:g}"


@dataclass(frozen=True, kw_only=True)
class Tunable:
    """The range that AWS recommends to a tuner. `scale`: Linear or Logarithmic, by the range unless it is given.

    `values` are what a categorical one is chosen from, instead of a range.
    """

    low: float = 0.0
    high: float = 0.0
    whole: bool = False  # only whole numbers
    scale: str = ""
    values: tuple[str, ...] = ()

    @property
    def scaling(self) -> str:
        return self.scale or ("Logarithmic" if self.low > 0 and self.high / self.low >= 100 else "Linear")


@dataclass(frozen=True, kw_only=True)
class Hyperparameter:
    """`parse` gives the value, or ValueError; `allowed` is where it (or each of a list) must be.

    `literals` are words that may stand where a number does (`auto`). `default` is what holds if it is not given, None for
    nothing. `about` and `depends_on` are for people: what it does, and when it counts.
    """

    name: str
    parse: Callable[[str], Any]
    kind: str = "text"  # integer, number, choice, boolean, list, text
    allowed: Interval | Sequence[Any] | None = None
    literals: tuple[str, ...] = ()
    required: bool = False
    default: Any = None
    aliases: tuple[str, ...] = ()
    depends_on: str = ""
    tunable: Tunable | None = None
    about: str = ""
    choices_shown: tuple[str, ...] = ()  # of a list that `parse` or the algorithm checks

    def value_of(self, text: str) -> Any:
        return text.strip() if text.strip() in self.literals else self.parse(text)

    @property
    def expected(self) -> str:
        """What may be given, in words: `an integer in [1, +inf) or 'auto'`."""
        kinds = {"integer": "an integer", "number": "a number", "boolean": "true or false"}
        if self.kind in kinds:
            text = kinds[self.kind] + (f" in {self.allowed}" if isinstance(self.allowed, Interval) else "")
        else:
            text = "text" if self.allowed is None else f"one of {list(map(str, self._choices()))}"
        return " or ".join([text, *map(repr, self.literals)])

    def _choices(self) -> Sequence[Any]:
        return () if self.allowed is None or isinstance(self.allowed, Interval) else self.allowed

    def near(self, value: Any) -> str:
        """The choice that was meant, if one is."""
        return near(str(value), [each for each in (*self._choices(), *self.literals) if isinstance(each, str)])

    def problems(self, value: Any) -> Iterator[str]:
        if self.allowed is None or (isinstance(value, str) and value in self.literals):
            return
        if isinstance(self.allowed, Interval):
            if value not in self.allowed:
                yield f"Hyperparameter {self.name}: {value} is not in {self.allowed}"
        elif isinstance(value, list):
            wrong = [item for item in value if item not in self.allowed]
            if wrong:
                yield f"Hyperparameter {self.name}: value {wrong} not in range {list(self.allowed)}"
        elif value not in self.allowed:
            yield f"Hyperparameter {self.name}: {value} is not in {list(self.allowed)}{self.near(value)}"


def integer(name: str, interval: Interval = Interval(), **more: Any) -> Hyperparameter:
    return Hyperparameter(name=name, kind="integer", parse=int, allowed=interval, **more)


def number(name: str, interval: Interval = Interval(), **more: Any) -> Hyperparameter:
    return Hyperparameter(name=name, kind="number", parse=_finite, allowed=interval, **more)


def choice(name: str, *choices: str, **more: Any) -> Hyperparameter:
    return Hyperparameter(name=name, kind="choice", parse=str.strip, allowed=choices, **more)


def choices(name: str, *allowed: str, **more: Any) -> Hyperparameter:
    """Several, with commas between."""
    return Hyperparameter(name=name, kind="list", parse=_words, allowed=allowed, **more)


def boolean(name: str, **more: Any) -> Hyperparameter:
    """true or false, however it is capitalised; the value is a bool."""
    return Hyperparameter(name=name, kind="boolean", parse=_truth, **more)


def _truth(text: str) -> bool:
    found = {"true": True, "false": False, "1": True, "0": False}.get(text.strip().lower())
    if found is None:
        raise ValueError(text)
    return found


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


@dataclass(frozen=True, kw_only=True)
class Wording:
    """How AWS's containers say that a name is unknown, a value wrong, or a required one missing."""

    unknown: str
    missing: str
    wrong: str | None = None  # None: each kind of mistake has its own words


XGBOOST_WORDING = Wording(
    unknown="Extraneous hyperparameter found: {name}", missing="Missing required hyperparameter: {name}"
)
SCHEMA_WORDING = Wording(  # the closed algorithms', which check a JSON schema
    unknown="Additional properties are not allowed ('{name}' was unexpected)",
    missing="'{name}' is a required property",
    wrong="Hyperparameter {name}: {value!r} is not valid under any of the given schemas: expected {expected}",
)


def parse(
    declared: Sequence[Hyperparameter], given: Mapping[str, str], *, wording: Wording = XGBOOST_WORDING
) -> dict[str, Any]:
    """Values by name, of those that were given. UserError has every problem, a line each."""
    by_name = {name: each for each in declared for name in (each.name, *each.aliases)}
    problems: list[str] = []
    values: dict[str, Any] = {}
    for name, text in given.items():
        if name not in by_name:
            problems.append(wording.unknown.format(name=name) + near(name, by_name.keys() - given.keys()))
            continue
        each = by_name[name]
        if each.name in values:
            problems.append(f"Hyperparameter {each.name} is there twice, for {name} is another name of it")
            continue
        try:
            value = each.value_of(text)
        except (ValueError, SyntaxError):
            found = [f"Hyperparameter {name}: could not parse value {text[:100]!r}"]
        else:
            found = list(each.problems(value))
        if found and wording.wrong is not None:
            found = [wording.wrong.format(name=name, value=text[:100], expected=each.expected) + each.near(text)]
        problems += found
        if not found:
            values[each.name] = value
    problems += [
        wording.missing.format(name=each.name)
        for each in declared
        if each.required and not {each.name, *each.aliases} & given.keys()
    ]
    if problems:
        raise UserError("\n".join(problems))
    return values
