"""Metric values beside scikit-learn's, and the warnings."""

import json
from pathlib import Path
from typing import Any

import pytest

numpy = pytest.importorskip("numpy")
pytest.importorskip("sklearn")

from sklearn import metrics  # noqa: E402

from optml_algorithms.evaluation.__main__ import main  # noqa: E402
from optml_algorithms.evaluation.values import Evaluated, evaluate  # noqa: E402
from optml_algorithms.models import Prediction  # noqa: E402
from optml_toolkit.container import UserError  # noqa: E402

GENERATOR = numpy.random.default_rng(0)


def binary(share: float, rows: int = 1000) -> tuple[Any, Prediction]:
    labels = (GENERATOR.random(rows) < share).astype(int)
    score = numpy.clip(labels * 0.4 + GENERATOR.random(rows) * 0.6, 0, 1)
    return labels, Prediction(predicted_label=(score > 0.5).astype(int), score=score, is_probability=True)


def test_two_classes() -> None:
    labels, prediction = binary(0.5)
    found = evaluate("binary", labels, prediction)
    predicted, score = prediction.predicted_label, prediction.score
    assert found.values == pytest.approx({
        "accuracy": metrics.accuracy_score(labels, predicted),
        "balanced accuracy": metrics.balanced_accuracy_score(labels, predicted),
        "precision": metrics.precision_score(labels, predicted),
        "recall": metrics.recall_score(labels, predicted),
        "F1": metrics.f1_score(labels, predicted),
        "Matthews correlation": metrics.matthews_corrcoef(labels, predicted),
        "AUC": metrics.roc_auc_score(labels, score),
        "PR-AUC": metrics.average_precision_score(labels, score),
        "log loss": metrics.log_loss(labels, score),
    })  # fmt: skip
    assert (found.confusion == metrics.confusion_matrix(labels, predicted)).all()
    assert found.warnings == ()


@pytest.mark.parametrize("task", ["binary", "multiclass"])
def test_log_loss_is_the_same_whatever_the_type_of_the_scores_and_doubted_where_they_are_0(task: Any) -> None:
    labels = numpy.arange(200) % 2
    of_class_1 = numpy.where(labels == 1, 0.75, 0.25)
    of_class_1[:3] = 1 - labels[:3]  # k-NN: all neighbours are of the other class
    score = of_class_1 if task == "binary" else numpy.column_stack([1 - of_class_1, of_class_1])
    found = [
        evaluate(
            task, labels, Prediction(predicted_label=of_class_1 > 0.5, score=score.astype(kind), is_probability=True)
        )
        for kind in (numpy.float32, numpy.float64)
    ]
    expected = (3 * -numpy.log(1e-15) + 197 * -numpy.log(0.75)) / 200
    assert [each.values["log loss"] for each in found] == pytest.approx([expected, expected])
    assert (
        "Log loss misleads: 3 rows had probability 0 for the true class, each of which counts 34.5"
        in found[0].warnings[0]
    )


def test_many_classes() -> None:
    labels = GENERATOR.integers(0, 4, 500)
    score = (
        GENERATOR.dirichlet(numpy.ones(4), 500) * 0.3
        + numpy.eye(4)[labels] * 0.7 * (GENERATOR.random(500) < 0.8)[:, None]
    )
    score /= score.sum(axis=1, keepdims=True)
    predicted = score.argmax(axis=1)
    found = evaluate("multiclass", labels, Prediction(predicted_label=predicted, score=score, is_probability=True))
    assert found.values == pytest.approx({
        "accuracy": metrics.accuracy_score(labels, predicted),
        "balanced accuracy": metrics.balanced_accuracy_score(labels, predicted),
        "macro F1": metrics.f1_score(labels, predicted, average="macro"),
        "micro F1": metrics.f1_score(labels, predicted, average="micro"),
        "macro precision": metrics.precision_score(labels, predicted, average="macro"),
        "macro recall": metrics.recall_score(labels, predicted, average="macro"),
        "log loss": metrics.log_loss(labels, score),
    })  # fmt: skip
    assert found.per_class is not None
    assert found.per_class[2]["rows"] == (labels == 2).sum()


def test_numbers() -> None:
    labels = GENERATOR.normal(10, 3, 500)
    predicted = labels + GENERATOR.normal(0, 1, 500)
    found = evaluate("regression", labels, Prediction(predicted_label=predicted))
    assert found.values["RMSE"] == pytest.approx(metrics.mean_squared_error(labels, predicted) ** 0.5)
    assert found.values["MAE"] == pytest.approx(metrics.mean_absolute_error(labels, predicted))
    assert found.values["R2"] == pytest.approx(metrics.r2_score(labels, predicted))
    assert found.warnings == ()


