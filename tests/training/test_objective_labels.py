"""The objective with regions, an ignore label, absent and many classes, and with halves that come one by one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from nnunetv2.training.loss.compound_losses import DC_and_BCE_loss, DC_and_CE_loss
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks

from nnunet_dualcl.config import DualCLConfig
from nnunet_dualcl.losses import mutual_verification_loss
from nnunet_dualcl.networks import DualOutput
from nnunet_dualcl.training import SemiSupervisedLoss
from nnunet_dualcl.training.problems import Problems
from nnunet_dualcl.training.pseudo_labels import PseudoLabels
from nnunet_dualcl.training.sampling import draw_voxels

SHAPE, WIDTH = (4, 5, 6), 5
DICE = {"batch_dice": False, "smooth": 1e-5, "do_bg": False, "ddp": False}
FORMS = ("teacher", "winner", "cross")
KINDS = {
    "classes": Problems(3),
    "classes_ignore": Problems(3, has_ignore=True),
    "regions": Problems(3, regions=True),
    "regions_ignore": Problems(3, regions=True, has_ignore=True),
}
EVERYTHING = {
    "pseudo_label_weight": 0.7,
    "verification_weight": 0.3,
    "contrastive_weight": 0.2,
    "verification_on": "both",
    "pseudo_label_loss": "dice_ce",
    "unreliable_fraction_start": 0.4,
    "rampup_fraction": 0.0,
    "contrastive_samples": 1,
}


class WithoutDeepSupervision(torch.nn.Module):
    """nnU-Net's loss at full resolution."""

    def __init__(self, loss: torch.nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, output: list[torch.Tensor], target: list[torch.Tensor]) -> torch.Tensor:
        value: torch.Tensor = self.loss(output[0], target[0])
        return value


def nnunets_loss(problems: Problems) -> torch.nn.Module:
    if problems.regions:
        loss = DC_and_BCE_loss(
            {}, {**DICE, "do_bg": True}, use_ignore_label=problems.has_ignore, dice_class=MemoryEfficientSoftDiceLoss
        )
    else:
        ignore = problems.num_heads if problems.has_ignore else None
        loss = DC_and_CE_loss(DICE, {}, ignore_label=ignore, dice_class=MemoryEfficientSoftDiceLoss)
    return WithoutDeepSupervision(loss)


def target_of(problems: Problems, generator: torch.Generator, *, ignored: float = 0.5) -> torch.Tensor:
    """As nnU-Net's transforms make it, for two patches."""
    unknown = torch.rand(2, 1, *SHAPE, generator=generator) < ignored
    if problems.regions:
        inside = torch.rand(2, problems.num_heads, *SHAPE, generator=generator) < 0.4
        return torch.cat((inside, unknown), 1) if problems.has_ignore else inside
    labels = torch.randint(problems.num_heads, (2, 1, *SHAPE), generator=generator)
    return torch.where(unknown, problems.num_heads, labels) if problems.has_ignore else labels


class Case:
    """Outputs for 2 labeled and 3 unlabeled patches as leaves, their targets, and a teacher's labels."""

    def __init__(self, problems: Problems, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.target = target_of(problems, generator)
        self.leaves = [2 * torch.randn(5, problems.num_heads, *SHAPE, generator=generator) for _ in "ab"]
        self.leaves += [torch.randn(5, WIDTH, *SHAPE, generator=generator) for _ in "ab"]
        for leaf in self.leaves:
            leaf.requires_grad_()
        self.taught = [
            PseudoLabels(
                torch.randint(problems.num_classes, (patches, problems.count, *SHAPE), generator=generator),
                torch.rand(patches, problems.count, *SHAPE, generator=generator) < 0.7,
            )
            for patches in (2, 3)
        ]

    def output(self, part: slice = slice(None)) -> DualOutput:
        a, b, features_a, features_b = (leaf[part] for leaf in self.leaves)
        return DualOutput([a], [b], features_a, features_b)

    def gradients(self) -> list[torch.Tensor]:
        found = [leaf.grad.clone() if leaf.grad is not None else torch.zeros_like(leaf) for leaf in self.leaves]
        for leaf in self.leaves:
            leaf.grad = None
        return found


@pytest.fixture(autouse=True)
def every_voxel_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "nnunet_dualcl.training.objective.draw_voxels", lambda volume, _: torch.arange(volume[0, 0].numel())
    )


