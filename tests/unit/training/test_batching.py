"""A query with all its documents is one example, scored once."""

import math

import pytest
import torch

from rerank_core.models.scorer import PairEncoder, PromptFormat
from rerank_core.models.tiny import tiny_tokenizer
from rerank_core.records import Document, GradedCandidate, PreferencePair, Query
from rerank_core.training.batching import (
    RankingCollator,
    RankingExample,
    RankingExamples,
    Texts,
    contrastive_example,
    ranking_examples,
    split_scores,
    with_reference,
)
from rerank_core.training.steps import batch_loss, contrastive_query_loss, dpo_query_loss, sft_query_loss

QUERIES = {"q1": Query("q1", "sea ice"), "q2": Query("q2", "river")}
DOCUMENTS = {
    d: Document(d, text) for d, text in {"a": "sea ice depth", "b": "river flow", "c": "snow"}.items()
}
ROWS = [
    GradedCandidate("q2", "b", 1, 9),
    GradedCandidate("q1", "a", 1, 3),
    GradedCandidate("q1", "c", 2, 0),
]
PAIRS = [PreferencePair("q1", "a", "c", 3, 0)]


@pytest.fixture(scope="module")
def encoder() -> PairEncoder:
    tokenizer = tiny_tokenizer([d.text for d in DOCUMENTS.values()], has_mask=True)
    return PairEncoder(
        tokenizer,
        PromptFormat(template="{cls}{query}{sep}{document}{sep}", max_length=32, max_query_length=8),
    )


@pytest.fixture
def examples(encoder: PairEncoder) -> list[RankingExample]:
    return ranking_examples(ROWS, PAIRS, texts=Texts(QUERIES, DOCUMENTS), encoder=encoder, max_grade=9)


def test_rows_of_one_query_become_one_example(examples: list[RankingExample]) -> None:
    assert [example.query_id for example in examples] == ["q2", "q1"]
    assert (examples[1].grades, examples[1].max_grade) == ((3, 0), 9)
    assert (examples[1].chosen, examples[1].rejected) == ((0,), (1,))
    assert examples[0].chosen == ()


def test_a_batch_holds_the_documents_of_all_queries_in_order(examples: list[RankingExample]) -> None:
    batch = RankingCollator(pad_id=1)(examples)
    assert batch["input_ids"].shape[0] == 3
    parts = split_scores(torch.tensor([1.0, 2.0, 3.0]), batch["examples"])
    assert [part.tolist() for part in parts] == [[1.0], [2.0, 3.0]]


def test_the_data_set_gives_examples_by_index(examples: list[RankingExample]) -> None:
    data = RankingExamples(examples)
    assert len(data) == 2
    assert data[1] is examples[1]


def test_the_loss_of_a_batch_is_the_mean_over_queries_not_documents(examples: list[RankingExample]) -> None:
    loss = batch_loss(torch.tensor([0.0, 0.0, 0.0]), examples, query_loss=sft_query_loss)
    of_q2, of_q1 = 0.25, ((0.5 - 3 / 9) ** 2 + 0.25) / 2
    assert loss.item() == pytest.approx((of_q2 + of_q1) / 2)


def test_dpo_reads_margin_and_reference_of_the_same_pair(examples: list[RankingExample]) -> None:
    (example,) = with_reference(examples[1:], [[0.5, 1.5]])
    loss = dpo_query_loss(beta=0.1)(torch.tensor([2.0, -1.0]), example)
    assert loss.item() == pytest.approx(math.log1p(math.exp(-0.1 * (3.0 - (-1.0)))))


def test_dpo_starts_at_ln_2(examples: list[RankingExample]) -> None:
    (example,) = with_reference(examples[1:], [[0.5, 1.5]])
    assert dpo_query_loss(beta=0.1)(torch.tensor([0.5, 1.5]), example).item() == pytest.approx(
        math.log(2), abs=1e-6
    )


def test_reference_scores_must_cover_every_example(examples: list[RankingExample]) -> None:
    with pytest.raises(ValueError, match="zip"):
        with_reference(examples, [[0.5]])


def test_a_contrastive_example_sets_the_first_document_against_the_others(encoder: PairEncoder) -> None:
    example = contrastive_example(QUERIES["q1"], list(DOCUMENTS.values()), encoder=encoder)
    assert example.grades == (1, 0, 0)
    assert list(zip(example.chosen, example.rejected, strict=True)) == [(0, 1), (0, 2)]
    assert contrastive_query_loss(torch.zeros(3), example).item() == pytest.approx(math.log(3))
