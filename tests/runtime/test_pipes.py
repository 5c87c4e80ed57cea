"""Pipe mode's feeder alone: real FIFOs, and readers that are slow, leave, come late or are hostile."""

import contextlib
import gzip
import json
import os
import stat
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tests.harness import files
from tests.hosts import PATIENCE_SECONDS
from tests.s3 import S3

from optml import objects
from optml.errors import DataError
from optml.pipes import FIFO_BYTES, PipeFeeder, decompressed, record_header, record_padding
from optml.spec import Channel, Compression, DataType, Distribution, InputMode, ObjectSource, RecordWrapper


def channel(uri: str, **more: Any) -> Channel:
    source = {name: more.pop(name) for name in ("data_type", "distribution", "attribute_names") if name in more}
    return Channel(name="train", source=ObjectSource(uri=uri, **source), input_mode=InputMode.PIPE, **more)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """/opt/ml/input/data of a host."""
    path = tmp_path / "host" / "ml" / "input" / "data"
    path.mkdir(parents=True)
    return path


@contextlib.contextmanager
def feeding(of: Channel, folder: Path, *, host_index: int = 0, host_count: int = 1) -> Iterator[PipeFeeder]:
    """A feeder at work. After it, nothing is left open and no thread runs."""
    assert isinstance(of.source, ObjectSource)
    objects.list_objects(of.source.uri)  # so that what is loaded and opened once is so already
    threads, descriptors = set(threading.enumerate()), set(os.listdir("/proc/self/fd"))
    items = objects.list_objects(of.source.uri)
    feeder = PipeFeeder(of, items, folder, host_index=host_index, host_count=host_count)
    feeder.start()
    try:
        yield feeder
    finally:
        feeder.stop()
    assert set(threading.enumerate()) == threads
    if of.source.uri.startswith("file://"):  # boto3 keeps its connections
        assert set(os.listdir("/proc/self/fd")) == descriptors


def read(folder: Path, epoch: int, size: int = -1) -> bytes:
    path = folder / f"train_{epoch}"
    wait_until(path.exists)
    with path.open("rb") as fifo:
        return fifo.read(size)


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "it never came about"
        time.sleep(0.002)


