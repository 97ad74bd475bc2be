"""Where relevance is overlap in some rare words and not in others, every objective learns which matter."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from rerank_core.data.candidates import graded
from rerank_core.data.preferences import preference_pairs
from rerank_core.evaluation.baselines import first_stage_rankings, random_values
from rerank_core.evaluation.ranking_metrics import QueryValues, evaluate, metrics
from rerank_core.evaluation.significance import paired_interval
from rerank_core.models.scorer import (
    PAIR_TEMPLATE,
    LanguageModelScorer,
    PairEncoder,
    PromptFormat,
    SingleNeuronModel,
)
from rerank_core.models.tiny import SPECIAL_TOKENS
from rerank_core.ranking.pointwise import rerank
from rerank_core.records import Candidate, Collection, Document, Query, Ranking
from rerank_core.retrieval.bm25 import Bm25Retriever
from rerank_core.training.batching import (
    RankingCollator,
    RankingExample,
    Texts,
    ranking_examples,
    with_reference,
)
from rerank_core.training.list_model import ListModel
from rerank_core.training.steps import (
    PpoQueryLoss,
    QueryLoss,
    RewardSource,
    batch_loss,
    dpo_query_loss,
    reward_model_query_loss,
    sft_query_loss,
)

SEEDS = (0, 1, 2)
NUM_QUERIES, NUM_TRAIN = 200, 160
QUERIES_PER_STEP, NUM_STEPS = 4, 240
TOPICS = [f"topic{number}" for number in range(16)]
STYLES = [f"style{number}" for number in range(16)]
NUM_ASKED = 3  # words of each kind in a query, and in a document
GRADES = (3, 3, 2, 2, 2, 1, 1, 0, 0, 0)
MEASURED = metrics(relevant_from=2)


@dataclass(frozen=True)
class Lesson:
    """A world with BM25's order of each query's documents, and the queries to learn from."""

    world: Collection
    candidates: Mapping[str, list[Candidate]]

    @property
    def train(self) -> list[str]:
        return sorted(self.candidates)[:NUM_TRAIN]

    @property
    def unseen(self) -> dict[str, list[Candidate]]:
        return {query_id: self.candidates[query_id] for query_id in sorted(self.candidates)[NUM_TRAIN:]}


def topic_world(*, seed: int) -> Collection:
    """Return queries of three topics and three styles, each with ten documents of its own.

    A document's grade is the number of the query's topics in it; it also has zero to three of the query's
    styles, which count nothing. Topics and styles are equally rare, so BM25 sees the grade through noise.
    """
    rng = np.random.default_rng(seed)
    queries, documents, qrels = {}, {}, {}
    for query_id in (f"q{number:03d}" for number in range(NUM_QUERIES)):
        topics, styles = (rng.choice(kind, NUM_ASKED, replace=False).tolist() for kind in (TOPICS, STYLES))
        queries[query_id] = Query(query_id, " ".join(rng.permutation(topics + styles)))
        qrels[query_id] = dict(zip((f"{query_id}-{n}" for n in rng.permutation(10)), GRADES, strict=True))
        for doc_id, grade in qrels[query_id].items():
            text = some_asked(topics, TOPICS, num_shared=grade, rng=rng)
            text += some_asked(styles, STYLES, num_shared=int(rng.integers(NUM_ASKED + 1)), rng=rng)
            documents[doc_id] = Document(doc_id, " ".join(rng.permutation(text)))
    return Collection("topics", documents, queries, qrels, pool=None, relevant_from=2)


def some_asked(
    asked: Sequence[str], kind: Sequence[str], *, num_shared: int, rng: np.random.Generator
) -> list[str]:
    """Return words of a kind, some that the query asks for and the others that it does not."""
    others = [word for word in kind if word not in asked]
    return [
        *rng.choice(asked, num_shared, replace=False),
        *rng.choice(others, NUM_ASKED - num_shared, replace=False),
    ]


@pytest.fixture(scope="module", params=SEEDS)
def seed(request: pytest.FixtureRequest) -> int:
    number: int = request.param
    return number


@pytest.fixture(scope="module")
def lesson(seed: int) -> Lesson:
    world = topic_world(seed=seed)
    bm25 = Bm25Retriever(list(world.documents.values()))
    judged = {q: [world.documents[doc_id] for doc_id in grades] for q, grades in world.qrels.items()}
    return Lesson(world, {q: bm25.order(world.queries[q], listed) for q, listed in judged.items()})


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Such small tensors are slower on several threads."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


def untrained(*, seed: int) -> LanguageModelScorer:
    """Return a random encoder of one layer, with one token per word, under a random neuron."""
    vocabulary = {word: i for i, word in enumerate([*SPECIAL_TOKENS.values(), *TOPICS, *STYLES])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token=SPECIAL_TOKENS["unk_token"]))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, **SPECIAL_TOKENS)
    prompt_format = PromptFormat(template=PAIR_TEMPLATE, max_length=32, max_query_length=16)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=32,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    torch.manual_seed(seed)
    backbone = BertModel(config, add_pooling_layer=False)
    model = SingleNeuronModel(backbone, nn.Linear(32, 1), pooling="product", has_token_types=True)
    return LanguageModelScorer(model, PairEncoder(tokenizer, prompt_format), digest="untrained")


def training_examples(lesson: Lesson, scorer: LanguageModelScorer) -> list[RankingExample]:
    """Return the training queries, with the untrained scorer as the frozen reference."""
    world = lesson.world
    rows = {q: graded(q, lesson.candidates[q], world.qrels[q]) for q in lesson.train}
    examples = ranking_examples(
        [row for listed in rows.values() for row in listed],
        [pair for listed in rows.values() for pair in preference_pairs(listed, top=5, bottom=5)[0]],
        texts=Texts(world.queries, world.documents),
        encoder=scorer.encoder,
        max_grade=max(GRADES),
    )
    return with_reference(examples, [scorer.score_encoded(example.documents) for example in examples])


def train(
    scorer: LanguageModelScorer,
    examples: Sequence[RankingExample],
    query_loss: QueryLoss,
    *,
    seed: int,
    updates_per_batch: int = 1,
) -> None:
    """Take AdamW steps; the rate falls to 0, and is higher for the neuron, which has the longest way."""
    model = ListModel(scorer.model.train())
    rates = [(scorer.model.backbone, 2e-3), (scorer.model.head, 0.3)]
    optimiser = torch.optim.AdamW([{"params": part.parameters(), "lr": rate} for part, rate in rates])
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1 - step / NUM_STEPS)
    collator = RankingCollator(
        pad_id=scorer.tokenizer.pad_token_id, can_pack=scorer.model.can_pack, max_tokens=8192
    )
    order = shuffled_passes(len(examples), rng=np.random.default_rng(seed))
    for step in range(NUM_STEPS):
        if step % updates_per_batch == 0:
            listed = [examples[next(order)] for _ in range(QUERIES_PER_STEP)]
        batch = collator(listed)
        own = batch.pop("examples")
        optimiser.zero_grad()
        batch_loss(model(**batch), own, query_loss=query_loss, step=step)["loss"].backward()
        optimiser.step()
        schedule.step()
    model.eval()


def shuffled_passes(size: int, *, rng: np.random.Generator) -> Iterator[int]:
    """Yield every index once per pass, in ever new orders."""
    while True:
        yield from rng.permutation(size).tolist()


def trained(lesson: Lesson, query_loss: QueryLoss, *, seed: int) -> LanguageModelScorer:
    scorer = untrained(seed=seed)
    train(scorer, training_examples(lesson, scorer), query_loss, seed=seed)
    return scorer


def pairwise_accuracy(scorer: LanguageModelScorer, lesson: Lesson) -> float:
    """Return the share of the pairs of unequal grade in the right order, as a mean over unseen queries."""
    shares = []
    for query_id, candidates in lesson.unseen.items():
        listed = [candidate.document for candidate in candidates]
        grades = np.array([lesson.world.qrels[query_id][document.doc_id] for document in listed])
        scores = np.array(scorer.score(lesson.world.queries[query_id], listed))
        better, worse = np.nonzero(grades[:, None] > grades)
        shares.append((scores[better] > scores[worse]).mean())
    return float(np.mean(shares))


def ndcg_at_5(rankings: Mapping[str, Ranking], lesson: Lesson) -> QueryValues:
    return evaluate(rankings, lesson.world.qrels, measured=MEASURED)["ndcg_burges@5"]


def assert_learnt(scorer: LanguageModelScorer, lesson: Lesson) -> None:
    """On unseen queries: 85 % of all pairs in order, and NDCG@5 above BM25's by an interval without 0."""
    queries = lesson.world.queries
    reranked = {q: rerank(scorer, queries[q], found) for q, found in lesson.unseen.items()}
    ours, bm25 = (ndcg_at_5(rankings, lesson) for rankings in (reranked, first_stage_rankings(lesson.unseen)))
    gain = paired_interval(ours, bm25, num_samples=2000, seed=0)
    assert pairwise_accuracy(scorer, lesson) >= 0.85
    assert gain.low > 0, gain


