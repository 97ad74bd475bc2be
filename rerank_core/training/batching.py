"""The unit of training: a query with all its documents, scored once."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from rerank_core.models.scorer import EncodedPair, PairEncoder, pair_batches

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rerank_core.records import Document, GradedCandidate, PreferencePair, Query


@dataclass(frozen=True, slots=True)
class Texts:
    """What the ids of training rows stand for."""

    queries: Mapping[str, Query]
    documents: Mapping[str, Document]


@dataclass(frozen=True, slots=True)
class RankingExample:
    """One query's documents as tokens; `chosen[i]` and `rejected[i]` index the documents of pair i."""

    query_id: str
    documents: tuple[EncodedPair, ...]
    grades: tuple[int, ...]
    max_grade: int  # the largest grade of the collection's training rows
    chosen: tuple[int, ...]
    rejected: tuple[int, ...]
    reference_scores: tuple[float, ...] = field(default=())  # the frozen reference's
    reward_scores: tuple[float, ...] = field(default=())  # the frozen reward model's


class RankingExamples(Dataset[RankingExample]):
    """Examples as a torch data set."""

    def __init__(self, examples: Sequence[RankingExample]) -> None:
        self._examples = tuple(examples)

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> RankingExample:
        return self._examples[index]


def ranking_examples(
    rows: Sequence[GradedCandidate],
    pairs: Sequence[PreferencePair],
    *,
    texts: Texts,
    encoder: PairEncoder,
    max_grade: int,
) -> list[RankingExample]:
    """Return one example per query of `rows`, in the order in which the queries first appear."""
    rows_by_query: dict[str, list[GradedCandidate]] = {}
    for row in rows:
        rows_by_query.setdefault(row.query_id, []).append(row)
    pairs_by_query: dict[str, list[PreferencePair]] = {}
    for pair in pairs:
        pairs_by_query.setdefault(pair.query_id, []).append(pair)
    examples = []
    for query_id, listed in rows_by_query.items():
        query = texts.queries[query_id]
        index = {row.doc_id: place for place, row in enumerate(listed)}
        own = pairs_by_query.get(query_id, [])
        examples.append(
            RankingExample(
                query_id=query_id,
                documents=tuple(encoder.encode(query, texts.documents[row.doc_id]) for row in listed),
                grades=tuple(row.grade for row in listed),
                max_grade=max_grade,
                chosen=tuple(index[pair.chosen_id] for pair in own),
                rejected=tuple(index[pair.rejected_id] for pair in own),
            )
        )
    return examples


def contrastive_example(
    query: Query, documents: Sequence[Document], *, encoder: PairEncoder
) -> RankingExample:
    """Return an example whose first document is the relevant one and all others are not."""
    return RankingExample(
        query_id=query.query_id,
        documents=tuple(encoder.encode(query, document) for document in documents),
        grades=(1,) + (0,) * (len(documents) - 1),
        max_grade=1,
        chosen=(0,) * (len(documents) - 1),
        rejected=tuple(range(1, len(documents))),
    )


def with_reference(
    examples: Sequence[RankingExample], scores: Sequence[Sequence[float]]
) -> list[RankingExample]:
    """Return the examples with the frozen reference's scores; `scores[i]` belongs to `examples[i]`."""
    return [
        replace(example, reference_scores=tuple(own)) for example, own in zip(examples, scores, strict=True)
    ]


def with_rewards(
    examples: Sequence[RankingExample], scores: Sequence[Sequence[float]]
) -> list[RankingExample]:
    """Return the examples with the frozen reward model's scores; `scores[i]` belongs to `examples[i]`."""
    return [replace(example, reward_scores=tuple(own)) for example, own in zip(examples, scores, strict=True)]


def num_truncated(examples: Sequence[RankingExample]) -> int:
    """Return how many documents of the examples the model reads without their end, or without the query's."""
    return sum(document.is_truncated for example in examples for document in example.documents)


@dataclass(frozen=True, slots=True, kw_only=True)
class RankingCollator:
    """Puts examples into one call of a `ListModel`: every document of every query, once."""

    pad_id: int
    can_pack: bool  # the model's own
    max_tokens: int  # padded tokens whose activations are held at a time

    def __call__(self, examples: Sequence[RankingExample]) -> dict[str, Any]:
        """Return the model's inputs, and `examples`: the queries' parts of the scores, in order."""
        documents = [document for example in examples for document in example.documents]
        made = list(
            pair_batches(documents, can_pack=self.can_pack, max_tokens=self.max_tokens, pad_id=self.pad_id)
        )
        order = torch.tensor([index for indices, _ in made for index in indices])
        return {
            "batches": tuple(inputs for _, inputs in made),
            "places": order.argsort(),
            "examples": tuple(examples),
        }


def split_scores(scores: Tensor, examples: Sequence[RankingExample]) -> list[Tensor]:
    """Return each query's part of a batch's scores, (documents,) each."""
    return list(torch.split(scores, [len(example.documents) for example in examples]))
