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
OLDER_CRITERIA: Mapping[str, str] = {"f1": "f_beta", "cross_entropy_loss": "loss_function"}  # AWS's SDK still sends them

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
    choice("predictor_type", BINARY, MULTICLASS, REGRESSOR, required=True, about="what is learned: two classes, more, or a number"),
    integer("num_classes", Interval(low=3, high=1_000_000), depends_on="predictor_type=multiclass_classifier, which needs it",
            about="classes, numbered from 0"),
    integer("accuracy_top_k", Interval(low=1, high=1_000_000), default=3, depends_on="predictor_type=multiclass_classifier",
            about="k of the top-k accuracy that is reported"),
    boolean("balance_multiclass_weights", default=False, depends_on="predictor_type=multiclass_classifier",
            about="weigh rows so that every class counts the same"),
    number("beta_1", UNIT_BELOW_1, literals=AUTO, default="auto", depends_on="optimizer=adam",
           about="decay of the mean of gradients; auto: 0.9"),
    number("beta_2", UNIT_BELOW_1, literals=AUTO, default="auto", depends_on="optimizer=adam",
           about="decay of the mean of squared gradients; auto: 0.999"),
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
           depends_on="predictor_type, which allows some", about="what is minimised; auto: logistic, softmax_loss or squared_loss"),
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
            about="rows of one update on each host; if not given, less for few rows: at least 20 updates an epoch, 16 rows each"),
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
