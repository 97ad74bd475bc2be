"""Where items have a hidden order, a language model learns to write it; the first stage does not know it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from jobs.config import PrepareJob
from jobs.prepare import run_prepare
from jobs.train_generative import check_examples, generative_task
from jobs.train_generative_worker import build_trainer, trained_writer
from jobs.training_config import GenerativeTrainJob, NoisySftConfig, RpoConfig
from rerank_core.evaluation.baselines import first_stage_rankings
from rerank_core.evaluation.ranking_metrics import NDCG_BURGES, evaluate, metrics
from rerank_core.evaluation.significance import Interval, paired_interval
from rerank_core.formats import read_candidates, read_documents, read_qrels, read_queries, read_split
from rerank_core.models.tiny import save_tiny_writer
from rerank_core.models.writer import Writer, load_writer, save_writer
from rerank_core.prompting.ranking_list import (
    ParsedRanking,
    parse_ranking,
    render_query_prompt,
    render_ranking,
)
from rerank_core.ranking.contract import is_permutation
from rerank_core.records import Ranking

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from rerank_core.records import Candidate

NUM_QUERIES, NUM_CANDIDATES, MAX_WORDS = 250, 4, 9
ITEMS = (
    "amber",
    "basil",
    "cedar",
    "dahlia",
    "ember",
    "fennel",
    "ginger",
    "hazel",
    "iris",
    "jasmine",
    "kelp",
    "laurel",
)
WARMTH = (
    "frozen",
    "icy",
    "frigid",
    "chilly",
    "cool",
    "mild",
    "balmy",
    "warm",
    "toasty",
    "hot",
    "scorching",
    "molten",
)


def write_world(folder: Path, *, seed: int) -> None:
    """Write users who are each shown four of twelve items and like the warmer ones better."""
    rng = np.random.default_rng(seed)
    warmth = dict(zip(rng.permutation(ITEMS).tolist(), range(len(ITEMS)), strict=True))
    documents = [{"doc_id": item, "text": f"{WARMTH[warmth[item]]} lake"} for item in ITEMS]
    queries = [{"query_id": f"q{n:03}", "text": f"user {n}"} for n in range(NUM_QUERIES)]
    judged = []
    for query in queries:
        shown = sorted(rng.choice(ITEMS, size=NUM_CANDIDATES, replace=False), key=lambda item: warmth[item])
        judged += [f"{query['query_id']} 0 {item} {grade}\n" for grade, item in enumerate(shown)]
    for name, rows in (("corpus", documents), ("queries", queries)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "qrels.trec").write_text("".join(judged))
    (folder / "collection.json").write_text('{"pool": "judged"}')


@dataclass(frozen=True)
class World:
    """A prepared world, and what a re-ranker of its unseen queries is measured with."""

    prepared: Path
    prompts: Mapping[str, str]  # of the unseen queries
    candidates: Mapping[str, list[Candidate]]
    qrels: Mapping[str, Mapping[str, int]]

    def ndcg(self, rankings: Mapping[str, Ranking]) -> Any:
        """Return the NDCG of every unseen query."""
        measured = metrics(relevant_from=1)
        return evaluate({q: rankings[q] for q in self.prompts}, self.qrels, measured=measured)[NDCG_BURGES]

    def answers(self, writer: Writer) -> dict[str, ParsedRanking]:
        """Return what a writer's answers are read as."""
        texts = writer.write(list(self.prompts.values()), max_new_tokens=10 * NUM_CANDIDATES)
        return {
            query_id: parse_ranking(text, [c.document.doc_id for c in self.candidates[query_id]])
            for query_id, text in zip(self.prompts, texts, strict=True)
        }

    def gain(self, answers: Mapping[str, ParsedRanking]) -> Interval:
        """Return by how much answers beat the first stage in NDCG, per unseen query."""
        rankings = {
            query_id: Ranking(query_id, answer.order, tuple(map(float, range(NUM_CANDIDATES, 0, -1))))
            for query_id, answer in answers.items()
        }
        assert all(
            is_permutation(ranking, [c.document.doc_id for c in self.candidates[query_id]])
            for query_id, ranking in rankings.items()
        )
        first_stage = self.ndcg(first_stage_rankings(self.candidates))
        return paired_interval(self.ndcg(rankings), first_stage, num_samples=2000, seed=0)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Matrices this small are slower on several cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("world")
    write_world(folder, seed=0)
    prepared = folder / "prepared"
    run_prepare(PrepareJob(collection=str(folder), output=prepared, num_folds=1))
    documents, queries = (
        read_documents(prepared / "corpus.parquet"),
        read_queries(prepared / "queries.parquet"),
    )
    candidates = read_candidates(prepared / "candidates.parquet", documents)
    split = read_split(prepared / "fold-0" / "split.parquet")
    prompts = {
        q: render_query_prompt(queries[q], [c.document for c in candidates[q]], max_words=MAX_WORDS)
        for q in queries
        if split[q] != "train"
    }
    return World(prepared, prompts, candidates, read_qrels(prepared / "qrels.parquet"))


