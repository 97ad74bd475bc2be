"""What is attributed, with which seed, and what is refused; the work of one shard, without Ray."""

import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest

from jobs.attribute import (
    AttributeResult,
    AttributeWorker,
    attribute_pairs,
    attributor_settings,
    planned_keys,
    run_attribute,
)
from jobs.audit import RunningError, audit_record, is_audited, summarise_audit
from jobs.config import AttributeJob
from jobs.deletions import document_deletion
from jobs.manifest import (
    QUERY_WORDS_FOLDER,
    RANK_FLIPS_FOLDER,
    file_digest,
    finish_output,
    folder_digest,
    opened_output,
    read_manifest,
    text_digests,
    write_json,
)
from jobs.reuse import check_reusable_attributions
from jobs.run_folders import long_documents_of
from jobs.shards import Quarantined, Shard, commit_shard, plan_shards, read_quarantine
from rerank_core.attribution.rank_flip import find_rank_flip
from rerank_core.attribution.rank_flip_table import read_rank_flips
from rerank_core.attribution.shap_adapter import ShapAttributor
from rerank_core.attribution.table import attributions_table, read_attributions
from rerank_core.errors import ConfigError, DataError, JobError, OutputConflictError
from rerank_core.formats import RUN, documents_table, queries_table, read_run, table_of, write_table
from rerank_core.models.artefact import artefact_digest, load_artefact, save_artefact
from rerank_core.models.build import build_encoder, build_model, load_tokenizer
from rerank_core.models.scorer import LanguageModelScorer
from rerank_core.models.tiny import save_tiny_encoder, tiny_tokenizer
from rerank_core.records import Attribution, Document, Query, Unit
from rerank_core.testing import OverlapScorer

DOCUMENTS = [
    Document("d1", "sea ice extent from buoys, daily", title="Arctic ice"),
    Document("d2", "warm water at the surface of the sea"),
    Document("d3", ""),
]
QUERIES = [Query("q1", "sea ice"), Query("q2", "warm water")]


@pytest.fixture(scope="module")
def artefact(tmp_path_factory):
    """Return the folder of a tiny encoder with random weights as a reranker artefact."""
    folder = tmp_path_factory.mktemp("model")
    save_tiny_encoder(folder, [d.content for d in DOCUMENTS] + [q.text for q in QUERIES], seed=0)
    model = build_model(folder, head="linear", num_layers=None, seed=0)
    encoder = build_encoder(load_tokenizer(folder), model.config, head="linear", max_length=64)
    scorer = LanguageModelScorer(model, encoder, digest="")
    path = tmp_path_factory.mktemp("artefacts") / "dpo"
    save_artefact(scorer, path, head="linear", golden=[(QUERIES[0], DOCUMENTS[0])], provenance={})
    return path


@pytest.fixture
def prepared(tmp_path):
    """Return a prepared folder, as far as attribution reads it."""
    folder = tmp_path / "prepared"
    folder.mkdir()
    write_table(documents_table(DOCUMENTS), folder / "corpus.parquet")
    write_table(queries_table(QUERIES), folder / "queries.parquet")
    _write_manifest(folder, job="prepare", status="finished")
    return folder


def _write_manifest(folder, *, job, status, **digests):
    inputs = {f"input:{name}": digest for name, digest in digests.items()}
    write_json(folder / "manifest.json", {"job": job, "status": status, "config": {}, "digests": inputs})


def _write_run(folder, *, digest, prepared):
    (folder / "data").mkdir(parents=True)
    order = {"q1": ["d1", "d2", "d3"], "q2": ["d3", "d2", "d1"]}
    rows = [
        (query_id, doc_id, 1, 0.0, -float(rank), rank, digest)
        for query_id, doc_ids in order.items()
        for rank, doc_id in enumerate(doc_ids, start=1)
    ]
    write_table(table_of(rows, RUN), folder / "data" / "shard-00000.parquet")
    texts = {name: file_digest(prepared / f"{name}.parquet") for name in ("corpus", "queries")}
    _write_manifest(folder, job="score", status="finished", **texts)


