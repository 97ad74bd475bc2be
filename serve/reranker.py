"""The scorer as a service: the documents of many requests in batches through one model."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Protocol

from serve.batching import TokenBatcher
from serve.priority import unhurried

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from rerank_core.models.scorer import LanguageModelScorer, LongDocuments
    from rerank_core.records import Calibration, Document, Query


@dataclass(frozen=True, slots=True)
class ScoringTask:
    """Documents of one query, and the tokens that scoring them takes at most."""

    query: Query
    documents: tuple[Document, ...]
    num_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCard:
    """What the served artefact is, and how it reads."""

    digest: str
    tokenizer_digest: str  # SHA-256 of `tokenizer.json`
    max_length: int  # tokens of the whole sequence
    max_query_length: int
    long_documents: LongDocuments
    calibration: Calibration | None


@dataclass(frozen=True, slots=True)
class Scored:
    """A task's scores as logits, in the order of its documents, and the model that they are of."""

    scores: tuple[float, ...]
    card: ModelCard


class PairScorer(Protocol):
    """What a reranker asks of a scorer: scores of several queries' documents in one call."""

    def score_pairs(self, pairs: Sequence[tuple[Query, Document]]) -> list[float]:
        """Return one score per pair, in the order of `pairs`, each depending on its own pair alone."""
        ...


class Reranker:
    """Scores what many requests ask for, in batches of `max_tokens_per_batch`."""

    def __init__(self, scorer: PairScorer, card: ModelCard, *, max_tokens_per_batch: int) -> None:
        self._scorer = scorer
        self._card = card
        self._batcher = TokenBatcher(self._score_batch, max_tokens=max_tokens_per_batch)

    async def describe(self) -> ModelCard:
        """Return what is served; whoever is answered knows that the golden pairs were scored again."""
        return self._card

    async def score(self, task: ScoringTask) -> Scored:
        """Return the scores of a task's documents."""
        return await self._batcher.submit(task, num_tokens=task.num_tokens)

    def _score_batch(self, tasks: Sequence[ScoringTask]) -> list[Scored]:
        pairs = [(task.query, document) for task in tasks for document in task.documents]
        scores = iter(self._scorer.score_pairs(pairs))
        return [Scored(tuple(islice(scores, len(task.documents))), self._card) for task in tasks]


def tokenizer_digest(artefact: Path) -> str:
    """Return the SHA-256 of an artefact's `tokenizer.json`: texts are cut alike where it is the same."""
    with (artefact / "tokenizer.json").open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def load_served(
    artefact: Path, *, long_documents: LongDocuments, max_tokens_per_batch: int
) -> tuple[LanguageModelScorer, ModelCard]:
    """Return the scorer of an artefact, on this process's GPU where it has one, and what it is.

    Raises:
        ArtefactError: the artefact is broken or altered, or a golden pair has another score than recorded.
    """
    unhurried(_import_models)  # beside other replicas, which answer meanwhile
    import torch  # takes seconds to load, which whoever only asks a reranker need not wait for

    from rerank_core.models.artefact import load_artefact, read_spec

    scorer = load_artefact(
        artefact,
        device="cuda" if torch.cuda.is_available() else "cpu",
        max_tokens_per_batch=max_tokens_per_batch,
        long_documents=long_documents,
    )
    card = ModelCard(
        digest=scorer.digest,
        tokenizer_digest=tokenizer_digest(artefact),
        max_length=scorer.max_length,
        max_query_length=scorer.encoder.format.max_query_length,
        long_documents=long_documents,
        calibration=read_spec(artefact).calibration,
    )
    return scorer, card


def _import_models() -> None:
    """Import what `load_artefact` needs, most of it by the time a model is built: two thirds of a start."""
    import transformers.generation.utils
    import transformers.modeling_utils  # noqa: F401

    import rerank_core.models.artefact  # noqa: F401
