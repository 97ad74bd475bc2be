"""The words found are enough to lower the rank, and none of them is too many."""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from rerank_core.attribution.deletion import CoalitionScores, Deletion, members_of, rank_among
from rerank_core.attribution.masking import MaskedText
from rerank_core.attribution.rank_flip import MAX_DELETED, MAX_FLIP_EVALS, RankFlip, find_rank_flip
from rerank_core.records import Document, Query
from rerank_core.testing import AdditiveScorer
from rerank_core.text import words

if TYPE_CHECKING:
    from collections.abc import Sequence

QUERY = Query("q", "ice")
SCORER = AdditiveScorer({"sea": 1.0, "ice": 3.0, "map": 2.0, "mud": -1.0})


class _Texts:
    def score_texts(self, texts: Sequence[tuple[Query, str]]) -> list[float]:
        return [SCORER.score(query, [Document("", text)])[0] for query, text in texts]


def _flip(text: str, *rivals: float) -> RankFlip | None:
    spans = [(word.start, word.end) for word in words(text)]
    masked = MaskedText(text, spans, mask_token="...", is_collapsing=True)
    (score,) = SCORER.score(QUERY, [Document("d", text)])
    deletion = Deletion(QUERY, masked, score, rivals)
    values = [SCORER.score(QUERY, [Document("", text[start:end])])[0] for start, end in spans]
    return find_rank_flip(deletion, values, CoalitionScores(deletion, _Texts()))


def test_the_fewest_words_of_an_additive_score_are_found() -> None:
    assert _flip("sea ice map mud", 4.5, 9.0) == RankFlip((1,), rank=2, flipped_rank=3, score=2.0)
    assert _flip("sea ice map mud", 0.5, 1.5) == RankFlip((1, 2), rank=1, flipped_rank=3, score=0.0)


def test_a_word_that_is_not_needed_is_put_back() -> None:
    def worths(coalitions: Sequence[int]) -> list[float]:
        """Only words 1 and 2 together matter."""
        return [0.0 if not coalition & 0b110 else 5.0 for coalition in coalitions]

    masked = MaskedText("a b c", [(0, 1), (2, 3), (4, 5)], mask_token="...", is_collapsing=True)
    found = find_rank_flip(Deletion(QUERY, masked, 5.0, (1.0,)), [3.0, 2.0, 1.0], worths)
    assert found == RankFlip((1, 2), rank=1, flipped_rank=2, score=0.0)


def test_nothing_is_named_where_no_few_words_matter() -> None:
    assert _flip("sea ice", -1.0) is None  # nobody to fall behind
    assert _flip("mud mud", -3.0) is None  # no word raised the score
    assert _flip(" ".join(["sea"] * (MAX_DELETED + 5)), 4.5) is None  # more words than anyone would read
    assert _flip("sea ice") is None  # alone in its list


def test_the_longest_search_is_costed() -> None:
    """The last of ten words alone decides: nine are deleted in vain, and put back one after the other."""
    num_asked = 0

    def worths(coalitions: Sequence[int]) -> list[float]:
        nonlocal num_asked
        num_asked += len(coalitions)
        return [5.0 if one >> (MAX_DELETED - 1) & 1 else 0.0 for one in coalitions]

    masked = MaskedText("", [], mask_token="...", is_collapsing=True)
    found = find_rank_flip(Deletion(QUERY, masked, 5.0, (1.0,)), range(MAX_DELETED, 0, -1), worths)
    assert found == RankFlip((MAX_DELETED - 1,), rank=1, flipped_rank=2, score=0.0)
    assert num_asked == MAX_FLIP_EVALS + 1  # the last one is known by then


@given(
    st.lists(st.floats(-2, 2), min_size=1, max_size=6),
    st.lists(st.floats(-4, 4), min_size=1, max_size=3),
    st.dictionaries(st.integers(0, 63), st.floats(-1, 1), max_size=8),
)
def test_what_is_found_flips_and_no_part_one_word_smaller_does(values, rivals, interactions) -> None:
    def worths(coalitions: Sequence[int]) -> list[float]:
        return [
            sum(value for i, value in enumerate(values) if one >> i & 1)
            + sum(extra for subset, extra in interactions.items() if subset & one == subset)
            for one in coalitions
        ]

    everybody = members_of(range(len(values)))
    (score,) = worths([everybody])
    masked = MaskedText("", [], mask_token="...", is_collapsing=True)
    deletion = Deletion(QUERY, masked, score, tuple(rivals))
    found = find_rank_flip(deletion, values, worths)
    if found is None:
        return

    def rank_without(places: Sequence[int]) -> int:
        return rank_among(worths([everybody & ~members_of(places)])[0], rivals)

    assert rank_without(found.places) == found.flipped_rank > found.rank == rank_among(score, rivals)
    for fewer in combinations(found.places, len(found.places) - 1):
        if fewer:
            assert rank_without(fewer) <= found.rank
