"""Load a case from one file a channel and one label file, or from the volumes of a 4D NIfTI file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import SimpleITK as sitk

from nnunet_dualcl.dataset_conversion.headers import Header, check_length, read_header
from nnunet_dualcl.dataset_conversion.plan import Scan
from nnunet_dualcl.dataset_conversion.reading import check_finite, ending_of, read_volume, reason_of
from nnunet_dualcl.errors import DualCLError


def load_volumes(
    images: Sequence[Path],
    label: Path | None,
    *,
    spacing_mm: tuple[float, float, float] | None = None,
    unit_sform: bool = False,
) -> Scan:
    """One file a channel; ``label`` None for a case that has none, or whose label must not be looked at.

    ``spacing_mm`` and ``unit_sform`` are those of :func:`read_volume`.

    Raises:
        DualCLError: see :func:`read_volume`.
    """
    channels = tuple(read_volume(path, spacing_mm=spacing_mm, unit_sform=unit_sform) for path in images)
    return Scan(channels, None if label is None else read_volume(label, spacing_mm=spacing_mm, unit_sform=unit_sform))


def load_4d(image: Path, label: Path | None, indices: Sequence[int] | None = None, *, unit_sform: bool = False) -> Scan:
    """The volumes of a 4D NIfTI file as channels; ``indices`` names those wanted, from 0, in order; None: all.

    ``unit_sform`` is that of :func:`read_volume`.

    Raises:
        DualCLError: the file is damaged, is not 4D, has no such volume, has axes that are not at right angles, or holds
            values that are not finite.
    """
    header = _header(image, unit_sform)
    check_length(image, header)
    count = header.size[3]
    wanted = range(count) if indices is None else indices
    if any(index not in range(count) for index in wanted):
        raise DualCLError(f"{image}: has {count} volumes; number {max(wanted) + 1} is asked for.")
    try:
        series = sitk.ReadImage(str(image))
    except RuntimeError as error:
        raise DualCLError(f"{image}: {reason_of(error)}") from None
    if header.floating:
        check_finite(image, series)
    channels = tuple(series[:, :, :, index] for index in wanted)
    return Scan(channels, None if label is None else read_volume(label, unit_sform=unit_sform))


def num_volumes(path: Path, *, unit_sform: bool = False) -> int:
    """How many volumes a 4D NIfTI file has, by its header alone; ``unit_sform`` is that of :func:`read_volume`.

    Raises:
        DualCLError: there is no such header, or it is not of a 4D file.
    """
    return int(_header(path, unit_sform).size[3])


def _header(path: Path, unit_sform: bool) -> Header:
    ending = ending_of(path)
    if ending is None or not path.is_file():
        raise DualCLError(f"{path}: is no file of a known format.")
    header = read_header(path, ending, unit_sform=unit_sform)
    if len(header.size) != 4:
        raise DualCLError(f"{path}: has {len(header.size)} dimensions; 4 are wanted, the last one channels or time.")
    if header.edges_mm is None:
        raise DualCLError(f"{path}: the header states no voxel size. Export the file again.")
    return header
