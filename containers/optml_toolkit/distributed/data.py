"""Batches whose position can be kept: the same samples in the same steps, wherever a run goes on, on however many ranks."""

import contextlib
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from optml_toolkit.container import UserError
from optml_toolkit.distributed.setup import Run


def in_a_group_of_its_own(number: int, *, then: Callable[[int], None] | None = None) -> None:
    """A DataLoader's `worker_init_fn`: what is sent to a whole rank (torchrun's SIGTERM) does not reach its workers.

    They would die of it, and the rank of their death, before it has saved. Their parent ends them, and they end without it.
    `then` is called afterwards. Loaders that are given to `Batches` or `Training` have it.
    """
    if hasattr(os, "setpgid"):
        with contextlib.suppress(PermissionError):  # it leads a session: nothing to leave
            os.setpgid(0, 0)
    if then is not None:
        then(number)


def kept_from_signals(worker_init_fn: Callable[[int], None] | None) -> Callable[[int], None]:
    """A `worker_init_fn` that does what the one given does, and `in_a_group_of_its_own`."""
    given = getattr(worker_init_fn, "func", worker_init_fn)
    if worker_init_fn is not None and given is in_a_group_of_its_own:
        return worker_init_fn
    return functools.partial(in_a_group_of_its_own, then=worker_init_fn)


class Batches:
    """A dataset's batches for this rank. Iterate it epoch by epoch; `Training` does, and keeps the position.

    `batch_size` counts the samples of one step of the optimiser: over all data-parallel ranks and all `accumulate` parts, so a
    run on 4 ranks continues on 2 with the same steps. Each epoch's order is drawn from `seed` and the epoch alone; each
    step takes its next `batch_size` samples, each rank its share. Shards are disjoint and complete: what is left at the end of
    an epoch is a smaller step, or makes the last one larger if there is not a sample for every rank; `drop_last` leaves it out.
    (Gradients are means over ranks, so in such an uneven step samples weigh slightly differently, as in plain DDP.)

    What else DataLoader takes (`num_workers`, `collate_fn`, `pin_memory`, ...) is passed on. With workers, random augmentation
    in the dataset draws other numbers after a resume; in this process (`num_workers=0`) it draws the same.
    """

    def __init__(
        self,
        run: Run,
        dataset: Dataset[Any],
        *,
        batch_size: int,
        accumulate: int = 1,
        shuffle: bool = True,
        seed: int | None = None,
        drop_last: bool = False,
        **loader_options: Any,
    ):
        if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
            raise UserError(
                "Batches needs a dataset with a length and an index, for it must find its place again; for an IterableDataset "
                "use torchdata's StatefulDataLoader, which Training takes too"
            )
        clash = {"batch_sampler", "sampler", "generator"} & loader_options.keys()
        if clash:
            raise UserError(f"Batches decides the order itself: {', '.join(sorted(clash))} cannot be given")
        if loader_options.get("persistent_workers"):
            raise UserError(
                "persistent_workers cannot be had: each epoch's workers begin with its order; leave it out, or take longer epochs"
            )
        self.parts = run.data_size * accumulate  # of a step
        if accumulate < 1:
            raise UserError(f"accumulate must be at least 1, got {accumulate}")
        if batch_size < 1 or batch_size % self.parts:
            raise UserError(
                f"batch_size={batch_size} does not divide into {run.data_size} data-parallel ranks x accumulate={accumulate}: "
                f"take a multiple of {self.parts}"
            )
        self.dataset, self.batch_size, self.accumulate = dataset, batch_size, accumulate
        self.length = len(dataset)
        self.data_rank, self.data_size = run.data_rank, run.data_size
        self.shuffle, self.drop_last = shuffle, drop_last
        self.seed = run.seed if seed is None else seed
        self.loader_options = loader_options
        if loader_options.get("num_workers", 0):
            init = kept_from_signals(loader_options.get("worker_init_fn"))
            self.loader_options = {**loader_options, "worker_init_fn": init}
        self.epoch = 0
        self.samples_done = 0  # of this epoch, by all ranks; moves when a step's last part has been handed out
        if not self._steps(0):
            raise UserError(
                f"the dataset has {self.length} samples: too few for one step of "
                + (f"{batch_size} (drop_last)" if drop_last else f"{self.parts} ranks and parts")
            )

    @property
    def steps_per_epoch(self) -> int:
        return len(self._steps(0))

    def _steps(self, begin: int) -> list[tuple[int, int]]:
        """(first, end) of each step's samples in the epoch's order, from a position on."""
        left = self.length - begin
        full, rest = divmod(left, self.batch_size)
        steps = [(begin + i * self.batch_size, begin + (i + 1) * self.batch_size) for i in range(full)]
        if rest and not self.drop_last:
            if rest >= self.parts:
                steps.append((begin + full * self.batch_size, self.length))
            elif steps:
                steps[-1] = (steps[-1][0], self.length)
        return steps

    def _order(self) -> Sequence[int]:
        if not self.shuffle:
            return range(self.length)
        generator = torch.Generator().manual_seed(_mixed(self.seed, self.epoch))
        order: list[int] = torch.randperm(self.length, generator=generator).tolist()
        return order

    def __len__(self) -> int:
        """Batches of a whole epoch on this rank."""
        return self.steps_per_epoch * self.accumulate

    def __iter__(self) -> Iterator[Any]:
        """From the position to the end of the epoch; the next iteration is the next epoch."""
        steps = self._steps(self.samples_done)
        if steps:
            order = self._order()
            indices = [
                [order[i] for i in range(first + part * self.data_size + self.data_rank, end, self.parts)]
                for first, end in steps
                for part in range(self.accumulate)
            ]
            # A generator of its own: DataLoader would draw from torch's, and a resumed run would draw once more.
            generator = torch.Generator().manual_seed(_mixed(self.seed, self.epoch, self.data_rank))
            loader: DataLoader[Any] = DataLoader(
                self.dataset, batch_sampler=indices, generator=generator, **self.loader_options
            )
            for taken, batch in enumerate(loader, 1):
                if taken % self.accumulate == 0:
                    self.samples_done = steps[taken // self.accumulate - 1][1]
                yield batch
        self.epoch += 1
        self.samples_done = 0

    def state_dict(self) -> dict[str, Any]:
        return {
            "epoch": self.epoch,
            "samples_done": self.samples_done,
            "length": self.length,
            "seed": self.seed,
            "shuffle": self.shuffle,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a position. UserError if the dataset or its order is another one."""
        for name, what in (("length", "samples"), ("seed", "seed"), ("shuffle", "shuffle")):
            if state[name] != getattr(self, name):
                raise UserError(
                    f"the checkpoint's data has {what} {state[name]}, and now it has {getattr(self, name)}: its position means "
                    "nothing there; give the same data, or another checkpoint folder to begin anew"
                )
        self.epoch, self.samples_done = state["epoch"], state["samples_done"]


def _mixed(*numbers: int) -> int:
    """One seed of several numbers (the multiplier of Steele and Vigna's 64-bit generators)."""
    seed = 0
    for number in numbers:
        seed = ((seed ^ number) * 0xD1342543DE82EF95 + 1) % 2**63
    return seed
