"""Which numbers of what a job prints are its steps: series from lines, and a real job with a hyperparameter of epochs."""

import itertools
from pathlib import Path

import pytest
import regex

from optml.drills.run import drill
from optml.drills.steps import Row, begins_again, choose, extended, trigger_at
from optml.events import StepReader
from optml.spec import InterruptionPlan, Trigger


def rows_of(lines: list[str], expression: str | None = None) -> list[Row]:
    reader = StepReader(expression)
    return [(found.numbers, found.form) for line in lines if (found := reader.read(line)) is not None]


def steps_of(*attempts: list[str]) -> list[list[int]]:
    """Of each attempt, as a drill reads them: what the first printed says what is a step."""
    rows = [rows_of(lines) for lines in attempts]
    form = choose(rows[:1])
    if form is None:
        return [[] for _ in rows]
    form = extended(form, rows[1:])
    return [[step for step in form.values(each) if step is not None] for each in rows]


PROGRESS = {
    "plain": [f"step={step} loss={1 / step:.4f}" for step in range(1, 13)],
    "of how many": [f"Step {step}/40: loss {1 / step:.4f}" for step in range(1, 13)],
    "JSON": [f'{{"epoch": {step}, "loss": {1 / step}, "lr": 1e-05}}' for step in range(1, 13)],
    "a logger": [f"[2026-01-31:12:00:{step:02}:INFO] Epoch {step}: loss nan" for step in range(1, 13)],
    "XGBoost": [f"[{step}]\ttrain-auc:0.9{step}" for step in range(1, 13)],
    "words of their own": [f"iteration {step} {word} ok" for step, word in zip(range(1, 13), "abcdefghijkl", strict=True)],
}  # fmt: skip
NO_PROGRESS = [
    "[2026-11-26:03:41:57:INFO] Running: /usr/bin/python3 train.py --epochs 40",
    "+ python train.py -epochs=40 --step 40",
    "Epochs: 40",
    "epoch: 40",
    "Namespace(epochs=40, batch=32, step=40)",
    "total steps: 500",
    '{"epochs": 40, "lr": 0.1, "batch": 64}',
    '{"epoch": 40, "lr": 0.1}',
    "max iterations 500, batch: 16",
    "Epoch 40: nothing printed yet",
]


@pytest.mark.parametrize("kind", PROGRESS)
@pytest.mark.parametrize("other", NO_PROGRESS)
def test_lines_that_are_no_progress_are_no_steps(kind: str, other: str) -> None:
    lines = PROGRESS[kind]
    wanted = list(range(1, 13))
    assert steps_of([other, *lines], [other, *lines[:4]], [other]) == [wanted, wanted[:4], []]


def test_a_configuration_alone_is_no_series() -> None:
    assert steps_of(NO_PROGRESS) == [[]]


def test_what_is_printed_with_a_step_now_and_then_is_of_the_series() -> None:
    lines = [f"step={step} loss=1" for step in range(1, 9)]
    lines.insert(4, "step=4 evaluated: 0.5")
    lines.append("step=8 evaluated: 0.5")
    assert steps_of(lines, [*lines[4:], "step=9 and the machine goes"]) == [
        [1, 2, 3, 4, 4, 5, 6, 7, 8, 8],
        [4, 5, 6, 7, 8, 8, 9],
    ]


@pytest.mark.parametrize("separate", [False, True])
def test_iterations_that_begin_again_with_each_epoch_are_counted_through(separate: bool) -> None:
    def epoch(number: int) -> list[str]:
        head = [f"Epoch {number}/3"] if separate else []
        return head + [f"{'' if separate else f'Epoch {number} '}iter: {index} loss 1" for index in range(1, 11)]

    whole, resumed = [*epoch(1), *epoch(2), *epoch(3)], [*epoch(2), *epoch(3)]
    assert steps_of(whole, resumed) == [list(range(1, 31)), list(range(11, 31))]


def bar(done: int, of: int) -> str:
    return f"{100 * done // of:3}%|{'#' * (10 * done // of):10}| {done}/{of} [00:{done:02}<00:09, {done / 7:.2f}it/s]"


def test_a_progress_bar_tells_steps_and_a_bar_of_another_length_none() -> None:
    """As the Trainer of Hugging Face prints: a bar, an epoch in parts, and a bar for each evaluation."""
    lines: list[str] = []
    for step in range(1, 41):
        lines += [bar(step, 40), f"{{'loss': {1 / step:.4f}, 'epoch': {step / 20:.2f}}}"]
        if step % 10 == 0:
            lines += [bar(done, 8) for done in range(1, 9)]
    shorter = [bar(done, 20) for done in range(1, 21)]  # of what is left: nobody says where it begins
    assert steps_of(lines, [bar(20, 40), *lines[lines.index(bar(21, 40)) :]], shorter) == [
        list(range(1, 41)),
        list(range(20, 41)),
        [],
    ]
    form = choose([rows_of(lines)])
    found = StepReader().read(lines[0])
    assert form is not None
    assert found is not None
    assert trigger_at(1, lines[0], found, form) is None, "the next run's bar shows other steps"


