"""Attributions of an earlier output, where this job would compute the same ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jobs.attribution_folders import ATTRIBUTOR_SETTINGS
from jobs.manifest import other_inputs, require_finished
from rerank_core.attribution.table import read_attributions
from rerank_core.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from jobs.config import AttributeJob
    from jobs.shards import Key
    from rerank_core.records import Attribution

SETTINGS = (*ATTRIBUTOR_SETTINGS, "seed")
"""What decides an attribution besides the artefact, the query and the document."""


def check_reusable(config: AttributeJob, *, inputs: Mapping[str, str]) -> None:
    """Refuse folders whose attributions may not be taken over; `inputs` are the digests of this job's.

    Raises:
        DataError: a folder is not a finished output of `whyrank attribute`.
        ConfigError: its artefact, its documents, its queries or a setting differ.
    """
    for folder in config.reuse:
        earlier = require_finished(folder, job="attribute")
        decisive = {name: inputs[name] for name in ("artefact", "corpus", "queries", "long_documents")}
        different = [
            *other_inputs(earlier, decisive),
            *(name for name in SETTINGS if earlier["config"].get(name) != getattr(config, name)),
        ]
        if different:
            raise ConfigError(
                f"{folder} was attributed with another {', '.join(different)}: nothing of it can be reused;"
                " leave it out of --reuse, or attribute with the same settings"
            )


def reusable_attributions(folders: Iterable[Path]) -> dict[Key, Attribution]:
    """Return the attributions of some folders by (query_id, doc_id); the first folder that has one counts."""
    found: dict[Key, Attribution] = {}
    for folder in folders:
        for attribution in read_attributions(folder):
            found.setdefault((attribution.query_id, attribution.doc_id), attribution)
    return found
