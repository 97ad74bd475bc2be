"""Explanations of a finished folder are measured beside what chance and shuffled texts would have."""

from __future__ import annotations

import json
from io import StringIO
from typing import TYPE_CHECKING

import numpy as np
import pytest
from rich.console import Console

from jobs.config import ExplainJob
from jobs.expert_answers import compare_with_answers, num_answered, show_answers
from jobs.explanation_quality import (
    explanation_folders,
    measure_explanations,
    show_explanation_quality,
)
from jobs.manifest import (
    file_digest,
    finish_output,
    folder_digest,
    opened_output,
    read_manifest,
    write_json,
)
from rerank_core.attribution.table import attributions_table
from rerank_core.data.answers import ExpertAnswer
from rerank_core.errors import ConfigError, DataError
from rerank_core.evaluation.answer_page import render_answers
from rerank_core.evaluation.explanation_page import render_explanation_quality
from rerank_core.explanation.evidence import contrast_evidence, select_evidence
from rerank_core.explanation.explain import conclude
from rerank_core.explanation.table import explanations_table
from rerank_core.explanation.task import Placement
from rerank_core.formats import RUN, documents_table, queries_table, table_of, write_table
from rerank_core.records import Attribution, Document, Explanation, Generation, Query, Unit
from rerank_core.text import words

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

DEGREES = ("hot hot hot", "hot hot cold", "hot cold cold", "cold cold cold")
DOCUMENTS = [Document(f"d{n}", f"the {degree} sea of the north") for n, degree in enumerate(DEGREES)]
QUERIES = [Query(f"q{n}", "sea heat") for n in range(6)]


class _Heat:
    """An embedder whose numbers are how often a text says "hot" and "cold"."""

    def embed(self, texts: Sequence[str]) -> list[NDArray[np.float32]]:
        return [np.array([[t.count("hot"), t.count("cold"), 1]], dtype=np.float32) for t in texts]


def _attribution(query_id: str, document: Document) -> Attribution:
    units = tuple(Unit(word.text, word.start, word.end) for word in words(document.text))
    values = tuple({"hot": 1.0, "cold": -1.0}.get(unit.text, 0.01) for unit in units)
    return Attribution(query_id, document.doc_id, sum(values), 0.0, units, values, "exact", 4, 0.0, 0)


def _explanations(query: Query, document: Document, rank: int) -> list[Explanation]:
    """Return a text that repeats the document's degree, one without words of its own, and a comparison."""
    attribution = _attribution(query.query_id, document)
    evidence = select_evidence(attribution, k=2)
    told = {"text": f"This document describes {document.text}.", "raised": ["hot"], "lowered": ["cold"]}
    told = {key: value for key, value in told.items() if key == "text" or value[0] in document.text}
    with_words = Placement(query, document, rank=rank, num_candidates=4, evidence=evidence)
    without = Placement(query, document, rank=rank, num_candidates=4, evidence=None)
    lower = contrast_evidence(attribution, attribution, document=document, rank=rank + 1)
    compared = Placement(query, document, rank=rank, num_candidates=4, evidence=lower)
    answer = Generation(json.dumps({"sentences": [told]}), 9, 9)
    empty = Generation('{"sentences": [{"text": "This document describes the sea."}]}', 9, 9)
    return [
        conclude(with_words, [answer], generator="g"),
        conclude(without, [empty], generator="g"),
        conclude(compared, [empty], generator="g"),
    ]


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    folder = tmp_path / "prepared"
    folder.mkdir()
    write_table(documents_table(DOCUMENTS), folder / "corpus.parquet")
    write_table(queries_table(QUERIES), folder / "queries.parquet")
    return folder


@pytest.fixture
def explained(tmp_path: Path, prepared: Path) -> Path:
    """Return a finished folder of explanations of four documents of six queries."""
    run, attributions, output = (tmp_path / name for name in ("run", "words", "texts"))
    pairs = [(query, document, rank) for query in QUERIES for rank, document in enumerate(DOCUMENTS, start=1)]
    rows = [(q.query_id, d.doc_id, 1, 0.0, -float(rank), rank, "m") for q, d, rank in pairs]
    write_table(table_of(rows, RUN), _shard(run))
    found = [_attribution(q.query_id, d) for q, d, _ in pairs]
    write_table(attributions_table(found, model_digest="m"), _shard(attributions))
    texts = [text for q, d, rank in pairs for text in _explanations(q, d, rank)]
    config = ExplainJob(prepared=prepared, run=run, attributions=attributions, output=output, num_words=2)
    shards = ("data/shard-*.parquet",)
    inputs = {name: file_digest(prepared / f"{name}.parquet") for name in ("corpus", "queries")}
    inputs |= {"run": folder_digest(run, patterns=shards)}
    inputs |= {"attributions": folder_digest(attributions, patterns=shards)}
    with opened_output(output, job="explain", config=config, inputs=inputs):
        write_table(explanations_table(texts), _shard(output))
        finish_output(output, results={})
    return output


def _shard(folder: Path) -> Path:
    (folder / "data").mkdir(parents=True, exist_ok=True)
    return folder / "data" / "shard-00000.parquet"


def test_texts_with_words_carry_the_evidence_and_tell_the_rank(prepared: Path, explained: Path) -> None:
    folders = explanation_folders({"dpo": [explained]}, prepared=prepared)
    tables = measure_explanations(folders, prepared=prepared, embedder=_Heat(), num_samples=100, seed=0)
    with_words, without = tables.texts
    assert (with_words.kind, without.kind) == ("with", "without")
    assert (with_words.num_queries, with_words.num_documents) == (6, 24)  # comparisons are left out
    means = {name: found.mean for name, found in with_words.values.items()}
    assert means["own_text"] == means["grounded"] == 1
    assert means["recall"] > without.values["recall"].mean == 0
    reader = {row.kind: row.values["simulated"].mean for row in tables.reader}
    assert set(reader) == {"with", "with, shuffled", "without", "without, shuffled"}
    assert reader["with"] == pytest.approx(1)
    assert reader["without"] == 0  # all of them say the same
    assert abs(reader["with, shuffled"]) < 0.6
    compared = {(found.first[1], found.second[1]) for found in tables.reader_differences}
    assert compared == {("with", "with, shuffled"), ("with", "without"), ("without", "without, shuffled")}


