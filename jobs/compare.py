"""Methods x models x seeds trained and compared: two tables with intervals, tests, figures."""

from __future__ import annotations

import dataclasses
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from jobs.cell_records import (
    cell_seconds,
    learning_curves,
    stage_seconds,
    training_seconds,
    truncated_in_test,
    truncated_in_training,
)
from jobs.cells import (
    Cell,
    artefacts,
    check_cells,
    name_and_layers,
    plan_cells,
    run_cells,
    run_folders,
)
from jobs.manifest import (
    OutputState,
    finish_output,
    opened_output,
    prepared_digest,
    read_manifest,
    require_finished,
    write_json,
)
from jobs.ray_session import ray_session
from jobs.run_folders import (
    NamedRun,
    Prepared,
    checked_fold,
    pooled_rankings,
    rankings_of,
    read_named,
    read_prepared,
)
from rerank_core.data.splits import members
from rerank_core.evaluation.baselines import (
    expert_rankings,
    first_stage_rankings,
    floor_rankings,
    ideal_rankings,
    random_rankings,
)
from rerank_core.evaluation.calibration import graded_scores
from rerank_core.evaluation.comparison import FIRST_STAGE
from rerank_core.evaluation.method_comparison import (
    Comparison,
    MethodReliability,
    MethodRun,
    method_reliability,
    method_row,
    method_tests,
)
from rerank_core.evaluation.method_page import (
    COMPARISON_PAGE,
    LABELS,
    PREFERENCE_METRICS,
    RANKING_METRICS,
    TESTED_METRICS,
    draw_comparison,
    render_comparison,
)
from rerank_core.evaluation.preference_metrics import PAIRWISE_ACCURACY, PAIRWISE_LOSS, preference_values
from rerank_core.evaluation.ranking_metrics import evaluate, metrics
from rerank_core.evaluation.text_metrics import text_values
from rerank_core.formats import table_of, write_table
from rerank_core.models.artefact import artefact_digest, read_spec
from rerank_core.models.embedder import load_embedder
from rerank_core.models.pretrained import resolve_model
from rerank_core.records import Run

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from jobs.training_config import CompareJob
    from rerank_core.evaluation.ranking_metrics import QueryValues
    from rerank_core.records import Candidate, Ranking

logger = logging.getLogger("whyrank.compare")

NUM_RANDOM_ORDERS = 10
NUM_EXPERT_ORDERS = 5
BEFORE_MODELS = ("floor", "random", FIRST_STAGE)
"""The rows of a table that stand above those of the models; the ideal stands below."""

PER_QUERY = {
    "query_id": pa.string(),
    "model": pa.string(),
    "method": pa.string(),
    "seed": pa.int64(),
    "metric": pa.string(),
    "value": pa.float64(),
}


@dataclass(frozen=True, slots=True)
class CompareResult:
    """Where the page is, and whether this command made it."""

    page: Path
    state: OutputState


@dataclass(frozen=True, slots=True)
class _Measured:
    """The rankings of every test query, named, and what decides how they are measured."""

    prepared: Prepared
    candidates: Mapping[str, Sequence[Candidate]]  # of the test queries
    runs: Mapping[tuple[str, str, int], Mapping[str, Ranking]]  # by model, method, seed
    num_quarantined: int  # (query, run) that got no finite score and stand in the order of the first stage


def run_compare(config: CompareJob) -> CompareResult:
    """Train and score the cells that are not finished, and write the tables and figures.

    Raises:
        DataError: the prepared folder is unfinished, or a fold has nothing to learn from.
        ConfigError: two models share a label, nothing goes by a model's name, or a setting does not fit.
        JobError: cells failed for good; the others are kept.
        OutputConflictError: the output folder belongs to other settings or inputs.
    """
    require_finished(config.prepared, job="prepare")
    placed = with_absolute_paths(config)
    cells = plan_cells(placed)
    check_cells(placed, cells)
    compared = _compared_settings(config)
    with opened_output(
        config.output, job="compare", config=config, inputs={"prepared": prepared_digest(config.prepared)}
    ) as state:
        page = config.output / COMPARISON_PAGE
        if state == "finished" and read_manifest(config.output)["results"]["compared"] == compared:
            logger.info("%s is finished: nothing to do", config.output)
            return CompareResult(page, state)
        with ray_session(config.address):
            run_cells(placed, cells)
        logger.info("measuring the runs of %d cells", len(cells))
        measured = _measure(config, cells)
        runs = _method_runs(config, measured)
        comparison = _compared(config, cells, measured=measured, runs=runs)
        _write(config.output, comparison, runs=runs)
        results = {"page": COMPARISON_PAGE, "cells": len(cells), "compared": compared}
        finish_output(config.output, results=results)
    show_comparison(comparison, console=Console())
    return CompareResult(page, "new" if state == "new" else "resumed")


