"""Explain the placement of attributed documents with a language model on Ray Data, shard by shard."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.console import Console

from jobs.generation import EngineConfig, Failure, Request, generate
from jobs.manifest import file_digest, finish_output, folder_digest, opened_output, require_finished
from jobs.progress import progress_bar
from jobs.ray_session import ray_session
from jobs.shards import Key, Shard, commit_shard, pending_shards, plan_shards
from rerank_core.attribution.table import read_attributions
from rerank_core.errors import ConfigError, DataError, JobError
from rerank_core.explanation.evidence import select_evidence
from rerank_core.explanation.explain import (
    MAX_DOCUMENT_CHARS,
    Placement,
    Task,
    build_task,
    conclude,
    conclude_failure,
)
from rerank_core.explanation.table import explanations_table, read_explanations
from rerank_core.formats import RUN, read_documents, read_queries, read_shards, rows_of
from rerank_core.models.pretrained import resolve_model

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from transformers import PreTrainedTokenizerBase

    from jobs.config import ExplainJob
    from rerank_core.records import Explanation, Generation

logger = logging.getLogger("whyrank.explain")

SHARDS = ("data/shard-*.parquet",)
CONDITIONS = (True, False)
"""Every document is explained with its attribution and, for contrast, without."""


@dataclass(frozen=True, slots=True)
class ExplainResult:
    """Where the explanations are, of how many documents, and how many texts are the template's."""

    explanations: Path
    num_documents: int
    num_fallbacks_with: int
    num_fallbacks_without: int

    @property
    def fallback_rate(self) -> float:
        """The share of all explanations whose text is the template's."""
        return (self.num_fallbacks_with + self.num_fallbacks_without) / (len(CONDITIONS) * self.num_documents)


def run_explain(config: ExplainJob) -> ExplainResult:
    """Explain what is not explained yet, and return where the explanations are.

    Raises:
        WhyrankError: an input is missing, wrong or of another run, the cluster is too small, or the engine
            failed for good or answered no request.
    """
    placements = planned_placements(config)
    model = resolve_model(config.model)
    _refuse_long_context(config, model)
    inputs = input_digests(config, model)
    with opened_output(config.output, job="explain", config=config, inputs=inputs) as state:
        if state == "finished":
            logger.info("%s is finished: nothing to do", config.output)
        else:
            _explain_pending(config, placements, model=model)
        result = _result(config.output)
        if state != "finished":
            finish_output(
                config.output,
                results={
                    "documents": result.num_documents,
                    "fallbacks_with_attribution": result.num_fallbacks_with,
                    "fallbacks_without_attribution": result.num_fallbacks_without,
                    "fallback_rate": result.fallback_rate,
                },
            )
    Console(stderr=True).print(_fallback_line(result), highlight=False)
    return result


def _refuse_long_context(config: ExplainJob, model: Path) -> None:
    settings = json.loads((model / "config.json").read_text(encoding="utf-8"))
    longest = settings.get("max_position_embeddings", config.max_model_tokens)
    if config.max_model_tokens > longest:
        raise ConfigError(
            f"max_model_tokens is {config.max_model_tokens}, but {config.model} reads at most {longest}:"
            " lower it"
        )


def input_digests(config: ExplainJob, model: Path) -> dict[str, str]:
    """Return the digests of all that decides the explanations, besides the settings."""
    return {
        "corpus": file_digest(config.prepared / "corpus.parquet"),
        "queries": file_digest(config.prepared / "queries.parquet"),
        "run": folder_digest(config.run, patterns=SHARDS),
        "attributions": folder_digest(config.attributions, patterns=SHARDS),
        "model": folder_digest(model),
    }


def _result(output: Path) -> ExplainResult:
    explanations = read_explanations(output)
    replaced = [explanation.with_attribution for explanation in explanations if explanation.fallback]
    return ExplainResult(
        explanations=output,
        num_documents=len(explanations) // len(CONDITIONS),
        num_fallbacks_with=replaced.count(True),
        num_fallbacks_without=replaced.count(False),
    )


