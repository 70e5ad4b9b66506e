"""Is one method better than another? Paired comparison by case, over one draw of labeled cases or several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import bootstrap, false_discovery_control, wilcoxon

_DECIMALS = 12
"""Differences are rounded to this, so that what is equal but for the last bits counts, and ranks, as equal."""
_BATCH = 1000
"""Resamples held in memory at a time."""


@dataclass(frozen=True)
class PairedComparison:
    """Our scores minus the baseline's, over the same cases.

    ``low`` and ``high`` bound the 95 % bootstrap interval of ``mean_difference``; ``p_value`` is not corrected;
    ``wins``, ``ties`` and ``losses`` count cases and add up to ``cases``. Without any case the numbers are NaN.
    """

    mean_difference: float
    low: float
    high: float
    p_value: float
    wins: int
    ties: int
    losses: int
    cases: int


def paired_comparison(
    ours: ArrayLike, baseline: ArrayLike, *, seed: int = 0, resamples: int = 10000
) -> PairedComparison:
    """Compare two methods by their scores of the same cases; a higher score is a win.

    The interval is the percentile bootstrap over cases (Efron and Tibshirani 1993, chapter 13), which stays defined
    where all differences are equal (the interval is then this one number). The p-value is the two-sided Wilcoxon
    signed-rank test (zero differences are discarded; all of them zero gives 1).

    Args:
        ours: (cases,), NaN where a case has no score.
        baseline: (cases,), in the same order; a case that is NaN in either is left out.
        seed: of the resampling.
        resamples: number of bootstrap samples.

    Raises:
        ValueError: the two are not one-dimensional and equally long.
    """
    return _comparison(_differences(ours, baseline), seed, resamples)


def pooled_comparison(
    pairs_by_draw: Mapping[int, tuple[ArrayLike, ArrayLike]] | Sequence[tuple[ArrayLike, ArrayLike]],
    *,
    seed: int = 0,
    resamples: int = 10000,
) -> PairedComparison:
    """Compare two methods over several draws of labeled cases that were tested on the same cases.

    The scores of one case in several draws are not independent, so cases are resampled, not pairs of case and draw:
    each case enters once, by the mean of its differences over the draws. The interval therefore says how the result
    would change with other test cases, for these draws; how it changes with the draw is seen from one draw to the
    next. Wins, ties, losses and the p-value are of the cases' means, too.

    Args:
        pairs_by_draw: for each draw our scores and the baseline's, (cases,) each, in one order of cases for all
            draws; NaN where a draw has no score of a case.
        seed: of the resampling.
        resamples: number of bootstrap samples.

    Raises:
        ValueError: there is no draw, or the lengths differ.
    """
    pairs = list(pairs_by_draw.values()) if isinstance(pairs_by_draw, Mapping) else list(pairs_by_draw)
    rows = [_differences(ours, baseline) for ours, baseline in pairs]
    if len({row.shape for row in rows}) != 1:
        raise ValueError(f"Draws need the same cases, got {[row.shape for row in rows]}.")
    table = np.stack(rows)
    counts = np.isfinite(table).sum(axis=0)
    totals = np.nansum(table, axis=0)
    return _comparison(np.where(counts > 0, totals / np.maximum(counts, 1), np.nan), seed, resamples)


def benjamini_hochberg(p_values: ArrayLike) -> np.ndarray:
    """Adjust p-values for the number of comparisons, bounding the share of false discoveries.

    Args:
        p_values: (comparisons,), NaN for a comparison that could not be made; it stays NaN and is not counted.

    Returns:
        (comparisons,), from 0 to 1.

    Source: Benjamini and Hochberg 1995, by ``scipy.stats.false_discovery_control``.
    """
    values = np.asarray(p_values, dtype=float)
    adjusted = np.full(values.shape, np.nan)
    made = np.isfinite(values)
    if made.any():
        adjusted[made] = false_discovery_control(values[made], method="bh")
    return adjusted


def gap_closed(arm: float, lower: float, upper: float) -> float:
    """Share of the way from the lower bound to the upper that a method goes; NaN where there is no way to go.

    Below 0 the method is worse than the lower bound, above 1 better than the upper.
    """
    return (arm - lower) / (upper - lower) if upper > lower else float("nan")


def gap_interval(
    arm: ArrayLike, lower: ArrayLike, upper: ArrayLike, *, seed: int = 0, resamples: int = 10000
) -> tuple[float, float]:
    """95 % percentile bootstrap interval of :func:`gap_closed` over cases, which all three keep or lose together.

    NaN where some of the resamples leave no way to go, or there are fewer than two cases.

    Args:
        arm: scores, (cases,); a case that is NaN in any of the three is left out.
        lower: the lower bound's, in the same order.
        upper: the upper bound's.
        seed: of the resampling.
        resamples: number of bootstrap samples.
    """
    table = np.stack([np.asarray(scores, dtype=float) for scores in (arm, lower, upper)])
    table = table[:, np.isfinite(table).all(axis=0)]
    if table.shape[1] < 2:
        return float("nan"), float("nan")

    rng = np.random.default_rng(seed)
    shares = []
    for start in range(0, resamples, _BATCH):
        chosen = rng.integers(table.shape[1], size=(min(_BATCH, resamples - start), table.shape[1]))
        ours, low, high = table[:, chosen].mean(axis=-1)
        shares.append((ours - low) / np.where(high > low, high - low, np.nan))
    least, most = np.percentile(np.concatenate(shares), [2.5, 97.5])
    return float(least), float(most)


def _differences(ours: ArrayLike, baseline: ArrayLike) -> np.ndarray:
    """Ours minus the baseline's, (cases,); NaN where either is not finite."""
    a, b = np.asarray(ours, dtype=float), np.asarray(baseline, dtype=float)
    if a.ndim != 1 or a.shape != b.shape:
        raise ValueError(f"Two scores a case are needed, (cases,) each, got {a.shape} and {b.shape}.")
    return np.where(np.isfinite(a) & np.isfinite(b), a - b, np.nan)


def _comparison(differences: np.ndarray, seed: int, resamples: int) -> PairedComparison:
    """Of differences (cases,), NaN left out."""
    differences = np.round(differences[np.isfinite(differences)], _DECIMALS)
    cases = len(differences)
    if cases == 0:
        nan = float("nan")
        return PairedComparison(nan, nan, nan, nan, wins=0, ties=0, losses=0, cases=0)
    low, high = _interval(differences, seed, resamples)
    return PairedComparison(
        mean_difference=float(differences.mean()),
        low=low,
        high=high,
        p_value=float(wilcoxon(differences).pvalue) if differences.any() else 1.0,
        wins=int((differences > 0).sum()),
        ties=int((differences == 0).sum()),
        losses=int((differences < 0).sum()),
        cases=cases,
    )


def _interval(differences: np.ndarray, seed: int, resamples: int) -> tuple[float, float]:
    if np.ptp(differences) == 0:
        # also the only way for a single case, which scipy refuses to resample
        return float(differences[0]), float(differences[0])
    interval = bootstrap(
        (differences,),
        np.mean,
        n_resamples=resamples,
        batch=_BATCH,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(interval.low), float(interval.high)
