"""The retriever as a service: a query's candidates from one corpus, by BM25."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rerank_core.protocols import Retriever
    from rerank_core.records import Candidate, Query


class RetrieverService:
    """Retrieves what many requests ask for, one after the other, in a thread of its own."""

    def __init__(self, retriever: Retriever) -> None:
        """Take a retriever whose scores are 0 where a document shares no word with the query."""
        self._retriever = retriever
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="retrieve")

    async def retrieve(self, query: Query, *, k: int) -> tuple[Candidate, ...]:
        """Return the best `k` of the documents that share a word with the query, best first, ranks from 1."""
        found = await asyncio.get_running_loop().run_in_executor(
            self._thread, lambda: self._retriever.retrieve(query, k=k)
        )
        return tuple(candidate for candidate in found if candidate.first_stage_score > 0)
