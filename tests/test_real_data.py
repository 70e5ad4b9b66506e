"""The main job on real scans, by the commands a user types: convert, preprocess, split, train, predict, export."""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import SimpleITK as sitk
import torch

from nnunet_dualcl.cli.main import main

DATA = Path(os.environ.get("DUALCL_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))
HIPPOCAMPUS = DATA / "Task04_Hippocampus"
NAME, PLANS = "Dataset004_Hippocampus", "small"
LABELED, VALIDATION, CASES, TEST = 5, 2, 12, 3

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (HIPPOCAMPUS / "dataset.json").is_file(),
        reason=f"no Task04_Hippocampus of the Medical Segmentation Decathlon in {DATA}; name its folder's parent in "
        "DUALCL_TEST_DATA",
    ),
]


@pytest.fixture
def nnunet_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    for folder in ("raw", "preprocessed", "results"):
        (tmp_path / folder).mkdir()
        monkeypatch.setenv(f"nnUNet_{folder}", str(tmp_path / folder))
    for variable in ("nnUNet_def_n_proc", "nnUNet_n_proc_DA"):
        monkeypatch.setenv(variable, "1")
    for variable in ("nnUNet_extTrainer", "DUALCL_CONFIG"):
        monkeypatch.delenv(variable, raising=False)
    threads = torch.get_num_threads()
    yield tmp_path
    torch.set_num_threads(threads)


def excerpt(target: Path) -> list[str]:
    """A folder in the Decathlon's layout with the first cases, and images of further ones as the test set."""
    names = sorted(path.name for path in (HIPPOCAMPUS / "imagesTr").glob("*.nii.gz"))[: CASES + TEST]
    for role, chosen in (("imagesTr", names[:CASES]), ("labelsTr", names[:CASES]), ("imagesTs", names[CASES:])):
        (target / role).mkdir(parents=True)
        for name in chosen:
            shutil.copyfile(HIPPOCAMPUS / role.replace("Ts", "Tr") / name, target / role / name)
    content = json.loads((HIPPOCAMPUS / "dataset.json").read_text())
    training = [{"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"} for name in names[:CASES]]
    listed = {"numTraining": CASES, "training": training, "test": [f"./imagesTs/{name}" for name in names[CASES:]]}
    (target / "dataset.json").write_text(json.dumps({**content, **listed}))
    return [name.removesuffix(".nii.gz") for name in names]


def convert(tmp_path: Path) -> list[str]:
    """The excerpt as an nnU-Net dataset; returns its case names, those of the test set last."""
    source = tmp_path / "Task04_Hippocampus"
    names = excerpt(source)
    assert main(["convert", "msd", str(source), "-d", "4", "-n", "Hippocampus", "-np", "1"]) == 0
    return names


def plan_and_preprocess(preprocessed: Path) -> None:
    """With plans of a size for two cores."""
    from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprints, plan_experiments, preprocess

    from nnunet_dualcl.small_plans import write_small_plans

    extract_fingerprints([4], num_processes=1, check_dataset_integrity=True, show_progress_bar=False)
    plan_experiments([4])
    options = {"patch_size": (16, 24, 16), "features": (12, 24, 48), "spacing_mm": (2.0, 2.0, 2.0)}
    write_small_plans(preprocessed, "nnUNetPlans", PLANS, **options)
    preprocess([4], PLANS, ["3d_fullres"], [1], show_progress_bar=False)


