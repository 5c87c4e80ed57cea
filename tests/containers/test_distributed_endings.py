"""How a run of optml_toolkit.distributed is told to end, and what happens when it cannot end in time."""

import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from tests.hosts import PATIENCE_SECONDS

pytestmark = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="needs pip install 'optml[pytorch]'")

from tests.ranks import Ranks, free_port, ran  # noqa: E402  (it is imported by the processes too)
from tests.training_scripts import TRAIN, model, steps, written  # noqa: E402

TOKEN = "token-of-this-instance=="
NOTICE = {"action": "terminate", "time": "2026-01-31T12:02:00Z"}


class Metadata(ThreadingHTTPServer):
    """EC2's instance metadata, version 2: nothing without a token, and 404 while there is no notice."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), MetadataHandler)
        self.notice: dict[str, str] | None = None
        self.asked: list[str] = []  # requests, and the status that each got

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class MetadataHandler(BaseHTTPRequestHandler):
    server: Metadata

    def do_PUT(self) -> None:
        lifetime = self.headers.get("X-aws-ec2-metadata-token-ttl-seconds", "")
        if self.path == "/latest/api/token" and lifetime.isdecimal() and 1 <= int(lifetime) <= 21600:
            self._answer(200, TOKEN)
        else:
            self._answer(400, "")

    def do_GET(self) -> None:
        if self.headers.get("X-aws-ec2-metadata-token") != TOKEN:
            self._answer(401, "")
        elif self.path == "/latest/meta-data/spot/instance-action" and self.server.notice is not None:
            self._answer(200, json.dumps(self.server.notice))
        else:
            self._answer(404, "<html>404 - Not Found</html>")

    def _answer(self, status: int, text: str) -> None:
        self.server.asked.append(f"{self.command} {self.path} {status}")
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  (the base class's name)
        """Not on the tests' output."""


@pytest.fixture(name="metadata")
def _metadata() -> Iterator[Metadata]:
    with Metadata() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(name="script", scope="module")
def _script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("script"), TRAIN)


@pytest.mark.parametrize("at_once", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["at once", "later"])
def test_a_notice_in_ec2s_metadata_on_one_host_stops_all_at_the_same_step(
    tmp_path: Path, script: Path, metadata: Metadata, *, at_once: bool
) -> None:
    if at_once:
        metadata.notice = NOTICE
    arguments = ("--dir", str(tmp_path / "checkpoints"), "--out", str(tmp_path / "out"), "--steps", "100000")
    own = [{}, {"AWS_EC2_METADATA_SERVICE_ENDPOINT": metadata.endpoint}]
    with Ranks(tmp_path, script, *arguments, "--slow", "0.01", own=own) as ranks:
        if not at_once:
            deadline = time.monotonic() + PATIENCE_SECONDS
            while "GET /latest/meta-data/spot/instance-action 404" not in metadata.asked:
                assert time.monotonic() < deadline, ranks.everything
                time.sleep(0.02)
            assert all(process.is_alive() for process in ranks.processes)
            metadata.notice = NOTICE
        assert ranks.ended() == [0, 0], ranks.everything
    assert "Interrupted (instance metadata: terminate at 2026-01-31T12:02:00Z): step " in ranks.log(0)
    counts = [len(steps(tmp_path / "out", rank)) for rank in (0, 1)]
    assert counts[0] == counts[1]
    assert f"step {counts[0]} is saved" in ranks.log(0)
    assert metadata.asked[0] == "PUT /latest/api/token 200"
    assert metadata.asked[-1] == "GET /latest/meta-data/spot/instance-action 200"


def test_metadata_that_nobody_serves_is_no_notice(tmp_path: Path, script: Path, metadata: Metadata) -> None:
    """A wrong endpoint, and one that knows nothing: the run goes its way."""
    own = [{"AWS_EC2_METADATA_SERVICE_ENDPOINT": address} for address in ("http://127.0.0.1:9", metadata.endpoint)]
    with Ranks(tmp_path, script, "--out", str(tmp_path / "out"), "--slow", "0.02", own=own) as ranks:
        assert ranks.ended() == [0, 0], ranks.everything
    assert "Interrupted" not in ranks.log(0)
    assert "GET /latest/meta-data/spot/instance-action 404" in metadata.asked


