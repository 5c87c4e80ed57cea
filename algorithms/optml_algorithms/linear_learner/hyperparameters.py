"""Linear learner's hyperparameters in SageMaker: what may be given, what `auto` is, what does not go together.

Ranges and defaults are AWS's (developer guide and SDK). Messages have the words of AWS's container, which checks a JSON schema.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from optml_algorithms.hyperparameters import (
    SCHEMA_WORDING,
    Hyperparameter,
    Interval,
    Tunable,
    boolean,
    choice,
    integer,
    number,
    parse,
)
from optml_toolkit.container import UserError

BINARY = "binary_classifier"
MULTICLASS = "multiclass_classifier"
REGRESSOR = "regressor"

# What each predictor_type can minimise; the first is `auto`.
LOSSES: Mapping[str, tuple[str, ...]] = {
    BINARY: ("logistic", "hinge_loss"),
    MULTICLASS: ("softmax_loss",),
    REGRESSOR: (
        "squared_loss", "absolute_loss", "eps_insensitive_squared_loss", "eps_insensitive_absolute_loss",
        "quantile_loss", "huber_loss",
    ),
}  # fmt: skip
CRITERIA = ("accuracy", "f_beta", "precision_at_target_recall", "recall_at_target_precision", "loss_function")
OLDER_CRITERIA: Mapping[str, str] = {
    "f1": "f_beta",
    "cross_entropy_loss": "loss_function",
}  # AWS's SDK still sends them

FROM_0 = Interval(low=0)
ABOVE_0 = Interval(low=0, low_open=True)
UNIT_BELOW_1 = Interval(low=0, high=1, high_open=True)
INSIDE_UNIT = Interval(low=0, high=1, low_open=True, high_open=True)
FROM_1 = Interval(low=1)
AUTO = ("auto",)


def _three_way(name: str, default: str, **more: Any) -> Hyperparameter:
    """auto, true or false; however it is capitalised, for AWS's SDK sends Python's `True`."""
    return Hyperparameter(
        name=name,
        kind="choice",
        parse=lambda text: text.strip().lower(),
        allowed=("auto", "true", "false"),
        default=default,
        **more,
    )


HYPERPARAMETERS: tuple[Hyperparameter, ...] = (
    choice("predictor_type", BINARY, MULTICLASS, REGRESSOR, required=True, about="two classes, more, or a number"),
    integer("num_classes", Interval(low=3, high=1_000_000), depends_on="predictor_type=multiclass_classifier, which needs it",
            about="classes, numbered from 0"),
    integer("accuracy_top_k", Interval(low=1, high=1_000_000), default=3, depends_on="predictor_type=multiclass_classifier",
            about="k of the top-k accuracy that is reported"),
    boolean("balance_multiclass_weights", default=False, depends_on="predictor_type=multiclass_classifier",
            about="weigh rows so that every class counts the same"),
    number("beta_1", UNIT_BELOW_1, literals=AUTO, default="auto", depends_on="optimizer=adam",
           about="decay of the mean of gradients; auto: 0.9"),
    number("beta_2", UNIT_BELOW_1, literals=AUTO, default="auto", depends_on="optimizer=adam",
           about="decay of the mean of squared gradients; auto: 0.99"),
    number("bias_lr_mult", ABOVE_0, literals=AUTO, default="auto", depends_on="use_bias=true",
           about="the bias learns so many times faster; auto: 1"),
    number("bias_wd_mult", FROM_0, literals=AUTO, default="auto", depends_on="use_bias=true",
           about="the bias decays so many times as much; auto: 0"),
    choice("binary_classifier_model_selection_criteria", *CRITERIA, *OLDER_CRITERIA, default="accuracy",
           depends_on="predictor_type=binary_classifier", about="what model and threshold are chosen by"),
    integer("early_stopping_patience", FROM_1, default=3, about="epochs without progress after which training ends"),
    number("early_stopping_tolerance", ABOVE_0, default=0.001, about="relative improvement below which there is no progress"),
    integer("epochs", FROM_1, default=15, about="passes over the data, at most"),
    number("f_beta", ABOVE_0, default=1.0, depends_on="a classifier", about="beta of the F score that is reported or chosen by"),
    integer("feature_dim", FROM_1, literals=AUTO, default="auto", about="features of a row; auto: what the data have"),
    number("huber_delta", ABOVE_0, default=1.0, depends_on="loss=huber_loss",
           about="error above which the loss is no longer squared, in units of the label"),
    number("init_bias", default=0.0, depends_on="use_bias=true", about="bias before training, in normalised units"),
    choice("init_method", "uniform", "normal", default="uniform", about="distribution of the weights before training"),
    number("init_scale", ABOVE_0, default=0.07, depends_on="init_method=uniform", about="from minus this to this"),
    number("init_sigma", ABOVE_0, default=0.01, depends_on="init_method=normal", about="standard deviation"),
    number("l1", FROM_0, literals=AUTO, default="auto", tunable=Tunable(low=1e-7, high=1, scale="Logarithmic"),
           about="L1 penalty; auto: none, and small ones for some candidates"),
    number("learning_rate", ABOVE_0, literals=AUTO, default="auto", tunable=Tunable(low=1e-5, high=1, scale="Logarithmic"),
           about="step size; auto: by the optimizer, and another for each candidate"),
    choice("loss", "auto", *(loss for losses in LOSSES.values() for loss in losses), default="auto",
           depends_on="predictor_type, which allows some", about="what is minimised; auto: the first that is allowed"),
    number("loss_insensitivity", ABOVE_0, default=0.01, depends_on="loss=eps_insensitive_*",
           about="error that does not count, in units of the label"),
    number("lr_scheduler_factor", INSIDE_UNIT, literals=AUTO, default="auto", depends_on="use_lr_scheduler=true",
           about="factor of the learning rate every lr_scheduler_step; auto: such that the last epoch has a hundredth"),
    number("lr_scheduler_minimum_lr", ABOVE_0, literals=AUTO, default="auto", depends_on="use_lr_scheduler=true",
           about="the learning rate falls no lower; auto: a thousandth of the first"),
    integer("lr_scheduler_step", FROM_1, literals=AUTO, default="auto", depends_on="use_lr_scheduler=true",
            about="updates between two changes of the learning rate; auto: a hundredth of all updates"),
    number("margin", ABOVE_0, default=1.0, depends_on="loss=hinge_loss", about="margin of the hinge loss"),
    integer("mini_batch_size", FROM_1, default=1000, tunable=Tunable(low=100, high=5000, whole=True, scale="Linear"),
            about="rows of one update on each host; if not given, less for few rows: at least 100 updates an epoch, 16 rows"),
    number("momentum", UNIT_BELOW_1, literals=AUTO, default="auto", depends_on="optimizer=sgd", about="auto: 0.9"),
    _three_way("normalize_data", "true", about="divide features by their standard deviation; auto: true"),
    _three_way("normalize_label", "auto", depends_on="predictor_type=regressor", about="divide labels likewise; auto: true"),
    integer("num_calibration_samples", FROM_1, literals=AUTO, default="auto", depends_on="predictor_type=binary_classifier",
            about="validation rows that the threshold is chosen by; auto: all"),
    integer("num_models", FROM_1, literals=AUTO, default="auto",
            about="candidates trained together; auto: 32, less for very many weights"),
    integer("num_point_for_scaler", FROM_1, default=10_000, about="rows that mean and deviation are taken from, the first"),
    choice("optimizer", "auto", "sgd", "adam", "rmsprop", default="auto", about="auto: adam"),
    number("positive_example_weight_mult", ABOVE_0, literals=("balanced", "auto"), default=1.0,
           depends_on="predictor_type=binary_classifier", tunable=Tunable(low=1e-5, high=1e5, scale="Logarithmic"),
           about="weight of a positive row; balanced: both classes count the same; auto: candidates of both kinds"),
    number("quantile", INSIDE_UNIT, default=0.5, depends_on="loss=quantile_loss",
           about="the label is below the prediction with this probability"),
    number("target_precision", INSIDE_UNIT, default=0.8, depends_on="criteria=recall_at_target_precision",
           about="precision held while recall is maximised"),
    number("target_recall", INSIDE_UNIT, default=0.8, depends_on="criteria=precision_at_target_recall",
           about="recall held while precision is maximised"),
    _three_way("unbias_data", "auto", depends_on="use_bias=true", about="shift features to mean 0; auto: if there is a bias"),
    _three_way("unbias_label", "auto", depends_on="predictor_type=regressor, use_bias=true",
               about="shift labels to mean 0; auto: if there is a bias"),
    boolean("use_bias", default=True, tunable=Tunable(values=("true", "false")), about="learn a bias"),
    boolean("use_lr_scheduler", default=True, about="lower the learning rate while training"),
    number("wd", FROM_0, literals=AUTO, default="auto", tunable=Tunable(low=1e-7, high=1, scale="Logarithmic"),
           about="L2 penalty (weight decay); auto: small, and another for each candidate"),
    Hyperparameter(name="_tuning_objective_metric", parse=str.strip, about="set by a tuner, which trains one candidate a job"),
)  # fmt: skip

_MAXIMISED = (
    "binary_classification_accuracy", "binary_f_beta", "precision", "recall", "roc_auc_score", "multiclass_accuracy",
    "multiclass_top_k_accuracy", "macro_f_beta", "macro_precision", "macro_recall", "dcg",
)  # fmt: skip
TUNABLE_METRICS: Mapping[str, str] = {
    **{f"{data_set}:{name}": "Maximize" for data_set in ("validation", "test") for name in _MAXIMISED},
    **{
        f"{data_set}:{name}": "Minimize"
        for data_set in ("validation", "test")
        for name in ("objective_loss", "mse", "absolute_loss")
    },
    "validation:rmse": "Minimize",
}

Criterion = Literal["accuracy", "f_beta", "precision_at_target_recall", "recall_at_target_precision", "loss_function"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What training needs, `auto` resolved as far as it does not depend on the data: None where it does."""

    predictor_type: str
    loss: str
    optimizer: str
    num_classes: int  # 2 for binary, 1 for a regressor
    epochs: int
    mini_batch_size: int | None  # None: not given
    feature_dim: int | None
    num_models: int | None
    learning_rate: float | None
    wd: float | None
    l1: float | None
    momentum: float
    beta_1: float
    beta_2: float
    use_bias: bool
    init_bias: float
    bias_lr_mult: float
    bias_wd_mult: float
    init_method: str
    init_scale: float
    init_sigma: float
    use_lr_scheduler: bool
    lr_scheduler_step: int | None
    lr_scheduler_factor: float | None
    lr_scheduler_minimum_lr: float | None
    normalize_data: bool
    unbias_data: bool
    normalize_label: bool
    unbias_label: bool
    num_point_for_scaler: int
    criterion: Criterion
    f_beta: float
    target_precision: float
    target_recall: float
    num_calibration_samples: int | None
    accuracy_top_k: int
    positive_example_weight_mult: float | Literal["balanced", "auto"]
    balance_multiclass_weights: bool
    early_stopping_patience: int
    early_stopping_tolerance: float
    margin: float
    loss_insensitivity: float
    quantile: float
    huber_delta: float
    without_effect: tuple[str, ...] = ()  # `momentum (optimizer is adam)`: what was given and changes nothing

    @property
    def outputs(self) -> int:
        """Columns of a model: one score, or one for each class."""
        return self.num_classes if self.predictor_type == MULTICLASS else 1


