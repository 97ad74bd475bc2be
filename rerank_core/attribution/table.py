"""Attributions as Parquet rows, and back."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pyarrow as pa

from rerank_core.formats import read_shards, rows_of, table_of
from rerank_core.records import Attribution, Unit

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from rerank_core.formats import Columns

UNIT = pa.struct(
    {"field": pa.string(), "text": pa.string(), "start": pa.int32(), "end": pa.int32(), "value": pa.float64()}
)
ATTRIBUTIONS: Columns = {
    "query_id": pa.string(),
    "doc_id": pa.string(),
    "score": pa.float64(),
    "base_value": pa.float64(),
    "units": pa.list_(UNIT),
    "method": pa.string(),
    "num_evals": pa.int32(),
    "residual": pa.float64(),
    "seed": pa.int64(),
    "model_digest": pa.string(),
    "is_truncated": pa.bool_(),
    "error": pa.float64(),  # NaN where no bound is known
}


def attributions_table(attributions: Iterable[Attribution], *, model_digest: str) -> pa.Table:
    """Return the table of attributions of one model's scores, in their order."""
    rows = [
        (
            item.query_id,
            item.doc_id,
            item.score,
            item.base_value,
            [
                {"field": unit.field, "text": unit.text, "start": unit.start, "end": unit.end, "value": value}
                for unit, value in zip(item.units, item.values, strict=True)
            ],
            item.method,
            item.num_evals,
            item.residual,
            item.seed,
            model_digest,
            item.is_truncated,
            math.nan if item.error is None else item.error,
        )
        for item in attributions
    ]
    return table_of(rows, ATTRIBUTIONS)


def read_attributions(folder: Path) -> list[Attribution]:
    """Return the attributions of a folder that `whyrank attribute` wrote, in the order of its plan.

    Raises:
        DataError: the folder holds no shard, or one is wrong.
    """
    return [
        Attribution(
            query_id=query_id,
            doc_id=doc_id,
            score=score,
            base_value=base_value,
            units=tuple(Unit(u["text"], u["start"], u["end"], field=u["field"]) for u in units),
            values=tuple(unit["value"] for unit in units),
            method=method,
            num_evals=num_evals,
            residual=residual,
            seed=seed,
            is_truncated=is_truncated,
            error=None if math.isnan(error) else error,
        )
        for (
            query_id,
            doc_id,
            score,
            base_value,
            units,
            method,
            num_evals,
            residual,
            seed,
            _,
            is_truncated,
            error,
        ) in rows_of(read_shards(folder / "data", ATTRIBUTIONS))
    ]
