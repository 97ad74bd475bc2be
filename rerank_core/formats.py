"""JSONL, TREC qrels and run, Parquet: files in, records out, and back."""

from __future__ import annotations

import json
import math
import os
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from rerank_core.errors import DataError
from rerank_core.records import (
    Candidate,
    Document,
    GradedCandidate,
    PreferencePair,
    Qrels,
    Query,
    Ranking,
    Run,
    Split,
)

if TYPE_CHECKING:
    from pathlib import Path

Columns = Mapping[str, pa.DataType]

CORPUS: Columns = {"doc_id": pa.string(), "title": pa.string(), "text": pa.string(), "url": pa.string()}
QUERIES: Columns = {"query_id": pa.string(), "text": pa.string()}
MAX_GRADE = 30
QRELS: Columns = {"query_id": pa.string(), "doc_id": pa.string(), "grade": pa.int32()}
CANDIDATES: Columns = {
    "query_id": pa.string(),
    "doc_id": pa.string(),
    "first_stage_rank": pa.int32(),
    "first_stage_score": pa.float32(),
}
RUN: Columns = {**CANDIDATES, "score": pa.float32(), "rank": pa.int32(), "model_digest": pa.string()}
SPLIT: Columns = {"query_id": pa.string(), "split": pa.string()}
POINTWISE: Columns = {
    "query_id": pa.string(),
    "doc_id": pa.string(),
    "first_stage_rank": pa.int32(),
    "grade": pa.int32(),
}
PAIRS: Columns = {
    "query_id": pa.string(),
    "chosen_id": pa.string(),
    "rejected_id": pa.string(),
    "chosen_grade": pa.int32(),
    "rejected_grade": pa.int32(),
}
QUARANTINE: Columns = {"file": pa.string(), "row": pa.string(), "doc_id": pa.string(), "reason": pa.string()}


@dataclass(frozen=True, slots=True)
class Judgement:
    """One line of a qrels file, with its row (from 1)."""

    row: int
    query_id: str
    doc_id: str
    grade: int


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (row from 1, line) of a UTF-8 file, blank lines left out; only a line feed ends a line.

    A lone surrogate, though not valid UTF-8, is let through: the caller can then quarantine that row alone.

    Raises:
        DataError: the file is missing, or a line is not UTF-8.
    """
    _require_file(path)
    with path.open("rb") as stream:
        for row, raw in enumerate(stream, start=1):
            try:
                line = raw.decode("utf-8", errors="surrogatepass").strip("\r\n")
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{path}, row {row}: not UTF-8 ({error.reason}); save the file as UTF-8"
                ) from error
            if line.strip():
                yield row, line


def read_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (row from 1, object) of a JSONL file, blank lines left out.

    Raises:
        DataError: the file is missing, or a line is not one JSON object.
    """
    for row, line in read_lines(path):
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}, row {row}: not JSON ({error}); write one object a line") from error
        if not isinstance(value, dict):
            raise DataError(f"{path}, row {row}: expected a JSON object, got {type(value).__name__}")
        yield row, value


def read_trec_judgements(path: Path) -> Iterator[Judgement]:
    """Yield the rows of a TREC qrels file: query_id, an ignored column, doc_id, grade, separated by blanks.

    Raises:
        DataError: the file is missing, a row has other than four columns, or a grade is not an integer of 0
            or more.
    """
    for row, line in read_lines(path):
        columns = line.split()
        if len(columns) != 4:
            raise DataError(
                f"{path}, row {row}: expected 4 columns (query_id 0 doc_id grade), got {len(columns)}; "
                f"identifiers with blanks need qrels.parquet"
            )
        query_id, _, doc_id, grade = columns
        try:
            value = int(grade)
        except ValueError as error:
            raise DataError(
                f"{path}, row {row}: grade {grade!r} is not an integer; map grades to 0, 1, 2 …"
            ) from error
        yield checked_judgement(path, Judgement(row, query_id, doc_id, value))


def checked_judgement(path: Path | str, judgement: Judgement) -> Judgement:
    """Return a judgement whose grade lies between 0 and `MAX_GRADE`; raise DataError for another."""
    if judgement.grade > MAX_GRADE:
        raise DataError(
            f"{path}, row {judgement.row}: grade {judgement.grade} is above {MAX_GRADE}, where the gain"
            " 2^g - 1 drowns all others; map grades to a smaller scale"
        )
    if judgement.grade < 0:
        raise DataError(
            f"{path}, row {judgement.row}: grade {judgement.grade} is negative; map it to 0 or remove it"
        )
    return judgement


