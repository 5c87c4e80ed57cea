"""Train all candidates together, epoch by epoch, and keep the best.

Shapes: D features, M candidates, C outputs of each, K = M x C; weights are (D+1, K), the last row the bias.
"""

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from optml_algorithms.linear_learner.candidates import Candidates
from optml_algorithms.linear_learner.hosts import Group
from optml_algorithms.linear_learner.hyperparameters import BINARY, MULTICLASS, Settings
from optml_algorithms.linear_learner.losses import Loss
from optml_algorithms.linear_learner.optimizers import Optimizer
from optml_algorithms.linear_learner.products import CHUNK_ELEMENTS, Rows
from optml_algorithms.linear_learner.scores import choose_thresholds, quality_line
from optml_algorithms.linear_learner.selection import Choice, Found, Judgement, Progress
from optml_toolkit.container import UserError

if TYPE_CHECKING:
    import numpy
    import torch

    Array = numpy.ndarray[Any, numpy.dtype[Any]]

SEED = 0
EPOCHS_OF_SCHEDULE = 15  # after which `auto` has brought the learning rate down, so that early stopping finds it there
LARGEST_DEFAULT_BATCH, SMALLEST_DEFAULT_BATCH, LEAST_UPDATES = 1000, 16, 100

log = logging.getLogger("linear-learner")


@dataclass(frozen=True)
class Part:
    """Rows on one device, normalised, with their labels: float32, shape (rows,)."""

    rows: Rows
    labels: "torch.Tensor"
    device: "torch.device"

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class Weighing:
    """What a row counts. By its class, if there are several, with mean 1 over the training data of all hosts."""

    positive_M: "torch.Tensor | None" = None  # of a positive row, for each candidate
    negative_M: "torch.Tensor | None" = None
    class_C: "torch.Tensor | None" = None

    def only(self, candidate: int) -> "Weighing":
        """That of one candidate."""
        if self.positive_M is None or self.negative_M is None:
            return self
        where = slice(candidate, candidate + 1)
        return Weighing(positive_M=self.positive_M[where], negative_M=self.negative_M[where])

    def of(self, labels_B: "torch.Tensor") -> "torch.Tensor | None":
        """Shape (B, M) or (B, 1); None where every row counts 1."""
        if self.class_C is not None:
            return self.class_C.to(labels_B.device)[labels_B.long()][:, None]
        if self.positive_M is None or self.negative_M is None:
            return None
        positive, negative = self.positive_M.to(labels_B.device), self.negative_M.to(labels_B.device)
        return negative + labels_B[:, None] * (positive - negative)


@dataclass(frozen=True)
class Best:
    """The best candidate, and the epoch after which it was best. `weights`: shape (D+1, C), for normalised rows."""

    candidate: int
    epoch: int
    weights: "torch.Tensor"


