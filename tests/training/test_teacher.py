from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

from nnunet_dualcl.networks import DualDecoderUNet, DualOutput
from nnunet_dualcl.training.teacher import MovingAverageTeacher


@pytest.fixture
def student(architecture: Any) -> DualDecoderUNet:
    torch.manual_seed(3)
    plan = architecture(3)
    unet = get_network_from_plans(
        plan["network_class_name"], plan["arch_kwargs"], plan["_kw_requires_import"], 2, 3, deep_supervision=True
    )
    return DualDecoderUNet(unet).train()


def patch() -> torch.Tensor:
    return torch.randn(2, 2, 6, 12, 16, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def fill(network: DualDecoderUNet, value: float) -> None:
    for parameter in network.parameters():
        parameter.fill_(value)


def values(teacher: MovingAverageTeacher) -> list[float]:
    """The one value of all weights."""
    weights = torch.cat([parameter.flatten() for parameter in teacher.network.parameters()])
    torch.testing.assert_close(weights, weights[:1].expand_as(weights))
    return [float(weights[0])]


def test_moving_average_in_closed_form(student: DualDecoderUNet) -> None:
    teacher = MovingAverageTeacher(student, decay=0.9)
    found = []
    for step in range(13):
        fill(student, step**2)
        teacher.update(student, step)
        found += values(teacher)
    # the plain mean of all students while 1 - 1 / (step + 1) < 0.9, that is up to step 9
    expected = [sum(t**2 for t in range(step + 1)) / (step + 1) for step in range(10)]
    for step in range(10, 13):
        expected.append(0.9 * expected[-1] + 0.1 * step**2)
    assert found == pytest.approx(expected, rel=1e-5)


def test_without_decay_the_teacher_is_the_student(student: DualDecoderUNet) -> None:
    teacher = MovingAverageTeacher(student, decay=0.0)
    for step in range(3):
        with torch.no_grad():
            for parameter in student.parameters():
                parameter.add_(torch.randn_like(parameter))
        teacher.update(student, step)
        pairs = zip(teacher.network.parameters(), student.parameters(), strict=True)
        assert all(torch.equal(ours, theirs) for ours, theirs in pairs)


def test_equals_a_loop_over_real_weights(student: DualDecoderUNet) -> None:
    teacher = MovingAverageTeacher(student, decay=0.6)
    expected = [parameter.detach().double() for parameter in teacher.network.parameters()]
    for step in range(5):
        with torch.no_grad():
            for parameter in student.parameters():
                parameter.add_(torch.randn_like(parameter))
        teacher.update(student, step)
        kept = min(0.6, 1 - 1 / (step + 1))
        expected = [
            kept * old + (1 - kept) * new.detach().double()
            for old, new in zip(expected, student.parameters(), strict=True)
        ]
    for parameter, wanted in zip(teacher.network.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.double(), wanted, rtol=1e-5, atol=1e-6)


def test_the_first_step_copies_the_student(student: DualDecoderUNet) -> None:
    teacher = MovingAverageTeacher(student, decay=0.99)
    fill(teacher.network, 7.0)
    teacher.update(student, 0)
    for ours, theirs in zip(teacher.network.parameters(), student.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(("decay", "expected"), [(0.0, 3.0), (1.0, 1.5)])
def test_extreme_decays(student: DualDecoderUNet, decay: float, expected: float) -> None:
    teacher = MovingAverageTeacher(student, decay)
    for step, value in enumerate((0.0, 1.0, 2.0, 3.0)):
        fill(student, value)
        teacher.update(student, step)
    assert values(teacher) == pytest.approx([expected])  # the last student, or the mean of all


def test_logits_are_the_mean_of_both_decoders_without_gradient(student: DualDecoderUNet) -> None:
    student.prediction = "a"  # what validation uses is no matter of the teacher's
    teacher = MovingAverageTeacher(student, decay=0.9)
    logits = teacher.logits(patch().requires_grad_())
    output = student(patch())
    assert isinstance(output, DualOutput)
    assert isinstance(output.logits_a, list)
    torch.testing.assert_close(logits, (output.logits_a[0] + output.logits_b[0]) / 2)
    assert not logits.requires_grad
    assert not any(parameter.requires_grad for parameter in teacher.network.parameters())


def test_deep_supervision_is_off_in_the_teacher_alone(student: DualDecoderUNet) -> None:
    teacher = MovingAverageTeacher(student, decay=0.9)
    assert teacher.logits(patch()).shape == (2, 3, 6, 12, 16)
    assert [len(branch) for branch in student(patch())[:2]] == [2, 2]
    student.set_deep_supervision(False)
    student.set_deep_supervision(True)  # nnU-Net turns it off and on around validation
    assert teacher.logits(patch()).shape == (2, 3, 6, 12, 16)


def test_the_student_is_left_as_it_is(student: DualDecoderUNet) -> None:
    before = copy.deepcopy(student.state_dict())
    teacher = MovingAverageTeacher(student, decay=0.9)
    with torch.no_grad():
        for parameter in teacher.network.parameters():
            parameter.add_(1.0)
    teacher.update(student, 5)
    teacher.logits(patch())
    assert student.training
    assert student.prediction == "mean"
    assert all(parameter.requires_grad for parameter in student.parameters())
    assert all(parameter.grad is None for parameter in student.parameters())
    for name, value in student.state_dict().items():
        assert torch.equal(value, before[name]) if torch.is_tensor(value) else value == before[name], name


def test_one_decoder(student: DualDecoderUNet) -> None:
    student.second_decoder = False
    student.prediction = "a"
    student.decoder_b.requires_grad_(False)
    teacher = MovingAverageTeacher(student, decay=0.9)
    torch.testing.assert_close(teacher.logits(patch()), student(patch())[0])
    fill(student, 2.0)
    teacher.update(student, 0)
    assert values(teacher) == [2.0]


def test_buffers_are_the_students(architecture: Any) -> None:
    plan = architecture(3)
    plan["arch_kwargs"].update(norm_op="torch.nn.modules.batchnorm.BatchNorm3d", norm_op_kwargs={})
    unet = get_network_from_plans(
        plan["network_class_name"], plan["arch_kwargs"], plan["_kw_requires_import"], 2, 3, deep_supervision=True
    )
    student = DualDecoderUNet(unet).train()
    teacher = MovingAverageTeacher(student, decay=0.9)
    student(patch())
    teacher.update(student, 3)
    pairs = list(zip(teacher.network.buffers(), student.buffers(), strict=True))
    assert pairs
    assert all(torch.equal(ours, theirs) for ours, theirs in pairs)


def test_state_dict_round_trip(student: DualDecoderUNet) -> None:
    teacher = MovingAverageTeacher(student, decay=0.9)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(torch.randn_like(parameter))
    teacher.update(student, 4)
    expected = teacher.logits(patch())
    state = copy.deepcopy(teacher.state_dict())
    other = MovingAverageTeacher(student, decay=0.9)
    assert not torch.equal(other.logits(patch()), expected)
    other.load_state_dict(state)
    assert torch.equal(other.logits(patch()), expected)
    for ours, theirs in zip(other.network.parameters(), teacher.network.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    for each in (teacher, other):
        each.update(student, 5)
    assert torch.equal(other.logits(patch()), teacher.logits(patch()))
