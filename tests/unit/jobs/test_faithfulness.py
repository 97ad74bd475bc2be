"""From attributions of a trained scorer to what deleting their words does, beside words and chance."""

import json
from dataclasses import replace

import pytest
import torch

from jobs.attribute import AttributeWorker, attributor_settings, planned_keys
from jobs.config import AttributeJob, EvaluateJob, PrepareJob, ScoreJob
from jobs.evaluate import run_evaluate
from jobs.manifest import finish_output, folder_digest, opened_output, text_digests
from jobs.prepare import run_prepare
from jobs.run_folders import long_documents_of
from jobs.score import run_score_here
from jobs.shards import plan_shards
from rerank_core.errors import ConfigError, DataError
from rerank_core.formats import read_documents
from rerank_core.models.artefact import artefact_digest, save_artefact
from rerank_core.models.build import build_encoder, build_model, load_tokenizer
from rerank_core.models.scorer import LanguageModelScorer
from rerank_core.models.tiny import save_tiny_causal
from rerank_core.records import Document, Query


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """Return a prepared sample, an artefact of a tiny causal model, and its run on the test queries."""
    root = tmp_path_factory.mktemp("scored")
    prepared = run_prepare(PrepareJob(output=root / "prepared")).output
    texts = [document.content for document in read_documents(prepared / "corpus.parquet").values()]
    save_tiny_causal(root / "model", texts, seed=0)
    model = build_model(root / "model", head="linear", num_layers=None, seed=0)
    torch.nn.init.normal_(model.head.weight, std=2.0)
    encoder = build_encoder(load_tokenizer(root / "model"), model.config, head="linear", max_length=100)
    golden = [(Query("q", "sea ice"), Document("d", "River ice dates."))]
    save_artefact(
        LanguageModelScorer(model, encoder, digest=""),
        root / "artefact",
        head="linear",
        golden=golden,
        provenance={},
    )
    run_score_here(ScoreJob(prepared=prepared, artefact=root / "artefact", output=root / "run", split="test"))
    return AttributeJob(
        prepared=prepared,
        artefact=root / "artefact",
        run=root / "run",
        output=root / "words",
        top_k=2,
        max_documents=8,
        max_evals=120,
    )


def attribute(job):
    """Do what `whyrank attribute` does, without Ray."""
    inputs = {
        **text_digests(job.prepared),
        "artefact": artefact_digest(job.artefact),
        "run": folder_digest(job.run, patterns=("data/shard-*.parquet",)),
    }
    with opened_output(job.output, job="attribute", config=job, inputs=inputs):
        worker = AttributeWorker(
            prepared=str(job.prepared),
            artefact=str(job.artefact),
            output=str(job.output),
            settings=attributor_settings(job),
            audit_share=job.audit_share,
            seed=job.seed,
            long_documents=long_documents_of(job.run),
        )
        for shard in plan_shards(job.output, planned_keys(job), size=job.shard_documents):
            worker(shard)
        finish_output(job.output, results={})


@pytest.fixture(scope="module")
def words(scored):
    attribute(scored)
    return scored


def evaluation(job, output, **settings):
    return EvaluateJob(
        prepared=job.prepared,
        output=output,
        runs=(f"tiny={job.run}",),
        faithfulness=(f"tiny={job.output}",),
        **{"num_samples": 200, "num_close_ups": 0, **settings},
    )


def test_the_attributed_words_matter_more_than_words_by_chance(words, tmp_path, capsys):
    config = evaluation(words, tmp_path / "metrics")
    run_evaluate(config)
    record = json.loads((tmp_path / "metrics" / "faithfulness.json").read_text())
    rows = {row["kind"]: row for row in record["deletions"]}
    assert list(rows) == ["attribution", "lexical", "random"]
    assert (record["num_top"], record["num_random"]) == (10, 20)
    assert rows["attribution"]["num_documents"] == 8
    own, chance = rows["attribution"]["values"], rows["random"]["values"]
    assert own["top_drop"]["mean"] > chance["top_drop"]["mean"]
    assert own["comprehensiveness"]["mean"] > chance["comprehensiveness"]["mean"]
    assert own["sufficiency"]["mean"] < chance["sufficiency"]["mean"]
    assert own["beats_random"]["mean"] >= 0.75
    assert 0.3 < chance["beats_random"]["mean"] < 0.7
    assert "lexical" in capsys.readouterr().out
    again = run_evaluate(config)
    assert again.state == "finished"


