"""Token sequences that share their beginnings, each shared beginning computed once."""

from __future__ import annotations

import math
from array import array
from bisect import bisect_left, bisect_right
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import Cache

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rerank_core.models.scorer import SingleNeuronModel

MAX_BYTES = {"cpu": 2**30, "cuda": 2**34}
"""What the nodes of a tree may take before all are forgotten, by kind of device."""

SEQUENCES_AT_ONCE = 256
"""Sequences that are inserted before anything is computed."""

CALL_TOKENS = {"cpu": 16, "cuda": 2000}
"""Padded tokens that cost as much as one more call of the model, by kind of device."""

_ROOT = 0
_FIRST_CAPACITY = 1024


class PrefixTree:
    """Scores sequences of token ids; one costs only the tokens behind what it shares with an earlier one.

    The sequences are the paths of a tree whose nodes are tokens. The keys and values of every node
    stay in memory until the tree is dropped, or takes `max_bytes` (`MAX_BYTES`): then it begins anew. Each
    takes 2 · layers · key-value heads · head width numbers. A call of the model gets at most `max_tokens`
    padded tokens, or one sequence. Only for a model that can be packed (`SingleNeuronModel.can_pack`), as
    every token looks at its own path alone.

    `num_tokens` counts the nodes of the tree as it is, `num_padded` the tokens that have gone through the
    model.
    """

    def __init__(
        self, model: SingleNeuronModel, *, max_tokens: int = 8192, max_bytes: int | None = None
    ) -> None:
        self._model = model
        device = model.head.weight.device
        self._device = device
        self._call_tokens = CALL_TOKENS.get(device.type, CALL_TOKENS["cuda"])
        self._max_tokens = max_tokens
        self._max_bytes = max_bytes or MAX_BYTES.get(device.type, MAX_BYTES["cuda"])
        self.num_padded = 0
        self._begin()

    def _begin(self) -> None:
        self._memory = _NodeMemory()
        self._sequences: list[bytes] = []  # all that were inserted, sorted
        self._paths: dict[bytes, array[int]] = {}
        self._num_path_bytes = 0  # of sequences and paths
        self._scores: dict[int, float] = {}
        # Of each node: its token, and how many stand before it. Node 0 stands for no token: it is the parent
        # of first tokens, and the padding.
        self._tokens, self._depths = array("i", [0]), array("q", [0])
        self._numbers = array("q", range(_FIRST_CAPACITY))  # 0, 1, 2, ...: a slice costs less than a range

    @property
    def num_tokens(self) -> int:
        """Return how many different tokens the tree holds."""
        return len(self._tokens) - 1

    @torch.inference_mode()
    def score(self, sequences: Sequence[array[int]]) -> list[float]:
        """Return one score per sequence of token ids, arrays of type "i", in their order."""
        scores: list[float] = []
        for start in range(0, len(sequences), SEQUENCES_AT_ONCE):
            if self._memory.num_bytes + self._num_path_bytes > self._max_bytes:
                self._begin()
            scores += self._score_group(sequences[start : start + SEQUENCES_AT_ONCE])
        return scores

    def _score_group(self, sequences: Sequence[array[int]]) -> list[float]:
        starts: list[int] = []  # the first node of each branch that adds some, in ascending order
        level_of_start: list[int] = []
        levels: list[list[_Branch]] = []
        ends = []
        for tokens in sequences:
            path, num_known = self._inserted(tokens)
            ends.append(path[-1])
            if path[-1] in self._scores:
                continue
            self._scores[path[-1]] = math.nan  # until it is computed
            # Where a longer one passed before, the last token runs again for its score.
            num_new = len(path) - num_known or 1
            parent = path[-num_new - 1] if num_new < len(path) else _ROOT
            # A branch waits for the one of this call that adds its parent.
            place = bisect_right(starts, parent)
            level = level_of_start[place - 1] + 1 if place else 0
            if num_known < len(path):
                starts.append(path[num_known])
                level_of_start.append(level)
            if level == len(levels):
                levels.append([])
            levels[level].append(_Branch(path, num_new))
        self._memory.reserve(len(self._tokens))
        for branches in levels:  # a branch looks at branches of earlier levels
            for batch in self._batches(branches):
                self._compute(batch)
        return [self._scores[end] for end in ends]

    def _inserted(self, tokens: array[int]) -> tuple[array[int], int]:
        """Return a sequence's path of nodes, and how many at its beginning were there before.

        Of all sequences the one before or the one behind it in their sorted order has most tokens in common
        with it at the beginning.
        """
        sequence = tokens.tobytes()
        path = self._paths.get(sequence)
        if path is not None:
            return path, len(path)
        place = bisect_left(self._sequences, sequence)
        num_known, path = 0, array("q")
        for neighbour in self._sequences[max(place - 1, 0) : place + 1]:
            known = num_known * tokens.itemsize
            if neighbour.startswith(sequence[: known + tokens.itemsize]):
                num_known = _num_shared(sequence, neighbour, known=known) // tokens.itemsize
                path = self._paths[neighbour][:num_known]
        num_nodes = len(self._tokens)
        self._tokens.extend(tokens[num_known:])
        while len(self._numbers) < len(self._tokens):
            self._numbers.extend(range(len(self._numbers), 2 * len(self._numbers)))
        path.extend(self._numbers[num_nodes : len(self._tokens)])
        self._depths.extend(self._numbers[num_known : len(tokens)])
        self._sequences.insert(place, sequence)
        self._paths[sequence] = path
        self._num_path_bytes += len(sequence) + len(path) * path.itemsize
        return path, num_known

    def _batches(self, branches: list[_Branch]) -> Iterator[list[_Branch]]:
        """Yield the branches in batches of similar lengths: padding may not cost more than another call."""
        batch: list[_Branch] = []
        waste = 0
        for branch in sorted(branches, key=lambda item: -item.num_new):
            if batch:
                waste += batch[0].num_new - branch.num_new
            if batch and (
                waste > self._call_tokens or (len(batch) + 1) * batch[0].num_new > self._max_tokens
            ):
                yield batch
                batch, waste = [], 0
            batch.append(branch)
        if batch:
            yield batch

    def _compute(self, batch: Sequence[_Branch]) -> None:
        """Compute the new nodes of some branches, longest first, and the scores at their ends."""
        num_new = batch[0].num_new
        paths = _left_padded([branch.path for branch in batch])  # (branches, length), padded with the root
        length = paths.shape[1]
        window = paths[:, length - num_new :]
        first_new = np.array([[branch.path[-branch.num_new]] for branch in batch])  # (branches, 1)
        nodes = window * (window >= first_new)  # the root or new, as the numbers of nodes rise along a path
        ids = np.frombuffer(self._tokens, dtype=self._tokens.typecode)[nodes]  # (branches, new)
        positions = np.frombuffer(self._depths, dtype=self._depths.typecode)[nodes]
        # Padding before a whole path looks at nothing: with the lowest number everywhere it looks at all
        # alike, so its states are finite; they go to the root, which no other token looks at.
        columns = np.arange(length)
        may_look = (paths > _ROOT)[:, None] & (columns <= columns[length - num_new :, None])
        self._memory.aim(self._tensor(paths), self._tensor(nodes))
        scores = self._model.forward_cached(
            input_ids=self._tensor(ids),
            position_ids=self._tensor(positions),
            may_look=self._tensor(may_look),
            cache=self._memory,
        )
        self.num_padded += ids.size
        for branch, score in zip(batch, scores.tolist(), strict=True):
            self._scores[branch.path[-1]] = score

    def _tensor(self, array: npt.NDArray[Any]) -> Tensor:
        return torch.from_numpy(array).to(self._device)


