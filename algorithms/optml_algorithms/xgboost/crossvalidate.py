"""`_kfold` and `_num_cv_round`: a model for each part left out, their mean scores, and what they predicted of rows unseen.

(AWS's container scores each model on all rows, those that it was trained on too. Here `train-` is of the rows that the model
was trained on, and `validation-` of those that were left out.)
"""

import logging
import statistics
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from optml_algorithms.data.rows import Rows, concatenated
from optml_algorithms.xgboost.boost import Boosted, boost
from optml_algorithms.xgboost.checkpoints import MODEL, save
from optml_algorithms.xgboost.data import matrix_of
from optml_algorithms.xgboost.hyperparameters import Folds, Settings
from optml_algorithms.xgboost.model import probabilities_of
from optml_algorithms.xgboost.scores import print_scores
from optml_algorithms.xgboost.together import library_errors
from optml_toolkit.container import Container, UserError

PREDICTIONS = "predictions.csv"

log = logging.getLogger("xgboost")


def cross_validate(wanted: Settings, shards: dict[str, Rows | None], feature_count: int, container: Container) -> None:
    """Models xgboost-model-<i>, i over repeats and folds; output/data/predictions.csv; one line of means for each repeat.

    `shards`: the rows of the train channel and, if there is one, of the validation channel. They are taken out of it, so that
    there are not two copies of all for long.
    """
    assert wanted.folds is not None
    rows = concatenated(part for name in list(shards) if (part := shards.pop(name)) is not None)
    assert rows is not None, "there are training rows"
    if rows.groups is not None:
        raise UserError("Hyperparameter _kfold: ranking groups (qid) cannot be split into folds: leave _kfold out")
    labels = rows.labels
    splits = list(folds_of(labels, wanted))
    matrix = matrix_of(rows, wanted, feature_count=feature_count)
    del rows
    seen = Unseen(labels, wanted)
    done: list[Boosted] = []
    for number, (inside, outside) in enumerate(splits):
        fold = number % wanted.folds.parts
        log.info("Train cross validation fold %s", fold)
        with library_errors():
            watched = [(matrix.slice(inside), "train"), (matrix.slice(outside), "validation")]
        checkpoint_dir = container.checkpoint_dir
        boosted = boost(
            wanted,
            watched,
            checkpoint_dir=None if checkpoint_dir is None else checkpoint_dir / f"model-{number}",
            model_file=container.model_dir / f"{MODEL}-{number}",
        )
        save(boosted.booster, container.model_dir / f"{MODEL}-{number}")
        with library_errors():
            seen.add(outside, boosted.booster, watched[1][0])
        done.append(boosted)
        if fold == wanted.folds.parts - 1:
            print_means(wanted, done[-wanted.folds.parts :])
    if wanted.folds.repeats > 1:
        print_means(wanted, done)
    seen.write(container.output_data_dir / PREDICTIONS)


def folds_of(labels: Any, wanted: Settings) -> Iterator[tuple[Any, Any]]:
    """Row numbers inside and outside, for each fold of each repeat; classes in the same shares everywhere.

    The same for the same `seed`, so that a resumed job goes on with its own folds.
    """
    from sklearn.model_selection import RepeatedKFold, RepeatedStratifiedKFold

    folds: Folds | None = wanted.folds
    assert folds is not None
    seed = int(wanted.library.get("seed", 0)) % 2**32
    if len(labels) < folds.parts:
        raise UserError(f"Hyperparameter _kfold: {folds.parts} folds need as many rows, and there are {len(labels)}")
    if not wanted.is_classification:
        yield from RepeatedKFold(n_splits=folds.parts, n_repeats=folds.repeats, random_state=seed).split(labels)
        return
    if (labels != labels.round()).any():
        raise UserError(
            "Hyperparameter _kfold: labels must be whole numbers, for each fold has the same share of each class"
        )
    check_class_sizes(labels, folds)
    splitter = RepeatedStratifiedKFold(n_splits=folds.parts, n_repeats=folds.repeats, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield from splitter.split(labels, labels)


def check_class_sizes(labels: Any, folds: Folds) -> None:
    import numpy

    classes, counts = numpy.unique(labels, return_counts=True)
    if (counts < folds.parts).any():
        rare = int(counts.argmin())
        raise UserError(
            f"Hyperparameter _kfold: class {classes[rare]:g} has {counts[rare]} rows, fewer than the {folds.parts} folds: "
            "lower _kfold or add rows"
        )


class Unseen:
    """What models predicted of rows that they were not trained on, summed over the repeats."""

    def __init__(self, labels: Any, wanted: Settings):
        import numpy

        self.labels = labels
        self.wanted = wanted
        width = wanted.class_count if wanted.is_classification else 1
        self.sums = numpy.zeros((len(labels), width))
        self.votes = numpy.zeros((len(labels), width), dtype=numpy.int32)

    def add(self, rows: Any, booster: Any, matrix: Any) -> None:
        import numpy

        if not self.wanted.is_classification:
            self.sums[rows, 0] += booster.predict(matrix)
            return
        probabilities = probabilities_of(booster, matrix, self.wanted.objective)
        self.sums[rows] += probabilities
        self.votes[rows, probabilities.argmax(axis=1)] += 1
        assert numpy.isfinite(self.sums[rows]).all()

    def write(self, file: Path) -> None:
        """No header, six decimals. Regression: label, mean prediction. Two classes: label, mean probability of class 1, the
        class that most repeats say. More: label, mean probability of that class, the class."""
        import numpy

        assert self.wanted.folds is not None
        means = self.sums / self.wanted.folds.repeats
        columns = [self.labels]
        if self.wanted.is_classification:
            mode = (self.votes + means / 2).argmax(axis=1)  # among as many votes, the more probable
            of_class = numpy.ones(len(mode), dtype=int) if means.shape[1] == 2 else mode
            if self.wanted.objective.startswith("multi:"):
                of_class = mode
            columns += [means[numpy.arange(len(mode)), of_class], mode]
        else:
            columns.append(means[:, 0])
        file.parent.mkdir(parents=True, exist_ok=True)
        numpy.savetxt(file, numpy.column_stack(columns), delimiter=",", fmt="%.6f")


def print_means(wanted: Settings, done: Sequence[Boosted]) -> None:
    names = done[0].scores.printed
    print_scores(wanted.rounds, {name: statistics.fmean(each.scores.printed[name] for each in done) for name in names})
