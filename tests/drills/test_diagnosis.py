"""Costs, parts of time and findings from evidence that is made up: what no real job does reliably, and the arithmetic."""

from typing import Any

import pytest

from optml.drills.evidence import AttemptEvidence, Evidence, Saved
from optml.drills.measures import checkpoint_cost, checkpoint_moments, costs, find_jump, time_parts
from optml.events import StepReader


def attempt(number: int, began: float, steps: list[tuple[float, int]], **more: Any) -> AttemptEvidence:
    """Training begins a second after the attempt."""
    return AttemptEvidence(
        number=number,
        started_at=began,
        training_at=began + 1,
        first_lines={"algo-1": began + 2},
        steps=[(at, "algo-1", step) for at, step in steps],
        **more,
    )


def job(*attempts: AttemptEvidence, waits: tuple[tuple[float, float], ...] = (), ended: float = 100.0) -> Evidence:
    describe = {
        "CreationTime": 0.0,
        "TrainingEndTime": ended,
        "TrainingJobStatus": "Completed",
        "SecondaryStatus": "Completed",
        "SecondaryStatusTransitions": [{"Status": "Uploading", "StartTime": 98.0, "EndTime": ended}],
    }
    return Evidence(
        name="made-up",
        describe=describe,
        attempts=attempts,
        waits=waits,
        away=(),
        hosts=("algo-1",),
        has_events=True,
    )


def two_attempts() -> Evidence:
    """Steps 1 to 10 from second 5 on, one a second; noticed at 14.5, gone at 16; the next machine, 10 s later, begins with 9."""
    first = attempt(
        1,
        0.0,
        [(4.0 + step, step) for step in range(1, 11)],
        interrupted_at=14.5,
        cause="test",
        signalled_at={"algo-1": 14.5},
        exits={"algo-1": (16.0, 0)},
        saved=[Saved(at=15.0, host="algo-1", path="state", size_bytes=1, written_at=14.8)],
        why="interrupted",
    )
    second = attempt(
        2,
        26.0,
        [(29.0 + step - 9, step) for step in range(9, 70)],
        exits={"algo-1": (98.0, 0)},
        why="finished",
    )
    return job(first, second, waits=((16.0, 26.0),))


def test_steps_lost_and_seconds_to_a_new_step_are_counted() -> None:
    (cost,) = costs(two_attempts(), notice_seconds=30.0)
    assert (cost.last_step, cost.next_step, cost.steps_lost, cost.from_zero) == (10, 9, 2, False)
    assert cost.notice == "used"
    assert cost.save_seconds == pytest.approx(0.5)
    assert cost.restart_seconds == pytest.approx(29.0 - 16.0)
    assert cost.recovery_seconds == pytest.approx(31.0 - 16.0), "step 11 is the first that is new"
    assert cost.waited_seconds == pytest.approx(10.0)


def test_the_parts_of_time_add_up_to_all_of_it() -> None:
    parts = time_parts(two_attempts(), checkpoint_seconds=None)
    assert sum(parts.values()) == pytest.approx(100.0)
    assert parts["waiting"] == pytest.approx(10.0)
    assert parts["staging"] == pytest.approx(2.0)
    assert parts["start-up"] == pytest.approx(4.0 + 2.0)
    assert parts["lost work"] == pytest.approx(14.5 - 12.0), "after step 8, the last that was kept"
    assert parts["notice"] == pytest.approx(1.5)
    assert parts["useful"] == pytest.approx((12.0 - 5.0) + (98.0 - 29.0))
    assert parts["finishing"] == pytest.approx(2.0)


def test_a_program_that_begins_with_its_first_step_began_from_zero() -> None:
    evidence = two_attempts()
    evidence.attempts[1].steps.insert(0, (28.5, "algo-1", 1))
    (cost,) = costs(evidence, notice_seconds=30.0)
    assert cost.from_zero
    assert cost.steps_lost == 10


def test_a_program_that_had_to_be_killed_has_wasted_its_notice() -> None:
    evidence = two_attempts()
    evidence.attempts[0].killed_at["algo-1"] = 44.5
    (cost,) = costs(evidence, notice_seconds=30.0)
    assert cost.notice == "wasted"


def test_what_a_checkpoint_costs_is_by_how_much_its_step_is_longer() -> None:
    steps: list[tuple[float, int]] = []
    saved: list[Saved] = []
    now = 10.0
    for step in range(1, 31):
        now += 1.5 if step % 5 == 0 else 1.0
        if step % 5 == 0:
            saved.append(Saved(at=now + 0.2, host="algo-1", path="state", size_bytes=1, written_at=now - 0.1))
        steps.append((now, step))
    made = job(attempt(1, 0.0, steps, saved=saved))
    assert checkpoint_cost(made, ()) == pytest.approx(0.5)
    assert len(checkpoint_moments(made.attempts[0])) == 6


def test_a_curve_that_leaves_the_undisturbed_one_after_the_restart_is_a_jump() -> None:
    before = job(attempt(1, 0.0, []))
    before.attempts[0].curve = [(step, {"loss": 1 / step}) for step in range(1, 21)]
    after = job(attempt(1, 0.0, []), attempt(2, 50.0, []))
    after.attempts[0].curve = [(step, {"loss": 1 / step + 1e-4}) for step in range(1, 11)]
    after.attempts[1].curve = [(step, {"loss": 1 / step + 2e-4}) for step in range(10, 21)]
    assert find_jump(before, after) is None, "that is the noise that there was before"
    after.attempts[1].curve = [(step, {"loss": 1 / step + 0.05}) for step in range(11, 21)]
    jump = find_jump(before, after)
    assert jump is not None
    assert (jump.attempt, jump.step, jump.metric) == (2, 11, "loss")


@pytest.mark.parametrize(
    ("line", "step"),
    [
        ("[12]\ttrain-auc:0.5", 12),
        ("step=12 loss=0.3", 12),
        ("Step 12/100: loss 0.3", 12),
        ("Epoch [3/90][12]", 3),
        ("epoch: 3, step: 12, loss 0.1", 12),
        ("Epoch 3 Iter: 40 loss 2", 40),
        ("{'iteration': 7, 'loss': 1}", 7),
        ('{"global_step": 7}', 7),
        ("batch 5", 5),
        ("resuming from step 12", None),
        ("Saved checkpoint at step 12", None),
        ("[2026-01-31:12:00:00:INFO] hello", None),
        ("loss 12", None),
        ("total steps: 100", None),
    ],
)
def test_the_usual_forms_of_steps_are_read(line: str, step: int | None) -> None:
    assert StepReader().step(line) == step


def test_another_form_of_steps_is_read_as_told() -> None:
    assert StepReader(r"^tick (\d+)").steps(["tick 1", "step 7", "tick 2"]) == [1, 2]
