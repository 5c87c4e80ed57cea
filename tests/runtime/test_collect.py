"""Outputs leave the hosts: archives, plain objects, the failure reason; also from hosts that left something hostile."""

import gzip
import io
import os
import resource
import shutil
import socket
import stat
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.s3 import S3

from optml import objects, transfers
from optml.collect import BLOCK_BYTES, Collected, collect_outputs, failure_reason
from optml.errors import PlatformError
from optml.jobdir import HostDir, JobDir
from optml.spec import InstanceGroup, TrainingJob

IS_ROOT = os.geteuid() == 0


class Hosts:
    """A job whose hosts have ended, and what they left."""

    def __init__(self, folder: Path, *, count: int = 1, compressed: bool = True, output_uri: str | None = None):
        self.folder = folder
        self.job = TrainingJob(
            name="job",
            arn="arn:aws:sagemaker:us-east-1:123456789012:training-job/job",
            region="us-east-1",
            role_arn="arn:aws:iam::123456789012:role/role",
            image="python",
            output_uri=output_uri or f"file://{folder}/out",
            instance_groups=(InstanceGroup(name="g", instance_type="ml.m5.large", instance_count=count),),
            output_compressed=compressed,
        )
        self.job_dir = JobDir(folder / "job")
        self.host_dirs = {
            f"algo-{n}": HostDir(folder / "job" / "attempts" / "1" / f"algo-{n}") for n in range(1, count + 1)
        }
        for host in self.host_dirs:
            self.model(host).mkdir(parents=True)
            self.data(host).mkdir(parents=True)

    def model(self, host: str = "algo-1") -> Path:
        return self.host_dirs[host].ml / "model"

    def data(self, host: str = "algo-1") -> Path:
        return self.host_dirs[host].ml / "output" / "data"

    def failure(self, host: str = "algo-1") -> Path:
        return self.host_dirs[host].ml / "output" / "failure"

    def collect(self, **more: Any) -> Collected:
        return collect_outputs(self.job, self.job_dir, self.host_dirs, **more)

    @property
    def out(self) -> Path:
        return self.folder / "out" / "job" / "output"

    def members(self, name: str = "model.tar.gz") -> dict[str, tarfile.TarInfo]:
        with tarfile.open(self.out / name) as tar:
            return {member.name: member for member in tar.getmembers()}

    def files(self, name: str = "model.tar.gz") -> dict[str, bytes]:
        with tarfile.open(self.out / name) as tar:
            found = {}
            for member in tar.getmembers():
                if member.isfile():
                    stream = tar.extractfile(member)
                    assert stream is not None
                    found[member.name] = stream.read()
            return found


def test_the_model_archive_has_the_folders_content_at_its_root_c41(tmp_path: Path) -> None:
    hosts = Hosts(tmp_path)
    (hosts.model() / "sub" / "empty").mkdir(parents=True)
    (hosts.model() / "weights").write_bytes(b"w" * 10)
    (hosts.model() / "sub" / "config.json").write_text("{}")
    collected = hosts.collect()
    assert collected.model_uri == f"file://{tmp_path}/out/job/output/model.tar.gz"
    assert collected.model_bytes == (hosts.out / "model.tar.gz").stat().st_size
    assert collected.warnings == ()
    assert list(hosts.members()) == ["sub", "sub/config.json", "sub/empty", "weights"]
    assert hosts.files() == {"weights": b"w" * 10, "sub/config.json": b"{}"}
    assert not list(hosts.job_dir.archives.iterdir()), "nothing is left behind on the way"


def test_model_folders_of_all_hosts_are_one_archive_c48(tmp_path: Path) -> None:
    hosts = Hosts(tmp_path, count=2)
    for host, name in (("algo-1", "a/1"), ("algo-2", "b/2")):
        (hosts.model(host) / name).parent.mkdir()
        (hosts.model(host) / name).write_text(host)
    collected = hosts.collect()
    assert hosts.files() == {"a/1": b"algo-1", "b/2": b"algo-2"}
    assert collected.warnings == ()


