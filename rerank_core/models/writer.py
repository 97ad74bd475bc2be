"""A causal language model that writes, in its own chat format; from a folder, and back into one."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from rerank_core.errors import ArtefactError, ConfigError
from rerank_core.models.artefact import is_artefact
from rerank_core.models.build import LOAD_ERRORS, first_line, is_causal, load_config, load_tokenizer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PROVENANCE = "whyrank.json"

PLAIN_CHAT = (
    "{{ bos_token }}{% for message in messages %}{{ message['content'] }}"
    "{% if message['role'] == 'user' %}{{ '\\n' }}{% else %}{{ eos_token }}{% endif %}{% endfor %}"
)
"""The chat format of a tokenizer that has none: the prompt, a line break, the answer, the end token."""


@dataclass(frozen=True, slots=True)
class Writer:
    """A language model with its tokenizer, which has a chat format and an end token."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    def write(self, prompts: Sequence[str], *, max_new_tokens: int) -> list[str]:
        """Return the likeliest answer to each prompt, token by token; the batch mates do not matter."""
        encoded = [_token_ids(self.tokenizer, user_turn(prompt), is_question=True) for prompt in prompts]
        batch = self.tokenizer.pad({"input_ids": encoded}, padding_side="left", return_tensors="pt")
        with torch.inference_mode():
            written = self.model.generate(  # type: ignore[operator]  # transformers' mixin
                **batch.to(self.model.device),
                do_sample=False,
                max_new_tokens=max_new_tokens,
                eos_token_id=self.tokenizer.eos_token_id,
                pad_token_id=self.tokenizer.pad_token_id,
            )
        answers = written[:, batch["input_ids"].shape[1] :]  # (prompts, new tokens)
        return self.tokenizer.batch_decode(answers, skip_special_tokens=True)


def user_turn(text: str) -> list[dict[str, str]]:
    """Return a text as what a person says in a chat."""
    return [{"role": "user", "content": text}]


def assistant_turn(text: str) -> list[dict[str, str]]:
    """Return a text as what the model answers in a chat."""
    return [{"role": "assistant", "content": text}]


def num_tokens(tokenizer: PreTrainedTokenizerBase, prompt: str, answer: str) -> int:
    """Return the tokens of a prompt and its answer together, those of the chat format included."""
    return len(_token_ids(tokenizer, user_turn(prompt) + assistant_turn(answer), is_question=False))


def _token_ids(
    tokenizer: PreTrainedTokenizerBase, turns: list[dict[str, str]], *, is_question: bool
) -> list[int]:
    encoded: Any = tokenizer.apply_chat_template(
        turns, add_generation_prompt=is_question, tokenize=True, return_dict=True
    )
    ids: list[int] = encoded["input_ids"]
    return ids


def load_writer(folder: Path) -> Writer:
    """Return the writer of a folder in fp32; runs no code of the folder.

    Raises:
        ConfigError: as `load_writer_tokenizer`.
        ArtefactError: the weights or the tokenizer are broken.
    """
    from transformers import AutoModelForCausalLM

    tokenizer = load_writer_tokenizer(folder)
    try:
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True, trust_remote_code=False, local_files_only=True
        )
    except LOAD_ERRORS as error:
        raise ArtefactError(
            f"the weights in {folder} are broken or do not fit its config.json ({first_line(error)});"
            " copy the folder again"
        ) from error
    return Writer(model.eval(), tokenizer)


def load_writer_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Return a folder's tokenizer with a chat format and an end token.

    A tokenizer without an end token, or with the token of the beginning in its place (as some converted ones
    have), takes the model's; one without a chat format takes `PLAIN_CHAT`.

    Raises:
        ConfigError: the folder holds no causal language model, or nothing states an end token.
        ArtefactError: the tokenizer or the configuration is broken.
    """
    if is_artefact(folder):
        raise ConfigError(
            f"{folder} is a scorer, which has lost its output words; pass the language model it came from"
        )
    config = load_config(folder)
    if not is_causal(config):
        raise ConfigError(f"{folder} is no causal language model and cannot write; pass one that is")
    tokenizer = load_tokenizer(folder)
    if tokenizer.eos_token_id in (None, tokenizer.bos_token_id):
        stated = config.eos_token_id
        end = stated[0] if isinstance(stated, list) else stated
        if end is None:
            raise ConfigError(f"neither tokenizer nor config.json of {folder} names an end token; set one")
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(end)
    if tokenizer.chat_template is None:
        tokenizer.chat_template = PLAIN_CHAT
    return tokenizer


def save_writer(writer: Writer, folder: Path, *, provenance: Mapping[str, Any]) -> None:
    """Write a plain model folder with its provenance.

    The folder appears whole or not at all, and replaces an older one.
    """
    for stale in folder.parent.glob(f".{folder.name}.*.tmp"):  # of a process that was killed
        shutil.rmtree(stale, ignore_errors=True)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        writer.model.save_pretrained(temporary)
        writer.tokenizer.save_pretrained(temporary)
        (temporary / PROVENANCE).write_text(json.dumps(dict(provenance), indent=2) + "\n", encoding="utf-8")
    except BaseException:  # a full disk would stay full of a half-written copy
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    if folder.exists():
        shutil.rmtree(folder)
    temporary.rename(folder)


def read_provenance(folder: Path) -> Mapping[str, Any]:
    """Return where a writer comes from; empty for a folder that does not say.

    Raises:
        ArtefactError: the record is broken.
    """
    path = folder / PROVENANCE
    if not path.is_file():
        return {}
    try:
        provenance: Any = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ArtefactError(f"{path} is not JSON ({error}); copy the folder again") from error
    if not isinstance(provenance, dict):
        raise ArtefactError(f"{path} is not an object with names; copy the folder again")
    return provenance
