import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from synthetic_store import HEAD_DICE, TEST, case_rows, write_job, write_store

from nnunet_dualcl.benchmark.results import CASE_COLUMNS, CURVE_COLUMNS, IDENTITY, labeled_rank, load_results
from nnunet_dualcl.errors import DualCLError


def change(job: Path, **changes: Any) -> None:
    file = job / "job.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_jobs_are_sorted_by_labeled_arm_and_draw(tmp_path: Path) -> None:
    results = load_results(write_store(tmp_path))
    few = [f"{arm}_3_{draw}" for arm in ("dualcl", "stock", "teacher") for draw in (0, 1)]
    assert list(results.jobs["name"]) == [*few, "stock_all_0"]
    assert list(results.jobs["labeled"]) == [3] * 6 + ["all"]
    assert [record["name"] for record in results.records] == list(results.jobs["name"])
    assert not {"split", "versions", "labels"} & set(results.jobs.columns)
    assert results.labels == {"head": 1, "tail": 2}
    assert results.job_folder("stock_3_1") == tmp_path / "jobs" / "stock_3_1"


def test_cases_and_curves_of_all_jobs(tmp_path: Path) -> None:
    results = load_results(write_store(tmp_path))
    assert list(results.cases.columns) == [*IDENTITY, *CASE_COLUMNS]
    assert list(results.curves.columns) == [*IDENTITY, *CURVE_COLUMNS]
    assert len(results.cases) == len(HEAD_DICE) * len(TEST) * 2
    assert len(results.curves) == len(HEAD_DICE) * 4
    job = results.cases[results.cases["job"] == "stock_3_1"]
    assert list(job["case"]) == ["001", "001", "002", "002", "NA", "NA"]
    np.testing.assert_array_equal(job["dice"], [0.62, 0.62 - 0.1, 0.66, 0.66 - 0.1, 0.76, np.nan])
    assert set(zip(job["arm"], job["labeled"], job["draw"], job["seed"], strict=True)) == {("stock", 3, 1, 0)}


def test_an_unfinished_job_is_named_and_not_read(tmp_path: Path) -> None:
    write_store(tmp_path)
    (tmp_path / "jobs" / "stock_3_1" / "job.json").unlink()
    (tmp_path / "jobs" / "notes.txt").touch()
    results = load_results(tmp_path)
    assert results.unfinished == ("stock_3_1",)
    assert "stock_3_1" not in set(results.cases["job"]) | set(results.jobs["name"])


def test_a_job_without_curves(tmp_path: Path) -> None:
    job = write_job(tmp_path, "ensemble", 3, 0, case_rows((0.5, 0.5, 0.5)))
    (job / "curves.csv").unlink()
    assert load_results(tmp_path).curves.shape == (0, len(IDENTITY) + len(CURVE_COLUMNS))


def test_more_columns_and_keys_are_no_fault(tmp_path: Path) -> None:
    rows = [{**row, "volume_ml": 3} for row in case_rows((0.5, 0.5, 0.5))]
    write_job(tmp_path, "stock", 3, 0, rows, tolerance_mm=1.0)
    results = load_results(tmp_path)
    assert list(results.cases.columns) == [*IDENTITY, *CASE_COLUMNS]
    assert results.records[0]["tolerance_mm"] == 1.0


def test_all_comes_last() -> None:
    assert sorted(["all", 10, 2], key=labeled_rank) == [2, 10, "all"]


@pytest.mark.parametrize("start", ["", "jobs/unfinished/predictions"])
def test_no_finished_job(tmp_path: Path, start: str) -> None:
    (tmp_path / start).mkdir(parents=True, exist_ok=True)
    with pytest.raises(DualCLError, match=r"No finished job under .*jobs"):
        load_results(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "other"}, "is of the job 'other'"),
        ({"split": {"train": [], "val": []}}, r"lacks split\.unlabeled, split\.test"),
        ({"labeled": "3"}, "labeled is a number of cases or 'all', got '3'"),
        ({"labels": {"head": 1}}, r"Jobs \['dualcl_3_0', 'stock_all_0'\] differ in labels"),
        ({"dataset": "Dataset001_Other"}, "differ in dataset"),
        ({"labels": {"background": 0}}, "differ in labels"),
        ({"split": {"train": [], "val": [], "unlabeled": [], "test": []}}, "names no case to score, or no label"),
        ({"arm": "stock"}, "Jobs dualcl_3_0 and stock_3_0 are the same run"),
    ],
)
def test_job_files_that_do_not_fit(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    write_store(tmp_path)
    change(tmp_path / "jobs" / "dualcl_3_0", **changes)
    with pytest.raises(DualCLError, match=message):
        load_results(tmp_path)


def test_a_broken_or_short_job_file_is_named(tmp_path: Path) -> None:
    job = write_job(tmp_path, "stock", 3, 0, case_rows((0.5, 0.5, 0.5)))
    (job / "job.json").write_text("{}")
    with pytest.raises(DualCLError, match=r"job\.json lacks name, arm, labeled"):
        load_results(tmp_path)
    (job / "job.json").write_text('{"name": ')
    with pytest.raises(DualCLError, match=r"stock_3_0.job\.json is not JSON"):
        load_results(tmp_path)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (case_rows((0.5, 0.6, 0.7))[:4], r"each case and label once; look at \[\('NA', 'head'\), \('NA'"),
        (case_rows((0.5, 0.6, 0.7)) + case_rows((0.5, 0.6, 0.7))[:1], r"once; look at \[\('001', 'head'\)"),
        ([{**row, "dice": "good"} for row in case_rows((0.5, 0.6, 0.7))], "is not a table of case, label, dice"),
        ([{"case": "001", "label": "head", "dice": 1}], "is not a table of .*jaccard"),
    ],
)  # fmt: skip
def test_tables_of_cases_that_do_not_fit(tmp_path: Path, rows: list[dict[str, Any]], message: str) -> None:
    write_job(tmp_path, "stock", 3, 0, rows)
    with pytest.raises(DualCLError, match=message):
        load_results(tmp_path)


def test_a_missing_or_empty_table_of_cases(tmp_path: Path) -> None:
    job = write_job(tmp_path, "stock", 3, 0, case_rows((0.5, 0.6, 0.7)))
    (job / "cases.csv").write_text("")
    with pytest.raises(DualCLError, match=r"cases\.csv is not a table"):
        load_results(tmp_path)
    (job / "cases.csv").unlink()
    with pytest.raises(DualCLError, match=r"cases\.csv is missing"):
        load_results(tmp_path)


def test_numbers_survive_to_the_last_bit(tmp_path: Path) -> None:
    values = tuple(np.random.default_rng(0).random(3))
    write_job(tmp_path, "stock", 3, 0, case_rows(values))
    cases = load_results(tmp_path).cases
    np.testing.assert_array_equal(cases.loc[cases["label"] == "head", "dice"], values)
    assert pd.api.types.is_float_dtype(cases["nsd"])


def test_scores_of_validation_cases_are_told_from_those_of_test_cases(tmp_path: Path) -> None:
    folder = write_store(tmp_path)
    jobs = sorted((folder / "jobs").iterdir())
    for number, job in enumerate(jobs):
        record = json.loads((job / "job.json").read_text())
        record["split"].update(val=record["split"]["test"], test=["another"])
        record["scored"] = "val"
        (job / "job.json").write_text(json.dumps(record))
        if number == 0:
            with pytest.raises(DualCLError, match="differ in scored"):
                load_results(folder)
    assert set(load_results(folder).cases["case"]) == set(TEST)
