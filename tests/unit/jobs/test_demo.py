"""The demo's jobs fit together: each reads what an earlier one writes."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from jobs.config import DemoJob
from jobs.demo import DemoPlan, demo_plan
from jobs.train import stage_names


@pytest.fixture
def plan(tmp_path: Path) -> DemoPlan:
    return demo_plan(DemoJob(output=tmp_path, max_documents=7, seed=5, address="here"), num_workers=2)


def jobs_of(plan: DemoPlan) -> list[Any]:
    """Return the jobs in the order they run."""
    found: list[Any] = []
    for item in fields(plan):
        value = getattr(plan, item.name)
        found += value if isinstance(value, tuple) else [value]
    return found


def test_every_artefact_that_is_scored_is_one_that_training_writes(plan: DemoPlan) -> None:
    written = {job.output / name for job in (plan.untrained, plan.train) for name in stage_names(job)}
    assert {score.artefact for score in plan.scores} == written


def test_every_run_is_evaluated_under_the_name_of_its_stage(plan: DemoPlan) -> None:
    named = dict(run.split("=", 1) for run in plan.evaluate.runs)
    assert {Path(folder) for folder in named.values()} == {score.output for score in plan.scores}
    assert {name: Path(folder) for name, folder in named.items()} == {
        score.artefact.name: score.output for score in plan.scores
    }


def test_the_trained_model_is_explained_on_the_run_that_it_scored(plan: DemoPlan) -> None:
    by_output = {score.output: score for score in plan.scores}
    assert by_output[plan.attribute.run].artefact == plan.attribute.artefact == plan.train.output / "dpo"
    assert plan.explain.run == plan.report.run == plan.attribute.run
    assert plan.explain.attributions == plan.report.attributions == plan.attribute.output
    assert plan.report.explanations == plan.explain.output
    assert plan.report.metrics == plan.evaluate.output


def test_only_test_queries_of_the_fold_that_was_trained_are_scored(plan: DemoPlan) -> None:
    assert {(score.fold, score.split) for score in plan.scores} == {(plan.train.fold, "test")}


def test_every_job_reads_the_prepared_sample_and_writes_below_the_output(
    plan: DemoPlan, tmp_path: Path
) -> None:
    assert plan.prepare.collection == "sample"
    later = jobs_of(plan)[1:]
    assert {job.prepared for job in later} == {plan.prepare.output}
    outputs = [job.output for job in jobs_of(plan)]
    assert len(set(outputs)) == len(outputs)
    assert all(output.is_relative_to(tmp_path) for output in outputs)


def test_seed_and_address_reach_every_job_that_has_them(plan: DemoPlan) -> None:
    for job in jobs_of(plan):
        assert getattr(job, "seed", 5) == 5
        assert getattr(job, "address", "here") == "here"


@pytest.mark.parametrize("max_documents", [1, 12])
def test_the_number_of_explained_documents_is_the_users(tmp_path: Path, max_documents: int) -> None:
    plan = demo_plan(DemoJob(output=tmp_path, max_documents=max_documents), num_workers=2)
    assert plan.attribute.max_documents == max_documents
    assert plan.attribute.shard_documents * plan.attribute.num_workers <= max(2, max_documents)
