import builtins
import json
import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from nnunet_dualcl.data.cases import (
    check_disjoint,
    list_case_images,
    raw_training_images,
    read_split,
    unlabeled_case_images,
)
from nnunet_dualcl.errors import DualCLError

TWO_CHANNELS = {"channel_names": {"0": "T1", "1": "T2"}, "file_ending": ".nii.gz"}


def touch(folder: Path, names: Iterable[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()


def channels(case: str, count: int = 2) -> list[str]:
    return [f"{case}_{channel:04d}.nii.gz" for channel in range(count)]


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """Labeled-looking a, b, c; unlabeled x, y. No labels anywhere."""
    touch(tmp_path / "imagesTr", channels("a") + channels("b") + channels("c"))
    touch(tmp_path / "imagesUnlabeled", channels("x") + channels("y"))
    return tmp_path


def test_images_are_grouped_by_case_in_channel_order(tmp_path: Path) -> None:
    others = ["notes.txt", "b_0000.nii", "b_000.nii.gz", "_0000.nii.gz", "b.nii.gz"]
    touch(tmp_path, ["b_0001.nii.gz", "b_0000.nii.gz", "a_0003_0000.nii.gz", "B 1_0000.nii.gz", *others])
    assert list_case_images(tmp_path, ".nii.gz") == {
        "B 1": [tmp_path / "B 1_0000.nii.gz"],
        "a_0003": [tmp_path / "a_0003_0000.nii.gz"],
        "b": [tmp_path / "b_0000.nii.gz", tmp_path / "b_0001.nii.gz"],
    }


def test_the_file_ending_is_taken_literally(tmp_path: Path) -> None:
    touch(tmp_path, ["a_0000xnii", "b_0000.nii"])
    assert list(list_case_images(tmp_path, ".nii")) == ["b"]


def test_an_absent_or_empty_folder_has_no_case(tmp_path: Path) -> None:
    assert list_case_images(tmp_path / "absent", ".nii.gz") == {}
    assert list_case_images(tmp_path, ".nii.gz") == {}


def test_training_images_from_the_folder(raw: Path) -> None:
    found = raw_training_images(raw, TWO_CHANNELS)
    assert list(found) == ["a", "b", "c"]
    assert found["b"] == [raw / "imagesTr" / name for name in channels("b")]


def test_training_images_listed_in_dataset_json(raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARCHIVE", "/archive")
    listed = {
        "q": {"images": ["$ARCHIVE/q.nii.gz", "imagesTr/q2.nii.gz"], "label": "/archive/labels/q.nii.gz"},
        "p": {"images": ["../elsewhere/p.nii.gz"], "label": "labelsTr/p.nii.gz"},
    }
    found = raw_training_images(raw, {**TWO_CHANNELS, "dataset": listed})
    assert list(found) == ["p", "q"]
    assert found["q"] == [Path("/archive/q.nii.gz"), raw / "imagesTr" / "q2.nii.gz"]
    assert found["p"] == [raw / "../elsewhere/p.nii.gz"]


def test_read_split(tmp_path: Path) -> None:
    assert read_split(tmp_path, 0) is None
    splits = [{"train": ["a"], "val": ["b"]}, {"train": ["b"], "val": ["a"], "unlabeled": ["c"]}]
    (tmp_path / "splits_final.json").write_text(json.dumps(splits), encoding="utf-8")
    assert read_split(tmp_path, 0) == splits[0]
    assert read_split(tmp_path, "1") == splits[1]
    assert read_split(tmp_path, 2) is None
    assert read_split(tmp_path, "all") is None


def test_read_split_refuses_broken_json(tmp_path: Path) -> None:
    (tmp_path / "splits_final.json").write_text('[{"train": ', encoding="utf-8")
    with pytest.raises(DualCLError, match=r"splits_final\.json is no valid JSON .*Write it anew with: dualcl split"):
        read_split(tmp_path, 0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"train": ["a"]}, "must hold a list with one object a fold"),
        ([["a"]], "must hold a list with one object a fold"),
        ([{"train": ["a"], "val": ["b"]}, {"train": ["a"], "val": "b"}], "fold 1: 'val' must be a list of case names"),
        ([{"unlabeled": None}], "fold 0: 'unlabeled' must be a list of case names"),
        ([{"unlabelled": ["c"]}], "fold 0: unknown key 'unlabelled'. Did you mean 'unlabeled'?"),
        ([{"Unlabeled": ["c"]}], "fold 0: unknown key 'Unlabeled'. Did you mean 'unlabeled'?"),
    ],
)
def test_a_split_file_of_another_form_is_refused(tmp_path: Path, content: object, message: str) -> None:
    (tmp_path / "splits_final.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(DualCLError, match=re.escape(message)):
        read_split(tmp_path, 0)


def test_lists_that_nnunet_does_not_know_are_left_alone(tmp_path: Path) -> None:
    split = {"train": ["a"], "val": [], "test": ["z"], "labeled": 3}
    (tmp_path / "splits_final.json").write_text(json.dumps([split]), encoding="utf-8")
    assert read_split(tmp_path, 0) == split


@pytest.mark.parametrize(("role", "meaning"), [("train", "a labeled training case"), ("val", "a validation case")])
def test_a_case_with_two_roles_is_refused(role: str, meaning: str) -> None:
    split = {"train": ["a"], "val": ["b"], role: ["e", "c"]}
    with pytest.raises(DualCLError, match=rf"^fold 3: c, e listed as unlabeled and as {meaning} \('{role}'\)"):
        check_disjoint(["e", "d", "c"], split, where="fold 3")


def test_disjoint_roles_and_missing_lists_pass() -> None:
    check_disjoint(["c"], {"train": ["a"], "val": ["b"], "unlabeled": ["c"]}, where="fold 0")
    check_disjoint(["c"], {}, where="fold 0")
    check_disjoint([], {"train": ["a"], "val": ["b"]}, where="fold 0")


def test_many_cases_with_two_roles_are_shortened() -> None:
    names = [f"c{number}" for number in range(9)]
    with pytest.raises(DualCLError, match=r"c0, c1, c2, c3, c4 \.\.\. listed"):
        check_disjoint(names, {"val": names}, where="fold 0")


def test_both_sources_come_together_sorted(raw: Path) -> None:
    found = unlabeled_case_images(raw, TWO_CHANNELS, ["c", "a"])
    assert list(found) == ["a", "c", "x", "y"]
    assert found["a"] == [raw / "imagesTr" / name for name in channels("a")]
    assert found["x"] == [raw / "imagesUnlabeled" / name for name in channels("x")]


def test_each_source_alone(raw: Path) -> None:
    assert list(unlabeled_case_images(raw, TWO_CHANNELS, [])) == ["x", "y"]
    shutil.rmtree(raw / "imagesUnlabeled")
    assert list(unlabeled_case_images(raw, TWO_CHANNELS, ["b"])) == ["b"]
    assert unlabeled_case_images(raw, TWO_CHANNELS, []) == {}


def test_a_case_of_the_unlabeled_folder_may_be_listed_too(raw: Path) -> None:
    assert list(unlabeled_case_images(raw, TWO_CHANNELS, ["x"])) == ["x", "y"]


def test_a_name_in_both_folders_is_refused(raw: Path) -> None:
    touch(raw / "imagesUnlabeled", channels("b"))
    with pytest.raises(DualCLError, match=r": b in imagesTr and in imagesUnlabeled\. .* delete it from"):
        unlabeled_case_images(raw, TWO_CHANNELS, [])


def test_a_listed_name_without_image_is_refused(raw: Path) -> None:
    expected = r"no image for n, z, listed as unlabeled in splits_final\.json\. Expected .* imagesTr/n_0000\.nii\.gz"
    with pytest.raises(DualCLError, match=expected):
        unlabeled_case_images(raw, TWO_CHANNELS, ["z", "a", "n"])


def test_a_wrong_number_of_channels_names_all_cases(raw: Path) -> None:
    (raw / "imagesTr" / "c_0001.nii.gz").unlink()
    touch(raw / "imagesUnlabeled", ["y_0002.nii.gz"])
    with pytest.raises(
        DualCLError, match=r"image files: c \(c_0000\.nii\.gz in .*imagesTr\); y \(.*y_0002\.nii\.gz in .*Unlabeled\)\."
    ) as error:
        unlabeled_case_images(raw, TWO_CHANNELS, ["b", "c"])
    expected = "names 2 channel(s): T1, T2; expected files end in _0000.nii.gz, _0001.nii.gz, as those of labeled cases"
    assert expected in str(error.value)


def test_a_wrong_channel_number_is_not_taken_for_another(raw: Path) -> None:
    (raw / "imagesUnlabeled" / "x_0001.nii.gz").rename(raw / "imagesUnlabeled" / "x_0002.nii.gz")
    with pytest.raises(DualCLError, match=r"image files: x \(x_0000\.nii\.gz, x_0002\.nii\.gz in "):
        unlabeled_case_images(raw, TWO_CHANNELS, [])


@pytest.mark.parametrize("with_labeled", [True, False])
@pytest.mark.parametrize(("count", "surplus"), [(1, 2), (2, 3), (3, 4)])
def test_a_file_may_hold_several_channels(tmp_path: Path, count: int, surplus: int, with_labeled: bool) -> None:
    content = {"channel_names": {str(channel): "R" for channel in range(3 * count)}, "file_ending": ".nii.gz"}
    touch(tmp_path / "imagesTr", channels("a", count) + channels("b", count) if with_labeled else [])
    touch(tmp_path / "imagesUnlabeled", channels("x", count) + channels("y", count))
    listed = ["b"] if with_labeled else []
    assert list(unlabeled_case_images(tmp_path, content, listed)) == [*listed, "x", "y"]
    touch(tmp_path / "imagesUnlabeled", channels("x", surplus))
    other, whose = ("x", "labeled") if with_labeled else ("y", "other")
    with pytest.raises(
        DualCLError, match=rf"image files: {other} \([^;]*; expected .*, as those of {whose} cases do\."
    ):
        unlabeled_case_images(tmp_path, content, listed)


@pytest.mark.parametrize("complete", ["imagesTr", "imagesUnlabeled"])
def test_a_channel_that_most_unlabeled_cases_lack_is_missed_where_one_case_has_it(
    tmp_path: Path, complete: str
) -> None:
    touch(tmp_path / "imagesUnlabeled", channels("x", 1) + channels("y", 1))
    assert list(unlabeled_case_images(tmp_path, TWO_CHANNELS, [])) == ["x", "y"]  # 4D images, for all that is known
    touch(tmp_path / complete, channels("a"))
    with pytest.raises(DualCLError, match=r"image files: x \(x_0000\.nii\.gz in .*; y \(.* Add the missing channels"):
        unlabeled_case_images(tmp_path, TWO_CHANNELS, [])


def test_there_are_no_more_files_than_channels(tmp_path: Path) -> None:
    touch(tmp_path / "imagesUnlabeled", channels("x", 3))
    with pytest.raises(
        DualCLError, match=r"x_0002\.nii\.gz in .*expected files end in _0000\.nii\.gz, _0001\.nii\.gz,"
    ):
        unlabeled_case_images(tmp_path, TWO_CHANNELS, [])


@pytest.mark.parametrize("name", ["z.nii.gz", "z_000.nii.gz", "z_0000.nii", "z_0000.NRRD", "z_0000.img", "IM00001"])
def test_an_image_that_would_be_passed_over_is_refused(raw: Path, name: str) -> None:
    touch(raw / "imagesUnlabeled", [name, "._x_0000.nii.gz", "notes.txt", "NOTES.PDF"])
    with pytest.raises(
        DualCLError, match=rf"imagesUnlabeled: {name} would be passed over\. Name images like CASE_0000"
    ):
        unlabeled_case_images(raw, TWO_CHANNELS, [])


def test_images_in_a_folder_of_their_own_are_refused(raw: Path) -> None:
    (raw / "imagesUnlabeled" / "empty").mkdir()
    touch(raw / "imagesUnlabeled" / "@eaDir", ["x_0000.nii.gz"])  # thumbnails of a network drive
    assert list(unlabeled_case_images(raw, TWO_CHANNELS, [])) == ["x", "y"]
    touch(raw / "imagesUnlabeled" / "patient" / "series", channels("z"))
    with pytest.raises(DualCLError, match=rf"imagesUnlabeled: patient{re.escape(os.sep)} would be passed over"):
        unlabeled_case_images(raw, TWO_CHANNELS, [])


def test_files_beside_an_image_and_hidden_ones_are_no_cases(tmp_path: Path) -> None:
    content = {"channel_names": {"0": "CT"}, "file_ending": ".mhd"}
    touch(tmp_path / "imagesUnlabeled", ["x.1_0000.mhd", "x.1_0000.raw", "._x.1_0000.mhd"])
    assert list(unlabeled_case_images(tmp_path, content, [])) == ["x.1"]


def test_images_listed_in_dataset_json_may_have_names_of_their_own(raw: Path) -> None:
    listed = {case: {"images": [f"{case}/T1.nii.gz", f"{case}/T2.nii.gz"]} for case in ("p", "q")}
    found = unlabeled_case_images(raw, {**TWO_CHANNELS, "dataset": listed}, ["q"])
    assert list(found) == ["q", "x", "y"]
    assert found["q"] == [raw / "q" / "T1.nii.gz", raw / "q" / "T2.nii.gz"]


def test_names_that_nnunet_stores_in_one_file_are_refused(raw: Path) -> None:
    touch(raw / "imagesUnlabeled", channels("x_seg"))
    with pytest.raises(DualCLError, match=r"x_seg is a case beside x, .* segmentation of x under that name"):
        unlabeled_case_images(raw, TWO_CHANNELS, [])


def test_the_old_name_of_channel_names_is_understood(raw: Path) -> None:
    old = {"modality": {"0": "T1", "1": "T2"}, "file_ending": ".nii.gz"}
    assert list(unlabeled_case_images(raw, old, ["a"])) == ["a", "x", "y"]


def test_labels_are_neither_listed_nor_opened(raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for case in "abcxy":
        (raw / "labelsTr" / f"{case}.nii.gz").mkdir(parents=True)  # opening one as a file fails
    expected = unlabeled_case_images(raw, TWO_CHANNELS, ["a"])
    looked_at: list[str] = []

    def watch(module: Any, name: str) -> None:
        original = getattr(module, name)

        def watched(path: Any = ".", *rest: Any, **options: Any) -> Any:
            looked_at.append(str(path))
            return original(path, *rest, **options)

        monkeypatch.setattr(module, name, watched)

    for module, name in ((os, "listdir"), (os, "scandir"), (os, "stat"), (builtins, "open")):
        watch(module, name)
    found = unlabeled_case_images(raw, TWO_CHANNELS, ["a"])
    monkeypatch.undo()
    assert found == expected
    assert any("imagesUnlabeled" in path for path in looked_at)
    assert not [path for path in looked_at if "labelsTr" in path]
