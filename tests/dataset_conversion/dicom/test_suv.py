from __future__ import annotations

from typing import Any

import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from nnunet_dualcl.dataset_conversion.dicom.suv import suv_factor
from nnunet_dualcl.errors import DualCLError

HALF_LIFE_S = 6600
DOSE, WEIGHT = 3.0e8, 60.0
PLAIN = WEIGHT * 1000 / DOSE


def header(dose: dict[str, Any] | None = None, **tags: Any) -> Dataset:
    """Injected 110 minutes, one half-life, before the scan at 00:50."""
    item, injected = Dataset(), Dataset()
    defaults: dict[str, Any] = {
        "Units": "BQML", "CorrectedImage": ["ATTN", "DECY", "SCAT"], "DecayCorrection": "START",
        "PatientWeight": WEIGHT, "SeriesDate": "20200302", "SeriesTime": "005000.00",
        "AcquisitionDate": "20200302", "AcquisitionTime": "005000",
    }  # fmt: skip
    for name, value in {**defaults, **tags}.items():
        if value is not None:
            setattr(item, name, value)
    doses = {"RadionuclideTotalDose": DOSE, "RadionuclideHalfLife": HALF_LIFE_S, "RadiopharmaceuticalStartTime": "2300"}
    for name, value in {**doses, **(dose or {})}.items():
        if value is not None:
            setattr(injected, name, value)
    item.RadiopharmaceuticalInformationSequence = Sequence([injected])
    return item


def test_after_one_half_life_half_of_the_dose_is_left() -> None:
    assert suv_factor([header()]) == pytest.approx(2 * PLAIN)  # over midnight


def test_injection_with_its_date() -> None:
    dose = {"RadiopharmaceuticalStartDateTime": "20200301230000.00", "RadiopharmaceuticalStartTime": None}
    assert suv_factor([header(dose)]) == pytest.approx(2 * PLAIN)


def test_corrected_to_the_injection() -> None:
    dose = {"RadiopharmaceuticalStartTime": None}
    assert suv_factor([header(dose, DecayCorrection="ADMIN")]) == pytest.approx(PLAIN)


def test_a_later_bed_position_changes_nothing() -> None:
    assert suv_factor([header(), header(AcquisitionTime="011000")]) == pytest.approx(2 * PLAIN)


def test_a_series_made_later_falls_back_to_the_frame() -> None:
    """Reference time 0.5 s into a frame of 1 s, which starts 600 s after the scan: for short frames the middle."""
    late = {"SeriesTime": "200000", "AcquisitionTime": "010000", "FrameReferenceTime": 600_500}
    assert suv_factor([header(**late, ActualFrameDuration=1000)]) == pytest.approx(2 * PLAIN, rel=1e-6)
    with pytest.raises(DualCLError, match="made after the scan, and FrameReferenceTime"):
        suv_factor([header(SeriesTime="200000")])


def test_values_that_are_suv_already_stay() -> None:
    assert suv_factor([header(Units="GML")]) == 1
    with pytest.raises(DualCLError, match="SUV by LBM"):
        suv_factor([header(Units="GML", SUVType="LBM")])


def test_counts_with_the_factor_of_their_maker() -> None:
    item = header(Units="CNTS")
    with pytest.raises(DualCLError, match="units are CNTS"):
        suv_factor([item])
    item.add_new((0x7053, 0x1000), "DS", "0.0004")
    item.add_new((0x7053, 0x0010), "LO", "Another maker")
    with pytest.raises(DualCLError, match="units are CNTS"):
        suv_factor([item])
    item.add_new((0x7053, 0x0010), "LO", "Philips PET Private Group")
    assert suv_factor([item]) == pytest.approx(4e-4)


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        ({"Units": None}, "units are not stated"),
        ({"CorrectedImage": ["DECY"]}, "no correction ATTN"),
        ({"CorrectedImage": None}, "no correction ATTN and DECY"),
        ({"PatientWeight": 0}, "lacks PatientWeight"),
        ({"DecayCorrection": "NONE"}, "decay correction is NONE"),
        ({"SeriesTime": None}, "lacks SeriesDate or SeriesTime"),
    ],
)
def test_what_is_missing_is_named(tags: dict[str, Any], message: str) -> None:
    with pytest.raises(DualCLError, match=message):
        suv_factor([header(**tags)])


@pytest.mark.parametrize(
    ("dose", "message"),
    [
        ({"RadionuclideTotalDose": None}, "lacks RadionuclideTotalDose"),
        ({"RadionuclideHalfLife": None}, "lacks RadionuclideHalfLife"),
        ({"RadiopharmaceuticalStartTime": None}, "lacks RadiopharmaceuticalStartTime"),
        ({"RadiopharmaceuticalStartDateTime": "19000101120000"}, "not on one day"),
    ],
)
def test_what_is_missing_of_the_dose_is_named(dose: dict[str, Any], message: str) -> None:
    with pytest.raises(DualCLError, match=message):
        suv_factor([header(dose)])
