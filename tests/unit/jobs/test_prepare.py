"""Prepared tables: counts, determinism, no leak from test grades, and what bad input does."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from jobs.config import PrepareJob
from jobs.prepare import run_prepare
from rerank_core import formats
from rerank_core.data.loading import collection_folder
from rerank_core.errors import DataError, OutputConflictError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from jobs.prepare import PrepareResult

TRAINING_INPUTS = ("corpus.parquet", "queries.parquet", "candidates.parquet")


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.parquet"))}


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> PrepareResult:
    """The embedded sample, prepared."""
    return run_prepare(PrepareJob(output=tmp_path_factory.mktemp("prepared") / "sample"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A collection of 12 queries and 30 documents, each query judging five documents."""
    folder = tmp_path / "collection"
    folder.mkdir()
    write_jsonl(
        folder / "corpus.jsonl", [{"doc_id": f"d{n:02}", "text": f"word{n % 7} sea ice"} for n in range(30)]
    )
    write_jsonl(
        folder / "queries.jsonl", [{"query_id": f"q{n:02}", "text": f"word{n % 7} ice"} for n in range(13)]
    )
    judged = [f"q{n:02} 0 d{(n + i) % 30:02} {i}\n" for n in range(12) for i in range(5)]
    (folder / "qrels.trec").write_text("".join(judged))
    return folder


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def prepare(folder: Path, **settings: Any) -> PrepareResult:
    return run_prepare(PrepareJob(collection=str(folder), output=folder.parent / "prepared", **settings))


def folds(output: Path) -> Iterator[tuple[Path, dict[str, str]]]:
    for path in sorted(output.glob("fold-*")):
        yield path, dict(formats.read_split(path / "split.parquet"))


def test_the_sample_gives_ten_rows_and_25_pairs_per_query(sample: PrepareResult) -> None:
    queries = formats.read_queries(sample.output / "queries.parquet")
    assert len(queries) == sample.summary["queries"] >= 94
    assert sample.summary["pointwise"] == 10 * len(queries)
    assert sample.summary["pairs"] == 25 * len(queries)
    assert (sample.summary["dropped_equal_pairs"], sample.summary["short_lists"]) == (0, 0)
    for fold, _ in folds(sample.output):
        splits = ("train", "dev", "test")
        rows = [row for split in splits for row in formats.read_pointwise(fold / split / "pointwise.parquet")]
        pairs = [pair for split in splits for pair in formats.read_pairs(fold / split / "pairs.parquet")]
        assert set(Counter(row.query_id for row in rows).values()) == {10}
        assert Counter(pair.query_id for pair in pairs) == dict.fromkeys(queries, 25)


def test_every_query_of_the_sample_is_tested_once_and_its_rows_lie_in_its_split_only(
    sample: PrepareResult,
) -> None:
    tested: Counter[str] = Counter()
    for fold, split_by_query in folds(sample.output):
        tested.update(query_id for query_id, split in split_by_query.items() if split == "test")
        for split in ("train", "dev", "test"):
            rows = formats.read_pointwise(fold / split / "pointwise.parquet")
            assert {split_by_query[row.query_id] for row in rows} == {split}
    assert set(tested.values()) == {1}
    assert len(tested) == sample.summary["queries"]
    assert sample.summary["num_folds"] == 5


def test_the_same_input_gives_the_same_bytes(sample: PrepareResult, tmp_path: Path) -> None:
    again = run_prepare(PrepareJob(output=tmp_path / "again"))
    assert files(again.output) == files(sample.output)


def test_a_changed_test_grade_leaves_every_training_input_as_it_was(
    sample: PrepareResult, tmp_path: Path
) -> None:
    source = collection_folder("sample")
    assert source is not None
    folder = tmp_path / "collection"
    shutil.copytree(source, folder)
    fold, split_by_query = next(iter(folds(sample.output)))
    query_id = next(q for q, split in split_by_query.items() if split == "test")
    lines = (folder / "qrels.trec").read_text().splitlines()
    changed = next(i for i, line in enumerate(lines) if line.split()[0] == query_id)
    columns = lines[changed].split()
    lines[changed] = " ".join([*columns[:3], str((int(columns[3]) + 5) % 10)])
    (folder / "qrels.trec").write_text("\n".join(lines))

    before, after = files(sample.output), files(prepare(folder).output)
    names = [name for name in before if name.startswith((f"{fold.name}/train", f"{fold.name}/dev"))]
    assert len(names) == 4
    for name in (*names, *TRAINING_INPUTS, f"{fold.name}/split.parquet"):
        assert after[name] == before[name], name
    assert after["qrels.parquet"] != before["qrels.parquet"]


def test_without_a_pool_training_and_evaluation_take_their_own_depths(folder: Path) -> None:
    result = prepare(folder, train_candidates=6, eval_candidates=20)
    documents = formats.read_documents(result.output / "corpus.parquet")
    candidates = formats.read_candidates(result.output / "candidates.parquet", documents)
    assert {len(found) for found in candidates.values()} == {20}
    assert [c.first_stage_rank for c in candidates["q00"]] == list(range(1, 21))
    rows = formats.read_pointwise(result.output / "fold-0" / "train" / "pointwise.parquet")
    assert {row.first_stage_rank for row in rows} == set(range(1, 7))
    assert result.summary["pointwise"] == 12 * 6
    assert result.summary["short_lists"] == 12
    assert result.summary["candidates_from"] == "bm25"


