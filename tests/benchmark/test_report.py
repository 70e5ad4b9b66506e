import csv
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from synthetic_store import HEAD_DICE, LABELS, TEST, case_rows, write_job, write_store, write_volumes

from nnunet_dualcl.benchmark.report import write_report
from nnunet_dualcl.errors import DualCLError
from nnunet_dualcl.evaluation.metrics import EMPTY_RULE

FILES = ("report.html", "summary.csv", "summary.json", "cases.csv")
UPPER = "stock (all labels)"


class Page(HTMLParser):
    """Tables as lists of rows of cells, the addresses of images, the names of all tags."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.images: list[str] = []
        self.tags: set[str] = set()
        self.text = ""
        self._in_cell = False
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self._in_cell = tag in ("td", "th")
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif self._in_cell:
            self.tables[-1][-1].append("")
        elif tag == "img":
            self.images.append(dict(attributes)["src"] or "")

    def handle_endtag(self, tag: str) -> None:
        self._in_cell = False

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._in_cell:
            self.tables[-1][-1][-1] += data.strip()


def report(store: Path, volumes: tuple[Path, Path] | None = None, **changes: Any) -> Page:
    images, references = volumes or write_volumes(store)
    options = {"baselines": ["stock", "teacher"], "lower": "stock", "upper": "stock", "title": "A & B", **changes}
    path = write_report(store, images=images, references=references, **options)
    assert path == store / "report.html"
    return Page(path.read_text(encoding="utf-8"))


def summary(store: Path) -> dict[str, Any]:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    return dict(json.loads((store / "summary.json").read_text(encoding="utf-8"), parse_constant=refuse))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Page]:
    """A complete store and its page."""
    store = write_store(tmp_path_factory.mktemp("complete") / "store")
    return store, report(store)


# ---- numbers


def test_the_summary_by_hand(finished: tuple[Path, Page]) -> None:
    found = summary(finished[0])
    arms = {row["arm"]: row for row in found["arms"]}
    assert list(arms) == ["stock", "teacher", "dualcl", UPPER]
    lower, ours, upper = 3.94 / 6, 4.09 / 6, 2.66 / 3
    assert arms["stock"]["dice"] == pytest.approx(lower)
    assert arms["dualcl"]["dice"] == pytest.approx(ours)
    assert arms["dualcl"]["dice_sd"] == pytest.approx((2.15 - 1.94) / 3 / np.sqrt(2))
    assert arms["dualcl"]["gap_closed"] == pytest.approx((ours - lower) / (upper - lower))
    assert arms["dualcl"]["per_class"]["tail"]["dice"] == pytest.approx(2.39 / 4)
    assert arms[UPPER]["dice_sd"] is None
    pooled = [row for row in found["comparisons"] if row["draw"] == "pooled"]
    assert [row["mean_difference"] for row in pooled] == pytest.approx([0.025, 0.015])
    assert [row["corrected_p"] for row in pooled] == pytest.approx([0.75, 0.75])
    assert found["empty_rule"] == EMPTY_RULE
    assert [job["name"] for job in found["jobs"]][:2] == ["dualcl_3_0", "dualcl_3_1"]


def test_the_summary_table_has_the_numbers_of_the_json(finished: tuple[Path, Page]) -> None:
    with (finished[0] / "summary.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for row, arm in zip(rows, summary(finished[0])["arms"], strict=True):
        assert (row["arm"], row["draws"]) == (arm["arm"], " ".join(map(str, arm["draws"])))
        assert float(row["dice"]) == arm["dice"]
        assert float(row["hd95_mm:tail"]) == arm["per_class"]["tail"]["hd95_mm"]


def test_all_cases_of_all_jobs(finished: tuple[Path, Page]) -> None:
    with (finished[0] / "cases.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(HEAD_DICE) * len(TEST) * 2
    heads = {(row["arm"], row["labeled"], row["draw"]): [] for row in rows}
    for row in rows:
        if row["label"] == "head":
            heads[row["arm"], row["labeled"], row["draw"]].append(float(row["dice"]))
    assert heads == {(arm, str(labeled), str(draw)): [*head] for (arm, labeled, draw), head in HEAD_DICE.items()}
    assert {row["dice"] for row in rows if row["case"] == "NA" and row["label"] == "tail"} == {""}


# ---- page


def test_the_tables_of_the_page(finished: tuple[Path, Page]) -> None:
    scores, differences, costs, jobs = finished[1].tables
    assert [row[0] for row in scores] == ["arm", "stock", "teacher", "dualcl", UPPER]
    ours = dict(zip(scores[0], (" ".join(cell.split()) for cell in scores[3]), strict=True))
    jaccard = {head: [dice / (2 - dice) for dice in (head, head - 0.1)] for head in (0.64, 0.70, 0.75)}
    cases = [*(np.mean(jaccard[head]) for head in (0.70, 0.75, 0.64, 0.70)), 0.8 / 1.2, 0.7 / 1.3]
    assert float(ours.pop("Dice, tail")) == pytest.approx(0.5975, abs=6e-4)
    assert ours == {
        "arm": "dualcl", "draws": "2 (0, 1)", "Dice ± sd": "0.682 ± 0.049", "Dice, head": "0.715",
        "Jaccard": f"{np.mean(cases):.3f}", "HD95, mm": "3.18", "ASD, mm": "0.32", "NSD": "0.682",
        "its median": "3.25", "gap closed": "11% [-19%, 21%]",
    }  # fmt: skip
    assert scores[4][1:3] == ["1 (0) †", "0.887 ± n/a"]
    assert len(differences) == 1 + 2 * 3
    assert differences[3][:5] == ["dualcl", "stock", "pooled", "3", "+0.0250"]
    assert differences[3][6:] == ["2 / 0 / 1", "0.7500"]
    assert differences[1][7] == ""
    assert costs[1] == ["stock", "2", "110", "200", "8.00"]
    assert len(jobs) == 1 + len(HEAD_DICE)


def test_pictures_lie_inside_the_page(finished: tuple[Path, Page]) -> None:
    """The overview, boxes, curves, the worst case and the median case, and nothing from elsewhere."""
    store, page = finished
    assert len(page.images) == 5
    assert all(source.startswith("data:image/png;base64,iVBOR") for source in page.images)
    text = (store / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"https?://|<script|<link", text)
    assert "Software" not in text


def test_what_the_page_must_say(finished: tuple[Path, Page]) -> None:
    text = finished[1].text
    for expected in (
        "A & B", EMPTY_RULE, "† One draw", "dualcl benchmark --arm stock & more", "torch 2.14.1", "abc1234",
        "2 CPU cores", "train (3): tr_1, tr_2, tr_3", "test (3): 001, 002, NA", "val (1): val_0", "not recorded",
    ):  # fmt: skip
        assert expected in text, expected
    assert "Before comparing" not in text


def test_the_tolerance_is_shown_where_jobs_have_it(tmp_path: Path) -> None:
    store = tmp_path / "store"
    write_job(store, "stock", 3, 0, case_rows((0.5, 0.6, 0.7)), tolerance_mm=1.5)
    assert "NSD tolerance:\n1.5 mm." in report(store).text


# ---- determinism and safety


def digests(store: Path) -> dict[str, str]:
    return {name: hashlib.sha256((store / name).read_bytes()).hexdigest() for name in FILES}


def test_the_same_store_gives_the_same_bytes(finished: tuple[Path, Page], tmp_path: Path) -> None:
    """In another folder, written anew."""
    store = write_store(tmp_path / "again")
    report(store)
    assert digests(store) == digests(finished[0])
    assert sorted(path.name for path in store.iterdir()) == sorted([*FILES, "jobs"])


def test_hostile_names_are_shown_and_not_run(tmp_path: Path) -> None:
    store = tmp_path / "store"
    hostile = "<script>alert('$x_1$')</script>"
    rows = [{**row, "label": hostile if row["label"] == "tail" else "head"} for row in case_rows((0.5, 0.6, 0.7))]
    labels = {"background": 0, "head": 1, hostile: 2}
    write_job(store, "stock", 3, 0, rows, labels=labels, commit="<img src=x>", command="<b>$(rm)</b>")
    page = report(store, title="</title><script>")
    assert "script" not in page.tags
    assert "b" not in page.tags
    assert len(page.images) == 5
    assert f"Dice, {hostile}" in page.tables[0][0]
    assert "<b>$(rm)</b>" in page.text


# ---- stores that are not complete


def test_an_unfinished_job_is_named_and_ignored(tmp_path: Path) -> None:
    store = write_store(tmp_path / "store")
    volumes = write_volumes(store)
    (store / "jobs" / "dualcl_3_1" / "job.json").unlink()
    page = report(store, volumes)
    assert "The job 'dualcl_3_1' is not finished and not counted." in page.text
    ours = next(row for row in summary(store)["arms"] if row["arm"] == "dualcl")
    assert (ours["draws"], ours["dice"]) == ([0], pytest.approx(2.15 / 3))
    assert "dualcl_3_1" not in (store / "cases.csv").read_text(encoding="utf-8")


def test_only_a_baseline_is_finished(tmp_path: Path) -> None:
    store = tmp_path / "store"
    job = write_job(store, "stock", 3, 0, case_rows((0.5, 0.6, 0.7)))
    (job / "curves.csv").unlink()
    page = report(store)
    assert "No paired comparison" in page.text
    assert "the baseline 'teacher' has no finished job" in page.text
    assert page.tables[0][1][-1] == "n/a"
    assert len(page.images) == 4


def test_a_missing_or_misshapen_volume_costs_a_picture_only(tmp_path: Path) -> None:
    store = write_store(tmp_path / "store")
    images, references = write_volumes(store)
    (store / "jobs" / "teacher_3_0" / "predictions" / "001.nii.gz").unlink()
    (images / "002_0000.nii.gz").write_bytes((images / "001_0000.nii.gz").read_bytes()[:100])
    page = report(store, (images, references))
    assert len(page.images) == 3
    assert "Worst case of dualcl: 001. No picture" in page.text
    assert "Median case of dualcl: 002. No picture" in page.text


def test_a_label_without_a_name_is_not_drawn(tmp_path: Path) -> None:
    """nnU-Net's ignore label is in references and not in the list of labels."""
    store = tmp_path / "store"
    rows = [row for row in case_rows((0.5, 0.6, 0.7)) if row["label"] == "head"]
    write_job(store, "stock", 3, 0, rows, labels={name: value for name, value in LABELS.items() if name != "tail"})
    assert len(report(store).images) == 5


def test_an_empty_store(tmp_path: Path) -> None:
    with pytest.raises(DualCLError, match="No finished job"):
        report(tmp_path, (tmp_path, tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_more_arms_than_colors(tmp_path: Path) -> None:
    store = tmp_path / "store"
    for number in range(11):
        write_job(store, f"arm{number:02}", 3, 0, case_rows((0.5, 0.6, 0.7)))
    page = report(store, (tmp_path, tmp_path), baselines=["arm00"], lower="arm00", upper="arm10")
    assert len(page.tables[0]) == 12
    assert len(page.images) == 3
