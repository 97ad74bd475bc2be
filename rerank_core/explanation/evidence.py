"""The words of an attribution that an explanation may cite."""

from __future__ import annotations

from rerank_core.records import Attribution, Evidence, EvidenceWord
from rerank_core.text import normalise, words


def select_evidence(attribution: Attribution, *, k: int = 10) -> Evidence:
    """Return the `k` words with the largest absolute values, sign kept, largest first; ties by first place.

    Places of the same word (equal under `text.normalise`) are merged by summing their values, and shown as
    first written. Stop words stay: what the scorer reacted to is evidence, also where it is "the". Units
    without a letter or digit and words whose values sum to zero are left out: fewer than `k` may come back.
    """
    shown: dict[str, str] = {}
    total: dict[str, float] = {}
    for unit, value in zip(attribution.units, attribution.values, strict=True):
        word = normalise(unit.text)
        if not words(word):
            continue
        shown.setdefault(word, unit.text)
        total[word] = total.get(word, 0.0) + value
    # `total` keeps the order of first places, and sorting is stable: that is the tie rule.
    largest = sorted((word for word in total if total[word] != 0.0), key=lambda word: -abs(total[word]))[:k]
    return Evidence(tuple(EvidenceWord(shown[word], total[word]) for word in largest))
