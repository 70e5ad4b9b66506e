import copy
import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from nnunetv2.imageio.tif_reader_writer import Tiff3DIO

from nnunet_dualcl.preprocessing.record import changed, decisive_values, identity, other_values

PLANS = {
    "image_reader_writer": "SimpleITKIO",
    "transpose_forward": [0, 1, 2],
    "foreground_intensity_properties_per_channel": {"0": {"mean": 1.5}},
}
CONFIGURATION = {
    "spacing": (2.5, 1.0, 1.0),
    "normalization_schemes": ["CTNormalization"],
    "use_mask_for_norm": [False],
    "preprocessor_name": "DefaultPreprocessor",
    "resampling_fn_data": "resample_data_or_seg_to_shape",
    "resampling_fn_data_kwargs": {"order": 3},
    "patch_size": [8, 8, 8],
}


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("image_reader_writer", "NibabelIOWithReorient", ["reader"]),
        ("spacing", (2.0, 1.0, 1.0), ["spacing"]),
        ("normalization_schemes", ["ZScoreNormalization"], ["normalization"]),
        ("use_mask_for_norm", [True], ["normalization"]),
        ("preprocessor_name", "OtherPreprocessor", ["preprocessor"]),
        ("resampling_fn_data", "resample_torch_simple", ["resampling"]),
        ("resampling_fn_data_kwargs", {"order": 1}, ["resampling"]),
        ("transpose_forward", [1, 0, 2], ["transposition"]),
        ("foreground_intensity_properties_per_channel", {"0": {"mean": 1.6}}, ["intensities"]),
        ("patch_size", [16, 8, 8], []),
    ],
)
def test_all_that_decides_what_a_case_looks_like_is_compared(
    tmp_path: Path, key: str, value: Any, named: list[str]
) -> None:
    stamp = tmp_path / "dualcl_preprocessed.json"
    stamp.write_text(json.dumps(decisive_values(PLANS, CONFIGURATION)), encoding="utf-8")
    assert other_values(tmp_path, decisive_values(PLANS, CONFIGURATION)) == []
    plans, configuration = copy.deepcopy((PLANS, CONFIGURATION))
    (plans if key in plans else configuration)[key] = value
    assert other_values(tmp_path, decisive_values(plans, configuration)) == named


def test_statistics_that_no_scheme_reads_may_change(tmp_path: Path) -> None:
    """Further labels move those of the foreground; an MR image comes out the same."""
    configuration = {**CONFIGURATION, "normalization_schemes": ["ZScoreNormalization", "CTNormalization"]}
    statistics = {"0": {"mean": 1.0}, "1": {"mean": 5.0}}
    key = "foreground_intensity_properties_per_channel"
    decisive = decisive_values({**PLANS, key: statistics}, configuration)
    assert decisive["intensities"] == {"1": {"mean": 5.0}}
    stamp = tmp_path / "dualcl_preprocessed.json"
    for stored in (decisive, {**decisive, "intensities": statistics}):  # the second is an older one
        stamp.write_text(json.dumps(stored), encoding="utf-8")
        moved = decisive_values({**PLANS, key: {**statistics, "0": {"mean": 1.1}}}, configuration)
        assert other_values(tmp_path, moved) == []
        moved = decisive_values({**PLANS, key: {**statistics, "1": {"mean": 5.1}}}, configuration)
        assert other_values(tmp_path, moved) == ["intensities"]


def test_what_an_older_stamp_does_not_hold_is_no_difference(tmp_path: Path) -> None:
    older = decisive_values(PLANS, CONFIGURATION)
    del older["reader"]
    (tmp_path / "dualcl_preprocessed.json").write_text(json.dumps(older), encoding="utf-8")
    assert other_values(tmp_path, decisive_values(PLANS, CONFIGURATION)) == []
    other = decisive_values({**PLANS, "transpose_forward": [1, 0, 2]}, CONFIGURATION)
    assert other_values(tmp_path, other) == ["transposition"]


def test_a_case_has_changed_with_names_sizes_or_contents_of_its_images_not_with_their_time(tmp_path: Path) -> None:
    files = [tmp_path / "a_0000.nii", tmp_path / "a_0001.nii"]
    for file in files:
        file.write_bytes(b"one")
    properties = tmp_path / "a.pkl"
    properties.write_bytes(pickle.dumps({"dualcl_images": identity(files)}))
    os.utime(files[1], ns=(1, 1))
    assert not changed(properties, files)
    assert changed(properties, files[:1])
    assert changed(properties, files[::-1])
    files[1].write_bytes(b"two")
    assert changed(properties, files)
    files[1].write_bytes(b"three")
    assert changed(properties, files)
    properties.write_bytes(pickle.dumps({}))  # of an early version
    assert changed(properties, files)


