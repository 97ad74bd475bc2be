"""What is explained and refused, how answers become shards, what a finished job says; without an engine."""

import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from jobs.config import ExplainJob
from jobs.explain import (
    ExplainResult,
    commit_explained,
    engine_requests,
    input_digests,
    known_explanations,
    run_explain,
    whole_shards,
)
from jobs.first_texts import FirstTexts
from jobs.generation import (
    Failure,
    Request,
    failure_reason,
)
from jobs.manifest import file_digest, folder_digest, opened_output, read_manifest, write_json
from jobs.placements import planned_placements
from jobs.reuse import check_reusable_explanations
from jobs.shards import Shard, commit_shard, pending_shards, plan_shards
from jobs.verified_texts import once_answered, verified
from rerank_core.attribution.table import attributions_table
from rerank_core.errors import ConfigError, DataError, JobError
from rerank_core.explanation.engine import EngineConfig, engine_environment, engine_settings
from rerank_core.explanation.explain import conclude, conclude_failure
from rerank_core.explanation.table import explanations_table, read_explanations
from rerank_core.explanation.task import read_document
from rerank_core.formats import RUN, documents_table, queries_table, table_of, write_table
from rerank_core.models.tiny import save_tiny_causal
from rerank_core.records import Attribution, Document, EvidenceWord, Generation, Query, Unit

DOCUMENTS = [
    Document("d1", "sea ice extent from buoys, daily", title="Arctic ice", url="https://data.example.org/1"),
    Document("d2", "warm water at the surface of the sea"),
]
QUERIES = [Query("q1", "sea ice"), Query("q2", "warm water")]
GOOD = json.dumps({"sentences": [{"text": "This document describes the sea.", "raised": ["sea"]}]})
NOT_JSON = "the sea"


def _attribution(query_id: str, doc_id: str) -> Attribution:
    units = (Unit("sea", 0, 3), Unit("the", 11, 14))
    return Attribution(query_id, doc_id, 1.5, 0.0, units, (2.0, -0.5), "exact", 4, 0.0, 0)


def _finished(folder, *, job, **digests) -> None:
    inputs = {f"input:{name}": digest for name, digest in digests.items()}
    write_json(folder / "manifest.json", {"job": job, "status": "finished", "config": {}, "digests": inputs})


@pytest.fixture
def job(tmp_path):
    """Return a job on two queries with two ranked documents each, of which one is attributed."""
    prepared, run, words, model = (tmp_path / name for name in ("prepared", "run", "words", "model"))
    for folder in (prepared, run / "data", words / "data"):
        folder.mkdir(parents=True)
    write_table(documents_table(DOCUMENTS), prepared / "corpus.parquet")
    write_table(queries_table(QUERIES), prepared / "queries.parquet")
    _finished(prepared, job="prepare")
    rows = [
        (query_id, doc_id, 1, 0.0, -float(rank), rank, "m")
        for query_id, order in (("q1", ["d2", "d1"]), ("q2", ["d2", "d1"]))
        for rank, doc_id in enumerate(order, start=1)
    ]
    write_table(table_of(rows, RUN), run / "data" / "shard-00000.parquet")
    _finished(run, job="score")
    _attribute(words, run=run, prepared=prepared, pairs=[("q1", "d1"), ("q2", "d2")])
    save_tiny_causal(model, [document.content for document in DOCUMENTS], seed=0)
    return ExplainJob(
        prepared=prepared,
        run=run,
        attributions=words,
        output=tmp_path / "texts",
        model=str(model),
        max_model_tokens=128,  # the tiny model's
        max_new_tokens=64,
        shard_documents=1,
    )


def _attribute(folder, *, run, prepared, pairs) -> None:
    table = attributions_table([_attribution(*pair) for pair in pairs], model_digest="m")
    write_table(table, folder / "data" / "shard-00000.parquet")
    _finished(
        folder,
        job="attribute",
        run=folder_digest(run, patterns=("data/shard-*.parquet",)),
        corpus=file_digest(prepared / "corpus.parquet"),
        queries=file_digest(prepared / "queries.parquet"),
    )


