"""Published lists: who stays labeled, and that nobody is on two sides."""

import argparse
import inspect
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from nnunet_dualcl.dataset_conversion.listed import ROLES, Lists, parts_of, published_split, read_lists
from nnunet_dualcl.dataset_conversion.plan import Refusal, Role, Scan, SourceCase
from nnunet_dualcl.dataset_conversion.published_lists import ACDC, LEFT_ATRIUM, PANCREAS
from nnunet_dualcl.errors import DualCLError

LISTS = Lists(train=("d", "a", "c", "b"), test=("t",))


def cases(part_of: dict[str, str], *names: str) -> list[SourceCase]:
    return [SourceCase(name, name, ROLES[part_of[name]], lambda: Scan((), None), (), name) for name in names]


def test_the_first_of_the_list_stay_labeled_and_the_last_validate() -> None:
    part_of = parts_of(LISTS, labeled=2, val=1)
    assert part_of == {"d": "train", "a": "train", "c": "unlabeled", "b": "val", "t": "test"}
    assert [ROLES[part_of[name]] for name in "dcbt"] == [Role.LABELED, Role.UNLABELED, Role.LABELED, Role.TEST]
    assert set(parts_of(LISTS, labeled=None, val=0).values()) == {"train", "test"}


def test_a_split_without_validation_repeats_the_training_cases_and_says_so() -> None:
    part_of = parts_of(LISTS, labeled=2, val=0)
    fold, notes = published_split(cases(part_of, "t", "d", "c", "a"), part_of)
    assert fold == {"train": ["a", "d"], "val": ["a", "d"]}
    assert "1 of 5 listed were not found or not used: b" in notes[0]
    assert "val repeats" in notes[1]
    part_of = parts_of(LISTS, labeled=2, val=1)
    assert published_split(cases(part_of, *"abcdt"), part_of) == ({"train": ["a", "d"], "val": ["b"]}, ())
    assert "no case for validation was found: val repeats" in published_split(cases(part_of, *"acdt"), part_of)[1][1]


@pytest.mark.parametrize(
    ("lists", "chosen", "message"),
    [
        (LISTS, {"labeled": 5, "val": 0}, "--labeled must be from 1 to 4"),
        (LISTS, {"labeled": 4, "val": 1}, "--labeled must be from 1 to 3"),
        (LISTS, {"labeled": None, "val": 4}, "--val must be from 0 to 3"),
        (Lists(("a",), ("b", "a")), {"labeled": None, "val": 0}, "a: in two lists"),
        (Lists(("a", "b"), (), ("c",)), {"labeled": None, "val": 1}, "leave --val out"),
    ],
)
def test_impossible_shares_are_refused(lists: Lists, chosen: dict[str, Any], message: str) -> None:
    with pytest.raises(DualCLError, match=message):
        parts_of(lists, **chosen)


def test_a_list_without_any_case_of_it_is_refused() -> None:
    part_of = parts_of(LISTS, labeled=None, val=0)
    with pytest.raises(DualCLError, match="begins with d, a, c"):
        published_split(cases(part_of, "t"), part_of)


def test_lists_of_the_user(tmp_path: Path) -> None:
    train, test = tmp_path / "train.list", tmp_path / "test.list"
    lines = "data/patient007_frame02\r\npatient003_frame01\n\npatient007_frame01\n"
    train.write_text(lines, encoding="utf-8-sig")  # with a mark, as Windows saves it
    test.write_text("")
    assert read_lists(train, test, r"patient\d{3}") == Lists(("patient007", "patient003"), ())
    assert read_lists(None, None, "x") is None
    with pytest.raises(DualCLError, match="Give both"):
        read_lists(train, None, "x")
    assert read_lists(train, test, r"[^\s/]+_frame\d+").train[0] == "patient007_frame02"  # type: ignore[union-attr]
    with pytest.raises(DualCLError, match="'data/patient007_frame02' names no case"):
        read_lists(train, test, "case_")
    with pytest.raises(DualCLError, match="Cannot read the list"):
        read_lists(tmp_path / "absent", test, "x")


def test_what_was_left_out_is_said_where_nothing_is_left() -> None:
    lists = Lists(("a", "b"), ())
    refusal = Refusal("a", "no label beside it")
    with pytest.raises(DualCLError, match=r"begins with a, b\. Left out: a: no label beside it\."):
        published_split([], parts_of(lists, labeled=None, val=0), [refusal])


def test_the_published_lists_are_whole() -> None:
    assert [len(LEFT_ATRIUM.train), len(LEFT_ATRIUM.test)] == [80, 20]
    assert len({*LEFT_ATRIUM.train, *LEFT_ATRIUM.test}) == 100
    assert {len(name) for name in (*LEFT_ATRIUM.train, *LEFT_ATRIUM.test)} == {20}
    assert sorted((*ACDC.train, *ACDC.val, *ACDC.test)) == [f"patient{number:03d}" for number in range(1, 101)]
    assert [len(ACDC.train), len(ACDC.val), len(ACDC.test)] == [70, 10, 20]
    for name, count, train, missing in (("mcnet", 82, 62, set()), ("coranet", 80, 62, {25, 70})):
        lists = PANCREAS[name]
        assert (len({*lists.train, *lists.test}), len(lists.train)) == (count, train)
        assert {*lists.train, *lists.test} == {f"{n:04d}" for n in range(1, 83) if n not in missing}


@pytest.mark.parametrize(
    ("kind", "words", "chosen"),
    [
        ("la2018", "--labeled 8 --val 4", {"labeled": 8, "val": 4}),
        ("pancreas_ct", "--split coranet --turn-labels y", {"split": "coranet", "turn_labels": "y"}),
        ("acdc", "--usual-split --frames --labeled 7", {"usual_split": True, "frames": True, "labeled": 7}),
        ("brats", "--regions --train-list a --test-list b", {"regions": True, "train_list": Path("a")}),
        ("brats", "--pediatric 2024", {"pediatric": "2024"}),
        ("flare22", "--unlabeled 200", {"unlabeled": 200}),
        ("msd", "--unlabeled-test", {"unlabeled_test": True}),
    ],
)
def test_options_are_keywords_of_the_plan(kind: str, words: str, chosen: dict[str, Any]) -> None:
    module = import_module(f"nnunet_dualcl.dataset_conversion.{kind}")
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    found = module.keywords(parser.parse_args(words.split()))
    assert found.items() >= chosen.items()
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(module.plan).parameters.items()
        if name != "source"
    }
    assert module.keywords(parser.parse_args([])) == defaults
