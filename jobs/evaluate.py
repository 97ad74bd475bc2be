"""Runs in, metrics beside their baselines out."""

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

from jobs.manifest import (
    OutputState,
    file_digest,
    finish_output,
    folder_digest,
    opened_output,
    prepared_digest,
    require_finished,
    write_json,
)
from jobs.run_folders import (
    NamedRun,
    Prepared,
    checked_fold,
    pooled_rankings,
    rankings_of,
    read_named,
    read_prepared,
)
from rerank_core.data.answers import read_answers
from rerank_core.data.splits import members
from rerank_core.errors import ConfigError
from rerank_core.evaluation.answer_page import ANSWER_PAGE, render_answers
from rerank_core.evaluation.comparison import (
    RESERVED_NAMES,
    MeasuredRun,
    choose_weight,
    compare,
    measure_baselines,
)
from rerank_core.evaluation.explanation_page import EXPLANATION_PAGE, render_explanation_quality
from rerank_core.evaluation.faithfulness_page import FAITHFULNESS_PAGE, render_faithfulness
from rerank_core.evaluation.ranking_metrics import NDCG_BURGES, Metric, evaluate, metrics
from rerank_core.formats import read_documents, read_queries, table_of, write_table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from jobs.attribution_folders import AttributionFolder
    from jobs.config import EvaluateJob
    from jobs.explanation_quality import ExplanationFolder
    from rerank_core.data.answers import ExpertAnswer
    from rerank_core.evaluation.findings import MetricRow, MetricTable
    from rerank_core.evaluation.significance import Interval

logger = logging.getLogger("whyrank.evaluate")

NUM_PERMUTATIONS = 100
PER_QUERY = {"query_id": pa.string(), "run": pa.string(), "metric": pa.string(), "value": pa.float64()}


@dataclass(frozen=True, slots=True)
class EvaluateResult:
    """Where the metrics are, and the content of metrics.json."""

    output: Path
    state: OutputState
    metrics: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class _Evaluation:
    """Everything measured; by run the fusion weight of each fold, and the test queries in quarantine."""

    runs: Sequence[MeasuredRun]
    measured: Sequence[Metric]
    weights: Mapping[str, Mapping[int, float]]
    num_quarantined: Mapping[str, int]


def run_evaluate(config: EvaluateJob) -> EvaluateResult:
    """Evaluate named runs on test queries beside floor, random, first stage and ideal.

    A run folder counts for the test queries of the fold that it was scored for, and for no other query: so a
    model is never tested on what it was trained on, and the folders of a cross-validation, given under one
    name, cover every query exactly once. The fusion weight is the config's, or else chosen on the dev queries
    of each fold, where the run covers them.

    All methods are measured on the same queries: one that `score` put in quarantine, because a score is not a
    number, counts in the order of the first stage, the fallback.

    Attributions are judged by the test queries of the fold whose run they attribute: see
    `jobs.faithfulness`.

    Raises:
        DataError: an input is missing, unfinished or of another prepared folder, two runs cover different
            folds, or a run has every test query of a fold in quarantine.
        ConfigError: a run has a reserved name, or was scored on another split, other texts or candidates.
        OutputConflictError: the output folder belongs to other settings or inputs.
    """
    folders = _named_folders(config.runs)
    require_finished(config.prepared, job="prepare")
    fold_by_folder = {
        folder: checked_fold(name, folder, prepared=config.prepared)
        for name, found in folders.items()
        for folder in found
    }
    folds = [config.fold] if config.fold is not None else sorted(set(fold_by_folder.values()))
    prepared = read_prepared(config.prepared, folds=folds)
    named = [
        read_named(name, found, fold_by_folder=fold_by_folder, prepared=prepared)
        for name, found in folders.items()
    ]
    attributed = _attributed(config)
    inputs = _input_digests(config.prepared, folders, fold_by_folder=fold_by_folder)
    inputs |= {
        f"faithfulness/{run_input(item.name, item.fold)}": folder_digest(
            item.folder, patterns=("data/*.parquet",)
        )
        for item in attributed
    }
    explained = _explained(config)
    inputs |= {
        f"explanations/{item.name}/{place}": folder_digest(item.folder, patterns=("data/*.parquet",))
        for place, item in enumerate(explained)
    }
    answers = _answers(config, explained)
    if config.answers is not None:
        inputs["answers"] = file_digest(config.answers)
    with opened_output(config.output, job="evaluate", config=config, inputs=inputs) as state:
        if state == "finished":
            logger.info("%s is finished: nothing to do", config.output)
            written = json.loads((config.output / "metrics.json").read_text(encoding="utf-8"))
            return EvaluateResult(config.output, state, written)
        evaluation = _evaluate(config, prepared, named=named)
        table = compare(
            evaluation.runs, measured=evaluation.measured, num_samples=config.num_samples, seed=config.seed
        )
        written = _write(config.output, evaluation, table=table, prepared=prepared)
        if attributed:
            _measure_attributed(config, attributed)
        if explained:
            _measure_explained(config, explained, answers)
        headline = {row.name: row.values[NDCG_BURGES].mean for row in table.rows}
        finish_output(config.output, results={NDCG_BURGES: headline})
    show_metrics(table, evaluation.measured, console=Console())
    return EvaluateResult(config.output, state, written)