def settings(given: Mapping[str, str]) -> Settings:
    """Hyperparameters as they arrive -> what training needs. UserError with every problem that could be found."""
    values = {each.name: each.default for each in HYPERPARAMETERS}
    set_here = parse(HYPERPARAMETERS, given, wording=SCHEMA_WORDING)
    values |= set_here
    problems = list(_dependencies(values))
    if problems:
        raise UserError("\n".join(problems))
    kind = values["predictor_type"]
    if values["loss"] == "auto":
        values["loss"] = LOSSES[kind][0]
    if values["optimizer"] == "auto":
        values["optimizer"] = "adam"
    tuned = bool(values["_tuning_objective_metric"])
    is_regressor = kind == REGRESSOR
    return Settings(
        predictor_type=kind,
        loss=values["loss"],
        optimizer=values["optimizer"],
        num_classes={BINARY: 2, REGRESSOR: 1}.get(kind) or values["num_classes"],
        epochs=values["epochs"],
        mini_batch_size=set_here.get("mini_batch_size"),
        feature_dim=_number(values["feature_dim"]),
        num_models=1 if tuned else _number(values["num_models"]),
        learning_rate=_number(values["learning_rate"]),
        wd=_number(values["wd"]),
        l1=_number(values["l1"]),
        momentum=_number(values["momentum"], auto=0.9),
        beta_1=_number(values["beta_1"], auto=0.9),
        beta_2=_number(values["beta_2"], auto=0.99),  # 0.999 would outlast the few updates of small data
        use_bias=values["use_bias"],
        init_bias=values["init_bias"] if values["use_bias"] else 0.0,
        bias_lr_mult=_number(values["bias_lr_mult"], auto=1.0),
        bias_wd_mult=_number(values["bias_wd_mult"], auto=0.0),
        init_method=values["init_method"],
        init_scale=values["init_scale"],
        init_sigma=values["init_sigma"],
        use_lr_scheduler=values["use_lr_scheduler"],
        lr_scheduler_step=_number(values["lr_scheduler_step"]),
        lr_scheduler_factor=_number(values["lr_scheduler_factor"]),
        lr_scheduler_minimum_lr=_number(values["lr_scheduler_minimum_lr"]),
        normalize_data=values["normalize_data"] != "false",
        unbias_data=values["unbias_data"] != "false" and values["use_bias"],
        normalize_label=values["normalize_label"] != "false" and is_regressor,
        unbias_label=values["unbias_label"] != "false" and values["use_bias"] and is_regressor,
        num_point_for_scaler=values["num_point_for_scaler"],
        criterion=_criterion(values["binary_classifier_model_selection_criteria"]),
        f_beta=1.0 if values["binary_classifier_model_selection_criteria"] == "f1" else values["f_beta"],
        target_precision=values["target_precision"],
        target_recall=values["target_recall"],
        num_calibration_samples=_number(values["num_calibration_samples"]),
        accuracy_top_k=values["accuracy_top_k"],
        positive_example_weight_mult=values["positive_example_weight_mult"],
        balance_multiclass_weights=values["balance_multiclass_weights"],
        early_stopping_patience=values["early_stopping_patience"],
        early_stopping_tolerance=values["early_stopping_tolerance"],
        margin=values["margin"],
        loss_insensitivity=values["loss_insensitivity"],
        quantile=values["quantile"],
        huber_delta=values["huber_delta"],
        without_effect=tuple(_without_effect(values, set_here)),
    )


