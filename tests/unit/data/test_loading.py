"""A collection loads whole, or the error names file, row and remedy."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rerank_core.data.loading import collection_folder, load_collection, load_corpus, load_exclusions
from rerank_core.errors import DataError
from rerank_core.formats import documents_table, write_table
from rerank_core.records import Document, Query

if TYPE_CHECKING:
    from pathlib import Path

CORPUS: list[dict[str, Any]] = [
    {"doc_id": "a", "title": "Sea ice", "text": "extent", "url": "https://example.org/a", "year": 2001},
    {"doc_id": "b", "text": "wind", "url": None},
]
QUERIES = [
    {"query_id": "q1", "text": "ice"},
    {"query_id": "q2", "text": "wind"},
    {"query_id": "q3", "text": "dust"},
]
QRELS = "q1 0 a 3\nq1 0 b 0\nq2 0 b 1\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small valid collection; each test spoils one thing."""
    write_jsonl(tmp_path / "corpus.jsonl", CORPUS)
    write_jsonl(tmp_path / "queries.jsonl", QUERIES)
    (tmp_path / "qrels.trec").write_text(QRELS)
    return tmp_path


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value))


def test_a_folder_of_jsonl_and_trec_loads(folder: Path) -> None:
    collection = load_collection(folder)
    assert collection.name == folder.name
    assert collection.documents == {
        "a": Document("a", "extent", title="Sea ice", url="https://example.org/a"),
        "b": Document("b", "wind"),
    }
    assert collection.queries["q1"] == Query("q1", "ice")
    assert collection.qrels == {"q1": {"a": 3, "b": 0}, "q2": {"b": 1}}
    assert (collection.pool, collection.splits, collection.relevant_from) == (None, None, 1)
    assert collection.num_quarantined == 0


def test_the_same_collection_in_parquet_loads_equal(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = tmp_path_factory.mktemp("parquet") / folder.name
    other.mkdir()
    pq.write_table(pa.Table.from_pylist([{"title": None, **row} for row in CORPUS]), other / "corpus.parquet")
    pq.write_table(pa.Table.from_pylist(QUERIES), other / "queries.parquet")
    grades = {"query_id": ["q1", "q1", "q2"], "doc_id": ["a", "b", "b"], "grade": [3, 0, 1]}
    pq.write_table(pa.table(grades), other / "qrels.parquet")
    assert load_collection(other) == load_collection(folder)


def test_the_embedded_sample_loads_with_its_pool() -> None:
    collection = load_collection("sample")
    assert len(collection.documents) >= 240
    assert len(collection.qrels) >= 94
    assert collection.pool is not None
    assert {len(pool) for pool in collection.pool.values()} == {10}
    assert collection.relevant_from == 5


def test_settings_of_the_collection_are_read(folder: Path) -> None:
    write_json(folder / "collection.json", {"name": "seas", "pool": "judged", "relevant_from": 2})
    collection = load_collection(folder)
    assert (collection.name, collection.relevant_from) == ("seas", 2)
    assert collection.pool == {"q1": ("a", "b"), "q2": ("b",)}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"relevantfrom": 2}, "unknown setting 'relevantfrom'; known are .*relevant_from"),
        ({"name": 3}, "name must be text"),
        ({"pool": "all"}, 'pool must be "judged" or left out'),
        ({"relevant_from": 0}, "relevant_from must be an integer of 1 or more"),
        ({"relevant_from": True}, "relevant_from must be an integer of 1 or more"),
        (["pool"], "expected a JSON object, got list"),
    ],
)
def test_a_wrong_setting_is_named(folder: Path, settings: object, message: str) -> None:
    write_json(folder / "collection.json", settings)
    with pytest.raises(DataError, match=rf"collection\.json: {message}"):
        load_collection(folder)


def test_a_setting_file_that_is_not_json_is_named(folder: Path) -> None:
    (folder / "collection.json").write_text("{")
    with pytest.raises(DataError, match=r"collection\.json is not JSON"):
        load_collection(folder)


