"""XGBoost's hyperparameters in SageMaker: what may be given, and what goes to the library under which name."""

import ast
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from optml_algorithms.hyperparameters import (
    Hyperparameter,
    Interval,
    Tunable,
    choice,
    choices,
    integer,
    number,
    parse,
)
from optml_algorithms.metrics import BINARY_ONLY, CLASSIFICATION, REGRESSION
from optml_algorithms.words import near
from optml_toolkit.container import UserError

NATIVE_MAXIMISED = ("auc", "aucpr", "map", "ndcg")
NATIVE_MINIMISED = (
    "aft-nloglik", "cox-nloglik", "error", "gamma-deviance", "gamma-nloglik", "interval-regression-accuracy", "logloss",
    "mae", "mape", "merror", "mlogloss", "mphe", "poisson-nloglik", "rmse", "rmsle", "tweedie-nloglik",
)  # fmt: skip
COMPUTED_HERE = (*CLASSIFICATION, *REGRESSION)
MAXIMISED = frozenset({*NATIVE_MAXIMISED, *CLASSIFICATION, "r2", "interval-regression-accuracy"})
METRICS = (*NATIVE_MAXIMISED, *NATIVE_MINIMISED, *COMPUTED_HERE)
WITH_THRESHOLD = ("error", "ndcg", "map")

OBJECTIVES = (
    "binary:logistic", "binary:logitraw", "binary:hinge", "count:poisson", "multi:softmax", "multi:softprob",
    "rank:pairwise", "rank:ndcg", "rank:map", "reg:linear", "reg:squarederror", "reg:logistic", "reg:gamma",
    "reg:pseudohubererror", "reg:squaredlogerror", "reg:absoluteerror", "reg:tweedie", "survival:aft", "survival:cox",
)  # fmt: skip
# Where the library's own default has a suffix, the published name too, for what looks for that.
DEFAULT_METRICS = {
    "rank:pairwise": ("ndcg@32", "ndcg"), "rank:ndcg": ("ndcg@32", "ndcg"), "rank:map": ("map@32", "map"),
    "reg:tweedie": ("tweedie-nloglik",),
}  # fmt: skip
GROWERS = frozenset({"grow_colmaker", "distcol", "grow_histmaker", "grow_skmaker"})


