"""A model's and an optimiser's state as one flat table of tensors by parameter name, whatever the layout; and back.

By name, for the ranks of another layout hold other parameters: a pipeline's stage knows its part, a shard is a DTensor that
torch.distributed.checkpoint cuts anew. What all data-parallel ranks have alike is taken from the first of them.
"""

import io
import random
import sys
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from optml_toolkit.container import UserError

if TYPE_CHECKING:  # torch's checkpoints and sharded tensors take a second to import: only where they are used
    from torch.distributed.checkpoint.metadata import Metadata

MODEL, OPTIMIZER, OPTIONS = "model.", "optimizer.", "optimizer_options."


def is_sharded(value: object) -> bool:
    """Whether it is a DTensor; without their module there are none."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(value, module.DTensor)


def unwrapped(model: nn.Module) -> nn.Module:
    return model.module if isinstance(model, DistributedDataParallel) else model


def model_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and persistent buffers by name."""
    found = unwrapped(model).state_dict()
    if other := [name for name, value in found.items() if not isinstance(value, torch.Tensor)]:
        raise UserError(
            f"the model's state {other[0]!r} is not a tensor (get_extra_state?), and is not kept: give it as `state`"
        )
    return dict(found)


def parameter_names(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[int, str]:
    """Names of the optimiser's parameters by id. UserError if it has one that is not the model's."""
    names = {id(parameter): name for name, parameter in unwrapped(model).named_parameters()}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if id(parameter) not in names:
                raise UserError(
                    f"the optimiser has a parameter of shape {tuple(parameter.shape)} that is not the model's: make "
                    f"the optimiser "
                    "after the model was wrapped, from its parameters, and give both to Training"
                )
    return names


def table(model: nn.Module, optimizer: torch.optim.Optimizer, *, replica: int) -> dict[str, Any]:
    """What this rank contributes: its shards, and of what is replicated everything if it is replica 0."""
    names = parameter_names(model, optimizer)
    found: dict[str, Any] = {f"{MODEL}{name}": value for name, value in model_tensors(model).items()}
    for group in optimizer.param_groups:
        options = {name: value for name, value in group.items() if name != "params"}
        for parameter in group["params"]:
            name = names[id(parameter)]
            found[f"{OPTIONS}{name}"] = packed(options)
            for key, value in optimizer.state.get(parameter, {}).items():
                found[f"{OPTIMIZER}{name}.{key}"] = value if isinstance(value, torch.Tensor) else packed(value)
    return found if replica == 0 else {name: value for name, value in found.items() if is_sharded(value)}


def changed_by_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, contents: Mapping[str, Any]) -> set[str]:
    """Names of a table's whole tensors that nothing but the optimiser's step changes; buffers change in a forward."""
    names = parameter_names(model, optimizer)
    trained = {f"{MODEL}{names[id(parameter)]}" for group in optimizer.param_groups for parameter in group["params"]}
    whole = [name for name, value in contents.items() if isinstance(value, torch.Tensor) and not is_sharded(value)]
    return {name for name in whole if name in trained or name.startswith(OPTIMIZER)}


def check_model(metadata: "Metadata", *, everyones: Iterable[Mapping[str, tuple[int, ...]]]) -> None:
    """UserError names the first parameter in which the model of all ranks is not that of the checkpoint."""
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    kept = {
        name.removeprefix(MODEL): tuple(entry.size)
        for name, entry in metadata.state_dict_metadata.items()
        if name.startswith(MODEL) and isinstance(entry, TensorStorageMetadata)
    }
    mine: dict[str, tuple[int, ...]] = {}
    for part in everyones:
        mine |= part
    advice = "it is another model's checkpoint: give another folder, or the model that it was made with"
    for name in [*mine, *(name for name in kept if name not in mine)]:
        if name not in kept:
            raise UserError(
                f"the checkpoint has no {name!r}, which the model has with shape {list(mine[name])}; {advice}"
            )
        if name not in mine:
            raise UserError(
                f"the checkpoint has {name!r} with shape {list(kept[name])}, which the model has not; {advice}"
            )
        if kept[name] != mine[name]:
            raise UserError(
                f"{name!r} has shape {list(kept[name])} in the checkpoint and {list(mine[name])} in the model; {advice}"
            )


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in model_tensors(model).items()}