def test_later_host_names_win_and_a_warning_says_so(tmp_path: Path) -> None:
    hosts = Hosts(tmp_path, count=3)
    for host in hosts.host_dirs:
        (hosts.model(host) / "weights").write_text(host)
    (hosts.model("algo-1") / "x" / "deep").mkdir(parents=True)
    (hosts.model("algo-1") / "x" / "deep" / "file").write_text("gone")
    (hosts.model("algo-2") / "x").write_text("a file now")
    (hosts.model("algo-1") / "y").write_text("a file")
    (hosts.model("algo-2") / "y").mkdir()
    (hosts.model("algo-2") / "y" / "inside").write_text("a folder now")
    collected = hosts.collect()
    assert hosts.files() == {"weights": b"algo-3", "x": b"a file now", "y/inside": b"a folder now"}
    assert collected.warnings == (
        "algo-1 and algo-2 left files of the same names, and those of algo-2 were taken (give each host's files names of "
        "their own): model/weights, model/x, model/y",
        "algo-2 and algo-3 left files of the same names, and those of algo-3 were taken (give each host's files names of "
        "their own): model/weights",
    )


def test_the_output_archive_has_the_data_folder_only_c49(tmp_path: Path) -> None:
    hosts = Hosts(tmp_path)
    (hosts.model() / "m").write_text("m")
    hosts.failure().write_text("broken")
    (hosts.data() / "plots").mkdir()
    (hosts.data() / "plots" / "a.png").write_text("png")
    collected = hosts.collect()
    assert collected.output_uri == f"file://{tmp_path}/out/job/output/output.tar.gz"
    assert hosts.files("output.tar.gz") == {"plots/a.png": b"png"}


def test_without_output_data_there_is_no_output_archive(tmp_path: Path) -> None:
    hosts = Hosts(tmp_path)
    (hosts.model() / "m").write_text("m")
    collected = hosts.collect()
    assert (collected.output_uri, collected.output_bytes) == (None, 0)
    assert [path.name for path in hosts.out.iterdir()] == ["model.tar.gz"]


@pytest.mark.parametrize("gone", [True, False])
def test_an_empty_model_folder_gives_an_empty_archive_and_a_warning(tmp_path: Path, gone: bool) -> None:
    hosts = Hosts(tmp_path)
    if gone:
        hosts.model().rmdir()
    collected = hosts.collect()
    assert hosts.members() == {}
    assert collected.warnings == ("the model artifact is empty, for the job left no file in: /opt/ml/model",)


def test_uncompressed_outputs_are_objects_c50(tmp_path: Path) -> None:
    hosts = Hosts(tmp_path, count=2, compressed=False)
    (hosts.model("algo-1") / "a").write_text("1")
    (hosts.model("algo-2") / "sub").mkdir()
    (hosts.model("algo-2") / "sub" / "b").write_text("22")
    (hosts.model("algo-2") / "link").symlink_to("/opt/ml/model/sub/b")
    (hosts.model("algo-2") / "circle").symlink_to("circle")
    (hosts.data("algo-1") / "c").write_text("333")
    collected = hosts.collect()
    assert collected.model_uri == f"file://{hosts.out}/model/"
    assert collected.output_uri == f"file://{hosts.out}/data/"
    assert (collected.model_bytes, collected.output_bytes) == (5, 3)
    assert {str(path.relative_to(hosts.out)): path.read_text() for path in hosts.out.rglob("*") if path.is_file()} == {
        "model/a": "1",
        "model/sub/b": "22",
        "model/link": "22",
        "data/c": "333",
    }
    assert not any(path.is_symlink() for path in hosts.out.rglob("*"))
    assert len(collected.warnings) == 1
    assert "circle" in collected.warnings[0]


def test_no_file_of_an_archive_gives_its_owners_rights_away(tmp_path: Path) -> None:
    hosts = Hosts(tmp_path)
    (hosts.model() / "tool").write_text("x")
    (hosts.model() / "tool").chmod(0o6755)
    hosts.collect()
    with tarfile.open(hosts.out / "model.tar.gz") as tar:
        assert tar.getmember("tool").mode == 0o755


