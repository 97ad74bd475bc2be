"""Explanations in, what they carry of their evidence out, and whether a reader can tell ranks from them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from jobs.manifest import SHARDS, folder_digest, other_inputs, require_finished, text_digests
from rerank_core.attribution.table import read_attributions
from rerank_core.errors import ConfigError, DataError
from rerank_core.evaluation.document_table import (
    MeasuredDocuments,
    kind_pairs,
    mean_row,
    paired_differences,
)
from rerank_core.evaluation.explanation_page import READER_LABELS, TEXT_LABELS, ExplanationTables
from rerank_core.evaluation.explanation_quality import (
    shuffled_explanations,
    simulated_ranks,
    text_quality,
)
from rerank_core.explanation.evidence import select_evidence
from rerank_core.explanation.table import read_explanations
from rerank_core.explanation.task import CONTRAST_TEMPLATE, read_document
from rerank_core.formats import read_documents, read_shards, rows_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.console import Console

    from rerank_core.evaluation.document_table import MeanRow
    from rerank_core.protocols import Embedder
    from rerank_core.records import Document, Explanation

WITH, WITHOUT, SHUFFLED = "with", "without", "shuffled"


@dataclass(frozen=True, slots=True)
class ExplanationFolder:
    """A folder of explanations, with the attributions and the run that it was made from."""

    name: str
    folder: Path
    attributions: Path
    run: Path
    num_words: int


def explanation_folders(named: Mapping[str, Sequence[Path]], *, prepared: Path) -> list[ExplanationFolder]:
    """Return the folders with what they were made from, all of it checked.

    Raises:
        DataError: a folder is unfinished or not one of explanations.
        ConfigError: it is of other texts, or what it was made from changed or is not where it lay.
    """
    return [_checked(name, folder, prepared=prepared) for name, found in named.items() for folder in found]


def _checked(name: str, folder: Path, *, prepared: Path) -> ExplanationFolder:
    manifest = require_finished(folder, job="explain")
    others = other_inputs(manifest, text_digests(prepared))
    if others:
        raise ConfigError(f"{folder} explains another {', '.join(others)} than that of {prepared}")
    config = manifest["config"]
    lay = {part: Path(config[part]) for part in ("attributions", "run")}
    for part, path in lay.items():
        if not path.is_dir():
            raise ConfigError(f"the {part} of {folder} lay at {path}; put it back there, or explain again")
    others = other_inputs(
        manifest, {part: folder_digest(path, patterns=SHARDS) for part, path in lay.items()}
    )
    if others:
        raise ConfigError(f"the {' and the '.join(others)} of {folder} changed since; explain again")
    return ExplanationFolder(name, folder, lay["attributions"], lay["run"], config["num_words"])


def measure_explanations(
    folders: Sequence[ExplanationFolder], *, prepared: Path, embedder: Embedder, num_samples: int, seed: int
) -> ExplanationTables:
    """Return what the explanations of some folders are worth; folders of one name are pooled.

    Explanations that compare two documents are left out: their evidence is that of two.
    """
    documents = read_documents(prepared / "corpus.parquet")
    texts: dict[tuple[str, str], dict[tuple[str, str], dict[str, float]]] = {}
    told: dict[tuple[str, str], list[tuple[Explanation, int]]] = {}
    for folder in folders:
        for explanation, rank, measures in _measured(folder, documents):
            kind = (folder.name, WITH if explanation.with_attribution else WITHOUT)
            key = (explanation.query_id, explanation.doc_id)
            if key in texts.setdefault(kind, {}):
                raise DataError(
                    f"{folder.name!r} explains {key} twice ({folder.folder} is the second); name one"
                )
            texts[kind][key] = measures
            told.setdefault(kind, []).append((explanation, rank))
    of_texts = [MeasuredDocuments(name, kind, found) for (name, kind), found in texts.items()]
    of_reader = [
        measured
        for (name, kind), found in told.items()
        for measured in _read(name, kind, found, embedder=embedder, seed=seed)
    ]
    bootstrap: dict[str, Any] = {"num_samples": num_samples, "seed": seed}
    own_kinds = [pair for kind in (WITH, WITHOUT) for pair in kind_pairs(of_reader, kind=kind)]
    reader_pairs = [
        (own, other) for own, other in own_kinds if other.kind in (f"{own.kind}, {SHUFFLED}", WITHOUT)
    ]
    return ExplanationTables(
        num_samples=num_samples,
        texts=tuple(mean_row(measured, **bootstrap) for measured in of_texts),
        text_differences=tuple(
            paired_differences(kind_pairs(of_texts, kind=WITH), measures=tuple(TEXT_LABELS), **bootstrap)
        ),
        reader=tuple(mean_row(measured, **bootstrap) for measured in of_reader),
        reader_differences=tuple(
            paired_differences(reader_pairs, measures=tuple(READER_LABELS), **bootstrap)
        ),
    )


def _measured(
    folder: ExplanationFolder, documents: Mapping[str, Document]
) -> list[tuple[Explanation, int, dict[str, float]]]:
    """Return each explanation with the rank of its document and its measures."""
    attributions = {(found.query_id, found.doc_id): found for found in read_attributions(folder.attributions)}
    columns = {"query_id": pa.string(), "doc_id": pa.string(), "rank": pa.int32()}
    rank_by_key = {
        (query_id, doc_id): rank
        for query_id, doc_id, rank in rows_of(read_shards(folder.run / "data", columns))
    }
    measured = []
    for explanation in read_explanations(folder.folder):
        if explanation.template == CONTRAST_TEMPLATE:
            continue
        key = (explanation.query_id, explanation.doc_id)
        attribution = attributions[key]
        quality = text_quality(
            explanation,
            evidence=select_evidence(attribution, k=folder.num_words),
            document=read_document(attribution, documents[explanation.doc_id]),
        )
        measures = {
            "own_text": float(not explanation.fallback),
            "retried": float(explanation.num_attempts > 1),
            "grounded": float(explanation.grounded),
            **{name: float(value) for name, value in dataclasses.asdict(quality).items()},
        }
        measured.append((explanation, rank_by_key[key], measures))
    return measured


def _read(
    name: str, kind: str, told: Sequence[tuple[Explanation, int]], *, embedder: Embedder, seed: int
) -> list[MeasuredDocuments]:
    """Return what a reader tells from some texts, and from the same ones shuffled; nothing of too few."""
    explanations, ranks = [explanation for explanation, _ in told], [rank for _, rank in told]
    found = []
    for label, shown in (
        (kind, explanations),
        (f"{kind}, {SHUFFLED}", shuffled_explanations(explanations, np.random.default_rng(seed))),
    ):
        try:
            agreement = simulated_ranks(shown, ranks, embedder=embedder, rng=np.random.default_rng(seed))
        except DataError:
            return []
        by_query = {(query_id, ""): {"simulated": tau} for query_id, tau in agreement.items()}
        found.append(MeasuredDocuments(name, label, by_query))
    return found


def show_explanation_quality(tables: ExplanationTables, *, console: Console) -> None:
    """Print the means; the page has the intervals."""
    show_means(tables.texts, TEXT_LABELS, kind="texts", console=console)
    show_means(tables.reader, READER_LABELS, kind="texts", console=console)


def show_means(rows: Sequence[MeanRow], labels: Mapping[str, str], *, kind: str, console: Console) -> None:
    """Print the means of some rows; `kind` is what the kinds of rows are."""
    if not rows:
        return
    shown = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))  # fits 80 columns
    for header in ("name", kind, *(label.replace(" ", "\n") for label in labels.values())):
        shown.add_column(header, no_wrap=True)
    for row in rows:
        shown.add_row(escape(row.name), row.kind, *(f"{row.values[name].mean:.2f}" for name in labels))
    console.print(shown)
