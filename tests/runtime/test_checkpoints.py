"""/opt/ml/checkpoints and its prefix: restored, mirrored while hosts run, never confused by what hosts do to their folders."""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.s3 import S3

from optml import objects, transfers
from optml.checkpoints import CLOSED_SECONDS, SETTLE_SECONDS, CheckpointMirror, is_open_for_writing, restore
from optml.clock import Clock
from optml.errors import DataError, PlatformError


class Turned(Clock):
    """A clock that only turns when it is told to, or when somebody sleeps."""

    def __init__(self) -> None:
        self.seconds = 1000.0
        self.on_sleep: Callable[[], object] = lambda: None

    def monotonic(self) -> float:
        return self.seconds

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds
        self.on_sleep()


class Job:
    """Hosts with checkpoint folders, and the mirror of one attempt."""

    def __init__(self, folder: Path, uri: str, *, count: int = 1):
        self.clock = Turned()
        self.uri = uri
        self.folders = {f"algo-{n}": folder / f"algo-{n}" / "ml" / "checkpoints" for n in range(1, count + 1)}
        for host_folder in self.folders.values():
            host_folder.mkdir(parents=True)
        self.restored = restore(uri, list(self.folders.values()))
        self.mirror = CheckpointMirror(self.folders, uri, clock=self.clock)

    def path(self, name: str, host: str = "algo-1") -> Path:
        return self.folders[host] / name

    def write(self, name: str, text: str, host: str = "algo-1") -> None:
        self.path(name, host).parent.mkdir(parents=True, exist_ok=True)
        self.path(name, host).write_text(text)

    def look(self, times: int = 1) -> None:
        """So many looks, one second apart."""
        for _ in range(times):
            self.mirror.sync()
            self.clock.seconds += 1.0


class Store:
    """A prefix, behind file:// or s3://."""

    def __init__(self, uri: str, put: Callable[[str, str], None]):
        self.uri, self.put = uri, put

    @property
    def content(self) -> dict[str, str]:
        prefix = objects.join(self.uri, "")
        return {
            info.uri.removeprefix(prefix): transfers.read_bytes(info.uri).decode()
            for info in objects.list_if_any(self.uri)
        }


@pytest.fixture
def local_store(tmp_path: Path) -> Store:
    folder = tmp_path / "store" / "prefix"

    def put(name: str, text: str) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)

    return Store(f"file://{folder}", put)


@pytest.fixture(params=["file", "s3"])
def store(request: pytest.FixtureRequest, local_store: Store) -> Store:
    if request.param == "file":
        return local_store
    s3: S3 = request.getfixturevalue("s3")
    bucket = s3.new_bucket()

    def put(name: str, text: str) -> None:
        s3.client.put_object(Bucket=bucket, Key=f"prefix/{name}", Body=text.encode())

    return Store(f"s3://{bucket}/prefix", put)


def test_what_is_under_the_prefix_is_on_every_host_before_the_start_c59(tmp_path: Path, store: Store) -> None:
    store.put("f1", "one")
    store.put("sub/f2", "two")
    job = Job(tmp_path, store.uri, count=3)
    assert job.restored == 2
    for host in job.folders:
        assert job.path("f1", host).read_text() == "one"
        assert job.path("sub/f2", host).read_text() == "two"
    job.write("f1", "written on algo-1", "algo-1")
    assert job.path("f1", "algo-2").read_text() == "one", "each host has copies of its own"
    assert store.content == {"f1": "one", "sub/f2": "two"}


def test_nothing_under_the_prefix_is_an_empty_folder_and_no_error(tmp_path: Path, store: Store) -> None:
    job = Job(tmp_path, store.uri)
    assert job.restored == 0
    assert list(job.folders["algo-1"].iterdir()) == []
    job.mirror.final()


def test_a_neighbour_whose_name_begins_alike_is_neither_restored_nor_removed(
    tmp_path: Path, local_store: Store
) -> None:
    local_store.put("../prefix-of-another/f", "not ours")
    job = Job(tmp_path, local_store.uri)
    assert job.restored == 0
    job.look(3)
    job.mirror.final()
    assert (tmp_path / "store" / "prefix-of-another" / "f").read_text() == "not ours"


