"""The story of one job, from its first record to its last."""

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from optml import objects, stage
from optml import record as records
from optml.attempt import Attempt
from optml.backends import Backend
from optml.capacity import NEVER, Capacity, Lease
from optml.clock import Clock
from optml.collect import NO_REASON, collect_outputs, failure_reason
from optml.console import Console, count_text, duration_text, size_text
from optml.errors import CapacityError, OptmlError, PlatformError, StartError, UserError
from optml.events import Events
from optml.images import Image
from optml.logs import last_line
from optml.record import WAITING_MESSAGE, Record, RecordLost
from optml.spec import How, InputMode, ObjectSource, TrainingJob
from optml.supervise import Ended, Limits, Why

WAIT_LOOK_SECONDS = 0.1  # between looks for a stop while there is no capacity
WAIT_TEXT_SECONDS = 30.0  # silence is no longer than this
# Before another try where no host could be started: that may be mended in a moment, as an engine that is starting again.
RETRY_SECONDS = 30


class StopRequested(Exception):
    """Somebody asked to stop while no host was running."""


class WaitExceeded(Exception):
    """MaxWaitTimeInSeconds passed while no host was running."""


@dataclass(kw_only=True)
class Run:
    """What every step of a job needs."""

    job: TrainingJob
    image: Image
    record: Record
    backend: Backend
    console: Console
    clock: Clock
    stop_requested: Callable[[], bool]
    hurry: Callable[[], bool] = lambda: False
    disks_matter: bool = False  # hosts have run, and what they left is not uploaded yet
    trained_seconds: float = 0.0  # in all attempts that have ended

    @functools.cached_property
    def began(self) -> float:
        """The job's creation, in monotonic seconds."""
        return self.clock.monotonic() - (self.clock.now() - float(self.record.describe["CreationTime"]))

    @functools.cached_property
    def capacity(self) -> Capacity | None:
        """None: machines are always there, and stay."""
        plan = self.job.options.interruptions
        return None if plan is None else Capacity(plan, began=self.began)

    @functools.cached_property
    def events(self) -> Events:
        options = self.job.options
        wanted = options.evidence or options.interruptions is not None
        return Events(self.record.job_dir.events_file if wanted else None, self.clock)


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
        it.console.say(
            f"Failed: {objects.storage_error(error, 'the end of the job could not be recorded')}", important=True
        )
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
        known = objects.storage_error(error, f"{error.filename or 'the jobs folder'} cannot be used")
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
            problem, pause = f"lost {ended.detail}", 0.0
        except StartError:
            it.disks_matter = False  # the program never ran
            raise
        except PlatformError as error:
            if last or isinstance(error, RecordLost):
                raise
            problem, pause = str(error), float(min(RETRY_SECONDS, 2**failures))
        failures += 1
        it.console.say(f"internal error: {problem}; retry {failures} of {it.job.maximum_retries}", important=True)
        attempt.discard()
        it.disks_matter = False
        it.record.transition("Restarting", message=f"Internal error, restarting: {problem}"[:500])
        it.record.transition("Starting")
        again = it.clock.monotonic() + pause
        while it.clock.monotonic() < again:
            check_stop(it)
            it.clock.sleep(0.1)
        wait_for_capacity(it)
    raise AssertionError("unreachable")


def train(it: Run, attempt: Attempt) -> Ended:
    """The training phase of one attempt; its seconds count towards MaxRuntime and the plan of interruptions."""
    began = it.clock.monotonic()

    def lease() -> Lease | None:
        if it.capacity is None:
            return None
        now = it.clock.monotonic()
        return it.capacity.lease(now, trained_seconds=it.trained_seconds + now - began)

    def on_store_away() -> None:
        assert it.capacity is not None
        now = it.clock.monotonic()
        it.capacity.interrupted(trained_seconds=it.trained_seconds + now - began, trigger=attempt.trigger)

    def on_ending(why: Why) -> None:
        if why is Why.INTERRUPTED:
            note_interruption(it, attempt, trained_seconds=it.trained_seconds + it.clock.monotonic() - began)
        announce(it, why)

    try:
        return attempt.run(
            limits(it, began),
            stop_requested=lambda: it.stop_requested() or it.record.is_lost(),
            hurry=it.hurry,
            on_ending=on_ending,
            lease=lease,
            on_store_away=on_store_away,
        )
    finally:
        it.trained_seconds += it.clock.monotonic() - began


