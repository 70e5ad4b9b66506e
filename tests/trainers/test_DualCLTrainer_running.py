"""`dualcl train` through nnU-Net's own entry point: validation, continuing, W&B, refusals."""

import csv
import json
import re
import shutil
from collections.abc import Callable
from multiprocessing.pool import ThreadPool
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nnunetv2.run.run_training  # noqa: F401 - imported with nnU-Net's own number of processes, which `train` changes
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nnunetv2.evaluation.find_best_configuration import find_best_configuration
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_dualcl.cli.main import main
from nnunet_dualcl.errors import DualCLError
from nnunet_dualcl.layout import TERM_LOG_FILE
from nnunet_dualcl.trainers.DualCLTrainer import DualCLTrainer
from nnunet_dualcl.training import SemiSupervisedLoss

TERMS, OBSERVATIONS = SemiSupervisedLoss.terms, SemiSupervisedLoss.observations
SHORT = {"num_epochs": 2, "num_iterations_per_epoch": 2, "num_val_iterations_per_epoch": 1, "contrastive_samples": 64}
Train = Callable[..., int]


@pytest.fixture
def train(toy: Any, configure: Any, monkeypatch: pytest.MonkeyPatch) -> Train:
    """`dualcl train` on fold 0 of the toy dataset, without processes for unlabeled cases."""
    configure(**SHORT)
    monkeypatch.setattr("nnunetv2.configuration.default_num_processes", 1)
    one_thread = SimpleNamespace(cpu_count=lambda: 1)  # with more, tensors this small take longer
    monkeypatch.setattr("nnunetv2.run.run_training.multiprocessing", one_thread)
    return lambda *flags: main(["train", "777", "3d_fullres", "0", "-p", "toyPlans", "-device", "cpu", *flags])


@pytest.fixture
def fold(toy: Any) -> Path:
    return Path(toy.results) / toy.raw.name / "DualCLTrainer__toyPlans__3d_fullres" / "fold_0"


@pytest.fixture
def without_validation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nnUNetTrainer, "perform_actual_validation", lambda *_: None)


def use_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """For nnU-Net's validation, instead of processes, each of which would import torch anew."""
    stand_in = SimpleNamespace(get_context=lambda _: SimpleNamespace(Pool=ThreadPool))
    modules = ("training.nnUNetTrainer.nnUNetTrainer", "evaluation.evaluate_predictions", "ensembling.ensemble")
    for module in (*modules, "postprocessing.remove_connected_components"):
        monkeypatch.setattr(f"nnunetv2.{module}.multiprocessing", stand_in)


def count_calls(monkeypatch: pytest.MonkeyPatch, name: str) -> list[Any]:
    """First arguments of every call of a method of nnU-Net's trainer, from now on."""
    original, calls = getattr(nnUNetTrainer, name), []

    def counted(self: Any, *arguments: Any) -> Any:
        calls.append(arguments[0] if arguments else None)
        return original(self, *arguments)

    monkeypatch.setattr(nnUNetTrainer, name, counted)
    return calls


def validation_dice(fold: Path) -> dict[str, Any]:
    summary = json.loads((fold / "validation" / "summary.json").read_text(encoding="utf-8"))
    assert [Path(case["prediction_file"]).name for case in summary["metric_per_case"]] == ["val_0.nii.gz"]
    return {label: metrics["Dice"] for label, metrics in summary["mean"].items()}


