"""What one stage of training starts from and learns from."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch.distributed

from jobs.manifest import file_digest
from jobs.ray_session import device_here
from jobs.training_config import DpoConfig, RewardModelConfig
from rerank_core.data.candidates import graded
from rerank_core.data.splits import members
from rerank_core.data.warm_up import title_examples
from rerank_core.errors import DataError
from rerank_core.formats import (
    read_candidates,
    read_documents,
    read_pairs,
    read_pointwise,
    read_qrels,
    read_queries,
    read_split,
    write_table,
)
from rerank_core.models.artefact import is_artefact, load_artefact
from rerank_core.models.build import build_encoder, build_model, load_tokenizer
from rerank_core.models.scorer import HeadKind, LanguageModelScorer, PairEncoder
from rerank_core.retrieval.bm25 import Bm25Retriever
from rerank_core.training.batching import (
    RankingExample,
    Texts,
    contrastive_example,
    num_truncated,
    ranking_examples,
    with_reference,
    with_rewards,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from jobs.training_config import Objective, StageConfig
    from rerank_core.models.memory import ZeroStage
    from rerank_core.records import Document, GradedCandidate, Query

FROZEN_SCORES = pa.schema([("query_id", pa.string()), ("doc_id", pa.string()), ("score", pa.float64())])


@dataclass(frozen=True, slots=True, kw_only=True)
class StageTask:
    """One stage, as it is sent to the workers."""

    name: Objective
    settings: StageConfig
    prepared: str
    fold: int
    start: str  # an artefact, or a model folder
    reward_model: str | None  # the artefact whose scores are PPO's reward
    artefact: str  # where the result goes
    log: str  # JSONL that worker 0 appends to
    cache: str  # folder of frozen scores, shared by the stages of a job
    head: HeadKind
    num_layers: int | None
    max_length: int
    max_tokens_per_batch: int
    patience: int
    bf16: bool
    gradient_checkpointing: bool
    lora_rank: int
    keeps_adapter: bool
    zero_stage: ZeroStage
    offload_optimizer: bool
    seed: int
    provenance: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Worker:
    """This process's place among the workers of a stage."""

    rank: int
    world: int


@dataclass(frozen=True, slots=True)
class TrainingData:
    """The rows of one fold, with their texts."""

    texts: Texts
    prepared: Path
    fold: int

    @property
    def folder(self) -> Path:
        """The folder of the fold."""
        return self.prepared / f"fold-{self.fold}"

    def rows(self) -> list[GradedCandidate]:
        """Return the graded training candidates, query by query."""
        return read_pointwise(self.rows_path())

    def rows_path(self) -> Path:
        """Return the file of the training rows."""
        return self.folder / "train" / "pointwise.parquet"

    def held_out_rows(self) -> list[GradedCandidate]:
        """Return the graded candidates of the dev queries, query by query."""
        return held_out_rows(self.prepared, fold=self.fold, documents=self.texts.documents)


def held_out_rows(prepared: Path, *, fold: int, documents: Mapping[str, Document]) -> list[GradedCandidate]:
    """Return all candidates of a fold's dev queries with their grades, query by query.

    They are the lists that a scorer will have to rank, longer than the training rows of a query.
    """
    candidates = read_candidates(prepared / "candidates.parquet", documents)
    qrels = read_qrels(prepared / "qrels.parquet")
    dev = members(read_split(prepared / f"fold-{fold}" / "split.parquet"))["dev"]
    return [row for q in dev for row in graded(q, candidates.get(q, ()), qrels.get(q, {}))]


def read_training_data(task: StageTask) -> TrainingData:
    """Return the texts of a task's prepared folder, and where the rows of its fold are."""
    prepared = Path(task.prepared)
    texts = Texts(read_queries(prepared / "queries.parquet"), read_documents(prepared / "corpus.parquet"))
    return TrainingData(texts, prepared, task.fold)


