"""Sums and samples over all processes of a distributed training, so that each sees the statistics of the whole batch.

Off unless asked for: a collective that one process alone enters waits for ever.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch import distributed as dist
from torch.nn import functional

_state = {"shared": False}
"""A plain dictionary: older releases of torch.compile cannot trace a context variable."""


@contextmanager
def shared_between_ranks(enabled: bool = True) -> Iterator[None]:
    """Context in which the losses count over all ranks. Every rank must compute the same losses in it."""
    before = _state["shared"]
    _state["shared"] = enabled
    try:
        yield
    finally:
        _state["shared"] = before


def total_over_ranks(values: Tensor) -> Tensor:
    """Sum of ``values`` over the ranks, without gradient; ``values`` itself where nothing is shared."""
    if not _state["shared"]:
        return values
    total = values.detach().clone()
    dist.all_reduce(total)
    return total


def mean_over_ranks(values: Tensor) -> Tensor:
    """Mean of ``values`` over the ranks, without gradient; ``values`` itself where nothing is shared."""
    return total_over_ranks(values) / dist.get_world_size() if _state["shared"] else values


def gathered(values: Tensor, *, length: int, fill: float) -> Tensor:
    """The vectors of all ranks in a row, each filled up to ``length``; ``values`` (N,) where nothing is shared.

    A length that all ranks know beforehand: to ask for the longest would wait for the device.
    """
    if not _state["shared"]:
        return values
    padded = functional.pad(values, (0, length - values.numel()), value=fill)
    parts = [torch.empty_like(padded) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, padded)
    return torch.cat(parts)
