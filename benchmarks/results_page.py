"""Put the finished jobs of a benchmark into the stored results, and rewrite tables and figures of docs/benchmarks.md.

    python benchmarks/results_page.py                                   # rewrite both from what is stored
    python benchmarks/results_page.py --add FOLDER --as hippocampus_cpu # store a benchmark's results first

Scores, curves and records are stored, in benchmarks/results/NAME/jobs; no image, prediction or weight is. Each store's
tables stand between two markers of the page, and nothing else of it is touched.
"""

from __future__ import annotations

import argparse
import math
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nnunet_dualcl.atomic import write_text
from nnunet_dualcl.benchmark.arms import LOWER_BOUND, UPPER_BOUND
from nnunet_dualcl.benchmark.charts import arm_styles, overview, svg
from nnunet_dualcl.benchmark.protocol import Protocol
from nnunet_dualcl.benchmark.results import (
    CASES_FILE,
    CURVES_FILE,
    JOB_FILE,
    JOBS_FOLDER,
    PROTOCOL_FILE,
    Results,
    load_results,
    scored_role,
)
from nnunet_dualcl.benchmark.summary import (
    ALL_LABELS_SUFFIX,
    POOLED,
    Section,
    add_corrected,
    arm_rows,
    comparison_rows,
    lacking_draws,
    notes,
    of_draw,
    sections,
)

ROOT = Path(__file__).parents[1]
STORES = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "benchmarks.md"
_MARKED = re.compile(r"(<!-- results of (\w+) -->\n).*?(<!-- end of \2 -->)", re.S)


