"""Gradients of a step that comes in two parts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def keeping_gradients(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Context in which nnU-Net's step adds to the gradients that are there, instead of clearing them first."""
    optimizer.zero_grad = lambda set_to_none=True: None  # type: ignore[method-assign]
    try:
        yield
    finally:
        del optimizer.zero_grad  # type: ignore[method-assign]