def test_a_file_is_in_the_store_while_the_job_runs_and_a_second_job_sees_it_c60_c63(
    tmp_path: Path, store: Store
) -> None:
    job = Job(tmp_path / "first", store.uri)
    job.write("step-1/weights", "w")
    job.look(2)
    assert store.content == {"step-1/weights": "w"}
    job.write("step-1/weights", "changed")
    job.look(2)
    assert store.content == {"step-1/weights": "changed"}
    assert Job(tmp_path / "second", store.uri).path("step-1/weights").read_text() == "changed"


def test_a_restored_file_that_is_deleted_leaves_the_store_c61(tmp_path: Path, store: Store) -> None:
    store.put("f1", "one")
    store.put("f2", "two")
    job = Job(tmp_path, store.uri)
    job.path("f1").unlink()
    job.look(3)
    assert store.content == {"f2": "two"}
    job.write("f3", "three")
    job.look(2)
    job.path("f3").unlink()
    job.mirror.final()
    assert store.content == {"f2": "two"}


def test_what_others_put_there_meanwhile_is_not_pulled_and_not_removed_c62(tmp_path: Path, store: Store) -> None:
    job = Job(tmp_path, store.uri)
    store.put("theirs", "theirs")
    job.write("ours", "ours")
    job.look(3)
    job.path("ours").unlink()
    job.look(3)
    job.mirror.final()
    assert store.content == {"theirs": "theirs"}
    assert not job.path("theirs").exists()


def test_a_file_that_is_still_written_is_not_published(tmp_path: Path, local_store: Store) -> None:
    job = Job(tmp_path, local_store.uri)
    with job.path("weights").open("w") as file:
        for _ in range(5):
            file.write("w")
            file.flush()
            job.look(3)
            assert local_store.content == {}
    job.look(2)
    assert local_store.content == {"weights": "wwwww"}


def test_a_file_goes_when_two_looks_have_seen_it_closed(tmp_path: Path, local_store: Store) -> None:
    job = Job(tmp_path, local_store.uri)
    with job.path("weights").open("w") as file:
        file.write("w")
        file.flush()
        job.look(3)
    job.mirror.sync()
    assert local_store.content == {}, "its host may have died, and its death not be known yet"
    job.clock.seconds += CLOSED_SECONDS
    job.mirror.sync()
    assert local_store.content == {"weights": "w"}


def replaced(job: Job, text: str) -> None:
    job.write("temporary", text)
    job.path("temporary").replace(job.path("state"))


def test_a_file_that_is_replaced_before_each_look_goes_too(tmp_path: Path, store: Store) -> None:
    job = Job(tmp_path, store.uri)
    for number in range(4):
        replaced(job, f"version {number}")
        job.mirror.sync()
        assert store.content == ({"state": f"version {number - 1}"} if number else {}), "seen closed twice"
        job.clock.seconds += CLOSED_SECONDS
    job.mirror.sync()
    assert store.content == {"state": "version 3"}
    job.mirror.let_go()


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_of_what_was_replaced_goes_nothing_too_soon_nothing_that_was_open_and_nothing_afterwards(
    tmp_path: Path, local_store: Store
) -> None:
    before = open_files()
    job = Job(tmp_path, local_store.uri)
    replaced(job, "version 1")
    job.mirror.sync()
    with job.path("state").open("a") as file:  # the program goes on with what it renamed already
        replaced(job, "version 2")
        job.clock.seconds += CLOSED_SECONDS
        job.mirror.sync()
        assert local_store.content == {}, "somebody has it open"
        file.write("more")
    replaced(job, "another")
    job.mirror.sync()
    assert local_store.content == {}, "its host may have died, and its death not be known yet"
    job.clock.seconds += CLOSED_SECONDS
    job.path("state").unlink()
    job.mirror.sync()
    assert local_store.content == {}, "it was deleted, not replaced"
    replaced(job, "version 3")
    job.mirror.sync()
    replaced(job, "version 4")
    job.clock.seconds += CLOSED_SECONDS
    job.mirror.look_before_end(killed=True)
    replaced(job, "half of")
    job.look(3)
    assert local_store.content == {}, "hosts are killed"
    job.mirror.let_go()
    assert open_files() == before


