"""One update of all candidates: each column of the weights has its own learning rate and penalties.

Shapes: D features, K = candidates x outputs; the last of the D+1 rows is the bias.
"""

from typing import TYPE_CHECKING

from optml_algorithms.linear_learner.hyperparameters import Settings

if TYPE_CHECKING:
    import torch

RMSPROP_DECAY = 0.9
EPSILON = 1e-8


class Optimizer:
    """Weights (D+1, K) are updated in place. `rate`, `wd`, `l1`: shape (K,)."""

    def __init__(
        self,
        settings: Settings,
        weights: "torch.Tensor",
        *,
        rate: "torch.Tensor",
        wd: "torch.Tensor",
        l1: "torch.Tensor",
        updates_to_the_end: int,
    ):
        import torch

        self._settings = settings
        self._weights = weights
        self._wd = wd if bool(wd.any()) else None
        self._l1 = l1 if bool(l1.any()) else None
        self._schedule = Schedule(settings, rate, updates_to_the_end)
        self._updates = 0
        self._mean = torch.zeros_like(weights) if settings.optimizer in ("adam", "sgd") else None
        self._square = torch.zeros_like(weights) if settings.optimizer in ("adam", "rmsprop") else None
        self._scratch = torch.empty_like(weights)

    def update(self, gradient: "torch.Tensor") -> None:
        """`gradient` of the mean loss, shape (D+1, K); it is overwritten."""
        rate = self._schedule.rate(self._updates)
        self._updates += 1
        if self._wd is not None:
            gradient[:-1].addcmul_(self._weights[:-1], self._wd)
            if self._settings.bias_wd_mult:
                gradient[-1].addcmul_(self._weights[-1], self._wd, value=self._settings.bias_wd_mult)
        step = self._step_sizes(gradient, rate)
        if self._settings.bias_lr_mult != 1:
            step[-1].mul_(self._settings.bias_lr_mult)
        direction = self._direction(gradient)
        if self._settings.use_bias:
            self._weights.addcmul_(direction, step, value=-1)
        else:
            self._weights[:-1].addcmul_(direction[:-1], step[:-1], value=-1)
        if self._l1 is not None:
            self._shrink(step[:-1].mul_(self._l1))

    def _step_sizes(self, gradient: "torch.Tensor", rate: "torch.Tensor") -> "torch.Tensor":
        """What each number of the direction is multiplied by."""
        import torch

        if self._square is None:
            return self._scratch.copy_(rate.expand_as(gradient))
        decay = self._settings.beta_2 if self._settings.optimizer == "adam" else RMSPROP_DECAY
        self._square.mul_(decay).addcmul_(gradient, gradient, value=1 - decay)
        torch.sqrt(self._square, out=self._scratch)
        if self._settings.optimizer == "adam":  # both means start at 0: Adam's correction, as factors of the numbers
            root = (1 - decay**self._updates) ** 0.5
            rate = rate * (root / (1 - self._settings.beta_1**self._updates))
            self._scratch.add_(EPSILON * root)
        else:
            self._scratch.add_(EPSILON)
        return torch.div(rate, self._scratch, out=self._scratch)

    def _direction(self, gradient: "torch.Tensor") -> "torch.Tensor":
        if self._mean is None:
            return gradient
        if self._settings.optimizer == "adam":
            return self._mean.lerp_(gradient, 1 - self._settings.beta_1)
        return self._mean.mul_(self._settings.momentum).add_(gradient)

    def _shrink(self, by: "torch.Tensor") -> None:
        """L1: weights go towards 0 by so much and stop there (the proximal step), so that features really drop out."""
        import torch

        weights = self._weights[:-1]
        torch.sub(weights.abs(), by, out=by)
        weights.sign_().mul_(by.clamp_(min=0))


class Schedule:
    """Learning rates, shape (K,), that fall by a factor every so many updates, to a minimum."""

    def __init__(self, settings: Settings, rate: "torch.Tensor", updates_to_the_end: int):
        self._first = rate
        self._falls = settings.use_lr_scheduler
        self._step = settings.lr_scheduler_step or max(1, updates_to_the_end // 100)
        self._factor = settings.lr_scheduler_factor or 0.01 ** min(1.0, self._step / updates_to_the_end)
        self._minimum = settings.lr_scheduler_minimum_lr
        self._rate = rate
        self._of_update = -1

    def rate(self, update: int) -> "torch.Tensor":
        falls = update // self._step
        if self._falls and falls != self._of_update:
            self._of_update = falls
            if self._minimum is None:
                self._rate = self._first * max(self._factor**falls, 1e-3)
            else:
                fallen = self._first * self._factor**falls
                self._rate = fallen.maximum(self._first.clamp(max=self._minimum))
        return self._rate
