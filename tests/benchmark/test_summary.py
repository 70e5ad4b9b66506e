from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from synthetic_store import HEAD_DICE, case_rows, write_job, write_store

from nnunet_dualcl.benchmark.results import load_results
from nnunet_dualcl.benchmark.summary import (
    POOLED,
    Section,
    add_corrected,
    arm_rows,
    comparison_rows,
    judged,
    lacking_draws,
    notes,
    of_draw,
    sections,
    worst_and_median,
)

UPPER = "stock (all labels)"
BASELINES = ("stock", "teacher")


def the_section(folder: Path, **options: Any) -> Section:
    (section,) = sections(
        load_results(folder), **{"baselines": BASELINES, "lower": "stock", "upper": "stock", **options}
    )
    return section


def by_arm(section: Section) -> dict[str, dict[str, Any]]:
    return {row["arm"]: row for row in arm_rows(section)}


def notes_of(folder: Path, **options: Any) -> list[str]:
    return notes(the_section(folder, **options), load_results(folder))


# ---- sections


def test_arms_stand_in_the_order_of_the_tables(tmp_path: Path) -> None:
    section = the_section(write_store(tmp_path))
    assert section.arms == ("stock", "teacher", "dualcl", UPPER)
    assert (section.labeled, section.focus, section.compared) == (3, "dualcl", ("dualcl",))
    assert (section.lower, section.upper) == ("stock", UPPER)


def test_the_report_is_about_the_first_of_the_order_asked_for(tmp_path: Path) -> None:
    write_store(tmp_path)
    for arm in ("cps", "without"):
        write_job(tmp_path, arm, 3, 0, case_rows((0.5, 0.6, 0.7)))
    assert the_section(tmp_path).focus == "cps"  # by name
    section = the_section(tmp_path, order=("stock", "dualcl", "never run", "without"))
    assert (section.focus, section.compared) == ("dualcl", ("dualcl", "without", "cps"))
    assert section.arms == ("stock", "teacher", "dualcl", "without", "cps", UPPER)


def test_variants_are_compared_with_the_arm_that_the_report_is_about(tmp_path: Path) -> None:
    write_store(tmp_path)
    write_job(tmp_path, "without", 3, 1, case_rows((0.54, 0.65, 0.66)))
    section = the_section(tmp_path, order=("dualcl",))
    pairs = [(row["arm"], row["baseline"]) for row in comparison_rows(section) if row["draw"] == POOLED]
    assert pairs == [("dualcl", "stock"), ("dualcl", "teacher"), *[("without", b) for b in (*BASELINES, "dualcl")]]
    less = [row for row in comparison_rows(section) if (row["arm"], row["baseline"]) == ("without", "dualcl")]
    assert [row["draw"] for row in less] == [1, POOLED]
    assert less[0]["mean_difference"] == pytest.approx(np.mean([-0.10, -0.05, -0.04]))
    assert (
        "3 labeled: 'without' is not compared in draw 0 with 'stock', 'teacher', 'dualcl'; one of the two lacks it."
        in notes(section, load_results(tmp_path))
    )


def test_one_section_a_number_of_labeled_cases(tmp_path: Path) -> None:
    write_store(tmp_path)
    write_job(tmp_path, "dualcl", 10, 0, case_rows((0.8, 0.8, 0.8)))
    few, more = sections(load_results(tmp_path), BASELINES, "stock", "stock")
    assert (few.labeled, more.labeled) == (3, 10)
    assert more.arms == ("dualcl", UPPER)


def test_all_labels_get_a_section_where_other_arms_have_them_too(tmp_path: Path) -> None:
    write_store(tmp_path)
    write_job(tmp_path, "dualcl", "all", 0, case_rows((0.8, 0.8, 0.8)))
    few, everything = sections(load_results(tmp_path), BASELINES, "stock", "stock")
    assert few.arms[-1] == UPPER
    assert (everything.labeled, everything.arms) == ("all", ("dualcl", "stock"))


