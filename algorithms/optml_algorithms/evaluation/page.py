"""An evaluation as text for a terminal, as JSON, and as one HTML file that needs nothing beside it."""

import base64
import html
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from optml_algorithms.evaluation.values import Evaluated
from optml_algorithms.words import counted

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; margin: 1rem 0; } td, th { padding: .25rem .9rem; text-align: right; }
tr { border-bottom: 1px solid #ddd; } td:first-child, th:first-child { text-align: left; }
.warning { background: #fff4d6; border-left: 4px solid #e0a800; padding: .5rem 1rem; margin: .5rem 0; }
img { max-width: 100%; width: 29rem; }
"""


def shown(value: float) -> str:
    if math.isnan(value):
        return "not defined"
    return (
        f"{value:,.0f}"
        if float(value).is_integer() and abs(value) >= 2
        else f"{value:.4f}"
        if abs(value) < 1e4
        else f"{value:.6g}"
    )


def text(evaluated: Evaluated, *, subject: str) -> str:
    """The table, the classes (few) and the warnings."""
    lines = [f"{subject}: {evaluated.task}, {counted(evaluated.row_count, 'row')}", ""]
    width = max(map(len, evaluated.values))
    lines += [f"{name:<{width}}  {shown(value):>12}" for name, value in evaluated.values.items()]
    if evaluated.per_class is not None and len(evaluated.per_class) <= 20:
        lines += ["", f"{'class':>7}  {'rows':>9}  precision  recall      F1"]
        lines += [
            f"{each:>7}  {int(row['rows']):>9,}  {row['precision']:>9.4f}  {row['recall']:.4f}  {row['F1']:.4f}"
            for each, row in evaluated.per_class.items()
        ]
    if evaluated.confusion is not None and len(evaluated.classes) <= 12:
        lines += ["", "confusion matrix (rows: true class, columns: predicted)"]
        cells = [["", *map(str, evaluated.classes)]]
        cells += [
            [str(each), *(f"{count:,}" for count in row)]
            for each, row in zip(evaluated.classes, evaluated.confusion.tolist(), strict=True)
        ]
        cell = max(len(text) for row in cells for text in row)
        lines += ["  ".join(f"{text:>{cell}}" for text in row) for row in cells]
    if evaluated.warnings:
        lines += ["", *(f"! {warning}" for warning in evaluated.warnings)]
    return "\n".join(lines)


def as_json(evaluated: Evaluated) -> dict[str, Any]:
    """Ready for json.dumps: what is not defined is null."""
    found: dict[str, Any] = {
        "task": evaluated.task,
        "rows": evaluated.row_count,
        "metrics": {name: None if math.isnan(value) else value for name, value in evaluated.values.items()},
        "warnings": list(evaluated.warnings),
    }
    if evaluated.confusion is not None:
        found["confusion_matrix"] = {"classes": list(evaluated.classes), "rows": evaluated.confusion.tolist()}
    if evaluated.per_class is not None:
        found["classes"] = {str(each): dict(row) for each, row in evaluated.per_class.items()}
    return found


def page(evaluated: Evaluated, *, subject: str, pictures: Sequence[Path]) -> str:
    """One HTML file, the pictures inside it."""
    rows = "".join(f"<tr><td>{html.escape(n)}</td><td>{shown(v)}</td></tr>" for n, v in evaluated.values.items())
    parts = [
        f"<h1>{html.escape(subject)}</h1>",
        f"<p>{evaluated.task}, {counted(evaluated.row_count, 'row')}</p>",
        *(f'<p class="warning">{html.escape(warning)}</p>' for warning in evaluated.warnings),
        f"<table><tr><th>metric</th><th>value</th></tr>{rows}</table>",
    ]
    if evaluated.per_class is not None:
        head = "<tr><th>class</th><th>rows</th><th>precision</th><th>recall</th><th>F1</th></tr>"
        body = "".join(
            f"<tr><td>{each}</td><td>{int(row['rows']):,}</td><td>{row['precision']:.4f}</td>"
            f"<td>{row['recall']:.4f}</td><td>{row['F1']:.4f}</td></tr>"
            for each, row in evaluated.per_class.items()
        )
        parts.append(f"<table>{head}{body}</table>")
    for picture in pictures:
        data = base64.b64encode(picture.read_bytes()).decode()
        parts.append(f'<img alt="{html.escape(picture.stem)}" src="data:image/png;base64,{data}">')
    title = html.escape(subject)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>{STYLE}</style></head>\n'
        f"<body>{''.join(parts)}</body></html>\n"
    )
