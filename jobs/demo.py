"""Every job in a row on the embedded sample, under one Ray."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape

from jobs.attribute import run_attribute
from jobs.config import AttributeJob, DemoJob, EvaluateJob, ExplainJob, PrepareJob, ReportJob, ScoreJob
from jobs.evaluate import run_evaluate
from jobs.explain import run_explain
from jobs.prepare import run_prepare
from jobs.ray_session import num_gpus, ray_session
from jobs.recipes import small_cpu
from jobs.report import ReportResult, run_report
from jobs.score import run_score
from jobs.train import UNTRAINED, run_train

if TYPE_CHECKING:
    from jobs.training_config import TrainJob

logger = logging.getLogger("whyrank.demo")

FUSION_WEIGHT = 0.5
MAX_EVALS = 200
TOP_K = 3
SHARDS_PER_ACTOR = 3
NUM_ACTORS = 2


@dataclass(frozen=True, slots=True)
class DemoPlan:
    """The configuration of each job of the demo, in the order they run."""

    prepare: PrepareJob
    untrained: TrainJob
    train: TrainJob
    scores: tuple[ScoreJob, ...]
    evaluate: EvaluateJob
    attribute: AttributeJob
    explain: ExplainJob
    report: ReportJob


def run_demo(config: DemoJob) -> ReportResult:
    """Run what is not finished yet, and say where the report is and what it tells."""
    started = time.monotonic()
    with ray_session(config.address):
        plan = demo_plan(config, num_workers=min(NUM_ACTORS, num_gpus()) or NUM_ACTORS)
        run_prepare(plan.prepare)
        run_train(plan.untrained)
        run_train(plan.train)
        for score in plan.scores:
            run_score(score)
        run_evaluate(plan.evaluate)
        run_attribute(plan.attribute)
        run_explain(plan.explain)
        report = run_report(plan.report)
    console = Console(soft_wrap=True)
    page = escape(str(report.html))
    console.print(f"\nDone in {time.monotonic() - started:.0f} s. The report: [bold]{page}[/bold]")
    for line in report.lines:
        console.print(f"  • {line}", markup=False)
    return report


def demo_plan(config: DemoJob, *, num_workers: int) -> DemoPlan:
    """Return the jobs of the demo: one fold of the sample is ranked, its best documents are explained."""
    root, prepared = config.output, config.output / "prepared"
    recipe = replace(
        small_cpu(prepared, root / "train"),
        seed=config.seed,
        num_workers=num_workers,
        address=config.address,
    )
    artefacts = {
        UNTRAINED: root / UNTRAINED / UNTRAINED,
        "sft": root / "train" / "sft",
        "dpo": root / "train" / "dpo",
    }
    runs = {name: root / "runs" / name for name in artefacts}
    scores = tuple(
        ScoreJob(prepared=prepared, artefact=folder, output=runs[name], split="test", address=config.address)
        for name, folder in artefacts.items()
    )
    return DemoPlan(
        prepare=PrepareJob(output=prepared, seed=config.seed),
        untrained=replace(recipe, output=root / UNTRAINED, objectives=()),
        train=recipe,
        scores=scores,
        evaluate=EvaluateJob(
            prepared=prepared,
            output=root / "metrics",
            runs=tuple(f"{name}={folder}" for name, folder in runs.items()),
            fold=0,
            fusion_weight=FUSION_WEIGHT,
            seed=config.seed,
        ),
        attribute=AttributeJob(
            prepared=prepared,
            artefact=artefacts["dpo"],
            run=runs["dpo"],
            output=root / "attributions",
            top_k=TOP_K,
            max_queries=-(-config.max_documents // TOP_K),
            max_documents=config.max_documents,
            max_evals=MAX_EVALS,
            rank_flips=True,
            query_words=True,
            shard_documents=max(1, config.max_documents // (NUM_ACTORS * SHARDS_PER_ACTOR)),
            num_workers=NUM_ACTORS,
            seed=config.seed,
            address=config.address,
        ),
        explain=ExplainJob(
            prepared=prepared,
            run=runs["dpo"],
            attributions=root / "attributions",
            output=root / "explanations",
            contrast=True,
            seed=config.seed,
            address=config.address,
        ),
        report=ReportJob(
            prepared=prepared,
            metrics=root / "metrics",
            run=runs["dpo"],
            attributions=root / "attributions",
            explanations=root / "explanations",
            output=root / "report",
        ),
    )
