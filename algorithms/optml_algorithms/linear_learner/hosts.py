"""The hosts of a job as one: sums and decisions over a gloo group, or nothing at all where there is one host."""

import os
import socket
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from optml_toolkit.container import Resources, UserError

if TYPE_CHECKING:
    import numpy
    import torch

    Array = numpy.ndarray[Any, numpy.dtype[Any]]

MEETING_SECONDS = 300.0  # for all hosts to come up
SILENCE_SECONDS = 1800.0  # within which every host must reach the next exchange


class HostLost(Exception):
    """Another host has gone: why is in its own log."""


class Hosts:
    """One host: every exchange is with itself. `rank` is this host's place among `names`; the first decides and prints."""

    def __init__(self, names: Sequence[str] = ("algo-1",), rank: int = 0):
        self.names = tuple(names)
        self.rank = rank

    @property
    def count(self) -> int:
        return len(self.names)

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    @property
    def name(self) -> str:
        return self.names[self.rank]

    def sum(self, tensor: "torch.Tensor") -> "torch.Tensor":
        """The sum over all hosts, on each of them, in place."""
        return tensor

    def copy_from_first(self, tensor: "torch.Tensor") -> "torch.Tensor":
        """The first host's numbers on each, in place."""
        return tensor

    def gather(self, array: "Array") -> "Array":
        """Rows of all hosts in their order on the first; this host's own on the others. Shape (rows, ...)."""
        return array

    def all_of(self, value: Any) -> list[Any]:
        """A small value of each host, in their order."""
        return [value]

    def leave(self) -> None:
        pass

    @contextmanager
    def together(self) -> Iterator[None]:
        """A UserError of one host is one of all, said with its name; else they would wait for it in vain."""
        problem = None
        try:
            yield
        except UserError as error:
            problem = str(error)
        problems = self.all_of(problem)
        for name, text in zip(self.names, problems, strict=True):
            if text is not None:
                raise UserError(text if set(problems) == {text} else f"{text} (on host {name})")


class Group(Hosts):
    """Several hosts. Every method is called by all of them, in the same order."""

    def sum(self, tensor: "torch.Tensor") -> "torch.Tensor":
        import torch.distributed

        with _watched():
            if tensor.is_cuda:  # gloo talks between processors
                on_host = tensor.cpu()
                torch.distributed.all_reduce(on_host)
                return tensor.copy_(on_host)
            torch.distributed.all_reduce(tensor)
        return tensor

    def copy_from_first(self, tensor: "torch.Tensor") -> "torch.Tensor":
        import torch.distributed

        with _watched():
            on_host = tensor.cpu()
            torch.distributed.broadcast(on_host, src=0)
        return tensor.copy_(on_host)

    def gather(self, array: "Array") -> "Array":
        import numpy
        import torch.distributed

        counts = self.all_of(len(array))
        padded = numpy.zeros((max(counts), *array.shape[1:]), dtype=array.dtype)
        padded[: len(array)] = array
        mine = torch.from_numpy(padded)
        parts = [torch.empty_like(mine) for _ in counts] if self.is_first else None
        with _watched():
            torch.distributed.gather(mine, parts, dst=0)
        if parts is None:
            return array
        return numpy.concatenate([part.numpy()[:count] for part, count in zip(parts, counts, strict=True)])

    def all_of(self, value: Any) -> list[Any]:
        import torch.distributed

        found: list[Any] = [None] * self.count
        with _watched():
            torch.distributed.all_gather_object(found, value)
        return found

    def leave(self) -> None:
        """All at the same point: a host that has gone ends what others are waiting for."""
        import torch.distributed

        with _watched():
            torch.distributed.barrier()
        torch.distributed.destroy_process_group()


@contextmanager
def _watched() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise HostLost(
            f"another host of the job has gone, or has not answered for {SILENCE_SECONDS:.0f} s; its own log says why ({error})"
        ) from error


def meet(resources: Resources, *, job_name: str, seconds: float = MEETING_SECONDS) -> Hosts:
    """Wait for all hosts of the job. The first is where they meet. UserError if some do not come within `seconds`."""
    names = resources.hosts
    if len(names) == 1:
        return Hosts(names)
    import torch.distributed
    from torch._C._distributed_c10d import TCPStore

    if resources.network_interface in (name for _, name in socket.if_nameindex()):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", resources.network_interface)
    rank = names.index(resources.current_host)
    port = _port(job_name)
    try:
        store = TCPStore(names[0], port, len(names), is_master=rank == 0, timeout=timedelta(seconds=seconds))
        torch.distributed.init_process_group(
            "gloo", store=store, rank=rank, world_size=len(names), timeout=timedelta(seconds=SILENCE_SECONDS)
        )
    except (RuntimeError, OSError) as error:
        raise UserError(
            f"the {len(names)} hosts of the job did not meet at {names[0]}:{port} within {seconds:.0f} s: look at the logs of "
            f"{', '.join(names)}, and at whether they reach each other by name ({str(error).splitlines()[0]})"
        ) from error
    return Group(names, rank)


def _port(job_name: str) -> int:
    """Hosts of several jobs may share one machine's network: each job has a port of its own, below those given out by Linux."""
    return 10_000 + zlib.crc32(job_name.encode()) % 20_000
