import math

import numpy as np
import pytest
import torch

from nnunet_dualcl.losses import assertion_disagreement, mutual_verification_loss

T = 0.6


def random_logits(*shape: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits_a, logits_b = (2 * torch.randn(*shape, generator=generator, dtype=dtype) for _ in range(2))
    return logits_a, logits_b


def random_target(*shape: int, num_classes: int) -> torch.Tensor:
    """Labels with some voxels on either side of the valid range."""
    return torch.randint(-1, num_classes + 1, shape, generator=torch.Generator().manual_seed(1))


def logits_of(*probs: list[float]) -> torch.Tensor:
    """(1, C, N) logits of N voxels, each given by its probabilities."""
    return torch.tensor(probs).log().T.unsqueeze(0)


def loop_loss(logits_a, logits_b, target=None):
    """Loss and set M, one voxel at a time."""
    p_a, p_b = (logits.double().softmax(dim=1).movedim(1, -1).numpy() for logits in (logits_a, logits_b))
    num_classes = p_a.shape[-1]
    disagree, errors = np.zeros(p_a.shape[:-1], dtype=bool), []
    for voxel in np.ndindex(*disagree.shape):
        asserted = []
        for p in (p_a[voxel], p_b[voxel]):
            k = int(np.argmax(p))
            asserted.append(k if p[k] >= T else None)
        disagree[voxel] = asserted[0] != asserted[1]
        if not disagree[voxel]:
            continue
        if target is None:
            errors.append(sum((p_a[voxel][k] - p_b[voxel][k]) ** 2 for k in range(num_classes)))
        elif 0 <= target[voxel] < num_classes:
            onehot = np.array([float(k == target[voxel]) for k in range(num_classes)])
            error_a, error_b = (sum((p[voxel] - onehot) ** 2) for p in (p_a, p_b))
            errors.append(0.5 * (error_a + error_b))
    return np.mean(errors), disagree


@pytest.mark.parametrize(
    ("probs_a", "probs_b", "expected"),
    [
        ([0.7, 0.3], [0.3, 0.7], True),  # different classes
        ([0.7, 0.3], [0.9, 0.1], False),  # the same class
        ([0.7, 0.3], [0.55, 0.45], True),  # B abstains
        ([0.55, 0.45], [0.7, 0.3], True),  # A abstains
        ([0.45, 0.55], [0.55, 0.45], False),  # both abstain, whatever they lean to
    ],
)
def test_disagreement_table(probs_a, probs_b, expected):
    disagree = assertion_disagreement(logits_of(probs_a), logits_of(probs_b), confidence=T)
    assert disagree.tolist() == [[expected]]


def test_reaching_the_confidence_exactly_is_an_assertion():
    sure, split = torch.zeros(1, 2, 1), torch.zeros(1, 2, 1)
    sure[0, 0] = 200.0  # probability exactly 1
    assert assertion_disagreement(sure, split, confidence=1.0).all()
    assert not assertion_disagreement(split, split.flip(1), confidence=0.5).any()


def test_closed_form_labeled():
    logits_a = logits_of([0.7, 0.2, 0.1], [0.8, 0.1, 0.1], [0.1, 0.8, 0.1])
    logits_b = logits_of([0.2, 0.7, 0.1], [0.5, 0.4, 0.1], [0.1, 0.8, 0.1])
    target = torch.tensor([[0, 1, 0]])  # both are wrong at the third voxel, but agree
    first = 0.5 * (0.09 + 0.04 + 0.01) + 0.5 * (0.64 + 0.49 + 0.01)
    second = 0.5 * (0.64 + 0.81 + 0.01) + 0.5 * (0.25 + 0.36 + 0.01)
    loss = mutual_verification_loss(logits_a, logits_b, confidence=T, target=target)
    assert loss.item() == pytest.approx((first + second) / 2, rel=1e-5)


def test_closed_form_unlabeled():
    logits_a = logits_of([0.7, 0.2, 0.1], [0.5, 0.4, 0.1], [0.9, 0.1, 0.0001])
    logits_b = logits_of([0.1, 0.8, 0.1], [0.8, 0.1, 0.1], [0.7, 0.2, 0.1])
    expected = ((0.36 + 0.36 + 0.0) + (0.09 + 0.09 + 0.0)) / 2  # the third voxel is agreed on
    loss = mutual_verification_loss(logits_a, logits_b, confidence=T)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("shape", [(2, 3, 5, 6), (2, 4, 5, 6, 7)])
@pytest.mark.parametrize("labeled", [True, False])
def test_equals_loop(shape, labeled):
    logits_a, logits_b = random_logits(*shape)
    target = random_target(shape[0], *shape[2:], num_classes=shape[1]) if labeled else None
    expected, disagree = loop_loss(logits_a, logits_b, target)
    np.testing.assert_array_equal(assertion_disagreement(logits_a, logits_b, confidence=T).numpy(), disagree)
    loss = mutual_verification_loss(logits_a, logits_b, confidence=T, target=target)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_the_decoders_may_be_swapped():
    logits_a, logits_b = random_logits(2, 3, 5, 6)
    target = random_target(2, 5, 6, num_classes=3)
    for extra in ({}, {"target": target}):
        there = mutual_verification_loss(logits_a, logits_b, confidence=T, **extra)
        back = mutual_verification_loss(logits_b, logits_a, confidence=T, **extra)
        torch.testing.assert_close(there, back)


def test_reads_logits_not_probabilities():
    logits_a, logits_b = random_logits(2, 3, 5, 6, dtype=torch.float64)
    shift = torch.arange(30.0).view(1, 1, 5, 6)
    expected = mutual_verification_loss(logits_a, logits_b, confidence=T)
    loss = mutual_verification_loss(logits_a + shift, logits_b - shift, confidence=T)
    torch.testing.assert_close(loss, expected)


def test_truth_outside_the_classes_is_left_out():
    logits_a, logits_b = random_logits(1, 3, 40)
    target = torch.randint(3, (1, 40), generator=torch.Generator().manual_seed(1))
    left_a, left_b, left_target = logits_a[..., :20], logits_b[..., :20], target[..., :20]
    left = mutual_verification_loss(left_a, left_b, confidence=T, target=left_target)
    for ignore in (-1, 3, 127):
        ignored = target.to(torch.int8).clone()
        ignored[..., 20:] = ignore
        whole = mutual_verification_loss(logits_a, logits_b, confidence=T, target=ignored)
        torch.testing.assert_close(whole, left)


def gradients(logits_a, logits_b, **extra):
    logits_a, logits_b = logits_a.clone().requires_grad_(), logits_b.clone().requires_grad_()
    mutual_verification_loss(logits_a, logits_b, confidence=T, **extra).backward()
    return [(logits.grad != 0).any(dim=1) for logits in (logits_a, logits_b)]


def test_unlabeled_gradient_reaches_the_less_confident_decoder_in_m_only():
    logits_a, logits_b = random_logits(2, 3, 5, 6)
    disagree = assertion_disagreement(logits_a, logits_b, confidence=T)
    a_teaches = logits_a.softmax(1).amax(1) >= logits_b.softmax(1).amax(1)
    touched_a, touched_b = gradients(logits_a, logits_b)
    assert torch.equal(touched_a, disagree & ~a_teaches)
    assert torch.equal(touched_b, disagree & a_teaches)
    assert touched_a.any()
    assert touched_b.any()


def test_decoder_a_teaches_on_a_tie():
    logits_a = logits_of([0.7, 0.2, 0.1])
    touched_a, touched_b = gradients(logits_a, logits_a.flip(1))
    assert not touched_a.any()
    assert touched_b.all()


def test_labeled_gradient_reaches_both_decoders_in_m_only():
    logits_a, logits_b = random_logits(2, 3, 5, 6)
    target = random_target(2, 5, 6, num_classes=3)
    expected = assertion_disagreement(logits_a, logits_b, confidence=T) & (target >= 0) & (target < 3)
    for touched in gradients(logits_a, logits_b, target=target):
        assert torch.equal(touched, expected)
    assert expected.any()


def test_a_step_brings_the_student_closer():
    logits_a, logits_b = random_logits(2, 3, 5, 6)
    logits_a.requires_grad_()
    logits_b.requires_grad_()
    mutual_verification_loss(logits_a, logits_b, confidence=T).backward()
    stepped_a, stepped_b = (logits.detach() - 0.5 * logits.grad for logits in (logits_a, logits_b))

    def gap(first, second):
        return (first.softmax(1) - second.softmax(1)).square().sum(1)

    disagree = assertion_disagreement(logits_a, logits_b, confidence=T)
    assert (gap(stepped_a, stepped_b) < gap(logits_a, logits_b))[disagree].all()


def test_gradcheck_labeled():
    logits_a, logits_b = random_logits(2, 3, 2, 3, dtype=torch.float64)
    target = random_target(2, 2, 3, num_classes=3)
    torch.autograd.gradcheck(
        lambda a, b: mutual_verification_loss(a, b, confidence=T, target=target),
        (logits_a.requires_grad_(), logits_b.requires_grad_()),
    )


@pytest.mark.parametrize("a_teaches", [True, False])
def test_gradcheck_unlabeled_student(a_teaches):
    # With one decoder surer everywhere the teacher is a constant, and finite differences see one function.
    student, teacher = random_logits(2, 3, 2, 3, dtype=torch.float64)
    student, teacher = 0.2 * student, 20 * teacher

    def loss(z):
        return mutual_verification_loss(*((teacher, z) if a_teaches else (z, teacher)), confidence=T)

    assert loss(student) > 0
    torch.autograd.gradcheck(loss, student.requires_grad_())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"logits_b": torch.zeros(2, 3, 1)}, r"logits_b must have the shape .*\(2, 3, 5\), got \(2, 3, 1\)"),
        ({"confidence": 60}, r"confidence must lie between 0 and 1, got 60"),
        ({"confidence": math.nan}, r"confidence must lie between 0 and 1, got nan"),
    ],
)
@pytest.mark.parametrize("function", [assertion_disagreement, mutual_verification_loss])
def test_wrong_input_is_refused(function, arguments, message):
    valid = {"logits_a": torch.zeros(2, 3, 5), "logits_b": torch.zeros(2, 3, 5), "confidence": T}
    with pytest.raises(ValueError, match=message):
        function(**{**valid, **arguments})


@pytest.mark.parametrize("target", [torch.zeros(2, 1, 5, dtype=torch.int64), torch.zeros(2, 5)])
def test_wrong_target_is_refused(target):
    with pytest.raises(ValueError, match=r"target must be an integer tensor .* = \(2, 5\), got torch"):
        mutual_verification_loss(torch.zeros(2, 3, 5), torch.zeros(2, 3, 5), confidence=T, target=target)