def _attributed(config: EvaluateJob) -> list[AttributionFolder]:
    if not config.faithfulness:
        return []
    from jobs.attribution_folders import attribution_folders  # torch takes seconds to load

    return attribution_folders(_named_folders(config.faithfulness), prepared=config.prepared)


def _measure_attributed(config: EvaluateJob, attributed: Sequence[AttributionFolder]) -> None:
    """Write faithfulness.json and its page, and print the table of deletions."""
    from jobs.faithfulness import faithfulness_record, measure_faithfulness, show_faithfulness

    tables = measure_faithfulness(
        attributed,
        prepared=config.prepared,
        num_close_ups=config.num_close_ups,
        num_samples=config.num_samples,
        seed=config.seed,
    )
    write_json(config.output / "faithfulness.json", faithfulness_record(tables))
    page = render_faithfulness(tables)
    (config.output / FAITHFULNESS_PAGE).write_text(page, encoding="utf-8")
    show_faithfulness(tables, console=Console())


def _explained(config: EvaluateJob) -> list[ExplanationFolder]:
    if not config.explanations:
        return []
    from jobs.explanation_quality import explanation_folders

    return explanation_folders(_named_folders(config.explanations), prepared=config.prepared)


def _answers(
    config: EvaluateJob, explained: Sequence[ExplanationFolder]
) -> Mapping[tuple[str, str], ExpertAnswer]:
    """Return the answers, and say how many of them are of what was explained."""
    if config.answers is None:
        return {}
    from jobs.expert_answers import num_answered

    answers = read_answers(
        config.answers,
        queries=read_queries(config.prepared / "queries.parquet"),
        documents=read_documents(config.prepared / "corpus.parquet"),
    )
    logger.info(
        "%s: %d of %d answers are of explained documents",
        config.answers,
        num_answered(explained, answers),
        len(answers),
    )
    return answers


def _measure_explained(
    config: EvaluateJob,
    explained: Sequence[ExplanationFolder],
    answers: Mapping[tuple[str, str], ExpertAnswer],
) -> None:
    """Write explanations.json and its page, and print the means; so too beside answers, where there are."""
    from jobs.expert_answers import compare_with_answers, show_answers
    from jobs.explanation_quality import measure_explanations, show_explanation_quality
    from rerank_core.models.embedder import load_embedder  # torch takes seconds to load

    embedder = load_embedder(config.text_model)
    settings: dict[str, Any] = {
        "prepared": config.prepared,
        "embedder": embedder,
        "num_samples": config.num_samples,
        "seed": config.seed,
    }
    if answers:
        beside = compare_with_answers(explained, answers, **settings)
        write_json(config.output / "answers.json", dataclasses.asdict(beside))
        (config.output / ANSWER_PAGE).write_text(render_answers(beside), encoding="utf-8")
        show_answers(beside, console=Console())
    tables = measure_explanations(explained, **settings)
    write_json(config.output / "explanations.json", dataclasses.asdict(tables))
    page = render_explanation_quality(tables)
    (config.output / EXPLANATION_PAGE).write_text(page, encoding="utf-8")
    show_explanation_quality(tables, console=Console())


def _input_digests(
    prepared: Path, folders: Mapping[str, Sequence[Path]], *, fold_by_folder: Mapping[Path, int]
) -> dict[str, str]:
    runs = {
        run_input(name, fold_by_folder[folder]): folder_digest(folder, patterns=("data/*.parquet",))
        for name, found in folders.items()
        for folder in found
    }
    return {"prepared": prepared_digest(prepared), **runs}


def run_input(name: str, fold: int) -> str:
    """Return what a manifest calls a run folder, wherever it lies: the run's name, and the fold it ranks."""
    return f"{name}/fold-{fold}"


