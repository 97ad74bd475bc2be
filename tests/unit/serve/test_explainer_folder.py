"""Which weights the explainer's engine loads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from rerank_core.errors import ArtefactError
from rerank_core.models.tiny import save_tiny_writer
from serve.app import explainer_folder

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WHYRANK_CACHE", str(tmp_path / "cache"))
    save_tiny_writer(tmp_path / "model", ["sea ice"], seed=0)
    return tmp_path / "model"


def test_without_an_adapter_the_folder_itself_is_loaded(model: Path) -> None:
    assert explainer_folder(str(model), None) == model


def test_with_an_adapter_its_change_is_in_the_weights(model: Path, tmp_path: Path) -> None:
    settings = LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj"], layers_to_transform=[0])
    wearing: Any = get_peft_model(AutoModelForCausalLM.from_pretrained(model), settings)
    layer = wearing.base_model.model.model.layers[0].self_attn.q_proj
    torch.nn.init.ones_(layer.lora_A["default"].weight)
    torch.nn.init.ones_(layer.lora_B["default"].weight)
    wearing.save_pretrained(tmp_path / "adapter")
    before = load_file(model / "model.safetensors")
    after = load_file(explainer_folder(str(model), tmp_path / "adapter") / "model.safetensors")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    name = "model.layers.0.self_attn.q_proj.weight"
    assert changed == {name}
    torch.testing.assert_close(
        after[name] - before[name], torch.full_like(before[name], 4.0)
    )  # 4 / 2 × 2 ones


def test_an_adapter_with_a_pickle_is_refused(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")
    (folder / "adapter_model.safetensors").write_bytes(b"")
    (folder / "adapter_model.bin").write_bytes(b"")
    with pytest.raises(ArtefactError, match=r"adapter_model\.bin"):
        explainer_folder(str(model), folder)