def test_an_upper_bound_with_as_many_labels(tmp_path: Path) -> None:
    write_store(tmp_path, {key: value for key, value in HEAD_DICE.items() if key[1] == 3})
    section = the_section(tmp_path, upper="teacher", baselines=("stock",))
    assert (section.arms, section.upper) == (("stock", "dualcl", "teacher"), "teacher")
    assert by_arm(section)["teacher"]["gap_closed"] == pytest.approx(1)


# ---- means


def test_means_by_hand(tmp_path: Path) -> None:
    """A case counts by the mean of the labels that it has: head - 0.05, or the head alone in NA."""
    rows = by_arm(the_section(write_store(tmp_path)))
    draws = [(0.65 + 0.70 + 0.80) / 3, (0.59 + 0.65 + 0.70) / 3]
    ours = rows["dualcl"]
    assert ours["dice"] == pytest.approx(np.mean(draws))
    assert ours["dice_sd"] == pytest.approx(abs(draws[0] - draws[1]) / np.sqrt(2))
    assert ours["per_class"]["head"]["dice"] == pytest.approx((0.70 + 0.75 + 0.80 + 0.64 + 0.70 + 0.70) / 6)
    assert ours["per_class"]["tail"]["dice"] == pytest.approx((0.60 + 0.65 + 0.54 + 0.60) / 4)
    assert ours["hd95_mm"] == pytest.approx(10 * (1 - np.mean(draws)))
    # head and tail of both draws, ten values: 3.0 and 3.5 stand in the middle
    assert ours["hd95_median_mm"] == pytest.approx((3.0 + 3.5) / 2)
    assert (ours["draws"], ours["jobs"]) == ([0, 1], 2)
    assert (ours["wall_seconds"], ours["peak_memory_mib"], ours["samples_per_second"]) == (110, 200.5, 8)


def test_the_gap_by_hand(tmp_path: Path) -> None:
    rows = by_arm(the_section(write_store(tmp_path)))
    lower = (0.55 + 0.65 + 0.80 + 0.57 + 0.61 + 0.76) / 6
    upper = (0.85 + 0.87 + 0.94) / 3
    assert rows["dualcl"]["gap_closed"] == pytest.approx((rows["dualcl"]["dice"] - lower) / (upper - lower))
    assert (rows["stock"]["gap_closed"], rows[UPPER]["gap_closed"]) == (0, 1)
    # means over draws of 001, 002 and NA: 0.62, 0.675, 0.75 of dualcl, 0.56, 0.63, 0.78 of stock, 0.85, 0.87, 0.94
    shares = [0.06 / 0.29, 0.045 / 0.24, -0.03 / 0.16]
    assert rows["dualcl"]["gap_low"] == pytest.approx(min(shares))  # the same case three times, 1 in 27 resamples
    assert rows["dualcl"]["gap_high"] == pytest.approx(max(shares))


def test_the_gap_is_of_the_draws_that_both_have(tmp_path: Path) -> None:
    write_store(tmp_path, {key: value for key, value in HEAD_DICE.items() if key != ("dualcl", 3, 1)})
    ours = by_arm(the_section(tmp_path))["dualcl"]
    lower, upper = (0.55 + 0.65 + 0.80) / 3, (0.85 + 0.87 + 0.94) / 3
    assert ours["gap_closed"] == pytest.approx((2.15 / 3 - lower) / (upper - lower))
    assert np.isnan(ours["dice_sd"])


def absent(tail: dict[str, float | None]) -> list[dict[str, Any]]:
    """Rows of a job whose tails have these scores; None: left out, and not in the reference either."""
    rows = case_rows((0.5, 0.5, 0.5))
    for row in rows:
        if row["label"] == "tail":
            score = tail[row["case"]]
            row.update(dict.fromkeys(("dice", "jaccard", "nsd"), np.nan if score is None else score))
            row.update(dict.fromkeys(("hd95_mm", "asd_mm"), np.nan if score is None else 9.0))
    return rows


