"""One attempt of a job: its hosts' disks, their launch, and what the supervisor looks at while they run.

What a plan of interruptions does to hosts is done here too: the notice, the store that is away.
"""

import contextlib
import json
import math
import os
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TextIO

from optml import contract, kept_requirements, machine, plan, stage
from optml import record as records
from optml.backends import Backend, Host, Launch
from optml.capacity import Lease, TriggerWatch
from optml.checkpoints import FINAL_TRIES, CheckpointMirror, stage_mirrored_folders
from optml.clock import Clock
from optml.console import Console, count_text, duration_text
from optml.errors import OptmlError, PlatformError
from optml.events import Events, StepReader
from optml.images import Image
from optml.instance_metadata import Instance, Notice
from optml.jobdir import HostDir
from optml.logs import LogReader, streams
from optml.meeting import Slot, take_slot
from optml.metrics import MetricScraper
from optml.pipes import PipeFeeder
from optml.record import Record
from optml.spec import OPT_ML, How, InputMode, SignalTo, TrainingJob, Trigger
from optml.supervise import Ended, Interruption, Limits, Why, supervise

MIRROR_SECONDS = 0.25
INTERRUPTED_TRIES = 2  # of the last upload from a machine that is being taken away
STARTS_AT_ONCE = 8


class Attempt:
    """Use in order: stage, run, finish_mirrors; discard if the machine was lost, save_checkpoints first if it was taken."""

    def __init__(
        self,
        job: TrainingJob,
        record: Record,
        backend: Backend,
        console: Console,
        clock: Clock,
        *,
        number: int,
        events: Events,
    ):
        self.events = events
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
        self._notices: dict[str, Notice] = {}
        self._slot = Slot()
        self._held: TextIO | None = None  # a folder that nobody shall remove while hosts use it
        self._disks: dict[str, int] = {}  # descriptors of hosts' checkpoint folders that stand on disks of their own
        self._disks_full_until: float | None = None  # monotonic
        self.printed = False  # whether a host has printed a line
        self.saved = False  # whether a checkpoint was uploaded while it ran
        self.trigger: Trigger | None = None  # what ended the lease, where its time did not

    def stage(self, image: Image, listings: Mapping[str, stage.Listing], *, check: Callable[[], None]) -> None:
        """Fill the hosts' disks and plan their launch. `check` may raise to break off."""
        began = self.clock.monotonic()

        def progress(step: str, done_bytes: int, total_bytes: int | None) -> None:
            check()
            self.console.progress(step, done_bytes, total_bytes)

        self.record.local["attempts"] = self.number
        self.events.attempt = self.number
        self.events.note("attempt-started")
        capabilities = self.backend.capabilities()
        if len(self.job.hosts) > 1 and capabilities.shared_network and not self.job.network_isolation:
            self._slot = take_slot()
        mounts = stage.stage(
            self.job,
            self.record.job_dir,
            attempt=self.number,
            capabilities=capabilities,
            interface=plan.interface_of(self.job, self.backend),
            listings=listings,
            slot=self._slot.number,
            progress=progress,
        )
        self._mirrors = stage_mirrored_folders(
            self.job, self.host_dirs, clock=self.clock, spool=self.folder, note=self._note_upload
        )
        self._note_restored()
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
        if self.job.options.interruptions is not None:
            self._launches = [self._interruptible(launch) for launch in self._launches]
        if self.backend.containers and self.backend.capabilities().views:
            folder = kept_requirements.folder_for(self.job, image)
            if folder is not None:
                self._held = kept_requirements.hold(folder)
                self._launches = [kept_requirements.shown(launch, folder) for launch in self._launches]
        for launch in self._launches:
            self.events.note("log", launch.host, Stream=launch.log_file.name)
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

    def _interruptible(self, launch: Launch) -> Launch:
        """What the plan of interruptions needs of a host from its start on."""
        interruptions, checkpoint = self.job.options.interruptions, self.job.checkpoint
        assert interruptions is not None
        disk = None
        if interruptions.how is How.FULL_DISK and interruptions.host in (None, launch.host):
            assert checkpoint is not None
            disk = checkpoint.local_path
        return replace(
            launch,
            instance=self._instance(launch.host),
            disk=disk,
            signals_everyone=interruptions.signal_to is SignalTo.EVERY_PROCESS,
        )

    def _instance(self, name: str) -> Instance:
        instance_type = next(host.instance_type for host in self.job.hosts if host.name == name)
        instance = Instance.of(
            job_name=self.job.name, attempt=self.number, host=name, instance_type=instance_type, region=self.job.region
        )
        self._notices[name] = instance.notice
        return instance

    def _note_restored(self) -> None:
        if self.job.checkpoint is None:
            return
        mirror = self._mirrors[0]
        count = len({path for files in mirror.uploaded.values() for path in files})
        size_bytes = sum(version.size_bytes for files in mirror.uploaded.values() for version in files.values())
        self.events.note("checkpoint-restored", Count=count, Bytes=size_bytes)
        if count:
            self.console.say(f"Checkpoints: {count_text(count, 'object')} from {self.job.checkpoint.uri}")
        if self.events.wanted and mirror.watch_reads():
            self._restored = mirror

    def _note_upload(self, kind: str, host: str, **facts: object) -> None:
        self.saved = True
        self.events.note(kind, host, **facts)

    def run(
        self,
        limits: Limits,
        *,
        stop_requested: Callable[[], bool],
        hurry: Callable[[], bool],
        on_ending: Callable[[Why], None],
        lease: Callable[[], Lease | None] = lambda: None,
        on_no_host_ends: Callable[[], None] = lambda: None,
    ) -> Ended:
        """Start the hosts and watch them to their end. No process, pipe or mount of theirs is left.

        `lease` is asked when the hosts run; where an interruption ends no host (the store is away, a disk is full),
        `on_no_host_ends` is called each time, and `lease` asked again.
        """
        look = _Look(self)
        hosts: list[Host] = []
        try:
            for feeder in self._feeders:
                feeder.start()
            self._start(hosts)
            self._find_disks(hosts)
            self._start_mirroring()
            self.events.note("training")
            self._training_began = time.time()
            watch = _LeaseWatch(self, hosts, lease, on_no_host_ends, look)
            ended = supervise(
                hosts,
                limits=limits,
                clock=self.clock,
                stop_requested=stop_requested,
                hurry=hurry,
                look=look,
                input_error=self._input_error,
                on_ending=lambda why: self._before_the_end(why, on_ending),
                lease_over_since=watch.over_since,
                interruption=watch.interruption,
                before_kill=lambda: self._look_before_end(killed=True),
                note=self.events.note,
            )
        except BaseException:
            self._stop_mirroring()  # it looks at them
            self._let_disks_go()
            raise
        finally:
            for host in hosts:
                host.kill()
            self._slot.give_back()
            self._stop_mirroring()
            for feeder in self._feeders:
                feeder.stop()
            look(final=True)
        self.record.local["exit_codes"] = dict(ended.exit_codes)
        if final := look.scraper.final():
            self.record.describe["FinalMetricDataList"] = final
        self.record.local["warnings"] += look.scraper.warnings
        self.record.save()
        self._killed = (*ended.killed, *ended.cut_short)
        self._doubtful = tuple(host for host, code in ended.exit_codes.items() if code > 128)
        self._note_traces()
        self.events.note("ended", Why=str(ended.why))
        return ended

    _killed: tuple[str, ...] = ()  # hosts whose programs may have been in the middle of writing a file
    # Hosts whose exit code may be that of a process below their main one that was killed.
    _doubtful: tuple[str, ...] = ()
    _restored: CheckpointMirror | None = None  # where it can be seen whether restored files are read

    def _note_traces(self) -> None:
        """What the programs left that a drill asks for: whether they read what was restored, and what they saved elsewhere."""
        if not self.events.wanted:
            return
        if (mirror := self._restored) is not None and (mirror.unread or mirror.read or mirror.replaced):
            mirror.look_at_reads()
            for host in self.host_dirs:
                read = [path for name, path in mirror.read if name == host]
                unread = [path for name, path in (*mirror.unread, *mirror.replaced) if name == host]
                self.events.note("checkpoint-read", host, Read=sorted(read)[:20], Unread=sorted(unread)[:20])
        for mirror in self._mirrors[: self.job.checkpoint is not None]:  # the first is that of the checkpoints
            for (host, path), looks in sorted(mirror.unsettled.items())[:20]:
                self.events.note(
                    "checkpoint-unsettled", host, Path=path, Open=looks.open_count, Closed=looks.closed_count
                )
            for (host, path), target in sorted(mirror.links.items())[:20]:
                self.events.note("checkpoint-link", host, Path=path, Target=target)
        for host, host_dir in self.host_dirs.items():
            kept = self.job.checkpoint.local_path if self.job.checkpoint is not None else None
            if found := saved_elsewhere(host_dir.ml, kept, self.job.options.working_dir, since=self._training_began):
                self.events.note("saved-elsewhere", host, Files=found)

    _training_began = 0.0  # epoch seconds, of the machine's own clock: it is compared with the times of files

    def _before_the_end(self, why: Why, on_ending: Callable[[Why], None]) -> None:
        """An interruption's notice, in every way in which a program may hear of it; SIGTERM follows."""
        on_ending(why)
        if why not in (Why.FINISHED, Why.FAILED, Why.LOST):  # every host lives, and is about to hear SIGTERM
            self._look_before_end(killed=False)
        interruptions = self.job.options.interruptions
        if why is not Why.INTERRUPTED or interruptions is None or not interruptions.notice_seconds:
            return
        ends_at = self.clock.now() + interruptions.notice_seconds
        for name, notice in self._notices.items():
            if interruptions.host not in (None, name):
                continue
            self.events.note("notice", name, Seconds=interruptions.notice_seconds)
            if interruptions.how is How.HANG:
                continue  # nobody is there to hear it
            notice.ends_at = ends_at
            with contextlib.suppress(OSError):  # the program may have removed the folder: its own business
                write_notice(self.host_dirs[name].ml, notice)

    def _look_before_end(self, *, killed: bool) -> None:
        for mirror in self._mirrors:
            mirror.look_before_end(killed=killed)

    def store_away(self, seconds: float) -> None:
        """The checkpoint store refuses for so long."""
        self.events.note("store-away", Seconds=seconds)
        self.console.say(f"interruption: the checkpoint store is away for {duration_text(seconds)}")
        for mirror in self._mirrors:
            mirror.away_until = self.clock.monotonic() + seconds

    def _find_disks(self, hosts: Sequence[Host]) -> None:
        """The uploader looks at what a host's checkpoint folder stands on, which may not be this machine's disk."""
        for host in hosts:
            if (descriptor := host.disk) is not None:
                self._disks[host.name] = descriptor
                self._mirrors[0].stands_on(host.name, descriptor)

    def _let_disks_go(self) -> None:
        while self._disks:
            os.close(self._disks.popitem()[1])

    def fill_disks(self, hosts: Sequence[Host], seconds: float) -> None:
        """The checkpoint folders of hosts take no more bytes for so long."""
        self.console.say(
            f"interruption: the disk of the checkpoints is full for {duration_text(seconds)}", important=True
        )
        for host in (host for host in hosts if host.name in self._disks):
            host.fill_disk(full=True)
            self.events.note("disk-full", host.name, Seconds=seconds)
        self._disks_full_until = self.clock.monotonic() + seconds

    def free_disks(self, hosts: Sequence[Host]) -> None:
        """If it is time."""
        if self._disks_full_until is None or self.clock.monotonic() < self._disks_full_until:
            return
        self._disks_full_until = None
        for host in (host for host in hosts if host.name in self._disks):
            host.fill_disk(full=False)
            self.events.note("disk-freed", host.name)

    def _start(self, hosts: list[Host]) -> None:
        """Start every host, and append it to `hosts`. A container takes a moment to start, so they do it side by side."""
        if not self.backend.containers or len(self._launches) == 1:
            for launch in self._launches:
                hosts.append(self.backend.start(launch))
            return

        def start(launch: Launch) -> None:
            hosts.append(self.backend.start(launch))  # at once: whatever breaks this off, who has started is known

        with ThreadPoolExecutor(STARTS_AT_ONCE) as pool:
            starting = [pool.submit(start, launch) for launch in self._launches]
        names = [launch.host for launch in self._launches]
        hosts.sort(key=lambda host: names.index(host.name))
        errors = [error for each in starting if (error := each.exception()) is not None]
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
        for mirror in self._mirrors:
            mirror.let_go()

    def finish_mirrors(self, *, tries: int = FINAL_TRIES) -> None:
        for mirror in self._mirrors:
            mirror.final(killed=self._killed, doubtful=self._doubtful, tries=tries)
            left_out = [
                f"{path} of {host} was not uploaded: its program was killed while or just after it wrote that, so it may be torn"
                for host, path in mirror.left_out
            ]
            for host, path in mirror.left_out:
                self.events.note("checkpoint-left-out", host, Path=path)
            for warning in (*mirror.warnings, *left_out):
                self.console.say(f"warning: {warning}", important=True)
            self.record.local["warnings"] += [*mirror.warnings, *left_out]
        self._let_disks_go()

    def save_checkpoints(self) -> None:
        """The last upload from a machine that is taken away with a notice. What the store does not take now is lost with it."""
        try:
            self.finish_mirrors(tries=INTERRUPTED_TRIES)
        except PlatformError as error:
            self.console.say(f"warning: {error}; what was not uploaded is gone with the machine", important=True)
            self.record.local["warnings"].append(str(error))

    def discard(self) -> None:
        """The machines are gone, and their disks with them."""
        self._let_disks_go()
        for host_dir in self.host_dirs.values():
            self.backend.sweep(host_dir)
        self.events.note("machine-gone")
        with contextlib.suppress(FileNotFoundError):
            records.remove_tree(self.folder)


