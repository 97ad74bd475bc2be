"""Shapley and Owen values by their definitions, for games of a few players."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from math import factorial

from rerank_core.errors import ConfigError

MAX_PLAYERS = 16

Coalition = tuple[bool, ...]
"""`coalition[i]` says whether player i takes part."""

Game = Callable[[Sequence[Coalition]], Sequence[float]]
"""The worth of each coalition, in their order; called once with every coalition that is needed."""

Tree = int | tuple["Tree", "Tree"]
"""A player, or two groups of players that each act together before they meet."""


def shapley_values(game: Game, num_players: int) -> list[float]:
    """Return the exact Shapley value of each player, from the worth v of all 2^n coalitions.

    value_i = Σ over coalitions S without i of |S|! (n − |S| − 1)! / n! · (v(S with i) − v(S))  (Shapley 1953)

    Raises:
        ConfigError: there are more than `MAX_PLAYERS` players.
    """
    check_size(num_players)
    worth = _worths(game, range(2**num_players), num_players=num_players)
    weights = [
        factorial(size) * factorial(num_players - size - 1) / factorial(num_players)
        for size in range(num_players)
    ]
    return [
        sum(
            weights[members.bit_count()] * (worth[members | 1 << player] - worth[members])
            for members in worth
            if not members >> player & 1
        )
        for player in range(num_players)
    ]


def owen_values(game: Game, tree: Tree) -> list[float]:
    """Return the exact Owen value of each player under a binary tree of groups.

    The value is a player's mean marginal contribution over all orders of the players in which every group of
    the tree stands together: 2^(n−1) orders, all equally likely (Owen 1977, nested as in Winter 1989). The
    leaves of the tree are the players 0 to n − 1.

    Raises:
        ConfigError: there are more than `MAX_PLAYERS` players, or the leaves are not 0 to n − 1.
    """
    players = sorted(_leaves(tree))
    check_size(len(players))
    if players != list(range(len(players))):
        raise ConfigError(f"the leaves of the tree must be 0 to {len(players) - 1}, once each, got {players}")
    orders = list(_orders(tree))
    needed = {members for order in orders for members in _prefixes(order)}
    worth = _worths(game, sorted(needed), num_players=len(players))
    values = [0.0] * len(players)
    for order in orders:
        before = 0
        for player, members in zip(order, _prefixes(order)[1:], strict=True):
            values[player] += (worth[members] - worth[before]) / len(orders)
            before = members
    return values


def tree_from_linkage(linkage: Sequence[Sequence[float]]) -> Tree:
    """Return the tree of a scipy linkage matrix: row k joins two groups into group k + 1 + len(linkage)."""
    groups: list[Tree] = list(range(len(linkage) + 1))
    for row in linkage:
        groups.append((groups[int(row[0])], groups[int(row[1])]))
    return groups[-1]


def check_size(num_players: int) -> None:
    """Refuse a game whose coalitions are too many to list.

    Raises:
        ConfigError: there are more than `MAX_PLAYERS` players.
    """
    if num_players > MAX_PLAYERS:
        raise ConfigError(
            f"{num_players} players are too many to enumerate, at most {MAX_PLAYERS}; take larger leaves,"
            " such as sentences, or an estimate"
        )


def _worths(game: Game, coalitions: Sequence[int], *, num_players: int) -> Mapping[int, float]:
    """Return the worth of each coalition, given and keyed as an integer whose bit i is player i."""
    worth = game(
        [tuple(bool(members >> player & 1) for player in range(num_players)) for members in coalitions]
    )
    return dict(zip(coalitions, worth, strict=True))


def _leaves(tree: Tree) -> Iterator[int]:
    if isinstance(tree, int):
        yield tree
    else:
        for group in tree:
            yield from _leaves(group)


def _orders(tree: Tree) -> Iterator[tuple[int, ...]]:
    if isinstance(tree, int):
        yield (tree,)
        return
    for left in _orders(tree[0]):
        for right in _orders(tree[1]):
            yield left + right
            yield right + left


def _prefixes(order: Sequence[int]) -> list[int]:
    """Return the coalitions that grow along an order, from the empty one to all."""
    members = [0]
    for player in order:
        members.append(members[-1] | 1 << player)
    return members
