"""Figures of the report: Dice and paired differences by arm, box plots, training curves, contours of single cases."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import seaborn
import SimpleITK as sitk
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from nnunet_dualcl.benchmark.results import CURVE_COLUMNS, PREDICTIONS_FOLDER, Results
from nnunet_dualcl.benchmark.summary import POOLED, Section, lacking_draws
from nnunet_dualcl.errors import DualCLError
from nnunet_dualcl.evaluation.metrics import read_image
from nnunet_dualcl.figures import PALETTE, overlay_figure, own_style

_YELLOW = "#F0E442"
_COLORS = (*[color for color in PALETTE if color != _YELLOW], "#000000", "#999999", _YELLOW)
"""The one that is faint on white comes last."""
_LINE_STYLES = ("-", "--", ":")
_DOTS_PER_INCH = 100
_MOST_OVERLAYS = 7
"""Arms beside each other; more would be too small to see."""

ArmStyles = Mapping[str, tuple[str, str]]
"""Arm to color and line style."""


def arm_styles(arms: Iterable[str]) -> dict[str, tuple[str, str]]:
    """A look for each arm, by its place in the order; the line style changes once the colors are used up."""
    return {
        arm: (_COLORS[rank % len(_COLORS)], _LINE_STYLES[rank // len(_COLORS) % len(_LINE_STYLES)])
        for rank, arm in enumerate(dict.fromkeys(arms))
    }


@own_style()
def training_curves(section: Section, styles: ArmStyles) -> Figure:
    """Each column of the curves over the epochs, a line a job, colored by arm."""
    figure = Figure(figsize=(11, 3.2), layout="constrained", facecolor="white")
    panels = figure.subplots(1, len(CURVE_COLUMNS) - 1)
    for panel, column in zip(panels, CURVE_COLUMNS[1:], strict=True):
        for (arm, _), curve in section.curves.groupby(["arm", "job"]):
            color, line_style = styles[arm]
            look = {"color": color, "linestyle": line_style, "linewidth": 1.2}
            if len(curve) == 1:  # a line of one point cannot be seen
                look["marker"] = "."
            panel.plot(curve["epoch"], curve[column], **look)
        panel.set(xlabel="epoch", title=column.replace("_", " "))
        panel.xaxis.get_major_locator().set_params(integer=True)
        panel.spines[["top", "right"]].set_visible(False)
    handles = []
    for arm in section.arms:
        color, line_style = styles[arm]
        handles.append(Line2D([], [], label=_literal(arm), color=color, linestyle=line_style))
    figure.legend(handles=handles, loc="outside lower center", ncols=5, frameon=False, fontsize=9)
    return figure


@own_style()
def dice_boxes(section: Section, styles: ArmStyles) -> Figure:
    """Box plots of the cases' mean Dice by arm: quartiles, whiskers to 1.5 times their distance, outliers."""
    scores = section.scores["dice"].dropna().reset_index()
    figure = Figure(figsize=(8, 1.1 + 0.42 * len(section.arms)), layout="constrained", facecolor="white")
    panel = figure.subplots()
    options = {"order": section.arms, "hue_order": section.arms, "palette": [styles[arm][0] for arm in section.arms]}
    seaborn.boxplot(scores, x="dice", y="arm", hue="arm", legend=False, width=0.6, fliersize=3, ax=panel, **options)
    panel.set_yticks(range(len(section.arms)), [_literal(arm) for arm in section.arms])
    panel.set(xlabel="Dice, mean over labels; one value a case and draw", ylabel="")
    panel.grid(axis="x", color="#dddddd")
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)
    return figure


@own_style()
def overview(
    section: Section,
    arms: Sequence[Mapping[str, Any]],
    comparisons: Sequence[Mapping[str, Any]],
    styles: ArmStyles,
    titles: Mapping[str, str] | None = None,
) -> Figure:
    """Left, the mean Dice of every arm; right, what the focus arm has over each baseline and the others over it.

    A large dot is the mean over draws, with the 95 % interval where it is a difference; small ones are single draws.
    Arms that lack draws come below the others, with the draws that they have.

    Args:
        section: whose arms are shown.
        arms: its rows of ``summary.arm_rows``.
        comparisons: its rows of ``summary.comparison_rows``; without any there is no right half.
        styles: of the arms.
        titles: to write in place of the arms' names.
    """
    titles = titles or {}
    pooled = [row for row in comparisons if row["draw"] == POOLED and section.focus in (row["arm"], row["baseline"])]
    halves = 2 if pooled else 1
    height = 1.3 + 0.3 * max(len(arms), len(pooled))
    figure = Figure(figsize=(7 * halves, height), layout="constrained", facecolor="white")
    panels = figure.subplots(1, halves, squeeze=False)[0]
    by_draw = section.scores["dice"].groupby(["arm", "draw"]).mean()
    lacking = lacking_draws(section)
    ranked = sorted(arms, key=lambda row: (row["arm"] not in lacking, row["dice"]))
    for place, row in enumerate(ranked):
        _draws_and_mean(panels[0], place, by_draw.loc[row["arm"]], row["dice"], styles[row["arm"]][0])
    if lacking:
        panels[0].axhline(len(lacking) - 0.5, color="#222222", linewidth=0.8)
    names = [titles.get(row["arm"], row["arm"]) + _only(row, lacking) for row in ranked]
    _rows_of(panels[0], names, [f"{row['dice']:.4f}" for row in ranked], "Dice, mean over labels and cases")
    if not pooled:
        return figure
    names, texts = [], []
    for place, row in enumerate(reversed(pooled)):
        color = styles[row["arm"]][0]
        pair = [row["arm"], row["baseline"]]
        same = [other for other in comparisons if [other["arm"], other["baseline"]] == pair]
        panels[1].plot([row["low"], row["high"]], [place, place], color=color, linewidth=2, solid_capstyle="butt")
        draws = [other["mean_difference"] for other in same if other["draw"] != POOLED]
        _draws_and_mean(panels[1], place, draws, row["mean_difference"], color)
        names.append(" less ".join(titles.get(arm, arm) for arm in pair))
        texts.append(f"{row['mean_difference']:+.4f} [{row['low']:+.4f}, {row['high']:+.4f}]")
    panels[1].axvline(0, color="#222222", linewidth=0.8)
    _rows_of(panels[1], names, texts, "paired difference in Dice, 95 % interval over cases")
    return figure


