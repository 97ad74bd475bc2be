"""A language model that answers prompts in its own chat format, whatever its folder leaves out."""

from __future__ import annotations

import json
import resource
import shutil
from typing import TYPE_CHECKING

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from rerank_core.errors import ArtefactError, ConfigError
from rerank_core.models.artefact import artefact_digest
from rerank_core.models.tiny import save_tiny_writer
from rerank_core.models.writer import (
    PROVENANCE,
    Writer,
    load_writer,
    load_writer_tokenizer,
    num_tokens,
    read_provenance,
    save_writer,
    user_turn,
)

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedTokenizerBase

TEXTS = ("Rank 1: amber – warm\nRank 2: basil", "daily sea surface temperature")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("writer")
    save_tiny_writer(path, TEXTS, seed=0, width=16, num_layers=1)
    return path


@pytest.fixture
def writer(folder: Path) -> Writer:
    return load_writer(folder)


def changed(folder: Path, to: Path, *, file: str, **values: object) -> Path:
    """Copy a model folder with other values in one of its JSON files."""
    shutil.copytree(folder, to)
    (to / file).write_text(json.dumps(json.loads((to / file).read_text()) | values))
    return to


def text_of(tokenizer: PreTrainedTokenizerBase, prompt: str) -> str:
    text = tokenizer.apply_chat_template(user_turn(prompt), add_generation_prompt=True, tokenize=False)
    assert isinstance(text, str)
    return text


# --- tokens


def test_a_tokenizer_without_a_chat_format_gets_a_plain_one(writer: Writer) -> None:
    assert text_of(writer.tokenizer, "Rank them") == "[BOS]Rank them\n"
    assert num_tokens(writer.tokenizer, "", "") == 3  # beginning, line break, end


def test_a_chat_format_of_the_folder_stays(folder: Path, tmp_path: Path) -> None:
    template = "{% for message in messages %}<{{ message['content'] }}>{% endfor %}"
    path = changed(folder, tmp_path / "chat", file="tokenizer_config.json", chat_template=template)
    assert text_of(load_writer_tokenizer(path), "Rank them") == "<Rank them>"


@pytest.mark.parametrize("stated", ["[BOS]", None])
@pytest.mark.parametrize("end", [2, [2, 0]])
def test_a_missing_or_mistaken_end_token_is_taken_from_the_model(
    folder: Path, tmp_path: Path, stated: str | None, end: object
) -> None:
    path = changed(folder, tmp_path / "model", file="config.json", eos_token_id=end)
    path = changed(path, tmp_path / "both", file="tokenizer_config.json", eos_token=stated)
    assert AutoTokenizer.from_pretrained(path).eos_token == stated
    assert load_writer_tokenizer(path).eos_token == "[EOS]"


def test_an_end_token_of_the_tokenizers_own_stays(folder: Path, tmp_path: Path) -> None:
    path = changed(folder, tmp_path / "model", file="config.json", eos_token_id=0)
    assert load_writer_tokenizer(path).eos_token == "[EOS]"


def test_a_folder_that_names_no_end_token_is_refused(folder: Path, tmp_path: Path) -> None:
    path = changed(folder, tmp_path / "model", file="config.json", eos_token_id=None)
    path = changed(path, tmp_path / "both", file="tokenizer_config.json", eos_token=None)
    with pytest.raises(ConfigError, match=r"neither tokenizer nor config\.json of .* names an end token"):
        load_writer_tokenizer(path)


# --- writing


def test_an_answer_is_the_likeliest_continuation_and_does_not_depend_on_its_batch(writer: Writer) -> None:
    prompts = ["Rank amber and basil", "temperature", ""]
    together = writer.write(prompts, max_new_tokens=6)
    assert together == [writer.write([prompt], max_new_tokens=6)[0] for prompt in prompts]
    ids = writer.tokenizer(text_of(writer.tokenizer, prompts[0]), return_tensors="pt")["input_ids"]
    for _ in range(6):
        with torch.inference_mode():
            ids = torch.cat([ids, writer.model(ids).logits[:, -1:].argmax(dim=-1)], dim=1)
    assert str(writer.tokenizer.decode(ids[0])).endswith(together[0])


def test_an_answer_ends_at_the_end_token(writer: Writer) -> None:
    head = torch.zeros_like(writer.model.get_output_embeddings().weight)
    writer.model.get_output_embeddings().weight = torch.nn.Parameter(head)
    writer.model.get_output_embeddings().bias = torch.nn.Parameter(torch.zeros(len(head)))
    with torch.no_grad():
        writer.model.get_output_embeddings().bias[writer.tokenizer.eos_token_id] = 1.0
    assert writer.write(["Rank them"], max_new_tokens=8) == [""]


# --- folders


def test_what_is_saved_is_a_plain_model_folder_with_its_provenance(writer: Writer, tmp_path: Path) -> None:
    out = tmp_path / "out"
    save_writer(writer, out, provenance={})
    (out / "old").touch()
    save_writer(writer, out, provenance={"stage": "sft"})
    model = AutoModelForCausalLM.from_pretrained(out)
    ours, theirs = writer.model.state_dict(), model.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert AutoTokenizer.from_pretrained(out).chat_template == writer.tokenizer.chat_template
    assert read_provenance(out) == {"stage": "sft"}
    assert not (out / "old").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_folder_half_written_by_a_killed_process_is_swept(writer: Writer, tmp_path: Path) -> None:
    (tmp_path / ".out.1.tmp").mkdir()
    (tmp_path / ".other.1.tmp").mkdir()
    save_writer(writer, tmp_path / "out", provenance={})
    assert sorted(path.name for path in tmp_path.iterdir()) == [".other.1.tmp", "out"]


def test_a_disk_that_fills_up_leaves_the_older_folder_whole(writer: Writer, tmp_path: Path) -> None:
    out = tmp_path / "out"
    save_writer(writer, out, provenance={})
    before = artefact_digest(out)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))  # files end here, as on a full disk
    try:
        with pytest.raises(Exception, match=r"(File too large|os error 27)"):
            save_writer(writer, out, provenance={})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert artefact_digest(out) == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_folder_of_others_has_no_provenance(folder: Path) -> None:
    assert read_provenance(folder) == {}


@pytest.mark.parametrize("content", ["{", "[1]"])
def test_a_broken_provenance_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / PROVENANCE).write_text(content)
    with pytest.raises(ArtefactError, match=r"whyrank\.json is not .* copy the folder again"):
        read_provenance(tmp_path)


def test_a_scorer_and_an_encoder_cannot_write(folder: Path, encoder_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no causal language model"):
        load_writer(encoder_folder)
    artefact = changed(folder, tmp_path / "scorer", file="config.json")
    (artefact / "reranker.json").touch()
    with pytest.raises(ConfigError, match="is a scorer, which has lost its output words"):
        load_writer(artefact)


def test_weights_that_do_not_fit_are_refused(folder: Path, tmp_path: Path) -> None:
    path = changed(folder, tmp_path / "model", file="config.json", hidden_size=32)
    assert AutoConfig.from_pretrained(path).hidden_size == 32
    with pytest.raises(ArtefactError, match=r"broken or do not fit its config\.json"):
        load_writer(path)
