"""Tiny language models with random weights, written to a folder as real ones are: for tests and dry runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    BertConfig,
    BertForMaskedLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

SPECIAL_TOKENS = {
    "unk_token": "[UNK]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "bos_token": "[BOS]",
    "eos_token": "[EOS]",
}


def tiny_tokenizer(texts: Iterable[str], *, has_mask: bool) -> PreTrainedTokenizerFast:
    """Return a WordPiece tokenizer trained on some texts; encoders have a mask token, causal models none."""
    special = SPECIAL_TOKENS | ({"mask_token": "[MASK]"} if has_mask else {})
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=2000,
        special_tokens=list(special.values()),
        show_progress=False,
        initial_alphabet=list("yesno"),
    )
    tokenizer.train_from_iterator([*texts, " yes no yes no"], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def save_tiny_encoder(
    folder: Path, texts: Iterable[str], *, seed: int, width: int = 32, num_layers: int = 2
) -> None:
    """Write a BERT-like encoder of `num_layers` layers and 128 positions."""
    tokenizer = tiny_tokenizer(texts, has_mask=True)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        intermediate_size=2 * width,
        max_position_embeddings=128,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(seed)
    _save(BertForMaskedLM(config), tokenizer, folder)


def save_tiny_causal(
    folder: Path, texts: Iterable[str], *, seed: int, width: int = 32, num_layers: int = 2
) -> None:
    """Write a Llama-like causal language model of `num_layers` layers and 128 positions."""
    tokenizer = tiny_tokenizer(texts, has_mask=False)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=2 * width,
        max_position_embeddings=128,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    torch.manual_seed(seed)
    _save(LlamaForCausalLM(config), tokenizer, folder)


def _save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
