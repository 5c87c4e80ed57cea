"""Channels on a host's disk: what the host sees, by views and by copies, and that the caller's data stays as it was."""

import itertools
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.harness import files, run
from tests.hosts import PATIENCE_SECONDS
from tests.s3 import S3

from optml import stage as staging
from optml.backends import Capabilities, Launch
from optml.backends.process import ProcessBackend
from optml.distribute import share_of_host
from optml.errors import DataError, PlatformError
from optml.jobdir import JobDir
from optml.objects import ObjectInfo
from optml.record import remove_tree
from optml.spec import (
    Channel,
    DataType,
    Distribution,
    FileSystemSource,
    InputMode,
    InstanceGroup,
    ManifestPaths,
    ObjectSource,
    TrainingJob,
)

IS_ROOT = os.geteuid() == 0
BACKEND = ProcessBackend()
REAL = BACKEND.capabilities()
VIEWS, NO_VIEWS, NOTHING = REAL, replace(REAL, views=False), replace(REAL, views=False, own_opt_ml=False)
needs_views = pytest.mark.skipif(not REAL.views, reason="this machine has no overlay mounts")
WAYS = {"views": VIEWS, "copies": NO_VIEWS} if REAL.views else {"copies": NO_VIEWS}

# Tells what a host sees of its channel, then does to it whatever it can.
SPOIL = """
import json, os, shutil
seen = {}
train = "/opt/ml/input/data/train"
for parent, folders, names in os.walk(train, followlinks=True):
    for name in names:
        path = os.path.join(parent, name)
        with open(path, "rb") as stream:
            seen[os.path.relpath(path, train)] = stream.read().decode("latin-1")
with open("/opt/ml/output/seen.json", "w", errors="surrogateescape") as out:
    json.dump(seen, out)
for parent, folders, names in os.walk(train, followlinks=True, topdown=False):
    for name in names:
        path = os.path.join(parent, name)
        try:
            with open(path, "ab") as stream:
                stream.write(b"spoilt")
            os.chmod(path, 0o777)
            os.unlink(path)
        except OSError:
            pass
    try:
        open(os.path.join(parent, "new"), "w").close()
    except OSError:
        pass
"""


def job_of(source: ObjectSource | FileSystemSource, *, mode: InputMode = InputMode.FILE, hosts: int = 1) -> TrainingJob:
    return TrainingJob(
        name="job",
        arn="arn:aws:sagemaker:us-east-1:123456789012:training-job/job",
        region="us-east-1",
        role_arn="arn:aws:iam::123456789012:role/role",
        image="python",
        output_uri="file:///out",
        instance_groups=(InstanceGroup(name="g", instance_type="ml.m5.large", instance_count=hosts),),
        channels=(Channel(name="train", source=source, input_mode=mode),),
    )


def staged(folder: Path, job: TrainingJob, capabilities: Capabilities, **more: Any) -> dict[str, tuple[Any, ...]]:
    paths = more.pop("manifest_paths", ManifestPaths.KEY)
    listings = {
        channel.name: staging.list_channel(channel, manifest_paths=paths)
        for channel in job.channels
        if isinstance(channel.source, ObjectSource)
    }
    return staging.stage(
        job, JobDir(folder), attempt=1, capabilities=capabilities, interface="lo", listings=listings, **more
    )


def seen_by_hosts(folder: Path, job: TrainingJob, capabilities: Capabilities, **more: Any) -> dict[str, dict[str, str]]:
    """Stage, start each host for real, and give what it saw before it did its worst."""
    mounts = staged(folder, job, capabilities, **more)
    seen = {}
    for host in job.hosts:
        host_dir = JobDir(folder).host(1, host.name)
        launch = Launch(
            host=host.name,
            argv=(sys.executable, "-I", "-S", "-c", SPOIL),
            environment={"PYTHONUTF8": "1"},
            working_dir="/",
            host_dir=host_dir,
            log_file=folder / f"{host.name}.log",
            mounts=mounts[host.name],
        )
        running = BACKEND.start(launch)
        deadline = time.monotonic() + PATIENCE_SECONDS
        while (code := running.poll()) is None and time.monotonic() < deadline:
            time.sleep(0.005)
        running.kill()
        assert code == 0, launch.log_file.read_text()
        seen[host.name] = json.loads((host_dir.ml / "output" / "seen.json").read_text())
    return seen