@pytest.fixture
def job(tmp_path, prepared, artefact):
    """Return a job on a run of two queries with three documents each."""
    run = tmp_path / "run"
    _write_run(run, digest=artefact_digest(artefact), prepared=prepared)
    return AttributeJob(
        prepared=prepared, artefact=artefact, run=run, output=tmp_path / "words", top_k=2, max_evals=60
    )


def _worker(job):
    return AttributeWorker(
        prepared=str(job.prepared),
        artefact=str(job.artefact),
        output=str(job.output),
        settings=attributor_settings(job),
        audit_share=job.audit_share,
        seed=job.seed,
        reuse=[str(folder) for folder in job.reuse],
        run=str(job.run) if job.rank_flips else None,
        query_words=job.query_words,
        long_documents=long_documents_of(job.run),
    )


def _with(job, **changes):
    fields = {name: getattr(job, name) for name in job.__slots__}
    return AttributeJob(**(fields | changes))


def test_the_top_documents_are_planned_query_by_query(job):
    assert planned_keys(job) == [("q1", "d1"), ("q1", "d2"), ("q2", "d3"), ("q2", "d2")]


def test_the_most_documents_asked_for_are_the_first_ones_by_rank(job):
    assert planned_keys(_with(job, max_documents=3)) == [("q1", "d1"), ("q1", "d2"), ("q2", "d3")]
    assert planned_keys(_with(job, max_documents=2)) == [("q1", "d1"), ("q2", "d3")]


def test_the_first_queries_alone_are_planned(job):
    assert planned_keys(_with(job, max_queries=1)) == [("q1", "d1"), ("q1", "d2")]


def test_a_run_of_another_model_is_refused_by_both_digests(job, tmp_path):
    run = tmp_path / "other"
    _write_run(run, digest="0123abcd", prepared=job.prepared)
    with pytest.raises(
        ConfigError, match=rf"scored with the model 0123abcd, .* is {artefact_digest(job.artefact)}"
    ):
        run_attribute(_with(job, run=run))
    assert not job.output.exists()


def test_a_run_on_another_corpus_is_refused(job):
    write_table(documents_table(DOCUMENTS[:2]), job.prepared / "corpus.parquet")
    with pytest.raises(ConfigError, match=r"scored on another corpus than .* pass the prepared folder"):
        run_attribute(job)


def test_a_run_of_other_queries_is_refused(job):
    write_table(queries_table([QUERIES[0], Query("q2", "cold water")]), job.prepared / "queries.parquet")
    with pytest.raises(ConfigError, match=r"scored on another queries than .* pass the prepared folder"):
        run_attribute(job)
    assert not job.output.exists()


def test_a_run_that_ranks_nothing_is_refused(job):
    write_table(table_of([], RUN), job.run / "data" / "shard-00000.parquet")
    with pytest.raises(JobError, match=r"ranks nothing to attribute; see why in .*run/quarantine"):
        run_attribute(job)


def test_an_unfinished_run_is_refused(job):
    _write_manifest(job.run, job="score", status="running")
    with pytest.raises(DataError, match="unfinished; run the same `whyrank score` command again"):
        run_attribute(job)


def test_a_shard_is_attributed_and_committed(job):
    assert _worker(job)(Shard(0, (("q1", "d1"), ("q2", "d3")))) == 2
    first, empty = read_attributions(job.output)
    assert (first.query_id, first.doc_id) == ("q1", "d1")
    for unit in first.units:
        assert getattr(DOCUMENTS[0], unit.field)[unit.start : unit.end] == unit.text
    (score,) = load_artefact(job.artefact).score(QUERIES[0], [DOCUMENTS[0]])
    assert first.score == pytest.approx(score, abs=1e-6)
    assert first.base_value + sum(first.values) == pytest.approx(score, abs=1e-4)
    assert (first.seed, first.method) == (job.seed, "pruned")
    assert first.error is not None
    assert (empty.doc_id, empty.units) == ("d3", ())
    assert read_quarantine(job.output) == []


def test_an_audit_compares_with_the_exact_values(job):
    job = _with(job, max_evals=12, audit_share=1.0)
    _worker(job)(Shard(0, (("q1", "d1"), ("q2", "d3"))))
    audited = summarise_audit(job.output)
    assert audited is not None
    assert audited.documents == 1  # the other one has no words
    assert 0 < audited.relative_l2 < 2
    assert audited.bound_kept is None  # twelve evaluations teach too little for a bound
    assert audit_record(audited)["audit"]["documents"] == 1


