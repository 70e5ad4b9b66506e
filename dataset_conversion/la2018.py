"""Left atrium in MR, the 2018 Atrial Segmentation Challenge: its NRRD folders, or the h5 files made of them.

Xiong et al., A global benchmark of algorithms for segmenting the left atrium from late gadolinium-enhanced cardiac
magnetic resonance imaging, Medical Image Analysis 67:101832, 2021.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import SimpleITK as sitk

from nnunet_dualcl.dataset_conversion.listed import (
    ROLES,
    UNLISTED,
    add_list_arguments,
    list_keywords,
    parts_of,
    published_split,
    read_lists,
)
from nnunet_dualcl.dataset_conversion.patterns import files_below
from nnunet_dualcl.dataset_conversion.plan import Plan, Refusal, Role, Scan, SourceCase
from nnunet_dualcl.dataset_conversion.published_lists import LEFT_ATRIUM
from nnunet_dualcl.dataset_conversion.volumes import load_volumes
from nnunet_dualcl.dataset_conversion.write import converter
from nnunet_dualcl.errors import DualCLError

SPACING_MM = (0.625, 0.625, 0.625)
"""Of every scan, by the challenge's page."""
_UNSTATED_MM = (1.0, 1.0, 1.0)
"""In the header of every NRRD file of the release, which holds no size at all."""
IMAGE, LABEL, H5 = "lgemri.nrrd", "laendo.nrrd", "mri_norm2.h5"
_H5_NOTE = (
    "h5 files: the voxel size is set to 0.625 mm; they state neither it nor an orientation. They were normalized, and "
    "cropped in x and y around the TRUE left atrium with a margin of 10 to 19 voxels, test cases too: scores are not "
    "comparable with those on whole scans, and for a new patient no such crop exists"
)
_NRRD_NOTE = (
    "NRRD files: their headers state a voxel size of 1 mm, which is that of no scan; in its place 0.625 mm is set, the "
    "challenge's"
)
_ABOUT = {
    "reference": "https://www.cardiacatlas.org/atriaseg2018-challenge",
    "licence": "terms of the challenge; not to be passed on",
    "description": "2018 Atrial Segmentation Challenge: left atrium in late gadolinium-enhanced MR",
}


def plan(
    source: Path,
    *,
    labeled: int | None = None,
    val: int = 0,
    train_list: Path | None = None,
    test_list: Path | None = None,
) -> Plan:
    """Find case folders below ``source``: those with ``lgemri.nrrd`` or, where there is none, with ``mri_norm2.h5``.

    Args:
        source: folder that holds the case folders.
        labeled: the first so many of the training list stay labeled, 8 or 16 as a rule; the rest becomes unlabeled.
        val: the last so many of the training list are for validation.
        train_list: names of case folders, a line each, instead of the usual 80.
        test_list: the same instead of the usual 20.

    Raises:
        DualCLError: no such folder, no case of the training list in it, lists that will not do.
    """
    lists = read_lists(train_list, test_list, r"[^\s/]+") or LEFT_ATRIUM
    part_of = parts_of(lists, labeled=labeled, val=val)
    files = files_below(source)
    images = [relative for relative, path in files.items() if path.name == IMAGE]
    volumes = [relative for relative, path in files.items() if path.name == H5]
    if not images and not volumes:
        raise DualCLError(f"{source}: no {IMAGE} and no {H5} among {len(files)} files. Unpack the archive first.")
    cases: dict[str, SourceCase] = {}
    refused = []
    damaged = []
    for relative in images or volumes:
        path = files[relative]
        name = path.absolute().parent.name
        fault = UNLISTED if name not in part_of else f"is there twice: {cases[name].where}" if name in cases else None
        if fault is not None:
            refused.append(Refusal(relative, fault))
            continue
        role = ROLES[part_of[name]]
        case = _nrrd_case(path, name, role, relative) if images else _h5_case(path, name, role, relative)
        if role is Role.LABELED and images and len(case.files) == 1:
            damaged.append(Refusal(relative, f"no {LABEL} beside it"))
            continue
        cases[name] = case
    if images and volumes:
        refused += [Refusal(relative, f"left out: {IMAGE} is used, which is the whole scan") for relative in volumes]
    split, notes = published_split(list(cases.values()), part_of, (*damaged, *refused))
    return Plan(
        kind="la2018",
        channels=("LGE",),
        labels={"left atrium": 1},
        cases=tuple(cases[name] for name in sorted(cases)),
        refused=tuple(refused),
        damaged=tuple(damaged),
        value_map={1: 1, 255: 1},
        split=(split,),
        notes=(*notes, _NRRD_NOTE) if images else (_H5_NOTE, *notes),
        about=_ABOUT,
        settings={"files": f"{IMAGE}, 1 mm read as 0.625 mm" if images else H5},
    )


convert = converter(plan)
"""See :func:`~nnunet_dualcl.dataset_conversion.write.converter`."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this kind."""
    add_list_arguments(parser, "8 or 16")


def keywords(arguments: argparse.Namespace) -> dict[str, Any]:
    """Parsed arguments as keywords of :func:`plan`."""
    return dict(list_keywords(arguments))


def _nrrd_case(image: Path, name: str, role: Role, where: str) -> SourceCase:
    beside = image.with_name(LABEL)
    label = beside if role is not Role.UNLABELED and beside.is_file() else None
    paths = (image,) if label is None else (image, label)
    return SourceCase(name, name, role, partial(_load_nrrd, image, label), paths, where)


def _h5_case(path: Path, name: str, role: Role, where: str) -> SourceCase:
    return SourceCase(name, name, role, partial(_load_h5, path, role is not Role.UNLABELED), (path,), where)


def _load_nrrd(image: Path, label: Path | None) -> Scan:
    scan = load_volumes((image,), label, spacing_mm=SPACING_MM)
    for volume in (*scan.channels, *([] if scan.label is None else [scan.label])):
        if np.allclose(volume.GetSpacing(), _UNSTATED_MM, rtol=1e-3):
            volume.SetSpacing(SPACING_MM)
    spacing = scan.channels[0].GetSpacing()
    if np.allclose(spacing, SPACING_MM, rtol=1e-3):
        return scan
    stated = "x".join(f"{edge:g}" for edge in spacing)
    return replace(scan, notes=(f"the header states {stated} mm, the challenge 0.625 mm; the header was followed",))


def _load_h5(path: Path, with_label: bool) -> Scan:
    """Arrays ``image`` and ``label`` (x, y, z) of an h5 file; the label is not read without ``with_label``."""
    wanted = ("image", "label") if with_label else ("image",)
    try:
        with h5py.File(path, "r") as content:
            missing = [key for key in wanted if key not in content]
            if missing:
                raise DualCLError(f"{path}: has no {', '.join(missing)}; there is {', '.join(content) or 'nothing'}.")
            arrays = [np.asarray(content[key][()]) for key in wanted]
    except OSError as error:
        raise DualCLError(f"{path}: cannot be read: damaged or no h5 file. Copy it again. ({error})") from None
    shapes = {array.shape for array in arrays}
    if len(shapes) > 1 or arrays[0].ndim != 3:
        raise DualCLError(f"{path}: image and label must be 3D arrays of one shape, got {sorted(shapes)}.")
    if not np.isfinite(arrays[0]).all():
        raise DualCLError(f"{path}: the image holds values that are not finite. Copy it again.")
    images = [sitk.GetImageFromArray(np.ascontiguousarray(array.transpose(2, 1, 0))) for array in arrays]
    for image in images:
        image.SetSpacing(SPACING_MM)
    return Scan((images[0],), images[1] if with_label else None)
