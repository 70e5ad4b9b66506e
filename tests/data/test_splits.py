import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import _maybe_copy_splits_file

from nnunet_dualcl.data.cases import check_disjoint, read_split
from nnunet_dualcl.data.splits import (
    draw_splits,
    read_case_list,
    read_groups,
    replace_splits,
    trained_folds,
    write_splits,
)
from nnunet_dualcl.errors import DualCLError

CASES = [f"case_{number:02d}" for number in range(23)]
GROUPS = {case: f"patient_{number // 3}" for number, case in enumerate(CASES)}  # seven of three, one of two


def draw(**changes: Any) -> list[dict[str, list[str]]]:
    return draw_splits(CASES, **{"labeled": 3, "validation": 0.2, "draws": 4, "seed": 1, **changes})


def patients(cases: list[str]) -> set[str]:
    return {GROUPS[case] for case in cases}


def test_the_same_seed_gives_the_same_splits() -> None:
    assert draw() == draw()
    assert draw(seed=2) != draw()
    assert draw_splits(CASES[::-1], labeled=3, validation=0.2, draws=4, seed=1) == draw()


@pytest.mark.parametrize("groups", [None, GROUPS])
def test_each_fold_is_disjoint_and_covers_everything(groups: dict[str, str] | None) -> None:
    for fold in draw(groups=groups, labeled=2):
        assert set(fold) == {"train", "val", "unlabeled"}
        assert sorted(fold["train"] + fold["val"] + fold["unlabeled"]) == CASES
        assert all(names == sorted(names) and names for names in fold.values())
        check_disjoint(fold["unlabeled"], fold, where="a fold")


def test_sizes() -> None:
    for fold in draw():
        assert (len(fold["train"]), len(fold["val"]), len(fold["unlabeled"])) == (3, 5, 15)  # 0.2 * 23 = 4.6
    assert len(draw(validation=4)[0]["val"]) == 4
    assert len(draw(validation=1.0)[0]["val"]) == 1
    assert draw(labeled=21, validation=2)[0]["unlabeled"] == []


def test_validation_is_the_same_in_all_draws_and_the_labeled_cases_differ() -> None:
    folds = draw()
    assert len({tuple(fold["val"]) for fold in folds}) == 1
    assert len({tuple(fold["train"]) for fold in folds}) == 4


def test_more_draws_or_more_labeled_cases_keep_the_earlier_ones() -> None:
    assert draw(draws=7)[:4] == draw()
    for few, many in zip(draw(), draw(labeled=5), strict=True):
        assert set(few["train"]) < set(many["train"])
        assert few["val"] == many["val"]


def test_groups_stay_together() -> None:
    for fold in draw(groups=GROUPS, labeled=2, validation=3):
        assert (len(patients(fold["train"])), len(patients(fold["val"]))) == (2, 3)
        sides = [patients(fold[role]) for role in ("train", "val", "unlabeled")]
        assert sum(map(len, sides)) == len(set().union(*sides)) == 8


def test_the_groups_of_excluded_cases_are_left_out_whole() -> None:
    left_out = {case for case in CASES if GROUPS[case] in ("patient_0", "patient_5")}
    for fold in draw(groups=GROUPS, labeled=2, validation=2, excluded=["case_01", "case_15"]):
        assert set(fold["train"] + fold["val"] + fold["unlabeled"]) == set(CASES) - left_out
    for fold in draw(excluded=["case_01"]):
        assert set(fold["train"] + fold["val"] + fold["unlabeled"]) == set(CASES) - {"case_01"}


