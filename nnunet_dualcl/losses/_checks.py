"""Argument checks of the losses: shapes and dtypes only, so that none of them waits for the device."""

from __future__ import annotations

import torch
from torch import Tensor

_LABEL_DTYPES = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def check_class_maps(**maps: Tensor) -> None:
    """Require floating (B, C, *) tensors of one shape with at least two classes.

    Raises:
        ValueError: naming the argument, what it was and what was expected.
    """
    first_name, first = next(iter(maps.items()))
    for name, values in maps.items():
        if values.ndim < 3 or not values.is_floating_point():
            raise ValueError(
                f"{name} must be a floating tensor of shape (B, C, *) with at least one spatial axis, "
                f"got {values.dtype} of shape {tuple(values.shape)}."
            )
        if values.shape != first.shape:
            raise ValueError(
                f"{name} must have the shape of {first_name}, {tuple(first.shape)}, got {tuple(values.shape)}."
            )
    if first.shape[1] < 2:
        raise ValueError(
            f"{first_name} must hold at least two classes on axis 1, got shape {tuple(first.shape)}. "
            "A single sigmoid head z enters as the two classes (0, z)."
        )


def check_embeddings(embeddings: Tensor) -> None:
    """Require a floating (B, D, *) tensor with D >= 1.

    Raises:
        ValueError: naming what was received and expected.
    """
    if embeddings.ndim < 3 or embeddings.shape[1] < 1 or not embeddings.is_floating_point():
        raise ValueError(
            "embeddings must be a floating tensor of shape (B, D, *) with D >= 1 and at least one spatial "
            f"axis, got {embeddings.dtype} of shape {tuple(embeddings.shape)}."
        )


def check_prototypes(prototypes: Tensor, channels: int) -> None:
    """Require a floating (C, D) tensor with D = ``channels``.

    Raises:
        ValueError: naming what was received and expected.
    """
    if prototypes.ndim != 2 or prototypes.shape[1] != channels or not prototypes.is_floating_point():
        raise ValueError(
            f"prototypes must be a floating tensor of shape (C, D) with D = {channels}, "
            f"got {prototypes.dtype} of shape {tuple(prototypes.shape)}."
        )


def check_labels(name: str, labels: Tensor, expected: tuple[int, ...]) -> None:
    """Require integer labels of shape (B, *), without a channel axis.

    Raises:
        ValueError: naming the argument, what it was and what was expected.
    """
    if labels.dtype not in _LABEL_DTYPES or tuple(labels.shape) != expected:
        raise ValueError(
            f"{name} must be an integer tensor of shape (B, *) = {expected}, "
            f"got {labels.dtype} of shape {tuple(labels.shape)}."
        )


def check_mask(name: str, mask: Tensor, expected: tuple[int, ...]) -> None:
    """Require a bool tensor of shape ``expected``.

    Raises:
        ValueError: naming the argument, what it was and what was expected.
    """
    if mask.dtype != torch.bool or tuple(mask.shape) != expected:
        raise ValueError(
            f"{name} must be a torch.bool tensor of shape {expected}, got {mask.dtype} of shape {tuple(mask.shape)}."
        )


def check_unit_interval(name: str, value: float) -> None:
    """Require a number in [0, 1].

    Raises:
        ValueError: naming the argument and its value.
    """
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"{name} must lie between 0 and 1, got {value}.")


def voxel_shape(maps: Tensor) -> tuple[int, ...]:
    """(B, *) of a (B, C, *) tensor."""
    return (maps.shape[0], *maps.shape[2:])
