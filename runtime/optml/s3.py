"""The S3 client of this process, whether there are credentials for it, and its errors in words.

boto3 is imported when the first s3:// URI is used.
"""

import contextlib
import os
import threading
import urllib.parse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from optml.errors import DataError, OptmlError, PlatformError

CONNECTIONS = 50  # ten objects side by side, each perhaps in parts
CREDENTIALS_REMEDY = "Run `aws configure`, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
ENDPOINT_VARIABLES = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")


class AccessRefused(DataError):
    """S3 knows the caller and says no, or does not know the caller."""


_clients: dict[tuple[tuple[str, str], ...], Any] = {}
_clients_lock = threading.Lock()


def client() -> Any:
    """The S3 client of this process: boto3's own chain of settings; made anew only if the environment's change."""
    settings = tuple(sorted(item for item in os.environ.items() if item[0].startswith("AWS_")))
    with _clients_lock:
        if settings not in _clients:
            _clients[settings] = _new_client()
        return _clients[settings]


def check_endpoint(variable: str, url: str) -> None:
    """DataError naming the variable if its value is no address of an S3 server. An empty one is none."""
    parts, port = urllib.parse.urlsplit(""), None
    with contextlib.suppress(ValueError):  # a port that is no number from 0 to 65535, half of an IPv6 address
        parts = urllib.parse.urlsplit(url)
        port = 80 if parts.port is None else parts.port
    if url and (parts.scheme not in ("http", "https") or not parts.hostname or not port):
        raise DataError(
            f"{variable} must be the address of an S3 server, as in http://localhost:9000 or https://s3.example.com, got {url!r}"
        )


def has_credentials(caller: Mapping[str, str]) -> bool:
    """Whether there may be some besides an instance's own, without asking the SDK, which takes a while."""
    named = (
        "AWS_ACCESS_KEY_ID",
        "AWS_PROFILE",
        "AWS_WEB_IDENTITY_TOKEN_FILE",
        "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
        "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    )
    if any(caller.get(name) for name in named):
        return True
    home = Path(caller.get("HOME", "/")) / ".aws"
    files = (
        caller.get("AWS_SHARED_CREDENTIALS_FILE") or home / "credentials",
        caller.get("AWS_CONFIG_FILE") or home / "config",
    )
    return any(Path(file).is_file() for file in files)


def check_credentials(uri: str) -> None:
    """DataError if it is certain, without asking anybody, that S3 would refuse to talk to this process."""
    boto_config = any(file.is_file() for file in (Path("/etc/boto.cfg"), Path.home() / ".boto"))
    asks_instance = os.environ.get("AWS_EC2_METADATA_DISABLED", "").lower() != "true"
    if uri.startswith("s3://") and not (has_credentials(os.environ) or asks_instance or boto_config):
        raise DataError(f"{uri}: no S3 credentials were found. {CREDENTIALS_REMEDY}")


def _new_client() -> Any:
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError

    config = Config(
        max_pool_connections=CONNECTIONS,
        retries={"mode": "standard", "max_attempts": 4},
        connect_timeout=10,
        # Other S3 servers know no trailing checksums; AWS computes its own.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    for variable in ENDPOINT_VARIABLES:
        check_endpoint(variable, os.environ.get(variable, ""))
    try:
        session = boto3.Session(region_name=os.environ.get("AWS_REGION"))
        made = session.client("s3", config=config)
        if not _is_aws(made):  # other servers seldom have a host name for each bucket
            made = session.client("s3", config=config.merge(Config(s3={"addressing_style": "path"})))
    except (BotoCoreError, ValueError) as error:
        raise DataError(f"S3 cannot be used: {error}; see ~/.aws/config and the AWS_ variables") from error
    return made


def _is_aws(made: Any) -> bool:
    host = urllib.parse.urlsplit(made.meta.endpoint_url).hostname or ""
    return host.endswith((".amazonaws.com", ".amazonaws.com.cn"))


@contextlib.contextmanager
def s3_errors(uri: str) -> Iterator[None]:
    """botocore's errors -> ours, naming the URI and the remedy."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except (BotoCoreError, ClientError) as error:
        raise s3_error(error, uri) from error


def s3_error(error: BaseException, uri: str) -> OptmlError:
    import botocore.exceptions as known

    bucket = uri.split("/")[2]
    if isinstance(error, known.NoCredentialsError | known.PartialCredentialsError | known.ProfileNotFound):
        return DataError(f"{uri}: no S3 credentials were found ({error}). {CREDENTIALS_REMEDY}")
    if isinstance(error, known.EndpointConnectionError | known.ConnectionError | known.HTTPClientError):
        return PlatformError(
            f"{uri}: the S3 endpoint {client().meta.endpoint_url}{_endpoint_source()} cannot be reached: {error}. "
            "Check the address, and that the server runs"
        )
    if isinstance(error, known.ParamValidationError):
        return DataError(f"{uri} cannot be an S3 URI: {' '.join(str(error).split())}")
    if isinstance(error, known.ClientError):
        code = error.response.get("Error", {}).get("Code", "")
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        message = error.response.get("Error", {}).get("Message", "")
        if code == "NoSuchBucket":
            return DataError(f"{uri}: there is no bucket {bucket!r} at {client().meta.endpoint_url}")
        if code in ("NoSuchKey", "404"):
            return DataError(f"{uri}: there is no such object")
        if code == "PreconditionFailed" or status == 412:
            return DataError(f"{uri} was replaced while it was read: start the job again when it is complete")
        if status in (401, 403) or code in ("ExpiredToken", "InvalidToken"):
            return AccessRefused(
                f"{uri}: S3 refused access ({code or status}: {message}); check the credentials and the bucket's policy"
            )
        if status >= 500 or status == 429:
            return PlatformError(f"{uri}: S3 answered {status} {code} after retries: {message}")
        return DataError(f"{uri}: S3 answered {status} {code}: {message}")
    return PlatformError(f"{uri}: {error}")


def _endpoint_source() -> str:
    for variable in ENDPOINT_VARIABLES:
        if os.environ.get(variable):
            return f" (from {variable})"
    return "" if _is_aws(client()) else " (endpoint_url of the AWS profile)"