def note_interruption(it: Run, attempt: Attempt, *, trained_seconds: float) -> None:
    assert it.capacity is not None
    it.capacity.interrupted(trained_seconds=trained_seconds, trigger=attempt.trigger)
    plan, cause = it.capacity.plan, str(attempt.trigger or f"after {duration_text(trained_seconds)} of training")
    it.events.note("interrupted", Cause=cause, TrainedSeconds=trained_seconds)
    how = (
        f"SIGTERM sent, SIGKILL after {duration_text(plan.notice_seconds)}"
        if plan.notice_seconds
        else "SIGKILL at once"
    )
    if plan.how is How.HANG:
        how = f"programs stand still for {duration_text(plan.notice_seconds)}, then SIGKILL"
    who = plan.host or "all hosts"
    it.console.say(f"Interruption {it.capacity.interruptions} of {who}, {cause}: {how}", important=True)


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


def wait_for_capacity(it: Run) -> None:
    """Until the next machine comes. A step that can be stopped, and that MaxWait ends."""
    if it.capacity is None:
        return
    began = it.clock.monotonic()
    arrival = it.capacity.arrival(began)
    if arrival <= began:
        return
    max_wait = it.job.stopping.max_wait_seconds
    out_of_wait_at = NEVER if max_wait is None else it.began + max_wait
    if arrival == NEVER and max_wait is None:
        raise CapacityError(
            "there is no machine any more: the trace ends without one, and the job has no MaxWaitTimeInSeconds to wait for"
        )
    it.record.transition("Starting", message=WAITING_MESSAGE)
    it.events.note("waiting")
    until = "" if arrival == NEVER else f" for {duration_text(arrival - began)}"
    it.console.say(f"No capacity{until}")
    said = began
    while (now := it.clock.monotonic()) < arrival:
        check_stop(it)
        if now >= out_of_wait_at:
            raise WaitExceeded
        if now - said >= WAIT_TEXT_SECONDS:
            said = now
            it.console.say(f"Waiting for capacity: {duration_text(now - began)} so far")
        it.clock.wait([], min(WAIT_LOOK_SECONDS, arrival - now))
    it.events.note("machine-there")


def fetch_image(it: Run) -> None:
    """Have the image on this machine; most often it is."""
    began = it.clock.monotonic()
    pulled = False

    def progress(step: str, done_bytes: int, total_bytes: int | None) -> None:
        nonlocal pulled
        pulled = True
        check_stop(it)
        it.console.progress(step, done_bytes, total_bytes)

    for warning in it.backend.fetch(it.image, progress):
        it.console.say(f"warning: {warning}", important=True)
        it.record.local["warnings"].append(warning)
    if pulled:
        it.console.step_done()
        it.console.say(f"Image {it.image.reference} pulled ({duration_text(it.clock.monotonic() - began)})")


def find_inputs(it: Run) -> Mapping[str, stage.Listing]:
    """List what the channels hold, before anything is moved: an empty prefix fails the job here."""
    for uri in it.job.destinations:
        check_stop(it)
        objects.check_destination(uri)
    it.record.training_started()
    if it.job.channels:
        it.record.transition("Downloading")
    began = it.clock.monotonic()
    listings: dict[str, stage.Listing] = {}
    for channel in it.job.channels:
        check_stop(it)
        if isinstance(channel.source, ObjectSource):
            listings[channel.name] = stage.list_channel(channel, manifest_paths=it.job.options.manifest_paths)
    if listings:
        it.console.say(f"Input: {found_text(listings)} ({duration_text(it.clock.monotonic() - began)} to list)")
    return listings


