"""Run the user's program: signals reach its whole process tree, what it says at its end is kept, its exit code too."""

import contextlib
import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import BinaryIO

PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
KEPT_BYTES = 64 * 1024
RELAY_SECONDS = 1.0  # for the last lines, when something else still holds the program's standard error
PR_SET_CHILD_SUBREAPER = 36

# Programs that tell their own processes, and want to be the only ones who do.
LAUNCHERS = (b"torchrun", b"torch.distributed.run", b"torch.distributed.launch", b"accelerate", b"deepspeed")
# Programs that would kill their own processes a second after a signal: those are told, and the launcher ends with the last.
KILLERS = (b"mpirun", b"mpiexec", b"prterun", b"prted", b"horovodrun")
# What stands here for another host (`python -I .../mpi_agent.py`), and takes no signal of ours.
STAND_IN = b"/script_mode/mpi_agent.py"
# Processes that Python's multiprocessing and joblib make without forking.
WORKERS = (b"multiprocessing", b"loky")


class Stopped(BaseException):
    """A signal came before the user's program had begun."""

    def __init__(self, number: int):
        super().__init__(f"signal {number}")
        self.exit_code = 128 + number


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How the user's program ended. `exit_code` is 128+n for signal n; `said` the last of what it wrote to standard error."""

    exit_code: int
    said: str
    stopped: bool  # because somebody had asked it to
    memory_ran_out: bool = False  # the kernel has killed a process for lack of memory meanwhile, this one or another


class Signals:
    """What to do with a signal: pass it on to the user's programs, or, before there are any, give up."""

    def __init__(self) -> None:
        self._child: int | None = None
        self._starting = False
        self._pending: list[int] = []
        self._told: set[int] = set()
        self.stopping = False

    def install(self) -> None:
        for number in PASSED_ON:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._heard)

    def _heard(self, number: int, _frame: FrameType | None) -> None:
        if self._starting:
            self._pending.append(number)
        elif self._child is not None:
            self._pass_on(number)
        elif number in ENDING:
            raise Stopped(number)

    def starting(self) -> None:
        """From now on signals wait for the program to have begun."""
        self._starting = True

    def started(self, child: int) -> None:
        self._child, self._starting = child, False
        for number in self._pending:
            self._pass_on(number)

    def _pass_on(self, number: int) -> None:
        self.stopping = self.stopping or number in ENDING
        if number == signal.SIGINT and sys.stdin is not None and sys.stdin.isatty():
            return  # the terminal has told all of them
        assert self._child is not None
        if not Path("/proc/self").exists():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._child, number)
            return
        for pid in programs_of(self._child):
            self._told.add(pid)
            send(pid, number)

    def tell_the_rest(self) -> None:
        """The program has ended after a signal: so shall what it left behind and nobody has told."""
        for pid in descendants(os.getpid(), children_by_parent()):
            if pid not in self._told:
                self._told.add(pid)
                send(pid, signal.SIGTERM)


def send(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


def programs_of(root: int) -> list[int]:
    """The processes of a tree that a signal is for, the root first.

    A program's own workers (forks of Python, multiprocessing) are left to it: a data loader that lost its workers would
    fail while the program still saves its state. So are the processes of a launcher, which passes signals on by itself.
    """
    children = children_by_parent()
    found: list[int] = []
    to_read = [root]
    while to_read:
        parent = to_read.pop()
        command = command_line(parent)
        program = os.path.basename(command.partition(b"\0")[0])  # noqa: PTH119  (bytes)
        if program not in KILLERS:
            found.append(parent)
        if any(name in command for name in LAUNCHERS):
            continue
        is_python = b"python" in program
        for pid in children.get(parent, ()):
            own = command_line(pid)
            if any(word.endswith(STAND_IN) for word in own.split(b"\0")[:3]):
                continue
            if is_python and (own == command or any(name in own for name in WORKERS)):
                continue
            to_read.append(pid)
    return found


def descendants(root: int, children: Mapping[int, Sequence[int]]) -> list[int]:
    found = list(children.get(root, ()))
    for pid in found:  # grows meanwhile
        found += children.get(pid, ())
    return found


def children_by_parent() -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError, ValueError, IndexError), open(f"/proc/{name}/stat", "rb") as stream:  # noqa: PTH123
                found.setdefault(int(stream.read().rpartition(b")")[2].split()[1]), []).append(int(name))
    return found


