"""Folders of attributions in, each with the artefact and the run that it was made from, checked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.manifest import SHARDS, folder_digest, other_inputs, require_finished, text_digests
from jobs.run_folders import checked_fold, long_documents_of
from rerank_core.errors import ConfigError
from rerank_core.models.artefact import artefact_digest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rerank_core.models.scorer import LongDocuments

ATTRIBUTOR_SETTINGS = ("method", "max_evals", "max_error", "leaf")
"""The settings of `whyrank attribute` that are arguments of `build_attributor`."""


@dataclass(frozen=True, slots=True)
class AttributionFolder:
    """A folder of attributions with the artefact and the run that it was made from, and its settings."""

    name: str
    folder: Path
    artefact: Path
    run: Path
    fold: int
    long_documents: LongDocuments  # as its run was scored
    settings: Mapping[str, Any]  # of `build_attributor`
    seed: int


def attribution_folders(named: Mapping[str, Sequence[Path]], *, prepared: Path) -> list[AttributionFolder]:
    """Return the folders with what they were made from, all of it checked.

    Raises:
        DataError: a folder is unfinished or not one of attributions.
        ConfigError: it, its artefact or its run is of other texts, those two are not where they lay, or two
            folders of one name are of one fold.
    """
    found = [_checked(name, folder, prepared=prepared) for name, some in named.items() for folder in some]
    for place, item in enumerate(found):
        if any((item.name, item.fold) == (other.name, other.fold) for other in found[:place]):
            raise ConfigError(
                f"{item.name!r} has two folders of fold {item.fold} ({item.folder} is the second); name one"
            )
    return found


def _checked(name: str, folder: Path, *, prepared: Path) -> AttributionFolder:
    manifest = require_finished(folder, job="attribute")
    others = other_inputs(manifest, text_digests(prepared))
    if others:
        raise ConfigError(f"{folder} attributes another {', '.join(others)} than that of {prepared}")
    config = manifest["config"]
    artefact, run = (Path(config[part]) for part in ("artefact", "run"))
    for part, path in (("artefact", artefact), ("run", run)):
        if not path.is_dir():
            raise ConfigError(f"the {part} of {folder} lay at {path}; put it back there, or attribute again")
    found = {
        "artefact": artefact_digest(artefact),
        "run": folder_digest(run, patterns=SHARDS),
    }
    others = other_inputs(manifest, found)
    if others:
        raise ConfigError(f"the {' and the '.join(others)} of {folder} changed since; attribute again")
    return AttributionFolder(
        name=name,
        folder=folder,
        artefact=artefact,
        run=run,
        fold=checked_fold(name, run, prepared=prepared),
        long_documents=long_documents_of(run),
        settings={setting: config[setting] for setting in ATTRIBUTOR_SETTINGS},
        seed=config["seed"],
    )
