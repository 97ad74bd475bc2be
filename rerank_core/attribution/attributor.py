"""Attributions of many documents at a time, each by its own search."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from rerank_core.attribution.contract import AttributableScorer, TextScorer, document_seed, residual
from rerank_core.attribution.leaves import Leaf, attributed_units, leaf_spans
from rerank_core.attribution.masking import MaskedText, TokenMasker
from rerank_core.attribution.search import SearchResult, run_searches
from rerank_core.attribution.words import Part
from rerank_core.errors import DataError
from rerank_core.records import Attribution, Document, Query, Unit

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from transformers import PreTrainedTokenizerBase

    from rerank_core.attribution.estimators import Estimator

DOCUMENTS_AT_ONCE = 8
"""Documents whose searches run in lock-step: their coalitions share calls of the model, and its memory."""


class SearchAttributor:
    """An `Attributor`: the value of each word for a score, by a search over masked versions of the text.

    A masked text is scored as a document without a title; a scorer that cuts long documents cuts it too.
    Searches of several documents run in lock-step. `open_texts` returns what scores the masked texts of one
    group of documents; whatever it remembers of them is dropped with it.
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

        The query stays as it is. Each document draws from its own seed, made from `seed` and both
        identifiers. `num_evals` counts the coalitions, and the document itself. A text without leaves has no
        value to give: its base value is its score.

        Raises:
            DataError: the score of a document, or of a masked version of it, is not finite.
            ConfigError: the estimator cannot deal with so many leaves.
        """
        return self._attribute_games(self._document_game, query, documents, seed=seed)

    def attribute_query(self, query: Query, documents: Sequence[Document], *, seed: int) -> list[Attribution]:
        """Return the values of the query's words for the score of each document, in the order of `documents`.

        The documents stay as they are read next to the whole query (less what a masked query may take more
        room than the whole one); all else is as in `attribute`. Leaves are tokens or, for all other leaves,
        words, and the units are words of the query.
        """
        return self._attribute_games(self._query_game, query, documents, seed=seed)

    def _attribute_games(
        self,
        game_of: Callable[[Query, Document, float], _Game],
        query: Query,
        documents: Sequence[Document],
        *,
        seed: int,
    ) -> list[Attribution]:
        scores = self._scorer.score(query, documents)
        games = [game_of(query, document, score) for document, score in zip(documents, scores, strict=True)]
        return [
            attribution
            for start in range(0, len(games), DOCUMENTS_AT_ONCE)
            for attribution in self._attribute_group(games[start : start + DOCUMENTS_AT_ONCE], seed=seed)
        ]

    def _attribute_group(self, games: Sequence[_Game], *, seed: int) -> list[Attribution]:
        for game in games:
            game.check(game.score)
        playing = [game for game in games if game.has_leaves]
        texts = self._open_texts()

        def worths(asked: list[tuple[int, int]]) -> list[float]:
            worth = texts.score_texts([playing[n].pair(coalition) for n, coalition in asked])
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

    def _document_game(self, query: Query, document: Document, score: float) -> _Game:
        part = Part.at(self._scorer.visible_span(query, document), document)
        return _Game(query, document, score, self._masked(self._leaf, part), self._leaf, part)

    def _query_game(self, query: Query, document: Document, score: float) -> _Game:
        visible = self._scorer.visible_query(query)
        assert query.text.startswith(visible), "visible_query must return a prefix of the query's text"
        leaf: Leaf = "token" if self._leaf == "token" else "word"  # a query has no larger parts
        part = Part(Document("", query.text), 0, visible)
        beside = Part.at(self._scorer.visible_span(query, document), document).text
        masked = self._masked(leaf, part)
        return _Game(query, document, score, masked, leaf, part, beside=beside, is_of_query=True)

    def _masked(self, leaf: Leaf, part: Part) -> MaskedText:
        """Return what the scorer reads of a document as a game of its leaves."""
        if leaf != "token":
            return self._masker.masked(part.text, leaf_spans(leaf, part))
        spans = self._masker.spans(part.text)
        if not self._estimator.has_special_players:
            spans = [span for span in spans if span[0] < span[1]]
        return self._masker.masked(part.text, spans)

    def _attribution(self, game: _Game, result: SearchResult | None, *, seed: int) -> Attribution:
        if result is None:
            result = SearchResult(game.score, (0.0,) * len(game.masked.spans), 0, 0.0)
        units, values = game.units(result.values)
        return Attribution(
            query_id=game.query.query_id,
            doc_id=game.document.doc_id,
            score=game.score,
            base_value=result.base_value,
            units=units,
            values=values,
            method=self._estimator.name,
            num_evals=1 + result.num_evals,
            residual=residual(game.score, result.base_value, values),
            seed=seed,
            is_truncated=not game.part.is_whole,
            error=result.error,
        )


@dataclass(frozen=True, slots=True)
class _Game:
    """A document whose score is to be shared out among the leaves of its own text, or of the query's."""

    query: Query
    document: Document
    score: float
    masked: MaskedText
    leaf: Leaf
    part: Part  # what is read of the document, or of the query as one
    beside: str = ""  # the document's text as read next to the whole query, where the query is played
    is_of_query: bool = False

    def pair(self, coalition: int) -> tuple[Query, str]:
        """Return the query and the text to score for a coalition."""
        left = self.masked.left(coalition)
        if self.is_of_query:
            return replace(self.query, text=left), self.beside
        return self.query, left

    def units(self, values: Sequence[float]) -> tuple[tuple[Unit, ...], tuple[float, ...]]:
        """Return the units with their values, from those of the leaves."""
        if not self.part.text.strip():
            return (), ()
        units, values = attributed_units(self.leaf, self.masked.spans, values, self.part)
        if self.is_of_query:
            units = tuple(replace(unit, field="query") for unit in units)
        return units, values

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