def command_line(pid: int) -> bytes:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def run(argv: Sequence[str], *, folder: Path, environment: Mapping[str, str], signals: Signals) -> Ended:
    """Run a command to its end. After a signal that ends it, to the end of everything that it has started.

    OSError if it cannot be started.
    """
    adopt_orphans()
    said = Said()
    kills_before = kills_for_memory()
    signals.starting()
    with said:
        child = subprocess.Popen(
            argv,
            cwd=folder,
            env=dict(environment),
            stderr=said.for_program,
            process_group=None if sys.platform == "linux" else 0,
        )
        said.program_has_it()
        signals.started(child.pid)
        exit_code = wait_for(child.pid, signals)
        child.returncode = exit_code  # reaped here: Popen must not look for it
    return Ended(
        exit_code=exit_code,
        said=said.text(),
        stopped=signals.stopping,
        memory_ran_out=kills_for_memory() > kills_before,
    )


def kills_for_memory() -> int:
    """How many processes this kernel has killed for lack of memory, a control group's or its own; 0 where it does not say."""
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/vmstat").read_text(encoding="ascii").splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return 0


def wait_for(child: int, signals: Signals) -> int:
    exit_code: int | None = None
    while True:
        try:
            pid, status = os.waitpid(-1, 0)
        except ChildProcessError:
            break
        if pid == child:
            code = os.waitstatus_to_exitcode(status)
            exit_code = code if code >= 0 else 128 - code
        if exit_code is not None:
            if not signals.stopping:
                break
            if pid == child:
                signals.tell_the_rest()
    assert exit_code is not None, "the child was reaped by somebody else"
    return exit_code


def adopt_orphans() -> None:
    """Become the parent of what the program leaves behind, so that it can be waited for. Process 1 is that anyway."""
    if sys.platform == "linux" and os.getpid() != 1:
        import ctypes

        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


class Said:
    """The last of what a program wrote to standard error.

    Where that is a file, the program writes to it as it is, and it is read afterwards; else its lines go through here.
    """

    def __init__(self) -> None:
        self._file: BinaryIO | None = None
        self._begin = 0
        self._kept = bytearray()
        self._relay: threading.Thread | None = None
        self._writer = -1
        status = os.fstat(2)
        if stat.S_ISREG(status.st_mode):
            with contextlib.suppress(OSError):
                self._file = open("/proc/self/fd/2", "rb")  # noqa: PTH123, SIM115  (not a path that could be resolved)
                self._begin = status.st_size

    @property
    def for_program(self) -> int | None:
        return None if self._file is not None else self._writer

    def __enter__(self) -> "Said":
        if self._file is None:
            reader, self._writer = os.pipe()
            self._relay = threading.Thread(target=self._pass_on, args=(reader,), daemon=True)
            self._relay.start()
        return self

    def program_has_it(self) -> None:
        if self._writer >= 0:
            os.close(self._writer)
            self._writer = -1

    def __exit__(self, *_: object) -> None:
        self.program_has_it()
        if self._relay is not None:
            self._relay.join(RELAY_SECONDS)

    def _pass_on(self, reader: int) -> None:
        while part := os.read(reader, 65536):
            self._kept += part
            if len(self._kept) > 2 * KEPT_BYTES:
                del self._kept[:-KEPT_BYTES]
            with contextlib.suppress(OSError):  # the log is gone; the program need not be
                while part:
                    part = part[os.write(2, part) :]
        os.close(reader)

    def text(self) -> str:
        if self._file is not None:
            end = self._file.seek(0, os.SEEK_END)
            self._file.seek(max(self._begin, end - KEPT_BYTES))
            return self._file.read().decode(errors="replace")
        return bytes(self._kept[-KEPT_BYTES:]).decode(errors="replace")