def test_each_attributed_document_is_explained_with_and_without_its_attribution(job) -> None:
    placements = planned_placements(job)
    assert list(placements) == [("q1", "d1"), ("q2", "d2")]
    with_words, without = placements["q1", "d1"]
    assert (with_words.query, with_words.document) == (QUERIES[0], DOCUMENTS[0])
    assert (with_words.rank, with_words.num_candidates) == (2, 2)
    assert with_words.evidence is not None
    sea, the = _attribution("q1", "d1").units
    assert with_words.evidence.words == (
        EvidenceWord("sea", 2.0, 0.8, (sea,)),
        EvidenceWord("the", -0.5, 0.2, (the,)),
    )
    assert without == replace(with_words, evidence=None)


def test_with_contrast_a_document_above_another_attributed_one_is_explained_a_third_time(job) -> None:
    found = [replace(_attribution("q1", "d1"), score=1.0), *(_attribution(q, "d2") for q in ("q1", "q2"))]
    table = attributions_table(found, model_digest="m")
    write_table(table, job.attributions / "data" / "shard-00000.parquet")
    placements = planned_placements(replace(job, contrast=True))
    assert [len(found) for found in placements.values()] == [2, 3, 2]
    compared = placements["q1", "d2"][2]
    assert compared.template == "explain_contrast"
    assert compared.evidence is not None
    assert compared.evidence.contrast is not None
    assert (compared.rank, compared.evidence.contrast.rank) == (1, 2)
    assert compared.evidence.contrast.document == DOCUMENTS[0]
    assert {len(found) for found in planned_placements(job).values()} == {2}


def test_the_number_of_words_is_a_setting(job) -> None:
    (with_words, _) = planned_placements(replace(job, num_words=1))["q1", "d1"]
    assert with_words.evidence is not None
    assert len(with_words.evidence.words) == 1


@pytest.mark.parametrize("name", ["corpus", "queries", "run"])
def test_attributions_of_other_inputs_are_refused(job, name) -> None:
    manifest = read_manifest(job.attributions)
    manifest["digests"][f"input:{name}"] = "other"
    write_json(job.attributions / "manifest.json", manifest)
    with pytest.raises(ConfigError, match=f"another {name}"):
        planned_placements(job)


def test_an_attribution_that_the_run_does_not_rank_is_refused(job) -> None:
    _attribute(job.attributions, run=job.run, prepared=job.prepared, pairs=[("q1", "d9")])
    with pytest.raises(DataError, match="does not rank"):
        planned_placements(job)


def test_values_of_sentences_are_refused(job) -> None:
    manifest = read_manifest(job.attributions)
    write_json(job.attributions / "manifest.json", {**manifest, "config": {"leaf": "sentence"}})
    with pytest.raises(ConfigError, match="a value per sentence, but explanations cite words"):
        planned_placements(job)


def test_a_margin_too_small_to_tell_is_not_explained(job) -> None:
    found = [_attribution("q1", "d2"), replace(_attribution("q1", "d1"), score=1.499)]
    table = attributions_table(found, model_digest="m")
    write_table(table, job.attributions / "data" / "shard-00000.parquet")
    assert {len(both) for both in planned_placements(replace(job, contrast=True)).values()} == {2}


def test_attributions_of_nothing_are_refused(job) -> None:
    _attribute(job.attributions, run=job.run, prepared=job.prepared, pairs=[])
    with pytest.raises(DataError, match="nothing to explain"):
        planned_placements(job)


def test_a_context_that_the_model_has_not_is_refused_before_any_work(job) -> None:
    with pytest.raises(ConfigError, match="reads at most 128"):
        run_explain(replace(job, max_model_tokens=129, max_new_tokens=16))
    assert not job.output.exists()


@pytest.mark.parametrize("name", ["prepared", "run", "attributions"])
def test_an_unfinished_input_is_refused(job, name) -> None:
    folder = getattr(job, name)
    write_json(folder / "manifest.json", {**read_manifest(folder), "status": "running"})
    with pytest.raises(DataError, match="unfinished"):
        planned_placements(job)


@pytest.mark.parametrize("name", ["merges.txt", "vocab.txt", "tokenizer.model", "adapter/a.safetensors"])
def test_every_file_of_the_model_decides_the_explanations(job, name) -> None:
    model = Path(job.model)
    before = input_digests(job, model)["model"]
    (model / name).parent.mkdir(exist_ok=True)
    (model / name).write_text("other")
    assert input_digests(job, model)["model"] != before


