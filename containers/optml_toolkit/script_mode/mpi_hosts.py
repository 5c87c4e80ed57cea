"""MPI's hosts: mpirun on the first, and on each other host the daemon of Open MPI's that it asks for.

Elsewhere sshd and keys do this; here the toolkits, which run on every host anyway. Each other host connects to the first
(mpi_meeting.py), and then runs the daemon when it is told to (mpi_daemons.py).
mpirun starts mpi_agent.py instead of ssh, which hands its wish to this toolkit through a socket that only this user can reach.
Processes are the daemon's children, so signals, variables and folders are those of the host that they run on.
"""

import contextlib
import logging
import queue
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from optml_toolkit.container import UserError
from optml_toolkit.script_mode import mpi_daemons, peers, processes
from optml_toolkit.script_mode.job import ScriptJob
from optml_toolkit.script_mode.mpi_meeting import (
    ANSWER_SECONDS,
    Connection,
    is_proof,
    port_of,
    private_folder,
    proof,
    secret_of,
)
from optml_toolkit.script_mode.user_code import UserCode

AGENT = Path(__file__).with_name("mpi_agent.py")
# Hosts of one machine share /tmp and /dev/shm, and each numbers its processes from 1. Open MPI makes names from those numbers: of
# its folders, which shall therefore be ours, and of the job, whose name is in those of what it puts into /dev/shm.
JOB = "PMIX_SERVER_NSPACE"
LOCAL_FOLDER = "PRTE_MCA_prte_local_tmpdir_base"
LAST_SECONDS = 5.0  # for a host to hear that the job has ended

log = logging.getLogger("script_mode")


def run(
    job: ScriptJob,
    code: UserCode,
    argv: Sequence[str],
    *,
    python: str,
    environment: Mapping[str, str],
    signals: processes.Signals,
) -> tuple[processes.Ended, str]:
    """mpirun, once all hosts are there; on another than the first, what that asks for. Also what became of the others."""
    if len(job.distribution_hosts) == 1:
        with private_folder() as folder:
            told = {**environment, JOB: new_name(), LOCAL_FOLDER: folder}
            return processes.run(argv, folder=code.folder, environment=told, signals=signals), ""
    if job.current_host != job.master_host:
        return mpi_daemons.follow(job, code, python=python, environment=environment, signals=signals), ""
    with FirstHost(job, code, python) as first:
        told = {
            **environment,
            JOB: new_name(),
            LOCAL_FOLDER: first.folder,
            "PRTE_MCA_plm_ssh_agent": first.agent,
            # Of many hosts, daemons would start daemons: all shall be started from here.
            "PRTE_MCA_rml_base_radix": str(max(64, len(job.distribution_hosts))),
        }
        first.wait()
        ended = processes.run(argv, folder=code.folder, environment=told, signals=signals)
        trouble = first.trouble
        if trouble and ended.exit_code == 0 and not ended.stopped:  # mpirun thinks nothing of a host that it has lost
            ended = replace(ended, exit_code=1)
        first.exit_code = ended.exit_code
    return ended, trouble


@dataclass(kw_only=True)
class Other:
    """Another host that has come, as the first sees it."""

    connection: Connection
    hostname: str  # what the machine calls itself, by which Open MPI tells hosts apart
    results: "queue.SimpleQueue[dict[str, Any]]" = field(default_factory=queue.SimpleQueue)


