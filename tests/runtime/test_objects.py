"""Objects of folders and of a real S3 server: listed, read, fetched and put, also when something breaks."""

import contextlib
import os
import secrets
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tests.contract.test_channels import FileStore, S3Store
from tests.s3 import S3, free_port

from optml import objects, transfers
from optml.errors import DataError, OptmlError, PlatformError
from optml.s3 import client

IS_ROOT = os.geteuid() == 0


@pytest.fixture(params=["file", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> FileStore:
    """An empty place for objects: `uri` without a slash at its end, and `put`."""
    if request.param == "file":
        return FileStore(tmp_path / "store")
    s3 = request.getfixturevalue("s3")
    bucket = s3.new_bucket()
    return ServedStore(s3.folder / bucket, f"s3://{bucket}")


class ServedStore(FileStore):
    """Objects of the S3 server, put through the folder that it serves: rclone may take seconds for a PUT."""

    def __init__(self, folder: Path, uri: str):
        super().__init__(folder)
        self.uri = uri


def keys(uri: str, found: list[objects.ObjectInfo]) -> list[str]:
    return [info.uri.removeprefix(f"{uri}/") for info in found]


# Listing and reading.


def test_objects_are_listed_by_the_bytes_of_their_keys(store: Any) -> None:
    names = ["p/Z", "p/a", "p/a.b", "p/b/c", "p/b.c", "p/é", "p/～", "p/😀", "p/10", "p/9"]
    uri = store.put(dict.fromkeys(names, "x"))
    assert keys(uri, objects.list_objects(f"{uri}/p/")) == sorted(names, key=str.encode)


@pytest.mark.parametrize(
    ("prefix", "expected"),
    [
        ("p/", {"p/en/a.txt": "en/a.txt", "p/test": "test"}),
        ("p", {"p/en/a.txt": "en/a.txt", "p/test": "test"}),
        ("data/train", {"data/train-1.csv": "train-1.csv", "data/train-2.csv": "train-2.csv"}),
        ("data/train-1.csv", {"data/train-1.csv": "train-1.csv"}),
        ("dat", {f"data/{name}": f"data/{name}" for name in ("train-1.csv", "train-2.csv", "x/train")}),
    ],
)
def test_a_prefix_gives_these_keys_at_these_paths(store: Any, prefix: str, expected: dict[str, str]) -> None:
    uri = store.put(
        dict.fromkeys(["p/en/a.txt", "p/test", "data/train-1.csv", "data/train-2.csv", "data/x/train"], "x")
    )
    found = objects.list_objects(f"{uri}/{prefix}")
    paths = {info.uri.removeprefix(f"{uri}/"): objects.relative_path(f"{uri}/{prefix}", info.key) for info in found}
    assert paths == expected
    assert all(info.size_bytes == 1 for info in found)


def test_folder_markers_are_no_objects(s3_with_markers: S3) -> None:
    store = S3Store(s3_with_markers)
    uri = store.put({"p/": "", "p/a": "a", "p/sub/": ""})
    assert keys(uri, objects.list_objects(f"{uri}/p/")) == ["p/a"]
    with pytest.raises(DataError, match="No S3 objects found"):
        objects.list_objects(f"{uri}/p/sub/")


NAMES = ["a b", " x ", "größe", "日本語", "100%", "%2F", "a+b", "x#y", "q?z=1&w", 'it\'s "it"', "(~!*;:@=,$)[{}]", "é"]


def test_every_character_of_a_key_is_kept(store: Any, tmp_path: Path) -> None:
    contents: dict[str, str | bytes] = {f"p/{name}/{name}": name for name in NAMES}
    uri = store.put(contents)
    found = objects.list_objects(f"{uri}/p/")
    assert set(keys(uri, found)) == set(contents)
    assert {key: transfers.read_bytes(f"{uri}/{key}").decode() for key in contents} == contents
    transfers.upload_files([(write(tmp_path / str(n), name), f"{uri}/up/{name}") for n, name in enumerate(NAMES)])
    assert set(keys(uri, objects.list_objects(f"{uri}/up/"))) == {f"up/{name}" for name in NAMES}
    transfers.delete(f"{uri}/up/{NAMES[0]}")
    transfers.delete(f"{uri}/up/{NAMES[0]}")
    assert len(objects.list_if_any(f"{uri}/up")) == len(NAMES) - 1
    if isinstance(store, ServedStore):
        targets = [tmp_path / "got" / objects.relative_path(f"{uri}/p/", info.key) for info in found]
        transfers.download(list(zip(found, targets, strict=True)))
        assert [target.read_text() for target in targets] == [info.key.rpartition("/")[2] for info in found]


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_one_object_can_be_asked_for_and_none_is_an_error(store: Any) -> None:
    uri = store.put({"p/a": "12345"})
    assert objects.stat_object(f"{uri}/p/a").size_bytes == 5
    assert [info.size_bytes for info in objects.stat_objects([f"{uri}/p/a"] * 3)] == [5, 5, 5]
    for ask in (objects.stat_object, transfers.read_bytes):
        with pytest.raises(DataError, match="p/b"):
            ask(f"{uri}/p/b")
    assert objects.list_if_any(f"{uri}/nothing") == []


def test_a_name_that_nearly_exists_is_suggested(tmp_path: Path) -> None:
    write(tmp_path / "training" / "a", "x")
    with pytest.raises(DataError, match="near names there: training"):
        objects.list_objects(f"file://{tmp_path}/trainnig")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="has no files in it"):
        objects.list_objects(f"file://{tmp_path}/empty/")
    with pytest.raises(DataError, match=r"there is no folder .*/nowhere"):
        objects.list_objects(f"file://{tmp_path}/nowhere/train")


@pytest.mark.parametrize(
    "uri", ["http://x/y", "x", "file://a/b", "s3:/x", "s3://b/\0", "file:///a\0b", "s3://b/\ud800"]
)
def test_what_is_no_uri_is_refused(uri: str) -> None:
    with pytest.raises(DataError):
        objects.list_objects(uri)


# Paths under a channel.


@pytest.mark.parametrize("path", ["../x", "a/../../x", "a//b", "/x", "a/./b", ".", "..", "", "a/", "a\0b", "n" * 256])
def test_a_key_that_would_leave_the_folder_is_refused(path: str) -> None:
    with pytest.raises(DataError, match="s3://b/key"):
        objects.check_paths([(path, "s3://b/key")])


def test_two_keys_that_want_one_place_are_refused() -> None:
    with pytest.raises(DataError, match="s3://b/2 and s3://b/1 would both be 'a'"):
        objects.check_paths([("a", "s3://b/1"), ("a", "s3://b/2")])
    for pair in ([("a", "s3://b/1"), ("a/b", "s3://b/2")], [("a/b", "s3://b/2"), ("a", "s3://b/1")]):
        with pytest.raises(DataError, match="s3://b/1 would be a file and s3://b/2 would need a folder"):
            objects.check_paths(pair)
    objects.check_paths([("a", "1"), ("a.b", "2"), ("ab/c", "3"), ("x/y", "4"), ("x/z", "5"), ("é" * 127, "6")])


PARTS = st.sampled_from(["a", "b", "ab", "a.b", "..", ".", "", "ü"])
KEYS = st.lists(PARTS, min_size=1, max_size=4).map("/".join)


@given(prefix=KEYS, rests=st.lists(st.one_of(KEYS, st.text(max_size=5)), min_size=1, max_size=5))
@example(prefix="a", rests=["/b", "b"])
@example(prefix="a/", rests=["../b"])
def test_no_key_lies_outside_its_channel_whatever_the_prefix(prefix: str, rests: list[str]) -> None:
    found = sorted({prefix + rest for rest in rests})
    placed = [(objects.relative_path(f"s3://bucket/{prefix}", key), key) for key in found]
    for path, key in placed:
        begin = key[: prefix.rfind("/") + 1]
        assert key in (begin + path, f"{prefix}/{path}"), "the path is the end of its key"
    with contextlib.suppress(DataError):
        objects.check_paths(placed)
        resolved = [os.path.normpath(f"/channel/{path}") for path, _ in placed]
        assert all(path.startswith("/channel/") for path in resolved)
        assert resolved == [f"/channel/{path}" for path, _ in placed]
        assert len(set(resolved)) == len(placed)
        assert not any(one != other and other.startswith(f"{one}/") for one in resolved for other in resolved)


# Links and special files.


def test_links_are_followed_and_marked(tmp_path: Path) -> None:
    write(tmp_path / "outside" / "deep" / "b", "22")
    write(tmp_path / "data" / "a", "1")
    (tmp_path / "data" / "file").symlink_to("../outside/deep/b")
    (tmp_path / "data" / "folder").symlink_to(tmp_path / "outside")
    found = objects.list_objects(f"file://{tmp_path}/data/")
    assert [(info.path, info.size_bytes, info.is_link) for info in found] == [
        (tmp_path / "data" / "a", 1, False),
        (tmp_path / "data" / "file", 2, True),
        (tmp_path / "data" / "folder" / "deep" / "b", 2, True),
    ]


@pytest.mark.parametrize("target", [".", "..", "sub", "{data}", "{data}/sub/..", "loop"])
def test_a_circle_of_links_is_named(tmp_path: Path, target: str) -> None:
    data = tmp_path / "data"
    write(data / "sub" / "a", "1")
    (data / "sub" / "loop").symlink_to(target.format(data=data) if target != "sub" else data / "sub")
    with pytest.raises(DataError, match="loop"):
        objects.list_objects(f"file://{data}/")


def test_a_circle_over_two_links_is_named(tmp_path: Path) -> None:
    write(tmp_path / "data" / "a", "1")
    (tmp_path / "other").mkdir()
    (tmp_path / "data" / "there").symlink_to(tmp_path / "other")
    (tmp_path / "other" / "back").symlink_to(tmp_path / "data")
    with pytest.raises(DataError, match=r"there/back leads back to a folder that it is in"):
        objects.list_objects(f"file://{tmp_path}/data/")


def test_a_link_to_nothing_and_what_is_no_file_are_named(tmp_path: Path) -> None:
    write(tmp_path / "a", "1")
    (tmp_path / "dangling").symlink_to("gone")
    with pytest.raises(DataError, match=r"dangling: a symbolic link to nothing \(gone\); remove or mend it"):
        objects.list_objects(f"file://{tmp_path}/")
    (tmp_path / "dangling").unlink()
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(DataError, match="fifo is no plain file"):
        objects.list_objects(f"file://{tmp_path}/")
    for ask in (objects.stat_object, transfers.read_bytes):
        with pytest.raises(DataError, match="fifo is no plain file"):
            ask(f"file://{tmp_path}/fifo")


def test_folders_may_be_very_deep(tmp_path: Path) -> None:
    before = Path.cwd()
    os.chdir(tmp_path)
    try:
        for _ in range(1500):
            os.mkdir("d")  # noqa: PTH102  (relative, as the whole path grows long)
            os.chdir("d")
        Path("a").write_text("deep")
    finally:
        os.chdir(before)
    found = objects.list_objects(f"file://{tmp_path}/")
    assert [info.size_bytes for info in found] == [4]
    subprocess.run(["rm", "-rf", str(tmp_path / "d")], check=True)  # pytest's own removal is recursive


@pytest.fixture
def another_user() -> Iterator[Path]:
    """A folder of root's, looked at as somebody else: root itself may read everything."""
    if not IS_ROOT:
        pytest.skip("only root can become another user")
    with tempfile.TemporaryDirectory(prefix="optml-test-") as name:  # pytest's own folders are closed to others
        Path(name).chmod(0o755)
        yield Path(name)


def test_what_may_not_be_read_is_named(another_user: Path) -> None:
    write(another_user / "files" / "a", "1").chmod(0)
    write(another_user / "open", "1")
    write(another_user / "folders" / "closed" / "a", "1")
    (another_user / "folders" / "closed").chmod(0)
    os.seteuid(65534)
    try:
        with pytest.raises(DataError, match=r"cannot list .*/closed: Permission denied; see that you may read it"):
            objects.list_objects(f"file://{another_user}/folders/")
        with pytest.raises(DataError, match=r"cannot read .*/files/a: Permission denied"):
            transfers.read_bytes(f"file://{another_user}/files/a")
        with pytest.raises(PlatformError, match=r"cannot write .*/files/new: Permission denied"):
            transfers.upload_file(another_user / "open", f"file://{another_user}/files/new")
    finally:
        os.seteuid(0)


# Fetching.


def served(s3: S3, contents: Mapping[str, str | bytes]) -> str:
    """Put objects into a new bucket of the server."""
    assert s3.folder is not None
    bucket = s3.new_bucket()
    return ServedStore(s3.folder / bucket, f"s3://{bucket}").put(dict(contents))


class Progress:
    """Counts, and notices if two threads count at once."""

    def __init__(self) -> None:
        self.size_bytes, self.calls = 0, 0
        self._busy = threading.Lock()

    def __call__(self, size_bytes: int) -> None:
        assert self._busy.acquire(blocking=False), "two threads at once"
        self.size_bytes += size_bytes
        self.calls += 1
        self._busy.release()


def fetch(uri: str, folder: Path, **more: Any) -> dict[str, bytes]:
    found = objects.list_objects(f"{uri}/")
    targets = {key: folder / key for key in keys(uri, found)}
    transfers.download(list(zip(found, targets.values(), strict=True)), **more)
    return {key: target.read_bytes() for key, target in targets.items()}


def left_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


BIG_BYTES = transfers.MANY_PARTS_BYTES + 12_345


@pytest.fixture(scope="module")
def big() -> bytes:
    return os.urandom(BIG_BYTES)


def test_small_and_big_objects_arrive_whole_and_the_progress_adds_up(s3: S3, tmp_path: Path, big: bytes) -> None:
    contents = {"p/big": big, "p/none": b"", "p/sub/one": b"1"}
    contents |= {f"p/many/{number:03}": os.urandom(number * 1000) for number in range(50)}
    uri = served(s3, contents)
    progress = Progress()
    assert fetch(uri, tmp_path / "got", progress=progress) == contents
    assert progress.size_bytes == sum(len(content) for content in contents.values())
    assert left_in(tmp_path / "got") == set(contents)


def test_names_that_begin_alike_or_look_unfinished_do_not_meet(s3: S3, tmp_path: Path) -> None:
    long = "n" * 240
    names = [f"{long}{number}" for number in range(12)] + ["x", f"x{transfers.PARTIAL}", "é" * 120]
    contents = {f"p/{name}": os.urandom(200_000) for name in names}
    uri = served(s3, contents)
    assert fetch(uri, tmp_path / "got") == contents


def test_a_download_that_fails_leaves_whole_files_only(s3: S3, tmp_path: Path) -> None:
    uri = served(s3, {f"p/{number:02}": os.urandom(300_000) for number in range(30)})
    found = objects.list_objects(f"{uri}/p/")
    transfers.delete(f"{uri}/p/15")
    with pytest.raises(DataError, match=r"p/15: there is no such object"):
        transfers.download([(info, tmp_path / "got" / info.key) for info in found])
    files = [path for path in (tmp_path / "got").rglob("*") if path.is_file()]
    assert all(path.stat().st_size == 300_000 and transfers.PARTIAL not in path.name for path in files)
    assert not (tmp_path / "got" / "p" / "15").exists()


class Stop(Exception):
    """What a caller raises to end a download."""


@pytest.mark.parametrize("size", ["small", "big"])
def test_the_progress_can_end_a_download(s3: S3, tmp_path: Path, big: bytes, size: str) -> None:
    content = big if size == "big" else b"x" * 3_000_000
    uri = served(s3, {f"p/{number}": content for number in range(2)})
    calls = []

    def progress(size_bytes: int) -> None:
        calls.append(size_bytes)
        if len(calls) == 2:
            raise Stop

    with pytest.raises(Stop):
        fetch(uri, tmp_path / "got", progress=progress)
    assert len(calls) == 2
    assert left_in(tmp_path / "got") == set()


@pytest.mark.parametrize("size", ["small", "big"])
def test_an_object_that_changed_since_it_was_listed_is_named(s3: S3, tmp_path: Path, big: bytes, size: str) -> None:
    uri = served(s3, {"p/a": big if size == "big" else b"12345"})
    found = objects.list_objects(f"{uri}/p/")
    transfers.upload_file(write(tmp_path / "new", "123456"), f"{uri}/p/a")
    with pytest.raises(DataError, match=r"p/a had .* bytes when it was listed and has 6 now"):
        transfers.download([(found[0], tmp_path / "got" / "a")])
    assert left_in(tmp_path) == {"new"}


def test_a_disk_that_fills_up_in_the_middle_of_a_write_is_noticed(s3: S3, small_disk: Path) -> None:
    uri = served(s3, {"p/a": os.urandom(1_000_000)})  # one chunk, of which the disk takes a part without an error
    with pytest.raises(PlatformError, match=r"cannot write .*/p/a: no space left .* OPTML_HOME"):
        fetch(uri, small_disk)
    assert left_in(small_disk) == set()


def test_an_upload_that_fails_leaves_the_earlier_file(small_disk: Path, tmp_path: Path) -> None:
    target = write(small_disk / "out" / "model", "earlier")
    new = write(tmp_path / "new", os.urandom(1_000_000))
    for move in (False, True):
        with pytest.raises(PlatformError, match="no space left"):
            transfers.upload_file(new, f"file://{target}", move=move)
        assert target.read_text() == "earlier"
        assert left_in(small_disk) == {"out/model"}
        assert new.stat().st_size == 1_000_000


def test_an_upload_replaces_and_counts(store: Any, tmp_path: Path) -> None:
    uri = store.put({"out/model": "earlier"})
    progress = Progress()
    transfers.upload_file(write(tmp_path / "new", "newer and longer"), f"{uri}/out/model", progress=progress)
    assert transfers.read_bytes(f"{uri}/out/model") == b"newer and longer"
    assert progress.size_bytes == len("newer and longer")
    assert (tmp_path / "new").exists()
    transfers.upload_file(tmp_path / "new", f"{uri}/out/moved", move=True)
    assert transfers.read_bytes(f"{uri}/out/moved") == b"newer and longer"
    assert len(objects.list_objects(f"{uri}/out/")) == 2


# A server that is there but not well.


class CuttingProxy:
    """Stands before a server; each of the next `cuts` answers that is longer than `after_bytes` breaks off there."""

    def __init__(self, port: int):
        self.cuts, self.after_bytes, self.has_cut = 0, 0, threading.Event()
        self._upstream = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._lock = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._upstream))
                for each in ((client, server, False), (server, client, True)):
                    threading.Thread(target=self._forward, args=each, daemon=True).start()

    def _forward(self, source: socket.socket, target: socket.socket, is_answer: bool) -> None:
        passed = 0
        with contextlib.suppress(OSError):
            while part := source.recv(65536):
                target.sendall(part)
                passed += len(part)
                with self._lock:
                    if is_answer and self.cuts and passed > self.after_bytes:
                        self.cuts -= 1
                        self.has_cut.set()
                        break
        for each in (source, target):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()