def test_failures_wait_for_the_first_answer_and_nothing_is_lost() -> None:
    text = Generation(GOOD, 9, 8)
    answers: list[tuple[int, Generation | Failure]] = [
        (2, Failure("x")),
        (0, Failure("y")),
        (1, text),
        (4, Failure("z")),
        (3, text),
    ]
    given = iter(answers)
    found = once_answered(given)
    assert next(found) == answers[0]
    assert next(given) == answers[3]  # no more was taken than the first answer
    assert list(once_answered(iter(answers))) == answers
    assert list(once_answered(iter(answers[2:]))) == answers[2:]
    assert list(once_answered(iter([]))) == []


def test_an_engine_that_refuses_every_request_fails_the_job_and_commits_nothing(job) -> None:
    placements = planned_placements(job)
    with opened_output(job.output, job="explain", config=job, inputs=input_digests(job, Path(job.model))):
        shards = plan_shards(job.output, list(placements), size=1)
    work = [(shard, placement) for shard in shards for key in shard.keys for placement in placements[key]]
    refused = [(index, Failure(f"no grammar {index}")) for index in range(len(work))]

    def explained(answers):
        return verified(
            [Request(index, [], {}) for index in range(len(work))],
            [placement for _, placement in work],
            ask=lambda requests, attempt: once_answered(iter(answers)),
            first_texts=FirstTexts(job.output / f"{len(answers[0])}.jsonl"),
            generator="g",
        )

    with pytest.raises(JobError, match=r"none of 4 requests, .* reason: no grammar 0; mend the cause"):
        list(commit_explained(job, work, explained(refused)))
    assert pending_shards(job.output, shards) == shards
    assert read_manifest(job.output)["status"] == "running"
    one_answered: list[tuple[int, Generation | Failure]] = [(0, Generation(GOOD, 9, 8)), *refused[1:]]
    assert list(commit_explained(job, work, explained(one_answered))) == [2, 2]
    assert [e.fallback for e in read_explanations(job.output)] == [False, True, True, True]


def test_shards_are_whole_and_in_order_whatever_the_order_of_the_answers(job) -> None:
    placements = planned_placements(job)
    shards = [Shard(4, (("q1", "d1"),)), Shard(7, (("q2", "d2"),))]
    work = [(shard, placement) for shard in shards for key in shard.keys for placement in placements[key]]
    explained = [
        (index, conclude_failure(work[index][1], f"failure {index}", generator="g")) for index in (3, 0, 2, 1)
    ]
    found = list(whole_shards(work, iter(explained)))
    assert [shard.index for shard, _ in found] == [7, 4]
    (second, first) = (explanations for _, explanations in found)
    assert [explanation.with_attribution for explanation in first] == [True, False]
    problems = [explanation.problems for explanation in (*first, *second)]
    assert problems == [(f"generator_failed: failure {index}",) for index in range(4)]


def test_refused_texts_are_asked_for_once_more_and_each_request_is_concluded_once(job) -> None:
    placements = [placement for both in planned_placements(job).values() for placement in both]
    requests = [Request(index, [], {}) for index in range(4)]
    good, bad = Generation(GOOD, 9, 8), Generation(NOT_JSON, 5, 2)
    script: dict[int, list[tuple[int, Generation | Failure]]] = {
        1: [(3, bad), (0, good), (2, bad), (1, Failure("too long"))],
        2: [(2, good), (3, Failure("gone"))],
    }
    asked = []

    def ask(some, attempt):
        asked.append((attempt, [request.index for request in some]))
        return iter(script[attempt])

    first_texts = FirstTexts(job.output.parent / "first_texts.jsonl")
    found = list(verified(requests, placements, ask=ask, first_texts=first_texts, generator="g"))
    assert asked == [(1, [0, 1, 2, 3]), (2, [2, 3])]
    assert [index for index, _ in found] == [0, 1, 2, 3]
    explanations = dict(found)
    assert [explanations[i].num_attempts for i in range(4)] == [1, 0, 2, 1]
    assert [explanations[i].fallback for i in range(4)] == [False, True, False, True]
    assert (explanations[2].prompt_tokens, explanations[2].generated_tokens) == (14, 10)
    assert explanations[3].problems == ("not_json", "empty_text")  # of the text that there is


