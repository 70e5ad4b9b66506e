"""Read a volume from a NIfTI, NRRD or MetaImage file, or say what is wrong with it before that costs memory."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path

import nibabel
import numpy as np
import SimpleITK as sitk
from nibabel.filebasedimages import ImageFileError

from nnunet_dualcl.errors import DualCLError

ENDINGS = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd")
_DETACHED = (".nhdr", ".mhd")
"""Headers whose voxels lie in another file."""
_GZIP_AT_MOST = 1032
"""Deflate cannot shrink data more than this; a header that claims more is wrong."""
_LARGEST_BYTES = 16 * 2**30
_HEADER_BYTES = 2**20

_BYTES = {
    sitk.sitkUInt8: 1, sitk.sitkInt8: 1, sitk.sitkUInt16: 2, sitk.sitkInt16: 2, sitk.sitkUInt32: 4, sitk.sitkInt32: 4,
    sitk.sitkUInt64: 8, sitk.sitkInt64: 8, sitk.sitkFloat32: 4, sitk.sitkFloat64: 8,
}  # fmt: skip


def ending_of(path: Path) -> str | None:
    """The one of ``ENDINGS`` that a file name has, whatever its case, or None."""
    return next((ending for ending in ENDINGS if path.name.lower().endswith(ending)), None)


def read_volume(path: Path, *, spacing_mm: tuple[float, float, float] | None = None) -> sitk.Image:
    """A 3D image of one number a voxel.

    Args:
        path: of any of ``ENDINGS``.
        spacing_mm: voxel size (x, y, z) for files whose header has none; None refuses them. A header that has one wins.

    Raises:
        DualCLError: naming the file, what is wrong with it and what would mend it: absent, empty, truncated, not of
            its format, a header that claims more than the file can hold, other than three dimensions, several numbers
            a voxel, no voxel size, axes that are not at right angles, values that are not finite.
    """
    ending = ending_of(path)
    if ending is None:
        raise DualCLError(f"{path}: not an image that is read here. Known endings: {', '.join(ENDINGS)}.")
    try:
        bytes_on_disk = path.stat().st_size
    except OSError as error:
        raise DualCLError(f"{path}: cannot be opened ({error.strerror}).") from None
    if not path.is_file():
        raise DualCLError(f"{path}: is no file.")
    if bytes_on_disk == 0:
        raise DualCLError(f"{path}: is empty. Copy it again.")
    states_spacing = _states_spacing(path, ending)
    if not states_spacing and spacing_mm is None:
        raise DualCLError(
            f"{path}: the header states no voxel size, and a guess would spoil every distance. Export the file again, "
            "or give the size that all such files have (--spacing X Y Z, in mm)."
        )
    image = _read(path, ending, bytes_on_disk)
    if not states_spacing and spacing_mm is not None:
        image.SetSpacing(spacing_mm)
    if not all(np.isfinite(edge) and edge > 0 for edge in image.GetSpacing()):
        raise DualCLError(f"{path}: impossible voxel size {image.GetSpacing()} mm in the header. Export it again.")
    _check_values(path, image)
    return image


def _read(path: Path, ending: str, bytes_on_disk: int) -> sitk.Image:
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise DualCLError(f"{path}: {_reason(error)}") from None
    size = list(reader.GetSize())
    if len(size) == 4 and size[3] > 1:
        raise DualCLError(f"{path}: holds {size[3]} volumes (4D). Split it into one file a volume or channel.")
    if len(size) < 3 or (len(size) == 3 and min(size) < 2):
        raise DualCLError(f"{path}: is a single slice of {'x'.join(map(str, size))} pixels. 3D volumes are needed.")
    if len(size) > 4:
        raise DualCLError(f"{path}: has {len(size)} dimensions. 3D volumes are needed.")
    if reader.GetNumberOfComponents() != 1 or reader.GetPixelID() not in _BYTES:
        kind = sitk.GetPixelIDValueAsString(reader.GetPixelID())
        raise DualCLError(
            f"{path}: {reader.GetNumberOfComponents()} numbers a voxel ({kind}), one is needed. Is it a color, vector "
            "or complex image? Export it as a gray-scale volume, or each component as a channel."
        )
    claimed = int(np.prod([int(edge) for edge in size], dtype=object)) * _BYTES[reader.GetPixelID()]
    holds = bytes_on_disk * (_GZIP_AT_MOST if _compressed(path, ending) else 1)
    if claimed > _LARGEST_BYTES or (claimed > holds and ending not in _DETACHED):
        raise DualCLError(
            f"{path}: the header claims {'x'.join(map(str, size))} voxels ({claimed / 2**20:,.0f} MiB), the file is of "
            f"{bytes_on_disk / 2**20:,.2f} MiB. It is truncated or its header is wrong. Copy or export it again."
        )
    try:
        image = reader.Execute()
    except RuntimeError as error:
        raise DualCLError(f"{path}: {_reason(error)}") from None
    return image[:, :, :, 0] if len(size) == 4 else image


def _reason(error: RuntimeError) -> str:
    """ITK's last word, and what it means in ours."""
    text = " ".join(str(error).split())
    if "orthonormal" in text:
        return (
            "the axes in its header are not at right angles (a sheared sform?). Resample it onto a rectangular grid, "
            "or, if qform is right, copy qform into sform."
        )
    detail = text.rsplit("Error: ", 1)[-1][-240:] or text[-240:]
    return f"cannot be read: truncated, damaged or not of this format. Copy or export it again. ({detail})"