def test_a_structure_that_is_not_there_costs_the_arm_that_marks_it(tmp_path: Path) -> None:
    nothing, marked = {"001": 0.5, "002": None, "NA": None}, {"001": 0.5, "002": 0.0, "NA": None}
    write_job(tmp_path, "stock", 3, 0, absent(marked))
    write_job(tmp_path, "teacher", 3, 0, absent(nothing))
    write_job(tmp_path, "dualcl", 3, 0, absent(nothing))
    write_job(tmp_path, "stock", "all", 0, absent(nothing))
    section = the_section(tmp_path)
    rows = {row["baseline"]: row for row in comparison_rows(section) if row["draw"] == 0}
    assert rows["stock"]["mean_difference"] == pytest.approx(0.5 / 3)  # 0.5 and 1 less 0.5 and 0, in 002
    assert (rows["stock"]["wins"], rows["stock"]["ties"], rows["stock"]["cases"]) == (1, 2, 3)
    assert (rows["teacher"]["mean_difference"], rows["teacher"]["ties"]) == (0, 3)
    gaps = by_arm(section)
    assert [gaps[arm]["gap_closed"] for arm in ("stock", "dualcl", UPPER)] == [0, 1, 1]
    scores = judged(section.cases).set_index(["arm", "case", "label"])
    best = {"dice": 1, "jaccard": 1, "hd95_mm": 0, "asd_mm": 0, "nsd": 1}
    assert scores.loc[("dualcl", "002", "tail"), list(best)].to_dict() == best
    assert scores.loc[("dualcl", "NA", "tail"), list(best)].isna().all()
    assert by_arm(section)["dualcl"]["dice"] == 0.5  # a mean by itself counts what is there


def test_the_gap_lies_in_its_interval_where_scores_are_missing(tmp_path: Path) -> None:
    """Its ends are of the cases that it is of itself."""
    write_job(tmp_path, "stock", 3, 0, absent({"001": 0.5, "002": 0.0, "NA": 0.0}))
    write_job(tmp_path, "dualcl", 3, 0, absent({"001": 0.5, "002": None, "NA": None}))
    write_job(tmp_path, "stock", "all", 0, absent({"001": 0.9, "002": None, "NA": None}))
    ours = by_arm(the_section(tmp_path))["dualcl"]
    assert ours["gap_closed"] == pytest.approx((0.75 + 0.75 - 0.25 - 0.25) / (0.2 + 1.0))
    assert 0 <= ours["gap_low"] <= ours["gap_closed"] <= ours["gap_high"] <= 1


def test_seeds_of_a_draw_are_averaged_first(tmp_path: Path) -> None:
    write_store(tmp_path)
    rows = case_rows((0.9, 0.9, 0.9))
    rows[1].update(dict.fromkeys(("dice", "jaccard", "hd95_mm", "asd_mm", "nsd"), np.nan))  # the tail of 001
    job = write_job(tmp_path, "dualcl", 3, 7, rows)
    job.rename(job.with_name("again"))
    record = job.with_name("again") / "job.json"
    record.write_text(
        record.read_text().replace("dualcl_3_7", "again").replace('"draw": 7, "seed": 0', '"draw": 1, "seed": 1')
    )
    ours = by_arm(the_section(tmp_path))["dualcl"]
    second = (np.mean([0.59, 0.65, 0.70]) + np.mean([0.9, 0.85, 0.9])) / 2
    assert ours["dice"] == pytest.approx((2.15 / 3 + second) / 2)
    heads = [np.mean([0.70, 0.75, 0.80]), np.mean([0.64, 0.70, 0.70, 0.9, 0.9, 0.9])]
    assert ours["per_class"]["head"]["dice"] == pytest.approx(np.mean(heads))
    assert (ours["draws"], ours["jobs"]) == ([0, 1], 3)