@pytest.mark.parametrize("name", ["corpus.jsonl", "queries.jsonl", "qrels.trec"])
def test_a_missing_file_is_named_with_its_alternatives(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(DataError, match=f"holds none of {name}"):
        load_collection(folder)


def test_two_files_for_one_thing_are_refused(folder: Path) -> None:
    (folder / "qrels.txt").write_text(QRELS)
    with pytest.raises(DataError, match=r"holds both qrels\.trec and qrels\.txt; keep one"):
        load_collection(folder)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="absent is no folder; name `sample`"):
        load_collection(tmp_path / "absent")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"doc_id": "c"}, "column 'text' is missing; present: doc_id"),
        ({"text": "c"}, "column 'doc_id' is missing; present: text"),
        ({"doc_id": 7, "text": "c"}, "doc_id is int 7, expected text"),
        ({"doc_id": "c", "text": None}, "text is NoneType None, expected text"),
        ({"doc_id": "c", "text": "c", "title": ["x"]}, r"title is list \['x'\], expected text"),
        ({"doc_id": "", "text": "c"}, "doc_id is empty"),
        ({"doc_id": "a", "text": "c"}, "'a' occurs already in row 1"),
    ],
)
def test_a_wrong_document_is_named(folder: Path, row: dict[str, Any], message: str) -> None:
    write_jsonl(folder / "corpus.jsonl", [*CORPUS, row])
    with pytest.raises(DataError, match=rf"corpus\.jsonl, row 3: {message}"):
        load_collection(folder)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"query_id": "q1", "text": "c"}, "'q1' occurs already in row 1"),
        ({"query_id": "q4", "text": " "}, "query 'q4' is empty or holds a lone surrogate"),
        ({"query_id": "q4", "text": "\ud800"}, "query 'q4' is empty or holds a lone surrogate"),
    ],
)
def test_a_wrong_query_is_named(folder: Path, row: dict[str, Any], message: str) -> None:
    write_jsonl(folder / "queries.jsonl", [*QUERIES, row])
    with pytest.raises(DataError, match=rf"queries\.jsonl, row 4: {message}"):
        load_collection(folder)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("q1 0 z 1", "document 'z' is absent from the corpus; add the document or remove the judgement"),
        ("q9 0 a 1", "query 'q9' is not among the queries; add the query or remove the judgement"),
        ("q1 0 a 1", "document 'a' is judged twice for query 'q1'"),
        ("q2 0 a -1", "grade -1 is negative"),
    ],
)
def test_a_wrong_judgement_is_named(folder: Path, line: str, message: str) -> None:
    (folder / "qrels.trec").write_text(f"{QRELS}{line}\n")
    with pytest.raises(DataError, match=rf"qrels\.trec, row 4: {message}"):
        load_collection(folder)


@pytest.mark.parametrize("grade", [1.0, "1", None, True])
def test_a_parquet_grade_that_is_no_integer_is_named(folder: Path, grade: object) -> None:
    (folder / "qrels.trec").unlink()
    pq.write_table(
        pa.table({"query_id": ["q1"], "doc_id": ["a"], "grade": [grade]}), folder / "qrels.parquet"
    )
    with pytest.raises(DataError, match=r"qrels\.parquet, row 1: grade .* is not an integer"):
        load_collection(folder)


def test_unreadable_documents_and_their_judgements_are_quarantined_with_a_reason(folder: Path) -> None:
    bad = [
        {"doc_id": "empty", "text": " \n", "title": ""},
        {"doc_id": "half", "text": "ice \ud800"},
        {"doc_id": "id\udfff", "text": "ice"},
    ]
    write_jsonl(folder / "corpus.jsonl", [*bad, *CORPUS])
    (folder / "qrels.trec").write_text(f"q1 0 empty 2\n{QRELS}")
    collection = load_collection(folder)
    assert list(collection.documents) == ["a", "b"]
    assert collection.qrels["q1"] == {"a": 3, "b": 0}
    assert collection.num_quarantined == 4
    assert [tuple(item.values()) for item in collection.quarantined] == [
        ("corpus.jsonl", "1", "empty", "empty text"),
        ("corpus.jsonl", "2", "half", "lone surrogate"),
        ("corpus.jsonl", "3", "id\\udfff", "lone surrogate"),
        ("qrels.trec", "1", "empty", "judges a quarantined document"),
    ]


def test_a_document_with_only_a_title_is_kept(folder: Path) -> None:
    write_jsonl(folder / "corpus.jsonl", [*CORPUS, {"doc_id": "c", "title": "Dust", "text": ""}])
    assert load_collection(folder).documents["c"].title == "Dust"


def test_a_collection_without_documents_or_judgements_is_refused(folder: Path) -> None:
    (folder / "qrels.trec").write_text("\n")
    with pytest.raises(DataError, match=r"qrels\.trec judges no readable document"):
        load_collection(folder)
    (folder / "corpus.jsonl").write_text("")
    with pytest.raises(DataError, match="the corpus holds no readable document"):
        load_collection(folder)


SPLITS = {"train": ["q1"], "dev": ["q2"], "test": ["q3"]}


@pytest.fixture
def split_folder(folder: Path) -> Path:
    """The small collection with a judgement for every query."""
    (folder / "qrels.trec").write_text(f"{QRELS}q3 0 a 1\n")
    return folder