# --- the world


def test_bm25_is_better_than_chance_and_far_from_perfect(lesson: Lesson) -> None:
    bm25 = ndcg_at_5(first_stage_rankings(lesson.unseen), lesson)
    chance = random_values(
        lesson.unseen,
        lesson.world.qrels,
        measured=MEASURED,
        num_permutations=20,
        rng=np.random.default_rng(0),
    )["ndcg_burges@5"]
    assert paired_interval(bm25, chance, num_samples=2000, seed=0).low > 0.1
    assert np.mean(list(bm25.values())) < 0.9


def test_an_untrained_scorer_orders_pairs_by_chance(lesson: Lesson, seed: int) -> None:
    assert pairwise_accuracy(untrained(seed=seed), lesson) == pytest.approx(0.5, abs=0.1)


# --- the four objectives


def test_sft_learns_which_words_matter(lesson: Lesson, seed: int) -> None:
    assert_learnt(trained(lesson, sft_query_loss("mse"), seed=seed), lesson)


def test_a_reward_model_learns_which_words_matter(lesson: Lesson, seed: int) -> None:
    assert_learnt(trained(lesson, reward_model_query_loss("bradley_terry"), seed=seed), lesson)


def test_dpo_learns_which_words_matter(lesson: Lesson, seed: int) -> None:
    assert_learnt(trained(lesson, dpo_query_loss("sigmoid", beta=0.5), seed=seed), lesson)


