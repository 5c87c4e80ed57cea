"""Channels as a container sees them: rows C14-C34 of the contract, through real jobs on local data and on a real S3 server."""

import gzip
import json
import os
import struct
from pathlib import Path
from typing import Any

import pytest
from tests.harness import LOOK, capabilities, files, run

from optml.errors import UserError, ValidationError
from optml.jobdir import JobDir

MAGIC = 0xCED7230A


@pytest.fixture(params=["file", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """Puts objects into a store: gives the URI of a new, empty prefix (no slash at its end) and a way to fill it."""
    if request.param == "file":
        return FileStore(tmp_path / "store")
    s3 = request.getfixturevalue("s3")
    return S3Store(s3)


class FileStore:
    def __init__(self, folder: Path):
        self.folder = folder
        self.uri = f"file://{folder}"

    def put(self, contents: dict[str, str | bytes]) -> str:
        for name, content in contents.items():
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.encode() if isinstance(content, str) else content)
        return self.uri


class S3Store:
    def __init__(self, s3: Any):
        self.s3 = s3
        self.bucket = s3.new_bucket()
        self.uri = f"s3://{self.bucket}"

    def put(self, contents: dict[str, str | bytes]) -> str:
        for name, content in contents.items():
            self.s3.client.put_object(Bucket=self.bucket, Key=name, Body=content)
        return self.uri


def test_a_prefix_keeps_its_sub_folders_c14(tmp_path: Path, store: Any) -> None:
    uri = store.put({"p/a/b.txt": "b", "p/c.txt": "c"})
    assert run(tmp_path, channels={"train": f"{uri}/p/"}).channel("train") == {"a/b.txt": "b", "c.txt": "c"}


def test_a_folder_needs_no_slash_c15(tmp_path: Path, store: Any) -> None:
    uri = store.put({"p/x": "x", "p/y/z": "z"})
    assert run(tmp_path, channels={"train": f"{uri}/p"}).channel("train") == {"x": "x", "y/z": "z"}


def test_a_partial_name_matches_what_begins_with_it_c16(tmp_path: Path, store: Any) -> None:
    uri = store.put({"data/train-1.csv": "1", "data/train-2.csv": "2", "data/test.csv": "no", "data/other/x": "no"})
    done = run(tmp_path, channels={"train": f"{uri}/data/train"})
    assert done.channel("train") == {"train-1.csv": "1", "train-2.csv": "2"}


def test_an_exact_key_is_one_file_c17(tmp_path: Path, store: Any) -> None:
    uri = store.put({"p/file.csv": "1,2", "p/other.csv": "no"})
    assert run(tmp_path, channels={"train": f"{uri}/p/file.csv"}).channel("train") == {"file.csv": "1,2"}


def test_a_folder_marker_is_no_file_c18(tmp_path: Path, s3_with_markers: Any) -> None:
    store = S3Store(s3_with_markers)
    uri = store.put({"p/": b"", "p/a": "a", "p/d/": b""})
    listed = s3_with_markers.client.list_objects_v2(Bucket=store.bucket)["Contents"]
    assert [entry["Key"] for entry in listed] == ["p/", "p/a", "p/d/"], "the server keeps markers"
    seen = run(tmp_path, channels={"train": f"{uri}/p/"})
    assert seen.channel("train") == {"a": "a"}
    assert not [path for path in seen.saw()["files"] if path.startswith("input/data/train/d")]


def test_a_manifest_gives_the_listed_keys_under_their_whole_path_c19(tmp_path: Path, store: Any) -> None:
    uri = store.put({"some/prefix/rel/a": "A", "some/prefix/b": "B", "some/prefix/unlisted": "no"})
    store.put({"my.manifest": json.dumps([{"prefix": f"{uri}/some/prefix/"}, "rel/a", "b"])})
    channel = {"uri": f"{uri}/my.manifest", "data_type": "ManifestFile"}
    root = "" if isinstance(store, S3Store) else f"{str(store.folder).lstrip('/')}/"
    done = run(tmp_path, channels={"train": channel})
    assert done.channel("train") == {f"{root}some/prefix/rel/a": "A", f"{root}some/prefix/b": "B"}
    relative = run(tmp_path, channels={"train": channel}, manifest_paths="relative")
    assert relative.channel("train") == {"rel/a": "A", "b": "B"}


def test_full_replication_gives_every_host_everything_c20(tmp_path: Path, store: Any) -> None:
    uri = store.put({f"p/{number}": str(number) for number in range(5)})
    done = run(tmp_path, channels={"train": f"{uri}/p/"}, instance_count=2)
    assert done.channel("train", "algo-1") == done.channel("train", "algo-2") == {str(n): str(n) for n in range(5)}


def test_sharding_splits_whole_objects_c21(tmp_path: Path, store: Any) -> None:
    uri = store.put({f"p/{number}": str(number) * 100 for number in range(5)})
    channel = {"uri": f"{uri}/p/", "distribution": "ShardedByS3Key"}
    done = run(tmp_path, channels={"train": channel}, instance_count=2)
    first, second = done.channel("train", "algo-1"), done.channel("train", "algo-2")
    assert (len(first), len(second)) == (3, 2)
    assert first | second == {str(number): str(number) * 100 for number in range(5)}
    assert not first.keys() & second.keys()


def test_a_host_without_a_shard_starts_with_an_empty_folder_c22(tmp_path: Path, store: Any) -> None:
    uri = store.put({"p/only": "1"})
    channel = {"uri": f"{uri}/p/", "distribution": "ShardedByS3Key"}
    done = run(tmp_path, channels={"train": channel}, instance_count=2)
    assert done.channel("train", "algo-1") == {"only": "1"}
    assert done.channel("train", "algo-2") == {}
    assert "input/data/train/" in done.saw("algo-2")["files"]


def test_every_host_has_the_list_of_all_keys(tmp_path: Path, store: Any) -> None:
    uri = store.put({"p/a": "1", "p/b": "2"})
    channel = {"uri": f"{uri}/p/", "distribution": "ShardedByS3Key"}
    done = run(tmp_path, channels={"train": channel}, instance_count=2)
    for host in ("algo-1", "algo-2"):
        lines = done.saw(host)["files"]["input/data/train-manifest"].splitlines()
        assert lines[1:] == [f"{uri}/p/a", f"{uri}/p/b"]


def test_a_channel_of_one_instance_group_is_not_on_the_others_c23(tmp_path: Path) -> None:
    data = files(tmp_path / "data", {"a": "1"})
    groups = [{"InstanceGroupName": name, "InstanceType": "ml.m5.large", "InstanceCount": 1} for name in ("g1", "g2")]
    source = {"S3DataType": "S3Prefix", "S3Uri": f"{data}/", "InstanceGroupNames": ["g1"]}
    request = {
        "ResourceConfig": {"InstanceGroups": groups, "VolumeSizeInGB": 10},
        "InputDataConfig": [{"ChannelName": "train", "DataSource": {"S3DataSource": source}}],
    }
    done = run(tmp_path, request=request)
    assert done.channel("train", "algo-1") == {"a": "1"}
    assert "input/data/train/" not in done.saw("algo-2")["files"]
    assert done.config("inputdataconfig.json", "algo-2") == {}


WRITE_TO_CHANNEL = (
    LOOK
    + """
import errno
try:
    (ml / "input/data/train/a").write_text("changed")
    print("wrote")
except OSError as error:
    print("refused", errno.errorcode[error.errno])
try:
    (ml / "input/data/train/new").write_text("new")
    print("made")
except OSError as error:
    print("refused", errno.errorcode[error.errno])
"""
)


def test_fast_file_is_the_same_tree_and_read_only_c24(tmp_path: Path, store: Any) -> None:
    if not capabilities().own_opt_ml and os.geteuid() == 0:
        pytest.skip("without a mount of its own FastFile is read-only by permission bits, which do not bind root")
    uri = store.put({"p/a": "1", "p/b/c": "2"})
    done = run(tmp_path, WRITE_TO_CHANNEL, channels={"train": {"uri": f"{uri}/p/", "input_mode": "FastFile"}})
    assert done.channel("train") == {"a": "1", "b/c": "2"}
    assert done.log.split() in ([*(["refused", "EROFS"] * 2)], [*(["refused", "EACCES"] * 2)])
    assert done.config("inputdataconfig.json")["train"]["TrainingInputMode"] == "FastFile"


def test_fast_file_can_be_announced_as_file(tmp_path: Path) -> None:
    data = files(tmp_path / "data", {"a": "1"})
    channel = {"uri": f"{data}/", "input_mode": "FastFile"}
    done = run(tmp_path, channels={"train": channel}, announce_fast_file_as_file=True)
    assert done.config("inputdataconfig.json")["train"]["TrainingInputMode"] == "File"


def test_file_mode_is_writable_and_never_touches_the_callers_data(tmp_path: Path) -> None:
    """The promise that matters most: whatever a job does to its channel, the caller's folder stays as it was."""
    data = files(tmp_path / "data", {"a": "1", "sub/b": "2"})
    outside = files(tmp_path / "outside", {"linked": "3", "folder/deep": "4"})
    (data / "link").symlink_to(outside / "linked")
    (data / "linked-folder").symlink_to(outside / "folder")
    script = (
        LOOK
        + """
import shutil
train = ml / "input/data/train"
(train / "a").write_text("changed")
(train / "link").write_text("changed")
(train / "linked-folder/deep").write_text("changed")
(train / "new").write_text("new")
shutil.rmtree(train / "sub")
(train / "a").chmod(0o777)
"""
    )
    done = run(tmp_path, script, channels={"train": f"{data}/"})
    assert done.describe["TrainingJobStatus"] == "Completed", done.reason
    assert done.channel("train") == {"a": "1", "sub/b": "2", "link": "3", "linked-folder/deep": "4"}
    assert {name: (data / name).read_text() for name in ("a", "sub/b")} == {"a": "1", "sub/b": "2"}
    assert (outside / "linked").read_text() == "3"
    assert (outside / "folder" / "deep").read_text() == "4"
    assert not (data / "new").exists()


def test_a_single_file_channel_never_touches_the_file_or_its_neighbours(tmp_path: Path) -> None:
    data = files(tmp_path / "data", {"a": "1", "b": "2"})
    done = run(tmp_path, WRITE_TO_CHANNEL, channels={"train": str(data / "a")})
    assert done.log.split() == ["wrote", "made"]
    assert done.channel("train") == {"a": "1"}
    assert {path.name: path.read_text() for path in data.iterdir()} == {"a": "1", "b": "2"}


def test_fast_file_takes_no_manifest_c25(tmp_path: Path) -> None:
    channel = {"uri": str(tmp_path / "x.manifest"), "data_type": "ManifestFile", "input_mode": "FastFile"}
    with pytest.raises(ValidationError, match="FastFile"):
        run(tmp_path, channels={"train": channel})


READ_PIPES = """
import hashlib, json, os, sys, time
from pathlib import Path
data = Path(os.environ.get("SAGEMAKER_BASE_DIR", "/opt/ml")) / "input/data"
out = data.parents[1] / "output/data"
def epoch(number, channel="train", size=-1):
    path = data / f"{channel}_{number}"
    while not path.exists():
        time.sleep(0.005)
    with open(path, "rb") as fifo:
        return fifo.read(size)
"""


def piped(uri: str, **more: Any) -> dict[str, Any]:
    return {"uri": uri, "input_mode": "Pipe", **more}


def test_a_pipe_is_a_fifo_and_there_is_no_folder_c26(tmp_path: Path, store: Any) -> None:
    uri = store.put({"p/a": "1"})
    seen = run(tmp_path, channels={"train": piped(f"{uri}/p/")}).saw()["files"]
    assert seen["input/data/train_0"] == "<fifo>"
    assert "input/data/train/" not in seen


def test_a_pipe_has_every_object_in_key_order_and_the_next_epoch_follows_c27(tmp_path: Path, store: Any) -> None:
    contents = {f"p/{name}": name * 1000 for name in ("b", "a", "c/d")}
    uri = store.put(contents)
    script = READ_PIPES + "(out / 'epochs').write_bytes(b'|'.join(epoch(n) for n in range(3)))"
    done = run(tmp_path, script, channels={"train": piped(f"{uri}/p/")})
    once = b"".join(contents[key].encode() for key in sorted(contents))
    assert done.output["epochs"] == b"|".join([once] * 3)


def test_a_reader_may_leave_in_the_middle_c28(tmp_path: Path) -> None:
    data = files(tmp_path / "data", {"a": "0123456789" * 1_000_000})
    script = READ_PIPES + "(out / 'read').write_bytes(epoch(0, size=10) + b'|' + epoch(1, size=13))"
    done = run(tmp_path, script, channels={"train": piped(f"{data}/")})
    assert done.output["read"] == b"0123456789|0123456789012"


def test_a_channel_that_nobody_reads_holds_up_nothing_c29(tmp_path: Path) -> None:
    data = files(tmp_path / "data", {"a": "x" * 3_000_000})
    script = READ_PIPES + "(out / 'size').write_text(str(len(epoch(0)) + len(epoch(1))))"
    done = run(tmp_path, script, channels={"train": piped(f"{data}/"), "unread": piped(f"{data}/")})
    assert done.output["size"] == b"6000000"


def test_a_job_that_ends_with_a_pipe_half_read_leaves_nobody_behind_c30(tmp_path: Path) -> None:
    import threading

    data = files(tmp_path / "data", {"a": "x" * 3_000_000})
    before = set(threading.enumerate())
    script = READ_PIPES + "fifo = open(data / 'train_0', 'rb'); fifo.read(5); os._exit(0)"
    done = run(tmp_path, script, channels={"train": piped(f"{data}/")})
    assert done.describe["TrainingJobStatus"] == "Completed"
    assert set(threading.enumerate()) == before


def test_gzip_is_decompressed_in_a_pipe_c31(tmp_path: Path, store: Any) -> None:
    uri = store.put(
        {"p/a.gz": gzip.compress(b"hello ") + gzip.compress(b"two members "), "p/b.gz": gzip.compress(b"world")}
    )
    script = READ_PIPES + "(out / 'read').write_bytes(epoch(0))"
    done = run(tmp_path, script, channels={"train": piped(f"{uri}/p/", compression="Gzip")})
    assert done.output["read"] == b"hello two members world"


def records(content: bytes) -> list[bytes]:
    found = []
    while content:
        magic, length = struct.unpack("<II", content[:8])
        assert magic == MAGIC
        found.append(content[8 : 8 + length])
        padded = (length + 3) // 4 * 4
        assert content[8 + length : 8 + padded] == b"\0" * (padded - length)
        content = content[8 + padded :]
    return found


def test_record_wrapping_makes_a_record_of_each_object_c32(tmp_path: Path, store: Any) -> None:
    uri = store.put({"p/a": "12345", "p/b": "1234", "p/c": "x"})
    script = READ_PIPES + "(out / 'read').write_bytes(epoch(0))"
    done = run(tmp_path, script, channels={"train": piped(f"{uri}/p/", record_wrapper="RecordIO")})
    assert records(done.output["read"]) == [b"12345", b"1234", b"x"]


def test_shuffling_differs_by_epoch_and_is_a_function_of_the_seed_c33(tmp_path: Path) -> None:
    data = files(tmp_path / "data", {f"{number:02}": f"{number:02}" for number in range(30)})
    script = READ_PIPES + "(out / 'read').write_bytes(epoch(0) + b'|' + epoch(1))"

    def epochs(seed: int) -> list[bytes]:
        done = run(tmp_path, script, channels={"train": piped(f"{data}/", shuffle_seed=seed)})
        return done.output["read"].split(b"|")

    first, second = epochs(7)
    assert first != second
    in_order = b"".join(f"{number:02}".encode() for number in range(30))
    assert first != in_order
    assert sorted(first[i : i + 2] for i in range(0, 60, 2)) == [in_order[i : i + 2] for i in range(0, 60, 2)]
    assert epochs(7) == [first, second]
    assert epochs(8) != [first, second]


def test_an_augmented_manifest_streams_its_attributes_c34(tmp_path: Path, store: Any) -> None:
    uri = store.put({"img/1.png": "PNG1", "img/2.png": "PNG22"})
    lines = [{"img-ref": f"{uri}/img/{n}.png", "ignored": 1, "label": label} for n, label in ((1, 7), (2, "cat"))]
    store.put({"train.jsonl": "".join(json.dumps(line) + "\n" for line in lines)})
    script = READ_PIPES + "(out / 'read').write_bytes(epoch(0))"
    channel = piped(
        f"{uri}/train.jsonl",
        data_type="AugmentedManifestFile",
        attribute_names=["img-ref", "label"],
        record_wrapper="RecordIO",
    )
    done = run(tmp_path, script, channels={"train": channel})
    assert records(done.output["read"]) == [b"PNG1", b"7", b"PNG22", b"cat"]


def test_an_empty_prefix_fails_the_job_with_the_uri(tmp_path: Path, s3: Any) -> None:
    uri = S3Store(s3).put({"p/a": "1"})
    done = run(tmp_path, channels={"train": f"{uri}/nothing-here/"})
    assert done.describe["TrainingJobStatus"] == "Failed"
    assert done.reason.startswith("ClientError: ")
    assert f"{uri}/nothing-here/" in done.reason


def test_a_path_that_is_not_there_is_refused_before_the_job_begins(tmp_path: Path) -> None:
    files(tmp_path / "data", {"train.csv": "1,2"})
    with pytest.raises(UserError, match=r"channel 'train': No objects found .* near names there: train\.csv"):
        run(tmp_path, channels={"train": str(tmp_path / "data" / "tain.csv")}, name="typo")
    assert not JobDir.of("typo").root.exists()


def test_a_folder_with_the_jobs_in_it_is_no_channel(tmp_path: Path, optml_home: Path) -> None:
    files(tmp_path, {"train.csv": "1,2"})
    with pytest.raises(UserError, match=f"channel 'train': {tmp_path} has OPTML_HOME in it \\({optml_home}\\)"):
        run(tmp_path / "program", channels={"train": str(tmp_path)}, name="inside")
    assert not JobDir.of("inside").root.exists()


def test_names_with_blanks_and_unicode_arrive_as_they_are(tmp_path: Path, store: Any) -> None:
    contents = {"p q/a b.txt": "1", "p q/größe/ü%20.txt": "2", "p q/#?&=+,;.txt": "3"}
    uri = store.put(contents)
    done = run(tmp_path, channels={"train": f"{uri}/p q/"})
    assert done.channel("train") == {key.removeprefix("p q/"): text for key, text in contents.items()}


@pytest.mark.process_host
def test_an_object_that_vanishes_while_it_is_piped_fails_the_job(tmp_path: Path) -> None:
    data = files(tmp_path / "data", {"a": "1", "b": "2"})
    (data / "c").write_text("3")
    script = (
        READ_PIPES
        + f"""
os.unlink({str(data / "b")!r})
epoch(0); time.sleep(30)
"""
    )
    done = run(tmp_path, script, channels={"train": piped(f"{data}/")})
    assert done.describe["TrainingJobStatus"] == "Failed"
    assert str(data / "b") in done.reason
