"""M&Ms' folders: 4D files with two annotated frames that a table names, official unlabeled patients, three parts."""

import gzip
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from synthetic_volumes import SIZE_ZYX, slabs, volume, write

from nnunet_dualcl.dataset_conversion import mnms
from nnunet_dualcl.dataset_conversion.plan import Plan
from nnunet_dualcl.errors import DualCLError

FRAMES, ED, ES = 4, 0, 2
LABELED, UNLABELED, VALIDATION, TESTING = "Training/Labeled", "Training/Unlabeled", "Validation", "Testing"
RELEASE = {"A1B2C3": LABELED, "K4L5M6": LABELED, "D7E8F9": UNLABELED, "G1H2I3": VALIDATION, "B9C8D7": TESTING}


def tree(folder: Path, patients: dict[str, str] = RELEASE, *, ed: Any = ED, es: Any = ES) -> Path:
    """Patients as published: frames ED and ES annotated in the 4D label, the others empty there."""
    lines = [",External code,Vendor,VendorName,Centre,ED,ES"]
    for index, (code, part) in enumerate(patients.items()):
        place = folder / part / code
        series = [volume(seed(code, frame)) for frame in range(FRAMES)]
        write(place / f"{code}_sa.nii.gz", sitk.JoinSeries(series, 0.0, 1.0))
        if part != UNLABELED:
            empty = np.zeros(SIZE_ZYX, np.uint8)
            labels = [volume(slabs(1, 2, 3) if frame in (ED, ES) else empty, np.uint8) for frame in range(FRAMES)]
            write(place / f"{code}_sa_gt.nii.gz", sitk.JoinSeries(labels, 0.0, 1.0))
        lines.append(f"{index},{code},A,Siemens,1,{ed},{es}")
    (folder / "211230_M&Ms_Dataset_information_diagnosis_opendataset.csv").write_text("\n".join(lines) + "\n")
    return folder


def seed(code: str, frame: int) -> int:
    return 10 * sum(map(ord, code)) + frame


def roles(plan: Plan) -> dict[str, str]:
    return {case.name: case.role.value for case in plan.cases}


def test_the_challenges_parts(tmp_path: Path) -> None:
    plan = mnms.plan(tree(tmp_path))
    assert roles(plan) == {
        "A1B2C3_frame00": "labeled",
        "A1B2C3_frame02": "labeled",
        "B9C8D7_frame00": "test",
        "B9C8D7_frame02": "test",
        "D7E8F9_frame00": "unlabeled",
        "D7E8F9_frame02": "unlabeled",
        "G1H2I3_frame00": "labeled",
        "G1H2I3_frame02": "labeled",
        "K4L5M6_frame00": "labeled",
        "K4L5M6_frame02": "labeled",
    }
    assert plan.split == (
        {
            "train": ["A1B2C3_frame00", "A1B2C3_frame02", "K4L5M6_frame00", "K4L5M6_frame02"],
            "val": ["G1H2I3_frame00", "G1H2I3_frame02"],
        },
    )
    assert dict(plan.labels) == {"left ventricle": 1, "myocardium": 2, "right ventricle": 3}
    assert (plan.refused, plan.damaged, plan.notes) == ((), (), ())


def test_image_and_label_are_the_frame_that_the_table_names(tmp_path: Path) -> None:
    cases = {case.name: case for case in mnms.plan(tree(tmp_path)).cases}
    for frame in (ED, ES):
        scan = cases[f"A1B2C3_frame{frame:02d}"].load()
        expected = volume(seed("A1B2C3", frame))
        np.testing.assert_array_equal(*map(sitk.GetArrayFromImage, (scan.channels[0], expected)))
        assert scan.channels[0].GetDirection() == pytest.approx(expected.GetDirection())
        assert scan.label is not None
        np.testing.assert_array_equal(sitk.GetArrayFromImage(scan.label), slabs(1, 2, 3))
    assert cases["B9C8D7_frame02"].load().label is not None
    assert cases["D7E8F9_frame02"].load().label is None


