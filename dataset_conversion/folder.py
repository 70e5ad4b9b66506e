"""Any tree of NIfTI, NRRD or MetaImage files, told apart by glob or regular expression.

A file is a label where the pattern of labels matches its path, otherwise an image where the pattern of images does.
Cases without a label become unlabeled.
"""

from __future__ import annotations

import argparse
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from nnunet_dualcl.dataset_conversion.geometry import grid_difference
from nnunet_dualcl.dataset_conversion.labels import merge_structures, whole_numbers
from nnunet_dualcl.dataset_conversion.patterns import (
    Once,
    by_folders,
    compiled,
    files_below,
    is_expression,
    named_patterns,
    regular_expression,
    safe_names,
    why_no_match,
)
from nnunet_dualcl.dataset_conversion.plan import Plan, Refusal, Role, Scan, SourceCase
from nnunet_dualcl.dataset_conversion.reading import ending_of, files_of, read_volume
from nnunet_dualcl.dataset_conversion.volumes import load_volumes
from nnunet_dualcl.dataset_conversion.write import converter
from nnunet_dualcl.errors import DualCLError, first_few
from nnunet_dualcl.yaml_file import read_mapping

Spacing = tuple[float, float, float]


@dataclass
class _Found:
    """Patients that the paths of one case name, and its files by channel and by label; more than one is a fault."""

    patients: set[str] = field(default_factory=set)
    images: dict[int, list[str]] = field(default_factory=lambda: defaultdict(list))
    labels: dict[int, list[str]] = field(default_factory=lambda: defaultdict(list))