def test_outputs_go_to_s3_whole_c41_c50(tmp_path: Path, s3: S3) -> None:
    uri = f"s3://{s3.new_bucket()}/some/where"
    heard: list[tuple[int, int]] = []
    for compressed in (True, False):
        hosts = Hosts(tmp_path / str(compressed), compressed=compressed, output_uri=f"{uri}/{compressed}/")
        (hosts.model() / "wéights").write_bytes(os.urandom(100_000))
        (hosts.data() / "x").write_text("x")
        collected = hosts.collect(progress=lambda done, total: heard.append((done, total)))
        assert heard[-1][0] == heard[-1][1] > 0
        assert (collected.model_uri, collected.output_uri) == (
            (f"{uri}/True/job/output/model.tar.gz", f"{uri}/True/job/output/output.tar.gz")
            if compressed
            else (f"{uri}/False/job/output/model/", f"{uri}/False/job/output/data/")
        )
        if compressed:
            with tarfile.open(fileobj=io.BytesIO(transfers.read_bytes(collected.model_uri))) as tar:
                assert tar.getnames() == ["wéights"]
        else:
            assert transfers.read_bytes(f"{collected.model_uri}wéights") == (hosts.model() / "wéights").read_bytes()
    keys = [info.uri.removeprefix(uri) for info in objects.list_objects(f"{uri}/")]
    assert keys == [
        "/False/job/output/data/x",
        "/False/job/output/model/wéights",
        "/True/job/output/model.tar.gz",
        "/True/job/output/output.tar.gz",
    ]


def test_s3_that_is_away_is_the_platforms_error_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    hosts = Hosts(tmp_path, output_uri="s3://bucket/out")
    (hosts.model() / "m").write_text("m")
    with pytest.raises(PlatformError, match=r"s3://bucket/out/job/output/model\.tar\.gz"):
        hosts.collect()
    assert (hosts.model() / "m").read_text() == "m"
    assert not list(hosts.job_dir.archives.iterdir())


def test_the_same_files_give_the_same_bytes(tmp_path: Path) -> None:
    archives = []
    for order in ((1, 2, 3), (3, 1, 2)):
        hosts = Hosts(tmp_path / str(order[0]))
        for number in order:
            file = hosts.model() / f"file-{number}"
            file.write_bytes(bytes([number]) * 3 * BLOCK_BYTES)
            os.utime(file, (1e9, 1e9))
        hosts.collect()
        archives.append((hosts.out / "model.tar.gz").read_bytes())
    assert archives[0] == archives[1]


def test_entries_have_modes_and_times_but_no_owner(tmp_path: Path) -> None:
    hosts = Hosts(tmp_path)
    script = hosts.model() / "run.sh"
    script.write_text("#!/bin/sh")
    script.chmod(0o750)
    os.utime(script, (1_500_000_000, 1_500_000_000))
    hosts.collect()
    member = hosts.members()["run.sh"]
    assert (member.mode, member.mtime) == (0o750, 1_500_000_000)
    assert (member.uid, member.gid, member.uname, member.gname) == (0, 0, "", "")
    assert (hosts.out / "model.tar.gz").read_bytes()[4:8] == bytes(4), "no time in gzip's header"


def test_other_programs_read_the_archive(tmp_path: Path) -> None:
    hosts = Hosts(tmp_path)
    data = {"big": os.urandom(2 * BLOCK_BYTES + 17), "text": b"0123456789" * 500_000, "none": b""}
    for name, content in data.items():
        (hosts.model() / name).write_bytes(content)
    hosts.collect()
    archive = hosts.out / "model.tar.gz"
    subprocess.run(["gzip", "--test", str(archive)], check=True)
    target = tmp_path / "extracted"
    target.mkdir()
    subprocess.run(["tar", "-xzf", str(archive), "-C", str(target)], check=True)
    assert {path.name: path.read_bytes() for path in target.iterdir()} == data
    assert hosts.files() == data


def test_links_inside_are_kept_and_links_out_are_left_out_by_name(tmp_path: Path) -> None:
    hosts = Hosts(tmp_path)
    model = hosts.model()
    (model / "sub").mkdir()
    (model / "sub" / "step-7").write_text("7")
    (tmp_path / "secret").write_text("not yours")
    (model / "latest").symlink_to("sub/step-7")
    (model / "sub" / "absolute").symlink_to("/opt/ml/model/sub/step-7")
    (model / "sub" / "real-path").symlink_to(model / "sub" / "step-7")
    (model / "root").symlink_to(".")
    for name, target in {
        "shadow": "/etc/shadow",
        "up": "../../../../../../../secret",
        "sly": "/opt/ml/model/../../../etc/passwd",
        "near": "/opt/ml/model-of-another",
        "folder": "/etc",
        "checkpoint": "/opt/ml/checkpoints/1",
    }.items():
        (model / name).symlink_to(target)
    collected = hosts.collect()
    links = {name: member.linkname for name, member in hosts.members().items() if member.issym()}
    assert links == {"latest": "sub/step-7", "sub/absolute": "step-7", "sub/real-path": "step-7", "root": "."}
    assert hosts.files() == {"sub/step-7": b"7"}
    assert len(collected.warnings) == 1
    for name in ("shadow -> /etc/shadow", "up -> ", "sly -> ", "near -> ", "folder -> /etc", "checkpoint -> "):
        assert f"model/{name}" in collected.warnings[0]


