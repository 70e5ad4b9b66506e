from __future__ import annotations

import inspect
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from nnunetv2.inference import predict_from_raw_data
from nnunetv2.run import run_training

from nnunet_dualcl.cli import preflight
from nnunet_dualcl.cli.main import main
from nnunet_dualcl.cli.preflight import check_predict, check_train
from nnunet_dualcl.data.plans import preprocess_command
from nnunet_dualcl.errors import DualCLError

TRAIN = ["777", "3d_fullres", "0", "-p", "toyPlans", "-device", "cpu"]
PREDICT = ["-i", "in", "-o", "out", "-d", "777", "-c", "3d_fullres", "-p", "toyPlans", "-f", "0", "-device", "cpu"]


@pytest.fixture
def fold(toy: Any) -> Path:
    """Folder of a finished training."""
    fold: Path = toy.results / toy.raw.name / "DualCLTrainer__toyPlans__3d_fullres" / "fold_0"
    fold.mkdir(parents=True)
    for name, copied in (("toyPlans.json", "plans.json"), ("dataset.json", "dataset.json")):
        shutil.copy(toy.preprocessed / name, fold.parent / copied)
    dataset_json = json.loads((fold.parent / "dataset.json").read_text(encoding="utf-8"))
    init_args = {"plans": toy.plans(), "configuration": "3d_fullres", "dataset_json": dataset_json}
    torch.save({"init_args": init_args}, fold / "checkpoint_final.pth")
    return fold


def predict_from(folder: Path) -> list[str]:
    return [str(folder) if word == "in" else word for word in PREDICT]


def test_a_sound_command_line_passes(toy: Any, request: pytest.FixtureRequest) -> None:
    check_train(TRAIN)
    check_train(["-num_gpus", "1", "--npz", *TRAIN])
    request.getfixturevalue("fold")
    check_predict(predict_from(toy.raw / "imagesTr"))
    check_train(["--c", *TRAIN])
    check_train([*TRAIN, "--val", "--npz"])


def test_a_training_is_not_begun_anew_over_another(fold: Path) -> None:
    with pytest.raises(DualCLError, match=r"fold_0 holds a training \(checkpoint_final\.pth\), .* by --c, .* by --val"):
        check_train(TRAIN)
    check_train([word if word != "0" else "1" for word in TRAIN])


@pytest.mark.parametrize(
    "arguments",
    [
        ["777", "3d_fullres", "-p", "toyPlans", "0", "-device", "cpu"],
        ["777", "-p", "toyPlans", "3d_fullres", "-device", "cpu", "0"],
        ["777", "--npz", "3d_fullres", "--val_best", "0", "-p", "toyPlans", "-num_gpus", "1", "-device", "cpu"],
    ],
)
def test_flags_may_stand_between_dataset_configuration_and_fold(fold: Path, arguments: list[str]) -> None:
    with pytest.raises(DualCLError, match="holds a training"):
        check_train(arguments)


@pytest.mark.parametrize("entry", [run_training.run_training_entry, predict_from_raw_data.predict_entry_point])
def test_no_option_of_nnunet_is_taken_for_another_one(entry: Any) -> None:
    """To argparse, -part_id 0 is -p art_id where it does not know the longer name."""
    options = set(re.findall(r"add_argument\(['\"](-[^-][^'\"]*)['\"]", inspect.getsource(entry)))
    assert {"-p", "-tr", "-device"} < options
    parser = preflight._parser()
    for flag in ("-d", "-c", "-f", "-chk"):
        parser.add_argument(flag)
    for option in sorted(options):
        parsed = preflight._parsed(parser, [option, "value"])
        changed = {name for name, value in vars(parsed).items() if value == "value"}
        assert changed == {option.lstrip("-")}


def test_every_switch_of_nnunets_training_is_known(fold: Path) -> None:
    """One that is not would part dataset, configuration and fold, and nothing would be checked."""
    switches = re.findall(r"add_argument\(['\"](--[^'\"]*)['\"]", inspect.getsource(run_training.run_training_entry))
    assert "--npz" in switches
    for switch in set(switches) - {"--c", "--val"}:
        with pytest.raises(DualCLError, match="holds a training"):
            check_train(["777", switch, "3d_fullres", "0", "-p", "toyPlans", "-device", "cpu"])


def test_images_that_nnunet_would_fall_over_are_named(fold: Path, toy: Any, tmp_path: Path) -> None:
    folder = tmp_path / "in putt"
    with pytest.raises(DualCLError, match=r"-i .*in putt is no folder"):
        check_predict(predict_from(folder))
    folder.mkdir()
    with pytest.raises(DualCLError, match=r"in putt must hold images named CASE_0000\..*; found none"):
        check_predict(predict_from(folder))
    for name in ("tr_0.nii.gz", "new_0000.nii", "._tr_0_0000.nii.gz"):
        shutil.rmtree(folder)
        shutil.copytree(toy.raw / "imagesTr", folder)
        (folder / name).touch()
        with pytest.raises(DualCLError, match=rf"for a second channel; found {re.escape(name)}\. Rename them"):
            check_predict(predict_from(folder))


