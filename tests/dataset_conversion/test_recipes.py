"""The commands of the documentation for datasets that have no converter of their own."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from synthetic_volumes import slabs, volume, write

from nnunet_dualcl.cli.convert import _parser
from nnunet_dualcl.dataset_conversion import folder
from nnunet_dualcl.dataset_conversion.plan import Options
from nnunet_dualcl.dataset_conversion.write import write_dataset

PAGE = Path(__file__).parents[2] / "docs" / "how_to" / "convert_public.md"
COMMANDS = [
    shlex.split(command.replace("\\\n", " "))
    for command in re.findall(r"^dualcl (convert folder (?:.*\\\n)*.*)$", PAGE.read_text(encoding="utf-8"), re.M)
]
TREES: dict[str, tuple[tuple[str, ...], dict[str, str]]] = {
    "kits19/data": (
        ("case_00000/imaging.nii.gz", "case_00000/segmentation.nii.gz", "case_00210/imaging.nii.gz"),
        {"case_00000": "labeled", "case_00210": "unlabeled"},
    ),
    "LITS": (
        ("Training Batch 1/volume-0.nii", "Training Batch 1/segmentation-0.nii", "Training Batch 2/volume-28.nii"),
        {"0": "labeled", "28": "unlabeled"},
    ),
    "TotalSegmentator": (
        (
            *("s0000/ct.nii.gz", "s0000/segmentations/liver.nii.gz", "s0000/segmentations/kidney_left.nii.gz"),
            *("s0000/segmentations/kidney_right.nii.gz", "s0000/segmentations/spleen.nii.gz", "s0001/ct.nii.gz"),
        ),
        {"s0000": "labeled", "s0001": "unlabeled"},
    ),
    "PROMISE12/TrainingData": (
        ("Case00.mhd", "Case00_segmentation.mhd", "Case01.mhd"),
        {"Case00": "labeled", "Case01": "unlabeled"},
    ),
    "FLARE23": (
        (
            *("imagesTr2200/FLARE23_0001_0000.nii.gz", "labelsTr2200/FLARE23_0001.nii.gz"),
            "unlabeledTr1800/FLARE23_2201_0000.nii.gz",
        ),
        {"FLARE23_0001": "labeled", "FLARE23_2201": "unlabeled"},
    ),
}


def test_every_command_is_tried() -> None:
    assert sorted(command[2] for command in COMMANDS) == sorted(TREES)


@pytest.mark.parametrize("command", COMMANDS, ids=[command[2] for command in COMMANDS])
def test_the_documented_command_converts(tmp_path: Path, command: list[str]) -> None:
    files, roles = TREES[command[2]]
    is_mask = command[2] == "TotalSegmentator"
    for seed, name in enumerate(files):
        label = re.search("seg|label", name) is not None
        values = slabs(1) if is_mask else slabs(1, 7) if command[2] == "FLARE23" else slabs(1)
        write(tmp_path / "in" / name, volume(values, np.uint8) if label else volume(seed))
    arguments = _parser(command[1:]).parse_args(command[1:])
    plan = folder.plan(tmp_path / "in", **folder.keywords(arguments))
    assert {case.name: case.role.value for case in plan.cases} == roles
    options = Options(processes=1, other_values=arguments.other_values)
    report = write_dataset(plan, tmp_path / f"Dataset{arguments.d:03d}_{arguments.n}", options)
    assert report.failed == ()
    assert [record.voxels for record in report.records if record.voxels] != []