def plan(
    source: Path,
    *,
    images: str,
    channels: Mapping[str, str],
    labels: Mapping[str, str | int | list[int]],
    label_files: str | None = None,
    test: str | None = None,
    spacing_mm: Spacing | None = None,
    require_all_labels: bool = False,
) -> Plan:
    """Find cases in a tree of files.

    Args:
        source: folder.
        images: pattern of image files (see ``patterns.compiled``), with the groups ``case``, ``patient``
            (either stands for the other where it is missing) and ``channel``.
        channels: name -> regular expression that the group ``channel`` must match whole, or, without that group, that
            is searched for in the path; an empty one matches everything.
        labels: name -> its value or values in the label files, numbered anew in this order; or name -> regular
            expression for the group ``label``, for one file a structure: then the structure named first keeps a voxel
            that several claim. Empty only without ``label_files``.
        label_files: pattern of label files, with ``case``, ``patient`` and ``label``; None: no case has labels.
        test: regular expression for any part of the path of an image file of a test case.
        spacing_mm: voxel size (x, y, z) of files whose header has none.
        require_all_labels: with one file a structure, take a case that lacks one as unlabeled, instead of the structure
            as absent.

    Raises:
        DualCLError: no such folder, a pattern that does not compile or matches nothing, labels of both kinds mixed,
            patients that only the labels' pattern tells apart.
    """
    image_pattern = compiled(images, groups=("case", "patient", "channel"))
    label_pattern = compiled(label_files, groups=("case", "patient", "label")) if label_files else None
    of_label = label_pattern.groupindex.keys() if label_pattern else set()
    if {"case", "patient"} <= of_label and "patient" not in image_pattern.groupindex:  # what of unlabeled cases?
        raise DualCLError(
            f"--labels tells patients apart and --images {images!r} does not. Put (?P<patient>...) there."
        )
    test_pattern = regular_expression(test) if test else None
    by_channel = _numbered(channels)
    structures = _structures(labels) if labels or label_files else None
    files = files_below(source)
    found: dict[str, _Found] = {}
    refused: list[Refusal] = []
    damaged: list[Refusal] = []
    idle: list[str] = []
    free: list[str] = []
    unnamed: list[str] = []
    no_channel: list[str] = []
    for relative in files:
        match = label_pattern.fullmatch(relative) if label_pattern else None
        if match is not None:
            place = _label_place(match, structures)
            if place is None:
                unnamed.append(relative)
                continue
            _case_of(match, found).labels[place].append(relative)
        elif (match := image_pattern.fullmatch(relative)) is not None:
            channel = _channel_place(match, by_channel, relative)
            if channel is not None:
                _case_of(match, found).images[channel].append(relative)
            else:
                free.append(relative)
                no_channel.append(relative)
        elif ending_of(Path(relative)) is not None:
            free.append(relative)
            idle.append(relative)
    if label_files is not None:
        _check_labels(label_files, labels, structures, found, unnamed, free, why_no_match(label_files, source))
    if not any(case.images for case in found.values()):
        raise DualCLError(
            f"{source}: none of {len(files)} files is an image by --images {images!r}"
            + (f" and --channel {', '.join(channels)}" if any(channels.values()) else "")
            + f".{why_no_match(images, source)}{_instances(free)}"
        )
    notes = [
        f"{len(paths)} volume files {what}: {first_few(paths)}"
        for paths, what in (
            (idle, "match no pattern"),
            (unnamed, f"are none of the labels {', '.join(labels)}"),
            (no_channel, f"are none of the channels {', '.join(channels)}"),
        )
        if paths
    ]
    several = [paths for case in found.values() for paths in case.labels.values() if len(paths) > 1]
    if structures and "label" in of_label and several:
        notes.append(f"files of one label are put together, such as {first_few(several[0])}")
    names = safe_names(list(found))
    cases = []
    crowded: list[Refusal] = []
    incomplete: list[str] = []
    for key, case in sorted(found.items()):
        fault = _crowd(key, case, images, label_files, structures is not None, "label" in of_label)
        if fault is not None:  # patients are lost, so it counts as failed
            advice = "" if crowded else _advice(images, label_files, found)
            crowded.append(Refusal(key, fault + advice))
            continue
        fault = _fault(key, case, list(channels), found)
        if fault is not None:
            (damaged if case.labels else refused).append(Refusal(key, fault))
            continue
        tested = test_pattern is not None and test_pattern.search(case.images[0][0]) is not None
        image_files = tuple(files[case.images[channel][0]] for channel in range(len(channels)))
        given = [(place, files[path]) for place, paths in sorted(case.labels.items()) for path in paths]
        lacking = [name for index, name in enumerate(labels, 1) if structures and given and index not in dict(given)]
        if lacking and require_all_labels:
            incomplete.append(f"{key} ({', '.join(lacking)})")
            given, lacking = [], []
        cases.append(
            SourceCase(
                name=names[key],
                patient=next(iter(case.patients), key),
                role=Role.TEST if tested else Role.LABELED if given else Role.UNLABELED,
                load=partial(_load, image_files, tuple(given), structures is not None, tuple(lacking), spacing_mm),
                files=tuple(part for path in (*image_files, *(path for _, path in given)) for part in files_of(path)),
                where=case.images[0][0],
                key={"image": str(image_files[0])},
                identity=key,
            )
        )
    if incomplete:
        notes.append(f"{len(incomplete)} case(s) lack the file of a label and are unlabeled: {first_few(incomplete)}")
    if require_all_labels and not any(case.role is not Role.UNLABELED for case in cases):
        raise DualCLError("--require-all-labels leaves no labeled case: each lacks the file of some label.")
    if test and not any(case.role is Role.TEST for case in cases):
        raise DualCLError(f"--test {test!r} occurs in the path of no case's image below {source}.")
    return Plan(
        kind="folder",
        channels=tuple(channels),
        labels={name: value for value, name in enumerate(labels, 1)},
        cases=tuple(sorted(cases, key=lambda case: case.name)),
        refused=tuple(refused),
        damaged=(*crowded, *damaged),
        notes=tuple(notes),
        value_map={} if structures is not None else _value_map(labels),
        settings={
            "--images": images,
            "--labels": str(label_files),
            "--channel": repr(dict(channels)),
            "--label": repr(dict(labels)),
            "--spacing": str(spacing_mm),
            **({"--require-all-labels": "True"} if require_all_labels else {}),
        },
    )


convert = converter(plan)
"""See :func:`~nnunet_dualcl.dataset_conversion.write.converter`."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this kind."""
    parser.add_argument(
        "--images", required=True, action=Once, metavar="PATTERN", help="quoted glob whose * is the case, or a regex"
    )
    parser.add_argument(
        "--labels", action=Once, metavar="PATTERN", help="the same for label files; default: all are unlabeled"
    )
    parser.add_argument(
        "--channel", action="append", default=[], metavar="NAME[=REGEX]", help="in order; CT gets CT normalization"
    )
    parser.add_argument(
        "--label",
        action="append",
        default=[],
        metavar="NAME=WHAT",
        help="in order; WHAT: a value or values in the label files (2 or 2,3), or a regex for the group 'label'",
    )
    parser.add_argument("--label-yaml", type=Path, metavar="FILE", help="the same as a mapping NAME: WHAT")
    parser.add_argument(
        "--test", action=Once, metavar="REGEX", help="image files whose path it occurs in are test cases"
    )
    parser.add_argument(
        "--require-all-labels",
        action="store_true",
        help="with one file a structure: a case that lacks one is unlabeled, not without organ",
    )
    parser.add_argument(
        "--spacing", nargs=3, type=float, metavar=("X", "Y", "Z"), help="mm, for files whose header has none"
    )


