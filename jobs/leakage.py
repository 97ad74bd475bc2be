"""No model meets, in a test, a query that it was trained on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rerank_core.errors import ConfigError
from rerank_core.models.artefact import is_artefact, read_spec

if TYPE_CHECKING:
    from pathlib import Path


def refuse_other_fold(model: Path, *, fold: int, texts: str) -> None:
    """Check that an artefact trained on the judgements of this collection is used with its own fold.

    `texts` is the digest of the collection's texts. What passes: a folder that is no artefact, an artefact of
    another collection, and one that has seen texts only (untrained, warm-up).

    Raises:
        ConfigError: the test queries of `fold` were training queries of the artefact.
    """
    if not is_artefact(model):
        return
    provenance = read_spec(model).provenance
    if provenance.get("texts") == texts and provenance.get("fold") != fold:
        raise ConfigError(
            f"{model} was trained on fold {provenance.get('fold')} of this collection, whose training queries"
            f" are tested in fold {fold}; pass --fold {provenance.get('fold')}"
        )
