"""Explain the placement of attributed documents with a language model on Ray Data, shard by shard."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

from rich.console import Console

from jobs.first_texts import FirstTexts
from jobs.generation import Request, generate
from jobs.manifest import SHARDS, file_digest, finish_output, folder_digest, opened_output
from jobs.placements import planned_placements
from jobs.progress import progress_bar
from jobs.ray_session import ray_session
from jobs.reuse import check_reusable_explanations, reusable_explanations
from jobs.shards import Key, Shard, commit_shard, pending_shards, plan_shards
from jobs.verified_texts import once_answered, verified
from rerank_core.errors import ConfigError
from rerank_core.explanation.engine import EngineConfig
from rerank_core.explanation.table import explanations_table, read_explanations
from rerank_core.explanation.task import MAX_DOCUMENT_CHARS, Placement, Task, build_task
from rerank_core.models.pretrained import resolve_model

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from transformers import PreTrainedTokenizerBase

    from jobs.config import ExplainJob
    from jobs.verified_texts import Answers
    from rerank_core.records import Explanation

logger = logging.getLogger("whyrank.explain")


@dataclass(frozen=True, slots=True)
class ExplainResult:
    """Where the explanations are, of how many documents, and how many texts are the template's."""

    explanations: Path
    num_documents: int
    num_texts_with: int
    num_texts_without: int
    num_fallbacks_with: int
    num_fallbacks_without: int
    num_retried: int  # texts that were refused and asked for once more

    @property
    def fallback_rate(self) -> float:
        """The share of all explanations whose text is the template's."""
        return (self.num_fallbacks_with + self.num_fallbacks_without) / (
            self.num_texts_with + self.num_texts_without
        )


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
            check_reusable_explanations(config, inputs=inputs)
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
                    "retried": result.num_retried,
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
    conditions = [explanation.with_attribution for explanation in explanations]
    replaced = [explanation.with_attribution for explanation in explanations if explanation.fallback]
    return ExplainResult(
        explanations=output,
        num_documents=len({(explanation.query_id, explanation.doc_id) for explanation in explanations}),
        num_texts_with=conditions.count(True),
        num_texts_without=conditions.count(False),
        num_fallbacks_with=replaced.count(True),
        num_fallbacks_without=replaced.count(False),
        num_retried=sum(explanation.num_attempts > 1 for explanation in explanations),
    )


def _fallback_line(result: ExplainResult) -> str:
    return (
        f"explain: fallback rate {result.fallback_rate:.0%} (the template's sentence stands for"
        f" {result.num_fallbacks_with} of {result.num_texts_with} texts with attributions and"
        f" {result.num_fallbacks_without} of {result.num_texts_without} without; {result.num_retried} were"
        " refused and written anew once)"
    )


def _explain_pending(
    config: ExplainJob, placements: Mapping[Key, tuple[Placement, ...]], *, model: Path
) -> None:
    shards = plan_shards(config.output, list(placements), size=config.shard_documents)
    pending = pending_shards(config.output, shards)
    if not pending:
        return
    work = [(shard, placement) for shard in pending for key in shard.keys for placement in placements[key]]
    asked = [placement for _, placement in work]
    known = known_explanations(config, asked)
    requests = [
        request
        for request in engine_requests(asked, config, tokenizer=_load_tokenizer(model))
        if request.index not in known
    ]
    engine = EngineConfig(
        model=model.resolve(),
        max_model_tokens=config.max_model_tokens,
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature,
        seed=config.seed,
    )
    num_texts = sum(map(len, placements.values()))
    first_texts = FirstTexts(config.output / "first_texts.jsonl")
    # An earlier execution may have had an answer.
    is_first = len(pending) == len(shards) and not known and not first_texts.read()
    if not requests:
        for _ in commit_explained(config, work, known.items()):
            pass
        return
    with ray_session(config.address), progress_bar() as progress:
        bar = progress.add_task(
            "explain: starting the engine", total=num_texts, completed=num_texts - len(work)
        )

        def ask(some: Sequence[Request], attempt: int) -> Answers:
            if attempt == 1:
                answers = generate(some, engine)
                return once_answered(answers) if is_first else answers
            progress.update(bar, description=f"explain: {len(some)} refused texts once more")
            return generate(some, engine, attempt=attempt)

        written = verified(requests, asked, ask=ask, first_texts=first_texts, generator=config.model)
        for num_explained in commit_explained(config, work, chain(known.items(), written)):
            progress.update(bar, advance=num_explained, description="explain: texts")
    first_texts.drop()


def known_explanations(config: ExplainJob, placements: Sequence[Placement]) -> dict[int, Explanation]:
    """Return the explanations that earlier outputs hold, by the place of what they tell."""
    reusable = reusable_explanations(config.reuse)
    return {
        index: reusable[placement.digest]
        for index, placement in enumerate(placements)
        if placement.digest in reusable
    }


def commit_explained(
    config: ExplainJob,
    work: Sequence[tuple[Shard, Placement]],
    explained: Iterable[tuple[int, Explanation]],
) -> Iterator[int]:
    """Commit each shard once its last explanation is there; yield the number of its explanations."""
    for shard, explanations in whole_shards(work, explained):
        table = explanations_table(explanations)
        commit_shard(config.output, shard, table, key_columns=("query_id", "doc_id"), quarantined=())
        yield len(explanations)


def whole_shards(
    work: Sequence[tuple[Shard, Placement]], explained: Iterable[tuple[int, Explanation]]
) -> Iterator[tuple[Shard, list[Explanation]]]:
    """Yield each shard with its explanations, in the order of `work`, once the last of them is there."""
    places: dict[int, list[int]] = {}
    for index, (shard, _) in enumerate(work):
        places.setdefault(shard.index, []).append(index)
    missing = {number: len(indices) for number, indices in places.items()}
    done: dict[int, Explanation] = {}
    for index, explanation in explained:
        shard, _ = work[index]
        done[index] = explanation
        missing[shard.index] -= 1
        if missing[shard.index] == 0:
            yield shard, [done.pop(place) for place in places[shard.index]]


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
