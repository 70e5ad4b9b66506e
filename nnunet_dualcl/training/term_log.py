"""One row an epoch: every term, its weight and what was observed, as a table and as a picture."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from nnunet_dualcl.atomic import replacing, write_table
from nnunet_dualcl.figures import own_style
from nnunet_dualcl.layout import TERM_LOG_FILE, TERM_PICTURE_FILE

_FIRST_EPOCHS, _LATER_EVERY = 50, 10
"""The picture is drawn in each of the first epochs and then every so often: with 1,000 rows it takes a second."""


class TermLog:
    """Rows of a training so far; kept in the checkpoint, so that a resumed training continues them."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def add(
        self, epoch: int, total: float, values: Mapping[str, float], weights: Mapping[str, float]
    ) -> dict[str, float]:
        """Append the means of an epoch; rows of this epoch and later are replaced (resume).

        Args:
            epoch: from 0.
            total: the loss.
            values: of terms and observations.
            weights: of the terms; what has none here is an observation.
        """
        row: dict[str, float] = {"epoch": epoch, "total": total}
        row.update({name: float(value) for name, value in values.items()})
        row.update({f"weight_{name}": float(weight) for name, weight in weights.items()})
        self.rows = [old for old in self.rows if old["epoch"] < epoch] + [row]
        return row

    @property
    def _table(self) -> list[dict[str, float]]:
        """The rows with the columns of all, NaN where a row of an earlier release lacks one."""
        missing = dict.fromkeys((name for row in reversed(self.rows) for name in row), math.nan)
        return [{**missing, **row} for row in self.rows]

    @own_style()
    def write(self, folder: Path, *, last: bool = False) -> None:
        """Write table and, where it is due or this is the ``last`` epoch, picture into ``folder``, each in one step."""
        if not self.rows:
            return
        write_table(folder / TERM_LOG_FILE, self._table)
        epochs = int(self.rows[-1]["epoch"]) + 1
        if epochs > _FIRST_EPOCHS and epochs % _LATER_EVERY and not last:
            return
        with replacing(folder / TERM_PICTURE_FILE) as partial:
            self.figure().savefig(partial, dpi=110, metadata={"Software": None})

    @own_style()
    def figure(self) -> Figure:
        """Three panels over epochs: terms, weighted shares of the total, observations."""
        rows = self._table
        epochs = [row["epoch"] for row in rows]
        figure = Figure(figsize=(12, 11), layout="constrained")
        FigureCanvasAgg(figure)
        top, middle, bottom = figure.subplots(3, 1, sharex=True)
        for name in rows[0]:
            values = [row[name] for row in rows]
            if f"weight_{name}" in rows[0]:
                top.plot(epochs, values, marker=".", label=name)
                middle.plot(epochs, [row[name] * row[f"weight_{name}"] for row in rows], marker=".", label=name)
            elif name not in ("epoch", "total") and not name.startswith("weight_"):
                bottom.plot(epochs, values, marker=".", label=name)
        top.set_ylabel("term, unweighted")
        middle.set_ylabel("weight x term")
        bottom.set_ylabel("share of voxels or steps")
        bottom.set_ylim(-0.02, 1.02)
        bottom.set_xlabel("epoch")
        for axes in (top, middle, bottom):
            axes.grid(alpha=0.3)
            axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize="small")
        return figure
