"""The total of a step: nnU-Net's loss for both decoders, and the terms of the method on top.

``total = L_s,a + L_s,b + w_reg L_reg + r(t) (w_u L_u + w_c L_c)`` with the symbols of ``docs/method.md``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from nnunet_dualcl.config import DualCLConfig
from nnunet_dualcl.losses import (
    assertion_disagreement,
    class_prototypes,
    mutual_verification_loss,
    normalized_entropy,
    pseudo_label_loss,
    reliability_contrastive_loss,
    reliable_mask,
    sigmoid_rampup,
)
from nnunet_dualcl.networks import DualOutput
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
"""Seen at the sampled voxels, not part of the total. The accuracies compare the winner's labels at its reliable
voxels of the *labeled* half with the truth there; foreground: voxels where truth or label is not background."""


class SemiSupervisedLoss(nn.Module):
    """Stands where nnU-Net keeps its loss; called by nnU-Net's own training and validation steps.

    A :class:`DualOutput` (training mode) holds the labeled half first; ``target`` is as long as that half. Any other
    output (validation) gets nnU-Net's loss unchanged. After each training call :attr:`last_values` holds one detached
    number for each name in ``TERMS + OBSERVATIONS``.
    """

    prototypes: torch.Tensor
    present: torch.Tensor

    def __init__(self, supervised: nn.Module, config: DualCLConfig, *, num_classes: int, total_steps: int) -> None:
        """Wrap nnU-Net's loss.

        Args:
            supervised: nnU-Net's loss with its deep supervision.
            config: weights and options.
            num_classes: segmentation heads C.
            total_steps: length of training in steps; the ramp and the unreliable fraction follow it.
        """
        super().__init__()
        self.supervised = supervised
        self.config = config
        self.num_classes = num_classes
        self.total_steps = total_steps
        self.step = 0
        self.last_values: torch.Tensor | None = None
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
        if not isinstance(output, DualOutput):
            loss: torch.Tensor = self.supervised(output, target)
            return loss
        num_labeled = _first(target).shape[0]
        terms = {
            "supervised_a": self.supervised(_head(output.logits_a, num_labeled), target),
            "supervised_b": self.supervised(_head(output.logits_b, num_labeled), target),
        }
        logits_a, logits_b = _first(output.logits_a), _first(output.logits_b)
        truth = _first(target)[:, 0].long()
        a_wins = terms["supervised_a"].detach() <= terms["supervised_b"].detach()
        weights = self.weights
        if weights["verification"] > 0:
            terms["verification"] = self._verification(logits_a, logits_b, truth)
        if weights["pseudo_label"] > 0:
            terms["pseudo_label"] = self._pseudo_labels(logits_a[num_labeled:], logits_b[num_labeled:], a_wins)
        contrastive, observations = self._at_sampled_voxels(output, truth, a_wins)
        if weights["contrastive"] > 0:
            terms["contrastive"] = contrastive
        total = torch.stack([weights[name] * term for name, term in terms.items()]).sum()
        values = {**{name: term.detach() for name, term in terms.items()}, **observations}
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

    def _pseudo_labels(self, logits_a: torch.Tensor, logits_b: torch.Tensor, a_wins: torch.Tensor) -> torch.Tensor:
        if self.config.pseudo_label_source == "cross":
            return self._taught(logits_a, by=logits_b) + self._taught(logits_b, by=logits_a)
        winner = torch.where(a_wins, logits_a, logits_b)
        loser = torch.where(a_wins, logits_b, logits_a)
        return self._taught(loser, by=winner)

    def _taught(self, student: torch.Tensor, *, by: torch.Tensor) -> torch.Tensor:
        teacher = by.detach()
        return pseudo_label_loss(student, teacher, self._reliable(teacher))

    @torch.no_grad()
    def _reliable(self, logits: torch.Tensor) -> torch.Tensor:
        probs = torch.softmax(logits.float(), 1)
        per_class = self.config.reliability == "per_class"
        return reliable_mask(
            normalized_entropy(probs),
            unreliable_fraction=self.unreliable_fraction,
            labels=probs.max(1).indices if per_class else None,
            num_classes=self.num_classes if per_class else None,
        )

    def _at_sampled_voxels(
        self, output: DualOutput, truth: torch.Tensor, a_wins: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """L_c and the observations, both at a sample: a few thousand voxels say what millions would."""
        num_labeled = truth.shape[0]
        positions = draw_voxels(_first(output.logits_a), self.config.contrastive_samples)
        with torch.no_grad():
            logits = [at_voxels(_first(branch), positions).float() for branch in (output.logits_a, output.logits_b)]
            predicted = [branch.max(1).indices for branch in logits]
            reliable = [self._reliable(branch) for branch in logits]
            truth_here = truth.flatten(1)[:, positions]
            winner = torch.where(a_wins, predicted[0], predicted[1])
            labels = torch.cat((truth_here, winner[num_labeled:]))
            trusted = predicted[0] == predicted[1]
            trusted[:num_labeled] = True
            observations = self._observations(logits, reliable, winner, truth_here, a_wins)
        if self.weights["contrastive"] == 0:
            return observations["winner_is_a"].new_zeros(()), observations
        losses = []
        for index, features in enumerate((output.features_a, output.features_b)):
            embeddings = at_voxels(features, positions)
            self._update_prototypes(index, embeddings, labels, reliable[index] & trusted)
            losses.append(
                reliability_contrastive_loss(
                    embeddings,
                    labels,
                    ~reliable[index],
                    self.prototypes[index],
                    self.present[index],
                    temperature=self.config.contrastive_temperature,
                )
            )
        return torch.stack(losses).mean(), observations

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

    def _observations(
        self,
        logits: list[torch.Tensor],
        reliable: list[torch.Tensor],
        winner: torch.Tensor,
        truth: torch.Tensor,
        a_wins: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        num_labeled = truth.shape[0]
        unlabeled = slice(num_labeled, None) if logits[0].shape[0] > num_labeled else slice(None)
        disagreement = assertion_disagreement(
            logits[0][unlabeled], logits[1][unlabeled], confidence=self.config.verification_confidence
        )
        winner_reliable = torch.where(a_wins, reliable[0], reliable[1])
        label = winner[:num_labeled]
        judged = winner_reliable[:num_labeled] & (truth >= 0) & (truth < self.num_classes)
        return {
            "reliable_share": winner_reliable[unlabeled].float().mean(),
            "disagreement_share": disagreement.float().mean(),
            "pseudo_label_accuracy": _share(label == truth, judged),
            "pseudo_label_accuracy_foreground": _share(label == truth, judged & ((truth > 0) | (label > 0))),
            "winner_is_a": a_wins.float(),
        }

    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        """Restore prototypes saved by ``state_dict``; their width follows the saved ones."""
        self.prototypes = state["prototypes"].to(self.prototypes.device)
        self.present = state["present"].to(self.present.device)


def _first(levels: list[torch.Tensor] | torch.Tensor) -> torch.Tensor:
    """Full resolution of a deep supervision list, or the tensor itself."""
    return levels[0] if isinstance(levels, list | tuple) else levels


def _head(levels: list[torch.Tensor] | torch.Tensor, count: int) -> list[torch.Tensor] | torch.Tensor:
    return [level[:count] for level in levels] if isinstance(levels, list | tuple) else levels[:count]


def _share(of: torch.Tensor, among: torch.Tensor) -> torch.Tensor:
    """Share of ``among`` where ``of`` holds; 0 for an empty set."""
    return (of & among).sum() / among.sum().clamp(min=1)
