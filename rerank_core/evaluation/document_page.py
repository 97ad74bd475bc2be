"""Means and differences of measured documents as Markdown tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rerank_core.evaluation.markdown import interval, signed_interval, table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rerank_core.evaluation.document_table import Difference, MeanRow


def mean_table(
    rows: Sequence[MeanRow], labels: Mapping[str, str], *, kind: str, unit: str = "documents"
) -> str:
    """Return one line per row and one column per measure.

    `kind` is what the kinds of rows are, `unit` what was measured of each query.
    """
    header = ["name", kind, "queries", unit, *labels.values()]
    lines = [
        [row.name, row.kind, str(row.num_queries), str(row.num_documents)]
        + [interval(row.values[measure]) if measure in row.values else "–" for measure in labels]
        for row in rows
    ]
    return table(header, lines)


def difference_table(
    differences: Sequence[Difference], labels: Mapping[str, str], *, unit: str = "documents"
) -> str:
    """Return one line per difference; a measure is called what `labels` say."""
    header = ["first", "second", "measure", "queries", unit, "first − second"]
    lines = [
        [
            " ".join(found.first),
            " ".join(found.second),
            labels[found.measure],
            str(found.num_queries),
            str(found.num_documents),
            signed_interval(found.difference),
        ]
        for found in differences
    ]
    return table(header, lines)
