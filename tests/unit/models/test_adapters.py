"""Adapters beside the weights: PEFT reads what we write, and our merge equals PEFT's."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2Model

from rerank_core.errors import ArtefactError
from rerank_core.models.adapters import merge_adapter, save_backbone
from rerank_core.models.build import load_backbone, load_config

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

RANK = 3


@pytest.fixture(scope="session")
def gpt2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny GPT-2, whose layers hold their weights the other way round."""
    folder = tmp_path_factory.mktemp("gpt2")
    config = GPT2Config(vocab_size=20, n_positions=16, n_embd=8, n_layer=1, n_head=2)
    GPT2Model(config).save_pretrained(folder)
    return folder


@pytest.fixture(params=["encoder", "causal", "gpt2"])
def folder(request: pytest.FixtureRequest) -> Path:
    path: Path = request.getfixturevalue(f"{request.param}_folder")
    return path


@pytest.fixture
def saved(folder: Path, tmp_path: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    """Return a folder with kept adapters, and the weights that PEFT's own merge gives."""
    start = load_backbone(folder, load_config(folder))
    settings = LoraConfig(
        r=RANK,
        lora_alpha=7,
        lora_dropout=0.0,
        target_modules="all-linear",
        fan_in_fan_out=isinstance(start, GPT2Model),  # else PEFT sets it itself, with a warning
    )
    backbone: Any = get_peft_model(start, settings)
    for name, weight in backbone.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.3)
    output = tmp_path / "saved"
    output.mkdir()
    save_backbone(backbone, output)
    reloaded: Any = PeftModel.from_pretrained(
        load_backbone(output, load_config(output)), str(output / "adapter")
    )
    return output, reloaded.merge_and_unload().state_dict()


def test_merged_weights_are_those_of_pefts_own_merge(saved: tuple[Path, dict[str, torch.Tensor]]) -> None:
    output, expected = saved
    backbone = load_backbone(output, load_config(output))
    before = {name: weight.clone() for name, weight in backbone.state_dict().items()}
    merge_adapter(backbone, output)
    merged = backbone.state_dict()
    assert merged.keys() == expected.keys()
    for name, weight in merged.items():
        torch.testing.assert_close(weight, expected[name])
    assert any(not torch.equal(before[name], merged[name]) for name in merged)


def test_a_folder_without_adapters_stays_as_it_is(folder: Path) -> None:
    backbone = load_backbone(folder, load_config(folder))
    before = {name: weight.clone() for name, weight in backbone.state_dict().items()}
    merge_adapter(backbone, folder)
    assert all(torch.equal(weight, before[name]) for name, weight in backbone.state_dict().items())


def _settings(**changed: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changed))

    return change


def _weights(rename: Callable[[str], str], cut: slice) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "adapter_model.safetensors"
        weights = {rename(name): tensor[:, cut].contiguous() for name, tensor in load_file(path).items()}
        save_file(weights, path)

    return change


BROKEN = {
    "no settings": lambda folder: (folder / "adapter_config.json").unlink(),
    "settings no JSON": lambda folder: (folder / "adapter_config.json").write_text("{"),
    "rank 0": _settings(r=0),
    "alpha a list": _settings(lora_alpha=[1]),
    "no weights": lambda folder: (folder / "adapter_model.safetensors").unlink(),
    "weights cut short": lambda folder: (folder / "adapter_model.safetensors").write_text("short"),
    "weights of another size": _weights(str, slice(0, 1)),
    "weights of unknown layers": _weights(lambda name: name.replace(".0.", ".9."), slice(None)),
    "half of the weights": _weights(lambda name: name.replace("lora_B", "lora_C"), slice(None)),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_broken_adapters_are_refused_by_name(saved: tuple[Path, dict[str, torch.Tensor]], fault: str) -> None:
    output, _ = saved
    BROKEN[fault](output / "adapter")
    with pytest.raises(ArtefactError, match=r"adapters in .* are broken .* copy the artefact again"):
        merge_adapter(load_backbone(output, load_config(output)), output)