def objective(problems: Problems, case: Case, **values: Any) -> SemiSupervisedLoss:
    config = DualCLConfig.paper(**{**EVERYTHING, "pseudo_label_source": "teacher", **values})
    loss = SemiSupervisedLoss(nnunets_loss(problems), config, problems=problems, total_steps=10)
    if config.pseudo_label_source == "teacher":
        loss.taught_labeled, loss.taught = case.taught
    return loss


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_halves_one_by_one_are_the_joint_pass(kind: str, form: Any) -> None:
    problems = KINDS[kind]
    case = Case(problems)
    joint, single = (objective(problems, case, pseudo_label_source=form) for _ in range(2))
    for step in range(3):  # with the prototypes of the steps before
        joint.step = single.step = step
        total = joint(case.output(), [case.target])
        total.backward()
        expected = case.gradients()
        parts = []
        for part, target in ((slice(2), [case.target]), (slice(2, 5), [])):
            parts.append(single(case.output(part), target))
            parts[-1].backward()
        torch.testing.assert_close(sum(parts), total)
        for ours, theirs in zip(case.gradients(), expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-8)
        torch.testing.assert_close(single.last_values, joint.last_values, equal_nan=True)
        torch.testing.assert_close(single.prototypes, joint.prototypes)
    assert all(float(gradient.abs().max()) > 1e-6 for gradient in expected)
    assert joint.present.all()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["classes_ignore", "regions_ignore"])
def test_unknown_voxels_of_labeled_patches_are_taught_like_unlabeled_ones(kind: str, form: Any) -> None:
    problems = KINDS[kind]
    case = Case(problems)
    only = {"verification_weight": 0.0, "contrastive_weight": 0.0, "pseudo_label_loss": "ce"}
    loss = objective(problems, case, pseudo_label_source=form, unreliable_fraction_start=0.0, **only)
    loss(case.output(slice(2)), [case.target]).backward()
    with_labels = case.gradients()
    supervised = [loss.supervised([leaf[:2]], [case.target]) for leaf in case.leaves[:2]]
    torch.stack(supervised).sum().backward()
    taught = [ours[:2] - theirs[:2] for ours, theirs in zip(with_labels, case.gradients(), strict=True)]
    unknown = problems.truth(case.target) < 0
    where = unknown if problems.regions else unknown.expand(-1, problems.num_heads, -1, -1, -1)
    moved = [gradient.abs() > 1e-7 for gradient in taught[:2]]
    assert not any((part & ~where).any() for part in moved)
    students = moved if form != "winner" else [moved[int(supervised[0] <= supervised[1])]]
    counts = loss.taught_labeled.reliable.expand_as(where) & where if form == "teacher" else where
    for part in students:
        assert part[counts].float().mean() > 0.95
        assert not (part & ~counts).any()