def test_a_bar_of_data_that_is_made_ready_is_no_training() -> None:
    """It is drawn at each start again, which would be a restart from zero."""
    ready = [bar(done, 50) for done in range(1, 51)]
    lines = [f"epoch {number} loss 1" for number in range(1, 7)]
    assert steps_of([*ready, *lines], [*ready, *lines[3:]]) == [list(range(1, 7)), [4, 5, 6]]
    examples = [line.replace("it/s", " examples/s") for line in ready]
    training = [bar(done, 30) for done in range(1, 31)]
    assert steps_of([*examples, *training], [*examples, *training[20:]]) == [list(range(1, 31)), list(range(21, 31))]


def test_a_bar_for_each_epoch_is_counted_through() -> None:
    def epoch(number: int) -> list[str]:
        return [f"Epoch {number}/3", *(f"\x1b[1m{index}/12\x1b[0m \u2501\u2501 0s 5ms/step" for index in range(1, 13))]

    assert steps_of([*epoch(1), *epoch(2), *epoch(3)], epoch(3)) == [list(range(1, 37)), list(range(25, 37))]
    fit = [f"Epoch {number}: {bar(index, 12)}" for number in range(3) for index in range(1, 13)]
    assert steps_of(fit, fit[24:]) == [list(range(1, 37)), list(range(25, 37))]


def test_numbers_that_only_begin_again_tell_no_steps() -> None:
    assert steps_of([f"batch {index} loss 1" for _ in range(3) for index in range(1, 11)]) == [[]]


def test_steps_that_several_processes_print_are_one_series() -> None:
    lines = ["step 1 loss 1", *(f"step {step + late} loss 1" for step in range(1, 20) for late in (1, 0))]
    (steps,) = steps_of(lines)
    assert set(steps) == set(range(1, 21))
    assert begins_again([3, 1, 2, 3])
    assert begins_again([1, 2, 3, 1, 2, 3])


def test_of_thousands_of_lines_with_words_of_their_own_steps_are_found_in_a_moment() -> None:
    words = ["".join(letters) for letters in itertools.product("abcdefgh", repeat=4)]
    (steps,) = steps_of([f"step {step} {word}" for step, word in enumerate(words, start=1)])
    assert steps == list(range(1, len(words) + 1))


@pytest.mark.parametrize("kind", PROGRESS)
def test_a_trigger_of_a_step_fires_at_its_line_alone(kind: str) -> None:
    lines = PROGRESS[kind]
    form = choose([rows_of([*NO_PROGRESS, *lines])])
    found = StepReader().read(lines[4])
    assert form is not None
    assert found is not None
    trigger = trigger_at(5, lines[4], found, form)
    assert trigger is not None
    assert str(trigger) == "step 5"
    hits = [line for line in [*NO_PROGRESS, *lines] if regex.search(trigger.log or "", line)]
    assert hits == [lines[4]]


# The disturbed job's first run stands still at step 12 until it is interrupted.
SCRIPT = """
import argparse, os, time
parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int)
arguments = parser.parse_args()
print(arguments, flush=True)
for step in range(1, arguments.epochs + 1):
    time.sleep(0.03)
    print(f"step={step} loss={1 / step:.5f}", flush=True)
    if step == 12 and os.environ["TRAINING_JOB_NAME"].endswith("-drill") and not os.path.exists(MARK):
        open(MARK, "w").close()
        time.sleep(600)
"""


@pytest.mark.slow
def test_the_command_line_of_a_script_is_no_step(tmp_path: Path) -> None:
    """`Running: ... train.py --epochs 40` was taken for step 40: a script that begins at zero had lost one step."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "train.py").write_text(SCRIPT.replace("MARK", repr(str(tmp_path / "stood-still"))))
    report = drill(
        image="scikit-learn",
        name="script",
        entry_point="train.py",
        source_dir=str(tmp_path / "code"),
        hyperparameters={"epochs": 40},
        metrics={"loss": r"loss=([0-9.e+-]+)"},
        checkpoint=str(tmp_path / "checkpoints"),
        output=str(tmp_path / "out"),
        plan=InterruptionPlan(triggers=(Trigger(log="step=12 "),), notice_seconds=5.0),
        logs=False,
    )
    (cost,) = report.costs
    assert cost.from_zero
    assert cost.next_step == 1
    assert cost.steps_lost == 12
    assert report.outcome == "does not survive"
