"""Figures of the report: training curves, box plots of Dice, contours of the worst and the median case."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import seaborn
import SimpleITK as sitk
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from nnunet_dualcl.benchmark.results import CURVE_COLUMNS, PREDICTIONS_FOLDER, Results
from nnunet_dualcl.benchmark.summary import Section
from nnunet_dualcl.errors import DualCLError
from nnunet_dualcl.evaluation.metrics import read_image
from nnunet_dualcl.figures import PALETTE, overlay_figure

_COLORS = (*PALETTE, "#000000", "#999999")
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


def data_uri(figure: Figure) -> str:
    """The figure as a PNG inside a ``data:`` address; the same figure gives the same text."""
    buffer = io.BytesIO()
    # without a value for Software, the version of matplotlib would be part of the file
    figure.savefig(buffer, format="png", dpi=_DOTS_PER_INCH, metadata={"Software": None})
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


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