def _metric_list(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise ValueError(text)
    return names


def _lists_of_indices(text: str) -> list[list[int]]:
    value = ast.literal_eval(text)
    if not isinstance(value, list) or not all(isinstance(group, list) and group for group in value):
        raise ValueError(text)
    if not all(type(index) is int and index >= 0 for group in value for index in group):
        raise ValueError(text)
    return value


def _signs(text: str) -> list[int]:
    value = ast.literal_eval(text)
    if not isinstance(value, tuple | list) or not all(type(sign) is int for sign in value):
        raise ValueError(text)
    return list(value)


FROM_0 = Interval(low=0)
UNIT = Interval(low=0, high=1)
UNIT_ABOVE_0 = Interval(low=0, high=1, low_open=True)

FRACTION = Tunable(low=0.5, high=1)
SHARE = Tunable(low=0.1, high=1)

HYPERPARAMETERS: tuple[Hyperparameter, ...] = (
    integer(
        "num_round", Interval(low=1), required=True, tunable=Tunable(low=1, high=4000, whole=True),
        about="rounds of boosting in all; a resumed job trains what is left",
    ),
    integer("num_class", Interval(low=2), depends_on="objective multi:*", about="labels are 0 to num_class - 1"),
    number(
        "alpha", FROM_0, default=0, aliases=("reg_alpha",), tunable=Tunable(low=0, high=1000),
        about="L1 penalty on leaf weights",
    ),
    number("base_score", FROM_0, about="the prediction before the first tree; estimated from the labels if not given"),
    choice("booster", "gbtree", "gblinear", "dart", default="gbtree", about="trees, a linear model, or trees with dropout"),
    number("colsample_bylevel", UNIT_ABOVE_0, default=1, tunable=SHARE, about="share of columns for each level of a tree"),
    number("colsample_bynode", UNIT_ABOVE_0, default=1, tunable=SHARE, about="share of columns for each split"),
    number("colsample_bytree", UNIT_ABOVE_0, default=1, tunable=FRACTION, about="share of columns for each tree"),
    integer("csv_weights", UNIT, default=0, depends_on="text/csv", about="1: the second column is the weight of the row"),
    choice(
        "deterministic_histogram", "true", "false", depends_on="tree_method gpu_hist", about="of older versions: no effect",
    ),
    integer(
        "early_stopping_rounds", Interval(low=1), depends_on="a validation channel and eval_metric",
        about="stop when the last metric has not become better for so many rounds",
    ),
    number(
        "eta", UNIT, default=0.3, aliases=("learning_rate",), tunable=Tunable(low=0.1, high=0.5),
        about="how much each tree counts",
    ),
    Hyperparameter(
        name="eval_metric", kind="list", parse=_metric_list, choices_shown=METRICS,
        about="metrics, with commas between; error@t, ndcg@n and map@n too. Default: the objective's own",
    ),
    number(
        "gamma", FROM_0, default=0, aliases=("min_split_loss",), tunable=Tunable(low=0, high=5),
        about="the least gain for which a leaf is split",
    ),
    choice(
        "grow_policy", "depthwise", "lossguide", default="depthwise", depends_on="tree_method hist or approx",
        about="split by level, or where the gain is largest",
    ),
    Hyperparameter(
        name="interaction_constraints", kind="list", parse=_lists_of_indices, depends_on="tree_method exact, hist or approx",
        about="groups of feature numbers from 0 that may be in one path: [[0, 1], [2, 3]]",
    ),
    number(
        "lambda", FROM_0, default=1, aliases=("reg_lambda",), tunable=Tunable(low=0, high=1000),
        about="L2 penalty on leaf weights",
    ),
    number("lambda_bias", UNIT, default=0, depends_on="booster gblinear", about="L2 penalty on the bias"),
    integer("max_bin", FROM_0, default=256, depends_on="tree_method hist or approx", about="bins for each feature"),
    number(
        "max_delta_step", FROM_0, default=0, tunable=Tunable(low=0, high=10, whole=True),
        about="the most that a leaf may be; 0: any",
    ),
    integer("max_depth", FROM_0, default=6, tunable=Tunable(low=0, high=10, whole=True), about="depth of trees; 0: any"),
    integer("max_leaves", FROM_0, default=0, depends_on="grow_policy lossguide", about="leaves of a tree; 0: any"),
    number(
        "min_child_weight", FROM_0, default=1, tunable=Tunable(low=0, high=120),
        about="the least sum of row weights (hessian) in a leaf",
    ),
    Hyperparameter(
        name="monotone_constraints", kind="list", parse=_signs, allowed=(-1, 0, 1),
        depends_on="tree_method exact or hist", about="for each feature whether it may only lower, raise: (-1, 0, 1)",
    ),
    choice("normalize_type", "tree", "forest", default="tree", depends_on="booster dart", about="weight of a new tree"),
    integer("nthread", Interval(low=1), about="threads; all processors if not given"),
    choice("objective", *OBJECTIVES, default="reg:squarederror", about="what is learnt"),
    integer("one_drop", UNIT, default=0, depends_on="booster dart", about="1: leave out at least one tree"),
    choice("process_type", "default", "update", default="default", about="new trees, or renewing those of a checkpoint"),
    number("rate_drop", UNIT, default=0, depends_on="booster dart", about="share of trees that are left out"),
    integer("refresh_leaf", UNIT, default=1, depends_on="updater refresh", about="1: leaves too, not only their statistics"),
    choice("sample_type", "uniform", "weighted", default="uniform", depends_on="booster dart", about="how trees are left out"),
    number(
        "scale_pos_weight", Interval(low=0, low_open=True), default=1,
        about="weight of rows of class 1; often number of negatives / number of positives",
    ),
    integer(
        "seed", Interval(low=-(2**31), high=2**31 - 1, low_open=True, high_open=True), default=0, about="of random numbers",
    ),
    choice(
        "single_precision_histogram", "true", "false", depends_on="tree_method hist", about="of older versions: no effect",
    ),
    number(
        "sketch_eps", Interval(low=0, high=1, low_open=True, high_open=True), depends_on="tree_method approx",
        about="of older versions: no effect; take max_bin, about 1 / sketch_eps",
    ),
    number("skip_drop", UNIT, default=0, depends_on="booster dart", about="how often no tree is left out"),
    number("subsample", UNIT_ABOVE_0, default=1, tunable=FRACTION, about="share of rows for each round"),
    choice("tree_method", "auto", "exact", "approx", "hist", "gpu_hist", default="auto", about="gpu_hist is hist on a GPU"),
    number(
        "tweedie_variance_power", Interval(low=1, high=2, low_open=True, high_open=True), default=1.5,
        depends_on="objective reg:tweedie", about="near 2: like gamma; near 1: like poisson",
    ),
    choices(
        "updater", *sorted(GROWERS), "sync", "refresh", "prune", "shotgun", "coord_descent",
        about="the steps that make or change a tree, with commas between; set by tree_method if not given",
    ),
    integer("verbosity", Interval(low=0, high=3), default=1, about="0 silent, 1 warnings, 2 more, 3 all"),
    integer(
        "silent", UNIT, about="of version 0.72: 1 is verbosity 0",
    ),
    choice(
        "aft_loss_distribution", "normal", "logistic", "extreme", default="normal", depends_on="objective survival:aft",
        about="of the noise",
    ),
    number(
        "aft_loss_distribution_scale", Interval(low=0, low_open=True), default=1, depends_on="objective survival:aft",
        about="width of the noise",
    ),
    choice("dsplit", "row", "col", about="of older versions: no effect"),
    integer("num_parallel_tree", Interval(low=1), default=1, about="trees in each round: more make a random forest"),
    choice("predictor", "auto", "cpu_predictor", "gpu_predictor", about="of older versions: no effect"),
    integer("prob_buffer_row", Interval(low=1, low_open=True), about="of older versions: no effect"),
    choice(
        "sampling_method", "uniform", "gradient_based", default="uniform", depends_on="subsample; gradient_based: a GPU",
        about="how rows are drawn",
    ),
    choice(
        "save_model_on_termination", "true", "false", default="false",
        about="true: a stopped job keeps the model of its last whole round",
    ),
    choice("use_dask_gpu_training", "true", "false", default="false", about="only false: there is no Dask here"),
    integer("_kfold", Interval(low=2), about="cross-validation: parts into which all rows are split; one host"),
    integer("_num_cv_round", Interval(low=1), default=1, depends_on="_kfold", about="how often it is repeated"),
    choice(
        "_tuning_objective_metric", *(f"validation:{name}" for name in METRICS),
        about="the metric that a tuner looks at; it joins eval_metric and decides early stopping",
    ),
)  # fmt: skip

# Published to tuners. (AWS lists interval-regression-accuracy among what is to be minimised, which no accuracy is.)
TUNABLE_METRICS: Mapping[str, str] = {
    f"validation:{name}": "Maximize" if name in MAXIMISED else "Minimize" for name in METRICS
}

# Of older XGBoosts, which the library of today knows no more: AWS's container passes them on, and they change nothing.
WITHOUT_EFFECT = (
    "deterministic_histogram", "single_precision_histogram", "sketch_eps", "dsplit", "predictor", "prob_buffer_row",
)  # fmt: skip
NOT_LIBRARY = (
    "num_round", "csv_weights", "early_stopping_rounds", "eval_metric", "save_model_on_termination",
    "use_dask_gpu_training", "silent", "_kfold", "_num_cv_round", "_tuning_objective_metric", *WITHOUT_EFFECT,
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Folds:
    """`_kfold` and `_num_cv_round`."""

    parts: int
    repeats: int


@dataclass(frozen=True, kw_only=True)
class Settings:
    """`library`: parameters for xgboost. Metrics in the order in which they were asked for."""

    rounds: int
    library: Mapping[str, Any] = field(default_factory=dict)
    native_metrics: tuple[str, ...] = ()
    computed_metrics: tuple[str, ...] = ()
    early_stopping_rounds: int | None = None
    early_stopping_metric: str | None = None
    tuned_metric: str | None = None
    csv_weights: bool = False
    save_on_termination: bool = False
    folds: Folds | None = None
    most_constrained_features: int = 0  # as many as constraints are about; the data must have them
    without_effect: tuple[str, ...] = ()

    @property
    def objective(self) -> str:
        return str(self.library.get("objective", "reg:squarederror"))

    @property
    def is_classification(self) -> bool:
        return self.objective.startswith(("binary:", "multi:"))

    @property
    def class_count(self) -> int:
        return int(self.library.get("num_class", 2))

    @property
    def tree_method(self) -> str:
        return str(self.library.get("tree_method", "auto"))

    def name_in_library(self, metric: str) -> str:
        """The library wants the power in the metric's name."""
        if metric == "tweedie-nloglik":
            return f"tweedie-nloglik@{self.library.get('tweedie_variance_power', 1.5)}"
        return metric


def settings(given: Mapping[str, str]) -> Settings:
    """Hyperparameters as they arrive -> what training needs. UserError with every problem that could be found."""
    values = parse(HYPERPARAMETERS, given)
    problems = list(_dependencies(values))
    if problems:
        raise UserError("\n".join(problems))
    objective = values.get("objective", "reg:squarederror")
    metrics: list[str] = list(dict.fromkeys(values.get("eval_metric", [])))
    tuned = values.get("_tuning_objective_metric", "").removeprefix("validation:")
    if tuned:
        metrics = sorted({*metrics, tuned})
    library = {name: value for name, value in values.items() if name not in NOT_LIBRARY}
    if objective == "reg:linear":  # its older name
        library["objective"] = "reg:squarederror"
    if library.get("tree_method") == "gpu_hist":
        library |= {"tree_method": "hist", "device": "cuda"}
    if "updater" in library:
        library["updater"] = ",".join(library["updater"])
    if "monotone_constraints" in library:
        library["monotone_constraints"] = tuple(library["monotone_constraints"])
    if "interaction_constraints" in library:  # a list would be taken for names of features
        library["interaction_constraints"] = str(library["interaction_constraints"])
    if values.get("silent") == 1:
        library.setdefault("verbosity", 0)
    native = [name for name in metrics if name not in COMPUTED_HERE]
    return Settings(
        rounds=values["num_round"],
        library=library,
        native_metrics=tuple(native or DEFAULT_METRICS.get(objective, ())),
        computed_metrics=tuple(name for name in metrics if name in COMPUTED_HERE),
        early_stopping_rounds=values.get("early_stopping_rounds"),
        early_stopping_metric=tuned or (metrics[-1] if metrics else None),
        tuned_metric=tuned or None,
        csv_weights=values.get("csv_weights") == 1,
        save_on_termination=values.get("save_model_on_termination") == "true",
        most_constrained_features=max(
            len(values.get("monotone_constraints", ())),
            max((index + 1 for group in values.get("interaction_constraints", ()) for index in group), default=0),
        ),
        folds=Folds(parts=values["_kfold"], repeats=values.get("_num_cv_round", 1)) if "_kfold" in values else None,
        without_effect=tuple(name for name in WITHOUT_EFFECT if name in values),
    )


def _dependencies(values: Mapping[str, Any]) -> Iterator[str]:
    objective = values.get("objective", "reg:squarederror")
    tree_method = values.get("tree_method")
    if objective.startswith("multi:") and "num_class" not in values:
        yield "Require input for parameter 'num_class' for multi-classification"
    if "num_class" in values and not objective.startswith("multi:"):
        yield f"num_class is for objective multi:softmax or multi:softprob, and the objective is {objective}: leave it out"
    for name in values.get("eval_metric", ()):
        yield from _metric_problems(name, objective)
    if "_tuning_objective_metric" in values:
        yield from _metric_problems(values["_tuning_objective_metric"].removeprefix("validation:"), objective)
    if values.get("use_dask_gpu_training") == "true":
        yield (
            "Hyperparameter use_dask_gpu_training: this program trains without Dask, on one GPU for each host, with "
            "tree_method gpu_hist: leave it out or give false"
        )
    if "_num_cv_round" in values and "_kfold" not in values:
        yield "Hyperparameter _num_cv_round repeats cross-validation: give _kfold too"
    if values.get("sampling_method") == "gradient_based" and tree_method != "gpu_hist":
        yield "sampling_method 'gradient_based' needs tree_method 'gpu_hist'"
    if "monotone_constraints" in values and tree_method not in ("exact", "hist"):
        yield (
            "monotone_constraints can be used only when the tree_method parameter is set to either 'exact' or 'hist'."
        )
    if "interaction_constraints" in values and tree_method not in ("exact", "hist", "approx"):
        yield (
            "interaction_constraints can be used only when the tree_method parameter is set to either 'exact', 'hist' "
            "or 'approx'."
        )
    updaters = values.get("updater", [])
    if len(GROWERS & set(updaters)) > 1:
        yield "Only one tree grow plugin can be selected. Choose one of " + ", ".join(sorted(GROWERS & set(updaters)))
    if values.get("process_type") == "update" and not set(updaters) <= {"refresh", "prune"}:
        yield "process_type 'update' can only be used with updater 'refresh' and 'prune'"
    if values.get("booster") == "gblinear" and updaters and updaters not in (["shotgun"], ["coord_descent"]):
        yield "booster 'gblinear' takes one updater, 'shotgun' or 'coord_descent'"


def _metric_problems(name: str, objective: str) -> Iterator[str]:
    base, at, threshold = name.partition("@")
    if at:
        if base not in WITH_THRESHOLD:
            yield (
                f"Metric '{name}' is not supported. Parameter 'eval_metric' with customized threshold should be one of these "
                "options: 'error', 'ndcg', 'map'."
            )
        elif not re.fullmatch(r"\d*\.?\d+(-)?|\d+\.", threshold):
            yield f"Threshold value '{threshold}' in '{base}@t' expects float input."
        return
    if base not in METRICS:
        yield f"Hyperparameter eval_metric: value ['{name}'] not in range {list(METRICS)}{near(base, METRICS)}"
    elif base == "auc" and not objective.startswith(("binary:", "rank:")):
        yield "Metric 'auc' can only be applied for classification and ranking problems."
    elif base == "aft-nloglik" and objective != "survival:aft":
        yield "Metric 'aft-nloglik' can only be applied for 'survival:aft' objective."
    elif base in CLASSIFICATION and not objective.startswith(("binary:", "multi:")):
        yield f"Metric '{name}' can only be applied for classification problems, and the objective is {objective}."
    elif base in BINARY_ONLY and objective.startswith("multi:"):
        yield f"Metric '{name}' is for two classes; for more take one of its kind ending in _macro or _micro."
