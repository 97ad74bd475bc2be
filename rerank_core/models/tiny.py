"""Tiny language models with random weights, written to a folder as real ones are: for tests and dry runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
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
    texts = [*texts, " yes no yes no"]
    # The trainer numbers letters within words in another order in every process, and breaks ties by number.
    letters = [f"##{letter}" for letter in sorted(set().union(*texts)) if not letter.isspace()]
    trainer = trainers.WordPieceTrainer(
        vocab_size=2000, special_tokens=[*special.values(), *letters], show_progress=False
    )
    taught = _word_pieces(None)
    taught.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=_word_pieces(taught.get_vocab()), **special)


def _word_pieces(vocabulary: dict[str, int] | None) -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer


def tiny_writer_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Return a byte-level tokenizer trained on some texts: any text comes back as it was, line breaks too."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = {name: SPECIAL_TOKENS[name] for name in ("pad_token", "bos_token", "eos_token")}
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=list(special.values()),
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator(texts, trainer)
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
    torch.manual_seed(seed)
    _save(_llama(tokenizer, width=width, num_layers=num_layers, num_positions=128), tokenizer, folder)


def save_tiny_writer(
    folder: Path, texts: Iterable[str], *, seed: int, width: int = 64, num_layers: int = 2
) -> None:
    """Write a Llama-like causal language model of 512 positions that can write any text, lists too."""
    tokenizer = tiny_writer_tokenizer(texts)
    torch.manual_seed(seed)
    _save(_llama(tokenizer, width=width, num_layers=num_layers, num_positions=512), tokenizer, folder)


def _llama(
    tokenizer: PreTrainedTokenizerFast, *, width: int, num_layers: int, num_positions: int
) -> LlamaForCausalLM:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            num_hidden_layers=num_layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=2 * width,
            max_position_embeddings=num_positions,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )


def _save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
