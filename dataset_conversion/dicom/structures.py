"""Which structures of which segmentation objects make up the labels of a series."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from nnunet_dualcl.dataset_conversion.dicom.segmentation import Segmentation
from nnunet_dualcl.dataset_conversion.patterns import regular_expression
from nnunet_dualcl.errors import DualCLError


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
    segmentations: Sequence[Segmentation], patterns: Mapping[str, re.Pattern[str]], met: Collection[int] = ()
) -> Labeling:
    """For each label the newest object that has a structure for it, with all of its structures for it.

    Args:
        segmentations: of one series.
        patterns: see :func:`structure_patterns`.
        met: values that another series of the case has already.

    Raises:
        DualCLError: two objects of one date have the same label.
    """
    found: dict[int, list[tuple[Segmentation, list[int]]]] = {}
    for segmentation in segmentations:
        by_value: dict[int, list[int]] = {}
        for number, names in sorted(segmentation.structures.items()):
            value = value_of(names, patterns)
            if value is not None:
                by_value.setdefault(value, []).append(number)
        for value, numbers in by_value.items():
            found.setdefault(value, []).append((segmentation, numbers))
    sources: dict[Segmentation, dict[int, int]] = {}
    notes = []
    for value, name in enumerate(patterns, 1):
        offers = sorted(found.get(value, []), key=lambda offer: (offer[0].when, str(offer[0].path)))
        if not offers:
            continue
        if value in met:
            notes.append(f"label {name}: drawn on several series, that of the channel named first was taken")
            continue
        if len(offers) > 1:
            if offers[-1][0].when == offers[-2][0].when:
                raise DualCLError(
                    f"{len(offers)} segmentation objects have the label {name}, the newest two at one time. Choose by "
                    "their label or description, --structure-set REGEX, or take one of them out of the folder."
                )
            notes.append(f"label {name}: {len(offers)} segmentation objects have it, the newest was taken")
        segmentation, numbers = offers[-1]
        if len(numbers) > 1:
            notes.append(f"label {name}: {len(numbers)} structures put together")
        sources.setdefault(segmentation, {}).update(dict.fromkeys(numbers, value))
    return Labeling(
        sources=tuple(sources.items()),
        lacking=tuple(name for value, name in enumerate(patterns, 1) if value not in (*found, *met)),
        notes=tuple(notes),
    )
