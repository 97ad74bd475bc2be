"""What texts have in common is computed once, and changes no score."""

from array import array
from itertools import combinations
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModel, GPT2Config, LlamaConfig, PretrainedConfig, Qwen3Config

from rerank_core.models.build import build_encoder, build_model, load_tokenizer
from rerank_core.models.near_copies import NearCopies, PieceEncoder
from rerank_core.models.prefix_tree import PrefixTree
from rerank_core.models.scorer import FEW_TEXTS, LanguageModelScorer, SingleNeuronModel
from rerank_core.models.tiny import save_tiny_causal, save_tiny_encoder, save_tiny_writer
from rerank_core.records import Document, Query

SMALL: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
}
CONFIGS: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(**SMALL),
    "qwen3": Qwen3Config(**SMALL, head_dim=8),
    "gpt2": GPT2Config(vocab_size=64, n_embd=32, n_layer=3, n_head=4),
}
TEXTS = ["the warm sea ice map of the north", "cold water station record (surface), 10.5% of it"]
QUERIES = [Query("q", "warm sea"), Query("r", "ice station in the north")]


@pytest.fixture(scope="module", params=CONFIGS)
def model(request):
    torch.manual_seed(0)
    backbone = AutoModel.from_config(CONFIGS[request.param])
    model = SingleNeuronModel(backbone, torch.nn.Linear(32, 1), pooling="last", has_token_types=False)
    return model.double().eval()


def alone(model, sequence):
    ids = torch.tensor([sequence.tolist()])
    with torch.inference_mode():
        return float(model(ids, torch.ones_like(ids), torch.zeros_like(ids))[0])


def sequence(*tokens):
    return array("i", tokens)


def left_out(tokens):
    """Return sequences that lack two or none of some tokens between a head and an end."""
    kept = [[*one] for one in combinations(tokens, len(tokens) - 2)]
    return [sequence(1, 2, *one, 3) for one in [tokens, *kept]]


def test_every_score_is_that_of_the_sequence_alone(model):
    tree = PrefixTree(model)
    sequences = left_out([7, 9, 11, 13, 15, 17, 19])
    for start in range(0, len(sequences), 5):
        scores = tree.score(sequences[start : start + 5])
        assert scores == pytest.approx([alone(model, one) for one in sequences[start : start + 5]], abs=1e-12)


def test_a_call_may_hold_ends_beginnings_and_repeats_of_other_sequences(model):
    sequences = [
        sequence(1, 2, 3, 4, 5),
        sequence(1, 2, 3),
        sequence(1, 2, 3, 4, 5, 6),
        sequence(1, 2, 3),
        sequence(4, 5, 3),
    ]
    tree = PrefixTree(model)
    assert tree.score(sequences) == pytest.approx([alone(model, one) for one in sequences], abs=1e-12)
    assert tree.score(sequences[::-1]) == pytest.approx(
        [alone(model, one) for one in sequences[::-1]], abs=1e-12
    )


def test_what_sequences_share_on_the_left_is_computed_once(model):
    tree = PrefixTree(model)
    tree.score([sequence(1, 2, 3, 4, 5)])
    assert (tree.num_tokens, tree.num_padded) == (5, 5)
    tree.score([sequence(1, 2, 3, 9), sequence(1, 2, 3, 4, 8)])
    assert (tree.num_tokens, tree.num_padded) == (7, 7)
    tree.score([sequence(1, 2, 3, 4, 5), sequence(1, 2, 3, 9)])
    assert (tree.num_tokens, tree.num_padded) == (7, 7)


def test_the_tree_grows_beyond_its_first_memory(model):
    sequences = [sequence(1, 2, *(torch.arange(40) * (n + 1) % 61).tolist(), 3) for n in range(60)]
    tree = PrefixTree(model)
    scores = tree.score(sequences[:20]) + tree.score(sequences[20:])
    assert tree.num_tokens > 1500
    assert scores == pytest.approx([alone(model, one) for one in sequences], abs=1e-12)


def test_a_tree_that_may_take_little_begins_anew_and_changes_no_score(model):
    sequences = left_out([7, 9, 11, 13, 15, 17, 19])
    tree = PrefixTree(model, max_bytes=1)
    scores = [score for one in sequences for score in tree.score([one])]
    assert scores == pytest.approx([alone(model, one) for one in sequences], abs=1e-12)
    assert tree.num_tokens <= 10


