"""How far a mean over queries may be from its true value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from rerank_core.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Mapping

BLOCK = 500  # samples drawn at once: bounds memory at BLOCK * queries numbers


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
    different = sorted(values.keys() ^ baseline.keys())
    if different:
        raise DataError(f"query {different[0]!r} is in one of two runs; compare runs of the same queries")
    differences = {query_id: value - baseline[query_id] for query_id, value in values.items()}
    return bootstrap_interval(differences, num_samples=num_samples, seed=seed, confidence=confidence)