def test_a_ranking_is_judged_within_its_groups_wherever_their_rows_lie() -> None:
    groups = GENERATOR.permutation(numpy.repeat(numpy.arange(20), 10))
    labels = GENERATOR.integers(0, 3, 200)
    predicted = labels + GENERATOR.normal(0, 1, 200)
    found = evaluate("ranking", labels, Prediction(predicted_label=predicted), groups)
    of_groups = [(labels[groups == group], predicted[groups == group]) for group in range(20)]
    assert found.values["NDCG"] == pytest.approx(numpy.mean([metrics.ndcg_score([y], [p]) for y, p in of_groups]))
    assert found.values["MAP"] == pytest.approx(
        numpy.mean([metrics.average_precision_score(y > 0, p) for y, p in of_groups])
    )


def warnings_of(task: Any, labels: Any, prediction: Prediction) -> str:
    found: Evaluated = evaluate(task, numpy.asarray(labels), prediction)
    return "\n".join(found.warnings)


def test_accuracy_of_unequal_classes_is_doubted_and_something_better_named() -> None:
    labels, prediction = binary(0.03)
    text = warnings_of("binary", labels, prediction)
    assert "Accuracy misleads: 9" in text
    assert "of the rows are of class 0, so always saying 0 has accuracy 0.9" in text
    assert "PR-AUC" in text


def test_a_model_that_always_says_the_same_is_found_out() -> None:
    labels, _ = binary(0.2)
    text = warnings_of("binary", labels, Prediction(predicted_label=numpy.zeros(1000, dtype=int)))
    assert "right no more often than always saying 0" in text
    assert "Never predicted, though there are rows of it: class 1" in text


def test_one_class_and_few_rows_are_said() -> None:
    text = warnings_of(
        "binary", [0] * 20, Prediction(predicted_label=numpy.zeros(20, dtype=int), score=numpy.zeros(20))
    )
    assert "All labels are 0" in text
    assert "Only 20 rows: accuracy is known to about ±" in text
    found = evaluate("binary", [0] * 20, Prediction(predicted_label=numpy.zeros(20, dtype=int), score=numpy.zeros(20)))
    assert numpy.isnan(found.values["AUC"])


def test_errors_of_few_rows_a_model_without_worth_and_a_bias_are_said() -> None:
    labels = GENERATOR.normal(0, 1, 1000)
    wild = labels + GENERATOR.normal(0, 0.01, 1000)
    wild[:3] += 100
    assert "RMSE misleads" in warnings_of("regression", labels, Prediction(predicted_label=wild))
    text = warnings_of("regression", labels, Prediction(predicted_label=labels + 5))
    assert "worse than always saying the mean" in text
    assert "too high on the whole, by 5 on average" in text