def write_notice(ml: Path, notice: Notice) -> None:
    """The notice's file, whole. OSError if a link stands in its way: a program may do what it likes with its /opt/ml."""
    file = contract.interruption_notice_file(ml)
    beside = f"{file.name}.tmp"
    folder = os.open(ml, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for name in file.relative_to(ml).parts[:-1]:
            above, folder = folder, os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=folder)
            os.close(above)
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644, dir_fd=folder)
        os.fchmod(descriptor, 0o644)  # whatever the umask: the program may be another user's
        with open(descriptor, "w", encoding="utf-8") as stream:  # noqa: PTH123  (a descriptor)
            json.dump(notice.document(), stream)
        os.replace(beside, file.name, src_dir_fd=folder, dst_dir_fd=folder)
    finally:
        os.close(folder)


class _Look:
    """Follow the hosts' logs: show the lines, scrape the metrics."""

    def __init__(self, attempt: Attempt):
        self.attempt = attempt
        self.scraper = MetricScraper(
            attempt.job.metric_definitions, attempt.record.job_dir.metrics_file, clock=attempt.clock
        )
        self.readers = {launch.host: LogReader(launch.log_file) for launch in attempt._launches}
        self.triggers = TriggerWatch(())
        self._steps = StepReader(attempt.job.options.step_regex)
        self._heard: set[str] = set()

    def __call__(self, *, final: bool = False) -> bool:
        something = False
        for host, reader in self.readers.items():
            for lines in reader.read(final=final):
                something = True
                self.attempt.console.host_lines(host, lines)
                for name, count in self.scraper.feed(host, lines, self.attempt.clock.now()).items():
                    self.triggers.saw_metric(host, name, count)
                self.triggers.feed(host, lines)
                if lines:
                    self._note(host, lines)
        return something

    def _note(self, host: str, lines: Sequence[str]) -> None:
        events = self.attempt.events
        if host not in self._heard:
            self._heard.add(host)
            self.attempt.printed = True
            events.note("first-line", host)
        if events.wanted:
            for line in lines:
                if (found := self._steps.read(line)) is not None:
                    events.note("step", host, Numbers=found.numbers, Line=found.form)