def snapshot(folder: Path) -> dict[str, tuple[Any, ...]]:
    """Everything of a folder that a host could spoil: names, content, permissions, times, links."""
    found: dict[str, tuple[Any, ...]] = {}
    for parent, folders, names in os.walk(folder):
        for name in [*folders, *names]:
            path = Path(parent, name)
            status = path.lstat()
            content = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else b""  # noqa: PTH115
            found[str(path)] = (status.st_mode, status.st_mtime_ns, status.st_ino, content)
    return found


# Which host gets what.


@given(
    count=st.integers(0, 40),
    hosts=st.integers(1, 12),
    seed=st.one_of(st.none(), st.integers()),
    epoch=st.integers(0, 5),
    sharded=st.booleans(),
)
def test_shares_are_disjoint_complete_and_of_one_size(
    count: int, hosts: int, seed: int | None, epoch: int, sharded: bool
) -> None:
    distribution = Distribution.SHARDED_BY_KEY if sharded else Distribution.FULLY_REPLICATED
    channel = Channel(name="c", source=ObjectSource(uri="s3://b/", distribution=distribution), shuffle_seed=seed)

    def shares() -> list[list[int]]:
        return [
            share_of_host(channel, range(count), host_index=index, host_count=hosts, epoch=epoch)
            for index in range(hosts)
        ]

    found = shares()
    assert found == shares(), "a function of seed and epoch"
    if sharded:
        assert sorted(itertools.chain.from_iterable(found)) == list(range(count))
        assert max(map(len, found)) - min(map(len, found)) <= 1
    else:
        assert all(sorted(share) == list(range(count)) for share in found)
        assert all(share == found[0] for share in found)
    if seed is None:
        assert all(share == sorted(share) for share in found)


# What a host sees.

NAMES = st.sampled_from(["a", "b", "a.csv", "data", "d", "ü", "x y", "%41", "\udcff", "new"])
TREES = st.recursive(
    st.one_of(st.binary(max_size=5), st.just("link"), st.just("folder link")),
    lambda children: st.dictionaries(NAMES, children, min_size=1, max_size=4),
    max_leaves=10,
)


def build(path: Path, tree: Any, outside: Path) -> None:
    if isinstance(tree, bytes):
        path.write_bytes(tree)
    elif isinstance(tree, str):
        path.symlink_to(outside if tree == "folder link" else outside / "linked")
    else:
        path.mkdir()
        for name, child in tree.items():
            build(path / name, child, outside)


def expected_below(folder: Path) -> dict[str, str]:
    """Every file by its path, links followed."""
    found = {}
    for parent, _folders, names in os.walk(folder, followlinks=True):
        for name in names:
            path = Path(parent, name)
            found[str(path.relative_to(folder))] = path.read_bytes().decode("latin-1")
    return found


@pytest.mark.skipif(not REAL.own_opt_ml, reason="this machine has no namespaces")
@pytest.mark.parametrize("way", WAYS)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    tree=st.dictionaries(NAMES, TREES, min_size=1, max_size=4),
    hosts=st.sampled_from([1, 2]),
    sharded=st.booleans(),
    mode=st.sampled_from([InputMode.FILE, InputMode.FAST_FILE]),
    slash=st.sampled_from(["", "/"]),
)
def test_hosts_see_their_shares_and_the_data_stays_as_it_was(
    tmp_path_factory: pytest.TempPathFactory,
    *,
    way: str,
    tree: Any,
    hosts: int,
    sharded: bool,
    mode: InputMode,
    slash: str,
) -> None:
    folder = tmp_path_factory.mktemp("tree")
    outside = files(folder / "outside", {"linked": "linked"})
    build(folder / "data", tree, outside)
    before = snapshot(folder)
    distribution = Distribution.SHARDED_BY_KEY if sharded else Distribution.FULLY_REPLICATED
    source = ObjectSource(uri=f"file://{folder}/data{slash}", distribution=distribution)
    job = job_of(source, mode=mode, hosts=hosts)
    expected = expected_below(folder / "data")
    seen = seen_by_hosts(folder / "job", job, WAYS[way])
    for host, share in seen.items():
        assert share.items() <= expected.items(), host
        if not sharded:
            assert share == expected
    if sharded:
        assert sorted(path for share in seen.values() for path in share) == sorted(expected)
    remove_tree(folder / "job" / "attempts")  # an overlay's work folder has no permissions
    assert {path: what for path, what in snapshot(folder).items() if not path.startswith(f"{folder}/job")} == before
    shutil.rmtree(folder)


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> Capabilities:
    if not REAL.own_opt_ml:
        pytest.skip("this machine has no namespaces")
    return WAYS[request.param]


