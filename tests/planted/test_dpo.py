"""On a world whose rule word overlap cannot see, DPO learns the rule and BM25 cannot."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

from rerank_core.data.candidates import graded
from rerank_core.data.preferences import preference_pairs
from rerank_core.evaluation.baselines import first_stage_rankings
from rerank_core.evaluation.ranking_metrics import NDCG_BURGES, evaluate, metrics
from rerank_core.evaluation.significance import paired_interval
from rerank_core.models.build import build_encoder, build_model, load_tokenizer
from rerank_core.models.scorer import LanguageModelScorer
from rerank_core.models.tiny import save_tiny_encoder
from rerank_core.ranking.pointwise import rerank
from rerank_core.records import Candidate, Collection
from rerank_core.retrieval.bm25 import Bm25Retriever
from rerank_core.testing import planted_world
from rerank_core.training.batching import (
    RankingCollator,
    RankingExample,
    Texts,
    ranking_examples,
    with_reference,
)
from rerank_core.training.steps import batch_loss, dpo_query_loss

NUM_QUERIES, NUM_TRAIN, NUM_EPOCHS = 100, 70, 6


@pytest.fixture(scope="module")
def world() -> Collection:
    return planted_world(NUM_QUERIES, 10 * NUM_QUERIES, seed=3)


@pytest.fixture(scope="module")
def candidates(world: Collection) -> dict[str, list[Candidate]]:
    bm25 = Bm25Retriever(list(world.documents.values()))
    assert world.pool is not None
    return {
        query_id: bm25.order(query, [world.documents[doc_id] for doc_id in world.pool[query_id]])
        for query_id, query in world.queries.items()
    }


def untrained(world: Collection, folder: Path, *, seed: int) -> LanguageModelScorer:
    texts = [d.content for d in world.documents.values()] + [q.text for q in world.queries.values()]
    save_tiny_encoder(folder, texts, seed=seed)
    model = build_model(folder, head="linear", num_layers=None, seed=seed)
    encoder = build_encoder(load_tokenizer(folder), model.config, head="linear", max_length=32)
    return LanguageModelScorer(model, encoder, digest="untrained")


def training_examples(
    world: Collection, candidates: dict[str, list[Candidate]], scorer: LanguageModelScorer
) -> list[RankingExample]:
    rows = [
        row
        for query_id in sorted(world.queries)[:NUM_TRAIN]
        for row in graded(query_id, candidates[query_id], world.qrels[query_id])
    ]
    pairs = [
        pair
        for query_id in sorted(world.queries)[:NUM_TRAIN]
        for pair in preference_pairs([row for row in rows if row.query_id == query_id], top=5, bottom=5)[0]
    ]
    examples = ranking_examples(
        rows, pairs, texts=Texts(world.queries, world.documents), encoder=scorer.encoder, max_grade=9
    )
    return with_reference(examples, [scorer.score_encoded(example.documents) for example in examples])


def train(scorer: LanguageModelScorer, examples: list[RankingExample], *, seed: int) -> list[float]:
    """Take plain AdamW steps over queries; return the losses."""
    optimiser = torch.optim.AdamW(scorer.model.parameters(), lr=2e-3)
    collator = RankingCollator(pad_id=scorer.tokenizer.pad_token_id)
    rng = np.random.default_rng(seed)
    losses = []
    for _ in range(NUM_EPOCHS):
        order = rng.permutation(len(examples))
        for start in range(0, len(examples), 4):
            batch = collator([examples[i] for i in order[start : start + 4]])
            listed = batch.pop("examples")
            loss = batch_loss(scorer.model(**batch), listed, query_loss=dpo_query_loss(beta=0.5))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
    return losses


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_dpo_alone_beats_bm25_on_unseen_queries(
    world: Collection, candidates: dict[str, list[Candidate]], tmp_path: Path, seed: int
) -> None:
    scorer = untrained(world, tmp_path, seed=seed)
    losses = train(scorer, training_examples(world, candidates, scorer), seed=seed)
    unseen = sorted(world.queries)[NUM_TRAIN:]
    trained = {q: rerank(scorer, world.queries[q], candidates[q]) for q in unseen}
    first_stage = first_stage_rankings({q: candidates[q] for q in unseen})
    measured = metrics(relevant_from=world.relevant_from)
    ours, bm25 = (evaluate(r, world.qrels, measured=measured)[NDCG_BURGES] for r in (trained, first_stage))
    gain = paired_interval(ours, bm25, num_samples=2000, seed=0)
    assert losses[0] == pytest.approx(np.log(2), abs=1e-6)
    assert gain.low > 0.05, f"seed {seed}: {gain}"
    assert np.mean([top_five_share(r.doc_ids, world.qrels[q]) for q, r in trained.items()]) > 0.95


def top_five_share(doc_ids: tuple[str, ...], grades: Mapping[str, int]) -> float:
    """Return the share of the five best documents among the first five; pairs order nothing inside."""
    return len({d for d in doc_ids[:5] if grades[d] >= 5}) / 5
