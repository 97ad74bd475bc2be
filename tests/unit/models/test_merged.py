"""An adapter in a model folder's weights: PEFT's own merge, nothing foreign, nothing left over."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import time
from typing import TYPE_CHECKING, Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from rerank_core.errors import ArtefactError
from rerank_core.models.merged import merge_lora
from rerank_core.models.tiny import save_tiny_writer
from rerank_core.models.writer import load_writer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

TEXTS = ["sea ice thickness from radar", "river ice dates"]
PROMPT = torch.tensor([[3, 5, 7, 9]])


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WHYRANK_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("merged") / "llama"
    save_tiny_writer(folder, TEXTS, seed=0)
    return folder


@pytest.fixture(scope="session")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny GPT-2, whose layers hold their weights the other way round."""
    folder = tmp_path_factory.mktemp("merged") / "gpt2"
    config = GPT2Config(vocab_size=20, n_positions=16, n_embd=8, n_layer=1, n_head=2)
    torch.manual_seed(0)
    GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


def save_adapter(model: Path, folder: Path, **settings: Any) -> Path:
    """Write an adapter with PEFT, its weights drawn by chance."""
    options = {"r": 3, "lora_alpha": 7, "target_modules": "all-linear", **settings}
    torch.manual_seed(1)
    wearing: Any = get_peft_model(AutoModelForCausalLM.from_pretrained(model), LoraConfig(**options))
    for name, weight in wearing.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.3)
    wearing.save_pretrained(folder)
    return folder


@pytest.fixture
def adapter(llama: Path, tmp_path: Path) -> Path:
    return save_adapter(llama, tmp_path / "adapter")


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(PROMPT).logits  # type: ignore[no-any-return]


def pefts_own(model: Path, adapter: Path) -> torch.Tensor:
    wearing: Any = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model), str(adapter))
    return logits(wearing.merge_and_unload())


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("llama", {}),
        ("llama", {"use_rslora": True, "r": 4}),
        ("llama", {"target_modules": ["q_proj"], "layers_to_transform": [1]}),
        ("gpt2", {"fan_in_fan_out": True}),
    ],
)
def test_a_merged_model_says_what_pefts_own_merge_says(
    request: pytest.FixtureRequest, tmp_path: Path, name: str, settings: dict[str, Any]
) -> None:
    model: Path = request.getfixturevalue(name)
    adapter = save_adapter(model, tmp_path / "adapter", **settings)
    merged = logits(AutoModelForCausalLM.from_pretrained(merge_lora(model, adapter)))
    torch.testing.assert_close(merged, pefts_own(model, adapter), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(merged, logits(AutoModelForCausalLM.from_pretrained(model)), atol=1e-2)


def test_a_merged_model_writes_something_else(llama: Path, adapter: Path) -> None:
    def written(folder: Path) -> str:
        writer = load_writer(folder)
        ids = writer.tokenizer("sea ice", return_tensors="pt").input_ids
        model: Any = writer.model
        told = model.generate(ids, max_new_tokens=8, do_sample=False)
        return str(writer.tokenizer.decode(told[0]))

    assert written(merge_lora(llama, adapter)) != written(llama)


def test_weights_keep_their_precision(llama: Path, adapter: Path, tmp_path: Path) -> None:
    half = tmp_path / "half"
    shutil.copytree(llama, half)
    weights = {name: weight.bfloat16() for name, weight in load_file(llama / "model.safetensors").items()}
    save_file(weights, half / "model.safetensors", metadata={"format": "pt"})
    merged = load_file(merge_lora(half, adapter) / "model.safetensors")
    assert {weight.dtype for weight in merged.values()} == {torch.bfloat16}


def test_a_model_in_several_files_is_merged_in_each(llama: Path, adapter: Path, tmp_path: Path) -> None:
    parts = tmp_path / "parts"
    AutoModelForCausalLM.from_pretrained(llama).save_pretrained(parts, max_shard_size="100KB")
    assert len(list(parts.glob("*.safetensors"))) > 2
    merged = logits(AutoModelForCausalLM.from_pretrained(merge_lora(parts, adapter)))
    torch.testing.assert_close(merged, pefts_own(llama, adapter), atol=1e-5, rtol=1e-5)


def test_a_merged_folder_is_made_once_and_anew_when_a_weight_changed(
    llama: Path, adapter: Path, cache: Path
) -> None:
    folder = merge_lora(llama, adapter)
    made = (folder / "model.safetensors").stat().st_mtime_ns
    assert merge_lora(llama, adapter) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == made
    assert (folder / "tokenizer.json").read_bytes() == (llama / "tokenizer.json").read_bytes()
    weights = load_file(adapter / "adapter_model.safetensors")
    name = min(name for name in weights if "lora_B" in name)
    save_file(weights | {name: weights[name] + 1}, adapter / "adapter_model.safetensors")
    assert merge_lora(llama, adapter) != folder
    assert len(list(cache.iterdir())) == 2


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "SHA256SUMS"])
def test_a_copy_that_was_damaged_in_the_cache_is_made_anew(
    llama: Path, adapter: Path, cache: Path, name: str
) -> None:
    folder = merge_lora(llama, adapter)
    whole = {path.name: path.read_bytes() for path in folder.iterdir()}
    (folder / name).write_bytes(whole[name][:-8])
    assert merge_lora(llama, adapter) == folder
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == whole
    (folder / "modeling.py").write_text("raise SystemExit")
    merge_lora(llama, adapter)
    assert {path.name for path in folder.iterdir()} == set(whole)
    assert list(cache.iterdir()) == [folder]


