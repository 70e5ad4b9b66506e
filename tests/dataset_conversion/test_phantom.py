import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity
from scipy.ndimage import binary_dilation, binary_erosion

from nnunet_dualcl.dataset_conversion import phantom
from nnunet_dualcl.dataset_conversion.phantom import (
    LABELS,
    PhantomCase,
    add_rician_noise,
    draw_bias_field,
    make_phantom_case,
    write_phantom_dataset,
)

COUNTS = {"labeled": 2, "validation": 1, "unlabeled": 2, "test": 1}
SPACING = np.array([1.0, 1.0, 2.5])


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phantom_dataset(tmp_path_factory.mktemp("raw"), **COUNTS)


@pytest.fixture(scope="module")
def cases() -> list[PhantomCase]:
    return [make_phantom_case(3, index) for index in range(8)]


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_folders_and_names(dataset: Path) -> None:
    assert dataset.name == "Dataset901_Phantom"
    assert sorted(files_below(dataset)) == [
        "dataset.json",
        "imagesTr/phantom_000_0000.nii.gz",
        "imagesTr/phantom_001_0000.nii.gz",
        "imagesTr/phantom_002_0000.nii.gz",
        "imagesTs/phantom_005_0000.nii.gz",
        "imagesUnlabeled/phantom_003_0000.nii.gz",
        "imagesUnlabeled/phantom_004_0000.nii.gz",
        "labelsTr/phantom_000.nii.gz",
        "labelsTr/phantom_001.nii.gz",
        "labelsTr/phantom_002.nii.gz",
        "labelsTs/phantom_005.nii.gz",
    ]


def test_dataset_json(dataset: Path) -> None:
    content = json.loads((dataset / "dataset.json").read_text())
    assert content["channel_names"] == {"0": "MR"}
    assert content["labels"] == {"background": 0, "organ_a": 1, "organ_b": 2, "nodule": 3}
    assert content["numTraining"] == 3
    assert content["file_ending"] == ".nii.gz"
    assert content["phantom"] == {"seed": 0, "size_zyx": [24, 44, 48], **COUNTS}


def test_nothing_on_disk_tells_the_labels_of_an_unlabeled_case(dataset: Path) -> None:
    unlabeled = {path.name.removesuffix("_0000.nii.gz") for path in (dataset / "imagesUnlabeled").iterdir()}
    assert len(unlabeled) == 2
    files = [path for path in dataset.rglob("*.nii.gz") if path.name[: len("phantom_000")] in unlabeled]
    assert {path.parent.name for path in files} == {"imagesUnlabeled"}


def test_nnunet_finds_no_fault(dataset: Path, capfd: pytest.CaptureFixture[str]) -> None:
    verify_dataset_integrity(str(dataset), num_processes=1)
    printed = capfd.readouterr().out
    assert "verify_dataset_integrity Done" in printed
    assert "mismatch" not in printed


def test_files_hold_the_case_and_one_geometry(dataset: Path) -> None:
    image = sitk.ReadImage(str(dataset / "imagesTs/phantom_005_0000.nii.gz"))
    labels = sitk.ReadImage(str(dataset / "labelsTs/phantom_005.nii.gz"))
    case = make_phantom_case(0, 5)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), case.image)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(labels), case.labels)
    assert image.GetSpacing() == labels.GetSpacing() == pytest.approx(tuple(case.spacing_xyz_mm), abs=1e-5)
    assert image.GetOrigin() == labels.GetOrigin() == pytest.approx(tuple(case.origin_xyz_mm), abs=1e-4)
    assert image.GetDirection() == labels.GetDirection()
    assert image.GetDirection() == pytest.approx(tuple(case.direction.ravel()), abs=1e-5)


def test_same_seed_same_bytes_other_seed_other_bytes(dataset: Path, tmp_path: Path) -> None:
    again = write_phantom_dataset(tmp_path / "again", **COUNTS)
    other = write_phantom_dataset(tmp_path / "other", **COUNTS, seed=1)
    assert files_below(again) == files_below(dataset)
    assert not set(files_below(other).values()) & set(files_below(dataset).values())


def test_scans_do_not_depend_on_the_counts(dataset: Path, tmp_path: Path) -> None:
    moved = write_phantom_dataset(tmp_path, labeled=4, validation=0, unlabeled=1, test=1)
    before = {path.name: path.read_bytes() for path in dataset.glob("images*/*")}
    assert {path.name: path.read_bytes() for path in moved.glob("images*/*")} == before


def test_every_class_is_in_every_case(cases: list[PhantomCase]) -> None:
    for case in cases:
        assert np.bincount(case.labels.ravel(), minlength=4).min() >= 60
        assert case.labels.max() == 3


def test_a_draw_without_a_nodule_is_drawn_again(monkeypatch: pytest.MonkeyPatch) -> None:
    label, calls = phantom._label, []

    def without_nodule_at_first(*arguments: object) -> np.ndarray:
        calls.append(1)
        labels = label(*arguments)
        return np.where(labels == 3, 0, labels).astype(np.uint8) if len(calls) == 1 else labels

    monkeypatch.setattr(phantom, "_label", without_nodule_at_first)
    assert (make_phantom_case(3, 0).labels == 3).any()
    assert len(calls) == 2


def test_organs_adjoin_and_the_nodule_touches_one(cases: list[PhantomCase]) -> None:
    for case in cases:
        a, b, nodule = (case.labels == LABELS[name] for name in ("organ_a", "organ_b", "nodule"))
        assert np.count_nonzero(binary_dilation(a) & b) >= 20
        assert np.count_nonzero(binary_dilation(nodule) & (a | b)) >= 5


