"""Reads the store of finished jobs, one folder a job, into tables."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from nnunet_dualcl.errors import DualCLError
from nnunet_dualcl.evaluation.metrics import METRICS

PROTOCOL_FILE = "protocol.yaml"
PREPARED_FILE = "prepared.json"
"""Its presence means that the data are ready; names the test cases."""
JOBS_FOLDER = "jobs"
JOB_FILE = "job.json"
CASES_FILE = "cases.csv"
CURVES_FILE = "curves.csv"
PREDICTIONS_FOLDER = "predictions"

TRAINED_BY = "trained_by"
"""Key of a ``job.json`` that trained nothing and repeats the cost of the job named."""

ALL_LABELED = "all"
"""Value of ``labeled`` in jobs that train with every label."""

JOB_KEYS = (
    "name", "arm", "labeled", "draw", "seed", "steps", "trainer", "plans", "dataset", "split", "command", "versions",
    "commit", "hardware", "started", "wall_seconds", "peak_memory_mib", "samples_per_second", "labels",
)  # fmt: skip
"""Of every ``job.json``; more are kept and not read."""
SPLIT_KEYS = ("train", "val", "unlabeled", "test")
SCORED_NAMES = {"test": "test", "val": "validation"}
"""What the cases are called that ``scored`` of a ``job.json`` may name, a key of its split."""
IDENTITY = ("job", "arm", "labeled", "draw", "seed")
"""Columns that begin the tables of cases and of curves."""
TEXT_COLUMNS = ("case", "label")
CASE_COLUMNS = ("case", "label", *METRICS)
CURVE_COLUMNS = ("epoch", "train_loss", "val_loss", "ema_fg_dice")
_IDENTITY_TYPES = {"job": str, "arm": str, "labeled": object, "draw": int, "seed": int}


@dataclass(frozen=True)
class Results:
    """Everything the finished jobs of a store wrote, sorted by number of labeled cases, arm, draw and seed.

    Attributes:
        folder: of the store.
        records: the content of each ``job.json``.
        jobs: a row a job, the columns ``JOB_KEYS`` but for ``split``, ``versions`` and ``labels``.
        cases: a row a job, case and label, columns ``IDENTITY`` and ``CASE_COLUMNS``; NaN where not counted.
        curves: a row a job and epoch, columns ``IDENTITY`` and ``CURVE_COLUMNS``.
        unfinished: names of job folders without ``job.json``.
    """

    folder: Path
    records: tuple[dict[str, Any], ...]
    jobs: pd.DataFrame
    cases: pd.DataFrame
    curves: pd.DataFrame
    unfinished: tuple[str, ...]

    @property
    def labels(self) -> dict[str, int | list[int]]:
        """Name to value, or to a region's values, the same in all jobs, without the background."""
        return {name: value for name, value in self.records[0]["labels"].items() if value != 0}

    @property
    def file_ending(self) -> str:
        """Of images and segmentations."""
        return str(self.records[0].get("file_ending", ".nii.gz"))

    def job_folder(self, name: str) -> Path:
        """Folder of the job ``name``."""
        return self.folder / JOBS_FOLDER / name


def load_results(folder: Path) -> Results:
    """Read every finished job under ``folder/jobs``; a job without ``job.json`` is unfinished and not read.

    Args:
        folder: of the store, ``jobs/NAME/{job.json,cases.csv,curves.csv,predictions/}`` below it; ``curves.csv`` may
            be missing.

    Raises:
        DualCLError: no job is finished, a file lacks what it should hold, a job does not cover its cases, two
            jobs are the same run, or jobs are of different datasets or labels, or scored on test and on
            validation cases.
    """
    folders = sorted(path for path in (folder / JOBS_FOLDER).glob("*") if path.is_dir())
    records = sorted((_record(path) for path in folders if (path / JOB_FILE).is_file()), key=_rank)
    if not records:
        raise DualCLError(f"No finished job under {folder / JOBS_FOLDER}. Run the benchmark first, or name its folder.")
    _check_together(records)
    read = [(record, folder / JOBS_FOLDER / record["name"]) for record in records]
    return Results(
        folder=folder,
        records=tuple(records),
        jobs=pd.DataFrame(
            [{key: record[key] for key in JOB_KEYS if not isinstance(record[key], dict)} for record in records]
        ),
        cases=_stacked([_identified(_cases(record, path), record) for record, path in read], CASE_COLUMNS),
        curves=_stacked([_identified(_curves(path), record) for record, path in read], CURVE_COLUMNS),
        unfinished=tuple(path.name for path in folders if not (path / JOB_FILE).is_file()),
    )


def scored_role(record: dict[str, Any]) -> str:
    """Which cases of the job's split were scored: ``test`` or ``val``."""
    return str(record.get("scored", "test"))


