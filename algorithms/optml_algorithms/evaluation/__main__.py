"""How good predictions are: python -m optml_algorithms.evaluation --model MODEL_DIR --data DATA, or --predictions FILE

Prints a table and what to mistrust about it; with --output also pictures (PNG) and one HTML page.
"""

import argparse
import csv as csv_module
import itertools
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from optml_algorithms.evaluation.page import as_json, page, text
from optml_algorithms.evaluation.values import evaluate, guessed_task
from optml_algorithms.models import Prediction, Task
from optml_algorithms.predict import add_data_options, add_model_name, load_called, predict, rows_of, written
from optml_algorithms.programs import Arguments, leave, user_errors
from optml_algorithms.words import counted
from optml_toolkit.container import UserError

COLUMNS = ("label", "predicted_label", "score", "group")
LABELS = ("label", "predicted_label")
NUMBER_THE_CLASSES = "number the classes from 0 on in all files alike, as scikit-learn's LabelEncoder does"
SCORE_OF_CLASS = re.compile(r"score_(\d+)")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Arguments(prog="optml evaluate", description="How good a model or its predictions are.")
    parser.add_argument("--model", type=Path, metavar="MODEL_DIR")
    parser.add_argument("--data", type=Path, help="labelled data for --model")
    parser.add_argument(
        "--predictions", type=Path, metavar="FILE", help="what optml predict wrote, or any CSV or JSON lines"
    )
    parser.add_argument("--labels", type=Path, metavar="FILE", help="its first column has the labels of --predictions")
    parser.add_argument(
        "--columns", metavar="NAMES", help="of a CSV without a header: label,predicted_label,score,group,-"
    )
    parser.add_argument("--task", choices=get_args(Task), help="default: the model's, or what the values look like")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="write pictures and index.html there")
    parser.add_argument("--subject", help="title of the page")
    parser.add_argument("--json", action="store_true", help="for programs")
    add_model_name(parser)
    add_data_options(parser, label_size=1)
    with user_errors() as end:
        run(parser.parse_args(arguments))
    return end.status


def run(given: argparse.Namespace) -> None:
    if (given.model is None) != (given.data is None) or (given.model is None) == (given.predictions is None):
        raise UserError("give a model and data, or predictions")
    if given.output is not None:
        from optml_algorithms.evaluation.pictures import need_matplotlib

        if given.output.exists() and not given.output.is_dir():
            raise UserError(f"--output {given.output} is a file: give a folder, which is made if it is not there")
        need_matplotlib()
    task: Task
    if given.model is not None:
        task, labels, prediction, groups = from_model(given)
    else:
        table = columns_of_file(given.predictions, given.columns)
        if given.labels is not None:
            table["label"] = labels_of(given.labels, given.content_type)
        labels, prediction, groups = from_table(table, given.predictions)
        task = guessed_task(labels, prediction)
    task = given.task or task
    evaluated = evaluate(task, labels, prediction, groups)
    subject = given.subject or str(given.predictions or given.data)
    print(json.dumps(as_json(evaluated), indent=2) if given.json else text(evaluated, subject=subject))
    if given.output is not None:
        from optml_algorithms.evaluation.pictures import draw

        try:
            given.output.mkdir(parents=True, exist_ok=True)
            pictures = draw(evaluated, labels, prediction, given.output)
        except OSError as error:
            raise UserError(f"{given.output} cannot be written: {error.strerror or error}") from error
        with written(given.output / "index.html") as stream:
            stream.write(page(evaluated, subject=subject, pictures=pictures))
        print(f"{given.output / 'index.html'}", file=sys.stderr if given.json else sys.stdout)


def from_model(given: argparse.Namespace) -> tuple[Task, Any, Prediction, Any]:
    """What the model says of labelled data, batch by batch."""
    import numpy

    model = load_called(given.model, given.called)
    labels, predicted, scores, groups = [], [], [], []
    is_probability = False
    for rows in rows_of(given.data, given.content_type, given.label_size):
        if rows.labels is None or rows.labels.ndim != 1:
            raise UserError(f"{rows.where(0)}: evaluation needs one label for each row: --label-size 1")
        prediction = predict(model, rows)
        labels.append(rows.labels)
        predicted.append(prediction.predicted_label)
        scores.append(prediction.score)
        groups.append(rows.groups)
        is_probability = prediction.is_probability
    if not labels:
        raise UserError(f"there are no rows in {given.data}")
    joined = Prediction(
        predicted_label=numpy.concatenate(predicted),
        score=None if scores[0] is None else numpy.concatenate(scores),
        is_probability=is_probability,
    )
    return model.task, numpy.concatenate(labels), joined, None if groups[0] is None else numpy.concatenate(groups)


