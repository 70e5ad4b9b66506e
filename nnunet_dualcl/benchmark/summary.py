"""The numbers of the report: means by arm, paired differences, costs, and what they lack."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import pandas as pd

from nnunet_dualcl.benchmark.results import ALL_LABELED, Results, labeled_rank
from nnunet_dualcl.evaluation.metrics import BEST, METRICS
from nnunet_dualcl.evaluation.statistics import (
    PairedComparison,
    benjamini_hochberg,
    gap_closed,
    gap_interval,
    paired_comparison,
    pooled_comparison,
)

POOLED = "pooled"
"""Value of ``draw`` in the comparison over all draws."""
ALL_LABELS_SUFFIX = " (all labels)"
"""Of the upper bound's name in a section of fewer labels."""
COSTS = ("wall_seconds", "peak_memory_mib", "samples_per_second")
SAME_IN_ALL_ARMS = ("steps", "plans", "hardware")
"""Columns of jobs that a fair comparison holds fixed; a difference is noted."""


@dataclass(frozen=True)
class Section:
    """The jobs with one number of labeled cases, and the upper bound, which may have more.

    Attributes:
        labeled: number of labeled cases, or ``all``.
        arms: in the order of the tables: lower bound, baselines, others, upper bound.
        focus: the first arm that is neither a baseline nor a bound, or the first of all.
        compared: arms that are neither baselines nor bounds, in the order asked for.
        baselines: as asked for, finished or not.
        lower: arm that a share of the gap of 0 stands for.
        upper: arm that a share of 1 stands for; "NAME (all labels)" where it has more labels than this section.
        jobs: rows of ``Results.jobs``, like the next two with ``arm`` as in ``arms``.
        cases: rows of ``Results.cases``.
        curves: rows of ``Results.curves``.
    """

    labeled: int | str
    arms: tuple[str, ...]
    focus: str
    compared: tuple[str, ...]
    baselines: tuple[str, ...]
    lower: str
    upper: str
    jobs: pd.DataFrame
    cases: pd.DataFrame
    curves: pd.DataFrame

    @property
    def scores(self) -> pd.DataFrame:
        """One row an arm, draw and case (its index), columns ``METRICS``: mean over labels, then over seeds."""
        return _by_case(self.cases)

    def opponents(self, arm: str) -> tuple[str, ...]:
        """What a compared arm is compared with: the baselines, and the focus arm, which it is a variant of."""
        return self.baselines if arm == self.focus else (*self.baselines, self.focus)


def sections(
    results: Results, baselines: Sequence[str], lower: str, upper: str, order: Sequence[str] = ()
) -> list[Section]:
    """One section a number of labeled cases; jobs with all labels are the upper bound of every section.

    They get a section of their own only if there are others than the upper bound among them, or no fewer labels; there
    the others are compared with the upper bound.

    Args:
        results: finished jobs.
        baselines: arms that the others are compared with.
        lower: arm at the lower end of the gap.
        upper: arm at its upper end.
        order: of the compared arms, the first of which the report is about; those not named follow by name.
    """
    counts = sorted(results.jobs["labeled"].unique(), key=labeled_rank)
    everything = set(results.jobs.loc[results.jobs["labeled"] == ALL_LABELED, "arm"])
    if len(counts) > 1 and everything == {upper}:
        counts.remove(ALL_LABELED)
    return [
        _section(results, labeled, (upper,), upper, upper, order)
        if labeled == ALL_LABELED
        else _section(results, labeled, tuple(baselines), lower, upper, order)
        for labeled in counts
    ]


def of_draw(section: Section, draw: int) -> Section:
    """The section with the jobs of one draw alone, and the arms that have any."""
    jobs, cases, curves = (table[table["draw"] == draw] for table in (section.jobs, section.cases, section.curves))
    there = set(jobs["arm"])
    arms, compared = (tuple(arm for arm in names if arm in there) for names in (section.arms, section.compared))
    return replace(section, arms=arms, compared=compared, jobs=jobs, cases=cases, curves=curves)


def lacking_draws(section: Section) -> tuple[str, ...]:
    """Arms that have not the draws of the others; their means are not to be read beside those.

    The others are the arms that share the most draws, of several such sets the more common, then that of the first arm.
    """
    draws = {arm: tuple(_draws(section, arm)) for arm in section.arms}
    count = Counter(draws.values())
    usual = max(count, key=lambda found: (len(found), count[found]))  # the first of equals
    return tuple(arm for arm in section.arms if draws[arm] != usual)


def judged(cases: pd.DataFrame) -> pd.DataFrame:
    """Rows of several jobs, where a label of a case has a score in all of them or in none.

    What one of them leaves out and another marks is not in the reference, so the first was right (``EMPTY_RULE``): left
    out of the comparison, the other's mistake would cost it nothing.
    """
    scores = cases[list(METRICS)]
    marked = cases.groupby(["case", "label"])["dice"].transform("count") > 0
    right = scores.isna().all(axis=1) & marked
    return cases.assign(**{metric: scores[metric].mask(right, BEST[metric]) for metric in METRICS})


