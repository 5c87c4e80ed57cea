"""Pipeline parallel: a model cut into stages, each on its rank, that work on a batch's micro-batches at once.

The schedules are torch.distributed.pipelining's. Added here: the cut, their rules checked before anything runs
(torch finds some late, and only one rank says why), gradients averaged over the mesh's `data` ranks, parts of a step that add up,
evaluation, and the measured bubble.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.pipelining import PipelineStage
from torch.distributed.pipelining.schedules import get_schedule_class

from optml_toolkit.container import UserError
from optml_toolkit.distributed.setup import Run

BUCKET_BYTES = 25 << 20
# What may go from stage to stage, by the number that stands for it in a message's head, and how long that head is.
TYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.bool)
HEAD = 10
LossFunction = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What a schedule asks for. `in_v`: rank r has stages r and 2p-1-r, so the last stage is on the first rank."""

    torch_name: str
    several_stages: bool = False
    in_v: bool = False


SCHEDULES = {
    "gpipe": Rules(torch_name="GPipe"),
    "1f1b": Rules(torch_name="1F1B"),
    "interleaved-1f1b": Rules(torch_name="Interleaved1F1B", several_stages=True),
    "looped-bfs": Rules(torch_name="LoopedBFS", several_stages=True),
    "interleaved-zero-bubble": Rules(torch_name="InterleavedZeroBubble", several_stages=True),
    "zbv": Rules(torch_name="ZBVZeroBubble", several_stages=True, in_v=True),
    "dualpipe-v": Rules(torch_name="DualPipeV", several_stages=True, in_v=True),
}


