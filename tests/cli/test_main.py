import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import nnunet_dualcl
from nnunet_dualcl.cli.main import main
from nnunet_dualcl.errors import DualCLError
from nnunet_dualcl.layout import trainers_folder
from nnunet_dualcl.preprocessing import PreprocessReport

NAME = "Dataset321_Lopsided"
CASES = [f"case_{number:02d}" for number in range(12)]


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """nnU-Net's three folders, with a raw dataset of twelve cases."""
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(variable, str(tmp_path / variable))
    monkeypatch.delenv("nnUNet_extTrainer", raising=False)
    monkeypatch.delenv("DUALCL_CONFIG", raising=False)
    images = tmp_path / "nnUNet_raw" / NAME / "imagesTr"
    images.mkdir(parents=True)
    for case in CASES:
        (images / f"{case}_0000.nii.gz").touch()
    content = {"channel_names": {"0": "CT"}, "file_ending": ".nii.gz", "labels": {"background": 0, "organ": 1}}
    (images.parent / "dataset.json").write_text(json.dumps(content), encoding="utf-8")
    return tmp_path


# ---- the command itself


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match=r"^0$"):
        main(["--version"])
    assert capsys.readouterr().out == f"nnunet-dualcl {nnunet_dualcl.__version__}\n"


@pytest.mark.parametrize(
    ("argv", "message"), [([], "required: COMMAND"), (["fly"], "invalid choice: 'fly'"), (["split"], "required: -d")]
)
def test_a_wrong_command_line_exits_with_2(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match=r"^2$"):
        main(argv)
    assert message in capsys.readouterr().err


def test_the_arguments_default_to_the_process_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["dualcl", "env"])
    assert main() == 0
    assert capsys.readouterr().out.startswith("export nnUNet_extTrainer=")


def test_every_command_shows_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("env", "doctor", "split", "preprocess", "export", "demo"):
        with pytest.raises(SystemExit, match=r"^0$"):
            main([command, "--help"])
        assert f"usage: dualcl {command}" in capsys.readouterr().out


