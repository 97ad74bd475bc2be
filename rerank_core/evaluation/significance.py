"""How sure a mean over queries is: its interval, and tests of the difference between two runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from rerank_core.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Mapping

BLOCK = 500  # samples drawn at once: bounds memory at BLOCK * queries numbers
NUM_EXACT_QUERIES = 14
"""Up to this many queries, every assignment of signs is tried instead of a sample of them."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean over queries with the bounds of its confidence interval."""

    mean: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether 0 lies outside the interval."""
        return self.low > 0 or self.high < 0


def bootstrap_interval(
    values: Mapping[str, float], *, num_samples: int, seed: int, confidence: float = 0.95
) -> Interval:
    """Return the mean over queries with its percentile bootstrap interval; queries, not rows, are resampled.

    Equal values and seed give equal bounds, whatever the order of the mapping.

    Raises:
        DataError: there is no value.
    """
    if not values:
        raise DataError("an interval needs the values of at least one query")
    found = np.array([values[query_id] for query_id in sorted(values)], dtype=np.float64)
    rng = np.random.default_rng(seed)
    means = np.concatenate(
        [
            found[rng.integers(len(found), size=(min(BLOCK, num_samples - done), len(found)))].mean(axis=1)
            for done in range(0, num_samples, BLOCK)
        ]
    )
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Interval(float(found.mean()), float(low), float(high))


def paired_interval(
    values: Mapping[str, float],
    baseline: Mapping[str, float],
    *,
    num_samples: int,
    seed: int,
    confidence: float = 0.95,
) -> Interval:
    """Return the mean difference `values - baseline` over their common queries with its interval.

    Raises:
        DataError: a query is in one of them only, or there is none.
    """
    differences = _differences(values, baseline)
    return bootstrap_interval(differences, num_samples=num_samples, seed=seed, confidence=confidence)


def randomisation_test(
    values: Mapping[str, float], baseline: Mapping[str, float], *, num_samples: int, seed: int
) -> float:
    """Return the two-sided p-value of the paired randomisation test (Fisher 1935) over the common queries.

    If the two runs did not differ, each query's difference could as well have the other sign. p is the share
    of sign assignments whose mean difference is at least as large, in absolute value, as the one observed
    (Smucker et al. 2007). Up to `NUM_EXACT_QUERIES` queries all 2^n assignments are counted, so n queries
    cannot give a p below 2^(1 − n); beyond, `num_samples` random ones are, and the observed one among them:
    `p = (1 + larger) / (1 + samples)`, never 0 (Phipson and Smyth 2010). Queries are the unit, and are taken
    to be independent. Equal values and seed give equal p, whatever the order of the mappings.

    Raises:
        DataError: a query is in one of them only, or there is none.
    """
    found = _differences(values, baseline)
    if not found:
        raise DataError("a test needs the values of at least one query")
    differences = np.array([found[query_id] for query_id in sorted(found)], dtype=np.float64)
    # Sums of the same numbers in another order may differ in their last digits: that makes them no smaller.
    observed = abs(differences.sum()) - 1e-12 * np.abs(differences).sum()
    if len(differences) <= NUM_EXACT_QUERIES:
        signs = 1 - 2 * (np.arange(2 ** len(differences))[:, None] >> np.arange(len(differences)) & 1)
        return float((np.abs(signs @ differences) >= observed).mean())
    rng = np.random.default_rng(seed)
    num_larger = 0
    for done in range(0, num_samples, BLOCK):
        signs = rng.choice((-1.0, 1.0), size=(min(BLOCK, num_samples - done), len(differences)))
        num_larger += int((np.abs(signs @ differences) >= observed).sum())
    return (1 + num_larger) / (1 + num_samples)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Return each comparison's p-value, adjusted for there being several (Holm 1979), under the same names.

    With the m values in rising order, the i-th (from 1) is multiplied by m − i + 1, is at least the one
    before, and at most 1. Those below α may be called significant with a chance of at most α that any of
    them is wrong, however the comparisons depend on each other.

    Raises:
        ValueError: a value is not between 0 and 1.
    """
    adjusted = {}
    highest = 0.0
    for place, name in enumerate(sorted(p_values, key=lambda name: p_values[name])):
        if not 0 <= p_values[name] <= 1:
            raise ValueError(f"the p-value of {name!r} must lie between 0 and 1, got {p_values[name]}")
        highest = max(highest, min(1.0, (len(p_values) - place) * p_values[name]))
        adjusted[name] = highest
    return {name: adjusted[name] for name in p_values}


def _differences(values: Mapping[str, float], baseline: Mapping[str, float]) -> dict[str, float]:
    different = sorted(values.keys() ^ baseline.keys())
    if different:
        raise DataError(f"query {different[0]!r} is in one of two runs; compare runs of the same queries")
    return {query_id: value - baseline[query_id] for query_id, value in values.items()}
