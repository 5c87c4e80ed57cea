"""Words of messages."""


def counted(number: int, noun: str) -> str:
    """`1 row`, `1,000 rows`."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
