"""Errors, named by who must act.

UserError and its children: the person who wrote the request or typed the command. JobFailed: whoever owns the training
code. PlatformError: this machine, or optml itself; the only kind that RetryStrategy retries.
"""

import contextlib
import errno
from collections.abc import Iterator


class OptmlError(Exception):
    """The parent of every error that optml raises on purpose; its text is meant to be read by a person."""


class UserError(OptmlError):
    """Something that the caller can mend; the text names the field and the remedy. `code` is AWS's error code."""

    code = "ValidationException"


class ValidationError(UserError):
    """A request that AWS would refuse, in AWS's words. `problems` has one text per violation."""

    def __init__(self, problems: list[str]):
        self.problems = problems
        noun = "error" if len(problems) == 1 else "errors"
        super().__init__(f"{len(problems)} validation {noun} detected: " + "; ".join(problems))


class ResourceInUse(UserError):
    """The name is taken, or the job is still running."""

    code = "ResourceInUse"


class ResourceLimitExceeded(UserError):
    """This machine does not have what the request asks for, for example a GPU."""

    code = "ResourceLimitExceeded"


class DataError(UserError):
    """Input data that cannot be staged: nothing under the prefix, an unreadable object. Becomes `ClientError: ...`."""


class StartError(UserError):
    """The program could not be started: it is not there, or not executable. Becomes `ClientError: ...`."""


class JobFailed(OptmlError):
    """Raised by `Job.wait()` for a Failed job: the reason, and where the logs are."""


class PlatformError(OptmlError):
    """This machine failed the job: a host vanished, the disk filled up, storage answered 5xx. `InternalServerError: ...`."""


class CapacityError(OptmlError):
    """The plan of interruptions has no machine for the job any more. Becomes `CapacityError: ...`; not retried."""


def storage_error(error: OSError, what: str) -> OptmlError:
    """An error of this machine's disk, in words."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return PlatformError(f"{what}: no space left on the disk; make room, or set OPTML_HOME to a bigger one")
    return PlatformError(f"{what}: {error.strerror or error}")


@contextlib.contextmanager
def storage_errors(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise storage_error(error, what) from error
