"""nnU-Net's U-Net with a second decoder, on the same encoder or on one of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import nn
from torch.nn.modules.dropout import _DropoutNd
from torch.utils.checkpoint import checkpoint

from nnunet_dualcl.errors import DualCLError
from nnunet_dualcl.networks.interpolating_decoder import build_interpolating_decoder

Prediction = Literal["mean", "a"]
Network = Literal["a", "b"]
"""Encoder and decoder A, the network of the plans; or, of two whole networks, the other one."""


class DualOutput(NamedTuple):
    """What the network returns in training mode.

    ``logits_*``: one tensor (B, C, *) a deep supervision level, full resolution first; a single tensor when deep
    supervision is off. ``features_*``: (B, D, *) output of the last decoder stage, which the segmentation layer reads.
    """

    logits_a: list[torch.Tensor] | torch.Tensor
    logits_b: list[torch.Tensor] | torch.Tensor
    features_a: torch.Tensor
    features_b: torch.Tensor


PREFIX_B = "beside."
"""Beginning of the names, in a state dict, of whatever a stock network does not have."""
_IN_B = f"{PREFIX_B}seg_layers."


def check_layout(weights: Mapping[str, Any], source: object) -> None:
    """Refuse a state dict without branch B where this version looks for it.

    Raises:
        DualCLError: naming ``source``.
    """
    of_b = {name.removeprefix(_IN_B) for name in weights if name.startswith(PREFIX_B)}
    encoder_alone = any(name.startswith("encoder.") for name in of_b) and not has_network_b(weights)
    if not of_b or encoder_alone:
        raise DualCLError(
            f"{source} holds the second decoder or network as an older version of this package built it. Use that "
            "version to continue, predict with or export this training."
        )


def has_network_b(weights: Mapping[str, Any]) -> bool:
    """Whether a state dict holds two whole networks."""
    return any(name.startswith(f"{_IN_B}decoder.encoder.") for name in weights)


def weights_of(weights: Mapping[str, Any], network: Network) -> dict[str, Any]:
    """The part of a state dict that nnU-Net's own network has: encoder and decoder A, or, of two networks, B."""
    if network == "a":
        return {name: value for name, value in weights.items() if not name.startswith(PREFIX_B)}
    whole = ("encoder.", "decoder.")
    of_b = {name.removeprefix(_IN_B): value for name, value in weights.items() if name.startswith(_IN_B)}
    return {name: value for name, value in of_b.items() if name.startswith(whole)}