# ---- comparisons


def test_paired_differences_by_hand(tmp_path: Path) -> None:
    rows = comparison_rows(the_section(write_store(tmp_path)))
    add_corrected(rows)
    assert [(row["baseline"], row["draw"]) for row in rows] == [
        (baseline, draw) for baseline in BASELINES for draw in (0, 1, POOLED)
    ]
    found = pd.DataFrame(rows).set_index(["baseline", "draw"])
    np.testing.assert_allclose(found.loc["stock", "mean_difference"], [0.05, 0, 0.025], atol=1e-12)
    np.testing.assert_allclose(found.loc["teacher", "mean_difference"], [0.07 / 3, 0.02 / 3, 0.015], atol=1e-12)
    counts = found.loc["stock", ["wins", "ties", "losses", "cases"]]
    assert counts.to_numpy().tolist() == [[2, 1, 0, 3], [2, 0, 1, 3], [2, 0, 1, 3]]
    # signed ranks of three differences: the negative one is the smallest, then the second
    assert found.loc[("stock", POOLED), "p_value"] == pytest.approx(0.5)
    assert found.loc[("teacher", POOLED), "p_value"] == pytest.approx(0.75)
    np.testing.assert_allclose(found["corrected_p"], [np.nan, np.nan, 0.75] * 2)
    # pooled differences of the cases: 0.06, 0.045 and -0.03
    low, high = found.loc[("stock", POOLED), ["low", "high"]]
    assert -0.03 <= low < 0.025 < high <= 0.06


def test_only_draws_that_both_have_are_compared(tmp_path: Path) -> None:
    write_store(tmp_path, {key: value for key, value in HEAD_DICE.items() if key != ("teacher", 3, 0)})
    rows = [row for row in comparison_rows(the_section(tmp_path)) if row["baseline"] == "teacher"]
    assert [row["draw"] for row in rows] == [1, POOLED]
    assert "3 labeled: 'dualcl' is not compared in draw 0 with 'teacher'; one of the two lacks it." in notes_of(
        tmp_path
    )


def test_arms_that_lack_draws_can_be_read_in_a_draw_that_all_have(tmp_path: Path) -> None:
    write_store(tmp_path)
    for arm in ("cps", "without"):
        write_job(tmp_path, arm, 3, 0, case_rows((0.5, 0.6, 0.7)))
    section = the_section(tmp_path, order=("dualcl",))
    assert lacking_draws(section) == ("cps", "without", UPPER)
    first = of_draw(section, 0)
    assert first.arms == section.arms
    rows = by_arm(first)
    assert rows["dualcl"]["dice"] == pytest.approx(2.15 / 3)
    assert (rows["stock"]["draws"], rows["cps"]["draws"]) == ([0], [0])
    assert of_draw(section, 1).arms == ("stock", "teacher", "dualcl")
    assert notes(section, load_results(tmp_path)) == [
        "3 labeled: 'cps', 'without' are not compared in draw 1 with 'stock', 'teacher', 'dualcl'; one of the two "
        "lacks it."
    ]


def test_arms_with_other_draws_lack_some_whatever_their_number(tmp_path: Path) -> None:
    for arm, draws in {"stock": (1, 2), "teacher": (0, 1, 2), "dualcl": (0, 1), "cps": (1,), "more": (0, 1, 2)}.items():
        for draw in draws:
            write_job(tmp_path, arm, 3, draw, case_rows((0.5, 0.6, 0.7)))
    assert lacking_draws(the_section(tmp_path, upper="more")) == ("stock", "cps", "dualcl")


def test_of_equals_the_first_arm_says_which_draws_are_usual(tmp_path: Path) -> None:
    for arm, draws in {"stock": (1, 2), "dualcl": (0, 1)}.items():
        for draw in draws:
            write_job(tmp_path, arm, 3, draw, case_rows((0.5, 0.6, 0.7)))
    assert lacking_draws(the_section(tmp_path, upper="not run")) == ("dualcl",)


