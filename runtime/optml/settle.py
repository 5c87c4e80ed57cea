"""A job that has lost its supervisor: whoever asks about it ends what is left of it, and records that."""

from optml import record as records
from optml.backends import backend_named
from optml.clock import Clock
from optml.jobdir import HostDir, JobDir


def settle(job_dir: JobDir) -> bool:
    """If the job has lost its supervisor: end what is left of it and record that. True if there was something to do."""
    record = records.take_over(job_dir, Clock())
    if record is None:
        return False
    try:
        backend = backend_named(record.local["backend"])
        for folder in sorted(job_dir.attempts.glob("*/*")):
            backend.sweep(HostDir(folder))
        kept = f"; what the hosts had written is in {job_dir.attempts}" if job_dir.attempts.exists() else ""
        log = job_dir.supervisor_log
        said = f"; its own log is {log}" if log.exists() and log.stat().st_size else ""
        record.end(
            "Failed",
            "Failed",
            reason=f"InternalServerError: the process that ran this job (pid {record.local['supervisor_pid']}) was killed "
            f"or lost its machine{kept}; nothing that had been uploaded is lost{said}",
            at=last_sign_of_life(job_dir),
        )
    finally:
        record.close()
    return True


def last_sign_of_life(job_dir: JobDir) -> float:
    """Epoch seconds of the newest log line or record."""
    files = [job_dir.record_file, job_dir.metrics_file, *job_dir.logs.glob("*")]
    return max(file.stat().st_mtime for file in files if file.exists())
