"""What is minimised: each loss and its derivative, for all candidates at once.

Shapes: B rows of a batch, M candidates, C outputs of each (classes for softmax, else 1).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from optml_algorithms.linear_learner.hyperparameters import Settings

if TYPE_CHECKING:
    import torch

    # scores_BMC, labels_B -> values_BM, derivatives_BMC by the scores
    Function = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True, kw_only=True)
class Loss:
    """`objective` is its name in the log. A value times `unit` is in the label's own units: labels are normalised in training."""

    objective: str
    function: "Function"
    unit: float = 1.0


def loss_of(settings: Settings, *, label_scale: float) -> Loss:
    """The loss of these settings. `label_scale` is what labels were divided by; settings are in the label's own units."""
    error = label_scale
    match settings.loss:
        case "logistic":
            return Loss(objective="binary_classification_cross_entropy_objective", function=logistic)
        case "hinge_loss":
            return Loss(objective="hinge_loss_objective", function=hinge(settings.margin))
        case "softmax_loss":
            return Loss(objective="multiclass_cross_entropy_objective", function=softmax)
        case "squared_loss":
            return Loss(objective="mse_objective", function=squared(0.0), unit=error**2)
        case "absolute_loss":
            return Loss(objective="absolute_loss_objective", function=absolute(0.0), unit=error)
        case "eps_insensitive_squared_loss":
            function = squared(settings.loss_insensitivity / error)
            return Loss(objective=f"{settings.loss}_objective", function=function, unit=error**2)
        case "eps_insensitive_absolute_loss":
            function = absolute(settings.loss_insensitivity / error)
            return Loss(objective=f"{settings.loss}_objective", function=function, unit=error)
        case "quantile_loss":
            return Loss(objective="quantile_loss_objective", function=quantile(settings.quantile), unit=error)
        case "huber_loss":
            function = huber(settings.huber_delta / error)
            return Loss(objective="huber_loss_objective", function=function, unit=error**2)
    raise AssertionError(settings.loss)


def logistic(scores_BMC: "torch.Tensor", labels_B: "torch.Tensor") -> "tuple[torch.Tensor, torch.Tensor]":
    """Cross entropy of the probability sigmoid(score); labels 0 and 1."""
    import torch

    scores_BM = scores_BMC[..., 0]
    labels_B1 = labels_B[:, None]
    values_BM = torch.nn.functional.softplus(scores_BM).sub_(scores_BM * labels_B1)
    return values_BM, torch.sigmoid(scores_BM).sub_(labels_B1)[..., None]


def hinge(margin: float) -> "Function":
    """How much a score on the right side of 0 lacks of the margin."""

    def function(scores_BMC: "torch.Tensor", labels_B: "torch.Tensor") -> "tuple[torch.Tensor, torch.Tensor]":
        signs_B1 = labels_B[:, None] * 2 - 1
        lack_BM = (margin - scores_BMC[..., 0] * signs_B1).clamp_(min=0)
        return lack_BM, ((lack_BM > 0) * -signs_B1)[..., None]

    return function


def softmax(scores_BMC: "torch.Tensor", labels_B: "torch.Tensor") -> "tuple[torch.Tensor, torch.Tensor]":
    """Cross entropy of the probabilities softmax(scores); labels are class numbers."""
    import torch

    logs_BMC = torch.log_softmax(scores_BMC, dim=2)
    index_BM1 = labels_B.long()[:, None, None].expand(-1, scores_BMC.shape[1], 1)
    values_BM = -logs_BMC.gather(2, index_BM1)[..., 0]
    derivatives_BMC = logs_BMC.exp_()
    derivatives_BMC.scatter_add_(2, index_BM1, -derivatives_BMC.new_ones(()).expand(index_BM1.shape))
    return values_BM, derivatives_BMC


def squared(insensitivity: float) -> "Function":
    """The square of the error beyond what does not count."""

    def function(scores_BMC: "torch.Tensor", labels_B: "torch.Tensor") -> "tuple[torch.Tensor, torch.Tensor]":
        error_BM = _beyond(scores_BMC[..., 0] - labels_B[:, None], insensitivity)
        return error_BM.square(), (error_BM * 2)[..., None]

    return function


def absolute(insensitivity: float) -> "Function":
    def function(scores_BMC: "torch.Tensor", labels_B: "torch.Tensor") -> "tuple[torch.Tensor, torch.Tensor]":
        error_BM = _beyond(scores_BMC[..., 0] - labels_B[:, None], insensitivity)
        return error_BM.abs(), error_BM.sign()[..., None]

    return function


def _beyond(error_BM: "torch.Tensor", insensitivity: float) -> "torch.Tensor":
    """The error, nearer to 0 by `insensitivity`."""
    import torch

    return torch.nn.functional.softshrink(error_BM, insensitivity) if insensitivity else error_BM


def quantile(probability: float) -> "Function":
    """Pinball loss, smallest where the label is below the prediction with this probability.

    (AWS's SDK says so; the developer guide says "above", which no definition of the loss fits.)
    """

    def function(scores_BMC: "torch.Tensor", labels_B: "torch.Tensor") -> "tuple[torch.Tensor, torch.Tensor]":
        error_BM = scores_BMC[..., 0] - labels_B[:, None]
        slope_BM = (error_BM > 0).to(error_BM.dtype).sub_(probability)
        return error_BM * slope_BM, slope_BM[..., None]

    return function


def huber(delta: float) -> "Function":
    """Half the square of an error up to delta, and from there on a straight line."""

    def function(scores_BMC: "torch.Tensor", labels_B: "torch.Tensor") -> "tuple[torch.Tensor, torch.Tensor]":
        error_BM = scores_BMC[..., 0] - labels_B[:, None]
        slope_BM = error_BM.clamp(-delta, delta)
        return slope_BM * (error_BM - slope_BM / 2), slope_BM[..., None]

    return function
