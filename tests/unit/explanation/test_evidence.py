"""Which words of an attribution an explanation may cite."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations
from math import factorial
from typing import TYPE_CHECKING

import pytest

from rerank_core.errors import DataError
from rerank_core.explanation.evidence import contrast_evidence, select_evidence
from rerank_core.records import Attribution, Document, Unit

if TYPE_CHECKING:
    from collections.abc import Callable


def _attribution(*pairs: tuple[str, float]) -> Attribution:
    units = tuple(Unit(word, 10 * place, 10 * place + len(word)) for place, (word, _) in enumerate(pairs))
    values = tuple(value for _, value in pairs)
    return Attribution("q", "d", sum(values), 0.0, units, values, "exact", 1, 0.0, 0)


def _pairs(*pairs: tuple[str, float], k: int = 10) -> list[tuple[str, float]]:
    return [(word.text, word.value) for word in select_evidence(_attribution(*pairs), k=k).words]


def test_the_largest_absolute_values_come_first_with_their_sign() -> None:
    assert _pairs(("ice", 0.5), ("sand", -2.0), ("snow", 1.0), k=2) == [("sand", -2.0), ("snow", 1.0)]


def test_places_of_a_word_are_summed_whatever_their_case() -> None:
    found = select_evidence(_attribution(("Ice", 0.5), ("sand", 0.6), ("ICE", 0.25), ("ice", -0.1)))
    assert found.words[0].text == "Ice"
    assert found.words[0].value == pytest.approx(0.65)


def test_places_that_cancel_are_no_evidence() -> None:
    assert _pairs(("ice", 1.0), ("ice", -1.0), ("snow", 0.0)) == []


def test_equal_values_keep_the_order_of_first_places() -> None:
    assert _pairs(("c", 1.0), ("a", -1.0), ("b", 1.0), k=2) == [("c", 1.0), ("a", -1.0)]


def test_stop_words_stay_and_punctuation_goes() -> None:
    assert _pairs(("the", 1.0), ("--", 3.0), ("...", 2.0)) == [("the", 1.0)]


def test_ten_words_are_the_default() -> None:
    assert len(_pairs(*((f"word{n}", 1.0 + n) for n in range(12)))) == 10


def test_a_word_has_its_share_of_all_words_and_its_places() -> None:
    (largest,) = select_evidence(_attribution(("Ice", 0.5), ("sand", -0.3), ("ice", 0.2)), k=1).words
    assert largest.share == pytest.approx(0.7)
    assert [(place.start, place.end) for place in largest.places] == [(0, 3), (20, 23)]


def test_a_contrast_has_both_documents_words_and_the_margin() -> None:
    higher = _attribution(("ice", 1.5), ("sand", -0.5))
    lower = replace(_attribution(("dust", -1.0), ("sea", 0.25)), doc_id="e")
    other = Document("e", "dust sea")
    evidence = contrast_evidence(higher, lower, document=other, rank=4)
    assert [word.text for word in evidence.words] == ["ice", "sand"]
    assert evidence.contrast is not None
    assert (evidence.contrast.rank, evidence.contrast.document) == (4, other)
    assert [(word.text, word.value) for word in evidence.contrast.words] == [("dust", -1.0), ("sea", 0.25)]
    own, others = (sum(w.value for w in found) for found in (evidence.words, evidence.contrast.words))
    assert evidence.contrast.margin == pytest.approx(own - others)  # both base values are 0 here


def test_documents_of_two_queries_cannot_be_compared() -> None:
    lower = replace(_attribution(("dust", 1.0)), query_id="other")
    with pytest.raises(DataError, match="two documents of one query"):
        contrast_evidence(_attribution(("ice", 1.5)), lower, document=Document("d", "dust"), rank=2)


def test_the_values_of_a_margin_are_those_of_its_two_scores() -> None:
    """Exact Shapley values of the game whose players are the words of both documents."""
    scorer = _Interacting()
    high, low = Document("d", "sea ice extent"), Document("e", "dust storm")
    players = [(high, i) for i in range(3)] + [(low, i) for i in range(2)]

    def margin(present: tuple[bool, ...]) -> float:
        return scorer.of(high, present[:3]) - scorer.of(low, present[3:])

    joint = _shapley(margin, len(players))
    own = _shapley(lambda present: scorer.of(high, present), 3)
    others = _shapley(lambda present: scorer.of(low, present), 2)
    assert joint == pytest.approx([*own, *(-value for value in others)])


class _Interacting:
    def of(self, document: Document, present: tuple[bool, ...]) -> float:
        kept = [word for word, is_kept in zip(document.text.split(), present, strict=True) if is_kept]
        return sum(map(len, kept)) + 0.5 * len(kept) ** 2


def _shapley(game: Callable[[tuple[bool, ...]], float], num_players: int) -> list[float]:
    values = [0.0] * num_players
    for order in permutations(range(num_players)):
        present = [False] * num_players
        before = game(tuple(present))
        for player in order:
            present[player] = True
            after = game(tuple(present))
            values[player] += (after - before) / factorial(num_players)
            before = after
    return values


def test_units_without_a_value_are_refused() -> None:
    broken = Attribution("q", "d", 0.0, 0.0, (Unit("ice", 0, 3),), (), "exact", 1, 0.0, 0)
    with pytest.raises(ValueError, match="zip"):
        select_evidence(broken)
