"""The page of results is what the stored results say."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest
import yaml
from synthetic_store import HEAD_DICE, write_store

ROOT = Path(__file__).parents[2]
PROTOCOL = {
    "title": "Toy", "dataset_id": 777, "dataset_name": "Toy", "labeled": [3], "draws": 2, "steps": 500,
    "arms": {"stock": 2, "mean_teacher": 2, "dualcl": 2, "stock_all": 1, "cps": 1}, "test_cases": 3,
    "validation_cases": 1, "baselines": ["stock", "mean_teacher"],
}  # fmt: skip


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("results_page", ROOT / "benchmarks" / "results_page.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def benchmark(tmp_path: Path) -> Path:
    """A benchmark's folder, with a prediction that must stay there and a job that is not finished."""
    names = {"teacher": "mean_teacher", "dualcl": "dualcl", "stock": "stock"}
    scores = {
        ("stock_all" if labeled == "all" else names[arm], labeled, draw): dice
        for (arm, labeled, draw), dice in HEAD_DICE.items()
    }
    folder = write_store(tmp_path / "out", scores)
    (folder / "protocol.yaml").write_text(yaml.safe_dump(PROTOCOL), encoding="utf-8")
    (folder / "jobs" / "dualcl_3_0" / "predictions").mkdir()
    (folder / "jobs" / "dualcl_3_0" / "predictions" / "001.nii.gz").touch()
    (folder / "jobs" / "cps_3_0").mkdir()
    return folder


def test_results_are_stored_without_volumes_and_shown_between_their_markers(
    script: ModuleType, benchmark: Path, tmp_path: Path
) -> None:
    stores = tmp_path / "stores"
    assert script.store(benchmark, stores / "toy") == len(HEAD_DICE)
    files = {path.name for path in stores.rglob("*") if path.is_file()}
    assert files == {"protocol.yaml", "job.json", "cases.csv", "curves.csv"}
    page = "Before.\n<!-- results of toy -->\nold numbers\n<!-- end of toy -->\nAfter.\n"
    shown = script.rewritten(page, stores)
    assert shown.startswith("Before.\n<!-- results of toy -->\n")
    assert shown.endswith("<!-- end of toy -->\nAfter.\n")
    assert "old numbers" not in shown
    # head and tail of cases 001 and 002, head alone of NA: (0.65 + 0.70 + 0.80) / 3 and (0.59 + 0.65 + 0.70) / 3
    assert "| DualCL | 2 | 0.6817 ± 0.0495 |" in shown
    assert "| DualCL | stock nnU-Net | +0.0" in shown
    # the upper bound has one draw of two: it stands beside the others in that one, and not among the means
    means, first = shown.split("Draw 0 alone, for arms that lack others:")
    assert "stock nnU-Net, all labels" not in means
    assert "| stock nnU-Net, all labels | 1 | 0.8867 |" in first
    assert "| DualCL | 1 | 0.7167 |" in first
    assert "- Not run yet, 1 of 8 jobs: cps_3_0." in shown
    assert script.rewritten(shown, stores) == shown


def test_the_summary_tells_the_gain_and_what_the_control_leaves_of_it(script: ModuleType, tmp_path: Path) -> None:
    scores = {
        ("stock", 3, 0): (0.5, 0.6, 0.7), ("stock", 3, 1): (0.4, 0.5, 0.6),
        ("dualcl", 3, 0): (0.7, 0.8, 0.9), ("dualcl", 3, 1): (0.6, 0.7, 0.8),
        ("dualcl_labeled_only", 3, 1): (0.5, 0.6, 0.7),
        ("stock_all", "all", 0): (0.8, 0.9, 1.0),
    }  # fmt: skip
    store = write_store(tmp_path / "toy", scores)
    arms = {"stock": 2, "dualcl": 2, "dualcl_labeled_only": 2, "stock_all": 1}
    (store / "protocol.yaml").write_text(
        yaml.safe_dump({**PROTOCOL, "arms": arms, "baselines": ["stock"]}), encoding="utf-8"
    )
    page = "<!-- summary of toy -->\n<!-- end of summary -->\n<!-- results of toy -->\n<!-- end of toy -->\n"
    shown = script.rewritten(page, tmp_path)
    (row,) = [line for line in shown.split("<!-- end of summary -->")[0].splitlines() if line.startswith("| Toy |")]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    dice = {arm: [load_dice(store, arm, labeled, draw) for draw in draws] for arm, labeled, draws in (
        ("stock", 3, (0, 1)), ("dualcl", 3, (0, 1)), ("dualcl_labeled_only", 3, (1,)), ("stock_all", "all", (0,)),
    )}  # fmt: skip
    means = {arm: sum(values) / len(values) for arm, values in dice.items()}
    assert cells[2:4] == [f"{means['stock']:.4f}", f"{means['dualcl']:.4f}"]
    assert cells[5] == f"{means['dualcl_labeled_only']:.4f} (draw 1)"
    assert cells[6] == f"{means['stock_all']:.4f} (draw 0)"
    assert cells[7].startswith(f"{means['dualcl'] - means['stock']:+.4f} [+")
    assert cells[8].startswith(f"{dice['dualcl'][1] - means['dualcl_labeled_only']:+.4f} [+")
    assert script.rewritten(shown, tmp_path) == shown


def load_dice(store: Path, arm: str, labeled: int | str, draw: int) -> float:
    """Mean over classes, then over cases."""
    cases = pd.read_csv(store / "jobs" / f"{arm}_{labeled}_{draw}" / "cases.csv", keep_default_na=False)
    cases["dice"] = pd.to_numeric(cases["dice"], errors="coerce")
    return float(cases.groupby("case")["dice"].mean().mean())


def test_commits_of_a_job_that_was_continued_are_named_once(
    script: ModuleType, benchmark: Path, tmp_path: Path
) -> None:
    record = benchmark / "jobs" / "dualcl_3_0" / "job.json"
    content = json.loads(record.read_text(encoding="utf-8"))
    record.write_text(json.dumps({**content, "commit": "fff0000, abc1234"}), encoding="utf-8")
    script.store(benchmark, tmp_path / "toy")
    page = script.rewritten("<!-- results of toy -->\n<!-- end of toy -->\n", tmp_path)
    assert re.search(r"Commits ([^;]*);", page)[1] == "abc1234, fff0000"  # type: ignore[index]


def test_the_page_is_what_the_stored_results_say(script: ModuleType) -> None:
    page = script.PAGE.read_text(encoding="utf-8")
    assert script.rewritten(page, script.STORES) == page, "run benchmarks/results_page.py"
    assert set(script._stores_of(page)) == {path.parent.name for path in script.STORES.glob("*/jobs")}


def test_the_figures_are_what_the_stored_results_say(script: ModuleType) -> None:
    """By their texts: another release of matplotlib draws the same numbers a little differently."""
    folder = script.PAGE.parent
    drawn = {file: svg for store in script.STORES.glob("*/jobs") for file, svg in script.figures(store.parent).items()}
    assert set(drawn) == {f"figures/{path.name}" for path in (folder / "figures").iterdir()}
    page = script.PAGE.read_text(encoding="utf-8")
    for file, svg in drawn.items():
        assert f"]({file})" in page
        assert _texts(svg) == _texts((folder / file).read_text(encoding="utf-8")), "run benchmarks/results_page.py"
        assert re.search(r"0\.\d{4}", " ".join(_texts(svg)))


def _texts(svg: str) -> list[str]:
    return re.findall(r">([^<>]*\w[^<>]*)</text>", svg)
