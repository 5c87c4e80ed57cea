"""Round after round, each with its line of metrics, from the newest checkpoint if there is one."""

import contextlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optml_algorithms.xgboost.checkpoints import KEPT_CHECKPOINTS, Checkpoints, save
from optml_algorithms.xgboost.hyperparameters import MAXIMISED, Settings
from optml_algorithms.xgboost.scores import Scores, Watched, print_scores, scores_of
from optml_algorithms.xgboost.together import library_errors
from optml_toolkit.container import UserError

log = logging.getLogger("xgboost")


@dataclass(frozen=True, kw_only=True)
class Boosted:
    """`booster` as it is kept, cut to its best round if it stopped early; `scores` are those of that round.

    `is_complete` is False if it left before the end, for its machine is taken away.
    """

    booster: Any
    scores: Scores
    is_complete: bool = True


def boost(
    wanted: Settings,
    watched: Watched,
    *,
    checkpoint_dir: Path | None,
    model_file: Path | None,
    is_first: bool = True,
    is_leaving: Callable[[], bool] = lambda: False,
) -> Boosted:
    """Train on the first of the watched matrices. Of several hosts, only the first prints and writes.

    `model_file` is written after each round if the caller asked for save_model_on_termination. `is_leaving` is asked on the
    first host: if it says yes, all hosts leave after the round under way, whose checkpoint is whole then.
    """
    import xgboost

    check_device(wanted)
    checkpoints = Checkpoints(checkpoint_dir if is_first else None)
    stopper = early_stopper(wanted, has_validation=len(watched) > 1)
    parameters = [*wanted.library.items(), *(("eval_metric", wanted.name_in_library(m)) for m in wanted.native_metrics)]
    if checkpoint_dir is not None:  # else a resumed run would draw the rows of its first rounds again
        parameters.append(("seed_per_iteration", True))
    training = watched[0][0]
    with library_errors(), quiet_about_empty_shards():
        first_round, model = shared((checkpoints.next_round, checkpoints.newest))
        booster = xgboost.Booster(parameters, [matrix for matrix, _ in watched], model_file=model)
        if stopper is not None:
            stopper.resume(booster, checkpoints)
        scores, leaving = None, False
        for number in range(first_round, wanted.rounds):
            booster.update(training, number)
            scores = scores_of(booster, watched, number, wanted)
            enough, leaving = shared(
                (stopper is not None and stopper.has_enough(booster, number, scores), is_leaving())
            )
            if is_first:
                print_scores(number, scores.printed)
                checkpoints.write(booster, number)
                if wanted.save_on_termination and model_file is not None:
                    save(booster, model_file)
            if enough or leaving:
                leaving = leaving and not enough and number < wanted.rounds - 1
                break
        if scores is None:  # resumed when all was done
            scores = scores_of(booster, watched, max(0, booster.num_boosted_rounds() - 1), wanted)
        checkpoints.prune(keep=KEPT_CHECKPOINTS)
        if stopper is not None:
            booster, scores = stopper.best(booster), stopper.best_scores or scores
    if leaving:
        log.info("SIGTERM: leaving before the end; the checkpoint of the last round is written")
    return Boosted(booster=booster, scores=scores, is_complete=not leaving)


def shared(value: Any) -> Any:
    """What the first host says, on all."""
    from xgboost import collective

    return collective.broadcast(value, 0) if collective.is_distributed() else value


def check_device(wanted: Settings) -> None:
    import xgboost

    if wanted.library.get("device") == "cuda" and not xgboost.build_info().get("USE_CUDA"):
        raise UserError(
            "tree_method gpu_hist needs an XGBoost with CUDA, and this one has none: use hist, or install optml[xgboost-gpu]"
        )


@contextlib.contextmanager
def quiet_about_empty_shards() -> Iterator[None]:
    """The library warns of each matrix without rows; on a host with an empty validation shard that is as it should be."""
    import warnings

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*Empty dataset at worker")
        yield


@dataclass
class EarlyStopper:
    """Stops when the watched metric has not become better for so many rounds, and cuts the model back to its best.

    Trees of gbtree are cut off at the end. With dart later rounds change the weights of earlier trees, and gblinear has no trees:
    there the model of the best round is kept as it was.
    """

    metric: str  # validation-auc
    rounds: int
    maximised: bool
    keeps_whole: bool = False
    best_round: int = -1
    best_value: float = 0.0
    best_scores: Scores | None = None
    best_model: bytearray | None = None

    def resume(self, booster: Any, checkpoints: Checkpoints) -> None:
        """Go on from what a checkpoint remembers in the attributes that XGBoost has for it."""
        if (best_round := booster.attr("best_iteration")) is None:
            return
        self.best_round, self.best_value = int(best_round), float(booster.attr("best_score"))
        if self.keeps_whole:
            self.best_model = shared(checkpoints.model_of(self.best_round))

    def has_enough(self, booster: Any, number: int, scores: Scores) -> bool:
        value = scores.asked[self.metric]
        is_better = value > self.best_value if self.maximised else value < self.best_value
        if self.best_round < 0 or is_better:
            self.best_round, self.best_value, self.best_scores = number, value, scores
            booster.set_attr(best_iteration=str(number), best_score=str(value))
            if self.keeps_whole:
                self.best_model = booster.save_raw(raw_format="ubj")
        return number - self.best_round >= self.rounds

    def best(self, booster: Any) -> Any:
        import xgboost

        if self.best_round < 0:  # resumed when all was done
            return booster
        if not self.keeps_whole:
            best = booster[: self.best_round + 1]
        elif self.best_model is not None:
            best = xgboost.Booster(model_file=self.best_model)
        else:
            log.warning(
                "The model of the best round, %s, is no longer among the checkpoints: the last is kept", self.best_round
            )
            return booster
        best.set_attr(best_iteration=str(self.best_round), best_score=str(self.best_value))
        return best


def early_stopper(wanted: Settings, *, has_validation: bool) -> EarlyStopper | None:
    """None, and a line that says why, where there is nothing to go by; AWS's container is silent then."""
    if wanted.early_stopping_rounds is None:
        return None
    if not has_validation or wanted.early_stopping_metric is None:
        log.warning("early_stopping_rounds has no effect: it needs a validation channel and eval_metric")
        return None
    metric = wanted.early_stopping_metric
    return EarlyStopper(
        f"validation-{metric}",
        wanted.early_stopping_rounds,
        maximised=metric.partition("@")[0] in MAXIMISED,
        keeps_whole=wanted.library.get("booster") in ("dart", "gblinear"),
    )
