"""One call that makes a process part of a run: who is in it, with what they talk, on which device, and who is gone.

run = distributed.init()            # under script mode's launchers, a plain torchrun, or alone
run = distributed.init(pipe=2)      # a mesh of data x pipe: ranks 0 and 1 are the first pipeline
"""

import atexit
import datetime
import logging
import os
import random
import socket
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import (
    HashStore,
    PrefixStore,
    TCPStore,
)  # torch.distributed's, which exports them to no checker
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from optml_toolkit.container import Container, UserError
from optml_toolkit.distributed.peers import Peers
from optml_toolkit.torch_threads import wait_for_torch_threads

log = logging.getLogger("optml_toolkit.distributed")
MASTER_PORT = 7777  # as SageMaker's containers have it
WRITING_SECONDS = 5.0  # for a save that is under way when an exception ends the script

_begun = False


@dataclass(frozen=True, kw_only=True)
class Launched:
    """How this process was started, and where it stands among the others."""

    launcher: str  # torchrun (or whoever sets its variables), hosts (one process each), alone
    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    master_address: str
    master_port: int


def launched_by(environment: Mapping[str, str], container: Container) -> Launched:
    """Read the launcher's variables; UserError names what is missing or does not fit."""
    if "WORLD_SIZE" in environment:
        needed = ("RANK", "MASTER_ADDR", "MASTER_PORT")
        if missing := [name for name in needed if not environment.get(name)]:
            raise UserError(
                f"WORLD_SIZE is set, but {' and '.join(missing)} not: start the script with torchrun, which sets all of them "
                "(optml train --distribution torchrun), or unset WORLD_SIZE to train in a single process"
            )
        rank, world_size = _number(environment, "RANK"), _number(environment, "WORLD_SIZE")
        if not 0 <= rank < world_size:
            raise UserError(f"RANK must be from 0 to WORLD_SIZE - 1 = {world_size - 1}, got {rank}")
        return Launched(
            launcher="torchrun",
            rank=rank,
            world_size=world_size,
            local_rank=_number(environment, "LOCAL_RANK", 0),
            local_world_size=_number(environment, "LOCAL_WORLD_SIZE", 1),
            master_address=environment["MASTER_ADDR"],
            master_port=_number(environment, "MASTER_PORT"),
        )
    if "RANK" in environment:
        raise UserError(
            "RANK is set, but WORLD_SIZE not: start the script with torchrun, which sets both, or unset RANK"
        )
    for name in ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE"):
        if _number(environment, name, 1) > 1:
            raise UserError(f"mpirun started this process ({name}), and torch needs torchrun: --distribution torchrun")
    resources = container.resources()
    if len(resources.hosts) > 1:
        return Launched(
            launcher="hosts",
            rank=resources.hosts.index(resources.current_host),
            world_size=len(resources.hosts),
            local_rank=0,
            local_world_size=1,
            master_address=resources.hosts[0],
            master_port=MASTER_PORT + container.slot,
        )
    return Launched(
        launcher="alone", rank=0, world_size=1, local_rank=0, local_world_size=1, master_address="", master_port=0
    )


def _number(environment: Mapping[str, str], name: str, default: int | None = None) -> int:
    text = environment.get(name, "" if default is None else str(default))
    try:
        return int(text)
    except ValueError:
        raise UserError(f"{name} must be a whole number, got {text!r}") from None


