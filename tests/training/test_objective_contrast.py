"""Prototypes, L_c and what is observed of a whole step, against loops that visit each voxel."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from nnunet_dualcl.config import DualCLConfig
from nnunet_dualcl.losses import class_prototypes, reliability_contrastive_loss
from nnunet_dualcl.networks import DualOutput
from nnunet_dualcl.training import SemiSupervisedLoss
from nnunet_dualcl.training.problems import Problems
from nnunet_dualcl.training.pseudo_labels import PseudoLabels, pseudo_labels_of

TERMS, OBSERVATIONS = SemiSupervisedLoss.terms, SemiSupervisedLoss.observations
CLASSES, ABSENT, IGNORED, WIDTH, SHAPE = 4, 3, 4, 5, (4, 5)
PATCHES, LABELED, VOXELS = 5, 2, 20
WEIGHT, TAU = 0.3, 0.5


class CrossEntropy(nn.Module):
    """Stands for nnU-Net's loss."""

    def forward(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(output, target[:, 0], ignore_index=IGNORED)


class Example:
    """Decoders that are sure of exactly half of the voxels; B wins. Truth names the last class, unsure voxels only."""

    def __init__(self, *, has_ignore: bool) -> None:
        rng = np.random.default_rng(0)
        shape = (PATCHES, VOXELS)
        b = rng.integers(ABSENT, size=shape)

        def often_as_b(share: float) -> np.ndarray:
            return np.where(rng.random(shape) < share, b, rng.integers(ABSENT, size=shape))

        self.predicted = [often_as_b(0.6), b]
        self.taught = often_as_b(0.6)
        self.taught_reliable = rng.random(shape) < 0.7
        self.sure = [np.zeros(shape, bool) for _ in "ab"]
        for sure in self.sure:
            for half in (slice(LABELED), slice(LABELED, None)):
                sure[half] = rng.permuted(np.arange(sure[half].size) % 2 == 0).reshape(sure[half].shape)
        self.truth = often_as_b(0.9)
        self.truth[~self.sure[0] & ~self.sure[1] & (rng.random(shape) < 0.5)] = ABSENT
        self.known = rng.random(shape) < (0.5 if has_ignore else 1)
        self.known[LABELED:] = False
        self.features = [rng.normal(size=(*shape, WIDTH)) for _ in "ab"]

    def output(self, patches: int) -> DualOutput:
        logits = []
        for predicted, sure in zip(self.predicted, self.sure, strict=True):
            height = np.where(sure, 12.0, 1.0)[..., None]
            logits.append(in_patches(height * np.eye(CLASSES)[predicted])[:patches].float())
        a, b = (in_patches(features)[:patches].float() for features in self.features)
        return DualOutput(*logits, a, b)

    def target(self) -> torch.Tensor:
        return in_patches(np.where(self.known, self.truth, IGNORED)[..., None])[:LABELED]

    def teacher(self, half: slice) -> PseudoLabels:
        return PseudoLabels(*(in_patches(part[..., None])[half] for part in (self.taught, self.taught_reliable)))

    def by_hand(self, source: str, halves: list[range]) -> tuple[list[dict[int, np.ndarray]], float]:
        """Prototypes of each decoder by class, and L_c with them."""
        given = self.taught if source == "teacher" else self.predicted[1]
        labels = np.where(self.known, self.truth, given)
        trusted = self.known | ((self.predicted[0] == self.predicted[1]) & (self.predicted[0] == given))
        prototypes: list[dict[int, np.ndarray]] = []
        losses = []
        for features, sure in zip(self.features, self.sure, strict=True):
            directions = features / np.sqrt((features**2).sum(-1, keepdims=True))
            found: dict[int, list[np.ndarray]] = {}
            for half in halves:
                for voxel in np.ndindex(len(half), VOXELS):
                    at = (half[voxel[0]], voxel[1])
                    if sure[at] and trusted[at]:
                        found.setdefault(labels[at], []).append(directions[at])
            means = {label: np.mean(members, 0) for label, members in found.items()}
            prototypes.append({label: mean / np.sqrt((mean**2).sum()) for label, mean in means.items()})
            for half in halves:
                terms = []
                for voxel in np.ndindex(len(half), VOXELS):
                    at = (half[voxel[0]], voxel[1])
                    if not sure[at] and labels[at] in found:
                        pulls = {k: np.exp(directions[at] @ c / TAU) for k, c in prototypes[-1].items()}
                        terms.append(-np.log(pulls[labels[at]] / sum(pulls.values())))
                losses.append(np.mean(terms))
        return prototypes, float(np.mean(losses))


def in_patches(voxels: np.ndarray) -> torch.Tensor:
    """(patches, voxels, channels) -> (patches, channels, *)."""
    return torch.from_numpy(voxels).movedim(-1, 1).reshape(len(voxels), -1, *SHAPE)


def objective(example: Example, source: str, *, has_ignore: bool, num_halves: int) -> SemiSupervisedLoss:
    config = DualCLConfig.paper(
        pseudo_label_source=source,
        pseudo_label_weight=0.0,
        verification_weight=0.0,
        contrastive_weight=WEIGHT,
        contrastive_temperature=TAU,
        unreliable_fraction_start=0.5,
        rampup_fraction=0.0,
    )
    problems = Problems(CLASSES, has_ignore=has_ignore)
    loss = SemiSupervisedLoss(CrossEntropy(), config, problems=problems, total_steps=10)
    loss.num_halves = num_halves
    if source == "teacher":
        loss.taught_labeled, loss.taught = example.teacher(slice(LABELED)), example.teacher(slice(LABELED, None))
    return loss


@pytest.fixture(autouse=True)
def every_voxel_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "nnunet_dualcl.training.objective.draw_voxels", lambda volume, _: torch.arange(volume[0, 0].numel())
    )


