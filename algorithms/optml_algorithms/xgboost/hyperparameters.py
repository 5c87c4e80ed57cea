"""XGBoost's hyperparameters in SageMaker: what may be given, and what goes to the library under which name."""

import ast
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from optml_algorithms.hyperparameters import Hyperparameter, Interval, choice, choices, integer, number, parse
from optml_algorithms.metrics import BINARY_ONLY, CLASSIFICATION, REGRESSION
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

HYPERPARAMETERS: tuple[Hyperparameter, ...] = (
    integer("num_round", Interval(low=1), required=True),
    integer("num_class", Interval(low=2)),
    number("alpha", FROM_0, aliases=("reg_alpha",)),
    number("base_score", FROM_0),
    choice("booster", "gbtree", "gblinear", "dart"),
    number("colsample_bylevel", UNIT_ABOVE_0),
    number("colsample_bynode", UNIT_ABOVE_0),
    number("colsample_bytree", UNIT_ABOVE_0),
    integer("csv_weights", UNIT),
    choice("deterministic_histogram", "true", "false"),
    integer("early_stopping_rounds", Interval(low=1)),
    number("eta", UNIT, aliases=("learning_rate",)),
    Hyperparameter(name="eval_metric", parse=_metric_list),
    number("gamma", FROM_0, aliases=("min_split_loss",)),
    choice("grow_policy", "depthwise", "lossguide"),
    Hyperparameter(name="interaction_constraints", parse=_lists_of_indices),
    number("lambda", FROM_0, aliases=("reg_lambda",)),
    number("lambda_bias", UNIT),
    integer("max_bin", FROM_0),
    number("max_delta_step", FROM_0),
    integer("max_depth", FROM_0),
    integer("max_leaves", FROM_0),
    number("min_child_weight", FROM_0),
    Hyperparameter(name="monotone_constraints", parse=_signs, allowed=(-1, 0, 1)),
    choice("normalize_type", "tree", "forest"),
    integer("nthread", Interval(low=1)),
    choice("objective", *OBJECTIVES),
    integer("one_drop", UNIT),
    choice("process_type", "default", "update"),
    number("rate_drop", UNIT),
    integer("refresh_leaf", UNIT),
    choice("sample_type", "uniform", "weighted"),
    number("scale_pos_weight", Interval(low=0, low_open=True)),
    integer("seed", Interval(low=-(2**31), high=2**31 - 1, low_open=True, high_open=True)),
    number("sketch_eps", Interval(low=0, high=1, low_open=True, high_open=True)),
    number("skip_drop", UNIT),
    number("subsample", UNIT_ABOVE_0),
    choice("tree_method", "auto", "exact", "approx", "hist", "gpu_hist"),
    number("tweedie_variance_power", Interval(low=1, high=2, low_open=True, high_open=True)),
    choices("updater", *sorted(GROWERS), "sync", "refresh", "prune", "shotgun", "coord_descent"),
    integer("verbosity", Interval(low=0, high=3)),
    choice("aft_loss_distribution", "normal", "logistic", "extreme"),
    number("aft_loss_distribution_scale", Interval(low=0, low_open=True)),
    choice("dsplit", "row", "col"),
    integer("num_parallel_tree", Interval(low=1)),
    choice("predictor", "auto", "cpu_predictor", "gpu_predictor"),
    integer("prob_buffer_row", Interval(low=1, low_open=True)),
    choice("sampling_method", "uniform", "gradient_based"),
    choice("save_model_on_termination", "true", "false"),
    choice("use_dask_gpu_training", "true", "false"),
    integer("_kfold", Interval(low=2)),
    integer("_num_cv_round", Interval(low=1)),
    choice("_tuning_objective_metric", *(f"validation:{name}" for name in METRICS)),
)

