import math

import numpy as np
import pytest
import torch

from nnunet_dualcl.losses import pseudo_label_loss


def random_case(*shape: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(*shape, generator=generator, dtype=dtype) for _ in range(2))
    reliable = torch.rand(shape[0], *shape[2:], generator=generator) < 0.6
    return student, teacher, reliable


def test_closed_form():
    student = torch.tensor([[0.0, math.log(3.0), 7.0], [0.0, 0.0, -7.0]]).unsqueeze(0)
    teacher = torch.tensor([[0.1, 0.0, 0.0], [0.2, 5.0, 5.0]]).unsqueeze(0)  # class 1 everywhere
    reliable = torch.tensor([[True, True, False]])
    # -log 1/2 and -log 1/4; the third voxel does not count
    expected = (0.69314718 + 1.38629436) / 2
    assert pseudo_label_loss(student, teacher, reliable).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("shape", [(2, 3, 5, 6), (2, 4, 5, 6, 7)])
def test_equals_loop(shape):
    student, teacher, reliable = random_case(*shape)
    z, t, r = student.double().numpy(), teacher.numpy(), reliable.numpy()
    errors = []
    for voxel in np.ndindex(*r.shape):
        if r[voxel]:
            scores = [z[(voxel[0], k, *voxel[1:])] for k in range(shape[1])]
            votes = [t[(voxel[0], k, *voxel[1:])] for k in range(shape[1])]
            winner = max(range(shape[1]), key=lambda k, votes=votes: votes[k])
            errors.append(math.log(sum(math.exp(score) for score in scores)) - scores[winner])
    assert pseudo_label_loss(student, teacher, reliable).item() == pytest.approx(np.mean(errors), rel=1e-5)


def test_reads_logits_not_probabilities():
    # A loss that takes the softmax twice cannot fall below log(1 + (C - 1) / e), however sure the student is.
    student, _, reliable = random_case(2, 3, 5, 6)
    loss = pseudo_label_loss(1000 * student, student, reliable)
    assert loss < 1e-3
    # Adding a constant to the logits of a voxel changes nothing.
    student, teacher, reliable = random_case(2, 3, 5, 6, dtype=torch.float64)
    shifted = student + torch.arange(30.0).view(1, 1, 5, 6)
    expected = pseudo_label_loss(student, teacher, reliable)
    torch.testing.assert_close(pseudo_label_loss(shifted, teacher, reliable), expected)


def test_only_the_argmax_of_the_teacher_matters():
    student, teacher, reliable = random_case(2, 4, 5, 6)
    expected = pseudo_label_loss(student, teacher, reliable)
    assert pseudo_label_loss(student, teacher.softmax(dim=1), reliable) == expected


def test_the_mean_is_over_reliable_voxels():
    student, teacher, reliable = random_case(1, 3, 7, 6)
    doubled = [torch.cat([values, values], dim=-1) for values in (student, teacher)]
    expected = pseudo_label_loss(student, teacher, reliable)
    padded = pseudo_label_loss(*doubled, torch.cat([reliable, torch.zeros_like(reliable)], dim=-1))
    torch.testing.assert_close(padded, expected)


def test_overflow_outside_the_reliable_voxels_stays_there():
    student, teacher, reliable = random_case(2, 3, 5, 6)
    expected = pseudo_label_loss(student, teacher, reliable)
    spoiled = torch.where(reliable.unsqueeze(1), student, math.nan)
    assert pseudo_label_loss(spoiled, teacher, reliable) == expected


def test_gradient_reaches_reliable_voxels_of_the_student_only():
    student, teacher, reliable = random_case(2, 3, 5, 6)
    student.requires_grad_()
    teacher.requires_grad_()
    pseudo_label_loss(student, teacher, reliable).backward()
    assert teacher.grad is None
    touched = (student.grad != 0).all(dim=1)
    assert torch.equal(touched, reliable)


def test_a_step_teaches_the_student_the_pseudo_label():
    student, teacher, reliable = random_case(2, 3, 5, 6)
    student.requires_grad_()
    pseudo_label_loss(student, teacher, reliable).backward()
    winner = teacher.argmax(dim=1, keepdim=True)
    before = student.softmax(dim=1).gather(1, winner).squeeze(1)
    after = (student - student.grad).softmax(dim=1).gather(1, winner).squeeze(1)
    assert (after > before)[reliable].all()


def test_gradcheck():
    student, teacher, reliable = random_case(2, 3, 2, 3, dtype=torch.float64)
    torch.autograd.gradcheck(lambda z: pseudo_label_loss(z, teacher, reliable), student.requires_grad_())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"teacher_logits": torch.zeros(1, 3, 5)},
            r"teacher_logits must have the shape of student_logits, \(2, 3, 5\), got \(1, 3, 5\)",
        ),
        ({"student_logits": torch.zeros(2, 3)}, r"student_logits must be a floating .* shape \(B, C, \*\)"),
        (
            {"student_logits": torch.zeros(2, 1, 5), "teacher_logits": torch.zeros(2, 1, 5)},
            r"student_logits must hold at least two classes on axis 1, got shape \(2, 1, 5\).*\(0, z\)",
        ),
        (
            {"reliable": torch.ones(2, 1, 5, dtype=torch.bool)},
            r"reliable must be a torch\.bool tensor of shape \(2, 5\), got torch\.bool of shape \(2, 1, 5\)",
        ),
        ({"reliable": torch.ones(2, 5)}, r"reliable must be a torch\.bool tensor.*got torch\.float32"),
    ],
)
def test_wrong_input_is_refused(arguments, message):
    valid = {
        "student_logits": torch.zeros(2, 3, 5),
        "teacher_logits": torch.zeros(2, 3, 5),
        "reliable": torch.ones(2, 5, dtype=torch.bool),
    }
    with pytest.raises(ValueError, match=message):
        pseudo_label_loss(**{**valid, **arguments})
