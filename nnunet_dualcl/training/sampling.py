"""The same randomly placed voxels of several volumes."""

from __future__ import annotations

import torch


def draw_voxels(volume: torch.Tensor, count: int) -> torch.Tensor:
    """``count`` flat positions (with replacement) in the spatial part of ``volume`` (B, C, *)."""
    return torch.randint(volume[0, 0].numel(), (count,), device=volume.device)


def at_voxels(volume: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """(B, C, *) and N flat positions -> (B, C, N); gradient flows back to ``volume``."""
    return volume.flatten(2).index_select(2, positions)