def check_schedule(schedule: str, *, ranks: int, stages_per_rank: int, micro_batches: int) -> Rules:
    """UserError names the rule that is broken, before any process waits for another."""
    if schedule not in SCHEDULES:
        raise UserError(f"schedule must be one of {', '.join(SCHEDULES)}, got {schedule!r}")
    rules, stages = SCHEDULES[schedule], ranks * stages_per_rank
    if micro_batches < 1:
        raise UserError(f"micro_batches must be at least 1, got {micro_batches}")
    if not rules.several_stages and stages_per_rank != 1:
        raise UserError(f"{schedule} has one stage on each rank, got stages_per_rank={stages_per_rank}")
    if rules.in_v and stages_per_rank != 2:
        raise UserError(f"{schedule} has two stages on each rank, got stages_per_rank={stages_per_rank}")
    if ranks == 1:
        return rules
    if schedule in ("1f1b", "dualpipe-v") and micro_batches < stages:
        raise UserError(f"{schedule} needs at least as many micro-batches as stages ({stages}), got {micro_batches}")
    if schedule in ("interleaved-1f1b", "interleaved-zero-bubble"):
        rounds = max(1, micro_batches // ranks)
        if micro_batches % rounds:
            raise UserError(
                f"{schedule} needs micro-batches in whole rounds of the {ranks} ranks: {micro_batches} do not divide "
                f"into {rounds} "
                f"rounds; take a multiple of {ranks}"
            )
    return rules


def stages_of(rank: int, *, ranks: int, stages_per_rank: int, in_v: bool) -> list[int]:
    if in_v:
        return [rank, 2 * ranks - 1 - rank]
    return [rank + number * ranks for number in range(stages_per_rank)]


def balanced(costs: Sequence[float], parts: int) -> list[int]:
    """Where to cut a row of layers so that the dearest part is as cheap as it can be: the first layer of each part.

    Dynamic programming over (parts, layers). UserError if there are fewer layers than parts.
    """
    count = len(costs)
    if count < parts:
        raise UserError(
            f"{count} layers cannot make {parts} stages: each needs one; take fewer ranks or stages_per_rank"
        )
    sums = [0.0]
    for cost in costs:
        sums.append(sums[-1] + cost)
    best = [sums[end] for end in range(count + 1)]  # of the first `end` layers in one part
    cuts: list[list[int]] = [[0] for _ in range(count + 1)]
    for part in range(1, parts):
        now, now_cuts = [float("inf")] * (count + 1), [list[int]() for _ in range(count + 1)]
        for end in range(part + 1, count + 1):
            for cut in range(part, end):
                worst = max(best[cut], sums[end] - sums[cut])
                if worst < now[end]:
                    now[end], now_cuts[end] = worst, [*cuts[cut], cut]
        best, cuts = now, now_cuts
    return cuts[count]


def formula(*, ranks: int, stages_per_rank: int, micro_batches: int) -> float:
    """The share of a step in which a rank has nothing to do, (p-1)/(m+p-1), with v stages a rank (p-1)/(vm+p-1).

    Of a pipeline whose stages cost the same and whose messages cost nothing; zero-bubble schedules are to lie below it. (Huang
    et al. 2019, GPipe; Narayanan et al. 2021, section 2.2, with the bubble as a share of the whole step.)
    """
    return (ranks - 1) / (stages_per_rank * micro_batches + ranks - 1)


class Layers(nn.Sequential):
    """Some of a model's layers, under the names that they have there."""

    def forward(self, x: Any) -> torch.Tensor:
        for name, layer in self.named_children():
            x = layer(x)
            if not isinstance(x, torch.Tensor):
                raise UserError(
                    f"the layer {name!r} gives {type(x).__name__}, and a pipeline's layers must each give one tensor: it is what "
                    "is sent to the next stage"
                )
        return x  # type: ignore[no-any-return]


class _Stopwatch:
    """Sums up the time in which this rank computes; what is left of a step is the bubble, and what sending costs."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def timed(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def timing(*args: Any, **more: Any) -> Any:
            began = time.perf_counter()
            try:
                return call(*args, **more)
            finally:
                self.seconds += time.perf_counter() - began

        return timing


class _Stage(PipelineStage):
    """Leaves no trace of how PyTorch (2.13) learns the shapes of its layers' outputs: it runs them before the first step, on
    memory that it does not fill.

    Neither in buffers (a BatchNorm's statistics would be garbage ever after) nor in random numbers (a run that goes on would draw
    others than one that was never stopped); and indices must be ones that an embedding has.
    """

    def _forward_metadata_inference(self, *args: Any, **more: Any) -> Any:
        buffers = {buffer: buffer.detach().clone() for buffer in self.submod.buffers()}
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            found = super()._forward_metadata_inference(*args, **more)
        for buffer, before in buffers.items():
            buffer.data.copy_(before)  # unseen by autograd, whose backward pass is tried next
        return found

    def _to_tensor(self, arg: Any) -> torch.Tensor:
        value = super()._to_tensor(arg)
        if not isinstance(arg, torch.Tensor):
            value.data.zero_()
        return value

    def time(self, busy: _Stopwatch) -> None:
        for name in ("forward_one_chunk", "backward_one_chunk", "backward_weight_one_chunk"):
            setattr(self, name, busy.timed(getattr(self, name)))


class Pipeline:
    """A model in stages over the mesh's `pipe` ranks, and copies of it over its `data` ranks.

    Train `module`: this rank's layers, named as in the whole model, so that a checkpoint fits any number of stages, one
    included. `step` takes the whole batch of this copy on each of its ranks.
    """

    def __init__(
        self,
        run: Run,
        model: nn.Sequential,
        *,
        loss: LossFunction,
        micro_batches: int,
        schedule: str = "1f1b",
        stages_per_rank: int | None = None,
        split: Sequence[str] | None = None,
        costs: Sequence[float] | None = None,
    ):
        """A collective call. `model`: equal on all ranks (`init` seeds them so), a Sequential whose layers each take
        and give one tensor;
        to give stages of your own, make them its layers and `split` before each but the first.

        `loss(outputs, targets)`: the mean over the samples given, for the step's loss is the mean over its micro-batches.
        `split`: names of the layers that begin a stage; else stages are cut so that the sums of `costs`, one for each layer
        (by default its number of parameters), are as equal as can be. UserError where something does not fit.
        """
        rules = SCHEDULES.get(schedule)
        if stages_per_rank is None:
            stages_per_rank = 2 if rules is not None and rules.several_stages else 1
        rules = check_schedule(
            schedule, ranks=run.pipe_size, stages_per_rank=stages_per_rank, micro_batches=micro_batches
        )
        if not isinstance(model, nn.Sequential):
            raise UserError(
                f"a pipeline is cut from a torch.nn.Sequential, got {type(model).__name__}: put its layers into one, each "
                "taking and giving one tensor"
            )
        self.run, self.loss, self.micro_batches = run, loss, micro_batches
        self.schedule_name, self.stages_per_rank = schedule, stages_per_rank
        ranks, count = run.pipe_size, run.pipe_size * stages_per_rank
        cut = _cut(model, count, split=split, costs=costs)
        _check_nothing_is_shared(cut)
        # One rank is the whole model: no schedule, and nothing to send.
        mine = (
            stages_of(run.pipe_rank, ranks=ranks, stages_per_rank=stages_per_rank, in_v=rules.in_v)
            if ranks > 1
            else list(range(count))
        )
        self.module = nn.Module()
        self._parts = {number: cut[number] for number in sorted(mine)}
        self._owners = {
            number: rank
            for rank in range(ranks)
            for number in stages_of(rank, ranks=ranks, stages_per_rank=stages_per_rank, in_v=rules.in_v)
        }
        for part in self._parts.values():
            for name, layer in part.named_children():
                self.module.add_module(name, layer)
        self.module.to(run.device)
        self._whole = Layers()
        self._stages: list[_Stage] = []
        self._busy = _Stopwatch()
        self._schedule: Any = None
        self._has_first, self._has_last = 0 in mine, count - 1 in mine
        self._last_rank = 0 if rules.in_v else ranks - 1  # in the pipeline
        if ranks == 1:
            for number in mine:
                for name, layer in cut[number].named_children():
                    self._whole.add_module(name, layer)
        else:
            group = run.mesh.get_group("pipe")
            self._stages = [_Stage(cut[number], number, count, run.device, group=group) for number in mine]
            for stage in self._stages:
                stage.time(self._busy)
            stages: Any = self._stages if rules.several_stages else self._stages[0]
            # The sums become means here, with the last part of a step.
            self._schedule = get_schedule_class(rules.torch_name)(
                stages, n_microbatches=micro_batches, loss_fn=self._busy.timed(loss), scale_grads=False
            )
        self._batch_shape: tuple[int, ...] | None = None
        self._elapsed_seconds = 0.0
        self.waited_seconds = 0.0  # for other stages and copies, in steps; of work on a GPU nobody knows it here

    def step(
        self, inputs: torch.Tensor, targets: torch.Tensor, *, parts: int = 1, last_part: bool = True
    ) -> torch.Tensor:
        """Forward and backward of a batch; gradients are means over it and over the data-parallel copies afterwards.

        Gives the batch's mean loss, on every rank of the pipeline. Every rank passes the same batch: the first stage uses the
        inputs, the last the targets. A step of the optimiser may have several `parts`, batches whose gradients add up: they are
        means over all of them after the call with `last_part`, and sums of this copy's micro-batches until then.
        UserError if the batch does not divide into the micro-batches, or has not the first batch's shape.
        """
        rows = inputs.shape[0]
        if rows % self.micro_batches or targets.shape[0] != rows:
            raise UserError(
                f"a batch of {rows} inputs and {targets.shape[0]} targets does not divide into {self.micro_batches} "
                "micro-batches; choose batch_size (over all data-parallel ranks and parts) to fit, and Batches(drop_last=True)"
            )
        if self._schedule is not None and self._batch_shape not in (None, tuple(inputs.shape)):
            raise UserError(
                f"a batch of shape {list(inputs.shape)} after one of {list(self._batch_shape or ())}: stages exchange tensors of "
                "one shape; use Batches(drop_last=True)"
            )
        self._batch_shape = tuple(inputs.shape)
        inputs, targets = inputs.to(self.run.device), targets.to(self.run.device)
        began, busy = time.perf_counter(), self._busy.seconds
        if self._schedule is None:
            mean = self._step_alone(inputs, targets)
        else:
            losses: list[torch.Tensor] = []
            arguments = (inputs,) if self._has_first else ()
            more = {"target": targets, "losses": losses} if self._has_last else {}
            self._schedule.step(*arguments, return_outputs=False, **more)
            self._elapsed_seconds += time.perf_counter() - began
            mean = (
                torch.stack([each.detach() for each in losses]).mean().float()
                if self._has_last
                else torch.zeros((), device=self.run.device)
            )
            group = self.run.mesh.get_group("pipe")
            dist.broadcast(mean, src=dist.get_global_rank(group, self._last_rank), group=group)
            self.waited_seconds += time.perf_counter() - began - (self._busy.seconds - busy)
        if last_part:
            began = time.perf_counter()
            self._average_gradients(self.micro_batches * parts)
            self.waited_seconds += time.perf_counter() - began
        return mean

    def _step_alone(self, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        losses = []
        for x, y in zip(inputs.chunk(self.micro_batches), targets.chunk(self.micro_batches), strict=True):
            loss = self.loss(self._whole(x), y)
            loss.backward()  # type: ignore[no-untyped-call]
            losses.append(loss.detach())
        return torch.stack(losses).mean().float()

    def _average_gradients(self, count: int) -> None:
        """From sums over `count` micro-batches to means over them and over the copies.

        In buckets, after the schedule: the zero-bubble ones compute a parameter's gradient in more than one go.
        """
        gradients = [parameter.grad for parameter in self.module.parameters() if parameter.grad is not None]
        for gradient in gradients:
            gradient.div_(count)
        if self.run.data_size == 1:
            return
        group, pending = self.run.mesh.get_group("data"), []
        for bucket in _buckets(gradients):
            flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
            pending.append((bucket, flat, dist.all_reduce(flat, group=group, async_op=True)))
        for bucket, flat, work in pending:
            work.wait()
            flat /= self.run.data_size
            begin = 0
            for gradient in bucket:
                gradient.copy_(flat[begin : begin + gradient.numel()].view_as(gradient))
                begin += gradient.numel()

    # Forward only. Not by torch's schedules: they would exchange the shapes anew at each change between the two, and hold every
    # batch to one shape; and all of them do the same when there is no backward.

    def evaluate(self, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The mean loss over a batch of any size, on every rank of the pipeline; nothing is trained.

        The layers are in evaluation mode meanwhile (no dropout, kept statistics). Every rank of the pipeline passes the same
        batch; copies may pass their own, and `run.gather` has the losses of all. A collective call of the pipeline, for
        every schedule. UserError if the batch is empty, or has not as many targets as inputs.
        """
        rows = inputs.shape[0]
        if targets.shape[0] != rows:
            raise UserError(f"a batch of {rows} inputs has {targets.shape[0]} targets")
        total = torch.zeros((), dtype=torch.float64, device=self.run.device)
        with self._only_looking():
            ends = self._micro_batches_of(targets)
            for number, output in self._outputs(inputs):
                target = ends[number].to(self.run.device)
                total += self.loss(output, target).double() * target.shape[0]
        if self.run.pipe_size > 1:
            group = self.run.mesh.get_group("pipe")
            dist.broadcast(total, src=dist.get_global_rank(group, self._last_rank), group=group)
        return (total / rows).float()

    def predict(self, inputs: torch.Tensor) -> torch.Tensor | None:
        """The model's outputs for a batch, on the rank that has the last stage; None on the others. As `evaluate` otherwise."""
        with self._only_looking():
            outputs = [output for _, output in self._outputs(inputs)]
        return torch.cat(outputs) if self._has_last else None

    @contextlib.contextmanager
    def _only_looking(self) -> Iterator[None]:
        modes = [(each, each.training) for each in self.module.modules()]
        self.module.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            for each, training in modes:
                each.training = training

    def _micro_batches_of(self, batch: torch.Tensor) -> Sequence[torch.Tensor]:
        if batch.shape[0] == 0:
            raise UserError("a batch to evaluate must have at least one sample")
        return batch.tensor_split(min(self.micro_batches, batch.shape[0]))

    def _outputs(self, inputs: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
        """What the last stage gives for each micro-batch, on its rank.

        In slot t, stage s computes micro-batch t - s; then what was computed is sent, late stages first. Messages have one order
        over all ranks this way, so none waits for another in a circle, even where sending waits for the receiver.
        """
        pieces, last = self._micro_batches_of(inputs), self.run.pipe_size * self.stages_per_rank - 1
        mine = self.run.pipe_rank
        held: dict[int, torch.Tensor] = {}  # what each stage of this rank takes next
        for slot in range(len(pieces) + last):
            working = [stage for stage in range(last, -1, -1) if 0 <= slot - stage < len(pieces)]
            if slot < len(pieces) and self._has_first:
                held[0] = pieces[slot].to(self.run.device)
            given = {stage: self._parts[stage](held.pop(stage)) for stage in working if self._owners[stage] == mine}
            if last in given:
                yield slot - last, given.pop(last)
            for stage in working:
                if stage == last:
                    continue
                sender, receiver = self._owners[stage], self._owners[stage + 1]
                if sender == receiver == mine:
                    held[stage + 1] = given[stage]
                elif sender == mine:
                    self._send(given[stage], receiver)
                elif receiver == mine:
                    held[stage + 1] = self._received(sender)

    def _send(self, value: torch.Tensor, pipe_rank: int) -> None:
        if value.dtype not in TYPES or value.dim() > HEAD - 2:
            raise UserError(
                f"a stage gives a tensor of {value.dtype} with {value.dim()} dimensions, which cannot be sent"
            )
        group = self.run.mesh.get_group("pipe")
        other = dist.get_global_rank(group, pipe_rank)
        head = torch.zeros(HEAD, dtype=torch.int64)
        head[: 2 + value.dim()] = torch.tensor([TYPES.index(value.dtype), value.dim(), *value.shape])
        dist.send(head, dst=other, group=self.run.control_group)
        dist.send(value.contiguous(), dst=other, group=group)

    def _received(self, pipe_rank: int) -> torch.Tensor:
        group = self.run.mesh.get_group("pipe")
        other = dist.get_global_rank(group, pipe_rank)
        head = torch.zeros(HEAD, dtype=torch.int64)
        dist.recv(head, src=other, group=self.run.control_group)
        number, dimensions, *shape = head.tolist()
        value = torch.empty(shape[:dimensions], dtype=TYPES[number], device=self.run.device)
        dist.recv(value, src=other, group=group)
        return value

    def bubble(self) -> dict[str, float | None]:
        """`measured`: the idle share of all steps since the last call, over all ranks; None on a GPU, whose work is
        not timed here.

        Beside it `formula`. A collective call. It includes what sending costs and what the processors lack: on
        shared cores read it
        beside a single process.
        """
        facts = (self._busy.seconds, self._elapsed_seconds)
        self._busy.seconds = self._elapsed_seconds = 0.0
        everyones: list[tuple[float, float]] = self.run.gather(facts)
        measured: float | None = None
        if self.run.device.type == "cpu" and self.run.pipe_size > 1 and everyones[0][1]:
            longest = max(elapsed for _, elapsed in everyones)
            measured = 1 - sum(busy for busy, _ in everyones) / (len(everyones) * longest)
        expected = formula(
            ranks=self.run.pipe_size,
            stages_per_rank=self.stages_per_rank,
            micro_batches=self.micro_batches,
        )
        return {"measured": measured, "formula": expected}

    def full_state_dict(self) -> dict[str, torch.Tensor] | None:
        """The whole model's state on the CPU, on rank 0; None elsewhere. A collective call, for saving the finished model."""
        mine = {name: value.detach().cpu() for name, value in self.module.state_dict().items()}
        parts: list[Any] = [None] * self.run.world_size
        # Only one copy's ranks have something to say.
        dist.gather_object(
            mine if self.run.data_rank == 0 else {}, parts if self.run.first else None, group=self.run.control_group
        )
        if not self.run.first:
            return None
        whole: dict[str, torch.Tensor] = {}
        for part in parts:
            whole |= part
        return whole


def _cut(
    model: nn.Sequential, count: int, *, split: Sequence[str] | None, costs: Sequence[float] | None
) -> list[Layers]:
    layers = list(model.named_children())
    names = [name for name, _ in layers]
    if split is not None:
        if costs is not None:
            raise UserError("give split or costs, not both")
        if unknown := [name for name in split if name not in names]:
            raise UserError(f"split names {unknown[0]!r}, which is no layer of the model; it has {', '.join(names)}")
        begins = [0, *(names.index(name) for name in split)]
        if sorted(set(begins)) != begins:
            raise UserError(
                f"split must name layers in their order, each once, and not the first: got {', '.join(split)}"
            )
        if len(begins) != count:
            raise UserError(f"split makes {len(begins)} stages, and ranks x stages per rank are {count}")
    else:
        if costs is None:
            costs = [1.0 + sum(parameter.numel() for parameter in layer.parameters()) for _, layer in layers]
        if len(costs) != len(layers):
            raise UserError(f"costs has {len(costs)} numbers, and the model {len(layers)} layers")
        begins = balanced(costs, count)
    parts = []
    for begin, end in zip(begins, [*begins[1:], len(layers)], strict=True):
        part = Layers()
        for name, layer in layers[begin:end]:
            part.add_module(name, layer)
        parts.append(part)
    return parts


def _check_nothing_is_shared(parts: Sequence[nn.Module]) -> None:
    owners: dict[int, int] = {}
    for number, part in enumerate(parts):
        for name, parameter in part.named_parameters():
            if owners.setdefault(id(parameter), number) != number:
                raise UserError(
                    f"{name!r} of stage {number} is shared with stage {owners[id(parameter)]}: stages live in "
                    f"different processes; "
                    "keep both in one stage (split=...), or do not tie them"
                )


def _buckets(gradients: Sequence[torch.Tensor]) -> list[list[torch.Tensor]]:
    """Of one type each, and of about 25 MiB, as DDP has it."""
    buckets: list[list[torch.Tensor]] = []
    room: dict[torch.dtype, tuple[list[torch.Tensor], int]] = {}
    for gradient in gradients:
        size = gradient.numel() * gradient.element_size()
        bucket, used = room.get(gradient.dtype, ([], 0))
        if not bucket or used + size > BUCKET_BYTES:
            bucket, used = [], 0
            buckets.append(bucket)
        bucket.append(gradient)
        room[gradient.dtype] = bucket, used + size
    return buckets
