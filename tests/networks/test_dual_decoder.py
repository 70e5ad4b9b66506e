from __future__ import annotations

import copy
import weakref
from typing import Any

import pytest
import torch
from dynamic_network_architectures.architectures.primus import Primus
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from torch import nn
from torch.nn.modules.conv import _ConvNd

from nnunet_dualcl.errors import DualCLError
from nnunet_dualcl.networks import PREFIX_B, DualDecoderUNet, DualOutput, weights_of
from nnunet_dualcl.networks.interpolating_decoder import InterpolatingUpsample

CASES = [(dimension, residual) for dimension in (2, 3) for residual in (False, True)]
SHAPE = {2: (12, 16), 3: (6, 12, 16)}


def build(
    architecture: Any, dimension: int, residual: bool, *, deep_supervision: bool = True, dropout: bool = False
) -> tuple[nn.Module, Any]:
    torch.manual_seed(3)
    plan = architecture(dimension, residual=residual)
    if dropout:
        plan["arch_kwargs"].update(dropout_op=f"torch.nn.Dropout{dimension}d", dropout_op_kwargs={"p": 0.5})
    unet = get_network_from_plans(
        plan["network_class_name"], plan["arch_kwargs"], plan["_kw_requires_import"], 2, 3,
        allow_init=True, deep_supervision=deep_supervision,
    )  # fmt: skip
    stock = copy.deepcopy(unet)
    return DualDecoderUNet(unet), stock


def patch(dimension: int, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 2, *SHAPE[dimension], generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("dimension", "residual"), CASES)
@pytest.mark.parametrize("deep_supervision", [True, False])
def test_training_output_has_both_branches(
    architecture: Any, dimension: int, residual: bool, deep_supervision: bool
) -> None:
    network, stock = build(architecture, dimension, residual, deep_supervision=deep_supervision)
    x = patch(dimension)
    output = network.train()(x)
    expected = stock.train()(x)
    assert isinstance(output, DualOutput)
    for branch in (output.logits_a, output.logits_b):
        assert isinstance(branch, list) == deep_supervision
        shapes = [level.shape for level in (branch if deep_supervision else [branch])]
        assert shapes == [level.shape for level in (expected if deep_supervision else [expected])]
    levels = zip(output.logits_a, expected, strict=True) if deep_supervision else [(output.logits_a, expected)]
    assert all(torch.equal(ours, theirs) for ours, theirs in levels)  # decoder A is stock's, bit for bit
    first_b = output.logits_b[0] if deep_supervision else output.logits_b
    first_a = output.logits_a[0] if deep_supervision else output.logits_a
    assert not torch.equal(first_a, first_b)
    for name in "ab":
        features = getattr(output, f"features_{name}")
        decoder = network.decoder if name == "a" else network.decoder_b
        assert features.shape == (2, 4, *SHAPE[dimension])
        logits = first_a if name == "a" else first_b
        torch.testing.assert_close(decoder.seg_layers[-1](features), logits)


@pytest.mark.parametrize(("dimension", "residual"), CASES)
def test_dropping_decoder_b_leaves_stock_weights(architecture: Any, dimension: int, residual: bool) -> None:
    network, stock = build(architecture, dimension, residual, deep_supervision=False)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.01)
    stock.load_state_dict(weights_of(network.state_dict(), "a"), strict=True)
    network.prediction = "a"
    x = patch(dimension)
    assert torch.equal(network.eval()(x), stock.eval()(x))


def test_decoder_b_stores_no_encoder_and_upsamples_otherwise(architecture: Any) -> None:
    network, _ = build(architecture, 3, False)
    names = [name for name in network.state_dict() if name.startswith(PREFIX_B)]
    assert names
    assert not any("encoder" in name for name in names)
    assert not any(isinstance(module, nn.ConvTranspose3d) for module in network.decoder_b.modules())
    shared = {id(p) for p in network.decoder.parameters()} & {id(p) for p in network.decoder_b.parameters()}
    assert not shared


@pytest.mark.parametrize("two_encoders", [False, True])
@pytest.mark.parametrize("residual", [False, True])
def test_branch_b_starts_as_nnunet_starts_a_network(architecture: Any, residual: bool, two_encoders: bool) -> None:
    unet, second = build(architecture, 3, residual)[1], build(architecture, 3, not residual)[1]
    network = DualDecoderUNet(unet, second=second if two_encoders else None)
    convolutions = [module for module in network.beside.modules() if isinstance(module, nn.Conv3d)]
    for convolution in convolutions:
        assert convolution.bias is None or not convolution.bias.any()
        he = (2 / convolution.weight[0].numel()) ** 0.5
        assert 0.6 < convolution.weight.square().mean().sqrt() / he < 1.4
    for ours, theirs in zip(network.decoder_b.stages.parameters(), network.decoder.stages.parameters(), strict=True):
        assert ours.ndim == 1 or not torch.equal(ours, theirs)


