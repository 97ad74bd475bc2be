"""No model meets, in a test, a query that it was trained on."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jobs.manifest import TEXT_TABLES, file_digest, folder_digest
from rerank_core.data.splits import members
from rerank_core.errors import ConfigError, DataError
from rerank_core.formats import read_queries, read_split
from rerank_core.models.artefact import is_artefact, read_spec
from rerank_core.models.writer import read_provenance
from rerank_core.text import normalise

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

QUERY_DIGITS = 16


@dataclass(frozen=True, slots=True)
class Judged:
    """Whose judgements a model may learn from: one fold of a collection, as an artefact records it.

    `texts` and `split` are digests of files. `trained` and `held_out` (dev and test) name the fold's queries
    by digests of their texts, sorted, in one string with blanks between: one line of `reranker.json` each.
    A query is known again by its text, whatever becomes of the documents, the split or the identifiers.
    """

    texts: str
    split: str
    trained: str
    held_out: str


def judged(prepared: Path, *, fold: int) -> Judged:
    """Return one fold of a prepared folder; a text in two of its splits counts as trained on, not held out.

    Raises:
        DataError: the folder has no such fold.
    """
    split = prepared / f"fold-{fold}" / "split.parquet"
    if not split.is_file():
        raise DataError(f"{split} is missing: {prepared} has no fold {fold}; pass a smaller --fold")
    queries = read_queries(prepared / "queries.parquet")
    digests = {
        name: {query_digest(queries[query_id].text) for query_id in query_ids}
        for name, query_ids in members(read_split(split)).items()
    }
    return Judged(
        texts=folder_digest(prepared, patterns=TEXT_TABLES),
        split=file_digest(split),
        trained=" ".join(sorted(digests["train"])),
        held_out=" ".join(sorted((digests["dev"] | digests["test"]) - digests["train"])),
    )


def query_digest(text: str) -> str:
    """Return a digest of a query's text that neither case, white space nor compatibility forms change."""
    same = " ".join(normalise(text).split())
    return hashlib.sha256(same.encode()).hexdigest()[:QUERY_DIGITS]


def learnt_from(model: Path) -> tuple[Judged, ...]:
    """Return whose judgements a model has learnt from, in any stage; a folder that is not ours has not.

    Raises:
        ConfigError: the model learnt from judgements, but does not name the queries.
    """
    try:
        return tuple(Judged(**found) for found in _provenance(model).get("judged", ()))
    except TypeError as error:
        raise ConfigError(
            f"{model} does not name the queries that the model was trained on, so that a test may meet them;"
            " train it again"
        ) from error


def refuse_other_split(model: Path, here: Judged) -> None:
    """Check that a model was trained, in any stage, on no query that a fold holds out.

    What passes: a folder that is not ours, a model of other queries, one that has seen texts only.
    Dev queries that only chose the best epoch of a model do not count as trained on.

    Raises:
        ConfigError: dev or test queries here were training queries of the model, or it does not name them.
    """
    trained = {digest for there in learnt_from(model) for digest in there.trained.split()}
    held_out = here.held_out.split()
    num_met = sum(digest in trained for digest in held_out)
    if num_met:
        fold = _provenance(model).get("fold")
        raise ConfigError(
            f"{model} was trained on another split of these queries (fold {fold} of its prepared folder): on"
            f" {num_met} of the {len(held_out)} dev and test queries here; pass the prepared folder and the"
            " --fold that it was trained on, or train on this fold first"
        )


def _provenance(model: Path) -> Mapping[str, Any]:
    return read_spec(model).provenance if is_artefact(model) else read_provenance(model)
