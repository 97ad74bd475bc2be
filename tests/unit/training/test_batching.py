"""A query with all its documents is one example, scored once."""

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
    num_truncated,
    ranking_examples,
    split_scores,
    with_reference,
)

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


def test_a_batch_holds_every_document_once_and_says_whose_score_is_whose(
    examples: list[RankingExample],
) -> None:
    batch = RankingCollator(pad_id=1, can_pack=False, max_tokens=2)(examples)
    ids = [list(inputs["input_ids"][0]) for inputs in batch["batches"]]
    documents = [document for example in examples for document in example.documents]
    assert [ids[place] for place in batch["places"]] == [list(d.input_ids) for d in documents]
    parts = split_scores(torch.tensor([1.0, 2.0, 3.0]), batch["examples"])
    assert [part.tolist() for part in parts] == [[1.0], [2.0, 3.0]]


def test_documents_of_one_query_are_packed_behind_its_prefix(examples: list[RankingExample]) -> None:
    batch = RankingCollator(pad_id=1, can_pack=True, max_tokens=8192)(examples)
    (inputs,) = batch["batches"]
    assert sorted(inputs["block_ids"].max(dim=1).values.tolist()) == [1, 2]


def test_truncated_documents_are_counted(encoder: PairEncoder) -> None:
    long = Document("long", "sea ice depth " * 20)
    cut = contrastive_example(QUERIES["q1"], [*DOCUMENTS.values(), long, long], encoder=encoder)
    whole = contrastive_example(QUERIES["q1"], list(DOCUMENTS.values()), encoder=encoder)
    assert num_truncated([cut, whole, cut]) == 4


def test_the_data_set_gives_examples_by_index(examples: list[RankingExample]) -> None:
    data = RankingExamples(examples)
    assert len(data) == 2
    assert data[1] is examples[1]


def test_reference_scores_must_cover_every_example(examples: list[RankingExample]) -> None:
    with pytest.raises(ValueError, match="zip"):
        with_reference(examples, [[0.5]])


def test_a_contrastive_example_sets_the_first_document_against_the_others(encoder: PairEncoder) -> None:
    example = contrastive_example(QUERIES["q1"], list(DOCUMENTS.values()), encoder=encoder)
    assert example.grades == (1, 0, 0)
    assert list(zip(example.chosen, example.rejected, strict=True)) == [(0, 1), (0, 2)]
