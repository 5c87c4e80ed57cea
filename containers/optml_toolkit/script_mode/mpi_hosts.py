"""MPI on several hosts: mpirun on the first, and on each other host the daemon of Open MPI's that it asks for.

Elsewhere sshd and keys do this; here the toolkits, which run on every host anyway. Each other host connects to the first and shows
that it knows the job's secret, as the first does in turn; then it runs Open MPI's daemon when it is told to, and nothing else.
mpirun starts mpi_agent.py instead of ssh, which hands its wish to this toolkit through a socket that only this user can reach.
Processes are the daemon's children, so signals, variables and folders are those of the host that they run on.
"""

import contextlib
import hmac
import json
import logging
import os
import queue
import secrets
import shlex
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from optml_toolkit.container import UserError
from optml_toolkit.script_mode import peers, processes
from optml_toolkit.script_mode.job import ScriptJob
from optml_toolkit.script_mode.user_code import UserCode

AGENT = Path(__file__).with_name("mpi_agent.py")
DAEMON = "prted"
# Hosts of one machine share /tmp and /dev/shm, and each numbers its processes from 1. Open MPI makes names from those numbers: of
# its folders, which shall therefore be ours, and of the job, whose name is in those of what it puts into /dev/shm.
JOB = "PMIX_SERVER_NSPACE"
LOCAL_FOLDER, REMOTE_FOLDER = "PRTE_MCA_prte_local_tmpdir_base", "PRTE_MCA_prte_remote_tmpdir_base"
FIRST_PORT, PORTS = 20_000, 10_000  # below those that Linux gives to programs which ask for any
ANSWER_SECONDS = 30.0  # for a message that must come at once
LAST_SECONDS = 5.0  # for a host to hear that the job has ended
KILL_SECONDS = 20.0  # for a daemon whose mpirun is gone
BLAME_SECONDS = 3.0  # in which a platform sees by itself that the first host is gone
MAX_MESSAGE_BYTES = 1 << 20

log = logging.getLogger("script_mode")


class Connection:
    """Messages, one JSON object a line. `receive` gives None at the end, and for what is no message."""

    def __init__(self, to: socket.socket):
        self._socket = to
        self._file = to.makefile("rb")
        self._sending = threading.Lock()

    def send(self, **message: Any) -> bool:
        """Whether it could be sent."""
        try:
            with self._sending:
                self._socket.sendall(json.dumps(message).encode() + b"\n")
        except OSError:
            return False
        return True

    def receive(self, seconds: float | None = None) -> dict[str, Any] | None:
        try:
            self._socket.settimeout(seconds)
            line = self._file.readline(MAX_MESSAGE_BYTES)
            self._socket.settimeout(None)
            message = json.loads(line) if line.endswith(b"\n") else None
        except (OSError, ValueError):
            return None
        return message if isinstance(message, dict) else None

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._file.close()
        self._socket.close()


def secret_of(job: ScriptJob) -> bytes:
    """The platform's, or where it gives none what the hosts know anyway. UserError if strangers could know it, too."""
    secret = job.container.job_secret
    if secret:
        return secret.encode()
    if socket.gethostbyname(job.master_host).startswith("127."):
        raise UserError(
            "distribution mpi on several hosts of one machine needs input/config/job-secret.json, the same on each host, "
            '{"secret": "..."} with a random text: others can connect to the loopback, too. optml writes it'
        )
    log.warning("input/config/job-secret.json is not there: the hosts trust whoever reaches their network, as SageMaker's do")
    return os.environ.get("TRAINING_JOB_ARN", job.training_job_name or "").encode()


def port_of(secret: bytes) -> int:
    """Where the first host listens: jobs that share a machine's network hardly ever have the same."""
    return FIRST_PORT + int.from_bytes(hmac.digest(secret, b"port", "sha256")[:4], "big") % PORTS


def proof(secret: bytes, who: str, *nonces: str) -> str:
    return hmac.new(secret, "/".join((who, *nonces)).encode(), "sha256").hexdigest()


def is_proof(given: Any, expected: str) -> bool:
    return isinstance(given, str) and hmac.compare_digest(given.encode(), expected.encode())


