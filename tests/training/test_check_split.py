from __future__ import annotations

import json
from pathlib import Path

import pytest

from nnunet_dualcl.errors import DualCLError
from nnunet_dualcl.training.preflight import check_shares, check_split, check_unseen, check_validation_folder

PREPROCESS = "nnUNetv2_preprocess -d 7"


def write(folder: Path, *folds: dict[str, list[str]], preprocessed: str) -> None:
    (folder / "splits_final.json").write_text(json.dumps(folds), encoding="utf-8")
    for case in preprocessed:
        (folder / f"{case}.pkl").touch()


@pytest.mark.parametrize("faulty", [{"val": ["b"]}, {"train": [], "val": ["b"]}, {"train": ["a"]}])
def test_a_fold_without_training_or_validation_cases_is_refused(tmp_path: Path, faulty: dict[str, list[str]]) -> None:
    write(tmp_path, {"train": ["a"], "val": ["b"]}, faulty, preprocessed="ab")
    assert check_split(tmp_path, tmp_path, 0, raw=(), preprocess=PREPROCESS) == []
    role = "val" if faulty.get("train") else "train"
    with pytest.raises(DualCLError, match=rf"splits_final\.json, fold 1: no '{role}' case\. Write it anew"):
        check_split(tmp_path, tmp_path, 1, raw=(), preprocess=PREPROCESS)


@pytest.mark.parametrize("fold", [{"train": ["a", "new"], "val": ["b"]}, {"train": ["a"], "val": ["b", "new"]}])
def test_a_case_that_is_not_preprocessed_is_named_with_the_command(tmp_path: Path, fold: dict[str, list[str]]) -> None:
    write(tmp_path, fold, preprocessed="ab")
    with pytest.raises(DualCLError, match=rf"lacks new of fold 0 in .*splits_final\.json\. .* with: {PREPROCESS}; or"):
        check_split(tmp_path, tmp_path, 0, raw=(), preprocess=PREPROCESS)


def test_cases_in_no_list_are_noted(tmp_path: Path) -> None:
    folds = {"train": ["a"], "val": ["b"], "unlabeled": ["c"]}, {"train": ["c"], "val": ["b"], "unlabeled": ["a", "d"]}
    write(tmp_path, *folds, preprocessed="abcd")
    assert check_split(tmp_path, tmp_path, 0, raw=(), preprocess=PREPROCESS) == [
        "In no list of fold 0, and left out: 1 labeled case(s), d."
    ]
    assert check_split(tmp_path, tmp_path, 1, raw=(), preprocess=PREPROCESS) == []
    shared = {"train": ["a", "b", "c"], "val": ["b", "d"], "comment": "x", "seed": 3}
    write(tmp_path, *folds, shared, preprocessed="")
    (tmp_path / "._a.pkl").touch()  # a Mac's
    assert check_split(tmp_path, tmp_path, 2, raw=(), preprocess=PREPROCESS) == [
        "Fold 2 validates on training cases, which says nothing of new ones: b."
    ]
    write(tmp_path, *folds, preprocessed="")
    (note,) = check_split(tmp_path, tmp_path, "all", raw=(), preprocess=PREPROCESS)
    assert note.endswith("of 3 that splits_final.json lists as unlabeled: a, c, d.")


@pytest.mark.parametrize("fold", [0, "all", None])
def test_labeled_cases_that_came_later_are_noted_with_the_command(tmp_path: Path, fold: int | str | None) -> None:
    write(tmp_path, *[{"train": ["a"], "val": ["b"]}] * (fold is not None), preprocessed="ab" if fold == 0 else "abcde")
    if fold is None:
        (tmp_path / "splits_final.json").unlink()
    raw = ["a", "b", "late", "later"]
    notes = check_split(tmp_path, tmp_path, fold or 0, raw=raw, preprocess=PREPROCESS)
    assert notes == [f"Not preprocessed yet, and left out: late, later of imagesTr. Run: {PREPROCESS}"]


def test_a_fold_beyond_the_file_is_nnunets_to_draw_where_it_lists_no_unlabeled_case(tmp_path: Path) -> None:
    folds = {"train": ["a"], "val": ["b"]}, {"train": ["b"], "val": ["a"], "unlabeled": []}
    write(tmp_path, *folds, preprocessed="ab")
    assert check_split(tmp_path, tmp_path, 7, raw=(), preprocess=PREPROCESS) == []
    write(tmp_path, *folds, {"train": ["a"], "val": ["b"], "unlabeled": ["c"]}, preprocessed="c")
    with pytest.raises(DualCLError, match=r"has no fold 7: it holds folds 0 to 2, .* write more draws with: dualcl"):
        check_split(tmp_path, tmp_path, 7, raw=(), preprocess=PREPROCESS)


def test_cases_that_a_training_saw_are_no_validation_cases() -> None:
    check_unseen({"a", "b"}, ["c", "d"], 3)
    with pytest.raises(DualCLError, match=r"lists a, b as validation of fold 3, .* saw them: .* train it anew"):
        check_unseen({"b", "a", "x"}, ["a", "c", "b"], 3)


def test_predictions_of_other_cases_are_not_counted_into_a_summary(tmp_path: Path) -> None:
    folder = tmp_path / "validation"
    check_validation_folder(folder, ["a"], ".nii.gz")
    folder.mkdir()
    for name in ("a.nii.gz", "a.npz", "old.npz", "summary.json"):
        (folder / name).touch()
    check_validation_folder(folder, ["a", "b"], ".nii.gz")
    (folder / "old.nii.gz").touch()
    with pytest.raises(DualCLError, match=r"validation holds old, no validation case .* with --val where"):
        check_validation_folder(folder, ["a", "b"], ".nii.gz")


@pytest.mark.parametrize(("batch_size", "num_gpus", "fitting"), [(5, 2, 1), (12, 8, 6), (9, 4, 3), (2, 3, 2)])
def test_gpus_with_shares_of_different_size_are_refused_where_the_dice_is_pooled(
    batch_size: int, num_gpus: int, fitting: int
) -> None:
    check_shares(batch_size, num_gpus, batch_dice=False)
    check_shares(batch_size, fitting, batch_dice=True)
    with pytest.raises(DualCLError, match=rf"{num_gpus} GPUs cannot share .* Use -num_gpus {fitting}, or"):
        check_shares(batch_size, num_gpus, batch_dice=True)
