"""Costs bound what a model reads, and cuts fall behind the token that was asked for."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerank_core.errors import ArtefactError
from rerank_core.models.artefact import load_artefact
from rerank_core.records import Document, Query
from serve.lists import CostedList, TokenCounter, TokenLimits

if TYPE_CHECKING:
    from pathlib import Path

    from serve.reranker import ModelCard

QUERY = Query("q", "sea ice")
LONG = Document("d", "sea ice thickness from radar " * 30, title="ice on lakes")


@pytest.fixture(scope="module")
def counter(artefact: Path) -> TokenCounter:
    return TokenCounter(artefact)


@pytest.mark.parametrize("long_documents", ["truncate", "max_chunk"])
def test_a_cost_is_no_less_than_what_the_model_reads(
    counter: TokenCounter, artefact: Path, card: ModelCard, long_documents
) -> None:
    scorer = load_artefact(artefact, long_documents=long_documents)
    card = replace(
        card, long_documents=long_documents, max_query_length=scorer.encoder.format.max_query_length
    )
    documents = [Document("d", "ice"), LONG, Document("d", "")]
    costed = counter.costed(QUERY, documents, card=card, limits=TokenLimits())
    for document, cost in zip(documents, costed.costs, strict=True):
        read = [scorer.encoder.encode(QUERY, Document("", document.content[slice(*span)]))
                for span in scorer.visible_spans(QUERY, document)]  # fmt: skip
        assert sum(len(pair.input_ids) for pair in read) <= cost


def test_a_document_is_cut_behind_the_token_that_was_asked_for(
    counter: TokenCounter, card: ModelCard
) -> None:
    limits = TokenLimits(document=5)
    costed = counter.costed(QUERY, [LONG, Document("e", "ice")], card=card, limits=limits)
    (cut, whole), (again, _) = costed.documents, costed.costs
    assert LONG.content.startswith(cut.content)
    assert (cut.title, cut.text) == ("ice on lakes", "sea ice")
    assert whole == Document("e", "ice")
    assert costed.num_cut == 1
    assert again == counter.costed(QUERY, [cut], card=card, limits=TokenLimits()).costs[0]


def test_a_cut_within_the_title_leaves_no_text(counter: TokenCounter, card: ModelCard) -> None:
    (cut,) = counter.costed(QUERY, [LONG], card=card, limits=TokenLimits(document=2)).documents
    assert (cut.title, cut.text) == ("ice on", "")


def test_a_query_is_cut_behind_the_token_that_was_asked_for(counter: TokenCounter, card: ModelCard) -> None:
    costed = counter.costed(QUERY, [LONG], card=card, limits=TokenLimits(query=1))
    assert costed.query.text == "sea"


def test_a_limit_on_the_prompt_leaves_room_for_query_and_template(
    counter: TokenCounter, card: ModelCard
) -> None:
    costed = counter.costed(QUERY, [LONG], card=replace(card, max_length=400), limits=TokenLimits(prompt=60))
    assert costed.num_cut == 1
    assert costed.num_tokens <= 60


def test_documents_that_do_not_fit_are_counted(counter: TokenCounter, card: ModelCard) -> None:
    costed = counter.costed(QUERY, [LONG, Document("e", "ice")], card=card, limits=TokenLimits())
    assert (costed.num_long, costed.num_cut) == (1, 0)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=30), st.integers(1, 120))
def test_parts_hold_all_documents_in_order_within_their_tokens(costs: list[int], max_tokens: int) -> None:
    documents = tuple(Document(str(n), "") for n in range(len(costs)))
    parts = list(CostedList(QUERY, documents, tuple(costs), 0, 0).tasks(max_tokens))
    assert tuple(document for part in parts for document in part.documents) == documents
    assert sum(part.num_tokens for part in parts) == sum(costs)
    assert all(part.num_tokens <= max_tokens or len(part.documents) == 1 for part in parts)


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match=r"tokenizer\.json is missing or broken"):
        TokenCounter(tmp_path)