@dataclass
class Fitting:
    """`parts`: the host's training rows, one part for each device. `selection`: the host's part of what candidates are judged
    by. `criterion_is_watched`: early stopping goes by the criterion, not by the loss alone. `feature_scale`: what features were
    divided by, shape (D,)."""

    settings: Settings
    candidates: Candidates
    loss: Loss
    hosts: Group
    parts: Sequence[Part]
    selection: Part
    selection_name: str  # train or validation
    weighing: Weighing
    selection_weighing: Weighing
    criterion_is_watched: bool
    mini_batch_size: int
    feature_scale: "Array"

    def run(self) -> Best:
        """All epochs, or fewer. UserError if every candidate has diverged."""
        import torch

        rows_of_hosts = self.hosts.all_of([len(part) for part in self.parts])
        updates = max(1, -(-max(map(sum, rows_of_hosts)) // self.mini_batch_size))
        sizes = [_slice_sizes(rows, updates) for rows_of_host in rows_of_hosts for rows in rows_of_host]
        batch_rows = [sum(each[number] for each in sizes) for number in range(updates)]
        weights = self._first_weights()
        optimizer = self._optimizer(weights, updates_to_the_end=updates * min(self.settings.epochs, EPOCHS_OF_SCHEDULE))
        generator = torch.Generator().manual_seed(SEED + 1 + self.hosts.rank)
        best: Best | None = None
        choice = Choice()
        progress = Progress(
            patience=self.settings.early_stopping_patience, tolerance=self.settings.early_stopping_tolerance
        )
        for epoch in range(self.settings.epochs):
            began = time.monotonic()
            training_losses_M = self._epoch(weights, optimizer, batch_rows, generator)
            self.hosts.copy_from_first(weights)  # processors of different kinds round differently
            rows_per_second = sum(batch_rows) / max(time.monotonic() - began, 1e-9)
            judged = self._judge(weights)
            found = Found(**self.hosts.all_of(asdict(choice.of(judged)))[0])  # the first host knows the criteria
            if found.is_better:
                best = Best(found.candidate, epoch, self._of_candidate(weights, found.candidate))
            self._tell(epoch, found, float(training_losses_M[found.candidate]), rows_per_second)
            if not bool(torch.isfinite(weights).all(0).any()):
                break
            if progress.is_over(found, by_criterion=self.criterion_is_watched):
                log.info("Early stop: no progress for %s epochs", self.settings.early_stopping_patience)
                break
        if best is None:
            raise UserError(
                "training diverged: the loss of every candidate is infinite or NaN. Lower learning_rate, or let it be auto; and "
                "leave normalize_data on"
            )
        return best

    def _first_weights(self) -> "torch.Tensor":
        import torch

        settings = self.settings
        generator = torch.Generator().manual_seed(SEED)
        shape = (len(self.feature_scale) + 1, len(self.candidates) * settings.outputs)
        weights = torch.empty(shape)
        if settings.init_method == "uniform":
            weights.uniform_(-settings.init_scale, settings.init_scale, generator=generator)
        else:
            weights.normal_(0, settings.init_sigma, generator=generator)
        # A feature that is hardly ever there was divided by little: its weight is not to begin larger than its data can mend.
        weights[:-1] *= torch.from_numpy(self.feature_scale).float().clamp(max=1)[:, None]
        weights[-1] = settings.init_bias
        return weights.to(self.parts[0].device)

    def _optimizer(self, weights: "torch.Tensor", *, updates_to_the_end: int) -> Optimizer:
        import torch

        def columns(values_M: Any) -> torch.Tensor:
            return torch.from_numpy(values_M.repeat(self.settings.outputs)).float().to(weights.device)

        return Optimizer(
            self.settings,
            weights,
            rate=columns(self.candidates.learning_rate),
            wd=columns(self.candidates.wd),
            l1=columns(self.candidates.l1),
            updates_to_the_end=updates_to_the_end,
        )

    def _epoch(
        self, weights: "torch.Tensor", optimizer: Optimizer, batch_rows: Sequence[int], generator: "torch.Generator"
    ) -> "Array":
        """One pass over the rows of all hosts in a new order. Gives the mean loss of each candidate on the way, shape (M,)."""
        import torch

        updates = len(batch_rows)
        orders = [torch.randperm(len(part), generator=generator) for part in self.parts]
        gradient = torch.empty_like(weights)
        total_M = torch.zeros(len(self.candidates), dtype=torch.float64, device=weights.device)
        for number in range(updates):
            pending = [
                self._part_of_gradient(
                    part, order[_slice(len(part), number, updates)], weights, gradient, first=place == 0
                )
                for place, (part, order) in enumerate(zip(self.parts, orders, strict=True))
            ]
            for place, (losses_M, others) in enumerate(pending):
                total_M += losses_M.to(weights.device)
                if place:
                    gradient += others.to(weights.device)
            self.hosts.sum(gradient)
            optimizer.update(gradient.div_(max(1, batch_rows[number])))
        mean_M: Array = (self.hosts.sum(total_M) / sum(batch_rows) * self.loss.unit).cpu().numpy()
        return mean_M

    def _part_of_gradient(
        self, part: Part, index_B: "torch.Tensor", weights: "torch.Tensor", out: "torch.Tensor", *, first: bool
    ) -> tuple["torch.Tensor", "torch.Tensor"]:
        """Sums over a part's rows of a batch: losses, shape (M,), and the gradient, which goes to `out` for the first part.

        Nothing waits for the device, so that all of them work at once.
        """
        import torch

        if not first:
            weights = weights.to(part.device, non_blocking=True)
            out = torch.empty_like(weights)
        if not len(index_B):
            return torch.zeros(len(self.candidates), device=part.device), out.zero_()
        batch = part.rows.batch(index_B)
        labels_B = part.labels[index_B.to(part.labels.device)]
        scores_BK = batch.scores(weights[:-1], weights[-1])
        values_BM, derivatives_BMC = self._loss(scores_BK, labels_B, self.weighing)
        derivatives_BK = derivatives_BMC.reshape(scores_BK.shape)
        batch.gradient(derivatives_BK, out[:-1])
        torch.sum(derivatives_BK, dim=0, out=out[-1])
        return values_BM.sum(0), out

    def _loss(
        self, scores_BK: "torch.Tensor", labels_B: "torch.Tensor", weighing: Weighing
    ) -> tuple["torch.Tensor", "torch.Tensor"]:
        scores_BMC = scores_BK.view(len(scores_BK), -1, self.settings.outputs)
        values_BM, derivatives_BMC = self.loss.function(scores_BMC, labels_B)
        weight_BM = weighing.of(labels_B)
        if weight_BM is None:
            return values_BM, derivatives_BMC
        return values_BM.mul_(weight_BM), derivatives_BMC.mul_(weight_BM[..., None])

    def _judge(self, weights: "torch.Tensor") -> Judgement:
        """All candidates by the selection data of all hosts. The criteria are right on the first host only."""
        import numpy
        import torch

        models = len(self.candidates)
        total = torch.zeros(models + 1, dtype=torch.float64)
        kept = []
        for scores_BK, labels_B in scored(self.selection, weights):
            values_BM, _ = self._loss(scores_BK, labels_B, self.selection_weighing)
            total[:-1] += values_BM.sum(0).cpu()
            total[-1] += len(labels_B)
            if self.settings.predictor_type == BINARY:
                kept.append(scores_BK.cpu().numpy())
        self.hosts.sum(total)
        if self.selection_name == "train":  # all by the objective as it was given: else the least regularised would win
            total[:-1] += total[-1] * self._penalty(weights)
        losses_M = (total[:-1] / total[-1] * self.loss.unit).numpy()
        if self.settings.predictor_type != BINARY or self.settings.criterion == "loss_function":
            return Judgement(losses_M, numpy.zeros(models))
        empty = numpy.zeros((0, models), "f4")
        scores_NM = self.hosts.gather(numpy.concatenate([empty, *kept]))
        labels_N = self.hosts.gather(self.selection.labels.cpu().numpy())
        if not self.hosts.is_first:
            return Judgement(losses_M, numpy.zeros(models))
        return Judgement(losses_M, choose_thresholds(scores_NM, labels_N, self.settings).values)

    def _penalty(self, weights: "torch.Tensor") -> "torch.Tensor":
        """What the weights of each candidate cost by the penalties of candidate 0, which are those given: shape (M,)."""
        wd, l1 = float(self.candidates.wd[0]), float(self.candidates.l1[0])
        cost_K = weights[:-1].square().sum(0) * (wd / 2) + weights[-1].square() * (wd / 2 * self.settings.bias_wd_mult)
        if l1:
            cost_K += weights[:-1].abs().sum(0) * l1
        return cost_K.view(len(self.candidates), -1).sum(1).double().cpu()

    def _of_candidate(self, weights: "torch.Tensor", number: int) -> "torch.Tensor":
        outputs = self.settings.outputs
        return weights[:, number * outputs : (number + 1) * outputs].clone()

    def _tell(self, epoch: int, found: Found, training_loss: float, rows_per_second: float) -> None:
        if not self.hosts.is_first:
            return
        name, host = self.loss.objective, self.hosts.me
        log.info("%s", quality_line(host, "train", name, training_loss, "loss", epoch=epoch))
        if self.selection_name == "validation":
            log.info("%s", quality_line(host, "validation", name, found.loss, "loss", epoch=epoch))
        by_loss = not self.criterion_is_watched
        log.info(
            "#early_stopping_criteria_metric: host=%s, epoch=%s, criteria=%s, value=%.10g",
            host,
            epoch,
            name if by_loss else self.settings.criterion,
            found.loss if by_loss else found.criterion,
        )
        log.info(
            "#progress_metric: host=%s, completed %.4g %% of epochs", host, (epoch + 1) / self.settings.epochs * 100
        )
        log.info("#throughput_metric: host=%s, train throughput=%.6g records/second", host, rows_per_second)
        better = "Loss improved. Updating best model" if found.is_better else "Loss did not improve"
        log.info("Epoch %s: %s", epoch, better)


def scored(part: Part, weights: "torch.Tensor") -> Iterator[tuple["torch.Tensor", "torch.Tensor"]]:
    """Scores (B, K) and labels (B,), some rows at a time, in order."""
    weights = weights.to(part.device)
    step = max(1, min(8192, CHUNK_ELEMENTS // weights.shape[1]))
    for begin in range(0, len(part), step):
        end = min(begin + step, len(part))
        yield part.rows.part(begin, end).scores(weights[:-1], weights[-1]), part.labels[begin:end]


def weighing_of(settings: Settings, candidates: Candidates, counts_C: "Array") -> Weighing:
    """What rows count. `counts_C`: rows of each class on all hosts."""
    import numpy
    import torch

    def tensor(values: Any) -> torch.Tensor:
        return torch.from_numpy(numpy.asarray(values, "f4"))

    if settings.predictor_type == MULTICLASS and settings.balance_multiclass_weights:
        present = counts_C > 0
        weights = numpy.divide(counts_C.sum() / present.sum(), counts_C, out=numpy.zeros(len(counts_C)), where=present)
        return Weighing(class_C=tensor(weights))
    if settings.predictor_type == BINARY and (candidates.positive_weight != 1).any():
        negatives, positives = counts_C
        mean_M = (negatives + positives * candidates.positive_weight) / (negatives + positives)
        return Weighing(positive_M=tensor(candidates.positive_weight / mean_M), negative_M=tensor(1 / mean_M))
    return Weighing()


def mini_batch_size(settings: Settings, rows_of_hosts: Sequence[int]) -> int:
    """Rows of one update on a host. If it is not given, what makes at least 100 updates an epoch of at least 16 rows each."""
    largest = max(rows_of_hosts)
    if settings.mini_batch_size is None:
        by_updates = max(SMALLEST_DEFAULT_BATCH, largest // LEAST_UPDATES)
        return min(LARGEST_DEFAULT_BATCH, by_updates, largest)
    if settings.mini_batch_size > largest:
        where = " on the host with the most" if len(rows_of_hosts) > 1 else ""
        raise UserError(
            f"Hyperparameter mini_batch_size is {settings.mini_batch_size}, and the training data has {largest:,} rows{where}: "
            "give at most that, or leave it out"
        )
    return settings.mini_batch_size


def _slice(rows: int, number: int, count: int) -> slice:
    """The number-th of `count` nearly equal parts."""
    return slice(rows * number // count, rows * (number + 1) // count)


def _slice_sizes(rows: int, count: int) -> list[int]:
    return [(where := _slice(rows, number, count)).stop - where.start for number in range(count)]