def collect_qrels(path: Path | str, judgements: Iterable[Judgement]) -> dict[str, dict[str, int]]:
    """Return judgements by query, then document, in their order.

    Raises:
        DataError: a (query, document) pair is judged twice.
    """
    qrels: dict[str, dict[str, int]] = {}
    for item in judgements:
        grades = qrels.setdefault(item.query_id, {})
        if item.doc_id in grades:
            raise DataError(
                f"{path}, row {item.row}: document {item.doc_id!r} is judged twice for query "
                f"{item.query_id!r}; keep one"
            )
        grades[item.doc_id] = item.grade
    return qrels


def read_trec_qrels(path: Path) -> Qrels:
    """Return the judgements of a TREC qrels file.

    Raises:
        DataError: as in `read_trec_judgements`, or a pair is judged twice.
    """
    return collect_qrels(path, read_trec_judgements(path))


def write_trec_run(run: Run, path: Path) -> None:
    """Write a run as TREC lines (query_id Q0 doc_id rank score name) in its order, with all digits of scores.

    Raises:
        DataError: an identifier or the name holds a blank, which the format cannot express.
    """
    lines = []
    for query_id, ranking in run.rankings.items():
        for rank, (doc_id, score) in enumerate(zip(ranking.doc_ids, ranking.scores, strict=True), start=1):
            columns = (query_id, "Q0", doc_id, str(rank), repr(float(score)), run.name)
            if any(len(column.split()) != 1 for column in columns):
                raise DataError(f"{path}: {columns!r} has an empty or blank-separated column; rename it")
            lines.append(" ".join(columns) + "\n")
    _replace(path, lambda temporary: temporary.write_text("".join(lines), encoding="utf-8"))


def read_trec_run(path: Path) -> Run:
    """Return the run of a TREC run file, named as in its last row.

    The order is by score, highest first; equal scores by the rank column, then by row.

    Raises:
        DataError: the file is missing or empty, a row does not have six columns, rank or score is not a
            finite number, or a document occurs twice for a query.
    """
    rows: dict[str, list[tuple[float, int, str]]] = {}
    name = ""
    for row, line in read_lines(path):
        columns = line.split()
        if len(columns) != 6:
            raise DataError(
                f"{path}, row {row}: expected 6 columns (query_id Q0 doc_id rank score name), "
                f"got {len(columns)}"
            )
        query_id, _, doc_id, rank, score, name = columns
        try:
            found = (-float(score), int(rank), doc_id)
        except ValueError as error:
            raise DataError(f"{path}, row {row}: rank {rank!r} or score {score!r} is not a number") from error
        if not math.isfinite(found[0]):
            raise DataError(f"{path}, row {row}: score {score!r} is not finite; remove the row")
        rows.setdefault(query_id, []).append(found)
    if not rows:
        raise DataError(f"{path} holds no ranking; write it again")
    return Run(
        name, {query_id: _trec_ranking(path, query_id, rows=found) for query_id, found in rows.items()}
    )


def _trec_ranking(path: Path, query_id: str, *, rows: Sequence[tuple[float, int, str]]) -> Ranking:
    ordered = sorted(rows, key=itemgetter(0, 1))
    doc_ids = tuple(doc_id for _, _, doc_id in ordered)
    if len(set(doc_ids)) != len(doc_ids):
        raise DataError(f"{path}: a document occurs twice for query {query_id!r}; keep one row each")
    return Ranking(query_id, doc_ids, tuple(-negated for negated, _, _ in ordered))


def read_table(path: Path, columns: Columns) -> pa.Table:
    """Return the named columns of a Parquet file, in the order and with the types asked for.

    A width may differ (int64 for int32, large_string for string) while no value is lost. Nulls are refused.

    Raises:
        DataError: the file is missing or not Parquet, a column is missing or of another type, a value is
            null.
    """
    present = _read_schema(path)
    missing = [name for name in columns if name not in present.names]
    if missing:
        raise DataError(f"{path}: column {missing[0]!r} is missing; present: {', '.join(present.names)}")
    table = pq.read_table(path, columns=list(columns), partitioning=None)
    arrays = [
        _typed(path, name, column=table.column(name), wanted=wanted) for name, wanted in columns.items()
    ]
    return pa.table(arrays, schema=pa.schema(list(columns.items())))