def test_nodule_is_four_to_six_millimeters(cases: list[PhantomCase]) -> None:
    for case in cases:
        volume_mm3 = np.count_nonzero(case.labels == 3) * np.prod(case.spacing_xyz_mm)
        # bending stretches and squeezes
        assert 3.0 < (volume_mm3 * 3 / (4 * np.pi)) ** (1 / 3) < 7.0


def test_geometry_varies_and_is_oblique_and_anisotropic(cases: list[PhantomCase]) -> None:
    assert len({case.image.shape for case in cases}) > 4
    assert len({tuple(case.spacing_xyz_mm) for case in cases}) == len(cases)
    for case in cases:
        assert len(set(case.image.shape)) == 3
        assert case.spacing_xyz_mm[2] > 2 * case.spacing_xyz_mm[0]
        np.testing.assert_allclose(case.direction @ case.direction.T, np.eye(3), atol=1e-12)
        assert np.linalg.det(case.direction) == pytest.approx(1)
        assert np.abs(case.direction - np.eye(3)).max() > 0.01


def test_contrast_varies_between_cases(cases: list[PhantomCase]) -> None:
    def body(case: PhantomCase) -> float:
        around = binary_dilation(case.labels > 0, iterations=3) & (case.labels == 0)
        return float(np.median(case.image[around]))

    contrast = [np.median(case.image[case.labels == 1]) / body(case) for case in cases]
    assert min(contrast) > 1.1
    assert max(contrast) / min(contrast) > 1.1
    gain = [body(case) for case in cases]
    assert max(gain) / min(gain) > 2


def test_brightness_drifts_across_one_organ(cases: list[PhantomCase]) -> None:
    drifts = []
    for case in cases:
        # inside one organ the tissue is the same, so halves differ by the bias field and coarse texture
        inside = binary_erosion(case.labels == LABELS["organ_a"])
        middles = [np.median(indices) for indices in np.nonzero(inside)]
        halves = [np.indices(inside.shape)[axis] < middles[axis] for axis in range(3)]
        ratios = [case.image[inside & half].mean() / case.image[inside & ~half].mean() for half in halves]
        drifts.append(max(abs(np.log(ratios))))
    assert np.median(drifts) > 0.05


def test_air_is_noisy(cases: list[PhantomCase]) -> None:
    for case in cases:
        corner = case.image[:4, :4, :4]
        assert corner.std() > 0
        assert corner.min() >= 0
        assert corner.mean() < 0.2 * case.image[case.labels == 1].mean()


def test_bias_field_is_positive_smooth_and_not_flat() -> None:
    field = draw_bias_field(np.random.default_rng(0), (24, 44, 48), SPACING)
    assert field.min() > 0
    assert 0.11 < np.log(field).std() < 0.26
    assert max(np.abs(np.diff(field, axis=axis)).max() for axis in range(3)) < 0.2


def test_noise_in_air_is_rayleigh_and_in_tissue_gaussian() -> None:
    rng = np.random.default_rng(0)
    air = add_rician_noise(rng, np.zeros((20, 30, 40)), sigma=2.0)
    tissue = add_rician_noise(rng, np.full((20, 30, 40), 100.0), sigma=2.0)
    assert air.mean() == pytest.approx(2.0 * np.sqrt(np.pi / 2), rel=0.02)
    assert tissue.std() == pytest.approx(2.0, rel=0.02)


@pytest.mark.parametrize("name", ["Phantom", "Other"])
def test_an_existing_dataset_is_left_alone(dataset: Path, name: str) -> None:
    before = files_below(dataset)
    with pytest.raises(FileExistsError, match=r"Dataset901_Phantom is there already\. Delete it, or choose"):
        write_phantom_dataset(dataset.parent, name=name, **COUNTS)
    assert files_below(dataset) == before


@pytest.mark.parametrize("fault", [RuntimeError, KeyboardInterrupt])
def test_an_interruption_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: type[BaseException]
) -> None:
    make, seen = phantom.make_phantom_case, []

    def interrupted(seed: int, index: int, size_zyx: tuple[int, int, int]) -> PhantomCase:
        seen.extend(files_below(tmp_path))
        if index == 1:
            raise fault
        return make(seed, index, size_zyx)

    monkeypatch.setattr(phantom, "make_phantom_case", interrupted)
    with pytest.raises(fault):
        write_phantom_dataset(tmp_path, **COUNTS)
    assert any(name.endswith("labelsTr/phantom_000.nii.gz") for name in seen)  # it was half written
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"labeled": 0}, "labeled must be at least 1, got 0"),
        ({"labeled": -1}, "labeled must not be negative, got -1"),
        ({"validation": -1}, "validation must not be negative"),
        ({"unlabeled": -2}, "unlabeled must not be negative, got -2"),
        ({"test": -1}, "test must not be negative"),
        ({"unlabeled": 1000}, "At most 1000 cases in all, got 1004"),
        ({"dataset_id": 0}, "dataset_id must be 1 to 999, got 0"),
        ({"dataset_id": 1000}, "dataset_id must be 1 to 999, got 1000"),
        ({"name": "a/b"}, "name may hold letters.*'a/b'"),
        ({"name": ""}, "name may hold letters.*''"),
        ({"seed": -1}, "seed must not be negative, got -1"),
        ({"size_zyx": (8, 44, 48)}, r"size_zyx must be at least \(20, 40, 44\).*\(8, 44, 48\)"),
        ({"size_zyx": (44, 48)}, r"size_zyx must be at least .*\(44, 48\)"),
    ],
)
def test_impossible_arguments(tmp_path: Path, wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        write_phantom_dataset(tmp_path / "raw", **{**COUNTS, **wrong})
    assert not (tmp_path / "raw").exists()