def test_regions_and_unannotated_slices(nnunet_folders: Path, tmp_path: Path) -> None:
    """The hippocampus with its posterior part inside, annotated on every other slice, and no unlabeled case."""
    convert(tmp_path)
    raw, preprocessed = tmp_path / "raw" / NAME, tmp_path / "preprocessed" / NAME
    content = json.loads((raw / "dataset.json").read_text())
    labels = {"background": 0, "hippocampus": [1, 2], "posterior": 2, "ignore": 3}
    (raw / "dataset.json").write_text(json.dumps({**content, "labels": labels, "regions_class_order": [1, 2]}))
    for file in (raw / "labelsTr").iterdir():
        image = sitk.ReadImage(str(file))
        array = sitk.GetArrayFromImage(image)
        array[::2] = 3
        partly = sitk.GetImageFromArray(array)
        partly.CopyInformation(image)
        sitk.WriteImage(partly, str(file))
    plan_and_preprocess(preprocessed)
    config = tmp_path / "short.yaml"
    config.write_text("num_epochs: 2\nnum_iterations_per_epoch: 10\nnum_val_iterations_per_epoch: 2\n")
    flags = ["4", "3d_fullres", "0", "-p", PLANS, "-device", "cpu"]
    assert main(["train", *flags, "--config", str(config)]) == 0
    fold = tmp_path / "results" / NAME / f"DualCLTrainer__{PLANS}__3d_fullres" / "fold_0"
    assert "0 unlabeled cases" in next(fold.glob("training_log*.txt")).read_text()
    first, last = csv.DictReader((fold / "dualcl_terms.csv").open())
    assert 0 < float(last["supervised_a"]) < float(first["supervised_a"])
    assert float(last["pseudo_label"]) > 0
    summary = json.loads((fold / "validation" / "summary.json").read_text())
    assert set(summary["mean"]) == {"(1, 2)", "2"}


def test_convert_split_train_predict_export_evaluate(nnunet_folders: Path, tmp_path: Path) -> None:
    from nnunet_dualcl.runs import dice_per_case, predict

    names = convert(tmp_path)
    raw, preprocessed = tmp_path / "raw" / NAME, tmp_path / "preprocessed" / NAME
    plan_and_preprocess(preprocessed)

    assert main(["split", "-d", "4", "--labeled", str(LABELED), "--val", str(VALIDATION), "--seed", "0"]) == 0
    split = json.loads((preprocessed / "splits_final.json").read_text())[0]
    assert [len(split[role]) for role in ("train", "val", "unlabeled")] == [LABELED, VALIDATION, CASES - 7]
    assert sorted(split["train"] + split["val"] + split["unlabeled"]) == names[:CASES]
    assert main(["preprocess", "-d", "4", "-p", PLANS, "-np", "1"]) == 0

    config = tmp_path / "short.yaml"
    config.write_text("num_epochs: 2\nnum_iterations_per_epoch: 20\nnum_val_iterations_per_epoch: 2\n")
    model = tmp_path / "results" / NAME / f"DualCLTrainer__{PLANS}__3d_fullres"
    flags = ["4", "3d_fullres", "0", "-p", PLANS, "-device", "cpu"]
    assert main(["train", *flags, "--config", str(config)]) == 0
    summary = json.loads((model / "fold_0" / "validation" / "summary.json").read_text())
    assert len(summary["metric_per_case"]) == VALIDATION
    first, last = csv.DictReader((model / "fold_0" / "dualcl_terms.csv").open())
    for decoder in ("supervised_a", "supervised_b"):
        assert float(last[decoder]) < float(first[decoder])

    where = ["-d", "4", "-c", "3d_fullres", "-p", PLANS]
    # without workers, each of which imports torch anew; decoder A's own prediction is compared below
    one = ["-f", "0", "-device", "cpu", "-npp", "0", "-nps", "0"]
    assert main(["predict", "-i", str(raw / "imagesTs"), "-o", str(tmp_path / "mean"), *where, *one]) == 0
    assert main(["export", *where, "-o", str(tmp_path / "stock")]) == 0
    predict(tmp_path / "stock", raw / "imagesTs", tmp_path / "exported")

    references = tmp_path / "references"
    references.mkdir()
    for name in names[CASES:]:
        shutil.copyfile(HIPPOCAMPUS / "labelsTr" / f"{name}.nii.gz", references / f"{name}.nii.gz")
    dataset_json = json.loads((raw / "dataset.json").read_text())
    for folder in ("mean", "exported"):
        scores = dice_per_case(tmp_path / folder, references, dataset_json)
        assert sorted(scores) == names[CASES:]
        # 40 steps teach nothing that a threshold could hold to; that they teach is what the losses above show
        assert all(0 <= value <= 1 for values in scores.values() for value in values.values())
