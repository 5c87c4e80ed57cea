"""k-NN's hyperparameters in SageMaker: what may be given, and what does not go together.

Names, ranges and defaults are AWS's (developer guide and SDK). Messages have the words of AWS's container, which checks a JSON
schema.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from optml_algorithms.hyperparameters import SCHEMA_WORDING, Hyperparameter, Interval, Tunable, choice, integer, parse
from optml_toolkit.container import UserError

CLASSIFIER, REGRESSOR = "classifier", "regressor"
FLAT, IVF_FLAT, IVF_PQ = "faiss.Flat", "faiss.IVFFlat", "faiss.IVFPQ"
L2, INNER_PRODUCT, COSINE = "L2", "INNER_PRODUCT", "COSINE"
PQ_M = (1, 2, 3, 4, 8, 12, 16, 20, 24, 28, 32, 40, 48, 56, 64, 96)
FROM_1 = Interval(low=1)

HYPERPARAMETERS: tuple[Hyperparameter, ...] = (
    integer("feature_dim", FROM_1, required=True, about="features of a row"),
    integer("k", FROM_1, required=True, tunable=Tunable(low=1, high=1024, whole=True), about="neighbours that are asked"),
    choice("predictor_type", CLASSIFIER, REGRESSOR, required=True, about="the neighbours' commonest label, or their mean"),
    integer("sample_size", FROM_1, required=True, tunable=Tunable(low=256, high=20_000_000, whole=True),
            about="rows that are kept, drawn from those of all hosts"),
    integer("dimension_reduction_target", FROM_1, depends_on="dimension_reduction_type; less than feature_dim",
            about="features after the reduction; with faiss.IVFPQ rounded up to a multiple of faiss_index_pq_m"),
    choice("dimension_reduction_type", "sign", "fjlt", depends_on="dimension_reduction_target",
           about="a random projection, by a matrix of signs or a fast transform; not given: none"),
    integer("faiss_index_ivf_nlists", FROM_1, literals=("auto",), default="auto",
            depends_on="index_type faiss.IVFFlat or faiss.IVFPQ",
            about="lists into which rows are divided; auto: the square root of sample_size (of the rows, if they are fewer)"),
    Hyperparameter(name="faiss_index_pq_m", kind="integer", parse=int, allowed=PQ_M,
                   depends_on="index_type faiss.IVFPQ, which needs it",
                   about="bytes of a compressed row; a number of features that it does not divide is enlarged"),
    choice("index_metric", L2, INNER_PRODUCT, COSINE, default=L2, depends_on="faiss.IVFPQ has L2 only",
           about="what makes a neighbour near"),
    choice("index_type", FLAT, IVF_FLAT, IVF_PQ, default=FLAT, about="exact, in lists, or in lists and compressed"),
    integer("mini_batch_size", FROM_1, default=5000, about="rows of the test channel that are scored at a time"),
    integer("_faiss_index_nprobe", FROM_1, default=5, depends_on="index_type faiss.IVFFlat or faiss.IVFPQ",
            about="lists that a query looks into"),
    Hyperparameter(name="_tuning_objective_metric", parse=str.strip, about="set by a tuner; both metrics are always published"),
)  # fmt: skip

TUNABLE_METRICS: Mapping[str, str] = {"test:accuracy": "Maximize", "test:mse": "Minimize"}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """`list_count` is None for auto; `reduction` is sign, fjlt or None; `reduced_dim` is as given, before any rounding up."""

    feature_dim: int
    k: int
    predictor_type: str
    sample_size: int
    index_type: str
    index_metric: str
    reduction: str | None
    reduced_dim: int | None
    list_count: int | None
    pq_m: int | None
    probe_count: int
    batch_rows: int


def settings(given: Mapping[str, str]) -> Settings:
    """Hyperparameters as they arrive -> what training needs. UserError with every problem that could be found."""
    values = {each.name: each.default for each in HYPERPARAMETERS}
    values |= parse(HYPERPARAMETERS, given, wording=SCHEMA_WORDING)
    problems = list(_dependencies(values, given))
    if problems:
        raise UserError("\n".join(problems))
    lists = values["faiss_index_ivf_nlists"]
    return Settings(
        feature_dim=values["feature_dim"],
        k=values["k"],
        predictor_type=values["predictor_type"],
        sample_size=values["sample_size"],
        index_type=values["index_type"],
        index_metric=values["index_metric"],
        reduction=values["dimension_reduction_type"],
        reduced_dim=values["dimension_reduction_target"],
        list_count=None if lists == "auto" else lists,
        pq_m=values["faiss_index_pq_m"],
        probe_count=values["_faiss_index_nprobe"],
        batch_rows=values["mini_batch_size"],
    )


def _dependencies(values: Mapping[str, Any], given: Mapping[str, str]) -> Iterator[str]:
    index_type, target = values["index_type"], values["dimension_reduction_target"]
    if (values["dimension_reduction_type"] is None) != (target is None):
        yield (
            "Hyperparameters dimension_reduction_type and dimension_reduction_target are given together or not at all: "
            f"add {'dimension_reduction_type' if target is not None else 'dimension_reduction_target'}"
        )
    if target is not None and target >= values["feature_dim"]:
        yield (
            f"Hyperparameter dimension_reduction_target: {target} must be less than feature_dim, which is "
            f"{values['feature_dim']}"
        )
    if values["k"] > values["sample_size"]:
        yield f"Hyperparameter k: {values['k']} is more than sample_size, which is {values['sample_size']}"
    if index_type == IVF_PQ and values["faiss_index_pq_m"] is None:
        yield f"Hyperparameter faiss_index_pq_m: index_type {IVF_PQ} needs it, one of {list(PQ_M)}"
    if index_type == IVF_PQ and values["index_metric"] != L2:
        yield f"Hyperparameter index_metric: {values['index_metric']} cannot be had with index_type {IVF_PQ}, only {L2}"
    if index_type != IVF_PQ and values["faiss_index_pq_m"] is not None:
        yield f"Hyperparameter faiss_index_pq_m: it is for index_type {IVF_PQ}, and that is {index_type}: leave it out"
    for name in ("faiss_index_ivf_nlists", "_faiss_index_nprobe"):
        if index_type == FLAT and given.get(name, "auto").strip() != "auto":
            yield f"Hyperparameter {name}: it is for index_type {IVF_FLAT} or {IVF_PQ}, and that is {FLAT}: leave it out"
    lists = values["faiss_index_ivf_nlists"]
    if lists != "auto" and index_type != FLAT and lists > values["sample_size"]:
        yield f"Hyperparameter faiss_index_ivf_nlists: {lists} is more than sample_size, which is {values['sample_size']}"
