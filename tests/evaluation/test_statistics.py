import math
import warnings
from dataclasses import astuple

import numpy as np
import pytest

from nnunet_dualcl.evaluation.statistics import (
    PairedComparison,
    benjamini_hochberg,
    gap_closed,
    gap_interval,
    paired_comparison,
    pooled_comparison,
)

NAN = float("nan")


@pytest.fixture(autouse=True)
def _warnings_are_errors() -> object:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def scores(cases: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    baseline = generator.beta(8, 2, cases)
    return np.clip(baseline + generator.normal(0.03, 0.05, cases), 0, 1), baseline


# ---- one draw


def test_literal_numbers() -> None:
    """Wilcoxon's exact two-sided p for five differences of one sign is 2 / 2**5."""
    result = paired_comparison([0.9, 0.8, 0.7, 0.95, 0.85], [0.8, 0.6, 0.4, 0.55, 0.35])
    assert result.mean_difference == pytest.approx(0.3)
    assert result.p_value == pytest.approx(2 / 32)
    assert (result.wins, result.ties, result.losses, result.cases) == (5, 0, 0, 5)
    assert 0.1 < result.low < 0.3 < result.high < 0.5


def test_the_interval_against_a_loop_of_resamples() -> None:
    ours, baseline = scores(40)
    generator = np.random.default_rng(7)
    means = [generator.choice(ours - baseline, 40).mean() for _ in range(20000)]
    result = paired_comparison(ours, baseline, resamples=20000)
    np.testing.assert_allclose((result.low, result.high), np.percentile(means, (2.5, 97.5)), atol=5e-4)


def test_the_interval_of_a_skewed_sample_has_no_correction() -> None:
    """The percentile bootstrap, as the report says: a corrected one (BCa) would lie about 0.03 to 0.06 higher."""
    differences = np.array([0.0] * 9 + [0.3, 0.6, 1.0])
    generator = np.random.default_rng(3)
    means = generator.choice(differences, (20000, 12)).mean(axis=1)
    result = paired_comparison(differences, np.zeros(12), resamples=20000)
    np.testing.assert_allclose((result.low, result.high), np.percentile(means, (2.5, 97.5)), atol=0.012)


def test_the_interval_covers_the_true_mean_as_often_as_it_says() -> None:
    inside = 0
    for seed in range(200):
        ours, baseline = np.random.default_rng(seed).normal((0.5, 0.4), 0.1, (40, 2)).T
        result = paired_comparison(ours, baseline, resamples=400)
        inside += result.low <= 0.1 <= result.high
    # 0.95 less the known shortfall of the percentile bootstrap at 40 cases, within 3 standard errors
    assert 0.89 <= inside / 200 <= 0.99


def test_swapping_mirrors() -> None:
    ours, baseline = scores(30)
    there, back = paired_comparison(ours, baseline), paired_comparison(baseline, ours)
    assert back.mean_difference == -there.mean_difference
    assert (back.low, back.high) == pytest.approx((-there.high, -there.low), abs=2e-3)
    assert back.p_value == there.p_value
    assert (back.wins, back.losses) == (there.losses, there.wins)


def test_the_seed_decides() -> None:
    pair = scores(30)
    assert paired_comparison(*pair, seed=3) == paired_comparison(*pair, seed=3)
    assert paired_comparison(*pair, seed=3).low != paired_comparison(*pair, seed=4).low


def test_equal_scores() -> None:
    ours = scores(30)[0]
    assert paired_comparison(ours, ours) == PairedComparison(0, 0, 0, 1, wins=0, ties=30, losses=0, cases=30)


def test_constant_differences() -> None:
    """0.3 - 0.2 and 0.8 - 0.7 differ in their last bits."""
    result = paired_comparison([0.3, 0.8, 0.9, 0.4], [0.2, 0.7, 0.8, 0.3])
    assert (result.mean_difference, result.low, result.high) == (0.1, 0.1, 0.1)
    assert result.p_value == pytest.approx(2 / 16)


def test_rounding_is_no_win() -> None:
    result = paired_comparison([0.1 + 0.2, 0.5], [0.3, 0.4])
    assert (result.wins, result.ties) == (1, 1)


def test_a_single_case_and_none() -> None:
    assert paired_comparison([0.5], [0.25]) == PairedComparison(0.25, 0.25, 0.25, 1, 1, 0, 0, 1)
    assert astuple(paired_comparison([NAN], [0.5])) == pytest.approx((NAN,) * 4 + (0,) * 4, nan_ok=True)


def test_cases_without_a_score_are_left_out() -> None:
    ours, baseline = scores(20)
    with_gaps = [*ours, NAN, 0.5, NAN], [*baseline, 0.5, NAN, NAN]
    assert paired_comparison(*with_gaps) == paired_comparison(ours, baseline)


@pytest.mark.parametrize("pair", [([0.1, 0.2], [0.1]), ([[0.1]], [[0.2]]), (0.1, 0.2)])
def test_what_does_not_pair(pair: tuple[object, object]) -> None:
    with pytest.raises(ValueError, match="Two scores a case"):
        paired_comparison(*pair)  # type: ignore[arg-type]


# ---- several draws


def test_pooled_resamples_cases_against_a_loop() -> None:
    generator = np.random.default_rng(5)
    easy = generator.normal(0, 0.1, 25)
    pairs = [(easy + generator.normal(0.02, 0.01, 25), np.zeros(25)) for _ in range(3)]
    result = pooled_comparison(pairs, resamples=20000)
    differences = np.array([ours - baseline for ours, baseline in pairs])
    means = []
    for _ in range(20000):
        picked = generator.integers(25, size=25)
        means.append(np.mean([differences[draw][picked].mean() for draw in range(3)]))
    np.testing.assert_allclose((result.low, result.high), np.percentile(means, (2.5, 97.5)), atol=1.5e-3)
    assert result.mean_difference == pytest.approx(differences.mean())
    assert result.cases == 25


def test_repeating_a_draw_adds_no_certainty() -> None:
    pair = scores(25)
    alone = paired_comparison(*pair)
    assert astuple(pooled_comparison([pair, pair, pair])) == pytest.approx(astuple(alone))
    tripled = paired_comparison(np.tile(pair[0], 3), np.tile(pair[1], 3))
    assert tripled.high - tripled.low < 0.7 * (alone.high - alone.low)


def test_a_mapping_of_draws_is_the_same() -> None:
    pairs = [scores(25, seed) for seed in (1, 2)]
    assert pooled_comparison({0: pairs[0], 3: pairs[1]}) == pooled_comparison(pairs)


def test_pooled_wins_are_of_the_mean_over_draws() -> None:
    result = pooled_comparison([([0.5, 0.6, 0.4], [0.4, 0.6, 0.5]), ([0.3, 0.6, NAN], [0.5, 0.6, 0.2])])
    assert (result.wins, result.ties, result.losses, result.cases) == (0, 1, 2, 3)
    assert result.mean_difference == pytest.approx((-0.05 + 0 - 0.1) / 3)


def test_a_case_without_a_score_in_any_draw_is_left_out() -> None:
    assert pooled_comparison([([0.5, NAN], [0.4, 0.1]), ([0.5, 0.2], [0.4, NAN])]).cases == 1


@pytest.mark.parametrize("pairs", [[], [([0.1], [0.2]), ([0.1, 0.2], [0.2, 0.1])]])
def test_draws_with_different_cases_are_refused(pairs: list[tuple[list[float], list[float]]]) -> None:
    with pytest.raises(ValueError, match="Draws need the same cases"):
        pooled_comparison(pairs)


# ---- correction and gap


def test_benjamini_hochberg_of_literal_numbers() -> None:
    """Sorted p times m / rank, made monotone from the largest down: 0.04, 0.06, 0.0533, 0.5."""
    np.testing.assert_allclose(benjamini_hochberg([0.01, 0.04, 0.03, 0.5]), [0.04, 0.04 * 4 / 3, 0.04 * 4 / 3, 0.5])


def test_a_comparison_not_made_is_not_counted() -> None:
    np.testing.assert_allclose(benjamini_hochberg([0.01, NAN, 0.04]), [0.02, NAN, 0.04])
    np.testing.assert_array_equal(benjamini_hochberg([NAN]), [NAN])
    assert benjamini_hochberg([]).shape == (0,)


def test_the_interval_of_the_gap_resamples_the_three_together() -> None:
    rng = np.random.default_rng(5)
    lower = rng.uniform(0.5, 0.7, 40)
    upper = lower + 0.2
    assert gap_interval(lower + 0.1, lower, upper) == pytest.approx((0.5, 0.5))  # the same share in every case
    ours = lower + rng.normal(0.1, 0.05, 40)
    low, high = gap_interval(ours, lower, upper)
    spread = 1.96 * (ours - lower).std(ddof=1) / np.sqrt(40) / 0.2
    middle = (ours - lower).mean() / 0.2
    assert (low, high) == pytest.approx((middle - spread, middle + spread), abs=0.02)
    assert gap_interval(ours, lower, upper, seed=1) != (low, high)
    missing = np.r_[ours, NAN], np.r_[lower, 0.1], np.r_[upper, 0.9]
    assert gap_interval(*missing) == (low, high)
    assert all(map(math.isnan, gap_interval([0.6], [0.5], [0.7])))
    assert all(map(math.isnan, gap_interval(ours, upper, lower)))


def test_gap_closed() -> None:
    assert gap_closed(0.85, 0.8, 0.9) == pytest.approx(0.5)
    assert gap_closed(0.75, 0.8, 0.9) == pytest.approx(-0.5)
    assert math.isnan(gap_closed(0.85, 0.9, 0.9))
    assert math.isnan(gap_closed(0.85, 0.9, 0.8))
    assert math.isnan(gap_closed(0.85, NAN, 0.9))