@contextlib.contextmanager
def opened(folder: Path, epoch: int = 0) -> Iterator[int]:
    """The read end, in this process: it stays open while the feeder is stopped."""
    descriptor = os.open(folder / f"train_{epoch}", os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@pytest.fixture(params=["splice", "copy"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """From file to FIFO inside the kernel, and on a system that has no splice()."""
    if request.param == "copy":
        monkeypatch.delattr(os, "splice")
    return str(request.param)


@pytest.mark.usefixtures("way")
def test_epochs_follow_one_another_for_as_long_as_somebody_reads(tmp_path: Path, folder: Path) -> None:
    contents = {f"{number:03}": os.urandom(number * 1000) for number in range(100)}
    (tmp_path / "data").mkdir()
    for name, content in contents.items():
        (tmp_path / "data" / name).write_bytes(content)
    with feeding(channel(f"file://{tmp_path}/data/"), folder) as feeder:
        for epoch in range(5):
            assert read(folder, epoch) == b"".join(contents.values())
            assert (folder / f"train_{epoch + 1}").exists(), "whoever has read one epoch finds the next"
            assert not (folder / f"train_{epoch}").exists()
    assert feeder.error is None


def test_any_user_may_read_a_fifo_whatever_the_umask(tmp_path: Path, folder: Path) -> None:
    data = files(tmp_path / "data", {"a": "x"})
    before = os.umask(0o077)
    try:
        with feeding(channel(f"file://{data}/"), folder):
            assert (folder / "train_0").read_bytes() == b"x"
            wait_until((folder / "train_1").exists)
            wait_until(lambda: stat.S_IMODE((folder / "train_1").stat().st_mode) == 0o644)
    finally:
        os.umask(before)


def test_a_hundred_short_epochs_are_read_one_after_the_other(tmp_path: Path, folder: Path) -> None:
    data = files(tmp_path / "data", {"a": "1"})
    with feeding(channel(f"file://{data}/"), folder):
        assert [read(folder, epoch) for epoch in range(100)] == [b"1"] * 100


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("taken", [0, 1, 5_000_000])
def test_a_reader_may_leave_early_and_the_next_epoch_is_whole(tmp_path: Path, folder: Path, taken: int) -> None:
    content = os.urandom(3 * FIFO_BYTES)
    data = tmp_path / "data"
    data.mkdir()
    for name in ("a", "b", "c"):
        (data / name).write_bytes(content)
    with feeding(channel(f"file://{data}/"), folder) as feeder:
        assert read(folder, 0, taken) == (3 * content)[:taken]
        assert read(folder, 1) == 3 * content
    assert feeder.error is None


def test_a_file_of_nothing_is_an_epoch_of_nothing(tmp_path: Path, folder: Path) -> None:
    data = files(tmp_path / "data", {"a": ""})
    with feeding(channel(f"file://{data}/"), folder):
        assert [read(folder, 0), read(folder, 1)] == [b"", b""]


def test_a_host_without_a_share_has_epochs_of_nothing(tmp_path: Path, folder: Path) -> None:
    data = files(tmp_path / "data", {"a": "1"})
    of = channel(f"file://{data}/", distribution=Distribution.SHARDED_BY_KEY)
    with feeding(of, folder, host_index=1, host_count=2):
        assert [read(folder, 0), read(folder, 1)] == [b"", b""]


def test_stop_wakes_a_feeder_that_waits_for_a_reader(tmp_path: Path, folder: Path) -> None:
    data = files(tmp_path / "data", {"a": "1"})
    with feeding(channel(f"file://{data}/"), folder):
        pass


@pytest.mark.usefixtures("way")
def test_stop_wakes_a_feeder_whose_reader_takes_nothing_and_stays(tmp_path: Path, folder: Path) -> None:
    data = files(tmp_path / "data", {"a": "x" * 5_000_000})
    with feeding(channel(f"file://{data}/"), folder) as feeder, opened(folder) as fifo:
        assert os.read(fifo, 10) == b"x" * 10
        time.sleep(0.05)  # until the FIFO is full
        feeder.stop()
        assert not [thread for thread in threading.enumerate() if thread.name.startswith("pipe-")]


def test_a_reader_that_opens_while_the_feeder_stops_hangs_nobody(tmp_path: Path, folder: Path) -> None:
    data = files(tmp_path / "data", {"a": "x" * 100_000})
    for number in range(30):
        with feeding(channel(f"file://{data}/"), folder):
            late = subprocess.Popen(
                ["cat", str(folder / "train_0")], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            time.sleep(0.001 * (number % 10))
        late.kill()
        late.wait()
        for left in folder.iterdir():
            left.unlink()


def test_removing_the_fifos_holds_nobody_up(tmp_path: Path, folder: Path) -> None:
    data = files(tmp_path / "data", {"a": "x" * 5_000_000})
    with feeding(channel(f"file://{data}/"), folder) as feeder:
        (folder / "train_0").unlink()
        time.sleep(0.1)
    assert feeder.error is None
    with feeding(channel(f"file://{data}/"), folder) as feeder, opened(folder) as fifo:
        os.read(fifo, 1)
        (folder / "train_0").unlink()
        (folder / "train_1").unlink()
        (folder / "train_1").mkdir()
        time.sleep(0.1)
    # Whether the feeder came to the second epoch before it was stopped is a race.
    assert feeder.error is None or "something else in the place of its FIFO train_1" in str(feeder.error)


def test_a_fifo_that_the_program_made_itself_will_do(tmp_path: Path, folder: Path) -> None:
    data = files(tmp_path / "data", {"a": "1"})
    with feeding(channel(f"file://{data}/"), folder):
        os.mkfifo(folder / "train_1")
        assert [read(folder, epoch) for epoch in range(3)] == [b"1"] * 3


@pytest.mark.parametrize("kind", ["link", "file", "folder", "dangling link", "link to a fifo"])
@pytest.mark.parametrize("moment", ["before", "after"])
def test_what_the_program_put_in_a_fifos_place_is_never_written_to(
    tmp_path: Path, folder: Path, kind: str, moment: str
) -> None:
    data = files(tmp_path / "data", {"a": "x" * 3_000_000})
    precious = files(tmp_path / "precious", {"file": "keep"}) / "file"
    elsewhere = tmp_path / "elsewhere"
    os.mkfifo(elsewhere)
    place = folder / "train_1"

    def put() -> None:
        if kind == "folder":
            place.mkdir()
        elif kind == "file":
            place.write_text("the program's")
        else:
            targets = {"link": precious, "dangling link": Path("nowhere"), "link to a fifo": elsewhere}
            place.symlink_to(targets[kind])

    with feeding(channel(f"file://{data}/"), folder) as feeder:
        if moment == "before":
            put()
        with opened(folder) as fifo:
            first = os.read(fifo, 1) if moment == "after" else b"x"
            if moment == "after":
                place.unlink()
                put()
                while part := os.read(fifo, 1 << 20):
                    first += part
                assert first == b"x" * 3_000_000
            wait_until(lambda: feeder.error is not None)
    assert isinstance(feeder.error, DataError)
    assert "'train' cannot be fed" in str(feeder.error)
    assert "something else in the place of its FIFO train_1" in str(feeder.error)
    assert precious.read_text() == "keep"
    assert place.is_symlink() or stat.S_ISDIR(place.stat().st_mode) or place.read_text() == "the program's"


def test_a_folder_that_was_moved_away_is_not_looked_for(tmp_path: Path, folder: Path) -> None:
    data = files(tmp_path / "data", {"a": "1"})
    trap = tmp_path / "trap"
    trap.mkdir()
    with feeding(channel(f"file://{data}/"), folder):
        folder.rename(folder.with_name("moved"))
        folder.symlink_to(trap)
        assert read(folder.with_name("moved"), 0) == b"1"
        assert read(folder.with_name("moved"), 1) == b"1"
    assert list(trap.iterdir()) == []


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("trouble", ["gone", "folder", "no gzip", "cut gzip", "too big", "shrunk"])
def test_an_error_is_told_and_never_looks_like_the_end(tmp_path: Path, folder: Path, trouble: str) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "a").write_bytes(gzip.compress(b"first"))
    (data / "b").write_bytes(gzip.compress(os.urandom(100_000)) if "gzip" not in trouble else b"\x1f\x8b nonsense")
    if trouble == "cut gzip":
        (data / "b").write_bytes(gzip.compress(os.urandom(100_000))[:-1000])
    if trouble == "too big":
        os.truncate(data / "b", 1 << 29)
    compression = Compression.GZIP if "gzip" in trouble else Compression.NONE
    wrapper = RecordWrapper.RECORDIO if trouble in ("too big", "shrunk") else RecordWrapper.NONE
    with feeding(channel(f"file://{data}/", compression=compression, record_wrapper=wrapper), folder) as feeder:
        if trouble in ("gone", "folder"):
            (data / "b").unlink()
        if trouble == "folder":
            (data / "b").mkdir()
        if trouble == "shrunk":
            (data / "b").write_bytes(b"")
        ended = threading.Event()

        def reader() -> None:
            with (folder / "train_0").open("rb", buffering=0) as fifo:
                while fifo.read(65536):
                    pass
            ended.set()

        thread = threading.Thread(target=reader)
        thread.start()
        wait_until(lambda: feeder.error is not None)
        assert not ended.wait(0.1), "the reader must not take this for the end of the data"
        error = feeder.error
        feeder.stop()
        thread.join(PATIENCE_SECONDS)
    assert isinstance(error, DataError)
    assert str(data / "b") in str(error)
    assert "channel 'train' cannot be fed" in str(error)


def test_memory_stays_flat_whatever_is_fed(tmp_path: Path) -> None:
    """300 MB of each kind to a slow reader, in a process of its own."""
    data = tmp_path / "data"
    (data / "plain").mkdir(parents=True)
    (data / "gzip").mkdir()
    for number in range(3):
        (data / "plain" / str(number)).write_bytes(bytes(100_000_000))
    with gzip.open(data / "gzip" / "0", "wb", compresslevel=1) as stream:
        for _ in range(300):
            stream.write(bytes(1_000_000))
    program = f"""
import os, re, threading
from pathlib import Path
from optml import objects
from optml.pipes import PipeFeeder
from optml.spec import *
def resident():
    return int(re.search(r"VmRSS:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024
def feed(kind, compression, wrapper, splice):
    folder = Path({str(tmp_path)!r}) / f"{{kind}}-{{wrapper}}-{{splice}}" / "ml/input/data"
    folder.mkdir(parents=True)
    uri = f"file://{data}/{{kind}}/"
    channel = Channel(name="t", source=ObjectSource(uri=uri), compression=compression, record_wrapper=wrapper)
    feeder = PipeFeeder(channel, objects.list_objects(uri), folder, host_index=0, host_count=1)
    feeder.start()
    total, most = 0, 0.0
    with open(folder / "t_0", "rb", buffering=0) as fifo:
        while part := fifo.read(65536):
            total += len(part)
            if total % (1 << 23) < 65536:
                most = max(most, resident())
    feeder.stop()
    assert 300_000_000 <= total < 300_000_100, total
    return most
modes = [("plain", Compression.NONE, RecordWrapper.NONE, True), ("gzip", Compression.GZIP, RecordWrapper.NONE, True),
         ("gzip", Compression.GZIP, RecordWrapper.RECORDIO, True), ("plain", Compression.NONE, RecordWrapper.RECORDIO, False)]
begin = resident()
for mode in modes:
    if not mode[3]:
        del os.splice
    print(round(feed(*mode) - begin))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=2 * PATIENCE_SECONDS, check=False
    )
    assert done.returncode == 0, done.stderr
    grown = [int(line) for line in done.stdout.split()]
    assert max(grown) < 20, f"MiB more than at the start: {grown}"


def test_an_s3_channel_is_streamed(s3: S3, folder: Path) -> None:
    assert s3.folder is not None
    bucket = s3.new_bucket()
    contents = {name: os.urandom(3_000_000) for name in ("a", "b c", "größe")}
    for name, content in contents.items():
        (s3.folder / bucket / name).write_bytes(content)
    with feeding(channel(f"s3://{bucket}/"), folder):
        assert read(folder, 0, 10) == contents["a"][:10]
        assert read(folder, 1) == b"".join(contents.values())


def records(content: bytes) -> list[bytes]:
    found = []
    while content:
        magic, length = struct.unpack("<II", content[:8])
        assert magic == 0xCED7230A
        padded = (length + 3) // 4 * 4
        assert content[8 + length : 8 + padded] == b"\0" * (padded - length)
        found.append(content[8 : 8 + length])
        content = content[8 + padded :]
    return found


@given(st.lists(st.binary(max_size=50), max_size=8))
def test_records_can_be_taken_apart_again(payloads: list[bytes]) -> None:
    content = b"".join(record_header(len(each), "x") + each + record_padding(len(each)) for each in payloads)
    assert len(content) % 4 == 0
    assert records(content) == payloads


def test_a_record_has_a_greatest_size() -> None:
    assert struct.unpack("<II", record_header((1 << 29) - 1, "x"))[1] == (1 << 29) - 1
    with pytest.raises(
        DataError, match="x has 536,870,912 bytes; a RecordIO record takes at most 536,870,911: split it"
    ):
        record_header(1 << 29, "x")


MEMBERS = st.lists(st.one_of(st.binary(max_size=200), st.integers(0, 3_000_000).map(bytes)), max_size=4)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(members=MEMBERS, padding=st.integers(0, 5), level=st.integers(0, 9), cut=st.integers(0, 1 << 20))
@example(members=[bytes(5_000_000)], padding=0, level=9, cut=0)
@example(members=[bytes(1 << 20)], padding=0, level=1, cut=1)
@example(members=[b"", b"", b"x"], padding=3, level=6, cut=8)
def test_gzip_gives_the_content_or_says_that_it_is_cut(
    tmp_path: Path, members: list[bytes], padding: int, level: int, cut: int
) -> None:
    parts = [gzip.compress(member, compresslevel=level) + b"\0" * padding for member in members]
    file = tmp_path / "file.gz"
    file.write_bytes(b"".join(parts))
    assert b"".join(decompressed(f"file://{file}")) == b"".join(members)
    whole = parts[-1].rstrip(b"\0") if parts else b""
    if members and 0 < cut < len(whole) and members[-1]:
        file.write_bytes(b"".join(parts[:-1]) + whole[:-cut])
        with pytest.raises(DataError, match="ends in the middle of its gzip data"):
            list(decompressed(f"file://{file}"))


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    content=st.one_of(st.binary(max_size=100), st.binary(max_size=60).map(lambda rest: gzip.compress(b"x" * 99) + rest))
)
def test_what_is_no_gzip_is_an_error_or_its_content_and_nothing_else(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "file.gz"
    file.write_bytes(content)
    found = None
    with contextlib.suppress(DataError):
        found = b"".join(decompressed(f"file://{file}"))
    if found is not None:
        assert found == gzip.decompress(content)


def test_an_augmented_manifest_is_streamed_in_order_and_its_errors_are_told(tmp_path: Path, folder: Path) -> None:
    data = files(tmp_path / "data", {f"{number}.bin": f"content {number}" for number in range(50)})
    lines = [{"image-ref": str(data / f"{n}.bin"), "label": n, "other": None} for n in range(50)]
    manifest = files(tmp_path, {"m.jsonl": "".join(f"{json.dumps(line)}\n\n" for line in lines)}) / "m.jsonl"
    of = channel(
        f"file://{manifest}",
        data_type=DataType.AUGMENTED_MANIFEST_FILE,
        attribute_names=("label", "image-ref"),
        record_wrapper=RecordWrapper.RECORDIO,
        shuffle_seed=3,
    )
    with feeding(of, folder) as feeder:
        epochs = [records(read(folder, epoch)) for epoch in range(2)]
        for epoch in epochs:
            assert sorted(epoch[::2], key=int) == [str(n).encode() for n in range(50)]
            assert epoch[1::2] == [b"content " + label for label in epoch[::2]]
        assert epochs[0] != epochs[1]
        (data / "7.bin").unlink()
        with opened(folder, 2) as fifo:
            wait_until(lambda: feeder.error is not None or not os.read(fifo, 10))
    assert str(data / "7.bin") in str(feeder.error)


def test_an_augmented_manifest_from_s3_is_not_shown_to_the_container(s3: S3, folder: Path) -> None:
    assert s3.folder is not None
    bucket = s3.new_bucket()
    (s3.folder / bucket / "m.jsonl").write_text('{"a": "text"}\n{"a": [1, {"b": null}]}')
    more: dict[str, Any] = {"data_type": DataType.AUGMENTED_MANIFEST_FILE, "attribute_names": ("a",)}
    with feeding(channel(f"s3://{bucket}/m.jsonl", **more), folder):
        assert read(folder, 0) == b'text[1,{"b":null}]'
        assert {path.name for path in folder.parents[1].rglob("*")} == {"input", "data", "train_1"}
