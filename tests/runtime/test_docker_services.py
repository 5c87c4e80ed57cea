"""What containers get of the caller's machine: S3 keys as SageMaker gives them, an S3 server on localhost, our code."""

import json
import os
import socket
import threading
from pathlib import Path
from typing import Any

import pytest
from tests import harness
from tests.harness import ML, files, run
from tests.hosts import PATIENCE_SECONDS

from optml.backends import Launch, docker_host
from optml.backends.docker_services import Services, loopback_address, with_address
from optml.errors import UserError
from optml.jobdir import HostDir
from optml.s3 import has_credentials

KEYS = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"}


@pytest.fixture
def container(monkeypatch: pytest.MonkeyPatch, docker_image: Any) -> None:
    docker_image("python")
    monkeypatch.setattr(harness, "backend_in_use", "docker")


@pytest.mark.docker
@pytest.mark.usefixtures("container")
def test_boto3_in_a_container_reads_a_bucket_of_a_server_on_localhost(tmp_path: Path, s3: Any) -> None:
    """With the real library, nothing configured in the container: keys and address come from the platform."""
    bucket = s3.new_bucket()
    s3.client.put_object(Bucket=bucket, Key="a/b.txt", Body=b"hello")
    script = ML + (
        "import boto3\n"
        f"(ml / 'model/read').write_bytes(boto3.client('s3').get_object(Bucket={bucket!r}, Key='a/b.txt')['Body'].read())\n"
        "(ml / 'output/data/method').write_text(boto3.Session().get_credentials().method)\n"
        "(ml / 'output/data/variables').write_text(' '.join(sorted(name for name in os.environ if name.startswith('AWS'))))\n"
    )
    done = run(tmp_path, script, mount_code=True)
    assert done.model == {"read": b"hello"}, done.log
    variables = set(done.output["variables"].decode().split())
    if os.geteuid() == 0:
        assert done.output["method"] == b"container-role"
        assert not variables & KEYS
        assert "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI" in variables
    else:
        assert done.output["method"] == b"env"


@pytest.mark.docker
@pytest.mark.usefixtures("container", "s3")
def test_an_isolated_container_gets_neither_keys_nor_the_way_to_a_server(tmp_path: Path) -> None:
    script = ML + "(ml / 'output/data/variables').write_text(' '.join(os.environ))\n"
    done = run(tmp_path, script, network_isolation=True)
    variables = set(done.output["variables"].decode().split())
    assert not variables & KEYS
    assert "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI" not in variables


@pytest.mark.docker
@pytest.mark.usefixtures("container", "s3")
def test_keys_that_the_request_gives_stand(tmp_path: Path) -> None:
    script = ML + "(ml / 'output/data/environment').write_text(json.dumps(dict(os.environ)))\n"
    done = run(
        tmp_path, "import json\n" + script, environment={"AWS_ACCESS_KEY_ID": "mine", "AWS_SECRET_ACCESS_KEY": "x"}
    )
    environment = json.loads(done.output["environment"])
    assert environment["AWS_ACCESS_KEY_ID"] == "mine"
    assert "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI" not in environment


@pytest.mark.docker
@pytest.mark.usefixtures("container")
def test_mounted_code_runs_in_a_plain_image_and_says_so(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    rows = "".join(f"{row % 2},{row % 2 + row / 100}\n" for row in range(60))
    data = files(tmp_path / "data", {"train.csv": rows})
    done = run(
        tmp_path,
        image="xgboost",
        entrypoint=None,
        mount_code=True,
        channels={"train": {"uri": f"{data}/", "content_type": "text/csv"}},
        hyperparameters={"num_round": "2", "objective": "binary:logistic"},
        logs=True,
    )
    assert done.describe["TrainingJobStatus"] == "Completed", done.log
    assert "xgboost with mounted code on 1 host, docker backend" in capfd.readouterr().out
    assert "xgboost-model" in done.model


def test_mounted_code_is_for_containers_of_ours(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--mount-code is for --backend docker"):
        run(tmp_path, mount_code=True)
    with pytest.raises(UserError, match=r"--mount-code mounts optml's own code, and the image 'busybox:1' has none"):
        run(tmp_path, mount_code=True, backend="docker", image="busybox:1", entrypoint=["true"])


@pytest.mark.docker
@pytest.mark.usefixtures("container")
def test_a_host_gets_no_more_than_its_instance_type_has_if_asked(tmp_path: Path) -> None:
    script = ML + (
        "limits = [Path('/sys/fs/cgroup/memory/memory.limit_in_bytes'), Path('/sys/fs/cgroup/memory.max')]\n"
        "(ml / 'output/data/limit').write_text(next(file for file in limits if file.exists()).read_text())\n"
    )
    done = run(tmp_path, script, instance_type="ml.m5.large", instance_limits=True)
    assert int(done.output["limit"]) == 8 * 2**30


# The rules, without a container.


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://127.0.0.1:9000", ("127.0.0.1", 9000)),
        ("http://localhost:9000/x", ("127.0.0.1", 9000)),
        ("https://localhost", ("127.0.0.1", 443)),
        ("http://[::1]:80", ("::1", 80)),
        ("http://127.8.8.8", ("127.8.8.8", 80)),
        ("http://minio:9000", None),
        ("https://s3.eu-west-1.amazonaws.com", None),
        ("", None),
    ],
)
def test_a_loopback_address_is_told_from_others(url: str, expected: tuple[str, int] | None) -> None:
    assert loopback_address(url) == expected


