"""Train torch scripts over processes, GPUs and hosts, interrupted at any moment and continued as if nothing had happened.

`init` (setup.py) joins the run; `Batches` (data.py) are the data with their position; `data_parallel` and `sharded`
(data_parallel.py) or `Pipeline` (pipeline.py) spread the model; `Training` (training.py) is the loop, on interruption.py (who
stops when), checkpoints.py and state.py (what is kept), progress.py (what is printed). docs/distributed.md tells it
with examples.
Needs torch 2.6 or later; the rest of the toolkit does not import it.
"""

from optml_toolkit.container import UserError
from optml_toolkit.distributed.checkpoints import Checkpoints, is_complete
from optml_toolkit.distributed.data import Batches
from optml_toolkit.distributed.data_parallel import data_parallel, sharded
from optml_toolkit.distributed.pipeline import Pipeline
from optml_toolkit.distributed.setup import Run, init
from optml_toolkit.distributed.training import Training

__all__ = [
    "Batches",
    "Checkpoints",
    "Pipeline",
    "Run",
    "Training",
    "UserError",
    "data_parallel",
    "init",
    "is_complete",
    "sharded",
]
