"""DeepSpeed settings as plain dictionaries."""

from __future__ import annotations

from typing import Any, Literal

ZeroStage = Literal[0, 1, 2, 3]


def zero_config(stage: ZeroStage, *, bf16: bool) -> dict[str, Any]:
    """Return DeepSpeed's configuration of a ZeRO stage.

    What is "auto" is filled in from the training arguments. Stage 0 replicates everything, 1 shards the
    optimiser's states, 2 also the gradients, 3 also the parameters.
    """
    return {
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "bf16": {"enabled": bf16},
        "optimizer": {
            "type": "AdamW",
            "params": {
                "lr": "auto",
                "betas": "auto",
                "eps": "auto",
                "weight_decay": "auto",
                "torch_adam": True,
            },
        },
        "zero_optimization": {
            "stage": stage,
            "contiguous_gradients": True,
            "stage3_gather_16bit_weights_on_model_save": True,  # else only shards could be saved
        },
    }
