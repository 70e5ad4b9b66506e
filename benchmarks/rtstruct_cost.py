"""Seconds and peak memory from a CT with an RTSTRUCT to labels, against rt-utils and plastimatch on the same files.

    python -m venv /tmp/others && /tmp/others/bin/pip install rt-utils plastimatch
    python benchmarks/rtstruct_cost.py [--slices 200] [--rois 20] [--points 150] [--rounds 3]
                                       [--others /tmp/others/bin/python] [-o FILE]

Each tool reads CT and structures and fills all structures, in a process of its own; the tools take turns. rt-utils and
plastimatch need not be installed here: ``--others`` names the Python of an environment that has them (without it, ours
alone is measured). Further rows halve the slices and double the points, to see what the time is proportional to.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from _common import write
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, RTStructureSetStorage, generate_uid

SIZE, SPACING, GAP = 512, 0.9, 2.5
ROUNDED = 4

CLOCK = ("wall", "processor")
CLOCKS = """
import time
def clocks():
    return time.perf_counter(), time.process_time()

def kibibytes(what):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(what))
"""
OURS = """
import sys
from pathlib import Path
from nnunet_dualcl.dataset_conversion import dicom
import SimpleITK as sitk
base, start = kibibytes("VmRSS"), clocks()
folder, rois = Path(sys.argv[1]), int(sys.argv[2])
(case,) = dicom.plan(folder, labels={f"roi{number}": "" for number in range(rois)}).cases
scan = case.load()
seconds = [after - before for before, after in zip(start, clocks())]
inside = int((sitk.GetArrayViewFromImage(scan.label) > 0).sum())
print(*seconds, kibibytes("VmHWM") - base, inside)
"""
WHOLE = """
import sys, tempfile
from pathlib import Path
from nnunet_dualcl.dataset_conversion import dicom
from nnunet_dualcl.dataset_conversion.plan import Options
base, start = kibibytes("VmRSS"), clocks()
folder, rois = Path(sys.argv[1]), int(sys.argv[2])
with tempfile.TemporaryDirectory() as target:
    report = dicom.convert(
        folder,
        Path(target) / "Dataset001_Phantom",
        labels={f"roi{number}": "" for number in range(rois)},
        options=Options(processes=1),
    )
assert report.exit_code == 0
seconds = [after - before for before, after in zip(start, clocks())]
print(*seconds, kibibytes("VmHWM") - base, 0)
"""
"""The same to a dataset: checks, compressed files, picture and report as well."""
WATCHED = """
import os, subprocess, sys, time
start = time.perf_counter()
process = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
_, status, usage = os.wait4(process.pid, 0)
assert status == 0, status
print(time.perf_counter() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss, 0)
"""
"""From a process of its own, since a child's peak begins with its parent's."""
RT_UTILS = """
import sys
from rt_utils import RTStructBuilder
import numpy
base, start = kibibytes("VmRSS"), clocks()
folder, rois = sys.argv[1], int(sys.argv[2])
structures = RTStructBuilder.create_from(dicom_series_path=folder + "/ct", rt_struct_path=folder + "/rs.dcm")
image = numpy.stack([each.pixel_array for each in structures.series_data], axis=-1)
label = numpy.zeros(image.shape, numpy.uint16)
for number in range(rois, 0, -1):
    label[structures.get_roi_mask_by_name(f"roi{number - 1}")] = number
