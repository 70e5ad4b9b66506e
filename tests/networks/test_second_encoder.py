from __future__ import annotations

from typing import Any

import pytest
import torch
from dynamic_network_architectures.building_blocks.plain_conv_encoder import PlainConvEncoder
from dynamic_network_architectures.building_blocks.residual_encoders import ResidualEncoder
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from torch import nn

from nnunet_dualcl.errors import DualCLError
from nnunet_dualcl.networks import PREFIX_B, DualDecoderUNet, DualOutput, build_other_encoder

CASES = [(dimension, residual) for dimension in (2, 3) for residual in (False, True)]
SHAPE = {2: (12, 16), 3: (6, 12, 16)}


def unet(architecture: Any, dimension: int, residual: bool, **options: Any) -> Any:
    plan = architecture(dimension, residual=residual)
    plan["arch_kwargs"].update(options)
    return get_network_from_plans(
        plan["network_class_name"], plan["arch_kwargs"], plan["_kw_requires_import"], 2, 3,
        allow_init=True, deep_supervision=True,
    )  # fmt: skip


@pytest.mark.parametrize(("dimension", "residual"), CASES)
def test_the_other_family_gives_skips_of_the_same_shapes(architecture: Any, dimension: int, residual: bool) -> None:
    encoder = unet(architecture, dimension, residual).encoder
    other = build_other_encoder(encoder)
    assert isinstance(other, PlainConvEncoder if residual else ResidualEncoder)
    x = torch.randn(2, 2, *SHAPE[dimension])
    assert [skip.shape for skip in other(x)] == [skip.shape for skip in encoder(x)]


@pytest.mark.parametrize("residual", [False, True])
def test_dropout_norm_and_nonlinearity_are_those_of_the_plans(architecture: Any, residual: bool) -> None:
    options = {
        "dropout_op": "torch.nn.Dropout2d",
        "dropout_op_kwargs": {"p": 0.125},
        "norm_op_kwargs": {"eps": 3e-4, "affine": True},
        "nonlin_kwargs": {"negative_slope": 0.25},
    }
    modules = list(build_other_encoder(unet(architecture, 2, residual, **options).encoder).modules())
    assert {module.p for module in modules if isinstance(module, nn.Dropout2d)} == {0.125}
    assert {module.eps for module in modules if isinstance(module, nn.InstanceNorm2d)} == {3e-4}
    assert {module.negative_slope for module in modules if isinstance(module, nn.LeakyReLU)} == {0.25}


@pytest.mark.parametrize(("dimension", "residual"), CASES)
def test_two_networks_share_no_weight_and_a_is_stock(architecture: Any, dimension: int, residual: bool) -> None:
    stock = unet(architecture, dimension, residual)
    network = DualDecoderUNet(stock, second_encoder=build_other_encoder(stock.encoder))
    x = torch.randn(2, 2, *SHAPE[dimension])
    output = network.train()(x)
    assert isinstance(output, DualOutput)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(output.logits_a, stock.train()(x), strict=True))
    output.logits_b[0].square().sum().backward()
    moved = {name for name, weight in network.named_parameters() if weight.grad is not None}
    assert {name.rsplit(".", 1)[0] for name in moved} <= {name for name, _ in network.named_modules()}
    assert all(name.startswith(PREFIX_B) for name in moved)
    assert all(weight.grad is not None for weight in network.encoder_b.parameters())
    kept = {name for name in network.state_dict() if not name.startswith(PREFIX_B)}
    assert kept == set(stock.state_dict())
    shared = DualDecoderUNet(unet(architecture, dimension, residual))
    size = tuple(SHAPE[dimension])
    assert network.compute_conv_feature_map_size(size) > shared.compute_conv_feature_map_size(size)


def test_an_unknown_encoder_is_refused() -> None:
    with pytest.raises(DualCLError, match=r"encoder Sequential\. Use plans with PlainConvUNet"):
        build_other_encoder(nn.Sequential())