def _fallback_line(result: ExplainResult) -> str:
    return (
        f"explain: fallback rate {result.fallback_rate:.0%} (the template's sentence stands for"
        f" {result.num_fallbacks_with} of {result.num_documents} texts with attributions and"
        f" {result.num_fallbacks_without} of {result.num_documents} without)"
    )


def planned_placements(config: ExplainJob) -> dict[Key, tuple[Placement, ...]]:
    """Return what to explain by (query_id, doc_id), as attributed: one placement per condition.

    Raises:
        DataError: an input folder is missing, unfinished or broken, or does not know an attributed document.
        ConfigError: the attributions belong to another run or corpus.
    """
    require_finished(config.prepared, job="prepare")
    require_finished(config.run, job="score")
    attributed = require_finished(config.attributions, job="attribute")
    _refuse_others(config, attributed["digests"])
    rank_by_key, num_by_query = _ranks(config.run)
    documents = read_documents(config.prepared / "corpus.parquet")
    queries = read_queries(config.prepared / "queries.parquet")
    placements: dict[Key, tuple[Placement, ...]] = {}
    for attribution in read_attributions(config.attributions):
        key = (attribution.query_id, attribution.doc_id)
        if key not in rank_by_key:
            raise DataError(
                f"{config.attributions} attributes {key}, which {config.run} does not rank; attribute again"
            )
        evidence = select_evidence(attribution, k=config.num_words)
        placements[key] = tuple(
            Placement(
                query=queries[attribution.query_id],
                document=documents[attribution.doc_id],
                rank=rank_by_key[key],
                num_candidates=num_by_query[attribution.query_id],
                evidence=evidence if with_attribution else None,
            )
            for with_attribution in CONDITIONS
        )
    if not placements:
        raise DataError(
            f"{config.attributions} holds no attribution, so there is nothing to explain; see its quarantine"
        )
    return placements


def _refuse_others(config: ExplainJob, digests: Mapping[str, str]) -> None:
    given = {
        "run": (config.run, folder_digest(config.run, patterns=SHARDS)),
        "corpus": (config.prepared, file_digest(config.prepared / "corpus.parquet")),
        "queries": (config.prepared, file_digest(config.prepared / "queries.parquet")),
    }
    for name, (folder, digest) in given.items():
        if digests.get(f"input:{name}") != digest:
            raise ConfigError(
                f"{config.attributions} was made from another {name} than that of {folder}; pass folders that"
                " belong together, or run `whyrank attribute` with these first"
            )


def _ranks(run: Path) -> tuple[dict[Key, int], dict[str, int]]:
    """Return the rank by (query_id, doc_id), and the number of ranked documents by query."""
    rank_by_key: dict[Key, int] = {}
    num_by_query: dict[str, int] = {}
    for query_id, doc_id, rank in rows_of(
        read_shards(run / "data", RUN).select(["query_id", "doc_id", "rank"])
    ):
        rank_by_key[query_id, doc_id] = rank
        num_by_query[query_id] = num_by_query.get(query_id, 0) + 1
    return rank_by_key, num_by_query


def _explain_pending(
    config: ExplainJob, placements: Mapping[Key, tuple[Placement, ...]], *, model: Path
) -> None:
    shards = plan_shards(config.output, list(placements), size=config.shard_documents)
    pending = pending_shards(config.output, shards)
    if not pending:
        return
    work = [(shard, placement) for shard in pending for key in shard.keys for placement in placements[key]]
    requests = engine_requests([placement for _, placement in work], config, tokenizer=_load_tokenizer(model))
    engine = EngineConfig(
        model=model.resolve(),
        max_model_tokens=config.max_model_tokens,
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature,
        seed=config.seed,
    )
    num_texts = len(CONDITIONS) * len(placements)
    with ray_session(config.address), progress_bar() as progress:
        bar = progress.add_task(
            "explain: starting the engine", total=num_texts, completed=num_texts - len(work)
        )
        answers = generate(requests, engine)
        if len(pending) == len(shards):  # else an earlier execution had an answer: without one none commits
            answers = once_answered(answers)
        for num_explained in commit_answers(config, work, answers):
            progress.update(bar, advance=num_explained, description="explain: texts")