def arm_rows(section: Section) -> list[dict[str, Any]]:
    """A row an arm: its draws, the mean of every metric over cases and draws, per class too, the gap, the costs.

    ``dice_sd`` is the standard deviation of the draws' means (divisor n - 1; NaN for one draw). The share of the gap
    compares the arm with the lower bound over the draws that both have; ``gap_low`` and ``gap_high`` bound its 95 %
    interval over cases. ``hd95_median_mm`` is the median over cases and labels, which a missed structure hardly moves.
    """
    scores = section.scores
    by_draw = scores.groupby(["arm", "draw"]).mean()
    by_class = section.cases.groupby(["arm", "draw", "label"])[list(METRICS)].mean()
    by_class = by_class.groupby(["arm", "label"]).mean()
    costs = section.jobs.groupby("arm")[list(COSTS)].mean()
    rows = []
    for arm in section.arms:
        means = by_draw.loc[arm]
        rows.append(
            {
                "labeled": section.labeled,
                "arm": arm,
                "draws": means.index.tolist(),
                "jobs": int((section.jobs["arm"] == arm).sum()),
                **means.mean().to_dict(),
                "dice_sd": float(means["dice"].std()),
                **_gap(section, arm),
                "hd95_median_mm": float(section.cases.loc[section.cases["arm"] == arm, "hd95_mm"].median()),
                "per_class": by_class.loc[arm].to_dict(orient="index"),
                **costs.loc[arm].to_dict(),
            }
        )
    return rows


def comparison_rows(section: Section) -> list[dict[str, Any]]:
    """Paired differences in the case's mean Dice, by draw and pooled: each compared arm less each baseline, and each
    other one less the focus arm."""
    rows = []
    for arm in section.compared:
        for baseline in section.opponents(arm):
            pairs = {draw: _pair(section, arm, baseline, draw) for draw in _common_draws(section, arm, baseline)}
            if not pairs:
                continue
            found: list[tuple[int | str, PairedComparison]] = []
            found += [(draw, paired_comparison(*pair)) for draw, pair in pairs.items()]
            for draw, comparison in [*found, (POOLED, pooled_comparison(pairs))]:
                names = {"labeled": section.labeled, "arm": arm, "baseline": baseline, "draw": draw}
                rows.append({**names, **asdict(comparison)})
    return rows


def add_corrected(rows: list[dict[str, Any]]) -> None:
    """Put ``corrected_p`` into comparisons: Benjamini and Hochberg, over the pooled ones of all sections."""
    pooled = [row for row in rows if row["draw"] == POOLED]
    for row, value in zip(pooled, benjamini_hochberg([row["p_value"] for row in pooled]), strict=True):
        row["corrected_p"] = float(value)


def notes(section: Section, results: Results) -> list[str]:
    """What a reader must know before comparing: bounds and baselines that are missing, arms treated unequally."""
    here = f"{section.labeled} labeled"
    found = [
        f"{here}: the {kind} bound '{arm}' has no finished job; the share of the gap is not computed."
        for kind, arm in (("lower", section.lower), ("upper", section.upper))
        if arm not in section.arms
    ]
    found += [
        f"{here}: the baseline '{baseline}' has no finished job; nothing is compared with it."
        for baseline in section.baselines
        if baseline not in section.arms
    ]
    found += [f"{here}: {text}" for text in _uncompared(section)]
    found += [
        f"{here}: arms differ in {key}: {_grouped(section.jobs, key)}."
        for key in SAME_IN_ALL_ARMS
        if section.jobs[key].nunique(dropna=False) > 1
    ]
    return found + _split_notes(section, results)