def ppo(*, reward: RewardSource, updates_per_rollout: int, seed: int) -> PpoQueryLoss:
    return PpoQueryLoss(
        num_rankings=32,
        clip=0.2,
        kl_weight=0.01,
        reward=reward,
        updates_per_rollout=updates_per_rollout,
        seed=seed,
    )


def test_ppo_learns_which_words_matter_from_rewards_alone(lesson: Lesson, seed: int) -> None:
    query_loss = ppo(reward="grades", updates_per_rollout=1, seed=seed)
    assert_learnt(trained(lesson, query_loss, seed=seed), lesson)


# --- their variants, in one world


@pytest.mark.parametrize("seed", SEEDS[:1], indirect=True)
@pytest.mark.parametrize(
    "query_loss",
    [
        pytest.param(sft_query_loss("cross_entropy"), id="cross_entropy"),
        pytest.param(sft_query_loss("list_mle"), id="list_mle"),
        pytest.param(sft_query_loss("lambda"), id="lambda"),
        pytest.param(dpo_query_loss("softmax", beta=0.5), id="softmax_dpo"),
    ],
)
def test_every_other_loss_learns_which_words_matter(lesson: Lesson, seed: int, query_loss: QueryLoss) -> None:
    assert_learnt(trained(lesson, query_loss, seed=seed), lesson)


@pytest.mark.parametrize("seed", SEEDS[:1], indirect=True)
def test_ppo_learns_from_a_reward_model_alone_in_two_updates_per_rollout(lesson: Lesson, seed: int) -> None:
    reward_model = trained(lesson, reward_model_query_loss("bradley_terry"), seed=seed)
    scorer = untrained(seed=seed)
    without_grades = [
        replace(example, grades=(), reward_scores=tuple(reward_model.score_encoded(example.documents)))
        for example in training_examples(lesson, scorer)
    ]
    query_loss = ppo(reward="reward_model", updates_per_rollout=2, seed=seed)
    train(scorer, without_grades, query_loss, seed=seed, updates_per_batch=2)
    assert_learnt(scorer, lesson)