def test_validation_with_probabilities_alone_and_of_the_best(
    train: Train, fold: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert train("--npz") == 0  # with nnU-Net's processes
    first = validation_dice(fold)
    assert set(first) == {"1", "2"}
    with np.load(fold / "validation" / "val_0.npz") as stored:
        probabilities = stored["probabilities"]
    segmentation = sitk.GetArrayFromImage(sitk.ReadImage(str(fold / "validation" / "val_0.nii.gz")))
    assert probabilities.shape == (3, *segmentation.shape)
    assert probabilities.sum(0) == pytest.approx(1, abs=1e-3)
    assert np.array_equal(probabilities.argmax(0), segmentation)

    use_threads(monkeypatch)
    monkeypatch.delenv("DUALCL_CONFIG")  # the configuration comes from the checkpoint
    trained, loaded = count_calls(monkeypatch, "train_step"), count_calls(monkeypatch, "load_checkpoint")
    for flags, checkpoints in (
        (["--val"], ["checkpoint_final.pth"]),
        (["--val", "--val_best"], ["checkpoint_final.pth", "checkpoint_best.pth"]),
    ):
        shutil.rmtree(fold / "validation")
        loaded.clear()
        assert train(*flags) == 0
        assert [Path(file).name for file in loaded] == checkpoints
        dice = validation_dice(fold)
        assert dice == pytest.approx(first) if flags == ["--val"] else set(dice) == {"1", "2"}
        assert not list((fold / "validation").glob("*.npz"))
    assert trained == []


def test_cross_validation_finds_the_best_configuration(
    toy: Any, configure: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(**{**SHORT, "num_epochs": 1})
    use_threads(monkeypatch)
    cases = sorted(path.name.removesuffix(".nii.gz") for path in (toy.raw / "labelsTr").iterdir())
    folds = [{"train": cases[1::2], "val": cases[::2]}, {"train": cases[::2], "val": cases[1::2]}]
    (toy.preprocessed / "splits_final.json").write_text(json.dumps(folds), encoding="utf-8")
    for configuration in ("2d", "3d_fullres"):
        for number in range(len(folds)):
            trainer = toy.trainer(DualCLTrainer, configuration, fold=number)
            trainer.run_training()
            trainer.perform_actual_validation(save_probabilities=True)
    model = {"plans": "toyPlans", "trainer": "DualCLTrainer"}
    models = [{**model, "configuration": configuration} for configuration in ("2d", "3d_fullres")]
    find_best_configuration(777, models, num_processes=1, folds=(0, 1))
    results = toy.results / toy.raw.name
    found = json.loads((results / "inference_information.json").read_text(encoding="utf-8"))
    single = {f"DualCLTrainer__toyPlans__{configuration}" for configuration in ("2d", "3d_fullres")}
    assert single < set(found["all_results"])
    assert len(found["all_results"]) == 3  # and the ensemble of both
    best = max(found["all_results"].values())
    assert found["best_model_or_ensemble"]["result_on_crossval_pre_pp"] == best
    assert Path(found["best_model_or_ensemble"]["postprocessing_file"]).is_file()
    for model in single:
        written = sorted(path.name for path in (results / model / "crossval_results_folds_0_1").glob("*.nii.gz"))
        assert written == [f"{case}.nii.gz" for case in cases]


@pytest.mark.usefixtures("without_validation")
def test_an_interrupted_training_continues(train: Train, fold: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = nnUNetTrainer.on_epoch_end

    def stop(self: Any) -> None:
        self.save_every = 1
        original(self)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(nnUNetTrainer, "on_epoch_end", stop)
        assert train() == 130
    assert sorted(path.name for path in fold.glob("*.pth")) == ["checkpoint_best.pth", "checkpoint_latest.pth"]
    steps, loaded = count_calls(monkeypatch, "train_step"), count_calls(monkeypatch, "load_checkpoint")
    assert train("--c") == 0
    assert [Path(file).name for file in loaded] == ["checkpoint_latest.pth"]
    assert len(steps) == SHORT["num_iterations_per_epoch"]
    assert [row["epoch"] for row in csv.DictReader((fold / TERM_LOG_FILE).open())] == ["0", "1"]
    logged = torch.load(fold / "checkpoint_final.pth", map_location="cpu", weights_only=False)["logging"]
    assert {len(values) for values in logged.values()} == {2}


@pytest.mark.parametrize(("minutes", "saved"), [(15, True), (0, False)])
def test_the_latest_checkpoint_is_saved_by_the_clock_too(
    train: Train, fold: Path, minutes: int, saved: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By nnU-Net's count alone, a job that is stopped in each 50 epochs starts over and over."""
    start, end = nnUNetTrainer.on_train_epoch_start, nnUNetTrainer.on_epoch_end

    def older(self: Any) -> None:
        start(self)
        self._saved_latest -= 60 * minutes

    def stop(self: Any) -> None:
        end(self)
        raise KeyboardInterrupt

    monkeypatch.setattr(nnUNetTrainer, "on_train_epoch_start", older)
    monkeypatch.setattr(nnUNetTrainer, "on_epoch_end", stop)
    assert train() == 130
    assert (fold / "checkpoint_latest.pth").is_file() == saved


# ---- another split, other plans, another process


def split(toy: Any, **roles: list[str]) -> None:
    """Change roles of fold 0."""
    path = toy.preprocessed / "splits_final.json"
    fold = {**json.loads(path.read_text(encoding="utf-8"))[0], **roles}
    path.write_text(json.dumps([fold]), encoding="utf-8")


def as_after_a_kill(fold: Path) -> None:
    """In the second epoch of a training that was finished."""
    checkpoint = torch.load(fold / "checkpoint_final.pth", map_location="cpu", weights_only=False)
    (fold / "checkpoint_final.pth").unlink()
    torch.save({**checkpoint, "current_epoch": 1}, fold / "checkpoint_latest.pth")


@pytest.mark.usefixtures("without_validation")
@pytest.mark.parametrize("drawn_by", ["user", "nnU-Net"])
def test_a_training_does_not_go_on_toward_a_validation_of_what_it_saw(
    toy: Any,
    train: Train,
    fold: Path,
    drawn_by: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert train() == 0
    as_after_a_kill(fold)
    if drawn_by == "user":
        split(toy, train=["lab_0", "val_0"], val=["lab_1"])
        shutil.rmtree(toy.preprocessed / "toyPlans_3d_fullres_unlabeled")
    else:
        (toy.preprocessed / "splits_final.json").unlink()
    steps = count_calls(monkeypatch, "train_step")
    assert train("--c") == 2
    assert "as validation of fold 0, and the training of that fold saw" in capsys.readouterr().err
    assert steps == []
    if drawn_by == "user":
        assert not (toy.preprocessed / "toyPlans_3d_fullres_unlabeled").exists()  # which may take hours


def test_what_a_training_saw_is_not_validated_after_another_split(
    toy: Any, train: Train, fold: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use_threads(monkeypatch)
    assert train() == 0
    first = validation_dice(fold)
    saved = torch.load(fold / "checkpoint_final.pth", map_location="cpu", weights_only=False)["dualcl"]["seen"]
    assert saved == ["lab_0", "lab_1", "lab_2", "tr_0", "tr_1", "unl_0", "unl_1"]
    swapped: list[dict[str, list[str]]] = [
        {"train": ["lab_0", "lab_1", "val_0"], "val": ["lab_2"]},
        {"val": ["val_0", "tr_0"], "unlabeled": ["tr_1"]},
    ]
    for roles in swapped:
        split(toy, **roles)
        for flag in ("--val", "--c"):
            assert train(flag) == 2
            assert f"lists {roles['val'][-1]} as validation of fold 0, and the training" in capsys.readouterr().err
        split(toy, train=["lab_0", "lab_1", "lab_2"], val=["val_0"], unlabeled=["tr_0", "tr_1"])
    assert validation_dice(fold) == first
    split(toy, val=["another"])
    assert train("--val") == 2
    assert "validation holds val_0, no validation case of this fold now" in capsys.readouterr().err


@pytest.mark.usefixtures("without_validation")
def test_a_training_that_goes_on_with_other_cases_says_so_and_counts_all(
    toy: Any, train: Train, configure: Any, fold: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    split(toy, train=["lab_0", "lab_1"])
    assert train() == 0
    as_after_a_kill(fold)
    split(toy, train=["lab_0", "lab_2"])
    capsys.readouterr()
    assert train("--c") == 0
    expected = "goes on with other cases than it has seen: 1 new (lab_2), 1 no longer there (lab_1)."
    assert expected in capsys.readouterr().out
    saved = torch.load(fold / "checkpoint_final.pth", map_location="cpu", weights_only=False)["dualcl"]["seen"]
    assert {"lab_0", "lab_1", "lab_2"} < set(saved)


@pytest.mark.usefixtures("without_validation")
def test_a_case_that_was_not_preprocessed_stops_before_training(
    toy: Any, train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    split(toy, val=["val_0", "nosuch"])
    assert train() == 2
    command = "nnUNetv2_preprocess -d 777 -plans_name toyPlans -c 3d_fullres"
    assert re.search(rf"lacks nosuch of fold 0 .* {command}", capsys.readouterr().err)


@pytest.mark.usefixtures("without_validation")
def test_one_process_trains_a_fold(
    train: Train, fold: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original, codes = nnUNetTrainer.on_epoch_end, []

    def meanwhile(self: Any) -> None:
        if not codes:
            codes.append(None)
            codes[0] = train("--c")
        original(self)

    monkeypatch.setattr(nnUNetTrainer, "on_epoch_end", meanwhile)
    assert train() == 0
    assert codes == [2]
    assert f"Another process is training in {fold}. Wait for it" in capsys.readouterr().err
    assert [row["epoch"] for row in csv.DictReader((fold / TERM_LOG_FILE).open())] == ["0", "1"]


def test_a_split_that_nnunet_draws_anew_is_checked_too(
    toy: Any, train: Train, fold: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use_threads(monkeypatch)
    assert train() == 0
    for leftover in ("validation", None):
        (toy.preprocessed / "splits_final.json").unlink()
        assert train("--val") == 2
        assert "as validation of fold 0, and the training of that fold saw" in capsys.readouterr().err
        if leftover:
            shutil.rmtree(fold / leftover)


@pytest.mark.usefixtures("without_validation")
def test_what_may_surprise_is_noted(toy: Any, train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    split(toy, val=["lab_0", "val_0"])
    for image in sorted((toy.raw / "imagesTr").glob("lab_0_*")):
        shutil.copy(image, image.with_name(image.name.replace("lab_0", "late")))
    assert train() == 0
    out = capsys.readouterr().out
    assert "Fold 0 validates on training cases, which says nothing of new ones: lab_0." in out
    assert (
        "Not preprocessed yet, and left out: late of imagesTr. Run: nnUNetv2_preprocess -d 777 -plans_name toy" in out
    )
    assert train("--c") == 0


@pytest.mark.usefixtures("without_validation")
def test_a_training_that_another_process_finished_is_not_overwritten(toy: Any, configure: Any, fold: Path) -> None:
    configure(**SHORT)
    trainer = toy.trainer(DualCLTrainer)
    trainer.initialize()
    trainer.current_epoch = 1  # as loaded from a checkpoint
    (fold / "checkpoint_final.pth").touch()
    with pytest.raises(DualCLError, match=r"checkpoint_final\.pth appeared since this training was loaded"):
        trainer.run_training()
    assert (fold / "checkpoint_final.pth").stat().st_size == 0


@pytest.mark.usefixtures("without_validation")
@pytest.mark.parametrize("flag", ["--c", "--val"])
def test_weights_are_not_loaded_for_other_plans(
    toy: Any, train: Train, flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train() == 0
    plans = toy.plans()
    plans["configurations"]["3d_fullres"]["spacing"] = [3.0, 1.0, 1.0]
    (toy.preprocessed / "toyPlans.json").write_text(json.dumps(plans), encoding="utf-8")
    assert train(flag) == 2
    expected = r"checkpoint_final\.pth was trained with other .* than .*toyPlans\.json and .* differ in spacing\. Put"
    assert re.search(expected, capsys.readouterr().err)


# ---- W&B


class Run:
    """Stands in for a run of W&B and keeps what reaches it."""

    def __init__(self) -> None:
        self.logged: list[tuple[str, int, Any]] = []
        self.config: dict[str, Any] = {}
        self.summary: dict[str, Any] = {}
        self.step = 0

    def log(self, values: dict[str, Any], step: int) -> None:
        self.logged += [(key, step, value) for key, value in values.items()]


@pytest.mark.usefixtures("without_validation")
def test_terms_reach_wandb_beside_nnunets_values(train: Train, fold: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run()
    monkeypatch.setenv("nnUNet_wandb_enabled", "1")
    monkeypatch.setattr(
        "nnunetv2.training.logging.nnunet_logger.wandb", SimpleNamespace(init=lambda **_: run), raising=False
    )
    assert train() == 0
    ours = {f"dualcl/{name}" for name in (*TERMS, *OBSERVATIONS, *(f"weight_{term}" for term in TERMS))}
    nnunets = {
        "mean_fg_dice", "ema_fg_dice", "dice_per_class_or_region/class_1", "dice_per_class_or_region/class_2",
        "train_losses", "val_losses", "lrs", "epoch_start_timestamps", "epoch_end_timestamps",
    }  # fmt: skip
    expected = ours | nnunets | {"dualcl/epoch", "dualcl/total"}
    assert sorted((key, step) for key, step, _ in run.logged) == sorted((key, e) for key in expected for e in range(2))
    values = {(key, step): value for key, step, value in run.logged}
    for row in csv.DictReader((fold / TERM_LOG_FILE).open()):
        epoch = int(row["epoch"])
        assert {name: values[f"dualcl/{name}", epoch] for name in row} == {key: float(row[key]) for key in row}
        assert values["train_losses", epoch] == pytest.approx(float(row["total"]))


# ---- refusals


def write(images: Path, case: str, array: np.ndarray, channels: int = 2) -> None:
    for channel in range(channels):
        image = sitk.GetImageFromArray(array.astype(np.float32))
        sitk.WriteImage(image, str(images / f"{case}_{channel:04d}.nii.gz"))


def one_channel(images: Path) -> None:
    write(images, "broken", np.ones((9, 17, 21)), channels=1)


def not_a_number(images: Path) -> None:
    array = np.ones((9, 17, 21))
    array[1, 2, 3] = np.nan
    write(images, "broken", array)


def one_slice(images: Path) -> None:
    write(images, "broken", np.ones((1, 17, 21)))


def flat(images: Path) -> None:
    write(images, "broken", np.ones((17, 21)))


def four_axes(images: Path) -> None:
    for channel in range(2):
        series = sitk.JoinSeries([sitk.GetImageFromArray(np.ones((9, 17, 21), np.float32))] * 3)
        sitk.WriteImage(series, str(images / f"broken_{channel:04d}.nii.gz"))


def unreadable(images: Path) -> None:
    for channel in range(2):
        (images / f"broken_{channel:04d}.nii.gz").write_bytes(b"no image")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (one_channel, "image files: broken (broken_0000.nii.gz in {images}). dataset.json names 2 channel(s): T1, T2;"),
        (four_axes, "{images}/broken_0001.nii.gz: 6 channels in these files, dataset.json names 2; split 4D images"),
        (not_a_number, "broken ({images}/broken_0000.nii.gz, {images}/broken_0001.nii.gz: 1 voxels are NaN"),
        (one_slice, "{images}/broken_0001.nii.gz: a single slice (shape (1, 17, 21)) among 3D images"),
        (flat, "{images}/broken_0001.nii.gz: a single slice (shape (1, 17, 21)) among 3D images"),
        (unreadable, "broken ({images}/broken_0000.nii.gz, {images}/broken_0001.nii.gz: "),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_an_unusable_unlabeled_image_stops_before_training(
    toy: Any,
    train: Train,
    fold: Path,
    spoil: Callable[[Path], None],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    images = toy.raw / "imagesUnlabeled"
    spoil(images)
    assert train() == 2
    error = capsys.readouterr().err
    assert "dualcl: error: " in error
    assert message.format(images=images) in error
    assert all(path.name.startswith("training") for path in fold.parent.rglob("*") if path.is_file())
    assert not list(toy.preprocessed.rglob("*broken*"))
