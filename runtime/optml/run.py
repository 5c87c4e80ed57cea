"""The story of one job, from its first record to its last. Each step is a file: preparing, waiting, training, ending."""

import itertools

from optml.attempt import Attempt
from optml.console import count_text
from optml.ending import STOPPED_STATUS, end, finish, forget_disks, say_how_hosts_ended, upload
from optml.errors import CapacityError, OptmlError, PlatformError, StartError, UserError, storage_error
from optml.preparing import fetch_image, find_inputs
from optml.record import RecordLost
from optml.running import Run, StopRequested, check_stop
from optml.supervise import Ended, Why
from optml.training import train
from optml.waiting import WaitExceeded, pause, wait_for_capacity

# Before another try where no host could be started: that may be mended in a moment, as an engine that is starting again.
RETRY_SECONDS = 30


def say_begin(it: Run) -> None:
    hosts = count_text(len(it.job.hosts), "host")
    it.console.say(f"Job {it.job.name}: {it.image.name} on {hosts}, {it.job.options.backend} backend")
    for warning in it.job.warnings:
        it.console.say(f"warning: {warning}", important=True)


def run(it: Run) -> str:
    """Run the job to its end and give its last status. Every error becomes the record's FailureReason, none is swallowed."""
    try:
        status = run_recorded(it)
        forget_disks(it)
        return status
    except RecordLost as lost:
        it.console.say(f"Failed: {lost}", important=True)
        return "Failed"
    except OSError as error:  # a full disk took not even the last record; whoever asks next writes it
        it.console.say(f"Failed: {storage_error(error, 'the end of the job could not be recorded')}", important=True)
        return "Failed"
    finally:
        it.record.close()


def run_recorded(it: Run) -> str:
    try:
        ended, attempt = run_attempts(it)
        say_how_hosts_ended(it, ended)
        upload(it, attempt, ended)
        status = finish(it, ended, attempt)
    except (StopRequested, KeyboardInterrupt):
        it.record.transition("Stopping", status="Stopping")
        status = end(it, "Stopped", "Stopped")
    except WaitExceeded:
        it.record.transition("Stopping", status="Stopping")
        it.console.say(f"Stopping: out of wait after {it.job.stopping.max_wait_seconds} s")
        status = end(it, "Stopped", STOPPED_STATUS[Why.OUT_OF_WAIT])
    except CapacityError as error:
        status = end(it, "Failed", "Failed", reason=f"CapacityError: {error}")
    except UserError as error:
        status = end(it, "Failed", "Failed", reason=f"ClientError: {error}")
    except RecordLost:
        raise
    except OptmlError as error:
        status = end(it, "Failed", "Failed", reason=f"InternalServerError: {error}")
    except OSError as error:
        known = storage_error(error, f"{error.filename or 'the jobs folder'} cannot be used")
        status = end(it, "Failed", "Failed", reason=f"InternalServerError: {known}")
    except BaseException as error:
        end(it, "Failed", "Failed", reason=f"InternalServerError: {type(error).__name__}: {error}")
        raise
    return status


def run_attempts(it: Run) -> tuple[Ended, Attempt]:
    """Attempts until one ends for a reason of the job's own, or the retries are used up. Interruptions count as no failures."""
    fetch_image(it)
    wait_for_capacity(it)
    listings = find_inputs(it)
    failures = 0
    for number in itertools.count(1):
        attempt = Attempt(it.job, it.record, it.backend, it.console, it.clock, number=number, events=it.events)
        last = failures >= it.job.maximum_retries
        try:
            attempt.stage(it.image, listings, check=lambda: check_stop(it))
            check_stop(it)
            it.record.transition("Training")
            it.disks_matter = True
            ended = train(it, attempt)
            if ended.why is Why.INTERRUPTED:
                start_again(it, attempt)
                continue
            if ended.why is not Why.LOST or last:
                return ended, attempt
            problem, pause_seconds = f"lost {ended.detail}", 0.0
        except StartError:
            it.disks_matter = False  # the program never ran
            raise
        except PlatformError as error:
            if last or isinstance(error, RecordLost):
                raise
            problem, pause_seconds = str(error), float(min(RETRY_SECONDS, 2**failures))
        failures += 1
        it.console.say(f"internal error: {problem}; retry {failures} of {it.job.maximum_retries}", important=True)
        restart(it, attempt, problem, pause_seconds=pause_seconds)
    raise AssertionError("unreachable")


def start_again(it: Run, attempt: Attempt) -> None:
    """From a machine that is gone to the next one: an empty disk, and the checkpoints that had been uploaded."""
    assert it.capacity is not None
    if it.capacity.plan.notice_seconds:
        attempt.save_checkpoints()
    it.record.local["interruptions"] = it.capacity.interruptions
    it.record.transition("Interrupted")
    attempt.discard()
    it.disks_matter = False
    it.capacity.machine_gone(it.clock.monotonic(), fruitful=attempt.printed or attempt.saved)
    it.record.transition("Starting")
    wait_for_capacity(it)
    if it.job.channels or it.job.checkpoint:
        it.record.transition("Downloading")


def restart(it: Run, attempt: Attempt, problem: str, *, pause_seconds: float) -> None:
    """From an attempt that this machine failed to the next one."""
    attempt.discard()
    it.disks_matter = False
    it.record.transition("Restarting", message=f"Internal error, restarting: {problem}"[:500])
    it.record.transition("Starting")
    pause(it, pause_seconds)
    wait_for_capacity(it)