class _BranchB(nn.Module):
    """Decoder B, its encoder if it has one of its own, and what prediction uses of both decoders.

    Of a whole network, the names are those of nnU-Net's, which has its encoder below the decoder's name as well.
    """

    def __init__(self, decoder: nn.Module, encoder: nn.Module | None) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.prediction: Prediction = "mean"

    def get_extra_state(self) -> dict[str, str]:
        """Part of the state dict: what prediction uses."""
        return {"prediction": self.prediction}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`get_extra_state` gave."""
        self.prediction = cast(Prediction, state["prediction"])


class DualDecoderUNet(nn.Module):
    """Wraps a U-Net built by nnU-Net; keeps its names, so dropping what begins with :data:`PREFIX_B` leaves stock
    weights.

    In training mode ``forward`` returns a :class:`DualOutput` when ``second_decoder`` is on and decoder A's output
    when it is off. In evaluation mode it returns logits as a stock network does: the mean of both decoders' logits,
    or decoder A's alone, as ``prediction`` says. ``prediction`` travels in the state dict, so nnU-Net's own
    predictor honors it without knowing of it. Logits are averaged, as nnU-Net averages folds and mirrored views.

    nnU-Net's loader of pretrained weights demands every weight of a network but those below a name ``seg_layers``,
    which it leaves as they are. Branch B therefore lies below such a name: stock weights load into the rest.
    """

    def __init__(self, unet: nn.Module, *, second: nn.Module | None = None) -> None:
        """Take over encoder and decoder of ``unet``, and of ``second``.

        Args:
            unet: built by nnU-Net.
            second: another one of the same outputs, as encoder and decoder B; None: decoder B is an interpolating one
                on the encoder of ``unet``.

        Raises:
            DualCLError: a network has no encoder and U-Net decoder (Primus, for one).
        """
        super().__init__()
        self.encoder, self.decoder = _encoder_and_decoder(unet)
        if second is None:
            branch_b = _BranchB(build_interpolating_decoder(self.decoder, self.encoder), None)
            initialize = getattr(unet, "initialize", None)
            if initialize is not None:
                branch_b.apply(initialize)
        else:
            encoder_b, decoder_b = _encoder_and_decoder(second)
            branch_b = _BranchB(decoder_b, encoder_b)
        self.beside = nn.ModuleDict({"seg_layers": branch_b})
        self.second_decoder = True
        self.decoder_checkpointing = False
        for branch in (self.decoder, self.decoder_b):
            _last_layer(branch).register_forward_pre_hook(_keep_input)

    def forward(self, x: torch.Tensor) -> Any:
        """(B, channels, *) -> :class:`DualOutput` or logits; see the class."""
        skips = self.encoder(x)
        logits_a, features_a = self._decode(self.decoder, skips)
        if not self.second_decoder or (not self.training and self.prediction == "a"):
            return logits_a
        if self.encoder_b is not None:
            del skips  # of decoder A alone
            skips = self.encoder_b(x)
        logits_b, features_b = self._decode(self.decoder_b, skips)
        if self.training:
            return DualOutput(logits_a, logits_b, features_a, features_b)
        if isinstance(logits_a, list):
            return [(a + b) / 2 for a, b in zip(logits_a, logits_b, strict=True)]
        return (logits_a + logits_b) / 2

    def _decode(self, decoder: nn.Module, skips: list[torch.Tensor]) -> tuple[Any, torch.Tensor]:
        if self.decoder_checkpointing and torch.is_grad_enabled():
            result: tuple[Any, torch.Tensor] = checkpoint(
                _decode, decoder, skips, use_reentrant=False, preserve_rng_state=_has_dropout(decoder)
            )
            return result
        return _decode(decoder, skips)

    @property
    def decoder_b(self) -> nn.Module:
        """The second decoder."""
        return self._branch_b.decoder

    @property
    def encoder_b(self) -> nn.Module | None:
        """What decoder B reads from, None where it shares decoder A's encoder."""
        return self._branch_b.encoder

    @property
    def prediction(self) -> Prediction:
        """What evaluation mode returns."""
        return self._branch_b.prediction

    @prediction.setter
    def prediction(self, prediction: Prediction) -> None:
        self._branch_b.prediction = prediction

    @property
    def _branch_b(self) -> _BranchB:
        return cast(_BranchB, self.beside["seg_layers"])

    def set_deep_supervision(self, enabled: bool) -> None:
        """Whether both decoders return logits of every stage or of the last one."""
        self.decoder.deep_supervision = enabled  # type: ignore[assignment]
        self.decoder_b.deep_supervision = enabled  # type: ignore[assignment]

    def compute_conv_feature_map_size(self, input_size: Any) -> Any:
        """nnU-Net's estimate of activation size: one encoder or two, and two decoders."""
        size = self.encoder.compute_conv_feature_map_size(input_size)  # type: ignore[operator]
        if self.encoder_b is not None:
            size += self.encoder_b.compute_conv_feature_map_size(input_size)  # type: ignore[operator]
        return size + 2 * self.decoder.compute_conv_feature_map_size(input_size)  # type: ignore[operator]


def _encoder_and_decoder(unet: nn.Module) -> tuple[nn.Module, nn.Module]:
    encoder, decoder = getattr(unet, "encoder", None), getattr(unet, "decoder", None)
    parts = ("stages", "transpconvs", "seg_layers")
    if (
        not isinstance(encoder, nn.Module)
        or not isinstance(decoder, nn.Module)
        or not all(hasattr(decoder, part) for part in parts)
    ):
        raise DualCLError(
            f"The network {type(unet).__name__} has no U-Net decoder ({', '.join(parts)}), so a second one cannot "
            "be built. Use plans with PlainConvUNet or ResidualEncoderUNet (nnU-Net's default and ResEnc presets)."
        )
    return encoder, decoder


def _last_layer(decoder: nn.Module) -> nn.Module:
    return cast(nn.ModuleList, decoder.seg_layers)[-1]


def _has_dropout(module: nn.Module) -> bool:
    return any(isinstance(part, _DropoutNd) for part in module.modules())


def _keep_input(layer: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
    # evaluation hands out logits alone; features of decoder A would stay in memory while decoder B runs
    layer.seen_features = inputs[0] if layer.training else None  # type: ignore[assignment]


def _decode(decoder: nn.Module, skips: list[torch.Tensor]) -> tuple[Any, torch.Tensor]:
    """Run nnU-Net's decoder as it is; in training also hand out what its last segmentation layer read."""
    layer = _last_layer(decoder)
    try:
        return decoder(skips), cast(torch.Tensor, layer.seen_features)
    finally:  # also where checkpointing stops a second computation halfway: keep no graph alive, and stay copyable
        layer.seen_features = None  # type: ignore[assignment]
