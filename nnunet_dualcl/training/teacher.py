"""A teacher whose weights follow the student's slowly."""

from __future__ import annotations

import copy
from typing import Any

import torch

from nnunet_dualcl.networks import DualDecoderUNet


class MovingAverageTeacher:
    """Copy of a network that averages its weights over steps and predicts without gradient.

    ``w <- d w + (1 - d) w_student`` after each step, with ``d = min(decay, 1 - 1 / (step + 1))``, so that the first
    steps, far from any good weights, are forgotten soon.

    Source: Mean Teacher (NeurIPS 2017, arXiv 1703.01780).
    """

    def __init__(self, student: DualDecoderUNet, decay: float, *, compiled: bool = False) -> None:
        """Copy ``student``; ``compiled``: predict through torch.compile, as the student trains on a GPU."""
        self.network = copy.deepcopy(student).requires_grad_(False).eval()
        self.network.set_deep_supervision(False)
        self.network.prediction = "mean"
        self.decay = decay
        self._predict = torch.compile(self._forward, dynamic=False) if compiled else self._forward

    def _forward(self, images: torch.Tensor) -> torch.Tensor:
        # compiled for itself: torch.compile takes the student's batch, of another size than the first one that it saw
        # at the same function, for one that changes, and writes slower code for the training
        logits: torch.Tensor = self.network(images)
        return logits

    @torch.no_grad()
    def logits(self, images: torch.Tensor) -> torch.Tensor:
        """(B, channels, *) -> (B, C, *), mean of both decoders."""
        return self._predict(images)

    @torch.no_grad()
    def update(self, student: DualDecoderUNet, step: int) -> None:
        """Move toward the student's weights after training step ``step`` (from 0)."""
        share = 1 - min(self.decay, 1 - 1 / (step + 1))
        ours: list[torch.Tensor] = list(self.network.parameters())
        torch._foreach_lerp_(ours, [weight.detach() for weight in student.parameters()], share)
        for buffer, theirs in zip(self.network.buffers(), student.buffers(), strict=True):
            buffer.copy_(theirs)

    def state_dict(self) -> dict[str, Any]:
        """Weights, for the checkpoint."""
        return dict(self.network.state_dict())

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave."""
        self.network.load_state_dict(state)
        self.network.prediction = "mean"
