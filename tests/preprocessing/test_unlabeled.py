import errno
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_dualcl.data.cases import unlabeled_case_images
from nnunet_dualcl.errors import DualCLError
from nnunet_dualcl.preprocessing import ensure_unlabeled, preprocess_dataset, preprocess_unlabeled

NAME = "Dataset321_Lopsided"
FOLDER = "lopsidedPlans_3d_fullres_unlabeled"
DATASET_JSON = {
    "channel_names": {"0": "CT", "1": "PET"},
    "labels": {"background": 0, "organ": 1},
    "numTraining": 3,
    "file_ending": ".nii.gz",
}
STATISTICS = {"mean": 2.0, "std": 1.5, "percentile_00_5": 0.1, "percentile_99_5": 6.0, "min": 0.0, "max": 7.0}


def make_plans() -> dict[str, Any]:
    """Plans that crop, transpose, normalize each channel in its own way, and resample."""
    resampling = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
    configuration = {
        "data_identifier": "lopsidedPlans_3d_fullres",
        "preprocessor_name": "DefaultPreprocessor",
        "patch_size": [8, 8, 16],
        "spacing": [1.3, 3.0, 1.1],
        "normalization_schemes": ["CTNormalization", "ZScoreNormalization"],
        "use_mask_for_norm": [False, True],
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": resampling,
        "resampling_fn_seg_kwargs": {**resampling, "is_seg": True, "order": 1},
        "architecture": {},
    }
    flat = {"data_identifier": "lopsidedPlans_2d", "patch_size": [8, 16], "spacing": [3.0, 1.1]}
    return {
        "dataset_name": NAME,
        "plans_name": "lopsidedPlans",
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [1, 0, 2],
        "transpose_backward": [1, 0, 2],
        "foreground_intensity_properties_per_channel": {"0": STATISTICS, "1": STATISTICS},
        "configurations": {"3d_fullres": configuration, "2d": {"inherits_from": "3d_fullres", **flat}},
    }


def write_image(path: Path, array: np.ndarray) -> None:
    image = sitk.GetImageFromArray(array.astype(np.float32))
    image.SetSpacing((0.8, 0.9, 2.5))
    image.SetOrigin((-12.0, 7.5, 31.0))
    image.SetDirection((0.8, -0.6, 0.0, 0.6, 0.8, 0.0, 0.0, 0.0, 1.0))
    sitk.WriteImage(image, str(path))


def write_case(folder: Path, case: str, seed: int, change: Callable[[np.ndarray], Any] | None = None) -> None:
    """Two channels of a lopsided scan inside a border of zeros, which cropping removes."""
    rng = np.random.default_rng(seed)
    arrays = rng.gamma(2.0, 1.0, (2, 10 + seed % 3, 20 - seed % 4, 30 + seed % 5))
    arrays[:, :, :3] = 0
    arrays[:, :, :, -4:] = 0
    if change is not None:
        arrays = arrays if (changed := change(arrays)) is None else changed
    folder.mkdir(parents=True, exist_ok=True)
    for channel, array in enumerate(arrays):
        write_image(folder / f"{case}_{channel:04d}.nii.gz", array)