def main(argv: Sequence[str] | None = None) -> int:
    """Store, where asked to; then rewrite."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--add", type=Path, metavar="FOLDER", help="the -o of dualcl benchmark")
    parser.add_argument("--as", dest="name", metavar="NAME", help="of the store")
    arguments = parser.parse_args(argv)
    if (arguments.add is None) != (arguments.name is None):
        parser.error("--add and --as go together")
    if arguments.add is not None:
        print(f"{store(arguments.add, STORES / arguments.name)} finished jobs in {STORES / arguments.name}")
    page = rewritten(PAGE.read_text(encoding="utf-8"), STORES)
    write_text(PAGE, page)
    for name in _stores_of(page):
        for file, figure in figures(STORES / name).items():
            write_text(PAGE.parent / file, figure)
    missing = sorted({path.parent.name for path in STORES.glob(f"*/{JOBS_FOLDER}")} - set(_stores_of(page)))
    for name in missing:
        print(f"{PAGE} has no place for {name}: add '<!-- results of {name} -->' and '<!-- end of {name} -->'")
    return 1 if missing else 0


def store(folder: Path, target: Path) -> int:
    """Copy protocol and finished jobs, without volumes and weights; returns their number."""
    finished = sorted(path.parent for path in folder.glob(f"{JOBS_FOLDER}/*/{JOB_FILE}"))
    for job in finished:
        place = target / JOBS_FOLDER / job.name
        place.mkdir(parents=True, exist_ok=True)
        for name in (CASES_FILE, CURVES_FILE, JOB_FILE):
            shutil.copyfile(job / name, place / name)
    shutil.copyfile(folder / PROTOCOL_FILE, target / PROTOCOL_FILE)
    return len(finished)


def rewritten(page: str, stores: Path) -> str:
    """The page with the tables of every store that it has a place for."""

    def replaced(match: re.Match[str]) -> str:
        name = match[2]
        shown = tables(name, load_results(stores / name), Protocol.from_yaml(stores / name / PROTOCOL_FILE))
        return f"{match[1]}\n{shown}\n{match[3]}"

    return _MARKED.sub(replaced, page)


def figures(folder: Path) -> dict[str, str]:
    """The figures of a store, SVG, by their paths beside the page: one for each number of labeled cases."""
    protocol = Protocol.from_yaml(folder / PROTOCOL_FILE)
    drawn = {}
    for part in _parts(load_results(folder), protocol):
        titles = {arm: _title(arm, protocol) for arm in part.arms}
        figure = overview(part, arm_rows(part), comparison_rows(part), arm_styles(part.arms), titles)
        drawn[_figure_file(folder.name, part)] = svg(figure)
    return drawn


def tables(name: str, results: Results, protocol: Protocol) -> str:
    """Markdown: how the results of a store were made, for each number of labeled cases the arms and the differences."""
    parts = _parts(results, protocol)
    compared = {part.labeled: comparison_rows(part) for part in parts}
    add_corrected([row for rows in compared.values() for row in rows])
    lines = [_made_by(results, protocol)]
    for part in parts:
        heading = f"{protocol.title}: {part.labeled} labeled cases"
        lines += ["", f"### {heading}", "", f"![Dice by arm. {heading}]({_figure_file(name, part)})", ""]
        lacking = lacking_draws(part)
        lines += _arms_table([row for row in arm_rows(part) if row["arm"] not in lacking], protocol)
        if lacking:
            (draw, *_) = sorted(set(part.jobs.loc[part.jobs["arm"].isin(lacking), "draw"]))
            lines += ["", f"Draw {draw} alone, for arms that lack others:", ""]
            lines += _arms_table(arm_rows(of_draw(part, draw)), protocol)
        lines += ["", *_differences_table(compared[part.labeled], protocol)]
        lines += ["", *[f"- {note}" for note in notes(part, results)]]
    planned = {job.name for job in protocol.jobs()}
    missing = sorted(planned - set(results.jobs["name"]))
    if missing:
        lines.append(f"- Not run yet, {len(missing)} of {len(planned)} jobs: {', '.join(missing)}.")
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip() + "\n"


def _parts(results: Results, protocol: Protocol) -> list[Section]:
    return sections(results, protocol.baselines, LOWER_BOUND, UPPER_BOUND, tuple(protocol.arms))


def _figure_file(name: str, part: Section) -> str:
    return f"figures/{name}_{part.labeled}.svg"


def _made_by(results: Results, protocol: Protocol) -> str:
    first = results.records[0]
    versions = f"torch {first['versions']['torch']}, nnunetv2 {first['versions']['nnunetv2']}"
    days = sorted({record["started"][:10] for record in results.records})
    scored = f"{len(first['split'][scored_role(first)])} {protocol.score} cases"
    plans = ", ".join(f"{key} {value}" for key, value in protocol.small_plans.items()) or "nnU-Net's own"

    def all_of(key: str) -> str:
        return ", ".join(map(str, sorted({record[key] for record in results.records})))

    # a job that was stopped and continued has several
    commits = sorted({commit for record in results.records for commit in record["commit"].split(", ")})

    return (
        f"{scored}; {protocol.steps:,} steps; plans: {plans}; final checkpoint. Dice: "
        f"mean over classes and cases, then over draws, ± its standard deviation between draws. "
        f"Commits {', '.join(commits)}; seeds {all_of('seed')}; {all_of('hardware')}; {versions}; "
        f"{' to '.join(dict.fromkeys((days[0], days[-1])))}."
    )


def _arms_table(rows: Sequence[Mapping[str, Any]], protocol: Protocol) -> list[str]:
    labels = list(rows[0]["per_class"])
    head = ["arm", "draws", "Dice", *labels, "HD95, mm", "its median", "surface Dice", "gap closed", "memory, MiB"]
    lines = [_row(head), _row(["---"] * len(head))]
    for row in sorted(rows, key=lambda row: row["dice"]):
        spread = f" ± {row['dice_sd']:.4f}" if math.isfinite(row["dice_sd"]) else ""
        gap = f"{row['gap_closed']:.0%}" if math.isfinite(row["gap_closed"]) else ""
        if math.isfinite(row["gap_low"]) and row["gap_low"] < row["gap_high"]:  # not of the bounds themselves
            gap += f" [{row['gap_low']:.0%}, {row['gap_high']:.0%}]"
        cells = [_title(row["arm"], protocol), len(row["draws"]), f"{row['dice']:.4f}{spread}"]
        cells += [f"{row['per_class'][label]['dice']:.3f}" for label in labels]
        cells += [f"{row['hd95_mm']:.2f}", f"{row['hd95_median_mm']:.2f}", f"{row['nsd']:.3f}", gap]
        lines.append(_row([*cells, f"{row['peak_memory_mib']:.0f}"]))
    return lines


def _differences_table(rows: Sequence[Mapping[str, Any]], protocol: Protocol) -> list[str]:
    """Each arm less each baseline: the draws pooled where there are several, and draw by draw."""
    if not rows:
        return []
    draws = sorted({row["draw"] for row in rows if row["draw"] != POOLED})
    several = len(draws) > 1
    head = ["arm", "less", *(["difference, pooled"] if several else []), "corrected p"]
    head += [f"draw {draw}" for draw in draws]
    lines = [_row(head), _row(["---"] * len(head))]
    for pooled in [row for row in rows if row["draw"] == POOLED]:
        same = {row["draw"]: row for row in rows if all(row[key] == pooled[key] for key in ("arm", "baseline"))}
        by_draw = [_interval(same[draw]) if draw in same else "" for draw in draws]
        names = [_title(pooled[key], protocol) for key in ("arm", "baseline")]
        pool = [_interval(pooled) if len(same) > 2 else ""] if several else []
        lines.append(_row([*names, *pool, f"{pooled['corrected_p']:.2g}", *by_draw]))
    return lines


def _interval(row: Mapping[str, Any]) -> str:
    return f"{row['mean_difference']:+.4f} [{row['low']:+.4f}, {row['high']:+.4f}]"


def _title(arm: str, protocol: Protocol) -> str:
    return protocol.arm(arm.removesuffix(ALL_LABELS_SUFFIX)).title


def _row(cells: Iterable[Any]) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def _stores_of(page: str) -> list[str]:
    return [match[2] for match in _MARKED.finditer(page)]


if __name__ == "__main__":
    raise SystemExit(main())
