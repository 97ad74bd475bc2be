"""A collection from its name or folder, every row checked."""

from __future__ import annotations

import importlib.resources
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rerank_core.data.candidates import judged_pool
from rerank_core.data.catalogue import CATALOGUE, catalogue_rows
from rerank_core.data.rows import InputRow, is_encodable
from rerank_core.data.settings import read_settings, read_splits
from rerank_core.errors import DataError
from rerank_core.formats import (
    Judgement,
    collect_qrels,
    read_jsonl,
    read_lines,
    read_parquet_rows,
    read_trec_judgements,
)
from rerank_core.records import Collection, Document, Query

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

JUDGES_QUARANTINED = "judges a quarantined document"


def load_collection(path_or_name: str | Path, *, use_splits: bool = True) -> Collection:
    """Return the collection `sample`, one in a folder (its splits with `use_splits`), or `ir_datasets:<id>`.

    A folder holds corpus.jsonl or .parquet (doc_id, text, title?, url?), queries.jsonl or .parquet (query_id,
    text) and qrels.trec, .txt or .parquet (query_id, doc_id, grade); it may hold splits.json (train, dev,
    test: query_ids) and collection.json (name; pool "judged"; relevant_from). A document with neither title
    nor text, or with a lone surrogate, is left out and listed in `quarantined`, and so is each judgement of
    it. Negative grades, which some data sets of the ir_datasets catalogue give to junk, count as 0 there.

    Raises:
        DataError: a file or column is missing, a value has the wrong type, an identifier occurs twice, a
            judgement names an unknown query or document, a split or setting is wrong, nothing is judged, or
            the name is unknown.
    """
    folder = collection_folder(path_or_name)
    if folder is None:
        return _load_from_catalogue(str(path_or_name))
    return _load_folder(folder, use_splits=use_splits)


def load_corpus(path_or_name: str | Path) -> tuple[Document, ...]:
    """Return the documents of the collection `sample` or of one in a folder, in the order of its rows.

    The folder needs no queries and no judgements; what `whyrank prepare` writes is one too.

    Raises:
        DataError: the file or a column is missing, a value has the wrong type, an identifier occurs twice, a
            document has neither title nor text or holds a lone surrogate, or there is no document.
    """
    folder = collection_folder(path_or_name)
    if folder is None:
        raise DataError(f"{path_or_name} is no folder; name one that `whyrank prepare` wrote from it")
    path = _the_one(folder, "corpus.jsonl", "corpus.parquet")
    documents, left_out = _read_documents(_rows(path, fields=("doc_id", "title", "text", "url")))
    if left_out:
        first = left_out[0]
        raise DataError(
            f"{path}, row {first['row']}: document {first['doc_id']} cannot be read ({first['reason']}); mend"
            " or remove the row, or name a folder that `whyrank prepare` wrote, which leaves such rows out"
        )
    if not documents:
        raise DataError(f"{path} holds no document; at least one is needed")
    return tuple(documents.values())


def collection_folder(path_or_name: str | Path) -> Path | None:
    """Return the folder that holds a collection's files; None for a data set of the ir_datasets catalogue.

    Raises:
        DataError: there is no such folder.
    """
    if str(path_or_name).startswith(CATALOGUE):
        return None
    if str(path_or_name) == "sample":
        return Path(str(importlib.resources.files("rerank_core.sample")))
    folder = Path(path_or_name)
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder; name `sample`, a collection folder, or `{CATALOGUE}<id>`")
    return folder


def load_exclusions(path: Path, collection: Collection) -> dict[str, frozenset[str]]:
    """Return the documents that must never be candidates, by query, from a file of query_id<TAB>doc_id.

    Raises:
        DataError: the file or its header is missing, or a row is no pair of a known query and document.
    """
    lines = read_lines(path)
    header = next(lines, (0, ""))[1]
    if header.split("\t") != ["query_id", "doc_id"]:
        raise DataError(f"{path}, row 1: expected the header query_id<TAB>doc_id, got {header!r}; add it")
    known = {*collection.documents, *(item["doc_id"] for item in collection.quarantined)}
    excluded: dict[str, set[str]] = {}
    for row, line in lines:
        query_id, _, doc_id = line.partition("\t")
        if query_id not in collection.queries or doc_id not in known:
            raise DataError(
                f"{path}, row {row}: query {query_id!r} or document {doc_id!r} is unknown; remove the row"
            )
        excluded.setdefault(query_id, set()).add(doc_id)
    return {query_id: frozenset(doc_ids) for query_id, doc_ids in excluded.items()}


def _load_folder(folder: Path, *, use_splits: bool) -> Collection:
    settings = read_settings(folder / "collection.json")
    qrels_path = _the_one(folder, "qrels.trec", "qrels.txt", "qrels.parquet")
    collection = _assemble(
        settings.name or folder.resolve().name,
        documents=_rows(
            _the_one(folder, "corpus.jsonl", "corpus.parquet"), fields=("doc_id", "title", "text", "url")
        ),
        queries=_rows(_the_one(folder, "queries.jsonl", "queries.parquet"), fields=("query_id", "text")),
        qrels_path=qrels_path,
        judgements=_judgements(qrels_path),
    )
    splits_path = folder / "splits.json"
    has_splits = use_splits and splits_path.is_file()
    return replace(
        collection,
        pool=judged_pool(collection.qrels) if settings.has_judged_pool else None,
        splits=read_splits(splits_path, queries=collection.queries, judged=collection.qrels)
        if has_splits
        else None,
        relevant_from=settings.relevant_from,
    )


