"""Costs, parts of time and findings from evidence that is made up: what no real job does reliably, and the arithmetic."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from optml.console import duration_text
from optml.drills.advice import CheckpointCost, advise, checkpoint_cost, checkpoint_moments, daly_interval
from optml.drills.costs import costs, steps_done_twice
from optml.drills.diagnosis import Finding, diagnose
from optml.drills.evidence import AttemptEvidence, DiskFull, Evidence, Saved, Unsettled
from optml.drills.full_disk import full_disks
from optml.drills.page import page
from optml.drills.plan import Criteria
from optml.drills.report import Report, advice_text, as_text, full_disk_text, lost_text, new_step_text, step_texts
from optml.drills.results import compare_metrics, find_jump
from optml.drills.saves import first_save
from optml.drills.time_parts import time_parts
from optml.events import StepReader
from optml.spec import InterruptionPlan, LocalOptions, TrainingJob
from optml.submit import prepare


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


def chain(*attempts: list[int], **more: Any) -> Evidence:
    """Attempts that print these steps, one a second, 100 seconds apart; all but the last are interrupted after their last."""
    made = []
    for number, steps in enumerate(attempts, start=1):
        began = 100.0 * (number - 1)
        timed = [(began + 5 + place, step) for place, step in enumerate(steps)]
        end = timed[-1][0] + 0.5 if timed else began + 3
        how = {"why": "interrupted", "interrupted_at": end} if number < len(attempts) else {"why": "finished"}
        made.append(attempt(number, began, timed, exits={"algo-1": (end + 0.1, 0)}, **(how | more)))
    evidence = job(*made, ended=made[-1].exits["algo-1"][0] + 1)
    ending = [{"Status": "Uploading", "StartTime": evidence.ended_at - 1, "EndTime": evidence.ended_at}]
    return replace(evidence, describe={**evidence.describe, "SecondaryStatusTransitions": ending})


def up_to(last: int, first: int = 1, by: int = 1) -> list[int]:
    return list(range(first, last + 1, by))


@pytest.mark.parametrize(
    ("attempts", "lost", "zeros"),
    [
        ([up_to(16), [], up_to(30)], [16, 0], [True, None]),
        ([up_to(14), [], [], up_to(30, 11)], [4, 0, 0], [False, None, None]),
        ([up_to(33), [], up_to(45, 31)], [3, 0], [False, None]),
        ([[], up_to(9), [], up_to(12)], [0, 9, 0], [None, True, None]),
        ([up_to(40), up_to(12), up_to(60)], [40, 12], [True, True]),
        ([up_to(40), up_to(35, 31), up_to(60, 21)], [10, 15], [False, False]),
        ([up_to(20), up_to(30, 21), up_to(60, 31)], [0, 0], [False, False]),
        ([up_to(40, 10, 10), up_to(60, 10, 10)], [40], [True]),
        ([up_to(40, 10, 10), up_to(60, 40, 10)], [10], [False]),
        ([up_to(9, 0), up_to(19, 0)], [10], [True]),
        ([up_to(30), []], [0], [None]),
    ],
)
def test_of_interruptions_in_a_row_no_loss_is_forgotten(
    attempts: list[list[int]], lost: list[int], zeros: list[bool | None]
) -> None:
    """What each has lost is together what was done twice, by what was printed; and the time says the same."""
    evidence = chain(*attempts)
    found = costs(evidence, notice_seconds=0.0)
    assert [cost.steps_lost for cost in found] == lost
    assert [cost.from_zero for cost in found] == zeros
    assert sum(lost) == steps_done_twice(evidence)
    parts = time_parts(evidence, checkpoint_seconds=None)
    assert sum(parts.values()) == pytest.approx(evidence.ended_at)
    by = attempts[0][1] - attempts[0][0] if len(attempts[0]) > 1 else 1  # a line is printed each second
    assert abs(parts["lost work"] - sum(lost) / by) <= len(found), "half a step for each that is cut off"
    assert (made_report(evidence).outcome == "does not survive") == (True in zeros)


def test_steps_that_were_done_in_the_notice_and_lost_are_lost_work() -> None:
    evidence = chain(up_to(33), [], up_to(45, 31))
    evidence.attempts[0].interrupted_at = 5 + 29 + 0.5  # when step 30 was done
    parts = time_parts(evidence, checkpoint_seconds=None)
    assert parts["lost work"] == pytest.approx(3.0)


def test_an_attempt_that_ends_without_the_steps_that_are_missing_leaves_the_loss_unknown() -> None:
    evidence = chain(up_to(20), [])
    (cost,) = costs(evidence, notice_seconds=0.0, last_step=30)
    assert cost.steps_lost is None
    assert not cost.all_done
    report = replace(
        made_report(evidence), costs=(cost,), criteria=Criteria(max_lost_steps=0, max_recovery_seconds=1.0)
    )
    assert "its attempt had come to step 20, and no step was printed after it" in report.broken_criteria[0]
    assert "no steps were seen" not in " ".join(report.broken_criteria)
    assert "unknown" in report.verdict


def prepared(**shortcuts: Any) -> TrainingJob:
    return prepare(
        {"AlgorithmSpecification": {"TrainingImage": "python", "ContainerEntrypoint": ["true"]}},
        options=LocalOptions(),
        shortcuts={"name": "job", "checkpoint": "/tmp/nowhere", "output": "/tmp/nowhere"} | shortcuts,
        base_dir=Path(),
    )[0]


def found_in(evidence: Evidence, *, notice_seconds: float = 0.0, **more: Any) -> list[Finding]:
    training = prepared(**more.pop("shortcuts", {}))
    found = more.pop("found", None) or costs(evidence, notice_seconds=notice_seconds)
    return list(diagnose(training, evidence, evidence, found, None, **more))


def test_an_interruption_after_the_last_step_has_tested_nothing() -> None:
    report = replace(made_report(chain(up_to(30), [])), plan=InterruptionPlan(at_seconds=(30.0, 60.0)))
    assert report.outcome == "not tested"
    assert report.verdict == (
        "NOT TESTED: the only interruption came after the last step, so there was nothing to go on with (only 1 of the 2 "
        "interruptions that were planned came: the job ended first)"
    )
    assert not report.passed


def test_an_interruption_that_did_not_come_is_named_in_the_verdict() -> None:
    report = replace(made_report(chain(up_to(10), up_to(30, 11))), plan=InterruptionPlan(at_seconds=(30.0, 60.0)))
    assert report.outcome == "survives"
    assert report.verdict.endswith("(only 1 of the 2 interruptions that were planned came: the job ended first)")
    late = made_report(chain(up_to(10), up_to(30, 11), []))
    assert late.outcome == "survives"
    assert "1 of 2 interruptions tested nothing" in late.verdict


def test_interruptions_that_all_come_before_the_first_step_have_tested_nothing() -> None:
    evidence = chain([], [], [], up_to(20))
    report = made_report(evidence)
    assert report.outcome == "not tested"
    assert "each of 3 interruptions came before the first step" in report.verdict
    (finding,) = [each for each in found_in(evidence) if each.kind == "no time for a step"]
    assert "3 of 3 interruptions came before the first step of its attempt, after 2.00 s" in finding.evidence
    assert "the start takes 4.00 s" in finding.evidence
    every = InterruptionPlan(every_seconds=2.0, most=3)
    (finding,) = [each for each in found_in(evidence, plan=every) if each.kind == "no time for a step"]
    assert "only because the drill stops after 3 interruptions" in finding.evidence


def saving(evidence: Evidence, place: int, after_step: int) -> None:
    """The attempt at a place wrote its first checkpoint half a second after that step."""
    each = evidence.attempts[place]
    written = next(at for at, _, step in each.steps if step == after_step) + 0.5
    each.saved.append(Saved(at=written + 0.2, host="algo-1", path="state", size_bytes=1, written_at=written))


def examined(evidence: Evidence, plan: InterruptionPlan, notice_seconds: float = 0.0) -> Report:
    first = first_save(evidence)
    found = costs(evidence, notice_seconds=notice_seconds, first=first)
    findings = tuple(found_in(evidence, found=found, plan=plan))
    return replace(made_report(evidence), costs=found, findings=findings, plan=plan)


def test_a_machine_that_goes_before_the_first_checkpoint_can_be_has_tested_nothing() -> None:
    evidence = chain(up_to(6), up_to(30))
    saving(evidence, 1, after_step=10)
    report = examined(evidence, InterruptionPlan(at_seconds=(6.0,)))
    assert report.outcome == "not tested"
    assert report.verdict == (
        "NOT TESTED: the only interruption came before the first checkpoint, so there was nothing to go on with"
    )
    assert not report.passed
    (finding,) = [each for each in report.findings if each.kind == "no time to save"]
    assert not finding.fatal
    assert finding.evidence == (
        "1 of 1 interruption came when nothing was saved yet, at the latest after step 6 and 9.50 s of training; the first "
        "checkpoint is written after step 10 and in the store after 13.7 s"
    )


def test_what_could_have_been_saved_and_was_not_restarts_from_zero() -> None:
    at_notice = chain(up_to(6), up_to(30))
    saving(at_notice, 1, after_step=10)
    assert examined(at_notice, InterruptionPlan(at_seconds=(6.0,)), notice_seconds=30.0).outcome == "does not survive"
    later = chain(up_to(16), up_to(30))
    saving(later, 1, after_step=10)
    assert examined(later, InterruptionPlan(at_seconds=(16.0,))).outcome == "does not survive"
    only_at_the_end = chain(up_to(6), up_to(30))
    saving(only_at_the_end, 1, after_step=30)
    assert examined(only_at_the_end, InterruptionPlan(at_seconds=(6.0,))).outcome == "does not survive"


def test_a_job_survives_though_one_of_its_machines_went_before_the_first_checkpoint() -> None:
    evidence = chain(up_to(6), up_to(20), up_to(30, 16))
    saving(evidence, 1, after_step=15)
    evidence.attempts[2].restored_count = 1
    report = examined(evidence, InterruptionPlan(mean_seconds=15.0))
    assert report.outcome == "survives"
    assert report.verdict.endswith("1 of 2 interruptions tested nothing, for it came before the first checkpoint")


def saved_at(evidence: Evidence, place: int, path: str, *after_steps: int) -> None:
    """A file was written half a second after each of those steps, and arrived."""
    each = evidence.attempts[place]
    times = {step: at + 0.5 for at, _, step in each.steps}
    each.saved += [
        Saved(at=times[step] + 0.2, host="algo-1", path=path, size_bytes=1, written_at=times[step])
        for step in after_steps
    ]


def test_a_file_that_is_written_once_is_not_the_first_checkpoint() -> None:
    """A configuration beside the checkpoints was taken for one: "written but never read"."""
    undisturbed, evidence = chain(up_to(30)), chain(up_to(6), up_to(30))
    saved_at(undisturbed, 0, "config.json", 1)
    saved_at(undisturbed, 0, "state-1", 10, 20)
    saved_at(evidence, 0, "config.json", 1)
    evidence.attempts[1].restored_count = 1
    evidence.attempts[1].unread = ["config.json"]
    first = first_save(undisturbed, evidence)
    assert first is not None
    assert (first.step, first.names) == (10, frozenset({"state-"}))
    found = costs(evidence, notice_seconds=0.0, first=first)
    assert found[0].untested == "before the first checkpoint"
    kinds = [each.kind for each in diagnose(prepared(), undisturbed, evidence, found, None)]
    assert kinds == ["no time to save"]


def test_a_checkpoint_of_several_files_is_there_when_all_are() -> None:
    undisturbed, evidence = chain(up_to(30)), chain(up_to(11), up_to(30))
    for name in ("checkpoint-1/model", "checkpoint-1/state.json"):
        saved_at(undisturbed, 0, name, 10, 20)
    saved_at(evidence, 0, "checkpoint-1/model", 10)
    evidence.attempts[0].interrupted_at = evidence.attempts[0].steps[9][0] + 0.6
    (cost,) = costs(evidence, notice_seconds=0.0, first=first_save(undisturbed))
    assert cost.untested == "before the first checkpoint"
    saved_at(evidence, 0, "checkpoint-1/state.json", 10)
    (cost,) = costs(evidence, notice_seconds=0.0, first=first_save(undisturbed))
    assert cost.untested == ""
    assert cost.from_zero


def test_a_save_at_the_end_is_no_first_checkpoint_though_the_last_line_is_read_after_it() -> None:
    undisturbed = chain(up_to(30))
    last = undisturbed.attempts[0].steps[-1][0]
    undisturbed.attempts[0].saved = [
        Saved(at=last + 1, host="algo-1", path="state", size_bytes=1, written_at=last - 0.05)
    ]
    assert first_save(undisturbed) is None
    evidence = chain(up_to(20), up_to(30))
    evidence.attempts[1].saved = undisturbed.attempts[0].saved
    found = costs(evidence, notice_seconds=0.0)
    (finding,) = diagnose(prepared(), undisturbed, evidence, found, None)
    assert (finding.kind, finding.fatal) == ("saved at the end", True)
    assert "at interruption 1, after step 20" in finding.evidence


def test_a_machine_after_which_the_job_went_on_did_not_go_before_the_first_checkpoint() -> None:
    """Whatever its files are called: something had been saved."""
    undisturbed, evidence = chain(up_to(30)), chain(up_to(8), up_to(30, 6))
    saved_at(undisturbed, 0, "state", 10, 20)
    saved_at(evidence, 0, "warmup", 5)
    (cost,) = costs(evidence, notice_seconds=0.0, first=first_save(undisturbed))
    assert (cost.untested, cost.steps_lost) == ("", 3)


@pytest.mark.parametrize(("closed", "untested"), [(1, "before the first checkpoint"), (3, "")])
def test_a_first_checkpoint_that_was_being_written_is_none_that_could_not_be_kept(closed: int, untested: str) -> None:
    """A big file, seen open a few times, was said to be "hardly ever closed"; one that is replaced too fast is not untested."""
    undisturbed, evidence = chain(up_to(30)), chain(up_to(10), up_to(30))
    saved_at(undisturbed, 0, "state", 10, 20)
    evidence.attempts[0].interrupted_at = evidence.attempts[0].steps[-1][0] + 0.6
    evidence.attempts[0].unsettled = [
        Unsettled(host="algo-1", path="state.tmp", open_count=5, closed_count=0),
        Unsettled(host="algo-1", path="state", open_count=0, closed_count=closed),
    ]
    found = costs(evidence, notice_seconds=0.0, first=first_save(undisturbed))
    assert found[0].untested == untested
    (finding,) = diagnose(prepared(), undisturbed, evidence, found, None)
    assert finding.kind == ("replaced too fast" if closed > 1 else "no time to save")


def test_checkpoints_under_names_of_their_own_that_go_too_fast_are_together_too_many() -> None:
    """Each of twenty names was seen once: none had stood long enough, and that was said to be "before the first checkpoint"."""
    undisturbed, evidence = chain(up_to(30)), chain(up_to(20), up_to(30))
    saved_at(undisturbed, 0, "s-1", 28)
    evidence.attempts[0].unsettled = [
        Unsettled(host="algo-1", path=f"s-{step}", open_count=0, closed_count=1) for step in range(20)
    ]
    found = costs(evidence, notice_seconds=0.0, first=first_save(undisturbed))
    assert found[0].untested == ""
    (finding,) = diagnose(prepared(), undisturbed, evidence, found, None)
    assert finding.kind == "replaced too fast"
    assert "was seen to have changed 20 times" in finding.evidence


def test_a_first_checkpoint_that_was_on_its_way_to_the_store_is_not_there_yet() -> None:
    """It was written, later than undisturbed, or the uploader had not looked yet: "restarted from zero", without a reason."""
    undisturbed, evidence = chain(up_to(30)), chain(up_to(16), up_to(30))
    saved_at(undisturbed, 0, "checkpoint-1/model", 10, 20)
    evidence.attempts[0].unsettled = [
        Unsettled(host="algo-1", path="checkpoint-10/model", open_count=0, closed_count=1)
    ]
    found = costs(evidence, notice_seconds=0.0, first=first_save(undisturbed))
    assert found[0].untested == "before the first checkpoint"
    (finding,) = diagnose(prepared(), undisturbed, evidence, found, None)
    assert finding.evidence.endswith("; on the way there: checkpoint-10/model")


def test_a_job_that_fails_when_started_again_is_told_its_last_words() -> None:
    evidence = chain(up_to(16), [])
    evidence = replace(evidence, describe={**evidence.describe, "TrainingJobStatus": "Failed"})
    evidence.attempts[1].exits["algo-1"] = (105.0, 1)
    evidence.attempts[1].log_tail["algo-1"] = ["Traceback", "KeyError: 'state'", ""]
    (finding,) = [each for each in found_in(evidence) if each.kind == "fails after the restart"]
    assert finding.evidence.endswith("; its last words: KeyError: 'state'")


def test_a_job_that_goes_on_from_an_older_checkpoint_is_told_so() -> None:
    evidence = chain(up_to(25), up_to(40, 11))
    saved_at(evidence, 0, "ck-9", 10)
    saved_at(evidence, 0, "ck-10", 20)
    evidence.attempts[1].restored_count = 2
    evidence.attempts[1].read, evidence.attempts[1].unread = ["ck-9"], ["ck-10"]
    (finding,) = found_in(evidence)
    assert (finding.kind, finding.fatal) == ("older checkpoint", False)
    assert "found ck-10 and ck-9, read ck-9 alone, and went on with step 11" in finding.evidence
    evidence.attempts[1].read = ["ck-10", "ck-9"]
    assert found_in(evidence) == [], "it looked at both"
    parts = chain(up_to(25), up_to(40, 21))  # each process reads its own part
    saved_at(parts, 0, "part-0", 19)
    saved_at(parts, 0, "part-1", 20)
    parts.attempts[1].restored_count = 2
    parts.attempts[1].read, parts.attempts[1].unread = ["part-0"], ["part-1"]
    assert found_in(parts) == []


def test_a_link_that_is_not_kept_is_named() -> None:
    evidence = chain(up_to(25), up_to(40), links=["latest -> step-20"])
    saved_at(evidence, 0, "step-20/state", 20)
    evidence.attempts[1].restored_count = 1
    evidence.attempts[1].unread = ["step-20/state"]
    assert [each.kind for each in found_in(evidence)] == ["link not kept"]
    evidence.attempts[0].links = []
    assert [each.kind for each in found_in(evidence)] == ["never read"]


def test_of_a_silent_job_it_is_told_that_it_opened_no_checkpoint() -> None:
    evidence = chain(up_to(25), up_to(40))
    for each in evidence.attempts:
        each.steps.clear()
        each.first_lines.clear()
    evidence.attempts[1].restored_count, evidence.attempts[1].reads_known = 1, True
    evidence.attempts[1].unread = ["state"]
    (finding,) = found_in(evidence)
    assert (finding.kind, finding.fatal) == ("never opened", False)
    parts = time_parts(evidence, checkpoint_seconds=None)
    assert parts["start-up"] == 0.0, "nobody knows when it began to work"
    assert parts["unknown"] > 0.0


def test_checkpoints_that_follow_each_other_within_a_second_are_several() -> None:
    fast = chain([])
    fast.attempts[0].steps = [(10 + 0.05 * step, "algo-1", step) for step in range(100)]
    for names in (["state"] * 5, [f"ck-{number}" for number in range(5)]):
        fast.attempts[0].saved = [
            Saved(at=11.0, host="algo-1", path=name, size_bytes=1, written_at=10.3 + 0.5 * place)
            for place, name in enumerate(names)
        ]
        assert len(checkpoint_moments(fast.attempts[0])) == 5
    shards = [f"step-5/part-{number}-of-8" for number in range(8)]
    fast.attempts[0].saved = [
        Saved(at=11.0, host="algo-1", path=name, size_bytes=1, written_at=10.3 + 0.1 * place)
        for place, name in enumerate(shards)
    ]
    assert len(checkpoint_moments(fast.attempts[0])) == 1, "the parts of one checkpoint"


def test_another_result_that_may_be_noise_is_said_to_be() -> None:
    undisturbed, evidence = chain(up_to(30)), chain(up_to(10), up_to(30, 9))
    undisturbed.attempts[0].curve = [(step, {"loss": 1.0}) for step in range(1, 31)]
    evidence.attempts[0].curve = [(step, {"loss": 1.0 + 0.2 * (step % 2)}) for step in range(1, 11)]

    def ended_with(evidence: Evidence, value: float) -> Evidence:
        final = [{"MetricName": "loss", "Value": value}]
        return replace(evidence, describe={**evidence.describe, "FinalMetricDataList": final})

    undisturbed = ended_with(undisturbed, 1.0)
    for value, is_noise in ((1.3, True), (9.0, False)):
        evidence = ended_with(evidence, value)
        report = replace(made_report(evidence), metrics=compare_metrics(undisturbed, evidence, tolerance=0.01))
        assert report.outcome == "differs"
        assert ("no two runs are the same" in report.verdict) == is_noise


def test_a_plan_whose_machines_always_go_before_the_first_checkpoint_is_not_survived() -> None:
    evidence = chain(up_to(6), up_to(6), up_to(30))
    saving(evidence, 2, after_step=10)
    report = examined(evidence, InterruptionPlan(every_seconds=8.0, most=2))
    assert report.outcome == "does not survive"
    assert report.verdict == (
        "does NOT survive: restarted from zero after each interruption, 12 steps lost in all: machines go before the first "
        "checkpoint"
    )


def test_machines_that_go_at_random_need_not_always_go_before_the_first_checkpoint() -> None:
    evidence = chain(up_to(6), up_to(6), up_to(30))
    saving(evidence, 2, after_step=10)
    assert examined(evidence, InterruptionPlan(mean_seconds=30.0, most=2)).outcome == "not tested"
    assert examined(evidence, InterruptionPlan(mean_seconds=3.0, most=2)).outcome == "does not survive"


def test_a_job_that_fails_though_nobody_knows_why_is_told_its_reason() -> None:
    evidence = chain(up_to(30))
    describe = {**evidence.describe, "TrainingJobStatus": "Failed", "SecondaryStatus": "Failed"}
    describe["FailureReason"] = "InternalServerError: checkpoints could not be saved"
    report = made_report(replace(evidence, describe=describe, away=((10.0, 300.0),)))
    assert report.verdict == (
        "does NOT survive: ended Failed after the checkpoint store was away for 5 min 0 s: InternalServerError: checkpoints "
        "could not be saved"
    )


def test_of_steps_that_are_not_recognised_the_verdict_claims_no_survival() -> None:
    evidence = two_attempts()
    for each in evidence.attempts:
        each.steps.clear()
    report = made_report(evidence)
    assert report.outcome == "completes"
    assert report.verdict.startswith("completes after 1 interruption, but what it lost is unknown (no steps were seen")
    assert report.passed
    assert not replace(report, criteria=Criteria(max_lost_steps=100)).passed


def test_a_program_that_had_to_be_killed_has_wasted_its_notice() -> None:
    evidence = two_attempts()
    evidence.attempts[0].killed_at["algo-1"] = 44.5
    (cost,) = costs(evidence, notice_seconds=30.0)
    assert cost.notice == "wasted"


def test_what_another_host_was_writing_is_no_save_that_takes_longer_than_the_notice() -> None:
    """One of two hosts is told and killed, which ignores it; the other is torn down in the middle of a save."""

    def found(host: str, *later: int) -> str:
        evidence = chain(up_to(20), up_to(30), signalled_at={"algo-2": 24.5}, killed_at={"algo-2": 34.5})
        evidence.attempts[0].steps += [(26.0 + place, "algo-2", step) for place, step in enumerate(later)]
        evidence.attempts[0].left_out = [(host, "state")]
        saved_at(evidence, 0, "state", 10)
        return next(
            each.kind
            for each in found_in(evidence, notice_seconds=10.0)
            if "SIGTERM" in each.kind or "grace" in each.kind
        )

    assert found("algo-2") == "save longer than the grace"
    assert found("algo-1") == "SIGTERM not heard"
    assert found("algo-2", 21, 22, 23) == "SIGTERM not heard"


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
    assert checkpoint_cost(made).seconds == pytest.approx(0.5)
    assert not checkpoint_cost(made).at_most
    assert len(checkpoint_moments(made.attempts[0])) == 6


def saves_at_every_step(seconds: float) -> Evidence:
    steps = [(10.0 + seconds * step, step) for step in range(1, 301)]
    saved = [Saved(at=at + 0.3, host="algo-1", path=f"state-{step}", size_bytes=1, written_at=at) for at, step in steps]
    # As of XGBoost: the newest five stand there when somebody looks, once a second.
    seen = [each for each in saved if (each.written_at - 10.0) % 1.0 < 5 * seconds or seconds > 0.1]
    return job(attempt(1, 0.0, steps, saved=seen, exits={"algo-1": (steps[-1][0], 0)}, why="finished"))


@pytest.mark.parametrize("seconds", [0.001, 0.01, 0.25])
def test_where_every_step_saves_no_checkpoint_can_be_measured_and_all_of_it_is_useful(seconds: float) -> None:
    made = saves_at_every_step(seconds)
    measured = checkpoint_cost(made)
    assert measured.seconds is None
    assert "every step saves" in measured.unknown
    parts = time_parts(made, checkpoint_seconds=measured.seconds)
    assert parts["checkpointing"] == 0.0
    assert parts["useful"] == pytest.approx(299 * seconds)
    advice = advise(made, (), measured, planned_between_seconds=60.0)
    assert isinstance(advice, str)
    assert "every step saves" in advice_text(advice)


def printed_and_saved(seconds: float, *, files: int = 1) -> Evidence:
    """Steps of so many seconds; each tenth is printed, each fifteenth saves."""
    steps = [(10.0 + seconds * step, step) for step in range(10, 601, 10)]
    saved = [
        Saved(at=at + 0.3, host="algo-1", path=f"part-{file}.{'xyz'[file]}", size_bytes=1, written_at=at + 0.001 * file)
        for at in (10.0 + seconds * step for step in range(15, 601, 15))
        for file in range(files)
    ]
    return job(attempt(1, 0.0, steps, saved=saved, exits={"algo-1": (steps[-1][0], 0)}, why="finished"))


@pytest.mark.parametrize("files", [1, 3])
@pytest.mark.parametrize("seconds", [0.02, 0.1])
def test_a_job_that_prints_and_saves_now_and_then_is_not_said_to_save_at_every_step(seconds: float, files: int) -> None:
    measured = checkpoint_cost(printed_and_saved(seconds, files=files))
    assert measured.seconds is not None, measured.unknown


def test_stretches_of_more_or_fewer_steps_are_no_cost_of_a_checkpoint() -> None:
    """Tens are printed and two odd steps; each fifteenth saves, which costs nothing."""
    printed = sorted({*range(10, 301, 10), *range(12, 301, 10)})
    steps = [(10.0 + 0.1 * step, step) for step in printed]
    times = [10.0 + 0.1 * step + 0.01 for step in range(15, 301, 15)]
    saved = [Saved(at=at + 0.3, host="algo-1", path="state", size_bytes=1, written_at=at) for at in times]
    measured = checkpoint_cost(job(attempt(1, 0.0, steps, saved=saved)))
    assert measured.seconds == pytest.approx(0.0, abs=1e-6), measured


def test_of_saves_between_all_steps_that_are_printed_it_is_not_said_that_each_step_saves() -> None:
    steps = [(10.0 + 0.1 * step, step) for step in range(10, 301, 10)]
    saved = [Saved(at=at, host="algo-1", path="state", size_bytes=1, written_at=at - 0.01) for at, _ in steps]
    measured = checkpoint_cost(job(attempt(1, 0.0, steps, saved=saved)))
    assert "between nearly every two steps that are printed" in measured.unknown


@pytest.mark.parametrize("code", [0, 143])
def test_a_notice_that_was_heard_and_saved_to_the_wrong_folder_is_not_said_to_be_unheard(code: int) -> None:
    evidence = chain(up_to(20), up_to(30), signalled_at={"algo-1": 24.5}, elsewhere=["/opt/ml/ckpt/state.json"])
    evidence.attempts[0].exits["algo-1"] = (24.6, code)
    found = {each.kind: each for each in found_in(evidence, notice_seconds=30.0)}
    assert "/opt/ml/ckpt/state.json" in found["written elsewhere"].evidence
    assert ("SIGTERM was heard" in found["written elsewhere"].evidence) == (code == 0)
    assert ("notice wasted" in found) == (code == 143)
    evidence.attempts[0].elsewhere = evidence.attempts[1].elsewhere = []
    found = {each.kind: each for each in found_in(evidence, notice_seconds=30.0)}
    assert ("Without a handler" in found["notice wasted"].cure) == (code == 143)


@pytest.mark.parametrize(("opened", "closed", "kind"), [(9, 1, "never closed"), (1, 9, "replaced too fast")])
def test_a_checkpoint_that_was_never_kept_is_told_why(opened: int, closed: int, kind: str) -> None:
    """As it is where a job begins at zero although it saves at each step, and finishes: its last file arrived."""
    evidence = chain(up_to(20), up_to(30))
    unsettled = Unsettled(host="algo-1", path="state.bin", open_count=opened, closed_count=closed)
    evidence.attempts[0].unsettled = [unsettled]
    evidence.attempts[1].saved = [Saved(at=135.0, host="algo-1", path="state.bin", size_bytes=1, written_at=134.0)]
    (finding,) = found_in(evidence)
    assert finding.kind == kind
    assert finding.fatal
    assert "state.bin was seen to have changed 10 times" in finding.evidence
    evidence.attempts[0].saved = [Saved(at=9.0, host="algo-1", path="state.bin", size_bytes=1, written_at=9.0)]
    assert found_in(evidence) == []


def test_a_job_that_never_got_a_machine_is_not_told_to_save_more_often() -> None:
    evidence = job(AttemptEvidence(number=1, started_at=0.0), waits=((0.0, 15.0),), ended=15.0)
    describe = {**evidence.describe, "TrainingJobStatus": "Stopped", "SecondaryStatus": "MaxWaitTimeExceeded"}
    evidence = replace(evidence, describe=describe)
    report = made_report(evidence)
    assert report.outcome == "not tested"
    assert report.verdict == "NOT TESTED: no machine ever came, so nothing ran (MaxWaitTimeExceeded)"
    limits = {"spot": True, "max_runtime": 10, "max_wait": 15}
    (finding,) = found_in(evidence, shortcuts=limits)
    assert finding.kind == "no machine"
    assert "save" not in finding.cure


def test_checkpointing_never_takes_longer_than_the_steps_that_it_is_part_of() -> None:
    parts = time_parts(saves_at_every_step(0.25), checkpoint_seconds=5.0)
    assert parts["checkpointing"] == pytest.approx(299 * 0.25)
    assert parts["useful"] == pytest.approx(0.0)
    assert min(parts.values()) >= 0.0


def test_where_only_the_notice_saves_a_checkpoint_costs_at_most_what_that_took() -> None:
    measured = checkpoint_cost(two_attempts())
    assert measured.at_most
    assert measured.seconds == pytest.approx(14.8 - 14.5)
    advice = advise(two_attempts(), costs(two_attempts(), notice_seconds=30.0), measured, planned_between_seconds=None)
    assert "costs at most 0.30 s" in advice_text(advice)


def test_a_checkpoint_that_costs_next_to_nothing_may_be_written_as_often_as_one_likes() -> None:
    measured = CheckpointCost(seconds=0.001)
    advice = advise(two_attempts(), costs(two_attempts(), notice_seconds=30.0), measured, planned_between_seconds=None)
    assert advice_text(advice).startswith("save as often as you like: a checkpoint costs less than 0.02 s")


def test_of_a_job_without_steps_nothing_is_claimed() -> None:
    evidence = two_attempts()
    for each in evidence.attempts:
        each.steps.clear()
    (cost,) = costs(evidence, notice_seconds=30.0)
    assert (lost_text(cost), step_texts(cost), new_step_text(cost)) == ("unknown", ("unknown", "unknown"), "unknown")
    parts = time_parts(evidence, checkpoint_seconds=None)
    assert parts["useful"] == parts["lost work"] == parts["checkpointing"] == 0.0
    assert parts["unknown"] > 0.0
    assert sum(parts.values()) == pytest.approx(100.0)


def interrupted_and_finished(last_step_after: float) -> Evidence:
    """Twenty steps; SIGTERM so many seconds before the last; the next attempt finds nothing to do."""
    steps = [(10.0 + step, step) for step in range(1, 21)]
    at = 30.0 - last_step_after
    first = attempt(
        1,
        0.0,
        steps,
        interrupted_at=at,
        cause="test",
        signalled_at={"algo-1": at},
        exits={"algo-1": (30.1, 0)},
        why="interrupted",
    )
    return job(first, attempt(2, 40.0, [], exits={"algo-1": (42.0, 0)}, why="finished"))


def test_a_program_that_goes_on_after_sigterm_until_it_is_done_has_not_heard_it() -> None:
    (cost,) = costs(interrupted_and_finished(7.0), notice_seconds=120.0)
    assert cost.notice == "wasted"
    assert cost.went_on_seconds == pytest.approx(7.0)
    assert new_step_text(cost) == "none: all were done"


def test_steps_that_begin_again_with_each_epoch_do_not_say_that_all_is_done() -> None:
    evidence = interrupted_and_finished(7.0)
    evidence.attempts[0].steps.insert(0, (10.5, "algo-1", 20))
    (cost,) = costs(evidence, notice_seconds=120.0)
    assert not cost.all_done
    assert cost.went_on_seconds is None


def test_an_interruption_after_the_last_step_says_so() -> None:
    (cost,) = costs(interrupted_and_finished(-0.05), notice_seconds=120.0)
    assert (cost.notice, cost.steps_lost, cost.went_on_seconds) == ("all done", 0, None)
    assert step_texts(cost) == ("20", "none")
    assert new_step_text(cost) == "none: all were done"


def test_an_interruption_before_the_first_step_loses_none() -> None:
    evidence = two_attempts()
    evidence.attempts[0].steps.clear()
    (cost,) = costs(evidence, notice_seconds=30.0)
    assert cost.steps_lost == 0
    assert step_texts(cost) == ("none", "9")
    assert cost.recovery_seconds == pytest.approx(29.0 - 16.0)


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
        ("step 20: loading the checkpoint", None),
        ('{"total_steps": 100, "step": 5, "total_loss": 0.5}', 5),
        ("INFO loader.py:33 step 5/80 total_loss: 0.5 start: 12.0 total 3 s", 5),
        ("{'loss': 0.4, 'learning_rate': 5e-05, 'epoch': 0.25}", None),
        ("Epoch 3.", 3),
        (" 27%|##7       | 27/100 [00:01<00:03, 19.2it/s, loss=0.5]", 27),
        ("\r  5%|\u258c         | 5/100 [01:00:01<03:21,  4.90s/it]", 5),
        ("  0%|          | 0/100 [00:00<?, ?it/s]", None),
        (" 20%|##        | 20/100 [00:00<?, ?it/s]", None),
        ("Loading checkpoint shards: 50%|#####     | 1/2 [00:01<00:01,  1.00it/s]", None),
        ("\x1b[1m 7/12\x1b[0m \x1b[32m\u2501\u2501\x1b[0m \x1b[1m0s\x1b[0m 50ms/step - loss: 0.4", 7),
        (" 7/12 [=====>......] - ETA: 0s - loss: 0.4", 7),
        ("7/12 of the files were read", None),
    ],
)
def test_the_usual_forms_of_steps_are_read(line: str, step: int | None) -> None:
    assert StepReader().step(line) == step


def test_another_form_of_steps_is_read_as_told() -> None:
    assert [StepReader(r"^tick (\d+)").step(line) for line in ("tick 1", "step 7", "tick 2")] == [1, None, 2]


def made_report(evidence: Evidence) -> Report:
    return Report(
        baseline=evidence,
        disturbed=evidence,
        plan=InterruptionPlan(at_seconds=(1.0,)),
        criteria=Criteria(),
        costs=costs(evidence, notice_seconds=30.0),
        metrics=(),
        artifact_differences=None,
        jump=None,
        findings=(),
        parts=time_parts(evidence, checkpoint_seconds=None),
        baseline_parts=time_parts(evidence, checkpoint_seconds=None),
        advice="none was made",
    )


@pytest.mark.parametrize("waits", [(), ((16.0, 26.0),)])
def test_savings_are_those_of_the_seconds_beside_them(waits: tuple[tuple[float, float], ...]) -> None:
    evidence = replace(two_attempts(), waits=waits)
    describe = {
        **evidence.describe,
        "TrainingStartTime": 96.16,
        "SecondaryStatusTransitions": [{"Status": "Training", "StartTime": 96.32, "EndTime": 100.0}],
    }
    report = made_report(replace(evidence, describe=describe))
    line = next(line for line in as_text(report).splitlines() if line.startswith("billing"))
    assert "training 3.8 s, billable as managed spot 3.7 s" in line
    assert ("savings 2.6 %" in line) == bool(waits), line
    assert ("savings" in page(report)) == bool(waits)


def test_a_checkpoint_that_was_read_after_one_restart_is_not_said_to_be_never_read() -> None:
    """What the first attempt after it says is doubtful: a file that was replaced before somebody looked may have been read."""
    third = two_attempts().attempts[1]
    third.number, third.restored_count, third.reads_known, third.read = 3, 1, True, ["state"]
    first, second = (two_attempts().attempts[0] for _ in range(2))
    second.number, second.restored_count, second.reads_known, second.unread = 2, 1, True, ["state"]
    third.steps = [(30.0 + step, "algo-1", step) for step in range(1, 60)]
    evidence = job(first, second, third)
    training = prepare(
        {"AlgorithmSpecification": {"TrainingImage": "python", "ContainerEntrypoint": ["true"]}},
        options=LocalOptions(),
        shortcuts={"name": "job", "checkpoint": "/tmp/nowhere", "output": "/tmp/nowhere"},
        base_dir=Path(),
    )[0]
    found = diagnose(training, evidence, evidence, costs(evidence, notice_seconds=30.0), None)
    assert [each.kind for each in found if "read" in each.kind] == ["read but not used"]


def test_the_page_says_how_often_to_save_on_machines_that_last_longer() -> None:
    evidence = two_attempts()
    found = costs(evidence, notice_seconds=30.0)
    dear = advise(evidence, found, CheckpointCost(seconds=5.0), planned_between_seconds=None)
    assert "<th>12 h</th>" in page(replace(made_report(evidence), advice=dear))
    assert f"<td>{duration_text(daly_interval(5.0, 43_200.0))}</td>" in page(
        replace(made_report(evidence), advice=dear)
    )
    cheap = advise(evidence, found, CheckpointCost(seconds=0.001), planned_between_seconds=None)
    assert "<th>12 h</th>" not in page(replace(made_report(evidence), advice=cheap)), "as often as one likes"


def saved(path: str, size_bytes: int, written_at: float) -> Saved:
    return Saved(at=written_at + 0.3, host="algo-1", path=path, size_bytes=size_bytes, written_at=written_at)


def with_full_disk(*files: Saved, why: str = "finished", code: int = 0, until: float | None = 30.0) -> Evidence:
    """Full from second 20 on; the program ends at 60."""
    return job(
        attempt(
            1,
            0.0,
            [(4.0 + step, step) for step in range(1, 50)],
            exits={"algo-1": (60.0, code)},
            why=why,
            saved=list(files),
            disks_full=[DiskFull(host="algo-1", at=20.0, until=until)],
        )
    )


def test_what_a_full_disk_did_is_told_from_what_arrived() -> None:
    (disk,) = full_disks(with_full_disk(saved("state", 100, 15.0), saved("state", 100, 33.0)))
    assert (disk.began_seconds, disk.seconds, disk.last_before, disk.arrived) == (19.0, 10.0, "state", 0)
    assert disk.next_seconds == pytest.approx(3.3)
    assert (disk.torn, disk.ended_seconds) == ("", None)
    assert full_disk_text(disk).endswith("nothing saved meanwhile, the next file 3.30 s after there was room again")


def test_a_file_that_is_smaller_than_those_before_it_is_torn_unless_a_later_one_takes_its_place() -> None:
    (disk,) = full_disks(with_full_disk(saved("step-1.pt", 100, 15.0), saved("step-2.pt", 40, 25.0)))
    assert disk.torn == "step-2.pt has 40 bytes, and had 100"
    assert disk.torn_stands
    healed = with_full_disk(saved("a.pt", 100, 15.0), saved("a.pt", 40, 25.0), saved("a.pt", 100, 35.0))
    assert not full_disks(healed)[0].torn_stands
    other = with_full_disk(saved("step-1.pt", 100, 15.0), saved("notes.txt", 4, 25.0))
    assert full_disks(other)[0].torn == "", "another kind of file"


def test_a_program_that_failed_before_the_disk_was_full_did_not_die_of_it() -> None:
    evidence = with_full_disk(why="failed", code=1, until=None)
    assert full_disks(evidence)[0].ended_seconds == pytest.approx(40.0)
    assert full_disks(evidence)[0].exit_code == 1
    evidence.attempts[0].disks_full[0].at = 61.0
    assert full_disks(evidence)[0].ended_seconds is None