def keywords(arguments: argparse.Namespace) -> dict[str, Any]:
    """Parsed arguments as keywords of :func:`plan`."""
    channels = named_patterns(arguments.channel, "--channel")
    if not channels:
        raise DualCLError("Name the channel, as in --channel MR; --channel CT switches nnU-Net's CT normalization on.")
    labels: dict[str, Any] = dict(_from_yaml(arguments.label_yaml)) if arguments.label_yaml else {}
    for name, what in named_patterns(arguments.label, "--label").items():
        labels[name] = [int(part) for part in what.split(",")] if re.fullmatch(r"\d+(,\d+)*", what) else what
    if not labels and arguments.labels:
        raise DualCLError("Name the labels, as in --label liver=1 --label tumor=2, or in a file with --label-yaml.")
    return {
        "images": arguments.images,
        "channels": channels,
        "labels": labels,
        "label_files": arguments.labels,
        "test": arguments.test,
        "spacing_mm": tuple(arguments.spacing) if arguments.spacing else None,
        "require_all_labels": arguments.require_all_labels,
    }


def _from_yaml(path: Path) -> Mapping[str, Any]:
    content = read_mapping(path, "list of labels")
    if not content:
        raise DualCLError(f"{path} is empty. It must map names to values, as in 'liver: 1'.")
    for name, what in content.items():
        values = what if isinstance(what, list) else [what]
        if not isinstance(name, str):
            raise DualCLError(f"{path}: '{name}: {what}' must begin with the name, as in 'liver: 1'.")
        if any(isinstance(value, str) and re.fullmatch(r"[\d\s,]+", value) for value in values):
            raise DualCLError(f"{path}: {name} has its value in quotes, which make it a text. Leave them out.")
    return content


def _numbered(channels: Mapping[str, str]) -> list[re.Pattern[str]]:
    if not channels:
        raise DualCLError("At least one channel is needed.")
    if len(channels) > 1 and not all(channels.values()):
        raise DualCLError("With several channels each needs a pattern, as in --channel T1=t1 --channel T2=t2.")
    return [regular_expression(pattern or ".*") for pattern in channels.values()]


def _structures(labels: Mapping[str, str | int | list[int]]) -> list[re.Pattern[str]] | None:
    """Patterns of structures, one file each; None where labels are values within one file."""
    texts = [what for what in labels.values() if isinstance(what, str)]
    if not labels or (texts and len(texts) < len(labels)):
        raise DualCLError(
            f"Labels must be all values in one file a case, or all patterns of files a structure; got {dict(labels)}."
        )
    return [regular_expression(text, ignore_case=True) for text in texts] if texts else None


def _check_labels(
    label_files: str,
    labels: Mapping[str, Any],
    structures: list[re.Pattern[str]] | None,
    found: Mapping[str, _Found],
    unnamed: list[str],
    free: list[str],
    hint: str,
) -> None:
    """Raise a :class:`DualCLError` where the pattern of labels, or that of one structure, meets no file.

    Args:
        label_files, labels, structures, found: see :func:`plan`.
        unnamed: files that the pattern of labels meets and no structure.
        free: volume files that are neither image nor label.
        hint: what may be wrong with the pattern.
    """
    met = {place for case in found.values() for place in case.labels}
    if not met and not unnamed:
        raise DualCLError(f"No file is a label by --labels {label_files!r}.{hint}{_instances(free)}")
    missing = [name for value, name in enumerate(labels, 1) if value not in met] if structures else []
    if not missing:
        return
    given = " and ".join(f"--label {name}={labels[name]}" for name in missing)
    count = len(unnamed) + sum(len(paths) for case in found.values() for paths in case.labels.values())
    what = "the group 'label'" if "(?P<label>" in label_files else "the path"
    numbers = f" Values within one label file are whole numbers, as in --label {missing[0]}=1." if not met else ""
    raise DualCLError(
        f"None of the {count} files of --labels '{label_files}' is a file of {', '.join(missing)}: {given} is a "
        f"regular expression for {what}, and fits none.{numbers}{_instances(unnamed + free)}"
    )


