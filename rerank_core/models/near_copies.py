"""Scores of many texts that have most of their words in common."""

from __future__ import annotations

import re
from itertools import chain
from typing import TYPE_CHECKING

from rerank_core.models.prefix_tree import PrefixTree

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rerank_core.models.scorer import EncodedHead, EncodedPair, LanguageModelScorer, PairEncoder
    from rerank_core.records import Query

_WORD_STARTS = re.compile(r"(?<=\S)(?= \S)")
_PROBE = "Sea-ice (2 m thick), it's said... covers 10.5% of  the\nArctic [see: A/B] naïve 日本 x_y — end."


class NearCopies:
    """Scores texts as the scorer itself does, faster where they are alike; made for one group of texts.

    What a causal model has computed for the beginning of one text serves all others with that beginning, and
    stays in memory as long as this object. A piece of text between two spaces is tokenised once.
    """

    def __init__(self, scorer: LanguageModelScorer) -> None:
        self._scorer = scorer
        self._encoder = PieceEncoder(scorer.encoder)
        self._tree = (
            PrefixTree(scorer.model, max_tokens=scorer.max_tokens_per_batch)
            if scorer.model.can_pack
            else None
        )

    @property
    def is_tree(self) -> bool:
        """Whether texts share what has been computed for their beginnings."""
        return self._tree is not None

    def score_texts(self, texts: Sequence[tuple[Query, str]]) -> list[float]:
        """Return one score per query and text of a document, in their order."""
        pairs = [self._encoder.encode(query, text) for query, text in texts]
        if self._tree is None:
            return self._scorer.score_encoded(pairs)
        return self._tree.score(pairs)


class PieceEncoder:
    """Encodes texts as a `PairEncoder` does, from the tokens of their pieces between single spaces.

    Tokenizers that cut a text at spaces first give a piece the same tokens in every text; for others, found
    out by a probe, every text is tokenised as a whole.
    """

    def __init__(self, encoder: PairEncoder) -> None:
        self._encoder = encoder
        self._heads: dict[str, EncodedHead] = {}
        self._pieces: dict[str, list[int]] = {}
        self.cuts_at_spaces = self._joined_pieces(_PROBE) == encoder.text_ids(_PROBE)

    def encode(self, query: Query, text: str) -> EncodedPair:
        """Return the tokens of a query and the text of a document."""
        head = self._heads.get(query.text)
        if head is None:
            head = self._heads[query.text] = self._encoder.head(query)
        ids = self._joined_pieces(text) if self.cuts_at_spaces else self._encoder.text_ids(text)
        return self._encoder.joined(head, ids)

    def _joined_pieces(self, text: str) -> list[int]:
        pieces = _WORD_STARTS.split(text)
        try:
            return list(chain.from_iterable(map(self._pieces.__getitem__, pieces)))
        except KeyError:
            for piece in set(pieces) - self._pieces.keys():
                self._pieces[piece] = self._encoder.text_ids(piece)
            return self._joined_pieces(text)
