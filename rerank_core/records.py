"""The nouns: frozen records that every other module speaks in."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

Qrels = Mapping[str, Mapping[str, int]]
"""`qrels[query_id][doc_id] -> grade`; a pair that is absent is unjudged and counts as grade 0."""

Split = Literal["train", "dev", "test"]
TextField = Literal["title", "text", "query"]


@dataclass(frozen=True, slots=True)
class Query:
    """What we rank for."""

    query_id: str
    text: str


@dataclass(frozen=True, slots=True)
class Document:
    """A thing that can be ranked."""

    doc_id: str
    text: str
    title: str = ""
    url: str = ""

    @property
    def content(self) -> str:
        """What a scorer reads: the title, a line break, the text; the text alone where there is no title."""
        return f"{self.title}\n{self.text}" if self.title else self.text


@dataclass(frozen=True, slots=True)
class Candidate:
    """A document in one query's first-stage list."""

    document: Document
    first_stage_rank: int  # from 1
    first_stage_score: float


@dataclass(frozen=True, slots=True)
class Ranking:
    """One query's exact permutation of its candidates, best first; `scores[i]` belongs to `doc_ids[i]`."""

    query_id: str
    doc_ids: tuple[str, ...]
    scores: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Run:
    """Rankings of many queries, with a name; `rankings` is keyed by query_id."""

    name: str
    rankings: Mapping[str, Ranking]


@dataclass(frozen=True, slots=True)
class GradedCandidate:
    """One pointwise training row: a candidate of a query with its grade (0 when unjudged)."""

    query_id: str
    doc_id: str
    first_stage_rank: int
    grade: int


@dataclass(frozen=True, slots=True)
class PreferencePair:
    """For one query, the chosen document beats the rejected one; `chosen_grade > rejected_grade`."""

    query_id: str
    chosen_id: str
    rejected_id: str
    chosen_grade: int
    rejected_grade: int


@dataclass(frozen=True, slots=True)
class Unit:
    """What has a value: a word, or a longer part, at characters `start` to `end` of its field."""

    text: str
    start: int
    end: int
    field: TextField = "text"


@dataclass(frozen=True, slots=True)
class Attribution:
    """A number per unit: `base_value + sum(values) + residual == score`, in logits."""

    query_id: str
    doc_id: str
    score: float
    base_value: float
    units: tuple[Unit, ...]
    values: tuple[float, ...]
    method: str
    num_evals: int
    residual: float
    seed: int
    is_truncated: bool = False  # only the part of the document (or query) that the scorer reads has units
    error: float | None = None  # estimated bound on ‖values − exact values‖ over leaves; None where unknown


@dataclass(frozen=True, slots=True)
class Calibration:
    """From a score to a share of the highest grade, `σ(slope · score + intercept)`; it keeps every order.

    Raises:
        ValueError: the slope is not positive, or a number is not finite.
    """

    slope: float
    intercept: float

    def __post_init__(self) -> None:
        if not (self.slope > 0 and math.isfinite(self.slope) and math.isfinite(self.intercept)):
            raise ValueError(
                f"a calibration needs a finite slope above 0 and a finite intercept, got {self.slope} and"
                f" {self.intercept}"
            )

    def probabilities(self, scores: Sequence[float]) -> list[float]:
        """Return what each score promises, from 0 to 1, in the order of `scores`."""
        return [_sigmoid(self.slope * score + self.intercept) for score in scores]


@dataclass(frozen=True, slots=True)
class EvidenceWord:
    """A word that an explanation may cite, with the sum of its values over all its places."""

    text: str
    value: float
    share: float  # its absolute value divided by the sum of those of all words of the document: 0 to 1
    places: tuple[Unit, ...] = ()  # where the document has it


@dataclass(frozen=True, slots=True)
class Contrast:
    """Another document of the same query, placed lower, with the words that made its own score."""

    document: Document
    rank: int
    margin: float  # in logits: the higher document's score minus this one's
    words: tuple[EvidenceWord, ...]


@dataclass(frozen=True, slots=True)
class Evidence:
    """The attributed words that an explanation may cite, largest absolute value first.

    With a contrast, the question is why the document stands above the other one.
    """

    words: tuple[EvidenceWord, ...]
    contrast: Contrast | None = None


@dataclass(frozen=True, slots=True)
class Explanation:
    """Text for a person: why the document was placed where it is."""

    query_id: str
    doc_id: str
    text: str
    cited: tuple[str, ...]
    effects: tuple[str, ...]  # what the text says that each cited word did; empty where it says nothing
    grounded: bool
    problems: tuple[str, ...]
    with_attribution: bool
    fallback: bool  # the generator's last text failed the grounding check; `text` is the template sentence
    prompt_tokens: int  # over all attempts, as are the generated ones
    generated_tokens: int
    generator: str
    template: str  # of the prompt: what was asked
    num_attempts: int  # texts that the generator wrote: a refused one is written anew once
    asked_digest: str  # of all that the text was to tell: query, document, rank, evidence and template


@dataclass(frozen=True, slots=True)
class Generation:
    """What a text generator returned for one prompt."""

    text: str
    prompt_tokens: int
    generated_tokens: int


@dataclass(frozen=True, slots=True)
class Collection:
    """Documents, queries and judgements as loaded; a part that the collection does not ship is None."""

    name: str
    documents: Mapping[str, Document]
    queries: Mapping[str, Query]
    qrels: Qrels
    pool: Mapping[str, tuple[str, ...]] | None = None  # query_id -> its judged pool
    splits: Mapping[str, Split] | None = None  # query_id -> split
    relevant_from: int = 1  # the lowest grade that MRR and MAP count as relevant
    num_quarantined: int = 0
    quarantined: tuple[Mapping[str, str], ...] = field(default=())  # rows left out: file, row, reason


def _sigmoid(logit: float) -> float:
    """Return `1 / (1 + exp(−logit))` without overflow."""
    shrunk = math.exp(-abs(logit))
    return 1 / (1 + shrunk) if logit >= 0 else shrunk / (1 + shrunk)