def test_frames_that_nobody_annotated(tmp_path: Path) -> None:
    plan = mnms.plan(tree(tmp_path), frames=True, labeled=1)
    by_patient: dict[str, set[str]] = {}
    for case in plan.cases:
        by_patient.setdefault(case.patient, set()).add(f"{case.name[-2:]} {case.role.value}")
    assert by_patient == {
        "A1B2C3": {"00 labeled", "01 unlabeled", "02 labeled", "03 unlabeled"},
        "K4L5M6": {f"0{frame} unlabeled" for frame in range(FRAMES)},
        "D7E8F9": {f"0{frame} unlabeled" for frame in range(FRAMES)},
        "G1H2I3": {"00 labeled", "02 labeled"},
        "B9C8D7": {"00 test", "02 test"},
    }
    (last,) = (case.load() for case in plan.cases if case.name == "A1B2C3_frame03")
    np.testing.assert_array_equal(*map(sitk.GetArrayFromImage, (last.channels[0], volume(seed("A1B2C3", 3)))))
    assert last.label is None


def test_conversion(tmp_path: Path) -> None:
    report = mnms.convert(tree(tmp_path / "OpenDataset"), tmp_path / "Dataset114_MNMs", labeled=1)
    assert report.exit_code == 0
    (fold,) = report.folds
    assert fold == {"train": ["A1B2C3_frame00", "A1B2C3_frame02"], "val": ["G1H2I3_frame00", "G1H2I3_frame02"]}
    names = {"imagesTr": 4, "labelsTr": 4, "imagesUnlabeled": 4, "imagesTs": 2, "labelsTs": 2}
    assert {name: len(list((report.target / name).iterdir())) for name in names} == names


def test_labels_of_unlabeled_cases_are_not_opened(tmp_path: Path) -> None:
    (tree(tmp_path) / LABELED / "K4L5M6/K4L5M6_sa_gt.nii.gz").write_bytes(b"poison")
    for case in mnms.plan(tmp_path, labeled=1).cases:
        assert (case.load().label is None) == (case.patient in ("K4L5M6", "D7E8F9"))


def test_lists_of_the_user(tmp_path: Path) -> None:
    (tmp_path / "train").write_text("G1H2I3\nK4L5M6\n")
    (tmp_path / "test").write_text("A1B2C3\n")
    lists = {"train_list": tmp_path / "train", "test_list": tmp_path / "test"}
    plan = mnms.plan(tree(tmp_path / "data"), val=1, **lists)
    assert {case.patient: case.role.value for case in plan.cases} == {
        "A1B2C3": "test",
        "D7E8F9": "unlabeled",
        "G1H2I3": "labeled",
        "K4L5M6": "labeled",
    }
    assert plan.split is not None
    assert plan.split[0]["val"] == ["K4L5M6_frame00", "K4L5M6_frame02"]
    assert [each.where for each in plan.refused] == ["Testing/B9C8D7/B9C8D7_sa.nii.gz"]


def test_files_without_folders_of_their_own(tmp_path: Path) -> None:
    for path in list(tree(tmp_path).rglob("*.nii.gz")):
        path.rename(path.parent.parent / path.name)
    assert roles(mnms.plan(tmp_path))["D7E8F9_frame00"] == "unlabeled"


def test_what_makes_no_case_is_named(tmp_path: Path) -> None:
    tree(tmp_path, {**RELEASE, "X1Y2Z3": LABELED, "O1P2Q3": LABELED})
    (tmp_path / LABELED / "K4L5M6/K4L5M6_sa_gt.nii.gz").unlink()
    (tmp_path / LABELED / "X1Y2Z3/X1Y2Z3_sa.nii.gz").unlink()
    write(tmp_path / LABELED / "again/A1B2C3_sa.nii.gz", volume())
    (table,) = tmp_path.glob("*.csv")
    table.write_text("\n".join(line for line in table.read_text().splitlines() if "O1P2Q3" not in line))
    plan = mnms.plan(tmp_path)
    assert {each.where.split("/")[-1]: each.reason for each in plan.damaged} == {
        "K4L5M6_sa.nii.gz": "its label _sa_gt is missing",
        "O1P2Q3_sa.nii.gz": "the table does not say which frames are ED and ES",
        "X1Y2Z3_sa_gt.nii.gz": "a label without its image",
    }
    assert ["found before" in each.reason for each in plan.refused] == [True]


