"""The memory that training would take, as a table: to choose a ZeRO stage by."""

from __future__ import annotations

from typing import TYPE_CHECKING, get_args

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from rerank_core.models.build import load_config, refuse_longer_than_positions
from rerank_core.models.memory import (
    MemoryEstimate,
    ModelShape,
    TrainingSetup,
    ZeroStage,
    load_shape,
    memory_estimate,
)
from rerank_core.models.pretrained import resolve_config

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jobs.training_config import MemoryJob

GIB = 2**30
USABLE_SHARE = 0.9
"""The rest of a GPU goes to the CUDA context, buffers of communication and fragmentation."""


def run_memory(config: MemoryJob) -> list[MemoryEstimate]:
    """Print and return an estimate per ZeRO stage, from 1 on also with the optimiser on the CPU.

    Raises:
        WhyrankError: there is no such model, or it is of a kind that cannot be estimated.
    """
    folder = resolve_config(config.model)
    refuse_longer_than_positions(load_config(folder), max_length=config.max_length)
    shape = load_shape(folder, num_layers=config.num_layers, lora_rank=config.lora_rank)
    setup = TrainingSetup(
        num_gpus=config.num_gpus,
        precision=config.precision,
        max_length=config.max_length,
        max_tokens_per_batch=config.max_tokens_per_batch,
        gradient_checkpointing=config.gradient_checkpointing,
    )
    stages: tuple[ZeroStage, ...] = get_args(ZeroStage)
    estimates = [
        memory_estimate(shape, setup, zero_stage=stage, is_offloaded=is_offloaded)
        for is_offloaded in (False, True)
        for stage in stages
        if stage > 0 or not is_offloaded
    ]
    show_estimates(estimates, shape, config, console=Console())
    return estimates


def fits(estimate: MemoryEstimate, *, gpu_memory_gib: float) -> bool:
    """Return whether training stays within the usable share of a GPU."""
    return estimate.gpu <= USABLE_SHARE * gpu_memory_gib * GIB


def show_estimates(
    estimates: Sequence[MemoryEstimate], shape: ModelShape, config: MemoryJob, *, console: Console
) -> None:
    """Print one row per estimate, in GiB."""
    counts, available = shape.counts, config.gpu_memory_gib
    title = (
        f"GiB on each of {config.num_gpus} GPU(s) to train {escape(config.model)}: {_millions(counts.total)}"
        f" parameters, {_millions(counts.trainable)} trained, {config.precision}"
    )
    caption = (
        "sum = parameters + gradients + optimiser + the larger of activations and step, which take turns;"
        " host = memory of the CPU, all workers together"
    )
    shown = Table(title=title, caption=caption, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))  # fits 80 columns
    for name in ("ZeRO", "optimiser\non"):
        shown.add_column(name, no_wrap=True)
    names = ["para-\nmeters", "gradi-\nents", "opti-\nmiser", "acti-\nvations", "step", "sum", "host"]
    for name in (*names, "fits") if available else names:
        shown.add_column(name, no_wrap=True, justify="right", min_width=5)
    for one in estimates:
        parts = (one.parameters, one.gradients, one.optimizer, one.activations, one.step, one.gpu, one.host)
        answer = []
        if available is not None:
            answer = ["yes" if fits(one, gpu_memory_gib=available) else "no"]
        place = "CPU" if one.is_offloaded else "GPU"
        shown.add_row(str(one.zero_stage), place, *(f"{part / GIB:.2f}" for part in parts), *answer)
    console.print(shown)


def _millions(count: int) -> str:
    return f"{count / 1e6:,.1f} million"