def test_an_ordinary_users_endpoint_leads_over_the_bridge() -> None:
    assert with_address("http://localhost:9000/path", "172.17.0.1:4242") == "http://172.17.0.1:4242/path"
    made = Services({"AWS_ENDPOINT_URL": "http://localhost:9000"}, {}, inside=False, gateway=lambda: "127.0.0.1")
    try:
        port = int(made.environment["AWS_ENDPOINT_URL"].rpartition(":")[2])
        assert port not in (0, 9000)
        assert not made.wanted, "nothing is left to open once the container runs"
    finally:
        made.close()
    desktop = Services(
        {"AWS_ENDPOINT_URL": "http://localhost:9000"}, {}, inside=False, gateway=lambda: "host.docker.internal"
    )
    assert desktop.environment == {"AWS_ENDPOINT_URL": "http://host.docker.internal:9000"}
    remote = Services({"AWS_ENDPOINT_URL": "https://s3.example.com"}, {}, inside=False, gateway=lambda: "127.0.0.1")
    assert remote.environment == {}


def test_the_way_over_the_bridge_is_for_the_jobs_own_container() -> None:
    with socket.create_server(("127.0.0.1", 0)) as target:
        services = Services(
            {"AWS_ENDPOINT_URL": f"http://localhost:{target.getsockname()[1]}"},
            {},
            inside=False,
            gateway=lambda: "127.0.0.1",
        )
        try:
            assert services.guarded
            host, _, port = services.environment["AWS_ENDPOINT_URL"].rpartition("/")[2].partition(":")
            with (
                socket.create_connection((host, int(port)), source_address=("127.0.0.1", 0)) as early,
                socket.create_connection((host, int(port)), source_address=("127.0.0.3", 0)) as stranger,
            ):
                services.admit({"127.0.0.1"})
                assert stranger.recv(1) == b"", "turned away"
                early.sendall(b"hello")
                connection, _ = target.accept()
                with connection:
                    assert connection.recv(5) == b"hello"
        finally:
            services.close()


def test_credentials_are_promised_only_where_there_may_be_some(tmp_path: Path) -> None:
    assert not has_credentials({"HOME": str(tmp_path)})
    assert has_credentials({"HOME": str(tmp_path), "AWS_PROFILE": "work"})
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws" / "credentials").write_text("[default]\n")
    assert has_credentials({"HOME": str(tmp_path)})


def test_a_broken_login_keeps_no_job_from_starting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "no-such-profile")
    for name in KEYS:
        monkeypatch.delenv(name, raising=False)
    services = Services({}, os.environ, inside=False)
    assert services.environment == {}
    assert "no-such-profile" in services.trouble


class StuckEngine:
    """Stands in for the client of an engine that neither ends a container nor says when it has ended."""

    def __init__(self) -> None:
        self.api = self
        self.answers = threading.Event()

    def attach_socket(self, *_: Any, **__: Any) -> Any:
        ours, theirs = socket.socketpair()
        theirs.close()
        return ours

    def wait(self, *_: Any, **__: Any) -> Any:
        self.answers.wait(PATIENCE_SECONDS)
        raise OSError("gone after all")

    def start(self, *_: Any, **__: Any) -> None: ...

    kill = remove_container = start


def test_an_engine_that_answers_late_writes_into_nobodys_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("docker.utils.socket")  # as connect() has, before any thread
    monkeypatch.setattr(docker_host, "KILL_SECONDS", 0.1)
    engine: Any = StuckEngine()
    launch = Launch(
        host="algo-1",
        argv=("x",),
        environment={},
        working_dir=None,
        host_dir=HostDir(tmp_path),
        log_file=tmp_path / "log",
    )
    services = Services({}, {}, inside=True)
    host = docker_host.DockerHost(engine, launch, "container", [], services, on_gone=lambda: None)
    host.start()
    host.kill()
    # They get the lowest free numbers, the pipe's among them.
    others = [(tmp_path / f"other-{number}").open("wb") for number in range(8)]
    waiter = next(thread for thread in threading.enumerate() if thread.name == "container-wait")
    engine.answers.set()
    waiter.join(PATIENCE_SECONDS)
    for other in others:
        other.close()
    assert [file.read_bytes() for file in tmp_path.glob("other-*")] == [b""] * 8