def finished_seconds(folder: Path, name: str) -> float | None:
    """Seconds that the job spent in training, or None where it is not finished."""
    file = folder / JOBS_FOLDER / name / JOB_FILE
    if not file.is_file():
        return None
    record = json.loads(file.read_text(encoding="utf-8"))
    return 0.0 if TRAINED_BY in record else float(record["wall_seconds"])


def labeled_rank(labeled: int | str) -> tuple[bool, int]:
    """Sorting key of numbers of labeled cases: ``all`` comes last."""
    return labeled == ALL_LABELED, 0 if labeled == ALL_LABELED else int(labeled)


def _rank(record: dict[str, Any]) -> tuple[Any, ...]:
    return *labeled_rank(record["labeled"]), record["arm"], record["draw"], record["seed"], record["name"]


def _record(folder: Path) -> dict[str, Any]:
    file = folder / JOB_FILE
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise DualCLError(f"{file} is not JSON ({error}). Delete the job's folder and run it again.") from error
    missing = [key for key in JOB_KEYS if key not in record]
    missing += [f"split.{key}" for key in SPLIT_KEYS if key not in record.get("split", {})]
    if missing:
        raise DualCLError(f"{file} lacks {', '.join(missing)}. Delete the job's folder and run it again.")
    if record["name"] != folder.name:
        raise DualCLError(f"{file} is of the job '{record['name']}'. Was the folder copied? Rename or delete it.")
    if record["labeled"] != ALL_LABELED and type(record["labeled"]) is not int:
        raise DualCLError(f"{file}: labeled is a number of cases or '{ALL_LABELED}', got {record['labeled']!r}.")
    return dict(record)


def _check_together(records: list[dict[str, Any]]) -> None:
    """One dataset and one set of labels; no run twice."""
    for key in ("dataset", "labels", "scored"):
        values = {json.dumps(_common(record, key), sort_keys=True): record["name"] for record in records}
        if len(values) > 1:
            raise DualCLError(f"Jobs {sorted(values.values())} differ in {key}: {sorted(values)}. Keep one in a store.")
    runs: dict[tuple[Any, ...], str] = {}
    for record in records:
        run = tuple(record[key] for key in IDENTITY[1:])
        if run in runs:
            raise DualCLError(f"Jobs {runs[run]} and {record['name']} are the same run {run}. Delete one of them.")
        runs[run] = record["name"]


def _common(record: dict[str, Any], key: str) -> Any:
    return scored_role(record) if key == "scored" else record[key]


def _cases(record: dict[str, Any], folder: Path) -> pd.DataFrame:
    """The job's scores, which must cover its scored cases and its labels, once each."""
    table = _table(folder / CASES_FILE, CASE_COLUMNS)
    labels = [name for name, value in record["labels"].items() if value != 0]
    expected = sorted((case, label) for case in record["split"][scored_role(record)] for label in labels)
    if not expected:
        raise DualCLError(f"{folder / JOB_FILE} names no case to score, or no label. Delete the job's folder.")
    found = sorted(zip(table["case"], table["label"], strict=True))
    if found != expected:
        odd = sorted(set(expected) ^ set(found)) or [pair for pair in found if found.count(pair) > 1]
        raise DualCLError(
            f"{folder / CASES_FILE} does not hold each case and label once; look at {odd[:3]}. Evaluate it again."
        )
    return table


def _curves(folder: Path) -> pd.DataFrame:
    file = folder / CURVES_FILE
    return _table(file, CURVE_COLUMNS) if file.is_file() else pd.DataFrame(columns=list(CURVE_COLUMNS), dtype=float)


def _table(file: Path, columns: tuple[str, ...]) -> pd.DataFrame:
    """A CSV file with (at least) these columns; names stay text, and only numbers can be missing."""
    if not file.is_file():
        raise DualCLError(f"{file} is missing. Delete the job's folder and run it again.")
    numbers = [name for name in columns if name not in TEXT_COLUMNS]
    try:
        table = pd.read_csv(
            file,
            dtype=dict.fromkeys(TEXT_COLUMNS, str),
            keep_default_na=False,
            na_values={name: ["", "nan", "NaN"] for name in numbers},
            float_precision="round_trip",
        )
        return table.astype(dict.fromkeys(numbers, float))[list(columns)]
    except (ValueError, KeyError) as error:
        raise DualCLError(
            f"{file} is not a table of {', '.join(columns)} ({error}). Evaluate the job again."
        ) from error


def _identified(table: pd.DataFrame, record: dict[str, Any]) -> pd.DataFrame:
    """The table with the columns ``IDENTITY`` before its own."""
    identity = {"job": record["name"], **{key: record[key] for key in IDENTITY[1:]}}
    for position, (name, value) in enumerate(identity.items()):
        table.insert(position, name, pd.Series([value] * len(table), index=table.index, dtype=_IDENTITY_TYPES[name]))
    return table


def _stacked(tables: Iterable[pd.DataFrame], columns: tuple[str, ...]) -> pd.DataFrame:
    return pd.concat(tables, ignore_index=True)[[*IDENTITY, *columns]]
