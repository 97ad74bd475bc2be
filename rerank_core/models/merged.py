"""A model folder with a LoRA adapter in its weights: a folder like any other, made without any model."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from rerank_core.errors import ArtefactError
from rerank_core.models.adapters import CONFIG, PREFIX, WEIGHTS
from rerank_core.models.artefact import is_as_written, write_digests
from rerank_core.models.build import LOAD_ERRORS, first_line
from rerank_core.models.pretrained import cache_folder, check_model_folder

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

DOWN, UP = ".lora_A.weight", ".lora_B.weight"

BESIDE = frozenset(
    {
        ".gitattributes",
        "README.md",
        "added_tokens.json",
        "chat_template.jinja",
        "merges.txt",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer_config.json",
        "vocab.json",
        "vocab.txt",
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

LEFT_OVER_S = 86_400.0
"""After this, what a merge was writing is what a killed process left."""


@dataclass(frozen=True, slots=True)
class _Adapter:
    scale: float
    is_turned: bool  # its layers hold their weights as (inputs, outputs)
    weights: Mapping[str, Tensor]

    def change(self, weight_name: str) -> Tensor | None:
        """Return what is added to a weight of the model, or None."""
        module = PREFIX + weight_name.removesuffix(".weight")
        down = self.weights.get(f"{module}{DOWN}")
        if down is None or not weight_name.endswith(".weight"):
            return None
        change = self.scale * (self.weights[f"{module}{UP}"].float() @ down.float())
        return change.T if self.is_turned else change


def merge_lora(model: Path, adapter: Path) -> Path:
    """Return a folder, kept in the cache, with W + scale B A for every weight that the adapter changes.

    `model` is a checked model folder, `adapter` what PEFT writes: `adapter_config.json` and
    `adapter_model.safetensors`. The folder is named after the digests of both. It states its own digests, and
    is made anew where a file of it was altered, added or taken away.

    Raises:
        ArtefactError: the adapter's folder holds something else, or the adapter is broken, is no plain LoRA
            adapter, or does not fit the model.
    """
    check_adapter_folder(adapter)
    found = _read_adapter(adapter)
    folder = cache_folder() / f"merged-{_digest(model, adapter)[:16]}"
    if not is_as_written(folder):
        _make(folder, model, found, adapter=adapter)
    check_model_folder(folder)
    return folder


def _make(folder: Path, model: Path, found: _Adapter, *, adapter: Path) -> None:
    """Write a merged folder, which appears whole or not at all; a damaged one gives way to it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    for stale in folder.parent.glob("merged-*.tmp"):
        with suppress(OSError):  # another process may clear it away too
            if time.time() - stale.stat().st_mtime > LEFT_OVER_S:
                shutil.rmtree(stale)
    with TemporaryDirectory(
        prefix=f"{folder.name}.", suffix=".tmp", dir=folder.parent, ignore_cleanup_errors=True
    ) as temporary:
        whole = Path(temporary) / folder.name  # in it, as the outer folder is closed to other users
        whole.mkdir()
        _write_merged(model, found, whole, adapter=adapter)
        write_digests(whole)
        if folder.is_dir() and not is_as_written(folder):
            shutil.rmtree(folder)
        try:
            whole.rename(folder)
        except OSError:  # another process was faster; its copy is the same
            if not is_as_written(folder):
                raise


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
            if not name.endswith((DOWN, UP)):
                raise ArtefactError(
                    f"{folder / WEIGHTS} holds {name}, which is no part of a plain LoRA adapter"
                )
        rank = int(settings["r"])
        scale = float(settings["lora_alpha"]) / root(rank)
        _require_pairs(weights, rank=rank)
    except (*LOAD_ERRORS, ArithmeticError, RecursionError) as error:
        raise _broken(folder, error) from error
    return _Adapter(scale, bool(settings.get("fan_in_fan_out")), weights)


def _require_pairs(weights: Mapping[str, Tensor], *, rank: int) -> None:
    """Check that every changed module has both its matrices, of the stated rank: it decides the scale."""
    for module in sorted({name.removesuffix(DOWN).removesuffix(UP) for name in weights}):
        down, up = weights[f"{module}{DOWN}"], weights[f"{module}{UP}"]
        if not (down.ndim == up.ndim == 2 and down.shape[0] == up.shape[1] == rank):
            raise ValueError(f"{module} has {tuple(down.shape)} and {tuple(up.shape)}, not rank {rank}")


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
    left = {name.removesuffix(DOWN) for name in found.weights if name.endswith(DOWN)}
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
                    if not weight.isfinite().all():
                        raise ValueError(f"{name} would not be finite")
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
    whole = hashlib.sha256(b"v1\n")  # of what is written here for the same files
    for path in (*sorted(model.iterdir()), adapter / CONFIG, adapter / WEIGHTS):
        if path.is_file():
            with path.open("rb") as stream:
                whole.update(f"{path.name} {hashlib.file_digest(stream, 'sha256').hexdigest()}\n".encode())
    return whole.hexdigest()