def test_hard_links_are_plain_files(tmp_path: Path) -> None:
    hosts = Hosts(tmp_path)
    (hosts.model() / "one").write_text("same")
    (hosts.model() / "two").hardlink_to(hosts.model() / "one")
    hosts.collect()
    assert hosts.files() == {"one": b"same", "two": b"same"}


def test_special_files_are_left_out_and_nobody_waits_for_them(tmp_path: Path) -> None:
    hosts = Hosts(tmp_path)
    os.mkfifo(hosts.model() / "fifo")
    (hosts.model() / "weights").write_text("w")
    with socket.socket(socket.AF_UNIX) as listener:
        before = Path.cwd()
        os.chdir(hosts.model())  # a socket's path may have 108 characters
        try:
            listener.bind("socket")
        finally:
            os.chdir(before)
    if IS_ROOT:
        os.mknod(hosts.model() / "device", stat.S_IFCHR | 0o666, os.makedev(1, 5))
    collected = hosts.collect()
    assert list(hosts.members()) == ["weights"]
    assert len(collected.warnings) == 1
    for name in ("model/fifo", "model/socket", *(["model/device"] if IS_ROOT else [])):
        assert name in collected.warnings[0]


@pytest.mark.parametrize("place", ["model", "output/data", "output"])
def test_a_link_where_a_folder_should_be_is_not_followed(tmp_path: Path, place: str) -> None:
    hosts = Hosts(tmp_path)
    (hosts.model() / "weights").write_text("w")
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "data").mkdir(parents=True)
    (elsewhere / "secret").write_text("not yours")
    (elsewhere / "data" / "secret").write_text("not yours")
    (elsewhere / "failure").write_text("not yours")
    folder = hosts.host_dirs["algo-1"].ml / place
    shutil.rmtree(folder)
    folder.symlink_to(elsewhere)
    collected = hosts.collect()
    assert hosts.files() == ({} if place == "model" else {"weights": b"w"})
    assert not (hosts.out / "output.tar.gz").exists()
    assert f"/opt/ml/{place}" in collected.warnings[0]
    assert failure_reason(hosts.host_dirs, {"algo-1": 1}, first="algo-1") == "AlgorithmError: , exit code: 1"


def test_any_name_that_a_file_can_have_is_kept(tmp_path: Path) -> None:
    hosts = Hosts(tmp_path)
    names = [b"new\nline", "ünï".encode(), b"\xff\xfe", b"-rf", b" ", b"a" * 255, b"quote'\"", b"back\\slash"]
    deep = hosts.model().joinpath(*["d" * 200] * 3)
    deep.mkdir(parents=True)
    (deep / "file").write_text("deep")
    for name in names:
        (hosts.model() / os.fsdecode(name)).write_bytes(name)
    (hosts.model() / "link-\udcff").symlink_to("\udcff\udcfe")
    hosts.collect()
    files = hosts.files()
    assert files.pop("/".join(["d" * 200] * 3 + ["file"])) == b"deep"
    assert {os.fsencode(name): content for name, content in files.items()} == {name: name for name in names}


def test_warnings_stay_short_and_can_be_written_whatever_the_names_are(tmp_path: Path) -> None:
    hosts = Hosts(tmp_path)
    for number in range(1000):
        (hosts.model() / f"{number:04}-\udcff\n").symlink_to("/etc")
    warning = hosts.collect().warnings[0]
    assert "and 990 more" in warning
    assert "\n" not in warning
    warning.encode()


def test_what_the_program_made_unreadable_is_taken_all_the_same(tmp_path: Path) -> None:
    hosts = Hosts(tmp_path)
    (hosts.model() / "folder").mkdir()
    (hosts.model() / "folder" / "file").write_text("kept")
    (hosts.model() / "folder" / "file").chmod(0)
    (hosts.model() / "folder").chmod(0)
    hosts.collect()
    assert hosts.files() == {"folder/file": b"kept"}
    assert {name: member.mode for name, member in hosts.members().items()} == {"folder": 0, "folder/file": 0}


