"""Explanations as Parquet rows, and back."""

from __future__ import annotations

from dataclasses import astuple
from typing import TYPE_CHECKING

import pyarrow as pa

from rerank_core.formats import Columns, read_shards, rows_of, table_of
from rerank_core.records import Explanation

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

EXPLANATIONS: Columns = {
    "query_id": pa.string(),
    "doc_id": pa.string(),
    "text": pa.string(),
    "cited": pa.list_(pa.string()),
    "effects": pa.list_(pa.string()),
    "grounded": pa.bool_(),
    "problems": pa.list_(pa.string()),
    "with_attribution": pa.bool_(),
    "fallback": pa.bool_(),
    "prompt_tokens": pa.int32(),
    "generated_tokens": pa.int32(),
    "generator": pa.string(),
    "template": pa.string(),
    "num_attempts": pa.int32(),
    "asked_digest": pa.string(),
}
"""In the order of the fields of `Explanation`."""


def explanations_table(explanations: Iterable[Explanation]) -> pa.Table:
    """Return the table of explanations, in their order."""
    return table_of([astuple(explanation) for explanation in explanations], EXPLANATIONS)


def read_explanations(folder: Path) -> list[Explanation]:
    """Return the explanations of a folder that `whyrank explain` wrote, in the order of its plan.

    Raises:
        DataError: the folder holds no shard, or one is wrong.
    """
    table = read_shards(folder / "data", EXPLANATIONS)
    return [
        Explanation(**{**row, **{name: tuple(row[name]) for name in ("cited", "effects", "problems")}})
        for row in (dict(zip(EXPLANATIONS, values, strict=True)) for values in rows_of(table))
    ]
