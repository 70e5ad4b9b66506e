from __future__ import annotations

import csv
from pathlib import Path

import matplotlib
import seaborn

from nnunet_dualcl.layout import TERM_LOG_FILE, TERM_PICTURE_FILE
from nnunet_dualcl.training import SemiSupervisedLoss, TermLog

TERMS, OBSERVATIONS = SemiSupervisedLoss.terms, SemiSupervisedLoss.observations


def values(level: float) -> dict[str, float]:
    return dict.fromkeys(TERMS + OBSERVATIONS, level)


def test_table_has_a_row_an_epoch(tmp_path: Path) -> None:
    log = TermLog()
    for epoch in range(3):
        log.add(epoch, 1.0 + epoch, values(epoch / 4), dict.fromkeys(TERMS, 0.5))
    log.write(tmp_path)
    rows = list(csv.DictReader((tmp_path / TERM_LOG_FILE).open(encoding="utf-8")))
    assert [row["epoch"] for row in rows] == ["0", "1", "2"]
    assert set(rows[0]) == {"epoch", "total", *TERMS, *OBSERVATIONS, *(f"weight_{name}" for name in TERMS)}
    assert float(rows[2]["total"]) == 3.0
    assert float(rows[1]["contrastive"]) == 0.25
    assert (tmp_path / TERM_PICTURE_FILE).read_bytes().startswith(b"\x89PNG")


def test_a_resumed_epoch_replaces_what_came_after(tmp_path: Path) -> None:
    log = TermLog()
    for epoch in range(4):
        log.add(epoch, 0.0, values(0.1), dict.fromkeys(TERMS, 1.0))
    log.add(2, 9.0, values(0.2), dict.fromkeys(TERMS, 1.0))
    assert [row["epoch"] for row in log.rows] == [0, 1, 2]
    assert log.rows[-1]["total"] == 9.0


def test_a_term_that_earlier_rows_lack_has_a_column(tmp_path: Path) -> None:
    log = TermLog()
    log.add(0, 1.0, values(0.1), dict.fromkeys(TERMS, 1.0))
    log.add(1, 1.0, {**values(0.1), "own": 0.3}, {**dict.fromkeys(TERMS, 1.0), "own": 2.0})
    log.write(tmp_path)
    rows = list(csv.DictReader((tmp_path / TERM_LOG_FILE).open(encoding="utf-8")))
    assert [(row["own"], row["weight_own"]) for row in rows] == [("nan", "nan"), ("0.3", "2.0")]
    shown = [[line.get_label() for line in panel.lines] for panel in log.figure().axes]
    assert shown == [[*TERMS, "own"], [*TERMS, "own"], list(OBSERVATIONS)]


def test_same_rows_give_the_same_files(tmp_path: Path) -> None:
    for name in ("one", "two"):
        log = TermLog()
        log.add(0, 1.0, values(0.3), dict.fromkeys(TERMS, 1.0))
        log.write(tmp_path / name)
    for file in (TERM_LOG_FILE, TERM_PICTURE_FILE):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_the_style_of_others_does_not_reach_the_picture(tmp_path: Path) -> None:
    """nnU-Net's picture of progress makes all later text of the process 2.5 times as large."""
    log = TermLog()
    log.add(0, 1.0, values(0.3), dict.fromkeys(TERMS, 1.0))
    log.write(tmp_path / "before")
    with matplotlib.rc_context():
        seaborn.set_theme(font_scale=2.5)
        log.write(tmp_path / "after")
        assert matplotlib.rcParams["font.size"] == 30  # and others keep theirs
    assert (tmp_path / "before" / TERM_PICTURE_FILE).read_bytes() == (
        tmp_path / "after" / TERM_PICTURE_FILE
    ).read_bytes()


def test_nothing_to_write_writes_nothing(tmp_path: Path) -> None:
    TermLog().write(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_picture_is_drawn_less_often_later_and_at_the_end(tmp_path: Path) -> None:
    log, picture = TermLog(), tmp_path / TERM_PICTURE_FILE
    drawn = {}
    for epoch in (48, 49, 50, 58, 59, 60, 61):
        log.add(epoch, 1.0, values(0.3), dict.fromkeys(TERMS, 1.0))
        log.write(tmp_path, last=epoch == 61)
        drawn[epoch] = picture.is_file()
        picture.unlink(missing_ok=True)
    assert [epoch for epoch, there in drawn.items() if there] == [48, 49, 59, 61]
    assert len(list(csv.DictReader((tmp_path / TERM_LOG_FILE).open(encoding="utf-8")))) == 7
