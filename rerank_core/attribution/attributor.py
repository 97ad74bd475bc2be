"""Attributions of many documents at a time, each by its own search."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rerank_core.attribution.contract import AttributableScorer, TextScorer, document_seed, residual
from rerank_core.attribution.leaves import Leaf, attributed_units, leaf_spans
from rerank_core.attribution.masking import MaskedText, TokenMasker
from rerank_core.attribution.search import SearchResult, run_searches
from rerank_core.errors import DataError
from rerank_core.records import Attribution, Document, Query

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from transformers import PreTrainedTokenizerBase

    from rerank_core.attribution.estimators import Estimator

DOCUMENTS_AT_ONCE = 8
"""Documents whose searches run in lock-step: their coalitions share calls of the model, and its memory."""


class SearchAttributor:
    """An `Attributor`: the value of each word for a score, by a search over masked versions of the text.

    The query stays as it is. A masked text is scored as a document without a title; a scorer that cuts long
    documents cuts it too. Searches of several documents run in lock-step. `open_texts` returns what scores
    the masked texts of one group of documents; whatever it remembers of them is dropped with it.
    """

    def __init__(
        self,
        scorer: AttributableScorer,
        tokenizer: PreTrainedTokenizerBase,
        estimator: Estimator,
        *,
        leaf: Leaf = "token",
        open_texts: Callable[[], TextScorer] | None = None,
    ) -> None:
        self._scorer = scorer
        self._masker = TokenMasker(tokenizer)
        self._estimator = estimator
        self._leaf: Leaf = leaf
        self._open_texts = open_texts or (lambda: PlainTexts(scorer))

    def attribute(self, query: Query, documents: Sequence[Document], *, seed: int) -> list[Attribution]:
        """Return one attribution per document, in the order of `documents`, each independent of the others.

        Each document draws from its own seed, made from `seed` and both identifiers. `num_evals` counts the
        coalitions, and the document itself. A text without leaves has no value to give: its base value is
        its score.

        Raises:
            DataError: the score of a document, or of a masked version of it, is not finite.
            ConfigError: the estimator cannot deal with so many leaves.
        """
        scores = self._scorer.score(query, documents)
        attributions: list[Attribution] = []
        for start in range(0, len(documents), DOCUMENTS_AT_ONCE):
            end = start + DOCUMENTS_AT_ONCE
            attributions += self._attribute_group(query, documents[start:end], scores[start:end], seed=seed)
        return attributions

    def _attribute_group(
        self, query: Query, documents: Sequence[Document], scores: Sequence[float], *, seed: int
    ) -> list[Attribution]:
        games = [
            _Game(query, document, self._masked(query, document), score)
            for document, score in zip(documents, scores, strict=True)
        ]
        for game in games:
            game.check(game.score)
        playing = [game for game in games if game.has_leaves]
        texts = self._open_texts()

        def worths(asked: list[tuple[int, int]]) -> list[float]:
            worth = texts.score_texts([(query, playing[n].masked.left(coalition)) for n, coalition in asked])
            for (place, _), score in zip(asked, worth, strict=True):
                playing[place].check(score)
            return worth

        results = run_searches(
            [self._estimator.search(game.masked, seed=game.seed(seed)) for game in playing], worths
        )
        found = iter(results)
        return [
            self._attribution(game, next(found) if game.has_leaves else None, seed=seed) for game in games
        ]

    def _masked(self, query: Query, document: Document) -> MaskedText:
        """Return what the scorer reads of a document, as a game of its leaves."""
        visible = self._scorer.visible_content(query, document)
        assert document.content.startswith(visible), (
            "visible_content must return a prefix of the document's content"
        )
        if self._leaf != "token":
            return self._masker.masked(visible, leaf_spans(self._leaf, visible, document))
        spans = self._masker.spans(visible)
        if not self._estimator.has_special_players:
            spans = [span for span in spans if span[0] < span[1]]
        return self._masker.masked(visible, spans)

    def _attribution(self, game: _Game, result: SearchResult | None, *, seed: int) -> Attribution:
        spans = game.masked.spans
        if result is None:
            result = SearchResult(game.score, (0.0,) * len(spans), 0, 0.0)
        visible, document = game.masked.text, game.document
        units, values = (
            ((), ())
            if not visible.strip()
            else attributed_units(self._leaf, spans, result.values, document=document, visible=visible)
        )
        return Attribution(
            query_id=game.query.query_id,
            doc_id=document.doc_id,
            score=game.score,
            base_value=result.base_value,
            units=units,
            values=values,
            method=self._estimator.name,
            num_evals=1 + result.num_evals,
            residual=residual(game.score, result.base_value, values),
            seed=seed,
            is_truncated=visible != document.content,
            error=result.error,
        )


@dataclass(frozen=True, slots=True)
class _Game:
    """A document whose score is to be shared out among its leaves."""

    query: Query
    document: Document
    masked: MaskedText
    score: float

    @property
    def has_leaves(self) -> bool:
        return bool(self.masked.text.strip()) and any(start < end for start, end in self.masked.spans)

    def check(self, score: float) -> None:
        """Refuse a score of the document, or of a masked version of it, that is no number."""
        if not math.isfinite(score):
            raise DataError(
                f"query {self.query.query_id!r}, document {self.document.doc_id!r}: the score is {score},"
                " not a number"
            )

    def seed(self, seed: int) -> int:
        return document_seed(seed, self.query.query_id, doc_id=self.document.doc_id)


class PlainTexts:
    """A `TextScorer` that scores every text by itself."""

    def __init__(self, scorer: AttributableScorer) -> None:
        self._scorer = scorer

    def score_texts(self, texts: Sequence[tuple[Query, str]]) -> list[float]:
        """Return one score per query and text of a document, in their order."""
        documents_of: dict[Query, list[Document]] = {}
        for query, text in texts:
            documents_of.setdefault(query, []).append(Document("", text))
        scores = {
            query: iter(self._scorer.score(query, documents)) for query, documents in documents_of.items()
        }
        return [next(scores[query]) for query, _ in texts]
