"""What the header of a volume file says, read from its bytes: libraries mend broken headers without a word.

ITK reads a truncated NIfTI as zeros from where it ends, a damaged compressed MetaImage as whatever was decoded, and
takes a voxel size of 0 for 1; nibabel mends more. So the file is looked at before they see it.
"""

from __future__ import annotations

import gzip
import math
import re
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np

from nnunet_dualcl.errors import DualCLError

_GZIP_AT_MOST = 1032
"""Deflate cannot shrink data more than this; a header that claims more is wrong."""
_LARGEST_BYTES = 16 * 2**30
_TEXT_HEADER_BYTES = 2**20
_CHUNK = 2**20
_SLACK = 16 * 2**20
"""Bytes that may follow the voxels."""
_NIFTI1, _NIFTI2 = 348, 540
AGAIN = "Copy or export it again."

_NRRD_BYTES = {
    **dict.fromkeys(("signed char", "int8", "int8_t", "uchar", "unsigned char", "uint8", "uint8_t"), 1),
    **dict.fromkeys(("short", "short int", "signed short", "signed short int", "int16", "int16_t"), 2),
    **dict.fromkeys(("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"), 2),
    **dict.fromkeys(
        ("int", "signed int", "int32", "int32_t", "uint", "unsigned int", "uint32", "uint32_t", "float"), 4
    ),
    **dict.fromkeys(("longlong", "long long", "long long int", "signed long long", "signed long long int"), 8),
    **dict.fromkeys(("ulonglong", "unsigned long long", "unsigned long long int"), 8),
    **dict.fromkeys(("int64", "int64_t", "uint64", "uint64_t", "double"), 8),
}
_META_BYTES = {"char": 1, "uchar": 1, "short": 2, "ushort": 2, "int": 4, "uint": 4, "float": 4, "long_long": 8}
_META_BYTES.update({"long": 4, "ulong": 4, "ulong_long": 8, "double": 8})


@dataclass(frozen=True)
class Header:
    """What matters of a header.

    Attributes:
        size: voxels along each axis, as many as the file has.
        voxel_bytes: of one number.
        edges_mm: voxel size along the first three axes, None where the header states none.
        data: file that holds the voxels; another one for detached headers.
        offset: bytes before them, in the uncompressed stream for NIfTI.
        compressed: by gzip or zlib.
        floating: voxels are stored as floating point numbers.
    """

    size: tuple[int, ...]
    voxel_bytes: int
    edges_mm: tuple[float, ...] | None
    data: Path
    offset: int
    compressed: bool
    floating: bool

    @property
    def claimed_bytes(self) -> int:
        """Of the voxels, uncompressed."""
        return math.prod(self.size) * self.voxel_bytes


def read_header(path: Path, ending: str, *, unit_sform: bool = False) -> Header:
    """Header of a file with one of the known endings.

    Args:
        path: of the file.
        ending: of its name, in small letters.
        unit_sform: let a NIfTI's sform pass whose axes have length 1 where pixdim states another voxel size. It states
            directions alone then, and pixdim holds, as it does for SimpleITK.

    Raises:
        DualCLError: it is no such file, is damaged, or describes what is no volume of numbers.
    """
    try:
        if ending.startswith(".nii"):
            return _nifti(path, compressed=ending == ".nii.gz", unit_sform=unit_sform)
        return _nrrd(path) if ending in (".nrrd", ".nhdr") else _meta_image(path)
    except (OSError, EOFError, zlib.error, struct.error, ValueError, KeyError) as error:
        raise DualCLError(f"{path}: cannot be read: damaged or not of this format. {AGAIN} ({error})") from None


