"""What training leaves on disk, whole at every moment: checkpoints and the model."""

import logging
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

MODEL = "xgboost-model"
CHECKPOINT = re.compile(r"xgboost-checkpoint\.(?P<round>\d+)")
KEPT_CHECKPOINTS = 5
# And none goes sooner: an uploader that looks now and then must find some, also where a round takes a few milliseconds.
LIFE_SECONDS = 1.0

log = logging.getLogger("xgboost")


class Checkpoints:
    """xgboost-checkpoint.<round> in the job's checkpoint folder, rounds from 0; nothing happens for a job without one."""

    def __init__(self, folder: Path | None):
        self.folder = folder
        rounds = sorted(self._rounds())
        self._kept = frozenset(rounds)  # those of an earlier run are its own
        self.next_round = rounds[-1] + 1 if rounds else 0
        if rounds:
            log.info("Checkpoint loaded from %s", self._file(rounds[-1]))
            log.info("Resuming from iteration %s", self.next_round)

    @property
    def newest(self) -> bytearray | None:
        """The model to go on from, as bytes: by their name, XGBoost would guess the format."""
        return bytearray(self._file(self.next_round - 1).read_bytes()) if self.next_round else None

    def model_of(self, number: int) -> bytearray | None:
        """The model of that round, if it is still there."""
        return bytearray(self._file(number).read_bytes()) if number in self._rounds() else None

    def _rounds(self) -> list[int]:
        if self.folder is None or not self.folder.is_dir():
            return []
        found = (CHECKPOINT.fullmatch(name) for name in os.listdir(self.folder))
        return [int(match["round"]) for match in found if match]

    def _file(self, number: int) -> Path:
        assert self.folder is not None
        return self.folder / f"xgboost-checkpoint.{number}"

    def write(self, booster: Any, number: int) -> None:
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            save(booster, self._file(number))
            self.prune(keep=KEPT_CHECKPOINTS, older_than_seconds=LIFE_SECONDS)

    def prune(self, *, keep: int, older_than_seconds: float = 0.0) -> None:
        """Remove this run's older ones, unless their upload is under way."""
        mine = sorted(set(self._rounds()) - self._kept)
        for number in mine[: max(0, len(mine) - keep)]:
            file = self._file(number)
            if older_than_seconds and time.time() - file.stat().st_mtime < older_than_seconds:
                return
            uploading, uploaded = (file.with_name(f"{file.name}.sagemaker-upload{end}") for end in ("ing", "ed"))
            if not uploading.exists() or uploaded.exists():
                file.unlink(missing_ok=True)


def save(booster: Any, file: Path) -> None:
    """A model under its final name is whole: written beside it, under a name that is not uploaded, then renamed."""
    beside = file.with_name(f"{file.name}.sagemaker-ignore")
    beside.write_bytes(booster.save_raw(raw_format="ubj"))
    beside.replace(file)


def leave(model_dir: Path) -> None:
    """On SIGTERM, with save_model_on_termination: the model of the last whole round is what stays."""
    for path in model_dir.iterdir():
        if path.is_file() and (not path.name.startswith(MODEL) or path.name.endswith(".sagemaker-ignore")):
            path.unlink()
    sys.stdout.flush()
    os._exit(0)  # at once: XGBoost crashes at the end of a process that has left its hosts in the middle of a round