def to_fill(model: nn.Module, optimizer: torch.optim.Optimizer, metadata: "Metadata") -> dict[str, Any]:
    """A table of this rank's tensors to load into: the model's own, and new ones for the optimiser's state."""
    from torch.distributed.checkpoint.metadata import BytesStorageMetadata

    found: dict[str, Any] = {f"{MODEL}{name}": value for name, value in model_tensors(model).items()}
    kept = metadata.state_dict_metadata
    names = parameter_names(model, optimizer)
    by_parameter: dict[str, list[str]] = {}
    ours = set(names.values())
    for key in kept:
        if key.startswith(OPTIMIZER):
            name = key.removeprefix(OPTIMIZER).rpartition(".")[0]
            if name in ours:
                by_parameter.setdefault(name, []).append(key)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            if f"{OPTIONS}{name}" not in kept:
                raise UserError(
                    f"the checkpoint's optimiser did not train {name!r}, and this one does: give the same optimiser"
                )
            found[f"{OPTIONS}{name}"] = b""
            for key in by_parameter.get(name, []):
                entry = kept[key]
                if isinstance(entry, BytesStorageMetadata):
                    found[key] = b""
                elif tuple(entry.size) == tuple(parameter.shape):
                    found[key] = torch.zeros_like(parameter, dtype=entry.properties.dtype, requires_grad=False)
                else:
                    found[key] = torch.zeros(entry.size, dtype=entry.properties.dtype)
    return found


def apply(model: nn.Module, optimizer: torch.optim.Optimizer, filled: Mapping[str, Any]) -> None:
    """Put a filled table in place. The model's tensors were filled where they are."""
    names = parameter_names(model, optimizer)
    by_parameter: dict[str, dict[str, Any]] = {}
    for key, value in filled.items():
        if key.startswith(OPTIMIZER):
            name, _, state = key.removeprefix(OPTIMIZER).rpartition(".")
            by_parameter.setdefault(name, {})[state] = unpacked(value) if isinstance(value, bytes) else value
    groups: list[dict[str, Any]] = []
    by_number: dict[int, dict[str, Any]] = {}
    number = 0
    for group in optimizer.param_groups:
        numbers: list[int] = []
        first, of_first = "", b""
        options: dict[str, Any] = {name: value for name, value in group.items() if name != "params"}
        for parameter in group["params"]:
            name = names[id(parameter)]
            kept = filled[f"{OPTIONS}{name}"]
            if not numbers:
                first, of_first, options = name, kept, unpacked(kept)
            elif kept != of_first:
                _check_same_options(options, unpacked(kept), names=(first, name))
            if name in by_parameter:
                by_number[number] = by_parameter[name]
            numbers.append(number)
            number += 1
        groups.append({**options, "params": numbers})
    optimizer.load_state_dict({"state": by_number, "param_groups": groups})


def _check_same_options(options: Mapping[str, Any], other: Mapping[str, Any], *, names: tuple[str, str]) -> None:
    for option, value in options.items():
        if repr(value) != repr(other.get(option)):
            raise UserError(
                f"{names[0]!r} and {names[1]!r} are in one group of the optimiser, and were trained with {option} {value} and "
                f"{other.get(option)} when the checkpoint was made: give the same groups, or another checkpoint folder"
            )


def random_states(device: torch.device) -> dict[str, Any]:
    """Of every generator that a script uses without being asked: Python, torch, the GPU, numpy."""
    states: dict[str, Any] = {"python": random.getstate(), "torch": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    if (numpy := sys.modules.get("numpy")) is not None:
        states["numpy"] = numpy.random.get_state()
    return states


def set_random_states(states: Mapping[str, Any], device: torch.device) -> None:
    random.setstate(states["python"])
    torch.set_rng_state(states["torch"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)
    if "numpy" in states:
        import numpy

        numpy.random.set_state(states["numpy"])


def packed(value: Any) -> bytes:
    """Anything that pickle takes, tensors included."""
    stream = io.BytesIO()
    torch.save(value, stream)
    return stream.getvalue()


def unpacked(value: bytes) -> Any:
    # A checkpoint is the run's own: as trusted as its code.
    return torch.load(io.BytesIO(value), weights_only=False, map_location="cpu")
