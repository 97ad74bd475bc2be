"""Counts against real models, bytes against closed forms and against what autograd keeps."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from transformers import (
    AlbertConfig,
    BertConfig,
    GPT2Config,
    LlamaConfig,
    MambaConfig,
    MixtralConfig,
    Phi3Config,
    Qwen3Config,
)

from rerank_core.errors import ArtefactError, ConfigError
from rerank_core.models.build import build_model, load_config, skeleton
from rerank_core.models.memory import (
    LayerShape,
    ModelShape,
    ParameterCounts,
    Precision,
    TrainingSetup,
    ZeroStage,
    activation_bytes,
    load_shape,
    memory_estimate,
)

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PretrainedConfig

LLAMA_8B = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
}
SMALL: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 100,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
}
GROUPED = SMALL | {"num_key_value_heads": 2}
SETUP = TrainingSetup(
    num_gpus=4, precision="bf16", max_length=32, max_tokens_per_batch=128, gradient_checkpointing=False
)
COUNTS = ParameterCounts(total=1000, trainable=800, largest_layer=300)
LAYER = LayerShape(
    hidden=8, num_heads=2, attention=8, feed_forward=32, is_gated=False, normalised=16, is_rms=False
)
SHAPE = ModelShape(counts=COUNTS, layer=LAYER, num_layers=3)


def config_folder(folder: Path, settings: dict[str, Any]) -> Path:
    (folder / "config.json").write_text(json.dumps(settings))
    return folder


def saved_folder(folder: Path, config: PretrainedConfig) -> Path:
    return config_folder(folder, config.to_dict())


# --- counts


@pytest.mark.parametrize("num_layers", [None, 1])
def test_a_scorer_is_counted_as_training_builds_it(folder: Path, num_layers: int | None) -> None:
    model = build_model(folder, head="linear", num_layers=num_layers, seed=0)
    shape = load_shape(folder, num_layers=num_layers, lora_rank=0)
    assert shape.counts.total == sum(parameter.numel() for parameter in model.parameters())
    assert shape.counts.trainable == shape.counts.total
    assert shape.num_layers == (num_layers or 2)


def test_llama_8b_is_counted_without_weights_and_without_output_layer(tmp_path: Path) -> None:
    counts = load_shape(config_folder(tmp_path, LLAMA_8B), num_layers=None, lora_rank=0).counts
    assert counts.total == 8_030_261_248 - 128256 * 4096 + 4096 + 1  # the published count, ours on top
    assert counts.largest_layer == 128256 * 4096


def test_llama_8b_has_the_published_number_of_adapter_weights(tmp_path: Path) -> None:
    folder = config_folder(tmp_path, LLAMA_8B)
    full = load_shape(folder, num_layers=None, lora_rank=0).counts
    counts = load_shape(folder, num_layers=None, lora_rank=16).counts
    assert counts.trainable == 41_943_040 + 4096 + 1
    assert counts.total == full.total + 41_943_040


def test_more_layers_than_there_are_is_refused(causal_folder: Path) -> None:
    with pytest.raises(ConfigError, match="has 2 layers, not 3"):
        load_shape(causal_folder, num_layers=3, lora_rank=0)


@pytest.mark.parametrize(
    "config",
    [
        MixtralConfig(**GROUPED),
        AlbertConfig(**SMALL | {"num_hidden_layers": 12}),
        MambaConfig(hidden_size=64, num_hidden_layers=2, vocab_size=100),
    ],
    ids=lambda config: config.model_type,
)
def test_what_is_no_dense_transformer_is_refused(config: PretrainedConfig, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"'{config.model_type}' model keeps is not known"):
        load_shape(saved_folder(tmp_path, config), num_layers=None, lora_rank=0)


def test_a_configuration_of_no_model_is_refused(tmp_path: Path) -> None:
    folder = config_folder(tmp_path, {"model_type": "bert", **SMALL, "hidden_size": 63})
    with pytest.raises(ArtefactError, match="describes no model"):
        load_shape(folder, num_layers=None, lora_rank=0)


# --- activations


def kept_bytes(config: PretrainedConfig, *, dtype: torch.dtype) -> int:
    """Bytes that autograd keeps of a forward pass of four rows of 32 tokens, parameters left out."""
    torch.manual_seed(0)
    model: torch.nn.Module = type(skeleton(config))(config)
    model.to(dtype).train()
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    inputs = torch.ones((4, 32), dtype=torch.long)
    mask = torch.ones((4, 32), dtype=torch.long)
    mask[:, -3:] = 0
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = model(input_ids=inputs, attention_mask=mask)  # held, so that no memory is used twice
    assert output.last_hidden_state.requires_grad
    return sum(kept.values())


NO_DROPOUT: dict[str, Any] = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize(
    ("config", "ratio"),
    [
        (LlamaConfig(**GROUPED), 1.0),
        (BertConfig(**SMALL, **NO_DROPOUT), 1.0),
        (Phi3Config(**GROUPED, eos_token_id=1), 0.96),  # on the CPU attention's output is laid out anew
        (Qwen3Config(**GROUPED, head_dim=16), 1.05),  # keys are counted with as many heads as queries
    ],
    ids=lambda value: getattr(value, "model_type", None),
)
def test_a_layer_keeps_what_autograd_keeps(
    config: PretrainedConfig, ratio: float, precision: Precision, tmp_path: Path
) -> None:
    config = load_config(saved_folder(tmp_path, config))
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    shape = load_shape(tmp_path, num_layers=1, lora_rank=0)
    both = kept_bytes(config, dtype=dtype)
    config.num_hidden_layers = 1
    one = kept_bytes(config, dtype=dtype)
    estimated = activation_bytes(shape, replace(SETUP, precision=precision))
    assert estimated == pytest.approx(ratio * (both - one), rel=0.02)


def test_without_fused_attention_and_dropout_a_gpt_layer_keeps_what_was_published() -> None:
    # Korthikanti et al. 2022, eq. 1: s b h (34 + 5 a s / h), of which two bytes are masks of dropout and
    # 5 a s fused attention recomputes, from a mask of 2 s and a log-sum-exp of 4 a
    h, a, s, b = 8, 2, 32, 4
    expected = b * s * (h * (34 - 2) + 2 * s + 4 * a)
    assert activation_bytes(replace(SHAPE, num_layers=1), SETUP) == expected


def test_checkpointing_keeps_the_layers_inputs_and_one_layer() -> None:
    whole = activation_bytes(replace(SHAPE, num_layers=1), SETUP)
    kept = activation_bytes(SHAPE, replace(SETUP, gradient_checkpointing=True))
    assert kept == 3 * 128 * 8 * 2 + whole


def test_one_row_is_in_a_batch_however_long_it_is() -> None:
    short = replace(SETUP, max_tokens_per_batch=1)
    assert activation_bytes(SHAPE, short) == activation_bytes(SHAPE, SETUP) / 4


def test_a_model_that_names_no_feed_forward_width_has_four_times_the_hidden_one(tmp_path: Path) -> None:
    config = GPT2Config(n_embd=64, n_layer=2, n_head=4, vocab_size=100)
    layer = load_shape(saved_folder(tmp_path, config), num_layers=None, lora_rank=0).layer
    assert (layer.feed_forward, layer.is_gated, layer.is_rms) == (256, False, False)


# --- stages

BY_HAND: list[tuple[Precision, ZeroStage, bool, tuple[int, int, int, int]]] = [
    # parameters, gradients, optimiser, step
    ("bf16", 0, False, (2000, 1600, 9600, 6400)),
    ("bf16", 1, False, (2000, 1600, 2400, 1600)),
    ("bf16", 2, False, (2000, 400, 2400, 1600)),
    ("bf16", 3, False, (2 * (250 + 300), 2 * (200 + 300), 2400, 1600)),
    ("bf16", 1, True, (2000, 1600, 0, 0)),
    ("bf16", 2, True, (2000, 600, 0, 0)),
    ("bf16", 3, True, (1100, 600, 0, 0)),
    ("fp32", 0, False, (4000, 3200, 6400, 3200)),
    ("fp32", 1, False, (4000, 3200, 2400, 800)),
    ("fp32", 2, False, (4000, 800, 2400, 800)),
    ("fp32", 3, False, (2200, 2000, 2400, 1600)),
]


@pytest.mark.parametrize(("precision", "stage", "is_offloaded", "expected"), BY_HAND)
def test_the_parts_are_those_computed_by_hand(
    precision: Precision, stage: ZeroStage, is_offloaded: bool, expected: tuple[int, ...]
) -> None:
    setup = replace(SETUP, precision=precision)
    found = memory_estimate(SHAPE, setup, zero_stage=stage, is_offloaded=is_offloaded)
    assert (found.parameters, found.gradients, found.optimizer, found.step) == expected
    assert found.host == (16_000 if not is_offloaded else max(16_000, 12_800))
    assert found.gpu == sum(expected[:3]) + max(found.activations, found.step)


def test_a_large_share_is_updated_in_parts_under_stage_3() -> None:
    counts = ParameterCounts(total=8 * 10**9, trainable=8 * 10**9, largest_layer=10)
    found = memory_estimate(replace(SHAPE, counts=counts), SETUP, zero_stage=3, is_offloaded=False)
    assert found.step == 8 * 10**9


def test_no_gradient_is_gathered_of_more_than_is_trained() -> None:
    counts = ParameterCounts(total=1000, trainable=8, largest_layer=300)
    found = memory_estimate(replace(SHAPE, counts=counts), SETUP, zero_stage=3, is_offloaded=False)
    assert found.gradients == 2 * (2 + 8)


def test_one_gpu_has_nothing_to_share() -> None:
    alone = replace(SETUP, num_gpus=1)
    found = [memory_estimate(SHAPE, alone, zero_stage=s, is_offloaded=False).gpu for s in (0, 1, 2)]
    assert len(set(found)) == 1


def test_stage_0_offloads_nothing() -> None:
    with pytest.raises(ConfigError, match="take a stage of 1 to 3"):
        memory_estimate(SHAPE, SETUP, zero_stage=0, is_offloaded=True)


@pytest.mark.parametrize("name", ["num_gpus", "max_length", "max_tokens_per_batch"])
def test_a_setup_of_nothing_is_refused(name: str) -> None:
    nothing: dict[str, Any] = {name: 0}
    with pytest.raises(ConfigError, match=f"{name} must be at least 1, got 0"):
        replace(SETUP, **nothing)