def test_nothing_is_asked_twice_where_nothing_is_refused(job) -> None:
    placements = [placement for both in planned_placements(job).values() for placement in both][:1]
    asked = []

    def ask(some, attempt):
        asked.append(attempt)
        return iter([(0, Generation(GOOD, 9, 8))])

    first_texts = FirstTexts(job.output.parent / "first_texts.jsonl")
    ((_, explanation),) = verified(
        [Request(0, [], {})], placements, ask=ask, first_texts=first_texts, generator="g"
    )
    assert (asked, explanation.num_attempts) == ([1], 1)


def test_after_a_kill_no_first_text_is_written_again(job) -> None:
    placements = [placement for both in planned_placements(job).values() for placement in both]
    requests = [Request(index, [], {}) for index in range(4)]
    good, bad = Generation(GOOD, 9, 8), Generation(NOT_JSON, 5, 2)
    path = job.output.parent / "first_texts.jsonl"
    asked = []

    def killed(some, attempt):
        asked.append((attempt, [request.index for request in some]))
        yield 1, bad
        yield 0, good
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(verified(requests, placements, ask=killed, first_texts=FirstTexts(path), generator="g"))
    with path.open("a") as file:
        file.write('{"asked": ["q2", "d2"')  # as a kill would cut a line

    def answers(some, attempt):
        asked.append((attempt, [request.index for request in some]))
        return iter([(request.index, good if attempt == 2 else bad) for request in some])

    found = dict(verified(requests, placements, ask=answers, first_texts=FirstTexts(path), generator="g"))
    assert asked == [(1, [0, 1, 2, 3]), (1, [2, 3]), (2, [1, 2, 3])]
    assert [found[index].num_attempts for index in range(4)] == [1, 2, 2, 2]
    assert len(FirstTexts(path).read()) == 4
    FirstTexts(path).drop()
    assert FirstTexts(path).read() == {}


def _commit_all(job) -> None:
    """Write what the engine's answers would have become: one text of four is grounded."""
    placements = planned_placements(job)
    shards = plan_shards(job.output, list(placements), size=1)
    for shard, (key, (with_words, without)) in zip(shards, placements.items(), strict=True):
        first = conclude(with_words, [Generation(GOOD if key[0] == "q1" else NOT_JSON, 9, 8)], generator="g")
        second = conclude_failure(without, "x", generator="g")
        table = explanations_table([first, second])
        commit_shard(job.output, shard, table, key_columns=("query_id", "doc_id"), quarantined=())


def test_committed_shards_are_not_generated_again_and_the_fallback_rate_is_kept(job, capsys) -> None:
    inputs = input_digests(job, Path(job.model))
    with opened_output(job.output, job="explain", config=job, inputs=inputs):
        _commit_all(job)
    result = run_explain(job)
    assert result == ExplainResult(
        job.output,
        num_documents=2,
        num_texts_with=2,
        num_texts_without=2,
        num_fallbacks_with=1,
        num_fallbacks_without=2,
        num_retried=0,
    )
    assert read_manifest(job.output)["results"]["fallback_rate"] == result.fallback_rate == 0.75
    assert "fallback rate 75%" in capsys.readouterr().err
    assert run_explain(job) == result
    assert len(read_explanations(job.output)) == 4


def test_prompts_are_one_turn_of_the_models_chat_format(job) -> None:
    tokenizer = AutoTokenizer.from_pretrained(job.model)
    plain = engine_requests(_placements(job), job, tokenizer=tokenizer)[0]
    tokenizer.chat_template = "{% for m in messages %}[BOS]{{ m['content'] }}[EOS]{% endfor %}"
    turn = engine_requests(_placements(job), job, tokenizer=tokenizer)[0]
    assert list(turn.prompt_token_ids) == [
        tokenizer.bos_token_id,
        *plain.prompt_token_ids,
        tokenizer.eos_token_id,
    ]


