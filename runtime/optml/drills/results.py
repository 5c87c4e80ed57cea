"""Whether the result is the same: final metrics, curves, files of the model."""

import hashlib
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import IO

from optml import objects, transfers
from optml.drills.evidence import Evidence
from optml.errors import OptmlError


@dataclass(frozen=True, kw_only=True)
class MetricPair:
    name: str
    baseline: float | None
    disturbed: float | None
    tolerance: float
    noise: float = 0.0  # how far apart the two runs were before the first interruption, at most; 0 where nobody knows

    @property
    def is_noise(self) -> bool:
        """Not equal, and no further apart than the two runs were when nothing had been interrupted yet."""
        if self.baseline is None or self.disturbed is None or self.is_equal:
            return False
        return abs(self.baseline - self.disturbed) <= NOISE_TIMES * self.noise

    @property
    def is_equal(self) -> bool:
        if self.baseline is None or self.disturbed is None:
            return False
        return abs(self.baseline - self.disturbed) <= self.tolerance * max(
            abs(self.baseline), abs(self.disturbed), 1e-12
        )


def compare_metrics(baseline: Evidence, disturbed: Evidence, *, tolerance: float) -> tuple[MetricPair, ...]:
    """`tolerance`: of the bigger of the two values."""
    ours, theirs = baseline.final_metrics, disturbed.final_metrics
    return tuple(
        MetricPair(
            name=name,
            baseline=ours.get(name),
            disturbed=theirs.get(name),
            tolerance=tolerance,
            noise=noise_before(_curve_of(baseline, name), disturbed, name),
        )
        for name in sorted({*ours, *theirs})
    )


NOISE_TIMES = 5  # further apart than so many times the noise is no noise


def _curve_of(job: Evidence, metric: str) -> dict[int, float]:
    return {step: values[metric] for attempt in job.attempts for step, values in attempt.curve if metric in values}


def noise_before(known: Mapping[int, float], disturbed: Evidence, metric: str) -> float:
    """How far a curve was from the undisturbed one before the first interruption, at most."""
    curve = disturbed.attempts[0].curve
    return max(
        (abs(values[metric] - known[step]) for step, values in curve if metric in values and step in known), default=0.0
    )


@dataclass(frozen=True, kw_only=True)
class Jump:
    """The disturbed curve leaves the baseline's when the job goes on."""

    metric: str
    attempt: int
    step: int
    baseline: float
    disturbed: float
    noise: float  # how far apart the two were before the first interruption, at most


def find_jump(baseline: Evidence, disturbed: Evidence) -> Jump | None:
    """The first value after a restart that is further from the baseline's than before any interruption, by far."""
    for metric in curve_metrics(baseline, disturbed):
        known = _curve_of(baseline, metric)
        if len(known) < 2:
            continue
        size = max(known.values()) - min(known.values()) or max(abs(value) for value in known.values()) or 1.0
        noise = noise_before(known, disturbed, metric)
        for attempt in disturbed.attempts[1:]:
            for step, values in attempt.curve:
                if metric not in values or step not in known:
                    continue
                if abs(values[metric] - known[step]) > max(NOISE_TIMES * noise, 1e-4 * size):
                    return Jump(
                        metric=metric,
                        attempt=attempt.number,
                        step=step,
                        baseline=known[step],
                        disturbed=values[metric],
                        noise=noise,
                    )
    return None


def curve_metrics(baseline: Evidence, disturbed: Evidence) -> list[str]:
    """Metrics that are printed with a step, losses first."""
    names: dict[str, int] = {}
    for job in (baseline, disturbed):
        for attempt in job.attempts:
            for _, values in attempt.curve:
                for name in values:
                    names[name] = names.get(name, 0) + 1
    return sorted(names, key=lambda name: ("loss" not in name.lower(), -names[name], name))


def artifact_digests(job: Evidence) -> dict[str, str] | None:
    """SHA-256 of every file of the model artifact, wherever it lies; None if it is not there or cannot be read."""
    uri = job.describe.get("ModelArtifacts", {}).get("S3ModelArtifacts")
    if uri is None:
        return None
    found: dict[str, str] = {}
    try:
        if uri.endswith(".tar.gz"):
            with transfers.open_stream(uri) as stream, tarfile.open(fileobj=stream, mode="r|gz") as archive:
                for member in archive:
                    file = archive.extractfile(member) if member.isfile() else None
                    if file is not None:
                        found[member.name] = _digest(file)
            return found
        prefix = objects.join(uri, "")
        for info in objects.list_if_any(uri):
            with transfers.open_stream(info.uri) as stream:
                found[info.uri.removeprefix(prefix)] = _digest(stream)
    except (OSError, EOFError, tarfile.TarError, OptmlError):
        return None
    return found


def _digest(stream: IO[bytes]) -> str:
    digest = hashlib.sha256()
    while chunk := stream.read(transfers.CHUNK_BYTES):
        digest.update(chunk)
    return digest.hexdigest()


def artifact_differences(baseline: Mapping[str, str], disturbed: Mapping[str, str]) -> list[str]:
    return sorted(name for name in {*baseline, *disturbed} if baseline.get(name) != disturbed.get(name))
