"""One attempt of a job: its hosts' disks, their launch, and what the supervisor looks at while they run."""

import contextlib
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from optml import contract, machine, plan, stage
from optml import record as records
from optml.backends import Backend, Host, Launch
from optml.checkpoints import CheckpointMirror, stage_mirrored_folders
from optml.clock import Clock
from optml.console import Console, duration_text
from optml.errors import OptmlError
from optml.images import Image
from optml.jobdir import HostDir
from optml.logs import LogReader, streams
from optml.metrics import MetricScraper
from optml.pipes import PipeFeeder
from optml.record import Record
from optml.spec import InputMode, TrainingJob
from optml.supervise import Ended, Limits, Why, supervise

MIRROR_SECONDS = 1.0
STARTS_AT_ONCE = 8


class Attempt:
    """Use in order: stage, run, finish_mirrors; discard if the machine was lost."""

    def __init__(
        self, job: TrainingJob, record: Record, backend: Backend, console: Console, clock: Clock, *, number: int
    ):
        self.job, self.record, self.backend, self.console, self.clock = job, record, backend, console, clock
        self.number = number
        self.folder: Path = record.job_dir.attempts / str(number)
        self.host_dirs: dict[str, HostDir] = {
            host.name: record.job_dir.host(number, host.name) for host in sorted(job.hosts, key=lambda host: host.name)
        }
        self._launches: list[Launch] = []
        self._feeders: list[PipeFeeder] = []
        self._mirrors: list[CheckpointMirror] = []
        self._mirror_stop = threading.Event()
        self._mirror_thread: threading.Thread | None = None

    def stage(self, image: Image, listings: Mapping[str, stage.Listing], *, check: Callable[[], None]) -> None:
        """Fill the hosts' disks and plan their launch. `check` may raise to break off."""
        began = self.clock.monotonic()

        def progress(step: str, done_bytes: int, total_bytes: int | None) -> None:
            check()
            self.console.progress(step, done_bytes, total_bytes)

        self.record.local["attempts"] = self.number
        mounts = stage.stage(
            self.job,
            self.record.job_dir,
            attempt=self.number,
            capabilities=self.backend.capabilities(),
            interface=plan.interface_of(self.job, self.backend),
            listings=listings,
            progress=progress,
        )
        self._mirrors = stage_mirrored_folders(self.job, self.host_dirs, clock=self.clock)
        self._launches = plan.plan(
            self.job,
            self.record.job_dir,
            image,
            self.backend,
            attempt=self.number,
            started=max([self.clock.now(), *(stream.started + 1 for stream in streams(self.record.job_dir))]),
            mounts=mounts,
            cpus=machine.cpu_numbers(),
            gpus=machine.gpu_numbers() if plan.wants_gpus(self.job) else (),
        )
        self._feeders = [
            PipeFeeder(
                channel,
                listings[channel.name].objects,
                contract.data_dir(self.host_dirs[host.name].ml),
                host_index=index,
                host_count=len(self.job.hosts_of(channel)),
            )
            for channel in self.job.channels
            if channel.input_mode is InputMode.PIPE
            for index, host in enumerate(self.job.hosts_of(channel))
        ]
        self.console.step_done()
        if self.job.channels or self.job.checkpoint:
            self.console.say(f"Input ready ({duration_text(self.clock.monotonic() - began)})")

    def run(
        self,
        limits: Limits,
        *,
        stop_requested: Callable[[], bool],
        hurry: Callable[[], bool],
        on_ending: Callable[[Why], None],
    ) -> Ended:
        """Start the hosts and watch them to their end. No process, pipe or mount of theirs is left."""
        look = _Look(self)
        hosts: list[Host] = []
        try:
            for feeder in self._feeders:
                feeder.start()
            self._start_mirroring()
            self._start(hosts)
            ended = supervise(
                hosts,
                limits=limits,
                clock=self.clock,
                stop_requested=stop_requested,
                hurry=hurry,
                look=look,
                input_error=self._input_error,
                on_ending=on_ending,
            )
        finally:
            for host in hosts:
                host.kill()
            self._stop_mirroring()
            for feeder in self._feeders:
                feeder.stop()
            look(final=True)
        self.record.local["exit_codes"] = dict(ended.exit_codes)
        if final := look.scraper.final():
            self.record.describe["FinalMetricDataList"] = final
        self.record.local["warnings"] += look.scraper.warnings
        self.record.save()
        return ended

    def _start(self, hosts: list[Host]) -> None:
        """Start every host, and append it to `hosts`. A container takes a moment to start, so they do it side by side."""
        if not self.backend.containers or len(self._launches) == 1:
            for launch in self._launches:
                hosts.append(self.backend.start(launch))
            return
        with ThreadPoolExecutor(STARTS_AT_ONCE) as pool:
            starting = [pool.submit(self.backend.start, launch) for launch in self._launches]
        errors = [error for start in starting if (error := start.exception()) is not None]
        hosts += [start.result() for start in starting if start.exception() is None]
        if errors:
            raise errors[0]

    def _input_error(self) -> OptmlError | None:
        return next((feeder.error for feeder in self._feeders if feeder.error is not None), None)

    def _start_mirroring(self) -> None:
        if not self._mirrors:
            return
        self._mirror_stop.clear()

        def mirror() -> None:
            said: OptmlError | None = None
            while not self._mirror_stop.wait(MIRROR_SECONDS):
                for each in self._mirrors:
                    each.sync()
                    if each.error is not None and said is None:
                        said = each.error
                        self.console.say(f"warning: {said}; trying again until the job ends", important=True)

        self._mirror_thread = threading.Thread(target=mirror, name="mirror", daemon=True)
        self._mirror_thread.start()

    def _stop_mirroring(self) -> None:
        self._mirror_stop.set()
        if self._mirror_thread is not None:
            self._mirror_thread.join()
            self._mirror_thread = None

    def finish_mirrors(self) -> None:
        for mirror in self._mirrors:
            mirror.final()
            for warning in mirror.warnings:
                self.console.say(f"warning: {warning}", important=True)
            self.record.local["warnings"] += mirror.warnings

    def discard(self) -> None:
        """The machines are gone, and their disks with them."""
        for host_dir in self.host_dirs.values():
            self.backend.sweep(host_dir)
        with contextlib.suppress(FileNotFoundError):
            records.remove_tree(self.folder)


class _Look:
    """Follow the hosts' logs: show the lines, scrape the metrics."""

    def __init__(self, attempt: Attempt):
        self.attempt = attempt
        self.scraper = MetricScraper(
            attempt.job.metric_definitions, attempt.record.job_dir.metrics_file, clock=attempt.clock
        )
        self.readers = {launch.host: LogReader(launch.log_file) for launch in attempt._launches}

    def __call__(self, *, final: bool = False) -> bool:
        something = False
        for host, reader in self.readers.items():
            for lines in reader.read(final=final):
                something = True
                self.attempt.console.host_lines(host, lines)
                self.scraper.feed(host, lines, self.attempt.clock.now())
        return something