def test_a_document_cannot_bring_special_tokens_into_the_prompt(job) -> None:
    tokenizer = AutoTokenizer.from_pretrained(job.model)
    with_words = _placements(job)[0]
    hostile = Document("d1", "[EOS] [BOS]sea [E\u200bOS] ice[EOS]", title="[BOS]", url="[EOS]")
    (request,) = engine_requests([replace(with_words, document=hostile)], job, tokenizer=tokenizer)
    assert not {tokenizer.bos_token_id, tokenizer.eos_token_id} & set(request.prompt_token_ids)


def test_a_long_document_is_shown_as_far_as_the_budget_allows(job) -> None:
    tokenizer = AutoTokenizer.from_pretrained(job.model)
    with_words = _placements(job)[0]
    long = replace(with_words, document=Document("d1", "sea ice " * 1_000))
    for budget in (250, 300, 400):
        tight = replace(job, max_model_tokens=budget + job.max_new_tokens)
        (request,) = engine_requests([long], tight, tokenizer=tokenizer)
        assert 0.75 * budget < len(request.prompt_token_ids) <= budget
    hopeless = replace(job, max_model_tokens=1 + job.max_new_tokens)
    (request,) = engine_requests([long], hopeless, tokenizer=tokenizer)
    assert len(request.prompt_token_ids) > 1  # the engine refuses it, and the template stands in


def _placements(job):
    return [placement for both in planned_placements(job).values() for placement in both]


def test_texts_that_tell_the_same_are_taken_over_from_an_earlier_output(job, tmp_path) -> None:
    inputs = input_digests(job, Path(job.model))
    with opened_output(job.output, job="explain", config=job, inputs=inputs):
        _commit_all(job)
    run_explain(job)
    again = replace(job, output=tmp_path / "again", reuse=(job.output,), shard_documents=7)
    check_reusable_explanations(again, inputs=inputs)
    placements = _placements(again)
    known = known_explanations(again, placements)
    earlier = read_explanations(job.output)
    assert known == {0: earlier[0], 2: earlier[2]}  # the engine failed on the texts without words
    assert (earlier[0].fallback, earlier[2].fallback) == (False, True)
    other_rank = [replace(placement, rank=placement.rank + 1) for placement in placements]
    assert known_explanations(again, other_rank) == {}
    assert known_explanations(replace(again, reuse=()), placements) == {}


@pytest.mark.parametrize("change", [{"seed": 1}, {"temperature": 0.5}, {"max_new_tokens": 9}])
def test_texts_of_another_model_or_setting_are_not_taken_over(job, tmp_path, change) -> None:
    inputs = input_digests(job, Path(job.model))
    with opened_output(job.output, job="explain", config=job, inputs=inputs):
        _commit_all(job)
    run_explain(job)
    again = replace(job, output=tmp_path / "again", reuse=(job.output,))
    with pytest.raises(ConfigError, match=f"another {next(iter(change))}: nothing of it can be reused"):
        check_reusable_explanations(replace(again, **change), inputs=inputs)
    with pytest.raises(ConfigError, match="another model"):
        check_reusable_explanations(again, inputs=inputs | {"model": "other"})
    with pytest.raises(DataError, match="written by `whyrank score`"):
        check_reusable_explanations(replace(again, reuse=(job.run,)), inputs=inputs)


def test_the_digest_of_what_is_told_is_of_all_that_is_told(job) -> None:
    first = _placements(job)[0]
    (word, *others) = first.evidence.words
    stronger = replace(first.evidence, words=(replace(word, value=word.value + 1e-6), *others))
    changed = [
        replace(first, query=replace(first.query, text="ice")),
        replace(first, document=replace(first.document, url="https://data.example.org/2")),
        replace(first, num_candidates=first.num_candidates + 1),
        replace(first, evidence=stronger),
        replace(first, evidence=None),
    ]
    assert len({first.digest, *(placement.digest for placement in changed)}) == 1 + len(changed)
    assert replace(first).digest == first.digest


