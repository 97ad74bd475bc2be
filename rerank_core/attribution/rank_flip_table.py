"""Rank flips as Parquet rows, and back."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa

from rerank_core.attribution.rank_flip import RankFlip
from rerank_core.formats import read_shards, rows_of, table_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from rerank_core.formats import Columns

RANK_FLIPS: Columns = {
    "query_id": pa.string(),
    "doc_id": pa.string(),
    "places": pa.list_(pa.int32()),  # of the attribution's units
    "rank": pa.int32(),
    "flipped_rank": pa.int32(),
    "score": pa.float64(),
}


def rank_flips_table(found: Mapping[tuple[str, str], RankFlip]) -> pa.Table:
    """Return the table of rank flips by (query_id, doc_id), in their order."""
    rows = [
        (*key, list(flip.places), flip.rank, flip.flipped_rank, flip.score) for key, flip in found.items()
    ]
    return table_of(rows, RANK_FLIPS)


def read_rank_flips(folder: Path) -> dict[tuple[str, str], RankFlip]:
    """Return the rank flips in a folder's shards by (query_id, doc_id); none where there is no folder.

    Raises:
        DataError: a shard is wrong.
    """
    if not folder.is_dir():
        return {}
    return {
        (query_id, doc_id): RankFlip(tuple(places), rank, flipped_rank, score)
        for query_id, doc_id, places, rank, flipped_rank, score in rows_of(read_shards(folder, RANK_FLIPS))
    }
