"""How the programs beside the algorithms (predict, evaluation, describe) end."""

import argparse
import contextlib
import os
import sys
from collections.abc import Iterator
from typing import NoReturn

from optml_toolkit.container import UserError


class Arguments(argparse.ArgumentParser):
    """Of a program that `optml` starts: a person who typed another command is not shown this one's usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"optml: {message}\n")


class End:
    status = 0


@contextlib.contextmanager
def user_errors() -> Iterator[End]:
    """What the caller can mend is a line and exit status 2."""
    end = End()
    try:
        yield end
        sys.stdout.flush()
    except UserError as error:
        print(f"optml: {error}", file=sys.stderr)
        end.status = 2
    except BrokenPipeError:  # `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except ModuleNotFoundError as error:
        print(f"optml: this needs {error.name}, which this Python does not have: pip install it", file=sys.stderr)
        end.status = 2


def leave(status: int) -> NoReturn:
    """End at once: a library's threads have aborted a process that was unloading them, after all had been said."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
