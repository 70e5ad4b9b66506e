from __future__ import annotations

import math
import weakref
from dataclasses import replace
from typing import Any

import pytest
import torch
from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from torch import nn
from torch.nn import functional

from nnunet_dualcl.config import DualCLConfig
from nnunet_dualcl.errors import DualCLError
from nnunet_dualcl.networks import DualOutput
from nnunet_dualcl.training import SemiSupervisedLoss
from nnunet_dualcl.training.objective import Half
from nnunet_dualcl.training.problems import Problems
from nnunet_dualcl.training.pseudo_labels import PseudoLabels

TERMS, OBSERVATIONS = SemiSupervisedLoss.terms, SemiSupervisedLoss.observations
CLASSES, WIDTH, SHAPE = 3, 5, (4, 5, 6)
PROBLEMS = Problems(CLASSES)
LABELED, UNLABELED = slice(0, 2), slice(2, 5)
ONLY = {
    "verification": {"verification_weight": 1.0},
    "pseudo_label": {"pseudo_label_weight": 1.0},
    "contrastive": {"contrastive_weight": 1.0},
}


class CrossEntropy(nn.Module):
    """Stands for nnU-Net's loss: full resolution only."""

    def forward(self, output: list[torch.Tensor], target: list[torch.Tensor]) -> torch.Tensor:
        return functional.cross_entropy(output[0], target[0][:, 0].long())


def leaves(seed: int = 0) -> tuple[DualOutput, list[torch.Tensor]]:
    """Outputs for 2 labeled and 3 unlabeled patches as leaves, so gradients show who is taught."""
    generator = torch.Generator().manual_seed(seed)
    truth = torch.randint(CLASSES, (2, 1, *SHAPE), generator=generator)
    logits = [3 * torch.randn(5, CLASSES, *SHAPE, generator=generator) for _ in "ab"]
    # decoder A is right on the labeled half, so it wins
    logits[0][LABELED] += 4 * functional.one_hot(truth[:, 0], CLASSES).movedim(-1, 1)
    features = [torch.randn(5, WIDTH, *SHAPE, generator=generator) for _ in "ab"]
    tensors = [tensor.requires_grad_() for tensor in (*logits, *features)]
    return DualOutput([tensors[0]], [tensors[1]], tensors[2], tensors[3]), [truth]


def objective(**values: Any) -> SemiSupervisedLoss:
    weights = {"pseudo_label_weight": 0.0, "verification_weight": 0.0, "contrastive_weight": 0.0}
    config = DualCLConfig.paper(
        **{**weights, "reliability": "per_class", "rampup_fraction": 0.0, "contrastive_samples": 200, **values}
    )
    return SemiSupervisedLoss(CrossEntropy(), config, problems=PROBLEMS, total_steps=10)


def extra_gradients(loss: SemiSupervisedLoss, output: DualOutput, target: Any) -> dict[str, torch.Tensor]:
    """Gradients of everything beyond the two supervised terms; zeros where there is none."""
    total = loss(output, target)
    for logits in (output.logits_a, output.logits_b):
        total = total - loss.supervised([logits[0][LABELED]], target)
    tensors = {"logits_a": output.logits_a[0], "logits_b": output.logits_b[0]}
    tensors.update({"features_a": output.features_a, "features_b": output.features_b})
    gradients = torch.autograd.grad(total, list(tensors.values()), allow_unused=True)
    return {
        name: torch.zeros_like(tensor) if gradient is None else gradient
        for (name, tensor), gradient in zip(tensors.items(), gradients, strict=True)
    }


def strength(gradient: torch.Tensor) -> float:
    return float(gradient.abs().max())


def test_pseudo_labels_move_the_loser_on_the_unlabeled_half_only() -> None:
    output, target = leaves()
    gradients = extra_gradients(objective(**ONLY["pseudo_label"]), output, target)
    assert strength(gradients["logits_b"][UNLABELED]) > 1e-4
    assert strength(gradients["logits_b"][LABELED]) < 1e-7
    for name in ("logits_a", "features_a", "features_b"):
        assert strength(gradients[name]) < 1e-7


def test_the_winner_changes_with_the_supervised_losses() -> None:
    output, target = leaves()
    swapped = DualOutput(output.logits_b, output.logits_a, output.features_b, output.features_a)
    gradients = extra_gradients(objective(**ONLY["pseudo_label"]), swapped, target)
    assert strength(gradients["logits_a"][UNLABELED]) > 1e-4
    assert strength(gradients["logits_b"]) < 1e-7


