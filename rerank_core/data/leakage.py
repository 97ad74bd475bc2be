"""No query may be in two splits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rerank_core.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rerank_core.records import Split


def check_disjoint(splits: Mapping[Split, Sequence[str]]) -> None:
    """Return if no query_id occurs in two splits.

    Raises:
        DataError: one does; names the query and both splits.
    """
    split_by_query: dict[str, Split] = {}
    for split, query_ids in splits.items():
        for query_id in query_ids:
            other = split_by_query.setdefault(query_id, split)
            if other != split:
                raise DataError(
                    f"query {query_id!r} is in two splits, {other} and {split}; keep it in one of them"
                )
