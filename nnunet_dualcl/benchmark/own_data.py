"""Preprocessed data of a job's own, for arms that train on other cases than the fold has."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from nnunetv2.configuration import default_num_processes
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from nnunet_dualcl.atomic import write_text
from nnunet_dualcl.data.splits import Split, write_splits
from nnunet_dualcl.errors import DualCLError
from nnunet_dualcl.layout import SPLITS_FILE, unlabeled_preprocessed_folder
from nnunet_dualcl.parallel import results
from nnunet_dualcl.preprocessing.one_case import PROPERTIES_ENDING, whole_case

PseudoLabeled = Mapping[str, tuple[list[Path], Path]]
"""Image files and the file of predicted labels, by case."""


@dataclass(frozen=True)
class Source:
    """Preprocessed dataset that the jobs of a benchmark share.

    Attributes:
        folder: of the dataset.
        plans: their name.
        configuration: of the plans.
    """

    folder: Path
    plans: str
    configuration: str

    @property
    def manager(self) -> PlansManager:
        """nnU-Net's view of the plans."""
        return PlansManager(str(self.folder / f"{self.plans}.json"))


def with_twice_the_batch(source: Source, ours: Path, split: Mapping[str, list[str]]) -> None:
    """Fold 0 of ``ours`` has the same cases, and plans whose batch is twice as large."""
    target, configuration = _begun(source, ours, split)
    plans = source.manager.plans
    plans["configurations"][source.configuration]["batch_size"] = 2 * configuration.batch_size
    write_text(target / f"{source.plans}.json", json.dumps(plans, indent=2) + "\n")
    fold: Split = {"train": split["train"], "val": split["val"]}
    write_splits(target / SPLITS_FILE, [fold], force=True)


def with_pseudo_labels(
    source: Source, ours: Path, split: Mapping[str, list[str]], pseudo: PseudoLabeled, dataset_json: dict[str, Any]
) -> None:
    """Labeled cases as they are, the others with their pseudo-labels; fold 0 of ``ours`` trains on all of them.

    The list of training cases names the labeled ones as often as it takes to draw about as many patches of them as of
    the others; five true labels among a hundred predicted ones would hardly be seen.
    """
    target, configuration = _begun(source, ours, split)
    work = partial(_preprocess, source, target / configuration.data_identifier, dataset_json)
    for case, outcome in results(work, dict(sorted(pseudo.items())), default_num_processes):
        if outcome is not None:
            raise DualCLError(f"{case} cannot be preprocessed with its pseudo-labels: {outcome!r}") from outcome
    times = max(1, round(len(pseudo) / len(split["train"])))
    fold: Split = {"train": sorted([*split["train"] * times, *pseudo]), "val": split["val"]}
    write_splits(target / SPLITS_FILE, [fold], force=True)


def _preprocess(
    source: Source, folder: Path, dataset_json: dict[str, Any], case: str, pseudo: tuple[list[Path], Path]
) -> None:
    """One pseudo-labeled case, unless a process before has finished it."""
    finished = folder / f"{case}{PROPERTIES_ENDING}"
    if finished.is_file():
        return
    configuration = source.manager.get_configuration(source.configuration)
    preprocessor = configuration.preprocessor_class(verbose=False)
    images, labels = pseudo
    with whole_case(folder, case, finished.is_file) as place:
        preprocessor.run_case_save(
            place, [str(path) for path in images], str(labels), source.manager, configuration, dataset_json
        )


def with_labeled_as_unlabeled(source: Source, ours: Path, split: Mapping[str, list[str]]) -> None:
    """Fold 0 of ``ours`` has the same labeled cases, and their images once more as its only unlabeled ones.

    Of the segmentation that comes along, training reads where the image was cropped, as for every unlabeled case.
    """
    target, configuration = _begun(source, ours, split)
    images = target / configuration.data_identifier
    unlabeled = unlabeled_preprocessed_folder(target, configuration.data_identifier)
    unlabeled.mkdir(exist_ok=True)
    again = {case: f"{case}_again" for case in split["train"]}
    for case, name in again.items():
        for file in _files(images, [case]):
            shutil.copyfile(file, unlabeled / f"{name}{file.name.removeprefix(case)}")
    fold: Split = {"train": split["train"], "val": split["val"], "unlabeled": sorted(again.values())}
    write_splits(target / SPLITS_FILE, [fold], force=True)


def _begun(source: Source, ours: Path, split: Mapping[str, list[str]]) -> tuple[Path, ConfigurationManager]:
    """A dataset in ``ours`` with plans and labeled cases, without a split."""
    target = ours / source.folder.name
    target.mkdir(parents=True, exist_ok=True)
    for name in (f"{source.plans}.json", "dataset.json", "dataset_fingerprint.json"):
        shutil.copyfile(source.folder / name, target / name)
    shutil.copytree(source.folder / "gt_segmentations", target / "gt_segmentations", dirs_exist_ok=True)
    configuration = source.manager.get_configuration(source.configuration)
    cases = target / configuration.data_identifier
    cases.mkdir(exist_ok=True)
    for file in _files(source.folder / configuration.data_identifier, (*split["train"], *split["val"])):
        shutil.copyfile(file, cases / file.name)
    return target, configuration


def _files(folder: Path, cases: Iterable[str]) -> list[Path]:
    """Images, labels and properties of preprocessed cases."""
    return [file for case in cases for ending in (".*", "_seg.*") for file in sorted(folder.glob(f"{case}{ending}"))]