def big(folder: Path, names: Mapping[str, int]) -> Path:
    """Files that are big enough for a view to be cheaper than a copy: sparse."""
    for name, size in names.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
        os.truncate(path, size)
    return folder


def names_of(seen: Mapping[str, Mapping[str, str]], host: str = "algo-1") -> dict[str, str]:
    """Names, and the begin of each content."""
    return {path: text.rstrip("\0") for path, text in seen[host].items()}


def test_a_partial_name_that_matches_a_folder_and_files_is_laid_out_by_the_rule(
    tmp_path: Path, way: Capabilities
) -> None:
    big(tmp_path / "p", {"train/x": 2_000_000, "train-1": 2_000_000, "test": 10})
    before = snapshot(tmp_path / "p")
    seen = seen_by_hosts(tmp_path / "job", job_of(ObjectSource(uri=f"file://{tmp_path}/p/train")), way)
    assert names_of(seen) == {"x": "train/x", "train-1": "train-1"}
    assert snapshot(tmp_path / "p") == before


@pytest.mark.parametrize("through_link", [False, True])
def test_a_file_beside_the_jobs_own_folder_can_be_a_channel(
    tmp_path: Path, way: Capabilities, through_link: bool
) -> None:
    """As `--channel train=~/train.csv` with ~/.optml: an overlay can't have its layers below what it shows."""
    home = big(tmp_path / "home", {"train.csv": 5_000_000, "other.csv": 10})
    (tmp_path / "link").symlink_to(home)
    uri = f"file://{tmp_path / 'link' if through_link else home}/train.csv"
    seen = seen_by_hosts(home / ".optml" / "job", job_of(ObjectSource(uri=uri)), way)
    assert names_of(seen) == {"train.csv": "train.csv"}


def test_a_sharded_folder_keeps_its_links(tmp_path: Path, way: Capabilities) -> None:
    big(tmp_path / "outside", {"sub/deep": 2_000_000})
    big(tmp_path / "data", {"a": 2_000_000, "b": 2_000_000})
    (tmp_path / "data" / "folder").symlink_to(tmp_path / "outside" / "sub")
    (tmp_path / "data" / "link").symlink_to(tmp_path / "outside" / "sub" / "deep")
    source = ObjectSource(uri=f"file://{tmp_path}/data/", distribution=Distribution.SHARDED_BY_KEY)
    before = snapshot(tmp_path / "outside") | snapshot(tmp_path / "data")
    seen = seen_by_hosts(tmp_path / "job", job_of(source, hosts=2), way)
    assert names_of(seen, "algo-1") == {"a": "a", "folder/deep": "sub/deep"}
    assert names_of(seen, "algo-2") == {"b": "b", "link": "sub/deep"}
    assert snapshot(tmp_path / "outside") | snapshot(tmp_path / "data") == before


