"""One writer for all sources: checks, files, splits, leaks, resuming, the report."""

import gzip
import json
import os
import re
import shutil
import subprocess
import sys
from collections import namedtuple
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from filelock import FileLock
from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity
from synthetic_volumes import slabs, volume, write

from nnunet_dualcl.data.cases import unlabeled_case_images
from nnunet_dualcl.dataset_conversion import write as writer
from nnunet_dualcl.dataset_conversion.one_case import hash_of
from nnunet_dualcl.dataset_conversion.plan import Options, Plan, Refusal, Role, Scan, SourceCase
from nnunet_dualcl.dataset_conversion.write import dry_run, write_dataset
from nnunet_dualcl.errors import DualCLError

NAME = "Dataset007_Toy"
ALONE = Options(processes=1)


def load(images: tuple[Path, ...], label: Path | None) -> Scan:
    return Scan(
        tuple(sitk.ReadImage(str(path)) for path in images), None if label is None else sitk.ReadImage(str(label))
    )


def fail(error: Exception) -> Scan:
    raise error


def source_case(
    folder: Path,
    name: str,
    role: Role = Role.LABELED,
    *,
    seed: int | None = None,
    label: np.ndarray | None = None,
    patient: str = "",
    channels: int = 1,
    **changed: Any,
) -> SourceCase:
    seed = sum(name.encode()) if seed is None else seed
    images = tuple(write(folder / f"{name}_{i}.mha", volume(seed + 1000 * i)) for i in range(channels))
    label = slabs(1, 2) if label is None and role is not Role.UNLABELED else label
    written = None if label is None else write(folder / f"{name}_label.mha", volume(label, label.dtype, **changed))
    files = images if written is None else (*images, written)
    return SourceCase(name, patient or name, role, partial(load, images, written), files, f"source of {name}")


def plan_of(*cases: SourceCase, **changed: Any) -> Plan:
    values: dict[str, Any] = {"channels": ("MR",), "labels": {"a": 1, "b": 2}, "cases": cases}
    return Plan("toy", **{**values, **changed})


