"""From how the last attempt ended to the end of the job: outputs leave the hosts, then the last record and the last lines."""

from collections.abc import Mapping, Sequence

from optml import record as records
from optml.attempt import Attempt
from optml.collect import NO_REASON, collect_outputs, failure_reason
from optml.console import Console, duration_text, size_text
from optml.errors import OptmlError, PlatformError
from optml.logs import last_line
from optml.running import Run
from optml.supervise import Ended, Why

STOPPED_STATUS = {Why.STOPPED: "Stopped", Why.OUT_OF_TIME: "MaxRuntimeExceeded", Why.OUT_OF_WAIT: "MaxWaitTimeExceeded"}


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
        it.console.say(f"warning: {warning}", important=True)
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
        if reason is not None and reason.startswith(NO_REASON):
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