def test_only_judged_queries_are_prepared(folder: Path) -> None:
    queries = formats.read_queries(prepare(folder).output / "queries.parquet")
    assert list(queries) == [f"q{n:02}" for n in range(12)]


def test_the_pool_can_be_asked_for_and_bm25_too(folder: Path) -> None:
    assert prepare(folder, candidates="pool").summary["candidates"] == 12 * 5
    (folder / "collection.json").write_text('{"pool": "judged"}')
    for candidates, expected in (("auto", 12 * 5), ("bm25", 12 * 30)):
        shutil.rmtree(folder.parent / "prepared")
        assert prepare(folder, candidates=candidates).summary["candidates"] == expected


def test_excluded_pairs_are_neither_candidates_nor_judgements(folder: Path, tmp_path: Path) -> None:
    (folder / "exclude.tsv").write_text("query_id\tdoc_id\nq00\td00\n")
    (tmp_path / "more.tsv").write_text("query_id\tdoc_id\nq00\td01\nq12\td00\n")
    result = prepare(folder, exclude=tmp_path / "more.tsv")
    assert result.summary["excluded_judgements"] == 2
    assert set(formats.read_qrels(result.output / "qrels.parquet")["q00"]) == {"d02", "d03", "d04"}
    documents = formats.read_documents(result.output / "corpus.parquet")
    found = formats.read_candidates(result.output / "candidates.parquet", documents)["q00"]
    assert {"d00", "d01"}.isdisjoint(candidate.document.doc_id for candidate in found)
    assert len(found) == 28


def test_shipped_splits_make_one_fold_unless_folds_are_asked_for(folder: Path) -> None:
    ids = [f"q{n:02}" for n in range(12)]
    shipped = {"train": ids[:8], "dev": ids[8:10], "test": ids[10:]}
    (folder / "splits.json").write_text(json.dumps(shipped))
    result = prepare(folder)
    found = dict(formats.read_split(result.output / "fold-0" / "split.parquet"))
    assert found == {query_id: split for split, query_ids in shipped.items() for query_id in query_ids}
    shutil.rmtree(result.output)
    assert prepare(folder, num_folds=3).summary["num_folds"] == 3


def test_long_empty_and_broken_documents_are_counted(folder: Path) -> None:
    with (folder / "corpus.jsonl").open("a") as stream:
        for doc_id, text in (("long", "sea " * 250_000), ("empty", ""), ("broken", "ice \ud800")):
            stream.write(json.dumps({"doc_id": doc_id, "text": text}) + "\n")
    with (folder / "qrels.trec").open("a") as stream:
        stream.write("q00 0 empty 1\n")
    result = prepare(folder, max_document_chars=1000)
    counts = {
        name: result.summary[name] for name in ("truncated", "quarantined", "dropped_judgements", "documents")
    }
    assert counts == {"truncated": 1, "quarantined": 2, "dropped_judgements": 1, "documents": 31}
    documents = formats.read_documents(result.output / "corpus.parquet")
    assert len(documents["long"].text) == 1000
    table = formats.read_table(result.output / "quarantine.parquet", formats.QUARANTINE)
    assert list(formats.rows_of(table)) == [
        ("corpus.jsonl", "32", "empty", "empty text"),
        ("corpus.jsonl", "33", "broken", "lone surrogate"),
        ("qrels.trec", "61", "empty", "judges a quarantined document"),
    ]


def test_bad_input_is_refused_before_anything_is_written(folder: Path) -> None:
    with (folder / "qrels.trec").open("a") as stream:
        stream.write("q00 0 absent 1\n")
    with pytest.raises(DataError, match=r"qrels\.trec, row 61: document 'absent' is absent from the corpus"):
        prepare(folder)
    assert not (folder.parent / "prepared").exists()


def test_a_second_run_is_finished_and_another_setting_is_refused(folder: Path) -> None:
    first = prepare(folder)
    before = files(first.output)
    second = prepare(folder)
    assert (first.state, second.state) == ("new", "finished")
    assert second.summary == first.summary
    with pytest.raises(OutputConflictError):
        prepare(folder, seed=1)
    (folder / "README.md").write_text("not part of the data")
    assert prepare(folder).state == "finished"
    with (folder / "queries.jsonl").open("a") as stream:
        stream.write('{"query_id": "new", "text": "new"}\n')
    with pytest.raises(OutputConflictError):
        prepare(folder)
    assert files(first.output) == before


def test_a_name_that_looks_like_markup_is_shown_as_it_is(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "collection.json").write_text('{"name": "x [/old]"}')
    prepare(folder)
    assert "prepared x [/old]" in capsys.readouterr().out


def test_a_collection_is_known_by_its_files_not_by_its_path(folder: Path) -> None:
    exclude = folder.parent / "pairs.tsv"
    exclude.write_text("query_id\tdoc_id\nq00\td00\n")
    output = prepare(folder, exclude=exclude).output
    moved = folder.rename(folder.parent / "moved")
    kept = exclude.rename(folder.parent / "kept.tsv")
    for collection in (str(moved), f"{folder.parent}/./moved/"):
        job = PrepareJob(collection=collection, output=output, exclude=kept)
        assert run_prepare(job).state == "finished"
    kept.write_text("query_id\tdoc_id\nq00\td01\n")
    with pytest.raises(OutputConflictError, match="another input:exclude;"):
        run_prepare(PrepareJob(collection=str(moved), output=output, exclude=kept))
