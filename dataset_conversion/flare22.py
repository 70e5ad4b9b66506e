"""FLARE 2022: 50 labeled and 2,000 unlabeled abdominal CT scans, 13 organs.

Ma et al., Unleashing the strengths of unlabeled data in pan-cancer abdominal organ quantification: the FLARE22
challenge, 2023 (arXiv:2308.05862).
"""

from __future__ import annotations

import argparse
import re
from functools import partial
from pathlib import Path
from typing import Any

from nnunet_dualcl.dataset_conversion.patterns import files_below
from nnunet_dualcl.dataset_conversion.plan import Plan, Refusal, Role, SourceCase
from nnunet_dualcl.dataset_conversion.volumes import load_volumes
from nnunet_dualcl.dataset_conversion.write import converter
from nnunet_dualcl.errors import DualCLError

ORGANS = (
    "liver",
    "right kidney",
    "spleen",
    "pancreas",
    "aorta",
    "inferior vena cava",
    "right adrenal gland",
    "left adrenal gland",
    "gallbladder",
    "esophagus",
    "stomach",
    "duodenum",
    "left kidney",
)
"""In the order of their values, 1 to 13."""
_NAME = re.compile(r"(FLARE22_Tr_\d+|Case_\d+|FLARETs_\d+)(_0000)?\.nii(?:\.gz)?")
_ROLES = {"FLARE22_Tr": Role.LABELED, "Case": Role.UNLABELED, "FLARETs": Role.TEST}
_ABOUT = {
    "reference": "https://flare22.grand-challenge.org",
    "licence": "for research; labeled scans and pancreas labels CC BY-SA 4.0 (Medical Segmentation Decathlon)",
    "description": "FLARE 2022: 50 labeled, 2000 unlabeled abdominal CT scans, 13 organs",
}


def plan(source: Path, *, unlabeled: int | None = None) -> Plan:
    """Find the labeled, unlabeled and tuning scans by their names, wherever they lie below ``source``.

    Args:
        source: folder with ``Training`` and, where there is one, ``Tuning``.
        unlabeled: take the first so many of the unlabeled scans only; None: all.

    Raises:
        DualCLError: no such folder, or no file of this dataset in it.
    """
    if unlabeled is not None and unlabeled < 0:
        raise DualCLError(f"--unlabeled must not be negative, got {unlabeled}.")
    images: dict[str, str] = {}
    labels: dict[str, str] = {}
    refused = []
    files = files_below(source)
    for relative, path in files.items():
        match = _NAME.fullmatch(path.name)
        if match is None:
            continue
        place = images if match[2] else labels
        if "Testing" in Path(relative).parts:
            refused.append(Refusal(relative, "of the hidden test set, whose names are those of the tuning set"))
        elif match[1] in place:
            refused.append(Refusal(relative, f"a file of this name was found before: {place[match[1]]}"))
        else:
            place[match[1]] = relative
    if not images:
        raise DualCLError(
            f"{source}: no scan of FLARE 2022 among {len(files)} files. Their names are like "
            "FLARE22_Tr_0001_0000.nii.gz and Case_00001_0000.nii.gz; unpack the archives first."
        )
    damaged = [Refusal(labels[name], "a label without its image") for name in sorted(set(labels) - set(images))]
    cases = []
    for name in sorted(images):
        role = _ROLES[name.rpartition("_")[0]]
        label = None if role is Role.UNLABELED else labels.get(name)
        if role is Role.LABELED and label is None:
            damaged.append(Refusal(images[name], f"its label {name}.nii.gz was not found"))
            continue
        paths = tuple(files[relative] for relative in (images[name], label) if relative is not None)
        load = partial(load_volumes, paths[:1], paths[1] if label else None)
        cases.append(SourceCase(name, name, role, load, paths, images[name]))
    pool = [case for case in cases if case.role is Role.UNLABELED]
    beyond = {case.name for case in pool[unlabeled:]} if unlabeled is not None else set()
    return Plan(
        kind="flare22",
        channels=("CT",),
        labels={organ: value for value, organ in enumerate(ORGANS, 1)},
        cases=tuple(case for case in cases if case.name not in beyond),
        refused=tuple(refused),
        damaged=tuple(damaged),
        notes=(f"{len(beyond)} of {len(pool)} unlabeled scans were left out on demand",) if beyond else (),
        about=_ABOUT,
    )


convert = converter(plan)
"""See :func:`~nnunet_dualcl.dataset_conversion.write.converter`."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this kind."""
    parser.add_argument("--unlabeled", type=int, metavar="N", help="take the first N unlabeled scans only")


def keywords(arguments: argparse.Namespace) -> dict[str, Any]:
    """Parsed arguments as keywords of :func:`plan`."""
    return {"unlabeled": arguments.unlabeled}
