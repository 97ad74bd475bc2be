"""Methods compared on the same queries: seeds averaged, queries as the unit of every interval and test."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import combinations
from statistics import fmean, stdev
from typing import TYPE_CHECKING

from rerank_core.errors import DataError
from rerank_core.evaluation.calibration import calibration_error, reliability_bins
from rerank_core.evaluation.significance import (
    Interval,
    bootstrap_interval,
    holm,
    paired_interval,
    randomisation_test,
)
from rerank_core.records import Calibration

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rerank_core.evaluation.calibration import ReliabilityBin
    from rerank_core.evaluation.method_pictures import LearningCurve
    from rerank_core.evaluation.ranking_metrics import QueryValues

CONFIDENCE = 0.95
NUM_BINS = 10


@dataclass(frozen=True, slots=True)
class MethodRun:
    """A method on a model, measured: `values_by_seed[seed][metric name][query_id]`.

    What has no model (the first stage, the baselines) has the empty string for one. Random orders are
    measured once per order, as a method is once per seed.
    """

    model: str
    method: str
    values_by_seed: Mapping[int, Mapping[str, QueryValues]]

    def seed_means(self, metric: str) -> QueryValues:
        """Return each query's mean over the seeds.

        Raises:
            DataError: two seeds were measured on different queries.
        """
        by_seed = [values[metric] for values in self.values_by_seed.values()]
        if any(values.keys() != by_seed[0].keys() for values in by_seed):
            raise DataError(f"{self.model} {self.method}: the seeds were measured on different queries")
        return {query_id: fmean(values[query_id] for values in by_seed) for query_id in by_seed[0]}

    def has(self, metric: str) -> bool:
        """Whether a metric was measured, which a loss is not where scores are no logits."""
        return all(metric in values for values in self.values_by_seed.values())


@dataclass(frozen=True, slots=True)
class MethodRow:
    """One line of a table, both maps by metric name.

    `values` holds the mean over queries and seeds with the interval over queries, `seed_spread` the standard
    deviation, over the seeds, of the mean over queries; it is empty for one seed.
    """

    model: str
    method: str
    values: Mapping[str, Interval]
    seed_spread: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class MethodTest:
    """Whether two methods on one model differ: `first - second`, with p-values of the randomisation test."""

    model: str
    first: str
    second: str
    metric: str
    difference: Interval
    p_value: float
    adjusted: float  # by Holm, for all tests of the metric


@dataclass(frozen=True, slots=True)
class MethodReliability:
    """How well the scores of a method keep what they promise on test queries, over all seeds and folds.

    The errors are expected calibration errors of the artefacts that state a calibration: of their scores read
    as logits, and as the calibrations read them; `bins` are of the latter. Where no artefact states one, the
    first is that of all, and the second None.
    """

    model: str
    method: str
    num_artefacts: int
    num_calibrated: int
    error_as_logits: float
    error_calibrated: float | None
    bins: tuple[ReliabilityBin, ...]


@dataclass(frozen=True, slots=True)
class Share:
    """So many of so many."""

    num: int
    total: int


@dataclass(frozen=True, slots=True)
class Comparison:
    """All that a comparison measured; rows stand in the order of the tables."""

    collection: str
    num_queries: int
    num_preference_queries: int  # those whose candidates differ in grade
    num_folds: int
    num_candidates: float  # mean over the queries
    methods: tuple[str, ...]
    models: tuple[str, ...]
    seeds: tuple[int, ...]
    patience: int  # epochs without a better dev NDCG before a stage ends; 0 trains all
    num_folds_without_choice: int  # no dev query has a relevant candidate: all epochs are trained there
    rows: tuple[MethodRow, ...]
    tests: tuple[MethodTest, ...]
    reliability: tuple[MethodReliability, ...]
    seconds: Mapping[str, Mapping[str, float]]
    """`seconds[model][method]`: all steps, with those of the stages below; the mean over seeds and folds."""
    stage_seconds: Mapping[str, Mapping[str, tuple[float, ...]]]
    """`stage_seconds[model][method]`: of each seed and fold, from workers' start to the method's artefact,
    in the commands that trained it to its end."""
    cell_seconds: tuple[float, ...]  # of each cell, from the start of training to the end of scoring
    curves: Mapping[str, tuple[LearningCurve, ...]]
    """`curves[model]`: NDCG on the dev queries, mean over the folds."""
    truncated_in_training: Share  # documents, over all cells and stages
    truncated_in_test: Share  # (query, document) pairs, over all runs
    num_quarantined: int  # (query, run) without a finite score
    text_model: str
    text_depth: int
    num_samples: int


def method_reliability(
    model: str,
    method: str,
    graded: Sequence[tuple[Sequence[float], Sequence[float], Calibration | None]],
) -> MethodReliability:
    """Return the reliability of a method from each of its artefacts' (scores, targets, calibration).

    Raises:
        DataError: there is no row.
    """
    stated = [(scores, targets, own) for scores, targets, own in graded if own is not None]
    bins = _bins(stated)
    as_logits = [(scores, targets, Calibration(1.0, 0.0)) for scores, targets, _ in stated or graded]
    return MethodReliability(
        model=model,
        method=method,
        num_artefacts=len(graded),
        num_calibrated=len(stated),
        error_as_logits=calibration_error(_bins(as_logits)),
        error_calibrated=calibration_error(bins) if bins else None,
        bins=tuple(bins),
    )


def _bins(
    graded: Sequence[tuple[Sequence[float], Sequence[float], Calibration]],
) -> list[ReliabilityBin]:
    if not graded:
        return []
    promised = [p for scores, _, own in graded for p in own.probabilities(scores)]
    came = [target for _, targets, _ in graded for target in targets]
    return reliability_bins(promised, came, num_bins=NUM_BINS)


def method_row(run: MethodRun, *, metrics: Sequence[str], num_samples: int, seed: int) -> MethodRow:
    """Return the line of a run for those of the metrics that it has."""
    own = [metric for metric in metrics if run.has(metric)]
    values = {
        metric: bootstrap_interval(
            run.seed_means(metric), num_samples=num_samples, seed=seed, confidence=CONFIDENCE
        )
        for metric in own
    }
    spread = {}
    if len(run.values_by_seed) > 1:
        for metric in own:
            spread[metric] = stdev(fmean(found[metric].values()) for found in run.values_by_seed.values())
    return MethodRow(run.model, run.method, values, spread)


def method_tests(runs: Sequence[MethodRun], *, metric: str, num_samples: int, seed: int) -> list[MethodTest]:
    """Return the test of every two methods of each model, those without a model being among each one's.

    A query's value is its mean over the seeds, so that queries, not runs, are what is drawn (see
    `randomisation_test`). The adjustment covers all tests returned.

    Raises:
        DataError: two runs were measured on different queries.
    """
    shared = [run for run in runs if not run.model]
    pairs = [
        (model, later, earlier)
        for model in dict.fromkeys(run.model for run in runs if run.model)
        for earlier, later in combinations([*shared, *(run for run in runs if run.model == model)], 2)
    ]
    tests = [_test(*pair, metric=metric, num_samples=num_samples, seed=seed) for pair in pairs]
    adjusted = holm({str(number): test.p_value for number, test in enumerate(tests)})
    return [replace(test, adjusted=adjusted[str(number)]) for number, test in enumerate(tests)]


def _test(  # noqa: PLR0913 - what the test is of, and the settings of both its numbers
    model: str, first: MethodRun, second: MethodRun, *, metric: str, num_samples: int, seed: int
) -> MethodTest:
    """Return the test of two runs as the only one."""
    values, baseline = first.seed_means(metric), second.seed_means(metric)
    p_value = randomisation_test(values, baseline, num_samples=num_samples, seed=seed)
    difference = paired_interval(values, baseline, num_samples=num_samples, seed=seed, confidence=CONFIDENCE)
    return MethodTest(model, first.method, second.method, metric, difference, p_value, adjusted=p_value)