def _load_from_catalogue(name: str) -> Collection:
    rows = catalogue_rows(name.removeprefix(CATALOGUE))
    return _assemble(
        name,
        documents=rows.documents,
        queries=rows.queries,
        qrels_path=Path("qrels"),
        judgements=rows.judgements,
    )


def _assemble(
    name: str,
    *,
    documents: Iterable[InputRow],
    queries: Iterable[InputRow],
    qrels_path: Path,
    judgements: Iterable[Judgement],
) -> Collection:
    document_by_id, quarantined = _read_documents(documents)
    if not document_by_id:
        raise DataError(f"{name}: the corpus holds no readable document; at least one is needed")
    query_by_id = _read_queries(queries)
    left_out = {item["doc_id"] for item in quarantined}
    kept: list[Judgement] = []
    for item in judgements:
        if item.doc_id in left_out:
            values = {"doc_id": item.doc_id}
            quarantined.append(_quarantine(InputRow(qrels_path, item.row, values), reason=JUDGES_QUARANTINED))
        else:
            _check_known(qrels_path, item, documents=document_by_id, queries=query_by_id)
            kept.append(item)
    if not kept:
        raise DataError(f"{qrels_path} judges no readable document; at least one judgement is needed")
    return Collection(
        name,
        document_by_id,
        query_by_id,
        collect_qrels(qrels_path, kept),
        num_quarantined=len(quarantined),
        quarantined=tuple(quarantined),
    )


def _check_known(
    path: Path, judgement: Judgement, *, documents: Mapping[str, Document], queries: Mapping[str, Query]
) -> None:
    if judgement.query_id not in queries:
        raise DataError(
            f"{path}, row {judgement.row}: query {judgement.query_id!r} is not among the queries; "
            f"add the query or remove the judgement"
        )
    if judgement.doc_id not in documents:
        raise DataError(
            f"{path}, row {judgement.row}: document {judgement.doc_id!r} is absent from the corpus; "
            f"add the document or remove the judgement"
        )


def _read_documents(rows: Iterable[InputRow]) -> tuple[dict[str, Document], list[Mapping[str, str]]]:
    documents: dict[str, Document] = {}
    quarantined: list[Mapping[str, str]] = []
    row_by_id: dict[str, int] = {}
    for row in rows:
        doc_id = row.identifier("doc_id")
        _refuse_second(row, doc_id, row_by_id=row_by_id)
        document = Document(
            doc_id, row.text("text"), title=row.optional_text("title"), url=row.optional_text("url")
        )
        problem = _problem(document)
        if problem:
            quarantined.append(_quarantine(row, reason=problem))
        else:
            documents[doc_id] = document
    return documents, quarantined


def _read_queries(rows: Iterable[InputRow]) -> dict[str, Query]:
    queries: dict[str, Query] = {}
    row_by_id: dict[str, int] = {}
    for row in rows:
        query_id, text = row.identifier("query_id"), row.text("text")
        _refuse_second(row, query_id, row_by_id=row_by_id)
        if not text.strip() or not is_encodable(query_id + text):
            raise row.error(f"query {query_id!a} is empty or holds a lone surrogate; mend its text")
        queries[query_id] = Query(query_id, text)
    return queries


def _refuse_second(row: InputRow, identifier: str, *, row_by_id: dict[str, int]) -> None:
    first = row_by_id.setdefault(identifier, row.row)
    if first != row.row:
        raise row.error(f"{identifier!a} occurs already in row {first}; identifiers must be unique")


def _problem(document: Document) -> str | None:
    """Why a document must be left out; None where it can stay."""
    if not is_encodable(document.doc_id + document.title + document.text + document.url):
        return "lone surrogate"
    if not document.content.strip():
        return "empty text"
    return None


def _quarantine(row: InputRow, *, reason: str) -> Mapping[str, str]:
    printable = row.identifier("doc_id").encode("utf-8", "backslashreplace").decode("utf-8")
    return {"file": row.path.name, "row": str(row.row), "doc_id": printable, "reason": reason}


def _the_one(folder: Path, *names: str) -> Path:
    present = [folder / name for name in names if (folder / name).is_file()]
    if not present:
        raise DataError(f"{folder} holds none of {', '.join(names)}; add one of them")
    if len(present) > 1:
        raise DataError(f"{folder} holds both {present[0].name} and {present[1].name}; keep one of them")
    return present[0]


def _rows(path: Path, *, fields: Sequence[str]) -> Iterator[InputRow]:
    found = read_jsonl(path) if path.suffix == ".jsonl" else read_parquet_rows(path, fields)
    return (InputRow(path, row, values) for row, values in found)


def _judgements(path: Path) -> Iterator[Judgement]:
    if path.suffix == ".parquet":
        return (row.judgement() for row in _rows(path, fields=("query_id", "doc_id", "grade")))
    return read_trec_judgements(path)
