"""The paired randomisation test against ranx's own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import ranx

from rerank_core.evaluation.ranking_metrics import evaluate, metrics
from rerank_core.evaluation.significance import randomisation_test
from rerank_core.records import Ranking

if TYPE_CHECKING:
    import numpy as np

NUM_SAMPLES = 20_000


def ranked(scores: dict[str, dict[str, float]]) -> dict[str, Ranking]:
    orders = {query_id: sorted(found, key=lambda d: -found[d]) for query_id, found in scores.items()}
    return {
        query_id: Ranking(query_id, tuple(order), tuple(scores[query_id][d] for d in order))
        for query_id, order in orders.items()
    }


@pytest.mark.filterwarnings("ignore:.*unsafe cast from uint64 to int64:Warning")  # ranx, while it is compiled
def test_the_p_value_is_that_of_ranx_compare(rng: np.random.Generator) -> None:
    names = [f"q{n:02d}" for n in range(30)]
    qrels = {name: {f"d{n}": int(rng.integers(0, 4)) for n in range(8)} for name in names}
    better, worse = (
        {q: {d: grade + rng.normal(0, noise) for d, grade in qrels[q].items()} for q in names}
        for noise in (1.2, 1.6)
    )
    report = ranx.compare(
        ranx.Qrels(qrels),
        [ranx.Run(better, name="better"), ranx.Run(worse, name="worse")],
        ["ndcg@5"],
        stat_test="fisher",
        n_permutations=NUM_SAMPLES,
    )
    theirs = report.comparisons["better", "worse"]["ndcg@5"]["p_value"]
    measured = [metric for metric in metrics(relevant_from=1) if metric.name == "ndcg@5"]
    values = [evaluate(ranked(run), qrels, measured=measured)["ndcg@5"] for run in (better, worse)]
    ours = randomisation_test(*values, num_samples=NUM_SAMPLES, seed=0)
    assert 0.005 < theirs < 0.5  # neither so small nor so large that any test would agree
    assert ours == pytest.approx(theirs, abs=6 * (theirs / NUM_SAMPLES) ** 0.5)