def _number(value: Any, *, auto: Any = None) -> Any:
    return auto if value == "auto" else value


def _criterion(name: str) -> Criterion:
    found: Criterion = OLDER_CRITERIA.get(name, name)  # type: ignore[assignment]
    return found


def _dependencies(values: Mapping[str, Any]) -> Iterator[str]:
    kind, loss = values["predictor_type"], values["loss"]
    if kind == MULTICLASS and values["num_classes"] is None:
        yield f"Hyperparameter num_classes is required for predictor_type {kind!r}: give the number of classes, at least 3"
    if loss != "auto" and loss not in LOSSES[kind]:
        allowed = list(LOSSES[kind])
        yield f"Hyperparameter loss: {loss!r} does not go with predictor_type {kind!r}; give auto or one of {allowed}"


def _without_effect(values: Mapping[str, Any], set_here: Mapping[str, Any]) -> Iterator[str]:
    """Of what was given, what changes nothing beside the rest. AWS's container ignores it without a word."""
    kind, loss, optimizer = values["predictor_type"], values["loss"], values["optimizer"]
    criterion = _criterion(values["binary_classifier_model_selection_criteria"])
    matters = {
        f"predictor_type is {kind}": {
            BINARY: ("num_classes", "accuracy_top_k", "balance_multiclass_weights", "normalize_label", "unbias_label"),
            MULTICLASS: (
                "binary_classifier_model_selection_criteria", "num_calibration_samples", "positive_example_weight_mult",
                "target_precision", "target_recall", "normalize_label", "unbias_label",
            ),
            REGRESSOR: (
                "num_classes", "accuracy_top_k", "balance_multiclass_weights", "f_beta", "num_calibration_samples",
                "binary_classifier_model_selection_criteria", "positive_example_weight_mult", "target_precision",
                "target_recall",
            ),
        }[kind],
        f"optimizer is {optimizer}": {
            "adam": ("momentum",), "sgd": ("beta_1", "beta_2"), "rmsprop": ("momentum", "beta_1", "beta_2"),
        }[optimizer],
        f"loss is {loss}": tuple(
            name
            for name, losses in {
                "margin": ("hinge_loss",),
                "huber_delta": ("huber_loss",),
                "quantile": ("quantile_loss",),
                "loss_insensitivity": ("eps_insensitive_squared_loss", "eps_insensitive_absolute_loss"),
            }.items()
            if loss not in losses
        ),
        f"init_method is {values['init_method']}": (
            ("init_sigma",) if values["init_method"] == "uniform" else ("init_scale",)
        ),
        "use_bias is false": ()
        if values["use_bias"]
        else ("init_bias", "bias_lr_mult", "bias_wd_mult", "unbias_data", "unbias_label"),
        "use_lr_scheduler is false": ()
        if values["use_lr_scheduler"]
        else ("lr_scheduler_step", "lr_scheduler_factor", "lr_scheduler_minimum_lr"),
        f"the criterion is {criterion}": tuple(
            name
            for name, needed in {
                "target_recall": "precision_at_target_recall", "target_precision": "recall_at_target_precision",
            }.items()
            if kind == BINARY and criterion != needed
        ),
        "a tuner asks for one model": ("num_models",) if values["_tuning_objective_metric"] else (),
    }  # fmt: skip
    for reason, names in matters.items():
        yield from (f"{name} ({reason})" for name in names if name in set_here)
