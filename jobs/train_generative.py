"""Train a language model to write rankings, one stage after the other, each under Ray Train and DeepSpeed."""

from __future__ import annotations

import logging
import shutil
from dataclasses import asdict, dataclass, replace
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from jobs.leakage import judged, learnt_from, refuse_other_split
from jobs.manifest import finish_output, folder_digest, opened_output, require_finished
from jobs.ray_session import Need, num_gpus, ray_session, require, require_shared
from jobs.train import fit_stage
from jobs.train_generative_worker import (
    GenerativeTask,
    ListExamples,
    read_examples,
    train_generative_stage,
)
from rerank_core.errors import ConfigError, DataError
from rerank_core.models.artefact import artefact_digest
from rerank_core.models.build import load_config, usable_positions
from rerank_core.models.pretrained import check_model_folder, resolve_model
from rerank_core.models.writer import load_writer_tokenizer, num_tokens

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from jobs.training_config import GenerativeObjective, GenerativeTrainJob

logger = logging.getLogger("whyrank.train_generative")

JOB = "train-generative"


@dataclass(frozen=True, slots=True)
class GenerativeTrainResult:
    """The model folders by the name of their stage, in the order of training."""

    models: Mapping[str, Path]


def run_train_generative(config: GenerativeTrainJob) -> GenerativeTrainResult:
    """Train every stage that is not done yet, and return the model folders.

    Raises:
        WhyrankError: an input is missing or wrong, the cluster is too small, or training failed for good.
    """
    model_folder = resolve_model(config.model)
    inputs = check_inputs(config, model_folder)
    models: dict[str, Path] = {name: config.output / name for name in config.objectives}
    with opened_output(config.output, job=JOB, config=config, inputs=inputs) as state:
        if state == "finished":
            logger.info("%s is finished: nothing to do", config.output)
            return GenerativeTrainResult(models)
        found = check_examples(config, model_folder)
        logger.info(
            "%d queries; %d without two grades left out; %d listed documents cut at %d words",
            len(found.examples), found.num_left_out, found.num_cut, config.max_words,
        )  # fmt: skip
        with ray_session(config.address):
            _train_stages(config, model_folder)
        results = {
            "models": {name: artefact_digest(folder) for name, folder in models.items()},
            "queries": len(found.examples),
            "queries_left_out": found.num_left_out,
            "documents_cut": found.num_cut,
        }
        finish_output(config.output, results=results)
    return GenerativeTrainResult(models)


def check_inputs(config: GenerativeTrainJob, model_folder: Path) -> dict[str, str]:
    """Return the digests of what training reads: the model, the texts, and the training rows of one fold.

    Raises:
        ConfigError: the steps cannot be divided among the workers, the model learnt from another split, is
            no causal language model, or has fewer positions than `max_length`.
        DataError: the prepared folder is unfinished or lacks the fold.
    """
    per_pass = config.num_workers * config.queries_per_pass
    for name, stage in (("sft", config.sft), ("dpo", config.dpo)):
        if name in config.objectives and stage.queries_per_step % per_pass:
            raise ConfigError(
                f"{name}.queries_per_step {stage.queries_per_step} is no multiple of {per_pass}"
                f" ({config.num_workers} workers with {config.queries_per_pass} queries per pass); change it,"
                " --num-workers or --queries-per-pass"
            )
    require_finished(config.prepared, job="prepare")
    here = judged(config.prepared, fold=config.fold)
    refuse_other_split(model_folder, here)
    load_writer_tokenizer(model_folder)
    positions = usable_positions(load_config(model_folder))
    if positions is not None and config.max_length > positions:
        raise ConfigError(
            f"max_length {config.max_length} exceeds the model's {positions} positions; lower --max-length"
        )
    rows = folder_digest(config.prepared / f"fold-{config.fold}" / "train")
    return {"train": rows, "texts": here.texts, "model": artefact_digest(model_folder)}


def check_examples(config: GenerativeTrainJob, model_folder: Path) -> ListExamples:
    """Return what training will learn from, before hours are spent.

    Raises:
        DataError: no query has candidates of two grades, an id cannot stand in a line, or a prompt with its
            answer has more than `max_length` tokens.
    """
    tokenizer = load_writer_tokenizer(model_folder)
    found = read_examples(config, tokenizer)
    if not found.examples:
        raise DataError(
            f"{config.prepared / f'fold-{config.fold}' / 'train'}: no query has candidates of two grades"
            f" among its first {config.num_candidates}; raise --num-candidates"
        )
    for example in found.examples:
        longest = max(num_tokens(tokenizer, example.prompt, a) for a in (example.chosen, example.rejected))
        if longest > config.max_length:
            raise DataError(
                f"prompt and answer of query {example.query_id!r} have {longest} tokens, more than"
                f" {config.max_length}; raise --max-length, or lower --max-words or --num-candidates"
            )
    return found


def _train_stages(config: GenerativeTrainJob, model_folder: Path) -> None:
    gpus = 1.0 if num_gpus() else 0.0  # two workers cannot train on one GPU
    require(Need(num_workers=config.num_workers, gpus=gpus))
    require_shared(config.prepared)
    require_shared(config.output)
    start = model_folder
    for name in config.objectives:
        folder = config.output / name
        if not folder.exists():
            fit_stage(_worker_loop, config, generative_task(config, name, start=start), use_gpu=gpus > 0)
        check_model_folder(folder)
        shutil.rmtree(config.output / "checkpoints" / name, ignore_errors=True)
        start = folder


def generative_task(config: GenerativeTrainJob, name: GenerativeObjective, *, start: Path) -> GenerativeTask:
    """Return a stage that starts from a model folder; its provenance names all judgements learnt from."""
    lineage = {*learnt_from(start), judged(config.prepared, fold=config.fold)}
    return GenerativeTask(
        job=replace(config, prepared=config.prepared.resolve(), output=config.output.resolve()),
        name=name,
        start=str(start.resolve()),
        provenance={
            "model": config.model,
            "stage": name,
            "start_digest": artefact_digest(start),
            "judged": sorted((asdict(one) for one in lineage), key=itemgetter("texts", "split")),
            "fold": config.fold,
            "seed": config.seed,
            "num_workers": config.num_workers,
            "zero_stage": config.zero_stage,
        },
    )


def _worker_loop(settings: dict[str, Any]) -> None:
    """Ray Train calls this on every worker."""
    train_generative_stage(settings["task"])