@pytest.fixture
def raw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two labeled-looking cases, one of them listed as unlabeled, and three unlabeled ones; no label exists."""
    raw, preprocessed = tmp_path / "raw" / NAME, tmp_path / "preprocessed" / NAME
    for seed, case in enumerate(("lab", "listed")):
        write_case(raw / "imagesTr", case, seed)
    for seed, case in enumerate(("u0", "u1", "u2"), 10):
        write_case(raw / "imagesUnlabeled", case, seed)
    preprocessed.mkdir(parents=True)
    splits = [{"train": ["lab"], "val": ["held_out"], "unlabeled": ["listed"]}]
    for path, content in (
        (raw / "dataset.json", DATASET_JSON),
        (preprocessed / "dataset.json", DATASET_JSON),
        (preprocessed / "lopsidedPlans.json", make_plans()),
        (preprocessed / "splits_final.json", splits),
    ):
        path.write_text(json.dumps(content), encoding="utf-8")
    monkeypatch.setenv("nnUNet_raw", str(raw.parent))
    monkeypatch.setenv("nnUNet_preprocessed", str(preprocessed.parent))
    monkeypatch.delenv("nnUNet_results", raising=False)
    return raw


@pytest.fixture
def preprocessed(raw: Path, tmp_path: Path) -> Path:
    return tmp_path / "preprocessed" / NAME


def run(dataset: str | int = 321, **options: Any) -> Any:
    """``preprocess_dataset`` in this process."""
    options = {"num_processes": 1, "show_progress": False, **options}
    return preprocess_dataset(dataset, options.pop("configuration", "3d_fullres"), "lopsidedPlans", **options)


def ensure(preprocessed: Path, fold: int | str = 0, plans: dict[str, Any] | None = None) -> tuple[Path, list[str]]:
    return ensure_unlabeled(plans or make_plans(), "3d_fullres", DATASET_JSON, preprocessed, fold, num_processes=1)


def contents(folder: Path) -> dict[str, tuple[Any, ...]]:
    """What is stored of each case; the files' bytes depend on the order in which blosc2's threads finish."""
    stored = nnUNetDatasetBlosc2(str(folder))
    cases = {case: stored.load_case(case) for case in stored.identifiers}
    return {case: (data[:].tobytes(), mask[:].tobytes(), known) for case, (data, mask, _, known) in cases.items()}


def times(folder: Path, files: str) -> set[int]:
    return {path.stat().st_mtime_ns for path in folder.glob(f"{files}*")}


def set_split(preprocessed: Path, **split: list[str]) -> None:
    (preprocessed / "splits_final.json").write_text(json.dumps([split]), encoding="utf-8")


# ---- the result


@pytest.mark.parametrize("configuration", ["3d_fullres", "2d"])
def test_the_output_is_nnunets_own_bit_for_bit(raw: Path, preprocessed: Path, configuration: str) -> None:
    report = run(configuration=configuration)
    assert report.folder == preprocessed / f"lopsidedPlans_{configuration}_unlabeled"
    assert (report.done, report.skipped, report.failed) == (["listed", "u0", "u1", "u2"], [], {})
    stored = nnUNetDatasetBlosc2(str(report.folder))
    assert stored.identifiers == report.done
    manager = PlansManager(make_plans())
    for case, files in unlabeled_case_images(raw, DATASET_JSON, ["listed"]).items():
        data, mask, properties = DefaultPreprocessor(verbose=False).run_case(
            [str(path) for path in files], None, manager, manager.get_configuration(configuration), DATASET_JSON
        )
        found_data, found_mask, _, found_properties = stored.load_case(case)
        assert found_data.dtype == np.float32
        np.testing.assert_array_equal(found_data[:], data)
        np.testing.assert_array_equal(found_mask[:], mask)
        made_of = found_properties.pop("dualcl_images")
        assert [image["name"] for image in made_of] == [path.name for path in files]
        assert found_properties == properties
        assert data.shape[1:] != sitk.GetArrayFromImage(sitk.ReadImage(str(files[0]))).shape  # it did resample


def test_no_label_is_read(raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a label was read")

    monkeypatch.setattr(SimpleITKIO, "read_seg", refuse)
    (raw / "labelsTr").mkdir()
    for case in ("lab", "listed", "u0"):
        (raw / "labelsTr" / f"{case}.nii.gz").write_bytes(b"garbage")
    report = run()
    assert len(report.done) == 4
    for case in report.done:
        *_, properties = nnUNetDatasetBlosc2(str(report.folder)).load_case(case)
        assert "class_locations" not in properties


def test_every_folds_unlabeled_cases_are_done(preprocessed: Path) -> None:
    folds = [{"train": ["lab"], "val": ["v"], "unlabeled": ["listed"]}, {"train": ["listed"], "val": ["v"]}]
    folds.append({"train": ["listed"], "val": ["v"], "unlabeled": ["lab"]})
    (preprocessed / "splits_final.json").write_text(json.dumps(folds), encoding="utf-8")
    assert run().done == ["lab", "listed", "u0", "u1", "u2"]


def test_without_a_split_file_the_unlabeled_folder_is_done(preprocessed: Path) -> None:
    (preprocessed / "splits_final.json").unlink()
    assert run(NAME).done == ["u0", "u1", "u2"]


@pytest.mark.slow
def test_two_processes_give_what_one_gives(raw: Path) -> None:
    (raw / "imagesUnlabeled" / "u1_0000.nii.gz").write_bytes(b"garbage")
    serial = run()
    expected = contents(serial.folder)
    shutil.rmtree(serial.folder)
    assert run(num_processes=2) == serial
    assert contents(serial.folder) == expected
    assert list(serial.failed) == ["u1"]


# ---- resuming and redoing


def test_a_second_call_skips_what_is_complete_and_redoes_the_rest(preprocessed: Path) -> None:
    folder = run().folder
    first = contents(folder)
    (folder / "u1.pkl").unlink()  # as after an interrupt: properties come last
    kept = times(folder, "u0")
    report = run()
    assert (report.done, report.skipped) == (["u1"], ["listed", "u0", "u2"])
    assert times(folder, "u0") == kept
    assert contents(folder) == first


def test_force_redoes_every_case(preprocessed: Path) -> None:
    folder = run().folder
    first, before = contents(folder), times(folder, "u2")
    report = run(force=True)
    assert (len(report.done), report.skipped) == (4, [])
    assert not times(folder, "u2") & before
    assert contents(folder) == first


def test_a_case_whose_images_changed_is_done_anew(raw: Path, preprocessed: Path) -> None:
    folder = ensure(preprocessed)[0]
    before, kept = contents(folder), times(folder, "u0*.b2nd")
    image = raw / "imagesUnlabeled" / "u0_0000.nii.gz"
    os.utime(image, ns=(1, 1))  # copied, with the same content
    ensure(preprocessed)
    assert times(folder, "u0*.b2nd") == kept
    write_case(raw / "imagesUnlabeled", "u1", 99)
    ensure(preprocessed)
    assert times(folder, "u0*.b2nd") == kept
    assert [case for case, stored in contents(folder).items() if stored[:2] != before[case][:2]] == ["u1"]
    assert run().skipped == ["listed", "u0", "u1", "u2"]


def test_what_a_killed_process_left_goes_after_a_day(preprocessed: Path) -> None:
    folder = preprocessed / FOLDER
    for name in (".u0.partial-old", ".u0.partial-new"):
        (folder / name).mkdir(parents=True)
        (folder / name / "u0.b2nd").touch()
    (folder / ".stamp.partial-old.json").touch()
    for name in (".u0.partial-old", ".stamp.partial-old.json"):
        os.utime(folder / name, (0, 0))
    run()
    assert [path.name for path in folder.glob(".*")] == [".u0.partial-new"]  # another process may be writing it


def test_a_case_that_fails_when_redone_is_no_longer_in_use(raw: Path, preprocessed: Path) -> None:
    folder = run().folder
    (raw / "imagesUnlabeled" / "u1_0001.nii.gz").write_bytes(b"garbage")
    assert list(run(force=True).failed) == ["u1"]
    assert not (folder / "u1.pkl").exists()
    assert list(run().failed) == ["u1"]


def test_an_interrupt_keeps_finished_cases_and_leaves_no_partial_one(
    preprocessed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, calls = DefaultPreprocessor.run_case_npy, []

    def interrupted(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt("third case")
        return original(*arguments)

    monkeypatch.setattr(DefaultPreprocessor, "run_case_npy", interrupted)
    with pytest.raises(KeyboardInterrupt, match="third case"):
        run()
    folder = preprocessed / FOLDER
    finished = {path.stem for path in folder.glob("*.pkl")}
    assert len(finished) == 2
    assert not list(folder.glob(".*"))
    assert len(list(folder.iterdir())) == 7  # three files a case, and the stamp
    assert set(run().done) == {"listed", "u0", "u1", "u2"} - finished


def test_a_process_killed_between_two_files_of_a_case_leaves_it_unfinished(
    preprocessed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, moved = os.replace, []

    def killed(source: Any, target: Any) -> None:
        moved.append(Path(target).name.startswith("u0"))
        if sum(moved) == 3:
            raise KeyboardInterrupt("third file")
        original(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt, match="third file"):
            run()
    assert [path.name for path in sorted((preprocessed / FOLDER).glob("u0*"))] == ["u0.b2nd", "u0_seg.b2nd"]
    assert "u0" in run().done


def test_another_training_may_start_at_the_same_time(preprocessed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run()

    def other_is_faster(properties: Path, _: list[Path]) -> bool:
        properties.unlink()
        return True

    monkeypatch.setattr("nnunet_dualcl.preprocessing.unlabeled.changed", other_is_faster)
    assert run().done == ["listed", "u0", "u1", "u2"]


def test_cases_that_another_training_finishes_meanwhile_are_left_alone(
    preprocessed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be reading their files already."""
    original, finished = DefaultPreprocessor.run_case_npy, []

    def another_finishes_all(*arguments: Any) -> Any:
        with monkeypatch.context() as patch:
            patch.setattr(DefaultPreprocessor, "run_case_npy", original)
            finished.append({case: times(preprocessed / FOLDER, case) for case in run().done})
        return original(*arguments)

    monkeypatch.setattr(DefaultPreprocessor, "run_case_npy", another_finishes_all)
    assert run().done == ["listed", "u0", "u1", "u2"]
    (before,) = finished  # the cases after the first were not begun
    assert {case: times(preprocessed / FOLDER, case) for case in before} == before