@pytest.mark.parametrize("source", ["teacher", "winner"])
@pytest.mark.parametrize(("has_ignore", "num_halves"), [(False, 2), (True, 2), (True, 1)])
def test_prototypes_and_contrast_by_hand(source: str, has_ignore: bool, num_halves: int) -> None:
    example = Example(has_ignore=has_ignore)
    loss = objective(example, source, has_ignore=has_ignore, num_halves=num_halves)
    halves = [range(LABELED), range(LABELED, PATCHES)][:num_halves]
    output, target = example.output(halves[-1].stop), example.target()
    expected_prototypes, expected = example.by_hand(source, halves)
    loss(output, target)
    for decoder, prototypes in enumerate(expected_prototypes):
        assert loss.present[decoder, 0].tolist() == [True, True, True, False]
        for label, prototype in prototypes.items():
            np.testing.assert_allclose(loss.prototypes[decoder, 0, label].numpy(), prototype, rtol=1e-4, atol=1e-6)
    total = loss(output, target)
    supervised = [CrossEntropy()(logits[:LABELED], target) for logits in (output.logits_a, output.logits_b)]
    assert supervised[1] < supervised[0]
    contrast = dict(zip(TERMS + OBSERVATIONS, loss.last_values.tolist(), strict=True))["contrastive"]
    assert contrast == pytest.approx(expected, rel=1e-4)
    assert (total - sum(supervised)).item() == pytest.approx(WEIGHT * expected, rel=1e-3)


@pytest.mark.parametrize("source", ["teacher", "winner"])
def test_partly_annotated_patches_alone_are_observed_by_a_count(source: str) -> None:
    example = Example(has_ignore=True)
    loss = objective(example, source, has_ignore=True, num_halves=1)
    loss(example.output(LABELED), example.target())
    seen = dict(zip(TERMS + OBSERVATIONS, loss.last_values.tolist(), strict=True))
    asserted = [
        np.where(sure, labels, -1)[:LABELED] for sure, labels in zip(example.sure, example.predicted, strict=True)
    ]
    assert seen["disagreement_share"] == pytest.approx((asserted[0] != asserted[1]).mean())
    assert seen["reliable_share"] == pytest.approx(
        example.taught_reliable[:LABELED].mean() if source == "teacher" else 0.5
    )


@pytest.mark.parametrize("per_class", [False, True])
def test_each_decoder_and_region_has_quantiles_and_prototypes_of_its_own(per_class: bool) -> None:
    """Two steps, the decoders unlike in how sure they are, against the losses called for each by itself."""
    config = DualCLConfig.paper(
        pseudo_label_source="teacher",
        pseudo_label_weight=0.0,
        verification_weight=0.0,
        contrastive_weight=1.0,
        reliability="per_class" if per_class else "global",
        unreliable_fraction_start=0.3,
        unreliable_fraction_end=0.3,
        rampup_fraction=0.0,
    )
    problems = Problems(3, regions=True)
    loss = SemiSupervisedLoss(nn.MSELoss(), config, problems=problems, total_steps=10)
    loss.num_halves = 1
    generator = torch.Generator().manual_seed(0)
    old, seen = torch.zeros(2, 3, 2, WIDTH), torch.zeros(2, 3, 2, dtype=torch.bool)
    for _ in range(2):
        logits = [scale * torch.randn(2, 3, *SHAPE, generator=generator) for scale in (4.0, 1.0)]
        features = [torch.randn(2, WIDTH, *SHAPE, generator=generator) for _ in "ab"]
        target = (torch.rand(2, 3, *SHAPE, generator=generator) < 0.5).float()
        total = loss(DualOutput(*logits, *features), target)
        expected, new, present = [], torch.zeros_like(old), torch.zeros_like(seen)
        for decoder, region in np.ndindex(2, 3):
            f, heads = features[decoder], problems.logits(logits[decoder])[region]
            reliable = pseudo_labels_of(heads, unreliable_fraction=0.3, per_class=per_class).reliable
            truth, c, there = target[:, region].long(), old[decoder, region], seen[decoder, region]
            expected.append(reliability_contrastive_loss(f, truth, ~reliable, c, there, temperature=0.1))
            mean, found = class_prototypes(f, truth, reliable, 2)
            moved = functional.normalize(torch.where(there[:, None], 0.99 * c + 0.01 * mean, mean), dim=1)
            new[decoder, region] = torch.where(found[:, None], moved, c)
            present[decoder, region] = there | found
        assert loss.last_values is not None
        assert loss.last_values[TERMS.index("contrastive")].item() == pytest.approx(torch.stack(expected).mean().item())
        assert total.isfinite()
        torch.testing.assert_close(loss.prototypes, new)
        assert torch.equal(loss.present, present)
        old, seen = new, present
    assert sum(value > 0 for value in expected) == len(expected)
