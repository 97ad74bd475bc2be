"""The binary tree in which a text's tokens meet: pieces of a word first, sentences last."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

Merge = tuple[int, int]
"""Two groups that meet; group `i` is token i, and group `number of tokens + k` is what merge k has joined."""

_ENDS_A_WORD = re.compile(r"^.*\W$")
_STARTS_WITH_A_LETTER = re.compile(r"^[A-Za-z]")
_CLOSER_OF = {"(": ")"}
_BRACKETS = frozenset(_CLOSER_OF) | frozenset(_CLOSER_OF.values())
_CONNECTORS = frozenset({"but", "and", "or"})
_SENTENCE_ENDS = frozenset({".", "?", "!"})
_APOSTROPHE_ENDS = frozenset({"t", "s"})


def token_tree(segments: Sequence[str]) -> list[Merge]:
    """Return the merges of a text's segments, from the first to the last, which joins the whole text.

    `segments` are the characters of each token, with the white space between tokens; joined they are the
    text. At each step the two neighbouring groups of the highest merge score meet, the first of equals. The
    scores are those of shap 0.50 (`shap.maskers.Text.clustering`), so the tree is the one on which its
    Partition explainer works: an attribution on it can be compared with shap's.
    """
    marked = _marked(segments)
    groups = [
        _Group(token, token, is_open_first=token in _BRACKETS, is_open_last=token in _BRACKETS, index=i)
        for i, token in enumerate(marked)
    ]
    scores = [_merge_score(left, right) for left, right in pairwise(groups)]
    merges: list[Merge] = []
    while scores:
        place = max(range(len(scores)), key=scores.__getitem__)
        left, right = groups[place], groups.pop(place + 1)
        merges.append((left.index, right.index))
        groups[place] = left.joined(right, index=len(segments) + len(merges) - 1)
        del scores[place]
        for pair in (place - 1, place):
            if 0 <= pair < len(scores):
                scores[pair] = _merge_score(groups[pair], groups[pair + 1])
    return merges


def group_sizes(merges: Sequence[Merge]) -> list[int]:
    """Return the number of tokens of every group, tokens first, then the merges in their order."""
    sizes = [1] * (len(merges) + 1)
    for left, right in merges:
        sizes.append(sizes[left] + sizes[right])
    return sizes


def group_members(merges: Sequence[Merge]) -> list[int]:
    """Return the tokens of every group, in the order of `group_sizes`: bit i stands for token i."""
    members = [1 << token for token in range(len(merges) + 1)]
    for left, right in merges:
        members.append(members[left] | members[right])
    return members


class _Group:
    """A run of tokens: what the merge score looks at."""

    __slots__ = ("first", "index", "is_open_first", "is_open_last", "last", "second", "size")

    def __init__(self, first: str, last: str, *, is_open_first: bool, is_open_last: bool, index: int) -> None:
        self.first, self.last, self.second = first, last, ""
        self.is_open_first, self.is_open_last = is_open_first, is_open_last
        self.index, self.size = index, 1

    def joined(self, other: _Group, *, index: int) -> _Group:
        group = _Group(
            self.first,
            other.last,
            is_open_first=self.is_open_first,
            is_open_last=other.is_open_last,
            index=index,
        )
        group.second = self.second if self.size > 1 else other.first
        group.size = self.size + other.size
        if _CLOSER_OF.get(self.first) == other.last:
            group.is_open_first = group.is_open_last = False
        return group


def _marked(segments: Sequence[str]) -> list[str]:
    """Return the segments without white space; one that goes on with a word begins with `##`."""
    marked: list[str] = []
    for place, segment in enumerate(segments):
        goes_on = (
            place > 0
            and marked[-1] != ""
            and _ENDS_A_WORD.match(segments[place - 1]) is None
            and _STARTS_WITH_A_LETTER.match(segment) is not None
        )
        marked.append(f"##{segment.strip()}" if goes_on else segment.strip())
    return marked


def _merge_score(left: _Group, right: _Group) -> float:
    """Return how soon two neighbours meet, the higher the sooner."""
    score = 20.0 if right.first.startswith("##") else 0.0
    score += _apostrophe_score(left, right) + _bracket_score(left, right)
    if left.last in _CONNECTORS or right.first in _CONNECTORS:
        score -= 2
    score += _reach_score(left, right, ends=frozenset({","}), cost=10)
    score += _reach_score(left, right, ends=_SENTENCE_ENDS, cost=20)
    return score - (left.size + right.size)


def _apostrophe_score(left: _Group, right: _Group) -> float:
    """Join `'s` and `'t`, and both to their word."""
    score = 0.0
    if right.first == "'" and (right.size == 1 or (right.size == 2 and right.second in _APOSTROPHE_ENDS)):
        score += 15
    if left.last == "'" and right.first in _APOSTROPHE_ENDS:
        score += 15
    return score


def _bracket_score(left: _Group, right: _Group) -> float:
    """Keep what stands in brackets together, and control words like `[SEP]` apart from all others."""
    score = 0.0
    if _is_control(left.first) != _is_control(right.last):
        score -= 1000
    if right.first in _CLOSER_OF and right.is_open_first:
        score -= 100
    if left.last in _CLOSER_OF.values() and left.is_open_last:
        score -= 100
    if left.first in _CLOSER_OF:
        score -= 2
    return score


def _reach_score(left: _Group, right: _Group, *, ends: frozenset[str], cost: int) -> float:
    """Reach across a mark that ends something late, but let the mark itself join what it ends."""
    score = -cost if left.last in ends else 0
    if right.first in ends:
        score -= cost if right.size > 1 else 1
    return score


def _is_control(token: str) -> bool:
    return token.startswith("[") and token.endswith("]")
