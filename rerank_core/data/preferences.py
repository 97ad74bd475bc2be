"""Which document beats which, for one query."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rerank_core.records import GradedCandidate, PreferencePair

if TYPE_CHECKING:
    from collections.abc import Sequence


def preference_pairs(
    rows: Sequence[GradedCandidate], *, top: int, bottom: int
) -> tuple[list[PreferencePair], int]:
    """Return the pairs of one query's best `top` against its worst `bottom`, and how many were dropped.

    Best and worst by grade; equal grades by first-stage rank, the better rank counting as better. A list
    shorter than `top + bottom` is halved instead (its middle document, if any, is left out). Pairs of equal
    grade say nothing: they are dropped and counted. Order: by the chosen document, best first.
    """
    ordered = sorted(rows, key=lambda row: (-row.grade, row.first_stage_rank))
    half = len(ordered) // 2
    if len(ordered) < top + bottom:
        top, bottom = min(top, half), min(bottom, half)
    chosen, rejected = ordered[:top], ordered[len(ordered) - bottom :]
    pairs = [
        PreferencePair(better.query_id, better.doc_id, worse.doc_id, better.grade, worse.grade)
        for better in chosen
        for worse in rejected
        if better.grade > worse.grade
    ]
    return pairs, len(chosen) * len(rejected) - len(pairs)
