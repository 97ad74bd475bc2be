"""Training under Ray Train and DeepSpeed: all objectives, kills on the way, every ZeRO stage."""

import json
import math
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from itertools import groupby, pairwise
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

import whyrank
from jobs.config import PrepareJob, ScoreJob
from jobs.prepare import run_prepare
from jobs.score import run_score
from jobs.train import read_log, run_train
from jobs.training_config import DpoConfig, RewardModelConfig, SftConfig, TrainJob
from rerank_core.errors import JobError
from rerank_core.formats import read_candidates, read_documents, read_pointwise, read_queries, read_run
from rerank_core.models.artefact import artefact_digest, load_artefact, read_spec
from rerank_core.models.build import build_model
from rerank_core.models.memory import ZeroStage
from rerank_core.models.tiny import save_tiny_causal, save_tiny_encoder
from rerank_core.ranking.contract import is_permutation
from rerank_core.records import Query

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]

NUM_EPOCHS = 12
STILL_AFTER_S = 5.0
KILLED_AFTER_EPOCH = 6.0  # by then Ray Train has registered a checkpoint or more
DPO = DpoConfig(num_epochs=NUM_EPOCHS, learning_rate=1e-3, beta=0.5, queries_per_step=8)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sample") / "prepared"
    run_prepare(PrepareJob(output=folder))
    return folder


