"""How far a run's attributions lie from exact ones: by their own bounds, and in a sample attributed again."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from jobs.shards import shard_path
from rerank_core.attribution.contract import document_seed
from rerank_core.attribution.table import ATTRIBUTIONS
from rerank_core.evaluation.attribution_error import AttributionError, attribution_error
from rerank_core.formats import read_shards, read_table, rows_of, table_of, write_table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from rerank_core.protocols import Attributor
    from rerank_core.records import Attribution, Document, Query

MAX_EVALS = 20_000
"""Evaluations for one exact attribution: enough for about 140 tokens; longer documents are not audited."""

BOUNDS = {name: ATTRIBUTIONS[name] for name in ("error", "units")}

AUDIT = {
    "query_id": pa.string(),
    "doc_id": pa.string(),
    "relative_l2": pa.float64(),
    "kendall_tau": pa.float64(),
    "top_5": pa.float64(),
    "top_10": pa.float64(),
    "bound_kept": pa.float64(),  # 1 or 0; NaN where no bound was stated
}


@dataclass(frozen=True, slots=True)
class AuditSummary:
    """Means over the audited documents.

    `bound_kept` is the share, of those with a bound, whose bound holds; None where none has one.
    """

    documents: int
    relative_l2: float
    kendall_tau: float
    top_5: float
    top_10: float
    bound_kept: float | None


class RunningError:
    """What this execution's attributions say of their error.

    It is the median over documents of the bound as a share of the values' length, and where not all documents
    state a bound, how many do.
    """

    def __init__(self, output: Path) -> None:
        self._output = output
        self._shares: list[float] = []
        self._num_documents = 0

    def __call__(self, shard: int) -> str:
        """Add a shard that has been committed; nothing is said while no bound is known."""
        for error, units in rows_of(read_table(shard_path(self._output, shard), BOUNDS)):
            self._num_documents += 1
            length = math.hypot(*(unit["value"] for unit in units))
            if length > 0 and not math.isnan(error):
                self._shares.append(error / length)
        if not self._shares:
            return ""
        known = len(self._shares)
        of_how_many = f" ({known} of {self._num_documents})" if known < self._num_documents else ""
        return f", estimated error {median(self._shares):.0%}{of_how_many}"


def is_audited(attribution: Attribution, *, share: float) -> bool:
    """Return whether a document is in the sample: by its own number, whatever its shard."""
    number = document_seed(attribution.seed, f"audit {attribution.query_id}", doc_id=attribution.doc_id)
    return bool(attribution.units) and number < share * 2**32


def audit_shard(
    attributions: Sequence[Attribution],
    exactly: Attributor,
    *,
    queries: Mapping[str, Query],
    documents: Mapping[str, Document],
) -> pa.Table:
    """Return the errors of the attributions whose exact values `exactly` reaches within `MAX_EVALS`."""
    rows = []
    for found in attributions:
        query, document = queries[found.query_id], documents[found.doc_id]
        (exact,) = exactly.attribute(query, [document], seed=found.seed)
        if exact.num_evals < MAX_EVALS:
            error = attribution_error(found.values, exact.values, bound=found.error)
            rows.append((found.query_id, found.doc_id, *_measures(error)))
    return table_of(rows, AUDIT)


def write_audit(output: Path, table: pa.Table, *, shard: int) -> None:
    """Write what the audit of a shard found."""
    folder = output / "audit"
    folder.mkdir(parents=True, exist_ok=True)
    write_table(table, folder / f"shard-{shard:05d}.parquet")


def summarise_audit(output: Path) -> AuditSummary | None:
    """Return the means over all shards; None where no document was audited."""
    if not (output / "audit").is_dir():
        return None
    rows = [row[2:] for row in rows_of(read_shards(output / "audit", AUDIT))]
    if not rows:
        return None
    relative_l2, kendall_tau, top_5, top_10, kept = zip(*rows, strict=True)
    known = [value for value in kept if not math.isnan(value)]
    return AuditSummary(
        documents=len(rows),
        relative_l2=float(np.mean(relative_l2)),
        kendall_tau=float(np.mean(kendall_tau)),
        top_5=float(np.mean(top_5)),
        top_10=float(np.mean(top_10)),
        bound_kept=float(np.mean(known)) if known else None,
    )


def audit_record(summary: AuditSummary | None) -> dict[str, Any]:
    """Return a summary as a manifest holds it."""
    return {"audit": asdict(summary) if summary else {"documents": 0}}


def _measures(error: AttributionError) -> tuple[float, ...]:
    bound_kept = math.nan if error.bound is None else float(error.is_covered)
    return error.relative_l2, error.kendall_tau, error.top_5, error.top_10, bound_kept
