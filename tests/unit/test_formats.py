"""Files in, records out, and back; what is wrong is named by file and row."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerank_core import formats
from rerank_core.errors import DataError
from rerank_core.records import (
    Candidate,
    Document,
    GradedCandidate,
    PreferencePair,
    Query,
    Ranking,
    Run,
)

if TYPE_CHECKING:
    from pathlib import Path

RUN = Run("dpo", {"q1": Ranking("q1", ("b", "a"), (1.5, -0.1)), "q2": Ranking("q2", ("a",), (1e-17,))})


def written(tmp_path: Path, name: str, content: str | bytes) -> Path:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_jsonl_rows_count_blank_lines_and_keep_unicode_line_separators(tmp_path: Path) -> None:
    path = written(tmp_path, "a.jsonl", '{"text": "one\u2028two"}\r\n\n  \n{"text": "three"}')
    assert list(formats.read_jsonl(path)) == [(1, {"text": "one\u2028two"}), (4, {"text": "three"})]


def test_a_lone_surrogate_is_let_through_escaped_or_raw(tmp_path: Path) -> None:
    path = written(tmp_path, "a.jsonl", b'{"text": "\\ud800"}\n{"text": "\xed\xa0\x80"}\n')
    assert [row["text"] for _, row in formats.read_jsonl(path)] == ["\ud800", "\ud800"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": 1}\n{"a": }', "row 2: not JSON"),
        (b'{"a": 1}\n[1]', "row 2: expected a JSON object, got list"),
        (b'{"a": 1}\n\xff', "row 2: not UTF-8"),
    ],
)
def test_a_wrong_json_line_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=rf"a\.jsonl, {message}"):
        list(formats.read_jsonl(written(tmp_path, "a.jsonl", content)))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent\.jsonl is missing"):
        list(formats.read_jsonl(tmp_path / "absent.jsonl"))
    with pytest.raises(DataError, match=r"absent\.parquet is missing"):
        formats.read_table(tmp_path / "absent.parquet", formats.QRELS)


def test_trec_qrels_are_read_whatever_the_blanks(tmp_path: Path) -> None:
    path = written(tmp_path, "qrels.trec", "q1 0 d1 2\nq1\t0\td2 0\n\nq2 Q0 d1 1\n")
    assert formats.read_trec_qrels(path) == {"q1": {"d1": 2, "d2": 0}, "q2": {"d1": 1}}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("q1 0 d2", "expected 4 columns"),
        ("q1 0 a document 2", "identifiers with blanks need qrels.parquet"),
        ("q1 0 d2 2.5", "grade '2.5' is not an integer"),
        ("q1 0 d2 -1", "grade -1 is negative"),
        ("q1 0 d2 99999999999", "grade 99999999999 is above 30, where the gain"),
        ("q1 0 d1 0", "'d1' is judged twice for query 'q1'"),
    ],
)
def test_a_wrong_judgement_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = written(tmp_path, "qrels.trec", f"q1 0 d1 1\n{line}\n")
    with pytest.raises(DataError, match=r"qrels\.trec, row 2.*" + message.replace(".", r"\.")):
        formats.read_trec_qrels(path)


def test_a_trec_run_comes_back_as_it_was_written(tmp_path: Path) -> None:
    formats.write_trec_run(RUN, tmp_path / "run.trec")
    assert formats.read_trec_run(tmp_path / "run.trec") == RUN


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=8))
def test_trec_scores_keep_every_digit_and_ties_keep_their_order(
    tmp_path_factory: pytest.TempPathFactory, scores: list[float]
) -> None:
    path = tmp_path_factory.mktemp("run") / "run.trec"
    doc_ids = tuple(f"d{n}" for n in range(len(scores)))
    run = Run("r", {"q": Ranking("q", doc_ids, tuple(sorted(scores, reverse=True)))})
    formats.write_trec_run(run, path)
    assert formats.read_trec_run(path) == run


def test_a_trec_run_is_ordered_by_score_then_rank(tmp_path: Path) -> None:
    path = written(tmp_path, "run.trec", "q Q0 a 3 1.0 r\nq Q0 b 2 1.0 r\nq Q0 c 1 2.0 r\n")
    assert formats.read_trec_run(path).rankings["q"].doc_ids == ("c", "b", "a")


@pytest.mark.parametrize("name", ["my run", "", "line\nbreak"])
def test_a_blank_in_a_trec_column_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="blank-separated"):
        formats.write_trec_run(Run(name, RUN.rankings), tmp_path / "run.trec")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("q Q0 a 1 1.0\n", "row 1: expected 6 columns"),
        ("q Q0 a one 1.0 r\n", "row 1: rank 'one' or score '1.0' is not a number"),
        ("q Q0 a 1 nan r\n", "row 1: score 'nan' is not finite"),
        ("q Q0 a 1 1.0 r\nq Q0 a 2 0.5 r\n", "a document occurs twice for query 'q'"),
        ("\n", "holds no ranking"),
    ],
)
def test_a_wrong_trec_run_is_named(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        formats.read_trec_run(written(tmp_path, "run.trec", content))


def test_a_table_comes_in_the_types_and_order_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "qrels.parquet"
    doc_ids = pa.array(["d1", "d2"]).dictionary_encode()
    pq.write_table(
        pa.table({"grade": [1, 2], "extra": [0, 0], "doc_id": doc_ids, "query_id": ["q", "q"]}), path
    )
    table = formats.read_table(path, formats.QRELS)
    assert table.schema.names == ["query_id", "doc_id", "grade"]
    assert table.schema.field("grade").type == pa.int32()
    assert list(formats.rows_of(table)) == [("q", "d1", 1), ("q", "d2", 2)]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"query_id": ["q"], "doc_id": ["d"]}, "column 'grade' is missing; present: query_id, doc_id"),
        ({"query_id": ["q"], "doc_id": ["d"], "grade": ["1"]}, "column 'grade' is string, expected int32"),
        ({"query_id": ["q"], "doc_id": ["d"], "grade": [1.0]}, "column 'grade' is double, expected int32"),
        ({"query_id": ["q"], "doc_id": [7], "grade": [1]}, "column 'doc_id' is int64, expected string"),
        ({"query_id": ["q", "q"], "doc_id": ["d", None], "grade": [1, 1]}, "row 2: column 'doc_id' is null"),
        ({"query_id": ["q"], "doc_id": ["d"], "grade": [2**40]}, "column 'grade' does not fit int32"),
    ],
)
def test_a_wrong_column_is_named(tmp_path: Path, columns: dict[str, list[object]], message: str) -> None:
    pq.write_table(pa.table(columns), tmp_path / "qrels.parquet")
    with pytest.raises(DataError, match=message) as caught:
        formats.read_table(tmp_path / "qrels.parquet", formats.QRELS)
    assert "qrels.parquet" in str(caught.value)


def test_lists_of_another_item_are_refused_and_of_the_same_accepted(tmp_path: Path) -> None:
    pq.write_table(pa.table({"cited": [["ice", "sea"]]}), tmp_path / "a.parquet")
    wanted = pa.list_(pa.string())
    assert formats.read_table(tmp_path / "a.parquet", {"cited": wanted}).column("cited").to_pylist() == [
        ["ice", "sea"]
    ]
    with pytest.raises(DataError, match="column 'cited' does not fit"):
        formats.read_table(tmp_path / "a.parquet", {"cited": pa.list_(pa.struct([("a", pa.int32())]))})


def test_a_file_that_is_not_parquet_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.parquet is not a Parquet file"):
        formats.read_table(written(tmp_path, "a.parquet", "text"), formats.QRELS)


def test_equal_rows_give_equal_bytes_whatever_their_chunks_or_metadata(tmp_path: Path) -> None:
    rows = [("q1", "d1", 1), ("q2", "d2", 2)]
    whole = formats.table_of(rows, formats.QRELS)
    parts = pa.concat_tables([formats.table_of([row], formats.QRELS) for row in rows])
    formats.write_table(whole, tmp_path / "whole.parquet")
    formats.write_table(parts.replace_schema_metadata({"by": "someone"}), tmp_path / "parts.parquet")
    assert (tmp_path / "whole.parquet").read_bytes() == (tmp_path / "parts.parquet").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["parts.parquet", "whole.parquet"]


def test_an_empty_table_keeps_its_types(tmp_path: Path) -> None:
    formats.write_table(formats.table_of([], formats.PAIRS), tmp_path / "pairs.parquet")
    assert formats.read_pairs(tmp_path / "pairs.parquet") == []


def test_parquet_rows_let_missing_columns_and_lone_surrogates_through(tmp_path: Path) -> None:
    text = pa.array([b"\xed\xa0\x80", None]).cast(pa.binary()).view(pa.string())
    pq.write_table(pa.table({"doc_id": ["a", "b"], "text": text, "pages": [1, 2]}), tmp_path / "a.parquet")
    found = list(formats.read_parquet_rows(tmp_path / "a.parquet", ["doc_id", "text", "title", "pages"]))
    assert found == [
        (1, {"doc_id": "a", "text": "\ud800", "pages": 1}),
        (2, {"doc_id": "b", "text": None, "pages": 2}),
    ]


def test_parquet_text_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    text = pa.array([b"fine", b"\xff"]).view(pa.string())
    pq.write_table(pa.table({"text": text}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet, row 2: not UTF-8"):
        list(formats.read_parquet_rows(tmp_path / "a.parquet", ["text"]))


def test_the_records_of_a_prepared_folder_come_back(tmp_path: Path) -> None:
    documents = {
        "a": Document("a", "ice", title="sea", url="https://example.org"),
        "b": Document("b", "wind"),
    }
    formats.write_table(formats.documents_table(documents.values()), tmp_path / "corpus.parquet")
    assert formats.read_documents(tmp_path / "corpus.parquet") == documents

    queries = {"q": Query("q", "ice?")}
    formats.write_table(formats.queries_table(queries.values()), tmp_path / "queries.parquet")
    assert formats.read_queries(tmp_path / "queries.parquet") == queries

    qrels = {"q1": {"b": 0, "a": 3}, "q0": {"a": 1}}
    formats.write_table(formats.qrels_table(qrels), tmp_path / "qrels.parquet")
    assert formats.read_qrels(tmp_path / "qrels.parquet") == qrels

    candidates = {"q": [Candidate(documents["b"], 1, 2.5), Candidate(documents["a"], 2, 0.5)]}
    formats.write_table(formats.candidates_table(candidates), tmp_path / "candidates.parquet")
    assert formats.read_candidates(tmp_path / "candidates.parquet", documents) == candidates

    formats.write_table(formats.split_table({"q2": "test", "q1": "train"}), tmp_path / "split.parquet")
    assert list(formats.read_split(tmp_path / "split.parquet").items()) == [("q1", "train"), ("q2", "test")]

    pointwise = [GradedCandidate("q", "a", 2, 0), GradedCandidate("q", "b", 1, 1)]
    formats.write_table(formats.pointwise_table(pointwise), tmp_path / "pointwise.parquet")
    assert formats.read_pointwise(tmp_path / "pointwise.parquet") == pointwise[::-1]

    pairs = [PreferencePair("q", "b", "a", 1, 0)]
    formats.write_table(formats.pairs_table(pairs), tmp_path / "pairs.parquet")
    assert formats.read_pairs(tmp_path / "pairs.parquet") == pairs


def test_a_candidate_outside_the_corpus_is_named(tmp_path: Path) -> None:
    candidates = {"q": [Candidate(Document("a", "ice"), 1, 1.0)]}
    formats.write_table(formats.candidates_table(candidates), tmp_path / "candidates.parquet")
    with pytest.raises(DataError, match=r"candidates\.parquet, row 1: document 'a' is absent"):
        formats.read_candidates(tmp_path / "candidates.parquet", {})


def test_an_unknown_split_is_named(tmp_path: Path) -> None:
    formats.write_table(formats.table_of([("q", "valid")], formats.SPLIT), tmp_path / "split.parquet")
    with pytest.raises(DataError, match="row 1: split 'valid' is none of train, dev, test"):
        formats.read_split(tmp_path / "split.parquet")


def run_rows(*ranks: int) -> pa.Table:
    rows = [("q", f"d{rank}", rank, 0.0, 1.0 / rank, rank, "digest") for rank in ranks]
    return formats.table_of(rows, formats.RUN)


def test_a_run_folder_is_read_over_its_shards_in_the_order_of_rank(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    formats.write_table(run_rows(3, 1, 2), tmp_path / "data" / "shard-00000.parquet")
    other = formats.table_of([("p", "d", 1, 0.0, 0.5, 1, "digest")], formats.RUN)
    formats.write_table(other, tmp_path / "data" / "shard-00001.parquet")
    run = formats.read_run(tmp_path, "dpo")
    assert run.rankings["q"].doc_ids == ("d1", "d2", "d3")
    assert run.rankings["q"].scores == pytest.approx((1, 1 / 2, 1 / 3))
    assert run.rankings["p"] == Ranking("p", ("d",), (0.5,))


@pytest.mark.parametrize("ranks", [(1, 3), (1, 1), (2, 3)])
def test_ranks_that_are_no_ranking_are_refused(ranks: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match="the run of query 'q' is not one ranking from 1 to 2"):
        formats.run_from_table(run_rows(*ranks), "dpo")


def test_a_run_folder_without_shards_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no shard"):
        formats.read_run(tmp_path, "dpo")