def found_text(listings: Mapping[str, stage.Listing]) -> str:
    return "; ".join(
        f"{name} {count_text(len(listing.objects), 'object')}, {size_text(listing.size_bytes)}"
        + (f" ({listing.channel.input_mode})" if listing.channel.input_mode is not InputMode.FILE else "")
        for name, listing in listings.items()
    )


def limits(it: Run, training_began: float) -> Limits:
    """MaxRuntime counts the training of all attempts together, without what lies between; MaxWait from the job's creation."""
    stopping = it.job.stopping
    return Limits(
        out_of_time_at=training_began + stopping.max_runtime_seconds - it.trained_seconds,
        out_of_wait_at=it.began + stopping.max_wait_seconds if stopping.max_wait_seconds else None,
        grace_seconds=it.job.options.grace_seconds,
    )


def check_stop(it: Run) -> None:
    if it.stop_requested():
        raise StopRequested


def announce(it: Run, why: Why) -> None:
    """Enter Stopping before the hosts hear of it."""
    grace = duration_text(it.job.options.grace_seconds)
    if why in (Why.STOPPED, Why.OUT_OF_TIME, Why.OUT_OF_WAIT):
        it.record.transition("Stopping", status="Stopping")
        stopping = it.job.stopping
        longest = stopping.max_wait_seconds if why is Why.OUT_OF_WAIT else stopping.max_runtime_seconds
        what = "stop requested" if why is Why.STOPPED else f"{why} after {longest} s"
        it.console.say(f"Stopping: {what}; SIGTERM sent, SIGKILL after {grace} (a second Ctrl-C: at once)")
    elif why is Why.FAILED and len(it.job.hosts) > 1:
        it.console.say(f"a host failed: stopping the others (SIGTERM, SIGKILL after {grace})")


def say_how_hosts_ended(it: Run, ended: Ended) -> None:
    for host, remark in ended.remarks.items():
        it.console.say(f"{host}: {remark}", important=True)
    if ended.killed and not it.hurry() and it.job.options.grace_seconds > 0:
        cause = "handle SIGTERM to save what matters in time"
        if it.backend.containers:
            cause += (
                " (process 1 of a container ignores it otherwise, and a shell passes it on to nobody: exec the program)"
            )
        grace = duration_text(it.job.options.grace_seconds)
        it.console.say(f"{', '.join(ended.killed)}: killed, for nothing ended it within {grace} of SIGTERM: {cause}")


STOPPED_STATUS = {Why.STOPPED: "Stopped", Why.OUT_OF_TIME: "MaxRuntimeExceeded", Why.OUT_OF_WAIT: "MaxWaitTimeExceeded"}


def upload(it: Run, attempt: Attempt, ended: Ended) -> None:
    """Outputs leave the hosts however the job ended; only a lost machine takes them with it."""
    if ended.why is Why.LOST:
        it.disks_matter = False
        return
    it.record.transition("Uploading", status="Stopping" if ended.why in STOPPED_STATUS else "InProgress")
    began = it.clock.monotonic()
    try:
        attempt.finish_mirrors()
        collected = collect_outputs(
            it.job,
            it.record.job_dir,
            attempt.host_dirs,
            progress=lambda done, total: it.console.progress("Uploading", done, total),
        )
    except OSError as error:
        raise PlatformError(
            f"outputs could not be saved: {error}; what the hosts left is in {attempt.folder}"
        ) from error
    except OptmlError as error:
        raise type(error)(f"outputs could not be saved: {error}; what the hosts left is in {attempt.folder}") from error
    it.disks_matter = False
    for warning in collected.warnings:
        it.console.say(f"warning: {warning}")
    it.record.describe["ModelArtifacts"] = {"S3ModelArtifacts": collected.model_uri}
    it.record.local.update(output_uri=collected.output_uri)
    it.record.local["warnings"] += collected.warnings
    it.record.save()
    size = size_text(collected.model_bytes + collected.output_bytes)
    it.console.say(f"Uploaded {size} ({duration_text(it.clock.monotonic() - began)})")


