"""The report job: outputs of all other jobs in, a page and pictures out, and strangers refused."""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from jobs.config import AttributeJob, EvaluateJob, ExplainJob, PrepareJob, ReportJob, ScoreJob
from jobs.evaluate import PER_QUERY, run_evaluate
from jobs.manifest import (
    finish_output,
    folder_digest,
    opened_output,
    read_manifest,
    scoring_digests,
    write_json,
)
from jobs.prepare import run_prepare
from jobs.report import run_report
from jobs.shards import Quarantined, Shard, commit_shard
from jobs.training_config import TrainJob
from rerank_core.attribution.table import attributions_table
from rerank_core.errors import ConfigError, DataError, OutputConflictError
from rerank_core.explanation.table import explanations_table
from rerank_core.formats import (
    RUN,
    read_candidates,
    read_documents,
    read_queries,
    read_table,
    rows_of,
    table_of,
    write_table,
)
from rerank_core.records import Attribution, Document, Explanation, Unit
from rerank_core.testing import OverlapScorer
from rerank_core.text import words

if TYPE_CHECKING:
    import pyarrow as pa

SHARDS = ("data/shard-*.parquet",)
HOSTILE = 'sea ice <script>alert(1)</script> ]]> lone " quote'


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> ReportJob:
    """Outputs of every job on a tiny collection; all but prepare's and evaluate's are written by hand."""
    root = tmp_path_factory.mktemp("demo")
    job = ReportJob(
        prepared=root / "prepared",
        metrics=root / "metrics",
        run=root / "run",
        attributions=root / "words",
        explanations=root / "texts",
        output=root / "report",
    )
    _write_collection(root / "collection")
    run_prepare(PrepareJob(collection=str(root / "collection"), output=job.prepared))
    with opened_output(
        root / "model", job="train", config=TrainJob(prepared=job.prepared, output=root / "model"), inputs={}
    ):
        finish_output(root / "model", results={"artefacts": {"sft": "s", "dpo": "m"}})
    _write_run(job, artefact=root / "model" / "dpo")
    _write_words(job)
    _write_texts(job)
    run_evaluate(
        EvaluateJob(
            prepared=job.prepared,
            output=job.metrics,
            runs=(f"tiny={job.run}",),
            fusion_weight=0.5,
            num_samples=100,
        )
    )
    return job


def _write_collection(folder: Path) -> None:
    folder.mkdir()
    texts = {"a": HOSTILE, "b": "snow depth", "c": "sea salt", "d": "river flow", "e": "ice core"}
    corpus = [{"doc_id": d, "title": f"Title {d}", "text": text, "url": ""} for d, text in texts.items()]
    queries = [
        {"query_id": f"q{n}", "text": text} for n, text in enumerate(("sea ice", "snow", "river", "ice core"))
    ]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in corpus), encoding="utf-8")
    (folder / "queries.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in queries), encoding="utf-8"
    )
    best = {"q0": "a", "q1": "b", "q2": "d", "q3": "e"}
    rows = [f"{q} 0 {d} {3 if best[q] == d else n % 2}\n" for q in best for n, d in enumerate(texts)]
    (folder / "qrels.trec").write_text("".join(rows), encoding="utf-8")
    (folder / "splits.json").write_text(json.dumps({"train": ["q2"], "dev": ["q3"], "test": ["q0", "q1"]}))
    (folder / "collection.json").write_text(
        json.dumps({"name": "tiny-ice", "pool": "judged", "relevant_from": 2})
    )