def once_answered(
    answers: Iterator[tuple[int, Generation | Failure]],
) -> Iterator[tuple[int, Generation | Failure]]:
    """Yield all answers in their order, the first failures only once a request was answered.

    Raises:
        JobError: no request was answered.
    """
    failures: list[tuple[int, Failure]] = []
    for index, answer in answers:
        if isinstance(answer, Failure):
            failures.append((index, answer))
            continue
        yield from failures
        yield index, answer
        yield from answers
        return
    if failures:
        reason = failures[0][1].reason
        raise JobError(
            f"the engine answered none of {len(failures)} requests, so nothing is written; the first reason:"
            f" {reason}; mend the cause and run the same command again, or choose another --model or"
            " --max-model-tokens with another --output"
        )


def commit_answers(
    config: ExplainJob,
    work: Sequence[tuple[Shard, Placement]],
    answers: Iterator[tuple[int, Generation | Failure]],
) -> Iterator[int]:
    """Commit each shard once its last answer is there; yield the number of its explanations."""
    for shard, explanations in whole_shards(work, answers, generator=config.model):
        table = explanations_table(explanations)
        commit_shard(config.output, shard, table, key_columns=("query_id", "doc_id"), quarantined=())
        yield len(explanations)


def whole_shards(
    work: Sequence[tuple[Shard, Placement]],
    answers: Iterator[tuple[int, Generation | Failure]],
    *,
    generator: str,
) -> Iterator[tuple[Shard, list[Explanation]]]:
    """Yield each shard with its explanations, in the order of `work`, once its last answer is there."""
    places: dict[int, list[int]] = {}
    for index, (shard, _) in enumerate(work):
        places.setdefault(shard.index, []).append(index)
    missing = {number: len(indices) for number, indices in places.items()}
    done: dict[int, Explanation] = {}
    for index, answer in answers:
        shard, placement = work[index]
        done[index] = _explanation(placement, answer, generator=generator)
        missing[shard.index] -= 1
        if missing[shard.index] == 0:
            yield shard, [done.pop(place) for place in places[shard.index]]


def _explanation(placement: Placement, answer: Generation | Failure, *, generator: str) -> Explanation:
    if isinstance(answer, Failure):
        return conclude_failure(placement, answer.reason, generator=generator)
    return conclude(placement, answer, generator=generator)


def _load_tokenizer(model: Path) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer  # takes seconds to load

    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
        model, local_files_only=True, trust_remote_code=False
    )
    return tokenizer


def engine_requests(
    placements: Sequence[Placement], config: ExplainJob, *, tokenizer: PreTrainedTokenizerBase
) -> list[Request]:
    """Return one request per placement, in order, with its place as index."""
    budget = config.max_model_tokens - config.max_new_tokens
    return [
        _request(index, placement, tokenizer=tokenizer, budget=budget)
        for index, placement in enumerate(placements)
    ]


def _request(index: int, placement: Placement, *, tokenizer: PreTrainedTokenizerBase, budget: int) -> Request:
    """Return the request for a placement, its document shown as far as `budget` prompt tokens allow.

    A prompt that does not fit even without the document stays too long: the engine refuses it, and the
    template's sentence stands in.
    """
    special_tokens = tuple(tokenizer.get_added_vocab())
    chars = min(MAX_DOCUMENT_CHARS, len(placement.document.text))
    while True:
        task = build_task(placement, special_tokens=special_tokens, max_document_chars=chars)
        token_ids = _prompt_token_ids(task, tokenizer)
        if len(token_ids) <= budget or chars == 0:
            return Request(index, token_ids, task.schema)
        chars = chars * budget // (len(token_ids) + 16)


def _prompt_token_ids(task: Task, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return a prompt as one user turn of the model's chat format, or plain where it has none."""
    if tokenizer.chat_template is None:
        return list(tokenizer.encode(task.prompt))
    turns: list[dict[str, Any]] = [{"role": "user", "content": task.prompt}]
    text = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    return list(tokenizer.encode(str(text), add_special_tokens=False))