@pytest.fixture(scope="module")
def model(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    texts = [d.content for d in read_documents(prepared / "corpus.parquet").values()]
    save_tiny_encoder(folder, texts, seed=0)
    return folder


@pytest.fixture(scope="module")
def trained(
    prepared: Path, model: Path, ray_instance: None, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Every objective in one command; DPO's second worker is killed after its first checkpoint."""
    output = tmp_path_factory.mktemp("train") / "out"
    with killed_at(output / "train_log.jsonl", is_past(KILLED_AFTER_EPOCH), stage="dpo", rank=1):
        assert whyrank.main(command(prepared, model, output)) == 0
    return output


def command(prepared: Path, model: Path, output: Path) -> list[str]:
    settings = {
        **{"sft.num-epochs": 2, "sft.learning-rate": 1e-3, "sft.queries-per-step": 8},
        **{"rm.num-epochs": 2, "rm.learning-rate": 1e-3, "rm.queries-per-step": 8},
        **{"dpo.num-epochs": NUM_EPOCHS, "dpo.learning-rate": 1e-3, "dpo.beta": 0.5},
        **{"dpo.queries-per-step": 8, "ppo.num-epochs": 2, "ppo.queries-per-step": 8},
    }
    given = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    folders = ["--prepared", str(prepared), "--output", str(output), "--model", str(model)]
    objectives = ["--objectives", "sft", "rm", "dpo", "ppo"]
    return ["train", "--recipe", "ppo", *folders, "--max-length", "128", *objectives, *given]


class killed_at:  # noqa: N801 - reads as a phrase
    """Kill one worker of a stage as soon as its log has a line of some kind."""

    def __init__(self, log: Path, moment: Callable[[dict[str, Any]], bool], *, stage: str, rank: int) -> None:
        self._log, self._moment, self._stage, self._rank = log, moment, stage, rank
        self._killer = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> None:
        self._killer.start()

    def __exit__(self, *_: object) -> None:
        self._killer.join(timeout=1)

    def _watch(self) -> None:
        while True:
            lines = [line for line in read_log(self._log) if line["stage"] == self._stage]
            if any(self._moment(line) for line in lines):
                pids = [line["pid"] for line in lines if line.get("rank") == self._rank]
                os.kill(pids[-1], signal.SIGKILL)
                return
            time.sleep(0.02)


def is_past(epoch: float) -> Callable[[dict[str, Any]], bool]:
    """Return what tells the lines of later epochs."""
    return lambda line: line.get("epoch", 0) > epoch


def steps(output: Path, stage: str) -> list[dict[str, Any]]:
    return [
        line for line in read_log(output / "train_log.jsonl") if line["stage"] == stage and "loss" in line
    ]


def curve(output: Path, stage: str) -> list[float]:
    """Return the loss of each step; what was trained again after a kill replaces what came before."""
    loss_by_step = {line["step"]: line["loss"] for line in steps(output, stage)}
    return [loss_by_step[step] for step in sorted(loss_by_step)]


def events(output: Path, name: str) -> list[dict[str, Any]]:
    return [line for line in read_log(output / "train_log.jsonl") if line.get("event") == name]


def test_the_first_loss_of_dpo_is_ln_2(trained: Path) -> None:
    assert steps(trained, "dpo")[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)


def test_dpo_and_ppo_start_from_the_sft_artefact_and_never_change_it(trained: Path) -> None:
    for stage in ("dpo", "ppo"):
        assert read_spec(trained / stage).provenance["start_digest"] == artefact_digest(trained / "sft")


def test_the_reference_is_scored_once_for_dpo_and_ppo_and_the_reward_model_once(trained: Path) -> None:
    kept = {path.name[:16]: path.stat().st_mtime_ns for path in (trained / "frozen_scores").iterdir()}
    reference, reward_model = (artefact_digest(trained / stage)[:16] for stage in ("sft", "rm"))
    assert kept.keys() == {reference, reward_model}
    began = min(path.stat().st_mtime_ns for path in (trained / "tensorboard" / "dpo").iterdir())
    assert kept[reference] < began  # written again neither when DPO was resumed nor for PPO


def test_ppo_begins_with_ratio_1_and_kl_0_and_logs_every_term(trained: Path) -> None:
    first, *later = steps(trained, "ppo")
    assert first["ratio"] == pytest.approx(1.0, abs=1e-6)
    assert first["kl"] == pytest.approx(0.0, abs=1e-6)
    assert all({"policy_loss", "kl", "reward", "clip_share", "ratio"} <= line.keys() for line in later)
    assert later[0]["reward"] == first["reward"]  # the second update on the same rankings


def test_every_stage_measures_the_dev_queries_after_each_epoch(trained: Path) -> None:
    lines = read_log(trained / "train_log.jsonl")
    for stage in ("sft", "rm", "ppo"):
        values = [
            line["held_out_ndcg"] for line in lines if line["stage"] == stage and "held_out_ndcg" in line
        ]
        assert len(values) == 2
        assert all(0.0 < value <= 1.0 for value in values)


def test_every_exported_artefact_scores_as_the_model_in_training(trained: Path) -> None:
    exported = events(trained, "exported")
    assert [event["stage"] for event in exported] == ["sft", "rm", "dpo", "ppo"]
    assert all(event["largest_difference"] <= 1e-4 for event in exported)


def test_steps_can_be_followed_in_tensorboard(trained: Path) -> None:
    for stage in ("sft", "rm", "dpo", "ppo"):
        assert list((trained / "tensorboard" / stage).glob("events.out.tfevents.*"))


def test_training_goes_on_from_the_checkpoint_after_a_worker_is_killed(trained: Path) -> None:
    (resumed,) = events(trained, "resumed")
    assert resumed["stage"] == "dpo"
    assert resumed["step"] > 0
    numbers = [line["step"] for line in steps(trained, "dpo")]
    assert sorted(set(numbers)) == list(range(1, steps(trained, "dpo")[-1]["num_steps"] + 1))
    resumed_at = next(place for place, (a, b) in enumerate(pairwise(numbers), start=1) if b <= a)
    assert numbers[resumed_at:] == list(range(resumed["step"] + 1, numbers[-1] + 1))
    assert numbers[-1] == len(set(numbers))


@pytest.fixture(scope="module")
def uninterrupted(trained: Path, prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """DPO from the same SFT scorer, by two workers that nobody kills."""
    output = tmp_path_factory.mktemp("uninterrupted") / "out"
    run_train(dpo_job(prepared, trained, output))
    return output


def dpo_job(prepared: Path, trained: Path, output: Path) -> TrainJob:
    start = str(trained / "sft")
    return TrainJob(
        prepared=prepared, output=output, model=start, max_length=128, objectives=("dpo",), dpo=DPO
    )


def test_the_loss_curve_of_a_killed_run_is_that_of_an_uninterrupted_one(
    trained: Path, uninterrupted: Path
) -> None:
    assert curve(trained, "dpo") == pytest.approx(curve(uninterrupted, "dpo"), abs=1e-6)


def test_no_checkpoint_is_left_beside_the_artefacts(trained: Path) -> None:
    assert not any((trained / "checkpoints").glob("*"))


def test_the_same_command_again_has_nothing_to_do(trained: Path, prepared: Path, model: Path) -> None:
    before = (trained / "train_log.jsonl").read_bytes()
    assert whyrank.main(command(prepared, model, trained)) == 0
    assert (trained / "train_log.jsonl").read_bytes() == before


def test_scoring_on_ray_gives_the_scores_of_the_artefact(
    trained: Path, prepared: Path, tmp_path: Path
) -> None:
    config = ScoreJob(
        prepared=prepared,
        artefact=trained / "dpo",
        output=tmp_path / "run",
        split="test",
        shard_queries=5,
        trec=True,
    )
    result = run_score(config)
    run = read_run(tmp_path / "run", "dpo")
    documents, queries = (
        read_documents(prepared / "corpus.parquet"),
        read_queries(prepared / "queries.parquet"),
    )
    candidates = read_candidates(prepared / "candidates.parquet", documents)
    scorer = load_artefact(trained / "dpo")
    assert result.num_queries == len(run.rankings)
    for query_id, ranking in run.rankings.items():
        assert is_permutation(ranking, [c.document.doc_id for c in candidates[query_id]])
        alone = scorer.score(queries[query_id], [documents[doc_id] for doc_id in ranking.doc_ids])
        assert list(ranking.scores) == pytest.approx(alone, abs=1e-5)
    assert len((tmp_path / "run" / "run.trec").read_text().splitlines()) == 10 * len(run.rankings)
    shards = sorted((tmp_path / "run" / "data").iterdir())
    lost, kept = shards[1].read_bytes(), shards[0].stat().st_mtime_ns
    shards[1].unlink()  # as if the job had been killed before this commit
    manifest = tmp_path / "run" / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"status": "running"}))
    run_score(config)
    assert shards[1].read_bytes() == lost
    assert shards[0].stat().st_mtime_ns == kept


