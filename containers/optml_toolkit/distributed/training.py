"""The loop that survives: batches from where the run was, saves, stops together with all ranks, and says how it goes.

training = distributed.Training(run, model, optimizer, data)
for images, labels in training.batches(epochs=10):
    loss = loss_of(model(images), labels)
    training.step(loss)
"""

import contextlib
import logging
import sys
import time
from collections.abc import Iterator, Mapping, MutableMapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, SupportsFloat

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from optml_toolkit.container import Container, UserError
from optml_toolkit.distributed import state as states
from optml_toolkit.distributed.checkpoints import Checkpoints, default_folder
from optml_toolkit.distributed.data import Batches, _mixed, kept_from_signals
from optml_toolkit.distributed.data_parallel import LastBucket
from optml_toolkit.distributed.interruption import Agreement, Notices
from optml_toolkit.distributed.progress import Progress
from optml_toolkit.distributed.setup import Run, seed_everything

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule

    from optml_toolkit.distributed.pipeline import Pipeline

log = logging.getLogger("optml_toolkit.distributed")
COMMON = "training"


class Training:
    """A model, its optimiser and its data, as one thing that can be saved and taken up again."""

    def __init__(
        self,
        run: Run,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        data: Any,
        *,
        scheduler: Any = None,
        state: Mapping[str, Any] | None = None,
        checkpoint_dir: Path | str | bool | None = None,
        save_every_steps: int | None = None,
        save_every_seconds: float | None = 300.0,
        keep: int = 3,
        save_while_training: bool = True,
        exit_when_interrupted: bool = True,
        log_every_steps: int = 10,
        tensorboard_dir: Path | str | None = None,
    ):
        """`model`: wrapped already, or a `Pipeline`'s module. `data`: `Batches`, or what has state_dict and
        load_state_dict (torchdata's
        StatefulDataLoader), whose position is kept for each rank. `state`: what else is to be kept, by name: objects with
        state_dict and load_state_dict (a GradScaler, an average of weights), or dicts, which are filled in place.

        `checkpoint_dir`: by default the job's folder for checkpoints; False for none. Saved every so many steps or seconds,
        whichever comes first, and at the end; beside the training unless `save_while_training` is False. When the run is
        interrupted, all ranks save at the same step and leave with exit code 0, or, without `exit_when_interrupted`, the loop
        ends and `interrupted` says why. UserError for what cannot be saved.
        """
        for name, value in (("save_every_steps", save_every_steps), ("save_every_seconds", save_every_seconds)):
            if value is not None and value <= 0:
                raise UserError(f"{name} must be more than 0, got {value}")
        self.run, self.model, self.optimizer, self.data, self.scheduler = run, model, optimizer, data, scheduler
        self.state = dict(state or {})
        self.steps_done = 0
        self.interrupted: str | None = None
        self.last_part = True  # of the step's parts (accumulate): gradients are averaged and applied with this one
        self.save_every_steps, self.save_every_seconds = save_every_steps, save_every_seconds
        self.save_while_training, self.exit_when_interrupted = save_while_training, exit_when_interrupted
        self.accumulate = data.accumulate if isinstance(data, Batches) else 1
        self.progress = Progress(
            run, every_steps=log_every_steps, tensorboard_dir=None if tensorboard_dir is None else Path(tensorboard_dir)
        )
        states.parameter_names(model, optimizer)
        if isinstance(optimizer, torch.optim.LBFGS):
            raise UserError(
                "LBFGS computes the loss several times in a step, which Training does not: take another optimiser"
            )
        if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
            raise UserError(
                "ReduceLROnPlateau needs a number at each of its steps, and Training's scheduler goes on with each step of the "
                "optimiser: call it yourself, and give it as state={'scheduler': ...} to be kept"
            )
        self._check_state()
        self.checkpoints: Checkpoints | None = None
        if checkpoint_dir is not False:
            given = None if checkpoint_dir in (None, True) else Path(str(checkpoint_dir))
            self.checkpoints = Checkpoints(run, given or default_folder(Container.here()), keep=keep)
            # A save's copies are made while the next forward and backward only read what they copy.
            optimizer.register_step_pre_hook(self._wait_for_copies)
        self._resumed = False
        self._saved_step = -1
        self._kept_common = b""  # COMMON of the newest checkpoint, on the first rank
        self._part_losses: list[Any] = []  # of the step's parts so far

    def _wait_for_copies(self, *_: Any) -> None:
        began = time.perf_counter()
        if self.checkpoints is not None:
            self.checkpoints.copied()
        self.progress.seconds["checkpoint"] += time.perf_counter() - began

    def _check_state(self) -> None:
        """What cannot be saved is better known now than in the first save."""
        if not (hasattr(self.data, "state_dict") and hasattr(self.data, "load_state_dict")):
            raise UserError(
                f"data of type {type(self.data).__name__} has no state_dict: a resumed run would not find its place; use "
                "distributed.Batches(run, dataset, batch_size=...) or torchdata's StatefulDataLoader"
            )
        if getattr(self.data, "num_workers", 0) and hasattr(self.data, "worker_init_fn"):
            self.data.worker_init_fn = kept_from_signals(self.data.worker_init_fn)
        for name, value in self.state.items():
            if not (hasattr(value, "state_dict") and hasattr(value, "load_state_dict")) and not isinstance(
                value, MutableMapping
            ):
                raise UserError(
                    f"state[{name!r}] of type {type(value).__name__} cannot be kept: it must be a dict, or have state_dict and "
                    "load_state_dict"
                )
            try:
                states.packed(_state_of(value))
            except Exception as error:
                raise UserError(f"state[{name!r}] cannot be saved: {type(error).__name__}: {error}") from error

    # The loop.

    def batches(self, *, epochs: int | None = None, steps: int | None = None) -> Iterator[Any]:
        """Batches until so many epochs or steps are done in all, the earlier attempts' included.

        A step ends when the next batch is asked for: then the run saves, stops or prints, if it is time. Leaving the loop early
        (`break`) leaves it without a last checkpoint.
        """
        if epochs is None and steps is None:
            raise UserError("batches() needs epochs=... or steps=...: how long to train")
        if epochs is not None and not isinstance(self.data, Batches):
            raise UserError(f"epochs of {type(self.data).__name__} are not counted: give steps=...")
        for name, value in (("epochs", epochs), ("steps", steps)):
            if value is not None and (not isinstance(value, int) or value < 0):
                raise UserError(f"batches({name}=...) must be a whole number, 0 or more, got {value!r}")
        self.resume()
        notices, agreement = Notices(Container.here()), Agreement(self.run)
        notices.begin()
        try:
            yield from self._loop(notices, agreement, epochs=epochs, steps=steps)
            if self.interrupted is None and agreement.finish():
                notices.why = notices.why or "another rank was told"
                log.info("Told to stop (%s) when the training was done", notices.why)
            if self.interrupted is None:
                self._save(wait=True)
        finally:
            notices.end()
            self.progress.close()
            if self.checkpoints is not None and sys.exc_info()[0] in (None, GeneratorExit, SystemExit):
                self.checkpoints.finish()
        if self.interrupted is not None and self.exit_when_interrupted:
            saved = self.checkpoints is None or self._saved_step == self.steps_done
            self.run.close()
            sys.exit(0 if saved else 1)

    def _loop(self, notices: Notices, agreement: Agreement, *, epochs: int | None, steps: int | None) -> Iterator[Any]:
        saved_at = step_began = time.monotonic()
        self.progress.restart_clock()
        while (steps is None or self.steps_done < steps) and (epochs is None or self.data.epoch < epochs):
            parts = 0
            batches = iter(self.data)
            while True:
                if parts == 0 and steps is not None and self.steps_done >= steps:
                    return
                began = time.perf_counter()
                samples_before = self.data.samples_done if isinstance(self.data, Batches) else 0
                try:
                    batch = next(batches)
                except StopIteration:
                    break
                self.progress.seconds["data"] += time.perf_counter() - began
                parts += 1
                self.last_part = parts == self.accumulate
                with self._gradients_kept_here() if not self.last_part else contextlib.nullcontext():
                    yield batch
                if not self.last_part:
                    continue
                parts = 0
                self.steps_done += 1
                if isinstance(self.data, Batches):
                    self.progress.samples += self.data.samples_done - samples_before
                now = time.monotonic()
                late = self.save_every_seconds is not None and now - saved_at >= self.save_every_seconds
                began = time.perf_counter()
                stop, save = agreement.exchange(stop=notices.told(), save=late, step_ms=int(1000 * (now - step_began)))
                self.progress.seconds["agree"] += time.perf_counter() - began
                step_began = now
                if stop:
                    self._interrupt(notices)
                    return
                if save or (self.save_every_steps is not None and self.steps_done % self.save_every_steps == 0):
                    began = time.perf_counter()
                    self._save(wait=not self.save_while_training)
                    self.progress.seconds["checkpoint"] += time.perf_counter() - began
                    saved_at = time.monotonic()
                self.progress.step_done(step=self.steps_done, epoch=getattr(self.data, "epoch", 0))
            if parts:
                raise UserError(f"the data ended in the middle of a step, after {parts} of {self.accumulate} parts")

    def step(self, loss: torch.Tensor, *, clip_norm: float | None = None) -> None:
        """Backward, and with the step's last part: clip, the optimiser's step, the scheduler's, gradients to none.

        `loss`: the mean over this part of the batch, a tensor of one number. `clip_norm`: see `apply`.
        """
        if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
            what = f"a tensor of shape {list(loss.shape)}" if isinstance(loss, torch.Tensor) else type(loss).__name__
            raise UserError(
                f"training.step takes the loss, a tensor of one number, got {what}: compute it from what the model gives"
            )
        (loss if self.accumulate == 1 else loss / self.accumulate).backward()  # type: ignore[no-untyped-call]
        timer = getattr(self.model, "last_bucket", None)
        if isinstance(timer, LastBucket) and self.last_part:
            self.progress.measures_communication = True
            self.progress.seconds["communication"] += timer.seconds_since()
        self._report_loss(loss)
        if self.last_part:
            self.apply(clip_norm=clip_norm)

    def step_pipeline(
        self, pipeline: "Pipeline", inputs: torch.Tensor, targets: torch.Tensor, *, clip_norm: float | None = None
    ) -> torch.Tensor:
        """A pipeline's `step`, and with the step's last part the optimiser's. Gives the mean loss over this copy's batch."""
        loss = pipeline.step(inputs, targets, parts=self.accumulate, last_part=self.last_part)
        if self.run.device.type == "cpu":
            self.progress.measures_communication = True
            self.progress.seconds["communication"] += pipeline.waited_seconds
        pipeline.waited_seconds = 0.0
        self._report_loss(loss)
        if self.last_part:
            self.apply(clip_norm=clip_norm)
        return loss

    def apply(self, *, clip_norm: float | None = None) -> None:
        """The second half of `step`, for gradients that are there already.

        `clip_norm`: scales all gradients down so that their norm (2-norm over the whole model, all stages and shards) is at most
        that. UserError if it is not more than 0.
        """
        if clip_norm is not None:
            if clip_norm <= 0:
                raise UserError(f"clip_norm must be more than 0, got {clip_norm}")
            self._clip(clip_norm)
        self.optimizer.step()
        if self.scheduler is not None:
            self.scheduler.step()
        self.optimizer.zero_grad()

    def _clip(self, limit: float) -> None:
        parameters = list(self.model.parameters())
        if self.run.pipe_size == 1:  # shards sum over their ranks themselves
            torch.nn.utils.clip_grad_norm_(parameters, limit)
            return
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        squared = norm.double().to(self.run.device) ** 2
        dist.all_reduce(squared, group=self.run.mesh.get_group("pipe"))
        torch.nn.utils.clip_grads_with_norm_(parameters, limit, squared.sqrt().to(norm.dtype))

    def _report_loss(self, loss: torch.Tensor) -> None:
        """That of a step is the mean over its parts."""
        self._part_losses.append(loss.detach())
        if self.last_part:
            self.report(loss=sum(self._part_losses) / len(self._part_losses))
            self._part_losses.clear()

    def report(self, *, tokens: int = 0, **values: Any) -> None:
        """Numbers or scalar tensors for the next progress line; `tokens` of this batch, on this rank, are summed up.

        UserError for what is neither.
        """
        for name, value in values.items():
            number = value.numel() == 1 if isinstance(value, torch.Tensor) else isinstance(value, SupportsFloat)
            if not number:
                shape = f" of shape {list(value.shape)}" if isinstance(value, torch.Tensor) else ""
                raise UserError(f"report({name}=...) takes a number, got {type(value).__name__}{shape}")
        self.progress.tokens += tokens
        self.progress.values |= {
            name: value.detach() if isinstance(value, torch.Tensor) else value for name, value in values.items()
        }

    @contextlib.contextmanager
    def _gradients_kept_here(self) -> Iterator[None]:
        """Accumulate without sending anything."""
        if isinstance(self.model, DistributedDataParallel):
            with self.model.no_sync():
                yield
        elif hasattr(self.model, "set_requires_gradient_sync"):  # FSDP2's; to ask for its type would import it
            shards: FSDPModule = self.model  # type: ignore[assignment]
            shards.set_requires_gradient_sync(False)
            try:
                yield
            finally:
                shards.set_requires_gradient_sync(True)
        else:
            yield

    # Saving and taking up.

    def _interrupt(self, notices: Notices) -> None:
        why = next((each for each in self.run.gather(notices.why) if each is not None), "another rank was told")
        began = time.monotonic()
        self._save(wait=True)
        self.interrupted = why
        if self.run.first:
            if self.checkpoints is None:
                kept = "nothing is kept (checkpoint_dir=False)"
            elif self._saved_step == self.steps_done:
                kept = f"step {self.steps_done} is saved ({time.monotonic() - began:.2f} s)"
            else:
                kept = f"step {self.steps_done} could not be saved"
            log.info("Interrupted (%s): %s", why, kept)

    def save(self) -> None:
        """A checkpoint of now, written when this returns. A collective call, between two steps.

        That of the same step, if there is one, is written anew if `state` has changed since.
        """
        self._save(wait=True, look_for_changes=True)

    def _save(self, *, wait: bool, look_for_changes: bool = False) -> None:
        if self.checkpoints is None:
            return
        self.checkpoints.finish()
        common = b""
        if self.run.first:
            common = states.packed(
                {
                    "steps_done": self.steps_done,
                    "world_size": self.run.world_size,
                    "pipe_size": self.run.pipe_size,
                    "data": self.data.state_dict() if isinstance(self.data, Batches) else None,
                    "optimizer": type(self.optimizer).__name__,
                    "scheduler": None if self.scheduler is None else self.scheduler.state_dict(),
                    "scheduler_type": type(self.scheduler).__name__,
                    "state": {name: _state_of(value) for name, value in self.state.items()},
                }
            )
        if self.checkpoints.last_step == self.steps_done:
            changed = look_for_changes and self.run.gather(common != self._kept_common)[0]
            if not changed:
                self._saved_step = self.steps_done
                return
        table = states.table(self.model, self.optimizer, replica=self.run.data_rank)
        table[f"rank.{self.run.rank}"] = states.packed(
            {
                "random": states.random_states(self.run.device),
                "data": None if isinstance(self.data, Batches) else self.data.state_dict(),
            }
        )
        if self.run.first:
            table[COMMON] = common
        later = states.changed_by_optimizer(self.model, self.optimizer, table)
        failures = self.checkpoints.failures
        self.checkpoints.save(self.steps_done, table, wait=wait, later=later)
        self._kept_common = common if self.checkpoints.failures == failures else b""
        if wait and self.checkpoints.last_step == self.steps_done:
            self._saved_step = self.steps_done

    def resume(self) -> bool:
        """Take up the newest whole checkpoint; False if there is none. `batches` does it, unless it was done. Collective."""
        if self._resumed:
            return self.steps_done > 0
        self._resumed = True
        version = None if self.checkpoints is None else self.checkpoints.newest()
        if version is None or self.checkpoints is None:
            seed_everything(_mixed(self.run.seed, self.run.rank))  # models began equal; dropout should differ
            return False
        began = time.monotonic()
        metadata = self.checkpoints.metadata(version)
        states.check_model(metadata, everyones=self.run.gather(states.shapes(self.model)))
        table = states.to_fill(self.model, self.optimizer, metadata)
        table[COMMON] = b""
        own = f"rank.{self.run.rank}"
        if own in metadata.state_dict_metadata:
            table[own] = b""
        self.checkpoints.load(version, table)
        self._kept_common = table.pop(COMMON)
        common = states.unpacked(self._kept_common)
        self._check_kinds(common)
        mine = states.unpacked(table.pop(own)) if own in table else None
        states.apply(self.model, self.optimizer, table)
        self.steps_done = common["steps_done"]
        self._restore(common, mine)
        if self.run.first:
            log.info("Resumed from step %d (%.2f s)", self.steps_done, time.monotonic() - began)
        return True

    def _check_kinds(self, common: Mapping[str, Any]) -> None:
        """The state of another optimiser or scheduler would be taken for this one's, or fail in its middle."""
        for what, now, kept in (
            ("optimiser", self.optimizer, common.get("optimizer")),
            ("scheduler", self.scheduler, common.get("scheduler_type")),
        ):
            if now is not None and kept not in (None, "NoneType", type(now).__name__):
                raise UserError(
                    f"the checkpoint was made with the {what} {kept}, and this run has {type(now).__name__}: give the same, or "
                    "another checkpoint folder to begin anew"
                )

    def _restore(self, common: Mapping[str, Any], mine: Mapping[str, Any] | None) -> None:
        for name, value, kept in (
            ("a scheduler", self.scheduler, common["scheduler"]),
            ("Batches", self.data if isinstance(self.data, Batches) else None, common["data"]),
        ):
            if (value is None) != (kept is None):
                raise UserError(
                    f"the checkpoint was made {'without' if kept is None else 'with'} {name}, and this run is not"
                )
            if value is not None:
                value.load_state_dict(kept)
        if self.state.keys() != common["state"].keys():
            raise UserError(
                f"the checkpoint keeps state {sorted(common['state'])}, and this run has {sorted(self.state)}"
            )
        for name, value in self.state.items():
            if hasattr(value, "load_state_dict"):
                value.load_state_dict(common["state"][name])
            else:
                value.clear()
                value.update(common["state"][name])
        same = (common["world_size"], common["pipe_size"]) == (self.run.world_size, self.run.pipe_size)
        if not isinstance(self.data, Batches):
            if not same or mine is None:
                raise UserError(
                    f"{type(self.data).__name__} keeps a position for each rank: it continues on "
                    f"{common['world_size']} ranks only; "
                    "distributed.Batches continues on any number"
                )
            self.data.load_state_dict(mine["data"])
        if same and mine is not None:
            states.set_random_states(mine["random"], self.run.device)
            return
        seed_everything(_mixed(self.run.seed, self.run.rank, self.steps_done))
        if self.run.first:
            log.info(
                "Saved by %d ranks (pipelines of %d), taken up by %d (of %d): random numbers begin anew",
                common["world_size"],
                common["pipe_size"],
                self.run.world_size,
                self.run.pipe_size,
            )


def _state_of(value: Any) -> Any:
    return value.state_dict() if hasattr(value, "state_dict") else dict(value)