def worst_and_median(section: Section) -> dict[str, str]:
    """The focus arm's worst and median case, by its mean Dice over draws; of two medians the lower."""
    ranked = section.scores["dice"].loc[section.focus].groupby("case").mean().dropna().sort_index()
    order = ranked.sort_values(kind="stable").index.tolist()
    return {"worst": order[0], "median": order[(len(order) - 1) // 2]} if order else {}


def _section(
    results: Results,
    labeled: int | str,
    baselines: tuple[str, ...],
    lower: str,
    upper: str,
    order: Sequence[str],
) -> Section:
    jobs, cases, curves = (_rows(table, labeled, upper) for table in (results.jobs, results.cases, results.curves))
    title = f"{upper}{ALL_LABELS_SUFFIX}" if f"{upper}{ALL_LABELS_SUFFIX}" in set(jobs["arm"]) else upper
    present = sorted(set(jobs["arm"]))
    first = [arm for arm in dict.fromkeys((lower, *baselines)) if arm in present and arm != title]
    named = [arm for arm in order if arm in present] + [arm for arm in present if arm not in order]
    compared = [arm for arm in named if arm not in {lower, title, *baselines}]
    arms = (*first, *compared, *[arm for arm in present if arm == title])
    return Section(labeled, arms, (*compared, *arms)[0], tuple(compared), baselines, lower, title, jobs, cases, curves)


def _rows(table: pd.DataFrame, labeled: int | str, upper: str) -> pd.DataFrame:
    """Rows of this number of labeled cases, and the upper bound's with all, which is renamed."""
    here = table["labeled"] == labeled
    bound = (table["labeled"] == ALL_LABELED) & (table["arm"] == upper) & ~here
    chosen = table[here | bound].copy()
    chosen.loc[bound[here | bound], "arm"] = f"{upper}{ALL_LABELS_SUFFIX}"
    return chosen


def _draws(section: Section, arm: str) -> list[int]:
    return sorted(set(section.jobs.loc[section.jobs["arm"] == arm, "draw"].tolist()))


def _common_draws(section: Section, *arms: str) -> list[int]:
    return sorted(set.intersection(*(set(_draws(section, arm)) for arm in arms)))


def _uncompared(section: Section) -> list[str]:
    """Draws in which an arm or its opponent is missing; arms that lack the same ones in one sentence."""
    alike: dict[tuple[str, str], list[str]] = {}
    for arm in section.compared:
        without: dict[str, list[str]] = {}
        for baseline in section.opponents(arm):
            missing = sorted(set(_draws(section, arm)) ^ set(_draws(section, baseline)))
            if missing and baseline in section.arms:
                without.setdefault(", ".join(map(str, missing)), []).append(f"'{baseline}'")
        for draws, names in without.items():
            alike.setdefault((draws, ", ".join(names)), []).append(f"'{arm}'")
    return [
        f"{', '.join(arms)} {'is' if len(arms) == 1 else 'are'} not compared in draw {draws} with {names}; one of the "
        "two lacks it."
        for (draws, names), arms in alike.items()
    ]


def _pair(section: Section, arm: str, baseline: str, draw: int) -> tuple[pd.Series, pd.Series]:
    """Dice of both by case, in one order of cases for all draws."""
    cases = section.cases
    names = sorted(cases["case"].unique())
    dice = _by_case(judged(cases[cases["arm"].isin((arm, baseline)) & (cases["draw"] == draw)]))["dice"]
    return dice.loc[arm, draw].reindex(names), dice.loc[baseline, draw].reindex(names)


def _gap(section: Section, arm: str) -> dict[str, float]:
    """Share of the gap and its interval, of the same cases; NaN where a bound is missing."""
    nan = float("nan")
    if section.lower not in section.arms or section.upper not in section.arms:
        return {"gap_closed": nan, "gap_low": nan, "gap_high": nan}
    cases = section.cases[section.cases["arm"].isin((arm, section.lower, section.upper))]
    if arm != section.upper:  # with all labels there is no draw to match
        draws = _common_draws(section, section.lower, arm)
        cases = cases[cases["draw"].isin(draws) | (cases["arm"] == section.upper)]
    means = _by_case(judged(cases))["dice"].groupby(["arm", "case"]).mean().unstack("arm").dropna()
    ours, low, high = (means[name] for name in (arm, section.lower, section.upper))
    least, most = gap_interval(ours, low, high)
    return {
        "gap_closed": gap_closed(*map(float, (ours.mean(), low.mean(), high.mean()))),
        "gap_low": least,
        "gap_high": most,
    }


def _by_case(cases: pd.DataFrame) -> pd.DataFrame:
    """One row an arm, draw and case (its index), columns ``METRICS``: mean over labels, then over seeds."""
    by_job = cases.groupby(["arm", "draw", "seed", "case"])[list(METRICS)].mean()
    return by_job.groupby(["arm", "draw", "case"]).mean()


def _grouped(jobs: pd.DataFrame, key: str) -> str:
    groups = jobs.groupby(key, dropna=False)["arm"].unique()
    return "; ".join(f"{value} ({', '.join(sorted(arms))})" for value, arms in groups.items())


def _split_notes(section: Section, results: Results) -> list[str]:
    """Draws whose labeled or test cases are not the same in all arms; the upper bound has more, rightly."""
    names = set(section.jobs.loc[section.jobs["arm"] != section.upper, "name"])
    records = [record for record in results.records if record["name"] in names]
    found = []
    for draw in sorted({record["draw"] for record in records}):
        for part in ("train", "val", "test"):
            lists = {tuple(sorted(r["split"][part])) for r in records if r["draw"] == draw}
            if len(lists) > 1:
                found.append(f"{section.labeled} labeled: in draw {draw}, arms differ in their '{part}' cases.")
    return found
