"""Debug a script that runs on a host: `breakpoint()` waits for somebody to attach over TCP.

    Environment PYTHONBREAKPOINT=optml_toolkit.script_mode.debug.wait      then breakpoint() in the script prints how to attach
                PYTHONBREAKPOINT=optml_toolkit.script_mode.debug.post_mortem   ... and an exception that nobody catches waits
    python -m optml_toolkit.script_mode.debug algo-1:4444                  is one way: lines in, lines out; nc and telnet do too

Only this machine can attach where the host's name is a loopback address, as on the process backend. Whoever can, can run code as
the script.
"""

import contextlib
import os
import pdb
import socket
import sys
import threading
from types import TracebackType
from typing import Any

PORT = 4444  # and the next ones, where several processes of a host wait


class Session(pdb.Pdb):
    """pdb over a socket, closed when the script goes on or ends."""

    def __init__(self, connection: socket.socket):
        # Two files: one for both would lose what has come in when something goes out.
        reader: Any = connection.makefile("r", encoding="utf-8")
        writer: Any = connection.makefile("w", encoding="utf-8", buffering=1)
        super().__init__(stdin=reader, stdout=writer, nosigint=True)
        self.use_rawinput = False
        self.prompt = "(Pdb) "
        self._connection = connection

    def do_continue(self, arg: str) -> bool | None:
        stop = super().do_continue(arg)
        self.close()
        return stop

    do_c = do_cont = do_continue

    def do_quit(self, arg: str) -> bool | None:
        stop = super().do_quit(arg)
        self.close()
        return stop

    do_q = do_exit = do_quit

    def do_EOF(self, arg: str) -> bool | None:  # noqa: N802 - pdb names it so
        """Whoever had attached has gone, or has no more to say: pdb takes it for `quit`."""
        stop = super().do_EOF(arg)
        self.close()
        return stop

    def close(self) -> None:
        with contextlib.suppress(OSError):  # whoever had attached has gone
            self.stdout.flush()
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        self._connection.close()


def wait(*_: Any) -> None:
    """For PYTHONBREAKPOINT: say where, wait until somebody attaches, and hand the caller's frame to pdb."""
    Session(attached("breakpoint")).set_trace(sys._getframe(1))


def post_mortem(*_: Any) -> None:
    """The same; and where PYTHONBREAKPOINT names it, script mode lets exceptions that nobody catches wait (`post_mortem.py`)."""
    Session(attached("breakpoint")).set_trace(sys._getframe(1))


def examine(trace: TracebackType | None, *, what: str) -> None:
    """What an exception left, until whoever attaches is done with it."""
    session = Session(attached(what))
    session.reset()
    session.interaction(None, trace)
    session.close()


def attached(what: str) -> socket.socket:
    """Say where, and wait until somebody attaches."""
    host = os.environ.get("SM_CURRENT_HOST", "localhost")
    with listening(host) as server:
        address, port = server.getsockname()[:2]
        print(
            f"{what}: waiting for a debugger; attach with: python -m optml_toolkit.script_mode.debug {address}:{port}",
            file=sys.stderr,
            flush=True,
        )
        return server.accept()[0]


def listening(host: str) -> socket.socket:
    """On the host's own name, at the first free port."""
    try:
        address = socket.gethostbyname(host)
    except OSError:
        address = "127.0.0.1"
    for port in range(PORT, PORT + 100):
        try:
            return socket.create_server((address, port))
        except OSError:
            continue
    return socket.create_server((address, 0))


def attach(where: str) -> None:
    """Lines from standard input to the debugger, what it says to standard output, until it is done."""
    host, _, port = where.rpartition(":")
    with socket.create_connection((host, int(port))) as connection:
        threading.Thread(target=send, args=(connection,), daemon=True).start()
        with contextlib.suppress(ConnectionResetError):
            while part := connection.recv(65536):
                sys.stdout.buffer.write(part)
                sys.stdout.buffer.flush()


def send(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):  # the debugger is done
        while lines := os.read(sys.stdin.fileno(), 65536):
            connection.sendall(lines)
        connection.shutdown(socket.SHUT_WR)  # no more come; what they lead to is waited for, however long it takes


if __name__ == "__main__":
    if len(sys.argv) != 2 or ":" not in sys.argv[1]:
        sys.exit("usage: python -m optml_toolkit.script_mode.debug HOST:PORT")
    with contextlib.suppress(KeyboardInterrupt):
        attach(sys.argv[1])