def test_groups_may_hold_cases_of_other_datasets() -> None:
    assert draw(groups={**GROUPS, "case": "patient", "case_99": "patient_9"}, labeled=2) == draw(
        groups=GROUPS, labeled=2
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labeled": 20, "validation": 4}, "20 labeled and 4 validation out of 23 cases: too many. Lower --labeled"),
        ({"labeled": 6, "validation": 3, "groups": GROUPS}, "6 labeled and 3 validation out of 8 groups: too many"),
        ({"labeled": 21, "validation": 2, "excluded": CASES[:1]}, "out of 22 cases: too many"),
        ({"labeled": 0}, "At least one labeled case, one validation case and one draw are needed"),
        ({"validation": 0}, "At least one labeled case, one validation case and one draw are needed"),
        ({"validation": 0.01}, "At least one labeled case, one validation case and one draw are needed"),
        ({"validation": -1}, "At least one labeled case, one validation case and one draw are needed"),
        ({"draws": 0}, "At least one labeled case, one validation case and one draw are needed"),
        ({"validation": 2.5}, "validation must be a share below 1 or a whole number, got 2.5"),
        ({"validation": float("nan")}, "validation must be a share below 1 or a whole number, got nan"),
        ({"validation": float("inf")}, "validation must be a share below 1 or a whole number, got inf"),
        ({"seed": -1}, "seed must not be negative, got -1"),
        ({"groups": {"case_00": "p"}}, "No group given for case_01, case_02, .*one line in the groups file"),
        ({"groups": {**GROUPS, "case_07": ""}}, "No group given for case_07"),
        ({"excluded": ["case_00", "case_77"]}, "The excluded case case_77 is not among the dataset's cases"),
    ],
)
def test_what_cannot_be_drawn_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DualCLError, match=message):
        draw(**changes)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("g.csv", "a,p 1\nb,q\n"),
        ("g.csv", "a, p 1\r\nb ,q"),
        ("g.csv", '"a","p 1"\n"b","q"\n'),
        ("g.csv", "\ufeffa,p 1\nb,q\n"),
        ("g.csv", "a,p 1\nb,q\na,p 1\n"),
        ("g.csv", "a,p 1\n\nb,q\n,\n"),
        ("g.tsv", "a\tp 1\nb\tq\n"),
        ("g.json", '{"a": "p 1", "b": "q"}'),
    ],
)
def test_read_groups(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert read_groups(tmp_path / name) == {"a": "p 1", "b": "q"}


def test_a_case_may_be_called_as_the_header(tmp_path: Path) -> None:
    (tmp_path / "patients.csv").write_text("case,patient\ncase,p7\nother,patient\n", encoding="utf-8")
    assert read_groups(tmp_path / "patients.csv") == {"case": "p7", "other": "patient"}


def test_patients_with_further_scans_are_not_drawn_into_validation() -> None:
    first = draw(groups=GROUPS, labeled=2)
    held = sorted({GROUPS[case] for case in first[0]["val"]})
    again = draw(groups=GROUPS, labeled=2, never_validate=held[:1])
    for fold in again:
        assert held[0] not in {GROUPS[case] for case in fold["val"]}
        assert len({GROUPS[case] for case in fold["val"]}) == len(held)
    assert draw(groups=GROUPS, labeled=2, never_validate=["nobody"]) == first
    with pytest.raises(DualCLError, match=r"groups are to be validated on, and only 0 of \d+ have no further"):
        draw(groups=GROUPS, labeled=2, never_validate=set(GROUPS.values()))


def test_numbers_as_patients_become_text_and_a_header_line_stays_harmless(tmp_path: Path) -> None:
    (tmp_path / "g.json").write_text('{"case_00": 7}', encoding="utf-8")
    assert read_groups(tmp_path / "g.json") == {"case_00": "7"}
    (tmp_path / "g.json").write_text('{"case_00": null}', encoding="utf-8")
    assert read_groups(tmp_path / "g.json") == {"case_00": ""}
    lines = ["case,patient", *(f"{case},{group}" for case, group in GROUPS.items())]
    (tmp_path / "g.csv").write_text("\n".join(lines), encoding="utf-8")
    assert draw(groups=read_groups(tmp_path / "g.csv"), labeled=2) == draw(groups=GROUPS, labeled=2)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("g.csv", "a,p\nb\n", r"g\.csv, line 2: expected 'case,patient', found 'b'"),
        ("g.csv", "a,p,1\n", r"g\.csv, line 1: expected 'case,patient', found 'a,p,1'"),
        ("g.tsv", "a,p\n", r"g\.tsv, line 1: expected 'case,patient'"),
        ("g.csv", "a,p\nb,q\na,q\n", r"g\.csv, line 3: a is of p and of q"),
        ("g.json", '{"a": ', r"g\.json is no valid JSON"),
        ("g.json", '[["a", "p"]]', r"g\.json must hold an object of case: patient, found list"),
    ],
)
def test_a_malformed_groups_file_is_refused(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(DualCLError, match=message):
        read_groups(tmp_path / name)


@pytest.mark.parametrize(("encoding", "read"), [("latin-1", read_groups), ("utf-16", read_case_list)])
def test_lists_in_another_encoding_are_refused(tmp_path: Path, encoding: str, read: Callable[[Path], object]) -> None:
    (tmp_path / "list.csv").write_text("case_1,M\u00fcller\n", encoding=encoding)
    with pytest.raises(DualCLError, match=r"list\.csv: it is not UTF-8\. Save it again"):
        read(tmp_path / "list.csv")


def test_a_case_list_has_one_case_a_line(tmp_path: Path) -> None:
    (tmp_path / "test.txt").write_text("\ufeffpat 1\r\n\r\n  pat_2\n", encoding="utf-8")
    assert read_case_list(tmp_path / "test.txt") == ["pat 1", "pat_2"]


def test_a_missing_groups_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DualCLError, match=r"Cannot read the groups file .*g\.csv: No such file"):
        read_groups(tmp_path / "g.csv")


