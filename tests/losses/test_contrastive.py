import math

import numpy as np
import pytest
import torch

from nnunet_dualcl.losses import reliability_contrastive_loss

TAU = 0.5


def random_case(*shape: int, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """Arguments with labels on either side of the valid range and class 1 absent."""
    num_classes = 4
    generator = torch.Generator().manual_seed(0)
    voxels = (shape[0], *shape[2:])
    prototypes = torch.randn(num_classes, shape[1], generator=generator, dtype=dtype)
    present = torch.arange(num_classes) != 1
    return {
        "embeddings": 3 * torch.randn(*shape, generator=generator, dtype=dtype),
        "labels": torch.randint(-1, num_classes + 1, voxels, generator=generator),
        "unreliable": torch.rand(voxels, generator=generator) < 0.5,
        "prototypes": torch.nn.functional.normalize(prototypes, dim=1) * present.unsqueeze(1),
        "present": present,
    }


def counted(case: dict[str, torch.Tensor]) -> torch.Tensor:
    labels, num_classes = case["labels"], len(case["present"])
    return case["unreliable"] & (labels >= 0) & (labels < num_classes) & (labels != 1)


def one_voxel(direction: list[float], label: int, prototypes: list[list[float]], tau: float = 1.0) -> float:
    """Loss of a single voxel, all classes present."""
    c = torch.tensor(prototypes)
    f = torch.tensor(direction).view(1, -1, 1)
    y, everything = torch.tensor([[label]]), torch.ones(1, 1, dtype=torch.bool)
    present = torch.ones(len(c), dtype=torch.bool)
    return reliability_contrastive_loss(f, y, everything, c, present, temperature=tau).item()


def test_closed_form():
    axes = [[1.0, 0.0], [0.0, 1.0]]
    assert one_voxel([5.0, 0.0], 0, axes) == pytest.approx(math.log1p(math.exp(-1.0)), rel=1e-6)
    assert one_voxel([5.0, 0.0], 1, axes) == pytest.approx(math.log1p(math.exp(1.0)), rel=1e-6)
    assert one_voxel([3.0, 4.0], 0, axes, tau=0.1) == pytest.approx(2.12692801, rel=1e-6)  # log(1 + e^2)
    assert one_voxel([2.0, 2.0], 1, axes) == pytest.approx(math.log(2.0), rel=1e-6)


@pytest.mark.parametrize("shape", [(2, 3, 5, 6), (2, 4, 5, 6, 7)])
def test_equals_loop(shape):
    case = random_case(*shape)
    f, c = case["embeddings"].double().movedim(1, -1).numpy(), case["prototypes"].double().numpy()
    errors = []
    for voxel in np.ndindex(*case["labels"].shape):
        y = int(case["labels"][voxel])
        if case["unreliable"][voxel] and y in (0, 2, 3):
            unit = f[voxel] / np.linalg.norm(f[voxel])
            scores = {k: math.exp(float(unit @ c[k]) / TAU) for k in (0, 2, 3)}
            errors.append(-math.log(scores[y] / sum(scores.values())))
    loss = reliability_contrastive_loss(**case, temperature=TAU)
    assert loss.item() == pytest.approx(np.mean(errors), rel=1e-5)


def test_moving_toward_the_own_prototype_lowers_the_loss():
    axes = [[1.0, 0.0], [0.0, 1.0]]
    losses = [one_voxel([math.cos(angle), math.sin(angle)], 0, axes) for angle in (1.5, 1.0, 0.5, 0.0)]
    assert losses == sorted(losses, reverse=True)
    assert losses[0] > losses[-1]


def test_moving_away_from_another_prototype_lowers_the_loss():
    # The cosine with the own prototype (third axis) stays put while that with the other (first axis) falls.
    prototypes = [[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]
    directions = [[cosine, math.sqrt(0.75 - cosine**2), 0.5] for cosine in (0.8, 0.4, 0.0, -0.8)]
    losses = [one_voxel(direction, 1, prototypes) for direction in directions]
    assert losses == sorted(losses, reverse=True)
    assert losses[0] > losses[-1]


def test_confident_logits_drive_the_loss_to_zero():
    # A softmax taken twice would keep it above log(1 + 1 / e).
    assert one_voxel([1.0, 0.0], 0, [[1.0, 0.0], [-1.0, 0.0]], tau=0.05) < 1e-6


def test_length_of_an_embedding_does_not_matter():
    case = random_case(2, 4, 5, 6)
    expected = reliability_contrastive_loss(**case, temperature=TAU)
    case["embeddings"] = case["embeddings"] * (1 + torch.arange(6.0))
    torch.testing.assert_close(reliability_contrastive_loss(**case, temperature=TAU), expected)


def test_order_of_classes_does_not_matter():
    case = random_case(2, 4, 5, 6)
    expected = reliability_contrastive_loss(**case, temperature=TAU)
    for name in ("prototypes", "present"):
        case[name] = case[name].flip(0)
    case["labels"] = 3 - case["labels"]
    torch.testing.assert_close(reliability_contrastive_loss(**case, temperature=TAU), expected)


def test_rows_of_absent_classes_are_not_read():
    case = random_case(2, 4, 5, 6)
    expected = reliability_contrastive_loss(**case, temperature=TAU)
    case["prototypes"][1] = math.nan
    case["embeddings"].requires_grad_()
    loss = reliability_contrastive_loss(**case, temperature=TAU)
    loss.backward()
    assert loss == expected
    assert case["embeddings"].grad.isfinite().all()


def test_gradient_reaches_counted_embeddings_only():
    case = random_case(2, 4, 5, 6)
    case["embeddings"].requires_grad_()
    case["prototypes"].requires_grad_()
    reliability_contrastive_loss(**case, temperature=TAU).backward()
    assert case["prototypes"].grad is None
    touched = (case["embeddings"].grad != 0).any(dim=1)
    assert torch.equal(touched, counted(case))
    assert touched.any()


def test_a_step_turns_the_embedding_to_its_prototype():
    f = torch.tensor([1.0, 0.2]).view(1, 2, 1).requires_grad_()
    c, everything = torch.eye(2), torch.ones(1, 1, dtype=torch.bool)
    present = torch.ones(2, dtype=torch.bool)
    reliability_contrastive_loss(f, torch.tensor([[1]]), everything, c, present, temperature=TAU).backward()
    stepped = (f - f.grad).flatten()
    assert stepped[1] / stepped.norm() > f[0, 1] / f.norm()
    assert stepped[0] / stepped.norm() < f[0, 0] / f.norm()


def test_gradcheck():
    case = random_case(2, 3, 3, 4, dtype=torch.float64)
    embeddings = case.pop("embeddings").requires_grad_()
    torch.autograd.gradcheck(lambda f: reliability_contrastive_loss(f, **case, temperature=TAU), embeddings)


def test_zero_embedding_is_undecided_and_gets_no_gradient():
    f = torch.zeros(1, 3, 2, requires_grad=True)
    everything, present = torch.ones(1, 2, dtype=torch.bool), torch.ones(3, dtype=torch.bool)
    y = torch.tensor([[0, 2]])
    loss = reliability_contrastive_loss(f, y, everything, torch.eye(3), present, temperature=TAU)
    loss.backward()
    assert loss.item() == pytest.approx(math.log(3), rel=1e-6)
    assert torch.equal(f.grad, torch.zeros_like(f))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"embeddings": torch.zeros(2, 4)}, r"embeddings must be .* shape \(B, D, \*\).*\(2, 4\)"),
        ({"labels": torch.zeros(2, 5)}, r"labels must be an integer tensor.* = \(2, 5\), got torch\.float32"),
        ({"unreliable": torch.ones(5, dtype=torch.bool)}, r"unreliable must be .* \(2, 5\), got .* \(5,\)"),
        ({"prototypes": torch.zeros(3, 5)}, r"prototypes must be .* with D = 4, got .* \(3, 5\)"),
        ({"present": torch.ones(4, dtype=torch.bool)}, r"present must be .* of shape \(3,\), got .* \(4,\)"),
        ({"temperature": 0.0}, r"temperature must be above 0, got 0\.0"),
        ({"temperature": math.nan}, r"temperature must be above 0, got nan"),
    ],
)
def test_wrong_input_is_refused(arguments, message):
    valid = {
        "embeddings": torch.zeros(2, 4, 5),
        "labels": torch.zeros(2, 5, dtype=torch.int64),
        "unreliable": torch.ones(2, 5, dtype=torch.bool),
        "prototypes": torch.zeros(3, 4),
        "present": torch.ones(3, dtype=torch.bool),
        "temperature": TAU,
    }
    with pytest.raises(ValueError, match=message):
        reliability_contrastive_loss(**{**valid, **arguments})