def test_cross_pseudo_supervision_teaches_each_the_others_label_at_every_voxel() -> None:
    output, target = leaves()
    config = DualCLConfig.preset("cps", rampup_fraction=0.0)
    loss = SemiSupervisedLoss(CrossEntropy(), config, problems=PROBLEMS, total_steps=10)
    gradients = extra_gradients(loss, output, target)
    students = {name: getattr(output, name)[0] for name in ("logits_a", "logits_b")}
    others = dict(zip(students, reversed(students.values()), strict=True))
    for name, student in students.items():
        expected = functional.cross_entropy(student[UNLABELED], others[name][UNLABELED].argmax(1))
        torch.testing.assert_close(gradients[name], torch.autograd.grad(expected, student)[0], rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize(
    ("acts_on", "labeled", "unlabeled"),
    [("labeled", True, False), ("unlabeled", False, True), ("both", True, True)],
)
def test_verification_moves_the_chosen_halves(acts_on: Any, labeled: bool, unlabeled: bool) -> None:
    output, target = leaves()
    gradients = extra_gradients(objective(**ONLY["verification"], verification_on=acts_on), output, target)
    for name in ("logits_a", "logits_b"):
        assert (strength(gradients[name][LABELED]) > 1e-4) == labeled
        assert (strength(gradients[name][UNLABELED]) > 1e-4) == unlabeled
    assert strength(gradients["features_a"]) == 0


def test_verification_of_unlabeled_voxels_moves_the_less_confident_only() -> None:
    output, target = leaves()
    gradients = extra_gradients(objective(**ONLY["verification"], verification_on="unlabeled"), output, target)
    confidence = [torch.softmax(logits[0], 1).amax(1) for logits in (output.logits_a, output.logits_b)]
    a_leads = confidence[0] >= confidence[1]
    moved_a = gradients["logits_a"].abs().amax(1) > 0
    moved_b = gradients["logits_b"].abs().amax(1) > 0
    assert moved_a.any()
    assert moved_b.any()
    assert not (moved_a & a_leads).any()
    assert not (moved_b & ~a_leads).any()


def test_contrast_moves_the_embeddings_of_both_decoders_only() -> None:
    output, target = leaves()
    loss = objective(**ONLY["contrastive"], unreliable_fraction_start=0.5)
    assert all(strength(g) < 1e-7 for g in extra_gradients(loss, output, target).values())  # no prototype as yet
    gradients = extra_gradients(loss, output, target)
    for name in ("features_a", "features_b"):
        assert strength(gradients[name][LABELED]) > 1e-6
        assert strength(gradients[name][UNLABELED]) > 1e-6
    for name in ("logits_a", "logits_b"):
        assert strength(gradients[name]) < 1e-7


def test_no_term_without_weight() -> None:
    output, target = leaves()
    assert all(strength(g) < 1e-7 for g in extra_gradients(objective(), output, target).values())


def test_total_is_the_sum_of_weight_times_term() -> None:
    output, target = leaves()
    loss = objective(verification_weight=0.3, pseudo_label_weight=0.7, contrastive_weight=0.2, rampup_fraction=1.0)
    loss.step = 4
    loss(*leaves(seed=7))  # prototypes are those of the steps before
    total = loss(output, target)
    values = dict(zip(TERMS + OBSERVATIONS, loss.last_values.tolist(), strict=True))
    weights = loss.weights
    assert set(weights) == set(TERMS)
    assert 0 < weights["pseudo_label"] < 0.7
    assert weights["verification"] == 0.3
    assert all(values[name] > 0 for name in TERMS)
    assert total.item() == pytest.approx(sum(values[name] * weights[name] for name in TERMS), rel=1e-5)


class WithSharpness(SemiSupervisedLoss):
    """A term of its own, on the unlabeled half, and an observation."""

    terms = (*SemiSupervisedLoss.terms, "sharpness")
    observations = (*SemiSupervisedLoss.observations, "patches")

    @property
    def weights(self) -> dict[str, float]:
        return {**super().weights, "sharpness": 0.5 * self.ramp}

    def part(self, half: Half) -> dict[str, torch.Tensor]:
        parts = super().part(half)
        self.values["patches"] = torch.tensor(len(half.logits[0]))
        return parts if half.supervised else {**parts, "sharpness": half.logits[0].float().square().mean()}


def test_a_term_of_a_subclass_is_weighted_and_logged() -> None:
    output, target = leaves()
    config = DualCLConfig.paper(contrastive_samples=200, rampup_fraction=0.5)
    loss = WithSharpness(CrossEntropy(), config, problems=PROBLEMS, total_steps=10)
    loss.step = 2
    assert loss.ramp == pytest.approx(math.exp(-5 * 0.6**2))
    total = loss(output, target)
    seen = dict(zip(loss.terms + loss.observations, loss.last_values.tolist(), strict=True))
    assert seen["sharpness"] == pytest.approx(output.logits_a[0][UNLABELED].square().mean().item())
    assert total.item() == pytest.approx(sum(seen[name] * weight for name, weight in loss.weights.items()), rel=1e-5)
    assert seen["patches"] == 3  # of the half that came last


def test_a_term_without_a_name_or_a_weight_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    loss = WithSharpness(CrossEntropy(), DualCLConfig.supervised(), problems=PROBLEMS, total_steps=10)
    monkeypatch.setattr(WithSharpness, "terms", TERMS)
    with pytest.raises(DualCLError, match=r"WithSharpness: part gives supervised_a, .* Name each term of part in both"):
        loss(*leaves())


def test_validation_output_gets_the_supervised_loss() -> None:
    output, target = leaves()
    loss = objective(**ONLY["verification"])
    logits = [output.logits_a[0][LABELED]]
    with torch.no_grad():
        assert torch.equal(loss(logits, target), CrossEntropy()(logits, target))
    assert loss.last_values is None


def test_labels_outside_the_classes_count_nowhere() -> None:
    output, target = leaves()
    ignored = [torch.full_like(target[0], CLASSES)]
    loss = objective(**ONLY["verification"], verification_on="labeled")
    loss.supervised = SumOfLogits()
    gradients = torch.autograd.grad(
        loss(output, ignored) - loss.supervised([output.logits_a[0][LABELED]], ignored)
        - loss.supervised([output.logits_b[0][LABELED]], ignored), output.logits_a[0],
    )  # fmt: skip
    assert strength(gradients[0]) == 0


class SumOfLogits(nn.Module):
    def forward(self, output: list[torch.Tensor], target: list[torch.Tensor]) -> torch.Tensor:
        return output[0].sum() * 1e-3


def test_observations_against_a_count_by_hand() -> None:
    output, target = leaves()
    # every voxel once, so the sample is the whole patch
    loss = objective(unreliable_fraction_start=0.0, unreliable_fraction_end=0.0, contrastive_samples=20000)
    loss(output, target)
    seen = dict(zip(TERMS + OBSERVATIONS, loss.last_values.tolist(), strict=True))
    predicted = output.logits_a[0].argmax(1)
    right = predicted[LABELED] == target[0][:, 0]
    judged = (predicted[LABELED] > 0) | (target[0][:, 0] > 0)
    assert seen["winner_is_a"] == 1
    assert seen["reliable_share"] == 1
    assert seen["pseudo_label_accuracy"] == pytest.approx(float(right.float().mean()), abs=0.02)
    assert seen["pseudo_label_accuracy_foreground"] == pytest.approx(float(right[judged].float().mean()), abs=0.02)
    probs = [torch.softmax(logits[0], 1)[UNLABELED] for logits in (output.logits_a, output.logits_b)]
    asserted = [torch.where(p.amax(1) >= 0.6, p.argmax(1), -1) for p in probs]
    assert seen["disagreement_share"] == pytest.approx(float((asserted[0] != asserted[1]).float().mean()), abs=0.02)


def test_unreliable_fraction_falls_linearly() -> None:
    loss = objective(unreliable_fraction_start=0.4, unreliable_fraction_end=0.1)
    fractions = []
    for step in (0, 5, 10, 20):
        loss.step = step
        fractions.append(loss.unreliable_fraction)
    assert fractions == pytest.approx([0.4, 0.25, 0.1, 0.1])


def test_prototypes_move_slowly_and_survive_a_state_dict() -> None:
    output, target = leaves()
    loss = objective(**ONLY["contrastive"], prototype_momentum=0.9)
    loss(output, target)
    first = loss.prototypes.clone()
    assert loss.present.all()
    torch.testing.assert_close(first.norm(dim=3), torch.ones(2, 1, CLASSES))
    other, _ = leaves(seed=7)
    loss(other, target)
    change = 1 - (loss.prototypes * first).sum(3)
    assert (change > 0).all()
    assert (change < 0.05).all()
    twin = objective(**ONLY["contrastive"])
    twin.load_state(dict(loss.state_dict()))
    assert torch.equal(twin.prototypes, loss.prototypes)
    assert torch.equal(twin.present, loss.present)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_class_that_a_step_does_not_show_keeps_its_prototype(momentum: float) -> None:
    loss = objective(**ONLY["contrastive"], prototype_momentum=momentum)
    loss(*leaves())
    before = loss.prototypes.clone()
    output, target = leaves(seed=7)
    with torch.no_grad():
        for logits in (output.logits_a[0], output.logits_b[0]):
            logits[:, -1] = -100
    loss(output, [target[0].clamp(max=CLASSES - 2)])
    kept = (loss.prototypes == before).all(3)
    assert torch.equal(kept, (torch.arange(CLASSES) == CLASSES - 1).expand(2, 1, -1))
    assert loss.present.all()


def test_a_step_keeps_no_graph() -> None:
    output, target = leaves()
    loss = objective(**ONLY["contrastive"])
    loss(output, target).backward()
    features = weakref.ref(output.features_a)
    del output
    assert features() is None


@pytest.mark.parametrize("teacher", [False, True])
def test_no_tensor_is_read_back_from_the_device(teacher: bool) -> None:
    from torch.utils._python_dispatch import TorchDispatchMode

    class NoReadBack(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            assert func.overloadpacket not in (
                torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero, torch.ops.aten.masked_select,
            ), f"{func} waits for the device"  # fmt: skip
            return func(*args, **(kwargs or {}))

    output, target = leaves()
    weights = {"verification_weight": 1.0, "pseudo_label_weight": 1.0, "contrastive_weight": 1.0}
    loss = taught_objective(**weights, pseudo_label_loss="dice_ce") if teacher else objective(**weights)
    with NoReadBack():
        loss(output, target).backward()
    assert strength(output.logits_b[0].grad) > 0


def test_weights_of_variants_by_replace() -> None:
    config = replace(DualCLConfig.paper(), verification_weight=2.0)
    loss = SemiSupervisedLoss(CrossEntropy(), config, problems=PROBLEMS, total_steps=10)
    assert loss.weights["verification"] == 2.0


# ---- a teacher labels the unlabeled half


def labels_for(patches: int, seed: int = 3) -> PseudoLabels:
    """A teacher's labels; the last one, C, is pasted from ignored voxels and no class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES + 1, (patches, 1, *SHAPE), generator=generator)
    return PseudoLabels(labels, torch.rand(patches, 1, *SHAPE, generator=generator) < 0.7)


def counting(taught: PseudoLabels) -> torch.Tensor:
    return (taught.reliable & (taught.labels < CLASSES))[:, 0]


def taught_objective(**values: Any) -> SemiSupervisedLoss:
    loss = objective(pseudo_label_source="teacher", **values)
    loss.taught = labels_for(3)
    return loss


def seen_by(loss: SemiSupervisedLoss) -> dict[str, float]:
    assert loss.last_values is not None
    return dict(zip(TERMS + OBSERVATIONS, loss.last_values.tolist(), strict=True))


def nnunets_own(logits: torch.Tensor, taught: PseudoLabels) -> torch.Tensor:
    """nnU-Net's loss of its datasets with an ignore label, which here marks what is not reliable."""
    dice = {"batch_dice": False, "smooth": 1e-5, "do_bg": False, "ddp": False}
    loss = DC_and_CE_loss(dice, {}, ignore_label=CLASSES, dice_class=MemoryEfficientSoftDiceLoss)
    target = torch.where(counting(taught)[:, None], taught.labels, CLASSES)
    value: torch.Tensor = loss(logits, target)
    return value


@pytest.mark.parametrize("form", ["ce", "dice_ce"])
def test_the_teacher_moves_both_decoders_where_its_labels_count(form: Any) -> None:
    output, target = leaves()
    loss = taught_objective(**ONLY["pseudo_label"], pseudo_label_loss=form)
    gradients = extra_gradients(loss, output, target)
    assert loss.taught is not None
    for name in ("logits_a", "logits_b"):
        assert strength(gradients[name][LABELED]) < 1e-7
        moved = gradients[name][UNLABELED].abs().amax(1) > 1e-7
        assert not moved[~counting(loss.taught)].any()
        assert moved[counting(loss.taught)].float().mean() > 0.95
    for name in ("features_a", "features_b"):
        assert strength(gradients[name]) == 0


@pytest.mark.parametrize("source", ["teacher", "winner", "cross"])
def test_on_demand_every_voxel_is_taught_whatever_its_entropy(source: Any) -> None:
    output, target = leaves()
    values = {**ONLY["pseudo_label"], "pseudo_label_source": source, "mixing": "none"}
    some, every = (objective(**values, unreliable_fraction_start=0.5, pseudo_label_on=on) for on in ("reliable", "all"))
    for loss in (some, every):
        labels = loss.taught_labels(output.logits_a[0][UNLABELED])
        assert torch.equal(labels.labels[:, 0], output.logits_a[0][UNLABELED].argmax(1))
        assert labels.reliable.all() == (loss is every)
        loss.taught = labels
    moved = {
        loss: extra_gradients(loss, output, target)["logits_b"][UNLABELED].abs().amax(1) > 1e-7
        for loss in (some, every)
    }
    assert 0.3 < moved[some].float().mean() < 0.7
    assert moved[every].float().mean() > 0.95


@pytest.mark.parametrize("source", ["winner", "cross"])
def test_the_log_counts_the_voxels_that_are_taught(source: Any) -> None:
    output, target = leaves()
    shares = []
    for on in ("reliable", "all"):
        values = {**ONLY["pseudo_label"], "pseudo_label_source": source, "mixing": "none"}
        loss = objective(**values, unreliable_fraction_start=0.5, pseudo_label_on=on)
        loss(output, target)
        shares.append(seen_by(loss)["reliable_share"])
    assert 0.3 < shares[0] < 0.7
    assert shares[1] == 1


def test_the_contrast_keeps_its_unreliable_voxels_where_all_are_taught() -> None:
    output, target = leaves()
    values = {**ONLY["contrastive"], "unreliable_fraction_start": 0.5}
    gradients = []
    for on in ("reliable", "all"):
        torch.manual_seed(0)  # the voxels that are drawn
        loss = objective(**values, pseudo_label_on=on)
        for _ in range(2):  # the first step gives the prototypes
            gradients.append(extra_gradients(loss, output, target)["features_a"])
    assert strength(gradients[1]) > 1e-7
    torch.testing.assert_close(gradients[1], gradients[3])


def test_cross_entropy_toward_the_teacher_by_hand() -> None:
    output, target = leaves()
    loss = taught_objective(**ONLY["pseudo_label"])
    loss(output, target)
    assert loss.taught is not None
    expected = 0.0
    for logits in (output.logits_a[0], output.logits_b[0]):
        log_probs = torch.log_softmax(logits[UNLABELED].detach().double(), 1)
        chosen = log_probs.gather(1, loss.taught.labels.clamp(max=CLASSES - 1)).squeeze(1)
        expected -= float(chosen[counting(loss.taught)].mean())
    assert seen_by(loss)["pseudo_label"] == pytest.approx(expected, rel=1e-5)


def test_dice_and_cross_entropy_are_nnunets_own() -> None:
    output, target = leaves()
    loss = taught_objective(**ONLY["pseudo_label"], pseudo_label_loss="dice_ce")
    gradients = extra_gradients(loss, output, target)
    assert loss.taught is not None
    expected = 0.0
    for name in ("logits_a", "logits_b"):
        logits = getattr(output, name)[0][UNLABELED].detach().requires_grad_()
        value = nnunets_own(logits, loss.taught)
        (gradient,) = torch.autograd.grad(value, logits)
        torch.testing.assert_close(gradients[name][UNLABELED], gradient, rtol=1e-4, atol=1e-7)
        expected += 1 + value.item()  # nnU-Net's Dice loss is minus the Dice
    assert seen_by(loss)["pseudo_label"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("batch_dice", [False, True])
def test_the_dice_pools_patches_as_the_plans_say(batch_dice: bool) -> None:
    output, target = leaves()
    config = DualCLConfig(verification_weight=0.0, contrastive_weight=0.0, rampup_fraction=0.0, contrastive_samples=1)
    values = []
    for form in ("ce", "dice_ce"):
        loss = SemiSupervisedLoss(
            CrossEntropy(), replace(config, pseudo_label_loss=form), problems=PROBLEMS, total_steps=10,
            batch_dice=batch_dice,
        )  # fmt: skip
        loss.taught = labels_for(3)
        loss(output, target)
        values.append(seen_by(loss)["pseudo_label"])
    counts = counting(loss.taught).numpy()
    groups = [[0, 1, 2]] if batch_dice else [[0], [1], [2]]
    expected = 0.0
    for logits in (output.logits_a[0], output.logits_b[0]):
        probs = torch.softmax(logits[UNLABELED].detach().double(), 1).numpy()
        dice = []
        for group in groups:
            for label in range(1, CLASSES):
                p = probs[group, label][counts[group]]
                y = (loss.taught.labels[group, 0] == label).numpy()[counts[group]]
                dice.append((2 * (p * y).sum() + 1e-5) / (p.sum() + y.sum() + 1e-5))
        expected += 1 - sum(dice) / len(dice)
    assert values[1] - values[0] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("form", ["ce", "dice_ce"])
@pytest.mark.parametrize("empty", ["reliable", "labels"])
def test_without_a_label_that_counts_the_teacher_teaches_nothing(form: Any, empty: str) -> None:
    output, target = leaves()
    loss = taught_objective(**ONLY["pseudo_label"], pseudo_label_loss=form)
    labels, reliable = labels_for(3)
    loss.taught = PseudoLabels(
        torch.full_like(labels, CLASSES) if empty == "labels" else labels,
        torch.zeros_like(reliable) if empty == "reliable" else reliable,
    )
    assert all(strength(gradient) < 1e-7 for gradient in extra_gradients(loss, output, target).values())
    assert seen_by(loss)["pseudo_label"] == 0.0


def test_one_patch_without_reliable_voxels_leaves_the_others_finite() -> None:
    output, target = leaves()
    loss = taught_objective(**ONLY["pseudo_label"], pseudo_label_loss="dice_ce")
    assert loss.taught is not None
    loss.taught.reliable[1] = False
    gradients = extra_gradients(loss, output, target)
    assert all(torch.isfinite(gradient).all() for gradient in gradients.values())
    assert strength(gradients["logits_a"][UNLABELED][1]) < 1e-7
    assert strength(gradients["logits_a"][UNLABELED][0]) > 1e-4


def test_one_decoder_learns_truth_and_the_teachers_labels() -> None:
    output, target = leaves()
    loss = taught_objective(**ONLY["pseudo_label"], pseudo_label_loss="dice_ce", second_decoder=False)
    assert loss.taught is not None
    logits = output.logits_a[0]
    total = loss([logits], target)
    (gradient,) = torch.autograd.grad(total, logits)
    supervised = CrossEntropy()([logits[LABELED]], target)
    expected = supervised + 1 + nnunets_own(logits[UNLABELED], loss.taught)
    (expected_gradient,) = torch.autograd.grad(expected, logits)
    torch.testing.assert_close(total, expected)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-4, atol=1e-7)
    seen = seen_by(loss)
    assert seen["supervised_a"] == pytest.approx(supervised.item())
    assert (seen["verification"], seen["contrastive"]) == (0, 0)
    nan = {name for name, value in seen.items() if math.isnan(value)}
    assert nan == {"supervised_b", "disagreement_share", "winner_is_a", *(n for n in OBSERVATIONS if "accuracy" in n)}


def test_one_decoder_as_long_as_the_target_gets_nnunets_loss() -> None:
    output, target = leaves()
    loss = taught_objective(**ONLY["pseudo_label"], pseudo_label_loss="dice_ce", second_decoder=False)
    logits = [output.logits_a[0][LABELED]]
    with torch.no_grad():
        assert torch.equal(loss(logits, target), CrossEntropy()(logits, target))
    assert loss.last_values is None


def every_voxel_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "nnunet_dualcl.training.objective.draw_voxels", lambda volume, _: torch.arange(volume[0, 0].numel())
    )


def test_the_teacher_is_judged_by_a_count(monkeypatch: pytest.MonkeyPatch) -> None:
    every_voxel_once(monkeypatch)
    output, target = leaves()
    target[0][0, 0, 0] = CLASSES  # ignored voxels count nowhere
    loss = taught_objective(**ONLY["pseudo_label"])
    loss.supervised = SumOfLogits()
    loss.taught_labeled = labels_for(2, seed=8)
    assert loss.taught is not None
    loss(output, target)
    seen = seen_by(loss)
    among = loss.taught_labeled.reliable & (target[0] < CLASSES)
    right = loss.taught_labeled.labels == target[0]
    foreground = among & ((loss.taught_labeled.labels > 0) | (target[0] > 0))
    assert seen["pseudo_label_accuracy"] == pytest.approx(float(right[among].float().mean()))
    assert seen["pseudo_label_accuracy_foreground"] == pytest.approx(float(right[foreground].float().mean()))
    assert seen["pseudo_label_accuracy"] != seen["pseudo_label_accuracy_foreground"]
    assert seen["reliable_share"] == pytest.approx(float(loss.taught.reliable.float().mean()))


def test_a_teacher_that_was_not_asked_has_no_accuracy() -> None:
    output, target = leaves()
    loss = taught_objective(**ONLY["pseudo_label"])
    total = loss(output, target)
    seen = seen_by(loss)
    accuracies = [seen.pop(name) for name in ("pseudo_label_accuracy", "pseudo_label_accuracy_foreground")]
    assert torch.tensor(accuracies).isnan().all()
    assert torch.isfinite(total)
    assert torch.isfinite(torch.tensor(list(seen.values()))).all()


def test_a_step_that_meets_no_foreground_says_nothing_of_it() -> None:
    """As a share of 0 it would pull down the epoch's mean of a teacher that makes no mistake."""
    output, target = leaves()
    for level in target:
        level.zero_()
    loss = taught_objective(**ONLY["pseudo_label"])
    taught = labels_for(2, seed=8)
    loss.taught_labeled = taught._replace(labels=torch.zeros_like(taught.labels))
    loss(output, target)
    seen = seen_by(loss)
    assert seen["pseudo_label_accuracy"] == 1
    assert math.isnan(seen["pseudo_label_accuracy_foreground"])


def test_contrast_with_the_teachers_labels_moves_the_embeddings_only() -> None:
    output, target = leaves()
    gradients = []
    for seed in (3, 4):
        torch.manual_seed(0)
        loss = taught_objective(**ONLY["contrastive"], unreliable_fraction_start=0.5)
        loss.taught = labels_for(3, seed)
        loss(*leaves(seed=7))
        gradients.append(extra_gradients(loss, output, target))
        for name in ("features_a", "features_b"):
            assert strength(gradients[-1][name][LABELED]) > 1e-6
            assert strength(gradients[-1][name][UNLABELED]) > 1e-6
        for name in ("logits_a", "logits_b"):
            assert strength(gradients[-1][name]) < 1e-7
    for name in ("features_a", "features_b"):  # toward the class that the teacher gives
        assert strength(gradients[0][name][UNLABELED] - gradients[1][name][UNLABELED]) > 1e-6


def test_verification_does_not_ask_the_teacher() -> None:
    output, target = leaves()
    with_teacher = extra_gradients(taught_objective(**ONLY["verification"]), output, target)
    without = extra_gradients(objective(**ONLY["verification"]), output, target)
    for name in ("logits_a", "logits_b"):
        assert strength(with_teacher[name][LABELED]) > 1e-4
        assert strength(with_teacher[name][UNLABELED]) > 1e-4
    for name, gradient in with_teacher.items():
        assert torch.equal(gradient, without[name])


def test_the_total_with_a_teacher_is_the_sum_of_weight_times_term() -> None:
    output, target = leaves()
    weights = {"verification_weight": 0.3, "pseudo_label_weight": 0.7, "contrastive_weight": 0.2}
    loss = taught_objective(**weights, rampup_fraction=1.0, pseudo_label_loss="dice_ce")
    loss.step = 4
    loss(*leaves(seed=7))
    total = loss(output, target)
    seen = seen_by(loss)
    assert all(seen[name] > 0 for name in TERMS)
    assert total.item() == pytest.approx(sum(seen[name] * loss.weights[name] for name in TERMS), rel=1e-5)