def start_scorer(task: StageTask) -> LanguageModelScorer:
    """Return the scorer that a stage starts from: an artefact's, or an untrained one on a language model."""
    start = Path(task.start)
    if is_artefact(start):
        return load_artefact(start)
    model = build_model(start, head=task.head, num_layers=task.num_layers, seed=task.seed)
    encoder = build_encoder(load_tokenizer(start), model.config, head=task.head, max_length=task.max_length)
    return LanguageModelScorer(model, encoder, digest="untrained")


@dataclass(frozen=True, slots=True)
class StageExamples:
    """What a stage learns from, and the dev queries it is watched on."""

    train: list[RankingExample]
    held_out: list[RankingExample]

    @property
    def can_be_watched(self) -> bool:
        """Whether a held-out query has a relevant candidate, so that NDCG says something."""
        return any(max(example.grades) > 0 for example in self.held_out)

    def counts(self) -> dict[str, int]:
        """Return what is worth logging about the examples."""
        return {
            "queries": len(self.train),
            "documents": sum(len(example.documents) for example in self.train),
            "truncated": num_truncated(self.train),
            "held_out_queries": len(self.held_out),
        }


def stage_examples(
    task: StageTask, data: TrainingData, scorer: LanguageModelScorer, *, worker: Worker
) -> StageExamples:
    """Return the examples of a stage; every worker gets the same lists.

    Raises:
        DataError: there is nothing to learn from.
    """
    if task.name == "warmup":
        examples = _title_examples(task, data, scorer.encoder)
    else:
        examples = _graded_examples(data, scorer.encoder)
    if task.name in ("dpo", "ppo"):
        examples = with_reference(examples, _reference_scores(task, data, scorer, examples, worker=worker))
    if learns_from_pairs(task.settings):
        examples = [example for example in examples if example.chosen]
    if task.reward_model is not None:
        judge = load_artefact(Path(task.reward_model), device=device_here())
        examples = with_rewards(examples, frozen_scores(task, data, judge, examples, worker=worker))
    if not examples:
        raise DataError(
            f"{data.folder} holds nothing for the stage {task.name!r}; look at summary.json of the prepared"
            " folder"
        )
    return StageExamples(examples, _held_out_examples(data, scorer.encoder))


def learns_from_pairs(settings: StageConfig) -> bool:
    """Return whether an objective uses nothing of a query but its preference pairs."""
    if isinstance(settings, RewardModelConfig):
        return settings.loss == "bradley_terry"
    return isinstance(settings, DpoConfig)


def _title_examples(task: StageTask, data: TrainingData, encoder: PairEncoder) -> list[RankingExample]:
    documents = [document for _, document in sorted(data.texts.documents.items())]
    found = title_examples(documents, Bm25Retriever(documents), rng=np.random.default_rng(task.seed))
    return [contrastive_example(e.query, e.documents, encoder=encoder) for e in found]


def _graded_examples(data: TrainingData, encoder: PairEncoder) -> list[RankingExample]:
    rows = data.rows()
    max_grade = max((row.grade for row in rows), default=0)
    if max_grade == 0:
        raise DataError(
            f"{data.rows_path()}: no training document has a grade above 0; raise --train-candidates"
        )
    pairs = read_pairs(data.folder / "train" / "pairs.parquet")
    return ranking_examples(rows, pairs, texts=data.texts, encoder=encoder, max_grade=max_grade)


def _held_out_examples(data: TrainingData, encoder: PairEncoder) -> list[RankingExample]:
    """Return the fold's dev queries with all their candidates; training never sees their grades."""
    rows = data.held_out_rows()
    max_grade = max((row.grade for row in [*data.rows(), *rows]), default=0)  # a test grade decides nothing
    return ranking_examples(rows, [], texts=data.texts, encoder=encoder, max_grade=max_grade)


def _reference_scores(
    task: StageTask,
    data: TrainingData,
    scorer: LanguageModelScorer,
    examples: Sequence[RankingExample],
    *,
    worker: Worker,
) -> list[list[float]]:
    if not is_artefact(Path(task.start)):  # an untrained model has no digest to keep its scores by
        scorer.model.to(device_here())
        return _scores_together(scorer, _pairs(data, examples), worker=worker)
    reference = load_artefact(Path(task.start), device=device_here())
    return frozen_scores(task, data, reference, examples, worker=worker)


