"""Artefacts made to run something, or to be mistaken: refused by what serves them, and nothing is run."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
from typing import TYPE_CHECKING, Any

import pytest
import ray

from rerank_core.errors import ArtefactError
from rerank_core.models.artefact import write_digests
from serve.app import build_app
from serve.args import ServeArgs, ServeCommand
from serve.reranker import load_served
from serve.start import run_serve

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


class Canary:
    """Unpickled, it would write a file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self._path}'",)


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    """The file that hostile code would write."""
    return tmp_path / "canary"


@pytest.fixture
def copy(artefact: Path, tmp_path: Path) -> Path:
    """A copy of the artefact, to be changed."""
    return shutil.copytree(artefact, tmp_path / "copy")


def _pickle(name: str) -> Callable[[Path, Path], None]:
    def change(folder: Path, canary: Path) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(pickle.dumps(Canary(canary)))

    return change


def _program(name: str) -> Callable[[Path, Path], None]:
    def change(folder: Path, canary: Path) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(f"open({str(canary)!r}, 'w').close()\n")

    return change


def _settings(name: str, **changed: object) -> Callable[[Path, Path], None]:
    def change(folder: Path, _: Path) -> None:
        path = folder / name
        stated = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(stated | changed))

    return change


def _text(name: str, content: str) -> Callable[[Path, Path], None]:
    def change(folder: Path, _: Path) -> None:
        (folder / name).write_text(content)

    return change


def _tensors(name: str, header: dict[str, Any] | bytes, *, size: int | None = None) -> Callable[..., None]:
    """Change a file to one with a header of safetensors, said to be of `size` bytes, and eight of data."""

    def change(folder: Path, _: Path) -> None:
        raw = header if isinstance(header, bytes) else json.dumps(header).encode()
        (folder / name).write_bytes(struct.pack("<Q", len(raw) if size is None else size) + raw + b"\0" * 8)

    return change


