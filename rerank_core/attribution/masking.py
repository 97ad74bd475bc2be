"""Which text remains of a document when some of its tokens are switched off."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from shap.maskers import Text

from rerank_core.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from rerank_core.attribution.words import Span


class DocumentMasker(Text):  # type: ignore[misc]  # shap has no type information
    """shap's text masker, except that the text with every token switched on is the document itself.

    As in shap, a token that is off leaves the tokenizer's mask token in its place; where the tokenizer has
    none, a run of such tokens leaves one "...". The tree of tokens is shap's too. Two things differ: white
    space between tokens that are on stays as it is (shap makes every run one space, so that a scorer would
    see another text than the document), and tokens that share a character, as those of a byte-level tokenizer
    may, are one player (shap repeats the character). Special tokens around the text are players that nothing
    switches off, so their value is 0 in an exact attribution.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        if not tokenizer.is_fast:
            raise ConfigError(
                f"{type(tokenizer).__name__} gives no character offsets; save the model with a fast tokenizer"
            )
        super().__init__(tokenizer)

    def spans(self, s: str) -> list[Span]:
        """Return the characters of each player, from left to right; an empty span for a special token."""
        return [span for span, _ in self._players(s)]

    def token_segments(self, s: str) -> tuple[list[str], list[int]]:
        """Return the text and the token id of each player; the texts joined are `s`."""
        players = self._players(s)
        inner = [index for index, ((start, end), _) in enumerate(players) if start < end]
        segments = [""] * len(players)
        bounds = [0, *(players[index][0][0] for index in inner[1:]), len(s)]
        for index, (start, end) in zip(inner, pairwise(bounds), strict=False):  # no player in ""
            segments[index] = s[start:end]
        return segments, [token_id for _, token_id in players]

    def __call__(self, mask: npt.NDArray[np.bool_], s: str) -> tuple[npt.NDArray[np.str_]]:
        """Return the text that is left of `s` when the players whose mask is False are switched off."""
        self._update_s_cache(s)
        kept = mask.copy()
        kept[: self.keep_prefix] = True
        kept[len(kept) - self.keep_suffix :] = True
        text, in_gap = "", False
        for segment, is_on in zip(self._segments_s, kept, strict=True):
            if is_on:
                text += segment
            elif not (in_gap and self.collapse_mask_token):
                text += self.mask_token if not text or text[-1].isspace() else f" {self.mask_token}"
            in_gap = not is_on
        return (np.array([text]),)

    def _players(self, s: str) -> list[tuple[Span, int]]:
        # As in the scorer, what stands in a document is never read as a special token.
        encoded: Any = self.tokenizer(
            s, return_offsets_mapping=True, split_special_tokens=True, verbose=False
        )
        tokens = list(zip(encoded["offset_mapping"], encoded["input_ids"], strict=True))
        first_suffix = len(tokens) - self.keep_suffix
        players: list[tuple[Span, int]] = [((0, 0), token_id) for _, token_id in tokens[: self.keep_prefix]]
        for (start, end), token_id in tokens[self.keep_prefix : first_suffix]:
            previous_start, previous_end = players[-1][0] if players else (0, 0)
            if start < previous_end:
                players[-1] = ((previous_start, max(end, previous_end)), players[-1][1])
            elif start < end:
                players.append(((start, end), token_id))
        return players + [((len(s), len(s)), token_id) for _, token_id in tokens[first_suffix:]]