# The first host.


@dataclass(kw_only=True)
class Other:
    """Another host that has come, as the first sees it."""

    connection: Connection
    hostname: str  # what the machine calls itself, by which Open MPI tells hosts apart
    results: "queue.SimpleQueue[dict[str, Any]]" = field(default_factory=queue.SimpleQueue)


class FirstHost:
    """Use as a context manager, and in order: wait, then `environment` for mpirun, `exit_code` when that has ended."""

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
            self.trouble = self.trouble or f"{host} went away while the program ran"
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
                f"distribution mpi on several hosts needs hosts with names of their own, and {names[other.hostname]} and {host} are "
                f"both called {other.hostname} (hostname): Open MPI takes them for one"
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
                        f"{', '.join(missing)} never came up: nothing heard within {wait_seconds:.0f} s, and distribution mpi needs "
                        "every host. Look at the log of that host"
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


def private_folder() -> "tempfile.TemporaryDirectory[str]":
    """Only this user's, with a name short enough for a socket in it."""
    folder = tempfile.TemporaryDirectory(prefix="optml-mpi-", ignore_cleanup_errors=True)
    if len(os.fsencode(folder.name)) <= 80:
        return folder
    folder.cleanup()
    return tempfile.TemporaryDirectory(prefix="optml-mpi-", dir="/tmp", ignore_cleanup_errors=True)


def new_name() -> str:
    return f"optml-{secrets.token_hex(8)}"


def hang_up(listener: socket.socket) -> None:
    """Closing alone would leave a thread in accept()."""
    with contextlib.suppress(OSError):
        listener.shutdown(socket.SHUT_RDWR)


# Every other host.


def join(
    job: ScriptJob, code: UserCode, *, python: str, secret: bytes, wait_seconds: float = peers.WAIT_SECONDS
) -> Connection:
    """The connection to the first host. UserError if it does not answer in time, or does not want this one."""
    began = said = time.monotonic()
    pause = 0.05
    while True:
        connection = None
        with contextlib.suppress(OSError):
            connection = Connection(socket.create_connection((job.master_host, port_of(secret)), timeout=ANSWER_SECONDS))
        if connection is not None:
            refusal = introduce(connection, job, code, python=python, secret=secret)
            if refusal == "":
                return connection
            connection.close()
            if refusal is not None:
                raise UserError(refusal)
        now = time.monotonic()
        if now - began >= wait_seconds:
            raise UserError(
                f"{job.master_host} never came up: nothing heard within {wait_seconds:.0f} s, and it is where mpirun runs. Look at "
                "the log of that host"
            )
        if now - said >= peers.SAY_SECONDS:
            said = now
            log.info("Waiting for %s, where mpirun will run (%.0f s)", job.master_host, now - began)
        time.sleep(pause)
        pause = min(1.0, pause * 1.5)


def introduce(
    connection: Connection, job: ScriptJob, code: UserCode, *, python: str, secret: bytes
) -> str | None:
    """Nothing if this host is taken, else why it is not; None if that was not the first host, or it is going away."""
    mine = secrets.token_hex(16)
    connection.send(nonce=mine)
    told = connection.receive(ANSWER_SECONDS) or {}
    theirs = told.get("nonce")
    if not isinstance(theirs, str) or not is_proof(told.get("proof"), proof(secret, "first", mine, theirs)):
        return None
    connection.send(
        proof=proof(secret, "other", mine, theirs),
        host=job.current_host,
        hostname=socket.gethostname(),
        folder=str(code.folder),
        python=python,
    )
    refused = (connection.receive(ANSWER_SECONDS) or {}).get("refused")
    return refused if isinstance(refused, str) else None


