"""Calibration on planted worlds, where the right answer is known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from rerank_core.errors import DataError
from rerank_core.evaluation.calibration import (
    ReliabilityBin,
    calibration_error,
    fit_platt,
    graded_scores,
    reliability_bins,
)
from rerank_core.records import Calibration, Ranking


def planted(
    rng: np.random.Generator, *, slope: float, intercept: float, num_rows: int
) -> tuple[list[float], list[float]]:
    """Scores of some spread, and targets that come with probability `σ(slope · score + intercept)`."""
    scores = rng.normal(0, 2 / slope, size=num_rows)
    came = rng.random(num_rows) < 1 / (1 + np.exp(-slope * scores - intercept))
    return scores.tolist(), came.astype(float).tolist()


# --- fitting


@pytest.mark.parametrize(("slope", "intercept"), [(1.0, 0.0), (0.05, -2.0), (40.0, 1.5)])
def test_platt_recovers_planted_slope_and_intercept(
    rng: np.random.Generator, slope: float, intercept: float
) -> None:
    found = fit_platt(*planted(rng, slope=slope, intercept=intercept, num_rows=40_000))
    assert found.slope == pytest.approx(slope, rel=0.06)
    assert found.intercept == pytest.approx(intercept, abs=0.1)


def test_graded_targets_are_probabilities(rng: np.random.Generator) -> None:
    scores = rng.normal(0, 2, size=500)
    targets = 1 / (1 + np.exp(-0.7 * scores - 0.4))
    found = fit_platt(scores.tolist(), targets.tolist())
    assert found.slope == pytest.approx(0.7, rel=0.02)  # drawn in by 1 of 500 rows
    assert found.intercept == pytest.approx(0.4, abs=0.02)


def test_platt_finds_the_maximum_of_the_likelihood_that_it_states(rng: np.random.Generator) -> None:
    scores, targets = planted(rng, slope=1.5, intercept=-0.5, num_rows=60)
    positive = sum(targets)
    drawn_in = [
        (positive + 1) / (positive + 2) if target else 1 / (len(targets) - positive + 2) for target in targets
    ]
    rows = np.array(scores + scores)[:, None]
    oracle = LogisticRegression(C=np.inf, tol=1e-10).fit(
        rows,
        [1] * len(scores) + [0] * len(scores),
        sample_weight=np.concatenate([drawn_in, 1 - np.array(drawn_in)]),
    )
    found = fit_platt(scores, targets)
    assert found.slope == pytest.approx(oracle.coef_[0, 0], rel=1e-4)
    assert found.intercept == pytest.approx(oracle.intercept_[0], rel=1e-4)


def test_separated_targets_still_have_a_finite_calibration() -> None:
    scores, targets = [-2.0, -1.0, 1.0, 2.0], [0.0, 0.0, 1.0, 1.0]
    low, _, _, high = fit_platt(scores, targets).probabilities(scores)
    assert 0.1 < low < 0.3
    assert low + high == pytest.approx(1.0)


@given(st.floats(0.01, 100), st.floats(-5, 5))
def test_a_linear_change_of_the_scores_changes_no_promise(scale: float, shift: float) -> None:
    scores, targets = [0.1, 0.9, 0.5, 0.3, 0.8], [0.0, 1.0, 0.25, 0.5, 0.75]
    changed = [scale * (score + shift) for score in scores]
    promised = fit_platt(scores, targets).probabilities(scores)
    assert fit_platt(changed, targets).probabilities(changed) == pytest.approx(promised, abs=1e-5)


def test_a_calibration_keeps_the_order_of_scores_and_does_not_overflow() -> None:
    promised = Calibration(2.0, -1.0).probabilities([-1e4, 0.0, 0.5, 1e4])
    assert promised == sorted(promised)
    assert promised == pytest.approx([0.0, 1 / (1 + np.exp(1)), 0.5, 1.0])


@pytest.mark.parametrize(
    ("scores", "targets", "problem"),
    [
        ([0.1, 0.2], [1.0, 1.0], "all targets are 1"),
        ([0.1, 0.2], [0.0, 0.0], "all targets are 0"),
        ([0.3, 0.3], [0.0, 1.0], "all scores are 0.3"),
        ([], [], "there are no rows"),
        ([0.1, float("nan")], [0.0, 1.0], "a score is not finite"),
        ([0.1, 0.2], [0.0, 9.0], "a target is not between 0 and 1"),
        ([0.1, 0.2], [0.0, float("nan")], "a target is not between 0 and 1"),
        ([-1.0, 1.0], [1.0, 0.0], "the scores fall as grades rise"),
    ],
)
def test_data_that_cannot_be_calibrated_on_is_refused_by_name(
    scores: list[float], targets: list[float], problem: str
) -> None:
    with pytest.raises(DataError, match=problem):
        fit_platt(scores, targets)


def test_lists_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        fit_platt([0.1], [0.0, 1.0])


@pytest.mark.parametrize(
    ("slope", "intercept"), [(0.0, 0.0), (-1.0, 0.0), (float("nan"), 0.0), (1.0, float("inf"))]
)
def test_a_calibration_that_would_turn_the_order_round_cannot_be_made(slope: float, intercept: float) -> None:
    with pytest.raises(ValueError, match="a finite slope above 0"):
        Calibration(slope, intercept)


# --- rows


def test_targets_are_grades_as_shares_of_the_highest() -> None:
    rankings = {"q": Ranking("q", ("a", "b", "new"), (2.0, 1.0, 0.5)), "none": Ranking("none", (), ())}
    qrels = {"q": {"a": 1, "b": 4, "missed": 9}, "none": {}}
    assert graded_scores(rankings, qrels, max_grade=4) == ([2.0, 1.0, 0.5], [0.25, 1.0, 0.0])


def test_unjudged_queries_and_grades_above_the_highest_are_refused() -> None:
    rankings = {"q": Ranking("q", ("a",), (2.0,))}
    with pytest.raises(DataError, match="query 'q' of the run is not judged"):
        graded_scores(rankings, {}, max_grade=4)
    with pytest.raises(DataError, match="document 'a' has grade 5 for query 'q', above 4"):
        graded_scores(rankings, {"q": {"a": 5}}, max_grade=4)


# --- reliability


def test_bins_hold_equal_numbers_of_rows_lowest_first() -> None:
    probabilities = [0.9, 0.1, 0.4, 0.2, 0.8, 0.3, 0.5]
    targets = [1.0, 0.0, 1.0, 0.0, 0.0, 1.0, 1.0]
    bins = reliability_bins(probabilities, targets, num_bins=3)
    assert [found.num_rows for found in bins] == [2, 2, 3]
    assert [found.mean_probability for found in bins] == pytest.approx([0.15, 0.35, 2.2 / 3])
    assert [found.mean_target for found in bins] == pytest.approx([0.0, 1.0, 2 / 3])


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 1)), min_size=1, max_size=30), st.integers(1, 12))
def test_every_row_is_in_one_bin_and_equal_probabilities_share_it(
    rows: list[tuple[int, int]], num_bins: int
) -> None:
    probabilities, targets = [p / 6 for p, _ in rows], [float(t) for _, t in rows]
    bins = reliability_bins(probabilities, targets, num_bins=num_bins)
    assert sum(found.num_rows for found in bins) == len(rows)
    assert len(bins) <= min(num_bins, len(set(probabilities)))
    order = np.random.default_rng(0).permutation(len(rows))
    shuffled = reliability_bins(
        [probabilities[i] for i in order], [targets[i] for i in order], num_bins=num_bins
    )
    assert calibration_error(bins) == pytest.approx(calibration_error(shuffled))
    assert [found.num_rows for found in bins] == [found.num_rows for found in shuffled]


def test_the_error_is_the_mean_gap_weighed_by_rows() -> None:
    bins = [ReliabilityBin(0.2, 0.3, 3), ReliabilityBin(0.9, 0.5, 1)]
    assert calibration_error(bins) == pytest.approx((3 * 0.1 + 1 * 0.4) / 4)


def test_one_true_promise_for_all_has_no_error_and_a_false_one_its_distance() -> None:
    targets = [0.0, 0.0, 0.0, 1.0]
    assert calibration_error(reliability_bins([0.25] * 4, targets, num_bins=4)) == 0.0
    assert calibration_error(reliability_bins([1.0] * 4, targets, num_bins=4)) == 0.75


@pytest.mark.parametrize(("slope", "intercept"), [(0.2, 0.0), (4.0, 0.0), (1.0, -2.0)])
def test_calibration_lowers_the_error_on_other_queries(
    rng: np.random.Generator, slope: float, intercept: float
) -> None:
    raw = Calibration(1.0, 0.0)  # scores as logits
    fitted = fit_platt(*planted(rng, slope=slope, intercept=intercept, num_rows=2000))
    scores, targets = planted(rng, slope=slope, intercept=intercept, num_rows=4000)
    before, after = (
        calibration_error(reliability_bins(found.probabilities(scores), targets, num_bins=10))
        for found in (raw, fitted)
    )
    assert before > 0.08
    assert after < 0.04


def test_reliability_of_nothing_is_refused() -> None:
    with pytest.raises(DataError, match="reliability needs at least one row"):
        reliability_bins([], [], num_bins=5)
