"""Artefacts of tiny models with random weights, for tests that need files and no quality."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rerank_core.models.artefact import save_artefact
from rerank_core.models.build import build_encoder, build_model, load_tokenizer
from rerank_core.models.scorer import LanguageModelScorer
from rerank_core.models.tiny import save_tiny_encoder
from rerank_core.records import Document, Query

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from rerank_core.records import Calibration


def save_untrained_artefact(
    folder: Path, *, texts: Sequence[str], calibration: Calibration | None = None, seed: int = 0
) -> None:
    """Write an artefact of 48 tokens that knows the words of some texts; its start is written beside it."""
    model = folder.with_name(f"{folder.name}-pretrained-{seed}")
    save_tiny_encoder(model, texts, seed=seed)
    neuron = build_model(model, head="linear", num_layers=None, seed=seed)
    encoder = build_encoder(load_tokenizer(model), neuron.config, head="linear", max_length=48)
    golden = [(Query("golden", texts[0]), Document("golden", text)) for text in texts]
    save_artefact(
        LanguageModelScorer(neuron, encoder, digest=""),
        folder,
        head="linear",
        golden=golden,
        provenance={},
        calibration=calibration,
    )
