"""Lines about the training: loss, throughput, and where a step's time goes. Metric regexes find `loss=([0-9.]+)` and the like."""

import logging
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from optml_toolkit.container import UserError
from optml_toolkit.distributed.setup import Run

log = logging.getLogger("optml_toolkit.distributed")


class Progress:
    """Sums since the last line, times in seconds. `compute` is what is left of a step after the parts that are measured.

    `data`: waiting for a batch. `checkpoint`: the stall of saving. `agree`: hearing whether to stop. `communication`: what
    was waited for gradients (`measure_communication`), and in a pipeline on processors for other stages and copies, the bubble
    included; what runs beside the computation costs nothing and is not in it.
    """

    def __init__(self, run: Run, *, every_steps: int, tensorboard_dir: Path | None = None):
        if every_steps < 1:
            raise UserError(f"log_every_steps must be at least 1, got {every_steps}")
        self.run, self.every_steps = run, every_steps
        self.seconds = {"data": 0.0, "communication": 0.0, "checkpoint": 0.0, "agree": 0.0}
        self.measures_communication = False
        self.samples = self.tokens = self.steps = 0
        self.values: dict[str, Any] = {}
        self._warned = False  # of a loss that is no number
        self._began = time.perf_counter()
        self._board: Any = None
        if tensorboard_dir is not None and run.first:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise UserError(
                    f"tensorboard_dir needs the package tensorboard: pip install tensorboard ({error})"
                ) from None
            self._board = SummaryWriter(str(tensorboard_dir))

    def restart_clock(self) -> None:
        self._began = time.perf_counter()

    def step_done(self, *, step: int, epoch: int) -> None:
        self.steps += 1
        if step % self.every_steps == 0:
            self._line(step, epoch)

    def _line(self, step: int, epoch: int) -> None:
        """Means over the data-parallel ranks; a collective call."""
        elapsed = time.perf_counter() - self._began
        values = {name: _number(value) for name, value in self.values.items()}
        everyones: list[tuple[int, Mapping[str, float], int]] = self.run.gather(
            (self.run.pipe_rank, values, self.tokens)
        )
        peers = [(values, tokens) for pipe_rank, values, tokens in everyones if pipe_rank == 0]
        if self.run.first:
            means = {name: math.fsum(values[name] for values, _ in peers) / len(peers) for name in values}
            facts: dict[str, float] = dict(means)
            if self.samples:
                facts["samples/s"] = self.samples / elapsed
            if tokens := sum(tokens for _, tokens in peers):
                facts["tokens/s"] = tokens / elapsed
            per_step = {name: 1000 * seconds / self.steps for name, seconds in self.seconds.items()}
            whole = 1000 * elapsed / self.steps
            facts["step_ms"] = whole
            facts["compute_ms"] = whole - sum(per_step.values())
            facts |= {
                f"{name}_ms": value
                for name, value in per_step.items()
                if name != "communication" or self.measures_communication
            }
            log.info(
                "step=%d epoch=%d %s", step, epoch, " ".join(f"{name}={_shown(value)}" for name, value in facts.items())
            )
            if not self._warned and not math.isfinite(facts.get("loss", 0.0)):
                self._warned = True
                log.warning("The loss is %s: checkpoints from here on keep what came of it", facts["loss"])
            if self._board is not None:
                for name, value in facts.items():
                    self._board.add_scalar(name, value, step)
        self.seconds = dict.fromkeys(self.seconds, 0.0)
        self.samples = self.tokens = self.steps = 0
        self._began = time.perf_counter()

    def close(self) -> None:
        if self._board is not None:
            self._board.close()


def _number(value: Any) -> float:
    return float(value.detach()) if isinstance(value, torch.Tensor) else float(value)


def _shown(value: float) -> str:
    if not math.isfinite(value):
        return str(value)
    return (
        f"{value:.1f}" if abs(value) >= 1000 else f"{value:.5g}" if abs(value) >= 1e-4 or value == 0 else f"{value:.3e}"
    )
