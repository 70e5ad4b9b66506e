from __future__ import annotations

from pathlib import Path

import pytest

from nnunet_dualcl.dataset_conversion.dicom.segmentation import Segmentation
from nnunet_dualcl.dataset_conversion.dicom.structures import labeling, structure_patterns, value_of
from nnunet_dualcl.errors import DualCLError

PATTERNS = structure_patterns({"cord": r"(spinal ?)?cord|rückenmark", "Parotid+": ""})


def structures(when: str, **names: int) -> Segmentation:
    """An object with these structures; name -> number."""
    nothing: frozenset[str] = frozenset()
    numbered = {number: (name.replace("_", " "),) for name, number in names.items()}
    return Segmentation(Path(when), "SEG", "p", "s", nothing, nothing, numbered, "", when, "series 1")


@pytest.mark.parametrize(
    ("name", "value"),
    [("SPINAL  CORD", 1), ("Rückenmark", 1), ("cord", 1), ("cord prv", None), ("parotid+", 2), ("Parotidd", None)],
)
def test_whole_names_whatever_their_case(name: str, value: int | None) -> None:
    assert value_of([name], PATTERNS) == value


def test_coded_meaning_serves_as_well() -> None:
    assert value_of(["Segment_1", "Cord"], PATTERNS) == 1


def test_a_name_as_the_list_shows_it_serves_as_well_and_single_names_come_first() -> None:
    patterns = structure_patterns({"edema": "LIGHT_BLUE / Edema", "tumor": "mass"})
    assert value_of(["light_blue", "Edema"], patterns) == 1
    assert value_of(["light_blue", "Mass"], patterns) == 2
    assert value_of(["a", "mass"], structure_patterns({"any": "a / .*", "tumor": "mass"})) == 2


def test_structures_of_one_label_are_put_together() -> None:
    found = labeling([structures("2001", cord=4, spinal_cord=2, other=1)], PATTERNS)
    assert [dict(values) for _, values in found.sources] == [{2: 1, 4: 1}]
    assert found.lacking == ("Parotid+",)
    assert found.notes == ("label cord: 2 structures put together",)


def test_each_label_comes_from_the_newest_object_that_has_it() -> None:
    old, new = structures("2001", **{"cord": 1, "Parotid+": 2}), structures("2002", cord=7)
    for order in ([old, new], [new, old]):
        found = labeling(order, PATTERNS)
        assert {source.when: dict(values) for source, values in found.sources} == {"2002": {7: 1}, "2001": {2: 2}}
        assert "2 segmentation objects have it, the newest was taken" in found.notes[0]


def test_two_of_one_time_are_not_chosen_between() -> None:
    with pytest.raises(DualCLError, match="--structure-set REGEX"):
        labeling([structures("2001", cord=1), structures("2001", cord=2)], PATTERNS)


def test_bad_expressions_and_none() -> None:
    with pytest.raises(DualCLError, match="no regular expression"):
        structure_patterns({"a": "("})
    assert structure_patterns({}) == {}
