"""The supervisor of a detached job: `python -m optml.detached NAME LOCK`, started by `optml train --detach`."""

import sys

from optml.console import Console
from optml.submit import host_width, resume_supervision


def main() -> None:
    name, lock_descriptor = sys.argv[1], int(sys.argv[2])
    submitted = resume_supervision(name, lock_descriptor)
    # The hosts' lines are in their own logs; this log keeps what the platform did.
    submitted.run(Console(sys.stdout, width=host_width(submitted.job), host_output=False))


if __name__ == "__main__":
    main()
