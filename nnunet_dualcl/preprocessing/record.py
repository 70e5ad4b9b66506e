"""What a folder of preprocessed unlabeled cases says of itself: the plans, the cases, the images it was made of."""

from __future__ import annotations

import contextlib
import hashlib
import json
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_dualcl.atomic import replacing
from nnunet_dualcl.errors import DualCLError
from nnunet_dualcl.layout import PREPROCESSED_STAMP_FILE

MADE_OF = "dualcl_images"
"""Entry of a case's properties: the image files it was made of, for TIFF also the one with the spacing."""

_WITHOUT_STATISTICS = ("ZScoreNormalization", "NoNormalization", "RescaleTo01Normalization", "RGBTo01Normalization")
"""nnU-Net's schemes that go by the image alone; other labels, so other foreground statistics, change nothing then."""


def decisive_values(plans: Mapping[str, Any], configuration: Mapping[str, Any]) -> dict[str, Any]:
    """Everything in the plans that decides what a preprocessed case looks like, as JSON gives it back.

    The patch size is not among it: plans of several presets share one folder of labeled cases, as they do in nnU-Net.
    """
    decisive = {
        "reader": plans["image_reader_writer"],  # some turn the axes
        "spacing": configuration["spacing"],
        "normalization": [configuration["normalization_schemes"], configuration["use_mask_for_norm"]],
        "preprocessor": configuration["preprocessor_name"],
        "resampling": {key: configuration[key] for key in sorted(configuration) if key.startswith("resampling_fn")},
        "transposition": plans["transpose_forward"],
        "intensities": {
            channel: statistics
            for channel, statistics in PlansManager(dict(plans)).foreground_intensity_properties_per_channel.items()
            if configuration["normalization_schemes"][int(channel)] not in _WITHOUT_STATISTICS
        },
    }
    plain: dict[str, Any] = json.loads(json.dumps(decisive))
    return plain


def other_values(folder: Path, decisive: Mapping[str, Any]) -> list[str]:
    """What the plans say otherwise than those that the folder is stamped with; nothing where it has no stamp.

    A value that an older stamp does not hold is taken for the same.
    """
    stamped = read_stamp(folder)
    if "intensities" in stamped:  # older stamps hold those that no scheme reads, too
        kept = decisive["intensities"]
        stamped["intensities"] = {name: value for name, value in stamped["intensities"].items() if name in kept}
    return [key for key, value in decisive.items() if stamped.get(key, value) != value]


def read_stamp(folder: Path) -> dict[str, Any]:
    """What the folder says of itself; nothing where it has no stamp."""
    path = folder / PREPROCESSED_STAMP_FILE
    stamp: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return stamp


def refuse_other_plans(folder: Path, decisive: Mapping[str, Any]) -> None:
    """Never mix cases of different plans in one folder."""
    if other := other_values(folder, decisive):
        raise DualCLError(
            f"{folder} was made with other plans: they differ in {', '.join(other)}. Give the new plans a name of "
            "their own (nnUNetv2_plan_experiment -overwrite_plans_name), or make this folder anew with: "
            "dualcl preprocess ... --force"
        )


def identity(files: Sequence[Path]) -> list[dict[str, Any]]:
    """What tells later whether the images, and a TIFF's file with the spacing, are still the same."""
    return [_identity(path) for path in (*files, *_spacing_file(files))]


def _identity(path: Path) -> dict[str, Any]:
    digest = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None
    return {**_look(path), "sha256": digest}


def _look(path: Path) -> dict[str, Any]:
    """Without its contents; that it is absent, as a file with the spacing may be, is noted, too."""
    status = path.stat() if path.is_file() else None
    return {
        "name": path.name,
        "bytes": status and status.st_size,
        "modified_ns": status and status.st_mtime_ns,
    }


def _spacing_file(files: Sequence[Path]) -> list[Path]:
    """Where nnU-Net's ``Tiff3DIO`` looks for a case's spacing, there or not: ``CASE.json``; none for other endings."""
    image, ending = str(files[0]), files[0].suffix
    return [Path(image[: -len(f"_0000{ending}")] + ".json")] if ending.lower() in (".tif", ".tiff") else []


def changed(properties_file: Path, files: Sequence[Path]) -> bool:
    """Whether a preprocessed case was made of other images; contents are read where only the time differs.

    The time is then noted, so that the next call need not read them again. Links to images that are not at hand (a disk
    that this machine has not) tell nothing, so the case counts as it is.

    A TIFF's file with the spacing is one of those that a case is made of, and one that appears or vanishes is a change.
    Early versions did not note it: of their cases it is a change where it is newer than the preprocessed case;
    otherwise it counts as the one that the case was made with, and is noted now.
    """
    if not all(path.exists() for path in files):
        return False
    with properties_file.open("rb") as stream:
        properties = pickle.load(stream)
    made_of = properties.get(MADE_OF, [])
    for spacing in _spacing_file(files):
        if all(file["name"] != spacing.name for file in made_of):
            if spacing.is_file() and spacing.stat().st_mtime_ns > properties_file.stat().st_mtime_ns:
                return True
            made_of = [*made_of, {**_identity(spacing), "modified_ns": -1}]  # no time, so that it is noted below
    now = [_look(path) for path in (*files, *_spacing_file(files))]
    if [(file["name"], file["bytes"]) for file in now] != [(file["name"], file["bytes"]) for file in made_of]:
        return True
    if [file["modified_ns"] for file in now] == [file["modified_ns"] for file in made_of]:
        return False
    found = identity(files)
    if [file["sha256"] for file in found] != [file["sha256"] for file in made_of]:
        return True
    with contextlib.suppress(OSError):  # a finished folder may be read-only
        with replacing(properties_file) as partial:
            partial.write_bytes(pickle.dumps({**properties, MADE_OF: found}))
    return False