def columns_of_file(file: Path, names: str | None) -> dict[str, Any]:
    """Columns by name, float64 of shape (rows,)."""
    import pyarrow
    from pyarrow import csv

    try:
        with file.open(encoding="utf-8") as stream:
            first_line = next((line for line in stream if line.strip()), "")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if not first_line:
        raise UserError(f"{file} is empty")
    if first_line.lstrip().startswith("{"):
        return _columns_of_json_lines(file)
    first = [cell.strip() for cell in first_line.split(",")]
    has_header = not all(_is_number(cell) for cell in first)
    columns = (
        [name.strip() for name in names.split(",")]
        if names is not None
        else first
        if has_header
        else {1: ["predicted_label"]}.get(len(first), [])
    )
    if not columns:
        raise UserError(
            f"{file} has no header: say what its columns are, with --columns label,score,predicted_label (- for none)"
        )
    if len(columns) != len(first):
        raise UserError(f"{file} has {counted(len(first), 'column')}, and --columns names {len(columns)}")
    unknown = [name for name in columns if name not in (*COLUMNS, "-") and not SCORE_OF_CLASS.fullmatch(name)]
    if unknown:
        raise UserError(
            f"{file}: unknown column {unknown[0]!r}; there are {', '.join(COLUMNS)}, score_0, score_1, ... and -"
        )
    kept = [name for name in columns if name != "-"]
    if len(set(kept)) < len(kept):
        raise UserError(f"{file}: two columns have the same name: {', '.join(columns)}")
    unique = [str(place) for place in range(len(columns))]
    try:
        table = csv.read_csv(
            file,
            read_options=csv.ReadOptions(column_names=unique, skip_rows=int(has_header)),
            convert_options=csv.ConvertOptions(column_types=dict.fromkeys(unique, pyarrow.float64())),
        )
    except pyarrow.ArrowInvalid as error:
        if (text := _first_text(file, columns, has_header=has_header)) is not None:
            raise UserError(text) from error
        raise UserError(f"{file} is not CSV of numbers with {counted(len(columns), 'column')}: {error}") from error
    return {name: table.column(place).to_numpy() for place, name in enumerate(columns) if name != "-"}


def _columns_of_json_lines(file: Path) -> dict[str, Any]:
    """SageMaker's answers: {"score": 0.9, "predicted_label": 1}, the score of several classes a list."""
    import numpy

    try:
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
        for name in LABELS:
            if texts := [row[name] for row in rows if isinstance(row.get(name), str) and not _is_number(row[name])]:
                raise UserError(f"{file}: {name} {texts[0]!r} is no number: {NUMBER_THE_CLASSES}")
        columns = {name: numpy.array([row[name] for row in rows], dtype=float) for name in rows[0] if name in COLUMNS}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{file} is not JSON lines of one shape, as {{'predicted_label': 1, 'score': 0.9}}: {error}"
        ) from None
    score = columns.get("score")
    if score is not None and score.ndim == 2:
        del columns["score"]
        columns |= {f"score_{number}": score[:, number] for number in range(score.shape[1])}
    return columns


def _first_text(file: Path, columns: Sequence[str], *, has_header: bool) -> str | None:
    """What to say of the first label that is the name of a class, and no number."""
    with file.open(newline="", encoding="utf-8") as stream:
        for row in itertools.islice(csv_module.reader(stream), int(has_header), None):
            for name, cell in zip(columns, row, strict=False):
                if name in LABELS and cell.strip() and not _is_number(cell):
                    return f"{file}: {name} {cell!r} is no number: {NUMBER_THE_CLASSES}"
    return None


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def labels_of(file: Path, content_type: str | None) -> Any:
    """The first column, or the labels of a format that has them."""
    import numpy

    try:
        found = [rows.features[:, 0] if rows.labels is None else rows.labels for rows in rows_of(file, content_type, 0)]
    except UserError as error:
        if "is not a number" in str(error):
            raise UserError(f"{error}. If it is a class: {NUMBER_THE_CLASSES}") from error
        raise
    if not found:
        raise UserError(f"{file} is empty")
    return numpy.concatenate(found).astype(float)


def from_table(table: dict[str, Any], file: Path) -> tuple[Any, Prediction, Any]:
    import numpy

    if "label" not in table:
        raise UserError(f"{file} has no column `label`: give --labels FILE")
    several = sorted((int(match[1]), name) for name in table if (match := SCORE_OF_CLASS.fullmatch(name)))
    score: Any = numpy.column_stack([table[name] for _, name in several]) if several else table.get("score")
    predicted = table.get("predicted_label")
    if predicted is None:
        if score is None:
            raise UserError(f"{file} has neither predicted_label nor score")
        predicted = score.argmax(axis=1) if score.ndim == 2 else (score > 0.5).astype(int)
    is_probability = score is not None and bool((score >= 0).all() and (score <= 1).all())
    if is_probability and score.ndim == 2:
        is_probability = bool(numpy.allclose(score.sum(axis=1), 1, atol=1e-3))
    prediction = Prediction(predicted_label=predicted, score=score, is_probability=is_probability)
    return table["label"], prediction, table.get("group")


if __name__ == "__main__":
    leave(main())
