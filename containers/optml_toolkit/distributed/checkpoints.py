"""Checkpoints that exist only when they are whole.

    <folder>/step-000000100/__<rank>_0.distcp, .metadata      written by torch.distributed.checkpoint, each rank its part
    <folder>/step-000000100/complete.json                     last, renamed into place: every file's size and CRC-32
    <folder>/step-000000100.1/...                             the same step saved again; the former goes when this one is complete

Without complete.json, or where a file differs from what it says, there is no checkpoint: `look` decides that for saving,
loading and pruning. Hosts need not share the folder: when a run is taken up, what a host lacks comes from the others.
"""

import contextlib
import json
import logging
import os
import re
import shutil
import threading
import time
import zlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from optml_toolkit.container import Container, UserError
from optml_toolkit.distributed.setup import Run
from optml_toolkit.distributed.state import is_sharded

if TYPE_CHECKING:  # a second to import: the first save and the first load do it, not every start
    from torch.distributed.checkpoint.metadata import Metadata

log = logging.getLogger("optml_toolkit.distributed")

COMPLETE = "complete.json"
# SageMaker's uploader leaves files of this name alone.
UNFINISHED = ".sagemaker-ignore"
PIECE_BYTES = 16 << 20
FORMAT = 1


Version = tuple[int, int]  # the step, and how often it was saved again


def folder_name(version: Version) -> str:
    step, again = version
    return f"step-{step:09d}" + (f".{again}" if again else "")


def version_of(folder: Path) -> Version | None:
    found = re.fullmatch(r"step-(\d+)(?:\.(\d+))?", folder.name, re.ASCII)
    return None if found is None else (int(found[1]), int(found[2] or 0))


