"""Standardized uptake values of PET from the header: body weight SUV, in g/ml.

The steps are those of the vendor-neutral calculation that the Quantitative Imaging Biomarkers Alliance (QIBA) published
with its FDG-PET/CT profile.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from math import exp, log
from typing import Any

from pydicom.valuerep import DA, DT, TM

from nnunet_dualcl.errors import DualCLError

TAGS = [
    *("Units", "CorrectedImage", "DecayCorrection", "PatientWeight", "RadiopharmaceuticalInformationSequence"),
    *("SeriesDate", "SeriesTime", "AcquisitionDate", "AcquisitionTime", "FrameReferenceTime", "ActualFrameDuration"),
    *("SUVType", "SharedFunctionalGroupsSequence", (0x7053, 0x0010), (0x7053, 0x1000)),
]
"""What :func:`suv_factor` reads."""
_DAY = timedelta(days=1)


def suv_factor(headers: Sequence[Any]) -> float:
    """What real values (after slope and intercept) are multiplied with to give SUV by body weight.

    Args:
        headers: of all slices of one series, with :data:`TAGS`.

    Raises:
        DualCLError: what is missing in the header; the values are to be left as they are then.
    """
    first = headers[0]
    units = str(first.get("Units") or "")
    if units == "GML":
        if str(first.get("SUVType") or "BW") != "BW":
            raise DualCLError(f"SUV by {first.SUVType}, not by body weight")
        return 1.0
    factor = _philips_factor(first) if units == "CNTS" else 0.0
    if units != "BQML" and factor <= 0:
        raise DualCLError(f"units are {units or 'not stated'}, not BQML")
    corrected = first.get("CorrectedImage") or []
    lacking = [name for name in ("ATTN", "DECY") if name not in corrected]
    if lacking:
        raise DualCLError(f"the header states no correction {' and '.join(lacking)}")
    if factor > 0:
        return factor
    weight_kg = _positive(first, "PatientWeight")
    doses = first.get("RadiopharmaceuticalInformationSequence") or []
    if len(doses) != 1:
        raise DualCLError(f"{len(doses)} radiopharmaceuticals in the header, not one")
    dose_bq = _positive(doses[0], "RadionuclideTotalDose")
    decay = str(first.get("DecayCorrection") or "")
    if decay == "START":
        half_life_s = _positive(doses[0], "RadionuclideHalfLife")
        dose_bq *= 2 ** (-_decay_seconds(headers, doses[0], half_life_s) / half_life_s)
    elif decay != "ADMIN":  # corrected to the injection, the dose is that of the injection as well
        raise DualCLError(f"decay correction is {decay or 'not stated'}, neither START nor ADMIN")
    return weight_kg * 1000 / dose_bq


def _philips_factor(header: Any) -> float:
    """From counts to SUV, out of a private tag of that maker; 0 where it is not there."""
    value, creator = header.get((0x7053, 0x1000)), header.get((0x7053, 0x0010))
    if value is None or creator is None or "Philips" not in str(creator.value):
        return 0.0
    return _number(value.value)


def _decay_seconds(headers: Sequence[Any], dose: Any, half_life_s: float) -> float:
    """From injection to the time that the scanner corrected decay to."""
    scan = _scan_start(headers, half_life_s)
    stated = dose.get("RadiopharmaceuticalStartDateTime")
    if stated:
        # a zone in the one and none in the other could not be compared; the scanner's clock gave both
        start: datetime = _parsed(DT, stated, "RadiopharmaceuticalStartDateTime").replace(tzinfo=None)
    else:
        clock = dose.get("RadiopharmaceuticalStartTime")
        if not clock:
            raise DualCLError("the header lacks RadiopharmaceuticalStartTime")
        start = datetime.combine(scan.date(), _parsed(TM, clock, "RadiopharmaceuticalStartTime"))
        if start > scan:  # injected before midnight
            start -= _DAY
    seconds = (scan - start).total_seconds()
    if not 0 <= seconds < _DAY.total_seconds():
        raise DualCLError("injection and scan are not on one day by the header (shifted dates?)")
    return float(seconds)


def _scan_start(headers: Sequence[Any], half_life_s: float) -> datetime:
    """Start of the first bed position.

    The series time is that, unless the series was made later from other images: then it comes after acquisitions, and
    the start follows from a frame's own times.
    """
    series = _moment(headers[0], "Series")
    acquisitions = [(_moment(header, "Acquisition"), header) for header in headers]
    earliest, header = min(acquisitions, key=lambda pair: pair[0])
    if series <= earliest:
        return series
    if header.get("FrameReferenceTime") is None:
        raise DualCLError("the series was made after the scan, and FrameReferenceTime is missing")
    decay_in_frame = log(2) / half_life_s * _positive(header, "ActualFrameDuration") / 1000
    # where in the frame the activity equals its mean over the frame
    mean_s = half_life_s / log(2) * log(decay_in_frame / (1 - exp(-decay_in_frame)))
    return earliest - timedelta(seconds=float(header.FrameReferenceTime) / 1000 - mean_s)


def _moment(header: Any, what: str) -> datetime:
    date, clock = header.get(f"{what}Date"), header.get(f"{what}Time")
    if not date or not clock:
        raise DualCLError(f"the header lacks {what}Date or {what}Time")
    return datetime.combine(_parsed(DA, date, f"{what}Date"), _parsed(TM, clock, f"{what}Time"))


def _parsed(kind: Any, value: Any, name: str) -> Any:
    try:
        return kind(value)
    except (ValueError, TypeError):
        raise DualCLError(f"{name} is damaged") from None


def _positive(header: Any, name: str) -> float:
    number = _number(header.get(name))
    if number <= 0:
        raise DualCLError(f"the header lacks {name}")
    return number


def _number(value: Any) -> float:
    """As a number, 0 where it is none."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return 0.0
