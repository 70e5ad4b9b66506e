from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from nnunet_dualcl.training.pseudo_labels import PseudoLabels, pseudo_labels_of

SHAPE = (2, 4, 5, 6, 7)  # (B, C, *)
WHOLE = {"unreliable_fraction": 0.2, "per_class": False}


def draw(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Logits whose background, class 0, is surer than the rest."""
    logits = 2 * torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    logits[:, 0, :, :3] += 4
    return logits.to(dtype)


def entropy_of(logits: torch.Tensor) -> np.ndarray:
    scores = logits.double().numpy()
    scores = np.exp(scores - scores.max(1, keepdims=True))
    probs = scores / scores.sum(1, keepdims=True)
    entropy: np.ndarray = -(probs * np.log(probs)).sum(1) / np.log(SHAPE[1])
    return entropy


def surest(entropy: np.ndarray, members: np.ndarray, fraction: float) -> np.ndarray:
    """All members but the floor(fraction n) of highest entropy."""
    ranked = np.sort(entropy[members])
    return members & (entropy <= ranked[len(ranked) - 1 - math.floor(fraction * len(ranked) + 1e-9)])


@pytest.mark.parametrize("fraction", [0.05, 0.2, 0.5])
@pytest.mark.parametrize("per_class", [False, True])
def test_labels_are_the_argmax_and_reliability_a_quantile(fraction: float, per_class: bool) -> None:
    logits = draw()
    labels, reliable = pseudo_labels_of(logits, unreliable_fraction=fraction, per_class=per_class)
    classes, entropy = logits.numpy().argmax(1), entropy_of(logits)
    groups = [classes == k for k in range(SHAPE[1])] if per_class else [np.ones_like(classes, bool)]
    expected = np.any([surest(entropy, members, fraction) for members in groups], axis=0)
    assert labels.dtype == torch.int64
    assert reliable.dtype == torch.bool
    assert np.array_equal(labels.numpy(), classes)
    assert np.array_equal(reliable.numpy(), expected)
    shares = [expected[classes == k].mean() for k in range(SHAPE[1])]
    if per_class:
        assert shares == pytest.approx([1 - fraction] * SHAPE[1], abs=0.03)
    else:
        assert shares[0] > max(shares[1:])  # one quantile for all prefers the background


@pytest.mark.parametrize("per_class", [False, True])
def test_fraction_zero_calls_everything_reliable(per_class: bool) -> None:
    assert pseudo_labels_of(draw(), unreliable_fraction=0.0, per_class=per_class).reliable.all()


def test_closed_form() -> None:
    # probabilities of class 1: 1/2 (a tie takes the first class), 3/4, 1/10
    logits = torch.tensor([[0.0, 0.0, math.log(9.0)], [0.0, math.log(3.0), 0.0]]).unsqueeze(0)
    labels, reliable = pseudo_labels_of(logits, unreliable_fraction=0.34, per_class=False)
    assert labels.tolist() == [[0, 1, 0]]
    assert reliable.tolist() == [[False, True, True]]
    # one quantile a class: the tie is the less sure of the two voxels of class 0, class 1 has one voxel only
    labels, reliable = pseudo_labels_of(logits, unreliable_fraction=0.5, per_class=True)
    assert reliable.tolist() == [[False, True, True]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("per_class", [False, True])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype, per_class: bool) -> None:
    scores = torch.linspace(0.01, 0.05, 200).to(dtype)  # probabilities so close to 1/2 that rounding makes ties
    rounded = torch.stack([scores, torch.zeros_like(scores)]).unsqueeze(0)
    found = pseudo_labels_of(rounded, unreliable_fraction=0.2, per_class=per_class)
    expected = pseudo_labels_of(rounded.float(), unreliable_fraction=0.2, per_class=per_class)
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


@pytest.mark.parametrize("fraction", [0.0, 0.2])
@pytest.mark.parametrize("per_class", [False, True])
def test_nan_is_never_reliable(fraction: float, per_class: bool) -> None:
    logits = draw()
    logits[0, 2, 1, 2] = math.nan
    reliable = pseudo_labels_of(logits, unreliable_fraction=fraction, per_class=per_class).reliable
    assert not reliable[0, 1, 2].any()
    assert reliable.any()
    everywhere = torch.full(SHAPE, math.nan)
    assert not pseudo_labels_of(everywhere, unreliable_fraction=fraction, per_class=per_class).reliable.any()


@pytest.mark.parametrize("fraction", [0.0, 0.2])
@pytest.mark.parametrize("per_class", [False, True])
def test_groups_have_quantiles_of_their_own(fraction: float, per_class: bool) -> None:
    options: dict[str, Any] = {"unreliable_fraction": fraction, "per_class": per_class}
    parts = [draw(), 3 * draw().flip(0), 0.2 * draw().flip(1)]
    parts[1][0, 2, 1, 2] = math.nan
    found = pseudo_labels_of(torch.cat(parts), groups=3, **options)
    expected = [pseudo_labels_of(part, **options) for part in parts]
    for together, alone in zip(found, zip(*expected, strict=True), strict=True):
        assert torch.equal(together, torch.cat(alone))
    if fraction > 0:
        assert not torch.equal(found.reliable, pseudo_labels_of(torch.cat(parts), **options).reliable)


def test_no_gradient_and_logits_left_as_they_are() -> None:
    logits = draw().requires_grad_()
    found = pseudo_labels_of(logits, **WHOLE)  # type: ignore[arg-type]
    assert isinstance(found, PseudoLabels)
    assert not any(part.requires_grad for part in found)
    assert torch.equal(logits, draw())
