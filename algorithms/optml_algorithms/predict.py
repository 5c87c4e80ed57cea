"""Score data with a model that was trained here: python -m optml_algorithms.predict MODEL_DIR DATA [--output FILE]

What comes out is CSV with a header, or JSON lines in the words of SageMaker's responses: predicted_label, score.
"""

import argparse
import contextlib
import json
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from optml_algorithms.data.rows import Rows
from optml_algorithms.models import Model, Prediction, load
from optml_algorithms.programs import Arguments, leave, user_errors
from optml_algorithms.words import counted
from optml_toolkit.container import Channel, UserError

CONTENT_TYPES = {
    ".csv": "text/csv",
    ".libsvm": "text/libsvm",
    ".svm": "text/libsvm",
    ".parquet": "application/x-parquet",
    ".pbr": "application/x-recordio-protobuf",
    ".recordio": "application/x-recordio-protobuf",
}
FORMATS = ("csv", "libsvm", "parquet", "recordio")
MAX_LABEL_SIZE = 100


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Arguments(prog="optml predict", description="Score data with a model.")
    parser.add_argument("model_dir", type=Path, metavar="MODEL_DIR")
    parser.add_argument("data", type=Path, metavar="DATA")
    parser.add_argument("--output", type=Path, metavar="FILE", help="CSV, or JSON lines if it ends in .jsonl")
    add_model_name(parser)
    add_data_options(parser, label_size=0)
    given = parser.parse_args(arguments)
    with user_errors() as end:
        model = load_called(given.model_dir, given.called)
        predict_file(model, given.data, given.output, given.content_type, given.label_size)
    return end.status


def add_model_name(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--called", metavar="TEXT", help="what errors call the model, rather than its folder")


def load_called(model_dir: Path, called: str | None) -> Model:
    """The model in a folder; UserError says `called` where it would name the folder, for that may be a temporary one."""
    try:
        return load(model_dir)
    except UserError as error:
        if called is None:
            raise
        text = str(error).replace(f"{model_dir}/", "").replace(str(model_dir), "it")
        raise UserError(f"{called}: {text}") from error


def add_data_options(parser: argparse.ArgumentParser, *, label_size: int) -> None:
    parser.add_argument("--content-type", metavar="TYPE", help="for example text/csv; else by the file's extension")
    parser.add_argument(
        "--label-size",
        type=int,
        default=label_size,
        metavar="N",
        help=f"leading label columns of CSV and Parquet (default {label_size})",
    )


def predict_file(model: Model, data: Path, output: Path | None, content_type: str | None, label_size: int) -> None:
    """Rows in, rows out, in their order; some at a time, so that the data need not fit into memory. Labels that the data has
    come along, for `optml evaluate`."""
    as_json = output is not None and output.suffix in (".jsonl", ".json")
    with written(output) as stream:
        count = 0
        for rows in rows_of(data, content_type, label_size):
            prediction = predict(model, rows)
            columns = columns_of(prediction, rows.labels)
            if as_json:
                write_json_lines(stream, prediction, rows.labels, whole=model.task in ("binary", "multiclass"))
            else:
                if count == 0:
                    stream.write(",".join(columns) + "\n")
                write_csv(stream, list(columns.values()))
            count += len(rows)
    if count == 0:
        raise UserError(f"there are no rows in {data}")
    if output is not None:
        print(f"{output}: {counted(count, 'prediction')}")


def predict(model: Model, rows: Rows) -> Prediction:
    """UserError where data and model do not fit together names the file."""
    try:
        return model.predict(rows.features)
    except UserError as error:
        hint = ""
        if rows.labels is None and model.feature_count == rows.feature_count - 1:
            hint = " If the first column is the label: --label-size 1"
        elif rows.labels is not None and model.feature_count == rows.feature_count + 1:
            hint = " If the first column is no label: --label-size 0"
        raise UserError(f"{rows.where(0)}: {error}.{hint}".rstrip()) from error


def rows_of(data: Path, content_type: str | None, label_size: int) -> Iterator[Rows]:
    """Batches of a file, or of all files of a folder."""
    from optml_algorithms.data.channel import batches

    if not data.exists():
        raise UserError(f"there is no {data}")
    if not 0 <= label_size <= MAX_LABEL_SIZE:
        raise UserError(f"--label-size must be from 0 to {MAX_LABEL_SIZE}, got {label_size}")
    channel = Channel(
        name="data",
        folder=data,
        content_type=content_type or guessed_content_type(data),
        input_mode="File",
        distribution="FullyReplicated",
    )
    return batches(channel, formats=FORMATS, label_sizes=range(label_size, label_size + 1))


def guessed_content_type(data: Path) -> str:
    files = [data] if data.is_file() else [file for file in data.rglob("*") if file.is_file()]
    suffixes = {file.suffix for file in files if not file.name.startswith(("_", "."))}
    if len(suffixes) != 1 or (suffix := suffixes.pop()) not in CONTENT_TYPES:
        raise UserError(
            f"what {data} holds cannot be told from its extension: give --content-type, for example text/csv; "
            f"known extensions are {', '.join(CONTENT_TYPES)}"
        )
    return CONTENT_TYPES[suffix]


def columns_of(prediction: Prediction, labels: Any) -> dict[str, Any]:
    """Named columns, each of shape (rows,): label if it is known, predicted_label, score or score_0, score_1, ..."""
    columns: dict[str, Any] = {}
    if labels is not None:
        columns |= (
            {"label": labels} if labels.ndim == 1 else {f"label_{i}": labels[:, i] for i in range(labels.shape[1])}
        )
    columns["predicted_label"] = prediction.predicted_label
    score = prediction.score
    if score is not None:
        columns |= {"score": score} if score.ndim == 1 else {f"score_{i}": score[:, i] for i in range(score.shape[1])}
    return columns


def write_csv(stream: IO[str], columns: Sequence[Any]) -> None:
    import numpy

    shown = [[f"{value:.9g}" for value in numpy.asarray(column, dtype=float).tolist()] for column in columns]
    stream.writelines(f"{','.join(row)}\n" for row in zip(*shown, strict=True))


def write_json_lines(stream: IO[str], prediction: Prediction, labels: Any, *, whole: bool) -> None:
    """One object for each row, as SageMaker's endpoints answer; a number that JSON has no word for is null. `whole`: labels are
    the numbers of classes, and 1 is not 1.0."""
    import numpy

    def shown(value: float) -> float | int | None:
        if not math.isfinite(value):
            return None
        return int(value) if whole and float(value).is_integer() else value

    columns: dict[str, list[Any]] = {"predicted_label": [shown(each) for each in prediction.predicted_label.tolist()]}
    if prediction.score is not None:
        score = numpy.asarray(prediction.score, dtype=object)
        score[~numpy.isfinite(prediction.score)] = None
        columns["score"] = score.tolist()
    if labels is not None:
        columns["label"] = [shown(each) for each in labels.tolist()] if labels.ndim == 1 else labels.tolist()
    for values in zip(*columns.values(), strict=True):
        stream.write(json.dumps(dict(zip(columns, values, strict=True))) + "\n")


@contextlib.contextmanager
def written(output: Path | None) -> Iterator[IO[str]]:
    """A file appears whole, or not at all."""
    if output is None:
        yield sys.stdout
        return
    beside = output.with_name(f".{output.name}.partial")
    try:
        with beside.open("w", encoding="utf-8") as stream:
            yield stream
        beside.replace(output)
    except OSError as error:
        raise UserError(f"{output} cannot be written: {error.strerror or error}") from error
    finally:
        beside.unlink(missing_ok=True)


if __name__ == "__main__":
    leave(main())