def default_folder(container: Container) -> Path:
    """$SM_CHECKPOINT_DIR, else CheckpointConfig's LocalPath, else /opt/ml/checkpoints. UserError outside of a job."""
    if named := os.environ.get("SM_CHECKPOINT_DIR"):
        return Path(named)
    if container.checkpoint_dir is not None:
        return container.checkpoint_dir
    if container.config_dir.is_dir():
        return container.root / "checkpoints"
    raise UserError(
        "there is no folder for checkpoints, for this is no SageMaker job: set SM_CHECKPOINT_DIR, or say checkpoint_dir=..., "
        "or False for none"
    )


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a folder has of a checkpoint: the commit marker, if it is there, and the facts of each file, read and summed up."""

    manifest: Mapping[str, Any] | None
    facts: Mapping[str, Mapping[str, int]]

    def sound(self, manifest: Mapping[str, Any]) -> set[str]:
        """Files that are here as a marker (perhaps another host's) says."""
        return {name for name, facts in manifest["files"].items() if self.facts.get(name) == facts}


def look(folder: Path) -> Found:
    manifest = None
    try:
        read = json.loads((folder / COMPLETE).read_bytes())
        if (
            read["step"] == (version_of(folder) or (None,))[0]
            and read["format"] == FORMAT
            and isinstance(read["files"], dict)
        ):
            manifest = read
    except (OSError, ValueError, KeyError, TypeError):
        pass
    try:
        names = [file.name for file in folder.iterdir() if file.is_file() and file.name != COMPLETE]
    except OSError:
        names = []
    found = {name: _facts(folder / name) for name in names}
    return Found(manifest=manifest, facts={name: facts for name, facts in found.items() if facts is not None})


def is_complete(folder: Path) -> bool:
    """Whether all of a checkpoint is in this folder, as its marker says. (Over several hosts: `Checkpoints.newest`.)"""
    found = look(folder)
    return found.manifest is not None and found.sound(found.manifest) == found.manifest["files"].keys()


def _facts(file: Path) -> dict[str, int] | None:
    """Size and CRC-32; None if it cannot be read."""
    size, checksum = 0, 0
    try:
        with file.open("rb") as stream:
            while piece := stream.read(1 << 20):
                size += len(piece)
                checksum = zlib.crc32(piece, checksum)
    except OSError:
        return None
    return {"size_bytes": size, "crc32": checksum}


def _told(error: BaseException) -> str:
    """The reason in an error of torch's writer, which wraps that of the system."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.strerror:
            return f"{seen.filename or 'the checkpoint folder'}: {seen.strerror}"
        seen = seen.__cause__ or seen.__context__
    return f"{type(error).__name__}: {error}"


def _bytes(size: float) -> str:
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} GB"


class Checkpoints:
    """Save and load tables of tensors and bytes. Every method but `folder` is a collective call."""

    def __init__(self, run: Run, folder: Path, *, keep: int = 3):
        """`keep`: complete checkpoints that stay; older ones go. UserError if the folder cannot be written."""
        if keep < 1:
            raise UserError(f"keep must be at least 1, got {keep}")
        self.run, self.folder, self.keep = run, folder, keep
        problem = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            trial = folder / f"trial-{run.rank}{UNFINISHED}"
            trial.write_bytes(b"")
            trial.unlink()
        except OSError as error:
            problem = f"the checkpoint folder {folder} of rank {run.rank} cannot be written: {error.strerror}"
        if problems := [each for each in run.gather(problem) if each is not None]:
            raise UserError(f"{problems[0]}; make it writable, or give another checkpoint_dir")
        self.failures = 0  # saves that came to nothing
        self.last: Version | None = None  # the newest complete checkpoint that this run knows of
        self._writing: threading.Thread | None = None
        self._copied = threading.Event()
        self._copied.set()
        self._buffers: dict[str, torch.Tensor] = {}

    @property
    def last_step(self) -> int | None:
        return None if self.last is None else self.last[0]

    # Saving.

    def save(self, step: int, contents: Mapping[str, Any], *, wait: bool, later: Collection[str] = ()) -> None:
        """Write this rank's part of a checkpoint. Without `wait` a thread writes it, from copies.

        `later`: names of tensors that change only after `copied` was called; the thread copies them, beside the training. One
        save at a time: one that comes before the last is written waits for it. What goes wrong is a warning, and the training
        goes on: the last complete checkpoint stands, also if it is of the same step.
        """
        self.finish()
        if wait:
            self._write(step, dict(contents), None)
            return
        for name in self._buffers.keys() - contents.keys():
            del self._buffers[name]
        staged = self._copy({name: value for name, value in contents.items() if name not in later})
        rest = {name: value for name, value in contents.items() if name in later}
        self._copied.clear()
        self._writing = threading.Thread(
            target=self._copy_and_write, args=(step, staged, rest), name=f"checkpoint-{step}", daemon=True
        )
        self._writing.start()
        self.run.writing = [self._writing]

    def _copy_and_write(self, step: int, staged: dict[str, Any], rest: Mapping[str, Any]) -> None:
        problem = None
        try:
            staged |= self._copy(rest)
        except (RuntimeError, MemoryError) as error:
            problem = _told(error)
        finally:
            self._copied.set()
        self._write(step, staged, problem)

    def copied(self) -> None:
        """Wait until the copies of a save that is under way are made: from then on everything may change."""
        self._copied.wait()

    def finish(self) -> None:
        """Wait until the save that is being written, if any, is complete or has failed."""
        if self._writing is not None:
            self._writing.join()
            self._writing = None
            self.run.writing = []

    def _copy(self, contents: Mapping[str, Any]) -> dict[str, Any]:
        """To the CPU's memory, into buffers that are kept: new memory costs more than the copy."""
        staged: dict[str, Any] = {}
        sharded = {name: value for name, value in contents.items() if is_sharded(value)}
        if sharded:
            from torch.distributed.checkpoint.staging import BlockingAsyncStager

            staged |= BlockingAsyncStager().stage(sharded)
        for name, value in contents.items():
            if name in sharded:
                continue
            if isinstance(value, torch.Tensor):
                buffer = self._buffers.get(name)
                if buffer is None or buffer.shape != value.shape or buffer.dtype != value.dtype:
                    buffer = torch.empty(value.shape, dtype=value.dtype, pin_memory=value.is_cuda)
                    self._buffers[name] = buffer
                buffer.copy_(value.detach())
                staged[name] = buffer
            else:
                staged[name] = value
        return staged

    def _write(self, step: int, contents: dict[str, Any], problem: str | None) -> None:
        """Parts, then their checksums to rank 0, then the commit marker. The ranks agree on whether it came to anything."""
        run = self.run
        version = (step, 0 if self.last is None or self.last[0] != step else self.last[1] + 1)
        folder = self.folder / folder_name(version)
        began = time.monotonic()
        files: dict[str, dict[str, int] | None] = {}
        try:
            if run.first_of_host:
                (folder / COMPLETE).unlink(missing_ok=True)
                shutil.rmtree(folder, ignore_errors=True)  # what a torn one left, perhaps of another layout
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            problem = problem or _told(error)
        try:
            problems = self._gather(problem)
            if not any(problems):
                problem = self._write_parts(folder, contents, files)
                problems = self._gather(problem if problem is not None else files)
            written: dict[str, Any] = {}
            for each in problems:
                written |= each if isinstance(each, dict) else {}
            failed = next((f"rank {rank}: {each}" for rank, each in enumerate(problems) if isinstance(each, str)), None)
            size = sum(facts["size_bytes"] for facts in written.values() if facts)
            if failed is None:
                failed = self._gather(self._commit(folder, step, written) if run.first else None)[0]
            if failed is not None:
                self._give_up(version, folder, failed)
                return
            self.last = version
            if run.first:
                log.info("Checkpoint %d: %s in %.2f s", step, _bytes(size), time.monotonic() - began)
            kept = self._gather(self._to_keep(version) if run.first else None)[0]
            if run.first_of_host:
                self._prune(version, kept)
        except RuntimeError as error:  # a peer is gone: the training's own collectives say so too, and end it
            log.warning("Checkpoint %d was not completed: %s", step, error)

    def _write_parts(
        self, folder: Path, contents: dict[str, Any], files: dict[str, dict[str, int] | None]
    ) -> str | None:
        from torch.distributed.checkpoint.api import CheckpointException
        from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
        from torch.distributed.checkpoint.filesystem import FileSystemWriter
        from torch.distributed.checkpoint.state_dict_saver import save

        try:
            save(
                contents,
                storage_writer=FileSystemWriter(folder, single_file_per_rank=True, sync_files=True, overwrite=True),
                planner=DefaultSavePlanner(flatten_state_dict=False, flatten_sharded_tensors=False),
                process_group=self.run.checkpoint_group,
            )
        except CheckpointException as error:  # every rank gets it, with what happened on each
            failures = error.failures
            mine = failures.get(self.run.rank) or next(iter(failures.values()))
            return self._with_room(_told(mine[0]), contents)
        except OSError as error:
            return _told(error)
        names = [file.name for file in folder.glob(f"__{self.run.rank}_*.distcp")]
        if self.run.first:
            names.append(".metadata")
        for name in names:
            files[name] = _facts(folder / name)
        return next((f"{folder / name} cannot be read back" for name, facts in files.items() if facts is None), None)

    def _with_room(self, problem: str, contents: Mapping[str, Any]) -> str:
        """torch's writer of archives says `unexpected pos` where it should say that the disk is full."""
        needed = sum(
            value.numel() * value.element_size() for value in contents.values() if isinstance(value, torch.Tensor)
        )
        free = shutil.disk_usage(self.folder).free
        if free < needed and "No space left" not in problem:
            return f"{self.folder}: No space left on device ({_bytes(free)} free, {_bytes(needed)} to write)"
        return problem

    def _commit(self, folder: Path, step: int, files: Mapping[str, Any]) -> str | None:
        run = self.run
        manifest = {
            "format": FORMAT,
            "step": step,
            "files": files,
            "world_size": run.world_size,
            "data_size": run.data_size,
            "pipe_size": run.pipe_size,
            "torch": str(torch.__version__),
        }
        try:
            _write_whole(folder / COMPLETE, json.dumps(manifest, indent=1).encode())
        except OSError as error:
            return _told(error)
        return None

    def _give_up(self, version: Version, folder: Path, why: str) -> None:
        self.failures += 1
        if self.run.first_of_host:
            shutil.rmtree(folder, ignore_errors=True)  # nothing complete is in it
        if self.run.first:
            before = self._to_keep(version)
            stands = f"{folder_name(before[-1])} stands" if before else "none is there yet"
            log.warning("Checkpoint %d could not be saved: %s. Training goes on; %s.", version[0], why, stands)

    def _to_keep(self, newest: Version) -> list[Version]:
        """Of each step the newest that is complete. Rank 0 has every marker."""
        versions = sorted(
            version
            for each in self.folder.iterdir()
            if (version := version_of(each)) is not None and version <= newest and (each / COMPLETE).exists()
        )
        return list({step: (step, again) for step, again in versions}.values())[-self.keep :]

    def _prune(self, newest: Version, kept: list[Version]) -> None:
        """Older checkpoints go, and what was never completed; marker first, so that none is ever half there."""
        for each in list(self.folder.iterdir()):
            version = version_of(each)
            if version is not None and version <= newest and version not in kept:
                (each / COMPLETE).unlink(missing_ok=True)
                shutil.rmtree(each, ignore_errors=True)

    def _gather(self, value: Any) -> list[Any]:
        found: list[Any] = [None] * self.run.world_size
        dist.all_gather_object(found, value, group=self.run.checkpoint_group)
        return found

    # Loading.

    def newest(self) -> Version | None:
        """The newest checkpoint that is whole over all hosts; None if there is none.

        Each host has all of its files afterwards. What is torn or corrupted is skipped with a warning that says what is wrong.
        """
        run = self.run
        mine: dict[Version, Path] = {}
        version: Version | None
        if run.first_of_host:
            mine = {version: each for each in self.folder.iterdir() if (version := version_of(each)) is not None}
        for version in sorted({each for versions in run.gather(sorted(mine)) for each in versions}, reverse=True):
            found = None
            if run.first_of_host:
                found = look(mine[version]) if version in mine else Found(manifest=None, facts={})
            everyones: list[Found | None] = run.gather(found)
            manifest = next((each.manifest for each in everyones if each is not None and each.manifest), None)
            name = folder_name(version)
            if manifest is None:
                if run.first:
                    log.warning("%s was never completed: skipped", name)
                continue
            sound = {rank: each.sound(manifest) for rank, each in enumerate(everyones) if each is not None}
            holders = {file: [rank for rank, files in sound.items() if file in files] for file in manifest["files"]}
            if bad := [file for file, ranks in holders.items() if not ranks]:
                if run.first:
                    log.warning("%s is torn or corrupted (%s is missing or differs): skipped", name, bad[0])
                continue
            for file, ranks in holders.items():
                lacking = sorted(sound.keys() - set(ranks))
                if lacking:
                    self._send(self.folder / name / file, manifest["files"][file]["size_bytes"], ranks[0], lacking)
            if run.first_of_host and found is not None and found.manifest is None:
                _write_whole(self.folder / name / COMPLETE, json.dumps(manifest, indent=1).encode())
            run.barrier()
            self.last = version
            return version
        return None

    def _send(self, file: Path, size_bytes: int, source: int, lacking: list[int]) -> None:
        """A file from the rank that has it to those whose hosts lack it."""
        takes = self.run.rank in lacking
        unfinished = file.with_name(f"{file.name}{UNFINISHED}")
        if takes:
            file.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            reads = stack.enter_context(file.open("rb")) if self.run.rank == source else None
            writes = stack.enter_context(unfinished.open("wb")) if takes else None
            for begin in range(0, size_bytes, PIECE_BYTES):
                piece = bytearray(min(PIECE_BYTES, size_bytes - begin))
                if reads is not None:
                    reads.readinto(piece)
                # The tensor shares the piece's memory.
                dist.broadcast(torch.frombuffer(piece, dtype=torch.uint8), src=source, group=self.run.control_group)
                if writes is not None:
                    writes.write(piece)
        if takes:
            unfinished.replace(file)

    def metadata(self, version: Version) -> "Metadata":
        """Names, shapes and types of what a checkpoint holds."""
        from torch.distributed.checkpoint.filesystem import FileSystemReader

        return FileSystemReader(self.folder / folder_name(version)).read_metadata()

    def load(self, version: Version, table: dict[str, Any]) -> None:
        """Fill a table: tensors where they are, bytes replaced in the table."""
        from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
        from torch.distributed.checkpoint.filesystem import FileSystemReader
        from torch.distributed.checkpoint.state_dict_loader import load

        load(
            table,
            storage_reader=FileSystemReader(self.folder / folder_name(version)),
            planner=DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False),
            process_group=self.run.checkpoint_group,
        )


def _write_whole(file: Path, content: bytes) -> None:
    """Beside it, to the disk, then renamed over it."""
    unfinished = file.with_name(f"{file.name}{UNFINISHED}")
    with unfinished.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    unfinished.replace(file)
    handle = os.open(file.parent, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
