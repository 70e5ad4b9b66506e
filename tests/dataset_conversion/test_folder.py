"""Trees of volume files: what becomes a case, in which role, and what is left out."""

import argparse
import shlex
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from synthetic_volumes import slabs, volume, write

from nnunet_dualcl.dataset_conversion import folder
from nnunet_dualcl.dataset_conversion.plan import Options, Plan, Role
from nnunet_dualcl.errors import DualCLError

ONE_FILE = {"images": "img/*.nii.gz", "label_files": "seg/*.nii.gz", "channels": {"MR": ""}, "labels": {"organ": 1}}
STRUCTURES = {
    "images": r"(?P<patient>p\d)/(?P<channel>t\d)\.nrrd",
    "label_files": r"(?P<patient>p\d)/(?P<label>\w+)_mask\.nrrd",
    "channels": {"T2": "t2", "T1": "t1"},
    "labels": {"tumor": "gtv|tumor", "organ": "organ"},
}


def roles(plan: Plan) -> dict[str, str]:
    return {case.name: case.role.value for case in plan.cases}


def refused(plan: Plan) -> dict[str, str]:
    return {each.where: each.reason for each in (*plan.refused, *plan.damaged)}


def test_cases_without_a_label_are_unlabeled(tmp_path: Path) -> None:
    for name in ("b c", "Ä"):
        write(tmp_path / f"img/{name}.nii.gz", volume())
    write(tmp_path / "seg/Ä.nii.gz", volume(slabs(1), np.uint8))
    plan = folder.plan(tmp_path, **ONE_FILE)
    assert roles(plan) == {"A": "labeled", "b-c": "unlabeled"}
    assert [case.patient for case in plan.cases] == ["Ä", "b c"]
    scan = plan.cases[0].load()
    assert scan.label is not None
    np.testing.assert_array_equal(sitk.GetArrayFromImage(scan.label), slabs(1))


def test_a_label_pattern_wins_over_an_image_pattern(tmp_path: Path) -> None:
    for name in ("a.nii.gz", "a_seg.nii.gz", "b.nii.gz"):
        write(tmp_path / name, volume())
    plan = folder.plan(tmp_path, **{**ONE_FILE, "images": "*.nii.gz", "label_files": "*_seg.nii.gz"})
    assert roles(plan) == {"a": "labeled", "b": "unlabeled"}


def test_test_cases_are_named_by_a_pattern(tmp_path: Path) -> None:
    for name in ("img/a1", "img/b1", "seg/a1"):
        write(tmp_path / f"{name}.nii.gz", volume())
    plan = folder.plan(tmp_path, **ONE_FILE, test="/b")
    assert roles(plan) == {"a1": "labeled", "b1": "test"}
    with pytest.raises(DualCLError, match=r"--test '/c' occurs in the path of no case's image"):
        folder.plan(tmp_path, **ONE_FILE, test="/c")


def test_values_are_numbered_in_the_order_of_the_labels(tmp_path: Path) -> None:
    write(tmp_path / "img/a.nii.gz", volume())
    write(tmp_path / "seg/a.nii.gz", volume(slabs(7, 3, 5), np.uint8))
    plan = folder.plan(tmp_path, **{**ONE_FILE, "labels": {"late": [5, 7], "early": 3}})
    assert (dict(plan.labels), dict(plan.value_map)) == ({"late": 1, "early": 2}, {5: 1, 7: 1, 3: 2})
    folder.convert(tmp_path, tmp_path / "Dataset001_X", **{**ONE_FILE, "labels": {"late": [5, 7], "early": 3}})
    written = sitk.ReadImage(str(tmp_path / "Dataset001_X/labelsTr/a.nii.gz"))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(written), slabs(1, 2, 1))


