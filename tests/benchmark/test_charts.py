from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from synthetic_store import case_rows, write_job, write_store, write_volumes

from nnunet_dualcl.benchmark.charts import (
    arm_styles,
    case_overlay,
    data_uri,
    dice_boxes,
    overview,
    svg,
    training_curves,
)
from nnunet_dualcl.benchmark.results import load_results
from nnunet_dualcl.benchmark.summary import Section, arm_rows, comparison_rows, sections
from nnunet_dualcl.errors import DualCLError

UPPER = "stock (all labels)"


def the_section(store: Path) -> Section:
    (section,) = sections(load_results(store), ["stock", "teacher"], "stock", "stock")
    return section


def overlay(store: Path, case: str) -> Figure:
    folders = store.parent / "imagesTs", store.parent / "labelsTs"
    return case_overlay(the_section(store), load_results(store), case, "a case", *folders)


def headings(figure: Figure) -> list[str]:
    return [panel.get_title() for panel in figure.axes if panel.get_title()]


def test_arms_look_different() -> None:
    styles = arm_styles([f"arm{number}" for number in range(27)])
    assert len(set(styles.values())) == 27
    assert len({color for color, _ in list(styles.values())[:9]}) == 9


def test_a_line_a_job_in_the_color_of_its_arm(tmp_path: Path) -> None:
    section = the_section(write_store(tmp_path))
    styles = arm_styles(section.arms)
    figure = training_curves(section, styles)
    assert [panel.get_title() for panel in figure.axes] == ["train loss", "val loss", "ema fg dice"]
    for panel in figure.axes:
        assert sorted(line.get_color() for line in panel.lines) == sorted(
            styles[arm][0] for arm in ("stock", "stock", "teacher", "teacher", "dualcl", "dualcl", UPPER)
        )
    np.testing.assert_allclose(figure.axes[1].lines[0].get_ydata(), [0, -0.2, -0.4, -0.6])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list(section.arms)


def test_a_training_of_one_epoch_is_seen(tmp_path: Path) -> None:
    curves = write_store(tmp_path) / "jobs" / "dualcl_3_0" / "curves.csv"
    curves.write_text("\n".join(curves.read_text().splitlines()[:2]) + "\n")
    section = the_section(tmp_path)
    lines = training_curves(section, arm_styles(section.arms)).axes[0].lines
    assert sorted((len(line.get_xdata()), line.get_marker()) for line in lines) == [(1, "."), *[(4, "None")] * 6]


def test_a_box_an_arm_at_the_quartiles_of_its_cases(tmp_path: Path) -> None:
    section = the_section(write_store(tmp_path))
    styles = arm_styles(section.arms)
    (panel,) = dice_boxes(section, styles).axes
    assert [label.get_text() for label in panel.get_yticklabels()] == list(section.arms)
    assert len(panel.patches) == 4
    ours = panel.patches[2].get_path().get_extents()
    np.testing.assert_allclose([ours.x0, ours.x1], np.percentile([0.65, 0.70, 0.80, 0.59, 0.65, 0.70], (25, 75)))
    assert len({to_hex(patch.get_facecolor()) for patch in panel.patches}) == 4


def dots(figure: Figure, panel: int) -> dict[str, list[list[float]]]:
    """Name of a row to the abscissas of each of its lines: interval (where there is one), draws, mean."""
    found: dict[str, list[list[float]]] = {}
    names = [label.get_text() for label in figure.axes[panel].get_yticklabels()]
    for line in figure.axes[panel].lines:
        if list(line.get_xdata()) != [0, 0]:  # the line of no difference
            found.setdefault(names[int(line.get_ydata()[0])], []).append(list(line.get_xdata()))
    return found


