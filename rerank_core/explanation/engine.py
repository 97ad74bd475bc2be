"""How a vLLM engine that writes explanations is started and samples, as plain dictionaries."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

CPU_KV_CACHE_BYTES = 512 * 1024**2
"""Key-value cache of an engine on CPUs: about 11,000 tokens of SmolLM2-135M in float32."""

MAX_SEQUENCES_ON_CPU = 32
"""More texts at a time gain nothing on a few cores, and cost memory."""

TOKENS_PER_STEP_ON_CPU = 2048

FREQUENCY_PENALTY = 1.0
"""Keeps a small model from going round in circles; counts only what the text itself repeats."""

RETRY_TEMPERATURE = 0.7
"""A greedy text that was refused would come back word for word."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """One vLLM engine and how it samples."""

    model: Path
    max_model_tokens: int
    max_new_tokens: int
    temperature: float
    seed: int


def engine_settings(engine: EngineConfig, *, on_gpu: bool) -> dict[str, Any]:
    """Return the engine arguments of vLLM; on a CPU float32 is several times faster than bfloat16."""
    settings: dict[str, Any] = {
        "max_model_len": engine.max_model_tokens,
        "seed": engine.seed,
        "trust_remote_code": False,
        "structured_outputs_config": {"backend": "xgrammar", "disable_any_whitespace": True},
    }
    if not on_gpu:
        settings |= {
            "dtype": "float32",
            "enforce_eager": True,
            "enable_chunked_prefill": False,  # a seeded request whose prompt is cut ends an engine on CPUs
            "max_num_seqs": MAX_SEQUENCES_ON_CPU,
            "max_num_batched_tokens": max(engine.max_model_tokens, TOKENS_PER_STEP_ON_CPU),
            "kv_cache_memory_bytes": CPU_KV_CACHE_BYTES,
        }
    return settings


def engine_environment(*, on_gpu: bool) -> dict[str, str]:
    """Return the environment of the engine's process: no hub, no usage statistics, this machine alone."""
    environment = {
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_HOST_IP": "127.0.0.1",
    }
    if not on_gpu:  # one process without pinned threads; vLLM's own choice is two, and leaves a core unused
        environment |= {
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "OMP_NUM_THREADS": str(os.cpu_count() or 1),
        }
    return environment


def sampling_settings(engine: EngineConfig, *, attempt: int) -> dict[str, Any]:
    """Return how a text is sampled; a refused one is asked for again warmer and by another seed."""
    return {
        "temperature": engine.temperature if attempt == 1 else max(engine.temperature, RETRY_TEMPERATURE),
        "max_tokens": engine.max_new_tokens,
        "frequency_penalty": FREQUENCY_PENALTY,
        "seed": engine.seed + attempt - 1,
    }
