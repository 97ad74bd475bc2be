"""Owen values with fewer evaluations: exact at full budget, honest below it."""

import functools
from functools import partial

import numpy as np
import pytest

from rerank_core.attribution.attributor import SearchAttributor
from rerank_core.attribution.estimators import PrunedOwen
from rerank_core.attribution.pruned_search import LEAST_KNOWN, NUM_DRAWS, _Recursion, pruned_search
from rerank_core.attribution.search import run_searches
from rerank_core.attribution.shapley import owen_values, tree_from_linkage
from rerank_core.models.build import build_encoder, build_model, load_tokenizer
from rerank_core.models.near_copies import NearCopies
from rerank_core.models.scorer import LanguageModelScorer
from rerank_core.models.tiny import save_tiny_causal
from rerank_core.records import Document, Query

WORDS = ["the", "warm", "sea", "ice", "map", "of", "quakes", "cold", "water", "station", "record", "north"]


def random_tree(num_players, rng):
    """Return merges of neighbouring groups, in random order."""
    groups = list(range(num_players))
    merges = []
    while len(groups) > 1:
        place = int(rng.integers(len(groups) - 1))
        merges.append((groups[place], groups.pop(place + 1)))
        groups[place] = num_players + len(merges) - 1
    return merges


def random_game(num_players, rng):
    return rng.standard_normal(2**num_players)


def additive_game(weights):
    coalitions = np.arange(2 ** len(weights))
    return sum(weight * (coalitions >> player & 1) for player, weight in enumerate(weights)) + 0.5


def run(merges, worths, *, max_evals=10**6, max_error=0.0, seed=0):
    search = pruned_search(merges, max_evals=max_evals, max_error=max_error, rng=np.random.default_rng(seed))
    (result,) = run_searches([search], lambda asked: [float(worths[coalition]) for _, coalition in asked])
    return result


def exact(merges, worths):
    def game(coalitions):
        return [float(worths[sum(1 << i for i, on in enumerate(one) if on)]) for one in coalitions]

    return owen_values(game, tree_from_linkage(merges))


def untrained_scorer(folder):
    model = build_model(folder, head="linear", num_layers=None, seed=0)
    encoder = build_encoder(load_tokenizer(folder), model.config, head="linear", max_length=100)
    return LanguageModelScorer(model, encoder, digest="untrained")


@pytest.mark.parametrize("num_players", [1, 2, 3, 7, 10])
def test_with_enough_evaluations_the_values_are_the_owen_values_of_the_tree(num_players, rng):
    merges, worths = random_tree(num_players, rng), random_game(num_players, rng)
    result = run(merges, worths)
    assert result.values == pytest.approx(exact(merges, worths), abs=1e-9)
    assert result.error == 0.0
    assert result.num_evals <= 2**num_players


@pytest.mark.parametrize("max_evals", [2, 3, 5, 10, 30, 100])
def test_the_values_add_up_at_any_budget_which_is_kept(max_evals, rng):
    merges, worths = random_tree(10, rng), random_game(10, rng)
    result = run(merges, worths, max_evals=max_evals)
    assert result.base_value == worths[0]
    assert result.base_value + sum(result.values) == pytest.approx(worths[-1], abs=1e-9)
    assert max_evals - 1 <= result.num_evals <= max_evals


def test_two_evaluations_share_the_score_out_equally(rng):
    worths = random_game(5, rng)
    result = run(random_tree(5, rng), worths, max_evals=2)
    assert result.values == pytest.approx([(worths[-1] - worths[0]) / 5] * 5)


def test_an_additive_game_needs_no_second_context(rng):
    weights = rng.standard_normal(10)
    result = run(random_tree(10, rng), additive_game(weights), max_evals=2 + 4 * 9)
    assert result.values == pytest.approx(weights, abs=1e-9)


def test_opposite_effects_in_one_group_are_found_although_their_sum_shows_nothing(rng):
    weights = np.array([0.0, 5.0, -5.0, 0.0, 1.0, 0.0, 0.0, 0.5])
    result = run([(0, 1), (2, 3), (8, 9), (4, 5), (6, 7), (11, 12), (10, 13)], additive_game(weights))
    assert result.values == pytest.approx(weights, abs=1e-9)