# ---- what is missing or unequal


def test_a_complete_store_needs_no_notes(tmp_path: Path) -> None:
    assert notes_of(write_store(tmp_path)) == []


def test_missing_bounds_and_baselines_are_named(tmp_path: Path) -> None:
    write_store(tmp_path, {("dualcl", 3, 0): (0.7, 0.7, 0.7)})
    assert notes_of(tmp_path) == [
        "3 labeled: the lower bound 'stock' has no finished job; the share of the gap is not computed.",
        "3 labeled: the upper bound 'stock' has no finished job; the share of the gap is not computed.",
        "3 labeled: the baseline 'stock' has no finished job; nothing is compared with it.",
        "3 labeled: the baseline 'teacher' has no finished job; nothing is compared with it.",
    ]
    section = the_section(tmp_path)
    assert comparison_rows(section) == []
    assert np.isnan(by_arm(section)["dualcl"]["gap_closed"])


def test_unequal_treatment_is_named(tmp_path: Path) -> None:
    write_store(tmp_path, {key: value for key, value in HEAD_DICE.items() if key[0] != "dualcl"})
    split = {"train": ["tr_7"], "val": ["val_0"], "unlabeled": [], "test": ["001", "002", "NA"]}
    write_job(tmp_path, "dualcl", 3, 0, case_rows((0.7, 0.7, 0.7)), steps=900, split=split)
    found = notes_of(tmp_path)
    assert "3 labeled: arms differ in steps: 500 (stock, stock (all labels), teacher); 900 (dualcl)." in found
    assert "3 labeled: in draw 0, arms differ in their 'train' cases." in found


# ---- cases to show


def test_worst_and_median_are_of_the_focus_arm(tmp_path: Path) -> None:
    section = the_section(write_store(tmp_path))
    assert worst_and_median(section) == {"worst": "001", "median": "002"}
    swapped = {**HEAD_DICE, ("dualcl", 3, 0): (0.7, 0.2, 0.5), ("dualcl", 3, 1): (0.7, 0.2, 0.5)}
    section = the_section(write_store(tmp_path / "other", swapped))
    assert worst_and_median(section) == {"worst": "002", "median": "NA"}


def test_of_two_cases_the_lower_one_is_the_median(tmp_path: Path) -> None:
    rows = case_rows((0.6, 0.5, 0.9))
    rows[-2].update(rows[-1])  # of the third case neither label is in either map, so it has no score
    rows[-2]["label"] = "head"
    write_job(tmp_path, "stock", 3, 0, rows)
    assert worst_and_median(the_section(tmp_path)) == {"worst": "002", "median": "002"}


def test_the_focus_is_a_baseline_where_nothing_else_is_finished(tmp_path: Path) -> None:
    write_store(tmp_path, {key: value for key, value in HEAD_DICE.items() if key[0] != "dualcl"})
    assert the_section(tmp_path).focus == "stock"


def test_what_trains_with_all_labels_is_compared_with_the_upper_bound(tmp_path: Path) -> None:
    scores = {**HEAD_DICE, ("dualcl_all", "all", 0): (0.92, 0.92, 0.94)}
    parts = sections(load_results(write_store(tmp_path, scores)), ("teacher",), "stock", "stock")
    assert [part.labeled for part in parts] == [3, "all"]
    assert (parts[1].compared, parts[1].baselines) == (("dualcl_all",), ("stock",))
    pooled = comparison_rows(parts[1])[-1]
    # head and tail: (0.02 + 0 + 0) / 3, two cases of three untouched
    assert pooled["mean_difference"] == pytest.approx(0.02 / 3)
    assert (pooled["wins"], pooled["ties"]) == (1, 2)
    assert notes(parts[1], load_results(tmp_path)) == []