def check_length(path: Path, header: Header) -> None:
    """Raise a :class:`DualCLError` where the file cannot hold, or does not hold, what its header claims."""
    try:
        on_disk = header.data.stat().st_size - header.offset * (not header.compressed)
    except OSError as error:
        raise DualCLError(f"{path}: its voxels are in {header.data.name}: {error.strerror}.") from None
    claimed = header.claimed_bytes
    if claimed > min(_LARGEST_BYTES, max(on_disk, 0) * (_GZIP_AT_MOST if header.compressed else 1)):
        raise DualCLError(
            f"{path}: the header claims {'x'.join(map(str, header.size))} voxels, {claimed:,} bytes; there are "
            f"{max(on_disk, 0):,}{' compressed ones' * header.compressed}. It is truncated or its header is wrong. "
            + AGAIN
        )
    if not header.compressed:
        return
    try:
        length = _uncompressed_length(header, at_most=header.offset + claimed + _SLACK)
    except (zlib.error, OSError) as error:
        raise DualCLError(f"{path}: its compressed voxels are damaged ({error}). {AGAIN}") from None
    if length < header.offset + claimed:
        raise DualCLError(f"{path}: its compressed voxels end too early; it is truncated. {AGAIN}")


def _uncompressed_length(header: Header, at_most: int) -> int:
    """Bytes of the stream; checksums are checked. A NIfTI is compressed as a whole, its header included.

    Raises:
        zlib.error: damaged, cut off, or longer than ``at_most``.
    """
    length = 0
    with header.data.open("rb") as stream:
        if not header.data.name.lower().endswith(".nii.gz"):
            stream.seek(header.offset)
            length = header.offset
        decoder = zlib.decompressobj(wbits=47)  # gzip or zlib, whichever it is
        rest = b""
        while rest or (rest := stream.read(_CHUNK)):
            if decoder.eof:  # a file of several members
                if not rest.startswith(b"\x1f\x8b"):
                    break  # padding
                decoder = zlib.decompressobj(wbits=47)
            length += len(decoder.decompress(rest, _CHUNK))
            rest = decoder.unused_data if decoder.eof else decoder.unconsumed_tail
            if length > at_most:
                raise zlib.error("much more than its header says")
    if not decoder.eof:
        raise zlib.error("cut off")
    return length


def _nifti(path: Path, *, compressed: bool, unit_sform: bool) -> Header:
    with gzip.open(path) if compressed else path.open("rb") as stream:
        block = stream.read(_NIFTI2)
    if len(block) < _NIFTI1:
        raise ValueError("cut off within its header, or no NIfTI header at all")
    sizes = {struct.unpack(order + "i", block[:4])[0] for order in "<>"}
    if _NIFTI2 in sizes:
        raise ValueError("NIfTI-2, which SimpleITK does not read; save it as NIfTI-1")
    if _NIFTI1 not in sizes:
        raise ValueError("no NIfTI header")
    fields = nibabel.Nifti1Header(block[:_NIFTI1], check=False)
    if bytes(fields["magic"].item()) != b"n+1":
        raise ValueError("a pair of header and image, or no NIfTI")
    dimensions = int(fields["dim"][0])
    size = tuple(int(edge) for edge in fields["dim"][1 : dimensions + 1])
    if not 1 <= dimensions <= 7 or min(size) < 1:
        raise ValueError(f"impossible dimensions {size}")
    if int(fields["datatype"]) not in nibabel.nifti1.data_type_codes.value_set():
        raise ValueError(f"unknown data type {int(fields['datatype'])}")
    stored = fields.get_data_dtype()
    offset = float(fields["vox_offset"])
    if not _NIFTI1 <= offset < 2**31:
        raise ValueError(f"impossible position {offset} of the voxels")
    edges = np.abs(fields["pixdim"][1:4])  # their signs mean nothing
    if int(fields["sform_code"]) > 0 and _stated(edges) is not None:
        by_sform = np.linalg.norm([fields[f"srow_{axis}"][:3] for axis in "xyz"], axis=0)
        bare = unit_sform and np.allclose(by_sform, 1, rtol=1e-3)
        if not bare and not np.allclose(by_sform, edges, rtol=0.01):
            raise ValueError(f"voxel size {edges.tolist()} by pixdim and {by_sform.tolist()} by sform")
    return Header(
        size=size,
        voxel_bytes=stored.itemsize,
        edges_mm=_stated(edges),
        data=path,
        offset=int(offset),
        compressed=compressed,
        floating=stored.kind == "f",
    )


