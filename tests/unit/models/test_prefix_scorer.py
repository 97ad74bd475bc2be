"""Documents behind one shared prefix score as each does alone."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import nn
from transformers import (
    AutoModel,
    BloomConfig,
    FalconConfig,
    GPT2Config,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    PretrainedConfig,
    Qwen3Config,
)

from rerank_core.models.build import build_encoder, build_model, load_tokenizer
from rerank_core.models.prefix_scorer import (
    ROW_TOKENS,
    can_share_prefix,
    pack,
    packed_mask,
    prefix_rows,
    row_length,
)
from rerank_core.models.scorer import EncodedPair, LanguageModelScorer, SingleNeuronModel, pad, pair_batches
from rerank_core.records import Document, Query

if TYPE_CHECKING:
    from pathlib import Path

    from rerank_core.models.scorer import HeadKind

QUERIES = [Query("q", "sea surface temperature"), Query("r", "snow")]
TEXTS = ["daily sea surface temperature of the north sea", "snow", "river discharge at vienna " * 4, ""]
DOCUMENTS = [Document(str(place), text) for place, text in enumerate(TEXTS)]
SMALL: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
}
SMALL_BY_KIND: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(**SMALL),
    "qwen3": Qwen3Config(**SMALL, head_dim=8),
    "gpt2": GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4),
}


def pairs_of_lengths(lengths: list[int], *, prefix: int) -> list[EncodedPair]:
    """Return pairs of different tokens behind one prefix."""
    token = itertools.cycle(range(1, 64))
    start = tuple(itertools.islice(token, prefix))
    return [
        EncodedPair((*start, *itertools.islice(token, length)), prefix, prefix + length, is_truncated=False)
        for length in lengths
    ]


def small_model(config: PretrainedConfig, *, attention: str = "sdpa") -> SingleNeuronModel:
    """Return a model with weights that are large enough for every token to matter."""
    config._attn_implementation = attention
    model = SingleNeuronModel(
        AutoModel.from_config(config), nn.Linear(32, 1), pooling="last", has_token_types=False
    )
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(std=0.3)
    return model.eval()


def packed_scores(model: SingleNeuronModel, rows: list[list[EncodedPair]]) -> torch.Tensor:
    with torch.inference_mode():
        return model.forward_packed(**pack(rows, pad_id=0))


def single_scores(model: SingleNeuronModel, rows: list[list[EncodedPair]]) -> torch.Tensor:
    with torch.inference_mode():
        return torch.cat([model(**pad([pair], pad_id=0)) for row in rows for pair in row])


@pytest.fixture(params=["linear", "yes_no"])
def causal_scorer(causal_folder: Path, request: pytest.FixtureRequest) -> LanguageModelScorer:
    head: HeadKind = request.param
    model = build_model(causal_folder, head=head, num_layers=None, seed=0)
    encoder = build_encoder(load_tokenizer(causal_folder), model.config, head=head, max_length=48)
    return LanguageModelScorer(model, encoder, digest="untrained")


# --- scores


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_packed_documents_score_as_each_does_alone(
    causal_scorer: LanguageModelScorer, dtype: torch.dtype, tolerance: float
) -> None:
    model = causal_scorer.model.to(dtype)
    assert model.config.num_key_value_heads < model.config.num_attention_heads
    rows = [[causal_scorer.encoder.encode(query, d) for d in DOCUMENTS] for query in QUERIES]
    torch.testing.assert_close(
        packed_scores(model, rows), single_scores(model, rows), atol=tolerance, rtol=tolerance
    )


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", SMALL_BY_KIND)
def test_every_kind_of_position_and_attention_can_be_packed(kind: str, attention: str) -> None:
    model = small_model(SMALL_BY_KIND[kind], attention=attention)
    assert model.can_pack
    rows = [pairs_of_lengths([3, 9, 1], prefix=5), pairs_of_lengths([4], prefix=2)]
    scores = single_scores(model, rows)
    assert scores.std() > 0.1
    torch.testing.assert_close(packed_scores(model, rows), scores, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_padding_gives_no_nan_in_half_precision(attention: str, dtype: torch.dtype) -> None:
    model = small_model(SMALL_BY_KIND["llama"], attention=attention).to(dtype)
    rows = [pairs_of_lengths([30, 30], prefix=5), pairs_of_lengths([1], prefix=1)]
    assert packed_scores(model, rows).isfinite().all()


def test_the_score_of_a_document_does_not_depend_on_its_neighbours() -> None:
    model = small_model(SMALL_BY_KIND["llama"])
    first, second, third = pairs_of_lengths([5, 7, 2], prefix=4)
    scores = packed_scores(model, [[first, second, third]])
    turned = packed_scores(model, [[third, second, first]])
    torch.testing.assert_close(scores, turned.flip(0), atol=1e-5, rtol=0)


def test_an_empty_document_scores_as_its_prefix() -> None:
    model = small_model(SMALL_BY_KIND["llama"])
    rows = [pairs_of_lengths([0, 3, 0], prefix=4)]
    scores = packed_scores(model, rows)
    torch.testing.assert_close(scores, single_scores(model, rows), atol=1e-5, rtol=0)
    assert scores[0] == scores[2] != scores[1]


def test_a_list_is_packed_by_the_scorer_and_keeps_its_order(causal_scorer: LanguageModelScorer) -> None:
    pairs = [(query, document) for document in DOCUMENTS for query in QUERIES]
    alone = [causal_scorer.score_pairs([pair])[0] for pair in pairs]
    assert causal_scorer.score_pairs(pairs) == pytest.approx(alone, abs=1e-5)
    assert len(set(alone)) == len(pairs)


# --- what can be packed


@pytest.mark.parametrize(
    ("config", "fault"),
    [
        (MistralConfig(**SMALL, sliding_window=8), "sliding window"),
        (
            Qwen3Config(**SMALL, layer_types=["full_attention", "sliding_attention"], sliding_window=8),
            "one layer",
        ),
        (BloomConfig(vocab_size=64, hidden_size=32, n_layer=2, n_head=4), "no positions"),
        (
            FalconConfig(
                vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, alibi=True
            ),
            "alibi",
        ),
        (MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2), "recurrence"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_model_that_reads_more_than_mask_and_positions_is_not_packed(
    config: PretrainedConfig, fault: str
) -> None:
    assert not can_share_prefix(AutoModel.from_config(config)), fault


def test_an_encoder_is_not_packed(encoder_folder: Path) -> None:
    assert not build_model(encoder_folder, head="linear", num_layers=None, seed=0).can_pack


# --- rows


def test_a_mask_lets_a_token_see_its_prefix_and_its_own_past_alone() -> None:
    blocks = [[0, 0, 1, 1, 2, 2, 2], [0, 1, 1, 2, -1, -1, -1]]
    mask = packed_mask(torch.tensor(blocks), dtype=torch.float32)
    assert mask.shape == (2, 1, 7, 7)
    for row, token, seen in itertools.product(range(2), range(7), range(7)):
        may_look = seen <= token and blocks[row][seen] in (0, blocks[row][token])
        assert mask[row, 0, token, seen].item() == (0.0 if may_look else torch.finfo(torch.float32).min)


def test_positions_go_on_from_the_prefix_in_every_document() -> None:
    inputs = pack([pairs_of_lengths([2, 3], prefix=2), pairs_of_lengths([1], prefix=3)], pad_id=0)
    assert inputs["position_ids"].tolist() == [[0, 1, 2, 3, 2, 3, 4], [0, 1, 2, 3, 0, 0, 0]]
    assert inputs["block_ids"].tolist() == [[0, 0, 1, 1, 2, 2, 2], [0, 0, 0, 1, -1, -1, -1]]
    assert inputs["last_tokens"].tolist() == [3, 6, 10]


def test_pairs_of_two_queries_in_one_row_are_refused() -> None:
    first, second = pairs_of_lengths([2], prefix=2), pairs_of_lengths([2], prefix=3)
    with pytest.raises(ValueError, match="pair 2 of a packed row has another prefix"):
        pack([[*first, *second]], pad_id=0)


@given(
    st.lists(st.tuples(st.sampled_from([1, 4, 9]), st.integers(0, 40)), max_size=12),
    st.integers(1, 100),
)
def test_rows_keep_to_the_budget_share_a_prefix_and_hold_every_pair_once(
    shapes: list[tuple[int, int]], max_tokens: int
) -> None:
    pairs = [pairs_of_lengths([length], prefix=prefix)[0] for prefix, length in shapes]
    rows = prefix_rows(pairs, max_tokens=max_tokens)
    assert sorted(index for row in rows for index in row) == list(range(len(pairs)))
    for row in rows:
        assert len({pairs[index].document_start for index in row}) == 1
        assert len(row) == 1 or row_length([pairs[index] for index in row]) <= max_tokens


def test_a_long_list_takes_the_fewest_rows_and_they_are_even() -> None:
    pairs = pairs_of_lengths([ROW_TOKENS // 10] * 11, prefix=50)
    rows = prefix_rows(pairs, max_tokens=8 * ROW_TOKENS)
    assert sorted(len(row) for row in rows) == [5, 6]


def test_batches_of_rows_keep_to_the_budget() -> None:
    pairs = pairs_of_lengths([5, 40, 12, 33, 8, 200], prefix=10)
    batches = list(pair_batches(pairs, can_pack=True, max_tokens=60, pad_id=0))
    assert sorted(index for indices, _ in batches for index in indices) == list(range(6))
    assert all(len(indices) == 1 or inputs["input_ids"].numel() <= 60 for indices, inputs in batches)
