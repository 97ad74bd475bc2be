"""TRL's losses, as we set them, against their closed forms."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers
from torch.nn import functional

from jobs.train_generative_worker import GenerativeTask, build_trainer, read_examples
from jobs.training_config import GenerativeTrainJob, NoisySftConfig, RpoConfig
from rerank_core.formats import documents_table, pointwise_table, queries_table, write_table
from rerank_core.models.tiny import save_tiny_causal
from rerank_core.models.writer import load_writer
from rerank_core.records import Document, GradedCandidate, Query

if TYPE_CHECKING:
    from torch import Tensor

BETA, ALPHA, NOISE_ALPHA = 0.1, 0.7, 5.0
TOLERANCE = 1e-6
"""Relative, for losses: TRL's output layer computes in single precision, whatever the model's own."""


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> GenerativeTrainJob:
    """Two queries whose answers differ in length, and a tiny causal model."""
    prepared = tmp_path_factory.mktemp("prepared")
    documents = [
        Document(f"d{n}", text) for n, text in enumerate(["sea ice", "rain", "wind at night", "dust"])
    ]
    write_table(documents_table(documents), prepared / "corpus.parquet")
    write_table(
        queries_table([Query("q1", "ice"), Query("q2", "rain and wind")]), prepared / "queries.parquet"
    )
    graded = [
        ("q1", "d0", 1, 0),
        ("q1", "d1", 2, 1),
        ("q2", "d1", 1, 0),
        ("q2", "d2", 2, 2),
        ("q2", "d3", 3, 1),
    ]
    rows = [GradedCandidate(*row) for row in graded]
    (prepared / "fold-0" / "train").mkdir(parents=True)
    write_table(pointwise_table(rows), prepared / "fold-0" / "train" / "pointwise.parquet")
    model = tmp_path_factory.mktemp("model")
    save_tiny_causal(model, ["Rank 1: d0 – sea ice, rain and wind at night, dust"], seed=0)
    return GenerativeTrainJob(
        prepared=prepared,
        output=prepared / "unused",
        model=str(model),
        num_workers=1,
        sft=NoisySftConfig(num_epochs=2, queries_per_step=2, noise_alpha=NOISE_ALPHA),
        dpo=RpoConfig(beta=BETA, nll_weight=ALPHA, queries_per_step=2),
        queries_per_pass=2,
    )


def trainer_of(job: GenerativeTrainJob, name: Any, scratch: Path) -> Any:
    task = GenerativeTask(job=job, name=name, start=job.model, provenance={})
    return build_trainer(task, world=1, scratch=scratch, zero=None)


def dpo_trainer(job: GenerativeTrainJob, scratch: Path) -> Any:
    """Return TRL's trainer in double precision, so that losses are compared rather than roundings."""
    trainer = trainer_of(job, "dpo", scratch)
    trainer.model.double()
    trainer.ref_model.double()
    return trainer


# --- RPO