class _LeaseWatch:
    """Since when an attempt's lease is over, by its time or by a trigger."""

    def __init__(
        self,
        attempt: Attempt,
        hosts: Sequence[Host],
        lease: Callable[[], Lease | None],
        on_no_host_ends: Callable[[], None],
        look: _Look,
    ):
        self._attempt, self._hosts, self._ask, self._look = attempt, hosts, lease, look
        self._on_no_host_ends = on_no_host_ends
        self._lease = self._renew()
        plan = None if self._lease is None else self._lease.plan
        self.interruption = (
            Interruption()
            if plan is None
            else Interruption(
                notice_seconds=plan.notice_seconds,
                host=plan.host,
                suspends=plan.how is How.HANG,
                everyone=plan.signal_to is SignalTo.EVERY_PROCESS,
            )
        )

    def _renew(self) -> Lease | None:
        lease = self._ask()
        if lease is not None:
            self._look.triggers = TriggerWatch(lease.triggers)
        return lease

    def over_since(self) -> float | None:
        """Monotonic; None: it is not."""
        self._attempt.free_disks(self._hosts)
        lease = self._lease
        if lease is None:
            return None
        self._attempt.trigger = self._look.triggers.due
        now = self._attempt.clock.monotonic()
        since = min(lease.ends_at, math.inf if self._attempt.trigger is None else now)
        if since > now:
            return None
        if lease.plan.how.ends_hosts:
            return since
        if lease.plan.how is How.STORE_AWAY:
            self._attempt.store_away(lease.plan.away_seconds)
        else:
            self._attempt.fill_disks(self._hosts, lease.plan.away_seconds)
        self._on_no_host_ends()
        self._lease = self._renew()
        return None


