"""Data parallel: DistributedDataParallel, or FSDP2's shards, made ready for this run."""

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch._C._distributed_c10d import GradBucket
from torch.nn.parallel import DistributedDataParallel

from optml_toolkit.container import UserError
from optml_toolkit.distributed.setup import Run

if TYPE_CHECKING:  # a second to import, and most scripts do not need it
    from torch.distributed.fsdp import FSDPModule

COMPRESSIONS = ("none", "fp16", "bf16", "powersgd")


def data_parallel(
    run: Run,
    model: nn.Module,
    *,
    bucket_cap_mb: int = 25,
    compression: str = "none",
    find_unused_parameters: bool = False,
    static_graph: bool = False,
    gradient_as_bucket_view: bool = True,
    measure_communication: bool = False,
) -> DistributedDataParallel:
    """The model on this rank's device, its gradients averaged over the data-parallel ranks. A collective call.

    `compression` sends gradients as fp16 or bf16, or as PowerSGD's low-rank approximation (whose error feedback is not part of a
    checkpoint: a resumed run is close, not bitwise equal). `measure_communication` takes the time from the last bucket to the
    end of backward, for the progress lines; it needs `compression="none"`.
    """
    if run.pipe_size > 1:
        raise UserError("with pipe > 1 use distributed.Pipeline, which averages over its copies too")
    if compression not in COMPRESSIONS:
        raise UserError(f"compression must be one of {', '.join(COMPRESSIONS)}, got {compression!r}")
    if measure_communication and compression != "none":
        raise UserError("measure_communication takes the place of a compression hook: give one of the two")
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UserError("the model has no parameter that requires a gradient: there is nothing to train")
    wrapped = DistributedDataParallel(
        model.to(run.device),
        device_ids=[run.device] if run.device.type == "cuda" else None,
        process_group=run.mesh.get_group("data"),
        bucket_cap_mb=bucket_cap_mb,
        find_unused_parameters=find_unused_parameters,
        static_graph=static_graph,
        gradient_as_bucket_view=gradient_as_bucket_view,
    )
    group: Any = run.mesh.get_group("data")
    if compression in ("fp16", "bf16"):
        wrapped.register_comm_hook(group, _as_fp16 if compression == "fp16" else _as_bf16)
    elif compression == "powersgd":
        from torch.distributed.algorithms.ddp_comm_hooks import powerSGD_hook

        state = powerSGD_hook.PowerSGDState(process_group=group, start_powerSGD_iter=10)
        wrapped.register_comm_hook(state, powerSGD_hook.powerSGD_hook)
    if measure_communication:
        timer = LastBucket(group)
        wrapped.register_comm_hook(timer, _timed_all_reduce)
        wrapped.last_bucket = timer  # type: ignore[assignment]
    return wrapped


def _as_fp16(group: Any, bucket: GradBucket) -> torch.futures.Future[torch.Tensor]:
    from torch.distributed.algorithms.ddp_comm_hooks import default_hooks

    return default_hooks.fp16_compress_hook(group, bucket)


def _as_bf16(group: Any, bucket: GradBucket) -> torch.futures.Future[torch.Tensor]:
    """torch's own; under its own name DDP refuses it for gloo, which sums bfloat16 as well."""
    from torch.distributed.algorithms.ddp_comm_hooks import default_hooks

    return default_hooks.bf16_compress_hook(group, bucket)


class LastBucket:
    """When the last bucket of gradients was ready: what backward takes from then on is communication."""

    def __init__(self, group: Any):
        self.group = group
        self.ready_at: float | None = None

    def seconds_since(self) -> float:
        began, self.ready_at = self.ready_at, None
        return 0.0 if began is None else time.perf_counter() - began


def _timed_all_reduce(timer: LastBucket, bucket: GradBucket) -> torch.futures.Future[torch.Tensor]:
    from torch.distributed.algorithms.ddp_comm_hooks import default_hooks

    if bucket.is_last():
        timer.ready_at = time.perf_counter()
    return default_hooks.allreduce_hook(timer.group, bucket)


def sharded(
    run: Run,
    model: nn.Module,
    *,
    layers: Sequence[nn.Module] = (),
    parameters_dtype: torch.dtype | None = None,
    reshard_after_forward: bool = True,
) -> "FSDPModule":
    """FSDP2: parameters, gradients and the optimiser's state cut over the data-parallel ranks. A collective call.

    `layers`: modules to gather one at a time (a transformer's blocks); without them the whole model is gathered at once.
    `parameters_dtype`: what forward and backward compute in, e.g. torch.bfloat16; gradients are summed in float32.
    """
    if run.pipe_size > 1:
        raise UserError("with pipe > 1 use distributed.Pipeline: shards inside of a pipeline are not supported")
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

    model.to(run.device)
    options: dict[str, Any] = {"mesh": run.mesh["data"], "reshard_after_forward": reshard_after_forward}
    if parameters_dtype is not None:
        options["mp_policy"] = MixedPrecisionPolicy(param_dtype=parameters_dtype, reduce_dtype=torch.float32)
    for layer in layers:
        fully_shard(layer, **options)
    whole = fully_shard(model, **options)
    assert isinstance(whole, FSDPModule)
    return whole