def test_a_split_file_is_replaced_only_by_force(tmp_path: Path) -> None:
    path, first, second = tmp_path / "new" / "splits_final.json", draw(), draw(seed=9)
    write_splits(path, first)
    assert json.loads(path.read_text(encoding="utf-8")) == first
    with pytest.raises(DualCLError, match=r"splits_final\.json exists .*--force"):
        write_splits(path, second)
    assert read_split(path.parent, 3) == first[3]
    write_splits(path, second, force=True)
    assert read_split(path.parent, 3) == second[3]


def test_the_split_that_a_dataset_came_with_is_kept_beside(tmp_path: Path) -> None:
    raw, path = tmp_path / "raw", tmp_path / "preprocessed" / "splits_final.json"
    write_splits(raw / "splits_final.json", draw())
    path.parent.mkdir()
    _maybe_copy_splits_file(str(raw / "splits_final.json"), str(path))  # by nnU-Net, when it plans
    replace_splits(raw, path, draw(seed=9), force=False)
    assert read_split(path.parent, 3) == draw(seed=9)[3]
    assert json.loads((raw / "splits_of_conversion.json").read_text(encoding="utf-8")) == draw()
    assert not (raw / "splits_final.json").exists()  # planning again would stop at the difference
    with pytest.raises(DualCLError, match="--force"):  # no copy any more: trainings may have used it
        replace_splits(raw, path, draw(seed=8), force=False)
    replace_splits(raw, path, draw(seed=8), force=True)
    assert json.loads((raw / "splits_of_conversion.json").read_text(encoding="utf-8")) == draw()


def test_where_the_new_split_cannot_be_written_the_raw_datasets_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    raw = tmp_path / "raw"
    write_splits(raw / "splits_final.json", draw())
    monkeypatch.setattr(Path, "write_text", refuse)
    with pytest.raises(PermissionError):
        replace_splits(raw, tmp_path / "preprocessed" / "splits_final.json", draw(seed=9), force=False)
    assert [path.name for path in raw.iterdir()] == ["splits_final.json"]


def test_where_the_raw_datasets_split_cannot_be_renamed_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    raw, path = tmp_path / "raw", tmp_path / "preprocessed" / "splits_final.json"
    write_splits(raw / "splits_final.json", draw())
    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(DualCLError, match=r"cannot be renamed to splits_of_conversion\.json \(Permission denied\)"):
        replace_splits(raw, path, draw(seed=9), force=False)
    assert not list(path.parent.glob("*"))


def test_folders_moved_aside_are_no_trained_folds(tmp_path: Path) -> None:
    for name in ("fold_0", "fold_12", "fold_1_old", "fold_all"):
        (tmp_path / "T__p__2d" / name).mkdir(parents=True)
        (tmp_path / "T__p__2d" / name / "checkpoint_final.pth").touch()
    (tmp_path / "T__p__2d" / "fold_3").mkdir()
    assert trained_folds(tmp_path) == ["T__p__2d/fold_0", "T__p__2d/fold_12"]
