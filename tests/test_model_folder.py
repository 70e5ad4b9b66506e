from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from nnunet_dualcl.errors import DualCLError
from nnunet_dualcl.model_folder import check_folds, trained_checkpoints

LABELS = {"channel_names": {"0": "T1", "1": "T2"}, "labels": {"background": 0, "left": 1, "right": 2}}
Change = Callable[[dict[str, Any]], object]


def write(toy: Any, folder: Path, fold: int, *, change: Change = bool, mirrored: Any = (0, 1)) -> None:
    """A fold whose plans were changed before it was trained; without weights, which are not read."""
    init_args = {"plans": toy.plans(), "configuration": "3d_fullres", "dataset_json": json.loads(json.dumps(LABELS))}
    change(init_args)
    path = folder / f"fold_{fold}" / "checkpoint_final.pth"
    path.parent.mkdir(parents=True)
    torch.save({"init_args": init_args, "inference_allowed_mirroring_axes": mirrored}, path)


def fullres(init_args: dict[str, Any]) -> dict[str, Any]:
    configuration: dict[str, Any] = init_args["plans"]["configurations"]["3d_fullres"]
    return configuration


@pytest.fixture
def model(toy: Any, tmp_path: Path) -> Path:
    folder = tmp_path / "DualCLTrainer__toyPlans__3d_fullres"
    write(toy, folder, 0)
    for name, content in (("plans.json", toy.plans()), ("dataset.json", LABELS)):
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    return folder


def check(model: Path) -> None:
    check_folds(model, trained_checkpoints(model, None, "checkpoint_final.pth"))


def test_folds_that_are_alike_pass_whatever_their_batches(toy: Any, model: Path) -> None:
    write(toy, model, 1, mirrored=[0, 1], change=lambda init_args: fullres(init_args).update(batch_size=9))
    write(toy, model, 3, change=lambda init_args: fullres(init_args).update(patch_size=[8, 8, 8]))
    check(model)


@pytest.mark.parametrize(
    ("named", "change"),
    [
        ("spacing", lambda init_args: fullres(init_args).update(spacing=[3.0, 1.0, 1.0])),
        (
            "normalization, intensities",
            lambda init_args: fullres(init_args).update(normalization_schemes=["CTNormalization"] * 2),
        ),
        ("architecture", lambda init_args: fullres(init_args)["architecture"]["arch_kwargs"].update(n_stages=2)),
        ("transposition", lambda init_args: init_args["plans"].update(transpose_forward=[2, 0, 1])),
        (
            "numbers of labels",
            lambda init_args: init_args["dataset_json"].update(labels={"background": 0, "right": 1, "left": 2}),
        ),
        ("labels", lambda init_args: init_args["dataset_json"]["labels"].update(middle=3)),
        ("ignore label", lambda init_args: init_args["dataset_json"]["labels"].update(ignore=3)),
        (
            "numbers of channels",
            lambda init_args: init_args["dataset_json"].update(channel_names={"0": "T2", "1": "T1"}),
        ),
        ("number of channels", lambda init_args: init_args["dataset_json"].update(channel_names={"0": "T1"})),
    ],
)
def test_a_fold_of_other_plans_or_labels_is_refused(toy: Any, model: Path, named: str, change: Change) -> None:
    write(toy, model, 2, change=change)
    with pytest.raises(
        DualCLError, match=rf"fold_2/checkpoint_final\.pth was trained .* differ in {named}\. Put those"
    ):
        check(model)


def test_other_names_and_the_plans_of_older_releases_pass(toy: Any, model: Path) -> None:
    def rename(init_args: dict[str, Any]) -> None:
        init_args["dataset_json"].update(
            labels={"background": 0, "sinister": 1, "right": 2}, channel_names={"0": "T1w", "1": "T2"}
        )
        plans = init_args["plans"]
        statistics = plans.pop("foreground_intensity_properties_per_channel")
        plans["foreground_intensity_properties_by_modality"] = statistics

    write(toy, model, 1, change=rename)
    check(model)


@pytest.mark.parametrize(
    ("channels", "passes"), [({"0": "T1", "1": "T1"}, True), ({"0": "T1", "1": "T1", "2": "T1"}, False)]
)
def test_channels_may_share_a_name(toy: Any, model: Path, channels: dict[str, str], passes: bool) -> None:
    write(toy, model, 1, change=lambda init_args: init_args["dataset_json"].update(channel_names=channels))
    with nullcontext() if passes else pytest.raises(DualCLError, match="differ in number of channels"):
        check(model)


def test_regions_are_told_apart_by_their_heads(toy: Any, model: Path) -> None:
    regions: dict[str, Any] = {"background": 0, "whole": [1, 2], "core": 2}
    dataset_json = {**LABELS, "labels": regions, "regions_class_order": [1, 2]}
    (model / "dataset.json").write_text(json.dumps(dataset_json), encoding="utf-8")
    write(toy, model, 1, change=lambda init_args: init_args["dataset_json"].update(dataset_json))
    check_folds(model, trained_checkpoints(model, [1], "checkpoint_final.pth"))
    swapped = {**dataset_json, "labels": {name: regions[name] for name in ("background", "core", "whole")}}
    for fold, other, named in ((2, swapped, "labels"), (3, {"regions_class_order": [2, 1]}, "regions_class_order")):
        write(
            toy,
            model,
            fold,
            change=lambda init_args, other=other: init_args["dataset_json"].update(dataset_json | other),
        )
        with pytest.raises(DualCLError, match=rf"fold_{fold}/.* differ in {named}\."):
            check_folds(model, trained_checkpoints(model, [fold], "checkpoint_final.pth"))


@pytest.mark.parametrize("other", [None, (0,), (0, 1, 2)])
def test_folds_with_other_mirror_axes_are_used_one_by_one(toy: Any, model: Path, other: Any) -> None:
    write(toy, model, 1, mirrored=other)
    with pytest.raises(DualCLError, match=r"fold_1/.* one of them at a time, with -f"):
        check(model)
    for fold in (0, 1):
        check_folds(model, trained_checkpoints(model, [fold], "checkpoint_final.pth"))


def test_a_cut_off_checkpoint_is_named(model: Path) -> None:
    path = model / "fold_0" / "checkpoint_final.pth"
    path.write_bytes(path.read_bytes()[:500])
    for _ in range(2):
        with pytest.raises(DualCLError, match=r"checkpoint_final\.pth cannot be read: it is cut off"):
            check(model)
        torch.save([1, 2], path)