# Names that programs give to what they save in order to go on later.
SAVED = re.compile(
    r"checkpoint|ckpt|snapshot|\.(pt|pth|ckpt|h5|keras|safetensors|npz|pkl|pickle|joblib|ubj)$", re.IGNORECASE
)
LOOKED_AT = 5_000  # files, at most


def saved_elsewhere(ml: Path, checkpoint_path: str | None, working_dir: Path | None, *, since: float) -> list[str]:
    """Files that look like checkpoints, written since then (epoch seconds) where they are not kept; as the program sees them."""
    kept = None if checkpoint_path is None else contract.inside(ml, checkpoint_path)
    found: list[str] = []
    looked_at = 0
    for root, shown in ((ml, Path(OPT_ML)), (working_dir, working_dir)):
        if root is None or shown is None or root == Path("/"):
            continue
        for parent, folders, names in os.walk(root):
            if looked_at > LOOKED_AT:
                break
            here = Path(parent)
            folders[:] = [name for name in folders if here / name not in (kept, ml / "input") and name[:1] != "."]
            for name in names:
                looked_at += 1
                with contextlib.suppress(OSError):
                    if SAVED.search(f"{here.name}/{name}") and (here / name).stat().st_mtime >= since:
                        found.append(str(shown / (here / name).relative_to(root)))
    return found[:20]
