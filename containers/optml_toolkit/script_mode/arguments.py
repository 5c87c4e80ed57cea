"""Hyperparameters -> the script's arguments, one word each, whatever is in them. No shell ever sees them."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

PLAIN = re.compile(r"[\w@%+=:,./-]+", re.ASCII)  # what a shell leaves as it is


def to_arguments(hyperparameters: Mapping[str, Any]) -> list[str]:
    """`--name value` in the order of the names (`-n value` for one letter), values spelled as AWS's toolkit does.

    True -> `True`; null -> an empty word; a list as Python writes it, `[1, 2]`; an object as `a=1,b=2`.
    """
    words: list[str] = []
    for name, value in sorted(hyperparameters.items()):
        words += [option(name), spelled(value)]
    return words


def option(name: str) -> str:
    if not name:
        return ""
    return f"--{name}" if len(name) > 1 else f"-{name}"


def spelled(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, Mapping):
        return ",".join(f"{key}={item}" for key, item in sorted(value.items()))
    return str(value)


def hazards(arguments: Sequence[str]) -> list[str]:
    """Arguments that a shell would split, execute or drop, with their option before them."""
    return [
        f"{before} {word!r}" if number % 2 else repr(word)
        for number, (before, word) in enumerate(zip(["", *arguments], arguments, strict=False))
        if not PLAIN.fullmatch(word)
    ]