def test_what_killed_processes_left_is_in_nobodys_way_and_goes_after_a_day(
    llama: Path, adapter: Path, cache: Path, tmp_path: Path
) -> None:
    """A restarted server in a container has the process id of the one that was killed."""
    name = merge_lora(llama, adapter).name
    shutil.rmtree(cache)
    fresh, stale = cache / f"{name}.{os.getpid()}.tmp", cache / "merged-0123.1.tmp"
    for left in (fresh, stale):
        left.mkdir(parents=True)
        (left / "model.safetensors").write_bytes(b"half")
    two_days_ago = time.time() - 2 * 86_400
    os.utime(stale, (two_days_ago, two_days_ago))
    merge_lora(llama, adapter)
    assert {path.name for path in cache.iterdir()} == {name, fresh.name}


def test_a_tokenizer_and_what_hubs_keep_may_stand_beside_an_adapter(llama: Path, adapter: Path) -> None:
    for name in (".gitattributes", "vocab.json", "merges.txt", "tokenizer.model", "vocab.txt"):
        (adapter / name).write_bytes(b"\xff not read")
    assert not (merge_lora(llama, adapter) / "merges.txt").exists()


# --- refusals


@pytest.mark.parametrize(
    "name", ["training_args.bin", "optimizer.pt", "modeling.py", "evil.so", "adapter_model.bin", "x.unknown"]
)
def test_a_foreign_file_is_refused_by_name_and_not_read(
    llama: Path, adapter: Path, tmp_path: Path, name: str
) -> None:
    canary = tmp_path / "canary"

    class Hostile:
        def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
            return canary.write_text, ("run",)

    (adapter / name).write_bytes(pickle.dumps(Hostile()))
    with pytest.raises(ArtefactError, match=name.replace(".", r"\.")):
        merge_lora(llama, adapter)
    assert not canary.exists()