def test_a_player_that_changes_nothing_has_no_value(rng):
    game = random_game(7, rng)
    with_dummy = np.array([game[one & 7 | one >> 1 & 120] for one in range(2**8)])  # player 3 changes nothing
    assert run(random_tree(8, rng), with_dummy).values[3] == pytest.approx(0.0, abs=1e-12)


def test_drawing_the_context_adds_no_bias(rng):
    # ((0, 1), 2): four evaluations for the ends and the root, two for (0, 1) in one of its two contexts
    merges, worths = [(0, 1), (3, 2)], random_game(3, rng)
    expected = np.array(exact(merges, worths))
    results = [run(merges, worths, max_evals=6, seed=seed) for seed in range(2000)]
    values = np.array([result.values for result in results])
    assert {result.num_evals for result in results} == {6}
    assert np.abs(values - expected).max() > 0.05  # one draw is not exact
    assert np.abs(values.mean(axis=0) - expected).max() < 4 * values.std(axis=0).max() / np.sqrt(len(values))


def test_the_same_seed_gives_the_same_values_and_another_draws_otherwise(rng):
    merges, worths = random_tree(10, rng), random_game(10, rng)
    values = [run(merges, worths, max_evals=40, seed=seed).values for seed in (1, 1, 2)]
    assert values[0] == values[1] != values[2]


def test_the_bound_covers_the_error_of_attributions_and_is_not_idle(tmp_path, rng):
    texts = [" ".join(rng.choice(WORDS, size=40)) for _ in range(10)]
    save_tiny_causal(tmp_path, WORDS, seed=1)
    scorer = untrained_scorer(tmp_path)
    documents = [Document(str(place), text) for place, text in enumerate(texts)]

    def attributor(max_evals):
        return SearchAttributor(
            scorer, scorer.tokenizer, PrunedOwen(max_evals), open_texts=partial(NearCopies, scorer)
        )

    query = Query("q", "warm sea")
    ratios = [
        rough.error / np.linalg.norm(np.subtract(rough.values, exact.values))
        for rough, exact in zip(
            attributor(150).attribute(query, documents, seed=0),
            attributor(10**6).attribute(query, documents, seed=0),
            strict=True,
        )
        if rough.error is not None
    ]
    assert len(ratios) >= 8
    assert np.mean(np.array(ratios) >= 1) >= 0.9
    assert np.median(ratios) <= 3


def balanced_tree(num_players):
    groups = list(range(num_players))
    merges: list[tuple[int, int]] = []
    while len(groups) > 1:
        pairs = list(zip(groups[::2], groups[1::2], strict=True))
        groups = [num_players + len(merges) + place for place in range(len(pairs))]
        merges += pairs
    return merges


def planted_game(num_players, rng):
    """Return the worth of a coalition: words that count where all, or any, of one to three players are in."""
    words = [
        (rng.standard_normal(), sum(1 << int(one) for one in rng.choice(num_players, size, replace=False)))
        for size in rng.integers(1, 4, size=num_players)
    ]

    def worth(coalition):
        whole = sum(weight for weight, word in words[::2] if coalition & word == word)
        return whole + sum(weight for weight, word in words[1::2] if coalition & word)

    return worth


def saturating_game(num_players, rng):
    """Return the worth of a coalition: a bounded function of its players and their pairs."""
    weights = rng.standard_normal(num_players)
    pairs = rng.standard_normal((num_players, num_players)) / 2 / np.sqrt(num_players)

    def worth(coalition):
        on = np.array([coalition >> player & 1 for player in range(num_players)], dtype=float)
        return float(3 * np.tanh((on @ weights + on @ pairs @ on) / np.sqrt(num_players)))

    return worth


def searched(merges, worth, *, max_evals, seed=0):
    search = pruned_search(merges, max_evals=max_evals, max_error=0.0, rng=np.random.default_rng(seed))
    (result,) = run_searches([search], lambda asked: [worth(coalition) for _, coalition in asked])
    return result


