"""Vectors of tokens, from tiny models and from MiniLM."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from rerank_core.errors import ConfigError
from rerank_core.evaluation.text_metrics import bert_score, cosine
from rerank_core.models.build import load_backbone, load_config, load_tokenizer
from rerank_core.models.embedder import LanguageModelEmbedder, load_embedder

if TYPE_CHECKING:
    from pathlib import Path

TEXTS = ["daily sea ice", "river", "monthly river discharge of the danube at vienna"]


def test_a_texts_vectors_depend_on_it_alone(folder: Path) -> None:
    embedder = load_embedder(str(folder))
    together = embedder.embed(TEXTS)
    for text, found in zip(TEXTS, together, strict=True):
        (alone,) = embedder.embed([text])
        np.testing.assert_allclose(found, alone, atol=1e-5)
    assert [found.shape[1] for found in together] == [32, 32, 32]
    assert len(together[1]) < len(together[0]) < len(together[2])


def test_small_batches_give_the_same_vectors_in_the_same_order(folder: Path) -> None:
    backbone, tokenizer = load_backbone(folder, load_config(folder)), load_tokenizer(folder)
    whole, one_by_one = (
        LanguageModelEmbedder(backbone, tokenizer, max_length=64, max_tokens_per_batch=size).embed(TEXTS)
        for size in (8192, 1)
    )
    for first, second in zip(whole, one_by_one, strict=True):
        np.testing.assert_allclose(first, second, atol=1e-5)


def test_long_texts_are_read_in_windows_without_loss(folder: Path) -> None:
    windowed = load_embedder(str(folder), max_length=5)
    tokenizer = load_tokenizer(folder)
    ids = tokenizer(TEXTS[2], add_special_tokens=False)["input_ids"]
    assert len(ids) > 5
    backbone = load_backbone(folder, load_config(folder)).eval()
    with torch.inference_mode():
        parts = [
            backbone(input_ids=torch.tensor([ids[start : start + 5]])).last_hidden_state[0]
            for start in range(0, len(ids), 5)
        ]
    np.testing.assert_allclose(windowed.embed([TEXTS[2]])[0], torch.cat(parts), atol=1e-5)


def test_a_window_is_never_longer_than_the_models_positions(encoder_folder: Path) -> None:
    (found,) = load_embedder(str(encoder_folder)).embed(["river " * 300])  # 128 positions
    assert len(found) == 300


def test_texts_without_tokens_have_no_vectors(folder: Path) -> None:
    embedder = load_embedder(str(folder))
    assert [found.shape for found in embedder.embed(["", " ", "river"])][:2] == [(0, 32), (0, 32)]
    assert embedder.embed([]) == []


def test_minilm_reads_its_special_tokens_and_gives_only_those_of_the_text() -> None:
    embedder = load_embedder()
    folder_texts = ["sea ice [SEP]", "sea ice"]
    named, plain = embedder.embed(folder_texts)
    assert (len(plain), plain.shape[1]) == (2, 384)
    assert len(named) > 3  # "[", "sep", "]": letters of the text, no special token


def test_minilm_finds_a_paraphrase_nearer_than_another_subject() -> None:
    text, paraphrase, other = load_embedder().embed(
        [
            "Daily thickness of the sea ice around Greenland.",
            "How thick the ocean's ice near Greenland is, day by day.",
            "Votes cast in municipal elections of Spanish towns.",
        ]
    )
    assert cosine(text, paraphrase) > cosine(text, other) + 0.3
    assert bert_score(text, paraphrase) > bert_score(text, other) + 0.1


def test_an_unknown_model_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="no-such-model"):
        load_embedder("no-such-model")
