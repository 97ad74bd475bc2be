"""The environment variables that libraries read when they are first imported."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

_ALWAYS = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",  # ours is the only progress bar
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",  # a worker that Ray gave no GPU sees none
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
}


def environment() -> dict[str, str]:
    """Return the variables for a process that may train, score or explain, and for those it starts.

    DeepSpeed looks for a GPU unless it is told that there is none. It loads its compiled operator only from
    the folder and with the ninja that set-up compiled it with; with any other it compiles anew, for minutes.
    """
    programs = str(Path(sys.executable).parent)
    others = [
        folder for folder in os.environ.get("PATH", "").split(os.pathsep) if folder not in ("", programs)
    ]
    variables = _ALWAYS | {
        "TORCH_EXTENSIONS_DIR": f"{sys.prefix}/torch_extensions",
        "PATH": os.pathsep.join([programs, *others]),
    }
    has_gpu = shutil.which("nvidia-smi") is not None
    return variables if has_gpu else variables | {"DS_ACCELERATOR": "cpu"}


def shared_environment() -> dict[str, str]:
    """Return the variables that hold on every node of a cluster; paths and devices are each node's own."""
    return dict(_ALWAYS)


def prepare_environment() -> None:
    """Set the variables of this process; what the user has set stays, the search path gains our programs."""
    for name, value in environment().items():
        if name == "PATH" or name not in os.environ:
            os.environ[name] = value
