"""What mpirun starts instead of ssh: asks the toolkit of this host to have a command run on another, and ends as that ends.

    python -I mpi_agent.py SOCKET HOST WORD...        with the words that ssh would have been given

It is started by its path, so that nothing in the user's code takes the place of a module; and a signal for the job is not for it,
for mpirun takes its end for the other host's.
"""

import json
import signal
import socket
import sys

IGNORED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)


def main(path: str, host: str, words: list[str]) -> int:
    for number in IGNORED:
        signal.signal(number, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as toolkit:
        toolkit.connect(path)
        with toolkit.makefile("rwb") as stream:
            stream.write(json.dumps({"host": host, "command": " ".join(words)}).encode() + b"\n")
            stream.flush()
            answer = stream.readline()
    return int(json.loads(answer)["exit"]) if answer else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], sys.argv[3:]))