@pytest.mark.parametrize("game", [planted_game, saturating_game])
def test_the_bound_covers_the_error_on_games_and_is_not_idle(game, rng):
    ratios = []
    for _ in range(40):
        merges, worth = balanced_tree(32), functools.cache(game(32, rng))
        exactly = searched(merges, worth, max_evals=10**6).values
        for seed in range(2):
            rough = searched(merges, worth, max_evals=150, seed=seed)
            if rough.error is not None:
                ratios.append(rough.error / np.linalg.norm(np.subtract(rough.values, exactly)))
    assert len(ratios) >= 60
    assert np.mean(np.array(ratios) >= 1) >= 0.9
    assert np.median(ratios) <= 3


def test_no_bound_is_stated_where_few_borrowers_have_been_split(rng):
    worth = functools.cache(saturating_game(32, rng))
    errors = {budget: searched(balanced_tree(32), worth, max_evals=budget).error for budget in (10, 20, 300)}
    assert errors[10] is errors[20] is None
    assert errors[300] > 0


def test_no_bound_is_stated_where_no_split_has_changed_anything():
    assert searched(balanced_tree(32), int.bit_count, max_evals=300).error is None


def started(merges):
    """Return a search of a game of zeros, whose first players are off by 3 and later ones by 2."""
    recursion = _Recursion(merges, np.random.default_rng(0))
    worths = dict.fromkeys(range(2 ** (len(merges) + 1)), 0.0)
    recursion.start(worths)
    recursion.split(recursion._root, worths)
    recursion._first_deviations = [3.0]
    recursion._later_deviations = [2.0] * LEAST_KNOWN
    return recursion, worths


DRAWN = {"rel": 4 / np.sqrt(2 * NUM_DRAWS)}
"""Four standard errors of a length drawn in one dimension."""


def test_what_a_group_hides_is_the_same_in_both_contexts_until_one_has_been_split():
    recursion, worths = started([(0, 1), (3, 2)])  # two players of independent errors, less their mean
    assert recursion.expected_error() == pytest.approx(3.0, **DRAWN)
    recursion.split(recursion._root.pairs[0][0], worths)  # the other context, half of the value, borrows
    recursion._first_deviations = [3.0]
    assert recursion.expected_error() == pytest.approx(2.0 / 2, **DRAWN)


def test_who_borrows_a_division_borrows_what_it_is_off_by():
    recursion, worths = started([(0, 1), (4, 2), (5, 3)])
    recursion.split(recursion._root.pairs[0][0], worths)  # ((0, 1), 2) in one of two contexts
    recursion._first_deviations, recursion._later_deviations = [3.0], [0.0] * LEAST_KNOWN
    assert recursion.expected_error() == pytest.approx(3.0, **DRAWN)  # not half of it


def test_a_shift_that_is_shared_out_equally_may_belong_to_one_player():
    recursion, worths = started([(0, 1), (3, 2)])
    without, beside = recursion._root.pairs[0]
    recursion.split(without, worths)
    recursion._later_deviations = [0.0] * LEAST_KNOWN
    beside.high += 8.0
    assert recursion.expected_error() == pytest.approx(8.0 / 2 / 2, **DRAWN)


def test_a_bound_of_zero_is_stated_for_exact_values_alone(rng):
    # Each of eight words counts once, wherever it stands: most splits change nothing.
    for seed in range(5):
        merges, places = random_tree(64, rng), rng.permutation(64)[:24].reshape(8, 3)
        words = [sum(1 << int(place) for place in word) for word in places]

        def answers(asked, words=words):
            return [float(sum(bool(coalition & word) for word in words)) for _, coalition in asked]

        def values(max_evals, max_error, merges=merges, answers=answers, seed=seed):
            drawn = np.random.default_rng(seed)
            search = pruned_search(merges, max_evals=max_evals, max_error=max_error, rng=drawn)
            (result,) = run_searches([search], answers)
            return result

        exactly = values(10**6, 0.0).values
        for result in (values(300, 0.0), values(10**6, 0.01)):
            assert result.error != 0.0 or result.values == pytest.approx(exactly, abs=1e-9)


def test_no_coalition_is_asked_for_twice(rng):
    worths = random_game(9, rng)
    seen: list[int] = []

    def answers(asked):
        seen.extend(coalition for _, coalition in asked)
        return [float(worths[coalition]) for _, coalition in asked]

    search = pruned_search(random_tree(9, rng), max_evals=300, max_error=0.0, rng=np.random.default_rng(0))
    (result,) = run_searches([search], answers)
    assert len(seen) == len(set(seen)) == result.num_evals
