"""A synthetic MR dataset in nnU-Net's raw format: a few labeled scans, many unlabeled ones, and a test set.

Two adjoining organs of nearly equal brightness lie in a textured body, with a small nodule on one of them and
unlabeled look-alikes elsewhere. Every scan has a brightness, a contrast, a bias field, noise, a voxel size
and a tilt of its own, so a handful of labeled scans does not show a network the whole range. It is for tests,
demonstrations and first comparisons of methods; it says nothing about how a method does on patients.

Geometry is in millimeters and patient coordinates; arrays are (z, y, x), vectors (x, y, z).
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

LABELS = {"background": 0, "organ_a": 1, "organ_b": 2, "nodule": 3}
FILE_ENDING = ".nii.gz"
DEFAULT_SIZE_ZYX = (24, 44, 48)

_SMALLEST_SIZE_ZYX = (20, 40, 44)
"""Below this the organs would not fit into the field of view."""
_SIZE_VARIATION_ZYX = (2, 3, 4)
_NOMINAL_SPACING_XYZ_MM = (1.0, 1.0, 2.5)
_FEWEST_VOXELS = 60
"""Of each class in each case; the smallest nodule (radius 4 mm) has about 85 where nothing hides it."""
_CASES_AT_MOST = 1000
"""Three digits in a case name."""


@dataclass(frozen=True)
class PhantomCase:
    """One scan with its labels.

    Attributes:
        image: int16 (z, y, x), arbitrary units, never negative.
        labels: uint8 (z, y, x), values of ``LABELS``.
        spacing_xyz_mm: voxel size.
        direction: (3, 3), its columns are the voxel axes in patient coordinates.
        origin_xyz_mm: position of the first voxel.
    """

    image: np.ndarray
    labels: np.ndarray
    spacing_xyz_mm: np.ndarray
    direction: np.ndarray
    origin_xyz_mm: np.ndarray


@dataclass(frozen=True)
class Ellipsoid:
    """Axis-aligned in patient coordinates; ``center`` and ``radii`` are (x, y, z) in mm."""

    center: np.ndarray
    radii: np.ndarray

    def level(self, points: np.ndarray) -> np.ndarray:
        """Normalized distance from the center of ``points`` (3, z, y, x): below 1 inside, above 1 outside."""
        scaled = (points - self.center.reshape(3, 1, 1, 1)) / self.radii.reshape(3, 1, 1, 1)
        return np.asarray(np.sqrt((scaled**2).sum(axis=0)))

    def reach(self, direction: np.ndarray) -> float:
        """Distance in mm from the center to the surface along the unit vector ``direction``."""
        return float(1 / np.linalg.norm(direction / self.radii))


@dataclass(frozen=True)
class _Anatomy:
    body: Ellipsoid
    organ_a: Ellipsoid
    organ_b: Ellipsoid
    nodule: Ellipsoid
    look_alikes: tuple[Ellipsoid, ...]


@dataclass(frozen=True)
class _Grid:
    """The voxel grid of one scan around the isocenter, which is the center of the volume."""

    size_zyx: tuple[int, int, int]
    spacing_xyz_mm: np.ndarray
    direction: np.ndarray

    def points(self) -> np.ndarray:
        """Voxel centers (3, z, y, x), patient coordinates relative to the isocenter, in mm."""
        steps = [np.arange(n) - (n - 1) / 2 for n in self.size_zyx]
        z, y, x = np.meshgrid(*steps, indexing="ij")
        to_patient = self.direction * self.spacing_xyz_mm
        return np.asarray(np.einsum("ij,jzyx->izyx", to_patient, np.stack([x, y, z])))


def write_phantom_dataset(
    raw_folder: Path,
    *,
    dataset_id: int = 901,
    name: str = "Phantom",
    labeled: int,
    validation: int,
    unlabeled: int,
    test: int,
    seed: int = 0,
    size_zyx: tuple[int, int, int] = DEFAULT_SIZE_ZYX,
) -> Path:
    """Write ``DatasetXXX_NAME`` into ``raw_folder``, all of it or nothing.

    Cases are numbered through: first the labeled ones, then validation (both in ``imagesTr``), unlabeled
    (``imagesUnlabeled``, without labels anywhere) and test (``imagesTs``, ``labelsTs``). A scan depends on
    ``seed``, its number and ``size_zyx`` alone, so moving the border between the groups leaves the scans as
    they are, and repeating a call gives the same bytes (with the same versions of the libraries).

    Args:
        raw_folder: nnU-Net's raw folder; made if missing.
        dataset_id: 1 to 999.
        name: letters, digits, underscores and hyphens.
        labeled: number of training cases with labels, at least 1.
        validation: number of labeled cases set aside for validation.
        unlabeled: number of cases without labels.
        test: number of test cases.
        seed: not negative.
        size_zyx: typical number of voxels; each scan differs from it a little.

    Returns:
        The folder of the dataset.

    Raises:
        ValueError: an argument outside its range.
        FileExistsError: there is a dataset of this name or this id already.
    """
    counts = {"labeled": labeled, "validation": validation, "unlabeled": unlabeled, "test": test}
    _check_arguments(dataset_id, name, counts, seed, size_zyx)
    target = raw_folder / f"Dataset{dataset_id:03d}_{name}"
    _refuse_existing(raw_folder, dataset_id, target)
    raw_folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=raw_folder, prefix=f".{target.name}.partial-") as partial_folder:
        partial = Path(partial_folder) / target.name
        _write_all(partial, name, counts, seed, size_zyx)
        os.rename(partial, target)
    return target


def make_phantom_case(seed: int, index: int, size_zyx: tuple[int, int, int] = DEFAULT_SIZE_ZYX) -> PhantomCase:
    """The scan number ``index`` of the endless series that ``seed`` stands for; every class is present.

    Raises:
        ValueError: ``size_zyx`` too small for the organs.
    """
    _check_size(size_zyx)
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(index,)))
    while True:  # a nodule can be pushed out of the field of view or squeezed; about one draw in a hundred
        grid = _draw_grid(rng, size_zyx)
        points = grid.points()
        # anatomy is bent by moving the points at which the ellipsoids are looked up
        shift = [smooth_field(rng, grid.size_zyx, grid.spacing_xyz_mm, 6.0) for _ in range(3)]
        bent = points + 1.8 * np.stack(shift)
        anatomy = _draw_anatomy(rng)
        labels = _label(anatomy, bent)
        if np.bincount(labels.ravel(), minlength=len(LABELS)).min() >= _FEWEST_VOXELS:
            break
    signal = _draw_signal(rng, anatomy, bent, labels, grid)
    signal *= draw_bias_field(rng, grid.size_zyx, grid.spacing_xyz_mm)
    signal = add_rician_noise(rng, signal, sigma=rng.uniform(0.05, 0.10))
    gain = rng.uniform(150, 900)  # MR units mean nothing across scanners
    table_position = rng.uniform(-40, 40, size=3)
    return PhantomCase(
        image=np.round(gain * signal).astype(np.int16),
        labels=labels,
        spacing_xyz_mm=grid.spacing_xyz_mm,
        direction=grid.direction,
        origin_xyz_mm=table_position + points[:, 0, 0, 0],
    )


def smooth_field(
    rng: np.random.Generator, size_zyx: tuple[int, int, int], spacing_xyz_mm: np.ndarray, scale_mm: float
) -> np.ndarray:
    """A Gaussian random field (z, y, x) of mean 0 and standard deviation 1, smooth over ``scale_mm``."""
    sigma_zyx = scale_mm / np.asarray(spacing_xyz_mm)[::-1]
    field = gaussian_filter(rng.standard_normal(size_zyx), sigma_zyx, mode="reflect")
    return np.asarray((field - field.mean()) / field.std())


def draw_bias_field(rng: np.random.Generator, size_zyx: tuple[int, int, int], spacing_xyz_mm: np.ndarray) -> np.ndarray:
    """A multiplicative receive-coil profile (z, y, x), positive, around 1, varying over some 25 mm."""
    return np.asarray(np.exp(rng.uniform(0.12, 0.22) * smooth_field(rng, size_zyx, spacing_xyz_mm, 25.0)))


def add_rician_noise(rng: np.random.Generator, signal: np.ndarray, sigma: float) -> np.ndarray:
    """Magnitude of ``signal`` with Gaussian noise of standard deviation ``sigma`` in both coil channels."""
    real, imaginary = rng.normal(0, sigma, size=(2, *signal.shape))
    return np.asarray(np.hypot(signal + real, imaginary))


def _draw_grid(rng: np.random.Generator, size_zyx: tuple[int, int, int]) -> _Grid:
    z, y, x = (n + int(rng.integers(-v, v + 1)) for n, v in zip(size_zyx, _SIZE_VARIATION_ZYX, strict=True))
    in_plane, between_slices = rng.uniform(0.92, 1.08, size=2)
    spacing = np.array(_NOMINAL_SPACING_XYZ_MM) * [in_plane, in_plane, between_slices]
    tilt = Rotation.from_rotvec(rng.normal(0, 5, size=3), degrees=True)
    # five decimals are what NIfTI's 32 bit header keeps
    return _Grid((z, y, x), np.round(spacing, 5), tilt.as_matrix())


def _draw_anatomy(rng: np.random.Generator) -> _Anatomy:
    center = rng.normal(0, 1.0, size=3)
    organ_a = Ellipsoid(center + [-6.5, 0, 0], rng.uniform([7.5, 8, 10], [10, 11, 16]))
    # organ b starts where organ a ends, on the right of it and a little up or down, front or back
    toward_b = _unit(np.array([1, rng.uniform(-0.5, 0.5), rng.uniform(-0.5, 0.5)]))
    radii_b = rng.uniform([6, 7, 9], [8.5, 10, 14])
    overlap_mm = 2.5
    gap = organ_a.reach(toward_b) + Ellipsoid(center, radii_b).reach(toward_b) - overlap_mm
    organ_b = Ellipsoid(organ_a.center + gap * toward_b, radii_b)
    return _Anatomy(
        body=Ellipsoid(center, rng.uniform([20, 18, 28], [24, 21, 36])),
        organ_a=organ_a,
        organ_b=organ_b,
        nodule=_draw_nodule(rng, *((organ_a, -1) if rng.random() < 0.5 else (organ_b, 1))),
        look_alikes=tuple(_draw_look_alikes(rng, center)),
    )


def _draw_nodule(rng: np.random.Generator, host: Ellipsoid, side: int) -> Ellipsoid:
    """A nodule on the surface of ``host``, on the half that faces away from the other organ."""
    outward = _unit(np.array([side * rng.uniform(0, 0.5), rng.choice([-1, 1]), rng.uniform(-1, 1)]))
    radius = rng.uniform(4, 6)
    center = host.center + (host.reach(outward) + 0.3 * radius) * outward
    return Ellipsoid(center, radius * rng.uniform(0.95, 1.05, size=3))


def _draw_look_alikes(rng: np.random.Generator, center: np.ndarray) -> Iterator[Ellipsoid]:
    """Vessels and cysts: as bright as the nodule, but background."""
    for _ in range(rng.integers(4, 8)):
        place = center + _unit(rng.normal(size=3)) * [17, 15, 24]
        yield Ellipsoid(place, rng.uniform(2.5, 5.5, size=3))


def _label(anatomy: _Anatomy, points: np.ndarray) -> np.ndarray:
    """Labels (z, y, x): between the organs the deeper one wins, and the nodule grows over its organ."""
    depth_a, depth_b = anatomy.organ_a.level(points), anatomy.organ_b.level(points)
    labels = np.zeros(points.shape[1:], dtype=np.uint8)
    labels[(depth_a < 1) & (depth_a <= depth_b)] = LABELS["organ_a"]
    labels[(depth_b < 1) & (depth_b < depth_a)] = LABELS["organ_b"]
    labels[anatomy.nodule.level(points) < 1] = LABELS["nodule"]
    return labels


def _draw_signal(
    rng: np.random.Generator, anatomy: _Anatomy, points: np.ndarray, labels: np.ndarray, grid: _Grid
) -> np.ndarray:
    """Noise-free signal (z, y, x): 0 in air, around 1 in the body, brighter in the organs, blurred."""
    organ = 1 + rng.uniform(0.20, 0.70)
    step = rng.uniform(0.06, 0.14)
    nodule = organ + rng.uniform(0.30, 0.55)
    signal = np.where(anatomy.body.level(points) < 1, 1.0, 0.0)
    for look_alike in anatomy.look_alikes:
        signal[(look_alike.level(points) < 1) & (signal > 0)] = rng.choice([organ, nodule])
    for label, mean in (("organ_a", organ + step / 2), ("organ_b", organ - step / 2), ("nodule", nodule)):
        signal[labels == LABELS[label]] = mean
    # organ b is mottled: a trace that the bias field does not hide and that mirrored training images keep
    mottling = np.where(labels == LABELS["organ_b"], 0.16, 0.04)
    for scale_mm, strength in ((5.0, 0.06), (1.2, mottling)):
        signal *= 1 + strength * smooth_field(rng, grid.size_zyx, grid.spacing_xyz_mm, scale_mm)
    return np.asarray(gaussian_filter(signal, 0.7 / grid.spacing_xyz_mm[::-1]))


def _unit(vector: np.ndarray) -> np.ndarray:
    return np.asarray(vector / np.linalg.norm(vector))


def _write_all(folder: Path, name: str, counts: dict[str, int], seed: int, size_zyx: tuple[int, int, int]) -> None:
    places: dict[str, tuple[str, str | None]] = {
        "labeled": ("imagesTr", "labelsTr"),
        "validation": ("imagesTr", "labelsTr"),
        "unlabeled": ("imagesUnlabeled", None),
        "test": ("imagesTs", "labelsTs"),
    }
    for subfolder in ("imagesTr", "labelsTr", "imagesUnlabeled", "imagesTs", "labelsTs"):
        (folder / subfolder).mkdir(parents=True)
    index = 0
    for group, (images, labels) in places.items():
        for _ in range(counts[group]):
            case = make_phantom_case(seed, index, size_zyx)
            _write_array(case.image, case, folder / images / f"phantom_{index:03d}_0000{FILE_ENDING}")
            if labels is not None:
                _write_array(case.labels, case, folder / labels / f"phantom_{index:03d}{FILE_ENDING}")
            index += 1
    content = {
        "channel_names": {"0": "MR"},  # any name but CT: normalized by z-score
        "labels": LABELS,
        "numTraining": counts["labeled"] + counts["validation"],
        "file_ending": FILE_ENDING,
        "name": name,
        "description": "Synthetic scans; see nnunet_dualcl.dataset_conversion.phantom",
        "phantom": {"seed": seed, "size_zyx": list(size_zyx), **counts},
    }
    (folder / "dataset.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _write_array(array: np.ndarray, case: PhantomCase, path: Path) -> None:
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(case.spacing_xyz_mm.tolist())
    image.SetDirection(case.direction.ravel().tolist())
    image.SetOrigin(case.origin_xyz_mm.tolist())
    sitk.WriteImage(image, str(path), useCompression=True)


def _check_arguments(
    dataset_id: int, name: str, counts: dict[str, int], seed: int, size_zyx: tuple[int, int, int]
) -> None:
    if not 1 <= dataset_id <= 999:
        raise ValueError(f"dataset_id must be 1 to 999, got {dataset_id}.")
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise ValueError(f"name may hold letters, digits, underscores and hyphens, got {name!r}.")
    for group, count in counts.items():
        if count < 0:
            raise ValueError(f"{group} must not be negative, got {count}.")
    if counts["labeled"] == 0:
        raise ValueError("labeled must be at least 1, got 0: nnU-Net plans from labeled cases.")
    if sum(counts.values()) > _CASES_AT_MOST:
        raise ValueError(f"At most {_CASES_AT_MOST} cases in all, got {sum(counts.values())}.")
    if seed < 0:
        raise ValueError(f"seed must not be negative, got {seed}.")
    _check_size(size_zyx)


def _check_size(size_zyx: tuple[int, int, int]) -> None:
    least = _SMALLEST_SIZE_ZYX
    if len(size_zyx) != 3 or any(n < smallest for n, smallest in zip(size_zyx, least, strict=True)):
        raise ValueError(f"size_zyx must be at least {least} to hold the organs, got {size_zyx}.")


def _refuse_existing(raw_folder: Path, dataset_id: int, target: Path) -> None:
    """nnU-Net finds a dataset by its id, so a second one of the same id would break both."""
    same_id = sorted(raw_folder.glob(f"Dataset{dataset_id:03d}_*"))
    if target.exists() or same_id:
        raise FileExistsError(f"{same_id[0]} is there already. Delete it, or choose another dataset_id.")