def _nrrd(path: Path) -> Header:
    content = _start_of(path)
    if not content.startswith(b"NRRD"):
        raise ValueError("no NRRD")
    fields, offset = _text_fields(content, b":", b"\n\n")
    size = tuple(int(edge) for edge in fields["sizes"].split())
    if min(size) < 1:
        raise ValueError(f"impossible sizes {size}")
    if "space directions" in fields:
        vectors = [
            [float(part) for part in vector.split(",")]
            for vector in re.findall(r"\(([^)]*)\)", fields["space directions"])
        ]
        edges = np.linalg.norm(vectors, axis=1) if vectors else None
    else:
        edges = np.array([float(edge) for edge in fields["spacings"].split()]) if "spacings" in fields else None
    data = fields.get("data file", fields.get("datafile"))
    return Header(
        size=size,
        voxel_bytes=_NRRD_BYTES[fields["type"]],
        edges_mm=_stated(edges),
        data=path if data is None else _beside(path, data),
        offset=offset if data is None else 0,
        compressed=fields["encoding"] in ("gzip", "gz"),
        floating=fields["type"] in ("float", "double"),
    )


def _meta_image(path: Path) -> Header:
    content = _start_of(path)
    if b"NDims" not in content[:4096]:
        raise ValueError("no MetaImage")
    fields, offset = _text_fields(content, b"=", None)
    size = tuple(int(edge) for edge in fields["dimsize"].split())
    if len(size) != int(fields["ndims"]) or min(size) < 1:
        raise ValueError(f"impossible sizes {size}")
    spacing = fields.get("elementspacing", fields.get("elementsize"))
    edges = None if spacing is None else np.array([float(edge) for edge in spacing.split()])
    local = fields["elementdatafile"] == "local"
    kind = fields["elementtype"].removeprefix("met_").removesuffix("_array")
    return Header(
        size=size,
        voxel_bytes=_META_BYTES[kind] * int(fields.get("elementnumberofchannels", 1)),
        edges_mm=_stated(edges),
        data=path if local else _beside(path, fields["elementdatafile"]),
        offset=offset if local else 0,
        compressed=fields.get("compresseddata") == "true",
        floating=kind in ("float", "double"),
    )


def _stated(edges: np.ndarray | None) -> tuple[float, ...] | None:
    """Voxel size, or None where there is none: no field, zeros, NaN.

    Raises:
        ValueError: a negative edge.
    """
    if edges is None or len(edges) < 3 or not np.isfinite(edges[:3]).all() or (edges[:3] == 0).any():
        return None
    if (edges[:3] < 0).any():
        raise ValueError(f"impossible voxel size {edges.tolist()}")
    return tuple(float(edge) for edge in edges[:3])


def _start_of(path: Path) -> bytes:
    with path.open("rb") as stream:
        return stream.read(_TEXT_HEADER_BYTES)


def _text_fields(content: bytes, separator: bytes, end: bytes | None) -> tuple[dict[str, str], int]:
    """Fields of a text header, keys and values in lower case, and where the voxels start."""
    ends = [] if end is None else [(at, len(mark)) for mark in (end, b"\r\n\r\n") if (at := content.find(mark)) >= 0]
    stop, mark = min(ends, default=(len(content), 0))
    fields: dict[str, str] = {}
    position = 0
    for line in content[:stop].split(b"\n"):
        position += len(line) + 1
        key, found, value = line.partition(separator)
        if found and not line.startswith(b"#"):
            name = key.decode("latin-1").strip().lower()
            text = value.decode("latin-1").strip()
            fields[name] = text if name in ("data file", "datafile") else text.lower()
            if name == "elementdatafile":  # MetaImage: the last line of the header
                fields[name] = text if text.lower() != "local" else "local"
                return fields, position
    return fields, stop + mark


def _beside(path: Path, name: str) -> Path:
    if name.startswith("LIST") or re.search(r"%\d*d", name):
        raise ValueError("voxels in several files; save it as one")
    return path.parent / name
