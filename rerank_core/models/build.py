"""An untrained single-neuron scorer from a pretrained model folder."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from rerank_core.errors import ConfigError
from rerank_core.models.scorer import (
    PAIR_TEMPLATE,
    TEXT_TEMPLATE,
    YES_NO_TEMPLATE,
    HeadKind,
    PairEncoder,
    Pooling,
    PromptFormat,
    SingleNeuronModel,
)

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

MAX_QUERY_SHARE = 0.5
"""A query may take at most this share of the sequence."""

PRODUCT_SCALE = 20.0
PRODUCT_CENTRE = 0.8
"""An untrained encoder scores 20 * (cosine - 0.8).

After joint attention MiniLM's cosines lie about 0.82 ± 0.04 (ADR 0005).
"""


def is_causal(config: PretrainedConfig) -> bool:
    """Return whether a configuration is of a causal language model: transformers knows one of its type."""
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )

    kind = config.model_type
    return kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and kind not in MODEL_FOR_MASKED_LM_MAPPING_NAMES


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Return a folder's tokenizer, with a padding token; runs no code of the folder."""
    from transformers import AutoTokenizer

    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
        folder, trust_remote_code=False, local_files_only=True
    )
    if not tokenizer.is_fast:
        raise ConfigError(f"{folder} has no fast tokenizer (tokenizer.json); save one with `save_pretrained`")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def build_encoder(
    tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig, *, head: HeadKind, max_length: int
) -> PairEncoder:
    """Return the encoder with the default template of the model's kind and head.

    Raises:
        ConfigError: the model has fewer positions than `max_length`.
    """
    positions = getattr(config, "max_position_embeddings", None)
    if positions is not None and max_length > positions:
        raise ConfigError(
            f"max_length {max_length} exceeds the model's {positions} positions; lower --max-length"
        )
    if is_causal(config):
        template = YES_NO_TEMPLATE if head == "yes_no" else TEXT_TEMPLATE
    else:
        template = PAIR_TEMPLATE
    return PairEncoder(
        tokenizer,
        PromptFormat(
            template=template,
            max_length=max_length,
            max_query_length=int(max_length * MAX_QUERY_SHARE),
        ),
    )


def default_pooling(config: PretrainedConfig) -> Pooling:
    """Return "last" for causal language models, which see everything there, and "product" for encoders."""
    return "last" if is_causal(config) else "product"


def has_token_types(config: PretrainedConfig) -> bool:
    """Return whether the model tells segments apart, as BERT does."""
    return not is_causal(config) and getattr(config, "type_vocab_size", 0) > 1


def build_model(folder: Path, *, head: HeadKind, num_layers: int | None, seed: int) -> SingleNeuronModel:
    """Return a pretrained backbone in fp32 under a new single neuron.

    Raises:
        ConfigError: the model has fewer layers than asked for, or no rows for "yes" and "no".
    """
    from transformers import AutoConfig, AutoModel

    config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    if num_layers is not None:
        if num_layers > config.num_hidden_layers:
            raise ConfigError(
                f"{folder} has {config.num_hidden_layers} layers, not {num_layers}; lower --num-layers"
            )
        config.num_hidden_layers = num_layers
    rows = _yes_no_difference(folder) if head == "yes_no" else None
    extra = {} if is_causal(config) else {"add_pooling_layer": False}
    backbone: PreTrainedModel = AutoModel.from_pretrained(
        folder,
        config=config,
        dtype=torch.float32,
        use_safetensors=True,
        trust_remote_code=False,
        local_files_only=True,
        **extra,
    )
    pooling = default_pooling(config)
    neuron = nn.Linear(config.hidden_size, 1)
    with torch.no_grad():
        neuron.weight.copy_(_head_weight(neuron.weight, pooling=pooling, rows=rows, seed=seed))
        neuron.bias.fill_(-PRODUCT_SCALE * PRODUCT_CENTRE if pooling == "product" else 0.0)
    return SingleNeuronModel(backbone, neuron, pooling=pooling, has_token_types=has_token_types(config))


def _head_weight(like: Tensor, *, pooling: Pooling, rows: Tensor | None, seed: int) -> Tensor:
    """Return the neuron's first weights, (1, width).

    On a product of unit vectors equal weights make the score the cosine between query and document, in
    logits; else the weights are the difference of two output rows, or drawn from N(0, 0.02²).
    """
    if rows is not None:
        return rows.unsqueeze(0)
    if pooling == "product":
        return torch.full_like(like, PRODUCT_SCALE)
    return torch.empty_like(like).normal_(std=0.02, generator=torch.Generator().manual_seed(seed))


def _yes_no_difference(folder: Path) -> Tensor:
    """Return the output row of " yes" minus that of " no", (width,)."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    if not is_causal(config):
        raise ConfigError(f"{folder} is an encoder without output rows for words; use --head linear")
    tokenizer = load_tokenizer(folder)
    yes, no = (tokenizer.encode(word, add_special_tokens=False) for word in (" yes", " no"))
    if len(yes) != 1 or len(no) != 1 or tokenizer.unk_token_id in (*yes, *no):
        raise ConfigError(
            f"the tokenizer of {folder} has no single token for ' yes' and ' no'; use --head linear"
        )
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, use_safetensors=True, trust_remote_code=False, local_files_only=True
    )
    rows: Tensor = model.get_output_embeddings().weight.detach()
    return rows[yes[0]] - rows[no[0]]