def test_an_audit_of_exact_values_finds_no_error(job):
    job = _with(job, max_evals=5000, audit_share=1.0)
    _worker(job)(Shard(0, (("q1", "d1"),)))
    audited = summarise_audit(job.output)
    assert audited is not None
    assert (audited.relative_l2, audited.top_5) == (0.0, 1.0)
    assert audited.kendall_tau == pytest.approx(1.0)
    assert audited.bound_kept == 1.0


def test_without_a_share_nothing_is_audited(job):
    _worker(_with(job, audit_share=0.0))(Shard(0, (("q1", "d1"),)))
    assert summarise_audit(job.output) is None
    assert audit_record(None) == {"audit": {"documents": 0}}


def test_the_audited_share_is_drawn_by_document():
    attributions = [
        Attribution("q", f"d{n}", 0.0, 0.0, (Unit("w", 0, 1),), (0.0,), "pruned", 2, 0.0, seed=0)
        for n in range(2000)
    ]
    audited = [found.doc_id for found in attributions if is_audited(found, share=0.1)]
    assert 150 < len(audited) < 250
    assert audited == [found.doc_id for found in attributions if is_audited(found, share=0.1)]


class FaultyScorer(OverlapScorer):
    """Scores `moody` higher as a document than as a text with every word in place; cannot score `broken`."""

    def score(self, query, documents):
        shift = {"moody": 0.5, "broken": float("nan")}
        return [
            score + (shift.get(document.doc_id, 0.0) if document.title else 0.0)
            for score, document in zip(super().score(query, documents), documents, strict=True)
        ]


def test_documents_that_do_not_add_up_go_to_quarantine_with_their_reason():
    documents = [Document(name, "sea ice", title="Ice") for name in ("moody", "good", "broken")]
    attributor = ShapAttributor(FaultyScorer(), tiny_tokenizer(["sea ice Ice"], has_mask=True), max_evals=50)
    done, quarantined = attribute_pairs(
        attributor.attribute, [(QUERIES[0], document) for document in documents], seed=0
    )
    assert [attribution.doc_id for attribution in done] == ["good"]
    assert [row.key for row in quarantined] == [("q1", "moody"), ("q1", "broken")]
    assert "miss the score by 0.5" in quarantined[0].reason
    assert "the score is nan" in quarantined[1].reason


def test_the_same_shard_gives_the_same_bytes_again(job, tmp_path):
    shard = Shard(0, (("q1", "d1"), ("q2", "d2")))
    _worker(job)(shard)
    again = _with(job, output=tmp_path / "again")
    _worker(again)(shard)
    name = Path("data/shard-00000.parquet")
    assert (job.output / name).read_bytes() == (again.output / name).read_bytes()


def _committed_before_a_kill(job, *, done, quarantined):
    """Leave the output as an execution does that is killed when its one shard is committed."""
    inputs = {
        "corpus": file_digest(job.prepared / "corpus.parquet"),
        "queries": file_digest(job.prepared / "queries.parquet"),
        "artefact": artefact_digest(job.artefact),
        "run": folder_digest(job.run, patterns=("data/shard-*.parquet",)),
    }
    with opened_output(job.output, job="attribute", config=job, inputs=inputs):
        (shard,) = plan_shards(job.output, planned_keys(job), size=job.shard_documents)
        table = attributions_table(done, model_digest="m")
        commit_shard(job.output, shard, table, key_columns=("query_id", "doc_id"), quarantined=quarantined)


def _attribution(query_id, doc_id, *, is_truncated=False):
    return Attribution(query_id, doc_id, 0.0, 0.0, (), (), "partition", 2, 0.0, 7, is_truncated)


