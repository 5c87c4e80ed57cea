"""MPI on another host than the first: run Open MPI's daemon when mpirun asks for it, and nothing else, until mpirun has ended."""

import contextlib
import logging
import os
import queue
import secrets
import shlex
import shutil
import signal
import socket
import threading
import time
from collections.abc import Mapping
from typing import Any

from optml_toolkit.container import UserError
from optml_toolkit.script_mode import peers, processes
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

DAEMON = "prted"
REMOTE_FOLDER = "PRTE_MCA_prte_remote_tmpdir_base"  # for its own files: see mpi_hosts.py
KILL_SECONDS = 20.0  # for a daemon whose mpirun is gone
BLAME_SECONDS = 3.0  # in which a platform sees by itself that the first host is gone

log = logging.getLogger("script_mode")


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


def join(
    job: ScriptJob, code: UserCode, *, python: str, secret: bytes, wait_seconds: float = peers.WAIT_SECONDS
) -> Connection:
    """The connection to the first host. UserError if it does not answer in time, or does not want this one."""
    began = said = time.monotonic()
    pause = 0.05
    while True:
        connection = None
        with contextlib.suppress(OSError):
            connection = Connection(
                socket.create_connection((job.master_host, port_of(secret)), timeout=ANSWER_SECONDS)
            )
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
                f"{job.master_host} never came up: nothing heard within {wait_seconds:.0f} s, and it is where mpirun runs. Look "
                "at the log of that host"
            )
        if now - said >= peers.SAY_SECONDS:
            said = now
            log.info("Waiting for %s, where mpirun will run (%.0f s)", job.master_host, now - began)
        time.sleep(pause)
        pause = min(1.0, pause * 1.5)


def introduce(connection: Connection, job: ScriptJob, code: UserCode, *, python: str, secret: bytes) -> str | None:
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
