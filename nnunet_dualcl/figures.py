"""Figures of segmentations over the image: contours in three planes, one column a method."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from nnunet_dualcl.atomic import replacing

PALETTE = ("#E69F00", "#56B4E9", "#CC79A7", "#009E73", "#F0E442", "#D55E00", "#0072B2")
"""Okabe and Ito's colors, which color-blind readers tell apart; black is left out, it would not be seen."""
_LINE_STYLES = ("-", "--", ":")
"""For classes beyond the palette."""
_PLANES = (("axial", 0), ("coronal", 1), ("sagittal", 2))
_WIDTH_INCHES = 2.6
"""Of one column."""


@contextmanager
def own_style() -> Iterator[None]:
    """Matplotlib's defaults inside: nnU-Net's picture of progress changes the style of the whole process.

    Also a decorator of functions that draw.
    """
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        yield


@own_style()
def overlay_figure(
    image: np.ndarray,
    segmentations: Mapping[str, np.ndarray],
    *,
    label_names: Mapping[int, str],
    spacing_mm: tuple[float, float, float],
    title: str,
) -> Figure:
    """Contours of each segmentation over the image, in the slices where the first one has most foreground.

    Rows are the axial, coronal and sagittal plane, columns the segmentations in the order given; a millimeter
    has the same length in all panels. Where the first segmentation is empty, the middle slices are shown.

    Args:
        image: (z, y, x), any units; shown from its 1st to its 99.9th percentile.
        segmentations: column heading to label map (z, y, x), the reference first.
        label_names: label to name; label 0 is background and not drawn.
        spacing_mm: voxel size (z, y, x).
        title: of the whole figure.

    Raises:
        ValueError: no segmentation, a shape that differs from the image's, or a label without a name.
    """
    _check(image, segmentations, label_names, spacing_mm)
    names = {label: name for label, name in sorted(label_names.items()) if label != 0}
    position = slices_with_most_foreground(next(iter(segmentations.values())))
    window = tuple(np.percentile(image, (1, 99.9)))
    extents_mm = np.array(image.shape) * np.asarray(spacing_mm)
    heights_mm = [extents_mm[1], extents_mm[0], extents_mm[0]]
    # sagittal slices are extents_mm[1] wide, the others extents_mm[2]
    widest_mm = max(extents_mm[1], extents_mm[2])
    inches_per_mm = _WIDTH_INCHES / widest_mm
    figure = Figure(
        figsize=(_WIDTH_INCHES * len(segmentations) + 0.6, sum(heights_mm) * inches_per_mm + 1.3),
        layout="constrained",
        facecolor="white",
    )
    panels = figure.subplots(3, len(segmentations), squeeze=False, height_ratios=heights_mm)
    for column, (heading, segmentation) in enumerate(segmentations.items()):
        panels[0, column].set_title(heading, fontsize=10)
        for (plane, axis), panel in zip(_PLANES, panels[:, column], strict=True):
            across = [spacing for other, spacing in enumerate(spacing_mm) if other != axis]
            _draw_panel(
                panel,
                np.take(image, position[axis], axis),
                np.take(segmentation, position[axis], axis),
                names,
                window,
                (across[0], across[1]),
                upward=plane != "axial",
            )
            panel.set_xlim(*_centered(panel.get_xlim(), widest_mm))
    for (plane, axis), panel in zip(_PLANES, panels[:, 0], strict=True):
        panel.set_ylabel(f"{plane}, slice {position[axis]}", fontsize=9)
    handles = []
    for rank, name in enumerate(names.values()):
        color, line_style = _style(rank)
        handles.append(Line2D([], [], label=name, linewidth=2, color=color, linestyle=line_style))
    figure.suptitle(title, fontsize=12)
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    return figure


@own_style()
def save_figure(figure: Figure, path: Path, *, dots_per_inch: int = 150) -> None:
    """Write a PNG in one step; the same figure gives the same bytes.

    Raises:
        ValueError: ``path`` does not end in ``.png``.
    """
    if path.suffix != ".png":
        raise ValueError(f"Figures are written as PNG; end the name in .png, got {path.name}.")
    with replacing(path) as partial:
        # without a value for Software, the version of matplotlib would be part of the file
        figure.savefig(partial, format="png", dpi=dots_per_inch, metadata={"Software": None})


def slices_with_most_foreground(segmentation: np.ndarray) -> tuple[int, int, int]:
    """Along each axis of ``segmentation`` (z, y, x), the slice with most voxels above 0, or the middle."""
    foreground = segmentation > 0
    if not foreground.any():
        z, y, x = (size // 2 for size in segmentation.shape)
    else:
        z, y, x = (int(foreground.sum(axis=others).argmax()) for others in ((1, 2), (0, 2), (0, 1)))
    return z, y, x


def _draw_panel(
    panel: Axes,
    image: np.ndarray,
    segmentation: np.ndarray,
    names: Mapping[int, str],
    window: tuple[float, ...],
    spacing_mm: tuple[float, float],
    *,
    upward: bool,
) -> None:
    """One slice (rows, columns) and its contours, in mm; ``upward`` puts the first row at the bottom."""
    height, width = np.array(image.shape) * spacing_mm
    extent = (0, width, 0, height) if upward else (0, width, height, 0)
    panel.imshow(
        image,
        cmap="gray",
        vmin=window[0],
        vmax=window[1],
        extent=extent,
        origin="lower" if upward else "upper",
        interpolation="nearest",
        aspect="equal",
    )
    rows, columns = ((np.arange(n) + 0.5) * step for n, step in zip(image.shape, spacing_mm, strict=True))
    for rank, label in enumerate(names):
        mask = segmentation == label
        color, line_style = _style(rank)
        if mask.any():
            # a rim of zeros closes the contours at the edge of the image
            panel.contour(
                np.pad(columns, 1, mode="reflect", reflect_type="odd"),
                np.pad(rows, 1, mode="reflect", reflect_type="odd"),
                np.pad(mask.astype(float), 1),
                levels=[0.5],
                linewidths=1.4,
                colors=color,
                linestyles=line_style,
            )
    panel.set(xticks=[], yticks=[], xlim=extent[:2], ylim=extent[2:])
    panel.set_facecolor("black")


def _style(rank: int) -> tuple[str, str]:
    """Color and line style of the class number ``rank``."""
    return PALETTE[rank % len(PALETTE)], _LINE_STYLES[rank // len(PALETTE) % len(_LINE_STYLES)]


def _centered(limits: tuple[float, float], width: float) -> tuple[float, float]:
    middle = sum(limits) / 2
    return middle - width / 2, middle + width / 2


def _check(
    image: np.ndarray,
    segmentations: Mapping[str, np.ndarray],
    label_names: Mapping[int, str],
    spacing_mm: tuple[float, float, float],
) -> None:
    if image.ndim != 3 or len(spacing_mm) != 3:
        raise ValueError(f"A 3D image with three voxel sizes is needed, got {image.shape} and {spacing_mm}.")
    if not segmentations:
        raise ValueError("At least one segmentation is needed.")
    for heading, segmentation in segmentations.items():
        if segmentation.shape != image.shape:
            raise ValueError(f"'{heading}' has shape {segmentation.shape}, but the image has {image.shape}.")
        unnamed = sorted(set(np.unique(segmentation).tolist()) - set(label_names) - {0})
        if unnamed:
            raise ValueError(f"'{heading}' has labels {unnamed}, which label_names does not name.")