def test_a_second_sigterm_in_the_middle_of_the_save_changes_nothing(tmp_path: Path, script: Path) -> None:
    arguments = ("--dir", str(tmp_path / "checkpoints"), "--out", str(tmp_path / "out"), "--steps", "100000")
    with Ranks(tmp_path, script, *arguments, "--slow", "0.01", "--every", "100000", "--slow-save", "1") as ranks:
        ranks.wait_for("step=5 ")
        Path(f"{tmp_path / 'out'}-sent").touch()
        ranks.send(signal.SIGTERM, rank=1)
        wait_until_there(Path(f"{tmp_path / 'out'}-saving"), ranks)
        for rank in (0, 1, 0):
            ranks.send(signal.SIGTERM, rank=rank)
        assert ranks.ended() == [0, 0], ranks.everything
    counts = [len(steps(tmp_path / "out", rank)) for rank in (0, 1)]
    assert counts[0] == counts[1]
    assert f"Interrupted (SIGTERM): step {counts[0]} is saved" in ranks.log(0)
    assert (tmp_path / f"checkpoints/step-{counts[0]:09d}/complete.json").is_file()


WORKERS = """
import os, sys, time, torch
from torch import nn
from torch.utils.data import Dataset
from optml_toolkit import distributed

os.setsid()  # as torchrun has it, which sends its signals to the whole group
class Rows(Dataset):
    def __len__(self):
        return 100000
    def __getitem__(self, number):
        return torch.full((4,), float(number))
def told(number):
    print(f"worker {number} begun", flush=True)
run = distributed.init(dead_peer_seconds=60)
model = distributed.data_parallel(run, nn.Linear(4, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=1e-9)
# These ranks come from a server of processes (tests/ranks.py), from which workers would come too, and run the script anew.
workers = {"num_workers": 2, "multiprocessing_context": "fork", "worker_init_fn": told}
if sys.argv[2] == "batches":
    data = distributed.Batches(run, Rows(), batch_size=8, **workers)
else:
    from torchdata.stateful_dataloader import StatefulDataLoader
    data = StatefulDataLoader(Rows(), batch_size=4, **workers)
training = distributed.Training(run, model, optimizer, data, checkpoint_dir=sys.argv[1], log_every_steps=1)
for batch in training.batches(steps=10000):
    training.step(model(batch).mean())
    time.sleep(0.02)
"""


@pytest.mark.parametrize("loader", ["batches", "stateful"])
def test_a_signal_for_all_of_a_ranks_group_leaves_its_loaders_workers_alone_until_it_has_saved(
    tmp_path: Path, loader: str
) -> None:
    """torchrun signals the group of each rank: a worker that dies of it takes the rank with it, and what was not saved."""
    if loader == "stateful":
        pytest.importorskip("torchdata.stateful_dataloader", reason="needs pip install torchdata")
    script = written(tmp_path / "script", WORKERS)
    with Ranks(tmp_path, script, str(tmp_path / "checkpoints"), loader) as ranks:
        ranks.wait_for("worker 1 begun")
        ranks.wait_for("worker 1 begun", rank=1)
        ranks.wait_for("step=5 ")
        for process in ranks.processes:
            assert process.pid is not None
            os.killpg(process.pid, signal.SIGTERM)
        assert ranks.ended() == [0, 0], ranks.everything
    assert "Interrupted (SIGTERM): step " in ranks.log(0)
    assert "is killed by signal" not in ranks.everything


