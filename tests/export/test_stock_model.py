from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_dualcl.cli.main import main
from nnunet_dualcl.errors import DualCLError
from nnunet_dualcl.export import export_stock_model
from nnunet_dualcl.trainers.DualCLTrainer import DualCLTrainer


@pytest.fixture
def model(toy: Any, configure: Any) -> Path:
    """A model folder with an untrained checkpoint."""
    configure(num_epochs=7, verification_weight=0.125)
    trainer = toy.trainer(DualCLTrainer)
    trainer.initialize()
    trainer.inference_allowed_mirroring_axes = (0, 1)
    trainer.save_checkpoint(str(Path(trainer.output_folder) / "checkpoint_final.pth"))
    folder = Path(trainer.output_folder_base)
    for name, content in (("plans.json", toy.plans()), ("dataset.json", trainer.dataset_json)):
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    return folder


def load(folder: Path) -> dict[str, Any]:
    return torch.load(folder / "fold_0" / "checkpoint_final.pth", weights_only=False)


def test_weights_are_stock_and_unchanged(toy: Any, model: Path, tmp_path: Path) -> None:
    assert export_stock_model(model, tmp_path / "out") == ["fold_0"]
    exported, source = load(tmp_path / "out"), load(model)
    assert exported["trainer_name"] == "nnUNetTrainer"
    assert exported["inference_allowed_mirroring_axes"] == (0, 1)
    assert set(exported) == {
        "network_weights", "init_args", "trainer_name", "inference_allowed_mirroring_axes", "current_epoch",
    }  # fmt: skip
    for name, value in exported["network_weights"].items():
        assert torch.equal(value, source["network_weights"][name])
    stock = toy.trainer(nnUNetTrainer)
    stock.initialize()
    stock.network.load_state_dict(exported["network_weights"], strict=True)


def test_the_command_says_whose_scores_the_source_has_where_they_are_not_the_exports(
    toy: Any, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = []
    for prediction in ("mean", "a"):
        checkpoint = load(model)
        checkpoint["dualcl"]["config"]["prediction"] = prediction
        torch.save(checkpoint, model / "fold_0" / "checkpoint_final.pth")
        assert main(["export", "-d", "777", "-p", "toyPlans", "-o", str(tmp_path / prediction)]) == 0
        told.append("the validation scores of the source are of the mean of both" in capsys.readouterr().out)
    assert told == [True, False]


def test_provenance_names_trainer_versions_and_configuration(model: Path, tmp_path: Path) -> None:
    export_stock_model(model, tmp_path / "out")
    provenance = json.loads((tmp_path / "out" / "dualcl_provenance.json").read_text())
    assert provenance["source"] == "DualCLTrainer__toyPlans__3d_fullres"
    assert provenance["nnunetv2"].startswith("2.8")
    fold = provenance["folds"]["fold_0"]
    assert fold["trainer"] == "DualCLTrainer"
    assert fold["config"]["verification_weight"] == 0.125
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "dataset.json", "dualcl_provenance.json", "fold_0", "plans.json",
    ]  # fmt: skip


def test_every_fold_that_has_the_checkpoint_is_exported_under_the_name_that_predictors_look_for(
    model: Path, tmp_path: Path
) -> None:
    for fold in ("fold_1", "fold_3"):
        shutil.copytree(model / "fold_0", model / fold)
        (model / fold / "checkpoint_final.pth").rename(model / fold / "checkpoint_best.pth")
    assert export_stock_model(model, tmp_path / "out", checkpoint_name="checkpoint_best.pth") == ["fold_1", "fold_3"]
    files = sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.pth"))
    assert files == ["fold_1/checkpoint_final.pth", "fold_3/checkpoint_final.pth"]
    provenance = json.loads((tmp_path / "out" / "dualcl_provenance.json").read_text())
    assert {fold: origin["checkpoint"] for fold, origin in provenance["folds"].items()} == dict.fromkeys(
        ("fold_1", "fold_3"), "checkpoint_best.pth"
    )