def test_background_is_not_taught_where_nobody_annotated() -> None:
    """A patch that is unknown all over, and a teacher that calls it foreground: nothing pulls to background."""
    problems = KINDS["classes_ignore"]
    case = Case(problems)
    case.target.fill_(problems.num_heads)
    case.taught[0].labels.fill_(2)
    case.taught[0].reliable.fill_(True)
    loss = objective(problems, case, verification_weight=0.0, contrastive_weight=0.0)
    loss(case.output(slice(2)), [case.target]).backward()
    for gradient in case.gradients()[:2]:
        assert (gradient[:2, 2] < 0).all()
        assert (gradient[:2, :2] > 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_an_annotated_patch_is_verified_with_its_truth_and_the_rest_without(kind: str) -> None:
    problems = KINDS[kind]
    case = Case(problems)
    weights = {"pseudo_label_weight": 0.0, "contrastive_weight": 0.0, "verification_weight": 1.0}
    loss = objective(problems, case, pseudo_label_source="winner", **weights)
    total = loss(case.output(), [case.target])
    a, b = case.leaves[:2]
    expected = loss.supervised([a[:2]], [case.target]) + loss.supervised([b[:2]], [case.target])
    truth = problems.truth(case.target)
    for index, (of_a, of_b) in enumerate(zip(problems.logits(a), problems.logits(b), strict=True)):
        known = truth[:, index]
        halves = [mutual_verification_loss(of_a[:2], of_b[:2], confidence=0.6, target=known)]
        halves.append(mutual_verification_loss(of_a[2:], of_b[2:], confidence=0.6))
        if problems.has_ignore:
            halves.append(mutual_verification_loss(of_a[:2], of_b[:2], confidence=0.6, where=known < 0))
        expected = expected + torch.stack(halves).sum() / problems.count
    torch.testing.assert_close(total, expected)


def test_the_dice_of_regions_is_nnunets() -> None:
    problems = KINDS["regions"]
    case = Case(problems)
    case.taught[1].reliable.fill_(True)
    loss = objective(problems, case, verification_weight=0.0, contrastive_weight=0.0, pseudo_label_weight=1.0)
    total = loss(case.output(slice(2, 5)), [])
    expected = sum(1 + loss.supervised([leaf[2:]], [case.taught[1].labels.float()]) for leaf in case.leaves[:2])
    torch.testing.assert_close(total, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_a_class_absent_from_every_labeled_patch(kind: str) -> None:
    problems = KINDS[kind]
    case = Case(problems)
    absent = problems.num_classes - 1
    if problems.regions:
        case.target[:, : problems.count] = False
    else:
        case.target[case.target == absent] = 0
    for taught in case.taught:
        taught.labels[taught.labels == absent] = 0
    loss = objective(problems, case)
    for step in range(3):
        loss.step = step
        loss(case.output(), [case.target]).backward()
        assert all(torch.isfinite(gradient).all() for gradient in case.gradients())
    assert torch.isfinite(loss.last_values[: len(loss.terms)]).all()
    assert not loss.present[:, :, absent].any()
    assert loss.present[:, :, 0].all()


def saved_beyond(case: Case, loss: SemiSupervisedLoss, target: list[torch.Tensor]) -> int:
    """Elements kept for the backward pass, without the outputs of the network themselves."""
    kept: dict[int, int] = {}
    outputs = {leaf.untyped_storage().data_ptr() for leaf in case.leaves}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage().data_ptr()
        if storage not in outputs and tensor.is_floating_point():
            kept[storage] = tensor.numel()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        total = loss(case.output(), target)
    total.backward()
    return sum(kept.values())


def test_memory_of_the_terms_does_not_grow_with_the_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nnunet_dualcl.training.objective.draw_voxels", lambda *_: torch.arange(1))
    kept = []
    for classes in (3, 40):
        problems = Problems(classes)
        case = Case(problems)
        loss = objective(problems, case)
        loss.supervised = FirstLogit()
        kept.append(saved_beyond(case, loss, [case.target]))
    one_patch = 37 * SHAPE[0] * SHAPE[1] * SHAPE[2]  # probabilities of the added classes; five patches, two decoders
    assert kept[1] - kept[0] < one_patch


class FirstLogit(torch.nn.Module):
    def forward(self, output: list[torch.Tensor], target: list[torch.Tensor]) -> torch.Tensor:
        return output[0][:, 0].mean()


@pytest.mark.parametrize("kind", KINDS)
def test_under_autocast_the_terms_are_those_of_float32(kind: str) -> None:
    problems = KINDS[kind]
    case = Case(problems)
    losses = []
    for enabled in (False, True):
        loss = objective(problems, case)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            for _ in range(2):
                total = loss(case.output(), [case.target])
            total.backward()
        losses.append((total, case.gradients()))
    torch.testing.assert_close(losses[0][0], losses[1][0], rtol=1e-3, atol=1e-3)
    for plain, cast in zip(*(gradients for _, gradients in losses), strict=True):
        assert cast.dtype == torch.float32
        torch.testing.assert_close(plain, cast, rtol=2e-2, atol=1e-4)


@pytest.mark.skipif(torch.__version__ < "2.8", reason="aborts where CUDA is claimed and there is no GPU")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_everything_stays_on_the_device(kind: str, form: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors that only claim to lie on a GPU: a mix of devices, or a look at a value, raises."""
    monkeypatch.setattr("nnunet_dualcl.training.objective.draw_voxels", draw_voxels)
    problems = KINDS[kind]
    with FakeTensorMode(allow_non_fake_inputs=True):
        case = Case(problems)
        loss = objective(problems, case, pseudo_label_source=form).to("cuda:0")
        loss.supervised = FirstLogit()
        for step in range(2):
            loss.step = step
            a, b, features_a, features_b = (leaf.to("cuda:0") for leaf in case.leaves)
            if form == "teacher":
                heads = [torch.zeros(patches, problems.num_heads, *SHAPE, device="cuda:0") for patches in (2, 3)]
                loss.taught_labeled, loss.taught = map(loss.pseudo_labels, heads)
            output = DualOutput([a], [b], features_a, features_b)
            total = loss(output, [case.target.to("cuda:0")])
        for tensor in (total, loss.last_values, loss.prototypes, loss.present):
            assert tensor.device == torch.device("cuda:0")