def _instances(free: list[str]) -> str:
    """Examples of volume files that no pattern takes, as a sentence."""
    if not free:
        return " No volume file is left over."
    return f" Not taken are, for instance: {', '.join(free[:8])}."


def _value_map(labels: Mapping[str, Any]) -> dict[int, int]:
    """Values of the label files -> 1, 2, ... in the order of the labels.

    Raises:
        DualCLError: a value is no positive whole number, or stands for two labels.
    """
    mapped: dict[int, int] = {}
    for target, (name, what) in enumerate(labels.items(), 1):
        for value in what if isinstance(what, list) else [what]:
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise DualCLError(f"Label {name}: {value!r} is no value from 1 on; 0 is background and is not named.")
            if value in mapped:
                raise DualCLError(f"Label {name}: value {value} stands for another label as well.")
            mapped[value] = target
    return mapped


def _case_of(match: re.Match[str], found: dict[str, _Found]) -> _Found:
    key, patient = _key(match)
    place = found.setdefault(key, _Found())
    place.patients |= {patient} if patient else set()
    return place


def _key(match: re.Match[str]) -> tuple[str, str | None]:
    """The case's name in the source, and its patient where the path names one."""
    # macOS writes accents as signs of their own, other systems do not
    groups = {name: text and unicodedata.normalize("NFC", text) for name, text in match.groupdict().items()}
    case, patient = groups.get("case"), groups.get("patient")
    case = None if case is None else case.removesuffix(ending_of(Path(case)) or "")  # of patterns such as images/*
    return f"{patient}_{case}" if case and patient else case or patient or "", patient


def _channel_place(match: re.Match[str], channels: list[re.Pattern[str]], relative: str) -> int | None:
    text = match.groupdict().get("channel")
    for index, pattern in enumerate(channels):
        if (pattern.search(relative) if text is None else pattern.fullmatch(text)) is not None:
            return index
    return None


def _label_place(match: re.Match[str], structures: list[re.Pattern[str]] | None) -> int | None:
    """Value of the structure in this file; 0 for a file with all labels; None for a structure nobody asked for."""
    if structures is None:
        return 0
    text = match.groupdict().get("label")
    for value, pattern in enumerate(structures, 1):
        if (pattern.search(match.string) if text is None else pattern.fullmatch(text)) is not None:
            return value
    return None


def _fault(key: str, case: _Found, channels: list[str], found: Mapping[str, _Found]) -> str | None:
    """Why these files make no case."""
    if not case.images:
        alike = [other for other, its in found.items() if its.images and other.startswith(key)]
        hint = f"There is an image of {alike[0]}" if alike else "Is it named like its image?"
        if f"{key}_0000" in alike:
            hint += "; nnU-Net's names want a pattern such as 'images/*_0000.nii.gz'"
        return f"has a label ({next(iter(case.labels.values()))[0]}) and no image. {hint}"
    missing = [name for index, name in enumerate(channels) if not case.images.get(index)]
    if missing:
        return f"lacks the channel {', '.join(missing)}"
    return None


def _crowd(key: str, case: _Found, images: str, label_files: str | None, structures: bool, united: bool) -> str | None:
    """Why these files are of several cases, and what the pattern has to do with it.

    Files of one structure are ``united`` where the group 'label' says so of each by its whole text.
    """
    if len(case.patients) > 1:
        return f"is of several patients by its files: {', '.join(sorted(case.patients))}"
    several = [("--images", images, "place", paths) for paths in case.images.values() if len(paths) > 1]
    what = "structure" if structures else "place"
    if not (structures and united):
        several += [("--labels", label_files or "", what, paths) for paths in case.labels.values() if len(paths) > 1]
    if not several:
        return None
    option, pattern, what, paths = several[0]
    said = f"{len(paths)} files for one {what}: {first_few(paths)}"
    if is_expression(pattern):
        return said
    part = next((part for part in reversed(pattern.split("/")) if "*" in part), pattern)
    return (
        f"{said}. By {option} {pattern!r} the first * of {part!r}, the last part that has one, is the case's name, "
        f"here {key!r}"
    )


