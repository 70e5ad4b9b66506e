"""A random stream of one's own, so that drawing unlabeled patches leaves the labeled draws as stock nnU-Net's."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def seed_global_streams(seed: int) -> None:
    """Seed Python's, NumPy's and torch's global generators (torch: all devices)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def seed_epoch(seed: int, epoch: int, rank: int = 0) -> int:
    """Seed the global generators for an epoch of a training, so that a continued one draws as an uninterrupted one.

    Returns:
        The seed made of the three.
    """
    mixed = int(np.random.SeedSequence([seed, epoch, rank]).generate_state(1)[0])
    seed_global_streams(mixed)
    return mixed


def _seed_host_streams(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)  # unlike torch.manual_seed, leaves the accelerators' generators alone


def _global_states() -> tuple[Any, Any, Any]:
    return random.getstate(), np.random.get_state(), torch.get_rng_state()


def _set_global_states(states: tuple[Any, Any, Any]) -> None:
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])


class RandomStream:
    """Global generators of Python, NumPy and torch, swapped for private ones inside :meth:`active`.

    nnU-Net's loaders and transforms draw from the global generators. The private ones start, on first use in a
    process, from the state that NumPy's global generator has then, so they follow the worker's own seed.
    """

    def __init__(self) -> None:
        self._states: tuple[Any, Any, Any] | None = None

    def restart(self) -> None:
        """Forget the private generators; the next use starts from the global one again."""
        self._states = None

    @contextmanager
    def active(self) -> Iterator[None]:
        """Draws inside come from the private stream; the global one is put back as it was."""
        outside = _global_states()
        if self._states is None:
            words = np.random.get_state()[1][:8]  # type: ignore[index]
            _seed_host_streams(int(np.random.SeedSequence([int(word) for word in words]).generate_state(1)[0]))
        else:
            _set_global_states(self._states)
        try:
            yield
        finally:
            self._states = _global_states()
            _set_global_states(outside)