def _left_padded(rows: Sequence[array[int]]) -> npt.NDArray[Any]:
    """Return arrays of one kind as rows of the longest one's length, with zeros before them."""
    length = max(map(len, rows))
    joined = bytearray()
    for row in rows:
        joined += bytes((length - len(row)) * row.itemsize)
        joined += row
    return np.frombuffer(joined, dtype=rows[0].typecode).reshape(len(rows), length)


def _num_shared(one: bytes, other: bytes, *, known: int) -> int:
    """Return how many bytes two sequences have in common at their beginnings, at least `known`."""
    end = min(len(one), len(other))
    differing = int.from_bytes(one[known:end], "big") ^ int.from_bytes(other[known:end], "big")
    return end - (differing.bit_length() + 7) // 8


class _Branch:
    """A sequence with its path; its last `num_new` nodes are to be computed."""

    __slots__ = ("num_new", "path")

    def __init__(self, path: array[int], num_new: int) -> None:
        self.path, self.num_new = path, num_new


class _NodeMemory(Cache):
    """The keys and values of all nodes; a layer is handed those on the paths that `aim` has named."""

    def __init__(self) -> None:
        super().__init__(layers=[])
        self._keys: list[Tensor] = []  # each (nodes, heads, width)
        self._values: list[Tensor] = []
        self._capacity = _FIRST_CAPACITY

    @property
    def num_bytes(self) -> int:
        """What the stored states take."""
        return sum(stored.nbytes for stored in (*self._keys, *self._values))

    def reserve(self, num_nodes: int) -> None:
        """Make room for nodes 0 to `num_nodes` - 1."""
        if num_nodes <= self._capacity:
            return
        while self._capacity < num_nodes:
            self._capacity *= 2
        for stored in (self._keys, self._values):
            for layer, old in enumerate(stored):
                stored[layer] = old.new_zeros((self._capacity, *old.shape[1:]))
                stored[layer][: len(old)] = old

    def aim(self, paths: Tensor, new_nodes: Tensor) -> None:
        """Name the nodes of the next call: those that its rows look at, (rows, length), and those it adds."""
        self._paths, self._new_nodes = paths, new_nodes

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Store the states of the new nodes, (rows, heads, new, width); return those of the whole paths."""
        if layer_idx == len(self._keys):
            _, heads, _, width = key_states.shape
            self._keys.append(key_states.new_zeros((self._capacity, heads, width)))
            self._values.append(value_states.new_zeros((self._capacity, heads, value_states.shape[-1])))
        self._keys[layer_idx][self._new_nodes] = key_states.transpose(1, 2)
        self._values[layer_idx][self._new_nodes] = value_states.transpose(1, 2)
        return (
            self._keys[layer_idx][self._paths].transpose(1, 2),
            self._values[layer_idx][self._paths].transpose(1, 2),
        )