def _write_run(job: ReportJob, *, artefact: Path, lost: str = "none") -> None:
    documents = read_documents(job.prepared / "corpus.parquet")
    rows = []
    quarantined = []
    for query in read_queries(job.prepared / "queries.parquet").values():
        if query.query_id == lost:
            quarantined.append(Quarantined((lost,), "not a number"))
            continue
        found = read_candidates(job.prepared / "candidates.parquet", documents)[query.query_id]
        scores = OverlapScorer().score(query, [c.document for c in found])
        order = sorted(range(len(found)), key=lambda i: (-scores[i], i))
        for rank, i in enumerate(order, start=1):
            c = found[i]
            rows.append(
                (
                    query.query_id,
                    c.document.doc_id,
                    c.first_stage_rank,
                    c.first_stage_score,
                    scores[i],
                    rank,
                    "m",
                )
            )
    config = ScoreJob(prepared=job.prepared, artefact=artefact, output=job.run)
    inputs = {**scoring_digests(job.prepared, fold=0), "artefact": "m"}
    with opened_output(job.run, job="score", config=config, inputs=inputs):
        keys = {(str(row[0]),) for row in rows} | {row.key for row in quarantined}
        commit_shard(
            job.run,
            Shard(0, tuple(keys)),
            table_of(rows, RUN),
            key_columns=("query_id",),
            quarantined=quarantined,
        )
        finish_output(job.run, results={})


def _write_shard(folder: Path, table: pa.Table) -> None:
    (folder / "data").mkdir()
    write_table(table, folder / "data" / "shard-00000.parquet")
    finish_output(folder, results={})


def _words_of(document: Document, query_id: str) -> Attribution:
    found = [
        Unit(word.text, word.start, word.end, field)  # type: ignore[arg-type]
        for field, content in (("title", document.title), ("text", document.text))
        for word in words(content)
    ]
    values = tuple(float(unit.text in ("sea", "ice")) for unit in found)
    return Attribution(
        query_id, document.doc_id, sum(values), 0.0, tuple(found), values, "partition", 60, 0.0, 7
    )


def _write_words(job: ReportJob) -> None:
    documents = read_documents(job.prepared / "corpus.parquet")
    table = attributions_table(
        [_words_of(documents[d], q) for q, d in (("q0", "a"), ("q2", "d"))], model_digest="m"
    )
    config = AttributeJob(prepared=job.prepared, artefact=Path("x"), run=job.run, output=job.attributions)
    inputs = {"run": folder_digest(job.run, patterns=SHARDS)}
    with opened_output(job.attributions, job="attribute", config=config, inputs=inputs):
        _write_shard(job.attributions, table)


def _write_texts(job: ReportJob) -> None:
    good = Explanation(
        "q0",
        "a",
        "It names sea and ice.",
        ("sea", "ice"),
        ("raised", "raised"),
        True,
        (),
        True,
        False,
        9,
        5,
        "scripted",
        "explain_with_attribution",
        1,
        "",
    )
    bare = replace(good, text="It is about ice.", cited=("ice",), effects=("",), with_attribution=False)
    replaced = replace(
        good, query_id="q2", doc_id="d", fallback=True, problems=("absent",), cited=(), effects=()
    )
    table = explanations_table([good, bare, replaced])
    config = ExplainJob(
        prepared=job.prepared, run=job.run, attributions=job.attributions, output=job.explanations
    )
    inputs = {
        "run": folder_digest(job.run, patterns=SHARDS),
        "attributions": folder_digest(job.attributions, patterns=SHARDS),
    }
    with opened_output(job.explanations, job="explain", config=config, inputs=inputs):
        _write_shard(job.explanations, table)


def test_page_and_pictures_are_written_once(demo: ReportJob, caplog: pytest.LogCaptureFixture) -> None:
    first = run_report(demo)
    page = first.html.read_text(encoding="utf-8")
    assert first.html == demo.output / "report.html"
    names = ("metrics", "rank_changes", "words", "waterfall")  # one document of the query was explained
    files = [demo.output / "pictures" / f"{name}.{ending}" for name in names for ending in ("png", "svg")]
    assert list(first.pictures) == files
    assert all(path.stat().st_size for path in files)
    assert "tiny against BM25, on 2 queries" in page  # the test queries alone
    assert "bm25+tiny reaches" in page
    assert "<script>" not in page
    assert "&lt;<span" in page
    assert page.count("not a test query") == 1
    assert all(
        f">{job}<" in page for job in ("prepare", "train", "score", "attribute", "explain", "evaluate")
    )
    stamp = first.html.stat().st_mtime_ns
    with caplog.at_level(logging.INFO, logger="whyrank.report"):
        assert run_report(demo) == first
    assert "is finished" in caplog.text
    assert first.html.stat().st_mtime_ns == stamp


