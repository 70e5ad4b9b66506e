"""``dualcl convert`` from the command line to a dataset that nnU-Net takes."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_dualcl.cli.convert import KINDS, _before_planning
from nnunet_dualcl.cli.main import main


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two labeled cases, one without a label and one with a broken image, under a name with a space."""
    for variable in ("nnUNet_raw", "nnUNet_preprocessed"):
        monkeypatch.setenv(variable, str(tmp_path / variable))
        (tmp_path / variable).mkdir()
    folder = tmp_path / "Köln export"
    (folder / "seg").mkdir(parents=True)
    for index, name in enumerate(("a", "b", "c")):
        values = np.random.default_rng(index).integers(0, 900, (5, 7, 9)).astype(np.int16)
        sitk.WriteImage(sitk.GetImageFromArray(values), str(folder / f"{name}.nrrd"))
        if name != "c":
            sitk.WriteImage(
                sitk.GetImageFromArray((values > 800).astype(np.uint8)), str(folder / "seg" / f"{name}.mha")
            )
    return folder


def arguments(source: Path, *more: str) -> list[str]:
    patterns = {"--images": "*.nrrd", "--labels": "seg/*.mha"}
    found = [word for name, pattern in patterns.items() if name not in more for word in (name, pattern)]
    found += ["--channel", "CT", "--label", "bone=1"]
    return ["convert", "folder", str(source), "-d", "7", "-n", "Bone", "-np", "1", *found, *more]


def test_from_files_to_a_dataset_and_its_split(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(source, "--dry-run")) == 0
    out = capsys.readouterr().out
    assert "labeled: 2 of 2 patient(s)" in out
    assert "would get 3 case(s)" in out
    target = tmp_path / "nnUNet_raw" / "Dataset007_Bone"
    assert not target.exists()
    assert main(arguments(source)) == 0
    out = capsys.readouterr().out
    assert "2 labeled, 1 unlabeled and 0 test case(s); 0 failed" in out
    assert "Next: nnUNetv2_plan_and_preprocess -d 7" in out
    assert sorted(fold["val"] for fold in json.loads((target / "splits_final.json").read_text())) == [["a"], ["b"]]
    for more in ([], ["--dry-run"]):  # what it would do says what it would not do, too
        assert main(arguments(source, *more)) == 2
        assert "--resume" in capsys.readouterr().err


