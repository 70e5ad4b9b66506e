"""What every term promises: float32, finite, no waiting for the device, exactly 0 on an empty set."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from nnunet_dualcl import losses

NUM_CLASSES, CHANNELS, VOXELS = 3, 4, (2, 5, 6, 7)
EVERYTHING = torch.ones(VOXELS, dtype=torch.bool)
NOTHING = ~EVERYTHING


@dataclass(frozen=True)
class Data:
    """One lopsided batch; ``a`` and ``b`` are logits."""

    a: Tensor
    b: Tensor
    embeddings: Tensor
    prototypes: Tensor
    present: Tensor
    labels: Tensor
    mask: Tensor

    @classmethod
    def draw(cls, dtype: torch.dtype = torch.float32) -> "Data":
        """The same values, rounded to bfloat16, in any dtype, so that all dtypes describe one batch."""
        generator = torch.Generator().manual_seed(0)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator).bfloat16().to(dtype)

        batch, *axes = VOXELS
        return cls(
            a=2 * normal(batch, NUM_CLASSES, *axes),
            b=2 * normal(batch, NUM_CLASSES, *axes),
            embeddings=normal(batch, CHANNELS, *axes),
            prototypes=torch.nn.functional.normalize(torch.randn(NUM_CLASSES, CHANNELS, generator=generator)),
            present=torch.ones(NUM_CLASSES, dtype=torch.bool),
            labels=torch.randint(-1, NUM_CLASSES + 1, VOXELS, generator=generator),
            mask=torch.rand(VOXELS, generator=generator) < 0.5,
        )

    def change(self, function: Callable[[Tensor], Tensor]) -> "Data":
        return Data(**{name: function(value) for name, value in vars(self).items()})


def pseudo_label(data: Data) -> Tensor:
    return losses.pseudo_label_loss(data.a, data.b, data.mask)


def class_label(data: Data) -> Tensor:
    return losses.class_label_loss(data.a, data.labels, data.mask)


def verification_labeled(data: Data) -> Tensor:
    return losses.mutual_verification_loss(data.a, data.b, confidence=0.6, target=data.labels)


def verification_unlabeled(data: Data) -> Tensor:
    return losses.mutual_verification_loss(data.a, data.b, confidence=0.6)


def contrastive(data: Data) -> Tensor:
    return losses.reliability_contrastive_loss(
        data.embeddings, data.labels, data.mask, data.prototypes, data.present, temperature=0.1
    )


def entropy(data: Data) -> Tensor:
    return losses.normalized_entropy(data.a.softmax(dim=1)).mean()


def prototypes(data: Data) -> Tensor:
    return losses.class_prototypes(data.embeddings, data.labels, data.mask, NUM_CLASSES)[0]


def disagreement(data: Data) -> Tensor:
    return losses.assertion_disagreement(data.a, data.b, confidence=0.6)


def reliable(data: Data) -> Tensor:
    return losses.reliable_mask(data.a[:, 0], unreliable_fraction=0.2, max_samples=100)


def reliable_per_class(data: Data) -> Tensor:
    return losses.reliable_mask(
        data.a[:, 0], unreliable_fraction=0.2, labels=data.labels, num_classes=NUM_CLASSES, max_samples=100
    )


LOSSES = [pseudo_label, class_label, verification_labeled, verification_unlabeled, contrastive]
REAL = [*LOSSES, entropy, prototypes]
MASKS = [disagreement, reliable, reliable_per_class]


def trainable(data: Data) -> list[Tensor]:
    return [data.a.requires_grad_(), data.b.requires_grad_(), data.embeddings.requires_grad_()]


@pytest.mark.parametrize("term", LOSSES)
def test_loss_is_a_positive_scalar_that_trains_something(term):
    data = Data.draw()
    leaves = trainable(data)
    loss = term(data)
    loss.backward()
    assert loss.shape == ()
    assert loss > 0
    assert any(leaf.grad is not None and leaf.grad.abs().sum() > 0 for leaf in leaves)


@pytest.mark.parametrize("term", [*REAL, *MASKS])
def test_number_of_spatial_axes_does_not_matter(term):
    data = Data.draw()
    expected = term(data).flatten()
    for axes in ((210,), (7, 30), (5, 6, 7), (1, 5, 6, 7)):
        reshaped = data.change(lambda x, axes=axes: x.reshape(*x.shape[:-3], *axes) if x.ndim > 3 else x)
        torch.testing.assert_close(term(reshaped).flatten(), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("term", [*LOSSES, prototypes])
def test_half_precision_input_is_computed_in_float32(term, dtype):
    data = Data.draw(dtype)
    leaves = trainable(data)
    result = term(data)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, term(Data.draw()))
    if result.requires_grad:
        result.backward()
        assert all(leaf.grad.isfinite().all() for leaf in leaves if leaf.grad is not None)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_entropy_is_close(dtype):
    result = entropy(Data.draw(dtype))
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, entropy(Data.draw()), rtol=1e-2, atol=0)


@pytest.mark.parametrize("term", REAL)
def test_autocast_changes_nothing(term):
    data = Data.draw()
    expected = term(data)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = term(data)
    assert result.dtype == torch.float32
    assert torch.equal(result, expected)


@pytest.mark.parametrize("term", REAL)
def test_float64_stays_float64(term):
    assert term(Data.draw(torch.float64)).dtype == torch.float64


@pytest.mark.parametrize(
    ("term", "change"),
    [
        (pseudo_label, {"mask": NOTHING}),
        (class_label, {"mask": NOTHING}),
        (class_label, {"labels": torch.full(VOXELS, NUM_CLASSES)}),
        (verification_labeled, {"labels": torch.full(VOXELS, -1)}),
        (verification_labeled, {"a": torch.zeros(2, 3, 5, 6, 7), "b": torch.zeros(2, 3, 5, 6, 7)}),
        (verification_unlabeled, {"a": torch.zeros(2, 3, 5, 6, 7), "b": torch.zeros(2, 3, 5, 6, 7)}),
        (contrastive, {"mask": NOTHING}),
        (contrastive, {"labels": torch.full(VOXELS, NUM_CLASSES)}),
        (contrastive, {"labels": EVERYTHING.long(), "present": torch.tensor([True, False, True])}),
        (contrastive, {"present": torch.tensor([False, True, False])}),
        (contrastive, {"present": torch.zeros(NUM_CLASSES, dtype=torch.bool)}),
    ],
)
def test_empty_set_gives_exactly_zero_with_a_graph(term, change):
    data = Data(**{**vars(Data.draw()), **change})
    leaves = trainable(data)
    with torch.autograd.set_detect_anomaly(True):  # no NaN on the way back either, masked out or not
        loss = term(data)
        loss.backward()
    assert loss.item() == 0.0
    reached = [leaf.grad for leaf in leaves if leaf.grad is not None]
    assert reached
    assert all(torch.equal(gradient, torch.zeros_like(gradient)) for gradient in reached)


@pytest.mark.parametrize("term", LOSSES)
def test_no_voxels_at_all_give_zero(term):
    data = Data.draw().change(lambda x: x[..., :0] if x.ndim > 3 else x)
    assert term(data).item() == 0.0


@pytest.mark.parametrize("term", LOSSES)
def test_extreme_logits_stay_finite(term):
    data = Data.draw()
    leaves = [(1e4 * leaf).detach().requires_grad_() for leaf in (data.a, data.b, data.embeddings)]
    data = Data(**{**vars(data), **dict(zip(("a", "b", "embeddings"), leaves, strict=True))})
    loss = term(data)
    loss.backward()
    assert loss.isfinite()
    assert all(leaf.grad.isfinite().all() for leaf in leaves if leaf.grad is not None)


@pytest.mark.parametrize("term", [*REAL, *MASKS])
def test_nothing_waits_for_the_device(term):
    # Fake tensors have shapes but no values: reading one, or a shape that depends on values, raises.
    with FakeTensorMode():
        data = Data.draw()
        trainable(data)
        result = term(data)
        if result.requires_grad:
            result.sum().backward()


@pytest.mark.parametrize(
    "waits", [lambda x: x.item(), lambda x: bool(x > 0), lambda x: x[x > 0], lambda x: x.nonzero()]
)
def test_waiting_for_the_device_would_be_noticed(waits):
    with FakeTensorMode(), pytest.raises(RuntimeError):
        waits(torch.zeros(1))


@pytest.mark.parametrize("term", [*REAL, *MASKS])
def test_compiles_without_graph_breaks(term):
    data = Data.draw()
    torch._dynamo.reset()
    compiled = torch.compile(term, backend="eager", fullgraph=True)
    assert torch.equal(compiled(data), term(data))
