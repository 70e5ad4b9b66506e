import csv
import os
from pathlib import Path

import matplotlib.image
import pytest
import torch

from nnunet_dualcl import demo
from nnunet_dualcl.config import DualCLConfig
from nnunet_dualcl.dataset_conversion.phantom import LABELS

CONFIG = DualCLConfig(num_epochs=1, num_iterations_per_epoch=2, num_val_iterations_per_epoch=1, contrastive_samples=64)
MODELS = ["stock nnU-Net", "DualCL", "DualCL, exported"]


@pytest.mark.slow
def test_the_demo_runs_to_its_table_and_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    smaller = {"LABELED": 2, "VALIDATION": 1, "UNLABELED": 2, "TEST": 2}
    coarser = {"SPACING_MM": (4, 2.5, 2.5), "FEATURES": (4, 8, 16)}  # one patch covers a scan
    for name, value in {**smaller, **coarser}.items():
        monkeypatch.setattr(demo, name, value)
    monkeypatch.setattr(demo.os, "cpu_count", lambda: 1)  # with more threads, tensors this small take longer
    monkeypatch.setenv("nnUNet_raw", "/somewhere")
    monkeypatch.delenv("nnUNet_n_proc_DA", raising=False)
    environment, threads = dict(os.environ), torch.get_num_threads()
    try:
        picture = demo.run_demo(tmp_path, CONFIG)
        files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.suffix in (".pth", ".gz")}
        table = (tmp_path / "dice.csv").read_bytes()
        shown = capsys.readouterr().out
        assert demo.run_demo(tmp_path, CONFIG) == picture
    finally:
        torch.set_num_threads(threads)
    assert dict(os.environ) == environment

    # the second call made nothing anew and says the same
    assert {path: path.stat().st_mtime_ns for path in files} == files
    assert (tmp_path / "dice.csv").read_bytes() == table

    rows = list(csv.DictReader(table.decode().splitlines()))
    assert list(rows[0]) == ["model", "case", *list(LABELS)[1:]]
    cases = sorted(path.name.removesuffix(".nii.gz") for path in tmp_path.glob("nnUNet_raw/*/labelsTs/*"))
    assert len(cases) == 2
    assert [(row["model"], row["case"]) for row in rows] == [(model, case) for model in MODELS for case in cases]
    assert all(0 <= float(row[label]) <= 1 for row in rows for label in list(LABELS)[1:])
    assert all(text in shown for text in (*MODELS, "mean of 2 test cases", str(picture)))

    assert picture == tmp_path / "overlay.png"
    pixels = matplotlib.image.imread(picture)
    assert min(pixels.shape[:2]) > 200
    assert pixels[..., :3].std() > 0.05
    exported = tmp_path / "exported_model"
    names = {path.relative_to(exported).as_posix() for path in exported.rglob("*") if path.is_file()}
    assert {"plans.json", "dataset.json", "dualcl_provenance.json", "fold_0/checkpoint_final.pth"} <= names