# ---- env


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize("others", ["", "/my trainers/it's $HOME"])
def test_env_can_be_evaluated_by_a_shell(
    others: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("nnUNet_extTrainer", others)
    assert main(["env"]) == 0
    script = 'eval "$1"; printf %s "$nnUNet_extTrainer"'
    line = capsys.readouterr().out
    shown = subprocess.run(["bash", "-c", script, "bash", line], capture_output=True, text=True, check=True).stdout
    assert shown.split(os.pathsep) == [str(trainers_folder()), *([others] if others else [])]


def test_env_needs_neither_torch_nor_nnunets_machinery() -> None:
    script = (
        "import sys; from nnunet_dualcl.cli.main import main; main(['env']); "
        "print(sorted({'torch', 'SimpleITK', 'nnunetv2.run'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stderr.strip().splitlines()[-1] == "[]"


# ---- split


def split(*more: str) -> int:
    return main(["split", "-d", "321", "--labeled", "2", "--draws", "3", *more])


def read(folders: Path) -> list[dict[str, list[str]]]:
    content = (folders / "nnUNet_preprocessed" / NAME / "splits_final.json").read_text(encoding="utf-8")
    return json.loads(content)  # type: ignore[no-any-return]


def test_split_writes_nnunets_file(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert split("--val", "0.25", "--seed", "5") == 0
    folds = read(folders)
    assert [{role: len(cases) for role, cases in fold.items()} for fold in folds] == [
        {"train": 2, "val": 3, "unlabeled": 7}
    ] * 3
    expected = "3 fold(s), each with 2 labeled, 7 unlabeled and 3 validation cases (seed 5)."
    assert capsys.readouterr().out.strip().endswith(expected)


def test_split_keeps_a_file_unless_forced(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert split() == 0
    first = read(folders)
    assert split("--seed", "1") == 2
    assert "splits_final.json exists" in capsys.readouterr().err
    assert read(folders) == first
    assert split("--seed", "1", "--force") == 0
    assert read(folders) != first


def test_split_keeps_what_folds_were_trained_with(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw, preprocessed = folders / "nnUNet_raw" / NAME, folders / "nnUNet_preprocessed" / NAME
    preprocessed.mkdir(parents=True)
    conversion = json.dumps([{"train": CASES[1:], "val": CASES[:1]}])
    for folder in (raw, preprocessed):
        (folder / "splits_final.json").write_text(conversion, encoding="utf-8")
    results = folders / "nnUNet_results" / NAME / "DualCLTrainer__nnUNetPlans__3d_fullres"
    for fold, file in (("fold_all", "checkpoint_final.pth"), ("fold_0", "training_log.txt")):
        (results / fold).mkdir(parents=True)
        (results / fold / file).touch()
    assert split() == 0  # nothing was trained with it
    assert "Note" not in capsys.readouterr().err
    for folder in (raw, preprocessed):
        (folder / "splits_final.json").write_text(conversion, encoding="utf-8")
    (results / "fold_0" / "checkpoint_best.pth").touch()
    assert split() == 2
    assert "splits_final.json exists and may belong to finished trainings" in capsys.readouterr().err
    assert (raw / "splits_final.json").read_text(encoding="utf-8") == conversion
    assert split("--force") == 0
    assert f"Note: {results.name}/fold_0 of {folders}" in capsys.readouterr().err


def test_split_keeps_patients_together_and_leaves_out_the_excluded(folders: Path) -> None:
    lines = [f"{case},p{number // 2}" for number, case in enumerate(CASES)]
    (folders / "g.csv").write_text("\n".join(lines), encoding="utf-8")
    (folders / "test.txt").write_text("case_03\ncase_10\n", encoding="utf-8")
    assert split("--groups", str(folders / "g.csv"), "--exclude", str(folders / "test.txt"), "--val", "1") == 0
    left = set(CASES) - {"case_02", "case_03", "case_10", "case_11"}
    for fold in read(folders):
        assert (len(fold["train"]), len(fold["val"]), len(fold["unlabeled"])) == (4, 2, 2)
        assert set(fold["train"] + fold["val"] + fold["unlabeled"]) == left


def test_split_refuses_unlabeled_scans_of_excluded_patients(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [f"{case},p{number}" for number, case in enumerate(CASES)]
    (folders / "g.csv").write_text("\n".join([*lines, "more,p3", "new,p99"]), encoding="utf-8")
    (folders / "test.txt").write_text(f"{CASES[3]}\n", encoding="utf-8")
    unlabeled = folders / "nnUNet_raw" / NAME / "imagesUnlabeled"
    unlabeled.mkdir()
    for case in ("more", "new"):
        (unlabeled / f"{case}_0000.nii.gz").touch()
    assert split("--groups", str(folders / "g.csv"), "--exclude", str(folders / "test.txt"), "--val", "1") == 2
    assert "scans of excluded patients, and training would see them: more." in capsys.readouterr().err


def test_split_says_whose_scans_are_among_the_test_images_too(
    folders: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [f"{case},p{number // 2}" for number, case in enumerate(CASES)]
    (folders / "g.csv").write_text("\n".join([*lines, "more,p9", "t1,p1", "t2,p9", "t3,p99"]), encoding="utf-8")
    raw = folders / "nnUNet_raw" / NAME
    for folder, cases in (("imagesTs", ("t1", "t2", "t3")), ("imagesUnlabeled", ("more",))):
        (raw / folder).mkdir()
        for case in cases:
            (raw / folder / f"{case}_0000.nii.gz").touch()
    assert split("--groups", str(folders / "g.csv")) == 0
    assert "patients of imagesTs are trained or validated on with case_02, case_03, more. " in capsys.readouterr().err
    (raw / "imagesUnlabeled" / "more_0000.nii.gz").unlink()
    (folders / "test.txt").write_text("case_02", encoding="utf-8")
    assert split("--groups", str(folders / "g.csv"), "--exclude", str(folders / "test.txt"), "--force") == 0
    assert capsys.readouterr().err == ""


def test_split_knows_the_patients_of_a_conversion(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = folders / "nnUNet_raw" / NAME
    (raw / "conversion").mkdir()
    lines = ["case,patient", *(f"{case},p{number // 2}" for number, case in enumerate(CASES))]
    (raw / "conversion" / "patients.csv").write_text("\n".join([*lines, "more,p8", "new,p9"]), encoding="utf-8")
    assert split("--val", "1") == 0
    assert "(seed 0, whole patients)." in capsys.readouterr().out
    assert all(len(fold["val"]) == 2 for fold in read(folders))
    patient = CASES.index(read(folders)[0]["val"][0]) // 2
    (raw / "imagesUnlabeled").mkdir()
    for case in ("more", "new"):
        (raw / "imagesUnlabeled" / f"{case}_0000.nii.gz").touch()
    assert split("--val", "1", "--force") == 0
    assert "(and 2 in imagesUnlabeled)" in capsys.readouterr().out
    # a patient with further scans that are trained on is not validated on
    text = (raw / "conversion" / "patients.csv").read_text(encoding="utf-8")
    (raw / "conversion" / "patients.csv").write_text(text.replace("more,p8", f"more,p{patient}"), encoding="utf-8")
    assert split("--val", "1", "--force") == 0
    assert all({CASES.index(case) // 2 for case in fold["val"]} != {patient} for fold in read(folders))
    assert split("--val", "5", "--labeled", "1", "--force") == 0
    capsys.readouterr()
    (raw / "conversion" / "patients.csv").write_text(
        text.replace("more,p8", f"more,p{patient}").replace("new,p9", f"new,p{(patient + 1) % 6}"), encoding="utf-8"
    )
    assert split("--val", "5", "--labeled", "1", "--force") == 2
    assert "5 groups are to be validated on, and only 4 of 6 have no further unlabeled scans" in capsys.readouterr().err
    (raw / "imagesUnlabeled" / "unknown_0000.nii.gz").touch()
    assert split("--val", "1", "--force") == 2
    assert "No group given for unknown. Every case, unlabeled ones too, needs one line" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--val", "11"], "2 labeled and 11 validation out of 12 cases: too many"),
        (["--groups", "absent.csv"], "Cannot read the groups file absent.csv: No such file"),
        (["--exclude", "absent.txt"], "Cannot read the list of excluded cases absent.txt: No such file"),
        (["-d", "322"], "Dataset 322: found none"),
        (["-d", "Dataset322_B"], "Dataset322_B/dataset.json does not exist. Convert the dataset"),
    ],
)
def test_split_faults(folders: Path, argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert split(*argv) == 2
    error = capsys.readouterr().err
    assert error.startswith("dualcl: error: ")
    assert message in error
    assert not (folders / "nnUNet_preprocessed").exists()


def test_a_dataset_json_with_a_comma_too_many_is_named_with_the_place(
    folders: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folders / "nnUNet_raw" / NAME / "dataset.json").write_text('{"file_ending": ".nii.gz",\n}', encoding="utf-8")
    assert split() == 2
    assert re.search(r"dataset\.json is no valid JSON: .* line [12] column .* Mend it", capsys.readouterr().err)


# ---- preprocess, and how faults leave the command


@pytest.mark.parametrize("failed", [{}, {"u1": "/data/u1_0000.nii.gz: unreadable"}])
def test_preprocess_passes_its_flags_on_and_reports(
    failed: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = []

    def preprocess(*arguments: Any, **options: Any) -> PreprocessReport:
        calls.append((arguments, options))
        return PreprocessReport(Path("/somewhere"), done=["u0", "u2", "u3"], skipped=["u4"], failed=failed)

    monkeypatch.setattr("nnunet_dualcl.preprocessing.preprocess_dataset", preprocess)
    assert main(["preprocess", "-d", "321", "-c", "2d", "-p", "myPlans", "-np", "3", "--force"]) == bool(failed)
    assert calls == [(("321", "2d", "myPlans"), {"num_processes": 3, "force": True})]
    shown = capsys.readouterr()
    assert "/somewhere" in shown.out
    assert all(fault in shown.err for fault in failed.values())
    main(["preprocess", "-d", NAME])
    assert calls[1] == ((NAME, "3d_fullres", "nnUNetPlans"), {"num_processes": 4, "force": False})


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (DualCLError("put it there"), 2, "dualcl: error: put it there\n"),
        (
            OSError(30, "Read-only file system", "/data/x"),
            2,
            "dualcl: error: /data/x: Read-only file system. Make it readable, or its folder writable.\n",
        ),
        (KeyboardInterrupt(), 130, "dualcl: interrupted; finished files are complete, repeat the command to go on.\n"),
    ],
)
def test_exit_codes_of_faults(
    error: BaseException,
    code: int,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("nnunet_dualcl.preprocessing.preprocess_dataset", raising(error))
    assert main(["preprocess", "-d", "321"]) == code
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("", message)


@pytest.mark.parametrize("error", [ZeroDivisionError("a bug"), FileNotFoundError(2, "a bug", "/data/x")])
def test_a_fault_of_ours_keeps_its_traceback(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nnunet_dualcl.preprocessing.preprocess_dataset", raising(error))
    with pytest.raises(type(error), match="a bug"):
        main(["preprocess", "-d", "321"])


def raising(error: BaseException) -> Callable[..., None]:
    def function(*_: Any, **__: Any) -> None:
        raise error

    return function


# ---- train and predict: nnU-Net's own entry points

ENTRIES = {
    "train": "nnunetv2.run.run_training.run_training_entry",
    "predict": "nnunetv2.inference.predict_from_raw_data.predict_entry_point",
}


class Entry:
    """Stands in for one of nnU-Net's entry points and keeps what it would have seen."""

    def __init__(self) -> None:
        self.seen: list[tuple[list[str], str | None, str | None]] = []
        self.error: BaseException | None = None

    def __call__(self) -> None:
        self.seen.append((list(sys.argv), os.environ.get("nnUNet_extTrainer"), os.environ.get("DUALCL_CONFIG")))
        if self.error is not None:
            raise self.error


@pytest.fixture(params=list(ENTRIES))
def command(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def entry(command: str, monkeypatch: pytest.MonkeyPatch) -> Entry:
    entry = Entry()
    monkeypatch.setattr(ENTRIES[command], entry)
    monkeypatch.setattr(f"nnunet_dualcl.cli.main.check_{command}", lambda arguments, **_: None)
    monkeypatch.delenv("nnUNet_extTrainer", raising=False)
    monkeypatch.delenv("DUALCL_CONFIG", raising=False)
    return entry


@pytest.mark.parametrize(
    "arguments",
    [
        ["321", "3d_fullres", "0"],
        ["-d", "321", "-f", "all", "--disable_tta"],
        ["321", "2d", "1", "--c", "-num_gpus", "1"],
    ],
)
def test_arguments_pass_through_with_our_trainer_as_default(command: str, entry: Entry, arguments: list[str]) -> None:
    before = list(sys.argv)
    assert main([command, *arguments]) == 0
    ((argv, trainers, config),) = entry.seen
    assert argv == [f"dualcl {command}", *arguments, "-tr", "DualCLTrainer"]
    assert (trainers, config) == (str(trainers_folder()), None)
    assert sys.argv == before
    assert not {"nnUNet_extTrainer", "DUALCL_CONFIG"} & set(os.environ)


@pytest.mark.parametrize("named", [["-tr", "nnUNetTrainer"], ["-tr=nnUNetTrainer"]])
def test_a_trainer_named_by_the_user_stays(command: str, entry: Entry, named: list[str]) -> None:
    assert main([command, *named, "321"]) == 0
    assert entry.seen[0][0][1:] == [*named, "321"]


def test_trainer_folders_of_others_stay_and_come_back(
    command: str, entry: Entry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("nnUNet_extTrainer", "/others")
    entry.error = DualCLError("in the middle")
    before = list(sys.argv)
    assert main([command, "321"]) == 2
    assert entry.seen[0][1] == os.pathsep.join([str(trainers_folder()), "/others"])
    assert os.environ["nnUNet_extTrainer"] == "/others"
    assert sys.argv == before


def test_an_interrupt_of_nnunet_exits_with_130_and_says_how_to_go_on(
    command: str, entry: Entry, capsys: pytest.CaptureFixture[str]
) -> None:
    entry.error = KeyboardInterrupt()
    assert main([command, "321"]) == 130
    flag = {"train": "--c", "predict": "--continue_prediction"}[command]
    assert f"go on with the same command and {flag}" in capsys.readouterr().err
    assert "nnUNet_extTrainer" not in os.environ


@pytest.mark.parametrize("command", ["train"])
def test_the_configuration_is_named_for_the_length_of_the_training(
    entry: Entry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "c.yaml").write_text("seed: 3\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    for flags in (["--config", "c.yaml"], ["--config=c.yaml"]):
        assert main(["train", "321", *flags, "3d_fullres", "0"]) == 0
        argv, _, config = entry.seen.pop()
        assert argv[1:] == ["321", "3d_fullres", "0", "-tr", "DualCLTrainer"]
        assert config == str(tmp_path / "c.yaml")  # absolute: processes started by the training may run elsewhere
        assert "DUALCL_CONFIG" not in os.environ
    monkeypatch.setenv("DUALCL_CONFIG", "/from/the/shell.yaml")
    main(["train", "321", "--config", "c.yaml"])
    main(["train", "321"])
    assert [config for *_, config in entry.seen] == [str(tmp_path / "c.yaml"), "/from/the/shell.yaml"]
    assert os.environ["DUALCL_CONFIG"] == "/from/the/shell.yaml"


def test_help_is_nnunets_own(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match=r"^0$"):
        main(["train", "-h"])
    shown = capsys.readouterr().out
    assert shown.startswith("dualcl train takes --config FILE")
    assert "usage: dualcl train" in shown
    assert "--disable_checkpointing" in shown


# ---- doctor and export


def test_benchmarks_are_refused_on_windows(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.platform", "win32")
    assert main(["benchmark", "protocol.yaml", "-o", str(tmp_path / "out")]) == 2
    assert "dualcl benchmark runs on Linux and macOS. Use the Windows Subsystem for Linux" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_doctor_counts_the_faults(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from nnunet_dualcl.cli.doctor import Finding

    findings = [Finding("ok", "good"), Finding("note", "look", "maybe"), Finding("fault", "bad", "mend it")]
    monkeypatch.setattr("nnunet_dualcl.cli.doctor.diagnose", lambda: iter(findings))
    assert main(["doctor"]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "[ok   ] good",
        "[note ] look",
        "        fix: maybe",
        "[fault] bad",
        "        fix: mend it",
        "1 fault(s) found.",
    ]
    del findings[2]
    assert main(["doctor"]) == 0
    assert capsys.readouterr().out.endswith("No fault found.\n")


def test_export_finds_the_model_by_nnunets_names(
    folders: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = []

    def export(*arguments: Any, **options: Any) -> list[str]:
        calls.append((arguments, options))
        return ["fold_0", "fold_1"]

    monkeypatch.setattr("nnunet_dualcl.export.export_stock_model", export)
    monkeypatch.setattr("nnunet_dualcl.model_folder.averaged", lambda checkpoint: None)
    assert main(["export", "-d", "321", "-p", "myPlans", "-f", "0", "1", "-o", "stock"]) == 0
    model = folders / "nnUNet_results" / NAME / "DualCLTrainer__myPlans__3d_fullres"
    options = {"folds": ["0", "1"], "checkpoint_name": "checkpoint_final.pth", "network": "a"}
    assert calls == [((model, Path("stock")), options)]
    assert "nnUNetv2_predict_from_modelfolder -m stock -f 0 1 -i INPUT -o OUTPUT" in capsys.readouterr().out
    assert main(["export", "-d", "321", "-p", "myPlans", "-o", "a model.zip"]) == 0
    told = capsys.readouterr().out
    assert "nnUNetv2_install_pretrained_model_from_zip 'a model.zip'" in told
    assert f"nnUNetv2_predict -d {NAME} -p myPlans -c 3d_fullres -f 0 1 -i INPUT -o OUTPUT" in told
