"""Methods compared: what the unit of intervals and tests is, and what is paired with what."""

import numpy as np
import pytest

from rerank_core.errors import DataError
from rerank_core.evaluation.calibration import fit_platt
from rerank_core.evaluation.method_comparison import (
    MethodRun,
    method_reliability,
    method_row,
    method_tests,
)
from rerank_core.evaluation.significance import holm, randomisation_test
from rerank_core.records import Calibration

SAMPLES = {"num_samples": 500, "seed": 0}


def run(model: str, method: str, *by_seed: list[float]) -> MethodRun:
    """A run measured by one metric `m` on the queries q0, q1, ..., once per list."""
    return MethodRun(
        model,
        method,
        {
            seed: {"m": {f"q{n}": value for n, value in enumerate(values)}}
            for seed, values in enumerate(by_seed)
        },
    )


def test_a_query_counts_with_its_mean_over_the_seeds() -> None:
    row = method_row(run("a", "sft", [0.0, 1.0], [1.0, 0.6]), metrics=["m"], **SAMPLES)
    assert row.values["m"].mean == pytest.approx((0.5 + 0.8) / 2)
    assert row.seed_spread["m"] == pytest.approx(np.std([0.5, 0.8], ddof=1))


def test_more_seeds_of_equal_values_make_no_interval_narrower(rng: np.random.Generator) -> None:
    values = rng.random(30).tolist()
    once = method_row(run("a", "sft", values), metrics=["m"], **SAMPLES)
    often = method_row(run("a", "sft", *[values] * 5), metrics=["m"], **SAMPLES)
    assert often.values["m"].low == pytest.approx(once.values["m"].low)
    assert often.values["m"].high == pytest.approx(once.values["m"].high)
    assert (once.seed_spread, often.seed_spread) == ({}, {"m": 0.0})


def test_a_metric_that_a_run_lacks_is_left_out_of_its_row() -> None:
    row = method_row(run("", "bm25", [0.1, 0.2]), metrics=["loss", "m"], **SAMPLES)
    assert list(row.values) == ["m"]


def test_seeds_of_different_queries_are_refused() -> None:
    with pytest.raises(DataError, match="a sft: the seeds were measured on different queries"):
        run("a", "sft", [0.1, 0.2], [0.1]).seed_means("m")


def test_methods_are_paired_within_their_model_and_with_the_first_stage() -> None:
    values = [0.1, 0.4, 0.3]
    runs = [
        run(model, method, values) for model, method in (("", "bm25"), ("a", "x"), ("a", "y"), ("b", "x"))
    ]
    found = method_tests(runs, metric="m", **SAMPLES)
    assert [(test.model, test.first, test.second) for test in found] == [
        ("a", "x", "bm25"),
        ("a", "y", "bm25"),
        ("a", "y", "x"),
        ("b", "x", "bm25"),
    ]
    assert all(test.p_value == 1.0 and test.difference.mean == 0.0 for test in found)


def test_p_values_are_those_of_the_seed_means_adjusted_over_all_tests(rng: np.random.Generator) -> None:
    base = rng.random(40)
    better = [(base + rng.normal(0.1, 0.1, 40)).tolist() for _ in range(3)]
    alike = [(base + rng.normal(0.0, 0.1, 40)).tolist() for _ in range(3)]
    runs = [run("", "bm25", base.tolist()), run("a", "better", *better), run("a", "alike", *alike)]
    found = method_tests(runs, metric="m", **SAMPLES)
    means = [each.seed_means("m") for each in runs]
    expected = {
        name: randomisation_test(means[first], means[second], **SAMPLES)
        for name, first, second in (("better", 1, 0), ("alike", 2, 0), ("both", 2, 1))
    }
    assert [test.p_value for test in found] == list(expected.values())
    assert [test.adjusted for test in found] == list(holm(expected).values())
    assert found[0].adjusted < 0.05 < found[1].adjusted
    assert found[0].difference.excludes_zero


def planted(rng: np.random.Generator, *, slope: float, intercept: float) -> tuple[list[float], list[float]]:
    scores = rng.normal(0, 1, 4000)
    came = rng.random(4000) < 1 / (1 + np.exp(-slope * scores - intercept))
    return scores.tolist(), came.astype(float).tolist()


def test_a_calibration_of_each_artefacts_own_mends_scores_that_are_no_logits(
    rng: np.random.Generator,
) -> None:
    graded = []
    for slope, intercept in ((0.2, 2.0), (0.4, 1.5)):
        calibration = fit_platt(*planted(rng, slope=slope, intercept=intercept))
        graded.append((*planted(rng, slope=slope, intercept=intercept), calibration))
    found = method_reliability("a", "rm", graded)
    assert found.error_as_logits > 0.1
    assert found.error_calibrated is not None
    assert found.error_calibrated < 0.03
    assert sum(each.num_rows for each in found.bins) == 8000
    assert (found.num_artefacts, found.num_calibrated) == (2, 2)


def test_artefacts_without_a_calibration_are_counted_and_left_out_of_the_bins() -> None:
    scores, targets = [-1.0, 0.0, 1.0], [0.0, 0.5, 1.0]
    one = method_reliability("a", "rm", [(scores, targets, None), (scores, targets, Calibration(2.0, 0.0))])
    assert (one.num_artefacts, one.num_calibrated) == (2, 1)
    assert sum(each.num_rows for each in one.bins) == 3
    none = method_reliability("a", "rm", [(scores, targets, None)])
    assert (none.num_calibrated, none.error_calibrated, none.bins) == (0, None, ())