def follow(
    job: ScriptJob, code: UserCode, *, python: str, environment: Mapping[str, str], signals: processes.Signals
) -> processes.Ended:
    """Run what mpirun on the first host asks for, until that has ended. UserError if the first host is lost."""
    connection = join(job, code, python=python, secret=secret_of(job))
    log.info("Ready for MPI: mpirun runs on %s, and so does the log of all processes", job.master_host)
    messages: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
    is_idle = threading.Event()
    is_idle.set()

    def listen() -> None:
        while (message := connection.receive()) is not None:
            messages.put(message)
            if "ended" in message:
                break
        messages.put(None)
        if not is_idle.wait(KILL_SECONDS):  # a daemon goes when mpirun is gone; this one has not
            for pid in processes.descendants(os.getpid(), processes.children_by_parent()):
                processes.send(pid, signal.SIGKILL)

    threading.Thread(target=listen, daemon=True).start()
    with private_folder() as folder:
        while (message := messages.get()) is not None and "ended" not in message:
            is_idle.clear()
            result = run_daemon(
                str(message.get("run", "")), code, environment=environment, folder=folder, signals=signals
            )
            is_idle.set()
            connection.send(**result)
    if message is None and not signals.stopping:
        time.sleep(BLAME_SECONDS)
        raise UserError(f"{job.master_host}, where mpirun runs, went away")
    if message is not None:
        log.info("mpirun on %s has ended with exit code %s", job.master_host, message["ended"])
        connection.send(bye=True)
    connection.close()
    return processes.Ended(exit_code=0, said="", stopped=signals.stopping)


def run_daemon(
    command: str, code: UserCode, *, environment: Mapping[str, str], folder: str, signals: processes.Signals
) -> dict[str, Any]:
    """What to answer: the daemon's exit code, and why it could not be started, if so."""
    try:
        argv, own = daemon_of(command, environment)
    except ValueError as error:
        return {"exit": 127, "error": str(error)}
    told = {**environment, **own, REMOTE_FOLDER: folder}
    try:
        return {"exit": processes.run(argv, folder=code.folder, environment=told, signals=signals).exit_code}
    except OSError as error:
        return {"exit": 127, "error": f"{argv[0]}: {error.strerror}"}


def daemon_of(command: str, environment: Mapping[str, str]) -> tuple[list[str], dict[str, str]]:
    """The daemon in a command that mpirun made for a remote shell, and variables that the command sets before.

    `A=1;export A;/usr/bin/prted --this "that"`, for some shells in `( ... )`. ValueError if it is for something else.
    """
    lexer = shlex.shlex(command, posix=True, punctuation_chars="();")
    lexer.whitespace_split = True
    lexer.commenters = ""
    words = list(lexer)
    place = next((place for place, word in enumerate(words) if os.path.basename(word) == DAEMON), None)  # noqa: PTH119
    if place is None:
        raise ValueError(f"mpirun asks for something that is not {DAEMON}: {command[:200]}")
    own: dict[str, str] = {}
    for word in words[:place]:
        name, equals, value = word.partition("=")
        if equals and name.isidentifier():
            own[name] = value.replace(f"${name}", {**environment, **own}.get(name, "")).rstrip(":")
    argv = words[place : place + 1] + [word for word in words[place + 1 :] if word != ")"]
    if "/" not in argv[0]:
        found = shutil.which(argv[0], path=environment.get("PATH"))
        if found is None:
            raise ValueError(f"there is no {DAEMON} on the PATH of this host")
        argv[0] = found
    return argv, own


def run(
    job: ScriptJob,
    code: UserCode,
    argv: Sequence[str],
    *,
    python: str,
    environment: Mapping[str, str],
    signals: processes.Signals,
) -> tuple[processes.Ended, str]:
    """mpirun, once all hosts are there; on another host than the first, whatever that asks for. Also what became of the others."""
    if len(job.distribution_hosts) == 1:
        with private_folder() as folder:
            told = {**environment, JOB: new_name(), LOCAL_FOLDER: folder}
            return processes.run(argv, folder=code.folder, environment=told, signals=signals), ""
    if job.current_host != job.master_host:
        return follow(job, code, python=python, environment=environment, signals=signals), ""
    with FirstHost(job, code, python) as first:
        told = {**environment, JOB: new_name(), LOCAL_FOLDER: first.folder, "PRTE_MCA_plm_ssh_agent": first.agent}
        first.wait()
        ended = processes.run(argv, folder=code.folder, environment=told, signals=signals)
        first.exit_code = ended.exit_code
    return ended, first.trouble