def test_a_recomputed_decoder_drops_out_the_same_features(architecture: Any) -> None:
    network, _ = build(architecture, 2, False, dropout=True)
    gradients = []
    for checkpointing in (False, True):
        network.decoder_checkpointing = checkpointing
        network.zero_grad()
        torch.manual_seed(5)
        output = network.train()(patch(2))
        torch.stack([(a * b).sum() for a, b in zip(output.logits_a, output.logits_b, strict=True)]).sum().backward()
        gradients.append([weight.grad.clone() for weight in network.parameters()])
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("two_encoders", [False, True])
@pytest.mark.parametrize("residual", [False, True])
def test_the_size_of_feature_maps_is_what_the_convolutions_put_out(
    architecture: Any, residual: bool, two_encoders: bool
) -> None:
    unet, second = build(architecture, 3, residual)[1], build(architecture, 3, not residual)[1]
    network = DualDecoderUNet(unet, second=second if two_encoders else None)
    # interpolation counts as the transposed convolution in whose place it stands, after its own convolution
    upsamples = [module for module in network.modules() if isinstance(module, InterpolatingUpsample)]
    mixing = [upsample.conv for upsample in upsamples]
    convolutions = [module for module in network.modules() if isinstance(module, _ConvNd) and module not in mixing]
    sizes: list[int] = []
    for module in (*convolutions, *upsamples):
        module.register_forward_hook(lambda _, __, output: sizes.append(output.numel()))
    network.train()(patch(3, batch=1))
    assert network.compute_conv_feature_map_size(SHAPE[3]) == sum(sizes)


@pytest.mark.parametrize("deep_supervision", [True, False])
def test_evaluation_averages_logits_or_uses_a(architecture: Any, deep_supervision: bool) -> None:
    network, _ = build(architecture, 3, False, deep_supervision=deep_supervision)
    x = patch(3)
    with torch.no_grad():
        both = network.train()(x)
        mean = network.eval()(x)
        network.prediction = "a"
        only_a = network(x)
    if deep_supervision:
        torch.testing.assert_close(mean, [(a + b) / 2 for a, b in zip(both.logits_a, both.logits_b, strict=True)])
        assert all(torch.equal(x, y) for x, y in zip(only_a, both.logits_a, strict=True))
    else:
        torch.testing.assert_close(mean, (both.logits_a + both.logits_b) / 2)
        assert torch.equal(only_a, both.logits_a)


@pytest.mark.parametrize("two_encoders", [False, True])
def test_evaluation_keeps_nothing_of_decoder_a_but_its_logits(architecture: Any, two_encoders: bool) -> None:
    unet, second = build(architecture, 3, False)[1], build(architecture, 3, True)[1]
    network = DualDecoderUNet(unet, second=second if two_encoders else None).eval()
    seen: list[weakref.ref[torch.Tensor]] = []
    alive: list[int] = []
    network.decoder.seg_layers[-1].register_forward_hook(lambda _, inputs, __: seen.append(weakref.ref(inputs[0])))
    if two_encoders:
        network.encoder.register_forward_hook(lambda _, __, skips: seen.extend(map(weakref.ref, skips)))
    first_of_b = network.encoder_b if two_encoders else network.decoder_b
    first_of_b.register_forward_pre_hook(lambda *_: alive.append(sum(kept() is not None for kept in seen)))
    with torch.no_grad():
        network(patch(3))
    assert len(seen) == (4 if two_encoders else 1)
    assert alive == [0]


def test_prediction_choice_travels_in_the_state_dict(architecture: Any) -> None:
    network, _ = build(architecture, 2, False)
    other, _ = build(architecture, 2, False)
    network.prediction = "a"
    other.load_state_dict(network.state_dict())
    assert other.prediction == "a"


def test_second_decoder_off_trains_as_stock(architecture: Any) -> None:
    network, stock = build(architecture, 3, False)
    network.second_decoder = False
    x = patch(3)
    ours, theirs = network.train()(x), stock.train()(x)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_copies_are_independent_after_a_step(architecture: Any) -> None:
    network, _ = build(architecture, 3, False)
    network.train()(patch(3))
    twin = copy.deepcopy(network)
    with torch.no_grad():
        network.decoder.seg_layers[-1].bias.add_(1)
    assert not torch.equal(network.decoder.seg_layers[-1].bias, twin.decoder.seg_layers[-1].bias)
    assert twin.train()(patch(3)).features_a.shape[1] == 4


def test_deep_supervision_is_set_on_both(architecture: Any) -> None:
    network, _ = build(architecture, 3, False)
    network.set_deep_supervision(False)
    output = network.train()(patch(3))
    assert isinstance(output.logits_a, torch.Tensor)
    assert isinstance(output.logits_b, torch.Tensor)


def test_traces_without_graph_break(architecture: Any) -> None:
    network, _ = build(architecture, 3, False)
    x = patch(3)
    compiled = torch.compile(network.train(), backend="eager", fullgraph=True)
    output, expected = compiled(x), network(x)
    torch.testing.assert_close(output.features_b, expected.features_b)
    torch.testing.assert_close(output.logits_a[0], expected.logits_a[0])


def test_network_without_unet_decoder_is_refused() -> None:
    with pytest.raises(DualCLError, match=r"Sequential has no U-Net decoder.*PlainConvUNet"):
        DualDecoderUNet(nn.Sequential(nn.Conv3d(1, 2, 1)))
    transformer = Primus(1, 108, (8, 8, 8), 3, eva_depth=1, eva_numheads=6, input_shape=(16, 16, 16))
    with pytest.raises(DualCLError, match=r"Primus has no U-Net decoder.*PlainConvUNet"):
        DualDecoderUNet(transformer)