def finish(it: Run, ended: Ended, attempt: Attempt) -> str:
    """From why the attempt ended to the job's status, reason and last line."""
    if ended.why in STOPPED_STATUS:
        return end(it, "Stopped", STOPPED_STATUS[ended.why])
    if ended.why is Why.LOST:
        return end(it, "Failed", "Failed", reason=f"InternalServerError: lost {ended.detail}")
    if ended.error is not None:
        kind = "InternalServerError" if isinstance(ended.error, PlatformError) else "ClientError"
        return end(it, "Failed", "Failed", reason=f"{kind}: {ended.error}")
    reason = failure_reason(attempt.host_dirs, ended.exit_codes, first=ended.first, remarks=ended.remarks)
    if ended.first is not None:
        text = f"{ended.first} failed: exit code {ended.exit_codes[ended.first]}"
        if reason is not None and reason.startswith(NO_REASON):  # as AWS has it, which helps nobody
            said = last_line(it.record.job_dir, ended.first)
            text += f", without a failure file; its last line: {said}" if said else ", without a failure file or a word"
        it.console.say(text, important=True)
    if ended.why is Why.FAILED or (reason is not None and it.job.options.failure_file_fails):
        return end(it, "Failed", "Failed", reason=reason)
    return end(it, "Completed", "Completed")


def end(it: Run, status: str, secondary: str, *, reason: str | None = None) -> str:
    """Write the last record and say it."""
    for trigger in it.capacity.not_fired() if it.capacity is not None else ():
        text = (
            f"{trigger} never came: it was not printed that often within one attempt, so nothing was interrupted there"
        )
        it.console.say(f"warning: {text}", important=True)
        it.record.local["warnings"].append(text)
    it.record.end(status, secondary, reason=reason)
    say_end(
        it.console, it.record.describe, logs=str(it.record.job_dir.logs), output_uri=it.record.local.get("output_uri")
    )
    return status


def say_end(console: Console, describe: Mapping[str, object], *, logs: str, output_uri: str | None) -> None:
    status, secondary = describe["TrainingJobStatus"], describe["SecondaryStatus"]
    seconds = describe.get("TrainingTimeInSeconds")
    spent = "" if seconds is None else f" (training seconds: {seconds}, billable: {describe['BillableTimeInSeconds']})"
    console.say(f"{status}{'' if secondary == status else f': {secondary}'}{spent}", important=True)
    if describe.get("EnableManagedSpotTraining") and seconds:  # as AWS's own client prints it
        saved = (1 - float(describe["BillableTimeInSeconds"]) / float(seconds)) * 100  # type: ignore[arg-type]
        console.say(f"Managed Spot Training savings: {saved:.1f}%", important=True)
    if reason := describe.get("FailureReason"):
        console.say(f"reason: {reason}", important=True)
    metrics: Sequence[Mapping[str, object]] = describe.get("FinalMetricDataList", ())  # type: ignore[assignment]
    if metrics:
        console.say("metrics: " + ", ".join(f"{metric['MetricName']} {metric['Value']:g}" for metric in metrics))
    artifacts: Mapping[str, str] = describe.get("ModelArtifacts", {})  # type: ignore[assignment]
    if status == "Failed":  # its artifacts are uploaded too, but seldom what somebody looks for
        console.say(f"logs: {logs}", important=True)
    elif artifacts.get("S3ModelArtifacts"):
        console.say(f"model: {artifacts['S3ModelArtifacts']}", important=True)
        if output_uri is not None:
            console.say(f"output: {output_uri}")


def forget_disks(it: Run) -> None:
    """A machine's disk is gone when the job is: everything worth keeping has been uploaded."""
    job_dir = it.record.job_dir
    if it.job.options.keep_files:
        it.console.say(f"kept: {job_dir.attempts}")
        return
    for folder in (job_dir.downloads, job_dir.archives, *([] if it.disks_matter else [job_dir.attempts])):
        try:
            if folder.exists():
                records.remove_tree(folder)
        except OSError as error:
            it.console.say(f"warning: {error.filename} could not be removed: {error.strerror}")
