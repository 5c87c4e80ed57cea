"""Metric definitions over log lines."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import regex
from hypothesis import given
from hypothesis import strategies as st

from optml.errors import UserError
from optml.metrics import MetricScraper, is_simple, literal_of, with_real_control_characters
from optml.spec import MetricDefinition


def scraper_of(tmp_path: Path, **expressions: str) -> MetricScraper:
    definitions = [MetricDefinition(name=name, regex=expression) for name, expression in expressions.items()]
    return MetricScraper(definitions, tmp_path / "metrics.jsonl")


def values(scraper: MetricScraper) -> dict[str, float]:
    return {metric["MetricName"]: metric["Value"] for metric in scraper.final()}


def rows(tmp_path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]


def test_the_last_value_by_time_over_all_hosts_is_final_c64(tmp_path: Path) -> None:
    scraper = scraper_of(tmp_path, loss=r"loss=([0-9.]+)", accuracy=r"accuracy: (\S+)")
    scraper.feed("algo-1", ["epoch 1 loss=0.5", "loss=0.4 and more", "accuracy: 1e-1"], 10.0)
    scraper.feed("algo-2", ["loss=0.3"], 12.0)
    scraper.feed("algo-1", ["loss=0.9"], 11.0)
    assert scraper.final() == [
        {"MetricName": "loss", "Value": 0.3, "Timestamp": 12.0},
        {"MetricName": "accuracy", "Value": 0.1, "Timestamp": 10.0},
    ]
    assert all(isinstance(metric["Value"], float) for metric in scraper.final())


@pytest.mark.parametrize("text", ["nan", "NaN", "inf", "-inf", "1e999", "1_000", "high", "", "1.2.3", "0x10"])
def test_what_is_no_finite_number_is_passed_over_c65(tmp_path: Path, text: str) -> None:
    scraper = scraper_of(tmp_path, loss=r"loss=(\S*)")
    scraper.feed("algo-1", ["loss=0.25", f"loss={text}"], 1.0)
    assert values(scraper) == {"loss": 0.25}
    assert [row["Value"] for row in rows(tmp_path)] == [0.25]


def test_every_value_is_appended_as_a_line_of_json_at_once(tmp_path: Path) -> None:
    scraper = scraper_of(tmp_path, **{'lo"ss': r"loss=(\S+)"})
    scraper.feed("algo-1", ["loss=1", "no value here", "loss=2"], 5.5)
    assert rows(tmp_path) == [
        {"MetricName": 'lo"ss', "Value": 1.0, "Timestamp": 5.5, "Host": "algo-1"},
        {"MetricName": 'lo"ss', "Value": 2.0, "Timestamp": 5.5, "Host": "algo-1"},
    ]
    scraper.feed("algo-2", ["loss=3"], 6.5)
    assert len(rows(tmp_path)) == 3
    assert (tmp_path / "metrics.jsonl").read_bytes().endswith(b"}\n")


def test_without_a_match_there_is_no_list_and_no_file(tmp_path: Path) -> None:
    scraper = scraper_of(tmp_path, loss=r"loss=(\S+)")
    scraper.feed("algo-1", ["nothing"], 1.0)
    assert scraper.final() == []
    assert not (tmp_path / "metrics.jsonl").exists()


def test_the_first_match_of_a_line_counts_and_it_may_be_anywhere_in_it(tmp_path: Path) -> None:
    scraper = scraper_of(tmp_path, loss=r"loss=(\S+)")
    scraper.feed("algo-1", ["[INFO] loss=1 loss=2"], 1.0)
    assert values(scraper) == {"loss": 1.0}


def test_awss_own_expressions_match_real_tabs_and_written_ones(tmp_path: Path) -> None:
    xgboost = r".*\[[0-9]+\].*#011validation-rmse:([-+]?[0-9]*\.?[0-9]+(?:[eE][-+]?[0-9]+)?).*"
    scraper = scraper_of(tmp_path, rmse=xgboost)
    scraper.feed("algo-1", ["[7]\ttrain-rmse:0.5\tvalidation-rmse:0.75"], 1.0)
    assert values(scraper) == {"rmse": 0.75}
    scraper.feed("algo-1", ["[7]#011train-rmse:0.5#011validation-rmse:0.25"], 2.0)
    assert values(scraper) == {"rmse": 0.25}


@pytest.mark.parametrize(
    ("expression", "line"),
    [
        (r"a#011+b=(\d)", "a\tb=1"),
        (r"a[#011 ]b=(\d)", "a\tb=1"),
        (r"a\#011b=(\d)", "a\tb=1"),
        (r"#015loss=(\d)", "loss=1"),
        (r"loss=(\d)#015", "loss=1"),
        (r"loss=(\d)#033\[0m", "loss=1\x1b[0m"),
        (r"step #012345 loss=(\d)", "step #012345 loss=1"),
    ],
)
def test_control_characters_are_matched_as_cloudwatch_writes_them(tmp_path: Path, expression: str, line: str) -> None:
    scraper = scraper_of(tmp_path, it=expression)
    scraper.feed("algo-1", [line], 1.0)
    assert values(scraper) == {"it": 1.0}


@pytest.mark.parametrize("expression", [r"(?:a|aa)+(b)", r"(?:a+)+(b)", r"a*a*a*(b)"])
def test_a_regex_that_backtracks_is_switched_off_and_the_others_go_on(tmp_path: Path, expression: str) -> None:
    scraper = scraper_of(tmp_path, evil=expression, loss=r"loss=(\d+)")
    for number in range(100):  # 100,000 lines: minutes to centuries if each were searched to the end
        scraper.feed("algo-1", ["a" * 100 + f"! loss={number} b"] * 1000, float(number))
    assert values(scraper) == {"loss": 99.0}
    assert len(scraper.warnings) == 1
    assert "'evil' was switched off" in scraper.warnings[0]


def test_a_value_behind_the_first_10_000_characters_is_not_found_nor_cut_in_two(tmp_path: Path) -> None:
    scraper = scraper_of(tmp_path, loss=r"loss=(\d+)")
    scraper.feed("algo-1", ["x" * 20_000 + "loss=1", "x" * 9_993 + "loss=123456", "loss=7" + "x" * 50_000], 1.0)
    assert [row["Value"] for row in rows(tmp_path)] == [7.0]


def test_a_regex_that_does_not_compile_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"MetricDefinitions: the Regex 'loss=\(' of 'loss' .*missing \)"):
        scraper_of(tmp_path, loss="loss=(")


def test_a_regex_without_a_group_is_said_and_does_no_harm(tmp_path: Path) -> None:
    scraper = scraper_of(tmp_path, loss="loss=[0-9]+", other="other=([0-9]+)")
    scraper.feed("algo-1", ["loss=1 other=2"], 1.0)
    assert values(scraper) == {"other": 2.0}
    assert "no group" in scraper.warnings[0]


def test_a_metrics_file_that_cannot_be_written_does_not_harm_the_job(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").mkdir()
    scraper = scraper_of(tmp_path, loss=r"loss=(\S+)")
    scraper.feed("algo-1", ["loss=1"], 1.0)
    scraper.feed("algo-1", ["loss=2"], 2.0)
    assert values(scraper) == {"loss": 2.0}
    assert len(scraper.warnings) == 1


def test_the_regex_module_is_imported_only_for_metrics() -> None:
    import subprocess
    import sys

    code = (
        "import sys; from pathlib import Path; from optml.metrics import MetricScraper;"
        "s = MetricScraper([], Path('none')); s.feed('algo-1', ['x'], 1.0); print('regex' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


@pytest.mark.parametrize(
    ("expression", "literal"),
    [
        (r"loss=([0-9.]+)", "loss="),
        (r".*\[[0-9]+\].*#011validation-rmse:(\S+)", "validation-rmse:"),
        (r"train_loss: (\d+)", "train_loss: "),
        (r"steps? (\d+)", "step"),
        (r"ab+c{2}d*e(\d)", "ab"),
        (r"loss=(\d)|cost=(\d)", ""),
        (r"(?i)loss=(\d)", ""),
        (r"(?<=loss=)(\d)", ""),
        (r"(?:loss|cost)=(\d) it/s", " it/s"),
        (r"(?P<value>\d)%", "%"),
        (r"[[:alpha:]]x(\d)", "x"),
        (r"\x41loss=(\d)", ""),
        (r"(\S+)", ""),
    ],
)
def test_the_literal_of_an_expression(expression: str, literal: str) -> None:
    assert literal_of(expression) == literal


@pytest.mark.parametrize(
    ("expression", "simple"),
    [
        (r"loss=([0-9.]+)", True),
        (r"loss[ =]+(\S+)", True),
        (r"a*a*(a*)", False),
        (r"(a+)+b", False),
        (r"(a|aa){9}b", False),
        (r"(a)\1", False),
        (r"(?=a)(b)", False),
    ],
)
def test_only_simple_expressions_are_searched_without_a_time_limit(expression: str, simple: bool) -> None:
    assert is_simple(expression) is simple


PIECES = st.sampled_from(
    ["a", "b", "loss", "=", "+", "*", "?", "{2}", "{,3}", ".", "|", "(a)", "(?:b|c)", "(a|)", "[ab]", "[^a]", r"\d",
     r"\.", "^", "$", "#011", "(?i)", "(?=a)", r"\x61", "[]a]", "{", "}", "(", ")", "[", "]", "\\", r"\b", "[[:alpha:]]"]
)  # fmt: skip


@given(st.lists(PIECES, max_size=8).map("".join), st.text("ab.=los1\t#0\n", max_size=12))
def test_a_line_that_matches_always_has_the_literal(expression: str, line: str) -> None:
    try:
        as_given = regex.compile(expression)
        translated = regex.compile(with_real_control_characters(expression))
    except regex.error:
        return
    if translated.search(line):
        assert literal_of(expression) in line
    if as_given.search(line):
        assert translated.search(line), "the translation only adds"


def test_translation_leaves_other_expressions_alone() -> None:
    for expression in (r"loss=(\d+)", r"[#0]1", "#01", "# 011", re.escape("#") + "12"):
        assert with_real_control_characters(expression) == expression