def test_a_link_or_a_folder_is_refused(llama: Path, adapter: Path, tmp_path: Path) -> None:
    (adapter / "README.md").unlink(missing_ok=True)
    (adapter / "README.md").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ArtefactError, match=r"README\.md is no plain file"):
        merge_lora(llama, adapter)
    (adapter / "README.md").unlink()
    (adapter / "tokenizer.json").mkdir()
    with pytest.raises(ArtefactError, match=r"tokenizer\.json is no plain file"):
        merge_lora(llama, adapter)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_missing_file_is_named(llama: Path, adapter: Path, name: str) -> None:
    (adapter / name).unlink()
    with pytest.raises(ArtefactError, match=f"{name} is missing"):
        merge_lora(llama, adapter)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"peft_type": "IA3"}, "peft_type"),
        ({"bias": "all"}, "bias"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"rank_pattern": {"q_proj": 2}}, "rank_pattern"),
        ({"a_setting_of_next_year": 1}, "a_setting_of_next_year"),
        ({"r": 0}, "broken or does not fit"),
        ({"r": None}, "broken or does not fit"),
        ({"r": 6}, "not rank 6"),
        ({"lora_alpha": 10**400}, "broken or does not fit .*OverflowError"),
    ],
)
def test_what_is_no_plain_lora_adapter_is_refused(
    llama: Path, adapter: Path, cache: Path, change: dict[str, Any], message: str
) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ArtefactError, match=message):
        merge_lora(llama, adapter)
    assert not cache.exists()


@pytest.mark.parametrize("alpha", [float("nan"), float("inf"), 1e300])
def test_a_scale_that_makes_no_numbers_is_refused(
    llama: Path, adapter: Path, cache: Path, alpha: float
) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"lora_alpha": alpha}))
    with pytest.raises(ArtefactError, match="would not be finite"):
        merge_lora(llama, adapter)
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize("content", ["{", "[]", '"LORA"', "[" * 100_000])
def test_settings_that_are_none_are_refused(llama: Path, adapter: Path, content: str) -> None:
    (adapter / "adapter_config.json").write_text(content)
    with pytest.raises(ArtefactError, match="broken or does not fit"):
        merge_lora(llama, adapter)


def spoil_header(path: Path) -> None:
    path.write_bytes(b"\xff" * 8 + path.read_bytes())


def drop_half(path: Path) -> None:
    weights = load_file(path)
    save_file({name: weight for name, weight in weights.items() if "lora_A" in name}, path)


def drop_first_a(path: Path) -> None:
    weights = load_file(path)
    del weights[min(name for name in weights if "lora_A" in name)]
    save_file(weights, path)


def add_foreign_b(path: Path) -> None:
    name = "base_model.model.model.layers.99.mlp.up_proj.lora_B.weight"
    save_file(load_file(path) | {name: torch.zeros(4, 3)}, path)


def flatten(path: Path) -> None:
    save_file({name: weight.flatten() for name, weight in load_file(path).items()}, path)


def put_nan(path: Path) -> None:
    weights = load_file(path)
    weights[max(weights)][0, 0] = float("nan")
    save_file(weights, path)


def add_head(path: Path) -> None:
    save_file(load_file(path) | {"base_model.model.lm_head.weight": torch.zeros(2, 2)}, path)


def empty(path: Path) -> None:
    save_file({}, path)


def widen(path: Path) -> None:
    save_file({name: torch.cat([weight] * 2, dim=1) for name, weight in load_file(path).items()}, path)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_header, "broken"),
        (drop_half, "broken"),
        (widen, "broken"),
        (drop_first_a, "broken"),
        (add_foreign_b, "broken"),
        (flatten, "not rank 3"),
        (put_nan, "would not be finite"),
        (add_head, r"lm_head\.weight, which is no part"),
        (empty, "changes nothing"),
    ],
)
def test_broken_weights_are_refused_and_leave_nothing_behind(
    llama: Path, adapter: Path, cache: Path, spoil: Callable[[Path], None], message: str
) -> None:
    spoil(adapter / "adapter_model.safetensors")
    with pytest.raises(ArtefactError, match=message):
        merge_lora(llama, adapter)
    assert not cache.exists() or list(cache.iterdir()) == []


def test_an_adapter_of_another_model_is_refused(llama: Path, gpt2: Path, tmp_path: Path, cache: Path) -> None:
    adapter = save_adapter(gpt2, tmp_path / "adapter", fan_in_fan_out=True)
    with pytest.raises(ArtefactError, match=r"changes transformer\..*, which .* does not have"):
        merge_lora(llama, adapter)
    assert list(cache.iterdir()) == []
