"""Pixels of one series: from files in the order of their positions to an image, PET in SUV where the header allows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pydicom
import SimpleITK as sitk
from pydicom.pixels.utils import iter_pixels

from nnunet_dualcl.dataset_conversion.dicom.grid import Grid, Slice
from nnunet_dualcl.dataset_conversion.dicom.header import is_cut_off
from nnunet_dualcl.dataset_conversion.dicom.suv import TAGS, suv_factor
from nnunet_dualcl.errors import DualCLError, first_few

_PIXELS = ["Rows", "Columns", "BitsAllocated", "NumberOfFrames"]
_UNREADABLE = (
    "pixel data cannot be read: {}. Is the export complete? A file in an uncommon compression can be decompressed with "
    "dcmdjpeg or gdcmconv --raw first."
)


def read_series(slices: Sequence[Slice], grid: Grid, modality: str) -> tuple[sitk.Image, list[str]]:
    """The image of a series, in real values (slope and intercept applied), and notes on it.

    Args:
        slices: in the order of their positions.
        grid: of ``regular_grid``.
        modality: ``PT`` becomes SUV by body weight where the header allows it, and says so.

    Raises:
        DualCLError: a file is damaged or in a compression that cannot be read; names no file.
    """
    files = dict.fromkeys(each.path for each in slices)
    cut_off = {path for path in files if _is_cut_off(path)}
    if cut_off:  # some releases of GDCM fill up what is missing without a word
        numbers = [str(number) for number, each in enumerate(slices, 1) if each.path in cut_off]
        places = f"{first_few(numbers)} by position"
        raise DualCLError(
            f"pixel data cannot be read: {len(cut_off)} of {len(files)} files cut off (slice {places}). --dry-run "
            "names them. Export the series again."
        )
    # GDCM turns MONOCHROME1 (black is high) over, which is for looking at; values are to stay
    by_frame = any(each.frame is not None or each.photometric == "MONOCHROME1" for each in slices)
    image = _read_frames(slices, grid) if by_frame else _read_files(slices, grid)
    if image.GetSize() != grid.size:
        raise DualCLError(_UNREADABLE.format(f"{image.GetSize()} voxels came out, {grid.size} are announced"))
    for key in image.GetMetaDataKeys():  # tags of the source must not travel on
        image.EraseMetaData(key)
    grid.place(image)
    if modality != "PT":
        return image, []
    headers = [
        pydicom.dcmread(path, stop_before_pixels=True, specific_tags=TAGS, force=True)
        for path in dict.fromkeys(each.path for each in slices)
    ]
    try:
        factor = suv_factor(headers)
    except DualCLError as error:
        return image, [f"PET is in the scanner's own values, not SUV: {error}"]
    # as fractions, since whole numbers would stay whole
    return sitk.Cast(image, sitk.sitkFloat32) * factor, ["PET is in SUV by body weight (g/ml)"]


def _is_cut_off(path: Path) -> bool:
    with path.open("rb") as stream:
        header = pydicom.dcmread(stream, stop_before_pixels=True, specific_tags=_PIXELS, force=True)
        cut_off: bool = is_cut_off(header, stream)
    return cut_off


def _read_files(slices: Sequence[Slice], grid: Grid) -> sitk.Image:
    reader = sitk.ImageSeriesReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileNames([str(each.path) for each in slices])
    # without it the first slice's type would be everyone's, and values that it cannot hold would wrap around
    reader.SetOutputPixelType(sitk.sitkInt32 if _whole(slices) else sitk.sitkFloat32)
    try:
        image = reader.Execute()
    except RuntimeError:
        return _read_frames(slices, grid)  # some sound files are refused by GDCM: small ones in RLE, newer compressions
    if image.GetNumberOfComponentsPerPixel() != 1:
        raise DualCLError("a color image; gray values are needed")
    return _smallest(image)


def _read_frames(slices: Sequence[Slice], grid: Grid) -> sitk.Image:
    columns, rows, count = grid.size
    array = np.empty((count, rows, columns), np.int32 if _whole(slices) else np.float32)
    by_file: dict[Path, list[tuple[int, Slice]]] = {}
    for index, each in enumerate(slices):
        by_file.setdefault(each.path, []).append((index, each))
    for path, places in by_file.items():
        try:
            frames = iter_pixels(path, indices=[each.frame or 0 for _, each in places])
            for (index, each), frame in zip(places, frames, strict=True):
                slope, intercept = each.rescale
                array[index] = frame * slope + intercept
        except (RuntimeError, ValueError, AttributeError, NotImplementedError, OSError) as error:
            raise DualCLError(_UNREADABLE.format(type(error).__name__)) from None
    return _smallest(grid.image(array))


def _whole(slices: Sequence[Slice]) -> bool:
    """Do slope and intercept keep whole numbers whole?"""
    return all(number.is_integer() for each in slices for number in each.rescale)


def _smallest(image: sitk.Image) -> sitk.Image:
    """Whole numbers as int16 where they fit: half the size of what the reader makes of an unsigned file."""
    values = sitk.GetArrayViewFromImage(image)
    limits = np.iinfo(np.int16)
    if not np.issubdtype(values.dtype, np.integer) or values.dtype == np.int16:
        return image
    return sitk.Cast(image, sitk.sitkInt16) if limits.min <= values.min() and values.max() <= limits.max else image
