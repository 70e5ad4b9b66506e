import importlib
import os
from pathlib import Path

import pytest
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_dualcl.errors import DualCLError
from nnunet_dualcl.layout import (
    dataset_name,
    required_folder,
    trainers_folder,
    unlabeled_preprocessed_folder,
    with_trainers_folder,
)

OURS = str(trainers_folder())


@pytest.mark.parametrize(
    ("current", "expected"),
    [
        (None, [OURS]),
        ("", [OURS]),
        (" ", [OURS]),
        (OURS, [OURS]),
        ("/a b/c", [OURS, "/a b/c"]),
        (f"/first{os.pathsep}{OURS}{os.pathsep}/second", [OURS, "/first", "/second"]),
        (f"{OURS}{os.pathsep}{os.pathsep}{OURS}", [OURS]),
    ],
)
def test_our_trainers_come_first_and_once_and_others_stay(current: str | None, expected: list[str]) -> None:
    assert with_trainers_folder(current).split(os.pathsep) == expected


def test_adding_our_trainers_twice_changes_nothing() -> None:
    once = with_trainers_folder("/others")
    assert with_trainers_folder(once) == once


def test_the_trainers_folder_holds_trainer_modules_only() -> None:
    modules = {path.stem for path in trainers_folder().iterdir() if path.name != "__pycache__"}
    assert "DualCLTrainer" in modules
    for name in modules - {"__init__"}:
        module = importlib.import_module(f"nnunet_dualcl.trainers.{name}")
        assert issubclass(getattr(module, name), nnUNetTrainer)
        assert getattr(module, name).__module__ == module.__name__


@pytest.fixture
def datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for variable, names in (
        ("nnUNet_raw", ["Dataset004_Hippocampus", "Dataset007_One", "Dataset040_Other"]),
        ("nnUNet_preprocessed", ["Dataset004_Hippocampus", "Dataset007_Two"]),
        ("nnUNet_results", []),
    ):
        (tmp_path / variable).mkdir()
        monkeypatch.setenv(variable, str(tmp_path / variable))
        for name in names:
            (tmp_path / variable / name).mkdir()
    return tmp_path


@pytest.mark.parametrize("given", [4, "4", "004", "Dataset004_Hippocampus"])
def test_dataset_name_by_number_or_name(datasets: Path, given: str | int) -> None:
    name = dataset_name(given)
    assert name == "Dataset004_Hippocampus"
    assert type(name) is str


def test_dataset_name_none_or_two(datasets: Path) -> None:
    with pytest.raises(DualCLError, match=f"Dataset 9: found none. Looked in nnUNet_raw={datasets / 'nnUNet_raw'}"):
        dataset_name("9")
    with pytest.raises(DualCLError, match="Dataset 7: found Dataset007_One, Dataset007_Two"):
        dataset_name(7)


def test_dataset_name_with_no_variable_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.delenv(variable, raising=False)
    with pytest.raises(
        DualCLError,
        match=r"nnUNet_raw=None, nnUNet_preprocessed=None and nnUNet_results=None\. Set nnUNet_raw and nnUNet_preproc",
    ):
        dataset_name(4)


@pytest.mark.parametrize("given", ["Hippocampus", "4a", "", "-4"])
def test_a_name_that_is_none_is_refused(given: str) -> None:
    with pytest.raises(DualCLError, match=f"'{given}' is neither a dataset number nor a name such as Dataset004"):
        dataset_name(given)


def test_required_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnUNet_raw", str(tmp_path))
    assert required_folder("nnUNet_raw") == tmp_path
    for unset in ("", None):
        if unset is None:
            monkeypatch.delenv("nnUNet_raw")
        else:
            monkeypatch.setenv("nnUNet_raw", unset)
        with pytest.raises(DualCLError, match=r"nnUNet_raw is not set\. Run: export nnUNet_raw=/path/to/nnUNet_raw"):
            required_folder("nnUNet_raw")


def test_unlabeled_cases_lie_beside_the_labeled_ones(tmp_path: Path) -> None:
    folder = unlabeled_preprocessed_folder(tmp_path, "nnUNetPlans_3d_fullres")
    assert folder.parent == tmp_path
    assert folder.name == "nnUNetPlans_3d_fullres_unlabeled"