@pytest.mark.parametrize(("task", "labels", "predicted", "expected"), [
    ("binary", [0, 1, 2], [0, 1, 1], "a binary classifier knows 0 and 1"),
    ("binary", [0, 0.5, 1], [0, 1, 1], "row 2: label 0.5 is no class number"),
    ("regression", [0, 1], [0, 1, 1], "2 labels and 3 predictions"),
    ("regression", [], [], "no rows"),
    ("regression", [0, 1], [0, float("nan")], "row 2: the prediction is missing"),
    ("regression", [0, float("inf")], [0, 1], "row 2: the label is missing, NaN or infinite"),
    ("ranking", [0, 1], [0, 1], "within groups"),
])  # fmt: skip
def test_what_cannot_be_compared_is_refused(task: Any, labels: Any, predicted: Any, expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        evaluate(
            task, numpy.array(labels, dtype=float), Prediction(predicted_label=numpy.array(predicted, dtype=float))
        )


@pytest.mark.parametrize(("content", "arguments", "expected"), [
    ("label,predicted_label,score\n1,1,0.9\n0,0,0.2\n0,1,0.6\n1,1,0.8\n", [], {"task": "binary", "accuracy": 0.75}),
    ("1,0.9\n0,0.2\n0,0.6\n1,0.8\n", ["--columns", "label,score"], {"task": "binary", "accuracy": 0.75}),
    ("0,0.9,0\n1,0.5,1\n2,0.8,1\n", ["--columns", "label,-,predicted_label"], {"task": "multiclass", "accuracy": 2 / 3}),
    ("label,predicted_label,score_0,score_1,score_2\n0,0,0.8,0.1,0.1\n2,1,0,0.6,0.4\n", [],
     {"task": "multiclass", "accuracy": 0.5}),
    ('{"label": 1, "score": 0.7}\n{"label": 0, "score": 0.6}\n', [], {"task": "binary", "accuracy": 0.5}),
    ("label,predicted_label\n1.5,2.5\n2.5,3.5\n", [], {"task": "regression", "RMSE": 1.0}),
    ("label,predicted_label\n1,1\n0,0\n", ["--task", "regression"], {"task": "regression", "RMSE": 0.0}),
    ("label,predicted_label,group\n1,1,1\n0,0,1\n0,0,2\n1,1,2\n", ["--task", "ranking"], {"task": "ranking", "NDCG": 1.0}),
])  # fmt: skip
def test_predictions_are_read_in_the_forms_in_which_people_have_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, arguments: list[str], expected: dict[str, Any]
) -> None:
    file = tmp_path / "p"
    file.write_text(content)
    assert main(["--predictions", str(file), "--json", *arguments]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["task"] == expected.pop("task")
    for name, value in expected.items():
        assert found["metrics"][name] == pytest.approx(value)


def test_labels_may_come_from_the_data_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "p.csv").write_text("0.9\n0.2\n")
    (tmp_path / "data.csv").write_text("1,5,6\n0,7,8\n")
    (tmp_path / "labels.csv").write_text("1\n0\n")
    for labels in ("data.csv", "labels.csv"):
        arguments = ["--predictions", str(tmp_path / "p.csv"), "--labels", str(tmp_path / labels), "--columns", "score"]
        assert main([*arguments, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["metrics"]["accuracy"] == 1.0


@pytest.mark.parametrize(("content", "arguments", "expected"), [
    ("1,2\n", [], "has no header"),
    ("a,b\n1,2\n", [], "unknown column 'a'"),
    ("label,label\n1,2\n", [], "two columns have the same name"),
    ("label,score\n1\n", [], "is not CSV of numbers with 2 columns"),
    ("label,score\n1,x\n", [], "is not CSV of numbers with 2 columns"),
    ("label,predicted_label\n0,1\ncat,dog\n", [], "label 'cat' is no number: number the classes from 0 on"),
    ("cat,0.9\ndog,0.2\n", ["--columns", "label,score"], "label 'dog' is no number: number the classes from 0 on"),
    ('{"label": 1, "predicted_label": "dog"}\n', [], "predicted_label 'dog' is no number: number the classes"),
    ("1,2\n", ["--columns", ""], "--columns names 1"),
    ("1,2\n", ["--columns", "label"], "has 2 columns, and --columns names 1"),
    ("score\n1\n", [], "has no column `label`"),
    ("label\n1\n", [], "neither predicted_label nor score"),
    ("", [], "is empty"),
    ('{"label": 1}\n{"score": 1}\n', [], "is not JSON lines of one shape"),
])  # fmt: skip
def test_predictions_that_make_no_sense_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, arguments: list[str], expected: str
) -> None:
    file = tmp_path / "p"
    file.write_text(content)
    assert main(["--predictions", str(file), *arguments]) == 2
    assert expected in capsys.readouterr().err


def test_labels_that_are_words_are_refused_with_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "p.csv").write_text("0.9\n0.2\n")
    (tmp_path / "l.csv").write_text("cat\ndog\n")
    arguments = ["--predictions", str(tmp_path / "p.csv"), "--labels", str(tmp_path / "l.csv"), "--columns", "score"]
    assert main(arguments) == 2
    assert "If it is a class: number the classes from 0 on" in capsys.readouterr().err


def test_an_output_that_is_a_file_is_refused_before_anything_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "p.csv").write_text("label,predicted_label\n0,0\n1,1\n")
    assert main(["--predictions", str(tmp_path / "p.csv"), "--output", str(tmp_path / "p.csv")]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert "p.csv is a file: give a folder" in told.err


@pytest.mark.parametrize(("content", "pictures"), [
    ("label,predicted_label,score\n1,1,0.9\n0,0,0.2\n0,1,0.6\n1,1,0.8\n",
     ["confusion-matrix.png", "precision-recall.png", "roc.png"]),
    ("label,predicted_label\n0,0\n1,1\n2,1\n", ["confusion-matrix.png"]),
    ("label,predicted_label\n1.5,2.5\n2.5,3.5\n", ["errors.png", "predicted.png", "residuals.png"]),
])  # fmt: skip
def test_pictures_and_one_page_are_written(tmp_path: Path, content: str, pictures: list[str]) -> None:
    pytest.importorskip("matplotlib")
    (tmp_path / "p.csv").write_text(content)
    assert main(["--predictions", str(tmp_path / "p.csv"), "--output", str(tmp_path / "r"), "--subject", "<mine>"]) == 0
    assert sorted(path.name for path in (tmp_path / "r").iterdir()) == sorted([*pictures, "index.html"])
    for name in pictures:
        assert (tmp_path / "r" / name).read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "r" / "index.html").read_text()
    assert page.count("data:image/png;base64,") == len(pictures)
    assert "&lt;mine&gt;" in page
    assert "http" not in page.replace("http-equiv", "")
