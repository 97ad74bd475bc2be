"""What a request asks for: its documents or pairs, where they are cut, its scale of scores, its margin."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rerank_core.records import Calibration, Document
from serve.errors import InvalidRequestError
from serve.lists import TokenLimits

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rerank_core.attribution.leaves import Leaf
    from serve.reranker import ModelCard
    from serve.schemas import DocumentObject, Scale, ScoredRequest, ScoreRequest, Texts

SIGMOID = Calibration(slope=1.0, intercept=0.0)


def documents_of(sent: Sequence[str | DocumentObject]) -> list[Document]:
    """Return what was sent as documents, in its order."""
    return [
        Document("", one) if isinstance(one, str) else Document("", one.text, title=one.title) for one in sent
    ]


def require_query(query: str) -> None:
    """Refuse a query without a word."""
    if not query.strip():
        raise InvalidRequestError(
            "the query is empty",
            code="empty_query",
            remedy="send a query with a word in it",
            param="query",
        )


def require_documents(sent: Sequence[str | DocumentObject]) -> None:
    """Refuse a list of no documents."""
    if not sent:
        raise InvalidRequestError(
            "there are no documents",
            code="no_documents",
            remedy="send one document or more",
            param="documents",
        )


def pairs_of(request: ScoreRequest) -> list[tuple[str, list[Document]]]:
    """Return the lists that a score request spells: one query with one or many texts, or many with as many.

    Raises:
        InvalidRequestError: not exactly one of the four ways is used, or the numbers do not fit.
    """
    ways: dict[str, tuple[list[str] | str | None, Texts | None]] = {
        "queries and documents": (request.queries, request.documents),
        "queries and items": (request.queries, request.items),
        "text_1 and text_2": (request.text_1, request.text_2),
        "data_1 and data_2": (request.data_1, request.data_2),
    }
    used = [(left, right) for left, right in ways.values() if left is not None and right is not None]
    if len(used) != 1:
        raise InvalidRequestError(
            f"{len(used)} ways of giving pairs are used",
            code="ambiguous_pairs" if used else "missing_pairs",
            remedy=f"send exactly one of: {'; '.join(ways)}",
        )
    left, right = used[0]
    queries = [left] if isinstance(left, str) else list(left)
    documents = documents_of([right] if isinstance(right, str) else right)
    if len(queries) == 1 and documents:
        return [(queries[0], documents)]
    if len(queries) != len(documents) or not queries:
        raise InvalidRequestError(
            f"{len(queries)} queries cannot be paired with {len(documents)} documents",
            code="unequal_numbers",
            remedy="send one query with any number of documents, or as many queries as documents",
        )
    return [(query, [document]) for query, document in zip(queries, documents, strict=True)]


def token_limits(request: ScoredRequest) -> TokenLimits:
    """Return where a request wants its texts to be cut; 0 and −1 mean nowhere."""
    prompt = request.truncate_prompt_tokens
    return TokenLimits(
        query=request.max_tokens_per_query or None,
        document=request.max_tokens_per_doc or None,
        prompt=prompt if prompt and prompt > 0 else None,
    )


def margin_over(target: str) -> int | None:
    """Return the position of the document that a target `margin:<position>` names, and None for others."""
    name, _, position = target.partition(":")
    return int(position) if name == "margin" and position else None


def require_document(over: int, *, num_documents: int) -> None:
    """Refuse a margin over a document that the list does not have."""
    if over >= num_documents:
        raise InvalidRequestError(
            f"there is no document {over} among {num_documents} that are counted from 0",
            code="no_such_document",
            remedy="name the position of a document of the request after `margin:`",
            param="target",
        )


def require_words(granularity: Leaf) -> None:
    """Refuse rank flips of larger parts than words.

    Raises:
        InvalidRequestError: what is switched on and off are no words.
    """
    if granularity not in ("token", "word"):
        raise InvalidRequestError(
            f"rank flips are searched among words, not among parts of the kind {granularity!r}",
            code="rank_flips_of_words",
            remedy="ask for the granularity 'token' or 'word', or for the target 'score'",
            param="granularity",
        )


def chosen_scale(request: ScoredRequest, card: ModelCard) -> Scale:
    """Return the scale of the scores that a request asks for.

    Raises:
        InvalidRequestError: it asks for calibrated scores, and the artefact states no calibration.
    """
    if request.scale == "calibrated" and card.calibration is None:
        raise InvalidRequestError(
            "the served artefact states no calibration",
            code="not_calibrated",
            remedy="ask for the scale 'sigmoid' or 'logit'",
            param="scale",
        )
    if request.scale is not None:
        return request.scale
    if request.raw_scores or not request.use_activation:
        return "logit"
    return "sigmoid" if card.calibration is None else "calibrated"


def shown_scores(scores: Sequence[float], *, scale: Scale, card: ModelCard) -> list[float]:
    """Return logits on a scale; each keeps their order."""
    if scale == "logit":
        return list(scores)
    calibration = card.calibration if scale == "calibrated" else SIGMOID
    assert calibration is not None, "chosen_scale refuses what the artefact does not state"
    return calibration.probabilities(scores)