def _link(name: str, target: str) -> Callable[[Path, Path], None]:
    def change(folder: Path, _: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(target)

    return change


def _pipe(name: str) -> Callable[[Path, Path], None]:
    """Change a file to one that nobody ever writes to: whoever opens it waits."""

    def change(folder: Path, _: Path) -> None:
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return change


REMOTE = {"AutoModel": "evil.Model", "AutoConfig": "evil.Config", "AutoTokenizer": ["evil.T", None]}

SEEN_AT_START = {
    "pickled weights": _pickle("pytorch_model.bin"),
    "pickled head": _pickle("head.pt"),
    "pickled arguments": _pickle("training_args.bin"),
    "pickled optimiser": _pickle("state/optimizer.pkl"),
    "pickled array": _pickle("embeddings.npy"),
    "pickled adapter": _pickle("adapter/adapter_model.bin"),
    "checkpoint": _pickle("last.ckpt"),
    "module of a model": _program("modeling_evil.py"),
    "module in a folder": _program("code/__init__.py"),
    "compiled library": _program("kernels.so"),
    "shell script": _program("install.sh"),
    "remote configuration": _settings("config.json", auto_map=REMOTE),
    "remote tokenizer": _settings("tokenizer_config.json", auto_map=REMOTE),
    "link out of the folder": _link("notes.txt", "/etc/hostname"),
    "link to a folder outside": _link("more", "/etc"),
    "weights linked to a device": _link("head.safetensors", "/dev/zero"),
    "golden pairs without an end": _pipe("golden.jsonl"),
    "tokenizer without an end": _pipe("tokenizer.json"),
    "settings without an end": _pipe("config.json"),
    "statement without an end": _pipe("reranker.json"),
    "format from the future": _settings("reranker.json", format_version=99),
    "template that reads attributes": _settings("reranker.json", template="{query.__class__}{document}"),
    "template that reads items": _settings("reranker.json", template="{query[0]}{document}"),
    "settings too deep": _text("config.json", "[" * 200_000),
    "statement too deep": _text("reranker.json", "[" * 200_000),
    "pickle for a tokenizer": _pickle("tokenizer.json"),
    "tokenizer too deep": _text("tokenizer.json", "[" * 200_000),
    "no settings": lambda folder, _: (folder / "config.json").unlink(),
}
"""What `whyrank serve` refuses before it starts Ray."""

SEEN_BY_REPLICAS = {
    "header longer than the file": _tensors("model.safetensors", b"{}", size=2**40),
    "header longer than memory": _tensors("head.safetensors", b"{}", size=2**63),
    "header that is no JSON": _tensors("model.safetensors", b"\xff" * 64),
    "header too deep": _tensors("head.safetensors", b"[" * 100_000),
    "tensors that overlap": _tensors(
        "head.safetensors",
        {
            "weight": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
            "bias": {"dtype": "F32", "shape": [1], "data_offsets": [2, 6]},
        },
    ),
    "tensor beyond the file": _tensors(
        "head.safetensors", {"weight": {"dtype": "F32", "shape": [99], "data_offsets": [0, 396]}}
    ),
    "tensor of a negative shape": _tensors(
        "head.safetensors", {"weight": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}
    ),
    "pickle for safetensors": _pickle("head.safetensors"),
    "pickled weights for safetensors": _pickle("model.safetensors"),
    "tokenizer with a pattern that never ends": _settings(
        "tokenizer.json",
        pre_tokenizer={
            "type": "Split",
            "pattern": {"Regex": "("},
            "behavior": "Isolated",
            "invert": False,
        },
    ),
    "model that is not known": _settings("config.json", model_type="../../evil"),
    "pairs that are no text": _text("golden.jsonl", '{"query": {}, "title": [], "text": 1, "score": "0"}\n'),
    "pairs too deep": _text("golden.jsonl", "[" * 200_000),
}
"""What a replica refuses: it is data, but not what it says it is."""

HARMLESS = {
    "class of a tokenizer elsewhere": _settings("tokenizer_config.json", tokenizer_class="os.system"),
    "chat template that calls": _settings(
        "tokenizer_config.json",
        chat_template="{{ cycler.__init__.__globals__.os.system('false') }}",
    ),
    "chat template in a file": _text("chat_template.jinja", "{% for _ in range(10**12) %}{% endfor %}"),
}
"""What is never run: with digests that fit, the artefact scores as it did."""


def served_from(folder: Path) -> None:
    load_served(folder, long_documents="truncate", max_tokens_per_batch=256)


@pytest.mark.parametrize("fault", SEEN_AT_START)
def test_a_hostile_artefact_is_refused_before_anything_starts(copy: Path, canary: Path, fault: str) -> None:
    SEEN_AT_START[fault](copy, canary)
    had_started = ray.is_initialized()  # by other tests
    with pytest.raises(ArtefactError, match=str(copy)):
        run_serve(ServeCommand(artefact=copy, auth=False))
    assert ray.is_initialized() == had_started
    with pytest.raises(ArtefactError, match=str(copy)):
        served_from(copy)
    assert not canary.exists()


@pytest.mark.parametrize("fault", SEEN_BY_REPLICAS)
def test_a_hostile_artefact_is_refused_by_its_replicas(copy: Path, canary: Path, fault: str) -> None:
    """By the digests, and where those were made to fit, by what reads the file."""
    SEEN_BY_REPLICAS[fault](copy, canary)
    with pytest.raises(ArtefactError, match="is not as it was written"):
        served_from(copy)
    write_digests(copy)
    with pytest.raises(ArtefactError, match=r"again"):
        served_from(copy)
    assert not canary.exists()


@pytest.mark.parametrize("fault", HARMLESS)
def test_what_a_tokenizer_states_is_never_run(copy: Path, canary: Path, fault: str) -> None:
    HARMLESS[fault](copy, canary)
    with pytest.raises(ArtefactError, match=r"(is not as it was written|is none of the artefact's files)"):
        served_from(copy)
    write_digests(copy)
    served_from(copy)


@pytest.mark.parametrize(
    "fault", ["pickled weights", "module of a model", "remote configuration", "link out of the folder"]
)
def test_a_hostile_explainer_is_refused_before_vllm_is_loaded(
    artefact: Path, copy: Path, canary: Path, fault: str
) -> None:
    SEEN_AT_START[fault](copy, canary)
    with pytest.raises(ArtefactError, match=str(copy)):
        build_app(ServeArgs(artefact=artefact, auth=False, explainer=str(copy)))
    assert not canary.exists()


def test_a_pickle_would_have_written_the_canary(canary: Path) -> None:
    """So that the canary's absence says something."""
    call, arguments = Canary(canary).__reduce__()
    call(*arguments)
    assert canary.exists()
