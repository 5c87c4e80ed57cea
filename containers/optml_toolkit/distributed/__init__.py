"""Train torch scripts over processes, GPUs and hosts, interrupted at any moment and continued as if nothing had happened.

`init` (setup.py) joins the run; `Batches` (data.py) are the data with their position; `data_parallel` and `sharded`
(data_parallel.py) or `Pipeline` (pipeline.py) spread the model; `Training` (training.py) is the loop, on interruption.py (who
stops when), checkpoints.py and state.py (what is kept), progress.py (what is printed). docs/distributed.md tells it
with examples.
Needs torch 2.6 or later; the rest of the toolkit does not import it.
"""

from typing import TYPE_CHECKING, Any

from optml_toolkit.container import UserError
from optml_toolkit.distributed.checkpoints import Checkpoints, is_complete
from optml_toolkit.distributed.data import Batches, in_a_group_of_its_own
from optml_toolkit.distributed.data_parallel import data_parallel, sharded
from optml_toolkit.distributed.setup import Run, init
from optml_toolkit.distributed.training import Training

if TYPE_CHECKING:
    from optml_toolkit.distributed.pipeline import Pipeline

__all__ = [
    "Batches",
    "Checkpoints",
    "Pipeline",
    "Run",
    "Training",
    "UserError",
    "data_parallel",
    "in_a_group_of_its_own",
    "init",
    "is_complete",
    "sharded",
]


def __getattr__(name: str) -> Any:
    """torch's pipelining takes longer to import than torch itself: only who names `Pipeline` waits for it."""
    if name == "Pipeline":
        from optml_toolkit.distributed.pipeline import Pipeline

        return Pipeline
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