# Replaces one file without a pause; every other time it goes on writing what it has renamed already. It dies by itself.
DIES = """
import hashlib, os, random, signal, sys, threading
rng = random.Random(int(sys.argv[2]))
threading.Timer(0.3 + 0.5 * rng.random(), os.kill, (os.getpid(), signal.SIGKILL)).start()
number = 0
while True:
    number += 1
    body = rng.randbytes(rng.randrange(1, 1_000_000))
    beside, final = (os.path.join(sys.argv[1], name) for name in ("beside", "state"))
    with open(beside, "wb", buffering=0) as file:
        file.write(hashlib.sha256(body).hexdigest().encode())
        if number % 2:
            os.replace(beside, final)
        for begin in range(0, len(body), 65536):
            file.write(body[begin : begin + 65536])
    if not number % 2:
        os.replace(beside, final)
"""


@pytest.mark.slow
def test_of_a_program_that_dies_while_it_replaces_a_file_no_half_of_one_arrives(tmp_path: Path) -> None:
    arrived = 0
    for life in range(30):
        folder, store = tmp_path / f"host-{life}", tmp_path / f"store-{life}"
        folder.mkdir()
        mirror = CheckpointMirror({"algo-1": folder}, f"file://{store}", clock=Clock())
        with subprocess.Popen([sys.executable, "-c", DIES, str(folder), str(life)]) as writer:
            looked = 0.0
            while writer.poll() is None:  # that a host has died is known at once, and nobody looks then
                time.sleep(0.01)
                if time.monotonic() - looked > 0.05 and writer.poll() is None:
                    mirror.sync()
                    looked = time.monotonic()
        mirror.let_go()
        for file in store.glob("state"):
            content = file.read_bytes()
            assert hashlib.sha256(content[64:]).hexdigest().encode() == content[:64]
            arrived += 1
    assert arrived > 10, "versions that stood for no time arrived"


def test_of_a_killed_host_goes_what_was_closed_just_before(tmp_path: Path, local_store: Store) -> None:
    job = Job(tmp_path, local_store.uri, count=2)
    local_store.put("torn", "of the last machine")
    job.write("whole", "w")
    job.write("changed", "before")
    job.write("of-2", "2", "algo-2")
    torn = job.path("torn").open("w")
    torn.write("half")
    torn.flush()
    time.sleep(0.05)  # longer than a tick of the clock in files' times
    job.mirror.look_before_end(killed=True)
    torn.close()
    job.write("changed", "half of what c")
    job.look(3)  # the uploader's own thread may go on for a moment
    assert local_store.content == {"torn": "of the last machine", "whole": "w", "of-2": "2"}
    job.write("late", "l", "algo-2")
    job.mirror.final(killed=("algo-1",))
    assert local_store.content == {"torn": "of the last machine", "whole": "w", "of-2": "2", "late": "l"}
    assert sorted(job.mirror.left_out) == [("algo-1", "changed"), ("algo-1", "torn")]


def test_of_a_host_that_ended_nobody_knows_how_goes_what_was_not_seen_being_written(
    tmp_path: Path, local_store: Store
) -> None:
    job = Job(tmp_path, local_store.uri)
    torn = job.path("torn").open("w")
    torn.write("half")
    torn.flush()
    job.mirror.look_before_end(killed=False)
    torn.close()
    job.write("beside", "saved in its last moment")
    job.path("beside").replace(job.path("saved"))
    job.mirror.final(doubtful=["algo-1"])
    assert local_store.content == {"saved": "saved in its last moment"}
    assert job.mirror.left_out == [("algo-1", "torn")]


def test_which_restored_files_are_read_is_seen(tmp_path: Path, local_store: Store) -> None:
    for name in ("read", "unread", "replaced"):
        local_store.put(name, name)
    job = Job(tmp_path, local_store.uri)
    if not job.mirror.watch_reads():
        pytest.skip("this filesystem does not say when a file was read")
    job.path("read").read_text()
    job.write("new", "n")
    job.path("new").replace(job.path("replaced"))
    job.look(3)
    assert job.mirror.read == {("algo-1", "read")}
    assert set(job.mirror.unread) == {("algo-1", "unread")}
    assert job.mirror.replaced == {("algo-1", "replaced")}
    assert sorted(local_store.content) == ["read", "replaced", "unread"], "what it looked at is not uploaded"


