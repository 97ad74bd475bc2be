"""Which words of an attribution an explanation may cite."""

import pytest

from rerank_core.explanation.evidence import select_evidence
from rerank_core.records import Attribution, Unit


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


def test_units_without_a_value_are_refused() -> None:
    broken = Attribution("q", "d", 0.0, 0.0, (Unit("ice", 0, 3),), (), "exact", 1, 0.0, 0)
    with pytest.raises(ValueError, match="zip"):
        select_evidence(broken)
