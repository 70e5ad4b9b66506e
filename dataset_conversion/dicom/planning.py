"""From what was found in a DICOM export to a plan of cases."""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from nnunet_dualcl.dataset_conversion.dicom.belonging import owner
from nnunet_dualcl.dataset_conversion.dicom.channels import (
    CHANNEL_NAMES,
    channels_of,
    check_one_each,
    frame_notes,
    groups,
    missing,
)
from nnunet_dualcl.dataset_conversion.dicom.loading import Channel, Source, load
from nnunet_dualcl.dataset_conversion.dicom.scan import Export, Series, scan
from nnunet_dualcl.dataset_conversion.dicom.segmentation import Segmentation, in_frame
from nnunet_dualcl.dataset_conversion.dicom.structures import labeling, shown, structure_patterns, value_of
from nnunet_dualcl.dataset_conversion.kept_names import distinct
from nnunet_dualcl.dataset_conversion.patterns import Once, named_patterns, regular_expression
from nnunet_dualcl.dataset_conversion.plan import Plan, Refusal, Role, SourceCase
from nnunet_dualcl.dataset_conversion.write import converter
from nnunet_dualcl.errors import DualCLError, first_few

_NO_CHANNEL = "drawn on a series that is no channel"
_OTHER_FRAME = "structures drawn in another frame of reference than that of the series"


