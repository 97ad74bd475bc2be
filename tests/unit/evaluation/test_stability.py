"""Agreement of values by definition, beside lexical weights and chance."""

import pytest

from rerank_core.errors import DataError
from rerank_core.evaluation.stability import (
    agreement,
    inserted_shares,
    lexical_agreement,
    owned_values,
    random_agreement,
)
from rerank_core.evaluation.text_changes import INSERTED


def test_equal_values_agree_in_all():
    assert agreement([3.0, -1.0, 2.0], [3.0, -1.0, 2.0]) == {
        "kendall_tau": pytest.approx(1.0),
        "top_5": 1.0,
        "top_10": 1.0,
        "relative_l2": 0.0,
    }


def test_opposite_values_disagree_in_order_and_size():
    found = agreement([-3.0, 1.0, -2.0], [3.0, -1.0, 2.0])
    assert found["kendall_tau"] == pytest.approx(-1.0)
    assert found["relative_l2"] == pytest.approx(2.0)


def test_lexical_weights_are_compared_at_the_length_of_the_values():
    assert lexical_agreement([1.0, 0.0], [50.0, 0.0])["relative_l2"] == pytest.approx(0.0)
    assert lexical_agreement([0.0, 7.0], [3.0, 0.0])["relative_l2"] == pytest.approx(2**0.5)
    with pytest.raises(DataError, match="all 0 order no words"):
        lexical_agreement([0.0, 0.0], [1.0, 2.0])


def test_values_in_random_places_agree_as_chance_does(rng):
    found = random_agreement([float(value) for value in rng.normal(size=100)], rng)
    assert found["kendall_tau"] == pytest.approx(0.0, abs=0.1)
    assert found["top_10"] == pytest.approx(0.1, abs=0.1)
    assert found["relative_l2"] == pytest.approx(2**0.5, abs=0.2)


def test_words_that_stand_for_one_add_up_and_inserted_ones_to_nothing():
    assert owned_values([1.0, 2.0, 4.0, 8.0], [0, 2, 2, INSERTED], num_words=4) == [1.0, 0.0, 6.0, 0.0]


def test_inserted_words_have_a_share_of_mass_and_of_words():
    assert inserted_shares([3.0, -4.0, 1.0, 0.0], [0, 1, INSERTED, INSERTED]) == {
        "inserted_mass": pytest.approx(1 / 8),
        "inserted_words": 0.5,
    }
    assert inserted_shares([0.0, 0.0], [0, INSERTED])["inserted_mass"] == 0.5
    with pytest.raises(DataError, match="without words"):
        inserted_shares([], [])