@pytest.mark.skipif(not IS_ROOT, reason="only root can make another user's file")
def test_another_users_unreadable_file_is_named_and_nothing_is_lost() -> None:
    with tempfile.TemporaryDirectory(prefix="optml-test-") as name:  # pytest's own folders are closed to others
        folder = Path(name)
        folder.chmod(0o755)
        hosts = Hosts(folder)
        (hosts.model() / "secret").write_text("root's")
        (hosts.model() / "secret").chmod(0o600)
        hosts.job_dir.root.chmod(0o777)
        os.seteuid(65534)
        try:
            with pytest.raises(PlatformError, match=r"cannot read .*/model/secret: it belongs to another user"):
                hosts.collect()
        finally:
            os.seteuid(0)
        assert (hosts.model() / "secret").read_text() == "root's"
        assert not list(hosts.job_dir.archives.iterdir())


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file of this process may grow over 200 kB: the disk's refusal, without a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.usefixtures("small_files")
def test_an_archive_that_cannot_be_written_is_the_platforms_error_and_leaves_all_as_it_was(tmp_path: Path) -> None:
    hosts = Hosts(tmp_path)
    hosts.out.mkdir(parents=True)
    (hosts.out / "model.tar.gz").write_text("an earlier one")
    for number in range(4):
        (hosts.model() / f"part-{number}").write_bytes(os.urandom(150_000))
    with pytest.raises(PlatformError, match=r"cannot write .*model\.tar\.gz: File too large"):
        hosts.collect()
    assert (hosts.out / "model.tar.gz").read_text() == "an earlier one"
    assert len(list(hosts.model().iterdir())) == 4
    assert not list(hosts.job_dir.archives.iterdir())
    assert [path.name for path in hosts.out.iterdir()] == ["model.tar.gz"]


@pytest.mark.parametrize("compressed", [True, False])
def test_a_full_disk_at_the_destination_leaves_the_earlier_output_and_the_hosts_files(
    tmp_path: Path, small_disk: Path, compressed: bool
) -> None:
    hosts = Hosts(tmp_path, output_uri=f"file://{small_disk}", compressed=compressed)
    earlier = small_disk / "job" / "output" / ("model.tar.gz" if compressed else "model/weights")
    earlier.parent.mkdir(parents=True)
    earlier.write_text("an earlier one")
    (hosts.model() / "weights").write_bytes(os.urandom(2_000_000))
    with pytest.raises(PlatformError, match="no space left"):
        hosts.collect()
    assert earlier.read_text() == "an earlier one"
    assert [path for path in small_disk.rglob("*") if path.is_file()] == [earlier], "no partial file"
    assert (hosts.model() / "weights").stat().st_size == 2_000_000


def test_a_full_disk_while_archiving_leaves_no_partial_archive(tmp_path: Path, small_disk: Path) -> None:
    hosts = Hosts(tmp_path)
    hosts.job_dir = JobDir(small_disk / "job")
    hosts.job_dir.root.mkdir()
    (hosts.model() / "weights").write_bytes(os.urandom(2_000_000))
    with pytest.raises(PlatformError, match="no space left"):
        hosts.collect()
    assert not [path for path in small_disk.rglob("*") if path.is_file()]
    assert (hosts.model() / "weights").stat().st_size == 2_000_000


NAMES = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=12).filter(
    lambda name: name not in (".", "..")
)
TARGETS = (
    st.lists(st.one_of(NAMES, st.sampled_from(["..", ".", "/", "/opt/ml/model", "/etc", ""])), min_size=1, max_size=5)
    .map("/".join)
    .filter(bool)
)
TREES = st.recursive(
    st.one_of(st.binary(max_size=20), st.tuples(st.just("link"), TARGETS)),
    lambda children: st.dictionaries(NAMES, children, max_size=4),
    max_leaves=12,
)


def build(folder: Path, tree: Any) -> None:
    if isinstance(tree, bytes):
        folder.write_bytes(tree)
    elif isinstance(tree, tuple):
        folder.symlink_to(tree[1])
    else:
        folder.mkdir(exist_ok=True)
        for name, child in tree.items():
            build(folder / name, child)