def plan(
    source: Path,
    *,
    labels: Mapping[str, str],
    channels: Mapping[str, str] | None = None,
    structure_set: str | None = None,
    threshold: float = 0.5,
    require_all_labels: bool = False,
    test: str | None = None,
) -> Plan:
    """Find cases in a DICOM export, from headers alone.

    Args:
        source: folder; files in it may have any names and order.
        labels: name -> regular expression that the whole name of an ROI, or label or coded meaning of a segment, must
            match, whatever its case; an empty one stands for the label's name. Numbered from 1 in this order, which
            is also the precedence where structures overlap. None at all: every case is unlabeled.
        channels: name -> regular expression for the modality (one that matches CT, MR or PT whole), or else for any
            part of the series description and of what its volumes differ by (``EchoTime=20``), whatever its case.
            None: each volume is a case, if all are of one modality.
        structure_set: regular expression for any part of the label, name or description of a segmentation object;
            others are passed over. None: all; for each label the newest object that has it drawn.
        threshold: of fractional segments, as a share of their maximum.
        require_all_labels: take a series whose segmentation lacks a label as unlabeled, instead of the label as absent.
        test: regular expression for any part of a patient ID or of the path of an image file, whatever its case: all
            series of such a patient are test cases.

    Raises:
        DualCLError: no such folder, no DICOM series in it, a channel, label or test pattern that matches nothing, no
            labels where there are segmentations, no case with all labels where each must have them.
    """
    patterns = structure_patterns(labels)
    if not 0 < threshold <= 1:
        raise DualCLError(f"--threshold must be above 0 and at most 1, got {threshold:g}.")
    chosen_objects = regular_expression(structure_set, ignore_case=True) if structure_set else None
    test_pattern = regular_expression(test, ignore_case=True) if test else None
    export = scan(source)
    test_patients = _test_patients(export, source, test_pattern) if test_pattern else set()
    if not labels and export.segmentations:
        raise DualCLError(
            "Name the labels, as in --label NAME=REGEX, or take RTSTRUCT and DICOM-SEG files out of the folder to have "
            f"all series as unlabeled. Structures:\n{_structures_seen(export)}"
        )
    channel_of = channels_of(export, channels)
    names = tuple(channels or [CHANNEL_NAMES[export.series[0].modality]])
    segmentations = [each for each in export.segmentations if not chosen_objects or chosen_objects.search(each.title)]
    _check_labels(segmentations, patterns, [each.title for each in export.segmentations])
    refused = [Refusal(where, reason) for where, reason in export.refused]
    damaged = [Refusal(where, reason) for where, reason in export.damaged]
    notes = list(export.notes)
    owned, unplaced = _owned(segmentations, export, channel_of, notes)
    for each, why in unplaced.items():
        asked_for = any(value_of(texts, patterns) for texts in each.structures.values())
        counts = asked_for and why not in (_NO_CHANNEL, _OTHER_FRAME)  # a label that a case lacks by it is told there
        (damaged if counts else refused).append(Refusal(each.where, why))
    cases: list[SourceCase] = []
    incomplete: list[Sequence[str]] = []
    any_labels = False
    for group in groups(export, channel_of, len(names)):
        group = sorted(group, key=lambda series: channel_of[series] or 0)
        where = " and ".join(series.where for series in group)
        lacking_channels = missing(group, names, channel_of)
        if lacking_channels is not None:  # where something asked for is drawn on it, a labeled patient is lost
            drawn = (names for series in group for each in owned.get(series, []) for names in each.structures.values())
            (damaged if any(value_of(names, patterns) for names in drawn) else refused).append(
                Refusal(where, lacking_channels)
            )
            continue
        try:
            check_one_each(group, names, channel_of)
            sources, lacking, said = _labels(
                dict(zip(names, group, strict=True)), owned, unplaced, patterns, require_all_labels
            )
        except DualCLError as error:
            damaged.append(Refusal(where, str(error)))
            continue
        incomplete += [lacking] if lacking and not sources else []
        any_labels |= bool(sources)
        images = dict.fromkeys(each.path for series in group for each in series.slices)
        cases.append(
            SourceCase(
                name=f"case_{len(cases) + 1:04d}",
                patient=f"patient_{export.patients[group[0].patient]:04d}",
                role=Role.TEST if group[0].patient in test_patients else Role.LABELED if sources else Role.UNLABELED,
                load=partial(
                    load,
                    tuple(Channel(series.slices, series.grid, series.modality) for series in group),
                    sources,
                    threshold,
                    require_all_labels,
                    (*(note for series in group for note in series.notes), *frame_notes(group), *said),
                ),
                files=(*images, *(each.path for each in sources)),
                where=where,
                key={
                    "patient_id": group[0].patient,
                    "study_uid": group[0].study,
                    "series_uid": " ".join(series.uid for series in group),
                    "folder": " ".join(dict.fromkeys(str(series.slices[0].path.parent) for series in group)),
                },
                identity=" ".join(text for each in group for text in (each.patient, each.study, each.uid, *each.marks)),
            )
        )
    if not cases:
        why = first_few([str(each) for each in (*damaged, *refused)], "; ")
        raise DualCLError(f"{source}: no case came out. {why}")
    if incomplete and not any_labels:
        raise DualCLError(_none_complete(incomplete, unplaced, patterns))
    return Plan(
        kind="dicom",
        channels=names,
        labels={name: value for value, name in enumerate(labels, 1)},
        cases=tuple(distinct(cases)),
        refused=tuple(refused),
        damaged=tuple(damaged),
        screen=_seen_on_screen(export, segmentations, patterns, cases, unplaced),
        notes=tuple(notes),
        settings={
            "--label": repr(dict(labels)),
            "--channel": repr(dict(channels or {})),
            "--structure-set": str(structure_set),
            "--threshold": str(threshold),
            "--require-all-labels": str(require_all_labels),
        },
        fewer_scans="Where these are further series of one examination, choose one by its description, as in --channel "
        f"{names[0]}=REGEX; --dry-run lists the descriptions",
        private=True,
    )


convert = converter(plan)
"""See :func:`~nnunet_dualcl.dataset_conversion.write.converter`."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this kind."""
    parser.add_argument(
        "--label",
        action="append",
        default=[],
        metavar="NAME[=REGEX]",
        help="in order; the regex meets whole ROI or segment names, whatever their case; default: NAME itself; without "
        "any label the structures are listed, or where there are none all series become unlabeled",
    )
    parser.add_argument(
        "--channel",
        action="append",
        default=[],
        metavar="NAME=REGEX",
        help="in order; the regex meets the modality (CT, MR, PT), or else part of the series description, or what the "
        "volumes of a series differ by (EchoTime=20$); CT gets CT normalization; default: each volume is a case, if "
        "all are of one modality",
    )
    parser.add_argument(
        "--structure-set",
        action=Once,
        metavar="REGEX",
        help="only segmentation objects with this in their label or description",
    )
    parser.add_argument("--threshold", type=float, default=0.5, help="of fractional segments (default 0.5)")
    parser.add_argument(
        "--require-all-labels", action="store_true", help="a series that lacks a label is unlabeled, not without organ"
    )
    parser.add_argument(
        "--test",
        action=Once,
        metavar="REGEX",
        help="patients with this in their ID or in the path of an image file are test cases",
    )


