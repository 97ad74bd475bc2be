"""The environment variables that libraries read when they are first imported."""

from __future__ import annotations

import shutil

_ALWAYS = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",  # ours is the only progress bar
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
}


def environment(*, has_gpu: bool) -> dict[str, str]:
    """Return the variables for a process; DeepSpeed looks for a GPU unless it is told that there is none."""
    return dict(_ALWAYS) if has_gpu else _ALWAYS | {"DS_ACCELERATOR": "cpu"}


def has_gpu_here() -> bool:
    """Return whether this machine has an NVIDIA driver; asks neither torch nor Ray, which are slow to load."""
    return shutil.which("nvidia-smi") is not None