def test_a_fold_that_was_moved_aside_is_not_exported(model: Path, tmp_path: Path) -> None:
    shutil.copytree(model / "fold_0", model / "fold_0_old")
    assert export_stock_model(model, tmp_path / "exported") == ["fold_0"]


def test_a_network_that_nnunet_does_not_build_from_the_plans_is_refused(model: Path, tmp_path: Path) -> None:
    path = model / "fold_0" / "checkpoint_final.pth"
    checkpoint = torch.load(path, weights_only=False)
    name = "decoder.seg_layers.0.weight"
    checkpoint["network_weights"][name] = torch.cat([checkpoint["network_weights"][name]] * 2, 1)
    torch.save(checkpoint, path)
    with pytest.raises(DualCLError, match=r"decoder A are not the network that nnU-Net builds .* dualcl predict"):
        export_stock_model(model, tmp_path / "exported")
    assert not (tmp_path / "exported").exists()


def test_existing_target_is_kept(model: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(DualCLError, match=r"out exists\. Export under a new name"):
        export_stock_model(model, tmp_path / "out")


def test_an_archive_holds_the_same_model_where_nnunet_looks_for_it(model: Path, tmp_path: Path) -> None:
    assert export_stock_model(model, tmp_path / "out.zip") == ["fold_0"]
    with zipfile.ZipFile(tmp_path / "out.zip") as packed:
        assert packed.testzip() is None
        assert {(entry.date_time[0], entry.external_attr >> 16) for entry in packed.infolist()} == {(1980, 0o644)}
        packed.extractall(tmp_path / "results")
    (place,) = (tmp_path / "results").glob("*/*")
    assert place.parent.name == model.parent.name
    assert place.name == "nnUNetTrainer__toyPlans__3d_fullres"
    export_stock_model(model, tmp_path / "out")
    for path in (path for path in (tmp_path / "out").rglob("*") if path.is_file()):
        assert (place / path.relative_to(tmp_path / "out")).read_bytes() == path.read_bytes()
    assert sum(path.is_file() for path in place.rglob("*")) == 4
    export_stock_model(model, tmp_path / "again.ZIP")
    assert (tmp_path / "again.ZIP").read_bytes() == (tmp_path / "out.zip").read_bytes()
    with pytest.raises(DualCLError, match=r"out\.zip exists"):
        export_stock_model(model, tmp_path / "out.zip")
    assert not list(tmp_path.glob(".*"))


def test_an_archive_needs_nnunets_names(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(model.parent)
    export_stock_model(Path(model.name), tmp_path / "relative.zip")
    with zipfile.ZipFile(tmp_path / "relative.zip") as packed:
        assert all(name.startswith(f"{model.parent.name}/nnUNetTrainer__") for name in packed.namelist())
    copied = shutil.copytree(model, tmp_path / "copied_model")
    with pytest.raises(DualCLError, match="copied_model: an archive for nnU-Net says which dataset"):
        export_stock_model(copied, tmp_path / "out.zip")
    assert export_stock_model(copied, tmp_path / "out") == ["fold_0"]


def test_missing_model_fold_or_checkpoint_is_named(model: Path, tmp_path: Path) -> None:
    with pytest.raises(DualCLError, match="nowhere holds no trained model"):
        export_stock_model(tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(DualCLError, match=r"fold_3/checkpoint_final\.pth does not exist"):
        export_stock_model(model, tmp_path / "out", folds=[3])
    with pytest.raises(DualCLError, match=r"No checkpoint_best\.pth in any fold"):
        export_stock_model(model, tmp_path / "out", checkpoint_name="checkpoint_best.pth")
    assert not (tmp_path / "out").exists()


def test_model_of_another_trainer_is_refused(toy: Any, model: Path, tmp_path: Path) -> None:
    stock = toy.trainer(nnUNetTrainer)
    stock.initialize()
    stock.save_checkpoint(str(model / "fold_0" / "checkpoint_final.pth"))
    with pytest.raises(DualCLError, match="written by nnUNetTrainer"):
        export_stock_model(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".out*"))
