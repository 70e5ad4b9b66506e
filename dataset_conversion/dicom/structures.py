"""Which structures of which segmentation objects make up the labels of a series."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from nnunet_dualcl.dataset_conversion.dicom.rtstruct import drawn_rois
from nnunet_dualcl.dataset_conversion.dicom.segmentation import Segmentation
from nnunet_dualcl.dataset_conversion.patterns import regular_expression
from nnunet_dualcl.errors import DualCLError

_Offer = tuple[Segmentation, list[int]]
"""An object and the numbers of its structures for a label."""


@dataclass(frozen=True)
class Labeling:
    """Labels of one series.

    Attributes:
        sources: each segmentation object with structure number -> label value.
        lacking: names of labels that no object of this series and no other series has.
        notes: for the report.
    """

    sources: tuple[tuple[Segmentation, Mapping[int, int]], ...]
    lacking: tuple[str, ...]
    notes: tuple[str, ...]


def structure_patterns(labels: Mapping[str, str]) -> dict[str, re.Pattern[str]]:
    """Label name -> expression for whole structure names, whatever their case; a label's own name where it is empty.

    Raises:
        DualCLError: an expression that does not compile.
    """
    return {name: regular_expression(text or re.escape(name), ignore_case=True) for name, text in labels.items()}


def shown(names: Iterable[str]) -> str:
    """The names of one structure (label and coded meaning of a segment) as the user gets to see them."""
    return " / ".join(" ".join(name.split()) for name in names)


def value_of(names: Sequence[str], patterns: Mapping[str, re.Pattern[str]]) -> int | None:
    """Value, from 1, of the first label whose expression is met by one of a structure's names, or else by all shown."""
    for texts in ([shown([name]) for name in names], [shown(names)]):
        for value, pattern in enumerate(patterns.values(), 1):
            if any(pattern.fullmatch(text) for text in texts):
                return value
    return None


def labeling(
    segmentations: Sequence[Segmentation],
    patterns: Mapping[str, re.Pattern[str]],
    met: Collection[int] = (),
    later: Sequence[Segmentation] = (),
) -> Labeling:
    """For each label the newest object that has a structure for it, with all of its structures for it.

    Where several have one, those come first that have it drawn and do not only name it.

    Args:
        segmentations: of one series.
        patterns: see :func:`structure_patterns`.
        met: values that another series of the case has already.
        later: objects of the case's further series, left what they have drawn and ``segmentations`` only name.

    Raises:
        DualCLError: two objects of one date have the same label.
    """
    found, further = _offers(segmentations, patterns), _offers(later, patterns)
    drawn = cache(_drawn)  # which reads the whole file

    def filled_of(offers: Sequence[_Offer]) -> list[_Offer]:
        return [offer for offer in offers if not drawn(offer[0]).isdisjoint(offer[1])]

    sources: dict[Segmentation, dict[int, int]] = {}
    notes = []
    for value, name in enumerate(patterns, 1):
        offers = sorted(found.get(value, []), key=lambda offer: (offer[0].when, str(offer[0].path)))
        if not offers:
            continue
        if value in met:
            notes.append(f"label {name}: drawn on several series, that of the channel named first was taken")
            continue
        if value in further and not filled_of(offers) and filled_of(further[value]):
            notes.append(f"label {name}: only named on one series, that of another channel was taken")
            continue
        if len(offers) > 1:
            filled = filled_of(offers) or offers
            if len(filled) > 1 and filled[-1][0].when == filled[-2][0].when:
                raise DualCLError(
                    f"{len(offers)} segmentation objects have the label {name}, the newest two at one time. Choose by "
                    "their label or description, --structure-set REGEX, or take one of them out of the folder."
                )
            notes.append(f"label {name}: {len(offers)} segmentation objects have it, {_taken(filled, offers)}")
            offers = filled
        segmentation, numbers = offers[-1]
        if len(numbers) > 1:
            notes.append(f"label {name}: {len(numbers)} structures put together")
        sources.setdefault(segmentation, {}).update(dict.fromkeys(numbers, value))
    return Labeling(
        sources=tuple(sources.items()),
        lacking=tuple(name for value, name in enumerate(patterns, 1) if value not in (*found, *met)),
        notes=tuple(notes),
    )


def _offers(segmentations: Iterable[Segmentation], patterns: Mapping[str, re.Pattern[str]]) -> dict[int, list[_Offer]]:
    """Value -> the objects that have a structure for it."""
    found: dict[int, list[_Offer]] = {}
    for segmentation in segmentations:
        by_value: dict[int, list[int]] = {}
        for number, names in sorted(segmentation.structures.items()):
            value = value_of(names, patterns)
            if value is not None:
                by_value.setdefault(value, []).append(number)
        for value, numbers in by_value.items():
            found.setdefault(value, []).append((segmentation, numbers))
    return found


def _drawn(segmentation: Segmentation) -> frozenset[int]:
    """Numbers of the structures that have contours; all of a SEG, and of a damaged RTSTRUCT, so that its case fails."""
    everything = frozenset(segmentation.structures)
    if segmentation.kind == "SEG":
        return everything
    try:
        rois: frozenset[int] = drawn_rois(segmentation.path)
    except Exception:  # a damaged object fails in any way
        return everything
    return rois


def _taken(filled: Sequence[_Offer], offers: Sequence[_Offer]) -> str:
    """For the report: which of several objects with a label was taken, the last of ``filled``."""
    when = filled[-1][0].when
    passed = [offer[0].when for offer in offers if offer not in filled and offer[0].when >= when]
    if not passed:
        return "the newest was taken"
    which = "a newer one" if max(passed) > when else "one of the same time"
    return f"the newest with contours was taken; {which} has the structure without contours"
