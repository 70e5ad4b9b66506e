"""What one process of a distributed training does for all."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar, cast

from torch import distributed as dist

from nnunet_dualcl.errors import DualCLError

Result = TypeVar("Result")


def of_rank_0(rank: int | None, function: Callable[[], Result]) -> Result:
    """What ``function`` gives on rank 0 of a distributed training, for every rank, be it hours later.

    Raises:
        DualCLError: on the other ranks, where it fails.
    """
    if rank is None:
        return function()
    patient = cast(dist.ProcessGroup, dist.new_group(backend="gloo", timeout=timedelta(days=7)))
    told: list[Any] = [None, "Rank 0 was interrupted."]
    try:
        if rank == 0:
            told = [function(), None]
    except Exception as error:
        told[1] = str(error) if isinstance(error, DualCLError) else f"Rank 0 failed: {error!r}"
        raise
    finally:
        dist.broadcast_object_list(told, src=0, group=patient)
    if told[1] is not None:
        raise DualCLError(told[1])
    return cast(Result, told[0])
