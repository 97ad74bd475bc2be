"""How far two attributions of one text agree: of two seeds, or before and after a change to the text."""

from __future__ import annotations

import math
from statistics import fmean
from typing import TYPE_CHECKING

from rerank_core.errors import DataError
from rerank_core.evaluation.attribution_error import attribution_error
from rerank_core.evaluation.faithfulness import NUM_RANDOM
from rerank_core.evaluation.text_changes import INSERTED

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np

AGREEMENT = ("kendall_tau", "top_5", "top_10", "relative_l2")
"""Order of all words (τ-b, 1 is equal), share of the top words by size that are the same, and the length of
the difference as a share of the first values' length (0 is equal)."""


def agreement(values: Sequence[float], reference: Sequence[float]) -> dict[str, float]:
    """Return how far the values of some words agree with reference values of the same words.

    A text of fewer than five or ten words has all of them at its top: it agrees there whatever its values.

    Raises:
        DataError: the numbers of values differ, or there is none.
    """
    found = attribution_error(values, reference, bound=None)
    return {name: getattr(found, name) for name in AGREEMENT}


def lexical_agreement(weights: Sequence[float], reference: Sequence[float]) -> dict[str, float]:
    """Return how far lexical weights agree with values, after they are brought to the values' length.

    Raises:
        DataError: the numbers differ, there is none, or no word has a weight.
    """
    length = math.hypot(*weights)
    if not length:
        raise DataError("lexical weights that are all 0 order no words")
    scale = math.hypot(*reference) / length
    return agreement([scale * weight for weight in weights], reference)


def random_agreement(reference: Sequence[float], rng: np.random.Generator) -> dict[str, float]:
    """Return how far values agree with themselves in random places, the mean of `NUM_RANDOM` shuffles."""
    found = [agreement([float(v) for v in rng.permutation(reference)], reference) for _ in range(NUM_RANDOM)]
    return {name: fmean(one[name] for one in found) for name in AGREEMENT}


def owned_values(values: Sequence[float], owners: Sequence[int], *, num_words: int) -> list[float]:
    """Return the sum of the values of the words that stand for each word of the text before its change."""
    sums = [0.0] * num_words
    for value, owner in zip(values, owners, strict=True):
        if owner != INSERTED:
            sums[owner] += value
    return sums


def inserted_shares(values: Sequence[float], owners: Sequence[int]) -> Mapping[str, float]:
    """Return what inserted words get of the sum of absolute values, and their share of the words.

    The second is what the first would be, on average, if the values stood in random places. A model whose
    values are all 0 gives the inserted words their share of the words.

    Raises:
        DataError: there is no word.
    """
    if not owners:
        raise DataError("a text without words has no inserted ones")
    inserted = [value for value, owner in zip(values, owners, strict=True) if owner == INSERTED]
    share = len(inserted) / len(owners)
    total = math.fsum(map(abs, values))
    return {
        "inserted_mass": math.fsum(map(abs, inserted)) / total if total else share,
        "inserted_words": share,
    }
