"""A single-neuron model over whole lists, within the memory of one batch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rerank_core.models.scorer import SingleNeuronModel


class ListModel(nn.Module):
    """What training calls: all documents of a list in, all their scores out, in one forward.

    A list of several batches is scored twice: first without a graph, for all scores, and then again batch by
    batch in the backward pass, so that only one batch's activations are held at a time. The gradients are
    those of a single large batch. A prefix that batches share is recomputed in each, because a gradient
    flows through it from every document.
    """

    def __init__(self, model: SingleNeuronModel) -> None:
        super().__init__()
        self.model = model

    @property
    def config(self) -> Any:
        """The backbone's configuration; DeepSpeed's integration reads its hidden size."""
        return self.model.config

    def forward(self, batches: Sequence[Mapping[str, Tensor]], places: Tensor) -> Tensor:
        """Return one score per document, (documents,).

        `batches` is made by `pair_batches`; the score of document i is number `places[i]` of theirs.
        """
        if len(batches) == 1:
            return self.model.batch_scores(batches[0])[places]
        scores = [checkpoint(self.model.batch_scores, batch, use_reentrant=False) for batch in batches]
        return torch.cat(scores)[places]
