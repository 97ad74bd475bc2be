"""No model meets, in a test, a query that it was trained on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from jobs.manifest import TEXT_TABLES, file_digest, folder_digest
from rerank_core.errors import ConfigError, DataError
from rerank_core.models.artefact import is_artefact, read_spec

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class Judged:
    """Whose judgements a model may learn from: digests of a collection's texts and of one fold's split."""

    texts: str
    split: str


def judged(prepared: Path, *, fold: int) -> Judged:
    """Return what identifies one fold of a prepared folder.

    Raises:
        DataError: the folder has no such fold.
    """
    split = prepared / f"fold-{fold}" / "split.parquet"
    if not split.is_file():
        raise DataError(f"{split} is missing: {prepared} has no fold {fold}; pass a smaller --fold")
    return Judged(texts=folder_digest(prepared, patterns=TEXT_TABLES), split=file_digest(split))


def learnt_from(model: Path) -> tuple[Judged, ...]:
    """Return whose judgements an artefact has learnt from, in any stage; a folder that is none has not."""
    if not is_artefact(model):
        return ()
    return tuple(Judged(**found) for found in read_spec(model).provenance.get("judged", ()))


def refuse_other_split(model: Path, here: Judged) -> None:
    """Check that a model which learnt from this collection's judgements meets the split that it learnt from.

    What passes: a folder that is no artefact, an artefact of other collections, one that has seen texts only.

    Raises:
        ConfigError: test queries here may have been training queries of the model.
    """
    for there in learnt_from(model):
        if there.texts == here.texts and there.split != here.split:
            fold = read_spec(model).provenance.get("fold")
            raise ConfigError(
                f"{model} was trained on another split of this collection (fold {fold}), whose training"
                " queries may be tested in this one; pass the prepared folder and --fold it was trained on"
            )