def test_contents_are_read_once_for_a_new_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image, properties = tmp_path / "a_0000.nii", tmp_path / "a.pkl"
    image.write_bytes(b"one")
    properties.write_bytes(pickle.dumps({"spacing": [1, 2], "dualcl_images": identity([image])}))
    os.utime(image, ns=(1, 1))
    with monkeypatch.context() as patch:
        patch.setattr("nnunet_dualcl.preprocessing.record.replacing", read_only)
        assert not changed(properties, [image])
    assert not changed(properties, [image])
    assert pickle.loads(properties.read_bytes()) == {"spacing": [1, 2], "dualcl_images": identity([image])}
    monkeypatch.setattr("nnunet_dualcl.preprocessing.record.identity", None)  # would fail
    assert not changed(properties, [image])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pkl", "a_0000.nii"]


def read_only(_: Path) -> Any:
    raise PermissionError(13, "Permission denied")


def test_a_link_to_an_image_that_is_not_at_hand_is_no_change(tmp_path: Path) -> None:
    image, link, properties = tmp_path / "elsewhere.nii", tmp_path / "a_0000.nii", tmp_path / "a.pkl"
    image.write_bytes(b"one")
    link.symlink_to(image)
    properties.write_bytes(pickle.dumps({"dualcl_images": identity([link])}))
    image.unlink()
    assert not changed(properties, [link])
    image.write_bytes(b"two")
    assert changed(properties, [link])


@pytest.fixture(params=[".tif", ".tiff", ".TIF"])
def tiff(tmp_path: Path, request: pytest.FixtureRequest) -> list[Path]:
    """Two channels of a case with a dot in its name."""
    files = [tmp_path / f"x.1_{channel:04d}{request.param}" for channel in range(2)]
    for file in files:
        tifffile.imwrite(file, np.zeros((2, 3, 4), np.uint8))
    return files


def write_spacing(folder: Path, first: int, *, modified_ns: int = 1) -> None:
    (folder / "x.1.json").write_text(json.dumps({"spacing": [first, 2, 2]}), encoding="utf-8")
    os.utime(folder / "x.1.json", ns=(modified_ns, modified_ns))


def test_a_tiff_has_changed_with_the_spacing_that_nnunet_reads_beside_it(tmp_path: Path, tiff: list[Path]) -> None:
    properties = tmp_path / "x.1.pkl"
    properties.write_bytes(pickle.dumps({"dualcl_images": identity(tiff)}))
    assert not changed(properties, tiff)
    write_spacing(tmp_path, 4)
    assert Tiff3DIO().read_images([str(file) for file in tiff])[1]["spacing"] == [4, 2, 2]
    assert changed(properties, tiff)  # it appeared, however old
    properties.write_bytes(pickle.dumps({"dualcl_images": identity(tiff)}))
    write_spacing(tmp_path, 4, modified_ns=2)
    assert not changed(properties, tiff)
    write_spacing(tmp_path, 5)
    assert changed(properties, tiff)
    (tmp_path / "x.1.json").unlink()
    assert changed(properties, tiff)


@pytest.mark.parametrize("with_spacing", [True, False])
def test_a_spacing_newer_than_a_tiff_of_an_early_version_is_a_change_and_an_older_one_is_noted(
    tmp_path: Path, tiff: list[Path], with_spacing: bool
) -> None:
    properties, early = tmp_path / "x.1.pkl", {"spacing": [1, 2], "dualcl_images": identity(tiff)[:2]}
    properties.write_bytes(pickle.dumps(early))
    if with_spacing:
        write_spacing(tmp_path, 4, modified_ns=properties.stat().st_mtime_ns + 1)
        assert changed(properties, tiff)
        write_spacing(tmp_path, 4)
    assert not changed(properties, tiff)
    assert pickle.loads(properties.read_bytes()) == {**early, "dualcl_images": identity(tiff)}  # noted from now on
    write_spacing(tmp_path, 5, modified_ns=2)
    assert changed(properties, tiff)


def test_a_json_beside_other_images_is_not_theirs(tmp_path: Path) -> None:
    image, properties = tmp_path / "x.1_0000.nii", tmp_path / "x.1.pkl"
    image.write_bytes(b"one")
    properties.write_bytes(pickle.dumps({"dualcl_images": identity([image])}))
    write_spacing(tmp_path, 4)
    assert not changed(properties, [image])
