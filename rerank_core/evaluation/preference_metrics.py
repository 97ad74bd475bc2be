"""How well scores tell better from worse documents, one number per query, the same for every method."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from rerank_core.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from rerank_core.evaluation.ranking_metrics import QueryValues
    from rerank_core.records import Qrels, Ranking

PAIRWISE_LOSS: Final = "pairwise_loss"
PAIRWISE_ACCURACY: Final = "pairwise_accuracy"
TOP1_ACCURACY: Final = "top1_accuracy"


def preference_values(rankings: Mapping[str, Ranking], qrels: Qrels) -> dict[str, QueryValues]:
    """Return `values[metric name][query_id]` for the queries whose candidates differ in grade.

    A pair is any two candidates of a query with different grades (an unjudged one has grade 0). Of its
    margin m, the score of the higher grade minus that of the lower, each query gets

    - `pairwise_loss`: the mean over its pairs of `−log σ(m)` (Bradley and Terry 1952), ln 2 for equal scores;
    - `pairwise_accuracy`: the share of its pairs with m > 0, a tie (m = 0) counting half;
    - `top1_accuracy`: 1 if the first document has the highest grade among the candidates, else 0. The order
      of the ranking counts as it stands.

    The mean over queries weighs each query alike, however many pairs it has. A query whose candidates all
    have one grade holds no preference and has no value; which these are depends on candidates and grades
    alone, so runs of the same candidates stay paired. The loss depends on the scale of the scores, so it
    compares methods as they are: only for scores in logits of a preference is it small by right.

    Raises:
        DataError: a query is not judged, or no query has candidates that differ in grade.
    """
    values: dict[str, QueryValues] = {PAIRWISE_LOSS: {}, PAIRWISE_ACCURACY: {}, TOP1_ACCURACY: {}}
    for query_id, ranking in rankings.items():
        if query_id not in qrels:
            raise DataError(f"query {query_id!r} of the run is not judged; evaluate judged queries only")
        grades = np.array([qrels[query_id].get(doc_id, 0) for doc_id in ranking.doc_ids])
        margins = _margins(np.array(ranking.scores), grades)
        if not len(margins):
            continue
        values[PAIRWISE_LOSS][query_id] = float(np.logaddexp(0.0, -margins).mean())
        values[PAIRWISE_ACCURACY][query_id] = float(((margins > 0) + 0.5 * (margins == 0)).mean())
        values[TOP1_ACCURACY][query_id] = float(grades[0] == grades.max())
    if not values[PAIRWISE_LOSS]:
        raise DataError("no query has candidates of different grades; evaluate queries with preferences")
    return values


def _margins(scores: NDArray[np.float64], grades: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the margin of every pair of different grades, (pairs,), from (candidates,) each."""
    better, worse = np.nonzero(grades[:, None] > grades[None, :])
    margins: NDArray[np.float64] = scores[better] - scores[worse]
    return margins
