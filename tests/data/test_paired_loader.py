from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from batchgenerators.dataloading.data_loader import SlimDataLoaderBase
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2, nnUNetDatasetNumpy

from nnunet_dualcl.data.paired_loader import PairedLoader, augment, patches_of
from nnunet_dualcl.data.random_stream import seed_global_streams
from nnunet_dualcl.data.two_views import TwoViews
from nnunet_dualcl.data.unlabeled_dataset import UnlabeledDataset
from nnunet_dualcl.trainers.DualCLTrainer import DualCLTrainer


def start(toy: Any, configure: Any, configuration: str = "3d_fullres", **values: Any) -> Any:
    configure(num_epochs=1, num_iterations_per_epoch=1, num_val_iterations_per_epoch=1, **values)
    trainer = toy.trainer(DualCLTrainer, configuration)
    trainer.on_train_start()
    return trainer


def test_unlabeled_dataset_adds_empty_class_locations(toy: Any, configure: Any) -> None:
    trainer = start(toy, configure)
    folder = Path(trainer.unlabeled_folder)
    cases = UnlabeledDataset(folder, ["unl_1", "tr_0"])
    assert cases.identifiers == ["tr_0", "unl_1"]
    image, mask, previous, properties = cases.load_case("tr_0")
    assert image.shape[1:] == mask.shape[1:]
    assert previous is None
    assert properties["class_locations"] == {}
    assert set(np.unique(mask[:])) <= {-1, 0}  # the image's nonzero part, never a class


def test_labeled_cases_may_be_of_an_older_nnunet(toy: Any, configure: Any) -> None:
    folder = toy.preprocessed / "toyPlans_3d_fullres"
    cases = nnUNetDatasetBlosc2(str(folder))
    for case in cases.identifiers:
        image, labels, _, properties = cases.load_case(case)
        nnUNetDatasetNumpy.save_case(image[:], labels[:], properties, str(folder / case))
    for path in folder.glob("*.b2nd"):
        path.unlink()
    trainer = start(toy, configure)
    assert trainer.dataset_class is nnUNetDatasetNumpy
    labeled, unlabeled, _ = patches_of(next(trainer.dataloader_train))
    assert labeled.shape == unlabeled.shape


@pytest.mark.parametrize(("configuration", "patch"), [("3d_fullres", (6, 12, 16)), ("2d", (12, 16))])
def test_unlabeled_patches_are_augmented_and_placed_uniformly(
    toy: Any, configure: Any, configuration: str, patch: tuple[int, ...]
) -> None:
    loader = start(toy, configure, configuration).dataloader_train.data_loader
    assert loader.unlabeled.oversample_foreground_percent == 0
    assert isinstance(loader.unlabeled.transforms, TwoViews)
    assert loader.unlabeled.transforms.transforms is loader.labeled.transforms.transforms
    assert np.array_equal(loader.unlabeled.patch_size, loader.labeled.patch_size)
    batch = next(loader)
    for part in patches_of(batch):
        assert part.shape == (2, 2, *patch)
        assert torch.isfinite(part).all()
    assert batch["data"].shape == (6, 2, *patch)
    assert batch["data"].is_contiguous()  # as pinned memory must be to reach a GPU without another copy
    assert set(batch) == {"data", "target", "keys", "unlabeled_keys"}


def test_one_view_where_nobody_needs_two(toy: Any, configure: Any) -> None:
    batch = next(start(toy, configure, "3d_fullres", teacher_view="same").dataloader_train.data_loader)
    labeled, unlabeled, weak = patches_of(batch)
    assert (len(labeled), len(unlabeled), weak) == (2, 2, None)
    assert set(batch) == {"data", "target", "keys", "unlabeled_keys"}


@pytest.mark.parametrize("views", [1, 2])
def test_parts_of_a_batch_whose_halves_differ_in_size(views: int) -> None:
    data = torch.arange(3 + 4 * views).view(-1, 1, 1)
    batch = {"data": data, "keys": ["a"] * 3, "unlabeled_keys": ["b"] * 4}
    labeled, unlabeled, weak = patches_of(batch)
    assert labeled.flatten().tolist() == [0, 1, 2]
    assert unlabeled is not None
    assert unlabeled.flatten().tolist() == [3, 4, 5, 6]
    assert (weak is None) == (views == 1)
    if weak is not None:
        assert weak.flatten().tolist() == [7, 8, 9, 10]
    stock = {"data": data, "keys": ["a"] * len(data)}
    assert torch.equal(patches_of(stock).labeled, data)
    assert patches_of(stock)[1:] == (None, None)
    assert torch.equal(patches_of(batch, data + 1).labeled, data[:3] + 1)


def test_both_halves_know_their_worker() -> None:
    labeled, unlabeled = (SlimDataLoaderBase(None, 2) for _ in range(2))
    PairedLoader(labeled, unlabeled).set_thread_id(3)
    assert (labeled.thread_id, unlabeled.thread_id) == (3, 3)


@pytest.mark.parametrize("configuration", ["3d_fullres", "2d"])
def test_a_loader_can_be_sent_to_workers_that_start_anew(toy: Any, configure: Any, configuration: str) -> None:
    loader = start(toy, configure, configuration).dataloader_train.data_loader
    sent = pickle.loads(pickle.dumps(loader))  # as macOS, Windows and, from Python 3.14 on, Linux do
    seed_global_streams(5)
    here = next(loader)
    seed_global_streams(5)
    there = next(sent)
    assert list(here["unlabeled_keys"]) == list(there["unlabeled_keys"])
    assert torch.equal(here["data"], there["data"])


def test_workers_draw_different_patches(toy: Any, configure: Any) -> None:
    loader = start(toy, configure).dataloader_train.data_loader
    augmenter = augment(loader, num_processes=2, num_cached=4, seed=11, pin_memory=False)
    try:
        drawn = [next(augmenter) for _ in range(4)]
    finally:
        augmenter._finish()
    for part in range(2):
        sums = {round(patches_of(batch)[part].double().sum().item(), 6) for batch in drawn}
        assert len(sums) == 4
