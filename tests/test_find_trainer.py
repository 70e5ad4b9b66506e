from __future__ import annotations

import os
from pathlib import Path

import pytest
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_dualcl.errors import DualCLError
from nnunet_dualcl.find_trainer import find_trainer, packaged_trainers, reads_config
from nnunet_dualcl.trainers.CPSTrainer import CPSTrainer


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Two folders in `nnUNet_extTrainer` with trainers on ours and on nnU-Net's."""
    ours = "from nnunet_dualcl.trainers.DualCLTrainer import DualCLTrainer as Base"
    stock = "from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer as Base"
    places = [tmp_path / "first", tmp_path / "second"]
    contents = ({"Mine": ours}, {"Mine": stock, "CPSTrainer": stock, "_Base": stock})
    for place, trainers in zip(places, contents, strict=True):
        place.mkdir()
        for name, base in trainers.items():
            (place / f"{name}.py").write_text(f"{base}\n\n\nclass {name}(Base):\n    pass\n", encoding="utf-8")
    monkeypatch.setenv("nnUNet_extTrainer", os.pathsep.join([*map(str, places), str(tmp_path / "missing")]))
    return places


def test_trainers_of_all_three_places_the_first_folder_first(
    folders: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert find_trainer("nnUNetTrainer") is nnUNetTrainer
    assert find_trainer("CPSTrainer") is CPSTrainer
    assert "CPSTrainer" in packaged_trainers()
    assert reads_config(find_trainer("Mine"))
    folders[0].joinpath("Mine.py").unlink()
    assert not reads_config(find_trainer("Mine"))
    assert capsys.readouterr().out == ""


def test_a_name_that_is_nowhere_is_refused_with_those_that_are_there(folders: list[Path]) -> None:
    message = r"no trainer Mien\. Did you mean Mine\? .*first has Mine; .*second has CPSTrainer, Mine; .*has none\."
    with pytest.raises(DualCLError, match=message):
        find_trainer("Mien")


def test_a_fault_in_a_file_is_not_taken_for_a_missing_trainer(folders: list[Path]) -> None:
    (folders[0] / "Broken.py").write_text("raise RuntimeError('mine')\n", encoding="utf-8")
    with pytest.raises(RuntimeError, match="mine"):
        find_trainer("Other")
