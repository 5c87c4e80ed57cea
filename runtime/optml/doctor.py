"""What works on this machine, and how to get what does not: `optml doctor`."""

import dataclasses
import os
import platform
import shutil
import sys
from collections.abc import Callable

from optml import machine
from optml.backends import backend_named
from optml.console import size_text
from optml.errors import UserError
from optml.images import known_images
from optml.jobdir import optml_home

LITTLE_DISK_BYTES = 5e9


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finding:
    """`works`: True, False, or None where it is a fact rather than a condition."""

    subject: str
    works: bool | None
    text: str
    remedy: str = ""

    @property
    def mark(self) -> str:
        return {True: "+", False: "-", None: " "}[self.works]

    def as_dict(self) -> dict[str, object]:
        return dataclasses.asdict(self)


def examine() -> list[Finding]:
    """Every check by trying; a check that breaks is itself a finding."""
    findings: list[Finding] = []
    checks: list[Callable[[], list[Finding]]] = [
        _machine,
        _home,
        _process_backend,
        _images,
        _gpus,
        _docker,
        _object_store,
    ]
    for check in checks:
        try:
            findings += check()
        except Exception as error:  # noqa: BLE001  (whatever it is, it is what the person wants to know)
            findings.append(Finding(subject=check.__name__.strip("_"), works=False, text=str(error)))
    return findings


def _machine() -> list[Finding]:
    cores = len(machine.cpu_numbers())
    text = (
        f"{platform.system()} {platform.release()}, {cores} CPUs, {size_text(machine.memory_bytes())} memory, "
        f"Python {platform.python_version()} ({sys.executable})"
    )
    return [Finding(subject="machine", works=None, text=text)]


def _home() -> list[Finding]:
    home = optml_home()
    try:
        home.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(home).free
    except OSError as error:
        remedy = "set OPTML_HOME to a folder of yours"
        return [Finding(subject="jobs folder", works=False, text=f"{home}: {error.strerror}", remedy=remedy)]
    writable = os.access(home, os.W_OK)
    enough = free > LITTLE_DISK_BYTES
    remedy = "" if writable and enough else "set OPTML_HOME to a folder of yours on a bigger disk"
    text = f"{home}, {size_text(free)} free" + ("" if writable else ", not writable")
    return [Finding(subject="jobs folder", works=writable and enough, text=text, remedy=remedy)]


def _process_backend() -> list[Finding]:
    can = backend_named("process").capabilities()
    whole = can.own_opt_ml and can.views and can.host_names
    parts = [
        name
        for name, has in (
            ("own /opt/ml", can.own_opt_ml),
            ("copy-free writable views", can.views),
            ("host names", can.host_names),
            ("network isolation", can.network_isolation),
            ("memory limits", can.memory_limit),
        )
        if has
    ]
    return [
        Finding(
            subject="process backend",
            works=whole,
            text=", ".join(parts) if parts else "relocated /opt/ml, one host",
            remedy=can.explanation,
        )
    ]


def _images() -> list[Finding]:
    return [
        Finding(
            subject=f"image {image.name}",
            works=not image.missing_modules,
            text=image.summary,
            remedy=image.remedy if image.missing_modules else "",
        )
        for image in known_images()
    ]


def _gpus() -> list[Finding]:
    numbers = machine.gpu_numbers()
    text = (
        f"{len(numbers)} NVIDIA GPU(s)" if numbers else "none (nvidia-smi finds none); GPU instance types are refused"
    )
    return [Finding(subject="GPUs", works=bool(numbers) or None, text=text)]


def _docker() -> list[Finding]:
    from optml.engine import connect, engine_info, is_rootless, shares_our_kernel

    subject = "docker backend"
    try:
        client = connect()
    except UserError as error:
        return [Finding(subject=subject, works=None, text=str(error))]
    info = engine_info(client)
    name = "rootless engine" if is_rootless(info) else "engine"
    text = f"{name} {info.get('ServerVersion')} ({info.get('OperatingSystem')}), copy-free writable views"
    remedy = ""
    if not shares_our_kernel(client):
        text = text.replace("copy-free writable views", "data is copied into writable views")
    if not info.get("MemoryLimit"):
        text, remedy = (
            f"{text}, no memory limits",
            "this engine's control groups cannot limit memory: --memory is refused",
        )
    return [Finding(subject=subject, works=True, text=text, remedy=remedy)]


def _object_store() -> list[Finding]:
    import boto3

    from optml import s3

    for variable in s3.ENDPOINT_VARIABLES:
        try:
            s3.check_endpoint(variable, os.environ.get(variable, ""))
        except UserError as error:
            return [Finding(subject="S3", works=False, text=str(error), remedy=f"set {variable} right, or unset it")]
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")

    session = boto3.Session()
    credentials = session.get_credentials()
    where = f"endpoint {endpoint}" if endpoint else "AWS's own endpoint"
    if credentials is None:
        return [
            Finding(
                subject="S3",
                works=None,
                text=f"no credentials; {where}. Local paths and file:// need none",
                remedy="for s3:// run `aws configure`, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
            )
        ]
    return [Finding(subject="S3", works=True, text=f"credentials from {credentials.method}; {where}")]
