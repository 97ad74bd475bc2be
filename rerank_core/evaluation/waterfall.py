"""From a start to a total in steps: how words add up to a score, or to the margin between two."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from rerank_core.errors import DataError
from rerank_core.explanation.evidence import select_evidence

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rerank_core.records import Attribution

NUM_WORDS: Final = 10
NEGLIGIBLE: Final = 0.0005  # logits: what three decimals show as 0.000

StepKind = Literal["word", "rest", "residual"]


@dataclass(frozen=True, slots=True)
class Step:
    """One bar of a waterfall: it begins at `start`, and adds `value`; in logits."""

    label: str
    value: float
    start: float
    kind: StepKind

    @property
    def end(self) -> float:
        """Where the bar ends, and the next one begins."""
        return self.start + self.value


@dataclass(frozen=True, slots=True)
class Waterfall:
    """Steps from a start to a total, each beginning where the one before it ends.

    The last one ends at the total, up to 0.0005 logits: a residual below that has no step of its own.
    """

    start_label: str
    start: float
    steps: tuple[Step, ...]
    total: float
    total_label: str

    @property
    def span(self) -> tuple[float, float]:
        """The lowest and the highest place of any bar, at least a little apart."""
        places = [self.start, self.total, *(step.end for step in self.steps)]
        low, high = min(places), max(places)
        return (low, high) if high - low >= NEGLIGIBLE else (low - 0.5, high + 0.5)


def score_waterfall(attribution: Attribution, *, num_words: int = NUM_WORDS) -> Waterfall:
    """Return the steps from the base value to the score: the largest words first, then all others as one.

    The places of one word count as one, with the sum of their values; words that sum to zero have no step.
    """
    return _waterfall(
        ("base value", attribution.base_value),
        _word_sums(attribution),
        total=("score", attribution.score),
        num_words=num_words,
    )


def margin_waterfall(first: Attribution, second: Attribution, *, num_words: int = NUM_WORDS) -> Waterfall:
    """Return the steps from the difference of two base values to that of the scores, first minus second.

    A score is a sum, so a word of the first document adds its value to the margin, and a word of the second
    takes its value away; labels end in (A) for the first document and in (B) for the second.

    Raises:
        DataError: the attributions are of different queries.
    """
    if first.query_id != second.query_id:
        raise DataError(
            f"documents {first.doc_id!r} and {second.doc_id!r} were scored for different queries, "
            f"{first.query_id!r} and {second.query_id!r}; compare two documents of one query"
        )
    return _waterfall(
        ("base values, A − B", first.base_value - second.base_value),
        [(f"{word} (A)", value) for word, value in _word_sums(first)]
        + [(f"{word} (B)", -value) for word, value in _word_sums(second)],
        total=("margin, A − B", first.score - second.score),
        num_words=num_words,
    )


def _word_sums(attribution: Attribution) -> list[tuple[str, float]]:
    evidence = select_evidence(attribution, k=len(attribution.units))
    return [(word.text, word.value) for word in evidence.words]


def _waterfall(
    start: tuple[str, float],
    words: Sequence[tuple[str, float]],
    *,
    total: tuple[str, float],
    num_words: int,
) -> Waterfall:
    """Chain the largest words, the others as one step, and what is left to the total; ties as given."""
    ordered = sorted(words, key=lambda word: -abs(word[1]))
    moves: list[tuple[str, float, StepKind]] = [
        (label, value, "word") for label, value in ordered[:num_words]
    ]
    others = [value for _, value in ordered[num_words:]]
    if others:
        moves.append((f"{len(others)} other word{'s' * (len(others) > 1)}", math.fsum(others), "rest"))
    steps = _chained(start[1], moves)
    place = steps[-1].end if steps else start[1]
    if abs(total[1] - place) >= NEGLIGIBLE:
        steps.append(Step("residual", total[1] - place, place, "residual"))
    return Waterfall(
        start_label=start[0], start=start[1], steps=tuple(steps), total=total[1], total_label=total[0]
    )


def _chained(start: float, moves: Sequence[tuple[str, float, StepKind]]) -> list[Step]:
    """Return a step per move, each beginning where the one before it ends."""
    steps: list[Step] = []
    for label, value, kind in moves:
        steps.append(Step(label, value, steps[-1].end if steps else start, kind))
    return steps