def test_the_page_and_the_console_name_both_conditions(prepared: Path, explained: Path) -> None:
    folders = explanation_folders({"dpo": [explained]}, prepared=prepared)
    tables = measure_explanations(folders, prepared=prepared, embedder=_Heat(), num_samples=100, seed=0)
    page = render_explanation_quality(tables)
    assert "| dpo | with | 6 | 24 | 1.000 [1.000, 1.000] |" in page
    assert "| dpo with | dpo without | recall | 6 | 24 | +" in page
    assert "| name | texts | queries | rankings | Kendall's τ |" in page
    assert "| first | second | measure | queries | rankings | first − second |" in page
    console = Console(file=StringIO(), width=80)
    show_explanation_quality(tables, console=console)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert any("shuffled" in line for line in lines)
    assert all(len(line) <= 80 for line in lines)


def _answers() -> dict[tuple[str, str], ExpertAnswer]:
    """Return answers that repeat each document's degree; people marked its three words of heat."""
    return {
        (query.query_id, document.doc_id): ExpertAnswer(degree, (4, 4 + len(degree)))
        for query in QUERIES
        for document, degree in zip(DOCUMENTS, DEGREES, strict=True)
    }


def test_texts_and_words_are_measured_beside_what_people_wrote(prepared: Path, explained: Path) -> None:
    folders = explanation_folders({"dpo": [explained]}, prepared=prepared)
    tables = compare_with_answers(
        folders, _answers(), prepared=prepared, embedder=_Heat(), num_samples=100, seed=0
    )
    rouge = {row.kind: row.values["rouge_l"].mean for row in tables.texts}
    kinds = ("with", "without", "document")
    assert set(rouge) == {*kinds, *(f"{kind}, other answers" for kind in kinds)}
    assert rouge["with"] > rouge["with, other answers"] > rouge["without"] == 0
    assert rouge["document"] == pytest.approx(6 / 11)  # all three words of the answer, of its own eight
    compared = {(found.first[1], found.second[1]) for found in tables.text_differences}
    own = {(kind, f"{kind}, other answers") for kind in ("with", "without")}
    assert compared == own | {("with", "without"), ("with", "document"), ("without", "document")}
    precision = {row.kind: row.values["average_precision"].mean for row in tables.words}
    assert set(precision) == {"attributed", "lexical", "random"}
    assert precision["attributed"] > precision["random"]
    page = render_answers(tables)
    assert "| dpo | with, other answers | 6 | 24 |" in page
    assert "| dpo attributed | dpo random | average precision | 6 | 24 | +" in page
    console = Console(file=StringIO(), width=80)
    show_answers(tables, console=console)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert any("lexical" in line for line in lines)
    assert all(len(line) <= 80 for line in lines)


def test_answers_that_say_nothing_of_what_was_explained_are_refused(prepared: Path, explained: Path) -> None:
    folders = explanation_folders({"dpo": [explained]}, prepared=prepared)
    other = {("q9", "d0"): ExpertAnswer("hot", None)}
    with pytest.raises(DataError, match="no explained document has an answer"):
        num_answered(folders, other)
    assert num_answered(folders, {**other, **_answers()}) == 24
    twice = explanation_folders({"dpo": [explained, explained]}, prepared=prepared)
    with pytest.raises(DataError, match=r"'dpo' explains \('q0', 'd0'\) twice"):
        compare_with_answers(twice, _answers(), prepared=prepared, embedder=_Heat(), num_samples=100, seed=0)
    unmarked = {key: ExpertAnswer(answer.text, None) for key, answer in _answers().items()}
    tables = compare_with_answers(
        folders, unmarked, prepared=prepared, embedder=_Heat(), num_samples=100, seed=0
    )
    assert tables.words == ()
    assert "Not measured: no attributed document has a rationale" in render_answers(tables)


def test_one_query_has_no_reader(prepared: Path, explained: Path) -> None:
    (folder,) = explanation_folders({"dpo": [explained]}, prepared=prepared)
    texts = [text for rank, d in enumerate(DOCUMENTS, start=1) for text in _explanations(QUERIES[0], d, rank)]
    write_table(explanations_table(texts), _shard(explained))
    tables = measure_explanations([folder], prepared=prepared, embedder=_Heat(), num_samples=100, seed=0)
    assert tables.reader == ()
    assert "Not measured: it takes two explained documents" in render_explanation_quality(tables)


def test_folders_of_other_texts_or_changed_sources_are_refused(prepared: Path, explained: Path) -> None:
    def refused(match: str) -> None:
        with pytest.raises(ConfigError, match=match):
            explanation_folders({"dpo": [explained]}, prepared=prepared)

    manifest = read_manifest(explained)
    attributions = _shard(explained.parent / "words")
    whole = attributions.read_bytes()
    attributions.write_bytes(whole + b" ")
    refused("the attributions of .* changed since")
    attributions.write_bytes(whole)
    moved = {**manifest, "config": {**manifest["config"], "run": "/nowhere"}}
    write_json(explained / "manifest.json", moved)
    refused("the run of .* lay at /nowhere")
    write_json(explained / "manifest.json", manifest)
    write_table(queries_table(QUERIES[:2]), prepared / "queries.parquet")
    refused("explains another queries")