def test_two_names_are_compared_and_looked_at_closely(words, tmp_path):
    config = replace(
        evaluation(words, tmp_path / "metrics", num_close_ups=1),
        faithfulness=(f"one={words.output}", f"two={words.output}"),
    )
    run_evaluate(config)
    record = json.loads((tmp_path / "metrics" / "faithfulness.json").read_text())
    between = {found["measure"]: found for found in record["between_names"]}
    assert list(between) == ["flip", "beats_random", "naopc"]
    assert all(found["difference"]["mean"] == 0 for found in between.values())  # the same model twice
    assert between["flip"]["first"] == ["two", "attribution"]
    curves = {row["kind"]: row["values"]["naopc"]["mean"] for row in record["curves"] if row["name"] == "one"}
    assert 1 >= curves["attribution"] > curves["random"] > 0
    assert curves["attribution"] > curves["lexical"]
    stability = {row["kind"]: row for row in record["stability"] if row["name"] == "one"}
    assert {"seed", "edited", "inserted", "random"} <= set(stability)
    agreed = {kind: row["values"]["kendall_tau"]["mean"] for kind, row in stability.items()}
    assert agreed["seed"] > agreed["random"] + 0.1
    assert 0 < stability["inserted"]["values"]["inserted_mass"]["mean"] < 1
    page = (tmp_path / "metrics" / "faithfulness.md").read_text()
    assert "- one: deleting the top 10 words lowers the score more than the mean of 20 random" in page
    assert "two attribution | one attribution | NAOPC" in page


def test_values_of_sentences_are_not_attributed_again(words, tmp_path):
    job = replace(words, leaf="sentence", output=tmp_path / "words", max_documents=1, audit_share=0.0)
    attribute(job)
    with pytest.raises(ConfigError, match=r"has a value per sentence.*pass --num-close-ups 0"):
        run_evaluate(evaluation(job, tmp_path / "metrics", num_close_ups=1))


def test_the_same_seed_gives_the_same_numbers(words, tmp_path):
    files = []
    for name in ("one", "two"):
        run_evaluate(evaluation(words, tmp_path / name))
        files.append((tmp_path / name / "faithfulness.json").read_bytes())
    assert files[0] == files[1]


def test_without_attributions_nothing_is_measured(words, tmp_path):
    run_evaluate(replace(evaluation(words, tmp_path / "metrics"), faithfulness=()))
    assert not (tmp_path / "metrics" / "faithfulness.json").exists()


def test_attributions_of_other_texts_are_refused(words, tmp_path):
    other = run_prepare(PrepareJob(output=tmp_path / "other", max_document_chars=50)).output
    run = tmp_path / "run"
    run_score_here(ScoreJob(prepared=other, artefact=words.artefact, output=run, split="test"))
    config = replace(evaluation(words, tmp_path / "metrics"), prepared=other, runs=(f"x={run}",))
    with pytest.raises(ConfigError, match="attributes another corpus than that of"):
        run_evaluate(config)


def test_two_folders_of_one_name_and_fold_are_refused(words, tmp_path):
    twice = (f"tiny={words.output}", f"tiny={words.output}")
    with pytest.raises(ConfigError, match=r"'tiny' has two folders of fold 0 \(.* is the second\); name one"):
        run_evaluate(replace(evaluation(words, tmp_path / "metrics"), faithfulness=twice))


def test_an_artefact_that_lies_elsewhere_is_asked_for(words, tmp_path):
    moved = words.artefact.rename(words.artefact.with_name("moved"))
    try:
        with pytest.raises(ConfigError, match=r"the artefact of .* lay at .*artefact; put it back there"):
            run_evaluate(evaluation(words, tmp_path / "metrics"))
    finally:
        moved.rename(words.artefact)


def test_attributions_of_training_queries_only_have_nothing_to_say(scored, tmp_path):
    trained = tmp_path / "run"
    run_score_here(
        ScoreJob(prepared=scored.prepared, artefact=scored.artefact, output=trained, split="train")
    )
    job = replace(scored, run=trained, output=tmp_path / "words", max_documents=2)
    attribute(job)
    with pytest.raises(DataError, match="attributes no document of a test query of fold 0"):
        run_evaluate(replace(evaluation(job, tmp_path / "metrics"), runs=(f"tiny={scored.run}",)))
