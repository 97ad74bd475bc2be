"""One query's documents behind one shared prefix, as rows of a causal language model."""

from __future__ import annotations

import inspect
from bisect import bisect_left
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedModel

    from rerank_core.models.scorer import EncodedPair

ROW_TOKENS = 1024
"""Tokens of documents that share a row.

Attention costs the square of a row's length, and each row repeats the prefix. Forty documents of SmolLM2
in one row of 2,500 tokens train 1.4 times slower than in three rows; rows of half this length gain nothing.
"""


def can_share_prefix(backbone: PreTrainedModel) -> bool:
    """Return whether a causal model scores packed documents as it scores each alone.

    Every layer must take its positions and its whole attention mask from the caller, so there may be no
    recurrence, no sliding window, and no bias by the distance between columns.
    """
    config = backbone.config
    default = "sliding_attention" if getattr(config, "sliding_window", None) else "full_attention"
    layers = getattr(config, "layer_types", None) or [default]
    return (
        "position_ids" in inspect.signature(backbone.forward).parameters
        and config._attn_implementation in ("sdpa", "eager")  # flash attention takes no dense mask
        and set(layers) == {"full_attention"}
        and not backbone._is_stateful
        and not getattr(config, "alibi", False)
    )


def prefix_rows(pairs: Sequence[EncodedPair], *, max_tokens: int) -> list[list[int]]:
    """Return rows of indices of `pairs`: a row's pairs share their prefix, and each index is in one row.

    A row holds at most `max_tokens` tokens, its prefix counted once, or one pair; pairs with the same prefix
    take the fewest rows that `ROW_TOKENS` allows, of lengths as even as can be.
    """
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, pair in enumerate(pairs):
        groups.setdefault(pair.input_ids[: pair.document_start], []).append(index)
    rows = []
    for prefix, group in groups.items():
        lengths = [len(pairs[index].input_ids) - len(prefix) for index in group]
        room = max(min(ROW_TOKENS, max_tokens - len(prefix)), 1)
        rows += [[group[place] for place in row] for row in _even_rows(lengths, room=room)]
    return rows


def row_length(pairs: Sequence[EncodedPair]) -> int:
    """Return the tokens of one row: the shared prefix, and behind it every document."""
    return pairs[0].document_start + sum(len(pair.input_ids) - pair.document_start for pair in pairs)


def pack(rows: Sequence[Sequence[EncodedPair]], *, pad_id: int) -> dict[str, Tensor]:
    """Return the inputs of `SingleNeuronModel.forward_packed`.

    A row is `prefix | document 1 | document 2 | …`; `block_ids` is 0 in the prefix, 1, 2, … in the documents
    and -1 in the padding on the right, and `position_ids` goes on from the prefix in every document. All
    three are (rows, longest length). `last_tokens` is where each document ends in the flattened rows,
    (documents,), in the order of `rows`.

    Raises:
        ValueError: the pairs of a row do not share what stands before the document.
    """
    length = max(row_length(row) for row in rows)
    inputs = {
        "input_ids": torch.full((len(rows), length), pad_id, dtype=torch.long),
        "position_ids": torch.zeros((len(rows), length), dtype=torch.long),
        "block_ids": torch.full((len(rows), length), -1, dtype=torch.long),
    }
    last_tokens = []
    for number, row in enumerate(rows):
        ids, positions, blocks, ends = _packed_row(row)
        for tensor, values in zip(inputs.values(), (ids, positions, blocks), strict=True):
            tensor[number, : len(ids)] = torch.tensor(values)
        last_tokens += [number * length + end - 1 for end in ends]
    return inputs | {"last_tokens": torch.tensor(last_tokens)}


def packed_mask(block_ids: Tensor, *, dtype: torch.dtype) -> Tensor:
    """Return what is added to attention's logits, (rows, 1, length, length), from (rows, length).

    It is 0 where a token may look: at itself and before itself, in the prefix and in its own document; and
    the lowest number of `dtype` elsewhere. Padding looks at padding, so that no token looks at nothing.
    """
    of_token, of_seen = block_ids.unsqueeze(2), block_ids.unsqueeze(1)
    may_look = ((of_seen == 0) | (of_seen == of_token)).tril()  # (rows, length, length)
    mask = torch.zeros(may_look.shape, dtype=dtype, device=block_ids.device)
    return mask.masked_fill_(~may_look, torch.finfo(dtype).min).unsqueeze(1)


def _packed_row(pairs: Sequence[EncodedPair]) -> tuple[list[int], list[int], list[int], list[int]]:
    """Return one row's ids, positions and blocks, and where each document ends."""
    start = pairs[0].document_start
    prefix = pairs[0].input_ids[:start]
    ids, positions, blocks, ends = list(prefix), list(range(start)), [0] * start, []
    for block, pair in enumerate(pairs, start=1):
        if pair.input_ids[: pair.document_start] != prefix:
            raise ValueError(f"pair {block} of a packed row has another prefix than the first; pack by query")
        ids += pair.input_ids[start:]
        positions += range(start, len(pair.input_ids))
        blocks += [block] * (len(pair.input_ids) - start)
        ends.append(
            len(ids) if len(pair.input_ids) > start else start
        )  # an empty document ends in the prefix
    return ids, positions, blocks, ends


def _even_rows(lengths: Sequence[int], *, room: int) -> list[list[int]]:
    """Split lengths, in order, into the fewest rows of at most `room` (or one item), as even as can be."""
    num_rows = len(_filled_rows(lengths, room=room))
    least = bisect_left(range(room), True, key=lambda r: len(_filled_rows(lengths, room=r)) <= num_rows)
    return _filled_rows(lengths, room=least)


def _filled_rows(lengths: Sequence[int], *, room: int) -> list[list[int]]:
    rows: list[list[int]] = []
    used = 0
    for index, length in enumerate(lengths):
        if not rows or used + length > room:
            rows.append([])
            used = 0
        rows[-1].append(index)
        used += length
    return rows