@pytest.mark.parametrize("paths", list(ManifestPaths))
@pytest.mark.parametrize("prefix", ["data/im", "data/", "data//", ""])
def test_a_manifests_objects_lie_where_it_says(
    tmp_path: Path, way: Capabilities, paths: ManifestPaths, prefix: str
) -> None:
    big(tmp_path, {"data/img/1": 2_000_000, "data/imh/2": 2_000_000, "data/img/unlisted": 10})
    entries = {"data/im": ["g/1", "h/2"], "": ["data/img/1", "data/imh/2"]}.get(prefix, ["img/1", "imh/2"])
    manifest = files(tmp_path, {"m": json.dumps([{"prefix": f"{tmp_path}/{prefix}"}, *entries])}) / "m"
    source = ObjectSource(uri=f"file://{manifest}", data_type=DataType.MANIFEST_FILE)
    if prefix == "data//" and paths is ManifestPaths.KEY:
        with pytest.raises(DataError, match="cannot be a file"):
            staged(tmp_path / "job", job_of(source), way, manifest_paths=paths)
        return
    seen = seen_by_hosts(tmp_path / "job", job_of(source), way, manifest_paths=paths)
    begin = f"{str(tmp_path)[1:]}/{prefix}" if paths is ManifestPaths.KEY else ""
    assert names_of(seen) == {begin + entries[0]: "data/img/1", begin + entries[1]: "data/imh/2"}


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    """A folder of data in which another filesystem is mounted."""
    if not IS_ROOT:
        pytest.skip("mounting takes root")
    data = files(tmp_path / "data", {"a": "1", "sub/hidden": "under the mount"})
    done = subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(data / "sub")], capture_output=True, check=False)
    if done.returncode:
        pytest.skip("this root may not mount")
    files(data / "sub", {"b": "2", "c/d": "3"})
    yield data
    subprocess.run(["umount", str(data / "sub")], check=True)


@pytest.mark.parametrize("mode", [InputMode.FILE, InputMode.FAST_FILE])
@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("through_link", [False, True])
def test_what_is_mounted_in_the_data_is_seen_and_not_spoilt(
    tmp_path: Path, way: Capabilities, mounted: Path, *, mode: InputMode, sharded: bool, through_link: bool
) -> None:
    before = snapshot(mounted)
    (tmp_path / "link").symlink_to(mounted)
    distribution = Distribution.SHARDED_BY_KEY if sharded else Distribution.FULLY_REPLICATED
    folder = tmp_path / "link" if through_link else mounted
    source = ObjectSource(uri=f"file://{folder}/", distribution=distribution)
    seen = seen_by_hosts(tmp_path / "job", job_of(source, mode=mode, hosts=1 + sharded), way)
    together = {path: text for share in seen.values() for path, text in share.items() if path != "sub/hidden"}
    assert together == {"a": "1", "sub/b": "2", "sub/c/d": "3"}
    assert snapshot(mounted) == before


def test_without_namespaces_the_host_has_copies(tmp_path: Path) -> None:
    data = files(tmp_path / "data", {"a": "1", "sub/b": "2"})
    (data / "a").chmod(0o444)
    for mode, writable in ((InputMode.FILE, True), (InputMode.FAST_FILE, False)):
        folder = tmp_path / mode
        assert staged(folder, job_of(ObjectSource(uri=f"file://{data}/"), mode=mode), NOTHING) == {"algo-1": ()}
        channel = JobDir(folder).host(1, "algo-1").ml / "input/data/train"
        assert expected_below(channel) == {"a": "1", "sub/b": "2"}
        modes = {path.name: bool(path.stat().st_mode & 0o200) for path in (channel, channel / "a", channel / "sub")}
        assert modes == dict.fromkeys(modes, writable)


def test_objects_of_s3_are_fetched_once_for_all_hosts(s3: S3, tmp_path: Path, way: Capabilities) -> None:
    assert s3.folder is not None
    bucket = s3.new_bucket()
    files(s3.folder / bucket / "p", {"a": "1", "sub/b": "22", "c": ""})
    steps: list[tuple[str, int, int | None]] = []
    job = job_of(ObjectSource(uri=f"s3://{bucket}/p"), hosts=3)
    seen = seen_by_hosts(tmp_path / "job", job, way, progress=lambda *step: steps.append(step))
    assert list(seen.values()) == [{"a": "1", "sub/b": "22", "c": ""}] * 3
    fetched = [step for step in steps if step[0] == "Downloading train"]
    assert fetched[-1] == ("Downloading train", 3, 3)
    assert expected_below(tmp_path / "job" / "downloads" / "train") == {"a": "1", "sub/b": "22", "c": ""}


def test_more_than_the_disk_holds_is_refused_before_anything_is_fetched(tmp_path: Path) -> None:
    job = job_of(source := ObjectSource(uri="s3://bucket/p/"))
    huge = ObjectInfo("s3://bucket/p/huge", "p/huge", 1 << 42)
    listing = staging.Listing(channel=job.channels[0], source=source, objects=(huge,), paths={huge.uri: "huge"})
    with pytest.raises(DataError, match=r"'train' has 4,398,046,511,104 bytes to download .*OPTML_HOME.* Pipe mode"):
        stage_listed(tmp_path / "job", job, listing, NOTHING)


