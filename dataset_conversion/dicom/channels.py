"""Which channel each series is for, and which series make up one case."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence

from nnunet_dualcl.dataset_conversion.dicom.scan import Export, Series
from nnunet_dualcl.dataset_conversion.patterns import regular_expression
from nnunet_dualcl.errors import DualCLError, first_few

CHANNEL_NAMES = {"CT": "CT", "MR": "MR", "PT": "PET"}
"""Of a dataset with one modality."""


def channels_of(export: Export, channels: Mapping[str, str] | None) -> dict[Series, int | None]:
    """The channel that each series is for; None for one that nobody asked for.

    Raises:
        DualCLError: no series, several modalities and no channels, or a channel that no series is for.
    """
    if not export.series:
        raise DualCLError(
            "No CT, MR or PET volume was found. Left out: "
            + first_few([f"{where}: {reason}" for where, reason in export.refused], "; ")
        )
    if channels is None:
        if len({series.modality for series in export.series}) > 1:
            raise DualCLError(
                f"Series of several kinds: {_seen(export.series)}. Say which are the channels, as in --channel CT=CT "
                "--channel PET=PT, or --channel T1='t1.*post' by the description."
            )
        return dict.fromkeys(export.series, 0)
    patterns = [regular_expression(text or re.escape(name), ignore_case=True) for name, text in channels.items()]
    chosen: dict[Series, int | None] = {}
    kinds = [any(each.fullmatch(modality) for modality in CHANNEL_NAMES) for each in patterns]
    for series in export.series:
        chosen[series] = None
        for index, (each, by_modality) in enumerate(zip(patterns, kinds, strict=True)):
            if each.fullmatch(series.modality) if by_modality else _is_described(series, each):
                chosen[series] = index
                break
    for index, name in enumerate(channels):
        mine = [series for series in export.series if chosen[series] == index]
        if not mine:
            raise DualCLError(f"No series is for the channel {name}. There are: {_seen(export.series)}.")
        if len({series.modality for series in mine}) > 1:
            raise DualCLError(f"The channel {name} would mix modalities: {_seen(mine)}. Narrow its expression.")
    return chosen


def groups(export: Export, channel_of: Mapping[Series, int | None], num_channels: int) -> list[list[Series]]:
    """Series that make up one case: each for itself, or with several channels all of one study and frame."""
    wanted = [series for series in export.series if channel_of[series] is not None]
    if num_channels == 1:
        return [[series] for series in wanted]
    found: dict[tuple[str, str, str], list[Series]] = {}
    for series in wanted:
        found.setdefault((series.patient, series.study, series.frame_of_reference), []).append(series)
    return list(found.values())


def frame_notes(group: Sequence[Series]) -> list[str]:
    """For the report: whether nothing but their study says that the series of a case lie in one place."""
    if len(group) == 1 or group[0].frame_of_reference:
        return []
    return ["its series state no frame of reference and were taken to lie in one: check in the picture that they do"]


def missing(group: Sequence[Series], names: Sequence[str], channel_of: Mapping[Series, int | None]) -> str | None:
    """Why these series make no case: they lack a channel."""
    counts = Counter(channel_of[series] for series in group)
    lacking = [name for index, name in enumerate(names) if not counts[index]]
    if not lacking:
        return None
    return f"no series for the channel {', '.join(lacking)} in the same study and frame of reference"


def check_one_each(group: Sequence[Series], names: Sequence[str], channel_of: Mapping[Series, int | None]) -> None:
    """Raise a :class:`DualCLError` where several of these series are for one channel."""
    counts = Counter(channel_of[series] for series in group)
    several = [name for index, name in enumerate(names) if counts[index] > 1]
    if several:
        raise DualCLError(f"several series for the channel {', '.join(several)}; narrow its expression")


def _is_described(series: Series, pattern: re.Pattern[str]) -> bool:
    """By its description, or by that and what it differs by from other volumes of its series."""
    texts = (series.description, " ".join([series.description, *series.marks]))
    return any(pattern.search(text) for text in texts)


def _seen(series: Sequence[Series]) -> str:
    """Modalities and descriptions; for the screen alone."""
    counts = Counter(f"{each.modality} {each.shown}" for each in series)
    return ", ".join(f"{count} x {name}" for name, count in counts.most_common(15))