def _advice(images: str, label_files: str | None, found: Mapping[str, _Found]) -> str:
    """Regular expressions that tell more cases apart than globs do, as a sentence; or that they are needed."""
    pictures = [(path, place) for case in found.values() for place, paths in case.images.items() for path in paths]
    masks = [(path, place) for case in found.values() for place, paths in case.labels.items() for path in paths]
    of_images: dict[tuple[int, ...], str] = {} if is_expression(images) else by_folders(images)
    fixed = label_files is None or is_expression(label_files)
    of_labels: dict[tuple[int, ...], str] = {} if fixed else by_folders(label_files or "")
    pairs: list[tuple[str, str | None]] = [
        (of_images[each], of_labels[each]) for each in of_images if each in of_labels
    ]
    pairs += [(text, label_files) for text in of_images.values()] if fixed else []
    pairs += [(images, text) for chosen, text in of_labels.items() if len(chosen) == 1]
    best: tuple[str, str | None] | None = None
    most = _told_apart(images, label_files, pictures, masks)
    for pair in pairs:
        count = _told_apart(*pair, pictures, masks)
        if count > most:
            best, most = pair, count
    if best is None:
        return ". Narrow the pattern" + (
            "" if is_expression(images) else ", or name the case by a regular expression with (?P<case>...)"
        )
    named = [f"--images '{best[0]}'"] if best[0] != images else []
    named += [f"--labels '{best[1]}'"] if best[1] != label_files else []
    return f". Name the patient by a regular expression instead, as in {' '.join(named)}"


def _told_apart(
    images: str, label_files: str | None, pictures: list[tuple[str, int]], masks: list[tuple[str, int]]
) -> int:
    """How many images and labels have a place for themselves, of labels those with an image alone."""
    groups = ("case", "patient", "channel", "label")
    keys: list[Counter[tuple[str, int]]] = []
    for pattern, paths in ((images, pictures), (label_files, masks)):
        expression = compiled(pattern, groups=groups) if pattern else None
        matches = [(expression.fullmatch(path), place) for path, place in paths] if expression else []
        keys.append(Counter((_key(match)[0], place) for match, place in matches if match))
    alone = {key for (key, _), count in keys[0].items() if count == 1}
    return sum(count == 1 for count in keys[0].values()) + sum(
        count == 1 and key in alone for (key, _), count in keys[1].items()
    )


def _load(
    images: tuple[Path, ...],
    labels: tuple[tuple[int, Path], ...],
    structures: bool,
    lacking: tuple[str, ...],
    spacing_mm: Spacing | None,
) -> Scan:
    first = labels[0][1] if labels else None
    scan = load_volumes(images, first, spacing_mm=spacing_mm)
    if scan.label is None or not structures:
        return scan
    grid = scan.label
    elsewhere: list[tuple[str, sitk.Image]] = []

    def masks() -> Iterator[tuple[int, np.ndarray]]:  # one in memory at a time
        for value, path in labels:
            label = grid if path == first else read_volume(path, spacing_mm=spacing_mm)
            mask = _mask(path, label)
            if grid_difference(label, grid) is None:
                yield value, mask
            else:
                elsewhere.append((f"the label in {path.name}", _with_grid_of(label, mask * np.uint16(value))))

    merged, overlapping = merge_structures(masks(), grid.GetSize()[::-1])
    notes = []
    if overlapping:
        notes.append(f"{overlapping} voxels are of several structures; the one named first has them")
    if lacking:
        notes.append(f"no file for {', '.join(lacking)}: taken as absent")
    return Scan(scan.channels, _with_grid_of(grid, merged), tuple(notes), tuple(elsewhere))


def _with_grid_of(image: sitk.Image, array: np.ndarray) -> sitk.Image:
    label = sitk.GetImageFromArray(array)
    label.CopyInformation(image)
    return label


def _mask(path: Path, label: sitk.Image) -> np.ndarray:
    values = whole_numbers(label)
    present = np.unique(values)
    if present.size > 2 or (present.size == 2 and present[0] != 0):
        raise DualCLError(
            f"{path}: holds {', '.join(str(number) for number in present[:6])}; one structure a file is wanted, with 0 "
            "outside. For all labels in one file write values: --label NAME=1."
        )
    return np.asarray(values != 0)