def test_shipped_splits_are_read_for_judged_queries(split_folder: Path) -> None:
    write_jsonl(split_folder / "queries.jsonl", [*QUERIES, {"query_id": "q4", "text": "unjudged"}])
    write_json(split_folder / "splits.json", {**SPLITS, "test": ["q3", "q4"]})
    assert load_collection(split_folder).splits == {"q1": "train", "q2": "dev", "q3": "test"}
    assert load_collection(split_folder, use_splits=False).splits is None


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ({"background": {"fold1_dev": ["q1"]}}, "expected .*got the keys .'background'.*--num-folds 5"),
        ({"train": ["q1"], "dev": ["q2"]}, "expected .*got the keys"),
        ({**SPLITS, "test": "q3"}, "expected .*got the keys"),
        ({**SPLITS, "test": ["q3", "q1"]}, "query 'q1' is in two splits, train and test"),
        ({**SPLITS, "test": ["q3", "q9"]}, "query 'q9' is absent from the queries"),
        ({**SPLITS, "test": []}, "judged query 'q3' is in no split"),
        ({"train": ["q1", "q2", "q3"], "dev": [], "test": []}, "dev has no judged query"),
    ],
)
def test_wrong_splits_are_named_with_the_remedy(split_folder: Path, splits: object, message: str) -> None:
    write_json(split_folder / "splits.json", splits)
    with pytest.raises(DataError, match=rf"splits\.json: {message}"):
        load_collection(split_folder)


def test_exclusions_are_read_by_query(folder: Path) -> None:
    path = folder / "exclude.tsv"
    path.write_text("query_id\tdoc_id\nq1\ta\nq1\tb\nq2\ta\n")
    assert load_exclusions(path, load_collection(folder)) == {"q1": {"a", "b"}, "q2": {"a"}}


def test_an_excluded_document_may_be_quarantined(folder: Path) -> None:
    write_jsonl(folder / "corpus.jsonl", [*CORPUS, {"doc_id": "empty", "text": ""}])
    (folder / "exclude.tsv").write_text("query_id\tdoc_id\nq1\tempty\n")
    assert load_exclusions(folder / "exclude.tsv", load_collection(folder)) == {"q1": {"empty"}}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("q1\ta\n", "row 1: expected the header query_id<TAB>doc_id"),
        ("", "row 1: expected the header"),
        ("query_id\tdoc_id\nq1\tz\n", "row 2: query 'q1' or document 'z' is unknown"),
        ("query_id\tdoc_id\nq9\ta\n", "row 2: query 'q9' or document 'a' is unknown"),
        ("query_id\tdoc_id\nq1 a\n", "row 2: query 'q1 a' or document '' is unknown"),
    ],
)
def test_a_wrong_exclusion_is_named(folder: Path, content: str, message: str) -> None:
    (folder / "exclude.tsv").write_text(content)
    with pytest.raises(DataError, match=rf"exclude\.tsv, {message}"):
        load_exclusions(folder / "exclude.tsv", load_collection(folder))


def test_a_catalogue_name_has_no_folder() -> None:
    assert collection_folder("ir_datasets:beir/scifact/test") is None


# --- a corpus alone


def test_a_corpus_needs_neither_queries_nor_judgements(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "corpus.jsonl", CORPUS)
    a = Document("a", "extent", title="Sea ice", url="https://example.org/a")
    assert load_corpus(tmp_path) == (a, Document("b", "wind"))


def test_the_corpus_of_a_prepared_folder_loads_equal(tmp_path: Path) -> None:
    documents = load_corpus("sample")
    write_table(documents_table(documents), tmp_path / "corpus.parquet")
    assert load_corpus(tmp_path) == documents


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"doc_id": "c"}, "row 3: column 'text' is missing"),
        ({"doc_id": "a", "text": "c"}, "row 3: 'a' occurs already in row 1"),
        ({"doc_id": "c", "text": " "}, r"row 3: document c cannot be read \(empty text\); mend or remove"),
        ({"doc_id": "c", "text": "\ud800"}, r"row 3: document c cannot be read \(lone surrogate\)"),
    ],
)
def test_a_wrong_row_of_a_corpus_is_named(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    write_jsonl(tmp_path / "corpus.jsonl", [*CORPUS, row])
    with pytest.raises(DataError, match=rf"corpus\.jsonl, {message}"):
        load_corpus(tmp_path)


def test_a_corpus_that_is_empty_or_no_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "corpus.jsonl").write_text("")
    with pytest.raises(DataError, match=r"corpus\.jsonl holds no document"):
        load_corpus(tmp_path)
    with pytest.raises(DataError, match="name one that `whyrank prepare` wrote from it"):
        load_corpus("ir_datasets:beir/scifact")