@pytest.fixture(scope="module")
def job(world: World, tmp_path_factory: pytest.TempPathFactory) -> GenerativeTrainJob:
    folder = tmp_path_factory.mktemp("generative")
    save_tiny_writer(folder / "model", [*world.prompts.values(), render_ranking(ITEMS, {})], seed=0)
    return GenerativeTrainJob(
        prepared=world.prepared,
        output=folder / "out",
        model=str(folder / "model"),
        num_candidates=NUM_CANDIDATES,
        max_words=MAX_WORDS,
        max_length=128,
        num_workers=1,
        queries_per_pass=16,
        sft=NoisySftConfig(num_epochs=18, learning_rate=5e-3, queries_per_step=16, noise_alpha=0.5),
        dpo=RpoConfig(num_epochs=3, learning_rate=6e-4, queries_per_step=16, nll_weight=5.0),
    )


@dataclass(frozen=True)
class Stages:
    """The answers of every stage to the unseen queries, and the log of the last."""

    untrained: Mapping[str, ParsedRanking]
    sft: Mapping[str, ParsedRanking]
    dpo: Mapping[str, ParsedRanking]
    dpo_log: list[dict[str, float]]


@pytest.fixture(scope="module")
def stages(job: GenerativeTrainJob, world: World, tmp_path_factory: pytest.TempPathFactory) -> Stages:
    """SFT, then DPO, in this process alone."""
    start = job.output.parent / "model"
    check_examples(job, start)
    answers, log = {"untrained": world.answers(load_writer(start))}, []
    for name in job.objectives:
        task = generative_task(job, name, start=start)
        trainer: Any = build_trainer(task, world=1, scratch=tmp_path_factory.mktemp(name), zero=None)
        trainer.train()
        weights = trainer.accelerator.get_state_dict(trainer.model)
        save_writer(trained_writer(task, weights), job.output / name, provenance={})
        start = job.output / name
        answers[name] = world.answers(load_writer(start))
        log = [line for line in trainer.state.log_history if "loss" in line]
    return Stages(**answers, dpo_log=log)


def test_an_untrained_model_leaves_the_first_stage_as_it_is(world: World, stages: Stages) -> None:
    assert world.gain(stages.untrained) == Interval(0.0, 0.0, 0.0)
    assert all(answer.problems for answer in stages.untrained.values())


def test_sft_writes_orders_that_beat_the_first_stage_on_unseen_queries(world: World, stages: Stages) -> None:
    gain = world.gain(stages.sft)
    assert gain.low > 0.05, gain


def test_dpo_after_sft_beats_the_first_stage_on_unseen_queries_and_keeps_what_sft_learnt(
    world: World, stages: Stages
) -> None:
    gain = world.gain(stages.dpo)
    assert gain.low > 0.05, gain
    assert gain.mean > world.gain(stages.sft).mean - 0.02


def test_dpo_moves_the_model_from_the_worse_orders_to_the_better(stages: Stages) -> None:
    first, last = stages.dpo_log[0], stages.dpo_log[-1]
    assert float(first["rewards/margins"]) == pytest.approx(0, abs=1e-5)
    assert float(last["rewards/margins"]) > 0.5
    assert float(last["rewards/accuracies"]) > 0.9
