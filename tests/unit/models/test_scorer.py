"""A score belongs to its pair alone."""

import random

import pytest
import torch

from rerank_core.errors import ConfigError
from rerank_core.models.build import build_encoder, build_model, load_tokenizer
from rerank_core.models.scorer import LanguageModelScorer, PairEncoder, PromptFormat, length_batches, pad
from rerank_core.records import Document, Query

QUERY = Query("q", "sea surface temperature")
DOCUMENTS = [
    Document("a", "daily sea surface temperature of the north sea", title="sea"),
    Document("b", "snow depth"),
    Document("c", "monthly river discharge of the danube at vienna " * 3, title="the danube"),
    Document("d", ""),
]


def test_a_batch_scores_like_single_pairs(scorer: LanguageModelScorer) -> None:
    together = scorer.score(QUERY, DOCUMENTS)
    alone = [scorer.score(QUERY, [document])[0] for document in DOCUMENTS]
    assert together == pytest.approx(alone, abs=1e-5)
    assert len(set(together)) == len(DOCUMENTS)


def test_candidate_order_does_not_change_scores(scorer: LanguageModelScorer) -> None:
    scores = dict(zip("abcd", scorer.score(QUERY, DOCUMENTS), strict=True))
    shuffled = random.Random(1).sample(DOCUMENTS, k=len(DOCUMENTS))
    again = scorer.score(QUERY, shuffled)
    assert [scores[d.doc_id] for d in shuffled] == pytest.approx(again, abs=1e-5)


def test_padding_on_the_left_scores_like_padding_on_the_right(scorer: LanguageModelScorer) -> None:
    pairs = [scorer.encoder.encode(QUERY, document) for document in DOCUMENTS]
    right = pad(pairs, pad_id=scorer.tokenizer.pad_token_id)
    shifts = [right["input_ids"].shape[1] - len(pair.input_ids) for pair in pairs]
    left = {
        name: torch.stack([row.roll(shift) for row, shift in zip(tensor, shifts, strict=True)])
        for name, tensor in right.items()
    }
    with torch.inference_mode():
        assert scorer.model(**left).tolist() == pytest.approx(scorer.model(**right).tolist(), abs=1e-5)


def test_a_small_token_budget_changes_batches_and_not_scores(scorer: LanguageModelScorer) -> None:
    scores = scorer.score(QUERY, DOCUMENTS)
    frugal = LanguageModelScorer(scorer.model, scorer.encoder, digest="x", max_tokens_per_batch=1)
    assert frugal.score(QUERY, DOCUMENTS) == pytest.approx(scores, abs=1e-5)


def test_nothing_to_score_gives_nothing(scorer: LanguageModelScorer) -> None:
    assert scorer.score(QUERY, []) == []


def test_a_long_document_is_cut_and_says_so(scorer: LanguageModelScorer) -> None:
    long = Document("long", "river discharge " * 500)
    pair = scorer.encoder.encode(QUERY, long)
    assert pair.is_truncated
    assert len(pair.input_ids) == scorer.max_length
    assert not scorer.encoder.encode(QUERY, DOCUMENTS[1]).is_truncated


def test_the_visible_part_scores_like_the_whole_document(scorer: LanguageModelScorer) -> None:
    long = Document("long", "river discharge of the danube " * 100, title="the danube")
    start, end = scorer.visible_span(QUERY, long)
    visible = long.content[start:end]
    assert start == 0
    assert 0 < end < len(long.content)
    assert scorer.score(QUERY, [Document("cut", visible)]) == pytest.approx(
        scorer.score(QUERY, [long]), abs=1e-6
    )


def test_a_short_document_is_visible_whole(scorer: LanguageModelScorer) -> None:
    assert scorer.visible_span(QUERY, DOCUMENTS[0]) == (0, len(DOCUMENTS[0].content))
    assert scorer.visible_span(QUERY, Document("empty", "")) == (0, 0)


def test_a_long_query_is_cut_before_the_document_is(scorer: LanguageModelScorer) -> None:
    pair = scorer.encoder.encode(Query("q", "temperature " * 200), DOCUMENTS[0])
    assert pair.is_truncated
    assert pair.document_end > pair.document_start


def test_special_tokens_in_a_text_are_read_as_letters(scorer: LanguageModelScorer) -> None:
    tokenizer = scorer.tokenizer
    hostile = Document("d", f"snow {tokenizer.eos_token} {tokenizer.sep_token} {tokenizer.pad_token} depth")
    pair = scorer.encoder.encode(QUERY, hostile)
    inside = pair.input_ids[pair.document_start : pair.document_end]
    assert not {tokenizer.eos_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id} & set(inside)


def test_the_mask_of_attribution_stays_a_mask(encoder_folder) -> None:
    tokenizer = load_tokenizer(encoder_folder)
    model = build_model(encoder_folder, head="linear", num_layers=None, seed=0)
    encoder = build_encoder(tokenizer, model.config, head="linear", max_length=48)
    pair = encoder.encode(QUERY, Document("d", "snow [MASK] [MASK]depth"))
    assert pair.input_ids.count(tokenizer.mask_token_id) == 2


def test_braces_in_a_template_are_written_twice(encoder_folder) -> None:
    tokenizer = load_tokenizer(encoder_folder)
    template = "{cls}{{{query}}}{sep}{document}{sep}"
    encoder = PairEncoder(tokenizer, PromptFormat(template=template, max_length=48, max_query_length=24))
    ids = list(encoder.encode(QUERY, DOCUMENTS[1]).input_ids)
    text = f"[CLS]{{{QUERY.text}}}[SEP]{DOCUMENTS[1].content}[SEP]"
    assert ids == tokenizer.encode(text, add_special_tokens=False)


def test_the_query_stands_before_the_document(scorer: LanguageModelScorer) -> None:
    pair = scorer.encoder.encode(QUERY, DOCUMENTS[1])
    text = scorer.tokenizer.decode(list(pair.input_ids))
    assert text.index("temperature") < text.index("snow")


def test_a_template_without_room_for_a_document_is_refused(causal_folder) -> None:
    tokenizer = load_tokenizer(causal_folder)
    with pytest.raises(ConfigError, match="leaves no room for a document"):
        PairEncoder(
            tokenizer, PromptFormat(template="{query}{document}{eos}", max_length=8, max_query_length=8)
        )


def test_length_batches_keep_to_the_budget_and_cover_every_row() -> None:
    lengths = [3, 9, 5, 5, 1, 30]
    batches = list(length_batches(lengths, max_tokens=12))
    assert sorted(index for batch in batches for index in batch) == list(range(6))
    assert batches[0] == [5]
    assert all(len(b) == 1 or max(lengths[i] for i in b) * len(b) <= 12 for b in batches)


def test_no_length_gives_no_batch() -> None:
    assert list(length_batches([], max_tokens=10)) == []