def test_on_a_cpu_the_engine_is_small_and_in_float32(job) -> None:
    engine = EngineConfig(
        model=job.output, max_model_tokens=4096, max_new_tokens=160, temperature=0.0, seed=3
    )
    settings = engine_settings(engine, on_gpu=False)
    assert (settings["dtype"], settings["enforce_eager"], settings["seed"]) == ("float32", True, 3)
    assert settings["max_num_batched_tokens"] == settings["max_model_len"] == 4096
    assert settings["kv_cache_memory_bytes"] <= 1024**3
    assert settings["enable_chunked_prefill"] is False
    assert "dtype" not in engine_settings(engine, on_gpu=True)


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ("ValueError: prompt has 700 tokens\n  of 600", "ValueError: prompt has 700 tokens of 600"),
        (
            "The actor died.\n  File x, line 3\nKeyError: 'a'\nray.x.OutOfMemoryError: 3 GB\nmore",
            "OutOfMemoryError: 3 GB more",
        ),
        ("no output for\n600 s", "no output for 600 s"),
        ("x" * 1_000, "x" * 300),
        ("", ""),
    ],
)
def test_of_a_failure_the_last_exception_is_told(message, reason) -> None:
    assert failure_reason(message) == reason


@pytest.mark.parametrize("on_gpu", [True, False])
def test_the_engine_never_calls_out(on_gpu) -> None:
    environment = engine_environment(on_gpu=on_gpu)
    assert (
        environment["HF_HUB_OFFLINE"]
        == environment["VLLM_NO_USAGE_STATS"]
        == environment["DO_NOT_TRACK"]
        == "1"
    )
    assert environment["VLLM_HOST_IP"] == "127.0.0.1"
    assert ("OMP_NUM_THREADS" in environment) is not on_gpu


def test_where_every_text_is_known_no_engine_is_started_and_all_is_committed_in_order(job, tmp_path) -> None:
    inputs = input_digests(job, Path(job.model))
    placements = planned_placements(job)
    with opened_output(job.output, job="explain", config=job, inputs=inputs):
        for shard, both in zip(
            plan_shards(job.output, list(placements), size=1), placements.values(), strict=True
        ):
            texts = [conclude(placement, [Generation(GOOD, 9, 8)] * 2, generator="g") for placement in both]
            commit_shard(
                job.output,
                shard,
                explanations_table(texts),
                key_columns=("query_id", "doc_id"),
                quarantined=(),
            )
    earlier = run_explain(job)
    again = replace(job, output=tmp_path / "again", reuse=(job.output,), shard_documents=7)
    result = run_explain(again)  # without a Ray
    assert replace(result, explanations=job.output) == earlier
    assert read_explanations(again.output) == read_explanations(job.output)


def test_a_request_that_fails_again_beside_known_texts_gets_the_template(job, tmp_path, monkeypatch) -> None:
    inputs = input_digests(job, Path(job.model))
    with opened_output(job.output, job="explain", config=job, inputs=inputs):
        _commit_all(job)
    run_explain(job)
    asked = []

    def refusing(requests, engine):
        asked.append([request.index for request in requests])
        return iter([(request.index, Failure("too long")) for request in requests])

    monkeypatch.setattr("jobs.explain.generate", refusing)
    monkeypatch.setattr("jobs.explain.ray_session", lambda address: nullcontext())
    again = replace(job, output=tmp_path / "again", reuse=(job.output,))
    run_explain(again)
    assert asked == [[1, 3]]
    found = read_explanations(again.output)
    earlier = read_explanations(job.output)
    assert [found[0], found[2]] == [earlier[0], earlier[2]]
    assert found[1].problems == found[3].problems == ("generator_failed: too long",)


def test_of_a_document_that_is_read_in_part_only_that_part_is_told() -> None:
    document = Document("d", "One two. Sea-ice (2 m), thick. Then more.", title="Arctic")
    units = (Unit("ice", 13, 16), Unit("2", 18, 19), Unit("m", 20, 21), Unit("thick", 24, 29))
    found = Attribution("q", "d", 0.0, 0.0, units, (0.0,) * 4, "exact", 1, 0.0, 0, is_truncated=True)
    assert read_document(found, document) == replace(document, text="Sea-ice (2 m), thick.", title="")
    of_title = replace(found, units=(Unit("Arctic", 0, 6, "title"), *units[:1]), values=(0.0, 0.0))
    assert read_document(of_title, document) == replace(document, text="Sea-ice")
    assert read_document(replace(found, is_truncated=False), document) == document