def frozen_scores(
    task: StageTask,
    data: TrainingData,
    scorer: LanguageModelScorer,
    examples: Sequence[RankingExample],
    *,
    worker: Worker,
) -> list[list[float]]:
    """Return a frozen scorer's scores of every example's documents.

    They are computed once and kept by the digests of the artefact and of the training rows, so that a
    restarted stage, or another one with the same reference, reads them.
    """
    name = f"{scorer.digest[:16]}-{file_digest(data.rows_path())[:16]}.parquet"
    path = Path(task.cache) / name
    kept = [_read_scores(path, examples) if worker.rank == 0 else None]
    torch.distributed.broadcast_object_list(kept, src=0)  # all workers must agree on whether they score
    if kept[0] is not None:
        return kept[0]
    scores = _scores_together(scorer, _pairs(data, examples), worker=worker)
    if worker.rank == 0:
        _write_scores(path, data, examples, scores)
    return scores


def _pairs(data: TrainingData, examples: Sequence[RankingExample]) -> list[list[tuple[Query, Document]]]:
    """Return each example's documents as texts: another scorer may have another tokenizer."""
    rows = _rows_by_query(data)
    queries, documents = data.texts.queries, data.texts.documents
    return [
        [(queries[row.query_id], documents[row.doc_id]) for row in rows[example.query_id]]
        for example in examples
    ]


def _rows_by_query(data: TrainingData) -> dict[str, list[GradedCandidate]]:
    rows: dict[str, list[GradedCandidate]] = {}
    for row in data.rows():
        rows.setdefault(row.query_id, []).append(row)
    return rows


def _scores_together(
    scorer: LanguageModelScorer, lists: Sequence[Sequence[tuple[Query, Document]]], *, worker: Worker
) -> list[list[float]]:
    """Each worker scores its part of the lists; all get all."""
    mine = {place: scorer.score_pairs(lists[place]) for place in range(worker.rank, len(lists), worker.world)}
    parts: list[dict[int, list[float]]] = [{} for _ in range(worker.world)]
    torch.distributed.all_gather_object(parts, mine)
    together = {place: scores for part in parts for place, scores in part.items()}
    return [together[place] for place in range(len(lists))]


def _read_scores(path: Path, examples: Sequence[RankingExample]) -> list[list[float]] | None:
    """Return the kept scores, None where they are missing or lack a query (a stage may leave queries out)."""
    if not path.exists():
        return None
    rows = pq.read_table(path, schema=FROZEN_SCORES).to_pylist()
    kept = {query_id: [row["score"] for row in own] for query_id, own in groupby(rows, key=_query_id)}
    if any(len(kept.get(e.query_id, ())) != len(e.documents) for e in examples):
        return None
    return [kept[example.query_id] for example in examples]


def _query_id(row: Mapping[str, Any]) -> str:
    return str(row["query_id"])


def _write_scores(
    path: Path, data: TrainingData, examples: Sequence[RankingExample], scores: Sequence[Sequence[float]]
) -> None:
    rows = _rows_by_query(data)
    table = [
        {"query_id": example.query_id, "doc_id": row.doc_id, "score": score}
        for example, own in zip(examples, scores, strict=True)
        for row, score in zip(rows[example.query_id], own, strict=True)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_table(pa.Table.from_pylist(table, schema=FROZEN_SCORES), path)


def golden_pairs(data: TrainingData, *, seed: int) -> list[tuple[Query, Document]]:
    """Return training pairs for the artefact's self-check, drawn by the seed."""
    rows = data.rows()
    order = np.random.default_rng(seed).permutation(len(rows))
    queries, documents = data.texts.queries, data.texts.documents
    return [(queries[rows[i].query_id], documents[rows[i].doc_id]) for i in order]