def test_telling_lines_speak_of_a_test_query(demo: ReportJob) -> None:
    metric, rise, fallback = run_report(demo).lines
    assert metric.startswith("Over 2 queries, BM25 reaches")
    assert "for “sea ice”" in rise
    assert fallback.startswith("1 of 2 explanations written with attributions passed")


def test_an_artefact_from_elsewhere_leaves_training_out(demo: ReportJob, tmp_path: Path) -> None:
    manifest = read_manifest(demo.run)
    moved = _copy_with_manifest(
        demo.run, tmp_path / "run", config=manifest["config"] | {"artefact": "elsewhere/dpo"}
    )
    page = run_report(replace(demo, run=moved, output=tmp_path / "report")).html.read_text(encoding="utf-8")
    assert ">score<" in page
    assert ">train<" not in page
    assert read_manifest(tmp_path / "report")["results"]["training"] is None


def test_folders_that_are_moved_together_stay_finished(
    demo: ReportJob, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    shutil.copytree(demo.run.parent, old, ignore=shutil.ignore_patterns("report"))
    manifest = read_manifest(demo.run)
    there = {"artefact": str(old / "model" / "dpo"), "output": str(old / "run")}
    write_json(old / "run" / "manifest.json", manifest | {"config": manifest["config"] | there})
    lines = run_report(_moved(demo, old)).lines
    old.rename(new)
    job = _moved(demo, new)
    metrics = EvaluateJob(
        prepared=job.prepared,
        output=job.metrics,
        runs=(f"tiny={new}/./run",),
        fusion_weight=0.5,
        num_samples=100,
    )
    assert run_evaluate(metrics).state == "finished"
    with caplog.at_level(logging.INFO, logger="whyrank.report"):
        assert run_report(job).lines == lines
    assert caplog.messages[-1] == f"{job.output} is finished: nothing to do"
    assert "leaves the training out" not in caplog.text


def _moved(job: ReportJob, root: Path) -> ReportJob:
    """Return the job on the folders of the same names in another place."""
    return ReportJob(**{item.name: root / getattr(job, item.name).name for item in fields(job)})


def _with_own_training(demo: ReportJob, folder: Path) -> ReportJob:
    """Return the job on copies of the run and of its training, to change."""
    manifest = read_manifest(demo.run)
    trained = Path(manifest["config"]["artefact"]).parent
    shutil.copytree(trained, folder / "model")
    artefact = str(folder / "model" / "dpo")
    run = _copy_with_manifest(demo.run, folder / "run", config=manifest["config"] | {"artefact": artefact})
    return replace(demo, run=run, output=folder / "report")


def test_a_training_that_wrote_another_artefact_is_left_out_and_a_line_says_so(
    demo: ReportJob, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    job = _with_own_training(demo, tmp_path)
    manifest = read_manifest(tmp_path / "model")
    write_json(
        tmp_path / "model" / "manifest.json", manifest | {"results": {"artefacts": {"dpo": "retrained"}}}
    )
    page = run_report(job).html.read_text(encoding="utf-8")
    assert ">train<" not in page
    assert read_manifest(job.output)["results"]["training"] is None
    assert "the page leaves the training out" in caplog.text
    assert "did not write the artefact that the run was scored with" in caplog.text


def test_a_page_is_not_finished_for_another_record_of_the_training_it_shows(
    demo: ReportJob, tmp_path: Path
) -> None:
    job = _with_own_training(demo, tmp_path)
    run_report(job)
    assert read_manifest(job.output)["results"]["training"] == str(tmp_path / "model")
    write_json(tmp_path / "model" / "manifest.json", read_manifest(tmp_path / "model") | {"seed": 99})
    with pytest.raises(OutputConflictError, match="made with another input:training"):
        run_report(job)


def test_metrics_of_another_grade_of_relevance_are_refused(demo: ReportJob, tmp_path: Path) -> None:
    prepared = shutil.copytree(demo.prepared, tmp_path / "prepared")
    summary = json.loads((prepared / "summary.json").read_text(encoding="utf-8"))
    write_json(prepared / "summary.json", summary | {"relevant_from": 1})
    with pytest.raises(ConfigError, match="another --prepared than"):
        run_report(replace(demo, prepared=prepared, output=tmp_path / "report"))


def _copy_with_manifest(folder: Path, copy: Path, **changes: object) -> Path:
    shutil.copytree(folder, copy)
    write_json(copy / "manifest.json", read_manifest(folder) | changes)
    return copy


@dataclass(frozen=True, slots=True)
class Stranger:
    """An input folder whose manifest names another input."""

    folder: str
    digest: str


@pytest.mark.parametrize(
    "stranger",
    [
        Stranger("attributions", "run"),
        Stranger("explanations", "run"),
        Stranger("explanations", "attributions"),
        Stranger("metrics", "prepared"),
    ],
)
def test_inputs_that_do_not_belong_together_are_refused(
    demo: ReportJob, tmp_path: Path, stranger: Stranger
) -> None:
    folder: Path = getattr(demo, stranger.folder)
    digests = read_manifest(folder)["digests"] | {f"input:{stranger.digest}": "00"}
    other = _copy_with_manifest(folder, tmp_path / "other", digests=digests)
    job = replace(demo, output=tmp_path / "report", **{stranger.folder: other})
    with pytest.raises(ConfigError, match=f"another --{stranger.digest} than"):
        run_report(job)
    assert not job.output.exists()


def test_a_run_that_was_not_evaluated_is_refused(demo: ReportJob, tmp_path: Path) -> None:
    digests = {
        name: "00" if name.endswith("tiny/fold-0") else d
        for name, d in read_manifest(demo.metrics)["digests"].items()
    }
    other = _copy_with_manifest(demo.metrics, tmp_path / "other", digests=digests)
    with pytest.raises(ConfigError, match="does not evaluate"):
        run_report(replace(demo, metrics=other, output=tmp_path / "report"))


def test_a_test_query_in_quarantine_is_in_the_metrics_but_not_among_the_rankings(
    demo: ReportJob, tmp_path: Path
) -> None:
    job = _moved(demo, tmp_path / "lost")
    shutil.copytree(demo.prepared, job.prepared)
    _write_run(job, artefact=Path("gone") / "dpo", lost="q1")
    for write in (_write_words, _write_texts):
        write(job)
    evaluated = run_evaluate(
        EvaluateJob(prepared=job.prepared, output=job.metrics, runs=(f"tiny={job.run}",), num_samples=100)
    )
    assert (evaluated.metrics["quarantined"], evaluated.metrics["num_queries"]) == ({"tiny": 1}, 2)
    page = run_report(job).html.read_text(encoding="utf-8")
    assert "on 2 queries" in page


def test_a_run_of_a_fold_that_was_not_evaluated_is_refused(demo: ReportJob, tmp_path: Path) -> None:
    other = _copy_with_manifest(demo.metrics, tmp_path / "other")
    rows = [row for row in rows_of(read_table(other / "per_query.parquet", PER_QUERY)) if row[1] != "tiny"]
    rows.append(("q3", "tiny", "ndcg_burges@10", 1.0))
    write_table(table_of(rows, PER_QUERY), other / "per_query.parquet")
    with pytest.raises(ConfigError, match="covers no test query of the fold"):
        run_report(replace(demo, metrics=other, output=tmp_path / "report"))


@pytest.mark.parametrize("name", ["prepared", "run", "attributions", "explanations", "metrics"])
def test_unfinished_and_missing_inputs_are_refused(demo: ReportJob, tmp_path: Path, name: str) -> None:
    running = _copy_with_manifest(getattr(demo, name), tmp_path / "running", status="running")
    with pytest.raises(DataError, match="is unfinished"):
        run_report(replace(demo, output=tmp_path / "report", **{name: running}))
    with pytest.raises(DataError, match=r"manifest\.json is missing: run `whyrank \w+ --output"):
        run_report(replace(demo, output=tmp_path / "report", **{name: tmp_path / "nowhere"}))
