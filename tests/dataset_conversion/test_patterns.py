import os
import sys
from pathlib import Path

import pytest

from nnunet_dualcl.dataset_conversion.patterns import compiled, files_below, named_patterns, safe_names
from nnunet_dualcl.errors import DualCLError

GROUPS = ("case", "patient", "channel")


@pytest.mark.parametrize(
    ("pattern", "path", "groups"),
    [
        ("images/*.nii.gz", "images/a b.nii.gz", {"case": "a b"}),
        ("images/*.nii.gz", "images/x/a.nii.gz", None),
        ("./*/t1.nii", "Müller/t1.nii", {"case": "Müller"}),
        ("*/*/ct?.mha", "site1/p7/ct1.mha", {"case": "p7"}),
        ("*/ct*_*.nii*", "p1/ct7_x.nii.gz", {"case": "7"}),
        ("**/*.nrrd", "a/b/c.nrrd", {"case": "c"}),
        ("**/*.nrrd", "c.nrrd", {"case": "c"}),
        ("**/lgemri.nrrd", "train/ABC/lgemri.nrrd", {"case": "ABC"}),
        ("*/[iI]mage.nii", "p1/Image.nii", {"case": "p1"}),
        ("*/[iI]mage.nii", "p1/mage.nii", None),
        ("p[!0-2]_*", "p3_a", {"case": "a"}),
        ("p[!0-2]_*", "p1_a", None),
        ("p[!0-2]_*", "p/_a", None),
        ("p[+-9]_*", "p/_a", None),
        ("*_[]^&&~|[-]", "a_[", {"case": "a"}),
        ("*_[[]1].nii", "a_[1].nii", {"case": "a"}),
        ("*_[].nii", "a_[].nii", {"case": "a"}),
        ("*_[1.nii", "a_[1.nii", {"case": "a"}),
        (r"(?P<patient>\d+)/(?P<channel>t[12])\.nii", "12/t2.nii", {"patient": "12", "channel": "t2"}),
        (r"(?P<patient>\d+)/(?P<channel>t[12])\.nii", "12/t3.nii", None),
    ],
)
def test_patterns_meet_whole_paths(pattern: str, path: str, groups: dict[str, str] | None) -> None:
    match = compiled(pattern, groups=GROUPS).fullmatch(path)
    assert (match.groupdict() if match else None) == groups


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("(?P<case>[", "no regular expression"),
        ("(?P<organ>.*)", "has a group organ; known are case"),
        ("(?P<channel>.*)", "tells no cases apart"),
        ("images/scan.nii", "tells no cases apart"),
    ],
)
def test_patterns_that_cannot_work_are_refused(pattern: str, message: str) -> None:
    with pytest.raises(DualCLError, match=message):
        compiled(pattern, groups=GROUPS)


def test_names_with_patterns_keep_their_order() -> None:
    assert list(named_patterns(["b=x=y", "a"], "--label").items()) == [("b", "x=y"), ("a", "")]
    for pairs in (["a=1", "a=2"], ["=1"]):
        with pytest.raises(DualCLError, match="give each name once"):
            named_patterns(pairs, "--label")


def test_files_are_sorted_links_followed_once_and_hidden_ones_passed_over(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    for name in ("b/2.nii", "a.nii", "._a.nii", "b/.DS_Store"):
        (tmp_path / name).touch()
    (tmp_path / "b" / "up").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "again").symlink_to(tmp_path / "b", target_is_directory=True)
    assert len(files_below(tmp_path)) == 2
    with pytest.raises(DualCLError, match="is no folder"):
        files_below(tmp_path / "a.nii")


def test_a_link_does_not_take_the_place_of_its_folder(tmp_path: Path) -> None:
    for name in ("patients/p1/im.nii", "elsewhere/p2/im.nii"):
        (tmp_path / "in" / name).parent.mkdir(parents=True)
        (tmp_path / "in" / name).touch()
    (tmp_path / "in/elsewhere").rename(tmp_path / "elsewhere")
    (tmp_path / "in/favourites").mkdir()
    (tmp_path / "in/favourites/anna").symlink_to("../patients/p1")
    (tmp_path / "in/favourites/up").symlink_to("..")
    (tmp_path / "in/more").symlink_to(tmp_path / "elsewhere")
    assert list(files_below(tmp_path / "in")) == ["more/p2/im.nii", "patients/p1/im.nii"]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems keep names as text")
def test_names_of_another_encoding_are_refused(tmp_path: Path) -> None:
    with open(os.path.join(os.fsencode(tmp_path), b"M\xfcller.nii"), "w"):
        pass
    with pytest.raises(DualCLError, match=r"the name M\\xfcller\.nii is no UTF-8"):
        files_below(tmp_path)


def test_names_become_plain_and_stay_unique() -> None:
    names = safe_names(["Jörg Müller", "Jorg Muller", "日本", "a_1-b"])
    assert names == {"Jorg Muller": "Jorg-Muller", "Jörg Müller": "Jorg-Muller-2", "a_1-b": "a_1-b", "日本": "unnamed"}