class Run:
    """This process among the others. Ranks count from 0; `data_rank` and `pipe_rank` are its place in the mesh."""

    def __init__(
        self, *, launched: Launched, mesh: DeviceMesh, device: torch.device, backend: str, seed: int, peers: Peers
    ):
        self.launched = launched
        self.rank, self.world_size = launched.rank, launched.world_size
        self.local_rank = launched.local_rank
        self.mesh, self.device, self.backend, self.seed = mesh, device, backend, seed
        self.data_size, self.pipe_size = mesh.size(0), mesh.size(1)
        self.data_rank, self.pipe_rank = mesh.get_local_rank("data"), mesh.get_local_rank("pipe")
        self.peers = peers
        # Small facts and checkpoints go over groups of their own: never between a model's collectives, and never over NCCL.
        self.control_group = _gloo_group(launched.world_size)
        self.checkpoint_group = _gloo_group(launched.world_size)
        self.writing: list[threading.Thread] = []  # what saves beside the training, if anything does
        self._closed = False

    @property
    def first(self) -> bool:
        """Whether this is the one process that prints and writes what all have in common."""
        return self.rank == 0

    @property
    def first_of_host(self) -> bool:
        return self.local_rank == 0

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, on every rank, by rank. A collective call: all ranks make it."""
        found: list[Any] = [None] * self.world_size
        dist.all_gather_object(found, value, group=self.control_group)
        return found

    def barrier(self) -> None:
        """Wait until every rank is here."""
        dist.barrier(group=self.control_group)

    def close(self) -> None:
        """Leave: the others are told, so that none takes it for a death. Called by itself when the script ends well."""
        global _begun
        if self._closed:
            return
        self._closed = True
        self.peers.leave()
        if dist.is_initialized():
            dist.destroy_process_group()
        # With the last reference a group's threads end. One that still lets go of a message while the interpreter is being taken
        # down would abort the process. Not waited for without end: a message may be on its way that nobody takes any more.
        groups = [self.control_group, self.checkpoint_group]
        del self.control_group, self.checkpoint_group
        ending = threading.Thread(target=groups.clear, name="groups", daemon=True)
        ending.start()
        ending.join(5)
        _begun = False

    def __enter__(self) -> "Run":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # After an error nothing waits for the others, who may be in the middle of a collective: the process just ends.
        if kind is None or (isinstance(error, SystemExit) and not error.code):
            self.close()


def init(
    *,
    pipe: int = 1,
    backend: str | None = None,
    seed: int = 0,
    collective_timeout_seconds: float = 600.0,
    dead_peer_seconds: float | None = 10.0,
) -> Run:
    """Join the run that this process was started for. A collective call: every process of the run makes it once.

    `pipe`: ranks in a pipeline; the others form its copies, `data`. `backend`: nccl where there is a GPU for each local rank,
    else gloo. `seed`: seeds Python, numpy (if it is loaded) and torch equally on all ranks, so that models start equal;
    `Training` draws them apart afterwards. `dead_peer_seconds`: a process that is not heard of for so long, or that dies,
    ends this one with exit code 1 and says who it was; None leaves it to `collective_timeout_seconds`, after which any
    collective gives up. UserError if the environment does not fit.
    """
    global _begun
    if _begun or dist.is_initialized():
        raise UserError(
            "distributed.init() was called twice"
            if _begun
            else "torch.distributed is initialised already: call distributed.init() instead of init_process_group"
        )
    launched = launched_by(os.environ, Container.here())
    if pipe < 1 or launched.world_size % pipe:
        raise UserError(f"pipe={pipe} does not fit {launched.world_size} processes: it must divide their number")
    # All ranks of a host or none: with fewer GPUs than ranks, some would wait in NCCL for the others in gloo.
    needed_gpus = max(launched.local_rank + 1, launched.local_world_size)
    use_gpu = torch.cuda.is_available() and needed_gpus <= torch.cuda.device_count()
    backend = backend or ("nccl" if use_gpu else "gloo")
    if backend not in ("nccl", "gloo"):
        raise UserError(f"backend must be 'nccl' or 'gloo', got {backend!r}")
    if backend == "nccl" and not use_gpu:
        raise UserError(
            f"backend='nccl' needs a GPU for each process of a host: local rank {launched.local_rank} of "
            f"{launched.local_world_size} sees {torch.cuda.device_count()} GPUs"
        )
    device = torch.device("cuda", launched.local_rank) if use_gpu else torch.device("cpu")
    if use_gpu:
        torch.cuda.set_device(device)
    _log_to_stdout_if_nobody_listens()
    _begin(launched, backend, device, datetime.timedelta(seconds=collective_timeout_seconds))
    seed_everything(seed)
    mesh = init_device_mesh(device.type, (launched.world_size // pipe, pipe), mesh_dim_names=("data", "pipe"))
    peers = Peers(
        rank=launched.rank,
        world_size=launched.world_size,
        address=launched.master_address,
        name=f"{socket.gethostname()} process {os.getpid()}",
        dead_seconds=dead_peer_seconds,
    )
    run = Run(launched=launched, mesh=mesh, device=device, backend=backend, seed=seed, peers=peers)
    _begun = True
    atexit.register(_end, run)
    if run.first:
        log.info(
            "Distributed: %d process%s (%s), data %d x pipe %d, %s on %s",
            run.world_size,
            "" if run.world_size == 1 else "es",
            launched.launcher,
            run.data_size,
            run.pipe_size,
            backend,
            device.type,
        )
    return run


def _begin(launched: Launched, backend: str, device: torch.device, timeout: datetime.timedelta) -> None:
    more: dict[str, Any] = {"device_id": device} if backend == "nccl" else {}
    if launched.launcher == "alone":
        more |= {"store": HashStore()}
    elif launched.launcher == "hosts":
        store = TCPStore(
            launched.master_address,
            launched.master_port,
            launched.world_size,
            is_master=launched.rank == 0,
            timeout=timeout,
        )
        more |= {"store": store}
    elif os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        # torchrun's agent keeps one store over all restarts, and torch would find the dead ranks' addresses in it.
        agents = TCPStore(
            launched.master_address, launched.master_port, launched.world_size, is_master=False, timeout=timeout
        )
        more |= {"store": PrefixStore(f"attempt-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", agents)}
    try:
        dist.init_process_group(
            # gloo beside nccl: what is on the CPU can be sent too.
            "cpu:gloo,cuda:nccl" if backend == "nccl" else backend,
            rank=launched.rank,
            world_size=launched.world_size,
            timeout=timeout,
            **more,
        )
    except dist.DistError as error:
        raise UserError(
            f"rank {launched.rank} of {launched.world_size} could not meet the others at "
            f"{launched.master_address}:{launched.master_port} within {timeout.total_seconds():.0f} s: {error}"
        ) from error


def _gloo_group(world_size: int) -> dist.ProcessGroup:
    group = dist.new_group(list(range(world_size)), backend="gloo")
    assert isinstance(group, dist.ProcessGroup)
    return group


def seed_everything(seed: int) -> None:
    """Python's, torch's (every device's) and, if it is loaded, numpy's random numbers."""
    random.seed(seed)
    torch.manual_seed(seed)
    if (numpy := sys.modules.get("numpy")) is not None:
        numpy.random.seed(seed % 2**32)


def _end(run: Run) -> None:
    """At the interpreter's end: leave if all is well; else just end, but without a thread that is inside of torch.

    One that came back from there while the interpreter is taken down would abort the process: "terminate called without an active
    exception", and exit code -6 instead of the exception's.
    """
    error = getattr(sys, "last_value", None)  # set when an exception ended the script
    for thread in run.writing:
        thread.join(WRITING_SECONDS)
    if error is None:
        run.close()
        wait_for_torch_threads()
        return
    wait_for_torch_threads()
    if not run.peers.stop() or any(thread.is_alive() for thread in run.writing):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(130 if isinstance(error, KeyboardInterrupt) else 1)


def _log_to_stdout_if_nobody_listens() -> None:
    if logging.getLogger().handlers or log.handlers:
        return
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
