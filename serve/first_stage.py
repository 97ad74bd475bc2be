"""Where a request's documents come from: sent with it, or retrieved from the server's corpus."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Protocol

from rerank_core.records import Query
from serve.errors import InvalidRequestError, TooLargeError
from serve.requests import documents_of, require_documents, require_query
from serve.schemas import DocumentObject, FirstStageObject

if TYPE_CHECKING:
    from rerank_core.records import Candidate, Document
    from serve.schemas import RerankRequest

NUM_CANDIDATES = 50
"""Candidates of a request that does not say how many, where the server allows so many."""

MAX_QUERY_CHARS = 8192
"""A query that the corpus is searched for: more words would hold up other people's."""

NOTHING_FOUND = "no document of the corpus shares a word with the query"


class Retrievers(Protocol):
    """A retriever, in this process or behind a handle."""

    async def retrieve(self, query: Query, *, k: int) -> tuple[Candidate, ...]:
        """Return the best `k` documents that share a word with the query, best first, ranks from 1."""
        ...


@dataclass(frozen=True, slots=True)
class FirstStageList:
    """Documents in the first stage's order, and what a result holds of each."""

    documents: tuple[Document, ...]
    shown: tuple[dict[str, Any] | None, ...]
    places: tuple[FirstStageObject | None, ...]
    warnings: tuple[str, ...] = ()


class FirstStage:
    """Gives each request its list: the one that it brings, or one from a corpus."""

    def __init__(self, retrievers: Retrievers | None, *, max_candidates: int, max_characters: int) -> None:
        """Take a retriever, or None where no corpus is served, and bounds on a request's candidates."""
        self._retrievers = retrievers
        self._max_candidates = max_candidates
        self._max_characters = max_characters

    @property
    def has_corpus(self) -> bool:
        """Whether requests may come without documents."""
        return self._retrievers is not None

    async def list_of(self, request: RerankRequest) -> FirstStageList:
        """Return the documents to rank; of a corpus in which no document shares a word with the query, none.

        Raises:
            InvalidRequestError: there are no documents, and no corpus to retrieve some from, or no query.
            TooLargeError: more candidates are asked for than the server allows, or for too long a query.
            UnavailableError: no retriever answers.
        """
        if request.documents is not None:
            return _sent(request)
        if self._retrievers is None:
            raise InvalidRequestError(
                "the request brings no documents, and no corpus is served here to retrieve some from",
                code="no_corpus",
                remedy="send documents, or start the server with --corpus FOLDER",
                param="documents",
            )
        require_query(request.query)
        num_candidates = request.num_candidates or min(NUM_CANDIDATES, self._max_candidates)
        self._require_bounded(request.query, num_candidates)
        found = await self._retrievers.retrieve(Query("", request.query), k=num_candidates)
        return _retrieved(found, max_characters=self._max_characters)

    def _require_bounded(self, query: str, num_candidates: int) -> None:
        if num_candidates > self._max_candidates:
            raise TooLargeError(
                f"{num_candidates} candidates are more than {self._max_candidates}",
                code="too_many_candidates",
                remedy=f"ask for at most {self._max_candidates} candidates",
                param="num_candidates",
            )
        if len(query) > MAX_QUERY_CHARS:
            raise TooLargeError(
                f"a query of {len(query)} characters is too long to search the corpus for",
                code="query_too_long",
                remedy=f"send a query of at most {MAX_QUERY_CHARS} characters, or documents",
                param="query",
            )


def _sent(request: RerankRequest) -> FirstStageList:
    assert request.documents is not None
    sent = request.documents if isinstance(request.documents, list) else [request.documents]
    require_documents(sent)
    shown = tuple(_echo(one) if request.return_documents else None for one in sent)
    return FirstStageList(tuple(documents_of(sent)), shown, (None,) * len(sent))


def _retrieved(found: tuple[Candidate, ...], *, max_characters: int) -> FirstStageList:
    """Return candidates up to the first with which they would have too many characters."""
    totals = accumulate(len(candidate.document.content) for candidate in found)
    candidates = found[: sum(total <= max_characters for total in totals)]
    warnings = [] if found else [NOTHING_FOUND]
    if len(candidates) < len(found):
        warnings.append(
            f"the first {len(candidates)} of {len(found)} candidates were taken: with the next one they would"
            f" have more than {max_characters} characters"
        )
    return FirstStageList(
        tuple(candidate.document for candidate in candidates),
        tuple(_shown(candidate.document) for candidate in candidates),
        tuple(
            FirstStageObject(rank=candidate.first_stage_rank, score=candidate.first_stage_score)
            for candidate in candidates
        ),
        tuple(warnings),
    )


def _echo(sent: str | DocumentObject) -> dict[str, Any]:
    return {"text": sent} if isinstance(sent, str) else sent.model_dump(exclude_unset=True)


def _shown(document: Document) -> dict[str, Any]:
    """Return a document of the corpus as results hold it, without the fields that it lacks."""
    optional = {"title": document.title, "url": document.url}
    present = {name: value for name, value in optional.items() if value}
    return {"id": document.doc_id, "text": document.text, **present}