def _check_values(path: Path, image: sitk.Image) -> None:
    values = sitk.GetArrayViewFromImage(image)
    if not np.issubdtype(values.dtype, np.floating):
        return
    odd = int(values.size - np.isfinite(values).sum())
    if odd:
        raise DualCLError(
            f"{path}: {odd} of {values.size} voxels are not finite (NaN or infinite), which breaks normalization. "
            "Replace them, by the value of air for instance."
        )


def _compressed(path: Path, ending: str) -> bool:
    if ending == ".nii.gz":
        return True
    header = _text_header(path)
    return any(
        line.replace(" ", "")
        in ("encoding:gzip", "encoding:gz", "compresseddata=true", "encoding:bzip2", "encoding:bz2")
        for line in header
    )


def _states_spacing(path: Path, ending: str) -> bool:
    if ending.startswith(".nii"):
        return _nifti_states_spacing(path)
    lines = _text_header(path)
    if ending in (".mha", ".mhd"):
        return any(line.startswith(("elementspacing", "elementsize")) for line in lines)
    for line in lines:
        if line.startswith(("spacings:", "space directions:")):
            return "nan" not in line
    return False


def _nifti_states_spacing(path: Path) -> bool:
    try:
        header = nibabel.load(path).header
        edges = [float(edge) for edge in header["pixdim"][1:4]]
        affine = np.asarray(header.get_sform()) if int(header["sform_code"]) > 0 else None
    except (ImageFileError, OSError, EOFError, ValueError, KeyError, zlib.error) as error:
        raise DualCLError(
            f"{path}: cannot be read: truncated, damaged or no NIfTI. Copy or export it again. ({error})"
        ) from None
    if affine is not None:
        edges = np.linalg.norm(affine[:3, :3], axis=0).tolist()
    return all(np.isfinite(edge) and edge != 0 for edge in edges)


def _text_header(path: Path) -> list[str]:
    """Lines of an NRRD or MetaImage header, lower case, without spaces around."""
    return list(_header_lines(path.open("rb").read(_HEADER_BYTES)))


def _header_lines(content: bytes) -> Iterator[str]:
    for raw in content.split(b"\n"):
        line = raw.decode("latin-1").strip().lower()
        if not line:
            return  # NRRD: voxels follow
        yield line
        if line.replace(" ", "").startswith("elementdatafile"):
            return  # MetaImage: voxels follow


def gzip_is_whole(path: Path) -> bool:
    """Whether a gzip file can be read to its end; ITK takes a truncated one without a word."""
    try:
        with gzip.open(path) as stream:
            while stream.read(2**20):
                pass
    except (OSError, EOFError, zlib.error):
        return False
    return True