def test_looking_whether_a_file_is_being_written_disturbs_nobody(tmp_path: Path) -> None:
    file = tmp_path / "f"
    stop = threading.Event()
    opened = 0

    def look() -> None:
        while not stop.is_set():
            with file.open("rb") as stream:
                is_open_for_writing(stream.fileno())

    file.write_text("")
    thread = threading.Thread(target=look)
    thread.start()
    for _ in range(3000):  # a lease that is in the way when a file is opened sends a signal
        with file.open("wb") as stream:
            stream.write(b"x")
            opened += 1
    stop.set()
    thread.join()
    assert opened == 3000


@pytest.fixture
def no_leases(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a system where nobody can say who writes to a file."""
    monkeypatch.delattr(fcntl, "F_SETLEASE", raising=False)


@pytest.mark.usefixtures("no_leases")
def test_where_nobody_knows_who_writes_a_file_goes_when_it_has_settled(tmp_path: Path, local_store: Store) -> None:
    job = Job(tmp_path, local_store.uri)
    for size in range(1, 6):
        job.write("weights", "w" * size)
        job.look()
        assert local_store.content == {}
    job.look(2)
    assert local_store.content == {"weights": "wwwww"}


@pytest.mark.usefixtures("no_leases")
def test_two_looks_in_quick_succession_settle_nothing(tmp_path: Path, local_store: Store) -> None:
    job = Job(tmp_path, local_store.uri)
    job.write("weights", "w")
    job.mirror.sync()
    job.clock.seconds += SETTLE_SECONDS / 2
    job.mirror.sync()
    assert local_store.content == {}


def test_the_last_look_takes_everything(tmp_path: Path, store: Store) -> None:
    job = Job(tmp_path, store.uri, count=2)
    job.write("a", "a", "algo-1")
    job.write("sub/b", "b", "algo-2")
    job.mirror.final()
    assert store.content == {"a": "a", "sub/b": "b"}


def test_hosts_share_the_prefix_and_a_file_goes_only_when_no_host_has_it(tmp_path: Path, local_store: Store) -> None:
    local_store.put("shared", "restored on both")
    job = Job(tmp_path, local_store.uri, count=2)
    job.write("of-1", "1", "algo-1")
    job.write("of-2", "2", "algo-2")
    job.look(3)
    assert local_store.content == {"shared": "restored on both", "of-1": "1", "of-2": "2"}, (
        "absence elsewhere deletes nothing"
    )
    job.path("shared", "algo-1").unlink()
    job.look(3)
    assert "shared" in local_store.content
    job.path("shared", "algo-2").unlink()
    job.path("of-1", "algo-1").unlink()
    job.look(3)
    assert local_store.content == {"of-2": "2"}


def test_awss_marker_files_and_temporary_files_stay_here(tmp_path: Path, local_store: Store) -> None:
    local_store.put("old.sagemaker-uploaded", "a marker that somebody uploaded")
    job = Job(tmp_path, local_store.uri)
    assert job.restored == 0
    for name in ("f.sagemaker-uploading", "f.sagemaker-uploaded", "f.sagemaker-ignore", "f"):
        job.write(name, name)
    job.mirror.final()
    assert local_store.content == {"f": "f", "old.sagemaker-uploaded": "a marker that somebody uploaded"}


def test_a_file_replaced_by_another_of_the_same_size_and_time_is_uploaded(tmp_path: Path, local_store: Store) -> None:
    job = Job(tmp_path, local_store.uri)
    job.write("weights", "one")
    os.utime(job.path("weights"), (1e9, 1e9))
    job.look(2)
    job.write("new", "two")
    os.utime(job.path("new"), (1e9, 1e9))
    job.path("new").replace(job.path("weights"))
    job.look(3)
    assert local_store.content == {"weights": "two"}


def test_a_store_that_is_away_for_a_while_loses_nothing(tmp_path: Path, local_store: Store) -> None:
    job = Job(tmp_path, local_store.uri)
    job.write("old", "old")
    job.look(2)
    in_the_way = tmp_path / "store"
    in_the_way.rename(tmp_path / "kept")
    in_the_way.write_text("no folder")
    job.write("new", "new")
    job.path("old").unlink()
    job.look(5)
    assert "cannot write" in str(job.mirror.error)
    in_the_way.unlink()
    (tmp_path / "kept").rename(in_the_way)
    assert local_store.content == {"old": "old"}, "nothing was removed before its successor could arrive"
    job.clock.seconds += 100
    job.look(3)
    assert job.mirror.error is None
    assert local_store.content == {"new": "new"}


def test_the_last_look_waits_for_a_store_that_comes_back(tmp_path: Path, local_store: Store) -> None:
    job = Job(tmp_path, local_store.uri)
    (tmp_path / "store").write_text("no folder")
    job.write("f", "f")
    job.clock.on_sleep = lambda: (tmp_path / "store").unlink(missing_ok=True)
    job.mirror.final()
    assert local_store.content == {"f": "f"}


def test_a_store_that_stays_away_fails_the_last_look_with_a_reason(tmp_path: Path, local_store: Store) -> None:
    job = Job(tmp_path, local_store.uri)
    (tmp_path / "store").write_text("no folder")
    job.write("f", "f")
    with pytest.raises(PlatformError, match=r"checkpoints could not be saved to file://.*prefix: cannot write"):
        job.mirror.final()
    assert job.path("f").read_text() == "f"


def test_an_s3_that_cannot_be_reached_fails_nothing_while_the_job_runs(
    tmp_path: Path, s3: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = Job(tmp_path, f"s3://{s3.new_bucket()}/p")
    job.write("f", "f")
    with monkeypatch.context() as away:
        away.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
        job.look(2)
        assert "cannot be reached" in str(job.mirror.error)
    job.mirror.final()
    assert [info.key for info in objects.list_if_any(job.uri)] == ["p/f"]


def test_a_link_within_the_folder_is_a_copy_and_a_link_out_of_it_is_left_out(
    tmp_path: Path, local_store: Store
) -> None:
    (tmp_path / "secret").write_text("not yours")
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "f").write_text("not yours")
    job = Job(tmp_path, local_store.uri)
    job.write("step-2/weights", "w2")
    job.path("last").symlink_to("step-2/weights")
    job.path("stolen").symlink_to(tmp_path / "secret")
    job.path("up").symlink_to("../../../secret")
    job.path("folder").symlink_to(tmp_path / "secrets")
    job.path("nothing").symlink_to("nowhere")
    job.look(3)
    job.mirror.final()
    assert local_store.content == {"step-2/weights": "w2", "last": "w2"}
    job.write("step-3/weights", "w3")
    job.path("last").unlink()
    job.path("last").symlink_to("step-3/weights")
    job.look(3)
    assert local_store.content["last"] == "w3"
    assert len(job.mirror.warnings) == 4
    assert all("is not uploaded: it is a link to" in warning for warning in job.mirror.warnings)


@pytest.mark.parametrize("place", ["checkpoints", "ml"])
def test_a_link_in_the_place_of_the_folder_is_not_followed_and_deletes_nothing(
    tmp_path: Path, local_store: Store, place: str
) -> None:
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "checkpoints").mkdir(parents=True)
    (elsewhere / "secret").write_text("not yours")
    (elsewhere / "checkpoints" / "secret").write_text("not yours")
    job = Job(tmp_path, local_store.uri)
    job.write("f", "f")
    job.look(2)
    doomed = tmp_path / "algo-1" / "ml" if place == "ml" else job.folders["algo-1"]
    shutil.rmtree(doomed)
    doomed.symlink_to(elsewhere)
    job.look(3)
    job.mirror.final()
    assert local_store.content == {"f": "f"}
    assert len(job.mirror.warnings) == 1


def test_a_folder_that_is_gone_deletes_nothing_and_other_hosts_go_on(tmp_path: Path, local_store: Store) -> None:
    job = Job(tmp_path, local_store.uri, count=2)
    job.write("f", "f", "algo-1")
    job.look(2)
    shutil.rmtree(job.folders["algo-1"])
    job.write("g", "g", "algo-2")
    job.look(3)
    job.mirror.final()
    assert local_store.content == {"f": "f", "g": "g"}


def test_special_files_and_odd_names_do_no_harm(tmp_path: Path, local_store: Store) -> None:
    job = Job(tmp_path, local_store.uri)
    os.mkfifo(job.path("fifo"))
    job.write("new\nline", "n")
    job.write("ünï", "u")
    job.mirror.final()
    assert local_store.content == {"new\nline": "n", "ünï": "u"}


def test_s3_gets_no_name_that_is_no_text(tmp_path: Path, s3: S3) -> None:
    job = Job(tmp_path, f"s3://{s3.new_bucket()}/p")
    job.write("\udcff", "bytes")
    job.write("text", "t")
    job.mirror.final()
    assert [info.key for info in objects.list_if_any(job.uri)] == ["p/text"]
    assert "UTF-8" in job.mirror.warnings[0]
    job.mirror.warnings[0].encode()


def test_an_object_that_leads_out_of_the_folder_is_refused(tmp_path: Path, s3_with_markers: S3) -> None:
    bucket = s3_with_markers.new_bucket()
    s3_with_markers.client.put_object(Bucket=bucket, Key="p/a//b", Body=b"x")
    with pytest.raises(DataError, match="cannot be a file"):
        restore(f"s3://{bucket}/p", [tmp_path / "checkpoints"])


def test_files_that_change_all_the_time_end_up_as_they_are_in_the_end(tmp_path: Path, local_store: Store) -> None:
    job = Job(tmp_path, local_store.uri)
    stop = threading.Event()

    def write_on() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            job.write("in-place", chr(97 + number % 26) * 200_000)
            job.write("temporary", str(number) * 1000)
            job.path("temporary").replace(job.path("replaced"))

    writer = threading.Thread(target=write_on)
    writer.start()
    try:
        for _ in range(60):
            job.mirror.final()  # as if everything had settled
    finally:
        stop.set()
        writer.join()
    job.mirror.final()
    assert local_store.content == {name: job.path(name).read_text() for name in ("in-place", "replaced")}


def test_the_file_written_last_arrives_last(tmp_path: Path, local_store: Store) -> None:
    job = Job(tmp_path, local_store.uri)
    for number in range(20):
        job.write(f"part-{number}", "x" * 100_000)
        os.utime(job.path(f"part-{number}"), (1e9 + number, 1e9 + number))
    job.write("a-latest", "part-19")
    job.mirror.final()
    store = Path(job.uri.removeprefix("file://"))
    arrived = sorted(store.iterdir(), key=lambda path: path.stat().st_ctime_ns)
    assert arrived[-1].name == "a-latest"


def test_big_folders_are_looked_at_less_often(tmp_path: Path, local_store: Store) -> None:
    class Slow(Turned):
        def monotonic(self) -> float:
            self.seconds += 0.5
            return self.seconds

    folder = tmp_path / "checkpoints"
    folder.mkdir()
    mirror = CheckpointMirror({"algo-1": folder}, local_store.uri, clock=Slow())
    (folder / "f").write_text("f")
    for _ in range(8):  # a look took 0.5 s of this clock: the next is due after 10
        mirror.sync()
    assert local_store.content == {}
    for _ in range(40):
        mirror.sync()
    assert local_store.content == {"f": "f"}


def test_a_look_that_a_busy_machine_held_up_delays_no_other(tmp_path: Path, local_store: Store) -> None:
    """Beside a training that has all processors, one look in ten took 0.1 s, and nothing was uploaded for two."""

    class HeldUp(Turned):
        held_up = False

        def monotonic(self) -> float:
            self.seconds += 0.5 * self.held_up
            return self.seconds

    job = Job(tmp_path, local_store.uri)
    job.mirror.clock = clock = HeldUp()
    for _ in range(2):
        job.mirror.sync()
        clock.seconds += 0.25
    clock.held_up = True
    job.mirror.sync()
    clock.held_up = False
    job.write("state", "s")
    for _ in range(3):
        clock.seconds += 0.25
        job.mirror.sync()
    assert local_store.content == {"state": "s"}


def test_a_prefix_in_a_folder_that_is_only_uploaded_works_the_same(tmp_path: Path, local_store: Store) -> None:
    """TensorBoard and debugger folders: nothing restored, what was there before stays."""
    local_store.put("earlier-run", "kept")
    folder = tmp_path / "tensorboard"
    folder.mkdir()
    mirror = CheckpointMirror({"algo-1": folder}, local_store.uri, clock=Turned())
    (folder / "events").write_text("e")
    mirror.final()
    assert local_store.content == {"earlier-run": "kept", "events": "e"}
