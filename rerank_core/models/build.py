"""An untrained single-neuron scorer from a pretrained model folder."""

from __future__ import annotations

import copy
import inspect
from typing import TYPE_CHECKING

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import Tensor, nn

from rerank_core.errors import ArtefactError, ConfigError
from rerank_core.models.scorer import (
    PAIR_TEMPLATE,
    TEXT_TEMPLATE,
    YES_NO_TEMPLATE,
    HeadKind,
    PairEncoder,
    Pooling,
    PromptFormat,
    SingleNeuronModel,
    first_position,
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


LOAD_ERRORS = (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    RuntimeError,
    SafetensorError,
    StrictDataclassError,
)
"""What transformers, tokenizers and safetensors raise on broken files."""


def is_causal(config: PretrainedConfig) -> bool:
    """Return whether a configuration is of a causal language model: transformers knows one of its type."""
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )

    kind = config.model_type
    return kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and kind not in MODEL_FOR_MASKED_LM_MAPPING_NAMES


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Return a folder's tokenizer, with a padding token; runs no code of the folder.

    Raises:
        ArtefactError: its files are missing or broken.
        ConfigError: it keeps no offsets, or has neither a padding nor an end token.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True
        )
    except Exception as error:
        if not isinstance(error, LOAD_ERRORS) and type(error) is not Exception:  # tokenizers raises the base
            raise
        raise ArtefactError(
            f"the tokenizer (tokenizer.json, tokenizer_config.json) in {folder} is missing or broken"
            f" ({first_line(error)}); copy the folder again"
        ) from error
    if not tokenizer.is_fast:
        raise ConfigError(f"{folder} has no fast tokenizer (tokenizer.json); save one with `save_pretrained`")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.pad_token_id is None:
        raise ConfigError(
            f"the tokenizer in {folder} has neither a padding nor an end token; set `pad_token` and save it"
        )
    return tokenizer


def load_config(folder: Path) -> PretrainedConfig:
    """Return a model folder's configuration; runs no code of the folder.

    Raises:
        ArtefactError: `config.json` is missing, broken or of a model that transformers does not know.
    """
    from transformers import AutoConfig

    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True
        )
    except LOAD_ERRORS as error:
        raise ArtefactError(
            f"{folder / 'config.json'} is broken or of an unknown kind ({first_line(error)});"
            " copy the folder again, or use a model that transformers knows"
        ) from error
    return config


def load_shortened_config(folder: Path, *, num_layers: int | None) -> PretrainedConfig:
    """Return a model folder's configuration with only the first layers, where a number is given.

    Raises:
        ConfigError: the model has fewer layers than asked for.
        ArtefactError: `config.json` is broken.
    """
    config = load_config(folder)
    if num_layers is not None:
        if num_layers > config.num_hidden_layers:
            raise ConfigError(
                f"{folder} has {config.num_hidden_layers} layers, not {num_layers}; lower --num-layers"
            )
        config.num_hidden_layers = num_layers
    return config


def load_backbone(folder: Path, config: PretrainedConfig) -> PreTrainedModel:
    """Return a folder's model in fp32, without output layers; runs no code of the folder.

    Raises:
        ArtefactError: the weights are broken or do not fit `config`.
    """
    from transformers import AutoModel

    try:
        backbone: PreTrainedModel = AutoModel.from_pretrained(
            folder,
            config=config,
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            **_without_pooling_layer(skeleton(config)),
        )
    except LOAD_ERRORS as error:
        raise ArtefactError(
            f"the weights in {folder} are broken or do not fit its config.json ({first_line(error)});"
            " copy the folder again"
        ) from error
    return backbone


def first_line(error: BaseException) -> str:
    """Return an error's kind with the first line of its message."""
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"


def usable_positions(config: PretrainedConfig) -> int | None:
    """Return how many tokens a model has positions for, None where nothing bounds them.

    RoBERTa's family keeps the first rows of its position embedding for padding.
    """
    positions: int | None = getattr(config, "max_position_embeddings", None)
    return None if positions is None else positions - first_position(skeleton(config))


def refuse_longer_than_positions(config: PretrainedConfig, *, max_length: int) -> None:
    """Check that a model has a position for every token.

    Raises:
        ConfigError: it has fewer.
    """
    positions = usable_positions(config)
    if positions is not None and max_length > positions:
        raise ConfigError(
            f"max_length {max_length} exceeds the model's {positions} positions; lower --max-length"
        )


def skeleton(config: PretrainedConfig) -> PreTrainedModel:
    """Return the model of `load_backbone` without any weights: in no memory, within milliseconds."""
    from transformers import AutoModel

    with torch.device("meta"):
        model: PreTrainedModel = AutoModel.from_config(copy.deepcopy(config), trust_remote_code=False)
        if settings := _without_pooling_layer(model):
            model = AutoModel.from_config(copy.deepcopy(config), trust_remote_code=False, **settings)
    return model


def _without_pooling_layer(model: PreTrainedModel) -> dict[str, bool]:
    accepted = inspect.signature(type(model).__init__).parameters
    return {"add_pooling_layer": False} if "add_pooling_layer" in accepted else {}


def build_encoder(
    tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig, *, head: HeadKind, max_length: int
) -> PairEncoder:
    """Return the encoder with the default template of the model's kind and head.

    Raises:
        ConfigError: the model has fewer positions than `max_length`.
    """
    refuse_longer_than_positions(config, max_length=max_length)
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
        ArtefactError: `config.json` or the weights are broken.
    """
    config = load_shortened_config(folder, num_layers=num_layers)
    rows = _yes_no_difference(folder) if head == "yes_no" else None
    backbone = load_backbone(folder, config)
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


def yes_no_tokens(folder: Path) -> tuple[int, int]:
    """Return the tokens for " yes" and " no", between whose output rows the neuron starts.

    Raises:
        ConfigError: the model is an encoder, or its tokenizer has no single token for one of them.
    """
    if not is_causal(load_config(folder)):
        raise ConfigError(f"{folder} is an encoder without output rows for words; use --head linear")
    tokenizer = load_tokenizer(folder)
    yes, no = (tokenizer.encode(word, add_special_tokens=False) for word in (" yes", " no"))
    if len(yes) != 1 or len(no) != 1 or tokenizer.unk_token_id in (*yes, *no):
        raise ConfigError(
            f"the tokenizer of {folder} has no single token for ' yes' and ' no'; use --head linear"
        )
    return yes[0], no[0]


def _yes_no_difference(folder: Path) -> Tensor:
    """Return the output row of " yes" minus that of " no", (width,)."""
    from transformers import AutoModelForCausalLM

    yes, no = yes_no_tokens(folder)
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, use_safetensors=True, trust_remote_code=False, local_files_only=True
    )
    rows: Tensor = model.get_output_embeddings().weight.detach()
    return rows[yes] - rows[no]