seconds = [after - before for before, after in zip(start, clocks())]
print(*seconds, kibibytes("VmHWM") - base, int((label > 0).sum()))
"""


def write_scan(folder: Path, slices: int, rois: int, points: int) -> None:
    """A CT of noise, and ellipsoids with ``points`` corners a contour, each on half of the slices."""
    (folder / "ct").mkdir()
    uids = {name: str(generate_uid()) for name in ("study", "series", "frame")}
    noise = np.random.default_rng(0).integers(-1000, 1000, (SIZE, SIZE), dtype=np.int16)
    instances = []
    for index in range(slices):
        item = _empty(str(CTImageStorage), uids)
        item.SeriesInstanceUID, item.Modality, item.InstanceNumber = uids["series"], "CT", index + 1
        item.Rows = item.Columns = SIZE
        item.PixelSpacing, item.ImageOrientationPatient = [SPACING, SPACING], [1, 0, 0, 0, 1, 0]
        item.ImagePositionPatient, item.SliceThickness = [-230.4, -230.4, index * GAP], GAP
        item.SamplesPerPixel, item.PhotometricInterpretation, item.PixelRepresentation = 1, "MONOCHROME2", 1
        item.BitsAllocated, item.BitsStored, item.HighBit = 16, 16, 15
        item.RescaleSlope, item.RescaleIntercept = 1, 0
        item.PixelData = np.roll(noise, index, axis=1).tobytes()
        item.save_as(folder / "ct" / f"{index:04d}.dcm", enforce_file_format=True)
        instances.append(item.SOPInstanceUID)
    item = _empty(str(RTStructureSetStorage), uids)
    item.SeriesInstanceUID, item.Modality = str(generate_uid()), "RTSTRUCT"
    item.StructureSetLabel, item.StructureSetDate, item.StructureSetTime = "benchmark", "20200101", "120000"
    item.StructureSetROISequence = Sequence([_roi(number, uids["frame"]) for number in range(rois)])
    item.ROIContourSequence = Sequence([_contours(number, slices, points, instances) for number in range(rois)])
    item.RTROIObservationsSequence = Sequence(
        [_with(ObservationNumber=number, ReferencedROINumber=number) for number in range(1, rois + 1)]
    )
    images = Sequence([_reference(uid) for uid in instances])
    series = _with(SeriesInstanceUID=uids["series"], ContourImageSequence=images)
    study = _with(RTReferencedSeriesSequence=Sequence([series]), ReferencedSOPInstanceUID=uids["study"])
    frame = _with(FrameOfReferenceUID=uids["frame"], RTReferencedStudySequence=Sequence([study]))
    item.ReferencedFrameOfReferenceSequence = Sequence([frame])
    item.save_as(folder / "rs.dcm", enforce_file_format=True)


def _empty(sop_class: str, uids: dict[str, str]) -> FileDataset:
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = sop_class
    meta.MediaStorageSOPInstanceUID = generate_uid()
    item = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    item.SOPClassUID, item.SOPInstanceUID = sop_class, meta.MediaStorageSOPInstanceUID
    item.StudyInstanceUID, item.FrameOfReferenceUID = uids["study"], uids["frame"]
    item.PatientID, item.PatientName = "phantom", "phantom"
    return item


def _with(**tags: Any) -> Dataset:
    item = Dataset()
    for name, value in tags.items():
        setattr(item, name, value)
    return item


def _reference(uid: str) -> Dataset:
    return _with(ReferencedSOPClassUID=CTImageStorage, ReferencedSOPInstanceUID=uid)


def _roi(number: int, frame: str) -> Dataset:
    return _with(ROINumber=number + 1, ReferencedFrameOfReferenceUID=frame, ROIName=f"roi{number}")


def _contours(number: int, slices: int, points: int, instances: list[str]) -> Dataset:
    rng = np.random.default_rng(number)
    center, radii = rng.uniform(-120, 120, 2), rng.uniform(15, 90, 2)
    first = int(rng.integers(0, slices - slices // 2))
    angle = np.linspace(0, 2 * np.pi, points, endpoint=False)
    contours = []
    for index in range(first, first + slices // 2):
        scale = np.sqrt(1 - ((index + 0.5 - first) / (slices // 2) * 2 - 1) ** 2) * (1 + 0.05 * np.sin(9 * angle))
        corners = np.stack([center[0] + radii[0] * scale * np.cos(angle), center[1] + radii[1] * scale * np.sin(angle),
                            np.full(points, index * GAP)], axis=1)  # fmt: skip
        contours.append(
            _with(
                ContourGeometricType="CLOSED_PLANAR",
                NumberOfContourPoints=points,
                ContourData=[f"{value:.{ROUNDED}f}" for value in corners.ravel()],
                ContourImageSequence=Sequence([_reference(instances[index])]),
            )
        )
    return _with(ReferencedROINumber=number + 1, ContourSequence=Sequence(contours))


def run(words: list[str]) -> dict[str, float]:
    """What a process prints of itself: wall and processor seconds, mebibytes above its imports, voxels (0: unknown)."""
    # OpenCV's and ITK's threads would compare numbers of cores
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS": "1"}
    finished = subprocess.run(words, stdout=subprocess.PIPE, text=True, env=environment, check=True)
    wall, processor, kibibytes, inside = finished.stdout.split()[-4:]
    return {
        "wall": float(wall),
        "processor": float(processor),
        "mebibytes": int(kibibytes) / 1024,
        "voxels": int(inside),
    }


def tools(folders: dict[str, Path], rois: int, others: Path | None) -> dict[str, list[str]]:
    """Name -> command line of everything that is measured."""
    ours = [sys.executable, "-c", CLOCKS + OURS]
    commands = {
        name if name != "whole" else "dualcl": [*ours, str(folder), str(rois)] for name, folder in folders.items()
    }
    commands["dualcl to a dataset"] = [sys.executable, "-c", CLOCKS + WHOLE, str(folders["whole"]), str(rois)]
    if others is not None:
        folder = folders["whole"]
        commands["rt-utils"] = [str(others), "-c", CLOCKS + RT_UTILS, str(folder), str(rois)]
        # the whole process, which also writes what it makes
        convert = [str(others.parent / "plastimatch"), "convert", "--input", str(folder / "rs.dcm")]
        convert += ["--referenced-ct", str(folder / "ct"), "--output-prefix", str(folder / "plastimatch")]
        commands["plastimatch"] = [sys.executable, "-S", "-c", WATCHED, *convert, "--prefix-format", "nrrd"]
    return commands


def measure(commands: dict[str, list[str]], rounds: int) -> list[dict[str, Any]]:
    """Rounds of all commands, the first one changing from round to round."""
    names = list(commands)
    turns = [names[number % len(names) :] + names[: number % len(names)] for number in range(rounds)]
    return [{name: run(commands[name]) for name in turn} for turn in turns]


def versions(others: Path | None) -> dict[str, str]:
    """Of the tools compared with."""
    if others is None:
        return {}
    code = "from importlib.metadata import version; print(*(version(n) for n in ('rt-utils', 'plastimatch')))"
    found = subprocess.run([str(others), "-c", code], capture_output=True, text=True, check=True).stdout.split()
    return dict(zip(("rt-utils", "plastimatch"), found, strict=True))


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slices", type=int, default=200)
    parser.add_argument("--rois", type=int, default=20)
    parser.add_argument("--points", type=int, default=150, help="of a contour")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--others", type=Path, default=None, metavar="PYTHON", help="of an environment with the others")
    parser.add_argument("-o", type=Path, default=None, metavar="FILE")
    arguments = parser.parse_args()
    shape = arguments.slices, arguments.rois, arguments.points
    sizes = {
        "whole": shape,
        "half the slices": (shape[0] // 2, *shape[1:]),
        "twice the points": (*shape[:2], 2 * shape[2]),
    }
    with tempfile.TemporaryDirectory() as place:
        folders = {name: Path(place) / name for name in sizes}
        for name, (slices, rois, points) in sizes.items():
            folders[name].mkdir()
            write_scan(folders[name], slices, rois, points)
        commands = tools(folders, arguments.rois, arguments.others)
        rows = measure(commands, arguments.rounds)
    volume = arguments.slices * SIZE * SIZE * 2 / 2**20
    whole = [name for name in commands if name not in sizes]
    result = {
        "seconds": {
            clock: {name: statistics.median(row[name][clock] for row in rows) for name in commands} for clock in CLOCK
        },
        "ratios": {
            f"{name} / dualcl, {clock}": statistics.median(row[name][clock] / row["dualcl"][clock] for row in rows)
            for clock in CLOCK
            for name in commands
            if name != "dualcl"
        },
        "peak_memory_in_volumes": {
            name: statistics.median(row[name]["mebibytes"] for row in rows) / volume for name in whole
        },
        "volume_mebibytes": volume,
        "rounds": rows,
        "versions": {"pydicom": pydicom.__version__, **versions(arguments.others)},
        "setting": {name: getattr(arguments, name) for name in ("slices", "rois", "points", "rounds")},
    }
    write(arguments.o, result)


if __name__ == "__main__":
    main()