def keywords(arguments: argparse.Namespace) -> dict[str, Any]:
    """Parsed arguments as keywords of :func:`plan`."""
    return {
        "labels": named_patterns(arguments.label, "--label"),
        "channels": named_patterns(arguments.channel, "--channel") or None,
        "structure_set": arguments.structure_set,
        "threshold": arguments.threshold,
        "require_all_labels": arguments.require_all_labels,
        "test": arguments.test,
    }


def _test_patients(export: Export, source: Path, pattern: re.Pattern[str]) -> set[str]:
    """Patients with the pattern in their ID or in the path of one of their image files, from the source on."""
    found = {
        series.patient
        for series in export.series
        if pattern.search(series.patient)
        or any(pattern.search(each.path.relative_to(source).as_posix()) for each in series.slices)
    }
    if not found:
        raise DualCLError(
            f"--test {pattern.pattern!r} occurs in no patient ID and in no path below {source}. --dry-run without it "
            "lists where the series lie."
        )
    return found


def _structures_seen(export: Export) -> str:
    """Structures and how many series have each, a line each; for the screen alone."""
    series: dict[str, set[Series]] = {}
    lost: Counter[str] = Counter()
    for segmentation in export.segmentations:
        names = {shown(texts) for texts in segmentation.structures.values()}
        for name in names:
            series.setdefault(name, set())
        try:
            own, _ = owner(segmentation, export)
            here = in_frame(segmentation, own.frame_of_reference)
        except DualCLError:
            lost.update(names)
            continue
        drawn = {shown(texts) for texts in here.structures.values()}
        lost.update(names - drawn)
        for name in drawn:
            series[name].add(own)
    return "\n".join(
        f"  {name!r}: {len(those)} series"
        + (f", and {lost[name]} x on one that is not here, left out or not to be told" if lost[name] else "")
        for name, those in sorted(series.items())
    )


def _seen_on_screen(
    export: Export,
    segmentations: Sequence[Segmentation],
    patterns: Mapping[str, re.Pattern[str]],
    cases: Sequence[SourceCase],
    unplaced: Iterable[Segmentation],
) -> tuple[str, ...]:
    """What the source calls its structures and series, to find synonyms by, and its bad files; for the screen alone."""
    names = list(patterns)
    counts = Counter(texts for each in segmentations for texts in each.structures.values())
    lines = [
        f"structure {shown(texts)!r}: {count} x, "
        + (f"label {names[value - 1]}" if (value := value_of(texts, patterns)) else "no label")
        for texts, count in sorted(counts.items())
    ]
    lines += [f"{series.where}: {series.shown} in {series.slices[0].path.parent}" for series in export.series]
    lines += [f"{where}, of which something is left out, lies in {place}" for where, place in export.refused_in.items()]
    lines += [f"archive, not unpacked: {path}" for path in export.archives]
    lines += [f"{each.where} lies on no channel: {each.path}" for each in unplaced]
    lines += [f"damaged file: {path}" for path in export.damaged_files]
    for case in cases:
        cut_off = [path for path in case.files if path in export.cut_off]
        lines += [f"{case.name} would fail: {len(cut_off)} of {len(case.files)} files cut off"] if cut_off else []
        lines += [f"file cut off: {path}" for path in cut_off]
    return tuple(lines)


def _check_labels(
    segmentations: Sequence[Segmentation], patterns: Mapping[str, re.Pattern[str]], all_titles: Sequence[str]
) -> None:
    structures = [names for each in segmentations for names in each.structures.values()]
    met = {value_of(names, patterns) for names in structures}
    missing = [name for value, name in enumerate(patterns, 1) if value not in met]
    if not missing:
        return
    if structures:
        seen = Counter(shown(names) for names in structures).most_common(30)
        there = f"There are: {', '.join(name for name, _ in seen)}."
    elif all_titles:
        there = f"By --structure-set none of {len(all_titles)} segmentation objects is taken: {first_few(all_titles)}."
    else:
        there = "There is no RTSTRUCT or DICOM-SEG."
    raise DualCLError(f"No structure is named like the label {', '.join(missing)}. {there}")


