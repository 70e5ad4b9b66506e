"""Volume files, whole and broken in every way that was thought of."""

import gzip
import struct
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from synthetic_volumes import OBLIQUE, SIZE_ZYX, SPACING, volume, write

from nnunet_dualcl.dataset_conversion.reading import ENDINGS, read_volume
from nnunet_dualcl.errors import DualCLError

AFFINE = np.diag([1, 1.5, 3, 1])
Maker = Callable[[Path], Path]


@pytest.mark.parametrize("compress", [True, False])
@pytest.mark.parametrize("dtype", [np.int16, np.uint8, np.int64, np.uint64, np.float32, np.float64])
@pytest.mark.parametrize("ending", ENDINGS)
def test_volumes_come_back_as_they_were_written(tmp_path: Path, ending: str, dtype: type, compress: bool) -> None:
    image = volume(np.random.default_rng(0).uniform(0, 200, SIZE_ZYX), dtype)
    read = read_volume(write(tmp_path / f"a b{ending}", image, compress=compress))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(read), sitk.GetArrayFromImage(image))
    np.testing.assert_allclose(read.GetSpacing(), SPACING, rtol=1e-6)
    np.testing.assert_allclose(read.GetDirection(), OBLIQUE, atol=1e-6)


@pytest.mark.parametrize("ending", ENDINGS)
def test_endings_may_be_in_capitals(tmp_path: Path, ending: str) -> None:
    written = write(tmp_path / f"a{ending}", volume())
    read = read_volume(written.rename(tmp_path / f"A{ending.upper()}"))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(read), sitk.GetArrayFromImage(volume()))


def test_a_fourth_dimension_of_one_volume_goes(tmp_path: Path) -> None:
    nibabel.save(nibabel.Nifti1Image(np.ones((4, 5, 6, 1), np.int16), AFFINE), tmp_path / "a.nii.gz")
    assert read_volume(tmp_path / "a.nii.gz").GetSize() == (4, 5, 6)


def test_big_endian_files_are_read(tmp_path: Path) -> None:
    values = np.arange(4 * 5 * 6, dtype=">i2").reshape(4, 5, 6)
    nibabel.save(nibabel.Nifti1Image(values, AFFINE, nibabel.Nifti1Header(endianness=">")), tmp_path / "a.nii")
    assert (tmp_path / "a.nii").read_bytes()[:4] == struct.pack(">i", 348)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(read_volume(tmp_path / "a.nii")).T, values)


@pytest.mark.parametrize("name", ["50% dose.raw", "List of scans.raw"])
def test_a_detached_header_may_name_any_one_file(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / "a.nhdr", volume(3), compress=False)
    (tmp_path / "a.raw").rename(tmp_path / name)
    path.write_text(path.read_text().replace("a.raw", name))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(read_volume(path)), sitk.GetArrayFromImage(volume(3)))


def test_several_gzip_members_are_one_file(tmp_path: Path) -> None:
    raw = write(tmp_path / "a.nii", volume(), compress=False).read_bytes()
    (tmp_path / "b.nii.gz").write_bytes(gzip.compress(raw[:900]) + gzip.compress(raw[900:]))
    np.testing.assert_array_equal(
        sitk.GetArrayFromImage(read_volume(tmp_path / "b.nii.gz")), sitk.GetArrayFromImage(volume())
    )


def test_a_voxel_size_can_be_given_where_there_is_none(tmp_path: Path) -> None:
    path = _text(b"space directions: (", b"#", ".nrrd")(tmp_path)
    assert read_volume(path, spacing_mm=(1, 2, 3)).GetSpacing() == (1, 2, 3)
    whole = write(tmp_path / "whole.nrrd", volume())
    np.testing.assert_allclose(read_volume(whole, spacing_mm=(1, 2, 3)).GetSpacing(), SPACING)


def _cut(ending: str, share: float, *, compress: bool = True) -> Maker:
    def make(folder: Path) -> Path:
        path = write(folder / f"a{ending}", volume(), compress=compress)
        path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
        return path

    return make


def _rotten(ending: str) -> Maker:
    def make(folder: Path) -> Path:
        path = write(folder / f"a{ending}", volume())
        content = bytearray(path.read_bytes())
        content[-300:-260] = bytes(40)
        path.write_bytes(content)
        return path

    return make


