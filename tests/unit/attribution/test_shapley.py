"""Shapley and Owen values against games with a known answer."""

import random

import pytest

from rerank_core.attribution.shapley import owen_values, shapley_values, tree_from_linkage
from rerank_core.errors import ConfigError


def _additive(weights):
    return lambda coalitions: [
        sum(weight for weight, is_in in zip(weights, coalition, strict=True) if is_in)
        for coalition in coalitions
    ]


def _random_game(seed):
    worth: dict[tuple[bool, ...], float] = {}
    rng = random.Random(seed)

    def game(coalitions):
        return [worth.setdefault(coalition, rng.random()) for coalition in coalitions]

    return game


def test_in_an_additive_game_the_values_are_the_weights():
    weights = [2.0, -1.0, 0.5, 0.0]
    assert shapley_values(_additive(weights), 4) == pytest.approx(weights)
    assert owen_values(_additive(weights), ((0, 1), (2, 3))) == pytest.approx(weights)


def test_shapley_values_of_the_glove_game():
    # Player 0 has a left glove, players 1 and 2 a right one each; a pair is worth 1.
    def game(coalitions):
        return [float(left and (right or other)) for left, right, other in coalitions]

    assert shapley_values(game, 3) == pytest.approx([2 / 3, 1 / 6, 1 / 6])


def test_owen_values_of_the_glove_game_where_the_right_gloves_act_together():
    def game(coalitions):
        return [float(left and (right or other)) for left, right, other in coalitions]

    assert owen_values(game, (0, (1, 2))) == pytest.approx([1 / 2, 1 / 4, 1 / 4])


def test_owen_values_of_the_glove_game_where_a_pair_acts_together():
    def game(coalitions):
        return [float(left and (right or other)) for left, right, other in coalitions]

    # Orders: 0 1 2, 1 0 2, 2 0 1, 2 1 0; player 0 completes the pair in all but the first.
    assert owen_values(game, ((0, 1), 2)) == pytest.approx([3 / 4, 1 / 4, 0.0])


def test_two_players_have_the_same_values_under_both():
    game = _random_game(1)
    assert owen_values(game, (0, 1)) == pytest.approx(shapley_values(game, 2))


@pytest.mark.parametrize("tree", [((0, 1), (2, (3, 4))), ((((0, 1), 2), 3), 4), ((4, 2), (0, (1, 3)))])
def test_values_add_up_to_the_worth_of_all_players(tree):
    game = _random_game(2)
    empty, everyone = game([(False,) * 5, (True,) * 5])
    assert sum(owen_values(game, tree)) == pytest.approx(everyone - empty)
    assert sum(shapley_values(game, 5)) == pytest.approx(everyone - empty)


def test_a_single_player_has_it_all():
    assert owen_values(_additive([3.0]), 0) == [3.0]
    assert shapley_values(_additive([3.0]), 1) == [3.0]


def test_a_game_is_asked_once_per_coalition():
    asked = []

    def game(coalitions):
        asked.extend(coalitions)
        return [0.0] * len(coalitions)

    owen_values(game, ((0, 1), (2, 3)))
    assert len(asked) == len(set(asked))


def test_a_linkage_matrix_is_read_as_scipy_does():
    assert tree_from_linkage([[2, 3, 0.5, 2], [0, 1, 0.5, 2], [5, 4, 1.0, 4]]) == ((0, 1), (2, 3))
    assert tree_from_linkage([]) == 0


def test_too_many_players_are_refused():
    with pytest.raises(ConfigError, match="17 players are too many"):
        shapley_values(_additive([0.0] * 17), 17)


def test_a_tree_that_misses_a_player_is_refused():
    with pytest.raises(ConfigError, match=r"must be 0 to 2, once each, got \[0, 1, 1\]"):
        owen_values(_additive([0.0] * 3), (0, (1, 1)))