@own_style()
def case_overlay(section: Section, results: Results, case: str, title: str, images: Path, references: Path) -> Figure:
    """Contours of one case in the reference and in the arms, in the first draw of the focus arm.

    Of more than seven arms, the bounds, the baselines and the focus arm are shown. An arm without the draw shows its
    first. The heading has the arm's mean Dice of the case in that draw.

    Args:
        section: whose arms are shown.
        results: where the predictions lie.
        case: name; ``CASE_0000`` in ``images`` and ``CASE`` elsewhere, with the store's file ending.
        title: of the figure.
        images: folder of images.
        references: folder of reference segmentations.

    Raises:
        DualCLError: a file is missing or cannot be read, is not 3D, or has another size than the image.
    """
    image = read_image(images / f"{case}_0000{results.file_ending}")
    array = sitk.GetArrayFromImage(image)
    labels = {value: _literal(name) for value, name in _names_of_values(results.labels).items()}
    file = f"{case}{results.file_ending}"
    segmentations = {"reference": _segmentation(references / file, labels)}
    scores = section.scores["dice"]
    for arm, job in _shown_jobs(section).items():
        dice = scores.get((arm, job["draw"], case), np.nan)
        heading = f"{_literal(arm)}\nDice {dice:.3f}"
        segmentations[heading] = _segmentation(results.job_folder(job["name"]) / PREDICTIONS_FOLDER / file, labels)
    try:
        return overlay_figure(
            array, segmentations, label_names=labels, spacing_mm=image.GetSpacing()[::-1], title=_literal(title)
        )
    except ValueError as error:
        raise DualCLError(f"Case {case} cannot be drawn: {error}") from error


@own_style()
def data_uri(figure: Figure) -> str:
    """The figure as a PNG inside a ``data:`` address; the same figure gives the same text."""
    buffer = io.BytesIO()
    # without a value for Software, the version of matplotlib would be part of the file
    figure.savefig(buffer, format="png", dpi=_DOTS_PER_INCH, metadata={"Software": None})
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _only(row: Mapping[str, Any], lacking: Sequence[str]) -> str:
    """After the name of an arm that lacks draws, those that it has."""
    return f" (draw {', '.join(map(str, row['draws']))})" if row["arm"] in lacking else ""


def _draws_and_mean(panel: Axes, place: int, draws: Iterable[float], mean: float, color: str) -> None:
    draws = list(draws)
    if len(draws) > 1:
        panel.plot(draws, [place] * len(draws), "o", color=color, markersize=4, markerfacecolor="white")
    panel.plot([mean], [place], "o", color=color, markersize=7)


def _rows_of(panel: Axes, names: Sequence[str], texts: Sequence[str], quantity: str) -> None:
    """Names at the left and texts at the right of the rows, the first one at the bottom."""
    panel.set_yticks(range(len(names)), [_literal(name) for name in names], fontsize=9)
    for place, text in enumerate(texts):
        panel.annotate(text, (1.01, place), xycoords=("axes fraction", "data"), va="center", fontsize=9)
    panel.set(xlabel=quantity, ylim=(-0.7, len(names) - 0.3))
    panel.grid(axis="x", color="#dddddd")
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)


@own_style()
def svg(figure: Figure) -> str:
    """The figure as SVG, its texts as text; the same figure gives the same bytes."""
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "nnunet_dualcl"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue().decode("utf-8")


def _shown_jobs(section: Section) -> dict[str, Any]:
    """Arm to the row of the job whose prediction is shown."""
    draw = section.jobs.loc[section.jobs["arm"] == section.focus, "draw"].min()
    chosen = {section.lower, *section.baselines, section.focus, section.upper}
    shown = {}
    for arm in section.arms:
        if len(section.arms) > _MOST_OVERLAYS and arm not in chosen:
            continue
        jobs = section.jobs[section.jobs["arm"] == arm].sort_values(["draw", "seed"])
        same = jobs[jobs["draw"] == draw]
        shown[arm] = (same if len(same) else jobs).iloc[0]
    return shown


def _names_of_values(labels: Mapping[str, int | Sequence[int]]) -> dict[int, str]:
    """Value to label; of regions that overlap, the smallest one names a value."""
    regions = {name: [values] if isinstance(values, int) else list(values) for name, values in labels.items()}
    largest_first = sorted(regions, key=lambda name: len(regions[name]), reverse=True)
    return {value: name for name in largest_first for value in regions[name]}


def _segmentation(file: Path, labels: Iterable[int]) -> np.ndarray:
    """The named labels of a file, (z, y, x); others, such as nnU-Net's ignore label, become background."""
    array = sitk.GetArrayFromImage(read_image(file))
    return np.where(np.isin(array, list(labels)), array, 0)


def _literal(text: str) -> str:
    """Text that matplotlib shows as it is: a dollar sign would start a formula."""
    return text.replace("$", r"\$")
