"""Attributions and explanations of an earlier output, where this job would make the same ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jobs.attribution_folders import ATTRIBUTOR_SETTINGS
from jobs.manifest import other_inputs, require_finished
from rerank_core.attribution.table import read_attributions
from rerank_core.errors import ConfigError
from rerank_core.explanation.table import read_explanations

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from jobs.config import AttributeJob, ExplainJob
    from jobs.shards import Key
    from rerank_core.records import Attribution, Explanation

ATTRIBUTION_SETTINGS = (*ATTRIBUTOR_SETTINGS, "seed")
"""What decides an attribution besides the artefact, the query and the document."""

GENERATOR_SETTINGS = ("max_new_tokens", "max_model_tokens", "temperature", "seed")
"""What decides a text besides the model and what it is to tell."""


def check_reusable_attributions(config: AttributeJob, *, inputs: Mapping[str, str]) -> None:
    """Refuse folders whose attributions may not be taken over; `inputs` are the digests of this job's.

    Raises:
        DataError: a folder is not a finished output of `whyrank attribute`.
        ConfigError: its artefact, its documents, its queries, how long documents are read, or a setting
            differ.
    """
    names = ("artefact", "corpus", "queries", "long_documents")
    _check(config, job="attribute", names=names, settings=ATTRIBUTION_SETTINGS, inputs=inputs)


def check_reusable_explanations(config: ExplainJob, *, inputs: Mapping[str, str]) -> None:
    """Refuse folders whose explanations may not be taken over; `inputs` are the digests of this job's.

    Raises:
        DataError: a folder is not a finished output of `whyrank explain`.
        ConfigError: its model or a setting differ.
    """
    _check(config, job="explain", names=("model",), settings=GENERATOR_SETTINGS, inputs=inputs)


def _check(
    config: AttributeJob | ExplainJob,
    *,
    job: str,
    names: Sequence[str],
    settings: Sequence[str],
    inputs: Mapping[str, str],
) -> None:
    for folder in config.reuse:
        earlier = require_finished(folder, job=job)
        different = [
            *other_inputs(earlier, {name: inputs.get(name) for name in names}),
            *(name for name in settings if earlier["config"].get(name) != getattr(config, name)),
        ]
        if different:
            raise ConfigError(
                f"{folder} was made with another {', '.join(different)}: nothing of it can be reused;"
                f" leave it out of --reuse, or {job} with the same settings"
            )


def reusable_attributions(folders: Iterable[Path]) -> dict[Key, Attribution]:
    """Return the attributions of some folders by (query_id, doc_id); the first folder that has one counts."""
    found: dict[Key, Attribution] = {}
    for folder in folders:
        for attribution in read_attributions(folder):
            found.setdefault((attribution.query_id, attribution.doc_id), attribution)
    return found


def reusable_explanations(folders: Iterable[Path]) -> dict[str, Explanation]:
    """Return the explanations of some folders by what they tell; the first folder that has one counts.

    Those whose generator failed are left out: it may do better this time.
    """
    found: dict[str, Explanation] = {}
    for folder in folders:
        for explanation in read_explanations(folder):
            if explanation.num_attempts:
                found.setdefault(explanation.asked_digest, explanation)
    return found
