"""DeepSpeed settings as plain dictionaries."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rerank_core.models.memory import ZeroStage


def zero_config(stage: ZeroStage, *, bf16: bool, offload_optimizer: bool) -> dict[str, Any]:
    """Return DeepSpeed's configuration of a ZeRO stage.

    What is "auto" is filled in from the training arguments and the model. Stage 0 replicates everything, 1
    shards the optimiser's states, 2 also the gradients, 3 also the parameters, but for those of at most 10
    times the model's width, as norms and biases are. Offloading keeps the optimiser's states, and its
    arithmetic, on the CPU.
    """
    zero: dict[str, Any] = {
        "stage": stage,
        "contiguous_gradients": True,
        "stage3_gather_16bit_weights_on_model_save": True,  # else only shards could be saved
        "stage3_param_persistence_threshold": "auto",  # else 1e5 numbers: a small model is never sharded
    }
    if offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": False}
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
        # torch's AdamW runs everywhere; DeepSpeed's own for the CPU would have to be compiled first
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": zero,
    }