@contextlib.contextmanager
def proxy_before(s3: S3, monkeypatch: pytest.MonkeyPatch) -> Iterator[CuttingProxy]:
    proxy = CuttingProxy(int(s3.client.meta.endpoint_url.rpartition(":")[2]))
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{proxy.port}")
    try:
        yield proxy
    finally:
        proxy.close()


def test_a_broken_connection_is_taken_up_where_it_broke(
    s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contents = {"p/a": os.urandom(BIG_BYTES), "p/b": os.urandom(5_000_000)}
    uri = served(s3, contents)
    with proxy_before(s3, monkeypatch) as proxy:
        proxy.cuts, proxy.after_bytes = 3, 2_000_000
        progress = Progress()
        assert fetch(uri, tmp_path / "got", progress=progress) == contents
        assert proxy.cuts == 0
        assert progress.size_bytes == sum(len(content) for content in contents.values()), "nothing is counted twice"
        proxy.cuts = 1
        assert transfers.read_bytes(f"{uri}/p/b") == contents["p/b"]
        assert proxy.cuts == 0


def test_a_connection_that_always_breaks_is_given_up(
    s3_with_markers: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = S3Store(s3_with_markers).put({"p/a": os.urandom(5_000_000)})
    found = objects.list_objects(f"{uri}/")
    with proxy_before(s3_with_markers, monkeypatch) as proxy:
        proxy.cuts, proxy.after_bytes = 10_000, 1_000_000
        with pytest.raises(PlatformError, match=r"reading .*/p/a broke off at byte .* of 5,000,000, 4 times"):
            transfers.download([(found[0], tmp_path / "a")], progress=lambda _: setattr(proxy, "after_bytes", 0))
    assert left_in(tmp_path) == set()


def test_an_object_that_is_replaced_while_it_is_read_is_never_mixed(
    s3_with_markers: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = S3Store(s3_with_markers)
    uri = store.put({"p/a": b"1" * 20_000_000})
    with proxy_before(s3_with_markers, monkeypatch) as proxy:
        proxy.cuts, proxy.after_bytes = 1, 1_000_000
        stream = transfers.open_stream(f"{uri}/p/a")
        assert proxy.has_cut.wait(10)
        store.put({"p/a": b"2" * 20_000_000})
        with pytest.raises(DataError, match="was replaced while it was read"):
            stream.read()


# Settings and refusals.


def everything_fails(uri: str, tmp_path: Path, match: str, kind: type[OptmlError] = DataError) -> None:
    file = write(tmp_path / "file", "x")
    info = objects.ObjectInfo(f"{uri}/a", "a", 1)
    for action in (
        lambda: objects.list_objects(f"{uri}/"),
        lambda: objects.stat_object(f"{uri}/a"),
        lambda: objects.stat_objects([f"{uri}/a"]),
        lambda: transfers.read_bytes(f"{uri}/a"),
        lambda: transfers.download([(info, tmp_path / "got" / "a")]),
        lambda: transfers.upload_file(file, f"{uri}/a"),
        lambda: transfers.delete(f"{uri}/a"),
    ):
        with pytest.raises(kind, match=match):
            action()
    assert left_in(tmp_path) == {"file"}


def test_without_credentials_the_remedy_is_named(tmp_path: Path) -> None:
    everything_fails("s3://bucket", tmp_path, r"s3://bucket/.*: no S3 credentials were found .* Run `aws configure`")


def test_a_profile_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    everything_fails("s3://bucket", tmp_path, r"nobody.*see ~/.aws/config and the AWS_ variables")


def test_an_endpoint_that_is_no_address_is_named(tmp_path: Path, s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "localhost")
    everything_fails(f"s3://{s3.new_bucket()}", tmp_path, r"AWS_ENDPOINT_URL_S3 must be the address of an S3 server")


@pytest.mark.usefixtures("s3")
def test_a_bucket_that_is_not_there_is_named(tmp_path: Path) -> None:
    everything = f"s3://no-such-{secrets.token_hex(4)}"
    file = write(tmp_path / "file", "x")
    for action in (
        lambda: objects.list_objects(f"{everything}/"),
        lambda: transfers.upload_file(file, f"{everything}/a"),
    ):
        with pytest.raises(DataError, match=r"there is no bucket 'no-such-.*' at http://127.0.0.1:"):
            action()
    with pytest.raises(DataError, match=r"cannot be an S3 URI: .*[Ii]nvalid bucket name"):
        objects.list_objects("s3://Not a bucket/x")


def test_refused_access_is_named(tmp_path: Path, s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = served(s3, {"a": "1"})
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    everything_fails(uri, tmp_path, r"S3 refused access .*check the credentials and the bucket's policy")


def test_an_empty_prefix_is_told_in_awss_words(s3: S3) -> None:
    with pytest.raises(DataError, match=r'No S3 objects found under S3 URL "s3://.*/x/" given in input data source'):
        objects.list_objects(f"s3://{s3.new_bucket()}/x/")


def test_an_endpoint_where_nobody_listens_is_named(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    address = f"http://127.0.0.1:{free_port()}"
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", address)
    with pytest.raises(
        PlatformError, match=rf"the S3 endpoint {address} \(from AWS_ENDPOINT_URL_S3\) cannot be reached"
    ):
        objects.list_objects(f"s3://{s3.new_bucket()}/x/")


@pytest.mark.parametrize("how", ["AWS_ENDPOINT_URL", "both", "profile", "service of a profile"])
def test_the_endpoint_may_be_set_as_for_any_aws_tool(
    how: str, s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = served(s3, {"p/a": "found"})
    # By name: the bucket must not become a part of the host's name, as it does for AWS.
    address = s3.client.meta.endpoint_url.replace("127.0.0.1", "localhost")
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3")
    if how == "AWS_ENDPOINT_URL":
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
    elif how == "both":
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", address)
    else:
        service = f"services = mine\n[services mine]\ns3 =\n  endpoint_url = {address}\n"
        lines = f"endpoint_url = {address}\n" if how == "profile" else service
        monkeypatch.setenv("AWS_CONFIG_FILE", str(write(tmp_path / "config", f"[profile local]\n{lines}")))
        monkeypatch.setenv("AWS_PROFILE", "local")
        assert [os.environ.pop(name) for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")]
        secret = f"[local]\naws_access_key_id = {s3_keys(s3)[0]}\naws_secret_access_key = {s3_keys(s3)[1]}\n"
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(write(tmp_path / "credentials", secret)))
    assert client().meta.endpoint_url == address
    assert transfers.read_bytes(objects.list_objects(f"{uri}/p/")[0].uri) == b"found"


def s3_keys(s3: S3) -> tuple[str, str]:
    found = s3.client._request_signer._credentials
    return found.access_key, found.secret_key
