"""A model folder with a LoRA adapter in its weights: a folder like any other, made without any model."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from rerank_core.errors import ArtefactError
from rerank_core.models.adapters import CONFIG, PREFIX, WEIGHTS
from rerank_core.models.build import LOAD_ERRORS, first_line
from rerank_core.models.pretrained import cache_folder

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

BESIDE = frozenset(
    {
        "README.md",
        "added_tokens.json",
        "chat_template.jinja",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
)
"""What trainers write beside an adapter; it is not read."""

UNDERSTOOD = frozenset(
    {
        *("peft_type", "r", "lora_alpha", "use_rslora", "fan_in_fan_out", "init_lora_weights", "bias"),
        # for training, or for finding the modules that the adapter's own names say anyway
        *("auto_mapping", "base_model_name_or_path", "corda_config", "ensure_weight_tying", "eva_config"),
        *("exclude_modules", "inference_mode", "layers_pattern", "layers_to_transform", "lora_dropout"),
        *("megatron_core", "peft_version", "qalora_group_size", "revision", "target_modules", "task_type"),
    }
)
"""Settings of PEFT's with which an adapter is W + scale B A; any other that is set may mean another sum."""

SUMMABLE = frozenset({torch.float32, torch.float16, torch.bfloat16})


@dataclass(frozen=True, slots=True)
class _Adapter:
    scale: float
    is_turned: bool  # its layers hold their weights as (inputs, outputs)
    weights: Mapping[str, Tensor]

    def change(self, weight_name: str) -> Tensor | None:
        """Return what is added to a weight of the model, or None."""
        module = PREFIX + weight_name.removesuffix(".weight")
        down = self.weights.get(f"{module}.lora_A.weight")
        if down is None or not weight_name.endswith(".weight"):
            return None
        change = self.scale * (self.weights[f"{module}.lora_B.weight"].float() @ down.float())
        return change.T if self.is_turned else change


def merge_lora(model: Path, adapter: Path) -> Path:
    """Return a folder, kept in the cache, with W + scale B A for every weight that the adapter changes.

    `model` is a checked model folder, `adapter` what PEFT writes: `adapter_config.json` and
    `adapter_model.safetensors`. The folder is named after the digests of both.

    Raises:
        ArtefactError: the adapter's folder holds something else, or the adapter is broken, is no plain LoRA
            adapter, or does not fit the model.
    """
    check_adapter_folder(adapter)
    found = _read_adapter(adapter)
    folder = cache_folder() / f"merged-{_digest(model, adapter)[:16]}"
    if folder.is_dir():
        return folder
    temporary = folder.with_name(f"{folder.name}.{os.getpid()}.tmp")
    temporary.mkdir(parents=True)
    try:
        _write_merged(model, found, temporary, adapter=adapter)
        temporary.rename(folder)
    except BaseException as error:  # a full disk would stay full of a half-written copy
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, OSError) and folder.is_dir():  # another process was faster; its copy is the same
            return folder
        raise
    return folder


def check_adapter_folder(folder: Path) -> None:
    """Refuse a folder with anything but an adapter in safetensors, and what trainers write as text beside it.

    Raises:
        ArtefactError: a file is missing, foreign, or a link out of the folder.
    """
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise ArtefactError(
                f"{folder / name} is missing; name a folder that PEFT's `save_pretrained` wrote"
            )
    for path in sorted(folder.iterdir()):
        if path.name not in BESIDE | {CONFIG, WEIGHTS}:
            raise ArtefactError(
                f"{path} is no part of an adapter, and nothing here may run: move it elsewhere"
            )
        if path.is_symlink() or not path.is_file():
            raise ArtefactError(f"{path} is no plain file; replace it by the file itself")


def _read_adapter(folder: Path) -> _Adapter:
    try:
        settings = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        _require_plain(settings, folder / CONFIG)
        root = math.sqrt if settings.get("use_rslora") else float
        weights = load_file(folder / WEIGHTS)
        for name in weights:
            if not name.endswith((".lora_A.weight", ".lora_B.weight")):
                raise ArtefactError(
                    f"{folder / WEIGHTS} holds {name}, which is no part of a plain LoRA adapter"
                )
        scale = float(settings["lora_alpha"]) / root(int(settings["r"]))
    except (*LOAD_ERRORS, ZeroDivisionError, RecursionError) as error:
        raise _broken(folder, error) from error
    return _Adapter(scale, bool(settings.get("fan_in_fan_out")), weights)


def _require_plain(settings: Mapping[str, Any], path: Path) -> None:
    other = {name for name, value in settings.items() if value and name not in UNDERSTOOD}
    if settings.get("peft_type") != "LORA":
        other.add("peft_type")
    if settings.get("bias", "none") != "none":
        other.add("bias")
    if settings.get("init_lora_weights", True) not in (True, False, "gaussian"):
        other.add("init_lora_weights")  # those change the model's own weights too
    if other:
        raise ArtefactError(
            f"{path} sets {', '.join(sorted(other))}: only plain LoRA adapters are merged; merge it with PEFT"
            " and name the folder of the whole model"
        )


def _write_merged(model: Path, found: _Adapter, folder: Path, *, adapter: Path) -> None:
    left = {name.removesuffix(".lora_A.weight") for name in found.weights if name.endswith("lora_A.weight")}
    for path in sorted(model.iterdir()):
        if path.suffix == ".safetensors":
            left -= _write_shard(path, found, folder / path.name, adapter=adapter)
        elif path.is_file():
            shutil.copyfile(path, folder / path.name)
    if left or not found.weights:
        which = min(left).removeprefix(PREFIX) if left else "nothing"
        raise ArtefactError(
            f"the adapter in {adapter} changes {which}, which {model} does not have; name the model that it"
            " was trained for"
        )


def _write_shard(path: Path, found: _Adapter, output: Path, *, adapter: Path) -> set[str]:
    """Write a file of weights with their changes; return the modules that were changed."""
    merged: dict[str, Tensor] = {}
    changed = set()
    try:
        with safe_open(path, framework="pt") as weights:
            for name in weights.keys():  # noqa: SIM118 - it is no dictionary
                weight = weights.get_tensor(name)
                change = found.change(name)
                if change is not None:
                    if weight.dtype not in SUMMABLE or weight.shape != change.shape:
                        raise ValueError(f"{name} is {weight.dtype} {tuple(weight.shape)}")
                    weight = (weight.float() + change).to(weight.dtype)
                    changed.add(PREFIX + name.removesuffix(".weight"))
                merged[name] = weight.contiguous()
        save_file(merged, output, metadata={"format": "pt"})
    except LOAD_ERRORS as error:
        raise _broken(adapter, error) from error
    return changed


def _broken(adapter: Path, error: BaseException) -> ArtefactError:
    return ArtefactError(
        f"the adapter in {adapter} is broken or does not fit the model ({first_line(error)}); copy it again,"
        " or name the model that it was trained for"
    )


def _digest(model: Path, adapter: Path) -> str:
    """Return the digest of all that a merged folder is made of."""
    whole = hashlib.sha256()
    for path in (*sorted(model.iterdir()), adapter / CONFIG, adapter / WEIGHTS):
        if path.is_file():
            with path.open("rb") as stream:
                whole.update(f"{path.name} {hashlib.file_digest(stream, 'sha256').hexdigest()}\n".encode())
    return whole.hexdigest()
