"""Several hosts train one model: who takes part, whether their data fits together, and the library's way of talking."""

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

from optml_algorithms.data.rows import Rows
from optml_algorithms.hosts import HostLost, Hosts, address_of
from optml_algorithms.xgboost.hyperparameters import Settings
from optml_toolkit.container import UserError

# A host may have far more rows than the others, and all wait for it in each round. XGBoost's workers take the tracker's limit for
# their own, whatever they are given, so there is one.
SILENCE_SECONDS = 1800


@dataclass(frozen=True, kw_only=True)
class Share:
    """What a host has of a data set. `feature_count` is the least, unless it is declared."""

    rows: int
    feature_count: int = 0
    is_declared: bool = False
    label_low: float = 0.0
    label_high: float = 0.0
    has_weights: bool = False
    has_groups: bool = False


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What all hosts agree on. `members` take part: those with training data."""

    members: tuple[str, ...]
    feature_count: int
    has_validation: bool


def share_of(rows: Rows | None) -> Share:
    if rows is None:
        return Share(rows=0)
    return Share(
        rows=len(rows),
        feature_count=rows.feature_count,
        is_declared=rows.width_is_declared,
        label_low=float(rows.labels.min()),
        label_high=float(rows.labels.max()),
        has_weights=rows.weights is not None,
        has_groups=rows.groups is not None,
    )


def agree(hosts: Hosts, wanted: Settings, shards: Mapping[str, Rows | None]) -> Plan:
    """Tell all hosts what this one has, hear the same of them, and draw the same conclusion."""
    told = hosts.all_of({name: asdict(share_of(rows)) for name, rows in shards.items()})
    by_host = {
        host: {name: Share(**share) for name, share in shares.items()}
        for host, shares in zip(hosts.names, told, strict=True)
    }
    return plan_of(by_host, wanted)


def plan_of(by_host: Mapping[str, Mapping[str, Share]], wanted: Settings) -> Plan:
    """`by_host`: for each host its share of each declared channel. UserError where they do not fit together."""
    members = [host for host, shares in by_host.items() if shares["train"].rows]
    if not members:
        raise UserError("No hosts received training data.")
    train = {host: by_host[host]["train"] for host in members}
    validation = {
        host: share for host in members if (share := by_host[host].get("validation")) is not None and share.rows
    }
    if len(members) > 1:
        check_what_runs_on_several(wanted)
    feature_count = common_feature_count(train)
    if wanted.most_constrained_features > feature_count:
        raise UserError(
            f"monotone_constraints or interaction_constraints are about {wanted.most_constrained_features} features, and the "
            f"data has {feature_count}"
        )
    if validation:
        most = common_feature_count(validation)
        declared = all(share.is_declared for share in (*train.values(), *validation.values()))
        if most > feature_count or (declared and most != feature_count):
            raise UserError(
                f"the validation channel has {most} features and the train channel {feature_count}: "
                "both must have the same"
            )
    for what, shares in (("train", train), ("validation", validation)):
        for trait, word in (("has_weights", "weights"), ("has_groups", "groups (qid)")):
            without = [host for host, share in shares.items() if not getattr(share, trait)]
            if without and len(without) != len(shares):
                raise UserError(f"the {what} channel has no {word} on {', '.join(without)}, and has on the others")
    check_classes(wanted, train, validation)
    return Plan(members=tuple(members), feature_count=feature_count, has_validation=bool(validation))


def common_feature_count(shares: Mapping[str, Share]) -> int:
    most = max(share.feature_count for share in shares.values())
    for host, share in shares.items():
        if share.is_declared and share.feature_count != most:
            other = next(name for name, each in shares.items() if each.feature_count == most)
            raise UserError(
                f"{host} has {share.feature_count} features and {other} has {most}: all hosts must have the same"
            )
    return most


def check_what_runs_on_several(wanted: Settings) -> None:
    problems = []
    if wanted.folds is not None:
        problems.append(
            "Hyperparameter _kfold: cross-validation runs on one host: set ResourceConfig.InstanceCount to 1"
        )
    if wanted.tree_method == "exact":
        problems.append("tree_method 'exact' runs on one host: take 'hist' or 'approx'")
    if wanted.library.get("booster") == "gblinear":
        problems.append("booster 'gblinear' runs on one host: take 'gbtree', or set ResourceConfig.InstanceCount to 1")
    if problems:
        raise UserError("\n".join(problems))


def check_classes(wanted: Settings, train: Mapping[str, Share], validation: Mapping[str, Share]) -> None:
    """Rows of one class teach nothing, and some metrics need two."""
    if not wanted.is_classification:
        return
    for what, shares in (("train", train), ("validation", validation)):
        if not shares:
            continue
        low = min(share.label_low for share in shares.values())
        high = max(share.label_high for share in shares.values())
        if low != high:
            continue
        if what == "train":
            raise UserError(
                f"all rows of the train channel have the label {low:g}: a classifier needs at least two classes"
            )
        for metric in ("auc", "aucpr"):
            if metric in wanted.native_metrics:
                raise UserError(
                    f"metric {metric!r} needs two classes, and all rows of the validation channel have the label {low:g}"
                )


@contextlib.contextmanager
def together(hosts: Hosts, members: Sequence[str]) -> Iterator[bool]:
    """Join the members' communicator, and part at the end. Gives whether this host is the first of them, which saves.

    Every host of the job must come here. Who is no member waits for nothing.
    """
    if hosts.count == 1:
        yield True
        return
    from xgboost import collective
    from xgboost.tracker import RabitTracker

    is_first = hosts.me == members[0]
    tracker = None
    if is_first and len(members) > 1:
        address = address_of(hosts.me)
        tracker = RabitTracker(n_workers=len(members), host_ip=address, sortby="task", timeout=SILENCE_SECONDS)
        tracker.start()
    try:
        told = hosts.all_of(None if tracker is None else tracker.worker_args())
        hosts.close()
        if len(members) == 1 or hosts.me not in members:
            yield is_first
            return
        arguments = told[hosts.names.index(members[0])]
        with library_errors():
            collective.init(**arguments, dmlc_task_id=f"{members.index(hosts.me):06d}", dmlc_timeout=SILENCE_SECONDS)
        yield is_first
        with library_errors():
            collective.finalize()
            if tracker is not None:  # the others say goodbye to it, and would find nobody
                tracker.wait_for(SILENCE_SECONDS)
    finally:
        if tracker is not None:
            with contextlib.suppress(Exception):
                tracker.free()


@contextlib.contextmanager
def library_errors() -> Iterator[None]:
    """What XGBoost refuses is the caller's to mend: its own words, without its source file and the C++ stack.

    What its way of talking between hosts reports is a host that has gone.
    """
    import xgboost

    try:
        yield
    except xgboost.core.XGBoostError as error:
        text = str(error).partition("Stack trace:")[0].strip()
        if "/collective/" in text:
            raise HostLost(
                "another host of the job went away or said nothing for too long: look at its log. "
                f"XGBoost reports: {' '.join(text.split())}"
            ) from error
        text = re.sub(r"^\[[\d:]+\] \S+:\d+: ", "", text)
        raise UserError(f"XGB train call failed with exception:\n {text}") from error