def test_plans_that_share_the_labeled_folder_share_the_unlabeled_one(preprocessed: Path) -> None:
    done = run().done
    plans = make_plans()
    plans["configurations"]["3d_fullres"]["patch_size"] = [16, 8, 16]  # as ResEnc presets have it
    (preprocessed / "lopsidedPlans.json").write_text(json.dumps(plans), encoding="utf-8")
    assert run().skipped == done
    ensure(preprocessed, plans=plans)


def test_a_folder_of_other_plans_is_refused_until_forced(preprocessed: Path) -> None:
    folder = run().folder
    plans = make_plans()
    plans["configurations"]["3d_fullres"]["spacing"] = [1.3, 2.0, 1.1]
    (preprocessed / "lopsidedPlans.json").write_text(json.dumps(plans), encoding="utf-8")
    with pytest.raises(DualCLError, match=f"{FOLDER} was made with other plans: they differ in spacing. .*--force"):
        run()
    with pytest.raises(DualCLError, match="was made with other plans"):
        ensure(preprocessed, plans=plans)
    before = contents(folder)
    assert len(run(force=True).done) == 4
    assert contents(folder)["u0"] != before["u0"]
    assert ensure(preprocessed, plans=plans)[1] == ["listed", "u0", "u1", "u2"]


def test_an_interrupted_change_of_plans_leaves_no_case_of_the_old_ones(
    preprocessed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = run().folder
    plans = make_plans()
    plans["configurations"]["3d_fullres"]["normalization_schemes"] = ["ZScoreNormalization"] * 2
    (preprocessed / "lopsidedPlans.json").write_text(json.dumps(plans), encoding="utf-8")
    set_split(preprocessed, train=["lab"], val=["v"])  # "listed" is not redone

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt("first case")

    with monkeypatch.context() as patch:
        patch.setattr(DefaultPreprocessor, "run_case_npy", interrupted)
        with pytest.raises(KeyboardInterrupt, match="first case"):
            run(force=True)
    assert list(folder.glob("*.pkl")) == []
    assert run().done == ["u0", "u1", "u2"]


@pytest.mark.parametrize(
    ("key", "value"),
    [("batch_size", 7), ("architecture", {"features": 8}), ("data_identifier", "lopsidedPlans_3d_fullres")],
)
def test_plans_that_differ_in_the_network_only_share_the_folder(preprocessed: Path, key: str, value: Any) -> None:
    run()
    plans = make_plans()
    plans["configurations"]["3d_fullres"][key] = value
    (preprocessed / "lopsidedPlans.json").write_text(json.dumps(plans), encoding="utf-8")
    assert len(run().skipped) == 4


# ---- faults in single cases


def set_voxels(value: float) -> Callable[[np.ndarray], None]:
    def change(arrays: np.ndarray) -> None:
        arrays[1, 4, 9, 11:14] = value

    return change


@pytest.fixture(params=["NibabelIO", "SimpleITKIO"])
def reader_plans(preprocessed: Path, request: pytest.FixtureRequest) -> dict[str, Any]:
    """Plans of a reader that shows NaN and inf as they are, and of one that hands out 0 for them."""
    plans = {**make_plans(), "image_reader_writer": request.param}
    (preprocessed / "lopsidedPlans.json").write_text(json.dumps(plans), encoding="utf-8")
    return plans


@pytest.mark.usefixtures("reader_plans")
def test_faulty_cases_are_reported_and_the_others_done(raw: Path) -> None:
    folder = raw / "imagesUnlabeled"
    write_case(folder, "nan", 20, set_voxels(np.nan))
    write_case(folder, "inf", 21, set_voxels(-np.inf))
    write_case(folder, "slice", 22, lambda arrays: arrays[:, :1])
    write_case(folder, "flat", 25, lambda arrays: np.full_like(arrays, 7))
    write_case(folder, "garbage", 23)
    (folder / "garbage_0001.nii.gz").write_bytes(b"no image")
    write_case(folder, "mixed", 24)
    write_image(folder / "mixed_0001.nii.gz", np.ones((9, 8, 7)))
    report = run()
    assert report.done == ["listed", "u0", "u1", "u2"]
    assert set(report.failed) == {"nan", "inf", "slice", "flat", "garbage", "mixed"}
    assert report.failed["flat"].endswith("all voxels have the same value, so it shows nothing; take it out")
    assert report.failed["nan"].endswith("3 voxels are NaN or infinite; mend the image or take it out")
    assert report.failed["inf"].endswith("3 voxels are NaN or infinite; mend the image or take it out")
    assert "a single slice (shape (1, 18, 32)) among 3D images; take it out or use a 2d" in report.failed["slice"]
    assert "Not all input images have the same shape" in report.failed["mixed"]
    assert any(word in report.failed["garbage"] for word in ("gzip", "read", "file"))
    for case, fault in report.failed.items():
        assert fault.startswith(f"{folder / f'{case}_0000.nii.gz'}, {folder / f'{case}_0001.nii.gz'}: ")
    endings = (".b2nd", ".pkl", "_seg.b2nd")
    expected = {f"{case}{ending}" for case in report.done for ending in endings} | {"dualcl_preprocessed.json"}
    assert {path.name for path in report.folder.iterdir()} == expected


def test_a_channel_that_all_cases_lack_is_missed_when_they_are_read(raw: Path) -> None:
    shutil.rmtree(raw / "imagesTr")
    set_split(raw.parents[1] / "preprocessed" / NAME, train=["lab"], val=["held_out"])
    for image in (raw / "imagesUnlabeled").glob("*_0001.nii.gz"):
        image.unlink()
    failed = run().failed
    assert sorted(failed) == ["u0", "u1", "u2"]
    assert failed["u1"].endswith("1 channels in these files, dataset.json names 2; add what is missing")


def test_several_channels_in_one_file_are_a_fault(raw: Path) -> None:
    image = sitk.GetImageFromArray(np.ones((9, 8, 7), np.float32))
    for channel in range(2):
        name = f"four_{channel:04d}.nii.gz"
        sitk.WriteImage(sitk.JoinSeries([image, image]), str(raw / "imagesUnlabeled" / name))
    message = "4 channels in these files, dataset.json names 2; split 4D images into one file a channel"
    assert run().failed["four"].endswith(message)


def test_a_single_slice_is_no_fault_in_2d(raw: Path) -> None:
    write_case(raw / "imagesUnlabeled", "slice", 22, lambda arrays: arrays[:, :1])
    assert "slice" in run(configuration="2d").done


# ---- faults in what was asked for


def test_an_unknown_configuration_names_those_that_exist(raw: Path, preprocessed: Path) -> None:
    cases = unlabeled_case_images(raw, DATASET_JSON, [])
    with pytest.raises(DualCLError, match=r"lopsidedPlans hold no configuration '3d_lowres'\. .*: 3d_fullres, 2d\."):
        preprocess_unlabeled(cases, make_plans(), "3d_lowres", DATASET_JSON, preprocessed, num_processes=1)
    assert not list(preprocessed.glob("*_unlabeled"))


def test_missing_plans_name_those_that_exist(preprocessed: Path) -> None:
    with pytest.raises(DualCLError, match=r"No plans at .*/nnUNetPlans\.json; found lopsidedPlans\. Run nnUNetv2_plan"):
        preprocess_dataset(321, "3d_fullres", num_processes=1)
    (preprocessed / "lopsidedPlans.json").unlink()
    with pytest.raises(DualCLError, match=r"No plans at .*; found none\."):
        run()


def test_a_case_with_two_roles_is_refused_with_file_and_fold(preprocessed: Path) -> None:
    set_split(preprocessed, train=["lab"], val=["u1"], unlabeled=["listed"])
    message = r"splits_final\.json, fold 0: u1 listed as unlabeled and as a validation case"
    with pytest.raises(DualCLError, match=message):
        run()
    with pytest.raises(DualCLError, match=message):
        ensure(preprocessed)
    assert not (preprocessed / FOLDER).exists()


def test_no_unlabeled_case_at_all(raw: Path, preprocessed: Path) -> None:
    shutil.rmtree(raw / "imagesUnlabeled")
    set_split(preprocessed, train=["lab"], val=["listed"])
    message = f"No unlabeled case for {NAME}. Put images .*imagesUnlabeled.*dualcl split writes it.* -tr nnUNetTrainer"
    with pytest.raises(DualCLError, match=message):
        run()
    with pytest.raises(DualCLError, match=message):
        ensure(preprocessed)


# ---- at the start of a training


def test_ensure_preprocesses_what_is_missing_and_names_the_folds_cases(preprocessed: Path) -> None:
    folder, names = ensure(preprocessed)
    assert (folder, names) == (preprocessed / FOLDER, ["listed", "u0", "u1", "u2"])
    assert nnUNetDatasetBlosc2(str(folder)).identifiers == names
    kept = times(folder, "[lu]")
    assert ensure(preprocessed) == (folder, names)
    assert times(folder, "[lu]") == kept


def test_processes_go_through_the_cases_in_orders_of_their_own(
    preprocessed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Folds that start together would do the same case at the same time, each all of them."""
    orders: list[list[str]] = []

    def none_done(_: Any, cases: dict[str, list[Path]], processes: int) -> list[Any]:
        orders.append(list(cases))
        return []

    monkeypatch.setattr("nnunet_dualcl.preprocessing.unlabeled.results", none_done)
    cases = {f"u{number:02d}": [] for number in range(40)}
    for _ in range(2):
        random.seed(7)  # as trainings are
        preprocess_unlabeled(cases, make_plans(), "3d_fullres", DATASET_JSON, preprocessed, num_processes=1)
    assert orders[0] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1]) == list(cases)


def test_a_case_that_is_done_anew_stays_in_use_until_the_new_one_is_there(
    raw: Path, preprocessed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another training may be reading it."""
    folder = ensure(preprocessed)[0]
    original, seen = DefaultPreprocessor.run_case_npy, []

    def looks(*arguments: Any) -> Any:
        seen.append((folder / "u1.pkl").is_file())
        return original(*arguments)

    monkeypatch.setattr(DefaultPreprocessor, "run_case_npy", looks)
    write_case(raw / "imagesUnlabeled", "u1", 99)
    ensure(preprocessed)
    ensure(preprocessed)  # which has nothing to do
    assert seen == [True]


# ---- the disk


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ESTALE])
def test_a_fault_of_the_disk_stops_at_once(preprocessed: Path, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    original, begun = DefaultPreprocessor.run_case_save, []

    def second_fails(*arguments: Any) -> Any:
        begun.append(1)
        if len(begun) == 2:
            raise OSError(number, os.strerror(number))
        return original(*arguments)

    monkeypatch.setattr(DefaultPreprocessor, "run_case_save", second_fails)
    with pytest.raises(DualCLError, match=rf"{FOLDER} cannot be written .*{os.strerror(number)}.*\(1 cases now\)"):
        ensure(preprocessed)
    assert len(begun) == 2


def test_a_full_disk_is_found_where_the_writer_does_not_say_so(
    preprocessed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def fails(*_: Any) -> None:
        raise RuntimeError("Error while creating the NDArray")

    monkeypatch.setattr(DefaultPreprocessor, "run_case_save", fails)
    assert set(run().failed) == {"listed", "u0", "u1", "u2"}
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(DualCLError, match="No space left on device"):
        run()


@pytest.mark.parametrize("free", [3 * 2**30, 2**30])
def test_the_disk_space_for_many_cases_is_told_and_asked_for_beforehand(
    preprocessed: Path, free: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    labeled = preprocessed / "lopsidedPlans_3d_fullres"
    labeled.mkdir()
    for name in ("a.b2nd", "a_seg.b2nd", "a.pkl", "b.b2nd", "b.pkl"):
        with (labeled / name).open("wb") as stream:
            stream.truncate(2 * 2**20 if name.endswith(".b2nd") else 0)  # 3 MiB a case
    unlabeled = "nnunet_dualcl.preprocessing.unlabeled"
    monkeypatch.setattr(f"{unlabeled}.shutil.disk_usage", lambda _: SimpleNamespace(free=free))
    monkeypatch.setattr(f"{unlabeled}.results", lambda *_: [])
    cases: dict[str, list[Path]] = {f"u{number}": [] for number in range(683)}

    def start(**options: Any) -> None:
        preprocess_unlabeled(cases, make_plans(), "3d_fullres", DATASET_JSON, preprocessed, num_processes=1, **options)

    if free == 2**30:
        with pytest.raises(
            DualCLError, match=f"{FOLDER}: 683 new unlabeled cases need about 2.0 GiB, 1.0 GiB are free"
        ):
            start()
        for case in list(cases)[:400]:  # done before, as with --force
            (preprocessed / FOLDER / f"{case}.b2nd").touch()
        start()
        assert "283 new unlabeled cases need about 0.8 GiB" in capsys.readouterr().out
        return
    start()
    assert "need about 2.0 GiB, 3.0 GiB are free" in (said := capsys.readouterr().out)
    assert "GPU" not in said
    start(beforehand="dualcl preprocess -d 321")
    assert "dualcl preprocess -d 321, run before the training" in capsys.readouterr().out


def test_a_training_that_prepares_many_cases_names_the_command_for_it(
    raw: Path, preprocessed: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nnunet_dualcl.preprocessing.unlabeled._MANY", 4)
    ensure(preprocessed)
    assert "dualcl preprocess -d 321 -p lopsidedPlans -c 3d_fullres, run before" in capsys.readouterr().out
    ensure(preprocessed)
    assert "dualcl preprocess" not in capsys.readouterr().out


def test_ensure_takes_a_folds_own_cases_only(preprocessed: Path) -> None:
    run()
    assert ensure(preprocessed, "all")[1] == ["u0", "u1", "u2"]
    assert ensure(preprocessed, 4)[1] == ["u0", "u1", "u2"]  # a fold the file does not hold


def test_ensure_refuses_a_faulty_case_by_name(raw: Path, preprocessed: Path, reader_plans: dict[str, Any]) -> None:
    write_case(raw / "imagesUnlabeled", "nan", 20, set_voxels(np.nan))
    with pytest.raises(DualCLError, match=r"cannot be used: nan \(.*3 voxels are NaN or infinite.*\)\. Mend them"):
        ensure(preprocessed, plans=reader_plans)


def test_a_finished_folder_may_be_read_only(preprocessed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    done = ensure(preprocessed)
    monkeypatch.setattr("nnunet_dualcl.preprocessing.unlabeled.write_text", refuse)
    assert ensure(preprocessed) == done
    stamp = done[0] / "dualcl_preprocessed.json"
    older = json.loads(stamp.read_text(encoding="utf-8"))
    del older["reader"]  # that earlier versions did not note
    stamp.write_text(json.dumps(older), encoding="utf-8")
    assert ensure(preprocessed) == done


def test_fold_all_leaves_lists_aside_and_says_so(raw: Path, preprocessed: Path) -> None:
    shutil.rmtree(raw / "imagesUnlabeled")
    with pytest.raises(DualCLError, match=r"in fold all, which trains on every label .* Train a numbered fold"):
        ensure(preprocessed, "all")


@pytest.mark.parametrize("away", [["imagesUnlabeled"], ["imagesTr"], ["imagesTr", "imagesUnlabeled"]])
def test_where_a_folder_of_images_is_not_at_hand_what_is_preprocessed_is_used(
    raw: Path, preprocessed: Path, away: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    done = ensure(preprocessed)
    for name in away:
        shutil.rmtree(raw / name)
    assert ensure(preprocessed) == done
    capsys.readouterr()
    assert ensure(preprocessed) == done  # the first call without that folder has not forgotten its cases
    count = {"imagesUnlabeled": 3, "imagesTr": 1}
    assert f"Images of {sum(map(count.get, away))} unlabeled cases are not at {raw}" in capsys.readouterr().out
    (preprocessed / FOLDER / "listed.pkl").unlink()
    if "imagesTr" in away:
        with pytest.raises(DualCLError, match="listed"):
            ensure(preprocessed)


def test_images_that_dataset_json_lists_elsewhere_are_at_hand(
    raw: Path, preprocessed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (raw / "imagesTr").rename(raw / "archive")
    listed = {"listed": {"images": [f"archive/listed_{channel:04d}.nii.gz" for channel in range(2)]}}
    content = {**DATASET_JSON, "dataset": listed}
    for _ in range(2):
        done = ensure_unlabeled(make_plans(), "3d_fullres", content, preprocessed, 0, num_processes=1)
        assert done == (preprocessed / FOLDER, ["listed", "u0", "u1", "u2"])
    assert "are not at" not in capsys.readouterr().out


@pytest.fixture(params=["unset", "elsewhere"])
def without_raw(request: pytest.FixtureRequest, preprocessed: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """All cases preprocessed, labeled ones included, and the raw data gone; the preprocessed dataset's folder."""
    folder = run().folder
    labeled = preprocessed / "lopsidedPlans_3d_fullres"
    labeled.mkdir()
    for case in ("lab", "listed"):
        shutil.copy(folder / "listed.pkl", labeled / f"{case}.pkl")
    if request.param == "unset":
        monkeypatch.delenv("nnUNet_raw")
    else:
        monkeypatch.setenv("nnUNet_raw", "/nowhere")
    return preprocessed


def test_ensure_without_raw_data_uses_what_is_preprocessed(without_raw: Path) -> None:
    assert ensure(without_raw) == (without_raw / FOLDER, ["listed", "u0", "u1", "u2"])
    set_split(without_raw, train=["listed"], val=["lab"])  # now labeled, though preprocessed as unlabeled too
    assert ensure(without_raw)[1] == ["u0", "u1", "u2"]


def test_a_preprocessed_dataset_in_the_present_directory_is_not_taken_for_raw_data(
    without_raw: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(without_raw.parent)
    assert ensure(without_raw) == (without_raw / FOLDER, ["listed", "u0", "u1", "u2"])
    assert "are not at" not in capsys.readouterr().out
    (without_raw / FOLDER / "listed.pkl").unlink()
    with pytest.raises(DualCLError, match=f"{FOLDER} holds no preprocessed images of listed, .*Run dualcl preprocess"):
        ensure(without_raw)


def test_a_scan_taken_out_of_the_folder_does_not_come_back_without_raw_data(
    raw: Path, preprocessed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run()
    for image in (raw / "imagesUnlabeled").glob("u1_*"):
        image.unlink()
    assert ensure(preprocessed)[1] == ["listed", "u0", "u2"]
    monkeypatch.delenv("nnUNet_raw")
    assert ensure(preprocessed)[1] == ["listed", "u0", "u2"]


def test_ensure_without_raw_data_names_what_is_missing(without_raw: Path) -> None:
    (without_raw / FOLDER / "listed.pkl").unlink()
    with pytest.raises(DualCLError, match=f"{FOLDER} holds no preprocessed images of listed, .*Run dualcl preprocess"):
        ensure(without_raw)
    shutil.rmtree(without_raw / FOLDER)
    set_split(without_raw, train=["lab"], val=["listed"])
    with pytest.raises(DualCLError, match=f"{FOLDER} holds no preprocessed images of unlabeled cases, .*nnUNet_raw="):
        ensure(without_raw)


def test_ensure_without_raw_data_refuses_two_roles_and_other_plans(without_raw: Path) -> None:
    plans = make_plans()
    plans["transpose_forward"] = [0, 1, 2]
    with pytest.raises(DualCLError, match="was made with other plans"):
        ensure(without_raw, plans=plans)
    set_split(without_raw, train=["u2"], val=["lab"], unlabeled=["listed"])
    with pytest.raises(DualCLError, match=r"u2 listed as unlabeled and as a labeled training case \('train'\)"):
        ensure(without_raw)


@pytest.mark.parametrize("split", [{}, {"train": ["u2"], "val": ["lab"]}, {"train": ["lab"], "val": ["u2"]}])
def test_a_scan_that_got_its_label_is_not_unlabeled_where_raw_data_are_not_at_hand(
    without_raw: Path, split: dict[str, list[str]]
) -> None:
    labeled = without_raw / "lopsidedPlans_3d_fullres"
    shutil.copy(labeled / "lab.pkl", labeled / "u2.pkl")
    (without_raw / "splits_final.json").unlink()
    if split:
        set_split(without_raw, **split)
    assert ensure(without_raw)[1] == ["u0", "u1"]
    set_split(without_raw, train=["listed"], val=["lab"], unlabeled=["u2"])
    assert ensure(without_raw)[1] == ["u0", "u1", "u2"]


def test_scans_of_validation_patients_are_refused_before_they_are_preprocessed(
    raw: Path, preprocessed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    patients = raw / "conversion" / "patients.csv"
    patients.parent.mkdir()
    rows = {"lab": "p1", "listed": "p2", "held_out": "p3", "u0": "p1", "u1": "p3", "u2": "p4"}
    patients.write_text("".join(f"{case},{patient}\n" for case, patient in rows.items()), encoding="utf-8")
    with pytest.raises(DualCLError, match=r"patients\.csv: unlabeled scans are of validation patients, .*: u1\. Move"):
        ensure(preprocessed)
    assert not (preprocessed / FOLDER).exists()
    assert ensure(preprocessed, fold="all")[1] == ["u0", "u1", "u2"]  # which holds no patient out
    set_split(preprocessed, train=["lab", "held_out"], val=["held_out"])  # nor does this
    assert ensure(preprocessed)[1] == ["u0", "u1", "u2"]
    set_split(preprocessed, train=["lab"], val=["held_out"], unlabeled=["listed"])
    for image in (raw / "imagesUnlabeled").glob("u1_*"):
        image.unlink()
    capsys.readouterr()
    assert ensure(preprocessed)[1] == ["listed", "u0", "u2"]
    assert "has no line" not in capsys.readouterr().out
    del rows["u2"]
    patients.write_text("".join(f"{case},{patient}\n" for case, patient in rows.items()), encoding="utf-8")
    assert ensure(preprocessed)[1] == ["listed", "u0", "u2"]
    assert f"{patients} has no line for 1 unlabeled case(s): u2. Whether their" in capsys.readouterr().out
