"""Owen values on the tokenizer's tree, by shap's Partition explainer."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from shap.explainers import PartitionExplainer
from shap.maskers import Text

from rerank_core.attribution.contract import AttributableScorer, check_evals, document_seed, residual
from rerank_core.attribution.masking import MaskedText, TokenMasker
from rerank_core.attribution.words import Part, Span, merge_into_words
from rerank_core.errors import ConfigError, DataError
from rerank_core.records import Attribution, Document, Query, Unit

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from transformers import PreTrainedTokenizerBase

METHOD = "shap"


class ShapAttributor:
    """An `Attributor`: Owen values of tokens (shap's recursion over its token tree), summed into words.

    The query stays as it is. A masked text is scored as a document without a title; a scorer that cuts long
    documents cuts it too. The best-first search spends `max_evals` evaluations; what it has not split then is
    shared out equally among the tokens below, so base value + values always give the score of the whole
    visible text.
    """

    def __init__(
        self, scorer: AttributableScorer, tokenizer: PreTrainedTokenizerBase, *, max_evals: int
    ) -> None:
        check_evals(max_evals)
        self._scorer = scorer
        self._masker = ShapMasker(tokenizer)
        self._max_evals = max_evals

    def attribute(self, query: Query, documents: Sequence[Document], *, seed: int) -> list[Attribution]:
        """Return one attribution per document, in the order of `documents`, each independent of the others.

        A document's own seed, made from `seed` and both identifiers, breaks ties in the order of the search.
        `num_evals` counts every scored text: those of the search (the bare text, the whole text and at most
        `max_evals` - 1 more) and the document itself.

        Raises:
            DataError: the score of a document is not finite.
        """
        scores = self._scorer.score(query, documents)
        return [
            self._attribute_one(query, document, score=score, seed=seed)
            for document, score in zip(documents, scores, strict=True)
        ]

    def attribute_query(self, query: Query, documents: Sequence[Document], *, seed: int) -> list[Attribution]:
        """Refuse: only documents are attributed with shap.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(
            "shap attributes words of documents alone; take another method for those of queries"
        )

    def _attribute_one(self, query: Query, document: Document, *, score: float, seed: int) -> Attribution:
        if not np.isfinite(score):
            raise DataError(
                f"query {query.query_id!r}, document {document.doc_id!r}: the score is {score}, not a number"
            )
        part = Part.at(self._scorer.visible_span(query, document), document)
        game = _MaskedDocument(self._scorer, query, doc_id=document.doc_id)
        base_value, units, values = score, tuple[Unit, ...](), tuple[float, ...]()
        if part.text.strip():
            spans = self._masker.spans(part.text)
            own_seed = document_seed(seed, query.query_id, doc_id=document.doc_id)
            base_value, token_values = self._token_values(game, spans, visible=part.text, seed=own_seed)
            units, values = merge_into_words(spans, token_values, part)
        return Attribution(
            query_id=query.query_id,
            doc_id=document.doc_id,
            score=score,
            base_value=base_value,
            units=units,
            values=values,
            method=METHOD,
            num_evals=1 + game.num_evals,
            residual=residual(score, base_value, values),
            seed=seed,
            is_truncated=not part.is_whole,
        )

    def _token_values(
        self, game: _MaskedDocument, spans: Sequence[Span], *, visible: str, seed: int
    ) -> tuple[float, list[float]]:
        """Return the base value, and one value per span."""
        if sum(start < end for start, end in spans) < 2:
            return self._whole_value(game, spans, visible=visible)
        explainer = PartitionExplainer(game, self._masker)
        with _numpy_seeded(seed):
            result = explainer([visible], max_evals=self._max_evals, silent=True)
        return float(result.base_values[0]), [float(value) for value in result.values[0]]

    def _whole_value(
        self, game: _MaskedDocument, spans: Sequence[Span], *, visible: str
    ) -> tuple[float, list[float]]:
        """Return base value and values of a text with at most one token, which has no tree."""
        bare = self._masker(np.zeros(len(spans), dtype=np.bool_), visible)[0][0]
        base_value, whole = (float(value) for value in game([bare, visible]))
        return base_value, [whole - base_value if start < end else 0.0 for start, end in spans]


class ShapMasker(Text):  # type: ignore[misc]  # shap has no type information
    """`TokenMasker` as shap asks for it; the tree of tokens is shap's own."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._masker = TokenMasker(tokenizer)
        self._masked: MaskedText | None = None
        super().__init__(tokenizer)
        self.keep_prefix, self.keep_suffix = self._masker.num_before, self._masker.num_after

    def spans(self, s: str) -> list[Span]:
        """Return the characters of each player, from left to right; an empty span for a special token."""
        return self._masker.spans(s)

    def token_segments(self, s: str) -> tuple[list[str], list[int]]:
        """Return the text and the token id of each player; the texts joined are `s`."""
        players = self._masker.players(s)
        segments = self._masker.masked(s, [span for span, _ in players]).segments()
        return segments, [token_id for _, token_id in players]

    def __call__(self, mask: npt.NDArray[np.bool_], s: str) -> tuple[npt.NDArray[np.str_]]:
        """Return the text that is left of `s` when the players whose mask is False are switched off."""
        if self._masked is None or self._masked.text != s:
            self._masked = self._masker.masked(s, self._masker.spans(s))
        return (np.array([self._masked.left(sum(1 << int(player) for player in mask.nonzero()[0]))]),)


class _MaskedDocument:
    """The score of what is left of one document, as a function of texts; counts its evaluations."""

    def __init__(self, scorer: AttributableScorer, query: Query, *, doc_id: str) -> None:
        self._scorer = scorer
        self._query = query
        self._doc_id = doc_id
        self.num_evals = 0

    def __call__(self, texts: Sequence[str] | npt.NDArray[np.str_]) -> npt.NDArray[np.float64]:
        self.num_evals += len(texts)
        documents = [Document(self._doc_id, str(text)) for text in texts]
        return np.asarray(self._scorer.score(self._query, documents), dtype=np.float64)


@contextmanager
def _numpy_seeded(seed: int) -> Iterator[None]:
    """Seed numpy's global generator, from which shap breaks ties in its queue; restore its state after."""
    state = np.random.get_state()
    np.random.set_state(np.random.RandomState(seed).get_state())
    try:
        yield
    finally:
        np.random.set_state(state)
