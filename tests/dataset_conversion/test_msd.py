"""The Decathlon's layout: lists of ``dataset.json``, several modalities in one 4D file, files of other systems."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from synthetic_volumes import slabs, volume, write

from nnunet_dualcl.dataset_conversion import msd
from nnunet_dualcl.dataset_conversion.plan import Role
from nnunet_dualcl.errors import DualCLError

DATA = Path(os.environ.get("DUALCL_TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))
HIPPOCAMPUS = DATA / "Task04_Hippocampus"


def task(folder: Path, modalities: tuple[str, ...] = ("MRI",), **changed: Any) -> Path:
    """Two training cases and a test case."""
    for number, name in enumerate(("imagesTr/heart_01", "imagesTr/heart_02", "imagesTs/heart_03")):
        seeds = range(10 * number, 10 * number + len(modalities))
        channels = [volume(seed, np.float32) for seed in seeds]
        write(folder / f"{name}.nii.gz", channels[0] if len(channels) == 1 else sitk.JoinSeries(channels, 0.0, 1.0))
        write(folder / f"imagesTr/._heart_0{number + 1}.nii.gz", volume())  # macOS leaves such files in archives
        if "Tr" in name:
            write(folder / f"{name.replace('images', 'labels')}.nii.gz", volume(slabs(1, 2), np.uint8))
    content = {
        "name": "Heart",
        "description": "Left atrium",
        "licence": "CC-BY-SA 4.0",
        "modality": {str(index): name for index, name in enumerate(modalities)},
        "labels": {"0": "background", "1": "atrium", "2": "wall"},
        "training": [
            {"image": f"./imagesTr/heart_0{n}.nii.gz", "label": f"./labelsTr/heart_0{n}.nii.gz"} for n in (2, 1)
        ],
        "test": ["./imagesTs/heart_03.nii.gz"],
    }
    (folder / "dataset.json").write_text(json.dumps({**content, **changed}))
    return folder


def test_cases_of_the_lists(tmp_path: Path) -> None:
    plan = msd.plan(task(tmp_path / "Task02_Heart"))
    assert [(case.name, case.role.value) for case in plan.cases] == [
        ("heart_01", "labeled"),
        ("heart_02", "labeled"),
        ("heart_03", "test"),
    ]
    assert (plan.channels, dict(plan.labels), plan.refused) == (("MRI",), {"atrium": 1, "wall": 2}, ())
    assert plan.about["licence"] == "CC-BY-SA 4.0"
    assert msd.plan(tmp_path / "Task02_Heart", unlabeled_test=True).cases[-1].role.value == "unlabeled"


def test_modalities_become_channels(tmp_path: Path) -> None:
    plan = msd.plan(task(tmp_path / "Task05_Prostate", ("T2", "ADC")))
    assert plan.channels == ("T2", "ADC")
    scan = plan.cases[1].load()
    for seed, channel in zip((10, 11), scan.channels, strict=True):
        np.testing.assert_array_equal(sitk.GetArrayFromImage(channel), sitk.GetArrayFromImage(volume(seed, np.float32)))
    report = msd.convert(tmp_path / "Task05_Prostate", tmp_path / "Dataset005_Prostate", unlabeled_test=True)
    assert report.exit_code == 0
    assert (tmp_path / "Dataset005_Prostate/imagesUnlabeled/heart_03_0001.nii.gz").is_file()


def test_a_file_that_is_missing_leaves_the_others(tmp_path: Path) -> None:
    folder = task(tmp_path / "Task02_Heart", test=["./imagesTs/heart_03.nii.gz", "./imagesTr/heart_01.nii.gz"])
    (folder / "labelsTr/heart_02.nii.gz").unlink()
    plan = msd.plan(folder)
    assert [case.name for case in plan.cases] == ["heart_01", "heart_03"]
    assert [each.reason for each in plan.refused] == ["is listed twice"]
    assert [each.reason for each in plan.damaged] == ["not found, or no .nii.gz: heart_02.nii.gz"]


def test_a_list_for_validation_becomes_the_fold(tmp_path: Path) -> None:
    """AMOS comes with one."""
    listed = [{"image": f"./imagesTr/heart_0{n}.nii.gz", "label": f"./labelsTr/heart_0{n}.nii.gz"} for n in (1, 2)]
    folder = task(tmp_path / "Task02_Heart", training=listed[1:], validation=listed[:1])
    with_mark = (folder / "dataset.json").read_text(encoding="utf-8")
    (folder / "dataset.json").write_text(with_mark, encoding="utf-8-sig")  # as Windows saves it
    report = msd.convert(folder, tmp_path / "Dataset002_Heart")
    assert (report.exit_code, report.count(Role.LABELED)) == (0, 2)
    splits = json.loads((tmp_path / "Dataset002_Heart/splits_final.json").read_text(encoding="utf-8"))
    assert splits == [{"train": ["heart_02"], "val": ["heart_01"]}]


def test_ct_and_mr_of_amos_are_not_one_channel(tmp_path: Path) -> None:
    """Its ``dataset.json`` lists both, MR from number 501 on."""
    ct = [{"image": f"./imagesTr/amos_{n}.nii.gz", "label": f"./labelsTr/amos_{n}.nii.gz"} for n in ("0001", "0410")]
    mr = [{"image": "./imagesVa/amos_0507.nii.gz", "label": "./labelsVa/amos_0507.nii.gz"}]
    test = [{"image": "./imagesTs/amos_0500.nii.gz"}]
    folder = task(tmp_path / "amos22", ("CT",), training=ct, validation=mr, test=test)
    with pytest.raises(DualCLError, match=r"CT scans \(to amos_0500\) and MR scans \(above\) together"):
        msd.plan(folder)
    assert len(msd.plan(task(tmp_path / "ct", ("CT",), training=ct, test=test)).damaged) == 3  # the files are not there


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"Give the folder of one task, such as .*Task02_Heart"),
        ("{", "cannot be read"),
        ("[]", "holds list"),
        ('{"channel_names": {}}', "is nnU-Net's"),
        ('{"modality": {"0": "CT"}}', "not as the Decathlon's"),
    ],
)
def test_descriptions_that_will_not_do(tmp_path: Path, content: str | None, message: str) -> None:
    task(tmp_path / "Task02_Heart")
    if content is not None:
        (tmp_path / "dataset.json").write_text(content)
    with pytest.raises(DualCLError, match=message):
        msd.plan(tmp_path)


@pytest.mark.skipif(not HIPPOCAMPUS.is_dir(), reason=f"no Task04_Hippocampus in {DATA}")
def test_real_task(tmp_path: Path) -> None:
    plan = msd.plan(HIPPOCAMPUS)
    assert (len(plan.cases), plan.refused) == (195, ())
    assert dict(plan.labels) == {"Anterior": 1, "Posterior": 2}
    for case in plan.cases[::65]:
        scan = case.load()
        assert scan.label is not None
        assert scan.label.GetSize() == scan.channels[0].GetSize()
        assert set(np.unique(sitk.GetArrayViewFromImage(scan.label))) == {0, 1, 2}
