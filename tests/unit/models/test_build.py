"""An untrained scorer from a model folder."""

import shutil
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    BloomConfig,
    BloomModel,
    ByT5Tokenizer,
    DistilBertConfig,
    DistilBertModel,
    MPNetConfig,
    MPNetModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaModel,
)

from rerank_core.errors import ArtefactError, ConfigError
from rerank_core.models.build import build_encoder, build_model, load_config, load_tokenizer
from rerank_core.models.scorer import LanguageModelScorer, pad, unit_mean
from rerank_core.records import Document, Query


def test_the_same_seed_gives_the_same_head(causal_folder) -> None:
    heads = [
        build_model(causal_folder, head="linear", num_layers=None, seed=seed).head.weight
        for seed in (1, 1, 2)
    ]
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


def test_an_untrained_encoder_scores_the_cosine_of_query_and_document(encoder_folder) -> None:
    model = build_model(encoder_folder, head="linear", num_layers=None, seed=0)
    encoder = build_encoder(load_tokenizer(encoder_folder), model.config, head="linear", max_length=48)
    pair = encoder.encode(Query("q", "sea ice"), Document("d", "snow depth on sea ice"))
    inputs = pad([pair], pad_id=0)
    with torch.inference_mode():
        hidden = model.backbone(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            token_type_ids=inputs["segment_ids"],
        ).last_hidden_state[0]
    cosine = torch.cosine_similarity(
        hidden[: pair.document_start].mean(dim=0), hidden[pair.document_start :].mean(dim=0), dim=0
    )
    score = LanguageModelScorer(model, encoder, digest="x").score(
        Query("q", "sea ice"), [Document("d", "snow depth on sea ice")]
    )
    assert score[0] == pytest.approx(20 * (cosine.item() - 0.8), abs=1e-4)


def test_the_yes_no_head_scores_the_difference_of_two_logits(causal_folder) -> None:
    model = build_model(causal_folder, head="yes_no", num_layers=None, seed=0)
    tokenizer = load_tokenizer(causal_folder)
    encoder = build_encoder(tokenizer, model.config, head="yes_no", max_length=64)
    query, document = Query("q", "sea ice"), Document("d", "snow depth on sea ice")
    ids = torch.tensor([encoder.encode(query, document).input_ids])
    language_model = AutoModelForCausalLM.from_pretrained(causal_folder, dtype=torch.float32)
    with torch.inference_mode():
        logits = language_model(ids).logits[0, -1]
    yes, no = (tokenizer.encode(word, add_special_tokens=False)[0] for word in (" yes", " no"))
    score = LanguageModelScorer(model, encoder, digest="x").score(query, [document])[0]
    assert score == pytest.approx((logits[yes] - logits[no]).item(), abs=1e-5)


def test_an_encoder_has_no_yes_no_head(encoder_folder) -> None:
    with pytest.raises(ConfigError, match="use --head linear"):
        build_model(encoder_folder, head="yes_no", num_layers=None, seed=0)


def test_a_tokenizer_without_yes_and_no_has_no_yes_no_head(causal_folder, tmp_path) -> None:
    folder = shutil.copytree(causal_folder, tmp_path / "model")
    vocabulary = {"[UNK]": 0, "[PAD]": 1, "sea": 2}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]").save_pretrained(
        folder
    )
    with pytest.raises(ConfigError, match="no single token"):
        build_model(folder, head="yes_no", num_layers=None, seed=0)


def test_only_the_first_layers_are_kept_on_request(causal_folder) -> None:
    layers = build_model(causal_folder, head="linear", num_layers=1, seed=0).backbone.layers
    assert isinstance(layers, torch.nn.ModuleList)
    assert len(layers) == 1


def test_more_layers_than_there_are_is_refused(causal_folder) -> None:
    with pytest.raises(ConfigError, match="has 2 layers, not 3"):
        build_model(causal_folder, head="linear", num_layers=3, seed=0)


def test_more_length_than_positions_is_refused(encoder_folder) -> None:
    model = build_model(encoder_folder, head="linear", num_layers=None, seed=0)
    with pytest.raises(ConfigError, match="128 positions"):
        build_encoder(load_tokenizer(encoder_folder), model.config, head="linear", max_length=129)