def _content(name: str, content: bytes) -> Maker:
    def make(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return make


def _nifti(offset: int, form: str, *values: float | bytes, compress: bool = False) -> Maker:
    """A NIfTI with one field of its header written over."""

    def make(folder: Path) -> Path:
        raw = bytearray(write(folder / "whole.nii", volume(), compress=False).read_bytes())
        struct.pack_into("<" + form, raw, offset, *values)
        path = folder / ("a.nii.gz" if compress else "a.nii")
        path.write_bytes(gzip.compress(raw) if compress else raw)
        return path

    return make


def _text(old: bytes, new: bytes, ending: str) -> Maker:
    """A file with a text header in which the line that starts with ``old`` is replaced."""

    def make(folder: Path) -> Path:
        raw = write(folder / f"whole{ending}", volume(), compress=False).read_bytes()
        start = raw.index(old)
        end = raw.index(b"\n", start)
        (folder / f"a{ending}").write_bytes(raw[:start] + new + raw[end:])
        return folder / f"a{ending}"

    return make


def _array(values: np.ndarray, affine: np.ndarray = AFFINE, *, nifti: type = nibabel.Nifti1Image) -> Maker:
    def make(folder: Path) -> Path:
        nibabel.save(nifti(values, affine), folder / "a.nii")
        return folder / "a.nii"

    return make


def _without_data(folder: Path) -> Path:
    path = write(folder / "a.mhd", volume())
    (folder / "a.zraw").unlink()
    return path


def _link_loop(folder: Path) -> Path:
    (folder / "a.nii").symlink_to("b.nii")
    (folder / "b.nii").symlink_to("a.nii")
    return folder / "a.nii"


def _folder(folder: Path) -> Path:
    (folder / "a.nii.gz").mkdir()
    return folder / "a.nii.gz"


def _changed_inside_gzip(cut: int) -> Maker:
    def make(folder: Path) -> Path:
        raw = write(folder / "whole.nii", volume(), compress=False).read_bytes()
        (folder / "a.nii.gz").write_bytes(gzip.compress(raw[:cut]))
        return folder / "a.nii.gz"

    return make


def _bomb(folder: Path) -> Path:
    """A sound header, and a stream that goes on for very much longer than it says."""
    raw = write(folder / "whole.nii", volume(), compress=False).read_bytes()
    (folder / "a.nii.gz").write_bytes(gzip.compress(raw + bytes(64 * 2**20)))
    return folder / "a.nii.gz"


def _wrong_checksum(folder: Path) -> Path:
    packed = write(folder / "a.nii.gz", volume()).read_bytes()
    (folder / "a.nii.gz").write_bytes(packed[:-8] + bytes(4) + packed[-4:])
    return folder / "a.nii.gz"


def _with(value: float) -> np.ndarray:
    values = np.ones((4, 5, 6), np.float32)
    values[1, 2, 3] = value
    return values


SHEARED = np.array([[1, 0.7, 0, 0], [0, 1.5, 0, 0], [0, 0, 3, 0], [0, 0, 0, 1.0]])
COLOR = np.zeros((4, 5, 6), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
BROKEN: dict[str, tuple[Maker, str]] = {
    "empty nii.gz": (_content("a.nii.gz", b""), "is empty"),
    "empty nrrd": (_content("a.nrrd", b""), "is empty"),
    "noise nii.gz": (_content("a.nii.gz", bytes(range(256)) * 4), "Not a gzipped file"),
    "noise nii": (_content("a.nii", bytes(range(256)) * 4), "no NIfTI header"),
    "noise nrrd": (_content("a.nrrd", bytes(range(256)) * 4), "no NRRD"),
    "noise mha": (_content("a.mha", bytes(range(256)) * 4), "no MetaImage"),
    "text for an image": (_content("a.nii", b"404: not found"), "no NIfTI header"),
    "another ending": (_content("a.dcm", b"x"), "Known endings: .nii.gz"),
    "no file": (lambda folder: folder / "a.nii", "No such file"),
    "a folder": (_folder, "is no file"),
    "link loop": (_link_loop, "symbolic links"),
    "plain file called nii.gz": (_content("a.nii.gz", struct.pack("<i", 348) + bytes(500)), "Not a gzipped file"),
    "gzip called nii": (_content("a.nii", gzip.compress(struct.pack("<i", 348) + bytes(500))), "no NIfTI header"),
    "cut nii.gz, header": (_cut(".nii.gz", 0.02), "cannot be read"),
    "cut nii.gz, start": (_cut(".nii.gz", 0.3), "cut off"),
    "cut nii.gz, end": (_cut(".nii.gz", 0.95), "cut off"),
    "cut nii, header": (_cut(".nii", 0.05), "cannot be read"),
    "cut nii, end": (_cut(".nii", 0.95), "claims 11x9x7 voxels, 1,386 bytes; there are"),
    "cut nrrd": (_cut(".nrrd", 0.95), "cut off"),
    "cut nrrd, not compressed": (_cut(".nrrd", 0.95, compress=False), "truncated"),
    "cut nrrd, header": (_cut(".nrrd", 0.05), "cannot be read"),
    "cut mha": (_cut(".mha", 0.95), "cut off"),
    "cut mha, not compressed": (_cut(".mha", 0.95, compress=False), "truncated"),
    "cut mha, header": (_cut(".mha", 0.05), "cannot be read"),
    "rotten nii.gz": (_rotten(".nii.gz"), "compressed voxels are damaged"),
    "rotten nrrd": (_rotten(".nrrd"), "compressed voxels are damaged"),
    "rotten mha": (_rotten(".mha"), "compressed voxels are damaged"),
    "wrong checksum": (_wrong_checksum, "incorrect data check"),
    "short stream in sound gzip": (_changed_inside_gzip(1200), "end too early"),
    "gzip bomb behind a sound header": (_bomb, "much more than its header says"),
    "bomb header": (_nifti(40, "8h", 3, 30000, 30000, 30000, 1, 1, 1, 1), "54,000,000,000,000 bytes"),
    "bomb header, gzip": (_nifti(40, "8h", 3, 30000, 30000, 30000, 1, 1, 1, 1, compress=True), "54,000,000,000,000"),
    "bomb header, nrrd": (_text(b"sizes:", b"sizes: 30000 30000 30000", ".nrrd"), "54,000,000,000,000 bytes"),
    "bomb header, mha": (_text(b"DimSize", b"DimSize = 30000 30000 30000", ".mha"), "54,000,000,000,000 bytes"),
    "negative size": (_nifti(40, "8h", 3, -11, 9, 7, 1, 1, 1, 1), "impossible dimensions"),
    "size 0": (_nifti(40, "8h", 3, 0, 9, 7, 1, 1, 1, 1), "impossible dimensions"),
    "nine dimensions": (_nifti(40, "h", 9), "impossible dimensions"),
    "negative size, nrrd": (_text(b"sizes:", b"sizes: 11 9 -7", ".nrrd"), "impossible sizes"),
    "sizes that do not match, mha": (_text(b"DimSize", b"DimSize = 11 9", ".mha"), "impossible sizes"),
    "wrong byte order of the header": (_nifti(0, "i", 0x01005C01), "no NIfTI header"),
    "wrong magic": (_nifti(344, "4s", b"xxx\0"), "no NIfTI"),
    "unknown type": (_nifti(70, "h", 9999), "unknown data type 9999"),
    "unknown type, nrrd": (_text(b"type:", b"type: quaternion", ".nrrd"), "quaternion"),
    "unknown type, mha": (_text(b"ElementType", b"ElementType = MET_NONSENSE", ".mha"), "nonsense"),
    "voxels far behind the end": (_nifti(108, "f", 1e9), "there are 0"),
    "voxels before the start": (_nifti(108, "f", -5.0), "impossible position"),
    "no byte order, nrrd": (_text(b"endian:", b"#", ".nrrd"), "endian"),
    "no voxel size": (_nifti(76, "8f", *[1.0] + [0.0] * 7), "states no voxel size"),
    "voxel size NaN": (_nifti(80, "f", float("nan")), "states no voxel size"),
    "two voxel sizes": (_nifti(80, "f", 2.5), "by pixdim and .* by sform"),
    "two voxel sizes, one of them 1": (
        _nifti(280, "12f", 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0),
        "by pixdim and .* by sform",
    ),
    "no voxel size, nrrd": (_text(b"space directions:", b"#", ".nrrd"), "states no voxel size"),
    "voxel size NaN, nrrd": (
        _text(b"space directions:", b"space directions: (1,0,0) (0,nan,0) (0,0,1)", ".nrrd"),
        "states no voxel size",
    ),
    "no voxel size, mha": (_text(b"ElementSpacing", b"Comment = none", ".mha"), "states no voxel size"),
    "voxel size 0, mha": (_text(b"ElementSpacing", b"ElementSpacing = 0 1 1", ".mha"), "states no voxel size"),
    "negative voxel size, mha": (_text(b"ElementSpacing", b"ElementSpacing = -1 1 1", ".mha"), "impossible voxel size"),
    "sheared axes": (_array(np.ones((4, 5, 6), np.int16), SHEARED), "right angles"),
    "sheared axes, nrrd": (
        _text(b"space directions:", b"space directions: (1,0,0) (0.5,1.5,0) (0,0,3)", ".nrrd"),
        "right angles",
    ),
    "NaN": (_array(_with(np.nan)), "1 of 120 voxels are not finite"),
    "infinity": (_array(_with(np.inf)), "1 of 120 voxels are not finite"),
    "complex": (_array(np.ones((4, 5, 6), np.complex64)), "several numbers a voxel"),
    "color": (_array(COLOR), "several numbers a voxel"),
    "two volumes": (_array(np.ones((4, 5, 6, 2), np.int16)), "holds 2 volumes"),
    "one slice": (_array(np.ones((4, 5), np.int16)), "single slice"),
    "one slice of three dimensions": (_array(np.ones((4, 5, 1), np.int16)), "single slice"),
    "NIfTI-2": (_array(np.ones((4, 5, 6), np.int16), nifti=nibabel.Nifti2Image), "save it as NIfTI-1"),
    "detached voxels missing": (_without_data, "its voxels are in a.zraw"),
    "voxels in many files": (_text(b"ElementDataFile", b"ElementDataFile = LIST", ".mha"), "several files"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_broken_files_are_named_with_their_fault(tmp_path: Path, fault: str) -> None:
    make, message = BROKEN[fault]
    path = make(tmp_path)
    with pytest.raises(DualCLError, match=message) as caught:
        read_volume(path)
    assert str(path) in str(caught.value)
