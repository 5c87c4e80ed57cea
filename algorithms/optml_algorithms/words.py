"""Words of messages."""

import difflib
from collections.abc import Iterable


def counted(number: int, noun: str) -> str:
    """`1 row`, `1,000 rows`."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def near(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'num_round'?`, or nothing if no known word resembles it."""
    by_lower = {each.lower(): each for each in known}
    found = difflib.get_close_matches(word[:100].strip().lower(), by_lower, n=1, cutoff=0.75)
    return f"; did you mean {by_lower[found[0]]!r}?" if found else ""
