import itertools

from nnunet_dualcl.dataset_conversion.folds import patient_folds, without

CASES = {"a1": "a", "a2": "a", "b1": "b", "c1": "c", "c2": "c", "d1": "d"}


def test_patients_are_on_one_side_and_each_is_validated_once() -> None:
    folds = patient_folds(CASES, folds=3, seed=1)
    assert len(folds) == 3
    validated = list(itertools.chain.from_iterable(fold["val"] for fold in folds))
    assert sorted(validated) == sorted(CASES)
    for fold in folds:
        assert sorted(fold["train"] + fold["val"]) == sorted(CASES)
        assert not {CASES[case] for case in fold["train"]} & {CASES[case] for case in fold["val"]}
    assert folds == patient_folds(dict(reversed(CASES.items())), folds=3, seed=1)
    assert folds != patient_folds(CASES, folds=3, seed=2)


def test_patients_with_unlabeled_scans_stay_in_training() -> None:
    folds = patient_folds(CASES, folds=5, seed=0, never_validate={"a", "c"})
    assert sorted(fold["val"] for fold in folds) == [["b1"], ["d1"]]


def test_val_repeats_train_where_nothing_can_be_held_back() -> None:
    alone = {"x": "p", "y": "p"}
    assert patient_folds(alone, folds=5, seed=0) == [{"train": ["x", "y"], "val": ["x", "y"]}]
    assert patient_folds(CASES, folds=5, seed=0, never_validate="abcd")[0]["val"] == sorted(CASES)


def test_cases_that_failed_leave_a_published_split() -> None:
    split = [{"train": ["a", "b"], "val": ["c"], "unlabeled": ["d", "e"]}]
    assert without(split, ["a", "d"]) == [{"train": ["b"], "val": ["c"], "unlabeled": ["e"]}]
    assert without(split, ["c"])[0]["val"] == ["a", "b"]