def plain_files(folder: Path) -> dict[str, bytes]:
    found = {}
    for parent, _names, names in os.walk(folder):
        for name in names:
            path = Path(parent, name)
            if not path.is_symlink():
                found[str(path.relative_to(folder))] = path.read_bytes()
    return found


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(trees=st.lists(st.dictionaries(NAMES, TREES, max_size=5), min_size=1, max_size=2))
def test_any_tree_extracts_to_the_same_files_and_no_entry_escapes(
    tmp_path_factory: pytest.TempPathFactory, trees: list[dict[str, Any]]
) -> None:
    folder = tmp_path_factory.mktemp("any")
    hosts = Hosts(folder, count=len(trees))
    for host, tree in zip(hosts.host_dirs, trees, strict=True):
        build(hosts.model(host), tree)
    hosts.collect()
    target = folder / "extracted"
    target.mkdir()
    members = hosts.members()
    assert list(members) == sorted(members, key=os.fsencode)
    with tarfile.open(hosts.out / "model.tar.gz") as tar:
        safe = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # not in every Python 3.11
        tar.extractall(target, **safe)  # type: ignore[arg-type]  # refuses what leads out of the folder
    for link in target.rglob("*"):
        if link.is_symlink():
            assert Path(os.path.normpath(link.parent / link.readlink())).is_relative_to(target)
    if len(trees) == 1:
        assert plain_files(target) == plain_files(hosts.model())
    else:
        assert plain_files(hosts.model("algo-2")).items() <= plain_files(target).items()
    with gzip.open(hosts.out / "model.tar.gz") as stream:
        assert len(stream.read()) % 512 == 0
    shutil.rmtree(folder)


def test_the_failure_file_is_the_reason_cut_to_1024_characters_c43(tmp_path: Path) -> None:
    hosts = Hosts(tmp_path)
    hosts.failure().write_text("é" * 5000)
    reason = failure_reason(hosts.host_dirs, {"algo-1": 1}, first="algo-1")
    assert reason is not None
    assert len(reason) == 1024
    assert reason.startswith("AlgorithmError: ééé")
    assert reason.endswith("é, exit code: 1")


def test_without_a_failure_file_the_reason_has_the_exit_code_c42(tmp_path: Path) -> None:
    assert failure_reason(Hosts(tmp_path).host_dirs, {"algo-1": 3}, first="algo-1") == "AlgorithmError: , exit code: 3"


def test_a_failure_file_with_exit_code_0_is_a_reason_and_none_is_none_c45(tmp_path: Path) -> None:
    hosts = Hosts(tmp_path)
    assert failure_reason(hosts.host_dirs, {"algo-1": 0}, first=None) is None
    hosts.failure().write_text(" \n")
    assert failure_reason(hosts.host_dirs, {"algo-1": 0}, first=None) is None
    hosts.failure().write_text("no convergence\n")
    assert failure_reason(hosts.host_dirs, {"algo-1": 0}, first=None) == "AlgorithmError: no convergence, exit code: 0"


def test_the_host_that_failed_first_is_heard_first(tmp_path: Path) -> None:
    hosts = Hosts(tmp_path, count=3)
    codes = {"algo-1": 0, "algo-2": 5, "algo-3": 7}
    hosts.failure("algo-1").write_text("stopped with the others")
    assert (
        failure_reason(hosts.host_dirs, codes, first="algo-3")
        == "AlgorithmError: stopped with the others, exit code: 7"
    )
    hosts.failure("algo-2").write_text("failed later")
    assert failure_reason(hosts.host_dirs, codes, first="algo-3") == "AlgorithmError: failed later, exit code: 7"
    hosts.failure("algo-3").write_text("failed first")
    assert failure_reason(hosts.host_dirs, codes, first="algo-3") == "AlgorithmError: failed first, exit code: 7"


@pytest.mark.parametrize("kind", ["folder", "link", "fifo", "binary", "huge"])
def test_a_failure_file_that_is_no_text_does_no_harm(tmp_path: Path, kind: str) -> None:
    hosts = Hosts(tmp_path)
    (tmp_path / "secret").write_text("not yours")
    failure = hosts.failure()
    expected = ""
    if kind == "folder":
        failure.mkdir()
    elif kind == "link":
        failure.symlink_to(tmp_path / "secret")
    elif kind == "fifo":
        os.mkfifo(failure)
    elif kind == "binary":
        failure.write_bytes(b"\0\xffbad\0")
        expected = "\ufffdbad"
    else:
        failure.write_text("")
        os.truncate(failure, 1 << 40)
    assert failure_reason(hosts.host_dirs, {"algo-1": 1}, first="algo-1") == f"AlgorithmError: {expected}, exit code: 1"
