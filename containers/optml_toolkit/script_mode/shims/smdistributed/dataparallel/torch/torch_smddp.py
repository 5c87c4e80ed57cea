"""Makes "smddp" a backend of torch.distributed, as importing AWS's module does: on NCCL where there is a GPU, else gloo."""

import importlib
from typing import Any

torch: Any = importlib.import_module("torch")
distributed: Any = importlib.import_module("torch.distributed")


def create(store: Any, rank: int, size: int, timeout: Any) -> Any:
    """What torch.distributed calls for a new process group of the backend."""
    if torch.cuda.is_available() and distributed.is_nccl_available():
        return distributed.ProcessGroupNCCL(store, rank, size, timeout)
    return distributed.ProcessGroupGloo(store, rank, size, timeout)


if "smddp" not in distributed.Backend.backend_list:
    distributed.Backend.register_backend("smddp", create, devices=["cpu", "cuda"])