class FirstHost:
    """Use as a context manager, and in order: wait, `agent` for mpirun, `exit_code` when that has ended."""

    def __init__(self, job: ScriptJob, code: UserCode, python: str):
        self._job, self._code, self._python = job, code, python
        self._others: dict[str, Other] = {}
        self._changed = threading.Condition()
        self._closing = False
        self._stack = contextlib.ExitStack()
        self.exit_code = 1
        self.trouble = ""  # what became of another host, if that is why mpirun failed

    def __enter__(self) -> "FirstHost":
        with contextlib.ExitStack() as stack:
            self._secret = secret_of(self._job)
            self.folder = stack.enter_context(private_folder())
            hosts = stack.enter_context(contextlib.closing(self._listen()))
            agents = stack.enter_context(contextlib.closing(socket.socket(socket.AF_UNIX)))
            agents.bind(self._agent_socket)
            agents.listen()
            for listener, greet in ((hosts, self._greet), (agents, self._serve_agent)):
                stack.callback(hang_up, listener)
                threading.Thread(target=self._accept, args=(listener, greet), daemon=True).start()
            stack.callback(self._say_goodbye)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing = True
        self._stack.close()

    @property
    def _agent_socket(self) -> str:
        return f"{self.folder}/agents"

    @property
    def agent(self) -> str:
        """The command that mpirun shall start for each other host: it takes one that has no blanks in its words."""
        words = (sys.executable, "-I", str(AGENT), self._agent_socket)
        if any(len(word.split()) != 1 for word in words):
            raise UserError(
                "distribution mpi on several hosts cannot be had from a folder with a blank in its name, in which Open MPI would "
                f"find nothing: {' '.join(words)}"
            )
        return " ".join(words)

    def _listen(self) -> socket.socket:
        port = port_of(self._secret)
        try:
            return socket.create_server((socket.gethostbyname(self._job.master_host), port), backlog=64)
        except OSError as error:
            raise UserError(
                f"port {port} of {self._job.master_host}, where the hosts of this job meet for MPI, cannot be had "
                f"({error.strerror}): start the job again, and it will be another"
            ) from None

    def _accept(self, listener: socket.socket, greet: Callable[[Connection], None]) -> None:
        while True:
            try:
                accepted, _ = listener.accept()
            except OSError:
                return  # closed
            threading.Thread(target=self._meet, args=(Connection(accepted), greet), daemon=True).start()

    def _meet(self, connection: Connection, greet: Callable[[Connection], None]) -> None:
        try:
            greet(connection)
        except (KeyError, TypeError, ValueError, OSError) as error:  # whatever a stranger may send
            log.debug("A message that is none: %s", error)
        finally:
            connection.close()

    def _greet(self, connection: Connection) -> None:
        """Another host, from its first message to its last."""
        asked = (connection.receive(ANSWER_SECONDS) or {})["nonce"]
        mine = secrets.token_hex(16)
        connection.send(nonce=mine, proof=proof(self._secret, "first", asked, mine))
        told = connection.receive(ANSWER_SECONDS)
        if told is None or not is_proof(told["proof"], proof(self._secret, "other", asked, mine)):
            return
        host, other = str(told["host"]), Other(connection=connection, hostname=str(told["hostname"]))
        with self._changed:
            refusal = self._refusal(host, other, told)
            if not refusal:
                self._others[host] = other
            else:
                self.trouble = self.trouble or refusal
            self._changed.notify_all()
        connection.send(refused=refusal)
        while not refusal and (message := connection.receive()) is not None:
            other.results.put(message)
        if refusal or self._closing:
            return
        with self._changed:
            self.trouble = self.trouble or f"{host} went away before the program had ended"
            self._changed.notify_all()
        other.results.put({"exit": 1})

    def _refusal(self, host: str, other: Other, told: Mapping[str, Any]) -> str:
        """Why a host cannot take part, or nothing."""
        names = {socket.gethostname(): self._job.current_host} | {
            each.hostname: name for name, each in self._others.items()
        }
        if host not in self._job.distribution_hosts or host == self._job.current_host or host in self._others:
            return f"{host} is not awaited here"
        if other.hostname in names:
            return (
                f"distribution mpi on several hosts needs hosts with names of their own, and {names[other.hostname]} and {host} "
                f"are both called {other.hostname} (hostname): Open MPI takes them for one"
            )
        for what, theirs, ours in (
            ("the code is in", told["folder"], str(self._code.folder)),
            ("Python is", told["python"], self._python),
        ):
            if theirs != ours:
                return (
                    f"distribution mpi on several hosts needs the same paths on all: on {host} {what} {theirs}, on "
                    f"{self._job.current_host} {what} {ours}"
                )
        return ""

    def wait(self, wait_seconds: float = peers.WAIT_SECONDS) -> None:
        """Until every other host is there. UserError naming those that are not, or what is wrong with one."""
        began = said = time.monotonic()
        awaited = [host for host in self._job.distribution_hosts if host != self._job.current_host]
        with self._changed:
            while not self.trouble and (missing := [host for host in awaited if host not in self._others]):
                now = time.monotonic()
                if now - began >= wait_seconds:
                    raise UserError(
                        f"{', '.join(missing)} never came up: nothing heard within {wait_seconds:.0f} s, and distribution mpi "
                        "needs every host. Look at the log of that host"
                    )
                if now - said >= peers.SAY_SECONDS:
                    said = now
                    log.info("Waiting for %s to be ready for MPI (%.0f s)", ", ".join(missing), now - began)
                self._changed.wait(min(1.0, began + wait_seconds - now))
        if self.trouble:
            raise UserError(self.trouble)

    def _serve_agent(self, agent: Connection) -> None:
        """What mpirun wants to have run on another host."""
        wish = agent.receive(ANSWER_SECONDS) or {}
        other = self._others.get(str(wish["host"]))
        if other is None:
            log.error("mpirun asks for %s, which is no other host of this job", wish["host"])
            agent.send(exit=1)
            return
        other.connection.send(run=wish["command"])
        result = other.results.get()
        if error := result.get("error"):
            self.trouble = self.trouble or f"{wish['host']} cannot run Open MPI's daemon: {error}"
        agent.send(exit=result["exit"])

    def _say_goodbye(self) -> None:
        """Tell the others that all is over, and let them hear it before this process goes."""
        told = [other for other in self._others.values() if other.connection.send(ended=self.exit_code)]
        deadline = time.monotonic() + LAST_SECONDS
        for other in told:
            with contextlib.suppress(queue.Empty):
                while "bye" not in other.results.get(timeout=max(0.0, deadline - time.monotonic())):
                    pass
            other.connection.close()


def new_name() -> str:
    return f"optml-{secrets.token_hex(8)}"


def hang_up(listener: socket.socket) -> None:
    """Closing alone would leave a thread in accept()."""
    with contextlib.suppress(OSError):
        listener.shutdown(socket.SHUT_RDWR)
