"""Durations on the command line: 90, 90s, 10m, 2h."""

import re
from typing import Any

import click

DURATION = re.compile(r"(?P<number>\d+(\.\d+)?)\s*(?P<unit>s|sec|m|min|h|d|)", re.IGNORECASE)
SECONDS_OF_UNIT = {"": 1, "s": 1, "sec": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}


class Duration(click.ParamType[float]):
    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, int | float):
            return float(value)
        match = DURATION.fullmatch(str(value).strip())
        if match is None:
            self.fail(f"{value!r} is not a duration such as 90, 90s, 10m or 2h", param, ctx)
        return float(match["number"]) * SECONDS_OF_UNIT[match["unit"].lower()]