@pytest.mark.slow
def test_when_the_grace_ends_while_files_are_written_the_last_complete_checkpoint_stands(
    tmp_path: Path, script: Path
) -> None:
    """What a platform does: SIGTERM, and SIGKILL for all when the time is over, here in the middle of 128 MB."""
    folder = tmp_path / "checkpoints"
    arguments = ("--ballast-mb", "128", "--every", "100000", "--dir", str(folder), "--out", str(tmp_path / "out"))
    ran(tmp_path / "first", script, *arguments, "--steps", "7")
    with Ranks(tmp_path / "second", script, *arguments, "--slow", "0.02", "--steps", "100000") as ranks:
        ranks.wait_for("step=10 ")
        ranks.send(signal.SIGTERM, rank=0)
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not (begun := [each for each in folder.glob("step-*/__*") if each.parent.name != "step-000000007"]):
            assert time.monotonic() < deadline, ranks.everything
            time.sleep(0.001)
        for rank in (0, 1):
            ranks.send(signal.SIGKILL, rank=rank)
        assert ranks.ended() == [-signal.SIGKILL, -signal.SIGKILL]
    assert not (begun[0].parent / "complete.json").exists(), "the disk is faster than this test: give it more ballast"
    again = ran(tmp_path / "third", script, *arguments, "--steps", "12")
    assert f"{begun[0].parent.name} was never completed: skipped" in again.log(0)
    assert "Resumed from step 7" in again.log(0)
    ran(tmp_path / "straight", script, "--steps", "12", "--out", str(tmp_path / "straight-out"))
    for rank in (0, 1):
        done = steps(tmp_path / "out", rank)  # some of the killed run's may come after
        expected = steps(tmp_path / "straight-out", rank)
        assert {number: done[number] for number in expected} == expected
    assert model(tmp_path / "out") == model(tmp_path / "straight-out")


LOST = """
import os, signal, sys, time
from optml_toolkit import distributed

class Slow:  # the interpreter's end takes its time, and meanwhile the store answers again
    def __init__(self, other):
        self.other, self.kill, self.clock, self.number = other, os.kill, time.monotonic, signal.SIGCONT.value
    def __del__(self):
        self.kill(self.other, self.number)
        until = self.clock() + 2
        while self.clock() < until:
            pass

run = distributed.init(dead_peer_seconds=100)
first = run.gather(os.getpid())[0]
if run.rank == 1:
    sys.modules["slow"] = Slow(first)
    os.kill(first, signal.SIGSTOP)  # it has the store, at which this process looks every second
    time.sleep(2.5)
    raise ValueError("of the script's own")
time.sleep(0.5)
os._exit(0)
"""


@pytest.mark.slow
def test_a_process_that_an_exception_ends_is_not_aborted_by_its_own_thread(tmp_path: Path) -> None:
    """As real interpreters end: tests/ranks.py leaves that out."""
    script = written(tmp_path, LOST)
    common = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    with contextlib.ExitStack() as stack:
        processes = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, str(script)],
                    env={**os.environ, **common, "RANK": rank, "LOCAL_RANK": rank, "CUDA_VISIBLE_DEVICES": ""},
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
            for rank in ("0", "1")
        ]
        for process in processes:
            stack.callback(process.kill)
        said = processes[1].communicate(timeout=PATIENCE_SECONDS)[1]
    assert "ValueError: of the script's own" in said
    assert processes[1].returncode == 1, said


def test_no_thread_of_the_runs_own_groups_outlives_it(tmp_path: Path) -> None:
    """One that meets the interpreter's end would abort the process, after all was done well. (A model has groups of its own.)"""
    if not Path("/proc/self/task").is_dir():
        pytest.skip("threads have names in /proc of Linux")
    source = """
    from pathlib import Path
    from optml_toolkit import distributed

    def threads():
        return sum("gloo_runloop" in each.read_text() for each in Path("/proc/self/task").glob("*/comm"))

    run = distributed.init()
    for _ in range(10):
        run.gather("something")
    before = threads()
    run.close()
    print("threads that ended:", before - threads())
    """
    done = ran(tmp_path, written(tmp_path, source))
    for rank in (0, 1):
        assert "threads that ended: 4\n" in done.log(rank)  # two for each group


def wait_until_there(path: Path, ranks: Ranks) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not path.exists():
        assert time.monotonic() < deadline, ranks.everything
        time.sleep(0.005)