def everything_in(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def toy(tmp_path: Path) -> Plan:
    source = tmp_path / "source"
    roles = {"t1": Role.TEST, "u1": Role.UNLABELED, "u2": Role.UNLABELED}
    return plan_of(
        *(source_case(source, name, roles.get(name, Role.LABELED)) for name in ("l1", "l2", "t1", "u1", "u2"))
    )


def test_a_dataset_as_nnunet_wants_it(toy: Plan, tmp_path: Path) -> None:
    target = tmp_path / NAME
    report = write_dataset(toy, target, ALONE)
    assert report.exit_code == 0
    assert {path.relative_to(target).as_posix() for path in target.rglob("*.nii.gz")} == {
        "imagesTr/l1_0000.nii.gz", "imagesTr/l2_0000.nii.gz", "labelsTr/l1.nii.gz", "labelsTr/l2.nii.gz",
        "imagesTs/t1_0000.nii.gz", "labelsTs/t1.nii.gz",
        "imagesUnlabeled/u1_0000.nii.gz", "imagesUnlabeled/u2_0000.nii.gz",
    }  # fmt: skip
    verify_dataset_integrity(str(target), num_processes=1)
    content = json.loads((target / "dataset.json").read_text())
    assert (content["channel_names"], content["numTraining"]) == ({"0": "MR"}, 2)
    assert content["labels"] == {"background": 0, "a": 1, "b": 2}
    assert list(unlabeled_case_images(target, content, [])) == ["u1", "u2"]
    folds = json.loads((target / "splits_final.json").read_text())
    assert sorted(fold["val"] for fold in folds) == [["l1"], ["l2"]]
    written = sitk.ReadImage(str(target / "imagesTr/l1_0000.nii.gz"))
    np.testing.assert_array_equal(
        sitk.GetArrayFromImage(written), sitk.GetArrayFromImage(toy.cases[0].load().channels[0])
    )
    assert written.GetPixelID() == sitk.sitkInt16


def test_a_published_split_is_kept_less_what_failed(tmp_path: Path) -> None:
    cases = [source_case(tmp_path, name) for name in ("a", "b", "c")]
    cases[1] = replace(cases[1], load=partial(fail, DualCLError("no good")))
    split = ({"train": ["a", "b"], "val": ["c"], "unlabeled": []},)
    report = write_dataset(plan_of(*cases, split=split), tmp_path / NAME, ALONE)
    assert list(report.folds) == [{"train": ["a"], "val": ["c"], "unlabeled": []}]
    assert [(each.where, each.reason) for each in report.failed] == [("b (source of b)", "no good")]
    assert report.exit_code == 1
    assert "failed: b (source of b): no good" in report.summary()


def test_the_same_input_gives_the_same_bytes(toy: Plan, tmp_path: Path) -> None:
    first, second = tmp_path / "1" / NAME, tmp_path / "2" / NAME
    write_dataset(toy, first, ALONE)
    write_dataset(replace(toy, cases=toy.cases[::-1]), second, Options(processes=2))
    assert everything_in(first) == everything_in(second)
    assert not [name for name in everything_in(first) if "partial" in name]


def test_an_interrupted_run_goes_on(toy: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, target = tmp_path / "whole" / NAME, tmp_path / NAME
    write_dataset(toy, whole, ALONE)
    original, count = writer.convert_case, iter(range(9))

    def interrupted(*arguments: Any) -> Any:
        if next(count) == 2:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(writer, "convert_case", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_dataset(toy, target, ALONE)
    monkeypatch.undo()
    assert not (target / "dataset.json").exists()
    (target / "imagesTr" / ".l9_0000.partial-1.nii.gz").write_bytes(b"half")
    with pytest.raises(DualCLError, match="Go on with it by --resume"):
        write_dataset(toy, target, ALONE)
    kept = target / "imagesTr" / "l1_0000.nii.gz"
    before = kept.stat().st_mtime_ns
    write_dataset(toy, target, replace(ALONE, resume=True))
    assert kept.stat().st_mtime_ns == before
    assert everything_in(target) == everything_in(whole)


def test_the_description_comes_last(toy: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a run was killed before it wrote cannot be missed by those who go by dataset.json."""
    written: list[str] = []

    def noting(path: Path, content: Any) -> None:
        written.append(path.relative_to(tmp_path / NAME).as_posix())
        path.parent.mkdir(exist_ok=True)

    monkeypatch.setattr(writer, "write_text", noting)
    monkeypatch.setattr(writer, "write_table", noting)
    monkeypatch.setattr(writer, "write_report", lambda report: written.append("report"))
    write_dataset(toy, tmp_path / NAME, ALONE)
    assert written[-4:] == ["conversion/patients.csv", "report", "splits_final.json", "dataset.json"]


def test_resuming_redoes_what_failed_changed_or_is_lost(toy: Plan, tmp_path: Path) -> None:
    target = tmp_path / NAME
    failing = replace(toy.cases[1], load=partial(fail, DualCLError("not yet")))
    report = write_dataset(replace(toy, cases=(toy.cases[0], failing, *toy.cases[2:])), target, ALONE)
    assert len(report.failed) == 1
    (target / "labelsTs" / "t1.nii.gz").unlink()
    write(toy.cases[0].files[0], volume(99, np.int32))
    report = write_dataset(toy, target, replace(ALONE, resume=True))
    assert (report.failed, len(report.records)) == ((), 5)
    assert (target / "labelsTs" / "t1.nii.gz").is_file()
    written = sitk.ReadImage(str(target / "imagesTr" / "l1_0000.nii.gz"))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(written), sitk.GetArrayFromImage(volume(99)))


def test_what_a_changed_source_no_longer_gives_goes(toy: Plan, tmp_path: Path) -> None:
    target = tmp_path / NAME
    write_dataset(toy, target, ALONE)
    label = toy.cases[0].files[1]
    write(label, volume(slabs(9), np.uint16))
    report = write_dataset(toy, target, replace(ALONE, resume=True))
    assert "holds 9" in report.failed[0].reason
    assert not list(target.rglob("l1*"))
    verify_dataset_integrity(str(target), num_processes=1)
    with pytest.raises(DualCLError, match="holds l2, which the source has no more"):
        write_dataset(replace(toy, cases=(toy.cases[0], *toy.cases[2:])), target, replace(ALONE, resume=True))


def test_resuming_with_other_options_is_refused(toy: Plan, tmp_path: Path) -> None:
    target = tmp_path / NAME
    write_dataset(toy, target, ALONE)
    with pytest.raises(DualCLError, match=r"labels .* now .*\. Repeat with those of before"):
        write_dataset(replace(toy, labels={"a": 1, "c": 2}), target, replace(ALONE, resume=True))
    loosened = replace(ALONE, resume=True, empty_labels="keep")
    write_dataset(toy, target, loosened)  # for cases that failed
    with pytest.raises(DualCLError, match="seed 0, now 5"):
        write_dataset(toy, target, replace(loosened, seed=5))
    with pytest.raises(DualCLError, match="empty_labels 'keep', now 'unlabeled'"):
        write_dataset(toy, target, replace(ALONE, resume=True, empty_labels="unlabeled"))
    with pytest.raises(DualCLError, match=r"settings .*'--spacing': '3'"):
        write_dataset(replace(toy, settings={"--spacing": "3"}), target, loosened)
    moved = (replace(toy.cases[0], role=Role.UNLABELED), *toy.cases[1:])
    with pytest.raises(DualCLError, match="l1 was converted as labeled, and is unlabeled now"):
        write_dataset(replace(toy, cases=moved), target, loosened)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Toy", "nnU-Net wants a folder such as"),
        ("Dataset7_Toy", "nnU-Net wants a folder such as"),
        ("Dataset007_To y", "nnU-Net wants a folder such as"),
        ("Dataset008_Other", "has the number 008 already"),
        ("Dataset009_Foreign", "was not made by this program"),
    ],
)
def test_targets_that_will_not_do(toy: Plan, tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "Dataset008_There").mkdir()
    (tmp_path / "Dataset009_Foreign").mkdir()
    with pytest.raises(DualCLError, match=message):
        write_dataset(toy, tmp_path / name, replace(ALONE, resume=True))
    with pytest.raises(DualCLError, match=message):
        dry_run(toy, tmp_path / name, replace(ALONE, resume=True))
    assert not list((tmp_path / "Dataset009_Foreign").iterdir())


def test_a_full_disk_is_noticed_before_anything_is_written(
    toy: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")(1, 1, 100)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(DualCLError, match=r"0\.0 GiB free.*Make room"):
        write_dataset(toy, tmp_path / NAME, ALONE)
    assert not (tmp_path / NAME).exists()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"labels": {"a": 1, "b": 3}}, r"without a gap, got \[0, 1, 3\]"),
        ({"labels": {}}, "without a gap"),
        ({"labels": {"ignore": 1, "a": 2}}, "highest value of all labels for nnU-Net. Name it last"),
        ({"cases": ()}, "No labeled case .*from labeled cases. x: y"),
    ],
)
def test_plans_that_train_nothing(toy: Plan, tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    with pytest.raises(DualCLError, match=message):
        write_dataset(replace(toy, refused=(Refusal("x", "y"),), **changed), tmp_path / NAME, ALONE)


def test_case_names_must_be_plain_and_unique(toy: Plan, tmp_path: Path) -> None:
    for name in ("a b", "l2", "L2"):
        with pytest.raises(DualCLError, match=f"unique and of letters.* {name}"):
            write_dataset(
                replace(toy, cases=(replace(toy.cases[0], name=name), *toy.cases[1:])), tmp_path / NAME, ALONE
            )


def test_one_scan_under_two_names_stays_once_and_never_leaks(tmp_path: Path) -> None:
    source = tmp_path / "source"
    cases = [
        source_case(source, "a", seed=1),
        source_case(source, "b", seed=2),
        source_case(source, "c", Role.UNLABELED, seed=1),
        source_case(source, "d", Role.TEST, seed=3),
        source_case(source, "e", Role.UNLABELED, seed=3),
        source_case(source, "f", seed=3),
    ]
    # the same values in another type are the same scan
    write(cases[2].files[0], volume(sitk.GetArrayFromImage(cases[0].load().channels[0]), np.float32))
    report = write_dataset(plan_of(*cases), tmp_path / NAME, ALONE)
    assert [record.name for record in report.records] == ["a", "b", "d"]
    assert [each.reason for each in report.repeated] == [
        "c has the same voxels as a",
        "e has the same voxels as d",
        "f has the same voxels as d",
    ]
    written = [
        path.name.split("_")[0].split(".")[0] for path in (tmp_path / NAME).rglob("*.*") if path.suffix != ".html"
    ]
    assert not {"c", "e", "f"} & set(written)
    assert json.loads((tmp_path / NAME / "dataset.json").read_text())["numTraining"] == 2


def test_a_patient_of_the_test_set_is_left_out_of_training(tmp_path: Path) -> None:
    source = tmp_path / "source"
    cases = [
        source_case(source, "a", patient="p1"),
        source_case(source, "b", patient="p2"),
        source_case(source, "c", Role.TEST, patient="p2"),
        source_case(source, "d", Role.UNLABELED, patient="p2"),
        source_case(source, "e", Role.UNLABELED, patient="p1"),
        source_case(source, "f", patient="p3"),
    ]
    report = write_dataset(plan_of(*cases), tmp_path / NAME, ALONE)
    assert [record.name for record in report.records] == ["a", "c", "e", "f"]
    assert {each.where for each in report.plan.refused} == {"source of b", "source of d"}
    # e, of patient p1, is trained on in every fold, so a is never validated on
    assert [fold["val"] for fold in report.folds] == [["f"]]


def test_people_with_one_scan_are_one_person(tmp_path: Path) -> None:
    """The scan b repeats that of a, so patient q is patient p: neither in training, nor on two sides of a fold."""
    source = tmp_path / "source"
    cases = [
        source_case(source, "a", Role.TEST, seed=1, patient="p"),
        source_case(source, "b", seed=1, patient="q"),
        source_case(source, "c", seed=2, patient="q"),
        source_case(source, "d", seed=3, patient="r"),
        source_case(source, "e", seed=3, patient="s"),
        source_case(source, "f", seed=4, patient="s"),
        source_case(source, "g", seed=5, patient="t"),
    ]
    report = write_dataset(plan_of(*cases), tmp_path / NAME, ALONE)
    assert [(record.name, record.patient) for record in report.records] == [
        ("a", "p"), ("d", "r"), ("f", "r"), ("g", "t"),
    ]  # fmt: skip
    assert "c: its patient is in the test set by another identifier" in [each.reason for each in report.repeated]
    assert sorted(fold["val"] for fold in report.folds) == [["d", "f"], ["g"]]
    assert not list((tmp_path / NAME).rglob("c[_.]*"))


def test_an_empty_label_of_a_validated_patient_is_not_trained_on(tmp_path: Path) -> None:
    cases = [source_case(tmp_path, "a"), source_case(tmp_path, "b", patient="v")]
    cases.append(source_case(tmp_path, "c", patient="v", label=slabs()))
    split = ({"train": ["a"], "val": ["b", "c"]},)
    options = replace(ALONE, empty_labels="unlabeled")
    report = write_dataset(plan_of(*cases, split=split), tmp_path / NAME, options)
    assert [record.name for record in report.records] == ["a", "b"]
    assert "c has an empty label, and its patient is validated on" in report.repeated[0].reason


def test_a_case_that_cannot_be_written_leaves_nothing(
    toy: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = sitk.WriteImage

    def full(image: sitk.Image, path: str, **options: Any) -> None:
        if "labelsTr/.l2" in path:
            raise RuntimeError("no space left on device")
        original(image, path, **options)

    monkeypatch.setattr(sitk, "WriteImage", full)
    report = write_dataset(toy, tmp_path / NAME, ALONE)
    assert "no space left" in report.failed[0].reason
    assert not list((tmp_path / NAME).rglob("*l2*"))
    verify_dataset_integrity(str(tmp_path / NAME), num_processes=1)


def test_two_conversions_do_not_meet_on_one_target(toy: Plan, tmp_path: Path) -> None:
    (tmp_path / NAME / "conversion").mkdir(parents=True)
    lock = FileLock(tmp_path / NAME / "conversion" / "lock")
    write_dataset(toy, tmp_path / "other" / NAME, ALONE)
    shutil.copyfile(
        tmp_path / "other" / NAME / "conversion" / "plan.json", tmp_path / NAME / "conversion" / "plan.json"
    )
    with lock, pytest.raises(DualCLError, match="Another conversion is at work"):
        write_dataset(toy, tmp_path / NAME, replace(ALONE, resume=True))
    assert not list((tmp_path / NAME).rglob("*.nii.gz"))


def test_a_dataset_that_is_being_redone_does_not_look_finished(toy: Plan, tmp_path: Path) -> None:
    write_dataset(toy, tmp_path / NAME, ALONE)
    broken = [replace(case, load=partial(fail, DualCLError("gone")), files=()) for case in toy.cases]
    report = write_dataset(replace(toy, cases=tuple(broken)), tmp_path / NAME, replace(ALONE, resume=True))
    assert report.records == ()
    for name in ("dataset.json", "splits_final.json", "imagesTr/l1_0000.nii.gz"):
        assert not (tmp_path / NAME / name).exists()


def test_what_a_header_tells_about_people_does_not_travel(tmp_path: Path) -> None:
    case = source_case(tmp_path, "a")
    nifti = write(tmp_path / "named.nii.gz", volume(3))
    named = nibabel.load(nifti)
    named.header["descrip"] = b"Doe^Jane 19500101"
    nibabel.save(named, nifti)
    assert b"Doe^Jane" in gzip.decompress(nifti.read_bytes())
    case = replace(case, load=partial(load, (nifti,), case.files[1]))
    write_dataset(plan_of(case), tmp_path / NAME, ALONE)
    written = (tmp_path / NAME / "imagesTr" / "a_0000.nii.gz").read_bytes()
    assert b"Doe" not in gzip.decompress(written)


def test_a_correction_in_place_is_noticed(toy: Plan, tmp_path: Path) -> None:
    write_dataset(toy, tmp_path / NAME, ALONE)
    label = toy.cases[0].files[1]
    size = label.stat().st_size
    write(label, volume(slabs(2, 1), np.uint8))
    before = everything_in(tmp_path / NAME)["labelsTr/l1.nii.gz"]
    write_dataset(toy, tmp_path / NAME, replace(ALONE, resume=True))
    assert abs(label.stat().st_size - size) < 9
    assert everything_in(tmp_path / NAME)["labelsTr/l1.nii.gz"] != before


def test_a_correction_within_a_large_file_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "label.nii"
    with path.open("wb") as stream:
        stream.truncate(70 * 2**20)
    before = hash_of([path])
    with path.open("r+b") as stream:
        stream.seek(100_003)
        stream.write(b"\2")
    assert hash_of([path]) != before


def bad_cases(folder: Path) -> dict[str, tuple[SourceCase, str]]:
    """Cases whose files can be read and whose content will not do."""
    shifted = {"origin": (5.5, -7, 11)}
    image = write(folder / "flat.mha", volume(np.full((7, 9, 11), 3)))
    wide = write(folder / "wide.mha", volume(np.arange(693).reshape(7, 9, 11) * 10**9, np.int64))
    huge = write(folder / "huge.mha", volume(np.where(slabs(1), 1e300, 0), np.float64))
    fine = write(folder / "fine.mha", volume(1 + 1e-12 * slabs(1), np.float64))
    good = source_case(folder, "good")
    return {
        "shifted by half a voxel": (source_case(folder, "c1", label=slabs(1), **shifted), "on another grid.*origin"),
        "another spacing": (source_case(folder, "c2", label=slabs(1), spacing=(1, 1.5, 3.1)), "grid.*spacing"),
        "another size": (source_case(folder, "c3", label=slabs(1)[1:]), "on another grid.*size 11x9x6"),
        "fractions": (source_case(folder, "c4", label=slabs(1, dtype=np.float32) / 2), "no whole numbers"),
        "NaN": (source_case(folder, "c5", label=slabs(1, dtype=np.float32) * np.nan), "no whole numbers, such as nan"),
        "unknown value": (source_case(folder, "c6", label=slabs(1, 9)), "holds 9, which stand for nothing"),
        "negative value": (source_case(folder, "c7", label=slabs(1, dtype=np.int16) - 1), "holds -1"),
        "empty": (source_case(folder, "c8", label=slabs()), "background in every voxel"),
        "no label": (replace(good, name="c9", load=partial(load, good.files[:1], None)), "has no label"),
        "no contrast": (replace(good, name="c10", load=partial(load, (image,), good.files[1])), "is 3 in every voxel"),
        "too wide": (replace(good, name="c11", load=partial(load, (wide,), good.files[1])), "beyond 32 bits"),
        "too large": (
            replace(good, name="c16", load=partial(load, (huge,), good.files[1])),
            "from 0.0 to inf, beyond 32",
        ),
        "too fine": (replace(good, name="c17", load=partial(load, (fine,), good.files[1])), "is 1.0 in every voxel"),
        "too many channels": (
            replace(good, name="c12", load=partial(load, good.files[:1] * 2, good.files[1])),
            "2 channels, 1 are wanted: MR",
        ),
        "unforeseen": (replace(good, name="c13", load=partial(fail, KeyError("x"))), "KeyError: 'x'"),
        "out of memory": (replace(good, name="c14", load=partial(fail, MemoryError())), "MemoryError"),
        "unreadable": (replace(good, name="c15", load=partial(load, (folder / "gone.mha",), None)), "RuntimeError"),
    }


def test_bad_cases_fail_alone_with_their_reason(tmp_path: Path) -> None:
    bad = bad_cases(tmp_path / "source")
    good = source_case(tmp_path / "source", "good")
    report = write_dataset(plan_of(good, *(case for case, _ in bad.values())), tmp_path / NAME, ALONE)
    assert [record.name for record in report.records] == ["good"]
    reasons = {each.where.split()[0]: each.reason for each in report.failed}
    assert len(reasons) == len(bad)
    for fault, (case, message) in bad.items():
        with pytest.raises(AssertionError, match=message):
            raise AssertionError(f"{fault}: {reasons[case.name]}")
    files = [path.name for path in (tmp_path / NAME).rglob("c[0-9]*")]
    assert files == []
    verify_dataset_integrity(str(tmp_path / NAME), num_processes=1)


def test_a_shifted_label_is_resampled_on_demand(tmp_path: Path) -> None:
    case = source_case(tmp_path, "a", label=slabs(1), origin=(5.4, -7, 11))
    report = write_dataset(plan_of(case), tmp_path / NAME, replace(ALONE, resample_labels=True))
    assert "the label was resampled" in report.records[0].notes[0]
    verify_dataset_integrity(str(tmp_path / NAME), num_processes=1)


def test_a_label_that_lost_its_header_keeps_its_voxels_on_demand(tmp_path: Path) -> None:
    """Saved without an affine it lies elsewhere, and resampling it would draw something else."""
    case = source_case(tmp_path, "a", label=slabs(1, 2))
    lost = sitk.GetImageFromArray(slabs(1, 2))
    write(case.files[1], lost)
    (failed,) = write_dataset(plan_of(case), tmp_path / "1" / NAME, ALONE).failed
    assert "repeat with --copy-label-headers" in failed.reason
    options = replace(ALONE, resume=True, copy_label_headers=True)
    report = write_dataset(plan_of(case), tmp_path / "1" / NAME, options)
    assert "the label got the header of its image" in report.records[0].notes[0]
    written = sitk.ReadImage(str(tmp_path / "1" / NAME / "labelsTr/a.nii.gz"))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(written), slabs(1, 2))
    verify_dataset_integrity(str(tmp_path / "1" / NAME), num_processes=1)
    resampled = write_dataset(
        plan_of(case), tmp_path / "2" / NAME, replace(ALONE, resample_labels=True, empty_labels="keep")
    )
    assert re.search(r"\d+% of it lay OUTSIDE of the image", resampled.records[0].notes[0])


def test_a_label_of_another_size_cannot_have_lost_its_header_alone(tmp_path: Path) -> None:
    case = source_case(tmp_path, "a", label=slabs(1)[:5])
    (failed,) = write_dataset(plan_of(case), tmp_path / NAME, replace(ALONE, copy_label_headers=True)).failed
    assert "size 11x9x5 voxels, not 11x9x7" in failed.reason
    assert "--copy-label-headers" not in failed.reason


def test_values_that_nobody_named_are_background_on_demand(tmp_path: Path) -> None:
    case = source_case(tmp_path, "a", label=slabs(1, 2, 5))
    (failed,) = write_dataset(plan_of(case), tmp_path / NAME, ALONE).failed
    assert "holds 5, which stand for nothing" in failed.reason
    assert "--other-values background" in failed.reason
    report = write_dataset(plan_of(case), tmp_path / NAME, replace(ALONE, resume=True, other_values="background"))
    assert report.records[0].notes == ("label values taken as background: 5",)
    written = sitk.ReadImage(str(tmp_path / NAME / "labelsTr/a.nii.gz"))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(written), slabs(1, 2))


def test_a_case_that_got_its_label_later_is_done_anew(tmp_path: Path) -> None:
    source = tmp_path / "source"
    cases = [source_case(source, "a"), source_case(source, "b", Role.UNLABELED)]
    write_dataset(plan_of(*cases), tmp_path / NAME, ALONE)
    cases[1] = source_case(source, "b")
    report = write_dataset(plan_of(*cases), tmp_path / NAME, replace(ALONE, resume=True))
    assert [record.role for record in report.records] == [Role.LABELED, Role.LABELED]
    assert not list((tmp_path / NAME / "imagesUnlabeled").iterdir())
    assert (tmp_path / NAME / "labelsTr/b.nii.gz").is_file()
    cases[1] = source_case(source, "b", Role.UNLABELED)
    with pytest.raises(DualCLError, match="b was converted as labeled, and is unlabeled now"):
        write_dataset(plan_of(*cases), tmp_path / NAME, replace(ALONE, resume=True))


def test_scans_that_point_elsewhere_are_noted(tmp_path: Path) -> None:
    cases = [source_case(tmp_path, name) for name in ("a", "b", "c")]
    turned = volume(5)
    turned.SetDirection((-1, 0, 0, 0, -1, 0, 0, 0, 1))
    write(cases[2].files[0], turned)
    label = volume(slabs(1, 2), np.uint8)
    label.CopyInformation(turned)
    write(cases[2].files[1], label)
    report = write_dataset(plan_of(*cases), tmp_path / NAME, ALONE)
    assert any(note.startswith("axes point to different sides (2 LPS, 1 RAS)") for note in report.warnings())
    alike = write_dataset(plan_of(*cases[:2]), tmp_path / "2" / NAME, ALONE)
    assert not any("axes point" in note for note in alike.warnings())


def test_resampling_can_be_asked_for_after_a_failure(tmp_path: Path) -> None:
    plan = plan_of(source_case(tmp_path, "a"), source_case(tmp_path, "b", label=slabs(1), origin=(5.4, -7, 11)))
    assert write_dataset(plan, tmp_path / NAME, ALONE).exit_code == 1
    report = write_dataset(plan, tmp_path / NAME, replace(ALONE, resume=True, resample_labels=True))
    assert (report.exit_code, len(report.records)) == (0, 2)


def test_rounding_in_a_label_header_is_mended_silently(tmp_path: Path) -> None:
    case = source_case(tmp_path, "a", label=slabs(1), origin=(5.0005, -7, 11))
    report = write_dataset(plan_of(case), tmp_path / NAME, ALONE)
    assert report.records[0].notes == ()
    image, label = (
        sitk.ReadImage(str(tmp_path / NAME / name)) for name in ("imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz")
    )
    assert image.GetOrigin() == label.GetOrigin()


def test_channels_on_two_grids_are_resampled_on_demand(tmp_path: Path) -> None:
    case = source_case(tmp_path, "a", channels=2)
    write(case.files[1], volume(5, origin=(6, -7, 11)))
    plan = plan_of(case, channels=("T1", "T2"))
    failed = write_dataset(plan, tmp_path / "1" / NAME, ALONE).failed
    assert "channel T2 is on another grid than T1" in failed[0].reason
    assert not (tmp_path / "1" / NAME / "dataset.json").exists()
    report = write_dataset(plan, tmp_path / "2" / NAME, replace(ALONE, resample_channels=True))
    assert "channel T2 was resampled onto the grid of T1" in report.records[0].notes[0]
    verify_dataset_integrity(str(tmp_path / "2" / NAME), num_processes=1)


def test_empty_labels_are_kept_or_taken_as_unlabeled_on_demand(tmp_path: Path) -> None:
    source = tmp_path / "source"
    cases = (source_case(source, "a"), source_case(source, "b", label=slabs()))
    kept = write_dataset(plan_of(*cases), tmp_path / "1" / NAME, replace(ALONE, empty_labels="keep"))
    assert [record.role for record in kept.records] == [Role.LABELED, Role.LABELED]
    assert (tmp_path / "1" / NAME / "labelsTr/b.nii.gz").is_file()
    options = replace(ALONE, empty_labels="unlabeled")
    moved = write_dataset(plan_of(*cases), tmp_path / "2" / NAME, options)
    assert [record.role for record in moved.records] == [Role.LABELED, Role.UNLABELED]
    assert (tmp_path / "2" / NAME / "imagesUnlabeled/b_0000.nii.gz").is_file()
    assert not (tmp_path / "2" / NAME / "labelsTr/b.nii.gz").exists()
    again = write_dataset(plan_of(*cases), tmp_path / "2" / NAME, replace(options, resume=True))
    assert again.as_json() == moved.as_json()


def test_a_test_case_that_nobody_annotated_gets_no_label(tmp_path: Path) -> None:
    source = tmp_path / "source"
    cases = (source_case(source, "a"), source_case(source, "b", Role.TEST, label=slabs()))
    report = write_dataset(plan_of(*cases), tmp_path / NAME, replace(ALONE, empty_labels="unlabeled"))
    assert [record.role for record in report.records] == [Role.LABELED, Role.TEST]
    assert (tmp_path / NAME / "imagesTs/b_0000.nii.gz").is_file()
    assert not (tmp_path / NAME / "labelsTs/b.nii.gz").exists()


@pytest.mark.parametrize("value", ["maybe", ""])
def test_options_are_checked(value: str) -> None:
    with pytest.raises(DualCLError, match="empty_labels must be one of refuse, keep, unlabeled"):
        Options(empty_labels=value)
    with pytest.raises(DualCLError, match="1 or more"):
        Options(processes=0)


def test_regions_reach_the_dataset(tmp_path: Path) -> None:
    labels: dict[str, int | list[int]] = {"whole": [1, 2], "core": 2}
    case = source_case(tmp_path, "a")
    report = write_dataset(plan_of(case, labels=labels, regions_class_order=(1, 2)), tmp_path / NAME, ALONE)
    assert dict(report.records[0].voxels) == {"whole": 30, "core": 15}
    content = json.loads((tmp_path / NAME / "dataset.json").read_text())
    assert (content["labels"]["whole"], content["regions_class_order"]) == ([1, 2], [1, 2])
    verify_dataset_integrity(str(tmp_path / NAME), num_processes=1)


def test_the_screen_warns_of_what_nobody_expects(tmp_path: Path) -> None:
    cases = (source_case(tmp_path, "x", label=slabs(1)), source_case(tmp_path, "y", patient="x"))
    damaged = (Refusal("a file", "is cut off"),)
    report = write_dataset(plan_of(*cases, damaged=damaged, screen=("secret",)), tmp_path / NAME, ALONE)
    text = report.summary()
    for expected in ("b is in 1 of 2 labeled cases", "val repeats train", "failed: a file: is cut off"):
        assert expected in text
    assert report.exit_code == 1
    assert not [name for name, content in everything_in(tmp_path / NAME).items() if b"secret" in content]
    assert "secret" in dry_run(plan_of(*cases, screen=("secret",)), tmp_path / "other" / NAME)


@pytest.mark.parametrize("name", ["background", "Background"])
def test_background_is_not_to_be_named(toy: Plan, tmp_path: Path, name: str) -> None:
    with pytest.raises(DualCLError, match="is label 0 of every dataset"):
        write_dataset(replace(toy, labels={name: 1, "b": 2}), tmp_path / NAME, ALONE)


def test_the_page_shows_every_case_and_escapes_names(toy: Plan, tmp_path: Path) -> None:
    odd = replace(toy.cases[0], where="<b>odd</b> name")
    report = write_dataset(
        replace(toy, cases=(odd, *toy.cases[1:]), refused=(Refusal("x<y", "z"),), notes=("look here",)),
        tmp_path / NAME,
        ALONE,
    )
    page = (tmp_path / NAME / "conversion" / "report.html").read_text(encoding="utf-8")
    for text in (
        "&lt;b&gt;odd",
        "x&lt;y",
        "look here",
        *(f'src="cases/{record.name}.png"' for record in report.records),
    ):
        assert text in page
    assert "<b>odd" not in page
    for record in report.records:
        assert (tmp_path / NAME / "conversion" / "cases" / f"{record.name}.png").read_bytes().startswith(b"\x89PNG")
    stored = json.loads((tmp_path / NAME / "conversion" / "report.json").read_text(encoding="utf-8"))
    assert stored["counts"] == {"labeled": 2, "unlabeled": 2, "test": 1}
    assert stored["folds"] == [{"train": 1, "val": 1, "unlabeled": 2}] * 2


def test_a_private_report_names_no_unforeseen_text(toy: Plan, tmp_path: Path) -> None:
    failing = replace(toy.cases[0], load=partial(fail, ValueError("/data/DOE^JANE/1.dcm")))
    write_dataset(replace(toy, cases=(failing, *toy.cases[1:]), private=True), tmp_path / NAME, ALONE)
    assert not [name for name, content in everything_in(tmp_path / NAME).items() if b"DOE" in content]
    assert b"ValueError" in (tmp_path / NAME / "conversion" / "report.json").read_bytes()


def test_the_key_list_lies_outside_and_belongs_to_its_owner(toy: Plan, tmp_path: Path) -> None:
    path = tmp_path / "keys.csv"
    known = replace(toy, cases=tuple(replace(case, key={"patient_id": "J. Doe"}) for case in toy.cases))
    write_dataset(known, tmp_path / NAME, replace(ALONE, key_list=path))
    assert path.read_text(encoding="utf-8").splitlines()[:2] == [
        "case,patient,source,patient_id",
        "l1,l1,source of l1,J. Doe",
    ]
    assert os.stat(path).st_mode & 0o077 == 0
    with pytest.raises(DualCLError, match="outside the dataset"):
        write_dataset(toy, tmp_path / "1" / NAME, Options(key_list=tmp_path / "1" / NAME / "keys.csv"))
    with pytest.raises(DualCLError, match="exists"):
        write_dataset(toy, tmp_path / "1" / NAME, Options(key_list=path))


def test_a_dry_run_writes_nothing_and_says_all(toy: Plan, tmp_path: Path) -> None:
    text = dry_run(replace(toy, refused=(Refusal("x", "because"),), notes=("mind this",)), tmp_path / NAME)
    for expected in ("labeled: 2 of 2 patient(s)", "l1  <- source of l1", "left out: x: because", "mind this"):
        assert expected in text
    assert not (tmp_path / NAME).exists()


def test_a_resumed_conversion_shows_how_far_its_comparison_is(
    toy: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_dataset(toy, tmp_path / NAME, ALONE)
    shown = []
    bar = writer.tqdm
    monkeypatch.setattr(writer, "tqdm", lambda *given, **how: (shown.append(how["desc"]), bar(*given, **how))[1])
    write_dataset(toy, tmp_path / NAME, replace(ALONE, resume=True))
    assert shown == ["Comparing converted cases", "Converting"]


def test_a_killed_worker_fails_its_case_alone(toy: Plan, tmp_path: Path) -> None:
    dying = replace(toy.cases[0], load=partial(os._exit, 9))
    report = write_dataset(replace(toy, cases=(dying, *toy.cases[1:])), tmp_path / NAME, Options(processes=2))
    assert [record.name for record in report.records] == ["l2", "t1", "u1", "u2"]
    assert "BrokenProcessPool" in report.failed[0].reason


def test_a_killed_conversion_leaves_no_half_file(tmp_path: Path) -> None:
    """SIGKILL while files are being written: what has its final name is whole."""
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]); from pathlib import Path; import SimpleITK as sitk, os\n"
        "from test_write import source_case, plan_of, write_dataset, ALONE\n"
        "folder = Path(sys.argv[2]); original = sitk.WriteImage\n"
        "plan = plan_of(source_case(folder, 'a'), source_case(folder, 'b'))\n"
        "def half(image, path, **options):\n"
        "    original(image, path, **options)\n"
        "    if 'b_0000' in path: open(path, 'r+b').truncate(50); os.kill(os.getpid(), 9)\n"
        f"sitk.WriteImage = half; write_dataset(plan, folder / '{NAME}', ALONE)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(Path(__file__).parent), str(tmp_path)], check=False)
    assert done.returncode == -9
    whole = sorted(path.name for path in (tmp_path / NAME).rglob("*.nii.gz") if not path.name.startswith("."))
    assert whole == ["a.nii.gz", "a_0000.nii.gz"]
    cases = [source_case(tmp_path, name) for name in ("a", "b")]
    report = write_dataset(plan_of(*cases), tmp_path / NAME, replace(ALONE, resume=True))
    assert len(report.records) == 2
    assert not list((tmp_path / NAME).rglob(".*"))


def test_a_resumed_conversion_leaves_a_redrawn_split_alone(toy: Plan, tmp_path: Path) -> None:
    target = tmp_path / NAME
    write_dataset(toy, target, ALONE)
    (target / "splits_final.json").rename(target / "splits_of_conversion.json")  # by dualcl split
    write_dataset(toy, target, replace(ALONE, resume=True))
    assert (target / "splits_of_conversion.json").is_file()
    assert not (target / "splits_final.json").exists()


def test_a_finished_case_is_of_the_patient_that_it_has_now(tmp_path: Path) -> None:
    """Somebody corrected the source's list of patients; p2 was another one, and a and c are one patient."""
    cases = [source_case(tmp_path / "source", name, patient="p1") for name in ("a", "b", "c")]
    cases[1:] = [replace(cases[1], patient="p2"), replace(cases[2], load=partial(fail, DualCLError("not yet")))]
    write_dataset(plan_of(*cases), tmp_path / NAME, ALONE)
    cases[2] = source_case(tmp_path / "source", "c")
    moved = [replace(case, patient=patient) for case, patient in zip(cases, ("p2", "p3", "p2"), strict=True)]
    report = write_dataset(plan_of(*moved), tmp_path / NAME, replace(ALONE, resume=True))
    assert [record.patient for record in report.records] == ["p2", "p3", "p2"]
    assert sorted(fold["val"] for fold in report.folds) == [["a", "c"], ["b"]]
    write_dataset(plan_of(*moved), tmp_path / "new" / NAME, ALONE)
    assert everything_in(tmp_path / NAME) == everything_in(tmp_path / "new" / NAME)


def test_numbered_cases_and_patients_keep_their_numbers_where_others_come_between(tmp_path: Path) -> None:
    """As in a DICOM export, whose patients are numbered in the order of identifiers that nobody may see."""

    def convert(*people: str, resume: bool = False) -> dict[str, tuple[str, str]]:
        cases = [
            replace(
                source_case(tmp_path / "source", f"{person}{scan}", seed=ord(person) + 7 * scan),
                name=f"case_{2 * number + scan + 1:04d}",
                patient=f"patient_{number + 1:04d}",
                identity=f"{person} {scan}",
                where=f"{person}{scan}",
            )
            for number, person in enumerate(people)
            for scan in (0, 1)
        ]
        plan = replace(plan_of(*cases), private=True)
        shown = dry_run(plan, tmp_path / NAME, replace(ALONE, resume=resume))
        report = write_dataset(plan, tmp_path / NAME, replace(ALONE, resume=resume))
        assert report.exit_code == 0
        for record in report.records:
            assert f"  {record.name}  <- {record.where}" in shown
        return {record.where: (record.name, record.patient) for record in report.records}

    before = convert("b", "d")
    assert before["d1"] == ("case_0004", "patient_0002")
    after = convert("a", "b", "c", "d", resume=True)
    assert after == before | {
        "a0": ("case_0005", "patient_0003"),
        "a1": ("case_0006", "patient_0003"),
        "c0": ("case_0007", "patient_0004"),
        "c1": ("case_0008", "patient_0004"),
    }
    with pytest.raises(DualCLError, match=r"holds case_0001, case_0002, which the source has no more"):
        convert("a", "c", "d", resume=True)


def test_a_plan_without_cases_says_why(tmp_path: Path) -> None:
    """Also where only unlabeled ones were asked for, so that no label is missing."""
    plan = plan_of(labels={}, damaged=(Refusal("a.nrrd", "2 files for one place"),))
    with pytest.raises(DualCLError, match=r"No case was found\. a\.nrrd: 2 files for one place"):
        write_dataset(plan, tmp_path / NAME, ALONE)


def test_a_scan_that_comes_again_under_another_name_does_not_take_the_place_of_the_first(tmp_path: Path) -> None:
    first = source_case(tmp_path / "source", "m", seed=3)
    write_dataset(plan_of(first, source_case(tmp_path / "source", "z")), tmp_path / NAME, ALONE)
    again = source_case(tmp_path / "source", "a", seed=3)
    plan = plan_of(again, first, source_case(tmp_path / "source", "z"))
    report = write_dataset(plan, tmp_path / NAME, replace(ALONE, resume=True))
    assert [record.name for record in report.records] == ["m", "z"]
    assert [each.reason for each in report.repeated] == ["a has the same voxels as m"]
    assert {path.name for path in (tmp_path / NAME / "imagesTr").iterdir()} == {"m_0000.nii.gz", "z_0000.nii.gz"}