def test_no_call_of_the_model_has_more_padded_tokens_than_allowed(model):
    sizes = []
    handle = model.backbone.register_forward_pre_hook(
        lambda module, args, inputs: sizes.append(inputs["input_ids"].numel()), with_kwargs=True
    )
    sequences = [sequence(1, 2, *(torch.arange(10) * (n + 1) % 61).tolist(), 3) for n in range(30)]
    scores = PrefixTree(model, max_tokens=24).score(sequences)
    handle.remove()
    assert max(sizes) <= 24
    assert scores == pytest.approx([alone(model, one) for one in sequences], abs=1e-12)


@pytest.fixture(scope="module", params=["causal", "encoder"])
def scorer(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    {"causal": save_tiny_causal, "encoder": save_tiny_encoder}[request.param](folder, TEXTS, seed=0)
    model = build_model(folder, head="linear", num_layers=None, seed=0)
    encoder = build_encoder(load_tokenizer(folder), model.config, head="linear", max_length=40)
    return LanguageModelScorer(model.double(), encoder, digest="untrained")


def test_near_copies_score_as_the_scorer_does(scorer):
    words = TEXTS[0].split()
    gap = scorer.tokenizer.mask_token or "..."
    texts = [
        " ".join(gap if place in off else word for place, word in enumerate(words))
        for off in combinations(range(len(words)), 2)
    ] + ["", "  ", TEXTS[1], TEXTS[1] * 3]
    asked = [(query, text) for text in texts for query in QUERIES]
    near = NearCopies(scorer)
    assert near.is_tree == scorer.model.can_pack
    scores = near.score_texts(asked[:7]) + near.score_texts(asked[7:])
    expected = scorer.score_pairs([(query, Document("d", text)) for query, text in asked])
    assert scores == pytest.approx(expected, abs=1e-9)


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
    """Return encoders over tokenizers of three kinds: WordPiece without and with a mask, byte-level BPE."""
    found = []
    for save in (save_tiny_causal, save_tiny_encoder, save_tiny_writer):
        folder = tmp_path_factory.mktemp("encoder")
        save(folder, TEXTS, seed=0)
        config = build_model(folder, head="linear", num_layers=None, seed=0).config
        found.append(build_encoder(load_tokenizer(folder), config, head="linear", max_length=60))
    return found


@given(
    st.lists(st.sampled_from([*"abz .,'()\n\t-0158é海🌊\u0301", "[MASK]", " ..."]), max_size=60).map("".join)
)
def test_pieces_have_the_tokens_of_the_whole_text(encoders, text):
    for encoder in encoders:
        pieces = PieceEncoder(encoder)
        assert pieces.cuts_at_spaces
        whole = encoder.encode(QUERIES[0], Document("d", text))
        first, _, again = pieces.encode([(QUERIES[0], one) for one in (text, TEXTS[0], text)])
        assert first == again == whole
        assert pieces.encode([(QUERIES[0], text)]) == [whole]
        assert pieces.sequences([(QUERIES[0], text)]) == [array("i", whole.input_ids)]


def test_few_texts_and_many_are_tokenised_alike(encoders):
    pieces = ["Sea-ice", " [MASK]", " (2", " naïve", " ...", " 日本", " x_y", " —", " end."]
    for encoder in encoders:
        ids = [encoder.text_ids(piece) for piece in pieces]
        for number in (1, FEW_TEXTS - 1, FEW_TEXTS, len(pieces)):
            assert encoder.batch_ids(pieces[:number]) == ids[:number]


def test_a_tokenizer_that_does_not_cut_at_spaces_reads_the_whole_text(encoders):
    class Reversing:
        """Gives the letters from the last to the first, as no tokenizer that cuts at spaces does."""

        def __init__(self, encoder):
            self._encoder = encoder
            self.head, self.joined, self.room = encoder.head, encoder.joined, encoder.room

        def text_ids(self, text):
            return self._encoder.text_ids(text)[::-1]

        def batch_ids(self, texts):
            return [self.text_ids(text) for text in texts]

    encoder: Any = Reversing(encoders[0])
    (found,) = PieceEncoder(encoder).encode([(QUERIES[0], TEXTS[0])])
    assert found == encoder.joined(encoder.head(QUERIES[0]), encoder.text_ids(TEXTS[0]))
