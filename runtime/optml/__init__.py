"""optml: Amazon SageMaker training jobs on your own machine.

>>> import optml
>>> job = optml.train(image="xgboost", channels={"train": "data/train.csv"}, hyperparameters={"num_round": 50})
>>> job.model_data
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = [
    "InterruptionPlan",
    "Job",
    "JobFailed",
    "LocalOptions",
    "OptmlError",
    "ResourceInUse",
    "UserError",
    "ValidationError",
    "by_hand",
    "find",
    "list_jobs",
    "resume",
    "train",
]

_HOMES = {
    **dict.fromkeys(("Job", "find", "list_jobs", "resume", "train"), "optml.jobs"),
    **dict.fromkeys(("JobFailed", "OptmlError", "ResourceInUse", "UserError", "ValidationError"), "optml.errors"),
    **dict.fromkeys(("InterruptionPlan", "LocalOptions"), "optml.spec"),
}

if TYPE_CHECKING:
    from optml import by_hand
    from optml.errors import JobFailed, OptmlError, ResourceInUse, UserError, ValidationError
    from optml.jobs import Job, find, list_jobs, resume, train
    from optml.spec import InterruptionPlan, LocalOptions


def __getattr__(name: str) -> Any:
    """Names are imported when they are used: `import optml` alone costs nothing."""
    import importlib

    if name == "by_hand":  # a module: its functions are called stage and collect, as other modules of optml are
        return importlib.import_module("optml.by_hand")
    if name not in _HOMES:
        raise AttributeError(f"module 'optml' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
