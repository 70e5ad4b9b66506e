import math

import numpy as np
import pytest
import torch

from nnunet_dualcl.losses import class_label_loss, pseudo_label_loss


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


# ---- labels that are there already


def labeled_case(*shape: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, ...]:
    """Logits, labels from -1 to C (both no class) and a mask."""
    student, _, reliable = random_case(*shape, dtype=dtype)
    labels = torch.randint(-1, shape[1] + 1, reliable.shape, generator=torch.Generator().manual_seed(1))
    return student, labels, reliable


def test_class_labels_closed_form():
    student = torch.tensor([[0.0, math.log(3.0), 7.0, 5.0], [0.0, 0.0, -7.0, 5.0]]).unsqueeze(0)
    labels = torch.tensor([[1, 1, 1, 2]])
    reliable = torch.tensor([[True, True, False, True]])
    # -log 1/2 and -log 1/4; the third voxel is not reliable, the label of the fourth no class
    expected = (0.69314718 + 1.38629436) / 2
    assert class_label_loss(student, labels, reliable).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("shape", [(2, 3, 5, 6), (2, 4, 5, 6, 7)])
def test_class_labels_equal_loop(shape):
    student, labels, reliable = labeled_case(*shape)
    z, y, r = student.double().numpy(), labels.numpy(), reliable.numpy()
    errors = []
    for voxel in np.ndindex(*r.shape):
        if r[voxel] and 0 <= y[voxel] < shape[1]:
            scores = z[(voxel[0], slice(None), *voxel[1:])]
            errors.append(np.log(np.exp(scores).sum()) - scores[y[voxel]])
    assert 0 < len(errors) < r.sum()
    assert class_label_loss(student, labels, reliable).item() == pytest.approx(np.mean(errors), rel=1e-5)


def test_class_labels_of_the_teachers_argmax_are_its_pseudo_labels():
    student, teacher, reliable = random_case(2, 3, 5, 6)
    expected = pseudo_label_loss(student, teacher, reliable)
    assert torch.equal(class_label_loss(student, teacher.argmax(dim=1), reliable), expected)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32])
def test_class_labels_of_any_integer_dtype(dtype):
    student, labels, reliable = labeled_case(2, 3, 5, 6)
    assert torch.equal(
        class_label_loss(student, labels.to(dtype), reliable), class_label_loss(student, labels, reliable)
    )


@pytest.mark.parametrize("stranger", [-1, 3, 255])
def test_labels_outside_the_classes_do_not_count(stranger):
    student, labels, reliable = labeled_case(2, 3, 5, 6)
    named = (labels >= 0) & (labels < 3)
    expected = class_label_loss(student, labels, reliable & named)
    strange = torch.where(named, labels, stranger)
    spoiled = torch.where(named.unsqueeze(1), student, math.nan)  # nor do their logits
    assert torch.equal(class_label_loss(spoiled, strange, reliable), expected)
    class_label_loss(student.requires_grad_(), strange, reliable).backward()
    assert torch.equal((student.grad != 0).all(dim=1), reliable & named)


@pytest.mark.parametrize("empty", ["mask", "labels"])
def test_class_labels_without_a_voxel_that_counts_give_zero(empty):
    student, labels, reliable = labeled_case(2, 3, 5, 6)
    student.requires_grad_()
    if empty == "mask":
        reliable = torch.zeros_like(reliable)
    else:
        labels = torch.full_like(labels, 3)
    loss = class_label_loss(student, labels, reliable)
    loss.backward()
    assert loss.item() == 0.0
    assert torch.equal(student.grad, torch.zeros_like(student))


def test_class_labels_gradcheck():
    student, labels, reliable = labeled_case(2, 3, 2, 3, dtype=torch.float64)
    torch.autograd.gradcheck(lambda z: class_label_loss(z, labels, reliable), student.requires_grad_())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_class_labels_of_half_precision_logits(dtype):
    student, labels, reliable = labeled_case(2, 3, 5, 6)
    rounded = student.to(dtype).requires_grad_()
    loss = class_label_loss(rounded, labels, reliable)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, class_label_loss(rounded.detach().float(), labels, reliable))
    loss.backward()
    assert rounded.grad.dtype == dtype
    assert rounded.grad.isfinite().all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"student_logits": torch.zeros(2, 3)}, r"student_logits must be a floating .* shape \(B, C, \*\)"),
        (
            {"student_logits": torch.zeros(2, 1, 5)},
            r"student_logits must hold at least two classes on axis 1, got shape \(2, 1, 5\)",
        ),
        (
            {"labels": torch.zeros(2, 1, 5, dtype=torch.long)},
            r"labels must be an integer tensor of shape \(B, \*\) = \(2, 5\), got torch\.int64 of shape \(2, 1, 5\)",
        ),
        ({"labels": torch.zeros(2, 5)}, r"labels must be an integer tensor.*got torch\.float32 of shape \(2, 5\)"),
        (
            {"reliable": torch.ones(1, 5, dtype=torch.bool)},
            r"reliable must be a torch\.bool tensor of shape \(2, 5\), got torch\.bool of shape \(1, 5\)",
        ),
        ({"reliable": torch.ones(2, 5)}, r"reliable must be a torch\.bool tensor.*got torch\.float32"),
    ],
)
def test_class_labels_wrong_input_is_refused(arguments, message):
    valid = {
        "student_logits": torch.zeros(2, 3, 5),
        "labels": torch.zeros(2, 5, dtype=torch.long),
        "reliable": torch.ones(2, 5, dtype=torch.bool),
    }
    with pytest.raises(ValueError, match=message):
        class_label_loss(**{**valid, **arguments})
