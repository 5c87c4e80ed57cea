"""Scripts run as real processes of one distributed run, as torchrun would start them; one server has imported torch for all."""

import atexit
import contextlib
import multiprocessing
import os
import random
import runpy
import signal
import socket
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from types import TracebackType

from tests.hosts import PATIENCE_SECONDS

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [
        *("numpy", "torch", "torch.distributed", "torch.utils.data"),
        *(
            "torch.distributed.checkpoint",
            "torch.distributed.fsdp",
            "torch.distributed.algorithms.ddp_comm_hooks.default_hooks",
        ),
        *("optml_toolkit.distributed", "optml_toolkit.distributed.pipeline"),
    ]
)


def free_port() -> int:
    """Below those that the system gives to whoever asks for any: by the time the first rank listens, one of them may be gone."""
    while True:
        port = random.SystemRandom().randrange(20000, 32000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def _child(script: str, arguments: Sequence[str], environment: Mapping[str, str | None], log: str) -> None:
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    for name, value in environment.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    sys.argv = [script, *arguments]
    import torch

    torch.set_num_threads(1)
    code = 0
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1 if error.code else 0
    except BaseException as error:  # noqa: BLE001  (as the interpreter does)
        traceback.print_exc()
        sys.last_value = error
        code = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    os._exit(code)


class Ranks:
    """Processes of a run, their output in one file each. Whoever is left is killed at the end of the `with`."""

    def __init__(
        self,
        folder: Path,
        script: Path,
        *arguments: str,
        count: int = 2,
        environment: Mapping[str, str | None] | None = None,
        own: Sequence[Mapping[str, str]] = (),
        gpus: bool = False,
    ):
        """`environment` for all; `own`: hosts of one process each, with variables of their own. Without `gpus` they see none."""
        folder.mkdir(parents=True, exist_ok=True)
        port = free_port()
        self.logs = [folder / f"rank-{rank}-{time.monotonic_ns()}.log" for rank in range(count)]
        common: dict[str, str | None] = {name: None for name in os.environ if name.startswith(("SM_", "SAGEMAKER_"))}
        if not gpus:
            common["CUDA_VISIBLE_DEVICES"] = ""
        if count > 1:
            common |= {
                "WORLD_SIZE": str(count),
                "LOCAL_WORLD_SIZE": str(count),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            }
        self.processes: list[ForkServerProcess] = []
        for rank in range(count):
            place: dict[str, str | None] = {"RANK": str(rank), "LOCAL_RANK": str(rank)} if count > 1 else {}
            if own:
                place |= {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", **own[rank]}
            process = CONTEXT.Process(
                target=_child,
                args=(str(script), arguments, {**common, **(environment or {}), **place}, str(self.logs[rank])),
            )
            process.start()
            self.processes.append(process)

    def __enter__(self) -> "Ranks":
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        for process in self.processes:
            if process.is_alive():
                process.kill()
            process.join()

    def log(self, rank: int = 0) -> str:
        return self.logs[rank].read_text(errors="replace") if self.logs[rank].exists() else ""

    @property
    def everything(self) -> str:
        return "\n".join(f"--- rank {rank}\n{self.log(rank)}" for rank in range(len(self.logs)))

    def wait_for(self, text: str, *, rank: int = 0, seconds: float = PATIENCE_SECONDS) -> None:
        deadline = time.monotonic() + seconds
        while text not in self.log(rank):
            assert self.processes[rank].is_alive() or text in self.log(rank), f"it has ended:\n{self.everything}"
            assert time.monotonic() < deadline, f"no {text!r} yet:\n{self.everything}"
            time.sleep(0.01)

    def send(self, number: signal.Signals, *, rank: int) -> None:
        pid = self.processes[rank].pid
        assert pid is not None
        os.kill(pid, number)

    def ended(self, *, seconds: float = PATIENCE_SECONDS) -> list[int]:
        """Exit codes by rank."""
        deadline = time.monotonic() + seconds
        for process in self.processes:
            process.join(max(0.0, deadline - time.monotonic()))
            assert process.exitcode is not None, f"it runs on:\n{self.everything}"
        return [process.exitcode or 0 for process in self.processes]


def ran(
    folder: Path,
    script: Path,
    *arguments: str,
    count: int = 2,
    codes: Sequence[int] | None = None,
    gpus: bool = False,
) -> Ranks:
    """A run to its end; it must end with the codes given, or well."""
    with Ranks(folder, script, *arguments, count=count, gpus=gpus) as ranks:
        assert ranks.ended() == list(codes or [0] * count), ranks.everything
        return ranks
