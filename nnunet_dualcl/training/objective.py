"""The total of a step: nnU-Net's loss for both decoders, and the terms of the method on top.

``total = L_s,a + L_s,b + w_reg L_reg + r(t) (w_u L_u + w_c L_c)`` with the symbols of ``docs/method.md``.
Each half of the batch, labeled and unlabeled, adds its own part, so the halves may also come one after the other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, TypeVar, cast

import torch
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from nnunetv2.utilities.helpers import softmax_helper_dim1
from torch import nn
from torch.nn import functional

from nnunet_dualcl.config import DualCLConfig
from nnunet_dualcl.errors import DualCLError
from nnunet_dualcl.losses import (
    assertion_disagreement,
    class_label_loss,
    class_prototypes,
    is_class,
    mean_over_ranks,
    mutual_verification_loss,
    recomputed,
    reliability_contrastive_loss,
    shared_between_ranks,
    sigmoid_rampup,
    total_over_ranks,
)
from nnunet_dualcl.networks import DualOutput
from nnunet_dualcl.training.problems import Problems
from nnunet_dualcl.training.pseudo_labels import PseudoLabels, pseudo_labels_of
from nnunet_dualcl.training.sampling import at_voxels, draw_voxels

_OF_TWO_DECODERS = ("supervised_b", "disagreement_share", "winner_is_a")
"""Terms and observations that are NaN where one decoder trains."""

_Function = TypeVar("_Function", bound=Callable[..., Any])


class Half(NamedTuple):
    """Half of a batch, n patches, as each decoder sees it.

    Attributes:
        logits: (n, heads, *) of each decoder at full resolution, with gradient; one entry where one decoder trains.
            Levels of deep supervision are in ``supervised`` alone.
        features: (n, D, *) that each decoder's segmentation layer reads; empty where one decoder trains.
        supervised: nnU-Net's loss of each decoder; empty for the unlabeled half.
        truth: (n, P, *) classes of P problems, -1 where nobody annotated; None for the unlabeled half.
        taught: what ``teacher_labels`` of the trainer gave, mixed as the patches are; None where there is no teacher
            and at most steps for the labeled half.
    """

    logits: list[torch.Tensor]
    features: list[torch.Tensor]
    supervised: list[torch.Tensor]
    truth: torch.Tensor | None
    taught: PseudoLabels | None


class _Sample(NamedTuple):
    """N voxels of each patch of a half: embeddings (n, D, N) of each of S decoders and their own labels (S, n, P, N),
    the labels (n, P, N) that are truth or given, and where those can be trusted."""

    embeddings: list[torch.Tensor]
    predicted: PseudoLabels
    labels: torch.Tensor
    trusted: torch.Tensor


class SemiSupervisedLoss(nn.Module):
    """Stands where nnU-Net keeps its loss; called by nnU-Net's own training and validation steps.

    An output longer than its target holds the labeled half first; an empty target comes with the unlabeled half alone.
    An output of one decoder outside of semi-supervised training (validation, stock training) gets nnU-Net's loss
    unchanged. Once all halves of a step were seen, :attr:`last_values` holds one detached number for each name in
    ``terms + observations`` and the prototypes have moved.

    A method adds a term by its name in :attr:`terms`, its weight in :attr:`weights` and its value in :meth:`part`.
    """

    terms: ClassVar[tuple[str, ...]] = ("supervised_a", "supervised_b", "verification", "pseudo_label", "contrastive")
    """Names of what adds up to the total, as they are logged."""

    observations: ClassVar[tuple[str, ...]] = (
        "reliable_share",
        "disagreement_share",
        "pseudo_label_accuracy",
        "pseudo_label_accuracy_foreground",
        "winner_is_a",
    )
    """Seen at the sampled voxels, not part of the total. The accuracies compare the labels of whoever teaches (the
    teacher, or the winner) at its reliable voxels of the *labeled* half with the truth there; foreground: voxels where
    truth or label is not background. NaN at a step in which the teacher was not asked,
    or met no such voxel."""

    prototypes: torch.Tensor
    present: torch.Tensor

    def __init__(
        self,
        supervised: nn.Module,
        config: DualCLConfig,
        *,
        problems: Problems,
        total_steps: int,
        batch_dice: bool = False,
        distributed: bool = False,
        compiled: bool = False,
    ) -> None:
        """Wrap nnU-Net's loss.

        Args:
            supervised: nnU-Net's loss with its deep supervision.
            config: weights and options.
            problems: what heads and targets mean.
            total_steps: length of training in steps; the ramp and the unreliable fraction follow it.
            batch_dice: whether L_u's Dice pools the patches of a batch, as the plans say of nnU-Net's own.
            distributed: count over all ranks of a distributed training.
            compiled: run the terms through torch.compile, as nnU-Net does with its Dice. They are many small
                operations, each of which takes a GPU longer to start than to run.
        """
        super().__init__()

        def prepared(function: _Function) -> _Function:
            return cast(_Function, torch.compile(function, dynamic=False)) if compiled else function

        self.supervised = supervised
        self.config = config
        self.problems = problems
        self.total_steps = total_steps
        self.distributed = distributed
        self.compiled = compiled
        self.num_halves = 2 if config.uses_unlabeled else 1
        self.step = 0
        self.taught: PseudoLabels | None = None
        """The teacher's labels of the unlabeled half, set before a step; None where the decoders teach."""
        self.taught_labeled: PseudoLabels | None = None
        """The teacher's labels of the labeled half, where they are to be compared with the truth or stand in for it."""
        self.last_values: torch.Tensor | None = None
        self.dice = MemoryEfficientSoftDiceLoss(
            softmax_helper_dim1, batch_dice=batch_dice, do_bg=False, smooth=1e-5, ddp=distributed
        )
        self._assertion_disagreement = prepared(assertion_disagreement)
        self._class_label_loss = prepared(class_label_loss)
        self._class_prototypes = prepared(class_prototypes)
        self._dice_loss = prepared(self._compute_dice)
        self._mutual_verification_loss = prepared(mutual_verification_loss)
        self._pseudo_labels_of = prepared(pseudo_labels_of)
        self._reliability_contrastive_loss = prepared(reliability_contrastive_loss)
        # one set of prototypes for each decoder and problem (2, P, K, D); D is known from the first features
        self.register_buffer("prototypes", torch.zeros(2, problems.count, problems.num_classes, 0))
        self.register_buffer("present", torch.zeros(2, problems.count, problems.num_classes, dtype=torch.bool))
        self._a_wins = torch.tensor(True)
        self.values: dict[str, torch.Tensor] = {}
        """Terms and observations of the step so far, detached, by name."""
        self._samples: list[_Sample] = []
        self._halves_seen = 0

    @property
    def ramp(self) -> float:
        """r(t) at the current step, from nearly 0 to 1 over ``rampup_fraction`` of the training."""
        return sigmoid_rampup(self.step, self.config.rampup_fraction * self.total_steps)

    @property
    def weights(self) -> dict[str, float]:
        """Weight of each term at the current step."""
        config, ramp = self.config, self.ramp
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
        """Total of the halves in a training step's output, or nnU-Net's loss; a scalar."""
        dual = isinstance(output, DualOutput)
        if not dual and not (self.config.uses_unlabeled and torch.is_grad_enabled()):
            loss: torch.Tensor = self.supervised(output, target)
            return loss
        branches = [output.logits_a, output.logits_b] if dual else [output]
        features = [output.features_a, output.features_b] if dual else []
        num_labeled = 0 if isinstance(target, list) and not target else _first(target).shape[0]
        num_patches = _first(branches[0]).shape[0]
        total = _first(branches[0]).new_zeros((), dtype=torch.float32)

        def outputs_of(part: slice) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
            return [_first(branch)[part] for branch in branches], [branch[part] for branch in features]

        with shared_between_ranks(self.distributed):
            if num_labeled > 0:
                self._begin_step()
                supervised = [self.supervised(_head(branch, num_labeled), target) for branch in branches]
                truth = self.problems.truth(_first(target))
                labeled = outputs_of(slice(num_labeled))
                total = total + self._total(Half(*labeled, supervised, truth, self.taught_labeled))
            if num_patches > num_labeled:
                total = total + self._total(Half(*outputs_of(slice(num_labeled, None)), [], None, self.taught))
            if self.distributed:
                # DDP waits for a gradient of every parameter, also of deep supervision that has no part in this
                levels = [level for branch in branches if isinstance(branch, list) for level in branch]
                total = torch.stack([total, *(level[:0].sum().float() for level in levels)]).sum()
            if self._halves_seen >= self.num_halves:
                self._finish_step()
        return total

    def _total(self, half: Half) -> torch.Tensor:
        """What a half adds to the total; its terms are kept for the log."""
        weights, parts = self.weights, self.part(half)
        if not parts.keys() <= weights.keys() == set(self.terms):
            raise DualCLError(
                f"{type(self).__name__}: part gives {', '.join(parts)}, but terms names {', '.join(self.terms)} and "
                f"weights {', '.join(weights)}. Name each term of part in both."
            )
        for name, term in parts.items():
            self.values[name] = self.values.get(name, 0) + term.detach()
        self._halves_seen += 1
        nothing = half.logits[0].new_zeros((), dtype=torch.float32)
        return torch.stack([nothing, *(weights[name] * term for name, term in parts.items())]).sum()

    def part(self, half: Half) -> dict[str, torch.Tensor]:
        """What a half of the batch adds: a scalar for each term that acts on it, before its weight.

        Called once for the labeled and once for the unlabeled half, under autocast, with ``low_memory`` in two passes
        with a backward pass between them, and without the other half in either case. A term that both halves have adds
        up.
        """
        weights = self.weights
        terms = dict(zip(("supervised_a", "supervised_b"), half.supervised, strict=False))
        if half.supervised:
            a, b = (total_over_ranks(half.supervised[index].detach()) for index in (0, -1))
            self._a_wins = a <= b
        if weights["verification"] > 0 and (parts := self._verification(half)):
            terms["verification"] = torch.stack(parts).sum() / self.problems.count
        if weights["pseudo_label"] > 0 and (half.truth is None or self.problems.has_ignore):
            terms["pseudo_label"] = self._pseudo_labels(half)
        sample = self._sample(half)
        if weights["contrastive"] > 0:
            terms["contrastive"] = self._contrast(sample) / self.num_halves
        self._samples.append(sample)
        return terms

    # ---- terms

    def _verification(self, half: Half) -> list[torch.Tensor]:
        acts_on, confidence = self.config.verification_on, self.config.verification_confidence
        parts = []
        for index, (a, b) in enumerate(zip(*map(self.problems.logits, half.logits), strict=True)):
            truth = None if half.truth is None else half.truth[:, index]
            if truth is not None and acts_on != "unlabeled":
                parts.append(self._mutual_verification_loss(a, b, confidence=confidence, target=truth))
            if acts_on != "labeled" and (truth is None or self.problems.has_ignore):
                where = None if truth is None else truth < 0
                parts.append(self._mutual_verification_loss(a, b, confidence=confidence, where=where))
        return parts

    def pseudo_labels(self, logits: torch.Tensor, *, groups: int = 1) -> PseudoLabels:
        """Labels (B, P, *) of (B, heads, *) logits and where they are reliable at the current step, by quantiles of
        each of the ``groups`` parts of the batch."""
        per_class = self.config.reliability == "per_class"
        alpha = self.unreliable_fraction
        fraction = torch.full((), alpha, device=logits.device) if self.compiled else alpha
        with shared_between_ranks(self.distributed):
            found = [
                self._pseudo_labels_of(problem, unreliable_fraction=fraction, per_class=per_class, groups=groups)
                for problem in self.problems.logits(logits)
            ]
        return PseudoLabels(*(torch.stack(parts, 1) for parts in zip(*found, strict=True)))

    def taught_labels(self, logits: torch.Tensor) -> PseudoLabels:
        """Labels (B, P, *) that a teacher's (B, heads, *) logits give, and the voxels at which L_u takes them."""
        if self.config.pseudo_label_on == "reliable":
            return self.pseudo_labels(logits)
        labels = torch.stack([problem.max(1).indices for problem in self.problems.logits(logits.detach())], 1)
        return PseudoLabels(labels, torch.ones_like(labels, dtype=torch.bool))

    def _pseudo_labels(self, half: Half) -> torch.Tensor:
        unknown = None if half.truth is None else half.truth < 0
        if self.config.pseudo_label_source == "teacher":
            assert half.taught is not None
            return torch.stack([self._toward(student, half.taught, unknown) for student in half.logits]).sum()
        logits_a, logits_b = half.logits
        if self.config.pseudo_label_source == "cross":
            from_a, from_b = self.taught_labels(logits_a), self.taught_labels(logits_b)
            return self._toward(logits_a, from_b, unknown) + self._toward(logits_b, from_a, unknown)
        winner = torch.where(self._a_wins, logits_a, logits_b)
        loser = torch.where(self._a_wins, logits_b, logits_a)
        return self._toward(loser, self.taught_labels(winner), unknown)

    def _toward(self, student: torch.Tensor, taught: PseudoLabels, unknown: torch.Tensor | None) -> torch.Tensor:
        reliable = taught.reliable if unknown is None else taught.reliable & unknown
        losses = [
            self._label_loss(logits, taught.labels[:, index], reliable[:, index])
            for index, logits in enumerate(self.problems.logits(student))
        ]
        return torch.stack(losses).mean()

    def _label_loss(self, logits: torch.Tensor, labels: torch.Tensor, reliable: torch.Tensor) -> torch.Tensor:
        loss = self._class_label_loss(logits, labels, reliable)
        if self.config.pseudo_label_loss == "ce":
            return loss
        known = reliable & is_class(labels, self.problems.num_classes)
        labels = torch.where(known, labels, 0)
        return loss + 1 + self._minus_dice(logits, labels.unsqueeze(1), known.unsqueeze(1))

    def _minus_dice(self, logits: torch.Tensor, labels: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
        # nnU-Net's Dice of a distributed training talks to the other ranks, which a second computation must not
        if self.distributed:
            return self._dice_loss(logits, labels, known)
        return recomputed(self._dice_loss, logits, labels, known)

    def _compute_dice(self, logits: torch.Tensor, labels: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
        value: torch.Tensor = self.dice(logits.float(), labels, loss_mask=known.float())
        return value

    def _contrast(self, sample: _Sample) -> torch.Tensor:
        losses = [
            self._reliability_contrastive_loss(
                embeddings,
                sample.labels[:, problem],
                ~sample.predicted.reliable[decoder, :, problem],
                self.prototypes[decoder, problem],
                self.present[decoder, problem],
                temperature=self.config.contrastive_temperature,
            )
            for decoder, embeddings in enumerate(sample.embeddings)
            for problem in range(self.problems.count)
        ]
        return torch.stack(losses).mean()

    # ---- a few thousand voxels say what millions would

    def _sample(self, half: Half) -> _Sample:
        positions = draw_voxels(half.logits[0], self.config.contrastive_samples)
        embeddings = [at_voxels(branch, positions) for branch in half.features]
        if embeddings and self.prototypes.shape[-1] == 0:
            self.prototypes = self.prototypes.new_zeros(*self.prototypes.shape[:-1], embeddings[0].shape[1])
        with torch.no_grad():
            seen = [at_voxels(branch, positions).float() for branch in half.logits]
            both = self.pseudo_labels(torch.cat(seen), groups=len(seen))
            predicted = PseudoLabels(*(part.unflatten(0, (len(seen), -1)) for part in both))
            given: PseudoLabels | None = None
            if not self.config.uses_teacher:
                given = PseudoLabels(*(torch.where(self._a_wins, part[0], part[-1]) for part in predicted))
                if self.config.pseudo_label_on == "all":  # of what is given; L_c keeps the unreliable voxels
                    given = given._replace(reliable=torch.ones_like(given.reliable))
            elif half.taught is not None:
                given = PseudoLabels(*(_at(part, positions) for part in half.taught))
            truth = None if half.truth is None else _at(half.truth, positions)
            self._observe(seen, predicted, given, truth)
            agreed = predicted.labels[0] == predicted.labels[-1]
            if given is None:  # the teacher was not asked, so all is known here
                assert truth is not None
                return _Sample(embeddings, predicted, truth, truth >= 0)
            agreed &= given.labels == predicted.labels[0]
            if truth is None:
                return _Sample(embeddings, predicted, given.labels, agreed)
            known = truth >= 0
            return _Sample(embeddings, predicted, torch.where(known, truth, given.labels), known | agreed)

    def _begin_step(self) -> None:
        self._samples, self.values, self._halves_seen = [], {}, 0

    @torch.no_grad()
    def _finish_step(self) -> None:
        device = self.prototypes.device
        if self.weights["contrastive"] > 0 and self._samples:
            self._move_prototypes()
        nothing, meaningless = torch.zeros((), device=device), torch.full((), torch.nan, device=device)
        values = {**self.values, "winner_is_a": self._a_wins.to(device)}
        if not self.config.second_decoder:
            values |= dict.fromkeys(_OF_TWO_DECODERS, meaningless)
        terms, observations = (
            torch.stack([values.get(name, nothing).float() for name in names])
            for names in (self.terms, self.observations)
        )
        self.last_values = torch.cat((mean_over_ranks(terms), observations))
        self._begin_step()

    def _move_prototypes(self) -> None:
        momentum, classes = self.config.prototype_momentum, self.problems.num_classes
        halves = self._samples
        decoders = len(halves[0].embeddings)
        embeddings = torch.cat([half.embeddings[index] for index in range(decoders) for half in halves])
        counts = torch.cat([half.predicted.reliable & half.trusted for half in halves], 1).flatten(0, 1)
        # in one go: what is class k to the first decoder is class K + k to the second
        offsets = classes * torch.arange(decoders, device=embeddings.device).view(-1, 1, 1, 1)
        labels = (torch.cat([half.labels for half in halves]) + offsets).flatten(0, 1)
        parts = [
            self._class_prototypes(embeddings, labels[:, problem], counts[:, problem], decoders * classes)
            for problem in range(self.problems.count)
        ]
        new, found = (
            torch.stack(part).unflatten(1, (decoders, classes)).transpose(0, 1) for part in zip(*parts, strict=True)
        )
        mixed = torch.where(self.present[..., None], momentum * self.prototypes + (1 - momentum) * new, new)
        # new tensors: the graph of this step still refers to the old ones
        self.prototypes = torch.where(found[..., None], functional.normalize(mixed, dim=-1), self.prototypes)
        self.present = self.present | found

    def _observe(
        self,
        logits: list[torch.Tensor],
        predicted: PseudoLabels,
        given: PseudoLabels | None,
        truth: torch.Tensor | None,
    ) -> None:
        if truth is None or self.num_halves == 1:
            pairs = zip(self.problems.logits(logits[0]), self.problems.logits(logits[-1]), strict=True)
            confidence = self.config.verification_confidence
            disagree = [self._assertion_disagreement(a, b, confidence=confidence).float().mean() for a, b in pairs]
            self.values["disagreement_share"] = torch.stack(disagree).mean()
            self.values["reliable_share"] = (predicted.reliable[0] if given is None else given.reliable).float().mean()
        if truth is not None:
            self.values.update(self._accuracies(given, truth))

    def _accuracies(self, judged: PseudoLabels | None, truth: torch.Tensor) -> dict[str, torch.Tensor]:
        names = ("pseudo_label_accuracy", "pseudo_label_accuracy_foreground")
        if judged is None:
            return {name: torch.full((), torch.nan, device=truth.device) for name in names}
        among = judged.reliable & is_class(truth, self.problems.num_classes)
        right = judged.labels == truth
        foreground = among & ((truth > 0) | (judged.labels > 0))
        return dict(zip(names, (_share(right, among), _share(right, foreground)), strict=True))

    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        """Restore prototypes saved by ``state_dict``; their width follows the saved ones."""
        # copies: a checkpoint may be mapped into memory, and its file be replaced
        self.prototypes = state["prototypes"].to(self.prototypes.device, copy=True)
        self.present = state["present"].to(self.present.device, copy=True)


def _first(levels: list[torch.Tensor] | torch.Tensor) -> torch.Tensor:
    """Full resolution of a deep supervision list, or the tensor itself."""
    return levels[0] if isinstance(levels, list | tuple) else levels


def _head(levels: list[torch.Tensor] | torch.Tensor, count: int) -> list[torch.Tensor] | torch.Tensor:
    return [level[:count] for level in levels] if isinstance(levels, list | tuple) else levels[:count]


def _at(volume: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """(n, P, *) and N flat positions -> (n, P, N)."""
    return volume.flatten(2)[:, :, positions]


def _share(of: torch.Tensor, among: torch.Tensor) -> torch.Tensor:
    """Share of ``among`` where ``of`` holds; NaN for an empty set, which the mean of an epoch leaves out."""
    return (of & among).sum() / among.sum()