def test_structures_are_merged_and_channels_sorted(tmp_path: Path) -> None:
    write(tmp_path / "p1/t1.nrrd", volume(1))
    write(tmp_path / "p1/t2.nrrd", volume(2))
    write(tmp_path / "p1/gtv_mask.nrrd", volume(slabs(255, 0), np.uint8))
    write(tmp_path / "p1/organ_mask.nrrd", volume(slabs(1, 1), np.uint8))
    write(tmp_path / "p1/lung_mask.nrrd", volume(slabs(1), np.uint8))
    write(tmp_path / "p2/t1.nrrd", volume(3))
    write(tmp_path / "p3/t1.nrrd", volume(4))
    write(tmp_path / "p3/t2.nrrd", volume(5))
    write(tmp_path / "p3/organ_mask.nrrd", volume(slabs(1), np.uint8))
    plan = folder.plan(tmp_path, **STRUCTURES)
    assert refused(plan) == {"p2": "lacks the channel T2"}
    assert plan.notes == ("1 volume files are none of the labels tumor, organ: p1/lung_mask.nrrd",)
    assert plan.damaged == ()
    write(tmp_path / "p2/organ_mask.nrrd", volume(slabs(1), np.uint8))
    assert [each.where for each in folder.plan(tmp_path, **STRUCTURES).damaged] == ["p2"]  # what was drawn is lost
    first, third = (case.load() for case in plan.cases)
    assert first.label is not None
    assert third.label is not None
    np.testing.assert_array_equal(sitk.GetArrayFromImage(first.label), slabs(1, 2))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(third.label), slabs(2))
    assert "15 voxels are of several structures; the one named first has them" in first.notes
    assert third.notes == ("no file for tumor: taken as absent",)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(first.channels[0]), sitk.GetArrayFromImage(volume(2)))


def test_faults_of_one_case_leave_the_others(tmp_path: Path) -> None:
    for name in ("1/a.nii.gz", "2/a.nii.gz", "1/b.nii.gz", "seg/b.nii.gz", "seg/c.nii.gz"):
        write(tmp_path / name, volume())
    plan = folder.plan(tmp_path, **{**ONE_FILE, "images": r"\d/(?P<case>.*)\.nii\.gz"})
    assert roles(plan) == {"b": "labeled"}
    assert "2 files for one place: 1/a.nii.gz, 2/a.nii.gz" in refused(plan)["a"]
    assert "no image" in refused(plan)["c"]
    # patients are lost, and somebody has drawn the label: both count as failed
    assert [each.where for each in plan.damaged] == ["a", "c"]


@pytest.mark.parametrize(
    ("values", "message"),
    [(slabs(1, 2), "holds 0, 1, 2; one structure a file"), (slabs(1) * 0.5, "no whole numbers")],
)
def test_structures_must_be_masks(tmp_path: Path, values: np.ndarray, message: str) -> None:
    for name in ("t1", "t2"):
        write(tmp_path / f"p1/{name}.nrrd", volume())
    write(tmp_path / "p1/organ_mask.nrrd", volume(values, np.float32))
    write(tmp_path / "p1/gtv_mask.nrrd", volume(slabs(1), np.uint8))
    (case,) = folder.plan(tmp_path, **STRUCTURES).cases
    with pytest.raises(DualCLError, match=message):
        case.load()


def test_a_structure_on_a_grid_of_its_own_is_resampled_on_demand(tmp_path: Path) -> None:
    for name in ("t1", "t2"):
        write(tmp_path / f"source/p1/{name}.nrrd", volume(len(name)))
    write(tmp_path / "source/p1/gtv_mask.nrrd", volume(slabs(0, 1), np.uint8))
    fine = volume(np.repeat(slabs(1), 2, axis=0), np.uint8, spacing=(1.0, 1.5, 1.5), origin=(5, -7, 10.25))
    write(tmp_path / "source/p1/organ_mask.nrrd", fine)
    (failed,) = folder.convert(tmp_path / "source", tmp_path / "Dataset001_X", **STRUCTURES).failed
    assert "the label in organ_mask.nrrd is on another grid than its image" in failed.reason
    options = Options(processes=1, resample_labels=True)
    report = folder.convert(tmp_path / "source", tmp_path / "Dataset002_X", options=options, **STRUCTURES)
    assert report.failed == ()
    written = sitk.ReadImage(str(tmp_path / "Dataset002_X/labelsTr/p1.nii.gz"))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(written), slabs(2, 1))