def test_an_image_that_is_cut_off_is_not_predicted(fold: Path, toy: Any, tmp_path: Path) -> None:
    images = shutil.copytree(toy.raw / "imagesTr", tmp_path / "input")
    image = sorted(images.iterdir())[1]
    image.write_bytes(image.read_bytes()[: image.stat().st_size // 2])
    with pytest.raises(DualCLError, match=rf"{image.name}: .*(damaged|truncated)"):
        check_predict(predict_from(images))


@pytest.mark.parametrize("raw_is_there", [True, False])
def test_a_case_without_all_channels_is_named(fold: Path, toy: Any, tmp_path: Path, raw_is_there: bool) -> None:
    images = shutil.copytree(toy.raw / "imagesTr", tmp_path / "input")
    if not raw_is_there:
        shutil.rmtree(toy.raw)
    (images / "notes.txt").touch()
    (images / "tr_0_0000.nii.gz").unlink()
    whose = "those of the dataset" if raw_is_there else "other cases"
    message = (
        rf"input: tr_0 \(1\) with other than 2 image .* {whose} have\. The model takes 2 channel\(s\): T1, T2\. Add"
    )
    with pytest.raises(DualCLError, match=message):
        check_predict(predict_from(images))


@pytest.mark.parametrize(("count", "names"), [(1, "RGB"), (2, "RGBrgb")])
@pytest.mark.parametrize("raw_is_there", [True, False])
def test_a_file_may_hold_several_channels_as_in_training(
    fold: Path, toy: Any, tmp_path: Path, count: int, names: str, raw_is_there: bool
) -> None:
    content = json.loads((fold.parent / "dataset.json").read_text(encoding="utf-8"))
    content["channel_names"] = dict(enumerate(names))
    (fold.parent / "dataset.json").write_text(json.dumps(content), encoding="utf-8")
    checkpoint = torch.load(fold / "checkpoint_final.pth", weights_only=False)
    checkpoint["init_args"]["dataset_json"] = content
    torch.save(checkpoint, fold / "checkpoint_final.pth")
    images = toy.raw / "imagesTr" if raw_is_there else tmp_path / "input"
    if not raw_is_there:
        (toy.raw / "imagesTr").rename(images)
    for image in images.glob("*_0001.nii.gz") if count == 1 else ():
        image.unlink()
    check_predict(predict_from(images))
    (tmp_path / "other").mkdir()
    for channel in range(count + 1):
        (tmp_path / "other" / f"new_{channel:04d}.nii.gz").touch()
    if raw_is_there:
        with pytest.raises(DualCLError, match=rf"other: new \({count + 1}\) with other than {count} image file\(s\)"):
            check_predict(predict_from(tmp_path / "other"))


def test_a_misspelled_trainer_is_refused_with_the_right_name(toy: Any) -> None:
    with pytest.raises(DualCLError, match=r"no trainer DualClTrainer\. Did you mean DualCLTrainer\? .*CPSTrainer"):
        check_train([*TRAIN, "-tr", "DualClTrainer"])
    check_train([*TRAIN, "-tr", "nnUNetTrainerNoMirroring"])


@pytest.mark.parametrize(
    "arguments", [[], ["777"], ["777", "3d_fullres"], ["777", "3d_fullres", "0", "-p"], ["-d", "777", "-c"]]
)
def test_what_nnunets_parser_will_refuse_is_left_to_it(arguments: list[str]) -> None:
    check_train(arguments)
    check_predict(arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("777", "40"), "Dataset 40: found none. .* There are: Dataset777_Toy"),
        (
            ("toyPlans", "otherPlans"),
            r"No plans at .*otherPlans\.json; found toyPlans\. Run nnUNetv2_plan_and_preprocess",
        ),
        (("3d_fullres", "3d_lowres"), "hold no configuration '3d_lowres'. Choose one of: 3d_fullres, 2d"),
    ],
)
def test_a_wrong_name_lists_the_right_ones(
    toy: Any, change: tuple[str, str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *(change[1] if word == change[0] else word for word in TRAIN)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("dualcl: error: ")
    assert re.search(message, error), error


def test_a_configuration_that_the_trainer_would_not_read_is_refused(
    toy: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for trainer in ("nnUNetTrainer", "nnUNetTrainerNoMirroring"):
        assert main(["train", *TRAIN, "-tr", trainer, "--config", str(tmp_path / "c.yaml")]) == 2
        assert f"{trainer} does not read it" in capsys.readouterr().err
    check_train([*TRAIN, "-tr", "MeanTeacherTrainer"], with_config=True)


def test_trainers_of_ones_own_folder_are_suggested_and_read_a_configuration_if_built_on_ours(
    toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bases = {"PlainTrainer": "nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer",
             "FixMatchTrainer": "nnunet_dualcl.trainers.DualCLTrainer import DualCLTrainer"}  # fmt: skip
    for name, base in bases.items():
        code = f"from {base}\n\n\nclass {name}({base.split()[-1]}):\n    pass\n"
        (tmp_path / f"{name}.py").write_text(code, encoding="utf-8")
    monkeypatch.setenv("nnUNet_extTrainer", str(tmp_path))
    with pytest.raises(DualCLError, match=r"no trainer FixmatchTrainer\. Did you mean FixMatchTrainer\?"):
        check_train([*TRAIN, "-tr", "FixmatchTrainer"])
    check_train([*TRAIN, "-tr", "FixMatchTrainer"], with_config=True)
    check_train([*TRAIN, "-tr", "PlainTrainer"])
    with pytest.raises(DualCLError, match="PlainTrainer does not read it"):
        check_train([*TRAIN, "-tr", "PlainTrainer"], with_config=True)


def test_files_that_are_no_plans_do_not_hide_the_message(toy: Any) -> None:
    (toy.preprocessed / "._toyPlans.json").write_bytes(b"\x00\x05\x16\xff")
    (toy.preprocessed / "broken.json").write_bytes(b"\xff{")
    with pytest.raises(DualCLError, match=r"No plans at .*otherPlans\.json; found toyPlans\."):
        check_train([word if word != "toyPlans" else "otherPlans" for word in TRAIN])


def test_labeled_cases_that_are_not_preprocessed_are_named_with_the_command(toy: Any) -> None:
    shutil.rmtree(toy.preprocessed / "toyPlans_3d_fullres")
    with pytest.raises(DualCLError, match="nnUNetv2_preprocess -d 777 -plans_name toyPlans -c 3d_fullres"):
        check_train(TRAIN)
    assert not list(toy.results.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["x7"], "Fold 'x7' is neither a number nor all"),
        (["00"], r"fold_0 holds a training"),
        (["9", "--val"], r"fold_9 holds no finished training .* Train this fold first, without --val"),
        (["1", "--val"], r"fold_1 holds no finished training .* Finish it with --c"),
        (["0", "--c", "--val"], "--c goes on with a training, --val validates a finished one"),
    ],
)
def test_what_nnunet_would_end_in_a_traceback(fold: Path, arguments: list[str], message: str) -> None:
    (fold.parent / "fold_1").mkdir()
    (fold.parent / "fold_1" / "checkpoint_latest.pth").touch()
    with pytest.raises(DualCLError, match=message):
        check_train([*TRAIN[:2], *arguments, *TRAIN[3:]])


def test_results_that_cannot_be_made_are_said_before_training(toy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnUNet_results", str(toy.preprocessed / "dataset.json" / "results"))
    with pytest.raises(DualCLError, match=r"nnUNet_results=.* cannot be made: .* Set it to a folder of yours"):
        check_train(TRAIN)


def test_folds_that_do_not_go_together_are_refused(fold: Path, toy: Any) -> None:
    other = torch.load(fold / "checkpoint_final.pth", weights_only=False)
    other["inference_allowed_mirroring_axes"] = (0, 1, 2)
    (fold.parent / "fold_1").mkdir()
    torch.save(other, fold.parent / "fold_1" / "checkpoint_final.pth")
    arguments = predict_from(toy.raw / "imagesTr")
    check_predict(arguments)
    arguments.insert(arguments.index("-f") + 1, "1")
    with pytest.raises(DualCLError, match="with mirroring of axes"):
        check_predict(arguments)


def test_an_unset_variable_is_named(toy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("nnUNet_results")
    for check, arguments in ((check_train, TRAIN), (check_predict, PREDICT)):
        with pytest.raises(DualCLError, match="export nnUNet_results="):
            check(arguments)


def test_a_fold_that_was_not_trained_is_named(toy: Any) -> None:
    with pytest.raises(DualCLError, match=r"holds no trained model .*Check -d, -c, -p and -tr"):
        check_predict(PREDICT)
    model = toy.results / toy.raw.name / "DualCLTrainer__toyPlans__3d_fullres"
    model.mkdir(parents=True)
    (model / "plans.json").touch()
    with pytest.raises(DualCLError, match=r"fold_0/checkpoint_final\.pth does not exist"):
        check_predict(PREDICT)


def test_a_missing_gpu_is_said_before_anything_starts(toy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DualCLError, match=r"No CUDA device here\. Add -device cpu"):
        check_train(TRAIN[:-2])


@pytest.mark.parametrize("name", ["Dataset007_Bone", "Dataset007-Bone", "Dataset007Bone", "7"])
def test_the_command_for_labeled_cases_takes_nnunets_number(name: str) -> None:
    assert preprocess_command(name, "p", "2d") == "nnUNetv2_preprocess -d 7 -plans_name p -c 2d"
