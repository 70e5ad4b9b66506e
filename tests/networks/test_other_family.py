from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from torch import nn

from nnunet_dualcl.errors import DualCLError
from nnunet_dualcl.networks import PREFIX_B, DualDecoderUNet, DualOutput, has_network_b, other_family, weights_of

CASES = [(dimension, residual) for dimension in (2, 3) for residual in (False, True)]
SHAPE = {2: (12, 16), 3: (6, 12, 16)}


def build(plan: dict[str, Any], *, deep_supervision: bool = True) -> Any:
    return get_network_from_plans(
        plan["network_class_name"], plan["arch_kwargs"], plan["_kw_requires_import"], 2, 3,
        allow_init=True, deep_supervision=deep_supervision,
    )  # fmt: skip


@pytest.mark.parametrize(("dimension", "residual"), CASES)
def test_the_other_family_gives_features_of_the_same_shapes(architecture: Any, dimension: int, residual: bool) -> None:
    plan = architecture(dimension, residual=residual)
    before = copy.deepcopy(plan)
    one, other = build(plan), build(other_family(plan))
    assert plan == before
    assert isinstance(other, PlainConvUNet if residual else ResidualEncoderUNet)
    x = torch.randn(2, 2, *SHAPE[dimension])
    assert [skip.shape for skip in other.encoder(x)] == [skip.shape for skip in one.encoder(x)]
    assert [(name, weight.shape) for name, weight in other.decoder.stages.named_parameters()] == [
        (name, weight.shape) for name, weight in one.decoder.stages.named_parameters()
    ]


@pytest.mark.parametrize("residual", [False, True])
def test_dropout_norm_and_nonlinearity_are_those_of_the_plans(architecture: Any, residual: bool) -> None:
    plan = architecture(2, residual=residual)
    plan["arch_kwargs"] |= {
        "dropout_op": "torch.nn.Dropout2d",
        "dropout_op_kwargs": {"p": 0.125},
        "norm_op_kwargs": {"eps": 3e-4, "affine": True},
        "nonlin_kwargs": {"negative_slope": 0.25},
    }
    modules = list(build(other_family(plan)).modules())
    assert {module.p for module in modules if isinstance(module, nn.Dropout2d)} == {0.125}
    assert {module.eps for module in modules if isinstance(module, nn.InstanceNorm2d)} == {3e-4}
    assert {module.negative_slope for module in modules if isinstance(module, nn.LeakyReLU)} == {0.25}


def test_what_one_family_alone_takes_stays_with_it(architecture: Any) -> None:
    residual = architecture(3, residual=True)
    residual["arch_kwargs"] |= {
        "block": "dynamic_network_architectures.building_blocks.residual.BasicBlockD",
        "stem_channels": 6,
    }
    residual["_kw_requires_import"] = [*residual["_kw_requires_import"], "block"]
    build(residual)
    assert isinstance(build(other_family(residual)), PlainConvUNet)
    plain = architecture(3)
    plain["network_class_name"] = "moved_away.PlainConvUNet"  # nnU-Net finds the class by its last name
    plain["arch_kwargs"]["nonlin_first"] = True
    assert isinstance(build(other_family(plain)), ResidualEncoderUNet)


@pytest.mark.parametrize(("dimension", "residual"), CASES)
def test_two_networks_share_no_weight_and_both_are_nnunets(architecture: Any, dimension: int, residual: bool) -> None:
    plan = architecture(dimension, residual=residual)
    a, b = build(plan), build(other_family(plan))
    network = DualDecoderUNet(copy.deepcopy(a), second=copy.deepcopy(b))
    x = torch.randn(2, 2, *SHAPE[dimension])
    output = network.train()(x)
    assert isinstance(output, DualOutput)
    for logits, stock in ((output.logits_a, a), (output.logits_b, b)):
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(logits, stock.train()(x), strict=True))
    output.logits_b[0].square().sum().backward()
    moved = {name for name, weight in network.named_parameters() if weight.grad is not None}
    assert all(name.startswith(PREFIX_B) for name in moved)
    assert all(weight.grad is not None for weight in network.encoder_b.parameters())
    shared = DualDecoderUNet(build(plan))
    size = tuple(SHAPE[dimension])
    assert network.compute_conv_feature_map_size(size) > shared.compute_conv_feature_map_size(size)
    assert [has_network_b(either.state_dict()) for either in (network, shared)] == [True, False]


@pytest.mark.parametrize("residual", [False, True])
def test_each_network_runs_by_itself_on_its_part_of_the_weights(architecture: Any, residual: bool) -> None:
    plan = architecture(3, residual=residual)
    plans = {"a": plan, "b": other_family(plan)}
    a, b = (build(plans[part], deep_supervision=False) for part in "ab")
    network = DualDecoderUNet(a, second=b)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.01)
    x = torch.randn(1, 2, *SHAPE[3])
    alone = []
    for part in ("a", "b"):
        stock = build(plans[part], deep_supervision=False)
        stock.load_state_dict(weights_of(network.state_dict(), part), strict=True)
        alone.append(stock.eval()(x))
    assert torch.equal(network.eval()(x), (alone[0] + alone[1]) / 2)


def test_an_unknown_network_is_refused(architecture: Any) -> None:
    plan = {**architecture(3), "network_class_name": "somewhere.Primus"}
    with pytest.raises(DualCLError, match=r"network Primus\. Use plans with PlainConvUNet"):
        other_family(plan)