def test_the_progress_tells_the_median_bound_of_what_is_attributed_so_far(tmp_path):
    def commit(index, *errors):
        names = [f"{index}.{place}" for place in range(len(errors))]
        units = (Unit("sea", 0, 3), Unit("ice", 4, 7))
        done = [
            replace(_attribution("q", name), units=units, values=(3.0, -4.0), error=error)
            for name, error in zip(names, errors, strict=True)
        ]
        shard = Shard(index, tuple(("q", name) for name in names))
        table = attributions_table(done, model_digest="m")
        commit_shard(tmp_path, shard, table, key_columns=("query_id", "doc_id"), quarantined=[])

    running = RunningError(tmp_path)
    commit(0, None)
    assert running(0) == ""
    commit(1, 1.0, 0.5)
    commit(2, 2.0)
    assert running(2) == ", estimated error 40% (1 of 2)"
    assert running(1) == ", estimated error 20% (3 of 4)"
    assert RunningError(tmp_path)(2) == ", estimated error 40%"


def test_the_words_that_hold_a_rank_are_kept_beside_the_attributions(job):
    keys = (("q1", "d1"), ("q1", "d2"))
    _worker(job)(Shard(0, keys))
    assert read_rank_flips(job.output / RANK_FLIPS_FOLDER) == {}
    _worker(_with(job, rank_flips=True))(Shard(1, keys))
    flips = read_rank_flips(job.output / RANK_FLIPS_FOLDER)
    scorer, run = load_artefact(job.artefact), read_run(job.run, "run")
    assert flips.keys() <= set(keys)
    for attribution in read_attributions(job.output)[:2]:
        document = next(found for found in DOCUMENTS if found.doc_id == attribution.doc_id)
        deletion, worths = document_deletion(attribution, QUERIES[0], document, scorer=scorer, run=run)
        flip = find_rank_flip(deletion, attribution.values, worths)
        assert flips.get((attribution.query_id, attribution.doc_id)) == flip


def test_the_words_of_queries_are_attributed_beside_each_document(job):
    keys = (("q1", "d1"), ("q1", "d3"), ("q2", "d2"))
    _worker(_with(job, query_words=True))(Shard(0, keys))
    found = read_attributions(job.output / QUERY_WORDS_FOLDER)
    assert [(one.query_id, one.doc_id) for one in found] == list(keys)
    assert [[unit.text for unit in one.units] for one in found] == [["sea", "ice"]] * 2 + [["warm", "water"]]
    assert {unit.field for one in found for unit in one.units} == {"query"}
    own = read_attributions(job.output)
    assert [one.score for one in found] == [one.score for one in own]
    assert [one.base_value for one in found] != [one.base_value for one in own]
    assert all(abs(one.residual) < 1e-4 for one in found)


def test_a_query_too_long_for_a_method_is_quarantined_and_its_document_is_not(job):
    long = Query("q1", " ".join(["sea", "ice"] * 9))
    write_table(queries_table([long, QUERIES[1]]), job.prepared / "queries.parquet")
    words = _with(job, query_words=True, method="exact", leaf="field")
    keys = (("q1", "d2"), ("q2", "d2"))
    assert _worker(words)(Shard(0, keys)) == 2
    assert [found.query_id for found in read_attributions(job.output / QUERY_WORDS_FOLDER)] == ["q2"]
    (failed,) = read_quarantine(job.output / QUERY_WORDS_FOLDER)
    assert failed.key == ("q1", "d2")
    assert "18 players are too many to enumerate" in failed.reason


def _attributed(job, *keys):
    """Leave what a finished job on some documents leaves; return its inputs."""
    inputs = {
        **text_digests(job.prepared),
        "artefact": artefact_digest(job.artefact),
    }
    with opened_output(job.output, job="attribute", config=job, inputs=inputs):
        _worker(job)(Shard(0, keys))
        finish_output(job.output, results={})
    return inputs


def test_attributions_of_an_earlier_output_are_taken_over(job, tmp_path):
    keys = (("q1", "d1"), ("q1", "d2"), ("q2", "d3"))
    _attributed(job, *keys[1:])
    marked = [
        replace(found, residual=0.5e-4) for found in read_attributions(job.output)
    ]  # no search gives that
    table = attributions_table(marked, model_digest=artefact_digest(job.artefact))
    write_table(table, job.output / "data" / "shard-00000.parquet")
    more = _with(job, output=tmp_path / "more", reuse=(job.output,))
    assert _worker(more)(Shard(0, keys)) == 3
    computed, *taken = read_attributions(more.output)
    assert computed.doc_id == "d1"
    assert computed.residual != 0.5e-4
    assert taken == marked


