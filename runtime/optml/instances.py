"""What an ml.* instance type has: processors, memory, accelerators. From AWS's published tables; the pattern first, then what
does not follow it.
"""

import functools
import re
from dataclasses import dataclass

from optml.errors import UserError

TYPE = re.compile(r"ml\.(?P<family>[a-z0-9-]+)\.(?P<size>[a-z0-9]+)")
VCPUS = {"medium": 2, "large": 2, "xlarge": 4}  # <n>xlarge has 4 n
GIB_PER_VCPU = {"c": 2, "m": 4, "r": 8, "t": 4, "g": 4, "p": 8, "trn": 8}

GPUS = {
    "p2": {"xlarge": 1, "8xlarge": 8, "16xlarge": 16},
    "p3": {"2xlarge": 1, "8xlarge": 4, "16xlarge": 8},
    "p3dn": {"24xlarge": 8},
    "p4d": {"24xlarge": 8},
    "p4de": {"24xlarge": 8},
    "p5": {"4xlarge": 1, "48xlarge": 8},
    "p5e": {"48xlarge": 8},
    "p5en": {"48xlarge": 8},
    "p6-b200": {"48xlarge": 8},
    "p6-b300": {"48xlarge": 8},
    "p6e-gb200": {"36xlarge": 4},
    "g4dn": {"12xlarge": 4},  # one, but for the sizes named
    "g5": {"12xlarge": 4, "24xlarge": 4, "48xlarge": 8},
    "g6": {"12xlarge": 4, "24xlarge": 4, "48xlarge": 8},
    "g6e": {"12xlarge": 4, "24xlarge": 4, "48xlarge": 8},
    "g7e": {"12xlarge": 2, "24xlarge": 4, "48xlarge": 8},
}
NEURONS = {"trn1": {"2xlarge": 1, "32xlarge": 16}, "trn1n": {"32xlarge": 16}, "trn2": {"48xlarge": 16}}


@dataclass(frozen=True, kw_only=True)
class Instance:
    """`memory_gib` is approximate for accelerated types: it only serves to tell people what they would get."""

    type: str
    vcpus: int
    memory_gib: int
    gpus: int = 0
    neurons: int = 0  # Trainium devices


@functools.cache
def instance_named(instance_type: str) -> Instance:
    """UserError for a name that is no ml.* type."""
    match = TYPE.fullmatch(instance_type)
    if match is None:
        raise UserError(f"ResourceConfig.InstanceType {instance_type!r} is not an instance type such as ml.m5.large")
    family, size = match["family"], match["size"]
    if size in VCPUS:
        vcpus = VCPUS[size]
    elif size.removesuffix("xlarge").isdigit():
        vcpus = 4 * int(size.removesuffix("xlarge"))
    else:
        raise UserError(f"ResourceConfig.InstanceType {instance_type!r}: there is no size {size!r}")
    kind = next((name for name in sorted(GIB_PER_VCPU, key=len, reverse=True) if family.startswith(name)), "m")
    gpus = GPUS.get(family, {}).get(size, 1 if family.startswith("g") else 0)
    return Instance(
        type=instance_type,
        vcpus=vcpus,
        memory_gib=vcpus * GIB_PER_VCPU[kind],
        gpus=gpus,
        neurons=NEURONS.get(family, {}).get(size, 0),
    )
