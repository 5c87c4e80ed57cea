"""Which container engine is talked to, and what is said when none answers. The engines here can tell their version."""

import contextlib
import hashlib
import json
import os
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingUnixStreamServer

import pytest

import optml
from optml import engine, image_build
from optml.console import Console
from optml.errors import PlatformError, UserError


@contextlib.contextmanager
def an_engine(path: Path, version: str) -> Iterator[str]:
    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # every image is there
            told = {"Version": version, "ApiVersion": "1.44", "MinAPIVersion": "1.24"}
            self.answer({**told, "RepoTags": [], "MemoryLimit": False})

        def do_POST(self) -> None:  # a build, in which it dies
            self.rfile.read(int(self.headers["Content-Length"]))
            self.answer({"stream": "Step 2/9 : ARG BASE_IMAGE\n"})

        def answer(self, content: dict[str, object]) -> None:
            text = json.dumps(content).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_: object) -> None:
            pass

        def address_string(self) -> str:
            return "unix"

    path.parent.mkdir(parents=True, exist_ok=True)
    with ThreadingUnixStreamServer(str(path), Answers) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield f"unix://{path}"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home without a word about engines; its path is short, as sockets need."""
    for name in engine.SETTINGS:
        monkeypatch.delenv(name, raising=False)
    home = tmp_path_factory.mktemp("h")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(home / "run"))
    return home


def add_context(home: Path, name: str, host: str) -> None:
    folder = home / ".docker/contexts/meta" / hashlib.sha256(name.encode()).hexdigest()
    folder.mkdir(parents=True)
    (folder / "meta.json").write_text(json.dumps({"Name": name, "Endpoints": {"docker": {"Host": host}}}))


def answers() -> str:
    return str(engine.connect().version()["Version"])


def test_the_place_is_the_docker_clients(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DOCKER_HOST before DOCKER_CONTEXT before the current context."""
    with an_engine(home / "1", "from the host") as first, an_engine(home / "2", "named") as second:
        with an_engine(home / "3", "current") as third:
            add_context(home, "other", second)
            add_context(home, "mine", third)
            (home / ".docker/config.json").write_text(json.dumps({"currentContext": "mine"}))
            assert answers() == "current"
            monkeypatch.setenv("DOCKER_CONTEXT", "other")
            assert answers() == "named"
            monkeypatch.setenv("DOCKER_HOST", first)
            assert answers() == "from the host"
            assert engine.connect() is engine.connect()


@pytest.mark.parametrize("place", ["run/docker.sock", "run/podman/podman.sock", ".docker/run/docker.sock"])
def test_rootless_engines_podman_and_docker_desktop_are_found(home: Path, place: str) -> None:
    if Path("/var/run/docker.sock").exists() or Path("/run/podman/podman.sock").exists():
        assert f"unix://{home / place}" in [endpoint.address for endpoint in engine.usual_endpoints()]
        return
    with an_engine(home / place, "mine"):
        assert engine.seems_there()
        assert answers() == "mine"


def refusal() -> str:
    with pytest.raises(UserError) as caught:
        engine.connect()
    return str(caught.value)


def test_an_engine_that_was_chosen_and_is_away_is_named(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{home}/away")
    assert refusal() == (
        f"no container engine answers ({home}/away: not there); DOCKER_HOST says that it is there: start that engine, or choose "
        "another. Without containers: --backend process"
    )
    with socket.socket(socket.AF_UNIX) as left:  # as an engine that was killed leaves its socket
        left.bind(f"{home}/away")
    assert "Connection refused" in refusal()
    monkeypatch.setenv("DOCKER_HOST", "tcp://127.0.0.1:9")
    assert "tcp://127.0.0.1:9: Connection refused" in refusal()


@pytest.mark.usefixtures("home")
def test_what_is_no_engine_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def rude() -> None:
            for _ in range(1):
                connection, _ = listening.accept()
                connection.sendall(b"220 mail.example ESMTP\r\n")
                connection.close()

        thread = threading.Thread(target=rude)
        thread.start()
        monkeypatch.setenv("DOCKER_HOST", f"tcp://127.0.0.1:{listening.getsockname()[1]}")
        assert "no container engine answers (tcp://127.0.0.1:" in refusal()
        thread.join()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may open every socket")
def test_a_socket_that_this_user_may_not_open_is_told_with_the_remedy(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with an_engine(home / "closed", "closed") as address:
        (home / "closed").chmod(0)
        monkeypatch.setenv("DOCKER_HOST", address)
        assert f"({home}/closed: Permission denied); this user may not open {home}/closed: join its group" in refusal()


def test_a_context_that_is_not_there_is_told(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_CONTEXT", "nowhere")
    assert "DOCKER_CONTEXT names the docker context 'nowhere', which does not exist" in refusal()
    assert engine.seems_there()
    monkeypatch.delenv("DOCKER_CONTEXT")
    (home / ".docker").mkdir()
    (home / ".docker/config.json").write_text("{")
    assert "config.json, which says where the container engine is, cannot be read" in refusal()
    (home / ".docker/config.json").write_text('{"currentContext": "gone"}')
    assert "names the docker context 'gone', which does not exist" in refusal()
    add_context(home, "gone", "")
    assert "the docker context 'gone'" in refusal()
    assert "names no docker host" in refusal()


def test_an_engine_that_dies_in_the_middle_of_a_build_has_built_nothing(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tag may still name an older image."""
    with an_engine(home / "1", "mortal") as address:
        monkeypatch.setenv("DOCKER_HOST", address)
        with pytest.raises(PlatformError, match="the container engine went away at Step 2/9 : ARG BASE_IMAGE"):
            image_build.build("python", console=Console(silent=True))


def test_a_limit_that_the_engine_cannot_keep_is_refused(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with an_engine(home / "1", "without control groups") as address:
        monkeypatch.setenv("DOCKER_HOST", address)
        with pytest.raises(
            UserError, match="--memory cannot be had on this machine: its container engine's control groups"
        ):
            optml.train(image="example/image", backend="docker", memory_bytes=1 << 30)