def test_structures_of_one_label_are_put_together(tmp_path: Path) -> None:
    """As TotalSegmentator hands them out."""
    write(tmp_path / "s1/ct.nii.gz", volume())
    for name, label in (("kidney_left", slabs(1)), ("kidney_right", slabs(0, 1)), ("liver", slabs(0, 0, 1))):
        write(tmp_path / f"s1/segmentations/{name}.nii.gz", volume(label, np.uint8))
    plan = folder.plan(
        tmp_path,
        images="*/ct.nii.gz",
        channels={"CT": ""},
        labels={"kidney": "kidney_(left|right)", "liver": "liver"},
        label_files=r"(?P<case>[^/]+)/segmentations/(?P<label>[^/]+)\.nii\.gz",
    )
    (case,) = plan.cases
    scan = case.load()
    assert scan.label is not None
    np.testing.assert_array_equal(sitk.GetArrayFromImage(scan.label), slabs(1, 1, 2))
    assert plan.notes == (
        "files of one label are put together, such as s1/segmentations/kidney_left.nii.gz, "
        "s1/segmentations/kidney_right.nii.gz",
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [("1: Leber\n", "'1: Leber' must begin with the name"), ('Leber: "1"\n', "Leber has its value in quotes")],
)
def test_a_label_file_of_the_wrong_kind(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "labels.yaml").write_text(content, encoding="utf-8-sig")
    with pytest.raises(DualCLError, match=message):
        folder._from_yaml(tmp_path / "labels.yaml")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"images": "*.mha"}, r"none of 2 files is an image by --images '\*\.mha'.*instance: img/a\.nii\.gz"),
        ({"channels": {}}, "At least one channel"),
        ({"channels": {"T1": "", "T2": "x"}}, "each needs a pattern"),
        ({"channels": {"T1": "("}}, "no regular expression"),
        ({"labels": {"a": 1, "b": "x"}}, "all values in one file"),
        ({"labels": {}}, "all values in one file"),
        ({"labels": {"a": 1, "b": [1, 2]}}, "value 1 stands for another label"),
        ({"labels": {"a": 0}}, "0 is no value from 1 on"),
        ({"labels": {"a": 1.5}}, r"1\.5 is no value from 1 on"),
        (
            {"label_files": "mask/*.nii.gz"},
            r"is a label by --labels 'mask/\*\.nii\.gz'\. Not taken are, for instance: seg/a\.nii\.gz\.",
        ),
        ({"label_files": "*.mha", "images": "*/*"}, r"is a label by --labels '\*\.mha'\. No volume file is left over"),
        (
            {"labels": {"organ": "lung"}, "label_files": r"(?P<label>seg)/(?P<case>.*)\.nii\.gz"},
            r"None of the 1 files .* of organ: --label organ=lung is a regular expression for the group 'label'",
        ),
        (
            {"labels": {"organ": "one"}},
            r"--label organ=one is a regular expression for the path, and fits none\. Values .* --label organ=1\. Not "
            r"taken are, for instance: seg/a\.nii\.gz\.",
        ),
        ({"images": "[i]mgs/*"}, r"\[\.\.\.\] stands for one of the characters in it; write \[\[\]"),
    ],
)
def test_faults_of_the_whole_are_said_at_once(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    for name in ("img/a.nii.gz", "seg/a.nii.gz"):
        write(tmp_path / name, volume())
    with pytest.raises(DualCLError, match=message):
        folder.plan(tmp_path, **{**ONE_FILE, **changed})


def parse(*arguments: str) -> dict[str, Any]:
    parser = argparse.ArgumentParser()
    folder.add_arguments(parser)
    return folder.keywords(parser.parse_args(["--images", "*.nii", *arguments]))


def test_options_say_the_same_as_keywords(tmp_path: Path) -> None:
    listed = tmp_path / "labels.yaml"
    listed.write_text("liver: 1\ntumor: [2, 3]\n", encoding="utf-8")
    assert parse("--channel", "CT", "--label-yaml", str(listed))["labels"] == {"liver": 1, "tumor": [2, 3]}
    found = parse("--channel", "CT", "--label", "liver=1", "--label", "tumor=2,3", "--spacing", "1", "1", "2.5")
    assert found["labels"] == {"liver": [1], "tumor": [2, 3]}
    assert (found["channels"], found["spacing_mm"]) == ({"CT": ""}, (1, 1, 2.5))
    assert parse("--channel", "CT", "--label", "liver=Leber.*")["labels"] == {"liver": "Leber.*"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--label", "a=1"), "Name the channel"),
        (("--channel", "CT", "--labels", "seg/*"), "Name the labels"),
        (("--channel", "CT", "--label-yaml", "absent.yaml"), "Cannot read the list of labels absent"),
    ],
)
def test_options_that_are_missing_are_asked_for(arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(DualCLError, match=message):
        parse(*arguments)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- liver\n", "must hold 'key: value' lines"),
        ("", "is empty. It must map names to values"),
        ("liver: 1\ntumor: 2\nliver: 3\n", "'liver' is there twice"),
    ],
)
def test_a_yaml_file_that_is_no_list_of_labels_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(DualCLError, match=message):
        parse("--channel", "CT", "--label-yaml", str(tmp_path / "a.yaml"))