def test_the_overview_shows_means_draws_and_intervals(tmp_path: Path) -> None:
    write_store(tmp_path)
    write_job(tmp_path, "without", 3, 0, case_rows((0.5, 0.6, 0.7)))
    (section,) = sections(load_results(tmp_path), ["stock", "teacher"], "stock", "stock", ["dualcl"])
    arms, rows = arm_rows(section), comparison_rows(section)
    figure = overview(section, arms, rows, arm_styles(section.arms), {"dualcl": "Dual$CL"})
    dice = dots(figure, 0)
    # the best one on top, and below all what lacks draws
    assert list(dice) == ["without (draw 0)", f"{UPPER} (draw 0)", "stock", "teacher", r"Dual\$CL"]
    np.testing.assert_allclose(dice[r"Dual\$CL"][0], [(0.65 + 0.70 + 0.80) / 3, (0.59 + 0.65 + 0.70) / 3])
    assert dice[r"Dual\$CL"][1] == [pytest.approx(0.6816666666666667)]
    assert len(dice["without (draw 0)"]) == 1  # one draw, no small dots
    shown = dots(figure, 1)
    assert list(shown) == [
        r"without less Dual\$CL", r"Dual\$CL less teacher", r"Dual\$CL less stock"
    ]  # from below; what the variant has over the baselines is left to the table # fmt: skip
    (pooled,) = [r for r in rows if (r["arm"], r["baseline"], r["draw"]) == ("dualcl", "stock", "pooled")]
    interval, draws, mean = shown[r"Dual\$CL less stock"]
    assert interval == [pooled["low"], pooled["high"]]
    np.testing.assert_allclose(sorted(draws), sorted([np.mean([0.1, 0.05, 0]), np.mean([0.02, 0.04, -0.06])]))
    assert mean == [pooled["mean_difference"]]
    texts = [text.get_text() for panel in figure.axes for text in panel.texts]
    assert f"{pooled['mean_difference']:+.4f} [{pooled['low']:+.4f}, {pooled['high']:+.4f}]" in texts
    assert "0.6817" in texts


def test_without_a_comparison_the_overview_is_its_left_half(tmp_path: Path) -> None:
    write_store(tmp_path, {("stock", 3, 0): (0.6, 0.7, 0.8)})
    section = the_section(tmp_path)
    figure = overview(section, arm_rows(section), comparison_rows(section), arm_styles(section.arms))
    assert list(dots(figure, 0)) == ["stock"]
    assert len(figure.axes) == 1


def test_svg_has_its_texts_as_text_and_no_date() -> None:
    pages = []
    for _ in range(2):
        figure = Figure()
        figure.subplots().set(title="DualCL less stock")
        pages.append(svg(figure))
    assert ">DualCL less stock</text>" in pages[0]
    assert "<dc:date>" not in pages[0]
    assert pages[0] == pages[1]


def test_the_heading_has_the_dice_of_the_draw_shown(tmp_path: Path) -> None:
    store = write_store(tmp_path / "store")
    write_volumes(store)
    assert headings(overlay(store, "001")) == [
        "reference", "stock\nDice 0.550", "teacher\nDice 0.590", "dualcl\nDice 0.650", f"{UPPER}\nDice 0.850"
    ]  # fmt: skip


def test_of_many_arms_those_that_the_comparison_is_about_are_drawn(tmp_path: Path) -> None:
    store = write_store(tmp_path / "store")
    for number in range(4):
        write_job(store, f"variant{number}", 3, 0, case_rows((0.5, 0.6, 0.7)))
    write_volumes(store)
    assert [heading.split("\n")[0] for heading in headings(overlay(store, "001"))] == [
        "reference", "stock", "teacher", "dualcl", UPPER
    ]  # fmt: skip


def test_what_cannot_be_drawn_is_named(tmp_path: Path) -> None:
    store = write_store(tmp_path / "store")
    images, _ = write_volumes(store)
    (images / "002_0000.nii.gz").unlink()
    with pytest.raises(DualCLError, match=r"002_0000\.nii\.gz is missing"):
        overlay(store, "002")
    (images / "001_0000.nii.gz").write_bytes(b"half")
    with pytest.raises(DualCLError, match=r"001_0000\.nii\.gz cannot be read"):
        overlay(store, "001")


def test_the_same_figure_gives_the_same_address(tmp_path: Path) -> None:
    section = the_section(write_store(tmp_path))
    first, second = (data_uri(dice_boxes(section, arm_styles(section.arms))) for _ in range(2))
    assert first == second
    assert first.startswith("data:image/png;base64,")
