import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_dualcl.small_plans import check_small_plans, small_plans, write_small_plans


@pytest.fixture(params=[False, True], ids=["plain", "residual"])
def plans(request: pytest.FixtureRequest, architecture: Any) -> dict[str, Any]:
    """Plans of three configurations, the last one inheriting."""
    full = {
        "data_identifier": "nnUNetPlans_3d_fullres",
        "batch_size": 9,
        "patch_size": [32, 64, 96],
        "spacing": [2.5, 0.75, 0.5],
        "architecture": architecture(3, residual=request.param, stages=5),
    }
    configurations = {
        "2d": {"patch_size": [64, 96], "spacing": [0.75, 0.5], "architecture": architecture(2, stages=4)},
        "3d_fullres": full,
        "3d_lowres": {
            "inherits_from": "3d_fullres",
            "data_identifier": "nnUNetPlans_3d_lowres",
            "spacing": [5.0, 1.5, 1.0],
            "next_stage": "3d_cascade_fullres",
        },
    }
    return {"plans_name": "nnUNetPlans", "dataset_name": "Dataset001_A", "configurations": configurations}


def shrink(plans: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return small_plans(plans, "small", **{"patch_size": (8, 16, 24), "features": (4, 6, 8), **changes})


def test_the_source_is_left_untouched(plans: dict[str, Any]) -> None:
    before = copy.deepcopy(plans)
    small = shrink(plans)
    small["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]["strides"][0][0] = 99
    assert plans == before


def test_only_what_is_named_changes(plans: dict[str, Any]) -> None:
    small = shrink(plans, batch_size=3)
    assert (small["plans_name"], small["dataset_name"]) == ("small", "Dataset001_A")
    assert list(small["configurations"]) == ["3d_fullres"]
    chosen = small["configurations"]["3d_fullres"]
    assert chosen["data_identifier"] == "small_3d_fullres"  # must not share a folder with the source's cases
    assert (chosen["batch_size"], chosen["patch_size"], chosen["spacing"]) == (3, [8, 16, 24], [2.5, 0.75, 0.5])
    assert shrink(plans, spacing_mm=(3, 2, 1))["configurations"]["3d_fullres"]["spacing"] == [3, 2, 1]


def test_the_network_is_built_and_runs(plans: dict[str, Any]) -> None:
    torch.manual_seed(0)
    architecture = PlansManager(shrink(plans)).get_configuration("3d_fullres").configuration["architecture"]
    network = get_network_from_plans(
        architecture["network_class_name"],
        architecture["arch_kwargs"],
        architecture["_kw_requires_import"],
        2,
        3,
        deep_supervision=True,
    )
    outputs = network(torch.randn(1, 2, 8, 16, 24))
    assert [tuple(output.shape) for output in outputs] == [(1, 3, 8, 16, 24), (1, 3, 4, 8, 12)]
    assert network.encoder.output_channels == [4, 6, 8]


def test_a_2d_configuration(plans: dict[str, Any]) -> None:
    small = shrink(plans, configuration="2d", patch_size=(16, 24), features=(4, 8, 12))
    arguments = small["configurations"]["2d"]["architecture"]["arch_kwargs"]
    assert arguments["kernel_sizes"] == [[3, 3]] * 3
    assert arguments["strides"] == [[1, 1], [2, 2], [2, 2]]


def test_an_inheriting_configuration_stands_alone(plans: dict[str, Any]) -> None:
    chosen = shrink(plans, configuration="3d_lowres")["configurations"]["3d_lowres"]
    assert not {"inherits_from", "next_stage"} & set(chosen)
    assert chosen["spacing"] == [5.0, 1.5, 1.0]
    assert chosen["architecture"]["arch_kwargs"]["features_per_stage"] == [4, 6, 8]


def test_an_indivisible_patch_is_refused(plans: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"patch_size \(8, 18, 24\) is not divisible by 4, as 3 stages need"):
        shrink(plans, patch_size=(8, 18, 24))


def test_plans_are_written_beside_the_source(plans: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "nnUNetPlans.json").write_text(json.dumps(plans), encoding="utf-8")
    path = write_small_plans(tmp_path, "nnUNetPlans", "small", patch_size=(8, 16, 24), features=(4, 6, 8))
    assert path == tmp_path / "small.json"
    assert json.loads(path.read_text(encoding="utf-8")) == shrink(plans)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"features": [4, 0, 8]}, "features must be of whole numbers above 0"),
        ({"features": 8}, "features must be of whole numbers above 0; got 8"),
        ({"patch_size": [8, 16, 24.0]}, "patch_size must be of whole numbers"),
        ({"patch_size": "8x8"}, "patch_size must be of whole numbers"),
        ({"patch_size": []}, r"patch_size must have 2 or 3 axes; got \(\)"),
        ({"batch_size": True}, "batch_size must be of whole numbers"),
        ({"spacing_mm": [1, 0, 1]}, "spacing_mm must be a number above 0 for each axis"),
        ({"spacing_mm": 2}, "spacing_mm must be a number above 0 for each axis"),
    ],
)
def test_options_that_give_no_plans_are_refused(options: dict[str, Any], message: str) -> None:
    good: dict[str, Any] = {"patch_size": (8, 16, 24), "features": [4, 6, 8], "spacing_mm": [1, 2.5, 1.5]}
    check_small_plans(**good)
    with pytest.raises(ValueError, match=message):
        check_small_plans(**{**good, **options})


def test_too_few_stages_for_deep_supervision_are_refused() -> None:
    with pytest.raises(ValueError, match="2 stages are too few for nnU-Net's deep supervision"):
        small_plans({}, "tiny", patch_size=(8, 8, 8), features=(2, 4))
