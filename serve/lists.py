"""A request's query and documents as lists to score: cut to the limits asked for, and costed in tokens."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil
from typing import TYPE_CHECKING

from tokenizers import Tokenizer

from rerank_core.errors import ArtefactError
from serve.reranker import ScoringTask, tokenizer_digest

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from rerank_core.records import Document, Query
    from serve.reranker import ModelCard

FEW_CHARACTERS = 20_000
"""Texts that are tokenised sooner here than another thread would begin with them."""

TEMPLATE_TOKENS = 32
"""What the template may add to a pair, generously."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLimits:
    """Where a request wants its texts to be cut; None: not before the model's own limit."""

    query: int | None = None
    document: int | None = None
    prompt: int | None = None  # query, document and template together


@dataclass(frozen=True, slots=True)
class CostedList:
    """A query's documents as they will be read; `costs[i]` bounds the tokens of scoring document i."""

    query: Query
    documents: tuple[Document, ...]
    costs: tuple[int, ...]
    num_cut: int  # documents that lost their end to a limit of the request
    num_long: int  # documents that do not fit into the model in one piece

    @property
    def num_tokens(self) -> int:
        """The bound on the tokens of scoring them all."""
        return sum(self.costs)

    def tasks(self, max_tokens: int) -> Iterator[ScoringTask]:
        """Yield consecutive parts of at most `max_tokens` each, or of one document."""
        first, cost = 0, 0
        for place, tokens in enumerate(self.costs):
            if place > first and cost + tokens > max_tokens:
                yield ScoringTask(self.query, self.documents[first:place], cost)
                first, cost = place, 0
            cost += tokens
        yield ScoringTask(self.query, self.documents[first:], cost)


class TokenCounter:
    """Counts tokens with an artefact's tokenizer, and cuts texts behind them; needs no torch."""

    def __init__(self, artefact: Path) -> None:
        path = artefact / "tokenizer.json"
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
            self.digest = tokenizer_digest(artefact)
        except Exception as error:  # the library raises nothing more special
            raise ArtefactError(f"{path} is missing or broken ({error}); copy the artefact again") from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True

    def costed(
        self, query: Query, documents: Sequence[Document], *, card: ModelCard, limits: TokenLimits
    ) -> CostedList:
        """Return a list cut to `limits`, with what each document costs a model that reads as `card` says."""
        query, num_query = self._cut_query(query, card=card, limits=limits)
        room = self._document_room(num_query, limits)
        found = self._tokenizer.encode_batch_fast(
            [document.content for document in documents], add_special_tokens=False
        )
        sizes = [len(encoding.ids) for encoding in found]
        num_cut = sum(room is not None and size > room for size in sizes)
        if room is not None and num_cut:
            documents = [
                self._beginning(document, room) if size > room else document
                for document, size in zip(documents, sizes, strict=True)
            ]
            sizes = [min(size, room) for size in sizes]
        head = num_query + TEMPLATE_TOKENS
        costs = [_cost(size, head=head, card=card) for size in sizes]
        num_long = sum(head + size > card.max_length for size in sizes)
        return CostedList(query, tuple(documents), tuple(costs), num_cut, num_long)

    def _cut_query(self, query: Query, *, card: ModelCard, limits: TokenLimits) -> tuple[Query, int]:
        encoding = self._tokenizer.encode(query.text, add_special_tokens=False)
        size = len(encoding.ids)
        if limits.query is not None and size > limits.query:
            end = encoding.offsets[limits.query - 1][1]
            query, size = replace(query, text=query.text[:end]), limits.query
        return query, min(size, card.max_query_length)

    def _document_room(self, num_query: int, limits: TokenLimits) -> int | None:
        rooms = [limits.document]
        if limits.prompt is not None:
            rooms.append(max(limits.prompt - num_query - TEMPLATE_TOKENS, 1))
        return min((room for room in rooms if room is not None), default=None)

    def _beginning(self, document: Document, num_tokens: int) -> Document:
        """Return a document whose content ends behind so many tokens."""
        encoding = self._tokenizer.encode(document.content, add_special_tokens=False)
        end = encoding.offsets[num_tokens - 1][1]
        if not document.title:
            return replace(document, text=document.text[:end])
        kept = max(end - len(document.title) - 1, 0)  # the title ends in a line break
        return replace(document, title=document.title[:end], text=document.text[:kept])


def _cost(size: int, *, head: int, card: ModelCard) -> int:
    room = max(card.max_length - head, 1)
    if card.long_documents == "truncate" or size <= room:
        return head + min(size, room)
    return ceil(size / room) * head + size