def test_a_series_that_cannot_be_counted_keeps_its_annotated_frames(tmp_path: Path) -> None:
    (tree(tmp_path) / UNLABELED / "D7E8F9/D7E8F9_sa.nii.gz").write_bytes(b"broken")
    plan = mnms.plan(tmp_path, frames=True)
    assert [each.where for each in plan.refused] == ["Training/Unlabeled/D7E8F9/D7E8F9_sa.nii.gz"]
    with pytest.raises(DualCLError, match="D7E8F9_sa"):
        next(case for case in plan.cases if case.patient == "D7E8F9").load()


def test_axes_that_are_not_at_right_angles_are_refused(tmp_path: Path) -> None:
    """As some of the challenge's validation and test files have them."""
    path = tree(tmp_path) / VALIDATION / "G1H2I3/G1H2I3_sa.nii.gz"
    content = gzip.decompress(path.read_bytes())
    header = nibabel.Nifti1Header(content[:348])
    affine = header.get_sform()
    affine[:3, 0] += 0.1 * affine[:3, 1]
    header.set_sform(affine, code=2)
    header.set_qform(None, code=0)
    header["pixdim"][1] = np.linalg.norm(affine[:3, 0])
    path.write_bytes(gzip.compress(header.binaryblock + content[348:]))
    with pytest.raises(DualCLError, match=r"G1H2I3_sa\.nii\.gz: the axes in its header are not at right angles"):
        next(case for case in mnms.plan(tmp_path).cases if case.patient == "G1H2I3").load()


def test_frames_of_a_spreadsheet(tmp_path: Path) -> None:
    assert "A1B2C3_frame02" in roles(mnms.plan(tree(tmp_path, ed="0.0", es="2.0")))


def test_two_tables(tmp_path: Path) -> None:
    (table,) = tree(tmp_path).glob("*.csv")
    (tmp_path / "copy.csv").write_text(table.read_text())
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    (tmp_path / "huge.csv").write_text("a,b\n" + "1" * 200_000)
    assert len(mnms.plan(tmp_path).cases) == 10
    (tmp_path / "copy.csv").write_text(table.read_text().replace(",0,2\n", ",0.0,2.0\n"), encoding="utf-8-sig")
    assert len(mnms.plan(tmp_path).cases) == 10
    (tmp_path / "copy.csv").write_text(table.read_text().replace("A,Siemens,1,0,2", "A,Siemens,1,1,2"))
    with pytest.raises(DualCLError, match=r"gives frames 1 and 2 of A1B2C3, and 0 and 2 were found before"):
        mnms.plan(tmp_path)


def test_a_table_with_a_byte_order_mark_and_the_code_first(tmp_path: Path) -> None:
    (table,) = tree(tmp_path).glob("*.csv")
    lines = [line.split(",", 1)[1] for line in table.read_text().splitlines()]
    table.write_text("\n".join(lines), encoding="utf-8-sig")
    assert len(mnms.plan(tmp_path).cases) == 10


def test_a_release_without_labeled_patients(tmp_path: Path) -> None:
    with pytest.raises(DualCLError, match="Nobody is listed for training"):
        mnms.plan(tree(tmp_path, {"B9C8D7": TESTING, "D7E8F9": UNLABELED}))


def test_a_listed_patient_without_label_is_named(tmp_path: Path) -> None:
    (tmp_path / "train").write_text("A1B2C3\nD7E8F9\n")
    (tmp_path / "test").write_text("")
    plan = mnms.plan(tree(tmp_path / "data"), train_list=tmp_path / "train", test_list=tmp_path / "test")
    assert [each.where.split("/")[-1] for each in plan.damaged] == ["D7E8F9_sa.nii.gz"]


def test_a_folder_without_table_parts_or_series_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DualCLError, match="no series of M&Ms among 0 files"):
        mnms.plan(tmp_path)
    (table,) = tree(tmp_path).glob("*.csv")
    table.unlink()
    with pytest.raises(DualCLError, match="no CSV file with the columns External code, ED, ES"):
        mnms.plan(tmp_path)
    tree(tmp_path / "elsewhere", {"A1B2C3": "mine"})
    with pytest.raises(DualCLError, match="Keep the release's folders"):
        mnms.plan(tmp_path / "elsewhere")