# Of older XGBoosts, which the library of today knows no more: AWS's container passes them on, and they change nothing.
WITHOUT_EFFECT = (
    "deterministic_histogram", "sketch_eps", "dsplit", "predictor", "prob_buffer_row",
)  # fmt: skip
NOT_LIBRARY = (
    "num_round", "csv_weights", "early_stopping_rounds", "eval_metric", "save_model_on_termination",
    "use_dask_gpu_training", "_kfold", "_num_cv_round", "_tuning_objective_metric", *WITHOUT_EFFECT,
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Settings:
    """`library`: parameters for xgboost. Metrics in the order in which they were asked for."""

    rounds: int
    library: Mapping[str, Any] = field(default_factory=dict)
    native_metrics: tuple[str, ...] = ()
    computed_metrics: tuple[str, ...] = ()
    early_stopping_rounds: int | None = None
    early_stopping_metric: str | None = None
    csv_weights: bool = False
    save_on_termination: bool = False
    without_effect: tuple[str, ...] = ()

    @property
    def objective(self) -> str:
        return str(self.library.get("objective", "reg:squarederror"))


def settings(given: Mapping[str, str]) -> Settings:
    """Hyperparameters as they arrive -> what training needs. UserError with every problem that could be found."""
    values = parse(HYPERPARAMETERS, given)
    problems = [*_dependencies(values), *_not_yet(values)]
    if problems:
        raise UserError("\n".join(problems))
    metrics: list[str] = values.get("eval_metric", [])
    tuned = values.get("_tuning_objective_metric", "").removeprefix("validation:")
    if tuned:
        metrics = sorted({*metrics, tuned})
    library = {name: value for name, value in values.items() if name not in NOT_LIBRARY}
    if library.get("objective") == "reg:linear":  # its older name
        library["objective"] = "reg:squarederror"
    if library.get("tree_method") == "gpu_hist":
        library |= {"tree_method": "hist", "device": "cuda"}
    if "updater" in library:
        library["updater"] = ",".join(library["updater"])
    if "monotone_constraints" in library:
        library["monotone_constraints"] = tuple(library["monotone_constraints"])
    return Settings(
        rounds=values["num_round"],
        library=library,
        native_metrics=tuple(name for name in metrics if name not in COMPUTED_HERE),
        computed_metrics=tuple(name for name in metrics if name in COMPUTED_HERE),
        early_stopping_rounds=values.get("early_stopping_rounds"),
        early_stopping_metric=tuned or (metrics[-1] if metrics else None),
        csv_weights=values.get("csv_weights") == 1,
        save_on_termination=values.get("save_model_on_termination") == "true",
        without_effect=tuple(name for name in WITHOUT_EFFECT if name in values),
    )


def _not_yet(values: Mapping[str, Any]) -> Iterator[str]:
    for name in ("_kfold", "_num_cv_round"):
        if name in values:
            yield f"Hyperparameter {name}: this version has no cross-validation; leave it out"
    if values.get("use_dask_gpu_training") == "true":
        yield "Hyperparameter use_dask_gpu_training: this version has no Dask; leave it out"


def _dependencies(values: Mapping[str, Any]) -> Iterator[str]:
    objective = values.get("objective", "reg:squarederror")
    tree_method = values.get("tree_method")
    if objective.startswith("multi:") and "num_class" not in values:
        yield "Require input for parameter 'num_class' for multi-classification"
    for name in values.get("eval_metric", ()):
        yield from _metric_problems(name, objective)
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
        yield f"Hyperparameter eval_metric: value ['{name}'] not in range {list(METRICS)}"
    elif base == "auc" and not objective.startswith(("binary:", "rank:")):
        yield "Metric 'auc' can only be applied for classification and ranking problems."
    elif base == "aft-nloglik" and objective != "survival:aft":
        yield "Metric 'aft-nloglik' can only be applied for 'survival:aft' objective."
    elif base in CLASSIFICATION and not objective.startswith(("binary:", "multi:")):
        yield f"Metric '{name}' can only be applied for classification problems, and the objective is {objective}."
    elif base in BINARY_ONLY and objective.startswith("multi:"):
        yield f"Metric '{name}' is for two classes; for more take one of its kind ending in _macro or _micro."
