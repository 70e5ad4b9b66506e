"""Batches of labeled patches, drawn as stock nnU-Net draws them, paired with unlabeled ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from batchgenerators.dataloading.nondet_multi_threaded_augmenter import NonDetMultiThreadedAugmenter
from batchgenerators.dataloading.single_threaded_augmenter import SingleThreadedAugmenter
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader

from nnunet_dualcl.data.random_stream import RandomStream
from nnunet_dualcl.data.two_views import TwoViews
from nnunet_dualcl.data.unlabeled_dataset import UnlabeledDataset


def build_unlabeled_loader(
    labeled: nnUNetDataLoader, cases: UnlabeledDataset, batch_size: int, label_manager: Any, *, two_views: bool
) -> Any:
    """nnU-Net's loader over unlabeled cases: patch size and augmentation of ``labeled``, uniform placement.

    With ``two_views`` its images have twice the channels, see :class:`TwoViews`.
    """
    dimensions = slice(1, None) if labeled.patch_size_was_2d else slice(None)
    loader = nnUNetDataLoader(
        cases,
        batch_size,
        labeled.patch_size[dimensions],
        labeled.final_patch_size[dimensions],
        label_manager,
        oversample_foreground_percent=0.0,
        transforms=TwoViews(labeled.transforms) if two_views else labeled.transforms,
    )
    loader.has_ignore = False  # with an ignore label nnU-Net would look for annotated voxels; here are none
    return loader


class Patches(NamedTuple):
    """Parts of a batch's ``data``, each (n, channels, *); ``unlabeled`` is the strong view where there are two."""

    labeled: torch.Tensor
    unlabeled: torch.Tensor | None
    weak: torch.Tensor | None


def patches_of(batch: Mapping[str, Any], data: torch.Tensor | None = None) -> Patches:
    """Parts of a batch of :class:`PairedLoader` or of stock nnU-Net's loader.

    Args:
        batch: with ``data``, ``keys`` and, where some patches are unlabeled, ``unlabeled_keys``.
        data: its ``data`` where that was copied to another device.
    """
    data = batch["data"] if data is None else data
    labeled, unlabeled = len(batch["keys"]), len(batch.get("unlabeled_keys", ()))
    views = list(data[labeled:].split(unlabeled)) if unlabeled else []
    return Patches(data[:labeled], *views, *[None] * (2 - len(views)))


class PairedLoader:
    """Endless batches: stock's ``data``, ``target``, ``keys``, and ``unlabeled_keys``.

    ``data`` holds the labeled patches, then the unlabeled ones, then, where the unlabeled loader makes two views, their
    weak view; :func:`patches_of` tells them apart. It is one tensor, because each one takes time to come from a worker.
    One object makes both halves, so any augmenter spreads its workers over them in exactly the right proportion.
    """

    def __init__(self, labeled: nnUNetDataLoader, unlabeled: nnUNetDataLoader) -> None:
        self.labeled = labeled
        self.unlabeled = unlabeled
        self._unlabeled_stream = RandomStream()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self

    def __next__(self) -> dict[str, Any]:
        with self._unlabeled_stream.active():
            unlabeled = next(self.unlabeled)
        batch: dict[str, Any] = next(self.labeled)
        views = unlabeled["data"].split(batch["data"].shape[1], dim=1)  # the weak one first
        batch["data"] = torch.cat((batch["data"], *reversed(views)))
        batch["unlabeled_keys"] = unlabeled["keys"]
        return batch

    def restart(self) -> None:
        """Draw unlabeled patches as a new loader does with the global generators as they are now."""
        self._unlabeled_stream.restart()

    def set_thread_id(self, thread_id: int) -> None:
        """Called by augmenters in each worker."""
        self.labeled.set_thread_id(thread_id)
        self.unlabeled.set_thread_id(thread_id)


def augment(loader: Any, *, num_processes: int, num_cached: int, seed: int, pin_memory: bool) -> Any:
    """Run ``loader`` in ``num_processes`` worker processes, or in this one when 0, as nnU-Net does."""
    if num_processes == 0:
        return SingleThreadedAugmenter(loader, None)
    return NonDetMultiThreadedAugmenter(
        data_loader=loader,
        transform=None,
        num_processes=num_processes,
        num_cached=num_cached,
        seeds=[(seed + worker) % 2**32 for worker in range(num_processes)],
        pin_memory=pin_memory,
        wait_time=0.002,
    )
