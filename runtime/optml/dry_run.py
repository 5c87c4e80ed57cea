"""What a job would do, without doing it: its completed request, the launches that it would make, what of it is only here."""

import re
import time
from collections.abc import Iterator, Mapping
from typing import Any

from optml.backends import Backend
from optml.images import Image
from optml.jobdir import JobDir
from optml.spec import TrainingJob

PASSWORD_IN_URL = re.compile(r"(//[^/@:\s]*:)[^/@\s]+@")  # of a proxy, of a package index


def dry_run(job: TrainingJob, image: Image, backend: Backend) -> dict[str, Any]:
    """The completed request, and the launches that it would make. Touches nothing."""
    from optml import machine, plan

    launches = plan.plan(
        job,
        JobDir.of(job.name),
        image,
        backend,
        attempt=1,
        started=time.time(),
        mounts={},
        cpus=machine.cpu_numbers(),
        gpus=machine.gpu_numbers() if plan.wants_gpus(job) else (),
    )
    return {
        "request": dict(job.request),
        "backend": backend.name,
        "warnings": list(job.warnings),
        "only_here": list(only_here(job.request)),
        "launches": [
            {
                "host": launch.host,
                **({"image": launch.image, "after_entrypoint": launch.after_entrypoint} if launch.image else {}),
                "argv": list(launch.argv),
                "working_dir": launch.working_dir,
                "environment": {
                    name: PASSWORD_IN_URL.sub(r"\1...@", value)
                    for name, value in launch.environment.items()
                    if "SECRET" not in name and "TOKEN" not in name
                },
                "log_file": str(launch.log_file),
                "cpus": list(launch.cpus or ()),
                "gpus": list(launch.gpus),
            }
            for launch in launches
        ],
    }


def only_here(request: Mapping[str, Any]) -> Iterator[str]:
    """What AWS could not take of a request: the rest of it could be sent as it is."""
    from optml.images import ECR_URI
    from optml.request import OUTPUT_URIS
    from optml.script_mode import SUBMIT_DIRECTORY, local_source

    image = request["AlgorithmSpecification"].get("TrainingImage")
    if image and not ECR_URI.fullmatch(image):
        yield f"AlgorithmSpecification.TrainingImage {image}: AWS wants the URI of an image in ECR"
    if local_source(request.get("HyperParameters", {})) is not None:
        yield f"HyperParameters.{SUBMIT_DIRECTORY}: upload the code as a tar.gz file, give its s3:// URI"
    for channel in request.get("InputDataConfig", ()):
        if channel["DataSource"].get("S3DataSource", {}).get("S3Uri", "").startswith("file://"):
            yield f"InputDataConfig: channel {channel['ChannelName']!r} is of this machine: upload it, give its s3:// URI"
    for field, name in OUTPUT_URIS:
        if str(request.get(field, {}).get(name, "")).startswith("file://"):
            yield f"{field}.{name}: give an s3:// URI"
