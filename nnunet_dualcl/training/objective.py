"""The total of a step: nnU-Net's loss for both decoders, and the terms of the method on top.

``total = L_s,a + L_s,b + w_reg L_reg + r(t) (w_u L_u + w_c L_c)`` with the symbols of ``docs/method.md``.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from nnunetv2.utilities.helpers import softmax_helper_dim1
from torch import nn
from torch.nn import functional

from nnunet_dualcl.config import DualCLConfig
from nnunet_dualcl.losses import (
    assertion_disagreement,
    class_label_loss,
    class_prototypes,
    is_class,
    mutual_verification_loss,
    reliability_contrastive_loss,
    sigmoid_rampup,
)
from nnunet_dualcl.networks import DualOutput
from nnunet_dualcl.training.pseudo_labels import PseudoLabels, pseudo_labels_of
from nnunet_dualcl.training.sampling import at_voxels, draw_voxels

TERMS = ("supervised_a", "supervised_b", "verification", "pseudo_label", "contrastive")
"""Unweighted terms of the total."""

OBSERVATIONS = (
    "reliable_share",
    "disagreement_share",
    "pseudo_label_accuracy",
    "pseudo_label_accuracy_foreground",
    "winner_is_a",
)
"""Seen at the sampled voxels, not part of the total. The accuracies compare the labels of whoever teaches (the
teacher, or the winner) at its reliable voxels of the *labeled* half with the truth there; foreground: voxels where
truth or label is not background. NaN at a step in which the teacher was not asked."""


class _Sample(NamedTuple):
    """N voxels of each patch: logits and labels of each decoder, labels given to the unlabeled half, truth."""

    positions: torch.Tensor
    logits: list[torch.Tensor]
    predicted: list[PseudoLabels]
    given: PseudoLabels
    judged: PseudoLabels | None
    truth: torch.Tensor
    trusted: torch.Tensor


class SemiSupervisedLoss(nn.Module):
    """Stands where nnU-Net keeps its loss; called by nnU-Net's own training and validation steps.

    An output of both halves (training) holds the labeled one first; ``target`` is as long as that half. An output of
    decoder A as long as the target (validation, stock training) gets nnU-Net's loss unchanged. After each other call
    :attr:`last_values` holds one detached number for each name in ``TERMS + OBSERVATIONS``.
    """

    prototypes: torch.Tensor
    present: torch.Tensor

    def __init__(
        self,
        supervised: nn.Module,
        config: DualCLConfig,
        *,
        num_classes: int,
        total_steps: int,
        batch_dice: bool = False,
    ) -> None:
        """Wrap nnU-Net's loss.

        Args:
            supervised: nnU-Net's loss with its deep supervision.
            config: weights and options.
            num_classes: segmentation heads C.
            total_steps: length of training in steps; the ramp and the unreliable fraction follow it.
            batch_dice: whether L_u's Dice pools the patches of a batch, as the plans say of nnU-Net's own.
        """
        super().__init__()
        self.supervised = supervised
        self.config = config
        self.num_classes = num_classes
        self.total_steps = total_steps
        self.step = 0
        self.taught: PseudoLabels | None = None
        """The teacher's labels of the unlabeled half, set before a step; None where the decoders teach."""
        self.judged: PseudoLabels | None = None
        """The teacher's labels of the labeled half, where they are to be compared with the truth."""
        self.last_values: torch.Tensor | None = None
        self.dice = MemoryEfficientSoftDiceLoss(
            softmax_helper_dim1, batch_dice=batch_dice, do_bg=False, smooth=1e-5, ddp=False
        )
        # one set of prototypes a decoder (2, C, D); D is known from the first features
        self.register_buffer("prototypes", torch.zeros(2, num_classes, 0))
        self.register_buffer("present", torch.zeros(2, num_classes, dtype=torch.bool))

    @property
    def weights(self) -> dict[str, float]:
        """Weight of each term at the current step."""
        config = self.config
        ramp = sigmoid_rampup(self.step, config.rampup_fraction * self.total_steps)
        return {
            "supervised_a": 1.0,
            "supervised_b": 1.0,
            "verification": config.verification_weight,
            "pseudo_label": ramp * config.pseudo_label_weight,
            "contrastive": ramp * config.contrastive_weight,
        }

    @property
    def unreliable_fraction(self) -> float:
        """Share of voxels called unreliable at the current step."""
        start, end = self.config.unreliable_fraction_start, self.config.unreliable_fraction_end
        return start + (end - start) * min(1.0, self.step / self.total_steps)

    def forward(self, output: Any, target: Any) -> torch.Tensor:
        """Total of a training step, or nnU-Net's loss in validation; a scalar."""
        num_labeled = _first(target).shape[0]
        dual = isinstance(output, DualOutput)
        branches = [output.logits_a, output.logits_b] if dual else [output]
        if not dual and _first(output).shape[0] == num_labeled:
            loss: torch.Tensor = self.supervised(output, target)
            return loss
        supervised = [self.supervised(_head(branch, num_labeled), target) for branch in branches]
        terms = dict(zip(("supervised_a", "supervised_b"), supervised, strict=False))
        logits = [_first(branch) for branch in branches]
        truth = _first(target)[:, 0].long()
        a_wins = supervised[0].detach() <= supervised[-1].detach()
        weights = self.weights
        if weights["verification"] > 0:
            terms["verification"] = self._verification(logits[0], logits[1], truth)
        if weights["pseudo_label"] > 0:
            terms["pseudo_label"] = self._pseudo_labels([branch[num_labeled:] for branch in logits], a_wins)
        sample = self._sample(logits, truth, a_wins)
        if weights["contrastive"] > 0:
            terms["contrastive"] = self._contrast([output.features_a, output.features_b], sample)
        total = torch.stack([weights[name] * term for name, term in terms.items()]).sum()
        values = {**{name: term.detach() for name, term in terms.items()}, **self._observations(sample, a_wins)}
        nothing = total.new_zeros(())
        self.last_values = torch.stack([values.get(name, nothing).float() for name in TERMS + OBSERVATIONS])
        return total

    def _verification(self, logits_a: torch.Tensor, logits_b: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        num_labeled, acts_on = truth.shape[0], self.config.verification_on
        confidence = self.config.verification_confidence
        halves = []
        if acts_on != "unlabeled":
            halves.append(
                mutual_verification_loss(
                    logits_a[:num_labeled], logits_b[:num_labeled], confidence=confidence, target=truth
                )
            )
        if acts_on != "labeled" and logits_a.shape[0] > num_labeled:
            halves.append(
                mutual_verification_loss(logits_a[num_labeled:], logits_b[num_labeled:], confidence=confidence)
            )
        return torch.stack(halves).sum()

    def pseudo_labels(self, logits: torch.Tensor) -> PseudoLabels:
        """Labels of (B, C, *) logits and where they are reliable at the current step."""
        return pseudo_labels_of(
            logits,
            unreliable_fraction=self.unreliable_fraction,
            per_class=self.config.reliability == "per_class",
        )

    def _pseudo_labels(self, logits: list[torch.Tensor], a_wins: torch.Tensor) -> torch.Tensor:
        if self.taught is not None:
            return torch.stack([self._toward(student, self.taught) for student in logits]).sum()
        logits_a, logits_b = logits
        if self.config.pseudo_label_source == "cross":
            from_a, from_b = self.pseudo_labels(logits_a), self.pseudo_labels(logits_b)
            return self._toward(logits_a, from_b) + self._toward(logits_b, from_a)
        winner = torch.where(a_wins, logits_a, logits_b)
        loser = torch.where(a_wins, logits_b, logits_a)
        return self._toward(loser, self.pseudo_labels(winner))

    def _toward(self, student: torch.Tensor, taught: PseudoLabels) -> torch.Tensor:
        loss = class_label_loss(student, taught.labels, taught.reliable)
        if self.config.pseudo_label_loss == "ce":
            return loss
        known = taught.reliable & is_class(taught.labels, self.num_classes)
        labels = torch.where(known, taught.labels, 0)
        dice: torch.Tensor = self.dice(student.float(), labels.unsqueeze(1), loss_mask=known.unsqueeze(1).float())
        return loss + 1 + dice  # nnU-Net's Dice loss is minus the Dice

    @torch.no_grad()
    def _sample(self, logits: list[torch.Tensor], truth: torch.Tensor, a_wins: torch.Tensor) -> _Sample:
        """What L_c and the observations look at: a few thousand voxels say what millions would."""
        num_labeled = truth.shape[0]
        positions = draw_voxels(logits[0], self.config.contrastive_samples)
        seen = [at_voxels(branch, positions).float() for branch in logits]
        predicted = [self.pseudo_labels(branch) for branch in seen]
        a, b = predicted[0], predicted[-1]
        winner = PseudoLabels(*(torch.where(a_wins, *pair) for pair in zip(a, b, strict=True)))
        given = PseudoLabels(*(part[num_labeled:] for part in winner))
        judged: PseudoLabels | None = PseudoLabels(*(part[:num_labeled] for part in winner))
        if self.taught is not None:
            given = _sampled(self.taught, positions)
            judged = None if self.judged is None else _sampled(self.judged, positions)
        truth_here = truth.flatten(1)[:, positions]
        agreed = (a.labels == b.labels)[num_labeled:] & (given.labels == a.labels[num_labeled:])
        trusted = torch.cat((torch.ones_like(truth_here, dtype=torch.bool), agreed))
        return _Sample(positions, seen, predicted, given, judged, truth_here, trusted)

    def _contrast(self, features: list[torch.Tensor], sample: _Sample) -> torch.Tensor:
        labels = torch.cat((sample.truth, sample.given.labels))
        losses = []
        for index, (branch, predicted) in enumerate(zip(features, sample.predicted, strict=True)):
            embeddings = at_voxels(branch, sample.positions)
            self._update_prototypes(index, embeddings, labels, predicted.reliable & sample.trusted)
            losses.append(
                reliability_contrastive_loss(
                    embeddings,
                    labels,
                    ~predicted.reliable,
                    self.prototypes[index],
                    self.present[index],
                    temperature=self.config.contrastive_temperature,
                )
            )
        return torch.stack(losses).mean()

    @torch.no_grad()
    def _update_prototypes(
        self, index: int, embeddings: torch.Tensor, labels: torch.Tensor, mask: torch.Tensor
    ) -> None:
        new, present = class_prototypes(embeddings.detach(), labels, mask, self.num_classes)
        if self.prototypes.shape[2] == 0:
            self.prototypes = new.new_zeros(2, *new.shape)
            self.present = present.new_zeros(2, *present.shape)
        old, seen = self.prototypes[index], self.present[index]
        momentum = self.config.prototype_momentum
        mixed = torch.where(seen[:, None], momentum * old + (1 - momentum) * new, new)
        kept = torch.where(present[:, None], functional.normalize(mixed, dim=1), old)
        # new tensors, not in-place: the previous step's graph still refers to the old ones
        other = 1 - index
        pair = (kept, self.prototypes[other]) if index == 0 else (self.prototypes[other], kept)
        seen_pair = (seen | present, self.present[other]) if index == 0 else (self.present[other], seen | present)
        self.prototypes, self.present = torch.stack(pair), torch.stack(seen_pair)

    @torch.no_grad()
    def _observations(self, sample: _Sample, a_wins: torch.Tensor) -> dict[str, torch.Tensor]:
        num_labeled = sample.truth.shape[0]
        unlabeled = slice(num_labeled, None) if sample.trusted.shape[0] > num_labeled else slice(None)
        disagreement = assertion_disagreement(
            sample.logits[0][unlabeled], sample.logits[-1][unlabeled], confidence=self.config.verification_confidence
        )
        reliable = sample.given.reliable if sample.given.reliable.numel() else sample.predicted[0].reliable
        return {
            "reliable_share": reliable.float().mean(),
            "disagreement_share": disagreement.float().mean(),
            "winner_is_a": a_wins.float(),
            **self._accuracies(sample.judged, sample.truth),
        }

    def _accuracies(self, judged: PseudoLabels | None, truth: torch.Tensor) -> dict[str, torch.Tensor]:
        names = ("pseudo_label_accuracy", "pseudo_label_accuracy_foreground")
        if judged is None:
            return {name: torch.full((), torch.nan, device=truth.device) for name in names}
        among = judged.reliable & is_class(truth, self.num_classes)
        right = judged.labels == truth
        foreground = among & ((truth > 0) | (judged.labels > 0))
        return dict(zip(names, (_share(right, among), _share(right, foreground)), strict=True))

    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        """Restore prototypes saved by ``state_dict``; their width follows the saved ones."""
        self.prototypes = state["prototypes"].to(self.prototypes.device)
        self.present = state["present"].to(self.present.device)


def _first(levels: list[torch.Tensor] | torch.Tensor) -> torch.Tensor:
    """Full resolution of a deep supervision list, or the tensor itself."""
    return levels[0] if isinstance(levels, list | tuple) else levels


def _head(levels: list[torch.Tensor] | torch.Tensor, count: int) -> list[torch.Tensor] | torch.Tensor:
    return [level[:count] for level in levels] if isinstance(levels, list | tuple) else levels[:count]


def _sampled(labels: PseudoLabels, positions: torch.Tensor) -> PseudoLabels:
    return PseudoLabels(*(part.flatten(1)[:, positions] for part in labels))


def _share(of: torch.Tensor, among: torch.Tensor) -> torch.Tensor:
    """Share of ``among`` where ``of`` holds; 0 for an empty set."""
    return (of & among).sum() / among.sum().clamp(min=1)