@pytest.mark.parametrize("change", [{"seed": 1}, {"max_evals": 61}, {"leaf": "word"}])
def test_attributions_made_otherwise_are_not_taken_over(job, tmp_path, change):
    inputs = _attributed(job, ("q1", "d1"))
    more = _with(job, output=tmp_path / "more", reuse=(job.output,))
    check_reusable_attributions(more, inputs=inputs)
    with pytest.raises(ConfigError, match=f"another {next(iter(change))}: nothing of it can be reused"):
        check_reusable_attributions(_with(more, **change), inputs=inputs)
    with pytest.raises(ConfigError, match="another corpus"):
        check_reusable_attributions(more, inputs=inputs | {"corpus": "other"})
    with pytest.raises(ConfigError, match="another long_documents"):
        check_reusable_attributions(more, inputs=inputs | {"long_documents": "max_chunk"})


@pytest.mark.parametrize(
    ("config", "expected"), [({}, "truncate"), ({"long_documents": "max_chunk"}, "max_chunk")]
)
def test_documents_are_read_as_they_were_for_the_run(job, config, expected):
    manifest = json.loads((job.run / "manifest.json").read_text())
    write_json(job.run / "manifest.json", manifest | {"config": config})
    assert long_documents_of(job.run) == expected


def test_only_outputs_of_attribution_are_taken_over(job, tmp_path):
    more = _with(job, output=tmp_path / "more", reuse=(job.run,))
    with pytest.raises(DataError, match="written by `whyrank score`"):
        run_attribute(more)


def test_counts_are_told_on_finishing_and_afterwards(job, caplog):
    job = _with(job, max_documents=3)
    done = [_attribution("q1", "d1", is_truncated=True), _attribution("q2", "d3")]
    _committed_before_a_kill(job, done=done, quarantined=[Quarantined(("q1", "d2"), "the score is nan")])
    caplog.set_level(logging.INFO, logger="whyrank.attribute")
    line = (
        f"{job.output}: 2 of 3 documents attributed, 1 of them truncated, 1 quarantined"
        f" (reasons in {job.output / 'quarantine'})"
    )
    result = AttributeResult(job.output, 2, 1, 1)
    assert run_attribute(job) == result
    assert caplog.messages == [line]
    results = {"documents": 2, "truncated": 1, "quarantined": 1, "audit": {"documents": 0}}
    assert read_manifest(job.output)["results"] == results
    caplog.clear()
    assert run_attribute(job) == result
    assert caplog.messages == [f"{job.output} is finished: nothing to do", line]


def test_a_job_with_nothing_left_fails_with_the_first_reason(job):
    quarantined = [Quarantined(key, f"the score of {key[1]} is nan") for key in planned_keys(job)]
    _committed_before_a_kill(job, done=[], quarantined=quarantined)
    for _ in range(2):
        with pytest.raises(JobError, match=r"all 4; the first, .*: the score of d1 is nan; mend the cause"):
            run_attribute(job)
        assert read_manifest(job.output)["status"] == "running"


@pytest.mark.ray
@pytest.mark.usefixtures("ray_instance")
def test_an_interrupted_job_computes_only_what_is_missing_and_then_is_finished(job):
    small = _with(job, shard_documents=1)
    assert run_attribute(small) == AttributeResult(job.output, 4, 0, 0)
    shards = sorted((job.output / "data").iterdir())
    assert len(shards) == 4
    whole = {path: path.read_bytes() for path in shards}

    shards[1].unlink()  # as a kill would leave it
    write_json(job.output / "manifest.json", read_manifest(job.output) | {"status": "running"})
    kept = shards[0].stat().st_mtime_ns
    assert run_attribute(small) == AttributeResult(job.output, 4, 0, 0)
    assert {path: path.read_bytes() for path in shards} == whole
    assert shards[0].stat().st_mtime_ns == kept

    assert run_attribute(small) == AttributeResult(job.output, 4, 0, 0)  # finished: nothing to do
    with pytest.raises(OutputConflictError, match="made with another setting max_evals"):
        run_attribute(_with(small, max_evals=20))