def test_a_bad_case_shows_in_the_exit_code_and_resuming_mends_it(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sound = (source / "c.nrrd").read_bytes()
    (source / "c.nrrd").write_bytes(b"")
    keys = tmp_path / "keys.csv"
    assert main(arguments(source, "--key-list", str(keys))) == 1
    assert "failed: c (c.nrrd)" in capsys.readouterr().out
    (source / "c.nrrd").write_bytes(sound)
    assert main(arguments(source, "--key-list", str(keys), "--resume")) == 0
    assert [line.split(",")[0] for line in keys.read_text(encoding="utf-8").splitlines()] == ["case", "a", "b", "c"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["-d", "0"], "-d must be 1 to 999"),
        (["a.nrrd", "b.nrrd"], "Not understood: a.nrrd b.nrrd. Put patterns with * into quotes"),
        (["-n", "a b"], "nnU-Net wants a folder such as"),
        (["--images", "*.mha"], "is an image by"),
        (["--key-list", "{raw}/Dataset007_Bone/keys.csv"], "outside the dataset"),
    ],
)
def test_faults_are_said_before_anything_is_written(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    more = [part.replace("{raw}", str(tmp_path / "nnUNet_raw")) for part in more]
    assert main(arguments(source, *more)) == 2
    assert message in capsys.readouterr().err
    assert not list((tmp_path / "nnUNet_raw").iterdir())


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_help_of_its_own(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["convert", kind, "-h"])
    assert end.value.code == 0
    out = capsys.readouterr().out
    for option in ("-d ID", "-n NAME", "--dry-run", "--resume", "--resample-labels", "--copy-label-headers"):
        assert option in out


def test_the_list_of_kinds(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["convert", "-h"])
    out = capsys.readouterr().out
    assert [kind for kind in KINDS if kind not in out] == []


def test_a_pattern_that_loses_patients_shows_in_the_exit_code(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, name in enumerate(("a", "b")):
        for kind, file in (("image", f"{name}.nrrd"), ("mask", f"seg/{name}.mha")):
            (source / "tree" / f"p{number}").mkdir(parents=True, exist_ok=True)
            (source / file).replace(source / "tree" / f"p{number}" / f"{kind}{Path(file).suffix}")
    (source / "c.nrrd").replace(source / "tree" / "c.nrrd")
    tree = source / "tree"
    patterns = ["--images", "*/image.*", "--labels", "*/mask.*"]
    assert main(arguments(tree, *patterns)) == 2  # none is left
    expressions = [r"(?P<patient>[^/]+)/image\.[^/]*", r"(?P<patient>[^/]+)/mask\.[^/]*"]
    assert f"--images '{expressions[0]}' --labels '{expressions[1]}'" in capsys.readouterr().err
    (tree / "p2").mkdir()
    for kind in ("image.nrrd", "mask.mha"):
        volume = sitk.ReadImage(str(tree / "p0" / kind))
        sitk.WriteImage(volume, str(tree / "p2" / f"{Path(kind).stem}.nii"))
    assert main(arguments(tree, *patterns, "--dry-run")) == 1
    assert "damaged: nrrd: 2 files for one place" in capsys.readouterr().out
    assert main(arguments(tree, *patterns)) == 1
    assert "failed: nrrd: 2 files for one place: p0/image.nrrd, p1/image.nrrd" in capsys.readouterr().out


@pytest.mark.parametrize("option", ["--images", "--labels", "--test"])
def test_an_option_given_twice_is_refused(source: Path, option: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The second would take the place of the first, and its patients be lost, or trained on instead of tested."""
    assert main([*arguments(source), option, "a*", option, "b*"]) == 2
    assert f"{option} is given twice. Join both in one regular expression, as in 'A|B'." in capsys.readouterr().err


def test_labels_that_arrive_after_a_split_are_not_passed_over(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    preprocessed = tmp_path / "nnUNet_preprocessed" / "Dataset007_Bone"
    preprocessed.mkdir()
    assert main(arguments(source)) == 0
    draw = ["split", "-d", "7", "--labeled", "1", "--val", "1", "--draws", "1"]
    assert main(draw) == 0
    capsys.readouterr()
    assert main(arguments(source, "--resume")) == 0
    assert "Next: nnUNetv2_plan_and_preprocess -d 7" in capsys.readouterr().out
    shutil.copy(source / "seg" / "a.mha", source / "seg" / "c.mha")
    assert main(arguments(source, "--resume")) == 0
    out = capsys.readouterr().out
    assert f"1 labeled case(s) are in no fold of {preprocessed / 'splits_final.json'}" in out
    assert "wrote: c." in out
    assert "nnUNetv2_preprocess with the plans that are there" in out
    assert main([*draw, "--force"]) == 0
    capsys.readouterr()
    assert main(arguments(source, "--resume")) == 0
    assert "Next: nnUNetv2_plan_and_preprocess -d 7" in capsys.readouterr().out
    # a further scan of a validation patient
    raw = tmp_path / "nnUNet_raw" / preprocessed.name
    ((held_out,),) = (split["val"] for split in json.loads((preprocessed / "splits_final.json").read_text()))
    patients = dict(line.split(",") for line in (raw / "conversion" / "patients.csv").read_text().split())
    image = next((raw / "imagesTr").glob(f"{held_out}_0000.*"))
    shutil.copy(image, raw / "imagesUnlabeled" / image.name.replace(held_out, "later"))
    with (raw / "conversion" / "patients.csv").open("a", encoding="utf-8") as lines:
        lines.write(f"later,{patients[held_out]}\n")
    (told,) = _before_planning(raw, ())
    assert "unlabeled scans are of validation patients, and training would see them: later" in told
    # and a corrected label, of which nnU-Net would not know
    label = sitk.ReadImage(str(source / "seg" / "a.mha"))
    label[0, 0, 0] = 1 - label[0, 0, 0]
    sitk.WriteImage(label, str(source / "seg" / "a.mha"))
    assert main(arguments(source, "--resume")) == 0
    out = capsys.readouterr().out
    assert "1 case(s) whose files have changed were converted anew: a." in out
    assert "Of changed cases nnU-Net still has what it preprocessed before. Then make the labeled cases anew" in out
