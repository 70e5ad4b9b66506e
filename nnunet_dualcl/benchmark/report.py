"""Writes the report of a result store: one HTML page, and its numbers as CSV and JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from nnunet_dualcl.atomic import write_text
from nnunet_dualcl.benchmark.charts import (
    ArmStyles,
    arm_styles,
    case_overlay,
    data_uri,
    dice_boxes,
    overview,
    training_curves,
)
from nnunet_dualcl.benchmark.results import SCORED_NAMES, SPLIT_KEYS, Results, load_results, scored_role
from nnunet_dualcl.benchmark.summary import (
    POOLED,
    Section,
    add_corrected,
    arm_rows,
    comparison_rows,
    notes,
    sections,
    worst_and_median,
)
from nnunet_dualcl.errors import DualCLError
from nnunet_dualcl.evaluation.metrics import EMPTY_RULE, METRICS

REPORT_FILE = "report.html"
SUMMARY_TABLE_FILE = "summary.csv"
SUMMARY_FILE = "summary.json"
ALL_CASES_FILE = "cases.csv"
_TEMPLATE = "report.html.j2"
_NOT_A_NUMBER = "n/a"


def write_report(
    folder: Path,
    *,
    images: Path,
    references: Path,
    baselines: Sequence[str],
    lower: str,
    upper: str,
    title: str,
    order: Sequence[str] = (),
) -> Path:
    """Write ``report.html``, ``summary.csv``, ``summary.json`` and ``cases.csv`` into the store, each in one step.

    The same store gives the same bytes. Arms that are not finished are named in the report.

    Args:
        folder: of the store; see ``nnunet_dualcl.benchmark.results``.
        images: folder of the test images, ``CASE_0000.nii.gz``.
        references: folder of their segmentations, ``CASE.nii.gz``.
        baselines: arms that the others are compared with, case by case.
        lower: arm whose Dice is the lower end of the gap, with as many labels as the arm that is judged.
        upper: arm whose Dice is the upper end, with all labels where it has such a job.
        title: heading of the page.
        order: of the other arms; the page is about the first of them, and the rest are compared with it, too.

    Returns:
        The page.

    Raises:
        DualCLError: the store holds no finished job or a faulty one.
    """
    results = load_results(folder)
    parts = sections(results, baselines, lower, upper, order)
    arms = [row for part in parts for row in arm_rows(part)]
    comparisons = [row for part in parts for row in comparison_rows(part)]
    add_corrected(comparisons)
    summary = {
        "title": title,
        "dataset": results.records[0]["dataset"],
        "lower": lower,
        "upper": upper,
        "baselines": list(baselines),
        "empty_rule": EMPTY_RULE,
        "notes": _notes(results, parts),
        "arms": arms,
        "comparisons": comparisons,
        "jobs": results.records,
    }
    styles = arm_styles(arm for part in parts for arm in part.arms)
    views = [_view(part, results, arms, comparisons, styles, images, references) for part in parts]
    page = _environment().get_template(_TEMPLATE).render(**_page(summary, results), sections=views)
    write_text(folder / ALL_CASES_FILE, results.cases.to_csv(index=False, lineterminator="\n"))
    write_text(folder / SUMMARY_TABLE_FILE, _flat(arms).to_csv(index=False, lineterminator="\n"))
    write_text(folder / SUMMARY_FILE, json.dumps(_plain(summary), indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    write_text(folder / REPORT_FILE, page)
    return folder / REPORT_FILE


def _notes(results: Results, parts: Iterable[Section]) -> list[str]:
    found = [f"The job '{name}' is not finished and not counted." for name in results.unfinished]
    return found + [note for part in parts for note in notes(part, results)]


def _view(
    section: Section,
    results: Results,
    arms: Iterable[dict[str, Any]],
    comparisons: Iterable[dict[str, Any]],
    styles: ArmStyles,
    images: Path,
    references: Path,
) -> dict[str, Any]:
    """What the template shows of a section."""
    overlays, faults = [], []
    for rank, case in worst_and_median(section).items():
        title = f"{rank.capitalize()} case of {section.focus}: {case}"
        try:
            figure = case_overlay(section, results, case, title, images, references)
        except DualCLError as error:
            faults.append(f"{title}. No picture: {error}")
        else:
            overlays.append({"title": title, "source": data_uri(figure)})
    rows = [row for row in arms if row["labeled"] == section.labeled]
    pairs = [row for row in comparisons if row["labeled"] == section.labeled]
    return {
        "labeled": section.labeled,
        "lower": section.lower,
        "upper": section.upper,
        "focus": section.focus,
        "arms": rows,
        "single_draws": any(len(row["draws"]) == 1 for row in rows),
        "comparisons": pairs,
        "overview": data_uri(overview(section, rows, pairs, styles)),
        "curves": data_uri(training_curves(section, styles)) if len(section.curves) else None,
        "boxes": data_uri(dice_boxes(section, styles)),
        "overlays": overlays,
        "faults": faults,
    }


def _page(summary: dict[str, Any], results: Results) -> dict[str, Any]:
    """What the template shows beside the sections."""
    tolerances = {record.get("tolerance_mm") for record in results.records}
    return {
        **summary,
        "labels": list(results.labels),
        "scored": SCORED_NAMES[scored_role(results.records[0])],
        "tolerances_mm": sorted(tolerances - {None}),
        "pooled": POOLED,
        "splits": _grouped(results.records, "split"),
        "split_keys": SPLIT_KEYS,
        "versions": _grouped(results.records, "versions"),
    }


def _grouped(records: Iterable[dict[str, Any]], key: str) -> list[dict[str, Any]]:
    """Distinct values of ``key``, each with the names of its jobs."""
    groups: dict[str, dict[str, Any]] = {}
    for record in records:
        group = groups.setdefault(json.dumps(record[key], sort_keys=True), {"value": record[key], "jobs": []})
        group["jobs"].append(record["name"])
    return list(groups.values())


def _flat(arms: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """A row an arm; metrics of a class are columns such as ``dice:LABEL``."""
    rows = []
    for arm in arms:
        row = {key: value for key, value in arm.items() if key != "per_class"}
        row["draws"] = " ".join(map(str, arm["draws"]))
        for label, scores in arm["per_class"].items():
            row.update({f"{metric}:{label}": scores[metric] for metric in METRICS})
        rows.append(row)
    return pd.DataFrame(rows)


def _plain(value: Any) -> Any:
    """The value as JSON has it; numbers that are not finite become null."""
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(number=_number, percent=_percent)
    return environment


def _number(value: float | None, digits: int = 3, *, sign: bool = False) -> str:
    """With a fixed number of digits; ``n/a`` where there is none."""
    if value is None or not math.isfinite(value):
        return _NOT_A_NUMBER
    return f"{value:{'+' if sign else ''}.{digits}f}"


def _percent(value: float) -> str:
    return f"{value:.0%}" if math.isfinite(value) else _NOT_A_NUMBER