def show_metrics(table: MetricTable, measured: Sequence[Metric], *, console: Console) -> None:
    """Print one row per run: means, and the difference from the first stage with its interval."""
    title = (
        f"{table.rows[0].num_queries} queries; in brackets the {table.confidence:.0%} interval of "
        f"the difference from bm25 in {NDCG_BURGES} ({table.num_samples:,} bootstrap samples of queries)"
    )
    caption = " · ".join(metric.label for metric in measured)
    shown = Table(title=title, caption=caption, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))  # fits 80 columns
    for name in ("run", *(metric.name for metric in measured), "difference"):
        header = name.replace("_", "\n").replace("@", "\n@")
        shown.add_column(header, no_wrap=True, min_width=5)
    for row in table.rows:
        means = [f"{row.values[metric.name].mean:.3f}" for metric in measured]
        shown.add_row(escape(row.name), *means, _difference(row))
    console.print(shown)


def _difference(row: MetricRow) -> str:
    if NDCG_BURGES not in row.differences:
        return ""
    found = row.differences[NDCG_BURGES]
    return f"{found.mean:+.3f} [{found.low:+.2f}, {found.high:+.2f}]"


def _named_folders(runs: Sequence[str]) -> dict[str, list[Path]]:
    folders: dict[str, list[Path]] = {}
    for item in runs:
        name, _, folder = item.partition("=")
        if name in RESERVED_NAMES:
            raise ConfigError(f"run name {name!r} is taken by a baseline; choose another NAME in {item!r}")
        folders.setdefault(name, []).append(Path(folder))
    return folders


def _evaluate(config: EvaluateJob, prepared: Prepared, *, named: Sequence[NamedRun]) -> _Evaluation:
    measured = metrics(relevant_from=prepared.relevant_from)
    tested = {q: prepared.candidates[q] for split in prepared.folds.values() for q in members(split)["test"]}
    baselines = measure_baselines(
        tested,
        prepared.qrels,
        measured=measured,
        num_permutations=NUM_PERMUTATIONS,
        rng=np.random.default_rng(config.seed),
    )
    runs = [baselines["floor"], baselines["random"], baselines["first_stage"]]
    weights: dict[str, dict[int, float]] = {}
    for run in named:
        rankings = pooled_rankings(run, prepared)
        runs.append(MeasuredRun(run.name, "run", evaluate(rankings, prepared.qrels, measured=measured)))
        found = _weights(config, run, prepared=prepared)
        if found:
            weights[run.name] = found
            fused = pooled_rankings(run, prepared, weights=found)
            values = evaluate(fused, prepared.qrels, measured=measured)
            runs.append(MeasuredRun(f"bm25+{run.name}", "fusion", values))
    num_quarantined = {run.name: run.num_quarantined for run in named}
    return _Evaluation([*runs, baselines["ideal"]], measured, weights, num_quarantined)


def _weights(config: EvaluateJob, run: NamedRun, *, prepared: Prepared) -> dict[int, float]:
    """The fusion weight of each fold; none at all where the run lacks the dev queries to choose it on."""
    if config.fusion_weight is not None:
        return dict.fromkeys(prepared.folds, config.fusion_weight)
    weights = {}
    for fold, split in prepared.folds.items():
        dev = members(split)["dev"]
        rankings = run.rankings_by_fold[fold]
        if not dev or any(query_id not in rankings for query_id in dev):
            logger.warning(
                "run %r does not cover the dev queries of fold %d: no fusion; score with --split all",
                run.name,
                fold,
            )
            return {}
        weights[fold] = choose_weight(rankings_of(rankings, dev), prepared.candidates, qrels=prepared.qrels)
    return weights


def _write(
    output: Path, evaluation: _Evaluation, *, table: MetricTable, prepared: Prepared
) -> dict[str, Any]:
    rows = [
        (query_id, run.name, metric.name, run.values[metric.name][query_id])
        for run in evaluation.runs
        for metric in evaluation.measured
        for query_id in sorted(run.values[metric.name])
    ]
    write_table(table_of(rows, PER_QUERY), output / "per_query.parquet")
    written: dict[str, Any] = {
        "metrics": [metric.name for metric in evaluation.measured],
        "labels": {metric.name: metric.label for metric in evaluation.measured},
        "gain": table.gain,
        "relevant_from": prepared.relevant_from,
        "folds": list(prepared.folds),
        "num_queries": table.rows[0].num_queries,
        "num_samples": table.num_samples,
        "confidence": table.confidence,
        "rows": [_row(row) for row in table.rows],
        "fusion_weights": {
            name: {str(fold): weight for fold, weight in found.items()}
            for name, found in evaluation.weights.items()
        },
        "quarantined": dict(evaluation.num_quarantined),
    }
    write_json(output / "metrics.json", written)
    return written


def _row(row: MetricRow) -> dict[str, Any]:
    return {
        "name": row.name,
        "kind": row.kind,
        "num_queries": row.num_queries,
        "values": _bounds(row.values),
        "differences": _bounds(row.differences),
    }


def _bounds(intervals: Mapping[str, Interval]) -> dict[str, Any]:
    return {name: dataclasses.asdict(interval) for name, interval in intervals.items()}