def with_absolute_paths(config: CompareJob) -> CompareJob:
    """Return a job whose folders mean the same in every process of a cluster."""
    models = []
    for model in config.models:
        name, num_layers = name_and_layers(model)
        folder = str(Path(name).resolve()) if Path(name).is_dir() else name
        models.append(folder if num_layers is None else f"{folder}:{num_layers}")
    return dataclasses.replace(
        config,
        prepared=config.prepared.resolve(),
        output=config.output.resolve(),
        models=tuple(models),
    )


def _compared_settings(config: CompareJob) -> dict[str, Any]:
    """Return what decides the page besides the settings that a cell is trained with, as JSON holds it."""
    settings = {
        item.name: getattr(config, item.name)
        for item in dataclasses.fields(config)
        if item.metadata.get("compared", False)
    }
    text_digest = artefact_digest(resolve_model(config.text_model))
    found: dict[str, Any] = json.loads(json.dumps(settings | {"text_digest": text_digest}))
    return found


def show_comparison(comparison: Comparison, *, console: Console) -> None:
    """Print the means of both tables; the page has the intervals."""
    seeds = "one seed" if len(comparison.seeds) == 1 else f"{len(comparison.seeds)} seeds"
    title = f"{comparison.num_queries} test queries of {comparison.collection}, {seeds}"
    for columns in (PREFERENCE_METRICS, RANKING_METRICS):
        table = Table(title=escape(title), box=SIMPLE_HEAD, padding=(0, 1, 0, 0))  # fits 80 columns
        for name in ("model", "method", *(LABELS[column].replace(" ", "\n") for column in columns)):
            table.add_column(name, no_wrap=True)
        for row in comparison.rows:
            means = [f"{row.values[name].mean:.3f}" if name in row.values else "–" for name in columns]
            table.add_row(escape(row.model), escape(row.method), *means)
        console.print(table)


def _measure(config: CompareJob, cells: Sequence[Cell]) -> _Measured:
    """Return the test queries' rankings: of the baselines, and of each model, method and seed."""
    prepared = read_prepared(config.prepared, folds=sorted({cell.fold for cell in cells}))
    tested = {q: prepared.candidates[q] for split in prepared.folds.values() for q in members(split)["test"]}
    runs: dict[tuple[str, str, int], Mapping[str, Ranking]] = {
        ("", "floor", 0): floor_rankings(tested, prepared.qrels),
        ("", FIRST_STAGE, 0): first_stage_rankings(tested),
        ("", "ideal", 0): ideal_rankings(tested, prepared.qrels),
    }
    for order in range(NUM_RANDOM_ORDERS):
        runs["", "random", order] = random_rankings(tested, rng=np.random.default_rng(order))
    num_quarantined = 0
    for (model, method, seed), folders in _folders(config, cells).items():
        run = _read_run(_run_name(model, method, seed), folders, config=config, prepared=prepared)
        runs[model, method, seed] = pooled_rankings(run, prepared)
        num_quarantined += run.num_quarantined
    return _Measured(prepared, tested, runs, num_quarantined)


def _folders(config: CompareJob, cells: Sequence[Cell]) -> dict[tuple[str, str, int], list[Path]]:
    """Return the run folders of each model, method and seed: one per fold."""
    folders: dict[tuple[str, str, int], list[Path]] = {}
    for cell in cells:
        for method, folder in run_folders(config, cell).items():
            folders.setdefault((cell.model, method, cell.seed), []).append(folder)
    return folders


def _read_run(name: str, folders: Sequence[Path], *, config: CompareJob, prepared: Prepared) -> NamedRun:
    fold_by_folder = {folder: checked_fold(name, folder, prepared=config.prepared) for folder in folders}
    return read_named(name, folders, fold_by_folder=fold_by_folder, prepared=prepared)


def _method_runs(config: CompareJob, measured: _Measured) -> list[MethodRun]:
    """Return every method measured, in the order of the tables' rows: the ideal last."""
    ranking_metrics = [
        m for m in metrics(relevant_from=measured.prepared.relevant_from) if m.name in RANKING_METRICS
    ]
    texts = _text_values(config, measured)
    values_by_seed: dict[tuple[str, str], dict[int, dict[str, QueryValues]]] = {}
    for (model, method, seed), rankings in measured.runs.items():
        qrels = measured.prepared.qrels
        found = evaluate(rankings, qrels, measured=ranking_metrics)
        found |= preference_values(rankings, qrels) | texts[_run_name(model, method, seed)]
        if not model:
            del found[PAIRWISE_LOSS]  # these scores are no logits of anything
        values_by_seed.setdefault((model, method), {})[seed] = found
    runs = [MethodRun(model, method, values) for (model, method), values in values_by_seed.items()]
    above = sorted((run for run in runs if run.method in BEFORE_MODELS), key=_place)
    of_models = [run for run in runs if run.model]
    return [*above, *of_models, *(run for run in runs if run.method == "ideal")]