def read_parquet_rows(path: Path, names: Sequence[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (row from 1, values) of a Parquet file, for those of the named columns that it has.

    The Parquet twin of `read_jsonl`: the caller checks the types, and a lone surrogate is let through.

    Raises:
        DataError: the file is missing or not Parquet, or a text is not UTF-8.
    """
    present = [name for name in names if name in _read_schema(path).names]
    row = 0
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(columns=present):
            columns = [_values(path, batch.column(name), first_row=row + 1) for name in present]
            for offset in range(batch.num_rows):
                row += 1
                yield row, {name: column[offset] for name, column in zip(present, columns, strict=True)}


def _values(path: Path, column: pa.Array, *, first_row: int) -> list[Any]:
    if _family(column.type) != "text":
        return column.to_pylist()  # type: ignore[no-any-return]
    values: list[Any] = []
    for offset, raw in enumerate(column.cast(pa.string()).cast(pa.binary()).to_pylist()):
        try:
            values.append(raw if raw is None else raw.decode("utf-8", errors="surrogatepass"))
        except UnicodeDecodeError as error:
            raise DataError(
                f"{path}, row {first_row + offset}: not UTF-8 ({error.reason}); mend the text"
            ) from error
    return values


def read_shards(folder: Path, columns: Columns) -> pa.Table:
    """Return the named columns of all `shard-*.parquet` files of a folder, in the order of their names.

    Raises:
        DataError: there is no shard, or one is wrong as in `read_table`.
    """
    paths = sorted(folder.glob("shard-*.parquet"))
    if not paths:
        raise DataError(f"{folder} holds no shard-*.parquet; run the job that writes it to its end")
    return pa.concat_tables([read_table(path, columns) for path in paths])


def write_table(table: pa.Table, path: Path) -> None:
    """Write a Parquet file: a reader sees the old one or the whole new one; equal rows give equal bytes."""
    plain = table.combine_chunks().replace_schema_metadata(None)
    _replace(path, lambda temporary: pq.write_table(plain, temporary, compression="zstd"))


def table_of(rows: Sequence[Sequence[Any]], columns: Columns) -> pa.Table:
    """Return a table of rows whose values stand in the order of `columns`."""
    values = list(zip(*rows, strict=True)) if rows else [()] * len(columns)
    arrays = [
        pa.array(list(column), type=wanted) for column, wanted in zip(values, columns.values(), strict=True)
    ]
    return pa.table(arrays, schema=pa.schema(list(columns.items())))


def rows_of(table: pa.Table) -> Iterator[tuple[Any, ...]]:
    """Yield the rows of a table, values in the order of its columns."""
    return zip(*(column.to_pylist() for column in table.columns), strict=True)


def _read_schema(path: Path) -> pa.Schema:
    _require_file(path)
    try:
        return pq.read_schema(path)
    except pa.ArrowInvalid as error:
        raise DataError(f"{path} is not a Parquet file ({error}); write it again") from error


def _typed(path: Path, name: str, *, column: pa.ChunkedArray, wanted: pa.DataType) -> pa.ChunkedArray:
    if column.type != wanted and _family(column.type) != _family(wanted):
        raise DataError(f"{path}: column {name!r} is {column.type}, expected {wanted}; convert it")
    if column.null_count:
        row = column.is_null().to_pylist().index(True) + 1
        raise DataError(f"{path}, row {row}: column {name!r} is null; fill it or remove the row")
    try:
        return column.cast(wanted)
    except pa.ArrowException as error:
        raise DataError(f"{path}: column {name!r} does not fit {wanted} ({error})") from error


def _family(found: pa.DataType) -> str:
    """What a type holds, whatever its width."""
    if pa.types.is_dictionary(found):
        return _family(found.value_type)
    if pa.types.is_string(found) or pa.types.is_large_string(found) or pa.types.is_string_view(found):
        return "text"
    if pa.types.is_integer(found):
        return "integer"
    if pa.types.is_floating(found):
        return "real"
    return "list" if pa.types.is_list(found) or pa.types.is_large_list(found) else str(found)


def _require_file(path: Path) -> None:
    if not path.is_file():
        raise DataError(f"{path} is missing; check the path, or run the job that writes it")


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    # A name of its own for each attempt: two live attempts at one file must not write into each other's.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    write(temporary)
    with temporary.open("rb") as stream:
        os.fsync(stream.fileno())
    temporary.replace(path)


def documents_table(documents: Iterable[Document]) -> pa.Table:
    """Return the corpus table of documents, in their order."""
    return table_of([(d.doc_id, d.title, d.text, d.url) for d in documents], CORPUS)


def read_documents(path: Path) -> dict[str, Document]:
    """Return the documents of a prepared corpus by doc_id, in the order of the file."""
    rows = rows_of(read_table(path, CORPUS))
    return {doc_id: Document(doc_id, text, title=title, url=url) for doc_id, title, text, url in rows}


def queries_table(queries: Iterable[Query]) -> pa.Table:
    """Return the table of queries, in their order."""
    return table_of([(query.query_id, query.text) for query in queries], QUERIES)


def read_queries(path: Path) -> dict[str, Query]:
    """Return the queries of a prepared folder by query_id, in the order of the file."""
    return {query_id: Query(query_id, text) for query_id, text in rows_of(read_table(path, QUERIES))}


def qrels_table(qrels: Qrels) -> pa.Table:
    """Return the table of judgements, sorted by query, then document."""
    return table_of(
        [(q, d, grade) for q, grades in sorted(qrels.items()) for d, grade in sorted(grades.items())], QRELS
    )


def read_qrels(path: Path) -> dict[str, dict[str, int]]:
    """Return the judgements of a prepared folder."""
    qrels: dict[str, dict[str, int]] = {}
    for query_id, doc_id, grade in rows_of(read_table(path, QRELS)):
        qrels.setdefault(query_id, {})[doc_id] = grade
    return qrels


def candidates_table(candidates: Mapping[str, Sequence[Candidate]]) -> pa.Table:
    """Return the table of first-stage lists, sorted by query; each list keeps its order."""
    rows = [
        (query_id, candidate.document.doc_id, candidate.first_stage_rank, candidate.first_stage_score)
        for query_id, found in sorted(candidates.items())
        for candidate in found
    ]
    return table_of(rows, CANDIDATES)


def read_candidates(path: Path, documents: Mapping[str, Document]) -> dict[str, list[Candidate]]:
    """Return the first-stage list of every query, in the order of the file.

    Raises:
        DataError: the file is wrong as in `read_table`, or names a document that is absent from `documents`.
    """
    candidates: dict[str, list[Candidate]] = {}
    for row, (query_id, doc_id, rank, score) in enumerate(rows_of(read_table(path, CANDIDATES)), start=1):
        if doc_id not in documents:
            raise DataError(
                f"{path}, row {row}: document {doc_id!r} is absent from the corpus; prepare again"
            )
        candidates.setdefault(query_id, []).append(Candidate(documents[doc_id], rank, score))
    return candidates


def split_table(splits: Mapping[str, Split]) -> pa.Table:
    """Return the table of (query_id, split), sorted by query."""
    return table_of(sorted(splits.items()), SPLIT)


def read_split(path: Path) -> dict[str, Split]:
    """Return the split of every query of one fold.

    Raises:
        DataError: the file is wrong as in `read_table`, or a split is none of train, dev, test.
    """
    splits: dict[str, Split] = {}
    for row, (query_id, split) in enumerate(rows_of(read_table(path, SPLIT)), start=1):
        if split not in ("train", "dev", "test"):
            raise DataError(f"{path}, row {row}: split {split!r} is none of train, dev, test")
        splits[query_id] = split
    return splits


def pointwise_table(rows: Iterable[GradedCandidate]) -> pa.Table:
    """Return the pointwise table, sorted by query, then first-stage rank."""
    values = [(row.query_id, row.doc_id, row.first_stage_rank, row.grade) for row in rows]
    return table_of(sorted(values, key=itemgetter(0, 2)), POINTWISE)


def read_pointwise(path: Path) -> list[GradedCandidate]:
    """Return the pointwise rows of one split."""
    return [GradedCandidate(*row) for row in rows_of(read_table(path, POINTWISE))]


def pairs_table(pairs: Iterable[PreferencePair]) -> pa.Table:
    """Return the table of preference pairs, sorted by query, chosen and rejected document."""
    rows = [(p.query_id, p.chosen_id, p.rejected_id, p.chosen_grade, p.rejected_grade) for p in pairs]
    return table_of(sorted(rows), PAIRS)


def read_pairs(path: Path) -> list[PreferencePair]:
    """Return the preference pairs of one split."""
    return [PreferencePair(*row) for row in rows_of(read_table(path, PAIRS))]


def run_from_table(table: pa.Table, name: str) -> Run:
    """Return the run of a table with the columns query_id, doc_id, rank and score.

    Raises:
        DataError: the ranks of a query are not 1, 2, 3 …, or a document occurs twice for a query.
    """
    rows = sorted(rows_of(table.select(["query_id", "rank", "doc_id", "score"])), key=itemgetter(0, 1))
    rankings = {
        query_id: _ranking(query_id, list(group)) for query_id, group in groupby(rows, key=itemgetter(0))
    }
    return Run(name, rankings)


def _ranking(query_id: str, rows: Sequence[tuple[str, int, str, float]]) -> Ranking:
    doc_ids = tuple(doc_id for _, _, doc_id, _ in rows)
    if [rank for _, rank, _, _ in rows] != list(range(1, len(rows) + 1)) or len(set(doc_ids)) != len(doc_ids):
        raise DataError(
            f"the run of query {query_id!r} is not one ranking from 1 to {len(rows)}; score it again"
        )
    return Ranking(query_id, doc_ids, tuple(score for _, _, _, score in rows))


def read_run(folder: Path, name: str) -> Run:
    """Return the run of a run folder (`data/shard-*.parquet`) under a name.

    Raises:
        DataError: the folder holds no shard, a shard is wrong, or a query's rows are not one ranking.
    """
    return run_from_table(read_shards(folder / "data", RUN), name)
