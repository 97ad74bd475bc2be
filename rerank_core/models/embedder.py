"""A vector per token of a text, from the last layer of a language model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from rerank_core.models.build import load_backbone, load_config, load_tokenizer, usable_positions
from rerank_core.models.pretrained import resolve_model
from rerank_core.models.scorer import length_batches

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MAX_LENGTH = 512


class LanguageModelEmbedder:
    """An `Embedder` over a language model: the hidden states of its last layer.

    The special tokens that the tokenizer puts around a text are read, but have no vector in the result. A
    text longer than `max_length` tokens is read in windows one after the other, so that none of it is lost;
    tokens do not see beyond their window.
    """

    def __init__(
        self,
        backbone: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_length: int,
        max_tokens_per_batch: int = 8192,
    ) -> None:
        self._backbone = backbone.eval()
        self._tokenizer = tokenizer
        self._before, self._after = _special_tokens(tokenizer)
        self._window = max_length - len(self._before) - len(self._after)
        self._max_tokens_per_batch = max_tokens_per_batch

    def embed(self, texts: Sequence[str]) -> list[NDArray[np.float32]]:
        """Return one array per text, (tokens, width), in their order; without tokens, (0, width)."""
        windows, owners = [], []
        for owner, text in enumerate(texts):
            ids = self._token_ids(text)
            for start in range(0, len(ids), self._window):
                windows.append([*self._before, *ids[start : start + self._window], *self._after])
                owners.append(owner)
        states = self._states(windows)
        empty = np.zeros((0, self._backbone.config.hidden_size), dtype=np.float32)
        parts: list[list[NDArray[np.float32]]] = [[empty] for _ in texts]
        for owner, found in zip(owners, states, strict=True):
            parts[owner].append(found)
        return [np.concatenate(found) for found in parts]

    def _token_ids(self, text: str) -> list[int]:
        """Return a text's tokens; the name of a special token in it is read as letters."""
        found = self._tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)
        ids: list[int] = found["input_ids"]
        return ids

    @torch.inference_mode()
    def _states(self, windows: Sequence[Sequence[int]]) -> list[NDArray[np.float32]]:
        """Return the states of each window's own tokens, (tokens, width), in the order of `windows`."""
        found: dict[int, NDArray[np.float32]] = {}
        lengths = [len(window) for window in windows]
        for batch in length_batches(lengths, max_tokens=self._max_tokens_per_batch):
            longest = max(lengths[index] for index in batch)
            ids = torch.full((len(batch), longest), int(self._tokenizer.pad_token_id))
            mask = torch.zeros((len(batch), longest), dtype=torch.long)
            for row, index in enumerate(batch):
                ids[row, : lengths[index]] = torch.tensor(windows[index])
                mask[row, : lengths[index]] = 1
            device = self._backbone.device
            hidden = self._backbone(
                input_ids=ids.to(device), attention_mask=mask.to(device)
            ).last_hidden_state  # (windows, length, width)
            for row, index in enumerate(batch):
                own = hidden[row, len(self._before) : lengths[index] - len(self._after)]
                found[index] = own.float().cpu().numpy()
        return [found[index] for index in range(len(windows))]


def load_embedder(
    name: str = "minilm", *, device: str = "cpu", max_length: int = MAX_LENGTH
) -> LanguageModelEmbedder:
    """Return the embedder of a packaged model, a folder or a hub name (see `resolve_model`), in fp32.

    `max_length` falls to the number of the model's positions where it has fewer.

    Raises:
        ConfigError: nothing goes by that name.
        ArtefactError: the folder is broken or unsafe.
    """
    folder = resolve_model(name)
    config = load_config(folder)
    positions = usable_positions(config)
    backbone = load_backbone(folder, config)
    nn.Module.to(backbone, device)  # its own `to` is wrapped, which hides the arguments from mypy
    return LanguageModelEmbedder(
        backbone,
        load_tokenizer(folder),
        max_length=max_length if positions is None else min(max_length, positions),
    )


def _special_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """Return the tokens that the tokenizer puts before and behind a text."""
    found = tokenizer("a", return_special_tokens_mask=True)
    ids, is_special = found["input_ids"], found["special_tokens_mask"]
    start = is_special.index(0)
    end = len(ids) - is_special[::-1].index(0)
    return ids[:start], ids[end:]