def test_after_the_driver_is_killed_and_a_checkpoint_damaged_one_worker_repeats_the_same_curve(
    prepared: Path, model: Path, ray_instance: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    arguments = ["--num-workers", "1", "--objectives", "sft", "--sft.num-epochs", str(NUM_EPOCHS)]
    start = ["train", "--prepared", str(prepared), "--model", str(model), "--max-length", "128", *arguments]
    line = [sys.executable, "-m", "whyrank", *start, "--output", str(killed)]
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")  # a cluster that is not asked for stays untouched
    with started(line) as driver:
        wait_for_epoch(killed / "train_log.jsonl", KILLED_AFTER_EPOCH)
        driver.kill()
        driver.wait()
    wait_until_still(killed / "train_log.jsonl")
    damage_newest_checkpoint(killed / "checkpoints" / "sft")
    finished = subprocess.run(line, capture_output=True, text=True, timeout=600, check=False)
    assert finished.returncode == 0, finished.stderr
    (damaged,), (resumed,) = events(killed, "damaged checkpoint"), events(killed, "resumed")
    assert 0 < resumed["step"] < damaged["step"]
    assert f"damaged checkpoint of step {damaged['step']} is passed over" in finished.stderr
    assert whyrank.main([*start, "--output", str(whole)]) == 0
    assert curve(killed, "sft") == curve(whole, "sft")
    assert artefact_digest(killed / "sft") == artefact_digest(whole / "sft")


def wait_until_still(log: Path) -> None:
    """Return when the workers of a killed driver, which live some seconds longer, write no more."""
    size, since = -1, time.monotonic()
    while time.monotonic() - since < STILL_AFTER_S:
        if log.stat().st_size != size:
            size, since = log.stat().st_size, time.monotonic()
        time.sleep(0.1)


def damage_newest_checkpoint(folder: Path) -> None:
    """Cut the end off a file of the newest checkpoint that Ray Train knows; it may be copying another."""
    snapshot = json.loads((folder / "checkpoint_manager_snapshot.json").read_text())
    newest = folder / snapshot["latest_checkpoint_result"]["checkpoint_dir_name"]
    part = min(newest.rglob("*optim_states.pt"))
    part.write_bytes(part.read_bytes()[:-100])


def started(line: list[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def wait_for_epoch(log: Path, epoch: float) -> None:
    deadline = time.monotonic() + 300
    while not any(line.get("epoch", 0) > epoch for line in read_log(log)):
        assert time.monotonic() < deadline, "no epoch ended within 300 s"
        time.sleep(0.1)


def test_a_loss_that_is_not_a_number_ends_the_stage_by_name_and_leaves_the_last_artefact(
    trained: Path, prepared: Path, tmp_path: Path
) -> None:
    config = TrainJob(
        prepared=prepared,
        output=tmp_path / "out",
        model=str(trained / "sft"),
        max_length=128,
        objectives=("rm",),
        rm=RewardModelConfig(num_epochs=1, learning_rate=1e30, warmup_share=0.0),
    )
    with pytest.raises(JobError, match=r"the loss of rm is nan at step \d+; lower its learning rate"):
        run_train(config)
    assert not (tmp_path / "out" / "rm").exists()
    load_artefact(trained / "sft")
    assert [event["event"] for event in events(tmp_path / "out", "started")] == ["started"] * 2  # no restarts


def test_a_stage_without_progress_on_the_dev_queries_ends_and_keeps_its_best_epoch(
    trained: Path, prepared: Path, tmp_path: Path
) -> None:
    config = TrainJob(
        prepared=prepared,
        output=tmp_path / "out",
        model=str(trained / "sft"),
        max_length=128,
        objectives=("rm",),
        rm=RewardModelConfig(num_epochs=NUM_EPOCHS, learning_rate=3e-3, queries_per_step=16),
        patience=2,
    )
    log = tmp_path / "out" / "train_log.jsonl"
    with killed_at(log, lambda line: line.get("event") == "best epoch", stage="rm", rank=0):
        run_train(config)  # the artefact is lost while it is written: its weights are in the checkpoints
    lines = read_log(log)
    values = {line["step"]: line["held_out_ndcg"] for line in lines if "held_out_ndcg" in line}
    (stopped,) = events(tmp_path / "out", "stopped early")  # and no step was made after it
    before, best = events(tmp_path / "out", "best epoch")
    assert before == best
    assert stopped["reason"] == "no better NDCG on the dev queries for 2 epochs"
    assert best["step"] == max(values, key=lambda step: (values[step], -step))
    assert sum(step > best["step"] for step in values) == config.patience
    assert len(values) < NUM_EPOCHS
    found = dev_ndcg(tmp_path / "out" / "rm", prepared)
    assert found == pytest.approx(values[best["step"]], abs=1e-6)
    assert found > values[max(values)] + 1e-5  # so that these are not the weights of the last epoch


def dev_ndcg(artefact: Path, prepared: Path) -> float:
    """Return the mean NDCG on the dev queries, each with its own candidates as the ideal."""
    scorer = load_artefact(artefact)
    documents, queries = (
        read_documents(prepared / "corpus.parquet"),
        read_queries(prepared / "queries.parquet"),
    )
    values = []
    rows = read_pointwise(prepared / "fold-0" / "dev" / "pointwise.parquet")
    for query_id, own in groupby(rows, key=attrgetter("query_id")):
        grades = {row.doc_id: row.grade for row in own}
        scores = scorer.score(queries[query_id], [documents[doc_id] for doc_id in grades])
        gains = 2.0 ** np.array(list(grades.values())) - 1
        discount = 1 / np.log2(np.arange(2, len(gains) + 2))
        if gains.any():
            values.append(gains[np.argsort(scores)[::-1]] @ discount / (np.sort(gains)[::-1] @ discount))
    return float(np.mean(values))


@pytest.mark.parametrize("stage", [*(pytest.param(stage, marks=pytest.mark.slow) for stage in (0, 1)), 2, 3])
def test_adapters_and_either_head_train_under_every_zero_stage_and_score_the_same_when_exported(
    stage: ZeroStage, prepared: Path, causal: Path, ray_instance: None, tmp_path: Path
) -> None:
    head: Literal["linear", "yes_no"] = "yes_no" if stage in (0, 3) else "linear"
    config = TrainJob(
        prepared=prepared,
        output=tmp_path / "out",
        model=str(causal),
        head=head,
        max_length=128,
        objectives=("sft",),
        sft=SftConfig(num_epochs=4, learning_rate=1e-3, queries_per_step=14),
        lora_rank=4,
        lora_export="adapter" if stage == 3 else "merged",
        gradient_checkpointing=stage == 1,
        max_tokens_per_batch=256 if stage == 2 else 8192,
        zero_stage=stage,
        offload_optimizer=stage == 2,
    )
    run_train(config)
    assert steps(tmp_path / "out", "sft")[-1]["step"] == 20
    (exported,) = events(tmp_path / "out", "exported")
    assert exported["largest_difference"] <= 1e-4
    scorer = load_artefact(tmp_path / "out" / "sft")
    documents = read_documents(prepared / "corpus.parquet").values()
    pairs = [(Query("q", "sea ice"), document) for document in documents]
    trained = scorer.score_pairs(pairs)
    start = build_model(causal, head=head, num_layers=None, seed=0)
    assert read_spec(tmp_path / "out" / "sft").head == head
    assert 0.0 < (scorer.model.head.weight - start.head.weight).abs().max() < 0.1
    scorer.model.backbone = start.backbone
    moved = [abs(now - before) for now, before in zip(trained, scorer.score_pairs(pairs), strict=True)]
    assert max(moved) > 1e-2  # by the adapters, as the head is the same


@pytest.fixture(scope="module")
def causal(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("causal")
    texts = [d.content for d in read_documents(prepared / "corpus.parquet").values()]
    save_tiny_causal(folder, [*texts, "yes no " * 500], seed=0)
    return folder


@pytest.mark.parametrize(
    "seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 20))]
)
def test_a_worker_killed_at_any_step_leaves_the_uninterrupted_curve(
    seed: int, trained: Path, uninterrupted: Path, prepared: Path, tmp_path: Path
) -> None:
    chance = random.Random(seed)
    epoch, rank = chance.uniform(0.2, NUM_EPOCHS - 0.5), chance.randrange(2)
    output = tmp_path / "out"
    with killed_at(output / "train_log.jsonl", is_past(epoch), stage="dpo", rank=rank):
        run_train(dpo_job(prepared, trained, output))
    assert len(events(output, "started")) >= 4  # two workers, twice
    assert curve(output, "dpo") == pytest.approx(curve(uninterrupted, "dpo"), abs=1e-6)