def test_a_tokenizer_that_keeps_no_offsets_is_refused(tmp_path) -> None:
    ByT5Tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="has no fast tokenizer"):
        load_tokenizer(tmp_path)


def test_a_tokenizer_without_padding_pads_with_its_end(causal_folder, tmp_path) -> None:
    tokenizer = load_tokenizer(causal_folder)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path)
    again = load_tokenizer(tmp_path)
    assert again.pad_token_id == again.eos_token_id


SIZES: dict[str, Any] = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 32}
FAMILIES = {
    "roberta": lambda n, pad_id: RobertaModel(
        RobertaConfig(
            vocab_size=n,
            pad_token_id=pad_id,
            max_position_embeddings=50,
            type_vocab_size=1,
            intermediate_size=64,
            **SIZES,
        )
    ),
    "mpnet": lambda n, pad_id: MPNetModel(
        MPNetConfig(
            vocab_size=n, pad_token_id=pad_id, max_position_embeddings=50, intermediate_size=64, **SIZES
        )
    ),
    "distilbert": lambda n, pad_id: DistilBertModel(
        DistilBertConfig(
            vocab_size=n,
            pad_token_id=pad_id,
            max_position_embeddings=48,
            n_layers=2,
            n_heads=4,
            dim=32,
            hidden_dim=64,
        )
    ),
}


@pytest.fixture(params=FAMILIES)
def family_folder(request, encoder_folder, tmp_path):
    tokenizer = load_tokenizer(encoder_folder)
    model = FAMILIES[request.param](len(tokenizer), tokenizer.pad_token_id)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    return tmp_path


def test_other_encoders_score_at_their_own_default_positions(family_folder) -> None:
    model = build_model(family_folder, head="linear", num_layers=None, seed=0)
    encoder = build_encoder(load_tokenizer(family_folder), model.config, head="linear", max_length=48)
    query = Query("q", "sea ice")
    documents = [Document("a", "snow depth on sea ice"), Document("b", "river " * 100)]
    plain = AutoModel.from_pretrained(family_folder, dtype=torch.float32).eval()
    expected = []
    for document in documents:
        pair = encoder.encode(query, document)
        inputs = pad([pair], pad_id=encoder.tokenizer.pad_token_id)
        with torch.inference_mode():
            hidden = plain(inputs["input_ids"], attention_mask=inputs["attention_mask"]).last_hidden_state
        cosine = (
            unit_mean(hidden, 1 - inputs["segment_ids"]) * unit_mean(hidden, inputs["segment_ids"])
        ).sum()
        expected.append(20 * (cosine.item() - 0.8))
    scores = LanguageModelScorer(model, encoder, digest="x").score(query, documents)
    assert scores == pytest.approx(expected, abs=1e-4)


def test_positions_kept_for_padding_hold_no_text(family_folder) -> None:
    with pytest.raises(ConfigError, match="exceeds the model's 48 positions"):
        build_encoder(load_tokenizer(family_folder), load_config(family_folder), head="linear", max_length=49)


def test_a_model_that_takes_no_positions_scores(causal_folder, tmp_path) -> None:
    tokenizer = load_tokenizer(causal_folder)
    BloomModel(BloomConfig(vocab_size=len(tokenizer), hidden_size=32, n_layer=2, n_head=4)).save_pretrained(
        tmp_path
    )
    tokenizer.save_pretrained(tmp_path)
    model = build_model(tmp_path, head="linear", num_layers=None, seed=0)
    encoder = build_encoder(tokenizer, model.config, head="linear", max_length=48)
    query, document = Query("q", "sea ice"), Document("d", "snow depth on sea ice")
    ids = torch.tensor([encoder.encode(query, document).input_ids])
    with torch.inference_mode():
        state = AutoModel.from_pretrained(tmp_path, dtype=torch.float32).eval()(ids).last_hidden_state[0, -1]
        expected = model.head(state).item()
    documents = [document, Document("long", "river " * 20)]
    score = LanguageModelScorer(model, encoder, digest="x").score(query, documents)[0]
    assert score == pytest.approx(expected, abs=1e-5)


def test_a_model_folder_without_a_tokenizer_is_refused(causal_folder, tmp_path) -> None:
    folder = shutil.copytree(causal_folder, tmp_path / "model")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ArtefactError, match=r"the tokenizer .* is missing or broken"):
        load_tokenizer(folder)
