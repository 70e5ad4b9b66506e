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
    "PROMISE12/training_data": (
        ("Case00.mhd", "Case00_segmentation.mhd", "Case01.mhd"),
        {"Case00": "labeled", "Case01": "unlabeled"},
    ),
    "FLARE23": (
        (
            *("imagesTr2200/FLARE23_0001_0000.nii.gz", "labelsTr2200/FLARE23_0001.nii.gz"),
            *("unlabeledTr1800/FLARE23_2201_0000.nii.gz", "validation/FLARE23Ts_0001_0000.nii.gz"),
        ),
        {"FLARE23_0001": "labeled", "FLARE23_2201": "unlabeled"},
    ),
    "amos22": (
        (
            *("imagesTr/amos_0001.nii.gz", "labelsTr/amos_0001.nii.gz", "imagesTr/amos_0507.nii.gz"),
            *("labelsTr/amos_0507.nii.gz", "imagesVa/amos_0409.nii.gz", "labelsVa/amos_0409.nii.gz"),
            *("imagesTs/amos_0500.nii.gz", "imagesTs/amos_0600.nii.gz"),
            "amos_unlabeled_ct_5000_5399/amos_5000.nii.gz",
        ),
        {"amos_0001": "labeled", "amos_0409": "labeled", "amos_0500": "test", "amos_5000": "unlabeled"},
    ),
}


def test_every_command_is_tried() -> None:
    assert sorted(command[2] for command in COMMANDS) == sorted(TREES)


@pytest.mark.parametrize("command", COMMANDS, ids=[command[2] for command in COMMANDS])
def test_the_documented_command_converts(tmp_path: Path, command: list[str]) -> None:
    files, roles = TREES[command[2]]
    several = {"FLARE23": (1, 7), "amos22": (1, 6, 9)}.get(command[2], (1,))  # values, some of them not asked for
    for seed, name in enumerate(files):
        label = re.search("seg|label", name) is not None
        write(tmp_path / "in" / name, volume(slabs(*several), np.uint8) if label else volume(seed))
    arguments = _parser(command[1:]).parse_args(command[1:])
    plan = folder.plan(tmp_path / "in", **folder.keywords(arguments))
    assert {case.name: case.role.value for case in plan.cases} == roles
    options = Options(processes=1, other_values=arguments.other_values, empty_labels=arguments.empty_labels)
    report = write_dataset(plan, tmp_path / f"Dataset{arguments.d:03d}_{arguments.n}", options)
    assert report.failed == ()
    assert [record.voxels for record in report.records if record.voxels] != []


def test_scans_of_flare_2023_without_the_organ_are_unlabeled(tmp_path: Path) -> None:
    """Its labels name some organs, or tumors (14) alone; what nobody drew is no background."""
    (command,) = (words for words in COMMANDS if words[2] == "FLARE23")
    for number, values in ((1, (1, 7)), (2, (14,))):
        write(tmp_path / f"in/imagesTr2200/FLARE23_000{number}_0000.nii.gz", volume(number))
        write(tmp_path / f"in/labelsTr2200/FLARE23_000{number}.nii.gz", volume(slabs(*values), np.uint8))
    arguments = _parser(command[1:]).parse_args(command[1:])
    plan = folder.plan(tmp_path / "in", **folder.keywords(arguments))
    options = Options(processes=1, other_values=arguments.other_values, empty_labels=arguments.empty_labels)
    report = write_dataset(plan, tmp_path / "Dataset068_FLARE23", options)
    assert report.exit_code == 0
    assert {record.name: record.role.value for record in report.records} == {
        "FLARE23_0001": "labeled",
        "FLARE23_0002": "unlabeled",
    }
