"""Put the finished jobs of a benchmark into the stored results, and rewrite tables and figures of docs/benchmarks.md.

    python benchmarks/results_page.py                                   # rewrite both from what is stored
    python benchmarks/results_page.py --add FOLDER --as hippocampus_cpu # store a benchmark's results first

Scores, curves and records are stored, in benchmarks/results/NAME/jobs; no image, prediction or weight is. Each store's
tables stand between two markers of the page, a summary of the stores that its marker names between two more; nothing
else of the page is touched.
"""

from __future__ import annotations

import argparse
import math
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from nnunet_dualcl.atomic import write_text
from nnunet_dualcl.benchmark.arms import LOWER_BOUND, UPPER_BOUND
from nnunet_dualcl.benchmark.charts import arm_styles, overview, svg
from nnunet_dualcl.benchmark.protocol import Protocol
from nnunet_dualcl.benchmark.results import (
    ALL_LABELED,
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
_SUMMARY = re.compile(r"(<!-- summary of ([\w, ]+) -->\n).*?(<!-- end of summary -->)", re.S)
_OURS, _CONTROL = "dualcl", "dualcl_labeled_only"


class _Part(NamedTuple):
    """One number of labeled cases, with its rows."""

    section: Section
    arms: list[dict[str, Any]]
    differences: list[dict[str, Any]]


class _Store(NamedTuple):
    name: str
    results: Results
    protocol: Protocol
    parts: list[_Part]


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
    """The page with the tables of every store that it has a place for, and their summary."""
    found = {name: _read(stores / name) for name in _stores_of(page)}

    def replaced(match: re.Match[str]) -> str:
        return f"{match[1]}\n{tables(found[match[2]])}\n{match[3]}"

    def summarized(match: re.Match[str]) -> str:
        lines = summary([found[name] for name in match[2].split(", ")])
        return "\n".join([match[1], *lines, "", match[3]])

    return _SUMMARY.sub(summarized, _MARKED.sub(replaced, page))


def _read(folder: Path) -> _Store:
    results, protocol = load_results(folder), Protocol.from_yaml(folder / PROTOCOL_FILE)
    parts = sections(results, protocol.baselines, LOWER_BOUND, UPPER_BOUND, tuple(protocol.arms))
    shown = [_Part(part, arm_rows(part), comparison_rows(part)) for part in parts]
    add_corrected([row for part in shown for row in part.differences])
    return _Store(folder.name, results, protocol, shown)


def figures(folder: Path) -> dict[str, str]:
    """The figures of a store, SVG, by their paths beside the page: one for each number of labeled cases."""
    store = _read(folder)
    drawn = {}
    for section, arms, differences in store.parts:
        titles = {arm: _title(arm, store.protocol) for arm in section.arms}
        figure = overview(section, arms, differences, arm_styles(section.arms), titles)
        drawn[_figure_file(store.name, section)] = svg(figure)
    return drawn


def summary(stores: Sequence[_Store]) -> list[str]:
    """Markdown: Dice and the differences that matter, a row for each number of labels that leaves cases unlabeled."""
    head = ["data", "labels", "stock nnU-Net", "DualCL", "exported", "labeled scans only", "stock, all labels"]
    head += ["DualCL less stock", "less labeled scans only"]
    lines = [_row(head), _row(["---"] * len(head))]
    for store in stores:
        for section, arms, differences in store.parts:
            if section.labeled == ALL_LABELED:
                continue
            lacking = lacking_draws(section)
            dice = {row["arm"]: f"{row['dice']:.4f}{_draws_of(row) if row['arm'] in lacking else ''}" for row in arms}
            shown = [dice.get(arm, "") for arm in (LOWER_BOUND, _OURS, f"{_OURS}_exported", _CONTROL, section.upper)]
            pooled = {(row["arm"], row["baseline"]): row for row in differences if row["draw"] == POOLED}
            gain, control = pooled.get((_OURS, LOWER_BOUND)), pooled.get((_CONTROL, _OURS))
            shown += ["" if gain is None else _interval(gain), "" if control is None else _interval(control, sign=-1)]
            lines.append(_row([store.protocol.title, section.labeled, *shown]))
    return lines


def tables(store: _Store) -> str:
    """Markdown: how the results of a store were made, for each number of labeled cases the arms and the differences."""
    results, protocol = store.results, store.protocol
    lines = [_made_by(results, protocol)]
    for section, arms, differences in store.parts:
        heading = f"{protocol.title}: {section.labeled} labeled cases"
        lines += ["", f"### {heading}", "", f"![Dice by arm. {heading}]({_figure_file(store.name, section)})", ""]
        lacking = lacking_draws(section)
        lines += _arms_table([row for row in arms if row["arm"] not in lacking], protocol)
        for draw in sorted(set(section.jobs.loc[section.jobs["arm"].isin(lacking), "draw"])):
            lines += ["", f"Draw {draw} alone, for arms that lack others:", ""]
            lines += _arms_table(arm_rows(of_draw(section, draw)), protocol)
        lines += ["", *_differences_table([row for row in differences if row["arm"] == section.focus], protocol)]
        if others := [row for row in differences if row["arm"] != section.focus]:
            lines += ["", "<details><summary>Differences of the other arms</summary>", ""]
            lines += [*_differences_table(others, protocol), "", "</details>"]
        lines += ["", *[f"- {note}" for note in notes(section, results)]]
    planned = {job.name for job in protocol.jobs()}
    missing = sorted(planned - set(results.jobs["name"]))
    if missing:
        lines.append(f"- Not run yet, {len(missing)} of {len(planned)} jobs: {', '.join(missing)}.")
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip() + "\n"


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
        memory = row["peak_memory_mib"]
        lines.append(_row([*cells, f"{memory:.0f}" if math.isfinite(memory) else ""]))
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


def _interval(row: Mapping[str, Any], sign: int = 1) -> str:
    """Of the difference, or with ``sign`` -1 of the one that is taken the other way."""
    low, high = sorted((sign * row["low"], sign * row["high"]))
    return f"{sign * row['mean_difference']:+.4f} [{low:+.4f}, {high:+.4f}]"


def _draws_of(row: Mapping[str, Any]) -> str:
    draws = row["draws"]
    return f" (draw{'s' if len(draws) > 1 else ''} {', '.join(map(str, draws))})"


def _title(arm: str, protocol: Protocol) -> str:
    return protocol.arm(arm.removesuffix(ALL_LABELS_SUFFIX)).title


def _row(cells: Iterable[Any]) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def _stores_of(page: str) -> list[str]:
    return [match[2] for match in _MARKED.finditer(page)]


if __name__ == "__main__":
    raise SystemExit(main())
