"""The hosts of a job as one: sums and decisions over a gloo group, or nothing at all where there is one host."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from optml_algorithms.hosts import HostLost, Hosts, address_of
from optml_toolkit.container import Resources, UserError

if TYPE_CHECKING:
    import numpy
    import torch

    Array = numpy.ndarray[Any, numpy.dtype[Any]]

SILENCE_SECONDS = 1800.0  # within which every host must reach the next exchange


class Group(Hosts):
    """Every method is called by all hosts, in the same order; alone, each exchange is with itself. The first decides."""

    def join(self, resources: Resources) -> None:
        """After the hosts have met: a way to add up tensors."""
        if self.count == 1:
            return
        import torch.distributed
        from torch._C._distributed_c10d import TCPStore

        if resources.network_interface in (name for _, name in socket.if_nameindex()):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", resources.network_interface)
        address, patience = address_of(self.names[0]), timedelta(seconds=SILENCE_SECONDS)
        with _watched():
            store = None
            if self.is_first:  # it has a port of its own choice, which the others hear
                store = TCPStore(address, 0, self.count, is_master=True, timeout=patience, wait_for_workers=False)
            port = self.all_of(None if store is None else store.port)[0]
            if store is None:
                store = TCPStore(address, port, self.count, is_master=False, timeout=patience)
            torch.distributed.init_process_group(
                "gloo", store=store, rank=self.rank, world_size=self.count, timeout=patience
            )

    def sum(self, tensor: "torch.Tensor") -> "torch.Tensor":
        """The sum over all hosts, on each of them, in place."""
        if self.count == 1:
            return tensor
        import torch.distributed

        with _watched():
            if tensor.is_cuda:  # gloo talks between processors
                on_host = tensor.cpu()
                torch.distributed.all_reduce(on_host)
                return tensor.copy_(on_host)
            torch.distributed.all_reduce(tensor)
        return tensor

    def copy_from_first(self, tensor: "torch.Tensor") -> "torch.Tensor":
        """The first host's numbers on each, in place."""
        if self.count == 1:
            return tensor
        import torch.distributed

        with _watched():
            on_host = tensor.cpu()
            torch.distributed.broadcast(on_host, src=0)
        return tensor.copy_(on_host)

    def gather(self, array: "Array") -> "Array":
        """Rows of all hosts in their order on the first; this host's own on the others. Shape (rows, ...)."""
        if self.count == 1:
            return array
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

    def leave(self) -> None:
        """All at the same point: a host that has gone ends what others are waiting for."""
        if self.count == 1:
            return
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
