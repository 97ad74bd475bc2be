"""Owen values with fewer evaluations: exact at full budget, honest below it."""

from functools import partial

import numpy as np
import pytest

from rerank_core.attribution.attributor import SearchAttributor
from rerank_core.attribution.estimators import PrunedOwen
from rerank_core.attribution.pruned_search import (
    ERROR_FACTOR,
    MOVED_SHARE,
    _bound,
    _History,
    _Snapshot,
    pruned_search,
)
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


def test_the_bound_counts_what_the_second_half_moved_as_far_as_the_expectations_shrank():
    values = np.array([3.0, 4.0])
    end = _Snapshot(100, values, expected_change=1.0)
    assert _bound(end, _Snapshot(50, values, expected_change=4.0)) == pytest.approx(ERROR_FACTOR)
    moved = _bound(end, _Snapshot(50, 0 * values, expected_change=4.0))
    assert moved == pytest.approx(ERROR_FACTOR * np.sqrt(1 + MOVED_SHARE * 25 / 16))
    for before in (None, 0.5):  # unknown, or lower than now: nothing has shrunk
        found = _bound(end, _Snapshot(50, 0 * values, expected_change=before))
        assert found == pytest.approx(ERROR_FACTOR * np.sqrt(1 + MOVED_SHARE * 25))
    assert _bound(_Snapshot(100, values, expected_change=0.0), end) == 0.0
    assert _bound(_Snapshot(100, values, expected_change=None), end) is None


def kept(history, counts):
    for number in counts:
        if history.is_due(number):
            history.keep(_Snapshot(number, np.zeros(1), expected_change=None))
    return history


def test_the_state_after_half_of_a_budget_is_kept_and_no_other():
    start = _Snapshot(2, np.zeros(1), expected_change=None)
    history = kept(_History(start, max_evals=100), range(3, 101))
    assert [history.halfway(number).num_evals for number in (3, 60, 100)] == [2, 50, 50]


def test_a_search_that_may_end_anywhere_finds_its_state_near_halfway():
    start = _Snapshot(2, np.zeros(1), expected_change=None)
    history = kept(_History(start, max_evals=None), range(3, 401))
    for number in range(20, 401):
        assert abs(history.halfway(number).num_evals / number - 0.5) < 0.13


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