def _none_complete(
    incomplete: Sequence[Sequence[str]], unplaced: Iterable[Segmentation], patterns: Mapping[str, re.Pattern[str]]
) -> str:
    """Why no case has all labels, out of those that each case lacks."""
    counts = Counter(name for lacking in incomplete for name in lacking)
    elsewhere = {value_of(names, patterns) for each in unplaced for names in each.structures.values()}
    others = [name for value, name in enumerate(patterns, 1) if counts[name] and value in elsewhere]
    return (
        f"--require-all-labels leaves no labeled case: it made {len(incomplete)} case(s) unlabeled. Not drawn there: "
        + ", ".join(f"{name} in {counts[name]}" for name in patterns if counts[name])
        + (f"; {', '.join(others)} drawn on series that are no channel or left out" if others else "")
        + ". Without the option a label that is not drawn is taken as absent; or ask for fewer labels."
    )


def _owned(
    segmentations: Sequence[Segmentation],
    export: Export,
    channel_of: Mapping[Series, int | None],
    notes: list[str],
) -> tuple[dict[Series, list[Segmentation]], dict[Segmentation, str]]:
    """Series that are channels -> the segmentations drawn on them; segmentations that are on none of them -> why."""
    owned: dict[Series, list[Segmentation]] = {}
    unplaced: dict[Segmentation, str] = {}
    for segmentation in segmentations:
        try:
            series, doubt = owner(segmentation, export, channel_of)
            if channel_of[series] is None:
                raise DualCLError(_NO_CHANNEL)
            here = in_frame(segmentation, series.frame_of_reference)
        except DualCLError as error:
            unplaced[segmentation] = str(error)
            continue
        if doubt:
            notes.append(f"{segmentation.where} {doubt}; taken to be drawn on {series.where}")
        others = {number: names for number, names in segmentation.structures.items() if number not in here.structures}
        if others:
            unplaced[replace(segmentation, structures=others)] = _OTHER_FRAME
        owned.setdefault(series, []).append(here)
    idle = sum(channel is None for channel in channel_of.values())
    if idle:
        notes.append(f"{idle} series are for no channel and were passed over")
    return owned, unplaced


def _labels(
    group: Mapping[str, Series],
    owned: Mapping[Series, list[Segmentation]],
    unplaced: Iterable[Segmentation],
    patterns: Mapping[str, re.Pattern[str]],
    require_all: bool,
) -> tuple[tuple[Source, ...], Sequence[str], list[str]]:
    """What the labels of a case are read from, none for an unlabeled one, the labels that it has not, and notes.

    Each label comes from the first series of the case that has it drawn.

    Args:
        group: channel -> series of the case.
        owned: series -> the segmentations drawn on it.
        unplaced: segmentations drawn on no channel.
        patterns: of the labels.
        require_all: of the user.

    Raises:
        DualCLError: two objects of one time have the same label, or a label that the case lacks was drawn elsewhere.
    """
    sources: list[Source] = []
    notes: list[str] = []
    lacking: Sequence[str] = ()
    further = [owned.get(series, []) for series in group.values()]
    for channel, series in group.items():
        met = {value for source in sources for value in source.values.values()}
        here, *further = further
        labels = labeling(here, patterns, met, list(chain.from_iterable(further)))
        sources += [Source(each.path, each.kind, values, series.grid, channel) for each, values in labels.sources]
        notes += labels.notes
        lacking = labels.lacking
    if not sources:
        count = sum(len(owned.get(series, [])) for series in group.values())
        text = f"unlabeled: {count} segmentation objects, none with a structure for these labels"
        return (), (), [text] if count else []
    if lacking and require_all:
        return (), lacking, [f"unlabeled: no structure for {', '.join(lacking)}"]
    wanted = [value for value, name in enumerate(patterns, 1) if name in lacking]
    any_series = next(iter(group.values()))
    for each in unplaced:
        if _of_one_study(each, any_series) and any(
            value_of(names, patterns) in wanted for names in each.structures.values()
        ):
            raise DualCLError(
                f"lacks {', '.join(lacking)}, and {each.where} has some of it, but is drawn on none of its series (see "
                "there). Mend that, or leave the object out by --structure-set REGEX"
            )
    absent = [f"no structure for {', '.join(lacking)}: taken as absent"] if lacking else []
    return tuple(sources), lacking, [*notes, *absent]


def _of_one_study(segmentation: Segmentation, series: Series) -> bool:
    """Might the segmentation have been drawn on the series' patient in the same position?"""
    return segmentation.patient == series.patient and (
        segmentation.study == series.study or series.frame_of_reference in segmentation.frames_of_reference
    )