def _place(run: MethodRun) -> int:
    return BEFORE_MODELS.index(run.method)


def _run_name(model: str, method: str, seed: int) -> str:
    return f"{model} {method} {seed}"


def _text_values(config: CompareJob, measured: _Measured) -> dict[str, dict[str, QueryValues]]:
    documents = {
        candidate.document.doc_id: candidate.document
        for found in measured.candidates.values()
        for candidate in found
    }
    runs = [Run(_run_name(*key), rankings) for key, rankings in measured.runs.items()]
    experts = [
        expert_rankings(measured.candidates, measured.prepared.qrels, rng=np.random.default_rng(order))
        for order in range(NUM_EXPERT_ORDERS)
    ]
    return text_values(
        runs,
        experts,
        documents=documents,
        embedder=load_embedder(config.text_model),
        depth=config.text_depth,
    )


def _compared(
    config: CompareJob, cells: Sequence[Cell], *, measured: _Measured, runs: Sequence[MethodRun]
) -> Comparison:
    bootstrap: dict[str, Any] = {"num_samples": config.num_samples, "seed": 0}
    rows = [method_row(run, metrics=[*PREFERENCE_METRICS, *RANKING_METRICS], **bootstrap) for run in runs]
    tested = [run for run in runs if run.model or run.method == FIRST_STAGE]
    summary = json.loads((config.prepared / "summary.json").read_text(encoding="utf-8"))
    return Comparison(
        collection=summary["collection"],
        num_queries=len(measured.candidates),
        num_preference_queries=len(runs[0].seed_means(PAIRWISE_ACCURACY)),
        num_folds=summary["num_folds"],
        num_candidates=float(np.mean([len(found) for found in measured.candidates.values()])),
        methods=config.methods,
        models=tuple(dict.fromkeys(cell.model for cell in cells)),
        seeds=config.seeds,
        patience=config.patience,
        num_folds_without_choice=len({cell.fold for cell in cells if not cell.can_choose_epochs}),
        rows=tuple(rows),
        tests=tuple(t for metric in TESTED_METRICS for t in method_tests(tested, metric=metric, **bootstrap)),
        reliability=tuple(_reliability(config, cells, measured=measured)),
        seconds=training_seconds(config, cells),
        stage_seconds=stage_seconds(config, cells),
        cell_seconds=tuple(cell_seconds(config, cell) for cell in cells),
        curves=learning_curves(config, cells),
        truncated_in_training=truncated_in_training(cells),
        truncated_in_test=truncated_in_test(config, cells),
        num_quarantined=measured.num_quarantined,
        text_model=config.text_model,
        text_depth=config.text_depth,
        num_samples=config.num_samples,
    )


def _reliability(
    config: CompareJob, cells: Sequence[Cell], *, measured: _Measured
) -> Iterator[MethodReliability]:
    qrels = measured.prepared.qrels
    max_grade = max(grade for grades in qrels.values() for grade in grades.values())
    graded: dict[tuple[str, str], list[Any]] = {}
    for cell in cells:
        tested = members(measured.prepared.folds[cell.fold])["test"]
        for method, artefact in artefacts(config, cell).items():
            rankings = rankings_of(measured.runs[cell.model, method, cell.seed], tested)
            scores, targets = graded_scores(rankings, qrels, max_grade=max_grade)
            calibration = read_spec(artefact).calibration
            graded.setdefault((cell.model, method), []).append((scores, targets, calibration))
    for (model, method), found in graded.items():
        yield method_reliability(model, method, found)


def _write(output: Path, comparison: Comparison, *, runs: Sequence[MethodRun]) -> None:
    rows = [
        (query_id, run.model, run.method, seed, metric, value)
        for run in runs
        for seed, values in run.values_by_seed.items()
        for metric, by_query in values.items()
        for query_id, value in sorted(by_query.items())
    ]
    write_table(table_of(rows, PER_QUERY), output / "per_query.parquet")
    write_json(output / "comparison.json", dataclasses.asdict(comparison))
    pictures = draw_comparison(comparison)
    for name, png in pictures.items():
        (output / name).write_bytes(png)
    (output / COMPARISON_PAGE).write_text(render_comparison(comparison, pictures=pictures), encoding="utf-8")
