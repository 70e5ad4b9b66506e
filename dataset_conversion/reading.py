"""Read a volume from a NIfTI, NRRD or MetaImage file, or say what is wrong with it before that costs memory."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import SimpleITK as sitk

from nnunet_dualcl.dataset_conversion.headers import AGAIN, check_length, read_header
from nnunet_dualcl.errors import DualCLError

_READERS = {
    ".nii.gz": "NiftiImageIO",
    ".nii": "NiftiImageIO",
    ".nrrd": "NrrdImageIO",
    ".nhdr": "NrrdImageIO",
    ".mha": "MetaImageIO",
    ".mhd": "MetaImageIO",
}
"""Of ITK, by the ending of the file's name."""
ENDINGS = tuple(_READERS)
_RIGHT_ANGLE = 1e-3
"""Products of unit axes may differ this much from those at right angles; headers are rounded."""


def ending_of(path: Path) -> str | None:
    """The one of ``ENDINGS`` that a file name has, whatever its case, or None."""
    return next((ending for ending in ENDINGS if path.name.lower().endswith(ending)), None)


def read_volume(
    path: Path, *, spacing_mm: tuple[float, float, float] | None = None, unit_sform: bool = False
) -> sitk.Image:
    """A 3D image of one number a voxel.

    Args:
        path: of any of ``ENDINGS``.
        spacing_mm: voxel size (x, y, z) for files whose header has none; None refuses them. A header that has one wins.
        unit_sform: of :func:`~nnunet_dualcl.dataset_conversion.headers.read_header`.

    Raises:
        DualCLError: naming the file, what is wrong with it and what would mend it: absent, empty, truncated, not of
            its format, a header that claims more than the file holds, other than three dimensions, several numbers
            a voxel, no voxel size, axes that are not at right angles, values that are not finite.
    """
    ending = ending_of(path)
    if ending is None:
        raise DualCLError(f"{path}: not an image that is read here. Known endings: {', '.join(ENDINGS)}.")
    try:
        empty = path.stat().st_size == 0
    except OSError as error:
        raise DualCLError(f"{path}: cannot be opened ({error.strerror}).") from None
    if not path.is_file():
        raise DualCLError(f"{path}: is no file.")
    if empty:
        raise DualCLError(f"{path}: is empty. {AGAIN}")
    header = read_header(path, ending, unit_sform=unit_sform)
    check_length(path, header)
    if header.edges_mm is None and spacing_mm is None:
        raise DualCLError(
            f"{path}: the header states no voxel size, and a guess would spoil every distance. Export the file again, "
            "or give the size that all such files have (--spacing X Y Z, in mm)."
        )
    image = _read(path)
    if header.edges_mm is None and spacing_mm is not None:
        image.SetSpacing(spacing_mm)
    if header.floating:
        check_finite(path, image)
    return image


def files_of(path: Path) -> tuple[Path, ...]:
    """A volume's file, and that of its voxels where the header is detached and can be read."""
    ending = ending_of(path)
    if ending not in (".nhdr", ".mhd"):
        return (path,)
    try:
        return path, read_header(path, ending).data
    except DualCLError:
        return (path,)  # the fault shows when the case is loaded


def _read(path: Path) -> sitk.Image:
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.SetImageIO(_READERS[str(ending_of(path))])  # by themselves they do not know endings in capitals
    try:
        reader.ReadImageInformation()
        size = reader.GetSize()
        kind = sitk.GetPixelIDValueAsString(reader.GetPixelID())
        if len(size) > 4 or (len(size) == 4 and size[3] > 1):
            raise DualCLError(f"{path}: holds {size[3]} volumes (4D). Split it into one file a volume or channel.")
        if len(size) < 3 or min(size[:3]) < 2:
            raise DualCLError(f"{path}: is a single slice of {'x'.join(map(str, size))} pixels. 3D volumes are needed.")
        if reader.GetNumberOfComponents() != 1 or "complex" in kind or "vector" in kind:
            raise DualCLError(
                f"{path}: several numbers a voxel ({kind}), one is needed. Is it a color, vector or complex image? "
                "Export it as a gray-scale volume, or each component as a channel."
            )
        image = reader.Execute()
    except DualCLError:  # a RuntimeError as well
        raise
    except RuntimeError as error:
        raise DualCLError(f"{path}: {reason_of(error)}") from None
    image = image[:, :, :, 0] if len(size) == 4 else image
    direction = np.reshape(image.GetDirection(), (3, 3))
    if np.abs(direction @ direction.T - np.eye(3)).max() > _RIGHT_ANGLE:
        raise DualCLError(f"{path}: {_SHEARED}")
    return image


_SHEARED = (
    "the axes in its header are not at right angles (a sheared sform?). Resample it onto a rectangular grid, or, if "
    "qform is right, copy qform into sform."
)


def reason_of(error: RuntimeError) -> str:
    """ITK's last word, and what it means in ours."""
    text = " ".join(str(error).split())
    return (
        _SHEARED if "orthonormal" in text else f"cannot be read: damaged or not of this format. {AGAIN} ({text[-240:]})"
    )


def check_finite(path: Path, image: sitk.Image) -> None:
    """Raise a :class:`DualCLError` where a floating point volume, or 4D file, holds NaN or infinity."""
    # SimpleITK hands out NaN and infinity of a NIfTI as 0, so that format's stored numbers are looked at
    is_nifti = str(ending_of(path)).startswith(".nii")
    stored = nibabel.load(path).dataobj.get_unscaled() if is_nifti else None  # type: ignore[attr-defined]
    values = np.asarray(sitk.GetArrayViewFromImage(image) if stored is None else stored)
    odd = int(values.size - np.isfinite(values).sum())
    if odd:
        raise DualCLError(
            f"{path}: {odd} of {values.size} voxels are not finite (NaN or infinite), which breaks normalization. "
            "Replace them, by the value of air for instance."
        )