def test_a_voxel_size_reaches_the_files(tmp_path: Path) -> None:
    raw = write(tmp_path / "img/a.nrrd", volume(), compress=False).read_bytes()
    line = next(line for line in raw.split(b"\n") if line.startswith(b"space directions"))
    (tmp_path / "img/a.nrrd").write_bytes(raw.replace(line, b"#"))
    found = {**ONE_FILE, "images": "img/*.nrrd", "label_files": None}
    with pytest.raises(DualCLError, match="states no voxel size"):
        folder.plan(tmp_path, **found).cases[0].load()
    (case,) = folder.plan(tmp_path, **found, spacing_mm=(1, 2, 3)).cases
    assert case.load().channels[0].GetSpacing() == (1, 2, 3)


def test_nothing_is_read_while_planning(tmp_path: Path) -> None:
    (tmp_path / "img").mkdir()
    (tmp_path / "img/a.nii.gz").write_bytes(b"broken")
    plan = folder.plan(tmp_path, **{**ONE_FILE, "label_files": None})
    assert roles(plan) == {"a": Role.UNLABELED.value}
    assert plan.refused == ()


def test_a_structure_that_no_file_shows_is_a_fault_and_case_does_not_matter(tmp_path: Path) -> None:
    for name in ("t1", "t2", "GTV_mask", "liver_mask"):
        write(tmp_path / f"p1/{name}.nrrd", volume())
    with pytest.raises(DualCLError, match=r"is a file of organ: .*fits none\. Not taken are, .*: p1/liver_mask\.nrrd"):
        folder.plan(tmp_path, **STRUCTURES)
    plan = folder.plan(tmp_path, **{**STRUCTURES, "labels": {"tumor": "gtv|tumor", "organ": "LIVER"}})
    assert roles(plan) == {"p1": "labeled"}


def test_files_that_no_pattern_takes_and_names_of_nnunet_are_pointed_at(tmp_path: Path) -> None:
    for name in ("img/a_0000", "img/b_0000", "seg/a", "seg/b", "other/x"):
        write(tmp_path / f"{name}.nii.gz", volume())
    plan = folder.plan(tmp_path, **ONE_FILE)
    assert plan.notes == ("1 volume files match no pattern: other/x.nii.gz",)
    assert "wants a pattern such as" not in refused(plan)["a"]
    assert (
        "There is an image of a_0000; nnU-Net's names want a pattern such as 'images/*_0000.nii.gz'"
        in refused(plan)["a"]
    )
    plan = folder.plan(tmp_path, **{**ONE_FILE, "images": "img/*_0000.nii*", "label_files": "seg/*"})
    assert roles(plan) == {"a": "labeled", "b": "labeled"}


@pytest.mark.parametrize("masks", ["amasks", "zmasks"])
def test_the_patient_is_the_one_that_a_path_names_whichever_file_comes_first(tmp_path: Path, masks: str) -> None:
    for name in ("p1_2020", "p1_2021", "p2_2020"):
        write(tmp_path / f"img/{name}.nii.gz", volume())
    for name in ("p1_2020", "p2_2020"):
        write(tmp_path / f"{masks}/{name}.nii.gz", volume(slabs(1), np.uint8))
    dated = {**ONE_FILE, "images": r"img/(?P<patient>p\d)_(?P<case>\d+)\.nii\.gz", "label_files": f"{masks}/*"}
    plan = folder.plan(tmp_path, **dated)
    assert roles(plan) == {"p1_2020": "labeled", "p1_2021": "unlabeled", "p2_2020": "labeled"}
    assert [case.patient for case in plan.cases] == ["p1", "p1", "p2"]
    swapped = {"images": "img/*", "label_files": rf"{masks}/(?P<patient>p\d)_(?P<case>\d+)\.nii\.gz"}
    with pytest.raises(DualCLError, match=r"--labels tells patients apart and --images 'img/\*' does not"):
        folder.plan(tmp_path, **{**ONE_FILE, **swapped})


