"""For tests of training code: drill a job, and fail if it does not survive.

>>> from optml.testing import assert_survives
>>> def test_training_survives_interruptions(tmp_path):
...     assert_survives("request.json", checkpoint=str(tmp_path), max_lost_steps=10, require_equal_metrics=True)
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optml.drills.report import Report
    from optml.spec import InterruptionPlan


def drill(request: Mapping[str, Any] | str | Path | None = None, **arguments: Any) -> "Report":
    """`optml.drills.run.drill`, without output: the report, whatever it says."""
    from optml.drills.run import drill as run_drill

    arguments.setdefault("logs", False)
    return run_drill(request, **arguments)


def assert_survives(
    request: Mapping[str, Any] | str | Path | None = None,
    *,
    plan: "InterruptionPlan | None" = None,
    max_lost_steps: int | None = None,
    max_recovery_seconds: float | None = None,
    require_equal_metrics: bool = False,
    require_equal_artifacts: bool = False,
    tolerance: float = 0.01,
    **arguments: Any,
) -> "Report":
    """Drill a job; AssertionError, with the whole report as its text, if it does not survive or a criterion does not hold.

    `plan` is an optml.InterruptionPlan; without one the job is interrupted twice. The other arguments are those of optml.train.
    """
    from optml.drills.plan import Criteria
    from optml.drills.report import as_text

    criteria = Criteria(
        max_lost_steps=max_lost_steps,
        max_recovery_seconds=max_recovery_seconds,
        require_equal_metrics=require_equal_metrics,
        require_equal_artifacts=require_equal_artifacts,
        tolerance=tolerance,
    )
    report = drill(request, plan=plan, criteria=criteria, **arguments)
    if not report.passed:
        raise AssertionError(as_text(report))
    return report
