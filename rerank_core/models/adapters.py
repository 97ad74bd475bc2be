"""LoRA adapters beside a backbone's weights: written in PEFT's format, merged without its code."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from transformers.pytorch_utils import Conv1D

from rerank_core.errors import ArtefactError
from rerank_core.models.build import LOAD_ERRORS, first_line

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn

FOLDER = "adapter"
CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."


def save_backbone(backbone: Any, folder: Path) -> None:
    """Write a backbone's weights; adapters that it wears go into a folder of their own beside them.

    `backbone` is transformers' model, or PEFT's wrapper around one, which is unwrapped. That folder holds
    what PEFT reads, so that the adapters can be used elsewhere too.
    """
    if not hasattr(backbone, "peft_config"):
        backbone.save_pretrained(folder, safe_serialization=True)
        return
    from peft import get_peft_model_state_dict

    (folder / FOLDER).mkdir()
    weights: dict[str, Tensor] = get_peft_model_state_dict(backbone)
    own = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    save_file(own, folder / FOLDER / WEIGHTS)
    settings = backbone.peft_config["default"].to_dict() | {"base_model_name_or_path": ".."}
    text = json.dumps(settings, indent=2, default=sorted) + "\n"  # PEFT keeps names of modules in sets
    (folder / FOLDER / CONFIG).write_text(text, encoding="utf-8")
    backbone.unload().save_pretrained(folder, safe_serialization=True)


def merge_adapter(backbone: nn.Module, folder: Path) -> None:
    """Add an artefact's adapters, where it has any, to the weights: W + (alpha / rank) B A (Hu et al. 2021).

    Raises:
        ArtefactError: the adapters are broken, of another kind, or do not fit the backbone.
    """
    if not (folder / FOLDER).is_dir():
        return
    path = folder / FOLDER
    try:
        settings = json.loads((path / CONFIG).read_text(encoding="utf-8"))
        scale = float(settings["lora_alpha"]) / int(settings["r"])
        weights = load_file(path / WEIGHTS)
        with torch.no_grad():
            for name in sorted(name for name in weights if name.endswith(".lora_A.weight")):
                module = backbone.get_submodule(name.removeprefix(PREFIX).removesuffix(".lora_A.weight"))
                change = weights[name.replace("lora_A", "lora_B")] @ weights[name]  # (outputs, inputs)
                is_turned = isinstance(module, Conv1D)  # as in GPT-2: weights (inputs, outputs)
                module.weight.add_(scale * (change.T if is_turned else change))  # type: ignore[operator]
    except (*LOAD_ERRORS, ZeroDivisionError) as error:
        raise ArtefactError(
            f"the adapters in {path} are broken or do not fit the weights ({first_line(error)}); copy the"
            " artefact again"
        ) from error
