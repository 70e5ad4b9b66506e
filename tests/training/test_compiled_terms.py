"""torch.compile takes each term as one piece, and what it makes of it gives the same numbers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch.nn.functional import normalize

from nnunet_dualcl.losses import (
    assertion_disagreement,
    class_label_loss,
    class_prototypes,
    mutual_verification_loss,
    reliability_contrastive_loss,
    reliable_mask,
)
from nnunet_dualcl.training.pseudo_labels import pseudo_labels_of

CLASSES, SHAPE, VOXELS = 6, (5, 6, 7), 300  # many classes: their volumes are computed again in the backward pass


def inputs() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)

    def labels(*shape: int) -> torch.Tensor:
        return torch.randint(-1, CLASSES, shape, generator=generator)

    return {
        "a": torch.randn(2, CLASSES, *SHAPE, generator=generator).mul(2).requires_grad_(),
        "b": torch.randn(2, CLASSES, *SHAPE, generator=generator).mul(2).requires_grad_(),
        "truth": labels(2, *SHAPE),
        "mask": torch.rand(2, *SHAPE, generator=generator) > 0.5,
        "embeddings": torch.randn(2, 4, VOXELS, generator=generator).requires_grad_(),
        "labels": labels(2, VOXELS),
        "unreliable": torch.rand(2, VOXELS, generator=generator) > 0.5,
        "prototypes": normalize(torch.randn(CLASSES, 4, generator=generator), dim=1),
        "present": torch.arange(CLASSES) != 2,
    }


Term = Callable[..., Any]
TERMS: dict[str, tuple[Term, tuple[str, ...]]] = {
    "verification": (partial(mutual_verification_loss, confidence=0.6), ("a", "b")),
    "verification_of_truth": (
        lambda a, b, truth: mutual_verification_loss(a, b, confidence=0.6, target=truth),
        ("a", "b", "truth"),
    ),
    "disagreement": (partial(assertion_disagreement, confidence=0.6), ("a", "b")),
    "pseudo_label": (class_label_loss, ("a", "truth", "mask")),
    "contrastive": (
        partial(reliability_contrastive_loss, temperature=0.1),
        ("embeddings", "labels", "unreliable", "prototypes", "present"),
    ),
    "prototypes": (partial(class_prototypes, num_classes=CLASSES), ("embeddings", "labels", "unreliable")),
}


@pytest.mark.parametrize("name", TERMS)
def test_a_term_is_one_graph_with_the_same_values_and_gradients(name: str) -> None:
    term, names = TERMS[name]
    torch._dynamo.reset()
    results = []
    for function in (term, torch.compile(term, backend="aot_eager", fullgraph=True, dynamic=False)):
        tensors = inputs()
        found = function(*(tensors[each] for each in names))
        found = found if isinstance(found, tuple) else (found,)
        if found[0].requires_grad:
            found[0].backward()
        gradients = [tensors[each].grad for each in names if tensors[each].requires_grad]
        results.append([*found, *(gradient for gradient in gradients if gradient is not None)])
    eager, compiled = results
    assert len(eager) == len(compiled)
    for expected, value in zip(eager, compiled, strict=True):
        torch.testing.assert_close(value, expected)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("per_class", [True, False])
def test_pseudo_labels_are_one_graph_whatever_the_fraction(per_class: bool, groups: int) -> None:
    torch._dynamo.reset()
    graphs = []

    def capture(graph: torch.nn.Module, _: list[torch.Tensor]) -> Any:
        graphs.append(graph)
        return graph

    compiled = torch.compile(pseudo_labels_of, backend=capture, fullgraph=True, dynamic=False)
    logits = inputs()["a"].detach()
    for fraction in (0.2, 0.17, 0.0, 1.0):
        options: dict[str, Any] = {"per_class": per_class, "groups": groups}
        expected = pseudo_labels_of(logits, unreliable_fraction=fraction, **options)
        found = compiled(logits, unreliable_fraction=torch.tensor(fraction), **options)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True)), fraction
    assert len(graphs) == 1


@pytest.mark.parametrize("fraction", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("labels", [None, torch.arange(100).reshape(2, 50) % 3])
def test_a_fraction_may_be_a_tensor(fraction: float, labels: torch.Tensor | None) -> None:
    """Also where the quantile is that of a sample, which may miss the voxel of most entropy."""
    entropy = torch.rand(2, 50, generator=torch.Generator().manual_seed(0))
    entropy[1, 47] = 2.0
    options = {"labels": labels, "num_classes": None if labels is None else 4, "max_samples": 20}
    expected = reliable_mask(entropy, unreliable_fraction=fraction, **options)
    found = reliable_mask(entropy, unreliable_fraction=torch.tensor(fraction), **options)
    assert torch.equal(found, expected)
    assert expected.all() == (fraction == 0)
