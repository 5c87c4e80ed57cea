"""Which host gets which objects, in which order: one rule for File, FastFile and Pipe."""

import random
from collections.abc import Sequence
from typing import TypeVar

from optml.spec import Channel, Distribution, ObjectSource

T = TypeVar("T")


def share_of_host(channel: Channel, items: Sequence[T], *, host_index: int, host_count: int, epoch: int = 0) -> list[T]:
    """A host's part of a channel in one epoch, `items` being in key or manifest order.

    Shuffled by seed and epoch if the channel is; then every host_count-th for ShardedByS3Key (AWS does not say which host gets
    what; of two keys and two hosts it gave one each, in order). In File mode only epoch 0 exists, so shuffling shows in who
    gets what.
    """
    ordered = list(items)
    if channel.shuffle_seed is not None:
        random.Random(f"{channel.shuffle_seed}/{epoch}").shuffle(ordered)
    if isinstance(channel.source, ObjectSource) and channel.source.distribution is Distribution.SHARDED_BY_KEY:
        return ordered[host_index::host_count]
    return ordered
