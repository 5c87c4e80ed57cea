"""The chosen model on whole data sets: its threshold and its metrics, over all hosts."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from optml_algorithms.linear_learner.fit import Part, Weighing, scored
from optml_algorithms.linear_learner.hosts import Group
from optml_algorithms.linear_learner.hyperparameters import BINARY, Settings
from optml_algorithms.linear_learner.losses import Loss
from optml_algorithms.linear_learner.scores import (
    Scored,
    binary_metrics,
    choose_thresholds,
    metrics_of,
    sums_count,
    sums_of,
)

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Judge:
    """`weights`: shape (features + 1, outputs), for normalised rows; `weighing` is of this one model."""

    settings: Settings
    hosts: Group
    loss: Loss
    weighing: Weighing
    label_scale: float
    weights: "torch.Tensor"

    def threshold(self, part: Part) -> float:
        """Where the criterion is best, by num_calibration_samples rows of all hosts; the same on each of them."""
        import numpy

        most = len(part)
        if self.settings.num_calibration_samples is not None:
            most = min(most, -(-self.settings.num_calibration_samples // self.hosts.count))
        parts = [scores_BC.cpu().numpy() for scores_BC, _ in scored(part, self.weights)]
        mine_N1 = numpy.concatenate([numpy.zeros((0, 1), "f4"), *parts])[:most]
        scores_N1 = self.hosts.gather(mine_N1)
        labels_N = self.hosts.gather(part.labels.cpu().numpy()[:most])
        found = 0.0
        if self.hosts.is_first:
            found = float(choose_thresholds(scores_N1, labels_N, self.settings).thresholds[0])
        return float(self.hosts.all_of(found)[0])

    def score(self, data_set: str, part: Part, threshold: float) -> Scored:
        """All rows of a data set; right on the first host."""
        import numpy
        import torch

        totals = numpy.zeros(2 + sums_count(self.settings))  # loss, rows, and what the metrics are made of
        binary = [numpy.zeros(0, "f4")]
        for scores_BC, labels_B in scored(part, self.weights):
            values_B1, _ = self.loss.function(scores_BC[:, None, :], labels_B)
            weight_B1 = self.weighing.of(labels_B)
            totals[0] += float((values_B1 if weight_B1 is None else values_B1 * weight_B1).sum())
            totals[1] += len(labels_B)
            if self.settings.predictor_type == BINARY:
                binary.append(scores_BC[:, 0].cpu().numpy())
            else:
                totals[2:] += sums_of(scores_BC.cpu().numpy(), labels_B.cpu().numpy(), self.settings)
        totals = self.hosts.sum(torch.from_numpy(totals)).numpy()
        objective = (self.loss.objective, float(totals[0] / totals[1] * self.loss.unit))
        if self.settings.predictor_type != BINARY:
            return Scored(data_set, objective, metrics_of(totals[2:], self.settings, label_scale=self.label_scale))
        scores_N, labels_N = self.hosts.gather(numpy.concatenate(binary)), self.hosts.gather(part.labels.cpu().numpy())
        f_beta = self.settings.f_beta
        metrics = binary_metrics(scores_N, labels_N, threshold=threshold, f_beta=f_beta) if self.hosts.is_first else {}
        return Scored(data_set, objective, metrics)
