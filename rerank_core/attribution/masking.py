"""Which text remains of a document when some of its tokens are switched off."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from rerank_core.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedTokenizerBase

    from rerank_core.attribution.words import Span

_RUNS = re.compile("1+|0+")


class TokenMasker:
    """Cuts texts into tokens that can be switched off, as shap's text masker does.

    A token that is off leaves the tokenizer's mask token in its place; where the tokenizer has none, a run of
    such tokens leaves one "...". Two things differ from shap: white space between tokens that are on, and at
    the text's ends, stays as it is (shap makes every run one space and strips the ends, so that a scorer
    would see another text than the document), and tokens that share a character, as those of a byte-level
    tokenizer may, are one player (shap repeats the character). Special tokens around the text are players
    that nothing switches off, so their value is 0 in an exact attribution.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        if not tokenizer.is_fast:
            raise ConfigError(
                f"{type(tokenizer).__name__} gives no character offsets; save the model with a fast tokenizer"
            )
        self._tokenizer = tokenizer
        self.mask_token: str = tokenizer.mask_token or "..."
        self.is_collapsing = not tokenizer.mask_token
        special = tokenizer("a", return_special_tokens_mask=True)["special_tokens_mask"]
        self.num_before = special.index(0)
        self.num_after = special[::-1].index(0)

    def players(self, text: str) -> list[tuple[Span, int]]:
        """Return the characters and the token id of each player, from left to right.

        A special token has an empty span.
        """
        # As in the scorer, what stands in a document is never read as a special token.
        encoded: Any = self._tokenizer(
            text, return_offsets_mapping=True, split_special_tokens=True, verbose=False
        )
        tokens = list(zip(encoded["offset_mapping"], encoded["input_ids"], strict=True))
        first_after = len(tokens) - self.num_after
        players: list[tuple[Span, int]] = [((0, 0), token_id) for _, token_id in tokens[: self.num_before]]
        for (start, end), token_id in tokens[self.num_before : first_after]:
            previous_start, previous_end = players[-1][0] if players else (0, 0)
            if start < previous_end:
                players[-1] = ((previous_start, max(end, previous_end)), players[-1][1])
            elif start < end:
                players.append(((start, end), token_id))
        return players + [((len(text), len(text)), token_id) for _, token_id in tokens[first_after:]]

    def spans(self, text: str) -> list[Span]:
        """Return the characters of each player, from left to right; an empty span for a special token."""
        return [span for span, _ in self.players(text)]

    def masked(self, text: str, spans: Sequence[Span]) -> MaskedText:
        """Return the text as a game of the parts at some characters, from left to right."""
        return MaskedText(text, spans, mask_token=self.mask_token, is_collapsing=self.is_collapsing)


class MaskedText:
    """A text whose parts can be switched off."""

    def __init__(self, text: str, spans: Sequence[Span], *, mask_token: str, is_collapsing: bool) -> None:
        """`spans` are the characters of each player, from left to right; an empty span is never off."""
        self.text = text
        self.spans = spans
        self.fixed = sum(1 << player for player, (start, end) in enumerate(spans) if start == end)
        self._mask_token = mask_token
        self._is_collapsing = is_collapsing
        self._bounds = self._segment_bounds()

    def segments(self) -> list[str]:
        """Return the text of each player with the white space behind it; joined they are the text."""
        return [self.text[start:end] for start, end in zip(self._bounds, self._bounds[1:], strict=False)]

    def left(self, coalition: int) -> str:
        """Return what is left of the text when only players i are on whose bit i is set."""
        kept, place = "", 0
        bits = f"{coalition | self.fixed:0{len(self.spans)}b}"[::-1] if self.spans else ""
        for run in _RUNS.findall(bits):
            end = place + len(run)
            if run[0] == "1":
                kept += self.text[self._bounds[place] : self._bounds[end]]
            else:
                if kept and not kept[-1].isspace():
                    kept += " "
                kept += self._mask_token if self._is_collapsing else " ".join([self._mask_token] * len(run))
            place = end
        return kept

    def _segment_bounds(self) -> list[int]:
        """Return where each player's text begins, and where the last one ends.

        White space belongs to the player before it; before the first one, to the first.
        """
        inner = [player for player, (start, end) in enumerate(self.spans) if start < end]
        if not inner:
            return [0] * len(self.spans) + [len(self.text)] * bool(self.spans)
        bounds = [0] * (inner[0] + 1) + [self.spans[player][0] for player in inner[1:]]
        return bounds + [len(self.text)] * (len(self.spans) + 1 - len(bounds))
