"""How much memory training a model takes, from its configuration alone.

Formulas write P for all numbers of the model, T for those that are trained, L for those of its largest layer,
N for the GPUs, and w for the bytes of a number: 2 under bf16, 4 under fp32. They follow DeepSpeed 0.19 with
torch's AdamW. Left out are the CUDA context, the buckets of communication (5e8 w under ZeRO 1 to 3) and
fragmentation: leave a tenth of a GPU free.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from torch import nn
from transformers.pytorch_utils import Conv1D

from rerank_core.errors import ArtefactError, ConfigError
from rerank_core.models.build import LOAD_ERRORS, first_line, load_shortened_config, skeleton

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from transformers import PretrainedConfig, PreTrainedModel

ZeroStage = Literal[0, 1, 2, 3]
Precision = Literal["fp32", "bf16"]

FP32_BYTES = 4
NEEDED_SETTINGS = ("hidden_size", "num_attention_heads", "num_hidden_layers")

SUB_GROUP = 10**9
"""Numbers that the optimiser of ZeRO 3 updates at once (DeepSpeed's `sub_group_size`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ParameterCounts:
    """How many numbers a scorer has, its LoRA adapters included."""

    total: int
    trainable: int
    largest_layer: int  # that one module holds itself, as DeepSpeed counts: mostly the embedding


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerShape:
    """The widths of one layer of a dense transformer, in numbers per token."""

    hidden: int
    num_heads: int
    attention: int  # of all heads together
    feed_forward: int
    is_gated: bool  # the feed-forward part multiplies two projections, as Llama does
    normalised: int  # summed over the layer's normalisations
    is_rms: bool  # the normalisations compute in fp32, whatever the precision


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """All that an estimate needs to know of a model."""

    counts: ParameterCounts
    layer: LayerShape
    num_layers: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSetup:
    """All that an estimate needs to know of a training run, besides its ZeRO stage.

    Raises:
        ConfigError: a number is below 1.
    """

    num_gpus: int
    precision: Precision
    max_length: int  # tokens of one row
    max_tokens_per_batch: int  # padded tokens of one forward and backward pass, or one row
    gradient_checkpointing: bool

    def __post_init__(self) -> None:
        for name in ("num_gpus", "max_length", "max_tokens_per_batch"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")

    @property
    def num_bytes(self) -> int:
        """Bytes of a number: w."""
        return 2 if self.precision == "bf16" else FP32_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryEstimate:
    """Bytes on each GPU, part by part, and in the host."""

    zero_stage: ZeroStage
    is_offloaded: bool  # the optimiser's states, and its arithmetic, are on the CPU
    parameters: int
    gradients: int
    optimizer: int
    activations: int
    step: int  # what the optimiser's step takes for a moment, when the activations are gone
    host: int  # of all workers together, on one machine

    @property
    def gpu(self) -> int:
        """The peak of one GPU: activations and the optimiser's step take turns."""
        return self.parameters + self.gradients + self.optimizer + max(self.activations, self.step)


def load_shape(folder: Path, *, num_layers: int | None, lora_rank: int) -> ModelShape:
    """Return the shape of the scorer that training builds on a folder, of which only `config.json` is read.

    Raises:
        ArtefactError: `config.json` is broken.
        ConfigError: the model has fewer layers than asked for, or is no dense transformer.
    """
    config = load_shortened_config(folder, num_layers=num_layers)
    if any(not hasattr(config, name) for name in NEEDED_SETTINGS):
        raise _unknown(config)
    try:
        backbone = skeleton(config)
    except LOAD_ERRORS as error:
        raise ArtefactError(
            f"{folder / 'config.json'} describes no model ({first_line(error)}); copy the folder again"
        ) from error
    return ModelShape(
        counts=parameter_counts(backbone, lora_rank=lora_rank),
        layer=_layer_shape(backbone, config),
        num_layers=config.num_hidden_layers,
    )


def parameter_counts(backbone: PreTrainedModel, *, lora_rank: int) -> ParameterCounts:
    """Return the counts of a backbone under a single neuron, which is always trained.

    LoRA adds r (rows + columns) numbers to every matrix (Hu et al. 2021, arXiv:2106.09685) and freezes all
    others.
    """
    neuron = backbone.config.hidden_size + 1
    frozen = sum(parameter.numel() for parameter in backbone.parameters())
    adapters = lora_rank * sum(sum(matrix.weight.shape) for matrix in _matrices(backbone))
    return ParameterCounts(
        total=frozen + adapters + neuron,
        trainable=neuron + (adapters if lora_rank else frozen),
        largest_layer=max(
            sum(parameter.numel() for parameter in module.parameters(recurse=False))
            for module in backbone.modules()
        ),
    )


def _matrices(module: nn.Module) -> Iterable[nn.Linear | Conv1D]:
    return (part for part in module.modules() if isinstance(part, nn.Linear | Conv1D))


def _layer_shape(backbone: PreTrainedModel, config: PretrainedConfig) -> LayerShape:
    """Return the widths of the first layer.

    Two matrices of hidden × feed-forward make a plain feed-forward part, three a gated one.

    Raises:
        ConfigError: there is no such layer, for instance because there are experts or no attention.
    """
    lists = (part for part in backbone.modules() if isinstance(part, nn.ModuleList))
    layer = next((part[0] for part in lists if len(part) == config.num_hidden_layers), None)
    if layer is None:
        raise _unknown(config)
    hidden, num_heads = config.hidden_size, config.num_attention_heads
    attention = num_heads * (getattr(config, "head_dim", None) or hidden // num_heads)
    feed_forward = getattr(config, "intermediate_size", None) or 4 * hidden
    widths = {feed_forward, 2 * feed_forward}  # the latter where two projections are one matrix
    wide = [matrix.weight.numel() for matrix in _matrices(layer) if widths.intersection(matrix.weight.shape)]
    num_wide = sum(wide) / (hidden * feed_forward)
    if num_wide not in (2, 3):
        raise _unknown(config)
    norms = [part for part in layer.modules() if _norm_width(part)]
    return LayerShape(
        hidden=hidden,
        num_heads=num_heads,
        attention=attention,
        feed_forward=feed_forward,
        is_gated=num_wide == 3,
        normalised=sum(hidden if _norm_width(norm) == hidden else attention for norm in norms),
        is_rms=not any(isinstance(norm, nn.LayerNorm) for norm in norms),
    )


def _norm_width(module: nn.Module) -> int:
    """Return how many numbers a normalisation scales at once, 0 for all else; it alone has a 1-d weight."""
    weight = getattr(module, "weight", None)
    return len(weight) if isinstance(weight, nn.Parameter) and weight.dim() == 1 else 0


def _unknown(config: PretrainedConfig) -> ConfigError:
    return ConfigError(
        f"what a layer of a {config.model_type!r} model keeps is not known here; only dense transformers can"
        " be estimated"
    )


def memory_estimate(
    shape: ModelShape, setup: TrainingSetup, *, zero_stage: ZeroStage, is_offloaded: bool
) -> MemoryEstimate:
    """Return what training takes under a ZeRO stage (Rajbhandari et al. 2020, arXiv:1910.02054).

    Raises:
        ConfigError: stage 0 cannot offload.
    """
    if is_offloaded and zero_stage == 0:
        raise ConfigError("ZeRO 0 cannot keep the optimiser on the CPU; take a stage of 1 to 3")
    return MemoryEstimate(
        zero_stage=zero_stage,
        is_offloaded=is_offloaded,
        parameters=_parameter_bytes(shape.counts, setup, zero_stage=zero_stage),
        gradients=_gradient_bytes(shape.counts, setup, zero_stage=zero_stage, is_offloaded=is_offloaded),
        optimizer=0 if is_offloaded else _optimizer_bytes(shape.counts, setup, zero_stage=zero_stage),
        activations=activation_bytes(shape, setup),
        step=0 if is_offloaded else _step_bytes(shape.counts, setup, zero_stage=zero_stage),
        host=_host_bytes(shape.counts, setup, is_offloaded=is_offloaded),
    )


def _parameter_bytes(counts: ParameterCounts, setup: TrainingSetup, *, zero_stage: ZeroStage) -> int:
    """w P, and under ZeRO 3 w (P / N + L): a share, and the layer that is gathered from all shares."""
    if zero_stage < 3:
        return setup.num_bytes * counts.total
    return setup.num_bytes * (_share(counts.total, setup.num_gpus) + counts.largest_layer)


def _gradient_bytes(
    counts: ParameterCounts, setup: TrainingSetup, *, zero_stage: ZeroStage, is_offloaded: bool
) -> int:
    """w T under ZeRO 0 and 1, w T / N under ZeRO 2, w (T / N + min(L, T)) under ZeRO 3.

    The last term is the layer whose gradient was just computed. From ZeRO 2 on it is all that stays on the
    GPU where the optimiser is offloaded.
    """
    layer = min(counts.largest_layer, counts.trainable)
    if zero_stage < 2:
        numbers = counts.trainable
    elif is_offloaded:
        numbers = layer
    else:
        numbers = _share(counts.trainable, setup.num_gpus) + (layer if zero_stage == 3 else 0)
    return setup.num_bytes * numbers


def _optimizer_bytes(counts: ParameterCounts, setup: TrainingSetup, *, zero_stage: ZeroStage) -> int:
    """12 T under bf16: weights in fp32, and AdamW's two moments; 12 T / N under ZeRO 1 to 3.

    Under fp32 the weights are as good as their copy, but DeepSpeed does without one only at ZeRO 0: 8 T.
    """
    has_copy = setup.precision == "bf16" or zero_stage > 0
    return FP32_BYTES * (3 if has_copy else 2) * _updated(counts, setup, zero_stage=zero_stage)


def _step_bytes(counts: ParameterCounts, setup: TrainingSetup, *, zero_stage: ZeroStage) -> int:
    """4 n for the root of AdamW's second moment, and 4 n for a copy of the gradients in fp32.

    n is T, or T / N under ZeRO 1 to 3, of which ZeRO 3 takes `SUB_GROUP` at a time. Under fp32 only ZeRO 3
    copies.
    """
    numbers = _updated(counts, setup, zero_stage=zero_stage)
    if zero_stage == 3:
        return 2 * FP32_BYTES * min(numbers, SUB_GROUP)
    return FP32_BYTES * (2 if setup.precision == "bf16" else 1) * numbers


def _host_bytes(counts: ParameterCounts, setup: TrainingSetup, *, is_offloaded: bool) -> int:
    """4 P N, as every worker loads the model in fp32; where the optimiser is offloaded at least 16 T.

    The latter are weights, moments and gradients in fp32, shared out among the workers.
    """
    loading = FP32_BYTES * counts.total * setup.num_gpus
    return max(loading, 4 * FP32_BYTES * counts.trainable) if is_offloaded else loading


def _updated(counts: ParameterCounts, setup: TrainingSetup, *, zero_stage: ZeroStage) -> int:
    """Numbers that one worker's optimiser updates."""
    return _share(counts.trainable, setup.num_gpus) if zero_stage > 0 else counts.trainable


def _share(numbers: int, num_gpus: int) -> int:
    return math.ceil(numbers / num_gpus)


def activation_bytes(shape: ModelShape, setup: TrainingSetup) -> int:
    """Return what the forward pass of one batch keeps for the backward pass, over all layers.

    The sum over what a layer keeps follows Korthikanti et al. (2022, arXiv:2205.05198), eq. 1, which for GPT
    comes to h (34 + 5 a s / h) bytes per token. Here attention is fused, so that nothing of size a s is kept;
    there is no dropout, whose masks are 2 of the 34; and the widths are the model's own. Bytes per token and
    layer, with h hidden numbers, q of all a heads, f of the feed-forward part, m that are normalised, and
    rows of s tokens:

        attention      w (h + 4 q + s) + 4 a     input, queries, keys, values, output; the mask's row; each
                                                 head's log-sum-exp
        feed-forward   w (h + 2 f)               w (h + 4 f) where gated
        normalisation  w m                       (w + 4) m where RMS computes in fp32

    Keys and values count for all heads, as attention under a mask repeats them. With gradient checkpointing
    each layer keeps its input alone, w h, and one layer at a time all of the above (Chen et al. 2016,
    arXiv:1604.06174). Left out: embedding and head, LoRA's inner numbers (r per matrix), and what the
    backward pass of one layer takes itself.
    """
    layer, width = shape.layer, setup.num_bytes
    attention = width * (layer.hidden + 4 * layer.attention + setup.max_length) + FP32_BYTES * layer.num_heads
    feed_forward = width * (layer.hidden + (4 if layer.is_gated else 2) * layer.feed_forward)
    normalisation = (width + (FP32_BYTES if layer.is_rms else 0)) * layer.normalised
    whole = attention + feed_forward + normalisation
    if setup.gradient_checkpointing:
        per_token = shape.num_layers * width * layer.hidden + whole
    else:
        per_token = shape.num_layers * whole
    return max(setup.max_tokens_per_batch, setup.max_length) * per_token