def log_probs(model: torch.nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Return log p of every answer token under a model, 0 elsewhere: (chosen then rejected, tokens)."""
    with torch.no_grad():
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    every = functional.log_softmax(logits[:, :-1], dim=-1)
    told = every.gather(2, batch["input_ids"][:, 1:, None])[..., 0]
    return told * batch["completion_mask"][:, 1:]


def dpo(policy: Tensor, reference: Tensor) -> Tensor:
    """Return DPO's loss of every pair (Rafailov et al. 2023, equation 7)."""
    chosen, rejected = (policy - reference).sum(dim=1).chunk(2)
    return -functional.logsigmoid(BETA * (chosen - rejected))


def move(policy: torch.nn.Module) -> None:
    """Move a policy away from its reference, so that the loss has no special value."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in policy.parameters():
            weight.add_(0.5 * torch.randn(weight.shape, generator=generator))


@pytest.mark.parametrize("queries_per_pass", [1, 2])
def test_rpo_is_dpo_plus_alpha_times_the_likelihood_per_token_of_a_pass(
    job: GenerativeTrainJob, tmp_path: Path, queries_per_pass: int
) -> None:
    trainer = dpo_trainer(replace(job, queries_per_pass=queries_per_pass), tmp_path)
    move(trainer.model)
    reference = load_writer(Path(job.model)).model.double()
    for batch in trainer.get_train_dataloader():
        policy_log_probs = log_probs(trainer.model, batch)
        pairs = dpo(policy_log_probs, log_probs(reference, batch))
        chosen, lengths = policy_log_probs.chunk(2)[0], batch["completion_mask"].chunk(2)[0].sum(dim=1)
        ours = pairs.mean() - ALPHA * chosen.sum() / lengths.sum()
        theirs = trainer.compute_loss(trainer.model, dict(batch))
        assert len(pairs) == queries_per_pass
        assert theirs.item() == pytest.approx(ours.item(), rel=TOLERANCE)
        assert (pairs - math.log(2)).abs().min() > 1e-3
        per_answer = pairs.mean() - ALPHA * (chosen.sum(dim=1) / lengths).mean()
        differs = abs(per_answer - ours).item() > 10 * TOLERANCE
        assert differs == (queries_per_pass == 2), "RPO as published divides each answer by its own length"


def test_rpo_starts_at_ln_2_plus_alpha_times_the_likelihood(job: GenerativeTrainJob, tmp_path: Path) -> None:
    trainer = dpo_trainer(job, tmp_path)
    (batch,) = trainer.get_train_dataloader()
    chosen = log_probs(trainer.model, batch).chunk(2)[0]
    likelihood = -chosen.sum() / batch["completion_mask"].chunk(2)[0].sum()
    loss = trainer.compute_loss(trainer.model, dict(batch)).item()
    assert loss == pytest.approx(math.log(2) + ALPHA * likelihood.item(), rel=TOLERANCE)


# --- SFT


def test_the_loss_of_sft_is_on_the_answer_alone(job: GenerativeTrainJob, tmp_path: Path) -> None:
    trainer = trainer_of(job, "sft", tmp_path)
    (batch,) = trainer.get_train_dataloader()
    told = [
        ids[labels != -100].tolist() for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True)
    ]
    tokenizer = trainer.processing_class
    answers = [
        [*tokenizer(example.chosen)["input_ids"], tokenizer.eos_token_id]
        for example in read_examples(job, tokenizer).examples
    ]
    assert sorted(told) == sorted(answers)
    assert all(len(ids) > len(answer) + 20 for ids, answer in zip(batch["input_ids"], told, strict=True))


class NoiseWatch(transformers.TrainerCallback):
    """Keep what is added to the embeddings in each forward pass, of training and of an evaluation amid it."""

    def __init__(self, trainer: transformers.Trainer) -> None:
        self._trainer = trainer
        self.noises: dict[str, list[Tensor]] = {"training": [], "evaluation": []}

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Watch the embeddings behind the noise's own hook."""
        given["model"].get_input_embeddings().register_forward_hook(self._keep)

    def on_epoch_end(self, *_: Any, **__: Any) -> None:
        """Evaluate while the noise is active."""
        self._trainer.evaluate(self._trainer.train_dataset)

    def _keep(self, module: torch.nn.Embedding, inputs: tuple[Tensor], output: Tensor) -> None:
        mode = "training" if module.training else "evaluation"
        self.noises[mode].append((output - module.weight[inputs[0]]).detach())


@pytest.mark.parametrize("noise_alpha", [0.0, NOISE_ALPHA])
def test_noise_stays_within_its_bound_in_training_and_is_off_in_evaluation(
    job: GenerativeTrainJob, tmp_path: Path, noise_alpha: float
) -> None:
    job = replace(job, sft=replace(job.sft, noise_alpha=noise_alpha))
    trainer = trainer_of(job, "sft", tmp_path)
    watch = NoiseWatch(trainer)
    trainer.add_callback(watch)
    trainer.train()
    assert [len(noises) for noises in watch.noises.values()] == [job.sft.num_epochs] * 2
    assert all(not noise.any() for noise in watch.noises["evaluation"])
    for noise in watch.noises["training"]:
        queries, num_tokens, width = noise.shape
        bound = noise_alpha / math.sqrt(num_tokens * width)
        assert queries == job.queries_per_pass
        assert noise.abs().max() <= bound + TOLERANCE
        assert noise.abs().max() >= 0.99 * bound
        assert noise.mean().item() == pytest.approx(0, abs=0.05 * bound)
    assert not torch.equal(*watch.noises["training"]) or not noise_alpha
