"""What a conversion did, as JSON for programs, as a page with pictures for people, and as a few lines on the screen."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from nnunet_dualcl import __version__
from nnunet_dualcl.atomic import write_text
from nnunet_dualcl.dataset_conversion.geometry import TOLERANCE
from nnunet_dualcl.dataset_conversion.one_case import Record
from nnunet_dualcl.dataset_conversion.picture import color_of
from nnunet_dualcl.dataset_conversion.plan import Options, Plan, Refusal, Role

REPORT_FILE = Path("conversion") / "report.json"
REPORT_PAGE = Path("conversion") / "report.html"
_SILENT_OPTIONS = ("key_list", "processes", "resume")
"""They change nothing in the dataset."""
_NOTES_SHOWN = 20


@dataclass(frozen=True)
class ConversionReport:
    """What became of every case.

    Attributes:
        plan: what was asked for, without its cases.
        target: the dataset folder.
        records: finished cases, by name.
        failed: cases that could not be converted.
        repeated: cases left out because another one has the same voxels.
        folds: of the split file.
        options: of the conversion.
        redone: cases that were there and whose source has changed since, by name; not in the report's files.
    """

    plan: Plan
    target: Path
    records: tuple[Record, ...]
    failed: tuple[Refusal, ...]
    repeated: tuple[Refusal, ...]
    folds: tuple[Mapping[str, list[str]], ...]
    options: Options
    redone: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        """0 where every case came through, 1 where some failed."""
        return 1 if self.failed else 0

    def count(self, role: Role) -> int:
        """Finished cases of a role."""
        return sum(record.role is role for record in self.records)

    def summary(self) -> str:
        """A few lines for the screen."""
        lines = [
            f"{self.target}: {self.count(Role.LABELED)} labeled, {self.count(Role.UNLABELED)} unlabeled and "
            f"{self.count(Role.TEST)} test case(s); {len(self.failed)} failed, "
            f"{len(self.plan.refused) + len(self.repeated)} left out.",
            *(f"  failed: {each}" for each in self.failed),
            *(f"  left out: {each}" for each in (*self.plan.refused, *self.repeated)),
            *(f"  note: {note}" for note in (*self.plan.notes, *self.warnings())),
        ]
        noted = [f"  note: {record.name}: {note}" for record in self.records for note in record.notes]
        lines += noted[:_NOTES_SHOWN]
        if len(noted) > _NOTES_SHOWN:
            lines.append(f"  and {len(noted) - _NOTES_SHOWN} more notes on cases in the report")
        lines.append(f"Look at {self.target / REPORT_PAGE}")
        return "\n".join(lines)

    def warnings(self) -> list[str]:
        """What the numbers show and a user may not expect: absent labels, few folds, nobody for validation."""
        labeled = [record for record in self.records if record.role is Role.LABELED]
        found = []
        for name in self.plan.labels:
            absent = sum(not record.voxels[name] for record in labeled)
            if absent:
                found.append(
                    f"{name} is in {len(labeled) - absent} of {len(labeled)} labeled cases; absent is background"
                )
        pointing = Counter(record.orientation for record in self.records if record.orientation)
        if len(pointing) > 1:
            listed = ", ".join(f"{count} {code}" for code, count in sorted(pointing.items(), key=lambda each: -each[1]))
            found.append(
                f"axes point to different sides ({listed}), which nnU-Net does not turn. Export all scans in one "
                "orientation if they are of one kind"
            )
        if not self.plan.labels:
            found.append(
                "no labels were asked for, so there is no dataset.json, and nnU-Net cannot plan from this alone. Copy "
                "imagesUnlabeled into that of a dataset with labels, under names that are not there"
            )
        elif not self.folds:
            found.append("no labeled case came through, so there is no dataset.json: nnU-Net could not plan from it")
        elif self.folds[0]["val"] == self.folds[0]["train"]:
            found.append(
                "nobody can be held back for validation, so val repeats train, and its scores mean nothing"
                + self._never_validated(labeled)
            )
        elif self.plan.split is None and len(self.folds) < self.options.folds:
            found.append(
                f"{len(self.folds)} folds instead of {self.options.folds}: there are no more patients to hold back"
                + self._never_validated(labeled)
            )
        return found

    def _never_validated(self, labeled: list[Record]) -> str:
        """How many patients have unlabeled scans as well, and how to have them back for validation."""
        unlabeled = {record.patient for record in self.records if record.role is Role.UNLABELED}
        patients = {record.patient for record in labeled}
        both = len(patients & unlabeled)
        if not both or self.plan.split is not None:
            return ""
        text = f". {both} of {len(patients)} labeled patients have unlabeled scans as well, which every fold trains on"
        return f"{text}. {self.plan.fewer_scans}" if self.plan.fewer_scans else text

    def as_json(self) -> dict[str, Any]:
        """Everything but pictures; no time and no place, so that the same input gives the same file."""
        unlabeled = {record.name for record in self.records if record.role is Role.UNLABELED}  # of every fold
        return {
            "version": __version__,
            "kind": self.plan.kind,
            "dataset": self.target.name,
            "channels": list(self.plan.channels),
            "labels": dict(self.plan.labels),
            "value_map": {str(value): mapped for value, mapped in sorted(self.plan.value_map.items())},
            "counts": {role.value: self.count(role) for role in Role},
            "grid_tolerance_in_voxels": TOLERANCE,
            "options": {name: value for name, value in asdict(self.options).items() if name not in _SILENT_OPTIONS},
            "notes": [*self.plan.notes, *self.warnings()],
            "cases": [asdict(record) for record in self.records],
            "failed": [asdict(each) for each in self.failed],
            "left_out": [asdict(each) for each in (*self.plan.refused, *self.repeated)],
            "folds": [
                {
                    "train": len(fold["train"]),
                    "val": len(fold["val"]),
                    "unlabeled": len(unlabeled | {*fold.get("unlabeled", ())}),
                }
                for fold in self.folds
            ],
        }


def write_report(report: ConversionReport) -> None:
    """Write ``report.json`` and ``report.html``; the page shows the pictures beside it in ``cases``."""
    content = report.as_json()
    write_text(report.target / REPORT_FILE, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    colors = {
        name: color_of(value) for name, value in report.plan.labels.items() if isinstance(value, int)
    }  # regions overlap, and have no color of their own
    page = environment.get_template("report.html.j2").render(
        **content, colors=colors, roles=[role.value for role in Role]
    )
    write_text(report.target / REPORT_PAGE, page)
