"""Rows of a data set of the ir_datasets catalogue."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rerank_core.data.rows import InputRow
from rerank_core.errors import DataError
from rerank_core.formats import Judgement

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

CATALOGUE = "ir_datasets:"


@dataclass(frozen=True, slots=True)
class CatalogueRows:
    """What a data set holds, in the shape of a collection folder's rows."""

    documents: Iterable[InputRow]
    queries: Iterable[InputRow]
    judgements: Iterable[Judgement]


def catalogue_rows(name: str) -> CatalogueRows:
    """Return the rows of a data set, by its name without the prefix; negative grades (junk) count as 0.

    Raises:
        DataError: the catalogue does not know the name, or the data set lacks documents, queries or
            judgements.
    """
    import ir_datasets  # heavy, and only needed for its own catalogue

    try:
        dataset = ir_datasets.load(name)
    except KeyError as error:
        raise DataError(
            f"{CATALOGUE}{name} is unknown; the names are listed on https://ir-datasets.com"
        ) from error
    if not (dataset.has_docs() and dataset.has_queries() and dataset.has_qrels()):
        raise DataError(f"{CATALOGUE}{name} lacks documents, queries or judgements; name a judged part of it")
    return CatalogueRows(
        documents=_documents(dataset.docs_iter()),
        queries=_queries(dataset.queries_iter()),
        judgements=_judgements(dataset.qrels_iter()),
    )


def _documents(found: Iterable[Any]) -> Iterator[InputRow]:
    for row, document in enumerate(found, start=1):
        text = (
            getattr(document, "text", None) or getattr(document, "abstract", None) or document.default_text()
        )
        title, url = getattr(document, "title", None), getattr(document, "url", None)
        yield InputRow(
            Path("docs"), row, {"doc_id": document.doc_id, "title": title, "text": text, "url": url}
        )


def _queries(found: Iterable[Any]) -> Iterator[InputRow]:
    for row, query in enumerate(found, start=1):
        yield InputRow(Path("queries"), row, {"query_id": query.query_id, "text": query.default_text()})


def _judgements(found: Iterable[Any]) -> Iterator[Judgement]:
    for row, item in enumerate(found, start=1):
        yield Judgement(row, item.query_id, item.doc_id, max(int(item.relevance), 0))
