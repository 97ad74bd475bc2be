"""What people wrote for a query from a document, and what they marked there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rerank_core.data.rows import InputRow
from rerank_core.errors import DataError
from rerank_core.formats import read_jsonl

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from rerank_core.records import Document, Query


@dataclass(frozen=True, slots=True)
class ExpertAnswer:
    """A person's text for a query, written from a document; `rationale` are characters of its content."""

    text: str
    rationale: tuple[int, int] | None  # what the person marked, where anything


def read_answers(
    path: Path, *, queries: Mapping[str, Query], documents: Mapping[str, Document]
) -> dict[tuple[str, str], ExpertAnswer]:
    """Return the answers of a JSONL file by (query_id, doc_id); its columns are those and answer, rationale?.

    Raises:
        DataError: there is no row; or one lacks a column, has something else than text there, answers a pair
            for a second time, names no query or document of the collection, or marks what its document does
            not hold.
    """
    answers: dict[tuple[str, str], ExpertAnswer] = {}
    for number, values in read_jsonl(path):
        row = InputRow(path, number, values)
        key = (row.identifier("query_id"), row.identifier("doc_id"))
        if key in answers:
            raise row.error(f"query {key[0]!r} and document {key[1]!r} have an answer already; keep one")
        for name, known, identifier in (("query", queries, key[0]), ("document", documents, key[1])):
            if identifier not in known:
                raise row.error(f"no {name} is called {identifier!r}; pass the answers of this collection")
        answers[key] = ExpertAnswer(row.identifier("answer"), _rationale(row, documents[key[1]]))
    if not answers:
        raise DataError(f"{path} holds no answer; leave it out, or pass a file with one per line")
    return answers


def _rationale(row: InputRow, document: Document) -> tuple[int, int] | None:
    marked = row.optional_text("rationale").strip()
    start = document.content.find(marked)
    if start < 0:
        raise row.error(
            f"document {document.doc_id!r} does not hold the rationale {marked!r:.60}; copy it from there"
        )
    return (start, start + len(marked)) if marked else None
