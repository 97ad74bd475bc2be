"""What a worker trains, and what it leaves: the parts that need no second process."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from transformers import LlamaConfig, LlamaModel

from jobs.stage import StageTask, TrainingData, Worker, golden_pairs, stage_examples, start_scorer
from jobs.train import read_log
from jobs.train_worker import (
    _check_export,
    checkpoint_layers,
    disable_dropout,
    refuse_uneven_passes,
    stage_calibration,
    trained_scorer,
    with_adapters,
)
from rerank_core.errors import ConfigError, JobError
from rerank_core.evaluation.calibration import fit_platt
from rerank_core.models.artefact import load_artefact, save_artefact
from rerank_core.models.build import load_backbone, load_config
from rerank_core.models.scorer import pad
from rerank_core.training.list_model import ListModel

if TYPE_CHECKING:
    from rerank_core.models.scorer import LanguageModelScorer
    from rerank_core.training.batching import RankingExample


def test_without_dropout_a_model_in_training_scores_as_it_does_afterwards(
    task: StageTask, data: TrainingData
) -> None:
    scorer = start_scorer(task)
    pairs = golden_pairs(data, seed=0)[:4]
    scores = scorer.score_pairs(pairs)
    scorer.model.train()
    assert scorer.score_pairs(pairs) != pytest.approx(scores, abs=1e-4)
    disable_dropout(scorer.model)
    assert scorer.score_pairs(pairs) == pytest.approx(scores, abs=1e-5)


def test_a_rate_of_dropout_that_is_a_number_of_a_module_is_set_to_zero_too() -> None:
    config = LlamaConfig(
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        vocab_size=9,
        attention_dropout=0.5,
    )
    model = LlamaModel(config).train()
    ids = torch.arange(9).unsqueeze(0)
    first = model(input_ids=ids).last_hidden_state
    assert not torch.allclose(model(input_ids=ids).last_hidden_state, first, atol=1e-4)
    disable_dropout(model)
    assert torch.equal(model(input_ids=ids).last_hidden_state, model(input_ids=ids).last_hidden_state)


def test_under_zero_3_a_list_beyond_the_token_budget_is_refused_by_name(
    task: StageTask, data: TrainingData
) -> None:
    scorer = start_scorer(task)
    examples = stage_examples(task, data, scorer, worker=Worker(0, 1))
    passes = {"can_pack": scorer.model.can_pack, "pad_id": scorer.tokenizer.pad_token_id}
    refuse_uneven_passes(task, examples, **passes)
    with pytest.raises(ConfigError, match=r"more than --max-tokens-per-batch 32, and --zero-stage 3"):
        refuse_uneven_passes(replace(task, max_tokens_per_batch=32), examples, **passes)


# --- adapters


def test_fresh_adapters_change_no_score_and_leave_only_themselves_and_the_head_to_train(
    task: StageTask, data: TrainingData
) -> None:
    scorer = start_scorer(task)
    pairs = golden_pairs(data, seed=0)[:6]
    scores = scorer.score_pairs(pairs)
    with_adapters(scorer.model, rank=2)
    assert scorer.score_pairs(pairs) == pytest.approx(scores, abs=1e-5)
    trained = {name for name, weight in scorer.model.named_parameters() if weight.requires_grad}
    assert {name for name in trained if "lora_" not in name} == {"head.weight", "head.bias"}
    assert len(trained) > 2


def with_trained_adapters(task: StageTask) -> LanguageModelScorer:
    scorer = start_scorer(task)
    with_adapters(scorer.model, rank=2)
    with torch.no_grad():
        for name, weight in scorer.model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.3, generator=torch.Generator().manual_seed(0))
    return scorer


def test_merged_adapters_score_as_the_adapters_did_in_training(task: StageTask, data: TrainingData) -> None:
    task = replace(task, lora_rank=2)
    start, trained = start_scorer(task), with_trained_adapters(task)
    pairs = golden_pairs(data, seed=0)[:6]
    merged = trained_scorer(task, start, ListModel(trained.model).state_dict())
    assert merged.score_pairs(pairs) == pytest.approx(trained.score_pairs(pairs), abs=1e-4)
    assert merged.score_pairs(pairs) != pytest.approx(start.score_pairs(pairs), abs=1e-2)
    assert not any("lora" in name for name in merged.model.state_dict())


def test_weights_trained_in_half_precision_are_kept_in_single_precision(task: StageTask) -> None:
    start = start_scorer(task)
    half = {name: tensor.bfloat16() for name, tensor in ListModel(start.model).state_dict().items()}
    trained = trained_scorer(task, start, half)
    assert {weight.dtype for weight in trained.model.parameters()} == {torch.float32}


def test_kept_adapters_lie_beside_the_start_weights_and_score_the_same_when_loaded(
    task: StageTask, data: TrainingData, tmp_path: Path
) -> None:
    task = replace(task, lora_rank=2, keeps_adapter=True)
    start, trained = start_scorer(task), with_trained_adapters(task)
    kept = trained_scorer(task, start, ListModel(trained.model).state_dict())
    pairs = golden_pairs(data, seed=0)[:6]
    save_artefact(kept, tmp_path / "kept", head="linear", golden=pairs, provenance={})
    loaded = load_artefact(tmp_path / "kept")
    assert loaded.score_pairs(pairs) == pytest.approx(trained.score_pairs(pairs), abs=1e-4)
    assert (tmp_path / "kept" / "adapter" / "adapter_model.safetensors").is_file()
    shutil.rmtree(tmp_path / "kept" / "adapter")
    without = load_backbone(tmp_path / "kept", load_config(tmp_path / "kept")).state_dict()
    for name, weight in start.model.backbone.state_dict().items():
        torch.testing.assert_close(without[name], weight)


def test_recomputed_layers_give_the_same_gradients(task: StageTask, data: TrainingData) -> None:
    gradients = []
    for recompute in (False, True):
        scorer = start_scorer(task)
        disable_dropout(scorer.model.train())
        if recompute:
            checkpoint_layers(scorer.model)
        inputs = pad([scorer.encoder.encode(*pair) for pair in golden_pairs(data, seed=0)[:3]], pad_id=0)
        scorer.model(**inputs).sum().backward()
        gradients.append([p.grad for p in scorer.model.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(gradients[1]) > 0
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed)


def test_an_export_that_scores_otherwise_than_the_trained_model_is_refused(
    task: StageTask, data: TrainingData
) -> None:
    scorer = start_scorer(task)
    (example, *_) = stage_examples(task, data, scorer, worker=Worker(0, 1)).train
    trained = scorer.score_encoded(example.documents)
    _check_export(task, scorer, example, trained)
    with pytest.raises(JobError, match=r"differs by 0\.01 from the trained one"):
        _check_export(task, scorer, example, [score + 0.01 for score in trained])


# --- calibration


def held_out(task: StageTask, data: TrainingData) -> list[RankingExample]:
    return stage_examples(task, data, start_scorer(task), worker=Worker(0, 1)).held_out


def test_the_calibration_is_that_of_all_candidates_of_the_dev_queries(
    task: StageTask, data: TrainingData
) -> None:
    examples = held_out(task, data)
    scores = [[grade / 2 - 1.0 for grade in example.grades] for example in examples]
    targets = [grade / 9 for example in examples for grade in example.grades]  # 9 is the highest grade
    expected = fit_platt([score for own in scores for score in own], targets)
    assert stage_calibration(task, scores, examples) == expected


def test_scores_that_fall_as_grades_rise_get_no_calibration_and_a_line_in_the_log(
    task: StageTask, data: TrainingData
) -> None:
    examples = held_out(task, data)
    scores = [[-float(grade) for grade in example.grades] for example in examples]
    Path(task.log).parent.mkdir(parents=True, exist_ok=True)
    assert stage_calibration(task, scores, examples) is None
    (line,) = read_log(Path(task.log))
    assert (line["stage"], line["event"]) == ("sft", "not calibrated")
    assert "fall as grades rise" in line["reason"]


def test_the_warm_up_uses_no_judgement_so_it_is_not_calibrated(task: StageTask, data: TrainingData) -> None:
    examples = held_out(task, data)
    scores = [[float(grade) for grade in example.grades] for example in examples]
    assert stage_calibration(replace(task, name="warmup"), scores, examples) is None