def test_a_case_of_two_patients_is_a_fault(tmp_path: Path) -> None:
    for name in ("img/p1_a_b", "img/q_c", "seg/p1_a_b"):
        write(tmp_path / f"{name}.nii.gz", volume())
    patterns = {
        "images": r"img/(?P<patient>[^_]+)_(?P<case>.+)\.nii\.gz",
        "label_files": r"seg/(?P<patient>.+)_(?P<case>[^_]+)\.nii\.gz",
    }
    plan = folder.plan(tmp_path, **{**ONE_FILE, **patterns})
    assert roles(plan) == {"q_c": "unlabeled"}
    assert refused(plan)["p1_a_b"] == "is of several patients by its files: p1, p1_a. Narrow the pattern"


def test_an_accent_is_the_same_however_it_is_written(tmp_path: Path) -> None:
    write(tmp_path / "img" / unicodedata.normalize("NFC", "Zoë.nii.gz"), volume())
    write(tmp_path / "seg" / unicodedata.normalize("NFD", "Zoë.nii.gz"), volume(slabs(1), np.uint8))
    assert roles(folder.plan(tmp_path, **ONE_FILE)) == {"Zoe": "labeled"}


@pytest.mark.parametrize(
    ("images", "labels", "files", "advice"),
    [
        (
            "*/[i]mage.*",
            "*/mask.*",
            {"p1": ("image.mha", "mask.nrrd"), "p2": ("image.mha", "mask.mha"), "p3": ("image.nrrd",)},
            r"--images '(?P<patient>[^/]+)/[i]mage\.[^/]*' --labels '(?P<patient>[^/]+)/mask\.[^/]*'",
        ),
        (
            "*/*/T1.nii.gz",
            "*/*/seg.nii.gz",
            {"p1/2020": ("T1.nii.gz", "seg.nii.gz"), "p1/2021": ("T1.nii.gz",), "p2/2020": ("T1.nii.gz",)},
            r"--images '(?P<patient>[^/]+)/(?P<case>[^/]+)/T1\.nii\.gz' "
            r"--labels '(?P<patient>[^/]+)/(?P<case>[^/]+)/seg\.nii\.gz'",
        ),
        (
            "**/T?.*",
            None,
            {"p1": ("T1.nii.gz",), "a/p2": ("T1.nii.gz",)},
            r"--images '(?:[^/]+/)*(?P<patient>[^/]+)/T[^/]\.[^/]*'",
        ),
        (
            "img/*.nrrd",
            "seg/*/*.nii.gz",
            {"img": ("a.nrrd", "b.nrrd"), "seg/a": ("x.nii.gz",), "seg/b": ("x.nii.gz",)},
            r"--labels 'seg/(?P<patient>[^/]+)/[^/]*\.nii\.gz'",
        ),
    ],
)
def test_a_star_that_is_no_case_fails_and_the_advice_tells_cases_apart(
    tmp_path: Path, images: str, labels: str | None, files: dict[str, tuple[str, ...]], advice: str
) -> None:
    for place, names in files.items():
        for name in names:
            write(tmp_path / place / name, volume())
    found = {**ONE_FILE, "images": images, "label_files": labels}
    faults = [each.reason for each in folder.plan(tmp_path, **found).damaged]
    assert faults[0].partition("Name the patient by a regular expression instead, as in ")[2] == advice
    assert "is the case's name, here" in faults[0]
    words = shlex.split(advice)
    options = dict(zip(words[::2], words[1::2], strict=True))
    better = {"images": options.get("--images", images), "label_files": options.get("--labels", labels)}
    plan = folder.plan(tmp_path, **{**found, **better})
    assert plan.damaged == ()
    assert len(plan.cases) == sum("T1" in name or name[0] in "iab" for names in files.values() for name in names)


def test_files_that_no_folder_tells_apart_get_no_expression(tmp_path: Path) -> None:
    for name in ("p1/image.nrrd", "p1/image.mha"):
        write(tmp_path / name, volume())
    faults = folder.plan(tmp_path, **{**ONE_FILE, "images": "*/*age*", "label_files": None}).damaged
    assert [each.reason.partition(". Narrow")[2] for each in faults] == [
        " the pattern, or name the case by a regular expression with (?P<case>...)"
    ]


