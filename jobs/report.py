"""The outputs of the other jobs in, one HTML page with its pictures as files out."""

from __future__ import annotations

import json
import logging
import os
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.evaluate import PER_QUERY, run_input
from jobs.manifest import (
    MANIFEST,
    QUERY_WORDS_FOLDER,
    RANK_FLIPS_FOLDER,
    SHARDS,
    finish_output,
    folder_digest,
    opened_output,
    prepared_digest,
    read_manifest,
    require_finished,
)
from rerank_core.attribution.rank_flip_table import read_rank_flips
from rerank_core.attribution.table import read_attributions
from rerank_core.data.splits import members
from rerank_core.errors import ConfigError, DataError
from rerank_core.evaluation.findings import (
    ExplainedDocument,
    Findings,
    JobRecord,
    MetricRow,
    MetricTable,
    RankedDocument,
    RankedQuery,
    telling_lines,
)
from rerank_core.evaluation.picture_files import draw_pictures
from rerank_core.evaluation.report import render_report
from rerank_core.evaluation.significance import Interval
from rerank_core.explanation.table import read_explanations
from rerank_core.explanation.task import CONTRAST_TEMPLATE
from rerank_core.formats import (
    RUN,
    read_documents,
    read_qrels,
    read_queries,
    read_shards,
    read_split,
    read_table,
    rows_of,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from jobs.config import ReportJob
    from rerank_core.records import Document, Qrels, Query

logger = logging.getLogger("whyrank.report")

PAGE = "report.html"
PICTURES = "pictures"


@dataclass(frozen=True, slots=True)
class ReportResult:
    """Where the page and its pictures are, and the three most telling lines."""

    html: Path
    pictures: tuple[Path, ...]
    lines: tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class _Input:
    """A finished folder with its manifest."""

    folder: Path
    manifest: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class _Prepared:
    documents: Mapping[str, Document]
    queries: Mapping[str, Query]
    qrels: Qrels
    collection: str
    relevant_from: int


def run_report(config: ReportJob) -> ReportResult:
    """Write `report.html`, and its pictures as PNG and as SVG into the folder `pictures` beside it.

    The ranks shown are those of the test queries that the metrics cover.

    Raises:
        DataError: an input is missing, unfinished or broken.
        ConfigError: the inputs do not belong together.
        OutputConflictError: the output folder belongs to other inputs.
    """
    inputs = _finished_inputs(config)
    _refuse_strangers(config, inputs)
    findings = load_findings(config, inputs)
    digests = _input_digests(config, inputs)
    with opened_output(config.output, job="report", config=config, inputs=digests) as state:
        html = config.output / PAGE
        if state == "finished":
            logger.info("%s is finished: nothing to do", config.output)
            names = read_manifest(config.output)["results"]["pictures"]
        else:
            html.write_text(render_report(findings), encoding="utf-8")
            names = _write_pictures(config.output, draw_pictures(findings))
            training = str(inputs["train"].folder) if "train" in inputs else None
            finish_output(config.output, results={"page": PAGE, "pictures": names, "training": training})
    return ReportResult(html, tuple(config.output / name for name in names), telling_lines(findings))


def _write_pictures(output: Path, pictures: Mapping[str, bytes]) -> list[str]:
    """Write the pictures and return where they are, relative to the output folder."""
    (output / PICTURES).mkdir(exist_ok=True)
    for name, content in pictures.items():
        (output / PICTURES / name).write_bytes(content)
    return [f"{PICTURES}/{name}" for name in pictures]


def _finished_inputs(config: ReportJob) -> dict[str, _Input]:
    """Return the input folders by job, in the order in which the jobs ran; training if it is known."""
    folders = {"prepare": config.prepared, "score": config.run, "attribute": config.attributions}
    folders |= {"explain": config.explanations, "evaluate": config.metrics}
    inputs = {job: _Input(folder, require_finished(folder, job=job)) for job, folder in folders.items()}
    scored = inputs["score"].manifest
    problems = []
    for training in _training_folders(config.run, scored):
        try:
            trained = _training_of(scored, training)
        except DataError as error:  # the artefact was moved, came from elsewhere, or was trained anew since
            problems.append(str(error))
        else:
            return {"prepare": inputs.pop("prepare"), "train": trained, **inputs}
    logger.warning("the page leaves the training out: %s", problems[0])
    return inputs


def _training_folders(run: Path, scored: Mapping[str, Any]) -> list[Path]:
    """Return where `whyrank train` may have left a run's artefact: as recorded, or moved with the run."""
    artefact, output = (Path(scored["config"][name]) for name in ("artefact", "output"))
    moved = os.path.normpath(run / os.path.relpath(artefact, output))
    return [artefact.parent, Path(moved).parent]


def _training_of(scored: Mapping[str, Any], folder: Path) -> _Input:
    """Return a training, which must have written the artefact that a run was scored with."""
    manifest = require_finished(folder, job="train")
    if scored["digests"].get("input:artefact") not in manifest["results"].get("artefacts", {}).values():
        raise DataError(f"{folder} did not write the artefact that the run was scored with; score again")
    return _Input(folder, manifest)


def _input_digests(config: ReportJob, inputs: Mapping[str, _Input]) -> dict[str, str]:
    """Return what decides the page: every input's data, and its manifest, which is shown."""
    folders: dict[str, tuple[Path, tuple[str, ...]]] = {
        "prepared": (config.prepared, ("*.parquet", "fold-*/split.parquet", "summary.json")),
        "run": (config.run, SHARDS),
        "attributions": (config.attributions, SHARDS),
        "explanations": (config.explanations, SHARDS),
        "metrics": (config.metrics, ("metrics.json", "per_query.parquet")),
    }
    if "train" in inputs:
        folders["training"] = (inputs["train"].folder, ())
    return {
        name: folder_digest(folder, patterns=(MANIFEST, *patterns))
        for name, (folder, patterns) in folders.items()
    }


def _refuse_strangers(config: ReportJob, inputs: Mapping[str, _Input]) -> None:
    """Check that attributions, explanations and metrics are of the run and the prepared folder given."""
    run = folder_digest(config.run, patterns=SHARDS)
    attributions = folder_digest(config.attributions, patterns=SHARDS)
    prepared = prepared_digest(config.prepared)
    for folder, job, name, digest in (
        (config.attributions, "attribute", "run", run),
        (config.explanations, "explain", "run", run),
        (config.explanations, "explain", "attributions", attributions),
        (config.metrics, "evaluate", "prepared", prepared),
    ):
        if inputs[job].manifest["digests"].get(f"input:{name}") != digest:
            raise ConfigError(
                f"{folder} was made from another --{name} than {getattr(config, name)}; "
                f"pass folders that belong together, or run `whyrank {job}` again"
            )


def _run_name(config: ReportJob, inputs: Mapping[str, _Input]) -> str:
    """Return the name under which the run was evaluated: folders are known by what they hold."""
    manifest, fold = inputs["evaluate"].manifest, inputs["score"].manifest["config"]["fold"]
    digest = folder_digest(config.run, patterns=SHARDS)
    for item in manifest["config"]["runs"]:
        name = str(item.partition("=")[0])
        if manifest["digests"].get(f"input:{run_input(name, fold)}") == digest:
            return name
    raise ConfigError(
        f"{config.metrics} does not evaluate {config.run}, but {', '.join(manifest['config']['runs'])}; "
        f"run `whyrank evaluate` with it"
    )


def load_findings(config: ReportJob, inputs: Mapping[str, _Input]) -> Findings:
    """Return what the page shows."""
    prepared = _read_prepared(config.prepared)
    run_name = _run_name(config, inputs)
    metrics = _read_metrics(config.metrics / "metrics.json")
    ranked = _read_ranked(config.run, prepared)
    values = _read_values(config.metrics / "per_query.parquet", metric=metrics.headline)
    split = read_split(
        config.prepared / f"fold-{inputs['score'].manifest['config']['fold']}" / "split.parquet"
    )
    covered = ranked.keys() & values[run_name].keys()  # a query in quarantine has a value, but no ranking
    tested = [query_id for query_id in members(split)["test"] if query_id in covered]
    if not tested:
        raise ConfigError(
            f"{config.metrics} covers no test query of the fold that {config.run} was scored for; "
            f"pass a run of an evaluated fold"
        )
    return Findings(
        collection=prepared.collection,
        relevant_from=prepared.relevant_from,
        run_name=run_name,
        metrics=metrics,
        queries=tuple(
            RankedQuery(
                query=prepared.queries[query_id],
                documents=ranked[query_id],
                grades=tuple(prepared.qrels[query_id].values()),
                first_stage_value=values[metrics.first_stage.name][query_id],
                value=values[run_name][query_id],
            )
            for query_id in tested
        ),
        explained=_read_explained(config, prepared, ranked=ranked, tested=frozenset(tested)),
        jobs=tuple(_job_record(item) for item in inputs.values()),
    )


def _read_prepared(folder: Path) -> _Prepared:
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    return _Prepared(
        documents=read_documents(folder / "corpus.parquet"),
        queries=read_queries(folder / "queries.parquet"),
        qrels=read_qrels(folder / "qrels.parquet"),
        collection=summary["collection"],
        relevant_from=summary["relevant_from"],
    )


def _read_metrics(path: Path) -> MetricTable:
    written = json.loads(path.read_text(encoding="utf-8"))
    rows = tuple(
        MetricRow(
            name=row["name"],
            kind=row["kind"],
            num_queries=row["num_queries"],
            values={name: Interval(**bounds) for name, bounds in row["values"].items()},
            differences={name: Interval(**bounds) for name, bounds in row["differences"].items()},
        )
        for row in written["rows"]
    )
    return MetricTable(
        metrics=tuple(written["metrics"]),
        rows=rows,
        gain=written["gain"],
        num_samples=written["num_samples"],
        confidence=written["confidence"],
    )


def _read_values(path: Path, *, metric: str) -> dict[str, dict[str, float]]:
    """Return `values[run name][query_id]` of one metric."""
    values: dict[str, dict[str, float]] = {}
    for query_id, run, name, value in rows_of(read_table(path, PER_QUERY)):
        if name == metric:
            values.setdefault(run, {})[query_id] = value
    return values


def _read_ranked(folder: Path, prepared: _Prepared) -> dict[str, tuple[RankedDocument, ...]]:
    """Return every query's documents by rank."""
    columns = ["query_id", "doc_id", "first_stage_rank", "rank", "score"]
    ranked: dict[str, list[RankedDocument]] = {}
    for query_id, doc_id, first_stage_rank, rank, score in rows_of(
        read_shards(folder / "data", RUN).select(columns)
    ):
        grade = prepared.qrels.get(query_id, {}).get(doc_id)
        document = RankedDocument(prepared.documents[doc_id], grade, first_stage_rank, rank, score)
        ranked.setdefault(query_id, []).append(document)
    return {query_id: tuple(sorted(found, key=lambda item: item.rank)) for query_id, found in ranked.items()}


def _read_explained(
    config: ReportJob,
    prepared: _Prepared,
    *,
    ranked: Mapping[str, Sequence[RankedDocument]],
    tested: frozenset[str],
) -> tuple[ExplainedDocument, ...]:
    explanations = read_explanations(config.explanations)
    compared = {(e.query_id, e.doc_id): e for e in explanations if e.template == CONTRAST_TEMPLATE}
    written = {
        (e.query_id, e.doc_id, e.with_attribution): e for e in explanations if e.template != CONTRAST_TEMPLATE
    }
    flips = read_rank_flips(config.attributions / RANK_FLIPS_FOLDER)
    query_words = config.attributions / QUERY_WORDS_FOLDER
    of_queries = {
        (found.query_id, found.doc_id): found
        for found in (read_attributions(query_words) if query_words.is_dir() else ())
    }
    place = {(query_id, item.document.doc_id): item for query_id, found in ranked.items() for item in found}
    return tuple(
        ExplainedDocument(
            query=prepared.queries[attribution.query_id],
            ranked=place[attribution.query_id, attribution.doc_id],
            highest_grade=max(prepared.qrels[attribution.query_id].values()),
            is_tested=attribution.query_id in tested,
            attribution=attribution,
            with_attribution=written.get((attribution.query_id, attribution.doc_id, True)),
            without_attribution=written.get((attribution.query_id, attribution.doc_id, False)),
            above_next=compared.get((attribution.query_id, attribution.doc_id)),
            flip=flips.get((attribution.query_id, attribution.doc_id)),
            of_query=of_queries.get((attribution.query_id, attribution.doc_id)),
        )
        for attribution in read_attributions(config.attributions)
    )


def _job_record(item: _Input) -> JobRecord:
    manifest = item.manifest
    started, finished = (datetime.fromisoformat(manifest[name]) for name in ("started", "finished"))
    return JobRecord(
        job=manifest["job"],
        folder=str(item.folder),
        seed=manifest["seed"],
        commit=manifest["commit"],
        wall_s=(finished - started).total_seconds(),
        finished=manifest["finished"],
        config=json.dumps(manifest["config"], indent=2, ensure_ascii=False),
        versions=manifest["versions"],
        digests=manifest["digests"],
    )
