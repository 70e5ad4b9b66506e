import os
import shlex
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest
import torch

from nnunet_dualcl.cli import doctor
from nnunet_dualcl.cli.doctor import Finding, diagnose
from nnunet_dualcl.layout import trainers_folder

VARIABLES = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")


@pytest.fixture(autouse=True)
def sound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A sound installation; each test breaks one thing."""
    for variable in VARIABLES:
        (tmp_path / variable).mkdir()
        monkeypatch.setenv(variable, str(tmp_path / variable))
    monkeypatch.setenv("nnUNet_extTrainer", f"/others{os.pathsep}{trainers_folder()}{os.sep}")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Card 9000")
    return tmp_path


def not_ok() -> Finding:
    """The one finding that is no "ok"."""
    (finding,) = [finding for finding in diagnose() if finding.status != "ok"]
    return finding


def test_a_sound_installation_needs_no_fix(sound: Path) -> None:
    findings = list(diagnose())
    assert [finding for finding in findings if finding.status != "ok" or finding.fix] == []
    whats = [finding.what for finding in findings]
    assert whats[0].startswith("nnunetv2 2.8.")
    assert whats[2] == "CUDA device: Card 9000"
    assert whats[4] == "nnU-Net can import DualCLTrainer from our trainer folder"
    assert whats[5:] == [f"{variable}={sound / variable}" for variable in VARIABLES]


def test_looking_changes_nothing(sound: Path) -> None:
    environment, modules, path = dict(os.environ), set(sys.modules), list(sys.path)
    list(diagnose())
    assert (dict(os.environ), sys.path) == (environment, path)
    assert modules <= set(sys.modules)


def with_version(monkeypatch: pytest.MonkeyPatch, found: str | None) -> None:
    original = doctor.version

    def version(package: str) -> str:
        if package != "nnunetv2":
            return original(package)
        if found is None:
            raise PackageNotFoundError(package)
        return found

    monkeypatch.setattr(doctor, "version", version)


@pytest.mark.parametrize("found", ["2.7.9", "2.8.0", "2.8", "2.9", "2.9.0rc1", "2.10.1", "3.0", "2.8rc1"])
def test_an_untested_nnunet_is_a_fault(found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with_version(monkeypatch, found)
    assert not_ok() == Finding(
        "fault",
        f"nnunetv2 {found} is not of the tested 2.8 series (2.8.1 or later)",
        "pip install 'nnunetv2>=2.8.1,<2.9'",
    )


@pytest.mark.parametrize("found", ["2.8.1", "2.8.1.dev3", "2.8.12", "2.8.2+local.1"])
def test_later_patches_of_the_series_are_sound(found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with_version(monkeypatch, found)
    assert next(diagnose()) == Finding("ok", f"nnunetv2 {found}")


def test_an_absent_nnunet_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    with_version(monkeypatch, None)
    assert next(diagnose()) == Finding("fault", "nnunetv2 is not installed", "pip install 'nnunetv2>=2.8.1,<2.9'")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RuntimeError("operator torchvision::nms does not exist\nmore"), "operator torchvision::nms does not exist"),
        (ImportError(), "ImportError"),
    ],
)
def test_a_torchvision_of_another_build_is_a_fault(
    error: Exception, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def import_module(name: str) -> Any:
        assert name == "torchvision"
        raise error

    monkeypatch.setattr(doctor.importlib, "import_module", import_module)
    finding = doctor._torchvision()
    assert finding.status == "fault"
    assert finding.what == f"torchvision does not load ({reason}); nnU-Net's trainer search needs it"
    assert "pip install --force-reinstall torch torchvision" in finding.fix


def test_no_cuda_device_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    finding = not_ok()
    assert (finding.status, finding.what) == ("note", "no CUDA device")
    assert "-device cpu" in finding.fix


@pytest.mark.parametrize("value", [None, "", "/others", str(trainers_folder().parent)])
def test_a_trainer_variable_without_our_folder_is_a_note(value: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if value is None:
        monkeypatch.delenv("nnUNet_extTrainer")
    else:
        monkeypatch.setenv("nnUNet_extTrainer", value)
    finding = not_ok()
    assert finding.status == "note"
    assert finding.what.startswith("nnUNet_extTrainer does not name our trainer folder")
    assert finding.fix.startswith('eval "$(dualcl env)"')


def test_a_trainer_that_cannot_be_imported_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def lookup(*_: Any, **__: Any) -> None:
        raise ImportError("no module named yaml")

    monkeypatch.setattr("nnunetv2.utilities.find_class_by_name.recursive_find_python_class", lookup)
    finding = not_ok()
    assert finding.status == "fault"
    assert finding.what == "nnU-Net cannot import our trainers: no module named yaml"
    assert "pip install --force-reinstall nnunet-dualcl" in finding.fix


def test_an_incomplete_installation_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "trainers_folder", lambda: tmp_path)
    finding = doctor._trainer_lookup()
    assert (finding.status, finding.what) == ("fault", f"no DualCLTrainer in {tmp_path}")
    assert "pip install --force-reinstall nnunet-dualcl" in finding.fix


@pytest.mark.parametrize("variable", VARIABLES)
def test_each_folder_variable_is_checked(variable: str, sound: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    absent = sound / "not there" / variable
    monkeypatch.setenv(variable, str(absent))
    assert not_ok() == Finding("fault", f"{variable}={absent} is no folder", f"mkdir -p '{absent}'")
    file = sound / "notes.txt"
    file.touch()
    monkeypatch.setenv(variable, str(file))
    assert not_ok() == Finding("fault", f"{variable}={file} is a file", f"export {variable}=/path/to/{variable}")
    monkeypatch.delenv(variable)
    assert not_ok() == Finding("fault", f"{variable} is not set", f"export {variable}=/path/to/{variable}")


def test_raw_data_may_be_read_only(sound: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = sound / "nnUNet_raw"
    monkeypatch.setattr(doctor.os, "access", lambda path, mode: not (Path(path) == raw and mode == os.W_OK))
    assert doctor._folder("nnUNet_raw") == Finding("ok", f"nnUNet_raw={raw}")


def test_a_folder_that_cannot_be_written_to_is_a_fault(sound: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    locked = sound / "nnUNet_results"
    # the superuser may write anywhere, so the answer is replaced rather than the permission
    monkeypatch.setattr(doctor.os, "access", lambda path, mode: not (Path(path) == locked and mode == os.W_OK))
    assert not_ok() == Finding(
        "fault",
        f"nnUNet_results={locked} cannot be written to",
        f"chmod u+w {shlex.quote(str(locked))}, or choose another folder",
    )