def test_patterns_that_begin_with_the_input_folder_are_pointed_at(tmp_path: Path) -> None:
    write(tmp_path / "data/set/img/a.nii.gz", volume())
    source = tmp_path / "data" / "set"
    for begin in ("set/", "./data/set/", f"{source}/"):
        with pytest.raises(DualCLError, match=r"Patterns are relative to .*/data/set: leave out '.*set/'\."):
            folder.plan(source, **{**ONE_FILE, "images": f"{begin}img/*", "label_files": None})
        with pytest.raises(DualCLError, match=r"is a label by .*leave out '.*set/'\. No volume file is left"):
            folder.plan(source, **{**ONE_FILE, "images": "img/*", "label_files": f"{begin}seg/*"})
    with pytest.raises(DualCLError, match=r"Patterns are relative to .*/data/set\. Not taken"):
        folder.plan(source, **{**ONE_FILE, "images": "/img/*", "label_files": None})


def test_without_labels_every_case_is_unlabeled_and_there_is_no_dataset_json(tmp_path: Path) -> None:
    for number, name in enumerate("ab"):
        write(tmp_path / f"img/{name}.nii.gz", volume(number))
    target = tmp_path / "Dataset001_X"
    report = folder.convert(
        tmp_path, target, images="img/*", channels={"MR": ""}, labels={}, options=Options(processes=1)
    )
    assert {record.role for record in report.records} == {Role.UNLABELED}
    assert report.exit_code == 0
    assert "no labels were asked for, so there is no dataset.json" in report.warnings()[0]
    assert {path.name for path in target.iterdir()} == {"conversion", "imagesUnlabeled"}
    assert "Labels: none." in (target / "conversion/report.html").read_text(encoding="utf-8")
    with pytest.raises(DualCLError, match="No labeled case for training"):  # labels were asked for
        folder.convert(tmp_path, tmp_path / "Dataset002_Y", **{**ONE_FILE, "label_files": None})


def test_a_case_without_a_file_of_some_structure_is_unlabeled_on_demand(tmp_path: Path) -> None:
    for patient, structures in (("p1", ("tumor", "organ")), ("p2", ("organ",)), ("p3", ())):
        for image in ("t1", "t2"):
            write(tmp_path / patient / f"{image}.nrrd", volume())
        for structure in structures:
            write(tmp_path / patient / f"{structure}_mask.nrrd", volume(slabs(1), np.uint8))
    assert roles(folder.plan(tmp_path, **STRUCTURES)) == {"p1": "labeled", "p2": "labeled", "p3": "unlabeled"}
    plan = folder.plan(tmp_path, **STRUCTURES, require_all_labels=True)
    assert roles(plan) == {"p1": "labeled", "p2": "unlabeled", "p3": "unlabeled"}
    assert "1 case(s) lack the file of a label and are unlabeled: p2 (tumor)" in plan.notes
    assert plan.cases[1].load().label is None
    (tmp_path / "p1" / "organ_mask.nrrd").unlink()
    with pytest.raises(DualCLError, match="--require-all-labels leaves no labeled case"):
        folder.plan(tmp_path, **STRUCTURES, require_all_labels=True)


def test_a_case_that_comes_later_takes_nobodys_name(tmp_path: Path) -> None:
    """Splits and trained models go by names; Muller comes before Müller, and Иван and Пётр have no letter of ours."""
    source, target = tmp_path / "source", tmp_path / "Dataset001_Toy"

    def add(*names: str) -> None:
        for number, name in enumerate(names, len(list(source.glob("img/*")))):
            write(source / f"img/{name}.nii.gz", volume(slabs(1) + np.int16(number)))
            write(source / f"seg/{name}.nii.gz", volume(slabs(1), np.uint8))

    def names(**options: Any) -> dict[str, str]:
        report = folder.convert(source, target, options=Options(processes=1, **options), **ONE_FILE)
        assert report.exit_code == 0
        return {record.patient: record.name for record in report.records}

    add("Müller", "Иван", "Пётр", "B")
    before = names()
    images = {name: (target / f"imagesTr/{name}_0000.nii.gz").read_bytes() for name in before.values()}
    assert before == {"Müller": "Muller", "Иван": "unnamed", "Пётр": "unnamed-2", "B": "B"}
    add("Muller", "Анна")
    key_list = tmp_path / "keys.csv"
    after = names(resume=True, key_list=key_list)
    assert after == before | {"Muller": "Muller-2", "Анна": "unnamed-3"}
    assert {name: (target / f"imagesTr/{name}_0000.nii.gz").read_bytes() for name in images} == images
    assert f"Muller-2,Muller,img/Muller.nii.gz,{source / 'img/Muller.nii.gz'}" in key_list.read_text(encoding="utf-8")
    assert names(resume=True) == after
