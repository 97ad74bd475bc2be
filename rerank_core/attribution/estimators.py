"""Ways to attribute: which game, which values, how many evaluations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol

import numpy as np

from rerank_core.attribution.contract import check_evals
from rerank_core.attribution.partition_search import partition_search
from rerank_core.attribution.pruned_search import pruned_search
from rerank_core.attribution.search import Search, SearchResult
from rerank_core.attribution.shapley import check_size, shapley_values
from rerank_core.attribution.token_tree import token_tree
from rerank_core.errors import ConfigError

if TYPE_CHECKING:
    from rerank_core.attribution.masking import MaskedText


COALITIONS_AT_ONCE = 256
"""Coalitions that an enumeration asks for in one round."""


class Estimator(Protocol):
    """A way to give every player of a masked text a value."""

    name: ClassVar[str]
    """What is stored with an attribution as its method."""
    has_special_players: ClassVar[bool]
    """Whether special tokens around a text are players too, which nothing switches off."""

    def search(self, masked: MaskedText, *, seed: int) -> Search:
        """Return a search over a text of at least one player that can be off."""
        ...


@dataclass(frozen=True, slots=True)
class PrunedOwen:
    """Owen values, with evaluations where contexts disagree: see `pruned_search`."""

    max_evals: int
    max_error: float = 0.0  # the search may end where the bound on its error is this low
    name: ClassVar[str] = "pruned"
    has_special_players: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_evals(self.max_evals)
        if not self.max_error >= 0:
            raise ConfigError(f"max_error must not be negative, got {self.max_error}")

    def search(self, masked: MaskedText, *, seed: int) -> Search:
        """Return a search; the seed draws the contexts."""
        return pruned_search(
            token_tree(masked.segments()),
            max_evals=self.max_evals,
            max_error=self.max_error,
            rng=np.random.default_rng(seed),
        )


@dataclass(frozen=True, slots=True)
class PartitionOwen:
    """Owen values, coalition for coalition as shap's Partition explainer: see `partition_search`."""

    max_evals: int
    name: ClassVar[str] = "partition"
    has_special_players: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_evals(self.max_evals)

    def search(self, masked: MaskedText, *, seed: int) -> Search:
        """Return a search; the seed, in [0, 2**32), breaks ties in its order."""
        return partition_search(
            token_tree(masked.segments()),
            fixed=masked.fixed,
            max_evals=self.max_evals,
            rng=np.random.RandomState(seed),
        )


@dataclass(frozen=True, slots=True)
class ExactShapley:
    """Shapley values by their definition, for texts of at most `MAX_PLAYERS` players."""

    name: ClassVar[str] = "exact"
    has_special_players: ClassVar[bool] = False

    def search(self, masked: MaskedText, *, seed: int) -> Search:
        """Return a search; there is nothing to draw.

        Raises:
            ConfigError: the text has too many players.
        """
        del seed
        num_players = len(masked.spans)
        check_size(num_players)
        return _enumeration(num_players)


def _enumeration(num_players: int) -> Search:
    worths: list[float] = []
    for start in range(0, 2**num_players, COALITIONS_AT_ONCE):
        worths += yield list(range(start, min(start + COALITIONS_AT_ONCE, 2**num_players)))
    values = shapley_values(lambda _: worths, num_players)
    return SearchResult(worths[0], tuple(values), len(worths), 0.0)