def stage_listed(folder: Path, job: TrainingJob, listing: staging.Listing, capabilities: Capabilities) -> None:
    listings = {listing.channel.name: listing}
    staging.stage(job, JobDir(folder), attempt=1, capabilities=capabilities, interface="lo", listings=listings)


def test_a_file_that_vanishes_before_it_is_copied_is_named(tmp_path: Path) -> None:
    data = files(tmp_path / "data", {"a": "1", "b": "2"})
    job = job_of(ObjectSource(uri=f"file://{data}/"))
    listing = staging.list_channel(job.channels[0], manifest_paths=ManifestPaths.KEY)
    (data / "b").unlink()
    with pytest.raises(DataError, match=r"cannot read .*/data/b: No such file"):
        stage_listed(tmp_path / "job", job, listing, NOTHING)


@pytest.mark.parametrize("uri", ["{}/data/tr", "{}/data/a", "{}/data/a/"])
def test_fast_file_takes_whole_folders_only(tmp_path: Path, uri: str) -> None:
    files(tmp_path / "data", {"train-1": "1", "train-2": "2", "a/b": "1", "ab": "2"})
    source = ObjectSource(uri=f"file://{uri.format(tmp_path)}")
    job = job_of(source, mode=InputMode.FAST_FILE)
    if uri.endswith("/"):
        staged(tmp_path / "job", job, NOTHING)
        return
    with pytest.raises(DataError, match=r"FastFile needs a whole folder, and .* is a partial name"):
        staged(tmp_path / "job", job, NOTHING)


@pytest.mark.parametrize("read_only", [True, False])
def test_a_file_system_channel_must_be_a_folder(tmp_path: Path, read_only: bool) -> None:
    source = FileSystemSource(
        directory=tmp_path / "efs", read_only=read_only, file_system_id="fs-1", file_system_type="EFS"
    )
    with pytest.raises(DataError, match=r"DirectoryPath .*/efs is not a folder of this machine"):
        staged(tmp_path / "job", job_of(source), VIEWS)
    files(tmp_path / "efs", {"a": "1"})
    (tmp_path / "efs" / "dangling").symlink_to("nowhere")
    mounts = staged(tmp_path / "job2", job_of(source), NO_VIEWS)["algo-1"]
    assert [(mount.source, mount.read_only) for mount in mounts] == [(tmp_path / "efs", read_only)]
    staged(tmp_path / "job3", job_of(source), NOTHING)
    assert (JobDir(tmp_path / "job3").host(1, "algo-1").ml / "input/data/train/a").read_text() == "1"


def test_a_disk_that_fills_up_while_copying_is_named_with_the_remedy(tmp_path: Path, small_disk: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "a").write_bytes(os.urandom(1_000_000))
    with pytest.raises(PlatformError, match=r"cannot copy .*/data/a to .*: no space left on the disk; .* OPTML_HOME"):
        staged(small_disk / "job", job_of(ObjectSource(uri=f"file://{data}/")), NOTHING)
    assert [path for path in small_disk.rglob("a") if path.is_file()] == []


@pytest.mark.skipif(not REAL.own_opt_ml, reason="this machine has no namespaces")
def test_a_read_only_file_system_is_so_to_its_depths(tmp_path: Path, mounted: Path) -> None:
    source = {
        "FileSystemId": "fs-0123456789abcdef0",
        "FileSystemAccessMode": "ro",
        "FileSystemType": "EFS",
        "DirectoryPath": str(mounted),
    }
    request = {"InputDataConfig": [{"ChannelName": "train", "DataSource": {"FileSystemDataSource": source}}]}
    script = """
    from pathlib import Path
    for folder in ("", "sub"):
        try:
            Path("/opt/ml/input/data/train", folder, "new").write_text("x")
        except OSError as error:
            print(error.strerror)
    """
    before = snapshot(mounted)
    assert run(tmp_path, script, request=request).log == "Read-only file system\n" * 2
    assert snapshot(mounted) == before
