"""Scores of many texts that have most of their words in common."""

from __future__ import annotations

import re
from array import array
from dataclasses import dataclass
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
        if self._tree is None:
            return self._scorer.score_encoded(self._encoder.encode(texts))
        return self._tree.score(self._encoder.sequences(texts))


class PieceEncoder:
    """Encodes texts as a `PairEncoder` does, from the tokens of their pieces between single spaces.

    Tokenizers that cut a text at spaces first give a piece the same tokens in every text; for others, found
    out by a probe, every text is tokenised as a whole.
    """

    def __init__(self, encoder: PairEncoder) -> None:
        self._encoder = encoder
        self._heads: dict[str, _Head] = {}
        self._openings: dict[str, bytes] = {}  # of the pieces that begin a text
        self._words: dict[str, bytes] = {}  # of all other pieces, by what follows their space
        self.cuts_at_spaces = self._piecewise_ids([_PROBE]) == [_as_bytes(encoder.text_ids(_PROBE))]

    def encode(self, texts: Sequence[tuple[Query, str]]) -> list[EncodedPair]:
        """Return the tokens of each query and text of a document, in their order."""
        return [
            self._encoder.joined(self._head(query).head, array("i", ids))
            for (query, _), ids in zip(texts, self._text_ids([text for _, text in texts]), strict=True)
        ]

    def sequences(self, texts: Sequence[tuple[Query, str]]) -> list[array[int]]:
        """Return the ids that `encode` would return, as arrays: a tree needs no more, and they cost less."""
        end = _as_bytes(self._encoder.end_ids)
        heads = [self._head(query) for query, _ in texts]
        all_ids = self._text_ids([text for _, text in texts])
        return [
            array("i", head.ids + ids[: head.num_bytes] + end)
            for head, ids in zip(heads, all_ids, strict=True)
        ]

    def _head(self, query: Query) -> _Head:
        found = self._heads.get(query.text)
        if found is None:
            head = self._encoder.head(query)
            num_bytes = self._encoder.room(head) * array("i").itemsize
            found = self._heads[query.text] = _Head(head, _as_bytes(head.input_ids), num_bytes)
        return found

    def _text_ids(self, texts: Sequence[str]) -> list[bytes]:
        if self.cuts_at_spaces:
            return self._piecewise_ids(texts)
        return [_as_bytes(self._encoder.text_ids(text)) for text in texts]

    def _piecewise_ids(self, texts: Sequence[str]) -> list[bytes]:
        """Return the tokens of some texts; the pieces that are new are tokenised in one call."""
        cuts = [_pieces(text) for text in texts]
        found = [self._known_ids(cut) for cut in cuts]
        self._learn([cut for cut, ids in zip(cuts, found, strict=True) if ids is None])
        return [self._ids(cut) if ids is None else ids for cut, ids in zip(cuts, found, strict=True)]

    def _known_ids(self, cut: Sequence[str]) -> bytes | None:
        try:
            return self._ids(cut)
        except KeyError:
            return None

    def _ids(self, cut: Sequence[str]) -> bytes:
        return self._openings[cut[0]] + b"".join(map(self._words.__getitem__, cut[1:]))

    def _learn(self, cuts: Sequence[Sequence[str]]) -> None:
        openings = list({cut[0] for cut in cuts} - self._openings.keys())
        words = list(set().union(*(cut[1:] for cut in cuts)) - self._words.keys())
        new_ids = [
            _as_bytes(ids) for ids in self._encoder.batch_ids([*openings, *(f" {word}" for word in words)])
        ]
        self._openings.update(zip(openings, new_ids[: len(openings)], strict=True))
        self._words.update(zip(words, new_ids[len(openings) :], strict=True))


@dataclass(frozen=True, slots=True)
class _Head:
    """A query's tokens before any document, also as bytes, and the bytes of a document's ids that fit."""

    head: EncodedHead
    ids: bytes
    num_bytes: int


def _as_bytes(ids: Sequence[int]) -> bytes:
    return array("i", ids).tobytes()


def _pieces(text: str) -> list[str]:
    """Return a text's beginning, and what follows each single space between two words."""
    words = text.split()
    if not words or " ".join(words) != text:  # other white space stays within its piece
        opening, *spaced = _WORD_STARTS.split(text)
        words = [opening, *(piece[1:] for piece in spaced)]
    return words
