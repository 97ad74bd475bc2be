"""From a score to the grade that it promises, as a share of the highest one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.optimize import minimize

from rerank_core.errors import DataError
from rerank_core.records import Calibration

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from rerank_core.records import Qrels, Ranking


@dataclass(frozen=True, slots=True)
class ReliabilityBin:
    """Some rows of like probability: what was promised on average, and what came."""

    mean_probability: float
    mean_target: float
    num_rows: int


def graded_scores(
    rankings: Mapping[str, Ranking], qrels: Qrels, *, max_grade: int
) -> tuple[list[float], list[float]]:
    """Return every candidate's score, and its target `grade / max_grade` (0 where it is unjudged).

    `max_grade` is that of the collection, not of these queries, so that targets mean the same everywhere.

    Raises:
        DataError: a query is not judged, or a grade is above `max_grade`.
    """
    scores, targets = [], []
    for query_id, ranking in rankings.items():
        if query_id not in qrels:
            raise DataError(f"query {query_id!r} of the run is not judged; calibrate on judged queries only")
        for doc_id, score in zip(ranking.doc_ids, ranking.scores, strict=True):
            grade = qrels[query_id].get(doc_id, 0)
            if grade > max_grade:
                raise DataError(
                    f"document {doc_id!r} has grade {grade} for query {query_id!r}, above {max_grade};"
                    " give the collection's highest grade"
                )
            scores.append(score)
            targets.append(grade / max_grade)
    return scores, targets


def fit_platt(scores: Sequence[float], targets: Sequence[float]) -> Calibration:
    """Return Platt scaling (Platt 1999): the a and b of `p = σ(a · score + b)` with the highest likelihood.

    The likelihood of row i is `t log p + (1 − t) log(1 − p)`, its target t from 0 to 1 being read as a
    probability; rows weigh alike. Where scores separate the targets it has no maximum, so targets are drawn
    in as Platt does it: t becomes `t · (P + 1) / (P + 2) + (1 − t) / (N + 2)`, with P the sum of all t and N
    that of all 1 − t, which vanishes as rows grow in number. Fit on validation queries, never on those that
    the calibration is then judged by.

    Raises:
        DataError: a score is not finite, a target is not from 0 to 1, there are no rows, all targets or all
            scores are equal, or the best slope is not positive: scores that fall as grades rise.
        ValueError: the lengths differ.
    """
    found = _checked(scores, targets)
    slope, intercept = _most_likely(np.stack([found[0], np.ones_like(found[0])], axis=1), found[1])
    return _rising(slope, intercept=intercept)


def reliability_bins(
    probabilities: Sequence[float], targets: Sequence[float], *, num_bins: int
) -> list[ReliabilityBin]:
    """Return bins of rows of like probability and equal number, lowest first.

    The numbers differ by at most one, except that equal probabilities are never parted: then bins are larger,
    and fewer.

    Raises:
        DataError: there are no rows.
        ValueError: the lengths differ.
    """
    rows = np.array(list(zip(probabilities, targets, strict=True)), dtype=np.float64).reshape(-1, 2)
    if not len(rows):
        raise DataError("reliability needs at least one row; name queries with candidates")
    ordered = np.sort(rows[:, 0])
    firsts = ordered[len(rows) * np.arange(1, num_bins) // num_bins]  # the lowest of every bin but the first
    places = np.searchsorted(firsts, rows[:, 0], side="right")
    members = [rows[places == place] for place in range(num_bins)]
    return [
        ReliabilityBin(float(found[:, 0].mean()), float(found[:, 1].mean()), len(found))
        for found in members
        if len(found)
    ]


def calibration_error(bins: Iterable[ReliabilityBin]) -> float:
    """Return the expected calibration error: the mean of |promised − came| over bins, weighed by their rows.

    Over bins of equal number (Nixon et al. 2019), from 0 to 1. It depends on their number, is above 0 by
    chance alone for few rows, and says nothing of ranking: the same promise for every row may reach 0.
    """
    bins = list(bins)
    missed = [found.num_rows * abs(found.mean_probability - found.mean_target) for found in bins]
    return sum(missed) / sum(found.num_rows for found in bins)


def _checked(
    scores: Sequence[float], targets: Sequence[float]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return scores and targets, (rows,) each, after the refusals that `fit_platt` states."""
    rows = np.array(list(zip(scores, targets, strict=True)), dtype=np.float64).reshape(-1, 2)
    if not np.isfinite(rows[:, 0]).all():
        raise DataError("a score is not finite; score the queries again")
    if not ((rows[:, 1] >= 0) & (rows[:, 1] <= 1)).all():
        raise DataError("a target is not between 0 and 1; divide grades by the highest one")
    for name, column in (("scores", rows[:, 0]), ("targets", rows[:, 1])):
        if len(np.unique(column)) < 2:
            held = f"all {name} are {column[0]:g}" if len(column) else "there are no rows"
            raise DataError(f"nothing to calibrate on: {held}; name validation queries of several grades")
    return rows[:, 0], rows[:, 1]


def _most_likely(design: NDArray[np.float64], targets: NDArray[np.float64]) -> list[float]:
    """Return the most likely weights w of `σ(design · w)`, from (rows, weights) and (rows,)."""
    positive, negative = targets.sum(), (1 - targets).sum()
    drawn_in = targets * (positive + 1) / (positive + 2) + (1 - targets) / (negative + 2)
    scale = np.abs(design).max(axis=0)
    scaled = design / scale  # so that one tolerance fits scores of any size

    def loss(weights: NDArray[np.float64]) -> float:
        logits = scaled @ weights
        return float((np.logaddexp(0, logits) - drawn_in * logits).mean())

    def gradient(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        found: NDArray[np.float64] = scaled.T @ (_sigmoid(scaled @ weights) - drawn_in) / len(targets)
        return found

    def curvature(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        promised = _sigmoid(scaled @ weights)
        found: NDArray[np.float64] = (scaled * (promised * (1 - promised))[:, None]).T @ scaled / len(targets)
        return found

    start = np.zeros(design.shape[1])
    found = minimize(loss, start, jac=gradient, hess=curvature, method="trust-exact", options={"gtol": 1e-10})
    weights: list[float] = (found.x / scale).tolist()
    return weights


def _rising(slope: float, *, intercept: float) -> Calibration:
    if slope <= 0:
        raise DataError(
            f"the scores fall as grades rise (slope {slope:.3g}): no calibration that keeps their order fits;"
            " train longer, or calibrate on more validation queries"
        )
    return Calibration(slope, intercept)


def _sigmoid(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return `1 / (1 + exp(−logits))` without overflow."""
    found: NDArray[np.float64] = np.exp(-np.logaddexp(0, -logits))
    return found
