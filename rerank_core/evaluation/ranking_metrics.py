"""How good each ranking is, by the judgements (computed by ranx)."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import ranx

from rerank_core.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from rerank_core.records import Qrels, Ranking

NDCG_BURGES = "ndcg_burges@10"
"""The metric that decides: fusion weights are chosen by it, and it stands first."""

GAIN = "2^g-1"
"""The gain of grade g in `ndcg_burges`."""

QueryValues = dict[str, float]
"""`values[query_id]`: one metric of one run."""


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric's name, a label that states its gain or cut, and its name in ranx."""

    name: str
    label: str
    ranx_name: str


def metrics(*, relevant_from: int) -> tuple[Metric, ...]:
    """Return what is measured; MRR and MAP count a grade of `relevant_from` or more as relevant.

    NDCG@k divides the discounted gain (discount `1 / log2(rank + 1)`) of the first k ranks by that of the
    best order of *all* judged documents of the query, retrieved or not. The gain of grade g is `2^g - 1`
    (Burges et al. 2005) or g itself (Järvelin and Kekäläinen 2002). Unjudged documents have grade 0. A query
    without any relevant document has the value 0 everywhere.
    """
    cut = f"grade {relevant_from} or more is relevant"
    return (
        Metric(NDCG_BURGES, f"{NDCG_BURGES} (gain {GAIN})", "ndcg_burges@10"),
        Metric("ndcg_burges@5", f"ndcg_burges@5 (gain {GAIN})", "ndcg_burges@5"),
        Metric("ndcg@10", "ndcg@10 (gain g)", "ndcg@10"),
        Metric("ndcg@5", "ndcg@5 (gain g)", "ndcg@5"),
        Metric("mrr", f"mrr ({cut})", f"mrr-l{relevant_from}"),
        Metric("map", f"map ({cut})", f"map-l{relevant_from}"),
    )


def evaluate(
    rankings: Mapping[str, Ranking], qrels: Qrels, *, measured: Sequence[Metric]
) -> dict[str, QueryValues]:
    """Return `values[metric name][query_id]` for the queries of `rankings`.

    The order of each ranking counts as it stands: equal scores were put in order when it was made (by
    first-stage rank, see `rerank_core.ranking.contract`), and are not broken again here.

    Raises:
        DataError: there is no ranking, or one is of a query that nobody judged.
    """
    if not rankings:
        raise DataError("there is no ranking to evaluate; name a run that covers the queries asked for")
    unjudged = sorted(rankings.keys() - qrels.keys())
    if unjudged:
        raise DataError(f"query {unjudged[0]!r} of the run is not judged; evaluate judged queries only")
    names = [metric.ranx_name for metric in measured]
    judged, ranked = _arrays(rankings.values(), qrels)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="(?s).*unsafe cast")  # ranx's loop counters, once compiled
        # A list of one name makes ranx 0.3.21 fail: hence the second.
        found = ranx.evaluate(judged, ranked, [*names, names[0]], return_mean=False)
    return {
        metric.name: dict(zip(rankings, found[metric.ranx_name].tolist(), strict=True)) for metric in measured
    }


def _arrays(rankings: Iterable[Ranking], qrels: Qrels) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Judgements and rankings as ranx's own arrays, (query, place, (document number, value)), best first.

    Unlike ranx's dictionaries of scores they keep our order of equal scores, which its sort would not. Short
    rows are filled up with document -1 of grade 0, which counts nowhere.
    """
    found = [(ranking.doc_ids, qrels[ranking.query_id]) for ranking in rankings]
    judged = np.full((len(found), max(len(grades) for _, grades in found), 2), [-1.0, 0.0])
    ranked = np.full((len(found), max(len(doc_ids) for doc_ids, _ in found), 2), [-1.0, 0.0])
    for i, (doc_ids, grades) in enumerate(found):
        best_first = sorted(grades.items(), key=lambda pair: -pair[1])
        number_by_doc = {doc_id: number for number, (doc_id, _) in enumerate(best_first)}
        judged[i, : len(best_first)] = list(enumerate(grade for _, grade in best_first))
        ranked[i, : len(doc_ids), 0] = [number_by_doc.get(doc_id, -1) for doc_id in doc_ids]
    return judged, ranked
